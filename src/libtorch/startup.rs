//! Starts libtorch: loads its CUDA part where there is one, and sets what holds for the whole process.

use std::sync::OnceLock;
use tch::{Cuda, Device};

/// Loads `libtorch_cuda.so` where the machine has it. A Rust binary is linked without it, and the first CUDA query
/// decides for good whether CUDA exists, so every question about CUDA comes through here.
/// Returns whether the library was found; a device may still be absent.
pub fn load_cuda() -> bool {
    static LOADED: OnceLock<bool> = OnceLock::new();
    *LOADED.get_or_init(|| {
        // A machine without NVIDIA's driver has nothing to load: save the tenth of a second.
        if !std::path::Path::new("/dev/nvidiactl").exists() && !std::path::Path::new("/dev/dxg").exists() {
            return false;
        }
        // SAFETY: a constant NUL-terminated name; libtorch's initialisers are made to run at load time.
        unsafe { !libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() }
    })
}

/// Number of CUDA devices that can be used.
pub fn cuda_devices() -> i64 {
    if load_cuda() {
        Cuda::device_count()
    } else {
        0
    }
}

/// The first CUDA device where there is one, else the CPU.
pub fn best_device() -> Device {
    if cuda_devices() > 0 {
        Device::Cuda(0)
    } else {
        Device::Cpu
    }
}
