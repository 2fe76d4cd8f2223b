//! Whether a run will fit, told before it starts and where it did not.

use super::observer::Observer;
use crate::error::{Error, Result};
use crate::libtorch::memory::{self, gib};
use crate::train::memory_plan::{fit, Planned, Suggestion};
use tch::Device;

/// Options that save less are not advised in words.
const WORTH_SAYING: u64 = 50 << 20;

/// The planned peak of a run in bytes, and what to turn on for it to stay within `budget`, in words.
pub fn outlook(input: &impl Planned, budget: u64) -> Result<(u64, String)> {
    let saving = |s: &Suggestion| format!("{} (saves {:.1} GiB)", s.what, gib(s.saves_bytes));
    let fitted = fit(budget, input)?;
    let suggestions: Vec<String> =
        fitted.suggestions.iter().filter(|s| s.saves_bytes >= WORTH_SAYING).map(saving).collect();
    let advice = match suggestions.is_empty() {
        true => "there is nothing left to turn on; close other programs, or use a smaller model".to_owned(),
        false => format!("turn on, cheapest first: {}", suggestions.join(", ")),
    };
    Ok((fitted.asked_bytes, advice))
}

/// Tells the planned peak, and what would lower it where `device` has less free than that. `outlook` is [`outlook`] of the run.
pub fn tell_memory(
    outlook: impl FnOnce(u64) -> Result<(u64, String)>,
    device: Device,
    observer: &mut dyn Observer,
) -> Result<()> {
    let free = memory::device_memory(device)?.0.max(0) as u64;
    let (peak, advice) = outlook(free)?;
    // A process on the host is already there, with libtorch in it.
    let present = if device == Device::Cpu { memory::host_now() } else { 0 };
    observer.fact("memory", format!("about {:.1} GiB at the peak, {:.1} GiB are free", gib(peak + present), gib(free)));
    if free > 0 && peak > free {
        observer.warning(format!("this run may not fit: {advice}"));
    }
    Ok(())
}

/// Where memory ran out: what would have saved how much, in place of general advice.
pub fn with_advice(error: Error, outlook: impl FnOnce(u64) -> Result<(u64, String)>) -> Error {
    match error {
        Error::OutOfMemory { .. } => match outlook(0) {
            Ok((_, advice)) => error.advising(&advice),
            Err(_) => error,
        },
        other => other,
    }
}
