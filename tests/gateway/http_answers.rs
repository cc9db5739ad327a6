//! What an application that speaks HTTP can do wrong, or only unusually, and
//! what the client and the log see of it (RFC 9112).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::peers::{Fake, settles_to};
use super::proxy::read_head;
use crate::support::{Response, Rows, Server, eventually};

/// How a fake goes on after its answer.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Then {
    Closes,
    Resets,
    /// Says nothing more for ever.
    Hangs,
    /// Waits for the next request and answers it, too.
    GoesOn,
}
use Then::{Closes, GoesOn, Hangs, Resets};

/// What the client sees.
#[derive(Clone)]
pub(super) enum Sees {
    /// Status and whole body.
    Whole(u16, &'static str),
    /// 200, and a body that visibly ends too early.
    Cut,
    /// This status, and this word in the log.
    Fault(u16, &'static str),
}
use Sees::{Cut, Fault, Whole};

pub(super) fn reset(stream: &TcpStream) {
    // What came before it can still be read.
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))
        .expect("TCP has the option");
}

fn fake(answer: Vec<u8>, then: Then, bytewise: bool) -> Fake {
    Fake::new(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            let written = if bytewise {
                stream.set_nodelay(true).expect("TCP has the option");
                answer
                    .iter()
                    .try_for_each(|&byte| stream.write_all(&[byte]))
            } else {
                stream.write_all(&answer)
            };
            match then {
                GoesOn if written.is_ok() => {}
                GoesOn | Closes => return,
                Resets => return reset(&stream),
                Hangs => {
                    let _ = stream.read_to_end(&mut Vec::new());
                    return;
                }
            }
        }
    })
}

type Row = (&'static str, Vec<u8>, Then, Sees);

/// A status line with these fields, an empty line, and a body.
fn ok(fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}").into_bytes()
}

fn whole() -> Vec<Row> {
    let hello = Whole(200, "hello");
    let mut rows = vec![(
        "length",
        ok("Content-Length: 5\r\n", "hello"),
        GoesOn,
        hello,
    )];
    let mut add = |what, answer, then, sees| rows.push((what, answer, then, sees));
    let hello = || Whole(200, "hello");
    add("to the end", ok("", "hello"), Closes, hello());
    add(
        "HTTP/1.0",
        b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec(),
        Closes,
        hello(),
    );
    add(
        "HTTP/1.0, kept",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        GoesOn,
        hello(),
    );
    add(
        "close, but stays open",
        ok("Connection: close\r\nContent-Length: 5\r\n", "hello"),
        Hangs,
        hello(),
    );
    add(
        "keep-alive, but closes",
        ok("Connection: keep-alive\r\nContent-Length: 5\r\n", "hello"),
        Closes,
        hello(),
    );
    add(
        "the same length twice",
        ok("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        GoesOn,
        hello(),
    );
    add(
        "chunks, extensions, trailers",
        ok(
            "Transfer-Encoding: chunked\r\nTrailer: X-End\r\n",
            "2;a=b\r\nhe\r\n003 \r\nllo\r\n0\r\nX-End: 1\r\n\r\n",
        ),
        GoesOn,
        hello(),
    );
    add(
        "204",
        b"HTTP/1.1 204 Gone\r\n\r\n".to_vec(),
        GoesOn,
        Whole(204, ""),
    );
    add(
        "304",
        b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n".to_vec(),
        GoesOn,
        Whole(304, ""),
    );
    add(
        "100, 103, 100",
        [
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: <a>\r\n\r\n".to_vec(),
            b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(),
            ok("Content-Length: 5\r\n", "hello"),
        ]
        .concat(),
        GoesOn,
        hello(),
    );
    add(
        "426",
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Content-Length: 5\r\n\r\nhello"
            .to_vec(),
        GoesOn,
        Whole(426, "hello"),
    );
    rows
}

/// More than the answer was to be: nobody may take it for the next one.
fn too_much() -> Vec<Row> {
    let more = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let after = |answer: &str| [answer.as_bytes(), more.as_bytes()].concat();
    vec![
        (
            "a second answer",
            after("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
            GoesOn,
            Whole(200, "hello"),
        ),
        (
            "more than its length",
            ok("Content-Length: 5\r\n", "hello, and more"),
            GoesOn,
            Whole(200, "hello"),
        ),
        (
            "a second answer after chunks",
            after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            GoesOn,
            Whole(200, "hello"),
        ),
        (
            "204 with a body",
            after("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"),
            GoesOn,
            Whole(204, ""),
        ),
        (
            "304 with a body",
            after("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello"),
            GoesOn,
            Whole(304, ""),
        ),
    ]
}

/// What is no answer, or could be taken for another one.
fn broken() -> Vec<Row> {
    let protocol = || Fault(502, "(protocol)");
    let coded = |fields: &str| ok(fields, "5\r\nhello\r\n0\r\n\r\n");
    let long = format!("X: {}\r\n", "y".repeat(1_000_000));
    let many = "X: y\r\n".repeat(2000);
    let mut rows = vec![
        (
            "HTTP/0.9",
            b"<html>hello</html>".to_vec(),
            Closes,
            protocol(),
        ),
        (
            "HTTP/2",
            b"HTTP/2.0 200 OK\r\n\r\n".to_vec(),
            Closes,
            protocol(),
        ),
        ("nothing", vec![], Resets, Fault(502, "(closed)")),
        (
            "half a line",
            b"HTTP/1.1 200".to_vec(),
            Resets,
            Fault(502, "(closed)"),
        ),
        (
            "half a field",
            b"HTTP/1.1 200 OK\r\nA: ".to_vec(),
            Resets,
            Fault(502, "(closed)"),
        ),
        ("too long a field", ok(&long, ""), Hangs, protocol()),
        ("too many fields", ok(&many, ""), Hangs, protocol()),
    ];
    for (what, status) in [
        ("status 99", "99 X"),
        ("status 1000", "1000 X"),
        ("status 000", "000 X"),
        ("status 600", "600 X"),
        ("status 2x0", "2x0 X"),
        ("status -20", "-20 X"),
        ("no status", ""),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nhello");
        rows.push((what, answer.into_bytes(), Hangs, protocol()));
    }
    for (what, fields) in [
        ("no colon", "what\r\n"),
        ("a folded line", "A: b\r\n c: d\r\n"),
        ("a space before the colon", "Content-Length : 5\r\n"),
        ("an empty name", ": x\r\n"),
        ("a NUL", "A: b\0c\r\n"),
        ("a carriage return", "A: b\rContent-Length: 3\r\n"),
        (
            "lengths that differ",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
        ),
        ("a list of lengths", "Content-Length: 5, 6\r\n"),
        ("length -1", "Content-Length: -1\r\n"),
        ("length +5", "Content-Length: +5\r\n"),
        ("length 5x", "Content-Length: 5x\r\n"),
        ("length 0x5", "Content-Length: 0x5\r\n"),
        (
            "an endless length",
            "Content-Length: 99999999999999999999\r\n",
        ),
    ] {
        rows.push((what, ok(fields, "hello"), Hangs, protocol()));
    }
    for (what, fields) in [
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n"),
        ("gzip", "Transfer-Encoding: gzip\r\n"),
        ("identity", "Transfer-Encoding: identity\r\n"),
        ("chunked, gzip", "Transfer-Encoding: chunked, gzip\r\n"),
        (
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("xchunked", "Transfer-Encoding: xchunked\r\n"),
    ] {
        rows.push((what, coded(fields), Closes, protocol()));
    }
    rows
}

fn cut() -> Vec<Row> {
    let chunked = |body: &str| ok("Transfer-Encoding: chunked\r\n", body);
    vec![
        (
            "too short",
            ok("Content-Length: 9\r\n", "hello"),
            Closes,
            Cut,
        ),
        (
            "too short, reset",
            ok("Content-Length: 9\r\n", "hello"),
            Resets,
            Cut,
        ),
        (
            "too short, silent",
            ok("Content-Length: 9\r\n", "hello"),
            Hangs,
            Cut,
        ),
        ("a reset for an end", ok("", "hello"), Resets, Cut),
        ("no last chunk", chunked("5\r\nhello\r\n"), Closes, Cut),
        (
            "no line after the last chunk",
            chunked("5\r\nhello\r\n0\r\n"),
            Closes,
            Cut,
        ),
        ("half a chunk", chunked("9\r\nhello"), Closes, Cut),
        ("no number", chunked("5\r\nhello\r\nzz\r\n"), Hangs, Cut),
        (
            "a negative number",
            chunked("5\r\nhello\r\n-1\r\n"),
            Hangs,
            Cut,
        ),
        (
            "too large a number",
            chunked("5\r\nhello\r\nFFFFFFFFFFFFFFFFF\r\n"),
            Hangs,
            Cut,
        ),
        (
            "no end of a chunk",
            chunked("5\r\nhelloo\r\n0\r\n\r\n"),
            Hangs,
            Cut,
        ),
        ("bare line ends", chunked("5\nhello\n0\n\n"), Hangs, Cut),
    ]
}

pub(super) fn is(answer: &Response, sees: &Sees) -> bool {
    let lengths = answer.head.headers.iter();
    let framing = lengths.filter(|(name, _)| {
        ["content-length", "transfer-encoding"].contains(&&name.to_ascii_lowercase()[..])
    });
    let framed_once = framing.count() <= 1;
    framed_once
        && match sees {
            Whole(status, body) => {
                answer.status == *status && answer.complete && answer.text() == *body
            }
            Cut => {
                answer.status == 200 && !answer.complete && "hello".starts_with(&answer.text()[..])
            }
            Fault(status, _) => answer.status == *status,
        }
}

/// Each row is a route of one server, which is left as it was.
fn check(rows: Vec<Row>, bytewise: bool) {
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(what, answer, then, sees)| (what, fake(answer, then, bytewise), sees))
        .collect();
    let mut setup = Server::new().args(["--route-timeout=1", "--route-idle=0.5", "--hidden"]);
    for (number, (_, fake, _)) in rows.iter().enumerate() {
        let route = format!("/{number}/=http:{}", fake.address());
        setup = setup.args(["--route", &route]);
    }
    let server = setup.start();
    let fds = server.fds_at_rest();
    let mut table = Rows::new();
    for (number, (what, fake, sees)) in rows.iter().enumerate() {
        let mut client = server.connect();
        // The second and the third may come on a connection that was kept.
        for method in ["GET", "GET", "POST", "GET"] {
            let before = server.log().len();
            client.send(format!(
                "{method} /{number}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            ));
            let answer = client.response();
            if let Fault(_, reason) = sees {
                let said = |log: &str| {
                    let line = format!("http '{number}': {}: ", fake.address());
                    let mut lines = log[before..].lines();
                    lines.any(|log| log.starts_with(&line) && log.ends_with(reason))
                };
                let named = is(&answer, sees) && eventually(|| said(&server.log()));
                table.check(what, named, || "the log does not say it".into());
            }
            if client_is_done(&answer) {
                client = server.connect();
            }
            let log = server.log()[before..].to_owned();
            table.check(what, is(&answer, sees), || {
                format!("{method}: {answer}\n{log}")
            });
        }
    }
    table.done();
    settles_to(&server, fds);
}

/// The connection ends after this answer.
pub(super) fn client_is_done(answer: &Response) -> bool {
    !answer.complete || answer.header("Connection").as_deref() == Some("close")
}

#[test]
fn answers_mean_what_their_framing_says() {
    check(whole(), false);
}

#[test]
fn answers_mean_the_same_however_they_are_split() {
    check(whole(), true);
}

#[test]
fn what_comes_after_an_answer_is_nobodys_answer() {
    check(too_much(), false);
}

#[test]
fn what_is_no_clear_answer_is_a_bad_gateway() {
    check(broken(), false);
}

#[test]
fn an_answer_without_its_end_is_visibly_cut() {
    check(cut(), false);
}
