//! The copy of what config holds about flows: asked for before every decision and every look, and then only for what
//! changed.
//!
//! Where config tells everything instead, it may have been restored from an older copy, in which numbers of decisions are
//! given out again: then what was seen of the decisions of the other history is forgotten, before anything is decided.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_bus::Naming;
use sluice_sdk::config::Page;
use sluice_sdk::{ConfigClient, ConfigError, Position};
use tokio::sync::Mutex;

use crate::board::Board;
use crate::memory::Records;
use crate::texts::{Strip, Stripped};

/// The copy. One fetch is under way at most; who asks meanwhile waits and then asks for what came after.
pub(crate) struct Mirror {
    config: Arc<ConfigClient>,
    board: Arc<Board>,
    naming: Naming,
    state: Mutex<State>,
    histories: AtomicU64,
}

#[derive(Default)]
struct State {
    position: Position,
    records: Arc<Records>,
}

impl Mirror {
    pub(crate) fn new(config: Arc<ConfigClient>, board: Arc<Board>, naming: Naming) -> Self {
        Self { config, board, naming, state: Mutex::default(), histories: AtomicU64::new(0) }
    }

    /// How many histories there were, as far as can be told: what was remembered under another number may be of a history
    /// that is over.
    pub(crate) fn histories(&self) -> u64 {
        self.histories.load(Ordering::SeqCst)
    }

    /// The records as they are now or were a moment after the call began.
    pub(crate) async fn refresh(&self) -> Result<Arc<Records>, ConfigError> {
        let mut state = self.state.lock().await;
        let types = Records::TYPES.map(str::to_owned);
        // What was known stays as it was until the last page is there.
        let mut strip = Strip::new(&state.records.blueprints, &state.records.parameter_types);
        let mut pages: Vec<Stripped> = Vec::new();
        let fetched = self.config.fetch(&types, &state.position, |page: Page| pages.push(strip.page(page)));
        let position = Box::pin(fetched).await?;
        if pages.iter().any(|stripped| stripped.page.is_whole) && state.position != Position::default() {
            self.board.clear();
            self.histories.fetch_add(1, Ordering::SeqCst);
        }
        state.position = position;
        if pages.iter().any(Stripped::changes) {
            let mut records = Arc::unwrap_or_clone(std::mem::take(&mut state.records));
            pages.into_iter().for_each(|page| records.take(page, self.naming));
            state.records = Arc::new(records);
        }
        Ok(state.records.clone())
    }
}
