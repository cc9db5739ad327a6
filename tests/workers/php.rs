//! `--php`: C167, C169 to C171.

use std::process::{Command, Stdio};

use super::{answering, under_load, wait_for_workers, workers};
use crate::support::{Server, Setup, eventually, needs};

const WHO: &str = "<?php echo getmypid(), ' ', $_SERVER['SCRIPT_NAME'], '|', \
    $_SERVER['PATH_INFO'] ?? '-', '|', $_SERVER['PHP_SELF'], '|', \
    basename($_SERVER['SCRIPT_FILENAME']), '|', file_get_contents('php://input');";

fn site() -> Setup {
    site_by_address().arg("--php")
}

fn site_by_address() -> Setup {
    Server::new()
        .file("who.php", WHO)
        .file("blog/index.php", WHO)
        .file("plain.txt", "<?php no")
}

#[test]
fn php_files_run_with_path_info_and_an_index_c169_c170_c171() {
    if !needs("php-cgi") {
        return;
    }
    let server = site().arg("--workers=2").start();
    for (target, body, expected) in [
        ("/who.php", "", "/who.php|-|/who.php|who.php|"),
        ("/who.php/a/b", "", "/who.php|/a/b|/who.php/a/b|who.php|"),
        ("/who.php", "x=1", "/who.php|-|/who.php|who.php|x=1"),
        ("/blog/", "", "/blog/index.php|-|/blog/index.php|index.php|"),
    ] {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let answer = server.request(method, target, &[], body.as_bytes());
        let text = answer.text();
        let (_, rest) = text.split_once(' ').unwrap_or_default();
        assert_eq!(rest, expected, "{target} {text}\n{}", server.log());
    }
    assert_eq!(server.get("/plain.txt").text(), "<?php no");
    // None of these reaches PHP, which would say more.
    for target in ["/none.php", "/plain.txt/who.php", "/blog/none.php/x"] {
        let answer = server.get(target);
        assert_eq!(answer.status, 404, "{target}");
        assert!(
            !answer.text().contains("No input file"),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn php_workers_are_replaced_without_a_lost_request_c167() {
    if !needs("php-cgi") {
        return;
    }
    let server = site().args(["--workers=2", "--max-requests=10"]).start();
    let first = wait_for_workers(&server, 2);
    under_load(&server, "/who.php", || {
        assert!(eventually(|| server
            .log()
            .matches("it is replaced")
            .count()
            > 3));
        server.signal(rustix::process::Signal::HUP);
        server.wait_for_log("reload");
        assert!(eventually(|| workers(&server).is_disjoint(&first)));
    });
}

#[test]
fn two_php_workers_serve_two_slow_requests_at_once() {
    if !needs("php-cgi") {
        return;
    }
    let server = site()
        .file(
            "wait.php",
            "<?php while (!file_exists('go-on')) { usleep(10000); clearstatcache(); } echo 'done';",
        )
        .arg("--workers=2")
        .start();
    wait_for_workers(&server, 2);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get("/wait.php").text());
        for _ in 0..5 {
            answering(&server, "/who.php");
        }
        std::fs::write(server.root().join("go-on"), "").unwrap();
        assert_eq!(waiting.join().unwrap(), "done");
    });
}

#[test]
fn php_can_be_somebody_elses() {
    if !needs("php-cgi") {
        return;
    }
    let setup = site_by_address();
    let socket = setup.root().join("php.sock");
    let mut php = Command::new("php-cgi")
        .arg("-b")
        .arg(&socket)
        .env_remove("PHP_FCGI_CHILDREN")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test asked `needs`");
    let listens = eventually(|| socket.exists());
    let server = setup
        .arg(format!("--php=unix:{}", socket.display()))
        .start();
    let answering = listens.then(|| answering(&server, "/who.php/x"));
    let own = workers(&server);
    let ended = php.kill().and_then(|()| php.wait());
    assert_eq!(answering, Some(php.id()));
    assert!(own.is_empty() && ended.is_ok());
}

#[test]
fn a_page_with_a_bad_header_keeps_nobody_from_the_others() {
    if !needs("php-cgi") {
        return;
    }
    let server = site()
        .file("bad.php", "<?php header('nocolon'); echo 1;")
        .arg("--workers=1")
        .start();
    for _ in 0..4 {
        assert_eq!(server.get("/bad.php").status, 502);
        assert_eq!(server.get("/who.php").status, 200, "{}", server.log());
    }
}

#[test]
fn php_never_runs_on_half_of_its_content_c71() {
    if !needs("php-cgi") {
        return;
    }
    let setup = site().file(
        "save.php",
        "<?php file_put_contents('saved', file_get_contents('php://input') . \"\\n\", FILE_APPEND);",
    );
    let saved = setup.root().join("saved");
    let server = setup.arg("--workers=1").start();
    let mut client = server.connect();
    client.send(server.wire(b"POST /save.php HTTP/1.1\nHost: {host}\nContent-Length: 200000"));
    client.send(vec![b'x'; 60_000]);
    drop(client);
    server.wait_for_log("closed the connection");
    assert_eq!(
        server.request("POST", "/save.php", &[], b"whole").status,
        200
    );
    assert_eq!(std::fs::read_to_string(saved).expect("a file"), "whole\n");
}

#[test]
fn a_slow_client_keeps_no_php_worker_from_others() {
    if !needs("php-cgi") {
        return;
    }
    let server = site().arg("--workers=1").start();
    let mut slow = server.connect();
    slow.send(server.wire(b"POST /who.php HTTP/1.1\nHost: {host}\nContent-Length: 5"));
    slow.send("hel");
    assert_eq!(server.get("/who.php").status, 200);
    slow.send("lo");
    assert!(slow.response().text().ends_with("|hello"));
}

#[test]
fn the_source_of_a_page_is_in_no_static_folder_and_no_archive() {
    if !needs("unzip") {
        return;
    }
    let setup = site()
        .file("who.php.bak", WHO)
        .file("who.php~", WHO)
        .file("notes.txt~", "mine");
    let root = setup.root().display().to_string();
    let server = setup.arg(format!("--static=/all/={root}")).start();
    for name in ["who.php", "who.php.bak", "who.php~"] {
        assert_eq!(server.get(format!("/all/{name}")).status, 404, "{name}");
    }
    let listing = server.get("/").text();
    assert!(
        listing.contains("who.php") && !listing.contains("who.php."),
        "{listing}"
    );
    assert!(!listing.contains("who.php~"), "{listing}");
    assert_eq!(server.get("/all/plain.txt").status, 200);
    let archive = server.get("/?archive=zip").body;
    let file = tempfile::NamedTempFile::new().expect("there is a folder for temporary files");
    std::fs::write(file.path(), archive).expect("the file is the test's own");
    let list = Command::new("unzip").arg("-l").arg(file.path()).output();
    let list = String::from_utf8_lossy(&list.expect("it is there").stdout).into_owned();
    assert!(list.contains("notes.txt~"), "{list}");
    assert!(!list.contains("who.php"), "{list}");
}

#[test]
fn php_gets_nothing_of_a_request_from_the_servers_environment_c37() {
    if !needs("php-cgi") {
        return;
    }
    let server = site()
        .file(
            "env.php",
            "<?php echo $_SERVER['REMOTE_USER'] ?? '-', $_SERVER['HTTPS'] ?? '-';",
        )
        .env("REMOTE_USER", "root")
        .env("HTTPS", "on")
        .start();
    assert_eq!(server.get("/env.php").text(), "--");
}

#[test]
fn a_front_controller_finds_the_path_it_is_below() {
    if !needs("php-cgi") {
        return;
    }
    let setup = site();
    let file = setup.root().join("who.php").display().to_string();
    let route = format!("--route=/app/=fastcgi:spawn:php-cgi,script={file}");
    let server = setup.arg(route).start();
    let text = server.get("/app/blog/1").text();
    let (_, rest) = text.split_once(' ').expect("a number first");
    assert_eq!(rest, "/app/who.php|/blog/1|/app/who.php/blog/1|who.php|");
}
