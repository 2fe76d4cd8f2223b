//! What an adapter is, and the table of methods.

use super::config::LoraConfig;
use super::lora;
use super::projections::LowRank;
use super::site::Site;
use crate::error::Result;
use crate::libtorch::random::Generator;
use std::collections::BTreeMap;
use tch::Tensor;

/// One trained change to one projection.
pub trait Adapter {
    /// The projection's output with this change. `ys` is the output of the base and of the adapters before this one
    /// for `xs`, and may be changed in place; `scale` multiplies the change. Linear inputs are `[rows, in]`.
    fn forward(&self, site: &Site, xs: &Tensor, ys: Tensor, scale: f64) -> Tensor;

    /// The low-rank product that is all it adds to the present forward of a linear projection, where it is one.
    fn low_rank(&self, _site: &Site) -> Option<LowRank<'_>> {
        None
    }

    /// `weight` (float32, of the site's shape) with this change folded in.
    fn merged(&self, site: &Site, weight: Tensor, scale: f64) -> Tensor;
}

/// Where a new adapter's numbers come from.
pub enum Init<'a> {
    /// Drawn as PEFT draws them, site by site in the order of their paths.
    Draw(&'a mut Generator),
    /// Read from a file: full name to tensor.
    Tensors(&'a BTreeMap<String, Tensor>),
}

/// One site's adapter, and its trained tensors by name.
pub type Made = (Box<dyn Adapter>, BTreeMap<String, Tensor>);

/// A kind of adapter: a name in `adapter_config.json`, and how one is made for a site.
pub struct Method {
    /// PEFT's `peft_type`.
    pub peft_type: &'static str,
    /// Makes the adapter of one site, with its trained tensors by their names in PEFT's files, such as
    /// `mid_block.attentions.0.proj_in.lora_A.weight`.
    pub make: fn(&Site, &LoraConfig, &mut Init) -> Result<Made>,
}

/// All methods that change projections.
pub static METHODS: &[Method] = &[Method { peft_type: "LORA", make: lora::make }];
