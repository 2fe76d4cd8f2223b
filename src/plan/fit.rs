//! What to turn on, in order of cost, for a run to fit.

use super::{MemoryPlan, Phase, PlanInput, SampledImages};
use crate::error::{Error, Result};
use crate::train::measure::Measure;
use crate::train::precision::Precision;
use crate::weights::{Quantize, Storage};
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

/// An input with an option turned on, its flag and its cost.
pub struct Changed<I> {
    pub(super) input: I,
    pub(super) what: String,
    pub(super) costs: &'static str,
    /// The same as a running training takes it by itself; none where it is not asked for to that.
    pub(super) measure: Option<Measure>,
}

/// An option. `None` where it is on or has nothing to do.
pub type Choice<I> = fn(&I) -> Option<Changed<I>>;

/// What a run's memory is predicted from.
pub trait Planned: Clone {
    /// Predicts the run.
    fn plan(&self) -> Result<MemoryPlan>;

    /// The options that save memory, in order of cost.
    fn choices(&self) -> Vec<Choice<Self>>;

    /// The last resort, the next step of what can be taken smaller and smaller.
    fn smaller(&self) -> Option<Changed<Self>>;
}

pub(super) const HALF_PRECISION_COSTS: &str =
    "activations keep three digits of precision; steps get faster where the device computes in this dtype";
pub(super) const CHECKPOINTING_COSTS: &str = "runs the forward pass twice: a step takes about a third longer";
pub(super) const ADAM_8BIT_COSTS: &str = "8-bit optimizer state";
pub(super) const SMALLER_BATCH_COSTS: &str = "the same gradient from smaller batches: somewhat slower";
pub(super) const QUANTIZE_COSTS: &str = "frozen weights are rounded, and expanded for each use";
pub(super) const OFFLOAD_COSTS: &str = "weights are loaded for each use: steps take longer where copying is slow";

/// The flag that has a run compute in the 16-bit dtype `half`.
pub(super) fn half_precision_flag(half: Kind) -> String {
    let name = if half == Kind::Half { Precision::Fp16 } else { Precision::Bf16 }.flag();
    format!("⟨mixed_precision⟩ {name}")
}

/// The next smaller batch that `batch` is a multiple of, and so many batches a step that the step stays as large.
pub(super) fn smaller_batch(batch: i64, accumulation: u64) -> Option<(i64, u64)> {
    let smaller = (1..=batch / 2).rev().find(|smaller| batch % smaller == 0)?;
    Some((smaller, accumulation * (batch / smaller).unsigned_abs()))
}

/// `input`, which has that batch.
pub(super) fn of_batch<I>(input: I, batch: i64, accumulation: u64) -> Changed<I> {
    Changed {
        input,
        what: format!("⟨train_batch_size⟩ {batch} ⟨gradient_accumulation_steps⟩ {accumulation}"),
        costs: SMALLER_BATCH_COSTS,
        measure: usize::try_from(batch).ok().map(|size| Measure::Batch { size, accumulation }),
    }
}

/// `input`, whose weights wait elsewhere.
pub(super) fn of_streamed<I>(input: I) -> Changed<I> {
    Changed { input, what: "⟨offload⟩ cpu".into(), costs: OFFLOAD_COSTS, measure: Some(Measure::Offload) }
}

/// `storage` in the next fewer bits of `steps`, with the flag for it.
pub(super) fn in_fewer_bits(storage: Storage, steps: [Quantize; 2]) -> Option<(Storage, String)> {
    let quantize = match storage.quantize {
        Quantize::None => steps[0],
        Quantize::Nf4 => return None,
        Quantize::Int8 | Quantize::Fp8 => steps[1],
    };
    Some((Storage { quantize, ..storage }, format!("⟨quantize⟩ {}", quantize.name())))
}

impl Planned for PlanInput<'_> {
    fn plan(&self) -> Result<MemoryPlan> {
        MemoryPlan::new(self)
    }

    fn choices(&self) -> Vec<Choice<Self>> {
        // Class images can be what is largest only once batches are small.
        let first: Choice<Self> = Self::cache_latents;
        vec![
            first,
            Self::half_precision,
            Self::checkpointing,
            Self::adam_8bit,
            Self::quantize,
            Self::sample_fewer,
            Self::slicing,
            Self::vae_tiling,
            Self::smaller_batch,
            Self::sample_fewer,
            Self::offload,
            Self::only_unet,
        ]
    }

    fn smaller(&self) -> Option<Changed<Self>> {
        let resolution = self.resolution - self.vae.scale_factor() * self.unet.size_multiple();
        let input = Self { resolution, ..self.clone() };
        let what = format!("⟨resolution⟩ {resolution}");
        (resolution >= 256).then_some(Changed { input, what, costs: "less detail in what is learned", measure: None })
    }
}

impl PlanInput<'_> {
    fn cache_latents(&self) -> Option<Changed<Self>> {
        (!self.cache_latents).then(|| Changed {
            input: Self { cache_latents: true, ..self.clone() },
            what: "⟨cache_latents⟩ true".into(),
            costs: "one fixed crop an image; steps get faster",
            measure: None,
        })
    }

    fn half_precision(&self) -> Option<Changed<Self>> {
        // Class images that were asked for in another dtype stay in it.
        let follows = |images: SampledImages| match images.kind == self.kind {
            true => SampledImages { kind: self.half, ..images },
            false => images,
        };
        let class_images = self.class_images.map(follows);
        (self.kind == Kind::Float).then(|| Changed {
            input: Self {
                kind: self.half,
                vae_kind: if self.exact_vae { self.vae_kind } else { self.half },
                class_images,
                ..self.clone()
            },
            what: half_precision_flag(self.half),
            costs: HALF_PRECISION_COSTS,
            measure: None,
        })
    }

    fn checkpointing(&self) -> Option<Changed<Self>> {
        (!self.gradient_checkpointing).then(|| Changed {
            input: Self { gradient_checkpointing: true, ..self.clone() },
            what: "⟨gradient_checkpointing⟩".into(),
            costs: CHECKPOINTING_COSTS,
            measure: Some(Measure::GradientCheckpointing),
        })
    }

    fn adam_8bit(&self) -> Option<Changed<Self>> {
        (!self.optimizer_8bit).then(|| Changed {
            input: Self { optimizer_8bit: true, ..self.clone() },
            what: "⟨use_8bit_adam⟩".into(),
            costs: ADAM_8BIT_COSTS,
            measure: None,
        })
    }

    fn sample_fewer(&self) -> Option<Changed<Self>> {
        let images = self.class_images.filter(|images| images.batch > 1)?;
        Some(Changed {
            input: Self { class_images: Some(SampledImages { batch: 1, ..images }), ..self.clone() },
            what: "⟨sample_batch_size⟩ 1".into(),
            costs: "class images are made one by one",
            measure: Some(Measure::SampleBatch { size: 1 }),
        })
    }

    fn smaller_batch(&self) -> Option<Changed<Self>> {
        let (batch, accumulation) = smaller_batch(self.batch, self.accumulation)?;
        Some(of_batch(Self { batch, accumulation, ..self.clone() }, batch, accumulation))
    }

    fn slicing(&self) -> Option<Changed<Self>> {
        (!self.slicing).then(|| Changed {
            input: Self { slicing: true, ..self.clone() },
            what: "⟨slicing⟩".into(),
            costs: "attention and the VAE run in several pieces: somewhat slower",
            measure: Some(Measure::Slicing),
        })
    }

    fn vae_tiling(&self) -> Option<Changed<Self>> {
        (!self.vae_tiling).then(|| Changed {
            input: Self { vae_tiling: true, ..self.clone() },
            what: "⟨vae_tiling⟩".into(),
            costs: "photos are encoded in tiles that fade into each other: latents are nearly the same",
            measure: Some(Measure::VaeTiling),
        })
    }

    fn offload(&self) -> Option<Changed<Self>> {
        let storage = Storage { streamed: true, ..self.storage };
        (!self.storage.streamed).then(|| of_streamed(Self { storage, ..self.clone() }))
    }

    fn quantize(&self) -> Option<Changed<Self>> {
        let (storage, what) = in_fewer_bits(self.storage, [Quantize::Fp8, Quantize::Nf4])?;
        Some(Changed { input: Self { storage, ..self.clone() }, what, costs: QUANTIZE_COSTS, measure: None })
    }

    fn only_unet(&self) -> Option<Changed<Self>> {
        (!self.text_loras.is_empty()).then(|| Changed {
            input: Self { text_loras: Vec::new(), ..self.clone() },
            what: "no ⟨train_text_encoder⟩".into(),
            costs: "the prompt's new word is learned less well",
            measure: None,
        })
    }
}

/// A saving of less than this part of the peak is none.
const NEXT_TO_NOTHING: u64 = 500;

/// What to turn on for `input`, whose plan is `asked`, to stay within `budget_bytes`, one option after another until it does. Options that
/// save next to nothing are left out.
pub fn fit<I: Planned>(budget_bytes: u64, input: &I, asked: &MemoryPlan) -> Result<Fit> {
    let mut now = input.clone();
    let asked_bytes = asked.peak_bytes;
    let mut peak_bytes = asked_bytes;
    let mut suggestions = Vec::new();
    for choice in input.choices() {
        let (before, mut found) = (peak_bytes, None);
        // A batch can be made smaller again and again.
        while peak_bytes > budget_bytes {
            let Some(Changed { input, what, costs, .. }) = choice(&now) else { break };
            let with = input.plan()?.peak_bytes;
            if with + asked_bytes / NEXT_TO_NOTHING >= peak_bytes {
                break;
            }
            (now, peak_bytes) = (input, with);
            found = Some(Suggestion { what, saves_bytes: before - with, costs: costs.to_owned() });
        }
        suggestions.extend(found);
    }
    let before = peak_bytes;
    let mut last = None;
    while peak_bytes > budget_bytes {
        let Some(Changed { input, what, costs, .. }) = now.smaller() else { break };
        peak_bytes = input.plan()?.peak_bytes;
        last = Some(Suggestion { what, saves_bytes: before.saturating_sub(peak_bytes), costs: costs.to_owned() });
        now = input;
    }
    suggestions.extend(last);
    Ok(Fit { suggestions, asked_bytes, peak_bytes, fits: peak_bytes <= budget_bytes })
}

/// Phases with attention to pixels, or with several images at a time.
const SLICED: &[&str] = &["class images", "encoding photos", "sample images", "training"];

/// What a run of `input` does by itself whose memory was full in the phase `phase`: of the same options the first that lowers that
/// phase and keeps every number of the run; else the first that lowers it at all. With what it saves there. None where nothing is left.
pub fn next_measure<I: Planned>(input: &I, phase: &str) -> Result<Option<(Measure, Suggestion)>> {
    let bytes = |input: &I| -> Result<u64> {
        let plan = input.plan()?;
        Ok(plan.phase(phase).map_or(plan.peak_bytes, Phase::bytes))
    };
    let before = bytes(input)?;
    let choices = input.choices().into_iter().filter_map(|choice| choice(input));
    let measures = choices.filter_map(|changed| Some((changed.measure.clone()?, changed)));
    let (keeping, others): (Vec<_>, Vec<_>) = measures.partition(|(measure, _)| measure.keeps_numbers());
    for (measure, Changed { input, what, costs, .. }) in keeping.into_iter().chain(others) {
        let saves_bytes = before.saturating_sub(bytes(&input)?);
        // The plan has attention without its matrix of scores, which not every card can.
        let may_save = measure == Measure::Slicing && SLICED.contains(&phase);
        if saves_bytes > 0 || may_save {
            return Ok(Some((measure, Suggestion { what, saves_bytes, costs: costs.to_owned() })));
        }
    }
    Ok(None)
}

/// More GB than any machine has: a bare number above is meant in another unit.
const MOST_GB: f64 = 10_000.0;

/// Bytes of a size such as `8`, `11GB`, `8GiB`, `6000MB`: a bare number is in GB, units are decimal, binary with an `i`.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || Error::invalid(format!("`{text}` is not a size; write it as 8 (GB), 11GB, 8GiB or 6000MB"));
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
    let unit: u64 = match trimmed[end..].trim().to_ascii_lowercase().as_str() {
        "" if number > MOST_GB => {
            return Err(Error::invalid(format!(
                "`{text}` without a unit is in GB, and more than any machine has; write the unit: {text}MB or {text}B"
            )));
        }
        "b" => 1,
        "k" | "kb" => 1000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "" | "g" | "gb" => 1_000_000_000,
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
