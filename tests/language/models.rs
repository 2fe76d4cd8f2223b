//! Every language model computes what transformers' does.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::language::{
    assert_close, at_tokens, bert, bloom, computed, gpt2, llama, load, opt, rope, saved, t5, with,
};
use crate::support::language::{Given, Model, Tensors, CLOSE, FLOAT32};
use crate::support::{read_json, relative_norm_error};
use lorabooth::models::language::{
    CausalLm, DecoderInputs, Encoded, EncoderDecoder, HeadOptions, LanguageModel, LanguageModelFiles, Tokens,
};
use lorabooth::nn::KeyValueCache;
use lorabooth::weights::Placement;
use serde_json::{json, Value};
use std::path::Path;
use tch::{Kind, Tensor};

/// Logits of all cases against transformers'.
fn check_saved(name: &str, class: &str, folder: &Path) {
    let (expected, _no_grad) = (computed(class, folder, json!({})), tch::no_grad_guard());
    let model = load(folder, FLOAT32).model;
    for case in ["plain", "right", "left"] {
        let given = Given::of(&expected, &format!("{case}."));
        let (actual, wanted) = (given.logits(&model, false), &expected[&format!("{case}.logits")]);
        assert_close(&format!("{name} {case}"), &given.seen(&model, &actual), &given.seen(&model, wanted), CLOSE);
    }
    match &model {
        LanguageModel::Causal(model) => check_decoder(name, model.as_ref(), &expected),
        LanguageModel::EncoderDecoder(model) => check_encoder_decoder(name, model.as_ref(), &expected),
        LanguageModel::Classifier(_) => {
            let given = Given { types: None, ..Given::of(&expected, "right.") };
            assert_close(&format!("{name} untyped"), &given.logits(&model, false), &expected["untyped.logits"], CLOSE);
        }
    }
}

fn check(name: &str, model: &Model) {
    check_saved(name, model.0, &saved(model, json!({})));
}

/// Positions of the tokens' own, embeddings in place of ids, and a cache.
fn check_decoder(name: &str, model: &dyn CausalLm, expected: &Tensors) {
    let (ids, mask) = (&expected["left.input_ids"], &expected["left.attention_mask"]);
    let compare = |what: &str, actual: &Tensor, wanted: &Tensor| {
        assert_close(&format!("{name} {what}"), &at_tokens(actual, mask), &at_tokens(wanted, mask), CLOSE);
    };
    let masked = |tokens| DecoderInputs { attention_mask: Some(mask), ..DecoderInputs::new(tokens) };
    // A text that is padded on the right needs no mask.
    let logits = model.logits(&model.forward(DecoderInputs::new(Tokens::Ids(&expected["right.input_ids"]))));
    let at = |xs: &Tensor| at_tokens(xs, &expected["right.attention_mask"]);
    assert_close(&format!("{name} unmasked"), &at(&logits), &at(&expected["right.logits"]), CLOSE);
    if let Some(positions) = expected.get("left.position_ids") {
        let inputs = DecoderInputs { position_ids: Some(positions), ..masked(Tokens::Ids(ids)) };
        compare("placed", &model.logits(&model.forward(inputs)), &expected["placed.logits"]);
    }
    let embeddings = model.embed(ids) + 0.1;
    assert_close(name, &embeddings, &expected["embedded.embeddings"], CLOSE);
    let logits = model.logits(&model.forward(masked(Tokens::Embeddings(&embeddings))));
    compare("embedded", &logits, &expected["embedded.logits"]);

    let mut cache = KeyValueCache::new();
    let mut steps = Vec::new();
    for (start, count) in parts(ids.size()[1]) {
        let (ids, mask) = (ids.narrow(1, start, count), mask.narrow(1, 0, start + count));
        let inputs = DecoderInputs::new(Tokens::Ids(&ids));
        steps.push(model.forward(DecoderInputs { attention_mask: Some(&mask), cache: Some(&mut cache), ..inputs }));
    }
    assert_eq!(cache.length(), ids.size()[1]);
    compare("cached", &model.logits(&Tensor::cat(&steps, 1)), &expected["left.logits"]);

    // The first tokens' keys and values as a prefix that is given.
    let ids = &expected["plain.input_ids"];
    let mut cache = KeyValueCache::new();
    _ = model
        .forward(DecoderInputs { cache: Some(&mut cache), ..DecoderInputs::new(Tokens::Ids(&ids.narrow(1, 0, 4))) });
    let past = (0..model.shape().blocks as usize).map(|i| {
        let tensors = cache.block(i).tensors();
        let shape = model.shape();
        assert_eq!(tensors[0].size(), [3, shape.key_value_heads, 4, shape.head_width]);
        (tensors[0].copy(), tensors[1].copy())
    });
    let mut cache = KeyValueCache::of(past.collect());
    let rest = ids.narrow(1, 4, ids.size()[1] - 4);
    let hidden = model.forward(DecoderInputs { cache: Some(&mut cache), ..DecoderInputs::new(Tokens::Ids(&rest)) });
    let wanted = expected["plain.logits"].narrow(1, 4, rest.size()[1]);
    assert_close(&format!("{name} prefixed"), &model.logits(&hidden), &wanted, CLOSE);
}

/// Four tokens at once, then two, then one after another.
fn parts(length: i64) -> Vec<(i64, i64)> {
    [(0, 4), (4, 2)].into_iter().chain((6..length).map(|start| (start, 1))).collect()
}

fn check_encoder_decoder(name: &str, model: &dyn EncoderDecoder, expected: &Tensors) {
    let (ids, mask) = (&expected["left.input_ids"], &expected["left.attention_mask"]);
    let hidden = model.encode(Tokens::Ids(ids), Some(mask), false);
    let compare = |what: &str, actual: &Tensor, wanted: &Tensor| {
        assert_close(&format!("{name} {what}"), actual, wanted, CLOSE);
    };
    compare("encoded", &at_tokens(&hidden, mask), &at_tokens(&expected["left.encoded"], mask));
    let written = &expected["left.decoder_input_ids"];
    let mut cache = KeyValueCache::new();
    let mut steps = Vec::new();
    for (start, count) in parts(written.size()[1]) {
        let ids = written.narrow(1, start, count);
        let inputs = DecoderInputs { cache: Some(&mut cache), ..DecoderInputs::new(Tokens::Ids(&ids)) };
        steps.push(model.decode(inputs, Encoded { hidden: &hidden, attention_mask: Some(mask) }));
    }
    compare("cached", &model.logits(&Tensor::cat(&steps, 1)), &expected["left.logits"]);
    assert_eq!(model.decoder_start_token_id(), 0);
}

#[test]
fn gpt2_computes_what_transformers_computes() {
    check("gpt2", &gpt2(json!({})));
    let odd = json!({ "n_inner": 20, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": true,
        "scale_attn_weights": false, "tie_word_embeddings": false });
    check("gpt2 with all options", &gpt2(odd));
}

#[test]
fn opt_computes_what_transformers_computes() {
    check("opt", &opt(json!({})));
    let like_350m = json!({ "do_layer_norm_before": false, "word_embed_proj_dim": 16 });
    check("opt normed after", &opt(like_350m));
    check("opt without biases", &opt(json!({ "enable_bias": false, "activation_function": "gelu" })));
}

#[test]
fn bloom_computes_what_transformers_computes() {
    check("bloom", &bloom(json!({ "n_head": 4 })));
    check("bloom of 6 heads", &bloom(json!({ "apply_residual_connection_post_layernorm": true })));
}

#[test]
fn llama_mistral_and_qwen2_compute_what_transformers_computes() {
    check("llama", &llama("LlamaForCausalLM", json!({})));
    let biased = json!({ "attention_bias": true, "mlp_bias": true, "head_dim": 6, "tie_word_embeddings": true });
    check("llama with biases", &llama("LlamaForCausalLM", biased));
    check("mistral", &llama("MistralForCausalLM", json!({ "sliding_window": 3 })));
    check("mistral without a window", &llama("MistralForCausalLM", json!({ "sliding_window": null })));
    let windows = json!({ "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1 });
    check("qwen2", &llama("Qwen2ForCausalLM", windows));
}

#[test]
fn rotary_positions_are_stretched_as_transformers_stretches_them() {
    check("plain", &rope(json!({ "rope_type": "default", "rope_theta": 500.0 })));
    check("linear", &rope(json!({ "rope_type": "linear", "factor": 2.5 })));
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 100.0 });
    check("llama3", &rope(llama3));
    let yarn =
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 100.0 });
    check("yarn", &rope(yarn.clone()));
    let mscale = json!({ "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 9.0, "beta_slow": 2.0, "truncate": false });
    check("yarn with all options", &rope(with(yarn, mscale)));
}

/// The longest text that a model of growing frequencies has seen sets them in transformers, so that there is but one forward to
/// compare with.
#[test]
fn frequencies_fall_as_a_text_grows_beyond_the_trained_length() {
    let model = rope(json!({ "rope_type": "dynamic", "factor": 2.0 }));
    let folder = saved(&model, json!({}));
    let _no_grad = tch::no_grad_guard();
    for length in [7, 11, 30] {
        let expected = computed(model.0, &folder, json!({ "length": length }));
        let logits = Given::of(&expected, "plain.").logits(&load(&folder, FLOAT32).model, false);
        assert_close(&format!("dynamic, {length} tokens"), &logits, &expected["plain.logits"], CLOSE);
    }
}

/// transformers before 5 kept the rotary positions' fields in other places.
#[test]
fn older_configurations_of_rotary_positions_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = rope(json!({ "rope_type": "linear", "factor": 2.5, "rope_theta": 500.0 }));
    let folder = saved(&model, json!({}));
    std::fs::copy(folder.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut config = read_json(folder.join("config.json"));
    config.as_object_mut().unwrap().remove("rope_parameters").unwrap();
    let old = json!({ "rope_theta": 500.0, "rope_scaling": { "type": "linear", "factor": 2.5 } });
    std::fs::write(dir.path().join("config.json"), with(config, old).to_string()).unwrap();
    let _no_grad = tch::no_grad_guard();
    let expected = computed(model.0, &folder, json!({}));
    let logits = Given::of(&expected, "plain.").logits(&load(dir.path(), FLOAT32).model, false);
    assert_close("old configuration", &logits, &expected["plain.logits"], CLOSE);
}

#[test]
fn t5_and_mt5_compute_what_transformers_computes() {
    check("t5", &t5("T5ForConditionalGeneration", json!({})));
    let like_v1_1 =
        t5("T5ForConditionalGeneration", json!({ "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false }));
    check_saved("t5 v1.1", like_v1_1.0, &saved(&like_v1_1, json!({ "own_head": true })));
    let silu =
        t5("T5ForConditionalGeneration", json!({ "feed_forward_proj": "gated-silu", "num_decoder_layers": null }));
    check("t5 with silu", &silu);
    let mt5 = t5("MT5ForConditionalGeneration", json!({}));
    check_saved("mt5", mt5.0, &saved(&mt5, json!({ "own_head": true })));
}

#[test]
fn bert_and_roberta_compute_what_transformers_computes() {
    check("bert", &bert("BertForSequenceClassification", json!({})));
    check(
        "roberta",
        &bert("RobertaForSequenceClassification", json!({ "type_vocab_size": 1, "hidden_act": "gelu_new" })),
    );
}

/// A decoder's class and configuration as a classifier's. Without a token for padding transformers takes one text alone.
fn classifier((_, config): Model, class: &'static str) -> Model {
    (class, with(config, json!({ "num_labels": 3, "pad_token_id": 0 })))
}

#[test]
fn decoders_classify_by_the_last_token_that_is_no_padding_as_transformers_do() {
    check("gpt2", &classifier(gpt2(json!({})), "GPT2ForSequenceClassification"));
    check("opt", &classifier(opt(json!({})), "OPTForSequenceClassification"));
    let like_350m = opt(json!({ "do_layer_norm_before": false, "word_embed_proj_dim": 16 }));
    check("opt normed after", &classifier(like_350m, "OPTForSequenceClassification"));
    check("bloom", &classifier(bloom(json!({})), "BloomForSequenceClassification"));
    for class in ["Llama", "Mistral", "Qwen2"] {
        let class: &'static str = format!("{class}ForSequenceClassification").leak();
        check(class, &classifier(llama(class, json!({})), class));
    }
}

#[test]
fn shards_and_the_spellings_of_older_repositories_are_read() {
    for (name, model, options) in [
        ("gpt2 of the hub", gpt2(json!({})), json!({ "keys": "hub" })),
        ("bloom of the hub", bloom(json!({})), json!({ "keys": "base" })),
        ("opt of the hub", opt(json!({})), json!({ "keys": "base" })),
        ("llama without prefix", llama("LlamaModel", json!({})), json!({})),
        ("bert of the hub", bert("BertForSequenceClassification", json!({})), json!({ "keys": "hub" })),
        ("opt in shards", opt(json!({})), json!({ "max_shard_size": "10KB" })),
        ("t5 in shards", t5("T5ForConditionalGeneration", json!({})), json!({ "max_shard_size": "10KB" })),
    ] {
        let folder = saved(&model, options.clone());
        assert_eq!(options.get("max_shard_size").is_some(), folder.join("model.safetensors.index.json").exists());
        match model.0 {
            // Without a head of its own, and its embeddings not said to be one.
            "LlamaModel" => {
                let error =
                    LanguageModelFiles::open(&folder).unwrap().load(FLOAT32, HeadOptions::default()).err().unwrap();
                assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
            }
            class => check_saved(name, class, &folder),
        }
    }
}

/// In half precision the two round at other places; ours must not be further from float32 than theirs.
#[test]
fn weights_in_half_precision_are_read_and_computed_with() {
    for (name, model) in [
        ("gpt2", gpt2(json!({}))),
        ("opt", opt(json!({}))),
        ("bloom", bloom(json!({}))),
        ("llama", llama("LlamaForCausalLM", json!({}))),
        ("t5", t5("T5ForConditionalGeneration", json!({}))),
        ("bert", bert("BertForSequenceClassification", json!({}))),
    ] {
        for (dtype, kind) in [("bfloat16", Kind::BFloat16), ("float16", Kind::Half)] {
            let folder = saved(&model, json!({ "dtype": dtype }));
            check_saved(&format!("{name} stored in {dtype}"), model.0, &folder);
            let _no_grad = tch::no_grad_guard();
            let (exact, theirs) =
                (computed(model.0, &folder, json!({})), computed(model.0, &folder, json!({ "dtype": dtype })));
            let loaded = load(&folder, Placement { kind, ..FLOAT32 });
            for case in ["plain", "left"] {
                let given = Given::of(&exact, &format!("{case}."));
                let at = |xs: &Tensor| given.seen(&loaded.model, xs);
                let (logits, key) = (given.logits(&loaded.model, false), format!("{case}.logits"));
                assert_eq!(logits.kind(), kind);
                let error = |xs: &Tensor| relative_norm_error(&at(xs), &at(&exact[&key]));
                let (ours, theirs) = (error(&logits), error(&theirs[&key]));
                println!("{name} {case} in {dtype}: {ours:.1e}, theirs {theirs:.1e}");
                assert!(ours < 1.2 * theirs, "{name} {case} in {dtype}: {ours:e} from float32, theirs {theirs:e}");
            }
        }
    }
}

#[test]
fn a_classifier_gets_a_new_head_of_as_many_labels_as_are_asked_for() {
    let decoder = ("GPT2LMHeadModel", gpt2(json!({})).1);
    let classes = ["BertForMaskedLM", "RobertaForMaskedLM", "BertForSequenceClassification"];
    for (class, config) in classes.map(|class| bert(class, json!({}))).into_iter().chain([decoder]) {
        let files = LanguageModelFiles::open(&saved(&(class, config), json!({}))).unwrap();
        let head = |labels, seed| files.load(FLOAT32, HeadOptions { labels, seed });
        if class.ends_with("MaskedLM") {
            let error = head(None, 0).err().unwrap().to_string();
            assert!(error.contains("has no weight `"), "{error}");
        }
        let logits = |seed| {
            let loaded = head(Some(5), seed).unwrap();
            let ids = Tensor::from_slice2(&[[7i64, 8, 9], [4, 5, 6]]);
            Given { ids: &ids, mask: None, decoder_ids: None, types: None }.logits(&loaded.model, false)
        };
        assert_eq!((logits(1).size(), logits(1)), (vec![2, 5], logits(1)));
        assert_ne!(logits(1), logits(2));
    }
}

#[test]
fn what_is_no_language_model_of_ours_is_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let folder = saved(&gpt2(json!({})), json!({}));
    let refused = |config: &Value, pickled: bool| {
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        _ = std::fs::remove_file(dir.path().join("model.safetensors"));
        match pickled {
            true => std::fs::write(dir.path().join("pytorch_model.bin"), "PK").unwrap(),
            false => _ = std::fs::copy(folder.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap(),
        }
        let error = LanguageModelFiles::open(dir.path()).and_then(|files| files.load(FLOAT32, HeadOptions::default()));
        error.err().unwrap().to_string()
    };
    let config = read_json(folder.join("config.json"));
    for (change, words) in [
        (json!({ "model_type": "mamba", "architectures": ["MambaForCausalLM"] }), vec!["mamba", "gpt2, opt, bloom"]),
        (json!({ "architectures": ["GPT2ForTokenClassification"] }), vec!["GPT2ForTokenClassification"]),
        (json!({ "n_layer": 4 }), vec!["`transformer.h.3.ln_1.weight`"]),
        (json!({ "n_embd": 25 }), vec!["n_embd", "3 heads"]),
        (json!({ "n_inner": 8 }), vec!["transformer.h.0.mlp.c_fc.weight", "[24, 8]"]),
        (json!({ "add_cross_attention": true }), vec!["add_cross_attention"]),
        (json!({ "activation_function": "mish" }), vec!["activation_function", "mish"]),
    ] {
        let message = refused(&with(config.clone(), change), false);
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let message = refused(&config, true);
    assert!(message.contains("pytorch_model.bin") && message.contains("pickle"), "{message}");
}
