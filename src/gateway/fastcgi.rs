//! The wire of `FastCGI` 1.0: records and name-value pairs, in the order and with
//! the names of the specification. No connection and no time.
//!
//! One request at a time on a connection, with the number 1: real applications
//! don't multiplex (C156).

use bytes::{Buf, Bytes, BytesMut};

use super::variables::Variable;

const VERSION: u8 = 1;
const REQUEST_ID: u16 = 1;
/// §3.3: for management records.
const NULL_REQUEST_ID: u16 = 0;
const HEADER_BYTES: usize = 8;
/// The longest content of a record that keeps the next one aligned (§3.3).
const MAX_CONTENT_BYTES: usize = 65528;

const BEGIN_REQUEST: u8 = 1;
const ABORT_REQUEST: u8 = 2;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
const DATA: u8 = 8;
const GET_VALUES: u8 = 9;

const KEEP_CONN: u8 = 1;

/// What an application is to do (§6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Responder = 1,
    Authorizer = 2,
}

/// `BEGIN_REQUEST` and `PARAMS`: all that comes before the content (§5, C150).
pub fn head(variables: &[Variable], role: Role, keep_connection: bool) -> BytesMut {
    let mut out = BytesMut::with_capacity(4 << 10);
    let [role_high, role_low] = (role as u16).to_be_bytes();
    let flags = if keep_connection { KEEP_CONN } else { 0 };
    let begin = [role_high, role_low, flags, 0, 0, 0, 0, 0];
    record(&mut out, BEGIN_REQUEST, &begin);
    let mut pairs = Vec::with_capacity(4 << 10);
    for (name, value) in variables {
        pair(&mut pairs, name.as_bytes(), value);
    }
    stream(&mut out, PARAMS, &pairs);
    record(&mut out, PARAMS, &[]);
    out
}

/// A piece of the content, which is not empty: an empty record ends the stream.
pub fn stdin(out: &mut BytesMut, piece: &[u8]) {
    stream(out, STDIN, piece);
}

/// The end of the content, also where there was none (C150).
pub fn stdin_end(out: &mut BytesMut) {
    record(out, STDIN, &[]);
}

/// The client doesn't want the answer any more (§5.4).
pub fn abort() -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER_BYTES);
    record(&mut out, ABORT_REQUEST, &[]);
    out
}

/// As many records as it takes.
fn stream(out: &mut BytesMut, kind: u8, bytes: &[u8]) {
    for content in bytes.chunks(MAX_CONTENT_BYTES) {
        record(out, kind, content);
    }
}

/// Padded to a multiple of eight bytes, as §3.3 recommends.
fn record(out: &mut BytesMut, kind: u8, content: &[u8]) {
    let padding = content.len().wrapping_neg() % 8;
    let length = u16::try_from(content.len()).expect("shorter than the longest record");
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&REQUEST_ID.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[u8::try_from(padding).expect("less than eight"), 0]);
    out.extend_from_slice(content);
    out.extend_from_slice(&[0; 8][..padding]);
}

/// A name-value pair (§3.4, C149).
fn pair(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for length in [name.len(), value.len()] {
        if let Ok(length @ ..0x80) = u8::try_from(length) {
            out.push(length);
        } else {
            let length = u32::try_from(length).expect("a head is shorter than 2 GiB");
            out.extend_from_slice(&(length | 1 << 31).to_be_bytes());
        }
    }
    out.extend_from_slice(name);
    out.extend_from_slice(value);
}

/// What an application says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of its standard output, never empty.
    Stdout(Bytes),
    /// A piece of its standard error, never empty.
    Stderr(Bytes),
    End(End),
}

/// The body of `END_REQUEST` (§5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The application's exit status.
    pub status: u32,
    pub protocol: ProtocolStatus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolStatus {
    Complete,
    CannotMultiplex,
    Overloaded,
    UnknownRole,
    /// None that the specification has.
    Other(u8),
}

/// Reads records that arrive in pieces of any size. The content of a record is
/// handed on as it comes.
#[derive(Debug, Default)]
pub struct Records {
    buffer: BytesMut,
    /// Of the record that is being read.
    state: State,
    ended: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Header,
    /// So much content and padding is still to come.
    Content {
        kind: u8,
        content: usize,
        padding: usize,
    },
}

impl Records {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether all that came is read, to the end of a record.
    pub fn is_at_boundary(&self) -> bool {
        match self.state {
            State::Header => self.buffer.is_empty(),
            // What is left are bytes without a meaning.
            State::Content {
                content, padding, ..
            } => content == 0 && self.buffer.len() == padding,
        }
    }

    /// The next event, if it is there. `Err` says how the peer breaks the
    /// protocol; nothing more can be understood then (C155).
    pub fn next_event(&mut self) -> Result<Option<Event>, String> {
        loop {
            match self.state {
                State::Header => {
                    let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
                        return match self.buffer.first() {
                            // Who sends less than a header may never send more.
                            Some(&version) if version != VERSION => Err(wrong_version(version)),
                            _ => Ok(None),
                        };
                    };
                    self.state = self.begin(*header)?;
                    self.buffer.advance(HEADER_BYTES);
                }
                State::Content {
                    kind,
                    content,
                    padding,
                } => {
                    let here = content.min(self.buffer.len());
                    // The body of END_REQUEST only makes sense whole.
                    if kind == END_REQUEST && content > 0 {
                        if here < content {
                            return Ok(None);
                        }
                        let end = self.buffer.split_to(content);
                        self.state = State::after(kind, 0, padding);
                        self.ended = true;
                        return end_of(&end).map(|end| Some(Event::End(end)));
                    }
                    if here > 0 {
                        let piece = self.buffer.split_to(here).freeze();
                        self.state = State::after(kind, content - here, padding);
                        match kind {
                            STDOUT => return Ok(Some(Event::Stdout(piece))),
                            STDERR => return Ok(Some(Event::Stderr(piece))),
                            // C146: what is unknown is passed over.
                            _ => continue,
                        }
                    }
                    if content > 0 {
                        return Ok(None);
                    }
                    let skipped = padding.min(self.buffer.len());
                    self.buffer.advance(skipped);
                    if skipped < padding {
                        self.state = State::after(kind, 0, padding - skipped);
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
            }
        }
    }

    fn begin(&self, header: [u8; HEADER_BYTES]) -> Result<State, String> {
        let [
            version,
            kind,
            id_high,
            id_low,
            length_high,
            length_low,
            padding,
            _,
        ] = header;
        if version != VERSION {
            return Err(wrong_version(version));
        }
        let id = u16::from_be_bytes([id_high, id_low]);
        let content = usize::from(u16::from_be_bytes([length_high, length_low]));
        match (id, kind) {
            (REQUEST_ID, _) if self.ended => {
                return Err("a record for a request that has ended".into());
            }
            (REQUEST_ID, BEGIN_REQUEST | ABORT_REQUEST | PARAMS | STDIN | DATA | GET_VALUES) => {
                return Err(format!(
                    "a record of type {kind}, which only a server sends"
                ));
            }
            (REQUEST_ID, END_REQUEST) if content < 8 => {
                return Err("an END_REQUEST record that is too short".into());
            }
            (REQUEST_ID | NULL_REQUEST_ID, _) => {}
            (id, _) => return Err(format!("a record for request {id}, which was never made")),
        }
        Ok(State::after(
            kind_for(id, kind),
            content,
            usize::from(padding),
        ))
    }
}

/// Management records are passed over, whatever their type (C157).
fn kind_for(id: u16, kind: u8) -> u8 {
    if id == NULL_REQUEST_ID { 0 } else { kind }
}

impl State {
    fn after(kind: u8, content: usize, padding: usize) -> Self {
        Self::Content {
            kind,
            content,
            padding,
        }
    }
}

fn wrong_version(version: u8) -> String {
    format!("a record of version {version} instead of 1")
}

/// C148: what is reserved is ignored.
fn end_of(body: &[u8]) -> Result<End, String> {
    let Some(&[a, b, c, d, protocol, ..]) = body.first_chunk::<8>() else {
        return Err("an END_REQUEST record that is too short".into());
    };
    Ok(End {
        status: u32::from_be_bytes([a, b, c, d]),
        protocol: match protocol {
            0 => ProtocolStatus::Complete,
            1 => ProtocolStatus::CannotMultiplex,
            2 => ProtocolStatus::Overloaded,
            3 => ProtocolStatus::UnknownRole,
            other => ProtocolStatus::Other(other),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variable(name: &'static str, value: impl Into<Vec<u8>>) -> Variable {
        (name.into(), value.into())
    }

    /// Records as type, request and content.
    fn records(mut bytes: &[u8]) -> Vec<(u8, u16, Vec<u8>)> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            assert_eq!((bytes[0], bytes[7]), (1, 0));
            let content = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
            let end = 8 + content + usize::from(bytes[6]);
            assert_eq!(end % 8, 0);
            let id = u16::from_be_bytes([bytes[2], bytes[3]]);
            all.push((bytes[1], id, bytes[8..8 + content].to_vec()));
            bytes = &bytes[end..];
        }
        all
    }

    #[test]
    fn a_head_is_begin_and_params_and_an_empty_params_c148_to_c150() {
        let head = head(
            &[variable("A", "b"), variable("LONG", vec![b'x'; 128])],
            Role::Responder,
            true,
        );
        let mut pairs = b"\x01\x01Ab\x04\x80\x00\x00\x80LONG".to_vec();
        pairs.extend([b'x'; 128]);
        assert_eq!(
            records(&head),
            [
                (1, 1, vec![0, 1, 1, 0, 0, 0, 0, 0]),
                (4, 1, pairs),
                (4, 1, vec![]),
            ]
        );
        assert_eq!(
            &records(&super::head(&[], Role::Authorizer, false))[0].2,
            b"\0\x02\0\0\0\0\0\0"
        );
    }

    #[test]
    fn lengths_change_their_form_at_128_c149() {
        for (length, form) in [
            (0, &[0][..]),
            (127, &[127]),
            (128, &[0x80, 0, 0, 128]),
            (70_000, &[0x80, 1, 0x11, 0x70]),
        ] {
            let mut out = Vec::new();
            pair(&mut out, b"N", &vec![b'v'; length]);
            assert_eq!(out[..=form.len()], [&[1][..], form].concat());
            assert_eq!(out.len(), 1 + form.len() + 1 + length);
        }
    }

    #[test]
    fn long_streams_are_split_into_records_that_are_never_empty_c150() {
        let head = head(
            &[variable("A", vec![b'x'; 200_000])],
            Role::Responder,
            false,
        );
        let all = records(&head);
        let lengths: Vec<usize> = all.iter().map(|record| record.2.len()).collect();
        assert_eq!(lengths, [8, 65528, 65528, 65528, 200_006 - 3 * 65528, 0]);
        let mut out = BytesMut::new();
        stdin(&mut out, &vec![7; 65529]);
        stdin(&mut out, b"");
        stdin_end(&mut out);
        let lengths: Vec<usize> = records(&out).iter().map(|record| record.2.len()).collect();
        assert_eq!(lengths, [65528, 1, 0]);
    }

    fn raw(kind: u8, id: u8, content: &[u8], padding: u8) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let mut record = vec![1, kind, 0, id, length[0], length[1], padding, 99];
        record.extend_from_slice(content);
        record.extend(vec![0xaa; usize::from(padding)]);
        record
    }

    fn read(records: &mut Records) -> (Vec<u8>, Vec<u8>, Option<End>) {
        let (mut out, mut err, mut end) = (Vec::new(), Vec::new(), None);
        while let Some(event) = records.next_event().unwrap() {
            match event {
                Event::Stdout(piece) => out.extend_from_slice(&piece),
                Event::Stderr(piece) => err.extend_from_slice(&piece),
                Event::End(it) => end = Some(it),
            }
        }
        (out, err, end)
    }

    fn session() -> Vec<u8> {
        [
            raw(STDERR, 1, b"oh", 0),
            raw(STDOUT, 1, b"Content-", 3),
            raw(77, 1, b"what", 4),
            raw(10, 0, b"\x0f\x01FCGI_MPXS_CONNS0", 7),
            raw(STDOUT, 1, b"Type: a/b\n\n", 255),
            raw(STDOUT, 1, b"", 8),
            raw(STDERR, 1, b" no", 5),
            raw(END_REQUEST, 1, &[0, 0, 1, 2, 0, 9, 9, 9], 8),
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn records_mean_the_same_however_they_are_split_c146(cuts in prop::collection::vec(0usize..420, 0..40)) {
            let session = session();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(session.len())).collect();
            cuts.extend([0, session.len()]);
            cuts.sort_unstable();
            let mut records = Records::default();
            let (mut out, mut err, mut end) = (Vec::new(), Vec::new(), None);
            for pair in cuts.windows(2) {
                records.push(&session[pair[0]..pair[1]]);
                let (more, more_err, ended) = read(&mut records);
                out.extend(more);
                err.extend(more_err);
                end = end.or(ended);
            }
            prop_assert_eq!(&out[..], b"Content-Type: a/b\n\n");
            prop_assert_eq!(&err[..], b"oh no");
            prop_assert_eq!(end, Some(End { status: 258, protocol: ProtocolStatus::Complete }));
            prop_assert!(records.is_at_boundary());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut records = Records::default();
            records.push(&bytes);
            while let Ok(Some(_)) = records.next_event() {}
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_named_c155() {
        let end = || raw(END_REQUEST, 1, &[0; 8], 0);
        for (bytes, part) in [
            (b"HTTP/1.1 400".to_vec(), "version 72"),
            (b"H".to_vec(), "version 72"),
            (raw(STDOUT, 2, b"x", 0), "request 2"),
            (raw(STDIN, 1, b"x", 0), "type 5"),
            (raw(BEGIN_REQUEST, 1, b"x", 0), "type 1,"),
            (raw(END_REQUEST, 1, &[0; 7], 0), "too short"),
            (raw(END_REQUEST, 1, b"", 0), "too short"),
            ([end(), raw(STDOUT, 1, b"x", 0)].concat(), "has ended"),
            ([end(), end()].concat(), "has ended"),
        ] {
            let mut records = Records::default();
            records.push(&bytes);
            let error = loop {
                match records.next_event() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("accepted: {}", bytes.escape_ascii()),
                    Err(error) => break error,
                }
            };
            assert!(error.contains(part), "{error}");
        }
    }
}
