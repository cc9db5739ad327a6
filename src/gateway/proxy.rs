//! One request to an application that speaks HTTP itself (RFC 9110 §7.6: what a
//! gateway does to a message).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::application::Options;
use super::attempt::{
    self, Failed, Party, Place, Progress, Rounds, TIMEOUT, TRY_WAIT, plain, until,
};
use super::backend::{self, Address, Backend, Turn};
use super::cgi::{Nothing, Outcome};
use super::content::Content;
use super::http::{self as answer, Arrived, Head, Taken};
use super::reply::MAX_INTERIM_BYTES;
use super::route::{Protocol, Target};
use super::sending::{Framing, Sending, Upload};
use super::sticky::{Pull, Sticky};
use super::stream::{Stream, Tls};
use super::trust;
use super::variables::Facts;
use crate::engine::framing;
use crate::error::{Fault, StartError};
use crate::log::Log;
use crate::message::{
    Body, BodyError, CanSwitch, Channel, Connection, Interim, Next, Proxied, Reason, Response,
    Source, Tunnel,
};
use crate::target::{UrlPath, encode_segment};

/// Few applications that speak HTTP have a process for each connection.
const PATIENCE: Duration = Duration::from_millis(50);
/// A request that has come through so many servers of this kind goes in circles.
const MAX_HOPS: usize = 16;
/// About what there is of an answer beside its fields.
const STATUS_LINE_BYTES: usize = 20;

/// What this server adds to Via.
const PSEUDONYM: &[u8] = b"1.1 serve-here";
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
/// What proxies say of a client, and applications believe.
const FORWARDING: [HeaderName; 10] = [
    FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PREFIX,
    X_FORWARDED_PROTO,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-ssl"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-real-ip"),
];
const PROXY: HeaderName = HeaderName::from_static("proxy");

/// An application behind a route.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    protocol: Protocol,
    backend: Arc<Backend>,
    tls: Option<Arc<ClientConfig>>,
    /// What the pattern's part of the path becomes.
    path: Option<UrlPath>,
    /// The Host field, and the name in the application's certificate.
    host: Option<String>,
    sticky: Option<Sticky>,
    /// It gets a request when all of the content is here.
    whole: bool,
    options: Options,
    log: Log,
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
            patience: PATIENCE,
            sticky: target.sticky.is_some(),
            staffed: false,
        };
        let protocol = target.protocol;
        let tls = match protocol {
            Protocol::Https => Some(Arc::new(trust::system()?)),
            _ => None,
        };
        let shared = Shared {
            protocol,
            backend: Backend::new(protocol.name(), target.addresses, dialling, log.clone()),
            tls,
            path: target.path,
            host: target.host,
            sticky: target.sticky,
            whole: target.whole.unwrap_or(false),
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
        let max_body = shared.options.max_body;
        let content = if shared.whole {
            Content::whole(body, max_body).await
        } else {
            Content::as_it_comes(body, max_body)
        };
        let mut content = content.map_err(|error| party.content_fault(&error))?;
        let request = shared.request(&facts, &content);
        let sticky = shared.sticky.as_ref();
        let pull = sticky.map_or(Pull::Anywhere, |sticky| sticky.pull(&facts));
        let answered = shared
            .ask_around(facts, &request, &mut content, pull)
            .await?;
        let (mut exchange, head, sending) = answered;
        let here = shared.backend.hash(exchange.turn.index());
        exchange.upload = Upload::start(sending, content, &exchange.stream);
        let address = exchange.address.clone();
        let response = exchange.respond(facts.head, &request, head);
        let mut response = response.map_err(|failed| failed.fault(&party, &address))?;
        if let Some(sticky) = sticky {
            sticky.mark(response.headers_mut(), &facts, pull, here);
        }
        Ok(Outcome::Response(response))
    }
}

/// What goes to the application, whichever address it is.
struct Outbound {
    method: Method,
    /// As it goes out.
    head: Box<[u8]>,
    /// The pattern's part of the path, without a slash at its end.
    mount: String,
    framing: Framing,
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

    fn request(&self, facts: &Facts<'_>, content: &Content) -> Outbound {
        let head = facts.head;
        let protocol = head.headers.get(UPGRADE).filter(|protocol| {
            head.extensions.get::<CanSwitch>().is_some()
                && connection_options(&head.headers).any(|option| option == "upgrade")
                && !names_http(protocol)
        });
        let protocol = protocol.cloned();
        let switches = protocol.is_some();
        let mut headers = head.headers.clone();
        strip(&mut headers);
        strip_request(&mut headers);
        if !facts.pass_authorization {
            headers.remove(AUTHORIZATION);
        }
        if let Some(protocol) = protocol {
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
        let mount = mount(&facts.script.name);
        if self.path.is_some() {
            let outer = headers.get(&X_FORWARDED_PREFIX);
            let outer = outer.map_or(&b""[..], HeaderValue::as_bytes);
            if let Ok(prefix) = HeaderValue::from_bytes(&[outer, mount.as_bytes()].concat()) {
                headers.insert(X_FORWARDED_PREFIX, prefix);
            }
        }
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
        let method = match (&head.method, facts.redirected) {
            (method, None) => method.clone(),
            (&Method::HEAD, _) => Method::HEAD,
            // A local redirect is fetched with GET (C96).
            _ => Method::GET,
        };
        headers.remove(CONTENT_LENGTH);
        let framing = match content.length() {
            Some(length) => {
                headers.insert(CONTENT_LENGTH, length.into());
                Framing::Bare
            }
            None if content.is_there() => {
                headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                Framing::Chunks
            }
            None => {
                // What these methods do, they do with content (RFC 9110 §8.6).
                if [Method::POST, Method::PUT, Method::PATCH].contains(&method) {
                    headers.insert(CONTENT_LENGTH, 0.into());
                }
                Framing::Bare
            }
        };
        let uri = uri(facts, self.path.as_ref());
        Outbound {
            head: wire(&method, &uri, &mut headers),
            method,
            mount,
            framing,
            switches,
        }
    }
}

/// A path as it stands in a URL, without a slash at its end.
fn mount(name: &[u8]) -> String {
    let parts = name.split(|&b| b == b'/').filter(|part| !part.is_empty());
    parts.fold(String::new(), |path, part| {
        path + "/" + &encode_segment(part)
    })
}

/// A head as it goes out, Host first (RFC 9110 §7.2).
fn wire(method: &Method, uri: &Uri, headers: &mut HeaderMap) -> Box<[u8]> {
    let mut head = format!("{method} {uri} HTTP/1.1\r\n").into_bytes();
    if let Some(host) = headers.remove(HOST) {
        framing::field(&mut head, "host", host.as_bytes());
    }
    for (name, value) in &*headers {
        framing::field(&mut head, name.as_str(), value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head.into()
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
            let rest = remainder(facts, raw);
            if !rest.is_empty() && !text.ends_with('/') {
                text.push('/');
            }
            text + &rest
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

/// What is behind the pattern's part of the path, as the client sent it wherever
/// that can't mean another one.
fn remainder(facts: &Facts<'_>, raw: &[u8]) -> String {
    let mount = facts.script.name.split(|&b| b == b'/');
    let mount = mount.filter(|part| !part.is_empty()).count();
    if is_plain(raw) {
        let parts: Vec<&[u8]> = raw.split(|&b| b == b'/').skip(1 + mount).collect();
        return escaped(&parts.join(&b'/'));
    }
    let info = facts.script.path_info.as_deref().unwrap_or_default();
    let info = info.strip_prefix(b"/").unwrap_or(info);
    let parts: Vec<String> = info.split(|&b| b == b'/').map(encode_segment).collect();
    parts.join("/")
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

/// Whether requests could go on in another way, past everything that is decided
/// here: HTTP/2, or HTTP in TLS.
fn names_http(protocol: &HeaderValue) -> bool {
    let mut protocols = protocol.as_bytes().split(|&b| b == b',');
    protocols.any(|protocol| {
        let name = protocol.trim_ascii().split(|&b| b == b'/').next();
        let name = name.unwrap_or_default().to_ascii_lowercase();
        matches!(&name[..], b"h2c" | b"h2" | b"http" | b"tls")
    })
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
        for name in FORWARDING {
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
    /// Asks one address after the other until one answers.
    async fn ask_around(
        self: &Arc<Self>,
        facts: Facts<'_>,
        outbound: &Outbound,
        content: &mut Content,
        pull: Pull,
    ) -> Result<(Exchange, Head, Sending), Fault> {
        let party = self.party(&facts.script.subject);
        let mut rounds = Rounds::new(party, outbound.method.is_idempotent(), pull);
        loop {
            let turn = rounds.turn(&self.backend).await?;
            let mut place = Place::of(&turn);
            let failed = match self.ask(turn, &mut place, facts, outbound, content).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => failed,
            };
            if !rounds.go_on(&failed, &place, self.backend.size()) || !content.rewind() {
                return Err(failed.fault(&party, &place.address));
            }
            rounds.note(&failed, &place);
        }
    }

    /// Sends the request to one address, which is `place` then, and reads the
    /// head of its answer.
    async fn ask(
        self: &Arc<Self>,
        mut turn: Turn,
        place: &mut Place,
        facts: Facts<'_>,
        outbound: &Outbound,
        content: &mut Content,
    ) -> Result<(Exchange, Head, Sending), Failed> {
        let idempotent = outbound.method.is_idempotent();
        // As in `application`: what can't be run twice gets a new connection.
        let kept = if idempotent && !outbound.switches {
            turn.reuse().and_then(|resting| resting.wake().ok())
        } else {
            None
        };
        let reused = kept.is_some();
        let stream = if let Some(stream) = kept {
            stream
        } else {
            // Its room is not needed while the answer is waited for.
            let connected = Box::pin(self.connect(&mut turn)).await;
            *place = Place::of(&turn);
            connected?
        };
        let mut sending = Sending::new(outbound.framing, &outbound.head, content);
        // Only what goes out as a whole can be left to itself.
        let repeatable = idempotent && sending.has_all();
        turn.notice_silence(&stream, sending.has_all(), repeatable);
        let brief = turn.try_time(self.options.answer).filter(|_| repeatable);
        let limit = brief.or(self.options.answer);
        let stream = Arc::new(stream);
        let mut arriving = Arriving::default();
        let interim = facts.head.extensions.get::<Interim>();
        let answered = arriving.head(&stream, limit, interim, &mut sending, content);
        let no_answer = match answered.await {
            Ok(head) => {
                turn.succeeded();
                let exchange = Exchange {
                    shared: Arc::clone(self),
                    subject: facts.script.subject.clone(),
                    address: turn.name(),
                    stream,
                    arrived: arriving.arrived,
                    turn,
                    upload: Upload::Done,
                };
                return Ok((exchange, head, sending));
            }
            Err(NoAnswer::Late(time))
                if brief == Some(time) && !arriving.heard && sending.is_done() =>
            {
                let limit = self.options.answer.unwrap_or(TRY_WAIT);
                tokio::spawn(attempt::wait_for_word(turn, stream, limit));
                return Err(Failed::in_vain(time));
            }
            Err(no_answer) => no_answer,
        };
        let mut failed = no_answer.failed();
        if !arriving.heard {
            failed.weigh_silence(&turn);
        }
        failed.progress = match failed.reason {
            _ if arriving.heard => Progress::Answered,
            "content" => Progress::Answered,
            TIMEOUT if !failed.hung => Progress::Answered,
            _ if sending.is_incomplete() => Progress::NotSent,
            _ => Progress::Sent,
        };
        failed.stale = reused && failed.reason == "closed" && !arriving.heard;
        failed.blame(&mut turn);
        Err(failed)
    }

    async fn connect(&self, turn: &mut Turn) -> Result<Stream, Failed> {
        let stream = match turn.connect().await {
            Ok(stream) => stream,
            Err(trouble) => return Err(Failed::to_connect(turn, &trouble)),
        };
        let Some(tls) = &self.tls else {
            return Ok(stream);
        };
        let name = self.server_name(turn.address());
        let name = name.ok_or_else(|| {
            Failed::bad_gateway("tls", "the address is no name that a certificate can have")
        })?;
        let secured = Tls::connect(stream, Arc::clone(tls), name);
        match timeout(turn.connect_time(), secured).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                let mut failed = Failed::bad_gateway("tls", format!("TLS: {error}"));
                failed.progress = Progress::NotSent;
                failed.blame(turn);
                Err(failed)
            }
            Err(_late) => Err(Failed::to_connect(turn, &backend::Trouble::Late)),
        }
    }

    fn server_name(&self, address: &Address) -> Option<ServerName<'static>> {
        let name = match (&self.host, address) {
            (Some(host), _) => match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
                Some((address, _port)) => address,
                None => host.rsplit_once(':').map_or(&host[..], |(host, _)| host),
            },
            (None, Address::Tcp(host, _)) => host,
            (None, Address::Unix(_) | Address::Worker(..)) => return None,
        };
        ServerName::try_from(name.to_owned()).ok()
    }
}

/// What comes before the content of an answer.
#[derive(Default)]
struct Arriving {
    arrived: Arrived,
    /// Some of an answer has come.
    heard: bool,
    /// How much of interim answers the client was given, in bytes.
    relayed: usize,
}

/// Why there is no answer.
enum NoAnswer {
    Late(Duration),
    /// The request's content ended before its end (C71).
    Content(BodyError),
    Closed(Option<std::io::Error>),
    Invalid(String),
}

impl Arriving {
    /// Reads heads until the final one, for `answer` at most, while the request
    /// goes out.
    async fn head(
        &mut self,
        stream: &Stream,
        answer: Option<Duration>,
        interim: Option<&Interim>,
        sending: &mut Sending,
        content: &mut Content,
    ) -> Result<Head, NoAnswer> {
        let began = Instant::now();
        loop {
            while let Some(head) = self.arrived.next_head().map_err(NoAnswer::Invalid)? {
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    return Ok(head);
                }
                if let Some(client) = interim {
                    self.relay(head, client);
                }
            }
            let deadline = answer.map(|answer| (began.max(sending.last_moved()) + answer, answer));
            tokio::select! {
                biased;
                read = stream.receive(None, |bytes| self.arrived.push(bytes)) => match read {
                    Ok(0) => return Err(NoAnswer::Closed(None)),
                    Ok(_) => self.heard = true,
                    Err(error) => return Err(NoAnswer::Closed(Some(error))),
                },
                sent = sending.send(stream, content), if !sending.is_done() => {
                    sent.map_err(NoAnswer::Content)?;
                }
                late = until(deadline) => {
                    // Content may have moved in the meantime.
                    if sending.last_moved() + late <= Instant::now() {
                        return Err(NoAnswer::Late(late));
                    }
                }
            }
        }
    }

    /// 1xx answers go on to a client that can take them; 100 is this server's own
    /// to say.
    fn relay(&mut self, head: Head, client: &Interim) {
        let fields = head.headers.iter();
        let length = fields.map(|(name, value)| name.as_str().len() + value.len());
        self.relayed += STATUS_LINE_BYTES + length.sum::<usize>();
        if head.status == StatusCode::CONTINUE || self.relayed > MAX_INTERIM_BYTES {
            return;
        }
        let mut interim = http::Response::new(());
        *interim.status_mut() = head.status;
        *interim.headers_mut() = head.headers;
        strip(interim.headers_mut());
        client.send(interim);
    }
}

impl NoAnswer {
    fn failed(self) -> Failed {
        match self {
            Self::Late(limit) => Failed::late(limit.as_secs_f32()),
            Self::Content(error) => Failed::of_content(&error),
            Self::Closed(error) => Failed::closed(error.as_ref()),
            Self::Invalid(what) => Failed {
                hint: Some("check that it speaks HTTP on this address".into()),
                ..Failed::bad_gateway("protocol", format!("what it answers is no HTTP: {what}"))
            },
        }
    }
}

/// A request that is answered. Dropped before the end, it closes the
/// connection.
struct Exchange {
    shared: Arc<Shared>,
    subject: String,
    address: String,
    stream: Arc<Stream>,
    arrived: Arrived,
    turn: Turn,
    upload: Upload,
}

impl Shared {
    /// What clients would look for at the application's own address, or below its
    /// own path, they find here.
    fn relocate(&self, headers: &mut HeaderMap, address: &str, mount: &str) {
        let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else {
            return;
        };
        let own = [Some(address), self.host.as_deref()];
        let path = own.into_iter().flatten().find_map(|host| {
            let rest = location
                .strip_prefix("http://")
                .or(location.strip_prefix("https://"));
            let rest = rest?.strip_prefix(host)?;
            (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then_some(rest)
        });
        let is_path = location.starts_with('/') && !location.starts_with("//");
        let (path, is_own) = match path {
            Some(path) => (path, true),
            None if is_path => (location, false),
            None => return,
        };
        let is_below = |folder: &str| {
            let rest = path.strip_prefix(folder);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
        };
        let base = self.path.as_ref().map(UrlPath::encoded);
        let base = base.as_deref().map(|base| base.trim_end_matches('/'));
        let moved = match base {
            // It may know where it is (X-Forwarded-Prefix).
            Some(base) if is_below(base) && (mount.is_empty() || !is_below(mount)) => {
                format!("{mount}{}", &path[base.len()..])
            }
            _ if is_own && path.starts_with('/') => path.to_owned(),
            _ if is_own => format!("/{path}"),
            _ => return,
        };
        if let Ok(moved) = HeaderValue::from_str(&moved) {
            headers.insert(LOCATION, moved);
        }
    }
}

impl Exchange {
    fn note(&self, text: &str) {
        let text = format!("{}: {text}", self.address);
        self.shared.party(&self.subject).note(&text);
    }

    fn respond(self, request: &Parts, outbound: &Outbound, head: Head) -> Result<Response, Failed> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(outbound, head);
        }
        let content = head.content(&request.method);
        let content = content.map_err(|what| Failed::bad_gateway("protocol", what))?;
        let (goes_on, announced) = (head.goes_on(), head.announced());
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        strip(response.headers_mut());
        let headers = response.headers_mut();
        self.shared
            .relocate(headers, &self.address, &outbound.mount);
        if let Some(reason) = head.reason {
            response.extensions_mut().insert(Reason(reason));
        }
        if request.method == Method::HEAD {
            // Gunicorn sends the content after the header of a HEAD, too; on a
            // kept connection that would be the next answer. So it closes.
            *response.body_mut() = Body::stream(announced, Nothing);
        } else if matches!(head.status.as_u16(), 204 | 304) {
            self.keep(goes_on);
        } else {
            let length = content.length();
            let answer = Answer {
                exchange: Some(self),
                content,
                goes_on,
            };
            *response.body_mut() = Body::stream(length, answer);
        }
        Ok(response)
    }

    /// For the next request, if this one is out and its answer in.
    fn keep(self, goes_on: bool) {
        let Self {
            stream,
            arrived,
            turn,
            upload,
            ..
        } = self;
        if goes_on
            && arrived.is_empty()
            && matches!(upload, Upload::Done)
            && let Some(stream) = Arc::into_inner(stream)
        {
            turn.keep(stream.rest());
        }
    }

    /// The connection leaves HTTP (RFC 9110 §7.8).
    fn switch(self, outbound: &Outbound, head: Head) -> Result<Response, Failed> {
        if !outbound.switches {
            return Err(Failed::bad_gateway(
                "protocol",
                "it switches protocols unasked",
            ));
        }
        if !matches!(self.upload, Upload::Done) {
            return Err(Failed::bad_gateway(
                "protocol",
                "it switches protocols before the end of the request",
            ));
        }
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        let (sink, mut client) = mpsc::channel::<Bytes>(1);
        let (pieces, source) = mpsc::channel(1);
        let Self {
            stream,
            mut arrived,
            turn,
            ..
        } = self;
        let to = Arc::clone(&stream);
        tokio::spawn(async move {
            while let Some(piece) = client.recv().await {
                if to.send(&piece).await.is_err() {
                    return;
                }
            }
            // The client has closed its side; the other may have more to say.
            to.send_no_more();
        });
        tokio::spawn(async move {
            loop {
                if !arrived.is_empty() && pieces.send(Ok(arrived.take())).await.is_err() {
                    break;
                }
                let read = tokio::select! {
                    read = stream.receive(None, |bytes| arrived.push(bytes)) => read,
                    // Nobody listens any more.
                    () = pieces.closed() => break,
                };
                let Ok(1..) = read else { break };
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

/// The application's content as the body of the response.
struct Answer {
    exchange: Option<Exchange>,
    content: answer::Content,
    goes_on: bool,
}

/// Why the rest of an answer can't be had.
enum Stop {
    Late(Duration),
    Content(BodyError),
    Closed(std::io::Error),
}

impl Answer {
    async fn piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            let exchange = self.exchange.as_mut()?;
            match self.content.take(&mut exchange.arrived) {
                Ok(Taken::Data(data)) => return Some(Ok(data)),
                Ok(Taken::End) => {
                    self.exchange.take()?.keep(self.goes_on);
                    return None;
                }
                Ok(Taken::More) => {}
                Err(what) => return Some(Err(self.broken(&what))),
            }
            let what = match exchange.read().await {
                Ok(1..) => continue,
                // What follows a refusal may be missing.
                Ok(0)
                    if self.content.ends_with_connection()
                        && !matches!(exchange.upload, Upload::Refused) =>
                {
                    self.exchange = None;
                    return None;
                }
                Ok(0) => "it closed the connection before the end of its answer".into(),
                Err(Stop::Late(time)) => format!("no output for {} s", time.as_secs_f32()),
                Err(Stop::Closed(error)) => format!(
                    "the connection broke before the end of its answer: {}",
                    plain(&error)
                ),
                Err(Stop::Content(error)) => {
                    exchange.note(&format!("given up: {error}"));
                    self.exchange = None;
                    return Some(Err(error));
                }
            };
            return Some(Err(self.broken(&what)));
        }
    }

    /// The client sees that the rest can't be had.
    fn broken(&mut self, what: &str) -> BodyError {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.note(&format!("{what}; the answer is cut off"));
            exchange.turn.misbehaved(what);
        }
        BodyError::Truncated
    }
}

impl Exchange {
    /// More of the answer; 0 bytes at the end of the connection.
    async fn read(&mut self) -> Result<usize, Stop> {
        let Self {
            stream,
            arrived,
            upload,
            ..
        } = self;
        let pause = self.shared.options.pause;
        let mut deadline = pause.map(|pause| (Instant::now() + pause, pause));
        loop {
            tokio::select! {
                biased;
                read = stream.receive(None, |bytes| arrived.push(bytes)) => {
                    return read.map_err(Stop::Closed);
                }
                sent = upload.result() => match sent {
                    Ok(true) => *upload = Upload::Done,
                    Ok(false) => *upload = Upload::Refused,
                    Err(error) => return Err(Stop::Content(error)),
                },
                late = until(deadline) => match upload.last_moved() {
                    // An upload that goes on is a sign of life.
                    Some(moved) if moved + late > Instant::now() => {
                        deadline = Some((moved + late, late));
                    }
                    _ => return Err(Stop::Late(late)),
                },
            }
        }
    }
}

impl Source for Answer {
    fn next(&mut self) -> Next<'_> {
        Box::pin(self.piece())
    }
}
