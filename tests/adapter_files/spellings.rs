//! Files of other programs: their spellings, what they hold beside a LoRA, and what was made for another model.

use super::complaints::{words, Complaints};
use super::*;
use lorabooth::adapters::Family;
use lorabooth::weights::tensor_file;

/// PEFT's adapter, and the file that Python computed its outputs into.
fn plain() -> (AdapterSet, PathBuf) {
    let made = all_formats();
    (read_any(&made.join("peft"), None).unwrap(), made.join("outputs.safetensors"))
}

fn base() -> lorabooth::adapters::BaseModel {
    PipelineFiles::open(&model("tiny"), None).unwrap().base_model().unwrap()
}

/// The original code's name of a module of a UNet with two blocks a level.
fn original(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    let number = |at: usize| parts[at].parse::<usize>().unwrap();
    let (place, rest) = match parts[0] {
        "mid_block" if parts[1] == "attentions" => ("middle_block.1".to_owned(), &parts[3..]),
        "mid_block" => (format!("middle_block.{}", 2 * number(2)), &parts[3..]),
        side => {
            let (name, at) = match side {
                "down_blocks" => ("input_blocks", 3 * number(1) + number(3) + 1),
                _ => ("output_blocks", 3 * number(1) + number(3)),
            };
            (format!("{name}.{at}.{}", usize::from(parts[2] == "attentions")), &parts[4..])
        }
    };
    let rest = rest.join(".").replace("conv1", "in_layers.2");
    format!("{place}.{rest}")
}

/// How a file spells keys: what stands before a part's paths, what becomes of a path, the ends of a pair.
struct Spelling {
    starts: [&'static str; 2],
    path: fn(Part, &str) -> String,
    ends: [&'static str; 2],
    with_alpha: bool,
}

fn write_as(path: &Path, set: &AdapterSet, spelling: &Spelling) {
    let mut tensors = BTreeMap::new();
    for (part, adapter) in set.parts() {
        let start = spelling.starts[usize::from(part == Part::TextEncoder)];
        for module in adapter.modules() {
            let stem = format!("{start}{}", (spelling.path)(part, &module));
            let of = |which: &str| &adapter.tensors[&format!("{module}.lora_{which}.weight")];
            let (rank, scaling) = (adapter.config.rank_of(&module) as f64, adapter.config.scaling_of(&module));
            // Without alphas the strength is 1.
            let gain = if spelling.with_alpha { 1.0 } else { scaling };
            tensors.insert(format!("{stem}.{}", spelling.ends[0]), of("A").shallow_clone());
            tensors.insert(format!("{stem}.{}", spelling.ends[1]), of("B") * gain);
            if spelling.with_alpha {
                tensors.insert(format!("{stem}.alpha"), Tensor::from((scaling * rank) as f32));
            }
        }
    }
    tensor_file::save(path, &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn every_programs_spelling_computes_what_peft_computes() {
    let (set, outputs) = plain();
    let dir = tempfile::tempdir().unwrap();
    let as_is = |_: Part, path: &str| path.to_owned();
    let flat = |part: Part, path: &str| match part {
        Part::UNet => path.replace('.', "_"),
        Part::TextEncoder => format!("text_model_{}", path.replace('.', "_")),
    };
    let original_dots = |part: Part, path: &str| match part {
        Part::UNet => original(path),
        Part::TextEncoder => format!("text_model.{path}"),
    };
    let original_flat = |part: Part, path: &str| match part {
        Part::UNet => original(path).replace('.', "_"),
        Part::TextEncoder => format!("text_model_{}", path.replace('.', "_")),
    };
    let (kohya, peft) = (["lora_down.weight", "lora_up.weight"], ["lora_A.weight", "lora_B.weight"]);
    let named = ["lora_A.default.weight", "lora_B.default.weight"];
    let linear = ["lora_linear_layer.down.weight", "lora_linear_layer.up.weight"];
    let comfy = ["diffusion_model.", "text_encoders.clip_l.transformer."];
    let wrapped = ["unet.base_model.model.", "text_encoder.base_model.model."];
    let cases: [(&str, Spelling, Format); 10] = [
        ("OneTrainer", of(["unet.", "text_encoder."], as_is, kohya, true), Format::Diffusers),
        ("OneTrainer, original", of(["unet.", "clip_l."], original_dots, kohya, true), Format::Diffusers),
        ("ComfyUI", of(comfy, original_dots, kohya, true), Format::ComfyUi),
        ("ComfyUI, PEFT's ends", of(comfy, original_dots, peft, false), Format::ComfyUi),
        ("kohya", of(["lora_unet_", "lora_te_"], flat, kohya, true), Format::Kohya),
        ("kohya, original", of(["lora_unet_", "lora_te1_"], original_flat, kohya, true), Format::Kohya),
        ("kohya, PEFT's ends", of(["lora_unet_", "lora_te_"], flat, peft, true), Format::Kohya),
        ("PEFT's prefix inside", of(wrapped, as_is, peft, false), Format::Diffusers),
        ("PEFT's name inside", of(["unet.", "text_encoder.text_model."], as_is, named, false), Format::Diffusers),
        ("linear layers", of(["unet.", "text_encoder."], as_is, linear, false), Format::Diffusers),
    ];
    for (case, spelling, format) in cases {
        let path = dir.path().join("lora.safetensors");
        write_as(&path, &set, &spelling);
        for base in [None, Some(base())] {
            let (read, found) = formats::read_with_format(&path, base.as_ref()).unwrap();
            assert_eq!(found, format, "{case}");
            assert_eq!(read.warnings, Vec::<String>::new(), "{case}");
            let keys = read.spelling.clone().unwrap();
            let is_named = keys.contains(spelling.starts[0]) && keys.contains(spelling.ends[0]);
            assert!(is_named || case.contains("inside"), "{case}: {keys}");
            assert_eq!(
                keys.contains("original code"),
                case.contains("original") || case.contains("Comfy"),
                "{case}: {keys}"
            );
            assert_same_outputs(&ours(&read, &outputs), &outputs, "adapter", case);
        }
    }
}

fn of(
    starts: [&'static str; 2],
    path: fn(Part, &str) -> String,
    ends: [&'static str; 2],
    with_alpha: bool,
) -> Spelling {
    Spelling { starts, path, ends, with_alpha }
}

const AT: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// A pair for the UNet's `AT`, of width 64.
fn pair() -> BTreeMap<String, Tensor> {
    BTreeMap::from([
        (format!("{AT}.lora_down.weight"), randn(&[2, 64])),
        (format!("{AT}.lora_up.weight"), randn(&[64, 2])),
    ])
}

/// A file of `pair` and `more`.
fn file_with(folder: &Path, name: &str, more: &[(&str, Tensor)]) -> PathBuf {
    let mut tensors = pair();
    tensors.extend(more.iter().map(|(key, tensor)| ((*key).to_owned(), tensor.shallow_clone())));
    let path = folder.join(name);
    tensor_file::save(&path, &tensors, &BTreeMap::new()).unwrap();
    path
}

fn refusal(path: &Path) -> String {
    read_any(path, Some(&base())).err().unwrap_or_else(|| panic!("{} is read", path.display())).to_string()
}

#[test]
fn foreign_keys_are_left_out_with_a_warning_and_nothing_known_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let foreign: Vec<(&str, Tensor)> =
        ["bundle_emb.a.clip_l", "bundle_emb.b.clip_l", "emb_params", "noise"].map(|key| (key, randn(&[2, 4]))).into();
    let set = read_any(&file_with(dir.path(), "lora.safetensors", &foreign), Some(&base())).unwrap();
    assert_eq!(set.unet.unwrap().modules(), ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]);
    let [text] = &set.warnings[..] else { panic!("{:?}", set.warnings) };
    for word in ["4 of its 6", "`bundle_emb.a.clip_l`, `bundle_emb.b.clip_l`, `emb_params`, …", "lora.safetensors"] {
        assert!(text.contains(word), "{text}");
    }
    for (key, words) in [("emb_params", "textual inversion"), ("model.diffusion_model.out.2.weight", "no adapter")] {
        let path = dir.path().join("else.safetensors");
        tensor_file::save(&path, &BTreeMap::from([(key.to_owned(), randn(&[2, 2]))]), &BTreeMap::new()).unwrap();
        assert!(refusal(&path).contains(words), "{}", refusal(&path));
    }
    let foreign: Vec<(&str, Tensor)> = foreign.into_iter().filter(|(key, _)| *key != "emb_params").collect();
    let path = dir.path().join("foreign.safetensors");
    let tensors = foreign.into_iter().map(|(key, tensor)| (key.to_owned(), tensor)).collect();
    tensor_file::save(&path, &tensors, &BTreeMap::new()).unwrap();
    let text = refusal(&path);
    assert!(text.contains("no adapter that is known") && text.contains("bundle_emb.a.clip_l"), "{text}");
}

#[test]
fn what_would_change_the_result_if_left_out_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let other = "lora_unet_mid_block_attentions_0_proj_in";
    for (end, shape, expected) in [
        ("hada_w1_a", &[64, 2][..], &["LoHa", "hada_w1_a"][..]),
        ("lokr_w1", &[8, 8], &["LoKr"]),
        ("oft_blocks", &[8, 8, 8], &["OFT"]),
        ("on_input", &[], &["IA3"]),
        ("diff", &[64, 64, 1, 1], &["difference of weights"]),
        ("diff_b", &[64], &["difference of biases"]),
        ("lora_down.weight", &[2, 64, 1, 1], &["lora_down.weight", "without the rest of its pair"]),
        ("lora_up.weight", &[64, 2, 1, 1], &["lora_up.weight", "without the rest of its pair"]),
        ("dora_scale", &[64, 1, 1, 1], &["dora_scale", "without the rest of its pair"]),
    ] {
        let text =
            refusal(&file_with(dir.path(), "lora.safetensors", &[(format!("{other}.{end}").as_str(), randn(shape))]));
        assert!(text.contains("lora.safetensors") && text.contains(other), "{text}");
        expected.iter().for_each(|word| assert!(text.contains(word), "{text}"));
    }
    let twice = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight";
    let text = refusal(&file_with(dir.path(), "lora.safetensors", &[(twice, randn(&[2, 64]))]));
    assert!(text.contains("the same tensor") && text.contains(twice), "{text}");
    let empty = [
        (format!("{other}.lora_down.weight"), randn(&[0, 64, 1, 1])),
        (format!("{other}.lora_up.weight"), randn(&[64, 0, 1, 1])),
    ];
    let empty: Vec<(&str, Tensor)> = empty.iter().map(|(key, tensor)| (key.as_str(), tensor.shallow_clone())).collect();
    let text = refusal(&file_with(dir.path(), "lora.safetensors", &empty));
    assert!(text.contains("rank 0") && text.contains(other) && text.contains("lora.safetensors"), "{text}");
}

#[test]
fn tensors_of_the_right_count_and_the_wrong_shape_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = "lora_unet_mid_block_resnets_0_conv1";
    for (down, up) in [
        (&[2, 3, 3, 64][..], &[64, 2, 1, 1][..]),
        (&[2, 64, 9, 1], &[64, 2, 1, 1]),
        (&[2, 576], &[64, 2]),
        (&[2, 64, 3, 3], &[2, 64, 1, 1]),
        (&[2, 64, 3, 3], &[64, 1, 2, 1]),
    ] {
        let more = [(format!("{at}.lora_down.weight"), randn(down)), (format!("{at}.lora_up.weight"), randn(up))];
        let more: Vec<(&str, Tensor)> = more.iter().map(|(key, t)| (key.as_str(), t.shallow_clone())).collect();
        let text = refusal(&file_with(dir.path(), "lora.safetensors", &more));
        assert!(text.contains("conv1") && text.contains("lora.safetensors"), "{text}");
    }
    let ones = file_with(dir.path(), "ones.safetensors", &[(format!("{AT}.alpha").as_str(), randn(&[2]))]);
    assert!(refusal(&ones).contains("one number"), "{}", refusal(&ones));
    for shape in [&[32, 2][..], &[1, 1, 64, 1], &[32], &[1, 32]] {
        let text =
            refusal(&file_with(dir.path(), "dora.safetensors", &[(format!("{AT}.dora_scale").as_str(), randn(shape))]));
        assert!(text.contains("magnitude") && text.contains("dora.safetensors"), "{text}");
    }
    // Only ones behind are more or less: the pair of a linear layer as a convolution's.
    let mut tensors = pair();
    tensors.values_mut().for_each(|tensor| *tensor = tensor.unsqueeze(-1).unsqueeze(-1));
    let path = dir.path().join("convolutions.safetensors");
    tensor_file::save(&path, &tensors, &BTreeMap::new()).unwrap();
    read_any(&path, Some(&base())).unwrap();
}

#[test]
fn lycoris_kernels_between_a_pair_become_the_convolutions_own() {
    let dir = tempfile::tempdir().unwrap();
    let (r, n, k) = (2_i64, 64_i64, 3_i64);
    let (down, middle, up) = (randn(&[r, n, 1, 1]), randn(&[r, r, k, k]), randn(&[n, r, 1, 1]));
    let at = "lora_unet_mid_block_resnets_0_conv1";
    let more = [("lora_down", &down), ("lora_mid", &middle), ("lora_up", &up)]
        .map(|(end, tensor)| (format!("{at}.{end}.weight"), tensor.shallow_clone()));
    let more: Vec<(&str, Tensor)> = more.iter().map(|(key, t)| (key.as_str(), t.shallow_clone())).collect();
    let set = read_any(&file_with(dir.path(), "lora.safetensors", &more), Some(&base())).unwrap();
    let unet = set.unet.unwrap();
    let [a, b] = ["A", "B"].map(|which| unet.tensors[&format!("mid_block.resnets.0.conv1.lora_{which}.weight")].copy());
    let change = b.flatten(1, -1).matmul(&a.flatten(1, -1)).view([n, n, k, k]);
    // Place by place: up · middle · down.
    for (y, x) in [(0, 0), (1, 2), (2, 1)] {
        let kernel = middle.select(3, x).select(2, y);
        let expected = up.flatten(1, -1).matmul(&kernel).matmul(&down.flatten(1, -1));
        assert!(relative_error(&change.select(3, x).select(2, y), &expected) < 1e-5);
    }
}

/// A file with one pair at each of `modules`: its name, and width of A and of B.
fn file_of(folder: &Path, modules: &[(&str, i64, i64)]) -> PathBuf {
    let path = folder.join("other.safetensors");
    let pairs = modules.iter().flat_map(|(at, input, output)| {
        [
            (format!("{at}.lora_down.weight"), randn(&[2, *input])),
            (format!("{at}.lora_up.weight"), randn(&[*output, 2])),
        ]
    });
    tensor_file::save(&path, &pairs.collect(), &BTreeMap::new()).unwrap();
    path
}

#[test]
fn an_adapter_for_another_generation_is_named_by_its_signs() {
    let dir = tempfile::tempdir().unwrap();
    let to_k = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    let deep = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_1_attn1_to_q";
    let original = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let xl = "Stable Diffusion XL";
    for (modules, word) in [
        (&[("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120)][..], xl),
        (&[("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", 1280, 5120)], xl),
        (&[(to_k, 2048, 32)], xl),
        (&[(original, 2048, 640)], xl),
        (&[(deep, 32, 32)], xl),
        (&[("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640, 640)], xl),
        (&[(to_k, 1024, 32)], "Stable Diffusion 2.x"),
        (&[("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024)], "Stable Diffusion 2.x"),
        (&[("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072)], "Flux"),
        (&[("transformer.transformer_blocks.0.attn.to_q", 1536, 1536)], "diffusion transformer"),
    ] {
        let text = refusal(&file_of(dir.path(), modules));
        assert!(text.contains("other.safetensors: is a LoRA for") && text.contains(word), "{text}");
        assert!(text.contains("but the model is Stable Diffusion 1.x"), "{text}");
    }
    // As small as the model's generation has none: the sizes are named.
    let text = refusal(&file_of(dir.path(), &[(to_k, 768, 32)]));
    assert!(text.contains("768") && text.contains("the model's 32"), "{text}");
    let path = file_with(dir.path(), "lora.safetensors", &[]);
    let metadata = BTreeMap::from([("ss_base_model_version".to_owned(), "sdxl_base_v1-0".to_owned())]);
    tensor_file::save(&path, &pair(), &metadata).unwrap();
    assert!(refusal(&path).contains(xl), "{}", refusal(&path));
    // A model of 2.x says so of itself.
    let second = PipelineFiles::open(&model("tiny-v"), None).unwrap().base_model().unwrap();
    assert_eq!((base().family(), second.family()), (Family::V1, Family::V2));
}

/// `NAME.safetensors` with one number that is none, and the folder of a language model's adapter with the same.
fn broken(folder: &Path) -> (PathBuf, PathBuf) {
    let up = randn(&[64, 2]);
    _ = up.get(3).fill_(f64::NAN);
    let file = file_with(folder, "broken.safetensors", &[(format!("{AT}.lora_up.weight").as_str(), up)]);
    let language = folder.join("language");
    std::fs::create_dir(&language).unwrap();
    let config =
        json!({ "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"] });
    std::fs::write(language.join("adapter_config.json"), config.to_string()).unwrap();
    let at = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors = BTreeMap::from([
        (format!("{at}.lora_A.weight"), randn(&[2, 8]) / 0.0),
        (format!("{at}.lora_B.weight"), randn(&[8, 2])),
    ]);
    tensor_file::save(&language.join("adapter_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    (file, language)
}

#[test]
fn an_adapter_with_nan_is_refused_by_every_command_with_its_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let (file, language) = broken(dir.path());
    let [file, language, out] = [&file, &language, &dir.path().join("out")].map(|path| path.display().to_string());
    let (tiny, photos) = (model("tiny").display().to_string(), photos(3, 0).display().to_string());
    let key = format!("{AT}.lora_up.weight");
    let mut complaints = Complaints::default();
    for line in [
        format!("adapter inspect {file}"),
        format!("adapter merge --model {tiny} --lora {file} --output-dir {out}"),
        format!("adapter convert {file} --to peft --output {out}"),
        format!("generate --model {tiny} --lora {file} --prompt dog --output {out}.png"),
        format!("train dreambooth --model {tiny} --instance-data-dir {photos} --instance-prompt dog --resolution 32 --init-adapter {file} --output-dir {out}"),
    ] {
        complaints.refused(&line, &words(&line), 1, &["broken.safetensors", &key, "NaN"]);
    }
    let key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    for line in [
        format!("adapter inspect {language}"),
        format!("adapter convert {language} --to peft --output {out}"),
        format!("adapter merge --model {tiny} --lora {language} --output-dir {out}"),
    ] {
        complaints.refused(&line, &words(&line), 1, &["adapter_model.safetensors", key, "NaN"]);
    }
    complaints.check("something was written", !dir.path().join("out").exists());
}

#[test]
fn every_command_names_both_models_and_pickles_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file =
        file_of(dir.path(), &[("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, 5120)]).display().to_string();
    let [out, pickles] = ["out", "pickles"].map(|name| dir.path().join(name).display().to_string());
    let (tiny, photos) = (model("tiny").display().to_string(), photos(3, 0).display().to_string());
    let mut complaints = Complaints::default();
    let commands = |adapter: &str| {
        [
            format!("adapter merge --model {tiny} --lora {adapter} --output-dir {out}"),
            format!("generate --model {tiny} --lora {adapter} --prompt dog --output {out}.png"),
            format!("train dreambooth --model {tiny} --instance-data-dir {photos} --instance-prompt dog --resolution 32 --init-adapter {adapter} --output-dir {out}"),
        ]
    };
    let without_model = |adapter: &str| {
        [format!("adapter inspect {adapter}"), format!("adapter convert {adapter} --to peft --output {out}")]
    };
    for line in commands(&file).into_iter().chain(without_model(&file)) {
        let expected = ["is a LoRA for Stable Diffusion XL", "Stable Diffusion 1.x"];
        complaints.refused(&line, &words(&line), 1, &expected);
    }
    std::fs::create_dir(&pickles).unwrap();
    for (name, cure) in [("pytorch_lora_weights.bin", "save_lora_weights"), ("adapter_model.bin", "save_pretrained")] {
        let path = Path::new(&pickles).join(name);
        std::fs::write(&path, b"\x80\x02}.").unwrap();
        for line in commands(&pickles).into_iter().chain(without_model(&pickles)) {
            complaints.refused(&line, &words(&line), 1, &[name, "pickle", cure]);
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn magnitudes_by_column_go_to_kohya_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let scale = randn(&[1, 64]).abs() + 1.0;
    let path =
        file_with(dir.path(), "dora.safetensors", &[(format!("{AT}.dora_scale").as_str(), scale.shallow_clone())]);
    let set = read_any(&path, Some(&base())).unwrap();
    for error in [
        write_peft(&dir.path().join("peft"), &set, TextEncoderSpelling::Today).err().unwrap(),
        write_diffusers(dir.path(), &set).err().unwrap(),
    ] {
        assert!(error.to_string().contains("magnitudes are by input column"), "{error}");
    }
    let again = dir.path().join("again.safetensors");
    write_kohya(&again, &set, Kind::Float, &BTreeMap::new()).unwrap();
    assert_eq!(read(&again)[&format!("{AT}.dora_scale")], scale);
    let Inspected::Adapters(summary) = inspect::inspect(&path).unwrap() else { panic!("no adapter") };
    assert!(summary.parts["unet"].use_dora && summary.parts["unet"].column_magnitudes);
}
