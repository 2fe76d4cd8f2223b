//! Text from files, arguments and models as a terminal may have it: nothing in it moves the cursor, hides or reorders words,
//! or fills the screen.

/// Characters of a value that are shown.
const MAX_VALUE: usize = 200;
/// Characters of a line: what is longer loses its middle, so that its subject and its advice stay.
const MAX_LINE: usize = 1000;
/// Characters at the end of such a line that stay.
const LINE_END: usize = 250;
/// What stands for a character that is not shown.
const REPLACEMENT: char = '\u{fffd}';

/// `bytes` in lowercase hexadecimal digits, as checksums are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number of what `name` is called in the singular: `1 step`, `2 steps`.
pub fn counted(number: usize, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

/// Whether `c` steers a terminal (control characters, C1 included) or the order in which text is shown.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether `c` takes no room: two texts that look the same can differ by it.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// `text` on one line: line ends and tabs are spaces, and other characters that are not shown are [`REPLACEMENT`].
fn on_one_line(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\r' | '\t' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => ' ',
        c if steers(c) || is_invisible(c) => REPLACEMENT,
        c => c,
    };
    text.replace("\r\n", "\n").chars().map(plain).collect()
}

/// The byte at which the character number `count` of `text` begins, if it has so many.
fn place(text: &str, count: usize) -> Option<usize> {
    text.char_indices().nth(count).map(|(place, _)| place)
}

/// A value inside a sentence: on one line, and cut where it is too long to be read.
pub fn value(text: &str) -> String {
    match place(text, MAX_VALUE) {
        Some(end) => format!("{}… ({} characters)", on_one_line(&text[..end]), text.chars().count()),
        None => on_one_line(text),
    }
}

/// A sentence on one line; a very long one without its middle.
pub fn line(text: &str) -> String {
    let count = text.chars().count();
    match (place(text, MAX_LINE - LINE_END), place(text, count.saturating_sub(LINE_END))) {
        (Some(start), Some(end)) if count > MAX_LINE => {
            format!("{}… ({count} characters) …{}", on_one_line(&text[..start]), on_one_line(&text[end..]))
        }
        _ => on_one_line(text),
    }
}

/// Several of our own lines, each as [`line`] has it. Values in them come from [`value`], lest they add lines.
pub fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// A piece of a model's text on a terminal: its line ends and tabs stay, and so do joiners, which some scripts need.
pub fn prose(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => c,
        c if steers(c) => REPLACEMENT,
        c => c,
    };
    text.replace("\r\n", "\n").chars().map(plain).collect()
}

/// A JSON text, the same value without a character that a terminal does not show: those are in strings alone, where JSON
/// has an escape for each.
pub fn json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match steers(c) || is_invisible(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| plain.push_str(&format!("\\u{unit:04x}"))),
            false => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: &str = "\u{1b}[31m\u{9b}2J\u{7}\u{202e}\u{2066}\u{200f}\u{200b}\u{feff}\u{e0041}\0";

    #[test]
    fn nothing_that_steers_a_terminal_is_left_in_a_line() {
        let text = format!("a{ODD}b\r\nc\u{2028}d\te");
        for plain in [line(&text), value(&text)] {
            assert!(plain.chars().all(|c| !steers(c) && !is_invisible(c)), "{plain:?}");
            assert!(plain.starts_with('a') && plain.ends_with("b c d e"), "{plain:?}");
        }
        assert_eq!(lines("one\n\u{1b}two"), "one\n\u{fffd}two");
        assert_eq!(line("für Ζωή 犬 🐶 e\u{301}"), "für Ζωή 犬 🐶 e\u{301}");
    }

    #[test]
    fn a_long_value_says_how_long_it_was_and_a_long_line_keeps_both_ends() {
        let long = "é".repeat(100_000);
        assert_eq!(value(&long), format!("{}… (100000 characters)", "é".repeat(200)));
        assert_eq!(value(&long[..400]), long[..400]);
        let sentence = line(&format!("--prompt is {long}; shorten it"));
        assert!(sentence.starts_with("--prompt is é") && sentence.ends_with("é; shorten it"), "{sentence}");
        assert!(sentence.contains("… (100024 characters) …") && sentence.chars().count() < 1100, "{sentence}");
    }

    #[test]
    fn a_models_text_keeps_its_lines_tabs_and_joiners() {
        assert_eq!(prose("a\tb\r\nc\u{1b}[2J\rd\u{200d}e\u{202e}"), "a\tb\nc\u{fffd}[2J\u{fffd}d\u{200d}e\u{fffd}");
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({ "text": format!("x{ODD}\n\"é") });
        let text = json(&value.to_string());
        assert!(text.chars().all(|c| !steers(c) && !is_invisible(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
