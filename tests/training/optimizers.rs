//! Optimizers, schedules, clipping, losses and event files against torch, bitsandbytes, diffusers, transformers and
//! TensorBoard.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support;
use clap::ValueEnum;
use lorabooth::schedulers::{NoiseSchedule, PredictionType, SchedulerConfig};
use lorabooth::train::adamw::AdamWConfig;
use lorabooth::train::adamw8bit::Codebook;
use lorabooth::train::gradients::{clip, grad_norm};
use lorabooth::train::losses::dreambooth_loss;
use lorabooth::train::lr_schedule::{LrSchedule, ScheduleKind};
use lorabooth::train::optimizer::Optimizer;
use lorabooth::train::tensorboard::EventWriter;
use lorabooth::train::Parameters;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

type Tensors = BTreeMap<String, Tensor>;

fn reference(what: &str, file: &str) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    support::python("optimizers.py", &[what, folder.path().to_str().unwrap()]);
    read(&folder.path().join(file))
}

fn read(path: &Path) -> Tensors {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn number(tensor: &Tensor) -> f64 {
    f64::try_from(tensor).unwrap()
}

fn distance(ours: &Tensor, theirs: &Tensor) -> f64 {
    number(&(ours - theirs).abs().max())
}

fn leaves(expected: &Tensors, prefix: &str) -> Parameters {
    let named = expected.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value)));
    named.map(|(name, value)| (name, value.copy().set_requires_grad(true))).collect()
}

/// `(gradient * leaf).sum()` has the recorded gradient.
fn set_grads(params: &Parameters, expected: &Tensors, step: i64) {
    for (name, param) in params {
        if let Some(grad) = expected.get(&format!("grad.{step}.{name}")) {
            (param * grad).sum(Kind::Float).backward();
        }
    }
}

fn rate(step: i64) -> f64 {
    1e-2 * (1. - step as f64 / 200.)
}

fn config() -> AdamWConfig {
    AdamWConfig { weight_decay: 0.02, ..AdamWConfig::default() }
}

/// 100 steps, saved and loaded after the 37th. The differences from the reference at each tenth: the largest of an
/// element, and the largest mean of a parameter.
fn differences(expected: &Tensors, use_8bit: bool) -> (f64, f64) {
    tch::set_num_threads(1);
    let params = leaves(expected, "initial.");
    let mut optimizer = Optimizer::new(config(), use_8bit).unwrap();
    let (mut largest, mut largest_mean) = (0f64, 0f64);
    for step in 0..100 {
        if step == 37 {
            let state = optimizer.state();
            optimizer = Optimizer::new(config(), use_8bit).unwrap();
            optimizer.load_state(&params, &state).unwrap();
        }
        set_grads(&params, expected, step);
        optimizer.step(&params, rate(step)).unwrap();
        optimizer.zero_grad(&params).unwrap();
        assert!(params.values().all(|param| !param.grad().defined()));
        for (name, param) in &params {
            if let Some(theirs) = expected.get(&format!("after.{}.{name}", step + 1)) {
                largest = largest.max(distance(param, theirs));
                largest_mean = largest_mean.max(number(&(param - theirs).abs().mean(Kind::Double)));
            }
        }
    }
    (largest, largest_mean)
}

#[test]
fn adamw_takes_torchs_steps_also_across_a_save_and_without_some_gradients() {
    let (largest, _) = differences(&reference("adamw", "adamw.safetensors"), false);
    assert!(largest < 1e-6, "{largest}");
}

#[test]
fn adamw_8bit_takes_bitsandbytes_steps_and_quantises_as_it_does() {
    let folder = tempfile::tempdir().unwrap();
    support::python("optimizers.py", &["adamw8bit", folder.path().to_str().unwrap()]);
    let expected = read(&folder.path().join("quantize.safetensors"));
    for (name, signed) in [("signed", true), ("unsigned", false)] {
        let of = |part: &str| &expected[&format!("{name}.{part}")];
        assert_eq!(distance(&lorabooth::weights::storage::dynamic_map(signed), of("map")), 0.);
        let codebook = Codebook::new(signed, Device::Cpu);
        let (codes, absmax) = codebook.quantize(of("values"));
        assert_eq!(&absmax, of("absmax"));
        let other = number(&codes.ne_tensor(of("codes")).to_kind(Kind::Float).sum(Kind::Float));
        // It multiplies with 1 / absmax where we divide: a value halfway between two codes can fall either way.
        assert!(other <= 2., "{name}: {other} codes of 5000 differ");
        let ours = codebook.dequantize(of("codes"), &absmax);
        assert_eq!(distance(&ours, of("back")), 0.);
        let error = |xs: &Tensor| number(&(xs - of("values")).abs().sum(Kind::Double));
        assert!(error(&codebook.dequantize(&codes, &absmax)) <= error(of("fast")), "{name}: worse than its kernel");
    }
    let (largest, mean) = differences(&read(&folder.path().join("adamw8bit.safetensors")), true);
    // A value at the edge between two codes falls either way with its last bit: bitsandbytes differs from itself by 4e-4
    // in single elements and 8e-8 in the mean where each gradient is moved by one rounding.
    assert!(largest < 2e-3 && mean < 5e-7, "{largest} {mean}");
}

#[test]
fn a_regression_converges_in_8_bits_as_in_32() {
    // Small tensors: threads would wait for one another.
    tch::set_num_threads(1);
    let loss_after = |use_8bit: bool| {
        let mut generator = lorabooth::libtorch::random::Generator::new(1);
        let (xs, truth) = (generator.randn(&[256, 64]), generator.randn(&[64, 80]));
        let ys = xs.matmul(&truth) + generator.randn(&[256, 80]) * 0.5;
        let weight = Tensor::zeros([64, 80], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let params = Parameters::from([("weight".to_owned(), weight)]);
        let mut optimizer = Optimizer::new(AdamWConfig::default(), use_8bit).unwrap();
        for step in 0..400 {
            let loss = xs.matmul(&params["weight"]).mse_loss(&ys, tch::Reduction::Mean);
            if step == 399 {
                return number(&loss);
            }
            loss.backward();
            optimizer.step(&params, 2e-2).unwrap();
            optimizer.zero_grad(&params).unwrap();
        }
        unreachable!()
    };
    let (full, quantised) = (loss_after(false), loss_after(true));
    assert!(full < 0.3 && (quantised / full - 1.).abs() < 0.03, "{full} {quantised}");
}

#[test]
fn a_state_of_other_parameters_is_refused_by_name() {
    let leaf = |size: i64| Tensor::ones([size], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    for (use_8bit, size) in [(false, 10), (true, 10), (true, 5000)] {
        let params = Parameters::from([("unet.a".to_owned(), leaf(size))]);
        params["unet.a"].sum(Kind::Float).backward();
        let mut optimizer = Optimizer::new(config(), use_8bit).unwrap();
        optimizer.step(&params, 1e-3).unwrap();
        for others in [("unet.b", size), ("unet.a", size + 1000)] {
            let others = Parameters::from([(others.0.to_owned(), leaf(others.1))]);
            let mut fresh = Optimizer::new(config(), use_8bit).unwrap();
            let message = fresh.load_state(&others, &optimizer.state()).unwrap_err().to_string();
            assert!(message.contains("unet.a"), "{message}");
        }
    }
}

#[test]
fn schedules_are_those_of_diffusers_and_transformers_at_each_of_100_steps() {
    let folder = tempfile::tempdir().unwrap();
    support::python("optimizers.py", &["schedules", folder.path().to_str().unwrap()]);
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(folder.path().join("schedules.json")).unwrap()).unwrap();
    for case in &cases {
        let schedule = LrSchedule {
            kind: ScheduleKind::from_str(case["kind"].as_str().unwrap(), false).unwrap(),
            learning_rate: case["lr"].as_f64().unwrap(),
            warmup_steps: case["warmup"].as_u64().unwrap(),
            total_steps: case["total"].as_u64().unwrap(),
            num_cycles: case["num_cycles"].as_u64().unwrap_or(1),
            power: case["power"].as_f64().unwrap_or(1.),
        };
        for curve in case["curves"].as_array().unwrap() {
            for (step, theirs) in curve.as_array().unwrap().iter().enumerate() {
                let theirs = theirs.as_f64().unwrap() / schedule.learning_rate;
                let ours = schedule.factor(step as u64);
                assert!((ours - theirs).abs() < 1e-6, "{schedule:?}, step {step}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn clipping_is_torchs_for_small_and_large_gradients() {
    let expected = reference("clip", "clip.safetensors");
    for case in 0..2 {
        let part = |name: &str| (0..3).map(|i| expected[&format!("{case}.{name}.{i}")].copy()).collect::<Vec<_>>();
        let grads = part("before");
        let norm = grad_norm(&grads).unwrap();
        clip(&grads, number(&norm) as f32, 1.0).unwrap();
        assert!((number(&norm) / number(&expected[&format!("{case}.norm")]) - 1.).abs() < 1e-6);
        assert!(grads.iter().zip(part("after")).all(|(ours, theirs)| distance(ours, &theirs) < 1e-7));
    }
}

#[test]
fn losses_and_their_gradients_are_the_scripts() {
    let expected = reference("losses", "losses.safetensors");
    let config = r#"{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}"#;
    let schedule = NoiseSchedule::new(&SchedulerConfig::from_json(config).unwrap()).unwrap();
    let timesteps = &expected["timesteps"];
    let snr = schedule.snr(timesteps);
    assert!(number(&(&snr / &expected["snr"] - 1.).abs().max()) < 1e-6);
    for (gamma_name, gamma) in [("None", None), ("5.0", Some(5.0))] {
        for (kind_name, kind) in [("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::VPrediction)] {
            for (prior_name, prior) in [("None", None), ("0.7", Some(0.7))] {
                let theirs = |what: &str| &expected[&format!("{gamma_name}.{kind_name}.{prior_name}.{what}")];
                let prediction = expected["prediction"].copy().set_requires_grad(true);
                let weights = gamma.map(|gamma| schedule.min_snr_weights(kind, gamma, timesteps));
                let loss = dreambooth_loss(&prediction, &expected["target"], prior, weights.as_ref());
                loss.total.backward();
                assert!(distance(&loss.total, theirs("total")) < 1e-6);
                assert!(distance(&loss.instance, theirs("instance")) < 1e-6);
                assert_eq!(loss.prior.is_some(), prior.is_some());
                if let Some(ours) = &loss.prior {
                    assert!(distance(ours, theirs("prior")) < 1e-6);
                }
                assert!(distance(&prediction.grad(), theirs("grad")) < 1e-7);
            }
        }
    }
}

#[test]
fn tensorboard_reads_the_event_files_and_a_resumed_step_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(12, 8, image::Rgb([200, 10, 10])).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let mut first = EventWriter::create(folder.path(), None).unwrap();
    for step in [1, 2, 300] {
        first.scalar("loss", step as f64, step).unwrap();
    }
    first.png("samples/0", png.get_ref(), (12, 8), 2).unwrap();
    drop(first);
    let mut second = EventWriter::create(folder.path(), Some(300)).unwrap();
    second.scalar("loss", -0.5, 300).unwrap();
    drop(second);
    support::python("optimizers.py", &["events", folder.path().to_str().unwrap()]);
    let read: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("events.json")).unwrap()).unwrap();
    assert_eq!(read["scalars"], serde_json::json!({"loss": [[1, 1.0], [2, 2.0], [300, -0.5]]}));
    assert_eq!(read["images"], serde_json::json!({"samples/0": [[2, 12, 8, 12, 8]]}));
}
