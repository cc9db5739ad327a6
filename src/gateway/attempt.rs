//! A request that fails at one address: what the client is told of it, and
//! whether another address is asked (C159). Common to all protocols.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, sleep_until, timeout};

use super::backend::{Backend, Trouble, Turn};
use super::sticky::Pull;
use super::stream::Stream;
use crate::error::{Area, Diagnosis, Fault};
use crate::log::Log;
use crate::message::BodyError;

/// The reason of what takes too long.
pub const TIMEOUT: &str = "timeout";

/// For an answer to a try that nobody waits for, where `--route-timeout` is off.
pub const TRY_WAIT: Duration = Duration::from_secs(60);

/// Seconds, in Retry-After where nothing better is known.
pub const RETRY_AFTER: u32 = 2;

/// Who is asked for what; the beginning of what the log says.
#[derive(Clone, Copy)]
pub struct Party<'a> {
    /// The protocol.
    pub name: &'static str,
    /// The request, as the URL names it.
    pub subject: &'a str,
    pub log: &'a Log,
}

impl Party<'_> {
    pub fn note(&self, text: &str) {
        self.log.gateway_note(self.name, self.subject, text);
    }

    pub fn diagnosis(&self, reason: &'static str, fault: String) -> Diagnosis {
        Diagnosis {
            area: Area::Gateway(self.name),
            reason,
            subject: self.subject.to_owned(),
            fault,
            ..Diagnosis::default()
        }
    }

    /// The request's content could not be read to its end.
    pub fn content_fault(&self, error: &BodyError) -> Fault {
        let (status, what) = content_trouble(error);
        let diagnosis = self.diagnosis("content", what);
        Fault::new(status).because(diagnosis).closing()
    }

    fn no_turn(&self, trouble: &Trouble) -> Fault {
        if let Trouble::Down(why) = trouble {
            return Fault::new(StatusCode::BAD_GATEWAY).because(Diagnosis {
                subject: self.subject.to_owned(),
                ..Diagnosis::clone(why)
            });
        }
        let (seconds, reason, what) = match trouble {
            Trouble::Resting(pause) => (
                u32::try_from(pause.as_secs()).unwrap_or(RETRY_AFTER) + 1,
                "all-rest",
                "each of its addresses has failed a moment ago",
            ),
            Trouble::Unready => (RETRY_AFTER, "not-ready", "its workers are still starting"),
            _ => (
                RETRY_AFTER,
                "no-connection",
                "all connections that it may have are in use",
            ),
        };
        Fault::unavailable(seconds).because(self.diagnosis(reason, what.into()))
    }
}

/// The addresses that one request is tried at.
pub struct Rounds<'a> {
    party: Party<'a>,
    /// It may be run twice (RFC 9110 §9.2.2).
    idempotent: bool,
    pull: Pull,
    tried: Vec<usize>,
    /// An address has let it wait for its whole time.
    waited: bool,
}

impl<'a> Rounds<'a> {
    pub fn new(party: Party<'a>, idempotent: bool, pull: Pull) -> Self {
        Self {
            party,
            idempotent,
            pull,
            tried: Vec::new(),
            waited: false,
        }
    }

    /// A turn at an address that was not tried yet.
    pub async fn turn(&self, backend: &Arc<Backend>) -> Result<Turn, Fault> {
        let turn = backend.turn(&self.tried, self.idempotent, self.pull).await;
        turn.map_err(|trouble| self.party.no_turn(&trouble))
    }

    /// Whether another connection may be tried, of `size` addresses, after the
    /// one at `place` has failed.
    pub fn go_on(&mut self, failed: &Failed, place: &Place, size: usize) -> bool {
        self.tried.clone_from(&place.tried);
        if !failed.stale {
            self.tried.push(place.index);
        }
        // Nobody waits for all addresses to hang.
        if failed.reason == TIMEOUT && std::mem::replace(&mut self.waited, true) {
            return false;
        }
        let harmless = match failed.progress {
            Progress::NotSent | Progress::Rejected => true,
            Progress::Sent => self.idempotent,
            Progress::Answered => false,
        };
        harmless && self.tried.len() < size
    }

    /// The log tells of each address that gave no answer.
    pub fn note(&self, failed: &Failed, place: &Place) {
        if !failed.stale {
            let Place { address, .. } = place;
            let next = if place.is_worker {
                "it is run once more"
            } else {
                "another address is asked"
            };
            self.party
                .note(&format!("{address}: {}; {next}", failed.what));
        }
    }
}

/// Where a request is tried.
pub struct Place {
    pub index: usize,
    pub address: String,
    /// It is started from here.
    is_worker: bool,
    /// Where it was before.
    tried: Vec<usize>,
}

impl Place {
    pub fn of(turn: &Turn) -> Self {
        Self {
            index: turn.index(),
            address: turn.name(),
            is_worker: turn.is_staffed(),
            tried: turn.tried().to_vec(),
        }
    }
}

/// How far a request had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The application can't have seen all of its head.
    NotSent,
    /// It may have been run.
    Sent,
    /// The application has said that it does not run it.
    Rejected,
    /// Something had come back.
    Answered,
}

/// Why an address gave no answer.
pub struct Failed {
    pub status: StatusCode,
    /// A stable word for the log.
    pub reason: &'static str,
    pub what: String,
    pub hint: Option<String>,
    pub progress: Progress,
    /// On a connection that was kept: a new one may do.
    pub stale: bool,
    /// The address answers nobody.
    pub hung: bool,
    pub retry_after: Option<u32>,
    /// The request itself is to blame.
    pub close: bool,
}

impl Failed {
    pub fn new(status: StatusCode, reason: &'static str, what: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            what: what.into(),
            hint: None,
            progress: Progress::Answered,
            stale: false,
            hung: false,
            retry_after: None,
            close: false,
        }
    }

    pub fn bad_gateway(reason: &'static str, what: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, reason, what)
    }

    /// No connection could be made (C162). The address rests for it.
    pub fn to_connect(turn: &mut Turn, trouble: &Trouble) -> Self {
        let what = trouble.what();
        let failed = match trouble {
            Trouble::Refused(_) => Self {
                hint: Some("start the application, or check the address".into()),
                ..Self::bad_gateway("connect", what)
            },
            Trouble::Late => Self::new(StatusCode::GATEWAY_TIMEOUT, "connect-timeout", what),
            Trouble::Exhausted(_) => Self {
                retry_after: Some(RETRY_AFTER),
                ..Self::bad_gateway("out-of-resources", what)
            },
            Trouble::Full
            | Trouble::Busy
            | Trouble::Unready
            | Trouble::Resting(_)
            | Trouble::Down(_) => Self {
                retry_after: Some(RETRY_AFTER),
                ..Self::bad_gateway("queue-full", what)
            },
        };
        if !matches!(trouble, Trouble::Exhausted(_)) {
            turn.unreachable(&failed.what);
        }
        Self {
            progress: Progress::NotSent,
            ..failed
        }
    }

    /// No header in time.
    pub fn late(seconds: f32) -> Self {
        Self {
            hint: Some("let it answer earlier, or raise `--route-timeout`".into()),
            ..Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                TIMEOUT,
                format!("no complete header for {seconds} s"),
            )
        }
    }

    /// No answer to a try whether the address is back.
    pub fn in_vain(time: Duration) -> Self {
        let what = format!("no answer to a try for {} s", time.as_secs_f32());
        Self {
            progress: Progress::Sent,
            ..Self::new(StatusCode::GATEWAY_TIMEOUT, "try", what)
        }
    }

    /// What takes too long would take no less elsewhere, unless it is the
    /// address that hangs.
    pub fn weigh_silence(&mut self, turn: &Turn) {
        if self.reason == TIMEOUT && turn.is_silent() {
            self.hung = true;
            self.progress = Progress::Sent;
        }
    }

    /// The connection ended.
    pub fn closed(error: Option<&io::Error>) -> Self {
        match error {
            None => Self::bad_gateway("closed", "it closed the connection before its answer"),
            Some(error) if error.kind() == io::ErrorKind::TimedOut => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "unreachable",
                "its machine doesn't acknowledge what is sent",
            ),
            Some(error) => Self::bad_gateway(
                "closed",
                format!("the connection broke before its answer: {}", plain(error)),
            ),
        }
    }

    /// The request's content ended before its end (C71).
    pub fn of_content(error: &BodyError) -> Self {
        let (status, what) = content_trouble(error);
        Self {
            close: true,
            ..Self::new(status, "content", what)
        }
    }

    /// Tells the address what it is to blame for.
    pub fn blame(&self, turn: &mut Turn) {
        if self.reason == TIMEOUT && turn.is_staffed() {
            turn.stuck();
        } else if self.hung {
            turn.hung(&self.what);
        } else if self.reason == "unreachable" {
            turn.unreachable(&self.what);
        } else if !self.stale && !self.close && self.progress != Progress::Rejected {
            turn.misbehaved(&self.what);
        }
    }

    pub fn fault(self, party: &Party<'_>, address: &str) -> Fault {
        let mut fault = match self.retry_after {
            Some(seconds) => Fault::unavailable(seconds),
            None => Fault::new(self.status),
        };
        fault.close = self.close;
        let text = format!("{address}: {}", self.what);
        fault.because(Diagnosis {
            hint: self.hint,
            ..party.diagnosis(self.reason, text)
        })
    }
}

impl Trouble {
    /// For the log.
    pub fn what(&self) -> String {
        match self {
            Self::Refused(error) => format!("no connection: {}", plain(error)),
            Self::Late => "no connection in time".into(),
            Self::Exhausted(error) => plain(error),
            Self::Full | Self::Busy | Self::Unready | Self::Resting(_) | Self::Down(_) => {
                "its queue of connections is full".into()
            }
        }
    }
}

/// The status for content that could not be read to its end, and what to say.
fn content_trouble(error: &BodyError) -> (StatusCode, String) {
    let status = match error {
        BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TimedOut => StatusCode::REQUEST_TIMEOUT,
        BodyError::Closed | BodyError::Malformed | BodyError::Truncated => StatusCode::BAD_REQUEST,
        // Spooling failed: no room, no descriptor.
        BodyError::Io(_) => StatusCode::INSUFFICIENT_STORAGE,
    };
    (
        status,
        format!("the request's content could not be used: {error}"),
    )
}

/// `connection refused`, without the number that the library adds.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

/// The time limit that is over, once it is.
pub async fn until(deadline: Option<(Instant, Duration)>) -> Duration {
    match deadline {
        Some((deadline, limit)) => {
            sleep_until(deadline).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// After a try that nobody waits for any more: that an answer comes still tells
/// that the address is back.
pub async fn wait_for_word(mut turn: Turn, stream: Arc<Stream>, limit: Duration) {
    match timeout(limit, has_word(&stream)).await {
        Ok(true) => turn.succeeded(),
        Ok(false) | Err(_) => turn.hung("no answer to a try"),
    }
}

/// Waits until the application says something; false if it ends instead.
async fn has_word(stream: &Stream) -> bool {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0]) {
            Ok(read) => return read > 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    false
}
