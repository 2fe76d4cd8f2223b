//! Noise: the schedule that a model is trained with, and the samplers that turn noise into latents.
//!
//! Each sampler equals diffusers' `X.from_config(the model's scheduler_config.json)`. diffusers-rs computes where it
//! does ([`diffusers_rs`]); the other files cover what it has no setting for.

mod config;
mod ddim;
mod ddpm;
pub mod diffusers_rs;
mod dpm_solver_multistep;
mod euler;
mod heun;
mod lms;
mod noise_schedule;
mod pndm;
mod sigmas;
mod solver_levels;
mod spacing;
mod unipc;

pub use config::{BetaSchedule, FinalSigmas, PredictionType, SchedulerConfig, TimestepSpacing};
pub use noise_schedule::NoiseSchedule;

use crate::error::{Error, Result};
use tch::Tensor;

/// Draws standard normal noise of a shape, float32. Where a batch must not change an image, the caller draws each
/// row from that image's own generator.
pub type NoiseSource<'a> = dyn FnMut(&[i64]) -> Tensor + 'a;

/// A sampler, made for one number of steps and one pass over its timesteps, in order:
/// `latents = noise * init_noise_sigma`, then at each step the model sees `scale_model_input(latents)` and
/// `timesteps()[step_index]`, and `step` gives the next latents.
///
/// Latents are `[b, 4, height/8, width/8]`, best in float32: errors of a narrower kind add up over the steps.
pub trait Scheduler {
    /// The timestep that the model is given at each step; some samplers call the model more often than `steps`.
    fn timesteps(&self) -> &[f64];

    /// The standard deviation of the first latents.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// What the model is given for the latents `sample` at `step_index`; the same shape.
    fn scale_model_input(&self, sample: &Tensor, step_index: usize) -> Tensor {
        let _ = step_index;
        sample.shallow_clone()
    }

    /// The latents of the next step from those of this one and the model's output for them; all the same shape.
    fn step(
        &mut self,
        model_output: &Tensor,
        step_index: usize,
        sample: &Tensor,
        noise: &mut NoiseSource<'_>,
    ) -> Tensor;
}

/// Makes a sampler from a model's configuration and a number of steps.
pub type Constructor = fn(&SchedulerConfig, usize) -> Result<Box<dyn Scheduler>>;

/// All samplers under the names of the command line.
pub const SCHEDULERS: &[(&str, Constructor)] = &[
    ("pndm", pndm::new),
    ("ddim", ddim::new),
    ("ddpm", ddpm::new),
    ("euler", euler::new),
    ("euler-a", euler::new_ancestral),
    ("heun", heun::new),
    ("lms", lms::new),
    ("dpm++2m", dpm_solver_multistep::new),
    ("dpm++2m-karras", dpm_solver_multistep::new_karras),
    ("unipc", unipc::new),
];

/// diffusers' classes, as `_class_name` has them, and the sampler of each.
const CLASSES: &[(&str, &str)] = &[
    ("PNDMScheduler", "pndm"),
    ("DDIMScheduler", "ddim"),
    ("DDPMScheduler", "ddpm"),
    ("EulerDiscreteScheduler", "euler"),
    ("EulerAncestralDiscreteScheduler", "euler-a"),
    ("HeunDiscreteScheduler", "heun"),
    ("LMSDiscreteScheduler", "lms"),
    ("DPMSolverMultistepScheduler", "dpm++2m"),
    ("UniPCMultistepScheduler", "unipc"),
];

/// The sampler `name` (see [`SCHEDULERS`]; `None`: the model's own) for `steps` steps.
pub fn scheduler(name: Option<&str>, config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    let name = match name {
        Some(name) => name,
        None => default_name(config)?,
    };
    let Some((_, constructor)) = SCHEDULERS.iter().find(|(known, _)| *known == name) else {
        return Err(Error::invalid(format!("unknown scheduler `{name}`; choose one of {}", names())));
    };
    let most = config.num_train_timesteps();
    if !i64::try_from(steps).is_ok_and(|steps| (1..=most).contains(&steps)) {
        return Err(Error::invalid(format!("the number of steps is {steps}; it must be 1 to {most} (⟨steps⟩)")));
    }
    constructor(config, steps)
}

/// The name of the model's own sampler, from `_class_name`.
pub fn default_name(config: &SchedulerConfig) -> Result<&'static str> {
    let Some(class) = &config.class_name else {
        return Err(Error::invalid(format!(
            "the scheduler configuration has no `_class_name`; choose with ⟨scheduler⟩ one of {}",
            names()
        )));
    };
    match CLASSES.iter().find(|(known, _)| known == class) {
        Some((_, name)) => Ok(name),
        None => Err(Error::invalid(format!(
            "the model's own scheduler {class} is not supported; choose with ⟨scheduler⟩ one of {}",
            names()
        ))),
    }
}

/// The names of all samplers, for a message.
fn names() -> String {
    SCHEDULERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_diffusers_has_a_sampler_in_the_table() {
        for (class, name) in CLASSES {
            let config = SchedulerConfig { class_name: Some(class.to_string()), ..Default::default() };
            assert_eq!(default_name(&config).unwrap(), *name);
            assert!(SCHEDULERS.iter().any(|(known, _)| known == name));
        }
    }

    #[test]
    fn an_unknown_name_or_class_lists_what_there_is() {
        let config = SchedulerConfig { class_name: Some("LCMScheduler".into()), ..Default::default() };
        let of_class = scheduler(None, &config, 4).err().unwrap().to_string();
        assert!(of_class.contains("LCMScheduler") && of_class.contains("dpm++2m-karras"), "{of_class}");
        let of_name = scheduler(Some("dpm"), &config, 4).err().unwrap().to_string();
        assert!(of_name.contains("`dpm`") && of_name.contains("unipc"), "{of_name}");
    }

    #[test]
    fn a_number_of_steps_beyond_training_is_refused_and_every_other_one_is_taken() {
        let config = SchedulerConfig::default();
        for (name, _) in SCHEDULERS {
            assert!(scheduler(Some(name), &config, 0).is_err(), "{name}");
            assert!(scheduler(Some(name), &config, 1001).is_err(), "{name}");
            // Negative, where it were taken for a signed number.
            assert!(scheduler(Some(name), &config, 1 << 63).is_err(), "{name}");
            assert!(scheduler(Some(name), &config, 5).is_ok(), "{name}");
        }
    }

    #[test]
    fn every_sampler_walks_its_timesteps_at_odd_numbers_of_steps_and_stays_finite() {
        let text = r#"{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
            "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "SPACING"}"#;
        for spacing in ["leading", "trailing", "linspace"] {
            let config = SchedulerConfig::from_json(&text.replace("SPACING", spacing)).unwrap();
            for (name, _) in SCHEDULERS {
                for steps in [1, 2, 3, 61, 333] {
                    let mut sampler = scheduler(Some(name), &config, steps).unwrap();
                    let mut xs = Tensor::ones([1, 4, 2, 2], tch::kind::FLOAT_CPU) * sampler.init_noise_sigma();
                    for index in 0..sampler.timesteps().len() {
                        let input = sampler.scale_model_input(&xs, index);
                        xs = sampler
                            .step(&(input * 0.1), index, &xs, &mut |size| Tensor::zeros(size, tch::kind::FLOAT_CPU));
                    }
                    let finite = bool::try_from(xs.isfinite().all()).unwrap();
                    assert!(finite, "{name} {spacing} {steps} steps: {xs:?}");
                }
            }
        }
    }
}
