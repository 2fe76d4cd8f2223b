//! The places of a model where adapters attach, and the registry of all that a model loaded.

use super::adapter::Adapter;
use super::probe::Probe;
use super::projections::{self, LowRank};
use crate::error::{Error, Result};
use crate::libtorch::failure::or_panic;
use crate::libtorch::low_rank::Factors;
use crate::libtorch::upload::upload;
use crate::weights::{BaseWeight, Op};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A tensor of the model that is frozen unless an adapter's configuration has it trained whole (`bias`,
/// `modules_to_save`).
pub struct Param {
    key: String,
    frozen: Tensor,
    trained: RefCell<Option<Tensor>>,
}

impl Param {
    pub(crate) fn new(key: String, frozen: Tensor) -> Self {
        Self { key, frozen, trained: RefCell::new(None) }
    }

    /// The checkpoint's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What a forward computes with: the trained tensor where there is one, in the compute dtype.
    pub fn get(&self) -> Tensor {
        match &*self.trained.borrow() {
            Some(trained) => trained.to_kind(self.frozen.kind()),
            None => self.frozen.shallow_clone(),
        }
    }

    /// A float32 leaf that takes the frozen tensor's place from now on; starts from `value` where given.
    pub(crate) fn train(&self, value: Option<Tensor>) -> Tensor {
        let start = value.unwrap_or_else(|| self.frozen.to_kind(Kind::Float).copy());
        let leaf = start.to_device(self.frozen.device()).to_kind(Kind::Float).detach().set_requires_grad(true);
        *self.trained.borrow_mut() = Some(leaf.shallow_clone());
        leaf
    }

    /// The frozen tensor is used again.
    pub(crate) fn freeze(&self) {
        *self.trained.borrow_mut() = None;
    }
}

/// What is true of some projections beside their path and weight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteTraits {
    /// The checkpoint keeps the weight as `[in, out]`: GPT-2's Conv1D, PEFT's `fan_in_fan_out`.
    pub transposed: bool,
    /// It gives a language model's logits; PEFT leaves it out of `all-linear`.
    pub output: bool,
    /// Path of the embedding whose weight it has, which is counted there.
    pub tied_to: Option<String>,
    /// A table of which few rows are read, none of them twice: it waits in its file for a GPU.
    pub waits_in_file: bool,
}

struct OnSite {
    name: String,
    adapter: Box<dyn Adapter>,
    scale: f64,
    enabled: bool,
}

/// One projection or table of a model: its frozen weight and the adapters on it.
pub struct Site {
    path: String,
    op: Op,
    traits: SiteTraits,
    weight: RefCell<BaseWeight>,
    trained_weight: RefCell<Option<Tensor>>,
    unmerged: RefCell<Option<BaseWeight>>,
    bias: Option<Rc<Param>>,
    adapters: RefCell<Vec<OnSite>>,
    training: Rc<Cell<bool>>,
    factors: Rc<Factors>,
    probe: Rc<RefCell<Option<Probe>>>,
}

impl Site {
    /// The module's path in the checkpoint.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the projection computes.
    pub fn op(&self) -> Op {
        self.op
    }

    /// What is true of it beside that.
    pub fn traits(&self) -> &SiteTraits {
        &self.traits
    }

    /// `[out, in]` as the checkpoint keeps it, or the other way round.
    pub(crate) fn stored(&self, weight: &Tensor) -> Tensor {
        match self.traits.transposed {
            true => weight.tr(),
            false => weight.shallow_clone(),
        }
    }

    /// Shape of the weight: `[out, in]` or `[out, in, k, k]`.
    pub fn shape(&self) -> Vec<i64> {
        self.weight.borrow().shape()
    }

    /// Shape of the weight in the checkpoint.
    pub(crate) fn stored_shape(&self) -> Vec<i64> {
        let mut shape = self.shape();
        if self.traits.transposed {
            shape.reverse();
        }
        shape
    }

    /// The bias, where the projection has one.
    pub fn bias(&self) -> Option<&Rc<Param>> {
        self.bias.as_ref()
    }

    /// The model's low-rank factors.
    pub(super) fn factors(&self) -> &Factors {
        &self.factors
    }

    /// Whether dropout is on.
    pub fn training(&self) -> bool {
        self.training.get()
    }

    /// Reads the frozen weight.
    pub fn with_weight<T>(&self, read: impl FnOnce(&BaseWeight) -> T) -> T {
        read(&self.weight.borrow())
    }

    /// The projection of `xs` with every enabled adapter.
    /// Linear: `[.., in] -> [.., out]`; convolution: `[b, in, h, w] -> [b, out, h', w']`; embedding: `[..] -> [.., width]`.
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        match self.op {
            Op::Linear => Self::forward_all(&[self], xs).remove(0),
            _ => self.seen(xs, self.forward_flat(xs)),
        }
    }

    /// The projections of `xs` `[.., in]` by each of `sites`, which are linear: `[.., out]`.
    pub fn forward_all(sites: &[&Site], xs: &Tensor) -> Vec<Tensor> {
        // Rows are flattened once, so that adapters can add to the output in place.
        let mut shape = xs.size();
        let width = shape.pop().unwrap_or(1);
        let is_flat = shape.len() == 1;
        let rows = if is_flat { xs.shallow_clone() } else { xs.reshape([-1, width]) };
        let is_on_card = matches!(xs.device(), Device::Cuda(_)) && sites.iter().all(|site| site.computes_in(xs.kind()));
        let together = is_on_card.then(|| or_panic(projections::project(sites, &rows))).flatten();
        let outputs = together.unwrap_or_else(|| sites.iter().map(|site| site.forward_flat(&rows)).collect());
        let shaped = |ys: Tensor| match is_flat {
            true => ys,
            false => ys.view([&shape[..], &ys.size()[1..]].concat().as_slice()),
        };
        sites.iter().zip(outputs).map(|(site, ys)| site.seen(xs, shaped(ys))).collect()
    }

    /// `ys`, made of `xs`, which is looked at where numbers were lost.
    fn seen(&self, xs: &Tensor, ys: Tensor) -> Tensor {
        match &*self.probe.borrow() {
            None => ys,
            Some(probe) => probe.see(&self.path, xs, ys),
        }
    }

    /// Reads the frozen weight and bias of a linear projection, with the low-rank product that is all that is added to it. `None` where it is
    /// no such projection, or is more than that.
    pub(super) fn with_low_rank<T>(
        &self,
        read: impl FnOnce(&BaseWeight, Option<&Tensor>, Option<LowRank>) -> T,
    ) -> Option<T> {
        let bias = self.bias.as_ref().map(|bias| bias.get());
        let learns = self.trained_weight.borrow().is_some() || bias.as_ref().is_some_and(Tensor::requires_grad);
        if self.op != Op::Linear || learns {
            return None;
        }
        let adapters = self.adapters.borrow();
        let mut active = adapters.iter().filter(|on_site| on_site.enabled && on_site.scale != 0.0);
        let low_rank = match (active.next(), active.next()) {
            (None, _) => None,
            (Some(only), None) => {
                let low_rank = only.adapter.low_rank(self)?;
                Some(LowRank { factor: low_rank.factor * only.scale, ..low_rank })
            }
            _ => return None,
        };
        Some(read(&self.weight.borrow(), bias.as_ref(), low_rank))
    }

    /// `xs`, or ids where the table computes; one that waits on the host takes them there.
    fn placed(&self, xs: &Tensor, for_base: bool) -> Tensor {
        let weight = self.weight.borrow();
        let waits_on_host =
            for_base && matches!(*weight, BaseWeight::Streamed(_)) && self.trained_weight.borrow().is_none();
        match self.op == Op::Embedding && !waits_on_host {
            true => upload(xs, weight.device()),
            false => xs.shallow_clone(),
        }
    }

    fn forward_flat(&self, xs: &Tensor) -> Tensor {
        let wide;
        let xs = match self.op != Op::Embedding && self.weight.borrow().kind() == Kind::Float {
            // One in float32 among others in 16 bits; what is behind it computes as wide until a norm.
            true => {
                wide = xs.to_kind(Kind::Float);
                &wide
            }
            false => xs,
        };
        let bias = self.bias.as_ref().map(|bias| bias.get().to_kind(xs.kind()));
        let mut ys = match &*self.trained_weight.borrow() {
            Some(trained) => {
                let kind = if self.op == Op::Embedding { self.weight.borrow().kind() } else { xs.kind() };
                self.op.run(&self.placed(xs, true), &self.stored(trained).to_kind(kind), bias.as_ref())
            }
            None => self.weight.borrow().run(self.op, &self.placed(xs, true), bias.as_ref()),
        };
        for on_site in self.adapters.borrow().iter().filter(|on_site| on_site.enabled && on_site.scale != 0.0) {
            ys = on_site.adapter.forward(self, &self.placed(xs, false), ys, on_site.scale);
        }
        ys
    }

    /// Whether the projection computes in `kind`, and not in float32 among others in 16 bits.
    fn computes_in(&self, kind: Kind) -> bool {
        self.weight.borrow().kind() == kind
    }

    pub(crate) fn put(&self, name: &str, adapter: Box<dyn Adapter>) {
        let mut adapters = self.adapters.borrow_mut();
        adapters.retain(|on_site| on_site.name != name);
        adapters.push(OnSite { name: name.to_owned(), adapter, scale: 1.0, enabled: true });
    }

    /// A float32 leaf in place of the frozen weight (`modules_to_save`), in the checkpoint's shape as `value` is.
    pub(crate) fn train_weight(&self, value: Option<Tensor>) -> Tensor {
        let weight = self.weight.borrow();
        let start = value.unwrap_or_else(|| self.stored(&weight.dense(Kind::Float)).copy());
        let leaf = start.to_device(weight.device()).to_kind(Kind::Float).detach().set_requires_grad(true);
        *self.trained_weight.borrow_mut() = Some(leaf.shallow_clone());
        leaf
    }

    fn remove(&self, name: &str) {
        self.adapters.borrow_mut().retain(|on_site| on_site.name != name);
    }

    /// The weight with every enabled adapter folded in, in float32.
    pub fn merged_weight(&self) -> Tensor {
        let start = match &*self.trained_weight.borrow() {
            Some(trained) => self.stored(&trained.detach()),
            None => self.weight.borrow().dense(Kind::Float),
        };
        self.adapters
            .borrow()
            .iter()
            .filter(|on_site| on_site.enabled)
            .fold(start, |weight, on_site| on_site.adapter.merged(self, weight, on_site.scale))
    }

    /// Moves a weight that lies on a device.
    fn move_to(&self, device: Device) -> Result<()> {
        let moved = self.weight.borrow().moved_to(device)?;
        *self.weight.borrow_mut() = moved;
        Ok(())
    }

    fn has_enabled(&self) -> bool {
        self.adapters.borrow().iter().any(|on_site| on_site.enabled)
    }

    fn merge(&self) {
        // What waits elsewhere, or takes less memory than it would merged, stays so.
        if self.unmerged.borrow().is_some() || !self.has_enabled() || !self.weight.borrow().is_dense() {
            return;
        }
        let _no_grad = tch::no_grad_guard();
        let merged = self.merged_weight();
        let mut weight = self.weight.borrow_mut();
        let merged = BaseWeight::Dense(merged.to_kind(weight.kind()));
        *self.unmerged.borrow_mut() = Some(std::mem::replace(&mut *weight, merged));
        self.adapters.borrow_mut().iter_mut().for_each(|on_site| on_site.enabled = false);
    }

    /// Puts back the very weight that was there before the merge.
    fn unmerge(&self) {
        if let Some(original) = self.unmerged.borrow_mut().take() {
            *self.weight.borrow_mut() = original;
            self.adapters.borrow_mut().iter_mut().for_each(|on_site| on_site.enabled = true);
        }
    }
}

/// All that one model loaded, by path: what adapters, biases and saved modules attach to.
#[derive(Default)]
pub struct Sites {
    sites: RefCell<BTreeMap<String, Rc<Site>>>,
    params: RefCell<BTreeMap<String, Rc<Param>>>,
    elements: Cell<i64>,
    training: Rc<Cell<bool>>,
    factors: Rc<Factors>,
    probe: Rc<RefCell<Option<Probe>>>,
}

impl Sites {
    /// No sites yet.
    pub fn new() -> Rc<Self> {
        Rc::new(Self::default())
    }

    pub(crate) fn register(&self, path: &str, op: Op, weight: BaseWeight, bias: Option<Rc<Param>>) -> Rc<Site> {
        self.register_with(path, op, weight, bias, SiteTraits::default())
    }

    /// Like [`Sites::register`]; `weight` is `[out, in]` also where the checkpoint keeps it transposed.
    pub(crate) fn register_with(
        &self,
        path: &str,
        op: Op,
        weight: BaseWeight,
        bias: Option<Rc<Param>>,
        traits: SiteTraits,
    ) -> Rc<Site> {
        if traits.tied_to.is_none() {
            self.elements.set(self.elements.get() + weight.shape().iter().product::<i64>());
        }
        let site = Rc::new(Site {
            path: path.to_owned(),
            op,
            traits,
            weight: RefCell::new(weight),
            trained_weight: RefCell::new(None),
            unmerged: RefCell::new(None),
            bias,
            adapters: RefCell::new(Vec::new()),
            training: self.training.clone(),
            factors: self.factors.clone(),
            probe: self.probe.clone(),
        });
        self.sites.borrow_mut().insert(path.to_owned(), site.clone());
        site
    }

    pub(crate) fn register_param(&self, key: &str, tensor: Tensor) -> Rc<Param> {
        self.elements.set(self.elements.get() + tensor.numel() as i64);
        let param = Rc::new(Param::new(key.to_owned(), tensor));
        self.params.borrow_mut().insert(key.to_owned(), param.clone());
        param
    }

    /// Number of frozen numbers in the model.
    pub fn elements(&self) -> i64 {
        self.elements.get()
    }

    /// What [`Sites::set_training`] sets, for layers to look at.
    pub(crate) fn training_flag(&self) -> Rc<Cell<bool>> {
        self.training.clone()
    }

    /// Turns dropout on or off.
    pub fn set_training(&self, training: bool) {
        self.training.set(training);
    }

    /// Has every projection look for numbers that are none, or none any more.
    pub fn look_with(&self, probe: Option<Probe>) {
        *self.probe.borrow_mut() = probe;
    }

    /// All sites, by path.
    pub fn all(&self) -> Vec<Rc<Site>> {
        self.sites.borrow().values().cloned().collect()
    }

    /// The site at `path`.
    pub fn get(&self, path: &str) -> Option<Rc<Site>> {
        self.sites.borrow().get(path).cloned()
    }

    /// All parameters that are no site's weight (biases, norms), by key.
    pub fn params(&self) -> Vec<Rc<Param>> {
        self.params.borrow().values().cloned().collect()
    }

    /// Trains the model itself: a float32 leaf in place of each weight, bias, norm and embedding whose checkpoint key
    /// `which` accepts, by that key. Layers that share an embedding share its leaf.
    pub fn train_weights(&self, which: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
        let mut leaves = BTreeMap::new();
        let key = |path: &str| format!("{path}.weight");
        let (tied, own): (Vec<_>, Vec<_>) = self.all().into_iter().partition(|site| site.traits.tied_to.is_some());
        for site in own.iter().filter(|site| which(&key(site.path()))) {
            leaves.insert(key(site.path()), site.train_weight(None));
        }
        for site in tied {
            let leaf = site.traits.tied_to.as_deref().and_then(|path| leaves.get(&key(path)));
            *site.trained_weight.borrow_mut() = leaf.map(Tensor::shallow_clone);
        }
        for param in self.params().iter().filter(|param| which(param.key())) {
            leaves.insert(param.key().to_owned(), param.train(None));
        }
        leaves
    }

    fn on_adapters(&self, name: Option<&str>, change: impl Fn(&mut OnSite)) -> bool {
        let mut found = false;
        for site in self.all() {
            for on_site in site.adapters.borrow_mut().iter_mut() {
                if name.is_none_or(|name| on_site.name == name) {
                    change(on_site);
                    found = true;
                }
            }
        }
        found
    }

    /// Sets the strength of the adapter `name`: 1 is as trained, 0 is off.
    pub fn set_scale(&self, name: &str, scale: f64) -> Result<()> {
        match self.on_adapters(Some(name), |on_site| on_site.scale = scale) {
            true => Ok(()),
            false => Err(Error::invalid(format!("no adapter `{name}` is loaded"))),
        }
    }

    /// Moves the weights to host memory, where nothing computes with them, until [`Sites::unpark`].
    pub fn park(&self) -> Result<()> {
        self.all().iter().try_for_each(|site| site.move_to(Device::Cpu))
    }

    /// Moves them back to `device`.
    pub fn unpark(&self, device: Device) -> Result<()> {
        self.all().iter().try_for_each(|site| site.move_to(device))
    }

    /// Turns every adapter on or off.
    pub fn set_enabled(&self, enabled: bool) {
        self.on_adapters(None, |on_site| on_site.enabled = enabled);
    }

    /// Takes the adapter `name` off.
    pub fn remove(&self, name: &str) {
        self.all().iter().for_each(|site| site.remove(name));
    }

    /// Takes everything trained off: all adapters, trained biases and saved modules.
    pub fn clear(&self) {
        for site in self.all() {
            site.adapters.borrow_mut().clear();
            *site.trained_weight.borrow_mut() = None;
        }
        self.params().iter().for_each(|param| param.freeze());
    }

    /// Folds every enabled adapter into its weight, but for weights that wait in host memory or are kept in few bits: a forward then
    /// costs what the base model's costs.
    pub fn merge(&self) {
        self.all().iter().for_each(|site| site.merge());
    }

    /// Undoes [`Sites::merge`], to the same bits as before.
    pub fn unmerge(&self) {
        self.all().iter().for_each(|site| site.unmerge());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_trained_are_leaves_and_the_others_stay_frozen() {
        let sites = Sites::new();
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::BFloat16, Device::Cpu));
        let bias = sites.register_param("a.bias", ones(&[3]));
        let a = sites.register("a", Op::Linear, BaseWeight::Dense(ones(&[3, 2])), Some(bias));
        let b = sites.register("b", Op::Linear, BaseWeight::Dense(ones(&[2, 3])), None);
        let leaves = sites.train_weights(|key| key.starts_with("a."));
        assert_eq!(leaves.keys().collect::<Vec<_>>(), ["a.bias", "a.weight"]);

        b.forward(&a.forward(&ones(&[4, 2]))).sum(Kind::Float).backward();
        for leaf in leaves.values() {
            assert_eq!((leaf.kind(), leaf.grad().kind()), (Kind::Float, Kind::Float));
            // Each of 4 rows goes into 2 outputs.
            assert_eq!(leaf.grad(), leaf.ones_like() * 8.0);
        }
        assert!(b.with_weight(|weight| !weight.dense(Kind::BFloat16).requires_grad()));
    }
}
