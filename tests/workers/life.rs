//! How workers come and go: C195 to C198, without a lost request.

use std::ffi::OsStr;
use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::{answering, refused, send, shop, under_load, wait_for_workers, with, workers};
use crate::support::{Process, Server, eventually, fixtures, needs, skip};

#[test]
fn a_reload_under_load_replaces_all_workers_and_loses_nothing_c196_c197() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=2", "-q"]).start();
    let mut before = wait_for_workers(&server, 2);
    under_load(&server, "/brief", || {
        for _ in 0..3 {
            server.signal(Signal::HUP);
            assert!(eventually(|| {
                let now = workers(&server);
                now.len() == 2 && now.is_disjoint(&before)
            }));
            before = workers(&server);
        }
    });
}

#[test]
fn a_reload_brings_new_code_and_an_old_request_ends_as_it_began_c196() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=1"]).start();
    let slow = thread::scope(|scope| {
        let slow = scope.spawn(|| server.get("/slow"));
        let one = wait_for_workers(&server, 1);
        assert!(eventually(|| server.root().join("begun").exists()));
        let file = server.root().join("shop.py");
        let code = fs::read_to_string(&file).unwrap();
        fs::write(&file, code.replace("EDITION = 1", "EDITION = 22")).unwrap();
        server.signal(Signal::HUP);
        assert!(eventually(|| server
            .get("/new")
            .text()
            .ends_with("edition 22")));
        assert!(workers(&server).is_superset(&one));
        fs::write(server.root().join("go-on"), "").unwrap();
        slow.join().unwrap()
    });
    assert!(slow.text().ends_with("edition 1"), "{}", slow.text());
    assert!(eventually(|| workers(&server).len() == 1));
}

#[test]
fn a_reload_to_code_that_fails_keeps_the_old_workers_c197() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=2"]).start();
    let before = wait_for_workers(&server, 2);
    assert!(eventually(|| server.log().matches("serves").count() == 2));
    fs::write(
        server.root().join("shop.py"),
        "import nothing_of_that_name\n",
    )
    .unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("the old workers stay");
    under_load(&server, "/", || {
        assert!(eventually(|| workers(&server) == before));
    });
}

#[test]
fn requests_that_may_be_repeated_survive_workers_that_are_killed_c168() {
    if !needs("python3") {
        return;
    }
    for count in ["--workers=1", "--workers=2"] {
        let server = shop().args([count, "-q"]).start();
        answering(&server, "/");
        let ask = || {
            for _ in 0..60 {
                answering(&server, "/brief");
            }
        };
        thread::scope(|scope| {
            let clients = [(); 3].map(|()| scope.spawn(ask));
            while !clients.iter().all(thread::ScopedJoinHandle::is_finished) {
                // An end in the first second is a failed start.
                thread::sleep(Duration::from_millis(1200));
                for pid in workers(&server).into_iter().take(1) {
                    send(pid, Signal::KILL);
                }
            }
        });
    }
}

#[test]
fn ttin_and_ttou_make_the_workers_one_more_or_fewer_but_not_none_c196() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=1"]).start();
    wait_for_workers(&server, 1);
    under_load(&server, "/", || {
        server.signal(Signal::TTIN);
        wait_for_workers(&server, 2);
        server.signal(Signal::TTOU);
        wait_for_workers(&server, 1);
        server.signal(Signal::TTOU);
        server.wait_for_log("2 workers are wanted now");
        wait_for_workers(&server, 1);
    });
}

#[test]
fn a_worker_is_replaced_after_its_requests_and_none_is_lost_c195() {
    if !needs("python3") {
        return;
    }
    for more in ["--threads=1", "--threads=3"] {
        let server = shop()
            .args(["--workers=2", "--max-requests=20", more])
            .start();
        let first = wait_for_workers(&server, 2);
        under_load(&server, "/", || {
            assert!(eventually(|| server
                .log()
                .matches("it is replaced")
                .count()
                > 5));
        });
        assert!(eventually(|| workers(&server).is_disjoint(&first)));
        // A place has many workers: what one of them had is not counted for the next.
        let log = server.log();
        assert!(!log.contains("was ended by signal"), "{log}");
    }
}

#[test]
fn a_stuck_worker_is_ended_and_the_client_told_so_c194() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=2", "--route-timeout=3"]).start();
    let before = wait_for_workers(&server, 2);
    assert_eq!(server.get("/hangs").status, 504);
    let log = server.wait_for_log("is stuck (worker timeout); it is replaced");
    assert!(!log.contains("\" 502 "), "{log}");
    // Where it was.
    server.wait_for_log("shop.py\", line 14 in app");
    assert!(eventually(|| {
        let now = workers(&server);
        now.len() == 2 && now.intersection(&before).count() == 1
    }));
    answering(&server, "/");
}

#[test]
fn a_worker_that_hangs_without_a_request_is_replaced_before_one_comes_c194() {
    if !needs("python3") {
        return;
    }
    for more in ["--threads=1", "--threads=2", "--preload"] {
        let server = shop()
            .args(["--workers=2", "--route-timeout=3", more])
            .start();
        assert!(eventually(|| server.log().matches("serves").count() == 2));
        let stopped = answering(&server, "/");
        let before = workers(&server);
        send(stopped, Signal::STOP);
        server.wait_for_log(&format!("worker {stopped} does not stir"));
        assert!(eventually(|| {
            let now = workers(&server);
            now.len() == before.len() && !now.contains(&stopped)
        }));
        // The others do.
        let now = workers(&server);
        assert_eq!(now.intersection(&before).count(), before.len() - 1);
        assert_eq!(server.log().matches("does not stir").count(), 1);
    }
}

#[test]
fn a_stuck_request_lets_the_others_of_its_worker_end_c194() {
    if !needs("python3") {
        return;
    }
    let server = shop()
        .args(["--workers=1", "--threads=2", "--route-timeout=5"])
        .start();
    let old = answering(&server, "/");
    thread::scope(|scope| {
        scope.spawn(|| server.get("/hangs"));
        let slow = scope.spawn(|| {
            thread::sleep(Duration::from_secs(2));
            server.get("/slow")
        });
        server.wait_for_log("is stuck (worker timeout); it is replaced");
        assert!(eventually(|| answering(&server, "/") != old));
        fs::write(server.root().join("go-on"), "").unwrap();
        let slow = slow.join().unwrap();
        assert!(slow.status == 200 && slow.text().starts_with(&format!("{old} ")));
    });
    server.wait_for_log("shop.py\", line 14 in app");
    assert!(eventually(|| !Process::runs(old)));
}

#[test]
fn a_request_whose_client_has_left_keeps_its_worker_from_others() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=2"]).start();
    wait_for_workers(&server, 2);
    answering(&server, "/");
    let mut client = server.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(eventually(|| server.root().join("begun").exists()));
    let free = answering(&server, "/");
    assert!(eventually(|| answering(&server, "/") == free));
    drop(client);
    // The other one still runs the request that nobody waits for.
    for _ in 0..20 {
        assert_eq!(answering(&server, "/"), free);
    }
    fs::write(server.root().join("go-on"), "").unwrap();
    assert!(eventually(|| answering(&server, "/") != free));
}

#[test]
fn a_worker_that_has_answered_a_client_that_left_is_free_again() {
    if !needs("python3") {
        return;
    }
    let code = "import os\ndef app(e, s):\n    s('200 OK', [])\n    \
                if e['PATH_INFO'] != '/big':\n        return [b'%d ' % os.getpid()]\n    \
                open('begun', 'w').close()\n    return [b'x' * 400_000]\n";
    let server = Server::new()
        .file("big.py", code)
        .args(["--wsgi", "big:app", "--workers=1", "--route-timeout=5"])
        .start();
    let worker = answering(&server, "/");
    for _ in 0..5 {
        let mut client = server.connect();
        client.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(eventually(|| server.root().join("begun").exists()));
        drop(client);
        assert_eq!(answering(&server, "/"), worker, "{}", server.log());
        fs::remove_file(server.root().join("begun")).unwrap();
    }
    assert!(!server.log().contains("stuck"), "{}", server.log());
}

#[test]
fn a_worker_beyond_its_memory_is_replaced_after_the_request() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=1", "--worker-memory=64M"]).start();
    let big = answering(&server, "/grow");
    server.wait_for_log("MiB of memory; it is replaced");
    assert!(eventually(|| !Process::runs(big)));
    assert_ne!(answering(&server, "/"), big);
}

#[test]
fn idle_workers_end_and_the_next_request_starts_them() {
    if !needs("python3") {
        return;
    }
    let server = with("scgi_worker.py")
        .args(["--route", "/app=scgi:spawn:python3 scgi_worker.py"])
        .args(["--workers=2", "--workers-idle=0.3"])
        .start();
    assert!(workers(&server).is_empty());
    for _ in 0..2 {
        answering(&server, "/app");
        wait_for_workers(&server, 2);
        wait_for_workers(&server, 0);
    }
}

#[test]
fn root_starts_no_workers_for_other_machines_c144() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return;
    }
    let output = refused(&["--public", "--route", "/=scgi:spawn:true", "0"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--user NAME"), "{text}");
}

#[test]
fn workers_end_with_a_server_that_is_killed_c198() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=2"]).start();
    let both = wait_for_workers(&server, 2);
    answering(&server, "/");
    send(server.pid(), Signal::KILL);
    assert!(eventually(|| both.iter().all(|&pid| !Process::runs(pid))));
}

/// With a terminal of its own, which is closed when the file `hang-up` is there.
fn in_terminal(way: &str) -> Server {
    let setup = shop().arg("--workers=1");
    let file = setup.root().join("hang-up");
    let wrapper = fixtures("workers").join("terminal.py");
    let words: [&OsStr; 4] = [
        "python3".as_ref(),
        wrapper.as_os_str(),
        way.as_ref(),
        file.as_os_str(),
    ];
    let server = setup.under(words).start();
    answering(&server, "/");
    server
}

fn hang_up(server: &Server) {
    fs::write(server.root().join("hang-up"), "").unwrap();
}

#[test]
fn a_server_with_workers_ends_with_its_terminal_but_not_with_nohup() {
    if !needs("python3") {
        return;
    }
    let mut server = in_terminal("shell");
    let old = workers(&server);
    send(server.pid(), Signal::HUP);
    server.wait_for_log("reload: new workers are started");
    assert!(eventually(|| workers(&server).is_disjoint(&old)));
    hang_up(&server);
    assert_eq!(server.wait_exit().code(), Some(0));

    let server = in_terminal("nohup");
    hang_up(&server);
    server.wait_for_log("its terminal is gone");
    send(server.pid(), Signal::HUP);
    answering(&server, "/");
}

#[test]
fn a_server_that_has_outlived_its_terminal_is_reloaded_by_hangup_c196() {
    if !needs("python3") {
        return;
    }
    let server = in_terminal("background");
    let inner = server
        .children()
        .into_iter()
        .find(|process| process.parent == server.pid())
        .expect("it is the session leader's child");
    hang_up(&server);
    server.wait_for_log("its terminal is gone");
    send(inner.pid, Signal::HUP);
    server.wait_for_log("reload: new workers are started");
    answering(&server, "/");
}

#[test]
fn without_workers_hangup_still_ends_the_server() {
    let mut server = crate::support::Server::new().start();
    server.signal(Signal::TTIN);
    server.signal(Signal::HUP);
    assert_eq!(server.wait_exit().code(), Some(0));
}
