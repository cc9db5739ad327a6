//! What the operating system is asked for that has no safe form elsewhere: users,
//! signal dispositions, limits, and descriptors the runtime watches.
#![allow(unsafe_code, reason = "each call says why it is sound")]

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An entry of the user database.
pub struct User {
    pub name: OsString,
    pub home: OsString,
    name_c: CString,
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl User {
    /// The user of that name, if there is one.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        let name = CString::new(name)?;
        Self::look_up(|entry, buffer, length, found| {
            // SAFETY: all pointers are valid for the call; `length` is the
            // buffer's.
            unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, length, found) }
        })
    }

    /// The user this process acts as.
    pub fn current() -> io::Result<Option<Self>> {
        let uid = rustix::process::geteuid().as_raw();
        Self::look_up(|entry, buffer, length, found| {
            // SAFETY: as above.
            unsafe { libc::getpwuid_r(uid, entry, buffer, length, found) }
        })
    }

    fn look_up(
        ask: impl Fn(*mut libc::passwd, *mut libc::c_char, usize, *mut *mut libc::passwd) -> libc::c_int,
    ) -> io::Result<Option<Self>> {
        const MAX_BYTES: usize = 1 << 20;
        let mut buffer = vec![0; 4 << 10];
        loop {
            let mut entry = MaybeUninit::<libc::passwd>::uninit();
            let mut found = ptr::null_mut();
            match ask(
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            ) {
                0 if found.is_null() => return Ok(None),
                0 => {
                    // SAFETY: on success `found` is the entry, whose strings
                    // are NUL-ended and live in the buffer.
                    let user = unsafe {
                        let entry = &*found;
                        let name_c = CStr::from_ptr(entry.pw_name).to_owned();
                        Self {
                            name: OsString::from_vec(name_c.clone().into_bytes()),
                            home: OsString::from_vec(
                                CStr::from_ptr(entry.pw_dir).to_bytes().to_vec(),
                            ),
                            name_c,
                            uid: entry.pw_uid,
                            gid: entry.pw_gid,
                        }
                    };
                    return Ok(Some(user));
                }
                libc::ERANGE if buffer.len() < MAX_BYTES => buffer.resize(buffer.len() * 2, 0),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    /// Becomes this user for good: supplementary groups, group, user, in this
    /// order (C144). Any failure leaves a process that must end.
    pub fn become_for_good(&self) -> io::Result<()> {
        // SAFETY: the name is NUL-ended; the other calls take plain numbers.
        // The C library applies them to every thread.
        let done = unsafe {
            libc::initgroups(self.name_c.as_ptr(), self.gid) == 0
                && libc::setgid(self.gid) == 0
                && libc::setuid(self.uid) == 0
        };
        if done {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Whether this process was started with the signal ignored, as `nohup` and
/// shells do for background commands. It stays so then.
pub fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks; initialised when it returns 0.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Undoes what a parent may have chosen and this program can't live with. To be
/// called before the first thread.
pub fn set_signals() {
    // SAFETY: neither disposition is a handler.
    unsafe {
        // Ignored, it has the kernel reap scripts before anybody learns how
        // they ended (C122, C124).
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        // At its default, a content or a log that outgrows `ulimit -f` would
        // end the server; ignored, the write fails with an error.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Raises the soft limit of open files to the hard one. Returns what it was, if
/// it was lower, for the scripts (C130).
pub fn raise_open_files() -> Option<libc::rlimit> {
    let mut before = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the first call initialises the struct that the second reads.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, before.as_mut_ptr()) != 0 {
            return None;
        }
        let before = before.assume_init();
        let raised = libc::rlimit {
            rlim_cur: before.rlim_max,
            ..before
        };
        let higher = raised.rlim_cur > before.rlim_cur
            && libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0;
        higher.then_some(before)
    }
}

/// How many files this process may have open.
pub fn open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX)
}

/// Has the C library map large pieces of memory one by one, so that they go back
/// to the system when they are freed. Left alone it raises this bound with each
/// such piece, and after some long listings keeps tens of megabytes.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number; to be called before there are threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
    }
}

/// Bytes of memory that a process holds, those that it shares with others in
/// parts (Pss). `None` where the kernel doesn't say, or the process is gone.
pub fn proportional_memory(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// Asks the scheduler not to take a core from somebody else the moment a request
/// comes for this thread. Where cores are short, clients and scripts go on, more
/// requests come together, and each costs less; where one is free, nothing
/// changes. Threads and processes that this one starts inherit it.
pub fn let_others_finish() {
    // Else it was chosen by who started the server; and a nice value below 0
    // would be lost to scripts.
    // SAFETY: these ask and set plain numbers of this thread.
    unsafe {
        let is_usual = libc::sched_getscheduler(0) == libc::SCHED_OTHER
            && libc::getpriority(libc::PRIO_PROCESS, 0) >= 0;
        if is_usual {
            let parameters = libc::sched_param { sched_priority: 0 };
            // Without it the server is slower, no more.
            libc::sched_setscheduler(0, OTHERS_FIRST, &raw const parameters);
        }
    }
}

/// The second flag does nothing for this policy; it tells it from the same
/// policy chosen by who started the server.
const OTHERS_FIRST: libc::c_int = libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK;

/// Whether this thread has called [`let_others_finish`].
pub fn lets_others_finish() -> bool {
    // SAFETY: asks for a plain number of this thread.
    unsafe { libc::sched_getscheduler(0) == OTHERS_FIRST }
}

/// Has the runtime watch a descriptor.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open file for as long as it lives, which
    // is as long as the `AsyncFd` that takes it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
