//! Whatever is wrong with options, photos or places to write to, the answer is one plain line, exit 1 or 2, and no half-written output.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::complaints::{replace_by, Complaints, ODD};
use crate::support::dreambooth_commands::{generate, train};
use crate::support::words;
use crate::support::{lorabooth, lorabooth_ok, model, photos};
use serde_json::Value;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Flags, the exit code, and what the answer names.
type Nonsense = (&'static str, i32, &'static [&'static str]);

const TRAINING_OPTIONS: &[Nonsense] = &[
    ("--lora-r 0", 1, &["--lora-r"]),
    ("--lora-r -4", 1, &["--lora-r", "-4"]),
    ("--lora-r 1000000000000", 1, &["--lora-r"]),
    ("--lora-r many", 2, &["--lora-r", "many"]),
    ("--train-text-encoder --lora-text-encoder-r 0", 1, &["--lora-text-encoder-r"]),
    ("--learning-rate nan", 1, &["--learning-rate"]),
    ("--learning-rate inf", 1, &["--learning-rate"]),
    ("--learning-rate -1e-4", 1, &["--learning-rate", "-"]),
    ("--lora-dropout 1.5", 1, &["--lora-dropout", "1.5"]),
    ("--lora-dropout nan", 1, &["--lora-dropout"]),
    ("--lora-alpha nan", 1, &["--lora-alpha"]),
    ("--resolution 0", 1, &["--resolution", "8"]),
    ("--resolution 33", 1, &["--resolution", "32"]),
    ("--resolution -8", 2, &["--resolution"]),
    ("--resolution 1000000", 1, &["--resolution"]),
    ("--train-batch-size 0", 1, &["--train-batch-size"]),
    ("--train-batch-size 1.5", 2, &["--train-batch-size"]),
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
    ("--lora-alpha 0", 1, &["--lora-alpha", "changes nothing"]),
    ("--lora-alpha 1e300", 1, &["--lora-alpha", "1e300", "1000000"]),
    ("--lora-text-encoder-alpha 1e300", 1, &["--lora-text-encoder-alpha"]),
    ("--learning-rate 1e300", 1, &["--learning-rate", "1000"]),
    ("--prior-loss-weight 1e300", 1, &["--prior-loss-weight"]),
    ("--prior-loss-weight -1", 1, &["--prior-loss-weight"]),
    ("--adam-beta1 1.0", 1, &["--adam-beta1"]),
    ("--adam-epsilon 1e300", 1, &["--adam-epsilon"]),
    ("--adam-weight-decay 1e300", 1, &["--adam-weight-decay"]),
    ("--snr-gamma 1e300", 1, &["--snr-gamma"]),
    ("--noise-offset 1e300", 1, &["--noise-offset"]),
    ("--max-grad-norm 0", 1, &["--max-grad-norm", "1e9"]),
    ("--keep-checkpoints 0", 1, &["--keep-checkpoints"]),
    ("--max-train-steps 99999999999", 1, &["--max-train-steps"]),
    ("--train-batch-size 99999999999", 1, &["--train-batch-size"]),
    ("--validation-prompt x --num-validation-images 99999999999", 1, &["--num-validation-images"]),
    ("--validation-prompt x --num-validation-images 0", 1, &["--num-validation-images"]),
    ("--with-prior-preservation --class-prompt x --class-data-dir /nowhere --num-class-images 0", 1, &["/nowhere"]),
    ("--with-prior-preservation --class-prompt x --class-data-dir x --num-class-images 99999999999", 1, &["-images"]),
    ("--logging-dir ../logs", 1, &["--logging-dir", "../logs", "absolute"]),
    ("--logging-dir .", 1, &["--logging-dir"]),
    ("--logging-dir unet", 1, &["--logging-dir", "unet"]),
    ("--logging-dir checkpoint-1", 1, &["--logging-dir", "another name"]),
    ("--lora-rank-pattern to_q", 2, &["--lora-rank-pattern", "to_q=16"]),
    ("--lora-rank-pattern to_q=0", 1, &["--lora-rank-pattern", "to_q"]),
    ("--lora-rank-pattern to_w=4", 1, &["rank_pattern", "to_w"]),
    ("--lora-rank-pattern {\"(\":4}", 1, &["regular expression"]),
    ("--lora-alpha-pattern to_q=1e300", 1, &["--lora-alpha-pattern", "to_q"]),
    ("--lora-alpha-pattern to_w=4", 1, &["alpha_pattern", "to_w"]),
    ("--lora-exclude-modules to_q,to_v", 1, &["excluded"]),
    ("--lora-exclude-modules to_w", 1, &["exclude_modules"]),
    ("--lora-modules-to-save conv_inn", 1, &["modules_to_save", "conv_inn"]),
    ("--lora-init pissa", 2, &["--lora-init", "gaussian"]),
    ("--lr-num-cycles 18446744073709551615", 1, &["--lr-num-cycles", "1000000000"]),
    ("--lr-warmup-steps 9223372036854775808", 1, &["--lr-warmup-steps"]),
    ("--num-train-epochs 9223372036854775808", 1, &["--num-train-epochs"]),
    ("--gradient-accumulation-steps 9223372036854775808", 1, &["--gradient-accumulation-steps"]),
    ("--train-batch-size 9223372036854775808", 1, &["--train-batch-size"]),
    ("--lora-r 9223372036854775807", 1, &["--lora-r"]),
    ("--lora-r 9223372036854775808", 2, &["--lora-r"]),
    ("--threads 99999", 2, &["--threads"]),
    ("--seed 18446744073709551616", 2, &["--seed"]),
];

const DRAWING_OPTIONS: &[Nonsense] = &[
    ("--height 33", 1, &["--height", "32"]),
    ("--width 0", 1, &["--width"]),
    ("--width -8", 1, &["--width"]),
    ("--steps 0", 1, &["--steps"]),
    ("--steps -1", 2, &["--steps"]),
    ("--steps 100000", 1, &["--steps", "1000"]),
    ("--steps 9223372036854775807", 1, &["--steps", "1000"]),
    ("--steps 9223372036854775808", 1, &["--steps", "1000"]),
    ("--steps 18446744073709551615", 1, &["--steps", "1000"]),
    ("--steps 18446744073709551616", 2, &["--steps"]),
    ("--num-images 9223372036854775808", 1, &["--num-images", "100000"]),
    ("--batch-size 18446744073709551615", 1, &["--batch-size", "100000"]),
    ("--height -9223372036854775808", 1, &["--height"]),
    ("--height 9223372036854775807", 1, &["--height", "8192"]),
    ("--guidance-scale -inf", 1, &["--guidance-scale"]),
    ("--lora x=1e300", 1, &["1e300", "1000"]),
    ("--height 16384", 1, &["--height", "8192"]),
    ("--width 99999999999", 1, &["--width", "8192"]),
    ("--num-images 99999999999", 1, &["--num-images", "100000"]),
    ("--batch-size 0", 1, &["--batch-size"]),
    ("--guidance-scale 1e300", 1, &["--guidance-scale", "1000"]),
    ("--num-images 0", 1, &["--num-images"]),
    ("--guidance-scale nan", 1, &["--guidance-scale"]),
    ("--scheduler magic", 2, &["magic", "euler"]),
    ("--lora /nowhere", 1, &["/nowhere"]),
    ("--lora /nowhere=strong", 1, &["strong"]),
    ("--output /dev/null/image.png", 1, &["/dev/null"]),
];

#[test]
fn options_that_make_no_sense_are_refused_by_their_flag() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for &(more, code, expected) in TRAINING_OPTIONS {
        let more: Vec<&str> = more.split(' ').collect();
        let args = train(&model("tiny"), &photos(3, 0), &out, &more);
        complaints.refused(&more.join(" "), &args, code, expected);
        complaints.check(&format!("{more:?}: something is left"), !out.exists());
        fs::remove_dir_all(&out).ok();
    }
    let picture = folder.path().join("image.png");
    for &(more, code, expected) in DRAWING_OPTIONS {
        let more: Vec<&str> = more.split(' ').collect();
        complaints.refused(&more.join(" "), &generate(&model("tiny"), &picture, &more), code, expected);
        complaints.check(&format!("{more:?}: a picture is left"), !picture.exists());
    }
    for args in ["", "trian dreambooth", "train", "train dreambooth", "generate", "adapter", "tokenize --model"] {
        let output = lorabooth(&words(args));
        complaints.check(&format!("`{args}`: {}", output.status), output.status.code() == Some(2));
    }
}

/// Writes files into a folder of its own.
fn folder_of(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// A PNG whose header claims `width` x `height` pixels, and which holds all of them where `whole`, as black.
fn huge_png(width: u32, height: u32, whole: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().unwrap();
    if whole {
        writer.write_image_data(&vec![0; width.div_ceil(8) as usize * height as usize]).unwrap();
    } else {
        writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    }
    drop(writer);
    bytes
}

#[test]
fn photos_that_are_none_are_named_and_skipped() {
    let mut complaints = Complaints::default();
    let good = fs::read(photos(3, 0).join("00.png")).unwrap();
    let (cut, claims, bomb) =
        (&good[..good.len() / 2], huge_png(65_000, 65_000, false), huge_png(20_000, 16_000, true));
    let bad: [(&str, &[u8], &str); 8] = [
        ("cut.png", cut, "damaged"),
        ("empty.jpg", b"", "empty"),
        ("claims.png", &claims, "65000 x 65000"),
        ("bomb.png", &bomb, "20000 x 16000"),
        ("notes.docx", b"PK\x03\x04 no image", "no image"),
        ("fake.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0", ""),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        ("line\nend\x1b[31m.jpg", b"hello", "no image"),
    ];
    for (name, bytes, says) in &bad {
        let folder = folder_of(&[(name, bytes)]);
        let out = folder.path().join("out");
        let args = train(&model("tiny"), folder.path(), &out, &[]);
        let first = name.split('\n').next().unwrap();
        complaints.refused(&format!("{name:?} alone"), &args, 1, &[says, first, "put JPEG"]);
        complaints.check(&format!("{name:?}: something is left"), !out.exists());
    }
    let all: Vec<(&str, &[u8])> =
        bad.iter().map(|(name, bytes, _)| (*name, *bytes)).chain([("good.png", &good[..])]).collect();
    let (folder, output) = (folder_of(&all), tempfile::tempdir().unwrap());
    let out = lorabooth(&train(&model("tiny"), folder.path(), &output.path().join("out"), &[]));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    complaints.check(&format!("one good photo: {text}"), out.status.success());
    // Three are no images of any kind.
    complaints.check(&format!("a line for each reason: {text}"), text.lines().count() == bad.len() - 2);
    complaints.check(&format!("an escape sequence came through: {text:?}"), !text.contains('\x1b'));
    for (name, _, _) in bad.iter().filter(|(name, ..)| !name.contains('\n')) {
        complaints.check(&format!("{name} is not named in {text}"), text.contains(name));
    }
    for (what, folder) in [
        ("an empty folder", tempfile::tempdir().unwrap().path().to_owned()),
        ("a folder of captions", folder_of(&[("a.txt", b"dog")]).path().to_owned()),
    ] {
        fs::create_dir_all(&folder).unwrap();
        let out = output.path().join("none");
        let expected = [folder.to_str().unwrap(), "no image"];
        complaints.refused(what, &train(&model("tiny"), &folder, &out, &[]), 1, &expected);
        complaints.check(&format!("{what}: something is left"), !out.exists());
        fs::remove_dir_all(&folder).ok();
    }
    let nowhere = Path::new("/nowhere/photos");
    complaints.refused(
        "no folder",
        &train(&model("tiny"), nowhere, &output.path().join("none"), &[]),
        1,
        &["/nowhere/photos"],
    );
    let file = folder.path().join("good.png");
    complaints.refused("a file", &train(&model("tiny"), &file, &output.path().join("none"), &[]), 1, &["good.png"]);
}

#[test]
fn a_caption_that_is_no_text_is_refused_by_name() {
    let mut complaints = Complaints::default();
    let good = fs::read(photos(3, 0).join("00.png")).unwrap();
    for (what, caption) in [("Latin-1", &b"caf\xe9"[..]), ("too long", &vec![b'a'; 3 << 20])] {
        let folder = folder_of(&[("dog.png", &good), ("dog.txt", caption)]);
        let out = folder.path().join("out");
        complaints.refused(what, &train(&model("tiny"), folder.path(), &out, &[]), 1, &["dog.txt"]);
        complaints.check(&format!("{what}: something is left"), !out.exists());
    }
    for (odd, name) in ODD {
        let folder = folder_of(&[("dog.png", &good)]);
        replace_by(&folder.path().join("dog.txt"), odd);
        let args = train(&model("tiny"), folder.path(), &folder.path().join("out"), &[]);
        complaints.refused_at_once(odd, &args, 1, &["dog.txt", name]);
    }
    // File names, unlike captions, may be any bytes.
    let folder = folder_of(&[("dog.png", &good)]);
    let odd = std::ffi::OsString::from_vec(b"d\xffg.png".to_vec());
    fs::rename(folder.path().join("dog.png"), folder.path().join(odd)).unwrap();
    lorabooth_ok(&train(&model("tiny"), folder.path(), &folder.path().join("out"), &[]));
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_anything_is() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    for out in [file.clone(), file.join("out"), file.join("deep/er")] {
        complaints.refused("under a file", &train(&model("tiny"), &photos(3, 0), &out, &[]), 1, &["file"]);
    }
    complaints.refused("under a file", &generate(&model("tiny"), &file.join("image.png"), &[]), 1, &["file"]);
    complaints.check("the file was changed", fs::read(&file).unwrap() == b"mine");

    let out = folder.path().join("run");
    let args = train(&model("tiny"), &photos(3, 0), &out, &[]);
    lorabooth_ok(&args);
    let adapter = || fs::read(out.join("unet/adapter_model.safetensors")).unwrap();
    let before = adapter();
    complaints.refused("another run", &args, 1, &["another run", "--resume", "--overwrite"]);
    complaints.check("the other run was changed", adapter() == before);
    let theirs = ["mine.txt", "unet/mine.txt", "checkpoint-1/mine.txt", "logs/mine.txt"];
    for name in theirs {
        fs::write(out.join(name), "mine").unwrap();
    }
    let overwrite = [&args[..], &words("--overwrite --seed 9")].concat();
    lorabooth_ok(&overwrite);
    complaints.check("the run was not replaced", adapter() != before);
    for name in theirs {
        complaints.check(&format!("{name} is gone"), out.join(name).exists());
    }
    // What is refused does not cost the run that is there.
    let before = adapter();
    let refused = [&args[..], &words("--overwrite --lora-targets to_w")].concat();
    complaints.refused("--overwrite of nothing", &refused, 1, &["to_w"]);
    complaints.check("a refused run removed another one", adapter() == before && out.join("run.json").exists());
}

/// A small file system of its own, where this process may mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_full_or_read_only_disk_is_a_plain_sentence() {
    let mut complaints = Complaints::default();
    // Full from the start; then so that a checkpoint, the adapter or a picture does not fit.
    for size in ["4k", "64k", "200k", "1m", "2m"] {
        let Some(disk) = SmallDisk::mount(&format!("size={size}")) else { return };
        let out = disk.0.path().join("out");
        let more = words("--lora-targets all-linear --lora-r 32 --max-train-steps 3 --checkpointing-steps 1");
        let args = [train(&model("tiny"), &photos(3, 0), &out, &[]), more].concat();
        complaints.refused(size, &args, 1, &["no space left on device"]);
        let whole = |path: &Path| tch::Tensor::read_safetensors(path).is_ok();
        for path in files(disk.0.path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let good = match name.rsplit('.').next() {
                Some("safetensors") => whole(&path),
                Some("json") => serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).is_ok(),
                _ => true,
            };
            complaints.check(&format!("{size}: {} is torn", path.display()), good && !name.starts_with('.'));
        }
    }
    let Some(disk) = SmallDisk::mount("size=4k") else { return };
    let picture = disk.0.path().join("image.png");
    complaints.refused("a picture", &generate(&model("tiny"), &picture, &["--height", "64"]), 1, &["no space left"]);
    complaints.check("half a picture", !picture.exists());
    let run = tempfile::tempdir().unwrap();
    lorabooth_ok(&train(&model("tiny"), &photos(3, 0), run.path(), &["--train-text-encoder", "--lora-r", "32"]));
    let (run, tiny) = (run.path().display().to_string(), model("tiny").display().to_string());
    for size in ["4k", "1m"] {
        let Some(disk) = SmallDisk::mount(&format!("size={size}")) else { return };
        let at = |name: &str| disk.0.path().join(name).display().to_string();
        let none = |complaints: &mut Complaints, what: &str, words: &[&str]| {
            let args: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            complaints.refused(what, &args, 1, &["no space left on device", &at("")]);
            let left: Vec<_> = fs::read_dir(disk.0.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            complaints.check(&format!("{size}: {what} left {left:?}"), left.is_empty());
        };
        let merged = at("merged");
        none(
            &mut complaints,
            "merge",
            &["adapter", "merge", "--model", &tiny, "--lora", &run, "--output-dir", &merged],
        );
        if size == "4k" {
            for (to, output) in [("peft", at("peft")), ("diffusers", at("diffusers")), ("kohya", at("a.safetensors"))] {
                none(&mut complaints, to, &["adapter", "convert", &run, "--to", to, "--output", &output]);
            }
        }
    }
    let Some(disk) = SmallDisk::mount("ro") else { return };
    let out = disk.0.path().join("out");
    for output in ["image.png", "new/image.png", "new"] {
        let args = generate(&model("tiny"), &disk.0.path().join(output), &[]);
        complaints.refused("read-only picture", &args, 1, &["read-only"]);
    }
    complaints.refused("read-only", &train(&model("tiny"), &photos(3, 0), &out, &[]), 1, &["read-only"]);
}

/// All files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn mistakes_in_a_toml_file_are_told_with_its_name() {
    let mut complaints = Complaints::default();
    let cases: [(&str, i32, &[&str]); 9] = [
        ("lora_rank = 4", 2, &["`lora_rank`", "`lora_r`"]),
        ("lora_r = \"four\"", 2, &["--lora-r", "four"]),
        ("lora_r = true", 2, &["--lora-r"]),
        ("lora_r = 0", 1, &["--lora-r"]),
        ("lora_r = 4\nlora_r = 5", 2, &["duplicate", "line 2"]),
        ("lora_r = ", 2, &["TOML"]),
        ("[train]\nlora_r = 4", 2, &["train"]),
        ("lora_targets = [1, 2]", 2, &["lora_targets"]),
        ("center_crop = \"yes\"", 2, &["`center_crop`"]),
    ];
    for (text, code, expected) in cases {
        let folder = folder_of(&[("run.toml", text.as_bytes())]);
        let (file, out) = (folder.path().join("run.toml"), folder.path().join("out"));
        let args = train(&model("tiny"), &photos(3, 0), &out, &["--config", file.to_str().unwrap()]);
        let expected: Vec<&str> = expected.iter().copied().chain((code == 2).then_some("run.toml")).collect();
        complaints.refused(text, &args, code, &expected);
        complaints.check(&format!("{text}: something is left"), !out.exists());
    }
    let folder = folder_of(&[]);
    let odd_file = folder.path().join("odd.toml");
    for (odd, name) in ODD {
        replace_by(&odd_file, odd);
        let flags = ["--config", odd_file.to_str().unwrap()];
        let args = train(&model("tiny"), &photos(3, 0), Path::new("/tmp/none"), &flags);
        complaints.refused_at_once(odd, &args, 2, &["odd.toml", name]);
    }
    let args = train(&model("tiny"), &photos(3, 0), Path::new("/tmp/none"), &["--config", "/nowhere.toml"]);
    complaints.refused("no TOML file", &args, 2, &["/nowhere.toml"]);
}

#[test]
fn adapter_and_plan_and_tokenize_refuse_what_they_cannot_read() {
    let mut complaints = Complaints::default();
    let folder = folder_of(&[("lines.json", b"\"dog\"\nnot json\n"), ("x.safetensors", b"12345678{}")]);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (tiny, lines, broken) = (model("tiny").display().to_string(), path("lines.json"), path("x.safetensors"));
    for (odd, name) in ODD {
        let file = folder.path().join("odd.json");
        replace_by(&file, odd);
        let line = format!("tokenize --model {tiny} --json-lines {}", file.display());
        complaints.refused_at_once(odd, &words(&line), 1, &["odd.json", name]);
    }
    let cases: Vec<(String, i32, &[&str])> = vec![
        (format!("tokenize --model {tiny} --json-lines {lines}"), 1, &["line 2"]),
        (format!("tokenize --model {tiny} --json-lines /nowhere"), 1, &["/nowhere"]),
        (format!("tokenize --model {tiny}"), 2, &["<PROMPT>"]),
        (format!("adapter inspect {broken}"), 1, &["x.safetensors"]),
        (format!("adapter inspect {tiny}"), 1, &["tiny"]),
        ("adapter inspect /nowhere".to_owned(), 1, &["/nowhere"]),
        (format!("plan --model {tiny} --resolution 33"), 1, &["--resolution", "32"]),
        (format!("plan --model {tiny} --resolution 0"), 1, &["--resolution"]),
        (format!("plan --model {tiny} --resolution 32 --fit lots"), 2, &["lots"]),
        (format!("plan --model {tiny} --resolution 32 --fit -1GB"), 2, &["-1GB"]),
        (format!("plan --model {tiny} --resolution 32 --lora-targets to_w"), 1, &["to_w"]),
        (format!("plan --model {tiny} --resolution 32 --lora-r 0"), 1, &["--lora-r"]),
    ];
    for (line, code, expected) in cases {
        complaints.refused(&line, &words(&line), code, expected);
    }
}
