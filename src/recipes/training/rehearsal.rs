//! The first batch of a long run made once for nothing but the fastest algorithms of its convolutions.

use super::observer::{Event, Observer};
use super::run::Run;
use super::training_loop::Job;
use crate::error::Result;
use crate::libtorch::convolution_search::ConvolutionSearch;
use crate::libtorch::failure::catching;
use crate::libtorch::memory;
use tch::Device;

/// Assumed, and measured by `tests/gpu/run.sh`: a search takes as long as some tens of steps, each of which is then faster by some hundredths.
const STEPS_THAT_PAY: u64 = 1000;
/// Memory beside the planned peak, which the algorithms may take as workspaces.
const ROOM: u64 = 2 << 30;

impl Run {
    fn is_worth_a_search(&self) -> bool {
        matches!(self.device, Device::Cuda(_))
            && !self.training.deterministic
            && self.total_steps - self.step >= STEPS_THAT_PAY
            && self.room_for_convolutions >= ROOM
    }

    /// The device's peak so far, allocated and reserved, without what a search took.
    pub(super) fn device_peak(&self) -> Result<(i64, i64)> {
        let (allocated, reserved) = memory::device_peak(self.device)?;
        Ok((allocated.max(self.peak_before_search.0), reserved.max(self.peak_before_search.1)))
    }
}

/// Has cuDNN search where that pays. One that finds no memory leaves its choice as it was.
pub(super) fn rehearse(job: &mut dyn Job, run: &mut Run, observer: &mut dyn Observer) -> Result<()> {
    if !run.is_worth_a_search() {
        return Ok(());
    }
    observer.begin("choosing algorithms", 1, "");
    let before = run.mark();
    run.peak_before_search = run.device_peak()?;
    let search = ConvolutionSearch::begin();
    // What fails for another reason fails in the first step, too.
    drop(catching(|| job.micro_step(run)));
    drop(search);
    run.go_back(&before)?;
    run.optimizer.zero_grad(&run.trained.params)?;
    memory::release_cached(run.device)?;
    memory::reset_device_peak(run.device)?;
    observer.on(Event::End);
    Ok(())
}
