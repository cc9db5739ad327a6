//! One request to an application that speaks HTTP itself (RFC 9110 §7.6: what a
//! gateway does to a message). The library `hyper` reads and writes the
//! protocol; this decides what is passed on.

use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::application::Options;
use super::attempt::{Failed, Party, Place, Progress, Rounds, TRY_WAIT};
use super::backend::{self, Address, Backend, Kept, KeptState, Turn};
use super::cgi::{Nothing, Outcome};
use super::content::Content;
use super::listening::Listening;
use super::reply::MAX_INTERIM_BYTES;
use super::route::{Protocol, Target};
use super::sticky::{Pull, Sticky};
use super::variables::Facts;
use crate::error::{Fault, StartError};
use crate::log::Log;
use crate::message::{
    Body, BodyError, CanSwitch, Channel, Connection, Interim, Next, Proxied, Reason, Response,
    Source, Tunnel,
};
use crate::target::{UrlPath, encode_segment};

/// Fields of an answer's header.
const MAX_FIELDS: usize = 1000;
/// How long a kept connection may take to be ready for a request.
const MOMENT: Duration = Duration::from_millis(50);
/// A request that has come through so many servers of this kind goes in circles.
const MAX_HOPS: usize = 16;
/// About what there is of an answer beside its fields.
const STATUS_LINE_BYTES: usize = 20;
/// What is read at once from a connection that has left HTTP.
const TUNNEL_BYTES: usize = 16 << 10;

/// What this server adds to Via.
const PSEUDONYM: &[u8] = b"1.1 serve-here";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const PROXY: HeaderName = HeaderName::from_static("proxy");

/// An application behind a route.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    protocol: Protocol,
    backend: Arc<Backend<Sender>>,
    tls: Option<TlsConnector>,
    /// What the pattern's part of the path becomes.
    path: Option<UrlPath>,
    /// The Host field, and the name in the application's certificate.
    host: Option<String>,
    sticky: Option<Sticky>,
    options: Options,
    log: Log,
}

/// The sending half of a connection. Its other half is a task of the thread's
/// runtime, which may end before another thread's.
struct Sender {
    requests: SendRequest<Outgoing>,
    thread: ThreadId,
}

impl Sender {
    /// Right after an answer the library may need a moment, in which it may also
    /// find the connection closed. It needs longer where the application has not
    /// read all of a request that it has answered.
    async fn ready(mut self) -> Option<Self> {
        match timeout(MOMENT, self.requests.ready()).await {
            Ok(Ok(())) => Some(self),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Kept for Sender {
    fn state(&self) -> KeptState {
        if self.requests.is_closed() {
            KeptState::Closed
        } else if self.thread == thread::current().id() {
            KeptState::Usable
        } else {
            KeptState::NotHere
        }
    }
}

impl Proxy {
    /// `connect` is the time for a connection to be made.
    pub fn new(
        target: Target,
        connect: Duration,
        options: Options,
        log: Log,
    ) -> Result<Self, StartError> {
        let dialling = backend::Options {
            connect,
            connections: target.connections.unwrap_or(usize::MAX),
            keep: target.keep,
            check: target.check,
            wait: connect,
            sticky: target.sticky.is_some(),
            staffed: false,
        };
        let protocol = target.protocol;
        let tls = match protocol {
            Protocol::Https => Some(connector()?),
            _ => None,
        };
        let shared = Shared {
            protocol,
            backend: Backend::new(protocol.name(), target.addresses, dialling, log.clone()),
            tls,
            path: target.path,
            host: target.host,
            sticky: target.sticky,
            options,
            log,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Asks the application of `facts`, with `body` as the content; like
    /// [`Application::run`](super::application::Application::run).
    pub async fn run(&self, facts: Facts<'_>, body: Body) -> Result<Outcome, Fault> {
        let shared = &self.shared;
        let subject = &facts.script.subject;
        let party = shared.party(subject);
        if hops(&facts.head.headers) >= MAX_HOPS {
            let what = format!("it has come through {MAX_HOPS} servers: a route leads back to one");
            let diagnosis = party.diagnosis("loop", what);
            return Err(Fault::new(StatusCode::LOOP_DETECTED).because(diagnosis));
        }
        let content = Content::as_it_comes(body, shared.options.max_body);
        let content = content.map_err(|error| party.content_fault(&error))?;
        let request = shared.request(&facts, content.is_there(), content.length());
        let content = Arc::new(AsyncMutex::new(content));
        let sticky = shared.sticky.as_ref();
        let pull = sticky.map_or(Pull::Anywhere, |sticky| sticky.pull(&facts));
        let mut rounds = Rounds::new(party, request.method.is_idempotent(), pull);
        loop {
            let turn = rounds.turn(&shared.backend).await?;
            let mut place = Place::of(&turn);
            let asked = shared.ask(turn, &mut place, facts, &request, &content);
            let failed = match asked.await {
                Ok(mut response) => {
                    if let Some(sticky) = sticky {
                        let here = shared.backend.hash(place.index);
                        sticky.mark(response.headers_mut(), &facts, pull, here);
                    }
                    return Ok(Outcome::Response(response));
                }
                Err(failed) => failed,
            };
            let again = rounds.go_on(&failed, &place, shared.backend.size());
            if !again || !content.lock().await.rewind() {
                return Err(failed.fault(&party, &place.address));
            }
            rounds.note(&failed, &place.address);
        }
    }
}

/// With the certificates that the system trusts, or those of `SSL_CERT_FILE`.
fn connector() -> Result<TlsConnector, StartError> {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that can't be read is one that is not trusted.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(StartError::failed(
            "--route: the system trusts no certificates, so https can't be used",
        )
        .hint("apt-get install ca-certificates, or set SSL_CERT_FILE"));
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What goes to the application, whichever address it is.
struct Outbound {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// The client wants to leave HTTP.
    switches: bool,
}

impl Shared {
    fn party<'a>(&'a self, subject: &'a str) -> Party<'a> {
        Party {
            name: self.protocol.name(),
            subject,
            log: &self.log,
        }
    }

    fn request(&self, facts: &Facts<'_>, has_content: bool, length: Option<u64>) -> Outbound {
        let head = facts.head;
        let switches = !has_content
            && head.extensions.get::<CanSwitch>().is_some()
            && connection_options(&head.headers).any(|option| option == "upgrade")
            && head.headers.contains_key(UPGRADE);
        let mut headers = head.headers.clone();
        let protocol = headers.get(UPGRADE).cloned();
        strip(&mut headers);
        strip_request(&mut headers);
        if !facts.pass_authorization {
            headers.remove(AUTHORIZATION);
        }
        if let (true, Some(protocol)) = (switches, protocol) {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol);
        }
        // A target that names a host does so instead of the field (RFC 9112 §3.2.2).
        let named = facts.original.authority.as_deref();
        let named = named.and_then(|name| HeaderValue::from_bytes(name).ok());
        if let Some(name) = named {
            headers.insert(HOST, name);
        }
        let host = headers.get(HOST).cloned();
        let proxy = head.extensions.get::<Proxied>();
        let nearest = proxy.map_or(facts.connection, |Proxied(proxy)| proxy);
        let is_believed = proxy.is_some() || nearest.remote.ip().to_canonical().is_loopback();
        forwarded(&mut headers, is_believed, nearest, host.as_ref());
        let scheme = HeaderValue::from_static(facts.connection.scheme());
        headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
        if let Some(name) = &self.host
            && let Ok(name) = HeaderValue::from_str(name)
        {
            headers.insert(HOST, name);
        } else if host.is_none() {
            // HTTP/1.0 clients may send none; HTTP/1.1 demands one.
            headers.insert(HOST, HeaderValue::from_static(""));
        }
        headers.remove(CONTENT_LENGTH);
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        let method = match (&head.method, facts.redirected) {
            (method, None) => method.clone(),
            (&Method::HEAD, _) => Method::HEAD,
            // A local redirect is fetched with GET (C96).
            _ => Method::GET,
        };
        Outbound {
            method,
            uri: uri(facts, self.path.as_ref()),
            headers,
            switches,
        }
    }
}

/// The path as the client sent it, as long as nobody can take it for another
/// one than was looked at here.
fn uri(facts: &Facts<'_>, path: Option<&UrlPath>) -> Uri {
    let target = facts.target;
    let raw = match target.raw.iter().position(|&b| b == b'?') {
        Some(at) => &target.raw[..at],
        None => &target.raw[..],
    };
    let mut text = match path {
        Some(base) => {
            let mut text = base.encoded();
            let info = facts.script.path_info.as_deref().unwrap_or_default();
            let info = info.strip_prefix(b"/").unwrap_or(info);
            if !info.is_empty() && !text.ends_with('/') {
                text.push('/');
            }
            let parts: Vec<String> = info.split(|&b| b == b'/').map(encode_segment).collect();
            text + &parts.join("/")
        }
        None if is_plain(raw) => escaped(raw),
        None => target.path.encoded(),
    };
    if target.raw.contains(&b'?') {
        text.push('?');
        text.push_str(&escaped(&target.query));
    }
    PathAndQuery::try_from(text).map_or_else(|_| Uri::from_static("/"), Uri::from)
}

/// Neither empty nor dot segments, so that it means what it says.
fn is_plain(path: &[u8]) -> bool {
    let Ok(parsed) = UrlPath::parse(path) else {
        return false;
    };
    let parts = path.split(|&b| b == b'/').skip(1).count();
    parts == (parsed.segments.len() + usize::from(parsed.trailing_slash)).max(1)
}

/// With escapes for the bytes that a URI can't hold.
fn escaped(text: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for &byte in text {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// Through how many servers of this kind a request has come (RFC 9110 §7.6.3).
fn hops(headers: &HeaderMap) -> usize {
    let fields = headers.get_all(VIA).iter();
    fields
        .flat_map(|field| field.as_bytes().split(|&b| b == b','))
        .filter(|hop| hop.trim_ascii() == PSEUDONYM)
        .count()
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let fields = headers.get_all(CONNECTION).iter();
    fields
        .flat_map(|field| field.as_bytes().split(|&b| b == b','))
        .map(|option| String::from_utf8_lossy(option.trim_ascii()).to_ascii_lowercase())
}

/// Takes out what belongs to one connection (RFC 9110 §7.6.1).
fn strip(headers: &mut HeaderMap) {
    let named: Vec<String> = connection_options(headers).collect();
    for name in named {
        // The message would not mean the same without these.
        if !matches!(&name[..], "host" | "content-length" | "content-type") {
            headers.remove(name);
        }
    }
    for name in [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
}

/// Takes out of a request what is meant for this server, and what an
/// application might take for something else (C28, C30, C32, C163).
fn strip_request(headers: &mut HeaderMap) {
    for name in [EXPECT, PROXY_AUTHORIZATION, PROXY] {
        headers.remove(name);
    }
    let plain = |name: &&HeaderName| {
        let mut bytes = name.as_str().bytes();
        !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let odd: Vec<HeaderName> = headers.keys().filter(plain).cloned().collect();
    for name in odd {
        headers.remove(name);
    }
}

/// Who asks, for an application that sees only this server (RFC 7239). What the
/// one who is `nearest` says of that itself stays only if it is believed: on
/// this machine, where it may be a proxy, or by `--trust-proxy` (C192).
fn forwarded(
    headers: &mut HeaderMap,
    is_believed: bool,
    nearest: &Connection,
    host: Option<&HeaderValue>,
) {
    let client = nearest.remote.ip().to_canonical();
    if !is_believed {
        for name in [
            FORWARDED,
            X_FORWARDED_FOR,
            X_FORWARDED_HOST,
            X_FORWARDED_PROTO,
            X_REAL_IP,
        ] {
            headers.remove(name);
        }
    }
    let node = if client.is_ipv6() {
        format!("\"[{client}]\"")
    } else {
        client.to_string()
    };
    let mut element = format!("for={node};proto={}", nearest.scheme()).into_bytes();
    if let Some(host) = host {
        // A host holds nothing that ends a quoted string.
        element.extend_from_slice(b";host=\"");
        element.extend_from_slice(host.as_bytes());
        element.push(b'"');
    }
    append(headers, FORWARDED, &element);
    append(headers, X_FORWARDED_FOR, client.to_string().as_bytes());
    append(headers, VIA, PSEUDONYM);
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host.clone());
    }
}

/// One more element of a list, in one field.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &[u8]) {
    let before = headers.get_all(&name).iter();
    let mut all: Vec<&[u8]> = before.map(HeaderValue::as_bytes).collect();
    all.push(element);
    if let Ok(value) = HeaderValue::from_bytes(&all.join(&b", "[..])) {
        headers.insert(name, value);
    }
}

impl Shared {
    async fn ask(
        self: &Arc<Self>,
        mut turn: Turn<Sender>,
        place: &mut Place,
        facts: Facts<'_>,
        outbound: &Outbound,
        content: &Arc<AsyncMutex<Content>>,
    ) -> Result<Response, Failed> {
        // As in `application`: what can't be run twice gets a new connection.
        let kept = if outbound.method.is_idempotent() && !outbound.switches {
            match turn.reuse() {
                Some(sender) => sender.ready().await,
                None => None,
            }
        } else {
            None
        };
        let reused = kept.is_some();
        let mut sender = if let Some(sender) = kept {
            sender
        } else {
            // Its room is not needed while the answer is waited for.
            let connected =
                Box::pin(self.connect(&mut turn, outbound.method.is_idempotent())).await;
            *place = Place::of(&turn);
            connected?
        };
        let (outgoing, upload) = Upload::start(content).await;
        let mut request = http::Request::new(outgoing);
        *request.method_mut() = outbound.method.clone();
        *request.uri_mut() = outbound.uri.clone();
        *request.headers_mut() = outbound.headers.clone();
        relay_interims(&mut request, facts.head);
        let mut answer = Box::pin(sender.requests.try_send_request(request));
        // Only what goes out as a whole can be left to itself.
        let repeatable = outbound.method.is_idempotent() && upload.is_done();
        let brief = turn.try_time(self.options.answer).filter(|_| repeatable);
        let limit = brief.or(self.options.answer);
        let answered = upload.wait_for(&mut answer, limit).await;
        let response = match answered {
            Ok(response) => response,
            Err(Trouble::Late(time)) if brief == Some(time) => {
                let limit = self.options.answer.unwrap_or(TRY_WAIT);
                tokio::spawn(async move {
                    // That an answer comes still tells that the address is back.
                    match timeout(limit, answer).await {
                        Ok(Ok(_answer)) => turn.succeeded(),
                        Ok(Err(_)) | Err(_) => turn.hung("no answer to a try"),
                    }
                    drop(sender);
                });
                return Err(Failed::in_vain(time));
            }
            Err(trouble) => {
                let mut failed = no_answer(trouble, &upload);
                failed.weigh_silence(&turn);
                failed.stale = reused && failed.reason == "closed";
                failed.blame(&mut turn);
                return Err(failed);
            }
        };
        turn.succeeded();
        let exchange = Exchange {
            shared: Arc::clone(self),
            subject: facts.script.subject.clone(),
            address: turn.address().to_string(),
            sender,
            turn,
            upload,
        };
        exchange.respond(facts.head, outbound, response).await
    }

    async fn connect(&self, turn: &mut Turn<Sender>, repeatable: bool) -> Result<Sender, Failed> {
        let stream = match turn.connect().await {
            Ok(stream) => stream,
            Err(trouble) => return Err(Failed::to_connect(turn, &trouble)),
        };
        turn.notice_silence(&stream, true, repeatable);
        let shaken = match &self.tls {
            None => handshake(stream).await,
            Some(tls) => {
                let name = self.server_name(turn.address());
                let name = name.ok_or_else(|| {
                    Failed::bad_gateway("tls", "the address is no name that a certificate can have")
                })?;
                match timeout(turn.patience(), tls.connect(name, stream)).await {
                    Ok(Ok(stream)) => handshake(stream).await,
                    Ok(Err(error)) => {
                        let mut failed = Failed::bad_gateway("tls", format!("TLS: {error}"));
                        failed.progress = Progress::NotSent;
                        failed.blame(turn);
                        return Err(failed);
                    }
                    Err(_late) => {
                        return Err(Failed::to_connect(turn, &backend::Trouble::Late));
                    }
                }
            }
        };
        shaken.map_err(|error| Failed::bad_gateway("closed", error.to_string()))
    }

    fn server_name(&self, address: &Address) -> Option<ServerName<'static>> {
        let name = match (&self.host, address) {
            (Some(host), _) => host.rsplit_once(':').map_or(&host[..], |(host, _)| host),
            (None, Address::Tcp(host, _)) => host,
            (None, Address::Unix(_) | Address::Worker(..)) => return None,
        };
        ServerName::try_from(name.to_owned()).ok()
    }
}

fn no_answer(trouble: Trouble, upload: &Upload) -> Failed {
    if let Some(error) = upload.failure() {
        return Failed::of_content(&error);
    }
    let (error, sent) = match trouble {
        Trouble::Late(limit) => return Failed::late(limit.as_secs_f32()),
        Trouble::Error { error, sent } => (error, sent),
    };
    let progress = if sent {
        Progress::Sent
    } else {
        Progress::NotSent
    };
    if error.is_parse() {
        return Failed {
            hint: Some("check that it speaks HTTP on this address".into()),
            ..Failed::bad_gateway(
                "protocol",
                format!("what it answers is no HTTP: {}", whole(&error)),
            )
        };
    }
    let cause = std::error::Error::source(&error);
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    Failed {
        progress,
        ..Failed::closed(cause)
    }
}

/// What the library says, and what the system had said to it.
fn whole(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Starts HTTP on a connection; the task that moves its bytes ends with it.
async fn handshake<T>(stream: T) -> hyper::Result<Sender>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(Listening::new(stream));
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_FIELDS);
    let (requests, connection) = builder.handshake(io).await?;
    tokio::spawn(async move {
        // What ends it shows where its requests are waited for.
        let _ = connection.with_upgrades().await;
    });
    Ok(Sender {
        requests,
        thread: thread::current().id(),
    })
}

/// 1xx answers go on to a client that can take them.
fn relay_interims(request: &mut http::Request<Outgoing>, head: &Parts) {
    let Some(client) = head.extensions.get::<Interim>() else {
        return;
    };
    let client = client.clone();
    let relayed = AtomicUsize::new(0);
    hyper::ext::on_informational(request, move |interim| {
        let length = interim.headers().iter();
        let length = length.map(|(name, value)| name.as_str().len() + value.len());
        let length = STATUS_LINE_BYTES + length.sum::<usize>();
        let before = relayed.fetch_add(length, Ordering::Relaxed);
        // 100 is this server's own to say, 101 is no interim answer.
        let is_one = matches!(interim.status().as_u16(), 102..=199);
        if is_one && before + length <= MAX_INTERIM_BYTES {
            let mut relayed = http::Response::new(());
            *relayed.status_mut() = interim.status();
            *relayed.headers_mut() = interim.headers().clone();
            strip(relayed.headers_mut());
            client.send(relayed);
        }
    });
}

/// Why there is no answer.
enum Trouble {
    Late(Duration),
    Error {
        error: hyper::Error,
        /// Some of the request may have gone out.
        sent: bool,
    },
}

/// The request's content on its way.
struct Upload {
    /// `None`: all of it went with the request.
    task: Option<JoinHandle<()>>,
    state: Arc<Mutex<UploadState>>,
}

struct UploadState {
    moved: Instant,
    failure: Option<BodyError>,
}

impl Upload {
    async fn start(content: &Arc<AsyncMutex<Content>>) -> (Outgoing, Self) {
        let state = Arc::new(Mutex::new(UploadState {
            moved: Instant::now(),
            failure: None,
        }));
        let mut held = Arc::clone(content).lock_owned().await;
        held.want();
        let without_task = |outgoing, state| (outgoing, Self { task: None, state });
        if !held.is_there() {
            return without_task(Outgoing::Whole(None), state);
        }
        let length = held.length();
        let mut at_hand = Vec::new();
        if held.is_at_hand() {
            while let Some(piece) = held.next_at_hand() {
                at_hand.push(piece);
            }
            let whole = match at_hand.len() {
                1 => at_hand.remove(0),
                _ => at_hand.concat().into(),
            };
            return without_task(Outgoing::Whole(Some(whole)), state);
        }
        let (pieces, receiver) = mpsc::channel(1);
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Some(piece) = held.next().await {
                let piece = piece.map_err(|error| {
                    let broken = std::io::Error::other("the request's content broke off");
                    lock(&shared).failure = Some(error);
                    broken
                });
                let broken = piece.is_err();
                if pieces.send(piece).await.is_err() || broken {
                    return;
                }
                lock(&shared).moved = Instant::now();
            }
        });
        let outgoing = Outgoing::Pieces {
            receiver,
            left: length,
        };
        let upload = Self {
            task: Some(task),
            state,
        };
        (outgoing, upload)
    }

    fn failure(&self) -> Option<BodyError> {
        lock(&self.state).failure.take()
    }

    fn is_done(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The answer, unless nothing has moved for `limit`.
    async fn wait_for(
        &self,
        answer: impl Future<
            Output = Result<
                http::Response<Incoming>,
                hyper::client::conn::TrySendError<http::Request<Outgoing>>,
            >,
        >,
        limit: Option<Duration>,
    ) -> Result<http::Response<Incoming>, Trouble> {
        tokio::pin!(answer);
        loop {
            let moved = lock(&self.state).moved;
            let late = async {
                match limit {
                    Some(limit) => sleep_until(moved + limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answered = &mut answer => {
                    return answered.map_err(|mut trouble| Trouble::Error {
                        sent: trouble.take_message().is_none(),
                        error: trouble.into_error(),
                    });
                }
                () = late => {
                    if lock(&self.state).moved == moved {
                        return Err(Trouble::Late(limit.unwrap_or_default()));
                    }
                }
            }
        }
    }
}

fn lock(state: &Mutex<UploadState>) -> std::sync::MutexGuard<'_, UploadState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A request's content as the library takes it.
enum Outgoing {
    Whole(Option<Bytes>),
    Pieces {
        receiver: mpsc::Receiver<Result<Bytes, std::io::Error>>,
        /// In bytes, where it is known.
        left: Option<u64>,
    },
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(whole) => Poll::Ready(whole.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces { receiver, left } => receiver.poll_recv(cx).map(|piece| {
                let piece = piece?;
                if let (Ok(piece), Some(left)) = (&piece, left) {
                    *left = left.saturating_sub(piece.len() as u64);
                }
                Some(piece.map(Frame::data))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => {
                SizeHint::with_exact(whole.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Pieces {
                left: Some(left), ..
            } => SizeHint::with_exact(*left),
            Self::Pieces { left: None, .. } => SizeHint::default(),
        }
    }
}

/// A request that is answered. Dropped before the end, it closes the
/// connection.
struct Exchange {
    shared: Arc<Shared>,
    subject: String,
    address: String,
    sender: Sender,
    turn: Turn<Sender>,
    upload: Upload,
}

impl Exchange {
    fn note(&self, text: &str) {
        let text = format!("{}: {text}", self.address);
        self.shared.party(&self.subject).note(&text);
    }

    async fn respond(
        self,
        head: &Parts,
        outbound: &Outbound,
        mut answer: http::Response<Incoming>,
    ) -> Result<Response, Failed> {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Box::pin(self.switch(outbound, answer)).await;
        }
        if let Some(what) = unclear(&answer) {
            return Err(Failed::bad_gateway("protocol", what));
        }
        let reason = answer.extensions_mut().remove::<ReasonPhrase>();
        let announced = answer.headers().get(CONTENT_LENGTH).cloned();
        let (parts, incoming) = answer.into_parts();
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        strip(response.headers_mut());
        if let Some(reason) = reason {
            let reason = Bytes::copy_from_slice(reason.as_bytes());
            response.extensions_mut().insert(Reason(reason));
        }
        let bodiless = matches!(parts.status.as_u16(), 204 | 304);
        if head.method == Method::HEAD || bodiless {
            let length = announced.and_then(|length| length.to_str().ok()?.parse().ok());
            if bodiless {
                self.keep();
            } else {
                // Gunicorn sends the content after the header of a HEAD, too; on
                // a kept connection that would be the next answer. So it closes.
                *response.body_mut() = Body::stream(length, Nothing);
            }
            return Ok(response);
        }
        let length = incoming.size_hint().exact();
        let answer = Answer {
            exchange: Some(self),
            incoming,
        };
        *response.body_mut() = Body::stream(length, answer);
        Ok(response)
    }

    /// For the next request, if the content of this one is out.
    fn keep(self) {
        let Self {
            turn,
            sender,
            upload,
            ..
        } = self;
        if upload.is_done() {
            turn.keep(sender);
        }
    }

    /// The connection leaves HTTP (RFC 9110 §7.8).
    async fn switch(
        self,
        outbound: &Outbound,
        answer: http::Response<Incoming>,
    ) -> Result<Response, Failed> {
        if !outbound.switches {
            return Err(Failed::bad_gateway(
                "protocol",
                "it switches protocols unasked",
            ));
        }
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        let upgraded = hyper::upgrade::on(answer).await;
        let upgraded =
            upgraded.map_err(|error| Failed::bad_gateway("closed", error.to_string()))?;
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        let (sink, mut client) = mpsc::channel::<Bytes>(1);
        let (pieces, source) = mpsc::channel(1);
        let turn = self.turn;
        tokio::spawn(async move {
            while let Some(piece) = client.recv().await {
                if to.write_all(&piece).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
            // The client has closed its side; the other may have more to say.
            let _ = to.shutdown().await;
        });
        tokio::spawn(async move {
            let mut buffer = vec![0; TUNNEL_BYTES];
            loop {
                let read = tokio::select! {
                    read = from.read(&mut buffer) => read,
                    // Nobody listens any more.
                    () = pieces.closed() => break,
                };
                let Ok(read @ 1..) = read else { break };
                let piece = Bytes::copy_from_slice(&buffer[..read]);
                if pieces.send(Ok(piece)).await.is_err() {
                    break;
                }
            }
            drop(turn);
        });
        *response.body_mut() = Body::Tunnel(Tunnel {
            source: Box::new(Channel(source)),
            sink,
        });
        Ok(response)
    }
}

/// Why an answer that the library takes can't be passed on: its status is none
/// (RFC 9110 §15), or its body is coded in ways that nobody undoes here, so that
/// the client would take it for something else.
fn unclear(answer: &http::Response<Incoming>) -> Option<String> {
    if answer.status().as_u16() > 599 {
        return Some(format!("its status is {}", answer.status().as_u16()));
    }
    let mut codings = answer.headers().get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next()?;
    let is_plain = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    (!is_plain).then(|| format!("it sends a Transfer-Encoding that can't be undone: {coding:?}"))
}

/// The application's content as the body of the response.
struct Answer {
    exchange: Option<Exchange>,
    incoming: Incoming,
}

impl Answer {
    async fn piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            let exchange = self.exchange.as_mut()?;
            let incoming = &mut self.incoming;
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx));
            let frame = match exchange.shared.options.pause {
                None => frame.await,
                Some(pause) => match timeout(pause, frame).await {
                    Ok(frame) => frame,
                    // An upload that goes on is a sign of life.
                    Err(_) if lock(&exchange.upload.state).moved.elapsed() < pause => continue,
                    Err(_) => {
                        let seconds = pause.as_secs_f32();
                        return Some(Err(self.broken(&format!("no output for {seconds} s"))));
                    }
                },
            };
            match frame {
                None => {
                    self.exchange.take()?.keep();
                    return None;
                }
                Some(Ok(frame)) => {
                    // Trailers are of no use to the clients here.
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Some(Ok(data));
                    }
                }
                Some(Err(error)) => {
                    if let Some(error) = exchange.upload.failure() {
                        exchange.note(&format!("given up: {error}"));
                        return Some(Err(error));
                    }
                    let text = format!("the end of its answer is missing: {}", whole(&error));
                    return Some(Err(self.broken(&text)));
                }
            }
        }
    }

    /// The rest can't be had; the client sees that.
    fn broken(&mut self, what: &str) -> BodyError {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.note(&format!("{what}; the answer is cut off"));
            exchange.turn.misbehaved(what);
        }
        BodyError::Truncated
    }
}

impl Source for Answer {
    fn next(&mut self) -> Next<'_> {
        Box::pin(self.piece())
    }
}
