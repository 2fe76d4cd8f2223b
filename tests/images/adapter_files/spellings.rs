//! Files of other programs: their spellings, what they hold beside a LoRA, and what was made for another model.

use super::*;
use crate::support::complaints::Complaints;
use crate::support::words;
use lorabooth::weights::tensor_file;

/// PEFT's adapter, and the file that Python computed its outputs into.
fn plain() -> (AdapterSet, PathBuf) {
    let made = all_formats();
    (read_any(&made.join("peft"), None).unwrap(), made.join("outputs.safetensors"))
}

pub fn base() -> lorabooth::adapters::BaseModel {
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
        let start = spelling.starts[usize::from(part.is_text_encoder())];
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
        _ => format!("text_model_{}", path.replace('.', "_")),
    };
    let original_dots = |part: Part, path: &str| match part {
        Part::UNet => original(path),
        _ => format!("text_model.{path}"),
    };
    let original_flat = |part: Part, path: &str| match part {
        Part::UNet => original(path).replace('.', "_"),
        _ => format!("text_model_{}", path.replace('.', "_")),
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

pub const AT: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

pub fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// A pair for the UNet's `AT`, of width 64.
pub fn pair() -> BTreeMap<String, Tensor> {
    BTreeMap::from([
        (format!("{AT}.lora_down.weight"), randn(&[2, 64])),
        (format!("{AT}.lora_up.weight"), randn(&[64, 2])),
    ])
}

/// A file of `pair` and `more`.
pub fn file_with(folder: &Path, name: &str, more: &[(&str, Tensor)]) -> PathBuf {
    let mut tensors = pair();
    tensors.extend(more.iter().map(|(key, tensor)| ((*key).to_owned(), tensor.shallow_clone())));
    let path = folder.join(name);
    tensor_file::save(&path, &tensors, &BTreeMap::new()).unwrap();
    path
}

pub fn refusal(path: &Path) -> String {
    read_any(path, Some(&base())).err().unwrap_or_else(|| panic!("{} is read", path.display())).to_string()
}

#[test]
fn alphas_in_tensors_and_in_the_metadata_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let file = |alpha: i64| {
        let mut tensors = pair();
        tensors.insert(format!("{AT}.alpha"), Tensor::from(2.0_f32));
        let fields = format!(r#"{{"unet.r": 2, "unet.lora_alpha": {alpha}, "unet.target_modules": ["to_q"]}}"#);
        let path = dir.path().join(format!("{alpha}.safetensors"));
        tensor_file::save(&path, &tensors, &BTreeMap::from([("lora_adapter_metadata".to_owned(), fields)])).unwrap();
        path
    };
    let error = refusal(&file(8));
    assert!(error.contains("alpha 2") && error.contains("8 in its metadata"), "{error}");
    assert_eq!(read_any(&file(2), Some(&base())).unwrap().part(Part::UNet).unwrap().config.lora_alpha, 2.0);
}

#[test]
fn foreign_keys_are_left_out_with_a_warning_and_nothing_known_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let foreign: Vec<(&str, Tensor)> =
        ["bundle_emb.a.clip_l", "bundle_emb.b.clip_l", "emb_params", "noise"].map(|key| (key, randn(&[2, 4]))).into();
    let set = read_any(&file_with(dir.path(), "lora.safetensors", &foreign), Some(&base())).unwrap();
    assert_eq!(set.part(Part::UNet).unwrap().modules(), ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]);
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
    assert!(text.contains("not an adapter in a known format") && text.contains("bundle_emb.a.clip_l"), "{text}");
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
    let unet = set.part(Part::UNet).unwrap();
    let [a, b] = ["A", "B"].map(|which| unet.tensors[&format!("mid_block.resnets.0.conv1.lora_{which}.weight")].copy());
    let change = b.flatten(1, -1).matmul(&a.flatten(1, -1)).view([n, n, k, k]);
    // Place by place: up · middle · down.
    for (y, x) in [(0, 0), (1, 2), (2, 1)] {
        let kernel = middle.select(3, x).select(2, y);
        let expected = up.flatten(1, -1).matmul(&kernel).matmul(&down.flatten(1, -1));
        assert!(relative_error(&change.select(3, x).select(2, y), &expected) < 1e-5);
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
    // It is used, and not trained on.
    let line = format!(
        "train dreambooth --model {} --instance-data-dir {} --instance-prompt dog --resolution 32 --init-adapter {} --output-dir {}",
        model("tiny").display(),
        photos(3, 0).display(),
        path.display(),
        dir.path().join("run").display()
    );
    Complaints::default().refused(&line, &words(&line), 1, &["dora.safetensors", "magnitudes by input column"]);
    let Inspected::Adapters(summary) = inspect::inspect(&path).unwrap() else { panic!("no adapter") };
    assert!(summary.parts["unet"].use_dora && summary.parts["unet"].column_magnitudes);
}
