//! What a script says on standard error and how it ends (RFC 3875 §6.1, §9):
//! C119 to C125.

use std::fs;

use rustix::process::geteuid;

use crate::support::{
    Client, Process, Response, Rows, Server, Setup, end, eventually, outward, skip,
    tiny_http_cannot,
};

/// What a script's lines on standard error were, in order.
fn lines_of<'a>(log: &'a str, script: &str) -> Vec<&'a str> {
    let start = format!("cgi '{script}'[");
    let lines = log.lines().filter_map(|line| line.strip_prefix(&*start));
    lines
        .map(|line| {
            let (pid, text) = line.split_once("]: ").expect("the pid, then the line");
            assert!(pid.parse::<u32>().is_ok(), "no pid: {pid}");
            text
        })
        .collect()
}

#[test]
fn a_flood_before_the_answer_blocks_nothing_and_is_logged_whole_c119() {
    let server = Server::new().fixture("errflood").start();
    let response = server.get("/cgi-bin/errflood");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.text(), "after the flood\n");
    let all = 307_200 / 100;
    let logged = || {
        let log = server.log();
        let lines = lines_of(&log, "cgi-bin/errflood");
        lines
            .iter()
            .filter(|line| **line == "e".repeat(100))
            .count()
    };
    assert!(eventually(|| logged() >= all), "{} lines", logged());
    assert_eq!(logged(), all);
}

#[test]
fn each_line_is_escaped_and_long_ones_are_split_c119() {
    let server = Server::new()
        .script(
            "cgi-bin/says",
            "#!/bin/sh\n{\nprintf 'plain\\n'\nprintf 'red \\033[31m bell \\007 nul \\000 cr \\r back \\\\ \\377\\n'\n\
             head -c 20000 /dev/zero | tr '\\0' l\nprintf '\\n\\nno end'\n} >&2\n\
             printf 'Content-Type: text/plain\\n\\nbody'\n",
        )
        .start();
    let response = server.get("/cgi-bin/says");
    assert_eq!(
        response.text(),
        "body",
        "standard error is not the client's"
    );
    let log = server.wait_for_log("no end");
    let lines = lines_of(&log, "cgi-bin/says");
    assert_eq!(lines[0], "plain");
    let controls = |text: &str| text.chars().any(char::is_control);
    assert!(!lines.iter().any(|line| controls(line)), "{lines:?}");
    assert!(
        lines[1].starts_with("red ") && lines[1].contains("[31m bell "),
        "{}",
        lines[1]
    );
    let longest: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("lll"))
        .collect();
    assert!(longest.len() > 1, "a line of 20000 bytes is not split");
    assert_eq!(longest.iter().map(|line| line.len()).sum::<usize>(), 20_000);
    assert!(lines.contains(&""), "an empty line is a line");
    assert_eq!(lines.last(), Some(&"no end"));
}

#[test]
fn lines_of_scripts_that_run_at_once_never_mix_c119() {
    let text = "0123456789".repeat(8);
    let server = Server::new()
        .script(
            "cgi-bin/chatter",
            format!(
                "#!/bin/sh\nwhile [ ! -e ../go ]; do sleep 0.05; done\nn=0\n\
                 while [ $n -lt 200 ]; do echo \"$QUERY_STRING {text}\" >&2; n=$((n + 1)); done\n\
                 printf 'Content-Type: text/plain\\n\\n%s' \"$$\"\n"
            ),
        )
        .args(["--cgi-jobs", "8"])
        .start();
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..8 {
        let mut client = server.connect();
        let request = format!("GET /cgi-bin/chatter?{n} HTTP/1.1\nHost: {{host}}");
        client.send(server.wire(request.as_bytes()));
        clients.push(client);
        assert!(
            eventually(|| server.scripts().len() > n),
            "script {n} does not start"
        );
    }
    fs::write(server.root().join("go"), "").unwrap();
    for (n, client) in clients.iter_mut().enumerate() {
        let pid = client.response().text();
        let line = format!("cgi 'cgi-bin/chatter'[{pid}]: {n} {text}");
        let count = || {
            server
                .log()
                .lines()
                .filter(|logged| **logged == line)
                .count()
        };
        assert!(
            eventually(|| count() == 200),
            "script {n}: {} lines",
            count()
        );
    }
}

#[test]
fn a_descendant_on_standard_error_delays_nothing_c119() {
    let server = Server::new()
        .script(
            "cgi-bin/leaves",
            "#!/bin/sh\nsleep 600 < /dev/null > /dev/null &\nprintf 'Content-Type: text/plain\\n\\n%s' $!\n",
        )
        .start();
    let response = server.get("/cgi-bin/leaves");
    assert!(response.complete, "{response}");
    let log = server.log();
    assert!(!log.contains("descendant"), "it was waited for: {log}");
    let left = response.text().parse().expect("its pid");
    assert!(Process::runs(left), "a normal end touches nobody");
    end(left);
}

#[test]
fn a_script_can_not_truncate_the_log_c120() {
    let server = Server::new()
        .fixture("env")
        .script(
            "cgi-bin/truncates",
            "#!/bin/sh\n: > /dev/stderr\necho over >&2\nprintf 'Content-Type: text/plain\\n\\n'\n",
        )
        .start();
    let before = server.log();
    server.get("/cgi-bin/truncates");
    let log = server.wait_for_log("]: over");
    assert!(log.starts_with(&before));
    let report = server.report("/cgi-bin/env");
    let stderr = report.fact("fd2").expect("it is open");
    assert!(stderr.starts_with("pipe:"), "{stderr}");
    let own = fs::read_link(format!("/proc/{}/fd/2", server.pid())).unwrap();
    assert_ne!(own.to_str(), Some(&*stderr), "it is the server's own");
}

#[test]
fn an_exit_status_changes_no_complete_answer_c121() {
    let server = Server::new().fixture("exit1").start();
    let response = server.get("/cgi-bin/exit1");
    assert_eq!(response.status, 200, "{response}");
    assert_eq!(response.text(), "good answer\n");
    assert!(response.complete);
    server.wait_for_log("cgi 'cgi-bin/exit1': exit status 1\n");
}

#[test]
fn death_in_mid_body_shows_to_every_client_c122_c123() {
    let server = Server::new().fixture("crashmid").start();
    for version in ["HTTP/1.1\nHost: {host}", "HTTP/1.0"] {
        let mut client = server.connect();
        client.send(server.wire(format!("GET /cgi-bin/crashmid {version}").as_bytes()));
        let response = client.response();
        assert_eq!(response.status, 200, "{response}");
        assert_eq!(response.text(), "one line\n");
        assert!(!response.complete, "{version}: it looks whole");
    }
    server.wait_for_log("cgi 'cgi-bin/crashmid': ended by signal 9 (SIGKILL)");
}

#[test]
fn death_shows_also_where_the_parent_ignored_sigchld_c122_c124() {
    let server = Server::new()
        .fixture("crashmid")
        .fixture("crashpre")
        .under(["env", "--ignore-signal=CHLD"])
        .start();
    let response = server.get("/cgi-bin/crashmid");
    assert_eq!(response.text(), "one line\n");
    assert!(!response.complete, "it looks whole");
    assert_eq!(server.get("/cgi-bin/crashpre").status, 500);
    for script in ["crashmid", "crashpre"] {
        server.wait_for_log(&format!("cgi 'cgi-bin/{script}': ended by signal 9"));
    }
}

#[test]
fn death_after_the_announced_length_is_no_truncation_c122() {
    let server = Server::new()
        .script(
            "cgi-bin/whole",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\nContent-Length: 5\\n\\nwhole'\nkill -KILL $$\n",
        )
        .start();
    let mut client = server.connect();
    for _ in 0..2 {
        client.send(server.wire(b"GET /cgi-bin/whole HTTP/1.1\nHost: {host}"));
        let response = client.response();
        assert_eq!(response.text(), "whole");
        assert!(response.complete);
    }
}

#[test]
fn a_plain_exit_status_is_no_truncation_c123() {
    let server = Server::new().fixture("exit1").start();
    let old = server
        .ask("GET /cgi-bin/exit1 HTTP/1.0")
        .expect("it is answered");
    assert!(old.complete, "{old}");
}

#[test]
fn a_script_may_close_its_output_and_work_on_c123() {
    let server = Server::new()
        .script(
            "cgi-bin/works",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nanswer'\nexec 1>&-\n\
             while [ ! -e ../go ]; do sleep 0.05; done\necho worked on >&2\n",
        )
        .start();
    let response = server.get("/cgi-bin/works");
    assert_eq!(response.text(), "answer");
    assert!(response.complete);
    fs::write(server.root().join("go"), "").unwrap();
    server.wait_for_log("]: worked on");
}

#[test]
fn the_end_by_a_client_that_left_is_no_crash_c123() {
    let server = Server::new()
        .script(
            "cgi-bin/endless",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec yes\n",
        )
        .start();
    let before = server.fds_at_rest();
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/endless HTTP/1.1\nHost: {host}"));
    client.head().expect("it answers");
    client.reset();
    server.settles_to(before);
    let log = server.wait_for_log("\"GET /cgi-bin/endless");
    assert!(!log.contains("cgi 'cgi-bin/endless'"), "{log}");
}

#[test]
fn the_end_before_the_header_is_told_in_full_c124() {
    let early = |name: &str, end: &str| {
        (
            format!("cgi-bin/{name}"),
            format!("#!/bin/sh\necho last words of {name} >&2\n{end}\n"),
        )
    };
    let scripts = [
        early("status", "exit 3"),
        early("killed", "kill -KILL $$"),
        early(
            "half",
            "printf 'Content-Type: text/plain\\nX'; kill -SEGV $$",
        ),
        early("missing", "no-such-command-here"),
        early("denied", "exec ./data"),
        early("silent", "exit 0"),
    ];
    let setup = Server::new().file("cgi-bin/data", "no program\n");
    let setup = scripts
        .iter()
        .fold(setup, |setup, (path, text)| setup.script(path, text));
    let server = setup.start();
    let mut all = Rows::new();
    for (name, words) in [
        ("status", "exit status 3: "),
        ("killed", "ended by signal 9 (SIGKILL): "),
        ("half", "ended by signal 11 (SIGSEGV): "),
        ("missing", "exit status 127: "),
        ("denied", "exit status 126: "),
        ("silent", "the script printed nothing"),
    ] {
        let response = server.get(format!("/cgi-bin/{name}"));
        all.check(name, response.status == 500, || response.to_string());
        let line = server.log_line(&format!("cgi 'cgi-bin/{name}': "));
        all.check(&format!("C124: {name}"), line.contains(words), || {
            line.clone()
        });
        server.wait_for_log(&format!("]: last words of {name}\n"));
        // On this machine the page says the same.
        let told = response.text().contains(&format!("last words of {name}"));
        all.check(&format!("C124: page of {name}"), told, || {
            response.to_string()
        });
    }
    all.done();
    let hint = "a command inside the script was not found or is not executable";
    let hints = server
        .log()
        .lines()
        .filter(|line| line.contains(hint))
        .count();
    assert_eq!(hints, 2, "{}", server.log());
}

#[test]
fn a_script_that_the_server_ended_is_a_timeout_c124() {
    let server = Server::new()
        .fixture("hang")
        .args(["--cgi-timeout", "0.3"])
        .start();
    let response = server.get("/cgi-bin/hang");
    assert_eq!(response.status, 504, "{response}");
}

/// Neither a path nor what the script said.
fn tells_nothing(response: &Response, server: &Server) -> bool {
    let text = format!("{response}");
    let folder = server.root().display().to_string();
    ![&*folder, "last words", "/bin", "SECRET", "cgi-bin/"]
        .iter()
        .any(|secret| text.contains(secret))
}

const FAULTS: [(&str, &str, u16); 4] = [
    ("early", "#!/bin/sh\necho last words >&2\nexit 3\n", 500),
    ("header", "#!/bin/sh\necho SECRET words\n", 500),
    ("interpreter", "#!/no/such/bin/interpreter\n", 500),
    (
        "hang",
        "#!/bin/sh\necho last words >&2\nexec sleep 600\n",
        504,
    ),
];

fn failing() -> Setup {
    let setup = Server::new().args(["--cgi-timeout", "0.3"]);
    FAULTS.iter().fold(setup, |setup, (name, text, _)| {
        setup.script(format!("cgi-bin/{name}"), text)
    })
}

#[test]
fn an_error_page_tells_a_proxied_client_nothing_c125() {
    let server = failing().start();
    let mut all = Rows::new();
    for (name, _, status) in FAULTS {
        for accept in ["*/*", "text/html"] {
            for by in ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"] {
                let fields = [(by, "for=192.0.2.1"), ("Accept", accept)];
                let response = server.request("GET", format!("/cgi-bin/{name}"), &fields, b"");
                let holds = response.status == status && tells_nothing(&response, &server);
                all.check(&format!("C125: {name} {accept}, {by}"), holds, || {
                    response.to_string()
                });
                if name == "hang" {
                    break;
                }
            }
        }
    }
    all.done();
}

#[test]
fn an_error_page_tells_another_machine_nothing_c125() {
    if tiny_http_cannot("listen beyond loopback") {
        return;
    }
    let Some(address) = outward() else {
        skip("C125 from another address: needs one besides loopback");
        return;
    };
    let setup = failing().args(["-b", &address.to_string()]);
    let setup = if geteuid().is_root() {
        setup.arg("--allow-root")
    } else {
        setup
    };
    let server = setup.start();
    let mut all = Rows::new();
    for (name, _, status) in FAULTS {
        let response = server.get(format!("/cgi-bin/{name}"));
        let holds = response.status == status && tells_nothing(&response, &server);
        all.check(&format!("C125: {name}"), holds, || response.to_string());
    }
    all.done();
}
