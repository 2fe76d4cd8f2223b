//! The samplers and the training noise against diffusers, from a model's own `scheduler_config.json`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support;
use lorabooth::libtorch::random::Generator;
use lorabooth::schedulers::{diffusers_rs, scheduler, NoiseSchedule, PredictionType, Scheduler, SchedulerConfig};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use tch::{Kind, Tensor};

const SEEDS: [i64; 2] = [11, 12];

/// The samplers' names here and there, and what Python's `from_config` is given besides.
const SAMPLERS: &[(&str, &str)] = &[
    ("pndm", "PNDMScheduler"),
    ("ddim", "DDIMScheduler"),
    ("ddpm", "DDPMScheduler"),
    ("euler", "EulerDiscreteScheduler"),
    ("euler-a", "EulerAncestralDiscreteScheduler"),
    ("heun", "HeunDiscreteScheduler"),
    ("lms", "LMSDiscreteScheduler"),
    ("dpm++2m", "DPMSolverMultistepScheduler"),
    ("dpm++2m-karras", "DPMSolverMultistepScheduler"),
    ("unipc", "UniPCMultistepScheduler"),
];

/// A sampler on a model's configuration.
struct Case {
    key: String,
    name: &'static str,
    class: &'static str,
    config: Value,
    steps: usize,
}

/// The file of Stable Diffusion 1.5, and changes to it.
fn sd15(changes: Value) -> Value {
    let mut config = json!({
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        "clip_sample": false
    });
    for (name, value) in changes.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

/// The file of Stable Diffusion 2.1.
fn sd21() -> Value {
    sd15(json!({"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction"}))
}

fn all_samplers(label: &str, config: &Value, steps: &[usize]) -> Vec<Case> {
    let of = |(name, class): &(&'static str, &'static str), steps: usize| Case {
        key: format!("{label}/{name}/{steps}"),
        name,
        class,
        config: config.clone(),
        steps,
    };
    SAMPLERS.iter().flat_map(|sampler| steps.iter().map(move |steps| of(sampler, *steps))).collect()
}

/// The one sampler `name` on `config`.
fn one(label: &str, name: &str, config: Value, steps: usize) -> Case {
    let (name, class) = SAMPLERS.iter().find(|(known, _)| *known == name).expect("a sampler");
    Case { key: format!("{label}/{name}/{steps}"), name, class, config, steps }
}

fn model(sample: &Tensor, t: f64) -> Tensor {
    (sample * 1.3 + t * 0.01).sin() * 0.7 + sample.cos() * 0.2
}

/// Each row from its image's own generator.
fn rows(generators: &mut [Generator], size: &[i64]) -> Tensor {
    let row: Vec<i64> = std::iter::once(1).chain(size[1..].iter().copied()).collect();
    Tensor::cat(&generators.iter_mut().map(|generator| generator.randn(&row)).collect::<Vec<_>>(), 0)
}

fn sample(sampler: &mut dyn Scheduler, start: &Tensor) -> Tensor {
    let mut generators: Vec<Generator> = SEEDS.iter().map(|seed| Generator::new(*seed)).collect();
    let mut xs = start * sampler.init_noise_sigma();
    for index in 0..sampler.timesteps().len() {
        let output = model(&sampler.scale_model_input(&xs, index), sampler.timesteps()[index]);
        xs = sampler.step(&output, index, &xs, &mut |size| rows(&mut generators, size));
    }
    xs
}

/// Through the file, as a model folder has it.
fn read(config: &Value) -> SchedulerConfig {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("scheduler")).unwrap();
    std::fs::write(folder.path().join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
    SchedulerConfig::from_folder(folder.path()).unwrap()
}

/// What Python computes for `cases` and `schedules`.
fn reference(
    folder: &Path,
    cases: &[Case],
    schedules: &[(&str, Value)],
    given: &[(&str, Tensor)],
) -> BTreeMap<String, Tensor> {
    let samplers: Vec<Value> = cases
        .iter()
        .map(|case| {
            let karras = case.name.ends_with("-karras");
            let overrides = if karras { json!({"use_karras_sigmas": true}) } else { json!({}) };
            json!({"key": case.key, "config": case.config, "class": case.class, "overrides": overrides,
                "steps": case.steps, "seeds": SEEDS})
        })
        .collect();
    let schedules: Vec<Value> = schedules.iter().map(|(key, config)| json!({"key": key, "config": config})).collect();
    let text = json!({"samplers": samplers, "schedules": schedules}).to_string();
    std::fs::write(folder.join("cases.json"), text).unwrap();
    Tensor::write_safetensors(given, folder.join("given.safetensors")).unwrap();
    support::python("schedulers.py", &[folder.to_str().unwrap()]);
    read_all(folder)
}

/// The largest difference over the largest value of `expected`.
fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let largest = |xs: Tensor| xs.abs().max().double_value(&[]);
    let expected = expected.to_kind(Kind::Double);
    largest(found.to_kind(Kind::Double) - &expected) / largest(expected).max(f64::MIN_POSITIVE)
}

fn sd_files() -> Vec<Case> {
    let mut cases = all_samplers("sd15", &sd15(json!({})), &[7, 20, 50]);
    cases.extend(all_samplers("sd21", &sd21(), &[7, 20, 50]));
    cases
}

fn spacings() -> Vec<Case> {
    let mut cases = Vec::new();
    for spacing in ["leading", "trailing", "linspace"] {
        let config = sd15(json!({"timestep_spacing": spacing}));
        cases.extend(all_samplers(spacing, &config, &[7, 20, 50]));
        let config = sd15(json!({"timestep_spacing": spacing, "prediction_type": "v_prediction",
            "set_alpha_to_one": true, "clip_sample": true, "clip_sample_range": 2.5, "steps_offset": 0}));
        cases.extend(all_samplers(&format!("{spacing}-v"), &config, &[7, 20]));
    }
    cases
}

fn open_fields() -> Vec<Case> {
    let config = json!({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear"});
    all_samplers("open", &config, &[8, 20])
}

fn levels() -> Vec<Case> {
    let mut cases = Vec::new();
    let karras = json!({"use_karras_sigmas": true, "final_sigmas_type": "sigma_min"});
    for name in ["euler", "heun", "lms", "dpm++2m", "unipc"] {
        cases.push(one("karras", name, sd15(karras.clone()), 12));
        cases.push(one("cosine", name, sd15(json!({"beta_schedule": "squaredcos_cap_v2"})), 12));
    }
    for name in ["euler", "dpm++2m", "unipc"] {
        cases.push(one("sigma_min", name, sd15(json!({"final_sigmas_type": "sigma_min"})), 20));
    }
    for name in ["pndm", "ddim", "ddpm"] {
        let zero_snr = json!({"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"});
        cases.push(one("zero_snr", name, sd15(zero_snr), 12));
        cases.push(one("cosine", name, sd15(json!({"beta_schedule": "squaredcos_cap_v2"})), 12));
    }
    let zero_snr = json!({"rescale_betas_zero_snr": true, "prediction_type": "v_prediction",
        "timestep_spacing": "trailing"});
    for (name, _) in SAMPLERS {
        cases.push(one("zero_snr_trailing", name, sd15(zero_snr.clone()), 12));
        let betas: Vec<f64> = (0..1000).map(|i| 0.001 + 0.00001 * f64::from(i)).collect();
        cases.push(one("trained_betas", name, sd15(json!({"trained_betas": betas})), 10));
    }
    cases
}

fn options() -> Vec<Case> {
    let mut cases = Vec::new();
    for order in [1, 3] {
        for steps in [10, 20] {
            let config = sd15(json!({"solver_order": order}));
            cases.push(one(&format!("order{order}"), "dpm++2m", config.clone(), steps));
            cases.push(one(&format!("order{order}"), "unipc", config, steps));
        }
    }
    let at_end = json!({"final_sigmas_type": "sigma_min", "lower_order_final": false});
    for name in ["dpm++2m", "unipc"] {
        cases.push(one("at_end", name, sd15(at_end.clone()), 10));
    }
    let euler_at_end = json!({"final_sigmas_type": "sigma_min", "euler_at_final": true, "solver_type": "heun"});
    cases.push(one("heun", "dpm++2m", sd15(euler_at_end), 20));
    cases.push(one(
        "bh1",
        "unipc",
        sd15(json!({"solver_type": "bh1", "disable_corrector": [0, 3], "final_sigmas_type": "sigma_min"})),
        20,
    ));
    cases.push(one("warm_up", "pndm", sd15(json!({"skip_prk_steps": false})), 9));
    for variance in ["fixed_small_log", "fixed_large"] {
        cases.push(one(variance, "ddpm", sd15(json!({"variance_type": variance})), 9));
    }
    for name in ["ddim", "ddpm", "euler", "heun", "lms", "dpm++2m", "unipc"] {
        cases.push(one("sample", name, sd15(json!({"prediction_type": "sample"})), 9));
    }
    cases
}

/// What Python computes for all cases, in one run: starting it costs more than they do.
fn all_expected() -> BTreeMap<String, Tensor> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let cases: Vec<Case> =
            [sd_files(), spacings(), open_fields(), levels(), options()].into_iter().flatten().collect();
        reference(folder.path(), &cases, &[], &[("start", start())]);
        folder
    });
    read_all(folder.path())
}

/// The noise that all cases start from.
fn start() -> Tensor {
    Generator::new(5).randn(&[SEEDS.len() as i64, 4, 6, 5])
}

fn read_all(folder: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(folder.join("out.safetensors")).unwrap().into_iter().collect()
}

/// Every case equals diffusers within 1e-5 of its largest value; all that do not are listed at once.
fn assert_equal_to_diffusers(cases: &[Case]) {
    tch::set_num_threads(1);
    let (start, expected) = (start(), all_expected());
    let mut failures = Vec::new();
    let mut worst = 0f64;
    for case in cases {
        let mut sampler = scheduler(Some(case.name), &read(&case.config), case.steps).unwrap();
        let timesteps = Tensor::from_slice(sampler.timesteps());
        let at = |what: &str| &expected[&format!("{}.{what}", case.key)];
        if timesteps.size() != at("timesteps").size() {
            failures.push(format!("{}: timesteps {:?}, not {:?}", case.key, timesteps, at("timesteps")));
            continue;
        }
        let errors = [
            ("timesteps", distance(&timesteps, at("timesteps")), 1e-6),
            ("sigma", distance(&Tensor::from(sampler.init_noise_sigma()), at("sigma")), 1e-6),
            ("final", distance(&sample(sampler.as_mut(), &start), at("final")), 1e-5),
        ];
        worst = worst.max(errors[2].1);
        for (what, error, bound) in errors {
            if error.is_nan() || error >= bound {
                failures.push(format!("{}: {what} differs by {error:e}", case.key));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    eprintln!("{} cases, largest difference {worst:e}", cases.len());
}

#[test]
fn every_sampler_equals_diffusers_on_the_files_of_stable_diffusion_1_and_2() {
    assert_equal_to_diffusers(&sd_files());
}

#[test]
fn every_sampler_equals_diffusers_at_every_spacing() {
    assert_equal_to_diffusers(&spacings());
}

#[test]
fn fields_that_the_file_leaves_open_take_each_samplers_own_default() {
    assert_equal_to_diffusers(&open_fields());
}

#[test]
fn karras_levels_final_levels_and_schedules_equal_diffusers() {
    assert_equal_to_diffusers(&levels());
}

#[test]
fn the_options_of_each_sampler_equal_diffusers() {
    assert_equal_to_diffusers(&options());
}

#[test]
fn training_noise_equals_diffusers() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let mut generator = Generator::new(3);
    let (latents, noise) = (generator.randn(&[5, 4, 6, 5]), generator.randn(&[5, 4, 6, 5]));
    let timesteps = Tensor::from_slice(&[0i64, 1, 500, 998, 999]);
    let given = [
        ("start", latents.shallow_clone()),
        ("latents", latents.shallow_clone()),
        ("noise", noise.shallow_clone()),
        ("timesteps", timesteps.shallow_clone()),
    ];
    let schedules = [
        ("sd15", sd15(json!({}))),
        ("linear", json!({"_class_name": "DDPMScheduler"})),
        ("cosine", sd15(json!({"beta_schedule": "squaredcos_cap_v2"}))),
        ("zero_snr", sd15(json!({"rescale_betas_zero_snr": true}))),
    ];
    let expected = reference(folder.path(), &[], &schedules, &given);
    for (key, config) in &schedules {
        let schedule = NoiseSchedule::new(&read(config)).unwrap();
        let at = |what: &str| &expected[&format!("{key}.{what}")];
        assert_eq!(schedule.num_train_timesteps(), 1000);
        assert_eq!(schedule.alphas_cumprod(), at("alphas_cumprod"), "{key}");
        assert_eq!(&schedule.add_noise(&latents, &noise, &timesteps), at("noisy"), "{key}");
        assert_eq!(&schedule.velocity(&latents, &noise, &timesteps), at("velocity"), "{key}");
        assert!(distance(&schedule.snr(&timesteps), at("snr")) < 1e-6, "{key}");
        for (prediction_type, name) in
            [(PredictionType::Epsilon, "weights.epsilon"), (PredictionType::VPrediction, "weights.v_prediction")]
        {
            // Where no signal is left, the weight of epsilon is 0 / 0 there and here.
            let weights = schedule.min_snr_weights(prediction_type, 5.0, &timesteps).nan_to_num(0.0, None, None);
            assert!(distance(&weights, &at(name).nan_to_num(0.0, None, None)) < 1e-6, "{key} {name}");
        }
        let target = |prediction_type| schedule.target(prediction_type, &latents, &noise, &timesteps);
        assert_eq!(target(PredictionType::Epsilon), noise);
        assert_eq!(&target(PredictionType::VPrediction), at("velocity"));
        assert_eq!(target(PredictionType::Sample), latents);
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let config = read(&sd15(json!({})));
    let start = start();
    for (name, _) in SAMPLERS {
        let both = sample(scheduler(Some(name), &config, 6).unwrap().as_mut(), &start);
        let mut alone = scheduler(Some(name), &config, 6).unwrap();
        let mut generators = [Generator::new(SEEDS[1])];
        let mut xs = start.narrow(0, 1, 1) * alone.init_noise_sigma();
        for index in 0..alone.timesteps().len() {
            let output = model(&alone.scale_model_input(&xs, index), alone.timesteps()[index]);
            xs = alone.step(&output, index, &xs, &mut |size| rows(&mut generators, size));
        }
        assert!(distance(&xs, &both.narrow(0, 1, 1)) < 1e-6, "{name}");
    }
}

#[test]
fn the_files_of_stable_diffusion_are_sampled_by_diffusers_rs() {
    for config in [sd15(json!({})), sd21()] {
        let config = read(&config);
        assert!(diffusers_rs::pndm(&config, 20).is_some());
        assert!(diffusers_rs::ddim(&config, 20).is_some());
    }
    let trailing = read(&sd15(json!({"timestep_spacing": "trailing"})));
    assert!(diffusers_rs::pndm(&trailing, 20).is_none());
    assert!(diffusers_rs::ddim(&trailing, 20).is_none());
}

#[test]
fn options_that_a_sampler_cannot_honour_are_refused_by_name() {
    let refused = [
        ("euler", json!({"use_exponential_sigmas": true}), "use_exponential_sigmas"),
        ("euler", json!({"interpolation_type": "log_linear"}), "interpolation_type: log_linear"),
        ("dpm++2m", json!({"use_lu_lambdas": true}), "use_lu_lambdas"),
        ("dpm++2m", json!({"algorithm_type": "sde-dpmsolver++"}), "algorithm_type: sde-dpmsolver++"),
        ("dpm++2m", json!({"lambda_min_clipped": -5.1}), "lambda_min_clipped"),
        ("dpm++2m", json!({"solver_order": 4}), "solver_order: 4"),
        ("unipc", json!({"predict_x0": false}), "predict_x0"),
        ("unipc", json!({"lower_order_final": false}), "lower_order_final"),
        ("unipc", json!({"solver_type": "bh1"}), "solver_type: bh1"),
        ("ddpm", json!({"variance_type": "learned"}), "variance_type: learned"),
        ("pndm", json!({"prediction_type": "sample"}), "prediction_type: sample"),
        ("pndm", json!({"steps_offset": 1, "num_train_timesteps": 5}), "steps_offset"),
    ];
    for (name, changes, named) in refused {
        let error = scheduler(Some(name), &read(&sd15(changes)), 5).err().expect(named).to_string();
        assert!(error.contains(named), "{error}");
    }
}
