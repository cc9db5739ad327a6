//! Applications that the server starts itself: which processes there are, how
//! they come and go, and that no request is lost over it.

mod life;
mod php;
mod preload;
mod spawn;
mod statics;
mod wsgi;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Server, Setup, eventually, fixtures};

/// A folder with the application `shop:app` in it, and what it takes to run it.
fn shop() -> Setup {
    with("shop.py").args(["--wsgi", "shop:app"])
}

/// A folder with a file of tests/fixtures/workers in it.
fn with(name: &str) -> Setup {
    let file = std::fs::read(fixtures("workers").join(name)).expect("the fixture is there");
    Server::new().file(name, file)
}

/// The workers that run, by the server's word.
fn workers(server: &Server) -> BTreeSet<u32> {
    let descendants = server.children().into_iter();
    let running = descendants.filter(|process| process.state != 'Z');
    running.map(|process| process.pid).collect()
}

/// Waits until there are as many workers as that, and returns them.
fn wait_for_workers(server: &Server, count: usize) -> BTreeSet<u32> {
    let there = eventually(|| workers(server).len() == count);
    let now = workers(server);
    assert!(there, "{now:?} instead of {count}:\n{}", server.log());
    now
}

/// The number of the process that answers.
fn answering(server: &Server, target: &str) -> u32 {
    let answer = server.get(target);
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), server.log());
    let text = answer.text();
    let word = text.split(' ').next().expect("there is a first word");
    word.parse().expect("it is a number")
}

/// What the program says of arguments that it can't start with.
fn refused(args: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_serve-here"))
        .args(args)
        .env_remove("VIRTUAL_ENV")
        .output()
        .expect("the program can be run")
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a positive number"), signal).expect("it runs");
}

/// Said also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks again and again, several at a time, while `meanwhile` runs. Returns how
/// many requests were answered; fails if one was not.
fn under_load(server: &Server, target: &str, meanwhile: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    let clients = |method: &'static str| {
        let stop = &stop;
        move || {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let body: &[u8] = if method == "POST" { b"abc" } else { b"" };
                let answer = server.request(method, target, &[], body);
                assert_eq!(answer.status, 200, "{method} {}", answer.text());
                assert!(answer.complete);
                answered += 1;
            }
            answered
        }
    };
    thread::scope(|scope| {
        let running = ["GET", "POST", "GET", "POST"].map(|method| scope.spawn(clients(method)));
        let stopping = Stop(&stop);
        meanwhile();
        drop(stopping);
        let answered = running.map(|client| client.join().expect("every answer is 200"));
        answered.into_iter().sum()
    })
}
