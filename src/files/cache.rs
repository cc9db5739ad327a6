//! Answers that are ready: the fields and small contents of files that were
//! asked for before. Never stale: each use is checked with one stat.
//!
//! Only a file that has not changed for a while is kept. Two changes within
//! one tick of the file system's clock look alike; a change that comes later
//! does not.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderMap;
use rustix::fs::Stat;

use super::resolve::Root;
use crate::message::{Piece, PreparedHead, Ready};

/// Contents up to this length are kept; of longer files only the fields are.
const SMALL_BYTES: u64 = 32 << 10;
/// Bounds for all entries. A cache that is full begins anew.
const MAX_BYTES: usize = 16 << 20;
const MAX_ENTRIES: usize = 4096;
/// What an entry costs besides its content.
const ENTRY_BYTES: usize = 1 << 10;
/// How long a file must have been left alone.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Cache {
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    /// By the path as it stands in the request-target.
    by_target: HashMap<Bytes, Arc<Entry>>,
    bytes: usize,
}

struct Entry {
    /// Relative to the root; no symbolic link lay on it.
    path: PathBuf,
    stamp: Stamp,
    head: Arc<PreparedHead>,
    /// `None`: opened anew each time.
    content: Option<Bytes>,
}

/// What tells a file from every other state of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn of_stat(stat: &Stat) -> Option<Self> {
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            length: u64::try_from(stat.st_size).ok()?,
            modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?),
            changed: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).ok()?),
        })
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = self.modified.0.max(self.changed.0);
        let Ok(seconds) = u64::try_from(seconds) else {
            return true;
        };
        let changed = UNIX_EPOCH + Duration::from_secs(seconds);
        now.duration_since(changed).is_ok_and(|age| age > SETTLED)
    }
}

impl Cache {
    /// The answer for a path, if its file is what it was.
    pub(super) fn get(&self, target: &[u8], root: &Root) -> Option<Ready> {
        let entry = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(entries.by_target.get(target)?)
        };
        let stat = root.stat(&entry.path);
        if stat.and_then(|stat| Stamp::of_stat(&stat)) != Some(entry.stamp) {
            self.forget(target);
            return None;
        }
        let content = if let Some(content) = &entry.content {
            Piece::Bytes(content.clone())
        } else {
            let file = root.reopen(&entry.path)?;
            // Between the two calls it may have been replaced.
            if Stamp::of(&file.metadata().ok()?) != entry.stamp {
                return None;
            }
            Piece::file(file, 0, entry.stamp.length)
        };
        Some(Ready {
            head: Arc::clone(&entry.head),
            content,
        })
    }

    /// Keeps the answer to a plain request for a whole file.
    pub(super) fn put(
        &self,
        target: &Bytes,
        path: &Path,
        file: &File,
        metadata: &Metadata,
        headers: &HeaderMap,
    ) {
        let stamp = Stamp::of(metadata);
        // What can be run may become a script by a link made later (C50).
        let may_run = metadata.mode() & 0o111 != 0;
        if may_run || !stamp.is_settled(SystemTime::now()) {
            return;
        }
        // Else it is being changed, or can't be read; it is sent as it is.
        let Ok(content) = read_small(file, stamp.length) else {
            return;
        };
        let bytes = ENTRY_BYTES + content.as_ref().map_or(0, Bytes::len);
        let entry = Entry {
            path: path.to_owned(),
            stamp,
            head: Arc::new(PreparedHead::new(headers.clone())),
            content,
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.by_target.len() >= MAX_ENTRIES || entries.bytes + bytes > MAX_BYTES {
            *entries = Entries::default();
        }
        // A copy, so that the whole head of the request isn't kept with it.
        let key = Bytes::copy_from_slice(target);
        if let Some(old) = entries.by_target.insert(key, Arc::new(entry)) {
            entries.bytes -= old.bytes();
        }
        entries.bytes += bytes;
    }

    fn forget(&self, target: &[u8]) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = entries.by_target.remove(target) {
            entries.bytes -= old.bytes();
        }
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.content.as_ref().map_or(0, Bytes::len)
    }
}

fn read_small(file: &File, length: u64) -> std::io::Result<Option<Bytes>> {
    if length > SMALL_BYTES {
        return Ok(None);
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut content, 0)?;
    Ok(Some(content.into()))
}
