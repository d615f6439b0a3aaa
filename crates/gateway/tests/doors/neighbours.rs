//! The gateway beside its real neighbours: the config service and the identity service.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_bus::embedded::Embedded;
use sluice_gateway::{Gateway, Parts};
use sluice_iam::Mode;
use sluice_sdk::{ConfigClient, ConfigWatch, Process};
use tokio_util::sync::CancellationToken;

use crate::world::{Socket, options};

struct House {
    folder: tempfile::TempDir,
    _process: Process,
    _store: sluice_store::Embedded,
    gateway: Gateway,
    http: reqwest::Client,
}

impl House {
    async fn new(no_auth: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path().join("store")).unwrap();
        let broker = Arc::new(Embedded::in_memory());
        let process = Process::new(broker.clone(), CancellationToken::new());
        let tables = store.tables();
        let config =
            sluice_config::Parts { process: process.clone(), admin: broker.clone(), tables: tables.clone() };
        sluice_config::start(config).await.unwrap();
        let mode =
            if no_auth { Mode::NoAuth } else { Mode::AdminKey { file: folder.path().join("admin.key") } };
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let iam = sluice_iam::Parts { process: process.clone(), admin: broker, tables, config, mode };
        sluice_iam::start(iam).await.unwrap();
        let watch = ConfigWatch::start(&process, Duration::from_secs(30));
        let parts = Parts { process: process.clone(), watch, options: options(), no_room: None };
        let gateway = sluice_gateway::start(parts).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { folder, _process: process, _store: store, gateway, http }
    }

    fn key(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("admin.key")).unwrap().trim().to_owned()
    }

    async fn ask(&self, token: &str, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("http://{}/api/v1/{path}", self.gateway.local_addr);
        let answer = self.http.post(url).bearer_auth(token).body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

#[tokio::test]
async fn config_is_written_and_read_with_the_admin_key_only() {
    let house = House::new(false).await;
    let key = house.key();
    let put = json!({"operation": "put", "values": [{"type": "tool", "key": "t", "value": "1"}]});
    assert_eq!(house.ask("tg_wrong", "config", &put).await, (401, json!({"error": "auth failure"})));
    let (status, said) = house.ask(&key, "config", &put).await;
    assert_eq!((status, said.get("error")), (200, None), "{said}");
    let get = json!({"operation": "get", "keys": [{"type": "tool", "key": "t"}]});
    let (status, said) = house.ask(&key, "config", &get).await;
    assert_eq!((status, &said["values"][0]["value"]), (200, &json!("1")), "{said}");

    let url = format!("?token={key}");
    let mut socket = Socket::open(house.gateway.local_addr, &url).await;
    let frame = socket.ask(&json!({"id": "r", "service": "config", "request": get})).await;
    assert_eq!((&frame["response"]["values"][0]["value"], &frame["complete"]), (&json!("1"), &json!(true)));
    let auth = socket.ask(&json!({"type": "auth", "token": key})).await;
    assert_eq!(auth, json!({"type": "auth-ok", "default_workspace": "default"}));
}

#[tokio::test]
async fn a_workspace_made_through_the_gateway_can_be_used_at_once() {
    let house = House::new(false).await;
    let key = house.key();
    let make = json!({"operation": "create-workspace", "workspace_record": {"id": "acme", "name": "Acme"}});
    let (status, said) = house.ask(&key, "iam", &make).await;
    assert_eq!((status, said.get("error")), (200, None), "{said}");
    let put = json!({
        "operation": "put", "workspace": "acme", "values": [{"type": "tool", "key": "t", "value": "acme's"}],
    });
    let (status, said) = house.ask(&key, "config", &put).await;
    assert_eq!((status, said.get("error")), (200, None), "{said}");
    // What one workspace holds, the queue of another does not tell.
    let all = json!({"operation": "getvalues-all-ws", "type": "tool"});
    let (status, said) = house.ask(&key, "config", &all).await;
    assert_eq!(status, 200);
    assert!(!said.to_string().contains("acme's"), "{said}");
}

#[tokio::test]
async fn a_house_without_authentication_takes_everybody() {
    let house = House::new(true).await;
    let list = json!({"operation": "list", "type": "tool"});
    for token in ["", "tg_x", "a.b.c", "anything"] {
        assert_eq!(house.ask(token, "config", &list).await.0, 200, "{token}");
    }
    let mut socket = Socket::open(house.gateway.local_addr, "").await;
    let frame = socket.ask(&json!({"id": "r", "service": "config", "request": list})).await;
    assert!(frame.get("error").is_none(), "{frame}");
}

#[tokio::test]
async fn a_key_is_proved_only_for_the_address_that_the_connection_arrived_at() {
    use sluice_iam::proof::{Challenge, Side};
    let house = House::new(false).await;
    let (key, own) = (house.key(), house.gateway.local_addr.to_string());
    let nonce = "0123456789abcdef0123456789abcdef";
    let prove = async |challenge: Challenge<'_>| {
        let proof = challenge.prove(Side::Holder, &key);
        // What a caller says of the address does not count.
        let asked = json!({"nonce": nonce, "address": challenge.address, "proof": proof});
        house.ask("", "auth/prove-key", &asked).await
    };
    let challenge = Challenge { nonce, address: &own };
    let (status, said) = prove(challenge).await;
    let proof = said["proof"].as_str().unwrap_or_default();
    assert!(status == 200 && challenge.is_proved(Side::Service, &key, proof), "{said}");
    assert_eq!(said["open"], json!(false));
    for elsewhere in ["127.0.0.1:1", "192.0.2.1:8888", ""] {
        let refused = prove(Challenge { nonce, address: elsewhere }).await;
        assert_eq!(refused, (401, json!({"error": "auth failure"})), "{elsewhere}");
    }
    // Nor can it be asked as an operation, where the address would be the caller's to give.
    let parameters = json!({"nonce": nonce, "address": own, "proof": challenge.prove(Side::Holder, &key)});
    let asked = json!({"operation": "prove-key", "parameters_json": parameters.to_string()});
    assert_eq!(house.ask(&key, "iam", &asked).await, (400, json!({"error": "unknown operation"})));

    let open = House::new(true).await;
    let (status, said) = open.ask("", "auth/prove-key", &json!({})).await;
    assert_eq!((status, &said["open"], &said["proof"]), (200, &json!(true), &json!("")));
}
