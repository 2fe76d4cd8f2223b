//! How fast a device computes, measured in a third of a second, and how long a step takes at that rate.

use super::tape::Work;
use crate::error::Result;
use crate::libtorch::memory::synchronize;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long each operation is measured.
const SPAN: Duration = Duration::from_millis(80);

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
        let made = |shape: &[i64]| Tensor::f_zeros(shape, (kind, device)).map(|xs| xs + 0.01);
        let last = |xs: Tensor| xs.permute([0, 3, 1, 2]);
        let (image, kernel) = (last(made(&[1, 32, 32, 320])?), last(made(&[320, 3, 3, 320])?));
        let (rows, matrix) = (made(&[1024, 640])?, made(&[640, 640])?);
        let heads = made(&[1, 8, 1024, 80])?;
        let many = made(&[4 << 20])?;
        Ok(Self {
            conv: rate(device, 2.0 * 1024.0 * 9.0 * 320.0 * 320.0, || {
                image.f_conv2d(&kernel, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1)
            })?,
            matmul: rate(device, 2.0 * 1024.0 * 640.0 * 640.0, || rows.f_linear(&matrix, None::<&Tensor>))?,
            attention: rate(device, 4.0 * 1024.0 * 1024.0 * 640.0, || {
                let none = None::<&Tensor>;
                Tensor::f_scaled_dot_product_attention(&heads, &heads, &heads, none, 0.0, false, None, false)
            })?,
            bytes: rate(device, (2 * (4 << 20) * kind.elt_size_in_bytes()) as f64, || many.f_silu())?,
        })
    }

    /// Seconds that `work` takes.
    pub fn seconds(&self, work: &Work) -> f64 {
        work.conv / self.conv + work.matmul / self.matmul + work.attention / self.attention + work.bytes / self.bytes
    }
}

/// `amount` a second, from the fastest of several runs.
fn rate(device: Device, amount: f64, run: impl Fn() -> std::result::Result<Tensor, tch::TchError>) -> Result<f64> {
    drop(run()?); // kernels are chosen and compiled in the first
    synchronize(device)?;
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < SPAN {
        let before = Instant::now();
        drop(run()?);
        synchronize(device)?;
        best = best.min(before.elapsed().as_secs_f64());
    }
    Ok(amount / best.max(1e-9))
}
