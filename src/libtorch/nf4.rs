//! NF4 codes of weights, and weights of codes: kernels of our own on the CPU and on a CUDA device.

use super::mapped_tensor::scalar_type;
use super::{check, made, raw};
use crate::error::{Error, Result};
use std::ffi::c_char;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_nf4_quantise(
        weight: *mut C_tensor,
        size: i64,
        packed: *mut *mut C_tensor,
        scales: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn lorabooth_nf4_expand(
        packed: *mut C_tensor,
        scales: *mut C_tensor,
        nested: *mut C_tensor,
        map: *mut C_tensor,
        offset: f64,
        size: i64,
        nested_size: i64,
        shape: *const i64,
        dims: i64,
        kind: i32,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// The codes (uint8 `[⌈numbers / 2⌉, 1]`, the first of two in the high bits) and the scales (float32 `[blocks]`) of `weight`, which is on
/// the CPU, in blocks of `size` numbers.
pub fn quantise(weight: &Tensor, size: i64) -> Result<(Tensor, Tensor)> {
    if weight.device() != tch::Device::Cpu || size < 2 || size % 2 != 0 {
        return Err(Error::Internal(format!("NF4 of a weight on {:?} in blocks of {size}", weight.device())));
    }
    let (mut packed, mut scales) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: a living handle; on success both are new handles that are ours.
    unsafe {
        check(lorabooth_nf4_quantise(raw(weight), size, &mut packed, &mut scales))?;
        Ok((Tensor::from_ptr(packed), Tensor::from_ptr(scales)))
    }
}

/// Scales that are quantised themselves.
pub struct Nested<'a> {
    /// float32 `[blocks of scales]`
    pub scales: &'a Tensor,
    /// What each code stands for: float32 `[256]`
    pub map: &'a Tensor,
    /// What is added.
    pub offset: f64,
    /// Scales in a block.
    pub size: i64,
}

/// Refuses codes and scales that are not those of a weight of `shape` in blocks of `size` numbers, a multiple of 8; `scales` are float32,
/// or uint8 where they are nested.
pub fn check_parts(packed: &Tensor, scales: &Tensor, nested: Option<&Nested>, size: i64, shape: &[i64]) -> Result<()> {
    let numbers: i64 = shape.iter().product();
    let blocks = (numbers as u64).div_ceil(size.max(1) as u64) as usize;
    let nested_blocks = |nested: &Nested| blocks.div_ceil(nested.size.max(1) as usize);
    let scale_kind = if nested.is_some() { Kind::Uint8 } else { Kind::Float };
    let fits = size >= 8
        && size % 8 == 0
        && packed.kind() == Kind::Uint8
        && packed.numel() == (numbers as u64).div_ceil(2) as usize
        && (scales.kind(), scales.numel()) == (scale_kind, blocks)
        && nested.is_none_or(|nested| {
            let found = [(nested.scales.kind(), nested.scales.numel()), (nested.map.kind(), nested.map.numel())];
            found == [(Kind::Float, nested_blocks(nested)), (Kind::Float, 256)]
                && [nested.scales, nested.map].iter().all(|part| part.is_contiguous())
        });
    match fits {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "its codes and scales are not those of {numbers} numbers in blocks of {size}; download the files again"
        ))),
    }
}

/// The weight of `shape` in `kind` that `packed` and `scales`, as [`check_parts`] wants them, stand for.
pub fn expand(
    packed: &Tensor,
    scales: &Tensor,
    nested: Option<Nested>,
    size: i64,
    shape: &[i64],
    kind: Kind,
) -> Result<Tensor> {
    check_parts(packed, scales, nested.as_ref(), size, shape)?;
    let (over, map, offset, nested_size) = match &nested {
        Some(nested) => (raw(nested.scales), raw(nested.map), nested.offset, nested.size),
        None => (std::ptr::null_mut(), std::ptr::null_mut(), 0.0, 1),
    };
    let computed = if matches!(kind, Kind::Half | Kind::BFloat16) { kind } else { Kind::Float };
    let number = scalar_type(computed)?;
    // SAFETY: living handles of as many numbers as was checked; those that are null are not read.
    let weight = made(|out| unsafe {
        lorabooth_nf4_expand(
            raw(packed),
            raw(scales),
            over,
            map,
            offset,
            size,
            nested_size,
            shape.as_ptr(),
            shape.len() as i64,
            number,
            out,
        )
    })?;
    Ok(weight.unwrap_or_default().f_to_kind(kind)?)
}
