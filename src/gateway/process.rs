//! The life of a script's process after its start: watched by its pidfd, held
//! by a guard, ended as a group, always reaped (contract C127, C134 to C137).
//!
//! A process that has ended is left unreaped until nobody will signal its group
//! any more, so that its number can't come to mean another process (C201).

use std::collections::HashSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::spawn::{Birth, Born, Program, SpawnError, Spawned, spawn};
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
    /// Held for reading from a process's start to its entry in `groups`.
    starting: RwLock<()>,
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
    pidfd: Pidfd,
    birth: Birth,
    ended: Option<Ended>,
    processes: Processes,
    permit: Option<OwnedSemaphorePermit>,
}

/// The runtime watches it only when somebody has to wait for the end: most
/// scripts have ended when that is asked.
enum Pidfd {
    Unwatched(OwnedFd),
    Watched(AsyncFd<OwnedFd>),
    /// It can't be watched: out of memory or watches.
    Unwatchable,
}

impl Pidfd {
    /// Returns when the process may have ended.
    async fn wait(&mut self) {
        if let Self::Unwatched(_) = self
            && let Self::Unwatched(pidfd) = std::mem::replace(self, Self::Unwatchable)
            && let Ok(pidfd) = os::watch(pidfd, Interest::READABLE)
        {
            *self = Self::Watched(pidfd);
        }
        let Self::Watched(pidfd) = self else {
            return sleep(GROUP_POLL).await;
        };
        match pidfd.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            // The runtime is going down and takes the process with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Processes {
    /// `runtime` is where scripts are watched.
    pub fn new(runtime: Handle) -> Self {
        let live = Arc::<Live>::default();
        // As the first process of a container: nobody else reaps what scripts
        // leave behind (C134).
        if std::process::id() == 1 {
            runtime.spawn(reap_orphans(Arc::clone(&live)));
        }
        Self { live, runtime }
    }

    /// `streams` become the descriptors 0, 1 and 2.
    pub fn start(
        &self,
        program: Box<Program>,
        streams: [BorrowedFd<'_>; 3],
        permit: OwnedSemaphorePermit,
    ) -> Result<Process, SpawnError> {
        let starting = self.live.starting.read();
        let Spawned { pid, pidfd, birth } = spawn(program, streams)?;
        self.live.lock().insert(pid);
        drop(starting);
        let inner = Inner {
            pid,
            pidfd: Pidfd::Unwatched(pidfd),
            birth,
            ended: None,
            processes: self.clone(),
            permit: Some(permit),
        };
        Ok(Process { inner: Some(inner) })
    }

    /// Ends every group: SIGTERM, `TERM_GRACE`, SIGKILL. Returns when all are
    /// reaped.
    pub async fn end_all(&self) {
        self.live.signal_all(Signal::TERM);
        self.live.signal_all(Signal::CONT);
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

    fn signal_all(&self, signal: Signal) {
        // Under the lock: what is in the set isn't reaped yet.
        for &pid in self.lock().iter() {
            signal_script(pid, signal);
        }
    }

    /// Zombies that are no scripts of ours.
    fn reap_strangers(&self) {
        let _none_starts = self.starting.write();
        let groups = self.lock();
        for pid in zombies_of(1)
            .into_iter()
            .filter(|pid| !groups.contains(pid))
        {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = rustix::process::waitid(WaitId::Pid(pid), options);
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

async fn reap_orphans(live: Arc<Live>) {
    // Without the signal zombies stay, which costs a process number each.
    let Ok(mut ended) = signal(SignalKind::child()) else {
        return;
    };
    while ended.recv().await.is_some() {
        live.reap_strangers();
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

    /// Whether it has become the script.
    pub fn birth(&mut self) -> Born {
        self.inner().birth.look()
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
        // One that is stopped would not see it.
        inner.signal_group(Signal::CONT);
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
            self.ended = status(self.pid);
            if self.ended.is_none() {
                self.pidfd.wait().await;
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
        signal_script(self.pid, signal);
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

/// Signals the group a script was started in, and the script itself if it has
/// gone over to another group: it must neither run on nor keep its place.
fn signal_script(pid: Pid, signal: Signal) {
    let _ = rustix::process::kill_process_group(pid, signal);
    if rustix::process::getpgid(Some(pid)).is_ok_and(|group| group != pid) {
        let _ = rustix::process::kill_process(pid, signal);
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

/// Whether a group has a living member besides its zombie leader. There is no
/// system call for it; this reads the process table and is used after an abort
/// only.
fn group_has_members(group: Pid) -> bool {
    let Some(mut table) = process_table() else {
        return true;
    };
    table.any(|entry| entry.group == Some(group) && !entry.is_zombie)
}

fn zombies_of(parent: i32) -> Vec<Pid> {
    let table = process_table().into_iter().flatten();
    table
        .filter(|entry| entry.is_zombie && entry.parent == parent)
        .filter_map(|entry| positive(entry.pid))
        .collect()
}

/// A line of the process table.
struct Entry {
    pid: i32,
    parent: i32,
    group: Option<Pid>,
    is_zombie: bool,
}

/// `None` where there is no /proc.
fn process_table() -> Option<impl Iterator<Item = Entry>> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    Some(entries.filter_map(|entry| {
        entry.file_name().to_str()?.parse::<i32>().ok()?;
        Entry::parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?)
    }))
}

fn positive(number: i32) -> Option<Pid> {
    (number > 0).then(|| Pid::from_raw(number)).flatten()
}

impl Entry {
    /// `stat` is `PID (COMM) STATE PPID PGRP …`; COMM may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (before, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        Some(Self {
            pid: before.split(' ').next()?.parse().ok()?,
            is_zombie: matches!(fields.next()?, "Z" | "X"),
            parent: fields.next()?.parse().ok()?,
            // -1 while the process is just being taken away.
            group: positive(fields.next()?.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_from_a_zombie_and_a_stranger() {
        let parse = |stat| Entry::parse(stat).unwrap();
        let member = parse("43 (a) b) S 1 42 42 0");
        assert_eq!(member.group, Pid::from_raw(42));
        assert_eq!(
            (member.pid, member.parent, member.is_zombie),
            (43, 1, false)
        );
        assert!(parse("42 (x) Z 7 42 42 0").is_zombie);
        assert_ne!(parse("44 (x) S 1 44 44 0").group, member.group);
        assert_eq!(parse("45 (x) X 0 -1 -1 0").group, None);
    }
}
