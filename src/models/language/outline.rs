//! What a language model is made of, told from its configuration alone: for what has to know sizes without loading it.

use super::interface::TransformerShape;
use crate::nn::Activation;
use std::rc::Rc;

/// A whole model.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Tables of embeddings: path, rows, width. The first is the tokens'.
    pub tables: Vec<(String, i64, i64)>,
    /// Stacks of blocks. The last one makes what the head reads; one before it is an encoder, whose output the blocks of the last
    /// read beside the text.
    pub stacks: Vec<Rc<StackOutline>>,
    /// What makes logits of the last stack's output.
    pub head: HeadOutline,
    /// Most tokens that there are positions for; none: as many as memory holds.
    pub longest: Option<i64>,
    /// Tokens of the longest texts that it was made for, where it can number more.
    pub made_for: Option<i64>,
}

impl Outline {
    /// Its sizes, or those of its decoder.
    pub fn shape(&self) -> TransformerShape {
        let (stack, attention) = self.last();
        TransformerShape {
            blocks: stack.blocks,
            heads: attention.heads,
            key_value_heads: attention.groups,
            head_width: attention.head_width,
            width: stack.width,
            vocabulary: self.tables[0].1,
            longest: self.longest,
        }
    }

    /// Transformer blocks of an encoder-decoder's encoder.
    pub fn encoder_blocks(&self) -> Option<i64> {
        (self.stacks.len() > 1).then(|| self.stacks[0].blocks)
    }

    /// The last stack, and its attention to its own text.
    fn last(&self) -> (&StackOutline, &AttentionOutline) {
        let stack = &self.stacks[self.stacks.len() - 1];
        let attention = stack.parts.iter().find_map(|part| match &part.body {
            BodyOutline::Attention(attention) => Some(attention),
            BodyOutline::FeedForward(_) => None,
        });
        match attention {
            Some(attention) => (stack, attention),
            None => unreachable!("every block has attention"),
        }
    }
}

impl HeadOutline {
    /// The head of a classifier of `labels` classes: a decoder's is one projection in place of the one to its tokens.
    pub fn with_labels(self, labels: i64) -> Self {
        let mut projections = match self {
            Self::Tokens { .. } => vec![Projection::new("score", labels, false)],
            Self::Classes(projections) => projections,
        };
        if let Some(last) = projections.last_mut() {
            last.outputs = labels;
        }
        Self::Classes(projections)
    }
}

/// The end of a model.
#[derive(Debug, Clone)]
pub enum HeadOutline {
    /// Logits of the next token, for each token that is learnt.
    Tokens {
        /// The projection's path.
        path: String,
        /// Its weight is the first table's.
        tied: bool,
    },
    /// Logits of classes, from one token of each text: projections one after another.
    Classes(Vec<Projection>),
}

/// Blocks of one kind, one after another.
#[derive(Debug, Clone)]
pub struct StackOutline {
    /// Path of the list of blocks, such as `transformer.h`.
    pub path: String,
    /// Path under which it reads the tokens' table, such as `transformer.wte`.
    pub embeddings: String,
    /// Number of blocks.
    pub blocks: i64,
    /// Width of the hidden states.
    pub width: i64,
    /// The kind of all its norms.
    pub norm: NormOutline,
    /// A part's norm comes behind it, after its input is added.
    pub norms_after: bool,
    /// The parts of a block.
    pub parts: Vec<PartOutline>,
    /// Paths of norms before the blocks.
    pub norms_before_blocks: Vec<String>,
    /// Paths of norms behind the blocks.
    pub norms_behind_blocks: Vec<String>,
    /// What embeddings of another width go through, and its counterpart behind the blocks.
    pub projections: Option<(Projection, Projection)>,
    /// Dropout of what goes into the blocks.
    pub dropout: f64,
}

/// A kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOutline {
    /// With a mean and a bias.
    Layer,
    /// By the root mean square.
    RootMeanSquare,
}

/// Something in a block whose output is added to its input.
#[derive(Debug, Clone)]
pub struct PartOutline {
    /// Path of its norm in the block.
    pub norm: String,
    /// Dropout of its output.
    pub dropout: f64,
    /// What it computes.
    pub body: BodyOutline,
}

/// What a part of a block computes.
#[derive(Debug, Clone)]
pub enum BodyOutline {
    /// Looks at other tokens.
    Attention(AttentionOutline),
    /// Looks at one token.
    FeedForward(FeedForwardOutline),
}

/// Attention over several heads.
#[derive(Debug, Clone)]
pub struct AttentionOutline {
    /// To queries, keys and values: three projections, or one to all.
    pub inputs: Vec<Projection>,
    /// From the heads back to the model's width.
    pub output: Projection,
    /// Keys and values are the encoder's.
    pub reads_encoder: bool,
    /// Heads of queries.
    pub heads: i64,
    /// Heads of keys and values.
    pub groups: i64,
    /// Width of a head.
    pub head_width: i64,
    /// Dropout of its weights.
    pub dropout: f64,
    /// What tells which keys are seen.
    pub mask: MaskOutline,
    /// Queries and keys are turned by their positions.
    pub rotary: bool,
}

/// What tells which keys are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskOutline {
    /// A boolean for each query and key of a text.
    Causal,
    /// A boolean for each key of a text.
    Padding,
    /// A number for each head, query and key of a text, the same in all blocks, which is added to the scores.
    Bias,
    /// The same, with the matrix of scores kept.
    BiasOnScores,
}

/// The feed-forward of a block.
#[derive(Debug, Clone)]
pub struct FeedForwardOutline {
    /// The projection whose output is activated.
    pub up: Projection,
    /// One whose output that is multiplied by.
    pub gate: Option<Projection>,
    /// Back to the model's width.
    pub down: Projection,
    /// Between them.
    pub activation: Activation,
    /// Dropout between them.
    pub dropout: f64,
}

/// A linear projection.
#[derive(Debug, Clone)]
pub struct Projection {
    /// Its path; in a block the part below the block's.
    pub path: String,
    /// Its outputs.
    pub outputs: i64,
    /// Whether it has a bias.
    pub bias: bool,
}

impl Projection {
    /// The projection at `path`.
    pub fn new(path: &str, outputs: i64, bias: bool) -> Self {
        Self { path: path.to_owned(), outputs, bias }
    }
}
