//! A script's standard error: read all the time, logged line by line, its end
//! kept for a diagnosis (contract C119).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// The reading side of one script's standard error. The reading goes on when
/// this is dropped, until the last process that holds the pipe has closed it.
pub struct Stderr {
    tail: Arc<Mutex<VecDeque<String>>>,
    ended: watch::Receiver<bool>,
}

struct Pump {
    pipe: AsyncFd<OwnedFd>,
    subject: String,
    pid: u32,
    log: Log,
    tail: Arc<Mutex<VecDeque<String>>>,
    line: Vec<u8>,
}

impl Stderr {
    pub fn start(pipe: OwnedFd, subject: &str, pid: u32, log: &Log) -> io::Result<Self> {
        let tail = Arc::<Mutex<VecDeque<String>>>::default();
        let pump = Pump {
            pipe: os::watch(pipe, Interest::READABLE)?,
            subject: subject.to_owned(),
            pid,
            log: log.clone(),
            tail: Arc::clone(&tail),
            line: Vec::new(),
        };
        let (end, ended) = watch::channel(false);
        tokio::spawn(async move {
            pump.run().await;
            end.send_replace(true);
        });
        Ok(Self { tail, ended })
    }

    /// The last lines. To be asked when the script has ended: waits a moment
    /// for what is still in the pipe.
    pub async fn last_lines(&mut self) -> Vec<String> {
        let _ = timeout(SETTLE, self.ended.wait_for(|&ended| ended)).await;
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect()
    }
}

impl Pump {
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
