//! Whatever is wrong with a model or an adapter, the answer is one plain line, exit 1, and no half-written output.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::complaints::{replace_by, Complaints, ODD};
use crate::support::dreambooth_commands::{generate, train};
use crate::support::words;
use crate::support::{self, lorabooth_ok, model, photos, read_json};
use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

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
    ("no file", |path| fs::remove_file(path).unwrap(), &["unet", "no .safetensors weights"]),
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
    let run = read_json(out.join("run.json"));
    let says_why = run["error"].as_str().is_some_and(|error| error.contains("not a number"));
    complaints.check(&format!("run.json says {run}"), run["status"] == "failed" && says_why);
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
        for text in ["", "{", "[]", "{\"a\":1}}"] {
            let (folder, config) = model_with_its_own(file);
            fs::write(config, text).unwrap();
            let out = folder.path().join("out");
            let what = format!("{file} is {text:?}");
            complaints.refused(&what, &train(folder.path(), &photos(3, 0), &out, &[]), 1, &[name]);
            complaints.check(&format!("{what}: something is left"), !out.exists());
        }
    }
    let absurd: Vec<(&str, &str, Value)> = vec![
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
        (files[0], "in_channels", json!(5)),
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
        complaints.refused(&what, &train(folder.path(), &photos(3, 0), &out, &[]), 1, &[file, key]);
        complaints.check(&format!("{what}: something is left"), !out.exists());
    }
    for (key, value) in [("beta_start", json!(-1)), ("beta_schedule", json!("wild")), ("trained_betas", json!([2.0]))] {
        let (folder, config) = model_with_its_own(files[3]);
        edit_json(&config, |config| config[key] = value);
        let picture = folder.path().join("image.png");
        complaints.refused(key, &generate(folder.path(), &picture, &[]), 1, &["beta", files[3]]);
        complaints.check(&format!("{key}: a picture is left"), !picture.exists());
    }
}

#[test]
fn models_that_are_none_are_refused() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["model.ckpt", "model.bin", "model.pt", "model.safetensors", "model.txt"] {
        fs::write(path(name), b"\x80\x02}q\x00.").unwrap();
    }
    fs::create_dir(path("empty")).unwrap();
    let (pickled, weights) = model_with_its_own(UNET);
    fs::rename(&weights, weights.with_extension("bin")).unwrap();
    let models: Vec<(PathBuf, &[&str])> = vec![
        (path("model.ckpt"), &["pickle", "safetensors"]),
        (path("model.bin"), &["pickle", "safetensors"]),
        (path("model.pt"), &["pickle", "safetensors"]),
        (pickled.path().to_owned(), &["pickle", ".bin"]),
        (path("model.safetensors"), &["not a whole safetensors file"]),
        (path("model.txt"), &["model.txt"]),
        (path("empty"), &["empty"]),
        (path("absent"), &["absent"]),
        (PathBuf::from("nobody/such-a-model"), &["nobody/such-a-model"]),
        (PathBuf::from("../"), &["../"]),
        (PathBuf::from("/dev/zero"), &["/dev/zero"]),
    ];
    for (model, expected) in models {
        let (what, out) = (model.display().to_string(), path("out"));
        complaints.refused(&what, &train(&model, &photos(3, 0), &out, &[]), 1, expected);
        complaints.refused(&what, &generate(&model, &path("image.png"), &[]), 1, expected);
        if model != pickled.path() {
            complaints.refused(&what, &words(&format!("plan --model {what}")), 1, expected);
            complaints.refused(&what, &words(&format!("tokenize dog --model {what}")), 1, &[]);
        }
        complaints.check(&format!("{what}: something is left"), !out.exists() && !path("image.png").exists());
    }
}

#[test]
fn files_of_a_model_that_are_no_regular_files_are_refused_by_name() {
    let mut complaints = Complaints::default();
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name_of_tokens = |model: &Path| match model.join("tokenizer/tokenizer.json").exists() {
        true => "tokenizer/tokenizer.json",
        false => "tokenizer/vocab.json",
    };
    let files = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        name_of_tokens(&model("tiny")),
        UNET,
    ];
    for (index, file) in files.into_iter().enumerate() {
        for (odd, name) in ODD {
            // A weight file may be as large as it is.
            if file == UNET && name == "too large" {
                continue;
            }
            let model_folder = folder.path().join(format!("{index} {odd}"));
            link(&model("tiny"), &model_folder);
            replace_by(&model_folder.join(file), odd);
            let what = format!("{file} is {odd}");
            let last = file.rsplit('/').next().unwrap();
            let picture = out.path().join("image.png");
            complaints.refused_at_once(&what, &generate(&model_folder, &picture, &[]), 1, &[last, name]);
            complaints.check(&format!("{what}: a picture is left"), !picture.exists());
        }
    }
    let adapter = folder.path().join("adapter");
    lorabooth_ok(&train(&model("tiny"), &photos(3, 0), &adapter, &["--max-train-steps", "0"]));
    for (file, odds) in [("adapter_config.json", &ODD[..]), ("adapter_model.safetensors", &ODD[..3])] {
        let own = folder.path().join("own").join(file);
        fs::create_dir_all(own.join("unet")).unwrap();
        for entry in fs::read_dir(adapter.join("unet")).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&entry, own.join("unet").join(entry.file_name().unwrap())).unwrap();
        }
        for (odd, name) in odds {
            replace_by(&own.join("unet").join(file), odd);
            let args = [words("adapter inspect"), vec![own.display().to_string()]].concat();
            complaints.refused_at_once(&format!("{file} is {odd}"), &args, 1, &[file, name]);
        }
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused_where_one_of_them_is_used() {
    let mut complaints = Complaints::default();
    let (folder, vocabulary) = model_with_its_own("tokenizer/vocab.json");
    edit_json(&vocabulary, |tokens| {
        let word = tokens.as_object().unwrap().keys().find(|token| *token == "s</w>").cloned();
        let word = word.unwrap_or_else(|| "<|endoftext|>".to_owned());
        tokens[word] = json!(99_999);
    });
    fs::remove_file(folder.path().join("tokenizer/tokenizer.json")).ok();
    let out = folder.path().join("out");
    let args = train(folder.path(), &photos(3, 0), &out, &["--instance-prompt", "s"]);
    complaints.refused("training", &args, 1, &["99999", "text encoder embeds", "tokenizer of this model"]);
    complaints.check("something is left", !out.exists());
    let picture = folder.path().join("image.png");
    let args = generate(folder.path(), &picture, &["--prompt", "s"]);
    complaints.refused("drawing", &args, 1, &["99999", "text encoder embeds"]);
    let (folder, config) = model_with_its_own("tokenizer/tokenizer_config.json");
    edit_json(&config, |config| config["model_max_length"] = json!(500));
    let args = generate(folder.path(), &picture, &[]);
    complaints.refused("more positions", &args, 1, &["500", "77 positions"]);
}

#[test]
fn merging_carries_no_file_from_outside_the_model() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (secret, adapter, own) = (path("secret"), path("adapter"), path("own"));
    fs::write(&secret, "hush").unwrap();
    lorabooth_ok(&train(&model("tiny"), &photos(3, 0), &adapter, &["--max-train-steps", "0"]));
    let copied = std::process::Command::new("cp").arg("-r").args([&model("tiny"), &own]).status();
    assert!(copied.unwrap().success());
    let merge = |model: &Path, out: &Path| {
        let mut args = words("adapter merge --lora");
        args.extend(
            [&adapter, Path::new("--model"), model, Path::new("--output-dir"), out].map(|p| p.display().to_string()),
        );
        args
    };
    let out = path("merged");
    for name in ["unet/README.md", "tokenizer/notes.txt"] {
        symlink(&secret, own.join(name)).unwrap();
        complaints.refused_at_once(name, &merge(&own, &out), 1, &[name, "link", "outside"]);
        complaints.check("something is left", !out.exists());
        fs::remove_file(own.join(name)).unwrap();
    }
    symlink(folder.path(), own.join("safety_checker")).unwrap();
    complaints.refused_at_once("a folder", &merge(&own, &out), 1, &["safety_checker", "link", "outside"]);
    fs::remove_file(own.join("safety_checker")).unwrap();
    // What is no file is left where it is, and links inside the folder are followed.
    assert!(std::process::Command::new("mkfifo").arg(own.join("unet/pipe")).status().unwrap().success());
    symlink("config.json", own.join("unet/same.json")).unwrap();
    lorabooth_ok(&merge(&own, &out));
    complaints.check("a pipe was copied", !out.join("unet/pipe").exists());
    complaints.check("a link inside", out.join("unet/same.json").is_file() && !out.join("unet/same.json").is_symlink());
    // The hub's cache: links from a snapshot into the store of what was downloaded.
    let (snapshot, blobs) = (path("models--x/snapshots/abc"), path("models--x/blobs"));
    link(&own, &snapshot);
    fs::create_dir(&blobs).unwrap();
    for (number, file) in files(&snapshot).into_iter().filter(|file| file.is_file()).enumerate() {
        let blob = blobs.join(number.to_string());
        fs::copy(&file, &blob).unwrap();
        fs::remove_file(&file).unwrap();
        symlink(blob, file).unwrap();
    }
    let out = path("from the cache");
    lorabooth_ok(&merge(&snapshot, &out));
    complaints.check(
        "a copy of a blob",
        fs::read(out.join("unet/config.json")).unwrap() == fs::read(own.join("unet/config.json")).unwrap(),
    );
    // A store that is a link itself leads anywhere.
    fs::rename(&blobs, path("elsewhere")).unwrap();
    symlink(path("elsewhere"), &blobs).unwrap();
    complaints.refused_at_once("a store elsewhere", &merge(&snapshot, &path("none")), 1, &["link", "outside"]);
}

/// All files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (other, tiny) = (path("other"), path("tiny"));
    lorabooth_ok(&train(&model("tiny4"), &photos(3, 0), &other, &["--max-train-steps", "0", "--resolution", "64"]));
    lorabooth_ok(&train(&model("tiny"), &photos(3, 0), &tiny, &["--max-train-steps", "0"]));
    let damaged = |name: &str, breaks: &dyn Fn(&Path)| {
        let to = path(name).join("unet");
        fs::create_dir_all(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(tiny.join("unet").join(file), to.join(file)).unwrap();
        }
        breaks(&to);
        path(name)
    };
    const WEIGHTS: &str = "adapter_model.safetensors";
    const CONFIG: &str = "adapter_config.json";
    let cases: Vec<(PathBuf, &[&str])> = vec![
        (other, &["does not fit this model"]),
        (path("absent"), &["absent"]),
        (photos(3, 0), &["photos"]),
        (
            damaged("cut", &|unet| {
                fs::File::options().write(true).open(unet.join(WEIGHTS)).unwrap().set_len(5000).unwrap()
            }),
            &[WEIGHTS],
        ),
        (damaged("no-weights", &|unet| fs::remove_file(unet.join(WEIGHTS)).unwrap()), &["unet"]),
        (damaged("no-config", &|unet| fs::remove_file(unet.join(CONFIG)).unwrap()), &["unet"]),
        (damaged("broken", &|unet| fs::write(unet.join(CONFIG), "{").unwrap()), &[CONFIG]),
        (damaged("list", &|unet| fs::write(unet.join(CONFIG), "[]").unwrap()), &[CONFIG]),
        (damaged("rank-0", &|unet| edit_json(&unet.join(CONFIG), |c| c["r"] = json!(0))), &["r"]),
        (damaged("rank-4", &|unet| edit_json(&unet.join(CONFIG), |c| c["r"] = json!(4))), &["rank 4"]),
        (damaged("rank-text", &|unet| edit_json(&unet.join(CONFIG), |c| c["r"] = json!("four"))), &["r"]),
        (damaged("alpha", &|unet| edit_json(&unet.join(CONFIG), |c| c["lora_alpha"] = json!("many"))), &["lora_alpha"]),
        (damaged("method", &|unet| edit_json(&unet.join(CONFIG), |c| c["peft_type"] = json!("LOHA"))), &["LOHA"]),
        (
            damaged("targets", &|unet| edit_json(&unet.join(CONFIG), |c| c["target_modules"] = json!(["to_w"]))),
            &["to_w"],
        ),
        (
            damaged("more", &|unet| {
                edit_json(&unet.join(CONFIG), |c| c["target_modules"] = json!(["to_q", "to_k", "to_v"]))
            }),
            &["to_k"],
        ),
        (
            damaged("pickle", &|unet| fs::rename(unet.join(WEIGHTS), unet.join("adapter_model.bin")).unwrap()),
            &["pickle"],
        ),
        (
            damaged("huge", &|unet| {
                fs::write(unet.join(WEIGHTS), [&(1_u64 << 60).to_le_bytes()[..], b"{}"].concat()).unwrap()
            }),
            &[WEIGHTS],
        ),
        (
            damaged("nan", &|unet| {
                let mut bytes = fs::read(unet.join(WEIGHTS)).unwrap();
                let end = bytes.len();
                bytes[end - 4000..].fill(0xff);
                fs::write(unet.join(WEIGHTS), bytes).unwrap();
            }),
            &[WEIGHTS, "NaN"],
        ),
    ];
    for (adapter, expected) in cases {
        let (adapter, out, picture) = (adapter.to_str().unwrap(), path("out"), path("image.png"));
        let what = adapter.rsplit('/').next().unwrap();
        complaints.refused(
            &format!("--init-adapter {what}"),
            &train(&model("tiny"), &photos(3, 0), &out, &["--init-adapter", adapter]),
            1,
            expected,
        );
        complaints.check(&format!("{what}: something is left"), !out.exists());
        fs::remove_dir_all(&out).ok();
        let args = generate(&model("tiny"), &picture, &["--lora", adapter]);
        complaints.refused(&format!("--lora {what}"), &args, 1, expected);
        complaints.check(&format!("{what}: a picture is left"), !picture.exists());
    }
    let (start, out) = (tiny.to_str().unwrap(), path("out"));
    for (flags, expected) in [
        ("--lora-r 3", &["--lora-r is 3", "has 8"][..]),
        ("--lora-targets to_k --lora-r 8", &["--lora-targets is to_k", "has to_q,to_v"]),
        ("--train-text-encoder", &["text encoder", "--train-text-encoder"]),
    ] {
        let flags = words(&format!("--init-adapter {start} {flags}"));
        let args = train(&model("tiny"), &photos(3, 0), &out, &flags.iter().map(String::as_str).collect::<Vec<_>>());
        let code = if flags.len() > 3 { 2 } else { 1 };
        complaints.refused(&format!("another adapter: {flags:?}"), &args, code, expected);
        complaints.check("another adapter: something is left", !out.exists());
    }
}
