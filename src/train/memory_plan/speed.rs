//! How fast a device computes, measured in about a second on the products that a run is made of, and how long work takes then.

use super::tape::{Product, Work};
use crate::error::Result;
use crate::libtorch::memory::synchronize;
use crate::weights::{conv2d, Stride};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long products are measured in all, those that take most first.
const BUDGET: Duration = Duration::from_millis(700);
/// How long each is measured.
const SPAN: Duration = Duration::from_millis(10);
/// The same of element-wise operations.
const LONG_SPAN: Duration = Duration::from_millis(80);
/// As [`SPAN`], where only the wording of a warning depends on it.
const GLANCE: Duration = Duration::from_millis(20);
/// Runs of each at least, however long they take.
const LEAST_RUNS: u32 = 3;
/// Runs that a GPU is given at a time at most: it has them all before the host waits for it.
const QUEUED: u32 = 64;
/// Larger products are measured on a part of their rows: as fast, and sooner done. The CPU's are so many operations, a GPU's more,
/// which is done with less before it has begun.
const LARGEST: f64 = 2e9;
const LARGEST_CUDA: f64 = 5e10;
/// Operations in a row by which the time of a small one is known.
const CHAIN: usize = 32;

/// Speeds of a device in a dtype.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Seconds that a product takes.
    products: BTreeMap<Product, f64>,
    /// Floating-point operations a second of those that were not measured.
    flops: f64,
    /// Bytes a second of element-wise operations.
    bytes: f64,
    /// Seconds that one takes at least.
    operation: f64,
}

impl Rates {
    /// Measures `device` on the products of `work`: a narrow one, or one of few rows, is far slower for its operations than a large one.
    pub fn measure(device: Device, kind: Kind, work: &Work) -> Result<Self> {
        let mut heaviest: Vec<(&Product, f64)> =
            work.products.iter().map(|(product, times)| (product, product.flops() * times)).collect();
        heaviest.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (mut began, mut products, mut all) = (Instant::now(), BTreeMap::new(), (0.0, 0.0));
        for (product, flops) in heaviest {
            if began.elapsed() > BUDGET {
                break;
            }
            let seconds = seconds_of(product, SPAN, device, kind)?;
            if device.is_cuda() && products.is_empty() {
                began = Instant::now(); // its libraries were loaded in the first
            }
            all = (all.0 + flops, all.1 + seconds * flops / product.flops().max(1.0));
            products.insert(*product, seconds);
        }
        let count: i64 = if device.is_cuda() { 32 << 20 } else { 4 << 20 };
        let many = Tensor::f_zeros([count], (kind, device))? + 0.01;
        let seconds = fastest(LONG_SPAN, device, || many.f_silu().map(drop))?;
        let bytes = (2 * count as usize * kind.elt_size_in_bytes()) as f64 / seconds;
        let flops = if all.1 > 0.0 { all.0 / all.1 } else { f64::INFINITY };
        Ok(Self { products, flops, bytes, operation: small_operation(device, kind)? })
    }

    /// How many times as long as in float32 the CPU takes for convolutions, products and attention in `kind`, as much of each.
    pub fn cpu_time_beside_float32(kind: Kind) -> Result<f64> {
        // Shapes of Stable Diffusion's middle levels.
        let products = [
            Product::Conv { images: 1, inputs: 320, outputs: 320, size: [32, 32], kernel: 3, stride: 1 },
            Product::Matmul { rows: 1024, inputs: 640, outputs: 640 },
            Product::Attention { heads: 8, rows: 1024, keys: 1024, width: 80 },
        ];
        let seconds = |kind: Kind| {
            let each = |product: &Product| Ok(seconds_of(product, GLANCE, Device::Cpu, kind)? / product.flops());
            products.iter().map(each).sum::<Result<f64>>()
        };
        Ok(seconds(kind)? / seconds(Kind::Float)?)
    }

    /// Seconds that `work` takes.
    pub fn seconds(&self, work: &Work) -> f64 {
        let product = |(product, times): (&Product, &f64)| {
            times * self.products.get(product).copied().unwrap_or_else(|| product.flops() / self.flops)
        };
        let products: f64 = work.products.iter().map(product).sum();
        products + work.bytes / self.bytes + work.operations * self.operation
    }
}

/// Seconds that a product takes, from its forward and its backward pass together.
fn seconds_of(product: &Product, span: Duration, device: Device, kind: Kind) -> Result<f64> {
    let part = part_of(*product, if device.is_cuda() { LARGEST_CUDA } else { LARGEST });
    let made = |shape: &[i64]| Tensor::f_zeros(shape, (kind, device)).map(|xs| xs + 0.01);
    let learned = |shape: &[i64]| made(shape).map(|xs| xs.set_requires_grad(true));
    let seconds = match part {
        Product::Conv { images, inputs, outputs, size: [height, width], kernel, stride } => {
            // Channels last, as a UNet's images lie on the CPU.
            let last = |xs: Tensor| xs.permute([0, 3, 1, 2]);
            let xs = last(made(&[images, height * stride, width * stride, inputs])?).set_requires_grad(true);
            let weight = last(made(&[outputs, kernel, kernel, inputs])?);
            let stride = Stride { stride, padding: kernel / 2 };
            fastest(span, device, || backward(&conv2d(&xs, &weight, None, stride), &[&xs]))? / 2.0
        }
        Product::Matmul { rows, inputs, outputs } => {
            let (xs, weight) = (learned(&[rows, inputs])?, made(&[outputs, inputs])?);
            fastest(span, device, || backward(&xs.f_linear(&weight, None::<&Tensor>)?, &[&xs]))? / 2.0
        }
        Product::Attention { heads, rows, keys, width } => {
            let q = learned(&[1, heads, rows, width])?;
            let [k, v] = [learned(&[1, heads, keys, width])?, learned(&[1, heads, keys, width])?];
            let none = None::<&Tensor>;
            let attend = || Tensor::f_scaled_dot_product_attention(&q, &k, &v, none, 0.0, false, None, false);
            // Two products forward, five backward.
            fastest(span, device, || backward(&attend()?, &[&q, &k, &v]))? / 3.5
        }
    };
    Ok(seconds * product.flops() / part.flops().max(1.0))
}

/// As many rows of a product as make `most` operations.
fn part_of(product: Product, most: f64) -> Product {
    let share = (most / product.flops().max(1.0)).min(1.0);
    let part = |count: i64, share: f64| ((count as f64 * share).ceil() as i64).clamp(1, count.max(1));
    let left = |count: i64, share: f64| (share * count as f64 / part(count, share) as f64).min(1.0);
    match product {
        Product::Conv { images, inputs, outputs, size: [height, width], kernel, stride } => {
            let size = [part(height, left(images, share)), width];
            Product::Conv { images: part(images, share), inputs, outputs, size, kernel, stride }
        }
        Product::Matmul { rows, inputs, outputs } => Product::Matmul { rows: part(rows, share), inputs, outputs },
        Product::Attention { heads, rows, keys, width } => {
            let rows = part(rows, left(heads, share));
            Product::Attention { heads: part(heads, share), rows, keys, width }
        }
    }
}

/// Seconds that an element-wise operation takes that has next to nothing to do, from a row of them forward and backward.
fn small_operation(device: Device, kind: Kind) -> Result<f64> {
    let xs = (Tensor::f_zeros([8, 8], (kind, device))? + 0.01).set_requires_grad(true);
    let run = || backward(&(0..CHAIN).fold(xs.shallow_clone(), |xs, _| xs.silu()), &[&xs]);
    let seconds = fastest(SPAN, device, run)?;
    Ok(seconds / (2 * CHAIN) as f64)
}

/// The gradients of `ys` with respect to `inputs`.
fn backward(ys: &Tensor, inputs: &[&Tensor]) -> std::result::Result<(), tch::TchError> {
    Tensor::f_run_backward(&[ys.f_sum(Kind::Float)?], inputs, false, false).map(drop)
}

/// Seconds of the fastest of several runs; on a GPU of the faster of two rows of them, since the wait for one takes as long as many.
fn fastest(span: Duration, device: Device, run: impl Fn() -> std::result::Result<(), tch::TchError>) -> Result<f64> {
    let row = |runs: u32| -> Result<f64> {
        let before = Instant::now();
        (0..runs).try_for_each(|_| tch::with_grad(&run))?;
        synchronize(device)?;
        Ok(before.elapsed().as_secs_f64() / f64::from(runs))
    };
    row(1)?; // kernels are chosen and compiled in the first
    if device.is_cuda() {
        let first = row(LEAST_RUNS)?;
        let second = row(((span.as_secs_f64() / first) as u32).clamp(LEAST_RUNS, QUEUED))?;
        return Ok(first.min(second).max(1e-9));
    }
    let (start, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while start.elapsed() < span || runs < LEAST_RUNS {
        runs += 1;
        best = best.min(row(1)?);
    }
    Ok(best.max(1e-9))
}
