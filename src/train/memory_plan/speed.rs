//! How fast a device computes, measured in a third of a second, and how long a step takes at that rate.

use super::tape::Work;
use crate::error::{Error, Result};
use crate::libtorch::memory::synchronize;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long each operation is measured.
const SPAN: Duration = Duration::from_millis(80);
/// Runs of each at least, however long they take.
const LEAST_RUNS: u32 = 3;
/// As [`SPAN`], where only the wording of a warning depends on it.
const GLANCE: Duration = Duration::from_millis(20);

/// Rates of a device in a dtype.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Floating-point operations a second of a convolution.
    pub conv: f64,
    /// Of a matrix product.
    pub matmul: f64,
    /// Of attention.
    pub attention: f64,
    /// Bytes a second of element-wise operations.
    pub bytes: f64,
}

impl Rates {
    /// Measures `device` on the shapes that Stable Diffusion's middle levels have.
    pub fn measure(device: Device, kind: Kind) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let [conv, matmul, attention] = products(SPAN, device, kind)?;
        let many = Tensor::f_zeros([4 << 20], (kind, device))? + 0.01;
        let bytes = rate(SPAN, device, (2 * (4 << 20) * kind.elt_size_in_bytes()) as f64, || many.f_silu())?;
        Ok(Self { conv, matmul, attention, bytes })
    }

    /// How many times as long as in float32 the CPU takes for convolutions, products and attention in `kind`, as much of each.
    pub fn cpu_time_beside_float32(kind: Kind) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let seconds = |kind: Kind| {
            let rates = products(GLANCE, Device::Cpu, kind)?;
            Ok::<f64, Error>(rates.iter().map(|rate| 1.0 / rate).sum())
        };
        Ok(seconds(kind)? / seconds(Kind::Float)?)
    }

    /// Seconds that `work` takes.
    pub fn seconds(&self, work: &Work) -> f64 {
        work.conv / self.conv + work.matmul / self.matmul + work.attention / self.attention + work.bytes / self.bytes
    }
}

/// The rates of a convolution, a matrix product and attention.
fn products(span: Duration, device: Device, kind: Kind) -> Result<[f64; 3]> {
    let made = |shape: &[i64]| Tensor::f_zeros(shape, (kind, device)).map(|xs| xs + 0.01);
    let last = |xs: Tensor| xs.permute([0, 3, 1, 2]);
    let (image, kernel) = (last(made(&[1, 32, 32, 320])?), last(made(&[320, 3, 3, 320])?));
    let (rows, matrix) = (made(&[1024, 640])?, made(&[640, 640])?);
    let heads = made(&[1, 8, 1024, 80])?;
    Ok([
        rate(span, device, 2.0 * 1024.0 * 9.0 * 320.0 * 320.0, || {
            image.f_conv2d(&kernel, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1)
        })?,
        rate(span, device, 2.0 * 1024.0 * 640.0 * 640.0, || rows.f_linear(&matrix, None::<&Tensor>))?,
        rate(span, device, 4.0 * 1024.0 * 1024.0 * 640.0, || {
            let none = None::<&Tensor>;
            Tensor::f_scaled_dot_product_attention(&heads, &heads, &heads, none, 0.0, false, None, false)
        })?,
    ])
}

/// `amount` a second, from the fastest of several runs.
fn rate(
    span: Duration,
    device: Device,
    amount: f64,
    run: impl Fn() -> std::result::Result<Tensor, tch::TchError>,
) -> Result<f64> {
    drop(run()?); // kernels are chosen and compiled in the first
    synchronize(device)?;
    let (start, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while start.elapsed() < span || runs < LEAST_RUNS {
        runs += 1;
        let before = Instant::now();
        drop(run()?);
        synchronize(device)?;
        best = best.min(before.elapsed().as_secs_f64());
    }
    Ok(amount / best.max(1e-9))
}
