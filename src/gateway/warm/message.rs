//! What the server and a prepared interpreter say to each other: one datagram
//! of a `SOCK_SEQPACKET` pair each.
//!
//! To it, a request: a header line, then NUL-ended strings, and the script's
//! standard streams as `SCM_RIGHTS`:
//!
//! ```text
//! run NUMBER ARGC ORIGC ENVC UMASK\0 arguments… original… environment… cwd\0 script\0
//! ```
//!
//! From it: `ready VERSION`, `never REASON`, `ran NUMBER PID` (by the child that
//! becomes the script), `no NUMBER REASON`, `log TEXT`.

use std::ffi::{CStr, CString};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Pid;

use crate::gateway::spawn::Program;

/// A longer request is left to exec.
const MAX_BYTES: usize = 64 << 10;
/// No answer is longer.
pub const ANSWER_BYTES: usize = 4 << 10;

/// A request without its number.
#[derive(Debug)]
pub struct Message {
    counts: String,
    strings: Vec<u8>,
}

impl Message {
    /// `original` is the command line that exec would have made. `None`: too long.
    pub fn new(program: &Program, original: &[CString], umask: u32) -> Option<Self> {
        let (arguments, environment) = (&program.arguments, &program.environment);
        let mut strings = Vec::with_capacity(4 << 10);
        let all = arguments.iter().chain(original).chain(environment);
        for string in all.chain([&program.directory, &program.file]) {
            strings.extend_from_slice(string.as_bytes_with_nul());
        }
        let counts = format!(
            "{} {} {} {umask:o}\0",
            arguments.len(),
            original.len(),
            environment.len()
        );
        (strings.len() + counts.len() + 32 <= MAX_BYTES).then_some(Self { counts, strings })
    }

    /// Doesn't block. All is sent, or nothing.
    pub fn send(
        &self,
        number: u64,
        streams: [BorrowedFd<'_>; 3],
        socket: impl AsFd,
    ) -> Result<(), Errno> {
        let mut head = Vec::with_capacity(64);
        // Writing to memory can't fail.
        let _ = write!(head, "run {number} {}", self.counts);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&streams)) {
            return Err(Errno::NOBUFS);
        }
        let parts = [IoSlice::new(&head), IoSlice::new(&self.strings)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(socket, &parts, &mut control, flags).map(drop)
    }
}

/// What a prepared interpreter says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It can serve.
    Ready(String),
    /// It is not to be used.
    Never(String),
    /// The request runs as this process.
    Ran(u64, Pid),
    /// The request was declined; nothing was started.
    No(u64, String),
    Log(String),
}

impl Said {
    /// `None`: it is no message.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = CStr::from_bytes_with_nul(bytes).ok()?.to_string_lossy();
        let (word, rest) = text.split_once(' ')?;
        Some(match word {
            "ready" => Self::Ready(rest.into()),
            "never" => Self::Never(rest.into()),
            "log" => Self::Log(rest.into()),
            "ran" => {
                let (number, pid) = rest.split_once(' ')?;
                let pid = pid.parse().ok().filter(|&pid: &i32| pid > 1)?;
                Self::Ran(number.parse().ok()?, Pid::from_raw(pid)?)
            }
            "no" => {
                let (number, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                Self::No(number.parse().ok()?, reason.into())
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<CString> {
        list.iter().map(|s| CString::new(*s).unwrap()).collect()
    }

    fn program(environment: &[&str]) -> Program {
        Program {
            file: c"/r/x.py".into(),
            arguments: strings(&["/r/x.py", "a b"]),
            environment: strings(environment),
            directory: c"/r".into(),
            open_files: None,
        }
    }

    #[test]
    fn a_request_is_counted_and_its_strings_end_with_nul() {
        let original = strings(&["/usr/bin/python3", "-u", "/r/x.py", "a b"]);
        let message = Message::new(&program(&["A=1", "B="]), &original, 0o22).unwrap();
        assert_eq!(message.counts, "2 4 2 22\0");
        assert_eq!(
            message.strings,
            b"/r/x.py\0a b\0/usr/bin/python3\0-u\0/r/x.py\0a b\0A=1\0B=\0/r\0/r/x.py\0"
        );
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_no_message() {
        let long = format!("A={}", "x".repeat(MAX_BYTES));
        assert!(Message::new(&program(&[&long]), &[], 0o22).is_none());
    }

    #[test]
    fn answers_are_told_from_garbage() {
        let pid = Pid::from_raw(4711).unwrap();
        for (bytes, said) in [
            (
                &b"ready python 3.11.2\0"[..],
                Some(Said::Ready("python 3.11.2".into())),
            ),
            (b"never too old\0", Some(Said::Never("too old".into()))),
            (b"ran 7 4711\0", Some(Said::Ran(7, pid))),
            (
                b"no 7 another script\0",
                Some(Said::No(7, "another script".into())),
            ),
            (b"no 7\0", Some(Said::No(7, String::new()))),
            (b"log x\0", Some(Said::Log("x".into()))),
            (b"", None),
            (b"\0", None),
            (b"ready", None),
            (b"ran 7 4711", None),
            (b"ran 7 0\0", None),
            (b"ran 7 1\0", None),
            (b"ran 7 -4\0", None),
            (b"ran -7 4711\0", None),
            (b"ran 7\0", None),
            (b"ran 7 4711\0x\0", None),
            (b"ran 99999999999999999999 4711\0", None),
            (b"\xff\xfe\0", None),
            (b"hello world\0", None),
        ] {
            assert_eq!(Said::parse(bytes), said, "{}", bytes.escape_ascii());
        }
    }
}
