//! Gradients between backward and the optimizer's step.

use super::Parameters;
use crate::error::Result;
use crate::libtorch::fused_adamw::{scale, total_norm};
use tch::{Device, Kind, Tensor};

/// The gradients of the parameters that have one, in the order of their names.
pub fn gradients(params: &Parameters) -> Vec<Tensor> {
    params.values().map(Tensor::grad).filter(Tensor::defined).collect()
}

/// Scales `grads`, whose joint norm is `norm`, in place so that it is at most `max_norm`: `torch.nn.utils.clip_grad_norm_`, in its float32.
pub fn clip(grads: &[Tensor], norm: f32, max_norm: f64) -> Result<()> {
    let factor = max_norm as f32 / (norm + 1e-6);
    match factor < 1.0 {
        true => scale(grads, f64::from(factor)),
        false => Ok(()),
    }
}

/// The norm of all `grads` as one vector, a scalar on their device; 0 of none.
pub fn grad_norm(grads: &[Tensor]) -> Result<Tensor> {
    match grads.is_empty() {
        true => Ok(Tensor::zeros([], (Kind::Float, Device::Cpu))),
        false => total_norm(grads),
    }
}

/// Whether each element of `grads` is a number: one pass over them, and one wait for the device.
pub fn all_finite(grads: &[Tensor]) -> Result<bool> {
    Ok(f32::try_from(grad_norm(grads)?)?.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_infinity_or_nan_anywhere_is_found() {
        let good = Tensor::from_slice(&[1f32, -2.]);
        assert!(all_finite(&[good.shallow_clone(), good.shallow_clone()]).unwrap());
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(!all_finite(&[good.shallow_clone(), Tensor::from_slice(&[0f32, bad])]).unwrap());
        }
        assert!(all_finite(&[]).unwrap());
    }

    #[test]
    fn parameters_without_a_gradient_are_left_out() {
        let leaf = || Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let params = Parameters::from([("a".to_owned(), leaf()), ("b".to_owned(), leaf())]);
        params["b"].sum(Kind::Float).backward();
        assert_eq!(gradients(&params).len(), 1);
    }
}
