//! One run of a CGI script (RFC 3875): wait for a place, make the process,
//! read its header block, hand its body on as it is written.
//!
//! Three streams move at the same time: content in (`stdin`), the response out
//! (here), standard error (`stderr`). Nothing waits for one to end before it
//! serves another, so no order in which a script uses them can deadlock (C67).

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::diagnosis;
use super::process::{Ended, Process, Processes};
use super::reply::{self, Block, HeadReader, Invalid, Kind, Reply};
use super::script::Script;
use super::spawn::{Born, Program, SpawnError};
use super::stderr::Stderr;
use super::stdin::{Feeder, Stdin, output_pipe};
use super::unchunk::Unchunk;
use super::variables::{self, Environment, Facts};
use super::warm::{Answer, Chance, Ready, Warm};
use crate::error::{Diagnosis, Fault};
use crate::log::Log;
use crate::message::{Body, BodyError, Interim, Next, Ran, Response, Source};
use crate::os;

/// What is read from a script at once. The usual capacity of a pipe.
const READ_BYTES: usize = 64 << 10;
/// Up to this it is copied out of the thread's buffer; above, the buffer itself
/// goes on.
const COPIED_BYTES: usize = 16 << 10;
/// How long only the output of a new script is watched.
const MOMENT: Duration = Duration::from_millis(20);
/// How long the end of the body waits for the exit status, so that a crash can
/// be shown as a truncation (C123).
const EXIT_WAIT: Duration = Duration::from_millis(250);
/// How long a descendant that holds standard output is waited for after the
/// script itself has ended (C135).
const DESCENDANT_WAIT: Duration = Duration::from_secs(5);
/// How long a script that somebody is just writing is tried again (C142).
const BUSY_WAIT: Duration = Duration::from_secs(1);
const BUSY_POLL: Duration = Duration::from_millis(20);
/// Seconds, in Retry-After when no place became free.
const RETRY_AFTER: u32 = 2;

thread_local! {
    /// What a script writes is read into this. Most write little, and memory of
    /// this size costs more than to read it.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How scripts are run; one for the whole server.
#[allow(clippy::struct_excessive_bools, reason = "each is one decision")]
pub struct Options {
    /// No output for so long ends the script (C131); `None`: never.
    pub timeout: Option<Duration>,
    /// Scripts that run at once (C138).
    pub jobs: usize,
    /// Requests that wait for a place at most.
    pub queue: usize,
    /// The longest wait for a place.
    pub wait: Duration,
    /// Indexed queries become arguments (C57).
    pub arguments: bool,
    /// The working directory; `None`: the script's own (C126).
    pub directory: Option<PathBuf>,
    /// Scripts run to their end when the client has left (C133).
    pub finish: bool,
    /// Content longer than this is refused, in bytes (C70).
    pub max_body: u64,
    /// X-Sendfile is obeyed (C106).
    pub sendfile: bool,
    /// The limit of open files the server was started with (C130).
    pub open_files: Option<libc::rlimit>,
    /// A field says how a script was run.
    pub verbose: bool,
}

/// Runs scripts.
#[derive(Clone)]
pub struct Cgi {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    environment: Environment,
    processes: Processes,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// `None`: every script is started by exec.
    warm: Option<Warm>,
    log: Log,
}

/// What a run comes to.
pub enum Outcome {
    Response(Response),
    /// The path and query whose response is sent instead (RFC 3875 §6.2.2),
    /// and the place that the next run may take.
    LocalRedirect(Bytes, Option<OwnedSemaphorePermit>),
    /// X-Sendfile: the file's name, and the script's status and other fields (C106).
    SendFile(Vec<u8>, StatusCode, HeaderMap),
}

impl Cgi {
    pub fn new(
        options: Options,
        environment: Environment,
        processes: Processes,
        warm: Option<Warm>,
        log: Log,
    ) -> Self {
        let places = Arc::new(Semaphore::new(options.jobs));
        let shared = Shared {
            options,
            environment,
            processes,
            places,
            waiting: AtomicUsize::new(0),
            warm,
            log,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Runs the script of `facts` with `body` as its standard input. `place`
    /// comes from the run that redirected here.
    pub async fn run(
        &self,
        mut facts: Facts<'_>,
        body: Body,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<Outcome, Fault> {
        let shared = &self.shared;
        if body
            .length()
            .is_some_and(|length| length > shared.options.max_body)
        {
            return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE).closing());
        }
        // A chunked body is collected first; that takes no place.
        let stdin = Stdin::prepare(body, shared.options.max_body).await;
        let stdin = stdin.map_err(|error| match error {
            BodyError::Io(error) if is_exhaustion(&error) => {
                diagnosis::out_of_resources(facts.script, &error)
            }
            error => body_fault(facts.script, &error),
        })?;
        let place = match place {
            Some(place) => place,
            None => shared.place(facts.script).await?,
        };
        facts.content_length = stdin.length;
        let run = shared.start(&facts, stdin, place).await?;
        if is_nph(facts.script) {
            return run.unframed().await.map(Outcome::Response);
        }
        run.answer(facts.head).await
    }
}

/// NPH: the base name starts with `nph-` (C116).
fn is_nph(script: &Script) -> bool {
    script
        .file
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(b"nph-"))
}

/// No descriptor, thread or memory left, rather than no room for content (C139).
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN)
    )
}

/// The status for content that could not be read to its end.
fn body_fault(script: &Script, error: &BodyError) -> Fault {
    let status = match error {
        BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TimedOut => StatusCode::REQUEST_TIMEOUT,
        BodyError::Closed | BodyError::Malformed | BodyError::Truncated => StatusCode::BAD_REQUEST,
        // Spooling failed: no room, no descriptor.
        BodyError::Io(_) => StatusCode::INSUFFICIENT_STORAGE,
    };
    let diagnosis = Diagnosis {
        reason: "content",
        subject: script.subject.clone(),
        fault: format!("the request's content could not be used: {error}"),
        ..Diagnosis::default()
    };
    Fault::new(status).because(diagnosis).closing()
}

/// Takes one from a counter when it goes.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Waits for a place in order of arrival; a client that leaves drops this
    /// future and with it its turn (C138).
    async fn place(&self, script: &Script) -> Result<OwnedSemaphorePermit, Fault> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.waiting);
        if ahead >= self.options.queue {
            return Err(no_place(script, "too many requests wait for a place"));
        }
        match timeout(self.options.wait, Arc::clone(&self.places).acquire_owned()).await {
            Ok(place) => Ok(place.expect("the semaphore is never closed")),
            Err(_elapsed) => Err(no_place(script, "no place became free in time")),
        }
    }

    /// In an interpreter that waits for it, or by exec.
    async fn start(
        self: &Arc<Self>,
        facts: &Facts<'_>,
        stdin: Stdin,
        place: OwnedSemaphorePermit,
    ) -> Result<Run, Fault> {
        let script = facts.script;
        let program = Box::new(self.program(facts));
        let mut chance = match &self.warm {
            None => Chance::default(),
            Some(warm) if warm.is_at_once() => warm.sure_chance(script, &program).await,
            Some(warm) => warm.chance(script, &program),
        };
        let Some(ready) = chance.take() else {
            let launched = self.launch(script, program, stdin.child.as_fd(), place)?;
            return self.begin(script, stdin, launched, chance);
        };
        let (shared, script) = (Arc::clone(self), script.clone());
        let start = async move {
            let stream = stdin.child.as_fd();
            let launched = shared.launch_warm(&script, &ready, program, stream, place);
            let launched = launched.await?;
            shared.begin(&script, stdin, launched, chance)
        };
        if !self.options.finish {
            return start.await;
        }
        // It is started, and runs to its end, even if the client leaves now.
        let started = tokio::spawn(start).await;
        started.unwrap_or_else(|_| Err(Fault::unavailable(RETRY_AFTER)))
    }

    fn begin(
        self: &Arc<Self>,
        script: &Script,
        stdin: Stdin,
        launched: Launched,
        chance: Chance,
    ) -> Result<Run, Fault> {
        let no_resources = |error: io::Error| diagnosis::out_of_resources(script, &error);
        let (stdin, feeder) = stdin.start().map_err(no_resources)?;
        let Launched {
            process,
            stdout,
            stderr,
            warm,
        } = launched;
        let streams = Streams {
            ran: Ran { warm },
            chance,
            process,
            stdout,
            feeder,
            stderr,
            newborn: Some(Newborn {
                stdin,
                give_up: Instant::now() + BUSY_WAIT,
            }),
            watched: false,
            ended: None,
            script: script.clone(),
            shared: Arc::clone(self),
            deadline: self.options.timeout.map(|timeout| Instant::now() + timeout),
        };
        Ok(Run {
            streams: Some(streams),
        })
    }

    /// Makes the process, by exec, and the pipes that come from it.
    fn launch(
        &self,
        script: &Script,
        program: Box<Program>,
        stdin: BorrowedFd<'_>,
        place: OwnedSemaphorePermit,
    ) -> Result<Launched, Fault> {
        let pipes = Pipes::new(script)?;
        let process = self
            .processes
            .start(program, pipes.streams(stdin), place)
            .map_err(|failed| diagnosis::cannot_start(script, &failed))?;
        self.attach(script, process, pipes, false)
    }

    /// The same in an interpreter that waits for it; by exec, on the same pipes,
    /// if nothing was started there.
    async fn launch_warm(
        &self,
        script: &Script,
        ready: &Ready,
        program: Box<Program>,
        stdin: BorrowedFd<'_>,
        place: OwnedSemaphorePermit,
    ) -> Result<Launched, Fault> {
        let pipes = Pipes::new(script)?;
        let streams = pipes.streams(stdin);
        let (process, warm) = match ready.run(streams, place).await {
            Answer::Runs(process) => (process, true),
            Answer::Plain(place) => {
                let started = self.processes.start(program, streams, place);
                let plain = started.map_err(|failed| diagnosis::cannot_start(script, &failed))?;
                (plain, false)
            }
            // It may have begun: never twice.
            Answer::Lost(error) => return Err(diagnosis::out_of_resources(script, &error)),
        };
        self.attach(script, process, pipes, warm)
    }

    fn attach(
        &self,
        script: &Script,
        mut process: Process,
        pipes: Pipes,
        warm: bool,
    ) -> Result<Launched, Fault> {
        let Pipes {
            child_out,
            stdout,
            child_err,
            stderr,
        } = pipes;
        // Our copies of the script's ends would keep its end-of-file from us.
        drop((child_out, child_err));
        let stderr = Stderr::new(stderr, &script.subject, process.pid(), &self.log);
        let stdout = os::watch(stdout, Interest::READABLE)
            .map_err(|error| diagnosis::out_of_resources(script, &error))?;
        Ok(Launched {
            process,
            stdout,
            stderr,
            warm,
        })
    }

    /// All strings are made before the clone (C200).
    fn program(&self, facts: &Facts<'_>) -> Program {
        let file = c_path(&facts.script.file);
        // argv[0] is the whole path, so that `$0` works from anywhere (C61).
        let mut arguments = vec![file.clone()];
        if self.options.arguments && matches!(facts.head.method, Method::GET | Method::HEAD) {
            arguments.extend(variables::arguments(&facts.target.query));
        }
        let own = || facts.script.file.parent().unwrap_or(Path::new("/"));
        let directory = self.options.directory.as_deref().unwrap_or_else(own);
        Program {
            file,
            arguments,
            environment: self.environment.block(&variables::variables(facts)),
            directory: c_path(directory),
            open_files: self.options.open_files,
        }
    }
}

/// A process and what comes from it.
struct Launched {
    process: Process,
    stdout: AsyncFd<OwnedFd>,
    stderr: Stderr,
    warm: bool,
}

/// What a script writes to, with the ends that it gets.
struct Pipes {
    child_out: OwnedFd,
    stdout: OwnedFd,
    child_err: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    fn new(script: &Script) -> Result<Self, Fault> {
        let no_resources = |error: io::Error| diagnosis::out_of_resources(script, &error);
        let (child_out, stdout) = output_pipe().map_err(no_resources)?;
        let (child_err, stderr) = output_pipe().map_err(no_resources)?;
        Ok(Self {
            child_out,
            stdout,
            child_err,
            stderr,
        })
    }

    /// What become the script's descriptors 0, 1 and 2.
    fn streams<'a>(&'a self, stdin: BorrowedFd<'a>) -> [BorrowedFd<'a>; 3] {
        [stdin, self.child_out.as_fd(), self.child_err.as_fd()]
    }
}

fn no_place(script: &Script, fault: &str) -> Fault {
    Fault::unavailable(RETRY_AFTER).because(Diagnosis {
        reason: "no-place",
        subject: script.subject.clone(),
        fault: format!("not run: {fault}"),
        hint: Some("raise `--cgi-jobs`, `--cgi-queue` or `--cgi-wait`".into()),
        ..Diagnosis::default()
    })
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path that was looked up holds no NUL")
}

/// A running script. Dropped before its end it is ended, or with `--cgi-finish`
/// read to its end unseen.
struct Run {
    streams: Option<Streams>,
}

struct Streams {
    // The order of the fields is the order of the end: the group is told to
    // end before its pipes close.
    process: Process,
    stdout: AsyncFd<OwnedFd>,
    feeder: Option<Feeder>,
    stderr: Stderr,
    ran: Ran,
    /// Of later runs of this script.
    chance: Chance,
    /// Until its first output or end.
    newborn: Option<Newborn>,
    /// Standard error and the process are watched too.
    watched: bool,
    /// The direct child has ended.
    ended: Option<Ended>,
    script: Script,
    shared: Arc<Shared>,
    /// For the next byte; `None`: no limit.
    deadline: Option<Instant>,
}

/// What it takes to start a script once more if its file is just being written
/// (C142).
struct Newborn {
    /// The script's end, with the content that may be in it.
    stdin: OwnedFd,
    give_up: Instant,
}

/// Why there is no more output although there was no end-of-file.
enum Stop {
    TimedOut,
    /// The script has ended, a descendant holds its standard output (C135).
    Descendant,
    /// The request's content ended before its end (C71).
    Content(BodyError),
    Io(io::Error),
    /// The process could not become the script (C140).
    NotStarted(SpawnError),
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(streams) = self.streams.take() else {
            return;
        };
        let whole = streams.feeder.as_ref().is_none_or(Feeder::is_done);
        if streams.shared.options.finish && whole {
            Handle::current().spawn(streams.discard());
        }
    }
}

impl Run {
    fn streams(&mut self) -> &mut Streams {
        self.streams
            .as_mut()
            .expect("present until the run is taken apart")
    }

    fn take(mut self) -> Streams {
        self.streams
            .take()
            .expect("present until the run is taken apart")
    }

    /// NPH: the script's output is the response (RFC 3875 §5).
    async fn unframed(mut self) -> Result<Response, Fault> {
        let first = match self.streams().read().await {
            Ok(first) => first,
            Err(stop) => return Err(self.take().stopped_early(stop).await),
        };
        let Some(first) = first else {
            let nothing = HeadReader::new().end();
            return Err(self.take().ended_early(nothing).await);
        };
        let streams = self.streams();
        streams.renew_deadline();
        streams.chance.worked();
        let ran = streams.ran;
        let output = Output::new(self, first, None);
        let mut response = Response::new(Body::Unframed(Box::new(output)));
        response.extensions_mut().insert(ran);
        Ok(response)
    }

    /// Reads header blocks until the final one, then decides what it is.
    async fn answer(mut self, head: &Parts) -> Result<Outcome, Fault> {
        let mut reader = HeadReader::new();
        let reply = loop {
            match reader.next_block() {
                Ok(Some(Block::Final(reply))) => break reply,
                Ok(Some(Block::Interim(interim))) => {
                    if let Some(client) = head.extensions.get::<Interim>() {
                        client.send(interim);
                    }
                }
                Ok(Some(Block::Dropped)) => {}
                Ok(None) => match self.streams().read().await {
                    Ok(Some(bytes)) => reader.push(&bytes),
                    Ok(None) | Err(Stop::Descendant) => {
                        return Err(self.take().ended_early(reader.end()).await);
                    }
                    Err(stop) => return Err(self.take().stopped_early(stop).await),
                },
                Err(invalid) => return Err(self.take().invalid(&invalid)),
            }
        };
        let rest = reader.into_rest();
        self.streams().chance.worked();
        for warning in &reply.warnings {
            self.streams().note(warning);
        }
        self.decide(head, reply, rest).await
    }

    async fn decide(
        mut self,
        head: &Parts,
        mut reply: Reply,
        mut rest: Bytes,
    ) -> Result<Outcome, Fault> {
        if let Some(file) = reply.sendfile.take() {
            if self.streams().shared.options.sendfile {
                self.discard();
                return Ok(Outcome::SendFile(file, reply.status, reply.headers));
            }
            self.streams()
                .note("X-Sendfile or the like is ignored; `--cgi-sendfile DIR` turns it on");
        }
        let bare_redirect =
            reply.kind == Kind::ClientRedirect && !reply.headers.contains_key(CONTENT_TYPE);
        if bare_redirect || reply.kind.is_local() {
            // What this is depends on whether a body follows (C93, C94, C99).
            let opening = self.opening(rest).await?;
            rest = match (opening, &reply.kind) {
                (Opening::Body(bytes), _) => bytes,
                (opening, Kind::LocalRedirect(target)) => {
                    let target = target.clone();
                    let streams = self.streams();
                    // One that works on keeps its place (C137).
                    let over = matches!(opening, Opening::End) && streams.has_ended().await;
                    let place = if over {
                        streams.process.give_place()
                    } else {
                        None
                    };
                    self.discard();
                    return Ok(Outcome::LocalRedirect(target, place));
                }
                (Opening::End, _) => {
                    let mut response = redirect(reply);
                    self.mark(&mut response);
                    self.discard();
                    return Ok(Outcome::Response(response));
                }
                // It works on; the client need not wait for that.
                (Opening::Silence, _) => Bytes::new(),
            };
        }
        Ok(Outcome::Response(self.document(head, reply, rest)))
    }

    /// Looks at how the body begins; not for long. White space alone is none.
    async fn opening(&mut self, rest: Bytes) -> Result<Opening, Fault> {
        let mut seen = rest;
        let brief = sleep(EXIT_WAIT);
        tokio::pin!(brief);
        while seen.iter().all(u8::is_ascii_whitespace) && seen.len() < READ_BYTES {
            let read = tokio::select! {
                biased;
                read = self.streams().read() => read,
                () = &mut brief => return Ok(Opening::Silence),
            };
            match read {
                Ok(Some(more)) => seen = [&seen[..], &more].concat().into(),
                Ok(None) | Err(Stop::Descendant) => return Ok(Opening::End),
                Err(stop) => {
                    let streams = self
                        .streams
                        .take()
                        .expect("present until the run is taken apart");
                    return Err(streams.stopped_early(stop).await);
                }
            }
        }
        Ok(Opening::Body(seen))
    }

    fn document(mut self, head: &Parts, mut reply: Reply, rest: Bytes) -> Response {
        let bodiless = reply.is_bodiless(&head.method);
        let mut response = reply.take_response();
        self.mark(&mut response);
        if bodiless {
            // The rest of the output is read and thrown away (C112, C113).
            self.discard();
            if head.method == Method::HEAD {
                *response.body_mut() = Body::stream(reply.content_length, Nothing);
            }
            return response;
        }
        self.streams().renew_deadline();
        let mut output = Output::new(self, rest, reply.content_length);
        if reply.chunked {
            output.unchunk = Some(Unchunk::new());
        }
        *response.body_mut() = Body::stream(reply.content_length, output);
        response
    }

    /// Says how it was run.
    fn mark(&mut self, response: &mut Response) {
        let Streams { ran, shared, .. } = self.streams();
        response.extensions_mut().insert(*ran);
        if shared.options.verbose {
            let how = if ran.warm { "warm" } else { "plain" };
            let name = HeaderName::from_static("x-serve-here-run");
            let value = HeaderValue::from_static(how);
            response.headers_mut().insert(name, value);
        }
    }

    /// Lets the script end by itself, its output read and thrown away.
    fn discard(self) {
        tokio::spawn(self.take().discard());
    }
}

/// How the body of a redirect begins.
enum Opening {
    Body(Bytes),
    /// There is none.
    End,
    /// Nothing came so far.
    Silence,
}

/// A client redirect without a document: a short page with the address (C99).
pub(super) fn redirect(reply: Reply) -> Response {
    let page = reply
        .headers
        .get(http::header::LOCATION)
        .map(reply::redirect_page);
    let mut response = Response::new(page.map_or(Body::Empty, Body::from));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, html);
    response
}

/// The body of an answer to HEAD: has a length perhaps, and no bytes.
pub(super) struct Nothing;

impl Source for Nothing {
    fn next(&mut self) -> Next<'_> {
        Box::pin(std::future::ready(None))
    }
}

impl Streams {
    /// The next output; `None` at end-of-file. Dropping the future loses nothing.
    async fn read(&mut self) -> Result<Option<Bytes>, Stop> {
        loop {
            match self.read_now() {
                Ok(None) if self.newborn.is_some() => {
                    if self.was_born().await? {
                        return Ok(None);
                    }
                    continue;
                }
                Ok(bytes) => {
                    self.newborn = None;
                    return Ok(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stop::Io(error)),
            }
            if !self.watched {
                self.wait_a_moment().await?;
                continue;
            }
            let Self {
                process,
                stdout,
                feeder,
                ended,
                deadline,
                ..
            } = self;
            tokio::select! {
                biased;
                ready = stdout.readable() => match ready {
                    // `read_now` finds out what is there.
                    Ok(mut ready) => ready.clear_ready(),
                    Err(error) => return Err(Stop::Io(error)),
                },
                how = process.ended(), if ended.is_none() => {
                    *ended = Some(how);
                    let soon = Instant::now() + DESCENDANT_WAIT;
                    *deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
                }
                error = content_failure(feeder.as_mut()) => return Err(Stop::Content(error)),
                () = until(*deadline) => {
                    if let Some(later) = self.content_deadline() {
                        self.deadline = Some(later);
                        continue;
                    }
                    return Err(if self.ended.is_some() { Stop::Descendant } else { Stop::TimedOut });
                }
            }
        }
    }

    /// Whether the end of the output is the script's own. If its file was just
    /// being written, it is started again after a moment.
    async fn was_born(&mut self) -> Result<bool, Stop> {
        let Born::Failed(failed, program) = self.process.birth() else {
            self.newborn = None;
            return Ok(true);
        };
        let is_busy = Errno::from_io_error(&failed.error) == Some(Errno::TXTBSY);
        let again = self
            .newborn
            .as_ref()
            .filter(|newborn| is_busy && Instant::now() < newborn.give_up);
        let (Some(newborn), Some(place)) = (again, self.process.give_place()) else {
            return Err(Stop::NotStarted(failed));
        };
        sleep(BUSY_POLL).await;
        let stdin = newborn.stdin.as_fd();
        let launched = self.shared.launch(&self.script, program, stdin, place);
        let launched = launched.map_err(|_| Stop::NotStarted(failed))?;
        (self.process, self.stdout, self.stderr) =
            (launched.process, launched.stdout, launched.stderr);
        self.ended = None;
        Ok(false)
    }

    /// For output, for as long as most scripts run. Watching three things
    /// costs more than such a script's whole answer.
    async fn wait_a_moment(&mut self) -> Result<(), Stop> {
        let moment = Instant::now() + MOMENT;
        let moment = self
            .deadline
            .map_or(moment, |deadline| deadline.min(moment));
        tokio::select! {
            biased;
            ready = self.stdout.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return Err(Stop::Io(error)),
            },
            error = content_failure(self.feeder.as_mut()) => return Err(Stop::Content(error)),
            () = sleep_until(moment) => {
                self.watched = true;
                if let Born::Script = self.process.birth() {
                    self.newborn = None;
                }
                self.stderr.watch().map_err(Stop::Io)?;
            }
        }
        Ok(())
    }

    /// Content still moves: a script that reads a slow upload isn't silent.
    fn content_deadline(&self) -> Option<Instant> {
        let moved = self.feeder.as_ref()?.last_moved();
        let later = moved + self.shared.options.timeout?;
        (self.ended.is_none() && later > Instant::now()).then_some(later)
    }

    fn read_now(&self) -> io::Result<Option<Bytes>> {
        let mut buffer = BUFFER.take();
        buffer.clear();
        buffer.reserve_exact(READ_BYTES);
        let read = rustix::io::read(
            self.stdout.get_ref(),
            rustix::buffer::spare_capacity(&mut buffer),
        );
        let bytes = match read {
            Ok(0) | Err(_) => None,
            Ok(read) if read <= COPIED_BYTES => Some(Bytes::copy_from_slice(&buffer)),
            Ok(_) => return Ok(Some(Bytes::from(buffer))),
        };
        BUFFER.set(buffer);
        read?;
        Ok(bytes)
    }

    /// Output has come: the time for the next begins anew.
    fn renew_deadline(&mut self) {
        let wait = match (self.ended, self.shared.options.timeout) {
            (None, timeout) => timeout,
            (Some(_), timeout) => {
                Some(timeout.map_or(DESCENDANT_WAIT, |timeout| timeout.min(DESCENDANT_WAIT)))
            }
        };
        self.deadline = wait.map(|wait| Instant::now() + wait);
    }

    fn note(&self, text: &str) {
        self.shared.log.script_note(&self.script.subject, text);
    }

    /// Waits a moment for the exit status (C123).
    async fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = timeout(EXIT_WAIT, self.process.ended()).await.ok();
        }
        self.ended.is_some()
    }

    /// Waits a moment for the exit status and logs an unusual one.
    async fn settle(&mut self) -> Option<Ended> {
        self.has_ended().await;
        match self.ended {
            Some(Ended::Exit(0)) | None => {}
            Some(Ended::Exit(status)) => self.note(&format!("exit status {status}")),
            Some(Ended::Signal(signal)) => self.note(&format!("ended by {}", signal_name(signal))),
        }
        self.ended
    }

    /// Reads to the end of the output, unseen.
    async fn discard(mut self) {
        self.renew_deadline();
        loop {
            match self.read().await {
                Ok(Some(_)) => self.renew_deadline(),
                Ok(None) | Err(Stop::Descendant) => break,
                Err(stop) => {
                    // Ends the group.
                    if matches!(stop, Stop::TimedOut) {
                        self.note("timeout: no output for too long; ended");
                    }
                    return;
                }
            }
        }
        self.settle().await;
        self.process.release();
    }

    /// End-of-file before the header block was complete (C124).
    async fn ended_early(mut self, invalid: Invalid) -> Fault {
        let ended = timeout(EXIT_WAIT, self.process.ended()).await.ok();
        let mut diagnosis = diagnosis::ended_early(&self.script, ended, &invalid);
        diagnosis.stderr = self.stderr.last_lines().await;
        self.process.release();
        // As if it did not compile.
        let failed = matches!(ended, Some(Ended::Exit(1..))) && !diagnosis.stderr.is_empty();
        if failed {
            self.chance.failed();
        } else {
            self.chance.worked();
        }
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR)
            .because(diagnosis)
            .of(self.ran)
    }

    /// The header block breaks the rules (C82). What the script goes on to
    /// write is of no use; the group is ended.
    fn invalid(self, invalid: &Invalid) -> Fault {
        let diagnosis = diagnosis::invalid(&self.script, invalid);
        self.chance.worked();
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR)
            .because(diagnosis)
            .of(self.ran)
    }

    /// No complete header block in time, or the request broke off. The group
    /// is ended.
    async fn stopped_early(mut self, stop: Stop) -> Fault {
        match stop {
            Stop::TimedOut => {
                let limit = self.shared.options.timeout.unwrap_or_default();
                let diagnosis = Diagnosis {
                    reason: "timeout",
                    subject: self.script.subject.clone(),
                    fault: format!("no complete header after {} s; ended", limit.as_secs_f32()),
                    hint: Some("let it print earlier, or raise `--cgi-timeout`".into()),
                    file: Some(self.script.file.clone()),
                    stderr: self.stderr.last_lines().await,
                    ..Diagnosis::default()
                };
                let fault = Fault::new(StatusCode::GATEWAY_TIMEOUT).because(diagnosis);
                fault.of(self.ran)
            }
            Stop::Content(error) => body_fault(&self.script, &error),
            Stop::Descendant => self.ended_early(HeadReader::new().end()).await,
            Stop::Io(error) => diagnosis::out_of_resources(&self.script, &error),
            Stop::NotStarted(failed) => diagnosis::cannot_start(&self.script, &failed),
        }
    }
}

async fn content_failure(feeder: Option<&mut Feeder>) -> BodyError {
    match feeder {
        Some(feeder) => feeder.failure().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// `signal 9 (SIGKILL)`, as shells and logs write it.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// The script's output as the body of the response.
struct Output {
    run: Option<Run>,
    first: Option<Bytes>,
    /// Bytes still to come of the length that the script announced.
    left: Option<u64>,
    unchunk: Option<Unchunk>,
}

impl Output {
    fn new(run: Run, first: Bytes, length: Option<u64>) -> Self {
        Self {
            run: Some(run),
            first: Some(first),
            left: length,
            unchunk: None,
        }
    }

    async fn piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            if self.left == Some(0) {
                return self.satisfied();
            }
            let read = match self.first.take() {
                Some(first) => Ok(Some(first)),
                None => self.run.as_mut()?.streams().read().await,
            };
            let bytes = match read {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return self.end(None).await,
                Err(stop) => return self.end(Some(stop)).await,
            };
            self.run.as_mut()?.streams().renew_deadline();
            let bytes = match self.decode(bytes) {
                Ok(bytes) => self.cut(bytes),
                Err(invalid) => return Some(Err(self.broken(&invalid))),
            };
            if !bytes.is_empty() {
                return Some(Ok(bytes));
            }
            if self.unchunk.as_ref().is_some_and(Unchunk::is_done) {
                return self.satisfied();
            }
        }
    }

    fn decode(&mut self, bytes: Bytes) -> Result<Bytes, Invalid> {
        match &mut self.unchunk {
            Some(unchunk) => unchunk.push(bytes).map(|pieces| pieces.concat().into()),
            None => Ok(bytes),
        }
    }

    /// What goes beyond the announced length is thrown away and logged (C110).
    fn cut(&mut self, mut bytes: Bytes) -> Bytes {
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            if take < bytes.len()
                && let Some(run) = &mut self.run
            {
                run.streams()
                    .note("more output than its Content-Length; the rest is left away");
            }
            bytes.truncate(take);
            *left -= take as u64;
        }
        bytes
    }

    /// The body is complete; the client doesn't wait for the script (C135).
    fn satisfied(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.run.take()?.discard();
        None
    }

    fn broken(&mut self, invalid: &Invalid) -> BodyError {
        if let Some(run) = &mut self.run {
            run.streams().note(&invalid.message);
        }
        self.run = None;
        BodyError::Truncated
    }

    /// End-of-file or a stop: whole, or visibly cut off (C110, C122).
    async fn end(&mut self, stop: Option<Stop>) -> Option<Result<Bytes, BodyError>> {
        let streams = self.run.as_mut()?.streams();
        match stop {
            None => {}
            Some(Stop::Descendant) => {
                streams.note("descendant keeps stdout open; the response ends without it");
            }
            Some(Stop::TimedOut) => {
                streams.note("timeout: no output for too long; ended");
                self.run.take()?.take().end_now();
                return Some(Err(BodyError::Truncated));
            }
            Some(Stop::Content(error)) => {
                streams.note(&format!("ended: {error}"));
                self.run.take()?.take().end_now();
                return Some(Err(error));
            }
            Some(Stop::Io(error) | Stop::NotStarted(SpawnError { error, .. })) => {
                self.run.take()?.take().end_now();
                return Some(Err(error.into()));
            }
        }
        let ended = streams.settle().await;
        let unfinished = self
            .unchunk
            .as_ref()
            .is_some_and(|unchunk| !unchunk.is_done());
        let short = self.left.is_some_and(|left| left > 0) || unfinished;
        if short {
            streams.note("less output than it announced; the connection is cut");
        }
        self.run.take()?.take().process.release();
        (short || matches!(ended, Some(Ended::Signal(_)))).then_some(Err(BodyError::Truncated))
    }
}

impl Streams {
    /// Ends the group even with `--cgi-finish`.
    fn end_now(self) {
        drop(self);
    }
}

impl Source for Output {
    fn next(&mut self) -> Next<'_> {
        Box::pin(self.piece())
    }
}
