//! The client's socket, reached beside the library that owns it.
//!
//! `tiny_http` gives a request's reader or its writer, never both at once, and
//! no way to close a connection, to bound a wait or to see that the client has
//! gone. All of these are needed (contract C67, C110, C122, C131, C132). So the
//! socket is looked up by its two addresses among this process's descriptors,
//! and a duplicate of it is used beside the library's.
#![allow(
    unsafe_code,
    reason = "a descriptor is borrowed by number, and TCP_INFO has no safe form"
)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout};

use crate::os;

/// How often a client that says nothing is looked at.
const WATCH_POLL: Duration = Duration::from_millis(200);

/// A client's TCP socket.
pub struct Socket {
    fd: OwnedFd,
    pub local: SocketAddr,
    /// Only for a socket that was full once.
    ready: OnceLock<AsyncFd<OwnedFd>>,
}

/// What the kernel says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Open,
    /// The client has closed its sending side (FIN).
    HalfClosed,
    Gone,
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
            // for its addresses. The one that matches is held open by the
            // library for as long as the caller holds the request.
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            let Some(local) = addresses_match(fd, remote, port) else {
                continue;
            };
            let fd = fd.try_clone_to_owned()?;
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

    /// Sends all of `pieces`. No wait for the client to take data is longer
    /// than `stall`.
    pub async fn send(&self, pieces: &[&[u8]], stall: Duration) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.send_now(left) {
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    timeout(stall, self.writable())
                        .await
                        .map_err(|_| io::ErrorKind::TimedOut)??;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Without blocking, although the library's socket is a blocking one.
    fn send_now(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(
            &self.fd,
            pieces,
            &mut SendAncillaryBuffer::default(),
            flags,
        )?)
    }

    async fn writable(&self) -> io::Result<()> {
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

    /// Returns when the client has gone: at once after a reset, `half_closed`
    /// after it has closed its sending side (C132).
    pub async fn gone(&self, half_closed: Duration) {
        let mut deadline = None;
        loop {
            match self.peer() {
                Peer::Gone => return,
                Peer::Open => {}
                Peer::HalfClosed => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + half_closed);
                    if Instant::now() >= deadline {
                        return;
                    }
                }
            }
            sleep(WATCH_POLL).await;
        }
    }

    /// The state of the TCP connection. The library reads from the socket, so
    /// neither a read nor its readiness would tell.
    pub fn peer(&self) -> Peer {
        const ESTABLISHED: u8 = 1;
        const CLOSE_WAIT: u8 = 8;
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length =
            libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a small constant");
        // SAFETY: the buffer is as long as `length` says; all its bytes are
        // initialised, the kernel fills a prefix, every bit pattern is valid.
        let info = unsafe {
            let asked = libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            );
            if asked != 0 {
                return Peer::Gone;
            }
            info.assume_init()
        };
        match info.tcpi_state {
            // FIN_WAIT: we have closed our sending side ourselves.
            ESTABLISHED | 4 | 5 => Peer::Open,
            CLOSE_WAIT => Peer::HalfClosed,
            _ => Peer::Gone,
        }
    }

    /// Ends the connection so that the client sees that it was cut: a reset.
    pub fn reset(&self) {
        // Connecting to nowhere drops a TCP connection with a reset at once,
        // whoever else holds the socket.
        let _ = rustix::net::connect_unspec(&self.fd);
    }

    /// No more is sent; what was sent still arrives.
    pub fn finish(&self) {
        self.shutdown(Shutdown::Write);
    }

    /// Nothing more in either direction; wakes whoever reads.
    pub fn close(&self) {
        self.shutdown(Shutdown::Both);
    }

    fn shutdown(&self, how: Shutdown) {
        use rustix::net::Shutdown as How;
        let how = match how {
            Shutdown::Read => How::Read,
            Shutdown::Write => How::Write,
            Shutdown::Both => How::Both,
        };
        // Already closed is as good.
        let _ = rustix::net::shutdown(&self.fd, how);
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
