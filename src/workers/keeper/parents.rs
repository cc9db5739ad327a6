//! `--preload`: processes that have imported the application, or are about to,
//! and that workers are forked from. There is one for each edition that still has
//! workers.

use std::os::fd::AsFd;

use tokio::time::Instant;

use super::{
    Held, Keeper, PARENTS, SETTLED, START_TIME, add_line, first_word, how_it_ended, too_late,
};
use crate::gateway::process::Ended;
use crate::log::escape;
use crate::workers::worker::{End, Leave, Worker};

/// To fork a worker.
const FORK_TIME: std::time::Duration = std::time::Duration::from_secs(5);

pub(super) struct Parent {
    pub(super) number: u64,
    pub(super) worker: Worker,
    pub(super) edition: u64,
    since: Instant,
    /// It has imported the application.
    pub(super) loaded: bool,
    trace: Vec<String>,
}

impl Keeper {
    /// The one that new workers are to come from.
    pub(super) fn parent(&self) -> Option<&Parent> {
        let newest = self.parents.last();
        newest.filter(|parent| parent.edition == self.edition && !parent.worker.is_leaving())
    }

    /// If there is none yet.
    pub(super) fn start_parent(&mut self) {
        if self.parent().is_some() {
            return;
        }
        let number = self.parents_started + 1;
        let started = Worker::start(
            &self.job,
            // Workers get their own.
            self.places[0].listener.as_fd(),
            &self.processes,
            &self.log,
            (PARENTS, number),
            self.news.clone(),
        );
        let worker = match started {
            Ok(worker) => worker,
            Err(error) => return self.not_started(&error),
        };
        self.parents_started = number;
        self.parents.push(Parent {
            number,
            worker,
            edition: self.edition,
            since: Instant::now(),
            loaded: false,
            trace: Vec::new(),
        });
    }

    /// Those that don't load the application, or don't fork, in time are ended.
    pub(super) fn settle_parents(&mut self) {
        let held = self.places.iter().filter_map(|place| place.held.as_ref());
        let is_late = |held: &&Held| held.worker.pid == 0 && held.since.elapsed() >= FORK_TIME;
        let stuck: Vec<u64> = held.filter(is_late).map(|held| held.parent).collect();
        for at in 0..self.parents.len() {
            let parent = &mut self.parents[at];
            let (pid, number) = (parent.worker.pid, parent.number);
            if parent.worker.is_leaving() {
                continue;
            }
            let text = if stuck.contains(&number) {
                format!("{pid} forks no worker; it is replaced")
            } else if !parent.loaded && parent.since.elapsed() >= START_TIME {
                too_late(pid)
            } else {
                continue;
            };
            parent.worker.leave(Leave::Stuck);
            self.fault(&text);
        }
    }

    /// Parents go when they are of an old edition, or all sleep, and their last
    /// worker has gone.
    pub(super) fn let_parents_go(&mut self) {
        let newest = self.parents.last().map(|parent| parent.number);
        for parent in &mut self.parents {
            let is_old = parent.edition != self.edition || Some(parent.number) != newest;
            let held = self.places.iter().filter_map(|place| place.held.as_ref());
            let has_children = held.into_iter().any(|held| held.parent == parent.number);
            if (is_old || self.asleep) && !has_children {
                parent.worker.leave(Leave::Idle);
            }
        }
    }

    pub(super) fn heard_parent(&mut self, number: u64, line: &[u8]) {
        let mut parents = self.parents.iter_mut();
        let Some(parent) = parents.find(|parent| parent.number == number) else {
            return;
        };
        let (word, rest) = first_word(line);
        let pid = parent.worker.pid;
        match word {
            b"loaded" => {
                parent.loaded = true;
                self.tell(&format!("{pid} has loaded the application"));
            }
            b"file" => {
                let since = parent.since;
                self.watch(since, rest);
            }
            b"trace" => add_line(&mut parent.trace, rest),
            b"failed" if rest.starts_with(b"fork ") => self.not_forked(number, rest),
            b"failed" => {
                let trace = std::mem::take(&mut parent.trace);
                self.tell_trace(trace, pid);
            }
            b"forked" => self.forked(number, rest),
            b"exited" => self.exited(number, rest),
            _ => {}
        }
    }

    /// `SLOT PID`
    fn forked(&mut self, parent: u64, rest: &[u8]) {
        let (slot, pid) = first_word(rest);
        let (Some(at), Some(pid)) = (number::<usize>(slot), number(pid)) else {
            return;
        };
        let held = self
            .places
            .get_mut(at)
            .and_then(|place| place.held.as_mut());
        if let Some(held) = held.filter(|held| held.parent == parent) {
            held.worker.born(pid);
        }
    }

    /// `fork SLOT TEXT`
    fn not_forked(&mut self, parent: u64, rest: &[u8]) {
        let (_, rest) = first_word(rest);
        let (slot, text) = first_word(rest);
        let text = format!("no worker could be forked: {}", escape(text));
        let place = number(slot).and_then(|at: usize| self.places.get_mut(at));
        if let Some(place) = place
            && place.held.take_if(|held| held.parent == parent).is_some()
        {
            self.failed_start(&text, None);
        }
    }

    /// `PID code N` or `PID signal N`
    fn exited(&mut self, parent: u64, rest: &[u8]) {
        let (pid, how) = first_word(rest);
        let (kind, value) = first_word(how);
        let (Some(pid), Some(value)) = (number::<u32>(pid), number(value)) else {
            return;
        };
        let how = match kind {
            b"signal" => Ended::Signal(value),
            _ => Ended::Exit(value),
        };
        let held = self
            .places
            .iter_mut()
            .filter_map(|place| place.held.as_mut());
        let mut own = held.filter(|held| held.parent == parent && held.worker.pid == pid);
        if let Some(held) = own.next() {
            held.worker.has_ended(Some(how));
        }
    }

    pub(super) fn parent_ended(&mut self, number: u64, end: End) {
        let mut parents = self.parents.iter();
        let Some(at) = parents.position(|parent| parent.number == number) else {
            return;
        };
        let parent = self.parents.remove(at);
        // They notice it, and leave.
        for held in self
            .places
            .iter_mut()
            .filter_map(|place| place.held.as_mut())
        {
            if held.parent == number {
                held.worker.has_ended(None);
            }
        }
        let pid = parent.worker.pid;
        let how = match end {
            End::NotStarted(error) => return self.not_started(&error),
            end => how_it_ended(&end),
        };
        if parent.worker.is_leaving() {
            self.tell(&format!("{pid} {how}"));
        } else if !parent.loaded || parent.since.elapsed() < SETTLED {
            let began = (!parent.loaded).then_some(parent.since);
            self.failed_start(&format!("{pid} {how} at its start"), began);
        } else {
            let text = format!("{pid}, which had loaded the application, {how}; its workers leave");
            self.fault(&text);
        }
    }
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    str::from_utf8(word).ok()?.parse().ok()
}
