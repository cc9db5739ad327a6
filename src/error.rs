//! Faults: what goes wrong with one request, and what keeps the server from
//! starting. The one place where a fault becomes a status or an exit code.

use std::fmt;
use std::io;
use std::path::PathBuf;

use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};

use crate::log::escape;
use crate::message::Ran;

/// A request that can't be answered as asked.
///
/// The client is told the status. The diagnosis goes to the log in full and,
/// without the machine's paths, to a client on loopback.
#[derive(Debug)]
pub struct Fault {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub diagnosis: Option<Box<Diagnosis>>,
    /// What follows on the connection can't be trusted to be a request, or the
    /// client must see that it ended.
    pub close: bool,
    /// The script that ran, if one did.
    pub ran: Option<Ran>,
}

/// What a diagnosis is about; the first word of its line in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Area {
    #[default]
    Script,
    File,
    Client,
    /// An application server, by its protocol.
    Gateway(&'static str),
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Script => "cgi",
            Self::File => "file",
            Self::Client => "client",
            Self::Gateway(protocol) => protocol,
        })
    }
}

/// What happened, for someone who can mend it.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    pub area: Area,
    /// A stable word for the log, such as `not-executable`.
    pub reason: &'static str,
    /// What it is about, as the URL names it: `cgi-bin/hello.sh`.
    pub subject: String,
    /// What is wrong. No absolute path of the machine.
    pub fault: String,
    /// The command or change that mends it. `{file}` stands for the file.
    pub hint: Option<String>,
    /// The file on disk; for the log only.
    pub file: Option<PathBuf>,
    /// The script's last lines of standard error.
    pub stderr: Vec<String>,
}

impl Diagnosis {
    /// The hint for somebody who knows the file as the URL names it.
    pub fn hint_for_client(&self) -> Option<String> {
        self.hint_with(self.subject.as_bytes())
    }

    /// The hint for the terminal, with the file's full path.
    pub fn hint_for_log(&self) -> Option<String> {
        let file = self
            .file
            .as_ref()
            .map(|file| file.as_os_str().as_encoded_bytes());
        self.hint_with(file.unwrap_or(self.subject.as_bytes()))
    }

    fn hint_with(&self, file: &[u8]) -> Option<String> {
        Some(self.hint.as_ref()?.replace("{file}", &shell_word(file)))
    }
}

/// A path as a shell takes it, quoted where it must be.
pub fn shell_word(path: &[u8]) -> String {
    let start = if path.starts_with(b"-") { "./" } else { "" };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+,:@".contains(&b);
    match std::str::from_utf8(path) {
        Ok(text) if !text.is_empty() && text.bytes().all(is_plain) => format!("{start}{text}"),
        Ok(text) if !text.chars().any(char::is_control) => {
            format!("'{start}{}'", text.replace('\'', r"'\''"))
        }
        _ => format!("$'{start}{}'", path.escape_ascii()),
    }
}

impl Fault {
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            diagnosis: None,
            close: false,
            ran: None,
        }
    }

    pub fn bad_request() -> Self {
        Self::new(StatusCode::BAD_REQUEST)
    }

    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN)
    }

    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND)
    }

    /// 405 with the methods that are allowed (RFC 9110 §15.5.6).
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED)
            .with_header(ALLOW, HeaderValue::from_static(allow))
    }

    /// 503 with Retry-After in seconds (RFC 9110 §10.2.3).
    pub fn unavailable(retry_after: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE)
            .with_header(RETRY_AFTER, HeaderValue::from(retry_after))
    }

    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    #[must_use]
    pub fn of(self, ran: Ran) -> Self {
        Self {
            ran: Some(ran),
            ..self
        }
    }

    #[must_use]
    pub fn because(mut self, diagnosis: Diagnosis) -> Self {
        self.diagnosis = Some(Box::new(diagnosis));
        self
    }

    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// An operating-system error met on the way to a file. Its own text never
    /// goes out: it can name what the client must not learn.
    pub fn from_file_error(error: &io::Error) -> Self {
        use rustix::io::Errno;
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        match errno {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Self::not_found(),
            Some(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV) => Self::forbidden(),
            // Out of descriptors or memory: another time it works.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Self::unavailable(1),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// What keeps the server from starting or running, said in one line with a way out.
#[derive(Debug)]
pub struct StartError {
    message: String,
    hint: Option<String>,
    code: ExitCode,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Stopped by a signal.
    Stopped,
    /// It could not start or run.
    Failed,
    /// Wrong usage.
    Usage,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(match code {
            ExitCode::Stopped => 0,
            ExitCode::Failed => 1,
            ExitCode::Usage => 2,
        })
    }
}

impl StartError {
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            code: ExitCode::Failed,
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: ExitCode::Usage,
            ..Self::failed(message)
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn code(&self) -> ExitCode {
        self.code
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was typed may hold a line end or what moves a terminal.
        write!(f, "serve-here: {}", escape(self.message.as_bytes()))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", escape(hint.as_bytes())),
            None => Ok(()),
        }
    }
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_quotes_the_file_for_a_shell() {
        for (subject, hint) in [
            ("cgi-bin/x.sh", "chmod +x cgi-bin/x.sh"),
            ("-x", "chmod +x ./-x"),
            ("it's a", r"chmod +x 'it'\''s a'"),
            ("a\u{1b}[2J", r"chmod +x $'a\x1b[2J'"),
            ("$(rm)", "chmod +x '$(rm)'"),
        ] {
            let diagnosis = Diagnosis {
                subject: subject.into(),
                hint: Some("chmod +x {file}".into()),
                ..Diagnosis::default()
            };
            assert_eq!(diagnosis.hint_for_client().as_deref(), Some(hint));
        }
        assert_eq!(shell_word(b"a\xff'"), r"$'a\xff\''");
    }
}
