//! The whole DreamBooth job on the model and the photos inside the binary: what it knew before, the training, what it knows
//! after, and measures of the difference.

mod assets;
mod contact_sheet;
mod gallery;
pub mod report;

use super::dreambooth;
use super::training::control::Control;
use super::training::observer::Observer;
use crate::adapters::read_any;
use crate::data::photo_transform::{crop_values, to_tensor};
use crate::data::photos::{Photo, PhotoFolder};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::libtorch::memory;
use crate::models::stable_diffusion::PipelineFiles;
use crate::options::demo::DemoConfig;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::reading::Configuration;
use crate::options::shell_word;
use crate::sample::drawn_image::NamedStrength;
use crate::sample::likeness::{appearances, Appearance, Distances, Likeness};
use crate::sample::pipeline::{Pipeline, PipelineAdapter, Residence};
use crate::sentence::flag;
use crate::train::folder_lock::{FolderLock, LOCK_FILE};
use crate::train::precision::Precision;
use crate::weights::Placement;
use crate::whole_file::{write_json, write_png, write_whole};
pub use assets::{write_model, write_subject};
use gallery::{images, Gallery, CLASS_PROMPT, SUBJECT_PROMPT};
use report::Report;
use serde_json::{json, Value};
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Pixels along a side of what the model draws.
const SIDE: u32 = 64;
/// Strength of the guidance at which this model follows prompts closely without loud colours.
pub const GUIDANCE: f64 = 3.0;
/// So small a UNet draws with its convolutions more than with its attention: without them it learns the subject's colours, with
/// them its shape.
const LORA_TARGETS: &str = "to_q,to_k,to_v,to_out.0,ff.net.0.proj,ff.net.2,proj_in,proj_out,conv1,conv2";
/// Names a folder as a demo's, which a later demo may write over.
const MARK: &str = ".lorabooth-demo";

/// What a demo leaves.
pub struct Finished {
    /// The sheet.
    pub contact_sheet: PathBuf,
    /// The adapter.
    pub adapter: PathBuf,
    /// The model that it is for.
    pub model: PathBuf,
    /// The measures.
    pub report: Report,
}

/// Runs the demo on `device`.
pub fn run(
    config: &DemoConfig,
    device: Device,
    seed: i64,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Finished> {
    let began = Instant::now();
    let folder = Folder::create(&config.output_dir, config.overwrite)?;
    let training = training_flags(config, &folder);
    let mut options = DreamBoothConfig::from_flags(&training)?;
    options.training.command = Some(command(&training));
    assets::write_model(&folder.model())?;
    assets::write_subject(&folder.photos())?;
    options.check()?;
    let files = PipelineFiles::open(&folder.model(), None)?;
    let placement = Placement { device, kind: Precision::auto(device).compute_kind() };
    let gallery = Gallery::of_all_prompts(seed);

    // 1. What the model knows.
    let model = folder.model().display().to_string();
    let mut pipeline = Pipeline::open(files.clone(), &model, placement, Residence::Together)?;
    let before = gallery.draw(&mut pipeline, "images before", interrupt, observer)?;
    let references = References::new(&folder, &files, &mut pipeline, seed, interrupt, observer)?;
    drop(pipeline);
    memory::release_cached(device)?;

    // 2. The training: the command that a user would type.
    let training_began = Instant::now();
    dreambooth::training::train(&options, device, seed, &Control::of(interrupt.clone()), observer).map_err(stopped)?;
    let training_seconds = training_began.elapsed().as_secs_f64();

    // 3. What it knows now.
    let mut pipeline = Pipeline::open(files.clone(), &model, placement, Residence::Together)?;
    let used = NamedStrength { name: "adapter".to_owned(), strength: 1.0 };
    pipeline.set_adapters(vec![PipelineAdapter { used, set: read_any(&folder.adapter(), None)? }])?;
    let after = gallery.draw(&mut pipeline, "images after", interrupt, observer)?;
    drop(pipeline);

    // 4. The difference.
    let (appearances_before, appearances_after) = (appearances(&images(&before)), appearances(&images(&after)));
    let measured = |appearances: &[Appearance]| {
        appearances.iter().map(|appearance| references.measure(appearance)).collect::<Vec<_>>()
    };
    let (measured_before, measured_after) = (measured(&appearances_before), measured(&appearances_after));
    let report = Report {
        command: command(&training),
        seed,
        seconds: began.elapsed().as_secs_f64(),
        training_seconds,
        peak_memory_bytes: memory::host_peak(),
        subject_before: Likeness::of(gallery.subject(&measured_before)),
        subject_after: Likeness::of(gallery.subject(&measured_after)),
        subject_photos: references.photos(),
        class_before: Likeness::of(gallery.class(&measured_before)),
        class_after: Likeness::of(gallery.class(&measured_after)),
        background_right_before: gallery.background_right(&appearances_before),
        background_right_after: gallery.background_right(&appearances_after),
        images: [
            gallery.reports("before", &appearances_before, &measured_before),
            gallery.reports("after", &appearances_after, &measured_after),
        ]
        .concat(),
    };
    gallery.write(&folder.images(), "before", &before)?;
    gallery.write(&folder.images(), "after", &after)?;
    let contact_sheet = folder.path.join("contact-sheet.png");
    report::write_sheet(&contact_sheet, &folder, &gallery, (&images(&before), &images(&after)), &report)?;
    write_json(&folder.path.join("report.json"), &report)?;
    Ok(Finished { contact_sheet, adapter: folder.adapter(), model: folder.model(), report })
}

/// The training as a command of its own.
fn command(flags: &[String]) -> String {
    let words: Vec<String> = flags.iter().map(|flag| shell_word(flag)).collect();
    format!("lorabooth train dreambooth {}", words.join(" "))
}

/// The demo has nothing to resume: it is short.
fn stopped(error: Error) -> Error {
    match error {
        Error::Interrupted(_) => Error::Interrupted("the demo was stopped; run it again with --overwrite".into()),
        other => other,
    }
}

/// The folders of a demo.
struct Folder {
    path: PathBuf,
    _lock: FolderLock,
}

impl Folder {
    /// A new folder, or to `overwrite` that of an earlier demo, whose images and adapter go.
    fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let failed = |error| Error::io("create", path, error);
        std::fs::create_dir_all(path).map_err(failed)?;
        FolderLock::check_free(path)?;
        let is_other = |entry: std::io::Result<DirEntry>| entry.is_ok_and(|entry| entry.file_name() != LOCK_FILE);
        let empty = !std::fs::read_dir(path).map_err(failed)?.any(is_other);
        if !empty && !path.join(MARK).exists() {
            return Err(Error::invalid(format!(
                "--output-dir: {} holds other files; give the demo a folder of its own",
                path.display()
            )));
        }
        if !empty && !overwrite {
            return Err(Error::is_there(path, "--output-dir"));
        }
        let folder = Self { path: path.to_owned(), _lock: FolderLock::take(path)? };
        write_whole(&path.join(MARK), b"")?;
        for old in [folder.class_images(), folder.adapter(), folder.images()].iter().filter(|old| old.exists()) {
            std::fs::remove_dir_all(old).map_err(|error| Error::io("remove", old, error))?;
        }
        Ok(folder)
    }

    fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    fn photos(&self) -> PathBuf {
        self.path.join("photos")
    }

    fn class_images(&self) -> PathBuf {
        self.path.join("class-images")
    }

    /// Single images, before and after, of the class, and the photos through the autoencoder.
    fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }
}

/// What the demo's model is trained with, whatever the subject, as options of `train dreambooth` by their names.
const USUAL: [(&str, &str); 9] = [
    ("resolution", "64"),
    ("train_batch_size", "4"),
    ("learning_rate", "1.5e-3"),
    ("lr_scheduler", "cosine"),
    ("lora_targets", LORA_TARGETS),
    ("lora_r", "16"),
    ("lora_alpha", "32"),
    ("guidance_scale", "3"),
    ("sample_batch_size", "16"),
];
/// Class images of the demo.
const CLASS_IMAGES: u64 = 32;

/// Settings for the demo's model and its subject, by the names of `train dreambooth`'s options: where a page starts from.
pub fn usual_options() -> Value {
    let mut options = json!({
        "instance_prompt": SUBJECT_PROMPT, "class_prompt": CLASS_PROMPT, "with_prior_preservation": true,
        "num_class_images": CLASS_IMAGES, "train_text_encoder": true, "max_train_steps": 400,
    });
    for (name, value) in USUAL {
        // As JSON where it is a number.
        options[name] = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    }
    options
}

/// What the demo trains with, as flags of `train dreambooth`.
fn training_flags(config: &DemoConfig, folder: &Folder) -> Vec<String> {
    let text = |path: PathBuf| path.display().to_string();
    let steps = config.max_train_steps.to_string();
    let (model, photos, class_images, adapter) =
        (text(folder.model()), text(folder.photos()), text(folder.class_images()), text(folder.adapter()));
    let class_count = CLASS_IMAGES.to_string();
    let mut flags = vec![
        ["--model", &model],
        ["--instance-data-dir", &photos],
        ["--instance-prompt", SUBJECT_PROMPT],
        ["--output-dir", &adapter],
        ["--max-train-steps", &steps],
        ["--validation-prompt", SUBJECT_PROMPT],
    ];
    if !config.no_prior_preservation {
        flags.extend([
            ["--class-data-dir", &class_images],
            ["--class-prompt", CLASS_PROMPT],
            ["--num-class-images", &class_count],
        ]);
    }
    let mut flags: Vec<String> = flags.concat().into_iter().map(str::to_owned).collect();
    for (name, value) in USUAL {
        flags.extend([flag(name), value.to_owned()]);
    }
    flags.extend(["--train-text-encoder", "--on-oom=step-down"].map(str::to_owned));
    flags.extend((!config.no_prior_preservation).then(|| "--with-prior-preservation".to_owned()));
    flags
}

/// Pictures of the subject and of its class that others are measured against. All of them have been through the autoencoder,
/// so that its blur is on both sides.
struct References {
    subject: Vec<Appearance>,
    class: Vec<Appearance>,
}

impl References {
    /// The photos, and images of the class that the untrained model draws.
    fn new(
        folder: &Folder,
        files: &PipelineFiles,
        pipeline: &mut Pipeline,
        seed: i64,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let of_the_class = Gallery::of_the_class(seed);
        let class = of_the_class.draw(pipeline, "its birds", interrupt, observer)?;
        of_the_class.write(&folder.images(), "class", &class)?;
        let encoder = files.load_vae_encoder(Placement { device: Device::Cpu, kind: Kind::Float })?.model;
        let photos = pixels(&folder.photos())?;
        let latents = tch::no_grad(|| encoder.encode(&photos).mean) * files.vae_config()?.scaling_factor;
        let subject = pipeline.decode(&latents)?;
        for (i, photo) in subject.iter().enumerate() {
            write_png(&folder.images().join(format!("photo-{i:02}.png")), photo)?;
        }
        Ok(Self { subject: appearances(&subject), class: appearances(&images(&class)) })
    }

    fn measure(&self, appearance: &Appearance) -> Distances {
        Distances::of(appearance, self.subject.iter(), self.class.iter())
    }

    /// Each photo against the others.
    fn photos(&self) -> Likeness {
        let against_others = |photo: &Appearance| {
            Distances::of(photo, self.subject.iter().filter(|other| !std::ptr::eq(*other, photo)), self.class.iter())
        };
        Likeness::of(&self.subject.iter().map(against_others).collect::<Vec<_>>())
    }
}

/// The photos of `folder` as the networks see them: `[n, 3, SIDE, SIDE]`.
fn pixels(folder: &Path) -> Result<Tensor> {
    let photos = PhotoFolder::open(folder, SIDE)?.photos;
    let values =
        |photo: &Photo| to_tensor(&crop_values(photo.resized()?.as_ref(), photo.crop_range().center(), SIDE)?, SIDE);
    Ok(Tensor::cat(&photos.iter().map(values).collect::<Result<Vec<_>>>()?, 0))
}
