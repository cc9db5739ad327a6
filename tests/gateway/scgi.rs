//! SCGI: C175 to C177.

use super::peers::{scgi_server, uwsgi};
use crate::support::{Server, needs};

#[test]
fn a_strict_scgi_server_understands_every_request_c175_c176() {
    if !needs("python3") {
        return;
    }
    let peer = scgi_server();
    let server = Server::new()
        .args(["--route", &format!("/app=scgi:{}", peer.address())])
        .start();
    for (method, target, body, expected) in [
        ("GET", "/app", 0, "/app|||0"),
        ("GET", "/app/x%20y?a=%20b", 0, "/app|/x y|a=%20b|0"),
        ("POST", "/app/", 3_000_000, "/app|/||3000000"),
        ("PUT", "/app/a//b/../c", 5, "/app|/a/c||5"),
    ] {
        let answer = server.request(
            method,
            target,
            &[("X-A", "1"), ("X-A", "2")],
            &vec![b'x'; body],
        );
        assert_eq!(
            (answer.status, &answer.reason[..]),
            (201, "Made"),
            "{target}"
        );
        assert_eq!(answer.text(), expected);
    }
    assert_eq!(server.get("/app/none").status, 502);
}

#[test]
fn uwsgi_serves_an_application_over_scgi_c177() {
    if !needs("uwsgi") {
        return;
    }
    let peer = uwsgi("--scgi-socket");
    let server = Server::new()
        .args(["--route", &format!("/app=scgi:{}", peer.address())])
        .start();
    let body: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let echoed = server.request("POST", "/app/echo", &[], &body);
    assert!(echoed.complete && echoed.body == body);
    assert_eq!(server.get("/app/large").body.len(), 5_000_000);
}
