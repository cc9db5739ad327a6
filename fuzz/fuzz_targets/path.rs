//! A request-target: what is decoded and normalised names something below the
//! root, and means the same when it is written out again.
#![no_main]

use std::path::Component;

use bytes::Bytes;
use serve_here::target::{Target, UrlPath};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let raw = Bytes::copy_from_slice(data);
    let Ok(target) = Target::parse(&raw) else {
        return;
    };
    let path = &target.path;
    for segment in &path.segments {
        assert!(!matches!(&segment[..], b"" | b"." | b".."), "{path:?}");
        assert!(!segment.contains(&0), "{path:?}");
    }
    if let Some(relative) = path.relative() {
        let normal = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        assert!(normal, "{relative:?} leaves its folder");
        assert_eq!(relative.components().count(), path.segments.len());
    }
    let encoded = path.encoded();
    assert!(
        encoded.starts_with('/') && !encoded.starts_with("//"),
        "{encoded}"
    );
    assert!(
        encoded.bytes().all(|byte| byte.is_ascii_graphic()),
        "{encoded}"
    );
    let again = UrlPath::parse(encoded.as_bytes()).expect("it was made from a path");
    assert_eq!(again.segments, path.segments);
    // The root has a slash either way.
    assert!(again.trailing_slash == path.trailing_slash || path.segments.is_empty());
    let kept = [&target.query[..], b"?"].concat();
    assert!(
        kept.len() <= raw.len() + 1,
        "a query longer than the target"
    );
});
