//! Validators and conditional requests (RFC 9110 §8.8 and §13).
//!
//! # Which entity tag a file has, and why
//!
//! A file's tag is made of its inode, its length and the times of its last
//! change of content (mtime) and of anything (ctime). The tag is **strong**:
//! the bytes are sent as they lie on disk, and whatever changes them changes
//! ctime, which no program can set back.
//!
//! That holds but for the grain of the clock: two edits within one tick (4 ms on
//! many Linux systems, 2 s on FAT) leave the same times. So for a file changed
//! less than two seconds ago the tag also holds a hash of the content, and is
//! strong again. Where the file is too long to be hashed for every request, its
//! tag is **weak** until the two seconds have passed (RFC 9110 §8.8.1).
//!
//! A content coding is a representation of its own: its name stands at the end
//! of the tag.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{
    HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE,
};

use super::negotiation::Coding;

/// The coarsest clock of a file system in use.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);
/// The longest file whose content becomes part of its tag.
const MAX_HASHED_BYTES: u64 = 1 << 20;
/// 9999-12-31T23:59:59Z, the last moment an HTTP-date can say.
const LAST_HTTP_DATE: u64 = 253_402_300_799;

/// An entity tag (RFC 9110 §8.8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntityTag {
    weak: bool,
    /// Between the quotes.
    opaque: Vec<u8>,
}

/// What a representation is recognised by.
#[derive(Clone, Debug)]
pub(super) struct Validators {
    pub(super) tag: EntityTag,
    /// In whole seconds, as an HTTP-date says it. A representation that is made
    /// for the request has none.
    pub(super) modified: Option<SystemTime>,
    /// The second named by `modified` is over, so the content can't change
    /// again within it (RFC 9110 §8.8.2.2).
    settled: bool,
}

/// What the preconditions of a GET or HEAD come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Absent,
    True,
    False,
}

impl From<bool> for Condition {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Goes through the preconditions in the order of RFC 9110 §13.2.2; If-Range,
/// the last of them, is asked by itself.
pub(super) fn evaluate(headers: &HeaderMap, validators: &Validators) -> Verdict {
    let unchanged = match if_match(headers, validators) {
        Condition::Absent => if_unmodified_since(headers, validators),
        decided => decided,
    };
    if unchanged == Condition::False {
        return Verdict::Failed;
    }
    let changed = match if_none_match(headers, validators) {
        Condition::Absent => if_modified_since(headers, validators),
        decided => decided,
    };
    if changed == Condition::False {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// RFC 9110 §13.1.1: strong comparison.
fn if_match(headers: &HeaderMap, validators: &Validators) -> Condition {
    match TagList::of(headers, &IF_MATCH) {
        TagList::Absent => Condition::Absent,
        TagList::Any => Condition::True,
        TagList::Tags(tags) => tags
            .iter()
            .any(|tag| tag.matches_strongly(&validators.tag))
            .into(),
    }
}

/// RFC 9110 §13.1.4.
fn if_unmodified_since(headers: &HeaderMap, validators: &Validators) -> Condition {
    match (date(headers, &IF_UNMODIFIED_SINCE), validators.modified) {
        (Some(since), Some(modified)) => (modified <= since).into(),
        _ => Condition::Absent,
    }
}

/// RFC 9110 §13.1.2: weak comparison.
fn if_none_match(headers: &HeaderMap, validators: &Validators) -> Condition {
    match TagList::of(headers, &IF_NONE_MATCH) {
        TagList::Absent => Condition::Absent,
        TagList::Any => Condition::False,
        TagList::Tags(tags) => {
            let known = tags.iter().any(|tag| tag.matches_weakly(&validators.tag));
            (!known).into()
        }
    }
}

/// RFC 9110 §13.1.3.
fn if_modified_since(headers: &HeaderMap, validators: &Validators) -> Condition {
    match (date(headers, &IF_MODIFIED_SINCE), validators.modified) {
        (Some(since), Some(modified)) => (modified > since).into(),
        _ => Condition::Absent,
    }
}

/// Whether a Range is to be obeyed (RFC 9110 §13.1.5): there is no If-Range, or
/// its validator, compared strongly, is the current one.
pub(super) fn if_range_allows(headers: &HeaderMap, validators: &Validators) -> bool {
    let Some(value) = headers.get(IF_RANGE) else {
        return true;
    };
    match EntityTag::parse(value.as_bytes()) {
        Some((tag, [])) => tag.matches_strongly(&validators.tag),
        Some(_) => false,
        None => {
            let same = parse_date(value).is_some_and(|wanted| validators.modified == Some(wanted));
            same && validators.settled
        }
    }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    parse_date(headers.get(name)?)
}

/// `None` for what is no HTTP-date; such a field is ignored.
fn parse_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

impl Validators {
    /// Of a file, for a request with these header fields.
    pub(super) fn of_file(
        file: &File,
        metadata: &Metadata,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Self {
        let modified = whole_seconds(metadata.mtime(), now);
        Self {
            tag: EntityTag::of_file(file, metadata, headers, now),
            modified,
            settled: modified.is_some_and(|at| {
                now.duration_since(at)
                    .is_ok_and(|age| age >= Duration::from_secs(1))
            }),
        }
    }

    /// Of the same content in a coding: another representation, another tag
    /// (RFC 9110 §8.8.3.3). The mark is none that a tag has otherwise.
    pub(super) fn coded(mut self, coding: Coding) -> Self {
        self.tag.opaque.push(b'+');
        self.tag.opaque.extend_from_slice(coding.token().as_bytes());
        self
    }

    /// Of content made for this request. Weak: the same entries may be written
    /// in another way by the next version of this program.
    pub(super) fn of_content(content: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(content);
        Self {
            tag: EntityTag {
                weak: true,
                opaque: format!("{:x}", hasher.finish()).into_bytes(),
            },
            modified: None,
            settled: false,
        }
    }
}

/// The time for Last-Modified. Never in the future (RFC 9110 §8.8.2.1); none
/// if an HTTP-date can't say it.
fn whole_seconds(seconds: i64, now: SystemTime) -> Option<SystemTime> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let seconds = u64::try_from(seconds).ok()?.min(now).min(LAST_HTTP_DATE);
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

impl EntityTag {
    fn of_file(file: &File, metadata: &Metadata, headers: &HeaderMap, now: SystemTime) -> Self {
        let mut opaque = format!(
            "{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        )
        .into_bytes();
        let young = is_young(metadata, now);
        // A client that was given the tag with the hash asks with it later on,
        // when the file is no longer young.
        if young || names_longer_tag(headers, &opaque) {
            if let Some(hash) = hash(file, metadata.len()) {
                opaque.extend_from_slice(format!("-{hash:x}").as_bytes());
            } else {
                return Self {
                    weak: young,
                    opaque,
                };
            }
        }
        Self {
            weak: false,
            opaque,
        }
    }

    /// The tag at the start of `text`, and what follows it.
    fn parse(text: &[u8]) -> Option<(Self, &[u8])> {
        let (weak, rest) = match text.strip_prefix(b"W/") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let rest = rest.strip_prefix(b"\"")?;
        let end = rest
            .iter()
            .position(|&b| !matches!(b, 0x21 | 0x23..=0x7e | 0x80..=0xff))?;
        let (opaque, rest) = rest.split_at(end);
        let opaque = opaque.to_owned();
        Some((Self { weak, opaque }, rest.strip_prefix(b"\"")?))
    }

    /// RFC 9110 §8.8.3.2.
    fn matches_strongly(&self, other: &Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// RFC 9110 §8.8.3.2.
    fn matches_weakly(&self, other: &Self) -> bool {
        self.opaque == other.opaque
    }

    pub(super) fn to_header(&self) -> HeaderValue {
        let mark = if self.weak { &b"W/\""[..] } else { b"\"" };
        HeaderValue::from_bytes(&[mark, &self.opaque, b"\""].concat())
            .expect("our own tags are visible characters without quotes")
    }
}

/// Whether the file may change again without its times showing it. A clock that
/// was set back makes every file young, which is the safe side.
fn is_young(metadata: &Metadata, now: SystemTime) -> bool {
    let Ok(seconds) = u64::try_from(metadata.ctime()) else {
        return false;
    };
    let changed = UNIX_EPOCH + Duration::from_secs(seconds);
    // One more second for the part that was cut off.
    now.duration_since(changed)
        .map_or(true, |age| age <= CLOCK_GRAIN + Duration::from_secs(1))
}

/// Whether the request names `opaque` with a hash after it.
fn names_longer_tag(headers: &HeaderMap, opaque: &[u8]) -> bool {
    let start = [b"\"", opaque, b"-"].concat();
    [IF_NONE_MATCH, IF_MATCH, IF_RANGE]
        .iter()
        .flat_map(|name| headers.get_all(name))
        .any(|value| {
            let mut places = value.as_bytes().windows(start.len());
            places.any(|place| place == start)
        })
}

/// `None` if the file is too long, or can't be read to its end.
fn hash(file: &File, length: u64) -> Option<u64> {
    if length > MAX_HASHED_BYTES {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    let mut buffer = [0; 16 << 10];
    let mut offset = 0;
    while offset < length {
        let read = file.read_at(&mut buffer, offset).ok()?;
        if read == 0 {
            return None;
        }
        hasher.write(&buffer[..read]);
        offset += read as u64;
    }
    Some(hasher.finish())
}

/// The value of If-Match or If-None-Match.
enum TagList {
    Absent,
    /// `*`
    Any,
    /// As far as the list could be read.
    Tags(Vec<EntityTag>),
}

impl TagList {
    fn of(headers: &HeaderMap, name: &HeaderName) -> Self {
        let mut tags = Vec::new();
        let mut present = false;
        for value in headers.get_all(name) {
            present = true;
            if value.as_bytes().trim_ascii() == b"*" {
                return Self::Any;
            }
            parse_list(value.as_bytes(), &mut tags);
        }
        if present {
            Self::Tags(tags)
        } else {
            Self::Absent
        }
    }
}

/// Empty elements are skipped (RFC 9110 §5.6.1.2); reading ends where the list
/// is no list any more.
fn parse_list(mut text: &[u8], tags: &mut Vec<EntityTag>) {
    loop {
        let start = text
            .iter()
            .position(|b| !matches!(b, b' ' | b'\t' | b','))
            .unwrap_or(text.len());
        let Some((tag, rest)) = EntityTag::parse(&text[start..]) else {
            return;
        };
        tags.push(tag);
        let rest = rest.trim_ascii_start();
        if !rest.is_empty() && rest[0] != b',' {
            return;
        }
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn validators(weak: bool) -> Validators {
        Validators {
            tag: EntityTag {
                weak,
                opaque: b"a".to_vec(),
            },
            modified: httpdate::parse_http_date(MODIFIED).ok(),
            settled: true,
        }
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn preconditions_are_judged_in_the_order_of_the_rfc() {
        use Verdict::{Failed, NotModified, Proceed};
        for (fields, expected) in [
            (&[][..], Proceed),
            (&[(IF_MATCH, "\"a\"")], Proceed),
            (&[(IF_MATCH, "*")], Proceed),
            (&[(IF_MATCH, "\"b\", \"a\"")], Proceed),
            (&[(IF_MATCH, "\"b\"")], Failed),
            (&[(IF_MATCH, "W/\"a\"")], Failed),
            (&[(IF_MATCH, "a")], Failed),
            (&[(IF_UNMODIFIED_SINCE, MODIFIED)], Proceed),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Failed),
            (&[(IF_UNMODIFIED_SINCE, "yesterday")], Proceed),
            (
                &[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)],
                Proceed,
            ),
            (&[(IF_NONE_MATCH, "\"a\"")], NotModified),
            (&[(IF_NONE_MATCH, "W/\"a\"")], NotModified),
            (&[(IF_NONE_MATCH, "*")], NotModified),
            (&[(IF_NONE_MATCH, ", \"b,c\" ,W/\"a\"")], NotModified),
            (
                &[(IF_NONE_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")],
                NotModified,
            ),
            (&[(IF_NONE_MATCH, "\"b\"")], Proceed),
            (&[(IF_NONE_MATCH, "\"a")], Proceed),
            (&[(IF_NONE_MATCH, "\"b\" \"a\"")], Proceed),
            (&[(IF_MODIFIED_SINCE, MODIFIED)], NotModified),
            (&[(IF_MODIFIED_SINCE, AFTER)], NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Proceed),
            (
                &[(IF_MODIFIED_SINCE, "Sunday, 06-Nov-94 08:49:37 GMT")],
                NotModified,
            ),
            (
                &[(IF_MODIFIED_SINCE, "Sun Nov  6 08:49:37 1994")],
                NotModified,
            ),
            (&[(IF_MODIFIED_SINCE, "0")], Proceed),
            (
                &[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, AFTER)],
                Proceed,
            ),
            (&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")], Failed),
            (
                &[(IF_MATCH, "\"a\""), (IF_NONE_MATCH, "\"a\"")],
                NotModified,
            ),
        ] {
            assert_eq!(
                evaluate(&headers(fields), &validators(false)),
                expected,
                "{fields:?}"
            );
        }
    }

    #[test]
    fn a_weak_tag_serves_if_none_match_only() {
        let weak = validators(true);
        let asked = |name| headers(&[(name, "W/\"a\"")]);
        assert_eq!(evaluate(&asked(IF_NONE_MATCH), &weak), Verdict::NotModified);
        assert_eq!(evaluate(&asked(IF_MATCH), &weak), Verdict::Failed);
        assert!(!if_range_allows(&asked(IF_RANGE), &weak));
    }

    #[test]
    fn if_range_is_compared_strongly_and_exactly() {
        for (value, expected) in [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            ("\"a\", \"b\"", false),
            (MODIFIED, true),
            (BEFORE, false),
            (AFTER, false),
            ("*", false),
            ("", false),
        ] {
            let headers = headers(&[(IF_RANGE, value)]);
            assert_eq!(
                if_range_allows(&headers, &validators(false)),
                expected,
                "{value}"
            );
        }
        assert!(if_range_allows(&HeaderMap::new(), &validators(true)));
    }

    #[test]
    fn a_date_within_the_second_that_still_runs_is_no_strong_validator() {
        let running = Validators {
            settled: false,
            ..validators(false)
        };
        assert!(!if_range_allows(
            &headers(&[(IF_RANGE, MODIFIED)]),
            &running
        ));
    }

    #[test]
    fn the_tag_of_a_young_file_stays_good_when_the_file_is_older() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one").unwrap();
        let now = SystemTime::now();
        let later = now + Duration::from_secs(60);
        let at = |file: &File, headers: &HeaderMap, now| {
            Validators::of_file(file, &file.metadata().unwrap(), headers, now)
        };
        let young = at(&file, &HeaderMap::new(), now).tag;
        let old = at(&file, &HeaderMap::new(), later).tag;
        assert!(!young.weak && !old.weak);
        for tag in [young, old] {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, tag.to_header());
            let verdict = evaluate(&headers, &at(&file, &headers, later));
            assert_eq!(verdict, Verdict::NotModified);
        }
        let long = file.set_len(MAX_HASHED_BYTES + 1).map(|()| &file).unwrap();
        assert!(at(long, &HeaderMap::new(), now).tag.weak);
        assert!(!at(long, &HeaderMap::new(), later).tag.weak);
    }

    #[test]
    fn times_that_no_http_date_can_say_give_none() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(whole_seconds(-1, now), None);
        assert_eq!(whole_seconds(0, now), Some(UNIX_EPOCH));
        assert_eq!(whole_seconds(i64::MAX, now), Some(now));
    }

    proptest! {
        #[test]
        fn no_list_of_tags_panics_and_none_matches_by_accident(
            value in proptest::collection::vec(any::<u8>().prop_filter("field bytes",
                |b| *b == b'\t' || *b >= b' ' && *b != 0x7f), 0..40),
        ) {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_bytes(&value).unwrap());
            headers.insert(IF_RANGE, HeaderValue::from_bytes(&value).unwrap());
            let verdict = evaluate(&headers, &validators(false));
            let possible = value.trim_ascii() == b"*" || value.windows(3).any(|w| w == b"\"a\"");
            prop_assert!(possible || verdict == Verdict::Proceed);
            if_range_allows(&headers, &validators(false));
        }
    }
}
