//! Weights that wait in host memory and come to a device block by block. The device has room for two blocks: one computes while the
//! one that is likely next is copied over the one before.

use crate::error::Result;
use crate::libtorch::memory::pinned;
use crate::libtorch::shared_memory::{self, SharedWeights};
use crate::libtorch::side_stream::SideStream;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// Weights start at multiples of this in a block's room, as CUDA's own allocations do.
const ALIGNMENT: i64 = 512;

/// Bytes of host memory that are pinned at a time. CUDA's allocator rounds up to powers of two, so weights share what is one.
const PINNED_AT_ONCE: i64 = 1 << 26;

/// What the numbered parts of models are called that run as a whole.
const BLOCKS: &[&str] = &["layers", "layer", "block", "h", "resnets", "attentions"];

/// The block that the weight `key` comes to the device with: the path up to the first numbered part that is one, or up to the weight
/// itself: `down_blocks.0.resnets.1` of `down_blocks.0.resnets.1.conv1.weight`.
pub fn block_of(key: &str) -> &str {
    let mut parts = key.split('.').peekable();
    let mut length = 0;
    while let Some(part) = parts.next() {
        length += part.len() + 1;
        let number = parts.peek().filter(|next| next.parse::<usize>().is_ok());
        if let (true, Some(number)) = (BLOCKS.contains(&part), number) {
            return &key[..length + number.len()];
        }
    }
    key.rsplit_once('.').map_or(key, |(module, _)| module)
}

/// Where a weight is: the number of its block, and its place there.
pub(super) type Place = (usize, usize);

/// The weights of a model on their way to a device.
pub struct BlockStream {
    device: Device,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Dropped first: they wait for copies that still read the weights.
    rooms: Vec<Room>,
    names: Vec<String>,
    /// The weights of each block, on the host.
    blocks: Vec<Vec<Tensor>>,
    /// Where those lie, for a device that is not the CPU.
    host: HostMemory,
    route: Route,
    /// Blocks that had to be waited for.
    missed: usize,
}

/// Device memory for one block.
struct Room {
    /// Dropped first: it waits for copies that still write here.
    lane: SideStream,
    /// uint8 `[bytes of the largest block]`
    memory: Tensor,
    block: Option<usize>,
    weights: Vec<Tensor>,
}

impl BlockStream {
    /// A way to `device` for weights that are loaded from `origin`.
    pub fn to(device: Device, origin: &Path) -> Self {
        let host = HostMemory { shared: SharedWeights::of(origin, device), ..HostMemory::default() };
        Self { device, state: Mutex::new(State { host, ..State::default() }) }
    }

    /// Has a copy of `weight`, which is on the host, come with the block `name`.
    pub(super) fn add(&self, name: &str, weight: &Tensor) -> Result<Place> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.names.iter().position(|known| known == name);
        let block = known.unwrap_or_else(|| {
            state.names.push(name.to_owned());
            state.blocks.push(Vec::new());
            state.names.len() - 1
        });
        let weight = match self.device {
            Device::Cpu => weight.shallow_clone(),
            _ => state.host.hold(weight)?,
        };
        state.blocks[block].push(weight);
        Ok((block, state.blocks[block].len() - 1))
    }

    /// The weight at `place` on the device, until the next but one block is asked for.
    pub(super) fn get(&self, (block, index): Place) -> Result<Tensor> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.make_rooms(self.device)?;
        if state.route.now != Some(block) {
            state.move_to(block)?;
        }
        let room = state.rooms.iter().find(|room| room.block == Some(block));
        Ok(room.map(|room| room.weights[index].shallow_clone()).unwrap_or_default())
    }
}

impl State {
    fn make_rooms(&mut self, device: Device) -> Result<()> {
        let bytes = self.blocks.iter().map(|block| bytes_of(block)).max().unwrap_or(0);
        while self.rooms.len() < 2 {
            let memory = Tensor::f_empty([bytes], (Kind::Uint8, device))?;
            self.rooms.push(Room { lane: SideStream::new(device)?, memory, block: None, weights: Vec::new() });
        }
        Ok(())
    }

    /// Has `block` there, and the one that is likely next on its way.
    fn move_to(&mut self, block: usize) -> Result<()> {
        if !self.is_there(block) {
            self.missed += 1;
            self.bring(block, self.route.now)?;
        }
        for room in self.rooms.iter_mut().filter(|room| room.block == Some(block)) {
            room.lane.wait()?;
        }
        let next = self.route.go_to(block);
        match next < self.blocks.len() && !self.is_there(next) {
            true => self.bring(next, Some(block)),
            false => Ok(()),
        }
    }

    fn is_there(&self, block: usize) -> bool {
        self.rooms.iter().any(|room| room.block == Some(block))
    }

    /// Copies `block` into the room that does not have `kept`.
    fn bring(&mut self, block: usize, kept: Option<usize>) -> Result<()> {
        let from = &self.blocks[block];
        match self.rooms.iter_mut().find(|room| room.block.is_none() || room.block != kept) {
            Some(room) => room.fill(block, from),
            None => Ok(()),
        }
    }
}

/// Pinned memory for weights: where this process shares it with others of its machine, there.
#[derive(Default)]
struct HostMemory {
    shared: Option<SharedWeights>,
    own: Vec<Pinned>,
}

/// uint8 `[bytes]`, and how many of them are in use.
struct Pinned {
    memory: Tensor,
    used: i64,
}

impl HostMemory {
    /// A copy of `weight` in this memory.
    fn hold(&mut self, weight: &Tensor) -> Result<Tensor> {
        match self.shared.as_mut().map(|shared| shared.hold(weight)) {
            Some(Ok(held)) => return Ok(held),
            Some(Err(error)) => {
                shared_memory::give_up(&error);
                self.shared = None;
            }
            None => {}
        }
        let (bytes, taken) = (byte_count(weight), room_for(weight));
        let fits = |part: &Pinned| part.memory.size()[0] - part.used >= taken;
        let at = match self.own.iter().position(fits) {
            Some(at) => at,
            None => {
                self.own.push(Pinned { memory: pinned(taken.max(PINNED_AT_ONCE))?, used: 0 });
                self.own.len() - 1
            }
        };
        let part = &mut self.own[at];
        let place = part.memory.f_narrow(0, part.used, bytes)?;
        part.used += taken;
        let mut held = place.f_view_dtype(weight.kind())?.f_view(weight.size().as_slice())?;
        held.f_copy_(weight)?;
        Ok(held)
    }
}

impl Room {
    fn fill(&mut self, block: usize, from: &[Tensor]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.block = None;
        self.weights.clear();
        let mut start = 0;
        for weight in from {
            let bytes = self.memory.f_narrow(0, start, byte_count(weight))?;
            self.weights.push(bytes.f_view_dtype(weight.kind())?.f_view(weight.size().as_slice())?);
            start += room_for(weight);
        }
        self.lane.copy(&self.weights, from)?;
        self.block = Some(block);
        Ok(())
    }
}

fn byte_count(weight: &Tensor) -> i64 {
    (weight.numel() * weight.kind().elt_size_in_bytes()) as i64
}

fn room_for(weight: &Tensor) -> i64 {
    (byte_count(weight) as u64).next_multiple_of(ALIGNMENT as u64) as i64
}

fn bytes_of(block: &[Tensor]) -> i64 {
    block.iter().map(room_for).sum()
}

/// The order in which blocks are used: forward and backward differ, and models skip to and fro, so it is learned on the way.
#[derive(Default)]
struct Route {
    before: Option<usize>,
    now: Option<usize>,
    /// What came after two blocks.
    followers: BTreeMap<(usize, usize), usize>,
}

impl Route {
    /// Takes that `block` is used now; the number of the one that is likely next, which there may be none of.
    fn go_to(&mut self, block: usize) -> usize {
        if let (Some(before), Some(now)) = (self.before, self.now) {
            self.followers.insert((before, now), block);
        }
        (self.before, self.now) = (self.now, Some(block));
        let Some(before) = self.before else { return block + 1 };
        let straight_on = if before < block { block + 1 } else { block.wrapping_sub(1) };
        self.followers.get(&(before, block)).copied().unwrap_or(straight_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_what_runs_as_a_whole() {
        for (key, block) in [
            ("model.decoder.layers.3.self_attn.k_proj.weight", "model.decoder.layers.3"),
            ("transformer.h.11.mlp.c_fc.weight", "transformer.h.11"),
            ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder.block.2"),
            ("bert.encoder.layer.3.output.dense.weight", "bert.encoder.layer.3"),
            ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight", "down_blocks.0.attentions.1"),
            ("mid_block.resnets.1.conv2.weight", "mid_block.resnets.1"),
            ("up_blocks.1.upsamplers.0.conv.weight", "up_blocks.1.upsamplers.0.conv"),
            ("lm_head.weight", "lm_head"),
        ] {
            assert_eq!(block_of(key), block);
        }
    }

    /// Blocks of two weights each, in two dtypes.
    fn stream(blocks: usize) -> (BlockStream, Vec<[Place; 2]>) {
        let stream = BlockStream::to(Device::Cpu, Path::new(""));
        let places = (0..blocks).map(|block| {
            let name = format!("layers.{block}");
            let weight = |kind: Kind, size: i64| Tensor::full([size, 3], block as i64, (kind, Device::Cpu));
            [weight(Kind::Half, 5), weight(Kind::Float, 1 + block as i64)]
                .map(|weight| stream.add(&name, &weight).unwrap())
        });
        let places = places.collect();
        (stream, places)
    }

    /// Uses the blocks in `order`; how many of them were not there in time.
    fn missed(stream: &BlockStream, places: &[[Place; 2]], order: &[usize]) -> usize {
        let before = stream.state.lock().unwrap().missed;
        for &block in order {
            for place in places[block] {
                let weight = stream.get(place).unwrap();
                let differs = (weight - block as i64).abs().max().double_value(&[]);
                assert_eq!(differs, 0.0, "block {block}");
            }
        }
        let state = stream.state.lock().unwrap();
        assert_eq!(state.rooms.len(), 2);
        assert!(state.rooms.iter().all(|room| room.memory.size() == [512 + 512]));
        state.missed - before
    }

    #[test]
    fn each_block_but_the_first_is_there_when_it_is_used() {
        let (stream, places) = stream(6);
        let step: Vec<usize> = (0..6).chain((0..6).rev()).collect();
        assert_eq!(missed(&stream, &places, &step), 1);
        assert_eq!(missed(&stream, &places, &step), 0);
    }

    #[test]
    fn an_order_of_its_own_is_learned_in_one_step() {
        let (stream, places) = stream(6);
        let step = [2, 0, 5, 1, 4, 3, 4, 1, 5, 0, 2];
        assert!(missed(&stream, &places, &step) > 4);
        missed(&stream, &places, &step);
        assert_eq!(missed(&stream, &places, &step), 0);
    }
}
