//! Content codings of files: which one a client gets, tags and ranges beside
//! them, and that real decoders read what is sent.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::support::{Response, Rows, Server, Setup, curl, needs};

/// What browsers send to this machine.
const BROWSER: &str = "gzip, deflate, br, zstd";

/// Text that a coding makes shorter, of about this many bytes.
fn text(length: usize) -> Vec<u8> {
    (0..length / 20)
        .flat_map(|line| format!("line {line:>13}\n").into_bytes())
        .collect()
}

/// Bytes that no coding makes shorter.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    })
    .take(length)
    .collect()
}

fn ask(server: &Server, target: &str, fields: &[(&str, &str)]) -> Response {
    server.request("GET", target, fields, b"")
}

fn accepting(server: &Server, target: &str, accept: &str) -> Response {
    ask(server, target, &[("Accept-Encoding", accept)])
}

/// Status and coding.
fn coding(response: &Response) -> String {
    let coding = response.header("Content-Encoding");
    format!("{} {}", response.status, coding.unwrap_or("-".into()))
}

fn tag(response: &Response) -> String {
    response.header("ETag").expect("a file has a tag")
}

/// The fields of Vary, in small letters.
fn vary(response: &Response) -> String {
    let fields = response.headers.iter();
    let vary = fields.filter(|(name, _)| name.eq_ignore_ascii_case("Vary"));
    let values: Vec<_> = vary.map(|(_, v)| String::from_utf8_lossy(v)).collect();
    values.join(", ").to_ascii_lowercase()
}

/// What a program makes of these bytes.
fn through(program: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test asked `needs`");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads all");
    assert!(output.status.success(), "{program:?} fails");
    output.stdout
}

/// Sets a file's time of modification, counted from now back.
fn age(path: &Path, seconds: u64) {
    let file = File::options().append(true).open(path);
    let time = SystemTime::now() - Duration::from_secs(seconds);
    file.and_then(|file| file.set_modified(time))
        .expect("the file is the test's own");
}

#[test]
fn curl_reads_every_coding() {
    if !needs("curl") {
        return;
    }
    let content = text(50_000);
    let server = Server::new()
        .file("page.html", &content)
        .file("folder/index.html", &content)
        .start();
    for accept in ["gzip", "br", "zstd", BROWSER] {
        for path in ["/page.html", "/folder/"] {
            let accept = format!("Accept-Encoding: {accept}");
            let output = curl(&["--compressed", "-H", &accept, &server.url(path)]);
            assert!(output.status.success(), "{accept} {path}: {output:?}");
            assert_eq!(output.stdout, content, "{accept} {path}");
        }
    }
}

#[test]
fn the_programs_of_each_coding_read_what_is_sent() {
    let content = text(300_000);
    let server = Server::new().file("app.js", &content).start();
    for (accept, program) in [
        ("gzip", ["gzip", "-dc"]),
        ("br", ["brotli", "-dc"]),
        ("zstd", ["zstd", "-dc"]),
    ] {
        if !needs(program[0]) {
            continue;
        }
        let response = accepting(&server, "/app.js", accept);
        assert_eq!(coding(&response), format!("200 {accept}"));
        assert!(response.body.len() < content.len() / 3);
        assert_eq!(through(&program, &response.body), content, "{accept}");
    }
}

#[test]
fn python_reads_gzip() {
    let content = text(5000);
    let server = Server::new().file("data.json", &content).start();
    let response = accepting(&server, "/data.json", "x-gzip;q=0.1");
    assert_eq!(coding(&response), "200 gzip");
    let script =
        "import sys,zlib; sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read(), 31))";
    let python = ["/usr/bin/python3", "-c", script];
    assert_eq!(through(&python, &response.body), content);
}

#[test]
fn what_a_client_accepts_decides_the_coding() {
    let server = Server::new()
        .file("page.html", text(5000))
        .file("tiny.html", "short")
        .file("empty.html", "")
        .file("picture.png", noise(5000))
        .start();
    let mut rows = Rows::new();
    for (target, accept, expected) in [
        // The fastest to make, where nothing is liked better.
        ("/page.html", BROWSER, "200 zstd"),
        ("/page.html", "gzip, deflate, br", "200 gzip"),
        ("/page.html", "br, gzip", "200 gzip"),
        ("/page.html", "br", "200 br"),
        ("/page.html", "gzip", "200 gzip"),
        ("/page.html", "X-GZIP", "200 gzip"),
        ("/page.html", "deflate", "200 -"),
        ("/page.html", "", "200 -"),
        ("/page.html", "*", "200 gzip"),
        ("/page.html", "zstd;q=0.1, gzip;q=0.2, br;q=0.3", "200 br"),
        ("/page.html", "gzip;q=0, br;q=0.5", "200 br"),
        ("/page.html", "gzip;q=0", "200 -"),
        ("/page.html", "gzip;q=0, *;q=0", "406 -"),
        ("/page.html", "identity", "200 -"),
        ("/page.html", "gzip;q=0.5, identity", "200 -"),
        ("/page.html", "gzip, identity;q=0", "200 gzip"),
        ("/page.html", "gzip, *;q=0", "200 gzip"),
        ("/page.html", "identity;q=0", "406 -"),
        ("/page.html", "deflate, identity;q=0", "406 -"),
        ("/page.html", "*;q=0", "406 -"),
        // What can't be understood is passed over.
        ("/page.html", "gzip;q=nonsense, br", "200 br"),
        ("/page.html", "gzip;q=9", "200 -"),
        ("/page.html", ";;;,,,=", "200 -"),
        // Nothing to win, unless nothing else is accepted.
        ("/tiny.html", BROWSER, "200 -"),
        ("/tiny.html", "gzip, identity;q=0", "200 gzip"),
        ("/empty.html", BROWSER, "200 -"),
        ("/empty.html", "br, identity;q=0", "200 br"),
        // What is compressed already is sent as it is.
        ("/picture.png", BROWSER, "200 -"),
        ("/picture.png", "gzip, identity;q=0", "406 -"),
    ] {
        let saw = coding(&accepting(&server, target, accept));
        rows.check(&format!("{target} {accept}"), saw == expected, || saw);
    }
    let plain = ask(&server, "/page.html", &[]);
    rows.check("no field", coding(&plain) == "200 -", || plain.to_string());
    let two = [("Accept-Encoding", "gzip;q=0.5"), ("Accept-Encoding", "br")];
    let two = ask(&server, "/page.html", &two);
    rows.check("two fields", coding(&two) == "200 br", || two.to_string());
    rows.done();
}

#[test]
fn only_types_that_gain_are_compressed() {
    let content = text(5000);
    let types = [
        ("a.html", true),
        ("a.css", true),
        ("a.js", true),
        ("a.mjs", true),
        ("a.json", true),
        ("a.xml", true),
        ("a.svg", true),
        ("a.txt", true),
        ("a.md", true),
        ("a.csv", true),
        ("a.wasm", true),
        ("a.webmanifest", true),
        ("a.map", true),
        ("a.ttf", true),
        ("README", true),
        ("a.png", false),
        ("a.jpg", false),
        ("a.webp", false),
        ("a.mp4", false),
        ("a.zip", false),
        ("a.tar.gz", false),
        ("a.woff2", false),
        ("a.pdf", false),
    ];
    let setup = types
        .iter()
        .fold(Server::new(), |setup, (name, _)| setup.file(name, &content));
    let server = setup.start();
    let mut rows = Rows::new();
    for (name, gains) in types {
        let response = accepting(&server, &format!("/{name}"), "gzip");
        let expected = if gains { "200 gzip" } else { "200 -" };
        let saw = coding(&response);
        rows.check(name, saw == expected, || response.to_string());
        let varies = vary(&response) == "accept-encoding";
        rows.check(name, varies == gains, || response.to_string());
    }
    rows.done();
}

#[test]
fn what_grows_or_is_long_is_sent_as_it_is() {
    let (short, long) = (noise(5000), text(5 << 20));
    let server = Server::new()
        .file("noise.css", &short)
        .file("long.txt", &long)
        .start();
    let grown = accepting(&server, "/noise.css", BROWSER);
    assert_eq!((coding(&grown).as_str(), &grown.body), ("200 -", &short));
    // Its tag is that of the bytes as they are, and good.
    let fields = [
        ("Accept-Encoding", BROWSER),
        ("If-None-Match", &tag(&grown)),
    ];
    assert_eq!(ask(&server, "/noise.css", &fields).status, 304);
    let whole = accepting(&server, "/long.txt", BROWSER);
    assert_eq!(
        (coding(&whole).as_str(), whole.body == long),
        ("200 -", true)
    );
    assert_eq!(vary(&whole), "accept-encoding");
}

#[test]
fn no_compress_leaves_only_what_lies_beside_the_file() {
    let server = Server::new()
        .file("page.html", text(5000))
        .file("app.js", text(5000))
        .file("app.js.gz", "coded beforehand")
        .arg("--no-compress")
        .start();
    assert_eq!(coding(&accepting(&server, "/page.html", BROWSER)), "200 -");
    assert_eq!(coding(&accepting(&server, "/app.js", BROWSER)), "200 gzip");
    let refused = accepting(&server, "/page.html", "gzip, identity;q=0");
    assert_eq!(coding(&refused), "406 -");
}

/// `app.js` with all of its forms beside it, whose content is their name.
fn with_forms() -> Setup {
    ["app.js.br", "app.js.zst", "app.js.gz"]
        .iter()
        .fold(Server::new().file("app.js", text(5000)), |setup, name| {
            setup.file(name, name)
        })
}

#[test]
fn a_form_beside_the_file_is_sent_with_the_type_of_the_file() {
    let server = with_forms().start();
    let mut rows = Rows::new();
    for (accept, expected, body) in [
        (BROWSER, "200 br", "app.js.br"),
        ("gzip, zstd", "200 zstd", "app.js.zst"),
        ("gzip", "200 gzip", "app.js.gz"),
        ("x-gzip", "200 gzip", "app.js.gz"),
        ("br;q=0.5, gzip;q=0.7", "200 gzip", "app.js.gz"),
        ("*;q=0, br", "200 br", "app.js.br"),
    ] {
        let response = accepting(&server, "/app.js", accept);
        let holds = coding(&response) == expected
            && response.body == body.as_bytes()
            && response.header("Content-Type").as_deref() == Some("text/javascript; charset=utf-8")
            && response.header("Content-Length") == Some(body.len().to_string())
            && vary(&response) == "accept-encoding";
        rows.check(accept, holds, || response.to_string());
    }
    // Under its own name it is a file like others.
    let own = accepting(&server, "/app.js.gz", "gzip");
    rows.check("own name", coding(&own) == "200 -", || own.to_string());
    rows.done();
}

#[test]
fn a_form_that_is_older_empty_or_no_file_is_passed_over() {
    let outside = tempfile::tempdir().expect("there is room");
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").expect("it is the test's own");
    let file = text(5000);
    let server = Server::new()
        .file("old.js", &file)
        .file("old.js.br", "stale")
        .file("same.js", &file)
        .file("same.js.br", "as new")
        .file("whole.js", &file)
        .file("whole.js.br", "as new, in seconds")
        .file("empty.js", &file)
        .file("empty.js.br", "")
        .file("link.js", &file)
        .link("link.js.br", &secret)
        .file("inside.js", &file)
        .link("inside.js.br", "same.js.br")
        .file("dangling.js", &file)
        .link("dangling.js.br", "nothing")
        .file("folder.js", &file)
        .folder("folder.js.br")
        .file("pipe.js", &file)
        .fifo("pipe.js.br")
        .start();
    let path = |name: &str| server.root().join(name);
    age(&path("old.js"), 60);
    age(&path("old.js.br"), 61);
    age(&path("inside.js"), 60);
    let same = fs::metadata(path("same.js")).and_then(|m| m.modified());
    let form = File::options().append(true).open(path("same.js.br"));
    form.and_then(|form| form.set_modified(same.expect("it has a time")))
        .expect("it is the test's own");
    // What `brotli` does: the file's time, without the fraction of a second.
    let second = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (name, time) in [
        ("whole.js", second + Duration::from_millis(900)),
        ("whole.js.br", second),
    ] {
        let file = File::options().append(true).open(path(name));
        file.and_then(|file| file.set_modified(time))
            .expect("it is the test's own");
    }
    let mut rows = Rows::new();
    for (name, body) in [
        ("old.js", None),
        ("same.js", Some("as new")),
        ("whole.js", Some("as new, in seconds")),
        ("empty.js", None),
        ("link.js", None),
        ("inside.js", Some("as new")),
        ("dangling.js", None),
        ("folder.js", None),
        ("pipe.js", None),
    ] {
        let response = accepting(
            &server,
            &format!("/{name}"),
            "br;q=1, gzip;q=0.5, zstd;q=0.1",
        );
        let right = match body {
            Some(body) => response.body == body.as_bytes(),
            // Made of the file instead.
            None => response.body.len() > 100 && response.body != b"secret",
        };
        let holds = coding(&response) == "200 br" && right;
        rows.check(name, holds, || response.to_string());
    }
    rows.done();
}

#[test]
fn a_form_beside_the_file_may_come_change_and_go() {
    let server = Server::new().file("app.js", text(5000)).start();
    let form = server.root().join("app.js.gz");
    let sent = || accepting(&server, "/app.js", "gzip").body;
    let made = sent();
    fs::write(&form, "one").expect("it is the test's own");
    assert_eq!(sent(), b"one");
    fs::write(&form, "two").expect("it is the test's own");
    assert_eq!(sent(), b"two");
    fs::remove_file(&form).expect("it is there");
    assert_eq!(sent(), made);
}

#[test]
fn an_edit_is_seen_in_every_coding() {
    let server = Server::new().file("page.html", text(5000)).start();
    for round in 0..3u8 {
        let content = vec![b'a' + round; 5000];
        fs::write(server.root().join("page.html"), &content).expect("it is the test's own");
        for (accept, program) in [("gzip", "gzip"), ("zstd", "zstd")] {
            if !needs(program) {
                continue;
            }
            let response = accepting(&server, "/page.html", accept);
            assert_eq!(through(&[program, "-dc"], &response.body), content);
        }
    }
}

#[test]
fn head_has_the_fields_of_get_in_every_coding() {
    let server = with_forms().file("page.html", text(5000)).start();
    for target in ["/app.js", "/page.html"] {
        for accept in [
            "",
            "gzip",
            "br",
            "zstd",
            BROWSER,
            "identity;q=0",
            "gzip, *;q=0",
        ] {
            let [get, head] = ["GET", "HEAD"].map(|method| {
                let response = server.request(method, target, &[("Accept-Encoding", accept)], b"");
                let fields: Vec<_> = response
                    .headers
                    .iter()
                    .filter(|(n, _)| n != "Date")
                    .cloned()
                    .collect();
                (response.status, fields)
            });
            assert_eq!(get, head, "{target} {accept}");
        }
    }
}

#[test]
fn each_coding_has_a_tag_of_its_own_that_revalidates() {
    let server = with_forms().file("page.html", text(5000)).start();
    let mut rows = Rows::new();
    for target in ["/app.js", "/page.html"] {
        let codings = ["identity", "gzip", "br", "zstd"];
        let tags = codings.map(|accept| tag(&accepting(&server, target, accept)));
        for (accept, own) in codings.iter().zip(&tags) {
            for (other, tag) in codings.iter().zip(&tags) {
                let what = format!("{target} {accept} {other}");
                let same = accept == other;
                rows.check(&what, (own == tag) == same, || own.clone());
                let fields = |name| [("Accept-Encoding", *accept), (name, tag.as_str())];
                let known = ask(&server, target, &fields("If-None-Match"));
                let expected = if same { 304 } else { 200 };
                let holds = known.status == expected
                    && known.header("ETag").as_ref() == Some(own)
                    && vary(&known) == "accept-encoding";
                rows.check(&what, holds, || known.to_string());
                let matched = ask(&server, target, &fields("If-Match"));
                let expected = if same { 200 } else { 412 };
                let holds =
                    matched.status == expected && vary(&matched).contains("accept-encoding");
                rows.check(&what, holds, || matched.to_string());
            }
        }
    }
    rows.done();
}

#[test]
fn a_range_is_one_of_the_bytes_as_they_are() {
    let content = text(5000);
    let server = Server::new().file("page.html", &content).start();
    let plain = tag(&accepting(&server, "/page.html", "identity"));
    let coded = tag(&accepting(&server, "/page.html", "gzip"));
    let with = |more: &[(&str, &str)]| {
        let fields = [&[("Range", "bytes=100-199")], more].concat();
        ask(&server, "/page.html", &fields)
    };
    let accept = ("Accept-Encoding", "gzip");
    let part = with(&[accept]);
    assert_eq!(
        (coding(&part).as_str(), tag(&part)),
        ("206 -", plain.clone())
    );
    assert_eq!(part.body, content[100..200]);
    assert_eq!(vary(&part), "accept-encoding");
    // What a client has of a coded form can't be gone on with; it gets all.
    let other = with(&[accept, ("If-Range", &coded)]);
    assert_eq!((coding(&other).as_str(), &other.body), ("200 -", &content));
    let same = with(&[accept, ("If-Range", &plain)]);
    assert_eq!((same.status, &same.body[..]), (206, &content[100..200]));
    // Who takes no such bytes gets no range of them.
    let refused = with(&[("Accept-Encoding", "gzip, identity;q=0")]);
    assert_eq!(
        (coding(&refused).as_str(), tag(&refused)),
        ("200 gzip", coded)
    );
    let beyond = [accept, ("Range", "bytes=9000-")];
    let beyond = ask(&server, "/page.html", &beyond);
    assert_eq!(beyond.status, 416);
    assert!(vary(&beyond).contains("accept-encoding"));
    // Range is for GET.
    let fields = [accept, ("Range", "bytes=0-1")];
    let head = server.request("HEAD", "/page.html", &fields, b"");
    assert_eq!(coding(&head), "200 gzip");
}

#[test]
fn a_download_that_broke_off_goes_on_right() {
    let content = text(50_000);
    let server = Server::new().file("notes.txt", &content).start();
    let folder = tempfile::tempdir().expect("there is room");
    let url = server.url("/notes.txt");
    for (program, words) in [
        ("curl", &["--silent", "--compressed", "-C", "-", "-o"][..]),
        ("wget", &["--quiet", "--compression=none", "-c", "-O"]),
    ] {
        if !needs(program) {
            continue;
        }
        let path = folder.path().join(program);
        fs::write(&path, &content[..12_345]).expect("it is the test's own");
        let status = Command::new(program)
            .args(words)
            .arg(&path)
            .arg(&url)
            .status();
        assert!(status.expect("it is there").success(), "{program}");
        let whole = fs::read(&path).expect("it was written");
        assert!(whole == content, "{program}: {} bytes", whole.len());
    }
}

#[test]
fn many_first_requests_at_once_all_get_the_right_content() {
    if !needs("zstd") {
        return;
    }
    let contents: Vec<Vec<u8>> = (0..40).map(|n| text(200_000 + 20 * n)).collect();
    let setup = contents
        .iter()
        .enumerate()
        .fold(Server::new(), |setup, (n, content)| {
            setup.file(format!("{n}.txt"), content)
        });
    let server = setup.start();
    std::thread::scope(|scope| {
        for (n, content) in contents.iter().enumerate() {
            let server = &server;
            scope.spawn(move || {
                let response = accepting(server, &format!("/{n}.txt"), "zstd");
                // Where too many wait it is sent as it is.
                match coding(&response).as_str() {
                    "200 zstd" => assert_eq!(&through(&["zstd", "-dc"], &response.body), content),
                    other => assert_eq!((other, &response.body), ("200 -", content)),
                }
            });
        }
    });
}

#[test]
fn what_a_script_prints_or_names_is_sent_as_it_is_c106_c118() {
    let folder = tempfile::tempdir().expect("there is room");
    let content = text(5000);
    fs::write(folder.path().join("page.html"), &content).expect("it is the test's own");
    let printed = [b"Content-Type: text/html\n\n".as_slice(), &content].concat();
    let server = Server::new()
        .prints("cgi-bin/page", printed)
        .prints("cgi-bin/send", "X-Sendfile: page.html\n\n")
        .arg("--cgi-sendfile")
        .arg(folder.path())
        .start();
    for target in ["/cgi-bin/page", "/cgi-bin/send"] {
        for accept in ["gzip", "gzip, identity;q=0"] {
            let response = accepting(&server, target, accept);
            assert_eq!(coding(&response), "200 -", "{target}: {response}");
            assert_eq!(response.body, content, "{target}");
            assert_eq!(vary(&response), "", "{target}");
        }
    }
}
