//! What a run changes of itself where it cannot go on as it was asked to: memory is full, or numbers are lost.

use crate::sentence::option;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

/// Options that a run gives itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Activations are computed again in backward.
    GradientCheckpointing,
    /// Attention and the VAE run by slices.
    Slicing,
    /// The VAE runs tile by tile.
    VaeTiling,
    /// Frozen weights wait in host memory.
    Offload,
    /// A smaller batch, and so many more of them a step that the step learns from as many examples.
    Batch {
        /// Examples of a batch.
        size: usize,
        /// Batches of a step.
        accumulation: u64,
    },
    /// Class images are made so many at a time.
    SampleBatch {
        /// Images at a time.
        size: usize,
    },
    /// A layer computes in float32.
    Fp32 {
        /// Its path, behind the name of its network where there are several.
        layer: String,
    },
}

impl Measure {
    /// Whether the run draws and learns from what it would have with more memory: its numbers differ by no more than rounding.
    pub fn keeps_numbers(&self) -> bool {
        matches!(self, Self::GradientCheckpointing | Self::Slicing | Self::Offload)
    }

    /// The options that it is, by name.
    pub fn options(&self) -> Map<String, Value> {
        let options = match self {
            Self::GradientCheckpointing => json!({ "gradient_checkpointing": true }),
            Self::Slicing => json!({ "slicing": true }),
            Self::VaeTiling => json!({ "vae_tiling": true }),
            Self::Offload => json!({ "offload": "cpu" }),
            Self::Batch { size, accumulation } => {
                json!({ "train_batch_size": size, "gradient_accumulation_steps": accumulation })
            }
            Self::SampleBatch { size } => json!({ "sample_batch_size": size }),
            Self::Fp32 { layer } => json!({ "fp32_layers": layer }),
        };
        options.as_object().cloned().unwrap_or_default()
    }

    /// The options in a sentence: `⟨offload⟩ cpu`.
    pub fn in_words(&self) -> String {
        let word = |(name, value): (&String, &Value)| match value {
            Value::Bool(_) => option(name),
            Value::String(text) => format!("{} {text}", option(name)),
            other => format!("{} {other}", option(name)),
        };
        self.options().iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

/// Why a measure was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Memory was full.
    MemoryWasFull,
    /// A number overflowed, or was none.
    NumbersWereLost,
}

/// A measure that a run has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Optimizer steps that were done: the next one is the first with it.
    pub step: u64,
    /// Why.
    pub because: Because,
    /// What was changed.
    pub measure: Measure,
    /// What it saves of the device's memory, as planned.
    pub saves_bytes: u64,
    /// What it costs, in words.
    pub costs: String,
}

impl Taken {
    /// As `run.json` has it: with options by their names.
    pub fn recorded(&self) -> Value {
        json!({
            "step": self.step,
            "because": self.because,
            "options": self.measure.options(),
            "saves_bytes": self.saves_bytes,
            "costs": self.costs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_is_said_as_the_options_that_it_is() {
        assert_eq!(Measure::GradientCheckpointing.in_words(), "⟨gradient_checkpointing⟩");
        assert_eq!(Measure::Offload.in_words(), "⟨offload⟩ cpu");
        let batch = Measure::Batch { size: 2, accumulation: 6 };
        assert_eq!(batch.in_words(), "⟨train_batch_size⟩ 2 ⟨gradient_accumulation_steps⟩ 6");
    }
}
