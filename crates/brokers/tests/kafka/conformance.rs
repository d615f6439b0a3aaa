//! The contract of the bus, case by case.

use std::sync::Arc;

use sluice_bus::conformance::{self, Backend, Ends};
use sluice_bus::{BoxFuture, Error, Result};

use crate::{Case, Server};

pub(crate) fn cases() -> Vec<Case> {
    let case = |case: conformance::Case| Case {
        name: format!("conformance::{}", case.name),
        run: Box::new(move |server| Box::pin(async move { case.run(&Whole(server)).await })),
    };
    conformance::cases().into_iter().map(case).collect()
}

/// All of a server; cases have names of their own on it.
struct Whole(Server);

impl Backend for Whole {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        Box::pin(async {
            let broker = Arc::new(self.0.lock().await.connect().await?);
            Ok(Ends { broker: broker.clone(), admin: broker })
        })
    }

    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async {
            let mut server = self.0.lock().await;
            // In good order: killed, the broker forgets a delivery that was under way.
            server.stop(true).await;
            server.run().await.map_err(|reason| Error::Unavailable { reason })?;
            Ok(true)
        })
    }
}
