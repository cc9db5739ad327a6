//! Starting a script's process: everything between the fork and the exec.
//!
//! Why `clone` by hand: the contract asks for things that `posix_spawn` can't
//! do in the child (a parent-death signal, resource limits) and a plain `fork`
//! copies the server's page tables for every request. `CLONE_VM | CLONE_VFORK`
//! is what `posix_spawn` itself does: the child borrows this thread's memory
//! until it has called exec, and this thread stands still meanwhile.
//!
//! The invariant: between `clone` and `execve` the child calls only system
//! calls, allocates nothing, takes no lock, can't panic, and writes only to
//! `Child::failure`. All signals are blocked around it, so no handler of ours
//! runs in the child.
#![allow(
    unsafe_code,
    reason = "clone(2) and the calls after it have no safe form"
)]

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use libc::{c_char, c_int, c_void};
use rustix::process::Pid;

/// What the child becomes.
pub struct Spawn<'a> {
    pub program: &'a CStr,
    pub arguments: &'a [CString],
    pub environment: &'a [CString],
    pub directory: &'a CStr,
    /// Become descriptors 0, 1 and 2. All others are close-on-exec (see
    /// `close_inherited`).
    pub streams: [BorrowedFd<'a>; 3],
    /// The soft limit of open files that the server itself was started with, if
    /// it has raised its own (C130).
    pub open_files: Option<libc::rlimit>,
}

/// A started process. Nobody has waited for it yet.
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
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

/// Enough for the system calls of `child`; there is no recursion in it.
const STACK_BYTES: usize = 32 << 10;

thread_local! {
    /// The child's stack, kept for the next child of this thread.
    static STACK: Cell<Vec<MaybeUninit<u128>>> = const { Cell::new(Vec::new()) };
}

/// What parent and child share while the parent stands still.
struct Child<'a> {
    spawn: &'a Spawn<'a>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// The server's process id, to notice that it died before the
    /// parent-death signal was set.
    server: libc::pid_t,
    /// Those whose disposition may not be the default.
    signals: &'a [c_int],
    failure: Option<(Step, c_int)>,
}

/// Starts the process in a process group of its own, with default signal
/// dispositions, an empty mask and SIGTERM for the server's death.
///
/// The parent-death signal is tied to the thread that calls this: it must be
/// one that lives as long as the server.
pub fn spawn(spawn: &Spawn<'_>) -> Result<Spawned, SpawnError> {
    let mut child = Child {
        spawn,
        argv: null_terminated(spawn.arguments),
        envp: null_terminated(spawn.environment),
        // SAFETY: getpid has no preconditions.
        server: unsafe { libc::getpid() },
        signals: changed_signals(),
        failure: None,
    };
    let mut stack = STACK.take();
    stack.reserve_exact(STACK_BYTES / size_of::<u128>());
    let mut pidfd: c_int = -1;
    // SAFETY: the stack outlives the child's use of it, because CLONE_VFORK
    // holds this thread until the child has called exec or _exit; it grows
    // down from its aligned end. `child` is only touched by the child meanwhile.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity());
        let mask = block_signals();
        let pid = libc::clone(
            run,
            top.cast::<c_void>(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            (&raw mut child).cast::<c_void>(),
            &raw mut pidfd,
        );
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut());
        if pid < 0 {
            return Err(SpawnError {
                step: Step::Fork,
                error,
            });
        }
        pid
    };
    STACK.set(stack);
    // SAFETY: clone has just made this descriptor for us (CLONE_PIDFD).
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid).expect("clone returned a positive process id");
    // SAFETY: written by the child before it ended; read after clone returned.
    let failure = unsafe { ptr::read_volatile(&raw const child.failure) };
    match failure {
        None => Ok(Spawned { pid, pidfd }),
        Some((step, errno)) => {
            // It has called _exit: this returns at once and leaves no zombie.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(SpawnError {
                step,
                error: io::Error::from_raw_os_error(errno),
            })
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

/// The child's life before exec. Runs on its own stack in the parent's memory.
extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: the argument is the `Child` that `spawn` keeps alive and still.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    // SAFETY: the module's invariant; every pointer was made before the clone.
    let step = unsafe { become_script(child) };
    // SAFETY: errno is this thread's own; _exit runs no handler of the parent's.
    unsafe {
        child.failure = Some((step, *libc::__errno_location()));
        libc::_exit(127)
    }
}

/// Returns the step that failed; on success it doesn't return.
unsafe fn become_script(child: &Child<'_>) -> Step {
    let spawn = child.spawn;
    // SAFETY: system calls on values that live in the parent's memory.
    unsafe {
        if libc::setpgid(0, 0) != 0 || !reset_signals(child.signals) {
            return Step::Prepare;
        }
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
            return Step::Prepare;
        }
        if libc::getppid() != child.server {
            libc::_exit(127);
        }
        if let Some(limit) = &spawn.open_files
            && libc::setrlimit(libc::RLIMIT_NOFILE, limit) != 0
        {
            return Step::Prepare;
        }
        for (target, stream) in (0..).zip(&spawn.streams) {
            if libc::dup2(stream.as_raw_fd(), target) < 0 {
                return Step::Prepare;
            }
        }
        if libc::chdir(spawn.directory.as_ptr()) != 0 {
            return Step::Directory;
        }
        libc::execve(
            spawn.program.as_ptr(),
            child.argv.as_ptr(),
            child.envp.as_ptr(),
        );
        Step::Exec
    }
}

/// Of the kernel's signal set, in bytes.
const SET_BYTES: usize = 8;
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
        // The handler is the first word of the kernel's structure; fails for
        // no signal.
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
unsafe fn reset_signals(changed: &[c_int]) -> bool {
    let default: Action = [0; 8];
    // SAFETY: an all-zero sigaction is SIG_DFL with an empty mask.
    unsafe {
        for &signal in changed {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                SET_BYTES,
            );
        }
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) == 0
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
