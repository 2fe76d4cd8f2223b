//! LLM.int8(): a linear weight as int8 codes with one scale a row, multiplied in int8, but for the few columns of the input
//! that hold outliers (arXiv 2208.07339). Codes and scales are those of bitsandbytes' `Linear8bitLt`.
//!
//! Shapes: m rows of the input, k inputs, n outputs.

use crate::libtorch::failure::or_panic;
use crate::libtorch::int8_cuda;
use tch::{Device, Kind, Tensor};

/// bitsandbytes' default of the size from which inputs are outliers.
pub const DEFAULT_THRESHOLD: f64 = 6.0;
/// The largest code.
const LARGEST: f64 = 127.0;
/// Numbers of a weight that are made dense at a time in backward.
pub const DENSE_AT_ONCE: i64 = 1 << 24;
/// Numbers that are quantised at a time: so many stay in the processor's cache.
const QUANTISED_AT_ONCE: i64 = 1 << 19;
/// CUDA's int8 product takes no fewer rows, and widths that are multiples of `CUDA_MULTIPLE`.
const CUDA_ROWS: i64 = 32;
const CUDA_MULTIPLE: i64 = 8;

/// A frozen weight in 8 bits.
pub struct Int8Weight {
    /// int8 `[n, k]`
    codes: Tensor,
    /// What a code of 1 stands for in each row: float32 `[n]`.
    scales: Tensor,
    /// Inputs of at least this size make their column an outlier; 0: none does.
    threshold: f64,
    /// The dtype that it stands for.
    kind: Kind,
}

impl Int8Weight {
    /// Quantises `weight` `[n, k]` row by row, from float16 as bitsandbytes does.
    pub fn quantise(weight: &Tensor, kind: Kind, threshold: f64) -> Self {
        let _no_grad = tch::no_grad_guard();
        let (n, k) = (weight.size()[0], weight.size()[1]);
        let codes = Tensor::empty([n, k], (Kind::Int8, weight.device()));
        let mut scales = Vec::new();
        for (start, rows) in bands(n, k, QUANTISED_AT_ONCE) {
            let weight = weight.narrow(0, start, rows).to_kind(Kind::Half).to_kind(Kind::Float);
            let largest = weight.abs().amax([1i64].as_slice(), false);
            let per_number = LARGEST / largest.clamp_min(f64::from(f32::MIN_POSITIVE));
            codes.narrow(0, start, rows).copy_(&(weight * per_number.unsqueeze(1)).round_());
            scales.push(largest / LARGEST);
        }
        Self { codes, scales: Tensor::cat(&scales, 0), threshold, kind }
    }

    /// That of `codes` and `scales`, as [`Int8Weight::quantise`] makes them.
    pub(super) fn of(codes: Tensor, scales: Tensor, threshold: f64, kind: Kind) -> Self {
        Self { codes, scales, threshold, kind }
    }

    /// `xs Wᵀ + b`: `[m, k] -> [m, n]`, in the dtype of `xs` and without a gradient.
    pub(super) fn product(&self, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let (n, k) = (self.codes.size()[0], self.codes.size()[1]);
        if n % CUDA_MULTIPLE == 0 && k % CUDA_MULTIPLE == 0 {
            let made = int8_cuda::product(xs, &self.codes, &self.scales, bias, self.threshold);
            if let Some(ys) = or_panic(made) {
                return ys;
            }
        }
        let ys = self.product_by_operations(xs);
        match bias {
            Some(bias) => ys + bias,
            None => ys,
        }
    }

    fn product_by_operations(&self, xs: &Tensor) -> Tensor {
        let numbers = xs.to_kind(Kind::Float);
        let (small, columns) = self.without_outliers(&numbers);
        let largest = small.abs().amax([1i64].as_slice(), true);
        let per_number = LARGEST / largest.clamp_min(f64::from(f32::MIN_POSITIVE));
        let mut rows = small * per_number;
        if let Some(columns) = &columns {
            rows = rows.index_fill(1, columns, 0.0);
        }
        let rows = rows.round_().to_kind(Kind::Int8);
        let mut ys = self.int8_product(&rows).to_kind(Kind::Float);
        ys *= largest / LARGEST;
        ys *= &self.scales;
        if let Some(columns) = columns {
            let weight = self.codes.index_select(1, &columns).to_kind(Kind::Float) * self.scales.unsqueeze(1);
            ys = ys.addmm(&numbers.index_select(1, &columns), &weight.tr());
        }
        ys.to_kind(xs.kind())
    }

    /// `xs` with its outliers as 0, and the columns that have any.
    fn without_outliers(&self, xs: &Tensor) -> (Tensor, Option<Tensor>) {
        if self.threshold <= 0.0 {
            return (xs.shallow_clone(), None);
        }
        let outliers = xs.abs().ge(self.threshold);
        let columns = outliers.any_dim(0, false).nonzero().squeeze_dim(1);
        match columns.size()[0] {
            0 => (xs.shallow_clone(), None),
            _ => (xs.masked_fill(&outliers, 0.0), Some(columns)),
        }
    }

    /// int8 `[m, k]` with the codes: int32 `[m, n]`, or the same numbers in float32.
    fn int8_product(&self, rows: &Tensor) -> Tensor {
        let (m, k, n) = (rows.size()[0], self.codes.size()[1], self.codes.size()[0]);
        match self.codes.device() {
            Device::Cuda(_) if k % CUDA_MULTIPLE != 0 || n % CUDA_MULTIPLE != 0 => {
                rows.to_kind(Kind::Float).matmul(&self.codes.to_kind(Kind::Float).tr())
            }
            Device::Cuda(_) if m < CUDA_ROWS => {
                let padded = rows.constant_pad_nd([0, 0, 0, CUDA_ROWS - m]);
                padded.internal_int_mm(&self.codes.tr()).narrow(0, 0, m)
            }
            _ => rows.internal_int_mm(&self.codes.tr()),
        }
    }

    /// The weight that the codes stand for, in `kind`.
    pub fn dense(&self, kind: Kind) -> Tensor {
        (self.codes.to_kind(Kind::Float) * self.scales.unsqueeze(1)).to_kind(kind)
    }

    /// int8 `[n, k]`
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// What a code of 1 stands for in each row: float32 `[n]`.
    pub fn scales(&self) -> &Tensor {
        &self.scales
    }

    /// Inputs of at least this size make their column an outlier.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// `[n, k]`
    pub fn shape(&self) -> Vec<i64> {
        self.codes.size()
    }

    /// The dtype that it stands for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.codes.device()
    }
}

/// The rows of a weight `[n, k]` in bands of about `numbers`: each band's first row, and how many it has.
fn bands(n: i64, k: i64, numbers: i64) -> impl Iterator<Item = (i64, i64)> {
    let band = (numbers / k.max(1)).max(1);
    (0..n).step_by(band as usize).map(move |start| (start, band.min(n - start)))
}

/// `g W`: `[m, n] -> [m, k]`. The small operand takes the scales, and the codes are made dense a band at a time.
pub(super) fn input_gradient(grad: &Tensor, Int8Weight { codes, scales, .. }: &Int8Weight) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let (n, k) = (codes.size()[0], codes.size()[1]);
    if k % CUDA_MULTIPLE == 0 {
        if let Some(product) = or_panic(int8_cuda::gradient(grad, codes, scales, DENSE_AT_ONCE)) {
            return product;
        }
    }
    let kind = grad.kind();
    let scaled = (grad.to_kind(Kind::Float) * scales).to_kind(kind);
    let mut parts = bands(n, k, DENSE_AT_ONCE)
        .map(|(start, rows)| scaled.narrow(1, start, rows).matmul(&codes.narrow(0, start, rows).to_kind(kind)));
    match parts.next() {
        None => Tensor::zeros([grad.size()[0], k], (kind, grad.device())),
        Some(first) if n * k <= DENSE_AT_ONCE => first,
        Some(first) => {
            let sum = parts.fold(first.to_kind(Kind::Float), |mut sum, part| sum.g_add_(&part));
            sum.to_kind(kind)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{BaseWeight, Op};

    fn run(int8: Int8Weight, xs: &Tensor, bias: Option<&Tensor>) -> Tensor {
        BaseWeight::Int8(int8).run(Op::Linear, xs, bias)
    }

    fn drawn(shape: &[i64], seed: i64) -> Tensor {
        crate::libtorch::random::Generator::new(seed).randn(shape)
    }

    fn relative(actual: &Tensor, expected: &Tensor) -> f64 {
        let error = (actual.to_kind(Kind::Double) - expected).norm() / expected.norm();
        error.double_value(&[])
    }

    #[test]
    fn codes_stand_for_the_weight_within_half_a_step() {
        let weight = drawn(&[24, 40], 1);
        let int8 = Int8Weight::quantise(&weight, Kind::Float, 6.0);
        let steps = (int8.dense(Kind::Float) - &weight).abs() / int8.scales.unsqueeze(1);
        // float16's own rounding comes on top.
        assert!(steps.max().double_value(&[]) < 0.56);
        assert_eq!(int8.codes.abs().max().int64_value(&[]), 127);
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let weight = Tensor::zeros([3, 16], (Kind::Float, Device::Cpu));
        let ys = run(Int8Weight::quantise(&weight, Kind::Float, 6.0), &drawn(&[2, 16], 3), None);
        assert_eq!(ys.abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn outliers_do_not_cost_the_other_columns_their_precision() {
        let weight = drawn(&[32, 64], 1);
        let xs = drawn(&[20, 64], 2)
            * (Tensor::arange(64, (Kind::Int64, Device::Cpu)).eq(5).to_kind(Kind::Float) * 39.0 + 1.0);
        let exact = |int8: &Int8Weight| xs.to_kind(Kind::Double).matmul(&int8.dense(Kind::Double).tr());
        let error = |threshold: f64| {
            let int8 = Int8Weight::quantise(&weight, Kind::Float, threshold);
            relative(&int8.product(&xs, None), &exact(&int8))
        };
        assert!(error(6.0) < 0.006, "{}", error(6.0));
        assert!(error(0.0) > 4.0 * error(6.0));
    }

    #[test]
    fn the_gradient_is_that_of_the_weight_that_the_codes_stand_for() {
        let int8 = Int8Weight::quantise(&drawn(&[48, 40], 1), Kind::Float, 6.0);
        let bias = drawn(&[48], 5);
        let xs = drawn(&[9, 40], 2).set_requires_grad(true);
        let grad = drawn(&[9, 48], 3);
        let expected = grad.to_kind(Kind::Double).matmul(&int8.dense(Kind::Double));
        (run(int8, &xs, Some(&bias)) * &grad).sum(Kind::Float).backward();
        assert!(relative(&xs.grad(), &expected) < 1e-6);
    }
}
