//! The options of a run that is recorded, so that the same run can be made again, elsewhere.

use super::command_line::without_defaults;
use super::dreambooth::DreamBoothConfig;
use super::language::LanguageConfig;
use super::reading::Configuration;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Options that say where a run was written and how it was started there, or that it made itself.
const OF_THAT_RUN: &[&str] = &[
    "output_dir",
    "overwrite",
    "resume_from_checkpoint",
    "classes",
    "push_to_hub",
    "hub_model_id",
    "gpus",
    "processes",
];
/// Options that can be paths.
const PATHS: &[&str] = &[
    "model",
    "tokenizer_name",
    "config_folder",
    "init_adapter",
    "instance_data_dir",
    "class_data_dir",
    "train_file",
    "validation_file",
];

/// The options, by name, of the run whose run.json is `file`, with the content `text`, and its `seed`. What is as by default is left out,
/// unless it was given.
pub fn options_of(file: &Path, text: &str) -> Result<Map<String, Value>> {
    let run: Value =
        serde_json::from_str(text).map_err(|error| Error::file(file, format!("not valid JSON: {error}")))?;
    let Some(options) = run["options"].as_object() else {
        return Err(Error::file(file, "is not the run.json of a training run; ⟨config⟩ takes one, or a TOML file"));
    };
    let command = match options.contains_key("task") {
        true => LanguageConfig::command(),
        false => DreamBoothConfig::command(),
    };
    let given: Vec<&str> = run["given"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut options = without_defaults(&command, options.clone(), &given);
    options.retain(|name, _| !OF_THAT_RUN.contains(&name.as_str()));
    let working_dir = run["working_dir"].as_str().map(Path::new);
    for (name, value) in &mut options {
        if let (true, Value::String(path)) = (PATHS.contains(&name.as_str()), &*value) {
            *value = found_from(working_dir, path).into();
        }
    }
    options.extend(run["seed"].as_i64().map(|seed| ("seed".to_owned(), seed.into())));
    Ok(options)
}

/// A path of a run that was started in `working_dir`, from where this process is: as it stands if nothing is there any more.
fn found_from(working_dir: Option<&Path>, path: &str) -> String {
    match working_dir.map(|folder| folder.join(path)).filter(|joined| joined.exists()) {
        Some(joined) if Path::new(path).is_relative() => joined.display().to_string(),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(typed: &str) -> Vec<String> {
        typed.split_whitespace().map(str::to_owned).collect()
    }

    /// The options that `typed` stands for are those that come back from their record, every one of them.
    fn check<T: Configuration>(typed: &str, given: &[&str]) {
        let mut options = T::from_flags(&words(typed)).unwrap().to_map().unwrap();
        options.remove("output_dir");
        let run = json!({ "options": options, "given": given, "seed": -3 });
        let mut read = options_of(Path::new("run.json"), &run.to_string()).unwrap();
        assert_eq!(read.shift_remove("seed"), Some(json!(-3)));
        let mut again = T::from_map(&read).unwrap().to_map().unwrap();
        again.remove("output_dir");
        assert_eq!(again, options, "{read:?}");
    }

    #[test]
    fn the_options_of_a_record_are_those_of_the_run() {
        check::<DreamBoothConfig>("--model m --instance-data-dir d --instance-prompt p", &[]);
        check::<DreamBoothConfig>(
            "--model o/m --revision main --instance-data-dir d --instance-prompt=-x,y --class-data-dir c --class-prompt k \
             --with-prior-preservation --prior-loss-weight 0.25 --resolution 64 --center-crop --cache-latents true \
             --train-text-encoder --lora-r 4 --lora-bias lora_only --lora-rank-pattern to_q=3 --lora-alpha-pattern to_v=1.5 \
             --lora-modules-to-save conv_in,conv_out --lora-init gaussian --use-dora --learning-rate 1e-4 --adam-epsilon 1e-7 \
             --gradient-accumulation-steps 3 --gradient-accumulation-average present --lr-scheduler cosine_with_restarts \
             --num-train-epochs 2 --mixed-precision bf16 --offload cpu --prior-generation-precision fp16 --keep-checkpoints 2 \
             --validation-prompt v --snr-gamma 5 --logging-dir l --max-train-steps 7",
            &["lora_r", "output_dir", "prior_loss_weight"],
        );
        check::<LanguageConfig>(
            "--model m --task seq-cls --label-column l --train-file f --validation-file v --eval-steps 3 --best-by accuracy \
             --lora-targets q,v --no-shuffle --max-seq-length 77 --load-in-8bit --int8-threshold 5.5",
            &[],
        );
        check::<LanguageConfig>(
            "--model m --task seq2seq-lm --label-column l --train-file f --peft-method p-tuning --num-virtual-tokens 4",
            &[],
        );
    }

    #[test]
    fn what_is_as_by_default_is_not_said_to_have_been_given() {
        let options =
            DreamBoothConfig::from_flags(&words("--model=m --instance-data-dir=d --instance-prompt=p --lora-alpha=32"));
        let run = |given: &[&str]| {
            json!({ "options": options.as_ref().unwrap().to_map().unwrap(), "given": given }).to_string()
        };
        let names = |given: &[&str]| {
            options_of(Path::new("run.json"), &run(given)).unwrap().keys().cloned().collect::<Vec<String>>()
        };
        assert_eq!(names(&[]), ["model", "instance_data_dir", "instance_prompt"]);
        assert_eq!(names(&["lora_alpha"]), ["model", "instance_data_dir", "instance_prompt", "lora_alpha"]);
    }

    #[test]
    fn paths_are_found_from_where_the_run_was_started() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rows.csv"), "text").unwrap();
        let run = json!({ "options": { "task": "causal-lm", "model": "gone/model", "train_file": "rows.csv" },
            "working_dir": folder.path() });
        let options = options_of(Path::new("run.json"), &run.to_string()).unwrap();
        let rows = folder.path().join("rows.csv").display().to_string();
        assert_eq!(json!(options), json!({ "task": "causal-lm", "model": "gone/model", "train_file": rows }));
    }

    #[test]
    fn other_json_is_refused() {
        for text in ["{", "{}", r#"{"options": 3}"#] {
            let message = options_of(Path::new("other.json"), text).unwrap_err().to_string();
            assert!(message.starts_with("other.json") && !message.contains('\n'), "{message}");
        }
    }
}
