//! `scheduler_config.json`: how a model was noised in training, and what its authors sample it with.
//! Reference: diffusers' `ConfigMixin` and the `__init__` of each scheduler.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::json_fields;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// What the model's output is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise in the noisy latents.
    #[default]
    Epsilon,
    /// The velocity `sqrt(ᾱ) noise - sqrt(1 - ᾱ) latents` (Salimans and Ho, arXiv 2202.00512).
    VPrediction,
    /// The latents without noise.
    Sample,
}

impl PredictionType {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::VPrediction => "v_prediction",
            Self::Sample => "sample",
        }
    }

    /// Its name in Stability's model specification.
    pub fn modelspec_name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::VPrediction => "v",
            Self::Sample => "x0",
        }
    }
}

/// How beta grows over the training timesteps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// From `beta_start` to `beta_end` in equal steps.
    #[default]
    Linear,
    /// Its square root grows in equal steps (Stable Diffusion).
    ScaledLinear,
    /// The cosine schedule of Nichol and Dhariwal (arXiv 2102.09672).
    SquaredcosCapV2,
}

/// How the timesteps of sampling are picked from those of training (arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Equal steps from 0 to the last, both included.
    Linspace,
    /// Multiples of a whole step, from 0 (plus `steps_offset`).
    Leading,
    /// Backwards from the last in equal steps.
    Trailing,
}

/// The noise level behind the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// No noise.
    #[default]
    Zero,
    /// That of training timestep 0.
    SigmaMin,
}

/// A scheduler's configuration under diffusers' names. `None` is a field that the file does not have: each sampler
/// then takes its own default, as `from_config` does it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The model's own sampler, e.g. `PNDMScheduler`.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Number of training timesteps (1000).
    pub num_train_timesteps: Option<i64>,
    /// Beta of the first timestep.
    pub beta_start: Option<f64>,
    /// Beta of the last timestep.
    pub beta_end: Option<f64>,
    /// How beta grows between them (linear).
    pub beta_schedule: Option<BetaSchedule>,
    /// Betas of all timesteps, instead of the three fields above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model's output is (epsilon).
    pub prediction_type: Option<PredictionType>,
    /// How timesteps are picked.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps of the leading spacing (0).
    pub steps_offset: Option<i64>,
    /// Clamp the predicted sample to ±`clip_sample_range`: DDIM, DDPM and Heun.
    pub clip_sample: Option<bool>,
    /// See `clip_sample` (1).
    pub clip_sample_range: Option<f64>,
    /// ᾱ behind the last step is 1 instead of that of timestep 0: DDIM and PNDM.
    pub set_alpha_to_one: Option<bool>,
    /// PNDM without its Runge-Kutta warm-up (false).
    pub skip_prk_steps: Option<bool>,
    /// Shift the schedule so that the last training timestep has no signal left (arXiv 2305.08891, algorithm 1).
    pub rescale_betas_zero_snr: Option<bool>,
    /// DDPM: `fixed_small` (default), `fixed_small_log` or `fixed_large`.
    pub variance_type: Option<String>,
    /// Dynamic thresholding, which only models of pixels use: refused.
    pub thresholding: Option<bool>,
    /// Noise levels of Karras et al. (arXiv 2206.00364, equation 5).
    pub use_karras_sigmas: Option<bool>,
    /// Refused by the samplers that would use it.
    pub use_exponential_sigmas: Option<bool>,
    /// Refused by the samplers that would use it.
    pub use_beta_sigmas: Option<bool>,
    /// Refused by the samplers that would use it.
    pub use_lu_lambdas: Option<bool>,
    /// Refused by the samplers that would use it.
    pub use_flow_sigmas: Option<bool>,
    /// Lowest noise level of the Karras levels.
    pub sigma_min: Option<f64>,
    /// Highest noise level of the Karras levels.
    pub sigma_max: Option<f64>,
    /// The noise level behind the last step (zero).
    pub final_sigmas_type: Option<FinalSigmas>,
    /// Euler: `linear` only.
    pub interpolation_type: Option<String>,
    /// Euler: `discrete` only.
    pub timestep_type: Option<String>,
    /// DPM-Solver: `dpmsolver++` only.
    pub algorithm_type: Option<String>,
    /// DPM-Solver and UniPC: order of the multistep formula, 1 to 3 (2).
    pub solver_order: Option<usize>,
    /// DPM-Solver: `midpoint` or `heun`; UniPC: `bh2` or `bh1`; a name of the other's means the default.
    pub solver_type: Option<String>,
    /// Lower orders in the last steps (true).
    pub lower_order_final: Option<bool>,
    /// DPM-Solver: the last step is of first order (false).
    pub euler_at_final: Option<bool>,
    /// DPM-Solver: cuts the first timesteps of a cosine schedule: refused where finite.
    pub lambda_min_clipped: Option<f64>,
    /// UniPC: predicts the sample instead of the noise: true only.
    pub predict_x0: Option<bool>,
    /// UniPC: steps without the corrector.
    pub disable_corrector: Option<Vec<usize>>,
    /// UniPC: another predictor: refused.
    pub solver_p: Option<Value>,
}

impl SchedulerConfig {
    /// Reads `scheduler/scheduler_config.json` of a model folder.
    pub fn from_folder(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("scheduler").join("scheduler_config.json");
        let text = regular_file::read_text(&path, FileKind::CONFIG)?;
        Self::from_json(&text).map_err(|error| Error::file(&path, error.to_string()))
    }

    /// Reads the text of a `scheduler_config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        // Python writes infinities that are no JSON: `"lambda_min_clipped": -Infinity`.
        let text = text.replace(": -Infinity", ": null").replace(": Infinity", ": null");
        let unsupported = |error| Error::invalid(format!("not a scheduler configuration that is supported: {error}"));
        let value: Value = serde_json::from_str(&text).map_err(|error| unsupported(error.to_string()))?;
        let config: Self = json_fields::parse(&value).map_err(unsupported)?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what no part of this crate can honour.
    fn check(&self) -> Result<()> {
        refuse(self.thresholding == Some(true), "thresholding", "true")?;
        let steps = self.num_train_timesteps();
        if !(1..=1_000_000).contains(&steps) {
            return Err(Error::invalid(format!("`num_train_timesteps` is {steps}, it must be 1 to 1000000")));
        }
        if let Some(betas) = &self.trained_betas {
            if betas.len() as i64 != steps {
                return Err(Error::invalid(format!(
                    "`trained_betas` has {} values, `num_train_timesteps` is {steps}: they must be equal",
                    betas.len()
                )));
            }
        }
        let in_range = |beta: &f64| (0.0..=1.0).contains(beta);
        if !self.beta_start.iter().chain(&self.beta_end).chain(self.trained_betas.iter().flatten()).all(in_range) {
            return Err(Error::invalid("betas must lie between 0 and 1; check `beta_start` and `beta_end`"));
        }
        let offset = self.steps_offset();
        if !(0..steps).contains(&offset) {
            return Err(Error::invalid(format!("`steps_offset` is {offset}, it must be 0 to {}", steps - 1)));
        }
        Ok(())
    }

    /// What diffusers' Stable Diffusion pipelines make of the configuration of the sampler that they are given:
    /// `steps_offset` is 1 and samples are not clipped, whatever an outdated file says.
    pub fn for_stable_diffusion(mut self) -> Self {
        self.steps_offset = Some(1);
        self.clip_sample = Some(false);
        self
    }

    /// Number of training timesteps.
    pub fn num_train_timesteps(&self) -> i64 {
        self.num_train_timesteps.unwrap_or(1000)
    }

    /// What the model's output is.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction_type.unwrap_or_default()
    }

    /// What is added to the timesteps of the leading spacing.
    pub fn steps_offset(&self) -> i64 {
        self.steps_offset.unwrap_or(0)
    }

    /// The range that predicted samples are clamped to, where they are.
    pub(super) fn clip_range(&self, default: bool) -> Option<f64> {
        self.clip_sample.unwrap_or(default).then(|| self.clip_sample_range.unwrap_or(1.0))
    }

    /// Whether the schedule is shifted to end without signal.
    pub fn zero_snr(&self) -> bool {
        self.rescale_betas_zero_snr == Some(true)
    }

    /// Refuses the spacings of noise levels that are not implemented.
    pub(super) fn check_sigmas(&self) -> Result<()> {
        refuse(self.use_exponential_sigmas == Some(true), "use_exponential_sigmas", "true")?;
        refuse(self.use_beta_sigmas == Some(true), "use_beta_sigmas", "true")?;
        refuse(self.use_lu_lambdas == Some(true), "use_lu_lambdas", "true")?;
        refuse(self.use_flow_sigmas == Some(true), "use_flow_sigmas", "true")
    }

    /// Refuses a text field whose value is not among `known`.
    pub(super) fn check_text(name: &str, value: &Option<String>, known: &[&str]) -> Result<()> {
        match value {
            Some(value) => refuse(!known.contains(&value.as_str()), name, value),
            None => Ok(()),
        }
    }
}

/// An error that names the field and its value, where `unsupported`.
pub(super) fn refuse(unsupported: bool, name: &str, value: &str) -> Result<()> {
    if unsupported {
        return Err(Error::invalid(format!(
            "the scheduler configuration has `{name}: {value}`, which is not supported; choose another with ⟨scheduler⟩"
        )));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        SchedulerConfig::from_json(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_stay_open() {
        let config = SchedulerConfig::from_json(r#"{"_class_name": "PNDMScheduler", "new_field": [1]}"#).unwrap();
        assert_eq!(config.class_name.as_deref(), Some("PNDMScheduler"));
        assert_eq!(config.timestep_spacing, None);
        assert_eq!(config.prediction_type(), PredictionType::Epsilon);
    }

    #[test]
    fn values_that_cannot_be_honoured_are_refused_by_name() {
        assert!(refusal(r#"{"thresholding": true}"#).contains("`thresholding: true`"));
        assert!(refusal(r#"{"beta_schedule": "sigmoid"}"#).contains("`sigmoid`"));
        assert!(refusal(r#"{"prediction_type": "flow_prediction"}"#).contains("`flow_prediction`"));
        assert!(refusal(r#"{"timestep_spacing": "odd"}"#).contains("`odd`"));
        assert!(refusal(r#"{"num_train_timesteps": 0}"#).contains("num_train_timesteps"));
        assert!(refusal(r#"{"trained_betas": [0.1, 0.2]}"#).contains("trained_betas"));
        assert!(refusal(r#"{"beta_end": 3.0}"#).contains("beta_end"));
        assert!(refusal(r#"{"steps_offset": -1}"#).contains("steps_offset"));
    }

    #[test]
    fn pythons_minus_infinity_is_read() {
        let config = SchedulerConfig::from_json("{\"lambda_min_clipped\": -Infinity,\n \"steps_offset\": 1}").unwrap();
        assert_eq!((config.lambda_min_clipped, config.steps_offset()), (None, 1));
    }

    #[test]
    fn a_file_that_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = SchedulerConfig::from_folder(folder.path()).expect_err("no file").to_string();
        assert!(error.contains("scheduler_config.json"), "{error}");
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        std::fs::write(folder.path().join("scheduler/scheduler_config.json"), "{\"beta_start\": ").unwrap();
        let error = SchedulerConfig::from_folder(folder.path()).expect_err("no JSON").to_string();
        assert!(error.contains("scheduler_config.json"), "{error}");
    }
}
