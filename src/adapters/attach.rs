//! Puts an adapter of a configuration on a model: the adapters of its sites, the biases and modules trained whole.

use super::adapter::{Init, Method, METHODS};
use super::config::{is_within, pattern_matches, Bias, LoraConfig};
use super::site::Sites;
use super::targets::{matching_sites, TargetRules};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

/// Everything that one adapter trains: full name in PEFT's files (without `base_model.model.`) to a float32 leaf. The
/// optimizer's list and the adapter file are this one object.
pub type AdapterParams = BTreeMap<String, Tensor>;

/// An adapter on a model.
pub struct Attached {
    /// Its configuration.
    pub config: LoraConfig,
    /// What it trains.
    pub params: AdapterParams,
    /// Paths of the modules that have it.
    pub targets: Vec<String>,
    /// Frozen numbers of the model that it is on.
    pub base_elements: i64,
}

impl Attached {
    /// Number of trained numbers.
    pub fn trainable(&self) -> i64 {
        self.params.values().map(|param| param.numel() as i64).sum()
    }

    /// PEFT's `print_trainable_parameters` line.
    pub fn summary(&self) -> String {
        trainable_summary(self.trainable(), self.base_elements)
    }
}

/// PEFT's `print_trainable_parameters` line for `trainable` numbers beside `frozen` ones.
pub(super) fn trainable_summary(trainable: i64, frozen: i64) -> String {
    let all = frozen + trainable;
    let share = 100.0 * trainable as f64 / all as f64;
    format!(
        "trainable params: {} || all params: {} || trainable%: {share:.4}",
        with_commas(trainable),
        with_commas(all)
    )
}

/// Puts an adapter called `name` on the model behind `sites`, with numbers from `init`.
pub fn attach(sites: &Sites, name: &str, config: LoraConfig, init: Init) -> Result<Attached> {
    // Files are mapped and cannot be written to; what an optimizer steps on is memory of its own.
    let copies: BTreeMap<String, Tensor>;
    let mut init = match init {
        Init::Tensors(tensors) => {
            copies = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
            Init::Tensors(&copies)
        }
        Init::Draw(generator) => Init::Draw(generator),
    };
    let mut config = config.checked()?;
    let method = method_of(&config.peft_type)?;
    let matching = matching_sites(sites, &config)?;
    let mut params = AdapterParams::new();
    let mut targets = Vec::new();
    let mut made = Vec::new();
    // Nothing is put on before everything was made: a failure leaves the model as it was.
    for site in matching.into_iter().filter(|site| !config.saves_whole(site.path())) {
        let (adapter, trained) = (method.make)(&site, &config, &mut init)?;
        params.extend(trained);
        targets.push(site.path().to_owned());
        made.push((site, adapter));
    }
    if made.is_empty() {
        return Err(Error::invalid(
            "modules_to_save has all that the targets name, so that no module gets an adapter; leave some out of it",
        ));
    }
    match &init {
        Init::Tensors(tensors) => check_all_used(sites, tensors, &params)?,
        Init::Draw(_) => check_all_meant(sites, &config, &targets)?,
    }
    // As PEFT corrects it: the modules say how their weights are kept.
    config.fan_in_fan_out = made.iter().any(|(site, _)| site.traits().transposed);
    for (site, adapter) in made {
        site.put(name, adapter);
    }
    let given = |key: &str| match &init {
        Init::Draw(_) => None,
        Init::Tensors(tensors) => tensors.get(key).map(Tensor::shallow_clone),
    };
    params.extend(train_whole(sites, config.modules_to_save.as_deref(), given));
    for param in sites.params() {
        let module = module_of(param.key());
        let is_bias = param.key().ends_with(".bias");
        let on_target = targets.binary_search_by(|path| path.as_str().cmp(module)).is_ok();
        let trained = match config.bias {
            Bias::None => false,
            Bias::All => is_bias,
            Bias::LoraOnly => is_bias && on_target,
        };
        if trained && !config.saves_whole(module) {
            let key = file_key(param.key(), module, on_target);
            params.insert(key.clone(), param.train(given(&key)));
        }
    }
    Ok(Attached { config, params, targets, base_elements: sites.elements() })
}

/// Has `modules` (`modules_to_save`) trained whole, from what is `given` or from the model's own numbers: the leaves, by
/// their names in files.
pub(super) fn train_whole(
    sites: &Sites,
    modules: Option<&[String]>,
    given: impl Fn(&str) -> Option<Tensor>,
) -> AdapterParams {
    let is_whole = |path: &str| modules.into_iter().flatten().any(|module| is_within(path, module));
    let mut params = AdapterParams::new();
    for site in sites.all().iter().filter(|site| is_whole(site.path())) {
        let key = format!("{}.weight", site.path());
        params.insert(key.clone(), site.train_weight(given(&key)));
    }
    for param in sites.params().iter().filter(|param| is_whole(module_of(param.key()))) {
        params.insert(param.key().to_owned(), param.train(given(param.key())));
    }
    params
}

/// The module that a parameter is of.
fn module_of(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(module, _)| module)
}

/// Refuses names in the configuration of a new adapter that are of no module: a slip of the pen costs no training run.
fn check_all_meant(sites: &Sites, config: &LoraConfig, targets: &[String]) -> Result<()> {
    let refuse = |field: &str, name: &str, what: &str| Err(Error::invalid(format!("{field}: `{name}` is {what}")));
    let on_target = |key: &str| targets.iter().any(|path| pattern_matches(key, path));
    for (field, key) in (config.rank_pattern.keys().map(|key| ("rank_pattern", key)))
        .chain(config.alpha_pattern.keys().map(|key| ("alpha_pattern", key)))
    {
        if !on_target(key) {
            return refuse(field, key, "no module that gets an adapter; see the targets");
        }
    }
    let rules = TargetRules::new(config)?;
    if config.exclude_modules.is_some() && !sites.all().iter().any(|site| rules.exclude(site.path(), site.op())) {
        return Err(Error::invalid("exclude_modules excludes none of the targets; leave it out, or see its spelling"));
    }
    let params = sites.params();
    let holds = |name: &str| {
        let modules = params.iter().filter_map(|param| param.key().rsplit_once('.')).map(|(module, _)| module);
        sites.all().iter().any(|site| is_within(site.path(), name)) || modules.into_iter().any(|m| is_within(m, name))
    };
    for name in config.modules_to_save.iter().flatten() {
        if name.is_empty() || !holds(name) {
            return refuse("modules_to_save", name, "no module of the model");
        }
    }
    Ok(())
}

/// Refuses tensors that have no place in the model: an adapter that is applied in part looks like one that is not trained.
pub(super) fn check_all_used(sites: &Sites, tensors: &BTreeMap<String, Tensor>, made: &AdapterParams) -> Result<()> {
    for (name, tensor) in tensors.iter().filter(|(name, _)| !made.contains_key(*name)) {
        let key = name.replace(".base_layer.", ".");
        let weight = key.strip_suffix(".weight").and_then(|path| sites.get(path)).map(|site| site.stored_shape());
        let shape = weight.or_else(|| sites.params().iter().find(|p| p.key() == key).map(|p| p.get().size()));
        match shape {
            Some(shape) if !name.contains(".lora_") && shape == tensor.size() => {}
            _ => {
                return Err(Error::invalid(format!(
                    "the adapter does not fit this model, which has no place for its `{name}` {:?}",
                    tensor.size()
                )))
            }
        }
    }
    Ok(())
}

/// PEFT wraps a target, so the bias of one is its `base_layer`'s.
fn file_key(key: &str, module: &str, on_target: bool) -> String {
    match on_target {
        true => format!("{module}.base_layer.bias"),
        false => key.to_owned(),
    }
}

fn method_of(peft_type: &str) -> Result<&'static Method> {
    METHODS.iter().find(|method| method.peft_type == peft_type).ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|method| method.peft_type).collect();
        Error::invalid(format!("adapters of type {peft_type} are not supported; these are: {}", known.join(", ")))
    })
}

/// `1234567` as `1,234,567`.
pub fn with_commas(number: i64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{InitWeights, TargetModules};
    use crate::libtorch::random::Generator;
    use crate::weights::{BaseWeight, Layout, Op, Placement, Quantize, Sources, Storage, StreamedWeight, Stride};
    use clap::ValueEnum;
    use std::rc::Rc;
    use tch::{Device, Kind};

    /// A linear site and a convolution with biases, and an input for each.
    fn model() -> (Rc<Sites>, Tensor, Tensor) {
        kept(Storage::default())
    }

    /// The same with weights that are kept so.
    fn kept(storage: Storage) -> (Rc<Sites>, Tensor, Tensor) {
        let mut generator = Generator::new(5);
        let mut randn = |shape: &[i64]| generator.randn(shape);
        let sites = Sites::new();
        let sources = Sources::of(Device::Cpu, std::path::Path::new("")).unwrap();
        let placement = Placement { device: Device::Cpu, kind: Kind::Float };
        let weight = |op: Op, weight: Tensor| {
            let (shape, quantize) = (weight.size(), storage.quantize);
            let bits = if quantize.takes(op) { storage } else { Storage::default() };
            let made = bits.quantised(weight, Kind::Float).unwrap();
            match storage.streamed {
                true => {
                    let streamed =
                        StreamedWeight::quantised(made, "w", &shape, Layout::AsStored, placement, &sources).unwrap();
                    BaseWeight::Streamed(streamed)
                }
                false => made,
            }
        };
        let bias = sites.register_param("block.proj.bias", randn(&[6]));
        sites.register("block.proj", Op::Linear, weight(Op::Linear, randn(&[6, 4])), Some(bias));
        let bias = sites.register_param("block.conv.bias", randn(&[5]));
        let op = Op::Conv2d(Stride { stride: 2, padding: 1 });
        sites.register("block.conv", op, weight(op, randn(&[5, 3, 3, 3])), Some(bias));
        (sites, randn(&[2, 7, 4]), randn(&[2, 3, 8, 8]))
    }

    fn storages() -> Vec<Storage> {
        let waits = |quantize: &Quantize| [false, true].map(|streamed| Storage { streamed, ..(*quantize).into() });
        Quantize::value_variants().iter().flat_map(waits).collect()
    }

    fn config(change: impl Fn(&mut LoraConfig)) -> LoraConfig {
        let mut config = LoraConfig {
            r: 3,
            lora_alpha: 5.0,
            target_modules: Some(TargetModules::from_flag("proj,conv")),
            ..Default::default()
        };
        change(&mut config);
        config
    }

    fn variants() -> Vec<LoraConfig> {
        vec![
            config(|_| {}),
            config(|c| c.use_rslora = true),
            config(|c| c.use_dora = true),
            config(|c| c.init_lora_weights = InitWeights::Gaussian),
        ]
    }

    /// Every method on every storage.
    fn each() -> impl Iterator<Item = (LoraConfig, Storage)> {
        variants().into_iter().flat_map(|config| storages().into_iter().map(move |storage| (config.clone(), storage)))
    }

    fn outputs(sites: &Sites, xs: &Tensor, image: &Tensor) -> (Tensor, Tensor) {
        (sites.get("block.proj").unwrap().forward(xs), sites.get("block.conv").unwrap().forward(image))
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        f64::try_from((a - b).abs().max()).unwrap() < 1e-4
    }

    #[test]
    fn a_fresh_adapter_does_not_change_the_output() {
        for (config, storage) in each() {
            let (sites, xs, image) = kept(storage);
            let before = outputs(&sites, &xs, &image);
            attach(&sites, "a", config, Init::Draw(&mut Generator::new(1))).unwrap();
            let after = outputs(&sites, &xs, &image);
            assert!(close(&before.0, &after.0) && close(&before.1, &after.1));
        }
    }

    #[test]
    fn gradients_reach_exactly_the_adapter() {
        for (config, storage) in each() {
            let (sites, xs, image) = kept(storage);
            let attached = attach(&sites, "a", config, Init::Draw(&mut Generator::new(1))).unwrap();
            let (ys, conv) = outputs(&sites, &xs, &image);
            (ys.square().sum(Kind::Float) + conv.square().sum(Kind::Float)).backward();
            for (name, param) in &attached.params {
                assert!(param.grad().defined(), "{name} has no gradient");
            }
            for site in sites.all() {
                assert!(!site.with_weight(|weight| weight.dense(Kind::Float).requires_grad()));
            }
        }
    }

    #[test]
    fn the_forward_equals_the_merged_forward_and_unmerging_gives_the_same_bits_back() {
        for mut config in variants() {
            config.init_lora_weights = InitWeights::Drawn;
            let (sites, xs, image) = model();
            let base = outputs(&sites, &xs, &image);
            attach(&sites, "a", config, Init::Draw(&mut Generator::new(1))).unwrap();
            let adapted = outputs(&sites, &xs, &image);
            assert!(!close(&base.0, &adapted.0) && !close(&base.1, &adapted.1));
            sites.merge();
            let merged = outputs(&sites, &xs, &image);
            assert!(close(&adapted.0, &merged.0) && close(&adapted.1, &merged.1));
            sites.unmerge();
            assert_eq!(outputs(&sites, &xs, &image), adapted);
            sites.set_enabled(false);
            assert_eq!(outputs(&sites, &xs, &image), base);
        }
    }

    /// Merged is the dense weight that the codes stand for.
    #[test]
    fn on_every_storage_the_forward_equals_that_of_the_merged_weight() {
        for (mut config, storage) in each() {
            config.init_lora_weights = InitWeights::Drawn;
            let (sites, xs, image) = kept(storage);
            attach(&sites, "a", config, Init::Draw(&mut Generator::new(1))).unwrap();
            let adapted = outputs(&sites, &xs, &image);
            for (path, xs, ys) in [("block.proj", &xs, &adapted.0), ("block.conv", &image, &adapted.1)] {
                let site = sites.get(path).unwrap();
                let merged = site.op().run(xs, &site.merged_weight(), Some(&site.bias().unwrap().get()));
                // Int8 rounds its input too.
                let bound = if storage.quantize == Quantize::Int8 && site.op() == Op::Linear { 0.03 } else { 1e-4 };
                let error = f64::try_from((ys - &merged).abs().max() / merged.abs().max()).unwrap();
                assert!(error < bound, "{path} in {storage:?}: {error}");
            }
        }
    }

    #[test]
    fn two_adapters_add_up_at_their_scales() {
        let (sites, xs, image) = model();
        let base = outputs(&sites, &xs, &image).0;
        let drawn = || config(|c| c.init_lora_weights = InitWeights::Drawn);
        attach(&sites, "a", drawn(), Init::Draw(&mut Generator::new(1))).unwrap();
        let with_a = outputs(&sites, &xs, &image).0;
        attach(&sites, "b", drawn(), Init::Draw(&mut Generator::new(2))).unwrap();
        sites.set_scale("a", 0.0).unwrap();
        let with_b = outputs(&sites, &xs, &image).0;
        sites.set_scale("a", 0.5).unwrap();
        let mixed = outputs(&sites, &xs, &image).0;
        assert!(close(&mixed, &(&with_b + (&with_a - &base) * 0.5)));
        sites.remove("b");
        sites.set_scale("a", 1.0).unwrap();
        assert!(close(&outputs(&sites, &xs, &image).0, &with_a));
    }

    #[test]
    fn an_adapter_read_from_its_own_tensors_computes_the_same() {
        for mut config in variants() {
            config.init_lora_weights = InitWeights::Drawn;
            config.bias = Bias::All;
            let (sites, xs, image) = model();
            let attached = attach(&sites, "a", config.clone(), Init::Draw(&mut Generator::new(1))).unwrap();
            tch::no_grad(|| attached.params.values().for_each(|param| _ = param.shallow_clone().g_mul_scalar_(1.5)));
            let first = outputs(&sites, &xs, &image);
            let (again, xs, image) = model();
            attach(&again, "a", config, Init::Tensors(&attached.params)).unwrap();
            assert_eq!(outputs(&again, &xs, &image), first);
        }
    }

    #[test]
    fn an_adapter_of_another_shape_is_refused_and_leaves_the_model_alone() {
        let (sites, xs, image) = model();
        let before = outputs(&sites, &xs, &image);
        let attached = attach(&sites, "a", config(|_| {}), Init::Draw(&mut Generator::new(1))).unwrap();
        sites.clear();
        let error = attach(&sites, "b", config(|c| c.r = 2), Init::Tensors(&attached.params)).err().unwrap();
        assert!(error.to_string().contains("does not fit"), "{error}");
        assert_eq!(outputs(&sites, &xs, &image), before);
    }

    #[test]
    fn counts_are_printed_as_peft_prints_them() {
        let (sites, ..) = model();
        let attached = attach(&sites, "a", config(|c| c.r = 100), Init::Draw(&mut Generator::new(1))).unwrap();
        // proj: 100·(4 + 6); conv: 100·(27 + 5); base: 24 + 6 + 135 + 5.
        assert_eq!(attached.summary(), "trainable params: 4,200 || all params: 4,370 || trainable%: 96.1098");
    }
}
