//! The WebSocket door: many calls at once over one connection, each down the hallway of [`crate::hall`].
//!
//! One task per socket holds everything: the calls under way, those that wait for their turn, and the writer. So a
//! socket that closes takes its calls with it, and a reader that does not keep up holds back only itself: answers wait in
//! a bounded outbox, then calls wait, then the socket is not read any more, and after a while it is closed.
//!
//! **Invariant: until a credential was accepted, a socket holds a few small frames and no call.** It has a deadline, and
//! gives way to newer ones.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::RandomState;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, SplitStream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::Instrument as _;

use crate::answer::Part;
use crate::body;
use crate::frame::{self, Frame, Garbage, Request};
use crate::hall::{Call, Door, Hall, Room};
use crate::identity::{Credential, Identity, Origin};
use crate::meter::{Excess, Meter, Metered};
use crate::metrics::Metrics;
use crate::outbox::{Outbox, Written, outbox, write};
use crate::refusal::{Refusal, UNREADABLE};

/// Refusals that may wait for the outbox before the socket is not read any more.
const NOTICES_MAX: usize = 64;
/// Bytes that are read of a socket at a time; each socket has a buffer of that size.
const READ_BYTES: usize = 16 << 10;

/// The largest message before a credential was accepted.
const STRANGERS_FRAME_BYTES_MAX: usize = 16 << 10;
/// Messages before a credential was accepted.
const STRANGERS_FRAMES_MAX: usize = 256;
/// How long, and how far, a message that is too large is read on, of which nothing is kept.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: usize = 64 << 20;
const STRANGERS_LINGER_BYTES_MAX: usize = 1 << 20;
/// Credentials that are refused on one socket before it is closed.
const REFUSED_CREDENTIALS_MAX: usize = 8;

pub(crate) type Socket = WebSocketStream<Metered<TokioIo<Upgraded>>>;

/// Serves one socket to its end.
pub(crate) async fn serve(hall: Arc<Hall>, upgraded: Upgraded, credential: Credential, origin: Origin) {
    let _open = Open::new(&hall.metrics);
    if let Some(connection) = &origin.connection {
        connection.becomes_socket();
    }
    let meter = Meter::new(STRANGERS_FRAME_BYTES_MAX.min(hall.options.frame_bytes_max));
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .max_message_size(Some(hall.options.frame_bytes_max))
        .max_frame_size(Some(hall.options.frame_bytes_max));
    let metered = Metered::new(TokioIo::new(upgraded), meter.clone());
    let socket = WebSocketStream::from_raw_socket(metered, Role::Server, Some(config)).await;
    let (sink, mut stream) = socket.split();
    let (outbox, unread) = outbox(hall.options.socket_unread_bytes_max);
    let write_timeout = hall.options.write_timeout;
    let writer = write(sink, unread, write_timeout);
    tokio::pin!(writer);
    let metrics = hall.metrics.clone();
    let mut session = Session::new(hall, outbox.clone(), meter, credential, origin);
    let span = tracing::info_span!("socket", id = &*session.origin.request_id);
    let close = tokio::select! {
        close = session.run(&mut stream).instrument(span.clone()) => close,
        (written, _) = &mut writer => {
            if written == Written::Stalled {
                metrics.stalled_sockets.inc();
                tracing::warn!(after = ?write_timeout, "a socket was closed: its reader does not read");
            }
            return;
        }
    };
    if let Some(close) = close.as_ref().filter(|close| close.code != CloseCode::Away) {
        span.in_scope(|| session.hall.gate.tries.refused(&session.origin, &close.reason));
    }
    let is_too_large = close.as_ref().is_some_and(|close| close.code == CloseCode::Size);
    let bytes_max = if session.is_known() { LINGER_BYTES_MAX } else { STRANGERS_LINGER_BYTES_MAX };
    let connection = session.origin.connection.clone();
    drop(session);
    if let Some(close) = close {
        outbox.send(Message::Close(Some(close))).await;
    }
    drop(outbox);
    // The writer bounds its own waiting.
    let (_, sink) = writer.await;
    if is_too_large && let Ok(mut socket) = sink.reunite(stream) {
        let linger = linger(socket.get_mut().unmetered(), bytes_max);
        match &connection {
            Some(connection) => tokio::select! { () = linger => {}, () = connection.evicted() => {} },
            None => linger.await,
        }
    }
}

/// Reads for a while what a client still sends of a message that is too large: were the connection closed before, the client
/// would see that it broke, and not why.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, bytes_max: usize) {
    let read = async {
        io.shutdown().await?;
        let (mut buffer, mut bytes) = (vec![0; READ_BYTES], 0);
        while bytes < bytes_max {
            match io.read(&mut buffer).await? {
                0 => break,
                more => bytes += more,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER_TIMEOUT, read).await;
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

/// A call that has ended: what it asked, and whether its credential was not accepted any more, with the number of the
/// credential.
type Ended = (u64, Option<u64>);
type CallUnderWay = Pin<Box<dyn Future<Output = Ended> + Send>>;
type Authentication = Pin<Box<dyn Future<Output = (Shown, Result<Arc<Identity>, Refusal>)> + Send>>;
type Reading = Pin<Box<dyn Future<Output = Result<Result<Frame, Garbage>, Refusal>> + Send>>;

/// A credential that is being looked at.
struct Shown {
    credential: Credential,
    /// Whether the client waits to be told.
    is_told: bool,
}

/// What waits for its turn, in the order it came: an authentication counts for what comes after it.
enum Work {
    Auth(Shown),
    /// With its room, if somebody was known when it came.
    Request(Box<Request>, Option<Room>),
}

/// Who is at the other end.
enum Standing {
    /// Nobody could be asked yet.
    Unasked,
    Known(Arc<Identity>),
    Refused,
}

struct Session {
    hall: Arc<Hall>,
    outbox: Outbox,
    meter: Arc<Meter>,
    credential: Credential,
    /// Grows with each credential.
    credentials_shown: u64,
    standing: Standing,
    /// Until when a credential has to be accepted.
    deadline: Instant,
    strangers_frames: usize,
    refused_credentials: usize,
    /// By how much the outbox is wider than strangers have it.
    widened_bytes: usize,
    origin: Origin,
    calls: FuturesUnordered<CallUnderWay>,
    authentication: Option<Authentication>,
    /// A large frame that is being read; the next one waits.
    reading: Option<Reading>,
    waiting: VecDeque<Work>,
    /// Ids of questions not answered yet, by sameness; the same question again is a client's retry.
    open: HashMap<u64, Box<RawValue>>,
    /// Refusals on their way to the outbox.
    notices: VecDeque<String>,
    hasher: RandomState,
    calls_made: u64,
}

impl Session {
    fn new(
        hall: Arc<Hall>,
        outbox: Outbox,
        meter: Arc<Meter>,
        credential: Credential,
        origin: Origin,
    ) -> Self {
        // What came with the upgrade is looked at first, and the client does not wait to be told.
        let shown = Shown { credential: credential.clone(), is_told: false };
        Self {
            deadline: Instant::now() + hall.options.socket_auth_timeout,
            hall,
            outbox,
            meter,
            credential,
            credentials_shown: 0,
            standing: Standing::Unasked,
            strangers_frames: 0,
            refused_credentials: 0,
            widened_bytes: 0,
            origin,
            calls: FuturesUnordered::new(),
            authentication: None,
            reading: None,
            waiting: VecDeque::from([Work::Auth(shown)]),
            open: HashMap::new(),
            notices: VecDeque::new(),
            hasher: RandomState::new(),
            calls_made: 0,
        }
    }

    /// Runs until the client leaves (`None`) or the socket has to be closed. Every branch is cancel-safe.
    async fn run(&mut self, stream: &mut SplitStream<Socket>) -> Option<CloseFrame> {
        let stop = self.hall.stop.clone();
        let mut stopping = false;
        let mut ping = tokio::time::interval(self.hall.options.ping_interval);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        let connection = self.origin.connection.clone();
        // In a list, so that what ends a socket is looked at when it happens, not with every frame.
        let mut ends: FuturesUnordered<BoxFuture<'_, End>> = FuturesUnordered::new();
        ends.push(Box::pin(async move {
            stop.cancelled_owned().await;
            End::Stop
        }));
        ends.push(Box::pin(async move {
            match &connection {
                Some(connection) => connection.evicted().await,
                None => std::future::pending().await,
            }
            End::Evicted
        }));
        loop {
            self.begin_what_waits();
            while let Some(notice) = self.notices.pop_front() {
                if let Err(notice) = self.outbox.try_send(notice) {
                    self.notices.push_front(notice);
                    break;
                }
            }
            if let Some(connection) = &self.origin.connection {
                connection.is_busy(!self.is_idle());
            }
            if stopping && self.is_idle() {
                return Some(close(CloseCode::Away, "the gateway is stopping"));
            }
            if let Some(close) = self.has_had_enough() {
                return Some(close);
            }
            let reads = self.reads();
            tokio::select! {
                Some((sameness, not_accepted)) = self.calls.next() => {
                    self.open.remove(&sameness);
                    if not_accepted == Some(self.credentials_shown) {
                        self.is_refused();
                    }
                }
                (shown, caller) = finished(&mut self.authentication) => self.authenticated(shown, caller),
                read = finished(&mut self.reading) => match read {
                    Ok(read) => self.take_frame(read, stopping),
                    Err(refusal) => self.turn_away(None, &refusal),
                },
                frame = stream.next(), if reads => match frame {
                    Some(Ok(frame)) => {
                        if self.take(frame, stopping).is_break() {
                            return None;
                        }
                    }
                    Some(Err(error)) => return self.broken(&error).await,
                    None => return None,
                },
                // Room for a notice again; sending itself happens above.
                () = self.outbox.ready(), if !self.notices.is_empty() => {}
                () = passed(self.deadline), if self.is_awaited() => return Some(self.too_late()),
                Some(end) = ends.next() => match end {
                    End::Stop => stopping = true,
                    End::Evicted => {
                        return Some(close(CloseCode::Again, "too many connections are open; connect again"));
                    }
                },
                _ = ping.tick() => {
                    if let Some(close) = self.is_silent() {
                        return Some(close);
                    }
                    self.outbox.ping();
                }
            }
        }
    }

    fn is_known(&self) -> bool {
        matches!(self.standing, Standing::Known(_))
    }

    /// Whether the next frame may be read. A stranger's waits while its credential is looked at, since what may come
    /// depends on that.
    fn reads(&self) -> bool {
        let is_free = self.is_known() || (self.authentication.is_none() && self.waiting.is_empty());
        is_free && self.reading.is_none() && self.notices.len() < NOTICES_MAX
    }

    /// Whether a credential has to come by the deadline, and none is being looked at.
    fn is_awaited(&self) -> bool {
        !self.is_known() && self.authentication.is_none()
    }

    fn too_late(&self) -> CloseFrame {
        match self.standing {
            Standing::Unasked => {
                close(CloseCode::Again, "the identity service does not answer; try again later")
            }
            Standing::Known(_) | Standing::Refused => {
                close(CloseCode::Policy, "no credential was accepted in time")
            }
        }
    }

    /// A stranger that goes on and on, or does not read why it is refused.
    fn has_had_enough(&self) -> Option<CloseFrame> {
        if self.is_known() || self.authentication.is_some() {
            return None;
        }
        let has = self.strangers_frames > STRANGERS_FRAMES_MAX
            || self.refused_credentials >= REFUSED_CREDENTIALS_MAX
            || self.notices.len() >= NOTICES_MAX;
        has.then(|| close(CloseCode::Policy, "too many messages without an accepted credential"))
    }

    fn is_silent(&self) -> Option<CloseFrame> {
        let silence = self.meter.silence();
        if self.meter.is_unfinished() && silence > self.hall.options.body_idle_timeout {
            return Some(close(CloseCode::Policy, "a message was not finished in time"));
        }
        let is_silent = silence > self.hall.options.socket_silence_timeout;
        is_silent.then(|| close(CloseCode::Policy, "no ping was answered for too long"))
    }

    fn is_idle(&self) -> bool {
        self.calls.is_empty()
            && self.waiting.is_empty()
            && self.authentication.is_none()
            && self.reading.is_none()
            && self.notices.is_empty()
    }

    fn begin_what_waits(&mut self) {
        while self.authentication.is_none() && self.calls.len() < self.hall.options.socket_calls_max {
            match self.waiting.pop_front() {
                None => return,
                Some(Work::Auth(shown)) => self.authenticate(shown),
                Some(Work::Request(request, room)) => {
                    let caller = match &self.standing {
                        Standing::Known(caller) => caller.clone(),
                        Standing::Refused => {
                            self.refuse(&request, &Refusal::Unauthenticated);
                            continue;
                        }
                        Standing::Unasked => {
                            // The last time it could not be asked; perhaps it can now.
                            self.waiting.push_front(Work::Request(request, room));
                            self.authenticate(Shown { credential: self.credential.clone(), is_told: false });
                            return;
                        }
                    };
                    match room.map_or_else(|| self.room(&caller, &request), Ok) {
                        Ok(room) => self.begin(*request, room),
                        Err(refusal) => self.refuse(&request, &refusal),
                    }
                }
            }
        }
    }

    fn authenticate(&mut self, shown: Shown) {
        let (hall, origin) = (self.hall.clone(), self.origin.clone());
        self.authentication = Some(Box::pin(async move {
            let caller = hall.gate.authenticate(&shown.credential, &origin).await;
            (shown, caller)
        }));
    }

    fn begin(&mut self, request: Request, room: Room) {
        self.calls_made += 1;
        let request_id = format!("{}.{}", self.origin.request_id, self.calls_made);
        let origin = Origin { request_id: request_id.into(), ..self.origin.clone() };
        let span = tracing::info_span!("call", id = &*origin.request_id, service = request.service);
        let (hall, outbox, shown) = (self.hall.clone(), self.outbox.clone(), self.credentials_shown);
        let call = answer(hall, outbox, (self.credential.clone(), shown), origin, request, room);
        self.calls.push(Box::pin(call.instrument(span)));
    }

    fn refuse(&mut self, request: &Request, refusal: &Refusal) {
        self.open.remove(&request.sameness);
        self.turn_away(Some(&request.id), refusal);
    }

    /// Tells the client why nothing comes of what it sent.
    fn turn_away(&mut self, id: Option<&RawValue>, refusal: &Refusal) {
        self.turned_away(refusal.turns_away());
        self.notices.push_back(frame::refused(id, refusal));
    }

    fn turned_away(&self, reason: Option<&str>) {
        if let Some(reason) = reason {
            self.hall.gate.tries.refused(&self.origin, reason);
        }
    }

    fn authenticated(&mut self, shown: Shown, caller: Result<Arc<Identity>, Refusal>) {
        self.credentials_shown += 1;
        match caller {
            Ok(caller) => {
                if shown.is_told {
                    self.notices.push_back(frame::authenticated(caller.workspace.as_str()));
                }
                self.credential = shown.credential;
                self.is_accepted(caller);
            }
            Err(refusal) => {
                if shown.is_told {
                    self.notices.push_back(frame::not_authenticated(&refusal));
                }
                match refusal {
                    Refusal::Unauthenticated => {
                        self.refused_credentials += usize::from(shown.is_told);
                        self.is_refused();
                    }
                    // Nobody was asked: it may be shown again, also by the next question.
                    _ => {
                        self.credential = shown.credential;
                        self.is_unasked();
                    }
                }
                self.refuse_those_behind(&refusal);
            }
        }
    }

    fn is_accepted(&mut self, caller: Arc<Identity>) {
        self.widened_bytes = self.outbox.widen(self.widened_bytes);
        let share = self.hall.body_share(&caller);
        self.meter.allow(self.hall.options.frame_bytes_max, Some(share));
        self.standing = Standing::Known(caller);
    }

    /// A refused credential leaves nobody: going on as who one was before would surprise.
    fn is_refused(&mut self) {
        self.become_stranger(Standing::Refused);
        self.credential = Credential::Refused;
    }

    fn is_unasked(&mut self) {
        self.become_stranger(Standing::Unasked);
    }

    fn become_stranger(&mut self, standing: Standing) {
        if self.is_known() {
            self.deadline = Instant::now() + self.hall.options.socket_auth_timeout;
            self.strangers_frames = 0;
            self.widened_bytes = self.outbox.narrow(self.widened_bytes);
            self.meter.allow(STRANGERS_FRAME_BYTES_MAX.min(self.hall.options.frame_bytes_max), None);
            if let Some(connection) = &self.origin.connection {
                connection.enter(crate::connections::Stage::StrangerSocket);
            }
        }
        self.standing = standing;
    }

    /// What came behind a credential that was not accepted is refused like it, up to the next credential.
    fn refuse_those_behind(&mut self, refusal: &Refusal) {
        while let Some(Work::Request(..)) = self.waiting.front() {
            if let Some(Work::Request(request, _)) = self.waiting.pop_front() {
                self.refuse(&request, refusal);
            }
        }
    }

    fn take(&mut self, message: Message, stopping: bool) -> ControlFlow<()> {
        if !self.is_known() {
            self.strangers_frames += 1;
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(bytes) => match bytes.try_into() {
                Ok(text) => text,
                Err(_) => {
                    self.turned_away(Some(UNREADABLE));
                    self.turn_away(None, &Refusal::failed("error", "frame is not UTF-8"));
                    return ControlFlow::Continue(());
                }
            },
            Message::Close(_) => return ControlFlow::Break(()),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return ControlFlow::Continue(()),
        };
        if text.len() <= body::INLINE_BYTES_MAX {
            let read = Frame::read(&text, &self.hasher);
            self.take_frame(read, stopping);
        } else {
            let (hall, hasher) = (self.hall.clone(), self.hasher.clone());
            self.reading = Some(Box::pin(async move {
                // The semaphore is never closed.
                let _reader = hall.body_readers.acquire().await;
                body::off_worker(move || Frame::read(&text, &hasher)).await
            }));
        }
        ControlFlow::Continue(())
    }

    fn take_frame(&mut self, read: Result<Frame, Garbage>, stopping: bool) {
        match read {
            Ok(Frame::Auth { .. }) if self.waiting.len() >= self.hall.options.socket_waiting_max => {
                let refusal = Refusal::Overloaded(TOO_MANY_WAIT);
                self.turned_away(refusal.turns_away());
                self.notices.push_back(frame::not_authenticated(&refusal));
            }
            Ok(Frame::Auth { token }) => {
                let credential = Credential::from_token(token.as_deref());
                self.waiting.push_back(Work::Auth(Shown { credential, is_told: true }));
            }
            Ok(Frame::Request(request)) if self.open.contains_key(&request.sameness) => {
                tracing::debug!("a question that is being answered came again");
            }
            Ok(Frame::Request(request)) => match self.admit(&request, stopping) {
                Ok(room) => {
                    self.open.insert(request.sameness, request.id.clone());
                    self.waiting.push_back(Work::Request(Box::new(request), room));
                }
                Err(refusal) => self.turn_away(Some(&request.id), &refusal),
            },
            Err(Garbage { id, refusal }) => {
                // What is wrong with a frame has words of its own.
                self.turned_away(refusal.turns_away().or(Some(UNREADABLE)));
                self.notices.push_back(frame::refused(id.as_deref(), &refusal));
            }
        }
    }

    fn admit(&self, request: &Request, stopping: bool) -> Result<Option<Room>, Refusal> {
        if stopping {
            return Err(Refusal::stopping());
        }
        if self.waiting.len() >= self.hall.options.socket_waiting_max {
            return Err(Refusal::Overloaded(TOO_MANY_WAIT));
        }
        match &self.standing {
            Standing::Known(caller) => self.room(caller, request).map(Some),
            Standing::Unasked => Ok(None),
            Standing::Refused if self.waiting.is_empty() => Err(Refusal::Unauthenticated),
            Standing::Refused => Ok(None),
        }
    }

    /// Room for a request; what it counted for while it arrived goes over.
    fn room(&self, caller: &Identity, request: &Request) -> Result<Room, Refusal> {
        let mut room = self.hall.room_for(caller, self.meter.hand_over())?;
        room.weigh(request.weight_bytes)?;
        Ok(room)
    }

    /// The client sent what no frame can be. Calls under way are told before the socket closes, since clients wait for
    /// their last frame and not for the close.
    async fn broken(&mut self, error: &tungstenite::Error) -> Option<CloseFrame> {
        tracing::debug!(%error, "a socket broke");
        let bytes_max = self.hall.options.frame_bytes_max;
        let Some(excess) = excess(error) else {
            // One that only left has not said anything.
            self.turned_away(is_no_frame(error).then_some(UNREADABLE));
            return None;
        };
        let (refusal, cut, close) = match excess {
            Excess::TooLarge => (
                Refusal::TooLarge {
                    bytes_max: if self.is_known() { bytes_max } else { STRANGERS_FRAME_BYTES_MAX },
                },
                "the socket was closed: a message on it was too large",
                close(CloseCode::Size, "the message is too large"),
            ),
            Excess::OverShare => (
                Refusal::Overloaded("you have too many bytes under way; wait for answers, then try again"),
                "the socket was closed: its caller had too many bytes under way",
                close(CloseCode::Again, "too many bytes under way"),
            ),
        };
        self.calls.clear();
        self.waiting.clear();
        self.outbox.send(Message::Text(frame::refused(None, &refusal).into())).await;
        let cut = Refusal::failed("gateway-error", cut);
        for (_, id) in std::mem::take(&mut self.open) {
            self.outbox.send(Message::Text(frame::refused(Some(&id), &cut).into())).await;
        }
        Some(close)
    }
}

const TOO_MANY_WAIT: &str = "too many calls wait on this socket; wait for answers first";

/// Whether a socket broke because there was too much of it.
fn excess(error: &tungstenite::Error) -> Option<Excess> {
    match error {
        tungstenite::Error::Capacity(_) => Some(Excess::TooLarge),
        tungstenite::Error::Io(error) => error.get_ref()?.downcast_ref().copied(),
        _ => None,
    }
}

/// Whether a socket broke because of what came over it.
fn is_no_frame(error: &tungstenite::Error) -> bool {
    match error {
        tungstenite::Error::Protocol(error) => *error != ProtocolError::ResetWithoutClosingHandshake,
        tungstenite::Error::Utf8(_) => true,
        _ => false,
    }
}

/// What ends a socket from our side.
enum End {
    /// Nothing new is taken in.
    Stop,
    /// Another connection needs its place.
    Evicted,
}

/// Waits for a moment. No timer is made before it is waited for.
async fn passed(moment: Instant) {
    tokio::time::sleep_until(moment).await;
}

/// What is under way, once it is done; never where nothing is.
async fn finished<T>(under_way: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match under_way {
        None => std::future::pending().await,
        Some(future) => {
            let done = future.await;
            *under_way = None;
            done
        }
    }
}

/// One call, from its frame to its last frame.
async fn answer(
    hall: Arc<Hall>,
    outbox: Outbox,
    (credential, shown): (Credential, u64),
    origin: Origin,
    request: Request,
    mut room: Room,
) -> Ended {
    let Request { id, workspace, flow, service, body, sameness, .. } = request;
    let whole = body.get("streaming").and_then(serde_json::Value::as_bool) != Some(true);
    let mut not_accepted = None;
    let entered = async {
        let caller = hall.gate.authenticate(&credential, &origin).await;
        let caller = Some(caller.inspect_err(|refusal| {
            not_accepted = (*refusal == Refusal::Unauthenticated).then_some(shown);
        })?);
        let (workspace, flow, service) = (workspace.as_deref(), flow.as_deref(), service.as_str());
        hall.enter(Call { door: Door::Socket, caller, workspace, flow, service, body, origin: &origin }).await
    };
    let entered = entered.await;
    let mut answer = match entered {
        Ok(answer) => answer,
        Err(refusal) => {
            if let Some(reason) = refusal.turns_away() {
                hall.gate.tries.refused(&origin, reason);
            }
            outbox.send(Message::Text(frame::refused(Some(&id), &refusal).into())).await;
            return (sameness, not_accepted);
        }
    };
    room.is_asked(&answer);
    loop {
        let (text, last, held) = match answer.next().await {
            Ok(Part { reply, held }) => {
                hall.gate.hears(&origin, service.as_str(), &reply);
                (frame::answer(&id, &reply, whole), reply.last, held)
            }
            Err(refusal) => (frame::refused(Some(&id), &refusal), true, None),
        };
        outbox.send_held(Message::Text(text.into()), held).await;
        if last {
            return (sameness, None);
        }
    }
}

fn close(code: CloseCode, reason: &'static str) -> CloseFrame {
    CloseFrame { code, reason: reason.into() }
}
