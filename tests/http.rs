//! HTTP/1 on the wire, whatever answers (RFC 9112): connections, their order
//! and their end. What a fixed exchange of text shows is in tests/transcripts.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use rustix::process::Signal;

use crate::support::{
    Client, DEADLINE, Process, Rows, Server, curl, eventually, first_core, needs, tiny_http_cannot,
};

fn server() -> Server {
    ["echo", "slow", "stream", "trapterm", "hang", "clshort"]
        .into_iter()
        .fold(Server::new().tree("site"), crate::support::Setup::fixture)
        .start()
}

#[test]
fn a_connection_carries_many_requests() {
    let server = server();
    let mut client = server.connect();
    for _ in 0..50 {
        client.send(server.wire(b"GET /hello.txt HTTP/1.1\nHost: {host}"));
        assert_eq!(client.response().text(), "hello\n");
    }
    client.send(server.wire(b"GET /cgi-bin/echo HTTP/1.1\nHost: {host}"));
    assert_eq!(client.response().status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = server();
    let mut client = server.connect();
    let mut wire = Vec::new();
    for target in [
        "/cgi-bin/slow",
        "/hello.txt",
        "/nothing",
        "/cgi-bin/echo",
        "/empty.txt",
    ] {
        wire.extend(server.wire(format!("GET {target} HTTP/1.1\nHost: {{host}}").as_bytes()));
    }
    client.send(wire);
    for (status, body) in [(200, "slow\n"), (200, "hello\n")] {
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (status, body));
    }
    for status in [404, 200, 200] {
        assert_eq!(client.response().status, status);
    }
}

#[test]
fn pipelined_bodies_stay_with_their_requests() {
    let server = server();
    let mut client = server.connect();
    let mut wire = Vec::new();
    for n in 1..20 {
        let body = "b".repeat(n * 100);
        wire.extend(
            server.wire(
                format!(
                    "POST /cgi-bin/echo HTTP/1.1\nHost: {{host}}\nContent-Length: {}\n\n{body}",
                    body.len()
                )
                .as_bytes(),
            ),
        );
    }
    client.send_beside(wire);
    for n in 1..20 {
        assert_eq!(client.response().body.len(), n * 100);
    }
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let server = server();
    let mut client = server.connect();
    client.send_bytewise(server.wire(b"GET /hello.txt HTTP/1.1\nHost: {host}"));
    assert_eq!(client.response().text(), "hello\n");
}

#[test]
fn what_is_no_head_is_refused_and_the_connection_ends() {
    let server = server();
    let mut all = Rows::new();
    for request in [
        "GET /hello.txt",
        "GET",
        "GET /hello.txt HTTP/one\nHost: {host}",
        "GET /hello.txt HTTP/1.1\nHost: {host}\nno field",
        "GET /hello.txt HTTP/1.1\nHost: {host}\nX-Space : before the colon",
        "GET /hello.txt HTTP/1.1\nHost: {host}\n: no name",
        "GET /hello.txt HTTP/1.1\nHost: {host}\nX=Y: no token",
        "G(T /hello.txt HTTP/1.1\nHost: {host}",
    ] {
        let mut client = server.connect();
        client.send(server.wire(request.as_bytes()));
        let status = client
            .try_response_to("GET")
            .map(|response| response.status);
        all.check(request, status == Some(400), || format!("{status:?}"));
        let closed = client.is_closed();
        all.check(request, closed, || "the connection goes on".to_owned());
    }
    all.done();
}

#[test]
fn a_request_line_of_four_words_is_refused() {
    if tiny_http_cannot("see a fourth word in the request line") {
        return;
    }
    let server = server();
    let request = "GET /hello.txt HTTP/1.1 more\nHost: {host}";
    let response = server.ask(request).expect("it is answered");
    assert_eq!(response.status, 400, "{response}");
}

#[test]
fn another_major_version_is_refused() {
    if tiny_http_cannot("send its 505") {
        return;
    }
    let server = server();
    let request = "GET /hello.txt HTTP/2.0\nHost: {host}";
    let response = server.ask(request).expect("it is answered");
    assert_eq!(response.status, 505, "{response}");
}

#[test]
fn a_line_may_end_in_lf_alone() {
    if tiny_http_cannot("end a line at a bare LF") {
        return;
    }
    let server = server();
    let mut client = server.connect();
    client.send("\nGET /hello.txt HTTP/1.1\nHost: x\r\n\n");
    assert_eq!(client.response().text(), "hello\n");
}

#[test]
fn a_head_that_does_not_end_is_cut_off_by_size_and_by_time() {
    if tiny_http_cannot("bound a head") {
        return;
    }
    let server = Server::new()
        .file("hello.txt", "hello\n")
        .args(["--max-head", "4K", "--max-fields", "10"])
        .args(["--head-timeout", "1", "--idle-timeout", "1"])
        .start();
    let long = "x".repeat(5000);
    for (part, status) in [
        (format!("GET /{long}"), 414),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}"), 431),
        (
            "GET / HTTP/1.1\r\nHost: x\r\n".to_owned() + &"A: b\r\n".repeat(20) + "\r\n",
            431,
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\n".to_owned(), 408),
    ] {
        let mut client = server.connect();
        client.send(&part);
        let response = client.response();
        assert_eq!(response.status, status, "{}: {response}", &part[..10]);
        assert!(client.is_closed());
    }
    // One that says nothing is told nothing.
    assert!(server.connect().is_closed());
    let mut client = server.connect();
    client.send("GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().status, 200);
    assert!(client.is_closed());
}

#[test]
fn a_client_that_sends_no_more_is_still_answered() {
    let server = server();
    for (target, body) in [
        ("/hello.txt", "hello\n"),
        ("/cgi-bin/slow", "slow\n"),
        ("/cgi-bin/stream", "line 1\nline 2\nline 3\n"),
    ] {
        for version in ["1.0", "1.1"] {
            let mut client = server.connect();
            let request = format!("GET {target} HTTP/{version}\nHost: {{host}}");
            client.send(server.wire(request.as_bytes())).half_close();
            let response = client.response();
            assert_eq!(response.text(), body, "{request}");
            assert!(response.complete);
            assert!(client.is_closed());
        }
    }
}

#[test]
fn http_1_0_ends_the_connection_unless_asked_to_keep_it() {
    let server = server();
    let mut all = Rows::new();
    for (target, field, stays) in [
        ("/hello.txt", "", false),
        ("/hello.txt", "\nConnection: keep-alive", true),
        ("/hello.txt", "\nConnection: close", false),
        ("/nothing", "", false),
        // Without a length only the end of the connection ends the body.
        ("/cgi-bin/stream", "", false),
        ("/cgi-bin/stream", "\nConnection: keep-alive", false),
    ] {
        let what = format!("{target} {field:?}");
        let mut client = server.connect();
        let request =
            server.wire(format!("GET {target} HTTP/1.0\nHost: {{host}}{field}").as_bytes());
        client.send(&request);
        let response = client.response();
        all.check(&what, response.complete, || response.to_string());
        let said = response.header("Connection").unwrap_or_default();
        let said = said.eq_ignore_ascii_case("keep-alive");
        all.check(&what, said == stays, || response.to_string());
        if stays {
            client.send(&request);
            let again = client
                .try_response_to("GET")
                .map(|response| response.status);
            all.check(&what, again == Some(200), || "does not stay".to_owned());
        } else {
            all.check(&what, client.is_closed(), || "does not end".to_owned());
        }
    }
    all.done();
}

#[test]
fn a_client_that_asks_for_the_end_gets_it() {
    let server = server();
    for target in ["/hello.txt", "/nothing", "/cgi-bin/echo", "/cgi-bin/stream"] {
        let mut client = server.connect();
        let request = format!("GET {target} HTTP/1.1\nHost: {{host}}\nConnection: Close");
        client.send(server.wire(request.as_bytes()));
        let response = client.response();
        let connection = response.header("Connection").unwrap_or_default();
        assert!(connection.eq_ignore_ascii_case("close"), "{response}");
        assert!(client.is_closed());
    }
}

#[test]
fn a_client_may_come_again_from_the_same_port_at_once() {
    let server = server();
    let come_again = || {
        let mut port = 0;
        for _ in 0..200 {
            let Ok(mut stream) = connect_from(port, server.address()) else {
                // Somebody else has got the port.
                port = 0;
                continue;
            };
            port = stream.local_addr().expect("it is connected").port();
            let request = server.wire(b"GET /hello.txt HTTP/1.1\nHost: {host}\nConnection: close");
            stream.write_all(&request).expect("it is taken");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer:?}");
        }
    };
    // Together they keep the machine busy, so that the server is late with something.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(come_again);
        }
    });
}

/// Port 0 is any free one.
fn connect_from(port: u16, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    connect(&socket, &server)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

#[test]
fn head_is_get_without_its_body() {
    let server = server();
    let mut client = server.connect();
    for target in [
        "/hello.txt",
        "/",
        "/docs",
        "/nothing",
        "/cgi-bin/slow",
        "/empty.txt",
    ] {
        let mut ask = |method: &str| {
            let request = format!("{method} {target} HTTP/1.1\nHost: {{host}}");
            client.send(server.wire(request.as_bytes()));
            client.response_to(method)
        };
        let (head, get) = (ask("HEAD"), ask("GET"));
        assert_eq!(head.status, get.status, "{target}");
        for (name, value) in &head.headers {
            let framing = ["date", "content-length", "transfer-encoding"];
            if !framing.contains(&name.to_ascii_lowercase().as_str()) {
                assert!(
                    get.headers.contains(&(name.clone(), value.clone())),
                    "{target}: only HEAD has {name}"
                );
            }
        }
        // RFC 9110 §8.6: if it is sent, it is the length GET has.
        if let (Some(head), Some(get)) =
            (head.header("Content-Length"), get.header("Content-Length"))
        {
            assert_eq!(head, get, "{target}");
        }
    }
}

#[test]
fn every_answer_has_one_date_and_one_server() {
    let server = server();
    for target in [
        "/hello.txt",
        "/",
        "/docs",
        "/nothing",
        "/%zz",
        "/cgi-bin/echo",
    ] {
        let response = server.get(target);
        let date = response.header("Date").expect("a clock is there");
        assert!(httpdate::parse_http_date(&date).is_ok(), "{target}: {date}");
        assert!(date.ends_with(" GMT"), "{target}: {date}");
        let product = response.header("Server").expect("it says who it is");
        assert!(product.starts_with("serve-here"), "{target}: {product}");
    }
}

#[test]
fn requests_on_many_connections_do_not_wait_for_each_other() {
    if tiny_http_cannot("serve a burst of connections at once") {
        return;
    }
    let server = server();
    // More that send nothing, or wait for a script, than there are cores.
    let silent: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    let mut waiting: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = server.connect();
            client.send(server.wire(b"GET /cgi-bin/hang HTTP/1.1\nHost: {host}"));
            client
        })
        .collect();
    assert!(eventually(|| server.children().len() >= 4));
    assert_eq!(server.get("/hello.txt").text(), "hello\n");
    drop(silent);
    for client in &mut waiting {
        client.half_close();
    }
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let server = server();
    let before = server.idle_fds();
    for part in [
        "",
        "GET",
        "GET /hello.txt HTTP/1.1\r\nHost: x",
        "GET /cgi-bin/trapterm HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(part);
        drop(client);
    }
    server.settles_to(before);
}

#[test]
fn a_script_that_sends_less_than_it_announced_shows_as_a_cut() {
    let server = server();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/clshort HTTP/1.1\nHost: {host}"));
    let response = client.response();
    assert!(!response.complete, "{response}");
    assert!(client.end().is_some());
}

#[test]
fn termination_ends_the_server_and_its_scripts_with_code_0() {
    let mut server = Server::new()
        .fixture("trapterm")
        .args(["--grace", "0"])
        .start();
    let mut idle = server.connect();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/trapterm HTTP/1.1\nHost: {host}"));
    client.head().expect("the script runs");
    let children = server.children();
    assert!(!children.is_empty());
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    for child in children {
        assert!(eventually(|| !Process::runs(child.pid)), "{child} runs on");
    }
    assert!(idle.is_closed());
}

#[test]
fn an_answer_after_termination_says_that_no_other_follows() {
    let waits = "#!/bin/sh\nwhile ! test -e go; do sleep 0.05; done\n\
        printf 'Content-Type: text/plain\\n\\nit is done\\n'\n";
    let mut server = Server::new().script("cgi-bin/waits", waits).start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/waits HTTP/1.1\nHost: {host}"));
    assert!(eventually(|| !server.children().is_empty()));
    server.signal(Signal::TERM);
    let is_stopping = || TcpStream::connect(server.address()).is_err();
    assert!(eventually(is_stopping));
    fs::write(server.root().join("cgi-bin/go"), "").unwrap();
    let response = client.response();
    assert_eq!(response.text(), "it is done\n");
    assert_eq!(response.header("connection").as_deref(), Some("close"));
    assert!(client.is_closed());
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn curl_speaks_to_it() {
    if !needs("curl") {
        return;
    }
    let server = server();
    let output = curl(&[
        &server.url("/hello.txt"),
        &server.url("/cgi-bin/stream"),
        &server.url("/hello.txt"),
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text, "hello\nline 1\nline 2\nline 3\nhello\n");
}

#[test]
fn at_the_limit_the_longest_idle_connection_makes_room() {
    if tiny_http_cannot("bound its connections") {
        return;
    }
    // On one core an answer that has come is an idle connection: no other thread
    // overtakes the one that sent it.
    let server = Server::new()
        .tree("site")
        .under(["taskset", "-c", &first_core()])
        .args(["--max-connections", "3"])
        .start();
    let ask = |client: &mut Client| {
        client.send(server.wire(b"GET /hello.txt HTTP/1.1\nHost: {host}"));
        assert_eq!(client.response().text(), "hello\n");
    };
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..5 {
        let mut client = server.connect();
        ask(&mut client);
        clients.push(client);
    }
    let (old, young) = clients.split_at_mut(2);
    for client in old {
        assert!(client.is_closed(), "the first to be idle goes first");
    }
    for client in young {
        ask(client);
    }
}

#[test]
fn an_absurd_content_length_costs_nothing() {
    let server = server();
    for length in [100_000_000_000, 90_000_000_000_000, u64::MAX >> 1, u64::MAX] {
        for path in ["/hello.txt", "/cgi-bin/echo"] {
            let mut client = server.connect();
            let head =
                format!("POST {path} HTTP/1.1\nHost: {{host}}\nContent-Length: {length}\n\nabc");
            client.send(server.wire(head.as_bytes()));
            assert!(server.get("/hello.txt").status == 200, "{length}");
        }
    }
    assert_eq!(server.get("/hello.txt").text(), "hello\n");
}
