//! The tokenizers of a Stable Diffusion pipeline: one a text encoder.

use super::clip::ClipTokenizer;
use crate::error::Result;
use crate::models::stable_diffusion::PipelineFiles;

/// What Stable Diffusion XL's second tokenizer pads texts with: the token of id 0.
const SECOND_PADDING: &str = "!";

/// The tokenizers of a pipeline, in the order of its text encoders.
pub struct PromptTokenizers(Vec<ClipTokenizer>);

impl PromptTokenizers {
    /// Those of the model behind `files`. A second one that its files lack is the first with other padding.
    pub fn of(files: &PipelineFiles) -> Result<Self> {
        let folder = files.tokenizer_folder()?;
        let mut tokenizers = vec![ClipTokenizer::from_folder(&folder)?];
        if files.text_encoders().len() > 1 {
            tokenizers.push(match files.second_tokenizer_folder() {
                Some(second) => ClipTokenizer::from_folder(&second)?,
                None => ClipTokenizer::from_folder(&folder)?.padded_with(SECOND_PADDING),
            });
        }
        Ok(Self(tokenizers))
    }

    /// The first one, which cuts texts where all do.
    pub fn first(&self) -> &ClipTokenizer {
        &self.0[0]
    }

    /// A text's ids for each text encoder; the second reads `second` where there is such a text.
    pub fn encode(&self, text: &str, second: Option<&str>) -> Result<Vec<Vec<i64>>> {
        let read = |index: usize| second.filter(|_| index > 0).unwrap_or(text);
        self.0.iter().enumerate().map(|(index, tokenizer)| tokenizer.encode(read(index))).collect()
    }
}
