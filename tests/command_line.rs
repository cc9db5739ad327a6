//! The command itself: what it says, what it refuses and how it ends.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::support::{Client, DEADLINE, Process, Rows, Server, eventually, skip};

/// The program in a folder made for the test, with nothing in its environment.
fn serve_here<A: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_serve-here"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("there is a folder for temporary files")
}

/// A run that is expected to end by itself.
fn ended(mut command: Command) -> Output {
    let mut child = command.spawn().expect("the program can be run");
    let ended = eventually(|| child.try_wait().expect("it is our child").is_some());
    if !ended {
        child.kill().expect("it is our child");
    }
    let output = child.wait_with_output().expect("it has ended");
    assert!(ended, "{command:?} goes on: {output:?}");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run that serves; ended when dropped.
struct Run {
    child: Child,
    lines: Receiver<String>,
}

impl Run {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program can be run");
        let lines = lines_of(child.stdout.take().expect("it is a pipe"));
        Self { child, lines }
    }

    /// The next line on standard output.
    fn line(&mut self) -> String {
        self.lines.recv_timeout(DEADLINE).unwrap_or_else(|_| {
            // Only a program that has ended has said all.
            let _ = self.child.kill();
            panic!("it does not listen: {}", self.standard_error())
        })
    }

    /// Where the next line says that it listens.
    fn address(&mut self) -> SocketAddr {
        let line = self.line();
        let address = line
            .split_once("(http://")
            .and_then(|(_, rest)| rest.split_once("/) ..."));
        let address = address.and_then(|(address, _)| address.parse().ok());
        let address: SocketAddr = address.unwrap_or_else(|| panic!("no address in `{line}`"));
        let words = format!(
            "Serving HTTP on {} port {} (http://{address}/) ...",
            address.ip(),
            address.port()
        );
        assert_eq!(line, words);
        address
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process has a number"), signal).expect("it runs");
    }

    /// All of standard error, to the end.
    fn standard_error(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text).expect("it says text");
        }
        text
    }

    /// The exit code, and what standard error said.
    fn end(mut self) -> (Option<i32>, String) {
        let ended = eventually(|| self.child.try_wait().expect("it is our child").is_some());
        assert!(ended, "it does not end");
        let status = self.child.wait().expect("it has ended");
        (status.code(), self.standard_error())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody waits for the later lines.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// What GET / says.
fn get(address: SocketAddr) -> String {
    let mut client = Client::connect(address);
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    ));
    client.response().text()
}

/// A folder whose index tells which one it is.
fn named(folder: &TempDir, name: &str) {
    let path = folder.path().join(name);
    fs::create_dir_all(&path).expect("the test's own folder");
    fs::write(path.join("index.html"), name).expect("the test's own folder");
}

#[test]
fn help_is_short_with_h_and_whole_with_help() {
    let folder = folder();
    let [short, long] = ["-h", "--help"].map(|flag| {
        let output = ended(serve_here(folder.path(), [flag]));
        assert_eq!(output.status.code(), Some(0), "{flag}");
        assert_eq!(text(&output.stderr), "");
        text(&output.stdout)
    });
    assert!(short.lines().count() < long.lines().count());
    for help in [&short, &long] {
        for part in [
            "Usage: serve-here",
            "Serving:",
            "Scripts:",
            "Limits:",
            "Logging:",
            "--bind",
            "--directory",
            "--public",
            "--cgi-timeout",
            "--cgi-jobs",
            "--follow-links",
            "--hidden",
            "default 8000",
        ] {
            assert!(help.contains(part), "no `{part}` in:\n{help}");
        }
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?}");
    }
    assert!(long.contains("Examples:") && long.contains("Exit codes: 0"));

    let version = ended(serve_here(folder.path(), ["--version"]));
    assert_eq!(version.status.code(), Some(0));
    let expected = format!("serve-here {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&version.stdout), expected);
}

#[test]
fn what_it_cannot_do_it_says_in_one_line_with_a_way_out() {
    let folder = folder();
    named(&folder, "site");
    fs::write(folder.path().join("file"), "").expect("the test's own folder");
    let mut rows = Rows::new();
    // Arguments, exit code, what the first line and the hint say of it.
    for (args, code, message, hint) in [
        (&["--nonsense"][..], 2, "--nonsense", "--help"),
        (&["--bindd", "x"], 2, "--bindd", "--bind"),
        (&["8000", "8001"], 2, "two ports", "once"),
        (&["8000", "-p", "8001"], 2, "two ports", "once"),
        (&["site", "other"], 2, "two folders", "once"),
        (&["site", "-d", "other"], 2, "two folders", "once"),
        (&["65536"], 2, "`65536`", "./65536"),
        (&["-p", "x"], 2, "`x`", "65535"),
        (&["--protocol", "HTTP/2"], 2, "HTTP/2", "HTTP/1.1"),
        (&["-p", "HTTP/9.9"], 2, "HTTP/9.9", "HTTP/1.1"),
        (&["--public", "-b", "::1"], 2, "--public", "--help"),
        (&["--cgi-timeout", "-1"], 2, "'-1'", "--help"),
        (&["--cgi-timeout", "soon"], 2, "seconds", ""),
        (&["--cgi-jobs", "0"], 2, "--cgi-jobs", ""),
        (&["--max-body", "lots"], 2, "bytes", ""),
        (&["--log", "pretty"], 2, "pretty", "combined-extended, json"),
        (&["--engine", "x\ny"], 2, r"'x\ny'", "http1"),
        (&["--no-cgi", "--cgi-dir", "x"], 2, "--no-cgi", "--help"),
        (&["--no-cgi", "--cgi-ext", "pl"], 2, "--no-cgi", "--help"),
        (&["--server-name", "a b"], 2, "`a b`", "www."),
        (&["--server-name", "host:80"], 2, "`host:80`", "www."),
        (&["--cgi-dir", "../out"], 2, "../out", ""),
        (&["--bind"], 2, "--bind", ""),
        (&["missing"], 1, "missing", "mkdir"),
        (&["0", "missing/deeper"], 1, "missing/deeper", "mkdir"),
        (&["-d", "missing"], 1, "missing", "mkdir"),
        (&["a b"], 1, "cannot serve a b:", "mkdir -p 'a b'"),
        (
            &["a\nb\x1b[2J"],
            1,
            r"a\nb\u{1b}[2J",
            r"mkdir -p $'a\nb\x1b[2J'",
        ),
        (&["", "0"], 2, "empty", "variable"),
        (&["-b", "", "0"], 1, "empty", "-b"),
        (&["file"], 1, "file", "folder that holds it"),
        (&["-b", "192.0.2.1"], 1, "192.0.2.1", "--public"),
        (&["-b", "no.such.host.invalid"], 1, "no such host", "-b"),
        (
            &["0", "--user", "no-such-user"],
            1,
            "no-such-user",
            "--user",
        ),
    ] {
        let output = ended(serve_here(folder.path(), args));
        rows.check(
            &format!("{args:?}"),
            refusal(&output, code, message, hint),
            || format!("{output:?}"),
        );
    }
    rows.done();
}

/// One line that says what, one that says what to do, nothing else.
fn refusal(output: &Output, code: i32, message: &str, hint: &str) -> bool {
    let stderr = text(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let [first, second] = lines[..] else {
        return false;
    };
    output.status.code() == Some(code)
        && output.stdout.is_empty()
        && first.starts_with("serve-here: ")
        && first.contains(message)
        && !first.ends_with('.')
        && second.starts_with("hint: ")
        && second.contains(hint)
}

#[test]
fn a_busy_port_is_named_with_another_to_try() {
    let folder = folder();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let output = ended(serve_here(folder.path(), [port.to_string()]));
    let message = format!("cannot bind 127.0.0.1:{port}: address already in use");
    assert!(refusal(&output, 1, &message, "port 0"), "{output:?}");
    // Another address of the same port is another matter.
    let mut run = Run::start(serve_here(
        folder.path(),
        ["-b", "127.0.0.2", &port.to_string()],
    ));
    assert_eq!(run.address().port(), port);
}

/// The command as somebody who is not root, if need be.
fn as_nobody(folder: &TempDir, args: &[&str]) -> Command {
    let mut command = serve_here(folder.path(), args);
    if !geteuid().is_root() {
        return command;
    }
    // The program may lie where only root gets to.
    let copy = folder.path().join("serve-here");
    fs::copy(env!("CARGO_BIN_EXE_serve-here"), &copy).expect("there is room");
    for path in [folder.path(), &copy] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    }
    let same: Vec<_> = command.get_args().map(OsStr::to_owned).collect();
    command = Command::new(copy);
    command
        .args(same)
        .current_dir(folder.path())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .gid(65534)
        .uid(65534);
    command
}

#[test]
fn a_forbidden_port_or_folder_is_named_with_a_way_out() {
    let folder = folder();
    fs::create_dir(folder.path().join("closed")).expect("it is empty");
    let closed = PermissionsExt::from_mode(0o000);
    fs::set_permissions(folder.path().join("closed"), closed).expect("it is ours");
    let output = ended(as_nobody(&folder, &["0", "closed"]));
    let message = "cannot serve closed: permission denied";
    assert!(refusal(&output, 1, message, "may read"), "{output:?}");

    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|first| first.trim().parse().ok());
    if first.is_some_and(|first: u16| first <= 80) {
        skip("needs ports that are root's alone");
        return;
    }
    let output = ended(as_nobody(&folder, &["80"]));
    let message = "cannot bind 127.0.0.1:80: permission denied";
    assert!(refusal(&output, 1, message, "8080"), "{output:?}");
}

#[test]
fn port_and_folder_come_in_either_order_and_by_any_name() {
    let folder = folder();
    for name in ["site", "8080", "8080.d", ".", "-x"] {
        named(&folder, name);
    }
    let mut rows = Rows::new();
    for (args, variable, expected) in [
        (&["0"][..], None, "."),
        (&["0", "site"], None, "site"),
        (&["site", "0"], None, "site"),
        (&["./8080", "0"], None, "8080"),
        (&["0", "8080.d"], None, "8080.d"),
        (&["site", "-p", "0"], None, "site"),
        (&["site", "--port", "0"], None, "site"),
        (&["-d", "site", "0"], None, "site"),
        (&["--directory=site", "0"], None, "site"),
        (&["-d", "8080", "0"], None, "8080"),
        (&["0", "--", "-x"], None, "-x"),
        (&["site"], Some("0"), "site"),
        (&[], Some("0"), "."),
        // What is typed counts, not the environment.
        (&["0"], Some("nonsense"), "."),
    ] {
        let mut command = serve_here(folder.path(), args);
        command.envs(variable.map(|port| ("PORT", port)));
        let mut run = Run::start(command);
        let served = get(run.address());
        rows.check(
            &format!("{args:?} {variable:?}"),
            served == expected,
            || served,
        );
    }
    rows.done();

    let mut command = serve_here(folder.path(), ["site"]);
    command.env("PORT", "many");
    let output = ended(command);
    assert!(refusal(&output, 2, "PORT", "serve-here"), "{output:?}");
}

#[test]
fn what_people_type_for_pythons_server_means_the_same() {
    let folder = folder();
    named(&folder, "site");
    for args in [
        &["0", "-b", "127.0.0.1", "-d", "site"][..],
        &["--bind", "localhost", "--directory", "site", "0"],
        &["-p", "HTTP/1.1", "-d", "site", "0"],
        &["--protocol", "HTTP/1.1", "--cgi", "-d", "site", "0"],
    ] {
        let mut run = Run::start(serve_here(folder.path(), args));
        assert_eq!(get(run.address()), "site", "{args:?}");
    }
}

#[test]
fn protocol_1_0_is_one_request_a_connection() {
    let folder = folder();
    named(&folder, ".");
    for (args, again) in [
        (&["0"][..], true),
        (&["0", "--protocol", "HTTP/1.1"], true),
        (&["0", "-p", "HTTP/1.1"], true),
        (&["0", "--protocol", "HTTP/1.0"], false),
        (&["0", "-p", "http/1.0"], false),
    ] {
        let mut run = Run::start(serve_here(folder.path(), args));
        let address = run.address();
        let mut client = Client::connect(address);
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
        client.send(&request);
        let version = client.response().version.clone();
        if again {
            assert_eq!(version, "HTTP/1.1");
            assert_eq!(client.send(&request).response().status, 200, "{args:?}");
        } else {
            assert_eq!(version, "HTTP/1.0");
            assert!(client.is_closed(), "{args:?}");
        }
    }
}

fn has_ipv6() -> bool {
    let found = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !found {
        skip("needs IPv6 on loopback");
    }
    found
}

#[test]
fn each_address_has_its_line_and_they_share_a_port() {
    let folder = folder();
    named(&folder, ".");
    let mut addresses = vec!["127.0.0.1", "127.0.0.2"];
    if has_ipv6() {
        addresses.push("::1");
    }
    let args = addresses.iter().flat_map(|address| ["-b", address]);
    let mut run = Run::start(serve_here(folder.path(), args.chain(["0"])));
    let mut ports = Vec::new();
    for expected in &addresses {
        let address = run.address();
        assert_eq!(address.ip().to_string(), *expected);
        assert_eq!(get(address), ".");
        ports.push(address.port());
    }
    ports.dedup();
    assert_eq!(ports.len(), 1);

    // An address may bring a port of its own.
    let own = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let own = own.expect("a port is free").to_string();
    let mut run = Run::start(serve_here(folder.path(), ["-b", &own]));
    assert_eq!(run.address().to_string(), own);
}

#[test]
fn an_address_that_is_given_twice_is_bound_once() {
    let folder = folder();
    for args in [
        ["-b", "127.0.0.1", "-b", "127.0.0.1", "0"],
        ["-b", "0.0.0.0", "-b", "127.0.0.1", "0"],
    ] {
        let mut run = Run::start(serve_here(folder.path(), args));
        let address = run.address();
        assert_eq!(address.ip().to_string(), args[1]);
        run.signal(Signal::TERM);
        let more = run.lines.recv_timeout(DEADLINE);
        assert_eq!(more, Err(RecvTimeoutError::Disconnected));
    }
}

#[test]
fn by_default_only_this_machine_can_connect_and_it_is_said_how_to_share() {
    let folder = folder();
    let mut run = Run::start(serve_here(folder.path(), ["0"]));
    let address = run.address();
    assert_eq!(address.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let other = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), address.port());
    assert!(TcpStream::connect(other).is_err());
    run.signal(Signal::TERM);
    let (code, stderr) = run.end();
    assert_eq!(code, Some(0));
    assert!(stderr.contains("`--public`"), "{stderr}");
}

#[test]
fn public_listens_everywhere_and_names_the_addresses() {
    let folder = folder();
    named(&folder, ".");
    fs::create_dir(folder.path().join("cgi-bin")).expect("nothing is there");
    let mut run = Run::start(serve_here(folder.path(), ["--public", "0"]));
    let address = run.address();
    assert!(address.ip().is_unspecified());
    let at = |ip: IpAddr| SocketAddr::new(ip, address.port());
    assert_eq!(get(at(Ipv4Addr::LOCALHOST.into())), ".");
    assert_eq!(get(at(Ipv4Addr::new(127, 0, 0, 2).into())), ".");
    if has_ipv6() {
        assert_eq!(get(at(Ipv6Addr::LOCALHOST.into())), ".");
    }
    run.signal(Signal::TERM);
    let (code, stderr) = run.end();
    assert_eq!(code, Some(0));
    for interface in if_addrs::get_if_addrs().expect("there are interfaces") {
        let ip = interface.ip();
        if !ip.is_loopback() && ip.is_ipv4() {
            let url = format!("others reach it at http://{}/", at(ip));
            assert!(stderr.contains(&url), "no `{url}` in:\n{stderr}");
        }
    }
    // Root runs no script for strangers unless told to.
    let note = if geteuid().is_root() {
        "are refused"
    } else {
        "other machines can run these scripts"
    };
    assert!(stderr.contains(note), "{stderr}");
}

#[test]
fn quiet_says_where_it_listens_and_nothing_else() {
    let folder = folder();
    named(&folder, ".");
    let mut run = Run::start(serve_here(folder.path(), ["-q", "0"]));
    get(run.address());
    run.signal(Signal::TERM);
    assert_eq!(run.end(), (Some(0), String::new()));
}

#[test]
fn a_signal_ends_it_with_exit_code_0() {
    let folder = folder();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut run = Run::start(serve_here(folder.path(), ["0"]));
        // A connection that asks for nothing does not hold it up.
        let idle = Client::connect(run.address());
        run.signal(signal);
        let (code, stderr) = run.end();
        assert_eq!(code, Some(0), "{signal:?}: {stderr}");
        drop(idle);
    }
}

/// A script that says `begun` and waits for the file `go-on` beside it.
const WAITS: &str = "#!/bin/sh
printf 'Content-Type: text/plain\\n\\nbegun\\n'
while ! [ -e go-on ]; do sleep 0.02; done
echo done
";

#[test]
fn a_running_request_is_finished_before_the_end() {
    let mut server = Server::new().script("cgi-bin/waits", WAITS).start();
    let mut client = server.connect();
    client.send("GET /cgi-bin/waits HTTP/1.0\r\n\r\n");
    assert_eq!(client.head().expect("it runs").status, 200);
    assert_eq!(client.take(6).0, b"begun\n");
    server.signal(Signal::TERM);
    let refused = eventually(|| TcpStream::connect(server.address()).is_err());
    assert!(refused, "it takes more connections");
    fs::write(server.root().join("cgi-bin/go-on"), "").expect("it is the test's own");
    assert_eq!(client.rest(), b"done\n");
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn grace_and_a_second_signal_bound_the_wait_for_running_requests() {
    for (grace, twice) in [("0.1", false), ("1000", true)] {
        let mut server = Server::new()
            .script("cgi-bin/waits", WAITS)
            .args(["--grace", grace])
            .start();
        let mut client = server.connect();
        client.send("GET /cgi-bin/waits HTTP/1.0\r\n\r\n");
        assert_eq!(client.head().expect("it runs").status, 200);
        let scripts = server.children();
        assert!(!scripts.is_empty());
        server.signal(Signal::INT);
        if twice {
            let refused = eventually(|| TcpStream::connect(server.address()).is_err());
            assert!(refused, "it takes more connections");
            server.signal(Signal::INT);
        }
        assert_eq!(server.wait_exit().code(), Some(0));
        let gone = eventually(|| !scripts.iter().any(|script| Process::runs(script.pid)));
        assert!(gone, "a script has outlived the server");
    }
}

#[test]
fn a_reader_of_the_help_may_leave_early() {
    let (reader, writer) = io::pipe().expect("a descriptor is free");
    drop(reader);
    let folder = folder();
    let mut command = serve_here(folder.path(), ["--help"]);
    command.stdout(writer);
    let output = ended(command);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}
