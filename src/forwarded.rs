//! Clients behind a proxy: which proxies are believed (`--trust-proxy`), and
//! what they say. Owns the reading of `X-Forwarded-For` and
//! `X-Forwarded-Proto`, which every proxy and balancer can write; their like in
//! RFC 7239 is not read, because many of them pass on what a client made up.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::request::Parts;
use http::{HeaderMap, HeaderName};

use crate::message::{Connection, Proxied};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The proxies that are believed.
#[derive(Clone, Debug, Default)]
pub struct Trusted(Vec<Network>);

impl Trusted {
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    pub fn is_trusted(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.has(address))
    }

    /// Lets a request be its client's if a proxy that is believed has brought it
    /// (C192).
    pub fn unwrap(&self, head: &mut Parts) {
        let Parts {
            headers,
            extensions,
            ..
        } = head;
        let Some(connection) = extensions.get_mut::<Connection>() else {
            return;
        };
        let proxy = *connection;
        if !self.is_trusted(proxy.remote.ip()) {
            return;
        }
        if let Some(client) = self.client(headers) {
            connection.remote = client;
        }
        if let Some(secure) = is_secure(headers) {
            connection.secure = secure;
        }
        extensions.insert(Proxied(proxy));
    }

    /// The last one in the list that is no proxy of ours: what stands before it
    /// anybody may have made up. If all are, the first one.
    fn client(&self, headers: &HeaderMap) -> Option<SocketAddr> {
        let mut client = None;
        for element in elements(headers, &X_FORWARDED_FOR).iter().rev() {
            let Some(address) = node(element) else {
                break;
            };
            client = Some(address);
            if !self.is_trusted(address.ip()) {
                break;
            }
        }
        client
    }
}

/// What the nearest proxy says of the scheme.
fn is_secure(headers: &HeaderMap) -> Option<bool> {
    let scheme = elements(headers, &X_FORWARDED_PROTO).pop()?;
    match &scheme.to_ascii_lowercase()[..] {
        b"https" => Some(true),
        b"http" => Some(false),
        _ => None,
    }
}

/// Of a list that may go over several fields.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a [u8]> {
    let fields = headers.get_all(name).iter();
    fields
        .flat_map(|field| field.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .collect()
}

/// An address, with a port or without: then it is 0.
fn node(element: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(element).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    let without_port = bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    without_port.or_else(|_| text.parse()).ok()
}

/// `ADDR` or `ADDR/BITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
                None => (text, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.unwrap_or(most);
            (bits <= most).then_some(Self { address, bits })
        };
        parse().ok_or_else(|| "expected an address, such as 10.0.0.1 or 10.0.0.0/24".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(networks: &[&str]) -> Trusted {
        let networks = networks.iter().map(|text| text.parse().unwrap());
        Trusted::new(networks.collect())
    }

    #[test]
    fn a_network_holds_the_addresses_with_its_first_bits() {
        for (network, address, holds) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.1.2.3/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.168.1.128/25", "192.168.1.127", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "::1", true),
        ] {
            let is_trusted = trusted(&[network]).is_trusted(address.parse().unwrap());
            assert_eq!(is_trusted, holds, "{network} {address}");
        }
        for wrong in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_client_is_the_last_one_that_is_no_proxy_c192() {
        let ours = trusted(&["10.0.0.0/8"]);
        for (fields, client) in [
            (&["192.0.2.1"][..], Some("192.0.2.1:0")),
            (&["192.0.2.1:4711"], Some("192.0.2.1:4711")),
            (&["2001:db8::1"], Some("[2001:db8::1]:0")),
            (&["[2001:db8::1]"], Some("[2001:db8::1]:0")),
            (&["[2001:db8::1]:80"], Some("[2001:db8::1]:80")),
            // What stands before it is the client's own invention.
            (&["127.0.0.1, 192.0.2.1"], Some("192.0.2.1:0")),
            (&["127.0.0.1", "192.0.2.1, 10.0.0.2"], Some("192.0.2.1:0")),
            (&["10.0.0.3, 10.0.0.2"], Some("10.0.0.3:0")),
            (&["192.0.2.1, unknown, 10.0.0.2"], Some("10.0.0.2:0")),
            (&["unknown"], None),
            (&[""], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(X_FORWARDED_FOR, field.parse().unwrap());
            }
            let client = client.map(|client| client.parse().unwrap());
            assert_eq!(ours.client(&headers), client, "{fields:?}");
        }
    }

    #[test]
    fn the_scheme_is_what_the_nearest_proxy_says_c192() {
        for (field, secure) in [
            ("https", Some(true)),
            ("HTTPS", Some(true)),
            ("http", Some(false)),
            ("https, http", Some(false)),
            ("ftp", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(X_FORWARDED_PROTO, field.parse().unwrap());
            assert_eq!(is_secure(&headers), secure, "{field}");
        }
    }
}
