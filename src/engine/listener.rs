//! Binding addresses: what the user typed becomes listening sockets, or one
//! clear line that says why not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

use rustix::net::sockopt;

use crate::error::StartError;

/// A listening socket and the address it was given.
pub struct Bound {
    pub listener: TcpListener,
    pub address: SocketAddr,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// All addresses of the machine.
    Public,
    /// A host name, an address, or one of them with a port of its own.
    Host(String),
}

/// Binds every address. With port 0 the first takes any free port and the
/// others the same.
pub fn bind(addresses: &[Address], port: u16) -> Result<Vec<Bound>, StartError> {
    let mut bound: Vec<Bound> = Vec::new();
    for address in addresses {
        let port = match bound.first() {
            Some(first) if port == 0 => first.address.port(),
            _ => port,
        };
        match address {
            Address::Public => bound.push(bind_all(port)?),
            Address::Host(host) => {
                for address in resolve(host, port)? {
                    // `-b localhost -b 127.0.0.1` is one address.
                    if !bound.iter().any(|bound| covers(bound.address, address)) {
                        bound.push(bind_one(address)?);
                    }
                }
            }
        }
    }
    Ok(bound)
}

/// Whether who connects to `address` reaches a socket that listens at `bound`.
fn covers(bound: SocketAddr, address: SocketAddr) -> bool {
    let same_host = match (bound.ip(), address.ip()) {
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(_)) => true,
        (bound, address) => bound == address,
    };
    same_host && bound.port() == address.port()
}

/// IPv6 and IPv4 in one socket, or IPv4 where there is no IPv6.
fn bind_all(port: u16) -> Result<Bound, StartError> {
    let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    match listen(both) {
        Ok(bound) => Ok(bound),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(cannot_bind(both, &error)),
        Err(_) => bind_one(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
    }
}

fn bind_one(address: SocketAddr) -> Result<Bound, StartError> {
    listen(address).map_err(|error| cannot_bind(address, &error))
}

fn listen(address: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(address)?;
    // Accepted sockets inherit it: each piece of a stream leaves at once (C115).
    sockopt::set_tcp_nodelay(&listener, true)?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

/// `host` is a name or address, with or without a port.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, StartError> {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.is_empty() {
        return Err(unknown_host("an address", "it is empty"));
    }
    let found = match host.rsplit_once(':') {
        Some((name, own)) if !name.contains(':') => {
            let own = own
                .parse::<u16>()
                .map_err(|_| unknown_host(host, "the part after `:` is no port"))?;
            (name, own).to_socket_addrs()
        }
        _ => (host, port).to_socket_addrs(),
    };
    let addresses: Vec<_> = found
        .map_err(|_| unknown_host(host, "no such host name"))?
        .collect();
    match addresses.as_slice() {
        [] => Err(unknown_host(host, "the name has no address")),
        _ => Ok(addresses),
    }
}

fn unknown_host(host: &str, why: &str) -> StartError {
    StartError::failed(format!("cannot bind {host}: {why}"))
        .hint("give an address of this machine, such as `-b 127.0.0.1` or `-b ::1`; `--public` means all of them")
}

fn cannot_bind(address: SocketAddr, error: &io::Error) -> StartError {
    let port = address.port();
    let next = port.checked_add(1).unwrap_or(8080);
    let (why, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            "address already in use".into(),
            format!(
                "another program listens there; try `serve-here {next}`, or port 0 for any free one"
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            "permission denied".into(),
            format!(
                "ports below 1024 belong to root; try `serve-here {}`",
                u32::from(port) + 8000
            ),
        ),
        io::ErrorKind::AddrNotAvailable => (
            "this machine has no such address".into(),
            "leave `--bind` away for this machine only, or use `--public` for all its addresses"
                .into(),
        ),
        _ => (
            error.to_string(),
            "choose another address with `--bind`".into(),
        ),
    };
    StartError::failed(format!("cannot bind {address}: {why}")).hint(hint)
}
