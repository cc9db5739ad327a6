//! The wire of SCGI: the head of a request as one netstring (C175). The content
//! follows as it is; the answer is that of a CGI script, up to the end of the
//! connection (C176).

use bytes::BytesMut;

use super::variables::Variable;

/// What our own workers are told before the netstring ends, and behind a request
/// whose answer nobody wants any more; the head of `src/workers/wsgi.py` has both.
const KEEP: &[u8] = b"SERVE_HERE_KEEP";
pub const GIVEN_UP: &[u8] = b"\n";

/// `length` is that of the content, in bytes. `keep`: our own worker may keep the
/// connection.
pub fn head(variables: &[Variable], length: u64, keep: bool) -> BytesMut {
    let mut block = Vec::with_capacity(4 << 10);
    // First, and always there: strict readers insist (C177).
    pair(&mut block, b"CONTENT_LENGTH", length.to_string().as_bytes());
    pair(&mut block, b"SCGI", b"1");
    for (name, value) in variables {
        if name != "CONTENT_LENGTH" {
            pair(&mut block, name.as_bytes(), value);
        }
    }
    // WSGI applications read it without asking whether it is there.
    if !variables.iter().any(|(name, _)| name == "PATH_INFO") {
        pair(&mut block, b"PATH_INFO", b"");
    }
    if keep {
        pair(&mut block, KEEP, b"1");
    }
    let mut out = BytesMut::with_capacity(block.len() + 8);
    out.extend_from_slice(block.len().to_string().as_bytes());
    out.extend_from_slice(b":");
    out.extend_from_slice(&block);
    out.extend_from_slice(b",");
    out
}

/// What holds a NUL can't be passed; no request has one.
fn pair(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if value.contains(&0) {
        return;
    }
    block.extend_from_slice(name);
    block.push(0);
    block.extend_from_slice(value);
    block.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_netstring_that_starts_with_the_length_c175() {
        let variables = [
            ("REQUEST_METHOD".into(), b"POST".to_vec()),
            ("CONTENT_LENGTH".into(), b"27".to_vec()),
            ("QUERY_STRING".into(), Vec::new()),
            ("ODD".into(), b"a\0b".to_vec()),
        ];
        assert_eq!(
            &head(&variables, 27, false)[..],
            b"70:CONTENT_LENGTH\x0027\0SCGI\x001\0REQUEST_METHOD\0POST\0QUERY_STRING\0\0PATH_INFO\0\0,"
        );
        assert_eq!(
            &head(&[], 0, false)[..],
            b"35:CONTENT_LENGTH\x000\0SCGI\x001\0PATH_INFO\0\0,"
        );
    }
}
