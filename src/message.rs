//! What both sides of the engine boundary say about a message: the body, and
//! the facts of the connection that travel with a request.
//!
//! An engine turns bytes into `Request` and `Response` into bytes; the service
//! turns one into the other. Neither knows more of the other than this file.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use tokio::sync::{Notify, mpsc};

pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;

/// The content of a message (RFC 9110 §6.4).
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    Bytes(Bytes),
    /// Stays a file until the engine writes it, so that an engine that can use
    /// sendfile does.
    File(FileBody),
    Stream(StreamBody),
    /// The whole response, head included, as the script wrote it (RFC 3875 §5,
    /// NPH). The engine adds nothing and closes the connection at the end.
    Unframed(Box<dyn Source>),
    /// With 101 (Switching Protocols): what follows the head is no longer HTTP.
    Tunnel(Tunnel),
}

/// Both directions of a connection that has left HTTP (RFC 9110 §7.8).
pub struct Tunnel {
    /// To the client; its end is the end of the connection.
    pub source: Box<dyn Source>,
    /// What the client sends; dropped when it has closed its side.
    pub sink: mpsc::Sender<Bytes>,
}

/// `length` bytes of `file` from `offset`. If the file turns out to be shorter,
/// the connection ends early; nothing is padded.
pub struct FileBody {
    pub file: Arc<File>,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
}

/// A request without content that is told from others by its target alone. It
/// borrows what has arrived: most requests for files need no more than this.
pub struct Glance<'a> {
    pub connection: &'a Connection,
    /// GET or HEAD.
    pub method: &'a Method,
    /// The request-target as received.
    pub target: &'a [u8],
    pub version: Version,
    pub accept_encoding: Option<&'a [u8]>,
    pub host: Option<&'a [u8]>,
    pub referer: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
}

/// An answer with status 200 that was given before and is the same again.
pub struct Ready {
    pub head: Arc<PreparedHead>,
    pub content: Piece,
}

/// Header fields that go out many times, and their form on the wire, which the
/// first engine to send them makes.
pub struct PreparedHead {
    pub fields: HeaderMap,
    pub wire: OnceLock<Bytes>,
}

impl PreparedHead {
    pub fn new(fields: HeaderMap) -> Self {
        Self {
            fields,
            wire: OnceLock::new(),
        }
    }
}

/// Content that is there in full.
pub enum Piece {
    Bytes(Bytes),
    File(FileBody),
}

impl Piece {
    /// `length` bytes of `file` from `offset`.
    pub fn file(file: File, offset: u64, length: u64) -> Self {
        Self::File(FileBody {
            file: Arc::new(file),
            offset,
            length,
        })
    }

    /// In bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(file) => file.length,
        }
    }
}

/// Content that is made while it is sent.
pub struct StreamBody {
    /// In bytes, where it is known beforehand. The source keeps to it or fails.
    pub length: Option<u64>,
    pub source: Box<dyn Source>,
}

pub type Next<'a> = Pin<Box<dyn Future<Output = Option<Result<Bytes, BodyError>>> + Send + 'a>>;

/// Where a streamed body comes from.
pub trait Source: Send {
    /// Says that it will be read: a client that waits for leave to send its
    /// content gets 100 (Continue) (RFC 9110 §10.1.1).
    fn want(&mut self) {}

    /// The next piece, never empty; `None` at the end. After `None` or an error
    /// it is not asked again. Dropping the future loses no data.
    fn next(&mut self) -> Next<'_>;
}

/// Why a body ended before its end.
#[derive(Debug)]
pub enum BodyError {
    /// The client closed its side in mid-body (RFC 9112 §8: incomplete message).
    Closed,
    /// No progress for the body timeout.
    TimedOut,
    /// Longer than `--max-body`.
    TooLarge,
    /// The chunked coding is broken (RFC 9112 §7.1).
    Malformed,
    /// The source ended before what it had announced.
    Truncated,
    Io(io::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the client closed the connection in mid-body"),
            Self::TimedOut => f.write_str("the body made no progress in time"),
            Self::TooLarge => f.write_str("the body is longer than the limit"),
            Self::Malformed => f.write_str("the chunked coding of the body is broken"),
            Self::Truncated => f.write_str("the content ended before its announced length"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BodyError {}

impl From<io::Error> for BodyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Body {
    /// The length in bytes where it is known; `None` for a stream without one.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::File(file) => Some(file.length),
            Self::Stream(stream) => stream.length,
            Self::Unframed(_) | Self::Tunnel(_) => None,
        }
    }

    /// All `length` bytes of a file.
    pub fn whole(file: Arc<File>, length: u64) -> Self {
        Self::File(FileBody {
            file,
            offset: 0,
            length,
        })
    }

    pub fn stream(length: Option<u64>, source: impl Source + 'static) -> Self {
        Self::Stream(StreamBody {
            length,
            source: Box::new(source),
        })
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

/// A request or response whose producer runs elsewhere and hands over pieces.
pub struct Channel(pub mpsc::Receiver<Result<Bytes, BodyError>>);

impl Source for Channel {
    fn next(&mut self) -> Next<'_> {
        Box::pin(self.0.recv())
    }
}

/// The product token of this server: the Server field and `SERVER_SOFTWARE` (C3).
pub const SERVER_SOFTWARE: &str = concat!("serve-here/", env!("CARGO_PKG_VERSION"));

/// Response extension: the reason phrase, where it isn't the standard one.
#[derive(Clone, Debug)]
pub struct Reason(pub Bytes);

/// Response extension: a script was run for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// In an interpreter that had been prepared.
    pub warm: bool,
}

/// Request extension: the connection a request came on.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// The client. The port is 0 where a proxy has not said it.
    pub remote: SocketAddr,
    /// The address of the accepted socket, never the wildcard.
    pub local: SocketAddr,
    /// Under TLS.
    pub secure: bool,
}

impl Connection {
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Request extension: a proxy that is believed has brought the request, and the
/// facts of its [`Connection`] are the client's. These are the proxy's.
#[derive(Clone, Copy, Debug)]
pub struct Proxied(pub Connection);

/// Request extension: the engine can let this connection leave HTTP
/// ([`Body::Tunnel`]).
#[derive(Clone, Copy, Debug)]
pub struct CanSwitch;

/// Request extension: the request-target exactly as received (RFC 9112 §3.2).
/// `http::Uri` refuses or normalises some of its bytes, so the service reads
/// this one.
#[derive(Clone, Debug)]
pub struct RequestTarget(pub Bytes);

/// Request extension: where interim responses (1xx, RFC 9110 §15.2) go, before
/// the final one is there. Absent where the client can't take them (HTTP/1.0).
/// An engine takes them from a copy of it. Nearly no request has any, so that a
/// channel, which makes room for many at once, would cost more.
#[derive(Clone, Debug, Default)]
pub struct Interim(Arc<Interims>);

#[derive(Debug, Default)]
struct Interims {
    waiting: Mutex<VecDeque<http::Response<()>>>,
    come: Notify,
}

impl Interim {
    /// If the client has gone, nobody takes it.
    pub fn send(&self, interim: http::Response<()>) {
        self.waiting().push_back(interim);
        self.0.come.notify_one();
    }

    /// Waits for one. Dropping the future loses none.
    pub async fn next(&self) -> http::Response<()> {
        loop {
            if let Some(interim) = self.next_at_hand() {
                return interim;
            }
            self.0.come.notified().await;
        }
    }

    pub fn next_at_hand(&self) -> Option<http::Response<()>> {
        self.waiting().pop_front()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<http::Response<()>>> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }
}
