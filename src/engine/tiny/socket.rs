//! The client's socket, reached beside the library that owns it.
//!
//! `tiny_http` gives a request's reader or its writer, never both at once, and
//! no way to close a connection, to bound a wait or to see that the client has
//! gone. All of these are needed (contract C67, C110, C122, C131, C132). So the
//! socket is looked up by its two addresses among this process's descriptors,
//! and a duplicate of it is used beside the library's.
#![allow(unsafe_code, reason = "a descriptor is borrowed by number")]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::patience::Patience;
use super::super::tcp;
use super::super::wire::{self, Wire};
use crate::message::FileBody;
use crate::os;

/// A client's TCP socket.
pub struct Socket {
    fd: OwnedFd,
    pub local: SocketAddr,
    /// Only for a socket that was full once.
    ready: OnceLock<AsyncFd<OwnedFd>>,
}

impl Socket {
    /// Finds the connection from `remote` to `port` by its addresses. `hint` is
    /// where it was last time. The caller holds the connection open meanwhile.
    pub fn find(remote: SocketAddr, port: u16, hint: Option<RawFd>) -> io::Result<(Self, RawFd)> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit
            .and_then(|n| RawFd::try_from(n).ok())
            .unwrap_or(RawFd::MAX);
        for raw in hint.into_iter().chain(3..limit) {
            // SAFETY: the number may name anything or nothing; it is only asked
            // for its addresses, and duplicated if they match.
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            if addresses_match(fd, remote, port).is_none() {
                continue;
            }
            // The library has several for a connection, and may have closed this
            // one since, or opened something else at its number.
            let Ok(fd) = fd.try_clone_to_owned() else {
                continue;
            };
            let Some(local) = addresses_match(fd.as_fd(), remote, port) else {
                continue;
            };
            return Ok((
                Self {
                    fd,
                    local,
                    ready: OnceLock::new(),
                },
                raw,
            ));
        }
        Err(io::ErrorKind::NotConnected.into())
    }

    /// Another one for each connection that is open, even from the same port of
    /// the same client.
    pub fn id(&self) -> Option<u64> {
        rustix::fs::fstat(&self.fd).ok().map(|stat| stat.st_ino)
    }

    async fn room(&self) -> io::Result<()> {
        if self.ready.get().is_none() {
            let ready = os::watch(self.fd.try_clone()?, Interest::WRITABLE)?;
            // Nobody else writes to this connection.
            let _ = self.ready.set(ready);
        }
        let ready = self.ready.get().expect("set above");
        // Asked anew each time: the writes go past tokio, which can't know that
        // the socket has filled up.
        ready.writable().await?.clear_ready();
        if self.has_room()? {
            return Ok(());
        }
        ready.writable().await.map(|_| ())
    }

    fn has_room(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        Ok(poll(&mut fds, Some(&now))? > 0)
    }

    /// Bounds the library's wait for the next request on this connection.
    pub fn set_idle(&self, idle: Duration) {
        // Without it an idle connection is only kept longer.
        let _ = rustix::net::sockopt::set_socket_timeout(
            &self.fd,
            rustix::net::sockopt::Timeout::Recv,
            Some(idle),
        );
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Wire for Socket {
    fn send_now(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        // Without blocking, although the library's socket is a blocking one.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let nothing = &mut SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(&self.fd, pieces, nothing, flags)?)
    }

    async fn writable(&self) -> io::Result<()> {
        self.room().await
    }

    async fn silenced(&self) {
        tcp::silenced(self).await;
    }

    /// sendfile would block on this socket.
    async fn send_file(&self, head: &[u8], body: &FileBody, stall: Patience) -> io::Result<u64> {
        wire::copy_file(self, head, body, stall).await
    }
}

/// Connects to our own listener and leaves at once.
///
/// The library's pool counts a thread as idle until it has woken up, so of
/// connections that come together some are put in a queue that nobody looks at
/// until another connection ends. One more connection makes it start a thread,
/// and that thread, with nothing to do, takes from the queue. Called once for
/// each new connection, so that one rescued rescues the next.
pub fn nudge(listener: SocketAddr) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    let family = match listener {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Without a free descriptor nobody is accepted either.
    if let Ok(fd) = socket_with(family, SocketType::STREAM, flags, None) {
        let _ = connect(&fd, &listener);
    }
}

/// The local address of `fd` if it is the connection from `remote` to `port`.
fn addresses_match(fd: BorrowedFd<'_>, remote: SocketAddr, port: u16) -> Option<SocketAddr> {
    let peer: Result<SocketAddr, Errno> =
        rustix::net::getpeername(fd).and_then(|a| a.ok_or(Errno::NOTCONN)?.try_into());
    if peer.ok()? != remote {
        return None;
    }
    let local: SocketAddr = rustix::net::getsockname(fd).ok()?.try_into().ok()?;
    (local.port() == port).then_some(local)
}
