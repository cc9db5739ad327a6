//! A directory as a page.
//!
//! Owns how the page is written; its mark-up lies in the files beside
//! `listing.rs`. It asks for nothing else and may do nothing else: its
//! Content-Security-Policy names the hashes of its own style and script. All of
//! it works without the script, which only spares the round trips.

use std::fmt::Write;
use std::sync::LazyLock;

use super::{Column, Facts, Totals, View, push_href, push_number};
use crate::files::civil::Civil;
use crate::html::escape;
use crate::target::UrlPath;

const PAGE: &str = include_str!("../listing.html");
const STYLE: &str = include_str!("../listing.css");
const SCRIPT: &str = include_str!("../listing.js");

/// The hashes are those of [`STYLE`] and [`SCRIPT`]; a test compares them.
pub(in crate::files) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    style-src 'sha256-t7WzrVGRxsdPFok5M3tnVNT3IpJKkaY2WHV75iJSS3A='; \
    script-src 'sha256-IAA39aMkOcytWZ1DGXOZs0LrH2QXHU4Y8P66r+i+7XM='; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The row's template, taken apart once: it is filled a thousand times a page.
static ROW: LazyLock<Vec<(&[u8], Field)>> = LazyLock::new(|| {
    let template = include_str!("../listing_row.html").trim_end();
    let mut parts = template.split("{{");
    let mut before = parts.next().unwrap_or_default();
    let mut fields = Vec::new();
    for part in parts {
        let (name, after) = part.split_once("}}").expect("every {{ has its }}");
        fields.push((before.as_bytes(), Field::called(name)));
        before = after;
    }
    fields.push((before.as_bytes(), Field::End));
    fields
});

/// What changes from row to row.
#[derive(Clone, Copy)]
enum Field {
    Class,
    /// Its place in the order of names, where the rows have another.
    Rank,
    Href,
    Name,
    /// The size in bytes, where what is shown is rounded.
    Exactly,
    Size,
    Date,
    Time,
    /// For the order by time; not shown.
    Seconds,
    End,
}

impl Field {
    fn called(name: &str) -> Self {
        match name {
            "class" => Self::Class,
            "rank" => Self::Rank,
            "href" => Self::Href,
            "name" => Self::Name,
            "exactly" => Self::Exactly,
            "size" => Self::Size,
            "date" => Self::Date,
            "time" => Self::Time,
            "seconds" => Self::Seconds,
            _ => unreachable!("the template has no other field"),
        }
    }
}

/// What comes before the rows. Without totals they are told behind the rows.
pub(super) fn head(root_name: &str, url: &UrlPath, view: View, totals: Option<&Totals>) -> String {
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
        halves().0,
        &[
            ("title", &title),
            ("style", STYLE),
            ("breadcrumb", &breadcrumb(root_name, url)),
            (
                "summary",
                &totals.map_or_else(String::new, |totals| summary(totals) + " "),
            ),
            ("name-head", &column_head(name, "Name", view)),
            ("size-head", &column_head(size, "Size", view)),
            (
                "time-head",
                &column_head(time, "Modified <span>(UTC)</span>", view),
            ),
            ("up", up),
        ],
    )
}

/// What comes behind the rows.
pub(super) fn end(totals: Option<&Totals>) -> String {
    let below = totals.map(|totals| format!("<div>{}</div>", summary(totals)));
    fill(
        halves().1,
        &[
            ("summary-below", &below.unwrap_or_default()),
            ("script", SCRIPT),
        ],
    )
}

fn halves() -> (&'static str, &'static str) {
    PAGE.split_once("{{rows}}").expect("the page has rows")
}

pub(super) fn push_row(row: &mut Vec<u8>, name: &[u8], facts: &Facts, rank: Option<u32>) {
    let at = Civil::from_unix(facts.modified);
    for (before, field) in &*ROW {
        row.extend_from_slice(before);
        match field {
            Field::Class if facts.is_directory => row.extend_from_slice(b" class=folder"),
            Field::Rank => {
                if let Some(rank) = rank {
                    row.extend_from_slice(b" data-name=");
                    push_number(row, rank.into());
                }
            }
            Field::Href => push_href(row, name, facts.is_directory),
            Field::Name => push_name(row, name),
            Field::Exactly if !facts.is_directory && facts.size >= ROUNDED_FROM => {
                row.extend_from_slice(b" title=");
                push_number(row, facts.size);
            }
            Field::Size if !facts.is_directory => push_size(row, facts.size),
            Field::Class | Field::Exactly | Field::Size | Field::End => {}
            Field::Date => at.push_date(row),
            Field::Time => at.push_time(row),
            Field::Seconds => at.push_seconds(row),
        }
    }
}

/// A name as text. Only what isn't ASCII may have a direction of its own.
fn push_name(row: &mut Vec<u8>, name: &[u8]) {
    let is_plain = |&byte: &u8| {
        matches!(byte, b' '..=b'~') && !matches!(byte, b'&' | b'<' | b'>' | b'"' | b'\'')
    };
    if name.iter().all(is_plain) {
        row.extend_from_slice(name);
        return;
    }
    let (before, after) = if name.is_ascii() {
        ("", "")
    } else {
        ("<bdi>", "</bdi>")
    };
    for part in [before, &escape(&visible(name)), after] {
        row.extend_from_slice(part.as_bytes());
    }
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
fn summary(totals: &Totals) -> String {
    let count = |number: u64, noun: &str| match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    };
    let parts = match (totals.folders, totals.files) {
        (0, 0) => "This folder is empty.".to_owned(),
        (folders, 0) => count(folders, "folder"),
        (folders, files) => {
            let mut size = Vec::new();
            push_size(&mut size, totals.bytes);
            let size = String::from_utf8_lossy(&size);
            let files = count(files, "file");
            match folders {
                0 => format!("{files}, {size}"),
                _ => format!("{}, {files}, {size}", count(folders, "folder")),
            }
        }
    };
    format!("<span id=\"summary\" role=\"status\">{parts}</span>")
}

/// Sizes below it are shown as they are.
const ROUNDED_FROM: u64 = 1000;

/// In powers of a thousand, with one decimal place.
fn push_size(text: &mut Vec<u8>, bytes: u64) {
    if bytes < ROUNDED_FROM {
        push_number(text, bytes);
        text.extend_from_slice(b" B");
        return;
    }
    let mut unit = ROUNDED_FROM;
    for name in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // In tenths, rounded to the nearest.
        let tenths = bytes / unit * 10 + (bytes % unit * 10 + unit / 2) / unit;
        if tenths < 10_000 || name == "EB" {
            push_number(text, tenths / 10);
            text.extend_from_slice(&[b'.', b"0123456789"[(tenths % 10) as usize], b' ']);
            text.extend_from_slice(name.as_bytes());
            return;
        }
        unit *= 1000;
    }
}

/// A name as it can be looked at: nothing in it moves the text around it, hides
/// or turns a part of it.
pub(super) fn visible(name: &[u8]) -> String {
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
            let mut text = Vec::new();
            push_size(&mut text, bytes);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
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
            let mut text = Vec::new();
            push_name(&mut text, name);
            let text = String::from_utf8(text).unwrap();
            let text = text.strip_prefix("<bdi>").unwrap_or(&text);
            assert_eq!(text.strip_suffix("</bdi>").unwrap_or(text), expected);
        }
    }

    #[test]
    fn what_is_put_into_a_template_is_not_filled_again() {
        let values = [("a", "{{b}}"), ("b", "x")];
        assert_eq!(fill("<{{a}}|{{b}}>", &values), "<{{b}}|x>");
    }
}
