//! `lorabooth doctor`: what was found, and the cure for each problem.

use super::Reporter;
use crate::error::Result;
use crate::libtorch::{memory, startup};
use crate::plain_text::counted;
use crate::train::precision::Precision;
use serde_json::json;
use tch::{Cuda, Device};

/// Runs the command.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    // Asked before any question about devices, and without a driver too: a wheel's CUDA libraries can be checked anywhere.
    let cuda_part = startup::load_cuda_part();
    let devices = startup::cuda_devices();
    let (free, total) = memory::host_memory();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bf16 = Precision::auto(Device::Cpu) == Precision::Bf16;
    let mut lines = vec![
        format!("     libtorch  2.11 ({})", libtorch_path().unwrap_or_else(|| "linked in".into())),
        format!(
            "          CPU  {}, {} used, bf16 {}",
            counted(cores, "core"),
            counted(tch::get_num_threads().max(0) as usize, "thread"),
            if bf16 { "in hardware" } else { "slower than fp32 (auto takes fp32)" }
        ),
        format!("       memory  {:.1} GiB free of {:.1} GiB", memory::gib(free), memory::gib(total)),
    ];
    let mut problems: Vec<String> = Vec::new();
    match (startup::has_nvidia_driver(), cuda_part, devices) {
        (false, Ok(()), 0) => lines.push("         CUDA  libtorch's CUDA part was loaded, but this machine has no NVIDIA driver; the CPU is used".into()),
        (false, Err(_), 0) => lines.push("         CUDA  no NVIDIA driver on this machine, and this libtorch is for the CPU alone".into()),
        (true, Err(reason), 0) => problems.push(format!(
            "this machine has an NVIDIA driver, but libtorch's CUDA part could not be loaded ({reason}): install lorabooth's \
             wheel beside a PyTorch 2.11 with CUDA; if you build from source, run `LORABOOTH_CUDA=1 make setup` and build again",
        )),
        (true, Ok(()), 0) => problems.push(
            "CUDA is loaded but shows no device: check `nvidia-smi`, CUDA_VISIBLE_DEVICES, and that the driver is new enough for CUDA 13".into(),
        ),
        _ => {
            for index in 0..devices as usize {
                let (free, total) = memory::device_memory(Device::Cuda(index))?;
                lines.push(format!(
                    "       cuda:{index}  {:.1} GiB free of {:.1} GiB, cuDNN {}",
                    memory::gib(free as u64),
                    memory::gib(total as u64),
                    if Cuda::cudnn_is_available() { "found" } else { "missing" }
                ));
            }
        }
    }
    if free > 0 && memory::gib(free) < 4.0 {
        problems.push(
            "less than 4 GiB of memory is free: Stable Diffusion 1.5 needs about that in bf16; close other programs"
                .into(),
        );
    }
    lines.extend(problems.iter().map(|problem| format!("      problem  {problem}")));
    if problems.is_empty() {
        lines.push("     problems  none found".into());
    }
    let report = json!({
        "libtorch": "2.11", "cores": cores, "threads": tch::get_num_threads(), "cpu_bf16": bf16,
        "memory_free_bytes": free, "memory_total_bytes": total, "cuda_loaded": cuda_part.is_ok(), "cuda_devices": devices,
        "problems": problems,
    });
    reporter.result(report, &lines.join("\n"));
    Ok(())
}

/// The libtorch that this process runs on.
fn libtorch_path() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("libtorch_cpu.so"))?;
    // The path is the last field, and may have spaces in it.
    line.find('/').map(|start| line[start..].to_owned())
}
