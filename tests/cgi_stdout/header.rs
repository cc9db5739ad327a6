//! The header block: C76 to C86.

use super::{answer_to, printing, refused};
use crate::support::{Rows, Server, eventually};

#[test]
fn lines_end_in_lf_or_crlf_and_the_body_is_byte_exact_c76() {
    let body = b"\n\r\n\r \n\0\xff last line without an end";
    let heads: [&[u8]; 4] = [
        b"Content-Type: text/x-a\nX-From-Script: one\n\n",
        b"Content-Type: text/x-a\r\nX-From-Script: one\r\n\r\n",
        b"Content-Type: text/x-a\r\nX-From-Script: one\n\r\n",
        b"Content-Type: text/x-a\nX-From-Script: one\r\n\n",
    ];
    let outputs = heads.map(|head| [head, body].concat());
    let server = printing(outputs.iter().map(Vec::as_slice));
    let mut all = Rows::new();
    for (n, head) in heads.iter().enumerate() {
        let response = server.get(format!("/cgi-bin/{n}"));
        let holds = response.status == 200
            && response.header("Content-Type").as_deref() == Some("text/x-a")
            && response.header("X-From-Script").as_deref() == Some("one")
            && response.body == body;
        all.check(&format!("C76: {}", head.escape_ascii()), holds, || {
            response.to_string()
        });
    }
    all.done();
}

#[test]
fn the_header_may_come_byte_by_byte_c76() {
    let output = "Content-Type: text/x-a\r\nStatus: 203 By Byte\n\r\nbody\n";
    let server = Server::new()
        .file("said", output)
        .script(
            "cgi-bin/slowly",
            "#!/bin/sh\nexec dd if=../said bs=1 status=none\n",
        )
        .start();
    let response = server.get("/cgi-bin/slowly");
    assert_eq!((response.status, &*response.reason), (203, "By Byte"));
    assert_eq!(response.header("Content-Type").as_deref(), Some("text/x-a"));
    assert_eq!(response.text(), "body\n");
}

#[test]
fn a_line_that_is_no_field_makes_the_block_invalid_c77_c78_c80() {
    refused(&[
        (
            "C77",
            b"Content-Type: text/plain\nthis is no field\n\nSECRET BODY\n",
            "this is no field",
        ),
        (
            "C77",
            b"Content-Type : text/plain\n\nSECRET BODY\n",
            "Content-Type :",
        ),
        (
            "C77",
            b"X-From-Script: a\nX\xc3\xa9: b\n\nSECRET BODY\n",
            "X\u{e9}: b",
        ),
        (
            "C77",
            b"X-From-Script: a\nX(Y): b\n\nSECRET BODY\n",
            "X(Y): b",
        ),
        (
            "C77",
            b"X-From-Script: a\n: nameless\n\nSECRET BODY\n",
            ": nameless",
        ),
        (
            "C78",
            b"Content-Type: text/plain\nX-From-Script: one\n two\n\nSECRET BODY\n",
            " two",
        ),
        (
            "C78",
            b"Content-Type: text/plain\nX-From-Script: one\n\ttwo\n\nSECRET BODY\n",
            "two",
        ),
        (
            "C80",
            b"Content-Type: text/plain\nX-From-Script: a\0b\n\nSECRET BODY\n",
            "X-From-Script: a",
        ),
        (
            "C80",
            b"Content-Type: text/plain\nX-From-Script: a\rX-Injected: b\n\nSECRET BODY\n",
            "X-Injected",
        ),
        (
            "C80",
            b"Content-Type: text/plain\nX-From-Script: a\x07b\n\nSECRET BODY\n",
            "X-From-Script: a",
        ),
    ]);
}

#[test]
fn names_of_fields_are_case_insensitive_c77() {
    let response = answer_to(b"sTATUS: 203\nCONTENT-type:text/x-a\nlocation:   \n\nbody");
    assert_eq!(response.status, 203);
    assert_eq!(response.header("Content-Type").as_deref(), Some("text/x-a"));
}

#[test]
fn a_field_without_a_value_counts_as_not_sent_c79() {
    let server = Server::new().fixture("locempty").start();
    let response = server.get("/cgi-bin/locempty");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.header("Location"), None);
    assert_eq!(response.text(), "body\n");

    let response = answer_to(b"Content-Type: text/plain\nStatus:\nX-Empty: \n\nbody");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.header("X-Empty"), None);
}

#[test]
fn values_are_opaque_bytes_c80() {
    let response =
        answer_to(b"Content-Type: text/plain\nX-Value: \xe9\tand \xc3\xa9 \xff<>\"\n\nbody");
    let value = response.headers.iter().find(|field| field.0 == "X-Value");
    let value = value.map(|field| field.1.as_slice());
    assert_eq!(value, Some(&b"\xe9\tand \xc3\xa9 \xff<>\""[..]));
}

#[test]
fn big_headers_pass_up_to_the_limits_c81() {
    let server = Server::new()
        .fixture("bighdr")
        .fixture("manyhdr")
        // Together with the type 64 KiB, to the byte.
        .prints("cgi-bin/block", {
            let mut block = b"Content-Type: text/plain\n".to_vec();
            while block.len() < 65_000 {
                block.extend(format!("X-Field: {}\n", "f".repeat(90)).into_bytes());
            }
            let rest = 65_536 - block.len() - "X-Rest: \n\n".len();
            block.extend(format!("X-Rest: {}\n\nbody\n", "r".repeat(rest)).into_bytes());
            block
        })
        .start();
    // 32 KiB for the line, name included.
    let length = 32 * 1024 - "X-Big: ".len();
    let big = server.get(format!("/cgi-bin/bighdr?{length}"));
    assert_eq!(big.status, 200);
    assert_eq!(big.header("X-Big").map(|value| value.len()), Some(length));
    assert_eq!(big.text(), "body\n");

    let many = server.get("/cgi-bin/manyhdr?1000");
    assert_eq!(many.status, 200, "{many}");
    assert_eq!(many.header("X-Field-1000").as_deref(), Some("value"));

    let block = server.get("/cgi-bin/block");
    assert_eq!(block.status, 200, "{block}");
    assert_eq!(block.text(), "body\n");
}

#[test]
fn a_header_above_the_limits_is_invalid_c81() {
    let server = Server::new().fixture("bighdr").fixture("manyhdr").start();
    for (target, reason) in [
        ("/cgi-bin/bighdr?200000", "too-long"),
        ("/cgi-bin/bighdr?20000000", "too-long"),
        ("/cgi-bin/manyhdr?1100", "too-many-fields"),
        ("/cgi-bin/manyhdr?100000", "too-"),
    ] {
        let response = server.get(target);
        assert_eq!(response.status, 500, "{target}: {response}");
        let script = &target[1..target.find('?').unwrap()];
        server.wait_for_log(&format!("cgi '{script}': "));
        server.wait_for_log(reason);
    }
}

#[test]
fn what_is_no_header_block_is_refused_c82() {
    refused(&[
        ("C82", b"SECRET BODY\n\nand more\n", "SECRET BODY"),
        (
            "C82",
            b"<html><title>SECRET BODY</title></html>",
            "<html><title>",
        ),
        (
            "C82",
            b"Content-Type: text/plain\nX-From-Script: value\n",
            "ends before the header does",
        ),
        ("C82", b"Content-Ty", "Content-Ty"),
        ("C82", b"", "printed nothing"),
        (
            "C82",
            b"\nContent-Type: text/plain\n\nSECRET BODY\n",
            "empty line",
        ),
        (
            "C82",
            b"X-From-Script: \x1b[31m\xff\n\nSECRET BODY\n",
            "\\u{1b}[31m",
        ),
    ]);
}

#[test]
fn the_quoted_line_is_shortened_c82() {
    let line = "no field ".repeat(1000);
    let server = printing([format!("Content-Type: text/plain\n{line}\n\n").as_bytes()]);
    assert_eq!(server.get("/cgi-bin/0").status, 500);
    let logged = server.log_line("cgi 'cgi-bin/0': ");
    assert!(logged.contains("no field no field"), "{logged}");
    assert!(logged.len() < 500, "{} bytes: {logged}", logged.len());
}

#[test]
fn a_body_without_a_type_is_sent_without_one_c83() {
    let server = printing([&b"X-From-Script: a\n\n<p>body\n"[..]]);
    let response = server.get("/cgi-bin/0");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.header("Content-Type"), None);
    assert_eq!(response.text(), "<p>body\n");
    server.wait_for_log("cgi 'cgi-bin/0': the script printed no Content-Type");
}

#[test]
fn the_type_is_sent_as_it_was_printed_c84() {
    let mut all = Rows::new();
    for value in [
        "text/html",
        "TEXT/Html;charset=Weird; x=\"a b\"",
        "nonsense",
        "text/html; charset=iso-8859-1",
    ] {
        let response = answer_to(format!("Content-Type: {value}\n\nbody\n"));
        let sent = response.header("Content-Type");
        all.check(
            &format!("C84: {value}"),
            sent.as_deref() == Some(value),
            || response.to_string(),
        );
    }
    all.done();
}

#[test]
fn a_cgi_field_twice_makes_the_block_invalid_c85() {
    refused(&[
        (
            "C85",
            b"Content-Type: text/plain\nContent-Type: text/html\n\nSECRET BODY\n",
            "Content-Type: text/html",
        ),
        (
            "C85",
            b"Content-Type: text/plain\ncontent-type: text/plain\n\nSECRET BODY\n",
            "content-type: text/plain",
        ),
        ("C85", b"Location: /a\nLocation: /b\n\n", "Location: /b"),
        (
            "C85",
            b"Status: 200\nContent-Type: text/plain\nStatus: 404\n\nSECRET BODY\n",
            "Status: 404",
        ),
    ]);
}

#[test]
fn the_head_is_sent_before_the_first_byte_of_the_body_c86() {
    let server = Server::new()
        .script(
            "cgi-bin/late",
            "#!/bin/sh\nprintf 'Status: 201\\nContent-Type: text/plain\\n'\nprintf '\\n'\n\
             while [ ! -e ../go ]; do sleep 0.05; done\necho body\n",
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/late HTTP/1.1\nHost: {host}"));
    let head = client
        .head()
        .expect("the head comes while the script waits");
    assert_eq!(head.status, 201);
    std::fs::write(server.root().join("go"), "").unwrap();
    let body = String::from_utf8_lossy(&client.some()).into_owned();
    assert!(body.contains("body\n"), "{body}");
}

#[test]
fn nothing_is_sent_while_the_header_is_incomplete_c86() {
    // The first field alone would be a good answer; the block then turns bad.
    let server = Server::new()
        .script(
            "cgi-bin/turns",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\nX-From-Script: a\\n'\n\
             while [ ! -e ../go ]; do sleep 0.05; done\nprintf 'no field\\n\\nbody'\n",
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/turns HTTP/1.1\nHost: {host}"));
    assert!(eventually(|| !server.children().is_empty()));
    std::fs::write(server.root().join("go"), "").unwrap();
    let response = client.response();
    assert_eq!(response.status, 500, "{response}");
    assert_eq!(response.header("X-From-Script"), None);
}
