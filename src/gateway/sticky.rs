//! Clients that stay with one address of an application: `sticky=cookie` and
//! `sticky=client`. Owns the cookie and the choice that it, or the client's
//! address, stands for; whether that address can be had, `backend` knows.

use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap, HeaderValue};

use super::variables::Facts;

const COOKIE_NAME: &str = "serve-here-host";

/// What a client stays with an address by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// Our own cookie, for this path and what lies below it.
    Cookie(String),
    /// The client's address.
    Client,
}

/// Which address a request is drawn to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// The least busy.
    Anywhere,
    /// The one with this [`hash`], if it is there; else the least busy.
    To(u64),
    /// The one that this number chooses among those that are there, always the
    /// same (rendezvous hashing).
    By(u64),
}

impl Pull {
    /// The order of preference of an address with that hash: the least first.
    pub fn rank(self, hash: u64) -> u64 {
        match self {
            Self::Anywhere => 0,
            Self::To(wanted) => u64::from(hash != wanted),
            Self::By(key) => mixed(key ^ hash),
        }
    }
}

impl Sticky {
    pub fn pull(&self, facts: &Facts<'_>) -> Pull {
        match self {
            Self::Cookie(_) => match told(&facts.head.headers) {
                Some(hash) => Pull::To(hash),
                None => Pull::Anywhere,
            },
            Self::Client => Pull::By(match facts.connection.remote.ip().to_canonical() {
                IpAddr::V4(address) => hash(&address.octets()),
                IpAddr::V6(address) => hash(&address.octets()),
            }),
        }
    }

    /// Lets the client stay with the address that has answered, if it doesn't yet.
    pub fn mark(&self, headers: &mut HeaderMap, facts: &Facts<'_>, pull: Pull, answered: u64) {
        let Self::Cookie(path) = self else { return };
        if pull == Pull::To(answered) {
            return;
        }
        let secure = if facts.connection.secure {
            "; Secure"
        } else {
            ""
        };
        let cookie =
            format!("{COOKIE_NAME}={answered:016x}; Path={path}; HttpOnly; SameSite=Lax{secure}");
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            headers.append(http::header::SET_COOKIE, cookie);
        }
    }
}

/// What our cookie says. With several the browser sends that of the longest path
/// first (RFC 6265 §5.4).
fn told(headers: &HeaderMap) -> Option<u64> {
    let fields = headers.get_all(COOKIE).iter();
    let mut pairs = fields.flat_map(|field| field.as_bytes().split(|&b| b == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(COOKIE_NAME.as_bytes())?;
        let digits = value.strip_prefix(b"=")?;
        let digits = std::str::from_utf8(digits).ok()?;
        let plain = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u64::from_str_radix(digits, 16).ok())?
    })
}

/// The same on every machine and in every version, so that several servers in
/// front of the same addresses agree (FNV-1a).
pub fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    mixed(hash)
}

/// Spreads what differs in a few bits over all of them.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(addresses: &[&str], client: [u8; 4]) -> usize {
        let pull = Pull::By(hash(&client));
        let ranks = addresses
            .iter()
            .map(|name| pull.rank(hash(name.as_bytes())));
        let ranked = ranks.enumerate().min_by_key(|(_, rank)| *rank);
        ranked.expect("there are some").0
    }

    #[test]
    fn clients_are_spread_and_stay_when_another_address_goes() {
        let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
        let clients = || (0..=255).flat_map(|b| (0..4).map(move |a| [192, 0, a, b]));
        let mut counts = [0; 3];
        for client in clients() {
            let at = first(&all, client);
            counts[at] += 1;
            if at != 2 {
                assert_eq!(first(&all[..2], client), at, "{client:?}");
            }
        }
        assert!(counts.iter().all(|&count| count > 270), "{counts:?}");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        for (fields, said) in [
            (&["serve-here-host=00000000000000ff"][..], Some(255)),
            (&["a=b; serve-here-host=00000000000000ff; c=d"], Some(255)),
            (&["a=b", "serve-here-host=00000000000000ff"], Some(255)),
            (&["xserve-here-host=00000000000000ff"], None),
            (&["serve-here-hosts=00000000000000ff"], None),
            (&["serve-here-host=ff"], None),
            (&["serve-here-host=+0000000000000ff"], None),
            (&["serve-here-host"], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(COOKIE, field.parse().unwrap());
            }
            assert_eq!(told(&headers), said, "{fields:?}");
        }
    }
}
