//! Attention with linear biases: the further away a key is, the less it counts, by a slope of each head's own
//! (arXiv 2108.12409).
//!
//! Shapes: b batch (or 1 for all), h heads, k number of keys.

use tch::{Device, Kind, Tensor};

/// The slopes of all heads.
pub struct Alibi {
    /// float32 `[1, h, 1, 1]`
    slopes: Tensor,
}

impl Alibi {
    /// The slopes of `heads` heads: powers of 2^(-8/n) for a power of two n; what is missing to another number of heads
    /// is every other one of the slopes for 2n.
    pub fn new(heads: i64, device: Device) -> Self {
        Self { slopes: slopes(heads).view([1, -1, 1, 1]).to_device(device) }
    }

    /// What is added to the scores of keys at `positions` `[b, k]`: `[b, h, 1, k]` in `kind`. It grows with a key's
    /// position where the paper's falls with its distance: the softmax over the keys of a query is the same.
    pub fn bias(&self, positions: &Tensor, kind: Kind) -> Tensor {
        (&self.slopes * positions.to_kind(Kind::Float).unsqueeze(1).unsqueeze(1)).to_kind(kind)
    }
}

/// float32 `[h]`, raised to their powers in float32 as transformers does
fn slopes(heads: i64) -> Tensor {
    let power = 1 << heads.max(1).ilog2();
    let base = |n: i64| Tensor::from((-8.0 / n as f64).exp2() as f32);
    let integers = (Kind::Int, Device::Cpu);
    let first = base(power).pow(&Tensor::arange_start(1, power + 1, integers));
    let others = base(2 * power).pow(&Tensor::arange_start_step(1, 2 * (heads - power) + 1, 2, integers));
    Tensor::cat(&[first, others], 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(heads: i64) -> Vec<f32> {
        Vec::try_from(slopes(heads)).unwrap()
    }

    #[test]
    fn eight_heads_have_the_slopes_of_the_paper() {
        let halves: Vec<f32> = (1..=8u8).map(|i| (-f32::from(i)).exp2()).collect();
        assert_eq!(numbers(8), halves);
    }

    #[test]
    fn heads_beyond_a_power_of_two_lie_between_the_others() {
        let (six, eight) = (numbers(6), numbers(8));
        assert_eq!((&six[..4], &six[4..]), (&numbers(4)[..], &[eight[0], eight[2]][..]));
    }
}
