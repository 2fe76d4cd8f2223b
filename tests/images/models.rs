//! What each network of a pipeline computes equals what diffusers and transformers compute.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::{made, model, read, relative_error};
use lorabooth::adapters::{Part, Sites};
use lorabooth::models::stable_diffusion::{AutoencoderKl, PipelineFiles};
use lorabooth::nn::Loader;
use lorabooth::weights::Placement;
use serde_json::json;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const FLOAT32: Placement = Placement { device: Device::Cpu, kind: Kind::Float };

/// What the VAE of `files` computes in both directions is what `assert_equal` knows by these names, made from what is `expected`.
pub fn vae_equals(files: &PipelineFiles, expected: &BTreeMap<String, Tensor>, assert_equal: &dyn Fn(&str, &Tensor)) {
    tch::no_grad(|| {
        let vae = files.load_vae(FLOAT32).unwrap().model;
        let posterior = vae.encode(&expected["vae.pixels"]);
        assert_equal("vae.mean", &posterior.mean);
        assert_equal("vae.logvar", &posterior.log_variance);
        assert_equal("vae.decoded", &vae.decode(&expected["vae.latents"]));
    });
}

/// Outputs and gradients of every network against the reference's, for images of `height` × `width`.
fn check(variant: &str, options: serde_json::Value, height: i64, width: i64) {
    let folder = match options.is_null() {
        true => model(variant),
        false => made("models.py", variant, &options),
    };
    let file_variant = options.get("file_variant").and_then(|value| value.as_str());
    let request = json!({ "model": folder, "height": height, "width": width, "file_variant": file_variant });
    let expected = read(made("forward.py", "forward.safetensors", &request));
    let files = PipelineFiles::open(&folder, file_variant).unwrap();
    let assert_equal = |name: &str, actual: &Tensor| {
        let error = relative_error(actual, &expected[name]);
        println!("{variant} {name}: {error:.1e}");
        // Gradients add up over thousands of rounded terms, and have no fixed scale to be compared with.
        let bound = if name.ends_with("gradient") { 5e-4 } else { 1e-5 };
        assert!(error < bound, "{variant} {name} differs by {error:e}");
    };

    tch::no_grad(|| {
        let text_encoder = files.load_text_encoder(Part::TextEncoder, FLOAT32).unwrap().model;
        assert_equal("text_encoder.output", &text_encoder.forward(&expected["text_encoder.input_ids"], false));
    });
    vae_equals(&files, &expected, &assert_equal);
    let unet = files.load_unet(FLOAT32).unwrap().model;
    for checkpointing in [false, true] {
        let latents = expected["unet.latents"].copy().set_requires_grad(true);
        let text = expected["unet.context"].copy().set_requires_grad(true);
        let output = unet.forward(&latents, &expected["unet.timesteps"], &text.shallow_clone().into(), checkpointing);
        assert_equal("unet.output", &output.detach());
        output.mse_loss(&expected["unet.target"], tch::Reduction::Mean).backward();
        assert_equal("unet.context_gradient", &text.grad());
        assert_equal("unet.latents_gradient", &latents.grad());
    }
}

#[test]
fn small_networks_of_both_generations_equal_the_reference() {
    check("tiny", json!(null), 64, 48);
    check("tiny4", json!(null), 64, 128);
    check("tiny-v", json!(null), 64, 48);
}

#[test]
fn sharded_half_precision_and_old_spellings_are_read() {
    check("tiny", json!({ "variant": "tiny", "spelling": "hub", "dtype": "float16", "file_variant": "fp16" }), 32, 48);
    check("tiny", json!({ "variant": "tiny", "max_shard_size": "200KB" }), 32, 48);
}

#[test]
fn networks_of_stable_diffusion_1_5_shapes_equal_the_reference() {
    check("sd15", json!(null), 128, 64);
}

#[test]
fn networks_of_stable_diffusion_2_1_shapes_equal_the_reference() {
    check("sd21", json!(null), 64, 128);
}

/// Tiles of the VAE's own size, and of 512 pixels where it was made for larger images.
#[test]
fn the_vae_encodes_and_decodes_in_the_reference_s_tiles() {
    let _no_gradient = tch::no_grad_guard();
    for (variant, sizes, tile) in [
        ("tiny4", json!([[12, 20], [8, 30], [9, 8], [5, 3]]), None),
        ("tiny-xl", json!([[16, 40], [29, 17]]), None),
        ("tiny-xl", json!([[64, 80]]), Some(512)),
    ] {
        let folder = model(variant);
        let options = json!({ "model": folder, "sizes": sizes, "tile": tile });
        let expected = read(made("vae_tiling.py", "tiles.safetensors", &options));
        let files = PipelineFiles::open(&folder, None).unwrap();
        let mut config = files.vae_config().unwrap();
        if tile.is_some() {
            config.sample_size = 1024;
        }
        let loader = Loader::new(files.vae_weights().unwrap(), Sites::new(), FLOAT32).unwrap();
        let mut vae = AutoencoderKl::load(&loader, &config).unwrap();
        for (i, size) in sizes.as_array().unwrap().iter().enumerate() {
            let of = |name: &str| &expected[&format!("{i}.{name}")];
            for (name, tiling) in [("whole", false), ("tiled", true)] {
                vae.encoder.use_tiling(tiling);
                vae.decoder.use_tiling(tiling);
                let posterior = vae.encode(of("pixels"));
                let moments = Tensor::cat(&[posterior.mean, posterior.log_variance], 1);
                let wanted = of(&format!("moments_{name}"));
                let wanted = Tensor::cat(&[wanted.narrow(1, 0, 4), wanted.narrow(1, 4, 4).clamp(-30.0, 20.0)], 1);
                for (what, error) in [
                    ("encoded", relative_error(&moments, &wanted)),
                    ("decoded", relative_error(&vae.decode(of("latents")), of(name))),
                ] {
                    println!("{variant} {size} {name} {what}: {error:.1e}");
                    // Attention adds up over thousands of places in the large ones.
                    let bound = if tile.is_some() { 1e-4 } else { 1e-5 };
                    assert!(error < bound, "{variant} {size} {name} {what} differs by {error:e}");
                }
            }
            let side = tile.map_or(config.tile_side().unwrap(), |tile| tile / 8);
            let is_larger = size.as_array().unwrap().iter().any(|places| places.as_i64().unwrap() > side);
            assert_eq!(of("tiled") != of("whole"), is_larger, "{variant} {size}");
        }
    }
}
