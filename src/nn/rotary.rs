//! Rotary position embeddings: each pair of a head's numbers is turned by an angle that grows with the position
//! (arXiv 2104.09864). The pairs are a number of the first half and its partner in the second, as in transformers.
//!
//! Shapes: b batch (or 1 for all), t length, d width of a head, h heads.

use tch::{Kind, Tensor};

/// How fast each pair turns.
pub struct Rotary {
    /// Angle from one position to the next, float32 `[d / 2]`.
    pub frequencies: Tensor,
    /// What sines and cosines are multiplied by (YaRN's temperature of attention; else 1).
    pub magnitude: f64,
}

/// The turns of some positions.
pub struct RotaryAngles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// The turns of `positions` `[b, t]`, in `kind`; the angles are float32.
    pub fn angles(&self, positions: &Tensor, kind: Kind) -> RotaryAngles {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies; // [b, t, d/2]
        let for_heads = |xs: Tensor| (xs * self.magnitude).to_kind(kind).unsqueeze(1); // [b, 1, t, d/2]
        RotaryAngles { cos: for_heads(angles.cos()), sin: for_heads(angles.sin()) }
    }
}

impl RotaryAngles {
    /// `[b, h, t, d] -> [b, h, t, d]`
    pub fn rotate(&self, xs: &Tensor) -> Tensor {
        let halves = xs.chunk(2, -1);
        let (first, second) = (&halves[0], &halves[1]);
        let (cos, sin) = (&self.cos, &self.sin);
        Tensor::cat(&[first * cos - second * sin, second * cos + first * sin], -1)
    }
}

impl Clone for RotaryAngles {
    fn clone(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;
    use tch::Device;

    fn rotary(width: i64) -> Rotary {
        let frequencies = Tensor::arange(width / 2, (Kind::Float, Device::Cpu)) * 0.3 + 0.1;
        Rotary { frequencies, magnitude: 1.0 }
    }

    #[test]
    fn products_of_rotated_vectors_depend_on_their_distance_alone() {
        let mut generator = Generator::new(1);
        let (q, k) = (generator.randn(&[1, 2, 1, 8]), generator.randn(&[1, 2, 1, 8]));
        let score = |at_q: i64, at_k: i64| {
            let turned = |xs: &Tensor, at: i64| {
                rotary(8).angles(&Tensor::from_slice(&[at]).view([1, 1]), Kind::Float).rotate(xs)
            };
            (turned(&q, at_q) * turned(&k, at_k)).sum_dim_intlist(-1, false, Kind::Float)
        };
        assert!((score(3, 1) - score(11, 9)).abs().max().double_value(&[]) < 1e-5);
        assert!((score(3, 1) - score(3, 2)).abs().max().double_value(&[]) > 1e-2);
    }

    #[test]
    fn the_first_position_is_not_turned() {
        let xs = Generator::new(1).randn(&[2, 3, 1, 4]);
        let origin = Tensor::zeros([1, 1], (Kind::Int64, Device::Cpu));
        assert_eq!(rotary(4).angles(&origin, Kind::Float).rotate(&xs), xs);
    }
}
