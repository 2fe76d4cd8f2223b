//! The memory and the work of a run, predicted from configurations alone: the networks are loaded and run as for the run itself, on tensors
//! without numbers.

mod cards;
mod dreambooth;
mod fit;
mod language;
mod networks;
mod speed;
mod work;

pub use cards::Card;
pub use dreambooth::{text_encoder_weights, unet_weights, vae_weights, PlanInput, SampledImages};
pub use fit::{fit, next_measure, parse_size, Fit, Planned, Suggestion};
pub use language::{Evaluations, LanguagePlanInput, Lengths, PlannedPrompt, Texts};
pub use speed::Rates;
pub use work::{Product, Work};

use crate::libtorch::half_precision::has_units;
use tch::{Device, Kind};

/// What libtorch itself takes on the host once it computes in float32: its code's pages, buffers for packing. Measured.
const HOST_RUNTIME: u64 = 48 << 20;

/// The same in bfloat16, where the processor has units for it, and what oneDNN compiles beside that for each product. Measured.
const HOST_RUNTIME_HALF: u64 = 60 << 20;
const HOST_KERNEL_HALF: u64 = 1 << 20;

/// The same without convolutions, in float32 and in bfloat16. Measured.
const HOST_RUNTIME_TEXT: u64 = 4 << 20;
const HOST_RUNTIME_TEXT_HALF: u64 = 30 << 20;

/// Share of what is kept in small blocks that is lost between them. Measured.
const HEAP_GAPS: f64 = 0.15;

/// Gaps that any step leaves.
const HEAP_BASE: u64 = 20 << 20;

/// cuBLAS' and cuDNN's workspaces.
const CUDA_RUNTIME: u64 = 64 << 20;

/// A stretch of a run, what is in memory at its highest point, and what it computes.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What the run does.
    pub name: &'static str,
    /// What takes memory, in bytes.
    pub parts: Vec<(String, u64)>,
    /// Its work from start to end.
    pub work: Work,
}

impl Phase {
    /// The phase's peak in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The prediction.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// The phases of the run, in their order.
    pub phases: Vec<Phase>,
    /// The highest of their peaks: bytes of the device, or of the host above the start of the process.
    pub peak_bytes: u64,
    /// Elements of the adapters.
    pub trained_parameters: u64,
    /// The work of an optimizer step.
    pub step_work: Work,
}

/// Bytes of a number.
fn width(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

impl MemoryPlan {
    fn of(phases: Vec<Phase>, trained_parameters: u64, step_work: Work) -> Self {
        let peak_bytes = phases.iter().map(Phase::bytes).max().unwrap_or(0);
        Self { phases, peak_bytes, trained_parameters, step_work }
    }

    /// All that is computed, a step of the training counted once more.
    pub fn work(&self) -> Work {
        self.phases.iter().fold(self.step_work.clone(), |all, phase| all.plus(phase.work.clone()))
    }

    /// The phase called `name`.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }
}

/// Adapters of so many numbers, with their gradients, and the optimizer's state of so many bytes.
fn adapter_parts(trained: u64, state: u64) -> [(String, u64); 2] {
    [("adapters and their gradients".to_owned(), trained * 8), ("optimizer state".to_owned(), state)]
}

/// What is lost between blocks of the host's heap.
fn gaps(device: Device, kept_small: u64) -> Option<(String, u64)> {
    let lost = (kept_small as f64 * HEAP_GAPS) as u64 + HEAP_BASE;
    (!matches!(device, Device::Cuda(_))).then(|| ("heap fragmentation".to_owned(), lost))
}

/// What libtorch takes by itself for networks with convolutions, of so many different products.
fn runtime(device: Device, kind: Kind, products: usize) -> (String, u64) {
    match device {
        Device::Cuda(_) => cuda_runtime(),
        _ if width(kind) < 4 && has_units(kind) => host_runtime(HOST_RUNTIME_HALF + HOST_KERNEL_HALF * products as u64),
        _ => host_runtime(HOST_RUNTIME),
    }
}

/// The same without convolutions.
fn runtime_text(device: Device, kind: Kind) -> (String, u64) {
    match device {
        Device::Cuda(_) => cuda_runtime(),
        _ => host_runtime(if width(kind) < 4 { HOST_RUNTIME_TEXT_HALF } else { HOST_RUNTIME_TEXT }),
    }
}

fn cuda_runtime() -> (String, u64) {
    ("cuBLAS and cuDNN".to_owned(), CUDA_RUNTIME)
}

fn host_runtime(bytes: u64) -> (String, u64) {
    ("libtorch and oneDNN".to_owned(), bytes)
}

#[cfg(test)]
mod language_tests;
#[cfg(test)]
mod tests;
