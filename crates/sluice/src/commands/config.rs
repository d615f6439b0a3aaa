//! `sluice config`: values of the workspace.

use serde_json::{Value, json};

use super::text_argument;
use crate::api::Api;
use crate::cli::{Config, Output};
use crate::exit::{Code, Told};
use crate::output::{show, table};

/// How often a value is looked for again that somebody else writes at the same time.
const REMOVE_TRIES_MAX: u32 = 8;

pub(super) async fn run(api: &Api, output: Output, command: Config) -> anyhow::Result<()> {
    match command {
        Config::Get { r#type, key } => get(api, output, &r#type, &key).await,
        Config::Ls { r#type } => {
            let answer = api.list("config", json!({"operation": "list", "type": r#type})).await?;
            let keys = answer["directory"].clone();
            show(output, &keys, |keys| rows("key", keys, &format!("No values of type '{}'.", r#type)))
        }
        Config::Put { r#type, key, value } => {
            let text = text_argument(&value)?;
            if let Err(error) = serde_json::from_str::<Value>(&text) {
                return Err(Told::usage(format!("the value is not JSON text: {error}"))
                    .next("quote a string twice, for example '\"Be brief.\"'")
                    .into());
            }
            let values = json!([{"type": r#type, "key": key, "value": text}]);
            let answer = api.call("config", json!({"operation": "put", "values": values})).await?;
            show(output, &json!({"version": answer["version"]}), |v| {
                format!("Written {}/{key} at version {}.", r#type, v["version"])
            })
        }
        Config::Rm { r#type, key } => {
            let answer = remove(api, &r#type, &key).await?;
            show(output, &json!({"version": answer["version"]}), |_| format!("Deleted {}/{key}.", r#type))
        }
        Config::Show => {
            let answer = api.list("config", json!({"operation": "config"})).await?;
            show(output, &answer, |answer| {
                let types = answer["config"].as_object().into_iter().flatten();
                let lines = types.flat_map(|(kind, keys)| {
                    let keys = keys.as_object().into_iter().flatten();
                    keys.map(move |(key, value)| vec![kind.clone(), key.clone(), short(value)])
                });
                table(&["type", "key", "value"], lines.collect(), "No values.")
            })
        }
    }
}

/// Deletes a value that is there. That it was there and that this deleted it is told by its version, which the delete expects.
async fn remove(api: &Api, kind: &str, key: &str) -> anyhow::Result<Value> {
    let keys = json!([{"type": kind, "key": key}]);
    let mut tries = 0;
    loop {
        let mut body = json!({"operation": "delete", "keys": keys});
        // What cannot be read can be deleted all the same.
        if let Ok(answer) = api.call("config", json!({"operation": "get", "keys": keys})).await {
            let found = &answer["values"][0];
            if !found["value"].is_string() {
                return Err(not_there(kind, key).into());
            }
            // A service that is not ours tells no versions.
            if let Some(version) = found["version"].as_i64().filter(|version| *version > 0) {
                body["if"] = json!([{"type": kind, "key": key, "version": version}]);
            }
        }
        tries += 1;
        match api.call("config", body).await {
            // Somebody wrote or deleted it meanwhile.
            Err(error) if tries < REMOVE_TRIES_MAX && is_conflict(&error) => {}
            done => return done,
        }
    }
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Told>().is_some_and(|told| told.code == Code::Differs)
}

fn not_there(kind: &str, key: &str) -> Told {
    Told::new(Code::NotFound, format!("there is no value {kind}/{key}"))
        .next(format!("sluice config ls {kind}"))
}

async fn get(api: &Api, output: Output, kind: &str, key: &str) -> anyhow::Result<()> {
    let keys = json!([{"type": kind, "key": key}]);
    let answer = api.call("config", json!({"operation": "get", "keys": keys})).await?;
    let Some(text) = answer["values"][0]["value"].as_str() else {
        return Err(not_there(kind, key).into());
    };
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    show(output, &value, |value| match value {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    })
}

fn short(value: &Value) -> String {
    const WIDTH_MAX: usize = 80;
    let text = value.as_str().unwrap_or_default().replace('\n', " ");
    if text.chars().count() <= WIDTH_MAX {
        return text;
    }
    text.chars().take(WIDTH_MAX - 1).chain(['…']).collect()
}

/// One column.
pub(super) fn rows(title: &str, list: &Value, empty: &str) -> String {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    table(&[title], texts.map(|text| vec![text.to_owned()]).collect(), empty)
}
