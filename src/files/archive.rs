//! A folder as one download: tar.gz or zip, made while it is sent.
//!
//! What browsing would show is in it, and nothing else: the same [`Root`] opens
//! every file. Links are followed to what they name. What can't be read, what
//! is no file and a link that leads back to where it came from are left out.
//!
//! The work is cut into steps that run on a blocking thread and end after a
//! piece of output or a bound of input, whichever is first. So a slow client
//! holds no thread, memory does not grow with the folder, and when the client
//! goes no further step is begun.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use tokio::task::{JoinHandle, spawn_blocking};
use walkdir::WalkDir;
use zip::ZipWriter;
use zip::write::{FullFileOptions, StreamWriter};

use super::civil::Civil;
use super::resolve::{Directory, Node, RegularFile, Root};
use crate::message::{BodyError, Next, Source};

/// A step ends when it has made this much.
const PIECE_BYTES: usize = 64 << 10;
/// A step ends when it has read this much, however well it compresses.
const STEP_BYTES: usize = 4 << 20;
/// What an entry counts for in a step besides its content.
const ENTRY_BYTES: usize = 4 << 10;
/// What is read of a file at once.
const READ_BYTES: usize = 16 << 10;
/// Sending is the bottleneck; more effort makes archives little smaller.
const EFFORT: u32 = 1;
/// Files from this size on get the 64-bit form of zip. Less than 4 GiB, because
/// what does not compress becomes a little longer.
const ZIP64_FROM: u64 = 0xf000_0000;
/// What a tar header has room for (POSIX.1-1988 ustar; GNU tar).
const TAR_NAME_BYTES: usize = 100;
const TAR_BLOCK_BYTES: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    TarGz,
    Zip,
}

impl Format {
    pub(super) fn of(parameter: &[u8]) -> Option<Self> {
        match parameter {
            b"tar.gz" => Some(Self::TarGz),
            b"zip" => Some(Self::Zip),
            _ => None,
        }
    }

    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::TarGz => "tar.gz",
            Self::Zip => "zip",
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::TarGz => "application/gzip",
            Self::Zip => "application/zip",
        }
    }
}

/// The body of the download.
pub(super) enum Archive {
    Idle(Box<Packer>),
    /// One step ahead of what has been handed over.
    Running(JoinHandle<(Box<Packer>, Result<Progress, BodyError>)>),
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Complete,
}

impl Archive {
    /// Of `directory`; everything in it lies below a folder called `name`.
    pub(super) fn new(root: Arc<Root>, directory: &Directory, name: &[u8], format: Format) -> Self {
        Self::Idle(Box::new(Packer::new(root, directory, name, format)))
    }

    fn start(mut packer: Box<Packer>) -> Self {
        Self::Running(spawn_blocking(move || {
            let progress = packer.step();
            (packer, progress)
        }))
    }

    /// Waits for steps until one has made something. Until a step has ended
    /// `self` holds it, so a dropped future loses nothing.
    async fn piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            *self = match std::mem::replace(self, Self::Ended) {
                Self::Idle(packer) => Self::start(packer),
                state => state,
            };
            let Self::Running(step) = self else {
                return Ok(None);
            };
            let joined = step.await;
            *self = Self::Ended;
            let (packer, progress) = joined.map_err(io::Error::other)?;
            let piece = packer.output.take();
            if progress? == Progress::More {
                *self = Self::start(packer);
            }
            if !piece.is_empty() {
                return Ok(Some(piece.into()));
            }
        }
    }
}

impl Source for Archive {
    fn next(&mut self) -> Next<'_> {
        Box::pin(async move { self.piece().await.transpose() })
    }
}

/// Walks the folder and writes its entries.
pub(super) struct Packer {
    root: Arc<Root>,
    /// The folder as [`Directory::path`] has it, and where the walk started.
    directory: PathBuf,
    start: PathBuf,
    name: Vec<u8>,
    walk: walkdir::IntoIter,
    /// The file that is being written.
    current: Option<Content>,
    /// `None` when the archive is complete.
    writer: Option<Writer>,
    output: Output,
}

/// The rest of a file.
struct Content {
    file: File,
    offset: u64,
    /// The length that was announced.
    length: u64,
}

/// What is written before the content of an entry.
struct Entry {
    /// Separated by `/`; the bytes of the file system.
    path: Vec<u8>,
    kind: Kind,
    /// In seconds since 1970.
    modified: i64,
}

#[derive(Clone, Copy)]
enum Kind {
    Folder,
    File { length: u64, executable: bool },
}

impl Packer {
    fn new(root: Arc<Root>, directory: &Directory, name: &[u8], format: Format) -> Self {
        let output = Output::default();
        let start = root.absolute(&directory.path);
        Self {
            walk: WalkDir::new(&start)
                .follow_links(true)
                .sort_by_file_name()
                .into_iter(),
            root,
            directory: directory.path.clone(),
            start,
            name: name.to_owned(),
            current: None,
            writer: Some(Writer::new(format, output.clone())),
            output,
        }
    }

    fn step(&mut self) -> Result<Progress, BodyError> {
        let mut left = STEP_BYTES;
        while left > 0 && self.output.length() < PIECE_BYTES {
            let Some(writer) = &mut self.writer else {
                return Ok(Progress::Complete);
            };
            let done = if let Some(content) = &mut self.current {
                let read = content.copy_some(writer)?;
                if content.offset == content.length {
                    writer.end(content.length)?;
                    self.current = None;
                }
                read
            } else if let Some((entry, content)) = self.next_entry() {
                self.begin(&entry, content)?;
                ENTRY_BYTES
            } else if let Some(writer) = self.writer.take() {
                writer.finish()?;
                return Ok(Progress::Complete);
            } else {
                return Ok(Progress::Complete);
            };
            left = left.saturating_sub(done);
        }
        Ok(Progress::More)
    }

    fn begin(&mut self, entry: &Entry, content: Option<Content>) -> io::Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        if writer.begin(entry)? {
            self.current = content;
        }
        Ok(())
    }

    /// The next entry that browsing would show.
    fn next_entry(&mut self) -> Option<(Entry, Option<Content>)> {
        loop {
            // An error is a folder that can't be read, a broken link or a loop.
            let Ok(found) = self.walk.next()? else {
                continue;
            };
            let below = found.path().strip_prefix(&self.start).ok()?.to_owned();
            let shown = found.depth() == 0 || self.root.shows(found.file_name());
            let node = shown.then(|| self.root.open_node(&self.directory.join(&below)));
            let mut path = self.name.clone();
            if found.depth() > 0 {
                path.push(b'/');
                path.extend_from_slice(below.as_os_str().as_bytes());
            }
            match node {
                Some(Ok(Node::Directory(directory))) => {
                    let kind = Kind::Folder;
                    let modified = directory.metadata.mtime();
                    return Some((
                        Entry {
                            path,
                            kind,
                            modified,
                        },
                        None,
                    ));
                }
                Some(Ok(Node::File(RegularFile { file, metadata, .. }))) => {
                    let length = metadata.len();
                    let executable = metadata.mode() & 0o111 != 0;
                    let kind = Kind::File { length, executable };
                    let modified = metadata.mtime();
                    let offset = 0;
                    let content = Content {
                        file,
                        offset,
                        length,
                    };
                    return Some((
                        Entry {
                            path,
                            kind,
                            modified,
                        },
                        Some(content),
                    ));
                }
                Some(Err(_)) | None => {
                    if found.file_type().is_dir() {
                        self.walk.skip_current_dir();
                    }
                }
            }
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        // A zip that is dropped half-way writes its directory once more.
        self.output.close();
    }
}

impl Content {
    /// A file that has become longer is cut at the announced length.
    fn copy_some(&mut self, writer: &mut Writer) -> Result<usize, BodyError> {
        if self.offset == self.length {
            return Ok(0);
        }
        let mut buffer = [0; READ_BYTES];
        let left = self.length - self.offset;
        let wanted = usize::try_from(left).map_or(READ_BYTES, |n| n.min(READ_BYTES));
        let read = match self.file.read_at(&mut buffer[..wanted], self.offset) {
            Ok(0) => return Err(BodyError::Truncated),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        writer.write(&buffer[..read])?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Where the writers write to, and pieces are taken from.
#[derive(Clone)]
struct Output(Arc<Mutex<Option<Vec<u8>>>>);

impl Default for Output {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }
}

impl Output {
    fn with<T>(&self, work: impl FnOnce(&mut Option<Vec<u8>>) -> T) -> T {
        // Nothing can panic with half a change made.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn length(&self) -> usize {
        self.with(|bytes| bytes.as_ref().map_or(0, Vec::len))
    }

    fn take(&self) -> Vec<u8> {
        self.with(|bytes| bytes.as_mut().map(std::mem::take).unwrap_or_default())
    }

    /// What is written from now on is thrown away.
    fn close(&self) {
        self.with(|bytes| *bytes = None);
    }
}

impl Write for Output {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        self.with(|bytes| {
            if let Some(bytes) = bytes {
                bytes.extend_from_slice(more);
            }
        });
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Writer {
    TarGz(Box<GzEncoder<Output>>),
    Zip(Box<ZipWriter<StreamWriter<Output>>>),
}

impl Writer {
    fn new(format: Format, output: Output) -> Self {
        match format {
            Format::TarGz => {
                let encoder = GzEncoder::new(output, Compression::new(EFFORT));
                Self::TarGz(Box::new(encoder))
            }
            Format::Zip => Self::Zip(Box::new(ZipWriter::new_stream(output))),
        }
    }

    /// `false` if the format can't hold the entry; it is left out then.
    fn begin(&mut self, entry: &Entry) -> io::Result<bool> {
        match self {
            Self::TarGz(tar) => begin_in_tar(tar.as_mut(), entry).map(|()| true),
            Self::Zip(zip) => begin_in_zip(zip, entry),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::TarGz(tar) => tar.write_all(bytes),
            Self::Zip(zip) => zip.write_all(bytes),
        }
    }

    /// After the content of a file.
    fn end(&mut self, length: u64) -> io::Result<()> {
        match self {
            Self::TarGz(tar) => fill_block(tar.as_mut(), length),
            Self::Zip(_) => Ok(()),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::TarGz(mut tar) => {
                // Two empty blocks are the end of a tar.
                tar.write_all(&[0; 2 * TAR_BLOCK_BYTES])?;
                tar.finish().map(|_| ())
            }
            Self::Zip(zip) => zip.finish().map(|_| ()).map_err(io::Error::other),
        }
    }
}

fn begin_in_tar(tar: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    let mut path = entry.path.clone();
    match entry.kind {
        Kind::Folder => {
            path.push(b'/');
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
        }
        Kind::File { length, executable } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(if executable { 0o755 } else { 0o644 });
            header.set_size(length);
        }
    }
    // Before 1970 there is none.
    header.set_mtime(entry.modified.try_into().unwrap_or(0));
    if path.len() > TAR_NAME_BYTES {
        // The whole name goes before, as the content of an entry of its own.
        let mut long = Header::new_gnu();
        set_name(&mut long, b"././@LongLink");
        long.set_entry_type(EntryType::GNULongName);
        long.set_mode(0o644);
        long.set_mtime(0);
        let length = path.len() as u64 + 1;
        long.set_size(length);
        long.set_cksum();
        tar.write_all(long.as_bytes())?;
        tar.write_all(&path)?;
        tar.write_all(b"\0")?;
        fill_block(tar, length)?;
        path.truncate(TAR_NAME_BYTES);
    }
    set_name(&mut header, &path);
    header.set_cksum();
    tar.write_all(header.as_bytes())
}

/// The crate's own setter refuses or changes names that are not UTF-8.
fn set_name(header: &mut Header, name: &[u8]) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
}

/// Zeros up to the next block.
fn fill_block(tar: &mut impl Write, length: u64) -> io::Result<()> {
    let used = usize::try_from(length % TAR_BLOCK_BYTES as u64).unwrap_or(0);
    if used > 0 {
        tar.write_all(&[0; TAR_BLOCK_BYTES][used..])?;
    }
    Ok(())
}

fn begin_in_zip(zip: &mut ZipWriter<StreamWriter<Output>>, entry: &Entry) -> io::Result<bool> {
    let at = Civil::from_unix(entry.modified);
    let mut options = FullFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        .compression_level(Some(EFFORT.into()));
    if let Ok(year) = u16::try_from(at.year)
        && let Ok(time) =
            zip::DateTime::from_date_and_time(year, at.month, at.day, at.hour, at.minute, at.second)
    {
        options = options.last_modified_time(time);
    }
    // That time has no zone; this one is in UTC.
    if let Ok(seconds) = u32::try_from(entry.modified) {
        options = options
            .with_extended_timestamp(Some(seconds), None, None)
            .map_err(io::Error::other)?;
    }
    let name = zip_name(&entry.path);
    let begun = match entry.kind {
        Kind::Folder => zip.add_directory(
            name,
            options.unix_permissions(0o755).compression_level(None),
        ),
        Kind::File { length, executable } => zip.start_file(
            name,
            options
                .unix_permissions(if executable { 0o755 } else { 0o644 })
                .large_file(length >= ZIP64_FROM),
        ),
    };
    match begun {
        Ok(()) => Ok(true),
        Err(zip::result::ZipError::Io(error)) => Err(error),
        // A name that is there already or is too long.
        Err(_) => Ok(false),
    }
}

/// Names in a zip are UTF-8. Other bytes are written as in a URL, so that two
/// names stay two.
fn zip_name(path: &[u8]) -> String {
    let mut name = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        name.push_str(chunk.valid());
        let escaped = chunk.invalid().iter().map(|byte| format!("%{byte:02X}"));
        name.extend(escaped);
    }
    name
}
