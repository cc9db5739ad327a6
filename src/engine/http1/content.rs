//! The receiving side of a connection: what has arrived, and how far the
//! content of the current request has been read (RFC 9112 §6).

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::engine::chunked::{Decoded, Decoder};
use crate::engine::framing::Framing;
use crate::engine::patience::{Budget, Patience};
use crate::message::{BodyError, Next, Source};

/// What is read from a socket at once.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// Connections that wait hold no memory for it: bytes arrive here first.
    static ARRIVAL: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// The receiving side. One for each connection; the connection reads heads
/// from it, and the content's `Upload` reads between two heads.
#[derive(Clone)]
pub struct Inbound(Arc<Shared>);

struct Shared {
    receiving: Mutex<Receiving>,
    /// The upload has ended.
    upload_ended: Notify,
}

struct Receiving {
    socket: OwnedReadHalf,
    /// Arrived and not yet read.
    buffer: BytesMut,
    content: Content,
    /// The client waits for 100 (Continue) before it sends (C69).
    awaits_continue: bool,
    /// It said so; whether it waits still or not.
    expects_continue: bool,
    /// Somebody reads the content. There is one reader at a time.
    upload: bool,
}

/// How far the content has been read.
#[derive(Debug)]
enum Content {
    Read,
    /// In bytes, left.
    Length(u64),
    Chunked(Decoder),
    /// It ended early or is malformed; nothing behind it is a request.
    Broken,
}

/// Whether the next request can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    Yes,
    No,
}

impl Inbound {
    pub fn new(socket: OwnedReadHalf) -> Self {
        let receiving = Receiving {
            socket,
            buffer: BytesMut::new(),
            content: Content::Read,
            awaits_continue: false,
            expects_continue: false,
            upload: false,
        };
        Self(Arc::new(Shared {
            receiving: Mutex::new(receiving),
            upload_ended: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Receiving> {
        self.0
            .receiving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the bytes that have arrived, between two requests.
    pub fn with_buffer<T>(&self, work: impl FnOnce(&mut BytesMut) -> T) -> T {
        work(&mut self.lock().buffer)
    }

    /// Waits for bytes. Returns how many; 0 when the client has closed its side.
    pub async fn fill(&self) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.lock().poll_fill(cx)).await
    }

    /// The content of the request whose head was just taken. What is there in
    /// full already needs no stream.
    pub fn begin(&self, framing: Framing, expects_continue: bool) -> Option<Bytes> {
        let mut receiving = self.lock();
        receiving.content = match framing {
            Framing::None | Framing::Length(0) => Content::Read,
            Framing::Length(length) => Content::Length(length),
            Framing::Chunked => Content::Chunked(Decoder::of_request()),
        };
        // Bytes that are on their way already show that it doesn't wait.
        receiving.awaits_continue = expects_continue && receiving.buffer.is_empty();
        receiving.expects_continue = receiving.awaits_continue;
        let Content::Length(length) = receiving.content else {
            return None;
        };
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= receiving.buffer.len())?;
        receiving.content = Content::Read;
        Some(receiving.buffer.split_to(length).freeze())
    }

    /// The head was refused: nothing that follows can be trusted.
    pub fn distrust(&self) {
        self.lock().content = Content::Broken;
    }

    /// From here on 100 (Continue) would come too late. Returns whether the
    /// next request might follow: not if the client waited for leave to send
    /// its content and is answered before it has (C69).
    pub fn answer_begins(&self, most: u64) -> bool {
        let mut receiving = self.lock();
        let awaits = std::mem::take(&mut receiving.awaits_continue);
        let expects = receiving.expects_continue;
        let left = match receiving.content {
            Content::Read => return true,
            Content::Broken => return false,
            Content::Length(left) => left,
            Content::Chunked(_) => 0,
        };
        if awaits {
            receiving.content = Content::Broken;
        }
        !expects && left <= most
    }

    /// Waits until nobody else reads the content: a script may still be at it
    /// when it has answered.
    async fn take_over(&self) {
        loop {
            let ended = self.0.upload_ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.lock().upload {
                return;
            }
            ended.await;
        }
    }

    /// Reads what is left of the content and throws it away, up to `most`
    /// bytes, for at most `wait` (C68).
    pub async fn drain(&self, most: u64, wait: Duration) -> Drained {
        self.take_over().await;
        let reading = async {
            let mut room = most;
            while let Some(piece) = std::future::poll_fn(|cx| self.lock().poll_piece(cx)).await {
                match piece {
                    Ok(piece) if piece.len() as u64 <= room => room -= piece.len() as u64,
                    _ => return Drained::No,
                }
            }
            Drained::Yes
        };
        if matches!(self.lock().content, Content::Broken) {
            return Drained::No;
        }
        timeout(wait, reading).await.unwrap_or(Drained::No)
    }

    /// Throws away whatever comes until the client closes, for at most `wait`.
    pub async fn discard(&self, wait: Duration) {
        self.take_over().await;
        let reading = async {
            loop {
                self.with_buffer(BytesMut::clear);
                if !matches!(self.fill().await, Ok(1..)) {
                    return;
                }
            }
        };
        let _ = timeout(wait, reading).await;
    }
}

impl Receiving {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Self { socket, buffer, .. } = self;
        if buffer.is_empty() {
            // Gives its memory back while the connection waits.
            *buffer = BytesMut::new();
        }
        poll_arrival(socket, cx, |bytes| buffer.extend_from_slice(bytes))
    }

    /// The next piece of the content.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            match self.take_piece() {
                Ok(Decoded::Data(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(error) => {
                    self.content = Content::Broken;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            let Ok(1..) = ready!(self.poll_fill(cx)) else {
                self.content = Content::Broken;
                return Poll::Ready(Some(Err(BodyError::Closed)));
            };
        }
    }

    /// From what has arrived.
    fn take_piece(&mut self) -> Result<Decoded, BodyError> {
        match &mut self.content {
            Content::Read => Ok(Decoded::End),
            Content::Broken => Err(BodyError::Closed),
            Content::Length(_) if self.buffer.is_empty() => Ok(Decoded::More),
            Content::Length(left) => {
                let take = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let piece = self.buffer.split_to(take).freeze();
                *left -= take as u64;
                if *left == 0 {
                    self.content = Content::Read;
                }
                Ok(Decoded::Data(piece))
            }
            Content::Chunked(decoder) => {
                let piece = decoder
                    .decode(&mut self.buffer)
                    .map_err(|_| BodyError::Malformed)?;
                if piece == Decoded::End {
                    self.content = Content::Read;
                }
                Ok(piece)
            }
        }
    }
}

/// Reads once into this thread's memory and hands over what came.
fn poll_arrival(
    socket: &mut OwnedReadHalf,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]),
) -> Poll<io::Result<usize>> {
    ARRIVAL.with_borrow_mut(|arrival| {
        let mut read = ReadBuf::new(arrival);
        ready!(Pin::new(socket).poll_read(cx, &mut read))?;
        take(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// A request's content as the service sees it.
pub struct Upload {
    inbound: Inbound,
    /// C72.
    budget: Budget,
    /// Sends 100 (Continue).
    go_on: Box<dyn Fn() + Send + Sync>,
}

impl Upload {
    pub fn new(
        inbound: Inbound,
        patience: Patience,
        go_on: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        inbound.lock().upload = true;
        Self {
            inbound,
            budget: patience.begin(),
            go_on: Box::new(go_on),
        }
    }

    async fn piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.want();
        let piece = std::future::poll_fn(|cx| self.inbound.lock().poll_piece(cx));
        let Some(piece) = self.budget.wait(piece).await else {
            self.inbound.distrust();
            return Some(Err(BodyError::TimedOut));
        };
        if let Some(Ok(piece)) = &piece {
            self.budget.earn(piece.len() as u64);
        }
        piece
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.inbound.lock().upload = false;
        self.inbound.0.upload_ended.notify_waiters();
    }
}

impl Source for Upload {
    fn want(&mut self) {
        let awaits = std::mem::take(&mut self.inbound.lock().awaits_continue);
        if awaits {
            (self.go_on)();
        }
    }

    fn next(&mut self) -> Next<'_> {
        Box::pin(self.piece())
    }
}
