//! Starts libtorch: loads its CUDA part where there is one, and sets what holds for the whole process.

use crate::error::{Error, Result};
use std::sync::OnceLock;
use tch::{Cuda, Device};

extern "C" {
    fn lorabooth_use_onednn_matmul();
    fn lorabooth_silence_warnings();
    fn lorabooth_use_deterministic_kernels(on: bool);
}

/// Whether this machine has NVIDIA's kernel driver.
pub fn has_nvidia_driver() -> bool {
    ["/dev/nvidiactl", "/dev/dxg"].iter().any(|device| std::path::Path::new(device).exists())
}

/// Loads `libtorch_cuda.so` where the machine has a driver for it. A Rust binary is linked without it, and the first CUDA query
/// decides for good whether CUDA exists, so every question about CUDA comes through here.
/// Returns whether the library was found; a device may still be absent.
pub fn load_cuda() -> bool {
    // Without a driver there is nothing to load it for: save the tenth of a second.
    (has_nvidia_driver() || has_cuda_part()) && load_cuda_part().is_ok()
}

/// Whether the system's loader has brought `libtorch_cuda.so` along with the program: libtorch sees its devices then, whatever driver there is.
fn has_cuda_part() -> bool {
    // SAFETY: a constant NUL-terminated name; nothing is loaded, and the library stays for as long as the process lives.
    !unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) }.is_null()
}

/// Loads `libtorch_cuda.so` and the CUDA libraries below it, with or without a driver; the loader's reason where it cannot.
pub fn load_cuda_part() -> std::result::Result<(), &'static str> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        // SAFETY: a constant NUL-terminated name; libtorch's initialisers are made to run at load time.
        if !unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null() {
            return Ok(());
        }
        // SAFETY: takes no argument; what it returns is this thread's until its next call of the loader.
        let reason = unsafe { libc::dlerror() };
        if reason.is_null() {
            return Err("the loader gives no reason".into());
        }
        // SAFETY: not null, so a NUL-terminated text.
        Err(unsafe { std::ffi::CStr::from_ptr(reason) }.to_string_lossy().into_owned())
    });
    loaded.as_ref().copied().map_err(String::as_str)
}

/// Number of CUDA devices that can be used.
pub fn cuda_devices() -> i64 {
    if load_cuda() {
        Cuda::device_count()
    } else {
        0
    }
}

/// Why no CUDA device can be used although this machine has NVIDIA's driver, as the loader or CUDA says it; `None` where there is a
/// device, or no driver.
pub fn why_no_cuda() -> Option<String> {
    if !has_nvidia_driver() || cuda_devices() > 0 {
        return None;
    }
    Some(match load_cuda_part() {
        Err(reason) => format!("libtorch's CUDA part could not be loaded: {reason}"),
        Ok(()) => {
            format!("CUDA shows no device: {}", runtime::failure().unwrap_or_else(|| "it gives no reason".into()))
        }
    })
}

/// Compute capability of a CUDA device, such as (7, 5) for a T4; `None` where the CUDA runtime does not tell.
pub fn cuda_capability(index: usize) -> Option<(i64, i64)> {
    runtime::capability(device_index(index)?)
}

/// A CUDA device's place on the PCI bus, such as `0000:01:00.0`, by which other libraries know it.
pub fn cuda_bus_id(index: usize) -> Option<String> {
    runtime::bus_id(device_index(index)?)
}

fn device_index(index: usize) -> Option<libc::c_int> {
    libc::c_int::try_from(index).ok().filter(|&device| i64::from(device) < cuda_devices())
}

/// The CUDA runtime, which libtorch's CUDA part brings into the process: asked by name, as nothing here is linked with it.
/// The functions are the CUDA Runtime API's; their signatures are the same since CUDA 5.
mod runtime {
    use std::ffi::{c_char, CStr};

    type GetAttribute = unsafe extern "C" fn(*mut libc::c_int, libc::c_int, libc::c_int) -> libc::c_int;
    type GetBusId = unsafe extern "C" fn(*mut c_char, libc::c_int, libc::c_int) -> libc::c_int;
    type GetCount = unsafe extern "C" fn(*mut libc::c_int) -> libc::c_int;
    type ErrorText = unsafe extern "C" fn(libc::c_int) -> *const c_char;

    /// The address of the function `name`, where the process has one.
    fn function(name: &CStr) -> Option<*mut libc::c_void> {
        // SAFETY: a NUL-terminated name; libtorch's CUDA part is loaded with RTLD_GLOBAL, and its runtime with it.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    pub fn capability(device: libc::c_int) -> Option<(i64, i64)> {
        const MAJOR: libc::c_int = 75;
        const MINOR: libc::c_int = 76;
        // SAFETY: this type is that function's.
        let get =
            unsafe { std::mem::transmute::<*mut libc::c_void, GetAttribute>(function(c"cudaDeviceGetAttribute")?) };
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: a valid place for one int.
            (unsafe { get(&mut value, which, device) } == 0).then_some(i64::from(value))
        };
        Some((attribute(MAJOR)?, attribute(MINOR)?))
    }

    pub fn bus_id(device: libc::c_int) -> Option<String> {
        // SAFETY: this type is that function's.
        let get = unsafe { std::mem::transmute::<*mut libc::c_void, GetBusId>(function(c"cudaDeviceGetPCIBusId")?) };
        let mut text = [0u8; 32];
        // SAFETY: a valid place of that length, which the function ends with NUL.
        let status = unsafe { get(text.as_mut_ptr().cast(), text.len() as libc::c_int, device) };
        let text = CStr::from_bytes_until_nul(&text).ok().filter(|_| status == 0)?;
        Some(text.to_string_lossy().into_owned())
    }

    /// Why no device can be counted, in CUDA's words.
    pub fn failure() -> Option<String> {
        let (count, text) = (function(c"cudaGetDeviceCount")?, function(c"cudaGetErrorString")?);
        // SAFETY: these types are those functions'.
        let (count, text) = unsafe {
            (
                std::mem::transmute::<*mut libc::c_void, GetCount>(count),
                std::mem::transmute::<*mut libc::c_void, ErrorText>(text),
            )
        };
        let mut devices = 0;
        // SAFETY: a valid place for one int.
        let status = unsafe { count(&mut devices) };
        // SAFETY: the texts are constants of the runtime.
        (status != 0).then(|| unsafe { CStr::from_ptr(text(status)) }.to_string_lossy().into_owned())
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

/// Keeps libtorch's warnings off the terminal: they are about calls of ours, for those who write programs. `TORCH_CPP_LOG_LEVEL`, libtorch's
/// own variable, brings them back.
pub fn silence_warnings() {
    if std::env::var_os("TORCH_CPP_LOG_LEVEL").is_none() {
        // SAFETY: sets one number of the process.
        unsafe { lorabooth_silence_warnings() }
    }
}

/// The size of cuBLAS' workspace, and the value with which its results repeat (cuBLAS' documentation, "Results reproducibility").
const CUBLAS_WORKSPACE: &std::ffi::CStr = c"CUBLAS_WORKSPACE_CONFIG";
const REPEATABLE: &std::ffi::CStr = c":4096:8";

/// Gives cuBLAS the workspace with which its results repeat, unless the environment names one. To be called before there are other
/// threads, and before CUDA is first used.
pub fn let_cublas_repeat() {
    // SAFETY: two constant NUL-terminated texts; no other thread reads the environment yet.
    unsafe { libc::setenv(CUBLAS_WORKSPACE.as_ptr(), REPEATABLE.as_ptr(), 0) };
}

/// Has a GPU computed with deterministic kernels alone, or not any more. Refused without [`let_cublas_repeat`].
pub fn use_deterministic_kernels(on: bool) -> Result<()> {
    let name = CUBLAS_WORKSPACE.to_string_lossy().into_owned();
    if on && !std::env::var(&name).is_ok_and(|value| [":4096:8", ":16:8"].contains(&value.as_str())) {
        let workspace = REPEATABLE.to_string_lossy();
        return Err(Error::invalid(format!("⟨deterministic⟩ needs {name}={workspace} in the environment")));
    }
    // SAFETY: sets options of the process.
    unsafe { lorabooth_use_deterministic_kernels(on) }
    Ok(())
}

/// Has float32 matrix products on AMD processors computed by oneDNN, twice as fast as MKL there with errors of the same size;
/// on Intel's MKL is the quicker one. libtorch takes that way only under its "bf16" setting, which changes nothing on AMD but lets
/// oneDNN round the inputs where the processor multiplies bfloat16 tiles (AMX): float32 must stay float32.
pub fn use_onednn_matmul() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if info.contains("AuthenticAMD") && info.contains("avx2") && !info.contains("amx") {
        // SAFETY: sets one option of the process.
        unsafe { lorabooth_use_onednn_matmul() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;
    use tch::Kind;

    #[test]
    fn float32_products_stay_float32() {
        let mut generator = Generator::new(0);
        let (a, b) = (generator.randn(&[70, 600]), generator.randn(&[600, 90]));
        use_onednn_matmul();
        let exact = a.to_kind(Kind::Double).matmul(&b.to_kind(Kind::Double));
        let error = (a.matmul(&b).to_kind(Kind::Double) - &exact).abs().max() / exact.abs().max();
        assert!(error.double_value(&[]) < 1e-5, "{error:?}");
    }
}
