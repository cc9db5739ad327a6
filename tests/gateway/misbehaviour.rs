//! What an application can do wrong, and what the client and the log see of
//! it: C152 to C162, C176, C178.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::peers::{Fake, end, nobody, read_record, read_request, record, stderr, stdout};
use crate::support::{Rows, Server};

/// What a fake does with a request that it has read.
enum Does {
    /// Says this, and closes the connection.
    Says(Vec<u8>),
    /// Says this, and nothing more for ever.
    SaysAndHangs(Vec<u8>),
}
use Does::{Says, SaysAndHangs};

/// Waits until the server closes the connection.
fn hang(stream: &mut TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

const HELLO: &[u8] = b"Content-Type: a/b\n\nhello";

type Row = (&'static str, Does, u16, &'static str);

/// Answers that are none.
fn broken() -> Vec<Row> {
    let ok = || stdout(HELLO);
    let many = b"X: y\n".repeat(2000);
    vec![
        ("closes at once", Says(vec![]), 502, "closed"),
        ("half a record", Says(vec![1, 6, 0]), 502, "closed"),
        (
            "half a header",
            Says(stdout(b"Content-Type: a")),
            502,
            "closed",
        ),
        (
            "half a header, end",
            Says([stdout(b"Content-Type: a"), end(0, 0)].concat()),
            502,
            "half-header",
        ),
        ("no output", Says(end(0, 0)), 502, "closed"),
        (
            "errors only",
            Says([stderr(b"oh\n"), end(1, 0)].concat()),
            502,
            "no-output",
        ),
        (
            "no header",
            Says([stdout(b"hello"), end(0, 0)].concat()),
            502,
            "no-header",
        ),
        (
            "bad line",
            Says([stdout(b"Content-Type: a/b\nx\n\n"), end(0, 0)].concat()),
            502,
            "bad-line",
        ),
        (
            "too many fields",
            Says([stdout(&many), stdout(b"\n"), end(0, 0)].concat()),
            502,
            "too-many-fields",
        ),
        (
            "endless line",
            Says(stdout(&vec![b'x'; 200_000])),
            502,
            "no-header",
        ),
        (
            "version 9",
            Says(vec![9, 6, 0, 1, 0, 0, 0, 0]),
            502,
            "protocol",
        ),
        (
            "speaks HTTP",
            Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            502,
            "protocol",
        ),
        (
            "another request's",
            Says(record(6, 7, HELLO)),
            502,
            "protocol",
        ),
        ("echoes", Says(record(5, 1, b"x")), 502, "protocol"),
        (
            "after the end",
            Says([end(0, 0), ok()].concat()),
            502,
            "closed",
        ),
    ]
}

/// Requests that are not taken, or not answered.
fn refused() -> Vec<Row> {
    vec![
        ("cannot multiplex", Says(end(0, 1)), 502, "cannot-multiplex"),
        ("overloaded", Says(end(0, 2)), 503, "overloaded"),
        ("unknown role", Says(end(0, 3)), 502, "unknown-role"),
        ("unknown status", Says(end(0, 99)), 502, "protocol"),
        ("silence", SaysAndHangs(vec![]), 504, "timeout"),
        (
            "half a header, silence",
            SaysAndHangs(stdout(b"Content-Type: a")),
            504,
            "timeout",
        ),
        (
            "half a record, silence",
            SaysAndHangs(vec![1, 6, 0]),
            504,
            "timeout",
        ),
        (
            "errors, silence",
            SaysAndHangs(stderr(b"hm\n")),
            504,
            "timeout",
        ),
    ]
}

#[test]
fn a_responder_that_breaks_the_rules_is_a_bad_gateway_c152_to_c155() {
    let mut table = Rows::new();
    for (what, does, status, reason) in broken().into_iter().chain(refused()) {
        let fake = Fake::new(move |mut stream, _| {
            if read_request(&mut stream).is_none() {
                return;
            }
            match &does {
                Says(bytes) => drop(stream.write_all(bytes)),
                SaysAndHangs(bytes) => {
                    let _ = stream.write_all(bytes);
                    hang(&mut stream);
                }
            }
        });
        let limit = if reason == "timeout" { "0.3" } else { "30" };
        let server = Server::new()
            .args(["--route-timeout", limit, "--route"])
            .arg(format!("/app=fastcgi:{}", fake.address()))
            .start();
        let fds = server.fds_at_rest();
        for method in ["GET", "POST"] {
            let answer = server.request(method, "/app", &[], b"");
            let line = format!("fastcgi 'app': {}: ", fake.address());
            let said = server.wait_for_log(&format!("({reason})\n"));
            let named = said
                .lines()
                .any(|log| log.starts_with(&line) && log.ends_with(&format!("({reason})")));
            table.check(what, answer.status == status && named, || {
                format!("{method}: {}\n{said}", answer.status)
            });
            let retry = answer.header("Retry-After").is_some();
            table.check(what, retry == (status == 503), || "Retry-After".into());
        }
        server.settles_to(fds);
    }
    table.done();
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_c155() {
    let cut = |text: &str| stdout(text.as_bytes());
    let rows = [
        ("no end", Says(cut("Content-Type: a/b\n\nhel")), "hel"),
        (
            "short",
            Says(
                [
                    cut("Content-Type: a/b\nContent-Length: 9\n\nhel"),
                    end(0, 0),
                ]
                .concat(),
            ),
            "hel",
        ),
        (
            "garbage",
            Says([cut("Content-Type: a/b\n\nhel"), vec![7; 8]].concat()),
            "hel",
        ),
        (
            "silence",
            SaysAndHangs(cut("Content-Type: a/b\n\nhel")),
            "hel",
        ),
        (
            "rejects late",
            Says([cut("Content-Type: a/b\n\nhel"), end(0, 2)].concat()),
            "hel",
        ),
        (
            "bad chunks",
            Says(
                [
                    cut("Content-Type: a/b\nTransfer-Encoding: chunked\n\n3\nhelx"),
                    end(0, 0),
                ]
                .concat(),
            ),
            "hel",
        ),
    ];
    let mut table = Rows::new();
    for (what, does, part) in rows {
        let fake = Fake::new(move |mut stream, _| {
            let _ = read_request(&mut stream);
            match &does {
                Says(bytes) => drop(stream.write_all(bytes)),
                SaysAndHangs(bytes) => {
                    let _ = stream.write_all(bytes);
                    hang(&mut stream);
                }
            }
        });
        let server = Server::new()
            .args(["--route-idle", "0.3", "--route"])
            .arg(format!("/app=fastcgi:{},keep=0", fake.address()))
            .start();
        let fds = server.fds_at_rest();
        let answer = server.get("/app");
        let visible = !answer.complete && answer.text() == part;
        table.check(what, answer.status == 200 && visible, || answer.to_string());
        server.wait_for_log(&format!("fastcgi 'app': {}: ", fake.address()));
        server.settles_to(fds);
    }
    table.done();
}

#[test]
fn an_answer_that_goes_on_too_long_is_cut_to_its_length_c110() {
    let fake = Fake::responder("Content-Type: a/b\nContent-Length: 3\n\nhello");
    let server = Server::new()
        .args(["--route", &format!("/app=fastcgi:{}", fake.address())])
        .start();
    for _ in 0..3 {
        let answer = server.get("/app");
        assert_eq!((&answer.text()[..], answer.complete), ("hel", true));
    }
    server.wait_for_log("more output than its Content-Length");
    // It has ended properly, so the connection could be kept.
    assert_eq!(fake.accepted(), 1);
}

#[test]
fn an_application_that_reads_no_content_can_answer_c68() {
    let fake = Fake::new(|mut stream, _| {
        // BEGIN_REQUEST and the parameters only.
        while read_record(&mut stream)
            .is_some_and(|(kind, content)| kind != 4 || !content.is_empty())
        {}
        let _ = stream.write_all(&[stdout(HELLO), end(0, 0)].concat());
        hang(&mut stream);
    });
    let server = Server::new()
        .args(["--route", &format!("/app=fastcgi:{}", fake.address())])
        .start();
    let fds = server.fds_at_rest();
    let answer = server.request("POST", "/app", &[], &vec![b'x'; 8_000_000]);
    assert_eq!((answer.status, &answer.text()[..]), (200, "hello"));
    server.settles_to(fds);
}

#[test]
fn a_flood_on_standard_error_blocks_nothing_c153() {
    let fake = Fake::new(|mut stream, _| {
        let _ = read_request(&mut stream);
        let flood = stderr(&b"a line of an error\n".repeat(50_000));
        let _ = stream.write_all(&[flood, stdout(HELLO), end(0, 0)].concat());
        hang(&mut stream);
    });
    let server = Server::new()
        .args(["--route", &format!("/app=fastcgi:{}", fake.address())])
        .start();
    assert_eq!(server.get("/app").text(), "hello");
}

#[test]
fn a_client_that_breaks_off_its_content_is_no_fault_of_the_application_c71() {
    let fake = Fake::new(|mut stream, _| {
        let request = read_request(&mut stream);
        assert!(request.is_none(), "the content looks complete");
    });
    let server = Server::new()
        .args(["--route", &format!("/app=fastcgi:{}", fake.address())])
        .start();
    let fds = server.fds_at_rest();
    let mut client = server.connect();
    client.send("POST /app HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\nabc");
    client.half_close();
    assert_eq!(client.response().status, 400);
    drop(client);
    server.wait_for_log("(content)\n");
    server.settles_to(fds);
}

#[test]
fn an_application_that_is_not_there_is_named_c162() {
    let tcp = nobody();
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let unix = format!("unix:{}", folder.path().join("socket").display());
    let mut table = Rows::new();
    for protocol in ["fastcgi", "scgi", "uwsgi"] {
        for address in [&tcp, &unix] {
            let server = Server::new()
                .args(["--route", &format!("/app={protocol}:{address}")])
                .start();
            for _ in 0..2 {
                let answer = server.get("/app");
                let log = server.wait_for_log("(connect)\n");
                let line = format!("{protocol} 'app': {address}: no connection: ");
                let named = log.lines().any(|log| log.starts_with(&line));
                table.check(&line, answer.status == 502 && named, || log);
            }
        }
    }
    table.done();
}

#[test]
fn scgi_and_uwsgi_answers_that_break_off_are_seen_to_c176_c180() {
    let rows: [(&str, &[u8], u16, &str); 7] = [
        ("nothing", b"", 502, "(closed)"),
        (
            "half a header",
            b"Content-Type: a/b\n",
            502,
            "(half-header)",
        ),
        ("no header", b"hello", 502, "(no-header)"),
        (
            "a status line",
            b"HTTP/1.1 404 Gone fishing\r\nContent-Type: a/b\r\n\r\nx",
            404,
            "",
        ),
        (
            "a bad status",
            b"HTTP/1.1 999 What\r\n\r\n",
            502,
            "(bad-status)",
        ),
        (
            "too short",
            b"Content-Type: a/b\nContent-Length: 9\n\nhello",
            200,
            "less output",
        ),
        (
            "a reset",
            b"Content-Type: a/b\n\nhello",
            200,
            "the connection broke",
        ),
    ];
    let mut table = Rows::new();
    for protocol in ["scgi", "uwsgi"] {
        for (what, says, status, logged) in rows {
            let fake = Fake::new(move |mut stream, _| {
                let mut some = vec![0; 20_000];
                let _ = stream.read(&mut some);
                let _ = stream.write_all(says);
                if what == "a reset" {
                    // What came before it can still be read.
                    let linger = Some(std::time::Duration::ZERO);
                    let set = rustix::net::sockopt::set_socket_linger(&stream, linger);
                    set.expect("TCP has the option");
                }
            });
            let server = Server::new()
                .args(["--route", &format!("/app={protocol}:{}", fake.address())])
                .start();
            let answer = server.get("/app");
            let log = server.wait_for_log(logged);
            let cut = status == 200;
            let right = answer.status == status && answer.complete != cut;
            table.check(&format!("{protocol}: {what}"), right, || {
                format!("{answer}\n{log}")
            });
        }
    }
    table.done();
}
