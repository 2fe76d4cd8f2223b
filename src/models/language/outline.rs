//! What is asked of a language model that is not loaded, told from its configuration alone.

use super::interface::TransformerShape;

/// What is asked of a model.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Path of the table of the tokens' embeddings, which has a row for each of the vocabulary.
    pub table: String,
    /// Paths under which layers read that table, where they are others.
    pub readers: Vec<String>,
    /// Its width.
    pub embedding_width: i64,
    /// The model's sizes, or those of its decoder.
    pub shape: TransformerShape,
    /// Transformer blocks of an encoder-decoder's encoder.
    pub encoder_blocks: Option<i64>,
    /// What makes logits.
    pub head: HeadOutline,
    /// Tokens of the longest texts that it was made for, where it can number more.
    pub made_for: Option<i64>,
}

/// The end of a model.
#[derive(Debug, Clone)]
pub enum HeadOutline {
    /// Logits of the next token, for each token that is learnt.
    Tokens {
        /// The projection's path.
        path: String,
        /// Its weight is the table of the tokens' embeddings.
        tied: bool,
    },
    /// Logits of classes, from one token of each text: the paths of projections one after another.
    Classes(Vec<String>),
}

impl HeadOutline {
    /// The head of a classifier: a decoder's is one projection in place of the one to its tokens.
    pub fn of_classes(self) -> Self {
        match self {
            Self::Tokens { .. } => Self::Classes(vec!["score".to_owned()]),
            Self::Classes(paths) => Self::Classes(paths),
        }
    }
}
