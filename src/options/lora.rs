//! The options of LoRA: one group, whatever it is put on, and what is said of it for each part of Stable Diffusion.

use super::checks;
use super::pattern::PatternFlag;
use super::values::name_of;
use crate::adapters::{Bias, InitWeights, LoraConfig, TargetModules};
use crate::error::Result;
use crate::sentence::{flag, option};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use serde::ser::{Error as _, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::ffi::OsString;
use std::marker::PhantomData;
use std::ops::Deref;

/// The LoRA of one model.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Adapter")]
// A group of their own would be among the options that were given.
#[group(skip)]
pub struct LoraArgs {
    /// Rank of the LoRA
    #[arg(long, visible_aliases = ["rank", "network-dim"], default_value_t = 8)]
    pub lora_r: i64,
    /// Alpha of the LoRA; its output is scaled by alpha/rank
    #[arg(long, visible_alias = "network-alpha", default_value_t = 16.0)]
    pub lora_alpha: f64,
    /// Dropout on the adapter's input
    #[arg(long, default_value_t = 0.0)]
    pub lora_dropout: f64,
    /// Which biases to train
    #[arg(long, value_enum, default_value_t = Bias::None)]
    #[serde(serialize_with = "name_of")]
    pub lora_bias: Bias,
    /// Modules that get a LoRA: names, a regular expression, or all-linear; by default PEFT's for the architecture
    #[arg(long, alias = "target-modules")]
    pub lora_targets: Option<String>,
    /// Other ranks for some modules: name=rank,name=rank or a JSON object; a name can be a regular expression
    #[arg(long, value_name = "NAME=RANK,…")]
    pub lora_rank_pattern: Option<PatternFlag<i64>>,
    /// Other alphas for some modules, in the same form
    #[arg(long, value_name = "NAME=ALPHA,…")]
    pub lora_alpha_pattern: Option<PatternFlag<f64>>,
    /// Modules to leave out of the targets: names, or a regular expression
    #[arg(long, value_name = "MODULES")]
    pub lora_exclude_modules: Option<String>,
    /// Modules to train and save in full; a classifier's head always is
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub lora_modules_to_save: Vec<String>,
}

impl LoraArgs {
    /// Refuses numbers that cannot be meant, each by its option, which a sentence has as `named` gives it.
    fn check_as(&self, named: impl Fn(&str) -> String) -> Result<()> {
        checks::rank(&named("lora_r"), self.lora_r)?;
        checks::alpha(&named("lora_alpha"), self.lora_alpha)?;
        checks::dropout(&named("lora_dropout"), self.lora_dropout)?;
        for (module, &rank) in self.lora_rank_pattern.iter().flat_map(|pattern| &pattern.0) {
            checks::rank(&format!("{} of {module}", named("lora_rank_pattern")), rank)?;
        }
        for (module, &alpha) in self.lora_alpha_pattern.iter().flat_map(|pattern| &pattern.0) {
            checks::alpha(&format!("{} of {module}", named("lora_alpha_pattern")), alpha)?;
        }
        Ok(())
    }

    /// Refuses numbers that cannot be meant.
    pub fn check(&self) -> Result<()> {
        self.check_as(option)
    }

    /// The adapter that the options ask for, of the kind `variant`.
    pub fn config(&self, variant: &LoraVariantArgs) -> LoraConfig {
        LoraConfig {
            r: self.lora_r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            bias: self.lora_bias,
            target_modules: self.lora_targets.as_deref().map(TargetModules::from_flag),
            use_rslora: variant.use_rslora,
            use_dora: variant.use_dora,
            init_lora_weights: variant.lora_init,
            rank_pattern: self.lora_rank_pattern.as_ref().map(|pattern| pattern.0.clone()).unwrap_or_default(),
            alpha_pattern: self.lora_alpha_pattern.as_ref().map(|pattern| pattern.0.clone()).unwrap_or_default(),
            exclude_modules: self.lora_exclude_modules.as_deref().map(TargetModules::from_flag),
            modules_to_save: (!self.lora_modules_to_save.is_empty()).then(|| self.lora_modules_to_save.clone()),
            ..LoraConfig::default()
        }
    }
}

/// What every LoRA of a run has in common.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Adapter")]
// A group of their own would be among the options that were given.
#[group(skip)]
pub struct LoraVariantArgs {
    /// Initialization of A: true (Kaiming-uniform) or gaussian (standard deviation 1/rank); B is zero
    #[arg(long, value_enum, default_value_t = InitWeights::Kaiming)]
    #[serde(serialize_with = "name_of")]
    pub lora_init: InitWeights,
    /// Scale by alpha/√rank instead of alpha/rank (rank-stabilized LoRA)
    #[arg(long)]
    pub use_rslora: bool,
    /// Also train the magnitudes of the weights (DoRA)
    #[arg(long)]
    pub use_dora: bool,
}

/// A part of a pipeline that gets a LoRA of its own.
pub trait LoraPart {
    /// What the names of its options begin with.
    const PREFIX: &'static str;
    /// By the names in [`LoraArgs`]: what is to be said of an option, and its default where that is another.
    const OPTIONS: &'static [(&'static str, &'static str, Option<&'static str>)];
    /// What the names of those options begin with whose values count where the part's own are not given; none: it has its defaults.
    const FALLBACK: Option<&'static str> = None;
}

/// The UNet.
#[derive(Debug, Clone)]
pub struct UNetPart;

impl LoraPart for UNetPart {
    const PREFIX: &'static str = "lora_";
    const OPTIONS: &'static [(&'static str, &'static str, Option<&'static str>)] = &[
        ("lora_r", "Rank of the LoRA on the UNet", None),
        ("lora_alpha", "Alpha of the LoRA on the UNet; its output is scaled by alpha/rank", Some("32")),
        ("lora_dropout", "Dropout on the adapter's input", None),
        ("lora_bias", "Which biases of the UNet to train", None),
        (
            "lora_targets",
            "UNet modules that get a LoRA: names, a regular expression, or all-linear",
            Some("to_q,to_v"),
        ),
        (
            "lora_rank_pattern",
            "Other ranks for some UNet modules: name=rank,name=rank or a JSON object; a name can be a regular expression",
            None,
        ),
        ("lora_alpha_pattern", "Other alphas for some UNet modules, in the same form", None),
        ("lora_exclude_modules", "UNet modules to leave out of the targets: names, or a regular expression", None),
        ("lora_modules_to_save", "UNet modules to train and save in full, such as conv_in,conv_out", None),
    ];
}

/// The text encoder.
#[derive(Debug, Clone)]
pub struct TextEncoderPart;

impl LoraPart for TextEncoderPart {
    const PREFIX: &'static str = "lora_text_encoder_";
    const OPTIONS: &'static [(&'static str, &'static str, Option<&'static str>)] = &[
        ("lora_r", "Rank of the LoRA on the text encoder", None),
        ("lora_alpha", "Alpha of the LoRA on the text encoder", Some("32")),
        ("lora_dropout", "Dropout on the input of the text encoder's adapter", None),
        ("lora_bias", "Which biases of the text encoder to train", None),
        (
            "lora_targets",
            "Text encoder modules that get a LoRA: names, a regular expression, or all-linear",
            Some("q_proj,v_proj"),
        ),
        ("lora_rank_pattern", "Other ranks for some text encoder modules, in the form of --lora-rank-pattern", None),
        ("lora_alpha_pattern", "Other alphas for some text encoder modules, in the form of --lora-alpha-pattern", None),
        (
            "lora_exclude_modules",
            "Text encoder modules to leave out of the targets: names, or a regular expression",
            None,
        ),
        ("lora_modules_to_save", "Text encoder modules to train and save in full, such as final_layer_norm", None),
    ];
}

/// The second text encoder, which Stable Diffusion XL has: as the first one where nothing else is said.
#[derive(Debug, Clone)]
pub struct TextEncoder2Part;

impl LoraPart for TextEncoder2Part {
    const PREFIX: &'static str = "lora_text_encoder_2_";
    const FALLBACK: Option<&'static str> = Some(TextEncoderPart::PREFIX);
    const OPTIONS: &'static [(&'static str, &'static str, Option<&'static str>)] = &[
        ("lora_r", "The same for Stable Diffusion XL's second text encoder: its rank", None),
        ("lora_alpha", "Its alpha", None),
        ("lora_dropout", "Its dropout", None),
        ("lora_bias", "Which of its biases to train", None),
        ("lora_targets", "Its modules that get a LoRA", None),
        ("lora_rank_pattern", "Other ranks for some of its modules", None),
        ("lora_alpha_pattern", "Other alphas for some of its modules", None),
        ("lora_exclude_modules", "Its modules to leave out of the targets", None),
        ("lora_modules_to_save", "Its modules to train and save in full", None),
    ];
}

/// [`LoraArgs`] of the part `P`, under names that begin as its do.
#[derive(Debug, Clone)]
pub struct LoraOf<P> {
    lora: LoraArgs,
    /// The options, as [`LoraArgs`] names them, that were given under the part's own names.
    own: Vec<String>,
    part: PhantomData<P>,
}

impl<P> Deref for LoraOf<P> {
    type Target = LoraArgs;

    fn deref(&self) -> &LoraArgs {
        &self.lora
    }
}

/// The name of the option `name` of [`LoraArgs`] that begins with `prefix`.
fn renamed(name: &str, prefix: &str) -> String {
    format!("{prefix}{}", name.trim_start_matches("lora_"))
}

impl<P: LoraPart> LoraOf<P> {
    /// The name that the part has for the option `name` of [`LoraArgs`].
    fn named(name: &str) -> String {
        renamed(name, P::PREFIX)
    }

    /// Refuses numbers that cannot be meant.
    pub fn check(&self) -> Result<()> {
        let prefix = |name: &str| P::FALLBACK.filter(|_| !self.is_own(name)).unwrap_or(P::PREFIX);
        self.lora.check_as(|name| option(&renamed(name, prefix(name))))
    }

    /// The same with `targets` where none were given.
    pub fn with_usual_targets(&self, targets: &str) -> Self {
        let mut lora = self.lora.clone();
        if !self.is_own("lora_targets") {
            lora.lora_targets = Some(targets.to_owned());
        }
        Self { lora, own: self.own.clone(), part: PhantomData }
    }

    /// Whether `option` is one of [`LoraArgs`] under the part's own name, and which.
    pub fn own_option(option: &str) -> Option<String> {
        let inner = format!("lora_{}", option.strip_prefix(P::PREFIX)?);
        inner_command().get_arguments().any(|arg| arg.get_id() == inner.as_str()).then_some(inner)
    }

    /// Whether the option `name` of [`LoraArgs`] was given under the part's own name.
    pub fn is_own(&self, name: &str) -> bool {
        self.own.iter().any(|own| own == name)
    }

    /// The option `arg` of [`LoraArgs`] as the part has it.
    fn arg(arg: &Arg) -> Arg {
        let (inner, name) = (arg.get_id().to_string(), Self::named(arg.get_id().as_str()));
        // Shown where the part stands among the others.
        let mut own = arg.clone().display_order(None);
        if name != inner {
            if arg.get_value_names().is_some_and(|names| names[0].eq_ignore_ascii_case(&inner)) {
                own = own.value_name(name.to_uppercase());
            }
            // Short names are those of the part that is trained in any case.
            own = own.alias(None).long(name.replace('_', "-")).id(name);
        }
        if let Some((_, help, default)) = P::OPTIONS.iter().find(|(name, ..)| *name == inner) {
            own = own.help(*help);
            own = default.iter().fold(own, |own, default| own.default_value(*default));
        }
        if P::FALLBACK.is_some() {
            own = own.default_value(None);
        }
        own
    }
}

/// [`LoraArgs`] as a command of its own.
fn inner_command() -> Command {
    LoraArgs::augment_args(Command::new("lora").no_binary_name(true))
}

impl<P: LoraPart> Args for LoraOf<P> {
    fn augment_args(command: Command) -> Command {
        command.args(inner_command().get_arguments().map(Self::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<P: LoraPart> FromArgMatches for LoraOf<P> {
    /// Reads what was matched under the part's names once more, under those of [`LoraArgs`].
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let (mut words, mut own, command) = (Vec::new(), Vec::new(), inner_command());
        for arg in command.get_arguments() {
            let inner = arg.get_id().as_str();
            let mut name = Self::named(inner);
            if matches.value_source(&name) == Some(ValueSource::CommandLine) {
                own.push(inner.to_owned());
            } else if let Some(prefix) = P::FALLBACK {
                name = renamed(inner, prefix);
            }
            for value in matches.get_raw(&name).into_iter().flatten() {
                let mut word = OsString::from(format!("{}=", flag(arg.get_id().as_str())));
                word.push(value);
                words.push(word);
            }
        }
        let lora = LoraArgs::from_arg_matches(&command.try_get_matches_from(words)?)?;
        Ok(Self { lora, own, part: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<P: LoraPart> Serialize for LoraOf<P> {
    /// Of a part with a fallback no more than what was given for itself.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Value::Object(options) = serde_json::to_value(&self.lora).map_err(S::Error::custom)? else {
            return Err(S::Error::custom("the options of LoRA are no map"));
        };
        let mut map = serializer.serialize_map(Some(options.len()))?;
        for (name, value) in &options {
            let is_said = P::FALLBACK.is_none() || self.is_own(name);
            map.serialize_entry(&Self::named(name), if is_said { value } else { &Value::Null })?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_part_has_the_same_options_under_names_of_its_own() {
        let command = Command::new("both").no_binary_name(true);
        let command = LoraOf::<TextEncoderPart>::augment_args(LoraOf::<UNetPart>::augment_args(command));
        let flags = ["--rank=4", "--lora-text-encoder-r=2", "--lora-text-encoder-modules-to-save=a,b"];
        let more = ["--lora-text-encoder-rank-pattern", "q_proj=3", "--lora-alpha=-0.5"];
        let matches = command.try_get_matches_from(flags.iter().chain(&more)).unwrap();
        let unet = LoraOf::<UNetPart>::from_arg_matches(&matches).unwrap();
        let text_encoder = LoraOf::<TextEncoderPart>::from_arg_matches(&matches).unwrap();
        assert_eq!((unet.lora_r, unet.lora_alpha, unet.lora_targets.as_deref()), (4, -0.5, Some("to_q,to_v")));
        assert_eq!((text_encoder.lora_r, text_encoder.lora_alpha), (2, 32.0));
        assert_eq!(text_encoder.lora_targets.as_deref(), Some("q_proj,v_proj"));
        let written = serde_json::to_value(&text_encoder).unwrap();
        assert_eq!(written["lora_text_encoder_modules_to_save"], json!(["a", "b"]));
        assert_eq!(written["lora_text_encoder_rank_pattern"], json!({ "q_proj": 3 }));
        assert_eq!(written["lora_text_encoder_bias"], json!("none"));
        assert_eq!(serde_json::to_value(&unet).unwrap()["lora_init"], Value::Null);
        let error = unet.check().unwrap_err().to_string();
        assert!(error.starts_with("⟨lora_alpha⟩ is -0.5"), "{error}");
        assert!(text_encoder.check().is_ok());
    }

    #[test]
    fn what_is_not_said_of_the_second_text_encoder_is_as_of_the_first() {
        let command = LoraOf::<TextEncoderPart>::augment_args(Command::new("both").no_binary_name(true));
        let command = LoraOf::<TextEncoder2Part>::augment_args(command);
        let flags = ["--lora-text-encoder-r=2", "--lora-text-encoder-2-alpha=9", "--lora-text-encoder-bias=all"];
        let matches = command.try_get_matches_from(flags).unwrap();
        let second = LoraOf::<TextEncoder2Part>::from_arg_matches(&matches).unwrap();
        assert_eq!((second.lora_r, second.lora_alpha, second.lora_bias), (2, 9.0, Bias::All));
        assert_eq!(second.lora_targets.as_deref(), Some("q_proj,v_proj"));
        let written = serde_json::to_value(&second).unwrap();
        assert_eq!(
            (&written["lora_text_encoder_2_alpha"], &written["lora_text_encoder_2_r"]),
            (&json!(9.0), &Value::Null)
        );
        assert_eq!(LoraOf::<TextEncoderPart>::own_option("lora_text_encoder_2_r"), None);
        assert_eq!(LoraOf::<TextEncoder2Part>::own_option("lora_text_encoder_2_r").as_deref(), Some("lora_r"));
    }

    #[test]
    fn something_is_said_of_every_option_of_a_part() {
        for options in [UNetPart::OPTIONS, TextEncoderPart::OPTIONS, TextEncoder2Part::OPTIONS] {
            let ids: Vec<String> = inner_command().get_arguments().map(|arg| arg.get_id().to_string()).collect();
            assert_eq!(ids, options.iter().map(|(name, ..)| (*name).to_owned()).collect::<Vec<_>>());
        }
    }
}
