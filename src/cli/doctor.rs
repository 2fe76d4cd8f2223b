//! `lorabooth doctor`: what was found, and the solution of each problem.

use super::Reporter;
use crate::error::Result;
use crate::libtorch::memory::gib;
use crate::plain_text::counted;
use crate::recipes::device_flag;
use crate::recipes::doctor::{CheckedDevice, Machine};
use serde_json::json;
use tch::Device;

/// Runs the command.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let machine = Machine::look();
    let mut lines = vec![
        line("libtorch", format!("2.11 ({})", libtorch_path().unwrap_or_else(|| "linked in".into()))),
        line(
            "CPU",
            format!(
                "{}, {} used, bf16 {}",
                counted(machine.cores, "core"),
                counted(machine.threads.max(0) as usize, "thread"),
                if machine.cpu_bf16 { "in hardware" } else { "slower than fp32 (auto takes fp32)" }
            ),
        ),
        line("memory", format!("{:.1} GiB free of {:.1} GiB", gib(machine.memory.0), gib(machine.memory.1))),
    ];
    if let Some(driver) = &machine.driver {
        lines.push(line("driver", driver.version.clone()));
    }
    lines.extend(machine.devices.iter().map(line_of));
    if machine.devices.len() == 1 && !machine.has_driver {
        let text = match machine.no_cuda_part {
            None => "libtorch's CUDA part was loaded, but this machine has no NVIDIA driver; the CPU is used",
            Some(_) => "no NVIDIA driver on this machine, and this libtorch is for the CPU alone",
        };
        lines.push(line("CUDA", text));
    }
    // A card that the driver knows and CUDA cannot use.
    for card in machine.driver.iter().flat_map(|driver| &driver.cards).filter(|_| machine.devices.len() == 1) {
        let (major, minor) = card.capability;
        let memory = card
            .memory
            .map_or(String::new(), |(free, total)| format!(", {:.1} GiB free of {:.1} GiB", gib(free), gib(total)));
        lines.push(line("not usable", format!("{}, compute capability {major}.{minor}{memory}", card.name)));
    }
    lines.extend(machine.problems.iter().map(|problem| line("problem", problem)));
    if machine.problems.is_empty() {
        lines.push(line("problems", "none found"));
    }
    let devices: Vec<_> = machine.devices.iter().map(json_of).collect();
    let report = json!({
        "libtorch": "2.11", "cores": machine.cores, "threads": machine.threads, "cpu_bf16": machine.cpu_bf16,
        "memory_free_bytes": machine.memory.0, "memory_total_bytes": machine.memory.1,
        "driver": machine.driver.as_ref().map(|driver| &driver.version), "cuda_loaded": machine.no_cuda_part.is_none(),
        "cuda_devices": machine.devices.len() - 1, "devices": devices, "problems": machine.problems,
    });
    reporter.result(report, &lines.join("\n"));
    Ok(())
}

fn line(name: &str, text: impl AsRef<str>) -> String {
    format!("{name:>13}  {}", text.as_ref())
}

fn line_of(device: &CheckedDevice) -> String {
    let rightly: Vec<&str> = device.dtypes.iter().filter(|(_, right)| *right).map(|(name, _)| *name).collect();
    let rightly = match rightly.is_empty() {
        true => "computes wrongly".to_owned(),
        false => format!("computes rightly in {}", rightly.join(", ")),
    };
    if device.device == Device::Cpu {
        return line("cpu", rightly);
    }
    let capability =
        device.capability.map_or(String::new(), |(major, minor)| format!(", compute capability {major}.{minor}"));
    let cudnn = if device.has_cudnn { "cuDNN found" } else { "cuDNN missing" };
    let text = format!(
        "{}{capability}, {:.1} GiB free of {:.1} GiB, {cudnn}, {rightly}",
        device.name,
        gib(device.memory.0),
        gib(device.memory.1)
    );
    line(&device_flag(device.device), text)
}

fn json_of(device: &CheckedDevice) -> serde_json::Value {
    let dtypes: serde_json::Map<_, _> =
        device.dtypes.iter().map(|(name, right)| ((*name).to_owned(), json!(right))).collect();
    json!({
        "device": device_flag(device.device), "name": device.name,
        "capability": device.capability.map(|(major, minor)| format!("{major}.{minor}")),
        "memory_free_bytes": device.memory.0, "memory_total_bytes": device.memory.1, "cudnn": device.has_cudnn,
        "computes_rightly": dtypes,
    })
}

/// The libtorch that this process runs on.
fn libtorch_path() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("libtorch_cpu.so"))?;
    // The path is the last field, and may have spaces in it.
    line.find('/').map(|start| line[start..].to_owned())
}
