//! Small tensors on their way to a device.

use super::{made_or_panic, raw};
use std::ffi::c_char;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_upload(xs: *mut C_tensor, index: i64, out: *mut *mut C_tensor) -> *mut c_char;
}

/// A copy of `xs` on `device`, without its gradient. Where `xs` is on the host and `device` is CUDA, the host does not wait for what the
/// device is given before, as `to_device` does.
/// Like every tensor operation it panics where libtorch fails; the step's boundary catches that.
pub fn upload(xs: &Tensor, device: Device) -> Tensor {
    match (xs.device(), device) {
        (Device::Cpu, Device::Cuda(index)) if xs.numel() > 0 => {
            // SAFETY: a living handle and an index.
            made_or_panic(|out| unsafe { lorabooth_upload(raw(xs), index as i64, out) }).unwrap_or_default()
        }
        _ => xs.to_device(device),
    }
}
