//! What a user should know of prompts and captions before they are read: which words are cut off, and which marks of other
//! programs have no meaning here.

use super::training::observer::Observer;
use crate::data::language_dataset::begins_with;
use crate::data::photo_files::first_few;
use crate::data::prompt_marks::{marks, Mark, MarkKind};
use crate::data::tokenizers::{ClipTokenizer, LanguageTokenizer};
use crate::error::Result;
use crate::options::shell_word;
use std::collections::BTreeMap;

/// Characters of a prompt that a warning shows.
const SHOWN: usize = 60;
/// Flags of adapters that a warning shows.
const SHOWN_ADAPTERS: usize = 4;

/// A prompt or a caption, and where it is from.
#[derive(Debug, Clone)]
pub struct NamedPrompt<'a> {
    place: String,
    is_one_of_many: bool,
    text: &'a str,
}

impl<'a> NamedPrompt<'a> {
    /// The value of an option, which a sentence has as `option`.
    pub fn option(option: &str, text: &'a str) -> Self {
        Self { place: option.to_owned(), is_one_of_many: false, text }
    }

    /// One of a list that can be long: a caption, by its file.
    pub fn listed(place: String, text: &'a str) -> Self {
        Self { place, is_one_of_many: true, text }
    }
}

/// Warns of what `tokenizer` cuts off `prompts`, and of marks in them that other programs read.
pub fn warn_of_prompts(tokenizer: &ClipTokenizer, prompts: &[NamedPrompt], observer: &mut dyn Observer) -> Result<()> {
    warnings(tokenizer, prompts)?.into_iter().for_each(|text| observer.warning(text));
    Ok(())
}

fn warnings(tokenizer: &ClipTokenizer, prompts: &[NamedPrompt]) -> Result<Vec<String>> {
    let (mut lines, mut of_many) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let Some(cut) = tokenizer.cut(prompt.text)? else { continue };
        let line = format!(
            "{} has {} tokens, of which the text encoder reads the first {}; these words are lost: \"{}\"",
            prompt.place,
            cut.tokens,
            cut.room,
            shown(&cut.lost)
        );
        if prompt.is_one_of_many { &mut of_many } else { &mut lines }.push(line);
    }
    lines.extend(first_few(of_many, "texts have more tokens than the text encoder reads"));
    lines.extend(mark_warnings(prompts));
    Ok(lines)
}

/// One sentence for each kind of mark.
fn mark_warnings(prompts: &[NamedPrompt]) -> Vec<String> {
    let mut by_kind: BTreeMap<MarkKind, Vec<(&NamedPrompt, Vec<Mark>)>> = BTreeMap::new();
    for prompt in prompts {
        let mut own: BTreeMap<MarkKind, Vec<Mark>> = BTreeMap::new();
        marks(prompt.text).into_iter().for_each(|mark| own.entry(mark.kind).or_default().push(mark));
        own.into_iter().for_each(|(kind, marks)| by_kind.entry(kind).or_default().push((prompt, marks)));
    }
    let sentence = |(kind, found): (MarkKind, Vec<(&NamedPrompt, Vec<Mark>)>)| {
        let also = match found.len() - 1 {
            0 => String::new(),
            more => format!(" (and in {more} more)"),
        };
        let (first, mark) = (&found[0].0.place, shown(&found[0].1[0].text));
        let adapters = found.iter().flat_map(|(_, marks)| marks);
        format!("{first}: `{mark}`{also} {}", meaning(kind, adapters))
    };
    by_kind.into_iter().map(sentence).collect()
}

/// What a mark does elsewhere, and what to do instead.
fn meaning<'a>(kind: MarkKind, marks: impl Iterator<Item = &'a Mark>) -> String {
    let elsewhere = match kind {
        MarkKind::Adapter => {
            let mut flags: Vec<String> = marks.filter_map(lora_flag).collect();
            flags.dedup();
            flags.truncate(SHOWN_ADAPTERS);
            let flags = flags.join(" ");
            return format!(
                "loads no adapter here but is read as words; leave it out, and give `lorabooth generate` {flags}"
            );
        }
        MarkKind::Backslash => {
            return "keeps its backslash here, which is read too; write the bracket alone".to_owned()
        }
        MarkKind::Weight => "gives words a weight",
        MarkKind::Emphasis => "gives words more weight",
        MarkKind::SquareBrackets => "gives words less weight",
        MarkKind::Schedule => "changes the prompt between steps",
        MarkKind::Braces => "chooses between words or gives them more weight",
        MarkKind::Keyword => "divides a prompt into parts",
        MarkKind::Embedding => "loads a textual inversion",
        MarkKind::Wildcard => "is replaced by a line of a file",
    };
    let instead = match kind {
        MarkKind::Weight | MarkKind::Emphasis | MarkKind::SquareBrackets | MarkKind::Braces => "write the words alone",
        _ => "leave it out",
    };
    format!("{elsewhere} in other programs, but is read as words here; {instead}")
}

/// The flag that does what `<lora:NAME:SCALE>` does elsewhere.
fn lora_flag(mark: &Mark) -> Option<String> {
    let (name, scale) = mark.adapter.as_ref()?;
    let file = if name.ends_with(".safetensors") { name.clone() } else { format!("{name}.safetensors") };
    let scale = scale.as_deref().filter(|scale| scale.parse::<f64>().is_ok_and(f64::is_finite));
    Some(format!("⟨lora⟩ {}", shell_word(&scale.map_or(file.clone(), |scale| format!("{file}={scale}")))))
}

/// Warns where the text of `place` begins with the token that the tokenizer of a language model puts before every text.
pub fn warn_of_doubled_start(
    place: &str,
    text: &str,
    tokenizer: &LanguageTokenizer,
    observer: &mut dyn Observer,
) -> Result<()> {
    if let Some(start) = tokenizer.start()?.filter(|start| begins_with(text, start)) {
        observer.warning(format!(
            "{place} begins with `{start}`, which the tokenizer puts there too, so the model reads it twice; leave it out"
        ));
    }
    Ok(())
}

/// `text`, or its beginning.
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tokenizer() -> ClipTokenizer {
        ClipTokenizer::from_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/model/tokenizer")).unwrap()
    }

    #[test]
    fn what_is_cut_off_is_said_for_flags_and_for_the_first_captions() {
        let (tokenizer, long) = (tokenizer(), format!("{}a Red bird", "one, ".repeat(40)));
        let room = tokenizer.max_length() - 2;
        let mut prompts = vec![NamedPrompt::option("⟨class_prompt⟩", &long), NamedPrompt::option("⟨prompt⟩", "a bird")];
        prompts.extend((0..9).map(|i| NamedPrompt::listed(format!("photos/{i}.txt"), &long)));
        let said = warnings(&tokenizer, &prompts).unwrap();
        assert_eq!(said.len(), 1 + 5 + 1, "{said:#?}");
        let tokens = tokenizer.cut(&long).unwrap().unwrap().tokens;
        let first = format!("⟨class_prompt⟩ has {tokens} tokens, of which the text encoder reads the first {room}; ");
        assert!(said[0].starts_with(&first) && said[0].ends_with("…\"") && said[0].len() < 250, "{}", said[0]);
        assert!(said[1].starts_with("photos/0.txt has "), "{}", said[1]);
        assert_eq!(said[6], "and 4 more texts have more tokens than the text encoder reads");
        let short = format!("{}a Red bird", "one ".repeat(room));
        let said = warnings(&tokenizer, &[NamedPrompt::option("⟨prompt⟩", &short)]).unwrap();
        assert!(said[0].ends_with("these words are lost: \"a Red bird\""), "{said:?}");
    }

    #[test]
    fn a_mark_is_named_once_for_its_kind_with_what_to_do() {
        let prompts = [
            NamedPrompt::option("⟨prompt⟩", "a (red:1.2) bird <lora:my-dog:0.8> <lora:it's>"),
            NamedPrompt::option("⟨negative_prompt⟩", "(bad:2) ((worse))"),
            NamedPrompt::listed("a.txt".to_owned(), "(red) bird"),
        ];
        let said = mark_warnings(&prompts);
        assert_eq!(said.len(), 3, "{said:#?}");
        assert!(said[0].starts_with("⟨prompt⟩: `<lora:my-dog:0.8>` loads no adapter"), "{}", said[0]);
        assert!(said[0].ends_with(r"⟨lora⟩ my-dog.safetensors=0.8 ⟨lora⟩ 'it'\''s.safetensors'"), "{}", said[0]);
        assert!(
            said[1].starts_with("⟨prompt⟩: `(red:1.2)` (and in 1 more) gives words a weight in other"),
            "{}",
            said[1]
        );
        assert!(said[2].starts_with("⟨negative_prompt⟩: `((worse))` gives words more weight"), "{}", said[2]);
    }
}
