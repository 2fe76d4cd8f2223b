//! What was typed becomes what clap reads: Python's `--snake_case` flags, and `--config FILE.toml` as flags that later
//! ones override.

use crate::error::{Error, Result};
use std::path::Path;

/// `args` with snake_case flags in kebab-case and the flags of a TOML file put before those of the command line.
pub fn expand(args: Vec<String>) -> Result<Vec<String>> {
    let mut out = Vec::with_capacity(args.len());
    let mut config = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            out.extend(args.by_ref());
        } else if arg == "--config" {
            config = Some(args.next().ok_or_else(|| Error::invalid("--config needs a TOML file"))?);
        } else if let Some(file) = arg.strip_prefix("--config=") {
            config = Some(file.to_owned());
        } else {
            out.push(kebab(arg));
        }
    }
    if let Some(file) = config {
        // Behind the words of the subcommand, before its flags.
        let place = out.iter().skip(1).position(|arg| arg.starts_with('-')).map_or(out.len(), |i| i + 1);
        out.splice(place..place, flags_of(Path::new(&file))?);
    }
    Ok(out)
}

/// `--instance_data_dir=x` is `--instance-data-dir=x`; values keep their underscores.
fn kebab(arg: String) -> String {
    match arg.strip_prefix("--") {
        None => arg,
        Some(rest) => match rest.split_once('=') {
            Some((name, value)) => format!("--{}={value}", name.replace('_', "-")),
            None => format!("--{}", rest.replace('_', "-")),
        },
    }
}

fn flags_of(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| Error::file(file, format!("not valid TOML: {}", e.message())))?;
    let mut flags = Vec::new();
    for (name, value) in table {
        let flag = format!("--{}", name.replace('_', "-"));
        match value {
            toml::Value::Boolean(true) => flags.push(flag),
            toml::Value::Boolean(false) => {}
            toml::Value::String(text) => flags.push(format!("{flag}={text}")),
            toml::Value::Integer(number) => flags.push(format!("{flag}={number}")),
            toml::Value::Float(number) => flags.push(format!("{flag}={number}")),
            toml::Value::Array(list) => {
                let words: Option<Vec<&str>> = list.iter().map(toml::Value::as_str).collect();
                let words = words.ok_or_else(|| Error::file(file, format!("`{name}` must be a list of strings")))?;
                flags.push(format!("{flag}={}", words.join(",")));
            }
            _ => return Err(Error::file(file, format!("`{name}` must be a string, a number, true or false"))),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn flags_of_pefts_script_are_ours() {
        assert_eq!(
            expand(words("lorabooth train dreambooth --instance_data_dir my_dog --lora_r=4")).unwrap(),
            words("lorabooth train dreambooth --instance-data-dir my_dog --lora-r=4")
        );
    }

    #[test]
    fn a_config_file_comes_before_the_flags() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, "lora_r = 4\ntrain_text_encoder = true\ncenter_crop = false\nseed = 1").unwrap();
        let line = format!("lorabooth train dreambooth --lora-r 8 --config {}", file.display());
        assert_eq!(
            expand(words(&line)).unwrap(),
            words("lorabooth train dreambooth --lora-r=4 --seed=1 --train-text-encoder --lora-r 8")
        );
    }
}
