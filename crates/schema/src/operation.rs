//! The table of operations: what a caller may ask for through the gateway, which capability it takes and whose resource
//! it touches. Routing, authorisation and the docs derive from it; an operation that is not here does not exist outside.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::{FlowId, WorkspaceId};

/// Whose resource an operation touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// The whole system: resource `{}`.
    System,
    /// A workspace: resource `{"workspace": W}`.
    Workspace,
    /// A flow: resource `{"workspace": W, "flow": F}`.
    Flow,
}

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Anybody, without a credential.
    Public,
    /// Anybody with a valid credential.
    Authenticated,
    /// Whoever iam grants this capability on the resource.
    Capability(&'static str),
}

/// What iam is told beside capability and resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parameters {
    /// `{}`.
    None,
    /// `{"workspace": W}`, with W from the body; see [`Operation::parameters`].
    Workspace,
}

/// Where operations of one kind are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `POST /api/v1/iam`; on the socket, service `iam`.
    Iam,
    /// `POST /api/v1/{kind}`; on the socket, the service of that name without a flow.
    Service(&'static str),
    /// `POST /api/v1/flow/{flow}/service/{operation}`; on the socket, service = operation, with a flow.
    FlowService,
    /// `GET /api/v1/flow/{flow}/import/{operation}`.
    FlowImport,
    /// `GET /api/v1/flow/{flow}/export/{operation}`.
    FlowExport,
    /// Paths of their own: streams and metrics.
    Stream,
}

impl Kind {
    /// The kind's name in docs, logs and audit events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Iam => "iam",
            Self::Service(name) => name,
            Self::FlowService => "flow-service",
            Self::FlowImport => "flow-import",
            Self::FlowExport => "flow-export",
            Self::Stream => "stream",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Where it is asked for.
    pub kind: Kind,
    /// Its name; for flow kinds, the service.
    pub name: &'static str,
    /// Who may call it.
    pub access: Access,
    /// Whose resource it touches.
    pub level: Level,
    /// What iam is told beside.
    pub parameters: Parameters,
    /// Whether it is ours, beyond what TrustGraph 2.11 has.
    pub additive: bool,
}

impl Operation {
    /// The resource to authorise against. `flow` counts only where the level is [`Level::Flow`].
    #[must_use]
    pub fn resource(&self, workspace: &WorkspaceId, flow: Option<&FlowId>) -> Value {
        match (self.level, flow) {
            (Level::System, _) => json!({}),
            (Level::Flow, Some(flow)) => json!({"workspace": workspace, "flow": flow}),
            (Level::Workspace | Level::Flow, _) => json!({"workspace": workspace}),
        }
    }

    /// The parameters to authorise with. The workspace is that of `user`, else of `workspace_record`, else of the body,
    /// else the caller's own.
    #[must_use]
    pub fn parameters(&self, body: &Map<String, Value>, default_workspace: &WorkspaceId) -> Value {
        if self.parameters == Parameters::None {
            return json!({});
        }
        let nested = |member: &str, name: &str| body.get(member).and_then(|value| text(value.get(name)));
        let workspace = nested("user", "workspace")
            .or_else(|| nested("workspace_record", "id"))
            .or_else(|| text(body.get("workspace")))
            .unwrap_or(default_workspace.as_str());
        json!({"workspace": workspace})
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// How much one member of a call holds at most, over everything in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ceiling {
    /// The member's name in the API dialect.
    pub member: &'static str,
    /// Bytes of its texts and names.
    pub bytes_max: usize,
    /// Elements of its lists and members of its objects.
    pub elements_max: usize,
}

/// Texts that one call of `embeddings` takes.
pub const EMBEDDINGS_TEXTS_MAX: usize = 2_048;
/// Bytes of all texts of such a call.
pub const EMBEDDINGS_BYTES_MAX: usize = 4 * MIB;
/// Bytes of a question or a query that is searched with.
pub const QUERY_BYTES_MAX: usize = 64 * KIB;
/// Bytes of a prompt for a model, and of a system prompt.
pub const PROMPT_BYTES_MAX: usize = 16 * MIB;
/// Questions of one call of `reranker`.
pub const RERANKER_QUERIES_MAX: usize = 64;
/// Documents of such a call.
pub const RERANKER_DOCUMENTS_MAX: usize = 10_000;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// What a member of a call of a flow's service holds where nothing else is said.
const MEMBER: Ceiling = Ceiling { member: "*", bytes_max: 4 * MIB, elements_max: 65_536 };

const fn ceiling(member: &'static str, bytes_max: usize, elements_max: usize) -> Ceiling {
    Ceiling { member, bytes_max, elements_max }
}

const fn query(member: &'static str) -> Ceiling {
    ceiling(member, QUERY_BYTES_MAX, 16)
}

/// What differs from [`MEMBER`], by the service of a flow.
const CEILINGS: &[(&str, &[Ceiling])] = &[
    ("embeddings", &[ceiling("texts", EMBEDDINGS_BYTES_MAX, EMBEDDINGS_TEXTS_MAX)]),
    ("document-rag", &[query("query")]),
    ("graph-rag", &[query("query")]),
    ("keyword-index", &[query("query")]),
    ("sparql", &[query("query")]),
    ("rows", &[query("query")]),
    ("nlp-query", &[query("question")]),
    ("structured-query", &[query("question")]),
    ("triples", &[query("s"), query("p"), query("o"), query("g")]),
    ("agent", &[ceiling("question", MIB, 16)]),
    ("text-completion", &[ceiling("system", PROMPT_BYTES_MAX, 16), ceiling("prompt", PROMPT_BYTES_MAX, 16)]),
    (
        "prompt",
        &[ceiling("id", KIB, 16), ceiling("terms", 12 * MIB, 65_536), ceiling("variables", 12 * MIB, 65_536)],
    ),
    (
        "reranker",
        &[
            ceiling("queries", MIB, 4 * RERANKER_QUERIES_MAX),
            ceiling("documents", 16 * MIB, 4 * RERANKER_DOCUMENTS_MAX),
        ],
    ),
    ("image-to-text", &[ceiling("image", 32 * MIB, 16)]),
];

impl Operation {
    /// Whether members of its calls have ceilings. What brings documents in, and a pass-through of which nothing is known,
    /// is bounded as a body alone.
    #[must_use]
    pub fn has_ceilings(&self) -> bool {
        self.kind == Kind::FlowService && !["text-load", "document-load", THRU].contains(&self.name)
    }

    /// How much a member of its calls holds at most; `None` where only the body is bounded.
    #[must_use]
    pub fn ceiling(&self, member: &str) -> Option<Ceiling> {
        if !self.has_ceilings() {
            return None;
        }
        let own = CEILINGS.iter().find(|(name, _)| *name == self.name).map_or(&[][..], |(_, own)| own);
        let is_it = |ceiling: &&Ceiling| {
            ceiling.member.len() == member.len()
                && ceiling.member.bytes().zip(member.bytes()).all(|(a, b)| a == b || (a == b'-' && b == b'_'))
        };
        Some(own.iter().find(is_it).copied().unwrap_or(MEMBER))
    }

    /// Looks at every member of a body before anything is made of it.
    ///
    /// # Errors
    /// Which member holds too much, and how much it may.
    pub fn check(&self, body: &Map<String, Value>) -> Result<(), String> {
        for (member, value) in body {
            let Some(ceiling) = self.ceiling(member) else { return Ok(()) };
            let (bytes, elements) = held(value);
            let name = || member.chars().take(64).collect::<String>();
            if bytes > ceiling.bytes_max {
                return Err(format!(
                    "'{}' has {bytes} bytes, and {} takes at most {}; send less at once",
                    name(),
                    self.name,
                    ceiling.bytes_max
                ));
            }
            if elements > ceiling.elements_max {
                return Err(format!(
                    "'{}' has {elements} elements, and {} takes at most {}; send fewer at once",
                    name(),
                    self.name,
                    ceiling.elements_max
                ));
            }
        }
        Ok(())
    }
}

/// Bytes of texts and names, and elements, of a value. How deep it may nest, its reader bounds.
fn held(value: &Value) -> (usize, usize) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => (0, 0),
        Value::String(text) => (text.len(), 0),
        Value::Array(items) => items
            .iter()
            .map(held)
            .fold((0, items.len()), |(bytes, elements), more| (bytes + more.0, elements + more.1)),
        Value::Object(members) => {
            members.iter().fold((0, members.len()), |(bytes, elements), (name, value)| {
                let more = held(value);
                (bytes + name.len() + more.0, elements + more.1)
            })
        }
    }
}

/// The operation of a kind, if it exists. A pass-through service (`thru/…`) is found under [`Kind::FlowService`].
#[must_use]
pub fn find(kind: Kind, name: &str) -> Option<&'static Operation> {
    let name = match name.split_once('/') {
        Some(("thru", service)) if kind == Kind::FlowService && !service.is_empty() => THRU,
        _ if name == THRU => return None,
        _ => name,
    };
    table().iter().find(|operation| operation.kind == kind && operation.name == name)
}

/// The operation of a service reached through `POST /api/v1/{kind}`, `iam` among them.
#[must_use]
pub fn of_service(kind: &str, name: &str) -> Option<&'static Operation> {
    table().iter().find(|operation| {
        operation.name == name
            && matches!(operation.kind, Kind::Iam | Kind::Service(_))
            && operation.kind.as_str() == kind
    })
}

/// The row that stands for every pass-through service.
pub const THRU: &str = "thru/*";

/// The whole table, in the order of the docs.
#[must_use]
pub fn table() -> &'static [Operation] {
    static TABLE: std::sync::LazyLock<Vec<Operation>> =
        std::sync::LazyLock::new(|| GROUPS.iter().flat_map(rows).collect());
    &TABLE
}

/// The table as a Markdown table.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "| kind | operation | capability | level | parameters | ours |\n|---|---|---|---|---|---|\n",
    );
    for row in table() {
        let access = match row.access {
            Access::Public => "*public*".to_owned(),
            Access::Authenticated => "*authenticated*".to_owned(),
            Access::Capability(name) => format!("`{name}`"),
        };
        let parameters = if row.parameters == Parameters::Workspace { "workspace" } else { "" };
        let ours = if row.additive { "yes" } else { "" };
        let level = format!("{:?}", row.level).to_lowercase();
        let kind = row.kind.as_str();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| `{kind}` | `{}` | {access} | {level} | {parameters} | {ours} |", row.name);
    }
    out
}

/// The ceilings of members as a Markdown table.
#[must_use]
pub fn ceilings_markdown() -> String {
    let mut out = String::from("| service | member | bytes | elements |\n|---|---|---|---|\n");
    let all = ("any other", &[MEMBER][..]);
    for (service, ceilings) in CEILINGS.iter().chain([&all]) {
        for Ceiling { member, bytes_max, elements_max } in *ceilings {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "| `{service}` | `{member}` | {bytes_max} | {elements_max} |");
        }
    }
    out
}

/// Operations that share everything but their name.
struct Group {
    kind: Kind,
    access: Access,
    parameters: Parameters,
    additive: bool,
    names: &'static [&'static str],
}

fn rows(group: &Group) -> impl Iterator<Item = Operation> + use<> {
    let Group { kind, access, parameters, additive, names } = *group;
    let level = match kind {
        Kind::Iam => Level::System,
        Kind::Service(_) | Kind::Stream => Level::Workspace,
        Kind::FlowService | Kind::FlowImport | Kind::FlowExport => Level::Flow,
    };
    names.iter().map(move |name| {
        // Metrics are the whole system's.
        let level = if matches!((kind, *name), (Kind::Stream, "metrics")) { Level::System } else { level };
        Operation { kind, name, access, level, parameters, additive }
    })
}

const fn group(kind: Kind, access: Access, names: &'static [&'static str]) -> Group {
    Group { kind, access, parameters: Parameters::None, additive: false, names }
}

impl Group {
    const fn with_workspace(mut self) -> Self {
        self.parameters = Parameters::Workspace;
        self
    }

    const fn additive(mut self) -> Self {
        self.additive = true;
        self
    }
}

const fn needs(capability: &'static str) -> Access {
    Access::Capability(capability)
}

const CONFIG: Kind = Kind::Service("config");
const FLOW: Kind = Kind::Service("flow");
const LIBRARIAN: Kind = Kind::Service("librarian");
const KNOWLEDGE: Kind = Kind::Service("knowledge");
const COLLECTIONS: Kind = Kind::Service("collection-management");
const DEAD_LETTERS: Kind = Kind::Service("dead-letters");

#[rustfmt::skip]
const GROUPS: &[Group] = &[
    group(Kind::Iam, Access::Public, &["login", "bootstrap", "bootstrap-status"]),
    group(Kind::Iam, Access::Authenticated, &["whoami", "list-my-workspaces", "change-password"]),
    group(Kind::Iam, needs("users:admin"), &["create-user", "disable-user", "enable-user", "delete-user", "reset-password"]).with_workspace(),
    group(Kind::Iam, needs("users:read"), &["list-users", "get-user"]).with_workspace(),
    group(Kind::Iam, needs("users:write"), &["update-user"]).with_workspace(),
    group(Kind::Iam, needs("keys:admin"), &["create-api-key", "list-api-keys", "revoke-api-key"]).with_workspace(),
    group(Kind::Iam, needs("workspaces:admin"), &["create-workspace", "list-workspaces", "get-workspace", "update-workspace", "disable-workspace"]),
    group(Kind::Iam, needs("mint-token"), &["mint-token"]).with_workspace(),
    group(Kind::Iam, needs("iam:admin"), &[
        "rotate-signing-key", "create-group", "get-group", "list-groups", "update-group", "delete-group",
        "add-group-member", "remove-group-member", "list-group-members", "add-group-grant", "remove-group-grant",
        "list-group-grants", "add-user-grant", "remove-user-grant", "list-user-grants", "resolve-effective-permissions",
    ]),

    group(CONFIG, needs("config:read"), &["get", "list", "getvalues", "getvalues-all-ws", "config"]),
    group(CONFIG, needs("config:read"), &["getvalues-many"]).additive(),
    group(CONFIG, needs("config:write"), &["put", "delete"]),

    group(FLOW, needs("flows:read"), &["list-blueprints", "get-blueprint", "list-flows", "get-flow"]),
    group(FLOW, needs("flows:read"), &["status", "doctor"]).additive(),
    group(FLOW, needs("flows:write"), &["put-blueprint", "delete-blueprint", "start-flow", "stop-flow"]),

    group(LIBRARIAN, needs("documents:read"), &[
        "get-document-metadata", "get-document-content", "stream-document", "list-documents", "list-processing",
        "get-upload-status", "list-uploads",
    ]),
    group(LIBRARIAN, needs("documents:read"), &["get-document", "list-children", "get-progress"]).additive(),
    group(LIBRARIAN, needs("documents:write"), &[
        "add-document", "remove-document", "update-document", "add-processing", "remove-processing", "begin-upload",
        "upload-chunk", "complete-upload", "abort-upload",
    ]),
    group(LIBRARIAN, needs("documents:write"), &["add-child-document"]).additive(),

    group(KNOWLEDGE, needs("knowledge:read"), &["get-kg-core", "list-kg-cores", "get-de-core", "list-de-cores"]),
    group(KNOWLEDGE, needs("knowledge:write"), &[
        "put-kg-core", "delete-kg-core", "load-kg-core", "unload-kg-core", "put-de-core", "delete-de-core", "load-de-core",
    ]),

    group(COLLECTIONS, needs("collections:read"), &["list-collections"]),
    group(COLLECTIONS, needs("collections:write"), &["update-collection", "delete-collection"]),

    // Letters hold what flows carried, so reading them takes what reading flows takes, and no less than admins for the rest.
    group(DEAD_LETTERS, needs("flows:read"), &["list", "export"]).additive(),
    group(DEAD_LETTERS, needs("flows:write"), &["replay", "remove"]).additive(),

    group(Kind::FlowService, needs("agent"), &["agent"]),
    group(Kind::FlowService, needs("llm"), &["text-completion", "prompt"]),
    group(Kind::FlowService, needs("mcp"), &["mcp-tool"]),
    group(Kind::FlowService, needs("graph-rag:read"), &["graph-rag"]),
    group(Kind::FlowService, needs("document-rag:read"), &["document-rag"]),
    group(Kind::FlowService, needs("embeddings"), &["embeddings"]),
    group(Kind::FlowService, needs("reranker"), &["reranker"]),
    group(Kind::FlowService, needs("image-to-text"), &["image-to-text"]),
    group(Kind::FlowService, needs("cloze"), &["cloze"]),
    group(Kind::FlowService, needs("decision-scoring"), &["decision-scoring"]),
    group(Kind::FlowService, needs("field-extraction"), &["field-extraction"]),
    group(Kind::FlowService, needs("graph-embeddings:read"), &["graph-embeddings"]),
    group(Kind::FlowService, needs("document-embeddings:read"), &["document-embeddings"]),
    group(Kind::FlowService, needs("document-embeddings:read"), &["keyword-index"]).additive(),
    group(Kind::FlowService, needs("row-embeddings:read"), &["row-embeddings"]),
    group(Kind::FlowService, needs("triples:read"), &["triples"]),
    group(Kind::FlowService, needs("sparql:read"), &["sparql"]),
    group(Kind::FlowService, needs("rows:read"), &["rows"]),
    group(Kind::FlowService, needs("nlp-query:read"), &["nlp-query"]),
    group(Kind::FlowService, needs("structured-query:read"), &["structured-query", "structured-diag"]),
    group(Kind::FlowService, needs("documents:write"), &["text-load", "document-load"]).additive(),
    // Whatever is behind a pass-through may write, so it takes a writer.
    group(Kind::FlowService, needs("documents:write"), &[THRU]),

    group(Kind::FlowImport, needs("triples:write"), &["triples"]),
    group(Kind::FlowImport, needs("graph-embeddings:write"), &["graph-embeddings"]),
    group(Kind::FlowImport, needs("document-embeddings:write"), &["document-embeddings"]),
    group(Kind::FlowImport, needs("entity-contexts:write"), &["entity-contexts"]),
    group(Kind::FlowImport, needs("rows:write"), &["rows"]),
    group(Kind::FlowExport, needs("triples:read"), &["triples"]),
    group(Kind::FlowExport, needs("graph-embeddings:read"), &["graph-embeddings"]),
    group(Kind::FlowExport, needs("document-embeddings:read"), &["document-embeddings"]),
    group(Kind::FlowExport, needs("entity-contexts:read"), &["entity-contexts"]),

    group(Kind::Stream, needs("documents:read"), &["document-stream"]),
    group(Kind::Stream, needs("users:admin"), &["import-core", "export-core"]),
    group(Kind::Stream, needs("metrics:read"), &["metrics"]),
    group(Kind::Stream, Access::Public, &["i18n"]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_operation_stands_in_the_table_once() {
        let mut seen = HashSet::new();
        for row in table() {
            assert!(seen.insert((row.kind, row.name)), "{row:?}");
        }
    }

    #[test]
    fn members_of_calls_have_ceilings() {
        let check = |name: &str, body: Value, expected: Option<&str>| {
            let operation = find(Kind::FlowService, name).unwrap();
            let said = operation.check(body.as_object().unwrap()).err();
            assert_eq!(said.is_some(), expected.is_some(), "{name}: {said:?}");
            assert!(said.unwrap_or_default().contains(expected.unwrap_or_default()), "{name}");
        };
        check("embeddings", json!({"texts": vec!["a"; EMBEDDINGS_TEXTS_MAX]}), None);
        check(
            "embeddings",
            json!({"texts": vec!["a"; EMBEDDINGS_TEXTS_MAX + 1]}),
            Some("'texts' has 2049 elements"),
        );
        check("embeddings", json!({"texts": ["a".repeat(EMBEDDINGS_BYTES_MAX + 1)]}), Some("send less"));
        check("document-rag", json!({"query": "a".repeat(QUERY_BYTES_MAX), "doc-limit": 5}), None);
        check(
            "document-rag",
            json!({"query": "a".repeat(QUERY_BYTES_MAX + 1)}),
            Some("document-rag takes at most"),
        );
        check("document-rag", json!({"unknown": vec![0; 65_537]}), Some("fewer"));
        check("graph-embeddings", json!({"vectors": [vec![0; 65_536]]}), Some("fewer"));
        check("text-load", json!({"text": "a".repeat(20 * MIB)}), None);
        check("thru/custom", json!({"x": vec![0; 100_000]}), None);
    }

    #[test]
    fn operations_take_the_capability_of_the_registry() {
        let check = |kind, name: &str, expected: Option<(Access, Level)>| {
            assert_eq!(find(kind, name).map(|row| (row.access, row.level)), expected, "{kind:?} {name}");
        };
        let cap = |name, level| Some((Access::Capability(name), level));
        check(Kind::Iam, "login", Some((Access::Public, Level::System)));
        check(Kind::Iam, "whoami", Some((Access::Authenticated, Level::System)));
        check(CONFIG, "put", cap("config:write", Level::Workspace));
        check(FLOW, "stop-flow", cap("flows:write", Level::Workspace));
        check(FLOW, "list", None);
        check(LIBRARIAN, "get-document", cap("documents:read", Level::Workspace));
        check(Kind::FlowService, "thru/custom", cap("documents:write", Level::Flow));
        check(Kind::FlowService, "thru/", None);
        check(Kind::FlowService, "thru", None);
        check(Kind::FlowImport, "thru/custom", None);
        check(Kind::FlowExport, "rows", None);
        check(Kind::Stream, "metrics", cap("metrics:read", Level::System));
        for inner in [
            "resolve-api-key",
            "authorise",
            "authorise-many",
            "authenticate-anonymous",
            "get-signing-key-public",
        ] {
            check(Kind::Iam, inner, None);
        }
        for inner in ["apply", "getkeys-all-ws"] {
            check(CONFIG, inner, None);
        }
        assert_eq!(of_service("dead-letters", "replay").unwrap().access, needs("flows:write"));
        assert_eq!(of_service("iam", "mint-token").unwrap().parameters, Parameters::Workspace);
        assert!(of_service("flow-service", "agent").is_none());
    }

    #[test]
    fn the_workspace_parameter_is_looked_for_in_order() {
        let own = WorkspaceId::existing("own");
        let row = find(Kind::Iam, "create-user").unwrap();
        let check = |body: Value, expected: &str| {
            assert_eq!(
                row.parameters(body.as_object().unwrap(), &own),
                json!({"workspace": expected}),
                "{body}"
            );
        };
        check(json!({"user": {"workspace": "a"}, "workspace": "c"}), "a");
        check(json!({"workspace_record": {"id": "b"}, "workspace": "c", "user": {"workspace": ""}}), "b");
        check(json!({"workspace": "c", "user": null}), "c");
        check(json!({"workspace": 7}), "own");
        let system = find(Kind::Iam, "list-workspaces").unwrap();
        assert_eq!(system.parameters(&Map::new(), &own), json!({}));
        assert_eq!(system.resource(&own, None), json!({}));
        let flow = FlowId::existing("f1");
        let asked = find(Kind::FlowService, "agent").unwrap();
        assert_eq!(asked.resource(&own, Some(&flow)), json!({"workspace": "own", "flow": "f1"}));
    }

    #[test]
    fn the_docs_show_every_row() {
        let text = markdown();
        assert_eq!(text.lines().count(), table().len() + 2);
        assert!(text.contains("| `iam` | `login` | *public* | system |  |  |"));
        assert!(text.contains("| `librarian` | `get-progress` | `documents:read` | workspace |  | yes |"));
    }
}
