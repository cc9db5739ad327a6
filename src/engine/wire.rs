//! Writing a response, whatever the engine: its head, its content, and an end
//! that the client can tell from a cut.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Method, Version};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::Limits;
use super::framing::{self, Asker, CHUNK_END, Content, LAST_CHUNK, Plan};
use super::patience::Patience;
use super::tcp;
use crate::log::Sent;
use crate::message::{Body, FileBody, Interim, Piece, Ready, Response, Source};

/// What is read from a file at once, where the kernel can't move it by itself.
const BLOCK_BYTES: usize = 64 << 10;

/// Content up to this length is copied behind its head: one piece of memory is
/// cheaper for the kernel to take than two.
const ONE_PIECE_BYTES: usize = 8 << 10;

thread_local! {
    /// Where a ready answer is put together.
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The sending side of a connection.
pub trait Wire: AsFd + Sync {
    /// Sends what there is room for, without waiting.
    fn send_now(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Returns when there may be room.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Returns when the client has closed its sending side, or the connection has
    /// broken; also behind requests that nobody has read yet.
    fn silenced(&self) -> impl Future<Output = ()> + Send;

    /// Sends the head and the file's bytes. Returns how many of those there
    /// were: fewer than announced if the file has become shorter.
    fn send_file(
        &self,
        head: &[u8],
        body: &FileBody,
        stall: Patience,
    ) -> impl Future<Output = io::Result<u64>> + Send;
}

/// Sends all of `pieces`, unless the client is too slow in taking them.
pub async fn send(wire: &impl Wire, pieces: &[&[u8]], stall: Patience) -> io::Result<()> {
    const MOST: usize = 5;
    let mut slices = [IoSlice::new(&[]); MOST];
    for (slice, piece) in slices.iter_mut().zip(pieces) {
        *slice = IoSlice::new(piece);
    }
    let mut left = &mut slices[..pieces.len()];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match wire.send_now(left) {
            Ok(sent) => IoSlice::advance_slices(&mut left, sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for_room(wire, stall).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends a head that content follows in a moment, in the same packet.
pub async fn send_more(wire: &impl Wire, head: &[u8], stall: Patience) -> io::Result<()> {
    let mut left = head;
    while !left.is_empty() {
        match rustix::net::send(
            wire,
            left,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE,
        ) {
            Ok(sent) => left = &left[sent..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return send(wire, &[left], stall).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// For the client to take data, as long as it is not too slow. There is room
/// only when much of a buffer has been taken; that some has shows before.
pub async fn wait_for_room(wire: &impl Wire, stall: Patience) -> io::Result<()> {
    const LOOK: Duration = Duration::from_secs(1);
    let mut budget = stall.begin();
    let mut taken = tcp::taken(wire);
    loop {
        if let Some(room) = budget.wait_most(LOOK, wire.writable()).await {
            return room;
        }
        let now = tcp::taken(wire);
        budget.earn(now.saturating_sub(taken));
        taken = now;
        if budget.is_used_up() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// `Wire::send_file` by reading and sending.
pub async fn copy_file(
    wire: &impl Wire,
    head: &[u8],
    body: &FileBody,
    stall: Patience,
) -> io::Result<u64> {
    let whole = usize::try_from(body.length).unwrap_or(usize::MAX);
    let mut buffer = vec![0; BLOCK_BYTES.min(whole)];
    let mut head = head;
    let mut done = 0;
    while done < body.length || !head.is_empty() {
        let most = usize::try_from(body.length - done)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        // A file that can't be read any more ends like one that was cut short.
        let read = body
            .file
            .read_at(&mut buffer[..most], body.offset + done)
            .unwrap_or(0);
        send(wire, &[head, &buffer[..read]], stall).await?;
        if read == 0 {
            break;
        }
        head = &[];
        done += read as u64;
    }
    Ok(done)
}

/// What a response's form depends on.
pub struct Asked {
    pub method: Method,
    pub version: Version,
    pub keep_alive: bool,
    /// The client has said that it sends no more requests.
    pub last: bool,
}

impl Asked {
    fn form(&self) -> Asker<'_> {
        Asker {
            method: &self.method,
            version: self.version,
            keep_alive: self.keep_alive,
        }
    }
}

/// How a response went out.
pub struct Delivered {
    /// To its end.
    pub complete: bool,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
}

/// Waits for the answer and sends interim responses on meanwhile. `None`: the
/// client has gone.
pub async fn await_answer<W: Wire>(
    wire: &W,
    limits: &Limits,
    asked: &Asked,
    interims: &Interim,
    answer: impl Future<Output = Response>,
) -> Option<Response> {
    let relayed = async {
        tokio::pin!(answer);
        let response = loop {
            tokio::select! {
                biased;
                interim = interims.next() => send_interim(wire, limits, &interim).await,
                response = &mut answer => break response,
            }
        };
        // Printed in one go with the final header.
        while let Some(interim) = interims.next_at_hand() {
            send_interim(wire, limits, &interim).await;
        }
        response
    };
    tokio::select! {
        biased;
        response = relayed => Some(response),
        () = tcp::gone(wire, asked.last) => None,
    }
}

async fn send_interim(wire: &impl Wire, limits: &Limits, interim: &http::Response<()>) {
    // A client that is gone shows when the response is sent.
    let _ = send(wire, &[&framing::interim_head(interim)], limits.write).await;
}

/// Writes a response, and its line in the access log.
pub async fn deliver(
    wire: &impl Wire,
    limits: &Limits,
    asked: &Asked,
    mut response: Response,
) -> Delivered {
    let sent = response.extensions_mut().remove::<Sent>();
    let form = asked.form();
    let plan = Plan::new(form, &response);
    let head = framing::response_head(form, plan, limits.http_1_0, &response);
    let body = std::mem::take(response.body_mut());
    let mut out = Out {
        wire,
        stall: limits.write,
        bytes: 0,
    };
    let written = tokio::select! {
        biased;
        written = out.write(head, body, plan.content) => written,
        () = tcp::gone(wire, asked.last) => Err(Cut::Client),
    };
    match &written {
        Ok(()) | Err(Cut::Client) => {}
        // What was sent arrives; that the end is missing shows from the framing.
        Err(Cut::Source) if plan.content != Content::UntilClose => tcp::finish(wire),
        // Only a reset tells a cut from an end (C122).
        Err(Cut::Source) => tcp::reset(wire),
    }
    if let Some(sent) = sent {
        sent.finish(out.bytes, written.is_ok());
    }
    Delivered {
        complete: written.is_ok(),
        keep_alive: plan.keep_alive && written.is_ok(),
    }
}

/// Sends a ready answer as far as there is room, without waiting: the way of
/// most requests for small files, which needs no future and no allocation.
pub fn deliver_now(
    wire: &impl Wire,
    asker: Asker<'_>,
    ready: Ready,
) -> Result<(Delivered, u64), Unsent> {
    let Ready { head, content } = ready;
    let length = content.length();
    let content = if *asker.method == Method::HEAD {
        Piece::Bytes(Bytes::new())
    } else {
        content
    };
    OUT.with_borrow_mut(|out| {
        out.clear();
        framing::prepared_head(out, asker, &head, length);
        let head_length = out.len();
        let sent = match &content {
            Piece::Bytes(content) if content.len() <= ONE_PIECE_BYTES => {
                out.extend_from_slice(content);
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(wire, out, flags).map_err(Into::into)
            }
            Piece::Bytes(content) => wire.send_now(&[IoSlice::new(out), IoSlice::new(content)]),
            Piece::File(_) => Ok(0),
        };
        // What keeps it from being sent shows again in `Unsent::deliver`.
        let sent = sent.unwrap_or(0);
        let mut unsent = Unsent {
            head: Vec::new(),
            head_sent: sent.min(head_length),
            content,
            keep_alive: asker.keep_alive,
            sent: None,
        };
        if let Piece::Bytes(content) = &mut unsent.content {
            let length = content.len();
            if sent == head_length + length {
                let delivered = Delivered {
                    complete: true,
                    keep_alive: asker.keep_alive,
                };
                return Ok((delivered, length as u64));
            }
            content.advance(sent - unsent.head_sent);
        }
        unsent.head = out[..head_length].to_vec();
        Err(unsent)
    })
}

/// A prepared response of which some is left to send.
pub struct Unsent {
    head: Vec<u8>,
    head_sent: usize,
    content: Piece,
    keep_alive: bool,
    pub sent: Option<Sent>,
}

impl Unsent {
    /// Sends the rest.
    pub async fn deliver(self, wire: &impl Wire, limits: &Limits) -> Delivered {
        let head = &self.head[self.head_sent..];
        let length = self.content.length();
        let sending = async {
            match &self.content {
                Piece::Bytes(content) => {
                    send(wire, &[head, content], limits.write).await?;
                    Ok(length)
                }
                Piece::File(file) => wire.send_file(head, file, limits.write).await,
            }
        };
        let written = tokio::select! {
            biased;
            written = sending => written,
            () = tcp::gone(wire, !self.keep_alive) => Err(io::ErrorKind::NotConnected.into()),
        };
        let complete = matches!(written, Ok(bytes) if bytes == length);
        if !complete {
            tcp::finish(wire);
        }
        self.finish(written.unwrap_or(0), complete)
    }

    fn finish(self, bytes: u64, complete: bool) -> Delivered {
        if let Some(sent) = self.sent {
            sent.finish(bytes, complete);
        }
        Delivered {
            complete,
            keep_alive: self.keep_alive && complete,
        }
    }
}

/// Why a response was not written to its end.
enum Cut {
    /// The client is gone or takes no data.
    Client,
    /// What was sent ended before its end.
    Source,
}

impl From<io::Error> for Cut {
    fn from(_: io::Error) -> Self {
        Self::Client
    }
}

/// A response on its way out.
struct Out<'a, W> {
    wire: &'a W,
    stall: Patience,
    /// Of content, sent so far.
    bytes: u64,
}

impl<W: Wire> Out<'_, W> {
    async fn write(&mut self, head: Vec<u8>, body: Body, content: Content) -> Result<(), Cut> {
        match body {
            // Only an engine that says it can is given one.
            Body::Tunnel(_) => Err(Cut::Source),
            Body::Unframed(source) => self.stream(Vec::new(), source, Content::UntilClose).await,
            _ if content == Content::None => self.send(&[&head], 0).await,
            Body::Empty => self.send(&[&head], 0).await,
            Body::Bytes(bytes) => self.send(&[&head, &bytes], bytes.len()).await,
            Body::File(file) => {
                let sent = self.wire.send_file(&head, &file, self.stall).await?;
                self.bytes += sent;
                if sent < file.length {
                    Err(Cut::Source)
                } else {
                    Ok(())
                }
            }
            Body::Stream(stream) => self.stream(head, stream.source, content).await,
        }
    }

    async fn send(&mut self, pieces: &[&[u8]], content: usize) -> Result<(), Cut> {
        send(self.wire, pieces, self.stall).await?;
        self.bytes += content as u64;
        Ok(())
    }

    /// Each piece leaves at once (C115); the head doesn't wait for the first
    /// (C86). What is there already goes with it, so that a short answer leaves
    /// in one write.
    async fn stream(
        &mut self,
        mut head: Vec<u8>,
        mut source: Box<dyn Source>,
        content: Content,
    ) -> Result<(), Cut> {
        let (chunk_end, whole_end): (&[u8], &[u8]) = match content {
            Content::Chunked => (CHUNK_END, LAST_CHUNK),
            _ => (&[], &[]),
        };
        let mut ready = now(source.next()).await;
        if ready.is_none() {
            // The others have their turn; what a script prints line by line
            // comes together meanwhile.
            tokio::task::yield_now().await;
            ready = now(source.next()).await;
        }
        if ready.is_none() {
            self.send(&[&head], 0).await?;
            head.clear();
        }
        loop {
            let piece = match ready.take() {
                Some(piece) => piece,
                None => source.next().await,
            };
            let piece = match piece {
                Some(Ok(piece)) => piece,
                None => return self.send(&[&head, whole_end], 0).await,
                Some(Err(_)) => {
                    self.send(&[&head], 0).await?;
                    return Err(Cut::Source);
                }
            };
            if !head.is_empty() {
                // As above; a script that has printed all it has to say ends.
                tokio::task::yield_now().await;
            }
            ready = now(source.next()).await;
            let is_last = matches!(ready, Some(None));
            let size = match content {
                Content::Chunked => framing::chunk_head(piece.len()),
                _ => Vec::new(),
            };
            let end = if is_last { whole_end } else { &[] };
            self.send(&[&head, &size, &piece, chunk_end, end], piece.len())
                .await?;
            if is_last {
                return Ok(());
            }
            head.clear();
        }
    }
}

/// What a future comes to without waiting. Dropped unfinished, it must have lost
/// nothing.
async fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}
