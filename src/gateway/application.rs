//! One request to an application server that speaks `FastCGI`, SCGI or uwsgi:
//! the variables and the content to it, its answer back. The answer is that of
//! a CGI script; only the framing differs (section 4 of the rules, with 502 for
//! 500).
//!
//! Content and answer move at the same time, so that neither waits for the
//! other to end (C67).

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::attempt::{
    self, Failed, Party, Place, Progress, RETRY_AFTER, Rounds, TIMEOUT, TRY_WAIT, plain, until,
};
use super::backend::{self, Backend, Turn};
use super::cgi::{self, Nothing, Outcome};
use super::content::Content;
use super::fastcgi::{self, Event, ProtocolStatus, Records, Role};
use super::reply::{Block, HeadReader, Invalid, Kind, Reply};
use super::route::{Staff, Target, Wire};
use super::sending::{Framing, Sending, Upload};
use super::sticky::{Pull, Sticky};
use super::stream::{Resting, Stream};
use super::unchunk::Unchunk;
use super::variables::{self, Facts, Variable};
use super::{scgi, uwsgi};
use crate::error::{Diagnosis, Fault};
use crate::log::{Log, MAX_LINE_BYTES, escape};
use crate::message::{Body, BodyError, FileBody, Interim, Next, Response, Source};
use crate::target::decode;

/// What is read from an application at once.
const READ_BYTES: usize = 64 << 10;
/// How long it is looked whether a redirect has a body (C99).
const OPENING_WAIT: Duration = Duration::from_millis(250);
/// What is read of an answer that nobody wants, to keep the connection.
const DRAIN_BYTES: usize = 256 << 10;
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// For a worker that is started from here, where `--route-timeout` is off.
const WORKER_WAIT: Duration = Duration::from_secs(60);
/// How often it is looked whether a worker is done with a request that nobody
/// waits for.
const LEFT_POLL: Duration = Duration::from_millis(50);

/// How applications are asked.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For the whole header of the answer, from the last of the content.
    pub answer: Option<Duration>,
    /// The longest pause in the answer's body.
    pub pause: Option<Duration>,
    /// Content longer than this is refused, in bytes (C70).
    pub max_body: u64,
    /// X-Sendfile is obeyed (C106).
    pub sendfile: bool,
}

/// An application behind a route.
#[derive(Clone)]
pub struct Application {
    shared: Arc<Shared>,
}

struct Shared {
    protocol: Wire,
    /// For the log.
    name: &'static str,
    /// Its answers may hold the private fields of our own worker code.
    trusted: bool,
    backend: Arc<Backend>,
    /// Connections outlive a request.
    keep: bool,
    /// The document root as the application sees it (C172).
    root: Option<PathBuf>,
    sticky: Option<Sticky>,
    /// It gets a request when all of the content is here.
    whole: bool,
    options: Options,
    log: Log,
}

impl Application {
    /// `connect` is the time for a connection to be made. `beside` is another
    /// route's application at the same addresses.
    pub fn new(
        protocol: Wire,
        target: Target,
        connect: Duration,
        options: Options,
        beside: Option<&Self>,
        log: Log,
    ) -> Self {
        let dialling = backend::Options {
            connect,
            connections: target.connections.unwrap_or(usize::MAX),
            keep: target.keep,
            check: target.check,
            wait: match &target.staff {
                // A worker answers in that time, or is replaced.
                Some(_) => options.answer.unwrap_or(WORKER_WAIT),
                None => connect,
            },
            // Mostly there is a process for each connection.
            patience: Duration::ZERO,
            sticky: target.sticky.is_some(),
            staffed: target.staff.is_some(),
        };
        let name = target.name();
        let trusted = matches!(target.staff, Some(Staff::Wsgi(_)));
        // Otherwise only FastCGI has connections that outlive a request (C176,
        // C180). A thread of a worker would wait at its own.
        let keeps = protocol == Wire::FastCgi || trusted && target.connections == Some(1);
        let shared = Shared {
            protocol,
            name,
            trusted,
            backend: match beside {
                // What one of them keeps idle would hold a worker that the
                // other one waits for (C160).
                Some(beside) => Arc::clone(beside.backend()),
                None => Backend::new(name, target.addresses, dialling, log.clone()),
            },
            keep: target.keep > 0 && keeps,
            root: target.root,
            sticky: target.sticky,
            whole: target.whole.unwrap_or(false),
            options,
            log,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Its addresses, for whoever starts workers there.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.shared.backend
    }

    /// Asks the application of `facts`, with `body` as the content. An address
    /// that fails is replaced by another one only where the request can't have
    /// been run, or may be run twice (C159).
    pub async fn run(&self, mut facts: Facts<'_>, body: Body) -> Result<Outcome, Fault> {
        let shared = &self.shared;
        let subject = &facts.script.subject;
        let max_body = shared.options.max_body;
        let content = if shared.whole {
            Content::whole(body, max_body).await
        } else {
            Content::of(body, max_body).await
        };
        let mut content = content.map_err(|error| shared.party(subject).content_fault(&error))?;
        facts.content_length = content.length();
        let elsewhere;
        if let Some(root) = &shared.root {
            elsewhere = facts.script.moved(facts.root, root);
            (facts.script, facts.root) = (&elsewhere, root);
        }
        let head = shared.head(&facts, &content)?;
        let sticky = shared.sticky.as_ref();
        let pull = sticky.map_or(Pull::Anywhere, |sticky| sticky.pull(&facts));
        let answered = shared.ask_around(facts, &head, &mut content, pull).await?;
        let (mut exchange, answer, sending) = answered;
        let here = shared.backend.hash(exchange.turn().index());
        exchange.go_on_sending(sending, content);
        let mut outcome = exchange.decide(facts.head, answer).await?;
        if let Some(sticky) = sticky {
            match &mut outcome {
                Outcome::Response(response) => {
                    sticky.mark(response.headers_mut(), &facts, pull, here);
                }
                Outcome::SendFile(_, _, headers) => sticky.mark(headers, &facts, pull, here),
                Outcome::LocalRedirect(..) => {}
            }
        }
        Ok(outcome)
    }

    /// Asks an authorizer whether the request of `facts` may go on (§6.3 of the
    /// specification, C151). It is not given the content.
    pub async fn authorize(&self, facts: Facts<'_>) -> Result<Verdict, Fault> {
        let shared = &self.shared;
        let mut list = variables::variables(&facts);
        list.retain(|(name, _)| !NOT_FOR_AUTHORIZERS.contains(&&name[..]));
        let head = fastcgi::head(&list, Role::Authorizer, false);
        let mut content = Content::none();
        let asked = shared.ask_around(facts, &head, &mut content, Pull::Anywhere);
        let (exchange, answer, _) = asked.await?;
        let Answer { reply, .. } = &answer;
        if reply.status == StatusCode::OK && reply.kind == Kind::Document {
            return Ok(Verdict::Granted(granted(&reply.headers)));
        }
        // Whatever it is, the client gets it as it is.
        let Answer { reply, rest } = answer;
        let response = exchange.document(facts.head, reply, rest);
        Ok(Verdict::Refused(response))
    }
}

/// What an authorizer says.
pub enum Verdict {
    /// Variables for whoever answers.
    Granted(Vec<Variable>),
    /// What the client gets instead.
    Refused(Response),
}

/// They belong to the answer, which is not an authorizer's to give.
const NOT_FOR_AUTHORIZERS: [&str; 4] = [
    "CONTENT_LENGTH",
    "PATH_INFO",
    "PATH_TRANSLATED",
    "SCRIPT_NAME",
];

/// From fields such as `Variable-REMOTE_USER`.
fn granted(headers: &HeaderMap) -> Vec<Variable> {
    let variables = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix("variable-")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        (!name.is_empty() && name.bytes().all(plain)).then(|| {
            let name = name.to_ascii_uppercase();
            (name.into(), value.as_bytes().to_vec())
        })
    });
    variables.collect()
}

impl Shared {
    /// Asks one address after the other until one answers.
    async fn ask_around(
        self: &Arc<Self>,
        facts: Facts<'_>,
        head: &[u8],
        content: &mut Content,
        pull: Pull,
    ) -> Result<(Exchange, Answer, Sending), Fault> {
        let shared = self;
        let party = shared.party(&facts.script.subject);
        let mut rounds = Rounds::new(party, facts.head.method.is_idempotent(), pull);
        loop {
            let turn = rounds.turn(&shared.backend).await?;
            let mut place = Place::of(&turn);
            let failed = match shared.ask(turn, &mut place, facts, head, content).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => failed,
            };
            if !rounds.go_on(&failed, &place, shared.backend.rounds()) || !content.rewind() {
                return Err(failed.fault(&party, &place.address));
            }
            rounds.note(&failed, &place);
        }
    }
}

impl Shared {
    fn party<'a>(&'a self, subject: &'a str) -> Party<'a> {
        Party {
            name: self.name,
            subject,
            log: &self.log,
        }
    }

    /// The bytes before the content.
    fn head(&self, facts: &Facts<'_>, content: &Content) -> Result<Box<[u8]>, Fault> {
        let list: Vec<Variable> = variables::variables(facts);
        let head = match self.protocol {
            Wire::FastCgi => Ok(fastcgi::head(&list, Role::Responder, self.keep)),
            Wire::Scgi => {
                let length = content.length().unwrap_or(0);
                Ok(scgi::head(&list, length, self.keep))
            }
            Wire::Uwsgi(one, two) => uwsgi::head(&list, (one, two)).ok_or_else(|| {
                let fault = format!(
                    "the request's header is too long for the protocol, which has room for {} bytes",
                    uwsgi::MAX_BLOCK_BYTES
                );
                let diagnosis = self.party(&facts.script.subject).diagnosis("too-long", fault);
                Fault::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).because(diagnosis)
            }),
        };
        // Kept while the answer is waited for, without the room that was left.
        head.map(|head| Box::from(&head[..]))
    }

    /// How the content goes out.
    fn framing(&self) -> Framing {
        match self.protocol {
            Wire::FastCgi => Framing::Records,
            Wire::Scgi | Wire::Uwsgi(..) => Framing::Bare,
        }
    }

    /// Sends the request to one address, which is `place` then, and reads its
    /// answer up to the end of the header.
    async fn ask(
        self: &Arc<Self>,
        mut turn: Turn,
        place: &mut Place,
        facts: Facts<'_>,
        head: &[u8],
        content: &mut Content,
    ) -> Result<(Exchange, Answer, Sending), Failed> {
        // The application may close a kept connection just now. What can't be
        // run twice could then be neither sent again nor answered.
        let kept = if self.keep && facts.head.method.is_idempotent() {
            turn.reuse().and_then(|resting| resting.wake().ok())
        } else {
            None
        };
        let reused = kept.is_some();
        let stream = if let Some(stream) = kept {
            stream
        } else {
            // Its room is not needed while the answer is waited for.
            let connected = Box::pin(turn.connect()).await;
            *place = Place::of(&turn);
            connected.map_err(|trouble| Failed::to_connect(&mut turn, &trouble))?
        };
        let mut sending = Sending::new(self.framing(), head, content);
        // Only what goes out as a whole can be left to itself.
        let repeatable = facts.head.method.is_idempotent() && sending.has_all();
        turn.notice_silence(&stream, sending.has_all(), repeatable);
        let brief = turn.try_time(self.options.answer).filter(|_| repeatable);
        let limit = brief.or(self.options.answer);
        let mut exchange = Exchange {
            peer: Peer {
                shared: Arc::clone(self),
                subject: facts.script.subject.clone(),
                address: turn.name(),
                turn: Some(turn),
                incoming: Incoming::new(self.protocol),
                file: None,
                errors: Vec::new(),
                heard: false,
                another: Another::Never,
            },
            stream: Some(Arc::new(stream)),
            upload: Upload::Done,
            block_bytes: head.len(),
        };
        let mut reader = HeadReader::new();
        let answered = exchange
            .read_head(facts.head, limit, &mut reader, &mut sending, content)
            .await;
        let no_answer = match answered {
            Ok(reply) => {
                exchange.turn().succeeded();
                let rest = reader.into_rest();
                return Ok((exchange, Answer { reply, rest }, sending));
            }
            Err(NoAnswer::Stop(Stop::TimedOut(time)))
                if brief == Some(time) && !exchange.peer.heard && sending.is_done() =>
            {
                exchange.leave();
                return Err(Failed::in_vain(time));
            }
            Err(no_answer) => no_answer,
        };
        let mut failed = exchange.failed(no_answer, reader);
        if !exchange.peer.heard {
            failed.weigh_silence(exchange.turn());
        }
        failed.progress = match failed.progress {
            Progress::Rejected => Progress::Rejected,
            _ if exchange.peer.heard || failed.reason == TIMEOUT && !failed.hung => {
                Progress::Answered
            }
            _ if sending.is_incomplete() => Progress::NotSent,
            _ => Progress::Sent,
        };
        // An idle connection may end at any moment; that says nothing about
        // the application.
        failed.stale = reused && failed.reason == "closed" && !exchange.peer.heard;
        failed.blame(exchange.turn());
        // Another worker may have got it than the one that was there at first.
        place.address = exchange.turn().name();
        Err(failed)
    }
}

/// The header of an answer, and what came behind it.
struct Answer {
    reply: Reply,
    rest: Bytes,
}

/// Why there is no more output although it has not ended.
enum Stop {
    TimedOut(Duration),
    /// The request's content ended before its end (C71).
    Content(BodyError),
    /// The application closed the connection in the middle (C155).
    Closed(Option<io::Error>),
    /// It breaks the protocol.
    Violation(String),
    /// It says that it can't run the request.
    Rejected(ProtocolStatus),
}

/// Why there is no header.
enum NoAnswer {
    Stop(Stop),
    Invalid(Invalid),
    /// The output ended before it did.
    Ended,
}

/// What has arrived from an application.
enum Incoming {
    Records(Records),
    /// The connection's end is the end.
    Plain(Option<Bytes>),
}

impl Incoming {
    fn new(protocol: Wire) -> Self {
        match protocol {
            Wire::FastCgi => Self::Records(Records::default()),
            Wire::Scgi | Wire::Uwsgi(..) => Self::Plain(None),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::Records(records) => records.push(bytes),
            Self::Plain(arrived) => *arrived = Some(Bytes::copy_from_slice(bytes)),
        }
    }

    fn next_event(&mut self) -> Result<Option<Event>, String> {
        match self {
            Self::Records(records) => records.next_event(),
            Self::Plain(arrived) => Ok(arrived.take().map(Event::Stdout)),
        }
    }

    /// Whether the end of the connection is a proper end of the answer.
    fn ends_with_connection(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    fn is_at_boundary(&self) -> bool {
        match self {
            Self::Records(records) => records.is_at_boundary(),
            Self::Plain(_) => false,
        }
    }
}

/// A request that an application answers. Dropped before the end, it closes the
/// connection (C161).
struct Exchange {
    peer: Peer,
    /// `None`: the answer has ended, or is of no more use.
    stream: Option<Arc<Stream>>,
    upload: Upload,
    /// The length of what went before the content.
    block_bytes: usize,
}

impl Exchange {
    /// Reads header blocks until the final one, for `answer` at most, while the
    /// request goes out.
    async fn read_head(
        &mut self,
        head: &Parts,
        answer: Option<Duration>,
        reader: &mut HeadReader,
        sending: &mut Sending,
        content: &mut Content,
    ) -> Result<Reply, NoAnswer> {
        let began = Instant::now();
        loop {
            match reader.next_block().map_err(NoAnswer::Invalid)? {
                Some(Block::Final(reply)) => return Ok(reply),
                Some(Block::Interim(interim)) => {
                    if let Some(client) = head.extensions.get::<Interim>() {
                        client.send(interim);
                    }
                    continue;
                }
                Some(Block::Dropped) => continue,
                None => {}
            }
            let Some(stream) = self.stream.clone() else {
                return Err(NoAnswer::Ended);
            };
            let deadline = answer.map(|answer| (began.max(sending.last_moved()) + answer, answer));
            let output = tokio::select! {
                biased;
                output = self.peer.receive(&stream) => output.map_err(NoAnswer::Stop)?,
                sent = sending.send(&stream, content), if !sending.is_done() => {
                    sent.map_err(|error| NoAnswer::Stop(Stop::Content(error)))?;
                    continue;
                }
                late = until(deadline) => {
                    // Content may have moved in the meantime.
                    if sending.last_moved() + late > Instant::now() {
                        continue;
                    }
                    return Err(NoAnswer::Stop(Stop::TimedOut(late)));
                }
            };
            match output {
                Some(bytes) => reader.push(&bytes),
                None => self.stream = None,
            }
        }
    }

    /// Nobody waits for the answer any more; that one comes still tells that the
    /// address is back.
    fn leave(&mut self) {
        if let (Some(turn), Some(stream)) = (self.peer.turn.take(), self.stream.take()) {
            let limit = self.peer.shared.options.answer.unwrap_or(TRY_WAIT);
            tokio::spawn(attempt::wait_for_word(turn, stream, limit));
        }
    }

    fn turn(&mut self) -> &mut Turn {
        self.peer
            .turn
            .as_mut()
            .expect("present until the answer ends")
    }

    /// The rest of the content goes out also while the client takes no data.
    fn go_on_sending(&mut self, sending: Sending, content: Content) {
        if let Some(stream) = &self.stream {
            self.upload = Upload::start(sending, content, stream);
        }
    }

    /// The next output of the body.
    async fn read(&mut self) -> Result<Option<Bytes>, Stop> {
        let output = self.read_watched().await?;
        if output.is_none() {
            self.release();
        }
        Ok(output)
    }

    async fn read_watched(&mut self) -> Result<Option<Bytes>, Stop> {
        let Some(stream) = self.stream.clone() else {
            return Ok(None);
        };
        let pause = self.peer.shared.options.pause;
        let mut deadline = pause.map(|pause| (Instant::now() + pause, pause));
        loop {
            tokio::select! {
                biased;
                output = self.peer.receive(&stream) => return output,
                sent = self.upload.result() => match sent {
                    Ok(true) => self.upload = Upload::Done,
                    Ok(false) => self.upload = Upload::Refused,
                    Err(error) => return Err(Stop::Content(error)),
                },
                late = until(deadline) => match self.upload.last_moved() {
                    Some(moved) if moved + late > Instant::now() => {
                        deadline = Some((moved + late, late));
                    }
                    _ => return Err(Stop::TimedOut(late)),
                },
            }
        }
    }

    /// The connection is kept if it can be used again (C158).
    fn release(&mut self) {
        let stream = self.stream.take();
        self.peer.flush_errors();
        let clean = self.peer.shared.keep
            && matches!(self.upload, Upload::Done)
            && (self.peer.another == Another::Now || self.peer.incoming.is_at_boundary());
        if let (true, Some(stream), Some(turn)) = (clean, stream, self.peer.turn.take())
            && let Some(stream) = Arc::into_inner(stream)
        {
            turn.keep(stream.rest());
        }
    }
}

/// Whether another request may follow on the connection, as our own workers say
/// (`X-CGI-Keep`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Another {
    Never,
    /// When the answer has ended.
    Now,
    /// When a byte more has come.
    Later,
}

/// That byte.
const FREE: &[u8] = b"\n";

impl Another {
    fn of(field: Option<&HeaderValue>) -> Self {
        match field.map(HeaderValue::as_bytes) {
            Some(b"now") => Self::Now,
            Some(b"later") => Self::Later,
            _ => Self::Never,
        }
    }

    /// What came behind the answer.
    fn take(&mut self, behind: &[u8]) -> bool {
        let is_free = *self == Self::Later && behind == FREE;
        if is_free {
            *self = Self::Now;
        }
        is_free
    }
}

/// The application's side of an exchange.
struct Peer {
    shared: Arc<Shared>,
    subject: String,
    address: String,
    turn: Option<Turn>,
    incoming: Incoming,
    /// What came with the answer's first byte, from our own worker code.
    file: Option<OwnedFd>,
    /// The beginning of a line on standard error.
    errors: Vec<u8>,
    /// Some of an answer has come.
    heard: bool,
    /// What our own worker says of another request.
    another: Another,
}

impl Peer {
    /// The next output; `None` at the end. Dropping the future loses nothing.
    async fn receive(&mut self, stream: &Stream) -> Result<Option<Bytes>, Stop> {
        loop {
            if let Some(event) = self.incoming.next_event().map_err(Stop::Violation)? {
                match self.take(event)? {
                    Some(bytes) if bytes.is_empty() => continue,
                    output => return Ok(output),
                }
            }
            let Self { incoming, file, .. } = self;
            let file = (self.shared.trusted && !self.heard).then_some(file);
            let read = stream.receive(file, |bytes| {
                if !bytes.is_empty() {
                    incoming.push(bytes);
                }
            });
            match read.await {
                Ok(0) if self.incoming.ends_with_connection() => return Ok(None),
                Ok(0) => return Err(Stop::Closed(None)),
                Ok(_) => {}
                // A reset is a truncation (C176).
                Err(error) => return Err(Stop::Closed(Some(error))),
            }
        }
    }

    /// What an event is of the output: some, perhaps nothing, or its end.
    fn take(&mut self, event: Event) -> Result<Option<Bytes>, Stop> {
        let end = match event {
            Event::Stdout(bytes) => {
                self.hear();
                return Ok(Some(bytes));
            }
            Event::Stderr(bytes) => {
                self.hear();
                self.log_errors(&bytes);
                return Ok(Some(Bytes::new()));
            }
            Event::End(end) => end,
        };
        match end.protocol {
            ProtocolStatus::Complete => {}
            ProtocolStatus::Other(_) => {
                return Err(Stop::Violation("an unknown protocol status".into()));
            }
            rejected => return Err(Stop::Rejected(rejected)),
        }
        if end.status != 0 {
            self.note(&format!("exit status {}", end.status.cast_signed()));
        }
        Ok(None)
    }

    fn hear(&mut self) {
        self.heard = true;
        if let Some(turn) = &mut self.turn {
            turn.heard();
        }
    }

    fn note(&self, text: &str) {
        let text = format!("{}: {text}", self.address);
        self.shared.party(&self.subject).note(&text);
    }

    /// Whole lines go to the log (C153).
    fn log_errors(&mut self, bytes: &[u8]) {
        self.errors.extend_from_slice(bytes);
        while let Some(end) = self.errors.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.errors.drain(..=end).collect();
            self.log_line(&line[..end]);
        }
        while self.errors.len() > MAX_LINE_BYTES {
            let line: Vec<u8> = self.errors.drain(..MAX_LINE_BYTES).collect();
            self.log_line(&line);
        }
    }

    fn flush_errors(&mut self) {
        if !self.errors.is_empty() {
            let line = std::mem::take(&mut self.errors);
            self.log_line(&line);
        }
    }

    fn log_line(&self, line: &[u8]) {
        self.shared
            .log
            .gateway_line(self.shared.name, &self.subject, &self.address, line);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.peer.flush_errors();
        // Told where that is possible; the closed connection says it in any
        // case (C161).
        if self.peer.shared.protocol == Wire::FastCgi
            && matches!(self.upload, Upload::Done)
            && let Some(stream) = &self.stream
        {
            let _ = stream.try_write(&fastcgi::abort());
        }
        // One that has answered already would wait for another request.
        if self.peer.shared.protocol == Wire::Scgi
            && self.peer.shared.keep
            && matches!(self.upload, Upload::Done)
            && let Some(stream) = &self.stream
        {
            let _ = stream.try_write(scgi::GIVEN_UP);
        }
        // A worker that goes on although nobody waits for it must get no other
        // request meanwhile.
        if matches!(self.upload, Upload::Done)
            && let Some(turn) = self.peer.turn.take_if(|turn| turn.is_staffed())
            && let Some(stream) = self.stream.take().and_then(Arc::into_inner)
        {
            let limit = self.peer.shared.options.answer;
            let Shared { protocol, keep, .. } = *self.peer.shared;
            if keep || protocol == Wire::FastCgi {
                drop(stream);
                tokio::spawn(wait_for_next(turn, limit));
            } else {
                tokio::spawn(wait_for_end(turn, stream.rest(), limit));
            }
        }
    }
}

/// Holds the turn of a request that was given up until the worker has closed its
/// end. What the worker writes fails.
async fn wait_for_end(mut turn: Turn, stream: Resting, limit: Option<Duration>) {
    let give_up = limit.map(|limit| Instant::now() + limit);
    stream.take_no_more();
    while !stream.is_closed_by_peer() {
        if give_up.is_some_and(|give_up| Instant::now() > give_up) {
            turn.stuck();
            return;
        }
        sleep(LEFT_POLL).await;
    }
}

/// The same where an end of the answer is no end of the connection. Besides,
/// before they look for another request libfcgi (for 2 s) and php-cgi (for ever)
/// wait until we have closed our end; that of the worker can't be seen then. But
/// it is done when it comes for another connection, on which there is nothing.
async fn wait_for_next(mut turn: Turn, limit: Option<Duration>) {
    let give_up = limit.map(|limit| Instant::now() + limit);
    let Ok(next) = turn.connect().await.map(Stream::rest) else {
        return;
    };
    next.send_no_more();
    while !next.is_half_closed_by_peer() {
        if give_up.is_some_and(|give_up| Instant::now() > give_up) {
            turn.stuck();
            return;
        }
        sleep(LEFT_POLL).await;
    }
}

/// From the header to the response.
impl Exchange {
    async fn decide(mut self, head: &Parts, answer: Answer) -> Result<Outcome, Fault> {
        let Answer {
            mut reply,
            mut rest,
        } = answer;
        for warning in &reply.warnings {
            self.peer.note(warning);
        }
        if self.peer.shared.trusted
            && let Some(own) = reply.extensions.take()
        {
            if let Some(error) = own.get("x-cgi-error") {
                return Err(self.raised(error, own.get("x-cgi-trace")));
            }
            self.peer.another = Another::of(own.get("x-cgi-keep"));
            if let Some(range) = own.get("x-cgi-file") {
                return Ok(Outcome::Response(self.file(head, reply, range)?));
            }
        }
        if let Some(file) = reply.sendfile.take() {
            if self.peer.shared.options.sendfile {
                self.discard();
                return Ok(Outcome::SendFile(file, reply.status, reply.headers));
            }
            self.peer
                .note("X-Sendfile or the like is ignored; `--cgi-sendfile DIR` turns it on");
        }
        let bare_redirect =
            reply.kind == Kind::ClientRedirect && !reply.headers.contains_key(CONTENT_TYPE);
        if reply.content_length == Some(0) {
            self.peer.another.take(&rest);
        }
        if bare_redirect || reply.kind.is_local() {
            // What this is depends on whether a body follows (C93, C94, C99).
            rest = match (self.opening(rest).await?, &reply.kind) {
                (Some(body), _) => body,
                (None, Kind::LocalRedirect(target)) => {
                    let target = target.clone();
                    self.discard();
                    return Ok(Outcome::LocalRedirect(target, None));
                }
                (None, _) => {
                    self.discard();
                    return Ok(Outcome::Response(cgi::redirect(reply)));
                }
            };
        }
        Ok(Outcome::Response(self.document(head, reply, rest)))
    }

    /// The application raised an exception before its first byte.
    fn raised(&self, error: &HeaderValue, trace: Option<&HeaderValue>) -> Fault {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let party = self.peer.shared.party(&self.peer.subject);
        let trace = trace.and_then(|trace| decode(trace.as_bytes()).ok());
        let trace = trace.map(|trace| String::from_utf8_lossy(&trace).into_owned());
        let fault = format!("the application failed: {}", text(error));
        Fault::new(StatusCode::INTERNAL_SERVER_ERROR).because(Diagnosis {
            stderr: trace
                .unwrap_or_default()
                .lines()
                .map(|line| escape(line.as_bytes()))
                .collect(),
            ..party.diagnosis("exception", fault)
        })
    }

    /// The body is part of a file that came with the answer: `OFFSET LENGTH`.
    fn file(mut self, head: &Parts, reply: Reply, range: &HeaderValue) -> Result<Response, Fault> {
        let numbers = range.to_str().ok().and_then(|range| {
            let (offset, length) = range.split_once(' ')?;
            Some((offset.parse::<u64>().ok()?, length.parse::<u64>().ok()?))
        });
        let (Some((offset, length)), Some(file)) = (numbers, self.peer.file.take()) else {
            let party = self.peer.shared.party(&self.peer.subject);
            let fault = "no file came with an answer that announces one";
            let diagnosis = party.diagnosis("protocol", fault.into());
            return Err(Fault::new(StatusCode::BAD_GATEWAY).because(diagnosis));
        };
        let mut response = self.document(head, reply, Bytes::new());
        if !matches!(response.body(), Body::Empty) && head.method != Method::HEAD {
            *response.body_mut() = Body::File(FileBody {
                file: Arc::new(file.into()),
                offset,
                length,
            });
        }
        Ok(response)
    }

    /// How the body begins, if it does soon. White space alone is none.
    async fn opening(&mut self, rest: Bytes) -> Result<Option<Bytes>, Fault> {
        if self.peer.another != Another::Never {
            // Nothing that ends it would come; all of a short one is there.
            let is_none = rest.iter().all(u8::is_ascii_whitespace);
            return Ok((!is_none).then_some(rest));
        }
        let mut seen = rest;
        let brief = sleep(OPENING_WAIT);
        tokio::pin!(brief);
        while seen.iter().all(u8::is_ascii_whitespace) && seen.len() < READ_BYTES {
            let read = tokio::select! {
                biased;
                read = self.read() => read,
                () = &mut brief => return Ok(None),
            };
            match read {
                Ok(Some(more)) => seen = [&seen[..], &more].concat().into(),
                Ok(None) => return Ok(None),
                Err(stop) => {
                    let failed = self.failed(NoAnswer::Stop(stop), HeadReader::new());
                    let party = self.peer.shared.party(&self.peer.subject);
                    return Err(failed.fault(&party, &self.peer.address));
                }
            }
        }
        Ok(Some(seen))
    }

    fn document(mut self, head: &Parts, mut reply: Reply, rest: Bytes) -> Response {
        let bodiless = reply.is_bodiless(&head.method);
        let mut response = reply.take_response();
        if bodiless {
            // The rest of the output is read and thrown away (C112, C113). A body
            // all the same ends a connection that was to be kept.
            let resets = reply.status == StatusCode::RESET_CONTENT;
            let has_body = resets && reply.content_length != Some(0);
            if self.peer.another == Another::Never || !has_body {
                self.discard();
            }
            if head.method == Method::HEAD {
                *response.body_mut() = Body::stream(reply.content_length, Nothing);
            }
            return response;
        }
        let whole = reply.content_length.map(usize::try_from);
        if let Some(Ok(whole)) = whole
            && let Some(behind) = rest.get(whole..)
            && (behind.is_empty() && self.peer.another == Another::Now
                || self.peer.another.take(behind))
        {
            self.release();
            *response.body_mut() = Body::Bytes(rest.slice(..whole));
            return response;
        }
        let output = Output {
            exchange: Some(self),
            first: Some(rest).filter(|first| !first.is_empty()),
            left: reply.content_length,
            unchunk: reply.chunked.then(Unchunk::new),
        };
        *response.body_mut() = Body::stream(reply.content_length, output);
        response
    }

    /// Reads to the end of an answer that nobody wants, if it is short, so that
    /// the connection can be used again.
    fn discard(mut self) {
        if self.peer.another == Another::Now {
            return self.release();
        }
        let staffed = self.peer.turn.as_ref().is_some_and(Turn::is_staffed);
        if self.stream.is_none() || !self.peer.shared.keep && !staffed {
            return;
        }
        // Mostly the end has come together with the rest.
        while let Ok(Some(event)) = self.peer.incoming.next_event() {
            match self.peer.take(event) {
                Ok(Some(_)) => {}
                Ok(None) => return self.release(),
                Err(_) => return,
            }
        }
        tokio::spawn(async move {
            let reading = async {
                let mut room = DRAIN_BYTES;
                while let Ok(Some(bytes)) = self.read().await {
                    if self.peer.another.take(&bytes) {
                        return self.release();
                    }
                    match room.checked_sub(bytes.len()) {
                        Some(left) => room = left,
                        None => return,
                    }
                }
            };
            // Otherwise it is closed.
            let _ = timeout(DRAIN_WAIT, reading).await;
        });
    }

    fn failed(&mut self, no_answer: NoAnswer, reader: HeadReader) -> Failed {
        let invalid = match no_answer {
            NoAnswer::Stop(stop) => return self.stopped(stop),
            NoAnswer::Ended if !self.peer.heard => return self.stopped(Stop::Closed(None)),
            NoAnswer::Ended => reader.end(),
            NoAnswer::Invalid(invalid) => invalid,
        };
        Failed::bad_gateway(invalid.reason, invalid.message)
    }

    fn stopped(&mut self, stop: Stop) -> Failed {
        match stop {
            Stop::TimedOut(limit) => Failed::late(limit.as_secs_f32()),
            Stop::Content(error) => Failed::of_content(&error),
            Stop::Closed(error) => {
                let failed = Failed::closed(error.as_ref());
                Failed {
                    hint: self.hint_for_silence(),
                    ..failed
                }
            }
            Stop::Violation(what) => Failed {
                hint: Some(format!(
                    "check that it speaks {} on this address",
                    self.peer.shared.protocol.name()
                )),
                ..Failed::bad_gateway("protocol", what)
            },
            Stop::Rejected(status) => rejected(status),
        }
    }

    /// uWSGI gives no answer to what is too long for it (C178).
    fn hint_for_silence(&self) -> Option<String> {
        let is_uwsgi = matches!(self.peer.shared.protocol, Wire::Uwsgi(..));
        let is_long = self.block_bytes > uwsgi::USUAL_BLOCK_BYTES;
        (is_uwsgi && is_long && !self.peer.heard).then(|| {
            format!(
                "the request's header takes {} bytes; start uWSGI with `--buffer-size 65535`",
                self.block_bytes
            )
        })
    }
}

/// C154.
fn rejected(status: ProtocolStatus) -> Failed {
    let failed = match status {
        ProtocolStatus::Overloaded => Failed {
            retry_after: Some(RETRY_AFTER),
            ..Failed::bad_gateway("overloaded", "it says that it is overloaded")
        },
        ProtocolStatus::CannotMultiplex => Failed::bad_gateway(
            "cannot-multiplex",
            "it says that it takes no second request on a connection",
        ),
        _ => Failed::bad_gateway("unknown-role", "it says that it is no responder"),
    };
    Failed {
        progress: Progress::Rejected,
        ..failed
    }
}

/// The application's output as the body of the response.
struct Output {
    exchange: Option<Exchange>,
    first: Option<Bytes>,
    /// Bytes still to come of the length that was announced.
    left: Option<u64>,
    unchunk: Option<Unchunk>,
}

impl Output {
    async fn piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            let whole = self.unchunk.as_ref().is_some_and(Unchunk::is_done);
            if whole || self.left == Some(0) {
                self.exchange.take()?.discard();
                return None;
            }
            let exchange = self.exchange.as_mut()?;
            let read = match self.first.take() {
                Some(first) => Ok(Some(first)),
                None => exchange.read().await,
            };
            let bytes = match read {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return self.end(),
                Err(stop) => return Some(Err(self.broken(stop))),
            };
            let bytes = match &mut self.unchunk {
                Some(unchunk) => match unchunk.push(bytes) {
                    Ok(pieces) => pieces.concat().into(),
                    Err(invalid) => {
                        return Some(Err(self.broken(Stop::Violation(invalid.message))));
                    }
                },
                None => self.cut(bytes),
            };
            if !bytes.is_empty() {
                return Some(Ok(bytes));
            }
        }
    }

    /// What goes beyond the announced length is thrown away and logged (C110).
    fn cut(&mut self, mut bytes: Bytes) -> Bytes {
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            if take < bytes.len()
                && let Some(exchange) = &mut self.exchange
                && !exchange.peer.another.take(&bytes[take..])
            {
                exchange
                    .peer
                    .note("more output than its Content-Length; the rest is left away");
            }
            bytes.truncate(take);
            *left -= take as u64;
        }
        bytes
    }

    /// Whole, or visibly cut off (C110).
    fn end(&mut self) -> Option<Result<Bytes, BodyError>> {
        let exchange = self.exchange.take()?;
        if self.left.is_none() && self.unchunk.is_none() {
            return None;
        }
        exchange
            .peer
            .note("less output than it announced; the connection is cut");
        Some(Err(BodyError::Truncated))
    }

    /// The rest can't be had; the client sees that (C122, C155).
    fn broken(&mut self, stop: Stop) -> BodyError {
        let Some(mut exchange) = self.exchange.take() else {
            return BodyError::Truncated;
        };
        let what = match stop {
            Stop::TimedOut(limit) => {
                exchange.turn().stuck();
                format!("no output for {} s", limit.as_secs_f32())
            }
            Stop::Content(error) => {
                exchange.peer.note(&format!("given up: {error}"));
                return error;
            }
            Stop::Closed(None) => "it closed the connection before the end of its answer".into(),
            Stop::Closed(Some(error)) => {
                format!(
                    "the connection broke before the end of its answer: {}",
                    plain(&error)
                )
            }
            Stop::Violation(what) => what,
            Stop::Rejected(_) => "it rejects a request that it has begun to answer".into(),
        };
        exchange
            .peer
            .note(&format!("{what}; the answer is cut off"));
        exchange.turn().misbehaved(&what);
        BodyError::Truncated
    }
}

impl Source for Output {
    fn next(&mut self) -> Next<'_> {
        Box::pin(self.piece())
    }
}
