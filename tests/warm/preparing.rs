//! Prepared interpreters, seen from the server: which scripts get one, its
//! replacement and its end, and what happens when it says what can't be. That no
//! script can tell is for the corpus.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
};

use crate::support::{Process, Server, Setup, eventually, needs, skip};

/// Where an interpreter has its control socket.
const CONTROL_FD: i32 = 9;

/// Says how it was run, and counts its runs.
const PYTHON: &str = "#!/usr/bin/python3\nimport os\n\
     with open('../runs', 'a') as file: file.write('x')\n\
     print('Content-Type: text/plain\\n')\nprint(os.environ['QUERY_STRING'])\n";
const PERL: &str =
    "#!/usr/bin/perl\nuse POSIX ();\nprint \"Content-Type: text/plain\\n\\nx\\n\";\n";

#[test]
fn the_first_run_and_the_one_that_prepares_are_by_exec() {
    let Some(server) = with(|setup| setup.script("cgi-bin/x.py", PYTHON)) else {
        return;
    };
    assert_eq!(run(&server, "x.py"), "plain");
    assert!(zygotes(&server).is_empty(), "after one run");
    assert_eq!(run(&server, "x.py"), "plain");
    until_warm(&server, "x.py");
    server.wait_for_log("serve-here: warm: /usr/bin/python3 (python 3.");
    // The access log says so too.
    server.wait_for_log("\"warm\":false");
    server.wait_for_log("\"warm\":true");
    let field = server.get("/").header("X-Serve-Here-Run");
    assert_eq!(field, None, "no script");
}

#[test]
fn the_extended_form_of_the_log_says_how_a_script_was_run() {
    if !needs("python3") {
        return;
    }
    let server = Server::new()
        .args(["-v", "--log", "combined-extended"])
        .script("cgi-bin/x.py", PYTHON)
        .file("a.txt", "a")
        .start();
    until_warm(&server, "x.py");
    server.get("/a.txt");
    for (request, how) in [
        ("/cgi-bin/x.py", "plain"),
        ("/cgi-bin/x.py", "warm"),
        ("/a.txt", "-"),
    ] {
        let is_it = |line: &str| {
            let words: Vec<&str> = line.rsplit(' ').take(2).collect();
            line.contains(&format!("\"GET {request} HTTP/1.1\" 200 "))
                && words[0] == how
                && words[1].parse::<f64>().is_ok_and(|seconds| seconds >= 0.0)
        };
        // A line comes after its answer.
        let found = eventually(|| server.log().lines().any(is_it));
        assert!(found, "{request} {how}: {}", server.log());
    }
}

#[test]
fn without_verbose_no_field_says_how_a_script_was_run() {
    let server = Server::new().script("cgi-bin/x.py", PYTHON).start();
    let response = server.get("/cgi-bin/x.py");
    assert_eq!(response.header("X-Serve-Here-Run"), None);
}

#[test]
fn a_script_that_does_not_compile_stays_with_exec_until_it_does() {
    let Some(server) = with(|setup| setup.script("cgi-bin/x.py", PYTHON)) else {
        return;
    };
    until_warm(&server, "x.py");
    let file = server.root().join("cgi-bin/x.py");
    fs::write(&file, "#!/usr/bin/python3\nprint('\n").unwrap();
    for _ in 0..3 {
        assert_eq!(server.get("/cgi-bin/x.py").status, 500);
    }
    assert!(!server.log().contains("\"status\":500,\"warm\":true"));
    fs::write(&file, PYTHON).unwrap();
    until_warm(&server, "x.py");
}

#[test]
fn scripts_that_are_excepted_stay_with_exec() {
    let excepted = ["/cgi-bin/a/*", "b?.py"].map(|pattern| format!("--no-warm={pattern}"));
    let Some(server) = with(|setup| {
        setup
            .args(excepted)
            .script("cgi-bin/a/x.py", PYTHON.replace("../runs", "../../runs"))
            .script("cgi-bin/b1.py", PYTHON)
            .script("cgi-bin/b.py", PYTHON)
    }) else {
        return;
    };
    until_warm(&server, "b.py");
    for script in ["a/x.py", "b1.py"] {
        for _ in 0..3 {
            assert_eq!(run(&server, script), "plain", "{script}");
        }
    }
}

#[test]
fn where_it_is_switched_off_nothing_is_prepared() {
    for args in [
        &["--no-warm"][..],
        &["--warm-max=0"],
        &["--cgi-env=LD_PRELOAD="],
    ] {
        let Some(server) = with(|setup| setup.args(args).script("cgi-bin/x.py", PYTHON)) else {
            return;
        };
        for _ in 0..4 {
            assert_eq!(run(&server, "x.py"), "plain", "{args:?}");
        }
        assert!(server.scripts().is_empty() && server.temporary_files().is_empty());
    }
}

#[test]
fn without_a_place_for_its_files_scripts_run_plainly_and_the_log_says_why() {
    let Some(server) = with(|setup| {
        let nowhere = setup.root().join("nowhere");
        setup.env("TMPDIR", nowhere).script("cgi-bin/x.py", PYTHON)
    }) else {
        return;
    };
    let said = |text: &str| server.log().contains(text);
    let tried = eventually(|| {
        assert_eq!(run(&server, "x.py"), "plain");
        said("for a minute: no folder can be made in ") && said("/nowhere: No such file")
    });
    assert!(tried, "{}", server.log());
}

#[test]
fn at_most_so_many_interpreters_wait() {
    let names: Vec<String> = (0..4).map(|number| format!("x{number}.pl")).collect();
    let Some(server) = with(|setup| {
        let setup = setup.args(["--warm-max", "2"]);
        let name = |name: &String| format!("cgi-bin/{name}");
        names
            .iter()
            .fold(setup, |setup, script| setup.script(name(script), PERL))
    }) else {
        return;
    };
    until_warm(&server, &names[0]);
    until_warm(&server, &names[1]);
    // One that is asked for much more takes the place of another.
    until_warm(&server, &names[2]);
    assert!(eventually(|| zygotes(&server).len() == 2));
}

#[test]
fn a_worn_interpreter_is_replaced_while_requests_go_on() {
    let Some(server) = with(|setup| {
        setup
            .args(["--warm-requests", "3"])
            .script("cgi-bin/x.py", PYTHON)
    }) else {
        return;
    };
    until_warm(&server, "x.py");
    let first = zygotes(&server);
    let replaced = eventually(|| {
        run(&server, "x.py");
        let now = zygotes(&server);
        now.len() == 1 && now != first
    });
    assert!(replaced, "{first:?} is still there");
    until_warm(&server, "x.py");
}

#[test]
fn an_idle_interpreter_is_ended() {
    let Some(server) = with(|setup| {
        setup
            .args(["--warm-idle", "0.1"])
            .script("cgi-bin/x.py", PYTHON)
    }) else {
        return;
    };
    until_warm(&server, "x.py");
    assert!(eventually(|| zygotes(&server).is_empty()), "it still waits");
    until_warm(&server, "x.py");
}

#[test]
fn interpreters_that_take_too_much_memory_are_ended() {
    let Some(server) = with(|setup| {
        setup
            .args(["--warm-memory", "1M"])
            .script("cgi-bin/x.py", PYTHON)
    }) else {
        return;
    };
    until_warm(&server, "x.py");
    assert!(eventually(|| zygotes(&server).is_empty()), "it still waits");
    assert_eq!(server.get("/cgi-bin/x.py").status, 200);
}

#[test]
fn what_is_no_answer_ends_the_interpreter_and_no_request() {
    for garbage in [
        &b"hello\0"[..],
        b"no end",
        b"\xff\xfe\0",
        b"ready python 3.99\0",
        b"ran 999999 4711\0",
        b"ran 999999 0\0",
        b"no 999999 no such request\0",
    ] {
        let Some(server) = with(|setup| setup.script("cgi-bin/x.py", PYTHON)) else {
            return;
        };
        until_warm(&server, "x.py");
        let before = zygotes(&server);
        say(before[0], garbage);
        let shown = garbage.escape_ascii();
        assert!(
            eventually(|| !Process::runs(before[0])),
            "{shown}: it still waits"
        );
        counted_once(&server, 3);
        until_warm(&server, "x.py");
    }
}

#[test]
fn an_answer_that_names_a_stranger_does_it_no_harm() {
    let Some(server) = with(|setup| setup.script("cgi-bin/x.py", PYTHON)) else {
        return;
    };
    until_warm(&server, "x.py");
    let zygote = zygotes(&server)[0];
    let mut stranger = Stranger::new();
    signal(zygote, Signal::STOP);
    let before = runs(&server);
    let status = thread::scope(|scope| {
        let request = scope.spawn(|| server.get("/cgi-bin/x.py").status);
        until_asked(zygote);
        // The second request, as one was warm.
        let number = 2;
        say(
            zygote,
            format!("ran {number} {}\0", stranger.0.id()).as_bytes(),
        );
        request.join().expect("it is answered")
    });
    // 200 if the time for the answer was over before.
    assert!(matches!(status, 200 | 503), "{status}");
    assert!(stranger.runs(), "the stranger was ended");
    assert!(runs(&server) <= before + 1, "it was run twice");
    counted_once(&server, 3);
}

#[test]
fn a_client_that_leaves_before_the_answer_leaves_nothing_behind() {
    let Some(server) = with(|setup| {
        setup
            .args(["--cgi-jobs", "1"])
            .script("cgi-bin/x.py", PYTHON)
    }) else {
        return;
    };
    until_warm(&server, "x.py");
    let zygote = zygotes(&server)[0];
    let before = runs(&server);
    signal(zygote, Signal::STOP);
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/x.py HTTP/1.1\nHost: {host}"));
    until_asked(zygote);
    client.reset();
    assert!(eventually(|| !Process::runs(zygote)), "it still stands");
    // Its place is free again.
    counted_once(&server, 2);
    assert!(runs(&server) <= before + 3, "it was run twice");
}

#[test]
fn a_script_that_waits_for_its_interpreter_ends_by_itself_if_it_may() {
    let Some(server) = with(|setup| {
        setup.arg("--cgi-finish").script(
            "cgi-bin/x.py",
            "#!/usr/bin/python3\nimport time\nprint('Content-Type: text/plain\\n')\n\
             time.sleep(0.2)\nwith open('../runs', 'a') as file: file.write('x')\n",
        )
    }) else {
        return;
    };
    until_warm(&server, "x.py");
    let before = runs(&server);
    let zygote = zygotes(&server)[0];
    signal(zygote, Signal::STOP);
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/x.py HTTP/1.1\nHost: {host}"));
    until_asked(zygote);
    client.reset();
    assert!(eventually(|| runs(&server) == before + 1), "it was ended");
}

#[test]
fn as_the_first_process_of_a_container_it_keeps_warm_scripts_apart_from_orphans() {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let allowed = needs("unshare")
        && Command::new("unshare")
            .args(&unshare[1..])
            .arg("true")
            .status()
            .is_ok_and(|status| status.success());
    if !allowed {
        skip("as process 1: needs the right to make a PID namespace");
        return;
    }
    let Some(server) = with(|setup| {
        setup.under(unshare).script(
            "cgi-bin/x.py",
            "#!/usr/bin/python3\nimport os, subprocess, sys\nprint('Content-Type: text/plain\\n')\n\
             subprocess.Popen(['/bin/sh', '-c', '(sleep 0.1 & exec sleep 0.2) &'],\n\
             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n\
             sys.stdout.flush()\nos._exit(3)\n",
        )
    }) else {
        return;
    };
    let mut asked = 0;
    let mut ask = || {
        asked += 1;
        run(&server, "x.py")
    };
    assert!(eventually(|| ask() == "warm"), "it does not get warm");
    for _ in 0..20 {
        ask();
    }
    let ended = || {
        server
            .log()
            .matches("cgi 'cgi-bin/x.py': exit status 3")
            .count()
    };
    assert!(
        eventually(|| ended() == asked),
        "{} of {asked} ends",
        ended()
    );
    // The server, and the interpreter that waits.
    let settled = eventually(|| server.children().len() == 2);
    let left: Vec<String> = server.children().iter().map(Process::to_string).collect();
    assert!(settled, "{left:?}");
}

/// A server that says how scripts are run; none where a language is missing.
pub(crate) fn with(lay: impl FnOnce(Setup) -> Setup) -> Option<Server> {
    if !(needs("python3") && needs("perl")) {
        return None;
    }
    let setup = Server::new().args(["-v", "--log", "json"]);
    Some(lay(setup).start())
}

/// How it was run: `warm` or `plain`.
pub(crate) fn run(server: &Server, script: &str) -> String {
    let response = server.get(format!("/cgi-bin/{script}"));
    assert_eq!(response.status, 200, "{response}");
    response.header("X-Serve-Here-Run").expect("-v is given")
}

pub(crate) fn until_warm(server: &Server, script: &str) {
    assert!(
        eventually(|| run(server, script) == "warm"),
        "{script} does not get warm"
    );
}

/// How often the script has been run.
fn runs(server: &Server) -> usize {
    fs::read(server.root().join("runs")).map_or(0, |runs| runs.len())
}

fn counted_once(server: &Server, requests: usize) {
    for _ in 0..requests {
        let before = runs(server);
        run(server, "x.py");
        assert_eq!(runs(server), before + 1, "not run once");
    }
}

/// The server's children that wait to become scripts.
pub(crate) fn zygotes(server: &Server) -> Vec<u32> {
    let mut found: Vec<u32> = server
        .scripts()
        .iter()
        .filter(|process| process.is_prepared())
        .map(|process| process.pid)
        .collect();
    found.sort_unstable();
    found
}

/// Sends the server something in an interpreter's name.
fn say(zygote: u32, bytes: &[u8]) {
    let socket = control(zygote);
    send(&socket, bytes, SendFlags::NOSIGNAL).expect("the server listens");
}

/// Until a request is on its way to an interpreter that stands still.
fn until_asked(zygote: u32) {
    let asked = eventually(|| {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !Process::runs(zygote) || recv(control(zygote), &mut [0_u8; 16][..], flags).is_ok()
    });
    assert!(asked, "no request has come");
}

/// A copy of an interpreter's control socket. To be closed at once: as long as
/// there is one its end can't be seen.
fn control(zygote: u32) -> OwnedFd {
    let process = pidfd_open(pid(zygote), PidfdFlags::empty()).expect("it waits");
    pidfd_getfd(&process, CONTROL_FD, PidfdGetfdFlags::empty()).expect("it has one")
}

pub(crate) fn signal(process: u32, signal: Signal) {
    // It may have gone in the meantime.
    let _ = kill_process(pid(process), signal);
}

fn pid(number: u32) -> Pid {
    let number = i32::try_from(number).ok().and_then(Pid::from_raw);
    number.expect("a process has a positive number")
}

/// A process that has nothing to do with the server.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").spawn().expect("coreutils"))
    }

    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
