//! The optimizers that a run can choose from, behind one face.

use super::adamw::{AdamW, AdamWConfig};
use super::adamw8bit::AdamW8bit;
use super::Parameters;
use crate::error::Result;
use crate::libtorch::fused_adamw::clear_grads;
use std::collections::BTreeMap;
use tch::Tensor;

/// A closed set: what PEFT's script offers.
#[derive(Debug)]
pub enum Optimizer {
    /// `torch.optim.AdamW`.
    AdamW(AdamW),
    /// bitsandbytes' `AdamW8bit` (`--use-8bit-adam`).
    AdamW8bit(AdamW8bit),
}

impl Optimizer {
    /// AdamW, with its moments in 8 bits if asked for.
    pub fn new(config: AdamWConfig, use_8bit: bool) -> Result<Self> {
        config.check()?;
        Ok(match use_8bit {
            true => Self::AdamW8bit(AdamW8bit::new(config)),
            false => Self::AdamW(AdamW::new(config)),
        })
    }

    /// Makes the state of `params`, which steps make by themselves: what a run's memory must have room for.
    pub fn make_state(&mut self, params: &Parameters) {
        match self {
            Self::AdamW(optimizer) => optimizer.make_state(params.iter()),
            Self::AdamW8bit(optimizer) => optimizer.make_state(params),
        }
    }

    /// One update, in place, of each of `params` that has a gradient.
    pub fn step(&mut self, params: &Parameters, lr: f64) -> Result<()> {
        match self {
            Self::AdamW(optimizer) => optimizer.step(params, lr),
            Self::AdamW8bit(optimizer) => optimizer.step(params, lr),
        }
    }

    /// Makes all gradients undefined, so that none is used twice and a parameter without a new one is skipped.
    pub fn zero_grad(&self, params: &Parameters) -> Result<()> {
        clear_grads(params.values())
    }

    /// All that a resumed run needs, by name: the tensors themselves, not copies.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::AdamW(optimizer) => optimizer.state(),
            Self::AdamW8bit(optimizer) => optimizer.state(),
        }
    }

    /// Continues from a [`Optimizer::state`] of the same kind of optimizer over the same `params`.
    pub fn load_state(&mut self, params: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()> {
        match self {
            Self::AdamW(optimizer) => optimizer.load_state(params, state),
            Self::AdamW8bit(optimizer) => optimizer.load_state(params, state),
        }
    }
}
