//! Frames on their way to the reader of a socket, and what writes them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt as _;
use futures_util::stream::SplitSink;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

use crate::socket::Socket;
use sluice_bus::shares::Share;

/// Frames in the outbox, beside its bound in bytes.
const UNREAD_FRAMES_MAX: usize = 256;
/// How long a client that leaves may take to be told so.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers on their way to a reader that is a stranger.
const STRANGERS_UNREAD_BYTES_MAX: usize = 64 << 10;

/// Frames on their way to the reader, bounded in number and bytes.
#[derive(Clone)]
pub(crate) struct Outbox {
    frames: mpsc::Sender<Frame>,
    room: Arc<Semaphore>,
    bytes_max: usize,
}

/// A message on its way, with what it takes until it has left: room in the outbox, and of large answers their bytes.
struct Frame(Message, Taken);
type Taken = (OwnedSemaphorePermit, Option<Share>);

pub(crate) struct Unread(mpsc::Receiver<Frame>);

/// An outbox as narrow as strangers have it.
pub(crate) fn outbox(bytes_max: usize) -> (Outbox, Unread) {
    let (frames, unread) = mpsc::channel(UNREAD_FRAMES_MAX);
    let narrow = STRANGERS_UNREAD_BYTES_MAX.min(bytes_max);
    (Outbox { frames, room: Arc::new(Semaphore::new(narrow)), bytes_max }, Unread(unread))
}

impl Outbox {
    /// As wide as known callers have it; by how much it is wider then than strangers have it.
    pub(crate) fn widen(&self, widened_bytes: usize) -> usize {
        let rest = self.bytes_max.saturating_sub(STRANGERS_UNREAD_BYTES_MAX);
        self.room.add_permits(rest.saturating_sub(widened_bytes));
        rest
    }

    /// As narrow as strangers have it, as far as nothing is on its way; by how much it is still wider.
    pub(crate) fn narrow(&self, widened_bytes: usize) -> usize {
        widened_bytes - self.room.forget_permits(widened_bytes)
    }

    fn bytes(&self, message: &Message) -> u32 {
        let bytes = match message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
            Message::Close(_) | Message::Frame(_) => 0,
        };
        // A frame larger than the whole outbox takes all of it.
        u32::try_from(bytes.min(self.bytes_max)).unwrap_or(u32::MAX)
    }

    /// Waits for room. A frame for a reader that is gone is dropped; its socket ends by itself.
    pub(crate) async fn send(&self, message: Message) {
        self.send_held(message, None).await;
    }

    /// The same, with what the frame counts for until it has left.
    pub(crate) async fn send_held(&self, message: Message, held: Option<Share>) {
        let bytes = self.bytes(&message);
        if let Ok(room) = self.room.clone().acquire_many_owned(bytes).await {
            let _ = self.frames.send(Frame(message, (room, held))).await;
        }
    }

    pub(crate) fn try_send(&self, text: String) -> Result<(), String> {
        let Ok(frame) = self.frames.try_reserve() else { return Err(text) };
        let message = Message::Text(text.into());
        match self.room.clone().try_acquire_many_owned(self.bytes(&message)) {
            Ok(room) => {
                frame.send(Frame(message, (room, None)));
                Ok(())
            }
            Err(_) => match message {
                Message::Text(text) => Err(text.to_string()),
                _ => Ok(()),
            },
        }
    }

    /// Waits until something of the outbox is free.
    pub(crate) async fn ready(&self) {
        let _ = self.frames.reserve().await;
        let _ = self.room.acquire().await;
    }

    pub(crate) fn ping(&self) {
        if let (Ok(frame), Ok(room)) =
            (self.frames.try_reserve(), self.room.clone().try_acquire_many_owned(0))
        {
            frame.send(Frame(Message::Ping(bytes::Bytes::new()), (room, None)));
        }
    }
}

#[derive(PartialEq, Eq)]
pub(crate) enum Written {
    /// Everything, or up to where the client left.
    Ended,
    /// The reader did not read for too long.
    Stalled,
}

pub(crate) type Sink = SplitSink<Socket, Message>;

/// Writes frames until there are no more, or the reader does not read for so long.
pub(crate) async fn write(mut sink: Sink, Unread(mut unread): Unread, timeout: Duration) -> (Written, Sink) {
    while let Some(Frame(message, taken)) = unread.recv().await {
        let mut held = vec![taken];
        let batch = async {
            sink.feed(message).await?;
            while let Ok(Frame(message, taken)) = unread.try_recv() {
                held.push(taken);
                sink.feed(message).await?;
            }
            sink.flush().await
        };
        match tokio::time::timeout(timeout, batch).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return (Written::Ended, sink),
            Err(_) => return (Written::Stalled, sink),
        }
    }
    // What the protocol itself has to say, as the answer to a close, may still be on its way.
    let _ = tokio::time::timeout(timeout.min(CLOSE_TIMEOUT), sink.close()).await;
    (Written::Ended, sink)
}
