//! The engine on the crate `tiny_http`: the smallest synchronous HTTP/1 server
//! library. It accepts, reads heads and decodes content; this file gives its
//! requests to the service one at a time per connection and writes responses.
//!
//! The library has a thread for each connection. A request here is a task of
//! the runtime, so that a thousand slow clients need no thousand more threads;
//! a thread is added only while content is being read, which the library does
//! by blocking.
//!
//! What this engine can't do is listed in docs/limits.md.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

use self::lazy_memory::MAX_LENGTH;
use self::socket::Socket;
use super::Limits;
use super::framing::{self, Framing};
use super::listener::Bound;
use super::patience::{Budget, Patience};
use super::tcp::{self, Peer};
use super::wire::{self, Asked};
use crate::error::Fault;
use crate::log::Log;
use crate::message::{Body, BodyError, Connection, Interim, Next, Request, RequestTarget, Source};
use crate::service::Service;

mod lazy_memory;
mod socket;

/// What is read from a client at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Content that nobody wanted is read up to this, to keep the connection (C68).
const DRAIN_BYTES: u64 = 256 << 10;
/// How long that may take, and how long a closed connection lingers so that
/// the client reads its answer before a reset could destroy it (RFC 9112 §9.6).
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// Requests that a client may send ahead of their answers.
const MAX_PIPELINED: usize = 128;
/// The library ends its accepting for good when descriptors run out; so long
/// between attempts to begin anew.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    service: Arc<Service>,
    limits: Limits,
    log: Log,
    runtime: Handle,
    lanes: Mutex<HashMap<Client, Lane>>,
    /// Where a connection's descriptor was found last.
    hints: Mutex<HashMap<SocketAddr, RawFd>>,
    /// A lane has ended.
    ended: Notify,
    stopping: AtomicBool,
    servers: Mutex<Vec<Arc<tiny_http::Server>>>,
}

/// A connection: the client's address and the port it came to.
type Client = (SocketAddr, u16);

/// The requests of one connection, answered in their order (RFC 9112 §9.3.2).
#[derive(Default)]
struct Lane {
    waiting: VecDeque<tiny_http::Request>,
    /// Nothing more on this connection is a request.
    closed: bool,
    /// Which connection it is, once that was looked up.
    id: Option<u64>,
    /// Requests of another connection, which has come from the same port of the
    /// client before this one was done with.
    successor: VecDeque<tiny_http::Request>,
}

impl Lane {
    /// The lane of the other connection, if there is one.
    fn succeed(self) -> Option<Self> {
        self.waiting.into_iter().for_each(discard);
        (!self.successor.is_empty()).then(|| Self {
            waiting: self.successor,
            ..Self::default()
        })
    }
}

/// Starts an engine thread for each listener.
pub fn start(
    bound: Vec<Bound>,
    service: Arc<Service>,
    limits: Limits,
    log: Log,
) -> io::Result<Engine> {
    let shared = Arc::new(Shared {
        service,
        limits,
        log,
        runtime: Handle::current(),
        lanes: Mutex::default(),
        hints: Mutex::default(),
        ended: Notify::new(),
        stopping: AtomicBool::new(false),
        servers: Mutex::default(),
    });
    for Bound { listener, address } in bound {
        let shared = Arc::clone(&shared);
        thread::Builder::new()
            .name(format!("accept {}", address.port()))
            .spawn(move || shared.accept(&listener, address.port()))?;
    }
    Ok(Engine { shared })
}

impl Engine {
    /// Stops accepting, then waits until the running requests are answered, at
    /// most for `grace`.
    pub async fn stop(self, grace: Duration) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for server in lock(&self.shared.servers).drain(..) {
            server.unblock();
        }
        let deadline = Instant::now() + grace;
        loop {
            let ended = self.shared.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let none_left = lock(&self.shared.lanes).is_empty();
            if none_left || tokio::time::timeout_at(deadline, ended).await.is_err() {
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is a single step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The thread of one listener.
    fn accept(self: Arc<Self>, listener: &TcpListener, port: u16) {
        loop {
            let server = listener.try_clone().map_err(Into::into);
            match server.and_then(|listener| tiny_http::Server::from_listener(listener, None)) {
                Ok(server) => {
                    let server = Arc::new(server);
                    lock(&self.servers).push(Arc::clone(&server));
                    let error = self.take_requests(&server, port);
                    if self.is_stopping() {
                        return;
                    }
                    self.log
                        .note(&format!("accepting stopped: {error}; it begins anew"));
                    self.keep_open_connections(server, port);
                }
                Err(error) => self.log.note(&format!("cannot accept: {error}")),
            }
            thread::sleep(ACCEPT_PAUSE);
            while !self.is_stopping() && !descriptors_left() {
                thread::sleep(ACCEPT_PAUSE);
            }
            if self.is_stopping() {
                return;
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Until the library stops accepting, or the server stops.
    fn take_requests(self: &Arc<Self>, server: &tiny_http::Server, port: u16) -> io::Error {
        loop {
            match server.recv() {
                Ok(request) => self.dispatch(request, port),
                Err(error) => return error,
            }
        }
    }

    /// A server that accepts no more still has its connections.
    fn keep_open_connections(self: &Arc<Self>, server: Arc<tiny_http::Server>, port: u16) {
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("accepted".into())
            .spawn(move || shared.take_requests(&server, port));
        if let Err(error) = spawned {
            self.log
                .note(&format!("connections lost: no thread for them: {error}"));
        }
    }

    fn dispatch(self: &Arc<Self>, request: tiny_http::Request, port: u16) {
        let Some(&remote) = request.remote_addr() else {
            return;
        };
        let client = (remote, port);
        let mut lanes = lock(&self.lanes);
        if let Some(lane) = lanes.get_mut(&client) {
            let id = self.find_socket(client).ok().and_then(|socket| socket.id());
            if lane.id.is_some() && id.is_some() && lane.id != id {
                if lane.successor.len() < MAX_PIPELINED {
                    lane.successor.push_back(request);
                } else {
                    discard(request);
                }
                return;
            }
            if !lane.closed && lane.waiting.len() < MAX_PIPELINED {
                lane.waiting.push_back(request);
                return;
            }
            let overflows = !std::mem::replace(&mut lane.closed, true);
            drop(lanes);
            if overflows && let Ok(socket) = self.find_socket(client) {
                // An answer left out would give the next request the wrong one.
                tcp::reset(&socket);
            }
            discard(request);
            return;
        }
        lanes.insert(client, Lane::default());
        drop(lanes);
        let shared = Arc::clone(self);
        self.runtime.spawn(Box::pin(
            async move { shared.run_lane(client, request).await },
        ));
    }

    async fn run_lane(self: Arc<Self>, client: Client, first: tiny_http::Request) {
        let mut end = LaneEnd {
            shared: &self,
            client,
            removed: false,
        };
        let mut next = Some(first);
        while let Some(request) = next {
            let after = self.exchange(client, request).await;
            let mut lanes = lock(&self.lanes);
            if let After::Close = after
                && let Some(lane) = lanes.remove(&client).and_then(Lane::succeed)
            {
                lanes.insert(client, lane);
            }
            next = lanes
                .get_mut(&client)
                .and_then(|lane| lane.waiting.pop_front());
            if next.is_none() {
                // Under the same lock, so that a request that comes now finds
                // no lane and begins one.
                lanes.remove(&client);
                end.removed = true;
            }
        }
    }

    /// Nothing that follows on this connection is a request.
    fn close_lane(&self, client: Client) {
        if let Some(lane) = lock(&self.lanes).get_mut(&client) {
            lane.closed = true;
        }
    }

    fn find_socket(&self, client: Client) -> io::Result<Socket> {
        const MAX_HINTS: usize = 4096;
        let hint = lock(&self.hints).get(&client.0).copied();
        let (socket, raw) = Socket::find(client.0, client.1, hint)?;
        if hint.is_none() {
            socket::nudge(socket.local);
        }
        let mut hints = lock(&self.hints);
        if hints.len() >= MAX_HINTS {
            hints.clear();
        }
        hints.insert(client.0, raw);
        Ok(socket)
    }
}

/// Removes a lane however its task ends, and answers nobody who waits in it.
struct LaneEnd<'a> {
    shared: &'a Shared,
    client: Client,
    /// What has the lane's place now is another one.
    removed: bool,
}

impl Drop for LaneEnd<'_> {
    fn drop(&mut self) {
        if !self.removed
            && let Some(lane) = lock(&self.shared.lanes).remove(&self.client)
        {
            lane.waiting.into_iter().for_each(discard);
            lane.successor.into_iter().for_each(discard);
        }
        self.shared.ended.notify_waiters();
    }
}

/// Drops a request without the answer that the library would give it.
fn discard(request: tiny_http::Request) {
    if request
        .body_length()
        .is_some_and(|length| length as u64 > MAX_LENGTH)
    {
        // Dropping it would ask for that much memory. The connection is closed;
        // its descriptors are the price.
        std::mem::forget(request);
        return;
    }
    drop(request.into_writer());
}

/// Whether a connection (two descriptors) and some files could be opened now.
fn descriptors_left() -> bool {
    const NEEDED: usize = 16;
    let mut held = Vec::new();
    (0..NEEDED).all(|_| File::open("/dev/null").map(|file| held.push(file)).is_ok())
}

/// What becomes of the connection after an exchange.
enum After {
    KeepAlive,
    Close,
}

impl Shared {
    /// One request and its response.
    async fn exchange(&self, client: Client, request: tiny_http::Request) -> After {
        let Ok(socket) = self.find_socket(client).map(Arc::new) else {
            // The client closed before we looked.
            discard(request);
            return After::Close;
        };
        if let Some(lane) = lock(&self.lanes).get_mut(&client) {
            lane.id = socket.id();
        }
        // The library waits for content with the same timer.
        socket.set_idle(self.limits.idle.max(self.limits.body.most));
        let connection = Connection {
            remote: client.0,
            local: socket.local,
            secure: false,
        };
        let (slot, read) = Head::read(&request, connection, self.is_stopping(), &self.limits).take(
            request,
            &socket,
            &self.limits,
        );
        let mut asked = read.asked;
        let interims = Interim::default();
        let answer = async {
            match read.request {
                Ok(mut request) => {
                    if request.version() == Version::HTTP_11 {
                        request.extensions_mut().insert(interims.clone());
                    }
                    self.service.respond(request).await
                }
                Err((fault, bare)) => self.service.refuse(bare, fault),
            }
        };
        let answer = wire::await_answer(&*socket, &self.limits, &asked, &interims, answer).await;
        let Some(response) = answer else {
            self.close_lane(client);
            tcp::close(&*socket);
            slot.give_back().await;
            return After::Close;
        };
        // The answer may have taken long.
        asked.keep_alive &= slot.answer_begins() && !self.is_stopping();
        let delivered = wire::deliver(&*socket, &self.limits, &asked, response).await;
        let keep_alive =
            delivered.keep_alive && tcp::peer(&*socket) != Peer::Gone && slot.drain().await;
        if !keep_alive {
            self.close_lane(client);
            if delivered.complete {
                tcp::finish(&*socket);
                // Content that is still coming must not turn the client's view
                // of the answer into a reset.
                slot.drain().await;
            }
            tcp::linger(&*socket, DRAIN_WAIT).await;
        }
        slot.give_back().await;
        if keep_alive {
            After::KeepAlive
        } else {
            After::Close
        }
    }
}

/// A head as the library read it, turned into ours.
struct Head {
    asked: Asked,
    framing: Result<Framing, Fault>,
    request: http::Request<()>,
    upgrade: bool,
}

/// A request for the service, or why there is none.
struct ReadRequest {
    asked: Asked,
    request: Result<Request, (Fault, http::Request<()>)>,
}

impl Head {
    fn read(
        request: &tiny_http::Request,
        connection: Connection,
        stopping: bool,
        limits: &Limits,
    ) -> Self {
        let version = match *request.http_version() {
            tiny_http::HTTPVersion(1, 1) => Version::HTTP_11,
            _ => Version::HTTP_10,
        };
        let mut bare = http::Request::new(());
        let method = Method::from_bytes(request.method().as_str().as_bytes());
        let headers = read_headers(request);
        let known = method.is_ok() && headers.is_some() && *request.http_version() >= (1, 0);
        *bare.method_mut() = method.unwrap_or_default();
        *bare.headers_mut() = headers.unwrap_or_default();
        *bare.version_mut() = version;
        bare.extensions_mut().insert(connection);
        bare.extensions_mut()
            .insert(RequestTarget(Bytes::copy_from_slice(
                request.url().as_bytes(),
            )));
        let framing = if request.headers().len() > limits.fields {
            Err(Fault::new(http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).closing())
        } else if known {
            framing::request_framing(version, bare.headers())
        } else {
            Err(Fault::bad_request().closing())
        };
        // The library reads nothing more from a connection with this option.
        let upgrade = bare
            .headers()
            .get_all(http::header::CONNECTION)
            .iter()
            .any(|value| {
                value
                    .as_bytes()
                    .to_ascii_lowercase()
                    .windows(7)
                    .any(|word| word == b"upgrade")
            });
        let keep_alive = framing::wants_keep_alive(version, bare.headers());
        let asked = Asked {
            method: bare.method().clone(),
            version: if limits.http_1_0 {
                Version::HTTP_10
            } else {
                version
            },
            keep_alive: keep_alive && !upgrade && !stopping && !limits.http_1_0 && framing.is_ok(),
            last: !keep_alive,
        };
        Self {
            asked,
            framing,
            request: bare,
            upgrade,
        }
    }

    /// Puts the content in: what the library has already read at once, the rest
    /// when somebody wants it.
    fn take(
        self,
        request: tiny_http::Request,
        socket: &Arc<Socket>,
        limits: &Limits,
    ) -> (Arc<Slot>, ReadRequest) {
        let Self {
            asked,
            framing,
            request: bare,
            upgrade,
        } = self;
        let framing = match framing {
            // With this option the library doesn't decode chunks.
            Ok(Framing::Length(length)) if length > MAX_LENGTH => {
                Err(Fault::new(http::StatusCode::PAYLOAD_TOO_LARGE).closing())
            }
            Ok(Framing::Chunked) if upgrade => {
                Err(Fault::new(http::StatusCode::NOT_IMPLEMENTED).closing())
            }
            other => other,
        };
        let expects = bare.headers().contains_key(http::header::EXPECT);
        let content = match framing {
            Ok(Framing::None | Framing::Length(0)) => State::Read,
            Ok(Framing::Length(length)) => State::Unread { left: Some(length) },
            Ok(Framing::Chunked) => State::Unread { left: None },
            Err(_) => State::Broken,
        };
        let slot = Arc::new(Slot::new(request, Arc::clone(socket), content, expects));
        let body = match framing {
            Ok(Framing::None) | Err(_) => Body::Empty,
            Ok(Framing::Length(0)) => Body::Bytes(Bytes::new()),
            Ok(Framing::Length(length)) => {
                Body::stream(Some(length), Upload::new(&slot, limits.body))
            }
            Ok(Framing::Chunked) => Body::stream(None, Upload::new(&slot, limits.body)),
        };
        let request = match framing {
            Ok(_) => Ok(bare.map(|()| body)),
            Err(fault) => Err((fault, bare)),
        };
        (slot, ReadRequest { asked, request })
    }
}

/// `None` if a field can't be one.
fn read_headers(request: &tiny_http::Request) -> Option<HeaderMap> {
    let mut headers = HeaderMap::try_with_capacity(request.headers().len()).ok()?;
    for field in request.headers() {
        let (name, value) = framing::header(
            field.field.as_str().as_str().as_bytes(),
            field.value.as_bytes(),
        )?;
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

/// The library's request while our side works on it: it holds the connection
/// and reads the content.
struct Slot {
    /// `None` while a thread reads from it.
    held: Mutex<Option<tiny_http::Request>>,
    socket: Arc<Socket>,
    content: Mutex<State>,
    /// The client waits for 100 (Continue) before it sends its content.
    expects: bool,
    /// The final answer has begun; 100 (Continue) would come too late.
    answered: Mutex<bool>,
    /// The request is back.
    returned: Notify,
}

/// How far a request's content has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To its end; the next request follows.
    Read,
    Unread {
        /// In bytes; `None` if chunked.
        left: Option<u64>,
    },
    /// A thread is at it.
    Reading,
    /// It ended early or can't be framed; nothing behind it can be a request.
    Broken,
}

impl Slot {
    fn new(
        request: tiny_http::Request,
        socket: Arc<Socket>,
        content: State,
        expects: bool,
    ) -> Self {
        Self {
            held: Mutex::new(Some(request)),
            socket,
            content: Mutex::new(content),
            expects,
            answered: Mutex::new(false),
            returned: Notify::new(),
        }
    }

    fn state(&self) -> State {
        *lock(&self.content)
    }

    /// Returns whether the next request might follow: not if the client waited
    /// for leave to send its content and is answered before it has (C69).
    fn answer_begins(&self) -> bool {
        *lock(&self.answered) = true;
        match self.state() {
            State::Read => true,
            State::Reading => !self.expects,
            State::Unread { left } => !self.expects && left.is_none_or(|left| left <= DRAIN_BYTES),
            State::Broken => false,
        }
    }

    /// Starts a thread that reads the content, as far as `sink` takes it.
    fn read(self: &Arc<Self>, sink: Sink) -> io::Result<()> {
        let mut held = lock(&self.held);
        let Some(mut request) = held.take() else {
            return Ok(());
        };
        if self.expects {
            let answered = lock(&self.answered);
            if *answered {
                *held = Some(request);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // This sends 100 (Continue), never between the pieces of an answer.
            request.as_reader();
        }
        drop(held);
        let left = match std::mem::replace(&mut *lock(&self.content), State::Reading) {
            State::Unread { left, .. } => left,
            _ => Some(0),
        };
        let reading = Reading {
            slot: Arc::clone(self),
            request: Some(request),
            state: State::Broken,
            left,
        };
        thread::Builder::new()
            .name("content".into())
            .spawn(move || reading.run(sink))
            .map(drop)
    }

    /// Waits for the reading thread, not for long.
    async fn wait_returned(&self, wait: Duration) -> bool {
        timeout(wait, self.until_returned()).await.is_ok()
    }

    async fn until_returned(&self) {
        loop {
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if self.state() != State::Reading {
                return;
            }
            returned.await;
        }
    }

    /// Reads what is left of the content if it isn't much. Returns whether the
    /// next request can follow (C68).
    async fn drain(self: &Arc<Self>) -> bool {
        if !self.wait_returned(DRAIN_WAIT).await {
            return false;
        }
        if !self.expects
            && let State::Unread { .. } = self.state()
            && self.read(Sink::Nowhere { room: DRAIN_BYTES }).is_ok()
        {
            self.wait_returned(DRAIN_WAIT).await;
        }
        self.state() == State::Read
    }

    /// Gives the connection back to the library; if the content isn't at its
    /// end, as a closed one.
    async fn give_back(&self) {
        if self.state() != State::Read {
            // Wakes a blocked reader; the library drains nothing from it.
            tcp::close(&*self.socket);
            self.until_returned().await;
        }
        if let Some(request) = lock(&self.held).take() {
            discard(request);
        }
    }
}

/// Where read content goes.
enum Sink {
    Channel(mpsc::Sender<Result<Bytes, BodyError>>),
    /// Thrown away, up to `room` bytes.
    Nowhere {
        room: u64,
    },
}

impl Sink {
    /// Whether more is wanted.
    fn take(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Channel(channel) => channel
                .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
                .is_ok(),
            Self::Nowhere { room } => {
                *room = room.saturating_sub(bytes.len() as u64);
                *room > 0
            }
        }
    }

    fn fail(&self, error: BodyError) {
        if let Self::Channel(channel) = self {
            // Nobody waits for it any more.
            let _ = channel.blocking_send(Err(error));
        }
    }
}

/// The thread that reads a request's content. However it ends, the request
/// goes back to its slot.
struct Reading {
    slot: Arc<Slot>,
    request: Option<tiny_http::Request>,
    /// What the slot's state becomes.
    state: State,
    left: Option<u64>,
}

impl Reading {
    fn run(mut self, mut sink: Sink) {
        let mut buffer = vec![0; BLOCK_BYTES];
        self.state = loop {
            if self.left == Some(0) {
                break State::Read;
            }
            match self.read(&mut buffer) {
                Ok(0) => break State::Read,
                Ok(read) => {
                    if !sink.take(&buffer[..read]) && self.left != Some(0) {
                        break State::Unread { left: self.left };
                    }
                }
                Err(error) => {
                    sink.fail(error);
                    break State::Broken;
                }
            }
        };
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BodyError> {
        let request = self
            .request
            .as_mut()
            .expect("taken only when this is dropped");
        let most = self.left.map_or(buffer.len(), |left| {
            usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len())
        });
        let read = loop {
            match request.as_reader().read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(0) if self.left.is_some() => Err(BodyError::Closed),
            Ok(0) => self.end_of_chunks().map(|()| 0),
            Ok(read) => {
                if let Some(left) = &mut self.left {
                    *left -= read as u64;
                }
                Ok(read)
            }
            Err(error) => Err(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => BodyError::TimedOut,
                io::ErrorKind::InvalidInput => BodyError::Malformed,
                _ => BodyError::Closed,
            }),
        }
    }

    /// The library's decoder says the same for the last chunk and for a client
    /// that left in the middle of one. A client that has closed its side is
    /// taken to have left: a script must never run on half its content (C71).
    fn end_of_chunks(&self) -> Result<(), BodyError> {
        match tcp::peer(&*self.slot.socket) {
            Peer::Open => Ok(()),
            Peer::HalfClosed | Peer::Gone => Err(BodyError::Closed),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        *lock(&self.slot.held) = self.request.take();
        *lock(&self.slot.content) = self.state;
        self.slot.returned.notify_waiters();
    }
}

/// A request's content as the service sees it. Reading begins with the first
/// demand, and with it goes 100 (Continue), if the client waits for that (C69).
struct Upload {
    slot: Arc<Slot>,
    /// C72.
    budget: Budget,
    pieces: Option<mpsc::Receiver<Result<Bytes, BodyError>>>,
}

impl Upload {
    fn new(slot: &Arc<Slot>, patience: Patience) -> Self {
        Self {
            slot: Arc::clone(slot),
            budget: patience.begin(),
            pieces: None,
        }
    }

    async fn piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.want();
        let pieces = self.pieces.as_mut()?;
        let Some(piece) = self.budget.wait(pieces.recv()).await else {
            return Some(Err(BodyError::TimedOut));
        };
        if let Some(Ok(piece)) = &piece {
            self.budget.earn(piece.len() as u64);
        }
        piece
    }
}

impl Source for Upload {
    fn want(&mut self) {
        if self.pieces.is_none() {
            let (sender, pieces) = mpsc::channel(2);
            self.pieces = Some(pieces);
            let failed = sender.clone();
            if let Err(error) = self.slot.read(Sink::Channel(sender)) {
                // There is room for two.
                let _ = failed.try_send(Err(error.into()));
            }
        }
    }

    fn next(&mut self) -> Next<'_> {
        Box::pin(self.piece())
    }
}
