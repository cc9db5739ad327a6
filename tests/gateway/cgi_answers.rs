//! What an application behind `FastCGI`, SCGI or uwsgi can answer, wrongly or only
//! unusually: the same for all three, and what records can do besides (C146 to
//! C155, C176, C180, and the rules of a script's output).

use std::io::{Read, Write};
use std::net::TcpStream;

use super::http_answers::{
    Sees::{self, Cut, Fault, Whole},
    Then::{self, Closes, GoesOn, Hangs, Resets},
    client_is_done, is, reset,
};
use super::peers::{Fake, end, read_request, record, settles_to, stderr, stdout};
use super::proxy::read_head;
use crate::support::{Rows, Server, eventually};

const PROTOCOLS: [&str; 3] = ["fastcgi", "scgi", "uwsgi"];

/// Reads the head of a request; false at the end of the connection.
fn read(protocol: &str, stream: &mut TcpStream) -> bool {
    let mut exact = |length: usize| {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).is_ok().then_some(bytes)
    };
    match protocol {
        "scgi" => {
            let mut digits = String::new();
            loop {
                match exact(1) {
                    Some(digit) if digit[0].is_ascii_digit() => digits.push(digit[0].into()),
                    Some(_) => break exact(digits.parse::<usize>().unwrap_or(0) + 1).is_some(),
                    None => break false,
                }
            }
        }
        "uwsgi" => exact(4)
            .and_then(|head| exact(usize::from(u16::from_le_bytes([head[1], head[2]]))))
            .is_some(),
        _ => read_request(stream).is_some(),
    }
}

fn fake(protocol: &'static str, answer: Vec<u8>, then: Then, bytewise: bool) -> Fake {
    Fake::new(move |mut stream, _| {
        while read(protocol, &mut stream) {
            let written = if bytewise {
                stream.set_nodelay(true).expect("TCP has the option");
                let mut bytes = answer.chunks(1);
                bytes.try_for_each(|byte| stream.write_all(byte))
            } else {
                stream.write_all(&answer)
            };
            match then {
                // Only FastCGI's connections outlive a request.
                GoesOn if written.is_ok() && protocol == "fastcgi" => {}
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

struct Row {
    what: String,
    protocol: &'static str,
    answer: Vec<u8>,
    then: Then,
    sees: Sees,
}

/// The same output by each protocol, and a proper end if it `ends`.
fn by_each(what: &str, output: &[u8], ends: bool, then: Then, sees: &Sees) -> Vec<Row> {
    let row = |protocol| Row {
        what: format!("{protocol}: {what}"),
        protocol,
        answer: match (protocol, ends) {
            ("fastcgi", true) => [stdout(output), end(0, 0)].concat(),
            ("fastcgi", false) => stdout(output),
            _ => output.to_vec(),
        },
        then,
        sees: sees.clone(),
    };
    PROTOCOLS.map(row).into()
}

/// Output that is an answer.
fn whole() -> Vec<Row> {
    let hello = || Whole(200, "hello");
    let rows = [
        ("plain", "Content-Type: a/b\n\nhello", hello()),
        ("CRLF", "Content-Type: a/b\r\n\r\nhello", hello()),
        ("both", "Content-Type: a/b\r\nX: y\n\r\nhello", hello()),
        (
            "status",
            "Status: 404 Gone fishing\n\nhello",
            Whole(404, "hello"),
        ),
        (
            "status line",
            "HTTP/1.1 404 Not\r\n\r\nhello",
            Whole(404, "hello"),
        ),
        ("no type", "X: y\n\nhello", hello()),
        (
            "length",
            "Content-Type: a/b\nContent-Length: 5\n\nhello",
            hello(),
        ),
        (
            "too short a length",
            "Content-Type: a/b\nContent-Length: 5\n\nhello, world",
            hello(),
        ),
        (
            "equal lengths",
            "Content-Type: a/b\nContent-Length: 5\nContent-Length: 5\n\nhello",
            hello(),
        ),
        (
            "lengths that differ",
            "Content-Type: a/b\nContent-Length: 5\nContent-Length: 3\n\nhello",
            hello(),
        ),
        (
            "no length",
            "Content-Type: a/b\nContent-Length: five\n\nhello",
            hello(),
        ),
        (
            "length -1",
            "Content-Type: a/b\nContent-Length: -1\n\nhello",
            hello(),
        ),
        (
            "chunks",
            "Content-Type: a/b\nTransfer-Encoding: chunked\n\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            hello(),
        ),
        (
            "chunks and a length",
            "Content-Type: a/b\nContent-Length: 3\nTransfer-Encoding: chunked\n\n5\r\nhello\r\n0\r\n\r\n",
            hello(),
        ),
        (
            "an empty field",
            "Content-Type: a/b\nContent-Length:\n\nhello",
            hello(),
        ),
        (
            "100 and 103",
            "Status: 100\n\nStatus: 103\nLink: <a>\n\nStatus: 200\nContent-Type: a/b\n\nhello",
            hello(),
        ),
        (
            "of a connection",
            "Content-Type: a/b\nConnection: X-Hop, close\nX-Hop: 1\nKeep-Alive: 5\nUpgrade: h2c\n\nhello",
            hello(),
        ),
        ("204", "Status: 204\n\n", Whole(204, "")),
        (
            "204 with a body",
            "Status: 204\nContent-Length: 5\n\nhello",
            Whole(204, ""),
        ),
        ("304 with a body", "Status: 304\n\nhello", Whole(304, "")),
    ];
    let rows = rows.iter();
    rows.flat_map(|(what, output, sees)| by_each(what, output.as_bytes(), true, GoesOn, sees))
        .collect()
}

/// Output that is none.
fn broken() -> Vec<Row> {
    let long = format!("X: {}\n\nhello", "y".repeat(40_000));
    let many = format!("{}\nhello", "X: y\n".repeat(1100));
    let rows = [
        ("nothing", "", "(closed)"),
        ("half a header", "Content-Type: a/b\nX", "(half-header)"),
        ("no header", "hello\n", "(no-header)"),
        ("an empty line", "\nhello", "(no-header)"),
        ("status 1000", "Status: 1000\n\nhello", "(bad-status)"),
        ("status okay", "Status: okay\n\nhello", "(bad-status)"),
        (
            "status 101",
            "Status: 101 Switching\n\nhello",
            "(bad-status)",
        ),
        ("HTTP/2", "HTTP/2 200 OK\n\nhello", "(bad-status)"),
        (
            "two types",
            "Content-Type: a/b\nContent-Type: c/d\n\nhello",
            "(duplicate-field)",
        ),
        ("no colon", "Content-Type: a/b\nwhat\n\nhello", "(bad-line)"),
        (
            "a folded line",
            "Content-Type: a/b\n c: d\n\nhello",
            "(bad-line)",
        ),
        (
            "a space before the colon",
            "Content-Type: a/b\nX : y\n\nhello",
            "(bad-line)",
        ),
        ("a NUL", "Content-Type: a/b\nX: y\0\n\nhello", "(nul)"),
        (
            "a carriage return",
            "Content-Type: a/b\nX: y\rZ: 1\n\nhello",
            "(bare-cr)",
        ),
        (
            "a control character",
            "Content-Type: a/b\nX: y\x01\n\nhello",
            "(control-character)",
        ),
        (
            "gzip",
            "Content-Type: a/b\nTransfer-Encoding: gzip\n\nhello",
            "(bad-coding)",
        ),
        ("a long line", &long, "(too-long)"),
        ("many fields", &many, "(too-many-fields)"),
    ];
    let rows = rows.iter();
    rows.flat_map(|(what, output, reason)| {
        by_each(what, output.as_bytes(), true, Closes, &Fault(502, reason))
    })
    .collect()
}

/// A connection that breaks, and one that stands still.
fn broken_off() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, output, then, sees) in [
        ("reset at once", "", Resets, Fault(502, "(closed)")),
        (
            "reset in the header",
            "Content-Ty",
            Resets,
            Fault(502, "(closed)"),
        ),
        ("reset in the body", "Content-Type: a/b\n\nhel", Resets, Cut),
        (
            "too early an end",
            "Content-Type: a/b\nContent-Length: 9\n\nhel",
            Closes,
            Cut,
        ),
        ("silence", "", Hangs, Fault(504, "(timeout)")),
        (
            "silence in the header",
            "Content-Ty",
            Hangs,
            Fault(504, "(timeout)"),
        ),
        (
            "silence in the body",
            "Content-Type: a/b\n\nhel",
            Hangs,
            Cut,
        ),
        (
            "bad chunks",
            "Content-Type: a/b\nTransfer-Encoding: chunked\n\n3\r\nhel\r\nx\r\n",
            Hangs,
            Cut,
        ),
        (
            "no last chunk",
            "Content-Type: a/b\nTransfer-Encoding: chunked\n\n3\r\nhel\r\n",
            Closes,
            Cut,
        ),
        (
            "silence after all of it",
            "Content-Type: a/b\nContent-Length: 5\n\nhello",
            Hangs,
            Whole(200, "hello"),
        ),
        (
            "reset after all of it",
            "Content-Type: a/b\nContent-Length: 5\n\nhello",
            Resets,
            Whole(200, "hello"),
        ),
    ] {
        rows.extend(by_each(what, output.as_bytes(), false, then, &sees));
    }
    rows
}

/// What records can do.
fn records() -> Vec<Row> {
    const HEAD: &[u8] = b"Content-Type: a/b\n\n";
    let hello = || [stdout(HEAD), stdout(b"hello")].concat();
    let whole = |what: &str, answer: Vec<u8>, then| Row {
        what: what.into(),
        protocol: "fastcgi",
        answer,
        then,
        sees: Whole(200, "hello"),
    };
    let padded = |kind: u8, id: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).expect("short");
        let header = [1, kind, 0, id, 0, length, 255, 77];
        [&header[..], content, &[6; 255]].concat()
    };
    let mut pieces = Vec::new();
    for byte in [HEAD, b"hello"].concat() {
        pieces.extend(padded(6, 1, &[byte]));
        pieces.extend(padded(99, 1, b"nobody knows it"));
        pieces.extend(padded(11, 0, &[1; 8]));
        pieces.extend(stderr(b"a line\n"));
        pieces.extend(padded(7, 1, b""));
    }
    let mut rows = vec![
        whole("a byte in each", [pieces, end(0, 0)].concat(), GoesOn),
        whole(
            "no empty record at the end",
            [hello(), end(0, 0)].concat(),
            GoesOn,
        ),
        whole(
            "an empty one",
            [hello(), stdout(b""), end(0, 0)].concat(),
            GoesOn,
        ),
        whole(
            "empty ones between",
            [record(6, 1, b""), padded(6, 1, b""), hello(), end(0, 0)].concat(),
            GoesOn,
        ),
        whole("two ends", [hello(), end(0, 0), end(0, 0)].concat(), GoesOn),
        whole(
            "a long end",
            [hello(), record(3, 1, &[0; 60])].concat(),
            GoesOn,
        ),
        whole("an exit status", [hello(), end(7, 0)].concat(), GoesOn),
        whole(
            "garbage behind",
            [hello(), end(0, 0), vec![0xab; 100]].concat(),
            GoesOn,
        ),
        whole(
            "an answer behind",
            [
                hello(),
                end(0, 0),
                stdout(b"Status: 500\n\npoison"),
                end(0, 0),
            ]
            .concat(),
            GoesOn,
        ),
        whole(
            "half a record behind",
            [hello(), end(0, 0), vec![1, 6, 0]].concat(),
            GoesOn,
        ),
        whole(
            "errors behind",
            [hello(), end(0, 0), stderr(b"late\n")].concat(),
            GoesOn,
        ),
        whole(
            "padding behind is missing",
            [hello(), vec![1, 3, 0, 1, 0, 8, 200, 0], vec![0; 8]].concat(),
            GoesOn,
        ),
        whole(
            "a length and no end",
            stdout(b"Content-Type: a/b\nContent-Length: 5\n\nhello"),
            Hangs,
        ),
    ];
    rows.extend(broken_records(&hello()));
    rows
}

/// What records can't do, after a beginning that is right.
fn broken_records(hello: &[u8]) -> Vec<Row> {
    let cut = |(what, more, then): (&str, Vec<u8>, Then)| Row {
        what: what.into(),
        protocol: "fastcgi",
        answer: [hello, &more].concat(),
        then,
        sees: Cut,
    };
    let rows = [
        ("no end", vec![], Closes),
        ("an end of another request", record(3, 2, &[0; 8]), Hangs),
        ("an end of no request", record(3, 0, &[0; 8]), Hangs),
        ("too short an end", record(3, 1, &[0; 4]), Hangs),
        ("half an end", vec![1, 3, 0, 1, 0, 8, 0, 0, 0], Hangs),
        ("version 2", vec![2, 3, 0, 1, 0, 8, 0, 0], Hangs),
        ("an echo", record(5, 1, b"x"), Hangs),
        ("an unknown end", end(0, 9), Hangs),
        ("overloaded by now", end(0, 2), Hangs),
    ];
    rows.map(cut).into()
}

/// Each row is a route of one server, which is left as it was.
fn check(rows: Vec<Row>, bytewise: bool, limit: &str) {
    let rows: Vec<(Row, Fake)> = rows
        .into_iter()
        .map(|mut row| {
            let answer = std::mem::take(&mut row.answer);
            let fake = fake(row.protocol, answer, row.then, bytewise);
            (row, fake)
        })
        .collect();
    let mut setup = Server::new().args(["--route-timeout", limit, "--route-idle=0.3"]);
    for (number, (row, fake)) in rows.iter().enumerate() {
        let route = format!("/{number}/={}:{}", row.protocol, fake.address());
        setup = setup.args(["--route", &route]);
    }
    let server = setup.start();
    let fds = server.fds_at_rest();
    let mut table = Rows::new();
    for (number, (row, fake)) in rows.iter().enumerate() {
        let mut client = server.connect();
        // Those after the first may come on a connection that was kept.
        for method in ["GET", "GET", "POST", "GET"] {
            let before = server.log().len();
            client.send(format!(
                "{method} /{number}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            ));
            let answer = client.response();
            let right = is(&answer, &row.sees);
            table.check(&row.what, right, || format!("{method}: {answer}"));
            if let (true, Fault(_, reason)) = (right, &row.sees) {
                let line = format!("{} '{number}': {}: ", row.protocol, fake.address());
                let named = eventually(|| {
                    let log = server.log();
                    let mut lines = log[before..].lines();
                    lines.any(|said| said.starts_with(&line) && said.ends_with(reason))
                });
                table.check(&row.what, named, || server.log()[before..].to_owned());
            }
            if client_is_done(&answer) {
                client = server.connect();
            }
        }
    }
    table.done();
    settles_to(&server, fds);
}

#[test]
fn output_means_the_same_by_every_protocol_c152_c176_c180() {
    check(whole(), false, "5");
}

#[test]
fn output_means_the_same_however_it_is_split_c152_c176_c180() {
    check(whole(), true, "5");
}

#[test]
fn what_is_no_answer_is_a_bad_gateway_by_every_protocol_c152_c176_c180() {
    check(broken(), false, "5");
}

#[test]
fn a_connection_that_breaks_or_stands_still_is_seen_by_every_protocol_c155_c176() {
    check(broken_off(), false, "0.4");
}

#[test]
fn records_are_obeyed_or_the_connection_is_dropped_c146_to_c158() {
    check(records(), false, "5");
}

#[test]
fn records_mean_the_same_however_they_are_split_c146() {
    check(records(), true, "5");
}

#[test]
fn a_flood_of_interim_answers_fills_no_memory_c90() {
    const FLOOD: usize = 100 << 20;
    let link = format!("Link: <{}>", "x".repeat(4000));
    for protocol in ["fastcgi", "scgi", "uwsgi", "http"] {
        let (interim, last) = match protocol {
            "http" => (
                format!("HTTP/1.1 103 Early\r\n{link}\r\n\r\n"),
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            ),
            _ => (
                format!("Status: 103\n{link}\n\n"),
                "Content-Type: a/b\nContent-Length: 5\n\nhello",
            ),
        };
        let framed = |text: &str| match protocol {
            "fastcgi" => stdout(text.as_bytes()),
            _ => text.as_bytes().to_vec(),
        };
        let (piece, last) = (framed(&interim.repeat(15)), framed(last));
        let fake = Fake::new(move |mut stream, _| {
            let asked = match protocol {
                "http" => read_head(&mut stream).is_some(),
                _ => read(protocol, &mut stream),
            };
            let mut pieces = 0..FLOOD / piece.len();
            if asked && pieces.all(|_| stream.write_all(&piece).is_ok()) {
                let _ = stream.write_all(&last);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let server = Server::new()
            .args(["--route", &format!("/={protocol}:{}", fake.address())])
            .start();
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status, &answer.text()[..]), (200, "hello"));
        let relayed = answer.interim.len();
        assert!((5..100).contains(&relayed), "{protocol}: {relayed} relayed");
        let most = server.memory("VmHWM");
        assert!(most < FLOOD / 2, "{protocol}: {most} bytes");
    }
}
