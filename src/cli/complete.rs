//! `lorabooth complete`: text from a language model, with any number of adapters.

use super::{Common, Dtype, Reporter};
use crate::adapters::Prompt;
use crate::error::{Error, Result};
use crate::libtorch::random::seed_globally;
use crate::models::language::{HeadOptions, LanguageModel};
use crate::recipes::given_adapters::GivenAdapters;
use crate::recipes::language_base::WantedModel;
use crate::recipes::language_data_args::TaskChoice;
use crate::recipes::observer::Observer;
use crate::recipes::prompted_text::PromptedText;
use crate::recipes::storage_args::StorageArgs;
use crate::sample::text_generation::{TextSampling, TextWriter};
use crate::weights::Placement;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use tch::Tensor;

/// Tokens to write at most where no number is given.
pub const MAX_NEW_TOKENS: usize = 50;

/// Flags of the command.
#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// Model: a folder in the transformers layout, a .gguf file of the LLaMA family, or a hub id
    #[arg(long)]
    model: PathBuf,
    /// Revision of a hub id
    #[arg(long)]
    revision: Option<String>,
    /// Adapter, with a strength after an equals sign; any number of times, at most one of them a prompt
    #[arg(long, visible_alias = "lora", value_name = "PATH[=SCALE]", action = clap::ArgAction::Append)]
    adapter: Vec<String>,
    /// The text to go on with, or to answer
    #[arg(long)]
    prompt: String,
    /// Tokens to write at most
    #[arg(long, default_value_t = MAX_NEW_TOKENS)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token; 1 draws by the model's own probabilities
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw from so many of the likeliest tokens
    #[arg(long)]
    top_k: Option<i64>,
    /// Draw from the likeliest tokens that have this probability together
    #[arg(long)]
    top_p: Option<f64>,
    /// Texts to follow at once in search of the likeliest
    #[arg(long, default_value_t = 1)]
    num_beams: usize,
    /// Dtype to compute in
    #[arg(long, visible_alias = "mixed-precision", value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// How the model's weights are kept.
    #[command(flatten)]
    weights: StorageArgs,
}

/// Runs the command.
pub fn run(args: &CompleteArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    args.weights.check()?;
    let device = common.device()?;
    let kind = args.dtype.kind(device);
    let mut base = WantedModel::new(&args.model, args.revision.as_deref()).open(reporter)?;
    base.files.store_in(args.weights.storage());
    let (files, tokenizer) = (&base.files, &base.tokenizer);
    let sampling = TextSampling {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        num_beams: args.num_beams,
        ends: base.ends(),
    };
    sampling.check()?;
    let adapters = GivenAdapters::read(&args.adapter)?;
    if adapters.tasks().any(|task| task == TaskChoice::SeqCls.peft_name()) {
        return Err(Error::invalid(
            "--adapter is of a classifier, which writes no text; `lorabooth evaluate --output` writes the classes of records",
        ));
    }
    let observer: &mut dyn Observer = reporter;
    observer.fact("model", format!("{}, {}", args.model.display(), files.architecture().model_type));
    observer.fact("device", crate::recipes::device_name(device, kind));
    args.weights.tell(device, observer);
    args.adapter.iter().for_each(|text| observer.fact("adapter", text.clone()));
    let loaded = files.load(Placement { device, kind }, HeadOptions::default())?;
    let writer = TextWriter::of(&loaded.model)?;
    let prompt = adapters.put_on(&loaded, device)?;
    loaded.sites.merge();

    let ids = tokenizer.encode(&args.prompt, usize::MAX)?.ids;
    let ids = match loaded.model {
        // What ends a text is nothing to go on with.
        LanguageModel::Causal(_) => without_end(&ids, tokenizer.special_ids().eos),
        _ => &ids,
    };
    if ids.is_empty() {
        return Err(Error::invalid("--prompt is empty, and the model needs a token to go on from; give it a text"));
    }
    let virtual_tokens = prompt.as_ref().map_or(0, Prompt::length) as usize;
    let longest = loaded.model.shape().longest;
    if let Some(most) = longest.filter(|&most| (virtual_tokens + ids.len() + args.max_new_tokens) as i64 > most) {
        let behind = if virtual_tokens > 0 { format!(" behind {virtual_tokens} virtual ones") } else { String::new() };
        return Err(Error::invalid(format!(
            "the prompt has {} tokens{behind}, and with --max-new-tokens {} the model's positions end at {most}; lower one of them",
            ids.len(),
            args.max_new_tokens
        )));
    }
    let no_grad = tch::no_grad_guard();
    let ids = Tensor::from_slice(ids).unsqueeze(0).to_device(device);
    let mut read = PromptedText::new(&loaded.model, prompt.as_ref(), ids, None)?;
    let cache = read.cache.take().unwrap_or_default();
    drop(no_grad);
    seed_globally(device, common.seed)?;
    let began = Instant::now();
    let (mut stream, mut text) = (tokenizer.stream(), String::new());
    let mut show = |piece: String| {
        reporter.text(&piece);
        text.push_str(&piece);
    };
    let mut on_token = |token: i64| {
        // The end has no text.
        if !sampling.ends.contains(&token) {
            show(stream.push(token)?);
        }
        Ok(())
    };
    let made = writer.write(read.tokens(), cache, device, &sampling, &mut on_token)?;
    show(stream.finish()?);
    let tokens_per_s = made.len() as f64 / began.elapsed().as_secs_f64();
    reporter.end_text(json!({ "text": text, "tokens": made.len(), "tokens_per_s": tokens_per_s }));
    Ok(())
}

fn without_end(ids: &[i64], end: Option<i64>) -> &[i64] {
    match ids.split_last() {
        Some((last, before)) if Some(*last) == end && !before.is_empty() => before,
        _ => ids,
    }
}
