//! Content codings made on the fly (RFC 9110 §8.4): for which files that is
//! worth while, the making, and keeping what was made.
//!
//! Making takes CPU time and so never happens on a thread that serves
//! connections. Half of the cores may be busy with it; a few requests wait for
//! their turn, the others get the bytes as they are. What was made is found
//! again by the file's identity and times, so it is never stale.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use flate2::write::GzEncoder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::Stamp;
use super::media_type;
use super::negotiation::Coding;

/// Below this a coding saves no packet.
const SHORTEST: u64 = 1 << 10;
/// Above this a first answer would take too long to make, and too much memory.
/// Text of this length took 28 ms in zstd, 105 ms in gzip and 161 ms in br, the
/// best of five on a busy machine of two cores.
const LONGEST: u64 = 4 << 20;
/// Bound for all that is kept. A store that is full begins anew.
const MAX_KEPT_BYTES: usize = 16 << 20;
/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 256;
/// Requests that wait for their turn, for each that is at work.
const WAITING: usize = 8;

/// At equal liking the fastest to make first. On text of 100 KB the lengths are
/// within 2 % of each other at these levels.
pub(super) const BY_SPEED: [Coding; 3] = [Coding::Zstd, Coding::Gzip, Coding::Br];

/// Types besides text whose files a coding makes much shorter.
const COMPRESSIBLE: [&str; 13] = [
    "application/javascript",
    "application/postscript",
    "application/rtf",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-font-ttf",
    "application/x-javascript",
    "application/x-ndjson",
    "application/x-subrip",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/x-icon",
];

/// Whether files of the type are sent in a coding at all.
pub(super) fn is_compressible(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default();
    media_type::is_text(essence) || COMPRESSIBLE.contains(&essence)
}

/// Whether a file of this length may be coded. Where nothing else can be sent
/// it need not be worth while.
pub(super) fn has_right_length(length: u64, needed: bool) -> bool {
    (needed || length >= SHORTEST) && length <= LONGEST
}

/// Makes coded forms of files and keeps them.
pub(super) struct Coder {
    turns: Arc<Semaphore>,
    most_waiting: usize,
    waiting: AtomicUsize,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    /// `None`: the coded form is no shorter.
    forms: HashMap<(Stamp, Coding), Option<Bytes>>,
    bytes: usize,
}

/// A place among those who wait, given back when it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Coder {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new((cores / 2).max(1))
    }
}

impl Coder {
    /// `most` at work at once.
    fn new(most: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(most)),
            most_waiting: WAITING * most,
            waiting: AtomicUsize::new(0),
            kept: Arc::default(),
        }
    }

    /// The file in a coding. `None` if that is no shorter, too many others want
    /// one, or the file has changed since `stamp`. What is `needed`, because the
    /// client takes nothing else, may be longer, and is waited for.
    pub(super) async fn code(
        &self,
        file: &Arc<File>,
        stamp: Stamp,
        coding: Coding,
        needed: bool,
    ) -> Option<Bytes> {
        let kept = || match self.kept().forms.get(&(stamp, coding)) {
            Some(None) if needed => None,
            found => found.cloned(),
        };
        if let Some(form) = kept() {
            return form;
        }
        let turn = self.turn(needed).await?;
        // Another request may have made it while this one waited.
        if let Some(form) = kept() {
            return form;
        }
        let (file, kept) = (Arc::clone(file), Arc::clone(&self.kept));
        let making = move || {
            // Held to the end, whether or not the client is still there.
            let _turn = turn;
            let form: Bytes = make(&file, stamp, coding).ok()?.into();
            let shorter = (form.len() as u64) < stamp.length;
            if stamp.is_settled(SystemTime::now()) {
                let form = shorter.then(|| form.clone());
                lock(&kept).put((stamp, coding), form);
            }
            (shorter || needed).then_some(form)
        };
        tokio::task::spawn_blocking(making).await.ok()?
    }

    async fn turn(&self, needed: bool) -> Option<OwnedSemaphorePermit> {
        let turns = || Arc::clone(&self.turns);
        if let Ok(turn) = turns().try_acquire_owned() {
            return Some(turn);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.most_waiting && !needed {
            return None;
        }
        turns().acquire_owned().await.ok()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

fn lock(kept: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn put(&mut self, key: (Stamp, Coding), form: Option<Bytes>) {
        let cost = |form: &Option<Bytes>| ENTRY_BYTES + form.as_ref().map_or(0, Bytes::len);
        let bytes = cost(&form);
        if self.bytes + bytes > MAX_KEPT_BYTES {
            *self = Self::default();
        }
        if let Some(old) = self.forms.insert(key, form) {
            self.bytes -= cost(&old);
        }
        self.bytes += bytes;
    }
}

/// Fails if the file is not what `stamp` says, before or after the reading.
fn make(file: &File, stamp: Stamp, coding: Coding) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stamp.length).map_err(io::Error::other)?;
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0)?;
    if Stamp::of(&file.metadata()?) != stamp {
        return Err(io::ErrorKind::Interrupted.into());
    }
    encode(coding, &content)
}

/// The same bytes give the same form: the entity tags are strong.
fn encode(coding: Coding, content: &[u8]) -> io::Result<Vec<u8>> {
    let mut coded = Vec::with_capacity(content.len() / 3);
    match coding {
        Coding::Gzip => {
            // Without a time or a name in its header.
            let mut encoder = GzEncoder::new(coded, flate2::Compression::default());
            encoder.write_all(content)?;
            coded = encoder.finish()?;
        }
        // The window stays below the 8 MiB that RFC 9659 allows.
        Coding::Zstd => coded = zstd::bulk::compress(content, 3)?,
        Coding::Br => {
            let parameters = BrotliEncoderParams {
                quality: 5,
                // 1 MiB: the memory it takes is a multiple of this.
                lgwin: 20,
                size_hint: content.len(),
                ..BrotliEncoderParams::default()
            };
            brotli::BrotliCompress(&mut &content[..], &mut coded, &parameters)?;
        }
    }
    coded.shrink_to_fit();
    Ok(coded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    fn file(content: &[u8]) -> (Arc<File>, Stamp) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let stamp = Stamp::of(&file.metadata().unwrap());
        (Arc::new(file), stamp)
    }

    fn decoded(coding: Coding, form: &[u8]) -> Vec<u8> {
        let mut content = Vec::new();
        let mut form = form;
        match coding {
            Coding::Gzip => {
                let mut decoder = flate2::read::GzDecoder::new(form);
                decoder.read_to_end(&mut content).unwrap();
            }
            Coding::Zstd => zstd::stream::copy_decode(form, &mut content).unwrap(),
            Coding::Br => brotli::BrotliDecompress(&mut form, &mut content).unwrap(),
        }
        content
    }

    #[test]
    fn every_coding_gives_the_content_back_and_the_same_bytes_each_time() {
        for content in [&b""[..], b"x", &b"a line\n".repeat(10_000)] {
            for coding in BY_SPEED {
                let form = encode(coding, content).unwrap();
                assert_eq!(decoded(coding, &form), content);
                assert_eq!(encode(coding, content).unwrap(), form);
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_what_it_was_is_not_coded() {
        let (file, stamp) = file(&[b'x'; 5000]);
        (&*file).write_all(b"more").unwrap();
        let coder = Coder::new(1);
        assert!(
            coder
                .code(&file, stamp, Coding::Gzip, false)
                .await
                .is_none()
        );
        file.set_len(10).unwrap();
        assert!(coder.code(&file, stamp, Coding::Gzip, true).await.is_none());
    }

    #[tokio::test]
    async fn what_grows_is_sent_only_where_it_is_needed() {
        let (file, stamp) = file(b"xyz");
        let coder = Coder::new(1);
        for _ in 0..2 {
            assert!(
                coder
                    .code(&file, stamp, Coding::Gzip, false)
                    .await
                    .is_none()
            );
            let form = coder.code(&file, stamp, Coding::Gzip, true).await.unwrap();
            assert_eq!(decoded(Coding::Gzip, &form), b"xyz");
        }
    }

    #[tokio::test]
    async fn where_too_many_wait_nothing_is_made() {
        let (file, stamp) = file(&[b'x'; 5000]);
        let coder = Coder::new(1);
        let busy = coder.turn(false).await.unwrap();
        let code = |needed| coder.code(&file, stamp, Coding::Zstd, needed);
        let mut queue = Vec::new();
        for _ in 0..WAITING {
            let mut waits = Box::pin(code(false));
            let now = tokio::time::timeout(Duration::ZERO, &mut waits).await;
            assert!(now.is_err(), "it waits");
            queue.push(waits);
        }
        assert!(code(false).await.is_none());
        // What nothing else will do for waits all the same.
        let mut needed = Box::pin(code(true));
        assert!(
            tokio::time::timeout(Duration::ZERO, &mut needed)
                .await
                .is_err()
        );
        // Who leaves gives the place back.
        queue.truncate(WAITING - 2);
        assert!(
            tokio::time::timeout(Duration::ZERO, code(false))
                .await
                .is_err()
        );
        drop(busy);
        for waits in queue {
            assert!(waits.await.is_some());
        }
        assert!(needed.await.is_some());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        for n in 0..100 {
            let (_, stamp) = file(&vec![b'x'; n]);
            kept.put((stamp, Coding::Gzip), Some(vec![0; 1 << 20].into()));
            kept.put((stamp, Coding::Gzip), Some(vec![0; 1 << 19].into()));
            let held: usize = kept.forms.values().flatten().map(Bytes::len).sum();
            assert!(held <= kept.bytes && kept.bytes <= MAX_KEPT_BYTES);
        }
    }
}
