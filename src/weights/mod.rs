//! Frozen numbers: where they are (folders, single files, the hub), how their keys are spelled, how they are kept.

mod convolution;
mod four_bit;
pub mod gguf;
pub mod hub;
pub mod json_fields;
mod keeping;
mod mapped_file;
mod model_specification;
pub mod original_spelling;
mod original_stable_diffusion;
mod original_unet;
pub(crate) mod other_pipelines;
pub mod spelling;
pub mod storage;
pub mod tensor_file;
mod tensor_source;
mod weight_files;
mod weight_set;

pub use convolution::{conv2d, Stride};
pub use four_bit::quantised;
pub use keeping::Keeping;
pub use mapped_file::MappedFile;
pub use model_specification::{model_specification, STABILITY_CODE};
pub(crate) use original_stable_diffusion::original_vae;
pub use original_stable_diffusion::{OriginalCheckpoint, OriginalGeneration};
pub use original_unet::{original_unet_module, unet_module};
pub use storage::{
    block_of, on_shared_host, BaseWeight, Fp8Weight, Int8Weight, Layout, Nf4Weight, Op, Quantize, Sources, Storage,
    StreamedWeight, DEFAULT_THRESHOLD,
};
pub use weight_set::{is_finite, is_float, with_room, written_kind, Placement, WeightSet};
