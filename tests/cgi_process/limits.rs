//! How many scripts run at once, and what happens when the machine has nothing
//! left: C138, C139.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, geteuid, getrlimit, prlimit};

use super::WAITS;
use crate::support::{Client, Response, Server, Setup, eventually, needs, skip, tiny_http_cannot};

/// A script that notes its query in `order`, then waits for `go`.
fn noting() -> Setup {
    let text = WAITS.replace("while", "echo $QUERY_STRING >> ../order\nwhile");
    Server::new()
        .script("cgi-bin/notes", text)
        .file("page.txt", "page\n")
}

/// Sends, and gives the server every chance to queue it before anything later:
/// requests on connections of their own are answered in the meantime.
fn queue(server: &Server, name: &str) -> Client {
    let mut client = server.connect();
    client.send(
        server.wire(format!("GET /cgi-bin/notes?{name} HTTP/1.1\nHost: {{host}}").as_bytes()),
    );
    for _ in 0..5 {
        assert_eq!(server.get("/page.txt").text(), "page\n");
    }
    client
}

/// The first, which runs.
fn hold(server: &Server) -> Client {
    let mut client = queue(server, "a");
    client.head().expect("it runs");
    client
}

fn order(server: &Server) -> String {
    let order = fs::read_to_string(server.root().join("order")).unwrap_or_default();
    order.split_ascii_whitespace().collect()
}

fn let_go(server: &Server) {
    fs::write(server.root().join("go"), "").unwrap();
}

fn is_busy(response: &Response) -> bool {
    let seconds = response.header("Retry-After").unwrap_or_default();
    response.status == 503 && seconds.parse::<u32>().is_ok()
}

#[test]
fn requests_wait_in_their_order_c138() {
    let server = noting().args(["--cgi-jobs", "1"]).start();
    let mut clients = vec![hold(&server)];
    clients.extend(["b", "c", "d"].map(|name| queue(&server, name)));
    assert_eq!(order(&server), "a", "one at a time");
    let_go(&server);
    let first = String::from_utf8_lossy(&clients[0].some()).into_owned();
    assert!(first.contains("went"), "{first}");
    for client in &mut clients[1..] {
        assert_eq!(client.response().text(), "went\n");
    }
    assert_eq!(order(&server), "abcd");
}

#[test]
fn as_many_run_at_once_as_there_are_places_c138() {
    let server = noting().args(["--cgi-jobs", "3"]).start();
    let _running = ["a", "b", "c"].map(|name| {
        let mut client = queue(&server, name);
        client.head().expect("it runs");
        client
    });
    let _waiting = queue(&server, "d");
    assert_eq!(server.scripts().len(), 3);
    assert_eq!(order(&server).len(), 3);
    let_go(&server);
    assert!(eventually(|| order(&server).len() == 4));
}

#[test]
fn connections_that_come_together_are_all_served_c138() {
    if tiny_http_cannot("serve a burst of connections at once") {
        return;
    }
    let server = noting().args(["--cgi-jobs", "2"]).start();
    let_go(&server);
    // All stay open: none is served because another has ended.
    let mut clients: Vec<Client> = (0..40).map(|_| server.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let target = ["/page.txt", "/cgi-bin/notes"][n % 2];
        client.send(server.wire(format!("GET {target} HTTP/1.1\nHost: {{host}}").as_bytes()));
    }
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn what_does_not_fit_the_queue_is_told_to_come_again_c138() {
    let server = noting()
        .args(["--cgi-jobs", "1", "--cgi-queue", "1"])
        .start();
    let _first = hold(&server);
    let mut second = queue(&server, "b");
    let mut third = queue(&server, "c");
    let busy = third.response();
    assert!(is_busy(&busy), "{busy}");
    // A static request is not in that queue.
    assert_eq!(server.get("/page.txt").text(), "page\n");
    let_go(&server);
    assert_eq!(second.response().text(), "went\n");
    assert_eq!(order(&server), "ab");
}

#[test]
fn waiting_has_an_end_c138() {
    let server = noting()
        .args(["--cgi-jobs", "1", "--cgi-wait", "0.3"])
        .start();
    let _first = hold(&server);
    let busy = queue(&server, "b").response();
    assert!(is_busy(&busy), "{busy}");
    let_go(&server);
}

#[test]
fn who_leaves_the_queue_is_forgotten_c138() {
    let server = noting()
        .args(["--cgi-jobs", "1", "--cgi-queue", "1"])
        .start();
    let _first = hold(&server);
    let without = server.fds_at_rest();
    let second = queue(&server, "b");
    second.reset();
    assert!(eventually(|| server.fds() <= without), "it is still there");
    // Its turn in the queue is free, and it does not run.
    let mut third = queue(&server, "c");
    let_go(&server);
    assert_eq!(third.response().text(), "went\n");
    assert_eq!(order(&server), "ac");
}

#[test]
fn a_local_redirect_takes_no_second_place_c138() {
    let server = Server::new()
        .fixture("loc")
        .fixture("noread")
        .args(["--cgi-jobs", "1", "--cgi-queue", "0"])
        .start();
    for _ in 0..3 {
        let answered = eventually(|| {
            // The place of the request before may be given back a moment later.
            let response = server.get("/cgi-bin/loc?/cgi-bin/loc?/cgi-bin/noread");
            response.status == 200 && response.text() == "not read\n"
        });
        assert!(answered, "it waits for itself");
    }
}

#[test]
fn every_end_of_a_script_gives_its_place_back_c138() {
    let names = [
        "noread",
        "nohdr",
        "empty",
        "crashpre",
        "crashmid",
        "clshort",
        "cllong",
        "exit1",
        "nointerp",
        "noshebang",
        "nonexec",
        "dup",
        "hang",
        "halfhdr",
        "locempty",
        "loop",
        "te",
        "nph-x",
    ];
    let setup = names
        .iter()
        .fold(Server::new(), |setup, name| setup.fixture(name));
    let server = setup
        .args(["--cgi-jobs", "1", "--cgi-timeout", "0.3"])
        .start();
    for name in names {
        for method in ["GET", "HEAD"] {
            server.request(method, format!("/cgi-bin/{name}"), &[], b"");
        }
    }
    assert_eq!(server.get("/cgi-bin/noread").status, 200);
}

#[test]
fn without_descriptors_it_is_503_and_goes_on_c139() {
    let server = Server::new()
        .fixture("noread")
        .file("page.txt", "page\n")
        .start();
    let mut client = server.connect();
    let request = server.wire(b"GET /cgi-bin/noread HTTP/1.1\nHost: {host}");
    client.send(&request);
    assert_eq!(client.response().status, 200);
    server.fds_at_rest();
    let mut busy = 0;
    // From the one that finds nothing to the one that has all it needs.
    for free in 1..16 {
        let before = limit_files(&server, Some(limit_that_leaves(&server, free)));
        client.send(&request);
        let Some(response) = client.try_response_to("GET") else {
            // Not even the connection could be worked on.
            limit_files(&server, before);
            client = server.connect();
            client.send(&request);
            assert_eq!(client.response().status, 200);
            server.fds_at_rest();
            continue;
        };
        limit_files(&server, before);
        assert!(
            response.status == 200 || is_busy(&response),
            "with {free} free: {response}"
        );
        busy += u32::from(response.status == 503);
        if response.header("Connection").as_deref() == Some("close") {
            client = server.connect();
        }
        client.send(&request);
        assert_eq!(client.response().status, 200, "after {free} free");
        server.fds_at_rest();
    }
    assert!(busy > 0, "the descriptors never ran out");
    server.wait_for_log("no process, descriptor or memory left to run it");
}

/// The limit of open files below which `free` numbers are unused.
fn limit_that_leaves(server: &Server, free: u64) -> u64 {
    let folder = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the server runs");
    let open: Vec<u64> = folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let (mut left, mut limit) = (free, 0);
    while left > 0 {
        left -= u64::from(!open.contains(&limit));
        limit += 1;
    }
    limit
}

/// Sets the soft limit of the running server's open files; returns what it was.
fn limit_files(server: &Server, soft: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(server.pid().cast_signed());
    let new = Rlimit {
        current: soft,
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(pid, Resource::Nofile, new)
        .expect("it is our own process")
        .current
}

/// The same for processes, as the user of the server: root in a container may
/// have no right to.
fn limit_processes(server: &Server, soft: &str) {
    let facts = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let id = |name: &str| {
        let line = facts.lines().find_map(|line| line.strip_prefix(name));
        let first = line.and_then(|line| line.split_ascii_whitespace().next());
        first.expect("every process has one").parse().unwrap()
    };
    let status = Command::new("prlimit")
        .args(["--pid", &server.pid().to_string()])
        .arg(format!("--nproc={soft}:"))
        .gid(id("Gid:"))
        .uid(id("Uid:"))
        .status();
    assert!(status.is_ok_and(|status| status.success()));
}

#[test]
fn without_processes_it_is_503_and_goes_on_c139() {
    if !geteuid().is_root() {
        skip("C139 for processes: needs root, and the user nobody");
        return;
    }
    if !needs("prlimit") {
        return;
    }
    let server = Server::new()
        .fixture("noread")
        .for_everyone()
        .args(["--user", "nobody"])
        .start();
    let mut client = server.connect();
    let request = server.wire(b"GET /cgi-bin/noread HTTP/1.1\nHost: {host}");
    client.send(&request);
    assert_eq!(client.response().status, 200);
    let file = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = file
        .lines()
        .find_map(|line| line.strip_prefix("Max processes"));
    let before = line
        .and_then(|line| line.split_ascii_whitespace().next())
        .unwrap();
    limit_processes(&server, "1");
    client.send(&request);
    let busy = client.response();
    limit_processes(&server, before);
    assert!(is_busy(&busy), "{busy}");
    client.send(&request);
    assert_eq!(client.response().status, 200);
}
