//! Which names from a hub may become names of files.

/// The longest ETag that is taken for a file's name.
const LONGEST_ETAG: usize = 128;
/// The longest name of a folder or file in a repository.
const LONGEST_NAME: usize = 200;
/// The longest path in a repository.
const LONGEST_PATH: usize = 1000;

/// Whether `text` is a commit's full name: SHA-1 or SHA-256 in lowercase hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_hex(text)
}

/// Whether `text` is in lowercase hexadecimal digits.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is a plain name of one file: letters, digits, `.`, `-` and `_`, not hidden and not too long.
pub(super) fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=LONGEST_ETAG).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

/// The name in an ETag header, without its quotes and the mark of a weak one; none where it cannot name a blob.
pub(super) fn etag(header: &str) -> Option<&str> {
    let text = header.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    // The cache has these endings for files of its own.
    let reserved = [".incomplete", ".lock"].iter().any(|end| text.ends_with(end));
    Some(text).filter(|text| is_plain(text) && !reserved)
}

/// Whether `path` names a file below a repository's folder, and says so to everyone who reads it: no `..`, no absolute path, no
/// backslash, and nothing that a terminal acts on.
pub(super) fn is_path(path: &str) -> bool {
    let part = |name: &str| !matches!(name, "" | "." | "..") && name.len() <= LONGEST_NAME;
    path.len() <= LONGEST_PATH && path.split('/').all(part) && path.chars().all(|c| c != '\\' && !is_invisible(c))
}

/// Control characters and marks that change the direction of text.
fn is_invisible(c: char) -> bool {
    let turns_text = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns_text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_a_plain_name_or_nothing() {
        let sha = "a".repeat(64);
        for (header, name) in [
            ("\"abc-1.x_y\"", "abc-1.x_y"),
            ("W/\"abc\"", "abc"),
            ("abc", "abc"),
            (format!("\"{sha}\"").as_str(), sha.as_str()),
        ] {
            assert_eq!(etag(header), Some(name), "{header}");
        }
        let long = "a".repeat(129);
        for header in [
            "",
            "\"\"",
            "\"..\"",
            "\".hidden\"",
            "\"../x\"",
            "\"/etc/passwd\"",
            "\"a/b\"",
            "\"a\\b\"",
            "\"a b\"",
            "\"a\u{1b}[0m\"",
            "\"ä\"",
            "\"abc.incomplete\"",
            "\"abc.lock\"",
            "\"abc",
            long.as_str(),
        ] {
            assert_eq!(etag(header), None, "{header:?}");
        }
    }

    #[test]
    fn a_commit_is_hexadecimal_and_whole() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567") && is_commit(&"f".repeat(64)));
        for text in ["", "main", "../../x", &"F".repeat(40), &"a".repeat(39), &"g".repeat(40), &"/".repeat(40)] {
            assert!(!is_commit(text), "{text}");
        }
    }

    #[test]
    fn a_file_of_a_repository_stays_in_it() {
        let long = "x".repeat(201);
        assert!(["a", "unet/config.json", "a b/ü.txt", "..a/b..", ".gitattributes"].into_iter().all(is_path));
        for path in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "../a",
            "a/../b",
            "./a",
            "a/./b",
            "a\\b",
            "..\\a",
            "a\0",
            "a\nb",
            "a\u{1b}[2J",
            "a\u{202e}b",
            &long,
        ] {
            assert!(!is_path(path), "{path:?}");
        }
    }
}
