//! What a script's process is given: C126 to C130.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use rustix::process::{Pid, getpgid};

use super::WAITS;
use crate::support::{
    Report, Server, eventually, first_core, fixtures, needs, skip, tiny_http_cannot,
};

#[test]
fn a_script_starts_in_its_own_folder_c126() {
    let server = Server::new()
        .fixture("env")
        .fixture_at("env", "cgi-bin/sub/env")
        .start();
    let root = fs::canonicalize(server.root()).unwrap();
    for (target, folder) in [
        ("/cgi-bin/env", "cgi-bin"),
        ("/cgi-bin/sub/env/extra/path", "cgi-bin/sub"),
    ] {
        let report = server.report(target);
        let expected = root.join(folder).display().to_string();
        assert_eq!(report.fact("cwd"), Some(expected.clone()));
        assert_eq!(report.text("PWD"), None, "the server's own would lie");
    }
}

#[test]
fn a_script_starts_in_the_root_if_told_so_c126() {
    let server = Server::new()
        .fixture_at("env", "cgi-bin/sub/env")
        .args(["--cgi-cwd", "root"])
        .start();
    let root = fs::canonicalize(server.root()).unwrap();
    let report = server.report("/cgi-bin/sub/env");
    assert_eq!(report.fact("cwd"), Some(root.display().to_string()));
    let script = root.join("cgi-bin/sub/env");
    assert_eq!(report.argv[0], script.as_os_str().as_encoded_bytes());
}

#[test]
fn each_script_has_a_process_group_of_its_own_c127() {
    let server = Server::new().fixture("env").start();
    let server_group = getpgid(Pid::from_raw(server.pid().cast_signed())).unwrap();
    let server_group = server_group.as_raw_nonzero().to_string();
    let reports = [server.report("/cgi-bin/env"), server.report("/cgi-bin/env")];
    for report in &reports {
        assert_eq!(report.fact("group"), report.fact("pid"));
        assert_ne!(report.fact("group"), Some(server_group.clone()));
        assert_eq!(report.fact("parent"), Some(server.pid().to_string()));
    }
    assert_ne!(reports[0].fact("group"), reports[1].fact("group"));
}

#[test]
fn a_script_inherits_three_descriptors_whatever_else_is_open_c128() {
    let server = Server::new()
        .fixture("env")
        .script("cgi-bin/waits", WAITS)
        .fixture("trapterm")
        .file("page.txt", "page\n")
        .start();
    // In flight: a script that answers, one that reads, one that is silent, an
    // idle connection.
    let mut streaming = server.connect();
    streaming.send(server.wire(b"GET /cgi-bin/trapterm HTTP/1.1\nHost: {host}"));
    streaming.head().expect("it answers");
    let mut uploading = server.connect();
    uploading.send(
        server.wire(b"POST /cgi-bin/waits HTTP/1.1\nHost: {host}\nContent-Length: 1000000\n\npart"),
    );
    uploading.head().expect("it answers");
    let mut spooling = server.connect();
    spooling.send(server.wire(
        b"POST /cgi-bin/waits HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked\n\n5\r\nhello\r\n",
    ));
    let mut idle = server.connect();
    idle.send(server.wire(b"GET /page.txt HTTP/1.1\nHost: {host}"));
    assert_eq!(idle.response().text(), "page\n");
    for (method, body) in [("GET", &b""[..]), ("POST", b"body")] {
        let response = server.request(method, "/cgi-bin/env", &[], body);
        let report = Report::of(&response);
        assert_eq!(report.descriptors(), [0, 1, 2]);
        for fd in ["fd1", "fd2"] {
            let target = report.fact(fd).unwrap_or_default();
            assert!(target.starts_with("pipe:"), "{fd} is {target}");
        }
    }
}

#[test]
fn descriptors_that_the_server_was_given_stop_there_c128() {
    let server = Server::new()
        .fixture("env")
        .under(["sh", "-c", "exec 7< /etc/passwd 9> /dev/null \"$@\"", "sh"])
        .start();
    assert_eq!(server.report("/cgi-bin/env").descriptors(), [0, 1, 2]);
}

#[test]
fn a_script_that_reads_to_the_end_is_not_held_by_another_c128() {
    let server = Server::new()
        .fixture("echo")
        .script("cgi-bin/waits", WAITS)
        .start();
    // Started while the pipes of the other are open.
    let mut first = server.connect();
    first.send(server.wire(b"POST /cgi-bin/echo HTTP/1.1\nHost: {host}\nContent-Length: 70000"));
    first.send(vec![b'x'; 69_999]);
    assert!(eventually(|| server.scripts().len() == 1));
    let mut second = server.connect();
    second.send(server.wire(b"GET /cgi-bin/waits HTTP/1.1\nHost: {host}"));
    second.head().expect("it answers");
    first.send("x");
    assert_eq!(first.response().body.len(), 70_000);
    fs::write(server.root().join("go"), "").unwrap();
}

#[test]
fn signals_are_at_their_defaults_c129() {
    for under in [
        &[][..],
        &["nohup"],
        &[
            "env",
            "--ignore-signal=PIPE,XFSZ,INT,USR1",
            "--block-signal=USR2,CHLD",
        ],
    ] {
        let server = Server::new().fixture("env").under(under).start();
        let report = server.report("/cgi-bin/env");
        for set in ["SigIgn", "SigBlk"] {
            let bits = report.fact(set).unwrap_or_default();
            assert!(
                !bits.is_empty() && bits.bytes().all(|digit| digit == b'0'),
                "{set} is {bits} under {under:?}"
            );
        }
    }
}

#[test]
fn a_pipe_that_breaks_ends_its_writer_c129() {
    let server = Server::new()
        .script(
            "cgi-bin/yes",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n(yes; echo \"yes ended with $?\" >&2) | head -n 1\n",
        )
        .start();
    assert_eq!(server.get("/cgi-bin/yes").text(), "y\n");
    // 128 + SIGPIPE; an ignored one would give 1 and a message.
    server.wait_for_log("yes ended with 141");
}

#[test]
fn umask_and_limits_are_those_the_server_was_started_with_c130() {
    let server = Server::new()
        .fixture("env")
        .script(
            "cgi-bin/limits",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n%s %s %s %s' \"$(ulimit -S -n)\" \"$(ulimit -H -n)\" \"$(ulimit -S -s)\" \"$(ulimit -c)\"\n",
        )
        .under([
            "sh",
            "-c",
            "umask 027; ulimit -S -n 256; ulimit -H -n 1024; ulimit -S -s 4096; ulimit -c 0; exec \"$@\"",
            "sh",
        ])
        .start();
    assert_eq!(
        server.report("/cgi-bin/env").fact("umask").as_deref(),
        Some("0027")
    );
    assert_eq!(server.get("/cgi-bin/limits").text(), "256 1024 4096 0");
}

#[test]
fn nobody_else_waits_for_a_script_that_is_slow_to_start() {
    if !needs("python3") || tiny_http_cannot("serve two connections with one thread") {
        return;
    }
    // One core is one thread for all connections.
    let server = Server::new()
        .tree("site")
        .script(
            "cgi-bin/slow",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nran'",
        )
        .under(["taskset", "-c", &first_core()])
        .start();
    let mut holder = Command::new("python3")
        .arg(fixtures("programs").join("hold_exec.py"))
        .arg(server.root().join("cgi-bin/slow"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let mut line = || lines.next().and_then(Result::ok).unwrap_or_default();
    let first = line();
    if first != "ready" {
        holder.wait().unwrap();
        return skip(&format!("no exec can be held here: {first}"));
    }
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/slow HTTP/1.1\nHost: {host}"));
    assert_eq!(line(), "held");
    assert_eq!(server.get("/hello.txt").text(), "hello\n");
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(client.response().text(), "ran");
    holder.wait().unwrap();
}

#[test]
fn a_script_has_the_scheduling_that_the_server_was_started_with() {
    // Field 41 of proc(5) is the policy, field 19 the nice value.
    const SHOW: [&str; 5] = ["cut", "-d", " ", "-f", "19,41"];
    let script = format!(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec {} /proc/self/stat",
        SHOW.map(|word| format!("'{word}'")).join(" ")
    );
    let mut seen = Vec::new();
    for under in [
        &["env"][..],
        &["chrt", "--batch", "0"],
        &["chrt", "--idle", "0"],
        &["nice", "-n", "1"],
    ] {
        let alone = Command::new(under[0])
            .args(&under[1..])
            .args(SHOW)
            .arg("/proc/self/stat")
            .output()
            .unwrap();
        let server = Server::new()
            .script("cgi-bin/x", &script)
            .under(under)
            .start();
        let text = server.get("/cgi-bin/x").text().clone();
        assert_eq!(
            text.as_bytes(),
            alone.stdout,
            "{under:?}: as without the server"
        );
        seen.push(text);
    }
    assert_ne!(seen[0], seen[1], "{seen:?}");
}
