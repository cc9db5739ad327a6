//! Applications that speak HTTP themselves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, Mutex, OnceLock, mpsc};
use std::thread;

use super::peers::{Fake, Program, fixture, gunicorn, nobody, uwsgi, wait_for_end};
use crate::support::{DEADLINE, Rows, Server, engine, eventually, needs, skip, tiny_http_cannot};

/// Up to the empty line, in lower case; `None` at the end of the connection.
pub(super) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).expect("plain").to_lowercase())
}

/// Answers each request with its own head.
fn mirror() -> Fake {
    Fake::new(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}",
                head.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// Says `answer` to each request.
fn says(answer: impl Into<Vec<u8>>) -> Fake {
    let answer = answer.into();
    Fake::new(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    })
}

#[test]
fn gunicorn_serves_an_application() {
    if !needs("gunicorn") {
        return;
    }
    let peer = gunicorn();
    let server = Server::new()
        .args(["--route", &format!("/app/=http:{},path=/", peer.address())])
        .start();
    let answer = server.request("GET", "/app/a%20b?x=%20y", &[("X-Test", "yes")], b"");
    let text = answer.text();
    for line in [
        "SCRIPT_NAME=\n",
        "PATH_INFO=/a b\n",
        "QUERY_STRING=x=%20y\n",
        "HTTP_X_TEST=yes\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let answer = server.get("/app/teapot");
    assert_eq!((answer.status, &answer.reason[..]), (418, "A teapot"));
    let body: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let echoed = server.request("POST", "/app/echo", &[], &body);
    assert!(echoed.complete && echoed.body == body);
    assert_eq!(server.get("/app/large").body.len(), 5_000_000);
    let mut client = server.connect();
    for _ in 0..10 {
        client.send("HEAD /app/large HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = client.response_to("HEAD");
        assert_eq!(head.header("Content-Length").as_deref(), Some("5000000"));
    }
}

#[test]
fn uwsgi_serves_an_application_by_http() {
    if !needs("uwsgi") {
        return;
    }
    let peer = uwsgi("--http-socket");
    let server = Server::new()
        .args(["--route", &format!("/app/=http:{},path=/", peer.address())])
        .start();
    let answer = server.request("GET", "/app/caf%C3%A9?x=1", &[("X-Test", "yes")], b"");
    assert_eq!(
        String::from_utf8_lossy(&answer.body),
        "REQUEST_METHOD=GET\nSCRIPT_NAME=\nPATH_INFO=/café\nQUERY_STRING=x=1\n\
         CONTENT_LENGTH=-\nSERVER_PROTOCOL=HTTP/1.1\nHTTP_X_TEST=yes\n"
    );
    let answer = server.get("/app/teapot");
    assert_eq!((answer.status, &answer.reason[..]), (418, "A teapot"));
    let body: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let echoed = server.request("POST", "/app/echo", &[], &body);
    assert!(echoed.complete && echoed.body == body);
    assert_eq!(server.get("/app/large").body.len(), 5_000_000);
    let head = server
        .connect()
        .send("HEAD /app/large HTTP/1.1\r\nHost: x\r\n\r\n")
        .response_to("HEAD");
    assert_eq!(head.header("Content-Length").as_deref(), Some("5000000"));
}

#[test]
fn what_belongs_to_a_connection_or_to_this_server_is_not_passed_on() {
    let mirror = mirror();
    let server = Server::new()
        .args(["--no-cgi-authorization", "--route"])
        .arg(format!("/=http:{}", mirror.address()))
        .start();
    let fields = [
        ("Connection", "close, X-Named"),
        ("X-Named", "1"),
        ("Keep-Alive", "1"),
        ("TE", "trailers"),
        ("Trailer", "x"),
        ("Upgrade", "websocket"),
        ("Proxy-Connection", "1"),
        ("Proxy-Authorization", "1"),
        ("Proxy", "http://evil"),
        ("X_Real_Thing", "1"),
        ("Authorization", "Basic x"),
        ("X-Kept", "a"),
        ("X-Kept", "b"),
        ("Cookie", "c=d"),
        ("Host", "www.example.org:81"),
    ];
    let head = server.request("GET", "/", &fields, b"").text();
    for gone in [
        "connection:",
        "x-named",
        "keep-alive",
        "\nte:",
        "trailer",
        "upgrade",
        "proxy",
        "x_real",
        "authorization",
    ] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    for kept in [
        "x-kept: a\r\n",
        "x-kept: b\r\n",
        "cookie: c=d\r\n",
        "host: www.example.org:81\r\n",
    ] {
        assert!(head.contains(kept), "{kept}: {head}");
    }
}

#[test]
fn the_application_learns_who_asks() {
    let mirror = mirror();
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", mirror.address())])
        .args([
            "--route",
            &format!("/other/=http:{},host=inner:8080", mirror.address()),
        ])
        .start();
    let head = server.request("GET", "/", &[("Host", "site")], b"").text();
    for line in [
        "forwarded: for=127.0.0.1;proto=http;host=\"site\"\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-host: site\r\n",
        "x-forwarded-proto: http\r\n",
        "via: 1.1 serve-here\r\n",
        "host: site\r\n",
    ] {
        assert!(head.contains(line), "{line}{head}");
    }
    // On this machine it may be a proxy that says so.
    let said = [
        ("X-Forwarded-For", "192.0.2.7"),
        ("X-Forwarded-Proto", "https"),
        ("Host", "site"),
        ("Via", "1.0 fred"),
    ];
    let head = server.request("GET", "/other/", &said, b"").text();
    for line in [
        "x-forwarded-for: 192.0.2.7, 127.0.0.1\r\n",
        "x-forwarded-proto: https\r\n",
        "x-forwarded-host: site\r\n",
        "via: 1.0 fred, 1.1 serve-here\r\n",
        "host: inner:8080\r\n",
    ] {
        assert!(head.contains(line), "{line}{head}");
    }
}

#[test]
fn the_path_arrives_as_it_was_sent_unless_it_could_mean_another() {
    let mirror = mirror();
    let address = mirror.address();
    let server = Server::new()
        .args(["--route", &format!("/=http:{address}")])
        .args(["--route", &format!("/api/=http:{address},path=/v1/")])
        .args(["--route", &format!("/root/=http:{address},path=/")])
        .start();
    let mut rows = Rows::new();
    for (sent, seen) in [
        ("/", "/"),
        ("/a%20b/c%2Fd/?x=%zz&y", "/a%20b/c%2fd/?x=%zz&y"),
        ("/~a/(b);c?", "/~a/(b);c?"),
        ("/a/../b", "/b"),
        ("/a/%2e%2e/b/./c", "/b/c"),
        ("//a//b", "/a/b"),
        ("/{x}?{y}|z", "/%7bx%7d?%7by%7d%7cz"),
        ("/api/", "/v1/"),
        ("/api/x/y?z", "/v1/x/y?z"),
        ("/api/a%20b", "/v1/a%20b"),
        ("/root/", "/"),
        ("/root/x/", "/x/"),
    ] {
        let head = server.get(sent).text();
        let right = head.starts_with(&format!("get {seen} http/1.1\r\n"));
        rows.check(sent, right, || head);
    }
    rows.done();
}

#[test]
fn connections_are_used_again_except_for_what_can_not_be_run_twice() {
    let mirror = mirror();
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", mirror.address())])
        .start();
    let mut client = server.connect();
    for _ in 0..30 {
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    // With tiny-http requests on one connection come to several threads.
    let most = if engine().as_deref() == Some("tiny-http") {
        29
    } else {
        1
    };
    assert!(
        mirror.accepted() <= most,
        "{} connections",
        mirror.accepted()
    );
    let before = mirror.accepted();
    for _ in 0..5 {
        client.send("POST / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(mirror.accepted(), before + 5);
}

#[test]
fn a_worker_that_waits_on_a_kept_connection_is_not_kept_from_others() {
    // One process: it accepts the next connection when this one is closed.
    let turn = Mutex::new(());
    let fake = Fake::new(move |mut stream, _| {
        let _alone = turn.lock();
        while read_head(&mut stream).is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    });
    let server = Server::new()
        .args(["--route-timeout=5", "--route"])
        .arg(format!("/=http:{}", fake.address()))
        .start();
    let start = Barrier::new(6);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..5 {
                    assert_eq!(server.get("/").text(), "ok");
                }
            });
        }
    });
}

#[test]
fn a_kept_connection_that_was_closed_costs_no_request() {
    let fake = Fake::new(|mut stream, _| {
        if read_head(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    for method in ["GET", "POST", "GET"].repeat(10) {
        let answer = server.request(method, "/", &[], b"x");
        assert_eq!((answer.status, &answer.text()[..]), (200, "ok"));
    }
}

#[test]
fn a_connection_whose_content_was_not_read_serves_no_other_request() {
    // The first gets an answer and is not read; it stays open.
    let fake = Fake::new(|mut stream, number| {
        let _ = stream.read(&mut [0; 2000]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if number == 0 {
            wait_for_end(&stream);
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n");
    client.send_beside(vec![b'x'; 60_000_000]);
    assert_eq!(client.response().text(), "ok");
    assert_eq!(server.get("/").text(), "ok");
    assert_eq!(fake.accepted(), 2);
}

#[test]
fn a_request_that_goes_in_circles_ends() {
    // What is behind it leads back to it.
    let target = Arc::new(OnceLock::new());
    let back = Arc::clone(&target);
    let fake = Fake::new(move |mut stream, _| {
        let Some(head) = read_head(&mut stream) else {
            return;
        };
        let (_, fields) = head.split_once("\r\n").expect("it has lines");
        let head = format!("GET /x HTTP/1.1\r\nconnection: close\r\n{fields}");
        let mut again = TcpStream::connect(back.wait()).expect("the server listens");
        let _ = again.write_all(head.as_bytes());
        let _ = std::io::copy(&mut again, &mut stream);
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    target.set(server.address()).expect("it is set once");
    let answer = server.get("/x");
    assert_eq!(answer.status, 508, "{answer}");
    assert_eq!(fake.accepted(), 16);
    server.wait_for_log("http 'x': it has come through 16 servers");
}

#[test]
fn chunked_content_goes_on_chunked_and_both_directions_stream() {
    let fake = Fake::new(|mut stream, _| {
        let Some(head) = read_head(&mut stream) else {
            return;
        };
        let chunked = head.contains("\r\ntransfer-encoding: chunked\r\n");
        assert!(chunked && !head.contains("content-length"), "{head}");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n");
        let mut seen = Vec::new();
        let mut some = [0; 100];
        while !seen.ends_with(b"0\r\n\r\n") {
            let Ok(count @ 1..) = stream.read(&mut some) else {
                return;
            };
            seen.extend_from_slice(&some[..count]);
            let _ = stream.write_all(b".");
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(client.head().expect("an answer").status, 200);
    let mut seen = client.some();
    while !seen.contains(&b'.') {
        seen.extend(client.some());
    }
    client.send("0\r\n\r\n");
    let (_, complete) = client.chunked();
    assert!(complete);
}

#[test]
fn interim_answers_are_relayed_c90() {
    let fake = says(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n\
         HTTP/1.1 200 Fine\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nok",
    );
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let answer = server.get("/");
    assert_eq!((answer.status, &answer.reason[..]), (200, "Fine"));
    assert_eq!(answer.header("X-Hop"), None);
    assert_eq!(answer.interim.len(), 1);
    assert_eq!(answer.interim[0].status, 103);
}

#[test]
fn an_application_that_breaks_the_rules_is_a_bad_gateway() {
    let rows: [(&str, &[u8], bool, u16, &str); 9] = [
        ("closes", b"", false, 502, "closed"),
        (
            "half a header",
            b"HTTP/1.1 200 OK\r\nA: b",
            false,
            502,
            "closed",
        ),
        (
            "no HTTP",
            b"220 smtp.example.org\r\n\r\n",
            false,
            502,
            "protocol",
        ),
        (
            "bad header",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            false,
            502,
            "protocol",
        ),
        (
            "two lengths",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            false,
            502,
            "protocol",
        ),
        (
            "switches unasked",
            b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            true,
            502,
            "protocol",
        ),
        ("silence", b"", true, 504, "timeout"),
        (
            "half a header, silence",
            b"HTTP/1.1 200 OK\r\nA: b",
            true,
            504,
            "timeout",
        ),
        (
            "100, silence",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            true,
            504,
            "timeout",
        ),
    ];
    let mut table = Rows::new();
    for (what, answer, hangs, status, reason) in rows {
        let fake = Fake::new(move |mut stream, _| {
            let _ = read_head(&mut stream);
            let _ = stream.write_all(answer);
            if hangs {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let server = Server::new()
            .args(["--route-timeout", "0.3", "--route"])
            .arg(format!("/app=http:{}", fake.address()))
            .start();
        let fds = server.fds_at_rest();
        for method in ["GET", "POST"] {
            let answer = server.request(method, "/app", &[], b"");
            let log = server.wait_for_log(&format!("({reason})\n"));
            let line = format!("http 'app': {}: ", fake.address());
            let named = log.lines().any(|log| log.starts_with(&line));
            table.check(what, answer.status == status && named, || {
                format!("{method}: {}\n{log}", answer.status)
            });
        }
        server.settles_to(fds);
    }
    table.done();
}

#[test]
fn an_answer_over_http_that_breaks_off_is_seen_to() {
    let rows: [(&str, &[u8], bool); 4] = [
        (
            "short",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel",
            false,
        ),
        (
            "no last chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
            false,
        ),
        (
            "bad chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nzz\r\n",
            false,
        ),
        (
            "silence",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel",
            true,
        ),
    ];
    let mut table = Rows::new();
    for (what, answer, hangs) in rows {
        let fake = Fake::new(move |mut stream, _| {
            let _ = read_head(&mut stream);
            let _ = stream.write_all(answer);
            if hangs {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let server = Server::new()
            .args(["--route-idle", "0.3", "--route"])
            .arg(format!("/app=http:{}", fake.address()))
            .start();
        let fds = server.fds_at_rest();
        let answer = server.get("/app");
        let visible = !answer.complete && answer.text() == "hel";
        table.check(what, answer.status == 200 && visible, || answer.to_string());
        server.wait_for_log("the answer is cut off");
        server.settles_to(fds);
    }
    table.done();
}

#[test]
fn a_client_that_leaves_closes_the_connection_to_the_application() {
    let (seen, left) = mpsc::channel();
    let seen = Mutex::new(seen);
    let fake = Fake::new(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            let end = stream.read(&mut [0]);
            let _ = seen
                .lock()
                .expect("nobody panics")
                .send(end.is_ok_and(|count| count == 0));
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(eventually(|| fake.accepted() == 1));
    client.reset();
    assert_eq!(left.recv_timeout(DEADLINE), Ok(true));
}

#[test]
fn requests_go_on_while_an_address_is_gone() {
    let (gone, there) = (
        nobody(),
        says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    );
    let server = Server::new()
        .args(["--route", &format!("/=http:{gone},{}", there.address())])
        .start();
    for method in ["GET", "POST", "PUT"].repeat(5) {
        assert_eq!(server.request(method, "/", &[], b"").text(), "ok");
    }
    server.wait_for_log(&format!("http '{gone}': no connection: "));
}

#[test]
fn a_websocket_works_through_the_server() {
    if tiny_http_cannot("let a connection leave HTTP") || !needs("python3") {
        return;
    }
    let python = |script: &str| {
        Command::new("/usr/bin/python3")
            .args(["-c", script])
            .output()
    };
    if !python("import websockets").is_ok_and(|output| output.status.success()) {
        return skip("needs the Python module websockets");
    }
    let script = fixture("websocket.py");
    let peer = Program::start("/usr/bin/python3", [&script, "{socket}"]);
    let server = Server::new()
        .args(["--route", &format!("/ws/=http:{}", peer.address())])
        .start();
    let fds = server.fds_at_rest();
    let url = format!("ws://{}/ws/", server.host());
    let output = Command::new("/usr/bin/python3")
        .args([&fixture("websocket_client.py"), &url])
        .output()
        .expect("python is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "all came back\n", "{errors}");
    server.settles_to(fds);
}

#[test]
fn a_connection_that_has_left_http_ends_with_either_side() {
    if tiny_http_cannot("let a connection leave HTTP") {
        return;
    }
    let fake = Fake::new(|mut stream, _| {
        let Some(head) = read_head(&mut stream) else {
            return;
        };
        assert!(
            head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: echo\r\n")
        );
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nhi ";
        let _ = stream.write_all(answer);
        let mut some = [0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut some) {
            let _ = stream.write_all(&some[..count]);
            if some[..count].contains(&b'!') {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
        // The client has closed its side and hears this all the same.
        let _ = stream.write_all(b"bye");
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let fds = server.fds_at_rest();
    for half_closes in [true, false] {
        let mut client = server.connect();
        // What follows the head at once is for the application, too.
        client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nabc");
        let head = client.head().expect("an answer");
        assert_eq!(head.status, 101);
        let fields = |name: &str| head.headers.iter().any(|(field, _)| field == name);
        assert!(fields("Upgrade") && fields("Connection") && !fields("Content-Length"));
        if half_closes {
            client.half_close();
            assert_eq!(client.rest(), b"hi abcbye");
        } else {
            client.send("de!");
            assert_eq!(client.rest(), b"hi abcde!");
        }
    }
    // With content, as Docker's clients do it.
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n");
    client.send("Content-Length: 2\r\n\r\n{}");
    assert_eq!(client.head().expect("an answer").status, 101);
    client.send("abc!");
    assert_eq!(client.rest(), b"hi {}abc!");
    // One that vanishes.
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.head().expect("an answer").status, 101);
    client.reset();
    server.settles_to(fds);
}

#[test]
fn https_is_trusted_by_its_certificate() {
    // Such as `openssl req -x509` makes them, and such as an authority does.
    for is_authority in ["TRUE", "FALSE"] {
        https_is_trusted(is_authority);
    }
}

fn https_is_trusted(is_authority: &str) {
    if !needs("openssl") || !needs("python3") {
        return;
    }
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=inner.test",
            "-addext",
            "subjectAltName=DNS:inner.test",
        ])
        .args([
            "-addext",
            &format!("basicConstraints=critical,CA:{is_authority}"),
        ])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl is there");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let mut peer = Command::new("/usr/bin/python3")
        .args([&fixture("https.py"), &certificate, &key])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python is there");
    let mut port = String::new();
    let stdout = peer.stdout.take().expect("it is a pipe");
    BufReader::new(stdout)
        .read_line(&mut port)
        .expect("it says its port");
    let route = format!("/=https:127.0.0.1:{},host=inner.test", port.trim());
    let server = Server::new()
        .env("SSL_CERT_FILE", &certificate)
        .args(["--route", &route])
        .start();
    let answer = server.get("/x");
    let other = Server::new()
        .env("SSL_CERT_FILE", &certificate)
        .args(["--route", &route.replace("inner.test", "other.test")])
        .start();
    let refused = other.get("/x");
    let _ = peer.kill();
    let _ = peer.wait();
    assert_eq!((answer.status, &answer.text()[..]), (200, "/x inner.test"));
    assert_eq!(refused.status, 502);
    other.wait_for_log("(tls)\n");
}

#[test]
fn the_path_behind_a_pattern_stays_as_the_client_sent_it() {
    let fake = mirror();
    let server = Server::new()
        .args(["--route", &format!("/m/=http:{},path=/", fake.address())])
        .args([
            "--route",
            &format!("/n/=http:{},path=/deep/", fake.address()),
        ])
        .start();
    for (target, expected) in [
        ("/m/x;jsessionid=A1", "/x;jsessionid=A1"),
        ("/m/a%20b/%C3%A4/@:!$&'()*+,=", "/a%20b/%C3%A4/@:!$&'()*+,="),
        ("/n/a%2Fb?c=%20", "/deep/a%2Fb?c=%20"),
        ("/n/", "/deep/"),
        ("/m//x/../y;z", "/y%3Bz"),
    ] {
        let text = server.get(target).text();
        assert!(
            text.starts_with(&format!("get {expected} http/1.1").to_lowercase()),
            "{target}: {text}"
        );
    }
}

#[test]
fn where_the_application_leads_is_found_here() {
    for (location, option, expected) in [
        ("http://{address}/login", "", "/login"),
        ("http://{address}", "", "/"),
        ("http://{address}.example/", "", "http://{address}.example/"),
        ("https://elsewhere/", "", "https://elsewhere/"),
        ("//elsewhere/", ",path=/", "//elsewhere/"),
        ("/login", "", "/login"),
        ("/login?a", ",path=/", "/m/login?a"),
        ("/m/login", ",path=/", "/m/login"),
        ("http://{address}/login", ",path=/", "/m/login"),
        ("/in/login", ",path=/in/", "/m/login"),
        ("/into/login", ",path=/in/", "/into/login"),
        ("http://inner/a", ",path=/,host=inner", "/m/a"),
        ("next", ",path=/", "next"),
    ] {
        let own = OnceLock::<String>::new();
        let own = Arc::new(own);
        let known = Arc::clone(&own);
        let fake = Fake::new(move |mut stream, _| {
            let _ = read_head(&mut stream);
            let address = known.get().expect("set before the request");
            let location = location.replace("{address}", address);
            let _ = stream.write_all(
                format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
                    .as_bytes(),
            );
        });
        own.set(fake.address()).expect("once");
        let server = Server::new()
            .args(["--route", &format!("/m/=http:{}{option}", fake.address())])
            .start();
        let found = server.get("/m/x").header("Location");
        let expected = expected.replace("{address}", &fake.address());
        assert_eq!(found.as_deref(), Some(&expected[..]), "{location} {option}");
    }
}

#[test]
fn the_application_learns_below_which_path_it_is_and_not_from_a_client() {
    let fake = mirror();
    let server = Server::new()
        .args(["--route", &format!("/m/=http:{},path=/", fake.address())])
        .args(["--trust-proxy", "192.0.2.1"])
        .start();
    let afar = [
        ("X-Forwarded-For", "192.0.2.9"),
        ("X-Forwarded-Prefix", "/outer"),
    ];
    let text = server.request("GET", "/m/x", &afar, b"").text();
    // From this machine it is believed.
    assert!(text.contains("x-forwarded-prefix: /outer/m"), "{text}");
    let text = server.get("/m/x").text();
    assert!(text.contains("x-forwarded-prefix: /m"), "{text}");
}

#[test]
fn nobody_goes_on_in_http_past_what_is_decided_here() {
    let fake = mirror();
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    for (protocol, is_passed) in [
        ("websocket", true),
        ("tcp", true),
        ("h2c", false),
        ("H2C", false),
        ("websocket, h2c", false),
        ("HTTP/2.0", false),
        ("TLS/1.0", false),
    ] {
        if engine().as_deref() == Some("tiny-http") && is_passed {
            continue;
        }
        let fields = [
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", protocol),
        ];
        let text = server.request("GET", "/", &fields, b"").text();
        assert_eq!(
            text.contains("\r\nupgrade: "),
            is_passed,
            "{protocol}: {text}"
        );
    }
}

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// So many clients at once ask so often each.
fn ask_often(server: &Server, clients: usize, requests: usize) {
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = server.connect();
                for _ in 0..requests {
                    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
                    assert_eq!(client.response().text(), "hello");
                }
            });
        }
    });
}

#[test]
fn connections_are_kept_under_load_c158() {
    let fake =
        Fake::new(
            |mut stream, _| {
                while read_head(&mut stream).is_some() && stream.write_all(HELLO).is_ok() {}
            },
        );
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    ask_often(&server, 8, 100);
    assert!(fake.accepted() < 400, "{} connections", fake.accepted());
}

#[test]
fn kept_connections_leave_an_application_its_only_process_c160() {
    let process = Mutex::new(());
    let fake = Fake::new(move |mut stream, _| {
        let _process = process.lock().expect("nobody panics");
        while read_head(&mut stream).is_some() && stream.write_all(HELLO).is_ok() {}
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .args(["--route-timeout", "5"])
        .start();
    ask_often(&server, 4, 20);
}

#[test]
fn content_after_the_header_of_a_head_answers_nobody_else() {
    let fake = Fake::new(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
            // When the next request is on its way, if it is on this connection.
            if head.starts_with("head") && !matches!(stream.read(&mut [0]), Ok(1)) {
                return;
            }
            let _ = stream.write_all(b"text");
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let mut client = server.connect();
    for _ in 0..10 {
        client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = client.response_to("HEAD");
        assert_eq!(head.header("Content-Length").as_deref(), Some("4"));
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status, &answer.text()[..]), (200, "text"));
    }
}
