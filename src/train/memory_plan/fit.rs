//! What to turn on, in order of cost, for a run to fit.

use super::{MemoryPlan, PlanInput, SampledImages};
use crate::error::{Error, Result};
use crate::weights::Storage;
use tch::Kind;

/// An option that saves memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggestion {
    /// The flag to give.
    pub what: String,
    /// What it saves of the peak, after those before it.
    pub saves_bytes: u64,
    /// What it costs.
    pub costs: String,
}

/// How a run can be made to fit.
#[derive(Debug, Clone)]
pub struct Fit {
    /// What to turn on, all of it, cheapest first; empty where the run fits as it is.
    pub suggestions: Vec<Suggestion>,
    /// The peak of the run as it was asked for.
    pub asked_bytes: u64,
    /// The peak with all of them.
    pub peak_bytes: u64,
    /// Whether that is within the budget; where it is not, nothing known here is.
    pub fits: bool,
}

/// An option: itself turned on in a plan's input, its flag and its cost. `None` where it is on or has nothing to do.
type Choice = for<'a> fn(&PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)>;

/// The options in order of cost. Class images can be what is largest only once batches are small.
const CHOICES: &[Choice] =
    &[cache_latents, half_precision, checkpointing, adam_8bit, sample_fewer, batch_1, sample_fewer, offload, only_unet];

fn cache_latents<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let changed = PlanInput { cache_latents: true, ..input.clone() };
    (!input.cache_latents).then(|| (changed, "--cache-latents true".into(), "one crop an image; steps get faster"))
}

fn half_precision<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    // Class images that were asked for in another dtype stay in it.
    let follows = |images: SampledImages| match images.kind == input.kind {
        true => SampledImages { kind: Kind::BFloat16, ..images },
        false => images,
    };
    let class_images = input.class_images.map(follows);
    let changed = PlanInput { kind: Kind::BFloat16, vae_kind: Kind::BFloat16, class_images, ..input.clone() };
    (input.kind == Kind::Float).then(|| {
        (
            changed,
            "--mixed-precision bf16".into(),
            "three digits of precision in activations; steps get faster where the device computes in bf16",
        )
    })
}

fn checkpointing<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let changed = PlanInput { gradient_checkpointing: true, ..input.clone() };
    (!input.gradient_checkpointing).then(|| {
        (changed, "--gradient-checkpointing".into(), "the forward runs twice: a step takes about a third longer")
    })
}

fn adam_8bit<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let changed = PlanInput { optimizer_8bit: true, ..input.clone() };
    (!input.optimizer_8bit).then(|| (changed, "--use-8bit-adam".into(), "optimizer state of one byte a number"))
}

fn sample_fewer<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let images = input.class_images.filter(|images| images.batch > 1)?;
    let changed = PlanInput { class_images: Some(SampledImages { batch: 1, ..images }), ..input.clone() };
    Some((changed, "--sample-batch-size 1".into(), "class images are made one by one"))
}

fn batch_1<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let accumulation = input.accumulation * input.batch.unsigned_abs();
    let changed = PlanInput { batch: 1, accumulation, ..input.clone() };
    let what = format!("--train-batch-size 1 --gradient-accumulation-steps {accumulation}");
    (input.batch > 1).then_some((changed, what, "the same gradient from smaller steps: somewhat slower"))
}

fn offload<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let changed = PlanInput { storage: Storage::Streamed, ..input.clone() };
    (input.storage == Storage::Dense).then(|| {
        (changed, "--offload cpu".into(), "weights are brought for each use: steps take longer where copying is slow")
    })
}

fn only_unet<'a>(input: &PlanInput<'a>) -> Option<(PlanInput<'a>, String, &'static str)> {
    let changed = PlanInput { text_lora: None, ..input.clone() };
    input
        .text_lora
        .as_ref()
        .map(|_| (changed, "no --train-text-encoder".into(), "the prompt's new word is learned less well"))
}

fn smaller<'a>(input: &PlanInput<'a>, multiple: i64) -> Option<(PlanInput<'a>, String, &'static str)> {
    let resolution = input.resolution - multiple;
    let changed = PlanInput { resolution, ..input.clone() };
    (resolution >= 256).then(|| (changed, format!("--resolution {resolution}"), "less detail in what is learned"))
}

/// What to turn on for `input` to stay within `budget_bytes`, one option after another until it does. Options that
/// save nothing are left out.
pub fn fit(budget_bytes: u64, input: &PlanInput) -> Result<Fit> {
    let mut now = input.clone();
    let asked_bytes = MemoryPlan::new(&now)?.peak_bytes;
    let mut peak_bytes = asked_bytes;
    let mut suggestions = Vec::new();
    for choice in CHOICES {
        if peak_bytes <= budget_bytes {
            break;
        }
        let Some((changed, what, costs)) = choice(&now) else { continue };
        let with = MemoryPlan::new(&changed)?.peak_bytes;
        if with < peak_bytes {
            suggestions.push(Suggestion { what, saves_bytes: peak_bytes - with, costs: costs.to_owned() });
            (now, peak_bytes) = (changed, with);
        }
    }
    let multiple = input.vae.scale_factor() * input.unet.size_multiple();
    let before = peak_bytes;
    let mut last = None;
    while peak_bytes > budget_bytes {
        let Some((changed, what, costs)) = smaller(&now, multiple) else { break };
        peak_bytes = MemoryPlan::new(&changed)?.peak_bytes;
        last = Some(Suggestion { what, saves_bytes: before.saturating_sub(peak_bytes), costs: costs.to_owned() });
        now = changed;
    }
    suggestions.extend(last);
    Ok(Fit { suggestions, asked_bytes, peak_bytes, fits: peak_bytes <= budget_bytes })
}

/// Bytes of a size such as `11GB`, `8GiB`, `6000MB`, `8g`: decimal units, binary with an `i`; a bare number is bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || Error::invalid(format!("`{text}` is no size; write it as 11GB, 8GiB or 6000MB"));
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
    let unit: u64 = match trimmed[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        "t" | "tb" => 1_000_000_000_000,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number * unit as f64;
    match bytes.is_finite() && (1.0..1e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(wrong()),
    }
}
