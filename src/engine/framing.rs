//! What an HTTP/1 message's bytes mean (RFC 9112 §§ 3.2, 6, 7, 9): how long a
//! request's content is, whether the connection goes on, and how a response's
//! head and chunks are written. No sockets.

use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, SERVER, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, StatusCode, Version};

use crate::clock;
use crate::error::Fault;
use crate::message::{Body, PreparedHead, Reason, Response, SERVER_SOFTWARE};

/// How a request's content is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    /// In bytes.
    Length(u64),
    Chunked,
}

/// Judges a request's head. What is ambiguous is refused and the connection
/// closed, so that nothing behind it can be taken for a request.
pub fn request_framing(version: Version, headers: &HeaderMap) -> Result<Framing, Fault> {
    check_host(version, headers)?;
    let framing = content_framing(version, headers)?;
    if let Some(expect) = headers.get(EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Fault::new(StatusCode::EXPECTATION_FAILED).closing());
    }
    Ok(framing)
}

/// RFC 9112 §3.2: one Host in HTTP/1.1, never two.
fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Fault> {
    match headers.get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if version == Version::HTTP_10 => Ok(()),
        _ => Err(Fault::bad_request().closing()),
    }
}

/// RFC 9112 §6.3, in its order.
fn content_framing(version: Version, headers: &HeaderMap) -> Result<Framing, Fault> {
    let refused = || Fault::bad_request().closing();
    if headers.contains_key(TRANSFER_ENCODING) {
        // 3: both fields is how requests are smuggled (§6.1).
        if headers.contains_key(CONTENT_LENGTH) || version == Version::HTTP_10 {
            return Err(refused());
        }
        return transfer_coding(headers).map(|()| Framing::Chunked);
    }
    // 5: one plain decimal number, perhaps repeated.
    let mut lengths = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .map(|value| decimal(value.as_bytes()));
    let Some(first) = lengths.next() else {
        return Ok(Framing::None);
    };
    match first {
        Some(length) if lengths.all(|other| other == Some(length)) => Ok(Framing::Length(length)),
        _ => Err(refused()),
    }
}

/// RFC 9112 §6.3, case 4: `chunked` once and last, and no other coding, because
/// no other is known here (§6.1: 501).
fn transfer_coding(headers: &HeaderMap) -> Result<(), Fault> {
    let fields = headers.get_all(TRANSFER_ENCODING).iter();
    let codings: Vec<_> = fields
        .flat_map(|field| field.as_bytes().split(|&b| b == b','))
        .map(|coding| coding.trim_ascii().to_ascii_lowercase())
        .collect();
    let chunked = codings
        .iter()
        .filter(|coding| *coding == b"chunked")
        .count();
    match codings.last().map(Vec::as_slice) {
        Some(b"chunked") if codings.len() == 1 => Ok(()),
        _ if codings.iter().any(Vec::is_empty) || chunked > 1 => {
            Err(Fault::bad_request().closing())
        }
        Some(b"chunked") => Err(Fault::new(StatusCode::NOT_IMPLEMENTED).closing()),
        _ if chunked > 0 => Err(Fault::bad_request().closing()),
        _ => Err(Fault::new(StatusCode::NOT_IMPLEMENTED).closing()),
    }
}

/// Digits only: no sign, no space, no hexadecimal (RFC 9110 §8.6).
pub fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten()
}

/// Whether the client lets the connection go on (RFC 9112 §9.3).
pub fn wants_keep_alive(version: Version, headers: &HeaderMap) -> bool {
    if connection_has(headers, b"close") {
        return false;
    }
    version == Version::HTTP_11 || connection_has(headers, b"keep-alive")
}

fn connection_has(headers: &HeaderMap, option: &[u8]) -> bool {
    let fields = headers.get_all(CONNECTION).iter();
    let mut options = fields.flat_map(|field| field.as_bytes().split(|&b| b == b','));
    options.any(|candidate| candidate.trim_ascii().eq_ignore_ascii_case(option))
}

/// How a response's content is delimited, and what becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub content: Content,
    pub keep_alive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No content follows the head: HEAD, 1xx, 204, 304.
    None,
    Length(u64),
    Chunked,
    /// The end of the connection is the end of the content.
    UntilClose,
}

/// What the plan depends on besides the response.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub method: &'a Method,
    pub version: Version,
    /// The client and the state of the request allow another request.
    pub keep_alive: bool,
}

impl Plan {
    pub fn new(asker: Asker<'_>, response: &Response) -> Self {
        let status = response.status();
        let head_only = *asker.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let content = if matches!(response.body(), Body::Unframed(_)) {
            Content::UntilClose
        } else if head_only {
            Content::None
        } else {
            match response.body().length() {
                Some(length) => Content::Length(length),
                None if asker.version == Version::HTTP_11 => Content::Chunked,
                None => Content::UntilClose,
            }
        };
        let closes = content == Content::UntilClose || connection_has(response.headers(), b"close");
        Self {
            content,
            keep_alive: asker.keep_alive && !closes,
        }
    }
}

/// A response's status line and header fields, ready to send. Hop-by-hop fields
/// are the engine's alone (RFC 9110 §7.6.1).
pub fn response_head(asker: Asker<'_>, plan: Plan, http_1_0: bool, response: &Response) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let protocol = if http_1_0 { "HTTP/1.0" } else { "HTTP/1.1" };
    status_line(
        &mut head,
        protocol,
        response.status(),
        response.extensions().get(),
    );
    let headers = response.headers();
    fields(&mut head, headers);
    if !headers.contains_key(DATE) {
        date_field(&mut head);
    }
    if !headers.contains_key(SERVER) {
        server_field(&mut head);
    }
    match (plan.content, announced_length(asker, response)) {
        (Content::Chunked, _) => field(&mut head, "transfer-encoding", b"chunked"),
        (_, Some(length)) => length_field(&mut head, length),
        _ => {}
    }
    end_of_head(&mut head, plan.keep_alive, asker.version);
    head
}

/// The head of a response with status 200 whose fields were sent before.
/// `length` is that of its content, in bytes.
pub fn prepared_head(head: &mut Vec<u8>, asker: Asker<'_>, prepared: &PreparedHead, length: u64) {
    let made = || {
        let mut wire = Vec::new();
        status_line(&mut wire, "HTTP/1.1", StatusCode::OK, None);
        fields(&mut wire, &prepared.fields);
        server_field(&mut wire);
        wire.into()
    };
    head.extend_from_slice(prepared.wire.get_or_init(made));
    date_field(head);
    length_field(head, length);
    end_of_head(head, asker.keep_alive, asker.version);
}

fn date_field(head: &mut Vec<u8>) {
    head.extend_from_slice(b"Date: ");
    head.extend_from_slice(&clock::http_date());
    head.extend_from_slice(b"\r\n");
}

fn server_field(head: &mut Vec<u8>) {
    field(head, "server", SERVER_SOFTWARE.as_bytes());
}

fn length_field(head: &mut Vec<u8>, length: u64) {
    head.extend_from_slice(b"Content-Length: ");
    decimal_digits(head, length);
    head.extend_from_slice(b"\r\n");
}

fn end_of_head(head: &mut Vec<u8>, keep_alive: bool, version: Version) {
    match (keep_alive, version) {
        (false, _) => head.extend_from_slice(b"Connection: close\r\n"),
        // What HTTP/1.0 clients wait for (RFC 9112 appendix C.2.2).
        (true, Version::HTTP_10) => head.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, _) => {}
    }
    head.extend_from_slice(b"\r\n");
}

/// The Content-Length field, also where no content follows: a HEAD's is what
/// GET would have sent, if that is known (RFC 9110 §8.6).
fn announced_length(asker: Asker<'_>, response: &Response) -> Option<u64> {
    match response.status() {
        status if status.is_informational() => None,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => None,
        _ if *asker.method == Method::HEAD && matches!(response.body(), Body::Empty) => None,
        _ => response.body().length(),
    }
}

fn fields(head: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers.iter().filter(|(name, _)| !is_framing(name)) {
        field(head, name.as_str(), value.as_bytes());
    }
}

/// An interim response (RFC 9110 §15.2).
pub fn interim_head(interim: &http::Response<()>) -> Vec<u8> {
    let mut head = Vec::new();
    status_line(&mut head, "HTTP/1.1", interim.status(), None);
    for (name, value) in interim
        .headers()
        .iter()
        .filter(|(name, _)| !is_framing(name))
    {
        field(&mut head, name.as_str(), value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// The head that ends HTTP on a connection (RFC 9110 §15.2.2).
pub fn switching_head(response: &Response) -> Vec<u8> {
    let mut head = Vec::new();
    status_line(
        &mut head,
        "HTTP/1.1",
        response.status(),
        response.extensions().get(),
    );
    fields(&mut head, response.headers());
    field(&mut head, "connection", b"Upgrade");
    for protocol in response.headers().get_all(UPGRADE) {
        field(&mut head, "upgrade", protocol.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// The space after the code stays even without a phrase (RFC 9112 §4, C87).
fn status_line(head: &mut Vec<u8>, protocol: &str, status: StatusCode, reason: Option<&Reason>) {
    head.extend_from_slice(protocol.as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    match reason {
        Some(Reason(reason)) => head.extend_from_slice(reason),
        None => head.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes()),
    }
    head.extend_from_slice(b"\r\n");
}

/// What `write!` does, at a tenth of its cost; it is in every answer.
fn decimal_digits(head: &mut Vec<u8>, number: u64) {
    let start = head.len();
    let mut rest = number;
    loop {
        head.push(b'0' + u8::try_from(rest % 10).expect("a digit"));
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    head[start..].reverse();
}

/// Names are sent in the case they are known in: equal for the protocol, and
/// what people and old clients expect to see.
pub fn field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    match name {
        "etag" => head.extend_from_slice(b"ETag"),
        "www-authenticate" => head.extend_from_slice(b"WWW-Authenticate"),
        _ => {
            let mut starts_word = true;
            for byte in name.bytes() {
                head.push(if starts_word {
                    byte.to_ascii_uppercase()
                } else {
                    byte
                });
                starts_word = byte == b'-';
            }
        }
    }
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn is_framing(name: &HeaderName) -> bool {
    [
        CONNECTION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        TE,
        TRAILER,
        UPGRADE,
    ]
    .contains(name)
}

/// What stands before a chunk's data (RFC 9112 §7.1).
pub fn chunk_head(length: usize) -> Vec<u8> {
    format!("{length:x}\r\n").into_bytes()
}

pub const CHUNK_END: &[u8] = b"\r\n";
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A field value that `HeaderMap` takes, for an engine that has bytes.
pub fn header(name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    Some((
        HeaderName::from_bytes(name).ok()?,
        HeaderValue::from_bytes(value).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let fields = fields
            .iter()
            .map(|(n, v)| header(n.as_bytes(), v.as_bytes()).unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn content_is_framed_by_one_unambiguous_field_c73() {
        let bad = Err(400);
        for (fields, expected) in [
            (&[][..], Ok(Framing::None)),
            (&[("content-length", "0")], Ok(Framing::Length(0))),
            (
                &[("content-length", "5"), ("content-length", "5")],
                Ok(Framing::Length(5)),
            ),
            (&[("content-length", "5"), ("content-length", "6")], bad),
            (&[("content-length", "+3")], bad),
            (&[("content-length", "3 4")], bad),
            (&[("content-length", "0x3")], bad),
            (&[("content-length", "")], bad),
            (&[("content-length", "99999999999999999999999")], bad),
            (&[("transfer-encoding", "chunked")], Ok(Framing::Chunked)),
            (&[("transfer-encoding", "Chunked")], Ok(Framing::Chunked)),
            (
                &[("transfer-encoding", "chunked"), ("content-length", "3")],
                bad,
            ),
            (
                &[
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
                bad,
            ),
            (&[("transfer-encoding", "chunked, gzip")], bad),
            (&[("transfer-encoding", "chunked,")], bad),
            (&[("transfer-encoding", "gzip, chunked")], Err(501)),
            (&[("transfer-encoding", "xchunked")], Err(501)),
            (&[("transfer-encoding", "gzip")], Err(501)),
        ] {
            let found = content_framing(Version::HTTP_11, &headers(fields));
            assert_eq!(
                found.map_err(|fault| fault.status.as_u16()),
                expected,
                "{fields:?}"
            );
        }
    }

    #[test]
    fn numbers_are_written_as_decimal_digits() {
        for number in [0, 7, 10, 1_024, 99_999, u64::MAX] {
            let mut text = Vec::new();
            decimal_digits(&mut text, number);
            assert_eq!(text, number.to_string().as_bytes());
        }
    }

    #[test]
    fn http_1_0_knows_no_transfer_coding() {
        let chunked = headers(&[("transfer-encoding", "chunked")]);
        assert!(content_framing(Version::HTTP_10, &chunked).is_err());
    }

    #[test]
    fn the_connection_goes_on_as_version_and_options_say() {
        for (version, value, expected) in [
            (Version::HTTP_11, "", true),
            (Version::HTTP_11, "close", false),
            (Version::HTTP_11, "Upgrade, CLOSE", false),
            (Version::HTTP_10, "", false),
            (Version::HTTP_10, "Keep-Alive", true),
        ] {
            let headers = headers(&[("connection", value)]);
            assert_eq!(
                wants_keep_alive(version, &headers),
                expected,
                "{version:?} {value}"
            );
        }
    }
}
