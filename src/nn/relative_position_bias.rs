//! T5's position bias: a learned number for each head and each bucket of distances (arXiv 1910.10683, section 2.1).
//!
//! Shapes: h heads, q queries, k keys.

use super::embedding::Embedding;
use super::loader::Loader;
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// How distances are put into buckets.
#[derive(Debug, Clone, Copy)]
pub struct RelativePositions {
    /// Number of buckets.
    pub buckets: i64,
    /// Distances from here on share the last bucket.
    pub max_distance: i64,
    /// Keys after the query have buckets of their own (encoder), or none (decoder).
    pub bidirectional: bool,
}

/// The biases by bucket.
pub struct RelativePositionBias {
    table: Embedding,
    positions: RelativePositions,
}

impl RelativePositionBias {
    /// Loads a table `[buckets, heads]`.
    pub fn load(loader: &Loader, heads: i64, positions: RelativePositions) -> Result<Self> {
        Ok(Self { table: Embedding::load_small(loader, positions.buckets, heads)?, positions })
    }

    /// What is added to the scores of `queries` queries that follow `past` others, and of all keys up to them or, for
    /// an encoder, beside them: `[1, h, q, past + q]`.
    pub fn forward(&self, queries: i64, past: i64, device: Device) -> Tensor {
        let options = (Kind::Int64, device);
        let keys = Tensor::arange(past + queries, options);
        let distances = keys.unsqueeze(0) - keys.narrow(0, past, queries).unsqueeze(1); // [q, k]
        self.table.forward(&self.positions.bucket(&distances)).permute([2, 0, 1]).unsqueeze(0)
    }
}

impl RelativePositions {
    /// The bucket of each distance (key's position minus query's), int64: half of the buckets are for a distance each,
    /// the others for ranges that grow logarithmically.
    fn bucket(&self, distances: &Tensor) -> Tensor {
        let (count, behind, away) = match self.bidirectional {
            true => {
                let count = self.buckets / 2;
                (count, distances.gt(0).to_kind(Kind::Int64) * count, distances.abs())
            }
            false => (self.buckets, distances.zeros_like(), -distances.clamp_max(0)),
        };
        let exact = count / 2;
        let ratio = (self.max_distance as f64 / exact as f64).ln();
        let far = (away.to_kind(Kind::Float) / exact as f64).log() / ratio * (count - exact) as f64;
        // The logarithm of 0 is not a number that fits an integer; such distances are near ones.
        let far = (far.clamp_min(0.0).to_kind(Kind::Int64) + exact).clamp_max(count - 1);
        behind + away.where_self(&away.lt(exact), &far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(bidirectional: bool, distances: &[i64]) -> Vec<i64> {
        let positions = RelativePositions { buckets: 32, max_distance: 128, bidirectional };
        Vec::<i64>::try_from(positions.bucket(&Tensor::from_slice(distances))).unwrap()
    }

    #[test]
    fn near_keys_have_a_bucket_each_and_the_farthest_share_one() {
        assert_eq!(buckets(false, &[0, -1, -15, -16, -127, -128, -5000]), [0, 1, 15, 16, 31, 31, 31]);
    }

    #[test]
    fn an_encoder_tells_before_from_after_and_a_decoder_sees_nothing_after() {
        assert_eq!(buckets(true, &[-3, 3, -500, 500]), [3, 19, 15, 31]);
        assert_eq!(buckets(false, &[3, 500]), [0, 0]);
    }
}
