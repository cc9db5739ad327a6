//! Which script a path names (RFC 3875 §3.2, §3.3).
//!
//! Owns the walk along the path, the split into `SCRIPT_NAME` and `PATH_INFO`,
//! and the reasons why a file there is not run. Opens nothing: a script is
//! looked at, never read.
//!
//! Symbolic links are followed, also out of the root: whoever owns the script
//! directory put the link there, as people do with git-http-backend. Nothing
//! that lies in a CGI directory is left to the files, so no source is ever
//! shown (C50).

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use http::StatusCode;
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

use crate::error::{Diagnosis, Fault};
use crate::target::{UrlPath, without_backup_marks};

/// Where scripts are looked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// CGI directories as URL prefixes below the root, decoded: `cgi-bin`, `a/cgi`.
    /// The empty prefix is the root itself.
    pub dirs: Vec<String>,
    /// Endings without the dot that make a file a script anywhere (C55).
    /// Upper and lower case count the same, as they do at Apache.
    pub extensions: Vec<String>,
    /// Whoever reads the file runs it: it need not be executable, and who may
    /// write to it is not looked at.
    pub any_file: bool,
}

/// The script areas of one root.
#[derive(Clone, Debug)]
pub struct Scripts {
    root: PathBuf,
    /// The longest first, so that the innermost CGI directory is the one named.
    dirs: Vec<Vec<Vec<u8>>>,
    extensions: Vec<Vec<u8>>,
    any_file: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Script(Script),
    /// A directory asked for without its slash (C51): the path for a Location,
    /// encoded; the query is the caller's.
    Redirect(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Absolute; links are not resolved (C21).
    pub file: PathBuf,
    /// `SCRIPT_NAME`, decoded (C11).
    pub name: Vec<u8>,
    /// Absent rather than empty (C14).
    pub path_info: Option<Vec<u8>>,
    /// For logs and diagnoses: `cgi-bin/sub/x.sh`.
    pub subject: String,
    /// The CGI directory as the URL names it, `/cgi-bin`; empty for a script
    /// found by its ending.
    pub prefix: Vec<u8>,
}

impl Script {
    /// The same, where the document root lies elsewhere (C172).
    #[must_use]
    pub fn moved(&self, root: &Path, to: &Path) -> Self {
        let file = match self.file.strip_prefix(root) {
            Ok(below) => to.join(below),
            Err(_) => self.file.clone(),
        };
        Self {
            file,
            ..self.clone()
        }
    }
}

impl Scripts {
    /// `root` is absolute.
    pub fn new(root: &Path, options: Options) -> Self {
        let segments = |dir: String| -> Vec<Vec<u8>> {
            let parts = dir.split('/').filter(|part| !part.is_empty());
            parts.map(|part| part.as_bytes().to_vec()).collect()
        };
        let mut dirs: Vec<_> = options.dirs.into_iter().map(segments).collect();
        dirs.sort_by_key(|dir| std::cmp::Reverse(dir.len()));
        let extensions = options.extensions.into_iter();
        Self {
            root: root.to_owned(),
            dirs,
            extensions: extensions.map(String::into_bytes).collect(),
            any_file: options.any_file,
        }
    }

    /// `None`: the path names no script area; the files answer.
    pub fn find(&self, path: &UrlPath) -> Option<Result<Found, Fault>> {
        match self.dirs.iter().find(|dir| self.holds(dir, path)) {
            Some(dir) => Some(self.find_below(dir.len(), path)),
            None => self.find_by_ending(path),
        }
    }

    /// Whether the path lies in this CGI directory. Looks at the disk only if
    /// the names match, or could on a file system that ignores case.
    fn holds(&self, dir: &[Vec<u8>], path: &UrlPath) -> bool {
        let Some(start) = path.segments.get(..dir.len()) else {
            return false;
        };
        if start == dir {
            // A file of that name is a file. A directory that isn't there holds
            // no script: 404, and no moment in which it appears shows source.
            return fs::metadata(self.file(dir)).map_or(true, |found| found.is_dir());
        }
        let alike = start.iter().zip(dir).all(|(a, b)| could_be_one_name(a, b));
        alike && is_one_file(&self.file(start), &self.file(dir))
    }

    /// The walk below a CGI directory: the first that is no directory is the
    /// script, what follows is its extra path (C49).
    fn find_below(&self, top: usize, path: &UrlPath) -> Result<Found, Fault> {
        let (segments, prefix) = (&path.segments, joined(&path.segments[..top]));
        self.look(&segments[..top])?;
        for end in top + 1..=segments.len() {
            let name = &segments[end - 1];
            if name.contains(&b'/') || is_hidden(name) || is_backup(name) {
                return Err(Fault::not_found());
            }
            let found = self.look(&segments[..end])?;
            if !found.is_dir() {
                let (segments, rest) = segments.split_at(end);
                self.check(top, segments, &found)?;
                let path_info = path_info(rest, path.trailing_slash)?;
                return Ok(self.script(segments, path_info, prefix));
            }
        }
        if !path.trailing_slash && !segments.is_empty() {
            return Ok(Found::Redirect(with_slash(path)));
        }
        let index = self.find_index(segments)?;
        self.check(top, &index, &self.look(&index)?)?;
        Ok(self.script(&index, None, prefix))
    }

    /// A script by its ending (C55). `None` as soon as it is for the files to
    /// say what there is or isn't.
    fn find_by_ending(&self, path: &UrlPath) -> Option<Result<Found, Fault>> {
        let segments = &path.segments;
        let Some(last) = segments.iter().rposition(|name| self.has_ending(name)) else {
            return self.index_by_ending(path);
        };
        for end in 1..=last + 1 {
            let name = &segments[end - 1];
            if name.contains(&b'/') {
                return None;
            }
            match fs::metadata(self.file(&segments[..end])) {
                Ok(found) if found.is_dir() => {}
                _ if !self.has_ending(name) => return None,
                Ok(found) => return Some(self.take_by_ending(end, path, &found)),
                // Not left to the files: it may be there in the next moment.
                Err(error) => return Some(Err(self.unreachable(&segments[..end], &error))),
            }
        }
        self.index_by_ending(path)
    }

    /// The directory's `index.EXT`, in the order the endings were given, where
    /// no index.html comes first.
    fn index_by_ending(&self, path: &UrlPath) -> Option<Result<Found, Fault>> {
        let is_directory = path.trailing_slash || path.segments.is_empty();
        if self.extensions.is_empty()
            || !is_directory
            || path
                .segments
                .iter()
                .any(|name| is_hidden(name) || name.contains(&b'/'))
        {
            return None;
        }
        let named = |name: &[u8]| [&path.segments[..], &[name.to_vec()]].concat();
        let is_file =
            |index: &[Vec<u8>]| fs::metadata(self.file(index)).is_ok_and(|found| found.is_file());
        if [&b"index.html"[..], b"index.htm"]
            .into_iter()
            .any(|name| is_file(&named(name)))
        {
            return None;
        }
        let candidates = self
            .extensions
            .iter()
            .map(|extension| named(&[b"index.", &extension[..]].concat()));
        let index = candidates
            .into_iter()
            .find(|index| is_file(index) && self.check_executable(index).is_ok())?;
        Some(
            self.look(&index)
                .and_then(|found| self.check(0, &index, &found))
                .map(|()| self.script(&index, None, Vec::new())),
        )
    }

    fn take_by_ending(&self, end: usize, path: &UrlPath, found: &Metadata) -> Result<Found, Fault> {
        let (segments, rest) = path.segments.split_at(end);
        if segments.iter().any(|name| is_hidden(name)) || is_backup(&segments[end - 1]) {
            return Err(Fault::not_found());
        }
        self.check(0, segments, found)?;
        let path_info = path_info(rest, path.trailing_slash)?;
        Ok(self.script(segments, path_info, Vec::new()))
    }

    /// Also of a backup: the source of `x.cgi` stands in `x.cgi~` as well.
    fn has_ending(&self, name: &[u8]) -> bool {
        let name = without_backup_marks(name);
        self.extensions.iter().any(|extension| {
            let Some(dot) = name.len().checked_sub(extension.len() + 1) else {
                return false;
            };
            name[dot] == b'.' && name[dot + 1..].eq_ignore_ascii_case(extension)
        })
    }

    /// The script that answers for a directory: an executable `index.cgi`, else
    /// the first executable `index.NAME` in the order of their names (C51).
    fn find_index(&self, dir: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Fault> {
        let entries =
            fs::read_dir(self.file(dir)).map_err(|error| self.unreachable(dir, &error))?;
        let mut names: Vec<Vec<u8>> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().as_bytes().to_vec()))
            .filter(|name| name.starts_with(b"index.") && name.len() > 6 && !is_backup(name))
            .collect();
        names.sort();
        names.sort_by_key(|name| name != b"index.cgi");

        let mut refused = None;
        for name in names {
            let index = [dir, &[name]].concat();
            if !self.look(&index).is_ok_and(|found| found.is_file()) {
                continue;
            }
            match self.check_executable(&index) {
                Ok(()) => return Ok(index),
                Err(fault) => refused = refused.or(Some(fault)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            self.refuse(
                dir,
                "no-index",
                "the directory has no executable index script",
            )
        }))
    }

    fn script(&self, segments: &[Vec<u8>], path_info: Option<Vec<u8>>, prefix: Vec<u8>) -> Found {
        Found::Script(Script {
            file: self.file(segments),
            name: joined(segments),
            path_info,
            subject: subject(segments),
            prefix,
        })
    }

    /// Of segments without a slash in them; others are refused before.
    fn file(&self, segments: &[Vec<u8>]) -> PathBuf {
        let mut file = self.root.clone();
        file.extend(segments.iter().map(|segment| OsStr::from_bytes(segment)));
        file
    }

    fn look(&self, segments: &[Vec<u8>]) -> Result<Metadata, Fault> {
        fs::metadata(self.file(segments)).map_err(|error| self.unreachable(segments, &error))
    }
}

/// Why a file is not run.
impl Scripts {
    /// `top` is how many segments lead to the top of the script's area.
    fn check(&self, top: usize, script: &[Vec<u8>], found: &Metadata) -> Result<(), Fault> {
        if !found.is_file() {
            let fault = "it is neither a regular file nor a directory";
            return Err(self.refuse(script, "not-regular", fault));
        }
        if self.any_file {
            return Ok(());
        }
        // Who can write to a directory on the way can put another script there.
        for end in top..script.len() {
            let directory = &script[..end];
            self.check_writable_by_others(directory, &self.look(directory)?)?;
        }
        self.check_writable_by_others(script, found)?;
        self.check_executable(script)
    }

    /// C144, after the rules of Apache's suexec.
    fn check_writable_by_others(
        &self,
        segments: &[Vec<u8>],
        found: &Metadata,
    ) -> Result<(), Fault> {
        let own = found.uid() == rustix::process::geteuid().as_raw();
        if own || found.mode() & 0o002 == 0 {
            return Ok(());
        }
        let fault = "everyone may write to it and it belongs to another user";
        let fault = self.refuse(segments, "world-writable", fault);
        Err(with_hint(fault, "chmod o-w {file}"))
    }

    /// For the effective user, by the kernel's own judgement (C52).
    fn check_executable(&self, segments: &[Vec<u8>]) -> Result<(), Fault> {
        if self.any_file {
            return Ok(());
        }
        let file = self.file(segments);
        match access_to_execute(&file) {
            Ok(()) => Ok(()),
            // The mount forbids it, not the mode. Starting it fails, and that
            // failure has a diagnosis of its own (C140).
            Err(Errno::ACCESS) if is_mounted_noexec(&file) && has_execute_bit(&file) => Ok(()),
            Err(Errno::ACCESS) => {
                let fault = "the file is not executable";
                let fault = self.refuse(segments, "not-executable", fault);
                Err(with_hint(fault, "chmod +x {file}"))
            }
            Err(errno) => Err(Fault::from_file_error(&errno.into())),
        }
    }

    /// A file that can't be looked at. If a directory on the way may not be
    /// searched, it is named.
    fn unreachable(&self, segments: &[Vec<u8>], error: &io::Error) -> Fault {
        if Errno::from_io_error(error) == Some(Errno::LOOP) {
            let fault = self.refuse(segments, "loop", "its links lead in a circle");
            return Fault {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                ..fault
            };
        }
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Fault::from_file_error(error);
        }
        let mut directories = (0..segments.len()).map(|end| &segments[..end]);
        let is_blocked =
            |dir: &&[Vec<u8>]| access_to_execute(&self.file(dir)) == Err(Errno::ACCESS);
        let blocked = directories.find(is_blocked);
        let Some(directory) = blocked else {
            let fault = "the server's user may not look at it";
            return self.refuse(segments, "not-reachable", fault);
        };
        let fault = "the server's user may not search the directory";
        let fault = self.refuse(directory, "not-searchable", fault);
        with_hint(fault, "chmod +x {file}")
    }

    fn refuse(&self, segments: &[Vec<u8>], reason: &'static str, fault: &str) -> Fault {
        Fault::forbidden().because(Diagnosis {
            reason,
            subject: subject(segments),
            fault: fault.to_owned(),
            file: Some(self.file(segments)),
            ..Diagnosis::default()
        })
    }
}

fn with_hint(mut fault: Fault, hint: &str) -> Fault {
    if let Some(diagnosis) = &mut fault.diagnosis {
        diagnosis.hint = Some(hint.to_owned());
    }
    fault
}

fn access_to_execute(file: &Path) -> Result<(), Errno> {
    rustix::fs::accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS)
}

pub(super) fn has_execute_bit(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.mode() & 0o111 != 0)
}

#[cfg(target_os = "linux")]
pub(super) fn is_mounted_noexec(file: &Path) -> bool {
    use rustix::fs::StatVfsMountFlags;
    rustix::fs::statvfs(file).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// Elsewhere the kernel judges by the mode alone.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_mounted_noexec(_: &Path) -> bool {
    false
}

fn is_one_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The extra path: an encoded slash is a slash here, and what that makes of it
/// is normalised once more (C45, C48).
pub(super) fn path_info(rest: &[Vec<u8>], trailing_slash: bool) -> Result<Option<Vec<u8>>, Fault> {
    if rest.is_empty() {
        return Ok(trailing_slash.then(|| b"/".to_vec()));
    }
    let is_slash = |byte: &u8| *byte == b'/';
    let mut parts: Vec<Vec<u8>> = rest
        .iter()
        .flat_map(|segment| segment.split(is_slash).map(<[u8]>::to_vec))
        .collect();
    if trailing_slash {
        parts.push(Vec::new());
    }
    let path = UrlPath::normalise(parts).map_err(|_| Fault::bad_request())?;
    Ok(Some(path.decoded()))
}

fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b".")
}

/// C53.
fn is_backup(name: &[u8]) -> bool {
    without_backup_marks(name) != name
}

/// Whether some file system takes both for one name: case is ignored by many,
/// and beyond ASCII each has rules of its own (C46).
fn could_be_one_name(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b) || (!a.is_ascii() && !a.contains(&b'/'))
}

pub(super) fn with_slash(path: &UrlPath) -> String {
    let directory = UrlPath {
        segments: path.segments.clone(),
        trailing_slash: true,
    };
    directory.encoded()
}

/// `/a/b`; empty for no segments.
pub(super) fn joined(segments: &[Vec<u8>]) -> Vec<u8> {
    let mut path = Vec::new();
    for segment in segments {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    path
}

/// As people name it: relative to the root, fit to be printed.
pub(super) fn subject(segments: &[Vec<u8>]) -> String {
    if segments.is_empty() {
        return ".".to_owned();
    }
    let mut text = String::new();
    for c in String::from_utf8_lossy(&segments.join(&b'/')).chars() {
        match c {
            '"' | '\'' => text.push(c),
            c => text.extend(c.escape_debug()),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    /// A root with `cgi-bin` in it; scripts are named with their mode.
    struct Site {
        dir: TempDir,
        scripts: Scripts,
    }

    impl Site {
        fn new(dirs: &[&str], extensions: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
            let options = Options {
                dirs: own(dirs),
                extensions: own(extensions),
                any_file: false,
            };
            let scripts = Scripts::new(dir.path(), options);
            Self { dir, scripts }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn file(&self, name: &str, mode: u32) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        /// What the path comes to, in a few words.
        fn ask(&self, path: &str) -> String {
            outcome(self.scripts.find(&UrlPath::parse(path.as_bytes()).unwrap()))
        }

        fn diagnosis(&self, path: &str) -> Diagnosis {
            let found = self.scripts.find(&UrlPath::parse(path.as_bytes()).unwrap());
            let fault = found.unwrap().unwrap_err();
            *fault.diagnosis.expect("a fault that says why")
        }

        fn script(&self, path: &str) -> Script {
            match self.scripts.find(&UrlPath::parse(path.as_bytes()).unwrap()) {
                Some(Ok(Found::Script(script))) => script,
                other => panic!("{path}: {}", outcome(other)),
            }
        }
    }

    fn outcome(found: Option<Result<Found, Fault>>) -> String {
        match found {
            None => "files".to_owned(),
            Some(Ok(Found::Redirect(location))) => format!("to {location}"),
            Some(Err(fault)) => fault.status.as_str().to_owned(),
            Some(Ok(Found::Script(script))) => {
                let name = String::from_utf8_lossy(&script.name).into_owned();
                match script.path_info {
                    None => name,
                    Some(info) => format!("{name} + {}", String::from_utf8_lossy(&info)),
                }
            }
        }
    }

    fn make_fifo(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    }

    /// Runs `test` on a thread of its own, as a user without privileges. Only
    /// Linux has users by thread.
    #[cfg(target_os = "linux")]
    fn as_nobody(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if rustix::process::geteuid().is_root() {
                    let nobody = rustix::process::Uid::from_raw(65534);
                    rustix::thread::set_thread_uid(nobody).unwrap();
                }
                test();
            });
            thread.join().unwrap();
        });
    }

    fn open_to_all(path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_walk_finds_the_script_and_leaves_the_extra_path_c49() {
        let site = Site::new(&["cgi-bin", "a/cgi"], &[]);
        for name in [
            "x",
            "x;y",
            "x\\y",
            "a+b",
            "sp ace",
            "sub/deep/x",
            "sub/index.cgi",
            "é",
        ] {
            site.file(&format!("cgi-bin/{name}"), 0o755);
        }
        site.file("a/cgi/x", 0o755);
        site.file("page.html", 0o644);
        for (path, expected) in [
            // C11, C14, C54
            ("/cgi-bin/x", "/cgi-bin/x"),
            ("/cgi-bin/x/", "/cgi-bin/x + /"),
            ("/cgi-bin/x/a/b", "/cgi-bin/x + /a/b"),
            ("/cgi-bin/x/a/b/", "/cgi-bin/x + /a/b/"),
            // C43, C48: one normalised path for all spellings
            ("//cgi-bin//x", "/cgi-bin/x"),
            ("/a/../cgi-bin/x", "/cgi-bin/x"),
            ("/%63gi-bin/%78", "/cgi-bin/x"),
            ("/cgi-bin/./x//a/../b", "/cgi-bin/x + /b"),
            ("/cgi-bin/x/..", "403"),
            // C42
            ("/cgi-bin/x/%252e%252e", "/cgi-bin/x + /%2e%2e"),
            // C45: no separator where the script is chosen, one after it
            ("/cgi-bin%2fx", "files"),
            ("/cgi-bin/sub%2fdeep/x", "404"),
            ("/cgi-bin/x%2fa", "404"),
            ("/cgi-bin/x/a%2fb", "/cgi-bin/x + /a/b"),
            ("/cgi-bin/x/a%2f", "/cgi-bin/x + /a/"),
            ("/cgi-bin/x/%2f%2f", "/cgi-bin/x + /"),
            ("/cgi-bin/x/a%2f../b", "/cgi-bin/x + /b"),
            ("/cgi-bin/x/a%2f..%2fb", "/cgi-bin/x + /b"),
            ("/cgi-bin/x/..%2f..%2fetc", "400"),
            ("/cgi-bin/x/a%2f..%2f..%2f..%2fetc/", "400"),
            // C46
            ("/cgi-bin/x;y", "/cgi-bin/x;y"),
            ("/cgi-bin/x;z", "404"),
            ("/cgi-bin/x\\y", "/cgi-bin/x\\y"),
            ("/cgi-bin/a+b/c+d", "/cgi-bin/a+b + /c+d"),
            ("/cgi-bin/sp%20ace", "/cgi-bin/sp ace"),
            ("/cgi-bin/%C3%A9", "/cgi-bin/é"),
            // C49, C51
            ("/cgi-bin/sub/deep/x/y", "/cgi-bin/sub/deep/x + /y"),
            ("/cgi-bin/sub/", "/cgi-bin/sub/index.cgi"),
            ("/cgi-bin/sub/deep/", "403"),
            ("/cgi-bin/sub/deep", "to /cgi-bin/sub/deep/"),
            ("/cgi-bin", "to /cgi-bin/"),
            ("/cgi-bin/", "403"),
            ("/cgi-bin/none", "404"),
            ("/cgi-bin/none/x", "404"),
            ("/a/cgi/x/y", "/a/cgi/x + /y"),
            // Not below a CGI directory
            ("/", "files"),
            ("/a", "files"),
            ("/a/", "files"),
            ("/page.html", "files"),
            ("/cgi-bin.txt", "files"),
            ("/cgi-binx/x", "files"),
            ("/x.cgi", "files"),
        ] {
            assert_eq!(site.ask(path), expected, "{path}");
        }
    }

    #[test]
    fn bytes_that_are_no_utf8_reach_the_script_unchanged_c47() {
        let site = Site::new(&["cgi-bin"], &[]);
        site.file("cgi-bin/x", 0o755);
        let latin = site.path("cgi-bin").join(OsStr::from_bytes(b"caf\xe9"));
        fs::copy(site.path("cgi-bin/x"), &latin).unwrap();
        let script = site.script("/cgi-bin/caf%e9/%ff");
        assert_eq!(script.name, b"/cgi-bin/caf\xe9");
        assert_eq!(script.path_info.as_deref(), Some(&b"/\xff"[..]));
        assert_eq!(script.file, latin);
    }

    #[test]
    fn a_script_knows_its_file_and_its_directory_c21_c25() {
        let site = Site::new(&["cgi-bin", "a", "a/cgi"], &["php"]);
        site.file("cgi-bin/sub/x.sh", 0o755);
        site.file("a/cgi/x", 0o755);
        site.file("www/x.php", 0o755);
        let script = site.script("/cgi-bin/sub/x.sh/extra");
        assert_eq!(script.file, site.path("cgi-bin/sub/x.sh"));
        assert_eq!(script.subject, "cgi-bin/sub/x.sh");
        assert_eq!(script.prefix, b"/cgi-bin");
        assert_eq!(site.script("/a/cgi/x").prefix, b"/a/cgi");
        assert_eq!(site.script("/www/x.php/y").prefix, b"");
    }

    #[test]
    fn hidden_and_backup_names_are_not_found_c53() {
        let site = Site::new(&["cgi-bin"], &[]);
        let names = [
            ".x", "x~", "#x#", "x.bak", "x.orig", "x.swp", ".x.swp", "x.tmp", ".git/x",
        ];
        for name in names {
            site.file(&format!("cgi-bin/{name}"), 0o755);
        }
        for name in names {
            let path = format!("/cgi-bin/{}", name.replace('#', "%23"));
            assert_eq!(site.ask(&path), "404", "{name}");
        }
        site.file("cgi-bin/x", 0o755);
        assert_eq!(site.ask("/cgi-bin/x/.git/y~"), "/cgi-bin/x + /.git/y~");
    }

    #[test]
    fn the_index_script_of_a_directory_is_executable_c51() {
        let site = Site::new(&["cgi-bin"], &[]);
        site.file("cgi-bin/index.html", 0o644);
        site.file("cgi-bin/index.bak", 0o755);
        site.file("cgi-bin/index.", 0o755);
        fs::create_dir(site.path("cgi-bin/index.d")).unwrap();
        assert_eq!(site.ask("/cgi-bin/"), "403");
        assert_eq!(site.diagnosis("/cgi-bin/").reason, "not-executable");
        site.file("cgi-bin/index.py", 0o755);
        assert_eq!(site.ask("/cgi-bin/"), "/cgi-bin/index.py");
        site.file("cgi-bin/index.pl", 0o755);
        assert_eq!(site.ask("/cgi-bin/"), "/cgi-bin/index.pl");
        site.file("cgi-bin/index.cgi", 0o755);
        assert_eq!(site.ask("/cgi-bin/"), "/cgi-bin/index.cgi");
        assert_eq!(site.script("/cgi-bin/").path_info, None);

        let empty = Site::new(&["cgi-bin"], &[]);
        fs::create_dir(empty.path("cgi-bin")).unwrap();
        assert_eq!(empty.diagnosis("/cgi-bin/").reason, "no-index");
    }

    #[test]
    fn a_file_that_is_not_executable_is_403_with_the_command_that_mends_it_c52() {
        let site = Site::new(&["cgi-bin"], &[]);
        site.file("cgi-bin/x.sh", 0o644);
        assert_eq!(site.ask("/cgi-bin/x.sh/extra"), "403");
        let diagnosis = site.diagnosis("/cgi-bin/x.sh");
        assert_eq!(diagnosis.reason, "not-executable");
        assert_eq!(diagnosis.subject, "cgi-bin/x.sh");
        assert_eq!(diagnosis.hint.as_deref(), Some("chmod +x {file}"));
        assert_eq!(diagnosis.file, Some(site.path("cgi-bin/x.sh")));
    }

    #[test]
    fn what_is_no_regular_file_is_403_and_never_opened_c52() {
        let site = Site::new(&["cgi-bin"], &[]);
        fs::create_dir(site.path("cgi-bin")).unwrap();
        make_fifo(&site.path("cgi-bin/fifo"));
        let _socket = std::os::unix::net::UnixListener::bind(site.path("cgi-bin/socket")).unwrap();
        symlink("/dev/null", site.path("cgi-bin/device")).unwrap();
        for name in ["fifo", "socket", "device"] {
            let diagnosis = site.diagnosis(&format!("/cgi-bin/{name}"));
            assert_eq!(diagnosis.reason, "not-regular", "{name}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_directory_that_may_not_be_searched_is_named_c140() {
        let site = Site::new(&["cgi-bin"], &[]);
        open_to_all(site.dir.path());
        site.file("cgi-bin/sub/deep/x", 0o755);
        fs::create_dir(site.path("elsewhere")).unwrap();
        symlink("../elsewhere/x", site.path("cgi-bin/link")).unwrap();
        for name in ["cgi-bin/sub", "elsewhere"] {
            fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        as_nobody(|| {
            let diagnosis = site.diagnosis("/cgi-bin/sub/deep/x");
            assert_eq!(diagnosis.reason, "not-searchable");
            assert_eq!(diagnosis.subject, "cgi-bin/sub");
            assert_eq!(diagnosis.hint.as_deref(), Some("chmod +x {file}"));
            assert_eq!(site.diagnosis("/cgi-bin/link").reason, "not-reachable");
        });
        open_to_all(&site.path("cgi-bin/sub"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn executable_for_others_is_not_executable_for_the_effective_user_c52() {
        let site = Site::new(&["cgi-bin"], &[]);
        open_to_all(site.dir.path());
        site.file("cgi-bin/x", 0o744);
        if rustix::process::geteuid().is_root() {
            as_nobody(|| assert_eq!(site.diagnosis("/cgi-bin/x").reason, "not-executable"));
        }
        assert_eq!(site.ask("/cgi-bin/x"), "/cgi-bin/x");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_everyone_may_change_runs_only_for_its_owner_c144() {
        let site = Site::new(&["cgi-bin"], &["cgi"]);
        open_to_all(site.dir.path());
        site.file("cgi-bin/own", 0o777);
        site.file("cgi-bin/open/x", 0o755);
        site.file("cgi-bin/open/deep/x", 0o755);
        site.file("www/x.cgi", 0o755);
        for name in ["cgi-bin/open", "www"] {
            fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        assert_eq!(site.ask("/cgi-bin/own"), "/cgi-bin/own");
        assert_eq!(site.ask("/cgi-bin/open/x"), "/cgi-bin/open/x");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        as_nobody(|| {
            for (path, subject) in [
                ("/cgi-bin/own", "cgi-bin/own"),
                ("/cgi-bin/open/x", "cgi-bin/open"),
                ("/cgi-bin/open/deep/x", "cgi-bin/open"),
                ("/www/x.cgi", "www"),
            ] {
                let diagnosis = site.diagnosis(path);
                assert_eq!(diagnosis.reason, "world-writable", "{path}");
                assert_eq!(diagnosis.subject, subject, "{path}");
                assert_eq!(diagnosis.hint.as_deref(), Some("chmod o-w {file}"));
            }
        });
    }

    #[test]
    fn links_in_the_script_directory_are_followed() {
        let site = Site::new(&["cgi-bin"], &[]);
        let outside = tempfile::tempdir().unwrap();
        let program = outside.path().join("backend");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        open_to_all(&program);
        fs::create_dir(site.path("cgi-bin")).unwrap();
        symlink(&program, site.path("cgi-bin/git")).unwrap();
        symlink("nowhere", site.path("cgi-bin/dangling")).unwrap();
        let script = site.script("/cgi-bin/git/repo/info");
        assert_eq!(script.file, site.path("cgi-bin/git"));
        assert_eq!(script.path_info.as_deref(), Some(&b"/repo/info"[..]));
        assert_eq!(site.ask("/cgi-bin/dangling"), "404");
    }

    #[test]
    fn a_name_that_opens_the_script_directory_is_the_script_directory_c46() {
        let site = Site::new(&["cgi-bin"], &[]);
        site.file("cgi-bin/x", 0o755);
        // What a file system that ignores case does, by a link.
        symlink("cgi-bin", site.path("CGI-Bin")).unwrap();
        symlink("cgi-bin", site.path("cgi\u{200c}-bin")).unwrap();
        assert_eq!(site.ask("/CGI-Bin/x/y"), "/CGI-Bin/x + /y");
        assert_eq!(site.ask("/cgi%e2%80%8c-bin/none"), "404");
        assert_eq!(site.ask("/CGI-BIN/x"), "files");
        site.file("Cgi-Bin/x", 0o755);
        assert_eq!(site.ask("/Cgi-Bin/x"), "files");
    }

    #[test]
    fn a_file_of_the_directorys_name_is_a_file_and_a_missing_directory_is_not_found() {
        let site = Site::new(&["cgi-bin", "htbin"], &[]);
        site.file("htbin", 0o644);
        assert_eq!(site.ask("/htbin"), "files");
        assert_eq!(site.ask("/cgi-bin"), "404");
        assert_eq!(site.ask("/cgi-bin/x"), "404");
    }

    #[test]
    fn the_empty_prefix_makes_the_root_the_script_directory() {
        let site = Site::new(&["/"], &[]);
        site.file("x", 0o755);
        site.file("index.sh", 0o755);
        assert_eq!(site.ask("/x/y"), "/x + /y");
        assert_eq!(site.ask("/"), "/index.sh");
        assert_eq!(site.ask("/none"), "404");
    }

    #[test]
    fn scripts_by_their_ending_run_anywhere_when_configured_c55() {
        let site = Site::new(&["cgi-bin"], &["cgi", "php"]);
        for name in [
            "a/x.cgi",
            "a/UP.CGI",
            "x.php",
            "a/dir.cgi/y.cgi",
            ".git/x.cgi",
        ] {
            site.file(name, 0o755);
        }
        for name in ["a/x.cgi~", "a/.x.cgi.swp", "a/x.cgi.bak", "a/notes~"] {
            site.file(name, 0o644);
        }
        site.file("a/plain.cgi", 0o644);
        site.file("upload/x.txt", 0o644);
        for (path, expected) in [
            ("/a/x.cgi", "/a/x.cgi"),
            ("/a/x.cgi/b/c.php", "/a/x.cgi + /b/c.php"),
            ("/a/x.cgi/", "/a/x.cgi + /"),
            ("/a/x.cgi/..%2f..%2fetc", "400"),
            ("/a/UP.CGI", "/a/UP.CGI"),
            ("/x.php/%2e", "/x.php + /"),
            ("/a/dir.cgi/y.cgi", "/a/dir.cgi/y.cgi"),
            ("/a/dir.cgi", "files"),
            ("/a/dir.cgi/", "files"),
            ("/a/plain.cgi", "403"),
            ("/a/none.cgi", "404"),
            ("/none/x.cgi", "files"),
            // C171: the walk stops at a file that is no script
            ("/upload/x.txt/y.php", "files"),
            ("/a%2fx.cgi", "files"),
            // C53, and the source a backup holds
            ("/.git/x.cgi", "404"),
            ("/a/x.cgi~", "404"),
            ("/a/.x.cgi.swp", "404"),
            ("/a/x.cgi.bak", "404"),
            ("/a/notes~", "files"),
            ("/", "files"),
            ("/cgi", "files"),
        ] {
            assert_eq!(site.ask(path), expected, "{path}");
        }
    }

    #[test]
    fn names_are_printed_so_that_they_do_no_harm() {
        for (segments, printed) in [
            (vec!["cgi-bin", "x.sh"], "cgi-bin/x.sh"),
            (vec!["a\u{1b}[2J"], "a\\u{1b}[2J"),
            (vec![], "."),
        ] {
            let segments: Vec<_> = segments
                .into_iter()
                .map(|s| s.as_bytes().to_vec())
                .collect();
            assert_eq!(subject(&segments), printed);
        }
    }

    #[test]
    fn an_index_with_a_configured_ending_answers_for_its_directory() {
        let site = Site::new(&["cgi-bin"], &["cgi", "pl"]);
        site.file("a/index.pl", 0o755);
        site.file("b/index.cgi", 0o755);
        site.file("b/index.html", 0o644);
        site.file("c/index.cgi", 0o644);
        for (path, expected) in [
            ("/a/", "/a/index.pl"),
            ("/a", "files"),
            ("/b/", "files"),
            ("/c/", "files"),
            ("/none/", "files"),
        ] {
            assert_eq!(site.ask(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_below_the_script_directory_is_left_to_the_files_c50(
            rest in "(/|[a-z.~%]|%2[ef]|sub|x){0,12}"
        ) {
            let site = Site::new(&["cgi-bin"], &[]);
            site.file("cgi-bin/x", 0o755);
            site.file("cgi-bin/sub/x", 0o644);
            if let Ok(path) = UrlPath::parse(format!("/cgi-bin/{rest}").as_bytes())
                && path.segments.first().is_some_and(|first| first == b"cgi-bin")
            {
                let found = site.scripts.find(&path);
                if let Some(Ok(Found::Script(script))) = &found {
                    prop_assert_eq!(&script.file, &site.path("cgi-bin/x"));
                }
                prop_assert!(found.is_some());
            }
        }
    }
}
