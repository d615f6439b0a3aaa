//! The topics of the system services, in one table: who owns each, under which subscription it is read, and how it is
//! named. Everything else belongs to a flow and has its owner on record there; see [`crate::doors`].

use crate::{Class, Topic, WorkspaceId};

/// Subscription of the config service on its requests.
pub const CONFIG_SVC: &str = "config-svc";
/// Subscription of the flow service on its requests.
pub const FLOW_SVC: &str = "flow-svc";
/// Subscription of the library on documents, collections, progress and dead letters.
pub const LIBRARIAN: &str = "librarian";
/// Subscription of the library on knowledge cores.
pub const KNOWLEDGE: &str = "knowledge";
/// Subscription of identity and access on its requests.
pub const IAM_SVC: &str = "iam-svc";
/// Kinds of stores: the subscriptions on removals, one for each kind, read where such a store is.
pub const STORE_KINDS: [&str; 3] = ["vectors", "keywords", "triples"];
/// Name of the gateway; it owns the audit events that it sends.
pub const GATEWAY: &str = "api-gateway";

const SPACE: &str = "tg";
const REMOVALS: &str = "removals";

/// Where a row's topics exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Once, without a suffix.
    Global,
    /// Once per workspace, with the workspace as suffix. The name without a suffix is taken but not served.
    Workspace,
    /// Both.
    GlobalAndWorkspace,
}

struct Row {
    base: &'static str,
    classes: &'static [Class],
    scope: Scope,
    service: &'static str,
}

const CALLS: &[Class] = &[Class::Request, Class::Response];

/// The table. A row's topics are `{class}:tg:{base}` and `{class}:tg:{base}:{workspace}`, as its scope says.
const ROWS: &[Row] = &[
    Row { base: "config", classes: CALLS, scope: Scope::GlobalAndWorkspace, service: CONFIG_SVC },
    Row { base: "config", classes: &[Class::Notify], scope: Scope::Global, service: CONFIG_SVC },
    Row { base: "flow", classes: CALLS, scope: Scope::Workspace, service: FLOW_SVC },
    Row { base: "librarian", classes: CALLS, scope: Scope::Workspace, service: LIBRARIAN },
    Row { base: "collection", classes: CALLS, scope: Scope::Workspace, service: LIBRARIAN },
    Row { base: "dead-letters", classes: CALLS, scope: Scope::Workspace, service: LIBRARIAN },
    Row { base: "progress", classes: &[Class::Flow], scope: Scope::Workspace, service: LIBRARIAN },
    Row { base: "dead-letters", classes: &[Class::Flow], scope: Scope::Workspace, service: LIBRARIAN },
    Row { base: REMOVALS, classes: &[Class::Flow], scope: Scope::Workspace, service: LIBRARIAN },
    Row { base: "poison", classes: &[Class::Flow], scope: Scope::Global, service: LIBRARIAN },
    Row { base: "knowledge", classes: CALLS, scope: Scope::Workspace, service: KNOWLEDGE },
    Row { base: "iam", classes: CALLS, scope: Scope::Global, service: IAM_SVC },
    Row { base: "audit-events", classes: &[Class::Notify], scope: Scope::Global, service: GATEWAY },
    Row { base: "lost-topics", classes: &[Class::Notify], scope: Scope::Global, service: FLOW_SVC },
    Row { base: "policy-events", classes: &[Class::Notify], scope: Scope::Global, service: IAM_SVC },
];

/// Who owns a system topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The service, by the name of its subscription.
    pub service: &'static str,
    /// The workspace that the topic serves; `None` for a topic of the whole system.
    pub workspace: Option<WorkspaceId>,
    /// What the topic is to its owner: it reads its `Request` and `Flow` topics, writes its `Response` and `Notify` ones.
    pub role: Class,
}

/// The owner of a system topic; `None` when it is not one, so belongs to a flow or to somebody foreign.
///
/// ```
/// use sluice_schema::{Topic, system};
///
/// let owner = system::owner_of(&Topic::parse("request:tg:librarian:acme")?).expect("a system topic");
/// assert_eq!((owner.service, owner.workspace.unwrap().as_str()), ("librarian", "acme"));
/// assert_eq!(system::owner_of(&Topic::parse("request:tg:librarian:acme:f1")?), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn owner_of(topic: &Topic) -> Option<Owner> {
    if topic.space() != SPACE {
        return None;
    }
    ROWS.iter().filter(|row| row.classes.contains(&topic.class())).find_map(|row| {
        let rest = topic.name().strip_prefix(row.base)?;
        let workspace = match rest.strip_prefix(':') {
            // The bare name is the system's even where only workspaces are served.
            None => rest.is_empty().then_some(None)?,
            Some(_) if row.scope == Scope::Global => return None,
            Some(workspace) if workspace.is_empty() || workspace.contains(':') => return None,
            Some(workspace) => Some(WorkspaceId::existing(workspace)),
        };
        Some(Owner { service: row.service, workspace, role: topic.class() })
    })
}

/// Whether no flow may ever make or remove a topic, whatever a blueprint says: it is a system service's, or a notice.
#[must_use]
pub fn is_system(topic: &Topic) -> bool {
    topic.class() == Class::Notify || owner_of(topic).is_some()
}

/// Every topic with a subscription that exists once per system, with the subscription.
#[must_use]
pub fn global_subscriptions() -> Vec<(Topic, &'static str)> {
    subscriptions(|scope| scope != Scope::Workspace, "")
}

/// Every topic with a subscription that exists for a workspace, with the subscription.
#[must_use]
pub fn workspace_subscriptions(workspace: &WorkspaceId) -> Vec<(Topic, &'static str)> {
    subscriptions(|scope| scope != Scope::Global, &format!(":{workspace}"))
}

fn subscriptions(wanted: impl Fn(Scope) -> bool, suffix: &str) -> Vec<(Topic, &'static str)> {
    let rows = ROWS.iter().filter(|row| wanted(row.scope));
    rows.flat_map(|row| row.classes.iter().map(move |class| (row, *class)))
        .filter(|(_, class)| class.has_subscriptions())
        .flat_map(|(row, class)| {
            let topic = Topic::made(class, &format!("{}{suffix}", row.base));
            row.readers().iter().map(move |reader| (topic.clone(), *reader))
        })
        .collect()
}

impl Row {
    /// Who reads its durable topics: the owner, unless it tells others there.
    fn readers(&self) -> &[&'static str] {
        if self.base == REMOVALS { &STORE_KINDS } else { std::slice::from_ref(&self.service) }
    }
}

macro_rules! topics {
    (global: $( $(#[doc = $doc:literal])* $name:ident = $class:ident $base:literal; )*) => {$(
        $(#[doc = $doc])*
        #[must_use]
        pub fn $name() -> Topic {
            Topic::made(Class::$class, $base)
        }
    )*};
    (workspace: $( $(#[doc = $doc:literal])* $name:ident = $class:ident $base:literal; )*) => {$(
        $(#[doc = $doc])*
        #[must_use]
        pub fn $name(workspace: &WorkspaceId) -> Topic {
            Topic::made(Class::$class, &format!(concat!($base, ":{}"), workspace))
        }
    )*};
    (both: $( $(#[doc = $doc:literal])* $name:ident = $class:ident $base:literal; )*) => {$(
        $(#[doc = $doc])*
        #[must_use]
        pub fn $name(workspace: Option<&WorkspaceId>) -> Topic {
            match workspace {
                None => Topic::made(Class::$class, $base),
                Some(workspace) => Topic::made(Class::$class, &format!(concat!($base, ":{}"), workspace)),
            }
        }
    )*};
}

topics! { both:
    /// Calls to config: `None` is the system queue, which only internal callers reach; otherwise a workspace's.
    config_request = Request "config";
    /// Answers of config.
    config_response = Response "config";
}

topics! { global:
    /// Notices that config changed.
    config_notify = Notify "config";
    /// Messages that the broker took from readers which kept giving them back.
    poison = Flow "poison";
    /// Calls to identity and access.
    iam_request = Request "iam";
    /// Answers of identity and access.
    iam_response = Response "iam";
    /// Audit events.
    audit_events = Notify "audit-events";
    /// Notices of whoever found something of a topic missing, to its owner.
    lost_topics = Notify "lost-topics";
    /// Policy decisions.
    policy_events = Notify "policy-events";
}

topics! { workspace:
    /// Calls to the flow service.
    flow_request = Request "flow";
    /// Answers of the flow service.
    flow_response = Response "flow";
    /// Calls to the librarian.
    librarian_request = Request "librarian";
    /// Answers of the librarian.
    librarian_response = Response "librarian";
    /// Calls about collections.
    collection_request = Request "collection";
    /// Answers about collections.
    collection_response = Response "collection";
    /// Calls about knowledge cores.
    knowledge_request = Request "knowledge";
    /// Answers about knowledge cores.
    knowledge_response = Response "knowledge";
    /// Calls about parked messages.
    dead_letters_request = Request "dead-letters";
    /// Answers about parked messages.
    dead_letters_response = Response "dead-letters";
    /// Messages that could not be processed, parked by whoever gave up on them.
    dead_letters = Flow "dead-letters";
    /// What stages did with pieces of documents.
    progress = Flow "progress";
    /// What stores must forget; written by the library, read under [`STORE_KINDS`].
    removals = Flow "removals";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_topic_has_one_owner_and_a_flows_topic_none() {
        let check = |text: &str, expected: Option<(&str, Option<&str>)>| {
            let owner = owner_of(&Topic::parse(text).unwrap());
            let seen = owner.as_ref().map(|o| (o.service, o.workspace.as_ref().map(WorkspaceId::as_str)));
            assert_eq!(seen, expected, "{text}");
        };
        check("request:tg:config", Some((CONFIG_SVC, None)));
        check("request:tg:config:acme", Some((CONFIG_SVC, Some("acme"))));
        check("response:tg:config:acme", Some((CONFIG_SVC, Some("acme"))));
        check("notify:tg:config", Some((CONFIG_SVC, None)));
        check("request:tg:flow", Some((FLOW_SVC, None)));
        check("response:tg:collection:acme", Some((LIBRARIAN, Some("acme"))));
        check("flow:tg:progress:acme", Some((LIBRARIAN, Some("acme"))));
        check("flow:tg:dead-letters:acme", Some((LIBRARIAN, Some("acme"))));
        check("flow:tg:removals:acme", Some((LIBRARIAN, Some("acme"))));
        check("flow:tg:poison", Some((LIBRARIAN, None)));
        check("flow:tg:poison:acme", None);
        check("request:tg:dead-letters:acme", Some((LIBRARIAN, Some("acme"))));
        check("request:tg:knowledge:acme", Some((KNOWLEDGE, Some("acme"))));
        check("response:tg:iam", Some((IAM_SVC, None)));
        check("request:tg:iam:acme", None);
        check("flow:tg:config:acme", None);
        check("request:tg:config:acme:f1", None);
        check("request:tg:configuration:acme", None);
        check("request:other:config:acme", None);
        check("request:tg:config:", None);
    }

    #[test]
    fn what_the_constructors_make_is_in_the_table() {
        let workspace = WorkspaceId::existing("acme");
        let w = &workspace;
        let made = [
            (config_request(None), "request:tg:config"),
            (config_response(Some(w)), "response:tg:config:acme"),
            (config_notify(), "notify:tg:config"),
            (poison(), "flow:tg:poison"),
            (iam_request(), "request:tg:iam"),
            (iam_response(), "response:tg:iam"),
            (audit_events(), "notify:tg:audit-events"),
            (lost_topics(), "notify:tg:lost-topics"),
            (policy_events(), "notify:tg:policy-events"),
            (flow_request(w), "request:tg:flow:acme"),
            (flow_response(w), "response:tg:flow:acme"),
            (librarian_request(w), "request:tg:librarian:acme"),
            (librarian_response(w), "response:tg:librarian:acme"),
            (collection_request(w), "request:tg:collection:acme"),
            (collection_response(w), "response:tg:collection:acme"),
            (knowledge_request(w), "request:tg:knowledge:acme"),
            (knowledge_response(w), "response:tg:knowledge:acme"),
            (dead_letters_request(w), "request:tg:dead-letters:acme"),
            (dead_letters_response(w), "response:tg:dead-letters:acme"),
            (dead_letters(w), "flow:tg:dead-letters:acme"),
            (progress(w), "flow:tg:progress:acme"),
            (removals(w), "flow:tg:removals:acme"),
        ];
        for (topic, text) in made {
            assert_eq!(topic, Topic::parse(text).unwrap());
            assert!(owner_of(&topic).is_some(), "{topic}");
        }
    }

    #[test]
    fn every_shared_queue_of_the_system_is_listed_once() {
        let workspace = WorkspaceId::existing("acme");
        let listed = workspace_subscriptions(&workspace);
        let names: Vec<_> = listed.iter().map(|(topic, reader)| format!("{topic} {reader}")).collect();
        assert_eq!(
            names,
            [
                "request:tg:config:acme config-svc",
                "request:tg:flow:acme flow-svc",
                "request:tg:librarian:acme librarian",
                "request:tg:collection:acme librarian",
                "request:tg:dead-letters:acme librarian",
                "flow:tg:progress:acme librarian",
                "flow:tg:dead-letters:acme librarian",
                "flow:tg:removals:acme vectors",
                "flow:tg:removals:acme keywords",
                "flow:tg:removals:acme triples",
                "request:tg:knowledge:acme knowledge",
            ]
        );
        let global: Vec<_> = global_subscriptions().iter().map(|(topic, _)| topic.to_string()).collect();
        assert_eq!(global, ["request:tg:config", "flow:tg:poison", "request:tg:iam"]);
    }
}
