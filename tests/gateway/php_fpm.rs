//! php-fpm, as Debian has it: C158 to C160, C169 to C173.

use std::fs;
use std::sync::Barrier;
use std::thread;

use super::peers::{Program, php_fpm};
use crate::support::{Rows, Server, Setup};

const WHO: &str = r#"<?php
header("Content-Type: text/plain");
echo $_SERVER["SCRIPT_NAME"], "|", $_SERVER["PATH_INFO"] ?? "-", "|",
    basename($_SERVER["SCRIPT_FILENAME"]), "|", $_SERVER["QUERY_STRING"], "|",
    strlen(file_get_contents("php://input"));
"#;

/// A folder that somebody may have written to, and code that must not run.
fn site() -> Setup {
    Server::new()
        .file("who.php", WHO)
        .file("blog/index.php", WHO)
        .file("upload/picture.jpg", "\u{ff}<?php echo 'it has run';")
        .file("upload/who.php.jpg", WHO)
        .file("upload/folder.php/note.txt", "a note")
}

fn by_option(php: &Program) -> Setup {
    site().arg(format!("--php={}", php.address()))
}

fn by_route(php: &Program) -> Setup {
    site().args(["--route", &format!("*.php=fastcgi:{}", php.address())])
}

#[test]
fn php_fpm_runs_files_and_only_those_c169_c170_c171() {
    let Some(php) = php_fpm(2) else {
        return;
    };
    for setup in [by_option(&php), by_route(&php)] {
        let server = setup.start();
        let mut rows = Rows::new();
        for (target, body, expected) in [
            ("/who.php", 0, "/who.php|-|who.php||0"),
            ("/who.php/a%20b/c?d=e", 0, "/who.php|/a b/c|who.php|d=e|0"),
            ("/who.php", 3_000_000, "/who.php|-|who.php||3000000"),
            ("/blog/", 0, "/blog/index.php|-|index.php||0"),
            ("/blog/../who.php", 0, "/who.php|-|who.php||0"),
        ] {
            let method = if body == 0 { "GET" } else { "POST" };
            let answer = server.request(method, target, &[], &vec![b'x'; body]);
            let text = answer.text();
            rows.check(target, answer.status == 200 && text == expected, || text);
        }
        // None of these reaches PHP, which would say `File not found.` or
        // `Access denied.`, or run the picture.
        for target in [
            "/none.php",
            "/blog/none.php/x",
            "/upload/picture.jpg/x.php",
            "/upload/picture.jpg%00.php",
            "/upload/picture.jpg%2fx.php",
            "/upload/picture.jpg/../x.php",
            "/upload/who.php.jpg/who.php",
            "/upload/folder.php",
            "/upload/folder.php/x.php",
        ] {
            let answer = server.get(target);
            let text = answer.text();
            let kept = [404, 400, 301].contains(&answer.status)
                && !["it has run", "File not", "Access denied", "|"]
                    .iter()
                    .any(|part| text.contains(part));
            rows.check(target, kept, || answer.to_string());
        }
        let picture = server.get("/upload/who.php.jpg");
        let type_ = picture.header("Content-Type");
        rows.check("as a file", type_.as_deref() == Some("image/jpeg"), || {
            picture.to_string()
        });
        rows.done();
    }
}

#[test]
fn the_status_pages_of_php_fpm_are_reached_only_where_that_is_asked_for_c173() {
    let Some(php) = php_fpm(1) else {
        return;
    };
    let setup = site();
    let controller = setup.root().join("who.php").display().to_string();
    let route = |pattern: &str, more: &str| format!("{pattern}=fastcgi:{}{more}", php.address());
    let server = setup
        .file("ping", "a file")
        .args(["--route", &route("*.php", "")])
        .args(["--route", &route("/app/", &format!(",script={controller}"))])
        .args(["--route", &route("/alive/ping", "")])
        .start();
    assert_eq!(server.get("/ping").text(), "a file");
    for target in [
        "/status",
        "/who.php/ping",
        "/who.php/../status",
        "/app/ping",
        "/app//ping",
        "/app/status?full",
        "/app/who.php/../../status",
        "/alive/ping",
    ] {
        let text = server.get(target).text();
        let told = text == "pong" || text.contains("start time");
        assert!(!told, "{target}: {text}");
    }
    let server = site()
        .args(["--route", &route("/ping", ",script=/ping")])
        .start();
    assert_eq!(server.get("/ping").text(), "pong");
}

#[test]
fn kept_connections_leave_php_fpm_its_children_c160() {
    let Some(php) = php_fpm(2) else {
        return;
    };
    for more in ["", ",connections=2"] {
        let server = by_route_with(&php, more).start();
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for client in 0..8 {
                let (server, start) = (&server, &start);
                scope.spawn(move || {
                    start.wait();
                    for round in 0..12 {
                        let method = if (client + round) % 3 == 0 {
                            "POST"
                        } else {
                            "GET"
                        };
                        let answer = server.request(method, "/who.php", &[], b"x");
                        assert_eq!(answer.status, 200, "{answer}");
                    }
                });
            }
        });
        // As many as it may keep, idle; then others need a child each.
        let log = server.log();
        assert!(!log.contains(": no c"), "{log}");
    }
}

fn by_route_with(php: &Program, more: &str) -> Setup {
    site().args(["--route", &format!("*.php=fastcgi:{}{more}", php.address())])
}

#[test]
fn a_child_that_dies_costs_its_own_request_only_c155_c159() {
    let Some(php) = php_fpm(2) else {
        return;
    };
    let server = by_route(&php)
        .file("dies.php", "<?php posix_kill(getmypid(), 9);")
        .file(
            "late.php",
            "<?php echo str_repeat('x', 100000); flush(); posix_kill(getmypid(), 9);",
        )
        .start();
    assert_eq!(server.get("/who.php").status, 200);
    for _ in 0..3 {
        let answer = server.get("/dies.php");
        assert_eq!(answer.status, 502, "{answer}");
        let late = server.get("/late.php");
        assert!(late.status == 502 || !late.complete, "{late}");
        // The other child, or one that was kept and is gone.
        for method in ["GET", "POST"] {
            assert_eq!(server.request(method, "/who.php", &[], b"x").status, 200);
        }
    }
    let line = format!("fastcgi 'dies.php': {}: ", php.address());
    assert!(server.log().contains(&line), "{}", server.log());
}

#[test]
fn what_php_complains_of_is_in_the_log_c153() {
    let Some(php) = php_fpm(1) else {
        return;
    };
    let server = by_route(&php)
        .file("fails.php", "<?php error_log('to the log'); unknown();")
        .start();
    let answer = server.get("/fails.php");
    assert_eq!(answer.status, 500);
    let log = server.wait_for_log("Call to undefined function unknown()");
    let line = format!("fastcgi 'fails.php'[{}]: ", php.address());
    assert!(log.contains(&line) && log.contains("to the log"), "{log}");
    fs::remove_file(server.root().join("fails.php")).expect("it is the test's");
    assert_eq!(server.get("/fails.php").status, 404);
}
