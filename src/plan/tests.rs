use super::*;
use crate::adapters::{LoraConfig, TargetModules};
use crate::models::stable_diffusion::{ClipTextConfig, UNetConfig, VaeConfig};
use crate::weights::{Quantize, Storage};
use std::collections::BTreeMap;

fn unet(json: &str) -> UNetConfig {
    serde_json::from_str(json).unwrap()
}

fn sd15_unet() -> UNetConfig {
    unet(r#"{"cross_attention_dim":768,"attention_head_dim":8}"#)
}

fn sd21_unet() -> UNetConfig {
    unet(r#"{"cross_attention_dim":1024,"attention_head_dim":[5,10,20,20],"use_linear_projection":true}"#)
}

fn sdxl_unet() -> UNetConfig {
    unet(
        r#"{"cross_attention_dim":2048,"attention_head_dim":[5,10,20],"use_linear_projection":true,"block_out_channels":[320,640,1280],
        "down_block_types":["DownBlock2D","CrossAttnDownBlock2D","CrossAttnDownBlock2D"],"transformer_layers_per_block":[1,2,10],
        "up_block_types":["CrossAttnUpBlock2D","CrossAttnUpBlock2D","UpBlock2D"],"addition_embed_type":"text_time",
        "addition_time_embed_dim":256,"projection_class_embeddings_input_dim":2816}"#,
    )
}

fn big_g() -> ClipTextConfig {
    let sizes = r#"{"hidden_size":1280,"intermediate_size":5120,"num_hidden_layers":32,"num_attention_heads":20,"projection_dim":1280}"#;
    ClipTextConfig { with_projection: true, ..serde_json::from_str(sizes).unwrap() }
}

fn vae() -> VaeConfig {
    serde_json::from_str(r#"{"block_out_channels":[128,256,512,512],"layers_per_block":2}"#).unwrap()
}

fn clip_l() -> ClipTextConfig {
    serde_json::from_str(r#"{"hidden_size":768,"intermediate_size":3072,"num_attention_heads":12}"#).unwrap()
}

fn lora(targets: &str) -> LoraConfig {
    LoraConfig { r: 16, target_modules: Some(TargetModules::from_flag(targets)), ..LoraConfig::default() }
}

fn with_input<T>(check: impl Fn(PlanInput) -> T) -> T {
    let (unet, vae, text) = (sd15_unet(), vae(), clip_l());
    check(PlanInput {
        unet: &unet,
        vae: &vae,
        texts: std::slice::from_ref(&text),
        resolution: 512,
        batch: 1,
        prior_preservation: false,
        class_images: None,
        sample_images: None,
        kind: Kind::Float,
        storage: Storage::default(),
        vae_kind: Kind::Float,
        exact_vae: false,
        unet_lora: lora("to_q,to_v"),
        text_loras: vec![lora("q_proj,v_proj")],
        half: Kind::BFloat16,
        gradient_checkpointing: false,
        slicing: false,
        vae_tiling: false,
        optimizer_8bit: false,
        cache_latents: true,
        photos: 5,
        accumulation: 1,
        steps: 800,
        device: Device::Cpu,
    })
}

#[test]
fn the_published_networks_have_their_published_sizes() {
    let numbers = |shapes: BTreeMap<String, Vec<i64>>| -> i64 {
        shapes.values().map(|shape| shape.iter().product::<i64>()).sum()
    };
    let unet = |config: &UNetConfig| numbers(unet_weights(config).unwrap());
    assert_eq!(unet(&sd15_unet()), 859_520_964);
    assert_eq!(unet(&sd21_unet()), 865_910_724);
    assert_eq!(unet(&sdxl_unet()), 2_567_463_684);
    let text = |config: &ClipTextConfig| numbers(text_encoder_weights(config).unwrap());
    assert_eq!((text(&clip_l()), text(&big_g())), (123_060_480, 694_659_840));
    assert_eq!(numbers(vae_weights(&vae()).unwrap()), 83_653_863);
}

/// What peft counts on the published shapes.
#[test]
fn loras_of_stable_diffusion_xl_have_their_sizes() {
    let (unet, vae, texts) = (sdxl_unet(), vae(), [clip_l(), big_g()]);
    let text = "q_proj,k_proj,v_proj,out_proj";
    with_input(|input| {
        let trained = |text_loras: Vec<LoraConfig>| {
            let unet_lora = lora("to_k,to_q,to_v,to_out.0");
            let input = PlanInput { unet: &unet, vae: &vae, texts: &texts, unet_lora, text_loras, ..input.clone() };
            MemoryPlan::new(&PlanInput { resolution: 256, ..input }).unwrap().trained_parameters
        };
        let of_unet = trained(Vec::new());
        assert_eq!(of_unet, 23_224_320);
        // The last layer of the first encoder, which the UNet is not given, has adapters too, which learn nothing.
        assert_eq!(trained(vec![lora(text), lora(text)]) - of_unet, 1_179_648 + 5_242_880);
    });
}

#[test]
fn each_option_saves_memory() {
    with_input(|input| {
        let peak = |input: &PlanInput| MemoryPlan::new(input).unwrap().peak_bytes;
        let full = peak(&input);
        assert!(peak(&PlanInput { kind: Kind::BFloat16, ..input.clone() }) < full * 6 / 10);
        assert!(peak(&PlanInput { storage: Quantize::Int8.into(), ..input.clone() }) < full * 9 / 10);
        let streamed = PlanInput { storage: Storage::STREAMED, ..input.clone() };
        assert!(peak(&streamed) < full - 2_500_000_000);
        // Two of the largest blocks, the attentions of 1280 channels.
        let on_device = PlanInput { device: Device::Cuda(0), ..streamed };
        let unet = MemoryPlan::new(&on_device).unwrap().phase("training").unwrap().parts[0].clone();
        assert!(unet.0 == "UNet weights" && (200_000_000..600_000_000).contains(&unet.1), "{unet:?}");
        assert!(peak(&PlanInput { gradient_checkpointing: true, ..input.clone() }) < full);
        assert!(peak(&PlanInput { optimizer_8bit: true, ..input.clone() }) < full);
        assert!(peak(&PlanInput { text_loras: Vec::new(), ..input.clone() }) < full);
        assert!(peak(&PlanInput { resolution: 256, ..input.clone() }) < full);
        assert!(peak(&PlanInput { batch: 2, ..input.clone() }) > full);
        let [two, prior] = [
            peak(&PlanInput { batch: 2, ..input.clone() }),
            peak(&PlanInput { prior_preservation: true, ..input.clone() }),
        ];
        // The parts of the loss are apart.
        assert!(two.abs_diff(prior) < two / 1000, "{two} {prior}");
    });
}

#[test]
fn checkpointing_computes_the_forward_about_once_more() {
    with_input(|input| {
        let plain = MemoryPlan::new(&input).unwrap().step_work.flops();
        let again = MemoryPlan::new(&PlanInput { gradient_checkpointing: true, ..input }).unwrap().step_work.flops();
        assert!((1.3..1.6).contains(&(again / plain)), "{}", again / plain);
    });
}

#[test]
fn a_run_is_made_to_fit_with_the_cheapest_options() {
    with_input(|input| {
        let plan = MemoryPlan::new(&input).unwrap();
        assert!(fit(plan.peak_bytes, &input, &plan).unwrap().suggestions.is_empty());
        let fitted = fit(plan.peak_bytes - 1, &input, &plan).unwrap();
        assert!(fitted.fits);
        assert_eq!(fitted.suggestions.len(), 1);
        assert_eq!(fitted.suggestions[0].what, "⟨mixed_precision⟩ bf16");
        assert_eq!(fitted.peak_bytes, plan.peak_bytes - fitted.suggestions[0].saves_bytes);
        let nothing = fit(parse_size("100MB").unwrap(), &input, &plan).unwrap();
        assert!(!nothing.fits);
        assert_eq!(nothing.suggestions.last().unwrap().what, "⟨resolution⟩ 256");
    });
}

#[test]
fn sizes_are_read_in_decimal_and_binary_units() {
    let sizes = [
        ("11GB", 11_000_000_000),
        ("8GiB", 8 << 30),
        ("6000MB", 6_000_000_000),
        ("1.5 gib", 3 << 29),
        ("8", 8_000_000_000),
        ("0.5", 500_000_000),
        ("42b", 42),
    ];
    for (text, bytes) in sizes {
        assert_eq!(parse_size(text).unwrap(), bytes);
    }
    for text in ["", "GB", "-1GB", "11 bananas", "1e3GB", "0GB", "1.2.3GB", "999999999999TB", "8589934592"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn impossible_inputs_are_refused() {
    with_input(|input| {
        for changed in [
            PlanInput { resolution: 500, ..input.clone() },
            PlanInput { resolution: 0, ..input.clone() },
            PlanInput { batch: 0, ..input.clone() },
            PlanInput { unet_lora: LoraConfig::default(), ..input.clone() },
        ] {
            assert!(MemoryPlan::new(&changed).is_err());
        }
    });
}

#[test]
fn only_what_follows_the_first_adapter_is_kept() {
    with_input(|input| {
        let kept = |targets: &str| {
            let input = PlanInput { text_loras: Vec::new(), unet_lora: lora(targets), ..input.clone() };
            MemoryPlan::new(&input)
                .unwrap()
                .phase("training")
                .unwrap()
                .parts
                .iter()
                .find(|(name, _)| name.starts_with("activations kept"))
                .unwrap()
                .1
        };
        assert!(kept("up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q") < kept("to_q") / 8);
    });
}
