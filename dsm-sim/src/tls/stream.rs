//! A TLS connection that greets its client by itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Timeout, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// How long a client may take to say hello.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A TLS connection whose handshake is made by whoever reads first. That is the connection's own task, so a client that
/// is slow at it, says nonsense or nothing, is nobody else's business.
pub(crate) enum TlsConnection {
    Greeting(Pin<Box<Timeout<Accept<TcpStream>>>>),
    Open(Box<TlsStream<TcpStream>>),
    Broken,
}

impl TlsConnection {
    pub(crate) fn new(acceptor: &TlsAcceptor, stream: TcpStream) -> Self {
        Self::Greeting(Box::pin(timeout(
            HANDSHAKE_TIMEOUT,
            acceptor.accept(stream),
        )))
    }

    /// The open connection, once the handshake is made.
    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let Self::Greeting(greeting) = self {
            let greeted = match ready!(greeting.as_mut().poll(cx)) {
                Ok(greeted) => greeted,
                Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
            };
            *self = match greeted {
                Ok(stream) => Self::Open(Box::new(stream)),
                Err(error) => {
                    tracing::debug!(%error, "no TLS handshake");
                    Self::Broken
                }
            };
        }
        Poll::Ready(match self {
            Self::Open(stream) => Ok(Pin::new(stream.as_mut())),
            Self::Greeting(_) | Self::Broken => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_shutdown(cx)
    }
}
