//! As whom scripts run, and what is said of it at start: C144, C145.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use crate::support::{Client, Rows, Server, Setup, outward, skip, tiny_http_cannot};

/// Says so where a test can't be.
fn is_root(what: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        skip(&format!("{what}: needs root"));
    }
    root
}

const WHO: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n\
     sed -n 's/^[UG]id:\\t//p; s/^Groups:\\t/groups /p' /proc/self/status\necho \"$USER $HOME\"\n";

#[test]
fn the_user_is_switched_whole_c144() {
    if !is_root("C144: --user") {
        return;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let Some(nobody) = passwd.lines().find(|line| line.starts_with("nobody:")) else {
        skip("C144: --user: needs the user nobody");
        return;
    };
    let fields: Vec<&str> = nobody.split(':').collect();
    let (uid, gid, home) = (fields[2], fields[3], fields[5]);
    let server = Server::new()
        .script("cgi-bin/who", WHO)
        .for_everyone()
        .args(["--user", "nobody"])
        .start();
    let text = server.get("/cgi-bin/who").text();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let four = |id: &str| [id; 4].join("\t");
    assert_eq!(lines[0], four(uid), "{text}");
    assert_eq!(lines[1], four(gid), "{text}");
    assert!(
        lines[2] == "groups" || lines[2] == format!("groups {gid}"),
        "{text}"
    );
    assert_eq!(lines[3], format!("nobody {home}"), "{text}");
    // The server itself has switched too, and can't go back.
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    assert!(status.contains(&format!("Uid:\t{}", four(uid))), "{status}");
    server.wait_for_log("run as nobody");
}

#[test]
fn a_user_that_can_not_be_switched_to_is_fatal_c144() {
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_serve-here"))
            .arg("0")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("the program can be run")
    };
    let output = run(&["--user", "no-such-user-here"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot switch to user no-such-user-here"),
        "{said}"
    );
    assert!(said.contains("hint: "), "{said}");
    assert!(output.stdout.is_empty(), "it said that it serves");
    if !geteuid().is_root() {
        let output = run(&["--user", "nobody"]);
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn root_runs_scripts_for_its_own_machine_with_a_warning_c144() {
    if !is_root("C144: on loopback") {
        return;
    }
    let server = Server::new().fixture("noread").start();
    assert_eq!(server.get("/cgi-bin/noread").status, 200);
    let log = server.wait_for_log("warning: scripts run as root");
    assert_eq!(log.matches("run as root; `--user").count(), 1, "{log}");
}

/// A script, and an address that others can reach.
fn shared(address: &str) -> Setup {
    Server::new()
        .fixture("noread")
        .file("page.txt", "page\n")
        .args(["-b", address])
}

#[test]
fn root_refuses_scripts_to_other_machines_c144() {
    if tiny_http_cannot("listen beyond loopback") {
        return;
    }
    if !is_root("C144: refusal") {
        return;
    }
    let Some(address) = outward() else {
        skip("C144: refusal: needs an address besides loopback");
        return;
    };
    let server = shared(&address.to_string()).start();
    let refused = server.get("/cgi-bin/noread");
    assert_eq!(refused.status, 403, "{refused}");
    assert!(!refused.text().contains("root"), "{refused}");
    assert_eq!(server.get("/page.txt").text(), "page\n", "files are served");
    server.wait_for_log("root doesn't run scripts for other machines");

    let allowed = shared(&address.to_string()).arg("--allow-root").start();
    assert_eq!(allowed.get("/cgi-bin/noread").status, 200);
    let switched = shared(&address.to_string())
        .for_everyone()
        .args(["--user", "nobody"])
        .start();
    assert_eq!(switched.get("/cgi-bin/noread").status, 200);
}

#[test]
fn the_wildcard_address_is_an_address_for_others_c144() {
    if tiny_http_cannot("listen beyond loopback") {
        return;
    }
    if !is_root("C144: 0.0.0.0") {
        return;
    }
    for args in [&["-b", "0.0.0.0"][..], &["--public"]] {
        let server = Server::new().fixture("noread").args(args).start();
        let mut client = Client::connect(([127, 0, 0, 1], server.address().port()).into());
        client.send(server.wire(b"GET /cgi-bin/noread HTTP/1.1\nHost: {host}"));
        assert_eq!(client.response().status, 403, "{args:?}");
    }
}

#[test]
fn what_everyone_may_write_and_another_owns_is_refused_c144() {
    if !is_root("C144: writable by everyone") {
        return;
    }
    let setup = Server::new()
        .fixture_at("noread", "cgi-bin/theirs")
        .fixture_at("noread", "cgi-bin/shut")
        .fixture_at("noread", "cgi-bin/own")
        .fixture_at("noread", "cgi-bin/folder/noread")
        .mode("cgi-bin/theirs", 0o777)
        .mode("cgi-bin/shut", 0o755)
        .mode("cgi-bin/own", 0o777)
        .mode("cgi-bin/folder", 0o777);
    for path in ["theirs", "shut", "folder"] {
        chown(setup.root().join("cgi-bin").join(path), Some(12345), None).unwrap();
    }
    let server = setup.start();
    let mut all = Rows::new();
    for (path, status) in [
        ("theirs", 403),
        ("shut", 200),
        ("own", 200),
        ("folder/noread", 403),
    ] {
        let response = server.get(format!("/cgi-bin/{path}"));
        all.check(&format!("C144: {path}"), response.status == status, || {
            response.to_string()
        });
    }
    all.done();
    let log = server.wait_for_log("(world-writable");
    let theirs = server.root().join("cgi-bin/theirs");
    let hint = format!("chmod o-w {}", theirs.display());
    assert!(log.contains(&hint), "{log}");
}

#[test]
fn the_start_says_that_scripts_run_where_and_as_whom_c145() {
    let server = Server::new().fixture("noread").start();
    let log = server.wait_for_log("serve-here: scripts in ");
    let root = fs::canonicalize(server.root()).unwrap();
    let folder = root.join("cgi-bin").display().to_string();
    let line = log
        .lines()
        .find(|line| line.contains("scripts in "))
        .unwrap();
    assert!(line.contains(&folder), "{line}");
    let who = Command::new("id").arg("-un").output().expect("there is id");
    let who = String::from_utf8_lossy(&who.stdout).trim().to_owned();
    assert!(line.ends_with(&format!("run as {who}")), "{line}");
    assert!(log.contains("only this machine can connect"), "{log}");
    assert!(!log.contains("other machines can run"), "{log}");
}

#[test]
fn an_address_for_others_gives_a_warning_c145() {
    if tiny_http_cannot("listen beyond loopback") {
        return;
    }
    let server = Server::new()
        .fixture("noread")
        .args(["-b", "0.0.0.0", "--allow-root"])
        .start();
    server.wait_for_log("warning: other machines can run these scripts");

    let server = Server::new()
        .fixture("noread")
        .args(["-b", "0.0.0.0", "--no-cgi"])
        .start();
    let mut client = Client::connect(([127, 0, 0, 1], server.address().port()).into());
    client.send(server.wire(b"GET /cgi-bin/noread HTTP/1.1\nHost: {host}"));
    client.response();
    assert!(!server.log().contains("scripts"), "{}", server.log());
}
