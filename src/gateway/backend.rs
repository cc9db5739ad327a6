//! The addresses of an application: dialled, balanced, rested when they fail,
//! and their connections kept for the next request. Knows no protocol; nothing
//! else in the gateway connects to anybody.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::sticky::{Pull, hash};
use super::stream::{Resting, Stream};
use crate::error::Diagnosis;
use crate::log::Log;

/// A failing address rests so long at first; each time twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// A connection that takes longer than this is tried elsewhere, too.
const DIAL_BESIDE: Duration = Duration::from_millis(300);
/// A request that tries whether an address is back is answered in this time, or
/// elsewhere.
const TRY_TIME: Duration = Duration::from_secs(1);
/// An address that owes answers and has given none for so long, while others
/// have, counts as that many times as busy.
const SILENCE: Duration = Duration::from_secs(1);
const SILENT_WEIGHT: usize = 4;
/// Failures after the connection was made that let an address rest, if no
/// request succeeds in between.
const FAILURES: u32 = 3;
/// The kernel asks an application that is silent whether its machine is there.
const PROBE_AFTER: Duration = Duration::from_secs(1);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBES: u32 = 10;
/// A machine that acknowledges nothing for so long has no more time for a
/// request that can be repeated elsewhere.
const UNACKNOWLEDGED: Duration = Duration::from_secs(2);
/// Workers that a request which may be run twice is tried at.
const WORKERS_TRIED: usize = 2;
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
    /// How long a request on a new connection waits before kept ones are taken to
    /// be in its way (C160).
    pub patience: Duration,
    /// Requests may wait for an address of their own.
    pub sticky: bool,
    /// Its addresses are workers that are started from here: none is open
    /// before [`Backend::open`].
    pub staffed: bool,
}

/// The addresses of one application.
pub struct Backend {
    /// For the log: the protocol.
    name: &'static str,
    hosts: Vec<Host>,
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

struct Host {
    address: Address,
    /// Of its name.
    hash: u64,
    state: Mutex<State>,
}

struct State {
    /// Requests that are with it.
    outstanding: usize,
    /// Those of them that wait on a new connection and have heard nothing yet, the
    /// oldest first: nobody may have accepted it, because each worker of the
    /// application is kept by a connection (C160).
    unheard: VecDeque<(u64, Instant)>,
    /// New connections so far.
    dialled: u64,
    /// When something came on a new connection last.
    heard: Option<Instant>,
    /// Those of them that no answer has begun to.
    unanswered: usize,
    /// It has answered none of them since then.
    silent_since: Option<Instant>,
    /// When an answer began last.
    answered: Option<Instant>,
    idle: Vec<(Instant, Resting)>,
    /// A task is there that closes what is idle for too long.
    tended: bool,
    /// A task is there that closes what is in the way of others.
    relieved: bool,
    /// Since the last success.
    failures: u32,
    rest: Option<Rest>,
    /// What a worker that is started from here is up to.
    work: Work,
}

/// A worker's part of the state of its address. Without one, always open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Its process number.
    pub pid: u32,
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

/// What an address can do for a request.
enum Standing {
    /// There is no worker.
    Closed,
    /// It is not tried before that time is over.
    Rests(Duration),
    /// It has as many requests as it may have.
    Full,
    Free(Merit),
}

/// How well an address suits a request: the least suits best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merit {
    /// As [`Pull::rank`] has it.
    rank: u64,
    /// The request would not try whether it is back.
    is_no_try: bool,
    load: usize,
}

/// An address that gets no requests.
struct Rest {
    pause: Duration,
    until: Instant,
    /// No connection to it could be made: the next try tells before anything
    /// was sent.
    unreachable: bool,
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
    /// No worker that is started from here has begun to serve, for so long.
    Unready,
    /// A connection could not be made.
    Refused(io::Error),
    /// The time to make one is over.
    Late,
    /// Its queue of connections is full and stays so (C162).
    Full,
    /// This server is out of descriptors or memory.
    Exhausted(io::Error),
}

impl Backend {
    pub fn new(
        name: &'static str,
        addresses: Vec<Address>,
        options: Options,
        log: Log,
    ) -> Arc<Self> {
        let host = |address: Address| Host {
            hash: hash(address.to_string().as_bytes()),
            address,
            state: Mutex::new(State {
                outstanding: 0,
                unheard: VecDeque::new(),
                dialled: 0,
                heard: None,
                unanswered: 0,
                silent_since: None,
                answered: None,
                idle: Vec::new(),
                tended: false,
                relieved: false,
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

    /// Whether a request can be asked elsewhere.
    fn has_others(&self) -> bool {
        self.hosts.len() > 1 && !self.options.staffed
    }

    /// How many of them a request is tried at.
    pub fn rounds(&self) -> usize {
        if self.options.staffed {
            WORKERS_TRIED
        } else {
            self.size()
        }
    }

    /// A turn at the address that `pull` says, none of those in `tried`. Waits
    /// for a while where it is at its limit. A request that is not `repeatable`
    /// is not risked at an address that may be back.
    pub async fn turn(
        self: &Arc<Self>,
        tried: &[usize],
        repeatable: bool,
        pull: Pull,
    ) -> Result<Turn, Trouble> {
        let give_up = Instant::now() + self.options.wait;
        loop {
            match self.choose(tried, repeatable, pull) {
                Err(Trouble::Busy) => {}
                chosen => return chosen,
            }
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Of what is given back from now on, nothing is missed.
            freed.as_mut().enable();
            match self.choose(tried, repeatable, pull) {
                Err(Trouble::Busy) => {}
                chosen => return chosen,
            }
            if timeout_at(give_up, freed).await.is_err() {
                let is_closed = |host: &Host| host.lock().work.closed;
                return Err(if self.hosts.iter().all(is_closed) {
                    Trouble::Unready
                } else {
                    Trouble::Busy
                });
            }
        }
    }

    fn choose(
        self: &Arc<Self>,
        tried: &[usize],
        repeatable: bool,
        pull: Pull,
    ) -> Result<Turn, Trouble> {
        let mut best: Option<(usize, Merit)> = None;
        let (mut busy, mut open, mut soonest) = (None, false, Duration::MAX);
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        for at in (0..self.hosts.len()).map(|n| start.wrapping_add(n) % self.hosts.len()) {
            // A worker that has failed is replaced at its place.
            let failed = tried.contains(&at) && !self.options.staffed;
            let rank = pull.rank(self.hosts[at].hash);
            let standing = self.standing(at, repeatable, rank);
            open |= !matches!(standing, Standing::Closed);
            match standing {
                Standing::Closed => {}
                _ if failed => {}
                Standing::Rests(left) => soonest = soonest.min(left),
                Standing::Full => busy = Some(busy.map_or(rank, |other: u64| other.min(rank))),
                Standing::Free(merit) => {
                    if best.is_none_or(|(_, least)| merit < least) {
                        best = Some((at, merit));
                    }
                }
            }
        }
        match best {
            // Somebody is to be waited for.
            Some((_, merit)) if busy.is_some_and(|rank| rank < merit.rank) => Err(Trouble::Busy),
            Some((at, merit)) => match self.take(at, !merit.is_no_try, tried, pull) {
                Some(turn) => Ok(turn),
                None => self.choose(tried, repeatable, pull),
            },
            None if !open && self.options.staffed => Err(self.nobody()),
            // There is no better one to risk it at.
            None if !repeatable => self.choose(tried, true, pull),
            None if busy.is_some() => Err(Trouble::Busy),
            None => Err(Trouble::Resting(soonest)),
        }
    }

    /// How an address stands to a request that it has this rank for.
    fn standing(&self, at: usize, repeatable: bool, rank: u64) -> Standing {
        let now = Instant::now();
        let state = self.hosts[at].lock();
        let is_full = state.outstanding >= self.options.connections;
        if state.work.closed {
            return Standing::Closed;
        }
        // With no other to turn to, resting would help nobody.
        let rest = state.rest.as_ref().filter(|_| self.has_others());
        if let Some(rest) = rest {
            let due = rest.due(repeatable);
            // Whether a connection can be made, others find out.
            let is_checked = self.options.check.is_some() && rest.unreachable;
            if is_checked || now < due || rest.probed || is_full {
                return Standing::Rests(due.saturating_duration_since(now));
            }
        }
        if is_full {
            return Standing::Full;
        }
        Standing::Free(Merit {
            rank,
            is_no_try: rest.is_none(),
            load: state.load(now, self.has_others()),
        })
    }

    /// A turn at that address; `None` if it is another one since it was looked at.
    fn take(
        self: &Arc<Self>,
        at: usize,
        is_try: bool,
        tried: &[usize],
        pull: Pull,
    ) -> Option<Turn> {
        let mut state = self.hosts[at].lock();
        if state.work.closed || state.outstanding >= self.options.connections {
            return None;
        }
        if is_try {
            let rest = state.rest.as_mut().filter(|rest| !rest.probed)?;
            rest.probed = true;
        }
        self.count(&mut state, Instant::now());
        drop(state);
        Some(Turn {
            backend: Arc::clone(self),
            at,
            tried: tried.to_vec(),
            pull,
            began: Instant::now(),
            probe: is_try,
            unheard: None,
            unanswered: true,
        })
    }

    /// What clients that stay with an address know it by.
    pub fn hash(&self, at: usize) -> u64 {
        self.hosts[at].hash
    }

    fn count(&self, state: &mut State, now: Instant) {
        state.outstanding += 1;
        state.unanswered += 1;
        state.silent_since.get_or_insert(now);
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

    /// Connects to the address at `at`, as a future that needs nothing else.
    fn dial(self: &Arc<Self>, at: usize) -> impl Future<Output = Dialled> + Send + 'static {
        let backend = Arc::clone(self);
        async move {
            let address = &backend.hosts[at].address;
            (at, dial_in(backend.options.connect, address).await)
        }
    }
}

/// Which address, and what came of it.
type Dialled = (usize, Result<Stream, Trouble>);

impl State {
    /// How busy it is, to be compared; `may_be_hung` if its silence is to count.
    fn load(&self, now: Instant, may_be_hung: bool) -> usize {
        let silent = |since| now.saturating_duration_since(since) >= SILENCE;
        if may_be_hung && self.silent_since.is_some_and(silent) {
            self.outstanding * SILENT_WEIGHT
        } else {
            self.outstanding
        }
    }

    /// How many requests seem to wait for what kept connections hold: for so long,
    /// with no other one heard meanwhile.
    fn in_the_way(&self, patience: Duration) -> usize {
        let now = Instant::now();
        let is_long = |since: Instant| now.saturating_duration_since(since) >= patience;
        if self.heard.is_some_and(|heard| !is_long(heard)) {
            return 0;
        }
        let waiting = self.unheard.iter();
        waiting.take_while(|(_, since)| is_long(*since)).count()
    }

    /// A request that had no answer has begun to get one, or never will.
    fn settle(&mut self, answered: bool) {
        self.unanswered -= 1;
        let now = Instant::now();
        if answered {
            self.answered = Some(now);
            self.silent_since = Some(now);
        }
        if self.unanswered == 0 {
            self.silent_since = None;
        }
    }
}

impl Rest {
    /// When a request may try whether the address is back. One that can't be
    /// repeated waits for one that can, for a while.
    fn due(&self, repeatable: bool) -> Instant {
        if repeatable || self.unreachable {
            self.until
        } else {
            self.until + LONGEST_PAUSE
        }
    }
}

/// For whoever starts the workers that the addresses are.
impl Backend {
    /// Returns when something about the workers has changed, or one is asked for.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// A new worker, the process `pid`, is at the address, and is told when it has
    /// got `due` requests.
    pub fn open(&self, at: usize, pid: u32, due: Option<u64>) {
        let mut state = self.hosts[at].lock();
        state.failures = 0;
        state.rest = None;
        state.work = Work {
            pid,
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

impl Host {
    fn has_answered_since(&self, then: Instant) -> bool {
        let answered = self.lock().answered;
        answered.is_some_and(|answered| answered > then)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
pub struct Turn {
    backend: Arc<Backend>,
    at: usize,
    /// Addresses that the request was at before.
    tried: Vec<usize>,
    pull: Pull,
    began: Instant,
    /// It tries whether the address is back.
    probe: bool,
    /// The number of a new connection on which nothing was heard yet.
    unheard: Option<u64>,
    /// No answer has begun.
    unanswered: bool,
}

impl Turn {
    /// Which address, as [`Backend::turn`] wants it.
    pub fn index(&self) -> usize {
        self.at
    }

    pub fn address(&self) -> &Address {
        &self.host().address
    }

    /// The address for the log. A worker has its process number.
    pub fn name(&self) -> String {
        match self.address() {
            Address::Worker(..) => format!("worker {}", self.host().lock().work.pid),
            address => address.to_string(),
        }
    }

    /// Addresses that the request was at before.
    pub fn tried(&self) -> &[usize] {
        &self.tried
    }

    /// For a connection to be made.
    pub fn connect_time(&self) -> Duration {
        self.backend.options.connect
    }

    fn host(&self) -> &Host {
        &self.backend.hosts[self.at]
    }

    /// A connection that was kept, if one is still good.
    pub fn reuse(&mut self) -> Option<Resting> {
        let mut state = self.host().lock();
        while let Some((_, connection)) = state.idle.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// A new connection. One that takes long is tried at other addresses as
    /// well, and the first one that comes about is taken: the turn is then at
    /// that address.
    pub async fn connect(&mut self) -> Result<Stream, Trouble> {
        self.make_room();
        let mut dialling = Box::pin(self.backend.dial(self.at));
        if !self.backend.has_others() {
            return dialling.await.1;
        }
        match timeout(DIAL_BESIDE, &mut dialling).await {
            Ok((_, dialled)) => dialled,
            Err(_slow) => self.connect_beside(dialling).await,
        }
    }

    /// The application may have a process for each connection, so an idle one that
    /// can't be used here makes room, and none is kept meanwhile (C160).
    fn make_room(&mut self) {
        let mut state = self.host().lock();
        if self.backend.options.patience.is_zero() {
            state.idle.pop();
        }
        state.dialled += 1;
        let number = state.dialled;
        state.unheard.push_back((number, Instant::now()));
        drop(state);
        self.unheard = Some(number);
    }

    async fn connect_beside(
        &mut self,
        first: impl Future<Output = Dialled> + Send + 'static,
    ) -> Result<Stream, Trouble> {
        let mut dials = JoinSet::new();
        dials.spawn(first);
        // In the order in which they are tried.
        let mut others: Vec<Self> = Vec::new();
        let (mut more, mut own_trouble) = (true, None);
        loop {
            if more && let Some(mut turn) = self.one_beside(&others) {
                turn.make_room();
                dials.spawn(self.backend.dial(turn.at));
                others.push(turn);
            } else {
                more = false;
            }
            let wait = if more { DIAL_BESIDE } else { Duration::MAX };
            let (at, dialled) = match timeout(wait, dials.join_next()).await {
                Ok(Some(Ok(dialled))) => dialled,
                Ok(Some(Err(_))) | Err(_) => continue,
                Ok(None) => {
                    self.tried.extend(others.iter().map(|turn| turn.at));
                    return Err(own_trouble.unwrap_or(Trouble::Late));
                }
            };
            let trouble = match dialled {
                Ok(stream) => {
                    self.move_to(at, others);
                    return Ok(stream);
                }
                Err(trouble) => trouble,
            };
            if let Some(other) = others.iter_mut().find(|other| other.at == at) {
                if !matches!(trouble, Trouble::Exhausted(_)) {
                    other.unreachable(&trouble.what());
                }
            } else {
                // Whoever asks for the connection blames the address.
                own_trouble = Some(trouble);
            }
        }
    }

    /// A turn at one more address.
    fn one_beside(&self, others: &[Self]) -> Option<Self> {
        let here = self.tried.iter().copied().chain([self.at]);
        let tried: Vec<usize> = here.chain(others.iter().map(|turn| turn.at)).collect();
        self.backend.choose(&tried, true, self.pull).ok()
    }

    /// Becomes the one of `others` that is at this address, if it is not there
    /// itself. Those that had more time are to blame, unless they only have much
    /// to do.
    fn move_to(&mut self, at: usize, mut others: Vec<Self>) {
        let Some(winner) = others.iter().position(|turn| turn.at == at) else {
            return;
        };
        let slower = others[..winner].iter_mut();
        for slow in slower.chain([&mut *self]).filter(|slow| !slow.answers()) {
            slow.unreachable("no connection while another address gave one");
        }
        std::mem::swap(self, &mut others[winner]);
    }

    /// Lets the kernel notice a machine that is cut off: at once where what is
    /// sent isn't acknowledged in time, which holds only for a `short` request
    /// (an application may take its time for a long one), and else by probes.
    /// One that is `repeatable` is given less time.
    pub fn notice_silence(&self, stream: &Stream, short: bool, repeatable: bool) {
        use rustix::net::sockopt;
        if let Stream::Unix(_) = stream {
            return;
        }
        let mut limit = self.backend.options.connect;
        if repeatable && self.backend.has_others() {
            limit = limit.min(UNACKNOWLEDGED);
        }
        let limit = if short { limit.as_millis() } else { 0 };
        // Without it the request still has its own time limit.
        let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(limit).unwrap_or(0));
    }

    /// How long the answer to a try whether the address is back is waited for,
    /// before another address is asked for it too. `None`: as long as ever,
    /// which is `limit`.
    pub fn try_time(&self, limit: Option<Duration>) -> Option<Duration> {
        let is_other = |at: &usize| *at != self.at && !self.tried.contains(at);
        let others = (0..self.backend.hosts.len()).filter(is_other);
        let mut others = others.map(|at| &self.backend.hosts[at]);
        let shorter = limit.is_none_or(|limit| TRY_TIME < limit);
        let is_try = self.probe && shorter && self.backend.has_others();
        (is_try && others.any(|host| host.lock().rest.is_none())).then_some(TRY_TIME)
    }

    /// Whether nobody has had an answer from the address for half of this turn,
    /// while others have given some. Half, because it may have answered somebody
    /// just before it began to hang.
    pub fn is_silent(&self) -> bool {
        let then = self.began + self.began.elapsed() / 2;
        let mut hosts = self.backend.hosts.iter();
        self.backend.has_others()
            && !self.host().has_answered_since(then)
            && hosts.any(|host| host.has_answered_since(then))
    }

    /// Whether somebody has had an answer from the address since this turn began.
    fn answers(&self) -> bool {
        self.host().has_answered_since(self.began)
    }

    /// The application has said something.
    pub fn heard(&mut self) {
        if let Some(number) = self.unheard.take() {
            let mut state = self.host().lock();
            let place = state.unheard.binary_search_by_key(&number, |&(n, _)| n);
            if let Ok(place) = place {
                state.unheard.remove(place);
            }
            state.heard = Some(Instant::now());
        }
    }

    /// It has answered as it should.
    pub fn succeeded(&mut self) {
        self.heard();
        self.probe = false;
        let unanswered = std::mem::take(&mut self.unanswered);
        let rested = {
            let mut state = self.host().lock();
            if unanswered {
                state.settle(true);
            }
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
        self.failed(FAILURES, true, why);
    }

    /// It answers nobody: it rests at once.
    pub fn hung(&mut self, why: &str) {
        self.failed(FAILURES, false, why);
    }

    /// It was reached and did not answer as it should.
    pub fn misbehaved(&mut self, why: &str) {
        self.failed(1, false, why);
    }

    fn failed(&mut self, weight: u32, unreachable: bool, why: &str) {
        if self.is_staffed() {
            // What is wrong with a worker, whoever has started it sees to; one page
            // that fails says nothing about the others.
            return;
        }
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
                unreachable,
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
        log.gateway_note(name, &self.name(), what);
    }

    /// Keeps the connection for the next request, unless somebody waits for
    /// the worker that it holds. Where the user has said how many connections
    /// there may be, each has a worker.
    pub fn keep(mut self, connection: Resting) {
        self.heard();
        let Options {
            keep,
            connections,
            patience,
            ..
        } = self.backend.options;
        let mut state = self.host().lock();
        let waited_for = connections == usize::MAX && !state.unheard.is_empty();
        if waited_for && state.in_the_way(patience) > 0 {
            return;
        }
        if state.idle.len() >= keep || state.rest.is_some() || state.work.closed {
            return;
        }
        state.idle.push((Instant::now(), connection));
        if !std::mem::replace(&mut state.tended, true) {
            tokio::spawn(tend(Arc::clone(&self.backend), self.at));
        }
        if waited_for && !std::mem::replace(&mut state.relieved, true) {
            tokio::spawn(relieve(Arc::clone(&self.backend), self.at));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.heard();
        let mut state = self.host().lock();
        state.outstanding -= 1;
        if self.unanswered {
            state.settle(false);
        }
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
        if self.backend.options.sticky {
            // The next one may wait for another address.
            self.backend.freed.notify_waiters();
        } else {
            self.backend.freed.notify_one();
        }
    }
}

/// Connects to an address again and again: one that can't be reached rests until
/// it can, and no request has to find out.
async fn check(backend: Weak<Backend>, at: usize, period: Duration) {
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
                // That a connection can be made was never in doubt.
                (Ok(_), Some(rest)) if !rest.unreachable => None,
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
                        unreachable: true,
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
async fn tend(backend: Arc<Backend>, at: usize) {
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

/// Closes idle connections as long as requests may wait for what they hold.
async fn relieve(backend: Arc<Backend>, at: usize) {
    let patience = backend.options.patience;
    loop {
        sleep(patience).await;
        let mut state = backend.hosts[at].lock();
        if state.unheard.is_empty() || state.idle.is_empty() {
            state.relieved = false;
            return;
        }
        for _ in 0..state.in_the_way(patience) {
            state.idle.pop();
        }
    }
}

struct Tended<'a>(&'a Host);

impl Drop for Tended<'_> {
    fn drop(&mut self) {
        self.0.lock().tended = false;
    }
}
