//! The uwsgi protocol: C178 to C181.

use std::io::{Read, Write};

use super::peers::{Fake, uwsgi};
use crate::support::{Server, needs};

#[test]
fn uwsgi_serves_an_application_c178_c180_c181() {
    if !needs("uwsgi") {
        return;
    }
    let peer = uwsgi("--socket");
    let server = Server::new()
        .args(["--route", &format!("/app/=uwsgi:{}", peer.address())])
        .start();
    let answer = server.request("GET", "/app/caf%C3%A9?x=1", &[("X-Test", "yes")], b"");
    assert_eq!(
        String::from_utf8_lossy(&answer.body),
        "REQUEST_METHOD=GET\nSCRIPT_NAME=/app\nPATH_INFO=/café\nQUERY_STRING=x=1\n\
         CONTENT_LENGTH=\nSERVER_PROTOCOL=HTTP/1.1\nHTTP_X_TEST=yes\n"
    );
    let answer = server.get("/app/teapot");
    assert_eq!((answer.status, &answer.reason[..]), (418, "A teapot"));
    let cookies = answer
        .headers
        .iter()
        .filter(|(name, _)| name == "Set-Cookie");
    assert_eq!(cookies.count(), 2);
    let body: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let echoed = server.request("POST", "/app/echo", &[], &body);
    assert!(echoed.complete && echoed.body == body);
    let mut client = server.connect();
    client.send("POST /app/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "hello");
    assert_eq!(server.get("/app/large").body.len(), 5_000_000);
}

#[test]
fn a_header_that_is_too_long_for_uwsgi_is_explained_c178() {
    if !needs("uwsgi") {
        return;
    }
    let peer = uwsgi("--socket");
    let server = Server::new()
        .args(["--max-head", "200K", "--route"])
        .arg(format!("/=uwsgi:{}", peer.address()))
        .start();
    let long = "x".repeat(5000);
    let answer = server.request("GET", "/", &[("Cookie", &long)], b"");
    assert_eq!(answer.status, 502);
    server.wait_for_log("start uWSGI with `--buffer-size 65535`");
    // No packet has room for this.
    let long = "x".repeat(66_000);
    let answer = server.request("GET", "/", &[("Cookie", &long)], b"");
    assert_eq!(answer.status, 431);
}

#[test]
fn modifiers_are_for_the_user_to_choose_c179() {
    let fake = Fake::new(|mut stream, _| {
        let mut head = [0; 4];
        stream.read_exact(&mut head).expect("a packet");
        let mut block = vec![0; usize::from(u16::from_le_bytes([head[1], head[2]]))];
        stream.read_exact(&mut block).expect("all of it");
        let text = format!("Content-Type: a/b\n\n{} {}", head[0], head[3]);
        stream.write_all(text.as_bytes()).expect("the server reads");
    });
    let server = Server::new()
        .args(["--route", &format!("/=uwsgi:{}", fake.address())])
        .args([
            "--route",
            &format!("/a/=uwsgi:{},modifier1=9,modifier2=3", fake.address()),
        ])
        .start();
    assert_eq!(server.get("/").text(), "0 0");
    assert_eq!(server.get("/a/").text(), "9 3");
}
