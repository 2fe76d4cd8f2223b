//! A Stable Diffusion pipeline on disk: where its parts are, and each of them loaded.

use super::checkpoint_facts::{CheckpointFacts, BASE_LATENT_SIZE};
use super::vae_files::VaeFiles;
use super::{config_file, inferred_config, written_config};
use super::{
    AutoencoderKl, ClipTextConfig, ClipTextModel, TextEncoders, UNet2DConditionModel, UNetConfig, VaeConfig,
    VaeDecoder, VaeEncoder,
};
use crate::adapters::{BaseModel, Part};
use crate::error::{Error, Result};
use crate::models::loaded::{load, Loaded};
use crate::weights::hub::{self, Hub, Listener};
use crate::weights::{
    other_pipelines, spelling, Keeping, OriginalCheckpoint, OriginalGeneration, Placement, Storage, WeightSet,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::Kind;

/// The folders of the networks.
const NETWORKS: [&str; 4] = ["unet", "vae", "text_encoder", "text_encoder_2"];

/// How a model is looked for; the default is a plain folder's.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Weights of this variant ("fp16"), where a part has them.
    pub variant: Option<String>,
    /// The hub's branch, tag or commit.
    pub revision: Option<String>,
    /// A folder in the diffusers layout (its weights are not read) that describes a single-file checkpoint: configurations,
    /// scheduler and tokenizer. Parts that it lacks are described by the shapes in the file.
    pub config_folder: Option<PathBuf>,
    /// A folder or a hub id with another tokenizer than the model's own; a single file has none.
    pub tokenizer: Option<String>,
    /// A folder, a file or a hub id with the VAE to take instead of the model's own.
    pub vae: Option<String>,
    /// What the model predicts ("epsilon", "v_prediction"), where its own scheduler configuration is wrong or absent.
    pub prediction_type: Option<String>,
    /// Of a hub id fetch the configurations and the tokenizer, no weights.
    pub configs_only: bool,
}

/// Where the networks are.
#[derive(Debug, Clone)]
enum Source {
    /// The diffusers layout: a folder a part.
    Folder { variant: Option<String> },
    /// One file in the original layout, and where configurations are that shapes don't tell.
    Single { checkpoint: Arc<OriginalCheckpoint>, facts: Arc<CheckpointFacts>, configs: Option<PathBuf> },
}

/// A pipeline on disk. Nothing but configurations and headers is read before a part is loaded.
#[derive(Debug, Clone)]
pub struct PipelineFiles {
    root: PathBuf,
    source: Source,
    tokenizer: Option<PathBuf>,
    is_xl: bool,
    vae: Option<VaeFiles>,
    prediction_type: Option<String>,
    keeping: Keeping,
}

impl PipelineFiles {
    /// The pipeline in the folder `root`; weights of `variant` ("fp16") where given and a part has them.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::file(root, "no such model folder"));
        }
        if let Some(other) = other_pipelines::of_folder(root) {
            return Err(Error::file(root, format!("is {other}; {}", other_pipelines::SUPPORTED)));
        }
        let xl = is_xl_folder(root);
        let kind = if xl { "Stable Diffusion XL" } else { "Stable Diffusion" };
        for part in ["unet", "vae", "text_encoder", "scheduler"].iter().chain(xl.then_some(&"text_encoder_2")) {
            if !root.join(part).is_dir() {
                let message = format!("has no folder `{part}`; a {kind} model in the diffusers layout has");
                return Err(Error::file(root, message));
            }
        }
        for part in NETWORKS.iter().map(|part| root.join(part).join("config.json")).filter(|path| path.is_file()) {
            config_file::check_quantisation(&config_file::read_json(&part)?, &part)?;
        }
        if let Some(variant) = variant {
            if !NETWORKS.iter().any(|part| WeightSet::has_variant(&root.join(part), variant)) {
                return Err(Error::file(
                    root,
                    format!("has no weights of the variant `{variant}`; leave `⟨variant⟩` out"),
                ));
            }
        }
        Ok(Self::new(root, xl, Source::Folder { variant: variant.map(str::to_owned) }))
    }

    /// The pipeline in the single-file checkpoint `path`, with the original Stable Diffusion key names, described by the
    /// configurations in `config_folder` where it has them, else by the shapes in the file.
    pub fn open_single(path: &Path, config_folder: Option<&Path>) -> Result<Self> {
        Self::single(path, config_folder, true)
    }

    /// The same; one that gets another VAE `needs_vae` of its own no longer.
    fn single(path: &Path, config_folder: Option<&Path>, needs_vae: bool) -> Result<Self> {
        let checkpoint = Arc::new(OriginalCheckpoint::open(path, needs_vae)?);
        if let Some(folder) = config_folder {
            let found = NETWORKS.iter().any(|part| folder.join(part).join("config.json").is_file());
            if !found {
                return Err(Error::file(folder, "holds no configuration (unet/config.json and so on)"));
            }
        }
        let facts = Arc::new(CheckpointFacts::of(&checkpoint)?);
        let is_xl = checkpoint.generation() == OriginalGeneration::Xl;
        Ok(Self::new(path, is_xl, Source::Single { checkpoint, facts, configs: config_folder.map(Path::to_owned) }))
    }

    /// The pipeline that `model` names: a folder in the diffusers layout, a single `.safetensors` checkpoint or a hub id,
    /// which is fetched into the cache first; `listener` then hears of each file.
    pub fn resolve(model: &str, options: &ModelOptions, listener: &mut dyn Listener) -> Result<Self> {
        let path = Path::new(model);
        let mut files = if path.is_dir() {
            Self::open(path, options.variant.as_deref())?
        } else if path.is_file() {
            Self::single(path, options.config_folder.as_deref(), options.vae.is_none())?
        } else if hub::is_id(model) && path.extension().is_none_or(|extension| extension != "safetensors") {
            let weights_of: &[&str] = if options.configs_only { &[] } else { &NETWORKS };
            let (revision, variant) = (options.revision.as_deref(), options.variant.as_deref());
            let request = hub::Request { id: model, revision, variant, weights_of };
            let folder = Hub::from_env()?.fetch_pipeline(&request, listener)?;
            Self::open(&folder, variant.filter(|_| !options.configs_only))?
        } else {
            return Err(Error::invalid(format!(
                "no model `{model}` was found: give a folder in the diffusers layout, a .safetensors file or a hub id (`owner/name`)"
            )));
        };
        let with_weights = !options.configs_only;
        let vae = options.vae.as_deref().map(|name| VaeFiles::resolve(name, with_weights, listener));
        files.vae = vae.transpose()?;
        files.tokenizer = options.tokenizer.as_deref().map(|name| tokenizer_at(name, listener)).transpose()?;
        files.prediction_type.clone_from(&options.prediction_type);
        Ok(files)
    }

    fn new(root: &Path, is_xl: bool, source: Source) -> Self {
        let root = root.to_owned();
        Self { root, is_xl, source, tokenizer: None, vae: None, prediction_type: None, keeping: Keeping::default() }
    }

    /// The folder of the pipeline, or the single file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is Stable Diffusion XL: two text encoders, and a UNet that is conditioned on sizes.
    pub fn is_xl(&self) -> bool {
        self.is_xl
    }

    /// Its text encoders, in the order in which the UNet takes their embeddings.
    pub fn text_encoders(&self) -> &'static [Part] {
        match self.is_xl() {
            true => &[Part::TextEncoder, Part::TextEncoder2],
            false => &[Part::TextEncoder],
        }
    }

    /// The networks that adapters can be for.
    pub fn parts(&self) -> Vec<Part> {
        [&[Part::UNet], self.text_encoders()].concat()
    }

    /// The folder of the tokenizer, of several that of the first text encoder.
    pub fn tokenizer_folder(&self) -> Result<PathBuf> {
        self.own_tokenizer("tokenizer").map_or_else(|| Err(self.no_tokenizer()), Ok)
    }

    /// The folder of the second text encoder's own tokenizer. Where there is none, it has the first one's vocabulary.
    pub fn second_tokenizer_folder(&self) -> Option<PathBuf> {
        self.own_tokenizer("tokenizer_2").filter(|folder| folder.is_dir())
    }

    fn own_tokenizer(&self, name: &str) -> Option<PathBuf> {
        match (&self.tokenizer, &self.source) {
            (Some(folder), _) if name == "tokenizer" => Some(folder.clone()),
            // Of another model as a whole the second is beside the first.
            (Some(folder), _) => Some(folder.with_file_name(name)).filter(|_| folder.ends_with("tokenizer")),
            (None, Source::Folder { .. }) => Some(self.root.join(name)),
            (None, Source::Single { configs, .. }) => {
                configs.iter().map(|folder| folder.join(name)).find(|folder| folder.is_dir())
            }
        }
    }

    fn no_tokenizer(&self) -> Error {
        let (id, sub) = match &self.source {
            Source::Single { checkpoint, .. } if checkpoint.generation() == OriginalGeneration::V2 => {
                ("stabilityai/stable-diffusion-2-1", ", whose tokenizer is used")
            }
            _ => ("openai/clip-vit-large-patch14", ""),
        };
        Error::file(
            &self.root,
            format!("a single file has no tokenizer; give `⟨tokenizer_name⟩` a folder or a hub id such as {id}{sub}"),
        )
    }

    /// The scheduler's configuration as JSON: `scheduler/scheduler_config.json`, or for a single file the one of the
    /// original models, for what the file says of itself. `prediction_type` is the one of [`ModelOptions`] where given.
    pub fn scheduler_config_json(&self) -> Result<Value> {
        let mut config = match (&self.source, self.scheduler_file()) {
            (_, Some(path)) => config_file::read_json(&path)?,
            (Source::Single { checkpoint, facts, .. }, None) => {
                let prediction = self.prediction_of(facts);
                let zero_snr = facts.has_zero_terminal_snr(prediction);
                inferred_config::scheduler(checkpoint.generation(), prediction, zero_snr)
            }
            (Source::Folder { .. }, None) => config_file::read_json(&scheduler_file_in(&self.root))?,
        };
        if let (Some(prediction_type), Some(fields)) = (&self.prediction_type, config.as_object_mut()) {
            fields.insert("prediction_type".to_owned(), Value::String(prediction_type.clone()));
        }
        Ok(config)
    }

    /// The file with the scheduler's configuration, where the model has one.
    fn scheduler_file(&self) -> Option<PathBuf> {
        match &self.source {
            Source::Folder { .. } => Some(scheduler_file_in(&self.root)),
            Source::Single { configs, .. } => configs.as_deref().map(scheduler_file_in).filter(|path| path.is_file()),
        }
    }

    fn prediction_of<'a>(&'a self, facts: &'a CheckpointFacts) -> &'a str {
        self.prediction_type.as_deref().unwrap_or_else(|| facts.prediction())
    }

    /// What a user should know about how the model was read: that a single file does not say what it predicts.
    pub fn warnings(&self) -> Vec<String> {
        match &self.source {
            Source::Single { facts, .. } if self.prediction_type.is_none() && self.scheduler_file().is_none() => {
                facts.warnings()
            }
            _ => Vec::new(),
        }
    }

    /// Refuses parts of different models, whose shapes do not meet.
    pub fn check_parts(&self) -> Result<()> {
        let (unet, vae) = (self.unet_config()?, self.vae_config()?);
        let texts = self.text_encoder_configs()?;
        let width: i64 = texts.iter().map(|text| text.hidden_size).sum();
        let (encoders, give) = if texts.len() == 1 { ("text encoder", "gives") } else { ("text encoders", "give") };
        if width != unet.cross_attention_dim {
            return Err(Error::file(
                &self.root,
                format!(
                    "the {encoders} {give} {width} numbers a token and the UNet takes {}: they are of different models",
                    unet.cross_attention_dim
                ),
            ));
        }
        let pooled = texts.last().filter(|text| text.with_projection).map(|text| text.projection_dim);
        if pooled != unet.pooled_width() {
            let numbers = |width: Option<i64>| width.map_or("none".to_owned(), |width| width.to_string());
            return Err(Error::file(
                &self.root,
                format!(
                    "the {encoders} {give} {} numbers for a whole text and the UNet takes {}: they are of different models",
                    numbers(pooled),
                    numbers(unet.pooled_width())
                ),
            ));
        }
        if vae.latent_channels != unet.in_channels || unet.out_channels != unet.in_channels {
            return Err(Error::file(
                &self.root,
                format!(
                    "the VAE's latents have {} channels, the UNet takes {} and gives {}: they are of different models",
                    vae.latent_channels, unet.in_channels, unet.out_channels
                ),
            ));
        }
        Ok(())
    }

    /// The single-file checkpoint, where it is one.
    pub fn checkpoint(&self) -> Option<&OriginalCheckpoint> {
        match &self.source {
            Source::Folder { .. } => None,
            Source::Single { checkpoint, .. } => Some(checkpoint),
        }
    }

    /// Whether this is a single-file checkpoint, and no folder in the diffusers layout.
    pub fn is_single_file(&self) -> bool {
        matches!(self.source, Source::Single { .. })
    }

    /// `config.json` of the network `part` ("unet", "vae", "text_encoder", "text_encoder_2"): the file, or what the shapes tell.
    pub fn config_json(&self, part: &str) -> Result<Value> {
        if let (Some(vae), "vae") = (&self.vae, part) {
            return vae.config_json()?.map_or_else(|| Ok(written_config::vae(&self.vae_config()?)), Ok);
        }
        match self.described(part) {
            Described::ByFile(folder) => config_file::read_json(&folder.join("config.json")),
            Described::ByShapes(..) => match part {
                "unet" => Ok(written_config::unet(&self.unet_config()?)),
                "vae" => Ok(written_config::vae(&self.vae_config()?)),
                name => {
                    let part = Part::named(name).filter(|part| part.is_text_encoder()).unwrap_or(Part::TextEncoder);
                    Ok(written_config::text_encoder(&self.text_encoder_config(part)?))
                }
            },
        }
    }

    /// Whether its files have the UNet's projections in 4 bits.
    pub fn is_four_bit(&self) -> Result<bool> {
        Ok(self.config_json("unet")?.get("quantization_config").is_some())
    }

    /// The UNet's configuration.
    pub fn unet_config(&self) -> Result<UNetConfig> {
        match self.described("unet") {
            Described::ByFile(folder) => UNetConfig::from_folder(&folder),
            Described::ByShapes(checkpoint, facts) => {
                let mut config = inferred_config::unet(&checkpoint.unet())?;
                let vae = match &self.vae {
                    Some(vae) => vae.config(self.is_xl())?,
                    None => inferred_config::vae(&checkpoint.vae(), self.is_xl())?,
                };
                config.sample_size = Some(self.latent_size(facts, vae.scale_factor())?);
                Ok(config)
            }
        }
    }

    /// The VAE's configuration.
    pub fn vae_config(&self) -> Result<VaeConfig> {
        if let Some(vae) = &self.vae {
            let config = vae.config(self.is_xl())?;
            let native = self.unet_config()?.sample_size.unwrap_or(BASE_LATENT_SIZE) * config.scale_factor();
            return Ok(VaeConfig { sample_size: native, ..config });
        }
        match self.described("vae") {
            Described::ByFile(folder) => VaeConfig::from_folder(&folder),
            Described::ByShapes(checkpoint, facts) => {
                let mut config = inferred_config::vae(&checkpoint.vae(), self.is_xl())?;
                config.sample_size = self.latent_size(facts, config.scale_factor())? * config.scale_factor();
                Ok(config)
            }
        }
    }

    /// Side of the latents that a single file was made for: by what it predicts, which a configuration can say.
    fn latent_size(&self, facts: &CheckpointFacts, factor: i64) -> Result<i64> {
        let scheduler = self.scheduler_config_json()?;
        let prediction = scheduler.get("prediction_type").and_then(Value::as_str);
        Ok(facts.latent_size(prediction.unwrap_or_default(), factor))
    }

    /// Height and width, in pixels, of the images that the model was made for.
    pub fn native_resolution(&self) -> Result<i64> {
        let latent = self.unet_config()?.sample_size.unwrap_or(BASE_LATENT_SIZE);
        Ok(latent * self.vae_config()?.scale_factor())
    }

    /// The configurations of its text encoders.
    pub fn text_encoder_configs(&self) -> Result<Vec<ClipTextConfig>> {
        self.text_encoders().iter().map(|part| self.text_encoder_config(*part)).collect()
    }

    /// The configuration of the text encoder `part`.
    pub fn text_encoder_config(&self, part: Part) -> Result<ClipTextConfig> {
        let with_projection = part == Part::TextEncoder2;
        match self.described(part.name()) {
            Described::ByFile(folder) => {
                Ok(ClipTextConfig { with_projection, ..ClipTextConfig::from_folder(&folder)? })
            }
            Described::ByShapes(checkpoint, _) if with_projection => {
                inferred_config::text_encoder_2(&checkpoint.text_encoder_2())
            }
            Described::ByShapes(checkpoint, _) => {
                inferred_config::text_encoder(&checkpoint.text_encoder(), checkpoint.generation())
            }
        }
    }

    fn described(&self, part: &str) -> Described<'_> {
        match &self.source {
            Source::Folder { .. } => Described::ByFile(self.root.join(part)),
            Source::Single { checkpoint, facts, configs } => configs
                .iter()
                .map(|folder| folder.join(part))
                .find(|folder| folder.join("config.json").is_file())
                .map_or(Described::ByShapes(checkpoint, facts), Described::ByFile),
        }
    }

    /// The weights of the UNet under our keys.
    pub fn unet_weights(&self) -> Result<WeightSet> {
        match &self.source {
            Source::Folder { variant } => self.folder_weights("unet", variant.as_deref()),
            Source::Single { checkpoint, .. } => Ok(checkpoint.unet()),
        }
    }

    /// The weights of the VAE under our keys.
    pub fn vae_weights(&self) -> Result<WeightSet> {
        if let Some(vae) = &self.vae {
            return vae.weights();
        }
        match &self.source {
            Source::Folder { variant } => Ok(self.folder_weights("vae", variant.as_deref())?.respelled(spelling::vae)),
            Source::Single { checkpoint, .. } => Ok(checkpoint.vae()),
        }
    }

    /// The weights of the text encoder `part` under our keys.
    pub fn text_encoder_weights(&self, part: Part) -> Result<WeightSet> {
        match (&self.source, part) {
            (Source::Folder { variant }, _) => {
                let weights = self.folder_weights(part.name(), variant.as_deref())?;
                Ok(weights.respelled(match part {
                    Part::TextEncoder2 => spelling::clip_text_with_projection,
                    _ => spelling::clip_text,
                }))
            }
            (Source::Single { checkpoint, .. }, Part::TextEncoder2) => Ok(checkpoint.text_encoder_2()),
            (Source::Single { checkpoint, .. }, _) => Ok(checkpoint.text_encoder()),
        }
    }

    /// The weights of the network `part` under our keys.
    pub fn part_weights(&self, part: Part) -> Result<WeightSet> {
        match part {
            Part::UNet => self.unet_weights(),
            Part::TextEncoder | Part::TextEncoder2 => self.text_encoder_weights(part),
        }
    }

    fn folder_weights(&self, part: &str, variant: Option<&str>) -> Result<WeightSet> {
        let folder = self.root.join(part);
        WeightSet::open_folder(&folder, variant.filter(|variant| WeightSet::has_variant(&folder, variant)))
    }

    /// The model as adapters see it: its weights' shapes, from the headers of its files.
    pub fn base_model(&self) -> Result<BaseModel> {
        let shapes = |weights: WeightSet| {
            let shape = |key: &str| Some((key.to_owned(), weights.shape(key)?));
            weights.keys().filter_map(shape).collect()
        };
        let networks = self.parts().into_iter().map(|part| Ok((part, shapes(self.part_weights(part)?))));
        Ok(BaseModel::new(networks.collect::<Result<_>>()?))
    }

    /// Has the weights kept so; those of the VAE always lie as they are. Paths of layers begin with the name of their network.
    pub fn store_in(&mut self, keeping: impl Into<Keeping>) {
        self.keeping = keeping.into();
    }

    /// Loads the UNet.
    pub fn load_unet(&self, placement: Placement) -> Result<Loaded<UNet2DConditionModel>> {
        let config = self.unet_config()?;
        load(self.unet_weights()?.stored_in(self.keeping.of_part("unet")), placement, |loader| {
            UNet2DConditionModel::load(loader, &config)
        })
    }

    /// Loads the VAE's encoder alone.
    pub fn load_vae_encoder(&self, placement: Placement) -> Result<Loaded<VaeEncoder>> {
        let config = self.vae_config()?;
        load(self.kept_vae()?, placement, |loader| VaeEncoder::load(loader, &config))
    }

    /// Loads the VAE's decoder alone.
    pub fn load_vae_decoder(&self, placement: Placement) -> Result<Loaded<VaeDecoder>> {
        let config = self.vae_config()?;
        load(self.kept_vae()?, placement, |loader| VaeDecoder::load(loader, &config))
    }

    /// Loads the whole VAE.
    pub fn load_vae(&self, placement: Placement) -> Result<Loaded<AutoencoderKl>> {
        let config = self.vae_config()?;
        load(self.kept_vae()?, placement, |loader| AutoencoderKl::load(loader, &config))
    }

    /// Refuses paths of layers that no network of the model has.
    pub fn check_layers(&self) -> Result<()> {
        for layer in self.keeping.fp32_layers.iter() {
            let part = layer.split('.').next().unwrap_or_default();
            let weights = match Part::named(part).filter(|part| self.parts().contains(part)) {
                Some(part) => self.part_weights(part)?,
                None if part == "vae" => self.vae_weights()?,
                None => return Err(Keeping::no_layer(layer)),
            };
            let inside = format!("{layer}.");
            if !weights.keys().any(|key| format!("{part}.{key}").starts_with(&inside)) {
                return Err(Keeping::no_layer(layer));
            }
        }
        Ok(())
    }

    fn kept_vae(&self) -> Result<WeightSet> {
        let keeping = Keeping { storage: Storage::default(), ..self.keeping.of_part("vae") };
        Ok(self.vae_weights()?.stored_in(keeping))
    }

    /// The dtype of the VAE where the other networks compute in `kind`. That of Stable Diffusion XL says itself where it needs
    /// float32.
    pub fn vae_kind(&self, kind: Kind) -> Kind {
        let is_exact = || self.is_xl() && self.vae_config().is_ok_and(|config| config.force_upcast);
        match self.keeping.is_in_fp32("vae") || is_exact() {
            true => Kind::Float,
            false => kind,
        }
    }

    /// Loads the text encoder `part`.
    pub fn load_text_encoder(&self, part: Part, placement: Placement) -> Result<Loaded<ClipTextModel>> {
        let config = self.text_encoder_config(part)?;
        let weights = self.text_encoder_weights(part)?.stored_in(self.keeping.of_part(part.name()));
        load(weights, placement, |loader| ClipTextModel::load(loader, &config))
    }

    /// The error of the first weight of its networks that holds what is no number. Reads all of them.
    pub fn damaged_weight(&self) -> Result<Option<Error>> {
        let parts = self.parts().into_iter().map(|part| Ok((part.name(), self.part_weights(part)?)));
        for network in parts.chain([self.vae_weights().map(|weights| ("vae", weights))]) {
            let (part, weights) = network?;
            if let Some(key) = weights.first_not_finite()? {
                let message = format!(
                    "`{part}.{key}` holds NaN or infinity, so this model computes no numbers; download it again, or take another \
                     version of it"
                );
                return Ok(Some(Error::file(weights.origin(), message)));
            }
        }
        Ok(None)
    }

    /// Loads all text encoders.
    pub fn load_text_encoders(&self, placement: Placement) -> Result<TextEncoders> {
        let load = |part: &Part| Ok((*part, self.load_text_encoder(*part, placement)?));
        let networks = self.text_encoders().iter().map(load).collect::<Result<_>>()?;
        Ok(TextEncoders::new(networks, self.zeroes_absent_text()?))
    }

    /// Whether no text at all is embedded as zeros: in Stable Diffusion XL, unless its model_index.json says otherwise.
    fn zeroes_absent_text(&self) -> Result<bool> {
        let path = self.root.join("model_index.json");
        let index = match &self.source {
            Source::Folder { .. } if path.is_file() => config_file::read_json(&path)?,
            _ => Value::Null,
        };
        Ok(self.is_xl() && index["force_zeros_for_empty_prompt"].as_bool().unwrap_or(true))
    }
}

/// Whether the pipeline in the folder `root` is Stable Diffusion XL.
fn is_xl_folder(root: &Path) -> bool {
    let is_sized = |config: Value| config["addition_embed_type"] == "text_time";
    root.join("text_encoder_2").is_dir() || config_file::read_json(&root.join("unet/config.json")).is_ok_and(is_sized)
}

/// What says how a part is built.
enum Described<'a> {
    /// The `config.json` in a folder.
    ByFile(PathBuf),
    /// The shapes of its weights, and what the file says beside.
    ByShapes(&'a OriginalCheckpoint, &'a CheckpointFacts),
}

fn scheduler_file_in(folder: &Path) -> PathBuf {
    folder.join("scheduler/scheduler_config.json")
}

/// The folder of the tokenizer `name`: a folder, one with a folder `tokenizer`, or a hub id.
fn tokenizer_at(name: &str, listener: &mut dyn Listener) -> Result<PathBuf> {
    let path = Path::new(name);
    let root = if path.is_dir() {
        path.to_owned()
    } else if hub::is_id(name) {
        let request = hub::Request { id: name, ..hub::Request::default() };
        Hub::from_env()?.fetch_tokenizer(&request, listener)?
    } else {
        return Err(Error::invalid(format!(
            "no tokenizer `{name}` was found: give a folder or a hub id (`owner/name`)"
        )));
    };
    let is_tokenizer = |folder: &Path| folder.join("tokenizer.json").exists() || folder.join("vocab.json").exists();
    [root.clone(), root.join("tokenizer")]
        .into_iter()
        .find(|folder| is_tokenizer(folder))
        .ok_or_else(|| Error::file(&root, "holds no tokenizer (tokenizer.json, or vocab.json and merges.txt)"))
}
