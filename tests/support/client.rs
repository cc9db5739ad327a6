//! A client over plain TCP that says and sees every byte. It understands the
//! framing of responses (RFC 9112 §6) strictly: what a lenient client would
//! forgive fails the test.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{DEADLINE, shown};

/// How long a connection may last that never pauses for the deadline.
const PATIENCE: Duration = Duration::from_secs(100);

pub(crate) struct Client {
    stream: TcpStream,
    /// Received and not yet part of a response.
    buffer: Vec<u8>,
    end: Option<End>,
    since: Instant,
    /// What a read asks for at most.
    bite: usize,
}

/// How the server ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Reset,
}

#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) version: String,
    pub(crate) status: u16,
    pub(crate) reason: String,
    /// In order of arrival, names as they were sent.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

/// A whole response; status and fields are those of its `head`.
pub(crate) struct Response {
    pub(crate) head: Head,
    /// Chunked coding removed.
    pub(crate) body: Vec<u8>,
    /// The body reached the end its framing announced.
    pub(crate) complete: bool,
    /// 1xx that came before.
    pub(crate) interim: Vec<Head>,
}

/// How the end of a response's body is known (RFC 9112 §6.3).
enum Framing {
    None,
    Length(usize),
    Chunked,
    Close,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("TCP has the option");
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&stream, Some(DEADLINE)).expect("the timeout is not zero");
        }
        Self {
            stream,
            buffer: Vec::new(),
            end: None,
            since: Instant::now(),
            bite: 16 * 1024,
        }
    }

    /// This side's address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.stream.local_addr().expect("it is connected")
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).expect("the server takes the bytes");
        self
    }

    /// For what the server may refuse to read to its end.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Each byte in a segment of its own.
    pub(crate) fn send_bytewise(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        for &byte in bytes.as_ref() {
            self.send([byte]);
        }
        self
    }

    /// From now on a byte in each read.
    pub(crate) fn read_bytewise(&mut self) -> &mut Self {
        self.bite = 1;
        self
    }

    /// Sends while this thread goes on to read; for bodies that do not fit the
    /// buffers on the way.
    pub(crate) fn send_beside(&mut self, bytes: Vec<u8>) -> &mut Self {
        let mut stream = self.stream.try_clone().expect("a descriptor is free");
        std::thread::spawn(move || {
            // The server may answer without reading; the test looks at the answer.
            let _ = stream.write_all(&bytes);
        });
        self
    }

    /// FIN: nothing more comes from here, answers are still read.
    pub(crate) fn half_close(&mut self) -> &mut Self {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("it is connected");
        self
    }

    /// Gone at once, with a reset: what a client that died leaves behind.
    pub(crate) fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))
            .expect("TCP has the option");
    }

    /// The next response to any request but HEAD.
    pub(crate) fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// The next response; fails the test if the connection ends before it.
    pub(crate) fn response_to(&mut self, method: &str) -> Response {
        match self.try_response_to(method) {
            Some(response) => response,
            None => panic!("the connection ended without an answer to {method}"),
        }
    }

    /// `None` if the connection ends before the first byte of one.
    pub(crate) fn try_response_to(&mut self, method: &str) -> Option<Response> {
        let mut interim = Vec::new();
        let head = loop {
            let head = self.head()?;
            if !(100..200).contains(&head.status) || head.status == 101 {
                break head;
            }
            interim.push(head);
        };
        let (body, complete) = match head.framing(method) {
            Framing::None => (Vec::new(), true),
            Framing::Length(length) => self.take(length),
            Framing::Chunked => self.chunked(),
            Framing::Close => {
                self.rest();
                (
                    std::mem::take(&mut self.buffer),
                    self.end == Some(End::Closed),
                )
            }
        };
        Some(Response {
            head,
            body,
            complete,
            interim,
        })
    }

    /// The next head, interim ones included; its body is still to be read.
    pub(crate) fn head(&mut self) -> Option<Head> {
        while !self.buffer.windows(4).any(|w| w == b"\r\n\r\n") {
            if !self.fill() {
                assert!(
                    self.buffer.is_empty(),
                    "the connection ended inside a head:\n{}",
                    shown(&self.buffer)
                );
                return None;
            }
        }
        let end = find(&self.buffer, b"\r\n\r\n").expect("it was just seen");
        let bytes: Vec<u8> = self.buffer.drain(..end + 4).collect();
        Some(Head::parse(&bytes[..end]))
    }

    /// `length` bytes of a body, less if the connection ends.
    pub(crate) fn take(&mut self, length: usize) -> (Vec<u8>, bool) {
        while self.buffer.len() < length && self.fill() {}
        let there = length.min(self.buffer.len());
        (self.buffer.drain(..there).collect(), there == length)
    }

    /// Whatever is there, at least one byte; empty at the end.
    pub(crate) fn some(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            self.fill();
        }
        std::mem::take(&mut self.buffer)
    }

    /// Reads to the end of the connection, which must come; what was left.
    pub(crate) fn rest(&mut self) -> &[u8] {
        while self.fill() {}
        &self.buffer
    }

    /// Whether the server ends the connection with nothing more to say. Waits
    /// for it.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// How the connection ended, if it did.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    pub(crate) fn chunked(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.line() else {
                return (body, false);
            };
            let length = std::str::from_utf8(&line)
                .ok()
                .and_then(|line| usize::from_str_radix(line, 16).ok())
                .unwrap_or_else(|| panic!("a chunk starts with `{}`", shown(&line)));
            if length == 0 {
                break;
            }
            let (data, complete) = self.take(length);
            body.extend(data);
            if !complete {
                return (body, false);
            }
            match self.line() {
                Some(line) => assert!(line.is_empty(), "a chunk is longer than its size"),
                None => return (body, false),
            }
        }
        // The trailer section, which nothing here sends, then the empty line.
        let complete = self.line().is_some_and(|line| line.is_empty());
        (body, complete)
    }

    /// A line of the chunked coding without its end; `None` at the end of the
    /// connection.
    fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let mut line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                line.truncate(end);
                return Some(line);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Waits for more; false at the end of the connection.
    fn fill(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        assert!(
            self.since.elapsed() < PATIENCE,
            "it goes on and on; so far:\n{}",
            shown(&self.buffer[..self.buffer.len().min(2000)])
        );
        let mut bytes = vec![0; self.bite];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.end = Some(End::Closed),
            Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.end = Some(End::Reset),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!(
                    "nothing came for {DEADLINE:?}; so far:\n{}",
                    shown(&self.buffer)
                )
            }
            Err(error) => panic!("reading: {error}"),
        }
        self.end.is_none()
    }
}

impl Head {
    fn parse(bytes: &[u8]) -> Self {
        let mut lines = bytes.split(|&byte| byte == b'\n').map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            assert!(!line.contains(&b'\r'), "a bare CR in:\n{}", shown(bytes));
            line
        });
        let bare_lf = bytes.split(|&byte| byte == b'\n').rev().skip(1);
        for line in bare_lf {
            assert!(line.ends_with(b"\r"), "a bare LF in:\n{}", shown(bytes));
        }
        let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let mut words = first.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|word| {
            let digits = word.len() == 3 && word.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| word.parse().expect("three digits are a number"))
        });
        // The space after the code is not optional (RFC 9112 §4).
        let (Some(status), Some(reason)) = (status, words.next()) else {
            panic!("no status line: `{first}`");
        };
        assert!(version.starts_with("HTTP/1."), "no status line: `{first}`");
        let headers = lines
            .map(|line| {
                let colon = line
                    .iter()
                    .position(|&byte| byte == b':')
                    .unwrap_or_else(|| panic!("no field: `{}`", shown(line)));
                let name = String::from_utf8_lossy(&line[..colon]).into_owned();
                let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
                assert!(
                    !name.is_empty() && name.chars().all(token),
                    "no field name: `{name}`"
                );
                (name, line[colon + 1..].trim_ascii().to_vec())
            })
            .collect();
        Self {
            version,
            status,
            reason: reason.to_owned(),
            headers,
        }
    }

    fn framing(&self, method: &str) -> Framing {
        let all = |name: &str| -> Vec<String> { values(&self.headers, name) };
        let (codings, lengths) = (all("Transfer-Encoding"), all("Content-Length"));
        assert!(
            codings.is_empty() || lengths.is_empty(),
            "both Transfer-Encoding and Content-Length in a response"
        );
        assert!(
            codings.len() <= 1 && lengths.len() <= 1,
            "framing said twice"
        );
        if method == "HEAD" || matches!(self.status, 100..200 | 204 | 304) {
            return Framing::None;
        }
        if let Some(coding) = codings.first() {
            assert_eq!(coding, "chunked");
            assert_eq!(self.version, "HTTP/1.1", "chunked in an older response");
            return Framing::Chunked;
        }
        match lengths.first() {
            Some(length) => Framing::Length(length.parse().expect("a length is a number")),
            None => Framing::Close,
        }
    }
}

impl std::ops::Deref for Response {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

impl Response {
    /// The value of a field that came once; `None` if it did not come.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut all = values(&self.headers, name);
        assert!(all.len() <= 1, "{name} came {} times", all.len());
        all.pop()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for head in &self.interim {
            writeln!(f, "{} {} {}\n", head.version, head.status, head.reason)?;
        }
        writeln!(f, "{} {} {}", self.version, self.status, self.reason)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {}", shown(value))?;
        }
        writeln!(f, "\n{}", shown(&self.body[..self.body.len().min(2000)]))?;
        if !self.complete {
            writeln!(f, "(incomplete)")?;
        }
        Ok(())
    }
}

/// All values of a field, as text.
fn values(headers: &[(String, Vec<u8>)], name: &str) -> Vec<String> {
    headers
        .iter()
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
