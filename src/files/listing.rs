//! A directory as a page or as JSON.
//!
//! Owns which entries are shown and their order; how they are written is
//! `page`'s and `json`'s, their names are read by `names`.
//!
//! What is shown was looked at after the request came; nothing is kept for
//! later. Every look is a call of the system that may wait for a disk, so it is
//! made on a blocking thread, whatever the size: against a thousand looks, a
//! change of threads is nothing. A short listing is made in one go, one for all
//! who ask for it at the same time. A long one is made while it is sent, in
//! steps that end after a piece of it: a slow client holds no thread, a client
//! that goes ends the work, and each costs a piece and a share in the names.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::ACCEPT;
use rustix::fs::FileType;
use tokio::task::{JoinHandle, spawn_blocking};

use super::parameter;
use super::precondition::Validators;
use super::resolve::{Directory, Refusal, Root};
use crate::message::{Body, BodyError, Next, Source};
use crate::target::{UrlPath, encode_segment};

use known::Known;
use names::Names;
use together::{Answer, Together};

mod json;
mod known;
mod names;
mod page;
mod together;

pub(super) use page::CONTENT_SECURITY_POLICY;

/// Up to so many entries a listing is made in one go. That is less than 400 KB
/// of page and some milliseconds of work.
const WHOLE_ENTRIES: usize = 2000;
/// What an entry takes, if its name isn't long.
const USUAL_LINE_BYTES: usize = 160;
/// What stands behind the entries, less than this.
const END_BYTES: usize = 8 << 10;
/// A step of a longer one ends when it has made this much.
const PIECE_BYTES: usize = 32 << 10;
/// A step ends when it has looked at so many entries, shown or not.
const STEP_ENTRIES: usize = 1000;

/// How the request wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) form: Form,
    /// The form was chosen by the Accept field, not by the query.
    pub(super) negotiated: bool,
    sort: Column,
    descending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Html,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Column {
    Name,
    Size,
    Time,
}

/// What is told of an entry besides its name.
#[derive(Clone, Copy)]
struct Facts {
    is_directory: bool,
    /// In bytes; 0 for a directory.
    size: u64,
    /// In seconds since 1970.
    modified: i64,
}

/// What is told of all entries together.
#[derive(Default)]
struct Totals {
    folders: u64,
    files: u64,
    bytes: u64,
}

impl View {
    /// From the query and the Accept field. What a query says beyond this is
    /// not for us and is ignored.
    pub(super) fn of(query: &[u8], headers: &HeaderMap) -> Self {
        let asked = |name| parameter(query, name);
        let by_query = asked("format").as_deref() == Some(b"json");
        let sort = match asked("sort").as_deref() {
            Some(b"size") => Column::Size,
            Some(b"time") => Column::Time,
            _ => Column::Name,
        };
        Self {
            form: if by_query || prefers_json(headers) {
                Form::Json
            } else {
                Form::Html
            },
            negotiated: !by_query,
            sort,
            descending: asked("order").as_deref() == Some(b"desc"),
        }
    }
}

/// Whether JSON is preferred over HTML (RFC 9110 §12.5.1): by its weight, and
/// where the weights are the same, by being named more precisely. Browsers
/// name `text/html`; programs name `application/json`, or nothing.
fn prefers_json(headers: &HeaderMap) -> bool {
    // Weight in thousandths, and how precisely the type is named.
    let mut json = (0, 0);
    let mut html = (0, 0);
    for value in headers.get_all(ACCEPT) {
        for element in String::from_utf8_lossy(value.as_bytes()).split(',') {
            let mut parts = element.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(weight).unwrap_or(1000);
            for (best, kind, essence) in [
                (&mut json, "application/*", "application/json"),
                (&mut html, "text/*", "text/html"),
            ] {
                let precision = match &range[..] {
                    "*/*" => 1,
                    range if range == kind => 2,
                    range if range == essence => 3,
                    _ => continue,
                };
                if precision > best.1 {
                    *best = (weight, precision);
                }
            }
        }
    }
    json.0 > 0 && json > html
}

/// `q=0.5` in thousandths.
fn weight(parameter: &str) -> Option<u32> {
    let value = parameter
        .strip_prefix("q=")
        .or(parameter.strip_prefix("Q="))?;
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let whole: u32 = whole.parse().ok()?;
    let part: u32 = format!("{part:0<3.3}").parse().ok()?;
    Some((whole.saturating_mul(1000).saturating_add(part)).min(1000))
}

/// The listings that are being made or sent.
#[derive(Default)]
pub(super) struct Listings {
    together: Together<Wanted, Made>,
    known: Arc<Known>,
}

/// What a listing depends on besides the entries.
#[derive(PartialEq, Eq, Hash)]
struct Wanted {
    /// The directory itself: under its name there may be another by now.
    device: u64,
    inode: u64,
    /// Links in it are followed from here.
    path: PathBuf,
    /// The segments of the URL path.
    url: Vec<Vec<u8>>,
    form: Form,
    sort: Column,
    descending: bool,
}

/// What those who ask together share.
enum Made {
    Whole {
        text: Vec<u8>,
        validators: Validators,
    },
    /// The rest is made while it is sent.
    Begun(Folder),
}

/// A directory whose names have been read.
struct Folder {
    root: Arc<Root>,
    directory: Directory,
    names: Arc<Names>,
}

/// A listing, ready to be sent.
pub(super) struct Listing {
    made: Arc<Answer<Made>>,
    url: UrlPath,
    view: View,
}

impl Listings {
    /// The directory as `view` wants it, for the URL path `url`.
    pub(super) async fn get(
        &self,
        root: &Arc<Root>,
        directory: Directory,
        url: &UrlPath,
        view: View,
    ) -> Result<Listing, Refusal> {
        let wanted = Wanted {
            device: directory.metadata.dev(),
            inode: directory.metadata.ino(),
            path: directory.path.clone(),
            url: url.segments.clone(),
            form: view.form,
            sort: view.sort,
            descending: view.descending,
        };
        let make = || {
            let (root, url) = (Arc::clone(root), url.clone());
            let known = Arc::clone(&self.known);
            let making = spawn_blocking(move || {
                let folder = Folder {
                    root,
                    directory,
                    names: Arc::default(),
                };
                Made::new(folder, &known, &url, view)
            });
            async { making.await.map_err(io::Error::other)? }
        };
        Ok(Listing {
            made: self.together.answer(wanted, make).await?,
            url: url.clone(),
            view,
        })
    }
}

impl Listing {
    /// None if it is made while it is sent.
    pub(super) fn validators(&self) -> Option<&Validators> {
        match &self.made.content {
            Made::Whole { validators, .. } => Some(validators),
            Made::Begun(_) => None,
        }
    }

    pub(super) fn into_body(self) -> Body {
        match &self.made.content {
            Made::Whole { .. } => Body::Bytes(Bytes::from_owner(Text(self.made))),
            Made::Begun(folder) => {
                let lines = Lines::new(&self.url, self.view, folder);
                let made = Arc::clone(&self.made);
                Body::stream(None, Stream::New(Box::new(Work { lines, made })))
            }
        }
    }
}

/// The same answer a second time.
impl PartialEq for Made {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole { text, .. }, Self::Whole { text: other, .. }) => text == other,
            (Self::Begun(folder), Self::Begun(other)) => folder.names == other.names,
            _ => false,
        }
    }
}

impl Made {
    fn new(mut folder: Folder, known: &Known, url: &UrlPath, view: View) -> Result<Self, Refusal> {
        if let Some(names) = known.find(&folder.directory) {
            folder.names = names;
            let mut lines = Lines::new(url, view, &folder);
            let rows = lines.rest(&folder);
            // Else names may have become others without a trace: those of an
            // encrypted folder do when it is unlocked.
            if !lines.missed {
                return Ok(lines.whole(&folder, &rows));
            }
        }
        folder.names = known.read(&folder.root, &folder.directory)?;
        if folder.names.count() > WHOLE_ENTRIES {
            return Ok(Self::Begun(folder));
        }
        let mut lines = Lines::new(url, view, &folder);
        let rows = lines.rest(&folder);
        Ok(lines.whole(&folder, &rows))
    }
}

impl Folder {
    /// What is told of an entry. `None`: it is no file or folder, or has gone,
    /// or is a link that is broken or leads where nothing is served.
    fn facts(&self, name: &OsStr) -> Option<Facts> {
        let stat = self.directory.stat(name).ok()?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Some(Facts {
                is_directory: true,
                size: 0,
                modified: stat.st_mtime,
            }),
            FileType::RegularFile => Some(Facts {
                is_directory: false,
                size: u64::try_from(stat.st_size).unwrap_or_default(),
                modified: stat.st_mtime,
            }),
            FileType::Symlink => {
                let place = self.root.locate(&self.directory.path.join(name)).ok()?;
                let metadata = place.metadata;
                let is_directory = metadata.is_dir();
                Some(Facts {
                    is_directory,
                    size: if is_directory { 0 } else { metadata.len() },
                    modified: metadata.mtime(),
                })
            }
            _ => None,
        }
    }
}

/// The entries, one after the other.
struct Lines {
    url: UrlPath,
    /// The same, encoded.
    base: String,
    view: View,
    order: Order,
    totals: Totals,
    /// Some name led to nothing.
    missed: bool,
}

/// How far the lines have come.
enum Order {
    /// By name: the place of the next.
    ByName(u32),
    /// All entries are looked at for what they are ordered by.
    Weighing { weights: Vec<(u64, u32)>, next: u32 },
    /// The places of those that are left, from the last to the next.
    Left(Vec<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    More,
    Complete,
}

impl Lines {
    fn new(url: &UrlPath, view: View, folder: &Folder) -> Self {
        let url = UrlPath {
            trailing_slash: true,
            ..url.clone()
        };
        let order = if view.sort != Column::Name {
            Order::Weighing {
                weights: Vec::with_capacity(folder.names.count()),
                next: 0,
            }
        } else if view.descending {
            Order::reversed(&folder.names)
        } else {
            Order::ByName(0)
        };
        Self {
            base: url.encoded(),
            url,
            view,
            order,
            totals: Totals::default(),
            missed: false,
        }
    }

    /// All lines that are left.
    fn rest(&mut self, folder: &Folder) -> Vec<u8> {
        let mut rows = Vec::with_capacity(folder.names.count() * USUAL_LINE_BYTES);
        while self.step(folder, &mut rows) == Progress::More {}
        rows
    }

    /// The listing that all lines are in.
    fn whole(&self, folder: &Folder, rows: &[u8]) -> Made {
        let mut text = self.head(folder, true);
        let end = self.end(false);
        text.reserve_exact(rows.len() + end.len());
        text.extend_from_slice(rows);
        text.extend_from_slice(&end);
        Made::Whole {
            validators: Validators::of_content(&text),
            text,
        }
    }

    /// What comes before the lines. `with_totals`: all lines have been made.
    fn head(&self, folder: &Folder, with_totals: bool) -> Vec<u8> {
        match self.view.form {
            Form::Html => {
                let root_name = page::visible(folder.root.name().as_bytes());
                let totals = with_totals.then_some(&self.totals);
                page::head(&root_name, &self.url, self.view, totals).into_bytes()
            }
            Form::Json => json::head(&self.url.decoded()),
        }
    }

    /// What comes behind the lines.
    fn end(&self, with_totals: bool) -> Vec<u8> {
        match self.view.form {
            Form::Html => page::end(with_totals.then_some(&self.totals)).into_bytes(),
            Form::Json => json::END.to_vec(),
        }
    }

    /// Adds some lines to `text`.
    fn step(&mut self, folder: &Folder, text: &mut Vec<u8>) -> Progress {
        let end = text.len() + PIECE_BYTES;
        for _ in 0..STEP_ENTRIES {
            if text.len() >= end {
                break;
            }
            if let Order::Weighing { weights, next } = &mut self.order {
                let Some((name, after)) = folder.names.at(*next) else {
                    self.order = Order::weighed(weights, &folder.names, self.view.descending);
                    continue;
                };
                if let Some(facts) = folder.facts(OsStr::from_bytes(name)) {
                    let weight = match self.view.sort {
                        Column::Size => facts.size,
                        // From the earliest there could be.
                        _ => facts.modified.cast_unsigned() ^ (1 << 63),
                    };
                    weights.push((weight, *next));
                } else {
                    self.missed = true;
                }
                *next = after;
                continue;
            }
            let Some((place, name)) = self.order.next(&folder.names) else {
                return Progress::Complete;
            };
            match folder.facts(OsStr::from_bytes(name)) {
                Some(facts) => self.push(text, place, name, &facts),
                None => self.missed = true,
            }
        }
        Progress::More
    }

    fn push(&mut self, text: &mut Vec<u8>, place: u32, name: &[u8], facts: &Facts) {
        match self.view.form {
            Form::Html => {
                // Where the rows have the order of names, it is known.
                let rank = (self.view.sort != Column::Name).then_some(place);
                page::push_row(text, name, facts, rank);
            }
            Form::Json => {
                if self.totals.folders + self.totals.files > 0 {
                    text.push(b',');
                }
                json::push_entry(text, &self.base, name, facts);
            }
        }
        self.totals.add(facts);
    }
}

impl Order {
    /// Folders first, all the same.
    fn reversed(names: &Names) -> Self {
        let mut folders = Vec::new();
        let mut left = Vec::with_capacity(names.count());
        let mut place = 0;
        while let Some((_, next)) = names.at(place) {
            if names.is_folder_at(place) {
                folders.push(place);
            } else {
                left.push(place);
            }
            place = next;
        }
        left.append(&mut folders);
        Self::Left(left)
    }

    /// Folders first; what weighs the same, by name.
    fn weighed(weights: &mut [(u64, u32)], names: &Names, descending: bool) -> Self {
        weights.sort_unstable_by_key(|&(weight, place)| {
            let weight = if descending { !weight } else { weight };
            (!names.is_folder_at(place), weight, place)
        });
        Self::Left(weights.iter().rev().map(|&(_, place)| place).collect())
    }

    /// The next name and its place.
    fn next<'a>(&mut self, names: &'a Names) -> Option<(u32, &'a [u8])> {
        match self {
            Self::ByName(next) => {
                let place = *next;
                let (name, after) = names.at(place)?;
                *next = after;
                Some((place, name))
            }
            Self::Left(left) => {
                let place = left.pop()?;
                Some((place, names.at(place)?.0))
            }
            Self::Weighing { .. } => None,
        }
    }
}

impl Totals {
    fn add(&mut self, facts: &Facts) {
        if facts.is_directory {
            self.folders += 1;
        } else {
            self.files += 1;
            self.bytes = self.bytes.saturating_add(facts.size);
        }
    }
}

/// The text of a listing that was made in one go.
struct Text(Arc<Answer<Made>>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        match &self.0.content {
            Made::Whole { text, .. } => text,
            Made::Begun(_) => &[],
        }
    }
}

/// A listing that is made while it is sent.
enum Stream {
    /// The head waits for nothing.
    New(Box<Work>),
    Idle(Box<Work>),
    Running(JoinHandle<(Box<Work>, Vec<u8>, Progress)>),
    Ended,
}

struct Work {
    lines: Lines,
    /// Always begun.
    made: Arc<Answer<Made>>,
}

impl Stream {
    fn start(mut work: Box<Work>) -> Self {
        Self::Running(spawn_blocking(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES + END_BYTES);
            let progress = work.step(&mut piece);
            (work, piece, progress)
        }))
    }

    /// Waits for steps until one has made something. Until a step has ended
    /// `self` holds it, so a dropped future loses nothing.
    async fn piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            *self = match std::mem::replace(self, Self::Ended) {
                Self::New(work) => {
                    let head = work.head();
                    *self = Self::Idle(work);
                    return Ok(Some(head.into()));
                }
                Self::Idle(work) => Self::start(work),
                state => state,
            };
            let Self::Running(step) = self else {
                return Ok(None);
            };
            let joined = step.await;
            *self = Self::Ended;
            let (work, piece, progress) = joined.map_err(io::Error::other)?;
            if progress == Progress::More {
                *self = Self::Idle(work);
            }
            if !piece.is_empty() {
                return Ok(Some(piece.into()));
            }
        }
    }
}

impl Source for Stream {
    fn next(&mut self) -> Next<'_> {
        Box::pin(async move { self.piece().await.transpose() })
    }
}

impl Work {
    fn head(&self) -> Vec<u8> {
        match &self.made.content {
            Made::Begun(folder) => self.lines.head(folder, false),
            Made::Whole { .. } => Vec::new(),
        }
    }

    fn step(&mut self, piece: &mut Vec<u8>) -> Progress {
        let progress = match &self.made.content {
            Made::Begun(folder) => self.lines.step(folder, piece),
            Made::Whole { .. } => Progress::Complete,
        };
        if progress == Progress::Complete {
            piece.extend_from_slice(&self.lines.end(true));
        }
        progress
    }
}

/// A number in decimal digits.
fn push_number(text: &mut Vec<u8>, mut number: u64) {
    const MOST: usize = 20;
    let mut digits = [0; MOST];
    let mut start = MOST;
    loop {
        start -= 1;
        digits[start] = b"0123456789"[(number % 10) as usize];
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[start..]);
}

/// The name as a relative link goes on. Most need no escape.
fn push_href(text: &mut Vec<u8>, name: &[u8], is_directory: bool) {
    let is_plain =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    if name.iter().all(is_plain) {
        text.extend_from_slice(name);
    } else {
        text.extend_from_slice(encode_segment(name).as_bytes());
    }
    if is_directory {
        text.push(b'/');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn json_is_sent_to_who_prefers_it_over_html() {
        for (accept, expected) in [
            ("", false),
            ("*/*", false),
            ("application/json", true),
            ("APPLICATION/JSON", true),
            ("application/json;q=0", false),
            ("application/json, text/plain, */*", true),
            ("application/json, */*;q=0.1", true),
            ("application/*", true),
            ("text/html, application/json", false),
            ("text/html;q=0.8, application/json", true),
            ("text/html, application/json;q=0.9", false),
            ("text/html;q=0.25, application/json;q=0.3", true),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                false,
            ),
            ("application/json;q=x;;,,=", true),
            ("application/json;q=99999999999", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(prefers_json(&headers), expected, "{accept}");
        }
    }
}
