//! The networks that the training loop holds, with their adapters.

use crate::adapters::{Part, Sites};
use crate::models::stable_diffusion::{Loaded, TextEncoders, UNet2DConditionModel, VaeEncoder};
use tch::{Device, Kind};

/// The networks that the loop holds.
pub struct Networks {
    /// With its adapter.
    pub unet: Loaded<UNet2DConditionModel>,
    /// Where they train, with their adapters.
    pub text_encoders: Option<TextEncoders>,
    /// Where photos are encoded at each step.
    pub vae_encoder: Option<Loaded<VaeEncoder>>,
    /// The dtype of UNet and text encoders.
    pub kind: Kind,
    /// The VAE's dtype.
    pub vae_kind: Kind,
    /// Where all of them are.
    pub device: Device,
}

impl Networks {
    /// The layers of all of them.
    pub fn all(&self) -> Vec<&Sites> {
        self.named().into_iter().map(|(_, sites)| sites).collect()
    }

    /// The same with the names of the networks.
    pub fn named(&self) -> Vec<(&'static str, &Sites)> {
        let trained = self.trained().into_iter().map(|(part, sites)| (part.name(), sites));
        trained.chain(self.vae_encoder.iter().map(|network| ("vae", network.sites.as_ref()))).collect()
    }

    /// The layers of those that train.
    pub fn trained(&self) -> Vec<(Part, &Sites)> {
        let unet = (Part::UNet, self.unet.sites.as_ref());
        std::iter::once(unet).chain(self.text_encoders.iter().flat_map(TextEncoders::sites)).collect()
    }

    /// Turns dropout on or off.
    pub fn set_training(&self, training: bool) {
        self.trained().into_iter().for_each(|(_, sites)| sites.set_training(training));
    }
}
