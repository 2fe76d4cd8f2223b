//! Whether a run fits in memory, reported before it starts and when memory ran out.

use super::adaptation::size;
use super::observer::Observer;
use crate::error::{Error, Result};
use crate::libtorch::memory::{self, gib};
use crate::plan::{fit, Planned, Suggestion};
use serde_json::json;
use tch::Device;

/// Options that save less, and less than a part of the whole, are not advised in words.
const WORTH_SAYING: u64 = 50 << 20;
const PART_WORTH_SAYING: u64 = 20;

/// The planned peak of a run in bytes, and what to turn on for it to stay within `budget`, in words.
pub fn peak_and_advice(input: &impl Planned, budget: u64) -> Result<(u64, String)> {
    let saving = |s: &Suggestion| format!("{} (saves {})", s.what, size(s.saves_bytes));
    let fitted = fit(budget, input, &input.plan()?)?;
    let worth = WORTH_SAYING.min(fitted.asked_bytes / PART_WORTH_SAYING);
    let suggestions: Vec<String> = fitted.suggestions.iter().filter(|s| s.saves_bytes >= worth).map(saving).collect();
    let advice = match suggestions.is_empty() {
        true => "there is nothing left to turn on; close other programs, or use a smaller model".to_owned(),
        false => format!("turn on, cheapest first: {}", suggestions.join(", ")),
    };
    Ok((fitted.asked_bytes, advice))
}

/// Reports the planned peak, and what would lower it where `device` has less free than that; `peak_and_advice` computes both for the run.
/// What is free beside it, in bytes.
pub fn report_memory(
    peak_and_advice: impl FnOnce(u64) -> Result<(u64, String)>,
    device: Device,
    observer: &mut dyn Observer,
) -> Result<u64> {
    let free = memory::device_memory(device)?.0.max(0) as u64;
    let (peak, advice) = peak_and_advice(free)?;
    // A process on the host is already there, with libtorch in it.
    let present = if device == Device::Cpu { memory::host_now() } else { 0 };
    observer.fact_with(
        "memory",
        format!("about {:.1} GiB at the peak, {:.1} GiB are free", gib(peak + present), gib(free)),
        json!({ "peak_bytes": peak + present, "free_bytes": free }),
    );
    if free > 0 && peak > free {
        observer.warning(format!("this run may not fit: {advice}"));
    }
    Ok(free.saturating_sub(peak))
}

/// Where memory ran out: what would have saved how much, in place of general advice.
pub fn with_advice(error: Error, peak_and_advice: impl FnOnce(u64) -> Result<(u64, String)>) -> Error {
    match error {
        Error::OutOfMemory { .. } => match peak_and_advice(0) {
            Ok((_, advice)) => error.advising(&advice),
            Err(_) => error,
        },
        other => other,
    }
}
