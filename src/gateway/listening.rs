//! A connection that goes on to listen when the other side takes no more. An
//! application may answer before it has read all of a request, and close; the
//! library would give up at the first write that fails, with the answer unread
//! (C68).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// After a write that failed, what is written is thrown away, and the failure
/// is told where the end is read: it is no proper one.
pub struct Listening<T> {
    stream: T,
    refused: bool,
    /// The system tells it only once.
    failure: Option<io::Error>,
}

impl<T> Listening<T> {
    pub fn new(stream: T) -> Self {
        Self {
            stream,
            refused: false,
            failure: None,
        }
    }

    /// `usual` is the result of a write that succeeds.
    fn judge<R>(&mut self, written: io::Result<R>, usual: R) -> R {
        written.unwrap_or_else(|failure| {
            self.refused = true;
            self.failure = Some(failure);
            usual
        })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Listening<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = read
            && buffer.filled().len() == before
            && let Some(failure) = this.failure.take()
        {
            return Poll::Ready(Err(failure));
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listening<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refused {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        written.map(|written| Ok(this.judge(written, bytes.len())))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if this.refused {
            return Poll::Ready(Ok(length));
        }
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
        written.map(|written| Ok(this.judge(written, length)))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        // A stream with TLS writes here, too.
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        flushed.map(|flushed| {
            this.judge(flushed, ());
            Ok(())
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// A connection on which the other side has said `hello`, and which it has
    /// reset because of what it has not read.
    async fn refused() -> Listening<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap());
        let mut stream = Listening::new(stream.await.unwrap());
        stream.write_all(b"what nobody reads").await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        while peer.peek(&mut [0]).unwrap() == 0 {}
        peer.write_all(b"hello").unwrap();
        drop(peer);
        while !stream.refused {
            stream.write_all(&[b'x'; 1000]).await.unwrap();
        }
        stream
    }

    #[tokio::test]
    async fn what_was_said_before_a_refusal_is_heard_and_its_end_is_none_c68() {
        let mut stream = refused().await;
        stream.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        stream.flush().await.unwrap();
        let mut heard = Vec::new();
        assert!(stream.read_to_end(&mut heard).await.is_err());
        assert_eq!(heard, b"hello");
    }
}
