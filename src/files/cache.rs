//! Answers that are ready: the fields and small contents of files that were
//! asked for before. Never stale: each use is checked with one stat.
//!
//! Where a client takes a content coding, the answer also rests on which coded
//! forms lie beside the file. A change of names shows in the folder's own times,
//! a change of a form in the form's: one more stat for the folder, and one for
//! each form that there is.
//!
//! Only a file that has not changed for a while is kept. Two changes within
//! one tick of the file system's clock look alike; a change that comes later
//! does not.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::Stat;

use super::negotiation::Accepted;
use super::resolve::Root;
use crate::message::{Body, Piece, PreparedHead, Ready, Response};

/// Contents up to this length are kept; of longer files only the fields are.
const SMALL_BYTES: u64 = 128 << 10;
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
    by_target: HashMap<Bytes, Vec<Arc<Entry>>>,
    count: usize,
    bytes: usize,
}

struct Entry {
    basis: Basis,
    head: Arc<PreparedHead>,
    content: Content,
}

enum Content {
    Bytes(Bytes),
    /// Opened anew each time.
    File(PathBuf, Stamp),
}

/// What an answer rests on: as long as all of this is so, it is right.
pub(super) struct Basis {
    /// Of the file that was asked for, relative to the root; no symbolic link
    /// lay on it.
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    /// What the client takes. `None`: the answer is everyone's.
    pub(super) accepted: Option<Accepted>,
    /// `None`: it does not matter what lies beside the file.
    pub(super) neighbours: Option<Neighbours>,
    /// Where the bytes lie that are sent, relative to the root. `None`: they were
    /// made.
    pub(super) content: Option<(PathBuf, Stamp)>,
}

/// The forms of a file that lie beside it.
pub(super) struct Neighbours {
    /// Of the folder: no name has come or gone.
    pub(super) folder: Stamp,
    /// Those there are, as far as they were looked for.
    pub(super) files: Vec<(OsString, Stamp)>,
}

/// What tells a file from every other state of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    /// In bytes.
    pub(super) length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub(super) fn of_stat(stat: &Stat) -> Option<Self> {
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            length: u64::try_from(stat.st_size).ok()?,
            modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()?),
            changed: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).ok()?),
        })
    }

    /// Whether a change from now on would show.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = self.modified.0.max(self.changed.0);
        let Ok(seconds) = u64::try_from(seconds) else {
            return true;
        };
        let changed = UNIX_EPOCH + Duration::from_secs(seconds);
        now.duration_since(changed).is_ok_and(|age| age > SETTLED)
    }
}

impl Basis {
    /// Whether all is as it was.
    fn holds(&self, root: &Root) -> bool {
        let is = |stat: Option<Stat>, stamp| stat.and_then(|s| Stamp::of_stat(&s)) == Some(stamp);
        let Some(neighbours) = &self.neighbours else {
            return is(root.stat(&self.path), self.stamp);
        };
        let (Some(folder), Some(name)) = (root.folder_of(&self.path), self.path.file_name()) else {
            return false;
        };
        is(folder.stat(), neighbours.folder)
            && is(folder.stat_of(name), self.stamp)
            && neighbours
                .files
                .iter()
                .all(|(name, stamp)| is(folder.stat_of(name), *stamp))
    }

    /// Whether a change of any of it would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let beside = self.neighbours.iter().flat_map(|neighbours| {
            let files = neighbours.files.iter().map(|(_, stamp)| stamp);
            files.chain([&neighbours.folder])
        });
        beside
            .chain([&self.stamp])
            .all(|stamp| stamp.is_settled(now))
    }
}

impl Cache {
    /// The answer for a path and a client that takes these codings, if all that
    /// it rests on is what it was.
    pub(super) fn get(&self, target: &[u8], accepted: Accepted, root: &Root) -> Option<Ready> {
        let entry = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let mut answers = entries.by_target.get(target)?.iter();
            Arc::clone(answers.find(|entry| entry.is_for(accepted))?)
        };
        if !entry.basis.holds(root) {
            self.forget(target);
            return None;
        }
        let content = match &entry.content {
            Content::Bytes(content) => Piece::Bytes(content.clone()),
            Content::File(path, stamp) => {
                let file = root.reopen(path)?;
                // Between the two calls it may have been replaced.
                if Stamp::of(&file.metadata().ok()?) != *stamp {
                    return None;
                }
                Piece::file(file, 0, stamp.length)
            }
        };
        Some(Ready {
            head: Arc::clone(&entry.head),
            content,
        })
    }

    /// Keeps the answer to a plain request for a whole file.
    pub(super) fn put(&self, target: &Bytes, basis: Basis, response: &Response) {
        if !basis.is_settled(SystemTime::now()) {
            return;
        }
        let content = match (response.body(), &basis.content) {
            (Body::Bytes(made), None) => Content::Bytes(made.clone()),
            (Body::File(body), Some((path, stamp))) => {
                // Else it is being changed, or can't be read; it is sent as it is.
                let Ok(content) = read_small(&body.file, stamp.length) else {
                    return;
                };
                match content {
                    Some(content) => Content::Bytes(content),
                    None => Content::File(path.clone(), *stamp),
                }
            }
            _ => return,
        };
        let entry = Entry {
            basis,
            head: Arc::new(PreparedHead::new(response.headers().clone())),
            content,
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.put(target, entry);
    }

    fn forget(&self, target: &[u8]) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.forget(target);
    }
}

impl Entries {
    fn put(&mut self, target: &Bytes, entry: Entry) {
        let bytes = entry.bytes();
        if self.count >= MAX_ENTRIES || self.bytes + bytes > MAX_BYTES {
            *self = Self::default();
        }
        // Of another state of the file, or the same again.
        let replaces = |old: &Entry| {
            old.basis.stamp != entry.basis.stamp || old.basis.accepted == entry.basis.accepted
        };
        if let Some(answers) = self.by_target.get(target)
            && answers.iter().any(|old| replaces(old))
        {
            self.forget(target);
        }
        // A copy, so that the whole head of the request isn't kept with it.
        let key = Bytes::copy_from_slice(target);
        self.by_target.entry(key).or_default().push(entry.into());
        self.count += 1;
        self.bytes += bytes;
    }

    fn forget(&mut self, target: &[u8]) {
        for old in self.by_target.remove(target).unwrap_or_default() {
            self.count -= 1;
            self.bytes -= old.bytes();
        }
    }
}

impl Entry {
    /// Who takes no bytes as they are must not get what is for everyone.
    fn is_for(&self, accepted: Accepted) -> bool {
        match self.basis.accepted {
            Some(own) => own == accepted,
            None => accepted.identity,
        }
    }

    fn bytes(&self) -> usize {
        let content = match &self.content {
            Content::Bytes(content) => content.len(),
            Content::File(..) => 0,
        };
        ENTRY_BYTES + content
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
