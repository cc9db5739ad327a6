//! Names that were read before, of folders that are as they were.
//!
//! Which names there are shows in the folder's own times (POSIX.1-2017,
//! `rename`, `unlink`, `open`); what they name does not, and is never kept. Only
//! of a folder that was left alone for a while, because two changes within one
//! tick of the clock look alike, and only where the file system is known to
//! keep these times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::WHOLE_ENTRIES;
use super::names::Names;
use crate::files::cache::Stamp;
use crate::files::resolve::{Directory, Refusal, Root};

/// Bound for all names. When it is reached, it begins anew.
const MAX_BYTES: usize = 1 << 20;
/// What a folder costs besides its names.
const FOLDER_BYTES: usize = 256;
/// By the number that statfs(2) has for them: ext2 to ext4, XFS, btrfs, tmpfs,
/// overlayfs.
const KEEP_TIMES: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630];

#[derive(Default)]
pub(super) struct Known {
    folders: Mutex<Folders>,
}

#[derive(Default)]
struct Folders {
    by_stamp: HashMap<Stamp, Arc<Names>>,
    bytes: usize,
}

impl Known {
    /// What [`Names::read`] would return now, if that is known.
    pub(super) fn find(&self, directory: &Directory) -> Option<Arc<Names>> {
        let stamp = Stamp::of_stat(&directory.stat_self().ok()?)?;
        self.lock().by_stamp.get(&stamp).cloned()
    }

    /// Reads the names and keeps them if they can be.
    pub(super) fn read(&self, root: &Root, directory: &Directory) -> Result<Arc<Names>, Refusal> {
        let stamp = Stamp::of_stat(&directory.stat_self()?);
        let now = SystemTime::now();
        let names = Arc::new(Names::read(root, directory)?);
        if let Some(stamp) = stamp
            && stamp.is_settled(now)
            && names.count() <= WHOLE_ENTRIES
            && !names.have_links()
            && KEEP_TIMES.contains(&directory.file_system()?)
        {
            self.keep(stamp, &names);
        }
        Ok(names)
    }

    fn keep(&self, stamp: Stamp, names: &Arc<Names>) {
        let bytes = FOLDER_BYTES + names.bytes();
        let mut folders = self.lock();
        if folders.bytes + bytes > MAX_BYTES {
            *folders = Folders::default();
        }
        if folders.by_stamp.insert(stamp, Arc::clone(names)).is_none() {
            folders.bytes += bytes;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Folders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Options;
    use crate::files::resolve::Node;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    #[test]
    fn names_are_known_until_one_comes_or_goes_or_is_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "").unwrap();
        let root = Root::new(folder.path(), Options::default()).unwrap();
        let Ok(Node::Directory(directory)) = root.find(Path::new("")) else {
            panic!("it is a folder");
        };
        if !KEEP_TIMES.contains(&directory.file_system().unwrap()) {
            return;
        }
        let known = Known::default();
        // What has just been changed isn't kept.
        assert_eq!(known.read(&root, &directory).unwrap().count(), 1);
        assert!(known.find(&directory).is_none());
        let until_kept = || {
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                known.read(&root, &directory).unwrap();
                if let Some(names) = known.find(&directory) {
                    return names.count();
                }
                assert!(Instant::now() < end, "they are never kept");
                sleep(Duration::from_millis(20));
            }
        };
        assert_eq!(until_kept(), 1);
        // What they name may change.
        fs::write(path("a"), "longer").unwrap();
        assert!(known.find(&directory).is_some());
        fs::rename(path("a"), path("b")).unwrap();
        assert!(known.find(&directory).is_none());
        fs::write(path("c"), "").unwrap();
        assert_eq!(until_kept(), 2);
        symlink("b", path("link")).unwrap();
        assert!(known.find(&directory).is_none());
        let names = known.read(&root, &directory).unwrap();
        assert!(names.have_links() && names.count() == 3);
    }

    #[test]
    fn names_take_a_bounded_room() {
        let known = Known::default();
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path(), Options::default()).unwrap();
        let Ok(Node::Directory(directory)) = root.find(Path::new("")) else {
            panic!("it is a folder");
        };
        let names = known.read(&root, &directory).unwrap();
        for number in 0..10_000 {
            let file = tempfile::tempfile().unwrap();
            let mut stamp = Stamp::of(&file.metadata().unwrap());
            stamp.length = number;
            known.keep(stamp, &names);
            assert!(known.lock().bytes <= MAX_BYTES);
        }
        assert!(known.lock().by_stamp.len() <= MAX_BYTES / FOLDER_BYTES);
    }
}
