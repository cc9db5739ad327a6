//! From the path of a URL to the script (RFC 3875 §3.3): C40 to C56. Whatever
//! a row expects, no answer may show a script's source.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use crate::support::{Report, Rows, Server, shown};

enum Outcome {
    /// `env` ran and saw these variables; `None` is absent.
    Runs(&'static [(&'static str, Option<&'static str>)]),
    Status(u16),
}
use Outcome::{Runs, Status};

/// Rule, target, outcome.
type Row = (&'static str, &'static str, Outcome);

/// A line of every fixture script.
const SOURCE: &[u8] = b"#!/bin/sh";

fn hold(server: &Server, rows: &[Row]) {
    let mut all = Rows::new();
    for (rule, target, outcome) in rows {
        let what = format!("{rule}: {target}");
        let Some(response) = server.ask(format!("GET {target} HTTP/1.1\nHost: {{host}}")) else {
            all.check(&what, false, || "no answer".to_owned());
            continue;
        };
        let source = response.body.windows(SOURCE.len()).any(|w| w == SOURCE);
        all.check(&what, !source, || "shows the source of a script".to_owned());
        match (outcome, Report::read(&response)) {
            (Status(expected), _) => all.check(&what, response.status == *expected, || {
                format!("expected {expected}, came {response}")
            }),
            (Runs(_), None) => all.check(&what, false, || response.to_string()),
            (Runs(variables), Some(report)) => {
                for (name, expected) in *variables {
                    let value = report.text(name);
                    all.check(&what, value.as_deref() == *expected, || {
                        format!("{name} is {value:?}, expected {expected:?}")
                    });
                }
            }
        }
    }
    all.done();
}

fn server() -> Server {
    Server::new()
        .fixture("env")
        .fixture_at("env", "cgi-bin/sub/deep/env")
        .fixture_at("env", "htbin/env")
        .fixture("sub/x")
        .file("index.html", "<p>home\n")
        .start()
}

#[test]
fn the_target_is_split_then_decoded_once_c40_to_c42() {
    let server = Server::new()
        .fixture("env")
        .fixture_at("env", "cgi-bin/q?x")
        .start();
    hold(
        &server,
        &[
            ("C40", "/cgi-bin/env%3fa=1", Status(404)),
            (
                "C40",
                "/cgi-bin/q%3fx?y",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/q?x")),
                    ("QUERY_STRING", Some("y")),
                ]),
            ),
            (
                "C40",
                "/cgi-bin/env/a%3fb",
                Runs(&[("PATH_INFO", Some("/a?b")), ("QUERY_STRING", Some(""))]),
            ),
            ("C40", "/cgi-bin/env#part", Status(400)),
            ("C40", "/cgi-bin/env?a#part", Status(400)),
            ("C41", "/cgi-bin/env/%zz", Status(400)),
            ("C41", "/cgi-bin/env/%4", Status(400)),
            ("C41", "/cgi-bin/env/%", Status(400)),
            ("C41", "/cgi-bin/env%00", Status(400)),
            ("C41", "/cgi-bin/env/a%00b", Status(400)),
            (
                "C42",
                "/cgi-bin/env/%252e%252E",
                Runs(&[("PATH_INFO", Some("/%2e%2E"))]),
            ),
            ("C42", "/cgi-bin/%252e%252e/x", Status(404)),
            ("C42", "/cgi-bin/.%252e/.%252e/etc/passwd", Status(404)),
            ("C42", "/cgi-bin/.%2e/%2e%2e/%2e%2e/bin/sh", Status(400)),
        ],
    );
}

#[test]
fn one_normalised_path_decides_what_runs_c43_c44() {
    const RUNS: Outcome = Runs(&[("SCRIPT_NAME", Some("/cgi-bin/env")), ("PATH_INFO", None)]);
    hold(
        &server(),
        &[
            ("C43", "//cgi-bin/env", RUNS),
            ("C43", "/a/../cgi-bin/env", RUNS),
            ("C43", "/%63gi-bin/env", RUNS),
            ("C43", "/cgi-bin//env", RUNS),
            ("C43", "/./cgi-bin/./env", RUNS),
            ("C43", "/%2e/cgi-bin/env", RUNS),
            ("C43", "/cgi-bin/x/%2e%2e/env", RUNS),
            ("C43", "/../cgi-bin/env", Status(400)),
            ("C43", "/cgi-bin/../../etc/passwd", Status(400)),
            ("C43", "/%2e%2e/etc/passwd", Status(400)),
            ("C43", "/cgi-bin/env/../../../etc/passwd", Status(400)),
            // Each was a hole in a server that people ran.
            ("C44", "cgi-bin/env", Status(400)),
            ("C44", "/cgi-bin%2fenv", Status(404)),
            ("C44", "/cgi-bin%2Fsub%2Fx", Status(404)),
            ("C44", "///cgi-bin/env", RUNS),
            ("C44", "/c:/cgi-bin/env", Status(404)),
            ("C44", "/cgi-bin/c:env", Status(404)),
        ],
    );
}

#[test]
fn no_redirect_leads_to_another_host_c44() {
    let server = Server::new()
        .folder("docs")
        .folder("evil.example/x")
        .fixture("sub/x")
        .start();
    for (target, expected) in [
        ("//docs", Some("/docs/")),
        ("///docs", Some("/docs/")),
        ("//evil.example/x", Some("/evil.example/x/")),
        ("//cgi-bin/sub", Some("/cgi-bin/sub/")),
        ("//evil.example/..", None),
        ("//evil.example/%2e%2e", None),
        ("/%2fevil.example/..", None),
    ] {
        let location = server.get(target).header("Location");
        assert_eq!(location.as_deref(), expected, "{target}");
    }
}

#[test]
fn an_encoded_slash_separates_only_in_the_extra_path_c45() {
    hold(
        &server(),
        &[
            ("C45", "/cgi-bin/sub%2fx", Status(404)),
            ("C45", "/cgi-bin/sub%2fdeep/env", Status(404)),
            ("C45", "/cgi-bin/env%2f", Status(404)),
            (
                "C45",
                "/cgi-bin/env/a%2Fb",
                Runs(&[("PATH_INFO", Some("/a/b"))]),
            ),
            (
                "C45",
                "/cgi-bin/env/a/..%2fb",
                Runs(&[("PATH_INFO", Some("/b"))]),
            ),
            ("C45", "/cgi-bin/env/..%2f..%2fetc", Status(400)),
            ("C45", "/cgi-bin/env/..%2f", Status(400)),
            ("C45", "/cgi-bin/env/a%2f..%2f..%2fb", Status(400)),
        ],
    );
}

#[test]
fn other_bytes_of_a_path_mean_nothing_c46() {
    let server = Server::new()
        .fixture("env")
        .fixture("sp ace")
        .fixture_at("env", "cgi-bin/x;y")
        .fixture_at("env", "cgi-bin/a\\b")
        .fixture_at("env", "cgi-bin/c+d")
        .start();
    hold(
        &server,
        &[
            (
                "C46",
                "/cgi-bin/x;y/z;v=1",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/x;y")),
                    ("PATH_INFO", Some("/z;v=1")),
                ]),
            ),
            ("C46", "/cgi-bin/env;y", Status(404)),
            (
                "C46",
                "/cgi-bin/a%5Cb",
                Runs(&[("SCRIPT_NAME", Some("/cgi-bin/a\\\\b"))]),
            ),
            (
                "C46",
                "/cgi-bin/a\\b",
                Runs(&[("SCRIPT_NAME", Some("/cgi-bin/a\\\\b"))]),
            ),
            ("C46", "/cgi-bin/x\\..\\env", Status(404)),
            (
                "C46",
                "/cgi-bin/c+d/e+f",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/c+d")),
                    ("PATH_INFO", Some("/e+f")),
                ]),
            ),
            ("C46", "/CGI-BIN/env", Status(404)),
            ("C46", "/cgi-bin/ENV", Status(404)),
        ],
    );
    let space = server.get("/cgi-bin/sp%20ace");
    assert_eq!(space.text(), "ran /cgi-bin/sp ace\n");
}

#[test]
fn bytes_that_are_no_utf8_reach_the_script_unchanged_c47() {
    let server = Server::new()
        .fixture_at("env", OsStr::from_bytes(b"cgi-bin/l\xe9on"))
        .start();
    let report = server.report("/cgi-bin/l%E9on/%ff%C3%A9/%80");
    for (name, expected) in [
        ("SCRIPT_NAME", &b"/cgi-bin/l\xe9on"[..]),
        ("PATH_INFO", b"/\xff\xc3\xa9/\x80"),
    ] {
        assert_eq!(report.var(name).map(shown), Some(shown(expected)), "{name}");
    }
    for name in ["SCRIPT_FILENAME", "PATH_TRANSLATED"] {
        let value = report.var(name).unwrap();
        let end = if name == "SCRIPT_FILENAME" {
            &b"/cgi-bin/l\xe9on"[..]
        } else {
            b"/\xff\xc3\xa9/\x80"
        };
        assert!(value.ends_with(end), "{name}: {}", shown(value));
    }
}

#[test]
fn the_walk_stops_at_the_first_file_c48_c49_c54() {
    hold(
        &server(),
        &[
            (
                "C48",
                "/cgi-bin/env//a/../b",
                Runs(&[("PATH_INFO", Some("/b"))]),
            ),
            (
                "C48",
                "/cgi-bin/env/a/./b/",
                Runs(&[("PATH_INFO", Some("/a/b/"))]),
            ),
            (
                "C49",
                "/cgi-bin/sub/deep/env/extra/path",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/sub/deep/env")),
                    ("PATH_INFO", Some("/extra/path")),
                ]),
            ),
            (
                "C49",
                "/cgi-bin/env/sub/deep/env",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/env")),
                    ("PATH_INFO", Some("/sub/deep/env")),
                ]),
            ),
            (
                "C49",
                "/htbin/env/x",
                Runs(&[
                    ("SCRIPT_NAME", Some("/htbin/env")),
                    ("PATH_INFO", Some("/x")),
                ]),
            ),
            (
                "C54",
                "/cgi-bin/env/",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/env")),
                    ("PATH_INFO", Some("/")),
                ]),
            ),
        ],
    );
}

#[test]
fn nothing_below_a_script_folder_is_served_as_a_file_c50() {
    let server = Server::new()
        .fixture("env")
        .fixture("nonexec")
        .file("cgi-bin/page.html", "#!/bin/sh <p>a page\n")
        .file("cgi-bin/sub/data.txt", "#!/bin/sh data\n")
        .file("cgi-bin/index.html", "#!/bin/sh index\n")
        .folder("docs")
        .link("alias", "cgi-bin")
        .link("docs/script.txt", "../cgi-bin/env")
        .start();
    hold(
        &server,
        &[
            ("C50", "/cgi-bin/page.html", Status(403)),
            ("C50", "/cgi-bin/sub/data.txt", Status(403)),
            ("C50", "/cgi-bin/nonexec", Status(403)),
            ("C50", "/cgi-bin/", Status(403)),
            ("C50", "/cgi-bin/?format=json", Status(403)),
            ("C50", "/cgi-bin/?archive=tar.gz", Status(403)),
            ("C50", "/cgi-bin/sub/", Status(403)),
        ],
    );
    // Nor by another name of the folder.
    for target in ["/alias/env", "/alias/page.html", "/docs/script.txt"] {
        let response = server.get(target);
        assert!(
            !response.text().contains("#!/bin/sh"),
            "{target}: {response}"
        );
    }
}

#[test]
fn an_archive_of_the_root_holds_no_script_c50() {
    let server = Server::new()
        .fixture("env")
        .file("hello.txt", "hello\n")
        .start();
    let response = server.get("/?archive=tar.gz");
    assert_eq!(response.status, 200, "{response}");
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&response.body[..])
        .read_to_end(&mut tar)
        .unwrap();
    let holds = |text: &[u8]| tar.windows(text.len()).any(|window| window == text);
    assert!(holds(b"hello.txt"));
    assert!(!holds(SOURCE), "the archive holds a script's source");
}

#[test]
fn a_folder_of_scripts_answers_by_its_index_or_not_at_all_c51() {
    let server = Server::new()
        .fixture("sub/x")
        .fixture_at("sub/index", "cgi-bin/sub/index.sh")
        .fixture_at("env", "cgi-bin/withsh/index.sh")
        .folder("cgi-bin/plain")
        .start();
    hold(
        &server,
        &[
            ("C51", "/cgi-bin/nothing", Status(404)),
            ("C51", "/cgi-bin/sub/nothing", Status(404)),
            ("C51", "/cgi-bin/plain/", Status(403)),
            ("C51", "/cgi-bin/", Status(403)),
            (
                "C51",
                "/cgi-bin/withsh/?q",
                Runs(&[
                    ("SCRIPT_NAME", Some("/cgi-bin/withsh/index.sh")),
                    ("PATH_INFO", None),
                    ("QUERY_STRING", Some("q")),
                ]),
            ),
        ],
    );
    assert_eq!(
        server.get("/cgi-bin/sub/").text(),
        "ran index for /cgi-bin/sub/index.sh\n"
    );
    for (target, location) in [
        ("/cgi-bin/sub?a=%20b&c", "/cgi-bin/sub/?a=%20b&c"),
        ("/cgi-bin/plain", "/cgi-bin/plain/"),
        ("/cgi-bin", "/cgi-bin/"),
    ] {
        let response = server.get(target);
        assert_eq!(response.status, 301, "{target}");
        assert_eq!(response.header("Location").as_deref(), Some(location));
    }
}

#[test]
fn what_cannot_be_executed_is_forbidden_and_the_log_says_why_c52() {
    let server = Server::new()
        .fixture("nonexec")
        .fifo("cgi-bin/pipe")
        .start();
    hold(
        &server,
        &[
            ("C52", "/cgi-bin/nonexec", Status(403)),
            ("C52", "/cgi-bin/pipe", Status(403)),
        ],
    );
    let log = server.wait_for_log("not executable");
    assert!(log.contains("chmod +x"), "no way out in:\n{log}");
}

#[test]
fn hidden_files_and_leftovers_of_editors_do_not_run_c53() {
    let names = [
        ".hidden", "x~", "#x#", "x.bak", "x.orig", "x.swp", "x.tmp", ".x.swp",
    ];
    let mut setup = Server::new().fixture("x~").fixture(".hidden");
    for name in &names[2..] {
        setup = setup.fixture_at("env", format!("cgi-bin/{name}"));
    }
    let server = setup.fixture_at("env", "cgi-bin/.folder/env").start();
    let mut all = Rows::new();
    for name in names.iter().copied().chain([".folder/env"]) {
        let response = server.get(format!("/cgi-bin/{}", name.replace('#', "%23")));
        all.check(&format!("C53: {name}"), response.status == 404, || {
            response.to_string()
        });
    }
    all.done();
}

#[test]
fn an_ending_runs_elsewhere_only_when_it_was_configured_c55() {
    let setup = || {
        Server::new()
            .fixture_at("env", "tools/tool.cgi")
            .file("tools/tool.txt", "text\n")
    };
    let plain = setup().start().get("/tools/tool.cgi");
    assert_eq!(plain.status, 200);
    assert!(plain.body.starts_with(SOURCE), "{plain}");

    let server = setup().args(["--cgi-ext", "pl,cgi"]).start();
    let report = server.report("/tools/tool.cgi/extra?q");
    assert_eq!(
        report.text("SCRIPT_NAME").as_deref(),
        Some("/tools/tool.cgi")
    );
    assert_eq!(report.text("PATH_INFO").as_deref(), Some("/extra"));
    assert_eq!(server.get("/tools/tool.txt").text(), "text\n");
}

#[test]
fn other_methods_need_a_script_c56() {
    let server = server();
    for (method, target) in [
        ("POST", "/index.html"),
        ("DELETE", "/"),
        ("PUT", "/new.txt"),
        ("get", "/index.html"),
    ] {
        let response = server.request(method, target, &[], b"");
        assert_eq!(response.status, 405, "{method} {target}: {response}");
        let allow = response.header("Allow").unwrap_or_default();
        for allowed in ["GET", "HEAD"] {
            let mut methods = allow.split(',').map(str::trim);
            assert!(methods.any(|method| method == allowed), "Allow: {allow}");
        }
    }
}
