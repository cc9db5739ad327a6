//! The life of one connection: wait for a head, answer it, go on or close.
//!
//! ```text
//!     Idle ── first byte ──▶ Head ── complete ──▶ Busy ─┬─▶ Idle
//!       │                      │                        │
//!       └── idle time ──▶ end  └── head time ──▶ 408    └─▶ lingering close
//! ```
//!
//! The phase and its deadline are visible to the worker, which ends a wait by
//! shutting the receiving side down: a timer for each wait would cost more than
//! parsing the request.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use http::header::EXPECT;
use http::{Method, StatusCode, Version};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use super::Shared;
use super::content::{Drained, Inbound, Upload};
use super::head::{self, Head, Search};
use crate::clock;
use crate::engine::framing::{self, Asker, Framing};
use crate::engine::patience::Patience;
use crate::engine::tcp;
use crate::engine::wire::{self, Asked, Delivered, Unsent, Wire};
use crate::error::Fault;
use crate::log::Sent;
use crate::message::{self, Body, CanSwitch, FileBody, Interim, RequestTarget, Response, Tunnel};

/// Content that nobody wanted is read up to this, to keep the connection (C68).
const DRAIN_BYTES: u64 = 256 << 10;
/// How long that may take, and how long a closed connection lingers so that
/// the client reads its answer before a reset could destroy it (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
/// A new client has so long for its first byte before it counts as idle.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// A file up to this length is read and leaves in one write with the head.
const SMALL_FILE_BYTES: u64 = 32 << 10;
/// What sendfile moves before other connections of the thread get their turn.
const TURN_BYTES: usize = 1 << 20;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the first request.
    New,
    /// Between two requests.
    Idle,
    /// Some of a head has arrived.
    Head,
    /// A request is being answered.
    Busy,
    /// The last answer is out; the client gets time to read it and to close.
    Closing,
    /// Another connection has taken its place.
    GivenUp,
}

/// One connection.
pub struct Connection {
    shared: Arc<Shared>,
    inbound: Inbound,
    out: Arc<Outbound>,
    facts: message::Connection,
    phase: AtomicU8,
    /// When the phase began, in milliseconds.
    entered: AtomicU64,
    /// In milliseconds; `u64::MAX`: none.
    deadline: AtomicU64,
    /// The deadline has passed.
    expired: AtomicBool,
}

/// The sending side.
struct Outbound(OwnedWriteHalf);

/// What becomes of the connection after an exchange.
enum After {
    KeepAlive,
    Close,
    /// Cut off; nothing more can be said to the client.
    Cut,
}

/// What a request comes to.
enum Now<'a> {
    Done(After),
    /// A request's state is large and lives only as long as it does; a
    /// connection that waits is small.
    Later(Pin<Box<dyn Future<Output = After> + Send + 'a>>),
}

/// What a connection has to do when a request has arrived.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once, and boxed where it is kept"
)]
enum Next {
    /// The request was answered, and it was the last one.
    Close,
    /// The rest of an answer is to be sent.
    Unsent(Unsent),
    /// A request is to be answered.
    Ask(Head),
}

impl After {
    /// For a request without content.
    fn of(delivered: &Delivered) -> Self {
        match delivered {
            Delivered {
                keep_alive: true, ..
            } => Self::KeepAlive,
            Delivered { complete: true, .. } => Self::Close,
            _ => Self::Cut,
        }
    }
}

impl Connection {
    pub fn new(stream: TcpStream, shared: Arc<Shared>) -> io::Result<Self> {
        let (remote, local): (SocketAddr, SocketAddr) = (stream.peer_addr()?, stream.local_addr()?);
        let (receiving, sending) = stream.into_split();
        shared.open.fetch_add(1, Ordering::SeqCst);
        let connection = Self {
            inbound: Inbound::new(receiving),
            out: Arc::new(Outbound(sending)),
            facts: message::Connection {
                remote,
                local,
                secure: false,
            },
            phase: AtomicU8::new(Phase::New as u8),
            entered: AtomicU64::new(0),
            deadline: AtomicU64::new(u64::MAX),
            expired: AtomicBool::new(false),
            shared,
        };
        // The first head's time runs from here.
        connection.enter(Phase::New, Some(connection.shared.limits.head));
        Ok(connection)
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::New,
            1 => Phase::Idle,
            2 => Phase::Head,
            3 => Phase::Busy,
            4 => Phase::Closing,
            _ => Phase::GivenUp,
        }
    }

    /// When the wait for the client began, in milliseconds, if another
    /// connection may take its place: not if the request has come and only wasn't
    /// read yet, nor before a new client had the time to send it.
    pub fn idle_since(&self) -> Option<u64> {
        let since = self.entered.load(Ordering::Relaxed);
        let waits = match self.phase() {
            Phase::Idle | Phase::Closing => true,
            Phase::New => {
                milliseconds(clock::monotonic()).saturating_sub(since) >= milliseconds(FIRST_WORDS)
            }
            Phase::Head | Phase::Busy | Phase::GivenUp => false,
        };
        let silent = || rustix::io::ioctl_fionread(self).is_ok_and(|unread| unread == 0);
        (waits && silent()).then_some(since)
    }

    /// Ends an idle connection.
    pub fn give_up(&self) {
        self.phase.store(Phase::GivenUp as u8, Ordering::Relaxed);
        tcp::close(self);
    }

    fn enter(&self, phase: Phase, wait: Option<Duration>) {
        let now = clock::monotonic();
        let deadline = wait.map_or(u64::MAX, |wait| milliseconds(now.saturating_add(wait)));
        self.entered.store(milliseconds(now), Ordering::Relaxed);
        self.deadline.store(deadline, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Ends the wait if its time is over; the worker calls this.
    pub fn expire(&self) {
        let deadline = self.deadline.load(Ordering::Relaxed);
        let now = milliseconds(clock::monotonic());
        if deadline != u64::MAX && now >= deadline && self.phase() != Phase::Busy {
            self.expired.store(true, Ordering::Relaxed);
            let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Read);
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    /// The whole life.
    pub async fn serve(self: Arc<Self>) {
        let mut search = Search::default();
        loop {
            let now = match self.next_request(&mut search).await {
                Ok(Some(next)) => {
                    self.enter(Phase::Busy, None);
                    self.begin(next)
                }
                Ok(None) => return,
                Err(fault) => Now::Later(Box::pin(self.refuse(fault))),
            };
            let after = match now {
                Now::Done(after) => after,
                Now::Later(answer) => answer.await,
            };
            match after {
                After::KeepAlive if self.is_stopping() => break,
                After::KeepAlive => self.enter(Phase::Idle, Some(self.shared.limits.idle)),
                After::Close => break,
                After::Cut => return,
            }
        }
        Box::pin(self.close()).await;
    }

    fn begin(&self, next: Next) -> Now<'_> {
        match next {
            Next::Close => Now::Done(After::Close),
            Next::Unsent(unsent) => Now::Later(Box::pin(self.finish_sending(unsent))),
            Next::Ask(head) => Now::Later(Box::pin(self.exchange(head))),
        }
    }

    /// What to do next. `None`: the client has closed, or has been idle for too
    /// long.
    async fn next_request(&self, search: &mut Search) -> Result<Option<Next>, Fault> {
        loop {
            let (next, is_partial) = self.inbound.with_buffer(|buffer| {
                if search.is_fresh()
                    && let Some(next) = self.answer_ready(buffer)
                {
                    return Ok((Some(next), false));
                }
                let head = search.take(buffer, &self.shared.limits)?;
                Ok((head.map(Next::Ask), !buffer.is_empty()))
            })?;
            if next.is_some() {
                return Ok(next);
            }
            if is_partial && matches!(self.phase(), Phase::New | Phase::Idle) {
                self.enter(Phase::Head, Some(self.shared.limits.head));
            }
            match self.inbound.fill().await {
                Ok(1..) => {}
                Ok(0) if self.expired.load(Ordering::Relaxed) && self.phase() == Phase::Head => {
                    return Err(Fault::new(StatusCode::REQUEST_TIMEOUT).closing());
                }
                Ok(0) | Err(_) => return Ok(None),
            }
        }
    }

    /// Answers the requests in front of `buffer` whose answers are ready. This
    /// is the way of most requests for files: no wait, no header map, no future
    /// of their own. `None`: the next one, if there is one, takes more.
    fn answer_ready(&self, buffer: &mut BytesMut) -> Option<Next> {
        let Shared {
            service, limits, ..
        } = &*self.shared;
        while !limits.http_1_0
            && let Some((glance, keep_alive, length)) = head::glance(buffer, &self.facts, limits)
        {
            let began = self.shared.log.takes_times().then(Instant::now);
            let asker = Asker {
                method: glance.method,
                version: glance.version,
                keep_alive: keep_alive && !self.is_stopping(),
            };
            let ready = service.respond_again(&glance)?;
            match wire::deliver_now(&*self.out, asker, ready) {
                Ok((delivered, bytes)) => {
                    let took = began.map_or(Duration::ZERO, |began| began.elapsed());
                    service.sent_again(&glance, bytes, took);
                    buffer.advance(length);
                    if !delivered.keep_alive {
                        return Some(Next::Close);
                    }
                    self.enter(Phase::Idle, Some(limits.idle));
                }
                Err(mut unsent) => {
                    unsent.sent = Some(service.sending_again(&glance));
                    buffer.advance(length);
                    return Some(Next::Unsent(unsent));
                }
            }
        }
        None
    }

    async fn finish_sending(&self, unsent: Unsent) -> After {
        After::of(&unsent.deliver(&*self.out, &self.shared.limits).await)
    }

    /// Whether another request may follow on the connection.
    fn goes_on(&self, request: &http::Request<()>) -> bool {
        !is_last(request) && !self.shared.limits.http_1_0 && !self.is_stopping()
    }

    /// One request and its response.
    async fn exchange(&self, head: Head) -> After {
        let Head {
            mut request,
            target,
            framing,
        } = head;
        request.extensions_mut().insert(self.facts);
        request.extensions_mut().insert(RequestTarget(target));
        let (version, limits) = (request.version(), &self.shared.limits);
        let mut asked = Asked {
            method: request.method().clone(),
            version: if limits.http_1_0 {
                Version::HTTP_10
            } else {
                version
            },
            keep_alive: framing.is_ok() && self.goes_on(&request),
            last: is_last(&request),
        };
        let interims = Interim::default();
        let response = match framing {
            Ok(framing) => {
                if version == Version::HTTP_11 {
                    request.extensions_mut().insert(interims.clone());
                    if !limits.http_1_0 {
                        request.extensions_mut().insert(CanSwitch);
                    }
                }
                let expects = version == Version::HTTP_11 && request.headers().contains_key(EXPECT);
                let body = self.body(framing, expects);
                // On its own: the wait around it would hold room for it four times.
                let answer = Box::pin(self.shared.service.respond(request.map(|()| body)));
                wire::await_answer(&*self.out, limits, &asked, &interims, answer).await
            }
            Err(fault) => {
                self.inbound.distrust();
                Some(self.shared.service.refuse(request, fault))
            }
        };
        match response {
            Some(response) if matches!(response.body(), Body::Tunnel(_)) => {
                Box::pin(self.switch(response)).await
            }
            Some(response) => self.deliver(&mut asked, response).await,
            None => After::Cut,
        }
    }

    /// The connection leaves HTTP: bytes go both ways until one side ends it.
    async fn switch(&self, mut response: Response) -> After {
        let head = framing::switching_head(&response);
        let sent = response.extensions_mut().remove::<Sent>();
        let Body::Tunnel(tunnel) = std::mem::take(response.body_mut()) else {
            return After::Cut;
        };
        let Tunnel { mut source, sink } = tunnel;
        let stall = self.shared.limits.write;
        let mut bytes = 0;
        let down = async {
            wire::send(&*self.out, &[&head], stall).await?;
            while let Some(Ok(piece)) = source.next().await {
                wire::send(&*self.out, &[&piece], stall).await?;
                bytes += piece.len() as u64;
            }
            Ok::<(), io::Error>(())
        };
        let up = async {
            loop {
                let piece = self.inbound.with_buffer(|buffer| buffer.split().freeze());
                if !piece.is_empty() && sink.send(piece).await.is_err() {
                    break;
                }
                match self.inbound.fill().await {
                    Ok(1..) => {}
                    Ok(_) => break,
                    // A reset: nobody is there any more.
                    Err(_) => return,
                }
            }
            // It may still listen.
            drop(sink);
            tcp::gone(&*self.out, false).await;
        };
        let complete = tokio::select! {
            ended = down => ended.is_ok(),
            () = up => false,
        };
        if let Some(sent) = sent {
            sent.finish(bytes, complete);
        }
        if complete { After::Close } else { After::Cut }
    }

    fn body(&self, framing: Framing, expects: bool) -> Body {
        let whole = self.inbound.begin(framing, expects);
        let length = match framing {
            Framing::None => return Body::Empty,
            Framing::Length(0) => return Body::Bytes(bytes::Bytes::new()),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        if let Some(whole) = whole {
            return Body::Bytes(whole);
        }
        let out = Arc::clone(&self.out);
        let go_on = move || {
            // Past tokio, which may think that there is no room. A client that
            // doesn't see this sends its content all the same, later.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&*out, CONTINUE, flags);
        };
        Body::stream(
            length,
            Upload::new(self.inbound.clone(), self.shared.limits.body, go_on),
        )
    }

    async fn deliver(&self, asked: &mut Asked, response: Response) -> After {
        // The answer may have taken long.
        asked.keep_alive &= self.inbound.answer_begins(DRAIN_BYTES) && !self.is_stopping();
        let delivered = wire::deliver(&*self.out, &self.shared.limits, asked, response).await;
        if !delivered.complete {
            return After::Cut;
        }
        if delivered.keep_alive && self.inbound.drain(DRAIN_BYTES, LINGER).await == Drained::Yes {
            return After::KeepAlive;
        }
        After::Close
    }

    /// Answers what is no request.
    async fn refuse(&self, mut fault: Fault) -> After {
        if let Some(diagnosis) = &mut fault.diagnosis {
            diagnosis.subject = self.facts.remote.ip().to_canonical().to_string();
        }
        let mut request = http::Request::new(());
        // For the log; it can't be said what it was.
        *request.method_mut() = Method::from_bytes(b"-").unwrap_or_default();
        request.extensions_mut().insert(self.facts);
        request
            .extensions_mut()
            .insert(RequestTarget(bytes::Bytes::from_static(b"-")));
        let asked = Asked {
            method: request.method().clone(),
            version: Version::HTTP_11,
            keep_alive: false,
            last: true,
        };
        let response = self.shared.service.refuse(request, fault);
        wire::deliver(&*self.out, &self.shared.limits, &asked, response).await;
        After::Close
    }

    /// No more is sent; the client gets time to read what was, and what it
    /// still sends must not turn that into a reset.
    async fn close(&self) {
        tcp::finish(self);
        self.enter(Phase::Closing, None);
        self.inbound.discard(LINGER).await;
    }
}

/// Whether the client has said that no request follows (RFC 9112 §9.6).
fn is_last(request: &http::Request<()>) -> bool {
    !framing::wants_keep_alive(request.version(), request.headers())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
        self.shared.closed.notify_waiters();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }
}

impl AsFd for Outbound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().as_fd()
    }
}

impl Wire for Outbound {
    fn send_now(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    async fn silenced(&self) {
        // Of all that can be waited for, only "priority" wakes for the end of
        // the input and not for input; no urgent data are watched for.
        let _ = self.0.ready(Interest::PRIORITY).await;
    }

    /// A small file leaves in one write with its head; a larger one is moved by
    /// the kernel, in turns with the thread's other connections.
    async fn send_file(&self, head: &[u8], body: &FileBody, stall: Patience) -> io::Result<u64> {
        if body.length <= SMALL_FILE_BYTES {
            return wire::copy_file(self, head, body, stall).await;
        }
        wire::send_more(self, head, stall).await?;
        let mut offset = body.offset;
        let end = body.offset + body.length;
        while offset < end {
            let most = usize::try_from(end - offset)
                .unwrap_or(usize::MAX)
                .min(TURN_BYTES);
            let stream: &TcpStream = self.0.as_ref();
            let sent = stream.try_io(Interest::WRITABLE, || {
                Ok(rustix::fs::sendfile(
                    stream,
                    &*body.file,
                    Some(&mut offset),
                    most,
                )?)
            });
            match sent {
                // Shorter than it was.
                Ok(0) => break,
                Ok(sent) if sent == most => tokio::task::yield_now().await,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wire::wait_for_room(self, stall).await?;
                    if is_shorter(&body.file, end) {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if is_shorter(&body.file, end) {
            // What the kernel still holds of it may be zeros by now.
            tcp::reset(self);
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(offset - body.offset)
    }
}

/// Whether the file no longer reaches to `end`.
fn is_shorter(file: &std::fs::File, end: u64) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.len() < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what a function returns.
    fn size_of_returned<A, R>(_: fn(A) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn a_connection_that_waits_is_small() {
        // Ten thousand of them take 40 MiB at most (docs/limits.md), and a
        // future keeps room for all that it may ever wait for.
        let size = size_of::<Connection>() + size_of_returned(Connection::serve);
        assert!(size <= 1024, "{size} bytes");
    }
}
