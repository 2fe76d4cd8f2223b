//! Starts libtorch: loads its CUDA part where there is one, and sets what holds for the whole process.

use std::sync::OnceLock;
use tch::{Cuda, Device};

extern "C" {
    fn lorabooth_use_onednn_matmul();
}

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

/// Compute capability of a CUDA device, such as (7, 5) for a T4; `None` where the CUDA runtime does not tell.
pub fn cuda_capability(index: usize) -> Option<(i64, i64)> {
    /// `cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)` of the CUDA runtime API; 0 is success.
    type GetAttribute = unsafe extern "C" fn(*mut libc::c_int, libc::c_int, libc::c_int) -> libc::c_int;
    const MAJOR: libc::c_int = 75;
    const MINOR: libc::c_int = 76;
    let device = libc::c_int::try_from(index).ok().filter(|&device| i64::from(device) < cuda_devices())?;
    // SAFETY: a constant NUL-terminated name; libtorch's CUDA part was loaded with RTLD_GLOBAL, and its runtime with it.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"cudaDeviceGetAttribute".as_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the function of that name has had this signature since CUDA 5.
    let get = unsafe { std::mem::transmute::<*mut libc::c_void, GetAttribute>(found) };
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: a valid place for one int.
        (unsafe { get(&mut value, which, device) } == 0).then_some(i64::from(value))
    };
    Some((attribute(MAJOR)?, attribute(MINOR)?))
}

/// The first CUDA device where there is one, else the CPU.
pub fn best_device() -> Device {
    if cuda_devices() > 0 {
        Device::Cuda(0)
    } else {
        Device::Cpu
    }
}

/// Has OpenMP's threads sleep where they wait for each other. GNU's libgomp spins for milliseconds first, for each of the thousands
/// of operations of a step, and holds the very core that the others need: with one core taken by another program, two threads were
/// 50 times slower than one (measured). It spins for a moment only (100 turns) once it manages more threads than there are
/// cores, which a team that does nothing sees to; its environment variables would have to be set before the process starts.
/// Where the user set those, they hold.
pub fn sleep_instead_of_spinning() {
    /// `GOMP_parallel` of libgomp's ABI: runs a function on so many threads.
    type Parallel =
        unsafe extern "C" fn(extern "C" fn(*mut libc::c_void), *mut libc::c_void, libc::c_uint, libc::c_uint);
    extern "C" fn nothing(_: *mut libc::c_void) {}
    if ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"].iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    // SAFETY: a constant NUL-terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let Ok(threads) = libc::c_uint::try_from(cores + 1) else { return };
    if found.is_null() {
        return;
    }
    let (ready, team_is_there) = std::sync::mpsc::channel();
    let found = found as usize;
    std::thread::spawn(move || {
        // SAFETY: that function's signature since GCC 4.9; what it runs touches nothing.
        unsafe {
            let parallel = std::mem::transmute::<usize, Parallel>(found);
            parallel(nothing, std::ptr::null_mut(), threads, 0);
        }
        let _ = ready.send(());
        // The team counts as long as the thread that called for it lives.
        loop {
            std::thread::park();
        }
    });
    let _ = team_is_there.recv();
}

/// Has float32 matrix products on the CPU computed by oneDNN, twice as fast as MKL on AMD processors with errors of the same
/// size. libtorch takes that way only under its "bf16" setting, which lets oneDNN round the inputs where the processor multiplies
/// bfloat16 tiles (AMX) and changes nothing elsewhere: with AMX it is left alone, since float32 must stay float32.
pub fn use_onednn_matmul() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if info.contains("avx2") && !info.contains("amx") {
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
