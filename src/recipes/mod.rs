//! Whole jobs: a configuration and one explicit loop each.

pub mod complete;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod dreambooth;
pub mod evaluate;
pub mod generate;
mod image_names;
pub mod kohya_metadata;
pub mod language;
pub mod merge;
pub mod prompt_checks;
pub mod push;
pub mod training;

use crate::adapters::{read_any, short_name, AdapterSet, Attached};
use crate::error::{Error, Result};
use crate::interrupt::{self, BriefInterrupt};
use crate::libtorch::half_precision::has_units;
use crate::libtorch::startup::cuda_capability;
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::options::adapter_argument;
use crate::options::storage::StorageArgs;
use crate::plain_text::counted;
use crate::plan::Rates;
use crate::train::precision::Precision;
use crate::weights::hub::{Download, Listener};
use crate::weights::{Quantize, Storage};
use serde_json::json;
use std::path::Path;
use tch::{Device, Kind};
use training::observer::{Event, Observer};

/// Opens a model, with a bar for what has to be downloaded. The interrupt that this thread watches ends the download; Ctrl-C, too,
/// where nothing else in the process listens to it.
pub fn open_model(model: &str, options: &ModelOptions, observer: &mut dyn Observer) -> Result<PipelineFiles> {
    let opened = with_bar(observer, |listener| PipelineFiles::resolve(model, options, listener))?;
    opened.check_parts()?;
    opened.warnings().into_iter().for_each(|text| observer.warning(text));
    Ok(opened)
}

/// What `fetch` gives, with a bar for its downloads, which end as [`open_model`]'s do.
fn with_bar<T>(observer: &mut dyn Observer, fetch: impl FnOnce(&mut dyn Listener) -> Result<T>) -> Result<T> {
    let mut bar = DownloadBar { observer, signals: None, shown: false };
    let result = fetch(&mut bar);
    if bar.shown {
        bar.observer.on(Event::End);
    }
    result.map_err(|error| match error {
        Error::Interrupted(_) => Error::Interrupted(
            "what was downloaded is kept, and the same command continues the download where it stopped".to_owned(),
        ),
        other => other,
    })
}

/// Shows downloads, and ends them where the user wants that.
struct DownloadBar<'a> {
    observer: &'a mut dyn Observer,
    /// From the first wait on, where nothing else listens to signals.
    signals: Option<BriefInterrupt>,
    shown: bool,
}

impl Listener for DownloadBar<'_> {
    fn on(&mut self, Download { file, total, done }: Download) {
        self.shown = true;
        self.observer.on(Event::Download { file: file.to_owned(), total, done });
    }

    fn check(&mut self) -> Result<()> {
        interrupt::check()?;
        if interrupt::hears_signals() {
            return Ok(());
        }
        let signals = match self.signals.take() {
            Some(signals) => signals,
            None => BriefInterrupt::on_signals()?,
        };
        self.signals.insert(signals).check()
    }
}

/// Reads the adapter at `path`, which must fit the pipeline behind `files`, with a warning for what it leaves out.
pub fn read_adapter(path: &Path, files: &PipelineFiles, observer: &mut dyn Observer) -> Result<AdapterSet> {
    let set = read_any(path, Some(&files.base_model()?))?;
    set.warnings.iter().for_each(|text| observer.warning(text.clone()));
    Ok(set)
}

/// Reports what computes and in which dtype, and what the dtype costs where the processor computes faster in float32.
pub fn report_device(device: Device, kind: Kind, observer: &mut dyn Observer) -> Result<()> {
    let fields = json!({ "device": device_flag(device), "dtype": dtype_name(kind), "threads": tch::get_num_threads() });
    observer.fact_with("device", device_name(device, kind), fields);
    slow_dtype(device, kind)?.into_iter().for_each(|text| observer.warning(text));
    Ok(())
}

/// What `kind` costs, in words, where it saves memory but no time on the CPU, or on a card without units for it.
pub fn slow_dtype(device: Device, kind: Kind) -> Result<Option<String>> {
    if let (Device::Cuda(index), Kind::BFloat16) = (device, kind) {
        return Ok(cuda_capability(index).filter(|&(major, _)| major < 8).map(|(major, minor)| {
            format!(
                "this card, of compute capability {major}.{minor}, has no units for bf16: it computes in fp32 and holds attention's whole \
                 matrix of scores; fp16 is faster and takes less memory"
            )
        }));
    }
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

/// Reports how `weights` are kept, where that is not as they lie in memory anyway.
pub fn report_weights(weights: &StorageArgs, device: Device, observer: &mut dyn Observer) {
    let Storage { quantize, int8_threshold, streamed } = weights.storage();
    let bits = match quantize {
        Quantize::None => None,
        Quantize::Int8 => {
            Some(format!("linear layers in 8 bits; inputs of {int8_threshold} or more are computed in 16"))
        }
        Quantize::Nf4 => Some("linear layers in 4 bits (NF4)".to_owned()),
        Quantize::Fp8 => Some("linear layers and convolutions in 8 bits (e4m3)".to_owned()),
    };
    let waits = match (streamed, device, quantize) {
        (false, ..) => None,
        (true, Device::Cpu, Quantize::None) => Some(("in their files, each block loaded when it is used", "files")),
        (true, Device::Cpu, _) => Some(("in files, each block loaded when it is used", "files")),
        (true, ..) => Some(("in host memory, each block copied when it is used", "host")),
    };
    let words: Vec<&str> = bits.as_deref().into_iter().chain(waits.map(|(words, _)| words)).collect();
    let Some(storage) = bits.as_ref().map(|_| quantize.name()).or(waits.map(|(_, name)| name)) else { return };
    let threshold = (quantize == Quantize::Int8).then_some(int8_threshold);
    let fields = json!({ "storage": storage, "offload": waits.map(|(_, name)| name), "int8_threshold": threshold });
    observer.fact_with("weights", words.join("; "), fields);
}

/// Reports an adapter, as `PATH=SCALE` names it.
pub fn report_given_adapter(text: &str, observer: &mut dyn Observer) {
    let (path, scale) = adapter_argument::path_and_scale("⟨adapter⟩", text).unwrap_or((text.into(), 1.0));
    observer.fact_with("adapter", text, json!({ "path": path.display().to_string(), "scale": scale }));
}

/// Reports what a run starts from: `text`, and the adapter at `path` where there is one.
fn report_start(text: String, path: Option<&Path>, run: &training::run::Run, observer: &mut dyn Observer) {
    // A resumed run has said from which checkpoint.
    if run.is_resumed() {
        return;
    }
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
    let text = format!(
        "LoRA of rank {ranks}, alpha {alpha}, on {}: {kinds}\n{}",
        counted(modules, "module"),
        adapter.summary()
    );
    observer.fact_with(name, text, fields);
}
