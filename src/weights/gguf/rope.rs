//! Rotary positions of a LLaMA in GGUF, as transformers' `config.json` has them.

use super::file::GgufFile;
use super::metadata::Metadata;
use crate::error::Result;
use serde_json::{json, Value};

/// The factors of each pair of a head's values that llama.cpp writes for LLaMA 3.1 and later.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// What Meta's LLaMA 3.1 and 3.2 have in common; only `factor` differs, which the factors' largest is.
const LOW_FREQUENCY: f64 = 1.0;
const HIGH_FREQUENCY: f64 = 4.0;
const ORIGINAL_LENGTH: f64 = 8192.0;
/// Factors were computed in float32.
const TOLERANCE: f64 = 1e-4;

/// `rope_scaling`, or null where positions are not scaled. The inner error is a sentence about the file.
pub(super) fn scaling(
    file: &GgufFile,
    prefix: &str,
    theta: f64,
    width: i64,
) -> Result<std::result::Result<Value, String>> {
    if file.shape(FACTORS).is_some() {
        let factors: Vec<f32> = Vec::try_from(file.tensor(FACTORS)?.f_flatten(0, -1)?.f_to_kind(tch::Kind::Float)?)?;
        return Ok(of_factors(&factors, theta, width));
    }
    Ok(of_metadata(file.metadata(), prefix))
}

fn of_metadata(metadata: &Metadata, prefix: &str) -> std::result::Result<Value, String> {
    let key = |name: &str| format!("{prefix}.rope.scaling.{name}");
    let factor = || Metadata::required(&key("factor"), metadata.number(&key("factor")));
    let original = key("original_context_length");
    match metadata.text(&key("type"))? {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor()? })),
        Some("yarn") => Ok(json!({ "rope_type": "yarn", "factor": factor()?,
            "original_max_position_embeddings": Metadata::required(&original, metadata.integer(&original))? })),
        Some(other) => Err(format!("scales its rotary positions by `{other}`; none, linear and yarn are read")),
    }
}

fn of_factors(factors: &[f32], theta: f64, width: i64) -> std::result::Result<Value, String> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let near = |(pair, &found): (usize, &f32)| {
        let expected = llama3_factor(pair as f64, f64::from(factor), theta, width as f64);
        (f64::from(found) - expected).abs() <= TOLERANCE * expected
    };
    match factors.len() as i64 * 2 == width && factors.iter().enumerate().all(near) {
        true => Ok(json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW_FREQUENCY,
            "high_freq_factor": HIGH_FREQUENCY, "original_max_position_embeddings": ORIGINAL_LENGTH as i64 })),
        false => Err(format!("has rotary factors (`{FACTORS}`) that are not those of LLaMA 3; they are not read")),
    }
}

/// By what the frequency of a pair is divided: transformers' `_compute_llama3_parameters`.
fn llama3_factor(pair: f64, factor: f64, theta: f64, width: f64) -> f64 {
    let wavelength = std::f64::consts::TAU * theta.powf(2.0 * pair / width);
    let smooth = (ORIGINAL_LENGTH / wavelength - LOW_FREQUENCY) / (HIGH_FREQUENCY - LOW_FREQUENCY);
    1.0 / ((1.0 - smooth.clamp(0.0, 1.0)) / factor + smooth.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_of_llama_3_give_its_scaling_and_others_are_refused() {
        let mut factors: Vec<f32> = (0..64).map(|pair| llama3_factor(pair.into(), 8.0, 5e5, 128.0) as f32).collect();
        assert_eq!((factors[0], factors[63]), (1.0, 8.0));
        assert_eq!(of_factors(&factors, 5e5, 128).unwrap()["factor"], 8.0);
        factors[40] *= 1.01;
        assert!(of_factors(&factors, 5e5, 128).is_err());
        assert!(of_factors(&factors[..32], 5e5, 128).is_err());
    }
}
