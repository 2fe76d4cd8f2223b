//! The spellings that one weight's key has had. Ours is the newest: transformers 5's and today's diffusers'.

/// CLIP's text model: transformers 4 and the Stable Diffusion repositories put `text_model.` before each key.
/// Weights that are no part of the text model (a projection head, position ids) have no spelling.
pub fn clip_text(key: &str) -> Option<String> {
    let key = key.strip_prefix("text_model.").unwrap_or(key);
    (key.starts_with("embeddings.") || key.starts_with("encoder.") || key.starts_with("final_layer_norm."))
        .then_some(key)
        .filter(|key| !key.ends_with("position_ids"))
        .map(str::to_owned)
}

/// The same of a text model with a projection of whole texts, which is a part of it.
pub fn clip_text_with_projection(key: &str) -> Option<String> {
    let key = key.strip_prefix("text_model.").unwrap_or(key);
    match key {
        "text_projection.weight" => Some(key.to_owned()),
        _ => clip_text(key),
    }
}

/// The VAE's attention was `query`, `key`, `value` and `proj_attn` before diffusers 0.17.
pub fn vae(key: &str) -> Option<String> {
    if !key.contains(".attentions.") {
        return Some(key.to_owned());
    }
    let mut parts: Vec<&str> = key.split('.').collect();
    let n = parts.len();
    if n >= 2 {
        parts[n - 2] = match parts[n - 2] {
            "query" => "to_q",
            "key" => "to_k",
            "value" => "to_v",
            "proj_attn" => "to_out.0",
            other => other,
        };
    }
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_key_become_one() {
        let new = "encoder.layers.0.self_attn.q_proj.weight";
        assert_eq!(clip_text(&format!("text_model.{new}")).as_deref(), Some(new));
        assert_eq!(clip_text(new).as_deref(), Some(new));
        assert_eq!(clip_text("text_model.embeddings.position_ids"), None);
        assert_eq!(clip_text("text_projection.weight"), None);
        assert_eq!(clip_text_with_projection("text_projection.weight").as_deref(), Some("text_projection.weight"));
        assert_eq!(clip_text_with_projection(&format!("text_model.{new}")).as_deref(), Some(new));
        let new = "decoder.mid_block.attentions.0.to_out.0.bias";
        assert_eq!(vae("decoder.mid_block.attentions.0.proj_attn.bias").as_deref(), Some(new));
        assert_eq!(vae(new).as_deref(), Some(new));
    }
}
