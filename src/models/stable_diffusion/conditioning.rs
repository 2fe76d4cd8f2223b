//! What a UNet predicts the noise on, beside the latents and the timesteps.
//!
//! Shapes: b batch, t text length, e text width, p width of a whole text's embedding.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Of a batch of images, what they are to show.
#[derive(Debug)]
pub struct Conditioning {
    /// Text embeddings `[b, t, e]`.
    pub context: Tensor,
    /// Embeddings of the whole texts `[b, p]`, where the UNet takes them (Stable Diffusion XL).
    pub pooled: Option<Tensor>,
    /// [`SizeIds`] as rows `[b, 6]`, float32, where the UNet takes them.
    pub time_ids: Option<Tensor>,
}

/// What Stable Diffusion XL is told of an image's size (arXiv 2307.01952, section 2.2), in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeIds {
    /// Height and width of the photo, before it was resized.
    pub original: (i64, i64),
    /// The first row and column of the crop in the resized photo.
    pub crop: (i64, i64),
    /// Height and width of the crop.
    pub target: (i64, i64),
}

impl SizeIds {
    /// Those of an image that was neither resized nor cropped.
    pub fn of_whole(height: i64, width: i64) -> Self {
        Self { original: (height, width), crop: (0, 0), target: (height, width) }
    }

    /// Rows `[b, 6]`.
    pub fn rows(ids: &[Self], device: Device) -> Tensor {
        let numbers = |ids: &Self| {
            let ((height, width), (top, left), (target_height, target_width)) = (ids.original, ids.crop, ids.target);
            [height, width, top, left, target_height, target_width].map(|number| number as f32)
        };
        let flat: Vec<f32> = ids.iter().flat_map(numbers).collect();
        Tensor::from_slice(&flat).view([ids.len() as i64, 6]).to_device(device)
    }
}

impl From<Tensor> for Conditioning {
    /// On text embeddings alone.
    fn from(context: Tensor) -> Self {
        Self { context, pooled: None, time_ids: None }
    }
}

impl Conditioning {
    /// The same, with the same tensors.
    pub fn shallow_clone(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    /// What `change` makes of each tensor.
    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            context: change(&self.context),
            pooled: self.pooled.as_ref().map(&change),
            time_ids: self.time_ids.as_ref().map(&change),
        }
    }

    /// That of `count` images from the number `first` on.
    pub fn narrow(&self, first: i64, count: i64) -> Self {
        self.map(|tensor| tensor.narrow(0, first, count))
    }

    /// That of one image, for `count` of them; one of several stays as it is.
    pub fn expand(&self, count: i64) -> Self {
        self.map(|tensor| {
            let mut shape = vec![-1; tensor.dim()];
            shape[0] = count;
            tensor.expand(&shape, false)
        })
    }

    /// Those of all images of `parts`, one behind another.
    pub fn cat(parts: &[Self]) -> Self {
        let joined = |of: &dyn Fn(&Self) -> Option<Tensor>| {
            let tensors: Option<Vec<Tensor>> = parts.iter().map(of).collect();
            tensors.filter(|tensors| !tensors.is_empty()).map(|tensors| Tensor::cat(&tensors, 0))
        };
        Self {
            context: Tensor::cat(&parts.iter().map(|part| part.context.shallow_clone()).collect::<Vec<_>>(), 0),
            pooled: joined(&|part| part.pooled.as_ref().map(Tensor::shallow_clone)),
            time_ids: joined(&|part| part.time_ids.as_ref().map(Tensor::shallow_clone)),
        }
    }

    /// Zeros of the same shapes: what Stable Diffusion XL is given where there is no text.
    pub fn zeros_like(&self) -> Self {
        self.map(Tensor::zeros_like)
    }

    /// Its tensors by name, behind `start`.
    pub fn into_named(self, start: &str) -> BTreeMap<String, Tensor> {
        let tensors = [("context", Some(self.context)), ("pooled", self.pooled), ("time_ids", self.time_ids)];
        tensors.into_iter().filter_map(|(name, tensor)| Some((format!("{start}{name}"), tensor?))).collect()
    }

    /// That of the tensors that [`Conditioning::into_named`] names, on `device`.
    pub fn from_named(named: &BTreeMap<String, Tensor>, start: &str, device: Device) -> Result<Self> {
        let tensor = |name: &str| named.get(&format!("{start}{name}")).map(|tensor| tensor.to_device(device));
        let context = tensor("context").ok_or_else(|| Error::invalid("text embeddings have no `context`"))?;
        Ok(Self { context, pooled: tensor("pooled"), time_ids: tensor("time_ids") })
    }

    /// How many images it is of.
    pub fn images(&self) -> i64 {
        self.context.size()[0]
    }

    /// Where it is, and its dtype.
    pub fn placement(&self) -> (Device, Kind) {
        (self.context.device(), self.context.kind())
    }

    /// The same with the sizes `ids`, where the UNet takes those, which then takes whole texts' embeddings too.
    pub fn with_size_ids(self, ids: &[SizeIds]) -> Self {
        let time_ids = self.pooled.as_ref().map(|pooled| SizeIds::rows(ids, pooled.device()));
        Self { time_ids, ..self }
    }
}
