//! `sluice flow`: blueprints made real.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::watch;
use crate::api::Api;
use crate::cli::{Flow, Output};
use crate::exit::Code;
use crate::output::{show, table, text};

pub(super) async fn run(api: &Api, output: Output, command: Flow) -> anyhow::Result<Code> {
    match command {
        Flow::Watch { id, until_idle } => return watch::run(api, output, &id, until_idle).await,
        Flow::Start { id, blueprint, params, description } => {
            let parameters: Map<String, Value> =
                params.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
            let answer = start(api, &id, &blueprint, &description, parameters).await?;
            show(output, &told(&id, &answer), |answer| {
                let mut lines = vec![format!("Flow '{id}' is started: everything sent into it is kept.")];
                lines.extend(warnings(answer));
                lines.join("\n")
            })?;
        }
        Flow::Stop { id, drain } => {
            let mut body = json!({"operation": "stop-flow", "flow-id": id});
            if let Some(drain) = drain {
                body["drain"] = json!(drain);
            }
            let answer = api.call("flow", body).await?;
            show(output, &told(&id, &answer), |answer| {
                let mut lines = vec![format!("Flow '{id}' is stopped: nothing of it is left.")];
                lines.extend(verdicts(answer));
                lines.join("\n")
            })?;
        }
        Flow::Ls => ls(api, output).await?,
        Flow::Describe { id } => {
            let record = api.call("flow", json!({"operation": "get-flow", "flow-id": id})).await?;
            let status = status(api, &id).await?;
            let flow: Value = serde_json::from_str(&text(&record, "flow")).unwrap_or_default();
            let whole = json!({"id": id, "flow": flow, "status": status});
            show(output, &whole, |whole| described(&id, &whole["flow"], &whole["status"]))?;
        }
    }
    Ok(Code::Ok)
}

pub(super) async fn start(
    api: &Api,
    id: &str,
    blueprint: &str,
    description: &str,
    parameters: Map<String, Value>,
) -> anyhow::Result<Value> {
    let body = json!({
        "operation": "start-flow", "flow-id": id, "blueprint-name": blueprint,
        "description": description, "parameters": parameters,
    });
    api.call("flow", body).await
}

/// What an answer to start or stop tells, without the members that other operations fill.
fn told(id: &str, answer: &Value) -> Value {
    let status: Value = serde_json::from_str(&text(answer, "status")).unwrap_or_default();
    json!({"flow": id, "status": status, "warnings": answer["warnings"].as_array().cloned().unwrap_or_default()})
}

/// What became of queues that were not empty.
fn verdicts(answer: &Value) -> Vec<String> {
    let queues = answer["status"]["queues"].as_array().into_iter().flatten();
    let told = queues.filter(|queue| queue["verdict"] != "drained");
    told.map(|queue| {
        format!("  {}: {} message(s) {}", text(queue, "queue"), queue["messages"], text(queue, "verdict"))
    })
    .collect()
}

/// The additive `status` of a flow: phase, run, queues.
pub(super) async fn status(api: &Api, id: &str) -> anyhow::Result<Value> {
    let answer = api.call("flow", json!({"operation": "status", "flow-id": id})).await?;
    Ok(match &answer["status"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        other => other.clone(),
    })
}

fn warnings(answer: &Value) -> impl Iterator<Item = String> {
    let texts = answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(|warning| format!("warning: {warning}"))
}

async fn ls(api: &Api, output: Output) -> anyhow::Result<()> {
    let answer = api.list("flow", json!({"operation": "list-flows"})).await?;
    let ids = answer["flow-ids"].as_array().into_iter().flatten();
    // A flow service that is not ours tells nothing but ids.
    let flows = answer["flows"].as_array().cloned();
    let flows = flows.unwrap_or_else(|| ids.map(|id| json!({"id": id})).collect());
    show(output, &Value::Array(flows), |flows| {
        let row = |flow: &Value| {
            ["id", "phase", "run", "blueprint", "description"].map(|name| text(flow, name)).to_vec()
        };
        let rows = flows.as_array().into_iter().flatten().map(row).collect();
        table(
            &["flow", "phase", "run", "blueprint", "description"],
            rows,
            "No flows. Try: sluice flow start default document-rag",
        )
    })
}

fn described(id: &str, flow: &Value, status: &Value) -> String {
    let mut lines = vec![
        format!("flow        {id}"),
        format!("phase       {}", text(status, "phase")),
        format!("run         {}", text(status, "run")),
        format!("blueprint   {}", text(flow, "blueprint-name")),
        format!("description {}", text(flow, "description")),
    ];
    let last_error = text(status, "last-error");
    if !last_error.is_empty() {
        lines.push(format!("last error  {last_error}"));
    }
    if let Some(pause) = status["next-try-in-ms"].as_u64() {
        lines.push(format!("next try    in {:.1} s", Duration::from_millis(pause).as_secs_f64()));
    }
    for holder in status["held-by"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lines.push(format!("held by     {holder}"));
    }
    lines.extend(warnings(status));
    let queue = |queue: &Value| {
        ["topic", "subscription", "ready", "unsettled", "consumers"].map(|name| text(queue, name)).to_vec()
    };
    let queues: Vec<Vec<String>> = status["queues"].as_array().into_iter().flatten().map(queue).collect();
    lines.push(String::new());
    lines.push(table(&["topic", "subscription", "ready", "in work", "readers"], queues, "No queues."));
    let parameters = flow["parameters"].as_object().into_iter().flatten();
    let parameters: Vec<Vec<String>> = parameters
        .map(|(name, value)| {
            vec![name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)]
        })
        .collect();
    lines.push(String::new());
    lines.push(table(&["parameter", "value"], parameters, "No parameters."));
    lines.join("\n")
}
