//! Every open connection, and how far its peer has shown who it is.
//!
//! A connection costs little until a credential has been accepted on it, and gives way: where a bound is reached, the oldest
//! connection of the address that has most of that stage is closed in favour of the new one, and among addresses that have
//! equally many the oldest of all. So a flood of peers that never
//! show a credential pushes out itself, not those who have one.
//!
//! **Invariant: a connection on which a credential was accepted gives way only while it is idle, and last.** So does one with a
//! credential that was accepted before, while it is asked whether it still is. A few places are
//! kept back for health checks, which are answered also when nothing gives way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::address::Network;
use crate::metrics::Metrics;

/// How many connections there may be, in all and of each stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) total: usize,
    /// From one address; an IPv6 network of 64 bits counts as one.
    pub(crate) per_address: usize,
    /// Beside the total, for health checks only.
    pub(crate) reserve: usize,
    /// That have sent a part of their first request's head.
    pub(crate) heads: usize,
    /// With a request under way whose credential has not been accepted.
    pub(crate) strangers: usize,
    /// Sockets that have not authenticated.
    pub(crate) stranger_sockets: usize,
}

/// How far a peer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It has sent nothing.
    Silent,
    /// It has sent a part of its first request's head, or of what comes before it.
    Head,
    /// It has a socket on which no credential was accepted.
    StrangerSocket,
    /// It has a request under way, and no credential was accepted yet.
    Stranger,
    /// A credential was accepted.
    Known,
    /// Only health checks are answered.
    Reserve,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Silent, Self::Head, Self::StrangerSocket, Self::Stranger, Self::Known, Self::Reserve];
    /// Those that give way to a new connection, first to last.
    const GIVE_WAY: [Self; 4] = [Self::Silent, Self::Head, Self::StrangerSocket, Self::Stranger];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Head => "head",
            Self::StrangerSocket => "stranger-socket",
            Self::Stranger => "stranger",
            Self::Known => "known",
            Self::Reserve => "reserve",
        }
    }
}

/// All connections of one gateway.
pub(crate) struct Connections {
    bounds: Bounds,
    /// Addresses that stand for many, so that their share is all there is.
    proxies: Vec<Network>,
    table: Mutex<Table>,
    metrics: Metrics,
    started: Instant,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// Without the reserve.
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    stages: [Members; Stage::ALL.len()],
}

/// The connections of one stage; ids grow, so the first of an address is its oldest.
#[derive(Default)]
struct Members {
    count: usize,
    by_address: HashMap<IpAddr, BTreeMap<u64, Arc<Connection>>>,
    /// Every address by how many it has, then by its oldest, last to first: under a flood each new connection asks for it.
    busiest: BTreeSet<Rank>,
}

type Rank = (usize, Reverse<u64>, IpAddr);

fn rank(address: IpAddr, own: &BTreeMap<u64, Arc<Connection>>) -> Option<Rank> {
    own.keys().next().map(|oldest| (own.len(), Reverse(*oldest), address))
}

impl Members {
    fn insert(&mut self, connection: &Arc<Connection>) {
        let address = connection.address;
        let own = self.by_address.entry(address).or_default();
        if let Some(before) = rank(address, own) {
            self.busiest.remove(&before);
        }
        own.insert(connection.id, connection.clone());
        self.busiest.extend(rank(address, own));
        self.count += 1;
    }

    /// Takes a connection out, if it is in.
    fn remove(&mut self, connection: &Connection) -> bool {
        let address = connection.address;
        let Some(own) = self.by_address.get_mut(&address) else { return false };
        let before = rank(address, own);
        if own.remove(&connection.id).is_none() {
            return false;
        }
        if let Some(before) = before {
            self.busiest.remove(&before);
        }
        match rank(address, own) {
            Some(now) => {
                self.busiest.insert(now);
            }
            None => {
                self.by_address.remove(&address);
                give_back(&mut self.by_address);
            }
        }
        self.count -= 1;
        true
    }

    fn oldest_of(&self, address: IpAddr) -> Option<Arc<Connection>> {
        self.by_address.get(&address)?.values().next().cloned()
    }

    /// The oldest of the address that has most; of several, the oldest.
    fn oldest_of_the_busiest(&self) -> Option<Arc<Connection>> {
        let (_, _, address) = self.busiest.last()?;
        self.oldest_of(*address)
    }

    fn idle(&self, address: Option<IpAddr>) -> Option<Arc<Connection>> {
        let all = self.by_address.iter().filter(|(own, _)| address.is_none_or(|address| address == **own));
        let idle = all.flat_map(|(_, members)| members.values()).filter(|one| one.is_idle());
        idle.min_by_key(|one| one.since_ms.load(Ordering::Relaxed)).cloned()
    }
}

/// Gives memory back that a flood needed.
fn give_back<V>(table: &mut HashMap<IpAddr, V>) {
    const KEPT: usize = 64;
    if table.capacity() > KEPT && table.len() < table.capacity() / 8 {
        table.shrink_to(KEPT.max(2 * table.len()));
    }
}

impl Connections {
    pub(crate) fn new(bounds: Bounds, proxies: Vec<Network>, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { bounds, proxies, table: Mutex::default(), metrics, started: Instant::now() })
    }

    /// A place for a connection from this peer; none when nothing gives way and even the reserve is taken.
    pub(crate) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let address = network(peer.ip());
        let mut table = self.lock();
        let own = table.by_address.get(&address).copied().unwrap_or(0);
        let is_proxy = self.proxies.iter().any(|proxies| proxies.contains(peer.ip()));
        let has_place = if own >= self.bounds.per_address && !is_proxy {
            self.make_room(&mut table, Some(address))
        } else {
            table.total < self.bounds.total || self.make_room(&mut table, None)
        };
        let stage = match has_place {
            true => Stage::Silent,
            false if table.stages[Stage::Reserve as usize].count < self.bounds.reserve => Stage::Reserve,
            false => {
                self.metrics.connections_refused.inc();
                return None;
            }
        };
        table.next_id += 1;
        let connection = Arc::new(Connection {
            id: table.next_id,
            peer,
            address,
            all: self.clone(),
            stage: AtomicU8::new(stage as u8),
            phase: AtomicU8::new(HEAD),
            since_ms: AtomicU64::new(self.now_ms()),
            blocked_ms: AtomicU64::new(0),
            evicted: CancellationToken::new(),
        });
        self.insert(&mut table, &connection, stage);
        drop(table);
        Some(Place(connection))
    }

    /// How many have a place.
    pub(crate) fn len(&self) -> usize {
        let table = self.lock();
        table.total + table.stages[Stage::Reserve as usize].count
    }

    /// Closes some connections that give way, for a process that is out of files.
    pub(crate) fn shed(&self, count: usize) {
        let mut table = self.lock();
        for _ in 0..count {
            if !self.make_room(&mut table, None) {
                return;
            }
        }
    }

    /// Closes one connection that gives way, of one address or of any.
    fn make_room(&self, table: &mut Table, address: Option<IpAddr>) -> bool {
        let gives_way = Stage::GIVE_WAY.into_iter().find_map(|stage| {
            let members = &table.stages[stage as usize];
            match address {
                Some(address) => members.oldest_of(address),
                None => members.oldest_of_the_busiest(),
            }
        });
        match gives_way.or_else(|| table.stages[Stage::Known as usize].idle(address)) {
            Some(connection) => {
                self.evict(table, &connection);
                true
            }
            None => false,
        }
    }

    fn evict(&self, table: &mut Table, connection: &Connection) {
        self.remove(table, connection);
        connection.evicted.cancel();
        self.metrics.connections_evicted.inc();
    }

    fn insert(&self, table: &mut Table, connection: &Arc<Connection>, stage: Stage) {
        table.stages[stage as usize].insert(connection);
        if stage != Stage::Reserve {
            table.total += 1;
            *table.by_address.entry(connection.address).or_default() += 1;
        }
        connection.stage.store(stage as u8, Ordering::Relaxed);
        self.metrics.connections(stage.as_str()).inc();
    }

    /// Takes a connection out, if it is still in.
    fn remove(&self, table: &mut Table, connection: &Connection) -> bool {
        let stage = connection.stage();
        if !table.stages[stage as usize].remove(connection) {
            return false;
        }
        if stage != Stage::Reserve {
            table.total -= 1;
            if let Some(count) = table.by_address.get_mut(&connection.address) {
                *count -= 1;
                if *count == 0 {
                    table.by_address.remove(&connection.address);
                    give_back(&mut table.by_address);
                }
            }
        }
        self.metrics.connections(stage.as_str()).dec();
        true
    }

    fn bound(&self, stage: Stage) -> usize {
        match stage {
            Stage::Head => self.bounds.heads,
            Stage::StrangerSocket => self.bounds.stranger_sockets,
            Stage::Stranger => self.bounds.strangers,
            Stage::Silent | Stage::Known | Stage::Reserve => usize::MAX,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never 0.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// The head of a request is awaited or on its way.
const HEAD: u8 = 0;
/// A request is under way.
const SERVING: u8 = 1;
/// Between two requests.
const IDLE: u8 = 2;

/// One connection.
pub(crate) struct Connection {
    id: u64,
    pub(crate) peer: SocketAddr,
    address: IpAddr,
    all: Arc<Connections>,
    stage: AtomicU8,
    phase: AtomicU8,
    /// Since when it is in its phase; while it is idle, the last time that the peer took something.
    since_ms: AtomicU64,
    /// Since when the peer takes nothing; 0 while it does.
    blocked_ms: AtomicU64,
    evicted: CancellationToken,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// How long a connection may take for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
}

impl Connection {
    pub(crate) fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Relaxed))]
    }

    pub(crate) fn is_known(&self) -> bool {
        self.stage() == Stage::Known
    }

    /// A credential was accepted.
    pub(crate) fn known(self: &Arc<Self>) {
        self.enter(Stage::Known);
    }

    /// Moves on to a stage; where that has too many, the oldest of the busiest address there gives way. Who is in the
    /// reserve stays there.
    pub(crate) fn enter(self: &Arc<Self>, stage: Stage) {
        if self.stage() == stage || self.stage() == Stage::Reserve {
            return;
        }
        let mut table = self.all.lock();
        if !self.all.remove(&mut table, self) {
            // It has given way already.
            return;
        }
        if table.stages[stage as usize].count >= self.all.bound(stage)
            && let Some(oldest) = table.stages[stage as usize].oldest_of_the_busiest()
        {
            self.all.evict(&mut table, &oldest);
        }
        self.all.insert(&mut table, self, stage);
    }

    /// It is a socket from now on, with deadlines of its own.
    pub(crate) fn becomes_socket(self: &Arc<Self>) {
        self.enter_phase(SERVING);
        if !self.is_known() {
            self.enter(Stage::StrangerSocket);
        }
    }

    /// Waits until this connection has to give way to another.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Whether a socket has calls under way; one that has none may have to give way.
    pub(crate) fn is_busy(&self, is_busy: bool) {
        let phase = if is_busy { SERVING } else { IDLE };
        if self.phase.load(Ordering::Relaxed) != phase {
            self.enter_phase(phase);
        }
    }

    fn is_idle(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == IDLE
    }

    /// Something came in: between two requests of HTTP, that is the next one's head.
    pub(crate) fn heard(&self) {
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.enter_phase(HEAD);
        }
    }

    /// The peer took something.
    pub(crate) fn wrote(&self) {
        if self.blocked_ms.load(Ordering::Relaxed) != 0 {
            self.blocked_ms.store(0, Ordering::Relaxed);
        }
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.since_ms.store(self.all.now_ms(), Ordering::Relaxed);
        }
    }

    /// The peer takes nothing at the moment.
    pub(crate) fn is_blocked(&self) {
        if self.blocked_ms.load(Ordering::Relaxed) == 0 {
            self.blocked_ms.store(self.all.now_ms(), Ordering::Relaxed);
        }
    }

    /// A request's head is whole; it is under way until what is returned is dropped.
    pub(crate) fn serve(self: &Arc<Self>) -> Serving {
        self.enter_phase(SERVING);
        Serving(self.clone())
    }

    fn enter_phase(&self, phase: u8) {
        self.since_ms.store(self.all.now_ms(), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// Why it has to be closed, or after which time to look again.
    pub(crate) fn look(&self, deadlines: &Deadlines) -> Result<Duration, &'static str> {
        let now_ms = self.all.now_ms();
        let past = |since_ms: u64, limit: Duration| {
            Duration::from_millis(now_ms.saturating_sub(since_ms)).checked_sub(limit).is_some()
        };
        let blocked_ms = self.blocked_ms.load(Ordering::Relaxed);
        if blocked_ms != 0 && past(blocked_ms, deadlines.write) {
            return Err("its peer does not read");
        }
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        match self.phase.load(Ordering::Relaxed) {
            HEAD if past(since_ms, deadlines.head) => Err("the head of a request did not arrive in time"),
            IDLE if past(since_ms, deadlines.idle) => Err("it was idle"),
            // Never longer, since the next head may begin right after this look.
            _ => Ok(deadlines.head.min(deadlines.idle)),
        }
    }
}

/// A request under way.
pub(crate) struct Serving(Arc<Connection>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.enter_phase(IDLE);
    }
}

/// A connection's place among all; free when dropped.
pub(crate) struct Place(Arc<Connection>);

impl Place {
    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.all.remove(&mut self.0.all.lock(), &self.0);
    }
}

/// What counts as one address: one of IPv4, or the network of 64 bits that a host of IPv6 has to itself.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { total: 8, per_address: 6, reserve: 2, heads: 3, strangers: 3, stranger_sockets: 2 };

    fn connections() -> Arc<Connections> {
        Connections::new(BOUNDS, Vec::new(), Metrics::register(&sluice_sdk::Metrics::default()))
    }

    fn peer(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], 1_000))
    }

    fn is_evicted(place: &Place) -> bool {
        place.0.evicted.is_cancelled()
    }

    fn known(all: &Arc<Connections>, host: u8) -> (Place, Serving) {
        let place = all.admit(peer(host)).unwrap();
        place.0.known();
        let serving = place.0.serve();
        (place, serving)
    }

    #[test]
    fn a_flood_pushes_out_its_own_oldest_and_nobody_else() {
        let all = connections();
        let (held, _serving) = known(&all, 1);
        let other = all.admit(peer(2)).unwrap();
        let flood: Vec<_> = (0..100).map(|_| all.admit(peer(3)).unwrap()).collect();
        assert!(!is_evicted(&held) && !is_evicted(&other));
        assert_eq!(flood.iter().filter(|place| !is_evicted(place)).count(), 6, "its share");
        assert!(!is_evicted(&flood[99]), "the newest is in");
        // From many addresses at once, the busiest one gives way.
        let late: Vec<_> = (10..20).map(|host| all.admit(peer(host)).unwrap()).collect();
        assert!(!is_evicted(&held));
        assert!(late.iter().any(|place| !is_evicted(place)));
        assert_eq!(all.lock().total, 8);
    }

    /// Whoever is being authenticated came a moment ago, and those who only guess came before.
    #[test]
    fn of_addresses_with_one_connection_each_the_oldest_gives_way() {
        let all = connections();
        let places: Vec<_> = (0..30).map(|host| all.admit(peer(host)).unwrap()).collect();
        let left: Vec<_> = (0..30).filter(|n| !is_evicted(&places[*n])).collect();
        assert_eq!(left, (22..30).collect::<Vec<_>>());
        for place in &places[22..] {
            place.0.enter(Stage::Stranger);
        }
        let left: Vec<_> = (0..30).filter(|n| !is_evicted(&places[*n])).collect();
        assert_eq!(left, [27, 28, 29]);
        // One that has two gives way before, whenever it came.
        let second = all.admit(peer(29)).unwrap();
        second.0.enter(Stage::Stranger);
        let third = all.admit(peer(40)).unwrap();
        third.0.enter(Stage::Stranger);
        assert!(!is_evicted(&places[28]) && is_evicted(&places[29]) && !is_evicted(&second));
    }

    #[test]
    fn what_a_flood_of_addresses_needed_is_given_back() {
        let bounds = Bounds { total: 4_000, heads: 4_000, ..BOUNDS };
        let all = Connections::new(bounds, Vec::new(), Metrics::register(&sluice_sdk::Metrics::default()));
        let peer = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(n), 1_000));
        let places: Vec<_> = (0..20_000).map(|n| all.admit(peer(n)).unwrap()).collect();
        assert_eq!(all.lock().by_address.len(), 4_000);
        drop(places);
        let table = all.lock();
        assert!(table.by_address.capacity() < 200 && table.stages[0].by_address.capacity() < 200);
        assert!(table.stages.iter().all(|members| members.busiest.is_empty()));
    }

    #[test]
    fn a_trusted_proxy_has_all_places() {
        let proxies = vec!["10.0.0.3".parse().unwrap()];
        let all = Connections::new(BOUNDS, proxies, Metrics::register(&sluice_sdk::Metrics::default()));
        let places: Vec<_> = (0..8).map(|_| all.admit(peer(3)).unwrap()).collect();
        assert!(places.iter().all(|place| !is_evicted(place)));
    }

    #[test]
    fn who_is_known_and_busy_stays_and_health_checks_still_have_places() {
        let all = connections();
        let busy: Vec<_> = (0..8).map(|host| known(&all, host)).collect();
        let health = [all.admit(peer(20)).unwrap(), all.admit(peer(21)).unwrap()];
        assert!(health.iter().all(|place| place.0.stage() == Stage::Reserve));
        assert!(all.admit(peer(22)).is_none());
        assert!(busy.iter().all(|(place, _)| !is_evicted(place)));
        drop(health);
        // One that is idle between two calls gives way.
        let idle = &busy[3].0;
        idle.0.enter_phase(IDLE);
        let place = all.admit(peer(23)).unwrap();
        assert_eq!((place.0.stage(), is_evicted(idle)), (Stage::Silent, true));
    }

    #[test]
    fn each_stage_of_strangers_has_its_bound() {
        for (stage, bound) in [(Stage::Head, 3), (Stage::Stranger, 3), (Stage::StrangerSocket, 2)] {
            let all = connections();
            let places: Vec<_> = (0..6).map(|_| all.admit(peer(1)).unwrap()).collect();
            for place in &places {
                place.0.enter(stage);
            }
            let left = places.iter().filter(|place| !is_evicted(place)).count();
            assert_eq!(left, bound, "{stage:?}");
            assert!(!is_evicted(&places[5]), "{stage:?}");
        }
    }

    #[test]
    fn every_place_is_given_back_once() {
        let all = connections();
        let places: Vec<_> = (0..20).map(|n| all.admit(peer(n % 3)).unwrap()).collect();
        for place in &places {
            place.0.enter(Stage::Stranger);
            place.0.known();
        }
        drop(places);
        let table = all.lock();
        assert_eq!((table.total, table.by_address.len()), (0, 0));
        assert!(table.stages.iter().all(|members| members.count == 0 && members.by_address.is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn heads_idleness_and_deaf_peers_have_deadlines() {
        let deadlines = Deadlines {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(60),
        };
        let all = connections();
        let place = all.admit(peer(1)).unwrap();
        let one = &place.0;
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(one.look(&deadlines).is_ok());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(one.look(&deadlines).is_err(), "the first head");
        let serving = one.serve();
        tokio::time::advance(Duration::from_secs(500)).await;
        assert!(one.look(&deadlines).is_ok(), "calls have deadlines of their own");
        one.is_blocked();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(one.look(&deadlines).is_err(), "the peer does not read");
        one.wrote();
        drop(serving);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(one.look(&deadlines).is_ok());
        one.heard();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(one.look(&deadlines).is_err(), "the next head");
        drop(one.serve());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(one.look(&deadlines).is_err(), "idle");
    }

    #[test]
    fn a_host_of_ipv6_is_its_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
