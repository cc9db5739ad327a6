//! Why a script does not start: C140 to C143.

use std::fs::{self, File, OpenOptions};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, geteuid, getrlimit, prlimit};

use crate::support::{Response, Rows, Server, skip};

/// Rule, script, status, what the log says, what the hint says.
type Row = (&'static str, &'static str, u16, &'static str, &'static str);

fn hold(server: &Server, rows: &[Row]) {
    let mut all = Rows::new();
    for (rule, script, status, fault, hint) in rows {
        let what = format!("{rule}: {script}");
        let response = server.get(format!("/cgi-bin/{script}"));
        all.check(&what, response.status == *status, || {
            format!("expected {status}, came {response}")
        });
        let line = server.log_line(&format!("cgi 'cgi-bin/{script}': "));
        let file = server.root().join("cgi-bin").join(script);
        let names = line.contains(fault) && line.contains(&*file.to_string_lossy());
        all.check(&what, names, || format!("the log says: {line}"));
        let log = server.log();
        let after = log.split(&*line).nth(1).unwrap_or_default();
        let hints = after.trim_start().lines().next().unwrap_or_default();
        all.check(&what, hints.contains(hint), || format!("the hint: {hints}"));
    }
    all.done();
}

#[test]
fn each_fault_has_its_status_and_its_words_c140_c141() {
    // An ELF file for a machine that does not exist.
    let mut foreign = fs::read("/bin/true").unwrap();
    foreign[18..20].copy_from_slice(&[0xfe, 0xfe]);
    let setup = Server::new()
        .fixture("nonexec")
        .fixture("nointerp")
        .fixture("crlf")
        .fixture("bom")
        .fixture("noshebang")
        .script("cgi-bin/nothing", "")
        .script("cgi-bin/late", "\n \t#!/bin/sh\necho ran\n")
        .script("cgi-bin/php", "<?php echo 'ran';\n")
        .script("cgi-bin/wide", b"\xff\xfe#\0!\0/\0")
        .script("cgi-bin/folder", "#!/usr/bin\n")
        .script("cgi-bin/foreign", foreign)
        .file("plain", "#!/bin/sh\n")
        .script("cgi-bin/bang", "#!\necho\n")
        .link("cgi-bin/circle", "circle");
    let first_line = |path: &str| format!("#!{}\n", setup.root().join(path).display());
    let (denied, itself) = (first_line("plain"), first_line("cgi-bin/itself"));
    let server = setup
        .script("cgi-bin/denied", denied)
        .script("cgi-bin/itself", itself)
        .start();
    hold(
        &server,
        &[
            ("C140", "nonexec", 403, "not executable", "chmod +x "),
            (
                "C140",
                "denied",
                500,
                "plain` is not executable",
                "chmod +x ",
            ),
            (
                "C140",
                "nointerp",
                500,
                "interpreter `/no/such/interpreter` named in line 1",
                "install it",
            ),
            ("C140", "crlf", 500, "line 1 ends with CRLF", "sed -i"),
            ("C140", "bom", 500, "byte order mark", "sed -i"),
            ("C141", "noshebang", 500, "no `#!` line", "#!/bin/sh"),
            ("C141", "nothing", 500, "the file is empty", ""),
            ("C141", "late", 500, "before the `#!`", "sed -z -i"),
            ("C141", "php", 500, "no `#!` line", "env php-cgi"),
            ("C141", "wide", 500, "in UTF-16LE", "iconv -f UTF-16LE"),
            (
                "C140",
                "folder",
                500,
                "`/usr/bin` named in line 1 is a folder",
                "name the program",
            ),
            ("C140", "foreign", 500, "another processor", "build it"),
            (
                "C140",
                "bang",
                500,
                "line 1 can't be used",
                "#!/usr/bin/env",
            ),
            ("C140", "itself", 500, "circle", ""),
        ],
    );
    let response = server.get("/cgi-bin/circle");
    assert_eq!(response.status, 500, "C140: a link to itself: {response}");
    assert!(
        !server.log().contains("ran"),
        "nothing falls back to a shell"
    );
}

#[test]
fn what_is_not_there_is_404_c140() {
    let server = Server::new()
        .fixture("noread")
        .link("cgi-bin/dangling", "nowhere")
        .start();
    for script in ["nothing", "dangling"] {
        assert_eq!(server.get(format!("/cgi-bin/{script}")).status, 404);
    }
    // There at the last request, gone at this one.
    assert_eq!(server.get("/cgi-bin/noread").status, 200);
    fs::remove_file(server.root().join("cgi-bin/noread")).unwrap();
    assert_eq!(server.get("/cgi-bin/noread").status, 404);
}

#[test]
fn a_folder_that_may_not_be_searched_is_403_c140() {
    if !geteuid().is_root() {
        skip("C140 for a folder: needs root, and the user nobody");
        return;
    }
    let server = Server::new()
        .fixture_at("noread", "cgi-bin/shut/noread")
        .fixture("nonexec")
        .for_everyone()
        .mode("cgi-bin/shut", 0o700)
        .args(["--user", "nobody"])
        .start();
    let response = server.get("/cgi-bin/shut/noread");
    assert_eq!(response.status, 403, "{response}");
    server.wait_for_log("may not search the directory");
    let shut = server.root().join("cgi-bin/shut");
    server.wait_for_log(&format!("chmod +x {}", shut.display()));
}

/// A file system that forbids programs; unmounted when it goes.
struct NoExec(std::path::PathBuf);

impl NoExec {
    fn mount(at: std::path::PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "noexec", "tmpfs"])
            .arg(&at)
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self(at))
    }
}

impl Drop for NoExec {
    fn drop(&mut self) {
        // What stays mounted shows as a folder that can't be removed.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_mount_without_programs_is_named_c140() {
    let setup = Server::new();
    let Some(mount) = NoExec::mount(setup.root().join("cgi-bin/mounted")) else {
        skip("C140 for noexec: needs the right to mount");
        return;
    };
    let server = setup
        .fixture_at("noread", "cgi-bin/mounted/noread")
        .file("cgi-bin/mounted/plain", "#!/bin/sh\n")
        .start();
    let response = server.get("/cgi-bin/mounted/noread");
    assert_eq!(response.status, 500, "{response}");
    server.wait_for_log("noexec");
    // Here it is the mode, whatever the mount says.
    assert_eq!(server.get("/cgi-bin/mounted/plain").status, 403);
    drop(server);
    drop(mount);
}

fn being_written(server: &Server) -> File {
    let path = server.root().join("cgi-bin/busy");
    OpenOptions::new().append(true).open(path).unwrap()
}

#[test]
fn a_file_that_stays_open_for_writing_is_a_fault_c140() {
    let server = Server::new().fixture("busy").start();
    let writer = being_written(&server);
    let response = server.get("/cgi-bin/busy");
    assert_eq!(response.status, 500, "{response}");
    server.wait_for_log("the file is open for writing");
    drop(writer);
    assert_eq!(server.get("/cgi-bin/busy").text(), "ran busy\n");
}

#[test]
fn a_file_that_is_just_being_written_is_tried_again_c142() {
    let server = Server::new()
        .fixture("busy")
        .file("page.txt", "page\n")
        .start();
    let writer = being_written(&server);
    let mut client = server.connect();
    client.send(server.wire(b"GET /cgi-bin/busy HTTP/1.1\nHost: {host}"));
    // Others are answered, and the first attempt has its time, meanwhile.
    for _ in 0..5 {
        assert_eq!(server.get("/page.txt").text(), "page\n");
    }
    drop(writer);
    let response: Response = client.response();
    assert_eq!(response.text(), "ran busy\n", "{response}");
}

#[test]
fn an_environment_too_large_to_start_with_is_431_c140() {
    let server = Server::new()
        .fixture("noread")
        .env("BIG_A", "a".repeat(100_000))
        .env("BIG_B", "b".repeat(100_000))
        .arg("--cgi-inherit-env")
        .start();
    assert_eq!(server.get("/cgi-bin/noread").status, 200);
    // The kernel gives arguments and environment a quarter of the stack.
    let pid = Pid::from_raw(server.pid().cast_signed());
    let stack = Rlimit {
        current: Some(512 << 10),
        maximum: getrlimit(Resource::Stack).maximum,
    };
    prlimit(pid, Resource::Stack, stack).expect("it is our own process");
    let response = server.get("/cgi-bin/noread");
    assert_eq!(response.status, 431, "{response}");
    server.log_line("cgi 'cgi-bin/noread': the request's header fields are too large");
    assert_eq!(server.get("/").status, 200, "files need no environment");
}

#[test]
fn a_first_line_may_split_its_words_with_env_c143() {
    let server = Server::new()
        .script(
            "cgi-bin/words",
            "#!/usr/bin/env -S sh -u -e\nprintf 'Content-Type: text/plain\\n\\n%s' \"$-\"\n",
        )
        .start();
    let options = server.get("/cgi-bin/words").text();
    assert!(options.contains('u') && options.contains('e'), "{options}");
}
