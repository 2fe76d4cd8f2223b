//! What a file's header says of its model in the words of Stability's model specification, which web UIs read.
//! Reference: github.com/Stability-AI/ModelSpec; sd-scripts `library/sai_model_spec.py`.

use super::OriginalGeneration;

/// Whose code the names of Stable Diffusion XL's tensors are from.
pub const STABILITY_CODE: &str = "https://github.com/Stability-AI/generative-models";

impl OriginalGeneration {
    /// The architecture's name, of a model that predicts the velocity or the noise.
    pub fn architecture(self, predicts_v: bool) -> &'static str {
        match self {
            Self::V1 => "stable-diffusion-v1",
            Self::V2 if predicts_v => "stable-diffusion-v2-768-v",
            Self::V2 => "stable-diffusion-v2-512",
            Self::Xl => "stable-diffusion-xl-v1-base",
        }
    }
}

/// `fields` by their names in a header, and the version of the specification.
pub fn model_specification<const N: usize>(fields: [(&str, String); N]) -> impl Iterator<Item = (String, String)> + '_ {
    let version = ("sai_model_spec", "1.0.1".to_owned());
    fields.into_iter().chain([version]).map(|(name, value)| (format!("modelspec.{name}"), value))
}
