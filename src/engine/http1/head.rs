//! A request's head (RFC 9112 §§ 2, 3, 5): found in the buffer, parsed, judged.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::engine::Limits;
use crate::engine::framing::{self, Framing};
use crate::error::{Area, Diagnosis, Fault};
use crate::message::{Connection, Glance};
use crate::service::Service;

/// More fields than this are no [`Glance`].
const GLANCED_FIELDS: usize = 32;
/// The most that `--max-fields` can ask for.
pub const MOST_FIELDS: usize = 1000;

/// A parsed head.
pub struct Head {
    /// Without extensions.
    pub request: http::Request<()>,
    /// The request-target as received.
    pub target: Bytes,
    /// Why it is refused although it could be parsed.
    pub framing: Result<Framing, Fault>,
}

/// Looks whether `buffer` begins with a whole head that is a [`Glance`]: if so,
/// that, whether the client lets the connection go on, and the head's length.
/// Whatever is unusual is left to [`Search::take`] to judge.
pub fn glance<'a>(
    buffer: &'a [u8],
    connection: &'a Connection,
    limits: &Limits,
) -> Option<(Glance<'a>, bool, usize)> {
    let mut fields = [MaybeUninit::uninit(); GLANCED_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let most = limits.fields.min(GLANCED_FIELDS);
    let length = match parsed.parse_with_uninit_headers(buffer, &mut fields[..most]) {
        Ok(httparse::Status::Complete(length)) if length <= limits.head_bytes => length,
        _ => return None,
    };
    let version = match parsed.version? {
        0 => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let mut glance = Glance {
        connection,
        method: match parsed.method? {
            "GET" => &Method::GET,
            "HEAD" => &Method::HEAD,
            _ => return None,
        },
        target: parsed.path?.as_bytes(),
        version,
        accept_encoding: None,
        host: None,
        referer: None,
        user_agent: None,
    };
    let mut keep_alive = None;
    for field in &*parsed.headers {
        let place = match known(field.name) {
            Some(Known::AcceptEncoding) => &mut glance.accept_encoding,
            Some(Known::Host) => &mut glance.host,
            Some(Known::Referer) => &mut glance.referer,
            Some(Known::UserAgent) => &mut glance.user_agent,
            Some(Known::Connection) if keep_alive.is_none() => {
                keep_alive = Some(connection_option(field.value)?);
                continue;
            }
            Some(Known::Connection | Known::Framing) => return None,
            None if Service::heeds(field.name.as_bytes()) => return None,
            None => continue,
        };
        if place.replace(field.value).is_some() {
            return None;
        }
    }
    if glance.host.is_none() && version == Version::HTTP_11 {
        return None;
    }
    let keep_alive = keep_alive.unwrap_or(version == Version::HTTP_11);
    Some((glance, keep_alive, length))
}

/// The fields of which a [`Glance`] says the value.
enum Known {
    AcceptEncoding,
    Host,
    Connection,
    Referer,
    UserAgent,
    /// That content follows, or what the client expects.
    Framing,
}

fn known(name: &str) -> Option<Known> {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    match name.len() {
        4 if is("host") => Some(Known::Host),
        6 if is("expect") => Some(Known::Framing),
        7 if is("referer") => Some(Known::Referer),
        10 if is("connection") => Some(Known::Connection),
        10 if is("user-agent") => Some(Known::UserAgent),
        14 if is("content-length") => Some(Known::Framing),
        15 if is("accept-encoding") => Some(Known::AcceptEncoding),
        17 if is("transfer-encoding") => Some(Known::Framing),
        _ => None,
    }
}

/// Whether a Connection field with one of the two usual options keeps it.
fn connection_option(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"keep-alive") {
        Some(true)
    } else {
        value.eq_ignore_ascii_case(b"close").then_some(false)
    }
}

/// A search for the head's end that doesn't look at a byte twice.
#[derive(Debug, Default)]
pub struct Search {
    searched: usize,
}

impl Search {
    /// Nothing of a head was looked at.
    pub fn is_fresh(&self) -> bool {
        self.searched == 0
    }

    /// Takes a complete head from the front of `buffer`; `None` if there is
    /// none yet.
    pub fn take(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Option<Head>, Fault> {
        if skip_empty_lines(buffer) {
            self.searched = 0;
        }
        if let Some(&first) = buffer.first()
            && !is_token(first)
        {
            // TLS, for one, would wait for an answer to what is no head.
            return Err(no_head(first));
        }
        let Some(end) = self.find_end(buffer) else {
            self.searched = buffer.len();
            return if buffer.len() > limits.head_bytes {
                Err(too_large(buffer))
            } else {
                Ok(None)
            };
        };
        if end > limits.head_bytes {
            return Err(too_large(buffer));
        }
        self.searched = 0;
        parse(&buffer.split_to(end).freeze(), limits).map(Some)
    }

    /// Behind the empty line that ends the head.
    fn find_end(&self, buffer: &[u8]) -> Option<usize> {
        // The end may have begun in what was searched.
        let from = self.searched.saturating_sub(2);
        let mut lines = memchr::memchr_iter(b'\n', &buffer[from..]).map(|at| from + at);
        lines.find_map(|at| match buffer[at + 1..] {
            [b'\n', ..] => Some(at + 2),
            [b'\r', b'\n', ..] => Some(at + 3),
            _ => None,
        })
    }
}

/// RFC 9112 §2.2: empty lines before a request are ignored.
fn skip_empty_lines(buffer: &mut BytesMut) -> bool {
    let before = buffer.len();
    loop {
        let skip = match buffer[..] {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] => 1,
            _ => return buffer.len() < before,
        };
        buffer.advance(skip);
    }
}

/// Whether a method may start so (RFC 9110 §5.6.2). An empty line may too.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~\r\n".contains(&byte)
}

/// A client that sends something else than HTTP; one mistake is worth a word.
fn no_head(first: u8) -> Fault {
    /// The type of a record with a handshake (RFC 8446 §5.1).
    const TLS_HANDSHAKE: u8 = 22;
    let fault = Fault::bad_request().closing();
    if first != TLS_HANDSHAKE {
        return fault;
    }
    fault.because(Diagnosis {
        area: Area::Client,
        reason: "tls",
        fault: "it speaks TLS, and this port is plain HTTP".into(),
        hint: Some("the address begins with http://, not https://".into()),
        ..Diagnosis::default()
    })
}

/// 414 if it is the request line, 431 if it is the fields.
fn too_large(buffer: &[u8]) -> Fault {
    let line = buffer
        .iter()
        .position(|&b| b == b'\n')
        .unwrap_or(usize::MAX);
    let status = if line > buffer.len() / 2 {
        StatusCode::URI_TOO_LONG
    } else {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    };
    Fault::new(status).closing()
}

fn parse(bytes: &Bytes, limits: &Limits) -> Result<Head, Fault> {
    #[allow(
        clippy::large_stack_arrays,
        reason = "32 KB that are never written unless they are needed"
    )]
    let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
    let scanned = scannable(bytes);
    let mut parsed = httparse::Request::new(&mut []);
    let complete =
        parsed.parse_with_uninit_headers(&scanned, &mut fields[..limits.fields.min(MOST_FIELDS)]);
    match complete {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Fault::bad_request().closing()),
        Err(error) => return Err(refusal(bytes, error)),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Fault::bad_request().closing());
    };
    let mut request = http::Request::new(());
    *request.method_mut() =
        Method::from_bytes(method.as_bytes()).map_err(|_| Fault::bad_request().closing())?;
    *request.version_mut() = if version == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    *request.headers_mut() =
        headers(bytes, &scanned, parsed.headers).ok_or_else(|| Fault::bad_request().closing())?;
    let target = original(bytes, &scanned, target.as_bytes());
    let framing = framing::request_framing(request.version(), request.headers());
    Ok(Head {
        request,
        target,
        framing,
    })
}

/// The head for the parser, which takes no request line that isn't UTF-8. What
/// a target means is not its business (C9, C47): other bytes look like letters
/// to it.
fn scannable(bytes: &[u8]) -> Cow<'_, [u8]> {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    if std::str::from_utf8(&bytes[..line]).is_ok() {
        return Cow::Borrowed(bytes);
    }
    let mut scanned = bytes.to_vec();
    for byte in &mut scanned[..line] {
        if !byte.is_ascii() {
            *byte = b'x';
        }
    }
    Cow::Owned(scanned)
}

/// The bytes that stand where `part` stands in what the parser saw.
fn original(bytes: &Bytes, scanned: &[u8], part: &[u8]) -> Bytes {
    let at = part.as_ptr() as usize - scanned.as_ptr() as usize;
    bytes.slice(at..at + part.len())
}

/// The values share the head's memory.
fn headers(bytes: &Bytes, scanned: &[u8], fields: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(original(bytes, scanned, field.value)).ok()?;
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

fn refusal(bytes: &[u8], error: httparse::Error) -> Fault {
    let status = match error {
        httparse::Error::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        httparse::Error::Version if is_other_version(bytes) => {
            StatusCode::HTTP_VERSION_NOT_SUPPORTED
        }
        _ => StatusCode::BAD_REQUEST,
    };
    Fault::new(status).closing()
}

/// `HTTP/` digit `.` digit, but neither 1.0 nor 1.1.
fn is_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let version = line
        .trim_ascii_end()
        .rsplit(|&b| b == b' ')
        .next()
        .unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit()
            && !matches!((major, minor), (b'1', b'0' | b'1')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The status it is refused with, 0 if it isn't complete, 200 if it is fine.
    fn judge(wire: &[u8], step: usize) -> u16 {
        let limits = Limits::default();
        let (mut search, mut buffer) = (Search::default(), BytesMut::new());
        for piece in wire.chunks(step) {
            buffer.extend_from_slice(piece);
            match search.take(&mut buffer, &limits) {
                Ok(None) => {}
                Ok(Some(Head { framing: Ok(_), .. })) => return 200,
                Ok(Some(Head {
                    framing: Err(fault),
                    ..
                }))
                | Err(fault) => return fault.status.as_u16(),
            }
        }
        0
    }

    #[test]
    fn heads_are_judged_alike_however_they_arrive() {
        for (wire, status) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET / HTTP/1.0\n\n", 200),
            ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nHost: a\r\n", 0),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("G\tET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
            ("GET / HTTP/0.9\r\n\r\n", 505),
            ("GET / HTTQ/1.1\r\n\r\n", 400),
            ("\u{16}\u{3}\u{1}", 400),
            ("\rGET", 0),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417),
        ] {
            for step in [1, 2, 7, 1000] {
                assert_eq!(
                    judge(wire.as_bytes(), step),
                    status,
                    "{wire:?} in steps of {step}"
                );
            }
        }
    }

    #[test]
    fn a_target_may_hold_any_bytes_c9_c47() {
        let mut buffer =
            BytesMut::from(&b"GET /caf\xe9?\xff HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n"[..]);
        let head = Search::default().take(&mut buffer, &Limits::default());
        let Ok(Some(head)) = head else {
            panic!("it is a head")
        };
        assert_eq!(head.target, &b"/caf\xe9?\xff"[..]);
        assert_eq!(head.request.headers()["x"].as_bytes(), b"\xe9");
    }

    #[test]
    fn a_head_beyond_the_limits_is_refused_by_its_part_c36() {
        let limits = Limits::default();
        let target = format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "x".repeat(limits.head_bytes)
        );
        let field = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "x".repeat(limits.head_bytes)
        );
        let fields = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(limits.fields)
        );
        for step in [1000, 1_000_000] {
            assert_eq!(judge(target.as_bytes(), step), 414);
            assert_eq!(judge(field.as_bytes(), step), 431);
            assert_eq!(judge(fields.as_bytes(), step), 431);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..20) {
            judge(&wire, step);
        }
    }
}
