//! Whole jobs: a configuration and one explicit loop each.

mod dreambooth_checks;
pub mod dreambooth_config;
pub mod dreambooth_lora;
mod dreambooth_options;
mod dreambooth_outputs;
mod dreambooth_phases;
pub mod dreambooth_plan;
pub mod dreambooth_run;
pub mod merged_pipeline;
pub mod model_args;
pub mod observer;
pub mod pattern_flag;

use crate::error::{Error, Result};
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::schedulers::SchedulerConfig;
use crate::weights::hub::Download;
use observer::{Event, Observer};
use tch::{Device, Kind};

/// Opens a model, with a bar for what has to be downloaded.
pub fn open_model(model: &str, options: &ModelOptions, observer: &mut dyn Observer) -> Result<PipelineFiles> {
    let mut fetched = false;
    let opened = PipelineFiles::resolve(model, options, &mut |Download { file, total, done }: Download| {
        fetched = true;
        observer.on(Event::Download { file: file.to_owned(), total, done });
    });
    if fetched {
        observer.on(Event::End);
    }
    let opened = opened?;
    opened.check_parts()?;
    Ok(opened)
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

/// The noise schedule's configuration of a model.
pub fn scheduler_config(files: &PipelineFiles) -> Result<SchedulerConfig> {
    let text = files.scheduler_config_json()?.to_string();
    SchedulerConfig::from_json(&text)
        .map_err(|error| Error::file(files.root().join("scheduler/scheduler_config.json"), error.to_string()))
}
