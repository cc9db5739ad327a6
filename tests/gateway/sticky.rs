//! Clients that stay with one address.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::addresses::Stoppable;
use super::peers::{Fake, end, read_request, stdout};
use crate::support::{Server, eventually};

/// An application that says its name, or leaves without an answer.
struct Host {
    fake: Fake,
    gone: Arc<AtomicBool>,
}

impl Host {
    fn new(protocol: &str, name: &str) -> Self {
        let gone = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&gone);
        let is_http = protocol == "http";
        let answer = if is_http {
            format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}").into_bytes()
        } else {
            let output = format!("Content-Type: a/b\n\n{name}");
            [stdout(output.as_bytes()), end(0, 0)].concat()
        };
        let fake = Fake::new(move |mut stream, _| {
            while is_asked(is_http, &mut stream) && !own.load(Ordering::SeqCst) {
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        Self { fake, gone }
    }
}

fn is_asked(is_http: bool, stream: &mut TcpStream) -> bool {
    if !is_http {
        return read_request(stream).is_some();
    }
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return false,
        }
    }
    true
}

fn hosts(protocol: &str) -> [Host; 3] {
    ["a", "b", "c"].map(|name| Host::new(protocol, name))
}

fn route(pattern: &str, protocol: &str, hosts: &[Host; 3], option: &str) -> String {
    let [a, b, c] = hosts.each_ref().map(|host| host.fake.address());
    format!("{pattern}={protocol}:{a},{b},{c},{option}")
}

#[test]
fn a_cookie_keeps_a_client_with_an_address_as_long_as_that_is_there() {
    for protocol in ["fastcgi", "http"] {
        let hosts = hosts(protocol);
        let server = Server::new()
            .args([
                "--route",
                &route("/app/", protocol, &hosts, "sticky=cookie"),
            ])
            .start();
        let first = server.get("/app/");
        let set = first.header("Set-Cookie").expect("a cookie");
        let (cookie, rest) = set.split_once(';').expect("attributes");
        assert_eq!(rest, " Path=/app/; HttpOnly; SameSite=Lax");
        let ask = |cookie: &str| {
            let fields = [("Cookie", &format!("theme=dark; {cookie}")[..])];
            server.request("GET", "/app/x", &fields, b"")
        };
        for _ in 0..12 {
            let answer = ask(cookie);
            assert_eq!(answer.text(), first.text());
            // It has one.
            assert_eq!(answer.header("Set-Cookie"), None);
        }
        let others: HashSet<String> = (0..12).map(|_| server.get("/app/").text()).collect();
        assert_eq!(others.len(), 3, "{others:?}");
        // Its address is lost: it is given another one, and stays there.
        let at = "abc".find(&first.text()).expect("one of them");
        hosts[at].gone.store(true, Ordering::SeqCst);
        let next = ask(cookie);
        assert_ne!(next.text(), first.text());
        let set = next.header("Set-Cookie").expect("another cookie");
        let next_cookie = set.split(';').next().expect("a first part");
        assert_ne!(next_cookie, cookie);
        hosts[at].gone.store(false, Ordering::SeqCst);
        for _ in 0..12 {
            assert_eq!(ask(next_cookie).text(), next.text());
        }
        // Nobody knows what this one means.
        let unknown = ask("serve-here-host=0123456789abcdef");
        assert!(unknown.header("Set-Cookie").is_some());
    }
}

#[test]
fn the_client_address_keeps_a_client_with_an_address() {
    for protocol in ["fastcgi", "http"] {
        let hosts = hosts(protocol);
        let server = Server::new()
            .args(["--route", &route("/", protocol, &hosts, "sticky=client")])
            .args(["--trust-proxy", "127.0.0.1"])
            .start();
        let ask = |client: usize| {
            let client = format!("192.0.2.{client}");
            let answer = server.request("GET", "/", &[("X-Forwarded-For", &client)], b"");
            assert_eq!(answer.header("Set-Cookie"), None);
            answer.text()
        };
        let all = || (1..40).map(ask).collect::<Vec<String>>();
        let before = all();
        assert_eq!(before.iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(all(), before);
        // One is lost; the clients of the others stay where they are.
        hosts[0].gone.store(true, Ordering::SeqCst);
        for (before, now) in before.iter().zip(all()) {
            assert!(
                now == *before || before == "a" && now != "a",
                "{before} {now}"
            );
        }
        // It is back, and so are its clients.
        hosts[0].gone.store(false, Ordering::SeqCst);
        assert!(eventually(|| all() == before));
    }
}

#[test]
fn an_address_that_has_all_it_takes_is_waited_for() {
    let hosts = hosts("fastcgi");
    let server = Server::new()
        .args([
            "--route",
            &route("/", "fastcgi", &hosts, "sticky=cookie,connections=1"),
        ])
        .start();
    let clients: Vec<(String, String)> = (0..3)
        .map(|_| {
            let answer = server.get("/");
            let set = answer.header("Set-Cookie").expect("a cookie");
            let (cookie, _) = set.split_once(';').expect("attributes");
            (cookie.to_owned(), answer.text())
        })
        .collect();
    std::thread::scope(|scope| {
        for (cookie, name) in clients.iter().cycle().take(9) {
            scope.spawn(|| {
                for _ in 0..20 {
                    let answer = server.request("GET", "/", &[("Cookie", cookie)], b"");
                    assert_eq!(answer.text(), *name);
                }
            });
        }
    });
}

#[test]
fn nobody_waits_for_an_address_that_rests_and_has_all_it_takes() {
    let back = [stdout(b"Content-Type: a/b\n\nback"), end(0, 0)].concat();
    let hangs = Stoppable::new(back.leak(), |stream| read_request(stream).is_some());
    let there = Fake::responder("Content-Type: a/b\n\nthere");
    let route = format!(
        "/=fastcgi:{},{},sticky=cookie,connections=1",
        hangs.fake.address(),
        there.address()
    );
    // Who waits for a turn there does so in vain.
    let server = Server::new()
        .args(["--route", &route, "--route-timeout", "2"])
        .args(["--route-connect", "1.5"])
        .start();
    let mut cookie = String::new();
    assert!(eventually(|| {
        let answer = server.get("/");
        let set = answer.header("Set-Cookie").expect("a cookie");
        cookie = set.split(';').next().expect("a first part").to_owned();
        answer.text() == "back"
    }));
    hangs.stop(true);
    // One request finds that out; a later one tries in vain whether it is back, and
    // stays there.
    let tries = "no answer to a try for 1 s; another address is asked\n";
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(server.get("/").text(), "there");
                }
            });
        }
        let in_vain = eventually(|| server.log().contains(tries));
        stop.store(true, Ordering::SeqCst);
        assert!(in_vain);
    });
    let answer = server.request("GET", "/", &[("Cookie", &cookie)], b"");
    assert_eq!(answer.text(), "there");
    hangs.stop(false);
}
