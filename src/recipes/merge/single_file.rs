//! A single-file checkpoint with adapters folded in, as a single file again: under its own key names, with all else that it holds.

use crate::adapters::merge::{Folding, Shapes};
use crate::adapters::{AdapterSet, Part};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::models::stable_diffusion::PipelineFiles;
use crate::recipes::training::observer::{Event, Observer};
use crate::weights::tensor_file::{Planned, TensorFileWriter};
use crate::weights::{written_kind, OriginalCheckpoint, Placement, WeightSet};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind};

/// A network of the file: its weights under our keys, where each is from, and the part that adapters are for.
struct Network {
    part: Option<Part>,
    weights: WeightSet,
    /// Keys by the tensor of the file that they are of.
    stored: BTreeMap<String, Vec<String>>,
}

/// Writes the checkpoint behind `files` with `adapters`, each at its strength, folded in to the file `out`. Dtypes are those of the
/// file where no `kind` is given.
pub fn write(
    files: &PipelineFiles,
    checkpoint: &OriginalCheckpoint,
    adapters: &[(AdapterSet, f64)],
    kind: Option<Kind>,
    out: &Path,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<()> {
    let networks = networks(files, checkpoint)?;
    let foldings: Vec<Folding> = networks
        .iter()
        .map(|network| Folding {
            shapes: Shapes::AsTheyAre,
            ..Folding::of_part(&network.weights, network.part, adapters)
        })
        .collect();
    foldings.iter().try_for_each(Folding::check)?;
    let all = checkpoint.weights();
    let mut planned = Vec::new();
    for name in all.keys() {
        let stored = all.kind(name)?;
        let kind = written_kind(stored, kind);
        planned.push(Planned { name: name.to_owned(), shape: all.shape(name).unwrap_or_default(), kind });
    }
    let mut metadata = checkpoint.metadata()?;
    // Of the numbers as they were.
    metadata.retain(|name, _| !name.ends_with("hash_sha256") && !name.ends_with("_hash"));
    let (mut done, total) = (0, planned.len() as u64);
    let written = TensorFileWriter::create(out, planned, &metadata)?.write_all(|planned| {
        observer.merging(done, total, interrupt)?;
        done += 1;
        let found = networks.iter().zip(&foldings).find_map(|(network, folding)| {
            let keys = network.stored.get(&planned.name)?;
            Some((network, folding, keys))
        });
        let Some((network, folding, keys)) = found else {
            let place = Placement { device: Device::Cpu, kind: all.kind(&planned.name)? };
            return Ok(all.load(&planned.name, &planned.shape, place)?.to_kind(planned.kind));
        };
        let parts = keys.iter().map(|key| folding.fold(key, planned.kind)).collect::<Result<Vec<_>>>()?;
        let joined = network.weights.put_together(&keys[0], &parts)?;
        Ok(joined.f_reshape(&planned.shape)?)
    });
    observer.on(Event::End);
    written
}

fn networks(files: &PipelineFiles, checkpoint: &OriginalCheckpoint) -> Result<Vec<Network>> {
    let of = |part: Option<Part>, own: WeightSet, weights: WeightSet| Network { part, stored: own.stored(), weights };
    let mut networks = vec![of(None, checkpoint.vae(), files.vae_weights()?)];
    for part in files.parts() {
        let weights = || files.part_weights(part);
        networks.push(of(Some(part), weights()?, weights()?));
    }
    // Another VAE stands under the names of the file's own, which must have the same ones.
    let vae = &networks[0];
    let keys = vae.stored.values().flatten();
    let lacks = keys.filter(|key| !key.starts_with("loss.")).find(|key| !vae.weights.contains(key));
    match lacks {
        None => Ok(networks),
        Some(key) => Err(Error::MissingWeight { path: vae.weights.origin().to_owned(), key: key.clone() }),
    }
}
