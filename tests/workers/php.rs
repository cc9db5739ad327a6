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
