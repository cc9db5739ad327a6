//! `FastCGI` responders: C146 to C163, C169 to C172.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use super::peers::{
    ABORT_REQUEST, Fake, end, fcgiwrap, perl_responder, php, read_record, read_request, stderr,
    stdout,
};
use crate::samples::samples;
use crate::support::{Rows, Server, eventually, needs, needs_perl_module};

const PAGE: &str = r#"<?php
header("Content-Type: text/plain");
foreach (["SCRIPT_NAME", "SCRIPT_FILENAME", "PATH_INFO", "REQUEST_URI"] as $name) {
    echo $name, "=", $_SERVER[$name] ?? "-", "\n";
}
echo "length=", strlen(file_get_contents("php://input")), "\n";
"#;

#[test]
fn php_runs_files_with_its_ending_c169_c170() {
    if !needs("php-cgi") {
        return;
    }
    let php = php();
    let server = Server::new()
        .file("blog/page.php", PAGE)
        .file("blog/index.php", "<?php echo 'index of ', __DIR__;")
        .file("blog/page.php~", "<?php secret();")
        .file("note.txt", "text\n")
        .args(["--route", &format!("*.php=fastcgi:{}", php.address())])
        .start();
    let file = server.root().join("blog/page.php").display().to_string();
    let answer = server.request("POST", "/blog/page.php/a%20b?q", &[], &vec![7; 200_000]);
    assert_eq!(
        (answer.status, answer.text()),
        (
            200,
            format!(
                "SCRIPT_NAME=/blog/page.php\nSCRIPT_FILENAME={file}\nPATH_INFO=/a b\n\
                 REQUEST_URI=/blog/page.php/a%20b?q\nlength=200000\n"
            )
        )
    );
    let mut rows = Rows::new();
    for (path, status, part) in [
        ("/blog/", 200, "index of "),
        ("/note.txt", 200, "text\n"),
        // These never reach php, which would say `No input file specified.`
        ("/none.php", 404, "404 Not Found\n"),
        ("/blog/none.php/x", 404, "404 Not Found\n"),
        ("/note.txt/x.php", 404, "404 Not Found\n"),
        ("/blog/page.php~", 404, "404 Not Found\n"),
    ] {
        let answer = server.get(path);
        let as_expected = answer.status == status && answer.text().starts_with(part);
        rows.check(path, as_expected, || answer.to_string());
    }
    rows.done();
}

#[test]
fn fcgiwrap_runs_the_scripts_of_a_folder() {
    if !needs("fcgiwrap") {
        return;
    }
    let wrap = fcgiwrap();
    let server = Server::new()
        .fixture("env")
        .fixture("echo")
        .script(
            "cgi-bin/plain",
            "#!/bin/sh\necho 'Status: 202'; echo; echo \"$PATH_INFO\"\n",
        )
        .args(["--no-cgi", "--route"])
        .arg(format!("/cgi-bin/*=fastcgi:{}", wrap.address()))
        .start();
    let answer = server.get("/cgi-bin/plain/x/y");
    assert_eq!((answer.status, &answer.text()[..]), (202, "/x/y\n"));
    let answer = server.request("POST", "/cgi-bin/echo", &[], &vec![b'z'; 300_000]);
    assert_eq!(answer.status, 200);
    assert!(answer.complete);
    assert_eq!(server.get("/cgi-bin/none").status, 404);
    // The source of a script is no file for anybody.
    fs::remove_file(server.root().join("cgi-bin/env")).expect("it is the test's");
    assert_eq!(server.get("/cgi-bin/env").status, 404);
}

#[test]
fn fcgiwrap_runs_the_samples() {
    if !needs("fcgiwrap") || !needs("python3") {
        return;
    }
    let wrap = fcgiwrap();
    let server = samples()
        .args(["--no-cgi", "--route"])
        .arg(format!("/cgi-bin/*=fastcgi:{}", wrap.address()))
        .start();
    let text = server.get("/cgi-bin/env.sh/some/path?and=query").text();
    for line in [
        "GATEWAY_INTERFACE=CGI/1.1",
        "PATH_INFO=/some/path",
        "QUERY_STRING=and=query",
        "SCRIPT_NAME=/cgi-bin/env.sh",
    ] {
        assert!(text.lines().any(|said| said == line), "{line}\n{text}");
    }
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let text = server.request(
        "POST",
        "/cgi-bin/form.py",
        &form,
        b"name=Ada&text=caf%C3%A9",
    );
    assert!(text.text().contains("<th>text<td>caf\u{e9}"), "{text}");
    let picture = server.get("/cgi-bin/picture.py");
    assert!(
        picture.status == 200 && picture.body.starts_with(b"\x89PNG"),
        "{picture}"
    );
    for (to, status) in [("absolute", 302), ("relative", 302), ("local", 200)] {
        let redirect = server.get(format!("/cgi-bin/redirect.sh?to={to}"));
        assert_eq!(redirect.status, status, "{redirect}");
    }
    let upload = [("Content-Type", "multipart/form-data; boundary=b")];
    let content = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n\
        hello\r\n--b--\r\n";
    let text = server.request("POST", "/cgi-bin/upload.py", &upload, content.as_bytes());
    assert!(
        text.text().contains("a.txt") && text.status == 200,
        "{text}"
    );
    assert_eq!(server.get("/cgi-bin/none.py").status, 404);
}

#[test]
fn a_program_with_fcgi_pm_answers_many_requests_c146_to_c153() {
    if !needs_perl_module("FCGI") {
        return;
    }
    let perl = perl_responder();
    let server = Server::new()
        .args(["--route", &format!("/app/=fastcgi:{}", perl.address())])
        .start();
    let first = server.get("/app/x?a=b").text();
    let (count, rest) = first.split_once(' ').expect("it counts");
    let (pid, rest) = rest.split_once(' ').expect("and says its number");
    assert_eq!((count, rest), ("1", "/app|/x|a=b\n"));
    let second = server.get("/app/").text();
    assert_eq!(second, format!("2 {pid} /app|/|\n"));

    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let echoed = server.request("POST", "/app/echo", &[], &body);
    assert!(echoed.complete && echoed.body == body);

    // A parameter longer than 127 bytes, and one near the limit of a head.
    for length in [128, 60_000] {
        let long = "x".repeat(length);
        let answer = server.request("GET", "/app/length", &[("X-Long", &long)], b"");
        assert_eq!(answer.text(), format!("{length}\n"));
    }

    let answer = server.get("/app/status");
    assert_eq!((answer.status, &answer.reason[..]), (418, "A teapot"));
    let answer = server.get("/app/elsewhere");
    assert!(answer.text().ends_with("/app|/there|\n"), "{answer}");
    assert_eq!(server.get("/app/grumble").text(), "ok\n");
    for line in ["the first line", "and a second"] {
        let log = server.wait_for_log(line);
        let whole = format!("fastcgi 'app/grumble'[{}]: {line}\n", perl.address());
        assert!(log.contains(&whole), "{log}");
    }
}

#[test]
fn a_chunked_body_gets_a_length_c65() {
    let fake = Fake::new(|mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            let has = request.has("CONTENT_LENGTH", "200000");
            let answer = format!("Content-Type: a/b\n\n{has} {}", request.stdin.len());
            let answer = [stdout(answer.as_bytes()), end(0, 0)].concat();
            stream.write_all(&answer).expect("the server reads");
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..20 {
        client
            .send("2710\r\n")
            .send(vec![b'x'; 10_000])
            .send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().text(), "true 200000");
}

#[test]
fn connections_are_kept_and_used_again_c158() {
    let fake = Fake::new(|mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            assert_eq!(request.flags, 1);
            let answer = [stdout(b"Content-Type: a/b\n\nhello"), end(0, 0)].concat();
            stream.write_all(&answer).expect("the server reads");
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let mut client = server.connect();
    for _ in 0..50 {
        client.send("GET /x HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().text(), "hello");
    }
    assert_eq!(fake.accepted(), 1);
}

#[test]
fn with_keep_0_no_connection_is_kept_c158() {
    let fake = Fake::new(|mut stream, _| {
        let request = read_request(&mut stream).expect("a request");
        assert_eq!(request.flags, 0);
        let answer = [stdout(b"Content-Type: a/b\n\nhello"), end(0, 0)].concat();
        stream.write_all(&answer).expect("the server reads");
        // Open until the server closes it.
        assert!(read_record(&mut stream).is_none());
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{},keep=0", fake.address())])
        .start();
    for _ in 0..3 {
        assert_eq!(server.get("/").text(), "hello");
    }
    assert_eq!(fake.accepted(), 3);
}

#[test]
fn an_idle_connection_that_was_closed_costs_no_request_c159() {
    // Each connection serves one request and is then closed, after it was kept.
    let fake = Fake::new(|mut stream, _| {
        let _ = read_request(&mut stream);
        let answer = [stdout(b"Content-Type: a/b\n\nhello"), end(0, 0)].concat();
        stream.write_all(&answer).expect("the server reads");
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    for _ in 0..30 {
        let answer = server.get("/");
        assert_eq!((answer.status, &answer.text()[..]), (200, "hello"));
    }
}

#[test]
fn a_worker_that_waits_is_not_kept_from_others_c160() {
    // One process: it accepts the next connection when this one is closed.
    let turn = Arc::new(Mutex::new(()));
    let fake = Fake::new(move |mut stream, _| {
        let _alone = turn.lock();
        while read_request(&mut stream).is_some() {
            let answer = [stdout(b"Content-Type: a/b\n\nhello"), end(0, 0)].concat();
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let start = Barrier::new(6);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..5 {
                    assert_eq!(server.get("/").text(), "hello");
                }
            });
        }
    });
}

#[test]
fn routes_to_one_application_share_what_is_kept_c160() {
    let fake = Fake::responder("Content-Type: a/b\n\nhello");
    let route = |pattern: &str, more: &str| format!("{pattern}=fastcgi:{}{more}", fake.address());
    let server = Server::new()
        .file("x.php", "")
        .args(["--route", &route("/a/", "")])
        .args(["--route", &route("/b/", ",script=/srv/b.php")])
        .arg(format!("--php={}", fake.address()))
        .start();
    for _ in 0..10 {
        for path in ["/a/", "/b/", "/x.php"] {
            assert_eq!(server.get(path).text(), "hello");
        }
    }
    assert_eq!(fake.accepted(), 1);
}

#[test]
fn a_client_that_leaves_aborts_its_request_c161() {
    let (seen, aborted) = std::sync::mpsc::channel();
    let seen = Mutex::new(seen);
    let fake = Fake::new(move |mut stream, _| {
        let Some(_) = read_request(&mut stream) else {
            return;
        };
        let first = read_record(&mut stream).map(|(kind, _)| kind);
        let second = read_record(&mut stream).map(|(kind, _)| kind);
        let _ = seen.lock().expect("nobody panics").send((first, second));
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(eventually(|| fake.accepted() == 1));
    client.reset();
    let seen = aborted.recv_timeout(crate::support::DEADLINE);
    assert_eq!(seen, Ok((Some(ABORT_REQUEST), None)));
}

#[test]
fn output_streams_and_a_slow_client_holds_it_back() {
    const PIECES: usize = 400;
    let written = Arc::new(Mutex::new(0));
    let progress = Arc::clone(&written);
    let fake = Fake::new(move |mut stream, _| {
        let _ = read_request(&mut stream);
        let piece = stdout(&vec![b'x'; 50_000]);
        let mut send = |bytes: &[u8]| stream.write_all(bytes).expect("the server reads");
        send(&stdout(b"Content-Type: a/b\n\n"));
        for _ in 0..PIECES {
            send(&piece);
            *progress.lock().expect("nobody panics") += 1;
        }
        send(&end(0, 0));
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = client.head().expect("the head comes before the end");
    assert_eq!(head.status, 200);
    let written = || *written.lock().expect("nobody panics");
    let mut before = written();
    let stands_still = || {
        thread::sleep(std::time::Duration::from_millis(200));
        let now = written();
        std::mem::replace(&mut before, now) == now
    };
    assert!(eventually(stands_still));
    assert!(written() < PIECES, "all of it is in memory");
    assert!(server.memory("VmRSS") < 100 << 20);
    let (body, complete) = client.chunked();
    assert!(complete);
    assert_eq!(body.len(), PIECES * 50_000);
}

#[test]
fn content_streams_while_the_answer_does() {
    // It answers each piece as it comes.
    let fake = Fake::new(|mut stream, _| {
        let mut pieces = 0;
        while let Some((kind, content)) = read_record(&mut stream) {
            if kind != 5 {
                continue;
            }
            if content.is_empty() {
                break;
            }
            let text = if pieces == 0 {
                "Content-Type: a/b\n\n"
            } else {
                ""
            };
            pieces += 1;
            let text = format!("{text}{}.", content.len());
            stream
                .write_all(&stdout(text.as_bytes()))
                .expect("the server reads");
        }
        stream.write_all(&end(0, 0)).expect("the server reads");
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2007\r\n\r\nabc");
    assert_eq!(client.head().expect("an answer").status, 200);
    let mut seen = Vec::new();
    while !seen.ends_with(b"3.\r\n") {
        seen.extend(client.some());
    }
    client.send("defg");
    while !seen.ends_with(b"4.\r\n") {
        seen.extend(client.some());
    }
    client.send([b'x'; 2000]);
    let (rest, complete) = client.chunked();
    assert!(complete);
    let pieces = String::from_utf8(rest).expect("numbers");
    let lengths = pieces.split_terminator('.').map(str::parse::<usize>);
    assert_eq!(lengths.map(Result::unwrap).sum::<usize>(), 2000);
}

#[test]
fn standard_error_is_logged_wherever_it_comes_c153() {
    let fake = Fake::new(|mut stream: TcpStream, _| {
        let _ = read_request(&mut stream);
        let answer = [
            stderr(b"before\nsplit "),
            stdout(b"Content-Type: a/b\n"),
            stderr(b"in two\n"),
            stdout(b"\nhello"),
            stderr(b"\x1b[31mafter"),
            end(9, 0),
        ];
        stream
            .write_all(&answer.concat())
            .expect("the server reads");
    });
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{}", fake.address())])
        .start();
    assert_eq!(server.get("/a").text(), "hello");
    let log = server.wait_for_log("after");
    let address = fake.address();
    for line in ["before", "split in two", "\\u{1b}[31mafter"] {
        assert!(
            log.contains(&format!("fastcgi 'a'[{address}]: {line}\n")),
            "{log}"
        );
    }
    server.wait_for_log(&format!("fastcgi 'a': {address}: exit status 9\n"));
}

#[test]
fn paths_may_be_others_for_the_application_c172() {
    let fake = Fake::new(|mut stream, _| {
        let request = read_request(&mut stream).expect("a request");
        let right = request.has("SCRIPT_FILENAME", "/srv/www/a/x.php")
            && request.has("DOCUMENT_ROOT", "/srv/www")
            && request.has("PATH_TRANSLATED", "/srv/www/info");
        let text = format!("Content-Type: a/b\n\n{right}");
        let answer = [stdout(text.as_bytes()), end(0, 0)].concat();
        stream.write_all(&answer).expect("the server reads");
    });
    let server = Server::new()
        .file("a/x.php", "")
        .args([
            "--route",
            &format!("*.php=fastcgi:{},root=/srv/www", fake.address()),
        ])
        .start();
    assert_eq!(server.get("/a/x.php/info").text(), "true");
}

#[test]
fn a_front_controller_is_one_script_for_a_mount() {
    let fake = Fake::new(|mut stream, _| {
        let request = read_request(&mut stream).expect("a request");
        let right = request.has("SCRIPT_FILENAME", "/srv/index.php")
            && request.has("SCRIPT_NAME", "/app/index.php")
            && request.has("PATH_INFO", "/a/b");
        let text = format!("Content-Type: a/b\n\n{right}");
        let answer = [stdout(text.as_bytes()), end(0, 0)].concat();
        stream.write_all(&answer).expect("the server reads");
    });
    let server = Server::new()
        .args([
            "--route",
            &format!("/app/=fastcgi:{},script=/srv/index.php", fake.address()),
        ])
        .start();
    assert_eq!(server.get("/app/a/b").text(), "true");
}
