//! One worker process: started on its socket, listened to, ended.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncRead, AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::job::Job;
use crate::gateway::process::{Ended, Process, Processes, TERM_GRACE};
use crate::gateway::spawn::{Born, SpawnError, Step};
use crate::log::{Log, MAX_LINE_BYTES};
use crate::os;

/// From SIGABRT, by which a stuck worker of ours says where it is, to the end.
const ABORT_TIME: Duration = Duration::from_millis(500);
/// How long the last lines of a worker that has ended are waited for.
const LAST_LINES: Duration = Duration::from_millis(200);
/// How long its parent may take to say how a forked worker has ended.
const STATUS_TIME: Duration = Duration::from_secs(1);

/// What a worker says of itself, or what is seen of it.
pub enum News {
    /// On its control socket, without the process number.
    Said(Vec<u8>),
    Ended(End),
}

/// How a worker has ended.
pub enum End {
    Ended(Ended),
    /// Nobody could say.
    Unseen,
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
    /// 0 for one that is to be forked and isn't yet.
    pub pid: u32,
    leave: Option<oneshot::Sender<Leave>>,
    control: Option<OwnedWriteHalf>,
    forked: Option<Forked>,
}

/// What only the parent of a forked worker knows of it, to be passed on.
struct Forked {
    born: Option<oneshot::Sender<u32>>,
    ended: Option<oneshot::Sender<Ended>>,
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
        let program = job.program().map_err(prepare)?;
        let (voice, control, theirs) = Voice::new(job, log, tag, news).map_err(prepare)?;
        let printed = theirs.printed.as_fd();
        let streams = [listener, printed, printed];
        let control_end = theirs.control.as_ref().map(AsFd::as_fd);
        let mut process = processes.employ(program, streams, control_end)?;
        let pid = process.pid();
        let (leave, left) = oneshot::channel();
        tokio::spawn(voice.tell_to_the_end(pid, watch(process, left)));
        Ok(Self {
            pid,
            leave: Some(leave),
            control,
            forked: None,
        })
    }

    /// Has this one, which has imported the application, fork another one for
    /// `slot`. It runs when this one has said so (`born`).
    pub fn fork<T: Copy + Send + 'static>(
        &self,
        slot: usize,
        job: &Job,
        listener: BorrowedFd<'_>,
        log: &Log,
        tag: T,
        news: mpsc::UnboundedSender<(T, News)>,
    ) -> Result<Self, SpawnError> {
        let (voice, control, theirs) = Voice::new(job, log, tag, news).map_err(prepare)?;
        let streams = [
            Some(listener),
            Some(theirs.printed.as_fd()),
            theirs.control(),
        ];
        let streams: Vec<BorrowedFd<'_>> = streams.into_iter().flatten().collect();
        self.say(&format!("fork {slot}\n"), &streams)
            .map_err(prepare)?;
        let (leave, left) = oneshot::channel();
        let (born, birth) = oneshot::channel();
        let (ended, status) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(pid) = birth.await {
                let end = watch_forked(pid, left, status);
                return voice.tell_to_the_end(pid, end).await;
            }
            let error = io::Error::other("its parent is gone");
            let step = Step::Fork;
            voice.tell(News::Ended(End::NotStarted(SpawnError { step, error })));
        });
        Ok(Self {
            pid: 0,
            leave: Some(leave),
            control,
            forked: Some(Forked {
                born: Some(born),
                ended: Some(ended),
            }),
        })
    }

    /// The parent has said which process it is.
    pub fn born(&mut self, pid: u32) {
        self.pid = pid;
        if let Some(born) = self.forked.as_mut().and_then(|forked| forked.born.take()) {
            let _ = born.send(pid);
        }
    }

    /// The parent has said how it ended, or can say no more.
    pub fn has_ended(&mut self, how: Option<Ended>) {
        if let Some(forked) = self.forked.take()
            && let (Some(ended), Some(how)) = (forked.ended, how)
        {
            let _ = ended.send(how);
        }
    }

    /// On its control socket, with descriptors. It never waits.
    pub fn say(&self, line: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(control) = &self.control else {
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let parts = [IoSlice::new(line.as_bytes())];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(control.as_ref(), &parts, &mut ancillary, flags)?;
        Ok(())
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
    let (signal, patience) = how.signal();
    let _ = kill_process(pid, signal);
    let _ = kill_process(pid, Signal::CONT);
    if let Ok(ended) = timeout(patience, process.ended()).await {
        return End::Ended(ended);
    }
    let _ = kill_process(pid, Signal::KILL);
    End::Ended(process.ended().await)
}

/// The same for one that another process has forked, which alone learns how it
/// has ended.
async fn watch_forked(
    pid: u32,
    left: oneshot::Receiver<Leave>,
    status: oneshot::Receiver<Ended>,
) -> End {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let pidfd = pidfd.and_then(|pidfd| os::watch(pidfd, Interest::READABLE).ok());
    let Some(pidfd) = pidfd else {
        // It was over before it could be looked at.
        return status.await.map_or(End::Unseen, End::Ended);
    };
    let how = tokio::select! {
        _ = pidfd.readable() => None,
        how = left => Some(how.unwrap_or(Leave::Idle)),
    };
    if let Some(how) = how {
        let (signal, patience) = how.signal();
        let _ = pidfd_send_signal(&pidfd, signal);
        let _ = pidfd_send_signal(&pidfd, Signal::CONT);
        if timeout(patience, pidfd.readable()).await.is_err() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = pidfd.readable().await;
        }
    }
    match timeout(STATUS_TIME, status).await {
        Ok(Ok(ended)) => End::Ended(ended),
        _ => End::Unseen,
    }
}

impl Leave {
    /// And how long it may take after that.
    fn signal(self) -> (Signal, Duration) {
        match self {
            Self::Stuck => (Signal::ABORT, ABORT_TIME),
            Self::Idle => (Signal::TERM, TERM_GRACE),
        }
    }
}

fn prepare(error: io::Error) -> SpawnError {
    SpawnError {
        step: Step::Prepare,
        error,
    }
}

/// Where a worker is heard, and who hears it.
struct Voice<T> {
    name: &'static str,
    subject: String,
    output: pipe::Receiver,
    control: Option<OwnedReadHalf>,
    log: Log,
    tag: T,
    news: mpsc::UnboundedSender<(T, News)>,
}

/// The worker's ends.
struct Theirs {
    printed: OwnedFd,
    control: Option<OwnedFd>,
}

impl Theirs {
    fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }
}

impl<T: Copy + Send + 'static> Voice<T> {
    fn new(
        job: &Job,
        log: &Log,
        tag: T,
        news: mpsc::UnboundedSender<(T, News)>,
    ) -> io::Result<(Self, Option<OwnedWriteHalf>, Theirs)> {
        let (output, printed) = pipe_with(PipeFlags::CLOEXEC)?;
        let sockets = if job.tells { Some(control()?) } else { None };
        let (control, theirs) = sockets.unzip();
        let (control, to_control) = control.map(UnixStream::into_split).unzip();
        let voice = Self {
            name: job.name,
            subject: job.subject.clone(),
            output: pipe::Receiver::from_owned_fd(output)?,
            control,
            log: log.clone(),
            tag,
            news,
        };
        let theirs = Theirs {
            printed,
            control: theirs,
        };
        Ok((voice, to_control, theirs))
    }

    fn tell(&self, news: News) {
        let _ = self.news.send((self.tag, news));
    }

    /// Passes on what it says until it has ended, and then that.
    async fn tell_to_the_end(self, pid: u32, end: impl Future<Output = End>) {
        let Self {
            name,
            subject,
            output,
            control,
            log,
            tag,
            news,
        } = self;
        let printing = tokio::spawn(lines(output, move |line| {
            log.gateway_line(name, &subject, &pid.to_string(), line);
        }));
        let said = control.map(|control| {
            let news = news.clone();
            tokio::spawn(lines(control, move |line| {
                // Its own number is known.
                let start = line.iter().position(|&b| b == b' ').map_or(0, |at| at + 1);
                let _ = news.send((tag, News::Said(line[start..].to_vec())));
            }))
        });
        let end = end.await;
        for reader in [Some(printing), said].into_iter().flatten() {
            // What it has started may hold the other end.
            let _ = timeout(LAST_LINES, reader).await;
        }
        let _ = news.send((tag, News::Ended(end)));
    }
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
