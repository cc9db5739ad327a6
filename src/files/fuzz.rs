//! For the fuzz targets (fuzz/): what must hold of the answer to a Range field,
//! whatever a client sends.

use http::HeaderMap;
use http::header::{HeaderValue, RANGE};

use super::range::{Selection, Span, select};

/// What is selected lies in the representation and is not more than it. The
/// first eight bytes are its length.
pub fn range(data: &[u8]) {
    let Some((length, value)) = data.split_first_chunk() else {
        return;
    };
    let length = u64::from_le_bytes(*length);
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    let plain = plain(value.as_bytes(), length);
    let selection = select(&HeaderMap::from_iter([(RANGE, value)]), length);
    let spans = match &selection {
        Selection::Whole | Selection::Unsatisfiable => &[],
        Selection::One(span) => std::slice::from_ref(span),
        Selection::Many(spans) => spans.as_slice(),
    };
    let mut total: u64 = 0;
    for span in spans {
        assert!(span.length > 0);
        let end = span.offset.checked_add(span.length);
        assert!(end.is_some_and(|end| end <= length), "{span:?} of {length}");
        total = total.saturating_add(span.length);
    }
    assert!(total <= length, "{selection:?} of {length}");
    if let Some(plain) = plain {
        assert_eq!(selection, Selection::One(plain));
    }
}

/// `bytes=FIRST-LAST` with both in the representation, by another way.
fn plain(value: &[u8], length: u64) -> Option<Span> {
    let (first, last) = std::str::from_utf8(value)
        .ok()?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < length).then(|| Span {
        offset: first,
        length: last - first + 1,
    })
}
