//! Clients that leave, and clients that only look like it: what becomes of the
//! script that works for them (C132).

use std::thread;

use crate::support::{Client, Process, Rows, Server, eventually};

/// A request that another may follow, and the two ways to say that none does.
const REQUESTS: [(&str, &str); 3] = [
    ("keep-alive", "HTTP/1.1\nHost: {host}"),
    ("close", "HTTP/1.1\nHost: {host}\nConnection: close"),
    ("HTTP/1.0", "HTTP/1.0"),
];

/// Says nothing, has a child and a grandchild, and knows its name in the URL.
const SILENT: &str = "#!/bin/sh\n(sleep 1000; :) &\nsleep 1000\n";
/// The same after its header and some of its content.
const FALLS_SILENT: &str =
    "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\nfirst\\n'\n(sleep 1000; :) &\nsleep 1000\n";

/// Below the server: a script, its two children, its grandchild.
const FAMILY: usize = 4;

fn family(server: &Server) -> Vec<Process> {
    let mut all = server.children();
    all.retain(|process| Process::runs(process.pid));
    all
}

/// A client of `script` whose processes run.
fn client_of(server: &Server, script: &str, rest: &str) -> Client {
    let before = family(server).len();
    let mut client = server.connect();
    client.send(server.wire(format!("GET /cgi-bin/{script} {rest}").as_bytes()));
    assert!(
        eventually(|| family(server).len() == before + FAMILY),
        "the script has not started"
    );
    client
}

fn leave_each(server: &Server, leave: impl Fn(Client)) {
    let before = server.idle_fds();
    let mut rows = Rows::new();
    for script in ["silent", "falls-silent"] {
        for (name, rest) in REQUESTS {
            leave(client_of(server, script, rest));
            let ended = eventually(|| family(server).is_empty());
            rows.check(&format!("{script}, {name}"), ended, || {
                family(server).iter().map(Process::to_string).collect()
            });
        }
    }
    rows.done();
    server.settles_to(before);
}

fn server(bind: &str) -> Option<Server> {
    std::net::TcpListener::bind((bind, 0)).ok()?;
    let setup = Server::new()
        .args(["--bind", bind, "--allow-root"])
        .script("cgi-bin/silent", SILENT)
        .script("cgi-bin/falls-silent", FALLS_SILENT);
    Some(setup.start())
}

#[test]
fn a_client_that_closes_ends_its_script_in_silence_c132() {
    leave_each(&server("127.0.0.1").expect("loopback is there"), drop);
}

#[test]
fn a_client_that_resets_ends_its_script_in_silence_c132() {
    leave_each(
        &server("127.0.0.1").expect("loopback is there"),
        Client::reset,
    );
}

#[test]
fn a_client_that_closes_its_side_and_then_leaves_ends_its_script_c132() {
    leave_each(
        &server("127.0.0.1").expect("loopback is there"),
        |mut client| {
            client.half_close();
            drop(client);
        },
    );
}

#[test]
fn a_client_over_ipv6_ends_its_script_in_silence_c132() {
    if let Some(server) = server("::1") {
        leave_each(&server, drop);
    }
}

/// Longer than any pause after which a client might be given up.
const SLOW: &str = "#!/bin/sh\nsleep 7\nprintf 'Content-Type: text/plain\\n\\nslow\\n'\n";
const COUNTS: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n\
                      for n in 1 2 3 4 5 6 7; do sleep 1; echo $n; done\n";

#[test]
fn a_half_closed_client_gets_its_answer_however_long_it_takes_c132() {
    let server = Server::new()
        .script("cgi-bin/slow", SLOW)
        .script("cgi-bin/counts", COUNTS)
        .start();
    let mut all = Rows::new();
    let clients = REQUESTS.iter().flat_map(|request| {
        [("slow", "slow\n"), ("counts", "1\n2\n3\n4\n5\n6\n7\n")].map(|answer| (request, answer))
    });
    thread::scope(|scope| {
        let server = &server;
        let waiting: Vec<_> = clients
            .map(|(&(name, rest), (script, expected))| {
                scope.spawn(move || {
                    let mut client = server.connect();
                    client.send(server.wire(format!("GET /cgi-bin/{script} {rest}").as_bytes()));
                    client.half_close();
                    let answer = client.try_response_to("GET");
                    let held = answer.as_ref().is_some_and(|answer| {
                        answer.status == 200 && answer.complete && answer.text() == expected
                    });
                    let saw = answer.map_or("no answer".to_owned(), |answer| answer.to_string());
                    (format!("{script}, {name}"), held, saw)
                })
            })
            .collect();
        for client in waiting {
            let (what, held, saw) = client.join().expect("the client is done");
            all.check(&what, held, || saw);
        }
    });
    all.done();
}
