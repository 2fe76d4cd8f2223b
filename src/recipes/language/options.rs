//! What a run on a language model takes from its options: the folder's name, and which options may change when it resumes.

use crate::options::language::LanguageConfig;
use crate::recipes::training::output_name;
use crate::weights::gguf::is_gguf;
use std::path::Path;

/// Options that change none of a run's numbers: what records come to is weighed as such, and `classes` are theirs.
pub(super) const FREE_OPTIONS: &[&str] =
    &["train_file", "validation_file", "eval_steps", "eval_max_new_tokens", "classes"];

/// The same options with an output folder: the one that was given, or one named after the records, the model and the date.
pub(super) fn with_output(config: &LanguageConfig) -> LanguageConfig {
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let model = match is_gguf(&config.model) {
        true => stem(&config.model),
        // A dot in a folder's name begins no ending.
        false => config.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let words = format!("{} {model}", stem(&config.train_file));
    let named = || output_name::folder(&words, "language-model", &config.training.ranks);
    let output = config.output_dir.clone().unwrap_or_else(named);
    let mut config = LanguageConfig { output_dir: Some(output.clone()), ..config.clone() };
    config.training.go_on_after_a_restart(&output);
    config
}
