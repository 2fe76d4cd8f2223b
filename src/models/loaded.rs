//! A network together with the registry of what it loaded.

use crate::adapters::Sites;
use crate::error::Result;
use crate::nn::Loader;
use crate::weights::{Placement, WeightSet};
use std::rc::Rc;

/// A network and the registry of what it loaded.
pub struct Loaded<M> {
    /// The network.
    pub model: M,
    /// Where adapters attach.
    pub sites: Rc<Sites>,
}

/// The network that `build` makes of `weights`.
pub(super) fn load<M>(
    weights: WeightSet,
    placement: Placement,
    build: impl FnOnce(&Loader) -> Result<M>,
) -> Result<Loaded<M>> {
    let sites = Sites::new();
    let loader = Loader::new(weights, sites.clone(), placement)?;
    Ok(Loaded { model: build(&loader)?, sites })
}
