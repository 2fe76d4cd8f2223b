//! What the parity tests share: the Python side.

use std::path::Path;
use std::process::Command;

/// Runs `tests/reference/<script>` with the reference libraries' Python; panics with its stderr where it fails.
pub fn python(script: &str, args: &[&str]) {
    let python = std::env::var("LORABOOTH_PYTHON").unwrap_or_else(|_| {
        let home = std::env::var("HOME").expect("HOME is set");
        format!("{home}/.cache/lorabooth/venv/bin/python")
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(script);
    let output = Command::new(&python)
        .arg(&script)
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap_or_else(|error| panic!("cannot run {python}: {error}; run `make reference`"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed:\n{stderr}", script.display());
}
