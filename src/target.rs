//! The request-target (RFC 9112 §3.2): split at the first `?`, decoded once,
//! normalised. What is classified as a script and what is opened as a file come
//! from this one path, so the two can't disagree (contract C40 to C48).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// A request-target in origin-form, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Path and query as received; for absolute-form without scheme and
    /// authority (C20).
    pub raw: Bytes,
    pub path: UrlPath,
    /// The bytes after the first `?`, not decoded; empty if there is none (C9).
    pub query: Bytes,
    /// The authority of an absolute-form target.
    pub authority: Option<Bytes>,
}

/// A decoded, normalised absolute path: no empty and no dot segments.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct UrlPath {
    /// Decoded bytes. A segment that holds a `/` was sent with `%2F` in it and
    /// names nothing on disk (C45).
    pub segments: Vec<Vec<u8>>,
    /// The path ended in a slash (or in a dot segment).
    pub trailing_slash: bool,
}

/// Why a request-target is refused; each is a 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Neither origin-form nor absolute-form.
    Form,
    /// A raw `#`, a control character or a space.
    Byte,
    /// `%zz`, or cut off after `%`.
    Escape,
    /// `%00`.
    Nul,
    /// `..` above the root.
    AboveRoot,
}

impl Target {
    /// `raw` is the request-target of any method but CONNECT and `OPTIONS *`.
    pub fn parse(raw: &Bytes) -> Result<Self, TargetError> {
        if raw.iter().any(|&b| b <= b' ' || b == 0x7f || b == b'#') {
            return Err(TargetError::Byte);
        }
        let (authority, raw) = split_authority(raw)?;
        let (path, query) = match raw.iter().position(|&b| b == b'?') {
            Some(at) => (&raw[..at], raw.slice(at + 1..)),
            None => (&raw[..], Bytes::new()),
        };
        Ok(Self {
            path: UrlPath::parse(path)?,
            query,
            authority,
            raw,
        })
    }
}

/// absolute-form (RFC 9112 §3.2.2) is accepted from every client.
fn split_authority(raw: &Bytes) -> Result<(Option<Bytes>, Bytes), TargetError> {
    if raw.first() == Some(&b'/') {
        return Ok((None, raw.clone()));
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| {
            raw.len() >= scheme.len() && raw[..scheme.len()].eq_ignore_ascii_case(scheme)
        })
        .ok_or(TargetError::Form)?;
    let rest = raw.slice(scheme.len()..);
    let end = rest
        .iter()
        .position(|&b| b == b'/' || b == b'?')
        .unwrap_or(rest.len());
    if end == 0 {
        return Err(TargetError::Form);
    }
    let path = match rest.get(end) {
        Some(b'/') => rest.slice(end..),
        // `http://host?query`: the empty path is `/` (RFC 9110 §4.2.3).
        _ => Bytes::from([b"/", &rest[end..]].concat()),
    };
    Ok((Some(rest.slice(..end)), path))
}

impl UrlPath {
    /// Decodes and normalises an absolute path: split at raw `/`, decode each
    /// segment once, then drop empty and dot segments (C42, C43).
    pub fn parse(raw: &[u8]) -> Result<Self, TargetError> {
        if raw.first() != Some(&b'/') {
            return Err(TargetError::Form);
        }
        let mut decoded = Vec::new();
        for segment in raw[1..].split(|&b| b == b'/') {
            decoded.push(decode(segment)?);
        }
        Self::normalise(decoded)
    }

    /// Drops empty and dot segments; a path that climbs above its start is refused.
    pub fn normalise(parts: Vec<Vec<u8>>) -> Result<Self, TargetError> {
        let mut segments = Vec::with_capacity(parts.len());
        let mut trailing_slash = false;
        for part in parts {
            trailing_slash = matches!(&part[..], b"" | b"." | b"..");
            match &part[..] {
                b"" | b"." => {}
                b".." => {
                    segments.pop().ok_or(TargetError::AboveRoot)?;
                }
                _ => segments.push(part),
            }
        }
        Ok(Self {
            segments,
            trailing_slash,
        })
    }

    /// As whoever decodes it before it is split would take it: an escaped slash
    /// parts it, too. `None` if that is the same.
    pub fn split_decoded(&self) -> Option<Result<Self, TargetError>> {
        let has_slash = self.segments.iter().any(|segment| segment.contains(&b'/'));
        has_slash.then(|| {
            let parts = self.decoded();
            Self::normalise(
                parts
                    .split(|&b| b == b'/')
                    .skip(1)
                    .map(<[u8]>::to_vec)
                    .collect(),
            )
        })
    }

    /// Relative to the root of what is served; `None` if a segment can't be a
    /// file name.
    pub fn relative(&self) -> Option<PathBuf> {
        Self::join(&self.segments)
    }

    /// Segments as a relative file path.
    pub fn join(segments: &[Vec<u8>]) -> Option<PathBuf> {
        let mut path = PathBuf::new();
        for segment in segments {
            if segment.contains(&b'/') {
                return None;
            }
            path.push(Path::new(OsStr::from_bytes(segment)));
        }
        Some(path)
    }

    /// The path for a Location or a link: encoded again, `/` at the front, and
    /// never starting with `//`.
    pub fn encoded(&self) -> String {
        let mut text = String::new();
        for segment in &self.segments {
            text.push('/');
            text.push_str(&encode_segment(segment));
        }
        if self.trailing_slash || self.segments.is_empty() {
            text.push('/');
        }
        text
    }

    /// Decoded, as the meta-variables carry it.
    pub fn decoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in &self.segments {
            bytes.push(b'/');
            bytes.extend_from_slice(segment);
        }
        if self.trailing_slash || self.segments.is_empty() {
            bytes.push(b'/');
        }
        bytes
    }
}

/// What may stand unescaped in a path segment besides letters and digits
/// (RFC 3986 §3.3), less what a shell or HTML would trip over.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b'@')
    .remove(b':');

/// Encodes one path segment, whatever bytes it holds.
pub fn encode_segment(segment: &[u8]) -> String {
    percent_encode(segment, SEGMENT).to_string()
}

/// Percent-decodes once. `+` stays a plus sign (C46).
pub fn decode(text: &[u8]) -> Result<Vec<u8>, TargetError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = rest.next().copied().map(char::from);
            digit
                .and_then(|c| c.to_digit(16))
                .ok_or(TargetError::Escape)
        };
        let value = digit()? * 16 + digit()?;
        match u8::try_from(value).expect("two hexadecimal digits are a byte") {
            0 => return Err(TargetError::Nul),
            byte => bytes.push(byte),
        }
    }
    Ok(bytes)
}

/// A file's name without what editors and patch tools append where they leave an
/// older version beside it.
pub fn without_backup_marks(name: &[u8]) -> &[u8] {
    const MARKS: [&[u8]; 5] = [b"~", b".bak", b".orig", b".swp", b".tmp"];
    if let [b'#', inner @ .., b'#'] = name {
        return inner;
    }
    let mut marks = MARKS.iter();
    marks
        .find_map(|mark| name.strip_suffix(*mark))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(raw: &str) -> Result<String, TargetError> {
        let path = UrlPath::parse(raw.as_bytes())?;
        Ok(String::from_utf8_lossy(&path.decoded()).into_owned())
    }

    #[test]
    fn paths_are_decoded_once_and_normalised_c42_c43_c46() {
        for (raw, expected) in [
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a/b/", Ok("/a/b/")),
            ("//cgi-bin//x", Ok("/cgi-bin/x")),
            ("/a/../cgi-bin/x", Ok("/cgi-bin/x")),
            ("/%63gi-bin/x", Ok("/cgi-bin/x")),
            ("/a/.", Ok("/a/")),
            ("/a/b/..", Ok("/a/")),
            ("/%252e%252e/x", Ok("/%2e%2e/x")),
            ("/a+b;c\\d", Ok("/a+b;c\\d")),
            ("/%2e%2e/x", Err(TargetError::AboveRoot)),
            ("/..", Err(TargetError::AboveRoot)),
            ("/a/%2E%2e/../x", Err(TargetError::AboveRoot)),
            ("/%zz", Err(TargetError::Escape)),
            ("/%4", Err(TargetError::Escape)),
            ("/%", Err(TargetError::Escape)),
            ("/a%00b", Err(TargetError::Nul)),
            ("cgi-bin/x", Err(TargetError::Form)),
            ("", Err(TargetError::Form)),
        ] {
            assert_eq!(path(raw), expected.map(str::to_owned), "{raw}");
        }
    }

    #[test]
    fn an_encoded_slash_is_no_separator_and_names_no_file_c45() {
        let path = UrlPath::parse(b"/cgi-bin%2fx").unwrap();
        assert_eq!(path.segments, [b"cgi-bin/x".to_vec()]);
        assert_eq!(path.relative(), None);
    }

    #[test]
    fn the_query_starts_at_the_first_raw_question_mark_c40() {
        let target = |raw: &'static str| Target::parse(&Bytes::from_static(raw.as_bytes()));
        let both = target("/a?b?c=%zz").unwrap();
        assert_eq!(&both.query[..], b"b?c=%zz");
        let encoded = target("/x.sh%3fa=1").unwrap();
        assert_eq!(encoded.path.segments, [b"x.sh?a=1".to_vec()]);
        assert!(encoded.query.is_empty());
        assert_eq!(target("/a#b"), Err(TargetError::Byte));
        assert_eq!(target("/a b"), Err(TargetError::Byte));
    }

    #[test]
    fn absolute_form_gives_its_authority_and_its_path_c20() {
        let target = |raw: &'static str| Target::parse(&Bytes::from_static(raw.as_bytes()));
        let with_path = target("http://example.org:81/a?b").unwrap();
        assert_eq!(with_path.authority.as_deref(), Some(&b"example.org:81"[..]));
        assert_eq!(&with_path.raw[..], b"/a?b");
        assert_eq!(&target("HTTP://h?q").unwrap().raw[..], b"/?q");
        assert_eq!(target("http:///x"), Err(TargetError::Form));
        assert_eq!(target("ftp://h/x"), Err(TargetError::Form));
    }

    proptest! {
        #[test]
        fn no_target_leads_out_of_the_root(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = b"/".to_vec();
            bytes.extend(raw);
            if let Ok(path) = UrlPath::parse(&bytes)
                && let Some(relative) = path.relative()
            {
                prop_assert!(relative.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }

        #[test]
        fn an_encoded_path_parses_back_to_itself(parts in proptest::collection::vec(
            proptest::collection::vec(1u8..=255, 1..8), 0..5), trailing_slash: bool) {
            prop_assume!(parts.iter().all(|p| p != b"." && p != b".." ));
            let trailing_slash = trailing_slash || parts.is_empty();
            let path = UrlPath { segments: parts, trailing_slash };
            prop_assert_eq!(UrlPath::parse(path.encoded().as_bytes()).unwrap(), path);
        }
    }
}
