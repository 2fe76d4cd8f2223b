//! What the tests share: the Python side of a comparison.

use std::process::Command;

/// Runs `tests/reference/<script>` with the reference libraries' interpreter; its error output on failure.
pub fn python(script: &str, args: &[&str]) {
    let interpreter = std::env::var("LORABOOTH_PYTHON")
        .unwrap_or_else(|_| format!("{}/.cache/lorabooth/venv/bin/python", std::env::var("HOME").unwrap_or_default()));
    let script = format!("{}/tests/reference/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(&interpreter)
        .arg(&script)
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap_or_else(|error| panic!("{interpreter} does not start ({error}); run `make reference`"));
    assert!(output.status.success(), "{script}:\n{}", String::from_utf8_lossy(&output.stderr));
}
