//! What `-h` and `--help` show: the flags that matter first and examples, for each command.

use clap::{Command, ValueHint};

/// The help of a command.
struct Page {
    /// Its words behind `lorabooth`.
    command: &'static str,
    /// The flags that `-h` shows, in this order, and that come first in `--help`; none: all of them in the order of their definition.
    shown: &'static [&'static str],
    /// What stands below them.
    below: &'static str,
}

const PAGES: &[Page] = &[
    Page {
        command: "",
        shown: &[],
        below: "Examples:
  lorabooth demo
  lorabooth train dreambooth --model stable-diffusion-v1-5/stable-diffusion-v1-5 --instance-data-dir photos \\
      --instance-prompt 'a photo of sks dog' --output my-dog
  lorabooth generate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --lora my-dog \\
      --prompt 'a photo of sks dog on the beach'

`lorabooth COMMAND -h` shows the options that matter, `--help` all of them.",
    },
    Page {
        command: "train",
        shown: &[],
        below: "`lorabooth train dreambooth -h` and `lorabooth train llm -h` show their options and an example.",
    },
    Page {
        command: "train dreambooth",
        shown: &[
            "model",
            "instance_data_dir",
            "instance_prompt",
            "output_dir",
            "max_train_steps",
            "learning_rate",
            "lora_r",
            "resolution",
            "train_text_encoder",
            "with_prior_preservation",
            "class_data_dir",
            "class_prompt",
            "validation_prompt",
            "gradient_checkpointing",
            "resume_from_checkpoint",
        ],
        below: "Examples:
  lorabooth train dreambooth --model stable-diffusion-v1-5/stable-diffusion-v1-5 --instance-data-dir photos \\
      --instance-prompt 'a photo of sks dog' --output my-dog
  lorabooth train dreambooth --model sd15.safetensors --tokenizer-name openai/clip-vit-large-patch14 \\
      --instance-data-dir photos --instance-prompt 'a photo of sks dog' --train-text-encoder --rank 16 --lr 1e-4 \\
      --steps 800 --with-prior-preservation --class-data-dir dogs --class-prompt 'a photo of a dog' --output my-dog

An existing command line of PEFT's train_dreambooth.py works behind `lorabooth train dreambooth`.
To see whether it fits your card: `lorabooth plan` with the same flags and --fit 8.
With --gradient-accumulation-steps, the last batch of an epoch ends the accumulation, as in accelerate.",
    },
    Page {
        command: "train llm",
        shown: &[
            "model",
            "task",
            "train_file",
            "validation_file",
            "text_column",
            "label_column",
            "prompt_template",
            "output_dir",
            "max_train_steps",
            "num_train_epochs",
            "learning_rate",
            "train_batch_size",
            "lora_r",
            "quantize",
            "resume_from_checkpoint",
        ],
        below: "Examples:
  lorabooth train llm --model facebook/opt-350m --task causal-lm --train-file quotes.jsonl --text-column quote \\
      --output my-adapter
  lorabooth train llm --model google-bert/bert-base-uncased --task seq-cls --train-file reviews.csv \\
      --validation-file held-out.csv --text-column review --label-column rating --steps 500 --output my-classifier

To see whether it fits your card: `lorabooth plan llm` with the same flags and --fit 8.",
    },
    Page {
        command: "generate",
        shown: &[
            "model",
            "prompt",
            "negative_prompt",
            "lora",
            "output",
            "num_images",
            "steps",
            "guidance_scale",
            "scheduler",
            "height",
            "width",
            "dtype",
        ],
        below: "Example:
  lorabooth generate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --lora my-dog=0.8 \\
      --prompt 'a photo of sks dog on the beach' --num-images 4 --seed 7 --output pictures",
    },
    Page {
        command: "complete",
        shown: &["model", "prompt", "adapter", "max_new_tokens", "temperature", "top_k", "top_p", "num_beams", "dtype"],
        below: "Examples:
  lorabooth complete --model facebook/opt-350m --adapter my-adapter --prompt 'The best way to'
  lorabooth complete --model model.gguf --temperature 0.7 --top-p 0.9 --prompt - < question.txt",
    },
    Page {
        command: "evaluate",
        shown: &[
            "model",
            "task",
            "validation_file",
            "adapter",
            "text_column",
            "label_column",
            "prompt_template",
            "output",
        ],
        below: "Example:
  lorabooth evaluate --model google-bert/bert-base-uncased --adapter my-classifier --task seq-cls \\
      --validation-file test.csv --text-column review --label-column rating --output answers.csv",
    },
    Page {
        command: "adapter",
        shown: &[],
        below: "Examples:
  lorabooth adapter inspect my-dog
  lorabooth adapter convert my-dog --to kohya --output my-dog.safetensors
  lorabooth adapter merge --model stable-diffusion-v1-5/stable-diffusion-v1-5 --lora my-dog --output merged-model
  lorabooth adapter push my-dog --repo me/my-dog",
    },
    Page {
        command: "adapter push",
        shown: &[],
        below: "The repository is private unless --public is given. The token comes from HF_TOKEN, and is kept nowhere.

Example:
  lorabooth adapter push my-dog --repo me/my-dog --license creativeml-openrail-m",
    },
    Page {
        command: "adapter inspect",
        shown: &[],
        below: "Example:
  lorabooth adapter inspect my-dog.safetensors",
    },
    Page {
        command: "adapter convert",
        shown: &[],
        below: "Example:
  lorabooth adapter convert my-dog --to kohya --half --output my-dog.safetensors",
    },
    Page {
        command: "adapter merge",
        shown: &["model", "lora", "output_dir", "dtype"],
        below: "Example:
  lorabooth adapter merge --model stable-diffusion-v1-5/stable-diffusion-v1-5 --lora my-dog=0.8 --output merged-model",
    },
    Page { command: "plan", shown: &[], below: PLAN },
    Page {
        command: "plan dreambooth",
        shown: &[
            "model",
            "fit",
            "card",
            "resolution",
            "train_batch_size",
            "train_text_encoder",
            "lora_r",
            "mixed_precision",
            "gradient_checkpointing",
            "instance_data_dir",
            "max_train_steps",
        ],
        below: PLAN,
    },
    Page {
        command: "plan llm",
        shown: &[
            "model",
            "task",
            "fit",
            "card",
            "train_file",
            "max_seq_length",
            "train_batch_size",
            "lora_r",
            "mixed_precision",
            "gradient_checkpointing",
            "quantize",
            "max_train_steps",
        ],
        below: PLAN,
    },
    Page {
        command: "demo",
        shown: &[],
        below: "Example:
  lorabooth demo --steps 100",
    },
    Page {
        command: "serve",
        shown: &[],
        below: "Examples:
  lorabooth serve
  lorabooth serve --model stable-diffusion-v1-5/stable-diffusion-v1-5 --model gpt2
  lorabooth serve --host 0.0.0.0 --auth-file account.txt --host-name studio.example.org",
    },
    Page {
        command: "tokenize",
        shown: &[],
        below: "Example:
  lorabooth tokenize --model stable-diffusion-v1-5/stable-diffusion-v1-5 'a photo of sks dog'",
    },
    Page {
        command: "completion",
        shown: &[],
        below: "Examples:
  lorabooth completion bash > ~/.local/share/bash-completion/completions/lorabooth
  lorabooth completion zsh > ~/.zfunc/_lorabooth
  lorabooth completion fish > ~/.config/fish/completions/lorabooth.fish",
    },
];

const PLAN: &str = "`lorabooth plan` takes the flags of `train dreambooth`, or with --task those of `train llm`, and:
      --fit <SIZE>  Memory that the run must fit in: 8 (GB), 8GiB or 6000MB
      --for <CARD>  A graphics card, in this machine or not: t4, 3060, 4060ti-16gb, a100-80gb

Exit code: 0 if the run fits, as it is or with the options that are then listed; 1 if nothing makes it fit.

Examples:
  lorabooth plan --model stable-diffusion-v1-5/stable-diffusion-v1-5 --train-text-encoder --fit 8
  lorabooth plan --model stable-diffusion-v1-5/stable-diffusion-v1-5 --for t4
  lorabooth plan --model stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda --fit 11GB
  lorabooth plan llm --model facebook/opt-350m --task causal-lm --max-seq-length 256 --for 3060";

/// Flags whose values are paths, though not only.
const PATHS: &[&str] = &["model", "lora", "adapter", "tokenizer_name"];
/// Flags of every command.
const COMMON: &[&str] = &["device", "threads", "seed", "config", "json", "verbose", "quiet"];

/// `command`, the whole program, with its help in order.
pub fn arranged(command: Command) -> Command {
    let command = command.mut_args(|arg| match COMMON.contains(&arg.get_id().as_str()) {
        true => arg.hide_short_help(true),
        false => arg,
    });
    arrange(command, "")
}

fn arrange(mut command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        let path = format!("{path} {name}").trim_start().to_owned();
        command = command.mut_subcommand(name, |sub| arrange(sub, &path));
    }
    let page = PAGES.iter().find(|page| page.command == path);
    let shown = page.map_or(&[][..], |page| page.shown);
    let command = command.mut_args(|arg| {
        let place = shown.iter().position(|shown| arg.get_id() == shown);
        let hint = if PATHS.contains(&arg.get_id().as_str()) { ValueHint::AnyPath } else { arg.get_value_hint() };
        let arg = arg.value_hint(hint);
        match place {
            // Before those under headings.
            Some(place) => arg.help_heading(None).display_order(place),
            None if shown.is_empty() => arg,
            None => arg.hide_short_help(true),
        }
    });
    match page {
        Some(page) => command.after_help(page.below),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{arguments, whole_command};

    fn command_at<'a>(mut command: &'a Command, path: &str) -> &'a Command {
        for name in path.split_whitespace() {
            command = command.find_subcommand(name).unwrap_or_else(|| panic!("no command `{path}`"));
        }
        command
    }

    #[test]
    fn every_page_is_of_a_command_and_its_flags() {
        let command = whole_command();
        for page in PAGES {
            let command = command_at(&command, page.command);
            for shown in page.shown {
                assert!(command.get_arguments().any(|arg| arg.get_id() == shown), "{}: {shown}", page.command);
            }
        }
    }

    #[test]
    fn every_example_is_understood() {
        let mut tried = 0;
        for page in PAGES {
            let whole = page.below.replace("\\\n", " ");
            for line in whole.lines().filter_map(|line| line.strip_prefix("  lorabooth ")) {
                let line = line.split(" < ").next().unwrap().split(" > ").next().unwrap();
                // Words, with those in quotes as one.
                let mut words = vec!["lorabooth".to_owned()];
                for (i, part) in line.split('\'').enumerate() {
                    match i % 2 {
                        0 => words.extend(part.split_whitespace().map(str::to_owned)),
                        _ => words.push(part.to_owned()),
                    }
                }
                let args = arguments::expand(words.iter().map(Into::into).collect()).unwrap().args;
                if let Err(error) = whole_command().try_get_matches_from(args) {
                    panic!("{line}: {error}");
                }
                tried += 1;
            }
        }
        assert!(tried > 20, "{tried}");
    }

    #[test]
    fn short_help_shows_about_a_dozen_flags_and_long_help_all() {
        for path in ["train dreambooth", "train llm", "generate", "complete", "evaluate", "plan dreambooth"] {
            let mut words = vec!["lorabooth"];
            words.extend(path.split(' '));
            let help = |flag: &str| {
                let words = words.iter().copied().chain([flag]);
                whole_command().try_get_matches_from(words).unwrap_err().to_string()
            };
            // Examples break their lines before flags.
            let options = |text: &str| text.split("\nExample").next().unwrap_or_default().to_owned();
            let flags = |text: &str| options(text).lines().filter(|line| line.trim_start().starts_with("--")).count();
            let (short, long) = (help("-h"), help("--help"));
            assert!((8..=17).contains(&flags(&short)), "{path}: {}\n{short}", flags(&short));
            assert!(flags(&long) >= flags(&short) + 3 && long.contains("Common:"), "{path}: {long}");
            assert!(short.contains("Example"), "{path}");
        }
    }

    #[test]
    fn names_that_fingers_know_are_flags_and_clash_with_none() {
        // Clap itself refuses an alias that is another flag's name.
        whole_command().debug_assert();
        let command = whole_command();
        for (path, names) in [
            ("train dreambooth", &["lr", "rank", "network-dim", "network-alpha", "steps", "batch-size", "output"][..]),
            ("train llm", &["lr", "rank", "network-dim", "network-alpha", "steps", "batch-size", "output"]),
            ("plan dreambooth", &["lr", "rank", "network-dim", "network-alpha", "steps", "batch-size", "output"]),
            ("plan llm", &["lr", "rank", "network-dim", "network-alpha", "steps", "batch-size", "output"]),
            ("generate", &["steps", "batch-size", "output", "output-dir"]),
            ("demo", &["steps", "output"]),
            ("adapter merge", &["output", "output-dir"]),
            ("adapter convert", &["output", "output-dir"]),
            ("evaluate", &["output"]),
        ] {
            let command = command_at(&command, path);
            for name in names {
                let has = |arg: &clap::Arg| {
                    arg.get_long() == Some(name)
                        || arg.get_visible_aliases().is_some_and(|aliases| aliases.contains(name))
                };
                assert!(command.get_arguments().any(has), "{path} --{name}");
            }
        }
    }
}
