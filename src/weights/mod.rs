//! Frozen numbers: where they are (folders, single files, the hub), how their keys are spelled, how they are kept.

mod base_weight;
mod mapped_file;
pub mod spelling;
pub mod tensor_file;
mod weight_set;
mod whole_file;

pub use base_weight::{BaseWeight, Op};
pub use mapped_file::MappedFile;
pub use weight_set::{Placement, WeightSet};
pub use whole_file::{write_whole, WholeFile};
