//! Pictures for a seed are those of diffusers' StableDiffusionXLPipeline.

use crate::support::{lorabooth_ok, made, model, psnr};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Of pictures that are the same, and of others.
const CLOSE: f64 = 40.0;
const FAR: f64 = 30.0;

struct Job {
    name: &'static str,
    theirs: Value,
    ours: Vec<String>,
}

/// A picture of 128 pixels in 6 steps: the names of diffusers' arguments, and the flags for the same.
fn job(name: &'static str, model: &Path, theirs: Value, ours: &[&str]) -> Job {
    let mut all = json!({ "name": name, "model": model, "prompt": "a photo of sks dog", "steps": 6, "seed": 3,
        "height": 128, "width": 128 });
    all.as_object_mut().unwrap().extend(theirs.as_object().unwrap().clone());
    let common = ["generate", "--device", "cpu", "--dtype", "fp32", "--threads", "1", "--prompt", "a photo of sks dog"];
    let sizes = ["--steps", "6", "--seed", "3", "--height", "128", "--width", "128"];
    let given = ["--model", model.to_str().unwrap()];
    let ours = [&common[..], &sizes, &given, ours].concat().into_iter().map(str::to_owned).collect();
    Job { name, theirs: all, ours }
}

fn picture(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.png"))
}

/// Draws all jobs on both sides and compares.
fn compare(folder: &Path, jobs: &[Job]) {
    let theirs = folder.join("theirs");
    let wanted: Vec<&Value> = jobs.iter().map(|job| &job.theirs).collect();
    crate::support::python("pipeline_images.py", &[theirs.to_str().unwrap(), &json!(wanted).to_string()]);
    for job in jobs {
        let path = picture(folder, job.name);
        let mut args = job.ours.clone();
        args.extend(["--output".to_owned(), path.to_str().unwrap().to_owned()]);
        lorabooth_ok(&args);
        let found = psnr(&path, theirs.join(format!("{}-0.png", job.name)));
        println!("{}: {found:.1} dB", job.name);
        assert!(found >= CLOSE, "{} is {found:.1} dB from the reference", job.name);
    }
}

fn adapter() -> PathBuf {
    let text =
        |r: i64| json!({ "r": r, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"] });
    made(
        "adapters.py",
        "adapter",
        &json!({
            "model": model("tiny-xl"), "formats": ["peft", "diffusers", "kohya"], "outputs": false,
            "unet": { "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"] },
            "text_encoder": text(3), "text_encoder_2": text(2),
        }),
    )
}

#[test]
fn six_samplers_draw_the_pictures_of_diffusers_with_and_without_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let xl = model("tiny-xl");
    let peft = adapter().join("peft");
    let lora = format!("{}=0.6", peft.display());
    let mut jobs = Vec::new();
    for (plain, with, sampler) in [
        ("euler", "euler+", "euler"),
        ("ddim", "ddim+", "ddim"),
        ("euler-a", "euler-a+", "euler-a"),
        ("heun", "heun+", "heun"),
        ("dpm++2m", "dpm++2m+", "dpm++2m"),
        ("dpm++2m-karras", "dpm++2m-karras+", "dpm++2m-karras"),
        ("unipc", "unipc+", "unipc"),
    ] {
        jobs.push(job(plain, &xl, json!({ "scheduler": sampler }), &["--scheduler", sampler]));
        let theirs = json!({ "scheduler": sampler, "loras": [{ "peft": peft, "scale": 0.6 }] });
        jobs.push(job(with, &xl, theirs, &["--scheduler", sampler, "--lora", &lora]));
    }
    let second = made(
        "adapters.py",
        "adapter",
        &json!({ "model": xl, "seed": 2, "outputs": false, "unet": { "r": 3, "lora_alpha": 4, "target_modules": ["to_k", "conv1"] } }),
    );
    let second = second.join("peft");
    let (negative, both) = (
        format!("{}=-0.4", second.display()),
        json!([{ "peft": peft, "scale": 0.6 }, { "peft": second, "scale": -0.4 }]),
    );
    jobs.push(job("two", &xl, json!({ "loras": both }), &["--lora", &lora, "--lora", &negative]));
    compare(folder.path(), &jobs);
    let [plain, with] = ["euler", "euler+"].map(|name| picture(folder.path(), name));
    assert!(psnr(plain, with) < FAR, "the adapter does something");
}

#[test]
fn conditioning_follows_the_rules_of_the_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let xl = model("tiny-xl");
    let sizes = json!({ "original_size": [300, 200], "crops_coords_top_left": [7, 40], "target_size": [64, 96] });
    let jobs = [
        job("own", &xl, json!({}), &[]),
        job("empty", &xl, json!({ "negative_prompt": "" }), &["--negative-prompt", ""]),
        job("negative", &xl, json!({ "negative_prompt": "ugly" }), &["--negative-prompt", "ugly"]),
        job("second", &xl, json!({ "options": { "prompt_2": "a cat" } }), &["--prompt-2", "a cat"]),
        job("rescaled", &xl, json!({ "options": { "guidance_rescale": 0.7 } }), &["--guidance-rescale", "0.7"]),
        job("unguided", &xl, json!({ "guidance_scale": 1.0 }), &["--guidance-scale", "1"]),
        job(
            "sizes",
            &xl,
            json!({ "options": sizes }),
            &["--original-size", "200x300", "--crop", "40,7", "--target-size", "96x64"],
        ),
        job("wide", &xl, json!({ "width": 192 }), &["--width", "192"]),
        job(
            "zero-snr",
            &model("tiny-xl-v"),
            json!({ "options": { "guidance_rescale": 0.7 } }),
            &["--guidance-rescale", "0.7"],
        ),
    ];
    compare(folder.path(), &jobs);
    let distance = |a: &str, b: &str| psnr(picture(folder.path(), a), picture(folder.path(), b));
    for other in ["empty", "negative", "second", "rescaled", "sizes"] {
        assert!(distance("own", other) < CLOSE, "{other} is no other picture ({:.1} dB)", distance("own", other));
    }
}

#[test]
fn a_single_file_draws_without_a_folder_of_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let xl = model("tiny-xl");
    let file = made("single_file.py", "xl.safetensors", &json!({ "model": xl }));
    let tokenizer = xl.join("tokenizer");
    let jobs = [
        job("alone", &file, json!({ "config": xl }), &["--tokenizer-name", tokenizer.to_str().unwrap()]),
        job("described", &file, json!({ "config": xl }), &["--config-folder", xl.to_str().unwrap()]),
    ];
    compare(folder.path(), &jobs);
}

#[test]
fn our_adapters_draw_the_same_in_diffusers_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let xl = model("tiny-xl");
    let photos = crate::support::photos(3, 1);
    let train =
        "train dreambooth --quiet --device cpu --threads 1 --mixed-precision no --resolution 128 --train-text-encoder \
                 --lora-r 4 --lora-alpha 7 --lora-text-encoder-r 3 --lora-text-encoder-2-alpha 5 --learning-rate 3e-2 \
                 --max-train-steps 4";
    let mut args: Vec<String> = train.split_whitespace().map(str::to_owned).collect();
    args.extend(["--model", xl.to_str().unwrap(), "--instance-data-dir", photos.to_str().unwrap()].map(str::to_owned));
    args.extend(["--instance-prompt", "a photo of sks dog", "--output-dir", &at("run")].map(str::to_owned));
    lorabooth_ok(&args);
    lorabooth_ok(&["adapter", "convert", &at("run"), "--to", "kohya", "--output", &at("kohya.safetensors")]);
    lorabooth_ok(&["adapter", "convert", &at("kohya.safetensors"), "--to", "peft", "--output", &at("back")]);
    lorabooth_ok(&[
        "adapter",
        "merge",
        "--model",
        xl.to_str().unwrap(),
        "--lora",
        &at("run"),
        "--output-dir",
        &at("merged"),
    ]);
    let single = made("single_file.py", "xl.safetensors", &json!({ "model": xl }));
    let (one_file, described) = (at("merged.safetensors"), xl.to_str().unwrap());
    let from = ["adapter", "merge", "--model", single.to_str().unwrap(), "--lora", &at("run")];
    lorabooth_ok(&[&from[..], &["--output-dir", &one_file]].concat());
    let from_folder = ["adapter", "merge", "--model", xl.to_str().unwrap(), "--lora", &at("run")];
    lorabooth_ok(&[&from_folder[..], &["--output-dir", &at("ui.safetensors")]].concat());
    let ui = at("ui.safetensors");
    let tokenizer = xl.join("tokenizer");
    lorabooth_ok(
        &[&from[..], &["--tokenizer-name", tokenizer.to_str().unwrap(), "--output-dir", &at("folder")]].concat(),
    );
    let jobs = [
        job("none", &xl, json!({}), &[]),
        job("merged file", Path::new(&one_file), json!({ "config": xl }), &["--config-folder", described]),
        job("folder to a file", Path::new(&ui), json!({ "config": xl }), &["--config-folder", described]),
        job("merged to a folder", Path::new(&at("folder")), json!({}), &[]),
        job("peft", &xl, json!({ "loras": [{ "peft": at("run") }] }), &["--lora", &at("run")]),
        job(
            "diffusers",
            &xl,
            json!({ "loras": [{ "file": at("run/pytorch_lora_weights.safetensors") }] }),
            &["--lora", &at("run/pytorch_lora_weights.safetensors")],
        ),
        job(
            "kohya",
            &xl,
            json!({ "loras": [{ "file": at("kohya.safetensors") }] }),
            &["--lora", &at("kohya.safetensors")],
        ),
        job("back", &xl, json!({ "loras": [{ "peft": at("back") }] }), &["--lora", &at("back")]),
        job("merged", Path::new(&at("merged")), json!({}), &[]),
    ];
    compare(folder.path(), &jobs);
    let distance = |a: &str, b: &str| psnr(picture(folder.path(), a), picture(folder.path(), b));
    assert!(distance("none", "peft") < FAR, "the adapter does something");
    for same in ["diffusers", "kohya", "back", "merged", "merged file", "folder to a file", "merged to a folder"] {
        assert!(distance("peft", same) >= CLOSE, "{same}: {:.1} dB", distance("peft", same));
    }
}

#[test]
fn adapters_of_the_python_libraries_draw_the_same_here() {
    let folder = tempfile::tempdir().unwrap();
    let xl = model("tiny-xl");
    let adapter = adapter();
    let file = |path: &str| adapter.join(path).to_str().unwrap().to_owned();
    let (diffusers, kohya) = (file("diffusers/pytorch_lora_weights.safetensors"), file("kohya/lora.safetensors"));
    let jobs = [
        job("peft", &xl, json!({ "loras": [{ "peft": file("peft") }] }), &["--lora", &file("peft")]),
        job("diffusers", &xl, json!({ "loras": [{ "file": diffusers }] }), &["--lora", &diffusers]),
        job("kohya", &xl, json!({ "loras": [{ "file": kohya }] }), &["--lora", &kohya]),
    ];
    compare(folder.path(), &jobs);
}
