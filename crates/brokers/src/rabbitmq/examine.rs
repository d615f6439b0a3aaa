//! What a person should know of the broker: what it cannot show, messages that are given back for ever, publishers that
//! are held back.

use serde::Deserialize;
use sluice_bus::Finding;

use super::admin::Admin;
use super::management::{Inventory, Management};
use super::{names, poison};

/// Over which time messages given back and settled are compared.
const LOOK_BACK_SECS: u32 = 60;
/// Messages given back in that time, fewer of which are no loop.
const GIVEN_BACK_MIN: f64 = 3.0;

#[derive(Deserialize)]
struct Queue {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    policy: Option<String>,
    #[serde(default)]
    consumers: u64,
    #[serde(default)]
    message_stats: Stats,
}

#[derive(Default, Deserialize)]
struct Stats {
    #[serde(default)]
    redeliver_details: Rate,
    #[serde(default)]
    ack_details: Rate,
}

#[derive(Default, Deserialize)]
struct Rate {
    #[serde(default)]
    avg_rate: f64,
}

impl Rate {
    fn in_all(&self) -> f64 {
        (self.avg_rate * f64::from(LOOK_BACK_SECS)).round()
    }
}

#[derive(Deserialize)]
struct Policy {
    name: String,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    #[serde(default)]
    mem_alarm: bool,
    #[serde(default)]
    disk_free_alarm: bool,
}

impl Admin {
    pub(super) async fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(why) = self.publisher.blocked() {
            findings.push(held_back(&format!("the broker takes no messages from us ({why})")));
        }
        let Some(management) = &self.management else {
            findings.push(finding(
                "management-missing",
                "no address of the broker's management API is given: queues that nobody asked about cannot be found, \
                 unacknowledged messages are not counted, loops are not seen"
                    .to_owned(),
                "give the address of its management API",
            ));
            return findings;
        };
        if let Err(why) = look(management, &mut findings).await {
            findings.push(finding(
                "management-silent",
                format!(
                    "the broker's management API does not answer ({why}): queues that nobody asked about cannot be \
                     found, unacknowledged messages are not counted, loops are not seen"
                ),
                "see that it runs at the address given, and that the user may use it",
            ));
        }
        findings
    }
}

async fn look(management: &Management, findings: &mut Vec<Finding>) -> Result<(), String> {
    let vhost = management.vhost();
    let columns = "name,type,policy,consumers,message_stats.redeliver_details.avg_rate,\
                   message_stats.ack_details.avg_rate";
    let queues = format!("queues/{vhost}?msg_rates_age={LOOK_BACK_SECS}&msg_rates_incr=5&columns={columns}");
    let queues: Vec<Queue> = management.get(&queues).await?;
    let policies: Vec<Policy> = management.get(&format!("policies/{vhost}")).await?;
    let inventory = management.inventory().await?;
    let is_bounding = policies.iter().any(|policy| policy.name == poison::POLICY);
    for queue in &queues {
        findings.extend(is_bounding.then(|| unbounded(queue, &inventory)).flatten());
        findings.extend(going_round(queue, &inventory));
    }
    // Not every user may see nodes; then alarms are seen by our own publishes.
    let nodes: Vec<Node> =
        management.get("nodes?columns=name,mem_alarm,disk_free_alarm").await.unwrap_or_default();
    for Node { name, mem_alarm, disk_free_alarm } in nodes {
        let short_of = match (mem_alarm, disk_free_alarm) {
            (false, false) => continue,
            (true, false) => "memory",
            (false, true) => "disk space",
            (true, true) => "memory and disk space",
        };
        findings.push(held_back(&format!("node '{name}' is short of {short_of} and takes no messages")));
    }
    Ok(())
}

/// A queue whose poison should be bounded, and is not.
fn unbounded(queue: &Queue, inventory: &Inventory) -> Option<Finding> {
    let is_of_a_topic = queue.name.starts_with(names::FLOW_QUEUES);
    let is_obeying = queue.policy.as_deref() == Some(poison::POLICY);
    let why = match (&queue.policy, queue.kind.as_deref()) {
        _ if !is_of_a_topic => return None,
        (_, Some(kind)) if kind != "quorum" => format!("a {kind} queue does not count deliveries"),
        (Some(other), _) if !is_obeying => format!("policy '{other}' is in force instead of ours"),
        _ => return None,
    };
    let next = "stop and start its flow on a vhost whose default queue type is quorum; a policy of your own that covers \
                it needs a delivery limit and a dead letter exchange";
    let text = format!("messages of '{}' may be given back for ever: {why}", queue.name);
    Some(about(queue, inventory, finding("poison-unbounded", text, next)))
}

fn going_round(queue: &Queue, inventory: &Inventory) -> Option<Finding> {
    let given_back = queue.message_stats.redeliver_details.in_all();
    let settled = queue.message_stats.ack_details.in_all();
    // Our own readers settle one for each that comes back to them.
    if given_back < GIVEN_BACK_MIN || settled * 2.0 >= given_back {
        return None;
    }
    let text = format!(
        "readers of '{}' ({} attached) were given messages again {given_back} times in the last {LOOK_BACK_SECS} s \
         and settled {settled}",
        queue.name, queue.consumers
    );
    let next = if queue.kind.as_deref() == Some("quorum") {
        "read the log of the processor that reads it; where poison is bounded, the broker parks the message by itself"
    } else if queue.name.starts_with(names::FLOW_QUEUES) {
        "read the log of the processor that reads it, then stop its flow, which parks what is left; on a vhost whose \
         default queue type is quorum the broker parks such a message by itself"
    } else {
        "read the log of the processor that serves it; a request ends when its time is over"
    };
    Some(about(queue, inventory, finding("requeue-loop", text, next)))
}

fn held_back(text: &str) -> Finding {
    let next = "free what it lacks, or let it have more; publishing goes on by itself then";
    finding("publishers-blocked", text.to_owned(), next)
}

fn finding(code: &'static str, text: String, next: &str) -> Finding {
    Finding { code, topic: None, subscription: None, text, next: next.to_owned() }
}

fn about(queue: &Queue, inventory: &Inventory, finding: Finding) -> Finding {
    let exchange = inventory.owner(&queue.name);
    let topic = exchange.and_then(names::topic);
    let subscription = exchange.and_then(|exchange| queue.name.strip_prefix(exchange)?.strip_prefix('.'));
    let subscription = subscription.filter(|_| topic.is_some()).map(str::to_owned);
    Finding { topic, subscription, ..finding }
}
