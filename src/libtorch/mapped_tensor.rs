//! A tensor over memory that something else owns: a mapped file, or bytes in Rust. Nothing is copied.

use super::check;
use super::file_map::FileMap;
use crate::error::{Error, Result};
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

type RawDrop = unsafe extern "C" fn(owner: *mut c_void);

extern "C" {
    fn lorabooth_from_memory(
        data: *const u8,
        shape: *const i64,
        dims: i64,
        kind: i32,
        owner: *mut c_void,
        drop: RawDrop,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
}

unsafe extern "C" fn release<T>(owner: *mut c_void) {
    // SAFETY: C++ calls this once, with the box of `over_memory`.
    drop(unsafe { Box::from_raw(owner.cast::<Arc<T>>()) });
}

/// A CPU tensor of `shape` over `map[start..]`, which it keeps mapped. It must never be written to: the map is
/// read-only. Fails where the map ends before the tensor does.
pub fn over(map: &Arc<FileMap>, start: usize, shape: &[i64], kind: Kind) -> Result<Tensor> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let end = elements.and_then(|n| n.checked_mul(kind.elt_size_in_bytes())).and_then(|n| n.checked_add(start));
    if end.is_none_or(|end| end > map.len()) {
        return Err(Error::invalid(format!("a tensor of shape {shape:?} ends after its file")));
    }
    // SAFETY: the range was checked above.
    unsafe { over_memory(map.clone(), map.as_ptr().add(start), shape, kind) }
}

/// A CPU tensor of `shape` over the memory at `data`, which `owner` keeps.
///
/// # Safety
/// There are as many bytes, for as long as `owner` lives, and no thread writes them while another reads them.
pub(super) unsafe fn over_memory<T: Send + Sync>(
    owner: Arc<T>,
    data: *const u8,
    shape: &[i64],
    kind: Kind,
) -> Result<Tensor> {
    let scalar_type = scalar_type(kind)?;
    let owner = Box::into_raw(Box::new(owner)).cast();
    let mut out = std::ptr::null_mut();
    // SAFETY: the caller's promise; the box keeps the memory until C++ drops the storage. On failure C++ calls `release` too.
    unsafe {
        let dims = shape.len() as i64;
        check(lorabooth_from_memory(data, shape.as_ptr(), dims, scalar_type, owner, release::<T>, &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// C++'s number of a dtype that weight files have (`c10::ScalarType`).
pub(super) fn scalar_type(kind: Kind) -> Result<i32> {
    Ok(match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        other => return Err(Error::invalid(format!("weights of dtype {other:?} cannot be mapped"))),
    })
}

/// Tells the kernel that `map[start..start + len]` is not needed for now: its pages leave the resident size and come
/// back from the file when touched.
pub fn let_go(map: &FileMap, start: usize, len: usize) {
    const PAGE: usize = 4096;
    let first = (start / PAGE) * PAGE;
    let len = (start + len).min(map.len()).saturating_sub(first);
    // SAFETY: a page-aligned range inside the map; the mapping is private, read-only and backed by the file.
    unsafe {
        libc::madvise(map.as_ptr().add(first).cast_mut().cast(), len, libc::MADV_DONTNEED);
    }
}
