//! Taking part in flows: what a processor is, its ports, its inputs, and the roster of those a program runs.
//!
//! One value per running flow; its fields are its ports and settings, its methods are its handlers. A handler returns a
//! [`Failure`] and does nothing else about it: settling, counting, retrying and parking happen here, the same for all.

mod failure;
mod inputs;
mod lane;
mod ports;
mod roster;

pub use failure::{BindError, Failure};
pub(crate) use inputs::Input;
pub use inputs::Inputs;
pub(crate) use lane::Lane;
pub use ports::{Out, Ports, Resources};
pub use roster::{Catalogue, CatalogueSlot, Roster, SlotUse};
pub(crate) use roster::{RunError, Variant};

/// A stage of the data plane.
pub trait Processor: Sized + Send + Sync + 'static {
    /// Its id in blueprints, unless the roster gives another.
    const NAME: &'static str;
    /// Messages under way at most, per input, where no setting says otherwise.
    const CONCURRENCY: usize = 8;
    /// The stage under which lost pieces are reported; `None` reports nothing.
    const STAGE: Option<&'static str> = None;

    /// Binds ports and settings.
    ///
    /// # Errors
    /// A [`BindError`] that names the slot or setting.
    fn bind(ports: &mut Ports) -> Result<Self, BindError>;

    /// Messages under way at most, per input, once bound; a processor with a setting for it answers that. At least 1.
    fn concurrency(&self) -> usize {
        Self::CONCURRENCY
    }

    /// Lists inputs with their handlers.
    fn inputs(on: &mut Inputs<Self>);
}
