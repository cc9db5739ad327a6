//! Several addresses of one application: balancing, rest, another try.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

use super::peers::{Fake, end, nobody, read_request, scgi_server, stdout};
use crate::support::{Server, eventually, needs};

fn named(name: &str) -> Fake {
    Fake::responder(format!("Content-Type: a/b\n\n{name}"))
}

#[test]
fn requests_go_where_fewest_are() {
    // One address holds what it gets until the other one has served many.
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let open = Arc::clone(&gate);
    let slow = Fake::new(move |mut stream, _| {
        let _ = read_request(&mut stream);
        let (open, opened) = &*gate;
        let mut is_open = open.lock().expect("nobody panics");
        while !*is_open {
            is_open = opened.wait(is_open).expect("nobody panics");
        }
        let _ = stream.write_all(&[stdout(b"Content-Type: a/b\n\nslow"), end(0, 0)].concat());
    });
    let quick = named("quick");
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", slow.address(), quick.address()),
        ])
        .start();
    thread::scope(|scope| {
        // Until one is held there.
        let mut held = Vec::new();
        while slow.accepted() == 0 {
            held.push(scope.spawn(|| server.get("/").text()));
            eventually(|| slow.accepted() + quick.accepted() > 0);
        }
        for _ in 0..20 {
            assert_eq!(server.get("/").text(), "quick");
        }
        *open.0.lock().expect("nobody panics") = true;
        open.1.notify_all();
        for request in held {
            request.join().expect("an answer");
        }
    });
    assert_eq!(slow.accepted(), 1);
}

#[test]
fn no_request_fails_while_one_address_is_there() {
    let (there, gone) = (named("there"), nobody());
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{gone},{}", there.address())])
        .start();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for method in ["GET", "POST", "GET", "PUT"].repeat(5) {
                    let answer = server.request(method, "/", &[], b"content");
                    assert_eq!(answer.text(), "there", "{method}");
                }
            });
        }
    });
    let log = server.wait_for_log("it gets no requests for 0.5 s");
    assert!(
        log.contains(&format!("fastcgi '{gone}': no connection: ")),
        "{log}"
    );
}

#[test]
fn an_address_that_comes_back_is_used_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let there = named("there");
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{address},{}", there.address()),
        ])
        .start();
    while !server.log().contains("it gets no requests") {
        assert_eq!(server.get("/").text(), "there");
    }
    let Ok(listener) = std::net::TcpListener::bind(address) else {
        // Somebody else took the port in the meantime.
        return;
    };
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                while read_request(&mut stream).is_some() {
                    let text = stdout(b"Content-Type: a/b\n\nback");
                    let _ = stream.write_all(&[text, end(0, 0)].concat());
                }
            });
        }
    });
    assert!(eventually(|| server.get("/").text() == "back"));
    server.wait_for_log(&format!("fastcgi '{address}': answers again\n"));
}

#[test]
fn with_checks_no_request_has_to_find_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let there = named("there");
    let route = format!("/=fastcgi:{address},{},check=0.1", there.address());
    let server = Server::new().args(["--route", &route]).start();
    server.wait_for_log(&format!(
        "fastcgi '{address}': can't be reached; it gets no requests\n"
    ));
    for _ in 0..10 {
        assert_eq!(server.request("POST", "/", &[], b"x").text(), "there");
    }
    assert!(!server.log().contains("another address is asked"));
    let Ok(_listener) = std::net::TcpListener::bind(address) else {
        // Somebody else took the port in the meantime.
        return;
    };
    server.wait_for_log(&format!("fastcgi '{address}': can be reached again\n"));
}

#[test]
fn when_all_addresses_rest_the_answer_is_503() {
    let (one, two) = (nobody(), nobody());
    let server = Server::new()
        .args(["--route", &format!("/=scgi:{one},{two}")])
        .start();
    assert_eq!(server.get("/").status, 502);
    let answer = server.get("/");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("Retry-After").as_deref(), Some("1"));
    server.wait_for_log("(all-rest)\n");
}

#[test]
fn what_may_have_been_run_is_not_run_again_c159() {
    // Both read the request and leave.
    let runs = || {
        Fake::new(|mut stream, _| {
            let _ = read_request(&mut stream);
        })
    };
    let (one, two) = (runs(), runs());
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", one.address(), two.address()),
        ])
        .start();
    let before = || one.accepted() + two.accepted();
    assert_eq!(server.request("POST", "/", &[], b"x").status, 502);
    assert_eq!(before(), 1);
    // GET changes nothing, so it is asked elsewhere.
    assert_eq!(server.request("GET", "/", &[], b"").status, 502);
    assert_eq!(before(), 3);
    // Content that is no longer there can't be sent again.
    assert_eq!(server.request("PUT", "/", &[], b"small").status, 502);
    assert_eq!(before(), 5);
    assert_eq!(
        server.request("PUT", "/", &[], &vec![b'x'; 300_000]).status,
        502
    );
    assert_eq!(before(), 6);
}

#[test]
fn what_has_begun_to_answer_is_not_asked_again_c159() {
    let begins = || {
        Fake::new(|mut stream, _| {
            let _ = read_request(&mut stream);
            let _ = stream.write_all(&stdout(b"Content-"));
        })
    };
    let (one, two) = (begins(), begins());
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", one.address(), two.address()),
        ])
        .start();
    assert_eq!(server.get("/").status, 502);
    assert_eq!(one.accepted() + two.accepted(), 1);
}

#[test]
fn an_overloaded_address_leaves_its_request_to_another_c154() {
    let full = Fake::new(|mut stream, _| {
        while read_request(&mut stream).is_some() {
            let _ = stream.write_all(&end(0, 2));
        }
    });
    let there = named("there");
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", full.address(), there.address()),
        ])
        .start();
    for _ in 0..6 {
        assert_eq!(server.request("POST", "/", &[], b"x").text(), "there");
    }
}

#[test]
fn no_more_connections_are_made_than_allowed_c160() {
    let most = Arc::new(Mutex::new((0, 0)));
    let seen = Arc::clone(&most);
    let fake = Fake::new(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            {
                let mut seen = seen.lock().expect("nobody panics");
                seen.0 += 1;
                seen.1 = seen.1.max(seen.0);
            }
            thread::yield_now();
            seen.lock().expect("nobody panics").0 -= 1;
            let text = stdout(b"Content-Type: a/b\n\nhello");
            let _ = stream.write_all(&[text, end(0, 0)].concat());
        }
    });
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},connections=2", fake.address()),
        ])
        .start();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(server.get("/").text(), "hello");
                }
            });
        }
    });
    assert!(most.lock().expect("nobody panics").1 <= 2);
    // They are used again, not made anew.
    assert!(fake.accepted() <= 4, "{} connections", fake.accepted());
}

#[test]
fn an_application_that_is_killed_under_load_costs_no_request_that_can_be_repeated() {
    if !needs("python3") {
        return;
    }
    let (stays, goes) = (scgi_server(), scgi_server());
    let server = Server::new()
        .args([
            "--route",
            &format!("/app=scgi:{},{}", goes.address(), stays.address()),
        ])
        .start();
    let fds = server.fds_at_rest();
    let done = AtomicUsize::new(0);
    let goes = Mutex::new(Some(goes));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let answer = server.get("/app/x");
                    assert_eq!((answer.status, answer.complete), (201, true), "{answer}");
                    if done.fetch_add(1, Ordering::SeqCst) == 100 {
                        drop(goes.lock().expect("nobody panics").take());
                    }
                }
            });
        }
    });
    server.wait_for_log("it gets no requests for");
    server.settles_to(fds);
}

/// A place where connections neither come about nor fail: its queue is full, and
/// the kernel lets whoever else knocks wait.
struct CutOff {
    address: String,
    _listener: OwnedFd,
    _queue: Vec<TcpStream>,
}

impl CutOff {
    fn new() -> Self {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        bind(&listener, &any).expect("loopback has a free port");
        listen(&listener, 0).expect("it is bound");
        let address = getsockname(&listener).expect("it is bound");
        let address = SocketAddrV4::try_from(address).expect("as it was bound");
        let mut queue = Vec::new();
        let short = Duration::from_millis(200);
        while let Ok(stream) = TcpStream::connect_timeout(&address.into(), short) {
            queue.push(stream);
        }
        Self {
            address: address.to_string(),
            _listener: listener,
            _queue: queue,
        }
    }
}

#[test]
fn a_connection_that_does_not_come_about_is_tried_elsewhere_meanwhile() {
    let (cut_off, there) = (CutOff::new(), named("there"));
    let route = format!("/=fastcgi:{},{}", cut_off.address, there.address());
    // Longer than the test waits for anything.
    let server = Server::new()
        .args(["--route", &route, "--route-connect", "600"])
        .start();
    for method in ["POST", "GET", "PUT", "POST"].repeat(3) {
        let answer = server.request(method, "/", &[], b"content");
        assert_eq!(answer.text(), "there", "{method}");
    }
    server.wait_for_log(&format!(
        "fastcgi '{}': no connection while another address gave one; it gets no requests for 0.5 s\n",
        cut_off.address
    ));
}

#[test]
fn when_no_connection_comes_about_anywhere_the_time_for_one_holds() {
    let (one, two) = (CutOff::new(), CutOff::new());
    let route = format!("/=scgi:{},{}", one.address, two.address);
    let server = Server::new()
        .args(["--route", &route, "--route-connect", "1"])
        .start();
    assert_eq!(server.get("/").status, 504);
    server.wait_for_log("no connection in time (connect-timeout)\n");
    assert_eq!(server.get("/").status, 503);
}

/// An application that can be made to stand still, as one that is stopped does:
/// connections come about, and nothing is answered.
pub(super) struct Stoppable {
    pub(super) fake: Fake,
    /// How many requests have come.
    asked: Arc<AtomicUsize>,
    stopped: Arc<(Mutex<bool>, Condvar)>,
}

impl Stoppable {
    pub(super) fn new(answer: &'static [u8], read: fn(&mut TcpStream) -> bool) -> Self {
        let stopped = Arc::new((Mutex::new(false), Condvar::new()));
        let asked = Arc::new(AtomicUsize::new(0));
        let (own, count) = (Arc::clone(&stopped), Arc::clone(&asked));
        let fake = Fake::new(move |mut stream, _| {
            while read(&mut stream) {
                count.fetch_add(1, Ordering::SeqCst);
                let (stopped, changed) = &*own;
                let mut is_stopped = stopped.lock().expect("nobody panics");
                while *is_stopped {
                    is_stopped = changed.wait(is_stopped).expect("nobody panics");
                }
                drop(is_stopped);
                if stream.write_all(answer).is_err() {
                    return;
                }
            }
        });
        Self {
            fake,
            asked,
            stopped,
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(super) fn stop(&self, stop: bool) {
        *self.stopped.0.lock().expect("nobody panics") = stop;
        self.stopped.1.notify_all();
    }
}

fn read_http(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match std::io::Read::read(stream, &mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return false,
        }
    }
    true
}

#[test]
fn an_address_that_hangs_costs_no_request_that_can_be_repeated() {
    let fastcgi = [stdout(b"Content-Type: a/b\n\nback"), end(0, 0)].concat();
    let http = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback";
    hangs_and_comes_back(
        "fastcgi",
        // Which finds nothing: connections can be made.
        ",check=0.1",
        &Stoppable::new(fastcgi.leak(), |stream| read_request(stream).is_some()),
        &named("there"),
    );
    let there = Stoppable::new(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere",
        read_http,
    );
    hangs_and_comes_back("http", "", &Stoppable::new(http, read_http), &there.fake);
}

fn hangs_and_comes_back(protocol: &str, option: &str, hangs: &Stoppable, there: &Fake) {
    hangs.stop(true);
    let address = hangs.fake.address();
    let route = format!("/={protocol}:{address},{}{option}", there.address());
    let server = Server::new()
        .args(["--route", &route, "--route-timeout", "2"])
        .start();
    // Those that it has got are asked elsewhere when their time is over, for it
    // answers nobody. Later ones that try whether it is back go there sooner.
    let tries = "no answer to a try for 1 s; another address is asked\n";
    let end = Instant::now() + 6 * crate::support::DEADLINE;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !server.log().contains(tries) && Instant::now() < end {
                    assert_eq!(server.get("/").text(), "there", "{}", server.log());
                }
            });
        }
    });
    let log = server.wait_for_log(tries);
    let noticed = format!(
        "{protocol} '{address}': no complete header for 2 s; it gets no requests for 0.5 s\n"
    );
    assert!(log.contains(&noticed), "{log}");
    // What can't be repeated is not risked there as long as another is well. The
    // address rests for a second at least.
    let before = hangs.asked();
    for _ in 0..20 {
        assert_eq!(server.request("POST", "/", &[], b"").text(), "there");
    }
    assert_eq!(hangs.asked(), before);
    hangs.stop(false);
    assert!(eventually(|| server.get("/").text() == "back"));
    server.wait_for_log(&format!("{protocol} '{address}': answers again\n"));
}

#[test]
fn an_address_that_owes_answers_and_gives_none_gets_less() {
    let late = [stdout(b"Content-Type: a/b\n\nlate"), end(0, 0)].concat();
    let hangs = Stoppable::new(late.leak(), |stream| read_request(stream).is_some());
    hangs.stop(true);
    // This one keeps some of what it gets, and answers the others.
    let gate = Arc::new((Mutex::new(0), Condvar::new()));
    let kept = Arc::clone(&gate);
    let there = Fake::new(move |mut stream, _| {
        let Some(request) = read_request(&mut stream) else {
            return;
        };
        if request.has("REQUEST_URI", "/keep") {
            let (count, changed) = &*kept;
            let mut count = count.lock().expect("nobody panics");
            *count += 1;
            while *count < usize::MAX {
                count = changed.wait(count).expect("nobody panics");
            }
        }
        let _ = stream.write_all(&[stdout(b"Content-Type: a/b\n\nthere"), end(0, 0)].concat());
    });
    let route = format!("/=fastcgi:{},{}", hangs.fake.address(), there.address());
    let server = Server::new().args(["--route", &route]).start();
    thread::scope(|scope| {
        let ask = |path| server.request("GET", path, &[], b"");
        let asked = || hangs.fake.accepted() + there.accepted();
        while hangs.fake.accepted() == 0 {
            let before = asked();
            scope.spawn(move || ask("/"));
            assert!(eventually(|| asked() > before));
        }
        let silent_from = Instant::now() + Duration::from_secs(1);
        assert!(eventually(|| Instant::now() > silent_from));
        // Two and three are more than one, but less than four.
        for count in 1..=3 {
            scope.spawn(move || ask("/keep"));
            assert!(eventually(
                || *gate.0.lock().expect("nobody panics") == count
            ));
        }
        assert_eq!(ask("/").text(), "there");
        *gate.0.lock().expect("nobody panics") = usize::MAX;
        gate.1.notify_all();
        hangs.stop(false);
    });
    assert_eq!(hangs.fake.accepted(), 1);
}
