//! Several addresses of one application: balancing, rest, another try.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;

use super::peers::{Fake, end, nobody, read_request, scgi_server, stdout};
use crate::support::{Server, eventually, needs};

fn named(name: &str) -> Fake {
    Fake::responder(format!("Content-Type: a/b\n\n{name}"))
}

#[test]
fn requests_go_where_fewest_are() {
    // One address holds what it gets until the other one has served many.
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let open = Arc::clone(&gate);
    let slow = Fake::new(move |mut stream, _| {
        let _ = read_request(&mut stream);
        let (open, opened) = &*gate;
        let mut is_open = open.lock().expect("nobody panics");
        while !*is_open {
            is_open = opened.wait(is_open).expect("nobody panics");
        }
        let _ = stream.write_all(&[stdout(b"Content-Type: a/b\n\nslow"), end(0, 0)].concat());
    });
    let quick = named("quick");
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", slow.address(), quick.address()),
        ])
        .start();
    thread::scope(|scope| {
        // Until one is held there.
        let mut held = Vec::new();
        while slow.accepted() == 0 {
            held.push(scope.spawn(|| server.get("/").text()));
            eventually(|| slow.accepted() + quick.accepted() > 0);
        }
        for _ in 0..20 {
            assert_eq!(server.get("/").text(), "quick");
        }
        *open.0.lock().expect("nobody panics") = true;
        open.1.notify_all();
        for request in held {
            request.join().expect("an answer");
        }
    });
    assert_eq!(slow.accepted(), 1);
}

#[test]
fn no_request_fails_while_one_address_is_there() {
    let (there, gone) = (named("there"), nobody());
    let server = Server::new()
        .args(["--route", &format!("/=fastcgi:{gone},{}", there.address())])
        .start();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for method in ["GET", "POST", "GET", "PUT"].repeat(5) {
                    let answer = server.request(method, "/", &[], b"content");
                    assert_eq!(answer.text(), "there", "{method}");
                }
            });
        }
    });
    let log = server.wait_for_log("it gets no requests for 0.5 s");
    assert!(
        log.contains(&format!("fastcgi '{gone}': no connection: ")),
        "{log}"
    );
}

#[test]
fn an_address_that_comes_back_is_used_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let there = named("there");
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{address},{}", there.address()),
        ])
        .start();
    while !server.log().contains("it gets no requests") {
        assert_eq!(server.get("/").text(), "there");
    }
    let Ok(listener) = std::net::TcpListener::bind(address) else {
        // Somebody else took the port in the meantime.
        return;
    };
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                while read_request(&mut stream).is_some() {
                    let text = stdout(b"Content-Type: a/b\n\nback");
                    let _ = stream.write_all(&[text, end(0, 0)].concat());
                }
            });
        }
    });
    assert!(eventually(|| server.get("/").text() == "back"));
    server.wait_for_log(&format!("fastcgi '{address}': answers again\n"));
}

#[test]
fn with_checks_no_request_has_to_find_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let there = named("there");
    let route = format!("/=fastcgi:{address},{},check=0.1", there.address());
    let server = Server::new().args(["--route", &route]).start();
    server.wait_for_log(&format!(
        "fastcgi '{address}': can't be reached; it gets no requests\n"
    ));
    for _ in 0..10 {
        assert_eq!(server.request("POST", "/", &[], b"x").text(), "there");
    }
    assert!(!server.log().contains("another address is asked"));
    let Ok(_listener) = std::net::TcpListener::bind(address) else {
        // Somebody else took the port in the meantime.
        return;
    };
    server.wait_for_log(&format!("fastcgi '{address}': can be reached again\n"));
}

#[test]
fn when_all_addresses_rest_the_answer_is_503() {
    let (one, two) = (nobody(), nobody());
    let server = Server::new()
        .args(["--route", &format!("/=scgi:{one},{two}")])
        .start();
    assert_eq!(server.get("/").status, 502);
    let answer = server.get("/");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("Retry-After").as_deref(), Some("1"));
    server.wait_for_log("(all-rest)\n");
}

#[test]
fn what_may_have_been_run_is_not_run_again_c159() {
    // Both read the request and leave.
    let runs = || {
        Fake::new(|mut stream, _| {
            let _ = read_request(&mut stream);
        })
    };
    let (one, two) = (runs(), runs());
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", one.address(), two.address()),
        ])
        .start();
    let before = || one.accepted() + two.accepted();
    assert_eq!(server.request("POST", "/", &[], b"x").status, 502);
    assert_eq!(before(), 1);
    // GET changes nothing, so it is asked elsewhere.
    assert_eq!(server.request("GET", "/", &[], b"").status, 502);
    assert_eq!(before(), 3);
    // Content that is no longer there can't be sent again.
    assert_eq!(server.request("PUT", "/", &[], b"small").status, 502);
    assert_eq!(before(), 5);
    assert_eq!(
        server.request("PUT", "/", &[], &vec![b'x'; 300_000]).status,
        502
    );
    assert_eq!(before(), 6);
}

#[test]
fn what_has_begun_to_answer_is_not_asked_again_c159() {
    let begins = || {
        Fake::new(|mut stream, _| {
            let _ = read_request(&mut stream);
            let _ = stream.write_all(&stdout(b"Content-"));
        })
    };
    let (one, two) = (begins(), begins());
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", one.address(), two.address()),
        ])
        .start();
    assert_eq!(server.get("/").status, 502);
    assert_eq!(one.accepted() + two.accepted(), 1);
}

#[test]
fn an_overloaded_address_leaves_its_request_to_another_c154() {
    let full = Fake::new(|mut stream, _| {
        while read_request(&mut stream).is_some() {
            let _ = stream.write_all(&end(0, 2));
        }
    });
    let there = named("there");
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},{}", full.address(), there.address()),
        ])
        .start();
    for _ in 0..6 {
        assert_eq!(server.request("POST", "/", &[], b"x").text(), "there");
    }
}

#[test]
fn no_more_connections_are_made_than_allowed_c160() {
    let most = Arc::new(Mutex::new((0, 0)));
    let seen = Arc::clone(&most);
    let fake = Fake::new(move |mut stream, _| {
        while read_request(&mut stream).is_some() {
            {
                let mut seen = seen.lock().expect("nobody panics");
                seen.0 += 1;
                seen.1 = seen.1.max(seen.0);
            }
            thread::yield_now();
            seen.lock().expect("nobody panics").0 -= 1;
            let text = stdout(b"Content-Type: a/b\n\nhello");
            let _ = stream.write_all(&[text, end(0, 0)].concat());
        }
    });
    let server = Server::new()
        .args([
            "--route",
            &format!("/=fastcgi:{},connections=2", fake.address()),
        ])
        .start();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(server.get("/").text(), "hello");
                }
            });
        }
    });
    assert!(most.lock().expect("nobody panics").1 <= 2);
    // They are used again, not made anew.
    assert!(fake.accepted() <= 4, "{} connections", fake.accepted());
}

#[test]
fn an_application_that_is_killed_under_load_costs_no_request_that_can_be_repeated() {
    if !needs("python3") {
        return;
    }
    let (stays, goes) = (scgi_server(), scgi_server());
    let server = Server::new()
        .args([
            "--route",
            &format!("/app=scgi:{},{}", goes.address(), stays.address()),
        ])
        .start();
    let fds = server.fds_at_rest();
    let done = AtomicUsize::new(0);
    let goes = Mutex::new(Some(goes));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let answer = server.get("/app/x");
                    assert_eq!((answer.status, answer.complete), (201, true), "{answer}");
                    if done.fetch_add(1, Ordering::SeqCst) == 100 {
                        drop(goes.lock().expect("nobody panics").take());
                    }
                }
            });
        }
    });
    server.wait_for_log("it gets no requests for");
    server.settles_to(fds);
}
