//! The options on which a run's numbers depend, as its checkpoints keep them: a resumed run must have the same.

use crate::options::given::in_words;
use serde_json::Value;
use std::collections::BTreeMap;

/// Options of every training that change none of its numbers, or that [`super::run::Run`] weighs by what they come to.
const FREE: &[&str] = &[
    "output_dir",
    "logging_dir",
    "overwrite",
    "resume_from_checkpoint",
    "checkpointing_steps",
    "keep_checkpoints",
    "gradient_checkpointing",
    "slicing",
    "on_oom",
    "deterministic",
    "offload",
    "mixed_precision",
    "num_train_epochs",
    "max_train_steps",
    "push_to_hub",
    "hub_model_id",
    "gpus",
    "processes",
    "timeout",
];

/// Options that came after checkpoints which do not name them, with the value that those mean.
const LATER: &[(&str, &str)] = &[("gradient_accumulation_average", "full"), ("quantize", "none")];

/// Of `all` options of a run, as run.json has them, those that are not `free` to change: flag → value in words. One that is
/// off or not given is left out, so that a checkpoint is none the worse for options that came after it.
pub(in crate::recipes) fn options_that_matter(all: &Value, free: &[&str]) -> BTreeMap<String, String> {
    let is_free = |name: &str| FREE.contains(&name) || free.contains(&name);
    let is_as_before =
        |name: &str, value: &Value| LATER.iter().any(|(later, before)| name == *later && value == before);
    let options = all.as_object().into_iter().flatten();
    let options = options.filter(|(name, value)| !is_free(name) && !is_as_before(name, value));
    options.filter_map(|(name, value)| Some((flag(name), given(value)?))).collect()
}

fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// A value in words; none where it is that of a flag that was not given.
fn given(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some("given".to_owned()),
        Value::Array(list) if list.is_empty() => None,
        Value::Object(map) if map.is_empty() => None,
        other => Some(in_words(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_given_matters_unless_it_is_free() {
        let all = json!({ "lora_r": 8, "learning_rate": 1e-4, "use_dora": true, "use_rslora": false, "revision": null,
            "lora_modules_to_save": [], "lora_targets": "q,v", "output_dir": "out", "eval_steps": 10 });
        let matter = options_that_matter(&all, &["eval_steps"]);
        let expected =
            [("--learning-rate", "0.0001"), ("--lora-r", "8"), ("--lora-targets", "q,v"), ("--use-dora", "given")];
        assert_eq!(options_that_matter(&json!({ "gradient_accumulation_average": "full" }), &[]), BTreeMap::new());
        let present = options_that_matter(&json!({ "gradient_accumulation_average": "present" }), &[]);
        assert_eq!(present["--gradient-accumulation-average"], "present");
        assert_eq!(matter, expected.map(|(flag, value)| (flag.to_owned(), value.to_owned())).into());
    }
}
