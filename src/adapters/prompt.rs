//! What is trained in front of texts while the model stays as it is: virtual tokens among the embeddings, or keys and
//! values before those of the text (PEFT's prompt learning). Reference: peft `peft_model.py`.
//!
//! Shapes: n virtual tokens, w width of the embeddings, h heads of keys and values, d width of a head.

use super::adapter::Init;
use super::attach::{check_all_used, train_whole, trainable_summary, AdapterParams};
use super::prompt_config::PromptConfig;
use super::site::Sites;
use super::{p_tuning, prefix_tuning, prompt_tuning};
use crate::error::{Error, Result};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// What the names of an encoder's tensors start with.
pub(super) const ENCODER: &str = "prompt_encoder.";
/// The table that every encoder begins with.
pub(super) const TABLE: &str = "prompt_encoder.embedding.weight";

/// How virtual tokens come from what is trained.
pub trait PromptEncoder {
    /// PEFT's `prompt_embeddings`: a row for each virtual token, float32. Dropout is on where `training`.
    fn forward(&self, training: bool) -> Tensor;
}

/// Where virtual tokens stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptPlace {
    /// Among the embeddings, before the text's.
    Embeddings,
    /// In the place of a text's keys and values, in every transformer block.
    KeyValues,
}

/// A kind of prompt: a name in `adapter_config.json`, and how one is made.
#[derive(Debug)]
pub struct PromptMethod {
    /// PEFT's `peft_type`.
    pub peft_type: &'static str,
    /// Its name in words.
    pub name: &'static str,
    /// Where its virtual tokens stand.
    pub place: PromptPlace,
    /// Makes its encoder from the tensors that it asks for.
    pub make: fn(&PromptConfig, &mut EncoderTensors) -> Result<Box<dyn PromptEncoder>>,
}

/// All methods that put something in front of texts.
pub static PROMPT_METHODS: &[PromptMethod] = &[prompt_tuning::METHOD, prefix_tuning::METHOD, p_tuning::METHOD];

impl PromptMethod {
    /// The method called `peft_type`.
    pub fn of(peft_type: &str) -> Option<&'static Self> {
        PROMPT_METHODS.iter().find(|method| method.peft_type == peft_type)
    }
}

/// Virtual tokens, in the dtype that was asked for.
pub enum VirtualTokens {
    /// `[n, w]`
    Embeddings(Tensor),
    /// Keys and values `[1, h, n, d]` of each block.
    KeyValues(Vec<(Tensor, Tensor)>),
}

/// A prompt and what it trains.
pub struct Prompt {
    /// Its configuration.
    pub config: PromptConfig,
    /// What it trains: its encoder's tensors, and modules that are trained whole (a classifier's head).
    pub params: AdapterParams,
    /// Frozen numbers of the model that it is for.
    pub base_elements: i64,
    method: &'static PromptMethod,
    encoder: Box<dyn PromptEncoder>,
    training: Rc<Cell<bool>>,
}

impl Prompt {
    /// A prompt that trains, for the model behind `sites` on `device`, with numbers from `init`.
    pub fn attach(sites: &Sites, device: Device, config: PromptConfig, init: Init) -> Result<Self> {
        let method = config.method()?;
        let given = match &init {
            Init::Tensors(tensors) => Some(*tensors),
            Init::Draw(_) => None,
        };
        let mut tensors = EncoderTensors { init, device, made: AdapterParams::new() };
        let encoder = (method.make)(&config, &mut tensors)?;
        let mut params = tensors.made;
        if let Some(given) = given {
            check_all_used(sites, given, &params)?;
        }
        params.extend(train_whole(sites, config.modules_to_save.as_deref(), |key| Some(given?.get(key)?.copy())));
        let (base_elements, training) = (sites.elements(), sites.training_flag());
        Ok(Self { config, params, base_elements, method, encoder, training })
    }

    /// A finished prompt: the rows of `prompt_embeddings`, whatever encoder they are from, and modules that were trained
    /// `whole`.
    pub fn finished(
        sites: &Sites,
        device: Device,
        config: PromptConfig,
        embeddings: &Tensor,
        whole: &BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let method = config.method()?;
        let wanted = match method.place {
            PromptPlace::Embeddings => [config.rows(), config.sizes()?.token_dim],
            PromptPlace::KeyValues => prefix_tuning::shape(&config)?,
        };
        if embeddings.size() != wanted {
            return Err(misfit("prompt_embeddings", &embeddings.size(), &wanted));
        }
        check_all_used(sites, whole, &AdapterParams::new())?;
        let params =
            train_whole(sites, config.modules_to_save.as_deref(), |key| whole.get(key).map(Tensor::shallow_clone));
        let encoder = Box::new(Table(embeddings.to_device(device).to_kind(Kind::Float)));
        let (base_elements, training) = (sites.elements(), sites.training_flag());
        Ok(Self { config, params, base_elements, method, encoder, training })
    }

    /// PEFT's `prompt_embeddings`, float32.
    pub fn embeddings(&self) -> Tensor {
        self.encoder.forward(self.training.get())
    }

    /// The virtual tokens in `kind`, through which gradients flow to what is trained.
    pub fn virtual_tokens(&self, kind: Kind) -> Result<VirtualTokens> {
        let rows = self.embeddings().to_kind(kind);
        Ok(match self.method.place {
            // An encoder-decoder has rows for both its parts, of which PEFT uses the encoder's.
            PromptPlace::Embeddings => VirtualTokens::Embeddings(rows.narrow(0, 0, self.config.num_virtual_tokens)),
            PromptPlace::KeyValues => VirtualTokens::KeyValues(prefix_tuning::key_values(&rows, &self.config)?),
        })
    }

    /// Number of virtual tokens before a text.
    pub fn length(&self) -> i64 {
        self.config.num_virtual_tokens
    }

    /// Number of trained numbers.
    pub fn trainable(&self) -> i64 {
        self.params.values().map(|param| param.numel() as i64).sum()
    }

    /// What it is, in words.
    pub fn describe(&self) -> String {
        format!("{}, {} virtual tokens", self.method.name, self.length())
    }

    /// PEFT's `print_trainable_parameters` line.
    pub fn summary(&self) -> String {
        trainable_summary(self.trainable(), self.base_elements)
    }

    /// The tensors of the encoder, where they are more than the finished prompt.
    pub(super) fn encoder_tensors(&self) -> Option<BTreeMap<String, Tensor>> {
        let own: BTreeMap<String, Tensor> = self.named(|name| name.starts_with(ENCODER));
        (own.len() > 1).then_some(own)
    }

    /// The modules that are trained whole.
    pub(super) fn whole_tensors(&self) -> BTreeMap<String, Tensor> {
        self.named(|name| !name.starts_with(ENCODER))
    }

    fn named(&self, which: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
        let chosen = self.params.iter().filter(|(name, _)| which(name));
        chosen.map(|(name, tensor)| (name.clone(), tensor.detach())).collect()
    }
}

/// Rows that are trained, or finished, as they are.
pub(super) struct Table(pub(super) Tensor);

impl PromptEncoder for Table {
    fn forward(&self, _training: bool) -> Tensor {
        self.0.shallow_clone()
    }
}

/// Hands an encoder its trained tensors, float32 leaves, by their names in PEFT's modules.
pub struct EncoderTensors<'a> {
    init: Init<'a>,
    device: Device,
    made: AdapterParams,
}

impl EncoderTensors<'_> {
    /// The table `[rows, width]` that every encoder begins with, normal as `torch.nn.Embedding` draws it.
    pub(super) fn table(&mut self, rows: i64, width: i64) -> Result<Tensor> {
        self.leaf(TABLE, &[rows, width], |generator, shape| generator.randn(shape))
    }

    /// The tensor `name` of `shape`, uniform in ± `bound` where it is drawn.
    pub(super) fn uniform(&mut self, name: &str, shape: &[i64], bound: f64) -> Result<Tensor> {
        self.leaf(&format!("{ENCODER}{name}"), shape, |generator, shape| generator.uniform(shape, -bound, bound))
    }

    /// The projection `name`, as `torch.nn.Linear` draws it.
    pub(super) fn projection(&mut self, name: &str, inputs: i64, outputs: i64) -> Result<Projection> {
        let bound = 1.0 / (inputs as f64).sqrt();
        Ok(Projection {
            weight: self.uniform(&format!("{name}.weight"), &[outputs, inputs], bound)?,
            bias: self.uniform(&format!("{name}.bias"), &[outputs], bound)?,
        })
    }

    fn leaf(
        &mut self,
        name: &str,
        shape: &[i64],
        draw: impl FnOnce(&mut crate::libtorch::random::Generator, &[i64]) -> Tensor,
    ) -> Result<Tensor> {
        let start = match &mut self.init {
            Init::Draw(generator) => draw(generator, shape),
            Init::Tensors(tensors) => taken(tensors, name, shape)?,
        };
        let leaf = start.to_device(self.device).to_kind(Kind::Float).detach().set_requires_grad(true);
        self.made.insert(name.to_owned(), leaf.shallow_clone());
        Ok(leaf)
    }
}

/// A copy: files are mapped and cannot be written to.
fn taken(tensors: &BTreeMap<String, Tensor>, name: &str, shape: &[i64]) -> Result<Tensor> {
    let tensor = tensors.get(name).ok_or_else(|| {
        Error::invalid(format!(
            "the adapter has no `{name}`: PEFT's files hold the finished prompt alone, which is enough to use it; training goes \
             on from a folder that holds prompt_encoder.safetensors too"
        ))
    })?;
    match tensor.size() == shape {
        true => Ok(tensor.copy()),
        false => Err(misfit(name, &tensor.size(), shape)),
    }
}

fn misfit(name: &str, found: &[i64], wanted: &[i64]) -> Error {
    Error::invalid(format!(
        "the adapter does not fit this model: `{name}` has shape {found:?}, the model needs {wanted:?}"
    ))
}

/// A trained linear projection.
pub(super) struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    /// `[.., in] -> [.., out]`
    pub(super) fn forward(&self, xs: &Tensor) -> Tensor {
        xs.linear(&self.weight, Some(&self.bias))
    }
}
