//! The output of a script: the same header block however it arrives, nothing in
//! it that would end a line of the response, and each byte behind it kept.
#![no_main]

use bytes::Bytes;
use http::HeaderMap;
use serve_here::gateway::reply::{Block, HeadReader, Kind};
use serve_here::gateway::unchunk::Unchunk;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The first byte says in what pieces the rest comes.
    let Some((&step, output)) = data.split_first() else {
        return;
    };
    let step = usize::from(step % 64) + 1;
    let whole = read(output, usize::MAX);
    let pieces = read(output, step);
    assert_eq!(whole, pieces, "in pieces of {step}");
});

/// What became of the output, as text, so that two can be compared.
fn read(output: &[u8], step: usize) -> String {
    let mut reader = HeadReader::new();
    let mut said = Vec::new();
    let mut arrived = 0;
    let reply = loop {
        match reader.next_block() {
            Ok(Some(Block::Interim(interim))) => {
                assert!(interim.status().is_informational());
                check_fields(interim.headers());
                said.push(format!("{:?} {:?}", interim.status(), interim.headers()));
            }
            Ok(Some(Block::Dropped)) => said.push("dropped".into()),
            Ok(Some(Block::Final(reply))) => break reply,
            Ok(None) if arrived == output.len() => {
                assert!(!reader.end().message.is_empty());
                return format!("{said:?} incomplete");
            }
            Ok(None) => {
                let piece = &output[arrived..];
                let piece = &piece[..step.min(piece.len())];
                arrived += piece.len();
                reader.push(piece);
            }
            // Which line shows first that it is too long depends on the pieces.
            Err(invalid) => {
                assert!(!invalid.message.contains(['\n', '\r', '\0']), "{invalid:?}");
                return format!("{said:?} invalid");
            }
        }
    };
    check_fields(&reply.headers);
    for name in [
        "content-length",
        "transfer-encoding",
        "connection",
        "status",
    ] {
        assert!(
            !reply.headers.contains_key(name),
            "{name} goes to the client"
        );
    }
    assert!(!reply.status.is_informational(), "{}", reply.status);
    if let Kind::LocalRedirect(path) = &reply.kind {
        assert!(path.starts_with(b"/"), "{path:?}");
    }
    if let Some(reason) = &reply.reason {
        assert!(!reason.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
    }
    let mut rest = reader.into_rest().to_vec();
    rest.extend_from_slice(&output[arrived..]);
    assert!(
        output.ends_with(&rest),
        "the body is not the end of the output"
    );
    let content = reply.chunked.then(|| unchunked(&rest, step));
    format!("{said:?} {reply:?} {rest:?} {content:?}")
}

fn check_fields(fields: &HeaderMap) {
    for (name, value) in fields {
        let bad = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
        assert!(!value.as_bytes().iter().any(bad), "{name}: {value:?}");
    }
}

fn unchunked(body: &[u8], step: usize) -> Option<(Vec<u8>, bool)> {
    let mut unchunk = Unchunk::new();
    let mut content = Vec::new();
    for piece in body.chunks(step) {
        let parts = unchunk.push(Bytes::copy_from_slice(piece)).ok()?;
        assert!(parts.iter().all(|part| !part.is_empty()));
        content.extend(parts.concat());
    }
    Some((content, unchunk.is_done()))
}
