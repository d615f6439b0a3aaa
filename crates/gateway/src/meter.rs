//! A socket's bytes before they are frames: how large a message may become depends on who sends it, and what has arrived of
//! an unfinished one counts against its sender's share.
//!
//! The library that reads frames makes room for a whole one as soon as its header says how long it is, and takes no other
//! bound once it has begun. So the headers are read here first, and bytes of a message that is too large are not passed on.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use sluice_bus::shares::Share;

/// Bytes of an unfinished message that cost nothing.
const FREE_BYTES: usize = 32 << 10;
/// Beyond that they are counted in steps of this size.
const STEP_BYTES: usize = 64 << 10;

/// Why a socket's bytes are not read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    /// A message is larger than its sender may send.
    #[error("the message is too large")]
    TooLarge,
    /// Its sender has too many bytes under way.
    #[error("too many bytes under way")]
    OverShare,
}

/// What a socket's session knows of its bytes, and decides on them.
pub(crate) struct Meter {
    message_bytes_max: AtomicUsize,
    /// What has arrived of a message that is not whole.
    unfinished_bytes: AtomicUsize,
    /// The share of whoever is known here; nobody's bytes fit into [`FREE_BYTES`].
    share: Mutex<Option<Share>>,
    started: Instant,
    heard_ms: AtomicU64,
}

impl Meter {
    pub(crate) fn new(message_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            message_bytes_max: AtomicUsize::new(message_bytes_max),
            unfinished_bytes: AtomicUsize::new(0),
            share: Mutex::new(None),
            started: Instant::now(),
            heard_ms: AtomicU64::new(0),
        })
    }

    /// From now on messages may be so large, and unfinished ones count against this share.
    pub(crate) fn allow(&self, message_bytes_max: usize, share: Option<Share>) {
        self.message_bytes_max.store(message_bytes_max, Ordering::Relaxed);
        *self.share.lock().unwrap_or_else(PoisonError::into_inner) = share;
    }

    /// What the message that was just handed out counted for; the next one begins with nothing.
    pub(crate) fn hand_over(&self) -> Option<Share> {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        share.as_mut().filter(|share| share.amount() > 0).map(Share::split_off)
    }

    /// How long nothing has come, not even an answer to a ping.
    pub(crate) fn silence(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        self.unfinished_bytes.load(Ordering::Relaxed) > 0
    }

    fn heard(&self, unfinished_bytes: usize) -> Result<(), Excess> {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now_ms, Ordering::Relaxed);
        self.unfinished_bytes.store(unfinished_bytes, Ordering::Relaxed);
        if unfinished_bytes <= FREE_BYTES {
            return Ok(());
        }
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        let share = share.as_mut().ok_or(Excess::OverShare)?;
        let counted = unfinished_bytes.next_multiple_of(STEP_BYTES);
        let may = share.grow(counted.saturating_sub(share.amount()));
        if may { Ok(()) } else { Err(Excess::OverShare) }
    }
}

/// The bytes of a socket, as far as its meter lets them through.
pub(crate) struct Metered<S> {
    io: S,
    meter: Arc<Meter>,
    headers: Headers,
    /// Read, and not passed on yet.
    held: BytesMut,
}

impl<S> Metered<S> {
    pub(crate) fn new(io: S, meter: Arc<Meter>) -> Self {
        Self { io, meter, headers: Headers::default(), held: BytesMut::new() }
    }

    /// The bytes without the meter.
    pub(crate) const fn unmetered(&mut self) -> &mut S {
        &mut self.io
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = into.filled().len();
        if this.held.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, into))?;
        } else {
            let bytes = this.held.len().min(into.remaining());
            into.put_slice(&this.held.split_to(bytes));
        }
        let bytes_max = this.meter.message_bytes_max.load(Ordering::Relaxed);
        let fresh = &into.filled()[before..];
        let passed = this.headers.pass(fresh, bytes_max);
        if passed < fresh.len() {
            if passed == 0 {
                into.set_filled(before);
                return Poll::Ready(Err(io::Error::other(Excess::TooLarge)));
            }
            // What comes before it is handled first, which may raise the bound.
            let mut held = BytesMut::from(&fresh[passed..]);
            held.extend_from_slice(&this.held);
            this.held = held;
            into.set_filled(before + passed);
        }
        Poll::Ready(this.meter.heard(this.headers.unfinished_bytes).map_err(|excess| {
            into.set_filled(before);
            io::Error::other(excess)
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The longest part of a frame's header that says how long the frame is.
const HEADER_BYTES_MAX: usize = 10;
const MASK_BYTES: u64 = 4;

/// Follows the frames of RFC 6455 in a stream of bytes, as far as their lengths.
#[derive(Default)]
struct Headers {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// What is to come of the current frame, its mask included.
    left: u64,
    /// Whether the current frame is a part of a message, and not its last.
    goes_on: bool,
    is_control: bool,
    /// The frames of the current message, as long as they say that they are.
    message_bytes: u64,
    /// What has arrived of the current message.
    unfinished_bytes: usize,
}

impl Headers {
    /// How many of these bytes may be passed on: all, or those before the point at which a message becomes too large.
    fn pass(&mut self, bytes: &[u8], message_bytes_max: usize) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let part = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += part;
                self.take(part);
                continue;
            }
            self.header[self.header_bytes] = bytes[at];
            let Some(length) = self.length() else {
                self.header_bytes += 1;
                at += 1;
                continue;
            };
            if !self.begin(length, message_bytes_max) {
                return at;
            }
            at += 1;
        }
        at
    }

    /// The length of the frame, once its header says it; the byte at `header_bytes` is the last one read.
    fn length(&self) -> Option<u64> {
        let have = self.header_bytes + 1;
        let short = (have >= 2).then(|| self.header[1] & 0x7f)?;
        let bytes = match short {
            126 => 2,
            127 => 8,
            length => return Some(u64::from(length)),
        };
        let extended = self.header.get(2..2 + bytes).filter(|_| have >= 2 + bytes)?;
        Some(extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)))
    }

    /// Begins a frame, unless its message would become too large.
    fn begin(&mut self, length: u64, message_bytes_max: usize) -> bool {
        let is_last = self.header[0] & 0x80 != 0;
        let is_control = self.header[0] & 0x08 != 0;
        let message_bytes = self.message_bytes.saturating_add(length);
        if !is_control {
            if message_bytes > message_bytes_max as u64 {
                return false;
            }
            self.message_bytes = message_bytes;
            self.goes_on = !is_last;
        } else if length > message_bytes_max as u64 {
            return false;
        }
        self.is_control = is_control;
        self.header_bytes = 0;
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { MASK_BYTES };
        self.left = length + mask;
        if self.left == 0 {
            self.end_frame();
        }
        true
    }

    fn take(&mut self, part: usize) {
        self.left -= part as u64;
        if !self.is_control {
            self.unfinished_bytes += part;
        }
        if self.left == 0 {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        if !self.is_control && !self.goes_on {
            self.message_bytes = 0;
            self.unfinished_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use sluice_bus::shares::Shares;

    const TEXT: u8 = 0x01;
    const CONTINUED: u8 = 0x00;
    const PING: u8 = 0x09;
    const LAST: u8 = 0x80;

    fn frame(first: u8, bytes: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match bytes {
            0..126 => frame.push(0x80 | bytes as u8),
            126..65_536 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(bytes as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(bytes as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[1, 2, 3, 4]);
        frame.resize(frame.len() + bytes, b'x');
        frame
    }

    /// How many bytes pass when they come in pieces.
    fn passes(stream: &[u8], pieces: usize, bytes_max: usize) -> (usize, Headers) {
        let mut headers = Headers::default();
        let mut passed = 0;
        for piece in stream.chunks(pieces) {
            let part = headers.pass(piece, bytes_max);
            passed += part;
            if part < piece.len() {
                break;
            }
        }
        (passed, headers)
    }

    #[test]
    fn messages_within_the_bound_pass_however_they_are_cut() {
        let stream = [
            frame(LAST | TEXT, 5),
            frame(LAST | TEXT, 0),
            frame(LAST | TEXT, 1_000),
            frame(TEXT, 300),
            frame(LAST | PING, 100),
            frame(CONTINUED, 300),
            frame(LAST | CONTINUED, 400),
            frame(LAST | TEXT, 1_000),
        ]
        .concat();
        for pieces in [1, 2, 3, 7, 64, 10_000] {
            let (passed, headers) = passes(&stream, pieces, 1_000);
            assert_eq!(
                (passed, headers.unfinished_bytes, headers.message_bytes),
                (stream.len(), 0, 0),
                "{pieces}"
            );
        }
    }

    #[test]
    fn a_message_that_is_too_large_stops_before_its_length_is_known_to_others() {
        let small = frame(LAST | TEXT, 50);
        for (big, header) in [
            (frame(LAST | TEXT, 101), 2),
            (frame(LAST | TEXT, 1_000), 4),
            (frame(LAST | TEXT, 100_000), 10),
            (frame(LAST | PING, 120), 2),
        ] {
            for pieces in [1, 3, 60, 1_000_000] {
                let (passed, _) = passes(&[&*small, &*big].concat(), pieces, 100);
                assert_eq!(passed, small.len() + header - 1, "{} in pieces of {pieces}", big.len());
            }
        }
        let parts = [frame(TEXT, 60), frame(CONTINUED, 60)].concat();
        assert_eq!(passes(&parts, 1, 100).0, 66 + 1, "parts count together");
        let mut endless = vec![LAST | TEXT, 0x80 | 127];
        endless.extend_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(passes(&endless, 1, 100).0, 9);
    }

    #[tokio::test]
    async fn a_bound_that_is_raised_in_time_lets_the_rest_through() {
        let stream = [frame(LAST | TEXT, 50), frame(LAST | TEXT, 5_000), frame(LAST | TEXT, 5)].concat();
        let meter = Meter::new(100);
        let mut metered = Metered::new(&*stream, meter.clone());
        let mut first = vec![0; 10_000];
        let bytes = metered.read(&mut first).await.unwrap();
        assert_eq!(bytes, 56 + 3);
        meter.allow(10_000, None);
        let mut rest = first[..bytes].to_vec();
        metered.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, stream);

        let mut metered = Metered::new(&*stream, Meter::new(100));
        let mut all = Vec::new();
        let error = metered.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.get_ref().and_then(|e| e.downcast_ref()), Some(&Excess::TooLarge));
        assert_eq!(all.len(), 56 + 3);
    }

    #[tokio::test]
    async fn an_unfinished_message_counts_against_its_senders_share() {
        let shares = Shares::new(1 << 20);
        let half = &frame(LAST | TEXT, 2 << 20)[..500_000];
        let of = |shares: &Arc<Shares>| {
            let meter = Meter::new(0);
            meter.allow(4 << 20, shares.take("a", 0));
            meter
        };
        let (one, two, three) = (of(&shares), of(&shares), of(&shares));
        let mut all = Vec::new();
        Metered::new(half, one.clone()).read_to_end(&mut all).await.unwrap();
        Metered::new(half, two.clone()).read_to_end(&mut all).await.unwrap();
        assert!(one.is_unfinished());
        let error = Metered::new(half, three).read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.get_ref().and_then(|e| e.downcast_ref()), Some(&Excess::OverShare));
        drop((one, two));
        Metered::new(half, of(&shares)).read_to_end(&mut all).await.unwrap();
        let small = &frame(LAST | TEXT, 20_000)[..10_000];
        Metered::new(small, Meter::new(40_000)).read_to_end(&mut all).await.unwrap();
    }
}
