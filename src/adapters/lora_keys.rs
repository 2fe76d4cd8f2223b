//! How the keys of a LoRA file are spelled: which network a key is of, which module, and which of its tensors.
//!
//! Spellings differ in three ways that every program mixes as it likes: what stands before a module's path (`unet.`,
//! `diffusion_model.`, `lora_unet_`), whose names the path has (diffusers' or the original code's, with dots or with
//! underscores), and what stands behind it (`lora_A`, `lora_down`, `lora.down`).

use super::adapter_set::Part;

/// Which of a module's tensors a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The pair's first matrix, `[r, in]` or `[r, in, k, k]`.
    A,
    /// Its second, `[out, r]` or `[out, r, 1, 1]`.
    B,
    /// LyCORIS' kernel between two 1×1 matrices, `[r, r, k, k]`.
    Middle,
    /// DoRA's magnitude.
    Magnitude,
    /// The alpha.
    Alpha,
}

/// A key of a LoRA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The network.
    pub part: Part,
    /// The module's path with dots, still by the names of `is_original`.
    pub path: String,
    /// Whether the path has the original code's names of blocks.
    pub is_original: bool,
    /// Which tensor it is.
    pub role: Role,
    /// What stands before the path, as it is spelled.
    pub start: &'static str,
    /// What stands behind it.
    pub end: &'static str,
}

/// What stands before paths with dots.
const STARTS: &[(&str, Part)] = &[
    ("unet.", Part::UNet),
    ("model.diffusion_model.", Part::UNet),
    ("diffusion_model.", Part::UNet),
    ("text_encoders.clip_l.transformer.", Part::TextEncoder),
    ("text_encoders.clip_h.transformer.", Part::TextEncoder),
    ("text_encoders.clip_l.", Part::TextEncoder),
    ("text_encoders.clip_h.", Part::TextEncoder),
    ("text_encoder.", Part::TextEncoder),
    ("text_encoders.clip_g.transformer.", Part::TextEncoder2),
    ("text_encoders.clip_g.", Part::TextEncoder2),
    ("text_encoder_2.", Part::TextEncoder2),
    ("conditioner.embedders.0.transformer.", Part::TextEncoder),
    ("conditioner.embedders.1.transformer.", Part::TextEncoder2),
    ("cond_stage_model.transformer.", Part::TextEncoder),
    ("clip_l.transformer.", Part::TextEncoder),
    ("clip_h.transformer.", Part::TextEncoder),
    ("clip_l.", Part::TextEncoder),
    ("clip_h.", Part::TextEncoder),
    ("clip_g.transformer.", Part::TextEncoder2),
    ("clip_g.", Part::TextEncoder2),
    ("lora_unet.", Part::UNet),
    ("lora_te1.", Part::TextEncoder),
    ("lora_te2.", Part::TextEncoder2),
    ("lora_te.", Part::TextEncoder),
];

/// What stands before paths with underscores. diffusers' converter writes Stable Diffusion's one text encoder as the first
/// of SDXL's two.
const FLAT_STARTS: &[(&str, Part)] = &[
    ("lora_unet_", Part::UNet),
    ("lycoris_", Part::UNet),
    ("lora_te1_", Part::TextEncoder),
    ("lora_te2_", Part::TextEncoder2),
    ("lora_te_", Part::TextEncoder),
];

/// What stands behind paths. An end with `_lora` is of diffusers' first files, whose processors have names of their own.
const ENDS: &[(&str, Role)] = &[
    (".lora_down.weight", Role::A),
    (".lora_up.weight", Role::B),
    (".lora_mid.weight", Role::Middle),
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora.down.weight", Role::A),
    (".lora.up.weight", Role::B),
    (".lora_linear_layer.down.weight", Role::A),
    (".lora_linear_layer.up.weight", Role::B),
    ("_lora.down.weight", Role::A),
    ("_lora.up.weight", Role::B),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector", Role::Magnitude),
    (".dora_scale", Role::Magnitude),
    (".alpha", Role::Alpha),
];

/// Ends of keys that are of other kinds of adapters, and what these are called.
const OTHER_KINDS: &[(&str, &str)] = &[
    (".hada_", "a LoHa"),
    (".lokr_", "a LoKr"),
    (".oft_", "an OFT"),
    (".boft_", "a BOFT"),
    (".ia3_", "an IA3"),
    (".on_input", "an IA3"),
    (".vera_", "a VeRA"),
    (".a1.weight", "a GLoRA"),
    (".b1.weight", "a GLoRA"),
    (".lora_E", "an AdaLoRA"),
    (".diff_b", "a full difference of biases"),
    (".diff", "a full difference of weights"),
    (".set_weight", "a full set of weights"),
    (".w_norm", "a LyCORIS adapter of norms"),
    (".b_norm", "a LyCORIS adapter of norms"),
    (".reshape_weight", "an adapter of other shapes than the model's"),
    (".lora_B.bias", "a LoRA with biases"),
    (".lora_up.bias", "a LoRA with biases"),
];

/// What a key says of a LoRA; none: nothing that is known.
pub(super) fn parse(key: &str) -> Option<Key> {
    if let Some((start, part, rest)) = started(key, FLAT_STARTS) {
        let (flat, role, end) = ended(rest)?;
        if flat.contains('.') {
            return None;
        }
        let flat = if part.is_text_encoder() { flat.strip_prefix("text_model_").unwrap_or(flat) } else { flat };
        return Some(of_path(part, dotted(flat), role, start, end));
    }
    let bare = || UNET_BLOCKS.iter().any(|block| key.starts_with(block)).then_some(("", Part::UNet, key));
    let (start, part, rest) = started(key, STARTS).or_else(bare)?;
    let rest = rest.strip_prefix("base_model.model.").unwrap_or(rest);
    let plain = without_adapter_name(rest);
    let (module, role, end) = ended(&plain)?;
    let module = if part.is_text_encoder() { module.strip_prefix("text_model.").unwrap_or(module) } else { module };
    Some(of_path(part, module_path(part, module, end.starts_with("_lora")), role, start, end))
}

/// The kind of adapter, other than LoRA, that `key` is of.
pub(super) fn other_kind(key: &str) -> Option<&'static str> {
    let of_network = [STARTS, FLAT_STARTS].iter().any(|starts| started(key, starts).is_some())
        || UNET_BLOCKS.iter().any(|block| key.starts_with(block));
    let found = OTHER_KINDS.iter().find(|(end, _)| match end.ends_with('_') {
        true => key.contains(end),
        false => key.ends_with(end),
    });
    found.filter(|_| of_network).map(|(_, kind)| *kind)
}

/// What paths of a UNet start with in files without a network's name.
const UNET_BLOCKS: &[&str] =
    &["down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding."];

fn of_path(part: Part, path: String, role: Role, start: &'static str, end: &'static str) -> Key {
    const ORIGINAL: [&str; 6] =
        ["input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out."];
    let is_original = part == Part::UNet && ORIGINAL.iter().any(|name| path.starts_with(name));
    Key { part, path, is_original, role, start, end }
}

fn started<'a>(key: &'a str, starts: &[(&'static str, Part)]) -> Option<(&'static str, Part, &'a str)> {
    starts.iter().find_map(|(start, part)| key.strip_prefix(start).map(|rest| (*start, *part, rest)))
}

fn ended(rest: &str) -> Option<(&str, Role, &'static str)> {
    let (module, role, end) = ENDS.iter().find_map(|(end, role)| Some((rest.strip_suffix(end)?, *role, *end)))?;
    // diffusers' old alphas stand behind one of the pair's own names.
    let module = match role {
        Role::Alpha => ENDS.iter().find_map(|(end, _)| module.strip_suffix(end)).unwrap_or(module),
        _ => module,
    };
    (!module.is_empty()).then_some((module, role, end))
}

/// `to_q.lora_A.default.weight` without PEFT's name of the adapter.
pub(super) fn without_adapter_name(rest: &str) -> String {
    for mark in [".lora_A.", ".lora_B.", ".lora_magnitude_vector."] {
        let Some((module, tail)) = rest.split_once(mark) else { continue };
        let mark = mark.trim_end_matches('.');
        let name = tail.strip_suffix(".weight").unwrap_or(tail);
        if tail != "weight" && !name.contains('.') && (tail != name || mark == ".lora_magnitude_vector") {
            let end = if mark == ".lora_magnitude_vector" { "" } else { ".weight" };
            return format!("{module}{mark}{end}");
        }
    }
    rest.to_owned()
}

/// `attn1.processor.to_out` of the first files is `attn1.to_out.0`, and the text encoder's `to_q` its `q_proj`.
fn module_path(part: Part, module: &str, is_old: bool) -> String {
    let module = module.replace(".processor.", ".");
    let Some((before, last)) = module.rsplit_once('.').filter(|_| is_old || module.ends_with(".to_out")) else {
        return module;
    };
    let last = match (part, last) {
        (Part::UNet, "to_out") => "to_out.0",
        (Part::UNet, last) => last,
        (_, "to_q") => "q_proj",
        (_, "to_k") => "k_proj",
        (_, "to_v") => "v_proj",
        (_, "to_out") => "out_proj",
        (_, last) => last,
    };
    format!("{before}.{last}")
}

/// The parts of module paths that have an underscore themselves.
const COMPOUND: &[&str] = &[
    "time_emb_proj",
    "final_layer_norm",
    "token_embedding",
    "position_embedding",
    "time_embedding",
    "add_embedding",
    "label_emb",
    "text_projection",
    "transformer_blocks",
    "down_blocks",
    "up_blocks",
    "mid_block",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "proj_in",
    "proj_out",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "linear_1",
    "linear_2",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "input_blocks",
    "middle_block",
    "output_blocks",
    "time_embed",
    "in_layers",
    "out_layers",
    "emb_layers",
    "skip_connection",
];

/// `down_blocks_0_attentions_0_proj_in` as `down_blocks.0.attentions.0.proj_in`.
fn dotted(flat: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = flat;
    while !rest.is_empty() {
        let whole =
            |name: &&&str| rest.strip_prefix(**name).is_some_and(|after| after.is_empty() || after.starts_with('_'));
        let length = match COMPOUND.iter().find(whole) {
            Some(compound) => compound.len(),
            None => rest.find('_').unwrap_or(rest.len()),
        };
        parts.push(&rest[..length]);
        rest = rest[length..].trim_start_matches('_');
    }
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscored_names_become_paths() {
        for path in [
            "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
            "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",
            "up_blocks.3.attentions.2.proj_out",
            "mid_block.resnets.1.time_emb_proj",
            "down_blocks.1.downsamplers.0.conv",
            "up_blocks.0.resnets.2.conv_shortcut",
            "time_embedding.linear_2",
            "conv_in",
            "encoder.layers.11.self_attn.out_proj",
            "encoder.layers.0.mlp.fc1",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_k",
            "input_blocks.3.0.op",
            "middle_block.0.in_layers.2",
            "output_blocks.5.0.skip_connection",
            "time_embed.0",
            "label_emb.0.2",
            "add_embedding.linear_1",
            "text_projection",
        ] {
            assert_eq!(dotted(&path.replace('.', "_")), path);
        }
    }

    #[test]
    fn every_spelling_of_a_key_is_one_key() {
        let at = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        let original = "input_blocks.1.1.transformer_blocks.0.attn1";
        let (layer, flat) = ("encoder.layers.0.self_attn", "encoder_layers_0_self_attn");
        for (key, path, role) in [
            (format!("unet.{at}.to_q.lora_A.weight"), format!("{at}.to_q"), Role::A),
            (format!("unet.{at}.to_q.lora_B.default.weight"), format!("{at}.to_q"), Role::B),
            (format!("unet.base_model.model.{at}.to_q.lora_A.weight"), format!("{at}.to_q"), Role::A),
            (format!("unet.{at}.to_out.0.lora.up.weight"), format!("{at}.to_out.0"), Role::B),
            (format!("unet.{at}.processor.to_out_lora.down.weight"), format!("{at}.to_out.0"), Role::A),
            (format!("{at}.processor.to_v_lora.up.weight"), format!("{at}.to_v"), Role::B),
            (format!("unet.{at}.to_k.lora_down.weight"), format!("{at}.to_k"), Role::A),
            (format!("unet.{at}.to_k.alpha"), format!("{at}.to_k"), Role::Alpha),
            (format!("unet.{at}.to_k.lora.down.weight.alpha"), format!("{at}.to_k"), Role::Alpha),
            (format!("unet.{at}.to_k.dora_scale"), format!("{at}.to_k"), Role::Magnitude),
            (format!("unet.{at}.to_k.lora_magnitude_vector.default"), format!("{at}.to_k"), Role::Magnitude),
            (format!("diffusion_model.{original}.to_q.lora_up.weight"), format!("{original}.to_q"), Role::B),
            (format!("lora_unet_{}_to_q.lora_mid.weight", at.replace('.', "_")), format!("{at}.to_q"), Role::Middle),
            (format!("lora_unet_{}_to_q.alpha", original.replace('.', "_")), format!("{original}.to_q"), Role::Alpha),
            (
                format!("text_encoder.text_model.{layer}.q_proj.lora_linear_layer.down.weight"),
                format!("{layer}.q_proj"),
                Role::A,
            ),
            (format!("text_encoder.text_model.{layer}.to_out_lora.up.weight"), format!("{layer}.out_proj"), Role::B),
            (
                format!("text_encoders.clip_l.transformer.text_model.{layer}.q_proj.lora_up.weight"),
                format!("{layer}.q_proj"),
                Role::B,
            ),
            (format!("clip_l.text_model.{layer}.v_proj.lora_A.weight"), format!("{layer}.v_proj"), Role::A),
            (format!("lora_te_text_model_{flat}_q_proj.lora_down.weight"), format!("{layer}.q_proj"), Role::A),
            (format!("lora_te1_{flat}_k_proj.lora_B.weight"), format!("{layer}.k_proj"), Role::B),
            (format!("lora_te2_text_model_{flat}_k_proj.alpha"), format!("{layer}.k_proj"), Role::Alpha),
            (format!("lora_te2.text_model.{layer}.k_proj.lora_down.weight"), format!("{layer}.k_proj"), Role::A),
            (format!("text_encoder_2.text_model.{layer}.q_proj.lora.up.weight"), format!("{layer}.q_proj"), Role::B),
            (format!("text_encoder_2.{layer}.to_out_lora.up.weight"), format!("{layer}.out_proj"), Role::B),
            (
                format!("text_encoders.clip_g.transformer.text_model.{layer}.q_proj.lora_up.weight"),
                format!("{layer}.q_proj"),
                Role::B,
            ),
        ] {
            let found = parse(&key).unwrap_or_else(|| panic!("{key} is not read"));
            assert_eq!((found.path.as_str(), found.role), (path.as_str(), role), "{key}");
            assert_eq!(found.is_original, path.starts_with("input_blocks"), "{key}");
            assert_eq!(found.part.is_text_encoder(), path.starts_with("encoder"), "{key}");
            let is_second = ["te2", "text_encoder_2", "clip_g"].iter().any(|mark| key.contains(mark));
            assert_eq!(found.part == Part::TextEncoder2, is_second, "{key}");
        }
        for key in ["unet.conv_in.weight", "bundle_emb.word.clip_l", "lora_unet_", "unet..lora_A", "x.lora_A.weight"] {
            assert_eq!(parse(key), None, "{key}");
        }
    }

    #[test]
    fn other_kinds_of_adapters_have_names() {
        for (key, kind) in [
            ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa"),
            ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "a LoKr"),
            ("unet.mid_block.attentions.0.proj_in.oft_blocks", "an OFT"),
            ("lora_te_text_model_encoder_layers_0_mlp_fc1.on_input", "an IA3"),
            ("lora_unet_mid_block_attentions_0_proj_in.diff", "a full difference of weights"),
            ("lora_unet_mid_block_attentions_0_proj_in.diff_b", "a full difference of biases"),
            ("lycoris_mid_block_attentions_0_norm.w_norm", "a LyCORIS adapter of norms"),
        ] {
            assert_eq!(other_kind(key), Some(kind), "{key}");
        }
        assert_eq!(other_kind("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"), None);
        assert_eq!(other_kind("notes.diff"), None);
    }
}
