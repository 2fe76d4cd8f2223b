//! Which of the files in a model's folder are its weights.

/// The stems that diffusers and transformers give weight files.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// The file to read weights from: one safetensors file, or the index of its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WeightFile {
    Single(String),
    ShardIndex(String),
}

/// The weights among the files that `exists` knows: of `variant` ("fp16") where it is given, else the plain ones, else
/// those of fp16.
pub(super) fn choose(exists: impl Fn(&str) -> bool, variant: Option<&str>) -> Option<WeightFile> {
    let suffixes = match variant {
        Some(variant) => vec![format!(".{variant}")],
        None => vec![String::new(), ".fp16".to_owned()],
    };
    suffixes.into_iter().flat_map(|suffix| STEMS.map(|stem| (stem, suffix.clone()))).find_map(|(stem, suffix)| {
        let single = format!("{stem}{suffix}.safetensors");
        if exists(&single) {
            return Some(WeightFile::Single(single));
        }
        [format!("{stem}.safetensors.index{suffix}.json"), format!("{stem}{suffix}.safetensors.index.json")]
            .into_iter()
            .find(|index| exists(index))
            .map(WeightFile::ShardIndex)
    })
}

/// Whether `name` is a pickle of weights.
pub(super) fn is_pickle(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    matches!(extension, "bin" | "ckpt" | "pt" | "pth" | "pkl")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], variant: Option<&str>) -> Option<WeightFile> {
        choose(|name| names.contains(&name), variant)
    }

    #[test]
    fn a_variant_is_taken_where_it_is_asked_for_or_alone() {
        let both = ["model.fp16.safetensors", "model.safetensors"];
        assert_eq!(chosen(&both, None), Some(WeightFile::Single(both[1].into())));
        assert_eq!(chosen(&both, Some("fp16")), Some(WeightFile::Single(both[0].into())));
        assert_eq!(chosen(&both[..1], None), Some(WeightFile::Single(both[0].into())));
        assert_eq!(chosen(&both, Some("bf16")), None);
    }

    #[test]
    fn both_spellings_of_a_variants_index_are_found() {
        for index in [
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16.safetensors.index.json",
        ] {
            assert_eq!(chosen(&[index], Some("fp16")), Some(WeightFile::ShardIndex(index.into())));
        }
        assert_eq!(chosen(&["pytorch_model.bin"], None), None);
    }
}
