//! A pipeline in the diffusers layout with adapters folded in, as a single-file checkpoint under the original code's names: what web
//! UIs read.

use crate::adapters::merge::Folding;
use crate::adapters::{AdapterSet, Part};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::models::stable_diffusion::PipelineFiles;
use crate::nn::Activation;
use crate::recipes::training::observer::{Event, Observer};
use crate::sample::pipeline::scheduler_config;
use crate::schedulers::PredictionType;
use crate::weights::original_spelling::{
    original_second_text_tensors, original_text_tensors, original_unet_tensors, original_vae_tensors, OriginalTensor,
};
use crate::weights::tensor_file::{Planned, TensorFileWriter};
use crate::weights::{model_specification, written_kind, OriginalGeneration, WeightSet, STABILITY_CODE};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A network of the pipeline and the tensors of the file that hold it.
struct Network {
    part: Option<Part>,
    weights: WeightSet,
    tensors: Vec<OriginalTensor>,
}

/// Writes the pipeline behind `files` with `adapters`, each at its strength, folded in to the file `out`. Dtypes are those of its files
/// where no `kind` is given.
pub fn write(
    files: &PipelineFiles,
    adapters: &[(AdapterSet, f64)],
    kind: Option<Kind>,
    out: &Path,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<()> {
    let generation = generation(files)?;
    let networks = networks(files, generation)?;
    let foldings: Vec<Folding> =
        networks.iter().map(|network| Folding::of_part(&network.weights, network.part, adapters)).collect();
    foldings.iter().try_for_each(Folding::check)?;
    let (mut planned, mut made_of) = (Vec::new(), BTreeMap::new());
    for (network, folding) in networks.iter().zip(&foldings) {
        for tensor in &network.tensors {
            let stored = network.weights.kind(&tensor.keys[0])?;
            let kind = written_kind(stored, kind);
            planned.push(Planned { name: tensor.name.clone(), shape: tensor.shape(&network.weights), kind });
            made_of.insert(tensor.name.as_str(), (folding, tensor));
        }
    }
    let marks = marks(files, generation)?;
    planned.extend(marks.iter().map(|name| Planned { name: (*name).to_owned(), shape: vec![0], kind: Kind::Float }));
    let (mut done, total) = (0, planned.len() as u64);
    let written = TensorFileWriter::create(out, planned, &metadata(files, generation, out)?)?.write_all(|planned| {
        observer.merging(done, total, interrupt)?;
        done += 1;
        let Some((folding, tensor)) = made_of.get(planned.name.as_str()) else {
            return Ok(Tensor::zeros([0], (planned.kind, Device::Cpu)));
        };
        let parts = tensor.keys.iter().map(|key| folding.fold(key, planned.kind)).collect::<Result<Vec<_>>>()?;
        tensor.made_of(&parts)
    });
    observer.on(Event::End);
    written
}

/// Stable Diffusion 2's text encoder is OpenCLIP's, with another activation.
fn generation(files: &PipelineFiles) -> Result<OriginalGeneration> {
    Ok(match files.text_encoder_config(Part::TextEncoder)?.hidden_act {
        _ if files.is_xl() => OriginalGeneration::Xl,
        Activation::QuickGelu => OriginalGeneration::V1,
        _ => OriginalGeneration::V2,
    })
}

fn networks(files: &PipelineFiles, generation: OriginalGeneration) -> Result<Vec<Network>> {
    let network = |part: Option<Part>, weights: WeightSet| {
        let tensors = match part {
            None => original_vae_tensors(&weights),
            Some(Part::UNet) => original_unet_tensors(&weights),
            Some(Part::TextEncoder) => original_text_tensors(&weights, generation),
            Some(Part::TextEncoder2) => original_second_text_tensors(&weights),
        }?;
        Ok(Network { part, weights, tensors })
    };
    let parts = files.parts().into_iter().map(|part| network(Some(part), files.part_weights(part)?));
    parts.chain([files.vae_weights().and_then(|weights| network(None, weights))]).collect()
}

/// The empty tensors by which programs know Stable Diffusion XL's children that do not predict noise.
fn marks(files: &PipelineFiles, generation: OriginalGeneration) -> Result<Vec<&'static str>> {
    let scheduler = scheduler_config(files)?;
    let predicts_v = generation == OriginalGeneration::Xl && scheduler.prediction_type() == PredictionType::VPrediction;
    let marks = [("v_pred", true), ("ztsnr", scheduler.zero_snr())];
    Ok(marks.into_iter().filter(|(_, is_so)| predicts_v && *is_so).map(|(name, _)| name).collect())
}

/// What the header says of the model, as Stability's model specification has it.
fn metadata(files: &PipelineFiles, generation: OriginalGeneration, out: &Path) -> Result<BTreeMap<String, String>> {
    let prediction = scheduler_config(files)?.prediction_type();
    let side = files.native_resolution()?;
    let fields = [
        ("architecture", generation.architecture(prediction == PredictionType::VPrediction).to_owned()),
        ("implementation", STABILITY_CODE.to_owned()),
        ("title", out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()),
        ("resolution", format!("{side}x{side}")),
        ("prediction_type", prediction.modelspec_name().to_owned()),
    ];
    Ok(model_specification(fields).chain([("format".to_owned(), "pt".to_owned())]).collect())
}
