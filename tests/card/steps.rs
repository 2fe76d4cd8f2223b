//! What runs on a card, on the stand-in for one (tests/fake_cuda): every training learns what it learns on the CPU, with no tensor left there;
//! and the launches, waits, allocations and bytes of a step stay under their ceilings.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

mod mistakes;

use crate::support::stand_in::{counted, folder, on_card_ok, Counts};
use crate::support::{
    jobs, lorabooth_ok, made, model, photos, psnr, python, read_json, relative_error, stand_in, words,
};
use lorabooth::weights::{BaseWeight, Int8Weight, Op};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

const COUNT_ALONE: (&str, &str) = ("FAKE_CUDA_COMPUTE", "0");

/// A DreamBooth command on `model` with random photos.
fn dreambooth(model: &Path, out: &Path, flags: &str) -> Vec<String> {
    words(&format!(
        "train dreambooth --quiet --threads 1 --model {} --instance-data-dir {} --instance-prompt sks --train-text-encoder \
         --output-dir {} --overwrite {flags}",
        model.display(),
        photos(5, 0).display(),
        out.display()
    ))
}

/// The losses that a run wrote.
fn losses(out: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

fn assert_close(actual: &[f64], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let error = |(a, e): (&f64, &f64)| (a - e).abs() / e.abs();
    let worst = actual.iter().zip(expected).map(error).fold(0.0, f64::max);
    println!("{what}: losses within {worst:.1e}");
    assert!(worst < bound, "{what}: {actual:?} are not {expected:?} ({worst:.1e})");
}

#[test]
fn stable_diffusion_learns_what_it_learns_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, card) = (folder.path().join("cpu"), folder.path().join("card"));
    let common = "--resolution 64 --max-train-steps 4 --learning-rate 1e-3";
    for (variant, both) in [
        ("tiny", ""),
        ("tiny-v", "--resolution 128 --with-prior-preservation --num-class-images 2 --train-batch-size 2"),
    ] {
        let class = photos(2, 9);
        let class = format!("--class-prompt dog --class-data-dir {}", class.display());
        let common = format!("{common} {both} {}", if both.is_empty() { "" } else { &class });
        let train = |out: &Path, device: &str, flags: &str| {
            dreambooth(&model(variant), out, &format!("{common} --device {device} {flags}"))
        };
        lorabooth_ok(&train(&cpu, "cpu", "--mixed-precision no"));
        let expected = losses(&cpu);
        for (flags, bound, variables) in [
            ("--mixed-precision no", 1e-5, [("FAKE_CUDA_CAPABILITY", "7.5")]),
            ("--mixed-precision no --gradient-checkpointing --offload cpu", 1e-5, [("FAKE_CUDA_CAPABILITY", "7.5")]),
            ("--gradient-checkpointing", 5e-3, [("FAKE_CUDA_CAPABILITY", "7.5")]),
            ("--offload cpu --center-crop", f64::NAN, [("FAKE_CUDA_CAPABILITY", "7.5")]),
            ("", 5e-2, [("FAKE_CUDA_CAPABILITY", "8.0")]),
            // Of what does not hang on the network, one is enough. Without NVRTC and the driver's launches libtorch's own kernels do.
            ("--mixed-precision no --use-8bit-adam", 2e-2, [("FAKE_CUDA_CAPABILITY", "7.5")]),
            ("--mixed-precision no", 1e-5, [("LD_LIBRARY_PATH", "")]),
        ]
        .into_iter()
        .take(if variant == "tiny" { 7 } else { 5 })
        {
            on_card_ok(&train(&card, "cuda", flags), &variables);
            match bound.is_nan() {
                true => assert!(losses(&card).iter().all(|loss| loss.is_finite())),
                false => assert_close(&losses(&card), &expected, bound, &format!("{variant} {flags} {variables:?}")),
            }
        }
    }
}

#[test]
fn weights_that_wait_in_pinned_memory_teach_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, flags: &str| {
        let out = folder.path().join(name);
        let common = "--resolution 64 --max-train-steps 3 --device cuda --mixed-precision fp16 --lora-targets to_q,to_v,conv1,proj_out";
        on_card_ok(&dreambooth(&model("tiny"), &out, &format!("{common} {flags}")), &[]);
        std::fs::read(out.join("unet/adapter_model.safetensors")).unwrap()
    };
    assert!(run("stays", "") == run("comes", "--offload cpu"));
    assert!(
        run("stays-again", "--gradient-checkpointing") == run("comes-again", "--offload cpu --gradient-checkpointing")
    );
}

#[test]
fn language_models_learn_what_they_learn_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, card) = (folder.path().join("cpu"), folder.path().join("card"));
    let jobs = [
        jobs::gpt2(true),
        jobs::llama(),
        jobs::opt(),
        jobs::bloom(),
        jobs::t5(),
        jobs::t5_gated(),
        jobs::bert(),
        jobs::gpt2_classifier(),
    ];
    for job in jobs {
        // The last of these words wins.
        let train = |out: &Path, more: &str| {
            job.train(
                out,
                &words(&format!("--overwrite --max-train-steps 3 --train-batch-size 3 {more}"))
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>(),
            )
        };
        lorabooth_ok(&train(&cpu, ""));
        let expected = losses(&cpu);
        for (flags, bound) in [
            ("", 1e-5),
            ("--gradient-checkpointing --offload cpu", 1e-5),
            ("--mixed-precision fp16", 5e-3),
            ("--load-in-8bit", 3e-2),
        ] {
            on_card_ok(&train(&card, &format!("--device cuda {flags}")), &[]);
            assert_close(&losses(&card), &expected, bound, &format!("{} {flags}", job.name));
        }
    }
}

#[test]
fn weights_in_few_bits_learn_what_they_learn_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, card) = (folder.path().join("cpu"), folder.path().join("card"));
    let compare = |what: &str, train: &dyn Fn(&Path, &str) -> Vec<String>| {
        for bits in ["nf4", "fp8"] {
            lorabooth_ok(&train(&cpu, &format!("--device cpu --quantize {bits}")));
            let expected = losses(&cpu);
            for more in ["", "--offload cpu", "--gradient-checkpointing"] {
                on_card_ok(&train(&card, &format!("--device cuda --quantize {bits} {more}")), &[]);
                assert_close(&losses(&card), &expected, 1e-5, &format!("{what} {bits} {more}"));
            }
        }
    };
    for job in [jobs::llama(), jobs::gpt2(true)] {
        compare(job.name, &|out, more| {
            let flags = words(&format!("--overwrite --max-train-steps 3 {more}"));
            job.train(out, &flags.iter().map(String::as_str).collect::<Vec<_>>())
        });
    }
    compare("Stable Diffusion", &|out, more| {
        let common = "--overwrite --mixed-precision no --resolution 64 --max-train-steps 3 --train-text-encoder --lora-targets to_q,conv1";
        dreambooth(&model("tiny"), out, &format!("{common} {more}"))
    });
}

#[test]
fn an_image_is_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |device: &str| {
        let path = folder.path().join(format!("{device}.png"));
        let line = format!(
            "generate --quiet --device {device} --dtype fp32 --steps 3 --height 64 --width 64 --prompt sks --threads 1 --model {} --output {}",
            model("tiny").display(),
            path.display()
        );
        (words(&line), path)
    };
    let ((cpu, expected), (card, actual)) = (draw("cpu"), draw("cuda"));
    lorabooth_ok(&cpu);
    on_card_ok(&card, &[]);
    assert!(psnr(actual, expected) > 60.0);
}

/// A pipeline or a language model's job of published size whose weights are all 0.
fn hollow(options: Value) -> PathBuf {
    made("hollow_models.py", "hollow", &options)
}

/// Launches, waits of the host, allocations, and MB at the peak, allocated and reserved.
type Figures = [i64; 5];

/// Holds the last step of a training, by when all is warm, against its ceiling.
fn check(what: &str, counts: &[Counts], most: Figures) -> Result<(), String> {
    let step = counts.last().unwrap();
    let mb = |name: &str| step.number(name) / 1_000_000;
    let found = [step.launches(), step.waits(), step.number("allocations"), mb("peak_allocated"), mb("peak_reserved")];
    let line = format!("{what}: launches, waits, allocations, MB allocated and reserved {found:?}, at most {most:?}");
    println!("{line}");
    match found.iter().zip(most).all(|(&found, most)| found <= most) {
        true => Ok(()),
        false => Err(format!("{line}\n{}", step.told())),
    }
}

#[test]
fn a_step_of_stable_diffusion_stays_under_its_ceilings() {
    let (folder, model) = (tempfile::tempdir().unwrap(), hollow(json!({ "variant": "sd15" })));
    let common = "--device cuda --mixed-precision fp16 --resolution 512 --center-crop --max-train-steps 3 --lora-r 8 --lora-text-encoder-r 8";
    let mut over = Vec::new();
    for (flags, most) in [
        ("--gradient-checkpointing", [3000, 2, 3400, 2110, 2160]),
        ("--gradient-checkpointing --use-8bit-adam", [3100, 2, 3400, 2110, 2160]),
        ("--gradient-checkpointing --load-in-8bit", [4350, 2, 5550, 1760, 1800]),
        ("--gradient-checkpointing --quantize fp8", [4050, 2, 4400, 1160, 1200]),
        ("--gradient-checkpointing --quantize nf4", [3750, 2, 4100, 1570, 1640]),
        ("--gradient-checkpointing --offload cpu", [3700, 2, 3400, 420, 450]),
        ("", [2100, 2, 2300, 2540, 2580]),
    ] {
        let args = dreambooth(&model, &folder.path().join("out"), &format!("{common} {flags}"));
        over.extend(check(&format!("Stable Diffusion 1.5 {flags}"), &counted(&args, &[COUNT_ALONE], 3), most).err());
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

#[test]
fn samples_while_stable_diffusion_trains_stay_under_their_ceilings() {
    let (folder, model) = (tempfile::tempdir().unwrap(), hollow(json!({ "variant": "sd15" })));
    let common = "--device cuda --mixed-precision fp16 --resolution 512 --center-crop --max-train-steps 3 --lora-r 8 --lora-text-encoder-r 8 \
        --gradient-checkpointing --validation-prompt sks --num-validation-images 1 --validation-steps 2";
    for (flags, most) in [("", 2400), ("--offload cpu", 700)] {
        let args = dreambooth(&model, &folder.path().join("out"), &format!("{common} {flags}"));
        let peak = counted(&args, &[COUNT_ALONE], 3).pop().unwrap().number("peak_allocated") / 1_000_000;
        println!("Stable Diffusion 1.5 with samples {flags}: {peak} MB allocated, at most {most}");
        assert!(peak <= most, "{flags}: {peak} MB, at most {most}");
    }
}

/// The shapes of published models: GPT-2, SmolLM2-135M, T5-small.
fn language_job(name: &str) -> (PathBuf, &'static str) {
    let (class, config, small, rows, task) = match name {
        "gpt2" => {
            ("GPT2LMHeadModel", json!({}), json!({ "n_embd": 24, "n_layer": 1, "n_head": 3 }), 50257, "causal-lm")
        }
        "llama" => (
            "LlamaForCausalLM",
            json!({ "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "tie_word_embeddings": true }),
            json!({ "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1 }),
            49152,
            "causal-lm",
        ),
        _ => (
            "T5ForConditionalGeneration",
            json!({ "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "decoder_start_token_id": 0 }),
            json!({ "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 1, "num_heads": 3, "decoder_start_token_id": 0 }),
            32128,
            "seq2seq-lm",
        ),
    };
    (hollow(json!({ "class": class, "config": config, "small": small, "rows": rows, "words": 40 })), task)
}

#[test]
fn a_step_of_a_language_model_stays_under_its_ceilings() {
    let folder = tempfile::tempdir().unwrap();
    let mut over = Vec::new();
    for (name, flags, most) in [
        ("gpt2", "", [440, 1, 550, 305, 320]),
        ("gpt2", "--gradient-checkpointing", [610, 1, 820, 275, 290]),
        ("gpt2", "--load-in-8bit", [580, 1, 780, 220, 245]),
        ("llama", "", [3400, 1, 3150, 400, 440]),
        ("t5", "", [1050, 1, 1150, 180, 190]),
    ] {
        let (job, task) = language_job(name);
        let args = words(&format!(
            "train llm --quiet --device cuda --threads 1 --mixed-precision fp16 --no-shuffle --task {task} --model {} --train-file {} \
             --label-column label --max-train-steps 3 --train-batch-size 4 --output-dir {} --overwrite {flags}",
            job.join("model").display(),
            job.join("train.jsonl").display(),
            folder.path().join("out").display()
        ));
        over.extend(check(&format!("{name} {flags}"), &counted(&args, &[COUNT_ALONE], 3), most).err());
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// A query sees nothing behind it: only padding before a text has to be hidden from one.
#[test]
fn padding_takes_a_mask_where_it_could_be_seen_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (job, batch, masked) in [
        (jobs::gpt2(true), 3, false),
        (jobs::llama(), 3, false),
        (jobs::gpt2_classifier(), 3, false),
        (jobs::bert(), 1, false),
        (jobs::bert(), 3, true),
    ] {
        let more =
            format!("--overwrite --device cuda --mixed-precision fp16 --max-train-steps 2 --train-batch-size {batch}");
        let args = job.train(&folder.path().join("out"), &more.split(' ').collect::<Vec<_>>());
        let step = counted(&args, &[COUNT_ALONE, ("FAKE_CUDA_CAPABILITY", "8.0")], 2).pop().unwrap();
        let launches = [step.launches_of("attention (masked)") > 0, step.launches_of("attention") > 0];
        assert_eq!(launches, [masked, !masked], "{}, {batch} texts: {}", job.name, step.told());
    }
}

#[test]
fn a_plan_has_its_products_queued() {
    let plan = format!(
        "plan dreambooth --device cuda --threads 1 --resolution 64 --train-text-encoder --model {}",
        model("tiny").display()
    );
    let counts = counted(&words(&plan), &[COUNT_ALONE], 0).pop().unwrap();
    println!("a plan: {} launches, {} waits", counts.launches(), counts.waits());
    assert!(counts.launches() > 10 * counts.waits(), "{}", counts.told());
    assert!(counts.waits() <= 300, "{}", counts.told());
}

/// Outliers and their columns, rows that are few, widths of several blocks, and gradients of a weight that is made dense in two parts.
#[test]
fn a_product_in_8_bits_is_the_cpus() {
    let Some(_) = stand_in::on_the_stand_in("card::steps::a_product_in_8_bits_is_the_cpus") else { return };
    let mut generator = lorabooth::libtorch::random::Generator::new(0);
    for (m, k, n, threshold, outliers) in
        [(40, 304, 72, 6.0, 9), (3, 8200, 2056, 6.0, 300), (17, 64, 136, 6.0, 0), (5, 64, 16, 0.0, 4)]
    {
        let (weight, bias) = (generator.randn(&[n, k]), generator.randn(&[n]));
        let (xs, grad) = (generator.randn(&[m, k]).clamp(-3.0, 3.0), generator.randn(&[m, n]));
        for place in Vec::<i64>::try_from(generator.randint(0, m * k, &[outliers])).unwrap() {
            drop(xs.view([-1]).get(place).fill_(if place % 2 == 0 { 7.5 } else { -31.0 }));
        }
        let made = |device: Device| {
            let int8 = BaseWeight::Int8(Int8Weight::quantise(&weight.to_device(device), Kind::Float, threshold));
            let xs = xs.to_device(device).set_requires_grad(true);
            // What it marks is not marked in the next.
            drop(int8.run(Op::Linear, &(&xs * 3.0), None));
            let ys = int8.run(Op::Linear, &xs, Some(&bias.to_device(device)));
            (&ys * grad.to_device(device)).sum(Kind::Float).backward();
            [ys.detach(), xs.grad()].map(|tensor| tensor.to_device(Device::Cpu))
        };
        // A code may be its neighbour: the CPU multiplies by a reciprocal where the kernel divides.
        for ((card, cpu), bound) in made(Device::Cuda(0)).iter().zip(&made(Device::Cpu)).zip([2e-3, 2e-6]) {
            let error = relative_error(card, cpu);
            assert!(error < bound, "{m} {k} {n} {threshold}: {error:.1e}, at most {bound:.0e}");
        }
    }
}

/// NVRTC comes with libtorch for CUDA; without it there is nothing to compile with.
#[test]
fn nvrtc_compiles_the_kernels() {
    let beside = stand_in::libtorch().join("../nvidia/cu13/lib/libnvrtc.so.13");
    if !beside.exists() {
        println!("skipped: {} is not there", beside.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logs.json");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/libtorch");
    python("nvrtc.py", &[out.to_str().unwrap(), &json!({ "library": beside, "sources": sources }).to_string()]);
    let logs = read_json(out);
    assert!(logs.as_object().unwrap().len() >= 3, "{logs}");
    for (file, log) in logs.as_object().unwrap() {
        assert_eq!(log, "", "{file}");
    }
}

/// The kernels are used where they can be had.
#[test]
fn kernels_of_our_own_are_launched() {
    let out = tempfile::tempdir().unwrap();
    let args = dreambooth(
        &model("tiny"),
        out.path(),
        "--device cuda --resolution 64 --max-train-steps 1 --mixed-precision fp16",
    );
    let step = counted(&args, &[], 1).pop().unwrap();
    for kernel in
        ["kernel norm_fp16", "kernel norm_gradient_fp16", "kernel gated_gelu_fp16", "kernel quick_gelu_gradient_fp16"]
    {
        assert!(step.launches_of(kernel) > 0, "{kernel} {}", step.told());
    }
    assert!(folder().join("libcuda.so.1").exists());
}
