//! Commands that must be refused in one plain line.

use super::lorabooth;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

/// What was run, and which words of the answer were missing or should not have been there.
#[derive(Default)]
pub struct Complaints(Vec<String>);

impl Complaints {
    /// Runs `args` and expects `code` and, in its one line of error, all of `words`.
    pub fn refused(&mut self, what: &str, args: &[String], code: i32, words: &[&str]) {
        let said = refusal(&lorabooth(args), code, words);
        self.0.extend(said.err().map(|complaint| format!("{what}: {complaint}")));
    }

    pub fn check(&mut self, what: &str, holds: bool) {
        self.0.extend((!holds).then(|| what.to_owned()));
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "{}", self.0.join("\n"));
    }
}

/// Whether a run ended as it should where something is wrong.
pub fn refusal(output: &Output, code: i32, words: &[&str]) -> Result<(), String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = text.lines().filter(|line| !line.starts_with("warning: ")).collect();
    let ours = code == 1 || !text.contains("\nUsage: ") && !text.contains("\nFor more information");
    let foreign = ["panicked", "RUST_BACKTRACE", "c10::", "torch::", ".cpp", "Exception", "internal check", "os error"];
    let complaint = if output.status.code() != Some(code) {
        format!("ended with {}", output.status)
    } else if ours && errors.len() != 1 {
        format!("{} lines", errors.len())
    } else if let Some(word) = words.iter().find(|word| !text.contains(**word)) {
        format!("no `{word}`")
    } else if let Some(word) = foreign.iter().find(|word| text.contains(**word)) {
        format!("`{word}` is no user's word")
    } else if text.len() > 1500 {
        "too long".to_owned()
    } else {
        return Ok(());
    };
    Err(format!("{complaint} in {text:?}"))
}

/// What can lie in a file's place, and what the answer calls it.
pub const ODD: [(&str, &str); 4] = [
    ("a pipe", "a named pipe"),
    ("a link to a device without end", "a device"),
    ("a folder", "a folder"),
    ("a file of 1 TB", "too large"),
];

/// Puts `odd`, one of [`ODD`], in the place of `path`.
pub fn replace_by(path: &Path, odd: &str) {
    fs::remove_file(path).ok();
    fs::remove_dir(path).ok();
    match odd {
        "a pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "a link to a device without end" => symlink("/dev/zero", path).unwrap(),
        "a folder" => fs::create_dir(path).unwrap(),
        _ => fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
    }
}

impl Complaints {
    /// The same as [`Complaints::refused`], of a command that might wait, or read, without end.
    pub fn refused_at_once(&mut self, what: &str, args: &[String], code: i32, words: &[&str]) {
        // Memory too is limited: what reads without end is stopped by one of them.
        let script = format!("ulimit -v {}; exec timeout 60 \"$0\" \"$@\"", 16 << 20);
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_lorabooth")]).args(args);
        let output = command.env("OMP_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1").output();
        let said = refusal(&output.unwrap(), code, words);
        self.0.extend(said.err().map(|complaint| format!("{what}: {complaint}")));
    }
}
