//! Trained adapters apart from any model: what files hold.

use super::attach::{AdapterParams, Attached};
use super::base_model::Family;
use super::config::{LoraConfig, TargetModules};
use super::lora::{A, B, COLUMN_MAGNITUDE, EMBEDDING_A, EMBEDDING_B, MAGNITUDE};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The network of a pipeline that an adapter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// UNet2DConditionModel.
    UNet,
    /// CLIPTextModel.
    TextEncoder,
    /// Stable Diffusion XL's second text encoder, a CLIPTextModelWithProjection.
    TextEncoder2,
}

impl Part {
    /// All of them, in the order of files.
    pub const ALL: [Part; 3] = [Part::UNet, Part::TextEncoder, Part::TextEncoder2];

    /// Name of the part's folder, and prefix of its keys in diffusers' files.
    pub fn name(self) -> &'static str {
        match self {
            Part::UNet => "unet",
            Part::TextEncoder => "text_encoder",
            Part::TextEncoder2 => "text_encoder_2",
        }
    }

    /// The part of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    /// The part in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Part::UNet => "UNet",
            Part::TextEncoder => "text encoder",
            Part::TextEncoder2 => "second text encoder",
        }
    }

    /// Whether it is a text encoder.
    pub fn is_text_encoder(self) -> bool {
        self != Part::UNet
    }
}

/// One network's adapter: configuration, and tensors by PEFT's names without `base_model.model.` (and without CLIP's
/// `text_model.`), such as `mid_block.attentions.0.proj_in.lora_A.weight`.
#[derive(Debug)]
pub struct PartAdapter {
    /// Its configuration.
    pub config: LoraConfig,
    /// Its tensors.
    pub tensors: BTreeMap<String, Tensor>,
}

impl PartAdapter {
    /// The adapter on a model, sharing its tensors.
    pub fn of(attached: &Attached) -> Self {
        Self::new(attached.config.clone(), &attached.params)
    }

    /// An adapter of these tensors, shared.
    pub fn new(config: LoraConfig, params: &AdapterParams) -> Self {
        let tensors = params.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        Self { config, tensors }
    }

    /// Paths of the modules that have a low-rank pair, sorted.
    pub fn modules(&self) -> Vec<String> {
        self.modules_with(A)
    }

    /// Paths of the embeddings that have one, sorted.
    pub fn embeddings(&self) -> Vec<String> {
        self.modules_with(EMBEDDING_A)
    }

    fn modules_with(&self, end: &str) -> Vec<String> {
        self.tensors.keys().filter_map(|name| name.strip_suffix(end)).map(str::to_owned).collect()
    }

    /// Names of tensors that are of no projection's low-rank pair: biases and saved modules, which are trained whole, and
    /// embeddings' pairs. Formats for projections alone have no place for them.
    pub fn whole_tensors(&self) -> Vec<String> {
        self.tensors.keys().filter(|name| !is_of_projection(name)).cloned().collect()
    }

    /// Whether a DoRA's magnitudes are of input columns, for which PEFT's and diffusers' files have no place.
    pub fn has_column_magnitudes(&self) -> bool {
        self.tensors.keys().any(|name| name.ends_with(COLUMN_MAGNITUDE))
    }

    /// Itself, or why it cannot be used: A without B, ranks that do not fit each other.
    pub fn checked(self) -> Result<Self> {
        for (a_end, b_end) in [(A, B), (EMBEDDING_A, EMBEDDING_B)] {
            let lacks = |name: &String| Error::invalid(format!("the adapter has no `{name}`; is it whole?"));
            for module in self.modules_with(b_end) {
                let a_name = format!("{module}{a_end}");
                self.tensors.get(&a_name).ok_or_else(|| lacks(&a_name))?;
            }
            for module in self.modules_with(a_end) {
                let b_name = format!("{module}{b_end}");
                let (a, b) = (&self.tensors[&format!("{module}{a_end}")], self.tensors.get(&b_name));
                let (b, rank) = (b.ok_or_else(|| lacks(&b_name))?, self.config.rank_of(&module));
                if a.numel() == 0 || b.numel() == 0 {
                    return Err(Error::invalid(format!("the adapter's `{module}` has rank 0; is it whole?")));
                }
                if a.dim() < 2 || b.dim() < 2 || a.size()[0] != b.size()[1] || a.size()[0] != rank {
                    return Err(Error::invalid(format!(
                        "the adapter's `{module}` has A {:?} and B {:?}, and its configuration the rank {rank}",
                        a.size(),
                        b.size()
                    )));
                }
            }
        }
        match self.tensors.is_empty() {
            true => Err(Error::invalid("the adapter has no tensors")),
            false => Ok(self),
        }
    }

    /// Whether `other` has the same configuration and the same numbers.
    fn is_same_as(&self, other: &Self) -> bool {
        let alike = |((a_name, a), (b_name, b)): ((&String, &Tensor), (&String, &Tensor))| {
            a_name == b_name && a.kind() == b.kind() && a.size() == b.size() && a.equal(b)
        };
        self.config == other.config
            && self.tensors.len() == other.tensors.len()
            && std::iter::zip(&self.tensors, &other.tensors).all(alike)
    }

    /// The same adapter, with the same tensors.
    pub fn shallow_clone(&self) -> Self {
        let shared = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
        Self { config: self.config.clone(), tensors: self.tensors.iter().map(shared).collect() }
    }

    /// An adapter whose file has no configuration: ranks are read off the tensors, `alphas` (by module) default to
    /// them, and the targets are the modules that are there.
    pub fn inferred(tensors: BTreeMap<String, Tensor>, alphas: &BTreeMap<String, f64>) -> Result<Self> {
        let mut adapter = Self { config: LoraConfig::default(), tensors };
        let modules = adapter.modules();
        let ranks: BTreeMap<String, i64> = modules
            .iter()
            .map(|module| (module.clone(), adapter.tensors[&format!("{module}{A}")].size()))
            .map(|(module, shape)| (module, shape.first().copied().unwrap_or(0)))
            .collect();
        let alpha_of = |module: &String| alphas.get(module).copied().unwrap_or(ranks[module] as f64);
        let r = most_common(ranks.values().copied());
        // f64 has no order; the bits of positive numbers have the same one.
        let alpha = f64::from_bits(most_common(modules.iter().map(|module| alpha_of(module).to_bits())));
        let config = &mut adapter.config;
        (config.r, config.lora_alpha) = (r, alpha);
        config.rank_pattern = ranks.iter().filter(|(_, &rank)| rank != r).map(|(m, &rank)| (m.clone(), rank)).collect();
        config.alpha_pattern =
            modules.iter().map(|m| (m.clone(), alpha_of(m))).filter(|(_, one)| *one != alpha).collect();
        config.use_dora = adapter.tensors.keys().any(|n| n.ends_with(MAGNITUDE) || n.ends_with(COLUMN_MAGNITUDE));
        config.target_modules = Some(TargetModules::Names(modules));
        adapter.checked()
    }
}

/// Whether the tensor `name` is of a projection's low-rank pair.
pub(super) fn is_of_projection(name: &str) -> bool {
    name.contains(".lora_") && !name.contains(".lora_embedding_")
}

/// The value that is there most often; of several the least.
pub(super) fn most_common<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value).unwrap_or_default()
}

/// The adapters of a pipeline.
#[derive(Debug, Default)]
pub struct AdapterSet {
    /// Each network's.
    adapters: BTreeMap<Part, PartAdapter>,
    /// The generation of models that it was made for, where its shapes or its file say it.
    pub family: Option<Family>,
    /// How the keys of its file are spelled, of files in which they can be spelled in many ways.
    pub spelling: Option<String>,
    /// What a user should know about what was read.
    pub warnings: Vec<String>,
}

impl AdapterSet {
    /// The adapter of `part`.
    pub fn part(&self, part: Part) -> Option<&PartAdapter> {
        self.adapters.get(&part)
    }

    /// The same, to be changed.
    pub fn part_mut(&mut self, part: Part) -> Option<&mut PartAdapter> {
        self.adapters.get_mut(&part)
    }

    /// All of them, to be changed.
    pub fn adapters_mut(&mut self) -> impl Iterator<Item = &mut PartAdapter> {
        self.adapters.values_mut()
    }

    /// Puts the adapter of `part` in its place.
    pub fn set(&mut self, part: Part, adapter: PartAdapter) {
        self.adapters.insert(part, adapter);
    }

    /// The parts that have an adapter.
    pub fn parts(&self) -> impl Iterator<Item = (Part, &PartAdapter)> {
        self.adapters.iter().map(|(part, adapter)| (*part, adapter))
    }

    /// Whether `other` changes a model in the very same way.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Part::ALL.into_iter().all(|part| match (self.part(part), other.part(part)) {
            (Some(a), Some(b)) => a.is_same_as(b),
            (a, b) => a.is_none() && b.is_none(),
        })
    }

    /// Names, with their part, of tensors that only PEFT's folders can hold.
    pub fn whole_tensors(&self) -> Vec<String> {
        let named = |(part, adapter): (Part, &PartAdapter)| {
            adapter.whole_tensors().into_iter().map(move |name| format!("{}.{name}", part.name()))
        };
        self.parts().flat_map(named).collect()
    }

    /// Whether a part is DoRA, whose norms some programs leave out when they read them from a file of low-rank pairs.
    pub fn uses_dora(&self) -> bool {
        self.parts().any(|(_, adapter)| adapter.config.use_dora)
    }

    /// What to tell a user about tensors that the file `path`, of a format for low-rank pairs alone, lacks.
    pub fn left_out_warning(&self, path: &Path) -> Option<String> {
        let whole = self.whole_tensors();
        let first = whole.first()?;
        Some(format!(
            "{} lacks {} trained biases, whole weights and embeddings (such as {first}), for which its format has no place: use PEFT's folders where they matter",
            path.display(),
            whole.len()
        ))
    }
}
