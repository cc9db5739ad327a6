//! The samples of cgi-bin/ and the page in www/ that uses them, in a copy of
//! the two folders, by the interpreters that the samples name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use flate2::Crc;
use flate2::read::ZlibDecoder;
use sha2::{Digest, Sha256};

use crate::support::{Process, Rows, Server, Setup, curl, eventually, needs, needs_perl_module};

/// A server on a copy of the samples, of the page and of docs/, which it links.
pub(crate) fn samples() -> Setup {
    let setup = Server::new();
    for folder in ["cgi-bin", "www", "docs"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let to = setup.root().join(folder);
        fs::create_dir(&to).expect("the root is empty");
        for entry in fs::read_dir(&from).expect("the repository has the folder") {
            let entry = entry.expect("it can be read");
            // What somebody built in place is none of the repository's files.
            if entry.path().is_file() && entry.file_name() != "hello" {
                fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
            }
        }
    }
    setup
}

/// What curl got, which must have gone well: a status of 400 or more has not.
fn fetch(args: &[&str]) -> String {
    let output = curl(&[&["--fail-with-body"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "curl {args:?}: {}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn the_environment_sample_shows_what_a_script_is_told() {
    if !needs("curl") {
        return;
    }
    let server = samples().start();
    let text = fetch(&[
        "--user-agent",
        "A Browser/1",
        &server.url("/cgi-bin/env.sh/some/path?and=query"),
    ]);
    for line in [
        "GATEWAY_INTERFACE=CGI/1.1",
        "HTTP_USER_AGENT=A Browser/1",
        "PATH_INFO=/some/path",
        "QUERY_STRING=and=query",
        "REQUEST_METHOD=GET",
        "SCRIPT_NAME=/cgi-bin/env.sh",
    ] {
        assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
    }
    let mut sorted: Vec<&str> = text.lines().collect();
    sorted.sort_unstable();
    assert_eq!(sorted, text.lines().collect::<Vec<_>>());
}

#[test]
fn the_form_sample_shows_fields_of_get_and_post_as_text() {
    if !needs("curl") || !needs("python3") {
        return;
    }
    let server = samples().start();
    let url = server.url("/cgi-bin/form.py");
    let fields = [
        "--data-urlencode",
        "name=Ada <Lovelace> & \"co\"",
        "--data-urlencode",
        "text=naïve café ☕",
        "--data-urlencode",
        "empty=",
    ];
    for (method, how) in [("GET", &["--get"][..]), ("POST", &[])] {
        let text = fetch(&[how, &fields, &[&url]].concat());
        for part in [
            &format!("Sent by {method}, 3 field(s):"),
            "<th>name<td>Ada &lt;Lovelace&gt; &amp; &quot;co&quot;",
            "<th>text<td>naïve café ☕",
            "<th>empty<td>",
        ] {
            assert!(text.contains(part), "{method}: no `{part}` in:\n{text}");
        }
    }

    let refused = |args: &[&str]| {
        let last = ["--output", "/dev/null", "--write-out", "%{http_code}", &url];
        let output = curl(&[args, &last].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let large = format!("text={}", "x".repeat(65 * 1024));
    assert_eq!(refused(&["--form", "a=b"]), "415");
    assert_eq!(refused(&["--data", &large]), "413");
    assert_eq!(refused(&["--request", "DELETE"]), "405");
}

#[test]
fn the_upload_samples_name_each_file_with_its_size_and_checksum() {
    if !needs("curl") || !needs("python3") {
        return;
    }
    let mut scripts = vec!["upload.py"];
    if needs_perl_module("CGI") {
        scripts.push("upload.pl");
    }
    let server = samples().start();
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    // A boundary is looked for in these bytes, line ends and dashes included.
    let files = [
        ("large.bin", pseudo_random(3_000_000)),
        ("dashes.txt", b"\r\n--".repeat(5000)),
        ("empty", Vec::new()),
        ("na\u{ef}ve <b>.txt", b"text\r\n".to_vec()),
    ];
    let mut args = Vec::new();
    for (name, content) in &files {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("the test's own folder can be written");
        args.push("--form".to_owned());
        args.push(format!("file=@\"{}\"", path.display()));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut rows = Rows::new();
    for script in scripts {
        let url = server.url(&format!("/cgi-bin/{script}"));
        let text = fetch(&[&args[..], &[&url]].concat());
        for (name, content) in &files {
            let shown = name.replace('<', "&lt;").replace('>', "&gt;");
            let sum = Sha256::digest(content);
            let digits = sum.iter().take(8).map(|byte| format!("{byte:02x}"));
            let sum = digits.collect::<Vec<_>>().concat();
            let row = text.split("<tr>").find(|row| row.contains(&shown));
            let row = row.unwrap_or_default();
            rows.check(
                &format!("{script}: {name}"),
                row.contains(&format!("<td>{} bytes<td>", content.len())) && row.contains(&sum),
                || format!("{sum} is not in: {text}"),
            );
        }
    }
    rows.done();
}

/// Bytes of which no part repeats soon: the same at each run.
fn pseudo_random(count: usize) -> Vec<u8> {
    let mut state: u32 = 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn the_counter_sample_counts_by_its_cookie_and_forgets_on_request() {
    if !needs("curl") || !needs("python3") {
        return;
    }
    let server = samples().start();
    let url = server.url("/cgi-bin/counter.py");
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let jar = folder.path().join("cookies");
    let jar = jar.to_str().expect("its name is ASCII");
    let cookies = ["--cookie", jar, "--cookie-jar", jar];
    let visit = |count: &str| {
        let text = fetch(&[&cookies[..], &[&url]].concat());
        let expected = format!("<strong>{count}</strong>");
        assert!(text.contains(&expected), "no `{expected}` in:\n{text}");
    };
    visit("1");
    visit("2");
    visit("3");
    // --location: the POST is answered by a redirect to the first visit anew.
    let text = fetch(&[&cookies[..], &["--location", "--data", "", &url]].concat());
    assert!(text.contains("<strong>1</strong>"), "{text}");
    visit("2");
}

#[test]
fn the_redirect_sample_sends_on_in_each_of_three_ways() {
    if !needs("python3") {
        return;
    }
    let server = samples().start();
    let to = |way: &str| server.get(format!("/cgi-bin/redirect.sh?to={way}"));

    let absolute = to("absolute");
    assert_eq!(absolute.status, 302);
    assert_eq!(
        absolute.header("Location").as_deref(),
        Some(&*server.url("/cgi-bin/form.py?redirect=absolute"))
    );
    let relative = to("relative");
    assert_eq!(relative.status, 302);
    assert_eq!(
        relative.header("Location").as_deref(),
        Some("form.py?redirect=relative")
    );
    let local = to("local");
    assert_eq!(local.status, 200);
    assert_eq!(local.header("Location"), None);
    let text = local.text();
    for line in [
        "REDIRECT_URL=/cgi-bin/redirect.sh",
        "REQUEST_METHOD=GET",
        "SCRIPT_NAME=/cgi-bin/env.sh",
    ] {
        assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
    }
    assert_eq!(to("http://elsewhere.example/").status, 400);

    if needs("curl") {
        for way in ["absolute", "relative"] {
            let url = server.url(&format!("/cgi-bin/redirect.sh?to={way}"));
            let text = fetch(&["--location", &url]);
            assert!(
                text.contains(&format!("<th>redirect<td>{way}")),
                "{way}: {text}"
            );
        }
    }
}

#[test]
fn the_clock_sample_ticks_as_it_goes_and_ends_when_the_visitor_leaves() {
    let server = samples().start();
    let mut client = server.connect();
    client.send(format!(
        "GET /cgi-bin/clock.sh HTTP/1.1\r\nHost: {}\r\nLast-Event-ID: 41\r\n\r\n",
        server.host()
    ));
    let head = client.head().expect("the clock answers");
    assert_eq!(head.status, 200);
    let mut seen = String::new();
    while seen.matches("\n\n").count() < 2 {
        let bytes = client.some();
        assert!(!bytes.is_empty(), "the clock ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(seen.contains("id: 42\ndata: "), "{seen}");
    assert!(seen.contains("id: 43\ndata: "), "{seen}");
    assert!(!server.children().is_empty(), "the clock goes on");
    drop(client);
    let ended = eventually(|| server.children().is_empty());
    assert!(ended, "the clock ticks for nobody");
}

#[test]
fn the_guestbook_sample_loses_no_entry_of_fifty_people_at_once() {
    if !needs("python3") {
        return;
    }
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let book = folder.path().join("book");
    let server = samples()
        .args(["--cgi-env", &format!("GUESTBOOK_FILE={}", book.display())])
        .start();
    std::thread::scope(|scope| {
        for number in 0..50 {
            let server = &server;
            scope.spawn(move || {
                let body = format!("name=Guest+{number}&text=Entry+%3C{number}%3E");
                let response = server.request(
                    "POST",
                    "/cgi-bin/guestbook.py",
                    &[("Content-Type", "application/x-www-form-urlencoded")],
                    body.as_bytes(),
                );
                assert_eq!(response.status, 303, "{response}");
            });
        }
    });
    let written = fs::read_to_string(&book).expect("the book is there");
    let entries: BTreeMap<String, String> = written
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).expect("a whole entry");
            let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            (field("name"), field("text"))
        })
        .collect();
    let expected: BTreeMap<String, String> = (0..50)
        .map(|number| (format!("Guest {number}"), format!("Entry <{number}>")))
        .collect();
    assert_eq!(entries, expected);

    let page = server.get("/cgi-bin/guestbook.py").text();
    assert!(page.contains("50 so far"), "{page}");
    assert!(page.contains("<p>Entry &lt;7&gt;"), "{page}");
    // A form that another site sends in a visitor's name writes nothing.
    let forged = server.request(
        "POST",
        "/cgi-bin/guestbook.py",
        &[("Sec-Fetch-Site", "cross-site")],
        b"name=x&text=y",
    );
    assert_eq!(forged.status, 403);
}

#[test]
fn the_picture_sample_draws_a_valid_png_and_knows_when_it_was_seen() {
    if !needs("python3") {
        return;
    }
    let server = samples().start();
    let target = "/cgi-bin/picture.py?name=Ada+%E2%98%95&size=60";
    let picture = server.get(target);
    assert_eq!(picture.status, 200);
    assert_eq!(picture.header("Content-Type").as_deref(), Some("image/png"));
    check_png(&picture.body, 60);

    let tag = picture.header("ETag").expect("the picture has a tag");
    let again = server.request("GET", target, &[("If-None-Match", &tag)], b"");
    assert_eq!(again.status, 304);
    let other = server.get("/cgi-bin/picture.py?name=Grace&size=60");
    assert_ne!(other.body, picture.body);
    assert_ne!(other.header("ETag"), Some(tag));
    // A size that makes no sense is not drawn.
    for size in ["99999", "-1", "%D9%A1", ""] {
        let picture = server.get(format!("/cgi-bin/picture.py?size={size}"));
        check_png(&picture.body, 240);
    }
}

/// Signature, the checksum of each chunk, and as many pixels as it says (PNG
/// §5, §11).
fn check_png(png: &[u8], size: usize) {
    let mut rest = png
        .strip_prefix(b"\x89PNG\r\n\x1a\n")
        .expect("the signature of PNG");
    let mut kinds = Vec::new();
    let mut pixels = Vec::new();
    while !rest.is_empty() {
        let number = |at: usize| {
            let bytes = rest[at..at + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes)
        };
        let length = usize::try_from(number(0)).expect("32 bits fit");
        let mut sum = Crc::new();
        sum.update(&rest[4..8 + length]);
        assert_eq!(sum.sum(), number(8 + length));
        let data = &rest[8..8 + length];
        match &rest[4..8] {
            b"IHDR" => {
                let size = u32::try_from(size).expect("it is small").to_be_bytes();
                assert_eq!(data[..8], [size, size].concat());
            }
            b"IDAT" => {
                let mut decoder = ZlibDecoder::new(data);
                decoder.read_to_end(&mut pixels).expect("zlib data");
            }
            _ => {}
        }
        kinds.push(rest[4..8].to_vec());
        rest = &rest[12 + length..];
    }
    assert_eq!(kinds, [b"IHDR", b"PLTE", b"IDAT", b"IEND"]);
    // A filter byte and a byte for each pixel, row by row.
    assert_eq!(pixels.len(), size * (size + 1));
}

#[test]
fn the_nph_sample_writes_the_whole_response_itself_as_it_counts() {
    let server = samples().start();
    let mut client = server.connect();
    client.send(format!(
        "GET /cgi-bin/nph-count.sh HTTP/1.1\r\nHost: {}\r\n\r\n",
        server.host()
    ));
    let response = client.response();
    assert_eq!(
        (response.status, response.version.as_str()),
        (200, "HTTP/1.1")
    );
    assert!(response.complete);
    assert_eq!(response.header("Server"), None, "the server adds nothing");
    assert_eq!(
        response.text(),
        "one\ntwo\nthree\nfour\nfive\nWritten by this script, from \"HTTP/1.1 200 OK\" on.\n"
    );
    assert!(client.is_closed());

    let mut client = server.connect();
    client.send("HEAD /cgi-bin/nph-count.sh HTTP/1.0\r\n\r\n");
    let response = client.response_to("HEAD");
    assert_eq!(
        (response.status, response.version.as_str()),
        (200, "HTTP/1.0")
    );
    assert!(client.is_closed());
}

#[test]
fn the_path_sample_shows_and_links_each_segment() {
    if !needs_perl_module("CGI") {
        return;
    }
    let server = samples().start();
    let text = server.get("/cgi-bin/path.pl/caf%C3%A9/%3Cb%3E").text();
    for part in [
        "<a href=\"/cgi-bin/path.pl/caf%C3%A9\">café</a>",
        "<a href=\"/cgi-bin/path.pl/caf%C3%A9/%3Cb%3E\">&lt;b&gt;</a>",
        "<tr><th>PATH_INFO<td>/café/&lt;b&gt;",
        &format!(
            "<tr><th>PATH_TRANSLATED<td>{}/café/&lt;b&gt;",
            server.root().display()
        ),
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let text = server.get("/cgi-bin/path.pl").text();
    assert!(
        text.contains("<tr><th>PATH_INFO<td><em>not set</em>"),
        "{text}"
    );
}

#[test]
fn the_php_sample_shows_the_month_that_was_asked_for() {
    if !needs("php-cgi") {
        return;
    }
    let server = samples().start();
    let response = server.get("/cgi-bin/calendar.php?month=2024-02&for=Ada+%3Cb%3E");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.header("X-Powered-By"), None);
    let text = response.text();
    for part in [
        "February 2024, for Ada &lt;b&gt;",
        "?month=2024-01&amp;for=Ada",
        "?month=2024-03&amp;for=Ada",
        "<td>29",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert!(!text.contains("<td>30"), "{text}");
}

#[test]
fn the_c_sample_runs_once_it_is_built_and_its_source_is_not_shown() {
    if !needs("cc") {
        return;
    }
    let setup = samples();
    build_hello(&setup);
    let server = setup.start();
    for (query, greeted) in [
        ("", "world"),
        ("?name=", "world"),
        ("?name=Grace+%26+co", "Grace &amp; co"),
        ("?first=1&name=%3Cscript%3E&last=%", "&lt;script&gt;"),
        ("?name=100%", "100%"),
    ] {
        let response = server.get(format!("/cgi-bin/hello{query}"));
        assert_eq!(response.status, 200, "{response}");
        let expected = format!("<p>Hello, <strong>{greeted}</strong>, from C.");
        let text = response.text();
        assert!(text.contains(&expected), "`{query}`: {text}");
    }
    let source = server.get("/cgi-bin/hello.c");
    assert!(source.status >= 400, "{source}");
    assert!(!source.text().contains("int main"), "{source}");
}

/// By the line that the sample itself names.
pub(crate) fn build_hello(setup: &Setup) {
    let line = "cc -O2 -Wall -o cgi-bin/hello cgi-bin/hello.c";
    let source = fs::read_to_string(setup.root().join("cgi-bin/hello.c")).expect("it was copied");
    assert!(source.contains(line));
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(setup.root())
        .output()
        .expect("there is a shell");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn the_page_and_everything_it_links_to_answers() {
    let programs = ["python3", "php-cgi", "cc"].map(needs);
    if programs.contains(&false) || !needs_perl_module("CGI") {
        return;
    }
    let setup = samples();
    build_hello(&setup);
    let server = setup.start();
    let page = server.get("/www/");
    assert_eq!(page.status, 200);
    let links = links(&page.text());
    // A page without links would pass all that follows.
    assert!(links.len() > 20, "{links:?}");
    let mut rows = Rows::new();
    for link in links {
        let status = status_after_redirects(&server, &absolute("/www/", &link));
        rows.check(&link, status == Some(200), || format!("{status:?}"));
    }
    rows.done();
    let ended = eventually(|| server.children().iter().all(Process::is_prepared));
    assert!(ended, "scripts that nobody listens to go on");
}

/// What the attributes of a page name that load or lead somewhere.
fn links(page: &str) -> BTreeSet<String> {
    let mut links = BTreeSet::new();
    for attribute in ["href", "src", "action", "formaction", "data-try"] {
        for part in page.split(&format!(" {attribute}=\"")).skip(1) {
            let value = part.split('"').next().unwrap_or_default();
            if !value.starts_with("data:") && !value.starts_with('#') {
                links.insert(value.replace("&amp;", "&"));
            }
        }
    }
    links
}

/// A link of the page at `base`, a folder, as a path.
fn absolute(base: &str, link: &str) -> String {
    let path = if link.starts_with('/') {
        link.to_owned()
    } else {
        format!("{base}{link}")
    };
    path.split('#').next().unwrap_or_default().to_owned()
}

/// The status alone: the clock would tick for a minute.
fn status_after_redirects(server: &Server, target: &str) -> Option<u16> {
    let mut target = target.to_owned();
    for _ in 0..5 {
        let mut client = server.connect();
        client.send(format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            server.host()
        ));
        let head = client.head()?;
        let location = head
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("location"))
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        match location {
            Some(location) if (300..400).contains(&head.status) => {
                let local = location.strip_prefix(&server.url("")).unwrap_or(&location);
                target = absolute("/cgi-bin/", local);
            }
            _ => return Some(head.status),
        }
    }
    None
}
