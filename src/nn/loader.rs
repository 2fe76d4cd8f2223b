//! A cursor into a model's weights: a path, what lies under it, and where it goes.

use crate::adapters::{Param, Site, SiteTraits, Sites};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::libtorch::shared_memory::SharedWeights;
use crate::weights::{
    on_shared_host, BaseWeight, Layout, Op, Placement, Quantize, Sources, Storage, StreamedWeight, WeightSet,
};
use std::cell::{Cell, RefCell};
use std::ops::Div;
use std::rc::Rc;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Whether the projection at `path` is a classifier's head.
pub fn is_head(path: &str) -> bool {
    ["classifier", "score"].iter().any(|head| path.starts_with(head))
}

fn weight_key(site: &Site) -> String {
    format!("{}.weight", site.path())
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
    weights: Arc<WeightSet>,
    /// From where weights are brought that are not kept where they compute.
    sources: Option<Sources>,
    /// Where weights of the CPU lie that are not mapped from their files, in memory that processes share.
    shared: Option<Rc<RefCell<SharedWeights>>>,
    sites: Rc<Sites>,
    placement: Placement,
    path: String,
}

impl Loader {
    /// The root of `weights`; what is loaded is registered in `sites`.
    pub fn new(weights: WeightSet, sites: Rc<Sites>, placement: Placement) -> Result<Self> {
        let is_streamed = weights.keeping().storage.streamed;
        let sources = is_streamed.then(|| Sources::of(placement.device, weights.origin())).transpose()?;
        let is_kept_here = sources.is_none() && placement.device == Device::Cpu;
        let shared = is_kept_here.then(|| SharedWeights::of(weights.origin(), placement.device)).flatten();
        let shared = shared.map(|shared| Rc::new(RefCell::new(shared)));
        Ok(Self { weights: Arc::new(weights), sources, shared, sites, placement, path: String::new() })
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

    /// Where the weights of this path go.
    pub fn placement(&self) -> Placement {
        match self.weights.keeping().is_in_fp32(&self.path) {
            true => Placement { kind: Kind::Float, ..self.placement },
            false => self.placement,
        }
    }

    /// Whether layers are to compute by slices.
    pub fn slicing(&self) -> bool {
        self.weights.keeping().slicing
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
        interrupt::check()?;
        let key = self.key(name);
        let tensor = self.weights.load(&key, shape, self.placement())?;
        Ok(self.sites.register_param(&key, tensor))
    }

    /// The tensor `weight` of `shape` at this path, where the weights go.
    pub(super) fn weight(&self, shape: &[i64]) -> Result<Tensor> {
        self.weights.load(&self.key("weight"), shape, self.placement())
    }

    /// Whether the weight at this path has the numbers of the weight of `shared`.
    pub(super) fn has_weight_of(&self, shared: &Site) -> Result<bool> {
        self.weights.are_equal(&self.key("weight"), &weight_key(shared))
    }

    /// The projection or table at this path with a `weight` that already exists, and stays.
    pub(super) fn put(&self, op: Op, weight: Tensor, bias: Option<Rc<Param>>) -> Rc<Site> {
        self.sites.register(&self.path, op, BaseWeight::Dense(weight), bias)
    }

    /// A tensor of no checkpoint, as [`Loader::param`] registers one.
    pub(super) fn put_param(&self, name: &str, tensor: Tensor) -> Rc<Param> {
        self.sites.register_param(&self.key(name), tensor)
    }

    /// `tensor` where the weights go.
    pub(super) fn placed(&self, tensor: Tensor) -> Tensor {
        self.placement.of(&tensor)
    }

    /// What is at this path and has the table of embeddings of `shared` for its weight, without a bias.
    pub(super) fn tied(&self, op: Op, shared: &Site, traits: SiteTraits) -> Result<Rc<Site>> {
        let weight = shared.with_weight(|table| match (op, table) {
            // A projection needs all rows.
            (Op::Linear, BaseWeight::Streamed(_)) => self.dense(&weight_key(shared), &table.shape(), Layout::AsStored),
            (_, BaseWeight::Streamed(table)) => Ok(BaseWeight::Streamed(table.clone())),
            _ => Ok(BaseWeight::Dense(table.dense(table.kind()))),
        })?;
        let traits = SiteTraits { tied_to: Some(shared.path().to_owned()), ..traits };
        Ok(self.sites.register_with(&self.path, op, weight, None, traits))
    }

    /// The projection at this path: `weight` of `shape`, as the checkpoint has it, and a bias of as many numbers as it has outputs.
    pub(super) fn site(&self, op: Op, shape: &[i64], bias: Bias, traits: SiteTraits) -> Result<Rc<Site>> {
        let layout = match op {
            Op::Conv2d(_) if shape[2] > 1 => Layout::ChannelsLast,
            _ if traits.transposed => Layout::Transposed,
            _ => Layout::AsStored,
        };
        let weight = self.shared(self.kept(op, shape, layout, &traits)?, layout)?;
        let bias = match bias {
            Bias::Yes => Some(self.param("bias", &weight.shape()[..1])?),
            Bias::No => None,
        };
        Ok(self.sites.register_with(&self.path, op, weight, bias, traits))
    }

    /// `weight` as other processes have it, unless it is mapped from its file, as they have it too, or is trained itself.
    fn shared(&self, weight: BaseWeight, layout: Layout) -> Result<BaseWeight> {
        let Some(shared) = self.shared.as_ref().filter(|_| !is_head(&self.path)) else { return Ok(weight) };
        let is_as_stored = weight.is_dense() && layout != Layout::ChannelsLast;
        match is_as_stored && self.weights.kind(&self.key("weight"))? == weight.kind() {
            true => Ok(weight),
            // What cannot be shared is this process' own.
            false => Ok(on_shared_host(&weight, layout, &mut shared.borrow_mut()).unwrap_or(weight)),
        }
    }

    /// The weight of the projection at this path as it is to be kept. Classifiers' heads stay as they are, as in bitsandbytes: they
    /// are small, and trained whole.
    fn kept(&self, op: Op, shape: &[i64], layout: Layout, traits: &SiteTraits) -> Result<BaseWeight> {
        interrupt::check()?;
        let key = self.key("weight");
        let Storage { quantize, streamed, .. } = self.weights.keeping().storage;
        if let Some(packed) = self.four_bit(&key, shape)? {
            return Ok(packed);
        }
        let is_inner = !is_head(&self.path) && !traits.output && !self.weights.keeping().is_in_fp32(&self.path);
        match (op, streamed) {
            _ if quantize.takes(op) && is_inner => self.quantised(&key, shape, layout),
            // A forward reads a few rows of it.
            (Op::Embedding, _) if streamed || (traits.waits_in_file && self.placement().device.is_cuda()) => {
                Ok(BaseWeight::Streamed(StreamedWeight::table(&self.weights, &key, shape, self.placement())?))
            }
            (_, true) if !is_head(&self.path) => self.dense(&key, shape, layout),
            _ => {
                let weight = layout.of(self.weight(shape)?);
                if layout == Layout::ChannelsLast {
                    self.weights.let_go(&key);
                }
                Ok(BaseWeight::Dense(weight))
            }
        }
    }

    /// What the file has in 4 bits already stays so.
    fn four_bit(&self, key: &str, shape: &[i64]) -> Result<Option<BaseWeight>> {
        let Storage { quantize, .. } = self.weights.keeping().storage;
        if !self.weights.is_four_bit(key) || self.weights.keeping().is_in_fp32(&self.path) {
            return Ok(None);
        }
        if !matches!(quantize, Quantize::None | Quantize::Nf4) {
            return Err(Error::file(
                self.weights.origin(),
                format!("is in 4 bits (NF4) already; leave ⟨quantize⟩ {} out", quantize.name()),
            ));
        }
        match &self.sources {
            None => self.weights.four_bit(key, shape, self.placement()),
            Some(sources) => Ok(StreamedWeight::four_bit(&self.weights, key, shape, self.placement(), sources)?
                .map(BaseWeight::Streamed)),
        }
    }

    /// Not quantised, from where such weights wait.
    fn dense(&self, key: &str, shape: &[i64], layout: Layout) -> Result<BaseWeight> {
        let placement = self.placement();
        match &self.sources {
            Some(sources) => {
                let weight = StreamedWeight::dense(&self.weights, key, shape, layout, placement, sources)?;
                Ok(BaseWeight::Streamed(weight))
            }
            None => Ok(BaseWeight::Dense(layout.of(self.weights.load(key, shape, placement)?))),
        }
    }

    /// From the file's own dtype, as bitsandbytes does. Where it is to wait elsewhere it is made on the host.
    fn quantised(&self, key: &str, shape: &[i64], layout: Layout) -> Result<BaseWeight> {
        let Placement { device, kind } = self.placement();
        let device = if self.sources.is_some() { Device::Cpu } else { device };
        let of_file = Placement { device, kind: self.weights.kind(key)? };
        let weight = layout.of(self.weights.load(key, shape, of_file)?);
        let made = self.weights.keeping().storage.quantised(weight, kind)?;
        self.weights.let_go(key);
        match &self.sources {
            None => Ok(made),
            Some(sources) => {
                let waits = StreamedWeight::quantised(made, key, shape, layout, self.placement(), sources)?;
                Ok(BaseWeight::Streamed(waits))
            }
        }
    }
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
