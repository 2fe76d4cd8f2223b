//! What libtorch has and tch does not wrap. The only `unsafe` and the only C++ of the project: each `.rs` with a
//! C++ side has a `.cpp` of the same name beside it.
#![allow(unsafe_code, reason = "the one room that talks to C++")]

pub mod autograd_node;
pub mod checkpoint;
pub mod child_signal;
pub mod convolution_search;
pub mod dropout;
pub mod failure;
pub mod file_map;
pub mod fp8;
pub mod fused_adamw;
pub mod gates;
pub mod gradient_reducer;
pub mod group_norm;
pub mod half_precision;
pub mod host_allocator;
pub mod int8_cuda;
pub mod low_rank;
pub mod mapped_tensor;
pub mod memory;
pub mod nf4;
pub mod nvidia_driver;
pub mod openmp_waiting;
pub mod planned;
pub mod process_group;
pub mod random;
pub mod shared_memory;
pub mod side_stream;
pub mod startup;
pub mod threads;
pub mod upload;

use crate::error::Result;
use std::ffi::{c_char, CStr};
use tch::Tensor;
use torch_sys::C_tensor;

/// The handles of `tensors`, for a shim that takes a list of them; they live as long as the tensors do.
fn handles<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*mut C_tensor> {
    tensors.into_iter().map(|tensor| tensor.as_ptr().cast_mut()).collect()
}

/// The handle of `tensor`, which lives as long as it does.
fn raw(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// The tensor that `call` puts into its argument, if any.
fn made(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Option<Tensor>> {
    let mut out = std::ptr::null_mut();
    check(call(&mut out))?;
    // SAFETY: not null, so a new handle that is ours.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}

/// The same in a forward, which panics where libtorch fails as its other operations do.
fn made_or_panic(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Option<Tensor> {
    failure::or_panic(made(call))
}

/// Turns a shim's message (null: success) into an error, and frees it.
fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shims return either null or a malloc'ed, NUL-terminated message that is now ours.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        libc::free(message.cast());
        text
    };
    Err(failure::error_of(text))
}
