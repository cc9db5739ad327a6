//! `--preload`: the application is imported once, and workers are forked from
//! that process. All that holds without it holds with it.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::Signal;

use super::{send, under_load, wait_for_workers, workers};
use crate::support::{Process, Server, Setup, eventually, needs};

/// Tells who answers, who has imported it, and its edition.
const CODE: &str = r#"
import os, time
IMPORTED_BY = os.getpid()
print("imported")
def app(environ, start_response):
    if environ["PATH_INFO"] == "/hangs":
        time.sleep(1000)
    if environ["PATH_INFO"] == "/prints":
        print("from here")
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %d edition 1" % (os.getpid(), IMPORTED_BY)]
"#;

fn shop() -> Setup {
    Server::new()
        .file("shop.py", CODE)
        .args(["--wsgi", "shop:app", "--preload"])
}

/// The worker, its parent, and the edition.
fn ask(server: &Server) -> (u32, u32, String) {
    let text = server.get("/").text();
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        [worker, parent, "edition", edition] => (
            worker.parse().expect("a number"),
            parent.parse().expect("a number"),
            edition.to_owned(),
        ),
        _ => panic!("{text}\n{}", server.log()),
    }
}

/// The length changes, too: Python tells compiled code by that and by the second.
fn change(server: &Server, from: &str, to: &str) {
    fs::write(server.root().join("shop.py"), CODE.replace(from, to)).unwrap();
}

#[test]
fn workers_share_one_import_and_print_for_themselves_c193() {
    if !needs("python3") {
        return;
    }
    let server = shop().arg("--workers=2").start();
    let all = wait_for_workers(&server, 3);
    let (worker, parent, _) = ask(&server);
    let mut seen = BTreeSet::from([worker, parent]);
    assert!(eventually(|| {
        let (worker, same, _) = ask(&server);
        assert_eq!(same, parent);
        seen.insert(worker);
        seen == all
    }));
    assert_eq!(server.log().matches("]: imported").count(), 1);
    server.get("/prints");
    let log = server.wait_for_log("from here");
    assert!(!log.contains(&format!("[{parent}]: from here")), "{log}");
}

#[test]
fn a_reload_under_load_imports_anew_and_loses_nothing_c193_c196() {
    if !needs("python3") {
        return;
    }
    let server = shop()
        .args(["--workers=2", "--max-requests=100", "-q"])
        .start();
    let (_, first, _) = ask(&server);
    under_load(&server, "/", || {
        change(&server, "edition 1", "edition 22");
        server.signal(Signal::HUP);
        assert!(eventually(|| ask(&server).2 == "22"));
        // The old parent leaves after its last worker.
        assert!(eventually(|| !Process::runs(first)));
    });
    assert_eq!(ask(&server).2, "22");
    wait_for_workers(&server, 3);
}

#[test]
fn a_reload_that_fails_keeps_the_old_import_for_further_workers_c197() {
    if !needs("python3") {
        return;
    }
    let server = shop().arg("--workers=1").start();
    let (worker, parent, _) = ask(&server);
    change(&server, "import os", "import nothing_of_that_name, os");
    server.signal(Signal::HUP);
    let log = server.wait_for_log("the old workers stay");
    assert!(
        log.contains("No module named 'nothing_of_that_name'"),
        "{log}"
    );
    send(worker, Signal::KILL);
    server.wait_for_log(&format!("worker {worker} was ended by signal 9"));
    assert!(eventually(|| {
        let (next, same, _) = ask(&server);
        same == parent && next != worker
    }));
}

#[test]
fn a_stuck_worker_is_ended_and_replaced_from_the_same_import_c194() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=1", "--route-timeout=3"]).start();
    let (worker, parent, _) = ask(&server);
    assert_eq!(server.get("/hangs").status, 504);
    server.wait_for_log("shop.py\", line 7 in app");
    server.wait_for_log(&format!("worker {worker} was ended by signal 6"));
    let (next, same, _) = ask(&server);
    assert!(next != worker && same == parent);
    assert!(!Process::runs(worker));
}

#[test]
fn a_parent_that_dies_takes_its_workers_along_and_all_come_again_c198() {
    if !needs("python3") {
        return;
    }
    let server = shop().arg("--workers=2").start();
    let (_, parent, _) = ask(&server);
    let before = wait_for_workers(&server, 3);
    // An end in the first second is a failed start, which is another matter.
    std::thread::sleep(std::time::Duration::from_secs(1));
    send(parent, Signal::KILL);
    server.wait_for_log("its workers leave");
    assert!(eventually(|| {
        let now = workers(&server);
        now.len() == 3 && now.is_disjoint(&before)
    }));
    assert_ne!(ask(&server).1, parent);
}

#[test]
fn a_parent_that_forks_no_more_is_replaced_c194() {
    if !needs("python3") {
        return;
    }
    let server = shop().arg("--workers=1").start();
    let (worker, parent, _) = ask(&server);
    send(parent, Signal::STOP);
    send(worker, Signal::KILL);
    server.wait_for_log(&format!("{parent} forks no worker"));
    let (next, another, _) = ask(&server);
    assert!(next != worker && another != parent);
}

#[test]
fn parent_and_workers_end_with_a_server_that_is_killed_c198() {
    if !needs("python3") {
        return;
    }
    let server = shop().arg("--workers=2").start();
    let all = wait_for_workers(&server, 3);
    send(server.pid(), Signal::KILL);
    assert!(eventually(|| all.iter().all(|&pid| !Process::runs(pid))));
}

#[test]
fn without_requests_the_parent_ends_too_and_comes_with_the_next() {
    if !needs("python3") {
        return;
    }
    let server = shop().args(["--workers=1", "--workers-idle=0.3"]).start();
    for _ in 0..2 {
        ask(&server);
        wait_for_workers(&server, 2);
        wait_for_workers(&server, 0);
    }
}

#[test]
fn an_import_that_fails_is_told_and_tried_again_c197() {
    if !needs("python3") {
        return;
    }
    let server = Server::new()
        .file("shop.py", "app = undefined_name\n")
        .args(["--wsgi", "shop:app", "--preload", "--workers=2"])
        .start();
    let answer = server.get("/");
    assert_eq!(answer.status, 502);
    assert!(
        answer.text().contains("undefined_name"),
        "{}",
        answer.text()
    );
    let log = server.wait_for_log("the next try is in 0.5 s");
    assert_eq!(log.matches("Traceback").count(), 1, "{log}");
    change(&server, "edition 1", "edition 33");
    assert!(eventually(|| server
        .get("/")
        .text()
        .ends_with("edition 33")));
}
