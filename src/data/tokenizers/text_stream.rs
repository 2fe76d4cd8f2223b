//! Text of ids that come one by one, as text generation shows it.

use super::LanguageTokenizer;
use crate::error::Result;

/// Decodes growing ids. A character of several tokens comes when it is whole; all pieces together are the text that the ids
/// have when they are decoded at once.
pub struct TextStream<'a> {
    tokenizer: &'a LanguageTokenizer,
    ids: Vec<i64>,
    /// Ids before this one are not looked at again: a token's text depends on those just before it.
    start: usize,
    /// Ids before this one are shown.
    shown: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a LanguageTokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), start: 0, shown: 0 }
    }

    /// Takes the next id, and gives the text that is new and whole: often empty, sometimes of several ids.
    pub fn push(&mut self, id: i64) -> Result<String> {
        self.ids.push(id);
        let fresh = self.fresh()?;
        if fresh.is_empty() || fresh.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.start = self.shown;
        self.shown = self.ids.len();
        Ok(fresh)
    }

    /// What is left at the end, whole or not.
    pub fn finish(self) -> Result<String> {
        self.fresh()
    }

    fn fresh(&self) -> Result<String> {
        let text = |end: usize| self.tokenizer.decode(self.ids.get(self.start..end).unwrap_or_default());
        let (before, now) = (text(self.shown)?, text(self.ids.len())?);
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }
}
