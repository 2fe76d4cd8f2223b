//! One tokenized example: a text, and what is learnt of it.

use super::language_batch::IGNORED;

#[derive(Debug)]
pub(super) struct Example {
    pub(super) ids: Vec<i64>,
    pub(super) target: Target,
    /// The text as it was before it was tokenized, where it is needed again.
    pub(super) text: String,
    /// What the label column says.
    pub(super) answer: String,
}

#[derive(Debug)]
pub(super) enum Target {
    /// The ids themselves behind the first `unlearnt`.
    Own {
        unlearnt: usize,
    },
    /// Another text.
    Text(Vec<i64>),
    Class(i64),
    /// Not known: the text is to be answered.
    Unknown,
}

impl Example {
    /// Whether there is anything to learn from, or to answer: a first token alone has nothing before it.
    pub(super) fn learns(&self) -> bool {
        match &self.target {
            Target::Own { .. } => self.targets() > 0,
            Target::Text(_) | Target::Class(_) | Target::Unknown => !self.ids.is_empty(),
        }
    }

    /// How many labels there are to learn.
    pub(super) fn targets(&self) -> usize {
        match &self.target {
            Target::Own { unlearnt } => self.ids.len().saturating_sub(*unlearnt.max(&1)),
            Target::Text(ids) => ids.len(),
            Target::Class(_) => 1,
            Target::Unknown => 0,
        }
    }

    /// Whether what is learned ends with the token `end` twice.
    pub(super) fn ends_twice(&self, end: i64) -> bool {
        match &self.target {
            Target::Own { .. } => self.ids.ends_with(&[end, end]),
            Target::Text(ids) => ids.ends_with(&[end, end]),
            Target::Class(_) | Target::Unknown => false,
        }
    }

    /// A label for each token of the text, or of the text to write; none for a class.
    pub(super) fn labels(&self) -> Vec<i64> {
        match &self.target {
            Target::Own { unlearnt } => {
                let unlearnt = (*unlearnt).min(self.ids.len());
                let ignored = std::iter::repeat_n(IGNORED, unlearnt);
                ignored.chain(self.ids.iter().skip(unlearnt).copied()).collect()
            }
            Target::Text(ids) => ids.clone(),
            Target::Class(_) | Target::Unknown => Vec::new(),
        }
    }

    /// The text's ids without what is to be answered.
    pub(super) fn prompt(&self) -> &[i64] {
        match self.target {
            Target::Own { unlearnt } => &self.ids[..unlearnt.min(self.ids.len())],
            Target::Text(_) | Target::Class(_) | Target::Unknown => &self.ids,
        }
    }

    /// The number of the class.
    pub(super) fn class(&self) -> i64 {
        match self.target {
            Target::Class(class) => class,
            _ => IGNORED,
        }
    }
}
