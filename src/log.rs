//! The log on standard error: the access log, diagnoses, and what scripts
//! write to their standard error.
//!
//! One thread writes whole lines, so lines never mix, and a terminal that
//! stands still never stops a request: beyond `QUEUE_BYTES` lines are counted
//! instead of kept, and the count is logged as soon as there is room.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, REFERER, USER_AGENT};
use http::{HeaderMap, Method, StatusCode, Version};
use serde::Serialize;

use crate::error::Diagnosis;

/// What waits for the terminal at most.
const QUEUE_BYTES: usize = 4 << 20;
/// A script's line longer than this is split.
pub const MAX_LINE_BYTES: usize = 8 << 10;

/// The form of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The Common Log Format.
    Common,
    /// Common, with Referer and User-Agent.
    Combined,
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
    /// Something to write, or the end.
    filled: Condvar,
    /// Everything is written.
    drained: Condvar,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    writing: bool,
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

    pub fn has_access_log(&self) -> bool {
        self.format != Format::Off
    }

    /// Starts the entry of a request; the engine finishes it.
    pub fn entry(&self, request: Asked) -> Entry {
        Entry {
            log: self.clone(),
            request,
            status: StatusCode::OK,
            began: Instant::now(),
        }
    }

    /// Waits until all lines are out, but not for a terminal that stands still.
    pub fn flush(&self) {
        let lines = self.queue.lock();
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
        let mut lines = self.queue.lock();
        if lines.bytes + line.len() > QUEUE_BYTES {
            lines.lost += 1;
        } else {
            lines.bytes += line.len();
            lines.waiting.push_back(line);
        }
        self.queue.filled.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        // A panic while the lock was held leaves the queue usable.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lines(&self) {
        let mut stderr = std::io::stderr();
        loop {
            let mut lines = self.lock();
            lines.writing = false;
            while lines.waiting.is_empty() {
                self.drained.notify_all();
                lines = self
                    .filled
                    .wait(lines)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let mut batch: Vec<u8> = Vec::new();
            for line in lines.waiting.drain(..) {
                batch.extend_from_slice(&line);
            }
            lines.bytes = 0;
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
        }
    }
}

/// What the access log says of a request.
pub struct Asked {
    pub remote: SocketAddr,
    pub method: Method,
    /// The request-target as received.
    pub target: Vec<u8>,
    pub version: Version,
    pub host: Option<Vec<u8>>,
    pub referer: Option<Vec<u8>>,
    pub user_agent: Option<Vec<u8>>,
}

impl Asked {
    pub fn new(
        remote: SocketAddr,
        method: Method,
        target: &[u8],
        version: Version,
        headers: &HeaderMap,
    ) -> Self {
        let field = |name| headers.get(name).map(|value| value.as_bytes().to_vec());
        Self {
            remote,
            method,
            target: target.to_vec(),
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
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
}

impl Entry {
    fn write(self, bytes: u64, complete: bool) {
        let line = match self.log.format {
            Format::Off => return,
            Format::Json => self.json(bytes, complete),
            Format::Common => self.common(bytes, complete),
            Format::Combined => {
                let field = |value: &Option<Vec<u8>>| value.as_deref().map_or("-".into(), quoted);
                let (referer, agent) = (
                    field(&self.request.referer),
                    field(&self.request.user_agent),
                );
                format!("{} \"{referer}\" \"{agent}\"", self.common(bytes, complete))
            }
        };
        self.log.line(line);
    }

    fn common(&self, bytes: u64, complete: bool) -> String {
        let Asked {
            remote,
            method,
            target,
            version,
            ..
        } = &self.request;
        let cut = if complete { "" } else { " (cut off)" };
        format!(
            "{} - - [{}] \"{method} {} {}\" {} {bytes}{cut}",
            remote.ip().to_canonical(),
            clf_date(SystemTime::now()),
            quoted(target),
            protocol(*version),
            self.status.as_u16(),
        )
    }

    fn json(&self, bytes: u64, complete: bool) -> String {
        let text = |value: &Option<Vec<u8>>| {
            value
                .as_deref()
                .map(|v| String::from_utf8_lossy(v).into_owned())
        };
        let line = JsonLine {
            time: rfc3339(SystemTime::now()),
            remote: remote_text(self.request.remote),
            method: self.request.method.as_str(),
            target: String::from_utf8_lossy(&self.request.target).into_owned(),
            protocol: protocol(self.request.version),
            status: self.status.as_u16(),
            bytes,
            complete,
            seconds: self.began.elapsed().as_secs_f64(),
            host: text(&self.request.host),
            referer: text(&self.request.referer),
            user_agent: text(&self.request.user_agent),
        };
        serde_json::to_string(&line).expect("strings and numbers always serialise")
    }
}

fn remote_text(remote: SocketAddr) -> String {
    remote.ip().to_canonical().to_string()
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

fn quoted(bytes: &[u8]) -> String {
    escape(bytes).replace('"', "\\x22")
}

/// `10/Oct/2000:13:55:36 +0000`, from the parts of an IMF-fixdate.
fn clf_date(time: SystemTime) -> String {
    let date = httpdate::fmt_http_date(time);
    format!(
        "{}/{}/{}:{} +0000",
        &date[5..7],
        &date[8..11],
        &date[12..16],
        &date[17..25]
    )
}

/// `2000-10-10T13:55:36Z` (RFC 3339).
fn rfc3339(time: SystemTime) -> String {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let date = httpdate::fmt_http_date(time);
    let month = MONTHS.find(&date[8..11]).unwrap_or(0) / 3 + 1;
    format!(
        "{}-{month:02}-{}T{}Z",
        &date[12..16],
        &date[5..7],
        &date[17..25]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_the_form_of_their_log() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(971_186_136);
        assert_eq!(clf_date(time), "10/Oct/2000:13:55:36 +0000");
        assert_eq!(rfc3339(time), "2000-10-10T13:55:36Z");
    }

    #[test]
    fn control_characters_and_broken_utf8_are_made_visible() {
        assert_eq!(escape(b"a\x1b[2J\r\xff\tb"), "a\\u{1b}[2J\\r\\xff\tb");
        assert_eq!(quoted(b"a\"b"), "a\\x22b");
    }
}
