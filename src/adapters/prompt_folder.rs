//! A prompt's folder: `adapter_config.json` and `adapter_model.safetensors`, as peft 0.21 writes them, and beside them
//! the encoder that the prompt is from, which PEFT does not keep, so that training can go on from it.

use super::finite;
use super::peft_folder::{check_written, config_text, read_json, CONFIG_FILE, MODEL_FILE};
use super::prompt::{Prompt, TABLE};
use super::prompt_config::PromptConfig;
use crate::error::{Error, Result};
use crate::weights::{tensor_file, MappedFile};
use crate::whole_file::write_whole;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Name of the encoder's file.
pub const ENCODER_FILE: &str = "prompt_encoder.safetensors";
const EMBEDDINGS: &str = "prompt_embeddings";
/// Before modules that are trained whole.
const PREFIX: &str = "base_model.";

/// What a folder holds.
#[derive(Debug)]
pub struct PromptFiles {
    /// The configuration.
    pub config: PromptConfig,
    /// The finished prompt.
    pub embeddings: Tensor,
    /// Modules that were trained whole, by their names in the model.
    pub whole: BTreeMap<String, Tensor>,
    encoder: BTreeMap<String, Tensor>,
}

impl PromptFiles {
    /// Whether it holds the encoder that the prompt is from.
    pub fn has_encoder(&self) -> bool {
        !self.encoder.is_empty()
    }

    /// What training goes on from, by [`Prompt::params`]' names.
    pub fn params(&self) -> BTreeMap<String, Tensor> {
        let mut params = match self.has_encoder() {
            false => BTreeMap::from([as_params(self.embeddings.shallow_clone())]),
            true => self.encoder.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect(),
        };
        params.extend(self.whole.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        params
    }
}

/// A finished prompt as what is trained, for methods that train it itself: its name among [`Prompt::params`], and it.
pub fn as_params(embeddings: Tensor) -> (String, Tensor) {
    (TABLE.to_owned(), embeddings)
}

/// Writes `prompt` as it is now to `folder` and reads it back.
pub fn write(folder: &Path, prompt: &Prompt) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut tensors = BTreeMap::from([(EMBEDDINGS.to_owned(), prompt.embeddings().contiguous())]);
    tensors.extend(prompt.whole_tensors().into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)));
    save(&folder.join(MODEL_FILE), &tensors)?;
    let path = folder.join(ENCODER_FILE);
    match prompt.encoder_tensors() {
        Some(encoder) => save(&path, &encoder)?,
        // Another prompt's would be taken for this one's.
        None if path.exists() => std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?,
        None => {}
    }
    write_whole(&folder.join(CONFIG_FILE), config_json(&prompt.config)?.as_bytes())?;
    read(folder).map(|_| ())
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    tensor_file::save(path, tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    check_written(path, tensors)
}

/// Reads `folder`.
pub fn read(folder: &Path) -> Result<PromptFiles> {
    let path = folder.join(CONFIG_FILE);
    let config = PromptConfig::from_json(&read_json(&path)?).map_err(|error| Error::file(&path, error.to_string()))?;
    let path = folder.join(MODEL_FILE);
    let mut tensors = all(&path)?;
    let embeddings = tensors
        .remove(EMBEDDINGS)
        .ok_or_else(|| Error::file(&path, format!("has no `{EMBEDDINGS}`; is it whole, and a prompt's?")))?;
    let plain = |name: String| name.strip_prefix(PREFIX).map_or(name.clone(), str::to_owned);
    let whole = tensors.into_iter().map(|(name, tensor)| (plain(name), tensor)).collect();
    let path = folder.join(ENCODER_FILE);
    let encoder = if path.exists() { all(&path)? } else { BTreeMap::new() };
    Ok(PromptFiles { config, embeddings, whole, encoder })
}

fn all(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = MappedFile::open(path)?;
    file.names().into_iter().map(|name| finite::tensor(&file, &name).map(|tensor| (name, tensor))).collect()
}

/// `adapter_config.json` byte by byte as peft 0.21.2 writes it.
fn config_json(config: &PromptConfig) -> Result<String> {
    let fields = serde_json::to_value(config);
    let fields = fields.map_err(|error| Error::Internal(format!("a prompt's configuration: {error}")))?;
    let mut all = BTreeMap::from([("auto_mapping".to_owned(), Value::Null), ("revision".to_owned(), Value::Null)]);
    all.extend(fields.as_object().cloned().unwrap_or_default());
    all.insert("inference_mode".into(), json!(true));
    config_text(all)
}
