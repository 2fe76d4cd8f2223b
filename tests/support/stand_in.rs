//! The stand-in for a CUDA device (tests/fake_cuda), with which the built binary runs as on a card.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use super::support::lorabooth_command;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the stand-in, built once for a test run.
static STAND_IN: LazyLock<PathBuf> = LazyLock::new(|| {
    let torch = std::env::var_os("LIBTORCH").map_or_else(|| root().join(".libtorch/torch"), PathBuf::from);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-cuda-{}", std::process::id()));
    let script = root().join("tests/fake_cuda/build.sh");
    let built = Command::new(script).args([&torch, &folder]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    folder
});

/// Runs the binary with the stand-in, whose settings are `settings`.
pub fn on_a_card<S: AsRef<std::ffi::OsStr>>(args: &[S], settings: &[(&str, &str)]) -> Output {
    let binary = lorabooth_command::<&str>(&[]);
    let mut command = Command::new(root().join("tests/fake_cuda/with.sh"));
    command.arg(&*STAND_IN).arg(binary.get_program()).args(args);
    command.env("OMP_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1");
    command.envs(settings.iter().copied()).output().unwrap()
}

/// The same to its end; its standard error output.
pub fn on_a_card_ok<S: AsRef<std::ffi::OsStr>>(args: &[S], settings: &[(&str, &str)]) -> String {
    let output = on_a_card(args, settings);
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "lorabooth ended with {}:\n{out}{error}", output.status);
    error
}
