//! What is trained: adapters on the sites of a model and prompts in front of its texts, by PEFT's rules, and the files
//! that they are kept in.

pub mod adapter;
mod adapter_set;
mod attach;
mod base_model;
pub mod config;
pub mod diffusers_file;
mod finite;
pub mod formats;
pub mod inspect;
pub mod kohya_file;
mod lora;
mod lora_file;
mod lora_keys;
pub mod merge;
pub mod model_folder;
mod p_tuning;
pub mod peft_folder;
mod prefix_tuning;
mod probe;
mod projections;
mod prompt;
mod prompt_config;
pub mod prompt_folder;
mod prompt_tuning;
mod site;
mod targets;

pub use adapter::{Adapter, Init, Method, METHODS};
pub use adapter_set::{AdapterSet, Part, PartAdapter};
pub use attach::{attach, with_commas, AdapterParams, Attached};
pub use base_model::{BaseModel, Family};
pub use config::{Bias, InitWeights, LoraConfig, TargetModules};
pub use formats::{read_any, write_diffusers, write_kohya, write_peft, Format};
pub use merge::Merge;
pub use p_tuning::{PTuningOptions, Reparameterization};
pub use peft_folder::TextEncoderSpelling;
pub use prefix_tuning::PrefixTuningOptions;
pub use probe::{Lost, Probe};
pub use prompt::{EncoderTensors, Prompt, PromptEncoder, PromptMethod, PromptPlace, VirtualTokens, PROMPT_METHODS};
pub use prompt_config::{PromptConfig, PromptSizes};
pub use prompt_tuning::{PromptTuningInit, PromptTuningOptions};
pub use site::{Param, Site, SiteTraits, Sites};
pub use targets::{matching_sites, short_name};
