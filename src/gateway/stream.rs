//! A connection to an application, while a request is on it and between two.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::backend::{Kept, KeptState};

/// A connection to an application.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len();
        self.try_to_read(room, || {
            Ok(rustix::net::recv(self, &mut *buffer, RecvFlags::DONTWAIT)?.0)
        })
    }

    /// A read that does not fill the `room` it has leaves nothing: the next one need
    /// not ask the kernel before more has come.
    fn try_to_read(
        &self,
        room: usize,
        read: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut drained = None;
        let read = || match read() {
            Ok(read) if (1..room).contains(&read) => {
                drained = Some(read);
                Err(io::ErrorKind::WouldBlock.into())
            }
            other => other,
        };
        let read = match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, read),
        };
        drained.map_or(read, Ok)
    }

    /// The same; the descriptor that comes along goes to `file` (`SCM_RIGHTS`).
    pub fn try_read_with_file(
        &self,
        buffer: &mut [u8],
        file: &mut Option<OwnedFd>,
    ) -> io::Result<usize> {
        if matches!(self, Self::Tcp(_)) {
            return self.try_read(buffer);
        }
        self.try_to_read(buffer.len(), || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(self, &mut pieces, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    *file = files.into_iter().next();
                }
            }
            Ok(received.bytes)
        })
    }

    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    pub fn rest(self) -> Resting {
        Resting {
            stream: self,
            thread: thread::current().id(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// A connection between two requests. The thread that had it last still watches
/// it, since mostly it is that thread's again.
pub struct Resting {
    stream: Stream,
    thread: ThreadId,
}

impl Kept for Resting {
    /// Whether the application still has it open and has said nothing that
    /// nobody asked for (C159).
    fn state(&self) -> KeptState {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peek = || Ok(rustix::net::recv(&self.stream, &mut [0u8; 1], flags)?);
        // So it is also known that there is nothing to read.
        let peeked = match &self.stream {
            Stream::Tcp(stream) => stream.try_io(Interest::READABLE, peek),
            Stream::Unix(stream) => stream.try_io(Interest::READABLE, peek),
        };
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => KeptState::Usable,
            _ => KeptState::Closed,
        }
    }
}

impl Resting {
    /// What the application writes from now on fails, on a Unix socket.
    pub fn take_no_more(&self) {
        // One that has gone has nothing to write.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
    }

    /// After [`Resting::take_no_more`]: whether the application has closed it.
    pub fn is_closed_by_peer(&self) -> bool {
        self.is(PollFlags::HUP | PollFlags::ERR)
    }

    /// The application reads an end.
    pub fn send_no_more(&self) {
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
    }

    /// Before [`Resting::take_no_more`]: whether the application writes no more.
    pub fn is_half_closed_by_peer(&self) -> bool {
        self.is(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    fn is(&self, any_of: PollFlags) -> bool {
        let mut sockets = [PollFd::new(&self.stream, any_of)];
        let now = Timespec::default();
        match rustix::event::poll(&mut sockets, Some(&now)) {
            Ok(_) => sockets[0].revents().intersects(any_of),
            Err(_) => false,
        }
    }

    /// From now on watched by this thread.
    pub fn wake(self) -> io::Result<Stream> {
        if self.thread == thread::current().id() {
            return Ok(self.stream);
        }
        match self.stream {
            Stream::Tcp(stream) => TcpStream::from_std(stream.into_std()?).map(Stream::Tcp),
            Stream::Unix(stream) => UnixStream::from_std(stream.into_std()?).map(Stream::Unix),
        }
    }
}
