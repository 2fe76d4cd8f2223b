//! The rotary positions that a configuration asks for: plain ones, and those stretched to longer texts than were
//! trained on.
//! Papers: arXiv 2104.09864, YaRN arXiv 2309.00071, Llama 3 arXiv 2407.21783. Reference: transformers
//! `modeling_rope_utils.py`.
//!
//! All is computed in float32 as there: at the thousandth position the last bit of a frequency is seen.

use crate::nn::{Rotary, RotaryAngles};
use serde::Deserialize;
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// `rope_parameters`, or `rope_scaling` before transformers 5.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RopeParameters {
    rope_type: Option<String>,
    /// An older name of `rope_type`.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
}

/// What a configuration says beside them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeContext {
    /// `rope_theta` outside of the parameters.
    pub theta: Option<f64>,
    /// `original_max_position_embeddings` outside of them, which counts more.
    pub original_length: Option<f64>,
    /// Longest text.
    pub max_length: i64,
    /// Width of a head.
    pub head_width: i64,
}

const DEFAULT_THETA: f64 = 10_000.0;

/// Rotary positions of a model.
pub(super) struct Rope {
    rotary: Rotary,
    dynamic: Option<Dynamic>,
}

/// Frequencies that fall as a text grows beyond what was trained on.
struct Dynamic {
    theta: f64,
    factor: f64,
    max_length: i64,
    head_width: i64,
}

impl Rope {
    /// The positions that `parameters` ask for, or what is wrong with them.
    pub(super) fn new(parameters: &RopeParameters, at: RopeContext, device: Device) -> Result<Self, String> {
        let kind = parameters.rope_type.as_deref().or(parameters.r#type.as_deref()).unwrap_or("default");
        if parameters.partial_rotary_factor.is_some_and(|share| share != 1.0) {
            return Err("`partial_rotary_factor` is not 1, which is not supported".to_owned());
        }
        if at.head_width % 2 != 0 {
            return Err(format!("heads of width {} cannot be turned in pairs; it must be even", at.head_width));
        }
        let theta = parameters.rope_theta.or(at.theta).unwrap_or(DEFAULT_THETA);
        let plain = frequencies(theta, at.head_width);
        let original = at.original_length.or(parameters.original_max_position_embeddings);
        let original = original.unwrap_or(at.max_length as f64);
        let (frequencies, magnitude, dynamic) = match kind {
            "default" => (plain, 1.0, None),
            "linear" => (plain / parameters.factor()?, 1.0, None),
            "dynamic" => {
                let (factor, max_length) = (parameters.factor()?, at.max_length);
                (plain, 1.0, Some(Dynamic { theta, factor, max_length, head_width: at.head_width }))
            }
            "llama3" => (parameters.llama3(plain, original)?, 1.0, None),
            "yarn" => {
                let factor = parameters.factor.unwrap_or(at.max_length as f64 / original);
                (parameters.yarn(theta, factor, original, at.head_width), parameters.yarn_magnitude(factor), None)
            }
            other => {
                return Err(format!(
                    "rotary positions of the type {other} are not supported; these are: default, linear, dynamic, llama3, yarn"
                ))
            }
        };
        Ok(Self { rotary: Rotary { frequencies: frequencies.to_device(device), magnitude }, dynamic })
    }

    /// The turns of `positions` `[b, t]` in `kind`.
    pub(super) fn angles(&self, positions: &Tensor, kind: Kind) -> RotaryAngles {
        let Some(dynamic) = &self.dynamic else { return self.rotary.angles(positions, kind) };
        // The one kind of positions whose frequencies hang on numbers that the device holds.
        let length = positions.max() + 1;
        if length.int64_value(&[]) <= dynamic.max_length {
            return self.rotary.angles(positions, kind);
        }
        Rotary { frequencies: dynamic.frequencies(&length), magnitude: self.rotary.magnitude }.angles(positions, kind)
    }
}

impl Dynamic {
    /// Of a text of `length` tokens (int64, a number).
    fn frequencies(&self, length: &Tensor) -> Tensor {
        let width = self.head_width as f64;
        let stretch = length * self.factor / self.max_length as f64 - (self.factor - 1.0);
        let theta = stretch.pow_tensor_scalar(width / (width - 2.0)) * self.theta;
        theta.pow(&exponents(self.head_width).to_device(length.device())).reciprocal()
    }
}

/// `2i / width` of pair i: float32 `[width / 2]`
fn exponents(width: i64) -> Tensor {
    Tensor::arange_start_step(0, width, 2, (Kind::Float, Device::Cpu)) / width as f64
}

fn wavelengths(theta: f64, width: i64) -> Tensor {
    Tensor::pow_scalar(theta, &exponents(width))
}

fn frequencies(theta: f64, width: i64) -> Tensor {
    wavelengths(theta, width).reciprocal()
}

impl RopeParameters {
    fn factor(&self) -> Result<f64, String> {
        self.needed("factor", self.factor)
    }

    fn needed(&self, name: &str, value: Option<f64>) -> Result<f64, String> {
        match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(format!("`{name}` of the rotary positions is {value}; it must be greater than 0")),
            None => Err(format!("the rotary positions have no `{name}`")),
        }
    }

    /// Long waves are stretched, short ones left, those between in part.
    fn llama3(&self, plain: Tensor, original: f64) -> Result<Tensor, String> {
        let factor = self.factor()?;
        let low = self.needed("low_freq_factor", self.low_freq_factor)?;
        let high = self.needed("high_freq_factor", self.high_freq_factor)?;
        let waves = plain.reciprocal() * (2.0 * PI);
        let smooth = (waves.reciprocal() * original - low) / (high - low);
        let between: Tensor = (1.0 - &smooth) * &plain / factor + smooth * &plain;
        let stretched = (&plain / factor).where_self(&waves.gt(original / low), &plain);
        let is_between = waves.ge(original / high).logical_and(&waves.le(original / low));
        Ok(between.where_self(&is_between, &stretched))
    }

    /// Pairs that turn often in the trained length keep their frequency, those that don't turn once are stretched.
    fn yarn(&self, theta: f64, factor: f64, original: f64, width: i64) -> Tensor {
        let pair_that_turns = |times: f64| width as f64 * (original / (times * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let given = |value: Option<f64>, default: f64| value.filter(|&value| value != 0.0).unwrap_or(default);
        let mut first = pair_that_turns(given(self.beta_fast, 32.0));
        let mut last = pair_that_turns(given(self.beta_slow, 1.0));
        if self.truncate.unwrap_or(true) {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min((width - 1) as f64));
        if first == last {
            last += 0.001;
        }
        let pairs = Tensor::arange(width / 2, (Kind::Float, Device::Cpu));
        let kept: Tensor = 1.0 - ((pairs - first) / (last - first)).clamp(0.0, 1.0);
        let waves = wavelengths(theta, width);
        (&waves * factor).reciprocal() * (1.0 - &kept) + waves.reciprocal() * kept
    }

    fn yarn_magnitude(&self, factor: f64) -> f64 {
        let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let given = |value: Option<f64>| value.filter(|&value| value != 0.0);
        match (self.attention_factor, given(self.mscale), given(self.mscale_all_dim)) {
            (Some(magnitude), _, _) => magnitude,
            (None, Some(one), Some(all)) => of(one) / of(all),
            (None, _, _) => of(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, Value};

    const AT: RopeContext = RopeContext { theta: None, original_length: None, max_length: 2048, head_width: 8 };

    fn rope(parameters: Value) -> Result<Rope, String> {
        Rope::new(&serde_json::from_value(parameters).unwrap(), AT, Device::Cpu)
    }

    fn numbers(rope: &Rope) -> Vec<f32> {
        Vec::try_from(&rope.rotary.frequencies).unwrap()
    }

    #[test]
    fn frequencies_fall_as_powers_of_theta() {
        let plain = numbers(&rope(json!({ "rope_theta": 10000.0 })).unwrap());
        for (actual, expected) in plain.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((actual / expected - 1.0).abs() < 1e-6);
        }
        let halved = numbers(&rope(json!({ "type": "linear", "factor": 2.0 })).unwrap());
        assert!(plain.iter().zip(&halved).all(|(plain, halved)| plain / 2.0 == *halved));
    }

    #[test]
    fn llama_3_leaves_short_waves_and_stretches_long_ones() {
        let parameters = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1000 });
        let (plain, scaled) = (numbers(&rope(json!({})).unwrap()), numbers(&rope(parameters).unwrap()));
        // Waves of 6, 63, 628 and 6283 positions.
        assert_eq!(plain[..2], scaled[..2]);
        assert!(scaled[2] < plain[2] && scaled[2] > plain[2] / 8.0);
        assert_eq!(plain[3] / 8.0, scaled[3]);
    }

    #[test]
    fn what_cannot_be_computed_is_told() {
        for (parameters, word) in [
            (json!({ "rope_type": "longrope" }), "longrope"),
            (json!({ "rope_type": "linear" }), "factor"),
            (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        ] {
            let message = rope(parameters).err().unwrap();
            assert!(message.contains(word), "{message}");
        }
    }
}
