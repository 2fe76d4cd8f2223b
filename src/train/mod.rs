//! Building blocks of a training loop. They know nothing of models: what is trained comes as [`Parameters`], and a
//! recipe writes the loop itself.

pub mod adamw;
pub mod adamw8bit;
pub mod checkpoint;
pub mod data_parallel;
pub mod folder_lock;
pub mod gradients;
pub mod growing_file;
pub mod head_loss;
pub mod loss_curve;
pub mod losses;
pub mod lr_schedule;
pub mod measure;
pub mod metrics;
pub mod optimizer;
pub mod plot_font;
pub mod precision;
pub mod run_folder;
pub mod tensorboard;
mod whole_folder;

use std::collections::BTreeMap;
use tch::Tensor;

/// What is trained: full name → float32 leaf that requires a gradient, on the training device.
pub type Parameters = BTreeMap<String, Tensor>;
