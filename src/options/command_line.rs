//! A configuration as the command line that stands for it.

use super::reading::{flags, Configuration};
use super::shell_word;
use crate::error::Result;
use clap::{Arg, Command};
use serde_json::{Map, Value};

/// The command line of `config` and `seed` for a shell, with what differs from the defaults alone.
pub fn command_line<T: Configuration>(config: &T, seed: i64) -> Result<String> {
    let command = T::command();
    let mut line = format!("lorabooth {}", T::COMMAND);
    for flag in flags(&command, &without_defaults(&command, config.to_map()?, &[]))? {
        line.push(' ');
        line.push_str(&flag_word(&flag));
    }
    if seed != 0 {
        line.push_str(&flag_word(&format!(" --seed={seed}")));
    }
    Ok(line)
}

/// `--name=value` as people write it.
fn flag_word(flag: &str) -> String {
    match flag.split_once('=') {
        Some((name, value)) if !value.is_empty() && !value.starts_with('-') => format!("{name} {}", shell_word(value)),
        Some((name, value)) => format!("{name}={}", shell_word(value)),
        None => flag.to_owned(),
    }
}

/// The `options` of `command` that have other values than by default, or are among those `given`.
pub fn without_defaults(command: &Command, mut options: Map<String, Value>, given: &[&str]) -> Map<String, Value> {
    let is_default = |name: &str, value: &Value| match command.get_arguments().find(|arg| arg.get_id() == name) {
        Some(arg) => is_default(arg, value),
        None => false,
    };
    options.retain(|name, value| given.contains(&name.as_str()) || !is_default(name, value));
    options
}

/// Whether `value` is what the option has where it is not given: nothing, or the same text or number.
fn is_default(arg: &Arg, value: &Value) -> bool {
    let text = match value {
        Value::Null | Value::Bool(false) => return true,
        Value::Array(list) if list.is_empty() => return true,
        Value::Object(map) if map.is_empty() => return true,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let [default] = arg.get_default_values() else { return false };
    let default = default.to_string_lossy();
    default == text || default.parse::<f64>().is_ok_and(|a| text.parse::<f64>().is_ok_and(|b| a == b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::dreambooth::DreamBoothConfig;
    use crate::options::language::LanguageConfig;

    fn line<T: Configuration>(typed: &str) -> String {
        let flags: Vec<String> = typed.split_whitespace().map(str::to_owned).collect();
        command_line(&T::from_flags(&flags).unwrap(), 0).unwrap()
    }

    #[test]
    fn a_command_line_has_what_differs_from_the_defaults() {
        let typed = "--model m --instance-data-dir d --instance-prompt=-x";
        assert_eq!(
            line::<DreamBoothConfig>(typed),
            "lorabooth train dreambooth --model m --instance-data-dir d --instance-prompt=-x"
        );
        let more = format!(
            "{typed} --lora-r 8 --lora-text-encoder-r 4 --train-text-encoder --lr 1e-3 --lora-alpha 32 --steps 0"
        );
        let expected = "--train-text-encoder --lora-text-encoder-r 4 --learning-rate 0.001 --max-train-steps 0";
        let line = line::<DreamBoothConfig>(&more);
        assert!(line.ends_with(&format!("--instance-prompt=-x {expected}")), "{line}");
    }

    #[test]
    fn a_command_line_stands_for_the_configuration_that_it_is_of() {
        let typed = "--model m --task seq-cls --label-column l --train-file f --lora-targets q,v --lora-rank-pattern q=3 \
            --lora-modules-to-save a,b --load-in-8bit --int8-threshold 5.5 --lr-scheduler cosine_with_restarts --best-by accuracy";
        let flags: Vec<String> = typed.split_whitespace().map(str::to_owned).collect();
        let config = LanguageConfig::from_flags(&flags).unwrap();
        let line = command_line(&config, -3).unwrap();
        let words = line.strip_prefix("lorabooth train llm ").unwrap().strip_suffix(" --seed=-3").unwrap();
        let words: Vec<String> = words.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
        assert_eq!(LanguageConfig::from_flags(&words).unwrap().to_map().unwrap(), config.to_map().unwrap());
    }
}
