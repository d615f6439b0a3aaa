//! Answers: who is this, and may they? One function per mode over one table of operations.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use sluice_schema::listing::Page;
use sluice_schema::message::{Error, IamRequest, IamResponse, UserRecord, WorkspaceInput, WorkspaceRecord};
use sluice_schema::wire;

use crate::key::AdminKey;
use crate::proof::Challenge;
use crate::workspaces::{Ask, DEFAULT, Workspaces};

const ADMIN: &str = "admin";
const ANONYMOUS: &str = "anonymous";
/// How long a decision may be remembered, in seconds.
const DECISION_TTL_S: i64 = 60;
/// The same where nothing is ever decided; gateways cap it.
const OPEN_DECISION_TTL_S: i64 = 3_600;
/// Any known caller: asked by gateways for what takes no capability.
const AUTHENTICATED: &str = "__authenticated__";

/// How people are known.
#[derive(Debug)]
pub(crate) enum Access {
    Key(AdminKey),
    Open,
}

/// Answers questions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Regime {
    access: Arc<Access>,
    workspaces: Workspaces,
    /// The broker's largest message, in bytes.
    message_bytes_max: usize,
}

type Answer = Result<IamResponse, Error>;

fn invalid(message: impl Into<String>) -> Error {
    Error::new("invalid-argument", message)
}

fn auth_failed(message: &str) -> Error {
    Error::new("auth-failed", message)
}

impl Regime {
    pub(crate) fn new(access: Access, workspaces: Workspaces, message_bytes_max: usize) -> Self {
        Self { access: Arc::new(access), workspaces, message_bytes_max }
    }

    pub(crate) async fn answer(&self, question: IamRequest) -> Answer {
        if is_against_default(&question) {
            return Err(default_stays());
        }
        match &*self.access {
            Access::Key(key) => self.by_key(key, question).await,
            Access::Open => self.open(question).await,
        }
    }

    /// One administrator, known by a key.
    async fn by_key(&self, key: &AdminKey, question: IamRequest) -> Answer {
        match question.operation.as_str() {
            "authenticate-anonymous" => Err(auth_failed("anonymous access not permitted")),
            "resolve-api-key" if question.api_key.is_empty() => Err(auth_failed("no api key")),
            "resolve-api-key" if !key.is(&question.api_key) => Err(auth_failed("unknown api key")),
            "resolve-api-key" => Ok(resolved(ADMIN)),
            "prove-key" => prove(key, &question),
            "authorise" => authorise(&question),
            "authorise-many" => authorise_many(&question),
            "whoami" => {
                let missing = "actor required (gateway should populate this)";
                check_actor(&question.actor, missing)?;
                Ok(IamResponse { user: Some(administrator(key)), ..Default::default() })
            }
            "list-my-workspaces" => {
                check_actor(&question.actor, "actor required")?;
                self.list(&question).await
            }
            // Seeded before anybody could ask.
            "bootstrap" => Err(auth_failed("auth failure")),
            "bootstrap-status" | "get-signing-key-public" => Ok(IamResponse::default()),
            _ => match self.workspace(&question).await {
                Some(answer) => answer,
                None => Err(invalid(format!(
                    "unknown or not-yet-implemented operation: '{}'",
                    question.operation
                ))),
            },
        }
    }

    /// Everybody may do everything.
    async fn open(&self, question: IamRequest) -> Answer {
        match question.operation.as_str() {
            // There is no key to prove; who asks is told that none is needed.
            "authenticate-anonymous" | "resolve-api-key" | "prove-key" => Ok(resolved(ANONYMOUS)),
            "authorise" => Ok(IamResponse {
                decision_allow: true,
                decision_ttl_seconds: OPEN_DECISION_TTL_S,
                ..Default::default()
            }),
            "authorise-many" => {
                let checks = checks(&question.authorise_checks)?;
                let allowed = |_| json!({"allow": true, "ttl": OPEN_DECISION_TTL_S});
                let decisions = Value::from_iter(checks.iter().map(allowed));
                Ok(IamResponse { decisions_json: decisions.to_string(), ..Default::default() })
            }
            "whoami" | "create-user" | "get-user" | "update-user" | "disable-user" | "enable-user" => {
                Ok(IamResponse { user: Some(anonymous()), ..Default::default() })
            }
            "list-users" => Ok(IamResponse { users: vec![anonymous()], ..Default::default() }),
            "list-my-workspaces" => self.list(&question).await,
            "bootstrap"
            | "bootstrap-status"
            | "get-signing-key-public"
            | "login"
            | "delete-user"
            | "change-password"
            | "reset-password"
            | "rotate-signing-key"
            | "create-api-key"
            | "list-api-keys"
            | "revoke-api-key" => Ok(IamResponse::default()),
            // As the reference answers it: done, and nothing to tell.
            "create-workspace" => {
                self.workspaces.ask(Ask::Create(named(&question).into_owned())).await?;
                Ok(IamResponse::default())
            }
            _ => match self.workspace(&question).await {
                Some(answer) => answer,
                None => Err(invalid(format!("unknown operation: '{}'", question.operation))),
            },
        }
    }

    /// Operations on workspaces; `None` when it is none of them.
    async fn workspace(&self, question: &IamRequest) -> Option<Answer> {
        let input = named(question).into_owned();
        let ask = match question.operation.as_str() {
            "create-workspace" => Ask::Create(input),
            "get-workspace" => Ask::Get(input.id),
            "update-workspace" => Ask::Update(input),
            "disable-workspace" => Ask::Disable(input.id),
            "list-workspaces" => return Some(self.list(question).await),
            _ => return None,
        };
        let one = |records: Vec<WorkspaceRecord>| IamResponse {
            workspace: records.into_iter().next(),
            ..Default::default()
        };
        Some(self.workspaces.ask(ask).await.map(one))
    }

    async fn list(&self, question: &IamRequest) -> Answer {
        let records = self.workspaces.ask(Ask::List).await?;
        let ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
        let items = ids.iter().map(String::as_str).zip(records);
        let page = Page::new(question.bytes_max, self.message_bytes_max);
        let page = page.fill(&question.cursor, items, |record| wire::encode(record).len())?;
        Ok(IamResponse { workspaces: page.items, cursor: page.cursor, ..Default::default() })
    }
}

/// The workspace that a question names; an empty one where it names none.
fn named(question: &IamRequest) -> std::borrow::Cow<'_, WorkspaceInput> {
    match &question.workspace_record {
        Some(input) => std::borrow::Cow::Borrowed(input),
        None => std::borrow::Cow::Owned(WorkspaceInput::default()),
    }
}

/// Whether a question would take away the workspace in which everybody works who names none.
fn is_against_default(question: &IamRequest) -> bool {
    let named = named(question);
    let disables = match question.operation.as_str() {
        "disable-workspace" => true,
        "update-workspace" | "create-workspace" => !named.enabled,
        _ => false,
    };
    disables && named.id == DEFAULT
}

fn default_stays() -> Error {
    let message = "'default' stays enabled: it is where callers work that name no workspace";
    Error::new("operation-not-permitted", message)
}

/// Shows the holder of the key that it is known here. Anybody else learns nothing.
fn prove(key: &AdminKey, question: &IamRequest) -> Answer {
    let asked: Map<String, Value> = serde_json::from_str(&question.parameters_json).unwrap_or_default();
    let text = |name: &str| asked.get(name).and_then(Value::as_str).unwrap_or_default();
    let challenge = Challenge { nonce: text("nonce"), address: text("address") };
    match key.prove(&challenge, text("proof")) {
        Some(proof) => Ok(IamResponse { proof, ..Default::default() }),
        None => Err(auth_failed("the key was not proved")),
    }
}

fn resolved(user: &str) -> IamResponse {
    IamResponse {
        resolved_user_id: user.to_owned(),
        resolved_default_workspace: DEFAULT.to_owned(),
        resolved_roles: vec![ADMIN.to_owned()],
        ..Default::default()
    }
}

fn check_actor(actor: &str, missing: &str) -> Result<(), Error> {
    match actor {
        "" => Err(invalid(missing)),
        ADMIN => Ok(()),
        _ => Err(Error::new("not-found", "user not found")),
    }
}

/// The administrator holds every capability in every workspace; nobody else is known.
fn allows(user: &str, capability: &str) -> bool {
    user == ADMIN && (capability == AUTHENTICATED || !(capability.is_empty() || capability.starts_with("__")))
}

fn authorise(question: &IamRequest) -> Answer {
    if question.capability.is_empty() {
        return Err(invalid("capability required"));
    }
    check_user(question)?;
    for text in [&question.resource_json, &question.parameters_json] {
        if !text.is_empty() {
            serde_json::from_str::<Map<String, Value>>(text)
                .map_err(|e| invalid(format!("bad json: {e}")))?;
        }
    }
    Ok(IamResponse {
        decision_allow: allows(&question.user_id, &question.capability),
        decision_ttl_seconds: DECISION_TTL_S,
        ..Default::default()
    })
}

fn check_user(question: &IamRequest) -> Result<(), Error> {
    if question.user_id.is_empty() { Err(invalid("user_id (handle) required")) } else { Ok(()) }
}

fn authorise_many(question: &IamRequest) -> Answer {
    check_user(question)?;
    if question.authorise_checks.is_empty() {
        return Err(invalid("authorise_checks required"));
    }
    let decide = |check: &Value| {
        let capability = check.get("capability").and_then(Value::as_str).unwrap_or_default();
        json!({"allow": allows(&question.user_id, capability), "ttl": DECISION_TTL_S})
    };
    let decisions = Value::from_iter(checks(&question.authorise_checks)?.iter().map(decide));
    Ok(IamResponse { decisions_json: decisions.to_string(), ..Default::default() })
}

fn checks(text: &str) -> Result<Vec<Value>, Error> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match serde_json::from_str(text).map_err(|e| invalid(format!("bad json: {e}")))? {
        Value::Array(checks) => Ok(checks),
        _ => Err(invalid("authorise_checks must be a JSON list")),
    }
}

fn administrator(key: &AdminKey) -> UserRecord {
    UserRecord { created: key.created().to_owned(), ..user(ADMIN, "Administrator") }
}

fn anonymous() -> UserRecord {
    user(ANONYMOUS, "Anonymous User")
}

fn user(id: &str, name: &str) -> UserRecord {
    UserRecord {
        id: id.to_owned(),
        default_workspace: DEFAULT.to_owned(),
        username: id.to_owned(),
        name: name.to_owned(),
        roles: vec![ADMIN.to_owned()],
        ..Default::default()
    }
}
