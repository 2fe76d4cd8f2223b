//! Networks without numbers: loaded by the code that loads them for a run, and run by the code that runs them.

use super::Work;
use crate::adapters::{attach, Attached, Init, LoraConfig, Sites};
use crate::error::Result;
use crate::libtorch::failure::catching;
use crate::libtorch::planned::{give_gradient, Planning, PLANNED};
use crate::libtorch::random::Generator;
use crate::models::Loaded;
use crate::nn::Loader;
use crate::train::adamw::AdamWConfig;
use crate::train::optimizer::Optimizer;
use crate::train::Parameters;
use crate::weights::{block_of, BaseWeight, Keeping, Placement, WeightSet};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Where networks are planned, and how.
#[derive(Clone)]
pub(super) struct Place {
    /// The device that computes.
    pub(super) device: Device,
    /// The dtype that it computes in.
    pub(super) kind: Kind,
    /// The dtype of the weights' files.
    pub(super) stored: Kind,
    /// Weights that a model may have in common are the same.
    pub(super) shares: bool,
    /// How weights are kept.
    pub(super) keeping: Keeping,
}

impl Place {
    /// What `run` gives while a plan for the device is made.
    pub(super) fn planned<T>(&self, run: impl FnOnce(&Planning) -> Result<T>) -> Result<T> {
        let planning = Planning::of(self.device);
        catching(|| run(&planning))
    }

    /// A tensor of `shape` in the dtype of the computation.
    pub(super) fn tensor(&self, shape: &[i64]) -> Tensor {
        Tensor::empty(shape, (self.kind, PLANNED))
    }

    /// The network that `build` loads, and the bytes of its weights where they compute.
    pub(super) fn load<M>(
        &self,
        planning: &Planning,
        build: impl FnOnce(&Loader) -> Result<M>,
    ) -> Result<(Loaded<M>, u64)> {
        let before = planning.live();
        let sites = Sites::new();
        let weights = WeightSet::planned(self.stored, self.shares).stored_in(self.keeping.clone());
        let loader = Loader::new(weights, sites.clone(), Placement { device: PLANNED, kind: self.kind })?;
        let network = Loaded { model: build(&loader)?, sites };
        let bytes = planning.live() - before + most_streamed(&network.sites, self.device);
        Ok((network, bytes))
    }

    /// What the network that `build` loads takes without a gradient.
    pub(super) fn inference<M>(
        &self,
        build: impl FnOnce(&Loader) -> Result<M>,
        run: impl FnOnce(&M) -> Result<()>,
    ) -> Result<Inference> {
        self.planned(|planning| {
            let (network, weights) = self.load(planning, build)?;
            let before = planning.live();
            planning.restart();
            tch::no_grad(|| run(&network.model))?;
            Ok(Inference { weights, peak: planning.peak() - before, work: planning.computed().into() })
        })
    }
}

/// What a forward without gradients takes.
#[derive(Clone)]
pub(super) struct Inference {
    /// Bytes of weights.
    pub(super) weights: u64,
    /// Bytes beside them.
    pub(super) peak: u64,
    /// Its work.
    pub(super) work: Work,
}

/// The most of streamed weights that is there at a time: two blocks on a device; on the CPU one weight, beside what its file has of it.
fn most_streamed(sites: &Sites, device: Device) -> u64 {
    let mut blocks: BTreeMap<String, u64> = BTreeMap::new();
    for site in sites.all() {
        let key = format!("{}.weight", site.path());
        let block = if device == Device::Cpu { key.as_str() } else { block_of(&key) };
        let bytes = site.with_weight(|weight| match weight {
            BaseWeight::Streamed(weight) => weight.planned_bytes(),
            _ => 0,
        });
        *blocks.entry(block.to_owned()).or_default() += bytes;
    }
    2 * blocks.into_values().max().unwrap_or(0)
}

/// A new adapter on a network.
pub(super) fn adapted(sites: &Sites, lora: &LoraConfig) -> Result<Attached> {
    let attached = attach(sites, "default", lora.clone(), Init::Draw(&mut Generator::new(0)))?;
    sites.set_training(true);
    Ok(attached)
}

/// Numbers that `adapters` train.
pub(super) fn trained_numbers(adapters: &[Attached]) -> u64 {
    adapters.iter().map(Attached::trainable).sum::<i64>().unsigned_abs()
}

/// Of how many numbers a micro-step makes the gradients: of all, or of none where those of the batches before are there, which are made
/// here.
pub(super) fn new_gradients(adapters: &[Attached], accumulation: u64) -> Result<u64> {
    if accumulation <= 1 {
        return Ok(trained_numbers(adapters));
    }
    adapters.iter().flat_map(|adapter| adapter.params.values()).try_for_each(give_gradient)?;
    Ok(0)
}

/// Bytes of an optimizer's state of `params`.
pub(super) fn state_bytes(planning: &Planning, params: &Parameters, optimizer_8bit: bool) -> Result<u64> {
    let before = planning.live();
    let mut optimizer = Optimizer::new(AdamWConfig::default(), optimizer_8bit)?;
    optimizer.make_state(params);
    Ok(planning.live() - before)
}

/// Key to shape of every weight of the network that `build` loads.
pub(super) fn weights_of<M>(build: impl FnOnce(&Loader) -> Result<M>) -> Result<BTreeMap<String, Vec<i64>>> {
    let place = Place {
        device: Device::Cpu,
        kind: Kind::Float,
        stored: Kind::Float,
        shares: false,
        keeping: Keeping::default(),
    };
    place.planned(|planning| Ok(place.load(planning, build)?.0.sites.weight_shapes()))
}

/// A micro-step of training.
pub(super) struct Step {
    /// Bytes that forward leaves.
    pub(super) kept: u64,
    /// Those of them that are in small blocks.
    pub(super) kept_small: u64,
    /// Bytes that forward or backward takes on top, gradients of adapters aside.
    pub(super) on_top: u64,
    /// The work of both.
    pub(super) work: Work,
}

impl Step {
    /// That of `loss` and its backward, which make the gradients of so many numbers.
    pub(super) fn of(planning: &Planning, gradients: u64, loss: impl FnOnce() -> Result<Tensor>) -> Result<Self> {
        let (before, small) = (planning.live(), planning.small());
        planning.restart();
        let loss = loss()?;
        let (kept, kept_small) = (planning.live() - before, planning.small().saturating_sub(small));
        if loss.requires_grad() {
            loss.backward();
        }
        let on_top = (planning.peak() - before).saturating_sub(kept + gradients * GRADIENT_BYTES);
        Ok(Self { kept, kept_small, on_top, work: planning.computed().into() })
    }
}

/// Bytes of a trained number's gradient.
const GRADIENT_BYTES: u64 = 4;

/// Numbers of the largest weight that is kept in few bits.
pub(super) fn largest_quantised(sites: &Sites) -> u64 {
    let numbers = |weight: &BaseWeight| match weight {
        BaseWeight::Int8(_) | BaseWeight::Nf4(_) | BaseWeight::Fp8(_) => {
            weight.shape().iter().product::<i64>().unsigned_abs()
        }
        BaseWeight::Dense(_) | BaseWeight::Streamed(_) => 0,
    };
    sites.all().iter().map(|site| site.with_weight(numbers)).max().unwrap_or(0)
}
