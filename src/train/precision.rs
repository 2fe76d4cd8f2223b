//! In what numbers a model computes, and the loss scale that float16 needs.

use crate::error::{Error, Result};
use crate::libtorch::fused_adamw::check_and_scale;
use crate::libtorch::half_precision::has_units;
use crate::libtorch::startup::cuda_capability;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use tch::{Device, Kind, Tensor};

/// The numbers of frozen weights and activations; what is trained is float32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// float32 (`--mixed-precision no`).
    Fp32,
    /// bfloat16: float32's range, no loss scale needed.
    Bf16,
    /// float16: needs a [`LossScaler`].
    Fp16,
}

impl Precision {
    /// The kind of weights and activations.
    pub fn compute_kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::Fp16 => Kind::Half,
        }
    }

    /// As `--mixed-precision` names it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Fp32 => "no",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }

    /// Whether gradients can underflow, so that the loss must be scaled.
    pub fn needs_loss_scale(self) -> bool {
        self == Self::Fp16
    }

    /// What `device` computes fast in: bfloat16 where the hardware has it, float16 on older CUDA cards, else float32.
    pub fn auto(device: Device) -> Self {
        match device {
            Device::Cuda(index) => Self::of_capability(cuda_capability(index)),
            Device::Cpu if cpu_is_fast_in_bf16() => Self::Bf16,
            _ => Self::Fp32,
        }
    }

    /// For a CUDA card's compute capability: 8.0 and above has bfloat16; unknown counts as older.
    pub fn of_capability(capability: Option<(i64, i64)>) -> Self {
        match capability {
            Some((8.., _)) => Self::Bf16,
            _ => Self::Fp16,
        }
    }
}

/// The 16-bit dtype that `device` computes in: float16 on CUDA cards without bfloat16.
pub fn half_kind(device: Device) -> Kind {
    match device {
        Device::Cuda(_) => Precision::auto(device).compute_kind(),
        _ => Kind::BFloat16,
    }
}

fn cpu_is_fast_in_bf16() -> bool {
    has_units(Kind::BFloat16) && computes_bf16(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// Whether a processor with this /proc/cpuinfo computes faster in bfloat16 than in float32: with AMX's tiles, or AMD's
/// AVX512_BF16 (measured: 3.5 to 5 times as fast). Intel's AVX512_BF16 alone is half as fast as its float32.
fn computes_bf16(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |wanted: &str| flags.split_whitespace().any(|flag| flag == wanted);
    has("amx_bf16") || has("avx512_bf16") && cpuinfo.contains("AuthenticAMD")
}

impl FromStr for Precision {
    type Err = Error;

    /// `no`, `bf16` or `fp16`, and `fp32` for `no`; `auto` is [`Precision::auto`]'s.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "no" | "fp32" => Ok(Self::Fp32),
            "bf16" => Ok(Self::Bf16),
            "fp16" => Ok(Self::Fp16),
            _ => Err(Error::invalid(format!("⟨mixed_precision⟩ is {name:?}; it can be auto, no, fp16 or bf16"))),
        }
    }
}

/// What of a [`LossScaler`] goes into a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScalerState {
    /// The factor of the loss.
    pub scale: f64,
    /// Steps since the factor last changed.
    pub good_steps: u64,
    /// Steps that were skipped, over the whole run.
    pub skipped_steps: u64,
}

/// Dynamic loss scaling with `torch.amp.GradScaler`'s rules: the factor starts at 65536, doubles after 2000 good steps
/// in a row and halves at each overflow.
#[derive(Debug)]
pub struct LossScaler {
    state: ScalerState,
}

const INITIAL_SCALE: f64 = 65536.0;
const GROWTH_FACTOR: f64 = 2.0;
const BACKOFF_FACTOR: f64 = 0.5;
const GROWTH_INTERVAL: u64 = 2000;

impl Default for LossScaler {
    fn default() -> Self {
        Self { state: ScalerState { scale: INITIAL_SCALE, good_steps: 0, skipped_steps: 0 } }
    }
}

impl LossScaler {
    /// Continues from a checkpoint.
    pub fn from_state(state: ScalerState) -> Result<Self> {
        match state.scale.is_finite() && state.scale > 0.0 {
            true => Ok(Self { state }),
            false => Err(Error::invalid(format!("the loss scale of the checkpoint is {}", state.scale))),
        }
    }

    /// What a checkpoint keeps; also the number of skipped steps and the factor, for the reader.
    pub fn state(&self) -> ScalerState {
        self.state
    }

    /// The loss to run backward from.
    pub fn scale(&self, loss: &Tensor) -> Tensor {
        loss * self.state.scale
    }

    /// Divides `grads` by the factor in place, once before each optimizer step. Returns a number on their device, read by nobody yet: not 0
    /// where some gradient overflowed, so that this step must be skipped. `None` without gradients.
    pub fn unscale(&self, grads: &[Tensor]) -> Result<Option<Tensor>> {
        // As torch: the inverse in float64, then one product in the gradients' kind.
        (!grads.is_empty()).then(|| check_and_scale(grads, 1.0 / self.state.scale)).transpose()
    }

    /// Adapts the factor to a step whose gradients were all `finite`, or not.
    pub fn update(&mut self, finite: bool) {
        let state = &mut self.state;
        if !finite {
            state.scale *= BACKOFF_FACTOR;
            state.good_steps = 0;
            state.skipped_steps += 1;
            return;
        }
        state.good_steps += 1;
        if state.good_steps == GROWTH_INTERVAL {
            let grown = state.scale * GROWTH_FACTOR;
            if grown <= f64::from(f32::MAX) {
                state.scale = grown;
            }
            state.good_steps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_is_chosen_where_the_processor_has_it() {
        assert!(computes_bf16("vendor_id : AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16 sse\n"));
        assert!(!computes_bf16("vendor_id : GenuineIntel\nflags\t\t: fpu avx512f avx512_bf16 sse\n"));
        assert!(computes_bf16("flags : amx_bf16\n"));
        assert!(!computes_bf16("flags : avx512f avx512bw\n"));
        assert!(!computes_bf16(""));
        assert_eq!(Precision::of_capability(Some((8, 0))), Precision::Bf16);
        assert_eq!(Precision::of_capability(Some((7, 5))), Precision::Fp16);
    }

    #[test]
    fn gradients_come_back_unscaled() {
        let grads = [Tensor::from_slice(&[65536f32, -131072.])];
        let overflow = LossScaler::default().unscale(&grads).unwrap().unwrap();
        assert_eq!(overflow.double_value(&[0]), 0.0);
        assert_eq!(Vec::<f32>::try_from(&grads[0]).unwrap(), [1., -2.]);
    }

    #[test]
    fn an_overflow_skips_the_step_and_halves_the_scale() {
        let mut scaler = LossScaler::default();
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let overflow = scaler.unscale(&[Tensor::from_slice(&[0f32, 1.]), Tensor::from_slice(&[2f32, bad])]);
            assert_eq!(overflow.unwrap().unwrap().double_value(&[0]), 1.0, "{bad}");
        }
        scaler.update(false);
        assert_eq!(scaler.state(), ScalerState { scale: 32768., good_steps: 0, skipped_steps: 1 });
    }

    #[test]
    fn two_thousand_good_steps_double_the_scale_also_across_a_resume() {
        let mut scaler = LossScaler::default();
        (0..1999).for_each(|_| scaler.update(true));
        let mut scaler = LossScaler::from_state(scaler.state()).unwrap();
        assert_eq!(scaler.state().scale, 65536.);
        scaler.update(true);
        assert_eq!(scaler.state(), ScalerState { scale: 131072., good_steps: 0, skipped_steps: 0 });
    }
}
