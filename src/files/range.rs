//! The Range field (RFC 9110 §14): which bytes of a representation are asked
//! for, and the body of an answer with several of them (§14.6).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::RANGE;
use tokio::task::JoinHandle;

use crate::message::{BodyError, Next, Source};

/// More ranges than a reader of a document asks for. A request with more, or
/// with ranges that add up to more than the whole, is an attack or a mistake
/// (RFC 9110 §17.15) and gets the whole.
const MAX_RANGES: usize = 64;
/// What one piece of a body holds at most.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes of a representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    /// In what is selected, never 0.
    pub(super) length: u64,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// There is no Range, or none that can be obeyed.
    Whole,
    One(Span),
    Many(Vec<Span>),
    /// 416.
    Unsatisfiable,
}

/// What a range-spec comes to for a representation of a given length.
enum Spec {
    Span(Span),
    Unsatisfiable,
    /// The end of an empty representation: satisfiable, but no Content-Range
    /// can say it.
    Nothing,
}

/// Reads the Range field for a representation of `length` bytes.
pub(super) fn select(headers: &HeaderMap, length: u64) -> Selection {
    let mut values = headers.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Selection::Whole;
    };
    let specs = match parse(value.as_bytes(), length) {
        Some(specs) if !specs.is_empty() && specs.len() <= MAX_RANGES => specs,
        _ => return Selection::Whole,
    };
    let mut spans = Vec::with_capacity(specs.len());
    for spec in specs {
        match spec {
            Spec::Span(span) => spans.push(span),
            Spec::Unsatisfiable => {}
            Spec::Nothing => return Selection::Whole,
        }
    }
    let total = spans
        .iter()
        .fold(0, |sum: u64, span| sum.saturating_add(span.length));
    match spans[..] {
        [] => Selection::Unsatisfiable,
        [span] => Selection::One(span),
        _ if total > length => Selection::Whole,
        _ => Selection::Many(spans),
    }
}

/// `None` for another unit or a syntax error: the field is ignored
/// (RFC 9110 §14.2).
fn parse(value: &[u8], length: u64) -> Option<Vec<Spec>> {
    let value = std::str::from_utf8(value).ok()?;
    let (unit, set) = value.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    set.split(',')
        .map(|spec| spec.trim_matches([' ', '\t']))
        .filter(|spec| !spec.is_empty())
        .map(|spec| parse_spec(spec, length))
        .collect()
}

/// int-range or suffix-range (RFC 9110 §14.1.2).
fn parse_spec(spec: &str, length: u64) -> Option<Spec> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        return Some(match number(last)?.min(length) {
            _ if number(last)? == 0 => Spec::Unsatisfiable,
            0 => Spec::Nothing,
            suffix => Spec::Span(Span {
                offset: length - suffix,
                length: suffix,
            }),
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last)?
    };
    if last < first {
        return None;
    }
    Some(if first < length {
        Spec::Span(Span {
            offset: first,
            length: last.min(length - 1) - first + 1,
        })
    } else {
        Spec::Unsatisfiable
    })
}

/// 1*DIGIT. A number too large for any file is as good as the largest.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

impl Span {
    /// The value of Content-Range (RFC 9110 §14.4).
    pub(super) fn content_range(self, length: u64) -> String {
        let last = self.offset + self.length - 1;
        format!("bytes {}-{last}/{length}", self.offset)
    }
}

/// The body of multipart/byteranges (RFC 9110 §14.6).
pub(super) struct ByteRanges {
    file: Arc<File>,
    pieces: VecDeque<Piece>,
    /// A reading of the first piece that was begun and not waited for to its end.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

enum Piece {
    Text(Bytes),
    File(Span),
}

impl ByteRanges {
    pub(super) fn new(
        file: Arc<File>,
        file_length: u64,
        spans: Vec<Span>,
        media_type: &str,
        boundary: &str,
    ) -> Self {
        let mut pieces = VecDeque::with_capacity(2 * spans.len() + 1);
        let mut line_end = "";
        for span in spans {
            let range = span.content_range(file_length);
            let head = format!(
                "{line_end}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {range}\r\n\r\n"
            );
            pieces.push_back(Piece::Text(head.into()));
            pieces.push_back(Piece::File(span));
            line_end = "\r\n";
        }
        pieces.push_back(Piece::Text(format!("{line_end}--{boundary}--\r\n").into()));
        Self {
            file,
            pieces,
            reading: None,
        }
    }

    /// In bytes.
    pub(super) fn length(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.len() as u64,
                Piece::File(span) => span.length,
            })
            .sum()
    }

    /// The next bytes of a span. The reading is kept until its end has been
    /// seen, so that a dropped future loses nothing.
    async fn read(&mut self, span: Span) -> Result<Bytes, BodyError> {
        let reading = self.reading.get_or_insert_with(|| {
            let file = Arc::clone(&self.file);
            tokio::task::spawn_blocking(move || read_at(&file, span))
        });
        let result = reading.await;
        self.reading = None;
        let bytes = result.map_err(io::Error::other)??;
        if bytes.is_empty() {
            // The file has become shorter.
            return Err(BodyError::Truncated);
        }
        Ok(bytes)
    }
}

impl Source for ByteRanges {
    fn next(&mut self) -> Next<'_> {
        Box::pin(async move {
            match *self.pieces.front()? {
                Piece::File(span) => {
                    let bytes = match self.read(span).await {
                        Ok(bytes) => bytes,
                        Err(error) => return Some(Err(error)),
                    };
                    let read = bytes.len() as u64;
                    self.pieces.pop_front();
                    if read < span.length {
                        self.pieces.push_front(Piece::File(Span {
                            offset: span.offset + read,
                            length: span.length - read,
                        }));
                    }
                    Some(Ok(bytes))
                }
                Piece::Text(_) => match self.pieces.pop_front() {
                    Some(Piece::Text(text)) => Some(Ok(text)),
                    _ => None,
                },
            }
        })
    }
}

fn read_at(file: &File, span: Span) -> io::Result<Bytes> {
    let wanted = usize::try_from(span.length).map_or(PIECE_BYTES, |n| n.min(PIECE_BYTES));
    let mut buffer = vec![0; wanted];
    let read = file.read_at(&mut buffer, span.offset)?;
    buffer.truncate(read);
    Ok(buffer.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn select_one(value: &str, length: u64) -> Selection {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, value.parse().unwrap());
        select(&headers, length)
    }

    fn one(offset: u64, length: u64) -> Selection {
        Selection::One(Span { offset, length })
    }

    fn many(spans: &[(u64, u64)]) -> Selection {
        let span = |&(offset, length)| Span { offset, length };
        Selection::Many(spans.iter().map(span).collect())
    }

    #[test]
    fn a_range_selects_bytes_or_is_ignored() {
        for (value, length, expected) in [
            ("bytes=0-4", 10, one(0, 5)),
            ("bytes=5-", 10, one(5, 5)),
            ("bytes=0-99", 10, one(0, 10)),
            ("bytes=9-9", 10, one(9, 1)),
            ("bytes=-3", 10, one(7, 3)),
            ("bytes=-99", 10, one(0, 10)),
            ("BYTES=0-0", 10, one(0, 1)),
            ("bytes= 0-0 ,", 10, one(0, 1)),
            ("bytes=0-99999999999999999999999", 10, one(0, 10)),
            ("bytes=0-0,-1", 10, many(&[(0, 1), (9, 1)])),
            ("bytes=5-6, 0-1,,\t8-8", 10, many(&[(5, 2), (0, 2), (8, 1)])),
            // What can't be satisfied is left out of the others.
            ("bytes=0-1,20-30", 10, one(0, 2)),
            ("bytes=10-", 10, Selection::Unsatisfiable),
            ("bytes=10-11,20-", 10, Selection::Unsatisfiable),
            ("bytes=-0", 10, Selection::Unsatisfiable),
            (
                "bytes=99999999999999999999999-",
                10,
                Selection::Unsatisfiable,
            ),
            ("bytes=0-", 0, Selection::Unsatisfiable),
            ("bytes=-5", 0, Selection::Whole),
            // More than the whole file together.
            ("bytes=0-,0-,0-", 10, Selection::Whole),
            ("bytes=0-5,4-9", 10, Selection::Whole),
            // Another unit, or no range at all.
            ("lines=0-4", 10, Selection::Whole),
            ("bytes", 10, Selection::Whole),
            ("bytes=", 10, Selection::Whole),
            ("bytes=,", 10, Selection::Whole),
            ("bytes=-", 10, Selection::Whole),
            ("bytes=4-2", 10, Selection::Whole),
            ("bytes=0-1,x", 10, Selection::Whole),
            ("bytes=+1-2", 10, Selection::Whole),
            ("bytes=0 - 1", 10, Selection::Whole),
            ("bytes =0-1", 10, Selection::Whole),
            ("bytes=1--2", 10, Selection::Whole),
        ] {
            assert_eq!(select_one(value, length), expected, "{value} of {length}");
        }
    }

    #[test]
    fn more_ranges_than_a_reader_needs_are_ignored() {
        let ranges = |count| format!("bytes={}", ["0-0"].repeat(count).join(","));
        assert!(matches!(select_one(&ranges(64), 1000), Selection::Many(_)));
        assert_eq!(select_one(&ranges(65), 1000), Selection::Whole);
    }

    #[test]
    fn two_range_fields_are_ignored() {
        let mut headers = HeaderMap::new();
        headers.append(RANGE, "bytes=0-0".parse().unwrap());
        headers.append(RANGE, "bytes=2-2".parse().unwrap());
        assert_eq!(select(&headers, 10), Selection::Whole);
    }

    async fn collect(mut parts: ByteRanges) -> Result<Vec<u8>, BodyError> {
        let mut bytes = Vec::new();
        while let Some(piece) = parts.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    }

    fn parts_of(content: &[u8], spans: &[(u64, u64)]) -> (ByteRanges, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let Selection::Many(spans) = many(spans) else {
            unreachable!()
        };
        let same = file.try_clone().unwrap();
        let length = content.len() as u64;
        (
            ByteRanges::new(file.into(), length, spans, "text/plain", "B"),
            same,
        )
    }

    #[tokio::test]
    async fn several_ranges_are_sent_as_parts_of_the_announced_length() {
        let (parts, _) = parts_of(b"0123456789", &[(0, 2), (9, 1)]);
        let length = parts.length();
        let bytes = collect(parts).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            "--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n\
             --B\r\nContent-Type: text/plain\r\nContent-Range: bytes 9-9/10\r\n\r\n9\r\n--B--\r\n"
        );
        assert_eq!(bytes.len() as u64, length);
    }

    #[tokio::test]
    async fn a_file_that_shrinks_ends_the_parts_with_an_error() {
        let content = vec![b'x'; 200_000];
        let (mut parts, file) = parts_of(&content, &[(0, 1), (1, 150_000)]);
        assert!(parts.next().await.unwrap().is_ok());
        file.set_len(80_000).unwrap();
        assert!(matches!(collect(parts).await, Err(BodyError::Truncated)));
    }

    proptest! {
        #[test]
        fn whatever_is_selected_lies_within_the_file(
            value in "[ -~\t]{0,40}|bytes=[0-9,\\- ]{0,30}", length in 0u64..100,
        ) {
            let spans = match select_one(&value, length) {
                Selection::One(span) => vec![span],
                Selection::Many(spans) => spans,
                Selection::Whole | Selection::Unsatisfiable => vec![],
            };
            for span in spans {
                prop_assert!(span.length > 0 && span.offset + span.length <= length);
            }
        }
    }
}
