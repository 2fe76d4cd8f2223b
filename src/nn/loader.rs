//! A cursor into a model's weights: a path, what lies under it, and where it goes.

use crate::adapters::{Param, Site, Sites};
use crate::error::Result;
use crate::weights::{BaseWeight, Op, Placement, WeightSet};
use std::ops::Div;
use std::rc::Rc;
use tch::{Device, Tensor};

/// Whether a layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// It has one.
    Yes,
    /// It has none.
    No,
}

/// Weights under a path. `&loader / "to_q"` is the part below `to_q`; the path is the checkpoint's key.
#[derive(Clone)]
pub struct Loader {
    weights: Rc<WeightSet>,
    sites: Rc<Sites>,
    placement: Placement,
    path: String,
}

impl Loader {
    /// The root of `weights`; what is loaded is registered in `sites`.
    pub fn new(weights: WeightSet, sites: Rc<Sites>, placement: Placement) -> Self {
        Self { weights: Rc::new(weights), sites, placement, path: String::new() }
    }

    fn key(&self, name: &str) -> String {
        match self.path.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.path),
        }
    }

    /// Whether the checkpoint has `name` under this path.
    pub fn has(&self, name: &str) -> bool {
        self.weights.contains(&self.key(name))
    }

    /// Where the weights go.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// A tensor that is no projection's weight: a norm's, a bias, an embedding.
    pub fn param(&self, name: &str, shape: &[i64]) -> Result<Rc<Param>> {
        let key = self.key(name);
        let tensor = self.weights.load(&key, shape, self.placement)?;
        Ok(self.sites.register_param(&key, tensor))
    }

    /// The projection at this path: `weight` of `shape`, and a bias of its first dimension.
    pub(super) fn site(&self, op: Op, shape: &[i64], bias: Bias) -> Result<Rc<Site>> {
        let key = self.key("weight");
        let mut weight = self.weights.load(&key, shape, self.placement)?;
        if matches!(op, Op::Conv2d(_)) && self.placement.device == Device::Cpu && shape[2] > 1 {
            // oneDNN convolves channels-last without reordering.
            weight = channels_last_copy(&weight);
            self.weights.let_go(&key);
        }
        let bias = match bias {
            Bias::Yes => Some(self.param("bias", &shape[..1])?),
            Bias::No => None,
        };
        Ok(self.sites.register(&self.path, op, BaseWeight::Dense(weight), bias))
    }
}

fn channels_last_copy(weight: &Tensor) -> Tensor {
    weight.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

impl<S: std::fmt::Display> Div<S> for &Loader {
    type Output = Loader;

    fn div(self, name: S) -> Loader {
        Loader { path: self.key(&name.to_string()), ..self.clone() }
    }
}

impl<S: std::fmt::Display> Div<S> for Loader {
    type Output = Loader;

    fn div(self, name: S) -> Loader {
        &self / name
    }
}
