//! The contract of the bus, case by case, among ours and beside processes of TrustGraph 2.11.

use std::sync::Arc;

use sluice_brokers::kafka::{Kafka, Options};
use sluice_bus::conformance::{self, Backend, Ends};
use sluice_bus::{BoxFuture, Error, Result};

use crate::{Case, Server};

pub(crate) fn cases() -> Vec<Case> {
    let shapes = [("conformance", ""), ("conformance_beside", "?beside=2.11")];
    let cases = shapes.into_iter().flat_map(|(group, ending)| {
        conformance::cases().into_iter().map(move |case| Case {
            name: format!("{group}::{}", case.name),
            run: Box::new(move |server| Box::pin(async move { case.run(&Whole { server, ending }).await })),
        })
    });
    cases.collect()
}

/// All of a server; cases have names of their own on it.
struct Whole {
    server: Server,
    /// Of the address.
    ending: &'static str,
}

impl Backend for Whole {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        Box::pin(async {
            let url = format!("{}{}", self.server.lock().await.url(), self.ending);
            let broker = Arc::new(Kafka::connect(&url, Options::default()).await?);
            Ok(Ends { broker: broker.clone(), admin: broker })
        })
    }

    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async {
            let mut server = self.server.lock().await;
            // In good order: killed, the broker forgets a delivery that was under way.
            server.stop(true).await;
            server.run().await.map_err(|reason| Error::Unavailable { reason })?;
            Ok(true)
        })
    }
}
