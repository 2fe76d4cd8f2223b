//! The 8-bit codes of bitsandbytes' block-wise quantisation.

use tch::{Device, Kind, Tensor};

/// The 256 values that a byte can stand for, ascending, in -1..=1 (signed) or 0..=1: as the exponent falls from 0 to -6
/// the fraction has fewer bits (arXiv 2110.02861, section 1.3; `create_dynamic_map` of bitsandbytes). Float32 on the CPU.
pub fn dynamic_map(signed: bool) -> Tensor {
    let _guard = tch::no_grad_guard();
    let mut values = vec![0f32, 1.];
    for (i, magnitude) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.].into_iter().enumerate() {
        let intervals = 1i64 << if signed { i } else { i + 1 };
        let bounds = Tensor::linspace(0.1, 1., intervals + 1, (Kind::Float, Device::Cpu));
        let means = (bounds.narrow(0, 0, intervals) + bounds.narrow(0, 1, intervals)) / 2. * magnitude;
        let means: Vec<f32> = Vec::try_from(means).unwrap_or_default();
        if signed {
            values.extend(means.iter().map(|mean| -mean));
        }
        values.extend(means);
    }
    values.sort_by(f32::total_cmp);
    Tensor::from_slice(&values)
}
