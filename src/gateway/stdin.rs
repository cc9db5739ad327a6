//! A script's standard input: `/dev/null`, a pipe that is already filled, a
//! spooled file, or a pipe that is fed while the script runs (contract C62 to
//! C72). Always a pipe or a file, never a socket (C64).

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::message::{Body, BodyError, Source, StreamBody};
use crate::os;

/// Content up to this size is written into the pipe before the script starts,
/// or spooled in memory. The usual capacity of a pipe on Linux; where it is
/// smaller the rest is fed (C199).
const PIPE_BYTES: usize = 64 << 10;

/// What the child gets as descriptor 0, and what is still to be fed to it.
pub struct Stdin {
    pub child: OwnedFd,
    /// In bytes; `None` if the request has no content (C12).
    pub length: Option<u64>,
    feed: Option<(OwnedFd, Box<dyn Source>)>,
}

/// Feeds a running script; dropping it stops that.
pub struct Feeder {
    task: JoinHandle<()>,
    failure: Option<oneshot::Receiver<Failure>>,
    /// After a failure the pipe stays open until the group is ended:
    /// end-of-file would say that the content is complete (C71).
    unfinished: Option<AsyncFd<OwnedFd>>,
    last_moved: Arc<Mutex<Instant>>,
}

type Failure = (BodyError, AsyncFd<OwnedFd>);

impl Stdin {
    /// Reads a body of unknown length to its end first, because a script needs
    /// `CONTENT_LENGTH` (C65). `max_body` is in bytes (C70).
    pub async fn prepare(body: Body, max_body: u64) -> Result<Self, BodyError> {
        match body {
            Body::Empty => Ok(Self {
                child: open_null()?,
                length: None,
                feed: None,
            }),
            Body::Bytes(bytes) => Self::from_bytes(&bytes),
            Body::Stream(StreamBody {
                length: Some(length),
                source,
            }) => {
                if length > max_body {
                    return Err(BodyError::TooLarge);
                }
                let (child, ours) = stdin_pipe()?;
                Ok(Self {
                    child,
                    length: Some(length),
                    feed: Some((ours, source)),
                })
            }
            Body::Stream(StreamBody {
                length: None,
                source,
            }) => match spool(source, max_body).await? {
                Spooled::Memory(bytes) => Self::from_bytes(&bytes),
                Spooled::File(file, length) => Ok(Self {
                    child: file.into(),
                    length: Some(length),
                    feed: None,
                }),
            },
            Body::File(_) | Body::Unframed(_) | Body::Tunnel(_) => {
                unreachable!("no engine makes these from a request")
            }
        }
    }

    fn from_bytes(bytes: &Bytes) -> Result<Self, BodyError> {
        let length = Some(bytes.len() as u64);
        let (child, ours) = stdin_pipe()?;
        let written = match rustix::io::write(&ours, bytes) {
            Ok(written) => written,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let rest = bytes.slice(written..);
        let feed =
            (!rest.is_empty()).then(|| (ours, Box::new(Once(Some(rest))) as Box<dyn Source>));
        Ok(Self {
            child,
            length,
            feed,
        })
    }

    /// Starts feeding what isn't in the pipe yet; no feeder if it all is. With
    /// it comes our copy of the child's end, which keeps EPIPE from showing.
    pub fn start(self) -> io::Result<(OwnedFd, Option<Feeder>)> {
        let Some((pipe, mut source)) = self.feed else {
            return Ok((self.child, None));
        };
        // Now, so that 100 (Continue) can't come behind what the script answers.
        source.want();
        let pipe = os::watch(pipe, Interest::WRITABLE)?;
        let (failed, failure) = oneshot::channel();
        let last_moved = Arc::new(Mutex::new(Instant::now()));
        let moved = Arc::clone(&last_moved);
        let task = tokio::spawn(async move {
            if let Err(failure) = feed(source, pipe, &moved).await {
                // Nobody listens any more: the run is over.
                let _ = failed.send(failure);
            }
        });
        let feeder = Feeder {
            task,
            failure: Some(failure),
            unfinished: None,
            last_moved,
        };
        Ok((self.child, Some(feeder)))
    }
}

impl Feeder {
    /// Why the request's content ended before its end; never returns if it
    /// doesn't. Dropping the future loses nothing.
    pub async fn failure(&mut self) -> BodyError {
        if let Some(receiver) = &mut self.failure
            && let Ok((error, pipe)) = receiver.await
        {
            self.failure = None;
            self.unfinished = Some(pipe);
            return error;
        }
        self.failure = None;
        std::future::pending().await
    }

    /// When content went to the script last.
    pub fn last_moved(&self) -> Instant {
        *self
            .last_moved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All of the content is in the pipe, or the script has closed its standard
    /// input, or feeding has failed.
    pub fn is_done(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn feed(
    mut source: Box<dyn Source>,
    pipe: AsyncFd<OwnedFd>,
    moved: &Mutex<Instant>,
) -> Result<(), Failure> {
    while let Some(piece) = source.next().await {
        let written = match piece {
            Ok(piece) => write_all(&pipe, &piece).await,
            Err(error) => return Err((error, pipe)),
        };
        match written {
            Ok(()) => *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now(),
            // The script doesn't read on: not an error (C68).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err((error.into(), pipe)),
        }
    }
    Ok(())
}

async fn write_all(pipe: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = pipe.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
            Ok(Ok(written)) => bytes = &bytes[written..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Content of unknown length, collected.
pub enum Spooled {
    Memory(Bytes),
    /// At its start, and its length in bytes.
    File(File, u64),
}

/// Collects a body of unknown length: in memory, and above `PIPE_BYTES` in a
/// file without a name.
pub async fn spool(mut source: Box<dyn Source>, max_body: u64) -> Result<Spooled, BodyError> {
    let mut memory = BytesMut::new();
    let mut file: Option<File> = None;
    let mut length = 0u64;
    while let Some(piece) = source.next().await {
        let piece = piece?;
        length += piece.len() as u64;
        if length > max_body {
            return Err(BodyError::TooLarge);
        }
        if let Some(file) = &mut file {
            file.write_all(&piece)?;
        } else if memory.len() + piece.len() <= PIPE_BYTES {
            memory.extend_from_slice(&piece);
        } else {
            let mut spooled = unnamed_file()?;
            spooled.write_all(&memory)?;
            spooled.write_all(&piece)?;
            memory.clear();
            file = Some(spooled);
        }
    }
    let Some(mut file) = file else {
        return Ok(Spooled::Memory(memory.freeze()));
    };
    file.seek(SeekFrom::Start(0))?;
    Ok(Spooled::File(file, length))
}

/// A file in the temporary folder that nobody else can open and that is gone
/// with its last descriptor.
fn unnamed_file() -> io::Result<File> {
    let folder = std::env::temp_dir();
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(&folder, flags | OFlags::TMPFILE, mode) {
        Ok(fd) => return Ok(fd.into()),
        // Not every file system has O_TMPFILE.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let path = folder.join(format!("serve-here-{:032x}", u128::from_ne_bytes(random)));
    let fd = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    std::fs::remove_file(&path)?;
    Ok(fd.into())
}

fn open_null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The child's blocking end and our own, which doesn't block.
fn stdin_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (child, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&ours)?;
    Ok((child, ours))
}

/// The child's blocking end and our own, for standard output and error.
pub fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, child) = pipe_with(PipeFlags::CLOEXEC)?;
    set_nonblocking(&ours)?;
    Ok((child, ours))
}

/// The two ends of a pipe are separate open files: the script's stays blocking.
fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?)
}

/// A source of one piece.
struct Once(Option<Bytes>);

impl Source for Once {
    fn next(&mut self) -> crate::message::Next<'_> {
        let piece = self.0.take().map(Ok);
        Box::pin(std::future::ready(piece))
    }
}
