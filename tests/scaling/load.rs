//! Clients that ask without end, and what each request came to.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// More than any request may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long an event may take.
const EVENT: Duration = Duration::from_secs(60);
/// Between two requests of a client: the load is to be even, not high.
const PAUSE: Duration = Duration::from_millis(20);
/// Every so-manyth request is a POST.
const POSTS: usize = 5;

pub(super) struct Load {
    front: SocketAddr,
    outcomes: Mutex<Vec<Outcome>>,
    /// When those began that are under way.
    under_way: Mutex<HashMap<usize, Instant>>,
    next: AtomicUsize,
    stopped: AtomicBool,
}

#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) began: Instant,
    pub(super) took: Duration,
    pub(super) id: usize,
    pub(super) result: Result,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Result {
    /// What the application said.
    Answer(String),
    /// An answer began and did not end.
    Cut,
    /// Another status than 200, or no answer.
    Failed(String),
}

impl Outcome {
    /// POST changes something: it must not be run twice.
    pub(super) fn is_post(&self) -> bool {
        is_post(self.id)
    }

    pub(super) fn host(&self) -> Option<&str> {
        match &self.result {
            Result::Answer(text) => text.split(' ').next(),
            _ => None,
        }
    }
}

fn is_post(id: usize) -> bool {
    id.is_multiple_of(POSTS)
}

impl Load {
    pub(super) fn on(front: SocketAddr) -> Self {
        Self {
            front,
            outcomes: Mutex::default(),
            under_way: Mutex::default(),
            next: AtomicUsize::new(1),
            stopped: AtomicBool::new(false),
        }
    }

    /// One client, until the load is stopped.
    pub(super) fn run(&self) {
        while !self.stopped.load(Ordering::SeqCst) {
            let id = self.next.fetch_add(1, Ordering::SeqCst);
            let began = Instant::now();
            self.beginnings().insert(id, began);
            let result = ask(self.front, id);
            let outcome = Outcome {
                began,
                took: began.elapsed(),
                id,
                result,
            };
            self.lock().push(outcome);
            self.beginnings().remove(&id);
            thread::sleep(PAUSE);
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.outcomes.lock().expect("nobody panics")
    }

    fn beginnings(&self) -> MutexGuard<'_, HashMap<usize, Instant>> {
        self.under_way.lock().expect("nobody panics")
    }

    /// When the one began that is under way for longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.beginnings().values().min().copied()
    }

    /// Those that are over, of those that began or ended after `then`.
    pub(super) fn since(&self, then: Instant) -> Vec<Outcome> {
        let outcomes = self.lock();
        let new = |outcome: &&Outcome| outcome.began + outcome.took >= then;
        outcomes.iter().filter(new).cloned().collect()
    }

    pub(super) fn all(&self) -> Vec<Outcome> {
        self.lock().clone()
    }

    /// Waits until `done` holds for requests that began after `then`.
    pub(super) fn until(&self, what: &str, then: Instant, done: impl Fn(&[Outcome]) -> bool) {
        let end = Instant::now() + EVENT;
        loop {
            let new: Vec<Outcome> = self.since(then);
            let new: Vec<Outcome> = new.into_iter().filter(|one| one.began >= then).collect();
            if done(&new) {
                return;
            }
            if Instant::now() > end {
                let tail: Vec<&Outcome> = new.iter().rev().take(10).collect();
                panic!("{what}: not in {EVENT:?}; the last ones: {tail:#?}");
            }
            thread::sleep(PAUSE);
        }
    }

    /// Clears the way for a thread that panics: the clients end with it.
    pub(super) fn stop_on_drop(&self) -> impl Drop {
        struct Stop<'a>(&'a Load);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        Stop(self)
    }
}

/// Counts requests by their number.
pub(super) fn counted<'a>(ids: impl IntoIterator<Item = &'a str>) -> HashMap<usize, usize> {
    let mut counts = HashMap::new();
    for id in ids {
        *counts.entry(id.parse().expect("a number")).or_default() += 1;
    }
    counts
}

fn ask(front: SocketAddr, id: usize) -> Result {
    match exchange(front, id) {
        Ok(answer) => judged(&answer),
        Err(error) => Result::Failed(error.to_string()),
    }
}

fn exchange(front: SocketAddr, id: usize) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&front, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (method, length) = if is_post(id) {
        ("POST", "Content-Length: 4\r\n")
    } else {
        ("GET", "")
    };
    let mut request =
        format!("{method} /app/?{id} HTTP/1.1\r\nHost: front\r\nConnection: close\r\n{length}\r\n");
    if is_post(id) {
        request.push_str("work");
    }
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // What came before a reset counts.
    match stream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

fn judged(answer: &[u8]) -> Result {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Result::Failed(format!("no answer, but {text:?}"));
    };
    if !head.starts_with("HTTP/1.1 200 ") {
        return Result::Failed(head.lines().next().unwrap_or_default().to_owned());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.parse::<usize>().ok())?
    });
    if length == Some(body.len()) {
        Result::Answer(body.to_owned())
    } else {
        Result::Cut
    }
}
