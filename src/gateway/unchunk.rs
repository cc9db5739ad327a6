//! The chunked coding removed from a body that its script has chunked itself
//! (RFC 9112 §7.1), which would otherwise reach the client coded twice (C102).

use bytes::{Buf, Bytes};

use super::reply::Invalid;

/// The line with a chunk's size, extensions included, or a trailer field.
const MAX_LINE_BYTES: usize = 4 * 1024;
const MAX_TRAILER_BYTES: usize = 64 * 1024;

/// Takes output in pieces of any size and gives back the content.
#[derive(Debug, Default)]
pub struct Unchunk {
    state: State,
    /// The part of a line that is there.
    line: Vec<u8>,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// So many bytes of the chunk are still to come.
    Data(u64),
    /// The line end after a chunk's data.
    DataEnd,
    Trailer,
    Done,
}

impl Unchunk {
    pub fn new() -> Self {
        Self::default()
    }

    /// The content in `piece`, in order; no part is empty. What follows the end
    /// of the coding is dropped, as are extensions and trailer fields.
    pub fn push(&mut self, mut piece: Bytes) -> Result<Vec<Bytes>, Invalid> {
        let mut content = Vec::new();
        while !piece.is_empty() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                content.push(piece.split_to(here));
                self.state = match left - here as u64 {
                    0 => State::DataEnd,
                    left => State::Data(left),
                };
            } else if let Some(line) = self.take_line(&mut piece)? {
                self.end_line(&line)?;
            }
        }
        Ok(content)
    }

    /// The last chunk and the trailer section have come. If the output ends
    /// before, the body is cut short.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Without its end: CRLF, or LF as a script's `print` may write it.
    fn take_line(&mut self, piece: &mut Bytes) -> Result<Option<Vec<u8>>, Invalid> {
        let end = piece.iter().position(|&b| b == b'\n');
        let length = end.unwrap_or(piece.len());
        if self.line.len() + length > MAX_LINE_BYTES {
            return Err(malformed("a line is too long"));
        }
        self.line.extend_from_slice(&piece[..length]);
        piece.advance(end.map_or(length, |at| at + 1));
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        if line.ends_with(b"\r") {
            line.pop();
        }
        Ok(Some(line))
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Invalid> {
        self.state = match self.state {
            State::Size => match chunk_size(line)? {
                0 => State::Trailer,
                size => State::Data(size),
            },
            State::DataEnd if line.is_empty() => State::Size,
            State::DataEnd => return Err(malformed("a chunk is longer than its size says")),
            State::Trailer if line.is_empty() => State::Done,
            State::Trailer => {
                self.trailer_bytes += line.len();
                if self.trailer_bytes > MAX_TRAILER_BYTES {
                    return Err(malformed("the trailer section is too long"));
                }
                State::Trailer
            }
            State::Data(_) | State::Done => self.state,
        };
        Ok(())
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Invalid> {
    let digits = line.split(|&b| b == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii_end();
    let is_hex = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    let size = std::str::from_utf8(digits).ok().filter(|_| is_hex);
    size.and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| malformed("a chunk has no size"))
}

fn malformed(what: &str) -> Invalid {
    Invalid::new(
        "bad-chunk",
        format!("the script chunks its body, but {what}; leave Transfer-Encoding to the server"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), &'static str> {
        let mut unchunk = Unchunk::new();
        let mut content = Vec::new();
        for piece in pieces {
            let parts = unchunk.push(Bytes::copy_from_slice(piece));
            content.extend(parts.map_err(|invalid| invalid.reason)?.concat());
        }
        Ok((content, unchunk.is_done()))
    }

    #[test]
    fn a_chunked_body_is_decoded_c102() {
        for (body, content, done) in [
            ("5\r\nhello\r\n0\r\n\r\n", "hello", true),
            ("5\nhello\n1\n!\n0\n\n", "hello!", true),
            (
                "00A;x=\"y\"\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nrest",
                "0123456789",
                true,
            ),
            ("5 \r\nhello\r\n0 ;x\r\n\r\n", "hello", true),
            ("0\r\n\r\n", "", true),
            ("5\r\nhel", "hel", false),
            ("5\r\nhello\r\n0\r\n", "hello", false),
            ("", "", false),
        ] {
            let expected = Ok((content.as_bytes().to_vec(), done));
            assert_eq!(decode(&[body.as_bytes()]), expected, "{body:?}");
            let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
            assert_eq!(decode(&bytes), expected, "{body:?} byte by byte");
        }
    }

    #[test]
    fn a_broken_coding_is_refused_c102() {
        let long = "1".repeat(MAX_LINE_BYTES + 1);
        let trailers = format!("0\n{}", "a: b\n".repeat(MAX_TRAILER_BYTES));
        for body in [
            "hello\n",
            "\n",
            "-5\n",
            "+5\nhello\n",
            "0x5\n",
            " 5\n",
            "5 5\n",
            "3\r\nhello\r\n",
            "3\nabcx\n",
            "10000000000000000\n",
            &long,
            &trailers,
        ] {
            assert_eq!(decode(&[body.as_bytes()]), Err("bad-chunk"), "{body:.20}");
        }
    }

    proptest! {
        #[test]
        fn any_chunks_cut_anywhere_give_the_content_c102(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..6),
            size in 1usize..9
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            prop_assert_eq!(decode(&pieces), Ok((chunks.concat(), true)));
        }

        #[test]
        fn arbitrary_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let whole = decode(&[&bytes]);
            let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(decode(&pieces), whole);
        }
    }
}
