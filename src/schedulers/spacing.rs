//! Which timesteps of training are sampled: numpy's arithmetic, as diffusers' `set_timesteps` uses it.

use super::config::{SchedulerConfig, TimestepSpacing};
use crate::error::{Error, Result};

/// `np.linspace(start, stop, count)`.
pub(super) fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    if count < 2 {
        return vec![start; count];
    }
    let step = (stop - start) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step + start).collect();
    values[count - 1] = stop;
    values
}

/// `np.arange(train, 0, -train / steps).round() - 1`, from the last timestep down.
/// Where rounding makes numpy's arange one longer, its extra timestep -1 is left out.
fn trailing(train: f64, steps: usize) -> Vec<f64> {
    let delta = (train - train / steps as f64) - train;
    (0..steps).map(|i| (train + i as f64 * delta).round_ties_even() - 1.0).collect()
}

/// `steps` timesteps from the noisiest down, unrounded where linspace: the samplers by noise level (Euler, Heun, LMS).
pub(super) fn continuous(config: &SchedulerConfig, steps: usize, default: TimestepSpacing) -> Vec<f64> {
    let train = config.num_train_timesteps();
    match config.timestep_spacing.unwrap_or(default) {
        TimestepSpacing::Linspace => {
            // Python asks for float32.
            linspace(0.0, (train - 1) as f64, steps).into_iter().rev().map(|t| f64::from(t as f32)).collect()
        }
        TimestepSpacing::Leading => {
            let ratio = train / steps as i64;
            (0..steps as i64).rev().map(|i| (i * ratio + config.steps_offset()) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(train as f64, steps),
    }
}

/// `steps` whole timesteps from the noisiest down: the samplers by ᾱ (DDIM, DDPM, PNDM).
pub(super) fn whole(config: &SchedulerConfig, steps: usize) -> Result<Vec<i64>> {
    let train = config.num_train_timesteps();
    let timesteps: Vec<i64> = match config.timestep_spacing.unwrap_or(TimestepSpacing::Leading) {
        // Before rounding to float32, as numpy does here.
        TimestepSpacing::Linspace => {
            linspace(0.0, (train - 1) as f64, steps).into_iter().rev().map(|t| t.round_ties_even() as i64).collect()
        }
        _ => continuous(config, steps, TimestepSpacing::Leading).into_iter().map(|t| t as i64).collect(),
    };
    match timesteps.first() {
        Some(first) if *first >= train => Err(Error::invalid(format!(
            "{steps} steps with `steps_offset` {} start at timestep {first}, the model was trained up to {}; take fewer steps",
            config.steps_offset(),
            train - 1
        ))),
        _ => Ok(timesteps),
    }
}

/// `steps` whole timesteps that end one step before the last: the multistep solvers (DPM-Solver, UniPC).
pub(super) fn without_last(config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let train = config.num_train_timesteps();
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Linspace => {
            linspace(0.0, (train - 1) as f64, steps + 1).into_iter().skip(1).rev().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            let ratio = train / (steps as i64 + 1);
            (1..=steps as i64).rev().map(|i| (i * ratio + config.steps_offset()) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(train as f64, steps),
    }
}
