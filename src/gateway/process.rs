//! The life of a script's process after its start: watched by its pidfd, held
//! by a guard, ended as a group, always reaped (contract C127, C134 to C137).
//!
//! A process that has ended is left unreaped until nobody will signal its group
//! any more, so that its number can't come to mean another process (C201).

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open};
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
    /// The thread that starts prepared interpreters. What they start in turn is
    /// its child, and is known here only a moment later.
    preparing: OnceLock<Pid>,
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
        self.start_with(program, streams, None, Some(permit))
    }

    /// Starts an interpreter that waits at `control` and takes nobody's place.
    pub fn prepare(
        &self,
        program: Box<Program>,
        streams: [BorrowedFd<'_>; 3],
        control: BorrowedFd<'_>,
    ) -> Result<Process, SpawnError> {
        self.start_with(program, streams, Some(control), None)
    }

    /// Starts a worker of an application, which takes nobody's place. `control`
    /// is not the descriptor that it becomes.
    pub fn employ(
        &self,
        program: Box<Program>,
        streams: [BorrowedFd<'_>; 3],
        control: Option<BorrowedFd<'_>>,
    ) -> Result<Process, SpawnError> {
        self.start_with(program, streams, control, None)
    }

    fn start_with(
        &self,
        program: Box<Program>,
        streams: [BorrowedFd<'_>; 3],
        control: Option<BorrowedFd<'_>>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Process, SpawnError> {
        let starting = self.live.starting.read();
        let Spawned { pid, pidfd, birth } = spawn(program, streams, control)?;
        self.live.lock().insert(pid);
        drop(starting);
        Ok(self.hold(pid, pidfd, birth, permit))
    }

    /// Takes over a child of this process that a prepared interpreter has made.
    /// An error if it is no such child or can't be watched.
    pub fn adopt(&self, pid: Pid, permit: Option<OwnedSemaphorePermit>) -> io::Result<Process> {
        let mut groups = self.live.lock();
        if groups.contains(&pid) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // Before anything can reap it: the number is still this process's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        rustix::process::waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        )?;
        groups.insert(pid);
        drop(groups);
        // It does so too; whoever comes first. Before that a signal for its
        // group would go astray.
        let _ = rustix::process::setpgid(Some(pid), Some(pid));
        Ok(self.hold(pid, pidfd, Birth::over(), permit))
    }

    fn hold(
        &self,
        pid: Pid,
        pidfd: OwnedFd,
        birth: Birth,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Process {
        let inner = Inner {
            pid,
            pidfd: Pidfd::Unwatched(pidfd),
            birth,
            ended: None,
            processes: self.clone(),
            permit,
        };
        Process { inner: Some(inner) }
    }

    /// Says that the calling thread starts the prepared interpreters.
    pub fn prepare_here(&self) {
        let _ = self.live.preparing.set(rustix::thread::gettid());
    }

    /// The children of the preparing thread that nobody holds, each with the
    /// time of its start: on their way to [`Processes::adopt`], or lost because
    /// they ended before they could say that they run.
    pub fn unheld(&self) -> HashMap<Pid, u64> {
        let children = self.live.prepared().unwrap_or_default();
        let groups = self.live.lock();
        let unheld = children.into_iter().filter(|pid| !groups.contains(pid));
        unheld
            .filter_map(|pid| Some((pid, Entry::of(pid)?.started)))
            .collect()
    }

    /// Ends such a child for good. Anything else is left alone.
    pub fn end_lost(&self, pid: Pid) {
        let groups = self.live.lock();
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let is_child = rustix::process::waitid(WaitId::Pid(pid), look).is_ok();
        if is_child && !groups.contains(&pid) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            // The next look takes it if it hasn't ended yet.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = rustix::process::waitid(WaitId::Pid(pid), options);
        }
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
        let zombies = zombies_of(1);
        // After the zombies: a child stays in the list until it is reaped.
        let Some(prepared) = self.prepared() else {
            return;
        };
        let groups = self.lock();
        let strangers = zombies
            .into_iter()
            .filter(|pid| !groups.contains(pid) && !prepared.contains(pid));
        for pid in strangers {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = rustix::process::waitid(WaitId::Pid(pid), options);
        }
    }

    /// All children of the preparing thread; `None` if the kernel doesn't say.
    fn prepared(&self) -> Option<Vec<Pid>> {
        let Some(thread) = self.preparing.get() else {
            return Some(Vec::new());
        };
        let file = format!("/proc/self/task/{}/children", thread.as_raw_nonzero());
        let list = std::fs::read_to_string(file).ok()?;
        let numbers = list.split_ascii_whitespace();
        Some(
            numbers
                .filter_map(|number| positive(number.parse().ok()?))
                .collect(),
        )
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

    /// Ends it alone, at once, and even if it is stopped.
    pub fn kill(&mut self) {
        let _ = rustix::process::kill_process(self.inner().pid, Signal::KILL);
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
    /// In clock ticks since the machine's start.
    started: u64,
}

/// `None` where there is no /proc.
fn process_table() -> Option<impl Iterator<Item = Entry>> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    Some(
        entries.filter_map(|entry| Entry::of(positive(entry.file_name().to_str()?.parse().ok()?)?)),
    )
}

fn positive(number: i32) -> Option<Pid> {
    (number > 0).then(|| Pid::from_raw(number)).flatten()
}

impl Entry {
    fn of(pid: Pid) -> Option<Self> {
        let file = format!("/proc/{}/stat", pid.as_raw_nonzero());
        Self::parse(&std::fs::read_to_string(file).ok()?)
    }

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
            started: fields.nth(16)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_from_a_zombie_and_a_stranger() {
        // The fields from the session on; the 22nd of all is the start.
        let rest = "0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0";
        let parse = |stat: &str| Entry::parse(&format!("{stat} {rest}")).unwrap();
        let member = parse("43 (a) b) S 1 42");
        assert_eq!(member.group, Pid::from_raw(42));
        assert_eq!(
            (member.pid, member.parent, member.is_zombie),
            (43, 1, false)
        );
        assert_eq!(member.started, 777);
        assert!(parse("42 (x) Z 7 42").is_zombie);
        assert_ne!(parse("44 (x) S 1 44").group, member.group);
        assert_eq!(parse("45 (x) X 0 -1").group, None);
    }
}
