//! Warm scripts: the second way to start one. An interpreter that was started
//! before, and waits, makes a process of its own kind for each request; that
//! process is the server's child like any other, with the same three pipes, and
//! everything after its start is the same.
//!
//! The law: a script must not be able to tell. Where that can't be had it is
//! left to exec, silently: this module says "no" in doubt.
//!
//! Owns which scripts get such an interpreter and its life. The interpreters'
//! side is `warm/zygote.py` and `warm/zygote.pl`.

mod folder;
mod message;
mod pool;
mod shebang;
mod zygote;

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use self::folder::Folder;
use self::message::Message;
use self::pool::{Limits, Pick, Pool};
use self::shebang::{HEAD_BYTES, Interpreter, Language, Shebang};
pub use self::zygote::Answer;
use self::zygote::{Event, Zygote};
use super::process::Processes;
use super::script::Script;
use super::spawn::{CONTROL_FD, Program};
use super::stderr::Stderr;
use super::stdin::output_pipe;
use super::variables::Environment;
use crate::log::{Log, escape};
use crate::os;

/// A longer script is left to exec.
const MAX_SCRIPT_BYTES: u64 = 1 << 20;
/// Scripts whose first line is remembered.
const MAX_VERSIONS: usize = 4096;
/// A prepared interpreter is replaced after this, so that requests don't share
/// an address layout and hash seeds for long.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How often interpreters are looked after while there are any.
const TICK: Duration = Duration::from_secs(1);
/// How often a request looks that waits for its interpreter to be prepared.
const AT_ONCE_POLL: Duration = Duration::from_millis(5);
/// How often their memory is looked at.
const WEIGH: Duration = Duration::from_secs(5);
/// A child that nobody holds after this will never be held.
const LOST: Duration = Duration::from_secs(5);
/// For the interpreters' end when the server stops.
const STOP: Duration = Duration::from_secs(3);
/// For the sending side; requests are up to 64 KiB each.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// Names that change how an interpreter starts, or that debuggers and profilers
/// look for. With one in the scripts' environment nothing is prepared.
const UNFIT: [(&[u8], &[Language]); 16] = {
    const BOTH: &[Language] = &[Language::Python, Language::Perl];
    const PYTHON: &[Language] = &[Language::Python];
    const PERL: &[Language] = &[Language::Perl];
    [
        (b"LD_PRELOAD", BOTH),
        (b"LD_AUDIT", BOTH),
        (b"PYTHONTRACEMALLOC", PYTHON),
        (b"PYTHONPROFILEIMPORTTIME", PYTHON),
        (b"PYTHONVERBOSE", PYTHON),
        (b"PYTHONINSPECT", PYTHON),
        (b"PYTHONDEBUG", PYTHON),
        (b"PYTHONDEVMODE", PYTHON),
        (b"PYTHONDUMPREFS", PYTHON),
        (b"PYTHONMALLOCSTATS", PYTHON),
        (b"PYTHONPERFSUPPORT", PYTHON),
        (b"COVERAGE_PROCESS_START", PYTHON),
        (b"PERL5DB", PERL),
        (b"PERL5OPT", PERL),
        (b"PERL_HASH_SEED", PERL),
        (b"PERL_RAND_SEED", PERL),
    ]
};

const UNTRIED: u8 = 0;
/// It gave an answer.
const WORKS: u8 = 1;
const FAILED: u8 = 2;

#[allow(clippy::struct_excessive_bools, reason = "each is one decision")]
pub struct Options {
    /// Interpreters that wait at once.
    pub most: usize,
    /// Bytes of memory that they hold at most, together.
    pub memory: u64,
    /// One that nobody asks for is given up after this.
    pub idle: Duration,
    /// One is replaced after so many requests.
    pub requests: u64,
    /// URL paths or names of scripts that are always left to exec; `*` and `?`
    /// stand for others.
    pub except: Vec<String>,
    /// Perl scripts that load no modules get one too.
    pub all: bool,
    /// Each interpreter runs all of its own end, also where nothing could show.
    pub full_end: bool,
    /// A script's first request waits for an interpreter too.
    pub at_once: bool,
    /// Notes go to the log.
    pub notes: bool,
}

/// Prepares interpreters for scripts.
#[derive(Clone)]
pub struct Warm {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    /// Of a script without a request.
    environment: Vec<CString>,
    unfit: [Option<&'static [u8]>; 2],
    umask: u32,
    open_files: Option<libc::rlimit>,
    processes: Processes,
    log: Log,
    runtime: Handle,
    versions: Mutex<HashMap<(u64, u64), Arc<Version>>>,
    pool: Mutex<Pool<Key, Identity, Handled>>,
    orders: Mutex<mpsc::Sender<Order>>,
    /// Interpreters that are not over yet.
    present: AtomicUsize,
    over: Notify,
    folder: Mutex<Home>,
}

/// Where the start-up code lies.
enum Home {
    NotYet,
    There(Arc<Folder>),
    /// The server stops.
    Closed,
}

/// A script's file with this very content.
pub struct Version {
    stamp: Stamp,
    /// `None`: always left to exec.
    shebang: Option<Shebang>,
    /// `UNTRIED`, `WORKS` or `FAILED`: its last run.
    last: AtomicU8,
}

/// Tells one content of a file from another. Change time too: a content of the
/// same size can come with the old modification time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What one interpreter can serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    shebang: Shebang,
    /// The program that is run.
    file: PathBuf,
    /// Perl: one for each script.
    script: Option<PathBuf>,
}

/// What an interpreter was made of.
type Identity = Vec<Option<Stamp>>;

#[derive(Clone)]
struct Handled(Arc<Zygote>);

impl PartialEq for Handled {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

struct Order {
    key: Key,
    identity: Identity,
    /// Where the first script that it serves runs.
    directory: CString,
    script: CString,
    subject: String,
}

/// What is known of a script before it is started.
#[derive(Default)]
pub struct Chance {
    version: Option<Arc<Version>>,
    ready: Option<Ready>,
    /// An interpreter is being prepared.
    coming: bool,
}

/// An interpreter and what is sent to it.
pub struct Ready {
    zygote: Arc<Zygote>,
    message: Message,
}

impl Warm {
    pub fn new(
        options: Options,
        environment: &Environment,
        open_files: Option<libc::rlimit>,
        processes: Processes,
        log: Log,
    ) -> io::Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let environment = environment.constants();
        let inner = Arc::new(Inner {
            unfit: [Language::Python, Language::Perl].map(|of| unfit(&environment, of)),
            environment,
            umask: umask(),
            open_files,
            processes,
            log,
            runtime: Handle::current(),
            versions: Mutex::default(),
            pool: Mutex::new(Pool::new(Limits {
                most: options.most,
                idle: options.idle,
                requests: options.requests,
                age: MAX_AGE,
            })),
            options,
            orders: Mutex::new(orders),
            present: AtomicUsize::new(0),
            over: Notify::new(),
            folder: Mutex::new(Home::NotYet),
        });
        let keeper = Keeper {
            warm: Arc::clone(&inner),
            unheld: HashMap::new(),
            weighed: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("warm".into());
        thread.spawn(move || keeper.run(&ordered))?;
        Ok(Self { inner })
    }

    /// Whether an interpreter waits for this script. Has one prepared for later
    /// requests if that is worth it. Costs scripts in other languages a look at
    /// their file's times and one in a table.
    pub fn chance(&self, script: &Script, program: &Program) -> Chance {
        let inner = &self.inner;
        let Some(version) = inner.version(&script.file) else {
            return Chance::default();
        };
        let earned = match version.last.load(Ordering::Relaxed) {
            WORKS => true,
            UNTRIED => inner.options.at_once,
            _ => false,
        };
        let (ready, coming) = version
            .shebang
            .as_ref()
            .filter(|_| earned && !inner.is_excepted(script))
            .map_or((None, false), |shebang| {
                inner.find(shebang, script, &version, program)
            });
        Chance {
            version: Some(version),
            ready,
            coming,
        }
    }

    /// The same, but it waits for one that is being prepared.
    pub async fn sure_chance(&self, script: &Script, program: &Program) -> Chance {
        loop {
            let chance = self.chance(script, program);
            if !chance.coming {
                return chance;
            }
            tokio::time::sleep(AT_ONCE_POLL).await;
        }
    }

    /// Whether the first request of a script is to wait.
    pub fn is_at_once(&self) -> bool {
        self.inner.options.at_once
    }

    /// Ends all interpreters. Every request from now on is left to exec.
    pub async fn stop(&self) {
        let folder = self.inner.close_folder();
        let all = self.inner.lock_pool().close();
        for zygote in all {
            zygote.0.retire();
        }
        let over = async {
            loop {
                let ended = self.inner.over.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if self.inner.present.load(Ordering::Acquire) == 0 {
                    return;
                }
                ended.await;
            }
        };
        // Whoever is left dies with the server.
        let _ = tokio::time::timeout(STOP, over).await;
        if let Home::There(folder) = folder {
            folder.remove();
        }
    }
}

impl Chance {
    /// The interpreter, once.
    pub fn take(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    /// The script has answered. From the next request on it can be warm.
    pub fn worked(&self) {
        self.set(WORKS);
    }

    /// The script has ended without an answer: its messages are exact if it is
    /// left to exec until it works again.
    pub fn failed(&self) {
        self.set(FAILED);
    }

    fn set(&self, last: u8) {
        if let Some(version) = &self.version {
            version.last.store(last, Ordering::Relaxed);
        }
    }
}

impl Ready {
    /// As [`Zygote::run`].
    pub async fn run(
        &self,
        streams: [std::os::fd::BorrowedFd<'_>; 3],
        place: tokio::sync::OwnedSemaphorePermit,
    ) -> Answer {
        self.zygote.run(&self.message, streams, place).await
    }
}

impl Inner {
    fn lock_pool(&self) -> MutexGuard<'_, Pool<Key, Identity, Handled>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it can't be looked at.
    fn version(&self, file: &Path) -> Option<Arc<Version>> {
        let found = fs::metadata(file).ok()?;
        let stamp = Stamp::of(&found);
        let place = (stamp.device, stamp.inode);
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = versions.get(&place).filter(|known| known.stamp == stamp) {
            return Some(Arc::clone(version));
        }
        let version = Arc::new(Version {
            shebang: self.judge(file, &found),
            stamp,
            last: AtomicU8::new(UNTRIED),
        });
        if versions.len() >= MAX_VERSIONS {
            versions.clear();
        }
        versions.insert(place, Arc::clone(&version));
        Some(version)
    }

    /// Whether a script can ever be warm.
    fn judge(&self, file: &Path, found: &Metadata) -> Option<Shebang> {
        const SET_ID: u32 = 0o6000;
        if !found.is_file() || found.mode() & SET_ID != 0 || found.len() > MAX_SCRIPT_BYTES {
            return None;
        }
        let mut file = File::open(file).ok()?;
        let mut text = Vec::with_capacity(HEAD_BYTES);
        let head = u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX);
        file.by_ref().take(head).read_to_end(&mut text).ok()?;
        let shebang = Shebang::parse(&text).ok()?;
        if self.unfit[shebang.language as usize].is_some() {
            return None;
        }
        if shebang.language == Language::Perl && !self.options.all {
            file.take(MAX_SCRIPT_BYTES).read_to_end(&mut text).ok()?;
            if !shebang::loads_modules(&text) {
                return None;
            }
        }
        Some(shebang)
    }

    fn is_excepted(&self, script: &Script) -> bool {
        let name = script.file.file_name().map_or(&b""[..], OsStrExt::as_bytes);
        let mut patterns = self.options.except.iter().map(String::as_bytes);
        patterns.any(|pattern| matches(pattern, &script.name) || matches(pattern, name))
    }

    /// An interpreter for the script; else whether one is being prepared.
    fn find(
        self: &Arc<Self>,
        shebang: &Shebang,
        script: &Script,
        version: &Version,
        program: &Program,
    ) -> (Option<Ready>, bool) {
        let file = self.interpreter(&shebang.interpreter);
        let made_of = file.and_then(|file| Some((made_of(&file)?, file)));
        let Some((mut identity, file)) = made_of else {
            return (None, false);
        };
        let script_file = (shebang.language == Language::Perl).then(|| script.file.clone());
        if script_file.is_some() {
            identity.push(Some(version.stamp.clone()));
        }
        let key = Key {
            shebang: shebang.clone(),
            file,
            script: script_file,
        };
        let Pick {
            zygote,
            prepare,
            coming,
            retire,
        } = self
            .lock_pool()
            .pick(&key, identity.clone(), Instant::now());
        for old in retire {
            old.0.retire();
        }
        if prepare {
            let order = Order {
                key,
                identity,
                directory: program.directory.clone(),
                script: program.file.clone(),
                subject: script.subject.clone(),
            };
            let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            // The thread lives as long as the server.
            let _ = orders.send(order);
        }
        let ready = zygote.and_then(|Handled(zygote)| {
            let original = command_line(shebang, &program.arguments);
            let message = Message::new(program, &original, self.umask)?;
            Some(Ready { zygote, message })
        });
        (ready, coming)
    }

    /// The program that the first line names. As env finds it: the first on the
    /// scripts' PATH that can be run.
    fn interpreter(&self, named: &Interpreter) -> Option<PathBuf> {
        let name = match named {
            Interpreter::Path(path) => return Some(path.clone()),
            Interpreter::Name(name) => OsStr::from_bytes(name.as_bytes()),
        };
        let path = variable(&self.environment, b"PATH")?;
        let mut folders = path.split(|&b| b == b':');
        // An empty or relative one depends on where the script runs.
        if folders.clone().any(|folder| !folder.starts_with(b"/")) {
            return None;
        }
        folders.find_map(|folder| {
            let file = Path::new(OsStr::from_bytes(folder)).join(name);
            let can_run = rustix::fs::access(&file, rustix::fs::Access::EXEC_OK).is_ok();
            (can_run && file.is_file()).then_some(file)
        })
    }

    fn note(&self, text: &str) {
        if self.options.notes {
            self.log.note(&format!("warm: {text}"));
        }
    }

    /// What one interpreter's reader tells.
    fn hear(&self, order: &Order, zygote: &Arc<Zygote>, event: Event) {
        let handled = Handled(Arc::clone(zygote));
        let key = &order.key;
        let now = Instant::now();
        match event {
            Event::Ready(version) => {
                let (first, before) = self.lock_pool().ready(key, &handled, now);
                if let Some(before) = before {
                    before.0.retire();
                }
                if first {
                    self.note(&format!(
                        "{} ({})",
                        order.name(),
                        escape(version.as_bytes())
                    ));
                }
            }
            Event::Never(reason) => {
                if self.lock_pool().never(key, &handled) {
                    self.note(&format!(
                        "not for {}: {}",
                        order.name(),
                        escape(reason.as_bytes())
                    ));
                }
            }
            Event::Log(text) => {
                self.note(&format!("{}: {}", order.name(), escape(text.as_bytes())));
            }
            Event::Gone { crashed, ready } => {
                if !crashed {
                    self.lock_pool().left(key, &handled);
                } else if self.lock_pool().crashed(key, &handled, now) {
                    let when = if ready { "" } else { " before it was ready" };
                    self.note(&format!(
                        "not for {} for a minute: it ended{when}, twice within 10 s",
                        order.name()
                    ));
                }
                self.present.fetch_sub(1, Ordering::AcqRel);
                self.over.notify_waiters();
            }
        }
    }
}

impl Order {
    /// For the log.
    fn name(&self) -> String {
        let file = escape(self.key.file.as_os_str().as_bytes());
        match self.key.script {
            Some(_) => format!("{file} for {}", self.subject),
            None => file,
        }
    }
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    fn of_file(file: &Path) -> Option<Self> {
        fs::metadata(file).ok().map(|found| Self::of(&found))
    }
}

/// The interpreter's file, and what makes a virtual environment of its place.
/// `None`: there is no such file.
fn made_of(file: &Path) -> Option<Identity> {
    let folder = file.parent()?;
    let beside = Stamp::of_file(&folder.join("pyvenv.cfg"));
    let above = folder.parent().map(|above| above.join("pyvenv.cfg"));
    let above = above.and_then(|file| Stamp::of_file(&file));
    Some(vec![Some(Stamp::of_file(file)?), beside, above])
}

/// What exec would have made of the first line: `sys.orig_argv`.
fn command_line(shebang: &Shebang, arguments: &[CString]) -> Vec<CString> {
    let mut line = vec![shebang.interpreter.argument()];
    line.extend(shebang.option.clone());
    line.extend_from_slice(arguments);
    line
}

impl Interpreter {
    /// Its own argument 0.
    fn argument(&self) -> CString {
        match self {
            Self::Path(path) => c_string(path.as_os_str().as_bytes()),
            Self::Name(name) => name.clone(),
        }
    }
}

/// Of bytes that come from a line or a path without NUL.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

fn variable<'a>(environment: &'a [CString], name: &[u8]) -> Option<&'a [u8]> {
    environment
        .iter()
        .map(|entry| entry.to_bytes())
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
}

fn unfit(environment: &[CString], language: Language) -> Option<&'static [u8]> {
    let names = UNFIT.iter().filter(|(_, of)| of.contains(&language));
    let mut names = names.map(|(name, _)| *name);
    names.find(|name| variable(environment, name).is_some())
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    umask.unwrap_or_else(|| {
        // Before Linux 4.7; a file made in between gets stricter rights.
        let own = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        rustix::process::umask(own);
        own.bits()
    })
}

/// `*` stands for any characters, `?` for one.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, _) => text.is_empty(),
        (Some((b'*', rest)), _) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
        (Some((p, pattern)), Some((t, text))) => (*p == b'?' || p == t) && matches(pattern, text),
        (Some(_), None) => false,
    }
}

/// The thread that starts the interpreters and looks after them. It lives as
/// long as the server: they and what they start die with their parent thread.
struct Keeper {
    warm: Arc<Inner>,
    /// Children that nobody held at an earlier look, and when that was.
    unheld: HashMap<Pid, (u64, Instant)>,
    /// When memory was looked at last.
    weighed: Instant,
}

impl Keeper {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        self.warm.processes.prepare_here();
        folder::remove_leftovers();
        loop {
            let quiet = self.warm.present.load(Ordering::Acquire) == 0 && self.unheld.is_empty();
            let order = if quiet {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                orders.recv_timeout(TICK)
            };
            match order {
                Ok(order) => self.prepare(order),
                Err(RecvTimeoutError::Timeout) => self.look_after(),
                // Never: this thread's own handle keeps the sender.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn prepare(&mut self, order: Order) {
        if !is_program(&order.key.file) {
            if self.warm.lock_pool().refuse(&order.key) {
                let name = order.name();
                self.warm
                    .note(&format!("not for {name}: it is a wrapper, no program"));
            }
            return;
        }
        let order = Arc::new(order);
        if let Err(error) = self.start(&order) {
            self.warm.lock_pool().not_made(&order.key, Instant::now());
            let name = order.name();
            self.warm
                .note(&format!("not for {name} for a minute: {error}"));
        }
    }

    fn start(&mut self, order: &Arc<Order>) -> io::Result<()> {
        let warm = &self.warm;
        let folder = warm.folder()?;
        let program = Box::new(warm.program(order, &folder));
        // Descriptors 0 to 2 are of the kind that scripts get.
        let (input, hold_input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (output, read_output) = output_pipe()?;
        let (errors, read_errors) = output_pipe()?;
        let (ours, theirs) = control_pair()?;
        let streams = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let process = warm
            .processes
            .prepare(program, streams, theirs.as_fd())
            .map_err(|failed| failed.error);
        // A copy of its end that stayed here would hide its death.
        drop((theirs, input, output, errors));
        let mut process = process?;
        let pid = process.pid();
        let _in_runtime = warm.runtime.enter();
        let socket = os::watch(ours, Interest::READABLE)?;
        let name = order.key.file.file_name().unwrap_or_default();
        let subject = format!("{} (warm)", escape(name.as_bytes()));
        let mut pumps =
            [read_output, read_errors].map(|pipe| Stderr::new(pipe, &subject, pid, &warm.log));
        let zygote = Arc::new(Zygote::new(socket, process, warm.processes.clone()));
        let handled = Handled(Arc::clone(&zygote));
        let wanted = warm
            .lock_pool()
            .preparing(&order.key, &order.identity, handled);
        if !wanted {
            zygote.retire();
        }
        warm.present.fetch_add(1, Ordering::AcqRel);
        let (warm, order) = (Arc::clone(warm), Arc::clone(order));
        self.warm.runtime.spawn(async move {
            let teller = Arc::clone(&zygote);
            let listening = Arc::clone(&zygote);
            listening
                .listen(|event| {
                    let event = match event {
                        Event::Ready(_) if !is_silent(&mut pumps) => {
                            teller.retire();
                            Event::Never("it writes something when it starts".to_owned())
                        }
                        Event::Gone { .. } => {
                            folder.forget(teller.pid);
                            event
                        }
                        _ => event,
                    };
                    warm.hear(&order, &teller, event);
                })
                .await;
            drop((hold_input, pumps));
        });
        Ok(())
    }

    /// Ends what is stuck, gives up what is idle, and what was lost.
    fn look_after(&mut self) {
        let mut pool = self.warm.lock_pool();
        let idle = pool.take_idle(Instant::now());
        let all = pool.all();
        drop(pool);
        for zygote in idle {
            zygote.0.retire();
        }
        for zygote in &all {
            zygote.0.end_if_stuck();
        }
        if self.weighed.elapsed() >= WEIGH {
            self.weighed = Instant::now();
            self.limit_memory(&all);
        }
        self.end_lost();
    }

    /// Gives up those that are asked for least until the rest fits.
    fn limit_memory(&self, all: &[Handled]) {
        let weigh = |zygote: &Handled| os::proportional_memory(zygote.0.pid).unwrap_or(0);
        let mut total: u64 = all.iter().map(weigh).sum();
        while total > self.warm.options.memory {
            let given_up = self.warm.lock_pool().take_least(Instant::now());
            if given_up.is_empty() {
                return;
            }
            for zygote in given_up {
                total = total.saturating_sub(weigh(&zygote));
                zygote.0.retire();
            }
        }
    }

    /// A child that ended before it could say so is nobody's. At first sight it
    /// may just be on its way; after `LOST` it isn't.
    fn end_lost(&mut self) {
        let now = Instant::now();
        let unheld = self.warm.processes.unheld();
        self.unheld
            .retain(|pid, (started, _)| unheld.get(pid) == Some(started));
        for (pid, started) in unheld {
            let (_, since) = *self.unheld.entry(pid).or_insert((started, now));
            if now - since >= LOST {
                self.warm.processes.end_lost(pid);
            }
        }
    }
}

impl Inner {
    /// Made with the first interpreter.
    fn folder(&self) -> io::Result<Arc<Folder>> {
        let mut home = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        match &*home {
            Home::There(folder) => return Ok(Arc::clone(folder)),
            Home::Closed => return Err(io::ErrorKind::Interrupted.into()),
            Home::NotYet => {}
        }
        let folder = Arc::new(Folder::make()?);
        *home = Home::There(Arc::clone(&folder));
        Ok(folder)
    }

    fn close_folder(&self) -> Home {
        let mut home = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut home, Home::Closed)
    }

    fn program(&self, order: &Order, folder: &Folder) -> Program {
        let shebang = &order.key.shebang;
        let mut arguments = vec![shebang.interpreter.argument()];
        arguments.extend(shebang.option.clone());
        match shebang.language {
            Language::Python => arguments.extend([c"-m".into(), c"serve_here_zygote".into()]),
            Language::Perl => {
                let start = format!("-M5;BEGIN{{require \"{}\"; $!=0}}", folder.perl().display());
                arguments.extend([c_string(start.as_bytes()), order.script.clone()]);
            }
        }
        Program {
            file: c_string(order.key.file.as_os_str().as_bytes()),
            arguments,
            environment: self.start_environment(shebang.language, folder),
            directory: order.directory.clone(),
            open_files: self.open_files,
        }
    }

    /// What scripts get, and what the start-up code needs and takes away.
    fn start_environment(&self, language: Language, folder: &Folder) -> Vec<CString> {
        let set = |name: &str, value: &[u8]| c_string(&[name.as_bytes(), b"=", value].concat());
        let mut environment = self.environment.clone();
        let private = folder.path().as_os_str().as_bytes();
        environment.push(set("SERVE_HERE_CONTROL", CONTROL_FD.to_string().as_bytes()));
        environment.push(set("SERVE_HERE_ZYGOTE", private));
        if language == Language::Python {
            if !self.options.full_end {
                environment.push(set("SERVE_HERE_FAST_END", b"1"));
            }
            let mut path = folder.python().into_os_string().into_encoded_bytes();
            if let Some(own) = variable(&self.environment, b"PYTHONPATH") {
                environment.retain(|entry| !entry.to_bytes().starts_with(b"PYTHONPATH="));
                environment.push(set("SERVE_HERE_PYTHONPATH", own));
                // An empty entry would be the working directory.
                if !own.is_empty() {
                    path.push(b':');
                    path.extend_from_slice(own);
                }
            }
            environment.push(set("PYTHONPATH", &path));
        }
        environment
    }
}

/// Whether an interpreter that has started has written nothing: what it writes
/// at each start, a script that it runs warm would miss. From here on it is read.
fn is_silent(outputs: &mut [Stderr]) -> bool {
    outputs
        .iter_mut()
        .all(|output| output.is_empty() && output.watch().is_ok())
}

/// Not a wrapper script, such as those of version managers.
fn is_program(file: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *b"\x7fELF"
}

/// Ours doesn't block and has room for many requests; theirs has a high number,
/// so that it can be copied to the one they look for.
fn control_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Less is enough for a few.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&ours, SEND_BUFFER_BYTES);
    let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, CONTROL_FD + 1)?;
    Ok((ours, theirs))
}
