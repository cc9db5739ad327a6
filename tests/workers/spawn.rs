//! `fastcgi:spawn:` and `scgi:spawn:`: C164 to C168.

use super::{answering, refused, send, wait_for_workers, with, workers};
use crate::support::{Process, Server, eventually, fixtures, needs, needs_perl_module};

#[test]
fn a_fastcgi_program_is_started_on_its_descriptor_0_c164() {
    if !needs_perl_module("FCGI") {
        return;
    }
    let script = fixtures("gateway").join("responder.pl");
    let route = format!("/app/=fastcgi:spawn:/usr/bin/perl {}", script.display());
    let server = Server::new()
        .args(["--route", &route, "--workers=2"])
        .start();
    let both = wait_for_workers(&server, 2);
    let answer = server.get("/app/x?y");
    assert!(answer.text().ends_with(" /app|/x|y\n"), "{}", answer.text());
    let large = vec![b'x'; 3_000_000];
    assert_eq!(server.request("POST", "/app/echo", &[], &large).body, large);
    server.get("/app/grumble");
    server.wait_for_log("a second");
    assert_eq!(workers(&server), both);
}

#[test]
fn fcgiwrap_runs_the_sample_scripts_c164() {
    if !needs("fcgiwrap") {
        return;
    }
    let server = Server::new()
        .fixture("env")
        .args([
            "--route",
            "/cgi-bin/*=fastcgi:spawn:fcgiwrap",
            "--workers=1",
        ])
        .start();
    let report = server.report("/cgi-bin/env/extra?q=1");
    assert_eq!(report.text("PATH_INFO").as_deref(), Some("/extra"));
    assert_eq!(report.text("QUERY_STRING").as_deref(), Some("q=1"));
}

#[test]
fn an_scgi_program_starts_in_the_served_folder_and_its_output_is_logged() {
    if !needs("python3") {
        return;
    }
    let server = with("scgi_worker.py")
        .args([
            "--route",
            "/app=scgi:spawn:python3 scgi_worker.py",
            "--workers=1",
        ])
        .start();
    let answer = server.request("POST", "/app/x", &[], b"12345").text();
    let root = server.root().canonicalize().unwrap();
    assert!(
        answer.ends_with(&format!(" /x 5 {}\n", root.display())),
        "{answer}"
    );
    let log = server.wait_for_log("it is up");
    let pid = answering(&server, "/app");
    assert!(
        log.contains(&format!("scgi 'python3 scgi_worker.py'[{pid}]: it is up")),
        "{log}"
    );
}

#[test]
fn a_worker_that_dies_is_replaced_and_takes_no_other_request_with_it_c168() {
    if !needs("python3") {
        return;
    }
    let server = with("scgi_worker.py")
        .args([
            "--route",
            "/app=scgi:spawn:python3 scgi_worker.py",
            "--workers=2",
        ])
        .start();
    let before = wait_for_workers(&server, 2);
    let crashed = server.request("POST", "/app/crash", &[], b"x");
    assert_eq!(crashed.status, 502);
    server.wait_for_log("signal 6");
    assert!(eventually(|| {
        let now = workers(&server);
        now.len() == 2 && now != before
    }));
    for _ in 0..10 {
        answering(&server, "/app");
    }
}

#[test]
fn a_request_that_ends_a_young_worker_is_no_failed_start_c168() {
    if !needs("python3") {
        return;
    }
    let server = with("scgi_worker.py")
        .args([
            "--route",
            "/app=scgi:spawn:python3 scgi_worker.py",
            "--workers=1",
        ])
        .start();
    for _ in 0..4 {
        let crashed = server.request("POST", "/app/crash", &[], b"x");
        assert_eq!(crashed.status, 502);
        answering(&server, "/app");
    }
    let log = server.log();
    assert!(!log.contains("at its start"), "{log}");
}

#[test]
fn a_worker_that_waits_for_our_end_of_a_connection_gets_it_c159() {
    if !needs("python3") {
        return;
    }
    let server = with("fastcgi_lingers.py")
        .args([
            "--route",
            "/app=fastcgi:spawn:python3 fastcgi_lingers.py",
            "--workers=1",
            "--route-timeout=30",
        ])
        .start();
    // It ends each connection with the second request on it.
    for _ in 0..5 {
        answering(&server, "/app");
    }
    // The same after a client that has left.
    let mut client = server.connect();
    client.send("GET /app/slow HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(eventually(|| server.root().join("begun").exists()));
    drop(client);
    answering(&server, "/app");
    assert!(!server.log().contains("stuck"), "{}", server.log());
}

#[test]
fn an_application_that_writes_on_learns_that_its_client_has_left_c161() {
    if !needs("php-cgi") {
        return;
    }
    let server = Server::new()
        .file(
            "events.php",
            "<?php header('Content-Type: text/event-stream'); file_put_contents('begun', '');
            while (true) { echo \"data: x\\n\\n\"; flush(); usleep(50000); }",
        )
        .file("pid.php", "<?php echo getmypid(), ' ';")
        .args(["--php", "--workers=1"])
        .start();
    let worker = answering(&server, "/pid.php");
    let mut client = server.connect();
    client.send("GET /events.php HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(eventually(|| server.root().join("begun").exists()));
    drop(client);
    assert_eq!(answering(&server, "/pid.php"), worker);
}

#[test]
fn a_program_that_ends_at_once_is_said_so_and_tried_with_pauses_c168() {
    let server = Server::new()
        .args(["--route", "/app/=fastcgi:spawn:false", "--workers=1"])
        .start();
    let answer = server.get("/app/");
    assert_eq!(answer.status, 502, "{}", server.log());
    assert!(
        answer.text().contains("its workers end at their start"),
        "{}",
        answer.text()
    );
    let log = server.wait_for_log("the next try is in 1 s");
    assert!(
        log.contains("has ended with exit status 1 at its start"),
        "{log}"
    );
}

#[test]
fn a_program_that_is_not_there_keeps_the_server_from_starting() {
    let output = refused(&["--route", "/app/=fastcgi:spawn:no-such-program -x"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("there is no program `no-such-program`"),
        "{error}"
    );
}

#[test]
fn a_worker_with_a_connection_that_is_kept_leaves_by_itself_at_the_end() {
    if !needs("python3") {
        return;
    }
    let mut server = with("fastcgi_lingers.py")
        .args([
            "--route",
            "/app=fastcgi:spawn:python3 fastcgi_lingers.py",
            "--workers=1",
        ])
        .start();
    answering(&server, "/app");
    server.signal(rustix::process::Signal::TERM);
    server.wait_exit();
    assert!(server.root().join("left").exists());
}

#[test]
fn what_a_killed_server_has_left_is_removed_by_the_next_c166() {
    let temporary = tempfile::tempdir().expect("a folder can be made");
    let start = || {
        Server::new()
            .env("TMPDIR", temporary.path())
            .args(["--route", "/app=scgi:spawn:sleep 1000", "--workers=1"])
            .start()
    };
    let folders = || {
        let entries = std::fs::read_dir(temporary.path()).expect("it is the test's own");
        let paths = entries.map(|entry| entry.expect("it can be read").path());
        let ours = |path: &std::path::PathBuf| path.to_string_lossy().contains("-workers-");
        paths
            .filter(ours)
            .collect::<std::collections::BTreeSet<_>>()
    };
    // Not a server's, whatever it looks like: nobody can say that it is over.
    let made = temporary.path().join("serve-here-workers-inthemaking");
    std::fs::create_dir(&made).unwrap();
    let mut killed = start();
    send(killed.pid(), rustix::process::Signal::KILL);
    killed.wait_exit();
    let left = folders();
    assert_eq!(left.len(), 2);
    let first = start();
    let second = start();
    let now = folders();
    assert_eq!(now.len(), 3, "{now:?}");
    assert_eq!(now.intersection(&left).count(), 1);
    assert!(now.contains(&made));
    drop((first, second));
    assert_eq!(folders().len(), 1);
}

#[test]
fn all_workers_and_their_sockets_are_gone_after_the_server_c166() {
    if !needs("python3") {
        return;
    }
    let mut server = with("scgi_worker.py")
        .args([
            "--route",
            "/app=scgi:spawn:python3 scgi_worker.py",
            "--workers=3",
        ])
        .start();
    let three = wait_for_workers(&server, 3);
    answering(&server, "/app");
    assert_eq!(server.temporary_files().len(), 1);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(three.into_iter().all(|pid| !Process::runs(pid)));
    assert!(server.temporary_files().is_empty());
}
