//! The folder of a run, and other outputs: named, never replaced unasked, and with a record that makes the run again.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::complaints::Complaints;
use crate::support::dreambooth_commands::{generate, train};
use crate::support::tiny_run::{lines, train as dreambooth};
use crate::support::words;
use crate::support::{lorabooth, lorabooth_command, lorabooth_ok, model, photos, read, read_json};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn the_closing_command_draws_at_the_runs_size_and_guidance() {
    let folder = tempfile::tempdir().unwrap();
    let last = |name: &str, more: &str| {
        let said = lorabooth_ok(&dreambooth(&folder.path().join(name), more));
        said.lines().last().unwrap().to_owned()
    };
    let closing = last("guided", "--guidance-scale 3");
    assert!(closing.contains("--height 32 --width 32 --guidance-scale 3 "), "{closing}");
    let closing = last("usual", "");
    assert!(closing.contains("--height 32 --width 32 ") && !closing.contains("--guidance-scale"), "{closing}");
}

/// The tiny model draws 32 by 32 latents of 2 by 2 pixels, and three photos are few.
#[test]
fn size_and_length_are_the_models_and_the_photos_unless_they_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let flags = format!(
        "--model {} --instance-data-dir {} --instance-prompt sks --mixed-precision no --device cpu --threads 1",
        model("tiny").display(),
        photos(3, 0).display()
    );
    let plan = |more: &str| -> Value {
        serde_json::from_str(&lorabooth_ok(&words(&format!("plan dreambooth --json {flags} {more}")))).unwrap()
    };
    for (more, steps, resolution) in [
        ("", 400, 64),
        ("--num-train-epochs 1", 3, 64),
        ("--max-train-steps 7 --resolution 32", 7, 32),
        (&format!("--instance-data-dir {}", photos(5, 0).display()), 600, 64),
        (&format!("--instance-data-dir {}", photos(12, 0).display()), 1200, 64),
    ] {
        let plan = plan(more);
        assert_eq!((&plan["steps"], &plan["resolution"]), (&json!(steps), &json!(resolution)), "{more}");
        assert_eq!(plan["length"].is_string(), more.is_empty() || more.starts_with("--instance"), "{more}");
    }
    let said = lorabooth_ok(&words(&format!("train dreambooth {flags} --output-dir {}", out.display())));
    assert!(said.contains("400 steps for 3 photos: 120 each, but at least 400"), "{said}");
    assert!(said.contains("starts from  a new adapter") && said.contains("64 px"), "{said}");
    assert!(said.lines().last().unwrap().contains("--height 64 --width 64"), "{said}");
    let run = read_json(out.join("run.json"));
    assert_eq!((&run["total_steps"], &run["options"]["resolution"]), (&json!(400), &json!(64)));
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 400);
}

#[test]
fn run_json_has_the_whole_run_and_makes_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let more =
        "--seed 5 --lora-r 2 --train-text-encoder --lora-rank-pattern to_q=3 --hub_token hush --lora-targets to_q,to_k";
    let args = dreambooth(&out, more);
    lorabooth_ok(&args);
    let file = out.join("run.json");
    let run = read_json(&file);
    let expected = args.join(" ").replace(" --hub_token hush", "");
    assert_eq!(run["command"], json!(format!("lorabooth {expected}")));
    let date = run["date"].as_str().unwrap();
    assert!(date.len() == 20 && date.starts_with("20") && date.ends_with('Z') && &date[10..11] == "T", "{date}");
    let photos = run["data"].as_array().unwrap();
    assert_eq!(photos.len(), 5);
    assert!(photos.iter().all(|photo| photo["caption"] == "sks" && photo["kind"] == "instance"), "{photos:?}");
    assert!(photos.iter().all(|photo| Path::new(photo["file"].as_str().unwrap()).is_file()), "{photos:?}");
    let last = lines(&out.join("metrics.jsonl")).pop().unwrap();
    assert_eq!(run["final_loss"], last["loss"]);
    assert!(!fs::read_to_string(&file).unwrap().contains("hush"));

    let config = ["--config", file.to_str().unwrap(), "--device", "cpu", "--threads", "1"];
    let again = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let command = ["train", "dreambooth", "--output-dir", out.to_str().unwrap()];
        lorabooth_ok(&[&command[..], &config, more].concat());
        ["unet", "text_encoder"].map(|part| fs::read(out.join(part).join("adapter_model.safetensors")).unwrap())
    };
    let first =
        ["unet", "text_encoder"].map(|part| fs::read(out.join(part).join("adapter_model.safetensors")).unwrap());
    assert!(again("again", &[]) == first);
    assert!(again("other", &["--seed", "6"]) != first);
    let plan: Value = serde_json::from_str(&lorabooth_ok(&[&["plan", "--json"][..], &config].concat())).unwrap();
    assert_eq!((&plan["steps"], &plan["resolution"]), (&json!(2), &json!(32)));
    // A run that started from an adapter does so again: its shape is the adapter's, not the flags' defaults.
    let start = ["--init-adapter", out.to_str().unwrap()];
    let mut args = dreambooth(&folder.path().join("more"), "--train-text-encoder");
    args.extend(start.map(str::to_owned));
    lorabooth_ok(&args);
    let file = folder.path().join("more/run.json");
    let third = folder.path().join("third");
    lorabooth_ok(&["train", "dreambooth", "--config", file.to_str().unwrap(), "--output-dir", third.to_str().unwrap()]);
}

#[test]
fn an_output_folder_is_named_after_the_prompt_and_the_date() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = dreambooth(Path::new("x"), "--max-train-steps 0");
    let output = args.iter().position(|arg| arg == "--output-dir").unwrap();
    args.drain(output..output + 2);
    args.extend(["--instance-prompt".to_owned(), "a photo of SKS dog!".to_owned()]);
    for count in [1, 2] {
        let output = lorabooth_command(&args).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), count);
        let date = names[0].strip_prefix("a-photo-of-sks-dog-").unwrap();
        assert!(date.len() == 10 && date.starts_with("20"), "{names:?}");
        assert!(count == 1 || names[1] == format!("{}-2", names[0]), "{names:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&names[count - 1]));
    }
    let resumed = lorabooth_command(&[args.as_slice(), &["--resume".to_owned()]].concat())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&resumed.stderr);
    assert!(resumed.status.code() == Some(1) && error.contains("--output-dir"), "{error}");
}

/// The UNet's and the text encoder's adapters were made to go together.
#[test]
fn a_text_encoders_adapter_to_start_from_is_kept_where_it_does_not_train() {
    let folder = tempfile::tempdir().unwrap();
    let [start, on, alone] = ["start", "on", "alone"].map(|name| folder.path().join(name));
    lorabooth_ok(&dreambooth(&start, "--train-text-encoder --learning-rate 0.05 --max-train-steps 4"));
    let said = lorabooth_ok(&dreambooth(&on, &format!("--init-adapter {}", start.display())));
    let screen = said.lines().find(|line| line.contains("starts from")).unwrap();
    assert!(screen.contains("text encoder") && screen.contains("--train-text-encoder"), "{screen}");
    let tensors = |run: &Path, file: &str| read(run.join(file));
    for file in ["text_encoder/adapter_model.safetensors", "checkpoint-2/text_encoder/adapter_model.safetensors"] {
        let kept = tensors(&on, file);
        assert!(!kept.is_empty(), "{file}");
        for (name, tensor) in tensors(&start, "text_encoder/adapter_model.safetensors") {
            assert_eq!(kept[&name], tensor, "{file} {name}");
        }
    }
    let both = tensors(&on, "pytorch_lora_weights.safetensors");
    assert!(both.keys().any(|name| name.starts_with("text_encoder.")), "{both:?}");
    let unet = |run: &Path| tensors(run, "unet/adapter_model.safetensors");
    assert!(unet(&on).iter().any(|(name, tensor)| unet(&start)[name] != *tensor), "nothing was learned");
    // It is used: the first loss is that of a run that trains both, and not that without it.
    let first = |run: &Path| lines(&run.join("metrics.jsonl"))[0]["loss"].as_f64().unwrap();
    lorabooth_ok(&dreambooth(&alone, &format!("--init-adapter {}", start.join("unet").display())));
    let trained = folder.path().join("trained");
    lorabooth_ok(&dreambooth(&trained, &format!("--train-text-encoder --init-adapter {}", start.display())));
    assert!((first(&on) - first(&trained)).abs() < 1e-6 && (first(&on) - first(&alone)).abs() > 1e-6);
    assert!(!alone.join("text_encoder").exists());
    let mut args = dreambooth(&folder.path().join("both"), "--train-text-encoder --init-adapter");
    args.push(start.join("unet").display().to_string());
    let output = lorabooth(&args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("--train-text-encoder"), "{error}");
}

/// Whatever is there, be it another program's: every command refuses in the same words, and replaces it when it is told to.
#[test]
fn nothing_is_replaced_unasked() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (tiny, run) = (model("tiny"), at("run"));
    lorabooth_ok(&train(&tiny, &photos(3, 0), &run, &["--train-text-encoder"]));
    let words_of = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let (tiny_text, run_text) = (tiny.display().to_string(), run.display().to_string());
    let convert = |to: &str, out: &Path| {
        words_of(&["adapter", "convert", &run_text, "--to", to, "--output", out.to_str().unwrap()])
    };
    let merge = |out: &Path| {
        words_of(&["adapter", "merge", "--model", &tiny_text, "--lora", &run_text, "--output", out.to_str().unwrap()])
    };
    for (what, file, args) in [
        ("generate", "image.png", generate(&tiny, &at("image.png"), &[])),
        ("several", "several-1.png", generate(&tiny, &at("several.png"), &["--num-images", "2"])),
        ("kohya", "kohya.safetensors", convert("kohya", &at("kohya.safetensors"))),
        ("diffusers", "diffusers/pytorch_lora_weights.safetensors", convert("diffusers", &at("diffusers"))),
        ("peft", "peft/unet/adapter_model.safetensors", convert("peft", &at("peft"))),
        ("merge", "merged/model_index.json", merge(&at("merged"))),
        ("train", "trained/unet/adapter_model.safetensors", train(&tiny, &photos(3, 0), &at("trained"), &[])),
    ] {
        fs::create_dir_all(at(file).parent().unwrap()).unwrap();
        fs::write(at(file), "theirs").unwrap();
        complaints.refused(what, &args, 1, &["already exists; replace it with --overwrite, or choose another"]);
        complaints.check(&format!("{what} replaced it"), fs::read(at(file)).unwrap() == b"theirs");
        lorabooth_ok(&[&args[..], &["--overwrite".to_owned()]].concat());
        complaints.check(&format!("{what} did not replace it"), fs::read(at(file)).unwrap() != b"theirs");
    }
    // Pictures of no name get one that is free.
    for count in 1..3 {
        let mut args = generate(&tiny, Path::new("x"), &[]);
        let output = args.iter().position(|arg| arg == "--output").unwrap();
        args.drain(output..output + 2);
        let own = at("own");
        fs::create_dir_all(&own).unwrap();
        let drawn = lorabooth_command(&args).current_dir(&own).output().unwrap();
        complaints
            .check("a picture without a name", drawn.status.success() && fs::read_dir(own).unwrap().count() == count);
    }
    // The other half of another adapter would be read with what is written now.
    let unet = words_of(&["adapter", "convert", run.join("unet").to_str().unwrap(), "--to", "peft", "--output"]);
    let unet = [unet, words_of(&[at("peft").to_str().unwrap()])].concat();
    fs::remove_dir_all(at("peft/unet")).unwrap();
    complaints.refused("half an adapter", &unet, 1, &["text_encoder", "already exists"]);
    lorabooth_ok(&[&unet[..], &["--overwrite".to_owned()]].concat());
    complaints.check("half an adapter stays", !at("peft/text_encoder/adapter_model.safetensors").exists());
    // What is no model is not replaced at all.
    fs::create_dir(at("photos")).unwrap();
    fs::write(at("photos/dog.jpg"), "mine").unwrap();
    let args = [merge(&at("photos")), words_of(&["--overwrite"])].concat();
    complaints.refused("photos", &args, 1, &["is not a model", "choose another folder"]);
    complaints.check("photos are gone", at("photos/dog.jpg").exists());
}

/// One that goes on in a folder is not disturbed, whatever is asked for.
#[test]
fn a_folder_that_a_run_is_writing_to_is_refused_with_the_process() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = folder.path().join("run");
    lorabooth_ok(&train(&model("tiny"), &photos(3, 0), &run, &[]));
    let long = train(&model("tiny"), &photos(3, 0), &out, &["--max-train-steps", "100000"]);
    let mut child = lorabooth_command(&long).stdout(Stdio::null()).spawn().unwrap();
    while !out.join("metrics.jsonl").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let process = format!("(process {})", child.id());
    for more in [&[][..], &["--overwrite"], &["--resume"]] {
        let args = train(&model("tiny"), &photos(3, 0), &out, more);
        complaints.refused(&format!("{more:?}"), &args, 1, &["another run", &process]);
    }
    let convert =
        ["adapter", "convert", run.to_str().unwrap(), "--to", "peft", "--overwrite", "--output", out.to_str().unwrap()];
    complaints.refused("convert", &convert.map(str::to_owned), 1, &["another run", &process]);
    complaints.check("the run ended", child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    // What a killed one leaves is no obstacle.
    lorabooth_ok(&train(&model("tiny"), &photos(3, 0), &out, &["--overwrite"]));
    complaints.check("the lock is left", !out.join(".lorabooth-lock").exists());
}

#[test]
fn a_path_that_is_not_there_names_its_flag() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let (out, nowhere) = (folder.path().join("out"), folder.path().join("nowhere"));
    let nowhere = nowhere.to_str().unwrap();
    for flag in [
        "--model",
        "--instance-data-dir",
        "--init-adapter",
        "--config-folder",
        "--tokenizer-name",
        "--config",
        "--resume",
    ] {
        let args = train(&model("tiny"), &photos(3, 0), &out, &[flag, nowhere]);
        let code = if flag == "--config" { 2 } else { 1 };
        complaints.refused(flag, &args, code, &[&format!("{flag} {nowhere}: no such")]);
        complaints.check(&format!("{flag} made a folder"), !out.exists());
    }
    for flag in ["--model", "--lora", "--config-folder"] {
        let args = generate(&model("tiny"), &out, &[flag, nowhere]);
        complaints.refused(flag, &args, 1, &[&format!("{flag} {nowhere}: no such")]);
    }
    for (flag, more) in [("--lora", "--output-dir x --lora"), ("--model", "--output-dir x --lora . --model")] {
        let args = words(&format!("adapter merge --model {} {more} {nowhere}", model("tiny").display()));
        complaints.refused(flag, &args, 1, &[&format!("{flag} {nowhere}: no such")]);
    }
}

#[test]
fn names_that_say_something_else_and_options_without_effect_are_told() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let run = at("run");
    lorabooth_ok(&dreambooth(&run, "--checkpointing-steps 1"));
    // Images of the class among the photos would be learned as the subject.
    let mine = photos(3, 0);
    let both = mine.display().to_string();
    let args = train(
        &model("tiny"),
        &mine,
        &at("both"),
        &["--with-prior-preservation", "--class-data-dir", &both, "--class-prompt", "a dog"],
    );
    complaints.refused("one folder for both", &args, 1, &["--class-data-dir", "--instance-data-dir"]);
    complaints.check("images were made", fs::read_dir(&mine).unwrap().count() == 3);
    for (to, name, word) in [
        ("kohya", "kohya", ".safetensors"),
        ("peft", "peft.safetensors", "folder"),
        ("diffusers", "diffusers.safetensors", "folder"),
        ("peft --half", "half", "--half"),
    ] {
        let line = format!("adapter convert {} --to {to} --output {}", run.display(), at(name).display());
        complaints.refused(&line, &words(&line), 2, &[word]);
        complaints.check(&format!("{name} is left"), !at(name).exists());
    }
    let output = lorabooth(&dreambooth(
        &at("idle"),
        "--lr-warmup-steps 5 --lora-text-encoder-r 4 --validation-steps 1 --max-train-steps 0",
    ));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for flag in ["--lr-warmup-steps", "--train-text-encoder", "--validation-prompt"] {
        complaints.check(&format!("{flag} is not in {said}"), said.lines().any(|line| line.contains(flag)));
    }
    // Other tools' names of flags.
    let others = "--checkpoints_total_limit 1 --min_snr_gamma 5 --target_modules to_q --dataloader_num_workers 2";
    lorabooth_ok(&dreambooth(&at("others"), others));
    // What a program reads stays JSON where the command line is wrong.
    let output = lorabooth(&words("train llm --json --nonsense"));
    let event: Value = serde_json::from_slice(&output.stdout).unwrap();
    complaints.check("no error event", event["event"] == "error" && output.status.code() == Some(2));
}

#[test]
fn what_stands_in_the_way_is_named_and_not_a_flag_that_nobody_gave() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("logs"), "mine").unwrap();
    let file = out.join("logs").display().to_string();
    let args = train(&model("tiny"), &photos(3, 0), &out, &[]);
    complaints.refused("a file logs", &args, 1, &[&format!("{file} is a file"), "move it away", "--logging-dir"]);
    complaints.check("logs is gone", fs::read(out.join("logs")).unwrap() == b"mine");
    let run = folder.path().join("run");
    lorabooth_ok(&dreambooth(&run, "--checkpointing-steps 1"));
    let (model, merged) = (model("tiny").display().to_string(), folder.path().join("merged"));
    let merge =
        |to: &Path| words(&format!("adapter merge --model {model} --lora {} --output {}", run.display(), to.display()));
    fs::create_dir(&merged).unwrap();
    fs::write(merged.join("model_index.json"), "{}").unwrap();
    let output = lorabooth(&merge(&merged));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    complaints.check(&said, output.status.code() == Some(1) && said.contains("choose another folder"));
    complaints.check(&said, !said.contains("--output-dir"));
}

#[test]
fn a_subject_without_words_is_refused() {
    let mut complaints = Complaints::default();
    let folder = tempfile::tempdir().unwrap();
    let (out, mine) = (folder.path().join("out"), folder.path().join("photos"));
    fs::create_dir(&mine).unwrap();
    for name in ["00.png", "01.png"] {
        fs::copy(photos(3, 0).join(name), mine.join(name)).unwrap();
    }
    fs::write(mine.join("00.txt"), "a photo of sks dog").unwrap();
    let args = train(&model("tiny"), &mine, &out, &["--instance-prompt", " "]);
    complaints.refused("no words", &args, 1, &["--instance-prompt is empty", "1 of the 2 photos", "caption"]);
    fs::write(mine.join("01.txt"), "a photo of sks dog, asleep").unwrap();
    lorabooth_ok(&args);
}

#[test]
fn a_recorded_run_is_resumed_in_its_own_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    lorabooth_ok(&dreambooth(&run, "--checkpointing-steps 1 --validation-prompt sks --train-text-encoder"));
    // What it leaves is in the table of docs/files.md.
    let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/files.md")).unwrap();
    for entry in fs::read_dir(&run).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let name = if name.starts_with("checkpoint-") { "checkpoint-N".to_owned() } else { name };
        let name = if entry.path().is_dir() { format!("{name}/") } else { name };
        assert!(documented.lines().any(|line| line.starts_with("| ") && line.contains(&format!("`{name}`"))), "{name}");
    }
    fs::remove_dir_all(run.join("checkpoint-2")).unwrap();
    let record = run.join("run.json").display().to_string();
    let said = lorabooth_ok(&["train", "dreambooth", "--config", &record, "--resume"]);
    assert!(said.contains("checkpoint-1") && !said.contains("a new adapter"), "{said}");
    assert!(run.join("checkpoint-2").is_dir());
}
