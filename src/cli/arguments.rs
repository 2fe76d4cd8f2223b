//! What was typed becomes what clap reads: Python's `--snake_case` flags, and `--config FILE.toml` as flags that later
//! ones override.

use super::whole_command;
use crate::error::{Error, Result};
use crate::options::reading::flags;
use crate::options::recorded;
use crate::regular_file::{self, FileKind};
use crate::sentence::with_options;
use clap::Command;
use serde_json::{Map, Value};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What clap reads.
#[derive(Debug, PartialEq)]
pub struct Expanded {
    /// The program's name, subcommands, flags of the file, flags of the command line.
    pub args: Vec<OsString>,
    /// The TOML file, and the flags that it holds.
    pub config: Option<(PathBuf, Vec<String>)>,
}

impl Expanded {
    /// The TOML file, if `flag` is from it.
    pub fn file_of(&self, flag: &str) -> Option<&Path> {
        let (file, flags) = self.config.as_ref()?;
        let own = |known: &String| known.split('=').next() == Some(flag);
        flags.iter().any(own).then_some(file)
    }
}

/// `args` with snake_case flags in kebab-case and the flags of a TOML file put before those of the command line.
pub fn expand(args: Vec<OsString>) -> Result<Expanded> {
    let mut out = Vec::with_capacity(args.len());
    let mut file = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            out.extend(args.by_ref());
        } else if arg == "--config" {
            file = Some(
                args.next()
                    .ok_or_else(|| Error::invalid("--config needs a TOML file, or the run.json of an earlier run"))?,
            );
        } else if let Some(given) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            file = Some(OsString::from(given));
        } else if let Some(flag) = out.last_mut().filter(|last| takes_value(last)).filter(|_| is_negative(&arg)) {
            flag.push("=");
            flag.push(arg);
        } else {
            out.push(kebab(&arg));
        }
    }
    let Some(file) = file.map(PathBuf::from) else {
        name_what_is_planned(&mut out, false);
        return Ok(Expanded { args: out, config: None });
    };
    let options = options_of(&file)?;
    name_what_is_planned(&mut out, options.contains_key("task"));
    let named_in_it = |sentence: &str| Error::file(&file, with_options(sentence, |name| format!("`{name}`")));
    let flags = flags(&command_of(&out), &options).map_err(|error| named_in_it(&error.to_string()))?;
    let mut flags = without_overridden(flags, &out);
    flags.extend(folder_to_resume(&file, &out));
    let place = behind_the_command(&out);
    out.splice(place..place, flags.iter().map(OsString::from));
    Ok(Expanded { args: out, config: Some((file, flags)) })
}

/// The place behind the words of the subcommand, before its flags; common flags may come before it.
fn behind_the_command(args: &[OsString]) -> usize {
    const WITHOUT_VALUE: [&str; 5] = ["--json", "--verbose", "--quiet", "-v", "-q"];
    let is_flag = |i: usize| args[i].as_encoded_bytes().starts_with(b"-");
    let is_value = |i: usize| takes_value(&args[i - 1]) && !WITHOUT_VALUE.iter().any(|flag| args[i - 1] == *flag);
    let first = (1..args.len()).find(|&i| !is_flag(i) && !is_value(i)).unwrap_or(args.len());
    (first..args.len()).find(|&i| is_flag(i)).unwrap_or(args.len())
}

/// The `flags` of a file without the number of steps where `typed` gives a number of epochs: steps win over epochs, and what is typed
/// over the file.
fn without_overridden(mut flags: Vec<String>, typed: &[OsString]) -> Vec<String> {
    let is_typed = |names: &[&str]| {
        let name = |arg: &OsString| arg.to_str().and_then(|arg| arg.split('=').next()).map(str::to_owned);
        typed.iter().filter_map(name).any(|name| names.contains(&name.as_str()))
    };
    if is_typed(&["--num-train-epochs"]) && !is_typed(&["--max-train-steps", "--steps"]) {
        flags.retain(|flag| !matches!(flag.split('=').next(), Some("--max-train-steps" | "--steps")));
    }
    flags
}

/// `plan` with nothing but flags behind it plans DreamBooth, or a language model where a task is among them or in the file.
fn name_what_is_planned(args: &mut Vec<OsString>, file_has_task: bool) {
    let Some(place) = args.iter().position(|arg| arg == "plan") else { return };
    let is_flag = |arg: &OsStr| arg.as_encoded_bytes().starts_with(b"-");
    // Before a command there are flags and their values alone.
    let is_command = (1..place).all(|i| is_flag(&args[i]) || takes_value(&args[i - 1]));
    let flags = args.get(place + 1).filter(|next| is_flag(next) && !matches!(next.to_str(), Some("-h" | "--help")));
    if is_command && flags.is_some() {
        let is_task = |flag: &str| flag == "--task" || flag.starts_with("--task=");
        let has_task = file_has_task || args.iter().filter_map(|arg| arg.to_str()).any(is_task);
        args.insert(place + 1, if has_task { "llm" } else { "dreambooth" }.into());
    }
}

/// The command whose words are among `args`, with the options of every command, but for `--config` itself.
fn command_of(args: &[OsString]) -> Command {
    let whole = whole_command();
    let (mut command, mut words) = (&whole, Vec::new());
    // Values of flags before it are no command's name.
    for word in args.iter().skip(1).filter_map(|arg| arg.to_str()) {
        match command.find_subcommand(word) {
            Some(inner) => {
                command = inner;
                words.push(word);
            }
            None if words.is_empty() => {}
            None => break,
        }
    }
    let common = whole.get_arguments().filter(|arg| arg.is_global_set() && arg.get_id() != "config");
    command.clone().name(words.join(" ")).args(common)
}

/// Whether `arg` is a long flag without a value.
fn takes_value(arg: &OsStr) -> bool {
    let bytes = arg.as_encoded_bytes();
    bytes.starts_with(b"--") && !bytes.contains(&b'=')
}

/// Whether `arg` is a number below 0, as `-1e-4` or `-inf`: no flag here is called so, but clap would take it for one.
fn is_negative(arg: &OsStr) -> bool {
    let rest = arg.to_str().and_then(|arg| arg.strip_prefix('-'));
    rest.is_some_and(|rest| rest == "inf" || rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}

/// `--instance_data_dir=x` is `--instance-data-dir=x`; values keep their underscores, and may be no UTF-8.
fn kebab(arg: &OsStr) -> OsString {
    match arg.to_str().and_then(|arg| arg.strip_prefix("--")) {
        None => arg.to_owned(),
        Some(rest) => match rest.split_once('=') {
            Some((name, value)) => format!("--{}={value}", name.replace('_', "-")).into(),
            None => format!("--{}", rest.replace('_', "-")).into(),
        },
    }
}

/// `--resume` beside the run.json of a run continues that run, in its folder, unless another one is named.
fn folder_to_resume(file: &Path, typed: &[OsString]) -> Option<String> {
    let is_any = |names: &[&str]| {
        let name = |arg: &OsString| arg.to_str().and_then(|arg| arg.split('=').next()).map(str::to_owned);
        typed.iter().filter_map(name).any(|name| names.contains(&name.as_str()))
    };
    let resumes = is_any(&["--resume", "--resume-from-checkpoint"]) && !is_any(&["--output", "--output-dir"]);
    let folder = file.canonicalize().ok().filter(|file| resumes && file.ends_with("run.json"))?;
    Some(format!("--output-dir={}", folder.parent()?.display()))
}

/// The options in a TOML file, or in the run.json of an earlier run.
fn options_of(file: &Path) -> Result<Map<String, Value>> {
    if !file.exists() {
        return Err(Error::invalid(format!("--config {}: no such file", file.display())));
    }
    let text = regular_file::read_text(file, FileKind::FLAGS)?;
    if text.trim_start().starts_with('{') {
        return recorded::options_of(file, &text);
    }
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::file(file, format!("not valid TOML: {} in line {line}", e.message()))
    })?;
    let value = |(name, value): (String, toml::Value)| match json(value) {
        Some(value) => Ok((name, value)),
        None => Err(Error::file(file, format!("`{name}` must be a string, a number, true or false"))),
    };
    table.into_iter().map(value).collect()
}

/// A value of TOML's as JSON has it; none for a time.
fn json(value: toml::Value) -> Option<Value> {
    Some(match value {
        toml::Value::Boolean(value) => value.into(),
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        // JSON has no infinity.
        toml::Value::Float(number) if !number.is_finite() => number.to_string().into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Array(list) => Value::Array(list.into_iter().map(json).collect::<Option<_>>()?),
        toml::Value::Table(table) => {
            let entries = table.into_iter().map(|(name, value)| Some((name, json(value)?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
        toml::Value::Datetime(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn flags_of_pefts_script_are_ours() {
        assert_eq!(
            expand(words("lorabooth train dreambooth --instance_data_dir my_dog --lora_r=4")).unwrap().args,
            words("lorabooth train dreambooth --instance-data-dir my_dog --lora-r=4")
        );
    }

    #[test]
    fn a_plan_of_nothing_named_is_dreambooths() {
        let of = |text: &str| expand(words(text)).unwrap().args;
        assert_eq!(
            of("lorabooth --threads 2 plan --fit 8GB"),
            words("lorabooth --threads 2 plan dreambooth --fit 8GB")
        );
        assert_eq!(of("lorabooth plan --task=seq-cls"), words("lorabooth plan llm --task=seq-cls"));
        for text in
            ["lorabooth plan llm --fit 8GB", "lorabooth plan --help", "lorabooth complete --prompt plan --seed=1"]
        {
            assert_eq!(of(text), words(text));
        }
    }

    #[test]
    fn a_negative_number_is_the_value_of_the_flag_before_it() {
        assert_eq!(
            expand(words("lorabooth generate --guidance_scale -1e-4 --seed -3 -q")).unwrap().args,
            words("lorabooth generate --guidance-scale=-1e-4 --seed=-3 -q")
        );
    }

    #[test]
    fn epochs_that_are_typed_win_over_a_files_steps() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, "steps = 7").unwrap();
        let of = |more: &str| {
            expand(words(&format!("lorabooth train llm --config {} {more}", file.display()))).unwrap().args
        };
        assert_eq!(of("--num-train-epochs=2"), words("lorabooth train llm --num-train-epochs=2"));
        assert_eq!(
            of("--num_train_epochs 2 --max-train-steps 3"),
            words("lorabooth train llm --max-train-steps=7 --num-train-epochs 2 --max-train-steps 3")
        );
        assert_eq!(of("-q"), words("lorabooth train llm --max-train-steps=7 -q"));
    }

    #[test]
    fn mistakes_of_a_file_are_told_with_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let line = format!("lorabooth --threads 2 train dreambooth --config {}", file.display());
        for (text, parts) in [
            ("lora_rr = 4", &["`lora_rr` is no option of `train dreambooth`", "`lora_r`"][..]),
            ("lr = 1\nlearning_rate = 1", &["`lr`", "`learning_rate`", "twice"]),
            ("config = \"other.toml\"", &["`config`", "other file"]),
            ("center_crop = \"yes\"", &["`center_crop` must be true or false"]),
            ("lora_r = 2026-11-26", &["`lora_r` must be"]),
        ] {
            std::fs::write(&file, text).unwrap();
            let message = expand(words(&line)).unwrap_err().to_string();
            let start = format!("{}: ", file.display());
            assert!(message.starts_with(&start) && parts.iter().all(|part| message.contains(part)), "{message}");
        }
        std::fs::write(&file, "threads = 3\nlearning_rate = inf").unwrap();
        assert!(expand(words(&line)).unwrap().args.contains(&"--learning-rate=inf".into()));
    }

    #[test]
    fn a_config_file_comes_before_the_flags() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(
            &file,
            "lora_r = 4\ntrain_text_encoder = true\ncenter_crop = false\ncache_latents = false\nseed = 1",
        )
        .unwrap();
        let line = format!("lorabooth train dreambooth --lora-r 8 --config {}", file.display());
        let expanded = expand(words(&line)).unwrap();
        assert_eq!(expanded.file_of("--lora-r"), Some(file.as_path()));
        assert_eq!(expanded.file_of("--lora-alpha"), None);
        // Common flags may stand before the command.
        let line = format!("lorabooth -q --threads 2 --json train dreambooth --config {} --lora-r 8", file.display());
        let args = expand(words(&line)).unwrap().args;
        assert_eq!(args[..7], words("lorabooth -q --threads 2 --json train dreambooth"));
        assert_eq!(args[7], "--lora-r=4");
        assert_eq!(
            expanded.args,
            words(
                "lorabooth train dreambooth --lora-r=4 --train-text-encoder --cache-latents=false --seed=1 --lora-r 8"
            )
        );
    }
}
