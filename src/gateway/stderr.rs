//! A script's standard error: logged line by line, its end kept for a diagnosis
//! (contract C119). Read all the time; only of a script that ends within a
//! moment, at its end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::log::{Log, MAX_LINE_BYTES, escape};
use crate::os;

/// Lines kept for the diagnosis.
const TAIL_LINES: usize = 10;
/// How long a diagnosis waits for lines that are still in the pipe.
const SETTLE: Duration = Duration::from_millis(100);

/// The reading side of one script's standard error. When this is dropped, the
/// reading goes on until the last process that holds the pipe has closed it.
pub struct Stderr {
    tail: Arc<Mutex<VecDeque<String>>>,
    reading: Reading,
}

enum Reading {
    /// Nobody reads yet: most scripts have ended before it matters.
    Later(Box<Pump<OwnedFd>>),
    /// A task reads; it says when it has come to the end.
    Always(watch::Receiver<bool>),
    /// All was read.
    Ended,
}

/// Turns what comes out of the pipe into lines.
struct Pump<Pipe> {
    pipe: Pipe,
    subject: String,
    pid: u32,
    log: Log,
    tail: Arc<Mutex<VecDeque<String>>>,
    line: Vec<u8>,
}

impl Stderr {
    /// `pipe` doesn't block. It is read from [`Stderr::watch`] on, and at the end.
    pub fn new(pipe: OwnedFd, subject: &str, pid: u32, log: &Log) -> Self {
        let tail = Arc::<Mutex<VecDeque<String>>>::default();
        let pump = Pump {
            pipe,
            subject: subject.to_owned(),
            pid,
            log: log.clone(),
            tail: Arc::clone(&tail),
            line: Vec::new(),
        };
        Self {
            tail,
            reading: Reading::Later(Box::new(pump)),
        }
    }

    /// Before [`Stderr::watch`]: whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        match &self.reading {
            Reading::Later(pump) => rustix::io::ioctl_fionread(&pump.pipe).is_ok_and(|n| n == 0),
            Reading::Always(_) | Reading::Ended => false,
        }
    }

    /// Reads from now on whenever something comes.
    pub fn watch(&mut self) -> io::Result<()> {
        if !matches!(self.reading, Reading::Later(_)) {
            return Ok(());
        }
        let Reading::Later(pump) = std::mem::replace(&mut self.reading, Reading::Ended) else {
            return Ok(());
        };
        let (end, ended) = watch::channel(false);
        let pump = pump.watched()?;
        tokio::spawn(async move {
            pump.run().await;
            end.send_replace(true);
        });
        self.reading = Reading::Always(ended);
        Ok(())
    }

    /// The script has ended: takes what is there; a descendant that still
    /// holds the pipe is read on (C119).
    fn finish(&mut self) {
        if let Reading::Later(pump) = &mut self.reading
            && pump.read_now()
        {
            self.reading = Reading::Ended;
        }
        if let Err(error) = self.watch() {
            // What it still writes to the pipe fills it, or ends it by SIGPIPE.
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.push_back(format!("its standard error can't be read: {error}"));
        }
    }

    /// The last lines. To be asked when the script has ended: waits a moment
    /// for what is still in the pipe.
    pub async fn last_lines(&mut self) -> Vec<String> {
        self.finish();
        if let Reading::Always(ended) = &mut self.reading {
            let _ = timeout(SETTLE, ended.wait_for(|&ended| ended)).await;
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect()
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Pump<OwnedFd> {
    fn watched(self) -> io::Result<Pump<AsyncFd<OwnedFd>>> {
        Ok(Pump {
            pipe: os::watch(self.pipe, Interest::READABLE)?,
            subject: self.subject,
            pid: self.pid,
            log: self.log,
            tail: self.tail,
            line: self.line,
        })
    }

    /// Reads what is there. Returns whether that was the end.
    fn read_now(&mut self) -> bool {
        let mut buffer = [0; 1 << 10];
        loop {
            match rustix::io::read(&self.pipe, &mut buffer[..]) {
                Ok(0) => break,
                Ok(read) => self.take(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => break,
            }
        }
        self.end();
        true
    }
}

impl Pump<AsyncFd<OwnedFd>> {
    async fn run(mut self) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Ok(mut ready) = self.pipe.readable().await else {
                break;
            };
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer[..])?));
            drop(ready);
            match read {
                Ok(Ok(0)) => break,
                Ok(Ok(read)) => self.take(&buffer[..read]),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => break,
                Err(_would_block) => {}
            }
        }
        self.end();
    }
}

impl<Pipe> Pump<Pipe> {
    fn end(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.line.len();
            let (piece, ends) = match bytes.iter().take(room).position(|&b| b == b'\n') {
                Some(at) => (at, true),
                None => (bytes.len().min(room), false),
            };
            self.line.extend_from_slice(&bytes[..piece]);
            bytes = &bytes[piece + usize::from(ends)..];
            if ends || self.line.len() == MAX_LINE_BYTES {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        self.log.script_line(&self.subject, self.pid, line);
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(escape(line));
        drop(tail);
        self.line.clear();
    }
}
