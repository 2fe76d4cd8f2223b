//! c10d: the store in which processes meet, and sums, broadcasts and gathers between them over gloo, on GPUs over NCCL.

use super::{check, raw};
use crate::error::{Error, Result};
use std::ffi::{c_char, CString};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// Opaque to Rust.
#[repr(C)]
struct CStore {
    _private: [u8; 0],
}

/// Opaque to Rust.
#[repr(C)]
pub(super) struct CGroup {
    _private: [u8; 0],
}

extern "C" {
    fn lorabooth_store_open(
        host: *const c_char,
        port: *mut i64,
        serves: bool,
        timeout_ms: i64,
        out: *mut *mut CStore,
    ) -> *mut c_char;
    fn lorabooth_store_close(store: *mut CStore);
    fn lorabooth_store_set(store: *mut CStore, key: *const c_char, value: *const c_char, length: i64) -> *mut c_char;
    fn lorabooth_store_get(
        store: *mut CStore,
        key: *const c_char,
        value: *mut *mut c_char,
        length: *mut i64,
    ) -> *mut c_char;
    fn lorabooth_group_join(
        store: *mut CStore,
        prefix: *const c_char,
        own_address: *const c_char,
        rank: i64,
        world: i64,
        timeout_ms: i64,
        out: *mut *mut CGroup,
    ) -> *mut c_char;
    fn lorabooth_group_leave(group: *mut CGroup);
    fn lorabooth_group_sum(group: *mut CGroup, tensor: *mut C_tensor) -> *mut c_char;
    fn lorabooth_group_broadcast(group: *mut CGroup, tensor: *mut C_tensor, root: i64) -> *mut c_char;
    fn lorabooth_group_gather(group: *mut CGroup, tensor: *mut C_tensor, out: *const *mut C_tensor) -> *mut c_char;
    fn lorabooth_nccl_id_bytes() -> i64;
    fn lorabooth_nccl_id(out: *mut c_char) -> *mut c_char;
    fn lorabooth_nccl_give_up();
    fn lorabooth_group_use_nccl(group: *mut CGroup, index: i64, name: *const c_char) -> *mut c_char;
}

/// Another rank has failed: sums that go through NCCL, which does not see that, fail too. Gloo sees it.
pub fn give_up_sums() {
    // SAFETY: sets one atomic of the process.
    unsafe { lorabooth_nccl_give_up() }
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("a name between processes has a NUL byte"))
}

fn milliseconds(time: Duration) -> i64 {
    time.as_millis().min(i64::MAX as u128) as i64
}

/// A connection to the keys and values that processes share: c10d's TCPStore.
#[derive(Debug)]
pub struct Store(*mut CStore);
// SAFETY: c10d's client locks itself, and only one thread at a time can use it here: its methods take `&mut self`.
unsafe impl Send for Store {}

impl Store {
    /// Serves a store at a free port of this machine, and tells it.
    pub fn serve(timeout: Duration) -> Result<(Self, u16)> {
        Self::open("127.0.0.1", 0, true, timeout)
    }

    /// Connects to the store at `host`, which this process serves if it `serves`; waits as long as `timeout` for it.
    pub fn connect(host: &str, port: u16, serves: bool, timeout: Duration) -> Result<Self> {
        Self::open(host, port, serves, timeout).map(|(store, _)| store)
    }

    fn open(host: &str, port: u16, serves: bool, timeout: Duration) -> Result<(Self, u16)> {
        let (host, mut port, mut out) = (c_text(host)?, i64::from(port), std::ptr::null_mut());
        // SAFETY: the text and both places to write to live through the call.
        check(unsafe { lorabooth_store_open(host.as_ptr(), &mut port, serves, milliseconds(timeout), &mut out) })?;
        Ok((Self(out), port as u16))
    }

    /// Sets the value of `key`.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_text(key)?;
        // SAFETY: the store is open, and both texts live through the call.
        check(unsafe { lorabooth_store_set(self.0, key.as_ptr(), value.as_ptr().cast(), value.len() as i64) })
    }

    /// The value of `key`, if it was set.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = c_text(key)?;
        let (mut value, mut length) = (std::ptr::null_mut::<c_char>(), -1);
        // SAFETY: the store is open, and the text and both places to write to live through the call.
        check(unsafe { lorabooth_store_get(self.0, key.as_ptr(), &mut value, &mut length) })?;
        if value.is_null() {
            return Ok(None);
        }
        // SAFETY: a malloc'ed value of so many bytes that is now ours.
        let bytes = unsafe {
            let bytes = std::slice::from_raw_parts(value.cast::<u8>(), length.max(0) as usize).to_vec();
            libc::free(value.cast());
            bytes
        };
        Ok(Some(bytes))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: ours, and not used any more.
        unsafe { lorabooth_store_close(self.0) }
    }
}

/// The processes that compute together, as one of them sees it. What is exchanged is exchanged by all of them, in the same order.
#[derive(Debug)]
pub struct ProcessGroup {
    pub(super) group: *mut CGroup,
    world: usize,
}
// SAFETY: c10d's groups may be called from any thread; that all ranks make the same calls in one order is the caller's to see to.
unsafe impl Send for ProcessGroup {}
// SAFETY: the same.
unsafe impl Sync for ProcessGroup {}

impl ProcessGroup {
    /// Comes together with the other ranks of `world`, which listen under their own addresses, by keys of `store` that begin with
    /// `prefix`. No exchange waits longer than `timeout`.
    pub fn join(
        store: &mut Store,
        prefix: &str,
        own_address: &str,
        (rank, world): (usize, usize),
        timeout: Duration,
    ) -> Result<Self> {
        let (prefix, address, mut group) = (c_text(prefix)?, c_text(own_address)?, std::ptr::null_mut());
        let (rank, of, timeout) = (rank as i64, world as i64, milliseconds(timeout));
        // SAFETY: the store is open, and the texts and the place to write to live through the call.
        check(unsafe {
            lorabooth_group_join(store.0, prefix.as_ptr(), address.as_ptr(), rank, of, timeout, &mut group)
        })?;
        Ok(Self { group, world })
    }

    /// Adds `tensor` over all ranks, in place.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: the group is joined, and the tensor lives through the call.
        check(unsafe { lorabooth_group_sum(self.group, raw(tensor)) })
    }

    /// Makes `tensor` that of rank `root`, in place. Tensors of a GPU go by way of the host.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        let on_host = tensor.detach().to_device(Device::Cpu).contiguous();
        // SAFETY: the group is joined, and the tensor lives through the call.
        check(unsafe { lorabooth_group_broadcast(self.group, raw(&on_host), root as i64) })?;
        tch::no_grad(|| tensor.copy_(&on_host));
        Ok(())
    }

    /// The `tensor`s of all ranks, which are of one shape and on the host, in the ranks' order.
    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let gathered: Vec<Tensor> = (0..self.world).map(|_| tensor.zeros_like()).collect();
        let places = super::handles(&gathered);
        // SAFETY: the group is joined, there is a place for each rank, and all live through the call.
        check(unsafe { lorabooth_group_gather(self.group, raw(tensor), places.as_ptr()) })?;
        Ok(gathered)
    }

    /// What each rank gives, in the ranks' order.
    pub fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.gather(&Tensor::from_slice(&[own.len() as i64]))?;
        let lengths: Vec<usize> = lengths.iter().map(|length| length.int64_value(&[0]) as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.world]);
        }
        let padded = Tensor::zeros([longest as i64], (Kind::Uint8, Device::Cpu));
        padded.narrow(0, 0, own.len() as i64).copy_(&Tensor::from_slice(own));
        let gathered = self.gather(&padded)?;
        let whole = gathered.into_iter().zip(lengths).map(|(bytes, length)| {
            let mut bytes = Vec::<u8>::try_from(bytes)?;
            bytes.truncate(length);
            Ok(bytes)
        });
        whole.collect()
    }

    /// Has sums on GPUs go through NCCL, where each rank has it: `index` is this rank's GPU. Whether they do.
    pub fn use_nccl(&self, index: usize) -> Result<bool> {
        // SAFETY: a constant.
        let mut id = vec![0u8; unsafe { lorabooth_nccl_id_bytes() } as usize];
        // SAFETY: as many bytes as a name has.
        let has_nccl = check(unsafe { lorabooth_nccl_id(id.as_mut_ptr().cast()) }).is_ok();
        let ids = self.gather_bytes(if has_nccl { &id } else { &[] })?;
        if ids.iter().any(Vec::is_empty) {
            return Ok(false);
        }
        // SAFETY: the group is joined, and the first rank's name is as long as ours.
        check(unsafe { lorabooth_group_use_nccl(self.group, index as i64, ids[0].as_ptr().cast()) })?;
        Ok(true)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: ours, and not used any more.
        unsafe { lorabooth_group_leave(self.group) }
    }
}
