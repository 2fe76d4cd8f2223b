//! The stand-in for a CUDA device (tests/fake_cuda): built once, brought along with a program by the system's loader, and what it counted.

use crate::support::{lorabooth_command, test_alone};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What the stand-in tells of one step, or of what came before the first.
#[derive(Debug)]
pub struct Counts(Value);

impl Counts {
    fn sum(&self, of: &str) -> i64 {
        self.0[of].as_object().unwrap().values().map(|count| count.as_i64().unwrap()).sum()
    }

    /// Kernels and copies that the device was given.
    pub fn launches(&self) -> i64 {
        self.sum("launches")
    }

    /// How often the host waited for the device.
    pub fn waits(&self) -> i64 {
        self.sum("waits")
    }

    pub fn number(&self, name: &str) -> i64 {
        self.0[name].as_i64().unwrap_or_else(|| panic!("no {name}"))
    }

    pub fn launches_of(&self, name: &str) -> i64 {
        self.0["launches"][name].as_i64().unwrap_or(0)
    }

    /// The launches by operator, the most frequent first, and the waits.
    pub fn told(&self) -> String {
        let mut launches: Vec<(&String, i64)> = self.0["launches"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, count)| (name, count.as_i64().unwrap()))
            .collect();
        launches.sort_by_key(|(_, count)| -count);
        format!("{} launches {launches:?}; waits {}", self.launches(), self.0["waits"])
    }
}

/// The folder of the built stand-in. Its sources are compiled against the libtorch that the program runs on.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda");
        let mut files: Vec<PathBuf> = std::fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let torch = libtorch();
        let mut hasher = Sha256::new();
        hasher.update(torch.as_os_str().as_encoded_bytes());
        files.iter().for_each(|file| hasher.update(std::fs::read(file).unwrap()));
        let hash: String = hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
        let own = all.join(hash);
        if !own.exists() {
            let partial = all.join(std::process::id().to_string());
            let built = Command::new(sources.join("build.sh")).args([&torch, &partial]).output().unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
            // Another test process may have been quicker; what it built is the same.
            std::fs::rename(&partial, &own).or_else(|_| std::fs::remove_dir_all(&partial)).unwrap();
        }
        own
    })
}

/// The folder that has libtorch's `lib` and `include`, as the build was told.
pub fn libtorch() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".libtorch/torch");
    std::env::var_os("LIBTORCH").map_or_else(beside, PathBuf::from).canonicalize().unwrap()
}

/// Has the system's loader bring the stand-in along with `command`.
pub fn bring_along(command: &mut Command) {
    command.env("LD_PRELOAD", folder().join("libtorch_cuda.so")).env("LD_LIBRARY_PATH", folder());
}

/// `lorabooth ARGS` with the stand-in and these variables of its own.
pub fn on_card<S: AsRef<OsStr>>(args: &[S], variables: &[(&str, &str)]) -> Output {
    let mut command = lorabooth_command(args);
    bring_along(&mut command);
    command.envs(variables.iter().copied()).output().unwrap()
}

/// The same where it must succeed; its standard error output.
pub fn on_card_ok<S: AsRef<OsStr>>(args: &[S], variables: &[(&str, &str)]) -> String {
    let output = on_card(args, variables);
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "ended with {}:\n{out}{error}", output.status);
    error
}

/// What was counted before the first step and in each of `steps` steps of `lorabooth ARGS`, which must succeed.
pub fn counted<S: AsRef<OsStr>>(args: &[S], variables: &[(&str, &str)], steps: usize) -> Vec<Counts> {
    let report = tempfile::NamedTempFile::new().unwrap();
    let path = report.path().to_str().unwrap();
    on_card_ok(args, &[variables, &[("FAKE_CUDA_REPORT", path)]].concat());
    let text = std::fs::read_to_string(path).unwrap();
    let counts: Vec<Counts> = text.lines().map(|line| Counts(serde_json::from_str(line).unwrap())).collect();
    assert!(counts.len() > steps, "{} lines for {steps} steps", counts.len());
    counts.into_iter().take(steps + 1).collect()
}

/// In the process that is on the stand-in: the folder in which its report and its standard error output, `said`, are.
const FOLDER: &str = "LORABOOTH_TEST_FOLDER";

/// Makes the test `name` in a process of its own that has the stand-in, where this is not yet that: it is given that one's folder.
/// What Python makes is to be made before, as it is a program on libtorch too.
pub fn on_the_stand_in(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let mut own = test_alone(name);
    bring_along(&mut own);
    own.env(FOLDER, folder.path())
        .env("FAKE_CUDA_REPORT", folder.path().join("report"))
        .env("OMP_NUM_THREADS", "1")
        .env("HF_HUB_OFFLINE", "1")
        .stderr(std::fs::File::create(&said).unwrap());
    let status = own.status().unwrap();
    let said = std::fs::read_to_string(said).unwrap();
    let last: Vec<&str> = said.lines().rev().take(20).collect();
    assert!(status.success(), "{name}: {status}\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    None
}
