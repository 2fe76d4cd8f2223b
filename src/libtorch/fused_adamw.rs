//! Operations on whole lists of tensors: one AdamW step, the joint norm, scaling. Each is one kernel launch or a few.

use super::{check, handles, made};
use crate::error::Result;
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

extern "C" {
    fn lorabooth_fused_adamw(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        exp_avgs: *const *mut C_tensor,
        exp_avg_sqs: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        n: i64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn lorabooth_total_norm(tensors: *const *mut C_tensor, n: i64, out: *mut *mut C_tensor) -> *mut c_char;
    fn lorabooth_scale(tensors: *const *mut C_tensor, n: i64, factor: f64) -> *mut c_char;
    fn lorabooth_check_and_scale(
        tensors: *const *mut C_tensor,
        n: i64,
        factor: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn lorabooth_decay_and_add(
        params: *const *mut C_tensor,
        factor: f64,
        changes: *const *mut C_tensor,
        n: i64,
    ) -> *mut c_char;
    fn lorabooth_clear_grads(tensors: *const *mut C_tensor, n: i64) -> *mut c_char;
}

/// The numbers of an AdamW step (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW` names them.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// `torch.optim.AdamW(fused=True)`'s update, in place. `steps` holds one float32 scalar a parameter, counted up here.
/// All lists have one length.
pub fn adamw_step(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    steps: &[Tensor],
    step: AdamWStep,
) -> Result<()> {
    debug_assert!([grads.len(), exp_avgs.len(), exp_avg_sqs.len(), steps.len()].iter().all(|&n| n == params.len()));
    let (p, g, m, v, s) = (handles(params), handles(grads), handles(exp_avgs), handles(exp_avg_sqs), handles(steps));
    // SAFETY: five lists of `params.len()` living handles.
    check(unsafe {
        lorabooth_fused_adamw(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            p.len() as i64,
            step.lr,
            step.betas.0,
            step.betas.1,
            step.weight_decay,
            step.eps,
        )
    })
}

/// The norm of all `tensors` as one vector: a scalar on their device, as `torch.nn.utils.clip_grad_norm_` computes it.
pub fn total_norm(tensors: &[Tensor]) -> Result<Tensor> {
    let list = handles(tensors);
    let mut out = std::ptr::null_mut();
    // SAFETY: a list of living handles; on success `out` is a new handle that is ours.
    unsafe {
        check(lorabooth_total_norm(list.as_ptr(), list.len() as i64, &mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Multiplies each of `tensors`, which are float32 and of which there is one, by `factor` in place, as `torch.amp.GradScaler` does. Returns a
/// number on their device: 0 where all numbers were finite, else 1.
pub fn check_and_scale(tensors: &[Tensor], factor: f64) -> Result<Tensor> {
    let list = handles(tensors);
    // SAFETY: a list of living handles.
    let found = made(|out| unsafe { lorabooth_check_and_scale(list.as_ptr(), list.len() as i64, factor, out) })?;
    Ok(found.unwrap_or_default())
}

/// Multiplies each of `tensors` by `factor`, in place.
pub fn scale(tensors: &[Tensor], factor: f64) -> Result<()> {
    let list = handles(tensors);
    // SAFETY: living handles.
    check(unsafe { lorabooth_scale(list.as_ptr(), list.len() as i64, factor) })
}

/// Multiplies each of `params` by `factor` and adds its one of `changes`, in place. Both lists have one length.
pub fn decay_and_add(params: &[Tensor], factor: f64, changes: &[Tensor]) -> Result<()> {
    debug_assert_eq!(params.len(), changes.len());
    let (params, changes) = (handles(params), handles(changes));
    // SAFETY: two lists of `params.len()` living handles.
    check(unsafe { lorabooth_decay_and_add(params.as_ptr(), factor, changes.as_ptr(), params.len() as i64) })
}

/// Makes the gradient of each of `tensors` undefined, as `zero_grad(set_to_none=True)`: tch can only fill it with zeros,
/// which an optimizer would take for a gradient.
pub fn clear_grads<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    let list = handles(tensors);
    // SAFETY: living handles.
    check(unsafe { lorabooth_clear_grads(list.as_ptr(), list.len() as i64) })
}
