//! Every fixture script with every kind of client: what one sees, and that
//! nothing is left behind by any of them.

use crate::support::{Client, Response, Rows, Server, Setup, end, eventually};

/// What the answer to GET is.
#[derive(Clone, Copy)]
enum Answer {
    /// Status and how the body begins.
    Whole(u16, &'static str),
    /// It breaks off, and that shows.
    Cut(&'static str),
    /// Not from the server: an NPH script's own.
    Raw(&'static str),
}
use Answer::{Cut, Raw, Whole};

/// Script, query, answer. All fixtures but those that leave processes behind,
/// which `daemons` has, and `.hidden` and `x~`, which do not run.
const SCRIPTS: &[(&str, &str, Answer)] = &[
    ("badline", "", Whole(500, "")),
    ("barecr", "", Whole(500, "")),
    ("bighdr", "9000", Whole(200, "body\n")),
    ("blankfirst", "", Whole(500, "")),
    ("bom", "", Whole(500, "")),
    ("busy", "", Whole(200, "ran busy\n")),
    ("clbad", "", Whole(200, "body\n")),
    ("cllong", "", Whole(200, "exact")),
    ("closein", "", Whole(200, "closed stdin\n")),
    ("closeout", "", Whole(200, "done talking\n")),
    ("clshort", "", Cut("short\n")),
    ("cookies", "", Whole(200, "body\n")),
    ("crashmid", "", Cut("one line\n")),
    ("crashpre", "", Whole(500, "")),
    ("crlf", "", Whole(500, "")),
    ("dup", "", Whole(500, "")),
    ("early", "", Whole(200, "the answer\n")),
    ("echo", "", Whole(200, "")),
    ("empty", "", Whole(500, "")),
    ("env", "", Whole(200, "")),
    ("errflood", "", Whole(200, "after the flood\n")),
    ("exit1", "", Whole(200, "good answer\n")),
    ("fold", "", Whole(500, "")),
    ("forkbomb-lite", "", Cut("")),
    ("halfhdr", "", Whole(504, "")),
    ("hang", "", Whole(504, "")),
    ("hop", "", Whole(200, "body\n")),
    ("httpline", "", Whole(202, "body\n")),
    ("ignterm", "", Cut("")),
    ("loc", "/cgi-bin/noread", Whole(200, "not read\n")),
    ("locdoc", "/there", Whole(303, "<p>see there\n")),
    ("locempty", "", Whole(200, "body\n")),
    ("locplus", "/there", Whole(302, "")),
    ("loop", "", Whole(500, "")),
    ("manyhdr", "100", Whole(200, "body\n")),
    ("noblank", "", Whole(500, "")),
    ("nohdr", "", Whole(500, "")),
    ("nointerp", "", Whole(500, "")),
    ("nonexec", "", Whole(403, "")),
    ("noread", "", Whole(200, "not read\n")),
    ("noshebang", "", Whole(500, "")),
    ("nph-x", "", Raw("body\n")),
    ("nul", "", Whole(500, "")),
    ("outfirst", "", Whole(200, "xxxx")),
    ("slow", "", Whole(200, "slow\n")),
    ("sp ace", "", Whole(200, "")),
    ("spacecolon", "", Whole(500, "")),
    ("status", "201+Made", Whole(201, "body\n")),
    ("stream", "", Whole(200, "line 1\nline 2\nline 3\n")),
    (
        "sub/index",
        "",
        Whole(200, "ran index for /cgi-bin/sub/index\n"),
    ),
    ("sub/x", "", Whole(200, "ran /cgi-bin/sub/x\n")),
    ("te", "", Whole(200, "hello world")),
    ("trapterm", "quiet", Cut("")),
];

fn setup() -> Setup {
    let setup = Server::new().args(["--cgi-timeout", "1.5", "--cgi-jobs", "100"]);
    SCRIPTS
        .iter()
        .fold(setup, |setup, (name, _, _)| setup.fixture(name))
}

/// A request-line's target.
fn target(name: &str, query: &str) -> String {
    let mark = if query.is_empty() { "" } else { "?" };
    format!("/cgi-bin/{}{mark}{query}", name.replace(' ', "%20"))
}

fn request(server: &Server, method: &str, n: usize, rest: &str) -> Vec<u8> {
    let (name, query, _) = SCRIPTS[n];
    server.wire(format!("{method} {} {rest}", target(name, query)).as_bytes())
}

const HTTP_1_1: &str = "HTTP/1.1\nHost: {host}";

fn holds(answer: Answer, response: &Response) -> bool {
    match answer {
        Whole(status, body) => {
            response.status == status && response.complete && response.text().starts_with(body)
        }
        Cut(body) => {
            response.status == 200 && !response.complete && response.text().starts_with(body)
        }
        Raw(body) => response.status == 202 && response.complete && response.text() == body,
    }
}

/// Each script in a connection of its own, all of them at the same time; then
/// the server is as it was before.
fn each(client: impl Fn(&Server, usize, &mut Rows) + Sync) {
    let server = setup().start();
    let before = server.fds_at_rest();
    let mut all = Rows::new();
    let rows: Vec<Rows> = std::thread::scope(|scope| {
        let (server, client) = (&server, &client);
        let running: Vec<_> = (0..SCRIPTS.len())
            .map(|n| {
                scope.spawn(move || {
                    let mut rows = Rows::new();
                    client(server, n, &mut rows);
                    rows
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("the client of a script is done"))
            .collect()
    });
    for rows in rows {
        all.add(rows);
    }
    all.done();
    // Whatever these clients did, others are served.
    for _ in SCRIPTS {
        assert_eq!(server.get("/").status, 200);
    }
    server.settles_to(before);
}

fn check(rows: &mut Rows, n: usize, response: Option<&Response>) {
    let (name, _, answer) = SCRIPTS[n];
    let held = response.is_some_and(|response| holds(answer, response));
    rows.check(name, held, || {
        response.map_or("no answer".to_owned(), Response::to_string)
    });
}

#[test]
fn over_http_1_0() {
    each(|server, n, rows| {
        let mut client = server.connect();
        client.send(request(server, "GET", n, "HTTP/1.0"));
        let response = client.try_response_to("GET");
        check(rows, n, response.as_ref());
        let coded = response.is_some_and(|response| response.header("Transfer-Encoding").is_some());
        rows.check(SCRIPTS[n].0, !coded, || "chunked over HTTP/1.0".to_owned());
    });
}

#[test]
fn over_a_connection_that_goes_on() {
    each(|server, n, rows| {
        let mut client = server.connect();
        client.send(request(server, "GET", n, HTTP_1_1));
        let response = client.try_response_to("GET");
        check(rows, n, response.as_ref());
        let Some(response) = response.filter(|response| response.complete) else {
            return;
        };
        if response.header("Connection").as_deref() != Some("close") {
            client.send(server.wire(b"GET /cgi-bin/noread HTTP/1.1\nHost: {host}"));
            let next = client.try_response_to("GET");
            let held = next.is_some_and(|next| next.text() == "not read\n");
            rows.check(SCRIPTS[n].0, held, || {
                "the next answer is broken".to_owned()
            });
        }
    });
}

#[test]
fn pipelined() {
    each(|server, n, rows| {
        let mut client = server.connect();
        let mut wire = request(server, "GET", n, HTTP_1_1);
        wire.extend(server.wire(b"GET /cgi-bin/noread HTTP/1.1\nHost: {host}"));
        client.send(wire);
        let response = client.try_response_to("GET");
        check(rows, n, response.as_ref());
        let Some(response) = response.filter(|response| response.complete) else {
            return;
        };
        if response.header("Connection").as_deref() != Some("close") {
            let next = client.try_response_to("GET");
            let held = next.is_some_and(|next| next.text() == "not read\n");
            rows.check(SCRIPTS[n].0, held, || {
                "the next answer is broken".to_owned()
            });
        }
    });
}

#[test]
fn with_head() {
    each(|server, n, rows| {
        let (name, _, answer) = SCRIPTS[n];
        let mut client = server.connect();
        client.send(request(
            server,
            "HEAD",
            n,
            &format!("{HTTP_1_1}\nConnection: close"),
        ));
        let response = client.try_response_to("HEAD");
        let expected = match answer {
            Whole(status, _) => (status, ""),
            Cut(_) => (200, ""),
            // RFC 3875 §5: the script's duty, and this one does not do it.
            Raw(body) => (202, body),
        };
        let status = response.map(|response| response.status);
        rows.check(name, status == Some(expected.0), || format!("{status:?}"));
        let rest = client.rest();
        rows.check(name, rest == expected.1.as_bytes(), || {
            format!("a body: {}", rest.escape_ascii())
        });
    });
}

#[test]
fn by_a_client_that_closes_its_side() {
    each(|server, n, rows| {
        let mut client = server.connect();
        client.send(request(server, "GET", n, HTTP_1_1));
        client.half_close();
        check(rows, n, client.try_response_to("GET").as_ref());
    });
}

#[test]
fn byte_by_byte_in_both_directions() {
    each(|server, n, rows| {
        let mut client = server.connect();
        client.send_bytewise(request(server, "GET", n, HTTP_1_1));
        client.read_bytewise();
        check(rows, n, client.try_response_to("GET").as_ref());
    });
}

/// How a client leaves.
#[derive(Clone, Copy)]
enum Leaving {
    Closing,
    Reset,
}

/// The scripts are at it, or have not begun.
fn vanish(leaving: Leaving, first_byte: bool) {
    each(|server, n, _| {
        let mut client = server.connect();
        client.send(request(server, "GET", n, HTTP_1_1));
        let silent = ["hang", "halfhdr"].contains(&SCRIPTS[n].0);
        if first_byte && !silent {
            client.some();
        }
        match leaving {
            Leaving::Closing => drop(client),
            Leaving::Reset => client.reset(),
        }
    });
}

#[test]
fn by_a_client_that_closes_before_the_answer() {
    vanish(Leaving::Closing, false);
}

#[test]
fn by_a_client_that_resets_before_the_answer() {
    vanish(Leaving::Reset, false);
}

#[test]
fn by_a_client_that_closes_in_mid_answer() {
    vanish(Leaving::Closing, true);
}

#[test]
fn by_a_client_that_resets_in_mid_answer() {
    vanish(Leaving::Reset, true);
}

/// What was left behind by scripts of this server: they stand in its folder.
fn strays(server: &Server) -> Vec<u32> {
    let folder = std::fs::canonicalize(server.root()).unwrap();
    let all = std::fs::read_dir("/proc").expect("/proc can be read");
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder))
        })
        .collect()
}

#[test]
fn daemons_and_descendants_with_every_client() {
    let server = Server::new()
        .fixture("daemon")
        .fixture("bg")
        .args(["--cgi-timeout", "1"])
        .start();
    let before = server.fds_at_rest();
    let mut clients: Vec<(&str, Client)> = Vec::new();
    for script in ["daemon", "bg"] {
        for (method, rest) in [("GET", HTTP_1_1), ("GET", "HTTP/1.0"), ("HEAD", HTTP_1_1)] {
            let mut client = server.connect();
            let wire = format!("{method} /cgi-bin/{script} {rest}");
            client.send(server.wire(wire.as_bytes()));
            clients.push((method, client));
        }
    }
    for (method, client) in &mut clients {
        let response = client.response_to(method);
        assert_eq!(response.status, 200, "{response}");
        assert!(response.complete, "{response}");
    }
    drop(clients);
    let left = strays(&server);
    assert_eq!(left.len(), 6, "a normal end touches nobody");
    // Those of `bg` hold pipes of the server.
    left.into_iter().for_each(end);
    assert!(eventually(|| strays(&server).is_empty()));
    server.settles_to(before);
}
