//! What a person should know of the broker: what it cannot show, messages that are given back for ever, publishers that
//! are held back, policies and limits that lose or refuse what we send.
//!
//! Findings that name no topic are reported to every workspace, so they name no queue either.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_bus::Finding;

use super::admin::Admin;
use super::management::{Inventory, Management};
use super::{names, poison};

/// Over which time messages given back and settled are compared.
const LOOK_BACK_SECS: u32 = 60;
/// Messages given back in that time, fewer of which are no loop.
const GIVEN_BACK_MIN: f64 = 3.0;
/// How long a message to nobody may take to come back before it is asked why.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// What is not seen without the management API.
const UNSEEN: &str = "queues that nobody asked about cannot be found, unacknowledged messages are not counted, and \
                      loops, lost bindings, alarms that hold others back, policies and limits are not seen";

#[derive(Deserialize)]
struct Queue {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    policy: Option<String>,
    operator_policy: Option<String>,
    /// An object; an empty list where there is none.
    #[serde(default)]
    effective_policy_definition: Value,
    #[serde(default)]
    messages_ready: u64,
    #[serde(default)]
    message_bytes_ready: u64,
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
    #[serde(default)]
    partitions: Vec<String>,
    running: Option<bool>,
}

#[derive(Deserialize)]
struct VhostLimits {
    #[serde(default)]
    value: Map<String, Value>,
}

impl Admin {
    pub(super) async fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        // The broker says that it takes nothing only to who sends something.
        let is_taken = self.publisher.probe(PROBE_TIMEOUT).await;
        if let Some(why) = self.publisher.blocked() {
            findings.push(held_back(&format!("the broker takes no messages from us ({why})")));
        } else if let Err(error) = is_taken {
            let text = format!("a message that should come back from the broker did not: {error}");
            findings.push(finding("publish-fails", text, "read the broker's log"));
        }
        let Some(management) = &self.management else {
            findings.push(finding(
                "management-missing",
                format!("no address of the broker's management API is given: {UNSEEN}"),
                "give the address of its management API",
            ));
            return findings;
        };
        if let Err(why) = look(management, &mut findings).await {
            findings.push(finding(
                "management-silent",
                format!("the broker's management API does not answer ({why}): {UNSEEN}"),
                "see that it runs at the address given, and that the user may use it",
            ));
        }
        findings
    }
}

async fn look(management: &Management, findings: &mut Vec<Finding>) -> Result<(), String> {
    let vhost = management.vhost();
    let columns = "name,type,policy,operator_policy,effective_policy_definition,messages_ready,message_bytes_ready,\
                   consumers,message_stats.redeliver_details.avg_rate,message_stats.ack_details.avg_rate";
    let queues = format!("queues/{vhost}?msg_rates_age={LOOK_BACK_SECS}&msg_rates_incr=5&columns={columns}");
    let queues: Vec<Queue> = management.get(&queues).await?;
    let policies: Vec<Policy> = management.get(&format!("policies/{vhost}")).await?;
    let inventory = management.inventory().await?;
    let is_bounding = policies.iter().any(|policy| policy.name == poison::POLICY);
    for queue in &queues {
        findings.extend(is_bounding.then(|| unbounded(queue, &inventory)).flatten());
        findings.extend(going_round(queue, &inventory));
        findings.extend(full(queue, &inventory));
    }
    findings.extend(policies_found(&queues));
    limits_found(management, &queues, findings).await;
    nodes_found(management, findings).await;
    Ok(())
}

async fn nodes_found(management: &Management, findings: &mut Vec<Finding>) {
    let columns = "nodes?columns=name,mem_alarm,disk_free_alarm,partitions,running";
    let nodes: Vec<Node> = match management.get(columns).await {
        Ok(nodes) => nodes,
        Err(why) => {
            let text = format!(
                "the broker's user may not look at its nodes ({why}): alarms are seen only when they hold our own \
                 publishes back"
            );
            findings.push(finding("alarms-not-seen", text, "give the user the tag 'monitoring'"));
            return;
        }
    };
    for Node { name, mem_alarm, disk_free_alarm, partitions, running } in nodes {
        if running == Some(false) {
            let text = format!("node '{name}' of the broker does not run");
            findings.push(finding("node-down", text, "start it, or take it out of the cluster"));
        }
        if !partitions.is_empty() {
            let text = format!("node '{name}' of the broker is cut off from {}", partitions.join(", "));
            let next = "mend the network, then restart the nodes of one side as the broker's handbook says";
            findings.push(finding("broker-partitioned", text, next));
        }
        let short_of = match (mem_alarm, disk_free_alarm) {
            (false, false) => continue,
            (true, false) => "memory",
            (false, true) => "disk space",
            (true, true) => "memory and disk space",
        };
        findings.push(held_back(&format!("node '{name}' is short of {short_of} and takes no messages")));
    }
}

/// What a vhost may have, where it has as much.
async fn limits_found(management: &Management, queues: &[Queue], findings: &mut Vec<Finding>) {
    let vhost = management.vhost();
    let limits: Vec<VhostLimits> = management.get(&format!("vhost-limits/{vhost}")).await.unwrap_or_default();
    let limit = |name: &str| limits.iter().find_map(|limits| limits.value.get(name)?.as_u64());
    let mut reached = |what: &str, has: usize, max: u64| {
        if has as u64 >= max {
            let text = format!("the vhost has {has} {what} and may have {max}: no more can be made");
            findings.push(finding("vhost-limit", text, "raise the limit of the vhost"));
        }
    };
    if let Some(max) = limit("max-queues") {
        reached("queues", queues.len(), max);
    }
    if let Some(max) = limit("max-connections") {
        let connections = format!("vhosts/{vhost}/connections?columns=name");
        let connections = management.get::<Vec<Value>>(&connections).await.unwrap_or_default();
        reached("connections", connections.len(), max);
    }
}

impl Queue {
    fn setting(&self, name: &str) -> Option<&Value> {
        self.effective_policy_definition.get(name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.setting(name)?.as_u64()
    }

    fn refuses(&self) -> bool {
        self.setting("overflow").and_then(Value::as_str).is_some_and(|how| how.starts_with("reject-publish"))
    }

    /// The policies in force, by name.
    fn policies(&self) -> String {
        let names = self.policy.iter().chain(&self.operator_policy);
        names.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(" and ")
    }

    /// What policies do to messages of ours, each with its code.
    fn effects(&self) -> Vec<(&'static str, String)> {
        let mut effects = Vec::new();
        if let Some(ms) = self.number("message-ttl") {
            let text = format!("what waits there longer than {ms} ms is thrown away (message-ttl)");
            effects.push(("policy-loses-messages", text));
        }
        if let Some(ms) = self.number("expires") {
            let text =
                format!("a queue that nobody reads for {ms} ms is removed with what is in it (expires)");
            effects.push(("policy-loses-messages", text));
        }
        for (name, unit) in [("max-length", "messages"), ("max-length-bytes", "bytes")] {
            let Some(max) = self.number(name) else { continue };
            effects.push(if self.refuses() {
                let text =
                    format!("beyond {max} {unit} a queue takes no more, and who sends is refused ({name})");
                ("policy-refuses-messages", text)
            } else {
                let text = format!("beyond {max} {unit} in a queue the oldest are thrown away ({name})");
                ("policy-loses-messages", text)
            });
        }
        let dead_letters = self.setting("dead-letter-exchange").and_then(Value::as_str);
        if let Some(exchange) = dead_letters.filter(|_| self.policy.as_deref() != Some(poison::POLICY)) {
            let text = format!(
                "what the broker takes from its readers goes to exchange '{exchange}', not to the dead letters"
            );
            effects.push(("policy-redirects-messages", text));
        }
        effects
    }
}

/// Policies that somebody made and that touch queues of ours, one finding for each of their effects.
fn policies_found(queues: &[Queue]) -> Vec<Finding> {
    let mut found: BTreeMap<(&'static str, String, String), usize> = BTreeMap::new();
    for queue in queues.iter().filter(|queue| names::is_ours(&queue.name)) {
        for (code, effect) in queue.effects() {
            *found.entry((code, queue.policies(), effect)).or_default() += 1;
        }
    }
    let told = |((code, policies, effect), count)| {
        let text = format!("policy {policies} is in force on {count} of the system's queues: {effect}");
        let next = "change the policy at the broker so that it leaves out queues that begin with 'tg.' and 'sluice.'";
        finding(code, text, next)
    };
    found.into_iter().map(told).collect()
}

/// A queue that takes no more, or throws away, by a policy.
fn full(queue: &Queue, inventory: &Inventory) -> Option<Finding> {
    if !names::is_ours(&queue.name) {
        return None;
    }
    let limits = [("max-length", queue.messages_ready), ("max-length-bytes", queue.message_bytes_ready)];
    let reached = limits.into_iter().find_map(|(name, has)| {
        let max = queue.number(name)?;
        (has >= max).then_some((name, has, max))
    });
    let (name, has, max) = reached?;
    let effect = if queue.refuses() { "it takes no more" } else { "its oldest messages are thrown away" };
    let text = format!(
        "queue '{}' has reached the {name} of policy {}, {has} of {max}: {effect}",
        queue.name,
        queue.policies()
    );
    let next = "raise or remove the limit at the broker, and see why its readers do not keep up";
    Some(about(queue, inventory, finding("queue-full", text, next)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn queue(name: &str, definition: &Value, ready: u64) -> Queue {
        let told = json!({
            "name": name, "policy": "theirs", "effective_policy_definition": definition, "messages_ready": ready,
        });
        serde_json::from_value(told).unwrap()
    }

    #[test]
    fn policies_that_lose_or_refuse_are_told_by_their_effect() {
        let check = |definition: &Value, expected: &[&str]| {
            let queues = [queue("tg.flow.a.r", definition, 0), queue("tg.request.b.r", definition, 0)];
            let found = policies_found(&queues);
            assert!(
                found.iter().all(|one| one.text.contains("policy 'theirs' is in force on 2 of")),
                "{found:?}"
            );
            assert_eq!(found.iter().map(|one| one.code).collect::<Vec<_>>(), expected);
        };
        check(&json!([]), &[]);
        check(&json!({"queue-mode": "lazy", "delivery-limit": 5}), &[]);
        check(&json!({"message-ttl": 1}), &["policy-loses-messages"]);
        check(&json!({"expires": 1_000}), &["policy-loses-messages"]);
        check(&json!({"max-length": 0, "overflow": "reject-publish"}), &["policy-refuses-messages"]);
        check(
            &json!({"max-length-bytes": 9, "overflow": "reject-publish-dlx"}),
            &["policy-refuses-messages"],
        );
        check(&json!({"max-length": 9}), &["policy-loses-messages"]);
        check(&json!({"max-length": 9, "overflow": "drop-head"}), &["policy-loses-messages"]);
        check(&json!({"dead-letter-exchange": "x"}), &["policy-redirects-messages"]);
        assert!(policies_found(&[queue("orders", &json!({"message-ttl": 1}), 0)]).is_empty(), "not ours");
        let ours = Queue {
            policy: Some(poison::POLICY.to_owned()),
            ..queue(
                "tg.flow.a.r",
                &json!({"delivery-limit": 20, "dead-letter-exchange": "tg.flow.poison"}),
                0,
            )
        };
        assert!(policies_found(&[ours]).is_empty(), "our own");
    }

    #[test]
    fn a_queue_at_its_limit_is_told_with_its_name() {
        let inventory = Inventory::default();
        let limit = || json!({"max-length": 3, "overflow": "reject-publish"});
        assert!(full(&queue("tg.flow.a.r", &limit(), 2), &inventory).is_none());
        assert!(full(&queue("orders", &limit(), 9), &inventory).is_none());
        let found = full(&queue("tg.flow.a.r", &limit(), 3), &inventory).unwrap();
        assert!(found.code == "queue-full" && found.text.contains("'tg.flow.a.r'"), "{found:?}");
        assert!(found.text.contains("it takes no more"), "{found:?}");
    }
}
