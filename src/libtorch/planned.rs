//! Tensors without numbers, on which a run is planned: shapes and dtypes alone, whose memory and work are counted. What a network allocates,
//! keeps for backward and frees is what libtorch's own autograd does with them.
//!
//! They are on libtorch's Meta device, for which tch has no name; it calls it [`PLANNED`].

use super::{check, raw};
use crate::error::Result;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

/// The device of tensors without numbers.
pub const PLANNED: Device = Device::Mps;

extern "C" {
    fn lorabooth_planning_begin(on_cuda: bool) -> *mut c_void;
    fn lorabooth_planning_end(planning: *mut c_void);
    fn lorabooth_planning_memory(planning: *mut c_void, live: *mut i64, peak: *mut i64, small: *mut i64);
    fn lorabooth_planning_reset_peak(planning: *mut c_void);
    fn lorabooth_planning_pause(paused: bool) -> bool;
    fn lorabooth_planning_work(planning: *mut c_void, bytes: *mut f64, operations: *mut f64) -> i64;
    fn lorabooth_planning_products(planning: *mut c_void, keys: *mut i64, times: *mut f64);
    fn lorabooth_planning_reset_work(planning: *mut c_void);
    fn lorabooth_planned_gradient(leaf: *mut C_tensor) -> *mut c_char;
}

thread_local! {
    /// For which device this thread plans.
    static DEVICE: Cell<Option<Device>> = const { Cell::new(None) };
}

/// The device that computes what is on `device`: that of the plan for tensors without numbers.
pub fn computing_device(device: Device) -> Device {
    match device {
        PLANNED => DEVICE.get().unwrap_or(Device::Cpu),
        device => device,
    }
}

/// The device that computes with `xs`.
pub fn device_of(xs: &Tensor) -> Device {
    computing_device(xs.device())
}

/// Whether `xs` has no numbers.
pub fn is_planned(xs: &Tensor) -> bool {
    xs.device() == PLANNED
}

/// Whether this thread makes a plan.
pub fn is_planning() -> bool {
    DEVICE.get().is_some()
}

/// What `make` gives, the memory of whose tensors is not counted.
pub fn uncounted<T>(make: impl FnOnce() -> T) -> T {
    struct Paused(bool);
    impl Drop for Paused {
        fn drop(&mut self) {
            // SAFETY: a flag of this thread's plan.
            unsafe { lorabooth_planning_pause(self.0) };
        }
    }
    // SAFETY: the same.
    let _before = Paused(unsafe { lorabooth_planning_pause(true) });
    make()
}

/// Has the gradient of the planned `leaf` there, as it is between the batches that one step adds up.
pub fn give_gradient(leaf: &Tensor) -> Result<()> {
    // SAFETY: a living handle.
    check(unsafe { lorabooth_planned_gradient(raw(leaf)) })
}

/// A product of many numbers, by what its speed depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Product {
    /// A convolution by a square kernel, with half the kernel around it.
    Conv {
        /// Images at a time.
        images: i64,
        /// Channels that come in.
        inputs: i64,
        /// Channels that go out.
        outputs: i64,
        /// Height and width of what goes out.
        size: [i64; 2],
        /// Side of the kernel.
        kernel: i64,
        /// Step of the kernel.
        stride: i64,
    },
    /// A matrix product `[rows, inputs] x [inputs, outputs]`.
    Matmul {
        /// Rows of the left side.
        rows: i64,
        /// What is summed over.
        inputs: i64,
        /// Columns of the right side.
        outputs: i64,
    },
    /// Attention: two products with what lies between.
    Attention {
        /// Heads, of all texts together.
        heads: i64,
        /// Queries.
        rows: i64,
        /// Keys.
        keys: i64,
        /// Width of a head.
        width: i64,
    },
}

impl Product {
    /// Its floating-point operations.
    pub fn flops(&self) -> f64 {
        let product = |factors: &[i64]| factors.iter().map(|factor| *factor as f64).product::<f64>();
        match *self {
            Product::Conv { images, inputs, outputs, size: [height, width], kernel, .. } => {
                product(&[2, images, inputs, outputs, height, width, kernel, kernel])
            }
            Product::Matmul { rows, inputs, outputs } => product(&[2, rows, inputs, outputs]),
            Product::Attention { heads, rows, keys, width } => product(&[4, heads, rows, keys, width]),
        }
    }

    /// As `ProductKind` in planned.h has it.
    fn of(key: &[i64]) -> Option<Self> {
        match *key {
            [0, images, inputs, outputs, height, width, kernel, stride] => {
                Some(Self::Conv { images, inputs, outputs, size: [height, width], kernel, stride })
            }
            [1, rows, inputs, outputs, ..] => Some(Self::Matmul { rows, inputs, outputs }),
            [2, heads, rows, keys, width, ..] => Some(Self::Attention { heads, rows, keys, width }),
            _ => None,
        }
    }
}

/// What was computed while a plan was made.
#[derive(Debug, Clone, Default)]
pub struct Computed {
    /// How often each product was made.
    pub products: BTreeMap<Product, f64>,
    /// Bytes that other operations read and wrote, and products of their weights.
    pub bytes: f64,
    /// Those operations.
    pub operations: f64,
}

/// A plan for a device: while it lives, tensors without numbers are counted that this thread makes, and code that asks for the device of
/// one is told the plan's.
pub struct Planning {
    raw: *mut c_void,
    before: Option<Device>,
}

/// Numbers of a product's key.
const KEY: usize = 8;

impl Planning {
    /// Begins a plan for `device`.
    pub fn of(device: Device) -> Self {
        let before = DEVICE.replace(Some(device));
        // SAFETY: returns an owned pointer that Drop gives back on the same thread, as it is not Send.
        Self { raw: unsafe { lorabooth_planning_begin(device.is_cuda()) }, before }
    }

    /// Bytes that live, the most that did, and those that live in small blocks.
    fn memory(&self) -> [u64; 3] {
        let (mut live, mut peak, mut small) = (0, 0, 0);
        // SAFETY: a living plan, and places for three numbers.
        unsafe { lorabooth_planning_memory(self.raw, &mut live, &mut peak, &mut small) };
        [live, peak, small].map(|bytes| bytes.max(0).unsigned_abs())
    }

    /// Bytes that live.
    pub fn live(&self) -> u64 {
        self.memory()[0]
    }

    /// The most that lived since the peak was reset.
    pub fn peak(&self) -> u64 {
        self.memory()[1]
    }

    /// Bytes that live in blocks below 128 KiB.
    pub fn small(&self) -> u64 {
        self.memory()[2]
    }

    /// Counts from now on: the peak from what lives, the work from nothing.
    pub fn restart(&self) {
        // SAFETY: a living plan.
        unsafe {
            lorabooth_planning_reset_peak(self.raw);
            lorabooth_planning_reset_work(self.raw);
        }
    }

    /// What was computed.
    pub fn computed(&self) -> Computed {
        let (mut bytes, mut operations) = (0.0, 0.0);
        // SAFETY: a living plan, and places for two numbers.
        let count = unsafe { lorabooth_planning_work(self.raw, &mut bytes, &mut operations) }.max(0) as usize;
        let (mut keys, mut times) = (vec![0; count * KEY], vec![0.0; count]);
        // SAFETY: room for as many products as were just counted, by this thread alone.
        unsafe { lorabooth_planning_products(self.raw, keys.as_mut_ptr(), times.as_mut_ptr()) };
        let products = keys.chunks(KEY).zip(times).filter_map(|(key, times)| Some((Product::of(key)?, times)));
        Computed { products: products.collect(), bytes, operations }
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        DEVICE.set(self.before);
        // SAFETY: begun once, and ended once.
        unsafe { lorabooth_planning_end(self.raw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn leaf(shape: &[i64]) -> Tensor {
        Tensor::empty(shape, (Kind::Float, PLANNED)).set_requires_grad(true)
    }

    #[test]
    fn memory_lives_as_long_as_autograd_needs_it() {
        let planning = Planning::of(Device::Cpu);
        let weight = leaf(&[64, 32]);
        let xs = Tensor::empty([1000, 32], (Kind::Float, PLANNED));
        let before = planning.live();
        assert_eq!(before, 4 * (64 * 32 + 1000 * 32));
        let ys = xs.matmul(&weight.tr()).silu();
        // The product is kept for SiLU's gradient, beside its output.
        assert_eq!(planning.live() - before, 2 * 4 * 1000 * 64);
        let loss = ys.sum(Kind::Float);
        drop(ys);
        assert_eq!(planning.live() - before, 4 * 1000 * 64 + 4);
        loss.backward();
        // The weight's gradient is what is left.
        assert_eq!(planning.live() - before, 4 * 64 * 32 + 4);
        assert!(planning.peak() > planning.live());
    }

    #[test]
    fn products_are_counted_forward_and_backward() {
        let planning = Planning::of(Device::Cuda(0));
        let (weight, kernel) = (leaf(&[64, 32]), leaf(&[8, 4, 3, 3]));
        leaf(&[10, 32]).linear(&weight, None::<&Tensor>).sum(Kind::Float).backward();
        let image = leaf(&[2, 4, 16, 12]);
        image.conv2d(&kernel, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 1).sum(Kind::Float).backward();
        let computed = planning.computed();
        let flops: f64 = computed.products.iter().map(|(product, times)| product.flops() * times).sum();
        // Each has two gradients that are as much work as itself.
        assert_eq!(flops, 3.0 * 2.0 * (10 * 32 * 64 + 2 * 8 * 4 * 8 * 6 * 9) as f64);
        assert!(computed.bytes > 0.0 && computed.operations >= 2.0);
    }

    #[test]
    fn code_is_told_the_device_of_the_plan() {
        let xs = Tensor::from_slice(&[1f32]);
        let planned = |device: Device| {
            let _planning = Planning::of(device);
            device_of(&Tensor::empty([1], (Kind::Float, PLANNED)))
        };
        assert_eq!((planned(Device::Cuda(1)), planned(Device::Cpu)), (Device::Cuda(1), Device::Cpu));
        assert_eq!((device_of(&xs), is_planning()), (Device::Cpu, false));
    }
}
