//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) with `torch.optim.AdamW`'s arithmetic, and a state that can be
//! written and read: tch's own optimizers cannot.

use super::Parameters;
use crate::error::{Error, Result};
use crate::libtorch::fused_adamw::{adamw_step, AdamWStep};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// What stays the same over a run. The defaults are those of `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 1e-2 }
    }
}

impl AdamWConfig {
    /// Refuses numbers with which no step makes sense, by the names of the flags that set them.
    pub fn check(&self) -> Result<()> {
        for (flag, beta) in [("⟨adam_beta1⟩", self.betas.0), ("⟨adam_beta2⟩", self.betas.1)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::invalid(format!("{flag} is {beta}; it must be at least 0 and below 1")));
            }
        }
        for (flag, value) in [("⟨adam_epsilon⟩", self.eps), ("⟨adam_weight_decay⟩", self.weight_decay)] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!("{flag} is {value}; it must be a number of at least 0")));
            }
        }
        Ok(())
    }

    pub(super) fn at(&self, lr: f64) -> AdamWStep {
        AdamWStep { lr, betas: self.betas, weight_decay: self.weight_decay, eps: self.eps }
    }
}

/// Running moments of one parameter, float32 on its device.
#[derive(Debug)]
struct Moments {
    /// Shaped as the parameter.
    exp_avg: Tensor,
    /// Shaped as the parameter.
    exp_avg_sq: Tensor,
    /// Steps taken: a scalar, because the fused kernel reads it on the device.
    step: Tensor,
}

/// AdamW in one fused kernel for all parameters. A parameter's state begins with its first gradient.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// An optimizer that has not stepped yet.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: BTreeMap::new() }
    }

    /// Makes the moments of `params` that have none.
    pub(super) fn make_state<'a>(&mut self, params: impl Iterator<Item = (&'a String, &'a Tensor)>) {
        for (name, param) in params {
            self.moments.entry(name.clone()).or_insert_with(|| Moments::zeros(param));
        }
    }

    /// One update of each of `params` that has a gradient, in place; the others stay as they are, as in torch.
    pub fn step(&mut self, params: &Parameters, lr: f64) -> Result<()> {
        self.step_those(params.iter(), lr)
    }

    pub(super) fn step_those<'a>(
        &mut self,
        params: impl Iterator<Item = (&'a String, &'a Tensor)>,
        lr: f64,
    ) -> Result<()> {
        let (mut values, mut grads, mut exp_avgs, mut exp_avg_sqs, mut steps) =
            (vec![], vec![], vec![], vec![], vec![]);
        for (name, param) in params {
            let grad = param.grad();
            if !grad.defined() {
                continue;
            }
            let moments = self.moments.entry(name.clone()).or_insert_with(|| Moments::zeros(param));
            values.push(param.shallow_clone());
            grads.push(grad);
            exp_avgs.push(moments.exp_avg.shallow_clone());
            exp_avg_sqs.push(moments.exp_avg_sq.shallow_clone());
            steps.push(moments.step.shallow_clone());
        }
        if values.is_empty() {
            return Ok(());
        }
        adamw_step(&values, &grads, &exp_avgs, &exp_avg_sqs, &steps, self.config.at(lr))
    }

    /// `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` of each parameter that has stepped: the tensors themselves, not
    /// copies.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            state.insert(format!("{name}.exp_avg"), moments.exp_avg.shallow_clone());
            state.insert(format!("{name}.exp_avg_sq"), moments.exp_avg_sq.shallow_clone());
            state.insert(format!("{name}.step"), moments.step.shallow_clone());
        }
        state
    }

    /// Continues from a [`AdamW::state`] of the same `params`, copied to their device.
    pub fn load_state(&mut self, params: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.moments.clear();
        for name in names_in(state, ".exp_avg") {
            let param = parameter(params, name)?;
            let moments = Moments {
                exp_avg: entry(state, name, "exp_avg", param, &param.size(), Kind::Float)?,
                exp_avg_sq: entry(state, name, "exp_avg_sq", param, &param.size(), Kind::Float)?,
                step: entry(state, name, "step", param, &[], Kind::Float)?,
            };
            self.moments.insert(name.to_owned(), moments);
        }
        Ok(())
    }
}

impl Moments {
    fn zeros(param: &Tensor) -> Self {
        let _guard = tch::no_grad_guard();
        Self {
            exp_avg: param.zeros_like(),
            exp_avg_sq: param.zeros_like(),
            step: Tensor::zeros([], (Kind::Float, param.device())),
        }
    }
}

/// Names of the parameters that have an entry ending in `suffix`.
pub(super) fn names_in<'a>(state: &'a BTreeMap<String, Tensor>, suffix: &'a str) -> impl Iterator<Item = &'a str> {
    state.keys().filter_map(move |key| key.strip_suffix(suffix))
}

pub(super) fn parameter<'a>(params: &'a Parameters, name: &str) -> Result<&'a Tensor> {
    let missing = || {
        Error::invalid(format!("the optimizer state is of another run: it holds `{name}`, which is not trained here"))
    };
    params.get(name).ok_or_else(missing)
}

/// One entry of a state, checked and copied to the device of its parameter.
pub(super) fn entry(
    state: &BTreeMap<String, Tensor>,
    name: &str,
    part: &str,
    param: &Tensor,
    shape: &[i64],
    kind: Kind,
) -> Result<Tensor> {
    let key = format!("{name}.{part}");
    let Some(found) = state.get(&key) else {
        return Err(Error::invalid(format!("the optimizer state has no `{key}`; it is not complete")));
    };
    if found.size() != shape || found.kind() != kind {
        let (size, found_kind) = (found.size(), found.kind());
        return Err(Error::invalid(format!(
            "`{key}` of the optimizer state is {found_kind:?} {size:?} where this run needs {kind:?} {shape:?}"
        )));
    }
    Ok(found.detach().to_device(param.device()).copy())
}
