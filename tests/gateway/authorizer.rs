//! The authorizer role of `FastCGI`: C151.

use std::io::Write;

use super::peers::{
    Fake, Program, end, fixture, nobody, read_record, read_request, stdout, wait_for_end,
};
use crate::support::{Rows, Server, Setup, needs_perl_module};

const ANN: (&str, &str) = ("Authorization", "Basic YW5uOnNlY3JldA==");

fn authorizer() -> Option<Program> {
    needs_perl_module("FCGI").then(|| {
        let script = fixture("authorizer.pl");
        Program::start("/usr/bin/perl", [&script, "{socket}"])
    })
}

fn site(authorizer: &Program) -> Setup {
    Server::new()
        .file("open.txt", "for all")
        .file("private/note.txt", "for ann")
        .file("private/deep/more.txt", "for ann, too")
        .fixture_at("env", "private/cgi/env")
        .fixture_at("echo", "private/cgi/echo")
        .args(["--cgi-dir", "/private/cgi", "--route"])
        .arg(format!(
            "/private/=authorizer+fastcgi:{}",
            authorizer.address()
        ))
}

#[test]
fn files_and_scripts_wait_for_the_authorizer_c151() {
    let Some(authorizer) = authorizer() else {
        return;
    };
    let server = site(&authorizer).start();
    let mut rows = Rows::new();
    for (path, with, without) in [
        ("/open.txt", 200, 200),
        ("/private/note.txt", 200, 401),
        ("/private/deep/more.txt", 200, 401),
        ("/private/deep/", 200, 401),
        ("/private/", 200, 401),
        ("/private/none", 404, 401),
        ("/private/cgi/env", 200, 401),
        ("/private/%2e/note.txt", 200, 401),
        ("/x/../private/note.txt", 200, 401),
        ("/private", 301, 301),
    ] {
        // Twice, as the second answer may come from memory.
        for _ in 0..2 {
            let answer = server.request("GET", path, &[ANN], b"");
            rows.check(path, answer.status == with, || answer.to_string());
            let answer = server.get(path);
            rows.check(path, answer.status == without, || answer.to_string());
        }
    }
    rows.done();
    let refused = server.get("/private/note.txt");
    assert_eq!(refused.reason, "Who are you");
    assert_eq!(refused.text(), "not without a name\n");
    let realm = refused.header("WWW-Authenticate");
    assert_eq!(realm.as_deref(), Some("Basic realm=\"here\""));
    let granted = server.request("GET", "/private/note.txt", &[ANN], b"");
    assert_eq!(granted.text(), "for ann");
    assert_eq!(granted.header("X-Other"), None);
}

#[test]
fn an_escaped_slash_leads_nobody_past_the_authorizer_c45() {
    let Some(authorizer) = authorizer() else {
        return;
    };
    // It decodes a path before it splits it, as many do.
    let application = Fake::responder("Content-Type: a/b\n\nseen");
    let server = site(&authorizer)
        .args(["--route", &format!("/=fastcgi:{}", application.address())])
        .start();
    for (path, with, without) in [
        ("/private/x", 200, 401),
        ("/private%2Fx", 404, 404),
        ("/a%2F..%2Fprivate/x", 404, 404),
        ("/%2Fprivate/x", 404, 404),
        ("/private/a%2Fb", 200, 401),
        ("/private/a%2F..%2F..%2Fopen", 404, 404),
        ("/open%2Fx", 200, 200),
    ] {
        let answer = server.request("GET", path, &[ANN], b"");
        assert_eq!(answer.status, with, "{path}: {answer}");
        assert_eq!(server.get(path).status, without, "{path}");
    }
}

#[test]
fn what_an_authorizer_protects_is_in_no_archive_from_above() {
    let Some(authorizer) = authorizer() else {
        return;
    };
    let server = site(&authorizer).start();
    let holds = |path: &str, name: &str| {
        let archive = server.request("GET", path, &[ANN], b"");
        assert_eq!(archive.status, 200);
        archive
            .body
            .windows(name.len())
            .any(|window| window == name.as_bytes())
    };
    assert!(holds("/?archive=zip", "open.txt"));
    assert!(!holds("/?archive=zip", "note.txt"));
    assert!(holds("/private/?archive=zip", "note.txt"));
}

#[test]
fn a_script_learns_who_was_let_in_c151() {
    let Some(authorizer) = authorizer() else {
        return;
    };
    let server = site(&authorizer).start();
    let answer = server.request("GET", "/private/cgi/env", &[ANN], b"");
    let text = answer.text();
    for variable in ["REMOTE_USER=ann\0", "AUTH_TYPE=Basic\0"] {
        assert!(text.contains(variable), "{text}");
    }
    let answer = server.request("POST", "/private/cgi/echo", &[ANN], &vec![b'x'; 100_000]);
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() >= 100_000);
}

#[test]
fn an_application_behind_an_authorizer_learns_it_too() {
    let Some(authorizer) = authorizer() else {
        return;
    };
    let fake = Fake::new(|mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            let text = format!("Content-Type: a/b\n\n{}", request.has("REMOTE_USER", "ann"));
            let _ = stream.write_all(&[stdout(text.as_bytes()), end(0, 0)].concat());
        }
    });
    let server = site(&authorizer)
        .args([
            "--route",
            &format!("/private/app/=fastcgi:{}", fake.address()),
        ])
        .start();
    assert_eq!(server.get("/private/app/x").status, 401);
    let answer = server.request("POST", "/private/app/x", &[ANN], b"content");
    assert_eq!(answer.text(), "true");
}

#[test]
fn without_its_authorizer_nothing_is_let_in() {
    let server = Server::new()
        .file("private/note.txt", "for ann")
        .args([
            "--route",
            &format!("/private/=authorizer+fastcgi:{}", nobody()),
        ])
        .start();
    for path in ["/private/note.txt", "/private/", "/private/none"] {
        assert_eq!(server.request("GET", path, &[ANN], b"").status, 502);
    }
}

#[test]
fn an_authorizer_of_everything_is_asked_for_everything() {
    let Some(authorizer) = authorizer() else {
        return;
    };
    let server = Server::new()
        .file("note.txt", "for ann")
        .args([
            "--route",
            &format!("/=authorizer+fastcgi:{}", authorizer.address()),
        ])
        .start();
    for path in ["/", "/note.txt", "/none"] {
        assert_eq!(server.get(path).status, 401);
    }
    let answer = server.request("GET", "/note.txt", &[ANN], b"");
    assert_eq!(answer.text(), "for ann");
}

#[test]
fn a_link_does_not_lead_around_an_authorizer() {
    let fake = Fake::responder("Content-Type: a/b\n\nthe application");
    let server = Server::new()
        .file("private/note.txt", "for ann")
        .file("private/x.php", "<?php")
        .prints("private/x.sh", "Content-Type: a/b\n\nfor ann")
        .file("open/x.php", "<?php")
        .prints("open/x.sh", "Content-Type: a/b\n\nopen")
        .link("folder", "private")
        .link("note", "private/note.txt")
        .folder("cgi-bin")
        .link("cgi-bin/script", "../private/x.sh")
        .link("cgi-bin/open", "../open/x.sh")
        .link("page.php", "private/x.php")
        .link("elsewhere", "open")
        .args(["--cgi-ext=sh", "--route"])
        .arg(format!("*.php=fastcgi:{}", fake.address()))
        .args([
            "--route",
            &format!("/private/=authorizer+fastcgi:{}", nobody()),
        ])
        .start();
    let mut rows = Rows::new();
    for path in [
        "/folder/note.txt",
        "/folder/",
        "/note",
        "/folder/x.sh",
        "/folder/x.php",
        "/folder/x.php/more",
        "/cgi-bin/script",
        "/page.php",
    ] {
        let answer = server.get(path);
        rows.check(path, answer.status == 403, || answer.to_string());
    }
    server.wait_for_log("(link-around; ");
    for path in [
        "/cgi-bin/open",
        "/elsewhere/x.sh",
        "/elsewhere/x.php",
        "/open/x.php",
    ] {
        let answer = server.get(path);
        rows.check(path, answer.status == 200, || answer.to_string());
    }
    rows.done();
}

#[test]
fn only_a_clear_yes_of_an_authorizer_lets_in_c151() {
    let rows: [(&str, Vec<u8>, bool, u16); 13] = [
        (
            "yes",
            [stdout(b"Status: 200\n\n"), end(0, 0)].concat(),
            false,
            200,
        ),
        (
            "yes, no status",
            [stdout(b"Variable-A: b\n\n"), end(0, 0)].concat(),
            false,
            200,
        ),
        ("yes, no end", stdout(b"Status: 200\n\n"), true, 200),
        ("half a yes", stdout(b"Status: 200\n"), false, 502),
        ("half a yes, silence", stdout(b"Status: 200\n"), true, 504),
        ("silence", vec![], true, 504),
        ("gone", vec![], false, 502),
        (
            "no header",
            [stdout(b"200"), end(0, 0)].concat(),
            false,
            502,
        ),
        (
            "another status",
            [stdout(b"Status: 204\n\n"), end(0, 0)].concat(),
            false,
            204,
        ),
        (
            "to the login",
            [stdout(b"Location: /login\n\n"), end(0, 0)].concat(),
            false,
            302,
        ),
        ("overloaded", end(0, 2), false, 503),
        ("no authorizer", end(0, 3), false, 502),
        ("HTTP", b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), false, 502),
    ];
    let mut table = Rows::new();
    for (what, says, hangs, status) in rows {
        let fake = Fake::new(move |mut stream, _| {
            // BEGIN_REQUEST in its role, the parameters, and no content.
            let mut ended = 0;
            while ended < 2 {
                match read_record(&mut stream) {
                    Some((kind, content)) if kind != 1 && content.is_empty() => ended += 1,
                    Some(_) => {}
                    None => return,
                }
            }
            let _ = stream.write_all(&says);
            if hangs {
                wait_for_end(&stream);
            }
        });
        let server = Server::new()
            .file("private/note.txt", "for ann")
            .args(["--route-timeout=0.3", "--route"])
            .arg(format!("/private/=authorizer+fastcgi:{}", fake.address()))
            .start();
        let fds = server.fds_at_rest();
        for method in ["GET", "POST"] {
            let answer = server.request(method, "/private/note.txt", &[], b"content");
            // Files know no POST.
            let expected = if (method, status) == ("POST", 200) {
                405
            } else {
                status
            };
            let let_in = answer.text().contains("for ann");
            let right = answer.status == expected && let_in == (answer.status == 200);
            table.check(what, right, || format!("{method}: {answer}"));
        }
        server.settles_to(fds);
    }
    table.done();
}
