//! Frozen numbers: where they are (folders, single files, the hub), how their keys are spelled, how they are kept.

mod base_weight;
mod mapped_file;
pub mod spelling;
mod weight_set;

pub use base_weight::{BaseWeight, Op};
pub use mapped_file::MappedFile;
pub use weight_set::{Placement, WeightSet};
