//! Files over HTTP (RFC 9110): methods, media types, conditional requests,
//! ranges, what an edit changes, error pages.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::support::{Response, Rows, Server, Setup};

/// Long ago, so that a date names the file's state for good.
const MODIFIED: &str = "Mon, 01 Jan 2024 00:00:00 GMT";

fn set_modified(path: &Path, date: &str) {
    let date = httpdate::parse_http_date(date).expect("it is an HTTP-date");
    let file = fs::File::options().append(true).open(path);
    file.and_then(|file| file.set_modified(date))
        .expect("the file is the test's own");
}

/// `file.txt` of 1000 bytes, the tens numbered, of a known date.
fn thousand_bytes() -> (Setup, Vec<u8>) {
    let content: Vec<u8> = (0..100)
        .flat_map(|ten| format!("{ten:09}\n").into_bytes())
        .collect();
    let setup = Server::new().file("file.txt", &content);
    set_modified(&setup.root().join("file.txt"), MODIFIED);
    (setup, content)
}

fn status_and(response: &Response, names: &[&str]) -> String {
    let fields = names
        .iter()
        .filter_map(|name| Some(format!(" {name}: {}", response.header(name)?)));
    format!("{}{}", response.status, fields.collect::<String>())
}

#[test]
fn each_method_has_its_answer() {
    let server = Server::new()
        .file("file.txt", "content\n")
        .file("folder/inside", "")
        .start();
    let mut rows = Rows::new();
    for (method, target, expected) in [
        ("GET", "/file.txt", "200"),
        ("HEAD", "/file.txt", "200"),
        ("GET", "/folder/", "200"),
        ("HEAD", "/folder/", "200"),
        ("OPTIONS", "/file.txt", "204 Allow: GET, HEAD, OPTIONS"),
        ("OPTIONS", "/folder/", "204 Allow: GET, HEAD, OPTIONS"),
        ("OPTIONS", "*", "204 Allow: GET, HEAD, POST, OPTIONS"),
        ("POST", "/file.txt", "405 Allow: GET, HEAD, OPTIONS"),
        ("PUT", "/file.txt", "405 Allow: GET, HEAD, OPTIONS"),
        ("DELETE", "/file.txt", "405 Allow: GET, HEAD, OPTIONS"),
        ("PATCH", "/folder/", "405 Allow: GET, HEAD, OPTIONS"),
        ("PROPFIND", "/folder/", "405 Allow: GET, HEAD, OPTIONS"),
        ("get", "/file.txt", "405 Allow: GET, HEAD, OPTIONS"),
        ("TRACE", "/file.txt", "405 Allow: GET, HEAD, POST, OPTIONS"),
        // Whether or not there is something.
        ("POST", "/nothing", "405 Allow: GET, HEAD, OPTIONS"),
        ("OPTIONS", "/nothing", "404"),
    ] {
        let response = server.request(method, target, &[], b"");
        let saw = status_and(&response, &["Allow"]);
        rows.check(&format!("{method} {target}"), saw == expected, || saw);
    }
    rows.done();
    let kept = fs::read_to_string(server.root().join("file.txt"));
    assert_eq!(kept.expect("it is there"), "content\n");
}

#[test]
fn head_has_the_header_of_get_and_no_body() {
    let server = Server::new()
        .file("file.txt", "content\n")
        .file("folder/inside", "")
        .start();
    for target in ["/file.txt", "/folder/", "/nothing"] {
        let [get, head] = ["GET", "HEAD"].map(|method| {
            let response = server.request(method, target, &[], b"");
            let fields: Vec<(String, Vec<u8>)> = response
                .headers
                .iter()
                .filter(|(name, _)| name != "Date")
                .cloned()
                .collect();
            (response.status, fields)
        });
        assert_eq!(get, head, "{target}");
    }
}

#[test]
fn a_file_has_the_media_type_that_makes_browsers_show_it_right() {
    let mut rows = Rows::new();
    let utf8 = "caf\u{e9}\n".as_bytes();
    let latin1 = b"caf\xe9\n".as_slice();
    let binary = b"\0\x01\x02".as_slice();
    let table = [
        ("page.html", utf8, "text/html; charset=utf-8"),
        ("PAGE.HTM", utf8, "text/html; charset=utf-8"),
        ("old.html", latin1, "text/html"),
        ("style.css", utf8, "text/css; charset=utf-8"),
        ("code.js", utf8, "text/javascript; charset=utf-8"),
        ("code.mjs", utf8, "text/javascript; charset=utf-8"),
        ("notes.txt", utf8, "text/plain; charset=utf-8"),
        ("notes.md", utf8, "text/plain; charset=utf-8"),
        ("main.rs", utf8, "text/plain; charset=utf-8"),
        ("README", utf8, "text/plain; charset=utf-8"),
        ("blob", binary, "application/octet-stream"),
        ("data.json", utf8, "application/json; charset=utf-8"),
        ("picture.png", binary, "image/png"),
        ("picture.jpg", binary, "image/jpeg"),
        ("picture.webp", binary, "image/webp"),
        ("drawing.svg", utf8, "image/svg+xml; charset=utf-8"),
        ("film.mp4", binary, "video/mp4"),
        ("program.wasm", binary, "application/wasm"),
        ("paper.pdf", binary, "application/pdf"),
        ("archive.tar.gz", binary, "application/gzip"),
        ("font.woff2", binary, "font/woff2"),
    ];
    let setup = table.iter().fold(Server::new(), |setup, (name, bytes, _)| {
        setup.file(name, bytes)
    });
    let server = setup.start();
    for (name, _, expected) in table {
        let response = server.get(format!("/{name}"));
        let saw = status_and(&response, &["Content-Type", "X-Content-Type-Options"]);
        let expected = format!("200 Content-Type: {expected} X-Content-Type-Options: nosniff");
        rows.check(name, saw == expected, || saw);
    }
    rows.done();
}

#[test]
fn each_precondition_is_evaluated_as_rfc_9110_13_has_it() {
    let (setup, content) = thousand_bytes();
    let server = setup.start();
    let first = server.get("/file.txt");
    assert_eq!(first.header("Last-Modified").as_deref(), Some(MODIFIED));
    // Just written: a tag that is strong by the content.
    let tag = first.header("ETag").expect("a file has a tag");
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    let weak = format!("W/{tag}");
    let list = format!("\"a\", {weak} , \"b\"");
    let before = "Sun, 31 Dec 2023 23:59:59 GMT";
    let after = "Mon, 01 Jan 2024 00:00:01 GMT";
    let mut rows = Rows::new();
    for (headers, expected) in [
        (&[("If-None-Match", &*tag)][..], 304),
        (&[("If-None-Match", &weak)], 304),
        (&[("If-None-Match", &list)], 304),
        (&[("If-None-Match", "\"a\""), ("If-None-Match", &tag)], 304),
        (&[("If-None-Match", "*")], 304),
        (&[("If-None-Match", "\"another\"")], 200),
        (&[("If-None-Match", "")], 200),
        (&[("If-Modified-Since", MODIFIED)], 304),
        (&[("If-Modified-Since", after)], 304),
        (&[("If-Modified-Since", before)], 200),
        (&[("If-Modified-Since", "yesterday")], 200),
        (
            &[("If-Modified-Since", "Monday, 01-Jan-24 00:00:00 GMT")],
            304,
        ),
        (&[("If-Modified-Since", "Mon Jan  1 00:00:00 2024")], 304),
        // The tag decides where there is one.
        (
            &[
                ("If-None-Match", "\"another\""),
                ("If-Modified-Since", after),
            ],
            200,
        ),
        (
            &[("If-None-Match", &tag), ("If-Modified-Since", before)],
            304,
        ),
        (&[("If-Match", &tag)], 200),
        (&[("If-Match", &list)], 412),
        (&[("If-Match", &weak)], 412),
        (&[("If-Match", "*")], 200),
        (&[("If-Match", "\"another\"")], 412),
        (&[("If-Unmodified-Since", MODIFIED)], 200),
        (&[("If-Unmodified-Since", after)], 200),
        (&[("If-Unmodified-Since", before)], 412),
        (&[("If-Unmodified-Since", "yesterday")], 200),
        (&[("If-Match", &tag), ("If-Unmodified-Since", before)], 200),
        // The first step that fails decides (§13.2.2).
        (&[("If-Match", "\"another\""), ("If-None-Match", &tag)], 412),
        (&[("If-Match", &tag), ("If-None-Match", &tag)], 304),
        (
            &[
                ("If-Unmodified-Since", before),
                ("If-Modified-Since", after),
            ],
            412,
        ),
        // Preconditions come before the range.
        (&[("If-None-Match", &tag), ("Range", "bytes=0-0")], 304),
        (&[("If-Match", "\"another\""), ("Range", "bytes=0-0")], 412),
    ] {
        for method in ["GET", "HEAD"] {
            let response = server.request(method, "/file.txt", headers, b"");
            let whole = response.status == 200 && method == "GET";
            let holds = response.status == expected
                && response.complete
                && (!whole || response.body == content)
                && (expected != 304 || response.header("ETag").as_ref() == Some(&tag));
            rows.check(&format!("{method} {headers:?}"), holds, || {
                format!("expected {expected}, saw {response}")
            });
        }
    }
    rows.done();
}

#[test]
fn a_range_selects_what_rfc_9110_14_says() {
    let (setup, content) = thousand_bytes();
    let server = setup.start();
    let mut rows = Rows::new();
    // The field, the offsets of what comes; none: 416.
    for (range, expected) in [
        ("bytes=0-0", Some(0..1)),
        ("bytes=10-19", Some(10..20)),
        ("bytes=990-", Some(990..1000)),
        ("bytes=990-5000", Some(990..1000)),
        ("bytes=-10", Some(990..1000)),
        ("bytes=-5000", Some(0..1000)),
        ("bytes=0-", Some(0..1000)),
        ("BYTES=10-19", Some(10..20)),
        ("bytes= 10-19 , ", Some(10..20)),
        ("bytes=10-19, 2000-", Some(10..20)),
        ("bytes=999-18446744073709551616", Some(999..1000)),
        ("bytes=1000-", None),
        ("bytes=-0", None),
        ("bytes=5000-6000, 7000-", None),
    ] {
        let response = server.request("GET", "/file.txt", &[("Range", range)], b"");
        let saw = status_and(&response, &["Content-Range"]);
        let (line, body) = match expected {
            Some(span) => (
                format!(
                    "206 Content-Range: bytes {}-{}/1000",
                    span.start,
                    span.end - 1
                ),
                Some(&content[span]),
            ),
            None => ("416 Content-Range: bytes */1000".to_owned(), None),
        };
        let holds = saw == line && body.is_none_or(|body| body == response.body);
        rows.check(range, holds, || response.to_string());
    }
    // What is no range for this server is no range at all: 200.
    for range in [
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=20-10",
        "bytes=+1-5",
        "bytes 1-5",
        "lines=1-5",
        "bytes=0-9,x",
        "bytes=0-999,0-999",
    ] {
        let response = server.request("GET", "/file.txt", &[("Range", range)], b"");
        let holds = response.status == 200 && response.body == content;
        rows.check(range, holds, || response.to_string());
    }
    rows.done();
    // §14.2: defined for GET alone.
    let head = server.request("HEAD", "/file.txt", &[("Range", "bytes=0-9")], b"");
    assert_eq!(
        status_and(&head, &["Content-Length", "Accept-Ranges"]),
        "200 Content-Length: 1000 Accept-Ranges: bytes"
    );
}

#[test]
fn several_ranges_come_as_parts_in_the_order_asked() {
    let (setup, content) = thousand_bytes();
    let server = setup.start();
    let range = [("Range", "bytes=500-509, 0-0,-5")];
    let response = server.request("GET", "/file.txt", &range, b"");
    assert_eq!(response.status, 206);
    assert_eq!(response.header("Content-Range"), None);
    let media_type = response.header("Content-Type").expect("it has a type");
    let boundary = media_type
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("the type of §14.6");
    let mut expected = Vec::new();
    for (first, last) in [(500, 509), (0, 0), (995, 999)] {
        let head = format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Range: bytes {first}-{last}/1000\r\n\r\n"
        );
        expected.extend(head.into_bytes());
        expected.extend(&content[first..=last]);
        expected.extend(b"\r\n");
    }
    expected.extend(format!("--{boundary}--\r\n").into_bytes());
    assert_eq!(response.text(), String::from_utf8_lossy(&expected));
}

#[test]
fn if_range_wants_the_very_same_state_of_the_file() {
    let (setup, _) = thousand_bytes();
    let server = setup.start();
    let tag = server.get("/file.txt").header("ETag");
    let tag = tag.expect("a file has a tag");
    let weak = format!("W/{tag}");
    let mut rows = Rows::new();
    for (validator, expected) in [
        (&*tag, 206),
        (MODIFIED, 206),
        (&weak, 200),
        ("\"another\"", 200),
        ("Sun, 31 Dec 2023 23:59:59 GMT", 200),
        // Not even a later date: it is compared for identity (§13.1.5).
        ("Mon, 01 Jan 2024 00:00:01 GMT", 200),
        ("nonsense", 200),
    ] {
        let headers = [("Range", "bytes=0-9"), ("If-Range", validator)];
        let response = server.request("GET", "/file.txt", &headers, b"");
        rows.check(validator, response.status == expected, || {
            response.to_string()
        });
    }
    rows.done();
}

#[test]
fn the_next_request_sees_an_edit() {
    let (setup, _) = thousand_bytes();
    let file = setup.root().join("file.txt");
    let server = setup.start();
    let mut seen: Vec<String> = Vec::new();
    // The same length and the same date: nothing but the content tells.
    for number in 0..50 {
        let content = format!("edit {number:02}\n");
        fs::write(&file, &content).expect("the file is the test's own");
        set_modified(&file, MODIFIED);
        let response = server.get("/file.txt");
        assert_eq!(response.text(), content);
        let tag = response.header("ETag").expect("a file has a tag");
        assert!(!seen.contains(&tag), "{tag} came for another content");
        if let Some(before) = seen.last() {
            let fresh = [("If-None-Match", before.as_str())];
            assert_eq!(server.request("GET", "/file.txt", &fresh, b"").status, 200);
        }
        seen.push(tag);
    }
    // Also where another file takes the place, or none.
    fs::write(file.with_extension("new"), "replaced\n").expect("it is ours");
    fs::rename(file.with_extension("new"), &file).expect("it is ours");
    assert_eq!(server.get("/file.txt").text(), "replaced\n");
    fs::remove_file(&file).expect("it is ours");
    assert_eq!(server.get("/file.txt").status, 404);
    fs::create_dir(&file).expect("nothing is there");
    assert_eq!(server.get("/file.txt").status, 301);
    assert_eq!(
        server.get("/").header("Cache-Control").as_deref(),
        Some("no-cache")
    );
}

#[test]
fn a_served_folder_that_is_made_anew_is_served_as_it_is_now() {
    let server = Server::new()
        .file("file.txt", "first\n")
        .file("old", "")
        .start();
    let root = server.root();
    assert_eq!(server.get("/file.txt").text(), "first\n");
    // As a build does it.
    fs::remove_dir_all(&root).expect("it is the test's own");
    assert_eq!(server.get("/file.txt").status, 404);
    assert_eq!(server.get("/").status, 404);
    fs::create_dir(&root).expect("nothing is there");
    fs::write(root.join("file.txt"), "second\n").expect("it is ours");
    assert_eq!(server.get("/file.txt").text(), "second\n");
    assert_eq!(server.get("/old").status, 404);
    // Another one is moved into its place.
    let away = tempfile::tempdir().expect("a folder can be made");
    fs::rename(&root, away.path().join("root")).expect("it is ours");
    assert_eq!(server.get("/file.txt").text(), "second\n");
    fs::create_dir(&root).expect("nothing is there");
    fs::write(root.join("new"), "third\n").expect("it is ours");
    let listing = server.get("/?format=json").text();
    assert!(listing.contains("new") && !listing.contains("file.txt"));
    assert_eq!(server.get("/file.txt").status, 404);
    assert_eq!(server.get("/new").text(), "third\n");
    // A link is another matter: it could lead anywhere.
    fs::remove_dir_all(&root).expect("it is ours");
    std::os::unix::fs::symlink(away.path().join("root"), &root).expect("nothing is there");
    assert_eq!(server.get("/file.txt").status, 404);
    fs::remove_file(&root).expect("it is ours");
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_ends_the_connection() {
    const LENGTH: usize = 64 << 20;
    let server = Server::new().file("large", vec![b'x'; LENGTH]).start();
    let mut client = server.connect();
    client.send(format!(
        "GET /large HTTP/1.1\r\nHost: {}\r\n\r\n",
        server.host()
    ));
    let head = client.head().expect("the file is there");
    assert_eq!(head.status, 200);
    let length = |(name, value): &(String, Vec<u8>)| {
        name == "Content-Length" && value == LENGTH.to_string().as_bytes()
    };
    assert!(head.headers.iter().any(length));
    // No buffer on the way holds so much: the server is still at it.
    let file = fs::File::options()
        .write(true)
        .open(server.root().join("large"))
        .expect("it is the test's own");
    file.set_len(1 << 20).expect("it is the test's own");
    let sent = client.rest();
    assert!(sent.len() < LENGTH, "{} bytes came", sent.len());
    // Past its new end the kernel may show the file as it is now in what it
    // holds already (sendfile); before it, nothing has changed.
    let sure = sent.len().min(1 << 20);
    assert!(sent[..sure].iter().all(|&byte| byte == b'x'));
}

#[test]
fn a_file_that_grows_while_it_is_sent_comes_as_long_as_it_was() {
    const LENGTH: usize = 16 << 20;
    let server = Server::new().file("large", vec![b'x'; LENGTH]).start();
    let mut client = server.connect();
    client.send(format!(
        "GET /large HTTP/1.1\r\nHost: {host}\r\n\r\nGET /none HTTP/1.1\r\nHost: {host}\r\n\r\n",
        host = server.host()
    ));
    let head = client.head().expect("the file is there");
    assert_eq!(head.status, 200);
    let mut file = fs::File::options()
        .append(true)
        .open(server.root().join("large"))
        .expect("it is the test's own");
    file.write_all(b"more").expect("it is the test's own");
    let (sent, complete) = client.take(LENGTH);
    assert!(complete && sent.iter().all(|&byte| byte == b'x'));
    assert_eq!(
        client.response().status,
        404,
        "the next one is in its place"
    );
}

#[test]
fn an_index_file_stands_for_its_folder() {
    let server = Server::new()
        .file("both/index.html", "html")
        .file("both/index.htm", "htm")
        .file("old/index.htm", "htm")
        .file("old/other", "")
        .folder("folder/index.html")
        .file("folder/other", "")
        .start();
    assert_eq!(server.get("/both/").text(), "html");
    assert_eq!(server.get("/old/").text(), "htm");
    assert!(server.get("/folder/").text().contains("./other"));
    // A form that is asked for by name is meant.
    let json = server.get("/old/?format=json");
    assert!(json.text().contains("index.htm"), "{json}");
    assert_eq!(server.get("/old/index.htm/").status, 404);
}

#[test]
fn a_folder_without_its_slash_is_redirected_with_its_query() {
    let server = Server::new()
        .file("folder/inside", "")
        .file("na\u{ef}ve %41/inside", "")
        .file("example.com/inside", "")
        .start();
    let mut rows = Rows::new();
    for (target, expected) in [
        ("/folder", "/folder/"),
        ("/folder?a=b&c=%20?d", "/folder/?a=b&c=%20?d"),
        ("/folder?", "/folder/"),
        ("/./folder", "/folder/"),
        ("/%66older", "/folder/"),
        ("/na%c3%afve%20%2541", "/na%C3%AFve%20%2541/"),
    ] {
        let response = server.get(target);
        let saw = status_and(&response, &["Location"]);
        rows.check(target, saw == format!("301 Location: {expected}"), || saw);
    }
    rows.done();
    // `//example.com/` would be another site.
    for target in [
        "//example.com",
        "/folder/..//example.com",
        "/%2fexample.com",
        "/.//example.com",
    ] {
        let response = server.get(target);
        let location = response.header("Location").unwrap_or_default();
        assert!(!location.starts_with("//"), "{target}: {response}");
    }
}

#[test]
fn an_error_is_a_page_for_browsers_and_a_line_for_others_and_names_no_path() {
    let server = Server::new()
        .file("file.txt", "content\n")
        .link("out", "/etc/passwd")
        .fifo("pipe")
        .script("cgi-bin/broken", "#!/nothing/here\n")
        .start();
    let folder = server.root().parent().expect("it is below").to_owned();
    let folder = folder.to_str().expect("its name is ASCII");
    let range = ("Range", "bytes=5000-");
    let matches = ("If-Match", "\"another\"");
    let mut rows = Rows::new();
    for (method, target, more, status) in [
        ("GET", "/nothing", None, 404),
        ("GET", "/nothing/deeper?<script>", None, 404),
        ("GET", "/out", None, 403),
        ("GET", "/pipe", None, 403),
        ("GET", "/%zz", None, 400),
        ("GET", "/file.txt", Some(range), 416),
        ("GET", "/file.txt", Some(matches), 412),
        ("DELETE", "/file.txt", None, 405),
        ("GET", "/cgi-bin/broken", None, 500),
        ("GET", "/cgi-bin/nothing", None, 404),
    ] {
        let accept = ("Accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        let browser: Vec<_> = more.into_iter().chain([accept]).collect();
        let page = server.request(method, target, &browser, b"");
        let other: Vec<_> = more.into_iter().collect();
        let line = server.request(method, target, &other, b"");
        let typed = |response: &Response, media_type: &str| {
            response.status == status
                && response.header("Content-Type").as_deref() == Some(media_type)
                && !response.text().contains(folder)
                && !response.text().contains("os error")
        };
        rows.check(
            &format!("{method} {target} for a browser"),
            typed(&page, "text/html; charset=utf-8")
                && page.text().starts_with("<!DOCTYPE html>")
                && !page.text().contains("<script"),
            || page.to_string(),
        );
        rows.check(
            &format!("{method} {target} for others"),
            typed(&line, "text/plain; charset=utf-8")
                && line.text().starts_with(&format!("{status} ")),
            || line.to_string(),
        );
    }
    rows.done();
}
