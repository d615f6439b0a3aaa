//! `sluice dead`: messages that could not be processed.

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{Dead, Output};
use crate::output::{show, table, text};

pub(super) async fn run(api: &Api, output: Output, command: Dead) -> anyhow::Result<()> {
    match command {
        Dead::Ls { flow, limit } => {
            let body = json!({"operation": "list", "flow": flow, "limit": limit});
            let answer = api.call("dead-letters", body).await?;
            show(output, &answer["letters"], |letters| {
                let row = |letter: &Value| {
                    ["id", "flow", "topic", "attempts", "reason"].map(|name| text(letter, name)).to_vec()
                };
                let rows = letters.as_array().into_iter().flatten().map(row).collect();
                table(&["id", "flow", "topic", "attempts", "reason"], rows, "No dead letters.")
            })
        }
        Dead::Export { flow } => {
            let answer = api.call("dead-letters", json!({"operation": "export", "flow": flow})).await?;
            for letter in answer["letters"].as_array().into_iter().flatten() {
                println!("{letter}");
            }
            Ok(())
        }
        Dead::Replay { ids, flow } => {
            let body = json!({"operation": "replay", "ids": ids, "flow": flow});
            let answer = api.call("dead-letters", body).await?;
            show(output, &answer, |answer| format!("Sent again: {}.", answer["count"]))
        }
        Dead::Rm { ids } => {
            let answer = api.call("dead-letters", json!({"operation": "remove", "ids": ids})).await?;
            show(output, &answer, |answer| format!("Deleted: {}.", answer["count"]))
        }
    }
}
