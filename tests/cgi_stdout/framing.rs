//! How the client sees where a script's body ends: C108 to C114.

use super::printing;
use crate::support::{Response, Rows, Server, eventually};

const GET: &str = "GET /cgi-bin/0 HTTP/1.1\nHost: {host}";

/// Two requests on one connection; the second shows that the first has left
/// nothing behind.
fn twice(server: &Server, request: &str) -> Response {
    let method = request.split(' ').next().unwrap();
    let mut client = server.connect();
    client.send(server.wire(request.as_bytes()));
    let first = client.response_to(method);
    client.send(server.wire(request.as_bytes()));
    let second = client.response_to(method);
    assert_eq!(first.status, second.status, "{first}\nthen\n{second}");
    assert!(first.body == second.body, "{first}\nthen\n{second}");
    second
}

#[test]
fn without_a_length_http_1_1_is_chunked_and_goes_on_c108() {
    let server = printing([&b"Content-Type: text/plain\n\nbody\n"[..]]);
    let response = twice(&server, GET);
    assert_eq!(response.text(), "body\n");
    assert!(response.complete);
    assert_eq!(response.header("Connection"), None);
}

#[test]
fn without_a_length_http_1_0_ends_with_the_connection_c108() {
    let server = printing([&b"Content-Type: text/plain\n\nbody\n"[..]]);
    for fields in ["", "\nConnection: keep-alive"] {
        let response = server
            .ask(format!("GET /cgi-bin/0 HTTP/1.0{fields}"))
            .expect("it is answered");
        assert_eq!(response.header("Connection").as_deref(), Some("close"));
        assert_eq!(response.header("Content-Length"), None);
        assert_eq!(response.text(), "body\n");
        assert!(response.complete, "it ended with a reset");
    }
}

#[test]
fn with_a_length_http_1_0_may_go_on_c108() {
    let server = printing([&b"Content-Type: text/plain\nContent-Length: 5\n\nbody\n"[..]]);
    let response = twice(&server, "GET /cgi-bin/0 HTTP/1.0\nConnection: keep-alive");
    assert_eq!(response.text(), "body\n");
    assert_eq!(
        response
            .header("Connection")
            .map(|value| value.to_lowercase()),
        Some("keep-alive".to_owned())
    );
}

#[test]
fn a_script_that_ends_at_once_is_framed_like_any_other_c109() {
    let server = printing([&b"Content-Type: text/plain\n\n"[..]]);
    // Length or chunks: the client takes either, and neither may miss.
    let response = twice(&server, GET);
    assert_eq!(response.text(), "");
    assert!(response.complete);
}

#[test]
fn a_body_longer_than_announced_is_cut_there_c110() {
    let server = Server::new().fixture("cllong").start();
    let response = twice(&server, "GET /cgi-bin/cllong HTTP/1.1\nHost: {host}");
    assert_eq!(response.header("Content-Length").as_deref(), Some("5"));
    assert_eq!(response.text(), "exact");
    server.wait_for_log("cgi 'cgi-bin/cllong': more output than its Content-Length");
}

#[test]
fn what_is_too_much_is_drained_c110() {
    let server = Server::new()
        .script(
            "cgi-bin/more",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\nContent-Length: 5\\n\\n'\n\
             head -c 1000000 /dev/zero && touch ../wrote-all\n",
        )
        .start();
    assert_eq!(server.get("/cgi-bin/more").body, [0; 5]);
    assert!(eventually(|| server.root().join("wrote-all").exists()));
}

#[test]
fn a_body_shorter_than_announced_shows_as_cut_c110() {
    let server = Server::new().fixture("clshort").start();
    for request in [
        "GET /cgi-bin/clshort HTTP/1.1\nHost: {host}",
        "GET /cgi-bin/clshort HTTP/1.0\nConnection: keep-alive",
    ] {
        let mut client = server.connect();
        client.send(server.wire(request.as_bytes()));
        let response = client.response();
        assert_eq!(response.header("Content-Length").as_deref(), Some("100"));
        assert_eq!(response.text(), "short\n", "padded or held back");
        assert!(!response.complete);
        assert!(client.is_closed());
    }
    server.wait_for_log("cgi 'cgi-bin/clshort': less output than it announced");
}

#[test]
fn a_length_that_is_none_is_dropped_c111() {
    let lengths = [
        "abc",
        "+5",
        "-5",
        "0x5",
        "5.0",
        "5 5",
        "5, 5",
        "99999999999999999999999",
    ];
    let outputs: Vec<String> = lengths
        .iter()
        .map(|length| format!("Content-Type: text/plain\nContent-Length: {length}\n\nbody\n"))
        .chain(["Content-Type: text/plain\nContent-Length: 5\nContent-Length: 6\n\nbody\n".into()])
        .collect();
    let server = printing(outputs.iter().map(String::as_bytes));
    let mut all = Rows::new();
    for (n, output) in outputs.iter().enumerate() {
        let response = server.get(format!("/cgi-bin/{n}"));
        let holds = response.status == 200
            && response.header("Content-Length").is_none()
            && response.complete
            && response.text() == "body\n";
        all.check(&format!("C111: {output:?}"), holds, || response.to_string());
        let line = server.log_line(&format!("cgi 'cgi-bin/{n}': "));
        all.check(output, line.contains("Content-Length"), || line.clone());
    }
    all.done();
}

#[test]
fn the_same_length_twice_is_one_length_c111() {
    let server = printing([
        &b"Content-Type: text/plain\nContent-Length: 5\nContent-Length: 5\n\nbody\n"[..],
    ]);
    let response = twice(&server, GET);
    assert_eq!(response.header("Content-Length").as_deref(), Some("5"));
    assert_eq!(response.text(), "body\n");
}

#[test]
fn an_answer_to_head_has_the_header_of_get_and_no_body_c112() {
    let server = printing([
        &b"Content-Type: text/x-a\nX-Kept: a\nStatus: 203\n\nbody\n"[..],
        b"Content-Type: text/x-a\nContent-Length: 5\n\nbody\n",
    ]);
    for n in 0..2 {
        let get = server.get(format!("/cgi-bin/{n}"));
        let request = format!("HEAD /cgi-bin/{n} HTTP/1.1\nHost: {{host}}");
        // A body byte would stand before the second answer.
        let head = twice(&server, &request);
        assert_eq!((head.status, &head.reason), (get.status, &get.reason));
        for name in ["Content-Type", "X-Kept"] {
            assert_eq!(head.header(name), get.header(name), "{name}");
        }
    }
    let length = |n| {
        let request = format!("HEAD /cgi-bin/{n} HTTP/1.1\nHost: {{host}}");
        twice(&server, &request).header("Content-Length")
    };
    assert_eq!(length(0), None, "none is invented");
    assert_eq!(length(1).as_deref(), Some("5"), "the script's is forwarded");
}

#[test]
fn a_body_nobody_sees_is_read_to_its_end_c112_c113() {
    let server = Server::new()
        .script(
            "cgi-bin/much",
            "#!/bin/sh\n[ \"$QUERY_STRING\" = \"\" ] || echo \"Status: $QUERY_STRING\"\n\
             printf 'Content-Type: text/plain\\n\\n'\n\
             head -c 1000000 /dev/zero && touch \"../$REQUEST_METHOD-$QUERY_STRING\"\n",
        )
        .start();
    for (method, query) in [("HEAD", ""), ("GET", "204"), ("GET", "304"), ("GET", "205")] {
        let request = format!("{method} /cgi-bin/much?{query} HTTP/1.1\nHost: {{host}}");
        let response = twice(&server, &request);
        assert!(response.body.is_empty(), "{response}");
        let done = server.root().join(format!("{method}-{query}"));
        assert!(
            eventually(|| done.exists()),
            "{method} {query}: it was stopped"
        );
    }
}

#[test]
fn some_statuses_have_no_body_c113() {
    let body = "Content-Type: text/plain\n\nbody\n";
    let long = "Content-Type: text/plain\nContent-Length: 5\n\nbody\n";
    let outputs: Vec<String> = [204, 304, 205]
        .iter()
        .flat_map(|status| [body, long].map(|rest| format!("Status: {status}\n{rest}")))
        .collect();
    let server = printing(outputs.iter().map(String::as_bytes));
    let mut all = Rows::new();
    for (n, output) in outputs.iter().enumerate() {
        let response = twice(
            &server,
            &format!("GET /cgi-bin/{n} HTTP/1.1\nHost: {{host}}"),
        );
        let length = response.header("Content-Length");
        let length_holds = match response.status {
            204 => length.is_none(),
            205 => length.as_deref() == Some("0"),
            _ => length.is_none_or(|length| length == "5"),
        };
        let holds = response.body.is_empty()
            && length_holds
            && response.header("Transfer-Encoding").is_none();
        all.check(&format!("C113: {output:?}"), holds, || response.to_string());
    }
    all.done();
}

#[test]
fn http_1_0_never_sees_a_transfer_coding_c114() {
    let mut all = Rows::new();
    let names = [
        "te", "hop", "clbad", "noread", "cookies", "dup", "loc", "exit1", "early",
    ];
    let setup = names
        .iter()
        .fold(Server::new(), |setup, name| setup.fixture(name));
    let server = setup.file("static.txt", "static\n").start();
    let targets = names.iter().map(|name| format!("/cgi-bin/{name}"));
    for target in targets.chain(["/static.txt".to_owned(), "/".to_owned()]) {
        for method in ["GET", "HEAD"] {
            let what = format!("{method} {target} HTTP/1.0\nConnection: keep-alive");
            let Some(response) = server.ask(&what) else {
                all.check(&what, false, || "no answer".to_owned());
                continue;
            };
            let coding = response.header("Transfer-Encoding");
            all.check(&what, coding.is_none(), || response.to_string());
        }
    }
    all.done();
}
