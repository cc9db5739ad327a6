//! Which requests a route takes, and what the command says of a wrong one.

use super::peers::{Fake, nobody};
use crate::support::{Rows, Server};

#[test]
fn the_longest_pattern_wins_and_the_rest_is_for_files_and_scripts() {
    let named = |name: &str| Fake::responder(format!("Content-Type: a/b\n\n{name}"));
    let (app, deep, php) = (named("app"), named("deep"), named("php"));
    let server = Server::new()
        .file("x.php", "")
        .file("app/x.php", "")
        .file("app/secret.txt", "hidden behind the application")
        .file("readme.txt", "a file")
        .prints("cgi-bin/x", "Content-Type: a/b\n\na script")
        .args(["--route", &format!("*.php=fastcgi:{}", php.address())])
        .args(["--route", &format!("/app/=fastcgi:{}", app.address())])
        .args(["--route", &format!("/app/deep/=fastcgi:{}", deep.address())])
        .start();
    let mut rows = Rows::new();
    for (path, expected) in [
        ("/readme.txt", "a file"),
        ("/cgi-bin/x", "a script"),
        ("/x.php", "php"),
        ("/app/", "app"),
        ("/app/x.php", "app"),
        ("/app/secret.txt", "app"),
        ("/app/deep/x", "deep"),
        ("/app/deeper", "app"),
        ("/readme.txt/../app/x", "app"),
    ] {
        let text = server.get(path).text();
        rows.check(path, text == expected, || text);
    }
    rows.done();
    let answer = server.get("/app?x=1");
    assert_eq!(answer.status, 301);
    assert_eq!(answer.header("Location").as_deref(), Some("/app/?x=1"));
    let archive = server.get("/?archive=zip").body;
    let holds = |name: &str| {
        archive
            .windows(name.len())
            .any(|part| part == name.as_bytes())
    };
    assert!(holds("readme.txt") && !holds("secret.txt") && !holds("x.php"));
}

#[test]
fn routes_work_without_scripts_and_local_redirects_lead_anywhere_c93() {
    let fake = Fake::responder("Location: /note.txt\n\n");
    let server = Server::new()
        .file("note.txt", "a note")
        .args([
            "--no-cgi",
            "--route",
            &format!("/go=fastcgi:{}", fake.address()),
        ])
        .start();
    assert_eq!(server.get("/go").text(), "a note");
}

#[test]
fn a_script_can_redirect_to_an_application_c93() {
    let fake = Fake::responder("Content-Type: a/b\n\nthe application");
    let server = Server::new()
        .prints("cgi-bin/go", "Location: /app/x\n\n")
        .args(["--route", &format!("/app/=fastcgi:{}", fake.address())])
        .start();
    assert_eq!(server.get("/cgi-bin/go").text(), "the application");
}

#[test]
fn what_a_head_request_gets_is_the_header_c112() {
    let fake = Fake::responder("Content-Type: a/b\nContent-Length: 5\n\nhello");
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let mut client = server.connect();
    for _ in 0..3 {
        client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.response_to("HEAD");
        assert_eq!(answer.header("Content-Length").as_deref(), Some("5"));
        assert!(answer.body.is_empty());
    }
}

#[test]
fn a_wrong_route_ends_the_program_with_a_hint() {
    let two = format!("/a/=scgi:{}", nobody());
    for (args, part) in [
        (
            &["--route", "app=scgi:h:1"][..],
            "starts with neither `/` nor `*`",
        ),
        (&["--route", "/=gopher:h:1"], "protocol `gopher` is unknown"),
        (&["--route", "/=scgi:h"], "`h` is no address"),
        (&["--route", &two, "--route", &two], "two for the pattern"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_serve-here"))
            .args(args)
            .output()
            .expect("the program can be run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part) && text.contains("\nhint: "), "{text}");
    }
}
