//! Element-wise nonlinearities of transformers: on a CUDA device by kernels of our own, elsewhere by libtorch's.

use super::{made_or_panic, raw};
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_gated_gelu(xs: *mut C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_quick_gelu(xs: *mut C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
}

/// The first half of each row times the GELU of the second (arXiv 2002.05202): `[.., 2 · width] -> [.., width]`.
pub fn gated_gelu(xs: &Tensor) -> Tensor {
    // SAFETY: a living handle.
    made_or_panic(|out| unsafe { lorabooth_gated_gelu(raw(xs), out) }).unwrap_or_else(|| {
        let halves = xs.chunk(2, -1);
        &halves[0] * halves[1].gelu("none")
    })
}

/// `x · sigmoid(1.702 x)`: the one CLIP was trained with.
pub fn quick_gelu(xs: &Tensor) -> Tensor {
    // SAFETY: a living handle.
    made_or_panic(|out| unsafe { lorabooth_quick_gelu(raw(xs), out) }).unwrap_or_else(|| xs * (xs * 1.702).sigmoid())
}
