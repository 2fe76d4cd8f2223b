//! Dropout (arXiv 1207.0580): libtorch's draws and numbers, made faster on the CPU, where a byte of each mask is kept instead of a
//! number.

use super::failure::or_panic;
use super::{autograd_node, check};
use crate::error::Result;
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_dropout_mask(xs: *mut C_tensor, keep: f64, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_dropout_apply(
        xs: *mut C_tensor,
        mask: *mut C_tensor,
        keep: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// `torch.nn.functional.dropout(xs, rate)`, `rate` in (0, 1): drawn from libtorch's global generator.
/// Like every tensor operation in a forward it panics where libtorch fails; the step's boundary catches that.
pub fn dropout(xs: &Tensor, rate: f64) -> Tensor {
    or_panic(drawn(xs, 1.0 - rate)).unwrap_or_else(|| xs.dropout(rate, true))
}

fn drawn(xs: &Tensor, keep: f64) -> Result<Option<Tensor>> {
    let mut mask = std::ptr::null_mut();
    // SAFETY: the handle lives through the call; on success `mask` is null or a new tensor handle that is ours.
    let mask = unsafe {
        check(lorabooth_dropout_mask(xs.as_ptr().cast_mut(), keep, &mut mask))?;
        if mask.is_null() {
            return Ok(None);
        }
        Tensor::from_ptr(mask)
    };
    let ys = applied(xs, &mask, keep)?;
    let backward = move |grads: &[Option<Tensor>], saved: &[Tensor]| {
        let grad = grads[0].as_ref().map(|grad| applied(grad, &saved[0], keep)).transpose()?;
        Ok(vec![grad])
    };
    autograd_node::attach(&[xs], &[&mask], &[&ys], Box::new(backward))?;
    Ok(Some(ys))
}

fn applied(xs: &Tensor, mask: &Tensor, keep: f64) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: the handles live through the call; on success `out` is a new tensor handle that is ours.
    unsafe {
        check(lorabooth_dropout_apply(xs.as_ptr().cast_mut(), mask.as_ptr().cast_mut(), keep, &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::{global_state, seed_globally, turn};
    use tch::{Device, Kind};

    /// Output, gradient and the generator's next draws.
    fn trained(xs: &Tensor, ahead: i64, dropout: impl Fn(&Tensor) -> Tensor) -> [Tensor; 3] {
        seed_globally(Device::Cpu, 5).unwrap();
        // Words are drawn in pairs: an odd number of them ahead shifts the pairs over the ends of blocks.
        let _ahead = Tensor::rand([ahead], tch::kind::FLOAT_CPU);
        let xs = xs.detach().set_requires_grad(true);
        let ys = dropout(&xs);
        (&ys * Tensor::arange(ys.numel() as i64, (ys.kind(), Device::Cpu)).view_as(&ys)).sum(Kind::Float).backward();
        [ys.detach(), xs.grad(), global_state(Device::Cpu).unwrap()]
    }

    #[test]
    fn it_is_libtorchs_dropout_to_the_bit() {
        let _turn = turn();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
            let xs = Tensor::arange(3000, (Kind::Float, Device::Cpu)).view([2, 30, 50]).to_kind(kind) + 1.0;
            for (xs, ahead, rate) in [(xs.shallow_clone(), 0, 0.1), (xs.transpose(1, 2), 1, 0.5), (xs, 623, 0.999)] {
                let ours = trained(&xs, ahead, |xs| dropout(xs, rate));
                let theirs = trained(&xs, ahead, |xs| xs.dropout(rate, true));
                assert_eq!(ours, theirs, "{kind:?}, {ahead} ahead, {rate}");
            }
        }
    }

    #[test]
    fn a_view_with_gaps_is_left_to_libtorch() {
        let xs = Tensor::ones([8, 8], tch::kind::FLOAT_CPU).slice(1, 0, 8, 2);
        assert!(drawn(&xs, 0.5).unwrap().is_none());
    }
}
