//! Marks that other programs read in prompts, where they are no words: weights, schedules, adapters.
//!
//! Brackets around several words of a phrase, as in "a dog (my pet)", are ordinary writing.

use regex::{Captures, Regex};
use std::sync::LazyLock;

/// What a mark does in other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkKind {
    /// `<lora:name:0.8>`.
    Adapter,
    /// `<hypernet:name:0.8>`.
    Hypernetwork,
    /// `(red:1.4)`, `(red)++`, `red++`.
    Weight,
    /// `((red))`, `(red)`.
    Emphasis,
    /// `[red]`.
    SquareBrackets,
    /// `[a:b:0.5]`, `[a|b]`.
    Schedule,
    /// `{a|b}`, `{red}`.
    Braces,
    /// `BREAK`, `AND`.
    Keyword,
    /// `embedding:name`.
    Embedding,
    /// `__name__`.
    Wildcard,
    /// `\(`.
    Backslash,
}

/// A mark in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What it does.
    pub kind: MarkKind,
    /// As it is written.
    pub text: String,
    /// Of an adapter its name and strength, as they are written.
    pub adapter: Option<(String, Option<String>)>,
}

/// A weight larger than this is none: `(Psalm:23)`.
const MAX_WEIGHT: f64 = 10.0;

macro_rules! pattern {
    ($name:ident, $pattern:literal) => {
        // The pattern is a constant, and the tests use it.
        #[allow(clippy::unwrap_used, reason = "a constant pattern is right or wrong for all")]
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($pattern).unwrap());
    };
}

pattern!(ADAPTER, r"(?i)<(?:lora|lyco|loha):([^:<>]+)(?::([^:<>]*))?[^<>]*>");
pattern!(HYPERNETWORK, r"(?i)<hypernet:[^:<>]+[^<>]*>");
pattern!(BACKSLASH, r"\\[()\[\]{}]");
pattern!(WEIGHT, r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)(?:\+\+|--|\d?\.\d+)");
// A name such as C++ is shorter.
pattern!(WEIGHTED_WORD, r"(?:^|[\s,(])(\p{L}[\p{L}\p{N}_'-]*[\p{L}\p{N}](?:\+\+|--)[+-]*)(?:[\s,.;)]|$)");
pattern!(EMPHASIS, r"\(\(");
// One word, or all between two commas.
pattern!(BRACKETED, r"(?:^|[\s,])(\(\p{L}[\p{L}\p{N}_'-]+\))(?:[\s,.;!?]|$)");
pattern!(BRACKETED_PART, r"(?:^|,)\s*(\([^(),:]+\))\s*(?:,|$)");
pattern!(SQUARE, r"\[[^\[\]]*\]");
pattern!(SCHEDULE, r":\s*(?:\d+\.?\d*|\.\d+)\s*\]$|\|");
pattern!(BRACES, r"\{[^{}]+\}");
pattern!(KEYWORD, r"\b(?:BREAK|AND)\b");
pattern!(EMBEDDING, r"(?i)\bembedding:[\w./-]+");
pattern!(WILDCARD, r"__[\p{L}\p{N}][\w/*-]*__");

/// The marks in `text`.
pub fn marks(text: &str) -> Vec<Mark> {
    let mut found = Vec::new();
    let mut add = |kind, text: &str| found.push(Mark { kind, text: text.to_owned(), adapter: None });
    let each = |pattern: &'static Regex, text: &str| -> Vec<String> {
        pattern.find_iter(text).map(|found| found.as_str().to_owned()).collect()
    };
    each(&BACKSLASH, text).iter().for_each(|mark| add(MarkKind::Backslash, mark));
    // What a backslash or an adapter's mark holds is no other mark.
    let plain = ADAPTER.replace_all(text, " ");
    each(&HYPERNETWORK, &plain).iter().for_each(|mark| add(MarkKind::Hypernetwork, mark));
    let plain = HYPERNETWORK.replace_all(&plain, " ");
    let plain = BACKSLASH.replace_all(&plain, " ");
    let brackets = WEIGHT.captures_iter(&plain).filter_map(|weight| weighted(&plain, &weight));
    let words = WEIGHTED_WORD.captures_iter(&plain).filter_map(|found| found.get(1)).map(|word| word.as_str());
    let weights: Vec<&str> = brackets.chain(words).collect();
    weights.iter().for_each(|mark| add(MarkKind::Weight, mark));
    let single = || [&BRACKETED, &BRACKETED_PART].iter().find_map(|pattern| pattern.captures(&plain)?.get(1));
    if let Some(mark) = EMPHASIS.find(&plain) {
        add(MarkKind::Emphasis, bracketed_from(&plain[mark.start()..]));
    } else if let Some(mark) = single().filter(|_| weights.is_empty()) {
        add(MarkKind::Emphasis, mark.as_str());
    }
    for mark in each(&SQUARE, &plain) {
        let kind = if SCHEDULE.is_match(&mark) { MarkKind::Schedule } else { MarkKind::SquareBrackets };
        add(kind, &mark);
    }
    each(&BRACES, &plain).iter().for_each(|mark| add(MarkKind::Braces, mark));
    // A text in capitals says nothing by them.
    if plain.chars().any(char::is_lowercase) {
        each(&KEYWORD, &plain).iter().for_each(|mark| add(MarkKind::Keyword, mark));
    }
    each(&EMBEDDING, &plain).iter().for_each(|mark| add(MarkKind::Embedding, mark));
    each(&WILDCARD, &plain).iter().for_each(|mark| add(MarkKind::Wildcard, mark));
    found.extend(ADAPTER.captures_iter(text).map(|mark| Mark {
        kind: MarkKind::Adapter,
        text: mark[0].to_owned(),
        adapter: Some((mark[1].trim().to_owned(), mark.get(2).map(|scale| scale.as_str().trim().to_owned()))),
    }));
    found
}

/// The whole of a bracket with a weight at its end, if it is one: there are times of the day, proportions and smileys too.
fn weighted<'a>(text: &'a str, end: &Captures) -> Option<&'a str> {
    let whole = end.get(0)?;
    let start = opening_of(text, whole.start() + whole.as_str().find(')')?)?;
    if let Some(number) = end.get(1) {
        let follows_a_digit = text[..whole.start()].trim_end().ends_with(|c: char| c.is_ascii_digit());
        let value: f64 = number.as_str().parse().ok()?;
        if value.abs() > MAX_WEIGHT || follows_a_digit && !number.as_str().contains('.') {
            return None;
        }
    }
    Some(&text[start..whole.end()])
}

/// Where the bracket opens that closes at `end`.
fn opening_of(text: &str, end: usize) -> Option<usize> {
    let mut depth = 0;
    text[..end].char_indices().rev().find_map(|(place, c)| {
        match c {
            ')' => depth += 1,
            '(' if depth == 0 => return Some(place),
            '(' => depth -= 1,
            _ => {}
        }
        None
    })
}

/// A text from its opening bracket to the one that closes it.
fn bracketed_from(text: &str) -> &str {
    let mut depth = 0;
    let end = text.char_indices().find_map(|(place, c)| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        (depth == 0).then_some(place + 1)
    });
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(MarkKind, String)> {
        marks(text).into_iter().map(|mark| (mark.kind, mark.text)).collect()
    }

    #[test]
    fn marks_of_other_programs_are_found_with_their_kinds() {
        use MarkKind::*;
        for (text, kind, mark) in [
            ("a (red:1.4) dog", Weight, "(red:1.4)"),
            ("a (red dog, (blue) eyes: 1.05)", Weight, "(red dog, (blue) eyes: 1.05)"),
            ("a (red:.5) dog", Weight, "(red:.5)"),
            ("a (sd15:1.2) dog", Weight, "(sd15:1.2)"),
            ("a (red:-1) dog", Weight, "(red:-1)"),
            ("a (red dog)++", Weight, "(red dog)++"),
            ("a (red dog)1.3", Weight, "(red dog)1.3"),
            ("a red++ dog", Weight, "red++"),
            ("a dog, blurry--", Weight, "blurry--"),
            ("a ((red)) dog", Emphasis, "((red))"),
            ("a (red) dog", Emphasis, "(red)"),
            ("a dog, (best quality), outside", Emphasis, "(best quality)"),
            ("a dog <hypernet:style:0.5>", Hypernetwork, "<hypernet:style:0.5>"),
            ("a [red] dog", SquareBrackets, "[red]"),
            ("a photo of [V] dog", SquareBrackets, "[V]"),
            ("a [cat:dog:0.5]", Schedule, "[cat:dog:0.5]"),
            ("a [dog:10]", Schedule, "[dog:10]"),
            ("a [cat|dog]", Schedule, "[cat|dog]"),
            ("a {red|blue} dog", Braces, "{red|blue}"),
            ("a {red} dog", Braces, "{red}"),
            ("a dog BREAK a cat", Keyword, "BREAK"),
            ("a dog AND a cat", Keyword, "AND"),
            ("a dog, embedding:easynegative", Embedding, "embedding:easynegative"),
            ("a __colour__ dog", Wildcard, "__colour__"),
            (r"miku \(vocaloid)", Backslash, r"\("),
            ("a dog <lora:my-dog:0.8>", Adapter, "<lora:my-dog:0.8>"),
        ] {
            assert_eq!(kinds(text), [(kind, mark.to_owned())], "{text}");
        }
        let adapter = |text: &str| marks(text)[0].adapter.clone().unwrap();
        assert_eq!(adapter("<lora:my dog (2):0.8:0.5>"), ("my dog (2)".into(), Some("0.8".into())));
        assert_eq!(adapter("<LyCO:my-dog>"), ("my-dog".into(), None));
        assert_eq!(kinds("((red:1.2))").iter().map(|mark| mark.0).collect::<Vec<_>>(), [Weight, Emphasis]);
    }

    #[test]
    fn ordinary_writing_is_no_mark() {
        for text in [
            "a dog (my pet)",
            "a dog (my pet), photo(s) of dogs and (blue: sky)",
            "a clock (at 10:30)",
            "a map (scale 1:5), a page (Psalm:23)",
            "smile :) ;-) a ratio of 16:9",
            "a <sks> dog, 3 < 5 > 2",
            "A DOG AND A CAT",
            "brand and breakfast, Andrew",
            "an embedding: a study",
            "snake_case __ and ^__^",
            r"C:\photos",
            "C++ (a language), a - b -- c, a dog--and a cat",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }
}
