//! `sluice up`: serves until it is told to stop.

use anyhow::Context;
use sluice_processors::{ModelConfig, Secret};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::data_folder;
use crate::bus::Remote;
use crate::cli::{Broker, Model, Target, Up};
use crate::exit::Told;
use crate::system::{Settings, System};

pub(super) async fn run(target: &Target, command: Up) -> anyhow::Result<()> {
    if command.no_auth && !command.force && !command.listen.ip().is_loopback() {
        return Err(Told::usage(format!(
            "--no-auth on {} would let anybody on the network in",
            command.listen
        ))
        .next("listen on 127.0.0.1, leave --no-auth out, or add --force if that is wanted")
        .into());
    }
    let data = data_folder(target)?;
    let settings = Settings {
        data: data.clone(),
        listen: command.listen,
        broker: remote(command.broker)?,
        no_auth: command.no_auth,
        model: model(command.model),
    };
    let system = System::start(settings).await?;
    tracing::info!(address = %system.address, data = %data.display(), "serving");
    if !command.no_auth {
        tracing::info!(key = %data.join("admin.key").display(), "the admin key is here; sluice commands read it");
    }
    interrupted().await?;
    tracing::info!("stopping");
    system.stop().await;
    Ok(())
}

/// Waits for SIGINT or SIGTERM.
pub(super) async fn interrupted() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be awaited")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be awaited")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

pub(super) fn model(model: Model) -> Option<ModelConfig> {
    let mut config = ModelConfig::new(model.llm_url?);
    config.model = model.llm_model;
    config.api_key = model.llm_key.map(Secret::new);
    Some(config)
}

fn remote(broker: Broker) -> anyhow::Result<Option<Remote>> {
    let Some(url) = broker.broker else { return Ok(None) };
    let read = |file: &std::path::Path| {
        std::fs::read_to_string(file).with_context(|| format!("'{}' cannot be read", file.display()))
    };
    let from_file = broker.broker_password_file.as_deref().map(read).transpose()?;
    let password =
        broker.broker_password.or(from_file.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()));
    let settings = sluice_brokers::Settings {
        password: password.map(sluice_brokers::Secret::new),
        management: broker.broker_management.map(sluice_brokers::Secret::new),
        ca_pem: broker.broker_ca.as_deref().map(read).transpose()?,
    };
    Ok(Some(Remote { url: sluice_brokers::Secret::new(url), settings }))
}
