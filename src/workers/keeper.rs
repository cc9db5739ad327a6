//! Keeps the workers of one application: as many as are wanted, new ones where
//! some have ended, old ones out when new ones are there. One task; all it does
//! follows from what each place holds, looked at whenever something happens.

mod parents;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use self::parents::Parent;
use super::job::Job;
use super::worker::{End, Leave, News, Worker};
use super::{Options, Order, wsgi};
use crate::error::{Area, Diagnosis};
use crate::gateway::backend::Backend;
use crate::gateway::process::{Ended, Processes};
use crate::gateway::spawn::SpawnError;
use crate::log::{Log, escape};

/// A worker that ends sooner was no start (C168).
const SETTLED: Duration = Duration::from_secs(1);
/// The pause before another try; twice as long after each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// So many failed starts, and requests wait for no other (C168).
const FAILED_STARTS: u32 = 3;
/// How often is looked at what nobody tells.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_millis(500);
/// How often workers without a request are asked whether they still stir.
const BEAT: Duration = Duration::from_secs(10);
/// For an import to be done, or a program to be there.
const START_TIME: Duration = Duration::from_secs(120);
/// Lines of a traceback for the log, and for the error page.
const TRACE_LINES: usize = 2000;
const PAGE_LINES: usize = 100;

pub struct Keeper {
    job: Job,
    options: Options,
    places: Vec<Place>,
    backend: Arc<Backend>,
    processes: Processes,
    log: Log,
    /// So many are to be at work.
    wanted: usize,
    /// One up with each reload; a worker of an older edition is to be replaced.
    edition: u64,
    /// Processes that have imported the application, or are about to, and make
    /// workers of themselves (`--preload`). The newest is the last.
    parents: Vec<Parent>,
    /// How many of them there were.
    parents_started: u64,
    /// All have ended because there was nothing to do.
    asleep: bool,
    failed_starts: u32,
    not_before: Instant,
    /// What the last import failed with.
    trace: Vec<String>,
    /// The log has it in full.
    trace_is_told: bool,
    /// Of the application, with their times.
    files: Vec<(PathBuf, Option<SystemTime>)>,
    /// Its folders, likewise, after a failed import: what it misses may come.
    folders: Vec<(PathBuf, Option<SystemTime>)>,
    news: mpsc::UnboundedSender<(Tag, News)>,
    told: mpsc::UnboundedReceiver<(Tag, News)>,
}

/// Which worker: place and number, as a place has many one after the other.
type Tag = (usize, u64);
/// Not a place: the tags of parents.
const PARENTS: usize = usize::MAX;

struct Place {
    listener: OwnedFd,
    held: Option<Held>,
    /// How many workers it has had.
    number: u64,
}

struct Held {
    worker: Worker,
    state: State,
    /// 0: to be replaced, whatever the edition.
    edition: u64,
    since: Instant,
    /// The number of the parent that it was forked by; 0: it was not.
    parent: u64,
    /// When it was asked whether it stirs, if it has not answered yet.
    asked: Option<Instant>,
    /// What its import fails with, as far as it was told.
    trace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Serving,
    /// No more requests; out when it has none, or at that time.
    Leaving(Option<Instant>),
}

impl Keeper {
    pub fn new(
        job: Job,
        options: Options,
        listeners: Vec<OwnedFd>,
        backend: Arc<Backend>,
        processes: Processes,
        log: Log,
    ) -> Self {
        let (news, told) = mpsc::unbounded_channel();
        let place = |listener| Place {
            listener,
            held: None,
            number: 0,
        };
        Self {
            job,
            options,
            places: listeners.into_iter().map(place).collect(),
            backend,
            processes,
            log,
            wanted: options.workers,
            edition: 1,
            parents: Vec::new(),
            parents_started: 0,
            asleep: options.idle.is_some(),
            failed_starts: 0,
            not_before: Instant::now(),
            trace: Vec::new(),
            trace_is_told: false,
            files: Vec::new(),
            folders: Vec::new(),
            news,
            told,
        }
    }

    /// Until `stop`. What runs then is told to end.
    pub async fn run(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let backend = Arc::clone(&self.backend);
        let mut later = Instant::now() + LATER;
        let beat = self.beat();
        let mut next_beat = beat.map(|beat| Instant::now() + beat);
        loop {
            self.step();
            let soon = self.is_moving().then(|| Instant::now() + SOON);
            let looks = self.has_to_look().then_some(later);
            let look = [soon, looks, next_beat].into_iter().flatten().min();
            tokio::select! {
                _ = &mut stop => return self.close(),
                Some((tag, news)) = self.told.recv() => self.take(tag, news),
                Some(order) = orders.recv() => self.obey(order),
                () = backend.news() => self.wake(),
                () = until(look) => {}
            }
            if Instant::now() >= later {
                self.look_about();
                later = Instant::now() + LATER;
            }
            if next_beat.is_some_and(|at| Instant::now() >= at) {
                self.feel_pulse();
                next_beat = beat.map(|beat| Instant::now() + beat);
            }
        }
    }

    /// How often [`Keeper::feel_pulse`] is due.
    fn beat(&self) -> Option<Duration> {
        let patience = self.options.leave.filter(|_| self.job.tells)?;
        Some(BEAT.min(patience / 2))
    }

    /// A worker that reads on a connection which is kept may not see a signal.
    fn close(&self) {
        for at in 0..self.places.len() {
            self.backend.close(at);
        }
    }

    /// Something is on its way that nobody tells of.
    fn is_moving(&self) -> bool {
        let held = self.places.iter().filter_map(|place| place.held.as_ref());
        let moving = held
            .map(|held| held.state)
            .any(|state| state != State::Serving);
        let loading = self.parents.iter().any(|parent| !parent.loaded);
        moving || loading || !self.asleep && self.count(|_| true) < self.wanted
    }

    fn has_to_look(&self) -> bool {
        let Options { memory, idle, .. } = self.options;
        memory.is_some() || idle.is_some() && !self.asleep || self.job.reload
    }

    fn count(&self, which: impl Fn(&Held) -> bool) -> usize {
        let held = self.places.iter().filter_map(|place| place.held.as_ref());
        held.filter(|held| which(held)).count()
    }

    fn is_fresh(&self, held: &Held) -> bool {
        held.edition == self.edition && !matches!(held.state, State::Leaving(_))
    }

    /// A request has found no worker, or a worker's requests have changed.
    fn wake(&mut self) {
        if self.asleep {
            self.asleep = false;
            self.tell("a request came; workers are started");
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Reload => {
                self.tell("reload: new workers are started");
                self.renew();
            }
            // The rest of the places are for those that replace others.
            Order::More if 2 * self.wanted < self.places.len() => self.wanted += 1,
            Order::Fewer if self.wanted > 1 => self.wanted -= 1,
            Order::More | Order::Fewer => {}
        }
        if order != Order::Reload {
            self.tell(&format!("{} workers are wanted now", self.wanted));
        }
    }

    fn renew(&mut self) {
        self.edition += 1;
        self.failed_starts = 0;
        self.trace_is_told = false;
        self.not_before = Instant::now();
    }

    /// Does what is to be done now.
    fn step(&mut self) {
        self.settle();
        self.sort_out();
        if !self.asleep {
            self.hire();
        }
        self.clear();
        self.dismiss();
        self.let_go();
        self.let_parents_go();
    }

    /// A program that says nothing of itself is ready when it has not ended for a
    /// while, or at once if nothing speaks against it.
    fn settle(&mut self) {
        for at in 0..self.places.len() {
            let edition = self.edition;
            let is_old = |held: &Held| ![0, edition].contains(&held.edition);
            let serving = |held: &Held| held.state == State::Serving;
            // In place of others that work well, it has to show that it does.
            let reloads = self.count(|held| serving(held) && is_old(held)) > 0;
            let at_once = !reloads && self.failed_starts == 0;
            let Some(held) = &mut self.places[at].held else {
                continue;
            };
            if held.state != State::Starting {
                continue;
            }
            let age = held.since.elapsed();
            if !self.job.tells && (at_once || age >= SETTLED) {
                self.ready(at);
            } else if age >= START_TIME {
                held.state = State::Leaving(Some(Instant::now()));
                // It says where it hangs.
                held.worker.leave(Leave::Stuck);
                let pid = held.worker.pid;
                self.fault(&too_late(pid));
            }
        }
        self.settle_parents();
    }

    fn ready(&mut self, at: usize) {
        let due = self.options.max_requests.map(jittered);
        let Some(held) = &mut self.places[at].held else {
            return;
        };
        held.state = State::Serving;
        let pid = held.worker.pid;
        self.backend.open(at, pid, due);
        if self.job.tells {
            self.backend.set_down(None);
            self.trace_is_told = false;
            self.folders.clear();
        }
        self.tell(&format!("worker {pid} serves"));
    }

    /// Who is stuck, has had enough requests, or needs too much memory.
    fn sort_out(&mut self) {
        for at in 0..self.places.len() {
            let work = self.backend.work(at);
            let Some(held) = &mut self.places[at].held else {
                continue;
            };
            // Before that the place still tells of the one before.
            if held.state != State::Serving {
                continue;
            }
            let pid = held.worker.pid;
            if self.failed_starts > 0 && held.since.elapsed() >= SETTLED {
                self.failed_starts = 0;
                self.backend.set_down(None);
                continue;
            }
            if work.stuck {
                self.backend.close(at);
                let others = work.outstanding.saturating_sub(1);
                let until = self.options.leave.filter(|_| others > 0);
                let until = Instant::now() + until.unwrap_or_default();
                held.state = State::Leaving(Some(until));
                if others == 0 {
                    held.worker.leave(Leave::Stuck);
                }
                self.fault(&format!(
                    "worker {pid} is stuck (worker timeout); it is replaced"
                ));
            } else if work.due.is_some_and(|due| work.given >= due) && held.edition != 0 {
                held.edition = 0;
                self.tell(&format!(
                    "worker {pid} has had {} requests; it is replaced",
                    work.given
                ));
            }
        }
    }

    /// As many as are wanted.
    fn hire(&mut self) {
        while self.count(|held| self.is_fresh(held)) < self.wanted
            && Instant::now() >= self.not_before
        {
            // One is enough to see whether it goes better now.
            if self.failed_starts > 0 && self.count(|held| held.state == State::Starting) > 0 {
                return;
            }
            if self.job.preload && self.parent().is_none_or(|parent| !parent.loaded) {
                self.start_parent();
                return;
            }
            // A request may wait on the socket of one that has ended.
            let free = (0..self.places.len()).filter(|&at| self.places[at].held.is_none());
            let Some(at) = free.max_by_key(|&at| self.backend.work(at).outstanding) else {
                return;
            };
            if let Err(error) = self.start(at) {
                self.not_started(&error);
            }
        }
    }

    /// Nobody will come for what waits at a place that needs no worker.
    fn clear(&self) {
        if self.count(|held| self.is_fresh(held)) < self.wanted {
            return;
        }
        for (at, place) in self.places.iter().enumerate() {
            if place.held.is_none() && self.backend.work(at).outstanding > 0 {
                turn_away(place.listener.as_fd());
            }
        }
    }

    fn start(&mut self, at: usize) -> Result<(), SpawnError> {
        let place = &mut self.places[at];
        place.number += 1;
        let tag = (at, place.number);
        let (listener, news) = (place.listener.as_fd(), self.news.clone());
        let Self { job, log, .. } = self;
        let parent = self.parents.last().filter(|_| job.preload);
        let worker = match parent {
            Some(parent) => parent.worker.fork(at, job, listener, log, tag, news)?,
            None => Worker::start(job, listener, &self.processes, log, tag, news)?,
        };
        place.held = Some(Held {
            worker,
            state: State::Starting,
            edition: self.edition,
            since: Instant::now(),
            parent: parent.map_or(0, |parent| parent.number),
            asked: None,
            trace: Vec::new(),
        });
        Ok(())
    }

    /// Whoever is too many: old ones as new ones come, the oldest first.
    fn dismiss(&mut self) {
        let wanted = if self.asleep { 0 } else { self.wanted };
        let serving = |held: &Held| held.state == State::Serving;
        let mut left = self.count(serving).saturating_sub(wanted);
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        order.sort_by_key(|&at| {
            let held = self.places[at].held.as_ref();
            held.map(|held| (held.edition, held.since))
        });
        let edition = self.edition;
        for at in order {
            let Some(held) = &mut self.places[at].held else {
                continue;
            };
            match held.state {
                State::Serving if left > 0 => left -= 1,
                // Its code is old already.
                State::Starting if held.edition != edition => {}
                _ => continue,
            }
            self.backend.close(at);
            let until = self.options.leave.map(|leave| Instant::now() + leave);
            held.state = State::Leaving(until);
        }
    }

    /// Those that leave go when their last request is over.
    fn let_go(&mut self) {
        for at in 0..self.places.len() {
            let work = self.backend.work(at);
            let Some(held) = &mut self.places[at].held else {
                continue;
            };
            let State::Leaving(until) = held.state else {
                continue;
            };
            if held.worker.is_leaving() {
                continue;
            }
            let late = until.is_some_and(|until| Instant::now() >= until);
            if late || work.outstanding == 0 {
                let is_stuck = work.stuck || work.outstanding > 0;
                let how = if is_stuck { Leave::Stuck } else { Leave::Idle };
                held.worker.leave(how);
            }
        }
    }

    /// What nobody tells: memory, files, idleness.
    fn look_about(&mut self) {
        if let Some(most) = self.options.memory {
            for at in 0..self.places.len() {
                let Some(held) = &mut self.places[at].held else {
                    continue;
                };
                let memory = held.worker.memory().unwrap_or(0);
                if memory > most && held.edition != 0 && held.state == State::Serving {
                    held.edition = 0;
                    let (pid, mib) = (held.worker.pid, memory >> 20);
                    self.tell(&format!(
                        "worker {pid} has {mib} MiB of memory; it is replaced"
                    ));
                }
            }
        }
        let watched = self.files.iter().chain(&self.folders);
        let mut changed = watched.filter(|(file, time)| modified(file) != *time);
        if let Some((file, _)) = changed.next() {
            let text = format!("{} has changed; new workers are started", file.display());
            self.tell(&text);
            self.files.clear();
            self.folders.clear();
            self.renew();
        }
        self.fall_asleep();
    }

    /// Asks workers that have nothing to do whether they could. Whoever has a
    /// request may be as long over it as that may take; this finds those that hang
    /// without one, before a request gets there.
    fn feel_pulse(&mut self) {
        let Some(patience) = self.options.leave else {
            return;
        };
        for at in 0..self.places.len() {
            let work = self.backend.work(at);
            let Some(held) = &mut self.places[at].held else {
                continue;
            };
            if held.state != State::Serving || work.outstanding > 0 {
                continue;
            }
            let Some(asked) = held.asked else {
                // A full socket is one that nobody reads.
                let _ = held.worker.say("ping\n", &[]);
                held.asked = Some(Instant::now());
                continue;
            };
            let idle = work.used.unwrap_or(held.since).max(asked);
            if idle.elapsed() >= patience {
                held.state = State::Leaving(Some(Instant::now()));
                self.backend.close(at);
                held.worker.leave(Leave::Stuck);
                let (pid, seconds) = (held.worker.pid, patience.as_secs_f32());
                self.fault(&format!(
                    "worker {pid} does not stir for {seconds} s (worker timeout); it is replaced"
                ));
            }
        }
    }

    fn fall_asleep(&mut self) {
        let Some(idle) = self.options.idle.filter(|_| !self.asleep) else {
            return;
        };
        let is_idle = (0..self.places.len()).all(|at| {
            let Some(held) = &self.places[at].held else {
                return true;
            };
            let work = self.backend.work(at);
            let used = work.used.unwrap_or(held.since).max(held.since);
            work.outstanding == 0 && held.state == State::Serving && used.elapsed() >= idle
        });
        if is_idle && self.count(|_| true) > 0 {
            self.asleep = true;
            self.tell("no request for a while; workers end until one comes");
        }
    }

    /// What a worker says, or how it has ended.
    fn take(&mut self, (at, number): Tag, news: News) {
        if at == PARENTS {
            return match news {
                News::Said(line) => self.heard_parent(number, &line),
                News::Ended(end) => self.parent_ended(number, end),
            };
        }
        if self.places[at].number != number || self.places[at].held.is_none() {
            return;
        }
        match news {
            News::Said(line) => self.heard(at, &line),
            News::Ended(end) => self.ended(at, end),
        }
    }

    fn heard(&mut self, at: usize, line: &[u8]) {
        let (word, rest) = first_word(line);
        let Some(held) = &mut self.places[at].held else {
            return;
        };
        match word {
            b"ready" if held.state == State::Starting => self.ready(at),
            b"file" => {
                let since = held.since;
                self.watch(since, rest);
            }
            b"pong" => held.asked = None,
            b"trace" => add_line(&mut held.trace, rest),
            b"failed" => {
                let (trace, pid) = (std::mem::take(&mut held.trace), held.worker.pid);
                self.tell_trace(trace, pid);
            }
            _ => {}
        }
    }

    /// In full if it is another one than before.
    fn tell_trace(&mut self, trace: Vec<String>, pid: u32) {
        let pid = pid.to_string();
        let is_news = !self.trace_is_told || trace != self.trace;
        let Job { name, subject, .. } = &self.job;
        let last = trace.iter().rev().find(|line| !line.starts_with("hint: "));
        match (last, is_news) {
            (Some(last), false) => self.log.gateway_line(
                name,
                subject,
                &pid,
                format!("cannot load it, as before: {last}").as_bytes(),
            ),
            _ => {
                for line in &trace {
                    self.log.gateway_line(name, subject, &pid, line.as_bytes());
                }
            }
        }
        self.trace = trace;
        self.trace_is_told = true;
    }

    /// A file of an application whose import began at that time.
    fn watch(&mut self, began: Instant, name: &[u8]) {
        let file = PathBuf::from(std::ffi::OsStr::from_bytes(name));
        if self.files.iter().any(|(known, _)| *known == file) {
            return;
        }
        self.files.push(as_it_was(began, file));
    }

    /// A module that the application missed is in none of its files. Its import
    /// began at that time.
    fn watch_folders(&mut self, began: Instant) {
        let parents = self.files.iter().filter_map(|(file, _)| file.parent());
        let mut folders: Vec<PathBuf> = parents.map(Into::into).collect();
        folders.push(self.job.directory.clone());
        folders.sort();
        folders.dedup();
        let folders = folders.into_iter();
        self.folders = folders.map(|folder| as_it_was(began, folder)).collect();
    }

    fn ended(&mut self, at: usize, end: End) {
        self.backend.close(at);
        let Some(held) = self.places[at].held.take() else {
            return;
        };
        let pid = held.worker.pid;
        let is_failed_load =
            self.job.tells && matches!(end, End::Ended(ended) if wsgi::says_failed_load(ended));
        let how = match end {
            End::NotStarted(error) => return self.not_started(&error),
            end => how_it_ended(&end),
        };
        if held.worker.is_leaving() {
            self.tell(&format!("worker {pid} {how}"));
        } else if held.state == State::Starting
            || held.since.elapsed() < SETTLED && !self.has_taken_requests(at)
        {
            let began = is_failed_load.then_some(held.since);
            self.failed_start(&format!("worker {pid} {how} at its start"), began);
        } else {
            self.fault(&format!("worker {pid} {how}; another one is started"));
        }
    }

    /// Whether the worker that was at work there has accepted what it was given:
    /// then it did start, however soon a request has ended it.
    fn has_taken_requests(&self, at: usize) -> bool {
        let work = self.backend.work(at);
        let taken = || !anybody_waits(self.places[at].listener.as_fd());
        work.given > work.outstanding as u64 || work.given > 0 && taken()
    }

    fn not_started(&mut self, failed: &SpawnError) {
        let SpawnError { step, error } = failed;
        let text = format!("no worker could be started: {step:?}: {error}");
        self.failed_start(&text, None);
    }

    /// Another try comes later. Old workers, if there are any, stay. `began`:
    /// it was the import, from then on, that failed.
    fn failed_start(&mut self, text: &str, began: Option<Instant>) {
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failed_starts.min(16));
        let pause = pause.min(LONGEST_PAUSE);
        self.failed_starts = self.failed_starts.saturating_add(1);
        self.not_before = Instant::now() + pause;
        let edition = self.edition;
        let mut kept = 0;
        for held in self
            .places
            .iter_mut()
            .filter_map(|place| place.held.as_mut())
        {
            if held.state == State::Serving && held.edition != 0 && held.edition != edition {
                held.edition = edition;
                kept += 1;
                let parents = self.parents.iter_mut();
                for parent in parents.filter(|parent| parent.number == held.parent) {
                    parent.edition = edition;
                }
            }
        }
        let serving = self.count(|held| held.state == State::Serving);
        let seconds = pause.as_secs_f32();
        self.fault(&match kept {
            0 => format!("{text}; the next try is in {seconds} s"),
            _ => format!("{text}; the old workers stay"),
        });
        if let Some(began) = began.filter(|_| self.job.reload) {
            self.watch_folders(began);
        }
        let give_up = began.is_some() || self.failed_starts >= FAILED_STARTS;
        if give_up && serving == 0 {
            self.backend.set_down(Some(Diagnosis {
                area: Area::Gateway(self.job.name),
                reason: "no-worker",
                fault: if self.trace.is_empty() {
                    "its workers end at their start; the log says more".into()
                } else {
                    "the application can't be loaded".into()
                },
                hint: Some("mend it; it is tried again all the time".into()),
                stderr: self.trace.iter().take(PAGE_LINES).cloned().collect(),
                ..Diagnosis::default()
            }));
            // What still waits there learns it, too.
            for place in self.places.iter().filter(|place| place.held.is_none()) {
                turn_away(place.listener.as_fd());
            }
        }
    }

    /// What happens as it should.
    fn tell(&self, text: &str) {
        if self.options.verbose {
            self.fault(text);
        }
    }

    fn fault(&self, text: &str) {
        self.log
            .gateway_note(self.job.name, &self.job.subject, text);
    }
}

fn how_it_ended(end: &End) -> String {
    match end {
        End::Ended(Ended::Exit(0)) => "has left".to_owned(),
        End::Ended(Ended::Exit(code)) => format!("has ended with exit status {code}"),
        End::Ended(Ended::Signal(signal)) => format!("was ended by signal {signal}"),
        End::Unseen | End::NotStarted(_) => "is gone".to_owned(),
    }
}

fn too_late(pid: u32) -> String {
    let seconds = START_TIME.as_secs();
    format!("worker {pid} is not ready after {seconds} s; it is ended")
}

/// And what follows it.
fn first_word(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|&b| b == b' ') {
        Some(end) => (&line[..end], &line[end + 1..]),
        None => (line, b""),
    }
}

fn add_line(trace: &mut Vec<String>, line: &[u8]) {
    if trace.len() < TRACE_LINES {
        trace.push(escape(line));
    }
}

/// Closes the connections that nobody has taken. No worker listens there.
fn turn_away(listener: BorrowedFd<'_>) {
    while anybody_waits(listener) && rustix::net::accept(listener).is_ok() {}
}

/// Whether there are connections that nobody has taken.
fn anybody_waits(listener: BorrowedFd<'_>) -> bool {
    let mut sockets = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    rustix::event::poll(&mut sockets, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Up to a tenth more, so that workers don't leave together (C195).
fn jittered(requests: u64) -> u64 {
    let mut random = [0u8; 8];
    // Without it they leave together, no more.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    requests + u64::from_ne_bytes(random) % (requests / 10 + 1)
}

/// With the time of its last change, or none if that came after `began`: then
/// nobody knows which of both was read, and it counts as changed.
fn as_it_was(began: Instant, file: PathBuf) -> (PathBuf, Option<SystemTime>) {
    let now = SystemTime::now();
    let began = now.checked_sub(began.elapsed());
    let is_newer = |time: &SystemTime| *time <= now && began.is_some_and(|began| *time > began);
    let time = modified(&file).filter(|time| !is_newer(time));
    (file, time)
}

fn modified(file: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(file).ok()?.modified().ok()
}
