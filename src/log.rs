//! The log on standard error: the access log, diagnoses, and what scripts
//! write to their standard error.
//!
//! One thread writes whole lines, so lines never mix, and a terminal that
//! stands still never stops a request: beyond `QUEUE_BYTES` lines are counted
//! instead of kept, and the count is logged as soon as there is room. A lone
//! line is out at once; of a flood, what comes within `GATHER` goes together,
//! as a write and a wake for each line would cost more than its request.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue, REFERER, USER_AGENT};
use http::{HeaderMap, Method, StatusCode, Version};
use serde::Serialize;

use crate::clock;
use crate::error::Diagnosis;
use crate::message::Ran;

/// What waits for the terminal at most.
const QUEUE_BYTES: usize = 4 << 20;
/// How long lines are gathered after some were written.
const GATHER: Duration = Duration::from_millis(20);
/// Memory for lines that is kept for the next ones.
const KEPT_BYTES: usize = 64 << 10;
/// A script's line longer than this is split.
pub const MAX_LINE_BYTES: usize = 8 << 10;

/// The form of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The Common Log Format.
    Common,
    /// Common, with Referer and User-Agent.
    Combined,
    /// Combined, with the seconds it took, and `warm` or `plain` for scripts.
    CombinedExtended,
    /// One JSON object a line.
    Json,
    /// No access log; diagnoses and scripts' standard error still appear.
    Off,
}

/// Handle to the log; cheap to clone.
#[derive(Clone)]
pub struct Log {
    queue: Arc<Queue>,
    format: Format,
}

struct Queue {
    lines: Mutex<Lines>,
    /// Something to write, while the writer waits for it.
    filled: Condvar,
    /// Everything is written.
    drained: Condvar,
}

#[derive(Default)]
struct Lines {
    waiting: Vec<u8>,
    lost: u64,
    /// The writer waits for a line.
    asleep: bool,
    /// The writer has lines that are not out yet.
    writing: bool,
    /// Somebody waits until all is written.
    hurry: bool,
}

impl Log {
    /// Starts the writing thread, which lives as long as the process.
    pub fn new(format: Format) -> Self {
        let queue = Arc::new(Queue {
            lines: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
        });
        let writer = Arc::clone(&queue);
        let named = std::thread::Builder::new().name("log".into());
        if let Err(error) = named.spawn(move || writer.write_lines()) {
            eprintln!("serve-here: no thread for the log: {error}");
        }
        Self { queue, format }
    }

    /// One line about the server itself.
    pub fn note(&self, text: &str) {
        self.line(format!("serve-here: {}", escape(text.as_bytes())));
    }

    /// One line a script wrote to its standard error.
    pub fn script_line(&self, subject: &str, pid: u32, line: &[u8]) {
        self.line(format!("cgi '{subject}'[{pid}]: {}", escape(line)));
    }

    /// Something about one run of a script that is no fault.
    pub fn script_note(&self, subject: &str, text: &str) {
        self.line(format!("cgi '{subject}': {}", escape(text.as_bytes())));
    }

    /// One line an application server wrote to its standard error.
    pub fn gateway_line(&self, protocol: &str, subject: &str, address: &str, line: &[u8]) {
        let address = escape(address.as_bytes());
        self.line(format!(
            "{protocol} '{subject}'[{address}]: {}",
            escape(line)
        ));
    }

    /// Something about an application server, or about a request to one, that
    /// is no fault.
    pub fn gateway_note(&self, protocol: &str, subject: &str, text: &str) {
        let subject = escape(subject.as_bytes());
        self.line(format!(
            "{protocol} '{subject}': {}",
            escape(text.as_bytes())
        ));
    }

    /// What went wrong and how to mend it, with the file's path.
    pub fn diagnosis(&self, diagnosis: &Diagnosis) {
        let Diagnosis {
            area,
            reason,
            subject,
            fault,
            file,
            ..
        } = diagnosis;
        let mut text = format!("{area} '{subject}': {} ({reason}", escape(fault.as_bytes()));
        if let Some(file) = file {
            let _ = write!(text, "; {}", escape(file.as_os_str().as_encoded_bytes()));
        }
        text.push(')');
        if let Some(hint) = diagnosis.hint_for_log() {
            let _ = write!(text, "\nhint: {}", escape(hint.as_bytes()));
        }
        self.line(text);
    }

    /// Whether lines say how long an answer took.
    pub fn takes_times(&self) -> bool {
        self.format == Format::Json
    }

    /// Starts the entry of a request; the engine finishes it.
    pub fn entry(&self, request: Asked) -> Entry {
        Entry {
            log: self.clone(),
            request,
            status: StatusCode::OK,
            ran: None,
            began: Instant::now(),
        }
    }

    /// The access log's line of one request.
    pub fn access(&self, line: &Line<'_>) {
        // Made before the queue is locked.
        let mut text = Vec::with_capacity(256);
        match self.format {
            Format::Off => return,
            Format::Json => line.json(&mut text),
            Format::Common => line.common(&mut text),
            Format::Combined => line.combined(&mut text),
            Format::CombinedExtended => line.combined_extended(&mut text),
        }
        text.push(b'\n');
        self.queue.push(&text);
    }

    /// Waits until all lines are out, but not for a terminal that stands still.
    pub fn flush(&self) {
        let mut lines = self.queue.lock();
        lines.hurry = true;
        self.queue.filled.notify_one();
        let unwritten = |lines: &mut Lines| lines.writing || !lines.waiting.is_empty();
        let waited =
            self.queue
                .drained
                .wait_timeout_while(lines, Duration::from_secs(1), unwritten);
        drop(waited);
    }

    fn line(&self, text: String) {
        let mut line = text.into_bytes();
        line.push(b'\n');
        self.queue.push(&line);
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        // A panic while the lock was held leaves the queue usable.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole lines with their ends.
    fn push(&self, line: &[u8]) {
        let mut lines = self.lock();
        if lines.waiting.len() + line.len() > QUEUE_BYTES {
            lines.lost += 1;
        } else {
            lines.waiting.extend_from_slice(line);
        }
        if std::mem::take(&mut lines.asleep) {
            self.filled.notify_one();
        }
    }

    fn write_lines(&self) {
        let mut stderr = std::io::stderr();
        let mut batch: Vec<u8> = Vec::new();
        loop {
            let mut lines = self.lock();
            while lines.waiting.is_empty() {
                lines.asleep = true;
                lines.hurry = false;
                self.drained.notify_all();
                lines = self
                    .filled
                    .wait(lines)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            lines.asleep = false;
            std::mem::swap(&mut batch, &mut lines.waiting);
            if let lost @ 1.. = std::mem::take(&mut lines.lost) {
                batch.extend_from_slice(
                    format!("serve-here: {lost} log lines lost: standard error was too slow\n")
                        .as_bytes(),
                );
            }
            lines.writing = true;
            drop(lines);
            // Nowhere left to report it.
            let _ = stderr.write_all(&batch);
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
            let mut lines = self.lock();
            lines.writing = false;
            let gathered = self
                .filled
                .wait_timeout_while(lines, GATHER, |lines| !lines.hurry);
            drop(gathered);
        }
    }
}

/// What the access log says of a request.
pub struct Asked {
    pub remote: SocketAddr,
    pub method: Method,
    /// The request-target as received.
    pub target: Bytes,
    pub version: Version,
    pub host: Option<HeaderValue>,
    pub referer: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
}

impl Asked {
    pub fn new(
        remote: SocketAddr,
        method: Method,
        target: Bytes,
        version: Version,
        headers: &HeaderMap,
    ) -> Self {
        let field = |name: HeaderName| headers.get(name).cloned();
        Self {
            remote,
            method,
            target,
            version,
            host: field(HOST),
            referer: field(REFERER),
            user_agent: field(USER_AGENT),
        }
    }
}

/// Response extension: the access log's line, written when the response is out.
#[derive(Clone)]
pub struct Sent(pub Arc<Mutex<Option<Entry>>>);

impl Sent {
    pub fn new(entry: Entry) -> Self {
        Self(Arc::new(Mutex::new(Some(entry))))
    }

    /// Writes the line, once. `bytes` of content were sent; `complete` if that
    /// was all of it.
    pub fn finish(&self, bytes: u64, complete: bool) {
        let entry = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(entry) = entry {
            entry.write(bytes, complete);
        }
    }
}

/// An access log line in the making.
pub struct Entry {
    log: Log,
    request: Asked,
    pub status: StatusCode,
    /// The script that was run, if one was.
    pub ran: Option<Ran>,
    began: Instant,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    remote: String,
    method: &'a str,
    target: String,
    protocol: &'a str,
    status: u16,
    bytes: u64,
    complete: bool,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    warm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
}

impl Entry {
    fn write(&self, bytes: u64, complete: bool) {
        let Asked {
            remote,
            method,
            target,
            version,
            host,
            referer,
            user_agent,
        } = &self.request;
        self.log.access(&Line {
            remote: *remote,
            method: method.as_str(),
            target,
            version: *version,
            host: host.as_ref().map(HeaderValue::as_bytes),
            referer: referer.as_ref().map(HeaderValue::as_bytes),
            user_agent: user_agent.as_ref().map(HeaderValue::as_bytes),
            status: self.status,
            bytes,
            complete,
            took: self.began.elapsed(),
            ran: self.ran,
        });
    }
}

/// One request and its answer.
pub struct Line<'a> {
    pub remote: SocketAddr,
    pub method: &'a str,
    /// The request-target as received.
    pub target: &'a [u8],
    pub version: Version,
    pub host: Option<&'a [u8]>,
    pub referer: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub status: StatusCode,
    /// Of content, sent.
    pub bytes: u64,
    /// That was all of it.
    pub complete: bool,
    pub took: Duration,
    pub ran: Option<Ran>,
}

impl Line<'_> {
    fn common(&self, text: &mut Vec<u8>) {
        // Writing to memory can't fail.
        let _ = write!(text, "{} - - [", self.remote.ip().to_canonical());
        text.extend_from_slice(&clock::clf_date());
        text.extend_from_slice(b"] \"");
        text.extend_from_slice(self.method.as_bytes());
        text.push(b' ');
        push_quoted(text, self.target);
        text.push(b' ');
        text.extend_from_slice(protocol(self.version).as_bytes());
        text.extend_from_slice(b"\" ");
        text.extend_from_slice(self.status.as_str().as_bytes());
        let cut = if self.complete { "" } else { " (cut off)" };
        let _ = write!(text, " {}{cut}", self.bytes);
    }

    fn combined(&self, text: &mut Vec<u8>) {
        self.common(text);
        for field in [self.referer, self.user_agent] {
            text.extend_from_slice(b" \"");
            push_quoted(text, field.unwrap_or(b"-"));
            text.push(b'"');
        }
    }

    fn combined_extended(&self, text: &mut Vec<u8>) {
        self.combined(text);
        let ran = match self.ran {
            Some(Ran { warm: true }) => "warm",
            Some(Ran { warm: false }) => "plain",
            None => "-",
        };
        let _ = write!(text, " {:.6} {ran}", self.took.as_secs_f64());
    }

    fn json(&self, text: &mut Vec<u8>) {
        let field = |value: Option<&[u8]>| value.map(|v| String::from_utf8_lossy(v).into_owned());
        let line = JsonLine {
            time: clock::rfc3339(SystemTime::now()),
            remote: self.remote.ip().to_canonical().to_string(),
            method: self.method,
            target: String::from_utf8_lossy(self.target).into_owned(),
            protocol: protocol(self.version),
            status: self.status.as_u16(),
            bytes: self.bytes,
            complete: self.complete,
            seconds: self.took.as_secs_f64(),
            warm: self.ran.map(|ran| ran.warm),
            host: field(self.host),
            referer: field(self.referer),
            user_agent: field(self.user_agent),
        };
        serde_json::to_writer(text, &line).expect("strings and numbers always serialise");
    }
}

fn protocol(version: Version) -> &'static str {
    if version == Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    }
}

/// Control characters made visible, so that nothing that came from a client or
/// a script can move a terminal's cursor or forge a line.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => text.push('\t'),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// For a place between quotation marks.
fn push_quoted(text: &mut Vec<u8>, bytes: &[u8]) {
    let plain = |&b: &u8| matches!(b, b' '..=b'~') && b != b'"';
    if bytes.iter().all(plain) {
        text.extend_from_slice(bytes);
    } else {
        text.extend_from_slice(escape(bytes).replace('"', "\\x22").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_broken_utf8_are_made_visible() {
        assert_eq!(escape(b"a\x1b[2J\r\xff\tb"), "a\\u{1b}[2J\\r\\xff\tb");
        let mut quoted = Vec::new();
        push_quoted(&mut quoted, b"a\"b");
        push_quoted(&mut quoted, b"a b");
        assert_eq!(quoted, b"a\\x22ba b");
    }
}
