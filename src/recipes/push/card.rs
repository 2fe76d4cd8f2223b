//! The model card of an adapter: what a hub and a person should know of it.

use serde_json::json;
use std::fmt::Write;

/// What an adapter is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Stable Diffusion.
    StableDiffusion {
        /// Of the generation XL.
        xl: bool,
    },
    /// A language model; PEFT's names of task and method.
    Language { task: String, method: String },
}

/// A picture in the repository.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) path: String,
    pub(super) prompt: String,
}

/// What a card says.
pub(super) struct Card<'a> {
    pub(super) repo: &'a str,
    pub(super) kind: &'a Kind,
    pub(super) base_model: Option<&'a str>,
    pub(super) trigger: Option<&'a str>,
    pub(super) license: Option<&'a str>,
    pub(super) samples: &'a [Sample],
}

impl Card<'_> {
    /// README.md.
    pub(super) fn text(&self) -> String {
        let mut text = self.front_matter();
        let name = self.repo.split('/').next_back().unwrap_or_default();
        let base = self.base_model.unwrap_or("its base model");
        let linked = self.base_model.map_or("a model of the author's".to_owned(), |base| format!("`{base}`"));
        match self.kind {
            Kind::StableDiffusion { xl } => {
                let class = if *xl { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" };
                write_line(
                    &mut text,
                    &format!("\n# {name}\n\nA DreamBooth LoRA for {linked}, trained with lorabooth."),
                );
                if let Some(trigger) = self.trigger {
                    write_line(&mut text, &format!("It was trained on the prompt `{}`.", in_code(trigger)));
                }
                for sample in self.samples {
                    write_line(&mut text, &format!("\n![{}]({})", in_brackets(&sample.prompt), sample.path));
                }
                let prompt = json!(self.trigger.unwrap_or("a prompt")).to_string();
                write_line(&mut text, &format!("\n## Use\n\n```python\nfrom diffusers import {class}\n"));
                write_line(&mut text, &format!("pipeline = {class}.from_pretrained({})", json!(base)));
                write_line(&mut text, &format!("pipeline.load_lora_weights({})", json!(self.repo)));
                write_line(&mut text, &format!("pipeline({prompt}).images[0].save(\"picture.png\")\n```"));
            }
            Kind::Language { task, method } => {
                let (class, what) = match task.as_str() {
                    "SEQ_2_SEQ_LM" => ("AutoModelForSeq2SeqLM", "sequence to sequence"),
                    "SEQ_CLS" => ("AutoModelForSequenceClassification", "classification"),
                    _ => ("AutoModelForCausalLM", "text generation"),
                };
                let method = method.to_lowercase().replace('_', " ").replace("lora", "LoRA");
                write_line(
                    &mut text,
                    &format!("\n# {name}\n\nAn adapter ({method}; {what}) for {linked}, trained with lorabooth."),
                );
                write_line(&mut text, "\n## Use\n\n```python\nfrom peft import PeftModel");
                write_line(&mut text, &format!("from transformers import {class}\n"));
                write_line(&mut text, &format!("model = {class}.from_pretrained({})", json!(base)));
                write_line(&mut text, &format!("model = PeftModel.from_pretrained(model, {})\n```", json!(self.repo)));
            }
        }
        text
    }

    /// Fields that the hub reads. JSON's texts are YAML's too.
    fn front_matter(&self) -> String {
        let mut text = "---\n".to_owned();
        let mut field = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                write_line(&mut text, &format!("{name}: {}", json!(value)));
            }
        };
        field("base_model", self.base_model);
        field("license", self.license);
        let generation = match self.kind {
            Kind::StableDiffusion { xl: true } => "stable-diffusion-xl",
            _ => "stable-diffusion",
        };
        let of_pictures =
            [generation, "text-to-image", "diffusers", "lora", "template:sd-lora", "dreambooth", "lorabooth"];
        let (library, pipeline, tags): (_, _, &[&str]) = match self.kind {
            Kind::StableDiffusion { .. } => ("diffusers", "text-to-image", &of_pictures),
            Kind::Language { task, .. } => {
                let pipeline = if task == "SEQ_CLS" { "text-classification" } else { "text-generation" };
                ("peft", pipeline, &["peft", "lorabooth"])
            }
        };
        field("library_name", Some(library));
        field("pipeline_tag", Some(pipeline));
        if matches!(self.kind, Kind::StableDiffusion { .. }) {
            field("instance_prompt", self.trigger);
        }
        write_line(&mut text, &format!("tags: {}", json!(tags)));
        if !self.samples.is_empty() {
            write_line(&mut text, "widget:");
            for sample in self.samples {
                write_line(
                    &mut text,
                    &format!("- text: {}\n  output:\n    url: {}", json!(sample.prompt), json!(sample.path)),
                );
            }
        }
        text.push_str("---\n");
        text
    }
}

fn write_line(text: &mut String, line: &str) {
    // A String takes everything.
    _ = writeln!(text, "{line}");
}

/// A text between backticks, which it cannot end.
fn in_code(text: &str) -> String {
    one_line(text).replace('`', "'")
}

/// A text between brackets, which it cannot end.
fn in_brackets(text: &str) -> String {
    one_line(text).replace(['[', ']', '\\', '<', '>', '`'], " ")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_prompt_holds_stays_in_its_field() {
        let prompt = "a \"dog\"`\n---\nlicense: mit](x)";
        let samples = [Sample { path: "samples/step-000001-0.png".into(), prompt: prompt.into() }];
        let card = Card {
            repo: "me/dog",
            kind: &Kind::StableDiffusion { xl: false },
            base_model: Some("o/m"),
            trigger: Some(prompt),
            license: None,
            samples: &samples,
        };
        let text = card.text();
        let front = text.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
        assert!(front.contains(r#"instance_prompt: "a \"dog\"`\n---\nlicense: mit](x)""#), "{front}");
        assert!(!text.lines().any(|line| line.starts_with("license")), "{text}");
        assert!(text.contains("`a \"dog\"' --- license: mit](x)`"), "{text}");
        assert!(text.contains("![a \"dog\"  --- license: mit (x)](samples/step-000001-0.png)"), "{text}");
        assert!(text.contains("load_lora_weights(\"me/dog\")"));
    }

    #[test]
    fn a_language_models_card_names_its_class() {
        let kind = Kind::Language { task: "SEQ_CLS".into(), method: "LORA".into() };
        let card =
            Card { repo: "me/c", kind: &kind, base_model: None, trigger: None, license: Some("mit"), samples: &[] };
        let text = card.text();
        for part in [
            "library_name: \"peft\"",
            "license: \"mit\"",
            "AutoModelForSequenceClassification",
            "(LoRA; classification)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("base_model:") && !text.contains("instance_prompt"), "{text}");
    }
}
