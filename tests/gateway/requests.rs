//! What a client can say to get something past this server: requests that an
//! application could read otherwise, and content that goes its own ways
//! (RFC 9112 §11.2, C28, C65, C68, C192).

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use super::peers::{Fake, end, settles_to, stdout, wait_for_end};
use super::proxy::read_head;
use crate::support::{Rows, Server, eventually, tiny_http_cannot};

/// An application that reads by its own light, and remembers the heads it saw.
struct Witness {
    fake: Fake,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Witness {
    fn new() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::clone(&seen);
        let fake = Fake::new(move |mut stream, _| {
            while let Some(head) = read_head(&mut stream) {
                let content = read_content(&head, &mut stream);
                let whole = content.is_some();
                heads.lock().expect("nobody panics").push(head);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if !whole || stream.write_all(answer).is_err() {
                    return;
                }
            }
        });
        Self { fake, seen }
    }

    /// The heads since the last time.
    fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().expect("nobody panics"))
    }
}

/// By the first framing field there is; `None`: it broke off.
fn read_content(head: &str, stream: &mut impl Read) -> Option<Vec<u8>> {
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(field, _)| field.trim() == name);
        values.next().map(|(_, value)| value.trim().to_owned())
    };
    if field("transfer-encoding").is_some() {
        let mut content = Vec::new();
        while !content.ends_with(b"0\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            content.push(byte[0]);
        }
        return Some(content);
    }
    let mut content = vec![0; field("content-length").map_or(0, |n| n.parse().expect("digits"))];
    stream.read_exact(&mut content).ok()?;
    Some(content)
}

#[test]
fn no_request_hides_in_another() {
    let witness = Witness::new();
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", witness.fake.address())])
        .start();
    let hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut rows = Rows::new();
    let (mut all_heads, mut all_answers) = (0, 0);
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer-Encoding\r\n: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\nContent-Length: 55\r\n",
        "Content-Length: 3, 55\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length : 3\r\n",
        "Content-Length: 3\r\n 5\r\n",
        "Content_Length: 55\r\n",
        "Connection: Content-Length\r\nContent-Length: 38\r\n",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
        "Connection: Host\r\n",
    ] {
        for method in ["POST", "GET"] {
            let request = format!("{method} /x HTTP/1.1\r\nHost: x\r\n{fields}\r\n{hidden}");
            let mut client = server.connect();
            client.send(&request);
            client.half_close();
            let mut answers = 0;
            while client.try_response_to(method).is_some() {
                answers += 1;
            }
            let heads = witness.heads();
            let alone = |head: &String| {
                let named = head.lines().any(|line| line == "host: x");
                let framings = head.lines().filter(|line| {
                    line.starts_with("content-length") || line.starts_with("transfer-encoding")
                });
                named && framings.count() <= 1 && !head.contains('_')
            };
            let right = heads.iter().all(alone);
            rows.check(fields, right, || format!("{method}: {heads:#?}"));
            all_answers += answers;
            all_heads += heads.len();
        }
    }
    rows.done();
    // What this server takes for a request is one for the application, and
    // nothing else is. A head may be seen after the answer to a cut request.
    assert!(all_heads <= all_answers, "{all_heads} of {all_answers}");
}

#[test]
fn what_a_client_calls_its_connections_own_is_not_what_this_server_says() {
    let witness = Witness::new();
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", witness.fake.address())])
        .start();
    let fields = [
        (
            "Connection",
            "X-Forwarded-For, Forwarded, Via, X-Forwarded-Proto, X-Forwarded-Host, Host, close",
        ),
        ("Host", "site"),
        ("X-Forwarded-For", "192.0.2.66"),
        ("X_Forwarded_For", "192.0.2.67"),
        ("Forwarded", "for=192.0.2.68"),
    ];
    assert_eq!(server.request("GET", "/", &fields, b"").status, 200);
    let heads = witness.heads();
    let [head] = &heads[..] else {
        panic!("{heads:#?}")
    };
    for line in [
        "host: site",
        "x-forwarded-for: 127.0.0.1",
        "forwarded: for=127.0.0.1;proto=http;host=\"site\"",
        "x-forwarded-host: site",
        "x-forwarded-proto: http",
        "via: 1.1 serve-here",
    ] {
        assert!(head.lines().any(|said| said == line), "{line}\n{head}");
    }
}

#[test]
fn request_targets_of_other_forms_name_what_they_name() {
    let witness = Witness::new();
    let server = Server::new()
        .args(["--max-head=100K", "--route"])
        .arg(format!("/=http:{}", witness.fake.address()))
        .start();
    let long = format!("/{}", "x".repeat(60_000));
    let mut rows = Rows::new();
    for (line, host, seen) in [
        (
            "GET http://other/x?y HTTP/1.1",
            "Host: site\r\n",
            Some(("/x?y", "other")),
        ),
        (
            "GET http://other HTTP/1.1",
            "Host: site\r\n",
            Some(("/", "other")),
        ),
        (
            "GET HTTP://other:81/ HTTP/1.1",
            "Host: site\r\n",
            Some(("/", "other:81")),
        ),
        (
            "GET //other/x HTTP/1.1",
            "Host: site\r\n",
            Some(("/other/x", "site")),
        ),
        (
            "GET /a%2f..%2fb HTTP/1.1",
            "Host: site\r\n",
            Some(("/a%2f..%2fb", "site")),
        ),
        ("GET /a%00b HTTP/1.1", "Host: site\r\n", None),
        (
            "GET /a%0d%0aX:y HTTP/1.1",
            "Host: site\r\n",
            Some(("/a%0d%0ax:y", "site")),
        ),
        ("GET /../../x HTTP/1.1", "Host: site\r\n", None),
        ("GET /%2e%2e/x HTTP/1.1", "Host: site\r\n", None),
        ("GET /x HTTP/1.0", "", Some(("/x", ""))),
        ("GET /x HTTP/1.1", "", None),
        ("GET /x HTTP/1.1", "Host: a\r\nHost: b\r\n", None),
        ("GET /x HTTP/1.1", "Host: a b\r\n", None),
        ("GET /x HTTP/1.1", "Host: a\"b\r\n", None),
        ("GET /x#y HTTP/1.1", "Host: site\r\n", None),
        ("CONNECT site:443 HTTP/1.1", "Host: site:443\r\n", None),
        ("GET x HTTP/1.1", "Host: site\r\n", None),
        (
            &format!("GET {long} HTTP/1.1"),
            "Host: site\r\n",
            Some((&long, "site")),
        ),
    ] {
        let mut client = server.connect();
        client.send(format!("{line}\r\n{host}Connection: close\r\n\r\n"));
        let answer = client.response();
        let heads = witness.heads();
        let right = match seen {
            None => heads.is_empty() && (400..500).contains(&answer.status),
            Some((target, host)) => {
                heads.len() == 1
                    && heads[0].starts_with(&format!("get {target} http/1.1\r\n"))
                    && heads[0].contains(&format!("\r\nhost: {host}\r\n"))
            }
        };
        rows.check(&format!("{line:.60} {host}"), right, || {
            format!("{} {heads:.300?}", answer.status)
        });
    }
    rows.done();
}

#[test]
fn a_client_that_waits_for_100_hears_it_or_the_answer_c69() {
    // One reads the content, one answers without.
    for reads in [true, false] {
        let fake = Fake::new(move |mut stream, _| {
            let Some(head) = read_head(&mut stream) else {
                return;
            };
            assert!(!head.contains("expect"), "{head}");
            let answer = if reads {
                let _ = read_content(&head, &mut stream);
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            } else {
                "HTTP/1.1 413 Too much\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
            };
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let server = Server::new()
            .args(["--route", &format!("/=http:{}", fake.address())])
            .start();
        let fds = server.fds_at_rest();
        let mut client = server.connect();
        client.send(
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        let mut head = client.head().expect("an answer");
        if head.status == 100 {
            client.send("hello");
            head = client.head().expect("an answer");
        }
        let (status, body) = if reads { (200, b"ok") } else { (413, b"no") };
        assert_eq!(head.status, status);
        assert_eq!(client.take(2), (body.to_vec(), true));
        drop(client);
        settles_to(&server, fds);
    }
}

#[test]
fn an_early_answer_arrives_although_the_content_does_not_c68() {
    // More than once, as it depends on who is first.
    for protocol in ["fastcgi", "scgi", "uwsgi", "http"].repeat(2) {
        for (leaves, announced) in [(true, true), (false, true), (true, false), (false, false)] {
            let answer: Vec<u8> = match protocol {
                "http" => b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno".into(),
                "fastcgi" => [stdout(b"Status: 413 Too much\n\nno"), end(0, 0)].concat(),
                _ => b"Status: 413 Too much\nContent-Length: 2\n\nno".into(),
            };
            let fake = Fake::new(move |mut stream, _| {
                // Some of the head, and nothing of the content.
                let _ = stream.read(&mut [0; 100]);
                let _ = stream.write_all(&answer);
                if !leaves {
                    // Until the server closes it.
                    wait_for_end(&stream);
                }
            });
            let server = Server::new()
                .args(["--route", &format!("/={protocol}:{}", fake.address())])
                .start();
            let fds = server.fds_at_rest();
            let mut client = server.connect();
            if announced {
                client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n");
                client.send_beside(vec![b'x'; 50_000_000]);
            } else {
                client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
                let chunk = [&b"10000\r\n"[..], &vec![b'x'; 0x10000], b"\r\n"].concat();
                let all = [chunk.repeat(200), b"0\r\n\r\n".to_vec()].concat();
                client.send_beside(all);
            }
            let answer = client.response();
            let what = format!("{protocol}, leaves: {leaves}, announced: {announced}");
            assert_eq!((answer.status, &answer.text()[..]), (413, "no"), "{what}");
            drop(client);
            settles_to(&server, fds);
        }
    }
}

#[test]
fn content_of_one_request_is_read_as_slowly_as_the_application_likes() {
    // It is slow to read: the server's memory doesn't hold what it has not read.
    for protocol in ["fastcgi", "scgi", "uwsgi", "http"] {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let fake = Fake::new(move |mut stream, _| {
            let _ = wait.lock().expect("nobody panics").recv();
            let mut seen = 0;
            let mut some = vec![0; 100_000];
            // Its end comes as a silence: the framing of each is another.
            while seen < 50_000_000 {
                match stream.read(&mut some) {
                    Ok(count @ 1..) => seen += count,
                    _ => return,
                }
            }
            let answer: Vec<u8> = match protocol {
                "http" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(),
                "fastcgi" => [stdout(b"Content-Type: a/b\n\nok"), end(0, 0)].concat(),
                _ => b"Content-Type: a/b\nContent-Length: 2\n\nok".into(),
            };
            let _ = stream.write_all(&answer);
            wait_for_end(&stream);
        });
        let server = Server::new()
            .args(["--route", &format!("/={protocol}:{}", fake.address())])
            .start();
        let before = server.memory("VmRSS");
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n");
        client.send_beside(vec![b'x'; 50_000_000]);
        assert!(eventually(|| fake.accepted() == 1));
        // It would be in memory by now, or soon.
        let mut seen = (0, 0);
        eventually(|| {
            let now = server.memory("VmRSS");
            seen = if now == seen.0 {
                (now, seen.1 + 1)
            } else {
                (now, 0)
            };
            seen.1 > 20
        });
        let grown = server.memory("VmHWM").saturating_sub(before);
        assert!(grown < 20_000_000, "{protocol}: {grown} bytes more");
        go.send(()).expect("it waits");
        let answer = client.response();
        assert_eq!(
            (answer.status, &answer.text()[..]),
            (200, "ok"),
            "{protocol}"
        );
    }
}

#[test]
fn what_refuses_an_upgrade_answers_as_ever() {
    if tiny_http_cannot("let a connection leave HTTP") {
        return;
    }
    let fake = Fake::new(|mut stream, number| {
        let mut answers = [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain",
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\
             Content-Length: 5\r\n\r\nother",
            "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nnever\r\n0\r\n\r\n",
        ]
        .iter()
        .cycle()
        .skip(number);
        while let Some(head) = read_head(&mut stream) {
            let asked = head.contains("\r\nupgrade: websocket\r\n");
            let answer = answers.next().expect("it goes round");
            if !asked || stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=http:{}", fake.address())])
        .start();
    let fds = server.fds_at_rest();
    let accepted = fake.accepted();
    let mut client = server.connect();
    let mut seen = Vec::new();
    for _ in 0..6 {
        client.send(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        );
        let answer = client.response();
        assert!(answer.complete);
        seen.push((answer.status, answer.text()));
    }
    seen.sort();
    seen.dedup();
    let all = [(200, "plain"), (403, "never"), (426, "other")];
    assert_eq!(seen, all.map(|(status, text)| (status, text.to_owned())));
    assert!(fake.accepted() > accepted);
    drop(client);
    settles_to(&server, fds);
}
