//! `lorabooth demo`.

use super::bars::duration;
use super::{Common, Reporter};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::libtorch::memory;
use crate::options::demo::DemoConfig;
use crate::options::shell_word;
use crate::recipes::demo::{self, GUIDANCE};
use crate::recipes::training::observer::{Event, Observer};
use serde_json::json;

/// Runs the command.
pub fn run(config: &DemoConfig, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let interrupt = Interrupt::on_signals()?;
    let device = common.device(reporter)?;
    let finished = demo::run(config, device, common.seed, &interrupt, reporter)?;
    let report = &finished.report;
    reporter.on(Event::Wrote { path: finished.contact_sheet.clone() });
    let word = |path: &std::path::Path| shell_word(&path.display().to_string());
    let again = format!(
        "lorabooth generate --model {} --lora {} --guidance-scale {GUIDANCE} --prompt 'a photo of sks bird on a purple background' --output try.png",
        word(&finished.model),
        word(&finished.adapter),
    );
    let own = "lorabooth train dreambooth --model stable-diffusion-v1-5/stable-diffusion-v1-5 --instance-data-dir YOUR_PHOTOS \
               --instance-prompt 'a photo of sks dog' --train-text-encoder --gradient-checkpointing --max-train-steps 800";
    let mut prose = format!(
        "\nthe demo took {}, the training {} of it, in {:.1} GiB of memory\n",
        duration(report.seconds),
        duration(report.training_seconds),
        memory::gib(report.peak_memory_bytes)
    );
    let header = ["", "before", "after", "at best"].map(str::to_owned);
    for [name, before, after, best] in std::iter::once(header).chain(report.summary()) {
        prose.push_str(&format!("{name:>41}  {before:>6}  {after:>6}  {best:>7}\n"));
    }
    prose.push_str(&format!(
        "\nlook at it:       {}\ntry the adapter:  {again}\nyour own photos:  {own}",
        finished.contact_sheet.display()
    ));
    let json = json!({
        "event": "finished", "contact_sheet": finished.contact_sheet.display().to_string(), "report": report,
        "try": again, "next": own,
    });
    reporter.summary(json, &prose);
    Ok(())
}
