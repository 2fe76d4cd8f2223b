//! Texts as words of a shell's command line.

use std::path::Path;

/// `text` as one word, on one line: where it has line ends or other control characters, in bash's `$'…'`.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    match text.chars().any(char::is_control) {
        true => format!("$'{}'", text.chars().map(escaped).collect::<String>()),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// `path` as one word that is no flag.
pub fn shell_path(path: &Path) -> String {
    let text = path.display().to_string();
    shell_word(&if text.starts_with('-') { format!("./{text}") } else { text })
}

fn escaped(c: char) -> String {
    match c {
        '\n' => r"\n".to_owned(),
        '\r' => r"\r".to_owned(),
        '\t' => r"\t".to_owned(),
        '\\' | '\'' => format!(r"\{c}"),
        c if c.is_control() => c.to_string().bytes().map(|byte| format!(r"\{byte:03o}")).collect(),
        c => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn bash_reads_the_text_back() {
        for text in ["plain", "", "two words", "it's", "a\nb", "\\n stays", "'\t\\\r\u{1b}[0m\u{85}é🙂", "$HOME `x` !"]
        {
            let word = shell_word(text);
            assert!(!word.contains(char::is_control), "{word:?}");
            let output = Command::new("bash").args(["-c", &format!("printf %s {word}")]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{word}");
        }
        assert_eq!(shell_word("a\nb"), r"$'a\nb'");
    }
}
