//! `sluice demo`: the main job, once, through the same doors that everybody uses.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Map, json};

use super::files::{self, Source};
use super::{ask, blueprint, doc, flow, up};
use crate::api::Api;
use crate::cli::{Demo, Target};
use crate::services::Selection;
use crate::system::{Settings, System};

const FLOW: &str = "demo";
const BLUEPRINT: &str = "document-rag";
const COLLECTION: &str = "default";

/// The documents that `demo` loads when it is given none.
const SAMPLES: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/samples.rs"));
/// What it then asks.
const QUESTION: &str = "How long should I let coffee beans rest after they were roasted?";

pub(super) async fn run(target: &Target, command: Demo) -> anyhow::Result<()> {
    let sources = sources(&command)?;
    let question = command.question.clone().unwrap_or_else(|| QUESTION.to_owned());
    let own = std::fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix("sluice-demo-").permissions(own).tempdir();
    let folder = folder.context("no temporary folder")?;
    let settings = Settings {
        selection: Selection::everything(),
        data: Some(folder.path().to_owned()),
        gateway: sluice_gateway::Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        init_empty: false,
        accept_loss: Vec::new(),
        broker: None,
        no_auth: false,
        model: up::model(command.model.clone())?,
        embedder: sluice_processors::EmbedderConfig::default(),
        decoding: sluice_processors::DecodingConfig::default(),
        objects: None,
    };
    let began = Instant::now();
    let system = System::start(settings).await?;
    let address = system.address.context("the gateway is not here")?;
    println!(
        "1. Everything serves in this process at http://{address} ({} ms).",
        began.elapsed().as_millis()
    );
    println!("   Data and the admin key are in {}.", folder.path().display());

    let url = format!("http://{address}");
    let key =
        std::fs::read_to_string(folder.path().join("admin.key")).context("the admin key cannot be read")?;
    let timeout = Duration::from_secs(target.timeout);
    let api = Api::own(address, &target.workspace, key.trim().to_owned(), timeout)?;
    let outcome = job(&system, &api, &sources, &question, command.keep).await;

    if outcome.is_ok() && command.keep {
        let interrupted = up::interrupted()?;
        println!("\nServing until interrupted. In another terminal:");
        println!("   export SLUICE_DATA={} TRUSTGRAPH_URL={url}", folder.path().display());
        println!("   sluice ask \"…\" --flow {FLOW}");
        interrupted.await;
    }
    system.stop().await?;
    outcome?;
    if !command.keep {
        println!("\nNext:");
        println!("   sluice up                                      serve, and keep what is loaded");
        println!("   sluice flow start default {BLUEPRINT}          make a flow");
        println!("   sluice doc add FILE…                           load documents of your own");
        println!("   sluice ask \"…\"                                 ask about them");
    }
    Ok(())
}

fn sources(command: &Demo) -> anyhow::Result<Vec<Source>> {
    if command.documents.is_empty() {
        let sample = |(name, text): &(&str, &str)| {
            let kind = files::kind_of(name.as_ref())?;
            Ok(Source { name: (*name).to_owned(), kind, content: text.as_bytes().to_vec() })
        };
        return SAMPLES.iter().map(sample).collect();
    }
    files::read_all(&files::files_in(&command.documents)?)
}

async fn job(
    system: &System,
    api: &Api,
    sources: &[Source],
    question: &str,
    keep: bool,
) -> anyhow::Result<()> {
    blueprint::put_standard(api, BLUEPRINT).await?;
    let began = Instant::now();
    flow::start(api, FLOW, BLUEPRINT, "the demo's flow", Map::new()).await?;
    let status = flow::status(api, FLOW).await?;
    let queues = status["queues"].as_array().map_or(0, Vec::len);
    let topics = system.topics_of(FLOW).await?.len();
    println!(
        "2. Blueprint '{BLUEPRINT}' is put and flow '{FLOW}' started: {topics} topics, {queues} queues wired ({} ms).",
        began.elapsed().as_millis()
    );

    let began = Instant::now();
    let mut ids = Vec::new();
    for source in sources {
        let id = doc::add(api, source).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    for id in &ids {
        doc::process(api, id, FLOW, COLLECTION).await?;
    }
    let progress = doc::wait(api, &ids, FLOW).await?;
    let sum = |name: &str| {
        progress
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| one[name].as_i64().unwrap_or_default())
            .sum::<i64>()
    };
    let bytes: usize = sources.iter().map(|source| source.content.len()).sum();
    println!(
        "3. {} documents ({} KB) went through: {} chunks announced, {} stored, {} failed ({} ms).",
        sources.len(),
        bytes / 1_000,
        sum("announced"),
        sum("stored"),
        sum("failed"),
        began.elapsed().as_millis()
    );
    if sum("failed") > 0 || sum("stored") != sum("announced") {
        bail!("not every chunk was stored; see `sluice dead ls`");
    }

    let began = Instant::now();
    let asked = json!({"query": question, "collection": COLLECTION, "doc-limit": 5});
    let answer = api.call_flow(FLOW, ask::SERVICE, asked).await?;
    println!("4. Asked: {question} ({} ms)\n", began.elapsed().as_millis());
    for line in ask::readable(&answer).lines() {
        println!("   {line}");
    }
    if answer["sources"].as_array().is_none_or(Vec::is_empty) {
        bail!("the answer came without sources");
    }
    if keep {
        return Ok(());
    }
    stop_and_look(system, api).await
}

/// Stops the flow and shows that nothing of it is left.
async fn stop_and_look(system: &System, api: &Api) -> anyhow::Result<()> {
    let began = Instant::now();
    api.call("flow", json!({"operation": "stop-flow", "flow-id": FLOW})).await?;
    let took = began.elapsed().as_millis();
    let flows = api.list("flow", json!({"operation": "list-flows"})).await?;
    let config = api.list("config", json!({"operation": "config"})).await?;
    let entries = config["config"].as_object().into_iter().flatten();
    let left: Vec<&String> = entries
        .filter(|(kind, keys)| {
            kind.starts_with("processor:") && keys.as_object().is_some_and(|keys| !keys.is_empty())
        })
        .map(|(kind, _)| kind)
        .collect();
    let topics = system.topics_of(FLOW).await?;
    let named = flows["flow-ids"].as_array().is_some_and(|ids| ids.iter().any(|id| id == FLOW));
    println!(
        "\n5. Flow '{FLOW}' is stopped ({took} ms). Left of it: {} flow records, {} processor entries, {} topics.",
        usize::from(named),
        left.len(),
        topics.len()
    );
    if named || !left.is_empty() || !topics.is_empty() {
        bail!("something of the flow is left: {left:?} {topics:?}");
    }
    Ok(())
}
