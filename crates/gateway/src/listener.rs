//! Accepts connections: at most so many at once, without Nagle's delay, in TLS where that is configured.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Options;
use crate::tls::{Tls, Wire};

/// Pause after a failed accept, which is out of file descriptors or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket with room for so many connections.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    handshake_timeout: Duration,
    room: Arc<Semaphore>,
}

impl Listener {
    pub(crate) async fn bind(options: &Options) -> io::Result<Self> {
        Ok(Self {
            tcp: TcpListener::bind(options.listen).await?,
            tls: options.tls.clone(),
            handshake_timeout: options.handshake_timeout,
            room: Arc::new(Semaphore::new(options.connections_max)),
        })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(room) = self.room.clone().acquire_owned().await else { std::future::pending().await };
            match self.tcp.accept().await {
                Ok((tcp, peer)) => {
                    if let Err(error) = tcp.set_nodelay(true) {
                        tracing::debug!(%error, "a connection was gone before it began");
                    }
                    let local = tcp.local_addr().ok();
                    let wire = Wire::new(tcp, self.tls.as_ref(), self.handshake_timeout);
                    return (Connection { wire, local, _room: room }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address()
    }
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub(crate) remote: SocketAddr,
    /// Where it arrived, as far as that is known.
    pub(crate) local: Option<SocketAddr>,
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self { remote: *stream.remote_addr(), local: stream.io().local }
    }
}

/// A connection that holds its room until it closes.
pub(crate) struct Connection {
    wire: Wire,
    local: Option<SocketAddr>,
    _room: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}
