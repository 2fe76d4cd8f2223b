//! The library as a server uses it: runs that another thread holds, and models that stay in memory from one job to the next.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{self, gpt2};
use crate::support::{in_a_process_of_its_own, made, model, photos, words};
use clap::Parser;
use lorabooth::error::{Error, Result};
use lorabooth::interrupt::Interrupt;
use lorabooth::options::complete::CompleteConfig;
use lorabooth::options::dreambooth::DreamBoothConfig;
use lorabooth::options::generate::GenerateConfig;
use lorabooth::options::language::LanguageConfig;
use lorabooth::recipes::complete::{Completion, TextModel};
use lorabooth::recipes::generate::{generate, ImageModel};
use lorabooth::recipes::training::control::{Control, SampleRequest};
use lorabooth::recipes::training::observer::{Event, Observer, Silent};
use lorabooth::recipes::{complete, dreambooth, language};
use lorabooth::sample::drawn_image::ImageParameters;
use lorabooth::sample::pipeline::Residence;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tch::Device;

#[derive(Parser)]
#[command(args_override_self = true, no_binary_name = true)]
struct Flags<A: clap::Args> {
    #[command(flatten)]
    config: A,
}

/// The configuration that `words` stand for, as on the command line.
fn config<A: clap::Args>(words: &[String]) -> A {
    // Tests run beside each other.
    tch::set_num_threads(1);
    Flags::<A>::parse_from(words).config
}

/// A run of six steps of a model on photos, with dropout and random crops, so that a draw too many would show.
fn dreambooth(out: &Path, more: &str) -> DreamBoothConfig {
    let text = format!(
        "--model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --learning-rate 1e-3 --max-train-steps 6 \
         --mixed-precision no --lora-dropout 0.2 --cache-latents false --validation-prompt sks --validation-steps 3 \
         --num-validation-images 1 --output-dir {} {more}",
        model("tiny").display(),
        photos(5, 0).display(),
        out.display()
    );
    config(&words(&text))
}

/// A run of six steps of a language model, with dropout.
fn language_model(out: &Path) -> LanguageConfig {
    let more = ["--max-train-steps", "6", "--learning-rate", "0.05", "--lora-dropout", "0.2"];
    let mut args = gpt2(true).train(out, &more);
    // The command's names, and flags of the whole command line.
    args.drain(..2);
    for flag in ["--device", "--threads"] {
        let at = args.iter().position(|arg| arg == flag).unwrap();
        args.drain(at..at + 2);
    }
    args.retain(|arg| arg != "--quiet");
    config(&args)
}

/// All that a run leaves that does not tell of time and memory, but for what it was asked for.
fn left(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut left = BTreeMap::new();
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(out).unwrap().display().to_string();
            match name.as_str() {
                "run.json" | "logs" | "loss.png" => {}
                _ if name.starts_with("checkpoint-") || name.contains("asked") => {}
                "metrics.jsonl" => {
                    let steps = jobs::lines(&path).into_iter().map(|line| [line["step"].clone(), line["loss"].clone()]);
                    left.insert(name, format!("{:?}", steps.collect::<Vec<_>>()).into_bytes());
                }
                _ if path.is_dir() => folders.push(path),
                _ => drop(left.insert(name, fs::read(&path).unwrap())),
            }
        }
    }
    left
}

fn assert_same(out: &Path, whole: &Path) {
    let (found, wanted) = (left(out), left(whole));
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    wanted.iter().for_each(|(name, bytes)| assert!(found[name] == *bytes, "{name} is another"));
}

/// Acts at events, and keeps them.
struct Watch<'a> {
    act: &'a mut dyn FnMut(&Event),
    events: Vec<Event>,
}

impl Observer for Watch<'_> {
    fn on(&mut self, event: Event) {
        (self.act)(&event);
        self.events.push(event);
    }
}

/// What happens in `run` while another thread holds it: a sample, a checkpoint and a pause after step 2, and in the pause another
/// sample.
fn held(
    request: SampleRequest,
    during_pause: SampleRequest,
    run: impl FnOnce(&Control, &mut dyn Observer) -> Result<()>,
) -> Vec<Event> {
    let control = Control::new();
    let holder = control.clone();
    let mut act = |event: &Event| match event {
        Event::Step { metrics, .. } if metrics.step == 2 => {
            holder.sample(request.clone());
            holder.save();
            holder.pause();
        }
        Event::Paused { .. } => {
            let (other, request) = (holder.clone(), during_pause.clone());
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                other.sample(request);
                std::thread::sleep(Duration::from_millis(50));
                assert!(other.is_paused());
                other.go_on();
            });
        }
        _ => {}
    };
    let mut watch = Watch { act: &mut act, events: Vec::new() };
    run(&control, &mut watch).unwrap();
    watch.events
}

/// The samples and the pause in `events`, in order.
fn told(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event {
        Event::Image { step: Some(step), parameters: ImageParameters { prompt, seed, .. }, .. } => {
            Some(format!("image {step} {prompt} {seed}"))
        }
        Event::Completed { step, prompt, .. } => Some(format!("completed {step} {prompt}")),
        Event::Checkpoint { step, .. } => Some(format!("checkpoint {step}")),
        Event::Paused { step } => Some(format!("paused {step}")),
        Event::Continued { step } => Some(format!("continued {step}")),
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

#[test]
fn a_run_that_is_paused_saved_and_sampled_ends_with_the_bits_of_one_that_never_was() {
    if !in_a_process_of_its_own(
        "library::a_run_that_is_paused_saved_and_sampled_ends_with_the_bits_of_one_that_never_was",
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (kind, more) in [("frozen", ""), ("trained", "--train-text-encoder --lora-text-encoder-dropout 0.2")] {
        let [whole, out] = ["whole", "held"].map(|name| folder.path().join(format!("{name}-{kind}")));
        let train = |out: &Path, control: &Control, observer: &mut dyn Observer| {
            dreambooth::training::train(&dreambooth(out, more), Device::Cpu, 7, control, observer).map(drop)
        };
        train(&whole, &Control::new(), &mut Silent).unwrap();
        // Once the validation's own images, and once others.
        let other = SampleRequest {
            prompt: Some("sks on a red background".into()),
            negative_prompt: Some("blue".into()),
            seed: Some(11),
            images: Some(2),
            ..SampleRequest::default()
        };
        let events = held(SampleRequest::default(), other, |control, observer| train(&out, control, observer));
        let expected = [
            "image 0 sks 7",
            "checkpoint 2",
            "image 2 sks 7",
            "paused 2",
            "image 2 sks on a red background 11",
            "image 2 sks on a red background 12",
            "continued 2",
            "image 3 sks 7",
            "image 6 sks 7",
            "checkpoint 6",
        ];
        assert_eq!(told(&events), expected);
        assert_same(&out, &whole);
        assert!(out.join("samples/step-000002-asked-2.png").exists());
    }
}

#[test]
fn a_sample_that_is_asked_for_is_the_one_that_would_be_due() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let control = Control::new();
    let holder = control.clone();
    let mut act = |event: &Event| match event {
        Event::Step { metrics, .. } if metrics.step == 3 => holder.sample(SampleRequest::default()),
        // What is asked for wrongly is said, and costs no run.
        Event::Step { metrics, .. } if metrics.step == 5 => {
            holder.sample(SampleRequest { images: Some(0), ..SampleRequest::default() });
        }
        _ => {}
    };
    let mut watch = Watch { act: &mut act, events: Vec::new() };
    dreambooth::training::train(&dreambooth(&out, ""), Device::Cpu, 0, &control, &mut watch).unwrap();
    let pixels = |name: &str| image::open(out.join("samples").join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("step-000003-asked-0.png"), pixels("step-000003-0.png"));
    assert_ne!(pixels("step-000003-0.png"), pixels("step-000000-0.png"));
    let said = |event: &Event| matches!(event, Event::Warning { text } if text.contains("the sample was not made"));
    assert_eq!(watch.events.iter().filter(|event| said(event)).count(), 1);
}

#[test]
fn a_language_model_completes_a_text_while_it_is_trained_and_ends_with_the_same_bits() {
    if !in_a_process_of_its_own(
        "library::a_language_model_completes_a_text_while_it_is_trained_and_ends_with_the_same_bits",
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [whole, out] = ["whole", "held"].map(|name| folder.path().join(name));
    let train = |out: &Path, control: &Control, observer: &mut dyn Observer| {
        language::training::train(&language_model(out), Device::Cpu, 0, control, observer).map(drop)
    };
    train(&whole, &Control::new(), &mut Silent).unwrap();
    let request = |max_new_tokens| SampleRequest {
        prompt: Some("red".into()),
        max_new_tokens: Some(max_new_tokens),
        ..SampleRequest::default()
    };
    let events = held(request(4), request(6), |control, observer| train(&out, control, observer));
    let expected = ["checkpoint 2", "completed 2 red", "paused 2", "completed 2 red", "continued 2", "checkpoint 6"];
    assert_eq!(told(&events), expected);
    assert_same(&out, &whole);
    // What it wrote is what the checkpoint of that step writes.
    let texts: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Completed { text, .. } => Some(text),
            _ => None,
        })
        .collect();
    let checkpoint = out.join("checkpoint-2");
    for (text, most) in texts.iter().zip([4, 6]) {
        assert_eq!(**text, completed(&completion(&[&checkpoint], most)).0);
    }
}

#[test]
fn a_run_that_is_stopped_while_it_waits_is_saved_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let control = Control::of(Interrupt::new());
    let holder = control.clone();
    let mut act = |event: &Event| match event {
        Event::Step { metrics, .. } if metrics.step == 1 => holder.pause(),
        Event::Paused { .. } => {
            let other = holder.clone();
            std::thread::spawn(move || other.stop());
        }
        _ => {}
    };
    let mut watch = Watch { act: &mut act, events: Vec::new() };
    let stopped = language::training::train(&language_model(&out), Device::Cpu, 0, &control, &mut watch);
    let Err(Error::Interrupted(message)) = stopped else { panic!("{stopped:?}") };
    assert!(message.contains("checkpoint-1") && out.join("checkpoint-1/state.json").exists(), "{message}");
}

/// Options of a text that is gone on with, with adapters.
fn completion(adapters: &[&Path], most: usize) -> CompleteConfig {
    let model = gpt2(true).folder.join("model");
    let mut all = words(&format!("--model {} --prompt red --dtype fp32 --max-new-tokens {most}", model.display()));
    all.extend(adapters.iter().map(|path| format!("--adapter={}", path.display())));
    config(&all)
}

/// The text of a fresh model, and in how many pieces it came.
fn completed(config: &CompleteConfig) -> (String, usize) {
    let mut watch = Watch { act: &mut |_| {}, events: Vec::new() };
    let completion = complete::complete(config, Device::Cpu, 0, &Interrupt::new(), &mut watch).unwrap();
    let Completion::Text { text, .. } = completion else { panic!("{completion:?}") };
    let pieces: Vec<String> = watch
        .events
        .into_iter()
        .filter_map(|event| match event {
            Event::Text { text } => Some(text),
            _ => None,
        })
        .collect();
    assert_eq!(pieces.concat(), text);
    (text, pieces.len())
}

#[test]
fn a_language_model_that_stays_in_memory_writes_what_a_fresh_one_writes_with_each_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("adapter");
    language::training::train(&language_model(&adapter), Device::Cpu, 0, &Control::new(), &mut Silent).unwrap();
    let [plain, adapted] = [completion(&[], 12), completion(&[&adapter], 12)];
    let mut kept = TextModel::open(&plain, Device::Cpu, 0, &Interrupt::new(), &mut Silent).unwrap();
    assert!(kept.is_for(&adapted, Device::Cpu));
    let fresh = [completed(&plain), completed(&adapted)];
    assert!(fresh[0].0 != fresh[1].0, "the adapter changes nothing: {fresh:?}");
    assert!(fresh[0].1 > 1, "it comes in pieces");
    for (config, (text, _)) in [(&plain, &fresh[0]), (&adapted, &fresh[1]), (&adapted, &fresh[1]), (&plain, &fresh[0])]
    {
        let completion = kept.complete(config, 0, &Interrupt::new(), &mut Silent).unwrap();
        assert!(matches!(&completion, Completion::Text { text: found, .. } if found == text), "{completion:?}");
    }
    let interrupt = Interrupt::new();
    let mut stop = |event: &Event| {
        if matches!(event, Event::Text { .. }) {
            interrupt.request();
        }
    };
    let mut watch = Watch { act: &mut stop, events: Vec::new() };
    let stopped = kept.complete(&plain, 0, &interrupt, &mut watch);
    assert!(matches!(stopped, Err(Error::Interrupted(_))), "{stopped:?}");
    assert_eq!(watch.events.iter().filter(|event| matches!(event, Event::Text { .. })).count(), 1);
    // Beams are followed before there is a text.
    let beams = CompleteConfig { num_beams: 2, ..plain };
    let stopped = kept.complete(&beams, 0, &interrupt, &mut Silent);
    assert!(matches!(stopped, Err(Error::Interrupted(_))), "{stopped:?}");
}

/// An adapter of random numbers for both networks.
fn image_adapter(seed: u64) -> PathBuf {
    let options = json!({
        "model": model("tiny"), "seed": seed, "formats": ["peft"], "outputs": false,
        "unet": { "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_v", "to_out.0"] },
        "text_encoder": { "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "out_proj"] },
    });
    made("adapters.py", "adapter", &options).join("peft")
}

#[test]
fn a_pipeline_that_stays_in_memory_draws_what_a_fresh_one_draws_with_each_adapter_at_each_strength() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (image_adapter(1), image_adapter(2));
    let drawn = |loras: &[(&Path, &str)], prompt: &str, name: &str| -> GenerateConfig {
        let mut all = words(&format!("--model {} --prompt {prompt} --steps 3 --dtype fp32", model("tiny").display()));
        all.extend(loras.iter().map(|(path, strength)| format!("--lora={}{strength}", path.display())));
        all.extend(["--output".to_owned(), folder.path().join(name).display().to_string()]);
        config(&all)
    };
    let sets: [&[(&Path, &str)]; 6] =
        [&[], &[(&first, "")], &[(&first, "=0.5")], &[(&first, "=0.5"), (&second, "=-0.7")], &[(&second, "")], &[]];
    let plain = drawn(&[], "dog", "unused.png");
    let mut kept = ImageModel::open(&plain, Device::Cpu, Residence::Together, &Interrupt::new(), &mut Silent).unwrap();
    let mut pictures: Vec<Vec<u8>> = Vec::new();
    for (place, loras) in sets.iter().enumerate() {
        for prompt in ["dog", "cat"] {
            let [here, fresh] =
                ["here", "fresh"].map(|name| drawn(loras, prompt, &format!("{name}-{place}-{prompt}.png")));
            assert!(kept.is_for(&here, Device::Cpu));
            let images = kept.generate(&here, 3, &Interrupt::new(), &mut Silent).unwrap();
            let expected = generate(&fresh, Device::Cpu, 3, &Interrupt::new(), &mut Silent).unwrap();
            let bytes = |path: &Path| fs::read(path).unwrap();
            assert!(bytes(&images[0].path) == bytes(&expected[0].path), "{place} {prompt}");
            assert_eq!(images[0].parameters, expected[0].parameters);
            assert_eq!(images[0].parameters.adapters.len(), loras.len());
            pictures.push(image::open(&images[0].path).unwrap().to_rgb8().into_raw());
        }
    }
    assert!((1..10).all(|i| (0..i).all(|j| pictures[i] != pictures[j])), "each adapter and prompt changes the picture");
    assert!(pictures[10..] == pictures[..2]);
}

#[test]
fn a_drawing_tells_of_each_picture_and_ends_within_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let text = format!(
        "--model {} --prompt dog --steps 4 --scheduler ddim --height 64 --width 64 --num-images 3 --batch-size 2 --dtype fp32 --output {}",
        model("tiny").display(),
        out.display()
    );
    let config: GenerateConfig = config(&words(&text));
    let interrupt = Interrupt::new();
    // In the second of four steps of the second batch.
    let mut stop = |event: &Event| {
        if matches!(event, Event::Progress { done: 6 }) {
            interrupt.request();
        }
    };
    let mut watch = Watch { act: &mut stop, events: Vec::new() };
    let stopped = generate(&config, Device::Cpu, 5, &interrupt, &mut watch);
    let Err(Error::Interrupted(message)) = stopped else { panic!("{stopped:?}") };
    assert_eq!(message, "2 of 3 images were written");
    let progress = |event: &Event| match event {
        Event::Progress { done } => Some(*done),
        _ => None,
    };
    assert_eq!(watch.events.iter().filter_map(progress).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let image = |event: &Event| match event {
        Event::Image { path, step: None, parameters } => Some((path.clone(), parameters.seed)),
        _ => None,
    };
    let images: Vec<(PathBuf, i64)> = watch.events.iter().filter_map(image).collect();
    assert_eq!(images, [(out.join("00000.png"), 5), (out.join("00001.png"), 6)]);
    assert!(images.iter().all(|(path, _)| path.exists()) && !out.join("00002.png").exists());
    let fields: Value = serde_json::to_value(watch.events.iter().find(|event| image(event).is_some())).unwrap();
    for (name, value) in
        [("event", json!("image")), ("seed", json!(5)), ("width", json!(64)), ("sampler", json!("ddim"))]
    {
        assert_eq!(fields[name], value, "{fields}");
    }
}
