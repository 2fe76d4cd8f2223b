//! The layers that models are written in. Only these know that adapters exist.

mod activation;
mod alibi;
mod attention;
mod attention_mask;
mod conv2d;
mod dropout;
mod embedding;
mod key_value_cache;
mod linear;
mod loader;
mod norms;
mod relative_position_bias;
mod rms_norm;
mod rotary;

pub use activation::Activation;
pub use alibi::Alibi;
pub use attention::{attend, attend_heads, attend_in_slices, split_heads, Attending};
pub use attention_mask::{AttentionMask, CausalMask};
pub use conv2d::{channels_last, Conv2d};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use key_value_cache::{BlockCache, KeyValueCache, LayerCache};
pub use linear::Linear;
pub use loader::{is_head, Bias, Loader};
pub use norms::{GroupNorm, LayerNorm};
pub use relative_position_bias::{RelativePositionBias, RelativePositions};
pub use rms_norm::RmsNorm;
pub use rotary::{Rotary, RotaryAngles};
