//! A connection that is rebuilt when it is lost, and several of them where one would hold too many channels.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use sluice_bus::{Error, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::{Pauses, fault, lock, screen, stopped};

/// How often a connection is looked at, should its end not have been told.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Channel numbers of a connection: what the broker allows.
const NUMBERS: usize = 2047;
/// Failed channels after which another connection takes the place of this one.
const SPENT_MAX: usize = 1_000;
/// Failed channels after which nothing more is begun on this one: what is left is for what is being opened at that moment.
const SPENT_LAST: usize = 1_900;
/// How long what is under way on a connection may take that was replaced: longer than a publish or a call may.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(60);
/// Readers of one connection; the broker allows 2047 channels, and a follow takes one for a moment.
const READERS_MAX: usize = 1_000;

/// One kept connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

struct Shared {
    address: Arc<Address>,
    role: String,
    call_timeout: Duration,
    /// Whether it is rebuilt when lost.
    is_rebuilt: bool,
    state: watch::Sender<State>,
    /// Why the broker takes no publishes at the moment.
    blocked: watch::Sender<Option<String>>,
    spent: Mutex<Spent>,
    /// Told when another connection is to take its place.
    renewal: Notify,
    stop: CancellationToken,
}

/// Channels of one incarnation that failed.
#[derive(Clone, Copy, Default)]
struct Spent {
    generation: u64,
    channels: usize,
}

impl Spent {
    const fn of(self, generation: u64) -> usize {
        if self.generation == generation { self.channels } else { 0 }
    }
}

/// What ended a connection's time.
enum Ended {
    /// It is gone; why.
    Lost(String),
    Replaced(Arc<Connection>),
}

#[derive(Clone)]
enum State {
    Up(Up),
    Down(Arc<str>),
    Stopped,
}

/// One incarnation of a connection.
#[derive(Clone)]
pub(super) struct Up {
    connection: Arc<Connection>,
    /// Differs between incarnations.
    pub(super) generation: u64,
}

impl Up {
    /// The library keeps a channel's error with its number and refuses every later channel of that number with it. So
    /// the next number is tried; once all are spent, the connection is closed, to be rebuilt.
    pub(super) async fn channel(&self) -> Result<Channel, lapin::Error> {
        for _ in 0..NUMBERS {
            match self.connection.create_channel().await {
                Err(error) if fault::reply(&error).is_some() && self.is_connected() => {}
                Err(error) if matches!(error.kind(), lapin::ErrorKind::ChannelsLimitReached) => break,
                opened => return opened,
            }
        }
        tracing::debug!("every channel of a connection has failed once; it is rebuilt");
        let _ = self.connection.close(200, "every channel number is spent".into()).await;
        Err(lapin::ErrorKind::ChannelsLimitReached.into())
    }

    fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }
}

/// A channel that is closed when it is dropped, whatever is under way on it. The library alone keeps a channel open, and its
/// consumer at the broker, when nobody waits any more for the word that the consumer has begun.
pub(super) struct Closing {
    channel: Channel,
    /// It may be dropped anywhere.
    runtime: Handle,
}

impl Closing {
    /// Within a runtime.
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, runtime: Handle::current() }
    }
}

impl Deref for Closing {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if !self.channel.status().connected() {
            return;
        }
        let channel = self.channel.clone();
        self.runtime.spawn(async move {
            // What is under way may fail, and then the broker closes the channel. The library takes the answer to a close that
            // crosses the broker's for an error of the whole connection, so first comes a call that changes nothing here and
            // is answered after all others.
            if channel.confirm_select(ConfirmSelectOptions::default()).await.is_ok() {
                let _ = channel.close(200, "bye".into()).await;
            }
        });
    }
}

impl Link {
    /// Connects once, then keeps connected until `stop`.
    pub(super) async fn open(
        address: Arc<Address>,
        role: &str,
        call_timeout: Duration,
        stop: CancellationToken,
    ) -> Result<Self> {
        Self::open_as(address, role, call_timeout, stop, true).await
    }

    /// Connects, and is over when that connection is lost.
    pub(super) async fn open_once(
        address: Arc<Address>,
        role: &str,
        call_timeout: Duration,
        stop: CancellationToken,
    ) -> Result<Self> {
        Self::open_as(address, role, call_timeout, stop, false).await
    }

    async fn open_as(
        address: Arc<Address>,
        role: &str,
        call_timeout: Duration,
        stop: CancellationToken,
        is_rebuilt: bool,
    ) -> Result<Self> {
        let state = watch::Sender::new(State::Down("connecting".into()));
        let blocked = watch::Sender::new(None);
        let link = Self(Arc::new(Shared {
            address,
            role: role.to_owned(),
            call_timeout,
            is_rebuilt,
            state,
            blocked,
            spent: Mutex::default(),
            renewal: Notify::new(),
            stop,
        }));
        let first = link.0.connect().await?;
        link.0.state.send_replace(State::Up(Up { connection: first.clone(), generation: 0 }));
        #[expect(
            clippy::disallowed_methods,
            reason = "floor 1 does not see the sdk's tasks; `stop` ends this one"
        )]
        tokio::spawn(link.0.clone().keep(first));
        Ok(link)
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.0.call_timeout
    }

    /// Counts a channel that failed. Before all numbers are spent ([`Up::channel`]), another connection takes the place of one
    /// that is rebuilt; what is under way on the old one has [`RETIRE_TIMEOUT`].
    pub(super) fn spent(&self, generation: u64) {
        let mut spent = lock(&self.0.spent);
        if generation < spent.generation {
            return;
        }
        *spent = Spent { generation, channels: spent.of(generation) + 1 };
        if spent.channels == SPENT_MAX && self.0.is_rebuilt {
            self.0.renewal.notify_one();
        }
    }

    /// The connection as it is now; waits for one that is being rebuilt.
    pub(super) async fn up(&self, within: Duration) -> Result<Up> {
        let mut state = self.0.state.subscribe();
        let settled = |state: &State| match state {
            State::Up(up) => up.is_connected() && !self.is_spent(up.generation),
            State::Down(_) => false,
            State::Stopped => true,
        };
        let found = tokio::time::timeout(within, state.wait_for(settled)).await;
        match found.ok().and_then(|found| found.ok().map(|state| state.clone())) {
            Some(State::Up(up)) => Ok(up),
            Some(State::Stopped) => Err(stopped()),
            Some(State::Down(_)) | None => Err(self.0.unavailable()),
        }
    }

    /// A new channel, put up by `set_up`. An opening that ends with its connection is tried once more on the next one:
    /// nothing has been asked of the channel yet, so nothing has happened.
    pub(super) async fn channel<F>(
        &self,
        within: Duration,
        set_up: fn(Channel) -> F,
    ) -> Result<(u64, Channel)>
    where
        F: Future<Output = Result<Channel, lapin::Error>>,
    {
        let deadline = Instant::now() + within;
        let opening = async {
            let mut is_retried = false;
            loop {
                let up = self.up(deadline.saturating_duration_since(Instant::now())).await?;
                let error = match async { set_up(up.channel().await?).await }.await {
                    Ok(channel) => return Ok((up.generation, channel)),
                    Err(error) => error,
                };
                if is_retried || up.is_connected() {
                    return Err(match fault::of_call(&error, "a channel", "opening a channel") {
                        Error::OutcomeUnknown { reason, .. } => Error::Unavailable { reason },
                        other => other,
                    });
                }
                is_retried = true;
            }
        };
        let late = || Error::Unavailable { reason: "the broker opened no channel in time".to_owned() };
        tokio::time::timeout_at(deadline, opening).await.unwrap_or_else(|_| Err(late()))
    }

    /// Whether a connection that is rebuilt has hardly a number left, so that the next one is to be waited for.
    fn is_spent(&self, generation: u64) -> bool {
        self.0.is_rebuilt && lock(&self.0.spent).of(generation) >= SPENT_LAST
    }

    /// Whether it is connected now.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.0.state.borrow(), State::Up(up) if up.is_connected())
    }

    /// The first incarnation after `generation`; `None` once the connection is given up.
    pub(super) async fn up_after(&self, generation: u64) -> Option<Up> {
        let mut state = self.0.state.subscribe();
        let is_later = |state: &State| match state {
            State::Up(up) => up.generation > generation,
            State::Down(_) => false,
            State::Stopped => true,
        };
        match &*state.wait_for(is_later).await.ok()? {
            State::Up(up) => Some(up.clone()),
            State::Down(_) | State::Stopped => None,
        }
    }

    /// Waits while the broker takes no publishes.
    pub(super) async fn unblocked(&self, within: Duration) -> Result<()> {
        let mut blocked = self.0.blocked.subscribe();
        if tokio::time::timeout(within, blocked.wait_for(Option::is_none)).await.is_ok() {
            return Ok(());
        }
        let why = self.0.blocked.borrow().clone().unwrap_or_default();
        Err(Error::Unavailable {
            reason: format!("it takes no messages at the moment ({why}); free what it lacks"),
        })
    }

    /// Whether it is still rebuilt when lost.
    pub(super) fn is_kept(&self) -> bool {
        !self.0.stop.is_cancelled()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.0.blocked.borrow().is_some()
    }

    /// Why the broker takes no publishes at the moment.
    pub(super) fn blocked(&self) -> Option<String> {
        self.0.blocked.borrow().clone()
    }

    /// Why nothing can be sent over it at the moment, in words that give away neither where the broker is nor what it runs
    /// on: strangers see them.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        if let Some(why) = &*self.0.blocked.borrow() {
            return Some(short_of(why));
        }
        match &*self.0.state.borrow() {
            State::Up(_) => None,
            State::Down(_) => Some("it is away"),
            State::Stopped => Some("this process has disconnected from it"),
        }
    }

    /// Closes the connection once told to stop.
    pub(super) async fn close(&self) {
        let mut state = self.0.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Stopped));
        let _ = tokio::time::timeout(self.0.call_timeout, ended).await;
    }
}

impl Shared {
    async fn connect(&self) -> Result<Arc<Connection>> {
        let name = format!("{} {}", self.address.name, self.role);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = screen::connect(self.address.uri(), properties, self.address.tls());
        match tokio::time::timeout(self.call_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(Arc::new(connection)),
            Ok(Err(error)) => Err(fault::of_connecting(&error, &self.address)),
            Err(_) => Err(Error::Unavailable {
                reason: format!("{} did not answer within {} s", self.address, self.call_timeout.as_secs()),
            }),
        }
    }

    /// Rebuilds the connection whenever it is lost, and puts another one in its place when asked.
    async fn keep(self: Arc<Self>, first: Arc<Connection>) {
        let mut connection = first;
        for generation in 1.. {
            let ended = async {
                tokio::select! {
                    biased;
                    reason = self.watch(&connection) => Ended::Lost(reason),
                    another = self.another(&connection, generation - 1) => Ended::Replaced(another),
                }
            };
            let reason = match self.stop.run_until_cancelled(ended).await {
                None => break,
                Some(Ended::Lost(reason)) => reason,
                Some(Ended::Replaced(another)) => {
                    // What is said of the old one is not of this one.
                    self.blocked.send_replace(None);
                    self.state.send_replace(State::Up(Up { connection: another.clone(), generation }));
                    self.retire(std::mem::replace(&mut connection, another));
                    continue;
                }
            };
            self.blocked.send_replace(None);
            if !self.is_rebuilt {
                tracing::warn!(connection = self.role, address = %self.address, reason, "a connection was lost that is not rebuilt");
                break;
            }
            if self.address.lost_one() {
                tracing::warn!(connection = self.role, address = %self.address, reason, "the broker's connection was lost; connecting again");
            } else {
                tracing::debug!(connection = self.role, reason, "one more connection was lost");
            }
            self.state.send_replace(State::Down(reason.into()));
            let Some(again) = self.stop.run_until_cancelled(self.reconnect()).await else { break };
            connection = again;
            if self.address.regained_one() {
                tracing::info!(address = %self.address, "connected to the broker again");
            }
            self.state.send_replace(State::Up(Up { connection: connection.clone(), generation }));
        }
        self.state.send_replace(State::Stopped);
        let closing = connection.close(200, "bye".into());
        let _ = tokio::time::timeout(self.call_timeout, closing).await;
    }

    /// Waits until the channels of a connection are nearly spent, then connects until there is another.
    async fn another(&self, worn: &Connection, generation: u64) -> Arc<Connection> {
        self.renewal.notified().await;
        let mut pauses = Pauses::new();
        loop {
            let error = match self.connect().await {
                Ok(another) => return another,
                Err(error) => error,
            };
            tracing::debug!(connection = self.role, %error, "there is no other connection yet");
            if lock(&self.spent).of(generation) >= SPENT_LAST {
                // Better cut than of no use: where their number is limited, the next one needs its place.
                let _ = worn.close(200, "its channels are spent".into()).await;
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    /// Closes a connection whose place another has taken, after what is under way on it.
    fn retire(&self, worn: Arc<Connection>) {
        let (stop, within) = (self.stop.clone(), self.call_timeout);
        #[expect(
            clippy::disallowed_methods,
            reason = "floor 1 does not see the sdk's tasks; `stop` ends this one"
        )]
        tokio::spawn(async move {
            stop.run_until_cancelled(tokio::time::sleep(RETIRE_TIMEOUT)).await;
            let closing = worn.close(200, "another has taken its place".into());
            let _ = tokio::time::timeout(within, closing).await;
        });
    }

    async fn reconnect(&self) -> Arc<Connection> {
        let mut pauses = Pauses::new();
        loop {
            tokio::time::sleep(pauses.next()).await;
            match self.connect().await {
                Ok(connection) => return connection,
                Err(error) => self.state.send_replace(State::Down(error.to_string().into())),
            };
        }
    }

    /// Follows a connection until it is lost; answers why.
    async fn watch(&self, connection: &Connection) -> String {
        let mut events = std::pin::pin!(connection.events_listener());
        let mut why = "it ended".to_owned();
        while connection.status().connected() {
            self.hear(&mut events, &mut why).await;
            // Should its end not have been told.
            if !connection.status().blocked() {
                self.blocked.send_if_modified(|why| why.take().is_some());
            }
        }
        why
    }

    async fn hear(&self, events: &mut (impl Stream<Item = Event> + Unpin), why: &mut String) {
        match tokio::time::timeout(LOOK_INTERVAL, events.next()).await {
            Ok(Some(Event::ConnectionBlocked(reason))) => {
                tracing::warn!(reason, "the broker takes no messages");
                self.blocked.send_replace(Some(reason));
            }
            Ok(Some(Event::ConnectionUnblocked)) => {
                tracing::info!("the broker takes messages again");
                self.blocked.send_replace(None);
            }
            Ok(Some(Event::Error(error))) => *why = error.to_string(),
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }

    fn unavailable(&self) -> Error {
        let reason = match &*self.state.borrow() {
            State::Down(reason) => reason.to_string(),
            State::Up(up) if up.is_connected() => "its connection is being replaced".to_owned(),
            State::Up(_) | State::Stopped => "the connection was lost".to_owned(),
        };
        Error::Unavailable { reason }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connection to {}", self.0.role, self.0.address)
    }
}

/// What the broker's reason for taking no messages means.
fn short_of(reason: &str) -> &'static str {
    match (reason.contains("memory"), reason.contains("disk")) {
        (true, true) => "it is short of memory and disk space",
        (true, false) => "it is short of memory",
        (false, true) => "it is short of disk space",
        (false, false) => "it is short of something that its log names",
    }
}

/// Connections for readers: another one for every [`READERS_MAX`].
pub(super) struct Lanes {
    first: Link,
    lanes: std::sync::Mutex<Vec<(Link, Arc<AtomicUsize>)>>,
    opening: tokio::sync::Mutex<()>,
}

/// A reader's place on a connection.
pub(super) struct Place {
    pub(super) link: Link,
    readers: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    pub(super) fn new(first: Link) -> Self {
        let lanes = std::sync::Mutex::new(vec![(first.clone(), Arc::default())]);
        Self { first, lanes, opening: tokio::sync::Mutex::new(()) }
    }

    pub(super) async fn place(&self) -> Result<Place> {
        if let Some(place) = self.free() {
            return Ok(place);
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(place) = self.free() {
            return Ok(place);
        }
        let like = &self.first.0;
        let link = Link::open(like.address.clone(), &like.role, like.call_timeout, like.stop.clone()).await?;
        let readers = Arc::new(AtomicUsize::new(1));
        lock(&self.lanes).push((link.clone(), readers.clone()));
        Ok(Place { link, readers })
    }

    fn free(&self) -> Option<Place> {
        let lanes = lock(&self.lanes);
        let (link, readers) =
            lanes.iter().find(|(_, readers)| readers.load(Ordering::Relaxed) < READERS_MAX)?;
        readers.fetch_add(1, Ordering::Relaxed);
        Some(Place { link: link.clone(), readers: readers.clone() })
    }

    pub(super) async fn close(&self) {
        let links: Vec<Link> = lock(&self.lanes).iter().map(|(link, _)| link.clone()).collect();
        futures_util::future::join_all(links.iter().map(Link::close)).await;
    }
}
