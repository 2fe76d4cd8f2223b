//! What this machine has to compute with, whether it computes rightly, and the solution of each problem.

use super::dtype_name;
use crate::error::Error;
use crate::libtorch::nvidia_driver::NvidiaDriver;
use crate::libtorch::random::Generator;
use crate::libtorch::{memory, startup};
use crate::train::precision::Precision;
use tch::{Cuda, Device, Kind, TchError, Tensor};

/// CUDA 13 needs this driver (CUDA Toolkit release notes).
const LEAST_DRIVER: u32 = 580;
/// The least compute capability that CUDA 13 compiles for (the same notes).
const LEAST_CAPABILITY: (i64, i64) = (7, 5);
/// Stable Diffusion 1.5 needs about so many bytes in bf16.
const LEAST_MEMORY: u64 = 4 << 30;

/// What was found.
pub struct Machine {
    /// Processor cores that the program may use, and threads that it computes with.
    pub cores: usize,
    /// See `cores`.
    pub threads: i32,
    /// Whether the processor computes in bf16.
    pub cpu_bf16: bool,
    /// Host memory in bytes: free, and in all.
    pub memory: (u64, u64),
    /// NVIDIA's driver, where it answers.
    pub driver: Option<NvidiaDriver>,
    /// Whether the machine has such a driver, be it that it does not answer.
    pub has_driver: bool,
    /// Why libtorch's CUDA part could not be loaded.
    pub no_cuda_part: Option<String>,
    /// The CPU, then each CUDA device.
    pub devices: Vec<CheckedDevice>,
    /// What is wrong and what to do, a sentence each.
    pub problems: Vec<String>,
}

/// A device on which was computed.
pub struct CheckedDevice {
    /// Where.
    pub device: Device,
    /// Such as `Tesla T4`; `CPU`.
    pub name: String,
    /// Of a CUDA device.
    pub capability: Option<(i64, i64)>,
    /// Bytes free, and in all.
    pub memory: (u64, u64),
    /// Whether cuDNN was found; true for the CPU, which has no use for it.
    pub has_cudnn: bool,
    /// Each dtype's name, and whether it computed rightly.
    pub dtypes: Vec<(&'static str, bool)>,
}

impl Machine {
    /// Looks at everything. Takes a second or two for each card.
    pub fn look() -> Self {
        // Asked before any question about devices, and without a driver too: a wheel's CUDA libraries can be checked anywhere.
        let no_cuda_part = startup::load_cuda_part().err().map(str::to_owned);
        let mut machine = Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: tch::get_num_threads(),
            cpu_bf16: Precision::auto(Device::Cpu) == Precision::Bf16,
            memory: memory::host_memory(),
            driver: NvidiaDriver::ask(),
            has_driver: startup::has_nvidia_driver(),
            no_cuda_part,
            devices: Vec::new(),
            problems: Vec::new(),
        };
        machine.problems.extend(machine.problem_of_the_driver());
        let cards = (0..startup::cuda_devices()).filter_map(|index| usize::try_from(index).ok()).map(Device::Cuda);
        for device in std::iter::once(Device::Cpu).chain(cards) {
            machine.check(device);
        }
        let free = machine.memory.0;
        if free > 0 && free < LEAST_MEMORY {
            machine.problems.push(
                "less than 4 GiB of memory is free: Stable Diffusion 1.5 needs about that in bf16; close other programs"
                    .into(),
            );
        }
        machine
    }

    fn problem_of_the_driver(&self) -> Option<String> {
        let reason = startup::why_no_cuda()?;
        let old = self.driver.as_ref().filter(|driver| driver.branch().is_some_and(|branch| branch < LEAST_DRIVER));
        let solution = match (old, &self.no_cuda_part) {
            (_, Some(_)) => "install lorabooth's wheel beside a PyTorch 2.11 with CUDA; if you build from source, run \
                             `LORABOOTH_CUDA=1 make setup` and build again"
                .to_owned(),
            (Some(driver), None) => format!(
                "the driver is {}, and CUDA 13 needs {LEAST_DRIVER}: update it, or use a PyTorch 2.11 for CUDA 12.6 \
                 (docs/install.md)",
                driver.version
            ),
            (None, None) => {
                "check `nvidia-smi` and CUDA_VISIBLE_DEVICES; in a container, start it with `--gpus all`".to_owned()
            }
        };
        Some(format!("this machine has an NVIDIA driver, but {reason}; {solution}"))
    }

    fn check(&mut self, device: Device) {
        let (card, capability) = match device {
            Device::Cuda(index) => {
                let place = startup::cuda_bus_id(index);
                let card = place.zip(self.driver.as_ref()).and_then(|(place, driver)| driver.card_at(&place).cloned());
                (card, startup::cuda_capability(index))
            }
            _ => (None, None),
        };
        let memory = match memory::device_memory(device) {
            Ok((free, total)) => (free.max(0) as u64, total.max(0) as u64),
            Err(_) => card.as_ref().and_then(|card| card.memory).unwrap_or_default(),
        };
        let shown = super::device_flag(device);
        let name = match (device, card) {
            (Device::Cpu, _) => "CPU".to_owned(),
            (_, Some(card)) => card.name,
            (_, None) => "a CUDA device".to_owned(),
        };
        if capability.is_some_and(|found| found < LEAST_CAPABILITY) {
            self.problems.push(format!(
                "{shown} ({name}) is below compute capability 7.5, the least of CUDA 13: use a PyTorch 2.11 for CUDA 12.6 \
                 (docs/install.md)"
            ));
        }
        let has_cudnn = device == Device::Cpu || Cuda::cudnn_is_available();
        if !has_cudnn {
            self.problems.push(format!(
                "{shown} has no cuDNN, without which convolutions are slow: install PyTorch's CUDA wheel whole"
            ));
        }
        let mut dtypes = Vec::new();
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let wrong = wrong_operation(device, kind);
            dtypes.push((dtype_name(kind), wrong.is_none()));
            if let Some(wrong) = wrong {
                self.problems.push(format!("{shown} ({name}) does not compute in {}: {wrong}", dtype_name(kind)));
            }
        }
        self.devices.push(CheckedDevice { device, name, capability, memory, has_cudnn, dtypes });
    }
}

/// The first operation, of those that Stable Diffusion and language models are made of, of which `device` computes another value than the
/// CPU in float64 does, and what is wrong with it. The inputs are numbers that `kind` holds exactly.
fn wrong_operation(device: Device, kind: Kind) -> Option<String> {
    // A rounding of the results and one of what is summed; TF32, in which CUDA's convolutions compute, has ten bits.
    let tolerance = match kind {
        Kind::BFloat16 => 2e-2,
        _ => 4e-3,
    };
    let mut generator = Generator::new(0);
    let mut input = |shape: &[i64]| generator.randn(shape).to_kind(kind);
    let (a, b) = (input(&[96, 256]), input(&[256, 64]));
    let (image, kernel) = (input(&[1, 16, 24, 24]), input(&[24, 16, 3, 3]));
    let (query, value) = (input(&[1, 2, 48, 64]), input(&[1, 2, 48, 64]));
    let operations: [(&str, [Tensor; 2], Operation); 3] = [
        ("a matrix product", [a, b], |x, y| x.f_matmul(y)),
        ("a convolution", [image, kernel], |x, y| x.f_conv2d::<Tensor>(y, None, [1], [1], [1], 1)),
        ("attention", [query, value], |x, y| {
            Tensor::f_scaled_dot_product_attention::<Tensor>(x, y, y, None, 0.0, false, None, false)
        }),
    ];
    let failure_of =
        |(name, [x, y], operation): &(&str, [Tensor; 2], Operation)| match deviation(x, y, device, *operation) {
            Ok(error) if error <= tolerance => None,
            Ok(error) => Some(format!("{name} is off by {error:.0e} of its largest value; update the driver")),
            Err(error) => Some(format!("{name} fails ({})", Error::from(error))),
        };
    operations.iter().find_map(failure_of)
}

type Operation = fn(&Tensor, &Tensor) -> Result<Tensor, TchError>;

/// How far `operation` on `device` is from the CPU's float64, as a part of its largest value.
fn deviation(x: &Tensor, y: &Tensor, device: Device, operation: Operation) -> Result<f64, TchError> {
    let exact = operation(&x.f_to_kind(Kind::Double)?, &y.f_to_kind(Kind::Double)?)?;
    let found = operation(&x.f_to_device(device)?, &y.f_to_device(device)?)?;
    let found = found.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    found.f_sub(&exact)?.f_abs()?.f_max()?.f_div(&exact.f_abs()?.f_max()?)?.f_double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_computes_rightly_in_every_dtype() {
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            assert_eq!(wrong_operation(Device::Cpu, kind), None, "{kind:?}");
        }
    }

    #[test]
    fn a_device_that_computes_something_else_shows() {
        let x = Generator::new(0).randn(&[8, 8]);
        let wrong = |x: &Tensor, y: &Tensor| {
            let product = x.f_matmul(y)?;
            if x.kind() == Kind::Float {
                product.f_mul_scalar(1.01)
            } else {
                Ok(product)
            }
        };
        let found = deviation(&x, &x, Device::Cpu, wrong).unwrap();
        assert!((found - 0.01).abs() < 1e-4, "{found}");
    }
}
