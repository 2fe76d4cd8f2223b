//! The Python side of parity tests.

use std::path::PathBuf;
use std::process::Command;

/// Runs `tests/reference/<script> args` with the reference libraries; panics with what it wrote where it fails.
pub fn python(script: &str, args: &[&str]) {
    let python = std::env::var_os("LORABOOTH_PYTHON").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/lorabooth/venv/bin/python"),
        PathBuf::from,
    );
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(script);
    let mut command = Command::new(&python);
    command.arg(&script).args(args).env("OMP_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1");
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
    assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
}
