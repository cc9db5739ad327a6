//! What a script answers: the header block of its output, read and judged
//! (RFC 3875 §6.2, §6.3), for every kind of gateway.
//!
//! Owns the bytes up to the empty line. What comes after is the body, byte for
//! byte, and the caller's; a body the script has chunked itself goes through
//! [`Unchunk`](super::unchunk::Unchunk). No block gets through that would mean
//! something else to the client than it meant here.

use std::fmt;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue, LOCATION, SERVER,
    TRANSFER_ENCODING,
};
use http::{HeaderMap, Method, StatusCode};

use crate::html;
use crate::message::{Body, Reason, Response};

/// C81 asks for at least 32 KiB; the rest is for the name.
const MAX_LINE_BYTES: usize = 33 * 1024;
/// At least 64 KiB.
const MAX_BLOCK_BYTES: usize = 2 * MAX_LINE_BYTES;
/// Of interim blocks together; they wait in memory for a client that is slow to
/// take them. Later ones are dropped.
pub const MAX_INTERIM_BYTES: usize = MAX_BLOCK_BYTES;
/// Besides those that are the gateway's own, such as Content-Type.
const MAX_FIELDS: usize = 1000;

/// Reads header blocks from output that arrives in pieces of any size.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// What has arrived and was not yet taken line by line.
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no line end.
    searched: usize,
    /// Bytes of the current block in the lines taken from it.
    consumed: usize,
    /// Bytes of interim blocks so far.
    interim: usize,
    block: Draft,
    /// Some output has come.
    started: bool,
    /// The final block has been given away.
    done: bool,
}

/// One header block, judged.
#[derive(Debug)]
pub enum Block {
    /// To be sent before the response, to a client that can take it (C90).
    Interim(http::Response<()>),
    /// `100 Continue` is the server's own to say, and too many others are too many.
    Dropped,
    Final(Reply),
}

/// The header of the response, as far as the script has a say in it.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    /// The script's own words after the status code, if it has any.
    pub reason: Option<Bytes>,
    /// What goes to the client. Without what concerns only the gateway or the
    /// connection, and without Content-Length.
    pub headers: HeaderMap,
    pub kind: Kind,
    /// In bytes, as announced by the script (C110).
    pub content_length: Option<u64>,
    /// The body is chunked by the script and is to be decoded (C102).
    pub chunked: bool,
    /// The script wishes the connection closed.
    pub close: bool,
    /// The file or location that X-Sendfile or one of its kin names (C106).
    pub sendfile: Option<Vec<u8>>,
    /// `X-CGI-…`: heeded from our own worker code alone, never sent on (C105).
    pub extensions: Option<Box<HeaderMap>>,
    /// For the log.
    pub warnings: Vec<String>,
}

/// The kinds of response (RFC 3875 §6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Document,
    /// Path and query of what is to be fetched in its place. Only if no body
    /// follows: else the reply, as it is, is a client redirect (C94).
    LocalRedirect(Bytes),
    ClientRedirect,
}

/// Why output is no response. Nothing of it is sent (C82).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// A stable word for the log.
    pub reason: &'static str,
    pub message: String,
}

impl Kind {
    pub fn is_local(&self) -> bool {
        matches!(self, Self::LocalRedirect(_))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Invalid {}

impl Invalid {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    fn of_line(reason: &'static str, what: &str, line: &[u8]) -> Self {
        Self::new(reason, format!("{what}: {}", quoted(line)))
    }
}

impl Reply {
    /// Whether the response to `method` ends with its header whatever the
    /// script prints; the rest of the output is read and dropped (C112, C113).
    pub fn is_bodiless(&self, method: &Method) -> bool {
        method == Method::HEAD || matches!(self.status.as_u16(), 204 | 205 | 304)
    }

    /// The response, which has no body yet.
    pub fn take_response(&mut self) -> Response {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = self.status;
        *response.headers_mut() = std::mem::take(&mut self.headers);
        if self.close {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        if let Some(reason) = self.reason.take() {
            response.extensions_mut().insert(Reason(reason));
        }
        response
    }
}

impl HeadReader {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.started |= !bytes.is_empty();
        self.buffer.extend_from_slice(bytes);
    }

    /// The next block if it is complete. After `Interim` and `Dropped` another
    /// follows. After an error the reader is of no more use.
    pub fn next_block(&mut self) -> Result<Option<Block>, Invalid> {
        while !self.done {
            let Some(line) = self.next_line()? else {
                return Ok(None);
            };
            if !line.is_empty() {
                self.block.add_line(&line)?;
                continue;
            }
            let length = std::mem::take(&mut self.consumed);
            let block = std::mem::take(&mut self.block).judge()?;
            self.done = matches!(block, Block::Final(_));
            if let Block::Interim(_) = block {
                self.interim = self.interim.saturating_add(length);
                if self.interim > MAX_INTERIM_BYTES {
                    return Ok(Some(Block::Dropped));
                }
            }
            return Ok(Some(block));
        }
        Ok(None)
    }

    /// Without its end, LF or CRLF (C76).
    fn next_line(&mut self) -> Result<Option<Bytes>, Invalid> {
        let unseen = &self.buffer[self.searched..];
        let end = unseen.iter().position(|&b| b == b'\n');
        let length = end.map_or(self.buffer.len(), |at| self.searched + at);
        // One more than the limit may be the CR of the line's end.
        if length > MAX_LINE_BYTES + 1 || self.consumed + length > MAX_BLOCK_BYTES {
            let start = &self.buffer[..length];
            if self.block.lines == 0 && !looks_like_header(start) {
                return Err(not_a_header(start));
            }
            let what = "the header or one of its lines is too long, in the line";
            return Err(Invalid::of_line("too-long", what, start));
        }
        if end.is_none() {
            self.searched = length;
            return Ok(None);
        }
        self.searched = 0;
        self.consumed += length + 1;
        let mut line = self.buffer.split_to(length + 1);
        line.truncate(length);
        if line.ends_with(b"\r") {
            line.truncate(length - 1);
        }
        Ok(Some(line.freeze()))
    }

    /// The output ended before the block did.
    pub fn end(self) -> Invalid {
        if !self.started {
            return Invalid::new("no-output", format!("the script printed nothing; {ADVICE}"));
        }
        let is_first = self.block.lines == 0 && !self.buffer.is_empty();
        if is_first && !looks_like_header(&self.buffer) {
            return not_a_header(&self.buffer);
        }
        Invalid::new(
            "half-header",
            "the output ends before the header does; an empty line must follow its last field",
        )
    }

    /// What came after the final block: the beginning of the body.
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }
}

const ADVICE: &str = "it must first print its header, such as `Content-Type: text/html`, \
     and an empty line";

/// Whether someone meant the line for the first of a header, right or wrong.
fn looks_like_header(line: &[u8]) -> bool {
    let colon = line.iter().position(|&b| b == b':');
    let name = colon.map(|colon| line[..colon].trim_ascii());
    line.starts_with(b"HTTP/") || name.is_some_and(|name| HeaderName::from_bytes(name).is_ok())
}

fn not_a_header(output: &[u8]) -> Invalid {
    let start = quoted(output);
    Invalid::new(
        "no-header",
        format!("the output starts with {start}, which is no header field; {ADVICE}"),
    )
}

/// For the log: escaped and shortened.
fn quoted(line: &[u8]) -> String {
    const LONGEST: usize = 60;
    let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST)]);
    let more = if line.len() > LONGEST { "…" } else { "" };
    format!("{text:?}{more}")
}

/// A block while its lines come in.
#[derive(Debug, Default)]
struct Draft {
    lines: usize,
    fields: usize,
    /// From a first line such as `HTTP/1.1 404 Not Found` (C91).
    status_line: Option<Status>,
    status: Option<Status>,
    headers: HeaderMap,
}

#[derive(Clone, Debug)]
struct Status {
    code: u16,
    reason: Option<Bytes>,
}

impl Draft {
    fn add_line(&mut self, line: &Bytes) -> Result<(), Invalid> {
        self.lines += 1;
        if line.contains(&0) {
            return Err(Invalid::of_line("nul", "a header line holds a NUL", line));
        }
        if line.contains(&b'\r') {
            let what = "a header line holds a carriage return";
            return Err(Invalid::of_line("bare-cr", what, line));
        }
        let is_first = self.lines == 1;
        // Leniency of lighttpd: no field has a name with a slash in it.
        if is_first && line.starts_with(b"HTTP/") {
            self.status_line = Some(Status::of_status_line(line)?);
            return Ok(());
        }
        if is_first && !looks_like_header(line) {
            return Err(not_a_header(line));
        }
        let (name, value) =
            split_field(line).map_err(|what| Invalid::of_line("bad-line", what, line))?;
        // A field without a value counts as not sent (C79).
        if value.is_empty() {
            return Ok(());
        }
        self.add_field(name, value, line)
    }

    fn add_field(&mut self, name: HeaderName, value: Bytes, line: &Bytes) -> Result<(), Invalid> {
        let is_status = name.as_str() == "status";
        let is_known = if is_status {
            self.status.is_some()
        } else {
            (name == CONTENT_TYPE || name == LOCATION) && self.headers.contains_key(&name)
        };
        if is_known {
            let what = "a field that may be there once is there again";
            return Err(Invalid::of_line("duplicate-field", what, line));
        }
        if is_status {
            self.status = Some(Status::of_field(&value, line)?);
            return Ok(());
        }
        let Ok(value) = HeaderValue::from_maybe_shared(value) else {
            let what = "a header line holds a control character";
            return Err(Invalid::of_line("control-character", what, line));
        };
        if name != CONTENT_TYPE && name != LOCATION {
            self.fields += 1;
        }
        if self.fields > MAX_FIELDS {
            let what = "the header has more than 1000 fields, the last of them";
            return Err(Invalid::of_line("too-many-fields", what, line));
        }
        self.headers.append(name, value);
        Ok(())
    }

    fn judge(mut self) -> Result<Block, Invalid> {
        if self.lines == 0 {
            let message = format!("the output starts with an empty line; {ADVICE}");
            return Err(Invalid::new("no-header", message));
        }
        // CGI.pm prints both in its nph mode; the field is the script's own.
        let status = self.status.take().or(self.status_line.take());
        match &status {
            Some(Status { code: 100, .. }) => Ok(Block::Dropped),
            Some(Status {
                code: 102 | 103, ..
            }) => self.into_interim(status),
            _ => self.into_reply(status).map(Block::Final),
        }
    }
}

/// `Err` says what is wrong with the line (C77, C78).
fn split_field(line: &Bytes) -> Result<(HeaderName, Bytes), &'static str> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err("a header line starts with a space, and there are no continuation lines");
    }
    let Some(colon) = line.iter().position(|&b| b == b':') else {
        return Err("a header line has no colon; the header must end with an empty line");
    };
    let name = &line[..colon];
    if name.ends_with(b" ") || name.ends_with(b"\t") {
        return Err("there is a space between the name of a field and its colon");
    }
    let Ok(name) = HeaderName::from_bytes(name) else {
        return Err("the name of a field is empty or holds a character it may not");
    };
    let value = line[colon + 1..].trim_ascii();
    Ok((name, line.slice_ref(value)))
}

impl Status {
    /// `NNN`, then at most a reason phrase (C87).
    fn of_field(value: &[u8], line: &[u8]) -> Result<Self, Invalid> {
        let (code, reason) = value.split_at(value.len().min(3));
        let is_apart = reason.first().is_none_or(|b| b" \t".contains(b));
        match decimal(code) {
            Some(101) if is_apart => {
                let what = "the script wants to switch protocols, which can't be done here";
                Err(Invalid::of_line("bad-status", what, line))
            }
            Some(code @ (100 | 102 | 103 | 200..=599)) if is_apart => Ok(Self {
                code: u16::try_from(code).expect("three digits"),
                reason: reason_phrase(reason),
            }),
            _ => {
                let what = "the status is no number from 200 to 599";
                Err(Invalid::of_line("bad-status", what, line))
            }
        }
    }

    fn of_status_line(line: &[u8]) -> Result<Self, Invalid> {
        let Some([b'0'..=b'9', b' ', status @ ..]) = line.strip_prefix(b"HTTP/1.") else {
            let what = "the first line is neither a header field nor an HTTP/1 status line";
            return Err(Invalid::of_line("bad-status", what, line));
        };
        Self::of_field(status.trim_ascii_start(), line)
    }
}

fn reason_phrase(text: &[u8]) -> Option<Bytes> {
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_control())
        .collect();
    let phrase = text.trim_ascii();
    (!phrase.is_empty()).then(|| Bytes::copy_from_slice(phrase))
}

/// Digits only.
fn decimal(text: &[u8]) -> Option<u64> {
    let is_plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_plain.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

impl Draft {
    fn into_interim(self, status: Option<Status>) -> Result<Block, Invalid> {
        let reply = self.into_reply(status)?;
        let mut interim = http::Response::new(());
        *interim.status_mut() = reply.status;
        *interim.headers_mut() = reply.headers;
        Ok(Block::Interim(interim))
    }

    fn into_reply(mut self, status: Option<Status>) -> Result<Reply, Invalid> {
        let mut warnings = Vec::new();
        if status.is_none() && !has_any(&self.headers, &[CONTENT_TYPE, LOCATION]) {
            warnings.push(
                "the script printed no Content-Type; its body is sent without one".to_owned(),
            );
        }
        let code = status.as_ref().map(|status| status.code);
        let (code, kind) = settle_kind(code, &mut self.headers);
        let chunked = settle_coding(&self.headers)?;
        let close = settle_connection(&mut self.headers);
        let (sendfile, extensions) = settle_extensions(&mut self.headers);
        let announced = settle_length(&mut self.headers, chunked, &mut warnings);
        settle_date_and_server(&mut self.headers, &mut warnings);
        Ok(Reply {
            status: StatusCode::from_u16(code).expect("three digits, checked"),
            reason: status.and_then(|status| status.reason),
            headers: self.headers,
            kind,
            content_length: match code {
                100..=199 | 204 => None,
                205 => Some(0),
                _ => announced,
            },
            chunked,
            close,
            sendfile,
            extensions,
            warnings,
        })
    }
}

fn has_any(headers: &HeaderMap, names: &[HeaderName]) -> bool {
    names.iter().any(|name| headers.contains_key(name))
}

/// Keeps the order of what stays, which `HeaderMap::remove` doesn't.
fn retain(headers: &mut HeaderMap, keep: impl Fn(&HeaderName) -> bool) {
    let kept = headers.iter().filter(|(name, _)| keep(name));
    *headers = kept.fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name.clone(), value.clone());
        map
    });
}

/// C88, C92 to C100.
fn settle_kind(status: Option<u16>, headers: &mut HeaderMap) -> (u16, Kind) {
    let is_alone = headers.len() == 1;
    let Some(location) = headers.get_mut(LOCATION) else {
        return (status.unwrap_or(200), Kind::Document);
    };
    match status {
        Some(code @ (301 | 302 | 303 | 307 | 308)) => (code, Kind::ClientRedirect),
        Some(code) => (code, Kind::Document),
        None if location.as_bytes().starts_with(b"/") => {
            *location = without_authority(location);
            let path = Bytes::copy_from_slice(without_fragment(location.as_bytes()));
            let kind = if is_alone {
                Kind::LocalRedirect(path)
            } else {
                Kind::ClientRedirect
            };
            (302, kind)
        }
        None => (302, Kind::ClientRedirect),
    }
}

/// `//host/x` is a path to RFC 3875 and a host to browsers, which read `/\` the
/// same way: one slash it is (C98).
fn without_authority(location: &HeaderValue) -> HeaderValue {
    let bytes = location.as_bytes();
    let path = bytes.iter().position(|b| !b"/\\".contains(b));
    let path = &bytes[path.unwrap_or(bytes.len())..];
    HeaderValue::from_bytes(&[b"/", path].concat()).expect("part of a value is a value")
}

fn without_fragment(location: &[u8]) -> &[u8] {
    let end = location.iter().position(|&b| b == b'#');
    &location[..end.unwrap_or(location.len())]
}

/// Whether the body comes chunked; no other coding can be undone (C102).
fn settle_coding(headers: &HeaderMap) -> Result<bool, Invalid> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        (Some(coding), _) => {
            let what = "the script sends a Transfer-Encoding that can't be undone";
            Err(Invalid::of_line("bad-coding", what, coding.as_bytes()))
        }
    }
}

/// Drops what belongs to a connection (C101). Whether it is to be closed.
fn settle_connection(headers: &mut HeaderMap) -> bool {
    const OF_A_CONNECTION: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    let options: Vec<Vec<u8>> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .map(|option| option.trim_ascii().to_ascii_lowercase())
        .collect();
    retain(headers, |name| {
        // The response would not mean the same without these.
        let is_own = name == CONTENT_TYPE || name == LOCATION;
        let is_named = options
            .iter()
            .any(|option| option == name.as_str().as_bytes());
        !OF_A_CONNECTION.contains(&name.as_str()) && (is_own || !is_named)
    });
    options.iter().any(|option| option == b"close")
}

/// Takes out what is meant for the gateway (C105, C106).
fn settle_extensions(headers: &mut HeaderMap) -> (Option<Vec<u8>>, Option<Box<HeaderMap>>) {
    const SENDFILE: [&str; 3] = ["x-sendfile", "x-lighttpd-send-file", "x-accel-redirect"];
    let sendfile = SENDFILE.iter().find_map(|name| headers.get(*name));
    let sendfile = sendfile.map(|value| value.as_bytes().to_vec());
    let is_own = |name: &HeaderName| name.as_str().starts_with("x-cgi-");
    let own = headers.iter().filter(|(name, _)| is_own(name));
    let own: HeaderMap = own.map(|(n, value)| (n.clone(), value.clone())).collect();
    let extensions = (!own.is_empty()).then(|| Box::new(own));
    retain(headers, |name| {
        !is_own(name) && !SENDFILE.contains(&name.as_str())
    });
    (sendfile, extensions)
}

/// The announced length, if it is one (C111).
fn settle_length(
    headers: &mut HeaderMap,
    chunked: bool,
    warnings: &mut Vec<String>,
) -> Option<u64> {
    let values = headers.get_all(CONTENT_LENGTH);
    let lengths: Vec<_> = values
        .iter()
        .map(|value| decimal(value.as_bytes()))
        .collect();
    retain(headers, |name| name != CONTENT_LENGTH);
    let (first, others) = lengths.split_first()?;
    let warning = match first {
        Some(_) if chunked => "a Content-Length beside a chunked body is dropped",
        Some(_) if others.iter().any(|other| other != first) => {
            "two Content-Length fields that differ are dropped"
        }
        Some(length) => return Some(*length),
        None => "a Content-Length that is no plain decimal number is dropped",
    };
    warnings.push(warning.to_owned());
    None
}

/// At most one of each, and only a Date that is one (C103).
fn settle_date_and_server(headers: &mut HeaderMap, warnings: &mut Vec<String>) {
    if let Some(server) = headers.get(SERVER).cloned() {
        headers.insert(SERVER, server);
    }
    let Some(first) = headers.get(DATE) else {
        return;
    };
    let date = first.to_str().ok();
    let date: Option<SystemTime> = date.and_then(|text| httpdate::parse_http_date(text).ok());
    if let Some(date) = date {
        // Senders write only one of the three formats (RFC 9110 §5.6.7).
        let text = httpdate::fmt_http_date(date);
        let value = HeaderValue::from_str(&text).expect("a date is plain text");
        headers.insert(DATE, value);
    } else {
        warnings.push("a Date that is no HTTP date is dropped".to_owned());
        retain(headers, |name| name != DATE);
    }
}

/// The body of a redirect whose script printed none (C99).
pub fn redirect_page(location: &HeaderValue) -> String {
    let location = String::from_utf8_lossy(location.as_bytes());
    let text = html::escape(&location);
    // `javascript:` is nothing to click on.
    let before_path = location.split(['/', '?', '#']).next().unwrap_or_default();
    let scheme = before_path.split_once(':').map(|(scheme, _)| scheme);
    let is_safe = scheme.is_none_or(|scheme| {
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    });
    let link = if is_safe {
        format!("<a href=\"{text}\">{text}</a>")
    } else {
        text
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>Redirect</title></head>\n<body><p>See {link}</p></body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All blocks of `output` and what follows them.
    fn read(output: &[u8]) -> Result<(Vec<Block>, Bytes), Invalid> {
        read_in_pieces(output.chunks(output.len().max(1)))
    }

    fn read_in_pieces<'a>(
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(Vec<Block>, Bytes), Invalid> {
        let mut reader = HeadReader::new();
        let mut blocks = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(block) = reader.next_block()? {
                blocks.push(block);
            }
        }
        match blocks.last() {
            Some(Block::Final(_)) => Ok((blocks, reader.into_rest())),
            _ => Err(reader.end()),
        }
    }

    fn reply(output: impl AsRef<[u8]>) -> Reply {
        let output = output.as_ref();
        match read(output).map(|(mut blocks, _)| blocks.pop()) {
            Ok(Some(Block::Final(reply))) => reply,
            other => panic!("{}: {other:?}", output.escape_ascii()),
        }
    }

    fn reason(output: impl AsRef<[u8]>) -> &'static str {
        match read(output.as_ref()) {
            Ok((blocks, _)) => panic!("accepted: {blocks:?}"),
            Err(invalid) => invalid.reason,
        }
    }

    fn fields(reply: &Reply) -> Vec<(&str, String)> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = reply.headers.iter();
        headers
            .map(|(name, value)| (name.as_str(), text(value)))
            .collect()
    }

    fn names(reply: &Reply) -> Vec<&str> {
        reply.headers.keys().map(HeaderName::as_str).collect()
    }

    fn location(reply: &Reply) -> Option<&str> {
        reply
            .headers
            .get(LOCATION)
            .map(|value| value.to_str().unwrap())
    }

    fn local(path: &str) -> Kind {
        Kind::LocalRedirect(Bytes::copy_from_slice(path.as_bytes()))
    }

    #[test]
    fn the_block_ends_at_the_first_empty_line_and_the_rest_is_body_c76() {
        for (output, body) in [
            (&b"Content-Type: a/b\n\nbody"[..], &b"body"[..]),
            (b"Content-Type: a/b\r\n\r\n\r\nbody\n\n", b"\r\nbody\n\n"),
            (b"Content-Type: a/b\r\nX: y\n\r\n\0\r", b"\0\r"),
            (b"content-type:a/b\n\n", b""),
        ] {
            let (mut blocks, rest) = read(output).unwrap();
            assert_eq!(rest, body);
            let Some(Block::Final(reply)) = blocks.pop() else {
                panic!("no final block")
            };
            assert_eq!(reply.headers[CONTENT_TYPE], "a/b");
            assert_eq!((reply.status, reply.kind), (StatusCode::OK, Kind::Document));
        }
    }

    #[test]
    fn output_that_is_no_header_is_refused_with_a_reason_c77_to_c82() {
        for (output, expected) in [
            // C82
            (&b""[..], "no-output"),
            (b"\nContent-Type: a/b\n\n", "no-header"),
            (b"\r\n", "no-header"),
            (b"hello\n", "no-header"),
            (b"hello", "no-header"),
            (b"hello world: x\n", "no-header"),
            (b"<p style='a:b'>\n\n", "no-header"),
            (b"Content-Type: a/b\n", "half-header"),
            (b"Content-Type: a/b", "half-header"),
            (b"Content-Type: a/b\n\r", "half-header"),
            (b"Status: 103\n\n", "half-header"),
            (b"Content-Type: a/b\nhello\n", "bad-line"),
            // C77
            (b"Content-Type : a/b\n\n", "bad-line"),
            (b"Content-Type\t: a/b\n\n", "bad-line"),
            (b"A: b\nX Y: z\n\n", "bad-line"),
            (b"A: b\n: z\n\n", "bad-line"),
            (b"A: b\nX\x01: z\n\n", "bad-line"),
            (b"A: b\nX\xe9: z\n\n", "bad-line"),
            // C78
            (b"A: b\n c\n\n", "bad-line"),
            (b"A: b\n\tc: d\n\n", "bad-line"),
            (b" A: b\n\n", "bad-line"),
            (b"A: b\n \n\n", "bad-line"),
            // C80
            (b"A: b\0c\n\n", "nul"),
            (b"A\0: b\n\n", "nul"),
            (b"A: b\rX: c\n\n", "bare-cr"),
            (b"A: b\r\r\n\n", "bare-cr"),
            (b"A: b\x1bc\n\n", "control-character"),
            (b"A: b\x7f\n\n", "control-character"),
            // C85
            (
                b"Content-Type: a/b\nContent-type: a/b\n\n",
                "duplicate-field",
            ),
            (b"Location: /a\nLOCATION: /a\n\n", "duplicate-field"),
            (b"Status: 200\nstatus: 200\n\n", "duplicate-field"),
            // C102
            (b"Transfer-Encoding: gzip\n\n", "bad-coding"),
            (b"Transfer-Encoding: identity\n\n", "bad-coding"),
            (b"Transfer-Encoding: gzip, chunked\n\n", "bad-coding"),
            (
                b"Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n",
                "bad-coding",
            ),
        ] {
            assert_eq!(reason(output), expected, "{}", output.escape_ascii());
        }
    }

    #[test]
    fn a_refusal_quotes_the_line_escaped_and_shortened_c82() {
        let message = |output: &[u8]| read(output).unwrap_err().message;
        let text = message(b"hello \x1b[31m\n");
        assert!(text.contains(r#""hello \u{1b}[31m""#), "{text}");
        assert!(text.contains("`Content-Type: text/html`"), "{text}");
        let long = message(&[b"x".repeat(5000), b"\n".to_vec()].concat());
        assert!(long.contains("xxx\"…") && long.len() < 300, "{long}");
        assert!(message(b"").contains("printed nothing"));
        assert!(message(b"A: b\n").contains("empty line"));
    }

    #[test]
    fn long_blocks_are_read_and_too_long_ones_are_not_c81() {
        let field = |length: usize| format!("X: {}\n", "v".repeat(length));
        let many = |count: usize| "X: v\n".repeat(count);
        for length in [32 * 1024, MAX_LINE_BYTES - 3] {
            let value = &reply(field(length) + "\n").headers["x"];
            assert_eq!(value.len(), length);
        }
        assert_eq!(
            reply(field(32_760) + &field(32_760) + "\n").headers.len(),
            2
        );
        let full = reply(many(1000) + "Content-Type: a/b\nStatus: 200\n\n");
        assert_eq!(full.headers.len(), 1001);

        assert_eq!(reason(field(MAX_LINE_BYTES) + "\n"), "too-long");
        assert_eq!(reason(field(30_000).repeat(3) + "\n"), "too-long");
        assert_eq!(reason("X".repeat(MAX_BLOCK_BYTES)), "no-header");
        assert_eq!(reason(many(1001) + "\n"), "too-many-fields");
        assert_eq!(reason("X:\n".repeat(MAX_BLOCK_BYTES)), "too-long");
    }

    #[test]
    fn the_limits_do_not_count_the_body_c81() {
        let output = [b"A: b\n\n".to_vec(), vec![b'x'; 2 * MAX_BLOCK_BYTES]].concat();
        assert_eq!(read(&output).unwrap().1.len(), 2 * MAX_BLOCK_BYTES);
    }

    #[test]
    fn values_are_opaque_bytes_c80_c84() {
        let reply = reply(b"Content-Type: Text/X;charset=\xe9\t;\"\nX:  \xff\x20a:b \n\n");
        assert_eq!(
            reply.headers[CONTENT_TYPE].as_bytes(),
            b"Text/X;charset=\xe9\t;\""
        );
        assert_eq!(reply.headers["x"].as_bytes(), b"\xff a:b");
    }

    #[test]
    fn a_field_without_a_value_was_not_sent_c79() {
        let empty = reply("Location:\nStatus: \nX:\nContent-Type: a/b\n\n");
        assert_eq!(
            (empty.status, empty.kind.clone()),
            (StatusCode::OK, Kind::Document)
        );
        assert_eq!(names(&empty), ["content-type"]);
        let later = reply("Content-Type:\nContent-Type: a/b\nStatus:\nStatus: 201\n\n");
        assert_eq!(later.status, 201);
        assert_eq!(reply("Location:\n\n").warnings.len(), 1);
    }

    #[test]
    fn a_missing_type_is_logged_and_not_guessed_c83() {
        let typeless = reply("X-Field: 1\n\n<html>");
        assert_eq!(names(&typeless), ["x-field"]);
        assert_eq!(typeless.warnings.len(), 1);
        for output in [
            "Content-Type: a/b\n\n",
            "Status: 200\n\n",
            "Location: /\n\n",
        ] {
            assert!(reply(output).warnings.is_empty(), "{output}");
        }
    }

    #[test]
    fn the_status_is_three_digits_and_a_phrase_c87_c88_c89_c91() {
        for (line, status, phrase) in [
            ("Status: 404", 404, None),
            ("Status:404 Not Here", 404, Some("Not Here")),
            ("status:  599   A  b ", 599, Some("A  b")),
            ("Status: 200 ", 200, None),
            ("Status: 204\tx", 204, Some("x")),
            ("Status: 200 a\x01b\tc\x7f", 200, Some("abc")),
            ("Status: 299 \x02", 299, None),
            ("HTTP/1.1 404 Not Here", 404, Some("Not Here")),
            ("HTTP/1.0 204", 204, None),
            ("HTTP/1.1  302 ", 302, None),
            ("HTTP/1.1 200 OK\nStatus: 410 Gone", 410, Some("Gone")),
        ] {
            let reply = reply(format!("{line}\nContent-Type: a/b\n\n"));
            assert_eq!(reply.status, status, "{line}");
            assert_eq!(reply.reason.as_deref(), phrase.map(str::as_bytes), "{line}");
            assert_eq!(names(&reply), ["content-type"], "{line}");
        }
        for line in [
            "Status: abc",
            "Status: 99",
            "Status: 1000",
            "Status: 600",
            "Status: 199",
            "Status: 101",
            "Status: 104",
            "Status: 20",
            "Status: 2000 OK",
            "Status: 200OK",
            "Status: +20",
            "Status: OK 200",
            "Status: 000",
            "HTTP/1.1 101 Switching",
            "HTTP/1.1",
            "HTTP/1.1 ",
            "HTTP/1.1 abc",
            "HTTP/2 200",
            "HTTP/1.1 1000",
            "HTTP/",
        ] {
            assert_eq!(reason(format!("{line}\nA: b\n\n")), "bad-status", "{line}");
        }
        assert_eq!(reason("A: b\nHTTP/1.1 200 OK\n\n"), "bad-line");
    }

    #[test]
    fn interim_blocks_come_before_the_final_one_c90() {
        let output = b"Status: 103 Early\nLink: <a>\nLink: <b>\nContent-Length: 3\n\n\
            HTTP/1.1 100 Continue\n\nStatus: 102\n\nStatus: 404\n\nStatus: 103\n\n";
        let (blocks, rest) = read(output).unwrap();
        assert_eq!(rest, "Status: 103\n\n");
        let [
            Block::Interim(early),
            Block::Dropped,
            Block::Interim(processing),
            Block::Final(last),
        ] = &blocks[..]
        else {
            panic!("{blocks:?}")
        };
        assert_eq!(early.status(), 103);
        let links: Vec<_> = early.headers().get_all("link").iter().collect();
        assert_eq!(links, ["<a>", "<b>"]);
        assert_eq!(early.headers().len(), 2);
        assert_eq!(processing.status(), 102);
        assert_eq!(last.status, 404);
    }

    #[test]
    fn a_location_makes_a_redirect_of_its_kind_c92_to_c100() {
        let client = Kind::ClientRedirect;
        for (output, status, kind, sent) in [
            // C93
            ("Location: /a/b?c", 302, local("/a/b?c"), "/a/b?c"),
            ("Location: /a#f", 302, local("/a"), "/a#f"),
            ("Location: /a?b#f?", 302, local("/a?b"), "/a?b#f?"),
            ("Location: /\nX:", 302, local("/"), "/"),
            // C98: never another host
            ("Location: //host/x", 302, local("/host/x"), "/host/x"),
            ("Location: /\\host/x\nX: y", 302, client.clone(), "/host/x"),
            ("Location: ///host\nX: y", 302, client.clone(), "/host"),
            // C94
            ("Location: /a\nSet-Cookie: b=c", 302, client.clone(), "/a"),
            (
                "Content-Type: a/b\nLocation: /a#f",
                302,
                client.clone(),
                "/a#f",
            ),
            // C95, C100
            ("Location: /a\nStatus: 302 Found", 302, client.clone(), "/a"),
            ("Location: /a\nStatus: 307", 307, client.clone(), "/a"),
            ("HTTP/1.1 303 See\nLocation: /a", 303, client.clone(), "/a"),
            ("Status: 201\nLocation: /a", 201, Kind::Document, "/a"),
            (
                "Status: 200\nLocation: http://h/a",
                200,
                Kind::Document,
                "http://h/a",
            ),
            ("Status: 304\nLocation: /a", 304, Kind::Document, "/a"),
            // C99
            (
                "Location: http://h/a#f",
                302,
                client.clone(),
                "http://h/a#f",
            ),
            ("Location: a/b", 302, client.clone(), "a/b"),
            ("Location: ?q", 302, client.clone(), "?q"),
            ("Location: mailto:a@b\nX: y", 302, client, "mailto:a@b"),
        ] {
            let reply = reply(format!("{output}\n\n"));
            assert_eq!(reply.status, status, "{output}");
            assert_eq!(reply.kind, kind, "{output}");
            assert_eq!(location(&reply), Some(sent), "{output}");
        }
    }

    #[test]
    fn what_belongs_to_the_connection_stays_here_c101() {
        let hop = reply(
            "Connection: X-Hop, Content-Type ,Location\nConnection: CLOSE\nX-Hop: 1\n\
             Keep-Alive: 1\nProxy-Connection: 1\nTE: 1\nTrailer: 1\nUpgrade: h2c\n\
             HTTP2-Settings: 1\nTransfer-Encoding: Chunked\nX-Kept: 1\nContent-Type: a/b\n\n",
        );
        assert_eq!(names(&hop), ["x-kept", "content-type"]);
        assert!(hop.close && hop.chunked);
        let plain = reply("Connection: keep-alive\nContent-Type: a/b\n\n");
        assert!(!plain.close && !plain.chunked);
    }

    #[test]
    fn there_is_one_date_and_one_server_c103() {
        let dated = reply("Date: Sun, 06 Nov 1994 08:49:37 GMT\nServer: a\nServer: b\nA: b\n\n");
        assert_eq!(dated.headers[DATE], "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(
            dated.headers.get_all(SERVER).iter().collect::<Vec<_>>(),
            ["a"]
        );
        let old = reply("Date: Sunday, 06-Nov-94 08:49:37 GMT\nDate: x\n\n");
        assert_eq!(
            fields(&old),
            [("date", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned())]
        );
        let bad = reply("Date: today\nContent-Type: a/b\n\n");
        assert_eq!(names(&bad), ["content-type"]);
        assert_eq!(bad.warnings.len(), 1);
    }

    #[test]
    fn repeated_fields_keep_their_lines_and_order_c104_c105() {
        let reply = reply(
            "Set-Cookie: a=1; Expires=Thu, 01 Jan 2026\nLink: <x>\nX-CGI-Ext: 1\n\
             Set-Cookie: b=2\nLink: <y>\nWWW-Authenticate: Basic\nSet-Cookie: a=3\n\
             Access-Control-Allow-Origin: *\n\n",
        );
        let cookies: Vec<_> = reply.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1; Expires=Thu, 01 Jan 2026", "b=2", "a=3"]);
        let links: Vec<_> = reply.headers.get_all("link").iter().collect();
        assert_eq!(links, ["<x>", "<y>"]);
        assert_eq!(
            names(&reply),
            [
                "set-cookie",
                "link",
                "www-authenticate",
                "access-control-allow-origin"
            ]
        );
    }

    #[test]
    fn a_file_to_be_sent_is_for_the_gateway_alone_c106() {
        for name in ["X-Sendfile", "X-LIGHTTPD-send-file", "X-Accel-Redirect"] {
            let reply = reply(format!("{name}: /srv/\u{e9}\nContent-Type: a/b\n\n"));
            assert_eq!(reply.sendfile.as_deref(), Some("/srv/\u{e9}".as_bytes()));
            assert_eq!(names(&reply), ["content-type"], "{name}");
        }
        assert_eq!(reply("X-Accel-Buffering: no\n\n").headers.len(), 1);
    }

    #[test]
    fn an_announced_length_is_a_plain_number_or_dropped_c102_c110_c111_c113() {
        for (output, length, warnings) in [
            ("Content-Length: 5", Some(5), 0),
            ("Content-Length: 005\nContent-Length: 5", Some(5), 0),
            ("Content-Length: 0", Some(0), 0),
            ("Content-Length:", None, 0),
            ("Content-Length: abc", None, 1),
            ("Content-Length: +5", None, 1),
            ("Content-Length: -5", None, 1),
            ("Content-Length: 0x5", None, 1),
            ("Content-Length: 5, 5", None, 1),
            ("Content-Length: 5\nContent-Length: 6", None, 1),
            ("Content-Length: 5\nContent-Length: x", None, 1),
            ("Content-Length: 18446744073709551615", Some(u64::MAX), 0),
            ("Content-Length: 18446744073709551616", None, 1),
            ("Content-Length: 5\nTransfer-Encoding: chunked", None, 1),
            ("Status: 204\nContent-Length: 5", None, 0),
            ("Status: 205\nContent-Length: 5", Some(0), 0),
            ("Status: 304\nContent-Length: 5", Some(5), 0),
        ] {
            let reply = reply(format!("Content-Type: a/b\n{output}\n\n"));
            assert_eq!(reply.content_length, length, "{output}");
            assert_eq!(reply.warnings.len(), warnings, "{output}");
            assert_eq!(names(&reply), ["content-type"], "{output}");
        }
    }

    #[test]
    fn some_responses_have_no_body_c112_c113() {
        for (status, method, expected) in [
            (200, Method::GET, false),
            (200, Method::HEAD, true),
            (404, Method::POST, false),
            (204, Method::GET, true),
            (205, Method::GET, true),
            (304, Method::GET, true),
        ] {
            let reply = reply(format!("Status: {status}\n\n"));
            assert_eq!(reply.is_bodiless(&method), expected, "{status} {method}");
        }
    }

    #[test]
    fn a_redirect_without_a_body_gets_one_that_is_escaped_c99() {
        let page = |location: &[u8]| redirect_page(&HeaderValue::from_bytes(location).unwrap());
        let plain = page(b"http://h/a?b&c");
        assert!(plain.contains(r#"<a href="http://h/a?b&amp;c">http://h/a?b&amp;c</a>"#));
        let hostile = page(b"a\"><script>'\xff");
        assert!(hostile.contains("a&quot;&gt;&lt;script&gt;&#39;\u{fffd}"));
        assert!(!page(b"JavaScript:alert(1)").contains("<a "));
        assert!(page(b"a?b:c").contains("<a "));
    }

    /// Output made of the parts that matter to the reader.
    fn outputs() -> impl Strategy<Value = Vec<u8>> {
        let parts: &[&[u8]] = &[
            b"\n",
            b"\n",
            b"\n\n",
            b"\r\n",
            b"\r",
            b"\0",
            b" ",
            b":",
            b"x",
            b"A: b\n",
            b"Content-Type: a/b\r\n",
            b"Status: 103\n",
            b"Status: 200 OK\n",
            b"Location: /x\n",
            b"HTTP/1.1 200 OK\n",
            b"Set-Cookie: \xff\n",
            b"Content-Length: 5\n",
            b"Connection: close, a\n",
            b"Transfer-Encoding: chunked\n",
        ];
        let part = proptest::sample::select(parts.to_vec());
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    fn told(result: Result<(Vec<Block>, Bytes), Invalid>) -> Result<String, &'static str> {
        result
            .map(|(blocks, rest)| format!("{blocks:?} {rest:?}"))
            .map_err(|invalid| invalid.reason)
    }

    proptest! {
        #[test]
        fn where_the_output_is_cut_makes_no_difference_c76(output in outputs()) {
            let whole = told(read(&output));
            prop_assert_eq!(&told(read_in_pieces(output.chunks(1))), &whole);
            for at in 0..=output.len() {
                let (before, after) = output.split_at(at);
                // What is left once a final block is there is read by others.
                let mut parts = vec![before, after];
                parts.retain(|part| !part.is_empty());
                let cut = read_in_pieces(parts.into_iter());
                prop_assert_eq!(&told(cut), &whole, "cut at {}", at);
            }
        }

        #[test]
        fn no_accepted_value_could_end_a_line_c80(output in prop_oneof![
            outputs(),
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::collection::vec(any::<u8>(), 0..200)
                .prop_map(|value| [b"A: ", &value[..], b"\n\n"].concat()),
            proptest::collection::vec(any::<u8>(), 0..50)
                .prop_map(|value| [b"Status: 200 ", &value[..], b"\n\n"].concat()),
        ]) {
            if let Ok((blocks, _)) = read(&output) {
                for block in blocks {
                    let (headers, reason) = match block {
                        Block::Interim(interim) => (interim.headers().clone(), None),
                        Block::Dropped => continue,
                        Block::Final(reply) => (reply.headers, reply.reason),
                    };
                    let values = headers.values().map(HeaderValue::as_bytes);
                    for value in values.chain(reason.as_deref()) {
                        prop_assert!(!value.iter().any(|b| b"\r\n\0".contains(b)));
                    }
                }
            }
        }
    }
}
