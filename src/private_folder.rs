//! A folder that nobody else may enter, for sockets and for code that workers
//! read. It is removed at the end; what a server that crashed has left is removed
//! by the next one. A lock tells whether a folder's server lives.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::rand::{GetRandomFlags, getrandom};

const LOCK: &str = "lock";
/// Beside the folder's own name and a socket's in it, this is within what a
/// socket's address can hold.
const MAX_PARENT_BYTES: usize = 60;
/// A folder without a lock is one in the making, but not for so long.
const MAKING: Duration = Duration::from_secs(60);

pub struct PrivateFolder {
    path: PathBuf,
    _lock: File,
}

impl PrivateFolder {
    /// Its name begins with `prefix`, which no other kind of folder has. The error
    /// names the folder that it can't be made in.
    pub fn make(prefix: &str) -> io::Result<Self> {
        let parent = parent();
        let path = make_private(&parent, prefix).map_err(|error| {
            let message = format!("no folder can be made in {}: {error}", parent.display());
            io::Error::new(error.kind(), message)
        })?;
        match lock(&path) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// With all that is in it.
    pub fn remove(&self) {
        // The next server's start tries it again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn lock(path: &Path) -> io::Result<File> {
    // It appears locked.
    let new = path.join("new");
    let lock = File::create(&new)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    fs::rename(&new, path.join(LOCK))?;
    Ok(lock)
}

/// `$TMPDIR`, unless its name would need quoting or is too long.
fn parent() -> PathBuf {
    let folder = std::env::temp_dir();
    let name = folder.as_os_str().as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+".contains(b);
    if folder.is_absolute() && name.len() <= MAX_PARENT_BYTES && name.iter().all(plain) {
        folder
    } else {
        "/tmp".into()
    }
}

fn make_private(parent: &Path, prefix: &str) -> io::Result<PathBuf> {
    const TRIES: usize = 100;
    const LETTERS: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz0123456";
    let mut last = io::ErrorKind::AlreadyExists.into();
    for _ in 0..TRIES {
        let mut random = [0; 10];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let letter = |b: &u8| char::from(LETTERS[usize::from(b % 32)]);
        let name: String = random.iter().map(letter).collect();
        let path = parent.join(format!("{prefix}{name}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Removes the folders of this user's servers that are no more.
pub fn remove_leftovers(prefix: &str) {
    let Ok(entries) = fs::read_dir(parent()) else {
        return;
    };
    for entry in entries.flatten() {
        if is_ours(prefix, &entry.file_name(), &entry.path()) && is_abandoned(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_ours(prefix: &str, name: &OsStr, path: &Path) -> bool {
    name.as_bytes().starts_with(prefix.as_bytes())
        && fs::symlink_metadata(path)
            .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

fn is_abandoned(path: &Path) -> bool {
    match File::open(path.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fs::metadata(path).and_then(|found| found.modified());
            made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > MAKING))
        }
        Err(_) => false,
    }
}
