//! The identity service beside a real config service, asked over the bus.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sluice_bus::{BrokerAdmin, Client, Counting, Embedded, TopicSpec};
use sluice_iam::{Error, Mode};
use sluice_schema::message::{ConfigKey, IamRequest, IamResponse, WorkspaceInput};
use sluice_schema::{exchange, system, wire};
use sluice_sdk::{ConfigClient, Process, config};
use sluice_store::Tables;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

/// A data folder with the store in it and a place for the key file.
struct Folder {
    tables: Arc<dyn Tables>,
    _store: sluice_store::Embedded,
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path().join("store")).unwrap();
        Self { tables: store.tables(), _store: store, folder }
    }

    fn key_file(&self) -> PathBuf {
        self.folder.path().join("admin.key")
    }

    fn key(&self) -> String {
        std::fs::read_to_string(self.key_file()).unwrap().trim().to_owned()
    }
}

struct House {
    process: Process,
    config: ConfigClient,
    client: Client<exchange::Iam>,
    broker: Embedded,
    counted: Counting<Embedded>,
}

impl House {
    async fn start(folder: &Folder, mode: Mode) -> Self {
        Self::try_start(folder, mode).await.map_err(|error| error.to_string()).unwrap()
    }

    async fn try_start(folder: &Folder, mode: Mode) -> Result<Self, Error> {
        let broker = Embedded::in_memory();
        let counted = Counting::new(broker.clone());
        let process = Process::new(Arc::new(counted.clone()), CancellationToken::new());
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let tables = folder.tables.clone();
        let parts =
            sluice_config::Parts { process: process.clone(), admin: admin.clone(), tables: tables.clone() };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let parts = sluice_iam::Parts { process: process.clone(), admin, tables, config, mode };
        if let Err(error) = sluice_iam::start(parts).await {
            process.shutdown(DEADLINE).await;
            return Err(error);
        }
        let client = Client::new(&process.replies, system::iam_request(), &system::iam_response()).await?;
        let config = ConfigClient::new(&process.replies).await?;
        Ok(Self { process, config, client, broker, counted })
    }

    async fn ask(&self, question: IamRequest) -> IamResponse {
        self.client.call(&question, DEADLINE).await.unwrap()
    }

    async fn refused(&self, question: IamRequest) -> (String, String) {
        let error = self.ask(question).await.error.expect("an error");
        (error.r#type, error.message)
    }

    async fn registered(&self) -> Vec<String> {
        let found = self.config.getvalues("__workspaces__", "workspace").await.unwrap();
        found.into_iter().map(|value| value.key).collect()
    }

    async fn stop(self) {
        assert_eq!(self.process.shutdown(DEADLINE).await, Vec::<String>::new());
    }
}

fn by_key(file: impl AsRef<Path>) -> Mode {
    Mode::AdminKey { file: file.as_ref().to_owned() }
}

fn question(operation: &str) -> IamRequest {
    IamRequest { operation: operation.into(), ..Default::default() }
}

fn about(operation: &str, id: &str, name: &str, enabled: bool) -> IamRequest {
    let record = WorkspaceInput { id: id.into(), name: name.into(), enabled };
    IamRequest { workspace_record: Some(record), ..question(operation) }
}

fn with_key(key: &str) -> IamRequest {
    IamRequest { api_key: key.into(), ..question("resolve-api-key") }
}

fn may(user: &str, capability: &str, resource: &str) -> IamRequest {
    IamRequest {
        user_id: user.into(),
        capability: capability.into(),
        resource_json: resource.into(),
        ..question("authorise")
    }
}

fn error(kind: &str, message: &str) -> (String, String) {
    (kind.into(), message.into())
}

#[tokio::test]
async fn the_first_start_makes_a_key_that_opens_and_registers_the_first_workspace() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    let key = folder.key();
    assert!(key.starts_with("tg_") && key.len() == 35, "{key}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(folder.key_file()).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let answer = house.ask(with_key(&key)).await;
    assert_eq!(answer.error, None);
    assert_eq!(
        (answer.resolved_user_id.as_str(), answer.resolved_default_workspace.as_str()),
        ("admin", "default")
    );
    assert_eq!(answer.resolved_roles, ["admin"]);
    assert_eq!(house.registered().await, ["default"]);
    // The key is random: a letter that is not its last.
    let wrong = format!("{}{}", &key[..34], if key.ends_with('x') { 'y' } else { 'x' });
    for (presented, message) in
        [("", "no api key"), (wrong.as_str(), "unknown api key"), ("tg_", "unknown api key")]
    {
        assert_eq!(house.refused(with_key(presented)).await, error("auth-failed", message));
    }
    house.stop().await;

    let again = House::start(&folder, by_key(folder.key_file())).await;
    assert_eq!(folder.key(), key, "a second start keeps the key");
    assert_eq!(again.ask(with_key(&key)).await.error, None);
    again.stop().await;
}

#[tokio::test]
async fn removing_the_file_rotates_the_key_and_another_key_is_refused() {
    let folder = Folder::new();
    House::start(&folder, by_key(folder.key_file())).await.stop().await;
    let first = folder.key();
    std::fs::remove_file(folder.key_file()).unwrap();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    let second = folder.key();
    assert_ne!(first, second);
    assert_eq!(house.refused(with_key(&first)).await, error("auth-failed", "unknown api key"));
    assert_eq!(house.ask(with_key(&second)).await.error, None);
    house.stop().await;

    std::fs::write(folder.key_file(), &first).unwrap();
    let refused = House::try_start(&folder, by_key(folder.key_file())).await.err().unwrap();
    assert!(matches!(refused, Error::OtherKey { .. }), "{refused}");
    assert_eq!(folder.key(), first, "the file is left as it is");
    for rubbish in [&b"hunter2"[..], b"", b"\xff\xfe"] {
        std::fs::write(folder.key_file(), rubbish).unwrap();
        let refused = House::try_start(&folder, by_key(folder.key_file())).await.err().unwrap();
        assert!(matches!(refused, Error::NotAKey { .. }), "{refused}");
    }
    let nowhere = folder.folder.path().join("no/such/folder/admin.key");
    let refused = House::try_start(&folder, by_key(nowhere)).await.err().unwrap();
    assert!(matches!(refused, Error::KeyFile { .. }), "{refused}");
}

#[tokio::test]
async fn a_key_that_was_put_into_the_file_is_taken_in() {
    let folder = Folder::new();
    std::fs::write(folder.key_file(), "tg_chosen_by_somebody\n").unwrap();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    assert_eq!(house.ask(with_key("tg_chosen_by_somebody")).await.error, None);
    house.stop().await;
}

#[tokio::test]
async fn the_administrator_may_everything_and_nobody_else_anything() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    for (user, capability, resource, allowed) in [
        ("admin", "flows:write", r#"{"workspace":"nope"}"#, true),
        ("admin", "graph-rag:read", r#"{"workspace":"","flow":"f"}"#, true),
        ("admin", "metrics:read", "", true),
        ("admin", "__authenticated__", "{}", true),
        ("admin", "__other__", "{}", false),
        ("anonymous", "config:read", r#"{"workspace":"default"}"#, false),
        ("Admin", "config:read", "{}", false),
        ("anonymous", "__authenticated__", "{}", false),
    ] {
        let answer = house.ask(may(user, capability, resource)).await;
        assert_eq!((answer.error, answer.decision_allow), (None, allowed), "{user} {capability}");
        assert_eq!(answer.decision_ttl_seconds, 60);
    }
    let many = |checks: &str| IamRequest {
        user_id: "admin".into(),
        authorise_checks: checks.into(),
        ..question("authorise-many")
    };
    let answer = house.ask(many(r#"[{"capability":"llm","resource":{}},7,{"resource":{}}]"#)).await;
    let decisions: Value = serde_json::from_str(&answer.decisions_json).unwrap();
    let allowed: Vec<_> =
        decisions.as_array().unwrap().iter().map(|d| d["allow"].as_bool().unwrap()).collect();
    assert_eq!(allowed, [true, false, false]);

    let invalid = |message| error("invalid-argument", message);
    assert_eq!(house.refused(may("admin", "", "{}")).await, invalid("capability required"));
    assert_eq!(house.refused(may("", "llm", "{}")).await, invalid("user_id (handle) required"));
    assert_eq!(house.refused(many("")).await, invalid("authorise_checks required"));
    assert_eq!(house.refused(many("{}")).await, invalid("authorise_checks must be a JSON list"));
    let (kind, message) = house.refused(may("admin", "llm", "[")).await;
    assert!(kind == "invalid-argument" && message.starts_with("bad json: "), "{kind} {message}");
    assert_eq!(
        house.refused(question("create-group")).await,
        invalid("unknown or not-yet-implemented operation: 'create-group'")
    );
    let anonymous = house.refused(question("authenticate-anonymous")).await;
    assert_eq!(anonymous, error("auth-failed", "anonymous access not permitted"));
    assert_eq!(house.refused(question("bootstrap")).await, error("auth-failed", "auth failure"));
    let status = house.ask(question("bootstrap-status")).await;
    assert!(status.error.is_none() && !status.bootstrap_available);
    assert_eq!(house.ask(question("get-signing-key-public")).await, IamResponse::default());
    let whoami = |actor: &str| IamRequest { actor: actor.into(), ..question("whoami") };
    let user = house.ask(whoami("admin")).await.user.unwrap();
    assert_eq!(
        (user.id.as_str(), user.roles, user.default_workspace.as_str()),
        ("admin", vec!["admin".into()], "default")
    );
    assert!(user.created.ends_with("+00:00"), "{}", user.created);
    assert_eq!(house.refused(whoami("")).await, invalid("actor required (gateway should populate this)"));
    assert_eq!(house.refused(whoami("bob")).await, error("not-found", "user not found"));
    house.stop().await;
}

#[tokio::test]
async fn workspaces_come_and_go_with_their_registration() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    let made = house.ask(about("create-workspace", "acme", "", true)).await.workspace.unwrap();
    assert_eq!((made.name.as_str(), made.enabled), ("acme", true));
    assert_eq!(house.registered().await, ["acme", "default"]);
    let again = house.ask(about("create-workspace", "acme", "Other", false)).await.workspace.unwrap();
    assert_eq!(again, made, "a second creation changes nothing");

    let off = house.ask(about("disable-workspace", "acme", "", true)).await.workspace.unwrap();
    assert!(!off.enabled);
    assert_eq!(house.registered().await, ["default"]);
    let still = house.ask(about("create-workspace", "acme", "Other", false)).await.workspace.unwrap();
    assert_eq!(still, off, "one that is to be made disabled stays so");
    let back = house.ask(about("create-workspace", "acme", "Other", true)).await.workspace.unwrap();
    assert_eq!(back, made, "one that was disabled is there again, under its name");
    assert_eq!(house.registered().await, ["acme", "default"]);
    house.ask(about("disable-workspace", "acme", "", true)).await;
    let on = house.ask(about("update-workspace", "acme", "Acme Inc", true)).await.workspace.unwrap();
    assert_eq!((on.name.as_str(), on.enabled), ("Acme Inc", true));
    assert_eq!(house.registered().await, ["acme", "default"]);
    assert_eq!(house.ask(about("get-workspace", "acme", "", true)).await.workspace.unwrap(), on);
    let mine =
        house.ask(IamRequest { actor: "admin".into(), ..question("list-my-workspaces") }).await.workspaces;
    assert_eq!(mine, house.ask(question("list-workspaces")).await.workspaces);
    assert_eq!(mine.iter().map(|w| w.id.as_str()).collect::<Vec<_>>(), ["acme", "default"]);

    for (asked, kind, message) in [
        (
            question("create-workspace"),
            "invalid-argument",
            "workspace_record.id required for create-workspace",
        ),
        (
            about("create-workspace", "_x", "", true),
            "invalid-argument",
            "workspace ids beginning with '_' are reserved",
        ),
        (question("get-workspace"), "invalid-argument", "workspace_record.id required"),
        (about("disable-workspace", "nope", "", true), "not-found", "workspace not found"),
    ] {
        assert_eq!(house.refused(asked).await, error(kind, message));
    }
    assert_eq!(house.refused(about("create-workspace", "A/b", "", true)).await.0, "invalid-argument");
    house.stop().await;
}

#[tokio::test]
async fn the_default_workspace_stays_enabled_with_a_key_and_without() {
    let folder = Folder::new();
    for mode in [by_key(folder.key_file()), Mode::NoAuth] {
        let house = House::start(&folder, mode.clone()).await;
        for against in [
            about("disable-workspace", "default", "", true),
            about("update-workspace", "default", "", false),
            about("update-workspace", "default", "Renamed", false),
            about("create-workspace", "default", "", false),
        ] {
            let operation = against.operation.clone();
            assert_eq!(house.refused(against).await.0, "operation-not-permitted", "{operation} {mode:?}");
        }
        assert_eq!(house.registered().await, ["default"], "{mode:?}");
        assert!(
            house.ask(about("update-workspace", "default", "Home", true)).await.error.is_none(),
            "{mode:?}"
        );
        house.stop().await;
    }
}

#[tokio::test]
async fn the_key_is_proved_to_its_holder_and_to_nobody_else() {
    use sluice_iam::proof::{Challenge, Side};
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    let key = folder.key();
    let nonce = "0123456789abcdef0123456789abcdef";
    let challenge = Challenge { nonce, address: "127.0.0.1:8888" };
    let asked = |challenge: Challenge<'_>, proof: &str| {
        let (nonce, address) = (challenge.nonce, challenge.address);
        let parameters = serde_json::json!({"nonce": nonce, "address": address, "proof": proof});
        IamRequest { parameters_json: parameters.to_string(), ..question("prove-key") }
    };
    let proved = house.ask(asked(challenge, &challenge.prove(Side::Holder, &key))).await;
    assert!(proved.error.is_none() && challenge.is_proved(Side::Service, &key, &proved.proof), "{proved:?}");
    assert_eq!(proved.resolved_user_id, "", "nobody is signed in by it");

    let (other, short) =
        (Challenge { address: "127.0.0.1:8889", ..challenge }, Challenge { nonce: "1", ..challenge });
    for wrong in [
        asked(challenge, ""),
        asked(challenge, &challenge.prove(Side::Holder, "tg_0123456789abcdef")),
        // What the service itself said is no proof of a holder.
        asked(challenge, &proved.proof),
        // Passed on from a connection to somebody else.
        asked(other, &challenge.prove(Side::Holder, &key)),
        asked(short, &short.prove(Side::Holder, &key)),
        question("prove-key"),
    ] {
        let answer = house.ask(wrong).await;
        assert!(answer.error.is_some_and(|error| error.r#type == "auth-failed") && answer.proof.is_empty());
    }
    house.stop().await;

    let house = House::start(&folder, Mode::NoAuth).await;
    let answer = house.ask(asked(challenge, "")).await;
    assert_eq!((answer.proof.as_str(), answer.resolved_user_id.as_str()), ("", "anonymous"));
    house.stop().await;
}

#[tokio::test]
async fn a_start_makes_registry_and_records_equal() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    house.ask(about("create-workspace", "lost", "", true)).await;
    house.ask(about("create-workspace", "off", "", true)).await;
    house.ask(about("disable-workspace", "off", "", true)).await;
    // As after crashes between the record and the registry, and as somebody else may have registered.
    let entry = |id: &str| config::value("", "workspace", id, "{\"enabled\": true}");
    house.config.put("__workspaces__", vec![entry("off"), entry("Foreign_1")]).await.unwrap();
    let gone = ConfigKey { r#type: "workspace".into(), key: "lost".into() };
    house.config.delete("__workspaces__", vec![gone]).await.unwrap();
    house.stop().await;

    let house = House::start(&folder, by_key(folder.key_file())).await;
    assert_eq!(house.registered().await, ["Foreign_1", "default", "lost"]);
    let foreign = house.ask(about("get-workspace", "Foreign_1", "", true)).await.workspace.unwrap();
    assert!(foreign.enabled);
    house.stop().await;
}

#[tokio::test]
async fn without_auth_the_recorded_conversations_go_the_same_way() {
    let folder = Folder::new();
    let house = House::start(&folder, Mode::NoAuth).await;
    assert!(!folder.key_file().exists(), "no key is made where none is needed");
    let recorded = concat!(
        include_str!("../../schema/tests/captures/anonymous.jsonl"),
        include_str!("../../schema/tests/captures/workspace-create.jsonl")
    );
    let mut answers = std::collections::HashMap::new();
    let mut compared = 0;
    for line in recorded.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let id = line["properties"]["headers"]["id"].as_str().unwrap_or_default().to_owned();
        match line["exchange"].as_str().unwrap_or_default() {
            "tg.request.iam" => {
                let asked: IamRequest = serde_json::from_value(line["body"].clone()).unwrap();
                answers.insert(id, house.ask(asked).await);
            }
            "tg.response.iam" => {
                let ours: Value = serde_json::from_slice(&wire::encode(&answers[&id])).unwrap();
                assert_eq!(ours, line["body"]);
                compared += 1;
            }
            _ => {}
        }
    }
    assert!(compared >= 6, "{compared}");
    assert_eq!(house.registered().await, ["acme", "default"]);
    assert_eq!(house.ask(question("list-workspaces")).await.workspaces.len(), 2);
    assert_eq!(house.ask(with_key("tg_whatever")).await.resolved_user_id, "anonymous");
    assert_eq!(house.refused(about("create-workspace", "_x", "", true)).await.0, "invalid-argument");
    assert_eq!(
        house.refused(question("mint-token")).await,
        error("invalid-argument", "unknown operation: 'mint-token'")
    );
    house.stop().await;
}

#[tokio::test]
async fn an_identity_queue_that_somebody_removes_is_made_again_and_served() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    house.broker.remove(&TopicSpec::bare(system::iam_request())).await.unwrap();
    let answered = async {
        while house.client.call(&with_key(&folder.key()), DEADLINE).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE / 2, answered).await.expect("it is made and served again");
    house.stop().await;
}

#[tokio::test]
async fn workspaces_are_listed_in_pages_and_their_names_have_a_ceiling() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    let name = "n".repeat(1_024);
    for n in 0..100 {
        let made = house.ask(about("create-workspace", &format!("w{n:02}"), &name, true)).await;
        assert_eq!(made.error, None);
    }
    for operation in ["create-workspace", "update-workspace"] {
        let (kind, said) = house.refused(about(operation, "w00", &format!("{name}n"), true)).await;
        assert!(kind == "too-large" && said.contains("the limit is 1024"), "{operation}: {kind} {said}");
    }
    let (mut ids, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = house.ask(IamRequest { bytes_max: 1, cursor, ..question("list-workspaces") }).await;
        ids.extend(page.workspaces.into_iter().map(|record| record.id));
        pages += 1;
        cursor = page.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    let mut expected = vec!["default".to_owned()];
    expected.extend((0..100).map(|n| format!("w{n:02}")));
    assert_eq!((ids, pages), (expected, 2));
    assert_eq!(house.ask(question("list-workspaces")).await.workspaces.len(), 101, "it fits one message");
    house.stop().await;
}

/// Each is compared with all others; only what was written since the last time is read for that.
#[tokio::test]
async fn what_a_workspace_costs_does_not_grow_with_those_that_are_there() {
    let folder = Folder::new();
    let house = House::start(&folder, by_key(folder.key_file())).await;
    let cost = async |id: &str| {
        let before = house.counted.total().delivered_bytes;
        for operation in ["create-workspace", "disable-workspace", "create-workspace"] {
            assert_eq!(house.ask(about(operation, id, "", true)).await.error, None, "{operation}");
        }
        house.counted.total().delivered_bytes - before
    };
    cost("first").await;
    let among_few = cost("second").await;
    let many: Vec<_> = (0..1_000)
        .map(|n| config::value("__workspaces__", "workspace", &format!("many{n}"), "{\"enabled\": true}"))
        .collect();
    house.config.put("__workspaces__", many).await.unwrap();
    // Those are taken in once.
    cost("third").await;
    let among_many = cost("fourth").await;
    assert!(among_many < among_few + 32 * 1024, "{among_few} bytes among few, {among_many} among many");
    assert_eq!(house.registered().await.len(), 1_005);
    house.stop().await;
}
