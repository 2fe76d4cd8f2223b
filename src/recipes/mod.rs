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
mod output_name;
pub mod pattern_flag;
pub mod prompt_args;
pub mod prompted_text;
mod resumed_options;
pub mod run;
mod run_record;
mod shell_word;
pub mod storage_args;
pub mod training_args;
pub mod training_loop;
mod utc_time;
mod watched;

use crate::adapters::{short_name, Attached};
use crate::error::Result;
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::weights::hub::Download;
use observer::{Event, Observer};
use serde_json::json;
pub use shell_word::{shell_path, shell_word};
use std::path::Path;
use tch::{Device, Kind};

/// Opens a model, with a bar for what has to be downloaded.
pub fn open_model(model: &str, options: &ModelOptions, observer: &mut dyn Observer) -> Result<PipelineFiles> {
    let opened = with_bar(observer, |progress| PipelineFiles::resolve(model, options, progress))?;
    opened.check_parts()?;
    Ok(opened)
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

/// A dtype's usual short name.
pub fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "fp16",
        _ => "fp32",
    }
}

/// A device as `--device` takes it.
pub fn device_flag(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// What computes, and in which dtype, in words.
pub fn device_name(device: Device, kind: Kind) -> String {
    let dtype = dtype_name(kind);
    match (device, tch::get_num_threads()) {
        (Device::Cuda(index), _) => format!("CUDA device {index}, {dtype}"),
        (_, 1) => format!("CPU with 1 thread, {dtype}"),
        (_, threads) => format!("CPU with {threads} threads, {dtype}"),
    }
}

/// Reports the model that a command uses; `kind` is its type where there are several.
pub fn report_model(name: &str, kind: Option<&str>, observer: &mut dyn Observer) {
    let text = kind.map_or(name.to_owned(), |kind| format!("{name}, {kind}"));
    observer.fact_with("model", text, json!({ "model": name, "model_type": kind }));
}

/// Reports what computes.
pub fn report_device(device: Device, kind: Kind, observer: &mut dyn Observer) {
    let fields = json!({ "device": device_flag(device), "dtype": dtype_name(kind), "threads": tch::get_num_threads() });
    observer.fact_with("device", device_name(device, kind), fields);
}

/// Reports an adapter, as `PATH=SCALE` names it.
pub fn report_given_adapter(text: &str, observer: &mut dyn Observer) {
    let (path, scale) = adapter_argument::path_and_scale("--adapter", text).unwrap_or((text.into(), 1.0));
    observer.fact_with("adapter", text, json!({ "path": path.display().to_string(), "scale": scale }));
}

/// Reports what a run starts from: `text`, and the adapter at `path` where there is one.
fn report_start(text: String, path: Option<&Path>, observer: &mut dyn Observer) {
    let path = path.map(|path| path.display().to_string());
    observer.fact_with("starts_from", text, json!({ "init_adapter": path }));
}

/// Reports where a run writes.
fn report_output(folder: &Path, observer: &mut dyn Observer) {
    let path = folder.display().to_string();
    observer.fact_with("output", path.clone(), json!({ "path": path }));
}

/// Reports what an adapter is and how large.
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
    let (alpha, modules) = (adapter.config.lora_alpha, adapter.targets.len());
    let fields = json!({
        "ranks": ranks, "alpha": alpha, "modules": modules, "targets": kinds,
        "trainable_parameters": adapter.trainable(),
    });
    let ranks: Vec<String> = ranks.iter().map(i64::to_string).collect();
    let (ranks, kinds) = (ranks.join(" and "), kinds.join(", "));
    let text = format!("LoRA of rank {ranks}, alpha {alpha}, on {modules} modules: {kinds}\n{}", adapter.summary());
    observer.fact_with(name, text, fields);
}
