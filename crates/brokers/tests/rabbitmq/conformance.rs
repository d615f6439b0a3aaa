//! The contract of the bus, case by case, each on a vhost of its own; with the management API, and without. No case leaves
//! anything there.

use std::sync::Arc;

use sluice_brokers::{Options, RabbitMq};
use sluice_bus::conformance::{self, Backend, Conclusion, Ends};
use sluice_bus::{BoxFuture, Error, Result};

use crate::common::until;
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

async fn run(case: conformance::Case, server: Server, with_management: bool) -> Result<Conclusion, String> {
    let name = server.lock().await.vhost().await?;
    let vhost = Vhost { server, name, with_management };
    let ended = case.run(&vhost).await?;
    until("the topics of the case gone", || vhost.is_swept()).await?;
    Ok(ended)
}

struct Vhost {
    server: Server,
    name: String,
    with_management: bool,
}

impl Vhost {
    /// `None` while something of a topic is left.
    async fn is_swept(&self) -> Option<()> {
        let names = self.server.lock().await.names(&self.name).await.ok()?;
        (!names.iter().any(|name| name.starts_with("tg."))).then_some(())
    }
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
