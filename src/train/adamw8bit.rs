//! AdamW whose moments take one byte an element (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv
//! 2110.02861). Reference: bitsandbytes' `AdamW8bit` with its CPU arithmetic; here in libtorch operations alone, so it
//! runs on every device.

use super::adamw::{entry, names_in, parameter, AdamW, AdamWConfig};
use super::Parameters;
use crate::error::Result;
use crate::libtorch::fused_adamw::decay_and_add;
use crate::weights::storage::dynamic_map;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Elements that share one scale.
pub const BLOCK_SIZE: i64 = 256;
/// Elements of the parameters that are updated at a time: so many that a device is given a few dozen operations a step, and so few
/// that what these make for their time stays small.
const AT_ONCE: i64 = 1 << 22;
/// Smaller parameters keep float32 moments: there is nothing to gain, and they are the sensitive ones.
pub const MIN_8BIT_SIZE: i64 = 4096;

/// A [`dynamic_map`] on a device, with the bounds between neighbours.
#[derive(Debug)]
pub struct Codebook {
    /// `[256]`
    map: Tensor,
    /// `[255]`
    midpoints: Tensor,
    /// The code of 0.
    zero: i64,
}

impl Codebook {
    /// The signed or unsigned dynamic map on `device`.
    pub fn new(signed: bool, device: Device) -> Self {
        let _guard = tch::no_grad_guard();
        let map = dynamic_map(signed);
        // The values ascend.
        let zero = map.lt(0.).sum(Kind::Int64).int64_value(&[]);
        let map = map.to_device(device);
        // In float64 a midpoint is exact, and so is "which neighbour is nearer".
        let wide = map.to_kind(Kind::Double);
        let midpoints = ((wide.narrow(0, 0, 255) + wide.narrow(0, 1, 255)) / 2.).to_kind(Kind::Float);
        Self { map, midpoints, zero }
    }

    /// The nearest codes of float32 `values` (any shape) and the largest magnitude of each block:
    /// uint8 `[n]`, float32 `[ceil(n / 256)]`.
    pub fn quantize(&self, values: &Tensor) -> (Tensor, Tensor) {
        let _guard = tch::no_grad_guard();
        let n = values.numel() as i64;
        let blocks = in_blocks(values);
        let absmax = blocks.abs().amax([1], true);
        // A block of zeros: whatever the scale, the code is that of 0.
        let scale = absmax.where_self(&absmax.gt(0.), &absmax.ones_like());
        let codes = (blocks / scale).bucketize(&self.midpoints, true, false);
        (codes.to_kind(Kind::Uint8).view(-1).narrow(0, 0, n).contiguous(), absmax.view(-1))
    }

    /// What [`Codebook::quantize`] kept: float32 `[n]`.
    pub fn dequantize(&self, codes: &Tensor, absmax: &Tensor) -> Tensor {
        let _guard = tch::no_grad_guard();
        let n = codes.numel() as i64;
        let values = self.map.index_select(0, &codes.to_kind(Kind::Int));
        (in_blocks(&values) * absmax.unsqueeze(1)).view(-1).narrow(0, 0, n)
    }
}

/// `[..] -> [ceil(n / 256), 256]`, the last block filled up with zeros.
fn in_blocks(values: &Tensor) -> Tensor {
    let flat = values.contiguous().view(-1);
    let missing = (flat.numel() as i64).wrapping_neg().rem_euclid(BLOCK_SIZE);
    let flat = if missing > 0 { flat.constant_pad_nd([0, missing]) } else { flat };
    flat.view([-1, BLOCK_SIZE])
}

/// Blocks that `n` elements fill, the last one perhaps in part.
fn blocks_of(n: i64) -> i64 {
    (n as u64).div_ceil(BLOCK_SIZE as u64) as i64
}

/// Start and length of parameters of these sizes in a row, each at a block of its own.
fn places(sizes: &[i64]) -> impl Iterator<Item = (i64, i64)> + '_ {
    sizes.iter().scan(0, |next, &n| {
        let start = *next;
        *next += blocks_of(n) * BLOCK_SIZE;
        Some((start, n))
    })
}

/// Vectors in a row, each filled up to whole blocks with the number that stands for zero.
fn joined(vectors: impl Iterator<Item = Tensor>, zero: i64) -> Tensor {
    let mut parts: Vec<Tensor> = Vec::new();
    let mut zeros: Option<Tensor> = None;
    for vector in vectors {
        let missing = (vector.numel() as i64).wrapping_neg().rem_euclid(BLOCK_SIZE);
        let options = (vector.kind(), vector.device());
        parts.push(vector);
        if missing > 0 {
            let zeros = zeros.get_or_insert_with(|| Tensor::full([BLOCK_SIZE], zero, options));
            parts.push(zeros.narrow(0, 0, missing));
        }
    }
    Tensor::cat(&parts, 0)
}

/// The quantised moments of one parameter of n elements.
#[derive(Debug)]
struct QuantizedMoments {
    /// uint8 `[n]`
    exp_avg: Tensor,
    /// float32 `[ceil(n / 256)]`
    exp_avg_absmax: Tensor,
    /// uint8 `[n]`
    exp_avg_sq: Tensor,
    /// float32 `[ceil(n / 256)]`
    exp_avg_sq_absmax: Tensor,
    step: i64,
}

/// AdamW with quantised moments for parameters of at least [`MIN_8BIT_SIZE`] elements.
#[derive(Debug)]
pub struct AdamW8bit {
    config: AdamWConfig,
    small: AdamW,
    moments: BTreeMap<String, QuantizedMoments>,
    /// Signed and unsigned, made on the device of the first parameter.
    codebooks: Option<(Codebook, Codebook)>,
}

impl AdamW8bit {
    /// An optimizer that has not stepped yet.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, small: AdamW::new(config), moments: BTreeMap::new(), codebooks: None }
    }

    /// Makes the moments of `params` that have none.
    pub(super) fn make_state(&mut self, params: &Parameters) {
        let (large, small): (Vec<_>, Vec<_>) = params.iter().partition(|(_, param)| is_quantized(param));
        self.small.make_state(small.into_iter());
        for (name, param) in large {
            self.moments.entry(name.clone()).or_insert_with(|| QuantizedMoments::zeros(param));
        }
    }

    /// One update of each of `params` that has a gradient, in place.
    pub fn step(&mut self, params: &Parameters, lr: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.small.step_those(params.iter().filter(|(_, param)| !is_quantized(param)), lr)?;
        let grown: Vec<(&String, &Tensor)> =
            params.iter().filter(|(_, param)| is_quantized(param) && param.grad().defined()).collect();
        for (name, param) in &grown {
            let moments = self.moments.entry((*name).clone()).or_insert_with(|| QuantizedMoments::zeros(param));
            moments.step += 1;
        }
        let mut rest = &grown[..];
        while let Some((first, _)) = rest.first() {
            // Those of one age, as their correction is one number.
            let (step, mut elements) = (self.moments[*first].step, 0);
            let fits = |(name, param): &&(&String, &Tensor)| {
                elements += param.numel() as i64;
                self.moments[*name].step == step && (elements <= AT_ONCE || *name == *first)
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (group, behind) = rest.split_at(count);
            self.step_group(group, step, lr)?;
            rest = behind;
        }
        Ok(())
    }

    /// One update of each of `group`, as if they were one parameter; each starts at a block of its own.
    fn step_group(&mut self, group: &[(&String, &Tensor)], step: i64, lr: f64) -> Result<()> {
        let device = group[0].1.device();
        let (signed, unsigned) =
            self.codebooks.get_or_insert_with(|| (Codebook::new(true, device), Codebook::new(false, device)));
        let sizes: Vec<i64> = group.iter().map(|(_, param)| param.numel() as i64).collect();
        let kept: Vec<&QuantizedMoments> = group.iter().map(|(name, _)| &self.moments[*name]).collect();
        let codes = |of: fn(&QuantizedMoments) -> &Tensor, zero| {
            joined(kept.iter().map(|moments| of(moments).shallow_clone()), zero)
        };
        let scales =
            |of: fn(&QuantizedMoments) -> &Tensor| Tensor::cat(&kept.iter().map(|m| of(m)).collect::<Vec<_>>(), 0);
        let grad = joined(group.iter().map(|(_, param)| param.grad().to_kind(Kind::Float).reshape(-1)), 0);
        let (beta1, beta2) = self.config.betas;
        let mut exp_avg = signed.dequantize(&codes(|m| &m.exp_avg, signed.zero), &scales(|m| &m.exp_avg_absmax));
        let mut exp_avg_sq =
            unsigned.dequantize(&codes(|m| &m.exp_avg_sq, unsigned.zero), &scales(|m| &m.exp_avg_sq_absmax));
        exp_avg = exp_avg.g_mul_scalar_(beta1) + &grad * (1. - beta1);
        exp_avg_sq = exp_avg_sq.g_mul_scalar_(beta2) + grad.square() * (1. - beta2);
        let correction1 = 1. - beta1.powi(step as i32);
        let correction2 = (1. - beta2.powi(step as i32)).sqrt();
        let denominator = exp_avg_sq.sqrt() / correction2 + self.config.eps;
        let change = &exp_avg / denominator * (-lr / correction1);
        let changes: Vec<Tensor> = places(&sizes)
            .zip(group)
            .map(|((start, n), (_, param))| change.narrow(0, start, n).view(param.size().as_slice()))
            .collect();
        let params: Vec<Tensor> = group.iter().map(|(_, param)| param.shallow_clone()).collect();
        decay_and_add(&params, 1. - lr * self.config.weight_decay, &changes)?;
        let (exp_avg, exp_avg_absmax) = signed.quantize(&exp_avg);
        let (exp_avg_sq, exp_avg_sq_absmax) = unsigned.quantize(&exp_avg_sq);
        for ((start, n), (name, _)) in places(&sizes).zip(group) {
            let (block, blocks) = (start / BLOCK_SIZE, blocks_of(n));
            let moments = QuantizedMoments {
                exp_avg: exp_avg.narrow(0, start, n),
                exp_avg_absmax: exp_avg_absmax.narrow(0, block, blocks),
                exp_avg_sq: exp_avg_sq.narrow(0, start, n),
                exp_avg_sq_absmax: exp_avg_sq_absmax.narrow(0, block, blocks),
                step,
            };
            self.moments.insert((*name).clone(), moments);
        }
        Ok(())
    }

    /// The small parameters' entries as [`AdamW::state`] names them, and for each other `NAME.exp_avg.codes`,
    /// `NAME.exp_avg.absmax`, `NAME.exp_avg_sq.codes`, `NAME.exp_avg_sq.absmax` and `NAME.quantized_step`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = self.small.state();
        for (name, moments) in &self.moments {
            state.insert(format!("{name}.exp_avg.codes"), moments.exp_avg.shallow_clone());
            state.insert(format!("{name}.exp_avg.absmax"), moments.exp_avg_absmax.shallow_clone());
            state.insert(format!("{name}.exp_avg_sq.codes"), moments.exp_avg_sq.shallow_clone());
            state.insert(format!("{name}.exp_avg_sq.absmax"), moments.exp_avg_sq_absmax.shallow_clone());
            state.insert(format!("{name}.quantized_step"), Tensor::from(moments.step));
        }
        state
    }

    /// Continues from a [`AdamW8bit::state`] of the same `params`, copied to their device.
    pub fn load_state(&mut self, params: &Parameters, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.small.load_state(params, state)?;
        self.moments.clear();
        for name in names_in(state, ".quantized_step") {
            let param = parameter(params, name)?;
            let n = param.numel() as i64;
            let (codes, scales) = ([n], [blocks_of(n)]);
            let step = entry(state, name, "quantized_step", param, &[], Kind::Int64)?;
            let moments = QuantizedMoments {
                exp_avg: entry(state, name, "exp_avg.codes", param, &codes, Kind::Uint8)?,
                exp_avg_absmax: entry(state, name, "exp_avg.absmax", param, &scales, Kind::Float)?,
                exp_avg_sq: entry(state, name, "exp_avg_sq.codes", param, &codes, Kind::Uint8)?,
                exp_avg_sq_absmax: entry(state, name, "exp_avg_sq.absmax", param, &scales, Kind::Float)?,
                step: i64::try_from(step)?,
            };
            self.moments.insert(name.to_owned(), moments);
        }
        Ok(())
    }
}

impl QuantizedMoments {
    /// Scales of 0: every code stands for 0.
    fn zeros(param: &Tensor) -> Self {
        let n = param.numel() as i64;
        let codes = || Tensor::zeros([n], (Kind::Uint8, param.device()));
        let scales = || Tensor::zeros([blocks_of(n)], (Kind::Float, param.device()));
        Self { exp_avg: codes(), exp_avg_absmax: scales(), exp_avg_sq: codes(), exp_avg_sq_absmax: scales(), step: 0 }
    }
}

fn is_quantized(param: &Tensor) -> bool {
    param.numel() as i64 >= MIN_8BIT_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_256_ascending_values_with_zero_and_one() {
        for signed in [true, false] {
            let map = Vec::<f32>::try_from(dynamic_map(signed)).unwrap();
            assert_eq!(map.len(), 256);
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(map.contains(&0.) && map[255] == 1.);
            assert_eq!(map[0] < 0., signed);
        }
    }

    #[test]
    fn a_value_of_the_map_survives_quantising_whatever_the_length() {
        let codebook = Codebook::new(true, Device::Cpu);
        let values = Tensor::cat(&[dynamic_map(true), dynamic_map(true).narrow(0, 200, 56) * 1.], 0);
        let (codes, absmax) = codebook.quantize(&values);
        assert_eq!((codes.size(), absmax.size()), (vec![312], vec![2]));
        assert_eq!(codebook.dequantize(&codes, &absmax), values);
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        let codebook = Codebook::new(false, Device::Cpu);
        let (codes, absmax) = codebook.quantize(&Tensor::zeros([300], (Kind::Float, Device::Cpu)));
        assert_eq!(f64::try_from(codebook.dequantize(&codes, &absmax).abs().max()).unwrap(), 0.);
    }
}
