//! `Files::respond` on folders made for the test.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE};
use tempfile::TempDir;

use super::*;
use crate::message::{BodyError, Piece, Source};

/// A folder, what it is served with, and requests to it.
struct Site {
    folder: TempDir,
    options: Options,
}

/// A response whose body has been read.
struct Answer {
    head: http::response::Parts,
    body: Result<Vec<u8>, BodyError>,
    length: Option<u64>,
}

impl Site {
    fn new(files: &[(&str, &str)]) -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            options: Options::default(),
        };
        for (name, content) in files {
            let path = site.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name)
    }

    async fn request(
        &self,
        method: Method,
        target: &str,
        fields: &[(HeaderName, &str)],
    ) -> Result<Answer, Fault> {
        let files = Files::new(&self.path(""), self.options.clone()).unwrap();
        let mut request = http::Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let target = Target::parse(&Bytes::copy_from_slice(target.as_bytes())).unwrap();
        let (head, body) = files.respond(&head, &target).await?.into_parts();
        let length = body.length();
        let body = read(body).await;
        Ok(Answer { head, body, length })
    }

    async fn get(&self, target: &str, fields: &[(HeaderName, &str)]) -> Answer {
        match self.request(Method::GET, target, fields).await {
            Ok(answer) => answer,
            Err(fault) => panic!("{target}: {fault:?}"),
        }
    }

    /// The status of a GET, served or refused.
    async fn status(&self, target: &str) -> u16 {
        match self.request(Method::GET, target, &[]).await {
            Ok(answer) => answer.status(),
            Err(fault) => fault.status.as_u16(),
        }
    }
}

impl Answer {
    fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    fn field(&self, name: HeaderName) -> &str {
        let value = self.head.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }
}

async fn read(body: Body) -> Result<Vec<u8>, BodyError> {
    use std::os::unix::fs::FileExt;
    match body {
        Body::Empty => Ok(Vec::new()),
        Body::Bytes(bytes) => Ok(bytes.into()),
        Body::File(body) => {
            let mut bytes = vec![0; usize::try_from(body.length).unwrap()];
            body.file.read_exact_at(&mut bytes, body.offset)?;
            Ok(bytes)
        }
        Body::Stream(mut body) => {
            let mut bytes = Vec::new();
            while let Some(piece) = body.source.next().await {
                bytes.extend_from_slice(&piece?);
            }
            Ok(bytes)
        }
        Body::Unframed(_) | Body::Tunnel(_) => unreachable!("no file is sent so"),
    }
}

fn set_modified(path: &Path, age: Duration) {
    let file = fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn a_file_is_sent_with_its_type_and_its_validators() {
    let site = Site::new(&[("a b.html", "<p>hello")]);
    let answer = site.get("/a%20b.html", &[]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text(), "<p>hello");
    assert_eq!(answer.length, Some(8));
    assert_eq!(answer.field(CONTENT_TYPE), "text/html; charset=utf-8");
    assert_eq!(answer.field(X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert_eq!(answer.field(ACCEPT_RANGES), "bytes");
    assert_eq!(answer.field(CACHE_CONTROL), "no-cache");
    assert!(answer.field(ETAG).starts_with('"'));
    assert!(answer.field(LAST_MODIFIED).ends_with(" GMT"));
    // That is the engine's field.
    assert_eq!(answer.field(CONTENT_LENGTH), "");
}

#[tokio::test]
async fn requests_are_answered_on_any_thread() {
    let site = Site::new(&[("d/a", "content")]);
    let files = Arc::new(Files::new(&site.path(""), Options::default()).unwrap());
    let requests = ["/d/a", "/d/", "/d/?archive=zip"].map(|target| {
        let files = Arc::clone(&files);
        tokio::spawn(async move {
            let (head, ()) = http::Request::new(()).into_parts();
            let target = Target::parse(&Bytes::from_static(target.as_bytes())).unwrap();
            files.respond(&head, &target).await.unwrap().status()
        })
    });
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn other_methods_are_refused_and_options_names_those_there_are() {
    let site = Site::new(&[("a", ""), ("d/x", "")]);
    for target in ["/a", "/d", "/d/"] {
        let fault = site.request(Method::POST, target, &[]).await;
        let fault = fault.err().unwrap();
        assert_eq!(fault.status, 405);
        assert_eq!(fault.headers[ALLOW], ALLOWED);
        let answer = site.request(Method::OPTIONS, target, &[]).await.unwrap();
        assert_eq!((answer.status(), answer.field(ALLOW)), (204, ALLOWED));
    }
    for (method, status) in [(Method::POST, 405), (Method::OPTIONS, 404)] {
        let fault = site.request(method, "/none", &[]).await.err().unwrap();
        assert_eq!(fault.status, status);
    }
}

#[tokio::test]
async fn a_directory_without_its_slash_is_redirected_with_the_query() {
    let site = Site::new(&[("d é?/index.html", "x")]);
    for (target, location) in [
        ("/d%20%C3%A9%3F", "/d%20%C3%A9%3F/"),
        ("/d%20%C3%A9%3F?a=%zz&b", "/d%20%C3%A9%3F/?a=%zz&b"),
        ("//d%20%c3%a9%3f?", "/d%20%C3%A9%3F/"),
    ] {
        let answer = site.get(target, &[]).await;
        assert_eq!(answer.status(), 301);
        assert_eq!(answer.field(LOCATION), location);
    }
}

#[tokio::test]
async fn index_html_stands_for_its_directory_and_index_htm_after_it() {
    let site = Site::new(&[
        ("both/index.html", "html"),
        ("both/index.htm", "htm"),
        ("htm/index.htm", "htm"),
        ("folder/index.html/x", ""),
        ("folder/index.htm", "htm"),
    ]);
    for (target, content) in [("/both/", "html"), ("/htm/", "htm"), ("/folder/", "htm")] {
        let answer = site.get(target, &[]).await;
        assert_eq!(answer.text(), content, "{target}");
        assert_eq!(answer.field(CONTENT_TYPE), "text/html; charset=utf-8");
    }
}

#[tokio::test]
async fn what_names_no_file_is_not_found() {
    let site = Site::new(&[("a", ""), ("d/x", "")]);
    let long = format!("/{}", "n".repeat(256));
    let deep = "/d".repeat(3000);
    for target in [
        "/none",
        "/a/",
        "/a/b",
        "/d%2Fx",
        "/%252e%252e/",
        "/a%5C",
        &long,
        &deep,
    ] {
        assert_eq!(site.status(target).await, 404, "{target}");
    }
}

#[tokio::test]
async fn hidden_files_are_found_only_on_demand_but_well_known_ones_always() {
    let mut site = Site::new(&[
        (".env", ""),
        (".git/config", ""),
        ("d/.x/y", ""),
        (".well-known/acme", ""),
        (".well-known/.x", ""),
    ]);
    symlink(".env", site.path("shown")).unwrap();
    let hidden = [
        "/.env",
        "/.git/config",
        "/d/.x/y",
        "/.git",
        "/.well-known/.x",
    ];
    for target in hidden {
        assert_eq!(site.status(target).await, 404, "{target}");
    }
    assert_eq!(site.status("/.well-known/acme").await, 200);
    assert_eq!(site.status("/shown").await, 200);
    site.options.hidden = true;
    for target in hidden {
        assert_ne!(site.status(target).await, 404, "{target}");
    }
}

#[tokio::test]
async fn links_that_lead_out_are_refused_unless_they_may() {
    let mut site = Site::new(&[("in/x", "inside")]);
    let outside = site.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x"), "outside").unwrap();
    for (link, end) in [
        ("file", "../outside/x"),
        ("folder", "../outside"),
        ("chain", "folder/x"),
    ] {
        symlink(end, site.path(link)).unwrap();
    }
    symlink(&outside, site.path("absolute")).unwrap();
    symlink("in", site.path("inner")).unwrap();
    symlink(site.path("in/x"), site.path("inner-absolute")).unwrap();
    symlink("nothing", site.path("broken")).unwrap();
    symlink("loop", site.path("loop")).unwrap();
    let out = ["/file", "/folder/x", "/folder", "/chain", "/absolute/x"];
    for target in out {
        assert_eq!(site.status(target).await, 403, "{target}");
    }
    for target in ["/inner/x", "/inner-absolute"] {
        assert_eq!(site.get(target, &[]).await.text(), "inside");
    }
    assert_eq!(site.status("/broken").await, 404);
    assert_eq!(site.status("/loop").await, 403);
    site.options.follow_links = true;
    for target in out {
        assert!(site.status(target).await < 400, "{target}");
    }
    assert_eq!(site.get("/folder/x", &[]).await.text(), "outside");
}

#[tokio::test]
async fn a_fifo_or_socket_is_refused_and_never_opened() {
    let site = Site::new(&[("d/x", "")]);
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, site.path("fifo"), kind, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.path("socket")).unwrap();
    symlink("fifo", site.path("link")).unwrap();
    for target in ["/fifo", "/socket", "/link"] {
        assert_eq!(site.status(target).await, 403, "{target}");
    }
}

#[tokio::test]
async fn scripts_are_never_served_however_they_are_reached_c46_c50() {
    let mut site = Site::new(&[
        ("cgi-bin/x.sh", "source"),
        ("cgi-bin/sub/y", "source"),
        ("page.PHP", "source"),
        ("real/z", "source"),
        ("plain", "text"),
    ]);
    symlink("cgi-bin/x.sh", site.path("file")).unwrap();
    symlink("cgi-bin", site.path("folder")).unwrap();
    symlink("page.PHP", site.path("page.txt")).unwrap();
    symlink("real", site.path("htbin")).unwrap();
    site.options = Options {
        withheld: vec!["cgi-bin".into(), "htbin".into(), "none".into()],
        withheld_extensions: vec!["php".to_owned()],
        ..Options::default()
    };
    for (target, status) in [
        ("/cgi-bin/x.sh", 404),
        ("/cgi-bin/sub/y", 404),
        ("/cgi-bin/none", 404),
        ("/cgi-bin/", 403),
        ("/cgi-bin", 403),
        ("/page.PHP", 404),
        ("/file", 403),
        ("/folder/x.sh", 403),
        ("/page.txt", 403),
        // The same directory by its other name.
        ("/real/z", 404),
        ("/plain", 200),
    ] {
        assert_eq!(site.status(target).await, status, "{target}");
    }
}

#[tokio::test]
async fn a_revalidated_file_is_not_sent_again() {
    let site = Site::new(&[("a", "content")]);
    let first = site.get("/a", &[]).await;
    for (name, value) in [
        (IF_NONE_MATCH, first.field(ETAG)),
        (IF_MODIFIED_SINCE, first.field(LAST_MODIFIED)),
    ] {
        let again = site.get("/a", &[(name, value)]).await;
        assert_eq!(again.status(), 304);
        assert_eq!(again.length, Some(0));
        assert_eq!(again.field(ETAG), first.field(ETAG));
        assert_eq!(again.field(LAST_MODIFIED), first.field(LAST_MODIFIED));
        assert_eq!(again.field(CACHE_CONTROL), "no-cache");
    }
}

#[tokio::test]
async fn an_edit_of_the_same_length_within_one_tick_of_the_clock_is_seen() {
    let site = Site::new(&[]);
    fs::create_dir(site.path("")).unwrap();
    let mut tag = String::new();
    for round in 0..20 {
        let content = format!("{round:04}");
        fs::write(site.path("a"), &content).unwrap();
        let answer = site.get("/a", &[(IF_NONE_MATCH, &tag)]).await;
        assert_eq!((answer.status(), answer.text()), (200, &content[..]));
        tag = answer.field(ETAG).to_owned();
    }
}

#[tokio::test]
async fn an_edit_that_keeps_the_time_of_modification_is_seen() {
    let site = Site::new(&[("a", "one")]);
    let day = Duration::from_secs(86_400);
    set_modified(&site.path("a"), day);
    let first = site.get("/a", &[]).await;
    fs::write(site.path("a"), "two").unwrap();
    set_modified(&site.path("a"), day);
    let fields = [(IF_NONE_MATCH, first.field(ETAG))];
    assert_eq!(site.get("/a", &fields).await.text(), "two");
}

#[tokio::test]
async fn ranges_are_sent_and_named() {
    let site = Site::new(&[("a", "0123456789"), ("empty", "")]);
    let one = site.get("/a", &[(RANGE, "bytes=2-4")]).await;
    assert_eq!((one.status(), one.text()), (206, "234"));
    assert_eq!(one.field(CONTENT_RANGE), "bytes 2-4/10");
    assert_eq!(one.length, Some(3));

    let two = site.get("/a", &[(RANGE, "bytes=0-0,-1")]).await;
    assert_eq!(two.status(), 206);
    assert_eq!(two.field(CONTENT_RANGE), "");
    let media_type = two.field(CONTENT_TYPE);
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=");
    let end = format!("--{}--\r\n", boundary.unwrap());
    assert!(two.text().ends_with(&end), "{}", two.text());
    assert_eq!(two.length, Some(two.text().len() as u64));

    for (target, range, whole) in [("/a", "bytes=10-", "*/10"), ("/empty", "bytes=0-0", "*/0")] {
        let fields = [(RANGE, range)];
        let fault = site.request(Method::GET, target, &fields).await;
        let fault = fault.err().unwrap();
        assert_eq!(fault.status, 416);
        assert_eq!(fault.headers[CONTENT_RANGE], format!("bytes {whole}"));
    }
    let head = site.request(Method::HEAD, "/a", &[(RANGE, "bytes=2-4")]);
    assert_eq!(head.await.unwrap().status(), 200);
}

#[tokio::test]
async fn if_range_sends_the_part_or_the_whole() {
    let site = Site::new(&[("a", "0123456789")]);
    set_modified(&site.path("a"), Duration::from_secs(60));
    let first = site.get("/a", &[]).await;
    for (value, status) in [
        (first.field(ETAG), 206),
        (first.field(LAST_MODIFIED), 206),
        ("\"other\"", 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
    ] {
        let fields = [(RANGE, "bytes=0-0"), (IF_RANGE, value)];
        assert_eq!(site.get("/a", &fields).await.status(), status, "{value}");
    }
}

/// The `href` of every entry of a listing, in its order.
fn links(page: &str) -> Vec<&str> {
    let (_, entries) = page.split_once("<tbody id=\"entries\">").unwrap();
    let (entries, _) = entries.split_once("</tbody>").unwrap();
    let links = entries.split("href=\"").skip(1);
    links.map(|link| link.split_once('"').unwrap().0).collect()
}

#[tokio::test]
async fn a_listing_names_folders_first_and_sorts_on_request() {
    let site = Site::new(&[
        ("d/b10", "1"),
        ("d/B9", "333"),
        ("d/a", "22"),
        ("d/z/x", ""),
    ]);
    let day = Duration::from_secs(86_400);
    set_modified(&site.path("d/a"), day);
    set_modified(&site.path("d/B9"), day * 2);
    for (query, expected) in [
        ("", ["./z/", "./a", "./B9", "./b10"]),
        ("?sort=name&order=desc", ["./z/", "./b10", "./B9", "./a"]),
        ("?sort=size", ["./z/", "./b10", "./a", "./B9"]),
        ("?sort=size&order=desc", ["./z/", "./B9", "./a", "./b10"]),
        ("?sort=time", ["./z/", "./B9", "./a", "./b10"]),
        ("?sort=nothing&order=%zz", ["./z/", "./a", "./B9", "./b10"]),
    ] {
        let answer = site.get(&format!("/d/{query}"), &[]).await;
        assert_eq!(links(answer.text()), expected, "{query}");
        assert_eq!(answer.field(CONTENT_TYPE), "text/html; charset=utf-8");
        assert!(
            answer
                .field(CONTENT_SECURITY_POLICY)
                .starts_with("default-src 'none'")
        );
        assert_eq!(answer.field(VARY), "accept");
    }
    let page = site.get("/d/?sort=size", &[]).await;
    assert!(
        page.text()
            .contains("aria-sort=\"ascending\"><a href=\"?sort=size&amp;order=desc\"")
    );
    assert!(page.text().contains("<a href=\"../\">Parent folder</a>"));
    assert!(
        page.text()
            .contains("<li><a href=\"/\"><bdi>root</bdi></a></li>")
    );
    assert!(!site.get("/", &[]).await.text().contains("Parent folder"));
}

#[tokio::test]
async fn every_link_of_a_listing_leads_to_its_file_whatever_its_name() {
    let site = Site::new(&[("d/first", "first")]);
    let names: [&[u8]; 12] = [
        b"\"quoted\" 'name'",
        b"<img src=x onerror=alert(1)>",
        b"100%",
        b"%2e%2e",
        b"a#b?c&d;e",
        b"new\nline",
        b"not-\xff\xfe-utf8",
        b"javascript:alert(1)",
        b"back\\slash",
        b" spaces ",
        "\u{202e}\u{e9}\u{1f600}".as_bytes(),
        b"{{rows}}",
    ];
    for name in names {
        fs::write(site.path("d").join(OsStr::from_bytes(name)), name).unwrap();
    }
    let page = site.get("/d/", &[]).await;
    let links = links(page.text());
    assert_eq!(links.len(), names.len() + 1);
    for link in links {
        let path = link.strip_prefix("./").unwrap();
        let answer = site.get(&format!("/d/{path}"), &[]).await;
        let content = answer.body.unwrap();
        assert!(
            content == b"first" || names.contains(&&content[..]),
            "{link}"
        );
    }
    assert!(!page.text().contains("<img"));
}

#[tokio::test]
async fn a_listing_shows_what_a_request_would_be_answered_for() {
    let mut site = Site::new(&[
        ("file", "a"),
        (".env", ""),
        ("folder/x", ""),
        ("cgi-bin/x", ""),
    ]);
    let outside = site.folder.path().join("outside");
    fs::write(&outside, "outside").unwrap();
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, site.path("fifo"), kind, mode, 0).unwrap();
    for (link, end) in [
        ("out", "../outside"),
        ("broken", "nothing"),
        ("loop", "loop"),
        ("script", "cgi-bin/x"),
        ("to-file", "file"),
        ("to-folder", "folder"),
        ("to-hidden", ".env"),
    ] {
        symlink(end, site.path(link)).unwrap();
    }
    site.options.withheld = vec!["cgi-bin".into()];
    let shown = [
        "./cgi-bin/",
        "./folder/",
        "./to-folder/",
        "./file",
        "./to-file",
        "./to-hidden",
    ];
    assert_eq!(links(site.get("/", &[]).await.text()), shown);
    site.options.follow_links = true;
    site.options.hidden = true;
    let page = site.get("/", &[]).await;
    let links = links(page.text());
    assert!(
        links.contains(&"./out") && links.contains(&"./.env"),
        "{links:?}"
    );
    assert!(!links.contains(&"./broken") && !links.contains(&"./fifo"));
}

#[tokio::test]
async fn json_has_the_same_entries_in_the_same_order() {
    let site = Site::new(&[("d \"/b", "12345"), ("d \"/a", ""), ("d \"/z/x", "")]);
    set_modified(&site.path("d \"/b"), Duration::ZERO);
    let by_query = site
        .get("/d%20%22/?format=json&sort=size&order=desc", &[])
        .await;
    let listing: serde_json::Value = serde_json::from_str(by_query.text()).unwrap();
    assert_eq!(listing["path"], "/d \"/");
    let entries = listing["entries"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["z", "b", "a"]);
    assert_eq!(entries[0]["type"], "directory");
    assert_eq!(entries[0]["href"], "/d%20%22/z/");
    assert!(entries[0]["size"].is_null());
    assert_eq!(entries[1]["type"], "file");
    assert_eq!(entries[1]["size"], 5);
    let modified = entries[1]["modified"].as_str().unwrap();
    assert!(
        modified.len() == 20 && modified.ends_with('Z'),
        "{modified}"
    );
    assert_eq!(
        by_query.field(CONTENT_TYPE),
        "application/json; charset=utf-8"
    );
    assert_eq!(by_query.field(VARY), "");

    let by_accept = site.get("/d%20%22/", &[(ACCEPT, "application/json")]).await;
    assert!(by_accept.text().starts_with('{'));
    assert_eq!(by_accept.field(VARY), "accept");
}

#[tokio::test]
async fn an_index_yields_to_a_form_that_the_query_names_only() {
    let site = Site::new(&[("index.html", "index")]);
    assert!(site.get("/?format=json", &[]).await.text().starts_with('{'));
    for query in ["", "?format=xml", "?archive=2024", "?sort=size"] {
        let answer = site
            .get(&format!("/{query}"), &[(ACCEPT, "application/json")])
            .await;
        assert_eq!(answer.text(), "index", "{query}");
    }
}

#[tokio::test]
async fn a_listing_is_sent_again_when_an_entry_has_changed() {
    let site = Site::new(&[("d/a", "1")]);
    let first = site.get("/d/", &[]).await;
    let fields = [(IF_NONE_MATCH, first.field(ETAG))];
    let again = site.get("/d/", &fields).await;
    assert_eq!((again.status(), again.field(VARY)), (304, "accept"));
    fs::write(site.path("d/a"), "22").unwrap();
    assert_eq!(site.get("/d/", &fields).await.status(), 200);
}

#[tokio::test]
async fn an_unreadable_index_is_refused_and_no_listing_shown_instead() {
    // Root reads everything; a link that leads out is refused for all.
    let site = Site::new(&[("d/a", "")]);
    symlink("/etc/hostname", site.path("d/index.html")).unwrap();
    assert_eq!(site.status("/d/").await, 403);
}

/// Names and contents; folders end in a slash.
type Entries = BTreeMap<Vec<u8>, String>;

fn untar(bytes: &[u8]) -> Entries {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let mut entries = Entries::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        entries.insert(entry.path_bytes().into_owned(), content);
    }
    entries
}

fn unzip(bytes: &[u8]) -> Entries {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut entries = Entries::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let name = entry.name().unwrap().as_bytes().to_vec();
        entries.insert(name, content);
    }
    entries
}

fn entries(expected: &[(&str, &str)]) -> Entries {
    let entry = |(name, content): &(&str, &str)| (name.as_bytes().to_vec(), (*content).to_owned());
    expected.iter().map(entry).collect()
}

#[tokio::test]
async fn an_archive_holds_what_browsing_shows_below_the_name_of_the_folder() {
    let mut site = Site::new(&[
        ("d/a.txt", "a"),
        ("d/empty", ""),
        ("d/sub/b", "b"),
        ("d/.env", "secret"),
        ("d/.git/config", "secret"),
        ("d/page.php", "source"),
        ("d/cgi-bin/x", "source"),
        ("beside", "beside"),
    ]);
    fs::create_dir(site.path("d/nothing")).unwrap();
    fs::write(site.folder.path().join("outside"), "outside").unwrap();
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, site.path("d/fifo"), kind, mode, 0).unwrap();
    for (link, end) in [
        ("d/out", "../../outside"),
        ("d/out-folder", "../.."),
        ("d/broken", "none"),
        ("d/sub/round", ".."),
        ("d/script", "cgi-bin/x"),
        ("d/to-beside", "../beside"),
        ("d/to-sub", "sub"),
    ] {
        symlink(end, site.path(link)).unwrap();
    }
    site.options.withheld = vec!["d/cgi-bin".into()];
    site.options.withheld_extensions = vec!["php".to_owned()];
    let expected = entries(&[
        ("d/", ""),
        ("d/a.txt", "a"),
        ("d/empty", ""),
        ("d/nothing/", ""),
        ("d/sub/", ""),
        ("d/sub/b", "b"),
        ("d/to-beside", "beside"),
        ("d/to-sub/", ""),
        ("d/to-sub/b", "b"),
    ]);
    let tar = site.get("/d/?archive=tar.gz", &[]).await;
    assert_eq!(tar.field(CONTENT_TYPE), "application/gzip");
    assert_eq!(tar.length, None);
    assert_eq!(untar(&tar.body.unwrap()), expected);
    let zip = site.get("/d/?archive=zip", &[]).await;
    assert_eq!(zip.field(CONTENT_TYPE), "application/zip");
    assert_eq!(unzip(&zip.body.unwrap()), expected);

    site.options.follow_links = true;
    site.options.hidden = true;
    let all = site.get("/d/?archive=zip", &[]).await;
    let all = unzip(&all.body.unwrap());
    assert_eq!(all[&b"d/out"[..]], "outside");
    assert_eq!(all[&b"d/.env"[..]], "secret");
    assert!(!all.contains_key(&b"d/cgi-bin/x"[..]));
}

#[tokio::test]
async fn an_archive_is_named_after_its_folder() {
    let site = Site::new(&[("\u{e9} \"x\"/a", "")]);
    for (target, expected) in [
        (
            "/%C3%A9%20%22x%22/?archive=zip",
            "attachment; filename=\"_ _x_.zip\"; filename*=UTF-8''%C3%A9%20%22x%22.zip",
        ),
        (
            "/?archive=tar.gz",
            "attachment; filename=\"root.tar.gz\"; filename*=UTF-8''root.tar.gz",
        ),
    ] {
        let answer = site.request(Method::HEAD, target, &[]).await.unwrap();
        assert_eq!(answer.field(CONTENT_DISPOSITION), expected);
        assert_eq!((answer.length, answer.text()), (None, ""));
    }
}

#[tokio::test]
async fn names_of_any_length_and_bytes_are_right_in_an_archive() {
    let site = Site::new(&[("d/x", "")]);
    let long = "l".repeat(250);
    let exact = "e".repeat(98);
    let names = [
        long.clone().into_bytes(),
        exact.into_bytes(),
        format!("{long}2/{long}").into_bytes(),
        b"not-\xff-utf8".to_vec(),
        [&b"\xff"[..], &[b'n'; 200]].concat(),
        "\u{e9}\u{1f600}".into(),
        b"back\\slash\nnewline".to_vec(),
    ];
    for name in &names {
        let path = site.path("d").join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "content").unwrap();
    }
    let tar = untar(&site.get("/d/?archive=tar.gz", &[]).await.body.unwrap());
    let zip = unzip(&site.get("/d/?archive=zip", &[]).await.body.unwrap());
    for name in names {
        let name = [&b"d/"[..], &name].concat();
        assert_eq!(tar.get(&name).map(String::as_str), Some("content"));
        let shown = String::from_utf8(name)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).replace('\u{fffd}', "%FF"));
        assert_eq!(
            zip.get(shown.as_bytes()).map(String::as_str),
            Some("content")
        );
    }
}

#[tokio::test]
async fn an_archive_keeps_times_and_the_right_to_execute() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new(&[("d/plain", ""), ("d/run", "")]);
    fs::set_permissions(site.path("d/plain"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(site.path("d/run"), PermissionsExt::from_mode(0o700)).unwrap();
    for name in ["d/plain", "d/run"] {
        let file = fs::File::open(site.path(name)).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_709_164_802);
        file.set_modified(time).unwrap();
    }
    let tar = site.get("/d/?archive=tar.gz", &[]).await.body.unwrap();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&tar[..]));
    let found: Vec<_> = tar
        .entries()
        .unwrap()
        .map(|entry| {
            let header = entry.unwrap().header().clone();
            (header.mode().unwrap(), header.mtime().unwrap())
        })
        .skip(1)
        .collect();
    assert_eq!(found, [(0o644, 1_709_164_802), (0o755, 1_709_164_802)]);

    let zip = site.get("/d/?archive=zip", &[]).await.body.unwrap();
    let mut zip = zip::ZipArchive::new(Cursor::new(zip)).unwrap();
    for (name, mode) in [("d/plain", 0o644), ("d/run", 0o755)] {
        let entry = zip.by_name(name).unwrap();
        assert_eq!(entry.unix_mode().map(|mode| mode & 0o777), Some(mode));
        let time = entry.last_modified().unwrap();
        assert_eq!((time.year(), time.month(), time.day()), (2024, 2, 29));
    }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let byte = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(byte).take(length).collect()
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_packed_ends_the_archive_with_an_error() {
    for format in [Format::TarGz, Format::Zip] {
        let site = Site::new(&[("d/x", "")]);
        let path = site.path("d/a");
        fs::write(&path, noise(10 << 20)).unwrap();
        let root = Arc::new(Root::new(&site.path(""), Options::default()).unwrap());
        let Ok(Node::Directory(directory)) = root.find(Path::new("d")) else {
            panic!("the folder is there");
        };
        let mut archive = Archive::new(root, &directory, b"d", format);
        assert!(archive.next().await.unwrap().is_ok());
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(5 << 20).unwrap();
        let end = loop {
            match archive.next().await {
                Some(Ok(_)) => {}
                end => break end,
            }
        };
        assert!(matches!(end, Some(Err(BodyError::Truncated))), "{format:?}");
    }
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing_of_an_archive() {
    let site = Site::new(&[("d/x", "")]);
    fs::write(site.path("d/a"), noise(1 << 20)).unwrap();
    let root = Arc::new(Root::new(&site.path(""), Options::default()).unwrap());
    let Ok(Node::Directory(directory)) = root.find(Path::new("d")) else {
        panic!("the folder is there");
    };
    let mut archive = Archive::new(root, &directory, b"d", Format::TarGz);
    let mut bytes = Vec::new();
    loop {
        // Asked once and dropped, then asked again.
        let hurried = tokio::select! {
            biased;
            piece = archive.next() => Some(piece),
            () = std::future::ready(()) => None,
        };
        let piece = match hurried {
            Some(piece) => piece,
            None => archive.next().await,
        };
        let Some(piece) = piece else { break };
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(untar_lengths(&bytes), [0, 1 << 20, 0]);
}

fn untar_lengths(bytes: &[u8]) -> Vec<u64> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let entries = tar.entries().unwrap();
    entries.map(|entry| entry.unwrap().size()).collect()
}

/// Asks until the file has been left alone for long enough to be kept.
async fn ask_until_kept(files: &Files, target: &'static str, accept: Option<&str>) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut request = http::Request::builder();
        if let Some(accept) = accept {
            request = request.header(ACCEPT_ENCODING, accept);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let parsed = Target::parse(&Bytes::from_static(target.as_bytes())).unwrap();
        files.respond(&head, &parsed).await.unwrap();
        if let Some(again) = files.respond_again(target.as_bytes(), accept.map(str::as_bytes)) {
            let body = match again.content {
                Piece::Bytes(bytes) => Body::Bytes(bytes),
                Piece::File(file) => Body::File(file),
            };
            return read(body).await.unwrap();
        }
        assert!(Instant::now() < deadline, "{target} is never kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_answer_is_given_again_only_while_the_file_is_the_same() {
    let long = "x".repeat(100_000);
    let site = Site::new(&[("a", "one"), ("d/b", "two"), ("long", &long)]);
    let files = Files::new(&site.path(""), Options::default()).unwrap();
    assert_eq!(ask_until_kept(&files, "/a", None).await, b"one");
    assert_eq!(ask_until_kept(&files, "/d/b", None).await, b"two");
    assert_eq!(ask_until_kept(&files, "/long", None).await, long.as_bytes());
    let again = |target: &str| files.respond_again(target.as_bytes(), None).is_some();
    assert!(!again("/a?x") && !again("/none") && !again("/d/"));

    // The same length, and the time of modification set back.
    let before = fs::metadata(site.path("a")).unwrap().modified().unwrap();
    fs::write(site.path("a"), "two").unwrap();
    let file = File::options().write(true).open(site.path("a")).unwrap();
    file.set_modified(before).unwrap();
    assert!(!again("/a"));
    fs::remove_file(site.path("long")).unwrap();
    assert!(!again("/long"));
    // The very same file, now by way of a link that leads out.
    let outside = tempfile::tempdir().unwrap();
    fs::rename(site.path("d"), outside.path().join("d")).unwrap();
    symlink(outside.path().join("d"), site.path("d")).unwrap();
    assert!(!again("/d/b"));
}

#[tokio::test]
async fn an_index_that_may_be_outdone_is_not_kept() {
    let site = Site::new(&[("d/index.htm", "second choice")]);
    let files = Files::new(&site.path(""), Options::default()).unwrap();
    // Under its own name it is, so it was left alone for long enough.
    ask_until_kept(&files, "/d/index.htm", None).await;
    let (head, ()) = http::Request::new(()).into_parts();
    let target = Target::parse(&Bytes::from_static(b"/d/")).unwrap();
    files.respond(&head, &target).await.unwrap();
    assert!(files.respond_again(b"/d/", None).is_none());
    fs::write(site.path("d/index.html"), "first choice").unwrap();
    assert_eq!(ask_until_kept(&files, "/d/", None).await, b"first choice");
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    decoder.read_to_end(&mut content).unwrap();
    content
}

fn coding_site(files: &[(&str, &str)]) -> Site {
    let mut site = Site::new(files);
    site.options.codings = Codings::OnTheFly;
    site
}

#[tokio::test]
async fn a_coded_answer_is_given_again_only_while_nothing_beside_the_file_has_changed() {
    let text = "line\n".repeat(1000);
    let site = coding_site(&[
        ("a.txt", &text),
        ("d/b.txt", &text),
        ("d/c.txt", &text),
        ("d/c.txt.gz", "one"),
    ]);
    let files = Files::new(&site.path(""), site.options.clone()).unwrap();
    let again = |target: &str| {
        let answer = files.respond_again(target.as_bytes(), Some(b"gzip"));
        answer.is_some()
    };
    for target in ["/a.txt", "/d/b.txt"] {
        let sent = ask_until_kept(&files, target, Some("gzip")).await;
        assert_eq!(unzipped(&sent), text.as_bytes(), "{target}");
        // Not for a client that takes no coding, or another one.
        for accept in ["", "br", "gzip;q=0"] {
            let answer = files.respond_again(target.as_bytes(), Some(accept.as_bytes()));
            assert!(answer.is_none(), "{target} {accept}");
        }
    }
    assert_eq!(
        ask_until_kept(&files, "/d/c.txt", Some("gzip")).await,
        b"one"
    );

    // A form comes.
    fs::write(site.path("a.txt.gz"), "new").unwrap();
    assert!(!again("/a.txt"));
    assert_eq!(ask_until_kept(&files, "/a.txt", Some("gzip")).await, b"new");
    // It is written again in its place: the folder has not changed.
    fs::write(site.path("a.txt.gz"), "own").unwrap();
    assert!(!again("/a.txt"));
    assert_eq!(ask_until_kept(&files, "/a.txt", Some("gzip")).await, b"own");
    // It becomes older than the file.
    set_modified(&site.path("a.txt.gz"), Duration::from_secs(3600));
    assert!(!again("/a.txt"));
    let sent = ask_until_kept(&files, "/a.txt", Some("gzip")).await;
    assert_eq!(unzipped(&sent), text.as_bytes());
    // And newer again, although it is not what is sent.
    set_modified(&site.path("a.txt.gz"), Duration::ZERO);
    assert!(!again("/a.txt"));
    // It goes.
    ask_until_kept(&files, "/d/c.txt", Some("gzip")).await;
    fs::remove_file(site.path("d/c.txt.gz")).unwrap();
    assert!(!again("/d/c.txt"));
    // The file is changed.
    ask_until_kept(&files, "/d/b.txt", Some("gzip")).await;
    fs::write(site.path("d/b.txt"), "x".repeat(text.len())).unwrap();
    assert!(!again("/d/b.txt"));
}

#[tokio::test]
async fn a_kept_answer_for_everyone_is_none_for_who_refuses_plain_bytes() {
    let site = coding_site(&[("picture.png", "x"), ("page.html", "short")]);
    let files = Files::new(&site.path(""), site.options.clone()).unwrap();
    for target in ["/picture.png", "/page.html"] {
        ask_until_kept(&files, target, None).await;
        let again = files.respond_again(target.as_bytes(), Some(b"identity;q=0"));
        assert!(again.is_none(), "{target}");
    }
}

#[tokio::test]
async fn a_coded_form_beside_a_linked_form_is_not_kept() {
    let text = "line\n".repeat(1000);
    let site = coding_site(&[("a.txt", &text), ("b.txt", &text), ("d/form", "one")]);
    symlink("d/form", site.path("a.txt.gz")).unwrap();
    symlink("d/none", site.path("b.txt.gz")).unwrap();
    let files = Files::new(&site.path(""), site.options.clone()).unwrap();
    // When this one is kept the others have been left alone for long enough.
    ask_until_kept(&files, "/d/form", None).await;
    let request = http::Request::builder().header(ACCEPT_ENCODING, "gzip");
    let (head, ()) = request.body(()).unwrap().into_parts();
    for target in ["/a.txt", "/b.txt"] {
        let parsed = Target::parse(&Bytes::from_static(target.as_bytes())).unwrap();
        files.respond(&head, &parsed).await.unwrap();
        let again = files.respond_again(target.as_bytes(), Some(b"gzip"));
        assert!(again.is_none(), "{target}");
    }
}
