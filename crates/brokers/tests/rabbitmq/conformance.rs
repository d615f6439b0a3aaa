//! The contract of the bus, case by case, each on a vhost of its own; with the management API, and without.

use std::sync::Arc;

use sluice_brokers::{Options, RabbitMq};
use sluice_bus::conformance::{self, Backend, Ends};
use sluice_bus::{BoxFuture, Error, Result};

use crate::{Case, Server};

pub(crate) fn cases() -> Vec<Case> {
    let shapes = [("conformance", true), ("conformance::without_management", false)];
    let case = |(group, with_management): (&str, bool), case: conformance::Case| Case {
        name: format!("{group}::{}", case.name),
        run: Box::new(move |server| Box::pin(run(case, server, with_management))),
    };
    shapes
        .into_iter()
        .flat_map(|shape| conformance::cases().into_iter().map(move |one| case(shape, one)))
        .collect()
}

async fn run(case: conformance::Case, server: Server, with_management: bool) -> Result<(), String> {
    let name = server.lock().await.vhost().await?;
    case.run(&Vhost { server, name, with_management }).await
}

struct Vhost {
    server: Server,
    name: String,
    with_management: bool,
}

impl Backend for Vhost {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        Box::pin(async {
            let server = self.server.lock().await;
            let options = if self.with_management { server.options() } else { Options::default() };
            let broker = Arc::new(RabbitMq::connect(&server.url(&self.name), options).await?);
            Ok(Ends { broker: broker.clone(), admin: broker })
        })
    }

    fn lists(&self) -> bool {
        self.with_management
    }

    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async {
            let mut server = self.server.lock().await;
            if !server.is_ours() {
                return Ok(false);
            }
            // In good order: after a crash the broker counts every message as delivered once, and so do we.
            server.stop(true).await;
            server.run().await.map_err(|reason| Error::Unavailable { reason })?;
            Ok(true)
        })
    }
}
