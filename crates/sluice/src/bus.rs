//! The bus of a process: the embedded broker, or a connection to one that is shared with others.

use std::path::Path;
use std::sync::Arc;

use std::time::Duration;

use anyhow::Context;
use sluice_brokers::{Connection, SCHEMES, Secret};
use sluice_bus::embedded::{Config, Embedded};
use sluice_bus::{Broker, BrokerAdmin, Error, ErrorKind, HoldEnd};
use sluice_schema::address;
use sluice_sdk::Process;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exit::{Code, Told};

/// How long a service waits for another process to let go of its claim.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
const CLAIM_RETRY: Duration = Duration::from_millis(100);
/// How long another process says that it holds what this one had before this one ends. Two that serve the same out of two
/// folders write to either.
const HELD_MAX: Duration = Duration::from_secs(2);
/// How long it may be held by nobody who says so. A broker keeps what a connection held until it misses that one too, which
/// takes three of its heartbeats; it may well be this process's own.
const SILENT_MAX: Duration = Duration::from_secs(180);
/// How often it is looked whether it is still on record who serves here.
const SIGNATURE_LOOK: Duration = Duration::from_secs(15);
/// How long the process with another data folder has to come back that served last and did not stop in good order.
const OTHER_RETURNS_TIMEOUT: Duration = Duration::from_secs(20);

/// A broker that is not ours.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// Its address, which may hold a password.
    pub(crate) url: Secret,
    pub(crate) settings: sluice_brokers::Settings,
}

/// Both paths, and how they end.
pub(crate) struct Bus {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    held: Held,
    /// Why something that was claimed is another's now.
    lost: watch::Sender<Option<String>>,
}

enum Held {
    Embedded(Embedded),
    Remote(Connection),
}

impl Remote {
    /// Refuses an address that no broker of this build answers to.
    pub(crate) fn check(&self) -> Result<(), Told> {
        let scheme = address::scheme(self.url.reveal());
        if scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
            return Ok(());
        }
        let told = match scheme {
            Some(scheme) => format!("this build has no broker for '{scheme}://' addresses"),
            None => "the address given with --broker or SLUICE_BROKER does not say which broker it is of"
                .to_owned(),
        };
        let build = scheme.and_then(sluice_brokers::feature).map(|name| {
            format!("build it with the feature '{name}' (cargo build -p sluice --features {name}), ")
        });
        let next = format!(
            "{}use {}://… or leave --broker out to use the embedded broker",
            build.unwrap_or_default(),
            SCHEMES.join("://…, ")
        );
        Err(Told::new(Code::Usage, told).next(next))
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        self.check()?;
        sluice_brokers::connect(self.url.reveal(), self.settings.clone()).await.map_err(|error| {
            let next = match error.kind() {
                ErrorKind::Refused => {
                    "check the user and the vhost in --broker, and the password: in --broker-password-file FILE, or in \
                     SLUICE_BROKER_PASSWORD"
                }
                ErrorKind::Absent | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => {
                    "start the broker, or check the address given with --broker"
                }
            };
            Told::new(Code::Failed, error.to_string()).next(next).into()
        })
    }
}

impl Bus {
    /// Connects to `remote`, or opens the embedded broker in `data`.
    pub(crate) async fn open(remote: Option<&Remote>, data: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(remote) = remote {
            return Self::connect(remote).await;
        }
        let dir = data.map(|data| data.join("broker"));
        Self::embed(Config { dir, ..Default::default() }).context("the embedded broker could not be opened")
    }

    /// Connects to a broker that is shared with others.
    pub(crate) async fn connect(remote: &Remote) -> anyhow::Result<Self> {
        let connection = remote.connect().await?;
        let (broker, admin) = (connection.broker.clone(), connection.admin.clone());
        Ok(Self { broker, admin, held: Held::Remote(connection), lost: watch::Sender::default() })
    }

    /// Opens the embedded broker.
    pub(crate) fn embed(config: Config) -> Result<Self, Error> {
        let embedded = Embedded::open(config)?;
        let ends = Arc::new(embedded.clone());
        Ok(Self {
            broker: ends.clone(),
            admin: ends,
            held: Held::Embedded(embedded),
            lost: watch::Sender::default(),
        })
    }

    /// The embedded broker, if it is that.
    pub(crate) const fn embedded(&self) -> Option<&Embedded> {
        match &self.held {
            Held::Embedded(broker) => Some(broker),
            Held::Remote(_) => None,
        }
    }

    /// Whether nobody but this process can be on it.
    pub(crate) const fn is_own(&self) -> bool {
        matches!(self.held, Held::Embedded(_))
    }

    /// Claims services that keep data of their own for a data folder, so that no second process answers for them out of
    /// another one. The claims end with this process; that it had them is known to others until it stops in good order.
    pub(crate) async fn claim(
        &self,
        keepers: &[&'static str],
        folder: &str,
        process: &Process,
    ) -> anyhow::Result<()> {
        if self.is_own() {
            return Ok(());
        }
        let until = Instant::now() + OTHER_RETURNS_TIMEOUT;
        for &name in keepers {
            let claim = Claim { admin: self.admin.clone(), name, folder: folder.to_owned() };
            let hold = claim.take(until).await?;
            let (stop, lost) = (process.stop.clone(), self.lost.clone());
            process.tasks.spawn(format!("claim/{name}"), async move {
                if let Some(reason) = claim.keep(hold, &stop).await {
                    lost.send_replace(Some(reason));
                }
            });
        }
        Ok(())
    }

    /// Waits until another process answers for what this one has claimed, and returns why; for ever while none does.
    pub(crate) async fn claim_lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        match lost.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) async fn close(&self) {
        match &self.held {
            Held::Embedded(broker) => broker.shutdown().await,
            Held::Remote(connection) => connection.close().await,
        }
    }
}

fn elsewhere(who: Option<&str>) -> String {
    format!("{}, with data of its own", who.map(|who| format!(" in {who}")).unwrap_or_default())
}

/// Whether a holder is this process: its last connection, or its last lease.
fn is_self(who: &str) -> bool {
    who.starts_with(&format!("process {} on ", std::process::id()))
}

/// A service whose data is in one folder.
struct Claim {
    admin: Arc<dyn BrokerAdmin>,
    name: &'static str,
    folder: String,
}

impl Claim {
    /// Takes it. Where it was last another folder's, and that one's process did not stop in good order, that has until then
    /// to come back: it may be starting, or its connection.
    async fn take(&self, until: Instant) -> anyhow::Result<Arc<dyn BrokerAdmin>> {
        let cannot = || format!("{} cannot be claimed", self.name);
        loop {
            let hold = self.hold().await?;
            match hold.signature().await {
                Ok(Some(other)) if other != self.folder && Instant::now() < until => {
                    drop(hold);
                    tracing::warn!(
                        service = self.name,
                        folder = other,
                        "a process with another data folder served this here and did not stop in good order: waiting {} s for it to come back",
                        (until - Instant::now()).as_secs()
                    );
                    while Instant::now() < until && !matches!(self.admin.holder(self.name).await, Ok(Some(_)))
                    {
                        tokio::time::sleep(CLAIM_RETRY).await;
                    }
                }
                Ok(_) => match hold.sign(Some(&self.folder)).await {
                    Ok(()) => return Ok(hold),
                    Err(Error::HoldLost { .. }) => {}
                    Err(error) => return Err(error).with_context(cannot),
                },
                Err(Error::HoldLost { .. }) => {}
                Err(error) => return Err(error).with_context(cannot),
            }
        }
    }

    async fn hold(&self) -> anyhow::Result<Arc<dyn BrokerAdmin>> {
        let name = self.name;
        // A lease of a process that was killed lasts on by itself.
        let until = Instant::now()
            + match self.admin.traits().hold {
                HoldEnd::Connection => CLAIM_TIMEOUT,
                HoldEnd::Lease { term, .. } => term + CLAIM_TIMEOUT,
            };
        loop {
            match self.admin.hold(name).await {
                Ok(hold) => return Ok(hold),
                // A process that was killed a moment ago may still be known to the broker.
                Err(Error::Held { .. }) if Instant::now() < until => tokio::time::sleep(CLAIM_RETRY).await,
                Err(Error::Held { .. }) => {
                    // A holder that does not say who it is refuses all the same.
                    let who = self.admin.holder(name).await.ok().flatten();
                    let told = format!("{name} runs on this broker already{}", elsewhere(who.as_deref()));
                    let next = "stop that process first; one that vanished without a word is forgotten within two minutes";
                    return Err(Told::new(Code::Failed, told).next(next).into());
                }
                Err(error) => return Err(error).with_context(|| format!("{name} cannot be claimed")),
            }
        }
    }

    /// Claims again what was lost together with a connection; returns why that cannot be, or `None` after a stop.
    async fn keep(&self, mut hold: Arc<dyn BrokerAdmin>, stop: &CancellationToken) -> Option<String> {
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => None,
                () = hold.lost() => Some(()),
                () = self.stay_signed(&*hold) => Some(()),
            };
            if ended.is_none() {
                // So that another folder need not wait for this one.
                if let Err(error) = hold.sign(None).await {
                    tracing::debug!(service = self.name, %error, "it stays known who served this");
                }
                return None;
            }
            match stop.run_until_cancelled(self.take_again()).await? {
                Ok(again) => hold = again,
                Err(reason) => return Some(reason),
            }
        }
    }

    /// Signs again what somebody has removed; returns when that cannot be done.
    async fn stay_signed(&self, hold: &dyn BrokerAdmin) {
        loop {
            tokio::time::sleep(SIGNATURE_LOOK).await;
            let signed = match hold.signature().await {
                Ok(None) => hold.sign(Some(&self.folder)).await,
                Ok(Some(_)) => Ok(()),
                Err(error) => Err(error),
            };
            match signed {
                Ok(()) => {}
                Err(Error::HoldLost { .. }) => return,
                Err(error) => {
                    tracing::debug!(service = self.name, %error, "who serves this cannot be put on record now");
                }
            }
        }
    }

    /// # Errors
    /// Why it is another's.
    async fn take_again(&self) -> Result<Arc<dyn BrokerAdmin>, String> {
        let (mut held_since, mut silent_since) = (None, None);
        loop {
            let why = match self.admin.hold(self.name).await {
                Ok(hold) => match hold.signature().await {
                    Ok(Some(other)) if other != self.folder => {
                        return Err(format!("{} was served out of data folder {other} meanwhile", self.name));
                    }
                    Ok(Some(_)) => return Ok(hold),
                    // The broker lost it.
                    Ok(None) => match hold.sign(Some(&self.folder)).await {
                        Ok(()) => return Ok(hold),
                        Err(error) => error,
                    },
                    Err(error) => error,
                },
                Err(error @ Error::Held { .. }) => {
                    let other = self.admin.holder(self.name).await.ok().flatten().filter(|who| !is_self(who));
                    let (since, of, bound) = if other.is_some() {
                        // Whoever starts holds it for a moment to see whose it is.
                        (&mut held_since, &mut silent_since, HELD_MAX)
                    } else {
                        (&mut silent_since, &mut held_since, SILENT_MAX)
                    };
                    *of = None;
                    if since.get_or_insert_with(Instant::now).elapsed() > bound {
                        return Err(format!("{} is served{}", self.name, elsewhere(other.as_deref())));
                    }
                    error
                }
                Err(error) => error,
            };
            if !matches!(why, Error::Held { .. }) {
                (held_since, silent_since) = (None, None);
            }
            tracing::debug!(service = self.name, error = %why, "not claimed again yet");
            tokio::time::sleep(CLAIM_RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_bus::{BoxFuture, Finding, PoisonBound, Seen, TopicSpec};
    use sluice_schema::Topic;

    use super::*;

    fn refused(url: &str) -> Option<String> {
        let remote = Remote { url: Secret::new(url), settings: sluice_brokers::Settings::default() };
        remote.check().err().map(|told| format!("{told:?}"))
    }

    #[test]
    fn an_address_of_a_broker_that_is_not_built_in_names_the_feature_that_is_missing() {
        assert_eq!(refused("amqp://u:hush@h"), None);
        let told = refused("gopher://u:hush@h").unwrap();
        assert!(told.contains("no broker for 'gopher://'") && !told.contains("feature"), "{told}");
        for wrong in ["u:hush@h/v", "amqp:/u:hush@h/v", "amqp//u:hush@h", "hush hush://h"] {
            let told = refused(wrong).unwrap();
            assert!(told.contains("SLUICE_BROKER") && told.contains("use amqp://"), "{told}");
            assert!(!told.contains("hush"), "{told}");
        }
        let told = refused("nats://u:hush@h");
        if cfg!(feature = "nats") {
            assert_eq!(told, None);
        } else {
            let told = told.unwrap();
            assert!(told.contains("--features nats") && !told.contains("hush"), "{told}");
        }
    }

    /// A broker where a name is held `times` times when it is asked for, by whoever says so.
    struct Held {
        times: std::sync::atomic::AtomicU32,
        holder: Option<String>,
    }

    impl BrokerAdmin for Held {
        fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, sluice_bus::Result<Arc<dyn BrokerAdmin>>> {
            use std::sync::atomic::Ordering::SeqCst;
            let is_held = self.times.fetch_update(SeqCst, SeqCst, |times| times.checked_sub(1)).is_ok();
            let held = || Error::Held { name: name.to_owned() };
            let holder = self.holder.clone();
            Box::pin(async move {
                if is_held {
                    return Err(held());
                }
                Ok(Arc::new(Self { times: 0.into(), holder }) as Arc<dyn BrokerAdmin>)
            })
        }

        fn holder<'a>(&'a self, _: &'a str) -> BoxFuture<'a, sluice_bus::Result<Option<String>>> {
            let holder = self.holder.clone();
            Box::pin(async { Ok(holder) })
        }

        fn observe<'a>(&'a self, _: &'a [TopicSpec]) -> BoxFuture<'a, sluice_bus::Result<Vec<Seen>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn ensure<'a>(&'a self, _: &'a TopicSpec) -> BoxFuture<'a, sluice_bus::Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn remove<'a>(&'a self, _: &'a TopicSpec) -> BoxFuture<'a, sluice_bus::Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn list<'a>(&'a self, _: &'a str) -> BoxFuture<'a, sluice_bus::Result<Vec<Seen>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn bound_poison<'a>(&'a self, _: &'a Topic) -> BoxFuture<'a, sluice_bus::Result<PoisonBound>> {
            Box::pin(async { Ok(PoisonBound::Unneeded) })
        }

        fn examine(&self) -> BoxFuture<'_, sluice_bus::Result<Vec<Finding>>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    /// What comes of taking a claim again.
    async fn again(times: u32, holder: Option<String>) -> Result<(), String> {
        let admin = Arc::new(Held { times: times.into(), holder });
        let claim = Claim { admin, name: "config", folder: "own".to_owned() };
        claim.take_again().await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_waited_for_while_the_broker_keeps_a_lost_connection_and_not_while_another_has_it() {
        let minute = u32::try_from(Duration::from_secs(60).as_millis() / CLAIM_RETRY.as_millis()).unwrap();
        let other = |pid: u32| Some(format!("process {pid} on host 'h'"));
        assert_eq!(again(minute, None).await, Ok(()), "of a holder that says nothing");
        assert_eq!(again(minute, other(std::process::id())).await, Ok(()), "of this process itself");
        assert_eq!(again(5, other(1)).await, Ok(()), "for a moment");
        let lost = again(minute, other(1)).await.unwrap_err();
        assert!(lost.starts_with("config is served in process 1 on host 'h'"), "{lost}");
        assert!(again(minute * 10, None).await.is_err(), "for ever");
    }
}
