//! The forwards of `models::language` on shadows, from their outlines.
//!
//! Shapes: b batch, t length, d width, h heads, s length of what an encoder read, v vocabulary.

use super::layers::{At, Role};
use super::tape::{Product, Record, Segment, Shadow, Storage, Tape, Work};
use crate::models::language::{
    AttentionOutline, BodyOutline, FeedForwardOutline, HeadOutline, MaskOutline, NormOutline, Outline, PartOutline,
    Projection, StackOutline,
};
use crate::nn::{is_head, Activation};
use crate::train::head_loss::{LOGITS_AT_ONCE, PROBABILITIES_AT_ONCE};
use std::rc::Rc;

/// What a batch is, and how it is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    /// Texts.
    pub(super) texts: i64,
    /// Tokens of each: what the first stack reads.
    pub(super) length: i64,
    /// Tokens of each that are learnt: what an encoder-decoder's decoder writes.
    pub(super) learnt: i64,
    /// Dropout is on.
    pub(super) training: bool,
    /// Something among the embeddings is trained.
    pub(super) learns_from_embeddings: bool,
    /// Attention with dropout holds the matrix of scores, as it does on the CPU.
    pub(super) drops_out_scores: bool,
    /// Activations are computed again in backward.
    pub(super) checkpointing: bool,
}

/// The loss of a batch.
pub(super) fn loss(tape: &Tape, root: &At, outline: &Outline, batch: Batch) -> Shadow {
    for (path, rows, width) in &outline.tables {
        (root / path).table([*rows, *width]);
    }
    let mut encoded = None;
    let last = outline.stacks.len() - 1;
    for (i, stack) in outline.stacks.iter().enumerate() {
        let length = if i > 0 && i == last { batch.learnt } else { batch.length };
        let (_, rows, width) = outline.tables[0];
        let mut embeddings = tape.embedding(&(root / &stack.embeddings), batch.texts, length, [rows, width]);
        if batch.learns_from_embeddings {
            embeddings = tape.record_one(&[], embeddings, Record { trained: true, ..Record::default() });
        }
        encoded = Some(run(tape, root, stack, embeddings, encoded.as_ref(), batch));
    }
    let Some(hidden) = encoded else { return tape.tensor(&[1]) };
    match &outline.head {
        HeadOutline::Tokens { path, tied } => {
            let rows = tape.tensor(&[batch.texts * batch.learnt, hidden.shape[2]]);
            let rows = tape.record_one(&[&hidden], rows, Record::default());
            drop(hidden);
            let at = (root / path).with_role(Role::Output);
            head_loss(tape, &at, rows, &Projection::new("", outline.tables[0].1, false), *tied)
        }
        HeadOutline::Classes(projections) => {
            let first = tape.record_one(&[&hidden], tape.tensor(&[batch.texts, hidden.shape[2]]), Record::default());
            let logits = projections.iter().fold(first, |xs, projection| {
                let role = if is_head(&projection.path) { Role::Head } else { Role::Inner };
                let at = (root / &projection.path).with_role(role);
                tape.linear(&at, &xs, projection.outputs, projection.bias)
            });
            cross_entropy(tape, logits)
        }
    }
}

/// A projection; the weight of one that is `tied` is counted elsewhere.
fn projected(tape: &Tape, at: &At, xs: &Shadow, projection: &Projection, tied: bool) -> Shadow {
    let ys = tape.linear(at, xs, projection.outputs, projection.bias);
    if tied {
        at.forget_weight();
    }
    ys
}

/// `train::head_loss`: where the projection does not learn, the rows' gradient is made with the loss, a part of the logits at a time.
fn head_loss(tape: &Tape, at: &At, rows: Shadow, to: &Projection, tied: bool) -> Shadow {
    let (count, width) = (rows.shape[0], rows.shape[1]);
    let probe = Tape::new(tape.width(), true);
    if projected(&probe, at, &probe.tensor(&[1, width]), to, tied).requires_grad() {
        return cross_entropy(tape, projected(tape, at, &rows, to, tied));
    }
    let logits = count.min((LOGITS_AT_ONCE / to.outputs).max(1)) * to.outputs;
    let probabilities = logits.min(PROBABILITIES_AT_ONCE.max(to.outputs)) as u64 * 4;
    let passes = if rows.requires_grad() { 2.0 } else { 1.0 };
    tape.count(Work::of(Product::Matmul { rows: count, inputs: width, outputs: to.outputs }).times(passes));
    let logits = tape.bytes(logits as u64 * tape.width());
    // Logits of a smaller dtype are copied to float32 first.
    drop(tape.bytes(if tape.width() < 4 { 2 * probabilities } else { probabilities }));
    let gradient = tape.tensor(&rows.shape).storage();
    drop(logits);
    let scratch = rows.elements() as u64 * 4;
    tape.record_one(&[&rows], tape.tensor(&[1]), Record { saved: vec![gradient], scratch, ..Record::default() })
}

/// Of logits, in float32: what is kept of them is their logarithms of probabilities.
fn cross_entropy(tape: &Tape, logits: Shadow) -> Shadow {
    let log_probabilities = float32(tape, &logits.shape);
    let logits = match tape.width() {
        4 => logits,
        _ => tape.record_one(&[&logits], float32(tape, &logits.shape), Record::default()),
    };
    let saved = vec![log_probabilities.storage()];
    let log_probabilities =
        tape.record_one(&[&logits], log_probabilities, Record { saved: saved.clone(), ..Record::default() });
    drop(logits);
    tape.record_one(&[&log_probabilities], tape.tensor(&[1]), Record { saved, ..Record::default() })
}

/// A float32 tensor of a shape, as one of the computation's dtype that takes as much.
fn float32(tape: &Tape, shape: &[i64]) -> Shadow {
    let numbers = shape.iter().product::<i64>();
    tape.tensor(&[numbers * 4 / tape.width() as i64])
}

/// What all blocks of a stack are given.
#[derive(Clone)]
struct Given {
    batch: Batch,
    encoded: Option<Shadow>,
    /// A bias that the scores of all blocks gain.
    bias: Option<Rc<Storage>>,
}

fn run(tape: &Tape, root: &At, stack: &Rc<StackOutline>, xs: Shadow, encoded: Option<&Shadow>, batch: Batch) -> Shadow {
    let mut xs = xs;
    if let Some((into, _)) = &stack.projections {
        xs = tape.linear(&(root / &into.path), &xs, into.outputs, into.bias);
    }
    for path in &stack.norms_before_blocks {
        xs = norm(tape, &(root / path), &xs, stack.norm);
    }
    xs = dropout(tape, xs, stack.dropout, batch);
    let given = Given { batch, encoded: encoded.cloned(), bias: bias(tape, stack, &xs) };
    for i in 0..stack.blocks {
        let at = &(root / &stack.path) / i;
        xs = match batch.checkpointing {
            false => block(tape, &at, stack, xs, &given),
            true => recomputed(tape, at, stack, &xs, &given),
        };
    }
    for path in &stack.norms_behind_blocks {
        xs = norm(tape, &(root / path), &xs, stack.norm);
    }
    if let Some((_, out)) = &stack.projections {
        xs = tape.linear(&(root / &out.path), &xs, out.outputs, out.bias);
    }
    dropout(tape, xs, if encoded.is_some() { stack.dropout } else { 0.0 }, batch)
}

/// The bias of a stack's scores, where its attention has one: `[b, h, t, t]`.
fn bias(tape: &Tape, stack: &StackOutline, xs: &Shadow) -> Option<Rc<Storage>> {
    let attention = stack.parts.iter().find_map(|part| match &part.body {
        BodyOutline::Attention(attention) if !attention.reads_encoder => Some(attention),
        _ => None,
    })?;
    let elements = attention.heads * xs.shape[0] * xs.shape[1] * xs.shape[1];
    let has_one = matches!(attention.mask, MaskOutline::Bias | MaskOutline::BiasOnScores);
    has_one.then(|| tape.bytes(elements as u64 * tape.width()))
}

fn recomputed(tape: &Tape, at: At, stack: &Rc<StackOutline>, xs: &Shadow, given: &Given) -> Shadow {
    let (stack, given) = (stack.clone(), given.clone());
    let encoded = given.encoded.clone();
    let segment: Segment = Rc::new(move |tape: &Tape, inputs: &[Shadow]| {
        let given = Given { encoded: inputs.get(1).cloned(), ..given.clone() };
        block(tape, &at, &stack, inputs[0].clone(), &given)
    });
    let inputs: Vec<&Shadow> = std::iter::once(xs).chain(&encoded).collect();
    tape.checkpoint(&inputs, segment)
}

fn block(tape: &Tape, at: &At, stack: &StackOutline, xs: Shadow, given: &Given) -> Shadow {
    stack.parts.iter().fold(xs, |xs, part| residual(tape, at, stack, part, &xs, given))
}

fn residual(tape: &Tape, at: &At, stack: &StackOutline, part: &PartOutline, xs: &Shadow, given: &Given) -> Shadow {
    let norm_at = at / &part.norm;
    let made = match stack.norms_after {
        true => computed(tape, at, &part.body, xs, given),
        false => computed(tape, at, &part.body, &norm(tape, &norm_at, xs, stack.norm), given),
    };
    let sum = tape.add(xs, &dropout(tape, made, part.dropout, given.batch));
    match stack.norms_after {
        true => norm(tape, &norm_at, &sum, stack.norm),
        false => sum,
    }
}

fn computed(tape: &Tape, at: &At, body: &BodyOutline, xs: &Shadow, given: &Given) -> Shadow {
    match body {
        BodyOutline::Attention(part) => attention(tape, at, part, xs, given),
        BodyOutline::FeedForward(part) => feed_forward(tape, at, part, xs, given.batch),
    }
}

fn norm(tape: &Tape, at: &At, xs: &Shadow, kind: NormOutline) -> Shadow {
    let width = xs.shape.last().copied().unwrap_or(1);
    match kind {
        NormOutline::Layer => tape.norm(at, xs, width),
        NormOutline::RootMeanSquare => tape.rms_norm(at, xs, width),
    }
}

fn dropout(tape: &Tape, xs: Shadow, probability: f64, batch: Batch) -> Shadow {
    if !batch.training || probability == 0.0 {
        return xs;
    }
    let record = Record { saved: vec![tape.dropout_mask(&xs)], ..Record::default() };
    tape.record_one(&[&xs], tape.tensor(&xs.shape), record)
}

fn attention(tape: &Tape, at: &At, part: &AttentionOutline, xs: &Shadow, given: &Given) -> Shadow {
    let read = given.encoded.as_ref().filter(|_| part.reads_encoder).unwrap_or(xs);
    let project = |xs: &Shadow, to: &Projection| tape.linear(&(at / &to.path), xs, to.outputs, to.bias);
    let (mut q, mut k, mut v) = match &part.inputs[..] {
        [q, k, v] => (project(xs, q), project(read, k), project(read, v)),
        all => {
            let fused = all.first().map_or_else(|| xs.clone(), |all| project(xs, all));
            let mut parts = tape.parts(&fused, 3).into_iter();
            let mut next = || parts.next().unwrap_or_else(|| xs.clone());
            (next(), next(), next())
        }
    };
    if part.rotary {
        (q, k) = (turned(tape, q), turned(tape, k));
    }
    if part.groups < part.heads {
        let width = part.heads * part.head_width;
        (k, v) = (repeated(tape, k, width), repeated(tape, v, width));
    }
    let drops = given.batch.training && part.dropout > 0.0;
    let attended = match part.mask {
        MaskOutline::BiasOnScores => by_scores(tape, part, (q, k, v), drops),
        _ if drops && given.batch.drops_out_scores => by_scores(tape, part, (q, k, v), drops),
        mask => {
            let mask = mask_of(tape, mask, &q, &k, given);
            tape.attend_masked(&q, &k, &v, part.heads, false, mask)
        }
    };
    project(&attended, &part.output)
}

/// What is added to the scores: libtorch makes numbers of booleans for each call.
fn mask_of(tape: &Tape, mask: MaskOutline, q: &Shadow, k: &Shadow, given: &Given) -> Option<Rc<Storage>> {
    let (texts, queries, keys) = (q.shape[0], q.shape[1], k.shape[1]);
    let numbers = |elements: i64| Some(tape.bytes(elements as u64 * tape.width()));
    match mask {
        MaskOutline::Causal => numbers(texts * queries * keys),
        MaskOutline::Padding => numbers(texts * keys),
        MaskOutline::Bias | MaskOutline::BiasOnScores => given.bias.clone(),
    }
}

/// Rotary positions: halves are multiplied and put together again.
fn turned(tape: &Tape, xs: Shadow) -> Shadow {
    drop(tape.tensor(&[xs.elements() * 2]));
    let scratch = 2 * xs.elements() as u64 * tape.width();
    tape.record_one(&[&xs], tape.tensor(&xs.shape), Record { scratch, ..Record::default() })
}

/// The heads of keys or values as often as there are heads of queries that share them.
fn repeated(tape: &Tape, xs: Shadow, width: i64) -> Shadow {
    let ys = tape.tensor(&[xs.shape[0], xs.shape[1], width]);
    tape.record_one(&[&xs], ys, Record::default())
}

/// Attention that holds the matrix of scores, in float32: copies of queries, keys and values, and all weights before and behind
/// dropout.
fn by_scores(tape: &Tape, part: &AttentionOutline, (q, k, v): (Shadow, Shadow, Shadow), drops: bool) -> Shadow {
    let (texts, rows, keys, width) = (q.shape[0], q.shape[1], k.shape[1], q.shape[2]);
    let scores = (texts * part.heads * rows * keys) as u64;
    let heads = texts * part.heads;
    let product = Work::of(Product::Attention { heads, rows, keys, width: width / part.heads.max(1) });
    tape.count(product.clone());
    let copies = [(&q, 4), (&k, 4), (&v, tape.width())].map(|(xs, width)| tape.bytes(xs.elements() as u64 * width));
    let weights = tape.bytes(scores * 4);
    drop(tape.bytes(scores * 4));
    let behind = match (drops, tape.width()) {
        (true, width) => 1 + width,
        (false, 4) => 0,
        (false, width) => width,
    };
    let kept = [weights, tape.bytes(scores * behind)];
    let record = Record {
        saved: copies.into_iter().chain(kept).collect(),
        scratch: scores * 8,
        work: product.times(2.0 / 3.0),
        ..Record::default()
    };
    tape.record_one(&[&q, &k, &v], tape.tensor(&q.shape), record)
}

fn feed_forward(tape: &Tape, at: &At, part: &FeedForwardOutline, xs: &Shadow, batch: Batch) -> Shadow {
    let project = |xs: &Shadow, to: &Projection| tape.linear(&(at / &to.path), xs, to.outputs, to.bias);
    let up = project(xs, &part.up);
    let activated = activate(tape, part.activation, up);
    let hidden = match &part.gate {
        Some(gate) => tape.mul(&activated, &project(xs, gate)),
        None => activated,
    };
    project(&dropout(tape, hidden, part.dropout, batch), &part.down)
}

/// ReLU keeps its output, the others their input.
fn activate(tape: &Tape, activation: Activation, xs: Shadow) -> Shadow {
    match activation {
        Activation::Relu => {
            let ys = tape.tensor(&xs.shape);
            let saved = vec![ys.storage()];
            tape.record_one(&[&xs], ys, Record { saved, ..Record::default() })
        }
        _ => super::networks::activate(tape, activation, &xs),
    }
}
