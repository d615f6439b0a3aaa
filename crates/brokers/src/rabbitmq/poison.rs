//! Ends requeue loops of readers that are not ours. Quorum queues count deliveries and obey a limit; other queues have
//! none, so all depends on the vhost's default queue type, for no reader asks for a type. The limit is a policy, since a
//! reader would take no queue with arguments that it did not ask for.

use serde::{Deserialize, Serialize};
use sluice_bus::{Error, PoisonBound, Result};
use sluice_schema::{Class, Topic};

use super::admin::Admin;
use super::management::Management;
use super::names;

/// The name of our one policy.
pub(super) const POLICY: &str = "sluice-poison";
/// Deliveries after the first, as many as later brokers allow by themselves. Our own readers make two at most: what
/// comes back to them goes behind the others as a copy, of which the broker counts anew.
const DELIVERY_LIMIT: u32 = 20;

#[derive(Deserialize)]
struct Vhost {
    default_queue_type: Option<String>,
}

/// It sets neither a length nor a way to overflow: either makes 2.11's publishers lose messages.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Definition {
    delivery_limit: u32,
    dead_letter_exchange: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Policy {
    pattern: String,
    #[serde(rename = "apply-to")]
    apply_to: String,
    priority: i32,
    definition: Definition,
}

impl Policy {
    /// For every `flow` queue but those of the dead letters themselves, which would go round in circles.
    fn to(exchange: &str) -> Self {
        let name = exchange.strip_prefix(names::FLOW_QUEUES).unwrap_or(exchange);
        Self {
            pattern: format!(r"^{}(?!{}\.)", escaped(names::FLOW_QUEUES), escaped(name)),
            apply_to: "queues".to_owned(),
            priority: 0,
            definition: Definition {
                delivery_limit: DELIVERY_LIMIT,
                dead_letter_exchange: exchange.to_owned(),
            },
        }
    }
}

/// The text as a pattern that matches only itself.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii() && !c.is_ascii_alphanumeric() {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

impl Admin {
    pub(super) async fn bound_poison(&self, to: &Topic) -> Result<PoisonBound> {
        if to.class() != Class::Flow {
            let reason = format!("'{to}' keeps no messages; dead letters go to a 'flow' topic");
            return Err(Error::Refused { reason });
        }
        let exchange = names::exchange(to);
        if !self.look_at_exchange(&exchange).await? {
            return Err(Error::NoTopic { topic: to.clone() });
        }
        let unbounded = |why: String| Ok(PoisonBound::Unbounded { why });
        let Some(management) = &self.management else {
            return unbounded(
                "deliveries are limited through the broker's management API, and no address of that is given"
                    .to_owned(),
            );
        };
        match put(management, &Policy::to(&exchange)).await {
            Ok(None) => Ok(PoisonBound::Bounded { deliveries: DELIVERY_LIMIT + 1 }),
            Ok(Some(why)) => unbounded(why),
            Err(why) => unbounded(format!(
                "the broker's management API did not let us limit deliveries ({why}); its user needs the tag \
                 'policymaker'"
            )),
        }
    }
}

/// Sets the policy unless it is there; answers why it would have no effect.
async fn put(management: &Management, wanted: &Policy) -> Result<Option<String>, String> {
    let vhost = management.vhost();
    let found: Vhost = management.get(&format!("vhosts/{vhost}")).await?;
    if found.default_queue_type.as_deref() != Some("quorum") {
        return Ok(Some(
            "new queues of this vhost are classic queues, which do not count deliveries; make 'quorum' its default \
             queue type before flows are started"
                .to_owned(),
        ));
    }
    let path = format!("policies/{vhost}/{POLICY}");
    // Not there, or of another form: then it is set.
    if management.get::<Policy>(&path).await.is_ok_and(|policy| policy == *wanted) {
        return Ok(None);
    }
    management.put(&path, wanted).await.map(|()| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_leaves_out_the_dead_letters_themselves() {
        let policy = Policy::to("tg.flow.dead-letters:default");
        assert_eq!(policy.pattern, r"^tg\.flow\.(?!dead\-letters\:default\.)");
        let told = serde_json::to_value(&policy.definition).unwrap();
        let exchange = "tg.flow.dead-letters:default";
        assert_eq!(told, serde_json::json!({ "delivery-limit": 20, "dead-letter-exchange": exchange }));
    }
}
