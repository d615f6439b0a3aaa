//! One connection to one broker: commands and their answers, receipts of what was sent, and what consumers get. When it is
//! lost it stays so; whoever needs another one asks for it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sluice_bus::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::address::Address;
use super::batch::{self, Part};
use super::frame::{self, Frame};
use super::proto::{
    self, AuthData, AuthResponse, Close, Command, Connect, Connected, Metadata, Nothing, PROTOCOL_VERSION,
    code,
};
use crate::local::lock;

/// After so long a silence the broker is asked for a word; after twice that it is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Frames that are written at once, at most.
const WRITES_MAX: usize = 256;
const BUFFER_BYTES: usize = 64 << 10;
/// A broker that does not say how large messages may be takes these.
const MESSAGE_BYTES_DEFAULT: usize = 5 << 20;
const CLIENT: &str = concat!("sluice ", env!("CARGO_PKG_VERSION"));

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
type Socket = Box<dyn Stream>;

/// Why a command was not done.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// The broker said so, with a code.
    Refused {
        code: i32,
        said: String,
    },
    /// The connection was lost; what was under way may have been done.
    Lost(String),
    TimedOut(Duration),
    /// It could not be said at all.
    Other(Error),
}

/// A message that came to a consumer.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) id: proto::MessageId,
    /// Where its sender put several into one.
    pub(super) part: Option<Part>,
    /// How often it was given back on purpose, as far as the broker remembers.
    pub(super) redelivered: u32,
    pub(super) metadata: Metadata,
    pub(super) body: Bytes,
}

type Answer<T> = oneshot::Sender<Result<T, Fault>>;

#[derive(Default)]
struct Waiting {
    /// Why the connection is over.
    over: Option<String>,
    answers: HashMap<u64, Answer<Command>>,
    receipts: HashMap<(u64, u64), Answer<()>>,
    pongs: VecDeque<oneshot::Sender<()>>,
    /// Cancelled when the broker closes a producer.
    producers: HashMap<u64, CancellationToken>,
    /// Unbounded: the broker sends as much as it was permitted, and one word at the end, which is the sender's end.
    consumers: HashMap<u64, mpsc::UnboundedSender<Arrived>>,
}

/// What the tasks of a connection share with those that use it.
struct Shared {
    waiting: Mutex<Waiting>,
    heard: Mutex<Instant>,
    over: CancellationToken,
    /// Unbounded: a publish waits for its receipt, and publishes under way are bounded; other commands are a few for each
    /// delivery in somebody's hands and each call under way.
    out: mpsc::UnboundedSender<Bytes>,
    address: Arc<Address>,
}

pub(super) struct Link {
    shared: Arc<Shared>,
    numbers: AtomicU64,
    pub(super) message_bytes_max: usize,
    /// What the broker says of itself.
    pub(super) server_version: String,
    _gone: DropGuard,
}

impl Link {
    /// Connects to a broker of a cluster; `proxied` is one behind the host that is connected to.
    pub(super) async fn open(
        address: &Arc<Address>,
        broker: &str,
        proxied: Option<String>,
        tasks: &TaskTracker,
        within: Duration,
    ) -> Result<Arc<Self>, Error> {
        let opened = timeout(within, Self::shake_hands(address, broker, proxied)).await;
        let (socket, arrived, connected) = match opened {
            Ok(opened) => opened?,
            Err(_) => return Err(Error::Unavailable { reason: format!("no answer of {broker} in time") }),
        };
        let max = connected.max_message_size.and_then(|max| usize::try_from(max).ok());
        let message_bytes_max = max.unwrap_or(MESSAGE_BYTES_DEFAULT);
        let (read, write) = tokio::io::split(socket);
        let (out, outgoing) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            over: CancellationToken::new(),
            out,
            address: address.clone(),
        });
        tasks.spawn(shared.clone().read(read, arrived, message_bytes_max, stop.clone()));
        tasks.spawn(shared.clone().write(write, outgoing, stop.clone()));
        Ok(Arc::new(Self {
            shared,
            numbers: AtomicU64::new(1),
            message_bytes_max,
            server_version: connected.server_version,
            _gone: stop.drop_guard(),
        }))
    }

    async fn shake_hands(
        address: &Address,
        broker: &str,
        proxied: Option<String>,
    ) -> Result<(Socket, BytesMut, Connected), Error> {
        let unavailable = |why: &dyn std::fmt::Display| Error::Unavailable {
            reason: format!("no connection to {broker}: {why}"),
        };
        let mut socket = address.open(broker).await?;
        let hello = Connect {
            client_version: CLIENT.to_owned(),
            auth_method_name: address.token().map(|_| "token".to_owned()),
            auth_data: address.token().map(|token| token.reveal().as_bytes().to_vec()),
            protocol_version: Some(PROTOCOL_VERSION),
            proxy_to_broker_url: proxied,
        };
        let hello = frame::encode(Command::Connect(hello));
        socket.write_all(&hello).await.map_err(|error| unavailable(&error))?;
        socket.flush().await.map_err(|error| unavailable(&error))?;
        let mut arrived = BytesMut::new();
        loop {
            match frame::take(&mut arrived, MESSAGE_BYTES_DEFAULT).map_err(|why| unavailable(&why))? {
                Some(Frame { command: Some(Command::Connected(connected)), .. }) => {
                    tracing::debug!(broker, version = connected.server_version, "connected");
                    return Ok((socket, arrived, connected));
                }
                Some(Frame { command: Some(Command::Error(failed)), .. }) => {
                    return Err(of_connecting(broker, failed.code, &failed.message));
                }
                Some(_) => {}
                None => {
                    let read = socket.read_buf(&mut arrived).await.map_err(|error| unavailable(&error))?;
                    if read == 0 {
                        return Err(unavailable(&"the broker closed it"));
                    }
                }
            }
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn is_over(&self) -> bool {
        self.shared.over.is_cancelled()
    }

    /// Returns once the connection is lost.
    pub(super) async fn over(&self) {
        self.shared.over.cancelled().await;
    }

    /// Says something that is not answered. What is said on a lost connection is not heard.
    pub(super) fn say(&self, command: Command) {
        let _ = self.shared.out.send(frame::encode(command));
    }

    /// Asks, and waits for the answer to the request of this number.
    pub(super) async fn ask(
        &self,
        number: u64,
        command: Command,
        within: Duration,
    ) -> Result<Command, Fault> {
        let (answer, answered) = oneshot::channel();
        self.shared.wait(|waiting| waiting.answers.insert(number, answer))?;
        self.say(command);
        let outcome = self.shared.answer(answered, within).await;
        if matches!(outcome, Err(Fault::TimedOut(_))) {
            lock(&self.shared.waiting).answers.remove(&number);
        }
        outcome
    }

    /// Waits for a sign of life.
    pub(super) async fn ping(&self, within: Duration) -> Result<(), Fault> {
        let (pong, heard) = oneshot::channel();
        self.shared.wait(|waiting| waiting.pongs.push_back(pong))?;
        self.say(Command::Ping(Nothing {}));
        match timeout(within, heard).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.shared.lost()),
            Err(_) => Err(Fault::TimedOut(within)),
        }
    }

    /// Sends a message at once, in the order of calls; what is returned waits for its receipt.
    pub(super) fn send(
        &self,
        producer: u64,
        metadata: &Metadata,
        body: &[u8],
        within: Duration,
    ) -> impl Future<Output = Result<(), Fault>> + Send + use<> {
        let (receipt, received) = oneshot::channel();
        let sequence = metadata.sequence;
        let waits = self.shared.wait(|waiting| waiting.receipts.insert((producer, sequence), receipt));
        if waits.is_ok() {
            let send = Command::Send(proto::Send { producer, sequence });
            let _ = self.shared.out.send(frame::encode_message(send, metadata, body));
        }
        let shared = self.shared.clone();
        async move {
            waits?;
            let outcome = shared.answer(received, within).await;
            if matches!(outcome, Err(Fault::TimedOut(_))) {
                lock(&shared.waiting).receipts.remove(&(producer, sequence));
            }
            outcome
        }
    }

    /// Notes a producer; what is returned is cancelled when the broker closes it or the connection is lost.
    pub(super) fn add_producer(&self, id: u64) -> CancellationToken {
        let closed = self.shared.over.child_token();
        lock(&self.shared.waiting).producers.insert(id, closed.clone());
        closed
    }

    pub(super) fn close_producer(&self, id: u64) {
        lock(&self.shared.waiting).producers.remove(&id);
        self.say(Command::CloseProducer(Close { id, request: self.number() }));
    }

    /// Notes a consumer; what is returned ends when the broker closes it or the connection is lost.
    pub(super) fn add_consumer(&self, id: u64) -> mpsc::UnboundedReceiver<Arrived> {
        let (to, arrived) = mpsc::unbounded_channel();
        // On a lost connection it ends at once.
        let _ = self.shared.wait(|waiting| waiting.consumers.insert(id, to));
        arrived
    }

    pub(super) fn close_consumer(&self, id: u64) {
        lock(&self.shared.waiting).consumers.remove(&id);
        self.say(Command::CloseConsumer(Close { id, request: self.number() }));
    }
}

impl Shared {
    fn lost(&self) -> Fault {
        let over = lock(&self.waiting).over.clone();
        Fault::Lost(over.unwrap_or_else(|| "the connection was lost".to_owned()))
    }

    /// Has somebody wait for the broker, unless it is not heard any more.
    fn wait<T>(&self, add: impl FnOnce(&mut Waiting) -> T) -> Result<(), Fault> {
        let mut waiting = lock(&self.waiting);
        if let Some(reason) = &waiting.over {
            return Err(Fault::Lost(reason.clone()));
        }
        add(&mut waiting);
        Ok(())
    }

    async fn answer<T>(
        &self,
        answered: oneshot::Receiver<Result<T, Fault>>,
        within: Duration,
    ) -> Result<T, Fault> {
        match timeout(within, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.lost()),
            Err(_) => Err(Fault::TimedOut(within)),
        }
    }

    /// Everybody who waits learns that the connection is lost.
    fn end(&self, reason: String) {
        let mut waiting = lock(&self.waiting);
        if waiting.over.is_none() {
            tracing::debug!(reason, "a connection is over");
            *waiting = Waiting { over: Some(reason), ..Waiting::default() };
        }
        drop(waiting);
        self.over.cancel();
    }

    async fn read(
        self: Arc<Self>,
        mut socket: ReadHalf<Socket>,
        mut arrived: BytesMut,
        message_bytes_max: usize,
        stop: CancellationToken,
    ) {
        let reads = async {
            loop {
                while let Some(frame) = frame::take(&mut arrived, message_bytes_max)? {
                    self.came(frame);
                }
                match socket.read_buf(&mut arrived).await {
                    Ok(0) => return Err("the broker closed it".to_owned()),
                    Ok(_) => *lock(&self.heard) = Instant::now(),
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let outcome: Result<(), String> = tokio::select! {
            outcome = reads => outcome,
            () = stop.cancelled() => Err("nobody needs it any more".to_owned()),
            () = self.over.cancelled() => return,
        };
        if let Err(reason) = outcome {
            self.end(reason);
        }
    }

    async fn write(
        self: Arc<Self>,
        socket: WriteHalf<Socket>,
        mut outgoing: mpsc::UnboundedReceiver<Bytes>,
        stop: CancellationToken,
    ) {
        let mut socket = BufWriter::with_capacity(BUFFER_BYTES, socket);
        let mut look = tokio::time::interval(PING_INTERVAL);
        let mut frames = Vec::with_capacity(WRITES_MAX);
        loop {
            tokio::select! {
                biased;
                _ = outgoing.recv_many(&mut frames, WRITES_MAX) => {}
                () = stop.cancelled() => break,
                () = self.over.cancelled() => break,
                _ = look.tick() => {
                    let silence = lock(&self.heard).elapsed();
                    if silence > PING_INTERVAL * 2 {
                        return self.end(format!("nothing was heard for {} s", silence.as_secs()));
                    }
                    frames.push(frame::encode(Command::Ping(Nothing {})));
                }
            }
            // A broker that takes nothing is not waited for longer than one that says nothing.
            match timeout(PING_INTERVAL * 2, write_all(&mut socket, &mut frames)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.end(error.to_string()),
                Err(_) => return self.end("the broker takes nothing".to_owned()),
            }
        }
        // What was said last, such as that a producer is closed, goes out before the end.
        while let Ok(frame) = outgoing.try_recv() {
            frames.push(frame);
        }
        let _ = timeout(PING_INTERVAL, async {
            write_all(&mut socket, &mut frames).await?;
            socket.shutdown().await
        })
        .await;
    }

    fn came(&self, frame: Frame) {
        let Some(command) = frame.command else { return };
        match command {
            Command::Message(deliver) => {
                let Some((metadata, body)) = frame.message else { return };
                let redelivered = deliver.redelivered.unwrap_or(0);
                let arrived = Arrived { id: deliver.id, part: None, redelivered, metadata, body };
                if let Some(to) = lock(&self.waiting).consumers.get(&deliver.consumer) {
                    // One that has just gone gives back what came to it by closing.
                    batch::parts(arrived).into_iter().for_each(|one| _ = to.send(one));
                }
            }
            Command::SendReceipt(receipt) => self.received(receipt.producer, receipt.sequence, Ok(())),
            Command::SendError(failed) => {
                let refused = Err(Fault::Refused { code: failed.code, said: failed.message });
                self.received(failed.producer, failed.sequence, refused);
            }
            Command::Error(failed) => {
                let refused = Err(Fault::Refused { code: failed.code, said: failed.message });
                self.answered(failed.request, refused);
            }
            Command::Success(done) => self.answered(done.request, Ok(Command::Success(done))),
            Command::ProducerSuccess(made) => {
                self.answered(made.request, Ok(Command::ProducerSuccess(made)));
            }
            Command::LookupResponse(found) => {
                self.answered(found.request, Ok(Command::LookupResponse(found)));
            }
            Command::Last(last) => self.answered(last.request, Ok(Command::Last(last))),
            Command::CloseProducer(close) => self.producer_closed(close.id),
            Command::CloseConsumer(close) => _ = lock(&self.waiting).consumers.remove(&close.id),
            Command::Ping(_) => self.say(Command::Pong(Nothing {})),
            Command::Pong(_) => {
                if let Some(pong) = lock(&self.waiting).pongs.pop_front() {
                    let _ = pong.send(());
                }
            }
            Command::AuthChallenge(_) => self.say(self.credentials()),
            // Only clients say these.
            Command::Connect(_)
            | Command::Connected(_)
            | Command::Subscribe(_)
            | Command::Producer(_)
            | Command::Send(_)
            | Command::Ack(_)
            | Command::Flow(_)
            | Command::Redeliver(_)
            | Command::Lookup(_)
            | Command::GetLast(_)
            | Command::AuthResponse(_) => {}
        }
    }

    fn say(&self, command: Command) {
        let _ = self.out.send(frame::encode(command));
    }

    /// Who we are, once more: the broker asks for that when it thinks that it may have changed.
    fn credentials(&self) -> Command {
        let token = self.address.token();
        Command::AuthResponse(AuthResponse {
            client_version: Some(CLIENT.to_owned()),
            response: Some(AuthData {
                auth_method_name: Some("token".to_owned()),
                auth_data: token.map(|token| token.reveal().as_bytes().to_vec()),
            }),
            protocol_version: Some(PROTOCOL_VERSION),
        })
    }

    fn answered(&self, number: u64, outcome: Result<Command, Fault>) {
        if let Some(answer) = lock(&self.waiting).answers.remove(&number) {
            let _ = answer.send(outcome);
        }
    }

    fn received(&self, producer: u64, sequence: u64, outcome: Result<(), Fault>) {
        if let Some(receipt) = lock(&self.waiting).receipts.remove(&(producer, sequence)) {
            let _ = receipt.send(outcome);
        }
    }

    /// What was sent with it and has no receipt has none any more.
    fn producer_closed(&self, id: u64) {
        let mut waiting = lock(&self.waiting);
        if let Some(closed) = waiting.producers.remove(&id) {
            closed.cancel();
        }
        for (_, receipt) in waiting.receipts.extract_if(|(producer, _), _| *producer == id) {
            let _ = receipt.send(Err(Fault::Lost("the broker closed its topic".to_owned())));
        }
    }
}

async fn write_all(
    socket: &mut BufWriter<WriteHalf<Socket>>,
    frames: &mut Vec<Bytes>,
) -> std::io::Result<()> {
    for frame in frames.drain(..) {
        socket.write_all(&frame).await?;
    }
    socket.flush().await
}

impl Fault {
    pub(super) const fn is(&self, code: i32) -> bool {
        matches!(self, Self::Refused { code: said, .. } if *said == code)
    }

    /// What it means for a call that changes nothing where it was not done; `what` says what was asked.
    pub(super) fn of(self, what: &str) -> Error {
        match self {
            Self::Other(error) => error,
            Self::Lost(reason) => Error::Unavailable { reason: format!("{what}: {reason}") },
            Self::TimedOut(after) => Error::Unavailable {
                reason: format!("{what} was not answered within {} ms", after.as_millis()),
            },
            Self::Refused { code, said } => refused(code, &said, what),
        }
    }
}

fn refused(code: i32, said: &str, what: &str) -> Error {
    match code {
        code::AUTHENTICATION | code::AUTHORIZATION => {
            Error::Refused { reason: format!("the broker does not allow {what}: {said}") }
        }
        code::NOT_ALLOWED | code::TERMINATED => {
            Error::Refused { reason: format!("the broker refuses {what}: {said}") }
        }
        code::PERSISTENCE | code::QUOTA | code::QUOTA_EXCEPTION => {
            Error::Disk { reason: format!("{what}: {said}") }
        }
        _ => Error::Unavailable { reason: format!("{what}: {said}") },
    }
}

fn of_connecting(broker: &str, code: i32, said: &str) -> Error {
    match code {
        code::AUTHENTICATION | code::AUTHORIZATION => Error::Refused {
            reason: format!(
                "the broker at {broker} does not let this user in; give it a token that it knows ({said})"
            ),
        },
        _ => Error::Unavailable { reason: format!("the broker at {broker} says: {said}") },
    }
}
