//! `--trust-proxy`: whose request it is, told by a proxy on the way.

use crate::support::{Report, Server, fixtures, needs};

const SAID: [(&str, &str); 2] = [
    ("X-Forwarded-For", "127.0.0.3, 192.0.2.7, 127.0.0.2"),
    ("X-Forwarded-Proto", "https"),
];

#[test]
fn a_script_is_told_the_client_of_a_trusted_proxy_c10_c23_c192() {
    let server = Server::new()
        .fixture("env")
        .args(["--trust-proxy", "10.0.0.1", "--trust-proxy=127.0.0.0/8"])
        .start();
    let report = Report::of(&server.request("GET", "/cgi-bin/env", &SAID, b""));
    for (name, value) in [
        ("REMOTE_ADDR", Some("192.0.2.7")),
        ("REMOTE_HOST", Some("192.0.2.7")),
        ("REMOTE_PORT", None),
        ("HTTPS", Some("on")),
        ("REQUEST_SCHEME", Some("https")),
        ("HTTP_X_FORWARDED_PROTO", Some("https")),
    ] {
        assert_eq!(report.text(name).as_deref(), value, "{name}");
    }
    // One that says nothing is its own client.
    let report = server.report("/cgi-bin/env");
    assert_eq!(report.text("REMOTE_ADDR").as_deref(), Some("127.0.0.1"));
    assert_eq!(report.text("HTTPS"), None);
    assert_ne!(report.text("REMOTE_PORT"), None);
}

#[test]
fn whoever_is_not_trusted_can_say_what_it_likes_c192() {
    for options in [&[][..], &["--trust-proxy", "10.0.0.0/8"]] {
        let server = Server::new().fixture("env").args(options).start();
        let report = Report::of(&server.request("GET", "/cgi-bin/env", &SAID, b""));
        assert_eq!(report.text("REMOTE_ADDR").as_deref(), Some("127.0.0.1"));
        assert_eq!(report.text("REQUEST_SCHEME").as_deref(), Some("http"));
        assert_eq!(report.text("HTTPS"), None);
    }
}

#[test]
fn the_access_log_names_the_client_of_a_trusted_proxy() {
    let server = Server::new()
        .file("x.txt", "x")
        .args(["--trust-proxy", "127.0.0.1", "--log", "common"])
        .start();
    // The second answer is one that was given before.
    for client in ["192.0.2.1", "192.0.2.2"] {
        let said = [("X-Forwarded-For", client)];
        assert_eq!(server.request("GET", "/x.txt", &said, b"").text(), "x");
        server.wait_for_log(&format!("{client} - - ["));
    }
    assert!(!server.log().contains("127.0.0.1 - - ["));
}

#[test]
fn an_application_behind_two_servers_is_told_the_client_c192() {
    if !needs("python3") {
        return;
    }
    let application = std::fs::read(fixtures("scaling").join("application.py"));
    let back = Server::new()
        .file("application.py", application.expect("it is there"))
        .args(["--wsgi", "application:application", "--workers=1"])
        .args(["--trust-proxy", "127.0.0.0/8"])
        .env("APP_HOST", "back")
        .start();
    // It trusts what comes from this machine, as a route by HTTP does.
    let front = Server::new()
        .args(["--route", &format!("/=http:{}", back.address())])
        .start();
    let answer = front.request("GET", "/", &SAID, b"").text();
    assert_eq!(answer, "back 192.0.2.7 https");
    assert_eq!(front.get("/").text(), "back 127.0.0.1 http");
}

#[test]
fn what_is_no_address_of_a_proxy_is_refused() {
    for wrong in ["proxy.example", "10.0.0.0/40", ""] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_serve-here"))
            .args(["--trust-proxy", wrong])
            .output()
            .expect("the program can be run");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("such as 10.0.0.1 or 10.0.0.0/24"), "{said}");
    }
}
