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

use crate::adapters::{short_name, Attached};
use crate::error::Result;
use crate::libtorch::half_precision::has_units;
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::train::memory_plan::Rates;
use crate::train::precision::Precision;
use crate::weights::hub::Download;
use observer::{Event, Observer};
pub use shell_word::{shell_path, shell_word};
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

/// Reports what computes and in which dtype, and what the dtype costs where the processor computes faster in float32.
pub fn report_device(device: Device, kind: Kind, observer: &mut dyn Observer) -> Result<()> {
    observer.fact("device", device_name(device, kind));
    slow_dtype(device, kind)?.into_iter().for_each(|text| observer.warning(text));
    Ok(())
}

/// What `kind` costs, in words, where it saves memory but no time on the CPU.
pub fn slow_dtype(device: Device, kind: Kind) -> Result<Option<String>> {
    if device != Device::Cpu || kind == Kind::Float || Precision::auto(device).compute_kind() == kind {
        return Ok(None);
    }
    let how = match has_units(kind) {
        true => "",
        false => ", which has no units for it: each operation converts its operands to float32",
    };
    let times = match Rates::cpu_time_beside_float32(kind)? {
        ..1.15 => "about".to_owned(),
        times => format!("{times:.1} times"),
    };
    Ok(Some(format!(
        "{} saves memory but no time on this processor{how}; in a quick measurement it took {times} as long as fp32",
        dtype_name(kind)
    )))
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

fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "fp16",
        _ => "fp32",
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
