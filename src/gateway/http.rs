//! What an application says that speaks HTTP/1.1 (RFC 9112), out of the bytes
//! that arrive. `httparse` reads the heads. No sockets.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};

use crate::engine::chunked::{Decoded, Decoder};
use crate::engine::framing;

/// Fields of an answer's header.
const MAX_FIELDS: usize = 1000;
/// Most answers have no more.
const USUAL_FIELDS: usize = 32;
const MAX_HEAD_BYTES: usize = 256 << 10;
/// Up to here it is looked whether what has come can be the beginning of a head.
const JUDGED_BYTES: usize = 8 << 10;

/// The bytes that have arrived and are not yet part of anything.
#[derive(Default)]
pub struct Arrived {
    bytes: BytesMut,
    /// In which there is no end of a head.
    searched: usize,
}

/// The head of an answer, interim ones included.
pub struct Head {
    pub version: Version,
    pub status: StatusCode,
    /// If it is not the usual one.
    pub reason: Option<Bytes>,
    pub headers: HeaderMap,
}

impl Arrived {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All of it, for a connection that has left HTTP.
    pub fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }

    /// The next head, once it is there. `Err` says what is wrong with it.
    pub fn next_head(&mut self) -> Result<Option<Head>, String> {
        let Some(end) = self.end_of_head() else {
            if self.bytes.len() > MAX_HEAD_BYTES {
                return Err(format!("its header is longer than {MAX_HEAD_BYTES} bytes"));
            }
            if self.bytes.len() <= JUDGED_BYTES {
                // What can't become one need not be waited for.
                parse(&self.bytes, |_| ())?;
            }
            return Ok(None);
        };
        self.searched = 0;
        let bytes = self.bytes.split_to(end).freeze();
        parse(&bytes, |parsed| Head::new(&bytes, parsed))?
            .ok_or("its header has no beginning")?
            .map(Some)
    }

    /// Behind the first empty line.
    fn end_of_head(&mut self) -> Option<usize> {
        let from = self.searched.saturating_sub(2);
        for at in from..self.bytes.len() {
            match self.bytes[at..] {
                [b'\n', b'\n', ..] => return Some(at + 2),
                [b'\n', b'\r', b'\n', ..] => return Some(at + 3),
                _ => {}
            }
        }
        self.searched = self.bytes.len();
        None
    }
}

/// What `read` makes of a head; `None` if it isn't whole.
fn parse<T>(
    bytes: &[u8],
    read: impl FnOnce(&httparse::Response<'_, '_>) -> T,
) -> Result<Option<T>, String> {
    let mut few = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    let mut many;
    let mut parsed = httparse::Response::new(&mut few);
    let mut status = parsed.parse(bytes);
    if let Err(httparse::Error::TooManyHeaders) = status {
        many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        parsed = httparse::Response::new(&mut many);
        status = parsed.parse(bytes);
    }
    match status {
        Ok(httparse::Status::Complete(_)) => Ok(Some(read(&parsed))),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

impl Head {
    /// `bytes` is what `parsed` borrows from.
    fn new(bytes: &Bytes, parsed: &httparse::Response<'_, '_>) -> Result<Self, String> {
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or("its status is none")?;
        let mut headers = HeaderMap::with_capacity(parsed.headers.len());
        for field in parsed.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
            match (name, value) {
                (Ok(name), Ok(value)) => headers.append(name, value),
                _ => return Err(format!("its field {:?} is none", field.name)),
            };
        }
        let reason = parsed.reason.unwrap_or_default();
        let is_usual = reason.is_empty() || status.canonical_reason() == Some(reason);
        Ok(Self {
            version: match parsed.version {
                Some(1) => Version::HTTP_11,
                _ => Version::HTTP_10,
            },
            status,
            reason: (!is_usual).then(|| Bytes::copy_from_slice(reason.as_bytes())),
            headers,
        })
    }

    /// Whether the connection may be used again behind this answer (RFC 9112 §9.3).
    pub fn goes_on(&self) -> bool {
        framing::wants_keep_alive(self.version, &self.headers)
    }

    /// In bytes, for what has no content but says how much it would have.
    pub fn announced(&self) -> Option<u64> {
        content_length(&self.headers).ok().flatten()
    }

    /// How the content of the answer to `method` ends (RFC 9112 §6.3). What could
    /// be taken for something else is an error.
    pub fn content(&self, method: &Method) -> Result<Content, String> {
        if self.status.as_u16() > 599 {
            return Err(format!("its status is {}", self.status.as_u16()));
        }
        let mut codings = self.headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || codings.next().is_some() || self.version == Version::HTTP_10 {
                return Err(format!(
                    "it sends a Transfer-Encoding that can't be undone: {coding:?}"
                ));
            }
        }
        let length = content_length(&self.headers)?;
        if *method == Method::HEAD || matches!(self.status.as_u16(), 204 | 304) {
            return Ok(Content::Length(0));
        }
        if self.headers.contains_key(TRANSFER_ENCODING) {
            return Ok(Content::Chunked(Decoder::of_answer()));
        }
        Ok(length.map_or(Content::UntilClose, Content::Length))
    }
}

/// One decimal number, perhaps repeated (RFC 9110 §8.6).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let fields = headers.get_all(CONTENT_LENGTH).iter();
    let mut numbers = fields.flat_map(|field| field.as_bytes().split(|&b| b == b','));
    let Some(first) = numbers.next() else {
        return Ok(None);
    };
    let length = framing::decimal(first.trim_ascii());
    if length.is_none() || numbers.any(|other| other.trim_ascii() != first.trim_ascii()) {
        return Err("its Content-Length is no number".into());
    }
    Ok(length)
}

/// What is still to come of an answer's content.
pub enum Content {
    /// In bytes.
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// What could be taken from the bytes that are there.
pub enum Taken {
    /// Never empty.
    Data(Bytes),
    /// More bytes are needed.
    More,
    End,
}

impl Content {
    /// In bytes, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Length(length) => Some(*length),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Trailers are of no use to the clients here, and dropped.
    pub fn take(&mut self, arrived: &mut Arrived) -> Result<Taken, String> {
        let bytes = &mut arrived.bytes;
        match self {
            Self::Length(0) => Ok(Taken::End),
            Self::Chunked(decoder) => match decoder.decode(bytes) {
                Ok(Decoded::Data(data)) => Ok(Taken::Data(data)),
                Ok(Decoded::More) => Ok(Taken::More),
                Ok(Decoded::End) => Ok(Taken::End),
                Err(_malformed) => Err("its chunks are malformed".into()),
            },
            Self::Length(_) | Self::UntilClose if bytes.is_empty() => Ok(Taken::More),
            Self::UntilClose => Ok(Taken::Data(bytes.split().freeze())),
            Self::Length(left) => {
                let here = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= here as u64;
                Ok(Taken::Data(bytes.split_to(here).freeze()))
            }
        }
    }

    /// The end of the connection is the end of it.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self, Self::UntilClose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Status, content, and what is left behind it; `None` if it is malformed or
    /// not whole.
    fn read(wire: &[u8], step: usize) -> Option<(u16, Vec<u8>, usize)> {
        let mut arrived = Arrived::default();
        let mut pieces = wire.chunks(step);
        let head = loop {
            match arrived.next_head().ok()? {
                Some(head) => break head,
                None => arrived.push(pieces.next()?),
            }
        };
        let mut rest = head.content(&Method::GET).ok()?;
        let mut content = Vec::new();
        loop {
            match rest.take(&mut arrived).ok()? {
                Taken::Data(data) => content.extend_from_slice(&data),
                Taken::End => break,
                Taken::More => match pieces.next() {
                    Some(piece) => arrived.push(piece),
                    None if rest.ends_with_connection() => break,
                    None => return None,
                },
            }
        }
        let unread: usize = pieces.map(<[u8]>::len).sum();
        Some((head.status.as_u16(), content, arrived.bytes.len() + unread))
    }

    #[test]
    fn an_answer_ends_where_its_head_says() {
        for (wire, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nall", Some((200, "all", 0))),
            ("HTTP/1.0 200\n\nall", Some((200, "all", 0))),
            (
                "HTTP/1.1 404 \r\nContent-Length: 3\r\n\r\nall, more",
                Some((404, "all", 6)),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\ncontent-length: 3\r\n\r\nall",
                Some((200, "all", 0)),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n\
                 3 \r\nall\r\n0\r\nA: b\r\n\r\nHTTP",
                Some((200, "all", 4)),
            ),
            (
                "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n",
                Some((204, "", 0)),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nal", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nall", None),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nall", None),
            (
                "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                None,
            ),
            ("HTTP/1.1 600 ?\r\n\r\nall", None),
            ("\r\n\r\nHTTP/1.1 200 OK\r\n\r\nall", None),
            ("SSH-2.0-OpenSSH\r\n\r\n", None),
        ] {
            let expected = expected.map(|(status, content, left)| {
                let content: &str = content;
                (status, content.as_bytes().to_vec(), left)
            });
            for step in [1, 2, 3, 1000] {
                let found = read(wire.as_bytes(), step);
                assert_eq!(found, expected, "{wire:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn what_can_become_no_head_is_not_waited_for() {
        let mut arrived = Arrived::default();
        arrived.push(b"220 mail.example ESMTP\r\n");
        assert!(arrived.next_head().is_err());
        let mut arrived = Arrived::default();
        arrived.push(b"HTTP/1.1 200 OK\r\nA: ");
        arrived.push(&vec![b'a'; MAX_HEAD_BYTES]);
        assert!(arrived.next_head().is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(
            wire in "(HTTP/1.[01] [0-9]{3} ?[a-z]{0,3}(\r\n|\n)((Content-Length|Transfer-Encoding|A): ?[0-9a-z,]{0,8}(\r\n|\n)){0,3}(\r\n|\n)?)?.{0,30}",
            step in 1usize..20
        ) {
            prop_assert_eq!(read(wire.as_bytes(), step), read(wire.as_bytes(), wire.len().max(1)));
        }
    }
}
