//! The servers that cases run on, one kind beside the other: how each is started, reached, killed and robbed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use sluice_brokers::{Connection, Settings};
use sluice_bus::BoxFuture;
use sluice_schema::{Class, Topic};
use tokio::runtime::Runtime;

use crate::common::Up;

pub(crate) type Told<'a, T = ()> = BoxFuture<'a, Result<T, String>>;

/// A server of its own for each case.
pub(crate) trait Server {
    /// What `--broker` takes.
    fn url(&self) -> String;
    /// Kills it.
    fn kill(&mut self) -> BoxFuture<'_, ()>;
    /// Starts it again, with the same data.
    fn run(&mut self) -> Told<'_>;
    /// What the server itself names that is of Sluice: what topics are kept in, and what its links have for themselves.
    fn places(&self) -> Told<'_, Vec<String>>;
    /// Removes such a place behind everybody's back.
    fn remove<'a>(&'a self, place: &'a str) -> Told<'a>;
}

/// A kind of server, which the build may not know and the machine may not have.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// How it begins what `sluice conformance` says of the server, where it says that.
    pub(crate) product: Option<&'static str>,
    /// How many cases of the contract it does not promise, and what the one of counts leaves out.
    pub(crate) not_promised: u64,
    pub(crate) counts_without: &'static [&'static str],
    /// Why there can be none here; `None` when there can.
    pub(crate) missing: fn() -> Option<&'static str>,
    start: fn() -> Told<'static, Box<dyn Server>>,
    /// How the place begins that a topic is kept in.
    place: fn(&Topic) -> String,
    /// What comes before the class in names of such places.
    before: &'static str,
    /// Whether a stop may take longer than it waits after a kill: the broker holds on to readers that are gone.
    stops_late: bool,
    /// What nobody may remove begins so: its loss is noticed by nobody.
    never_removed: &'static [&'static str],
}

impl Kind {
    fn is_of(&self, place: &str, topic: &Topic) -> bool {
        let begins = (self.place)(topic);
        // Where nothing follows, a longer name is another topic's.
        if begins.ends_with('.') { place.starts_with(&begins) } else { place == begins }
    }

    /// Whether a topic is kept there, whichever.
    fn keeps_topics(&self, place: &str) -> bool {
        let rest = place.strip_prefix(self.before).unwrap_or_default();
        Class::ALL.iter().any(|class| {
            let rest = rest.strip_prefix(class.as_str());
            rest.is_some_and(|rest| rest.starts_with(['_', '/', '.']))
        })
    }
}

/// A server, and what awaits it.
pub(crate) struct World {
    pub(crate) kind: &'static Kind,
    pub(crate) runtime: Runtime,
    server: Box<dyn Server>,
}

impl World {
    pub(crate) fn start(kind: &'static Kind) -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on((kind.start)()).unwrap();
        Self { kind, runtime, server }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// A system on it.
    pub(crate) fn up(&self, data: &Path, more: &[&str]) -> Up {
        let url = self.url();
        let mut up = Up::start_with(data, &[&["--broker", &url], more].concat());
        up.asks_again = self.kind.stops_late;
        up
    }

    pub(crate) fn connect(&self) -> Connection {
        self.runtime.block_on(sluice_brokers::connect(&self.url(), Settings::default())).unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.runtime.block_on(self.server.kill());
    }

    pub(crate) fn run(&mut self) {
        self.runtime.block_on(self.server.run()).unwrap();
    }

    /// Topics that are there, as a link of its own sees them.
    pub(crate) fn topics(&self) -> Vec<String> {
        let connection = self.connect();
        let seen = self.runtime.block_on(connection.admin.list("")).unwrap();
        self.runtime.block_on(connection.close());
        let mut topics: Vec<String> = seen.into_iter().map(|seen| seen.topic.to_string()).collect();
        topics.sort();
        topics
    }

    /// Topics of a run that are still there.
    pub(crate) fn left_of(&self, run: &str) -> Vec<String> {
        let mut topics = self.topics();
        topics.retain(|topic| topic.ends_with(&format!(":default:{run}")));
        topics
    }

    /// What topics are kept in, as the server itself names it, whatever a link makes of that.
    pub(crate) fn kept_in(&self) -> Vec<String> {
        let mut places = self.places();
        places.retain(|place| self.kind.keeps_topics(place));
        places
    }

    pub(crate) fn places(&self) -> Vec<String> {
        self.runtime.block_on(self.server.places()).unwrap()
    }

    /// Removes topics behind everybody's back.
    pub(crate) fn rob(&self, topics: &[Topic]) {
        let places = self.places();
        for topic in topics {
            let of_topic = places.iter().filter(|place| self.kind.is_of(place, topic));
            let mut removed = 0;
            for place in of_topic {
                self.runtime.block_on(self.server.remove(place)).unwrap();
                removed += 1;
            }
            assert!(removed > 0, "{topic} is not among {places:?}");
        }
    }

    /// The same with all that the server has of Sluice, but for topics of one run: also what holds and notes are kept in.
    pub(crate) fn rob_of_all_but(&self, topics: &[Topic]) {
        for place in self.places() {
            let stays = self.kind.never_removed.iter().any(|begins| place.starts_with(begins));
            if stays || topics.iter().any(|topic| self.kind.is_of(&place, topic)) {
                continue;
            }
            if let Err(why) = self.runtime.block_on(self.server.remove(&place)) {
                // Inboxes go with their readers.
                assert!(!self.places().contains(&place), "{place}: {why}");
            }
        }
    }
}

/// A guard as a [`Server`], where the build knows such servers.
macro_rules! server {
    ($feature:literal, $module:ident, $guard:ident, |$server:ident| $places:expr) => {
        #[cfg(feature = $feature)]
        mod $module {
            use sluice_brokers::testing::$guard;

            use super::*;

            impl Server for $guard {
                fn url(&self) -> String {
                    self.url()
                }

                fn kill(&mut self) -> BoxFuture<'_, ()> {
                    Box::pin(self.stop(false))
                }

                fn run(&mut self) -> Told<'_> {
                    Box::pin(self.run())
                }

                fn places(&self) -> Told<'_, Vec<String>> {
                    let $server = self;
                    Box::pin($places)
                }

                fn remove<'a>(&'a self, place: &'a str) -> Told<'a> {
                    Box::pin(self.remove(place))
                }
            }

            pub(super) fn missing() -> Option<&'static str> {
                $guard::missing()
            }

            pub(super) fn start() -> Told<'static, Box<dyn Server>> {
                Box::pin(async { Ok(Box::new($guard::start().await?) as Box<dyn Server>) })
            }
        }

        #[cfg(not(feature = $feature))]
        mod $module {
            use super::*;

            pub(super) fn missing() -> Option<&'static str> {
                Some(concat!("this build does not have the feature '", $feature, "'"))
            }

            pub(super) fn start() -> Told<'static, Box<dyn Server>> {
                Box::pin(async { Err(missing().unwrap_or_default().to_owned()) })
            }
        }
    };
}

server!("nats", nats, NatsServer, |server| server.streams());
server!("pulsar", pulsar, PulsarServer, |server| async move {
    const NAMESPACES: [&str; 6] =
        ["tg/flow", "tg/request", "tg/response", "tg/notify", "tg/inbox", "tg/sluice"];
    let mut topics = server.topics(&NAMESPACES).await?;
    // The broker has some of its own there.
    topics.retain(|topic| !topic.contains("/__"));
    Ok(topics)
});
server!("kafka", kafka, KafkaServer, |server| server.topics());

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        name: "nats",
        product: Some("NATS 2."),
        not_promised: 0,
        counts_without: &["readers are counted"],
        missing: nats::missing,
        start: nats::start,
        place: |topic| format!("{}_{}_{}", topic.space(), topic.class(), topic.name()),
        before: "tg_",
        stops_late: false,
        never_removed: &[],
    },
    Kind {
        name: "pulsar",
        product: Some("Pulsar 4."),
        // A request that nobody takes by its deadline stays.
        not_promised: 1,
        counts_without: &[],
        missing: pulsar::missing,
        start: pulsar::start,
        place: |topic| format!("persistent://{}/{}/{}", topic.space(), topic.class(), topic.name()),
        before: "persistent://tg/",
        stops_late: false,
        never_removed: &[],
    },
    Kind {
        name: "kafka",
        // The client library does not ask for it.
        product: None,
        // As on Pulsar.
        not_promised: 1,
        counts_without: &["messages in readers' hands are counted", "readers are counted"],
        missing: kafka::missing,
        start: kafka::start,
        // A number of its own follows.
        place: |topic| format!("sluice.{}.{}.", topic.class(), topic.name().replace(':', "-")),
        before: "sluice.",
        stops_late: true,
        // Which topics there are, and who holds a name: docs/kafka.md.
        never_removed: &["sluice.registry", "sluice.leases"],
    },
];
