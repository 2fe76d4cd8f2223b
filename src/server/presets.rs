//! Settings to start from, by what the photos show.

use crate::recipes::demo;
use serde_json::{json, Value};

/// Of DreamBooth.
pub fn dreambooth() -> Value {
    let class_images = |steps: u64| {
        json!({
            "max_train_steps": steps, "train_text_encoder": true, "gradient_checkpointing": true, "with_prior_preservation": true,
            "num_class_images": 200, "lora_r": 16, "lora_alpha": 20, "lora_text_encoder_r": 16, "lora_text_encoder_alpha": 17,
            "lora_bias": "all", "lora_text_encoder_bias": "all",
        })
    };
    let plain = |steps: u64| {
        json!({
            "max_train_steps": steps, "train_text_encoder": true, "gradient_checkpointing": true, "lora_r": 4, "lora_alpha": 4,
            "lora_text_encoder_r": 4, "lora_text_encoder_alpha": 4,
        })
    };
    // What the photos show is for whose photos they are to say.
    let mut demo = demo::usual_options();
    for prompt in ["instance_prompt", "class_prompt"] {
        demo.as_object_mut().and_then(|options| options.remove(prompt));
    }
    json!([
        {
            "name": "demo", "title": "Demo model", "model": super::models::DEMO, "values": demo,
            "sentence": "For the small model inside lorabooth: 400 steps with class images, a few minutes on a laptop.",
        },
        {
            "name": "object", "title": "Object", "model": null, "values": plain(800),
            "sentence": "5 to 10 photos of a thing or an animal, from different sides; 500 to 800 steps.",
        },
        {
            "name": "style", "title": "Style", "model": null, "values": plain(700),
            "sentence": "5 to 10 pictures in one style, of different things; 500 to 800 steps.",
        },
        {
            "name": "person", "title": "Person", "model": null, "values": class_images(1200),
            "sentence": "15 to 50 photos of a face; 800 to 1200 steps, with 200 images of other people so that only this one is learned. \
                Needs a class prompt, such as \"a photo of a person\".",
        },
        {
            "name": "scene", "title": "Scene", "model": null, "values": plain(1000),
            "sentence": "15 to 50 photos of a place, by day and night; 800 to 1200 steps.",
        },
    ])
}
