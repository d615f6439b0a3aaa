//! The contract of the bus, case by case, each on a vhost of its own.

use std::sync::Arc;

use sluice_bus::conformance::{self, Backend, Ends};
use sluice_bus::{BoxFuture, Error, Result};

use crate::{Case, Server};

pub(crate) fn cases() -> Vec<Case> {
    let case = |case: conformance::Case| Case {
        name: format!("conformance::{}", case.name),
        run: Box::new(move |server| Box::pin(run(case, server))),
    };
    conformance::cases().into_iter().map(case).collect()
}

async fn run(case: conformance::Case, server: Server) -> Result<(), String> {
    let vhost = server.lock().await.vhost().await?;
    case.run(&Vhost { server, name: vhost }).await
}

struct Vhost {
    server: Server,
    name: String,
}

impl Backend for Vhost {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        Box::pin(async {
            let broker = Arc::new(self.server.lock().await.connect(&self.name).await?);
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
