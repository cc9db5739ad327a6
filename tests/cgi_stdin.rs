//! The request body on its way to the script (RFC 3875 §4.2): C62 to C75.

use std::io::Write;
use std::time::Duration;

use crate::support::{Client, Report, Rows, Server, curl, eventually, needs, tiny_http_cannot};

/// Bytes that no framing and no line end survives by luck.
fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| u8::try_from((n * 7 + n / 251) % 256).expect("it is below 256"))
        .collect()
}

fn post(server: &Server, script: &str, fields: &str) -> Vec<u8> {
    server.wire(format!("POST /cgi-bin/{script} HTTP/1.1\nHost: {{host}}{fields}").as_bytes())
}

fn chunked(pieces: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    for piece in pieces {
        write!(wire, "{:x}\r\n", piece.len()).expect("memory takes it");
        wire.extend_from_slice(piece);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    wire
}

#[test]
fn the_script_reads_its_body_and_not_the_next_request_c62() {
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    let mut wire = post(&server, "echo", "\nContent-Length: 5");
    wire.extend(b"first");
    wire.extend(post(&server, "echo", "\nContent-Length: 6"));
    wire.extend(b"second");
    wire.extend(server.wire(b"GET /cgi-bin/echo HTTP/1.1\nHost: {host}"));
    client.send(wire);
    for expected in ["first", "second", ""] {
        let response = client.response();
        assert_eq!(response.text(), expected, "{response}");
        assert!(response.complete);
    }
}

#[test]
fn the_script_sees_the_end_of_its_body_on_an_open_connection_c62() {
    let server = Server::new().fixture("echo").start();
    for length in [1, 1024, 1025, 70_000] {
        let mut client = server.connect();
        let body = content(length);
        client.send(post(
            &server,
            "echo",
            &format!("\nContent-Length: {length}"),
        ));
        client.send_beside(body.clone());
        let response = client.response();
        assert_eq!(response.header("X-Length"), Some(length.to_string()));
        assert!(response.body == body, "{length} bytes came back changed");
    }
}

#[test]
fn a_body_may_come_byte_by_byte_c62() {
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    client.send_bytewise(post(&server, "echo", "\nContent-Length: 5"));
    client.send_bytewise("hello");
    assert_eq!(client.response().text(), "hello");
}

#[test]
fn without_a_body_standard_input_is_at_its_end_c63() {
    let server = Server::new().fixture("echo").fixture("env").start();
    let mut all = Rows::new();
    for request in [
        "GET /cgi-bin/echo HTTP/1.1\nHost: {host}",
        "POST /cgi-bin/echo HTTP/1.1\nHost: {host}",
        "POST /cgi-bin/echo HTTP/1.1\nHost: {host}\nContent-Length: 0",
        "POST /cgi-bin/echo HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked\n\n0\r\n\r\n",
        "GET /cgi-bin/echo HTTP/1.0",
    ] {
        let response = server.ask(request).expect("it is answered");
        let length = response.header("X-Length");
        all.check(
            &format!("C63: {request:?}"),
            length.as_deref() == Some("0"),
            || response.to_string(),
        );
    }
    all.done();
    let report = server.report("/cgi-bin/env");
    assert_eq!(report.descriptors(), [0, 1, 2]);
    let stdin = report.fact("fd0").expect("standard input is open");
    assert!(
        stdin == "/dev/null" || stdin.starts_with("pipe:"),
        "{stdin}"
    );
}

#[test]
fn the_streams_can_be_opened_by_name_c64() {
    let server = Server::new()
        .script(
            "cgi-bin/names",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n' > /dev/stdout\n\
             cat /dev/stdin >> /dev/stdout\necho seen > /dev/stderr\n",
        )
        .start();
    let body = content(100_000);
    let response = server.request("POST", "/cgi-bin/names", &[], &body);
    assert_eq!(response.status, 200, "{response}");
    assert!(response.body == body, "the body came back changed");
    server.wait_for_log("seen");
    assert_eq!(server.get("/cgi-bin/names").text(), "");
}

#[test]
fn a_chunked_body_gets_a_length_before_the_script_starts_c65() {
    let server = Server::new().fixture("echo").start();
    let body = content(3 << 20);
    let middle: Vec<&[u8]> = body.chunks(60_000).collect();
    for (what, pieces, expected) in [
        ("one chunk", vec![&b"hello"[..]], &b"hello"[..]),
        ("three chunks", vec![b"a", b"bc", b"def"], b"abcdef"),
        ("nothing", vec![], b""),
        ("3 MiB", middle, &body),
    ] {
        let mut client = server.connect();
        let mut wire = post(&server, "echo", "\nTransfer-Encoding: chunked");
        wire.extend(chunked(&pieces));
        client.send_beside(wire);
        let response = client.response();
        let length = Some(expected.len().to_string());
        assert_eq!(response.header("X-Content-Length"), length, "{what}");
        assert_eq!(response.header("X-Length"), length, "{what}");
        assert!(response.body == expected, "{what} came back changed");
    }
    assert!(server.temporary_files().is_empty());
}

#[test]
fn a_chunked_body_may_come_byte_by_byte_c65() {
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    client.send(post(&server, "echo", "\nTransfer-Encoding: chunked"));
    client.send_bytewise(chunked(&[b"hello", b" world"]));
    assert_eq!(client.response().text(), "hello world");
}

#[test]
fn a_chunked_body_that_finds_no_room_is_507_and_the_server_goes_on_c65() {
    let server = Server::new()
        .fixture("echo")
        // In blocks of 512 bytes.
        .under(["sh", "-c", "ulimit -f 200; exec \"$@\"", "sh"])
        .start();
    let whole = content(200_000);
    let request = [
        post(&server, "echo", "\nTransfer-Encoding: chunked"),
        chunked(&[&whole]),
    ];
    let mut client = server.connect();
    client.send_beside(request.concat());
    assert_eq!(client.response().status, 507);
    assert_eq!(server.get("/cgi-bin/echo").status, 200);
}

#[test]
fn a_script_starts_before_its_body_is_complete_c66() {
    let server = Server::new()
        .script(
            "cgi-bin/parts",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nhead -c 5\nwc -c\n",
        )
        .start();
    let mut client = server.connect();
    client.send(post(&server, "parts", "\nContent-Length: 200005"));
    client.send("hello");
    let head = client.head().expect("the script answers half the body");
    assert_eq!(head.status, 200);
    let mut seen = Vec::new();
    while !seen.windows(5).any(|window| window == b"hello") {
        let some = client.some();
        assert!(!some.is_empty(), "the connection ended");
        seen.extend(some);
    }
    client.send(content(200_000));
    while !seen.windows(6).any(|window| window == b"200000") {
        let some = client.some();
        assert!(!some.is_empty(), "the connection ended");
        seen.extend(some);
    }
}

#[test]
fn a_script_may_print_before_it_reads_c67() {
    let server = Server::new()
        .fixture("outfirst")
        .fixture("errflood")
        .start();
    let response = server.request("POST", "/cgi-bin/outfirst", &[], &content(1 << 20));
    assert!(response.complete);
    let text = response.text();
    let rest = text.trim_start_matches('x');
    assert_eq!(text.len() - rest.len(), 1 << 20);
    assert_eq!(rest.trim(), (1 << 20).to_string());

    let flood = server.request("POST", "/cgi-bin/errflood", &[], &content(1 << 20));
    assert_eq!(flood.text(), "after the flood\n");
}

#[test]
fn a_script_that_leaves_its_body_unread_is_still_heard_c68() {
    let server = Server::new().fixture("noread").fixture("closein").start();
    for (script, expected) in [("noread", "not read\n"), ("closein", "closed stdin\n")] {
        for length in [100, 3 << 20] {
            let target = format!("/cgi-bin/{script}");
            let response = server.request("POST", &target, &[], &content(length));
            assert_eq!(response.text(), expected, "{length} bytes: {response}");
            assert!(response.complete);
        }
    }
}

#[test]
fn a_small_unread_body_keeps_the_connection_c68() {
    let server = Server::new().fixture("noread").start();
    let mut client = server.connect();
    for _ in 0..2 {
        client.send(post(&server, "noread", "\nContent-Length: 2000"));
        client.send(content(2000));
        assert_eq!(client.response().text(), "not read\n");
    }
}

#[test]
fn continue_is_sent_once_and_only_when_the_body_is_wanted_c69() {
    let server = Server::new()
        .fixture("echo")
        .fixture("nonexec")
        .args(["--max-body", "1K"])
        .start();
    let expect = "\nExpect: 100-continue";
    let mut client = server.connect();
    client.send(post(
        &server,
        "echo",
        &format!("{expect}\nContent-Length: 5"),
    ));
    assert_eq!(client.head().expect("it asks for the body").status, 100);
    client.send("hello");
    let response = client.response();
    assert_eq!(response.text(), "hello", "{response}");
    assert!(response.interim.is_empty(), "a second 100");

    for (script, length, status) in [
        ("nonexec", 5, 403),
        ("nothing", 5, 404),
        ("echo", 5000, 413),
    ] {
        let mut client = server.connect();
        let fields = format!("{expect}\nContent-Length: {length}");
        client.send(post(&server, script, &fields));
        let response = client.response();
        assert_eq!(response.status, status, "{response}");
        assert!(response.interim.is_empty(), "100 before {status}");
    }
}

#[test]
fn a_body_already_on_its_way_needs_no_continue_c69() {
    if tiny_http_cannot("see that the body has come") {
        return;
    }
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    let mut wire = post(&server, "echo", "\nExpect: 100-continue\nContent-Length: 5");
    wire.extend(b"hello");
    client.send(wire);
    let response = client.response();
    assert_eq!(response.text(), "hello");
    assert!(response.interim.is_empty(), "{response}");
}

#[test]
fn http_1_0_knows_no_continue_c69() {
    if tiny_http_cannot("keep 100 from HTTP/1.0") {
        return;
    }
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    let request =
        b"POST /cgi-bin/echo HTTP/1.0\nHost: {host}\nExpect: 100-continue\nContent-Length: 5";
    client.send(server.wire(request));
    client.send("hello");
    let response = client.response();
    assert_eq!(response.text(), "hello");
    assert!(response.interim.is_empty(), "{response}");
}

#[test]
fn a_script_that_answers_first_ends_the_wait_for_the_body_c69() {
    if tiny_http_cannot("keep 100 out of an answer under way") {
        return;
    }
    let server = Server::new().fixture("noread").start();
    let fields = "\nExpect: 100-continue\nContent-Length: 100000";
    // Whether 100 is out by then is a race; that nothing but the answer comes
    // with and after the answer is none.
    for _ in 0..5 {
        let mut client = server.connect();
        client.send(post(&server, "noread", fields));
        let response = client.response();
        assert_eq!(response.text(), "not read\n", "{response}");
        assert_eq!(client.rest(), b"", "something came after the answer");
    }
}

#[test]
fn another_expectation_fails_c69() {
    let server = Server::new().fixture("echo").start();
    let response = server.request("POST", "/cgi-bin/echo", &[("Expect", "a-miracle")], b"x");
    assert_eq!(response.status, 417, "{response}");
}

#[test]
fn curl_uploads_with_an_expectation_c69() {
    if !needs("curl") {
        return;
    }
    let server = Server::new().fixture("echo").start();
    let file = server.root().join("upload");
    let body = content(2 << 20);
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    let output = curl(&[
        "--header",
        "Expect: 100-continue",
        "--data-binary",
        &data,
        &server.url("/cgi-bin/echo"),
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == body, "the upload came back changed");
}

#[test]
fn a_body_above_the_limit_is_refused_before_the_script_starts_c70() {
    let server = Server::new()
        .script(
            "cgi-bin/mark",
            "#!/bin/sh\ntouch ran\necho Status: 204\necho\n",
        )
        .args(["--max-body", "1K"])
        .start();
    let declared = server.request("POST", "/cgi-bin/mark", &[], &content(1025));
    assert_eq!(declared.status, 413, "{declared}");

    let mut client = server.connect();
    let mut wire = post(&server, "mark", "\nTransfer-Encoding: chunked");
    wire.extend(chunked(&[&content(1000), &content(25)]));
    client.send_beside(wire);
    assert_eq!(client.response().status, 413);
    assert!(
        !server.root().join("cgi-bin/ran").exists(),
        "the script ran"
    );

    let allowed = server.request("POST", "/cgi-bin/mark", &[], &content(1024));
    assert_eq!(allowed.status, 204, "{allowed}");
    assert!(server.root().join("cgi-bin/ran").exists());
}

#[test]
fn a_client_gone_in_mid_body_starts_no_script_c71() {
    let server = Server::new()
        .script(
            "cgi-bin/mark",
            "#!/bin/sh\ntouch ran\necho Status: 204\necho\n",
        )
        .start();
    let before = server.idle_fds();
    for wire in [
        "\nTransfer-Encoding: chunked\n\n5\r\nhel",
        "\nTransfer-Encoding: chunked\n\n5\r\nhello\r\n",
    ] {
        let mut client = server.connect();
        client.send(post(&server, "mark", wire));
        drop(client);
    }
    server.settles_to(before);
    assert!(
        !server.root().join("cgi-bin/ran").exists(),
        "the script ran"
    );
}

#[test]
fn a_running_script_never_sees_half_a_body_as_whole_c71() {
    let server = Server::new()
        .script(
            "cgi-bin/whole",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s\\n' $$\ncat > read\ntouch ended\n",
        )
        .start();
    let before = server.idle_fds();
    for ending in [Ending::HalfClose, Ending::Gone] {
        let mut client = server.connect();
        client.send(post(&server, "whole", "\nContent-Length: 300000"));
        client.send(content(150_000));
        client.head().expect("the script runs");
        match ending {
            Ending::HalfClose => {
                client.half_close();
                client.rest();
            }
            Ending::Gone => drop(client),
        }
        server.settles_to(before);
        let ended = server.root().join("cgi-bin/ended");
        assert!(!ended.exists(), "the script took the part for the whole");
    }
}

enum Ending {
    HalfClose,
    Gone,
}

#[test]
fn a_body_that_stops_is_a_timeout_c72() {
    let server = Server::new()
        .script(
            "cgi-bin/whole",
            "#!/bin/sh\nlength=$(wc -c)\ntouch ended\nprintf 'Content-Type: text/plain\\n\\n%s\\n' \"$length\"\n",
        )
        .args(["--body-timeout", "1"])
        .start();
    for (fields, part) in [
        ("\nContent-Length: 100000", &b"hello"[..]),
        ("\nTransfer-Encoding: chunked", b"5\r\nhel"),
    ] {
        let mut client = server.connect();
        client.send(post(&server, "whole", fields));
        client.send(part);
        let response = client.response();
        assert_eq!(response.status, 408, "{fields:?}: {response}");
        assert!(client.is_closed());
    }
    assert!(!server.root().join("cgi-bin/ended").exists());
    assert!(eventually(|| server.children().is_empty()));
}

#[test]
fn a_short_body_that_stops_is_a_timeout_c72() {
    if tiny_http_cannot("show a request before a short body is there") {
        return;
    }
    let server = Server::new()
        .fixture("echo")
        .args(["--body-timeout", "1"])
        .start();
    let mut client = server.connect();
    client.send(post(&server, "echo", "\nContent-Length: 100\n\nhello"));
    assert_eq!(client.response().status, 408);
    assert!(client.is_closed());
}

#[test]
fn a_body_without_a_clear_length_is_refused_c73() {
    let server = Server::new().fixture("echo").start();
    let mut all = Rows::new();
    for (fields, status) in [
        ("Content-Length: 5\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\nContent-Length: 5", 400),
        ("Content-Length: 5\nContent-Length: 6", 400),
        ("Content-Length: 5, 6", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: -5", 400),
        ("Content-Length: 5 5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: 5.0", 400),
        ("Content-Length:", 400),
        ("Content-Length: 99999999999999999999", 400),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: chunked, chunked", 400),
        (
            "Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
            400,
        ),
        ("Transfer-Encoding:", 400),
        ("Transfer-Encoding: identity", 501),
        ("Transfer-Encoding: brotli", 501),
    ] {
        let mut client = server.connect();
        client.send(post(
            &server,
            "echo",
            &format!("\n{fields}\n\n5\r\nhello\r\n0\r\n\r\n"),
        ));
        let response = client.try_response_to("POST");
        let what = format!("C73: {fields:?}");
        let Some(response) = response else {
            all.check(&what, false, || "no answer".to_owned());
            continue;
        };
        all.check(&what, response.status == status, || {
            format!("expected {status}, came {response}")
        });
        let closed = client.is_closed();
        all.check(&what, closed, || "the connection goes on".to_owned());
    }
    all.done();
}

#[test]
fn a_coding_below_chunked_is_refused_c73() {
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    client.send(post(
        &server,
        "echo",
        "\nTransfer-Encoding: gzip, chunked\n\n5\r\nhello\r\n0\r\n\r\n",
    ));
    let response = client.response();
    // It ends in chunked, and is not understood: either word is right.
    assert!(matches!(response.status, 400 | 501), "{response}");
    assert!(client.is_closed());
}

#[test]
fn the_same_length_twice_is_one_length_c73() {
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    client.send(post(
        &server,
        "echo",
        "\nContent-Length: 5\nContent-Length: 5\n\nhello",
    ));
    let response = client.response();
    // RFC 9112 §6.3 leaves both open.
    assert!(
        response.status == 400 || response.text() == "hello",
        "{response}"
    );
}

#[test]
fn broken_chunks_start_no_script_c73_c75() {
    let server = Server::new()
        .script(
            "cgi-bin/mark",
            "#!/bin/sh\ntouch ran\necho Status: 204\necho\n",
        )
        .start();
    let mut all = Rows::new();
    for body in [
        "g\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = server.connect();
        let fields = format!("\nTransfer-Encoding: chunked\n\n{body}");
        client.send(post(&server, "mark", &fields));
        let status = client
            .try_response_to("POST")
            .map(|response| response.status);
        all.check(&format!("C73: {body:?}"), status == Some(400), || {
            format!("{status:?}")
        });
        let closed = client.is_closed();
        all.check(&format!("C73: {body:?}"), closed, || {
            "the connection goes on".to_owned()
        });
    }
    all.done();
    assert!(
        !server.root().join("cgi-bin/ran").exists(),
        "the script ran"
    );
}

#[test]
fn the_coding_of_the_content_is_the_scripts_matter_c74() {
    let server = Server::new().fixture("echo").fixture("env").start();
    let gzip = content(64);
    let coding = [("Content-Encoding", "gzip")];
    let response = server.request("POST", "/cgi-bin/echo", &coding, &gzip);
    assert!(response.body == gzip, "the body came back changed");
    let report = Report::of(&server.request("POST", "/cgi-bin/env", &coding, &gzip));
    assert_eq!(
        report.text("HTTP_CONTENT_ENCODING").as_deref(),
        Some("gzip")
    );
    assert_eq!(report.text("CONTENT_LENGTH").as_deref(), Some("64"));
}

#[test]
fn chunk_extensions_are_ignored_c75() {
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    client.send(post(
        &server,
        "echo",
        "\nTransfer-Encoding: chunked\n\n\
         5;name=value\r\nhello\r\n6 ; a=\"b\"\r\n world\r\n0;last\r\n\r\n",
    ));
    let response = client.response();
    assert_eq!(response.text(), "hello world", "{response}");
}

#[test]
fn trailers_are_dropped_c75() {
    if tiny_http_cannot("take trailers") {
        return;
    }
    let server = Server::new().fixture("env").start();
    let mut client = server.connect();
    client.send(post(
        &server,
        "env",
        "\nTransfer-Encoding: chunked\nTrailer: X-Trailer\n\n\
         5\r\nhello\r\n0\r\nX-Trailer: forged\r\nContent-Length: 9\r\n\r\n",
    ));
    let report = Report::of(&client.response());
    assert_eq!(report.var("HTTP_X_TRAILER"), None);
    assert_eq!(report.text("CONTENT_LENGTH").as_deref(), Some("5"));
    // The next request starts where the trailers end.
    client.send(server.wire(b"GET /cgi-bin/env HTTP/1.1\nHost: {host}"));
    assert_eq!(client.response().status, 200);
}

#[test]
fn a_chunk_extension_is_bounded_c75() {
    if tiny_http_cannot("bound a chunk extension") {
        return;
    }
    let server = Server::new().fixture("echo").start();
    let mut client = server.connect();
    client.send(post(&server, "echo", "\nTransfer-Encoding: chunked"));
    client.send_beside(format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(1 << 20)).into_bytes());
    assert_eq!(client.response().status, 400);
}

#[test]
fn no_request_body_leaves_anything_behind_c62_to_c75() {
    let server = Server::new()
        .fixture("echo")
        .fixture("noread")
        .fixture("outfirst")
        .start();
    let before = server.idle_fds();
    let clients: Vec<Client> = ["echo", "noread", "outfirst"]
        .into_iter()
        .cycle()
        .take(12)
        .map(|script| {
            let mut client = server.connect();
            client.send(post(&server, script, "\nContent-Length: 100000"));
            client.send_beside(content(100_000));
            client
        })
        .collect();
    for mut client in clients {
        assert_eq!(client.response().status, 200);
    }
    server.settles_to(before);
}

#[test]
fn a_slow_upload_does_not_count_as_a_silent_script_c131() {
    let server = Server::new()
        .fixture("echo")
        .args(["--cgi-timeout", "1"])
        .start();
    let mut client = server.connect();
    client
        .send(server.wire(b"POST /cgi-bin/echo HTTP/1.1\nHost: {host}\nContent-Length: 2000\n\n"));
    // Three times as long as the script may be silent, never silent for so long.
    for _ in 0..10 {
        client.send([b'x'; 200]);
        std::thread::sleep(Duration::from_millis(300));
    }
    let response = client.response();
    assert_eq!((response.status, response.body.len()), (200, 2000));
}
