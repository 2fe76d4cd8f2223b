//! Frozen numbers: where they are (folders, single files, the hub), how their keys are spelled, how they are kept.

mod base_weight;
mod block_stream;
mod convolution;
pub mod gguf;
pub mod hub;
mod int8;
pub mod json_fields;
mod keeping;
mod mapped_file;
mod original_stable_diffusion;
mod original_unet;
pub(crate) mod other_pipelines;
pub mod spelling;
mod streamed;
pub mod tensor_file;
mod tensor_source;
mod weight_files;
mod weight_set;

pub use base_weight::{BaseWeight, InputGradient, Op, Storage};
pub use block_stream::{block_of, BlockStream};
pub use convolution::{conv2d, Stride};
pub use int8::{Int8Weight, DEFAULT_THRESHOLD, DENSE_AT_ONCE};
pub use keeping::Keeping;
pub use mapped_file::MappedFile;
pub use original_stable_diffusion::{OriginalCheckpoint, OriginalTextEncoder};
pub use original_unet::unet_module;
pub use streamed::{Layout, StreamedWeight};
pub use weight_set::{is_float, Placement, WeightSet};
