//! A directory as a page or as JSON.
//!
//! Owns which entries are shown, their order and how they are written. The
//! mark-up lies in the files beside this one. The page asks for nothing else
//! and may do nothing else: its Content-Security-Policy names the hashes of its
//! own style and script. All of it works without the script, which only spares
//! the round trips.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;

use http::HeaderMap;
use http::header::ACCEPT;
use rustix::fs::{AtFlags, FileType, RawDir, statat};
use rustix::io::Errno;
use serde::Serialize;

use super::civil::Civil;
use super::parameter;
use super::resolve::{Directory, Refusal, Root};
use crate::html::escape;
use crate::target::{UrlPath, encode_segment};

const PAGE: &str = include_str!("listing.html");
const ROW: &str = include_str!("listing_row.html");
const STYLE: &str = include_str!("listing.css");
const SCRIPT: &str = include_str!("listing.js");

/// The hashes are those of [`STYLE`] and [`SCRIPT`]; a test compares them.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    style-src 'sha256-sLCX1y5AvX/JyfFt0P0LLcHOCNvoXgQ//afuf2TYrms='; \
    script-src 'sha256-0c6TtjMuVjN+7lRbz77ivByg/6oqG9mDuJ67y8NX1jU='; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What of a directory is read at once.
const DIRECTORY_BUFFER_BYTES: usize = 32 << 10;

/// How the request wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) form: Form,
    /// The form was chosen by the Accept field, not by the query.
    pub(super) negotiated: bool,
    sort: Column,
    descending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Html,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Name,
    Size,
    Time,
}

/// One line of a listing.
struct Entry {
    name: OsString,
    is_directory: bool,
    /// In bytes.
    size: u64,
    /// In seconds since 1970.
    modified: i64,
    /// What the name is ordered by.
    key: String,
    /// Its place in the order of names.
    rank: usize,
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

/// The directory as `view` wants it, for the URL path `url`.
pub(super) fn write(
    root: &Root,
    directory: &Directory,
    url: &UrlPath,
    view: View,
) -> Result<String, Refusal> {
    let mut entries = read(root, directory)?;
    sort(&mut entries, view);
    Ok(match view.form {
        Form::Html => html(&entries, &visible(root.name().as_bytes()), url, view),
        Form::Json => json(&entries, url),
    })
}

/// The entries that a request would be answered for. Left out is what is
/// hidden, no file or directory, or a link that is broken or leads where
/// nothing is served.
fn read(root: &Root, directory: &Directory) -> Result<Vec<Entry>, Refusal> {
    let descriptor = directory.open()?;
    let mut buffer = Vec::with_capacity(DIRECTORY_BUFFER_BYTES);
    let mut names = RawDir::new(&descriptor, buffer.spare_capacity_mut());
    let mut entries = Vec::new();
    while let Some(name) = names.next() {
        let name = match name {
            Ok(name) => OsString::from_vec(name.file_name().to_bytes().to_vec()),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if name == "." || name == ".." || !root.shows(&name) {
            continue;
        }
        // A file that has vanished since is not shown.
        let Ok(stat) = statat(&descriptor, &name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let (is_directory, size, modified) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (true, 0, stat.st_mtime),
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                (false, size, stat.st_mtime)
            }
            FileType::Symlink => match root.locate(&directory.path.join(&name)) {
                Ok(place) => {
                    let metadata = place.metadata;
                    let size = if metadata.is_file() {
                        metadata.len()
                    } else {
                        0
                    };
                    (metadata.is_dir(), size, metadata.mtime())
                }
                Err(_) => continue,
            },
            _ => continue,
        };
        entries.push(Entry {
            key: name.to_string_lossy().to_lowercase(),
            name,
            is_directory,
            size,
            modified,
            rank: 0,
        });
    }
    Ok(entries)
}

/// Directories come first, whatever the order.
fn sort(entries: &mut [Entry], view: View) {
    entries.sort_by(|a, b| {
        let by_kind = b.is_directory.cmp(&a.is_directory);
        by_kind.then_with(|| {
            natural(a.key.as_bytes(), b.key.as_bytes()).then_with(|| a.name.cmp(&b.name))
        })
    });
    for (rank, entry) in entries.iter_mut().enumerate() {
        entry.rank = rank;
    }
    entries.sort_by(|a, b| {
        let by_column = match view.sort {
            Column::Name => a.rank.cmp(&b.rank),
            Column::Size => a.size.cmp(&b.size),
            Column::Time => a.modified.cmp(&b.modified),
        };
        let by_column = if view.descending {
            by_column.reverse()
        } else {
            by_column
        };
        b.is_directory.cmp(&a.is_directory).then(by_column)
    });
}

/// `a9` before `a10`: runs of digits are compared as numbers. The bytes of
/// UTF-8 have the order of its characters.
fn natural(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while let (&[x, ref rest_of_a @ ..], &[y, ref rest_of_b @ ..]) = (a, b) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (x, y) = (take_number(&mut a), take_number(&mut b));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            (a, b) = (rest_of_a, rest_of_b);
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// The digits at the start, without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|b| !b.is_ascii_digit());
    let (digits, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    let zeros = digits.iter().take_while(|&&b| b == b'0').count();
    &digits[zeros..]
}

fn json(entries: &[Entry], url: &UrlPath) -> String {
    #[derive(Serialize)]
    struct Listing<'a> {
        path: String,
        entries: Vec<Line<'a>>,
    }
    #[derive(Serialize)]
    struct Line<'a> {
        /// What is not UTF-8 in it is replaced; `href` has all of it.
        name: std::borrow::Cow<'a, str>,
        href: String,
        r#type: &'static str,
        size: Option<u64>,
        modified: String,
    }
    let base = with_slash(url).encoded();
    let line = |entry| {
        let Entry {
            name,
            is_directory,
            size,
            modified,
            ..
        }: &Entry = entry;
        Line {
            name: name.to_string_lossy(),
            href: format!("{base}{}", href(entry)),
            r#type: if *is_directory { "directory" } else { "file" },
            size: (!is_directory).then_some(*size),
            modified: Civil::from_unix(*modified).to_string(),
        }
    };
    let listing = Listing {
        path: String::from_utf8_lossy(&with_slash(url).decoded()).into_owned(),
        entries: entries.iter().map(line).collect(),
    };
    let mut text = serde_json::to_string(&listing).expect("strings and numbers are JSON");
    text.push('\n');
    text
}

fn html(entries: &[Entry], root_name: &str, url: &UrlPath, view: View) -> String {
    let mut rows = String::with_capacity(entries.len() * 256);
    for entry in entries {
        rows.push_str(&row(entry));
    }
    let title = match url.segments.last() {
        Some(name) => escape(&visible(name)),
        None => escape(root_name),
    };
    let up = if url.segments.is_empty() {
        ""
    } else {
        "<tbody><tr class=\"up\"><td colspan=\"3\"><a href=\"../\">Parent folder</a></td></tr></tbody>"
    };
    let [name, size, time] = [Column::Name, Column::Size, Column::Time];
    fill(
        PAGE,
        &[
            ("title", &title),
            ("style", STYLE),
            ("script", SCRIPT),
            ("breadcrumb", &breadcrumb(root_name, url)),
            ("summary", &summary(entries)),
            ("name-head", &column_head(name, "Name", view)),
            ("size-head", &column_head(size, "Size", view)),
            (
                "time-head",
                &column_head(time, "Modified <span>(UTC)</span>", view),
            ),
            ("up", up),
            ("rows", &rows),
        ],
    )
}

fn row(entry: &Entry) -> String {
    let at = Civil::from_unix(entry.modified);
    let bytes = entry.size.to_string();
    let size = if entry.is_directory {
        String::new()
    } else {
        format!(
            "<data value=\"{bytes}\" title=\"{bytes} bytes\">{}</data>",
            size_for_people(entry.size)
        )
    };
    fill(
        ROW,
        &[
            ("kind", if entry.is_directory { "folder" } else { "file" }),
            ("rank", &entry.rank.to_string()),
            ("bytes", &bytes),
            ("seconds", &entry.modified.to_string()),
            ("href", &href(entry)),
            ("name", &escape(&visible(entry.name.as_bytes()))),
            ("size", &size),
            ("moment", &at.to_string()),
            ("date", &at.date()),
            ("time", &at.time()),
        ],
    )
}

/// A header that is a link to the listing in that order. `aria-sort` tells the
/// order there is.
fn column_head(column: Column, label: &str, view: View) -> String {
    let current = view.sort == column;
    // The largest and the newest are what people look for first.
    let descending = if current {
        !view.descending
    } else {
        column != Column::Name
    };
    let key = match column {
        Column::Name => "name",
        Column::Size => "size",
        Column::Time => "time",
    };
    let order = if descending { "desc" } else { "asc" };
    let sorted = match (current, view.descending) {
        (false, _) => "none",
        (true, false) => "ascending",
        (true, true) => "descending",
    };
    format!(
        "<th scope=\"col\" class=\"{key}\" aria-sort=\"{sorted}\">\
         <a href=\"?sort={key}&amp;order={order}\">{label}</a></th>"
    )
}

/// The way from the root to here, each step a link but the last.
fn breadcrumb(root_name: &str, url: &UrlPath) -> String {
    let mut text = String::new();
    let last = url.segments.len();
    for depth in 0..=last {
        let name = match depth.checked_sub(1) {
            None => escape(root_name),
            Some(index) => escape(&visible(&url.segments[index])),
        };
        let step = if depth == last {
            write!(text, "<li aria-current=\"page\"><bdi>{name}</bdi></li>")
        } else {
            let path = UrlPath {
                segments: url.segments[..depth].to_vec(),
                trailing_slash: true,
            };
            let path = path.encoded();
            write!(text, "<li><a href=\"{path}\"><bdi>{name}</bdi></a></li>")
        };
        step.expect("writing to a string does not fail");
    }
    text
}

/// `3 folders, 1 file, 12.5 kB`
fn summary(entries: &[Entry]) -> String {
    let count = |number: usize, noun: &str| match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    };
    let folders = entries.iter().filter(|entry| entry.is_directory).count();
    let files = entries.len() - folders;
    let parts = match (folders, files) {
        (0, 0) => return "This folder is empty.".to_owned(),
        (_, 0) => return count(folders, "folder"),
        (0, _) => count(files, "file"),
        _ => format!("{}, {}", count(folders, "folder"), count(files, "file")),
    };
    let sizes = entries.iter().filter(|entry| !entry.is_directory);
    let total = sizes.fold(0, |sum: u64, entry| sum.saturating_add(entry.size));
    format!("{parts}, {}", size_for_people(total))
}

/// In powers of a thousand, with one decimal place.
fn size_for_people(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = 1000;
    for name in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // In tenths, rounded to the nearest.
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        if tenths < 10_000 || name == "EB" {
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
        unit *= 1000;
    }
    unreachable!("the last unit takes whatever is left")
}

/// The name as a relative link goes on.
fn href(entry: &Entry) -> String {
    let mut text = encode_segment(entry.name.as_bytes());
    if entry.is_directory {
        text.push('/');
    }
    text
}

fn with_slash(url: &UrlPath) -> UrlPath {
    UrlPath {
        trailing_slash: true,
        ..url.clone()
    }
}

/// A name as it can be looked at: nothing in it moves the text around it, hides
/// or turns a part of it.
fn visible(name: &[u8]) -> String {
    let visible = |c: char| match c {
        // The control pictures of Unicode stand in the order of ASCII.
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        // More controls; what is not to be seen, but for the joiners, which
        // some scripts need; marks, embeddings, overrides and isolates of
        // direction; separators of lines.
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}' => '\u{fffd}',
        c => c,
    };
    String::from_utf8_lossy(name).chars().map(visible).collect()
}

/// Puts values in the place of `{{name}}`. One pass: what is put in is not
/// looked at again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut parts = template.trim_end().split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("every {{ has its }}");
        let value = values.iter().find(|(other, _)| *other == name);
        text.push_str(value.expect("every name in a template has a value").1);
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use http::HeaderValue;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_policy_names_the_hashes_of_style_and_script() {
        for (directive, text) in [("style-src", STYLE), ("script-src", SCRIPT)] {
            let hash = BASE64_STANDARD.encode(Sha256::digest(text));
            let source = format!("{directive} 'sha256-{hash}';");
            assert!(CONTENT_SECURITY_POLICY.contains(&source), "{source}");
        }
    }

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

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = ["b", "a10", "a9", "a", "a01b", "A1a", "a1", "é", ""];
        names.sort_by(|a, b| natural(a.to_lowercase().as_bytes(), b.to_lowercase().as_bytes()));
        assert_eq!(names, ["", "a", "a1", "A1a", "a01b", "a9", "a10", "b", "é"]);
    }

    #[test]
    fn sizes_are_rounded_for_people() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1549, "1.5 kB"),
            (1550, "1.6 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (3 << 30, "3.2 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(size_for_people(bytes), expected);
        }
    }

    #[test]
    fn hostile_names_are_shown_and_move_nothing() {
        for (name, expected) in [
            (&b"a&<b>\"'"[..], "a&amp;&lt;b&gt;&quot;&#39;"),
            (b"a\nb\x1b\x7f", "a\u{240a}b\u{241b}\u{2421}"),
            (b"a\xffb", "a\u{fffd}b"),
            (
                "a\u{202e}gpj.exe\u{85}".as_bytes(),
                "a\u{fffd}gpj.exe\u{fffd}",
            ),
            ("a\u{200b}b\u{feff}".as_bytes(), "a\u{fffd}b\u{fffd}"),
            (b"{{rows}}", "{{rows}}"),
        ] {
            assert_eq!(escape(&visible(name)), expected);
        }
    }

    #[test]
    fn what_is_put_into_a_template_is_not_filled_again() {
        let values = [("a", "{{b}}"), ("b", "x")];
        assert_eq!(fill("<{{a}}|{{b}}>", &values), "<{{b}}|x>");
    }
}
