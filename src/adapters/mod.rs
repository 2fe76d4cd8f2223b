//! What is trained: adapters on the sites of a model, by PEFT's rules.

pub mod adapter;
mod attach;
pub mod config;
mod lora;
mod site;
mod targets;

pub use adapter::{Adapter, Init, Method, METHODS};
pub use attach::{attach, AdapterParams, Attached};
pub use config::{Bias, InitWeights, LoraConfig, TargetModules};
pub use site::{Param, Site, Sites};
pub use targets::{matching_sites, TargetRules};
