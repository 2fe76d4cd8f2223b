//! What trains on a language model: an adapter on its projections, or a prompt in front of its texts.

use crate::adapters::{
    attach, peft_folder, prompt_folder, AdapterParams, Attached, Init, LoraConfig, PartAdapter, Prompt, PromptConfig,
    PromptPlace, PromptSizes, TextEncoderSpelling,
};
use crate::data::language_dataset::LanguageTask;
use crate::data::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::libtorch::random::Generator;
use crate::models::language::{Architecture, LanguageModel, TransformerShape};
use crate::models::Loaded;
use crate::options::given::{lora_field, HEADS};
use crate::options::language::LanguageConfig;
use crate::options::prompts::prompt_field;
use crate::options::values::name;
use crate::recipes::training::observer::Observer;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What the options ask for, before the model is there.
#[allow(clippy::large_enum_variant, reason = "a run has one")]
#[derive(Debug)]
pub enum WantedAdapter {
    /// An adapter on projections.
    Lora(LoraConfig),
    /// A prompt.
    Prompt(PromptConfig),
}

impl WantedAdapter {
    /// What `config` asks for on a model of `architecture`: as the adapter to start from has it, where there is one.
    pub fn new(config: &LanguageConfig, architecture: &Architecture) -> Result<Self> {
        let asked = match config.prompt.config(config.peft_method, &config.model)? {
            Some(prompt) => Self::Prompt(for_task(prompt, config)),
            None => Self::Lora(config.lora(architecture)),
        };
        let Some(folder) = &config.init_adapter else { return Ok(asked) };
        let (found, wanted) = (peft_folder::peft_type(folder)?, config.peft_method);
        if found != wanted.peft_type() {
            return Err(Error::file(
                folder,
                format!("is an adapter of type {found}, and ⟨peft_method⟩ {} trains another", name(&wanted)),
            ));
        }
        let given = &config.given;
        match asked {
            Self::Prompt(asked) => {
                let found = prompt_folder::read(folder)?.config;
                given.check_settled(prompt_field, &asked, &found, folder)?;
                Ok(Self::Prompt(found))
            }
            Self::Lora(asked) => {
                let found = peft_folder::read(folder)?.config;
                given.check_settled(lora_field, &asked, &found, folder)?;
                Ok(Self::Lora(found))
            }
        }
    }

    /// The prompt, where it is one.
    pub fn prompt(&self) -> Option<&PromptConfig> {
        match self {
            Self::Lora(_) => None,
            Self::Prompt(prompt) => Some(prompt),
        }
    }

    /// Puts it on a model.
    pub fn attach(
        self,
        config: &LanguageConfig,
        loaded: &Loaded<LanguageModel>,
        tokenizer: &LanguageTokenizer,
        device: Device,
        seed: i64,
    ) -> Result<LanguageAdapter> {
        let mut generator = Generator::new(seed);
        match (self, &config.init_adapter) {
            (Self::Lora(lora), Some(folder)) => {
                let given = peft_folder::read(folder)?;
                attach(&loaded.sites, "default", lora, Init::Tensors(&given.tensors))
            }
            (Self::Lora(lora), None) => attach(&loaded.sites, "default", lora, Init::Draw(&mut generator)),
            (Self::Prompt(prompt), folder) => {
                let prompt = fitted(prompt, &loaded.model, device)?;
                let start = match (folder, &config.prompt.prompt_tuning_init_text) {
                    (Some(folder), _) => Some(prompt_folder::read(folder)?.params()),
                    (None, Some(text)) => Some(text_start(&prompt, &loaded.model, tokenizer, text, device)?),
                    (None, None) => None,
                };
                let init = start.as_ref().map_or(Init::Draw(&mut generator), Init::Tensors);
                return Prompt::attach(&loaded.sites, device, prompt, init).map(LanguageAdapter::Prompt);
            }
        }
        .map(LanguageAdapter::Lora)
    }
}

/// The fields that PEFT's models fill in.
fn for_task(prompt: PromptConfig, config: &LanguageConfig) -> PromptConfig {
    let head = || HEADS.iter().map(|name| (*name).to_owned()).collect();
    PromptConfig {
        base_model_name_or_path: Some(config.model.display().to_string()),
        task_type: Some(config.data.task.peft_name().to_owned()),
        modules_to_save: (config.data.task == LanguageTask::SeqCls).then(head),
        ..prompt
    }
}

/// `prompt` for `model` on `device`, which must be able to have it.
pub fn fitted(prompt: PromptConfig, model: &LanguageModel, device: Device) -> Result<PromptConfig> {
    let encoder_blocks = match model {
        LanguageModel::EncoderDecoder(model) => Some(model.encoder_blocks()),
        LanguageModel::Causal(_) | LanguageModel::Classifier(_) => None,
    };
    let embeddings = model.embed(&Tensor::zeros([1, 1], (Kind::Int64, device))).size()[2];
    fitted_to(prompt, model.shape(), encoder_blocks, embeddings)
}

/// `prompt` for a model of `shape`, of so many `encoder_blocks` where it has an encoder, and of so wide `embeddings`.
pub(in crate::recipes) fn fitted_to(
    prompt: PromptConfig,
    shape: TransformerShape,
    encoder_blocks: Option<i64>,
    embeddings: i64,
) -> Result<PromptConfig> {
    let method = prompt.method()?;
    let refuse = |why: String| Err(Error::invalid(format!("{} does not work on this model: {why}", method.name)));
    let (blocks, parts) = encoder_blocks.map_or((shape.blocks, 1), |blocks| (blocks, 2));
    let (token_dim, heads) = match method.place {
        PromptPlace::KeyValues => (shape.key_value_heads * shape.head_width, shape.key_value_heads),
        PromptPlace::Embeddings => (shape.width, shape.heads),
    };
    if method.place == PromptPlace::KeyValues && blocks != shape.blocks {
        return refuse(format!("its encoder has {blocks} blocks and its decoder {}", shape.blocks));
    }
    // PEFT takes the width of an encoder-decoder for that of all its heads.
    if method.place == PromptPlace::KeyValues && parts == 2 && token_dim != shape.width {
        return refuse(format!("all its heads together are {token_dim} wide, and its hidden states {}", shape.width));
    }
    if method.place == PromptPlace::Embeddings && embeddings != token_dim {
        return refuse(format!("its embeddings are {embeddings} wide, and its hidden states {token_dim}"));
    }
    prompt.fitted(PromptSizes {
        token_dim,
        num_transformer_submodules: parts,
        num_attention_heads: heads,
        num_layers: blocks,
    })
}

/// The tensors of a prompt that starts as the embeddings of `text`, whose tokens are cut or repeated to as many as it has.
fn text_start(
    prompt: &PromptConfig,
    model: &LanguageModel,
    tokenizer: &LanguageTokenizer,
    text: &str,
    device: Device,
) -> Result<BTreeMap<String, Tensor>> {
    let ids = tokenizer.encode(text, usize::MAX)?.ids;
    if ids.is_empty() {
        return Err(Error::invalid("⟨prompt_tuning_init_text⟩ has no tokens; give a text that has some"));
    }
    let ids: Vec<i64> = ids.into_iter().cycle().take(prompt.rows() as usize).collect();
    let _no_grad = tch::no_grad_guard();
    let rows = model.embed(&Tensor::from_slice(&ids).to_device(device)); // [n, w]
    Ok(BTreeMap::from([prompt_folder::as_params(rows.to_kind(Kind::Float))]))
}

/// What trains on a language model.
#[allow(clippy::large_enum_variant, reason = "a run has one")]
pub enum LanguageAdapter {
    /// An adapter on projections.
    Lora(Attached),
    /// A prompt.
    Prompt(Prompt),
}

impl LanguageAdapter {
    /// What it trains.
    pub fn params(&self) -> &AdapterParams {
        match self {
            Self::Lora(attached) => &attached.params,
            Self::Prompt(prompt) => &prompt.params,
        }
    }

    /// Number of trained numbers.
    pub fn trainable(&self) -> i64 {
        match self {
            Self::Lora(attached) => attached.trainable(),
            Self::Prompt(prompt) => prompt.trainable(),
        }
    }

    /// Frozen numbers of the model.
    pub fn base_elements(&self) -> i64 {
        match self {
            Self::Lora(attached) => attached.base_elements,
            Self::Prompt(prompt) => prompt.base_elements,
        }
    }

    /// The prompt, where it is one.
    pub fn prompt(&self) -> Option<&Prompt> {
        match self {
            Self::Lora(_) => None,
            Self::Prompt(prompt) => Some(prompt),
        }
    }

    /// Tells what it is and how large.
    pub fn report(&self, observer: &mut dyn Observer) {
        match self {
            Self::Lora(attached) => crate::recipes::report_adapter("adapter", attached, observer),
            Self::Prompt(prompt) => {
                let fields = json!({ "virtual_tokens": prompt.length(), "trainable_parameters": prompt.trainable() });
                observer.fact_with("adapter", format!("{}\n{}", prompt.describe(), prompt.summary()), fields);
            }
        }
    }

    /// Writes it as it is now.
    pub fn write(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Lora(attached) => {
                peft_folder::write(folder, None, &PartAdapter::of(attached), TextEncoderSpelling::Today)
            }
            Self::Prompt(prompt) => prompt_folder::write(folder, prompt),
        }
    }

    /// Makes it what was written to `folder`.
    pub fn restore(&self, folder: &Path) -> Result<()> {
        let tensors = match self {
            Self::Lora(_) => peft_folder::read(folder)?.tensors,
            Self::Prompt(_) => prompt_folder::read(folder)?.params(),
        };
        let _no_grad = tch::no_grad_guard();
        for (name, param) in self.params() {
            if let Some(tensor) = tensors.get(name) {
                param.shallow_clone().copy_(tensor);
            }
        }
        Ok(())
    }
}
