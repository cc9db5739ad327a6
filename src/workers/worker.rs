//! One worker process: started on its socket, listened to, ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::job::Job;
use crate::gateway::process::{Ended, Process, Processes, TERM_GRACE};
use crate::gateway::spawn::{Born, SpawnError, Step};
use crate::log::{Log, MAX_LINE_BYTES};

/// From SIGABRT, by which a stuck worker of ours says where it is, to the end.
const ABORT_TIME: Duration = Duration::from_millis(500);
/// How long the last lines of a worker that has ended are waited for.
const LAST_LINES: Duration = Duration::from_millis(200);

/// What a worker says of itself, or what is seen of it.
pub enum News {
    /// On its control socket, without the process number.
    Said(Vec<u8>),
    Ended(End),
}

/// How a worker has ended.
pub enum End {
    Ended(Ended),
    /// It never was the program.
    NotStarted(SpawnError),
}

/// How a worker is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It has nothing to do.
    Idle,
    /// It doesn't answer.
    Stuck,
}

/// A handle of a running worker. Dropped, it ends the worker.
pub struct Worker {
    pub pid: u32,
    leave: Option<oneshot::Sender<Leave>>,
}

impl Worker {
    /// `news` gets what it says and how it ended, with `tag`.
    pub fn start<T: Copy + Send + 'static>(
        job: &Job,
        listener: BorrowedFd<'_>,
        processes: &Processes,
        log: &Log,
        tag: T,
        news: mpsc::UnboundedSender<(T, News)>,
    ) -> Result<Self, SpawnError> {
        let prepare = |error: io::Error| SpawnError {
            step: Step::Prepare,
            error,
        };
        let program = job.program().map_err(prepare)?;
        let (output, printed) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| prepare(e.into()))?;
        let output = pipe::Receiver::from_owned_fd(output).map_err(prepare)?;
        let (control, theirs) = if job.tells {
            let (ours, theirs) = control().map_err(prepare)?;
            (Some(ours), Some(theirs))
        } else {
            (None, None)
        };
        let streams = [listener, printed.as_fd(), printed.as_fd()];
        let control_end = theirs.as_ref().map(AsFd::as_fd);
        let mut process = processes.employ(program, streams, control_end)?;
        drop((printed, theirs));
        let pid = process.pid();
        let (name, subject, log) = (job.name, job.subject.clone(), log.clone());
        let printing = tokio::spawn(lines(output, move |line| {
            log.gateway_line(name, &subject, &pid.to_string(), line);
        }));
        let (leave, left) = oneshot::channel();
        tokio::spawn(async move {
            let said = control.map(|control| {
                let news = news.clone();
                tokio::spawn(lines(control, move |line| {
                    // Its own number is known.
                    let start = line.iter().position(|&b| b == b' ').map_or(0, |at| at + 1);
                    let _ = news.send((tag, News::Said(line[start..].to_vec())));
                }))
            });
            let end = watch(process, left).await;
            for reader in [Some(printing), said].into_iter().flatten() {
                // What it has started may hold the other end.
                let _ = timeout(LAST_LINES, reader).await;
            }
            let _ = news.send((tag, News::Ended(end)));
        });
        Ok(Self {
            pid,
            leave: Some(leave),
        })
    }

    /// Ends it.
    pub fn leave(&mut self, how: Leave) {
        if let Some(leave) = self.leave.take() {
            let _ = leave.send(how);
        }
    }

    /// Whether it has been told to end.
    pub fn is_leaving(&self) -> bool {
        self.leave.is_none()
    }

    /// Resident memory, in bytes; `None` if it can't be told.
    pub fn memory(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
}

/// Until the worker has ended, by itself or because it was told to.
async fn watch(mut process: Process, left: oneshot::Receiver<Leave>) -> End {
    let how = tokio::select! {
        ended = process.ended() => {
            return match process.birth() {
                Born::Failed(error, _) => End::NotStarted(error),
                Born::Script | Born::NotYet => End::Ended(ended),
            };
        }
        how = left => how.unwrap_or(Leave::Idle),
    };
    let Some(pid) = i32::try_from(process.pid()).ok().and_then(Pid::from_raw) else {
        return End::Ended(process.ended().await);
    };
    // It isn't reaped as long as `process` is there. The rest of its group ends
    // with that.
    let (signal, patience) = match how {
        Leave::Stuck => (Signal::ABORT, ABORT_TIME),
        Leave::Idle => (Signal::TERM, TERM_GRACE),
    };
    let _ = kill_process(pid, signal);
    let _ = kill_process(pid, Signal::CONT);
    if let Ok(ended) = timeout(patience, process.ended()).await {
        return End::Ended(ended);
    }
    let _ = kill_process(pid, Signal::KILL);
    End::Ended(process.ended().await)
}

/// Both ends of a control socket. The worker's is not the number that it becomes.
fn control() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let above = crate::gateway::spawn::CONTROL_FD + 1;
    let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, above)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// Hands over each line; one that is too long comes in pieces.
async fn lines(mut source: impl AsyncRead + Unpin, mut take: impl FnMut(&[u8])) {
    let mut pending: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 4 << 10];
    // An error is an end.
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        pending.extend_from_slice(&buffer[..read]);
        while let Some(end) = pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            take(line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]));
        }
        while pending.len() > MAX_LINE_BYTES {
            let piece: Vec<u8> = pending.drain(..MAX_LINE_BYTES).collect();
            take(&piece);
        }
    }
    if !pending.is_empty() {
        take(&pending);
    }
}
