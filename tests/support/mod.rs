//! What the tests share: the Python reference, models that are made once, comparisons, the built binary.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

pub mod complaints;
pub mod documented;
pub mod dreambooth_commands;
pub mod dreambooth_loop;
pub mod hub_mirror;
pub mod jobs;
pub mod language;
pub mod push_hub;
pub mod stand_in;
pub mod tiny_run;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

/// Runs `tests/reference/SCRIPT ARGS` and panics with what it printed if it fails.
///
/// Two Python processes serve all tests, since importing the libraries takes seconds; a third call waits for one of them.
pub fn python(script: &str, args: &[&str]) {
    let request = json!({ "script": script, "args": args });
    // One that had nothing to do ends, and may do so just when it is asked.
    let error =
        ask_worker(&request).or_else(|| ask_worker(&request)).unwrap_or_else(|| json!("the Python process ended"));
    assert!(error.is_null(), "{script} {args:?} failed:\n{}", error.as_str().unwrap_or_default());
}

/// Runs a script in a process of its own: where its time from the start, or its memory, is measured.
pub fn python_alone(script: &str, args: &[&str]) {
    let output = interpreter().arg(script).args(args).output().unwrap_or_else(no_python);
    assert!(output.status.success(), "{script} {args:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The path `NAME` that a script was asked to write with `options` (`script.py OUT OPTIONS`).
///
/// Made at most once for one script, name and options: tests and test runs share it, so don't write there. Not for options that
/// name a temporary folder.
pub fn made(script: &str, name: &str, options: &Value) -> PathBuf {
    static MAKING: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let options = options.to_string();
    let folder = MADE.join(&hash([script, name, &options])[..16]);
    let this_one = lock(&MAKING).entry(folder.clone()).or_default().clone();
    let _one_at_a_time = lock(&this_one);
    if !folder.exists() {
        let partial = folder.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&partial).unwrap();
        python(script, &[partial.join(name).to_str().unwrap(), &options]);
        // Another test process may have been quicker; what it made is the same.
        if std::fs::rename(&partial, &folder).is_err() {
            std::fs::remove_dir_all(&partial).unwrap();
        }
    }
    folder.join(name)
}

/// A pipeline folder of random weights; `variant` is one of `tests/reference/configs.py`.
pub fn model(variant: &str) -> PathBuf {
    made("models.py", variant, &json!({ "variant": variant }))
}

/// A folder of PNG photos to train on.
pub fn photos(count: usize, seed: u64) -> PathBuf {
    made("sample_photos.py", "photos", &json!({ "count": count, "seed": seed }))
}

/// This program with the test `name` alone.
pub fn test_alone(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command
}

/// Makes the test `name` in a process of its own, where this is not yet that: dropout draws from one generator of the process, in which other
/// tests may draw. Whether it is.
pub fn in_a_process_of_its_own(name: &str) -> bool {
    const ALONE: &str = "LORABOOTH_TEST_IS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let output = test_alone(name).env(ALONE, "1").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed"), "{name}: {said}");
    false
}

/// All tensors of a safetensors file, by name.
pub fn read(path: impl AsRef<Path>) -> BTreeMap<String, Tensor> {
    let path = path.as_ref();
    Tensor::read_safetensors(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into_iter().collect()
}

/// Makes `to` a copy of the folder `from`.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        match entry.is_dir() {
            true => copy(&entry, &target),
            false => drop(std::fs::copy(&entry, &target).unwrap()),
        }
    }
}

/// A command line, word by word.
pub fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A JSON file.
pub fn read_json(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The largest absolute difference over the largest absolute value of `expected`; infinite where something is not a number.
pub fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    ratio(actual, expected, |tensor| tensor.abs().max())
}

/// The norm of the difference over the norm of `expected`; infinite where something is not a number.
pub fn relative_norm_error(actual: &Tensor, expected: &Tensor) -> f64 {
    ratio(actual, expected, Tensor::norm)
}

/// The adapters in two of PEFT's folders, each as one list of numbers, differ by less than `bound` of the norm of `wanted`.
pub fn assert_adapters(what: &str, actual: &Path, wanted: &Path, bound: f64) {
    let [actual, wanted] = [actual, wanted].map(|folder| read(folder.join("adapter_model.safetensors")));
    assert_eq!(actual.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
    let whole = |tensors: &BTreeMap<String, Tensor>| {
        Tensor::cat(&tensors.values().map(|tensor| tensor.flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let error = relative_norm_error(&whole(&actual), &whole(&wanted));
    println!("{what}: adapters within {error:.1e}");
    assert!(error < bound, "{what}: adapters differ by {error:.1e}");
}

/// Three steps of the UNet and the text encoder of a tiny Stable Diffusion, with adapters on convolutions too.
pub fn train_with_convolutions(out: &Path, more: &[&str]) {
    let (model, photos) = (model("tiny-v"), photos(3, 0));
    let flags =
        "train dreambooth --device cpu --threads 1 --quiet --mixed-precision no --resolution 128 --center-crop \
        --train-text-encoder --max-train-steps 3 --lora-targets to_q,to_v,conv1,proj_out";
    let mut args: Vec<&str> = flags.split_whitespace().collect();
    args.extend(["--instance-prompt", "a photo of sks dog", "--instance-data-dir", photos.to_str().unwrap()]);
    args.extend(["--model", model.to_str().unwrap(), "--output-dir", out.to_str().unwrap()]);
    lorabooth_ok(&[&args, more].concat());
}

/// A picture of the same model.
pub fn draw_quickly(path: &Path, more: &[&str]) {
    let flags = "generate --device cpu --threads 1 --quiet --dtype fp32 --steps 2 --prompt dog --model";
    let mut args: Vec<&str> = flags.split(' ').collect();
    let model = model("tiny-v");
    args.extend([model.to_str().unwrap(), "--output", path.to_str().unwrap()]);
    lorabooth_ok(&[&args, more].concat());
}

/// The size of the difference over that of `expected`; 0 where they are equal, be it that both are 0.
fn ratio(actual: &Tensor, expected: &Tensor, size: impl Fn(&Tensor) -> Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size(), "the shapes differ");
    let [actual, expected] = [actual, expected].map(|tensor| tensor.detach().to_kind(Kind::Double));
    let difference = size(&(actual - &expected)).double_value(&[]);
    let ratio = difference / size(&expected).double_value(&[]);
    match (difference == 0.0, ratio.is_nan()) {
        (true, _) => 0.0,
        (false, true) => f64::INFINITY,
        (false, false) => ratio,
    }
}

/// Peak signal-to-noise ratio of two images in decibels, over 8-bit RGB; infinite where they are equal.
pub fn psnr(actual: impl AsRef<Path>, expected: impl AsRef<Path>) -> f64 {
    let [actual, expected] = [actual.as_ref(), expected.as_ref()]
        .map(|path| image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).to_rgb8());
    assert_eq!(actual.dimensions(), expected.dimensions(), "the sizes differ");
    let squares = actual.iter().zip(expected.iter()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / actual.len() as f64;
    10.0 * (255.0_f64.powi(2) / mean).log10()
}

/// The built binary on one thread, not yet started.
pub fn lorabooth_command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorabooth"));
    command.args(args).env("OMP_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs the built binary on one thread.
pub fn lorabooth<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    lorabooth_command(args).output().unwrap()
}

/// Runs the built binary and panics with what it printed if it fails; its standard output otherwise.
pub fn lorabooth_ok<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = lorabooth(args);
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "lorabooth ended with {}:\n{out}{error}", output.status);
    out
}

/// The command line of `lorabooth complete` in float32 on the CPU; what comes behind it wins.
pub fn complete<'a>(model: &'a str, prompt: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = ["complete", "--device", "cpu", "--dtype", "fp32", "--json", "--model", model, "--prompt", prompt];
    [&common, more].concat()
}

/// Where this version of the scripts keeps what it made; what others left is gigabytes, so it goes.
static MADE: LazyLock<PathBuf> = LazyLock::new(|| {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reference");
    let own = all.join(&*VERSION);
    std::fs::create_dir_all(&own).unwrap();
    for stale in std::fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != own) {
        std::fs::remove_dir_all(stale).unwrap();
    }
    own
});

/// This version of the scripts.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(scripts()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    paths.sort();
    let contents: Vec<String> = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    hash(contents.iter().map(String::as_str))[..16].to_owned()
});

/// What went wrong in a script, or null; nothing where the process ended before it answered.
fn ask_worker(request: &Value) -> Option<Value> {
    static BUSY: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
    let idle = BUSY.iter().enumerate().find_map(|(number, busy)| Some((number, busy.try_lock().ok()?)));
    let (number, _busy) = idle.unwrap_or_else(|| (0, lock(&BUSY[0])));
    let mut worker = worker(number);
    let mut answer = String::new();
    writeln!(worker, "{request}").ok()?;
    BufReader::new(worker).read_line(&mut answer).ok()?;
    serde_json::from_str::<Value>(&answer).ok().map(|mut answer| answer["error"].take())
}

/// A connection to one of the Python processes of this checkout's scripts, which is started where none listens.
fn worker(number: usize) -> UnixStream {
    // A name, not a file: it goes with the process.
    let name =
        hash([env!("CARGO_TARGET_TMPDIR"), &python_path().display().to_string(), &*VERSION, &number.to_string()]);
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut started: Option<Child> = None;
    loop {
        if let Ok(stream) = UnixStream::connect_addr(&address) {
            return stream;
        }
        match &mut started {
            // It outlives this process, and so must its output.
            None => {
                started = Some(
                    interpreter().args(["worker.py", &name]).stdin(Stdio::null()).spawn().unwrap_or_else(no_python),
                )
            }
            Some(process) => {
                // Another test process may have been quicker, and has the name then.
                let ended = process.try_wait().unwrap();
                assert!(ended.is_none_or(|status| status.success()), "worker.py ended with {ended:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// The venv's Python, in the folder of the scripts.
pub fn interpreter() -> Command {
    let mut command = Command::new(python_path());
    command
        .current_dir(scripts())
        .env("OMP_NUM_THREADS", "1")
        .env("HF_HUB_OFFLINE", "1")
        .env("TRANSFORMERS_VERBOSITY", "error")
        .env("DIFFUSERS_VERBOSITY", "error")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn python_path() -> PathBuf {
    if let Some(path) = std::env::var_os("LORABOOTH_PYTHON") {
        return path.into();
    }
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("lorabooth/venv/bin/python")
}

fn no_python<T>(error: std::io::Error) -> T {
    panic!("{}: {error}; `make reference` puts the Python libraries there", python_path().display())
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}

fn hash<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update(text.len().to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lock, also after a test that held it has failed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
