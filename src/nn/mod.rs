//! The layers that models are written in. Only these know that adapters exist.

mod attention;
mod conv2d;
mod embedding;
mod linear;
mod loader;
mod norms;

pub use attention::attend;
pub use conv2d::{channels_last, Conv2d};
pub use embedding::Embedding;
pub use linear::Linear;
pub use loader::{Bias, Loader};
pub use norms::{GroupNorm, LayerNorm};
