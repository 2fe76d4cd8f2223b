//! Random generators beside libtorch's global one: tch has no generator argument, and a training step's draws must
//! depend on a seed alone, on whatever thread and device it runs.

use super::check;
use super::planned::{is_planning, PLANNED};
use crate::error::Result;
use std::ffi::{c_char, c_void};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_generator_new(seed: i64) -> *mut c_void;
    fn lorabooth_generator_free(generator: *mut c_void);
    fn lorabooth_generator_fill(
        generator: *mut c_void,
        tensor: *mut C_tensor,
        kind: i32,
        low: f64,
        high: f64,
    ) -> *mut c_char;
    fn lorabooth_generator_randperm(generator: *mut c_void, n: i64, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_generator_state(generator: *mut c_void, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_rng_state(cuda_index: i64, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_set_rng_state(cuda_index: i64, state: *mut C_tensor) -> *mut c_char;
}

/// A CPU generator of its own: the same draws as `torch.Generator("cpu").manual_seed(seed)`. While a plan is made it draws no numbers.
pub struct Generator(*mut c_void);

// SAFETY: the C++ generator is heap-allocated and only reached through `&mut self`.
unsafe impl Send for Generator {}

#[derive(Clone, Copy)]
enum Draw {
    Normal = 0,
    Uniform = 1,
    Integers = 2,
}

impl Generator {
    /// A generator seeded as `manual_seed(seed)` does it.
    pub fn new(seed: i64) -> Self {
        // SAFETY: returns an owned pointer that Drop frees.
        Self(unsafe { lorabooth_generator_new(seed) })
    }

    /// `torch.randn(size)`: float32 on the CPU.
    pub fn randn(&mut self, size: &[i64]) -> Tensor {
        self.fill(size, tch::Kind::Float, Draw::Normal, 0.0, 1.0)
    }

    /// `torch.empty(size).uniform_(low, high)`: float32 on the CPU.
    pub fn uniform(&mut self, size: &[i64], low: f64, high: f64) -> Tensor {
        self.fill(size, tch::Kind::Float, Draw::Uniform, low, high)
    }

    /// `torch.randint(low, high, size)`: int64 on the CPU.
    pub fn randint(&mut self, low: i64, high: i64, size: &[i64]) -> Tensor {
        self.fill(size, tch::Kind::Int64, Draw::Integers, low as f64, high as f64)
    }

    /// `torch.randperm(n)` as numbers.
    pub fn randperm(&mut self, n: i64) -> Vec<i64> {
        let mut out = std::ptr::null_mut();
        // SAFETY: on success `out` is a new tensor handle that is ours; libtorch cannot fail on n >= 0.
        let order =
            unsafe { check(lorabooth_generator_randperm(self.0, n.max(0), &mut out)).map(|()| Tensor::from_ptr(out)) };
        order.ok().and_then(|order| Vec::<i64>::try_from(order).ok()).unwrap_or_default()
    }

    /// Makes libtorch's global CPU generator go on from here: dropout has no generator argument.
    pub fn becomes_global(&self) -> Result<()> {
        let mut out = std::ptr::null_mut();
        // SAFETY: on success `out` is a new tensor handle that is ours.
        let state = unsafe {
            check(lorabooth_generator_state(self.0, &mut out))?;
            Tensor::from_ptr(out)
        };
        set_global_state(Device::Cpu, &state)
    }

    fn fill(&mut self, size: &[i64], kind: tch::Kind, draw: Draw, low: f64, high: f64) -> Tensor {
        if is_planning() {
            return Tensor::empty(size, (kind, PLANNED));
        }
        let tensor = Tensor::empty(size, (kind, Device::Cpu));
        // SAFETY: both handles live through the call; the tensor is fresh, so filling it in place is unseen.
        let filled =
            unsafe { check(lorabooth_generator_fill(self.0, tensor.as_ptr().cast_mut(), draw as i32, low, high)) };
        debug_assert!(filled.is_ok(), "{filled:?}");
        tensor
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // SAFETY: made by lorabooth_generator_new and not freed before.
        unsafe { lorabooth_generator_free(self.0) }
    }
}

/// The state of the global generator of `device` (bytes as a uint8 tensor).
pub fn global_state(device: Device) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: on success `out` is a new tensor handle that is ours.
    unsafe {
        check(lorabooth_rng_state(cuda_index(device), &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Puts a state of [`global_state`] back.
pub fn set_global_state(device: Device, state: &Tensor) -> Result<()> {
    // SAFETY: the handle lives through the call; C++ copies from it.
    check(unsafe { lorabooth_set_rng_state(cuda_index(device), state.as_ptr().cast_mut()) })
}

fn cuda_index(device: Device) -> i64 {
    match device {
        Device::Cuda(index) => index as i64,
        _ => -1,
    }
}

/// Seeds libtorch's global generators, which dropout and draws of tokens take from: the CPU's, and those of the CUDA devices where
/// `device` is one.
pub fn seed_globally(device: Device, seed: i64) -> Result<()> {
    Generator::new(seed).becomes_global()?;
    if let Device::Cuda(_) = device {
        tch::Cuda::manual_seed_all(seed as u64);
    }
    Ok(())
}

/// Tests that seed the global generator or draw from it take turns: it is one for the process.
#[cfg(test)]
pub fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_draws_what_the_seeded_global_one_draws() {
        let _turn = turn();
        let _guard = tch::no_grad_guard();
        let mut generator = Generator::new(7);
        let ours = (generator.randn(&[3, 17]), generator.randint(0, 1000, &[5]), generator.randperm(9));
        tch::manual_seed(7);
        let options = (tch::Kind::Float, Device::Cpu);
        let theirs = (
            Tensor::randn([3, 17], options),
            Tensor::randint(1000, [5], (tch::Kind::Int64, Device::Cpu)),
            Vec::<i64>::try_from(Tensor::randperm(9, (tch::Kind::Int64, Device::Cpu))).unwrap(),
        );
        assert_eq!(ours.0, theirs.0);
        assert_eq!(ours.1, theirs.1);
        assert_eq!(ours.2, theirs.2);
    }

    #[test]
    fn the_global_generator_can_go_on_where_one_stands() {
        let _turn = turn();
        let mut generator = Generator::new(11);
        let _before = generator.randn(&[5]);
        generator.becomes_global().unwrap();
        let global = Tensor::randn([20], (tch::Kind::Float, Device::Cpu));
        assert_eq!(generator.randn(&[20]), global);
    }

    #[test]
    fn a_restored_state_draws_the_same_again() {
        let _turn = turn();
        let state = global_state(Device::Cpu).unwrap();
        let first = Tensor::rand([16], (tch::Kind::Float, Device::Cpu));
        set_global_state(Device::Cpu, &state).unwrap();
        assert_eq!(first, Tensor::rand([16], (tch::Kind::Float, Device::Cpu)));
    }
}
