//! Numbers of 8 bits (e4m3) in a wider dtype.

use super::mapped_tensor::scalar_type;
use super::{made, raw};
use crate::error::Result;
use std::ffi::c_char;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_fp8_expand(codes: *mut C_tensor, kind: i32, out: *mut *mut C_tensor) -> *mut c_char;
}

/// What `codes` (uint8) stand for, in `kind` and in the order in which they lie.
pub fn expand(codes: &Tensor, kind: Kind) -> Result<Tensor> {
    if codes.device() != Device::Cpu {
        return Ok(codes.f_view_dtype(Kind::Float8e4m3fn)?.f_to_kind(kind)?);
    }
    let number = scalar_type(kind)?;
    // SAFETY: a living handle.
    let numbers = made(|out| unsafe { lorabooth_fp8_expand(raw(codes), number, out) })?;
    Ok(numbers.unwrap_or_default())
}
