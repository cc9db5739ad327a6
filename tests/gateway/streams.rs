//! What comes in pieces: events, each of which arrives when it was made, and
//! messages of a `WebSocket`; also in a real browser.

use std::fs;
use std::process::Command;

use super::peers::{Program, fixture, gunicorn, perl_responder, uwsgi};
use crate::support::webdriver::Browser;
use crate::support::{Server, needs, needs_perl_module, skip, tiny_http_cannot};

/// Programs that send events, each with its protocol.
fn senders() -> Vec<(&'static str, Program)> {
    let mut senders = Vec::new();
    if needs("uwsgi") {
        senders.extend([
            ("uwsgi", uwsgi("--socket")),
            ("scgi", uwsgi("--scgi-socket")),
            ("http", uwsgi("--http-socket")),
        ]);
    }
    if needs("gunicorn") {
        senders.push(("http", gunicorn()));
    }
    if needs_perl_module("FCGI") {
        senders.push(("fastcgi", perl_responder()));
    }
    senders
}

/// `/0/` and on, one for each program.
fn routes(senders: &[(&str, Program)]) -> Vec<String> {
    let routes = senders.iter().enumerate();
    let routes = routes.map(|(number, (protocol, program))| {
        let path = if *protocol == "http" { ",path=/" } else { "" };
        format!("--route=/{number}/={protocol}:{}{path}", program.address())
    });
    routes.collect()
}

#[test]
fn each_event_arrives_before_the_next_is_made_c115() {
    let senders = senders();
    let server = Server::new().args(routes(&senders)).start();
    for (number, (protocol, _)) in senders.iter().enumerate() {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let mut client = server.connect();
        let path = folder.path().display();
        client.send(format!(
            "GET /{number}/events?{path} HTTP/1.1\r\nHost: x\r\n\r\n"
        ));
        assert_eq!(client.head().expect("an answer").status, 200, "{protocol}");
        for event in 1..=5 {
            let expected = format!("data: {event}\n\n");
            let mut seen = String::new();
            while !seen.contains(&expected) {
                let some = client.some();
                assert!(!some.is_empty(), "{protocol}: {event} did not come: {seen}");
                seen.push_str(&String::from_utf8_lossy(&some));
            }
            fs::write(folder.path().join(event.to_string()), "").expect("it is the test's");
        }
        let (_, complete) = client.chunked();
        assert!(complete, "{protocol}");
    }
}

const PAGE: &str = "<!doctype html><title>streams</title><script>
const seen = {events: [], messages: [], ends: 0};
function listen(path) {
    const source = new EventSource(path);
    source.onmessage = (event) => seen.events.push(event.data);
    source.onerror = () => { source.close(); seen.ends += 1; };
}
function talk(path) {
    const socket = new WebSocket('ws://' + location.host + path);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => { socket.send('h\u{e9}llo'); socket.send(new Uint8Array(300000)); };
    socket.onmessage = (event) => {
        seen.messages.push(event.data.byteLength ?? event.data);
        if (seen.messages.length == 2) socket.close(1000, 'enough');
    };
    socket.onclose = (event) => seen.closed = event.wasClean + ' ' + event.code;
}
</script>";

#[test]
fn a_browser_hears_events_and_speaks_by_websocket() {
    if tiny_http_cannot("let a connection leave HTTP") || !needs("python3") {
        return;
    }
    let has_module = Command::new("/usr/bin/python3")
        .args(["-c", "import websockets"])
        .output();
    if !has_module.is_ok_and(|output| output.status.success()) {
        return skip("needs the Python module websockets");
    }
    let Some(browser) = Browser::start() else {
        return;
    };
    let senders = senders();
    let echo = Program::start("/usr/bin/python3", [&fixture("websocket.py"), "{socket}"]);
    let server = Server::new()
        .file("page.html", PAGE)
        .args(routes(&senders))
        .args(["--route", &format!("/ws/=http:{}", echo.address())])
        .start();
    let fds = server.fds_at_rest();
    browser.open(&server.url("/page.html"));
    browser.value("talk('/ws/')");
    browser.wait_for("seen.closed");
    assert_eq!(browser.value("seen.messages.join()"), "h\u{e9}llo,300000");
    assert_eq!(browser.value("seen.closed"), "true 1000");
    for number in 0..senders.len() {
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        let path = folder.path().display();
        browser.value(&format!(
            "(seen.events = [], listen('/{number}/events?{path}'))"
        ));
        for event in 1..=5 {
            browser.wait_for(&format!("seen.events.at(-1) === '{event}'"));
            fs::write(folder.path().join(event.to_string()), "").expect("it is the test's");
        }
        browser.wait_for(&format!("seen.ends === {}", number + 1));
    }
    drop(browser);
    super::peers::settles_to(&server, fds);
}
