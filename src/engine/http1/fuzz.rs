//! For the fuzz targets (fuzz/): what must hold of a head and of chunked content,
//! whatever a client sends.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HOST, HeaderValue, REFERER, USER_AGENT};

use super::head::{self, Search};
use crate::engine::Limits;
use crate::engine::chunked::{Decoded, Decoder};
use crate::engine::framing::{self, Framing};
use crate::gateway::unchunk::Unchunk;
use crate::message::Connection;

/// The first byte says in what pieces the rest comes.
fn pieces(data: &[u8]) -> Option<(usize, &[u8])> {
    let (&step, rest) = data.split_first()?;
    Some((usize::from(step % 64) + 1, rest))
}

/// Requests are the same however they arrive, and nothing in them would end a
/// line if it were written again.
pub fn head(data: &[u8]) {
    let Some((step, wire)) = pieces(data) else {
        return;
    };
    assert_eq!(heads(wire, usize::MAX), heads(wire, step), "by {step}");
    at_a_glance(wire);
}

/// Near enough for a fuzzer to reach them.
fn limits() -> Limits {
    Limits {
        head_bytes: 1024,
        fields: 16,
        ..Limits::default()
    }
}

/// The short way sees the same request as the long one.
fn at_a_glance(wire: &[u8]) {
    let connection = Connection {
        remote: ([127, 0, 0, 1], 1).into(),
        local: ([127, 0, 0, 1], 2).into(),
        secure: false,
    };
    let Some((glance, keep_alive, length)) = head::glance(wire, &connection, &limits()) else {
        return;
    };
    let mut buffer = BytesMut::from(wire);
    let head = match Search::default().take(&mut buffer, &limits()) {
        Ok(Some(head)) => head,
        Ok(None) => panic!("not a whole head"),
        Err(fault) => panic!("refused: {}", fault.status),
    };
    let request = &head.request;
    assert_eq!(buffer.len(), wire.len() - length);
    assert!(matches!(head.framing, Ok(Framing::None)));
    assert_eq!(glance.method, request.method());
    assert_eq!(glance.target, &head.target[..]);
    assert_eq!(glance.version, request.version());
    let wants = framing::wants_keep_alive(request.version(), request.headers());
    assert_eq!(keep_alive, wants);
    for (name, seen) in [
        (HOST, glance.host),
        (REFERER, glance.referer),
        (USER_AGENT, glance.user_agent),
    ] {
        let value = request.headers().get(name).map(HeaderValue::as_bytes);
        assert_eq!(seen, value);
    }
}

/// What became of a connection without content, as text, so that two can be
/// compared.
fn heads(wire: &[u8], step: usize) -> Vec<String> {
    let limits = limits();
    let mut search = Search::default();
    let mut buffer = BytesMut::new();
    let mut arrived = 0;
    let mut said = Vec::new();
    loop {
        match search.take(&mut buffer, &limits) {
            Ok(Some(head)) => {
                let target = &head.target;
                assert!(target.iter().all(|&byte| byte > b' ' && byte != 0x7f));
                assert!(head.request.headers().len() <= limits.fields);
                for (name, value) in head.request.headers() {
                    let bad = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
                    assert!(!value.as_bytes().iter().any(bad), "{name}: {value:?}");
                }
                let framing = head.framing.as_ref().map_err(|fault| fault.status);
                said.push(format!("{:?} {target:?} {framing:?}", head.request));
                if framing.is_err() {
                    return said;
                }
            }
            Ok(None) if arrived == wire.len() => {
                said.push(format!("{} bytes of a head", buffer.len()));
                return said;
            }
            Ok(None) => {
                assert!(buffer.len() <= limits.head_bytes);
                let piece = &wire[arrived..];
                let piece = &piece[..step.min(piece.len())];
                arrived += piece.len();
                buffer.put_slice(piece);
            }
            // Whether the request line is the larger part depends on the pieces.
            Err(fault) => {
                assert!(fault.status.is_client_error() || fault.status.is_server_error());
                said.push("refused".into());
                return said;
            }
        }
    }
}

/// Content is the same however it arrives, what follows it is left alone, and
/// the lenient decoder for scripts reads the same in what this one accepts.
pub fn chunked(data: &[u8]) {
    let Some((step, wire)) = pieces(data) else {
        return;
    };
    let whole = decode(wire, usize::MAX);
    assert_eq!(whole, decode(wire, step), "by {step}");
    if let (content, Some(left)) = whole {
        let coded = Bytes::copy_from_slice(&wire[..wire.len() - left]);
        let mut lenient = Unchunk::new();
        let parts = lenient.push(coded).expect("it is well formed");
        assert_eq!(parts.concat(), content);
        assert!(lenient.is_done());
    }
    round_trip(wire, step);
}

/// The content, and how many bytes follow it; `None` if it doesn't end well.
fn decode(wire: &[u8], step: usize) -> (Vec<u8>, Option<usize>) {
    let mut decoder = Decoder::of_request();
    let mut buffer = BytesMut::new();
    let mut content = Vec::new();
    let mut arrived = 0;
    loop {
        match decoder.decode(&mut buffer) {
            Ok(Decoded::Data(piece)) => {
                assert!(!piece.is_empty());
                content.extend_from_slice(&piece);
            }
            Ok(Decoded::End) => return (content, Some(wire.len() - arrived + buffer.len())),
            Ok(Decoded::More) if arrived == wire.len() => return (content, None),
            Ok(Decoded::More) => {
                let piece = &wire[arrived..];
                let piece = &piece[..step.min(piece.len())];
                arrived += piece.len();
                buffer.extend_from_slice(piece);
            }
            Err(_) => return (content, None),
        }
    }
}

/// What is coded is decoded.
fn round_trip(content: &[u8], step: usize) {
    let mut wire = Vec::new();
    for chunk in content.chunks(step) {
        wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(decode(&wire, 7), (content.to_vec(), Some(0)));
}
