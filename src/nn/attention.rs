//! Scaled dot-product attention over several heads (arXiv 1706.03762), where possible through libtorch's kernels
//! that never hold the matrix of scores.
//!
//! Shapes: b batch, h heads, g heads of keys and values, q queries, k keys, d width of a head.

use super::attention_mask::AttentionMask;
use crate::libtorch::checkpoint::checkpoint;
use crate::libtorch::dropout::dropout;
use crate::libtorch::planned::device_of;
use tch::{Device, Kind, Tensor};

/// Attention of `queries` to `keys` and `values`, all `[batch, length, heads · width]`. Returns
/// `[batch, length, heads · width]`.
pub fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: i64, causal: bool) -> Tensor {
    let [q, k, v] = in_one_kind([queries, keys, values]).map(|xs| split_heads(&xs, heads));
    merge_heads(&attention(&q, &k, &v, causal))
}

/// The same, a few heads of an image at a time: where libtorch has no kernel without the matrix of scores, no more than one slice's
/// is in memory, in backward neither.
pub fn attend_in_slices(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: i64) -> Tensor {
    let [q, k, v] = in_one_kind([queries, keys, values]).map(|xs| split_heads(&xs, heads));
    let mut images = Vec::new();
    for image in 0..q.size()[0] {
        let slice = |xs: &Tensor, first: i64| {
            xs.narrow(0, image, 1).narrow(1, first, HEADS_AT_ONCE.min(heads - first)).contiguous()
        };
        let of_heads = |first: i64| {
            checkpoint(&[&slice(&q, first), &slice(&k, first), &slice(&v, first)], |xs| {
                attention(&xs[0], &xs[1], &xs[2], false)
            })
        };
        let slices: Vec<Tensor> = (0..heads).step_by(HEADS_AT_ONCE as usize).map(of_heads).collect();
        images.push(Tensor::cat(&slices, 1));
    }
    merge_heads(&Tensor::cat(&images, 0))
}

/// Heads of a slice.
const HEADS_AT_ONCE: i64 = 2;

fn attention(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, causal, None, false)
}

/// Queries, keys and values in one dtype: in float32 where some come from a layer that computes in it.
fn in_one_kind(xs: [&Tensor; 3]) -> [Tensor; 3] {
    match xs.iter().all(|one| one.kind() == xs[0].kind()) {
        true => xs.map(Tensor::shallow_clone),
        false => xs.map(|one| one.to_kind(Kind::Float)),
    }
}

/// `[b, s, h·d] -> [b, h, s, d]`
pub fn split_heads(xs: &Tensor, heads: i64) -> Tensor {
    let (batch, length, width) = match xs.size()[..] {
        [batch, length, width] => (batch, length, width),
        _ => unreachable!("attention takes [batch, length, width]"),
    };
    xs.view([batch, length, heads, width / heads]).transpose(1, 2)
}

/// `[b, h, s, d] -> [b, s, h·d]`
fn merge_heads(xs: &Tensor) -> Tensor {
    xs.transpose(1, 2).flatten(2, 3)
}

/// How attention is computed.
#[derive(Clone, Copy)]
pub struct Attending<'a> {
    /// Which keys are seen.
    pub mask: &'a AttentionMask,
    /// What the products of queries and keys are multiplied by.
    pub scale: f64,
    /// Probability that a weight is zeroed.
    pub dropout: f64,
}

impl Attending<'_> {
    fn run(&self, q: &Tensor, k: &Tensor, v: &Tensor, grouped: bool) -> Tensor {
        let (mask, causal) = match self.mask {
            AttentionMask::Whole(_) => return self.by_scores(q, k, v),
            // Where weights are dropped, libtorch's kernels for the CPU hold the matrix of scores too, more slowly.
            _ if self.dropout > 0.0 && device_of(q) == Device::Cpu => return self.by_scores(q, k, v),
            AttentionMask::Full => (None, false),
            AttentionMask::Causal => (None, true),
            AttentionMask::Tensor(mask) => (Some(mask), false),
        };
        let [q, k, v] = in_one_kind([q, k, v]);
        let mask =
            mask.map(|mask| if mask.kind() == Kind::Bool { mask.shallow_clone() } else { mask.to_kind(q.kind()) });
        Tensor::scaled_dot_product_attention(&q, &k, &v, mask, self.dropout, causal, self.scale, grouped)
    }

    /// With the matrix of scores, in float32. A query that sees nothing weighs all keys alike, since what hides them outweighs
    /// their scores; libtorch's kernels compute so too, but give it gradients as if each weight were 1.
    fn by_scores(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (q, k) = (q.to_kind(Kind::Float), k.to_kind(Kind::Float));
        let q = if self.scale == 1.0 { q } else { q * self.scale };
        let mut scores = q.matmul(&k.transpose(-2, -1)); // [b, h, q, k]
        if let Some(added) = self.mask.added(&scores) {
            scores += added;
        }
        let weights = scores.softmax(-1, Kind::Float).to_kind(v.kind());
        match self.dropout {
            0.0 => weights.matmul(v),
            rate => dropout(&weights, rate).matmul(v),
        }
    }
}

/// Attention of `queries` `[b, h, q, d]` to `keys` and `values` `[b, g, k, d]`, where h is a multiple of g:
/// `[b, q, h·d]`.
pub fn attend_heads(queries: &Tensor, keys: &Tensor, values: &Tensor, attending: Attending) -> Tensor {
    let (heads, groups) = (queries.size()[1], keys.size()[1]);
    if heads == groups {
        return merge_heads(&attending.run(queries, keys, values, false));
    }
    // Only CUDA's kernel without a mask reads a group's keys where they are (arXiv 2305.13245); the others would
    // compute the matrix of scores.
    if device_of(queries) != Device::Cpu && matches!(attending.mask, AttentionMask::Full | AttentionMask::Causal) {
        return merge_heads(&attending.run(queries, keys, values, true));
    }
    let (keys, values) = (repeated(keys, heads / groups), repeated(values, heads / groups));
    merge_heads(&attending.run(queries, &keys, &values, false))
}

/// `[b, g, k, d] -> [b, g·times, k, d]`, each head `times` times in turn
fn repeated(xs: &Tensor, times: i64) -> Tensor {
    let mut shape = xs.size();
    shape.insert(2, times);
    xs.unsqueeze(2).expand(&shape, false).flatten(1, 2)
}
