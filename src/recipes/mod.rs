//! Whole jobs: a configuration and one explicit loop each.

pub mod adapter_argument;
pub mod demo;
mod dreambooth_adapters;
mod dreambooth_checks;
pub mod dreambooth_config;
pub mod dreambooth_lora;
mod dreambooth_options;
mod dreambooth_phases;
pub mod dreambooth_plan;
pub mod evaluate;
pub mod given_adapters;
pub mod given_flags;
pub mod language_adapter;
pub mod language_base;
pub mod language_config;
pub mod language_data_args;
pub mod language_evaluation;
pub mod language_loss;
pub mod language_plan;
pub mod language_training;
mod memory_advice;
pub mod merged_language_model;
pub mod merged_pipeline;
pub mod model_args;
pub mod observer;
mod option_checks;
pub mod pattern_flag;
pub mod prompt_args;
pub mod prompted_text;
mod resumed_options;
pub mod run;
mod shell_word;
pub mod storage_args;
pub mod training_args;
pub mod training_loop;
mod watched;

use crate::adapters::{read_any, short_name, AdapterSet, Attached};
use crate::error::Result;
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::weights::hub::Download;
use observer::{Event, Observer};
pub use shell_word::{shell_path, shell_word};
use std::path::Path;
use tch::{Device, Kind};

/// Opens a model, with a bar for what has to be downloaded.
pub fn open_model(model: &str, options: &ModelOptions, observer: &mut dyn Observer) -> Result<PipelineFiles> {
    let opened = with_bar(observer, |progress| PipelineFiles::resolve(model, options, progress))?;
    opened.check_parts()?;
    opened.warnings().into_iter().for_each(|text| observer.warning(text));
    Ok(opened)
}

/// Reads the adapter at `path`, which must fit the pipeline behind `files`, with a warning for what it leaves out.
pub fn read_adapter(path: &Path, files: &PipelineFiles, observer: &mut dyn Observer) -> Result<AdapterSet> {
    let set = read_any(path, Some(&files.base_model()?))?;
    set.warnings.iter().for_each(|text| observer.warning(text.clone()));
    Ok(set)
}

/// What `fetch` gives, which tells of its downloads.
fn with_bar<T>(observer: &mut dyn Observer, fetch: impl FnOnce(&mut dyn FnMut(Download)) -> Result<T>) -> Result<T> {
    let mut fetched = false;
    let result = fetch(&mut |Download { file, total, done }: Download| {
        fetched = true;
        observer.on(Event::Download { file: file.to_owned(), total, done });
    });
    if fetched {
        observer.on(Event::End);
    }
    result
}

/// What computes, and in which dtype, in words.
pub fn device_name(device: Device, kind: Kind) -> String {
    let dtype = match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "fp16",
        _ => "fp32",
    };
    match (device, tch::get_num_threads()) {
        (Device::Cuda(index), _) => format!("CUDA device {index}, {dtype}"),
        (_, 1) => format!("CPU with 1 thread, {dtype}"),
        (_, threads) => format!("CPU with {threads} threads, {dtype}"),
    }
}

/// Tells what an adapter is and how large.
fn report_adapter(name: &str, adapter: &Attached, observer: &mut dyn Observer) {
    let sorted = |mut ranks: Vec<i64>| {
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    };
    let mut kinds: Vec<&str> = adapter.targets.iter().map(|path| short_name(path)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let ranks = sorted(adapter.targets.iter().map(|path| adapter.config.rank_of(path)).collect());
    let ranks: Vec<String> = ranks.iter().map(i64::to_string).collect();
    let (ranks, alpha, modules) = (ranks.join(" and "), adapter.config.lora_alpha, adapter.targets.len());
    observer.fact(name, format!("LoRA of rank {ranks}, alpha {alpha}, on {modules} modules: {}", kinds.join(", ")));
    observer.fact("", adapter.summary());
}
