//! Examples for a language model from rows of texts, tokenized once, and their batches.

use super::epoch_order::EpochOrder;
use super::language_batch::{filled, LanguageBatch, IGNORED};
use super::language_example::{Example, Target};
use super::prompt_template::PromptTemplate;
use super::records::{Record, Records};
use super::tokenizers::language::Encoded;
use super::tokenizers::LanguageTokenizer;
use crate::error::{Error, Result};
use crate::interrupt;
use clap::ValueEnum;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use tch::Tensor;

/// What a language model learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LanguageTask {
    /// Continue a text.
    CausalLm,
    /// Text to text.
    #[value(name = "seq2seq-lm")]
    Seq2SeqLm,
    /// Text classification.
    SeqCls,
}

impl LanguageTask {
    /// PEFT's `task_type`.
    pub fn peft_name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::SeqCls => "SEQ_CLS",
        }
    }

    /// The task that PEFT calls so.
    pub fn named(peft_name: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|task| task.peft_name() == peft_name)
    }
}

/// What examples are made of, the same for training and validation.
#[derive(Debug, Clone)]
pub struct LanguageDataOptions {
    /// What is learnt.
    pub task: LanguageTask,
    /// The text of a row: a template, or [`PromptTemplate::column`].
    pub prompt: PromptTemplate,
    /// The column of what shall be written, or of the class. With causal-lm it can be left out: the text is its own label then;
    /// else the label follows the text, and the text itself is not learnt, as in PEFT's examples of prompt tuning.
    pub label_column: Option<String>,
    /// Tokens of the longest text and of the longest label; longer ones are cut.
    pub max_length: usize,
}

/// Tokenized examples.
#[derive(Debug)]
pub struct LanguageDataset {
    task: LanguageTask,
    examples: Vec<Example>,
    classes: Vec<String>,
    pad: i64,
    pads_left: bool,
    warnings: Vec<String>,
    sample: String,
}

/// What examples are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be learned from.
    Learn,
    /// To be evaluated on.
    Evaluate,
    /// To be answered: nothing tells what is right.
    Answer,
}

/// Rows whose texts hold a token that is put there anyway.
#[derive(Default)]
struct Doubled {
    starts: usize,
    ends: usize,
}

impl Doubled {
    /// A sentence for each kind; `of` says how many of a file's rows, and `start` is the token before every text.
    fn warnings(&self, of: impl Fn(usize) -> String, start: Option<&str>) -> Vec<String> {
        let start = start.filter(|_| self.starts > 0).map(|start| {
            format!(
                "{} begin with `{start}`, which the tokenizer puts there too, so the model reads it twice; leave it out of the records \
                 or of ⟨prompt_template⟩",
                of(self.starts)
            )
        });
        let end = (self.ends > 0).then(|| {
            let rows = of(self.ends);
            format!("{rows} have the token that ends a text, which is put there too, so it is learned twice; leave it out of the records")
        });
        start.into_iter().chain(end).collect()
    }
}

/// Whether a text has `start` at its beginning, as far as a reader sees.
pub fn begins_with(text: &str, start: &str) -> bool {
    !start.is_empty() && text.trim_start().starts_with(start)
}

/// An example, and where something of its row was cut off the tokens that all of the row takes.
type Cut = (Example, Option<usize>);

/// Characters of a column that are enough to try a model on.
const SAMPLE: usize = 100;

impl LanguageDataOptions {
    /// The examples of a training file; classes are its sorted distinct labels.
    pub fn training(&self, file: &Path, tokenizer: &LanguageTokenizer) -> Result<LanguageDataset> {
        let records = self.labelled(file)?;
        let classes = match (self.task, &self.label_column) {
            (LanguageTask::SeqCls, Some(column)) => classes(&records, column)?,
            _ => Vec::new(),
        };
        self.dataset(&records, tokenizer, classes, Purpose::Learn)
    }

    /// The examples of a validation file; a label that is no class of `training` is an error.
    pub fn validation(
        &self,
        file: &Path,
        tokenizer: &LanguageTokenizer,
        training: &LanguageDataset,
    ) -> Result<LanguageDataset> {
        self.evaluation(file, tokenizer, training.classes.clone())
    }

    /// The examples of a file that a model of these `classes` is evaluated on; another label is an error.
    pub fn evaluation(
        &self,
        file: &Path,
        tokenizer: &LanguageTokenizer,
        classes: Vec<String>,
    ) -> Result<LanguageDataset> {
        self.dataset(&self.labelled(file)?, tokenizer, classes, Purpose::Evaluate)
    }

    /// The texts of a file alone, which a model of these `classes` is to answer.
    pub fn unlabelled(
        &self,
        file: &Path,
        tokenizer: &LanguageTokenizer,
        classes: Vec<String>,
    ) -> Result<LanguageDataset> {
        self.dataset(&self.read(file)?, tokenizer, classes, Purpose::Answer)
    }

    /// The rows of a file, which tell what is to be learnt of them.
    fn labelled(&self, file: &Path) -> Result<Records> {
        match self.label_column.is_none() && self.task != LanguageTask::CausalLm {
            true => Err(Error::invalid("this task needs ⟨label_column⟩, the column with the expected answer")),
            false => self.read(file),
        }
    }

    fn read(&self, file: &Path) -> Result<Records> {
        if self.max_length < 2 {
            return Err(Error::invalid(format!("⟨max_seq_length⟩ is {}; it must be at least 2", self.max_length)));
        }
        let columns: Vec<&str> = self.prompt.columns().into_iter().chain(self.label_column.as_deref()).collect();
        Records::read(file, &columns)
    }

    fn dataset(
        &self,
        records: &Records,
        tokenizer: &LanguageTokenizer,
        classes: Vec<String>,
        purpose: Purpose,
    ) -> Result<LanguageDataset> {
        let (mut examples, mut cut, mut empty) = (Vec::new(), 0, 0);
        // Rows without room for their answers, and the tokens that the longest of them takes.
        let (mut crowded, mut longest) = (0, 0);
        let (start, end, mut doubled) = (tokenizer.start()?, tokenizer.special_ids().eos, Doubled::default());
        let mut sample = None;
        for record in records.iter() {
            interrupt::check()?;
            let text = self.prompt.render(&record)?;
            doubled.starts += usize::from(start.as_ref().is_some_and(|start| begins_with(&text, start)));
            let (mut example, whole) = match purpose {
                Purpose::Answer => self.unanswered(&text, tokenizer)?,
                Purpose::Learn | Purpose::Evaluate => self.example(&text, records, &record, tokenizer, &classes)?,
            };
            doubled.ends += usize::from(end.is_some_and(|end| example.ends_twice(end)));
            if purpose != Purpose::Learn {
                example.text = text;
            }
            if example.learns() {
                cut += usize::from(whole.is_some());
                if sample.is_none() {
                    sample = Some(self.sample(&record)?);
                }
                examples.push(example);
            } else if let Some(whole) = whole {
                crowded += 1;
                longest = longest.max(whole);
            } else {
                empty += 1;
            }
        }
        let (file, rows) = (records.path(), records.len());
        let no_room =
            format!("for an answer within ⟨max_seq_length⟩ {} tokens: the longest takes {longest}", self.max_length);
        if examples.is_empty() {
            return Err(match crowded {
                0 => Error::file(file, "has no row with a text"),
                _ => Error::file(file, format!("has no row with room {no_room}")),
            });
        }
        let of = |count: usize| format!("{}: {count} of {rows} rows", file.display());
        let mut warnings = Vec::new();
        if cut > 0 {
            warnings.push(format!(
                "{} are longer than ⟨max_seq_length⟩ {} tokens and are cut",
                of(cut),
                self.max_length
            ));
        }
        if crowded > 0 {
            warnings.push(format!("{} have no room {no_room}; they are left out", of(crowded)));
        }
        if empty > 0 {
            warnings.push(format!("{} have no text, or a single token, and are left out", of(empty)));
        }
        warnings.extend(doubled.warnings(of, start.as_deref()));
        let (pad, pads_left) = (tokenizer.pad()?, tokenizer.pads_left());
        Ok(LanguageDataset {
            task: self.task,
            examples,
            classes,
            pad,
            pads_left,
            warnings,
            sample: sample.unwrap_or_default(),
        })
    }

    /// A row's text, with no more of its columns than is needed to try a model on; half of it where it is its own label.
    fn sample(&self, record: &Record) -> Result<String> {
        let text = self.prompt.render_with(record, |value| opening(value, SAMPLE))?;
        Ok(match (self.task, &self.label_column) {
            (LanguageTask::CausalLm, None) => opening(&text, text.chars().count() / 2).to_owned(),
            _ => text,
        })
    }

    /// A row's text, to be answered.
    fn unanswered(&self, text: &str, tokenizer: &LanguageTokenizer) -> Result<Cut> {
        let Encoded { mut ids, cut } = tokenizer.encode(text, self.max_length)?;
        let whole = (cut > 0).then_some(ids.len() + cut);
        if self.task == LanguageTask::CausalLm && ids.len() > 1 && ids.last() == Some(&tokenizer.eos()?) {
            ids.pop();
        }
        Ok((Example { ids, target: Target::Unknown, text: String::new(), answer: String::new() }, whole))
    }

    /// A row's example.
    fn example(
        &self,
        text: &str,
        records: &Records,
        record: &Record,
        tokenizer: &LanguageTokenizer,
        classes: &[String],
    ) -> Result<Cut> {
        let prompt = tokenizer.encode(text, self.max_length)?;
        let label = self.label_column.as_deref().and_then(|column| record.get(column)).unwrap_or_default();
        let (mut ids, cut) = (prompt.ids, prompt.cut);
        let mut whole = (cut > 0).then_some(ids.len() + cut);
        let target = match self.task {
            LanguageTask::CausalLm => {
                let end = tokenizer.eos()?;
                let is_ended = ids.last() == Some(&end) && ids.len() > 1;
                let mut unlearnt = 0;
                if self.label_column.is_some() {
                    ids.truncate(ids.len() - usize::from(is_ended));
                    unlearnt = ids.len();
                    ids.extend(tokenizer.encode_bare(label)?);
                    ids.push(end);
                } else if !is_ended {
                    ids.push(end);
                }
                if cut > 0 || ids.len() > self.max_length {
                    whole = Some(ids.len() + cut);
                }
                ids.truncate(self.max_length);
                Target::Own { unlearnt }
            }
            LanguageTask::Seq2SeqLm => {
                let mut written = tokenizer.encode(label, self.max_length)?;
                let end = tokenizer.eos()?;
                if written.ids.last() != Some(&end) {
                    written.ids.push(end);
                }
                if written.cut > 0 || written.ids.len() > self.max_length {
                    whole = Some(whole.unwrap_or(0).max(written.ids.len() + written.cut));
                }
                written.ids.truncate(self.max_length);
                Target::Text(written.ids)
            }
            LanguageTask::SeqCls => {
                let class = classes.iter().position(|class| class == label).ok_or_else(|| {
                    let known = classes.join(", ");
                    let message = format!(
                        "line {}: the label `{label}` is none that was learned, which are {known}",
                        record.line()
                    );
                    Error::file(records.path(), message)
                })?;
                Target::Class(class as i64)
            }
        };
        Ok((Example { ids, target, text: String::new(), answer: label.to_owned() }, whole))
    }
}

impl LanguageDataset {
    /// The number of examples, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a data set without examples is an error")]
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// The names of the classes, for seq-cls: a label's number is its place here.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// A sentence for each thing that was done to rows: cut, left out.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The first text, or as much of it as is needed to try a model on.
    pub fn sample(&self) -> &str {
        &self.sample
    }

    /// The number of tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).max().unwrap_or(0)
    }

    /// The number of labels to learn of the example that has most.
    pub fn most_targets(&self) -> usize {
        self.examples.iter().map(Example::targets).max().unwrap_or(0)
    }

    /// Tokens of the longest text, and labels to learn of the longest label, of a batch of `size` on average.
    pub fn usual_batch(&self, size: usize) -> (usize, usize) {
        let batches = self.examples.chunks(size.max(1));
        let mean = |of: &dyn Fn(&Example) -> usize| {
            let longest = batches.clone().map(|batch| batch.iter().map(of).max().unwrap_or(0));
            longest.sum::<usize>().div_ceil(batches.len().max(1))
        };
        (mean(&|example| example.ids.len()), mean(&Example::targets))
    }

    /// The ids of an example's text, without what is to be answered.
    pub fn prompt(&self, place: usize) -> &[i64] {
        self.examples[place].prompt()
    }

    /// The prompts of `places` filled up on one side, int64 `[b, t]`, and which of it are tokens, on the CPU.
    pub fn prompts(&self, places: &[usize], on_the_left: bool) -> Result<(Tensor, Tensor)> {
        let prompts = places.iter().map(|&place| self.prompt(place));
        let ones: Vec<Vec<i64>> = prompts.clone().map(|prompt| vec![1; prompt.len()]).collect();
        let mask = filled(ones.iter().map(Vec::as_slice), 0, on_the_left)?;
        Ok((filled(prompts, self.pad, on_the_left)?, mask))
    }

    /// The text of an example that is not to be learned from, as it was before it was tokenized.
    pub fn text(&self, place: usize) -> &str {
        &self.examples[place].text
    }

    /// What an example's label column says.
    pub fn answer(&self, place: usize) -> &str {
        &self.examples[place].answer
    }

    /// Whether it is known what is to be answered.
    pub fn is_labelled(&self) -> bool {
        self.examples.iter().all(|example| !matches!(example.target, Target::Unknown))
    }

    /// Whether there is something to answer to each text.
    pub fn has_answers(&self) -> bool {
        self.examples.iter().all(|example| !example.prompt().is_empty())
    }

    /// How many examples there are, and a hash of them: a resumed run must find the same.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        let mut add = |number: i64| digest.update(number.to_le_bytes());
        for example in &self.examples {
            add(example.ids.len() as i64);
            example.ids.iter().for_each(|&id| add(id));
            match &example.target {
                Target::Own { unlearnt } => add(*unlearnt as i64),
                Target::Text(ids) => ids.iter().for_each(|&id| add(id)),
                Target::Class(class) => add(*class),
                Target::Unknown => {}
            }
        }
        let hash: String = digest.finalize()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} examples ({hash})", self.examples.len())
    }

    /// The order of batches over this data set.
    pub fn order(&self, batch_size: usize, seed: i64, shuffle: bool) -> Result<EpochOrder> {
        EpochOrder::new(self.examples.len(), batch_size, seed, shuffle)
    }

    /// The examples at `places`, on the CPU.
    pub fn batch(&self, places: &[usize]) -> Result<LanguageBatch> {
        let example = |&place: &usize| {
            self.examples.get(place).ok_or_else(|| Error::invalid(format!("there is no example {place}")))
        };
        let examples = places.iter().map(example).collect::<Result<Vec<_>>>()?;
        let ids = examples.iter().map(|example| example.ids.as_slice());
        let ones: Vec<Vec<i64>> = ids.clone().map(|ids| vec![1; ids.len()]).collect();
        let labels = match self.task {
            LanguageTask::SeqCls => {
                let classes: Vec<i64> = examples.iter().map(|example| example.class()).collect();
                Tensor::f_from_slice(&classes)?
            }
            LanguageTask::CausalLm | LanguageTask::Seq2SeqLm => {
                let labels: Vec<Vec<i64>> = examples.iter().map(|example| example.labels()).collect();
                filled(labels.iter().map(Vec::as_slice), IGNORED, self.pads_left)?
            }
        };
        Ok(LanguageBatch {
            input_ids: filled(ids, self.pad, self.pads_left)?,
            attention_mask: filled(ones.iter().map(Vec::as_slice), 0, self.pads_left)?,
            labels,
        })
    }
}

/// The whole words among the first `most` characters of `text`, or its first word.
fn opening(text: &str, most: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(most) else { return text };
    let word_ends = |from: usize, to: usize| text[from..to].find(char::is_whitespace).map(|place| from + place);
    let first = word_ends(0, text.len()).unwrap_or(text.len());
    let last = text[..end].rfind(char::is_whitespace).unwrap_or(first);
    text[..last.max(first)].trim_end()
}

/// The sorted distinct labels: whole numbers by their size, other texts by their characters.
fn classes(records: &Records, column: &str) -> Result<Vec<String>> {
    let mut distinct = BTreeSet::new();
    for record in records.iter() {
        let label = record.get(column).unwrap_or_default();
        if label.trim().is_empty() {
            return Err(Error::file(records.path(), format!("line {}: `{column}` has no label", record.line())));
        }
        distinct.insert(label);
    }
    if distinct.len() < 2 {
        return Err(Error::file(
            records.path(),
            format!("`{column}` has the same label in every row; a classifier needs at least two"),
        ));
    }
    let mut classes: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
    let numbers: Option<Vec<i64>> = classes.iter().map(|class| class.parse().ok()).collect();
    if numbers.is_some() {
        classes.sort_by_key(|class| class.parse::<i64>().unwrap_or_default());
    }
    Ok(classes)
}
