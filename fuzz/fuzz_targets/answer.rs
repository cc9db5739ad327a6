//! What an application answers by HTTP: the same heads and the same content
//! however the bytes arrive, no field that holds the end of a line, and no more
//! content than announced.
#![no_main]

use http::Method;
use serve_here::gateway::http::{Arrived, Taken};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The first byte says in what pieces the rest comes.
    let Some((&step, wire)) = data.split_first() else {
        return;
    };
    let step = usize::from(step % 64) + 1;
    let whole = read(wire, usize::MAX);
    let pieces = read(wire, step);
    assert_eq!(whole, pieces, "in pieces of {step}");
});

/// What became of it, as text, so that two can be compared.
fn read(wire: &[u8], step: usize) -> String {
    let mut arrived = Arrived::default();
    let mut pieces = wire.chunks(step.min(wire.len().max(1)));
    let mut said = String::new();
    loop {
        let head = match arrived.next_head() {
            Ok(Some(head)) => head,
            Ok(None) => match pieces.next() {
                Some(piece) => {
                    arrived.push(piece);
                    continue;
                }
                None => return said + "incomplete",
            },
            Err(_what) => return said + "invalid",
        };
        for (name, value) in &head.headers {
            let bad = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
            assert!(!value.as_bytes().iter().any(bad), "{name}: {value:?}");
        }
        said += &format!("{:?} {:?} {:?} ", head.status, head.reason, head.headers);
        if head.status.is_informational() {
            continue;
        }
        let Ok(mut content) = head.content(&Method::GET) else {
            return said + "unclear";
        };
        let length = content.length();
        let mut body = Vec::new();
        loop {
            match content.take(&mut arrived) {
                Ok(Taken::Data(data)) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(Taken::End) => break,
                Ok(Taken::More) => match pieces.next() {
                    Some(piece) => arrived.push(piece),
                    None => return format!("{said}{body:?} cut off"),
                },
                Err(_what) => return said + "malformed",
            }
        }
        assert!(length.is_none_or(|length| length == body.len() as u64));
        said += &format!("{body:?} ");
    }
}
