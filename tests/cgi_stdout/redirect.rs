//! The kinds of response (RFC 3875 §6.2): C92 to C100.

use std::fs;

use super::{answer_to, printing};
use crate::support::{Report, Rows, Server};

#[test]
fn a_type_and_a_body_are_a_document_c92() {
    let response = answer_to("Content-Type: text/html\n\n<p>document\n");
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("Content-Type").as_deref(),
        Some("text/html")
    );
    assert_eq!(response.text(), "<p>document\n");
    assert_eq!(response.header("Location"), None);
}

#[test]
fn a_path_alone_is_answered_here_c93() {
    let server = Server::new()
        .fixture("loc")
        .fixture("env")
        .file("page.txt", "static page\n")
        .prints("cgi-bin/blank", "Location: /page.txt\n\n\n  \r\n")
        .start();
    let response = server.get("/cgi-bin/loc?/cgi-bin/env/extra?a=b");
    assert_eq!(response.header("Location"), None);
    let report = Report::of(&response);
    assert_eq!(report.text("PATH_INFO").as_deref(), Some("/extra"));

    for target in ["/cgi-bin/loc?/page.txt", "/cgi-bin/blank"] {
        let page = server.get(target);
        assert_eq!(page.status, 200, "{page}");
        assert_eq!(page.text(), "static page\n");
        assert_eq!(page.header("Location"), None);
    }
}

#[test]
fn a_path_with_anything_else_is_the_clients_to_follow_c94() {
    let server = Server::new()
        .fixture("locplus")
        .prints(
            "cgi-bin/body",
            "Location: /there\nContent-Type: text/html\n\n<p>over there\n",
        )
        .prints("cgi-bin/bare", "Location: /there\n\nover there\n")
        .prints(
            "cgi-bin/typed",
            "Location: /there\nContent-Type: text/html\n\n",
        )
        .file("there", "not to be fetched from here\n")
        .start();
    let plus = server.get("/cgi-bin/locplus?/there");
    assert_eq!(plus.status, 302, "{plus}");
    assert_eq!(plus.header("Location").as_deref(), Some("/there"));
    assert_eq!(plus.header("Set-Cookie").as_deref(), Some("a=b"));
    for (script, body) in [
        ("body", "<p>over there\n"),
        ("bare", "over there\n"),
        ("typed", ""),
    ] {
        let response = server.get(format!("/cgi-bin/{script}"));
        assert_eq!(response.status, 302, "{response}");
        assert_eq!(response.header("Location").as_deref(), Some("/there"));
        assert_eq!(response.text(), body);
    }
}

#[test]
fn with_a_status_nothing_is_followed_here_c95() {
    let server = Server::new()
        .fixture("locdoc")
        .prints("cgi-bin/plain", "Status: 302\nLocation: /there\n\n")
        .prints(
            "cgi-bin/created",
            "Status: 201\nLocation: /there\nContent-Type: text/plain\n\nmade\n",
        )
        .file("there", "not to be fetched from here\n")
        .start();
    for (target, status) in [
        ("/cgi-bin/locdoc?/there", 303),
        ("/cgi-bin/plain", 302),
        ("/cgi-bin/created", 201),
    ] {
        let response = server.get(target);
        assert_eq!(response.status, status, "{response}");
        assert_eq!(response.header("Location").as_deref(), Some("/there"));
        assert!(!response.text().contains("not to be fetched"));
    }
    assert_eq!(server.get("/cgi-bin/created").text(), "made\n");
}

#[test]
fn the_request_inside_is_a_get_without_a_body_c96() {
    let server = Server::new().fixture("loc").fixture("env").start();
    let fields = [("Content-Type", "text/x-a"), ("X-Kept", "yes")];
    let target = "/cgi-bin/loc?/cgi-bin/./env/a%2520b?x=%31%23frag";
    let response = server.request("POST", target, &fields, b"a body");
    let report = Report::of(&response);
    let root = fs::canonicalize(server.root()).unwrap();
    let script = root.join("cgi-bin/env");
    let mut all = Rows::new();
    for (name, expected) in [
        ("REQUEST_METHOD", Some("GET")),
        ("CONTENT_LENGTH", None),
        ("CONTENT_TYPE", None),
        ("HTTP_CONTENT_LENGTH", None),
        ("HTTP_X_KEPT", Some("yes")),
        ("SCRIPT_NAME", Some("/cgi-bin/env")),
        ("PATH_INFO", Some("/a%20b")),
        ("QUERY_STRING", Some("x=%31%23frag")),
        ("SCRIPT_FILENAME", script.to_str()),
    ] {
        let value = report.text(name);
        all.check(
            &format!("C96: {name}"),
            value.as_deref() == expected,
            || format!("is {value:?}, expected {expected:?}"),
        );
    }
    all.done();
}

#[test]
fn a_fragment_is_dropped_c96() {
    let server = Server::new()
        .fixture("env")
        .prints("cgi-bin/go", "Location: /cgi-bin/env?a=b#part\n\n")
        .start();
    let report = server.report("/cgi-bin/go");
    assert_eq!(report.text("QUERY_STRING").as_deref(), Some("a=b"));
}

#[test]
fn a_head_stays_a_head_c96() {
    let server = Server::new()
        .fixture("loc")
        .script(
            "cgi-bin/method",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\nX-Method: %s\\n\\nbody\\n' $REQUEST_METHOD\n",
        )
        .file("page.txt", "static page\n")
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"HEAD /cgi-bin/loc?/cgi-bin/method HTTP/1.1\nHost: {host}"));
    let response = client.response_to("HEAD");
    assert_eq!(response.header("X-Method").as_deref(), Some("HEAD"));
    client.send(server.wire(b"HEAD /cgi-bin/loc?/page.txt HTTP/1.1\nHost: {host}"));
    let response = client.response_to("HEAD");
    assert_eq!(response.header("Content-Length").as_deref(), Some("12"));
    // A body would now stand before this answer.
    client.send(server.wire(b"GET /page.txt HTTP/1.1\nHost: {host}"));
    assert_eq!(client.response().text(), "static page\n");
}

#[test]
fn access_rules_apply_to_the_new_path_c96() {
    let server = Server::new()
        .fixture("loc")
        .fixture("nonexec")
        .fixture(".hidden")
        .file(".secret", "SECRET")
        .start();
    let mut all = Rows::new();
    for (location, statuses) in [
        ("/cgi-bin/nonexec", &[403][..]),
        ("/cgi-bin/.hidden", &[404]),
        ("/.secret", &[404]),
        ("/nothing", &[404]),
        ("/../etc/passwd", &[400, 500]),
        ("/%2e%2e/%2e%2e/etc/passwd", &[400, 500]),
        ("/%zz", &[400, 500]),
    ] {
        let response = server.get(format!("/cgi-bin/loc?{location}"));
        let holds = statuses.contains(&response.status) && !response.text().contains("root:");
        all.check(&format!("C96: {location}"), holds, || response.to_string());
    }
    all.done();
}

#[test]
fn the_target_learns_where_it_was_called_from_c97() {
    let server = Server::new()
        .fixture("env")
        .prints("cgi-bin/go", "Location: /cgi-bin/env?new=1\n\n");
    let server = server.start();
    for (method, query) in [("GET", ""), ("GET", "?old=%31"), ("POST", "?old")] {
        let target = format!("/cgi-bin/go/info{query}");
        let report = Report::of(&server.request(method, &target, &[], b""));
        let text = |name: &str| report.text(name).unwrap_or_default();
        assert_eq!(text("REDIRECT_STATUS"), "200");
        assert_eq!(text("REDIRECT_URL"), "/cgi-bin/go/info");
        assert_eq!(text("REDIRECT_REQUEST_METHOD"), method);
        assert_eq!(text("REQUEST_URI"), target);
        assert_eq!(text("QUERY_STRING"), "new=1");
        let old = (!query.is_empty()).then(|| query[1..].to_owned());
        assert_eq!(report.text("REDIRECT_QUERY_STRING"), old);
    }
}

#[test]
fn ten_redirects_are_followed_and_no_more_c98() {
    let server = Server::new()
        .fixture("loop")
        .script(
            "cgi-bin/down",
            "#!/bin/sh\nif [ \"$QUERY_STRING\" -gt 0 ]; then\n\
             printf 'Location: %s?%s\\n\\n' \"$SCRIPT_NAME\" $((QUERY_STRING - 1))\n\
             else printf 'Content-Type: text/plain\\n\\narrived'; fi\n",
        )
        .start();
    assert_eq!(server.get("/cgi-bin/down?10").text(), "arrived");
    assert_eq!(server.get("/cgi-bin/down?11").status, 500);
    let round = server.get("/cgi-bin/loop");
    assert_eq!(round.status, 500, "{round}");
    server.wait_for_log("cgi 'cgi-bin/loop': more than 10 local redirects (redirect-loop");
}

#[test]
fn two_slashes_are_a_path_and_no_other_host_c98() {
    let server = Server::new()
        .file("host/x", "local\n")
        .prints("cgi-bin/inner", "Location: //host/x\n\n")
        .prints("cgi-bin/outer", "Location: //host/x\nX-Other: a\n\n")
        .prints("cgi-bin/back", "Location: /\\host/x\nX-Other: a\n\n")
        .start();
    let inner = server.get("/cgi-bin/inner");
    assert_eq!((inner.status, &*inner.text()), (200, "local\n"));
    for script in ["outer", "back"] {
        let response = server.get(format!("/cgi-bin/{script}"));
        let location = response.header("Location").unwrap_or_default();
        assert!(
            location.starts_with('/') && !location[1..].starts_with(['/', '\\']),
            "{response}"
        );
    }
}

#[test]
fn another_address_is_sent_to_the_client_c99() {
    let mut all = Rows::new();
    for (location, shown) in [
        ("http://other.example/a?b", "http://other.example/a?b"),
        ("next.html", "next.html"),
        ("?page=2", "?page=2"),
        ("mailto:a@b.example", "mailto:a@b.example"),
        (
            "http://other.example/?a=1&b=\"<x>",
            "http://other.example/?a=1&amp;b=&quot;&lt;x&gt;",
        ),
    ] {
        let server = printing([format!("Location: {location}\n\n").as_bytes()]);
        let response = server.get("/cgi-bin/0");
        let sent = response.header("Location");
        let holds = response.status == 302
            && sent.as_deref() == Some(location)
            && response
                .header("Content-Type")
                .is_some_and(|t| t.starts_with("text/html"))
            && response.text().contains(shown)
            && response.complete;
        all.check(&format!("C99: {location}"), holds, || response.to_string());

        let mut client = server.connect();
        client.send(server.wire(b"HEAD /cgi-bin/0 HTTP/1.1\nHost: {host}\nConnection: close"));
        let head = client.response_to("HEAD");
        let holds = head.header("Location") == sent && client.is_closed();
        all.check(&format!("C99: HEAD {location}"), holds, || head.to_string());
    }
    all.done();
}

#[test]
fn a_redirect_with_a_document_is_sent_whole_c100() {
    let server = Server::new().fixture("locdoc").start();
    let response = server.get("/cgi-bin/locdoc?http://other.example/");
    assert_eq!((response.status, &*response.reason), (303, "See Other"));
    let field = |name| response.header(name).unwrap_or_default();
    assert_eq!(field("Location"), "http://other.example/");
    assert_eq!(field("Content-Type"), "text/html");
    assert_eq!(response.text(), "<p>see there\n");
}

#[test]
fn a_redirect_does_not_wait_for_a_script_that_works_on_c86_c99() {
    // Held open until the client has its answer: a wait would never end.
    let work = "#!/bin/sh\necho 'Location: TARGET'\necho\nread line < gate\n";
    for (location, status) in [("http://other.example/", 302), ("/hello.txt", 200)] {
        let server = Server::new()
            .file("hello.txt", "hello\n")
            .script("cgi-bin/works", work.replace("TARGET", location))
            .fifo("cgi-bin/gate")
            .start();
        let mut client = server.connect();
        client.send(server.wire(b"GET /cgi-bin/works HTTP/1.1\nHost: {host}"));
        let head = client.head().expect("it comes before the script ends");
        assert_eq!(head.status, status, "{location}");
        fs::write(server.root().join("cgi-bin/gate"), "\n").expect("the script reads it");
    }
}
