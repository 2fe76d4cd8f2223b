//! A command line as text for a shell, to be kept beside what it made.

use crate::options::shell_word;
use std::ffi::OsString;

/// Flags whose values are secrets.
const SECRET: &[&str] = &["--hub-token", "--token", "--wandb-key"];

/// The command line `args`, the program's name first, as a line for a shell, without secrets.
pub fn shell_line(args: &[OsString]) -> String {
    let mut line = "lorabooth".to_owned();
    let mut args = args.iter().skip(1).map(|arg| arg.to_string_lossy());
    while let Some(arg) = args.next() {
        let (name, value) = arg.split_once('=').map_or((&*arg, None), |(name, value)| (name, Some(value)));
        if SECRET.contains(&name.replace('_', "-").as_str()) {
            if value.is_none() {
                args.next();
            }
            continue;
        }
        line.push(' ');
        line.push_str(&shell_word(&arg));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_was_typed_but_for_secrets() {
        let typed =
            ["/usr/bin/lorabooth", "train", "dreambooth", "--hub_token", "hush", "--instance-prompt", "a dog's photo"];
        let more = ["--wandb-key=hush", "--lora_r=4", "--hub-token=hush", "--wandb_key", "hush", "--overwrite"];
        let args: Vec<OsString> = typed.iter().chain(&more).map(OsString::from).collect();
        let expected = r"lorabooth train dreambooth --instance-prompt 'a dog'\''s photo' --lora_r=4 --overwrite";
        assert_eq!(shell_line(&args), expected);
    }
}
