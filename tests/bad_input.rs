//! Whatever is wrong with what a user gives, the answer is one plain line, exit 1 or 2, and no half-written output.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use serde_json::{json, Value};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{lorabooth, lorabooth_ok, model, photos};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// What was run, and which words of the answer were missing or should not have been there.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    /// Runs `args` and expects `code` and, in its one line of error, all of `words`.
    fn refused(&mut self, what: &str, args: &[String], code: i32, words: &[&str]) {
        let said = refusal(&lorabooth(args), code, words);
        self.0.extend(said.err().map(|complaint| format!("{what}: {complaint}")));
    }

    fn check(&mut self, what: &str, holds: bool) {
        self.0.extend((!holds).then(|| what.to_owned()));
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "{}", self.0.join("\n"));
    }
}

/// Whether a run ended as it should where something is wrong.
fn refusal(output: &Output, code: i32, words: &[&str]) -> Result<(), String> {
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

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A training command that works; what comes behind it wins.
fn train(model: &Path, photos: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let mut args = words(
        "train dreambooth --instance-prompt sks --resolution 32 --max-train-steps 1 --mixed-precision no --device cpu \
         --threads 1",
    );
    for (flag, path) in [("--model", model), ("--instance-data-dir", photos), ("--output-dir", out)] {
        args.extend([flag.to_owned(), path.display().to_string()]);
    }
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

fn generate(model: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let mut args =
        words("generate --prompt sks --steps 1 --height 32 --width 32 --device cpu --threads 1 --dtype fp32 --model");
    args.extend([model, Path::new("--output"), output].map(|path| path.display().to_string()));
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// The tiny model, whose files are links to the shared one's, with its own copy of `file`.
fn model_with_its_own(file: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    link(&model("tiny"), folder.path());
    let own = folder.path().join(file);
    let bytes = fs::read(&own).unwrap();
    fs::remove_file(&own).unwrap();
    fs::write(&own, bytes).unwrap();
    (folder, own)
}

fn link(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            link(&entry, &to);
        } else {
            symlink(entry, to).unwrap();
        }
    }
}

/// Changes the header of a safetensors file.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let parts = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]];
    fs::write(path, parts.concat()).unwrap();
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = support::read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// How a weight file can be broken, and what the answer names.
type Breakage = (&'static str, fn(&Path), &'static [&'static str]);

const CONV_IN: &str = "conv_in.weight";
const BREAKAGES: &[Breakage] = &[
    ("no file", |path| fs::remove_file(path).unwrap(), &["diffusion_pytorch_model", "unet"]),
    ("empty", |path| fs::write(path, "").unwrap(), &[UNET]),
    ("four bytes", |path| fs::write(path, "1234").unwrap(), &[UNET, "not a whole safetensors file"]),
    ("no safetensors", |path| fs::write(path, "<html>404 not found</html>").unwrap(), &[UNET, "again"]),
    (
        "a git-lfs pointer",
        |path| fs::write(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n").unwrap(),
        &[UNET, "again"],
    ),
    (
        "cut short",
        |path| fs::File::options().write(true).open(path).unwrap().set_len(100_000).unwrap(),
        &[UNET, "again"],
    ),
    (
        "a byte short",
        |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        },
        &[UNET, "again"],
    ),
    (
        "a header of 2^60 bytes",
        |path| fs::write(path, [&(1_u64 << 60).to_le_bytes()[..], b"{}"].concat()).unwrap(),
        &[UNET, "again"],
    ),
    (
        "a header of 2^64 - 1 bytes",
        |path| fs::write(path, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap(),
        &[UNET, "again"],
    ),
    (
        "offsets behind the end",
        |path| edit_header(path, |header| header[CONV_IN]["data_offsets"] = json!([0, 1_u64 << 60])),
        &[UNET],
    ),
    (
        "offsets that wrap",
        |path| edit_header(path, |header| header[CONV_IN]["data_offsets"] = json!([u64::MAX, 0])),
        &[UNET],
    ),
    (
        "overlapping tensors",
        |path| {
            edit_header(path, |header| {
                header[CONV_IN]["data_offsets"] = header["conv_out.weight"]["data_offsets"].clone()
            })
        },
        &[UNET],
    ),
    (
        "sizes that wrap",
        |path| edit_header(path, |header| header[CONV_IN]["shape"] = json!([1_u64 << 62, 4, 3, 3])),
        &[UNET],
    ),
    (
        "a missing key",
        |path| {
            edit_header(path, |header| {
                let value = header.as_object_mut().unwrap().remove(CONV_IN).unwrap();
                header["conv_inn.weight"] = value;
            })
        },
        &["no weight", CONV_IN],
    ),
    (
        "a wrong shape",
        |path| {
            edit_header(path, |header| {
                let shape = header[CONV_IN]["shape"].as_array_mut().unwrap();
                shape.swap(0, 1);
            })
        },
        &[CONV_IN, "[4, 32, 3, 3]", "[32, 4, 3, 3]"],
    ),
    ("integers", |path| edit_header(path, |header| header[CONV_IN]["dtype"] = json!("I32")), &[CONV_IN]),
];

#[test]
fn broken_weights_are_refused_by_the_name_of_their_file() {
    let mut complaints = Complaints::default();
    for (what, breaks, expected) in BREAKAGES {
        let (folder, weights) = model_with_its_own(UNET);
        breaks(&weights);
        let (out, picture) = (folder.path().join("out"), folder.path().join("image.png"));
        complaints.refused(what, &train(folder.path(), &photos(3, 0), &out, &[]), 1, expected);
        complaints.check(&format!("{what}: training left something"), !out.exists());
        complaints.refused(what, &generate(folder.path(), &picture, &[]), 1, expected);
        complaints.check(&format!("{what}: generating left something"), !picture.exists());
    }
}

#[test]
fn weights_that_are_no_numbers_stop_the_run() {
    let (folder, weights) = model_with_its_own(UNET);
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 40_000..].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    let out = folder.path().join("out");
    let mut complaints = Complaints::default();
    complaints.refused("NaN", &train(folder.path(), &photos(3, 0), &out, &[]), 1, &["not a number", "step 1"]);
    complaints.check("an adapter of no numbers", !out.join("unet").exists());
}

#[test]
fn configurations_that_are_broken_or_absurd_are_refused_by_file_and_key() {
    let mut complaints = Complaints::default();
    let files = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ];
    for file in files {
        let name = file.rsplit('/').next().unwrap();
        for text in ["", "{", "[]", "null", "\u{0}\u{1}", "{\"a\": }", "{\"a\":1}}"] {
            let (folder, config) = model_with_its_own(file);
            fs::write(config, text).unwrap();
            let out = folder.path().join("out");
            let what = format!("{file} is {text:?}");
            complaints.refused(&what, &train(folder.path(), &photos(3, 0), &out, &[]), 1, &[name]);
            complaints.check(&format!("{what}: something is left"), !out.exists());
        }
    }
    let absurd: [(&str, &str, Value); 26] = [
        (files[0], "block_out_channels", json!([])),
        (files[0], "block_out_channels", json!([32, 64, 64])),
        (files[0], "block_out_channels", json!([0, 0])),
        (files[0], "block_out_channels", json!([32, -64])),
        (files[0], "block_out_channels", json!([1_u64 << 40, 1_u64 << 40])),
        (files[0], "block_out_channels", json!("wide")),
        (files[0], "norm_num_groups", json!(7)),
        (files[0], "norm_num_groups", json!(0)),
        (files[0], "attention_head_dim", json!(0)),
        (files[0], "attention_head_dim", json!(5)),
        (files[0], "cross_attention_dim", json!(-1)),
        (files[0], "layers_per_block", json!(1_u64 << 50)),
        (files[0], "layers_per_block", json!(0)),
        (files[0], "in_channels", json!(9)),
        (files[0], "down_block_types", json!(["CrossAttnDownBlock2D", "HyperBlock"])),
        (files[1], "block_out_channels", json!([])),
        (files[1], "latent_channels", json!(0)),
        (files[1], "scaling_factor", json!(0)),
        (files[1], "norm_num_groups", json!(5)),
        (files[2], "hidden_size", json!(0)),
        (files[2], "num_attention_heads", json!(0)),
        (files[2], "num_hidden_layers", json!(-2)),
        (files[2], "vocab_size", json!(1_u64 << 60)),
        (files[2], "hidden_act", json!("tanhh")),
        (files[3], "prediction_type", json!("telepathy")),
        (files[3], "num_train_timesteps", json!(0)),
    ];
    for (file, key, value) in absurd {
        let (folder, config) = model_with_its_own(file);
        edit_json(&config, |config| config[key] = value.clone());
        let out = folder.path().join("out");
        let what = format!("{file}: {key} = {value}");
        complaints.refused(&what, &train(folder.path(), &photos(3, 0), &out, &[]), 1, &[key]);
        complaints.check(&format!("{what}: something is left"), !out.exists());
    }
    for (key, value) in [("beta_start", json!(-1)), ("beta_schedule", json!("wild")), ("trained_betas", json!([2.0]))] {
        let (folder, config) = model_with_its_own(files[3]);
        edit_json(&config, |config| config[key] = value);
        let picture = folder.path().join("image.png");
        complaints.refused(key, &generate(folder.path(), &picture, &[]), 1, &["beta"]);
        complaints.check(&format!("{key}: a picture is left"), !picture.exists());
    }
}

#[test]
fn options_that_make_no_sense_are_refused_by_their_flag() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options: [(&str, i32, &[&str]); 45] = [
        ("--lora-r 0", 1, &["--lora-r"]),
        ("--lora-r -4", 1, &["--lora-r", "-4"]),
        ("--lora-r 1000000000000", 1, &["--lora-r"]),
        ("--lora-r many", 2, &["--lora-r", "many"]),
        ("--train-text-encoder --lora-text-encoder-r 0", 1, &["--lora-text-encoder-r"]),
        ("--learning-rate nan", 1, &["learning rate"]),
        ("--learning-rate inf", 1, &["learning rate"]),
        ("--learning-rate -1e-4", 1, &["learning rate", "-"]),
        ("--lora-dropout 1.5", 1, &["--lora-dropout", "1.5"]),
        ("--lora-dropout nan", 1, &["--lora-dropout"]),
        ("--lora-alpha nan", 1, &["--lora-alpha"]),
        ("--resolution 0", 1, &["--resolution", "8"]),
        ("--resolution 33", 1, &["--resolution", "32"]),
        ("--resolution -8", 2, &["--resolution"]),
        ("--resolution 1000000", 1, &["--resolution"]),
        ("--train-batch-size 0", 1, &["--train-batch-size"]),
        ("--train-batch-size 1.5", 2, &["--train-batch-size"]),
        ("--train-batch-size 18446744073709551615", 1, &["--train-batch-size"]),
        ("--gradient-accumulation-steps 0", 1, &["--gradient-accumulation-steps"]),
        ("--checkpointing-steps 0", 1, &["--checkpointing-steps"]),
        ("--validation-prompt x --validation-steps 0", 1, &["--validation-steps"]),
        ("--adam-beta1 1", 1, &["beta"]),
        ("--adam-beta2 nan", 1, &["beta"]),
        ("--adam-epsilon -1", 1, &["eps"]),
        ("--adam-weight-decay inf", 1, &["weight"]),
        ("--max-grad-norm nan", 1, &["--max-grad-norm"]),
        ("--noise-offset inf", 1, &["--noise-offset"]),
        ("--snr-gamma -1", 1, &["--snr-gamma"]),
        ("--snr-gamma 0", 1, &["--snr-gamma"]),
        ("--lr-scheduler zigzag", 2, &["--lr-scheduler", "cosine"]),
        ("--lr-scheduler polynomial --lr-power nan", 1, &["power"]),
        ("--mixed-precision fp4", 2, &["--mixed-precision", "bf16"]),
        ("--with-prior-preservation", 1, &["--class-data-dir", "--class-prompt"]),
        ("--threads 0", 2, &["--threads"]),
        ("--device tpu", 1, &["--device", "tpu"]),
        ("--device cuda:99", 1, &["cuda:99"]),
        ("--lora-targets to_w,to_u", 1, &["to_w", "to_"]),
        ("--lora-targets to_q_proj", 1, &["to_q"]),
        ("--lora-targets (", 1, &["("]),
        ("--lora-targets ,", 1, &["target"]),
        ("--train-text-encoder --lora-text-encoder-targets q_projj", 1, &["q_proj"]),
        ("--keep-checkpoints some", 2, &["--keep-checkpoints"]),
        ("--no-such-flag", 2, &["--no-such-flag"]),
        ("--learning-rat 1", 2, &["--learning-rat", "--learning-rate"]),
        ("--resume checkpoint-7", 1, &["checkpoint-7"]),
    ];
    for (more, code, expected) in options {
        let more: Vec<&str> = more.split(' ').collect();
        let args = train(&model("tiny"), &photos(3, 0), &out, &more);
        complaints.refused(&more.join(" "), &args, code, expected);
        complaints.check(&format!("{more:?}: something is left"), !out.exists());
    }
    let picture = folder.path().join("image.png");
    let options: [(&str, i32, &[&str]); 13] = [
        ("--height 33", 1, &["--height", "32"]),
        ("--width 0", 1, &["--width"]),
        ("--width -8", 1, &["--width"]),
        ("--steps 0", 1, &["--steps"]),
        ("--steps -1", 2, &["--steps"]),
        ("--steps 100000", 1, &["steps"]),
        ("--num-images 0", 1, &["--num-images"]),
        ("--guidance-scale nan", 1, &["--guidance-scale"]),
        ("--scheduler magic", 1, &["magic", "euler"]),
        ("--lora /nowhere", 1, &["/nowhere"]),
        ("--lora /nowhere=strong", 1, &["strong"]),
        ("--height 1000000000000", 1, &["--height"]),
        ("--output /dev/null/image.png", 1, &["/dev/null"]),
    ];
    for (more, code, expected) in options {
        let more: Vec<&str> = more.split(' ').collect();
        complaints.refused(&more.join(" "), &generate(&model("tiny"), &picture, &more), code, expected);
        complaints.check(&format!("{more:?}: a picture is left"), !picture.exists());
    }
    for args in ["", "trian dreambooth", "train", "train dreambooth", "generate", "adapter", "tokenize --model"] {
        let output = lorabooth(&words(args));
        complaints.check(&format!("`{args}`: {}", output.status), output.status.code() == Some(2));
    }
}
