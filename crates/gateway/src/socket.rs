//! The WebSocket door: many calls at once over one connection, each down the hallway of [`crate::hall`].
//!
//! One task per socket holds everything: the calls under way, those that wait for their turn, and the writer. So a
//! socket that closes takes its calls with it, and a reader that does not keep up holds back only itself: answers wait in
//! a bounded outbox, then calls wait, then the socket is not read any more, and after a while it is closed.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::RandomState;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::stream::{FuturesUnordered, SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tracing::Instrument as _;

use crate::frame::{self, Frame, Garbage, Request};
use crate::hall::{Call, Door, Hall, Room};
use crate::identity::{Credential, Identity, Origin};
use crate::metrics::Metrics;
use crate::refusal::Refusal;

/// Frames in the outbox, beside its bound in bytes.
const UNREAD_FRAMES_MAX: usize = 256;
/// Refusals that may wait for the outbox before the socket is not read any more.
const NOTICES_MAX: usize = 64;

const GOING_AWAY: u16 = 1001;
const TOO_BIG: u16 = 1009;

/// Serves one socket to its end.
pub(crate) async fn serve(hall: Arc<Hall>, socket: WebSocket, credential: Credential, origin: Origin) {
    let _open = Open::new(&hall.metrics);
    let (sink, stream) = socket.split();
    let (outbox, unread) = outbox(hall.options.socket_unread_bytes_max);
    let write_timeout = hall.options.write_timeout;
    let writer = write(sink, unread, write_timeout);
    tokio::pin!(writer);
    let metrics = hall.metrics.clone();
    let mut session = Session::new(hall, outbox.clone(), credential, origin);
    let span = tracing::info_span!("socket", id = &*session.origin.request_id);
    let close = tokio::select! {
        close = session.run(stream).instrument(span) => close,
        written = &mut writer => {
            if written == Written::Stalled {
                metrics.stalled_sockets.inc();
                tracing::warn!(after = ?write_timeout, "a socket was closed: its reader does not read");
            }
            return;
        }
    };
    drop(session);
    if let Some(close) = close {
        outbox.send(Message::Close(Some(close))).await;
    }
    drop(outbox);
    // The writer bounds its own waiting.
    writer.await;
}

/// Counts a socket while it lives.
struct Open(Metrics);

impl Open {
    fn new(metrics: &Metrics) -> Self {
        metrics.open_sockets.inc();
        Self(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open_sockets.dec();
    }
}

type CallUnderWay = Pin<Box<dyn Future<Output = u64> + Send>>;
type Authentication = Pin<Box<dyn Future<Output = (Credential, Result<Arc<Identity>, Refusal>)> + Send>>;

/// What waits for its turn, in the order it came: an authentication counts for what comes after it.
enum Work {
    Auth(Credential),
    Request(Request, Room),
}

struct Session {
    hall: Arc<Hall>,
    outbox: Outbox,
    credential: Credential,
    origin: Origin,
    calls: FuturesUnordered<CallUnderWay>,
    authentication: Option<Authentication>,
    waiting: VecDeque<Work>,
    /// Ids of questions not answered yet, by sameness; the same question again is a client's retry.
    open: HashMap<u64, Box<RawValue>>,
    /// Refusals on their way to the outbox.
    notices: VecDeque<String>,
    hasher: RandomState,
    calls_made: u64,
}

impl Session {
    fn new(hall: Arc<Hall>, outbox: Outbox, credential: Credential, origin: Origin) -> Self {
        Self {
            hall,
            outbox,
            credential,
            origin,
            calls: FuturesUnordered::new(),
            authentication: None,
            waiting: VecDeque::new(),
            open: HashMap::new(),
            notices: VecDeque::new(),
            hasher: RandomState::new(),
            calls_made: 0,
        }
    }

    /// Runs until the client leaves (`None`) or the socket has to be closed. Every branch is cancel-safe.
    async fn run(&mut self, mut stream: SplitStream<WebSocket>) -> Option<CloseFrame> {
        let stop = self.hall.stop.clone();
        let mut stopping = false;
        let mut ping = tokio::time::interval(self.hall.options.ping_interval);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        loop {
            self.begin_what_waits();
            while let Some(notice) = self.notices.pop_front() {
                if let Err(notice) = self.outbox.try_send(notice) {
                    self.notices.push_front(notice);
                    break;
                }
            }
            if stopping && self.is_idle() {
                return Some(close(GOING_AWAY, "the gateway is stopping"));
            }
            tokio::select! {
                Some(sameness) = self.calls.next() => {
                    self.open.remove(&sameness);
                }
                (credential, caller) = finished(&mut self.authentication) => self.authenticated(credential, &caller),
                frame = stream.next(), if self.notices.len() < NOTICES_MAX => match frame {
                    Some(Ok(frame)) => {
                        if self.take(&frame, stopping).is_break() {
                            return None;
                        }
                    }
                    Some(Err(error)) => return self.broken(&error).await,
                    None => return None,
                },
                // Room for a notice again; sending itself happens above.
                () = self.outbox.ready(), if !self.notices.is_empty() => {}
                () = stop.cancelled(), if !stopping => stopping = true,
                _ = ping.tick() => self.outbox.ping(),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.calls.is_empty()
            && self.waiting.is_empty()
            && self.authentication.is_none()
            && self.notices.is_empty()
    }

    fn begin_what_waits(&mut self) {
        while self.authentication.is_none() && self.calls.len() < self.hall.options.socket_calls_max {
            match self.waiting.pop_front() {
                None => return,
                Some(Work::Auth(credential)) => {
                    let (hall, origin) = (self.hall.clone(), self.origin.clone());
                    self.authentication = Some(Box::pin(async move {
                        let caller = hall.gate.authenticate(&credential, &origin).await;
                        (credential, caller)
                    }));
                }
                Some(Work::Request(request, room)) => {
                    self.calls_made += 1;
                    let request_id = format!("{}.{}", self.origin.request_id, self.calls_made);
                    let origin = Origin { request_id: request_id.into(), ..self.origin.clone() };
                    let span =
                        tracing::info_span!("call", id = &*origin.request_id, service = request.service);
                    let (hall, outbox) = (self.hall.clone(), self.outbox.clone());
                    let call = answer(hall, outbox, self.credential.clone(), origin, request, room);
                    self.calls.push(Box::pin(call.instrument(span)));
                }
            }
        }
    }

    fn authenticated(&mut self, credential: Credential, caller: &Result<Arc<Identity>, Refusal>) {
        let workspace = caller.as_ref().ok().map(|caller| caller.workspace.as_str());
        self.notices.push_back(frame::authenticated(workspace));
        // A failed attempt leaves nobody: going on as who one was before would surprise.
        self.credential = if caller.is_ok() { credential } else { Credential::Refused };
    }

    fn take(&mut self, message: &Message, stopping: bool) -> ControlFlow<()> {
        let text = match message {
            Message::Text(text) => text.as_str(),
            Message::Binary(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => text,
                Err(_) => {
                    let refusal = Refusal::failed("error", "frame is not UTF-8");
                    self.notices.push_back(frame::refused(None, &refusal));
                    return ControlFlow::Continue(());
                }
            },
            Message::Close(_) => return ControlFlow::Break(()),
            Message::Ping(_) | Message::Pong(_) => return ControlFlow::Continue(()),
        };
        match Frame::read(text, &self.hasher) {
            Ok(Frame::Auth { .. }) if self.waiting.len() >= self.hall.options.socket_waiting_max => {
                self.notices.push_back(frame::authenticated(None));
            }
            Ok(Frame::Auth { token }) => {
                self.waiting.push_back(Work::Auth(Credential::from_token(token.as_deref())));
            }
            Ok(Frame::Request(request)) if self.open.contains_key(&request.sameness) => {
                tracing::debug!("a question that is being answered came again");
            }
            Ok(Frame::Request(request)) => match self.admit(text.len(), stopping) {
                Ok(room) => {
                    self.open.insert(request.sameness, request.id.clone());
                    self.waiting.push_back(Work::Request(request, room));
                }
                Err(refusal) => self.notices.push_back(frame::refused(Some(&request.id), &refusal)),
            },
            Err(Garbage { id, refusal }) => self.notices.push_back(frame::refused(id.as_deref(), &refusal)),
        }
        ControlFlow::Continue(())
    }

    fn admit(&self, bytes: usize, stopping: bool) -> Result<Room, Refusal> {
        if stopping {
            return Err(Refusal::failed("gateway-error", "the gateway is stopping"));
        }
        if self.waiting.len() >= self.hall.options.socket_waiting_max {
            return Err(Refusal::Overloaded("too many calls wait on this socket; wait for answers first"));
        }
        let mut room = self.hall.room()?;
        room.grow(bytes)?;
        Ok(room)
    }

    /// The client sent what no frame can be. Calls under way are told before the socket closes, since clients wait for
    /// their last frame and not for the close.
    async fn broken(&mut self, error: &axum::Error) -> Option<CloseFrame> {
        let too_big = error.to_string().to_lowercase().contains("too long");
        tracing::debug!(%error, "a socket broke");
        if !too_big {
            return None;
        }
        self.calls.clear();
        self.waiting.clear();
        let refusal = Refusal::TooLarge { bytes_max: self.hall.options.frame_bytes_max };
        self.outbox.send(Message::Text(frame::refused(None, &refusal).into())).await;
        let cut = Refusal::failed("gateway-error", "the socket was closed: a message on it was too large");
        for (_, id) in std::mem::take(&mut self.open) {
            self.outbox.send(Message::Text(frame::refused(Some(&id), &cut).into())).await;
        }
        Some(close(TOO_BIG, "the message is too large"))
    }
}

async fn finished(
    authentication: &mut Option<Authentication>,
) -> (Credential, Result<Arc<Identity>, Refusal>) {
    match authentication {
        None => std::future::pending().await,
        Some(under_way) => {
            let done = under_way.await;
            *authentication = None;
            done
        }
    }
}

/// One call, from its frame to its last frame.
async fn answer(
    hall: Arc<Hall>,
    outbox: Outbox,
    credential: Credential,
    origin: Origin,
    request: Request,
    mut room: Room,
) -> u64 {
    let Request { id, workspace, flow, service, body, sameness } = request;
    let whole = body.get("streaming").and_then(serde_json::Value::as_bool) != Some(true);
    let entered = async {
        let caller = Some(hall.gate.authenticate(&credential, &origin).await?);
        let (workspace, flow, service) = (workspace.as_deref(), flow.as_deref(), service.as_str());
        hall.enter(Call { door: Door::Socket, caller, workspace, flow, service, body, origin: &origin }).await
    };
    let mut answer = match entered.await {
        Ok(answer) => answer,
        Err(refusal) => {
            outbox.send(Message::Text(frame::refused(Some(&id), &refusal).into())).await;
            return sameness;
        }
    };
    room.release_body();
    loop {
        let (text, last) = match answer.next().await {
            Ok(reply) => (frame::answer(&id, &reply, whole), reply.last),
            Err(refusal) => (frame::refused(Some(&id), &refusal), true),
        };
        outbox.send(Message::Text(text.into())).await;
        if last {
            return sameness;
        }
    }
}

fn close(code: u16, reason: &'static str) -> CloseFrame {
    CloseFrame { code, reason: reason.into() }
}

/// Frames on their way to the reader, bounded in number and bytes.
#[derive(Clone)]
struct Outbox {
    frames: mpsc::Sender<(Message, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    bytes_max: usize,
}

type Unread = mpsc::Receiver<(Message, OwnedSemaphorePermit)>;

fn outbox(bytes_max: usize) -> (Outbox, Unread) {
    let (frames, unread) = mpsc::channel(UNREAD_FRAMES_MAX);
    (Outbox { frames, room: Arc::new(Semaphore::new(bytes_max)), bytes_max }, unread)
}

impl Outbox {
    fn bytes(&self, message: &Message) -> u32 {
        let bytes = match message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
            Message::Close(_) => 0,
        };
        // A frame larger than the whole outbox takes all of it.
        u32::try_from(bytes.min(self.bytes_max)).unwrap_or(u32::MAX)
    }

    /// Waits for room. A frame for a reader that is gone is dropped; its socket ends by itself.
    async fn send(&self, message: Message) {
        let bytes = self.bytes(&message);
        if let Ok(room) = self.room.clone().acquire_many_owned(bytes).await {
            let _ = self.frames.send((message, room)).await;
        }
    }

    fn try_send(&self, text: String) -> Result<(), String> {
        let Ok(frame) = self.frames.try_reserve() else { return Err(text) };
        let message = Message::Text(text.into());
        match self.room.clone().try_acquire_many_owned(self.bytes(&message)) {
            Ok(room) => {
                frame.send((message, room));
                Ok(())
            }
            Err(_) => match message {
                Message::Text(text) => Err(text.to_string()),
                _ => Ok(()),
            },
        }
    }

    /// Waits until something of the outbox is free.
    async fn ready(&self) {
        let _ = self.frames.reserve().await;
        let _ = self.room.acquire().await;
    }

    fn ping(&self) {
        if let (Ok(frame), Ok(room)) =
            (self.frames.try_reserve(), self.room.clone().try_acquire_many_owned(0))
        {
            frame.send((Message::Ping(bytes::Bytes::new()), room));
        }
    }
}

#[derive(PartialEq, Eq)]
enum Written {
    /// Everything, or up to where the client left.
    Ended,
    /// The reader did not read for too long.
    Stalled,
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut unread: Unread, timeout: Duration) -> Written {
    while let Some((message, room)) = unread.recv().await {
        let mut held = vec![room];
        let batch = async {
            sink.feed(message).await?;
            while let Ok((message, room)) = unread.try_recv() {
                held.push(room);
                sink.feed(message).await?;
            }
            sink.flush().await
        };
        match tokio::time::timeout(timeout, batch).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Written::Ended,
            Err(_) => return Written::Stalled,
        }
    }
    Written::Ended
}
