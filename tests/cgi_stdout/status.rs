//! Status, interim blocks and a full status line: C87 to C91.

use super::{answer_to, refused};
use crate::support::{Rows, Server};

#[test]
fn a_status_is_three_digits_and_perhaps_a_phrase_c87() {
    let mut all = Rows::new();
    for (value, status, reason) in [
        ("200 OK", 200, "OK"),
        ("200", 200, "OK"),
        ("404", 404, "Not Found"),
        ("404   Gone   fishing ", 404, "Gone   fishing"),
        ("204", 204, "No Content"),
        ("599 Own", 599, "Own"),
        ("299", 299, ""),
        ("200 a\u{7}b", 200, "ab"),
    ] {
        let response = answer_to(format!("Status: {value}\nContent-Type: text/plain\n\n"));
        let holds = response.status == status && response.reason == reason;
        // The client fails the test where the space after the code is missing.
        all.check(&format!("C87: {value:?}"), holds, || response.to_string());
    }
    all.done();
}

#[test]
fn without_a_status_it_is_200_or_302_c88() {
    let response = answer_to("Content-Type: text/plain\n\nbody");
    assert_eq!((response.status, &*response.reason), (200, "OK"));

    let response = answer_to("Location: http://other.example/\n\n");
    assert_eq!((response.status, &*response.reason), (302, "Found"));
}

#[test]
fn status_is_never_forwarded_as_a_field_c88() {
    let response = answer_to("Status: 404 Nope\nContent-Type: text/plain\n\nbody");
    assert_eq!(response.status, 404);
    assert_eq!(response.header("Status"), None);
}

#[test]
fn a_status_that_is_none_makes_the_block_invalid_c89() {
    refused(&[
        ("C89", b"Status: abc\n\nSECRET BODY", "Status: abc"),
        ("C89", b"Status: 99\n\nSECRET BODY", "Status: 99"),
        ("C89", b"Status: 099\n\nSECRET BODY", "Status: 099"),
        ("C89", b"Status: 199\n\nSECRET BODY", "Status: 199"),
        ("C89", b"Status: 600\n\nSECRET BODY", "Status: 600"),
        ("C89", b"Status: 1000\n\nSECRET BODY", "Status: 1000"),
        ("C89", b"Status: 200OK\n\nSECRET BODY", "Status: 200OK"),
        ("C89", b"Status: +20\n\nSECRET BODY", "Status: +20"),
        ("C89", b"Status: -200\n\nSECRET BODY", "Status: -200"),
        ("C90", b"Status: 101\n\nSECRET BODY", "Status: 101"),
    ]);
}

#[test]
fn early_hints_reach_a_client_that_can_take_them_c90() {
    let server = Server::new().fixture("early").start();
    let response = server.get("/cgi-bin/early");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.text(), "the answer\n");
    let [hints] = response.interim.as_slice() else {
        panic!("not one interim response: {response}");
    };
    assert_eq!((hints.status, &*hints.version), (103, "HTTP/1.1"));
    let link = hints.headers.iter().find(|field| field.0 == "Link");
    assert_eq!(link.unwrap().1, b"</style.css>; rel=preload");
    assert_eq!(response.header("Link"), None, "a hint is not the answer's");

    let old = server
        .ask("GET /cgi-bin/early HTTP/1.0")
        .expect("it is answered");
    assert!(old.interim.is_empty(), "{old}");
    assert_eq!((old.status, &*old.text()), (200, "the answer\n"));
}

#[test]
fn early_hints_leave_before_the_answer_is_there_c90() {
    let server = Server::new()
        .script(
            "cgi-bin/hint",
            "#!/bin/sh\nprintf 'Status: 103\\nLink: </a>\\n\\n'\n\
             while [ ! -e ../go ]; do sleep 0.05; done\n\
             printf 'Content-Type: text/plain\\n\\nanswer'\n",
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/hint HTTP/1.1\nHost: {host}"));
    assert_eq!(client.head().expect("the hint comes").status, 103);
    std::fs::write(server.root().join("go"), "").unwrap();
    assert_eq!(client.response().text(), "answer");
}

#[test]
fn other_interim_blocks_are_forwarded_or_dropped_c90() {
    let mut all = Rows::new();
    for (output, interims) in [
        ("Status: 102\n\nContent-Type: text/plain\n\nbody", vec![102]),
        ("Status: 100\n\nContent-Type: text/plain\n\nbody", vec![]),
        (
            "Status: 103\nLink: </a>\n\nStatus: 100\n\nStatus: 103\nLink: </b>\n\nStatus: 203\n\nbody",
            vec![103, 103],
        ),
    ] {
        let response = answer_to(output);
        let seen: Vec<u16> = response.interim.iter().map(|head| head.status).collect();
        let holds = seen == interims && response.text() == "body";
        all.check(&format!("C90: {output:?}"), holds, || response.to_string());
    }
    all.done();
}

#[test]
fn the_end_after_an_interim_block_is_no_answer_c90() {
    let response = answer_to("Status: 103\nLink: </a>\n\n");
    assert_eq!(response.status, 500, "{response}");
}

#[test]
fn a_status_line_from_a_common_script_is_its_status_c91() {
    let server = Server::new().fixture("httpline").start();
    for request in [
        "GET /cgi-bin/httpline HTTP/1.1\nHost: {host}",
        "GET /cgi-bin/httpline HTTP/1.0",
    ] {
        let response = server.ask(request).expect("it is answered");
        assert_eq!((response.status, &*response.reason), (202, "Accepted"));
        assert_eq!(
            response.header("Content-Type").as_deref(),
            Some("text/plain")
        );
        assert_eq!(response.text(), "body\n");
    }
    refused(&[
        ("C91", b"HTTP/1.1 abc\n\nSECRET BODY", "HTTP/1.1 abc"),
        (
            "C91",
            b"HTTP/1.1 999 Far\n\nSECRET BODY",
            "HTTP/1.1 999 Far",
        ),
    ]);
}
