//! Starting a script's process: everything between the clone and the exec.
//!
//! Why `clone` by hand: the contract asks for things that `posix_spawn` can't
//! do in the child (a parent-death signal, resource limits), a plain `fork`
//! copies the server's page tables for every request, and both `vfork` and
//! `posix_spawn` hold their caller until the exec is done, which a slow disk can
//! make long: other connections of the thread would wait. With `CLONE_VM` alone
//! the child lives in the server's memory, like a thread, until it calls exec,
//! and nobody waits for it.
//!
//! The invariant: between `clone` and `execve` the child makes only system
//! calls, and makes them itself: the C library's `errno` is the parent's. It
//! allocates nothing, takes no lock, can't panic, and writes only to its stack
//! and to `Shared::failed`. What it reads is kept until the kernel says that it
//! has left this memory. All signals are blocked until the handlers it has
//! copied are gone, so none of them runs in the child.
#![allow(
    unsafe_code,
    reason = "clone(2) and the calls after it have no safe form"
)]

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::{c_char, c_int, c_long, c_void};
use rustix::process::Pid;

use crate::os;

/// What the child becomes.
pub struct Program {
    pub file: CString,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
    pub directory: CString,
    /// The soft limit of open files that the server itself was started with, if
    /// it has raised its own (C130).
    pub open_files: Option<libc::rlimit>,
}

/// A started process. Nobody has waited for it yet.
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub birth: Birth,
}

/// Which step failed, and how.
#[derive(Debug)]
pub struct SpawnError {
    pub step: Step,
    pub error: io::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No process could be made: out of processes, memory or descriptors.
    Fork,
    /// Process group, signals, limits, descriptors.
    Prepare,
    /// The working directory.
    Directory,
    Exec,
}

/// Where a prepared interpreter finds its control socket: above the number that
/// Perl gives to the script it opens, below every limit of open files.
pub const CONTROL_FD: c_int = 9;

/// Enough for the system calls of `child`; there is no recursion in it.
const STACK_BYTES: usize = 32 << 10;

type Stack = Vec<MaybeUninit<u128>>;

thread_local! {
    /// A child's stack, kept for the next child of this thread.
    static STACK: Cell<Stack> = const { Cell::new(Vec::new()) };
}

/// A child that may not have become its script yet.
pub struct Birth(Option<Box<Shared>>);

/// Where a child stands.
pub enum Born {
    /// It still prepares itself.
    NotYet,
    /// It is the script.
    Script,
    /// It has ended without having become the script.
    Failed(SpawnError, Box<Program>),
}

/// What parent and child share until the child has called exec.
struct Shared {
    program: Box<Program>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    streams: [c_int; 3],
    /// Becomes `CONTROL_FD`; -1: nothing does.
    control: c_int,
    /// The server's process id, to notice that it died before the
    /// parent-death signal was set.
    server: libc::pid_t,
    /// Those whose disposition may not be the default.
    signals: &'static [c_int],
    /// The scheduling policy is the server's own.
    reschedule: bool,
    stack: Stack,
    /// Not 0 as long as the child uses this memory; the kernel clears it
    /// (`CLONE_CHILD_CLEARTID`).
    present: AtomicU32,
    /// The step that failed and its error number, in the two halves. 0: none.
    failed: AtomicU64,
}

// SAFETY: the pointers are those of the strings in `program`, which nobody
// changes.
unsafe impl Send for Shared {}
// SAFETY: as above; the rest is atomic or not changed either.
unsafe impl Sync for Shared {}

/// Starts the process in a process group of its own, with default signal
/// dispositions, an empty mask and SIGTERM for the server's death. `streams`
/// become its descriptors 0, 1 and 2, `control` becomes [`CONTROL_FD`]; all
/// others are close-on-exec (see `close_inherited`). They may be closed when this
/// has returned.
///
/// Doesn't wait for the exec: whether it failed shows in [`Birth`] as soon as
/// the process has ended.
///
/// The parent-death signal is tied to the thread that calls this: it must be
/// one that lives as long as the server.
pub fn spawn(
    program: Box<Program>,
    streams: [BorrowedFd<'_>; 3],
    control: Option<BorrowedFd<'_>>,
) -> Result<Spawned, SpawnError> {
    let mut stack = STACK.take();
    stack.reserve_exact(STACK_BYTES / size_of::<u128>());
    let mut shared = Box::new(Shared {
        argv: null_terminated(&program.arguments),
        envp: null_terminated(&program.environment),
        program,
        streams: streams.map(|stream| stream.as_raw_fd()),
        control: control.map_or(-1, |control| control.as_raw_fd()),
        // SAFETY: getpid has no preconditions.
        server: unsafe { libc::getpid() },
        signals: changed_signals(),
        reschedule: os::lets_others_finish(),
        stack,
        present: AtomicU32::new(1),
        failed: AtomicU64::new(0),
    });
    let mut pidfd: c_int = -1;
    // SAFETY: what the child uses lies in `shared`, whose memory `Birth` keeps
    // until the kernel has cleared `present`. The stack grows down from its
    // aligned end.
    let pid = unsafe {
        let stack = &mut shared.stack;
        let top = stack.as_mut_ptr().add(stack.capacity());
        let mask = block_signals();
        let pid = libc::clone(
            run,
            top.cast::<c_void>(),
            libc::CLONE_VM | HOLD | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD,
            (&raw const *shared).cast_mut().cast::<c_void>(),
            &raw mut pidfd,
            ptr::null_mut::<c_void>(),
            shared.present.as_ptr(),
        );
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut());
        if pid < 0 {
            shared.present.store(0, Ordering::Relaxed);
            return Err(SpawnError {
                step: Step::Fork,
                error,
            });
        }
        pid
    };
    // SAFETY: clone has just made this descriptor for us (CLONE_PIDFD).
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid).expect("clone returned a positive process id");
    Ok(Spawned {
        pid,
        pidfd,
        birth: Birth(Some(shared)),
    })
}

impl Birth {
    /// Of a process that was the script from the beginning.
    pub fn over() -> Self {
        Self(None)
    }

    /// Looks where the child stands. The process is over if it has failed.
    pub fn look(&mut self) -> Born {
        let Some(shared) = &self.0 else {
            return Born::Script;
        };
        if shared.present.load(Ordering::Acquire) != 0 {
            return Born::NotYet;
        }
        let shared = self.0.take().expect("looked at just now");
        STACK.set(shared.stack);
        let failed = shared.failed.load(Ordering::Acquire);
        let step = match failed >> 32 {
            0 => return Born::Script,
            PREPARE => Step::Prepare,
            DIRECTORY => Step::Directory,
            _ => Step::Exec,
        };
        let errno = i32::try_from(failed & u64::from(u32::MAX)).unwrap_or_default();
        let error = io::Error::from_raw_os_error(errno);
        Born::Failed(SpawnError { step, error }, shared.program)
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        if let Born::NotYet = self.look() {
            // The child still uses it; it will never be asked for again.
            std::mem::forget(self.0.take());
        }
    }
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Blocks every signal in this thread and returns the mask before.
unsafe fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for writes; sigfillset initialises the first,
    // pthread_sigmask the second.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

const PREPARE: u64 = 1;
const DIRECTORY: u64 = 2;
const EXEC: u64 = 3;

/// The child's life before exec. Runs on its own stack in the parent's memory.
extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: the argument is the `Shared` that the parent keeps for the child.
    let shared = unsafe { &*argument.cast::<Shared>() };
    // SAFETY: the module's invariant; every pointer was made before the clone.
    let (step, errno) = unsafe { become_script(shared) };
    let failed = step << 32 | u64::from(errno.unsigned_abs());
    shared.failed.store(failed, Ordering::Release);
    // SAFETY: ends this process alone; no handler of the parent's runs.
    let _ = unsafe { call(libc::SYS_exit_group, [127, 0, 0, 0]) };
    0
}

/// Returns the step that failed and its error number; on success it doesn't
/// return.
unsafe fn become_script(shared: &Shared) -> (u64, c_int) {
    let program = &*shared.program;
    // SAFETY: system calls on values that `shared` keeps.
    let prepared = unsafe { prepare(shared) };
    if let Err(errno) = prepared {
        return (PREPARE, errno);
    }
    // SAFETY: as above.
    unsafe {
        let directory = program.directory.as_ptr() as c_long;
        if let Err(errno) = call(libc::SYS_chdir, [directory, 0, 0, 0]) {
            return (DIRECTORY, errno);
        }
        let (file, argv, envp) = (
            program.file.as_ptr() as c_long,
            shared.argv.as_ptr() as c_long,
            shared.envp.as_ptr() as c_long,
        );
        match call(libc::SYS_execve, [file, argv, envp, 0]) {
            Err(errno) => (EXEC, errno),
            Ok(_) => (EXEC, 0),
        }
    }
}

/// Process group, signals, parent-death signal, limits, descriptors.
unsafe fn prepare(shared: &Shared) -> Result<(), c_int> {
    const KEEP: c_long = 0;
    // SAFETY: as in `become_script`.
    unsafe {
        call(libc::SYS_setpgid, [0, 0, 0, 0])?;
        reset_signals(shared.signals)?;
        let (option, signal) = (
            c_long::from(libc::PR_SET_PDEATHSIG),
            c_long::from(libc::SIGTERM),
        );
        call(libc::SYS_prctl, [option, signal, 0, 0])?;
        if call(libc::SYS_getppid, [0; 4])? != c_long::from(shared.server) {
            let _ = call(libc::SYS_exit_group, [127, 0, 0, 0]);
        }
        if shared.reschedule {
            let (usual, priority) = (c_long::from(libc::SCHED_OTHER), 0 as c_int);
            let parameters = ptr::from_ref(&priority) as c_long;
            call(libc::SYS_sched_setscheduler, [0, usual, parameters, 0])?;
        }
        if let Some(limit) = &shared.program.open_files {
            let (resource, limit) = (
                c_long::from(libc::RLIMIT_NOFILE),
                ptr::from_ref(limit) as c_long,
            );
            call(libc::SYS_prlimit64, [0, resource, limit, KEEP])?;
        }
        for (target, stream) in (0..).zip(shared.streams) {
            // The standard library has seen to it that the server's own 0 to 2
            // are open: no stream is one of them.
            call(libc::SYS_dup3, [c_long::from(stream), target, 0, 0])?;
        }
        if shared.control >= 0 {
            let control = c_long::from(shared.control);
            call(libc::SYS_dup3, [control, c_long::from(CONTROL_FD), 0, 0])?;
        }
    }
    Ok(())
}

/// Of the kernel's signal set, in bytes.
const SET_BYTES: c_long = 8;
/// At least as long as the kernel's sigaction on every platform. All zero it
/// is the default disposition with an empty mask.
type Action = [u64; 8];

/// The signals that this process doesn't leave at their default. Looked up
/// when the first script starts: the server's handlers are there by then, and
/// those that the runtime may add later are named here.
fn changed_signals() -> &'static [c_int] {
    static CHANGED: OnceLock<Vec<c_int>> = OnceLock::new();
    const HANDLED: [c_int; 5] = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGPIPE,
        libc::SIGCHLD,
    ];
    let is_default = |signal: c_int| {
        let mut action: Action = [0; 8];
        // Past the C library, which keeps two signals to itself: its
        // posix_spawn starts a program, such as this server, with these
        // ignored.
        // SAFETY: only asks; `action` is long enough.
        let asked = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                ptr::null::<c_void>(),
                action.as_mut_ptr(),
                SET_BYTES,
            )
        };
        // The handler is the first word of the kernel's structure.
        asked == 0 && action[0] == libc::SIG_DFL as u64
    };
    CHANGED.get_or_init(|| {
        let all = 1..=libc::SIGRTMAX();
        all.filter(|signal| HANDLED.contains(signal) || !is_default(*signal))
            .collect()
    })
}

/// Default dispositions and an empty mask (C129): an ignored signal would
/// survive the exec. The handlers' table is the child's own (no `CLONE_SIGHAND`).
unsafe fn reset_signals(changed: &[c_int]) -> Result<(), c_int> {
    let default: Action = [0; 8];
    let (default, none) = (default.as_ptr() as c_long, default.as_ptr() as c_long);
    // SAFETY: an all-zero sigaction is SIG_DFL with an empty mask, and an
    // all-zero set of signals is empty.
    unsafe {
        for &signal in changed {
            call(
                libc::SYS_rt_sigaction,
                [c_long::from(signal), default, 0, SET_BYTES],
            )?;
        }
        let how = c_long::from(libc::SIG_SETMASK);
        call(libc::SYS_rt_sigprocmask, [how, none, 0, SET_BYTES])?;
    }
    Ok(())
}

/// Whether the parent stands still until the child has called exec: where the
/// child can't make system calls without the C library.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const HOLD: c_int = 0;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const HOLD: c_int = libc::CLONE_VFORK;

/// A system call that doesn't touch `errno`. The error number is positive.
unsafe fn call(number: c_long, arguments: [c_long; 4]) -> Result<c_long, c_int> {
    // SAFETY: the caller's.
    let returned = unsafe { raw_call(number, arguments) };
    match c_int::try_from(-returned) {
        Ok(errno @ 1..4096) => Err(errno),
        _ => Ok(returned),
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn raw_call(number: c_long, [a, b, c, d]: [c_long; 4]) -> c_long {
    let returned;
    // SAFETY: the kernel's calling convention: it changes rax, rcx and r11, and
    // no memory but what the call is for.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => returned,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    returned
}

#[cfg(target_arch = "aarch64")]
unsafe fn raw_call(number: c_long, [a, b, c, d]: [c_long; 4]) -> c_long {
    let returned;
    // SAFETY: the kernel's calling convention: it changes x0, and no memory but
    // what the call is for.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => returned,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            options(nostack, preserves_flags),
        );
    }
    returned
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn raw_call(number: c_long, [a, b, c, d]: [c_long; 4]) -> c_long {
    // SAFETY: the caller's. `errno` is the parent's, who stands still (`HOLD`).
    unsafe {
        match libc::syscall(number, a, b, c, d) {
            -1 => -c_long::from(*libc::__errno_location()),
            returned => returned,
        }
    }
}

/// Marks every descriptor from 3 up close-on-exec, once at start: what the
/// server's own parent left open must not reach a script (C128). Everything
/// opened later is made close-on-exec from the beginning.
pub fn close_inherited() {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: only sets a flag on descriptors.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        return;
    }
    // Before Linux 5.11.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    for fd in entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<c_int>().ok())
    {
        if fd > 2 {
            // SAFETY: setting a flag; a descriptor closed meanwhile gives EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}
