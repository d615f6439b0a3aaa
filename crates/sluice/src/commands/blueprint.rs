//! `sluice blueprint`: which processors make a flow.

use anyhow::Context;
use serde_json::{Value, json};
use sluice_schema::standard;

use super::config::rows;
use super::text_argument;
use crate::api::Api;
use crate::cli::{Blueprint, Output};
use crate::exit::{Code, Told};
use crate::output::show;

pub(super) async fn run(api: &Api, output: Output, command: Blueprint) -> anyhow::Result<()> {
    match command {
        Blueprint::Ls => {
            let answer = api.list("flow", json!({"operation": "list-blueprints"})).await?;
            show(output, &answer["blueprint-names"], |names| {
                rows("blueprint", names, "No blueprints. Try: sluice blueprint put document-rag --standard")
            })
        }
        Blueprint::Show { name } => {
            let text = get(api, &name).await?;
            let definition: Value =
                serde_json::from_str(&text).context("the stored blueprint is not JSON")?;
            show(output, &definition, |value| serde_json::to_string_pretty(value).unwrap_or_default())
        }
        Blueprint::Put { name, file, standard: true } => {
            debug_assert!(file.is_none(), "clap refuses a file beside --standard");
            put_standard(api, &name).await?;
            show(output, &json!({"blueprint": name}), |_| format!("Put the standard blueprint '{name}'."))
        }
        Blueprint::Put { name, file, standard: false } => {
            let argument = match file {
                Some(file) if file.as_os_str() == "-" => "-".to_owned(),
                Some(file) => format!("@{}", file.display()),
                None => return Err(Told::usage("name a file, or say --standard").into()),
            };
            put(api, &name, &text_argument(&argument)?).await?;
            show(output, &json!({"blueprint": name}), |_| format!("Put blueprint '{name}'."))
        }
        Blueprint::Rm { name } => {
            // The service deletes what is not there without a word; what cannot be read is deleted all the same.
            if let Err(error) = get(api, &name).await
                && error.downcast_ref::<Told>().is_some_and(|told| told.code == Code::NotFound)
            {
                return Err(error);
            }
            api.call("flow", json!({"operation": "delete-blueprint", "blueprint-name": name})).await?;
            show(output, &json!({"deleted": name}), |_| {
                format!("Deleted blueprint '{name}'; running flows keep theirs.")
            })
        }
    }
}

/// The text of a blueprint.
async fn get(api: &Api, name: &str) -> anyhow::Result<String> {
    let answer = api.call("flow", json!({"operation": "get-blueprint", "blueprint-name": name})).await?;
    let text = answer["blueprint-definition"].as_str().filter(|text| !text.is_empty());
    let not_there =
        || Told::new(Code::NotFound, format!("there is no blueprint '{name}'")).next("sluice blueprint ls");
    Ok(text.ok_or_else(not_there)?.to_owned())
}

pub(super) async fn put(api: &Api, name: &str, definition: &str) -> anyhow::Result<()> {
    let body =
        json!({"operation": "put-blueprint", "blueprint-name": name, "blueprint-definition": definition});
    api.call("flow", body).await.map(drop)
}

/// Puts a standard blueprint and the parameter types that it may name.
pub(super) async fn put_standard(api: &Api, name: &str) -> anyhow::Result<()> {
    let Some(definition) = standard::blueprint(name) else {
        let names = standard::BLUEPRINTS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        return Err(Told::new(Code::NotFound, format!("there is no standard blueprint '{name}'"))
            .next(format!("one of: {names}"))
            .into());
    };
    let types: Vec<Value> = standard::config()
        .iter()
        .filter(|value| value.config_type == "parameter-type")
        .map(|value| json!({"type": value.config_type, "key": value.key, "value": value.value}))
        .collect();
    api.call("config", json!({"operation": "put", "values": types})).await?;
    put(api, name, definition).await
}
