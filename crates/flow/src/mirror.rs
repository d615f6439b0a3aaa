//! The copy of what config holds about flows: asked for before every decision and every look, and then only for what
//! changed.

use std::sync::Arc;

use sluice_sdk::{ConfigClient, ConfigError};
use tokio::sync::Mutex;

use crate::memory::Records;

/// The copy. One fetch is under way at most; who asks meanwhile waits and then asks for what came after.
pub(crate) struct Mirror {
    config: Arc<ConfigClient>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: i64,
    records: Arc<Records>,
}

impl Mirror {
    pub(crate) fn new(config: Arc<ConfigClient>) -> Self {
        Self { config, state: Mutex::default() }
    }

    /// The records as they are now or were a moment after the call began.
    pub(crate) async fn refresh(&self) -> Result<Arc<Records>, ConfigError> {
        let mut state = self.state.lock().await;
        let types = Records::TYPES.map(str::to_owned);
        let answer = self.config.getvalues_many(&types, state.version).await?;
        state.version = answer.version;
        if answer.since <= 0 || !answer.values.is_empty() || !answer.deleted.is_empty() {
            let records = std::mem::take(&mut state.records);
            state.records = Arc::new(Arc::unwrap_or_clone(records).after(answer));
        }
        Ok(state.records.clone())
    }
}
