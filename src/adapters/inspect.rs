//! What an adapter is, told without its model.

use super::adapter_set::{AdapterSet, Part, PartAdapter};
use super::formats::{language_adapter_at, read_with_format, Format};
use super::lora::{A, B, EMBEDDING_A, EMBEDDING_B};
use super::peft_folder::{self, peft_type};
use super::prompt::PromptMethod;
use super::prompt_folder::{self, PromptFiles};
use crate::error::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// What `adapter inspect` tells.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Inspected {
    /// Adapters on projections.
    Adapters(Summary),
    /// A prompt.
    Prompt(PromptSummary),
}

/// What a prompt is.
#[derive(Debug, Serialize)]
pub struct PromptSummary {
    /// "PEFT".
    pub format: String,
    /// The model that it was trained on, where the file tells.
    pub base_model: Option<String>,
    /// `PREFIX_TUNING` and so on.
    pub peft_type: String,
    /// Its method in words.
    pub method: String,
    /// `CAUSAL_LM` and so on.
    pub task_type: Option<String>,
    /// Virtual tokens before a text.
    pub num_virtual_tokens: i64,
    /// Shape of the finished prompt.
    pub shape: Vec<i64>,
    /// Its Frobenius norm.
    pub norm: f64,
    /// Modules that are trained whole.
    pub whole_tensors: usize,
    /// Whether the encoder that it is from is saved with it, so that training can continue.
    pub has_encoder: bool,
    /// Numbers that are used, the encoder's not counted.
    pub parameters: i64,
    /// Bytes of them.
    pub bytes: i64,
    /// Their dtypes.
    pub dtypes: Vec<String>,
}

/// What adapters on projections are.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// "PEFT", "diffusers", "kohya" or "ComfyUI".
    pub format: String,
    /// How the keys of a file are spelled that can be spelled in many ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spelling: Option<String>,
    /// The generation of models that it was made for, where shapes or metadata say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// What was left out of what is summed up here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The parts that have an adapter: `unet`, `text_encoder`, `text_encoder_2`; or `language_model`.
    pub parts: BTreeMap<String, PartSummary>,
}

/// One part's adapter.
#[derive(Debug, Serialize)]
pub struct PartSummary {
    /// The model that it was trained on, where the file tells.
    pub base_model: Option<String>,
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM` and so on, of language models' adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    /// Whether the weights' norms are trained beside.
    pub use_dora: bool,
    /// Whether these are norms of input columns, and not of output rows.
    pub column_magnitudes: bool,
    /// The ranks of its modules, without repeats.
    pub ranks: Vec<i64>,
    /// Their alphas.
    pub alphas: Vec<f64>,
    /// What multiplies `B A` in them.
    pub scalings: Vec<f64>,
    /// Number of modules by the last name of their path.
    pub modules: BTreeMap<String, usize>,
    /// Biases and modules that are trained whole.
    pub whole_tensors: usize,
    /// Numbers in it.
    pub parameters: i64,
    /// Bytes of them.
    pub bytes: i64,
    /// Their dtypes.
    pub dtypes: Vec<String>,
    /// Frobenius norm of `scaling · B A` over all modules of a block, such as `up_blocks.1` or
    /// `model.layers.3`.
    pub change_norms: BTreeMap<String, f64>,
}

/// Tells what the adapter at `path` is.
pub fn inspect(path: &Path) -> Result<Inspected> {
    let Some(folder) = language_adapter_at(path)? else {
        let (set, format) = read_with_format(path, None)?;
        return Ok(Inspected::Adapters(summary(&set, format)));
    };
    Ok(match PromptMethod::of(&peft_type(folder)?) {
        Some(method) => Inspected::Prompt(prompt_summary(&prompt_folder::read(folder)?, method)),
        None => {
            let adapter = part_summary(None, &peft_folder::read(folder)?);
            let parts = BTreeMap::from([("language_model".to_owned(), adapter)]);
            Inspected::Adapters(Summary {
                format: Format::Peft.to_string(),
                spelling: None,
                family: None,
                warnings: peft_folder::left_out(folder)?.into_iter().collect(),
                parts,
            })
        }
    })
}

fn prompt_summary(files: &PromptFiles, method: &PromptMethod) -> PromptSummary {
    let tensors = || std::iter::once(&files.embeddings).chain(files.whole.values());
    PromptSummary {
        format: Format::Peft.to_string(),
        base_model: files.config.base_model_name_or_path.clone(),
        peft_type: method.peft_type.to_owned(),
        method: method.name.to_owned(),
        task_type: files.config.task_type.clone(),
        num_virtual_tokens: files.config.num_virtual_tokens,
        shape: files.embeddings.size(),
        norm: files.embeddings.to_kind(Kind::Float).norm().double_value(&[]),
        whole_tensors: files.whole.len(),
        has_encoder: files.has_encoder(),
        parameters: count(tensors()),
        bytes: bytes(tensors()),
        dtypes: dtypes(tensors()),
    }
}

fn count<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> i64 {
    tensors.map(|tensor| tensor.numel() as i64).sum()
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> i64 {
    tensors.map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as i64).sum()
}

fn dtypes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<String> {
    let names: BTreeSet<String> = tensors.map(|tensor| dtype(tensor.kind())).collect();
    names.into_iter().collect()
}

/// Tells what `set` is.
pub fn summary(set: &AdapterSet, format: Format) -> Summary {
    let parts =
        set.parts().map(|(part, adapter)| (part.name().to_owned(), part_summary(Some(part), adapter))).collect();
    Summary {
        format: format.to_string(),
        spelling: set.spelling.clone(),
        family: set.family.map(|family| family.to_string()),
        warnings: set.warnings.clone(),
        parts,
    }
}

fn part_summary(part: Option<Part>, adapter: &PartAdapter) -> PartSummary {
    let config = &adapter.config;
    let modules = [adapter.modules(), adapter.embeddings()].concat();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut squares: BTreeMap<String, f64> = BTreeMap::new();
    for module in &modules {
        *kinds.entry(last_name(module).to_owned()).or_default() += 1;
        *squares.entry(block(part, module)).or_default() += squared_change(adapter, module);
    }
    let distinct = |value: &dyn Fn(&str) -> f64| {
        let mut values: Vec<f64> = modules.iter().map(|module| value(module)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    };
    PartSummary {
        base_model: config.base_model_name_or_path.clone(),
        peft_type: config.peft_type.clone(),
        task_type: config.task_type.clone(),
        use_dora: config.use_dora,
        column_magnitudes: adapter.has_column_magnitudes(),
        ranks: distinct(&|module| config.rank_of(module) as f64).into_iter().map(|rank| rank as i64).collect(),
        alphas: distinct(&|module| config.alpha_of(module)),
        scalings: distinct(&|module| config.scaling_of(module)),
        modules: kinds,
        whole_tensors: adapter.whole_tensors().len() - 2 * adapter.embeddings().len(),
        parameters: count(adapter.tensors.values()),
        bytes: bytes(adapter.tensors.values()),
        dtypes: dtypes(adapter.tensors.values()),
        change_norms: squares.into_iter().map(|(block, square)| (block, square.max(0.0).sqrt())).collect(),
    }
}

/// A dtype as PyTorch calls it.
pub fn dtype(kind: Kind) -> String {
    match kind {
        Kind::Float => "float32".into(),
        Kind::Half => "float16".into(),
        Kind::BFloat16 => "bfloat16".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// `to_out.0` for `….attn1.to_out.0`.
fn last_name(module: &str) -> &str {
    let mut ends = module.rmatch_indices('.').map(|(at, _)| at);
    let last = ends.next();
    match last {
        Some(at) if module[at + 1..].bytes().all(|byte| byte.is_ascii_digit()) => {
            ends.next().map_or(module, |before| &module[before + 1..])
        }
        Some(at) => &module[at + 1..],
        None => module,
    }
}

/// The block of a network that `module` is in: of a language model up to the first number in its path.
fn block(part: Option<Part>, module: &str) -> String {
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let depth = match (part, module.starts_with("mid_block")) {
        (Some(Part::UNet), true) => 1,
        (Some(Part::UNet), false) => 2,
        (Some(Part::TextEncoder | Part::TextEncoder2), _) => 3,
        (None, _) => module.split('.').position(is_number).map_or(usize::MAX, |place| place + 1),
    };
    module.split('.').take(depth).collect::<Vec<_>>().join(".")
}

/// ‖s·BA‖² = s²·Σ (BᵀB ∘ AAᵀ): the product itself, as large as the weight, is never made.
fn squared_change(adapter: &PartAdapter, module: &str) -> f64 {
    let matrix = |ends: [&str; 2]| {
        let tensor = ends.iter().find_map(|end| adapter.tensors.get(&format!("{module}{end}")));
        tensor.map(|tensor| tensor.to_kind(Kind::Float).flatten(1, -1))
    };
    let (Some(a), Some(b)) = (matrix([A, EMBEDDING_A]), matrix([B, EMBEDDING_B])) else { return 0.0 };
    let sum = (b.tr().matmul(&b) * a.matmul(&a.tr())).sum(Kind::Double).double_value(&[]);
    sum * adapter.config.scaling_of(module).powi(2)
}
