//! Share groups: a subscription is one, made by its owner before anybody reads.

use std::collections::HashMap;
use std::time::Duration;

use krafka::admin::{
    AdminClient, AlterShareGroupOffsetsOptions, ConfigOp, ConfigResource, DeleteConsumerGroupsOptions,
    DescribeConfigsOptions, DescribeShareGroupOffsetsOptions, IncrementalAlterConfigsOptions,
};
use krafka::consumer::TopicPartition;
use krafka::error::ErrorCode;
use sluice_bus::{Error, Result};
use tokio::time::Instant;

use super::fault;
use crate::local::Pauses;

/// How long a message is a member's that is not heard of. Readers say three times as often that they are at work.
pub(super) const LOCK: Duration = Duration::from_secs(15);
/// Deliveries of a message that are asked for; the broker may allow fewer.
const DELIVERIES_WANTED: u32 = 10;
/// With fewer, every message would be sent once more before it is handed out.
const DELIVERIES_MIN: u32 = 3;
const LIMIT: &str = "share.delivery.count.limit";
const BROKER_MOST: &str = "group.share.max.delivery.count.limit";
const BROKER_LIMIT: &str = "group.share.delivery.count.limit";

/// What the broker says of a group's end of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lag {
    /// Messages that are not settled, those in hand included.
    Messages(u64),
    Absent,
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

/// Makes a group that gets what comes to a topic from an offset on. A topic that was made just now may not be known everywhere
/// yet.
pub(super) async fn make(
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

/// What a group has not settled of a topic.
pub(super) async fn lag(admin: &AdminClient, group: &str, place: &str, within: Duration) -> Result<Lag> {
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
