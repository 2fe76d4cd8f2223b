//! A timestep as a vector: sinusoids, then two linear layers.
//! Reference: diffusers `embeddings.py` (`get_timestep_embedding`, `TimestepEmbedding`).

use crate::error::Result;
use crate::nn::{Bias, Linear, Loader};
use tch::{Kind, Tensor};

/// Sinusoids of `timesteps` `[batch]` (float32): `[batch, width]`, cosines first where `flip_sin_to_cos`.
pub fn sinusoids(timesteps: &Tensor, width: i64, flip_sin_to_cos: bool, freq_shift: f64) -> Tensor {
    let half = width / 2;
    let exponent = Tensor::arange(half, (Kind::Float, timesteps.device())) * -(10000f64.ln());
    let frequencies = (exponent / (half as f64 - freq_shift)).exp();
    let angles = timesteps.to_kind(Kind::Float).unsqueeze(1) * frequencies.unsqueeze(0);
    let (sin, cos) = (angles.sin(), angles.cos());
    let pair = if flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
    let embedding = Tensor::cat(&pair, 1);
    match width % 2 {
        0 => embedding,
        _ => embedding.constant_pad_nd([0, 1]),
    }
}

/// The two linear layers.
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Loads the layers: `inputs` to `width`.
    pub fn load(loader: &Loader, inputs: i64, width: i64) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&(loader / "linear_1"), inputs, width, Bias::Yes)?,
            linear_2: Linear::load(&(loader / "linear_2"), width, width, Bias::Yes)?,
        })
    }

    /// `[batch, inputs] -> [batch, width]`
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        self.linear_2.forward(&self.linear_1.forward(xs).silu())
    }
}
