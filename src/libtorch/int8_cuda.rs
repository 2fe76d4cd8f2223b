//! LLM.int8()'s product on a CUDA device without a wait for the device, by kernels of our own.

use super::{made, raw};
use crate::error::Result;
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_int8_product(
        xs: *mut C_tensor,
        codes: *mut C_tensor,
        scales: *mut C_tensor,
        bias: *mut C_tensor,
        threshold: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn lorabooth_int8_gradient(
        grad: *mut C_tensor,
        codes: *mut C_tensor,
        scales: *mut C_tensor,
        at_once: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// `xs` `[m, k]` times the transpose of the weight that `codes` (int8 `[n, k]`) and `scales` (float32 `[n]`) stand for, plus `bias`
/// `[n]`: `[m, n]` in the dtype of `xs`, without a gradient. Columns of `xs` that hold a number of at least `threshold` are not
/// quantised; with 0 all are. `k` and `n` are multiples of 8. `None` on other devices, and where the kernels cannot be compiled.
pub fn product(
    xs: &Tensor,
    codes: &Tensor,
    scales: &Tensor,
    bias: Option<&Tensor>,
    threshold: f64,
) -> Result<Option<Tensor>> {
    let bias = bias.map_or(std::ptr::null_mut(), raw);
    // SAFETY: the handles live through the call; the bias may be null.
    made(|out| unsafe { lorabooth_int8_product(raw(xs), raw(codes), raw(scales), bias, threshold, out) })
}

/// `grad` `[m, n]` times the weight that `codes` (int8 `[n, k]`) and `scales` (float32 `[n]`) stand for, of which about `at_once` numbers are
/// made dense at a time: `[m, k]` in the dtype of `grad`. `k` is a multiple of 8. `None` as for [`product`].
pub fn gradient(grad: &Tensor, codes: &Tensor, scales: &Tensor, at_once: i64) -> Result<Option<Tensor>> {
    // SAFETY: the handles live through the call.
    made(|out| unsafe { lorabooth_int8_gradient(raw(grad), raw(codes), raw(scales), at_once, out) })
}
