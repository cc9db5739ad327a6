//! The wire of the uwsgi protocol: a packet of variables (C178). The content
//! follows as it is; the answer begins with a status line or is that of a CGI
//! script, up to the end of the connection (C180).

use bytes::BytesMut;

use super::variables::Variable;

/// Of a packet's variables, in bytes.
pub const MAX_BLOCK_BYTES: usize = u16::MAX as usize;
/// What uWSGI takes if it isn't told otherwise (`--buffer-size`).
pub const USUAL_BLOCK_BYTES: usize = 4096;

/// Without these an application may fail (C181).
const ALWAYS: [&str; 4] = ["CONTENT_LENGTH", "CONTENT_TYPE", "PATH_INFO", "SCRIPT_NAME"];

/// The packet; `None`: the variables don't fit.
pub fn head(variables: &[Variable], modifiers: (u8, u8)) -> Option<BytesMut> {
    let mut block = Vec::with_capacity(4 << 10);
    for (name, value) in variables {
        pair(&mut block, name.as_bytes(), value)?;
    }
    for name in ALWAYS {
        if !variables.iter().any(|(other, _)| other == name) {
            pair(&mut block, name.as_bytes(), b"")?;
        }
    }
    let length = u16::try_from(block.len()).ok()?.to_le_bytes();
    let mut out = BytesMut::with_capacity(block.len() + 4);
    out.extend_from_slice(&[modifiers.0, length[0], length[1], modifiers.1]);
    out.extend_from_slice(&block);
    Some(out)
}

fn pair(block: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Option<()> {
    for part in [name, value] {
        let length = u16::try_from(part.len()).ok()?;
        block.extend_from_slice(&length.to_le_bytes());
        block.extend_from_slice(part);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_modifiers_and_sizes_in_little_endian_c178() {
        let variables = [
            ("CONTENT_LENGTH".into(), b"".to_vec()),
            ("CONTENT_TYPE".into(), b"".to_vec()),
            ("PATH_INFO".into(), vec![b'/'; 300]),
        ];
        let packet = head(&variables, (5, 1)).unwrap();
        let block = 3 * 4 + 14 + 12 + 9 + 300 + 4 + 11;
        assert_eq!(packet.len(), 4 + block);
        assert_eq!(packet[..4], [5, 106, 1, 1]);
        assert_eq!(&packet[4..20], b"\x0e\0CONTENT_LENGTH");
        let path = &packet[4 + 18 + 16..];
        assert_eq!(&path[..13], b"\x09\0PATH_INFO\x2c\x01");
        assert!(packet.ends_with(b"\x0b\0SCRIPT_NAME\0\0"));
    }

    #[test]
    fn what_does_not_fit_is_no_packet_c178() {
        let of = |length| [("HTTP_COOKIE".into(), vec![b'x'; length])];
        let others = head(&[], (0, 0)).unwrap().len() - 4;
        let most = MAX_BLOCK_BYTES - others - 15;
        assert!(head(&of(most), (0, 0)).is_some());
        assert!(head(&of(most + 1), (0, 0)).is_none());
        assert!(head(&of(70_000), (0, 0)).is_none());
    }
}
