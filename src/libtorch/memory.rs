//! Peak memory, of the process and of a CUDA device, and the cap that a device can be put under.

use super::check;
use crate::error::Result;
use std::ffi::c_char;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_device_peak(index: i64, allocated: *mut i64, reserved: *mut i64) -> *mut c_char;
    fn lorabooth_device_reset_peak(index: i64) -> *mut c_char;
    fn lorabooth_device_memory(index: i64, free: *mut i64, total: *mut i64) -> *mut c_char;
    fn lorabooth_empty_cache() -> *mut c_char;
    fn lorabooth_allocator_settings(settings: *const c_char) -> *mut c_char;
    fn lorabooth_synchronize(index: i64) -> *mut c_char;
    fn lorabooth_pinned(bytes: i64, out: *mut *mut C_tensor) -> *mut c_char;
}

/// Highest resident size of this process so far, in bytes (`VmHWM`); 0 where the system does not tell.
pub fn host_peak() -> u64 {
    proc_status("VmHWM:")
}

/// Present resident size of this process in bytes (`VmRSS`); 0 where the system does not tell.
pub fn host_now() -> u64 {
    proc_status("VmRSS:")
}

/// Present resident size of this process without what lies in mapped files, in bytes (`RssAnon`); 0 where the system does not tell.
pub fn host_private() -> u64 {
    proc_status("RssAnon:")
}

/// Makes [`host_peak`] start from the present size, where the kernel allows it.
pub fn reset_host_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Memory of the host that a new program could use, in bytes (`MemAvailable`), and in all.
pub fn host_memory() -> (u64, u64) {
    (proc_field("/proc/meminfo", "MemAvailable:"), proc_field("/proc/meminfo", "MemTotal:"))
}

/// Host memory that a CUDA device copies from while it computes: uint8 `[bytes]`. CUDA's allocator takes the next power of two.
pub fn pinned(bytes: i64) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: on success `out` is a new handle that is ours.
    unsafe {
        check(lorabooth_pinned(bytes, &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Bytes in GiB.
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn proc_status(field: &str) -> u64 {
    proc_field("/proc/self/status", field)
}

/// The value in bytes of a "Name:  123 kB" line.
fn proc_field(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Keeps freed memory out of the allocator's pools, so that the resident size says what is used: large blocks are
/// mapped and given back to the system one by one.
pub fn return_freed_memory() {
    // SAFETY: two process-wide settings of the C allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives what the allocators hold free back to the system.
pub fn trim_host() {
    super::host_allocator::release();
    // SAFETY: no arguments to get wrong.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Peak bytes allocated and reserved on `device` since the last reset; zeros on the CPU.
pub fn device_peak(device: Device) -> Result<(i64, i64)> {
    let (mut allocated, mut reserved) = (0, 0);
    if let Device::Cuda(index) = device {
        // SAFETY: two valid places for two numbers.
        check(unsafe { lorabooth_device_peak(index as i64, &mut allocated, &mut reserved) })?;
    }
    Ok((allocated, reserved))
}

/// Starts the peak of `device` from what is allocated now.
pub fn reset_device_peak(device: Device) -> Result<()> {
    match device {
        // SAFETY: an index only.
        Device::Cuda(index) => check(unsafe { lorabooth_device_reset_peak(index as i64) }),
        _ => Ok(()),
    }
}

/// Free and total bytes of `device`; the host's for the CPU.
pub fn device_memory(device: Device) -> Result<(i64, i64)> {
    match device {
        Device::Cuda(index) => {
            let (mut free, mut total) = (0, 0);
            // SAFETY: two valid places for two numbers.
            check(unsafe { lorabooth_device_memory(index as i64, &mut free, &mut total) })?;
            Ok((free, total))
        }
        _ => {
            let (free, total) = host_memory();
            Ok((free as i64, total as i64))
        }
    }
}

/// Gives cached device memory back to the driver, and free host memory to the system.
pub fn release_cached(device: Device) -> Result<()> {
    trim_host();
    match device {
        // SAFETY: no arguments.
        Device::Cuda(_) => check(unsafe { lorabooth_empty_cache() }),
        _ => Ok(()),
    }
}

/// Waits for all work queued on `device`.
pub fn synchronize(device: Device) -> Result<()> {
    match device {
        // SAFETY: an index only.
        Device::Cuda(index) => check(unsafe { lorabooth_synchronize(index as i64) }),
        _ => Ok(()),
    }
}

/// Caps the CUDA allocator of this process at `fraction` of the card. To be called before CUDA is first used.
pub fn cap_device_memory(fraction: f64) -> Result<()> {
    let settings = format!("per_process_memory_fraction:{fraction:.6}\0");
    // SAFETY: NUL-terminated just above.
    check(unsafe { lorabooth_allocator_settings(settings.as_ptr().cast()) })
}
