//! From a path below the root to an open file or directory, and to nothing else.
//!
//! Owns the rules of what may be opened at all: nothing outside the root, no
//! hidden name, nothing that is withheld, no FIFO, socket or device. It knows
//! no URL and no HTTP.
//!
//! The kernel does the walk (openat2(2) with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`), so no rename or new link can slip in between a check
//! and the opening. Only where that walk meets a symbolic link is the link
//! followed by name, judged by where it ends, and the end opened by the same
//! strict walk.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{self as rfs, AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Options;
use crate::target::without_backup_marks;

/// The folder that is served.
pub(super) struct Root {
    /// Held open, so that the walk starts at this very directory.
    directory: RwLock<Arc<OwnedFd>>,
    /// Canonical.
    path: PathBuf,
    options: Options,
    /// Cleared when the kernel or a sandbox turns out not to have openat2.
    openat2: AtomicBool,
}

/// What a path names.
pub(super) enum Node {
    File(RegularFile),
    Directory(Directory),
}

/// A regular file, open for reading.
pub(super) struct RegularFile {
    pub(super) file: File,
    pub(super) metadata: Metadata,
    /// A symbolic link lay on the way.
    pub(super) linked: bool,
}

/// A directory that may be looked into.
pub(super) struct Directory {
    /// Without symbolic links; relative to the root, or absolute if a link led
    /// out of it.
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
    handle: OwnedFd,
}

/// A directory in which several names are looked at.
pub(super) struct Folder(Arc<OwnedFd>);

/// Something that exists and may be served, not opened for reading yet.
pub(super) struct Place {
    pub(super) metadata: Metadata,
    path: PathBuf,
    handle: OwnedFd,
    linked: bool,
}

/// Why a path is not served.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is nothing, or nothing that is shown.
    Missing,
    /// A FIFO, socket or device.
    Special,
    /// A symbolic link leads out of the root.
    Outside,
    /// A folder of scripts, or a script reached by way of a link.
    Script,
    System(io::Error),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::from(io::Error::from(errno))
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Self::Missing,
            _ => Self::System(error),
        }
    }
}

impl Root {
    pub(super) fn new(path: &Path, options: Options) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: RwLock::new(Arc::new(rfs::open(&path, flags, Mode::empty())?)),
            path,
            options,
            openat2: AtomicBool::new(true),
        })
    }

    /// The name of the served folder, for people.
    pub(super) fn name(&self) -> &OsStr {
        // The root of the file system has none.
        self.path.file_name().unwrap_or(OsStr::new("files"))
    }

    /// The path for the operating system of a [`Directory::path`].
    pub(super) fn absolute(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }

    /// Whether an entry of this name is shown: names that start with a dot are
    /// not, but for `.well-known` (RFC 8615).
    pub(super) fn shows(&self, name: &OsStr) -> bool {
        self.options.hidden || !name.as_bytes().starts_with(b".") || name == ".well-known"
    }

    /// Whether a listing has it. A program is there for everybody, a backup of one
    /// for nobody.
    pub(super) fn lists(&self, name: &OsStr) -> bool {
        let is_backup = || without_backup_marks(name.as_bytes()) != name.as_bytes();
        self.shows(name) && !(self.has_withheld_extension(Path::new(name)) && is_backup())
    }

    /// Opens what `path`, relative to the root and free of dot segments, names.
    pub(super) fn find(&self, path: &Path) -> Result<Node, Refusal> {
        if !path.iter().all(|name| self.shows(name)) {
            return Err(Refusal::Missing);
        }
        // The root itself is no more than looked up: now is the time to see
        // whether it is still the one.
        if path.as_os_str().is_empty() {
            self.renew();
        }
        match self.open_node(path) {
            Err(Refusal::Missing) if self.renew() => self.open_node(path),
            found => found,
        }
    }

    /// Takes the folder that is there now under the root's name, if it is
    /// another: builds delete their output folder and make it anew. Whether it
    /// was another.
    fn renew(&self) -> bool {
        // The path is canonical: a link on it has come later and isn't meant.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(there) = self.open(&self.path, flags) else {
            return false;
        };
        let identity = |directory: &OwnedFd| {
            let stat = rfs::fstat(directory).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        if identity(&there) == identity(&self.directory()) {
            return false;
        }
        let mut directory = self
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *directory = Arc::new(there);
        true
    }

    fn directory(&self) -> Arc<OwnedFd> {
        let directory = self
            .directory
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&directory)
    }

    /// What a path, relative to the root, names now. Nothing if a symbolic link
    /// lies on it.
    pub(super) fn stat(&self, path: &Path) -> Option<rfs::Stat> {
        if path.components().nth(1).is_none() {
            return rfs::statat(self.directory(), path, AtFlags::SYMLINK_NOFOLLOW).ok();
        }
        // A folder on the way may have become a link that leads out.
        let handle = self.open(path, OFlags::PATH | OFlags::CLOEXEC).ok()?;
        rfs::fstat(handle).ok()
    }

    /// The folder that holds what a path, relative to the root, names. None if a
    /// symbolic link lies on the way to it.
    pub(super) fn folder_of(&self, path: &Path) -> Option<Folder> {
        let folder = path.parent()?;
        if folder.as_os_str().is_empty() {
            return Some(Folder(self.directory()));
        }
        let handle = self.open(folder, OFlags::PATH | OFlags::CLOEXEC).ok()?;
        Some(Folder(Arc::new(handle)))
    }

    /// Opens a file for reading that was judged before.
    pub(super) fn reopen(&self, path: &Path) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        self.open(path, flags).ok().map(File::from)
    }

    /// Like [`Root::find`], whatever the names are. `path` may also be one of
    /// [`Directory::path`] and names below it.
    pub(super) fn open_node(&self, path: &Path) -> Result<Node, Refusal> {
        let place = self.locate(path)?;
        if place.metadata.is_dir() {
            return Ok(Node::Directory(Directory {
                metadata: place.metadata,
                path: place.path,
                handle: place.handle,
            }));
        }
        // What was a regular file a moment ago may be a FIFO now: NONBLOCK.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(self.open(&place.path, flags)?);
        // A file that was replaced in between is as good as the one before it:
        // the name and the way to it have been judged.
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Refusal::Special);
        }
        let linked = place.linked;
        Ok(Node::File(RegularFile {
            file,
            metadata,
            linked,
        }))
    }

    /// A file or directory that may be served, without opening it for reading.
    /// `path` is as in [`Root::open_node`].
    pub(super) fn locate(&self, path: &Path) -> Result<Place, Refusal> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let (path, handle, linked) = match self.open(path, flags) {
            Ok(handle) => (path.to_owned(), handle, false),
            Err(Errno::LOOP) => {
                let end = self.follow(path)?;
                let handle = self.open(&end, flags)?;
                (end, handle, true)
            }
            Err(errno) => return Err(errno.into()),
        };
        // An O_PATH descriptor can be asked what it is; nothing is opened yet.
        let handle = File::from(handle);
        let metadata = handle.metadata()?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(Refusal::Special);
        }
        self.check_withheld(&path, &metadata, linked)?;
        Ok(Place {
            metadata,
            path,
            handle: handle.into(),
            linked,
        })
    }

    /// The end of the symbolic links in `path`: below the root, or anywhere if
    /// links may lead out.
    fn follow(&self, path: &Path) -> Result<PathBuf, Refusal> {
        let end = fs::canonicalize(self.path.join(path))?;
        match end.strip_prefix(&self.path) {
            Ok(inside) => Ok(inside.to_owned()),
            Err(_) if self.options.follow_links => Ok(end),
            Err(_) => Err(Refusal::Outside),
        }
    }

    /// Opens a path relative to the root, or an absolute one, on which no
    /// symbolic link lies; `ELOOP` if one does.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let directory = self.directory();
        if self.openat2.load(Ordering::Relaxed) {
            let mut resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            resolve.set(ResolveFlags::BENEATH, path.is_relative());
            let name = or_dot(path);
            match rfs::openat2(&directory, name, flags, Mode::empty(), resolve) {
                // ENOSYS: Linux before 5.6. EPERM: a sandbox that knows no openat2.
                Err(Errno::NOSYS | Errno::PERM) => self.openat2.store(false, Ordering::Relaxed),
                result => return result,
            }
        }
        walk(directory.as_fd(), path, flags)
    }

    /// Nothing below a folder of scripts is served as a file (C50), however the
    /// folder is spelled or reached: its name is compared, and its identity
    /// too, for file systems that ignore case (C46) and for bind mounts.
    fn check_withheld(
        &self,
        path: &Path,
        metadata: &Metadata,
        linked: bool,
    ) -> Result<(), Refusal> {
        let refusal = || {
            if linked || metadata.is_dir() && self.any_is_withheld(std::iter::once(path)) {
                Refusal::Script
            } else {
                Refusal::Missing
            }
        };
        if metadata.is_file() && self.has_withheld_extension(path) {
            return Err(refusal());
        }
        let folder = if metadata.is_dir() {
            Some(path)
        } else {
            path.parent()
        };
        match folder {
            Some(folder) if self.is_withheld(folder) => Err(refusal()),
            _ => Ok(()),
        }
    }

    /// Whether the name says that the file is a script. In any case, because
    /// the file system may ignore it.
    fn has_withheld_extension(&self, path: &Path) -> bool {
        if self.options.withheld_extensions.is_empty() {
            return false;
        }
        let name = path.file_name().map_or(&b""[..], OsStr::as_bytes);
        // The source of a script stands in its backup, too.
        let name = Path::new(OsStr::from_bytes(without_backup_marks(name)));
        name.extension().is_some_and(|ending| {
            let mut withheld = self.options.withheld_extensions.iter();
            withheld.any(|other| ending.eq_ignore_ascii_case(other))
        })
    }

    /// Whether `folder` is a folder of scripts or lies in one.
    fn is_withheld(&self, folder: &Path) -> bool {
        self.any_is_withheld(folder.ancestors())
    }

    fn any_is_withheld<'a>(&self, mut folders: impl Iterator<Item = &'a Path>) -> bool {
        let withheld = &self.options.withheld;
        let identities: Vec<_> = withheld.iter().filter_map(|w| self.identity(w)).collect();
        folders.any(|folder| {
            withheld.iter().any(|other| other == folder)
                || !identities.is_empty()
                    && self
                        .identity(folder)
                        .is_some_and(|id| identities.contains(&id))
        })
    }

    /// Device and inode; links are followed.
    fn identity(&self, path: &Path) -> Option<(u64, u64)> {
        let stat = rfs::statat(self.directory(), or_dot(path), AtFlags::empty()).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }
}

impl Folder {
    pub(super) fn stat(&self) -> Option<rfs::Stat> {
        rfs::fstat(&self.0).ok()
    }

    /// Of an entry itself, should it be a symbolic link.
    pub(super) fn stat_of(&self, name: &OsStr) -> Option<rfs::Stat> {
        rfs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }
}

impl Directory {
    /// A descriptor whose entries can be read; it fails where the directory is
    /// not readable.
    pub(super) fn open(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rfs::openat(&self.handle, ".", flags, Mode::empty())
    }

    /// What the directory itself is now.
    pub(super) fn stat_self(&self) -> rustix::io::Result<rfs::Stat> {
        rfs::fstat(&self.handle)
    }

    /// The number of its kind of file system, as statfs(2) has it.
    pub(super) fn file_system(&self) -> rustix::io::Result<i64> {
        Ok(rfs::fstatfs(&self.handle)?.f_type)
    }

    /// What an entry is now; a link is not followed.
    pub(super) fn stat(&self, name: &OsStr) -> rustix::io::Result<rfs::Stat> {
        rfs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// The empty path is the root itself.
fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

/// What openat2 does in one call, name by name: every step is opened without
/// following a link, from the directory of the step before.
fn walk(start: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut at = if path.is_absolute() {
        rfs::openat(CWD, "/", step, Mode::empty())?
    } else {
        rfs::openat(start, ".", step, Mode::empty())?
    };
    let mut names = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .peekable();
    if names.peek().is_none() {
        return rfs::openat(&at, ".", flags, Mode::empty());
    }
    while let Some(name) = names.next() {
        let how = match names.peek() {
            Some(_) => step,
            None => flags | OFlags::NOFOLLOW,
        };
        at = rfs::openat(&at, name, how, Mode::empty())?;
        // With O_PATH a link is opened itself instead of failing.
        if rfs::FileType::from_raw_mode(rfs::fstat(&at)?.st_mode).is_symlink() {
            return Err(Errno::LOOP);
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::UrlPath;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    const NAMES: [&str; 16] = [
        "file", "folder", ".hidden", "up", "top", "out", "out-file", "loop", "back", "self", "..",
        ".", "", "%2e%2e", "..%2f", "%5c..",
    ];

    /// A tree in which every file of the root says `inside`, with links of
    /// every kind, beside files that say `outside`.
    fn tree() -> TempDir {
        let tree = tempfile::tempdir().unwrap();
        let outside = tree.path();
        let root = outside.join("root");
        let folder = root.join("folder");
        fs::create_dir_all(&folder).unwrap();
        for place in [&root, &folder] {
            fs::write(place.join("file"), "inside").unwrap();
            fs::write(place.join(".hidden"), "inside").unwrap();
            for (link, end) in [("up", ".."), ("top", "/"), ("loop", "loop"), ("self", ".")] {
                symlink(end, place.join(link)).unwrap();
            }
            symlink(outside, place.join("out")).unwrap();
            symlink(outside.join("file"), place.join("out-file")).unwrap();
            symlink(&root, place.join("back")).unwrap();
        }
        fs::write(outside.join("file"), "outside").unwrap();
        tree
    }

    fn root(tree: &TempDir, openat2: bool) -> Root {
        let mut root = Root::new(&tree.path().join("root"), Options::default()).unwrap();
        root.openat2 = AtomicBool::new(openat2);
        root
    }

    fn content(found: Result<Node, Refusal>) -> Result<String, String> {
        match found {
            Ok(Node::File(mut found)) => {
                let mut text = String::new();
                found.file.read_to_string(&mut text).unwrap();
                Ok(text)
            }
            Ok(Node::Directory(_)) => Ok("directory".to_owned()),
            Err(refusal) => Err(format!("{refusal:?}")),
        }
    }

    #[test]
    fn a_link_is_judged_by_where_it_ends() {
        let tree = tree();
        for openat2 in [true, false] {
            let root = root(&tree, openat2);
            let find = |path: &str| content(root.find(Path::new(path)));
            assert_eq!(find("folder/file").unwrap(), "inside");
            assert_eq!(find("folder/up/file").unwrap(), "inside");
            assert_eq!(find("out/root/file").unwrap(), "inside");
            assert_eq!(find("").unwrap(), "directory");
            assert_eq!(find("folder/back").unwrap(), "directory");
            for path in [
                "out-file",
                "up/file",
                "out/file",
                "top",
                "folder/up/up/file",
            ] {
                assert_eq!(find(path).unwrap_err(), "Outside", "{path}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_outside_is_ever_opened_with_or_without_openat2(
            names in proptest::collection::vec(proptest::sample::select(&NAMES[..]), 0..8),
        ) {
            let tree = tree();
            let url = format!("/{}", names.join("/"));
            if let Some(path) = UrlPath::parse(url.as_bytes()).ok().and_then(|p| p.relative()) {
                let [fast, slow] = [true, false].map(|on| content(root(&tree, on).find(&path)));
                prop_assert_ne!(fast.as_deref(), Ok("outside"));
                prop_assert_eq!(fast, slow);
            }
        }
    }
}
