//! Text from a language model, token by token with a key-value cache: the likeliest, drawn, or by beam search. The tokens are those of
//! transformers' `generate` with the same numbers.
//!
//! Shapes: b texts, v vocabulary.

use crate::error::{Error, Result};
use crate::interrupt;
use crate::libtorch::failure::catching;
use crate::libtorch::upload::upload;
use crate::models::language::{CausalLm, DecoderInputs, Encoded, EncoderDecoder, LanguageModel, Tokens};
use crate::nn::KeyValueCache;
use tch::{Device, Kind, Tensor};

/// How the next token is chosen.
#[derive(Debug, Clone)]
pub struct TextSampling {
    /// Tokens to make at most.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token; 1 draws by the model's own probabilities; less draws closer to the likeliest.
    pub temperature: f64,
    /// Draws from so many of the likeliest tokens.
    pub top_k: Option<i64>,
    /// Draws from the likeliest tokens that have this probability together (arXiv 1904.09751).
    pub top_p: Option<f64>,
    /// Texts that are followed at once; above 1 the likeliest text is searched, and nothing is drawn.
    pub num_beams: usize,
    /// Tokens that end the text.
    pub ends: Vec<i64>,
}

/// More tokens than any model writes.
const MAX_TOKENS: usize = 1_000_000;
/// More texts at once only fill the memory.
const MAX_BEAMS: usize = 256;
/// Below, logits overflow when they are divided by it; above, all tokens are as likely.
const TEMPERATURES: std::ops::RangeInclusive<f64> = 1e-4..=1e4;

impl TextSampling {
    /// The likeliest token each time, until one of `ends`.
    pub fn greedy(max_new_tokens: usize, ends: Vec<i64>) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_k: None, top_p: None, num_beams: 1, ends }
    }

    /// Refuses what makes no text, by its flag.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid(message));
        for (flag, number, most) in
            [("⟨max_new_tokens⟩", self.max_new_tokens, MAX_TOKENS), ("⟨num_beams⟩", self.num_beams, MAX_BEAMS)]
        {
            if !(1..=most).contains(&number) {
                return refuse(format!("{flag} is {number}; it must be 1 to {most}"));
            }
        }
        if self.temperature != 0.0 && !TEMPERATURES.contains(&self.temperature) {
            let (least, most) = TEMPERATURES.into_inner();
            return refuse(format!("⟨temperature⟩ is {:e}; it must be 0, or {least} to {most}", self.temperature));
        }
        if self.top_k.is_some_and(|k| k < 1) {
            return refuse("⟨top_k⟩ must be at least 1".into());
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return refuse("⟨top_p⟩ must be above 0 and at most 1".into());
        }
        if self.temperature == 0.0 && (self.top_k.is_some() || self.top_p.is_some()) {
            return refuse(
                "⟨top_k⟩ and ⟨top_p⟩ are for drawing, and ⟨temperature⟩ 0 takes the likeliest token; give ⟨temperature⟩, such as 1"
                    .into(),
            );
        }
        match self.num_beams > 1 && self.temperature > 0.0 {
            true => refuse(
                "⟨num_beams⟩ searches for the likeliest text and ⟨temperature⟩ samples one; give only one of them"
                    .into(),
            ),
            false => Ok(()),
        }
    }

    /// The next token after `logits` `[v]`, drawn from libtorch's global generator where it is drawn.
    fn choose(&self, logits: &Tensor) -> i64 {
        match self.temperature == 0.0 {
            true => logits.to_kind(Kind::Float).argmax(0, false).int64_value(&[]),
            false => self.probabilities(logits).multinomial(1, false).int64_value(&[0]),
        }
    }

    /// The probabilities that the next token is drawn by after `logits` `[v]`, at a temperature above 0: float32 `[v]`. Temperature
    /// comes first, then top-k, then top-p, as in transformers.
    pub fn probabilities(&self, logits: &Tensor) -> Tensor {
        let mut logits = logits.to_kind(Kind::Float) / self.temperature;
        if let Some(k) = self.top_k {
            let least = logits.topk(k.min(logits.size()[0]), 0, true, true).0.min();
            logits = logits.masked_fill(&logits.lt_tensor(&least), f64::NEG_INFINITY);
        }
        if let Some(p) = self.top_p {
            let (sorted, order) = logits.sort(0, false);
            let below = sorted.softmax(0, Kind::Float).cumsum(0, Kind::Float).le(1.0 - p);
            // The likeliest token stays, whatever its probability.
            let _ = below.narrow(0, -1, 1).fill_(0);
            logits = logits.masked_fill(&below.scatter(0, &order, &below), f64::NEG_INFINITY);
        }
        logits.softmax(0, Kind::Float)
    }
}

/// A model in the middle of its texts: their tokens so far are in its cache.
trait Texts {
    /// Adds one token to each text, int64 `[b, 1]`: logits of the next, `[b, v]`.
    fn add(&mut self, tokens: &Tensor) -> Tensor;

    /// Goes on with these texts (int64 `[b']`, rows of the present ones).
    fn select(&mut self, rows: &Tensor);

    /// Where tokens go.
    fn device(&self) -> Device;
}

struct Continuation<'a> {
    model: &'a dyn CausalLm,
    cache: KeyValueCache,
    /// int64 over the texts so far: 1 at tokens; none: all are.
    attention_mask: Option<Tensor>,
    device: Device,
}

impl Continuation<'_> {
    /// Reads more of the texts, which the mask speaks of already.
    fn read(&mut self, tokens: Tokens) -> Tensor {
        let attention_mask = self.attention_mask.as_ref();
        let position_ids = attention_mask.map(|mask| {
            let counted = (mask.cumsum(1, Kind::Int64) - 1).clamp_min(0);
            counted.narrow(1, counted.size()[1] - tokens.length(), tokens.length())
        });
        let inputs = DecoderInputs {
            attention_mask,
            position_ids: position_ids.as_ref(),
            cache: Some(&mut self.cache),
            ..DecoderInputs::new(tokens)
        };
        let hidden = self.model.forward(inputs);
        self.model.logits(&hidden.select(1, -1))
    }
}

impl Texts for Continuation<'_> {
    fn add(&mut self, tokens: &Tensor) -> Tensor {
        if let Some(mask) = &mut self.attention_mask {
            *mask = Tensor::cat(&[&*mask, &tokens.ones_like()], 1);
        }
        self.read(Tokens::Ids(tokens))
    }

    fn select(&mut self, rows: &Tensor) {
        self.cache.select(rows);
        self.attention_mask = self.attention_mask.as_ref().map(|mask| mask.index_select(0, rows));
    }

    fn device(&self) -> Device {
        self.device
    }
}

struct Answer<'a> {
    model: &'a dyn EncoderDecoder,
    hidden: Tensor,
    /// int64 over what was read: 1 at tokens; none: all are.
    attention_mask: Option<Tensor>,
    cache: KeyValueCache,
}

impl Texts for Answer<'_> {
    fn add(&mut self, tokens: &Tensor) -> Tensor {
        let inputs = DecoderInputs { cache: Some(&mut self.cache), ..DecoderInputs::new(Tokens::Ids(tokens)) };
        let encoded = Encoded { hidden: &self.hidden, attention_mask: self.attention_mask.as_ref() };
        let hidden = self.model.decode(inputs, encoded);
        self.model.logits(&hidden.select(1, -1))
    }

    fn select(&mut self, rows: &Tensor) {
        self.hidden = self.hidden.index_select(0, rows);
        self.attention_mask = self.attention_mask.as_ref().map(|mask| mask.index_select(0, rows));
        self.cache.select(rows);
    }

    fn device(&self) -> Device {
        self.hidden.device()
    }
}

/// Texts that are gone on with, or answered, together.
pub struct Prompts<'a> {
    /// They; where they are not of one length, those that are gone on with are filled up on the left.
    pub tokens: Tokens<'a>,
    /// int64 over the cache and them: 1 at tokens; none: all are. Of an encoder-decoder over them alone.
    pub attention_mask: Option<&'a Tensor>,
    /// Trained keys and values that they stand behind.
    pub cache: KeyValueCache,
}

/// A model that writes.
#[derive(Clone, Copy)]
pub enum TextWriter<'a> {
    /// It goes on with a text.
    Causal(&'a dyn CausalLm),
    /// It answers a text.
    EncoderDecoder(&'a dyn EncoderDecoder),
}

impl<'a> TextWriter<'a> {
    /// `model`, which must not be a classifier.
    pub fn of(model: &'a LanguageModel) -> Result<Self> {
        match model {
            LanguageModel::Causal(model) => Ok(Self::Causal(model.as_ref())),
            LanguageModel::EncoderDecoder(model) => Ok(Self::EncoderDecoder(model.as_ref())),
            LanguageModel::Classifier(_) => Err(Error::invalid("the model is a classifier and writes no text")),
        }
    }

    /// The tokens that follow `prompt` (one text), or that answer it, without the one that every answer starts with. The prompt may
    /// stand behind a `cache` of trained keys and values, on `device`. `on_token` is told of each token as it is made, and may stop
    /// the work with an error; with beams all are told at the end.
    pub fn write(
        self,
        prompt: Tokens,
        cache: KeyValueCache,
        device: Device,
        sampling: &TextSampling,
        on_token: &mut dyn FnMut(i64) -> Result<()>,
    ) -> Result<Vec<i64>> {
        let _no_grad = tch::no_grad_guard();
        let prompts = Prompts { tokens: prompt, attention_mask: None, cache };
        let (mut texts, logits) = self.begin(prompts, device)?;
        generate(texts.as_mut(), logits, sampling, on_token)
    }

    /// The likeliest tokens after each of several texts, until one of `ends`, and at most as many as `most` says of it. `on_token` is
    /// told of each token that all have got, and may stop the work with an error.
    pub fn write_all(
        self,
        prompts: Prompts,
        device: Device,
        most: &[usize],
        ends: &[i64],
        on_token: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<i64>>> {
        let _no_grad = tch::no_grad_guard();
        let (mut texts, mut logits) = self.begin(prompts, device)?;
        let mut made = vec![Vec::new(); most.len()];
        // The texts that the model is still at.
        let mut present: Vec<usize> = (0..most.len()).collect();
        loop {
            let tokens = catching(|| Ok(Vec::<i64>::try_from(logits.to_kind(Kind::Float).argmax(-1, false))?))?;
            let mut going = Vec::new();
            for (row, (&text, &token)) in present.iter().zip(&tokens).enumerate() {
                if made[text].len() < most[text] {
                    made[text].push(token);
                }
                if made[text].len() < most[text] && !ends.contains(&token) {
                    going.push(row);
                }
            }
            on_token()?;
            if going.is_empty() {
                return Ok(made);
            }
            let next: Vec<i64> = going.iter().map(|&row| tokens[row]).collect();
            let rows: Vec<i64> = going.iter().map(|&row| row as i64).collect();
            logits = catching(|| {
                if rows.len() < present.len() {
                    texts.select(&upload(&Tensor::from_slice(&rows), texts.device()));
                }
                Ok(texts.add(&upload(&Tensor::from_slice(&next).view([-1, 1]), texts.device())))
            })?;
            present = going.iter().map(|&row| present[row]).collect();
        }
    }

    /// Reads the prompts: the texts so far, and logits of the next tokens.
    fn begin(self, prompts: Prompts, device: Device) -> Result<(Box<dyn Texts + 'a>, Tensor)> {
        let Prompts { tokens, attention_mask, cache } = prompts;
        let mask = attention_mask.map(Tensor::shallow_clone);
        catching(|| match self {
            Self::Causal(model) => {
                let mut texts = Continuation { model, cache, attention_mask: mask, device };
                let logits = texts.read(tokens);
                Ok((Box::new(texts) as Box<dyn Texts>, logits))
            }
            Self::EncoderDecoder(model) => {
                let hidden = model.encode(tokens, attention_mask, false);
                let mut texts = Answer { model, hidden, attention_mask: mask, cache };
                let start = Tensor::full([tokens.batch(), 1], model.decoder_start_token_id(), (Kind::Int64, device));
                let logits = texts.add(&start);
                Ok((Box::new(texts) as Box<dyn Texts>, logits))
            }
        })
    }
}

fn one_token(id: i64, device: Device) -> Tensor {
    upload(&Tensor::from(id).view([1, 1]), device)
}

/// `logits` `[1, v]` are those after the prompt.
fn generate(
    texts: &mut dyn Texts,
    logits: Tensor,
    sampling: &TextSampling,
    on_token: &mut dyn FnMut(i64) -> Result<()>,
) -> Result<Vec<i64>> {
    if sampling.num_beams > 1 {
        let found = catching(|| beam_search(texts, logits, sampling))?;
        found.iter().try_for_each(|&token| on_token(token))?;
        return Ok(found);
    }
    let (mut logits, mut made) = (logits, Vec::new());
    loop {
        let token = catching(|| Ok(sampling.choose(&logits.get(0))))?;
        made.push(token);
        on_token(token)?;
        if sampling.ends.contains(&token) || made.len() == sampling.max_new_tokens {
            return Ok(made);
        }
        logits = catching(|| Ok(texts.add(&one_token(token, texts.device()))))?;
    }
}

/// A text in a beam search.
#[derive(Clone)]
struct Beam {
    tokens: Vec<i64>,
    /// Logarithm of its probability; of finished ones, by token.
    score: f64,
}

/// The likeliest text among `num_beams` that are followed at once. A text's score is the logarithm of its probability divided by its
/// length; the search ends when no text that goes on could, at the present length, beat the worst of as many finished ones
/// (transformers' defaults: `length_penalty` 1, `early_stopping` false).
fn beam_search(texts: &mut dyn Texts, logits: Tensor, sampling: &TextSampling) -> Result<Vec<i64>> {
    let beams = sampling.num_beams;
    let candidates = beams * (1 + sampling.ends.len()).max(2);
    let mut running = vec![Beam { tokens: Vec::new(), score: 0.0 }];
    let mut finished: Vec<Beam> = Vec::new();
    let mut logits = logits;
    loop {
        // Nobody is told of a token before the end.
        interrupt::check()?;
        let length = running[0].tokens.len() + 1;
        let is_last = length == sampling.max_new_tokens;
        let (mut next, mut parents) = (Vec::new(), Vec::new());
        for (rank, (parent, token, score)) in best_continuations(&logits, &running, candidates)?.into_iter().enumerate()
        {
            let tokens = [running[parent].tokens.as_slice(), &[token]].concat();
            let ends = is_last || sampling.ends.contains(&token);
            if ends && rank < beams {
                finished.push(Beam { tokens, score: score / length as f64 });
            } else if !ends && next.len() < beams {
                next.push(Beam { tokens, score });
                parents.push(parent as i64);
            }
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(beams);
        let worst = finished.get(beams - 1).map_or(f64::NEG_INFINITY, |beam| beam.score);
        let can_improve = next.first().is_some_and(|best| best.score / length as f64 > worst);
        if is_last || !can_improve {
            return Ok(finished.into_iter().next().map(|beam| beam.tokens).unwrap_or_default());
        }
        texts.select(&upload(&Tensor::from_slice(&parents), texts.device()));
        let last: Vec<i64> = next.iter().filter_map(|beam| beam.tokens.last().copied()).collect();
        logits = texts.add(&upload(&Tensor::from_slice(&last).view([-1, 1]), texts.device()));
        running = next;
    }
}

/// The best `count` of all texts with one more token: whose, which token, and the logarithm of its probability.
fn best_continuations(logits: &Tensor, running: &[Beam], count: usize) -> Result<Vec<(usize, i64, f64)>> {
    let vocabulary = logits.size()[1];
    let so_far: Vec<f32> = running.iter().map(|beam| beam.score as f32).collect();
    let so_far = upload(&Tensor::from_slice(&so_far), logits.device()).unsqueeze(1);
    let all = (logits.to_kind(Kind::Float).log_softmax(-1, Kind::Float) + so_far).flatten(0, -1);
    let (scores, places) = all.topk((count as i64).min(all.size()[0]), 0, true, true);
    // To the host in one go: a place is exact in float64.
    let both = Tensor::stack(&[scores.to_kind(Kind::Double), places.to_kind(Kind::Double)], 1);
    let both = Vec::<Vec<f64>>::try_from(both)?;
    let at = |pair: &Vec<f64>| {
        let place = pair[1] as i64;
        ((place / vocabulary) as usize, place % vocabulary, pair[0])
    };
    Ok(both.iter().map(at).collect())
}
