//! Groups: a subscription is one, made by its owner before anybody reads. Among ours it is a share group; beside processes of
//! TrustGraph 2.11 a classic one, which is no more than a committed offset until somebody reads.

use std::collections::HashMap;
use std::time::Duration;

use krafka::admin::{
    AdminClient, AlterConsumerGroupOffsetsOptions, AlterShareGroupOffsetsOptions, ConfigOp, ConfigResource,
    ConsumerGroupLagOptions, DeleteConsumerGroupsOptions, DescribeConfigsOptions,
    DescribeConsumerGroupsOptions, DescribeShareGroupOffsetsOptions, GroupOffset,
    IncrementalAlterConfigsOptions, ListConsumerGroupOffsetsOptions,
};
use krafka::consumer::TopicPartition;
use krafka::error::ErrorCode;
use sluice_bus::{Error, Result};
use tokio::time::Instant;

use super::{fault, names};
use crate::local::Pauses;

/// How long a message is a member's that is not heard of. Readers say three times as often that they are at work.
pub(super) const LOCK: Duration = Duration::from_secs(15);
/// Deliveries of a message that are asked for; the broker may allow fewer.
const DELIVERIES_WANTED: u32 = 10;
/// With fewer, every message would be sent once more before it is handed out.
const DELIVERIES_MIN: u32 = 3;
const LIMIT: &str = "share.delivery.count.limit";
const BROKER_MOST: &str = "group.share.max.delivery.count.limit";
const KEPT_MINUTES: &str = "offsets.retention.minutes";
const BROKER_LIMIT: &str = "group.share.delivery.count.limit";

/// What the broker says of a group's end of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lag {
    /// Messages that are not settled, those in hand included.
    Messages(u64),
    Absent,
}

/// Which kind of groups a deployment has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Groups {
    /// With so many deliveries of a message.
    Share { deliveries: u32 },
    /// Where a group stands is kept so long when nobody reads it.
    Classic { kept: Duration },
}

impl Groups {
    /// What a subscription's group is called. Processes of TrustGraph 2.11 call it as the subscription; those that they have
    /// are of one processor and one topic, and their names have this mark. Others would be one group for many topics.
    pub(super) fn name(self, place: &str, subscription: &str) -> String {
        match self {
            Self::Classic { .. } if subscription.contains("--") => subscription.to_owned(),
            Self::Classic { .. } | Self::Share { .. } => names::group(place, subscription),
        }
    }

    pub(super) const fn kept(self) -> Option<Duration> {
        match self {
            Self::Share { .. } => None,
            Self::Classic { kept } => Some(kept),
        }
    }

    /// Makes a group that gets what comes to a topic from an offset on.
    pub(super) async fn make(
        self,
        admin: &AdminClient,
        group: &str,
        place: &str,
        from: i64,
        within: Duration,
    ) -> Result<()> {
        match self {
            Self::Share { deliveries } => make(admin, group, place, from, deliveries, within).await,
            Self::Classic { .. } => commit(admin, group, place, from, within).await,
        }
    }

    /// What a group has not settled of a topic.
    pub(super) async fn lag(
        self,
        admin: &AdminClient,
        group: &str,
        place: &str,
        within: Duration,
    ) -> Result<Lag> {
        match self {
            Self::Share { .. } => lag(admin, group, place, within).await,
            Self::Classic { .. } => behind(admin, group, place, within).await,
        }
    }
}

/// Says where a group without readers stands. One that is still being left is waited for.
async fn commit(admin: &AdminClient, group: &str, place: &str, offset: i64, within: Duration) -> Result<()> {
    let doing = format!("making the group '{group}'");
    let at = TopicPartition::new(place, 0);
    let (until, mut pauses) = (Instant::now() + within, Pauses::new());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let options = AlterConsumerGroupOffsetsOptions::default().timeout(left);
        let made = admin.alter_consumer_group_offsets(group, [(at.clone(), offset)], options).await;
        let error = match made.map(|mut made| made.remove(&at)) {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(error))) | Err(error) => error,
            Ok(None) => return Err(Error::Unavailable { reason: format!("{doing}: no answer") }),
        };
        let is_read = fault::is(&error, ErrorCode::UnknownMemberId)
            || fault::is(&error, ErrorCode::RebalanceInProgress)
            || fault::is(&error, ErrorCode::IllegalGeneration);
        match left.is_zero() {
            true if is_read => {
                let reason = format!("{doing}: somebody reads it before it is made");
                return Err(Error::Unavailable { reason });
            }
            false if is_read || fault::is_no_topic(&error) || error.is_retriable() => {}
            _ => return Err(fault::of_change(&error, &doing)),
        }
        tokio::time::sleep(pauses.next().min(left)).await;
    }
}

async fn behind(admin: &AdminClient, group: &str, place: &str, within: Duration) -> Result<Lag> {
    let doing = format!("looking at the group '{group}'");
    let at = TopicPartition::new(place, 0);
    let options = ConsumerGroupLagOptions::default().timeout(within).partitions(vec![at.clone()]);
    match admin.consumer_group_lag(group, options).await.map(|mut found| found.remove(&at)) {
        Ok(Some(Ok(found))) => Ok(match found.lag {
            Some(lag) => Lag::Messages(u64::try_from(lag).unwrap_or(0)),
            None => Lag::Absent,
        }),
        Ok(None) => Ok(Lag::Absent),
        Ok(Some(Err(error))) | Err(error) if is_absent(&error) => Ok(Lag::Absent),
        Ok(Some(Err(error))) | Err(error) => Err(fault::of(&error, &doing)),
    }
}

/// How many read from a classic group; those that were killed count until the group misses them.
pub(super) async fn readers(admin: &AdminClient, group: &str, within: Duration) -> Result<u64> {
    let doing = format!("looking at the readers of the group '{group}'");
    let options = DescribeConsumerGroupsOptions::default().timeout(within);
    let found = admin.describe_consumer_groups([group], options).await;
    match found.map(|mut found| found.remove(group)) {
        Ok(Some(Ok(found))) => Ok(found.members.len() as u64),
        Ok(None) => Ok(0),
        Ok(Some(Err(error))) | Err(error) if is_absent(&error) => Ok(0),
        Ok(Some(Err(error))) | Err(error) => Err(fault::of(&error, &doing)),
    }
}

/// Where a classic group stands, and what is written beside it.
pub(super) async fn offset(
    admin: &AdminClient,
    group: &str,
    place: &str,
    within: Duration,
) -> Result<Option<GroupOffset>> {
    let doing = format!("looking at the group '{group}'");
    let at = TopicPartition::new(place, 0);
    let options = ListConsumerGroupOffsetsOptions::default().timeout(within).partitions(vec![at.clone()]);
    match admin.list_consumer_group_offsets(group, options).await.map(|mut found| found.remove(&at)) {
        Ok(found) => found.transpose().map_err(|error| fault::of(&error, &doing)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(fault::of(&error, &doing)),
    }
}

/// Says again where a group stands that nobody reads: the broker forgets it after a while.
pub(super) async fn renew(admin: &AdminClient, group: &str, place: &str, within: Duration) -> Result<()> {
    let Some(offset) = offset(admin, group, place, within).await?.and_then(|found| found.offset) else {
        return Ok(());
    };
    let doing = format!("renewing the group '{group}'");
    let at = TopicPartition::new(place, 0);
    let options = AlterConsumerGroupOffsetsOptions::default().timeout(within);
    let renewed = admin.alter_consumer_group_offsets(group, [(at.clone(), offset)], options).await;
    match renewed.map(|mut renewed| renewed.remove(&at)) {
        // Somebody reads it: then it is not forgotten.
        Ok(Some(Err(error))) | Err(error) if fault::is(&error, ErrorCode::UnknownMemberId) => Ok(()),
        Ok(Some(Err(error))) | Err(error) => Err(fault::of_change(&error, &doing)),
        Ok(Some(Ok(())) | None) => Ok(()),
    }
}

/// How long the broker keeps where a group stands that nobody reads.
pub(super) async fn kept(admin: &AdminClient, broker: i32, within: Duration) -> Result<Duration> {
    let found = config(admin, ConfigResource::broker(broker), &[KEPT_MINUTES], within).await?;
    let minutes = found.get(KEPT_MINUTES).and_then(|minutes| minutes.parse::<u64>().ok());
    Ok(Duration::from_secs(60 * minutes.unwrap_or(7 * 24 * 60)))
}

/// A value of the configuration of a broker or group.
async fn config(
    admin: &AdminClient,
    of: ConfigResource,
    names: &[&str],
    within: Duration,
) -> Result<HashMap<String, String>> {
    let doing = format!("reading the configuration of '{}'", of.name);
    let options = DescribeConfigsOptions::default().timeout(within);
    let options = options.config_names(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let found = admin.describe_configs([of.clone()], options).await;
    let entries = match found.map_err(|error| fault::of(&error, &doing))?.remove(&of) {
        Some(entries) => entries.map_err(|error| fault::of(&error, &doing))?,
        None => return Err(Error::Unavailable { reason: format!("{doing}: no answer") }),
    };
    Ok(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

/// How many deliveries of a message groups are to have, of those that a broker lets them.
///
/// # Errors
/// [`Error::Refused`] for a broker without share groups.
pub(super) async fn check(admin: &AdminClient, broker: i32, within: Duration) -> Result<u32> {
    let of = ConfigResource::broker(broker);
    let found = config(admin, of, &[BROKER_MOST, BROKER_LIMIT], within).await?;
    let read = |name: &str| found.get(name).and_then(|value| value.parse::<u32>().ok());
    match (read(BROKER_MOST), read(BROKER_LIMIT)) {
        (Some(most), Some(_)) => Ok(most.min(DELIVERIES_WANTED)),
        _ => {
            let reason = "the Kafka broker has no share groups; 4.3 or newer is needed".to_owned();
            Err(Error::Refused { reason })
        }
    }
}

/// After how many deliveries the broker drops a message of a group.
pub(super) async fn deliveries_max(admin: &AdminClient, group: &str, within: Duration) -> Result<u32> {
    let found = config(admin, ConfigResource::group(group), &[LIMIT], within).await?;
    let limit = found.get(LIMIT).and_then(|value| value.parse().ok());
    match limit.unwrap_or(DELIVERIES_MIN) {
        enough @ DELIVERIES_MIN.. => Ok(enough),
        few => {
            let reason = format!(
                "the broker drops a message of the group '{group}' after {few} deliveries; set its {LIMIT} to \
                 {DELIVERIES_MIN} or more, best {DELIVERIES_WANTED}"
            );
            Err(Error::Refused { reason })
        }
    }
}

/// Makes a share group. A topic that was made just now may not be known everywhere yet.
async fn make(
    admin: &AdminClient,
    group: &str,
    place: &str,
    from: i64,
    deliveries: u32,
    within: Duration,
) -> Result<()> {
    let doing = format!("making the group '{group}'");
    let settings = [
        (LIMIT, deliveries.to_string()),
        ("share.record.lock.duration.ms", LOCK.as_millis().to_string()),
        // Who comes gets something to read at once, not with its next sign of life.
        ("share.assignment.interval.ms", "0".to_owned()),
    ];
    let of = ConfigResource::group(group);
    let changes = settings.map(|(name, value)| ConfigOp::set(name, value)).to_vec();
    let options = IncrementalAlterConfigsOptions::default().timeout(within);
    let set = admin.incremental_alter_configs([(of.clone(), changes)], options).await;
    let set = set.map_err(|error| fault::of_change(&error, &doing))?.remove(&of);
    set.unwrap_or(Ok(())).map_err(|error| fault::of_change(&error, &doing))?;
    let at = TopicPartition::new(place, 0);
    let (until, mut pauses) = (Instant::now() + within, Pauses::new());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let options = AlterShareGroupOffsetsOptions::default().timeout(left);
        let made = admin.alter_share_group_offsets(group, [(at.clone(), from)], options).await;
        let error = match made.map(|mut made| made.remove(&at)) {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(error))) | Err(error) => error,
            Ok(None) => return Err(Error::Unavailable { reason: format!("{doing}: no answer") }),
        };
        if !(fault::is_no_topic(&error) || error.is_retriable()) || left.is_zero() {
            return Err(fault::of_change(&error, &doing));
        }
        tokio::time::sleep(pauses.next().min(left)).await;
    }
}

async fn lag(admin: &AdminClient, group: &str, place: &str, within: Duration) -> Result<Lag> {
    let doing = format!("looking at the group '{group}'");
    let at = TopicPartition::new(place, 0);
    let options = DescribeShareGroupOffsetsOptions::default().timeout(within).partitions(vec![at.clone()]);
    match admin.describe_share_group_offsets(group, options).await.map(|mut found| found.remove(&at)) {
        Ok(Some(Ok(found))) if found.start_offset < 0 => Ok(Lag::Absent),
        Ok(Some(Ok(found))) => match found.lag {
            Some(lag) => Ok(Lag::Messages(u64::try_from(lag).unwrap_or(0))),
            None => Err(Error::Refused {
                reason: "the Kafka broker does not say what a share group has left; 4.3 or newer is needed"
                    .to_owned(),
            }),
        },
        Ok(None) => Ok(Lag::Absent),
        Ok(Some(Err(error))) | Err(error) if is_absent(&error) => Ok(Lag::Absent),
        Ok(Some(Err(error))) | Err(error) => Err(fault::of(&error, &doing)),
    }
}

/// What became of a group that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    Gone,
    /// Somebody reads it.
    InUse,
}

pub(super) async fn remove(admin: &AdminClient, group: &str, within: Duration) -> Result<Removed> {
    let doing = format!("removing the group '{group}'");
    let options = DeleteConsumerGroupsOptions::default().timeout(within);
    let removed = admin.delete_consumer_groups([group], options).await;
    match removed.map_err(|error| fault::of_change(&error, &doing))?.remove(group) {
        Some(Err(error)) if fault::is(&error, ErrorCode::NonEmptyGroup) => Ok(Removed::InUse),
        Some(Err(error)) if !is_absent(&error) => Err(fault::of_change(&error, &doing)),
        Some(_) | None => Ok(Removed::Gone),
    }
}

fn is_absent(error: &krafka::KrafkaError) -> bool {
    fault::is(error, ErrorCode::GroupIdNotFound) || fault::is_no_topic(error)
}
