//! Prepared interpreters that die, stop or fail at any moment: every request
//! is answered, none is run twice, nothing is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::edits::until_warm;
use super::ways::warm_runs;
use crate::support::{Process, Server, Setup, eventually, needs};

/// Adds a byte to a file of the name that the query gives, then answers with it.
const COUNTS: [(&str, &str); 2] = [
    (
        "cgi-bin/x.py",
        "#!/usr/bin/python3\nimport json, os\nname = os.environ['QUERY_STRING']\n\
         if name:\n    with open('../runs/' + name, 'a') as file:\n        file.write('x')\n\
         print('Content-Type: text/plain\\n')\nprint(name)\n",
    ),
    (
        "cgi-bin/x.pl",
        "#!/usr/bin/perl\nuse POSIX ();\nmy $name = $ENV{QUERY_STRING};\n\
         if ($name) { open my $file, '>>', \"../runs/$name\" or die; print $file 'x' }\n\
         print \"Content-Type: text/plain\\n\\n$name\\n\";\n",
    ),
];

/// Waits for the file `go`, then says who its parent is.
const WAITS: [(&str, &str); 2] = [
    (
        "cgi-bin/waits.py",
        "#!/usr/bin/python3\nimport json, os, time\nprint('Content-Type: text/plain\\n', flush=True)\n\
         while os.environ['QUERY_STRING'] and not os.path.exists('../go'): time.sleep(0.02)\n\
         print(os.getppid())\n",
    ),
    (
        "cgi-bin/waits.pl",
        "#!/usr/bin/perl\nuse POSIX ();\n$| = 1;\nprint \"Content-Type: text/plain\\n\\n\";\n\
         while ($ENV{QUERY_STRING} && !-e '../go') { select undef, undef, undef, 0.02 }\n\
         print getppid, \"\\n\";\n",
    ),
];

#[test]
fn a_prepared_interpreter_that_was_killed_is_replaced() {
    if let Some(server) = servers(COUNTS) {
        for zygote in zygotes(&server) {
            signal(zygote, Signal::KILL);
        }
        counted_once(&server, "after", 5);
        until_warm(&server, COUNTS[0].0);
        until_warm(&server, COUNTS[1].0);
    }
}

#[test]
fn a_prepared_interpreter_that_stands_still_holds_up_no_request() {
    if let Some(server) = servers(COUNTS) {
        let stopped = zygotes(&server);
        for &zygote in &stopped {
            signal(zygote, Signal::STOP);
        }
        counted_once(&server, "stopped", 5);
        assert!(
            eventually(|| stopped.iter().all(|&pid| !Process::runs(pid))),
            "one that stands still is left"
        );
    }
}

#[test]
fn a_prepared_interpreter_at_its_limits_declines() {
    if !needs("prlimit") {
        return;
    }
    // Nothing more can be mapped; no descriptor can be received; no file written.
    for limit in ["--as=1", "--nofile=3", "--data=1", "--fsize=0", "--cpu=0"] {
        if let Some(server) = servers(COUNTS) {
            for zygote in zygotes(&server) {
                let limited = Command::new("prlimit")
                    .args(["--pid", &zygote.to_string(), limit])
                    .status();
                assert!(limited.is_ok_and(|status| status.success()), "{limit}");
            }
            // What a limit does to a script that inherits it is not of interest here.
            if !["--fsize=0", "--cpu=0"].contains(&limit) {
                counted_once(&server, "limited", 5);
            }
            for zygote in zygotes(&server) {
                signal(zygote, Signal::KILL);
            }
            counted_once(&server, "later", 3);
        }
    }
}

#[test]
fn no_request_is_run_twice_whenever_its_interpreter_dies() {
    if let Some(server) = servers(COUNTS) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut turn = 0_usize;
                while !over.load(Ordering::Relaxed) {
                    for zygote in zygotes(&server) {
                        turn += 1;
                        let how = [Signal::KILL, Signal::STOP, Signal::SEGV, Signal::TERM];
                        signal(zygote, how[turn % how.len()]);
                    }
                    thread::yield_now();
                }
            });
            let clients: Vec<_> = (0..3)
                .map(|client| {
                    let server = &server;
                    scope.spawn(move || counted_once(server, &format!("c{client}-"), 40))
                })
                .collect();
            let ended: Vec<bool> = clients.into_iter().map(|c| c.join().is_ok()).collect();
            over.store(true, Ordering::Relaxed);
            assert!(
                ended.iter().all(|&ended| ended),
                "a request was lost or run twice"
            );
        });
    }
}

#[test]
fn a_running_script_outlives_the_interpreter_it_came_from() {
    if let Some(server) = servers(WAITS) {
        for (script, _) in WAITS {
            let mut client = server.connect();
            let request = format!("GET /{script}?wait HTTP/1.1\nHost: {{host}}\nConnection: close");
            client.send(server.wire(request.as_bytes()));
            let head = client.head().expect("it has begun to answer");
            assert_eq!(head.status, 200);
            for zygote in zygotes(&server) {
                signal(zygote, Signal::KILL);
            }
            let gone = || zygotes(&server).iter().all(|&pid| !Process::runs(pid));
            assert!(eventually(gone), "a killed interpreter is left");
            fs::write(server.root().join("go"), "").unwrap();
            let body = String::from_utf8_lossy(client.rest()).into_owned();
            assert!(body.contains(&server.pid().to_string()), "{script}: {body}");
            fs::remove_file(server.root().join("go")).unwrap();
            server.get("/");
        }
    }
}

#[test]
fn a_client_that_leaves_ends_its_script_and_not_the_interpreter() {
    if let Some(server) = servers(WAITS) {
        for (script, _) in WAITS {
            let before = zygotes(&server);
            let mut client = server.connect();
            let request = format!("GET /{script}?wait HTTP/1.1\nHost: {{host}}\nConnection: close");
            client.send(server.wire(request.as_bytes()));
            client.head().expect("it has begun to answer");
            client.reset();
            let only_zygotes = || server.scripts().iter().all(|p| before.contains(&p.pid));
            assert!(eventually(only_zygotes), "the script runs on");
            let runs = warm_runs(&server.log(), script);
            server.get(format!("/{script}"));
            assert!(
                eventually(|| warm_runs(&server.log(), script) > runs),
                "{script} is not warm any more"
            );
            assert_eq!(zygotes(&server), before);
        }
    }
}

#[test]
fn ten_thousand_warm_requests_leave_nothing_behind() {
    const CLIENTS: usize = 4;
    /// Of each client to each of the two scripts: what is learnt is learnt then.
    const FIRST: usize = 100;
    const REQUESTS: usize = 1250;
    // One that is replaced can't be watched.
    let keep = |setup: Setup| setup.args(["--warm-requests", "1000000"]);
    if let Some(server) = servers_with(COUNTS, keep) {
        let look = || {
            let zygotes = zygotes(&server);
            let of_each = zygotes.iter().map(|pid| {
                let open = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
                (*pid, open)
            });
            let of_each: Vec<(u32, usize)> = of_each.collect();
            (of_each, server.children().len())
        };
        let ask = |requests: usize| {
            thread::scope(|scope| {
                for _ in 0..CLIENTS {
                    scope.spawn(|| {
                        for number in 0..requests * COUNTS.len() {
                            let (script, _) = COUNTS[number % COUNTS.len()];
                            assert_eq!(server.get(format!("/{script}")).status, 200);
                        }
                    });
                }
            });
        };
        let memory = || {
            zygotes(&server)
                .iter()
                .map(|&pid| private_bytes(pid))
                .sum::<usize>()
        };
        ask(FIRST);
        let (fds, before, held) = (server.idle_fds(), look(), memory());
        ask(REQUESTS);
        assert!(
            eventually(|| server.fds() <= fds),
            "{} descriptors, {fds} before",
            server.fds()
        );
        assert!(
            eventually(|| look() == before),
            "{:?}, {before:?} before",
            look()
        );
        let now = memory();
        assert!(
            now < held + (2 << 20),
            "{now} bytes in prepared interpreters, {held} before"
        );
    }
}

#[test]
fn nothing_outlives_a_server_that_was_told_to_end() {
    if let Some(mut server) = servers(COUNTS) {
        let zygotes = zygotes(&server);
        assert!(!server.temporary_files().is_empty(), "no private folder");
        server.signal(Signal::TERM);
        server.wait_exit();
        assert_eq!(server.temporary_files(), Vec::<std::path::PathBuf>::new());
        assert!(
            eventually(|| !zygotes.iter().any(|&pid| Process::runs(pid))),
            "an interpreter is left"
        );
    }
}

#[test]
fn nothing_outlives_a_server_that_was_killed() {
    let shared = tempfile::tempdir().unwrap();
    let setup = |setup: Setup| setup.env("TMPDIR", shared.path());
    let entries = || fs::read_dir(shared.path()).unwrap().count();
    if let Some(mut server) = servers_with(COUNTS, setup) {
        let zygotes = zygotes(&server);
        server.signal(Signal::KILL);
        server.wait_exit();
        assert!(
            eventually(|| !zygotes.iter().any(|&pid| Process::runs(pid))),
            "an interpreter is left"
        );
        let left = entries();
        // The next one tidies up.
        let next = servers_with(COUNTS, setup);
        assert!(
            eventually(|| entries() <= left),
            "{} entries, {left} before",
            entries()
        );
        drop(next);
        assert!(
            eventually(|| entries() == 0),
            "{} entries are left",
            entries()
        );
    }
}

#[test]
fn a_prepared_interpreter_gives_nothing_to_scripts_of_another_kind() {
    if let Some(server) = servers(COUNTS) {
        fs::write(
            server.root().join("cgi-bin/sh"),
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'; env | grep -c -i 'serve_here\\|PYTHONPATH'; ls /proc/self/fd | wc -l\n",
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(server.root().join("cgi-bin/sh"), mode).unwrap();
        assert_eq!(server.get("/cgi-bin/sh").text(), "0\n4\n");
        assert_eq!(warm_runs(&server.log(), "cgi-bin/sh"), 0);
    }
}

/// A server whose scripts of both languages are warm; none if it has no warm
/// way or a language is missing.
fn servers(scripts: [(&str, &str); 2]) -> Option<Server> {
    servers_with(scripts, |setup| setup)
}

fn servers_with(scripts: [(&str, &str); 2], lay: impl FnOnce(Setup) -> Setup) -> Option<Server> {
    if !(needs("python3") && needs("perl")) {
        return None;
    }
    let setup = Server::new().folder("runs").args(["--log", "json"]);
    let setup = scripts
        .iter()
        .fold(setup, |setup, (name, text)| setup.script(name, text));
    let server = lay(setup).start();
    for (script, _) in scripts {
        until_warm(&server, script);
    }
    assert!(!zygotes(&server).is_empty(), "no prepared interpreter");
    Some(server)
}

/// Asks both scripts, each time with another name; each name is answered, and
/// its file has one byte.
fn counted_once(server: &Server, name: &str, requests: usize) {
    let mut wrong = BTreeSet::new();
    for (script, _) in COUNTS {
        let suffix = &script[script.len() - 2..];
        for number in 0..requests {
            let name = format!("{name}{number}{suffix}");
            let response = server.get(format!("/{script}?{name}"));
            let runs = fs::read_to_string(server.root().join("runs").join(&name));
            let runs = runs.unwrap_or_default();
            if response.status != 200 || response.text() != format!("{name}\n") || runs != "x" {
                wrong.insert(format!("{name}: runs `{runs}`, {response}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The server's own children that wait to become scripts.
fn zygotes(server: &Server) -> Vec<u32> {
    let is_zygote = |process: &Process| {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid));
        // A script made from one has its command line, but a name of its own.
        (line.contains("serve_here_zygote") || line.contains("zygote.pl"))
            && name.is_ok_and(|name| name.starts_with("python") || name.starts_with("perl"))
    };
    let mut found: Vec<u32> = server
        .scripts()
        .iter()
        .filter(|process| is_zygote(process))
        .map(|process| process.pid)
        .collect();
    found.sort_unstable();
    found
}

fn private_bytes(pid: u32) -> usize {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let figures = rollup.lines().filter_map(|line| {
        let figure = line.strip_prefix("Anonymous:")?;
        figure.trim().trim_end_matches(" kB").parse::<usize>().ok()
    });
    figures.sum::<usize>() << 10
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may have gone in the meantime.
    let _ = kill_process(pid.expect("a process has a positive number"), signal);
}
