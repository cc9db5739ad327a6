//! What the kernel knows of a TCP connection, and how one is ended.
#![allow(unsafe_code, reason = "TCP_INFO has no safe form")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::peer::Holder;
use super::wire::Wire;

mod peer;

/// How often a client is looked at that has closed its sending side, or whose
/// socket nobody watches.
const WATCH_POLL: Duration = Duration::from_millis(200);
/// A client on another machine that has closed its sending side, and of which
/// it is not known that it waits, counts as gone after so long.
const HALF_CLOSED: Duration = Duration::from_millis(500);

/// The client's side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Open,
    /// The client has closed its sending side (FIN).
    HalfClosed,
    Gone,
}

/// Returns when the client has gone (C132): after a reset, and after a FIN as far
/// as that can be told from one that only says that no more requests come.
/// `owed`: the client has said with its request that it is the last one, so that
/// it may well have closed its sending side behind it.
pub async fn gone(wire: &impl Wire, owed: bool) {
    wire.silenced().await;
    while match peer(wire) {
        Peer::Open => true,
        Peer::Gone => false,
        Peer::HalfClosed => !has_left(wire, owed),
    } {
        sleep(WATCH_POLL).await;
    }
}

/// `Wire::silenced` for a socket that nobody watches.
pub async fn silenced(socket: &impl AsFd) {
    loop {
        // First, since most answers are sent before it matters.
        sleep(WATCH_POLL).await;
        if peer(socket) != Peer::Open {
            return;
        }
    }
}

/// Of a client that has closed its sending side.
fn has_left(socket: &impl AsFd, owed: bool) -> bool {
    match peer::holder(socket) {
        Some(Holder::Nobody) => true,
        Some(Holder::Process) => false,
        None if owed => false,
        // What is on its way asks the client itself: one that has left answers
        // it with a reset.
        None => info(socket).is_none_or(|info| {
            let quiet = Duration::from_millis(info.tcpi_last_ack_recv.into());
            info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0 && quiet >= HALF_CLOSED
        }),
    }
}

/// The state of the connection. It shows a FIN behind requests that nobody has
/// read yet, which a read or its readiness would not.
pub fn peer(socket: &impl AsFd) -> Peer {
    const ESTABLISHED: u8 = 1;
    const FIN_WAIT_1: u8 = 4;
    const FIN_WAIT_2: u8 = 5;
    const CLOSE_WAIT: u8 = 8;
    match info(socket).map(|info| info.tcpi_state) {
        // FIN_WAIT: we have closed our sending side ourselves.
        Some(ESTABLISHED | FIN_WAIT_1 | FIN_WAIT_2) => Peer::Open,
        Some(CLOSE_WAIT) => Peer::HalfClosed,
        _ => Peer::Gone,
    }
}

/// The bytes that the client has acknowledged since the connection began.
pub fn taken(socket: &impl AsFd) -> u64 {
    info(socket).map_or(0, |info| info.tcpi_bytes_acked)
}

fn info(socket: &impl AsFd) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a small constant");
    // SAFETY: the buffer is as long as `length` says; all its bytes are
    // initialised, the kernel fills a prefix, every bit pattern is valid.
    unsafe {
        let asked = libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
        (asked == 0).then(|| info.assume_init())
    }
}

/// Ends the connection so that the client sees that it was cut: a reset.
pub fn reset(socket: &impl AsFd) {
    // Connecting to nowhere drops a TCP connection with a reset at once,
    // whoever else holds the socket.
    let _ = rustix::net::connect_unspec(socket);
}

/// No more is sent; what was sent still arrives.
pub fn finish(socket: &impl AsFd) {
    // Already closed is as good.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

/// Nothing more in either direction; wakes whoever reads.
pub fn close(socket: &impl AsFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// After the last answer on a connection: gives the client time to read it and
/// to close, at most `wait`, then closes (RFC 9112 §9.6).
pub async fn linger(socket: &impl AsFd, wait: Duration) {
    const POLL: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + wait;
    while peer(socket) == Peer::Open && Instant::now() < deadline {
        sleep(POLL).await;
    }
    close(socket);
}
