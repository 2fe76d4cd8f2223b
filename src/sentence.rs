//! Options inside sentences: `⟨lora_r⟩` stands for the option of that name, until somebody who speaks to a user writes it as that user
//! knows it: the command line as a flag, a page as a field.

const OPEN: char = '⟨';
const CLOSE: char = '⟩';

/// The option `name` as a sentence has it.
pub fn option(name: &str) -> String {
    format!("{OPEN}{name}{CLOSE}")
}

/// The option that `sentence` is about: the one that it begins with.
pub fn subject(sentence: &str) -> Option<&str> {
    let (name, _) = sentence.strip_prefix(OPEN)?.split_once(CLOSE)?;
    is_name(name).then_some(name)
}

/// `text` with each option in it as `write` has its name.
pub fn with_options(text: &str, write: impl Fn(&str) -> String) -> String {
    let (mut written, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(OPEN) {
        written.push_str(before);
        rest = match after.split_once(CLOSE).filter(|(name, _)| is_name(name)) {
            Some((name, behind)) => {
                written.push_str(&write(name));
                behind
            }
            None => {
                written.push(OPEN);
                after
            }
        };
    }
    written + rest
}

/// The flag of the option `name`.
pub fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_as_the_reader_knows_them_and_nothing_else_is() {
        let text = "⟨lora_r⟩ is 0; turn off ⟨load_in_8bit⟩, not {lora_r}, ⟨Text⟩ or ⟨";
        assert_eq!(with_options(text, flag), "--lora-r is 0; turn off --load-in-8bit, not {lora_r}, ⟨Text⟩ or ⟨");
        assert_eq!(subject(text), Some("lora_r"));
        assert_eq!(subject("a file is not there; see ⟨model⟩"), None);
        assert_eq!(option("lora_r"), "⟨lora_r⟩");
    }
}
