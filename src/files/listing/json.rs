//! A directory as JSON.

use std::io::Write;

use super::{Facts, push_href, push_number};
use crate::files::civil::Civil;

/// What comes before the entries of the folder at `url`, decoded.
pub(super) fn head(url: &[u8]) -> Vec<u8> {
    let mut text = b"{\"path\":".to_vec();
    push_string(&mut text, url);
    text.extend_from_slice(b",\"entries\":[");
    text
}

pub(super) const END: &[u8] = b"]}\n";

/// `base` is the folder's URL path, encoded.
pub(super) fn push_entry(text: &mut Vec<u8>, base: &str, name: &[u8], facts: &Facts) {
    // What is not UTF-8 in the name is replaced; `href` has all of it.
    text.extend_from_slice(b"{\"name\":");
    push_string(text, name);
    text.extend_from_slice(b",\"href\":\"");
    text.extend_from_slice(base.as_bytes());
    push_href(text, name, facts.is_directory);
    if facts.is_directory {
        text.extend_from_slice(b"\",\"type\":\"directory\",\"size\":null");
    } else {
        text.extend_from_slice(b"\",\"type\":\"file\",\"size\":");
        push_number(text, facts.size);
    }
    text.extend_from_slice(b",\"modified\":\"");
    Civil::from_unix(facts.modified).push_moment(text);
    text.extend_from_slice(b"\"}");
}

fn push_string(text: &mut Vec<u8>, value: &[u8]) {
    let value = String::from_utf8_lossy(value);
    serde_json::to_writer(text.by_ref(), &value).expect("a string is JSON, memory takes all");
}
