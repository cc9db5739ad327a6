//! Whether a client on this machine still has its end of a connection.
//!
//! A FIN alone doesn't tell a client that has closed its sending side and waits
//! for the answer from one that has left: both look the same on the wire until
//! something is sent. For a socket of this machine the kernel knows: one that
//! was closed belongs to no process any more. It is asked through
//! `NETLINK_SOCK_DIAG`, see `sock_diag(7)`, for exactly that socket, which takes no
//! privilege and no search through all sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// What the kernel says of the client's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process has it open.
    Process,
    /// It was closed.
    Nobody,
}

/// Who holds the other end of `socket`. `None`: it can't be told, because it is
/// on another machine, or because this kernel has no such answers.
pub fn holder(socket: &impl AsFd) -> Option<Holder> {
    let (client, server) = (remote(socket)?, local(socket)?);
    if !client.ip().is_loopback() && client.ip() != server.ip() {
        return None;
    }
    // A redirected port is not the one that the client's socket knows.
    let server = original(socket, server);
    match owner(client, server).ok()? {
        Some(owner) => Some(owner),
        // Closed for longer than the kernel remembers; other network
        // namespaces have no part in a loopback. That it finds our own end
        // shows that it looked at all.
        None if client.ip().is_loopback() && matches!(owner(server, client), Ok(Some(_))) => {
            Some(Holder::Nobody)
        }
        None => None,
    }
}

/// The address without the IPv6 form of an IPv4 one.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        other => other,
    }
}

fn remote(socket: &impl AsFd) -> Option<SocketAddr> {
    let address = rustix::net::getpeername(socket).ok()??;
    SocketAddr::try_from(address).ok().map(canonical)
}

fn local(socket: &impl AsFd) -> Option<SocketAddr> {
    let address = rustix::net::getsockname(socket).ok()?;
    SocketAddr::try_from(address).ok().map(canonical)
}

/// What the client connected to, if a rule of the packet filter has changed it.
fn original(socket: &impl AsFd, local: SocketAddr) -> SocketAddr {
    use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
    let asked = match local {
        SocketAddr::V4(_) => ip_original_dst(socket).map(SocketAddr::V4),
        SocketAddr::V6(_) => ipv6_original_dst(socket).map(SocketAddr::V6),
    };
    asked.unwrap_or(local)
}

/// Who holds the socket that is bound to `own` and connected to `other`;
/// `None`: there is none.
fn owner(own: SocketAddr, other: SocketAddr) -> io::Result<Option<Holder>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let diag = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(netlink::SOCK_DIAG),
    )?;
    // Without an address it goes to the kernel, which answers before this
    // returns.
    rustix::net::send(&diag, &question(own, other), SendFlags::NOSIGNAL)?;
    let mut answer = [0; 512];
    let (read, _) = rustix::net::recv(&diag, &mut answer, RecvFlags::DONTWAIT)?;
    meaning(&answer[..read])
}

const HEADER_BYTES: usize = 16;
const QUESTION_BYTES: usize = HEADER_BYTES + 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// `nlmsghdr`, then `inet_diag_req_v2` (`linux/inet_diag.h`), in the machine's
/// byte order but for ports and addresses.
fn question(own: SocketAddr, other: SocketAddr) -> [u8; QUESTION_BYTES] {
    const NLM_F_REQUEST: u16 = 1;
    const ALL_STATES: u32 = u32::MAX;
    /// `INET_DIAG_NOCOOKIE`: whatever socket it is.
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    let family = AddressFamily::as_raw(match own {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    });
    let interface = match own {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    };
    let length = u32::try_from(QUESTION_BYTES).expect("a small constant");
    let tcp = u8::try_from(rustix::net::ipproto::TCP.as_raw().get()).expect("it is 6");
    let mut bytes = Vec::with_capacity(QUESTION_BYTES);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number, our port: nobody else asks on this socket.
    bytes.extend([0; 8]);
    bytes.extend([u8::try_from(family).expect("a small number"), tcp, 0, 0]);
    bytes.extend(ALL_STATES.to_ne_bytes());
    bytes.extend(own.port().to_be_bytes());
    bytes.extend(other.port().to_be_bytes());
    bytes.extend(octets(own.ip()));
    bytes.extend(octets(other.ip()));
    bytes.extend(interface.to_ne_bytes());
    bytes.extend(NO_COOKIE);
    bytes.try_into().expect("the fields fill it")
}

fn octets(ip: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match ip {
        IpAddr::V4(v4) => octets[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => octets = v6.octets(),
    }
    octets
}

/// `nlmsghdr`, then `inet_diag_msg` or `nlmsgerr`.
fn meaning(answer: &[u8]) -> io::Result<Option<Holder>> {
    const NLMSG_ERROR: u16 = 2;
    const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
    const LISTEN: u8 = 10;
    const STATE_AT: usize = HEADER_BYTES + 1;
    const INODE_AT: usize = HEADER_BYTES + 68;
    let kind = word(answer, 4).map(u16::from_ne_bytes);
    match kind {
        Some(NLMSG_ERROR) => match word(answer, HEADER_BYTES).map(i32::from_ne_bytes) {
            Some(error) if error == -ENOENT => Ok(None),
            Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        Some(SOCK_DIAG_BY_FAMILY) => {
            let state = word(answer, STATE_AT).map(u8::from_ne_bytes);
            let inode = word(answer, INODE_AT).map(u32::from_ne_bytes);
            match (state, inode) {
                // Where there is no connection the kernel finds the listener.
                (Some(LISTEN), _) => Ok(None),
                (Some(_), Some(0)) => Ok(Some(Holder::Nobody)),
                (Some(_), Some(_)) => Ok(Some(Holder::Process)),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `N` bytes from `at`.
fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// A connection over loopback, its client's end first.
    fn pair(listen: &str, connect: &str) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind((listen, 0)).ok()?;
        let port = listener.local_addr().ok()?.port();
        let client = TcpStream::connect((connect, port)).ok()?;
        let (server, _) = listener.accept().ok()?;
        Some((client, server))
    }

    #[test]
    fn a_client_on_this_machine_holds_its_end_until_it_closes_it() {
        for (listen, connect) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("::", "::1"),
            // As ::ffff:127.0.0.1.
            ("::", "127.0.0.1"),
        ] {
            let Some((client, server)) = pair(listen, connect) else {
                // No IPv6 here.
                assert!(listen.starts_with(':'), "{listen}");
                continue;
            };
            assert_eq!(holder(&server), Some(Holder::Process), "{connect}");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(holder(&server), Some(Holder::Process), "{connect}");
            drop(client);
            assert_eq!(holder(&server), Some(Holder::Nobody), "{connect}");
        }
    }

    #[test]
    fn a_socket_that_is_not_there_has_no_owner() {
        let (client, server) = pair("127.0.0.1", "127.0.0.1").unwrap();
        let nobody = "127.0.0.1:1".parse().unwrap();
        let listening = server.local_addr().unwrap();
        assert_eq!(owner(client.local_addr().unwrap(), nobody).unwrap(), None);
        assert_eq!(
            owner(client.local_addr().unwrap(), listening).unwrap(),
            Some(Holder::Process)
        );
    }

    #[test]
    fn an_answer_that_is_cut_short_is_an_error() {
        let whole = [0; HEADER_BYTES + 72];
        for length in 0..whole.len() {
            assert!(meaning(&whole[..length]).is_err(), "{length}");
        }
    }
}
