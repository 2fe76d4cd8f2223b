//! Group normalisation of images on a CUDA device, with SiLU behind it where wanted, by kernels of our own.

use super::{made_or_panic, raw};
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_group_norm(
        xs: *mut C_tensor,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        groups: i64,
        eps: f64,
        silu: bool,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// The norm of `xs` `[b, c, h, w]` over `groups` of channels, times `weight` `[c]`, plus `bias` `[c]`, and its SiLU with `silu`: channels-last.
/// `None` on other devices, where weight or bias learn, and where the kernels cannot be compiled.
/// Like every tensor operation in a forward it panics where libtorch fails; the step's boundary catches that.
pub fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, groups: i64, eps: f64, silu: bool) -> Option<Tensor> {
    // SAFETY: the handles live through the call.
    made_or_panic(|out| unsafe { lorabooth_group_norm(raw(xs), raw(weight), raw(bias), groups, eps, silu, out) })
}
