//! Clients that mean no good, or are broken, or are many. Whatever they do,
//! others are served meanwhile, and nothing is left of it afterwards: no
//! descriptor, thread, process or memory.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Client, DEADLINE, Rows, Server, Setup, eventually, tiny_http_cannot};

/// What an allocator may keep after much was asked of it.
const MARGIN: usize = 24 << 20;

const GET: &[u8] = b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n";
const GET_LAST: &[u8] = b"GET /hello.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Writes for ever.
const ENDLESS: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec cat /dev/zero\n";
/// Counts its content, but looks at it late.
const LATE: &str = "#!/bin/sh\nsleep 5\nlength=$(wc -c)\n\
                    printf 'Content-Type: text/plain\\n\\n%s\\n' $length\n";
/// Counts its content.
const COUNT: &str =
    "#!/bin/sh\nlength=$(wc -c)\nprintf 'Content-Type: text/plain\\n\\n%s\\n' $length\n";

fn setup() -> Setup {
    Server::new()
        .tree("site")
        .fixture("echo")
        .fixture("hang")
        .script("cgi-bin/endless", ENDLESS)
        .script("cgi-bin/late", LATE)
        .script("cgi-bin/count", COUNT)
}

fn is_served(server: &Server) {
    assert_eq!(server.get("/hello.txt").text(), "hello\n");
}

/// A connection without a client around it: of these there can be many.
fn raw(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("the server listens");
    stream.set_read_timeout(Some(3 * DEADLINE)).unwrap();
    stream.set_write_timeout(Some(3 * DEADLINE)).unwrap();
    stream
}

/// All that comes until the end.
fn all_of(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("after {} bytes: {error}", bytes.len()),
    }
    bytes
}

/// Whether something can be read, or the end has come.
fn has_news(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let news = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    news.is_ok() || news.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
}

/// Of the answer that starts with these bytes.
fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(line.get(2..5)?).ok()?.parse().ok()
}

/// `clients` threads; how each of them ended.
fn all_at_once<T: Send>(clients: usize, client: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let client = &client;
        let running: Vec<_> = (0..clients)
            .map(|n| scope.spawn(move || client(n)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("the client comes to its end"))
            .collect()
    })
}

/// A byte now and then, until the server has something to say.
fn trickle(stream: &mut TcpStream, mut byte: impl FnMut() -> u8) {
    let end = Instant::now() + 3 * DEADLINE;
    while !has_news(stream) {
        assert!(Instant::now() < end, "the server bears it");
        if stream.write_all(&[byte()]).is_err() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn slow_heads_are_cut_off_and_hold_up_nobody() {
    if tiny_http_cannot("bound the time of a head") {
        return;
    }
    let server = setup().args(["--head-timeout", "2"]).start();
    let before = server.footprint();
    let statuses = all_at_once(50, |n| {
        if n == 0 {
            is_served(&server);
            return Some(408);
        }
        let mut stream = raw(&server);
        let mut head = b"GET /hello.txt HTTP/1.1\r\nX: "
            .iter()
            .chain([&b'x'].into_iter().cycle());
        trickle(&mut stream, || *head.next().expect("it has no end"));
        status_of(&all_of(&stream))
    });
    assert_eq!(statuses, [Some(408); 50]);
    server.returns_to(before, MARGIN);
}

#[test]
fn content_slower_than_the_least_rate_is_cut_off_c72() {
    let server = setup()
        .args(["--body-timeout", "2", "--min-rate", "1000"])
        .start();
    let before = server.footprint();
    let heads = [
        "POST /cgi-bin/count HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
        "POST /cgi-bin/count HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
    ];
    let statuses = all_at_once(heads.len(), |n| {
        let mut stream = raw(&server);
        stream.write_all(heads[n].as_bytes()).unwrap();
        trickle(&mut stream, || b'x');
        status_of(&all_of(&stream))
    });
    assert_eq!(statuses, [Some(408); 2]);
    is_served(&server);
    server.returns_to(before, MARGIN);
}

#[test]
fn content_above_the_least_rate_may_take_longer_than_any_pause_c72() {
    let server = setup()
        .args(["--body-timeout", "4", "--min-rate", "1000"])
        .start();
    let mut client = server.connect();
    client.send("POST /cgi-bin/count HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n");
    for _ in 0..60 {
        client.send([b'x'; 1000]);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(client.response().text(), "60000\n");
}

#[test]
fn a_script_that_reads_late_costs_its_client_nothing_c72() {
    const LENGTH: usize = 4 << 20;
    let server = setup()
        .args(["--body-timeout", "3", "--min-rate", "1M"])
        .start();
    let mut client = server.connect();
    client.send(format!(
        "POST /cgi-bin/late HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n"
    ));
    client.send_beside(vec![b'x'; LENGTH]);
    assert_eq!(client.response().text(), format!("{LENGTH}\n"));
}

#[test]
fn a_reader_below_the_least_rate_is_cut_off_and_its_script_ended() {
    let server = setup()
        .args(["--write-timeout", "2", "--min-rate", "10000"])
        .file("large.bin", vec![b'x'; 32 << 20])
        .start();
    let before = server.footprint();
    let mut clients: Vec<TcpStream> = Vec::new();
    for target in [
        "/cgi-bin/endless",
        "/large.bin",
        "/cgi-bin/endless",
        "/large.bin",
    ] {
        let mut stream = raw(&server);
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        clients.push(stream);
    }
    assert!(eventually(|| server.scripts().len() == 2));
    // Half of them read a little, half of them nothing.
    let end = Instant::now() + 3 * DEADLINE;
    while !server.scripts().is_empty() || server.connections() > 0 {
        assert!(Instant::now() < end, "the server bears it");
        for client in clients.iter_mut().take(2) {
            client.set_nonblocking(true).unwrap();
            // Nothing may be there, or the end.
            let _ = client.read(&mut [0; 16]);
        }
        is_served(&server);
        thread::sleep(Duration::from_millis(50));
    }
    let most = server.memory("VmHWM");
    assert!(
        most < 100 << 20,
        "{most} bytes for clients that do not read"
    );
    drop(clients);
    server.returns_to(before, MARGIN);
}

#[test]
fn a_reader_above_the_least_rate_gets_all_however_long_it_takes() {
    const LENGTH: usize = 6 << 20;
    let text = format!(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nexec head -c {LENGTH} /dev/zero\n"
    );
    let server = setup()
        .args(["--write-timeout", "4", "--min-rate", "1000"])
        .file("large.bin", vec![0; LENGTH])
        .script("cgi-bin/large", text)
        .start();
    let lengths = all_at_once(2, |n| {
        let mut stream = raw(&server);
        set_socket_recv_buffer_size(&stream, 64 << 10).unwrap();
        let target = ["/large.bin", "/cgi-bin/large"][n];
        write!(stream, "GET {target} HTTP/1.0\r\n\r\n").unwrap();
        let mut slowly = 0;
        // Slower than a buffer of the server gets free in the time of a pause.
        for _ in 0..80 {
            let mut bite = [0; 10_000];
            slowly += stream.read(&mut bite).expect("it goes on");
            thread::sleep(Duration::from_millis(100));
        }
        slowly + all_of(&stream).len()
    });
    for length in lengths {
        assert!(length > LENGTH, "{length}");
    }
}

#[test]
fn a_head_without_end_costs_no_memory() {
    if tiny_http_cannot("bound a head") {
        return;
    }
    let server = setup().start();
    let before = server.footprint();
    let statuses = all_at_once(20, |n| {
        let mut stream = raw(&server);
        let start: &[u8] = [&b"GET /"[..], b"GET / HTTP/1.1\r\nX: "][n % 2];
        let block = vec![b'x'; 1 << 20];
        let mut sent = stream.write_all(start);
        for _ in 0..64 {
            sent = sent.and_then(|()| stream.write_all(&block));
        }
        // What comes after the limit may be answered with a reset.
        let answer = all_of(&stream);
        answer.is_empty() || matches!(status_of(&answer), Some(414 | 431))
    });
    assert_eq!(statuses, [true; 20]);
    let most = server.memory("VmHWM");
    assert!(most < 100 << 20, "{most} bytes for heads without end");
    is_served(&server);
    server.returns_to(before, MARGIN);
}

/// For tests that hold many connections.
fn raise_descriptors() -> bool {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("the hard limit is allowed");
    maximum.is_none_or(|most| most >= 8192)
}

#[test]
fn two_thousand_idle_connections_hold_up_nobody() {
    if tiny_http_cannot("hold so many connections") || !raise_descriptors() {
        return;
    }
    let server = setup().args(["--head-timeout", "0"]).start();
    let before = server.footprint();
    let mut clients: Vec<TcpStream> = (0..2000).map(|_| raw(&server)).collect();
    // Half of them have never said anything.
    let mut answer = [0; 4096];
    for client in clients.iter_mut().step_by(2) {
        client.write_all(GET).unwrap();
        let length = client.read(&mut answer).expect("it is answered");
        assert_eq!(status_of(&answer[..length]), Some(200));
    }
    for _ in 0..50 {
        is_served(&server);
        assert_eq!(server.get("/cgi-bin/echo").status, 200);
    }
    // All of them are still there.
    for client in clients.iter_mut().step_by(100) {
        client.write_all(GET_LAST).unwrap();
        assert_eq!(status_of(&all_of(client)), Some(200));
    }
    drop(clients);
    server.returns_to(before, MARGIN);
}

#[test]
fn ten_thousand_short_connections_leave_nothing_behind() {
    const EACH: usize = 2500;
    let server = setup().args(["--log", "off"]).start();
    let before = server.footprint();
    let answered = all_at_once(4, |_| {
        let one = |_: &usize| {
            let mut stream = raw(&server);
            stream.write_all(GET_LAST).unwrap();
            status_of(&all_of(&stream)) == Some(200)
        };
        (0..EACH).filter(one).count()
    });
    assert_eq!(answered, [EACH; 4]);
    server.returns_to(before, MARGIN);
}

#[test]
fn everybody_gets_an_answer_when_descriptors_run_out() {
    if tiny_http_cannot("answer all when descriptors run out") {
        return;
    }
    for limit in ["--nofile=64:64", "--nofile=40:40"] {
        let server = setup().under(["prlimit", limit]).start();
        let before = server.footprint();
        for request in [GET, GET_LAST] {
            let mut answers = all_at_once(200, |_| {
                let mut stream = raw(&server);
                stream.write_all(request).unwrap();
                let mut answer = [0; 4096];
                let length = stream.read(&mut answer).expect("an answer, or the end");
                // Kept open until all have theirs.
                (status_of(&answer[..length]), stream)
            });
            answers.retain(|(status, _)| !matches!(status, Some(200 | 503)));
            assert!(answers.is_empty(), "{limit}: {answers:?}");
        }
        is_served(&server);
        server.returns_to(before, MARGIN);
    }
}

#[test]
fn resets_at_every_stage_leave_nothing_behind() {
    let server = setup()
        .fixture("trapterm")
        .file("large.bin", vec![b'x'; 8 << 20])
        .start();
    let before = server.footprint();
    for (sent, answered) in [
        ("", false),
        ("GET /hello.t", false),
        ("GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n", false),
        ("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n", true),
        (
            "POST /cgi-bin/count HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nabc",
            false,
        ),
        (
            "POST /cgi-bin/count HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            false,
        ),
        ("GET /cgi-bin/hang HTTP/1.1\r\nHost: x\r\n\r\n", false),
        ("GET /cgi-bin/endless HTTP/1.1\r\nHost: x\r\n\r\n", true),
        ("GET /cgi-bin/trapterm HTTP/1.1\r\nHost: x\r\n\r\n", true),
    ] {
        all_at_once(6, |n| {
            let mut client: Client = server.connect();
            client.send(sent);
            if answered {
                client.some();
            }
            if n % 2 == 0 {
                client.reset();
            }
        });
        is_served(&server);
    }
    server.returns_to(before, MARGIN);
}

#[test]
fn a_flood_of_pipelined_requests_is_answered_in_full() {
    const REQUESTS: usize = 20_000;
    if tiny_http_cannot("take so many requests ahead of their answers") {
        return;
    }
    let server = setup().args(["--log", "off"]).start();
    let before = server.footprint();
    let mut stream = raw(&server);
    let mut sending = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        for _ in 1..REQUESTS {
            sending.write_all(GET).unwrap();
        }
        sending.write_all(GET_LAST).unwrap();
    });
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).unwrap();
    sender.join().unwrap();
    let whole = b"\r\n\r\nhello\n";
    let answered = answers.windows(whole.len()).filter(|w| w == whole).count();
    assert_eq!(answered, REQUESTS);
    is_served(&server);
    server.returns_to(before, MARGIN);
}

#[test]
fn a_flood_of_requests_whose_answers_nobody_reads_is_cut_off() {
    if tiny_http_cannot("take so many requests ahead of their answers") {
        return;
    }
    let server = setup()
        .args(["--write-timeout", "2", "--log", "off"])
        .start();
    let before = server.footprint();
    all_at_once(4, |_| {
        let mut stream = raw(&server);
        let block = GET.repeat(1000);
        // It ends with a reset, or with the time of a write.
        while stream.write_all(&block).is_ok() {}
    });
    let most = server.memory("VmHWM");
    assert!(most < 100 << 20, "{most} bytes for answers nobody reads");
    is_served(&server);
    server.returns_to(before, MARGIN);
}

#[test]
fn tls_on_the_plain_port_is_refused_and_said_to_be() {
    if tiny_http_cannot("answer what is no HTTP") {
        return;
    }
    let server = setup().start();
    // A ClientHello's first bytes; it would wait for an answer now.
    let mut stream = raw(&server);
    stream
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        .unwrap();
    assert_eq!(status_of(&all_of(&stream)), Some(400));
    let log = server.wait_for_log("http://, not https://");
    assert!(log.contains("client '127.0.0.1': it speaks TLS"), "{log}");
}

#[test]
fn two_hundred_requests_for_a_script_that_hangs_are_bounded() {
    if tiny_http_cannot("serve a burst of connections at once") {
        return;
    }
    let server = setup()
        .args(["--cgi-jobs", "4", "--cgi-queue", "8"])
        .start();
    let before = server.footprint();
    let clients: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = raw(&server);
            stream
                .write_all(b"GET /cgi-bin/hang HTTP/1.0\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    let refused = || clients.iter().filter(|client| has_news(client)).count();
    assert!(eventually(|| refused() == 188), "{}", refused());
    for client in clients.iter().filter(|client| has_news(client)) {
        assert_eq!(status_of(&all_of(client)), Some(503));
    }
    assert_eq!(server.scripts().len(), 4);
    is_served(&server);
    drop(clients);
    server.returns_to(before, MARGIN);
}

/// Numbers that are always the same ones from a seed (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 32).expect("32 bits fit") % most.max(1)
    }
}

const REQUESTS: &[&str] = &[
    "GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=1-3,0-0\r\nIf-Range: \"x\"\r\n\r\n",
    "HEAD / HTTP/1.0\r\nIf-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n",
    "GET http://x/%68ello.txt?a=b HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n",
    "GET /./a/../hello.txt HTTP/1.1\r\nHost: x\r\nConnection: close, x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /?download=zip HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n",
];

const TOKENS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    "%00",
    "%2e%2e/",
    "../",
    "//",
    "%",
    "\u{e4}",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/9.9",
    "Host: y\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: keep-alive\r\n",
    "ffffffffffffffff\r\n",
    "bytes=0-",
    "-1",
    "18446744073709551615",
    "/../secret.txt",
    "/.hidden",
    "/cgi-bin/echo",
];

/// A request with some things done to it.
fn mutated(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = REQUESTS[dice.below(REQUESTS.len())].as_bytes().to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(20)).min(bytes.len());
        match dice.below(6) {
            0 if at < bytes.len() => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let other = REQUESTS[dice.below(REQUESTS.len())].as_bytes();
                bytes.truncate(at);
                bytes.extend(&other[dice.below(other.len())..]);
            }
            4 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            _ => {
                let token = TOKENS[dice.below(TOKENS.len())].as_bytes();
                bytes.splice(at..at, token.iter().copied());
            }
        }
    }
    bytes
}

/// `ABUSE_SEED` and `ABUSE_REQUESTS` ask for other ones, and for more.
#[test]
fn mutated_requests_do_no_harm() {
    if tiny_http_cannot("read what is hardly HTTP") {
        return;
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("ABUSE_SEED").unwrap_or(0x5eed);
    let requests = number("ABUSE_REQUESTS").unwrap_or(20_000) / 4;
    println!("ABUSE_SEED={seed}");
    let server = setup()
        .file(".hidden", "top secret")
        .file("../secret.txt", "top secret")
        .args(["--log", "off"])
        .start();
    let before = server.footprint();
    let failed = all_at_once(4, |n| {
        let mut dice = Dice((seed + n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rows = Rows::new();
        for count in 0..requests {
            let request = mutated(&mut dice);
            let mut stream = raw(&server);
            // It may be refused before all of it is sent.
            let _ = stream.write_all(&request);
            let _ = stream.shutdown(Shutdown::Write);
            let answer = all_of(&stream);
            let status = status_of(&answer);
            let fine = match status {
                None => answer.is_empty(),
                Some(501 | 505) => true,
                Some(status) => status < 500,
            };
            let told = answer.windows(10).any(|w| w == b"top secret");
            rows.check(&request.escape_ascii().to_string(), fine && !told, || {
                answer.escape_ascii().to_string()
            });
            if count % 1000 == 0 {
                is_served(&server);
            }
        }
        rows
    });
    let mut all = Rows::new();
    for rows in failed {
        all.add(rows);
    }
    all.done();
    is_served(&server);
    server.returns_to(before, MARGIN);
}
