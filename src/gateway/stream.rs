//! A connection to an application, while a request is on it and between two.

use std::cell::RefCell;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// What is read from an application at once.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    static ARRIVAL: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A connection to an application.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Tls>),
}

impl Stream {
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
            Self::Tls(tls) => Box::pin(tls.raw.readable()).await,
        }
    }

    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Self::Tls(tls) = self {
            return tls.try_read(buffer);
        }
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
        let read = self.try_io(read);
        drained.map_or(read, Ok)
    }

    fn try_io<T>(&self, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, read),
            Self::Tls(tls) => tls.raw.try_io(read),
        }
    }

    /// The same; the descriptor that comes along goes to `file` (`SCM_RIGHTS`).
    fn try_read_with_file(
        &self,
        buffer: &mut [u8],
        file: &mut Option<OwnedFd>,
    ) -> io::Result<usize> {
        if !matches!(self, Self::Unix(_)) {
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

    /// Gives `take` what has come, and puts a descriptor that came along into
    /// `file`. Waits for it; 0 bytes are the end. Dropping the future loses nothing.
    pub async fn receive(
        &self,
        mut file: Option<&mut Option<OwnedFd>>,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<usize> {
        loop {
            let read = ARRIVAL.with_borrow_mut(|arrival| {
                let read = match &mut file {
                    Some(file) => self.try_read_with_file(arrival, file)?,
                    None => self.try_read(arrival)?,
                };
                take(&arrival[..read]);
                Ok(read)
            });
            match read {
                Ok(read) => return Ok(read),
                Err(error) => match io::Error::kind(&error) {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => self.readable().await?,
                    _ => return Err(error),
                },
            }
        }
    }

    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
            Self::Tls(tls) => Box::pin(tls.raw.writable()).await,
        }
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Tls(tls) => tls.try_write(bytes),
        }
    }

    pub async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let sent = if bytes.is_empty() {
                self.try_flush().map(|()| 0)
            } else {
                self.try_write(bytes)
            };
            match sent {
                Ok(_) if bytes.is_empty() => return Ok(()),
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => self.writable().await?,
                    _ => return Err(error),
                },
            }
        }
    }

    /// What was written has left this process. TLS may hold some of it.
    pub fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
            Self::Tls(tls) => tls.flush(&mut tls.lock()),
        }
    }

    /// The application reads an end.
    pub fn send_no_more(&self) {
        if let Self::Tls(tls) = self {
            tls.say_goodbye();
        }
        let _ = rustix::net::shutdown(self, Shutdown::Write);
    }

    /// Watched by this thread.
    fn adopt(self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream.into_std()?).map(Self::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream.into_std()?).map(Self::Unix),
            Self::Tls(tls) => (*tls).adopt().map(|tls| Self::Tls(Box::new(tls))),
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
            Self::Tls(tls) => tls.raw.as_fd(),
        }
    }
}

/// TLS over a connection; `rustls` knows the protocol.
pub struct Tls {
    raw: Stream,
    session: Mutex<ClientConnection>,
}

impl Tls {
    /// Secures `raw`, whose other side has to have a certificate for `name`.
    pub async fn connect(
        raw: Stream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Stream> {
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let tls = Self {
            raw,
            session: Mutex::new(session),
        };
        loop {
            let error = match tls.shake_hands(&mut tls.lock()) {
                Ok(()) => break,
                Err(error) => error,
            };
            match error {
                Pause::ToRead => tls.raw.readable().await?,
                Pause::ToWrite => tls.raw.writable().await?,
                Pause::ForEver(error) => return Err(error),
            }
        }
        Ok(Stream::Tls(Box::new(tls)))
    }

    fn shake_hands(&self, session: &mut ClientConnection) -> Result<(), Pause> {
        let would_block = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        loop {
            match self.flush(session) {
                Ok(()) if !session.is_handshaking() => return Ok(()),
                Ok(()) => {}
                Err(error) if would_block(&error) => return Err(Pause::ToWrite),
                Err(error) => return Err(Pause::ForEver(error)),
            }
            match self.receive(session) {
                Ok(0) => return Err(Pause::ForEver(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if would_block(&error) => return Err(Pause::ToRead),
                Err(error) => return Err(Pause::ForEver(error)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ClientConnection> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has come; 0 bytes at the end of the connection.
    fn receive(&self, session: &mut ClientConnection) -> io::Result<usize> {
        let read = session.read_tls(&mut Raw(&self.raw))?;
        if let Err(error) = session.process_new_packets() {
            // The other side is told why.
            let _ = self.flush(session);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(read)
    }

    fn flush(&self, session: &mut ClientConnection) -> io::Result<()> {
        while session.wants_write() {
            session.write_tls(&mut Raw(&self.raw))?;
        }
        Ok(())
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.lock();
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            self.receive(&mut session)?;
            // It may answer by itself, and does so with the next request if it
            // can't now.
            let _ = self.flush(&mut session);
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.lock();
        self.flush(&mut session)?;
        let written = session.writer().write(bytes)?;
        match self.flush(&mut session) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(written),
        }
    }

    /// That it is no accident that nothing more comes (RFC 8446 §6.1).
    fn say_goodbye(&self) {
        let mut session = self.lock();
        session.send_close_notify();
        let _ = self.flush(&mut session);
    }

    fn adopt(self) -> io::Result<Self> {
        let Self { raw, session } = self;
        let raw = raw.adopt()?;
        Ok(Self { raw, session })
    }
}

/// What a handshake waits for.
enum Pause {
    ToRead,
    ToWrite,
    ForEver(io::Error),
}

/// The connection below TLS.
struct Raw<'a>(&'a Stream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection between two requests. The thread that had it last still watches
/// it, since mostly it is that thread's again.
pub struct Resting {
    stream: Stream,
    thread: ThreadId,
}

impl Resting {
    /// Whether the application still has it open and has said nothing that
    /// nobody asked for (C159).
    pub fn is_usable(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peek = || Ok(rustix::net::recv(&self.stream, &mut [0u8; 1], flags)?.0);
        // So it is also known that there is nothing to read.
        let peeked = match &self.stream {
            // What comes may be TLS's own.
            Stream::Tls(tls) => tls.try_read(&mut [0]),
            Stream::Tcp(_) | Stream::Unix(_) => self.stream.try_io(peek),
        };
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

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
        self.stream.send_no_more();
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
        self.stream.adopt()
    }
}
