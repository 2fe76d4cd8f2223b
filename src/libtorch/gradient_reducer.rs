//! The mean of gradients over all ranks, which leave in buckets while backward still runs.

use super::process_group::{CGroup, ProcessGroup};
use super::{check, handles, raw};
use crate::error::Result;
use std::ffi::c_char;
use std::sync::Arc;
use tch::Tensor;
use torch_sys::C_tensor;

/// Opaque to Rust.
#[repr(C)]
struct CReducer {
    _private: [u8; 0],
}

extern "C" {
    fn lorabooth_reducer(
        group: *mut CGroup,
        params: *const *mut C_tensor,
        n: i64,
        ends: *const i64,
        n_buckets: i64,
        tail: i64,
        out: *mut *mut CReducer,
    ) -> *mut c_char;
    fn lorabooth_reducer_free(reducer: *mut CReducer);
    fn lorabooth_reducer_arm(reducer: *mut CReducer);
    fn lorabooth_reducer_finish(reducer: *mut CReducer, tail: *mut C_tensor, whole: bool) -> *mut c_char;
    fn lorabooth_reducer_absent(reducer: *mut CReducer, out: *mut bool);
}

/// Hooks on the accumulation of gradients of parameters that are trained on all ranks.
#[derive(Debug)]
pub struct GradientReducer {
    reducer: *mut CReducer,
    params: usize,
    /// Outlives the hooks.
    _group: Arc<ProcessGroup>,
}

impl GradientReducer {
    /// For `params`, in the order in which they are exchanged: a bucket ends before each of the numbers `ends`. `tail` numbers
    /// travel with them.
    pub fn new(group: Arc<ProcessGroup>, params: &[Tensor], ends: &[i64], tail: usize) -> Result<Self> {
        let (list, mut reducer) = (handles(params), std::ptr::null_mut());
        let (n, buckets) = (params.len() as i64, ends.len() as i64);
        // SAFETY: lists of so many entries that live through the call; the group lives as long as what is made.
        check(unsafe {
            lorabooth_reducer(group.group, list.as_ptr(), n, ends.as_ptr(), buckets, tail as i64, &mut reducer)
        })?;
        Ok(Self { reducer, params: params.len(), _group: group })
    }

    /// The next backward is the step's last: gradients leave as it makes them.
    pub fn arm(&mut self) {
        // SAFETY: ours.
        unsafe { lorabooth_reducer_arm(self.reducer) }
    }

    /// Waits until each gradient is the mean over the ranks, and the float32 numbers `tail` on the parameters' device too. `whole`:
    /// the backward went through on this rank.
    pub fn finish(&mut self, tail: &Tensor, whole: bool) -> Result<()> {
        // SAFETY: ours, and the tensor lives through the call.
        check(unsafe { lorabooth_reducer_finish(self.reducer, raw(tail), whole) })
    }

    /// Which parameters have no gradient.
    pub fn absent(&self) -> Vec<bool> {
        let mut absent = vec![false; self.params];
        // SAFETY: ours, and as many places as it has parameters.
        unsafe { lorabooth_reducer_absent(self.reducer, absent.as_mut_ptr()) };
        absent
    }
}

impl Drop for GradientReducer {
    fn drop(&mut self) {
        // SAFETY: ours, and not used any more.
        unsafe { lorabooth_reducer_free(self.reducer) }
    }
}
