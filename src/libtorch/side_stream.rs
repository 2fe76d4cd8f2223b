//! Copies to a device beside what it computes: on CUDA by a stream of their own, on the CPU at once.

use super::{check, handles};
use crate::error::Result;
use std::ffi::{c_char, c_void};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_side_stream(index: i64, out: *mut *mut c_void) -> *mut c_char;
    fn lorabooth_side_stream_free(side: *mut c_void);
    fn lorabooth_side_stream_copy(
        side: *mut c_void,
        to: *const *mut C_tensor,
        from: *const *mut C_tensor,
        n: i64,
    ) -> *mut c_char;
    fn lorabooth_side_stream_await(side: *mut c_void) -> *mut c_char;
}

/// One lane of copies to a device.
pub struct SideStream {
    /// A C++ object; null for the CPU.
    raw: *mut c_void,
}

// SAFETY: the C++ object has no thread of its own, and `&mut self` keeps it to one caller at a time.
unsafe impl Send for SideStream {}

impl SideStream {
    /// A lane to `device`.
    pub fn new(device: Device) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        if let Device::Cuda(index) = device {
            // SAFETY: a valid place for the handle.
            check(unsafe { lorabooth_side_stream(index as i64, &mut raw) })?;
        }
        Ok(Self { raw })
    }

    /// Copies each `from` (on the host; pinned, for the copy to go on beside) over its `to`, once the device has done what it was
    /// given before.
    pub fn copy(&mut self, to: &[Tensor], from: &[Tensor]) -> Result<()> {
        if self.raw.is_null() {
            for (to, from) in to.iter().zip(from) {
                to.shallow_clone().f_copy_(from)?;
            }
            return Ok(());
        }
        let (to, from) = (handles(to), handles(from));
        let n = to.len().min(from.len()) as i64;
        // SAFETY: two lists of at least `n` living handles, and the handle of `new`.
        check(unsafe { lorabooth_side_stream_copy(self.raw, to.as_ptr(), from.as_ptr(), n) })
    }

    /// What the device is given from now on comes after the last copy.
    pub fn wait(&mut self) -> Result<()> {
        match self.raw.is_null() {
            true => Ok(()),
            // SAFETY: the handle of `new`.
            false => check(unsafe { lorabooth_side_stream_await(self.raw) }),
        }
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the handle of `new`, freed once.
            unsafe { lorabooth_side_stream_free(self.raw) }
        }
    }
}
