//! May a flow use a topic? One function answers for blueprints when they are put, for flows when they start, and for the
//! gateway's router, so none of them can be talked into opening a door to a neighbour.
//!
//! A flow has its own topics: in space `tg`, named `…:{workspace}:{name}`, where the name is its run's or its
//! blueprint's. It may call the system services of its own workspace. Everything else is somebody else's.

use std::borrow::Cow;

use crate::{Class, Topic, WorkspaceId, system};

/// What a flow wants with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// Read it under a shared subscription (`input`, `request`).
    Consume,
    /// Write to it (`output`, `response`).
    Produce,
    /// Ask a service on it, or read that service's answers (`X-request`, `X-response`).
    Call,
    /// Let callers of the gateway in (`interfaces`).
    Expose,
}

/// Whose doors: the workspace, and the names that make a topic the flow's own.
#[derive(Debug, Clone, Copy)]
pub struct Home<'a> {
    /// The flow's workspace.
    pub workspace: &'a WorkspaceId,
    /// The run's name and, where the blueprint has a shared section, that section's name. Names with `:` match nothing.
    pub names: &'a [&'a str],
}

/// Why a flow may not use a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DoorError {
    /// Notices are between system services.
    #[error(
        "topic '{topic}' is of class notify, which flows may not use; use class flow, request or response"
    )]
    Notify {
        /// The topic.
        topic: Topic,
    },
    /// A system service of the whole system, which could reach any workspace.
    #[error(
        "topic '{topic}' belongs to {service} for the whole system; a flow may call only services of its own workspace, '{workspace}'"
    )]
    Global {
        /// The topic.
        topic: Topic,
        /// Its owner.
        service: &'static str,
        /// The flow's workspace.
        workspace: WorkspaceId,
    },
    /// A system service of another workspace.
    #[error(
        "topic '{topic}' belongs to {service} of workspace '{other}'; a flow may call only services of its own workspace, '{workspace}'"
    )]
    OtherWorkspace {
        /// The topic.
        topic: Topic,
        /// Its owner.
        service: &'static str,
        /// The owner's workspace.
        other: WorkspaceId,
        /// The flow's workspace.
        workspace: WorkspaceId,
    },
    /// A system service of the own workspace, but not as its client.
    #[error(
        "topic '{topic}' belongs to {service}; a flow may call it as a client (slots ending in -request and -response), but not {wanted} it"
    )]
    NotAsClient {
        /// The topic.
        topic: Topic,
        /// Its owner.
        service: &'static str,
        /// `consume`, `produce to` or `expose`.
        wanted: &'static str,
    },
    /// Not of this flow.
    #[error("topic '{topic}' does not belong to this flow; end its name in {}, or call a service of workspace '{workspace}'", endings(.workspace, .names))]
    NotOwn {
        /// The topic.
        topic: Topic,
        /// The flow's workspace.
        workspace: WorkspaceId,
        /// Names of [`Home::names`].
        names: Vec<String>,
    },
}

fn endings(workspace: &WorkspaceId, names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("':{workspace}:{name}'")).collect();
    quoted.join(" or ")
}

/// Whether a flow may use a topic.
///
/// ```
/// use sluice_schema::{Topic, WorkspaceId, doors::{self, Home, Use}};
///
/// let workspace = WorkspaceId::parse("acme")?;
/// let home = Home { workspace: &workspace, names: &["f1"] };
/// let check = |topic: &str, wanted| doors::check(&Topic::parse(topic).unwrap(), wanted, home);
///
/// assert!(check("flow:tg:chunk-load:acme:f1", Use::Consume).is_ok());
/// assert!(check("request:tg:librarian:acme", Use::Call).is_ok());
/// assert!(check("request:tg:librarian:acme", Use::Expose).is_err());
/// assert!(check("request:tg:prompt:other:f1", Use::Call).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A [`DoorError`] that names the topic, whose it is and what is allowed instead.
pub fn check(topic: &Topic, wanted: Use, home: Home<'_>) -> Result<(), DoorError> {
    if topic.class() == Class::Notify {
        return Err(DoorError::Notify { topic: topic.clone() });
    }
    let Some(owner) = system::owner_of(topic) else {
        return if is_own(topic, home) { Ok(()) } else { Err(not_own(topic, home)) };
    };
    let (topic, service, workspace) = (topic.clone(), owner.service, home.workspace.clone());
    match owner.workspace {
        None => return Err(DoorError::Global { topic, service, workspace }),
        Some(other) if other != workspace => {
            return Err(DoorError::OtherWorkspace { topic, service, other, workspace });
        }
        Some(_) => {}
    }
    let wanted = match wanted {
        Use::Call if matches!(topic.class(), Class::Request | Class::Response) => return Ok(()),
        Use::Call | Use::Produce => "produce to",
        Use::Consume => "consume",
        Use::Expose => "expose",
    };
    Err(DoorError::NotAsClient { topic, service, wanted })
}

/// Whether a topic is a flow's own by its name. System topics are nobody's own.
#[must_use]
pub fn is_own(topic: &Topic, home: Home<'_>) -> bool {
    topic.space() == "tg"
        && !system::is_system(topic)
        && home.names.iter().any(|name| ends_in(topic.name(), home.workspace.as_str(), name))
}

/// Whose a topic is by its name alone: a workspace's, and unless it is a service's, that of a flow's run or blueprint by
/// this name. `None` for what is the whole system's or nobody's.
#[must_use]
pub fn whose(topic: &Topic) -> Option<(WorkspaceId, Option<&str>)> {
    if let Some(owner) = system::owner_of(topic) {
        return owner.workspace.map(|workspace| (workspace, None));
    }
    let mut ends = topic.name().rsplitn(3, ':');
    let (name, workspace, base) = (ends.next()?, ends.next()?, ends.next()?);
    let is_own = [name, workspace, base].iter().all(|part| !part.is_empty());
    is_own.then(|| (WorkspaceId::existing(workspace), Some(name)))
}

/// By what name a topic counts where workspaces share a bound: its workspace, apart for what is a flow's, so that services
/// answer in a workspace whose flows have all they may; none for what is the whole system's.
#[must_use]
pub fn holder(topic: &Topic) -> Cow<'static, str> {
    match whose(topic) {
        None => Cow::Borrowed(""),
        Some((workspace, None)) => Cow::Owned(workspace.to_string()),
        Some((workspace, Some(_))) => Cow::Owned(format!("{workspace}:flows")),
    }
}

/// Exactly `…:{workspace}:{name}`, and something before it. Neither part may hold a colon: `a:b` as a name would open
/// the topics of flow `b` in workspace `a`.
fn ends_in(text: &str, workspace: &str, name: &str) -> bool {
    let parts = text
        .strip_suffix(name)
        .and_then(|text| text.strip_suffix(':'))
        .and_then(|text| text.strip_suffix(workspace))
        .and_then(|text| text.strip_suffix(':'));
    let plain = |part: &str| !part.is_empty() && !part.contains(':');
    plain(workspace) && plain(name) && parts.is_some_and(|base| !base.is_empty())
}

fn not_own(topic: &Topic, home: Home<'_>) -> DoorError {
    DoorError::NotOwn {
        topic: topic.clone(),
        workspace: home.workspace.clone(),
        names: home.names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(topic: &str, wanted: Use, names: &[&str]) -> Result<(), String> {
        let workspace = WorkspaceId::existing("acme");
        let home = Home { workspace: &workspace, names };
        check(&Topic::parse(topic).unwrap(), wanted, home).map_err(|e| e.to_string())
    }

    const EVERY_USE: [Use; 4] = [Use::Consume, Use::Produce, Use::Call, Use::Expose];

    #[test]
    fn a_topic_tells_whose_it_is() {
        let whose = |topic: &str| {
            let topic = Topic::parse(topic).unwrap();
            whose(&topic).map(|(workspace, name)| (workspace.to_string(), name.map(ToOwned::to_owned)))
        };
        let of =
            |workspace: &str, name: Option<&str>| Some((workspace.to_owned(), name.map(ToOwned::to_owned)));
        assert_eq!(whose("flow:tg:chunk-load:acme:f1-r2"), of("acme", Some("f1-r2")));
        assert_eq!(whose("flow:tg:x:y:acme:f1"), of("acme", Some("f1")));
        assert_eq!(whose("request:tg:librarian:acme"), of("acme", None));
        assert_eq!(
            (whose("request:tg:iam"), whose("flow:tg:work"), whose("flow:tg:a:b")),
            (None, None, None)
        );
    }

    #[test]
    fn a_flow_may_use_its_own_topics_in_every_way() {
        for topic in
            ["flow:tg:chunk-load:acme:f1-r2", "request:tg:prompt:acme:rag", "response:tg:x:y:acme:f1-r2"]
        {
            for wanted in EVERY_USE {
                assert_eq!(ask(topic, wanted, &["f1-r2", "rag"]), Ok(()), "{topic} {wanted:?}");
            }
        }
    }

    #[test]
    fn a_flow_may_only_call_the_services_of_its_workspace() {
        for base in ["config", "flow", "librarian", "collection", "knowledge", "dead-letters"] {
            for class in ["request", "response"] {
                let topic = format!("{class}:tg:{base}:acme");
                for wanted in EVERY_USE {
                    assert_eq!(
                        ask(&topic, wanted, &["f1"]).is_ok(),
                        wanted == Use::Call,
                        "{topic} {wanted:?}"
                    );
                }
            }
        }
        for topic in ["flow:tg:progress:acme", "flow:tg:dead-letters:acme"] {
            for wanted in EVERY_USE {
                assert!(ask(topic, wanted, &["f1"]).is_err(), "{topic} {wanted:?}");
            }
        }
    }

    #[test]
    fn what_is_not_its_own_says_whose_it_is_and_what_is_allowed() {
        let refused = |topic: &str, expected: &[&str]| {
            for wanted in EVERY_USE {
                let said = ask(topic, wanted, &["f1", "bp"]).unwrap_err();
                for part in expected.iter().chain(&[topic]) {
                    assert!(said.contains(part), "{topic} {wanted:?}: {said}");
                }
            }
        };
        refused("notify:tg:x:acme:f1", &["class notify"]);
        refused("notify:tg:config", &["class notify"]);
        refused("request:tg:config", &["config-svc for the whole system", "'acme'"]);
        refused("response:tg:iam", &["iam-svc for the whole system"]);
        refused("request:tg:librarian:other", &["librarian of workspace 'other'", "'acme'"]);
        refused("flow:tg:chunk-load:other:f1", &["':acme:f1' or ':acme:bp'"]);
        refused("flow:tg:chunk-load:acme:f2", &["does not belong"]);
        refused("flow:tg:chunk-load:acme", &["does not belong"]);
        refused("flow:tg:chunk-load:acme:f1:x", &["does not belong"]);
        refused("flow:other:chunk-load:acme:f1", &["does not belong"]);
        refused("flow:tg:xacme:f1", &["does not belong"]);
        refused("flow:tg:acme:f1", &["does not belong"]);
    }

    #[test]
    fn a_name_with_a_colon_opens_nothing() {
        assert!(ask("flow:tg:x:acme:other:f1", Use::Consume, &["other:f1"]).is_err());
        assert!(ask("flow:tg:x:acme:", Use::Consume, &[""]).is_err());
    }
}
