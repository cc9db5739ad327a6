//! A folder as a page, as JSON and as an archive: the same entries in each, and
//! each name leads to its file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;
use walkdir::WalkDir;

use crate::support::{Response, Rows, Server, Setup, eventually, needs, shown};

/// Names that break listings. Each file holds its own name.
pub(crate) const HOSTILE: [&[u8]; 30] = [
    b"plain.txt",
    b"with space",
    b" leading and trailing ",
    b"single'quote",
    b"double\"quote",
    b"<script>alert(1)<",
    b"&amp;",
    b"50%",
    b"%41",
    b"%2e%2e%2fetc",
    b"hash#tag",
    b"question?mark=1&x",
    b"plus+plus",
    b"semi;colon",
    b"back\\slash",
    b"col:on",
    b"javascript:alert(1)",
    b"https:",
    b"-rf",
    b"new\nline",
    b"carriage\rreturn",
    b"tab\tescape\x1b[31m",
    b"delete\x7f",
    b"latin1-\xe9",
    b"broken-utf8-\xf0\x9f\x92",
    "ümläut-e\u{301}-日本-☕".as_bytes(),
    "turned\u{202e}gpj.exe".as_bytes(),
    "zero\u{200b}width\u{feff}".as_bytes(),
    b"`$(reboot)`",
    b"{{rows}}",
];

pub(crate) fn hostile() -> Setup {
    let mut names: Vec<Vec<u8>> = HOSTILE.iter().map(|name| name.to_vec()).collect();
    // As long as a name may be.
    names.push(vec![b'x'; 255]);
    names.iter().fold(Server::new(), |setup, name| {
        setup.file(Path::new("folder").join(OsStr::from_bytes(name)), name)
    })
}

fn json(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(
        response.header("Content-Type").as_deref(),
        Some("application/json; charset=utf-8")
    );
    serde_json::from_slice(&response.body).expect("it is JSON")
}

/// The `href` of each entry, in order.
fn hrefs_of_json(response: &Response) -> Vec<String> {
    let listing = json(response);
    let entries = listing["entries"].as_array().expect("a list");
    let href = |entry: &Value| entry["href"].as_str().expect("a string").to_owned();
    entries.iter().map(href).collect()
}

/// The same of the page's rows, as a browser resolves them for `base`.
fn hrefs_of_page(page: &Response, base: &str) -> Vec<String> {
    let text = page.text();
    let (_, rows) = text.split_once("<tbody id=\"entries\">").expect("a table");
    let rows = rows.split("<tr").skip(1);
    rows.map(|row| {
        let href = row.split("href=\"").nth(1).expect("a row has a link");
        let href = href.split('"').next().unwrap_or_default();
        let name = href.strip_prefix("./").expect("links are relative");
        format!("{base}{}", name.replace("&amp;", "&"))
    })
    .collect()
}

#[test]
fn every_name_however_hostile_leads_to_its_file() {
    let server = hostile().start();
    let page = server.get("/folder/");
    assert_eq!(page.status, 200);
    let by_page = hrefs_of_page(&page, "/folder/");
    assert_eq!(by_page.len(), HOSTILE.len() + 1);
    assert_eq!(
        hrefs_of_json(&server.get("/folder/?format=json")),
        by_page,
        "JSON and page differ"
    );
    let mut seen = BTreeSet::new();
    for href in &by_page {
        let response = server.get(href);
        assert_eq!(response.status, 200, "{href}: {response}");
        seen.insert(response.body);
    }
    for name in HOSTILE {
        assert!(seen.contains(name), "no link led to {}", shown(name));
    }
    // A file called like mark-up is text.
    assert!(page.text().contains("&lt;script&gt;alert(1)&lt;"));
    assert!(!page.text().contains("<script>alert"));
}

#[test]
fn json_has_what_the_page_has() {
    let server = hostile()
        .file("folder/sub folder/inside", "")
        .file("folder/empty", "")
        .start();
    let listing = json(&server.request("GET", "/folder/", &[("Accept", "application/json")], b""));
    assert_eq!(listing["path"], "/folder/");
    let entries = listing["entries"].as_array().expect("a list");
    let entry = |name: &str| {
        let found = entries.iter().find(|entry| entry["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {listing}"))
    };
    let folder = entry("sub folder");
    assert_eq!(folder["type"], "directory");
    assert_eq!(folder["size"], Value::Null);
    assert_eq!(folder["href"], "/folder/sub%20folder/");
    let file = entry("new\nline");
    assert_eq!((&file["type"], &file["size"]), (&"file".into(), &8.into()));
    assert_eq!(entry("empty")["size"], 0);
    // What is no UTF-8 is replaced in the name and whole in the link.
    assert_eq!(entry("latin1-\u{fffd}")["href"], "/folder/latin1-%E9");
    for entry in entries {
        let modified = entry["modified"].as_str().expect("a string");
        assert!(modified.len() == 20 && modified.ends_with('Z'), "{entry}");
    }
    // A browser that would take JSON too gets the page.
    let accept = [("Accept", "text/html,application/json;q=0.9,*/*;q=0.8")];
    let page = server.request("GET", "/folder/", &accept, b"");
    assert_eq!(
        page.header("Content-Type").as_deref(),
        Some("text/html; charset=utf-8")
    );
    let vary = page.header("Vary").unwrap_or_default();
    assert!(vary.eq_ignore_ascii_case("accept"), "{vary}");
}

#[test]
fn a_listing_is_sorted_as_its_query_says_without_any_script() {
    let server = Server::new()
        .file("b10", "1")
        .file("B9", "22")
        .file("a", "333")
        .folder("z")
        .file("c/x", "")
        .start();
    let mut rows = Rows::new();
    for (query, expected) in [
        ("", "c/ z/ a B9 b10"),
        ("?sort=name&order=desc", "z/ c/ b10 B9 a"),
        ("?sort=size&order=asc", "c/ z/ b10 B9 a"),
        ("?order=desc&sort=size", "z/ c/ a B9 b10"),
        ("?sort=nonsense&order=%00", "c/ z/ a B9 b10"),
    ] {
        let page = hrefs_of_page(&server.get(format!("/{query}")), "");
        let separator = if query.is_empty() { "?" } else { "&" };
        let json = hrefs_of_json(&server.get(format!("/{query}{separator}format=json")));
        let json: Vec<&str> = json.iter().map(|href| &href[1..]).collect();
        let mut wanted: Vec<&str> = expected.split(' ').collect();
        // Folders have no size: their order among themselves is that of names
        // or its reverse, the same on both.
        rows.check(&format!("`{query}` on both"), page == json, || {
            format!("{page:?}, {json:?}")
        });
        let mut page: Vec<&str> = page.iter().map(String::as_str).collect();
        if query.contains("size") {
            page[..2].sort_unstable();
            wanted[..2].sort_unstable();
        }
        rows.check(query, page == wanted, || format!("{page:?}"));
    }
    rows.done();
}

#[test]
fn the_page_loads_nothing_from_elsewhere_and_may_run_nothing_but_its_own() {
    let server = hostile().file("folder/sub/x", "").start();
    let page = server.get("/folder/sub/");
    let policy = page
        .header("Content-Security-Policy")
        .expect("it has a policy");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for weak in ["unsafe", "http:", "https:", "*", "'self'"] {
        assert!(!policy.contains(weak), "{weak} in {policy}");
    }
    assert_eq!(
        page.header("X-Content-Type-Options").as_deref(),
        Some("nosniff")
    );
    let text = page.text();
    for attribute in ["href=\"", "src=\""] {
        for part in text.split(attribute).skip(1) {
            let address = part.split('"').next().unwrap_or_default();
            let own = ["./", "../", "/", "?", "data:"];
            let holds = own.iter().any(|start| address.starts_with(start));
            assert!(holds && !address.starts_with("//"), "{address}");
        }
    }
    // A way up, and each step of the way.
    for part in ["href=\"../\"", "href=\"/\"", "href=\"/folder/\""] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn ten_thousand_entries_are_listed_to_the_last() {
    let setup = Server::new();
    for number in 0..10_000 {
        let name = setup.root().join(format!("file-{number}.txt"));
        fs::write(name, "").expect("the root is the test's own");
    }
    let server = setup.start();
    let page = server.get("/");
    assert!(page.complete);
    let hrefs = hrefs_of_page(&page, "/");
    assert_eq!(hrefs.len(), 10_000);
    // Numbers are in the order of numbers.
    assert_eq!(hrefs.last().map(String::as_str), Some("/file-9999.txt"));
    assert_eq!(hrefs_of_json(&server.get("/?format=json")), hrefs);
}

/// `count` files in `folder`, the later ones larger.
fn files(setup: &Setup, folder: &str, count: usize) {
    let folder = setup.root().join(folder);
    fs::create_dir_all(&folder).expect("the root is the test's own");
    for number in 0..count {
        let file = fs::File::create(folder.join(format!("file-{number}")));
        file.and_then(|file| file.set_len(number as u64))
            .expect("the root is the test's own");
    }
}

/// More entries than are listed in one go.
pub(crate) const MANY: usize = 2100;

#[test]
fn a_long_listing_has_the_orders_and_the_totals_of_a_short_one() {
    let setup = Server::new();
    files(&setup, "", MANY);
    let server = setup
        .folder("a folder")
        .folder("Z folder")
        .link("link", "file-7")
        .link("broken", "nothing")
        .start();
    let folders = ["/a%20folder/".to_owned(), "/Z%20folder/".to_owned()];
    let upwards: Vec<String> = (0..MANY).map(|n| format!("/file-{n}")).collect();
    let mut by_size = upwards.clone();
    by_size.insert(8, "/link".to_owned());
    let downwards: Vec<String> = upwards.iter().rev().cloned().collect();
    let mut by_size_downwards = downwards.clone();
    by_size_downwards.insert(MANY - 7, "/link".to_owned());
    let link = ["/link".to_owned()];
    let reversed = [folders[1].clone(), folders[0].clone()];
    let mut rows = Rows::new();
    for (query, expected) in [
        ("", [&folders[..], &upwards, &link].concat()),
        ("?order=desc", [&reversed[..], &link, &downwards].concat()),
        ("?sort=size", [&folders[..], &by_size].concat()),
        (
            "?sort=size&order=desc",
            [&folders[..], &by_size_downwards].concat(),
        ),
    ] {
        let page = server.get(format!("/{query}"));
        rows.check(query, hrefs_of_page(&page, "/") == expected, || {
            format!("{:?}", hrefs_of_page(&page, "/"))
        });
        let separator = if query.is_empty() { "?" } else { "&" };
        let json = hrefs_of_json(&server.get(format!("/{query}{separator}format=json")));
        rows.check(&format!("{query} as JSON"), json == expected, || {
            format!("{json:?}")
        });
        let bytes = (0..MANY).sum::<usize>() + 7;
        let (millions, rest) = (bytes / 1_000_000, bytes % 1_000_000 / 100_000);
        let totals = format!("2 folders, {} files, {millions}.{rest} MB</span>", MANY + 1);
        rows.check(
            &format!("{query} totals"),
            page.text().contains(&totals),
            || totals,
        );
    }
    rows.done();
    // Nothing is made for HEAD, so the length isn't known.
    let head = server.request("HEAD", "/", &[], b"");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("Content-Length"), None);
    // One that HTTP/1.0 takes.
    let old = server.ask("GET /?format=json HTTP/1.0\n\n");
    let old = old.expect("there is an answer");
    assert_eq!(hrefs_of_json(&old).len(), MANY + 3);
}

#[test]
fn a_long_listing_is_looked_at_while_it_is_sent_and_takes_little_memory() {
    const ENTRIES: usize = 20_000;
    const CLIENTS: usize = 30;
    const MOST: usize = 48 << 20;
    let setup = Server::new();
    let folder = setup.root().join("folder");
    fs::create_dir(&folder).expect("the root is the test's own");
    // Long names: thirteen megabytes of page, far more than sockets hold.
    let path = |number: usize| folder.join(format!("{number:0>255}"));
    for number in 0..ENTRIES {
        fs::File::create(path(number)).expect("the root is the test's own");
    }
    let server = setup.start();
    let fds = server.idle_fds();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = server.connect();
            client.send(format!(
                "GET /folder/ HTTP/1.1\r\nHost: {}\r\n\r\n",
                server.host()
            ));
            client
        })
        .collect();
    for client in &mut clients {
        let head = client.head().expect("it begins");
        assert_eq!(head.status, 200);
    }
    // They stand still now. The end has not been looked at yet.
    fs::remove_file(path(ENTRIES - 1)).expect("it is the test's own");
    fs::write(path(ENTRIES - 2), "12345").expect("it is the test's own");
    let (page, complete) = clients[0].chunked();
    assert!(complete, "it ends too early");
    let page = String::from_utf8_lossy(&page);
    assert!(page.starts_with("<!doctype html>"), "{page:.100}");
    assert!(
        page.contains(">19999 files, 5 B</span>"),
        "it was looked at too early"
    );
    let resident = server.memory("VmHWM");
    assert!(resident < MOST, "{} MiB resident", resident >> 20);
    // Clients that go end the work.
    drop(clients);
    server.settles_to(fds);
}

#[test]
fn whoever_asks_after_a_change_sees_it_however_many_ask() {
    const CHANGES: usize = 200;
    let server = Server::new().file("folder/file", "").start();
    let file = server.root().join("folder/file");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut client = server.connect();
                while !done.load(Ordering::Relaxed) {
                    client.send(format!(
                        "GET /folder/ HTTP/1.1\r\nHost: {}\r\n\r\n",
                        server.host()
                    ));
                    assert_eq!(client.response().status, 200);
                }
            });
        }
        let mut stale = None;
        for length in 1..=CHANGES {
            fs::write(&file, vec![b'x'; length]).expect("it is the test's own");
            let page = server.get("/folder/").text();
            if !page.contains(&format!("<td>{length} B<td>")) {
                stale = Some((length, page));
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(stale.is_none(), "{stale:?}");
    });
}

/// A tree with all that an archive should hold, and all that it should not.
fn tree() -> (Setup, BTreeMap<Vec<u8>, Vec<u8>>) {
    let files: [(&[u8], Vec<u8>); 8] = [
        (b"file.txt", b"content\n".to_vec()),
        (b"empty", Vec::new()),
        (b"sub/deeper/zeros", vec![0; 3 << 20]),
        (b"sub/na\xc3\xafve \xe2\x98\x95", b"umlaut".to_vec()),
        (b"quotes'\"", b"quotes".to_vec()),
        (b"-rf", b"dash".to_vec()),
        (&[b'n'; 200], b"a name longer than a tar header's".to_vec()),
        (b"percent%41", b"percent".to_vec()),
    ];
    let folder = Path::new("folder");
    let place = |name: &[u8]| folder.join(OsStr::from_bytes(name));
    let mut setup = Server::new();
    for (name, content) in &files {
        setup = setup.file(place(name), content);
    }
    let setup = setup
        .folder("folder/empty folder")
        .script("folder/run", "#!/bin/sh\n")
        .link("folder/inward", "file.txt")
        .link("folder/outward", "/etc/passwd")
        .link("folder/out-folder", "/etc")
        .link("folder/broken", "nothing")
        .link("folder/around", "../folder")
        .fifo("folder/pipe")
        .file("folder/.env", "hidden")
        .file("folder/.git/config", "hidden")
        .file("folder/sub/.hidden/x", "hidden");
    let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = files
        .into_iter()
        .map(|(name, content)| (name.to_vec(), content))
        .collect();
    expected.insert(b"run".to_vec(), b"#!/bin/sh\n".to_vec());
    expected.insert(b"inward".to_vec(), b"content\n".to_vec());
    (setup, expected)
}

/// All files below a folder, by their names within it.
fn unpacked(folder: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.expect("it was just unpacked"))
        .filter(|entry| !entry.file_type().is_dir())
        .map(|entry| {
            assert!(entry.file_type().is_file(), "{entry:?}");
            let name = entry.path().strip_prefix(folder).expect("it is below");
            let content = fs::read(entry.path()).expect("it was just unpacked");
            (name.as_os_str().as_bytes().to_vec(), content)
        })
        .collect()
}

/// What came, unpacked by the `program` that people have.
fn unpack(response: &Response, program: &str, args: &[&str]) -> tempfile::TempDir {
    assert_eq!(response.status, 200, "{response}");
    assert!(response.complete, "the archive ends too early");
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    fs::write(folder.path().join("archive"), &response.body).expect("it is ours");
    let output = Command::new(program)
        .args(args)
        .current_dir(folder.path())
        // unzip writes names in the locale's encoding.
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("the program is there: the test asked `needs`");
    // Not even a warning.
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    folder
}

fn names(files: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<String> {
    files.keys().map(|name| shown(name)).collect()
}

#[test]
fn a_tar_gz_unpacks_to_what_browsing_shows() {
    if !needs("tar") {
        return;
    }
    let (setup, mut expected) = tree();
    // tar knows bytes; zip and its programs want UTF-8.
    let setup = setup
        .file(
            Path::new("folder").join(OsStr::from_bytes(b"latin1-\xe9\n")),
            "bytes",
        )
        .script("cgi-bin/script", "#!/bin/sh\necho the source\n");
    expected.insert(b"latin1-\xe9\n".to_vec(), b"bytes".to_vec());
    let server = setup.start();
    let response = server.get("/folder/?archive=tar.gz");
    let disposition = response.header("Content-Disposition").unwrap_or_default();
    assert!(disposition.contains("folder.tar.gz"), "{disposition}");
    let folder = unpack(&response, "tar", &["-xzf", "archive"]);
    let folder = folder.path().join("folder");
    let seen = unpacked(&folder);
    assert_eq!(names(&seen), names(&expected));
    assert!(seen == expected, "a file has another content");
    assert!(folder.join("empty folder").is_dir());
    let mode = |name| {
        fs::metadata(folder.join(name))
            .expect("it is there")
            .permissions()
    };
    assert_eq!(mode("run").mode() & 0o111, 0o111);
    assert_eq!(mode("file.txt").mode() & 0o111, 0);

    // The whole: what lies in cgi-bin is not to be read.
    let whole = unpack(&server.get("/?archive=tar.gz"), "tar", &["-xzf", "archive"]);
    let whole = unpacked(&whole.path().join("root"));
    assert_eq!(whole.len(), expected.len(), "{:?}", names(&whole));
}

#[test]
fn a_zip_unpacks_to_what_browsing_shows() {
    let (setup, expected) = tree();
    let server = setup.start();
    let response = server.get("/folder/?archive=zip");
    let mut unpackers: Vec<(&str, &[&str])> = Vec::new();
    if needs("unzip") {
        unpackers.push(("unzip", &["-q", "archive"]));
    }
    if needs("python3") {
        unpackers.push(("python3", &["-m", "zipfile", "-e", "archive", "."]));
    }
    for (program, args) in unpackers {
        let folder = unpack(&response, program, args);
        let folder = folder.path().join("folder");
        let seen = unpacked(&folder);
        assert_eq!(names(&seen), names(&expected), "{program}");
        assert!(seen == expected, "{program}: a file has another content");
        assert!(folder.join("empty folder").is_dir(), "{program}");
    }
}

#[test]
fn an_archive_ends_when_the_client_goes() {
    let server = Server::new().file("large", "").start();
    // Sparse: more than anything here could pack in the time of the test.
    let file = fs::File::options()
        .write(true)
        .open(server.root().join("large"))
        .expect("it is the test's own");
    file.set_len(1 << 40).expect("it is sparse");
    let large = server.root().join("large");
    let reads = || {
        let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it runs");
        open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .any(|file| file == large)
    };
    for format in ["tar.gz", "zip"] {
        let mut client = server.connect();
        client.send(format!(
            "GET /?archive={format} HTTP/1.1\r\nHost: {}\r\n\r\n",
            server.host()
        ));
        assert_eq!(client.head().expect("it begins").status, 200);
        assert!(!client.some().is_empty());
        assert!(reads(), "{format}: it is at it");
        drop(client);
        assert!(eventually(|| !reads()), "{format}: it goes on");
    }
}
