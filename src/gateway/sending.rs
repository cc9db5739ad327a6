//! A request on its way to an application, while its answer is read: neither
//! waits for the other to end (C67).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BytesMut};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::content::Content;
use super::fastcgi;
use super::stream::Stream;
use crate::engine::framing;
use crate::message::BodyError;

/// How content goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As it is.
    Bare,
    /// `FastCGI`'s records.
    Records,
    /// HTTP's chunks.
    Chunks,
}

impl Framing {
    fn piece(self, out: &mut BytesMut, piece: &[u8]) {
        match self {
            Self::Bare => out.extend_from_slice(piece),
            Self::Records => fastcgi::stdin(out, piece),
            Self::Chunks => {
                out.extend_from_slice(&framing::chunk_head(piece.len()));
                out.extend_from_slice(piece);
                out.extend_from_slice(framing::CHUNK_END);
            }
        }
    }

    /// What goes out after the content.
    fn end(self, out: &mut BytesMut) {
        match self {
            Self::Bare => {}
            Self::Records => fastcgi::stdin_end(out),
            Self::Chunks => out.extend_from_slice(framing::LAST_CHUNK),
        }
    }
}

/// The request on its way out.
pub struct Sending {
    framing: Framing,
    /// Goes out next.
    pending: BytesMut,
    /// What of it is the head.
    head_left: usize,
    /// All of the content is in `pending` or out.
    ended: bool,
    /// TLS may hold some of what went out.
    held: bool,
    /// The application takes no more; that is no failure (C68).
    refused: bool,
    /// When something went out last.
    moved: Arc<Mutex<Instant>>,
}

impl Sending {
    /// What is there already goes out with the head.
    pub fn new(framing: Framing, head: &[u8], content: &mut Content) -> Self {
        content.want();
        let mut pending = BytesMut::from(head);
        while let Some(piece) = content.next_at_hand() {
            framing.piece(&mut pending, &piece);
        }
        let ended = content.is_taken();
        if ended {
            framing.end(&mut pending);
        }
        Self {
            framing,
            pending,
            head_left: head.len(),
            ended,
            held: false,
            refused: false,
            moved: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// Some of the head has not gone out.
    pub fn is_incomplete(&self) -> bool {
        self.head_left > 0
    }

    /// Nothing of the content has to be waited for any more.
    pub fn has_all(&self) -> bool {
        self.ended
    }

    pub fn last_moved(&self) -> Instant {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_done(&self) -> bool {
        self.refused || self.ended && self.pending.is_empty() && !self.held
    }

    /// Sends all there is. Dropping the future loses nothing.
    pub async fn send(&mut self, stream: &Stream, content: &mut Content) -> Result<(), BodyError> {
        while !self.is_done() {
            if self.pending.is_empty() && !self.held {
                if let Some(piece) = content.next().await {
                    self.framing.piece(&mut self.pending, &piece?);
                    // Together, if it is known: an application that counts bytes
                    // may have ended before an end that comes late, and would
                    // find it where its next request should begin.
                    self.ended = content.is_taken();
                } else {
                    self.ended = true;
                }
                if self.ended {
                    self.framing.end(&mut self.pending);
                }
                continue;
            }
            match self.send_now(stream) {
                Ok(()) => {
                    *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if stream.writable().await.is_err() {
                        self.refused = true;
                    }
                }
                // What it has answered until now can still be read.
                Err(_) => self.refused = true,
            }
        }
        Ok(())
    }

    fn send_now(&mut self, stream: &Stream) -> io::Result<()> {
        if !self.pending.is_empty() {
            let written = stream.try_write(&self.pending)?;
            self.held = true;
            self.pending.advance(written);
            self.head_left = self.head_left.saturating_sub(written);
            if self.pending.is_empty() {
                // The wait for the answer may be long.
                self.pending = BytesMut::new();
            }
        }
        stream.try_flush()?;
        self.held = false;
        Ok(())
    }
}

/// The request's content while the answer is sent on.
pub enum Upload {
    Done,
    /// The application took not all of it.
    Refused,
    /// A task sends it, so that it goes on while the client takes no data.
    Running {
        task: JoinHandle<()>,
        /// Whether the application took all of it.
        result: oneshot::Receiver<Result<bool, BodyError>>,
        moved: Arc<Mutex<Instant>>,
    },
}

impl Upload {
    /// What is left of a request goes out in a task of its own.
    pub fn start(mut sending: Sending, mut content: Content, stream: &Arc<Stream>) -> Self {
        if sending.refused {
            return Self::Refused;
        }
        if sending.is_done() {
            return Self::Done;
        }
        let stream = Arc::clone(stream);
        let moved = Arc::clone(&sending.moved);
        let (report, result) = oneshot::channel();
        let task = tokio::spawn(async move {
            let sent = sending.send(&stream, &mut content).await;
            // Whoever hears of it may want it for itself.
            drop(stream);
            let _ = report.send(sent.map(|()| !sending.refused));
        });
        Self::Running {
            task,
            result,
            moved,
        }
    }

    /// Whether the application took all of it, once that is known. Dropping
    /// the future loses nothing.
    pub async fn result(&mut self) -> Result<bool, BodyError> {
        match self {
            Self::Running { result, .. } => match result.await {
                Ok(taken) => taken,
                Err(_ended) => Ok(false),
            },
            Self::Done | Self::Refused => std::future::pending().await,
        }
    }

    pub fn last_moved(&self) -> Option<Instant> {
        match self {
            Self::Running { moved, .. } => {
                Some(*moved.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Self::Done | Self::Refused => None,
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Self::Running { task, .. } = self {
            task.abort();
        }
    }
}
