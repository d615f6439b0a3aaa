//! `sluice up` and `sluice run`: serve until they are told to stop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sluice_gateway::{Tls, TlsFiles};
use sluice_processors::{DecodingConfig, EmbedderConfig, LocalConfig, ModelConfig, Secret};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::address;
use crate::api::data_folder;
use crate::bus::Remote;
use crate::cli::{Broker, Decoding, Door, Embeddings, Listen, Model, Objects, Run, Serve, Target, Up};
use crate::exit::{Code, Told};
use crate::folder;
use crate::services::{Selection, Service};
use crate::system::{Failure, Settings, System};

/// How long a start may still take once it is asked to stop.
const START_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(target: &Target, command: Up) -> anyhow::Result<()> {
    if !command.without.is_empty() && command.serve.broker.broker.is_none() {
        let without = command.without.join(",");
        let told = "what is left to other processes needs a broker that they share, and there is none";
        return Err(Told::usage(told)
            .next(format!("sluice up --broker amqp://user@host/vhost --without {without}"))
            .into());
    }
    let selection = Selection::without(&command.without)?;
    serve(selection, Some(data_folder(target)?), command.serve).await
}

/// `sluice run`: some services, beside others on one broker.
pub(super) async fn run_some(target: &Target, command: Run) -> anyhow::Result<()> {
    let selection = Selection::of(&command.services)?;
    if command.serve.broker.broker.is_none() {
        return Err(Told::usage("services in several processes need a broker that they share")
            .next("name one with --broker amqp://…, or run everything in this process with 'sluice up'")
            .into());
    }
    // No default: a service that was started over another's folder, or an empty one, would know nothing of its own.
    let keepers = selection.keepers().join(", ");
    if !keepers.is_empty() && target.data.is_none() {
        return Err(Told::usage(format!("{keepers} keep data, and there is no folder for it"))
            .next("give one that is theirs alone with --data DIR")
            .into());
    }
    serve(selection, target.data.clone(), command.serve).await
}

async fn serve(selection: Selection, data: Option<PathBuf>, serve: Serve) -> anyhow::Result<()> {
    let gateway_here = selection.runs(Service::Gateway);
    let listen = serve.listen.address;
    if gateway_here && serve.no_auth && !serve.force && !listen.ip().is_loopback() {
        return Err(Told::usage(format!("--no-auth on {listen} would let anybody on the network in"))
            .next("listen on 127.0.0.1, leave --no-auth out, or add --force if that is wanted")
            .into());
    }
    // Gateways of other processes ask this one, wherever they listen.
    if selection.runs(Service::Iam) && !gateway_here && serve.no_auth && !serve.force {
        return Err(Told::usage(
            "--no-auth would let anybody in at every gateway on this broker, wherever it listens",
        )
        .next("leave --no-auth out, or add --force if that is wanted")
        .into());
    }
    let named = selection.to_string();
    let (iam_here, no_auth) = (selection.runs(Service::Iam), serve.no_auth);
    let open = iam_here.then_some(no_auth).or(no_auth.then_some(true));
    let gateway = gateway(serve.listen, serve.door, open)?;
    let is_clear = gateway_here && gateway.tls.is_none() && !listen.ip().is_loopback();
    let settings = Settings {
        selection,
        data: data.clone(),
        gateway,
        init_empty: serve.init_empty,
        accept_loss: serve.accept_loss,
        broker: remote(serve.broker)?,
        no_auth,
        model: model(serve.model)?,
        embedder: embedder(serve.embeddings, data.as_deref())?,
        decoding: decoding(&serve.decoding),
        objects: objects(serve.objects)?,
    };
    // Before anybody can see that it serves: whoever waits for that may tell it to stop at once.
    let mut interrupted = std::pin::pin!(interrupted()?);
    let mut starting = std::pin::pin!(System::start(settings));
    let (system, is_interrupted) = tokio::select! {
        biased;
        started = &mut starting => (started?, false),
        () = &mut interrupted => {
            // A start that is nearly over is stopped in good order; any other ends as by a kill, which harms nothing.
            let started = tokio::time::timeout(START_TIMEOUT, starting).await;
            let told = || Told::new(Code::Failed, "stopped before it had started");
            (started.map_err(|_| told().next("start it again"))??, true)
        }
    };
    let folder = data.as_deref().map(|data| tracing::field::display(data.display()));
    match system.address {
        Some(address) => tracing::info!(%address, data = folder, "serving"),
        None => tracing::info!(services = named, data = folder, "serving"),
    }
    if let Some(data) = data.filter(|_| iam_here && !no_auth) {
        tracing::info!(key = %data.join("admin.key").display(), "the admin key is here; sluice commands read it");
    }
    if no_auth && iam_here {
        tracing::warn!("--no-auth: whoever reaches this system may do everything in it, without a key");
    }
    if is_clear {
        tracing::warn!(
            "keys, questions and documents cross the network in clear: serve with --tls-cert and --tls-key, or put a proxy in front that does (docs/proxy.md)"
        );
    }
    let failure = tokio::select! {
        biased;
        () = std::future::ready(()), if is_interrupted => None,
        () = interrupted => None,
        reason = system.failed() => Some(reason),
    };
    let Some(reason) = failure else {
        tracing::info!("stopping");
        return system.stop().await;
    };
    let told = match reason {
        Failure::Disk(reason) => folder::disk_failed(&reason),
        Failure::Displaced(reason) => {
            Told::new(Code::Failed, format!("another process answers for this one: {reason}"))
                .next("stop the one with the wrong data folder, then start the other")
        }
    };
    tracing::error!(reason = told.message, "stopping");
    // This is the failure to report.
    let _ = system.stop().await;
    Err(told.into())
}

/// What the gateway is set to. Whether anybody is let in is known where the identity service runs here too.
fn gateway(listen: Listen, door: Door, open: Option<bool>) -> anyhow::Result<sluice_gateway::Options> {
    let mut options = sluice_gateway::Options::new(listen.address);
    options.listen_name = listen.name;
    options.open = open;
    options.allow_origins = door.allow_origin;
    options.allow_hosts = door.allow_host;
    options.trusted_proxies = door.trusted_proxy;
    if let (Some(certificate), Some(key)) = (door.tls_cert, door.tls_key) {
        let files = TlsFiles { certificate, key, client_ca: door.tls_client_ca };
        options.tls = Some(Tls::load(files).context("the gateway cannot serve with TLS")?);
    }
    Ok(options)
}

pub(super) fn objects(args: Objects) -> anyhow::Result<Option<(String, sluice_databases::Settings)>> {
    let Some(url) = args.objects else { return Ok(None) };
    address::OBJECTS.read_bare(&url)?;
    if let Some(endpoint) = &args.objects_endpoint {
        address::OBJECTS_ENDPOINT.read_bare(endpoint)?;
    }
    let secret = match &args.objects_secret_file {
        Some(file) => Some(
            std::fs::read_to_string(file).with_context(|| format!("'{}' cannot be read", file.display()))?,
        ),
        None => std::env::var("AWS_SECRET_ACCESS_KEY").ok(),
    };
    let secret = secret.map(|text| line(&text));
    if args.objects_key.is_some() != secret.is_some() {
        return Err(Told::usage("a key to the object store has an id and a secret, and one of them is missing")
            .next("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --objects-key and --objects-secret-file")
            .into());
    }
    let settings = sluice_databases::Settings {
        endpoint: args.objects_endpoint,
        region: args.objects_region,
        access_key: args.objects_key,
        secret_key: secret.map(sluice_databases::Secret::new),
        session_token: std::env::var("AWS_SESSION_TOKEN")
            .ok()
            .map(|text| sluice_databases::Secret::new(line(&text))),
        ca: args.objects_ca,
        ..Default::default()
    };
    Ok(Some((url, settings)))
}

fn decoding(args: &Decoding) -> DecodingConfig {
    let mut config = DecodingConfig::default();
    config.limits.parts_max = args.decode_pages;
    config.memory_bytes_max = args.decode_memory_mib.saturating_mul(1024 * 1024);
    config.cpu_seconds_max = args.decode_seconds;
    config
}

/// Waits for SIGINT, SIGTERM or SIGHUP, which a terminal that closes sends, from the call on: what comes before the wait is not
/// missed.
pub(super) fn interrupted() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be awaited")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be awaited")?;
    // Somebody who lets it go on without a terminal (`nohup`) has it ignored, which awaiting it would undo.
    let mut hang_up = match is_hang_up_ignored() {
        true => None,
        false => Some(signal(SignalKind::hangup()).context("SIGHUP cannot be awaited")?),
    };
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = hung_up(hang_up.as_mut()) => {}
        }
    })
}

async fn hung_up(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether this process was started with SIGHUP ignored, where the system tells.
fn is_hang_up_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & 1 == 1
}

pub(super) fn model(args: Model) -> anyhow::Result<Option<ModelConfig>> {
    let Some(url) = args.llm_url else { return Ok(None) };
    address::MODEL.read(&url)?;
    let mut config = ModelConfig::new(url);
    config.dialect = args.llm_dialect.unwrap_or(config.dialect);
    config.model = args.llm_model;
    config.api_key = key(args.llm_key, args.llm_key_file.as_deref())?;
    Ok(Some(config))
}

fn embedder(args: Embeddings, data: Option<&Path>) -> anyhow::Result<EmbedderConfig> {
    if let Some(source) = args.embeddings_local {
        address::check_local_model(&source)?;
        let is_fetched = source.contains("://");
        let Some(data) = data.or((!is_fetched).then_some(Path::new(""))) else {
            return Err(Told::usage("a model that is fetched needs a folder to be kept in")
                .next("give one with --data DIR, or name a folder that holds the model")
                .into());
        };
        return Ok(EmbedderConfig::Local(LocalConfig::new(source, data.join("models"))));
    }
    let Some(url) = args.embeddings_url else { return Ok(EmbedderConfig::Hashing) };
    address::EMBEDDINGS.read(&url)?;
    let mut config = ModelConfig::new(url);
    config.dialect = args.embeddings_dialect.unwrap_or(config.dialect);
    config.model = args.embeddings_model;
    config.api_key = key(args.embeddings_key, args.embeddings_key_file.as_deref())?;
    Ok(EmbedderConfig::Remote(config))
}

fn key(typed: Option<String>, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    if let Some(typed) = typed {
        return Ok(Some(Secret::new(line(&typed))));
    }
    let read = |file: &Path| {
        Secret::from_file(file).with_context(|| format!("the key file '{}' cannot be read", file.display()))
    };
    file.map(read).transpose()
}

/// A secret without the line end that editors and files add.
fn line(text: &str) -> String {
    text.trim_end_matches(['\r', '\n']).to_owned()
}

pub(super) fn remote(broker: Broker) -> anyhow::Result<Option<Remote>> {
    let Some(url) = broker.broker else { return Ok(None) };
    let read = |file: &std::path::Path| {
        std::fs::read_to_string(file).with_context(|| format!("'{}' cannot be read", file.display()))
    };
    let from_file = broker.broker_password_file.as_deref().map(read).transpose()?;
    let password = broker.broker_password.or(from_file).map(|text| line(&text));
    if let Some(management) = &broker.broker_management {
        address::MANAGEMENT.read(management)?;
    }
    let settings = sluice_brokers::Settings {
        password: password.map(sluice_brokers::Secret::new),
        management: broker.broker_management.map(sluice_brokers::Secret::new),
        ca_pem: broker.broker_ca.as_deref().map(read).transpose()?,
    };
    Ok(Some(Remote { url: sluice_brokers::Secret::new(url), settings }))
}
