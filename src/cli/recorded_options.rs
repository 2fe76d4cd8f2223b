//! `--config run.json`: the flags of a run that is recorded, so that the same run can be made again, elsewhere.

use crate::error::{Error, Result};
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::language::LanguageConfig;
use clap::{Args, Command};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Options that say where a run was written and how it was started there, or that it made itself.
const OF_THAT_RUN: &[&str] = &["output_dir", "overwrite", "resume_from_checkpoint", "classes"];
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

/// The flags of the run whose run.json is `file`, with the content `text`. What is as by default is left out, unless it was given.
pub fn flags_of(file: &Path, text: &str) -> Result<Vec<String>> {
    let run: Value =
        serde_json::from_str(text).map_err(|error| Error::file(file, format!("not valid JSON: {error}")))?;
    let Some(options) = run["options"].as_object() else {
        return Err(Error::file(file, "is not the run.json of a training run; --config takes one, or a TOML file"));
    };
    let defaults = match options.contains_key("task") {
        true => defaults(LanguageConfig::augment_args(Command::new("train llm"))),
        false => defaults(DreamBoothConfig::augment_args(Command::new("train dreambooth"))),
    };
    let given: Vec<&str> = run["given"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let working_dir = run["working_dir"].as_str().map(Path::new);
    let mut flags = Vec::new();
    for (name, value) in options.iter().filter(|(name, _)| !OF_THAT_RUN.contains(&name.as_str())) {
        let flag = format!("--{}", name.replace('_', "-"));
        let text = match value {
            Value::Null | Value::Bool(false) => continue,
            Value::Bool(true) => {
                flags.push(flag);
                continue;
            }
            Value::String(path) if PATHS.contains(&name.as_str()) => found_from(working_dir, path),
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Array(list) if list.is_empty() => continue,
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            // Ranks or alphas by module.
            Value::Object(_) => value.to_string(),
        };
        let is_default = defaults.get(name).is_some_and(|default| is_same(default, &text));
        if !is_default || given.contains(&name.as_str()) {
            flags.push(format!("{flag}={text}"));
        }
    }
    flags.extend(run["seed"].as_i64().map(|seed| format!("--seed={seed}")));
    Ok(flags)
}

/// The default values of the flags of `command`, by the options' names.
fn defaults(command: Command) -> BTreeMap<String, String> {
    let default = |arg: &clap::Arg| match arg.get_default_values() {
        [one] => Some((arg.get_id().to_string(), one.to_string_lossy().into_owned())),
        _ => None,
    };
    command.get_arguments().filter_map(default).collect()
}

/// Whether two values are the same text or the same number.
fn is_same(a: &str, b: &str) -> bool {
    a == b || a.parse::<f64>().is_ok_and(|a| b.parse::<f64>().is_ok_and(|b| a == b))
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
    use crate::options::given::GivenFlags;
    use clap::FromArgMatches;
    use serde_json::json;

    fn parsed<T: Args + FromArgMatches + serde::Serialize>(flags: &[String]) -> (Value, Vec<String>) {
        let command = T::augment_args(Command::new("train").no_binary_name(true));
        let matches = command.try_get_matches_from(flags).unwrap();
        let mut value = serde_json::to_value(T::from_arg_matches(&matches).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("output_dir");
        let given = GivenFlags::from_arg_matches(&matches).unwrap();
        (value, given.names().map(str::to_owned).collect())
    }

    /// The options that `typed` stands for are those that come back from their record, every flag of them.
    fn check<T: Args + FromArgMatches + serde::Serialize>(typed: &str) {
        let typed: Vec<String> = typed.split_whitespace().map(str::to_owned).collect();
        let (options, given) = parsed::<T>(&typed);
        let run = json!({ "options": options, "given": given, "seed": -3 });
        let mut flags = flags_of(Path::new("run.json"), &run.to_string()).unwrap();
        assert_eq!(flags.pop().as_deref(), Some("--seed=-3"));
        assert_eq!(parsed::<T>(&flags).0, options, "{flags:?}");
    }

    #[test]
    fn the_options_of_a_record_are_those_of_the_run() {
        check::<DreamBoothConfig>("--model m --instance-data-dir d --instance-prompt p");
        check::<DreamBoothConfig>(
            "--model o/m --revision main --instance-data-dir d --instance-prompt=-x,y --class-data-dir c --class-prompt k \
             --with-prior-preservation --prior-loss-weight 0.25 --resolution 64 --center-crop --cache-latents true \
             --train-text-encoder --lora-r 4 --lora-bias lora_only --lora-rank-pattern to_q=3 --lora-alpha-pattern to_v=1.5 \
             --lora-modules-to-save conv_in,conv_out --lora-init gaussian --use-dora --learning-rate 1e-4 --adam-epsilon 1e-7 \
             --gradient-accumulation-steps 3 --gradient-accumulation-average present --lr-scheduler cosine_with_restarts \
             --num-train-epochs 2 --mixed-precision bf16 --offload cpu --prior-generation-precision fp16 --keep-checkpoints 2 \
             --validation-prompt v --snr-gamma 5 --logging-dir l --max-train-steps 7",
        );
        check::<LanguageConfig>(
            "--model m --task seq-cls --label-column l --train-file f --validation-file v --eval-steps 3 --best-by accuracy \
             --lora-targets q,v --no-shuffle --max-seq-length 77 --load-in-8bit --int8-threshold 5.5",
        );
        check::<LanguageConfig>(
            "--model m --task seq2seq-lm --label-column l --train-file f --peft-method p-tuning --num-virtual-tokens 4",
        );
    }

    #[test]
    fn what_is_as_by_default_is_not_said_to_have_been_given() {
        let (options, given) = parsed::<DreamBoothConfig>(
            &["--model=m", "--instance-data-dir=d", "--instance-prompt=p", "--lora-alpha=32"].map(str::to_owned),
        );
        let run = json!({ "options": options, "given": given });
        let flags = flags_of(Path::new("run.json"), &run.to_string()).unwrap();
        assert_eq!(flags, ["--model=m", "--instance-data-dir=d", "--instance-prompt=p", "--lora-alpha=32.0"]);
    }

    #[test]
    fn paths_are_found_from_where_the_run_was_started() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rows.csv"), "text").unwrap();
        let run = json!({ "options": { "task": "causal-lm", "model": "gone/model", "train_file": "rows.csv" },
            "working_dir": folder.path() });
        let flags = flags_of(Path::new("run.json"), &run.to_string()).unwrap();
        let rows = format!("--train-file={}", folder.path().join("rows.csv").display());
        assert_eq!(flags, ["--task=causal-lm", "--model=gone/model", &rows]);
    }

    #[test]
    fn other_json_is_refused() {
        for text in ["{", "{}", r#"{"options": 3}"#] {
            let message = flags_of(Path::new("other.json"), text).unwrap_err().to_string();
            assert!(message.starts_with("other.json: ") && !message.contains('\n'), "{message}");
        }
    }
}
