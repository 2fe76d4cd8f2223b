//! Whole jobs: a configuration and one explicit loop each.

pub mod dreambooth_config;
pub mod dreambooth_lora;
mod dreambooth_outputs;
mod dreambooth_phases;
pub mod dreambooth_plan;
pub mod dreambooth_run;
pub mod model_args;
pub mod observer;

use crate::error::{Error, Result};
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::schedulers::SchedulerConfig;
use crate::weights::hub::Download;
use observer::{Event, Observer};

/// Opens a model, with a bar for what has to be downloaded.
pub fn open_model(model: &str, options: &ModelOptions, observer: &mut dyn Observer) -> Result<PipelineFiles> {
    let mut present = String::new();
    let opened = PipelineFiles::resolve(model, options, &mut |download: Download| {
        if present != download.file {
            present = download.file.to_owned();
            observer.on(Event::Begin { phase: present.clone(), total: download.total, done: download.done });
        }
        observer.on(Event::Progress { done: download.done });
    });
    if !present.is_empty() {
        observer.on(Event::End);
    }
    let opened = opened?;
    opened.check_parts()?;
    Ok(opened)
}

/// The noise schedule's configuration of a model.
pub fn scheduler_config(files: &PipelineFiles) -> Result<SchedulerConfig> {
    let text = files.scheduler_config_json()?.to_string();
    SchedulerConfig::from_json(&text)
        .map_err(|error| Error::file(files.root().join("scheduler/scheduler_config.json"), error.to_string()))
}
