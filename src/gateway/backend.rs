//! The addresses of an application: dialled, balanced, rested when they fail,
//! and their connections kept for the next request. Knows no protocol; nothing
//! else in the gateway connects to anybody.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::Diagnosis;
use crate::log::Log;

/// A failing address rests so long at first; each time twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Failures after the connection was made that let an address rest, if no
/// request succeeds in between.
const FAILURES: u32 = 3;
/// The kernel asks an application that is silent whether its machine is there.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;
/// Workers that a request which may be run twice is tried at.
const WORKERS_TRIED: usize = 3;
/// An idle connection is kept so long.
const KEEP_TIME: Duration = Duration::from_secs(10);
/// How long a listening socket whose queue is full is tried again (C162).
const QUEUE_WAIT: Duration = Duration::from_secs(1);
const QUEUE_POLL: Duration = Duration::from_millis(10);

/// Where an application listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
    /// The socket of a worker that is started from here, by its place.
    Worker(usize, PathBuf),
}

impl Address {
    /// `HOST:PORT`, `[::1]:PORT` or `unix:PATH`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|&port| port != 0)?;
        let host = if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']')?;
            inner.parse::<Ipv6Addr>().ok()?;
            inner
        } else {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            (!host.is_empty() && host.bytes().all(plain)).then_some(host)?
        };
        Some(Self::Tcp(host.to_owned(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Worker(place, _) => write!(f, "worker {place}"),
        }
    }
}

/// A connection to an application.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Unix(stream) => stream.try_read(buffer),
        }
    }

    /// The same; the descriptor that comes along goes to `file` (`SCM_RIGHTS`).
    pub fn try_read_with_file(
        &self,
        buffer: &mut [u8],
        file: &mut Option<OwnedFd>,
    ) -> io::Result<usize> {
        let Self::Unix(stream) = self else {
            return self.try_read(buffer);
        };
        stream.try_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(stream, &mut pieces, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    *file = files.into_iter().next();
                }
            }
            Ok(received.bytes)
        })
    }

    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Out of this thread's runtime, which may end before the next request.
    pub fn rest(self) -> io::Result<Resting> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(Resting::Tcp),
            Self::Unix(stream) => stream.into_std().map(Resting::Unix),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// A connection that is kept for the next request.
pub trait Kept: Send + 'static {
    fn state(&self) -> KeptState;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptState {
    Usable,
    /// By another thread.
    NotHere,
    Closed,
}

/// A connection that no runtime watches.
pub enum Resting {
    Tcp(std::net::TcpStream),
    Unix(StdUnixStream),
}

impl Kept for Resting {
    /// Whether the application still has it open and has said nothing that
    /// nobody asked for (C159).
    fn state(&self) -> KeptState {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self.socket(), &mut [0u8; 1], flags) {
            Err(Errno::AGAIN) => KeptState::Usable,
            _ => KeptState::Closed,
        }
    }
}

impl Resting {
    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    /// What the application writes from now on fails, on a Unix socket.
    pub fn take_no_more(&self) {
        // One that has gone has nothing to write.
        let _ = rustix::net::shutdown(self.socket(), Shutdown::Read);
    }

    /// After [`Resting::take_no_more`]: whether the application has closed it.
    pub fn is_closed_by_peer(&self) -> bool {
        self.is(PollFlags::HUP | PollFlags::ERR)
    }

    /// Before [`Resting::take_no_more`]: whether the application writes no more.
    pub fn is_half_closed_by_peer(&self) -> bool {
        self.is(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    fn is(&self, any_of: PollFlags) -> bool {
        let mut sockets = [PollFd::from_borrowed_fd(self.socket(), any_of)];
        let now = Timespec::default();
        match rustix::event::poll(&mut sockets, Some(&now)) {
            Ok(_) => sockets[0].revents().intersects(any_of),
            Err(_) => false,
        }
    }

    pub fn wake(self) -> io::Result<Stream> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream).map(Stream::Unix),
        }
    }
}

/// What a backend is told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For a connection to be made.
    pub connect: Duration,
    /// To an address at once.
    pub connections: usize,
    /// Idle connections kept for each address.
    pub keep: usize,
    /// Each address is connected to so often, to see whether it is there;
    /// `None`: requests find out.
    pub check: Option<Duration>,
    /// For a turn where all connections are in use.
    pub wait: Duration,
    /// Its addresses are workers that are started from here: none is open
    /// before [`Backend::open`].
    pub staffed: bool,
}

/// The addresses of one application.
pub struct Backend<K> {
    /// For the log: the protocol.
    name: &'static str,
    hosts: Vec<Host<K>>,
    options: Options,
    /// Where the search for the least loaded starts, so that equals take turns.
    next: AtomicUsize,
    /// A request at some address is over.
    freed: Notify,
    /// For whoever starts the workers: something is to be done.
    news: Notify,
    /// Why no worker can be had.
    down: Mutex<Option<Arc<Diagnosis>>>,
    log: Log,
}

struct Host<K> {
    address: Address,
    state: Mutex<State<K>>,
}

struct State<K> {
    /// Requests that are with it.
    outstanding: usize,
    /// Those of them that wait on a new connection and have heard nothing yet:
    /// nobody may have accepted it, because each worker of the application is
    /// kept by a connection (C160).
    unheard: usize,
    idle: Vec<(Instant, K)>,
    /// A task is there that closes what is idle for too long.
    tended: bool,
    /// Since the last success.
    failures: u32,
    rest: Option<Rest>,
    /// What a worker that is started from here is up to.
    work: Work,
}

/// A worker's part of the state of its address. Without one, always open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// It gets no requests.
    pub closed: bool,
    /// Requests that are with it.
    pub outstanding: usize,
    /// Requests that it has been given.
    pub given: u64,
    /// It is told when `given` comes to this.
    pub due: Option<u64>,
    /// A request to it has not been answered in time.
    pub stuck: bool,
    /// When it was last given a request, or finished one.
    pub used: Option<Instant>,
}

/// An address that gets no requests.
struct Rest {
    pause: Duration,
    until: Instant,
    /// One request tries whether it is back.
    probed: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Trouble {
    /// All addresses rest; the first may be tried again after this.
    Resting(Duration),
    /// The workers that are started from here end at once.
    Down(Arc<Diagnosis>),
    /// No address has a connection to spare, for so long.
    Busy,
    /// A connection could not be made.
    Refused(io::Error),
    /// The time to make one is over.
    Late,
    /// Its queue of connections is full and stays so (C162).
    Full,
    /// This server is out of descriptors or memory.
    Exhausted(io::Error),
}

impl<K: Kept> Backend<K> {
    pub fn new(
        name: &'static str,
        addresses: Vec<Address>,
        options: Options,
        log: Log,
    ) -> Arc<Self> {
        let host = |address| Host {
            address,
            state: Mutex::new(State {
                outstanding: 0,
                unheard: 0,
                idle: Vec::new(),
                tended: false,
                failures: 0,
                rest: None,
                work: Work {
                    closed: options.staffed,
                    ..Work::default()
                },
            }),
        };
        let backend = Arc::new(Self {
            name,
            hosts: addresses.into_iter().map(host).collect(),
            options,
            next: AtomicUsize::new(0),
            freed: Notify::new(),
            news: Notify::new(),
            down: Mutex::default(),
            log,
        });
        // With no other to turn to, nothing would change.
        if let Some(period) = options.check
            && backend.size() > 1
        {
            for at in 0..backend.size() {
                tokio::spawn(check(Arc::downgrade(&backend), at, period));
            }
        }
        backend
    }

    /// How many addresses there are.
    pub fn size(&self) -> usize {
        self.hosts.len()
    }

    /// How many of them a request is tried at.
    pub fn rounds(&self) -> usize {
        if self.options.staffed {
            WORKERS_TRIED
        } else {
            self.size()
        }
    }

    /// A turn at the address with the fewest requests, none of those in
    /// `tried`. Waits for a while where all are at their limit.
    pub async fn turn(self: &Arc<Self>, tried: &[usize]) -> Result<Turn<K>, Trouble> {
        let give_up = Instant::now() + self.options.wait;
        loop {
            match self.choose(tried) {
                Err(Trouble::Busy) => {}
                chosen => return chosen,
            }
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Of what is given back from now on, nothing is missed.
            freed.as_mut().enable();
            match self.choose(tried) {
                Err(Trouble::Busy) => {}
                chosen => return chosen,
            }
            if timeout_at(give_up, freed).await.is_err() {
                return Err(Trouble::Busy);
            }
        }
    }

    fn choose(self: &Arc<Self>, tried: &[usize]) -> Result<Turn<K>, Trouble> {
        let now = Instant::now();
        let mut best: Option<(usize, usize)> = None;
        let (mut busy, mut open, mut soonest) = (false, false, Duration::MAX);
        let alone = self.hosts.len() == 1;
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        for at in (0..self.hosts.len()).map(|n| start.wrapping_add(n) % self.hosts.len()) {
            let mut state = self.hosts[at].lock();
            open |= !state.work.closed;
            // A worker that has failed is replaced at its place.
            let failed = tried.contains(&at) && !self.options.staffed;
            if failed || state.work.closed {
                continue;
            }
            if state.outstanding >= self.options.connections {
                busy = true;
                continue;
            }
            // With no other to turn to, resting would help nobody.
            if let Some(rest) = state.rest.as_mut().filter(|_| !alone) {
                let may_probe = self.options.check.is_none();
                if may_probe && now >= rest.until && !rest.probed {
                    rest.probed = true;
                    self.count(&mut state, now);
                    return Ok(self.give(at, true));
                }
                soonest = soonest.min(rest.until.saturating_duration_since(now));
                continue;
            }
            if best.is_none_or(|(_, fewest)| state.outstanding < fewest) {
                best = Some((at, state.outstanding));
            }
        }
        match best {
            Some((at, _)) => {
                let mut state = self.hosts[at].lock();
                let full = state.outstanding >= self.options.connections;
                if state.work.closed || full {
                    // Since it was looked at.
                    drop(state);
                    return self.choose(tried);
                }
                self.count(&mut state, now);
                drop(state);
                Ok(self.give(at, false))
            }
            None if !open && self.options.staffed => Err(self.nobody()),
            None if busy => Err(Trouble::Busy),
            None => Err(Trouble::Resting(soonest)),
        }
    }

    fn count(&self, state: &mut State<K>, now: Instant) {
        state.outstanding += 1;
        state.work.given += 1;
        state.work.used = Some(now);
        if state.work.due.is_some_and(|due| state.work.given >= due) {
            self.news.notify_one();
        }
    }

    /// No worker is there: one is asked for.
    fn nobody(&self) -> Trouble {
        self.news.notify_one();
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        match &*down {
            Some(why) => Trouble::Down(Arc::clone(why)),
            None => Trouble::Busy,
        }
    }

    fn give(self: &Arc<Self>, at: usize, probe: bool) -> Turn<K> {
        Turn {
            backend: Arc::clone(self),
            at,
            probe,
            unheard: false,
        }
    }
}

/// For whoever starts the workers that the addresses are.
impl<K> Backend<K> {
    /// Returns when something about the workers has changed, or one is asked for.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// A new worker is at the address, and is told when it has got `due`
    /// requests.
    pub fn open(&self, at: usize, due: Option<u64>) {
        let mut state = self.hosts[at].lock();
        state.failures = 0;
        state.rest = None;
        state.work = Work {
            due,
            // They wait for it already.
            given: state.outstanding as u64,
            ..Work::default()
        };
        drop(state);
        self.freed.notify_waiters();
    }

    /// The worker at the address gets no more requests.
    pub fn close(&self, at: usize) {
        let mut state = self.hosts[at].lock();
        state.work.closed = true;
        state.idle.clear();
    }

    pub fn work(&self, at: usize) -> Work {
        let state = self.hosts[at].lock();
        Work {
            outstanding: state.outstanding,
            ..state.work
        }
    }

    /// Why requests are not to wait for a worker.
    pub fn set_down(&self, why: Option<Diagnosis>) {
        let is_down = why.is_some();
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = why.map(Arc::new);
        if is_down {
            self.freed.notify_waiters();
        }
    }
}

impl<K> Host<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial_in(limit: Duration, address: &Address) -> Result<Stream, Trouble> {
    let dialled = timeout(limit, dial(address)).await;
    dialled.unwrap_or(Err(Trouble::Late))
}

async fn dial(address: &Address) -> Result<Stream, Trouble> {
    let give_up = Instant::now() + QUEUE_WAIT;
    loop {
        let connected = match address {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                stream.and_then(|stream| {
                    stream.set_nodelay(true)?;
                    set_probes(&stream)?;
                    Ok(Stream::Tcp(stream))
                })
            }
            Address::Unix(path) | Address::Worker(_, path) => {
                UnixStream::connect(path).await.map(Stream::Unix)
            }
        };
        let error = match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) if Instant::now() < give_up => sleep(QUEUE_POLL).await,
            Some(Errno::AGAIN) => return Err(Trouble::Full),
            Some(Errno::TIMEDOUT) => return Err(Trouble::Late),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                return Err(Trouble::Exhausted(error));
            }
            _ => return Err(Trouble::Refused(error)),
        }
    }
}

fn set_probes(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}

/// A request's turn at an address. Counted there until it is dropped.
pub struct Turn<K: Kept> {
    backend: Arc<Backend<K>>,
    at: usize,
    /// It tries whether the address is back.
    probe: bool,
    /// On a new connection, and nothing was heard yet.
    unheard: bool,
}

impl<K: Kept> Turn<K> {
    /// Which address, as [`Backend::turn`] wants it.
    pub fn index(&self) -> usize {
        self.at
    }

    pub fn address(&self) -> &Address {
        &self.host().address
    }

    /// For a connection to be made.
    pub fn patience(&self) -> Duration {
        self.backend.options.connect
    }

    fn host(&self) -> &Host<K> {
        &self.backend.hosts[self.at]
    }

    /// A connection that was kept, if one is still good.
    pub fn reuse(&mut self) -> Option<K> {
        let mut state = self.host().lock();
        let mut at = state.idle.len();
        while at > 0 {
            at -= 1;
            match state.idle[at].1.state() {
                KeptState::Usable => return Some(state.idle.remove(at).1),
                KeptState::NotHere => {}
                KeptState::Closed => drop(state.idle.remove(at)),
            }
        }
        None
    }

    /// A new connection. The application may have a process for each, so an idle
    /// one that can't be used here makes room, and none is kept meanwhile (C160).
    pub async fn connect(&mut self) -> Result<Stream, Trouble> {
        {
            let mut state = self.host().lock();
            state.idle.pop();
            state.unheard += 1;
        }
        self.unheard = true;
        dial_in(self.backend.options.connect, self.address()).await
    }

    /// Lets the kernel notice a machine that is cut off: at once where what is
    /// sent isn't acknowledged in time, which holds only for a `short` request
    /// (an application may take its time for a long one), and else by probes.
    pub fn notice_silence(&self, stream: &Stream, short: bool) {
        use rustix::net::sockopt;
        let Stream::Tcp(stream) = stream else { return };
        let limit = self.backend.options.connect.as_millis();
        let limit = if short { limit } else { 0 };
        // Without it the request still has its own time limit.
        let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(limit).unwrap_or(0));
    }

    /// The application has said something.
    pub fn heard(&mut self) {
        if std::mem::take(&mut self.unheard) {
            self.host().lock().unheard -= 1;
        }
    }

    /// It has answered as it should.
    pub fn succeeded(&mut self) {
        self.heard();
        self.probe = false;
        let rested = {
            let mut state = self.host().lock();
            state.failures = 0;
            state.rest.take()
        };
        if rested.is_some() {
            self.note("answers again");
        }
    }

    /// It has not answered in time. A worker that is started from here is then
    /// replaced.
    pub fn stuck(&mut self) {
        if self.backend.options.staffed {
            self.host().lock().work.stuck = true;
            self.backend.news.notify_one();
        }
    }

    pub fn is_staffed(&self) -> bool {
        self.backend.options.staffed
    }

    /// It could not be reached: it rests at once.
    pub fn unreachable(&mut self, why: &str) {
        self.failed(FAILURES, why);
    }

    /// It was reached and did not answer as it should.
    pub fn misbehaved(&mut self, why: &str) {
        self.failed(1, why);
    }

    fn failed(&mut self, weight: u32, why: &str) {
        let now = Instant::now();
        let again = std::mem::take(&mut self.probe);
        let pause = {
            let mut state = self.host().lock();
            state.failures = state.failures.saturating_add(weight);
            if state.failures < FAILURES && !again {
                return;
            }
            let pause = match &state.rest {
                Some(rest) if again => (rest.pause * 2).min(LONGEST_PAUSE),
                // Others that were on their way when it failed.
                Some(_) => return,
                None => FIRST_PAUSE,
            };
            state.rest = Some(Rest {
                pause,
                until: now + pause,
                probed: false,
            });
            state.idle.clear();
            pause
        };
        if self.backend.size() > 1 {
            let pause = pause.as_secs_f32();
            self.note(&format!("{why}; it gets no requests for {pause} s"));
        }
    }

    fn note(&self, what: &str) {
        let Backend { name, log, .. } = &*self.backend;
        log.gateway_note(name, &self.address().to_string(), what);
    }

    /// Keeps the connection for the next request, unless somebody waits for
    /// the worker that it holds. Where the user has said how many connections
    /// there may be, each has a worker.
    pub fn keep(mut self, connection: K) {
        self.heard();
        let Options {
            keep, connections, ..
        } = self.backend.options;
        let mut state = self.host().lock();
        if connections == usize::MAX && state.unheard > 0 {
            return;
        }
        if state.idle.len() >= keep || state.rest.is_some() || state.work.closed {
            return;
        }
        state.idle.push((Instant::now(), connection));
        if !std::mem::replace(&mut state.tended, true) {
            tokio::spawn(tend(Arc::clone(&self.backend), self.at));
        }
    }
}

impl<K: Kept> Drop for Turn<K> {
    fn drop(&mut self) {
        self.heard();
        let mut state = self.host().lock();
        state.outstanding -= 1;
        if self.probe
            && let Some(rest) = &mut state.rest
        {
            // It was given up before anybody knew; the next one tries.
            rest.probed = false;
        }
        if self.backend.options.staffed {
            state.work.used = Some(Instant::now());
            if state.work.closed && state.outstanding == 0 {
                self.backend.news.notify_one();
            }
        }
        drop(state);
        self.backend.freed.notify_one();
    }
}

/// Connects to an address again and again: one that can't be reached rests until
/// it can, and no request has to find out.
async fn check<K: Kept>(backend: Weak<Backend<K>>, at: usize, period: Duration) {
    loop {
        sleep(period).await;
        let Some(backend) = backend.upgrade() else {
            return;
        };
        let host = &backend.hosts[at];
        let reached = dial_in(backend.options.connect, &host.address).await;
        let note = {
            let mut state = host.lock();
            match (reached, &state.rest) {
                // To be out of descriptors says nothing about the address.
                (Ok(_) | Err(Trouble::Exhausted(_)), None) | (Err(_), Some(_)) => None,
                (Ok(_), Some(_)) => {
                    state.rest = None;
                    state.failures = 0;
                    Some("can be reached again")
                }
                (Err(_), None) => {
                    let pause = FIRST_PAUSE;
                    let until = Instant::now() + pause;
                    state.rest = Some(Rest {
                        pause,
                        until,
                        probed: false,
                    });
                    state.idle.clear();
                    Some("can't be reached; it gets no requests")
                }
            }
        };
        if let Some(note) = note {
            let address = host.address.to_string();
            backend.log.gateway_note(backend.name, &address, note);
        }
    }
}

/// Closes what is idle for too long.
async fn tend<K: Kept>(backend: Arc<Backend<K>>, at: usize) {
    // If the runtime ends, the next connection that is kept starts another.
    let _tended = Tended(&backend.hosts[at]);
    loop {
        let oldest = {
            let mut state = backend.hosts[at].lock();
            let now = Instant::now();
            state.idle.retain(|(since, _)| now < *since + KEEP_TIME);
            match state.idle.iter().map(|(since, _)| *since).min() {
                Some(oldest) => oldest,
                None => return,
            }
        };
        tokio::time::sleep_until(oldest + KEEP_TIME).await;
    }
}

struct Tended<'a, K>(&'a Host<K>);

impl<K> Drop for Tended<'_, K> {
    fn drop(&mut self) {
        self.0.lock().tended = false;
    }
}
