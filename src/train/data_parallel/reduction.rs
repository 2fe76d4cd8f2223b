//! The mean of a step's gradients and numbers over all ranks.

use super::ranks::Ranks;
use crate::error::Result;
use crate::libtorch::gradient_reducer::GradientReducer;
use crate::train::Parameters;
use tch::{Kind, Tensor};

/// Elements of a bucket, unless one tensor has more: small enough for the last one not to be waited for, large enough for few messages.
const BUCKET: i64 = 1 << 18;

/// Means over the ranks for one run.
#[derive(Debug)]
pub struct Reduction {
    ranks: Ranks,
    reducer: GradientReducer,
    /// In the order of exchange.
    params: Vec<Tensor>,
    numbers: usize,
    is_armed: bool,
}

impl Reduction {
    /// For `params`, with `numbers` more a step; none where the run has one rank.
    pub fn new(ranks: &Ranks, params: &Parameters, numbers: usize) -> Result<Option<Self>> {
        let Some(group) = ranks.group() else { return Ok(None) };
        let mut names: Vec<&String> = params.keys().collect();
        names.sort_by_cached_key(|name| natural(name));
        let params: Vec<Tensor> = names.iter().map(|name| params[*name].shallow_clone()).collect();
        let sizes: Vec<i64> = params.iter().map(|param| param.numel() as i64).collect();
        // One number more: of parameters without a gradient.
        let reducer = GradientReducer::new(group, &params, &ends(&sizes), numbers + 1)?;
        Ok(Some(Self { ranks: ranks.clone(), reducer, params, numbers, is_armed: false }))
    }

    /// The next backward is the step's last: gradients leave as it makes them.
    pub fn arm(&mut self) {
        self.is_armed = true;
        self.reducer.arm();
    }

    /// Makes each gradient its mean over the ranks; the means of `own` numbers, float32 scalars on the parameters' device. `whole`:
    /// the backward went through on this rank. What is not a number on one rank is none on all.
    pub fn finish(&mut self, own: &[Tensor], whole: bool) -> Result<Vec<Tensor>> {
        debug_assert_eq!(own.len(), self.numbers);
        if !std::mem::replace(&mut self.is_armed, false) {
            self.reducer.arm();
        }
        let absent = self.reducer.absent();
        let count = absent.iter().filter(|absent| **absent).count() as f32;
        let mut all: Vec<Tensor> = own.iter().map(|number| number.view([])).collect();
        let device = self.params.first().map_or(tch::Device::Cpu, Tensor::device);
        all.push(Tensor::from(count).to_device(device));
        let tail = Tensor::stack(&all, 0).to_kind(Kind::Float);
        let finished = self.reducer.finish(&tail, whole);
        finished.map_err(|error| self.ranks.cause_of(error))?;
        // A wait for the device, after one that the exchange needs anyway.
        if tail.double_value(&[self.numbers as i64]) > 0.0 {
            self.leave_out_absent(&absent)?;
        }
        Ok((0..self.numbers as i64).map(|i| tail.get(i)).collect())
    }

    /// A parameter that no rank had a gradient of has none, as in one process: its weights do not decay.
    fn leave_out_absent(&self, absent: &[bool]) -> Result<()> {
        let present: Vec<i64> = absent.iter().map(|absent| i64::from(!absent)).collect();
        let present = Tensor::from_slice(&present);
        self.ranks.sum(&present)?;
        let nowhere = Vec::<i64>::try_from(present)?.into_iter().zip(&self.params).filter(|(ranks, _)| *ranks == 0);
        crate::libtorch::fused_adamw::clear_grads(nowhere.map(|(_, param)| param))
    }
}

/// Where buckets of parameters of these `sizes` end.
fn ends(sizes: &[i64]) -> Vec<i64> {
    let (mut ends, mut held) = (Vec::new(), 0);
    for (i, size) in sizes.iter().enumerate() {
        if held > 0 && held + size > BUCKET {
            ends.push(i as i64);
            held = 0;
        }
        held += size;
    }
    ends.push(sizes.len() as i64);
    ends
}

/// A name whose numbers are ordered as numbers: a network's layers stand together, and near the order in which it computes.
fn natural(name: &str) -> Vec<(u64, String)> {
    let is_digit = |c: &char| c.is_ascii_digit();
    let (mut parts, mut rest) = (Vec::new(), name);
    while !rest.is_empty() {
        let text: String = rest.chars().take_while(|c| !is_digit(c)).collect();
        rest = &rest[text.len()..];
        let digits: String = rest.chars().take_while(is_digit).collect();
        rest = &rest[digits.len()..];
        parts.push((0, text));
        parts.push((digits.parse().unwrap_or(0), digits));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_in_the_order_of_their_numbers() {
        let mut names = ["layers.10.q", "layers.2.q", "head", "layers.2.k"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(names, ["head", "layers.2.k", "layers.2.q", "layers.10.q"]);
    }

    #[test]
    fn a_bucket_holds_what_fits_and_at_least_one() {
        let full = BUCKET;
        assert_eq!(ends(&[1, full - 1, 1, full + 5, 2, 3]), [2, 3, 4, 6]);
        assert_eq!(ends(&[]), [0]);
        assert_eq!(ends(&[full * 3]), [1]);
    }
}
