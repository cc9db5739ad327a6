//! How a script's process ends: C127, C131 to C137.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;

use super::WAITS;
use crate::support::{Client, Process, Server, end, eventually, needs, skip};

fn ask(server: &Server, target: &str) -> Client {
    let mut client = server.connect();
    client.send(server.wire(format!("GET {target} HTTP/1.1\nHost: {{host}}").as_bytes()));
    client
}

/// Waits until so many scripts run.
fn running(server: &Server, count: usize) -> Vec<u32> {
    let scripts = || {
        let mut scripts = server.scripts();
        scripts.retain(|process| !process.is_prepared());
        scripts
    };
    let there = eventually(|| scripts().len() == count);
    assert!(there, "{} scripts run, not {count}", scripts().len());
    scripts().iter().map(|script| script.pid).collect()
}

fn gone(pids: &[u32]) -> bool {
    eventually(|| !pids.iter().any(|&pid| Process::runs(pid)))
}

#[test]
fn the_whole_group_ends_with_its_request_c127() {
    let server = Server::new().fixture("forkbomb-lite").start();
    let before = server.fds_at_rest();
    let mut client = ask(&server, "/cgi-bin/forkbomb-lite");
    client.head().expect("it answers");
    assert!(
        eventually(|| server.children().len() == 21),
        "20 and their parent"
    );
    let family: Vec<u32> = server
        .children()
        .iter()
        .map(|process| process.pid)
        .collect();
    client.reset();
    assert!(gone(&family), "some of the group run on");
    server.settles_to(before);
}

#[test]
fn who_ignores_term_is_killed_c127() {
    let server = Server::new().fixture("ignterm").start();
    let before = server.fds_at_rest();
    let mut client = ask(&server, "/cgi-bin/ignterm");
    client.head().expect("it answers");
    let scripts = running(&server, 1);
    client.reset();
    assert!(gone(&scripts), "it ignores TERM and lives");
    server.settles_to(before);
}

#[test]
fn the_end_begins_with_term_c127() {
    let server = Server::new().fixture("trapterm").start();
    let mut client = ask(&server, "/cgi-bin/trapterm?quiet");
    client.head().expect("it answers");
    client.reset();
    server.wait_for_log("]: got TERM");
}

#[test]
fn a_member_that_ignores_term_is_killed_after_its_leader_c127() {
    let server = Server::new()
        .script(
            "cgi-bin/leads",
            "#!/bin/sh\n(trap '' TERM; printf 'Content-Type: text/plain\\n\\n'; while :; do sleep 1; done) &\nexec sleep 600\n",
        )
        .start();
    let mut client = ask(&server, "/cgi-bin/leads");
    client.head().expect("it answers");
    let family: Vec<u32> = server
        .children()
        .iter()
        .map(|process| process.pid)
        .collect();
    client.reset();
    assert!(gone(&family), "a member outlives the group");
}

#[test]
fn a_script_that_left_its_group_ends_too_c127() {
    let server = Server::new()
        .script(
            "cgi-bin/leaves",
            "#!/usr/bin/perl\nsetpgrp(0, getpgrp(getppid)) or die;\n$| = 1;\nprint \"Content-Type: text/plain\\n\\n\";\nsleep 600;\n",
        )
        .start();
    let before = server.fds_at_rest();
    let mut client = ask(&server, "/cgi-bin/leaves");
    client.head().expect("it answers");
    let scripts = running(&server, 1);
    client.reset();
    assert!(gone(&scripts), "it runs on in another group");
    server.settles_to(before);
}

#[test]
fn a_signal_to_the_server_ends_all_scripts_c127() {
    for (signal, script, family) in [
        (Signal::TERM, "ignterm", 1),
        (Signal::INT, "forkbomb-lite", 21),
        (Signal::HUP, "trapterm", 1),
    ] {
        let mut server = Server::new()
            .fixture("hang")
            .fixture(script)
            .args(["--grace", "0.2"])
            .start();
        let _silent = ask(&server, "/cgi-bin/hang");
        running(&server, 1);
        let mut client = ask(&server, &format!("/cgi-bin/{script}"));
        client.head().expect("it answers");
        assert!(eventually(|| server.children().len() > family));
        let family: Vec<u32> = server
            .children()
            .iter()
            .map(|process| process.pid)
            .collect();
        server.signal(signal);
        let status = server.wait_exit();
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
        assert!(gone(&family), "{signal:?}: some run on");
    }
}

#[test]
fn running_requests_finish_within_the_grace_c127() {
    let mut server = Server::new()
        .script("cgi-bin/waits", WAITS)
        .args(["--grace", "100"])
        .start();
    let mut client = ask(&server, "/cgi-bin/waits");
    client.head().expect("it answers");
    server.signal(Signal::TERM);
    // It has the signal when it accepts no more.
    assert!(eventually(|| std::net::TcpStream::connect(
        server.address()
    )
    .is_err()));
    fs::write(server.root().join("go"), "").unwrap();
    let rest = String::from_utf8_lossy(client.rest()).into_owned();
    assert!(
        rest.contains("went\n") && rest.ends_with("0\r\n\r\n"),
        "{rest:?}"
    );
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_grace_c127() {
    let mut server = Server::new()
        .fixture("hang")
        .args(["--grace", "100"])
        .start();
    let _client = ask(&server, "/cgi-bin/hang");
    let scripts = running(&server, 1);
    server.signal(Signal::INT);
    assert!(eventually(|| std::net::TcpStream::connect(
        server.address()
    )
    .is_err()));
    server.signal(Signal::INT);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(gone(&scripts));
}

#[test]
fn scripts_learn_of_the_servers_sudden_death_c127() {
    let mut server = Server::new()
        .script(
            "cgi-bin/orphan",
            "#!/bin/sh\ntrap 'touch ../got-term; exit' TERM\nprintf 'Content-Type: text/plain\\n\\n%s\\n' $$\nwhile :; do sleep 0.05; done\n",
        )
        .start();
    let mut client = ask(&server, "/cgi-bin/orphan");
    client.head().expect("it answers");
    let scripts = running(&server, 1);
    server.signal(Signal::KILL);
    assert_eq!(server.wait_exit().signal(), Some(9));
    assert!(gone(&scripts), "it outlives the server");
    assert!(server.root().join("got-term").exists());
}

#[test]
fn no_header_in_time_is_504_and_the_end_c131() {
    let server = Server::new()
        .fixture("hang")
        .fixture("halfhdr")
        .args(["--cgi-timeout", "0.3"])
        .start();
    let before = server.fds_at_rest();
    for script in ["hang", "halfhdr"] {
        let response = server.get(format!("/cgi-bin/{script}"));
        assert_eq!(response.status, 504, "{script}: {response}");
        let line = server.log_line(&format!("cgi 'cgi-bin/{script}': "));
        assert!(line.contains("(timeout;"), "{line}");
    }
    server.settles_to(before);
}

#[test]
fn no_body_for_too_long_cuts_the_connection_c131() {
    let server = Server::new()
        .fixture("trapterm")
        .args(["--cgi-timeout", "0.3"])
        .start();
    let before = server.fds_at_rest();
    for version in ["HTTP/1.1\nHost: {host}", "HTTP/1.0"] {
        let mut client = server.connect();
        client.send(server.wire(format!("GET /cgi-bin/trapterm?quiet {version}").as_bytes()));
        let response = client.response();
        assert_eq!(response.status, 200, "{response}");
        assert!(!response.complete, "{version}: it looks whole");
    }
    server.wait_for_log("cgi 'cgi-bin/trapterm': timeout: no output for too long");
    server.wait_for_log("]: got TERM");
    server.settles_to(before);
}

#[test]
fn output_now_and_then_is_in_time_c131() {
    let server = Server::new()
        .script(
            "cgi-bin/ticks",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nfor n in 1 2 3 4 5 6 7 8 9; do echo $n; sleep 0.3; done\n",
        )
        .args(["--cgi-timeout", "1.5"])
        .start();
    let response = server.get("/cgi-bin/ticks");
    assert!(response.complete, "{response}");
    assert_eq!(response.text().lines().count(), 9);
}

#[test]
fn a_slow_client_is_no_slow_script_c131() {
    const BYTES: usize = 16 << 20;
    let server = Server::new()
        .script(
            "cgi-bin/flood",
            format!("#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec head -c {BYTES} /dev/zero\n"),
        )
        .fixture("hang")
        .args(["--cgi-timeout", "0.5"])
        .start();
    let mut slow = server.connect();
    slow.send(server.wire(b"GET /cgi-bin/flood HTTP/1.0"));
    running(&server, 1);
    // Two timeouts pass for others while this client reads nothing.
    for _ in 0..2 {
        assert_eq!(server.get("/cgi-bin/hang").status, 504);
    }
    let response = slow.response();
    assert!(response.complete);
    assert_eq!(response.body.len(), BYTES);
}

#[test]
fn a_reset_ends_a_silent_script_c132() {
    let server = Server::new().fixture("hang").start();
    let before = server.fds_at_rest();
    let client = ask(&server, "/cgi-bin/hang");
    let scripts = running(&server, 1);
    client.reset();
    assert!(gone(&scripts), "nobody waits for it, and it runs");
    server.settles_to(before);
}

#[test]
fn a_client_that_just_closed_is_gone_after_a_grace_c132() {
    let server = Server::new().fixture("hang").fixture("trapterm").start();
    let before = server.fds_at_rest();
    let silent = ask(&server, "/cgi-bin/hang");
    running(&server, 1);
    let mut between = ask(&server, "/cgi-bin/trapterm?quiet");
    between.head().expect("it answers");
    let scripts = running(&server, 2);
    drop((silent, between));
    assert!(gone(&scripts), "nobody waits for them, and they run");
    server.settles_to(before);
}

#[test]
fn a_client_that_leaves_a_streaming_script_ends_it_c132() {
    for reset in [true, false] {
        let server = Server::new().fixture("trapterm").start();
        let before = server.fds_at_rest();
        let mut client = ask(&server, "/cgi-bin/trapterm");
        client.head().expect("it answers");
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        // TERM from the server, or the pipe that broke: whichever is first.
        server.wait_for_log("]: got ");
        server.settles_to(before);
    }
}

#[test]
fn a_half_closing_client_gets_its_answer_c132() {
    let server = Server::new().fixture("slow").fixture("stream").start();
    for (script, text) in [("slow", "slow\n"), ("stream", "line 1\nline 2\nline 3\n")] {
        let mut client = ask(&server, &format!("/cgi-bin/{script}"));
        client.half_close();
        let response = client.response();
        assert!(response.complete, "{response}");
        assert_eq!(response.text(), text);
    }
}

#[test]
fn scripts_may_finish_when_the_client_has_left_c133() {
    let server = Server::new()
        .script(
            "cgi-bin/works",
            "#!/bin/sh\nhead() { printf 'Content-Type: text/plain\\n\\n'; }\n\
             [ \"$QUERY_STRING\" = silent ] || head\n\
             while [ ! -e ../go ]; do sleep 0.05; done\n\
             [ \"$QUERY_STRING\" = silent ] && head\n\
             command head -c 300000 /dev/zero && echo \"finished $QUERY_STRING\" >&2\n",
        )
        .arg("--cgi-finish")
        .start();
    let before = server.fds_at_rest();
    let silent = ask(&server, "/cgi-bin/works?silent");
    running(&server, 1);
    let mut streaming = ask(&server, "/cgi-bin/works?streaming");
    streaming.head().expect("it answers");
    running(&server, 2);
    let descriptors = server.fds();
    silent.reset();
    streaming.reset();
    // Noticed, and both run on.
    assert!(eventually(|| server.fds() < descriptors));
    running(&server, 2);
    fs::write(server.root().join("go"), "").unwrap();
    server.wait_for_log("]: finished silent");
    server.wait_for_log("]: finished streaming");
    server.settles_to(before);
}

#[test]
fn no_zombie_is_left_c134() {
    let server = Server::new()
        .fixture("noread")
        .fixture("crashpre")
        .fixture("exit1")
        .fixture("nointerp")
        .fixture("nph-x")
        .start();
    let before = server.fds_at_rest();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for script in ["noread", "crashpre", "exit1", "nointerp", "nph-x"]
                    .iter()
                    .cycle()
                    .take(50)
                {
                    server.get(format!("/cgi-bin/{script}"));
                }
            });
        }
    });
    server.settles_to(before);
}

#[test]
fn as_the_first_process_of_a_container_it_reaps_orphans_c134() {
    if !needs("unshare") {
        return;
    }
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let allowed = std::process::Command::new("unshare")
        .args(&unshare[1..])
        .arg("true")
        .status();
    if !allowed.is_ok_and(|status| status.success()) {
        skip("C134 as process 1: needs the right to make a PID namespace");
        return;
    }
    let server = Server::new()
        .script(
            "cgi-bin/orphans",
            "#!/bin/sh\n(sleep 0.1 & sleep 0.2 & exec sleep 0.3) < /dev/null > /dev/null 2>&1 &\n\
             printf 'Content-Type: text/plain\\n\\n'\n",
        )
        .under(unshare)
        .start();
    for _ in 0..5 {
        assert_eq!(server.get("/cgi-bin/orphans").status, 200);
    }
    // The server itself is the only one that stays.
    let alone = eventually(|| server.children().len() == 1);
    let left: Vec<String> = server.children().iter().map(Process::to_string).collect();
    assert!(alone, "{left:?}");
}

#[test]
fn a_descendant_on_standard_output_is_not_waited_for_long_c135() {
    let server = Server::new().fixture("bg").start();
    let response = server.get("/cgi-bin/bg");
    assert!(response.complete, "{response}");
    server.wait_for_log("cgi 'cgi-bin/bg': descendant keeps stdout open");
    let left = response.text().trim().parse().expect("its pid");
    assert!(Process::runs(left), "a normal end touches nobody");
    end(left);
}

#[test]
fn what_a_descendant_prints_in_time_is_part_of_the_answer_c135() {
    let server = Server::new()
        .script(
            "cgi-bin/hands",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n(while [ ! -e ../go ]; do sleep 0.05; done; echo late) &\n",
        )
        .start();
    let mut client = ask(&server, "/cgi-bin/hands");
    assert_eq!(client.head().expect("it answers").status, 200);
    assert!(
        eventually(|| server.scripts().is_empty()),
        "the script itself ends"
    );
    fs::write(server.root().join("go"), "").unwrap();
    let text = String::from_utf8_lossy(&client.some()).into_owned();
    assert!(text.contains("late"), "{text}");
}

#[test]
fn with_the_announced_length_nobody_is_waited_for_c135() {
    let server = Server::new()
        .script(
            "cgi-bin/long",
            "#!/bin/sh\nsleep 600 &\nprintf 'Content-Type: text/plain\\nContent-Length: 6\\n\\nanswer'\nwait\n",
        )
        .start();
    let response = server.get("/cgi-bin/long");
    assert_eq!(response.text(), "answer");
    assert!(response.complete);
    // The script was still at it.
    let scripts = running(&server, 1);
    assert!(!server.log().contains("descendant"));
    server.children().iter().for_each(|child| end(child.pid));
    assert!(gone(&scripts));
}

#[test]
fn a_daemon_with_streams_of_its_own_is_left_alone_c136() {
    let mut server = Server::new().fixture("daemon").start();
    let before = server.fds_at_rest();
    let response = server.get("/cgi-bin/daemon");
    assert!(response.complete, "{response}");
    let daemon = response.text().trim().parse().expect("its pid");
    server.settles_to(before);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(Process::runs(daemon), "it was ended with the server");
    end(daemon);
}

#[test]
fn a_script_that_works_on_keeps_its_place_c137() {
    let server = Server::new()
        .script(
            "cgi-bin/works",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nanswer'\nexec 1>&-\n\
             while [ ! -e ../go ]; do sleep 0.05; done\n",
        )
        .fixture("noread")
        .args(["--cgi-jobs", "1", "--cgi-queue", "0"])
        .start();
    let response = server.get("/cgi-bin/works");
    assert_eq!(response.text(), "answer");
    assert!(response.complete);
    assert_eq!(server.get("/cgi-bin/noread").status, 503);
    fs::write(server.root().join("go"), "").unwrap();
    let free = eventually(|| server.get("/cgi-bin/noread").status == 200);
    assert!(free, "its place is never given back");
}
