//! The chunked transfer coding (RFC 9112 §7.1), read strictly: hexadecimal
//! digits, CRLF and nothing else ends a line. Extensions are ignored and trailers
//! dropped, both bounded (contract C75).

use bytes::{Buf, Bytes, BytesMut};

/// For a chunk's size with its extensions, and for each trailer field.
const MAX_LINE_BYTES: usize = 4 << 10;
/// For all extensions of a request, and for all its trailers.
const MAX_OVERHEAD_BYTES: usize = 64 << 10;

/// Where in the coding the next byte stands.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    overhead: usize,
    /// Spaces may follow a chunk's size.
    padded: bool,
}

#[derive(Debug)]
enum State {
    Size,
    /// Bytes left of the chunk.
    Data(u64),
    /// The CRLF after a chunk.
    DataEnd,
    Trailer,
    End,
}

/// What could be taken from the buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Never empty.
    Data(Bytes),
    /// More bytes are needed.
    More,
    End,
}

/// The coding is broken; nothing behind it can be trusted.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Decoder {
    pub fn of_request() -> Self {
        Self {
            state: State::Size,
            overhead: 0,
            padded: false,
        }
    }

    /// For an answer: some old servers write sizes of a fixed width, with spaces.
    pub fn of_answer() -> Self {
        Self {
            padded: true,
            ..Self::of_request()
        }
    }

    /// Takes the next data from the front of `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            self.state = match self.state {
                State::Size => {
                    let Some(line) = Self::take_line(buffer)? else {
                        return Ok(Decoded::More);
                    };
                    let line = if self.padded {
                        line.trim_ascii_end()
                    } else {
                        &line[..]
                    };
                    let (size, extension) = chunk_size(line)?;
                    self.add_overhead(extension)?;
                    match size {
                        0 => State::Trailer,
                        size => State::Data(size),
                    }
                }
                State::Data(_) if buffer.is_empty() => return Ok(Decoded::More),
                State::Data(left) => {
                    let take = usize::try_from(left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    let data = buffer.split_to(take).freeze();
                    self.state = match left - take as u64 {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Ok(Decoded::Data(data));
                }
                State::DataEnd => match buffer.len() {
                    0 => return Ok(Decoded::More),
                    1 if buffer[0] == b'\r' => return Ok(Decoded::More),
                    _ if buffer.starts_with(b"\r\n") => {
                        buffer.advance(2);
                        State::Size
                    }
                    _ => return Err(Malformed),
                },
                State::Trailer => {
                    let Some(line) = Self::take_line(buffer)? else {
                        return Ok(Decoded::More);
                    };
                    self.add_overhead(line.len())?;
                    if line.is_empty() {
                        State::End
                    } else {
                        State::Trailer
                    }
                }
                State::End => return Ok(Decoded::End),
            };
        }
    }

    fn add_overhead(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.overhead += bytes;
        if self.overhead > MAX_OVERHEAD_BYTES {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    /// A line without its CRLF. A bare CR or LF in it is an error.
    fn take_line(buffer: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        let Some(end) = buffer.iter().take(MAX_LINE_BYTES).position(|&b| b == b'\n') else {
            return if buffer.len() < MAX_LINE_BYTES {
                Ok(None)
            } else {
                Err(Malformed)
            };
        };
        let mut line = buffer.split_to(end + 1);
        line.truncate(end);
        let text = line.strip_suffix(b"\r").ok_or(Malformed)?.len();
        line.truncate(text);
        if line.contains(&b'\r') {
            return Err(Malformed);
        }
        Ok(Some(line.freeze()))
    }
}

/// `1*HEXDIG [ chunk-ext ]`: the size, and the length of the extension.
fn chunk_size(line: &[u8]) -> Result<(u64, usize), Malformed> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    let extension = rest.trim_ascii_start();
    // White space before the semicolon is bad but must be understood (§7.1.1).
    let well_formed = extension.is_empty() && rest.is_empty() || extension.starts_with(b";");
    if !(1..=16).contains(&digits) || !well_formed {
        return Err(Malformed);
    }
    let digits = std::str::from_utf8(&line[..digits]).map_err(|_| Malformed)?;
    let size = u64::from_str_radix(digits, 16).map_err(|_| Malformed)?;
    Ok((size, rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The data and what is left in the buffer, or `None` if it is malformed.
    fn decode(wire: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
        let mut decoder = Decoder::of_request();
        let mut buffer = BytesMut::new();
        let mut data = Vec::new();
        let mut pieces = wire.chunks(step);
        loop {
            match decoder.decode(&mut buffer).ok()? {
                Decoded::Data(piece) => data.extend_from_slice(&piece),
                Decoded::End => {
                    let unread: usize = pieces.map(<[u8]>::len).sum();
                    return Some((data, buffer.len() + unread));
                }
                Decoded::More => buffer.extend_from_slice(pieces.next()?),
            }
        }
    }

    #[test]
    fn the_coding_is_read_strictly_c73_c75() {
        for (wire, expected) in [
            ("0\r\n\r\n", Some("")),
            ("5\r\nhello\r\n0\r\n\r\n", Some("hello")),
            (
                "1\r\na\r\n00A\r\n0123456789\r\n0\r\n\r\n",
                Some("a0123456789"),
            ),
            ("1;ext=\"x\"\r\na\r\n0\r\n\r\n", Some("a")),
            ("1 ;ext\r\na\r\n0\r\n\r\n", Some("a")),
            ("1\r\na\r\n0\r\nTrailer: x\r\n\r\n", Some("a")),
            ("\r\n", None),
            ("g\r\n", None),
            ("+1\r\na\r\n0\r\n\r\n", None),
            ("0x1\r\na\r\n0\r\n\r\n", None),
            ("1 \r\na\r\n0\r\n\r\n", None),
            ("1\na\n0\n\n", None),
            ("1\r\nab\r\n0\r\n\r\n", None),
            ("1\r\na\n0\r\n\r\n", None),
            ("1;a\rb\r\na\r\n0\r\n\r\n", None),
            ("ffffffffffffffff1\r\n", None),
        ] {
            for step in [1, 2, 3, 1000] {
                let found = decode(wire.as_bytes(), step);
                let expected = expected.map(|data| (data.as_bytes().to_vec(), 0));
                assert_eq!(found, expected, "{wire:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn sizes_of_answers_may_be_padded() {
        for (mut decoder, expected) in [
            (Decoder::of_request(), Err(Malformed)),
            (Decoder::of_answer(), Ok(Decoded::Data("ab"[..].into()))),
        ] {
            let mut buffer = BytesMut::from("2   \r\nab");
            assert_eq!(decoder.decode(&mut buffer), expected);
        }
    }

    #[test]
    fn what_follows_the_end_is_left_for_the_next_request() {
        assert_eq!(decode(b"0\r\n\r\nGET /", 1000), Some((Vec::new(), 5)));
    }

    #[test]
    fn extensions_and_trailers_are_bounded_c75() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(decode(long.as_bytes(), 1000), None);
        let many = format!("0\r\n{}\r\n", "Name: value\r\n".repeat(10_000));
        assert_eq!(decode(many.as_bytes(), 1000), None);
        let chunks = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(100_000));
        let data = decode(chunks.as_bytes(), 1000).map(|(data, _)| data.len());
        assert_eq!(data, Some(100_000), "plain chunks are no overhead");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            decode(&wire, step);
        }
    }
}
