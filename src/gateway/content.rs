//! A request's content on its way to an application server: of known length,
//! since every protocol has to say it first (C65, C175, C181), and kept as far
//! as it may have to be sent once more.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::stdin::{Spooled, spool};
use crate::message::{Body, BodyError, Source, StreamBody};

/// What is sent may have to be sent again to another address; up to this it can.
const KEPT_BYTES: usize = 64 << 10;
/// What is read from a spooled file at once.
const READ_BYTES: usize = 64 << 10;

pub struct Content {
    /// In bytes; `None` if the request has no content (C12).
    length: Option<u64>,
    /// The first pieces, as long as they are all there.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Some of what was taken is no longer there.
    forgotten: bool,
    /// How many of the kept pieces are taken.
    taken: usize,
    rest: Rest,
}

enum Rest {
    Nothing,
    Arriving {
        source: Box<dyn Source>,
        /// Bytes that may still come.
        room: u64,
    },
    Spooled {
        file: File,
        offset: u64,
    },
}

impl Content {
    /// Reads content of unknown length to its end first. `max_body` is in
    /// bytes (C70).
    pub async fn of(body: Body, max_body: u64) -> Result<Self, BodyError> {
        match body {
            Body::Stream(StreamBody { length: None, .. }) => Self::whole(body, max_body).await,
            body => Self::as_it_comes(body, max_body),
        }
    }

    /// Reads all of the content first, in memory or a file.
    pub async fn whole(body: Body, max_body: u64) -> Result<Self, BodyError> {
        let Body::Stream(StreamBody { length, source }) = body else {
            return Self::as_it_comes(body, max_body);
        };
        if length.is_some_and(|length| length > max_body) {
            return Err(BodyError::TooLarge);
        }
        Ok(match spool(source, max_body).await? {
            Spooled::Memory(bytes) => {
                Self::new(Some(bytes.len() as u64), Some(bytes), Rest::Nothing)
            }
            Spooled::File(file, length) => {
                Self::new(Some(length), None, Rest::Spooled { file, offset: 0 })
            }
        })
    }

    /// For a protocol that can pass on content whose length it doesn't know.
    pub fn as_it_comes(body: Body, max_body: u64) -> Result<Self, BodyError> {
        if body.length().is_some_and(|length| length > max_body) {
            return Err(BodyError::TooLarge);
        }
        Ok(match body {
            Body::Empty => Self::none(),
            Body::Bytes(bytes) => Self::new(Some(bytes.len() as u64), Some(bytes), Rest::Nothing),
            Body::Stream(StreamBody { length, source }) => {
                let room = length.unwrap_or(max_body);
                Self::new(length, None, Rest::Arriving { source, room })
            }
            Body::File(_) | Body::Unframed(_) | Body::Tunnel(_) => {
                unreachable!("no engine makes these from a request")
            }
        })
    }

    pub fn none() -> Self {
        Self::new(None, None, Rest::Nothing)
    }

    fn new(length: Option<u64>, kept: Option<Bytes>, rest: Rest) -> Self {
        Self {
            length,
            kept: kept.into_iter().filter(|piece| !piece.is_empty()).collect(),
            kept_bytes: 0,
            forgotten: false,
            taken: 0,
            rest,
        }
    }

    /// The request has content, be it empty.
    pub fn is_there(&self) -> bool {
        self.length.is_some() || matches!(self.rest, Rest::Arriving { .. })
    }

    /// Nothing of it has to be waited for.
    pub fn is_at_hand(&self) -> bool {
        matches!(self.rest, Rest::Nothing)
    }

    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The client may send it now, so that 100 (Continue) can't come behind the
    /// answer.
    pub fn want(&mut self) {
        if let Rest::Arriving { source, .. } = &mut self.rest {
            source.want();
        }
    }

    /// What is there without waiting.
    pub fn next_at_hand(&mut self) -> Option<Bytes> {
        let piece = self.kept.get(self.taken)?.clone();
        self.taken += 1;
        Some(piece)
    }

    /// Whether all of it was taken, as far as can be said without waiting.
    pub fn is_taken(&self) -> bool {
        self.is_at_hand() && self.taken == self.kept.len()
    }

    /// The next piece, never empty. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if let Some(piece) = self.next_at_hand() {
            return Some(Ok(piece));
        }
        match &mut self.rest {
            Rest::Nothing => None,
            Rest::Arriving { source, room } => {
                let Some(piece) = source.next().await else {
                    self.rest = Rest::Nothing;
                    return None;
                };
                if let Ok(piece) = &piece {
                    let Some(left) = room.checked_sub(piece.len() as u64) else {
                        return Some(Err(BodyError::TooLarge));
                    };
                    *room = left;
                    if left == 0 && self.length.is_some() {
                        self.rest = Rest::Nothing;
                    }
                    self.keep(piece);
                }
                Some(piece)
            }
            Rest::Spooled { file, offset } => {
                let mut piece = vec![0; READ_BYTES];
                match file.read_at(&mut piece, *offset) {
                    Ok(0) => None,
                    Ok(read) => {
                        *offset += read as u64;
                        piece.truncate(read);
                        Some(Ok(piece.into()))
                    }
                    Err(error) => Some(Err(error.into())),
                }
            }
        }
    }

    fn keep(&mut self, piece: &Bytes) {
        self.kept_bytes += piece.len();
        if self.kept_bytes <= KEPT_BYTES && !self.forgotten {
            self.kept.push(piece.clone());
            self.taken = self.kept.len();
        } else {
            self.forgotten = true;
            self.kept.clear();
            self.taken = 0;
        }
    }

    /// Goes back to the beginning; false if that is no longer there.
    pub fn rewind(&mut self) -> bool {
        self.taken = 0;
        if let Rest::Spooled { offset, .. } = &mut self.rest {
            *offset = 0;
        }
        !self.forgotten
    }
}
