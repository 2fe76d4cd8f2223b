//! A cursor into a model's weights: a path, what lies under it, and where it goes.

use crate::adapters::{Param, Site, SiteTraits, Sites};
use crate::error::Result;
use crate::weights::{BaseWeight, Int8Weight, Op, Placement, Storage, WeightSet};
use std::cell::Cell;
use std::ops::Div;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Whether the projection at `path` is a classifier's head.
pub fn is_head(path: &str) -> bool {
    ["classifier", "score"].iter().any(|head| path.starts_with(head))
}

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

    /// The shape that the checkpoint has `name` in.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.weights.shape(&self.key(name))
    }

    /// Where the weights go.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The same place, from which weights are kept in `kind`.
    pub fn in_kind(&self, kind: Kind) -> Self {
        Self { placement: Placement { kind, ..self.placement }, ..self.clone() }
    }

    /// Whether the model trains, now and later.
    pub(super) fn training(&self) -> Rc<Cell<bool>> {
        self.sites.training_flag()
    }

    /// A tensor that is no projection's weight: a norm's, a bias.
    pub fn param(&self, name: &str, shape: &[i64]) -> Result<Rc<Param>> {
        let key = self.key(name);
        let tensor = self.weights.load(&key, shape, self.placement)?;
        Ok(self.sites.register_param(&key, tensor))
    }

    /// The tensor `weight` at this path, which becomes a site's through [`Loader::put`] or [`Loader::put_table`].
    pub(super) fn weight(&self, shape: &[i64]) -> Result<Tensor> {
        self.weights.load(&self.key("weight"), shape, self.placement)
    }

    /// The linear projection at this path with a `weight` `[out, in]` that is loaded already.
    pub(super) fn put(&self, weight: Tensor, bias: Option<Rc<Param>>, traits: SiteTraits) -> Rc<Site> {
        let kept = match traits.output || traits.tied {
            true => BaseWeight::Dense(weight),
            false => self.kept(weight),
        };
        self.sites.register_with(&self.path, Op::Linear, kept, bias, traits)
    }

    /// The table of embeddings at this path.
    pub(super) fn table(&self, shape: &[i64]) -> Result<Rc<Site>> {
        Ok(self.put_table(self.weight(shape)?, false))
    }

    /// The same with a table that is loaded already; where it is `tied` it is another's.
    pub(super) fn put_table(&self, table: Tensor, tied: bool) -> Rc<Site> {
        let traits = SiteTraits { tied, ..SiteTraits::default() };
        self.sites.register_with(&self.path, Op::Embedding, BaseWeight::Dense(table), None, traits)
    }

    /// A tensor of no checkpoint, as [`Loader::param`] registers one.
    pub(super) fn put_param(&self, name: &str, tensor: Tensor) -> Rc<Param> {
        self.sites.register_param(&self.key(name), tensor)
    }

    /// `tensor` where the weights go.
    pub(super) fn placed(&self, tensor: Tensor) -> Tensor {
        tensor.to_device(self.placement.device).to_kind(self.placement.kind)
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
        let kept = match op {
            Op::Linear => self.kept(weight),
            Op::Conv2d(_) | Op::Embedding => BaseWeight::Dense(weight),
        };
        Ok(self.sites.register(&self.path, op, kept, bias))
    }

    /// The weight of the linear projection at this path as it is to be kept. Classifiers' heads stay as they are, as in
    /// bitsandbytes: they are small, and trained whole.
    fn kept(&self, weight: Tensor) -> BaseWeight {
        match self.weights.storage() {
            Storage::Int8 { threshold } if !is_head(&self.path) => {
                let int8 = Int8Weight::quantise(&weight, self.placement.kind, threshold);
                drop(weight);
                self.weights.let_go(&self.key("weight"));
                BaseWeight::Int8(int8)
            }
            _ => BaseWeight::Dense(weight),
        }
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
