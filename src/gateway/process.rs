//! The life of a script's process after its start: watched by its pidfd, held
//! by a guard, ended as a group, always reaped (contract C127, C134 to C137).
//!
//! A process that has ended is left unreaped until nobody will signal its group
//! any more, so that its number can't come to mean another process (C201).

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::spawn::{Spawn, SpawnError, Step, spawn};
use crate::os;

/// From SIGTERM to SIGKILL (C127).
pub const TERM_GRACE: Duration = Duration::from_secs(3);
/// How often a group that was told to end is looked at.
const GROUP_POLL: Duration = Duration::from_millis(20);

/// All scripts that run.
#[derive(Clone)]
pub struct Processes {
    live: Arc<Live>,
    runtime: Handle,
}

#[derive(Default)]
struct Live {
    groups: Mutex<HashSet<Pid>>,
    /// A process was reaped.
    reaped: Notify,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

/// Holds a running script and its place among `--cgi-jobs`. Whoever drops it
/// ends the whole process group: SIGTERM, then SIGKILL.
pub struct Process {
    inner: Option<Inner>,
}

struct Inner {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    ended: Option<Ended>,
    processes: Processes,
    permit: Option<OwnedSemaphorePermit>,
}

impl Processes {
    /// `runtime` is where scripts are watched. As process 1 of a container the
    /// server also reaps what its scripts leave behind (C134).
    pub fn new(runtime: Handle) -> Self {
        let live = Arc::<Live>::default();
        if std::process::id() == 1 {
            runtime.spawn(reap_adopted(Arc::clone(&live)));
        }
        Self { live, runtime }
    }

    /// Gives the place back if there is no process.
    pub fn start(
        &self,
        what: &Spawn<'_>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Process, (SpawnError, OwnedSemaphorePermit)> {
        match self.watched(what) {
            Ok((pid, pidfd)) => {
                let processes = self.clone();
                let inner = Inner {
                    pid,
                    pidfd,
                    ended: None,
                    processes,
                    permit: Some(permit),
                };
                Ok(Process { inner: Some(inner) })
            }
            Err(error) => Err((error, permit)),
        }
    }

    fn watched(&self, what: &Spawn<'_>) -> Result<(Pid, AsyncFd<OwnedFd>), SpawnError> {
        // As process 1 no child may look like an adopted one for a moment.
        let mut as_init = (std::process::id() == 1).then(|| self.live.lock());
        let spawned = spawn(what)?;
        match &mut as_init {
            Some(groups) => groups.insert(spawned.pid),
            None => self.live.lock().insert(spawned.pid),
        };
        drop(as_init);
        let pidfd = os::watch(spawned.pidfd, Interest::READABLE).map_err(|error| {
            // Out of memory or watches; the process must not run on unseen.
            let _ = rustix::process::kill_process_group(spawned.pid, Signal::KILL);
            let _ =
                rustix::process::waitpid(Some(spawned.pid), rustix::process::WaitOptions::empty());
            self.live.remove(spawned.pid);
            SpawnError {
                step: Step::Fork,
                error,
            }
        })?;
        Ok((spawned.pid, pidfd))
    }

    /// Ends every group: SIGTERM, `TERM_GRACE`, SIGKILL. Returns when all are
    /// reaped.
    pub async fn end_all(&self) {
        self.live.signal_all(Signal::TERM);
        if !self.live.all_reaped(Instant::now() + TERM_GRACE).await {
            self.live.signal_all(Signal::KILL);
            // The kernel needs a moment; after it there is nothing left to do.
            self.live
                .all_reaped(Instant::now() + Duration::from_secs(1))
                .await;
        }
    }
}

impl Live {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Pid>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, pid: Pid) {
        self.lock().remove(&pid);
        self.reaped.notify_waiters();
    }

    fn signal_all(&self, signal: Signal) {
        // Under the lock: what is in the set isn't reaped yet.
        for &pid in self.lock().iter() {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    async fn all_reaped(&self, deadline: Instant) -> bool {
        loop {
            let reaped = self.reaped.notified();
            tokio::pin!(reaped);
            reaped.as_mut().enable();
            if self.lock().is_empty() {
                return true;
            }
            if timeout_at(deadline, reaped).await.is_err() {
                return self.lock().is_empty();
            }
        }
    }
}

impl Process {
    fn inner(&mut self) -> &mut Inner {
        self.inner
            .as_mut()
            .expect("present until `release` or drop takes the whole process")
    }

    pub fn pid(&mut self) -> u32 {
        self.inner().pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for the direct child to end; it stays unreaped. Dropping the
    /// future loses nothing.
    pub async fn ended(&mut self) -> Ended {
        self.inner().ended().await
    }

    /// The script has answered in full. It is left alone (C136); while it runs
    /// on it keeps its place (C137) and it is reaped when it ends.
    pub fn release(mut self) {
        let Some(mut inner) = self.inner.take() else {
            return;
        };
        if inner.ended.is_some() {
            inner.reap();
        } else {
            let runtime = inner.processes.runtime.clone();
            runtime.spawn(async move {
                inner.ended().await;
                inner.reap();
            });
        }
    }

    /// Gives its place to another run of the same request (C138: an internal
    /// redirect must not wait for itself).
    pub fn give_place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.inner().permit.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        inner.signal_group(Signal::TERM);
        let runtime = inner.processes.runtime.clone();
        runtime.spawn(inner.end_group());
    }
}

impl Inner {
    async fn ended(&mut self) -> Ended {
        loop {
            if let Some(ended) = self.ended {
                return ended;
            }
            match self.pidfd.readable().await {
                Ok(mut ready) => {
                    self.ended = status(self.pid);
                    ready.clear_ready();
                }
                // The runtime is going down and takes the process with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// After SIGTERM: waits for the group to empty, then SIGKILL for the rest.
    async fn end_group(mut self) {
        let deadline = Instant::now() + TERM_GRACE;
        if timeout_at(deadline, self.ended()).await.is_ok() {
            while group_has_members(self.pid) && Instant::now() < deadline {
                sleep(GROUP_POLL).await;
            }
        }
        self.signal_group(Signal::KILL);
        self.ended().await;
        self.reap();
    }

    fn signal_group(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.pid, signal);
    }

    fn reap(self) {
        let mut groups = self.processes.live.lock();
        let _ = rustix::process::waitid(
            WaitId::Pid(self.pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        groups.remove(&self.pid);
        drop(groups);
        self.processes.live.reaped.notify_waiters();
    }
}

/// The end of a child that stays a zombie; `None` while it runs.
fn status(pid: Pid) -> Option<Ended> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status: WaitIdStatus = match rustix::process::waitid(WaitId::Pid(pid), options) {
        Ok(status) => status?,
        Err(rustix::io::Errno::INTR) => return None,
        // Somebody else reaped it, which nothing in this program does.
        Err(error) => {
            debug_assert!(false, "waitid: {}", io::Error::from(error));
            return Some(Ended::Exit(0));
        }
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Ended::Exit(code)),
        (None, Some(signal)) => Some(Ended::Signal(signal)),
        (None, None) => None,
    }
}

/// Reaps ended processes whose parents have ended before them. Only process 1
/// is given such children.
async fn reap_adopted(live: Arc<Live>) {
    const ADOPTED_POLL: Duration = Duration::from_secs(1);
    loop {
        sleep(ADOPTED_POLL).await;
        let groups = live.lock();
        let ended = zombies_of(1).filter(|pid| !groups.contains(pid));
        for pid in ended {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = rustix::process::waitid(WaitId::Pid(pid), options);
        }
    }
}

/// The ended children of a process that nobody has reaped yet.
fn zombies_of(parent: i32) -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid = entry
            .file_name()
            .to_str()?
            .parse()
            .ok()
            .and_then(Pid::from_raw)?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let is_zombie = fields.next() == Some("Z");
        (is_zombie && fields.next()?.parse() == Ok(parent)).then_some(pid)
    })
}

/// Whether a group has a living member besides its zombie leader. There is no
/// system call for it; this reads the process table and is used after an abort
/// only.
fn group_has_members(group: Pid) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return true;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let is_process = name
            .as_encoded_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit);
        is_process
            && std::fs::read_to_string(entry.path().join("stat"))
                .is_ok_and(|stat| is_member(&stat, group))
    })
}

/// `stat` is `PID (COMM) STATE PPID PGRP …`; COMM may hold anything.
fn is_member(stat: &str, group: Pid) -> bool {
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = rest.split(' ');
    let state = fields.next();
    let pgrp = fields.nth(1).and_then(|f| f.parse::<i32>().ok());
    pgrp == Some(group.as_raw_nonzero().get()) && !matches!(state, Some("Z" | "X"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_from_a_zombie_and_a_stranger() {
        let group = Pid::from_raw(42).unwrap();
        assert!(is_member("43 (a) b) S 1 42 42 0", group));
        assert!(!is_member("42 (x) Z 1 42 42 0", group));
        assert!(!is_member("44 (x) S 1 44 44 0", group));
    }
}
