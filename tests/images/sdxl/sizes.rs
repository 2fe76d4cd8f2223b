//! The sizes of adapters: as many numbers, and as many bytes, as the reference's.

use crate::support::{lorabooth_ok, made, model, read};
use serde_json::{json, Value};
use std::path::Path;

const ATTENTION: &str = "to_k,to_q,to_v,to_out.0";
/// What sd-scripts trains of the UNet where nothing is said: each linear layer and 1×1 convolution of the transformers.
const KOHYA: &str = "to_k,to_q,to_v,to_out.0,net.0.proj,net.2,proj_in,proj_out";

/// peft on the published shapes, without numbers.
#[test]
fn adapters_on_the_published_shapes_have_the_numbers_of_the_reference() {
    let folder = made("hollow_models.py", "sdxl", &json!({ "variant": "sdxl" }));
    let trained = |targets: &str, text: Option<&str>, rank: &str| -> i64 {
        let (model, alpha) = (folder.to_str().unwrap(), "4");
        let unet = ["--lora-r", rank, "--lora-alpha", alpha, "--lora-targets", targets];
        let texts: Vec<&str> = match text {
            Some(targets) => {
                vec!["--train-text-encoder", "--lora-text-encoder-r", rank, "--lora-text-encoder-targets", targets]
            }
            None => Vec::new(),
        };
        let plan = ["plan", "dreambooth", "--json", "--device", "cpu", "--gradient-checkpointing", "--model", model];
        let said = lorabooth_ok(&[&plan[..], &unet, &texts].concat());
        let plan: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        plan["trained_parameters"].as_i64().unwrap()
    };
    for (rank, [unet, clip_l, clip_g, kohya, te1, te2]) in [
        ("8", [11_612_160, 589_824, 2_621_440, 21_278_720, 1_327_104, 5_898_240]),
        ("16", [23_224_320, 1_179_648, 5_242_880, 42_557_440, 2_654_208, 11_796_480]),
        ("32", [46_448_640, 2_359_296, 10_485_760, 85_114_880, 5_308_416, 23_592_960]),
    ] {
        assert_eq!(trained(ATTENTION, None, rank), unet, "rank {rank}");
        assert_eq!(
            trained(ATTENTION, Some("q_proj,k_proj,v_proj,out_proj"), rank),
            unet + clip_l + clip_g,
            "rank {rank}"
        );
        assert_eq!(trained(KOHYA, None, rank), kohya, "rank {rank}");
        let all = trained(KOHYA, Some("q_proj,k_proj,v_proj,out_proj,fc1,fc2"), rank);
        assert_eq!(all, kohya + te1 + te2, "rank {rank}");
    }
}

/// The bytes behind the header, and those of the file.
fn sizes(path: &Path) -> (u64, u64) {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    (bytes.len() as u64 - 8 - header, bytes.len() as u64)
}

#[test]
fn files_have_the_bytes_of_the_references() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        |r: i64| json!({ "r": r, "lora_alpha": 5, "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"] });
    for variant in ["tiny-xl", "tiny4"] {
        let xl = variant == "tiny-xl";
        let mut options = json!({ "model": model(variant), "formats": ["peft", "diffusers", "kohya"], "outputs": false,
            "unet": { "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"] }, "text_encoder": text(3) });
        if xl {
            options["text_encoder_2"] = text(2);
        }
        let theirs = made("adapters.py", "adapter", &options);
        let out = |name: &str| folder.path().join(format!("{variant}-{name}"));
        for format in ["peft", "diffusers", "kohya"] {
            let to = out(if format == "kohya" { "kohya.safetensors" } else { format });
            let from = theirs.join("peft");
            let args = ["adapter", "convert", from.to_str().unwrap(), "--to", format, "--output", to.to_str().unwrap()];
            lorabooth_ok(&args);
        }
        let parts: &[&str] = if xl { &["unet", "text_encoder", "text_encoder_2"] } else { &["unet", "text_encoder"] };
        for part in parts {
            let file = format!("{part}/adapter_model.safetensors");
            assert_eq!(sizes(&out("peft").join(&file)), sizes(&theirs.join("peft").join(&file)), "{variant} {part}");
        }
        let numbers = |path: &Path| read(path).values().map(|tensor| tensor.numel() as u64 * 4).sum::<u64>();
        for (ours, path) in [
            (out("diffusers/pytorch_lora_weights.safetensors"), "diffusers/pytorch_lora_weights.safetensors"),
            (out("kohya.safetensors"), "kohya/lora.safetensors"),
        ] {
            let (ours, theirs) = (ours.as_path(), theirs.join(path));
            // Their headers name the same tensors, and say more or less beside.
            assert_eq!(sizes(ours).0, sizes(&theirs).0, "{variant} {path}");
            assert_eq!(sizes(ours).0, numbers(&theirs), "{variant} {path}");
            assert_eq!(
                read(ours).keys().collect::<Vec<_>>(),
                read(&theirs).keys().collect::<Vec<_>>(),
                "{variant} {path}"
            );
        }
    }
}
