//! `lorabooth generate` draws the pictures of diffusers' StableDiffusionPipeline, and adapter files mean the same on both sides.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::{self, lorabooth_ok, made, model, photos, psnr, python, read};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// What `parity.md` asks: decibels of an image against the reference's.
const CLOSE: f64 = 40.0;
/// Below this two images are different pictures.
const FAR: f64 = 30.0;

/// One picture, or several, on both sides.
struct Job {
    name: String,
    options: Value,
    flags: Vec<String>,
}

impl Job {
    /// The usual prompt on `model` in few steps; `options` are those of pipeline_images.py.
    fn new(name: impl Into<String>, model: &Path, options: Value) -> Self {
        let mut all = json!({ "prompt": "a photo of sks dog", "steps": 6, "seed": 3, "model": model });
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        Self { name: name.into(), options: all, flags: Vec::new() }
    }

    /// With more flags on our side.
    fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    fn count(&self) -> u64 {
        self.options.get("num_images").and_then(Value::as_u64).unwrap_or(1)
    }

    fn draw(&self, folder: &Path) {
        let mut args: Vec<String> =
            ["generate", "--quiet", "--device", "cpu", "--dtype", "fp32", "--threads", "1"].map(String::from).into();
        for (name, value) in self.options.as_object().unwrap() {
            match (name.as_str(), value) {
                ("loras" | "config", _) => {}
                ("vae_tiling", _) => args.push("--vae-tiling".into()),
                (_, Value::String(text)) => args.extend([format!("--{name}"), text.clone()]),
                (_, other) => args.extend([format!("--{name}"), other.to_string()]),
            }
        }
        for lora in self.options.get("loras").and_then(Value::as_array).unwrap_or(&Vec::new()) {
            let path = lora.get("peft").or(lora.get("file")).and_then(Value::as_str).unwrap();
            args.extend([
                "--lora".into(),
                format!("{path}={}", lora.get("scale").and_then(Value::as_f64).unwrap_or(1.0)),
            ]);
        }
        args.extend(self.flags.clone());
        args.extend(["--output".into(), folder.join(&self.name).to_str().unwrap().to_owned()]);
        lorabooth_ok(&args);
    }

    fn ours(&self, folder: &Path, image: u64) -> PathBuf {
        folder.join(&self.name).join(format!("{image:05}.png"))
    }
}

/// Draws all jobs on both sides in `folder`, and compares.
fn compare(folder: &Path, jobs: &[Job]) {
    let theirs = folder.join("theirs");
    let named = |job: &Job| {
        let mut options = job.options.clone();
        options["name"] = json!(job.name);
        options
    };
    let list: Vec<Value> = jobs.iter().map(named).collect();
    python("pipeline_images.py", &[theirs.to_str().unwrap(), &json!(list).to_string()]);
    for job in jobs {
        job.draw(folder);
        for image in 0..job.count() {
            let expected = theirs.join(format!("{}-{image}.png", job.name));
            let decibels = psnr(job.ours(folder, image), &expected);
            println!("{} {image}: {decibels:.1} dB", job.name);
            assert!(decibels >= CLOSE, "{} {image}: {decibels:.1} dB", job.name);
            assert!(spread(&expected) > 5.0, "{}: a picture without contrast proves nothing", job.name);
        }
    }
}

/// The standard deviation of an image's samples.
fn spread(path: &Path) -> f64 {
    let samples = image::open(path).unwrap().to_rgb8().into_raw();
    let mean = samples.iter().map(|&sample| f64::from(sample)).sum::<f64>() / samples.len() as f64;
    (samples.iter().map(|&sample| (f64::from(sample) - mean).powi(2)).sum::<f64>() / samples.len() as f64).sqrt()
}

#[test]
fn every_sampler_draws_the_pictures_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny");
    let mut jobs = vec![Job::new("own", &model, json!({ "steps": 5 }))];
    for sampler in ["pndm", "ddim", "ddpm", "euler", "euler-a", "heun", "lms", "dpm++2m", "dpm++2m-karras", "unipc"] {
        jobs.push(Job::new(sampler, &model, json!({ "scheduler": sampler })));
    }
    compare(folder.path(), &jobs);
    assert!(psnr(jobs[2].ours(folder.path(), 0), jobs[5].ours(folder.path(), 0)) < FAR, "samplers differ");
}

#[test]
fn guidance_sizes_and_batches_are_those_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = model("tiny");
    let jobs = [
        Job::new("negative", &tiny, json!({ "negative_prompt": "blurry, ugly", "guidance_scale": 4.5 })),
        Job::new("unguided", &tiny, json!({ "guidance_scale": 1.0, "scheduler": "ddim" })),
        Job::new("wide", &tiny, json!({ "height": 48, "width": 80 })),
        Job::new("several", &tiny, json!({ "num_images": 3, "scheduler": "euler-a" })).with(&["--batch-size", "2"]),
        Job::new("velocity", &model("tiny-v"), json!({ "height": 128, "width": 64 })),
        Job::new("tiles", &model("tiny4"), json!({ "height": 96, "width": 160, "vae_tiling": true })),
    ];
    compare(folder.path(), &jobs);
    assert!(psnr(jobs[3].ours(folder.path(), 0), jobs[3].ours(folder.path(), 1)) < FAR, "seeds differ");
    let decoder =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(jobs[0].ours(folder.path(), 0)).unwrap()));
    let info = decoder.read_info().unwrap();
    let parameters = &info.info().uncompressed_latin1_text[0];
    assert_eq!(parameters.keyword, "parameters");
    assert_eq!(
        parameters.text,
        "a photo of sks dog\nNegative prompt: blurry, ugly\nSteps: 6, Sampler: pndm, CFG scale: 4.5, Seed: 3, Size: 64x64, Model: tiny"
    );
}

#[test]
fn adapters_of_the_python_libraries_mean_the_same_here() {
    let folder = tempfile::tempdir().unwrap();
    let model = model("tiny4");
    let formats = ["peft", "peft-transformers4", "diffusers", "diffusers-old", "kohya"];
    let adapter = |seed: u64| {
        let options = json!({
            "model": model, "seed": seed, "formats": formats, "outputs": false,
            "unet": { "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_v", "to_out.0"] },
            "text_encoder": { "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "out_proj"] },
        });
        made("adapters.py", "adapter", &options)
    };
    let (first, second) = (adapter(1), adapter(2));
    let file = |name: &str| match name {
        "kohya" => json!({ "file": first.join("kohya/lora.safetensors") }),
        name if name.starts_with("diffusers") => {
            json!({ "file": first.join(name).join("pytorch_lora_weights.safetensors") })
        }
        name => json!({ "peft": first.join(name) }),
    };
    let size = json!({ "height": 64, "width": 64 });
    let job = |name: &str, loras: Value| {
        let mut options = size.clone();
        options["loras"] = loras;
        Job::new(name, &model, options)
    };
    let mut jobs = vec![Job::new("none", &model, size.clone())];
    // transformers 5 no longer reads its own older spelling: what it draws from the newer one is the same adapter.
    jobs.extend(
        formats.iter().filter(|&&name| name != "peft-transformers4").map(|&name| job(name, json!([file(name)]))),
    );
    let mut mixed = [file("peft"), json!({ "peft": second.join("peft") })];
    (mixed[0]["scale"], mixed[1]["scale"]) = (json!(0.7), json!(-0.4));
    jobs.push(job("mixed", json!(mixed)));
    compare(folder.path(), &jobs);
    let old = job("peft-transformers4", json!([file("peft-transformers4")]));
    old.draw(folder.path());
    let [none, peft, mixed] = [0, 1, jobs.len() - 1].map(|index: usize| jobs[index].ours(folder.path(), 0));
    assert!(psnr(old.ours(folder.path(), 0), &peft) >= CLOSE);
    assert!(psnr(&none, &peft) < FAR && psnr(&peft, &mixed) < FAR, "the adapters do something");
}

#[test]
fn our_adapters_mean_the_same_in_python() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let model = model("tiny4");
    let model_flag = model.to_str().unwrap();
    let photos = photos(3, 1);
    let train =
        "train dreambooth --quiet --device cpu --threads 1 --mixed-precision no --resolution 128 --center-crop \
                 --train-text-encoder --lora-r 4 --lora-alpha 7 --lora-text-encoder-r 3 --lora-text-encoder-alpha 5 \
                 --lora-text-encoder-targets q_proj,v_proj,out_proj --learning-rate 3e-2 --max-train-steps 6";
    let mut args: Vec<String> = train.split_whitespace().map(str::to_owned).collect();
    args.extend(["--model", model_flag, "--instance-data-dir", photos.to_str().unwrap()].map(str::to_owned));
    args.extend(["--instance-prompt", "a photo of sks dog", "--output-dir", &at("run")].map(str::to_owned));
    lorabooth_ok(&args);
    lorabooth_ok(&["adapter", "convert", &at("run"), "--to", "kohya", "--output", &at("kohya.safetensors")]);
    lorabooth_ok(&["adapter", "convert", &at("kohya.safetensors"), "--to", "peft", "--output", &at("back")]);
    lorabooth_ok(&["adapter", "merge", "--model", model_flag, "--lora", &at("run"), "--output-dir", &at("merged")]);

    let size = json!({ "height": 64, "width": 64 });
    let job = |name: &str, loras: Value| {
        let mut options = size.clone();
        options["loras"] = loras;
        Job::new(name, &model, options)
    };
    let jobs = [
        Job::new("none", &model, size.clone()),
        job("peft", json!([{ "peft": at("run") }])),
        job("diffusers", json!([{ "file": at("run/pytorch_lora_weights.safetensors"), "scale": 0.6 }])),
        job("kohya", json!([{ "file": at("kohya.safetensors") }])),
        job("converted", json!([{ "peft": at("back") }])),
        Job::new("merged", Path::new(&at("merged")), size.clone()),
    ];
    compare(folder.path(), &jobs);
    let picture = |index: usize| jobs[index].ours(folder.path(), 0);
    assert!(psnr(picture(0), picture(1)) < FAR, "the adapter does something");
    for same in [3, 4, 5] {
        assert!(psnr(picture(1), picture(same)) >= CLOSE, "{}", jobs[same].name);
    }
    let [before, after] =
        ["run", "back"].map(|name| read(folder.path().join(name).join("unet/adapter_model.safetensors")));
    assert!(before.iter().all(|(key, tensor)| tensor.equal(&after[key])), "there and back the numbers are the same");
    let told = lorabooth_ok(&["adapter", "inspect", &at("run")]);
    assert!(told.contains("unet") && told.contains("alpha 7") && told.contains("rank 4"), "{told}");
}

#[test]
fn a_single_file_draws_the_picture_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = model("tiny4");
    let file = made("single_file.py", "single.safetensors", &json!({ "model": pipeline }));
    let options = json!({ "config": pipeline, "height": 64, "width": 64 });
    let flag = pipeline.to_str().unwrap();
    let jobs = [Job::new("single", &file, options).with(&["--config-folder", flag])];
    compare(folder.path(), &jobs);
}

#[test]
fn a_single_file_with_an_adapter_folded_in_is_a_pipeline_that_diffusers_loads() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let size = json!({ "height": 64, "width": 64 });
    for variant in ["tiny4", "tiny-v"] {
        let pipeline = model(variant);
        let described = pipeline.to_str().unwrap();
        let file = made("single_file.py", "single.safetensors", &json!({ "model": pipeline }));
        let adapter = made(
            "adapters.py",
            "adapters",
            &json!({ "model": pipeline, "formats": ["peft"], "outputs": false,
                "unet": { "r": 4, "lora_alpha": 7, "target_modules": ["to_q", "to_v", "conv1"] },
                "text_encoder": { "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "fc1"] } }),
        );
        let (lora, merged) = (format!("{}=0.8", adapter.join("peft").display()), at(&format!("merged-{variant}")));
        let from = ["adapter", "merge", "--model", file.to_str().unwrap(), "--config-folder", described];
        lorabooth_ok(&[&from[..], &["--lora", &lora, "--output-dir", &merged]].concat());
        // diffusers on the merged folder, and here the single file with the adapter beside it.
        let job = Job::new(variant, Path::new(&merged), size.clone());
        let flags = ["--model", file.to_str().unwrap(), "--config-folder", described, "--lora", &lora];
        compare(folder.path(), &[job.with(&flags)]);
        Job::new("plain", &file, size.clone()).with(&["--config-folder", described]).draw(folder.path());
        let plain = folder.path().join("plain/00000.png");
        let changed = psnr(folder.path().join(variant).join("00000.png"), &plain);
        assert!(changed < FAR, "{variant}: the adapter changes nothing ({changed:.1} dB)");
        std::fs::remove_dir_all(folder.path().join("plain")).unwrap();
    }
    // Without a tokenizer there is no pipeline; a folder that is there stays.
    let file = made("single_file.py", "single.safetensors", &json!({ "model": model("tiny4") }));
    let from =
        ["adapter", "merge", "--lora", "x", "--model", file.to_str().unwrap(), "--output-dir", &at("merged-tiny4")];
    assert_eq!(support::lorabooth(&from).status.code(), Some(1));
}
