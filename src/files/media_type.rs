//! The media type of a file (RFC 9110 §8.3): by the ending of its name, with a
//! look at its first bytes where the name doesn't tell.
//!
//! Every file goes out with `nosniff`, so what a browser shows is decided here.
//! Source text and the like are `text/plain`, because browsers offer the more
//! particular types (`text/x-rust`, `application/x-sh`) as a download.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much of a file is looked at.
const SNIFFED_BYTES: usize = 4 << 10;
/// Where a document may name its own character encoding (the HTML standard's
/// prescan looks at as much).
const DECLARATION_BYTES: usize = 1 << 10;

/// Subtypes of `text` that browsers or other programs know what to do with;
/// all others are sent as `plain`.
const KNOWN_TEXT: [&str; 10] = [
    "html",
    "css",
    "javascript",
    "xml",
    "csv",
    "tab-separated-values",
    "calendar",
    "x-vcard",
    "vtt",
    "cache-manifest",
];

/// Endings of text files whose registered type would be downloaded or is not
/// that of today's use.
const PLAIN_ENDINGS: [&str; 20] = [
    "bat", "crt", "csh", "cts", "dart", "java", "latex", "mts", "org", "pem", "php", "pl", "pm",
    "ps1", "sh", "sql", "srt", "tcl", "tex", "ts",
];

const PLAIN: &str = "text/plain";
const UNKNOWN: &str = "application/octet-stream";

/// The type of a file called `name`.
pub(super) fn of(name: &Path, file: &File) -> String {
    let mut buffer = [0; SNIFFED_BYTES];
    // A file that can't be read here can't be sent either; its type is then
    // of no importance.
    let read = file.read_at(&mut buffer, 0).unwrap_or(0);
    of_content(name, &buffer[..read])
}

fn of_content(name: &Path, start: &[u8]) -> String {
    let ending = name.extension().and_then(OsStr::to_str).unwrap_or_default();
    let ending = ending.to_ascii_lowercase();
    let essence = essence(&ending, start);
    if is_text(essence) && is_utf8(start) && !declares_other_encoding(essence, start) {
        format!("{essence}; charset=utf-8")
    } else {
        essence.to_owned()
    }
}

fn essence(ending: &str, start: &[u8]) -> &'static str {
    if ending == "ts" && is_mpeg_transport_stream(start) {
        return "video/mp2t";
    }
    let plain = PLAIN_ENDINGS.contains(&ending);
    let guess = mime_guess::from_ext(ending).first_raw();
    if (plain || guess.is_none()) && looks_like_text(start) {
        return PLAIN;
    }
    match guess {
        Some("application/javascript") => "text/javascript",
        Some("application/x-compressed") => "application/gzip",
        Some(essence) => match essence.strip_prefix("text/") {
            Some(subtype) if !KNOWN_TEXT.contains(&subtype) => PLAIN,
            _ => essence,
        },
        None => UNKNOWN,
    }
}

/// Whether the type is one whose bytes are characters.
pub(super) fn is_text(essence: &str) -> bool {
    essence.starts_with("text/")
        || ["/json", "+json", "/xml", "+xml"]
            .iter()
            .any(|ending| essence.ends_with(ending))
}

/// Valid UTF-8, but for a character that the end of what was read cuts in two.
fn is_utf8(start: &[u8]) -> bool {
    match std::str::from_utf8(start) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none() && start.len() == SNIFFED_BYTES,
    }
}

/// UTF-8 without the control characters that no text has.
fn looks_like_text(start: &[u8]) -> bool {
    let control =
        |&b: &u8| b < b' ' && !matches!(b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b) || b == 0x7f;
    is_utf8(start) && !start.iter().any(control)
}

/// A document that says it is in another encoding is believed: the media type
/// would take precedence over it (RFC 7303 §3, HTML).
fn declares_other_encoding(essence: &str, start: &[u8]) -> bool {
    let label = match essence {
        "text/html" => "charset=",
        "text/css" => "@charset",
        _ if essence.ends_with("xml") => "encoding=",
        _ => return false,
    };
    let head = &start[..start.len().min(DECLARATION_BYTES)];
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let Some((_, value)) = head.split_once(label) else {
        return false;
    };
    let value = value.trim_start_matches(['"', '\'', ' ']);
    !(value.starts_with("utf-8") || value.starts_with("utf8"))
}

/// Packets of 188 bytes, each of which starts with the byte 0x47.
fn is_mpeg_transport_stream(start: &[u8]) -> bool {
    start.len() > 188 && start[0] == 0x47 && start[188] == 0x47
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_first_bytes_give_the_media_type() {
        let stream = [[0x47; 188], [0x47; 188]].concat();
        let latin = b"caf\xe9";
        for (name, content, expected) in [
            (
                "index.html",
                &b"<!doctype html>"[..],
                "text/html; charset=utf-8",
            ),
            ("INDEX.HTM", b"", "text/html; charset=utf-8"),
            ("a.css", b"a{}", "text/css; charset=utf-8"),
            ("a.js", b"1", "text/javascript; charset=utf-8"),
            ("a.mjs", b"1", "text/javascript; charset=utf-8"),
            ("a.json", b"{}", "application/json; charset=utf-8"),
            ("a.svg", b"<svg/>", "image/svg+xml; charset=utf-8"),
            ("a.xml", b"<a/>", "text/xml; charset=utf-8"),
            ("a.txt", "µ".as_bytes(), "text/plain; charset=utf-8"),
            ("a.txt", latin, "text/plain"),
            ("a.csv", b"a,b", "text/csv; charset=utf-8"),
            ("a.png", b"\x89PNG", "image/png"),
            ("a.wasm", b"\0asm", "application/wasm"),
            ("a.tar.gz", b"\x1f\x8b", "application/gzip"),
            ("a.tgz", b"\x1f\x8b", "application/gzip"),
            // What a browser is to show and not to keep.
            ("a.md", b"# a", "text/plain; charset=utf-8"),
            ("a.toml", b"a = 1", "text/plain; charset=utf-8"),
            ("a.rs", b"fn a() {}", "text/plain; charset=utf-8"),
            ("a.sh", b"#!/bin/sh\n", "text/plain; charset=utf-8"),
            ("a.py", b"pass", "text/plain; charset=utf-8"),
            ("a.yaml", b"a: 1", "text/plain; charset=utf-8"),
            ("a.log", b"\x1b[1mbold", "text/plain; charset=utf-8"),
            ("a.java", b"class A {}", "text/plain; charset=utf-8"),
            ("a.ts", b"let a: number", "text/plain; charset=utf-8"),
            ("a.ts", &stream, "video/mp2t"),
            // No ending, or none that is known.
            ("README", b"hello", "text/plain; charset=utf-8"),
            ("Makefile", b"all:\n\tcc\n", "text/plain; charset=utf-8"),
            (".gitignore", b"/target", "text/plain; charset=utf-8"),
            ("a.unheard-of", b"plain", "text/plain; charset=utf-8"),
            ("empty", b"", "text/plain; charset=utf-8"),
            ("core", b"\x7fELF\x02\x01", "application/octet-stream"),
            ("latin", latin, "application/octet-stream"),
            ("a.bin", b"text", "application/octet-stream"),
            // A document that names its encoding.
            ("a.html", b"<meta charset=iso-8859-1>", "text/html"),
            (
                "a.html",
                b"<meta charset=\"UTF-8\">",
                "text/html; charset=utf-8",
            ),
            (
                "a.xml",
                b"<?xml version='1.0' encoding='ISO-8859-1'?>",
                "text/xml",
            ),
        ] {
            assert_eq!(of_content(Path::new(name), content), expected, "{name}");
        }
    }

    #[test]
    fn a_character_cut_by_the_end_of_what_is_read_is_still_utf8() {
        let mut start = vec![b'a'; SNIFFED_BYTES - 1];
        start.push(0xc3);
        assert!(is_utf8(&start));
        assert!(!is_utf8(b"a\xc3"));
    }
}
