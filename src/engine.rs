//! Engines: sockets and HTTP framing (RFC 9112), no files, no scripts.
//!
//! An engine reads a message from a socket into a `Request`, gives it to the
//! service, and writes the `Response`. Which bytes mean what on the wire is in
//! `framing`, common to all engines; how they move is each engine's own.

use std::time::Duration;

use self::patience::Patience;

pub mod chunked;
pub mod framing;
pub mod http1;
pub mod listener;
pub mod patience;
mod tcp;
pub mod tiny;
mod wire;

/// How long an engine waits for a client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a request's content (C72).
    pub body: Patience,
    /// For a client to take the answer.
    pub write: Patience,
    /// For an idle connection's next request.
    pub idle: Duration,
    /// For a whole head, from its first byte.
    pub head: Duration,
    /// Of a request's head, in bytes.
    pub head_bytes: usize,
    /// Fields in a request's head.
    pub fields: usize,
    /// Connections at once.
    pub connections: usize,
    /// Answer as HTTP/1.0, a connection each (`--protocol HTTP/1.0`).
    pub http_1_0: bool,
}

/// Descriptors kept for files, scripts and the log.
const RESERVED_DESCRIPTORS: usize = 128;
/// What a running script takes: three pipes and a pidfd.
const DESCRIPTORS_PER_SCRIPT: usize = 4;

/// The connections that `open_files` descriptors allow beside `jobs` scripts.
pub fn most_connections(open_files: usize, jobs: usize) -> usize {
    let kept = RESERVED_DESCRIPTORS + jobs * DESCRIPTORS_PER_SCRIPT;
    open_files.saturating_sub(kept).max(open_files / 4).max(1)
}

impl Default for Limits {
    fn default() -> Self {
        const MINUTE: Patience = Patience {
            most: Duration::from_secs(60),
            rate: 100,
        };
        Self {
            body: MINUTE,
            write: MINUTE,
            idle: Duration::from_secs(60),
            head: Duration::from_secs(10),
            head_bytes: 64 << 10,
            fields: 100,
            connections: usize::MAX,
            http_1_0: false,
        }
    }
}
