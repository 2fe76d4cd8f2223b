//! The losses of diffusion training.
//!
//! Shapes: `[b, 4, h, w]` are predictions in latent space; with prior preservation the first half of the batch are
//! instance images, the second half class images.

use tch::{Kind, Reduction, Tensor};

/// Float32 scalars on the training device; only `total` carries the graph that backward needs.
#[derive(Debug)]
pub struct DreamboothLoss {
    /// `instance + weight * prior`.
    pub total: Tensor,
    /// Of the instance images, detached.
    pub instance: Tensor,
    /// Of the class images, not yet multiplied by its weight, detached.
    pub prior: Option<Tensor>,
}

/// DreamBooth's loss (Ruiz et al., arXiv 2208.12242) as PEFT's and diffusers' scripts compute it: the mean squared error
/// in float32. With a `prior_weight` the batch is halved, as `torch.chunk(2)` does it.
///
/// `weights` `[b]` multiply each sample's mean, before the mean over samples (min-SNR: `schedulers::NoiseSchedule::min_snr_weights`). The class images' are
/// not used: their loss stays plain, as in diffusers. diffusers also leaves them in the tensor that it multiplies the
/// instance loss with, which mixes class timesteps in at batch 1 and is a shape error above; here each image has its own.
pub fn dreambooth_loss(
    prediction: &Tensor,
    target: &Tensor,
    prior_weight: Option<f64>,
    weights: Option<&Tensor>,
) -> DreamboothLoss {
    let (prediction, target) = (prediction.to_kind(Kind::Float), target.to_kind(Kind::Float));
    let batch = prediction.size()[0];
    let instances = if prior_weight.is_some() { (batch + 1) / 2 } else { batch };
    let part = |xs: &Tensor, start, length| xs.narrow(0, start, length);
    let (ours, theirs) = (part(&prediction, 0, instances), part(&target, 0, instances));
    let instance = match weights {
        None => ours.mse_loss(&theirs, Reduction::Mean),
        Some(weights) => {
            let per_sample = ours.mse_loss(&theirs, Reduction::None).flatten(1, -1).mean_dim(1, false, Kind::Float);
            (per_sample * part(weights, 0, instances)).mean(Kind::Float)
        }
    };
    let Some(prior_weight) = prior_weight else {
        return DreamboothLoss { instance: instance.detach(), total: instance, prior: None };
    };
    let classes = batch - instances;
    let (ours, theirs) = (part(&prediction, instances, classes), part(&target, instances, classes));
    let prior = ours.mse_loss(&theirs, Reduction::Mean);
    let total = &instance + &prior * prior_weight;
    DreamboothLoss { total, instance: instance.detach(), prior: Some(prior.detach()) }
}
