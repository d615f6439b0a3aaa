//! Slots that many workspaces share: whoever asks much waits for its own work, not for that of others.
//!
//! A slot that becomes free goes to the workspace that has the fewest, of these to the one that has waited longest since it
//! asked, was served or gave a slot back. So each workspace gets one while others wait, in turn; one that is alone gets all.
//! *Guarantee:* one that has no slot and asks waits for no more than the work under way and one more slot's work of each
//! workspace that was waiting without a slot before it, however much the others ask for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who has slots, and who waits for one. `T` is what a waiting one is given its slot by.
#[derive(Debug)]
pub struct Fair<T> {
    free: usize,
    /// Slots of each workspace that has any.
    held: HashMap<Arc<str>, usize>,
    /// Workspaces that wait, those that have waited longest first, each with its askers in order.
    waiting: VecDeque<(Arc<str>, VecDeque<T>)>,
}

impl<T> Fair<T> {
    /// With this many slots, all free.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self { free: slots, held: HashMap::new(), waiting: VecDeque::new() }
    }

    /// An asker waits. It is served by [`Fair::serve`], at once where a slot is free.
    pub fn ask(&mut self, workspace: &Arc<str>, asker: T) {
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == workspace) {
            Some((_, askers)) => askers.push_back(asker),
            None => self.waiting.push_back((workspace.clone(), VecDeque::from([asker]))),
        }
    }

    /// A workspace gives a slot back.
    pub fn give_back(&mut self, workspace: &Arc<str>) {
        if let Some(held) = self.held.get_mut(workspace) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(workspace);
            }
            self.free += 1;
        }
        // It has just had its turn.
        if let Some(at) = self.waiting.iter().position(|(waiting, _)| waiting == workspace) {
            let last = self.waiting.remove(at);
            self.waiting.extend(last);
        }
    }

    /// Gives free slots to those whose turn it is. `give` returns whether the asker is still there to take it.
    pub fn serve(&mut self, mut give: impl FnMut(&Arc<str>, T) -> bool) {
        while self.free > 0 {
            let held = |workspace: &Arc<str>| self.held.get(workspace).copied().unwrap_or_default();
            // The first of the least.
            let turn = self.waiting.iter().enumerate().min_by_key(|(_, (workspace, _))| held(workspace));
            let Some((at, _)) = turn else { return };
            let Some((workspace, mut askers)) = self.waiting.remove(at) else { return };
            let served = askers.pop_front().is_some_and(|asker| give(&workspace, asker));
            if served {
                self.free -= 1;
                *self.held.entry(workspace.clone()).or_default() += 1;
            }
            match (askers.is_empty(), served) {
                (true, _) => {}
                (false, true) => self.waiting.push_back((workspace, askers)),
                (false, false) => self.waiting.insert(at, (workspace, askers)),
            }
        }
    }
}

/// Slots for tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Mutex<Fair<oneshot::Sender<Slot>>>>);

impl Slots {
    /// This many; at least one.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self(Arc::new(Mutex::new(Fair::new(slots.max(1)))))
    }

    /// Waits for a slot. A caller that stops waiting leaves its place to others.
    pub async fn take(&self, workspace: &Arc<str>) -> Slot {
        let (asker, slot) = oneshot::channel();
        {
            let mut fair = self.lock();
            fair.ask(workspace, asker);
            self.serve(&mut fair);
        }
        // An asker is dropped only with its slot sent, or with its waiting end gone.
        slot.await.unwrap_or_else(|_| Slot { slots: None, workspace: workspace.clone() })
    }

    fn serve(&self, fair: &mut Fair<oneshot::Sender<Slot>>) {
        fair.serve(|workspace, asker| {
            let slot = Slot { slots: Some(self.clone()), workspace: workspace.clone() };
            // One that is not taken was never held.
            asker.send(slot).map_err(|mut slot| slot.slots = None).is_ok()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Fair<oneshot::Sender<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot of a workspace; given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Option<Slots>,
    workspace: Arc<str>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.take() {
            let mut fair = slots.lock();
            fair.give_back(&self.workspace);
            slots.serve(&mut fair);
        }
    }
}
