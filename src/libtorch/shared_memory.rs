//! Host memory that the processes of one machine share, and that each pins for its own device where it has one: frozen weights that all of
//! them read are there once.
//!
//! It is a file in memory (memfd_create(2)) without a name, so it is gone with the last process that has it open, however that ends, and
//! /dev/shm, which containers keep small, has no part in it. One process makes it, and the others open it by way of /proc. A weight
//! is found again by its bytes: processes need not load the same weights, or in the same order.

use super::check;
use super::mapped_tensor::over_memory;
use crate::error::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{fallocate, memfd_create, FallocateFlags, MemfdFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tch::{Device, Kind, Tensor};

extern "C" {
    fn lorabooth_host_register(index: i64, start: *mut c_void, bytes: usize) -> *mut c_char;
    fn lorabooth_host_unregister(index: i64, start: *mut c_void) -> *mut c_char;
}

/// Bytes that are pinned, or without a device taken, at a time; a larger weight has a part of its own.
const PINNED_PART: u64 = 1 << 26;
const HOST_PART: u64 = 1 << 21;
/// Weights start at multiples of this in a part, as CUDA's own allocations do.
const ALIGNMENT: u64 = 512;
const PAGE: u64 = 4096;
/// Where the list of parts, the list of weights and the parts themselves begin; before the lists are their lengths.
const PARTS_AT: u64 = PAGE;
const WEIGHTS_AT: u64 = 1 << 24;
const DATA_AT: u64 = 1 << 30;
/// Bytes of a weight that it is looked for by; all are compared before it is taken.
const SAMPLE: i64 = 4096;

/// Where another process finds the memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Address {
    path: PathBuf,
    /// Device and number: the path may mean another file to a process in another container.
    file: (u64, u64),
}

/// The memory, as one process has it open.
#[derive(Debug)]
pub struct SharedMemory(Mutex<File>);

/// That of this process, if it shares any.
static OF_THIS_PROCESS: OnceLock<Arc<SharedMemory>> = OnceLock::new();
/// Why weights are not there that were to be.
static COMPLAINT: Mutex<Option<String>> = Mutex::new(None);

/// A part of the file, as its record has it.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    start: u64,
    /// 0 where it was given back.
    bytes: u64,
    used: u64,
    /// Mappings of it, in all processes.
    holders: u64,
    /// Of the weights that it is for.
    family: u64,
}

/// A weight's place, as its record has it.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    part: u64,
    start: u64,
    /// 0 where its part was given back.
    bytes: u64,
    sample: u64,
}

impl Part {
    fn record(self) -> [u64; 5] {
        [self.start, self.bytes, self.used, self.holders, self.family]
    }
}

impl Place {
    fn record(self) -> [u64; 4] {
        [self.part, self.start, self.bytes, self.sample]
    }
}

impl SharedMemory {
    /// New memory, and where other processes of this machine find it.
    pub fn create() -> Result<(Self, Address)> {
        let file = memfd_create("lorabooth-weights", MemfdFlags::CLOEXEC).map_err(|error| cannot("be made", error))?;
        let file = File::from(file);
        let about = file.metadata().map_err(|error| cannot("be made", error))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
        Ok((Self(Mutex::new(file)), Address { path, file: (about.dev(), about.ino()) }))
    }

    /// The memory at `address`, which a process of this machine has made.
    pub fn open(address: &Address) -> Result<Self> {
        let opened = File::options().read(true).write(true).open(&address.path);
        let file = opened.map_err(|error| cannot("be opened", error))?;
        let about = file.metadata().map_err(|error| cannot("be opened", error))?;
        match (about.dev(), about.ino()) == address.file {
            true => Ok(Self(Mutex::new(file))),
            false => Err(cannot("be opened", "the processes are in different containers")),
        }
    }

    /// Has this process hold its waiting weights there.
    pub fn install(self) {
        drop(OF_THIS_PROCESS.set(Arc::new(self)));
    }

    fn lock(&self) -> Result<Locked<'_>> {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.lock().map_err(|error| cannot("be locked", error))?;
        Ok(Locked(file))
    }
}

fn cannot(what: &str, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("memory that processes share cannot {what}: {why}"))
}

/// Weights are not there from now on, for this reason.
pub fn give_up(error: &Error) {
    COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
}

/// Why weights are not there that were to be, told once.
pub fn complaint() -> Option<String> {
    COMPLAINT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The memory's lists, while no other process changes them.
struct Locked<'a>(MutexGuard<'a, File>);

impl Locked<'_> {
    fn numbers(&self, at: u64, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        if at + bytes.len() as u64 > self.0.metadata().map_err(|error| cannot("be read", error))?.len() {
            return Ok(vec![0; count]);
        }
        self.0.read_exact_at(&mut bytes, at).map_err(|error| cannot("be read", error))?;
        Ok(bytes.chunks_exact(8).map(|bytes| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))).collect())
    }

    fn write(&self, at: u64, numbers: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.0.write_all_at(&bytes, at).map_err(|error| cannot("be written", error))
    }

    /// How many parts there are, and weights.
    fn counts(&self) -> Result<[usize; 2]> {
        let counts = self.numbers(0, 2)?;
        Ok([counts[0] as usize, counts[1] as usize])
    }

    fn parts(&self) -> Result<Vec<Part>> {
        let numbers = self.numbers(PARTS_AT, self.counts()?[0] * 5)?;
        let part = |n: &[u64]| Part { start: n[0], bytes: n[1], used: n[2], holders: n[3], family: n[4] };
        Ok(numbers.chunks_exact(5).map(part).collect())
    }

    fn weights(&self) -> Result<Vec<Place>> {
        let numbers = self.numbers(WEIGHTS_AT, self.counts()?[1] * 4)?;
        let place = |n: &[u64]| Place { part: n[0], start: n[1], bytes: n[2], sample: n[3] };
        Ok(numbers.chunks_exact(4).map(place).collect())
    }

    fn write_part(&self, number: usize, part: Part) -> Result<()> {
        self.write(PARTS_AT + number as u64 * 40, &part.record())
    }

    fn write_weight(&self, number: usize, place: Place) -> Result<()> {
        self.write(WEIGHTS_AT + number as u64 * 32, &place.record())
    }

    /// A part of `family` with room for `bytes`, which is made where there is none: its number.
    fn part_with_room(&self, family: u64, bytes: u64, device: Device) -> Result<usize> {
        let parts = self.parts()?;
        let has_room = |part: &Part| part.family == family && part.bytes >= part.used + bytes;
        if let Some(number) = parts.iter().position(has_room) {
            return Ok(number);
        }
        let start = parts.iter().map(|part| part.start + part.bytes).max().unwrap_or(DATA_AT);
        // One that was given back keeps its start: what comes behind the last one is free.
        let least = if device == Device::Cpu { HOST_PART } else { PINNED_PART };
        let bytes = bytes.max(least).next_multiple_of(PAGE);
        fallocate(&*self.0, FallocateFlags::empty(), start, bytes).map_err(|error| cannot("grow", error))?;
        self.write_part(parts.len(), Part { start, bytes, family, ..Part::default() })?;
        self.write(0, &[parts.len() as u64 + 1])?;
        Ok(parts.len())
    }

    /// One mapping of part `number` is gone; with the last one go its pages and its weights.
    fn give_back(&self, number: usize) -> Result<()> {
        let mut part = self.parts()?[number];
        part.holders -= 1;
        if part.holders > 0 {
            return self.write_part(number, part);
        }
        let weights = self.weights()?;
        for (place, weight) in weights.iter().enumerate().filter(|(_, weight)| weight.part == number as u64) {
            self.write_weight(place, Place { bytes: 0, ..*weight })?;
        }
        let kept = weights.iter().rposition(|weight| weight.part != number as u64 && weight.bytes > 0);
        self.write(8, &[kept.map_or(0, |last| last as u64 + 1)])?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&*self.0, punch, part.start, part.bytes).map_err(|error| cannot("shrink", error))?;
        self.write_part(number, Part { start: part.start, ..Part::default() })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // The end of the process unlocks it too.
        drop(self.0.unlock());
    }
}

/// A part as this process has it mapped and pinned.
struct Mapped {
    memory: Arc<SharedMemory>,
    number: usize,
    pinned: Option<Pinned>,
}

/// A mapping that is pinned where its device is not the CPU.
struct Pinned {
    map: MmapRaw,
    device: Device,
}

impl Pinned {
    fn of(file: &File, part: Part, device: Device) -> Result<Self> {
        let map = MmapOptions::new().offset(part.start).len(part.bytes as usize).map_raw(file);
        let map = map.map_err(|error| cannot("be mapped", error))?;
        if let Device::Cuda(index) = device {
            // SAFETY: a range that stays mapped until it is unregistered.
            check(unsafe { lorabooth_host_register(index as i64, map.as_mut_ptr().cast(), map.len()) })
                .map_err(|error| cannot("be pinned", error))?;
        }
        Ok(Self { map, device })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Device::Cuda(index) = self.device {
            // At the end of the process the device may be gone, and what was pinned with it.
            // SAFETY: registered where this was made, and unregistered once.
            drop(check(unsafe { lorabooth_host_unregister(index as i64, self.map.as_mut_ptr().cast()) }));
        }
    }
}

impl Mapped {
    /// uint8 `[bytes]` at a weight's place.
    fn over(self: &Arc<Self>, place: Place) -> Result<Tensor> {
        let pinned = self.pinned.as_ref().filter(|pinned| place.start + place.bytes <= pinned.map.len() as u64);
        let pinned = pinned.ok_or_else(|| Error::Internal("a weight ends after its part of shared memory".into()))?;
        // SAFETY: inside the mapping, as was just seen, which the tensor keeps.
        unsafe {
            let data = pinned.map.as_ptr().add(place.start as usize);
            over_memory(self.clone(), data, &[place.bytes as i64], Kind::Uint8)
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.pinned = None;
        // Where it cannot be given back it is kept until all processes have ended.
        drop(self.memory.lock().and_then(|lists| lists.give_back(self.number)));
    }
}

/// The weights of one network in the memory that this process shares.
pub struct SharedWeights {
    memory: Arc<SharedMemory>,
    device: Device,
    family: u64,
    /// By number.
    parts: BTreeMap<usize, Arc<Mapped>>,
}

impl SharedWeights {
    /// Those that are loaded from `origin`, pinned for `device`; none where this process shares no memory.
    pub fn of(origin: &Path, device: Device) -> Option<Self> {
        Some(Self::inside(OF_THIS_PROCESS.get()?, origin, device))
    }

    fn inside(memory: &Arc<SharedMemory>, origin: &Path, device: Device) -> Self {
        Self { memory: memory.clone(), device, family: hash_of(origin), parts: BTreeMap::new() }
    }

    /// `weight`, which is on the host, as it lies in the memory: written there unless another process, or this one, has done so. It must
    /// not be written to.
    pub fn hold(&mut self, weight: &Tensor) -> Result<Tensor> {
        let bytes = weight.f_contiguous()?.f_view([-1])?.f_view_dtype(Kind::Uint8)?;
        let length = bytes.size()[0];
        let sample = Vec::<u8>::try_from(bytes.f_narrow(0, 0, length.min(SAMPLE))?)?;
        let wanted = Place { bytes: length as u64, sample: hash_of(&sample), ..Place::default() };
        let (memory, mut seen) = (self.memory.clone(), 0);
        let held = loop {
            let lists = memory.lock()?;
            let weights = lists.weights()?;
            let is_alike = |place: &&Place| (place.bytes, place.sample) == (wanted.bytes, wanted.sample);
            let alike: Vec<Place> = weights.iter().skip(seen).filter(is_alike).copied().collect();
            if alike.is_empty() {
                break self.write(&lists, wanted, &bytes)?;
            }
            seen = weights.len();
            // Compared while others go on.
            let alike = alike.into_iter().map(|place| self.mapped(&lists, place.part as usize)?.over(place));
            let alike = alike.collect::<Result<Vec<_>>>();
            drop(lists);
            if let Some(equal) = alike?.into_iter().find(|held| held.f_equal(&bytes).unwrap_or(false)) {
                break equal;
            }
        };
        Ok(held.f_view_dtype(weight.kind())?.f_view(weight.size().as_slice())?)
    }

    /// Writes `bytes` and then their record: what a process leaves that is killed meanwhile is never found.
    fn write(&mut self, lists: &Locked, wanted: Place, bytes: &Tensor) -> Result<Tensor> {
        let taken = wanted.bytes.next_multiple_of(ALIGNMENT);
        let number = lists.part_with_room(self.family, taken, self.device)?;
        let mapped = self.mapped(lists, number)?;
        let part = lists.parts()?[number];
        let place = Place { part: number as u64, start: part.used, ..wanted };
        let mut held = mapped.over(place)?;
        held.f_copy_(bytes)?;
        lists.write_part(number, Part { used: part.used + taken, ..part })?;
        let weights = lists.counts()?[1];
        lists.write_weight(weights, place)?;
        lists.write(8, &[weights as u64 + 1])?;
        Ok(held)
    }

    fn mapped(&mut self, lists: &Locked, number: usize) -> Result<Arc<Mapped>> {
        if let Some(mapped) = self.parts.get(&number) {
            return Ok(mapped.clone());
        }
        let part = lists.parts()?[number];
        let pinned = Some(Pinned::of(&lists.0, part, self.device)?);
        lists.write_part(number, Part { holders: part.holders + 1, ..part })?;
        let mapped = Arc::new(Mapped { memory: self.memory.clone(), number, pinned });
        self.parts.insert(number, mapped.clone());
        Ok(mapped)
    }
}

fn hash_of(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::random::Generator;

    /// The memory as two processes have it open: a lock is between files that were opened, and not between processes.
    fn opened_twice() -> [Arc<SharedMemory>; 2] {
        let (made, address) = SharedMemory::create().unwrap();
        [made, SharedMemory::open(&address).unwrap()].map(Arc::new)
    }

    fn weights(count: usize) -> Vec<Tensor> {
        let mut generator = Generator::new(3);
        (0..count).map(|i| generator.randn(&[40 + i as i64, 100]).to_kind(Kind::Half)).collect()
    }

    /// Bytes of the file that have pages.
    fn bytes_there(memory: &SharedMemory) -> u64 {
        memory.lock().unwrap().0.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn a_weight_is_there_once_whoever_comes_first_and_in_whatever_order() {
        let (memories, weights) = (opened_twice(), weights(20));
        let mut held = Vec::new();
        std::thread::scope(|scope| {
            let of = |memory: &Arc<SharedMemory>, order: Vec<&Tensor>| {
                let mut shared = SharedWeights::inside(memory, Path::new("model"), Device::Cpu);
                let held: Vec<Tensor> = order.iter().map(|weight| shared.hold(weight).unwrap()).collect();
                assert!(held.iter().zip(order).all(|(held, weight)| held == weight));
                (shared, held)
            };
            let copies: Vec<Tensor> = weights.iter().map(Tensor::copy).collect();
            let (first, second) = (memories[0].clone(), memories[1].clone());
            let other = scope.spawn(move || of(&second, copies.iter().rev().collect()));
            held.push(of(&first, weights.iter().collect()));
            held.push(other.join().unwrap());
        });
        let lists = memories[0].lock().unwrap();
        assert_eq!(lists.counts().unwrap(), [1, 20]);
        assert_eq!(lists.parts().unwrap()[0].holders, 2);
        drop(lists);
        assert!(bytes_there(&memories[0]) < HOST_PART + (1 << 20));
        // The last one gives the pages back.
        held.pop();
        assert!(bytes_there(&memories[0]) > HOST_PART);
        held.clear();
        assert!(bytes_there(&memories[0]) < 1 << 20);
        assert_eq!(memories[1].lock().unwrap().counts().unwrap()[1], 0);
    }

    #[test]
    fn weights_that_begin_alike_are_two_and_a_large_one_has_a_part_of_its_own() {
        let [memory, _] = opened_twice();
        let mut shared = SharedWeights::inside(&memory, Path::new("model"), Device::Cpu);
        let zeros = Tensor::zeros([9000], (Kind::Float, Device::Cpu));
        let other = zeros.copy();
        let _ = other.narrow(0, 8999, 1).fill_(1);
        let held = [&zeros, &other, &zeros].map(|weight| shared.hold(weight).unwrap());
        assert!(held[0] == zeros && held[1] == other && held[2].data_ptr() == held[0].data_ptr());
        let large = Tensor::zeros([HOST_PART as i64 + 5], (Kind::Uint8, Device::Cpu));
        assert_eq!(shared.hold(&large).unwrap().size(), large.size());
        // What comes after it still has its place in the first part.
        let small = shared.hold(&Tensor::ones([3], (Kind::Double, Device::Cpu))).unwrap();
        assert_eq!(small.size(), [3]);
        assert_eq!(memory.lock().unwrap().counts().unwrap(), [2, 4]);
        // Another network has parts of its own, that go when it goes.
        let mut vae = SharedWeights::inside(&memory, Path::new("vae"), Device::Cpu);
        drop(vae.hold(&Tensor::ones([7], (Kind::Half, Device::Cpu))).unwrap());
        assert_eq!(memory.lock().unwrap().counts().unwrap(), [3, 5]);
        drop(vae);
        assert_eq!(memory.lock().unwrap().counts().unwrap(), [3, 4]);
    }

    #[test]
    fn memory_that_cannot_grow_or_is_another_file_is_an_error_that_says_so() {
        let (_memory, address) = SharedMemory::create().unwrap();
        let elsewhere = Address { file: (address.file.0, address.file.1 + 1), ..address.clone() };
        let said = SharedMemory::open(&elsewhere).unwrap_err().to_string();
        assert!(said.contains("different containers"), "{said}");
        let nowhere = Address { path: "/proc/self/fd/9999".into(), ..address };
        let said = SharedMemory::open(&nowhere).unwrap_err().to_string();
        assert!(said.contains("cannot be opened"), "{said}");
        let full = Arc::new(SharedMemory(Mutex::new(File::open("/dev/full").unwrap())));
        let mut shared = SharedWeights::inside(&full, Path::new("model"), Device::Cpu);
        let said = shared.hold(&Tensor::ones([3], (Kind::Float, Device::Cpu))).unwrap_err().to_string();
        assert!(said.contains("memory that processes share cannot grow"), "{said}");
    }
}
