//! What of a script's header goes on, and what the server adds: C101 to C107.

use super::{answer_to, refused};
use crate::support::{Response, Rows, Server};

/// The values of a field that may come more than once.
fn all_of(response: &Response, name: &str) -> Vec<String> {
    let fields = response.headers.iter();
    fields
        .filter(|field| field.0.eq_ignore_ascii_case(name))
        .map(|field| String::from_utf8_lossy(&field.1).into_owned())
        .collect()
}

#[test]
fn fields_of_a_connection_stay_here_c101() {
    let server = Server::new().fixture("hop").start();
    let mut client = server.connect();
    for _ in 0..2 {
        client.send(server.wire(b"GET /cgi-bin/hop HTTP/1.1\nHost: {host}"));
        let response = client.response();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("X-Kept").as_deref(), Some("value"));
        for name in [
            "Connection",
            "Keep-Alive",
            "Proxy-Connection",
            "TE",
            "Trailer",
            "Upgrade",
            "HTTP2-Settings",
            "X-Named",
        ] {
            assert!(all_of(&response, name).is_empty(), "{name}: {response}");
        }
    }
}

#[test]
fn a_wish_to_close_is_honoured_c101() {
    let server = Server::new()
        .prints(
            "cgi-bin/closes",
            "Content-Type: text/plain\nConnection: close\n\nbody\n",
        )
        .start();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/closes HTTP/1.1\nHost: {host}"));
    let response = client.response();
    assert_eq!(response.header("Connection").as_deref(), Some("close"));
    assert_eq!(response.text(), "body\n");
    assert!(response.complete && client.is_closed());
}

#[test]
fn a_body_the_script_has_chunked_is_decoded_c102() {
    let server = Server::new().fixture("te").start();
    let new = server.get("/cgi-bin/te");
    assert_eq!(new.text(), "hello world");
    assert!(new.complete);
    let old = server
        .ask("GET /cgi-bin/te HTTP/1.0")
        .expect("it is answered");
    assert_eq!(old.text(), "hello world");
    assert_eq!(old.header("Transfer-Encoding"), None);
}

#[test]
fn broken_chunks_of_a_script_show_as_a_cut_c102() {
    for body in ["5\r\nhel", "5\r\nhello\r\nzz\r\n", "5\r\nhello\r\n"] {
        let response = answer_to(format!(
            "Content-Type: text/plain\nTransfer-Encoding: chunked\n\n{body}"
        ));
        assert_eq!(response.status, 200);
        assert!(!response.complete, "{body:?}: {response}");
    }
}

#[test]
fn another_coding_can_not_be_undone_c102() {
    refused(&[
        (
            "C102",
            b"Content-Type: text/plain\nTransfer-Encoding: gzip\n\nSECRET BODY",
            "gzip",
        ),
        (
            "C102",
            b"Content-Type: text/plain\nTransfer-Encoding: gzip, chunked\n\nSECRET BODY",
            "gzip",
        ),
    ]);
}

#[test]
fn there_is_one_date_and_one_server_c103() {
    let server = Server::new()
        .fixture("cookies")
        .fixture("noread")
        .prints(
            "cgi-bin/nodate",
            "Content-Type: text/plain\nDate: yesterday\nServer: a/1\nServer: b/2\n\nbody\n",
        )
        .start();
    let own = server.get("/cgi-bin/noread");
    let [name] = all_of(&own, "Server").try_into().expect("one Server");
    let own_dates = all_of(&own, "Date");
    assert_eq!(own_dates.len(), 1);
    assert!(httpdate::parse_http_date(&own_dates[0]).is_ok());

    let theirs = server.get("/cgi-bin/cookies");
    assert_eq!(all_of(&theirs, "Server"), ["script/1.0"]);
    assert_eq!(all_of(&theirs, "Date"), ["Mon, 01 Jan 2024 00:00:00 GMT"]);

    let broken = server.get("/cgi-bin/nodate");
    assert_eq!(all_of(&broken, "Server").len(), 1, "{broken}");
    let dates = all_of(&broken, "Date");
    assert_eq!(dates.len(), 1, "{broken}");
    assert!(httpdate::parse_http_date(&dates[0]).is_ok(), "{broken}");
    assert!(name.starts_with("serve-here/"));
}

#[test]
fn repeated_fields_keep_their_lines_and_order_c104() {
    let server = Server::new().fixture("cookies").start();
    let response = server.get("/cgi-bin/cookies");
    assert_eq!(
        all_of(&response, "Set-Cookie"),
        ["a=1; Path=/", "b=2; Path=/"]
    );

    let response = answer_to(
        "Content-Type: text/plain\nLink: <3>\nSet-Cookie: z=1\nLink: <1>\nset-cookie: a=1\nLink: <2>\n\n",
    );
    assert_eq!(all_of(&response, "Link"), ["<3>", "<1>", "<2>"]);
    assert_eq!(all_of(&response, "Set-Cookie"), ["z=1", "a=1"]);
}

#[test]
fn extension_fields_are_removed_and_others_pass_c105() {
    let response = answer_to(
        "Content-Type: text/plain\nX-CGI-Test: a\nx-cgi-other: b\nX-Cgi: kept\n\
         Access-Control-Allow-Origin: *\nCache-Control: no-store\nWWW-Authenticate: Basic realm=\"x\"\n\
         Link: </a>\nContent-Encoding: br\nETag: \"e\"\nExpires: 0\nVary: Cookie\nRetry-After: 3\n\nbody",
    );
    for (name, value) in [
        ("X-CGI-Test", None),
        ("X-CGI-Other", None),
        ("X-Cgi", Some("kept")),
        ("Access-Control-Allow-Origin", Some("*")),
        ("Cache-Control", Some("no-store")),
        ("WWW-Authenticate", Some("Basic realm=\"x\"")),
        ("Link", Some("</a>")),
        ("Content-Encoding", Some("br")),
        ("ETag", Some("\"e\"")),
        ("Expires", Some("0")),
        ("Vary", Some("Cookie")),
        ("Retry-After", Some("3")),
    ] {
        assert_eq!(response.header(name).as_deref(), value, "{name}");
    }
}

#[test]
fn a_file_to_send_is_ignored_unless_enabled_c106() {
    let mut all = Rows::new();
    for name in ["X-Sendfile", "X-LIGHTTPD-send-file", "X-Accel-Redirect"] {
        let server = Server::new()
            .file("private.txt", "SECRET BODY")
            .prints(
                "cgi-bin/send",
                format!("Content-Type: text/plain\n{name}: /private.txt\n\nown body\n"),
            )
            .start();
        let response = server.get("/cgi-bin/send");
        let holds = response.header(name).is_none() && response.text() == "own body\n";
        all.check(&format!("C106: {name}"), holds, || response.to_string());
        server.wait_for_log("cgi 'cgi-bin/send': X-Sendfile or the like is ignored");
    }
    all.done();
}

#[test]
fn a_file_to_send_is_sent_from_the_folder_for_it_c106() {
    let private = tempfile::tempdir().unwrap();
    let folder = std::fs::canonicalize(private.path()).unwrap();
    std::fs::write(folder.join("a file.txt"), "private file\n").unwrap();
    let mut setup = Server::new().arg("--cgi-sendfile").arg(&folder);
    let names = [
        folder.join("a file.txt").display().to_string(),
        "a file.txt".to_owned(),
    ];
    for (n, name) in names.iter().enumerate() {
        setup = setup.prints(
            format!("cgi-bin/{n}"),
            format!("X-Sendfile: {name}\nContent-Type: text/x-a\nX-Kept: a\n\nSECRET BODY"),
        );
    }
    let server = setup.start();
    for n in 0..names.len() {
        let target = format!("/cgi-bin/{n}");
        let whole = server.get(&target);
        assert_eq!(whole.status, 200, "{whole}");
        assert_eq!(whole.text(), "private file\n");
        assert_eq!(whole.header("X-Sendfile"), None);
        assert_eq!(whole.header("Content-Type").as_deref(), Some("text/x-a"));
        assert_eq!(whole.header("X-Kept").as_deref(), Some("a"));

        let part = server.request("GET", &target, &[("Range", "bytes=8-11")], b"");
        assert_eq!((part.status, &*part.text()), (206, "file"), "{part}");

        let tag = whole.header("ETag").expect("a file has a tag");
        let known = server.request("GET", &target, &[("If-None-Match", &tag)], b"");
        assert_eq!(known.status, 304, "{known}");
    }
}

#[test]
fn a_file_to_send_keeps_the_status_and_every_cookie_of_its_script_c106() {
    let private = tempfile::tempdir().unwrap();
    std::fs::write(private.path().join("page"), "not here\n").unwrap();
    let head = "Status: 404 Not Found\nX-Sendfile: page\nContent-Type: text/plain";
    let server = Server::new()
        .arg("--cgi-sendfile")
        .arg(private.path())
        .prints(
            "cgi-bin/x",
            format!("{head}\nSet-Cookie: a=1\nSet-Cookie: b=2\n\n"),
        )
        .start();
    for method in ["GET", "POST"] {
        let response = server.request(method, "/cgi-bin/x", &[("Range", "bytes=0-1")], b"");
        assert_eq!((response.status, &*response.text()), (404, "not here\n"));
        let names = response.headers.iter().map(|(name, _)| name);
        let cookies = names.filter(|name| name.eq_ignore_ascii_case("set-cookie"));
        assert_eq!(cookies.count(), 2, "{response}");
    }
}

#[test]
fn a_file_to_send_never_leads_out_of_the_folder_c106() {
    let private = tempfile::tempdir().unwrap();
    let folder = std::fs::canonicalize(private.path()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    let names = [
        "/etc/passwd".to_owned(),
        "../etc/passwd".to_owned(),
        format!("{}/../../etc/passwd", folder.display()),
        format!("{}/link", folder.display()),
        "link".to_owned(),
        "nothing".to_owned(),
    ];
    let mut setup = Server::new().arg("--cgi-sendfile").arg(&folder);
    for (n, name) in names.iter().enumerate() {
        setup = setup.prints(
            format!("cgi-bin/{n}"),
            format!("X-Sendfile: {name}\nContent-Type: text/plain\n\nSECRET BODY"),
        );
    }
    let server = setup.start();
    let mut all = Rows::new();
    for (n, name) in names.iter().enumerate() {
        let response = server.get(format!("/cgi-bin/{n}"));
        let text = response.text();
        let shows = text.contains("root:") || text.contains("SECRET") || text.contains("/etc");
        let holds = response.status >= 400 && !shows;
        all.check(&format!("C106: {name}"), holds, || response.to_string());
    }
    all.done();
}

#[test]
fn the_server_adds_no_validators_and_applies_none_c107() {
    let server = Server::new()
        .fixture("noread")
        .prints(
            "cgi-bin/tagged",
            "Content-Type: text/plain\nETag: \"e\"\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\n\n0123456789",
        )
        .start();
    let plain = server.get("/cgi-bin/noread");
    for name in ["Last-Modified", "ETag", "Accept-Ranges", "Cache-Control"] {
        assert_eq!(plain.header(name), None, "{plain}");
    }
    for field in [
        ("Range", "bytes=2-4"),
        ("If-None-Match", "\"e\""),
        ("If-Match", "\"other\""),
        ("If-Modified-Since", "Mon, 01 Jan 2024 00:00:00 GMT"),
    ] {
        let response = server.request("GET", "/cgi-bin/tagged", &[field], b"");
        assert_eq!(response.status, 200, "{field:?}: {response}");
        assert_eq!(response.text(), "0123456789");
        assert_eq!(response.header("Content-Range"), None);
    }
}
