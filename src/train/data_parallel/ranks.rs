//! The ranks of a run, as one of them sees the others.

use super::launch::Launch;
use super::watch::{full_elsewhere, End, Watch};
use crate::error::{Error, Result};
use crate::libtorch::process_group::{ProcessGroup, Store};
use crate::libtorch::shared_memory::{self, Address, SharedMemory};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::{Map, Value};
use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Tensor};

/// What a micro-step's seed grows by from rank to rank.
const SEED_STRIDE: i64 = 1_000_003;

/// How long a process waits for the store of its launcher.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(20);

/// The ranks of a run; by default it has but this one, and nothing is exchanged. Clones are of the same run.
#[derive(Debug, Clone, Default)]
pub struct Ranks(Option<Arc<Members>>);

#[derive(Debug)]
struct Members {
    launch: Launch,
    group: Arc<ProcessGroup>,
    watch: Watch,
}

impl Ranks {
    /// Comes together with the other ranks of `launch`. No exchange waits longer than `timeout` for a rank.
    pub fn join(launch: &Launch, timeout: Duration) -> Result<Self> {
        let Launch { host, port, rank, count, .. } = launch;
        let prefix = format!("lorabooth/{}", launch.restarts);
        let not_there = |error: Error| cannot_meet(launch, &error.to_string());
        // A launcher's store is there before its processes are.
        let patience = if launch.launcher_serves { timeout.min(LAUNCHER_PATIENCE) } else { timeout };
        let mut store = Store::connect(host, *port, launch.serves(), patience).map_err(not_there)?;
        let for_watch = Store::connect(host, *port, false, timeout).map_err(not_there)?;
        let watch = Watch::begin(for_watch, prefix.clone(), launch.clone(), timeout)?;
        let address = own_address(host, *port);
        let joined = ProcessGroup::join(&mut store, &format!("{prefix}/gloo"), &address, (*rank, *count), timeout);
        let group = joined.map_err(|error| watch.cause_of(&error))?;
        // Who serves the store does so as long as this client lives.
        std::mem::forget(store);
        Ok(Self(Some(Arc::new(Members { launch: launch.clone(), group: Arc::new(group), watch }))))
    }

    /// Of this process.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |members| members.launch.rank)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |members| members.launch.count)
    }

    /// Whether this one writes, shows and samples.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are no others.
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it is the first of its machine, and the machine not the first rank's.
    pub fn is_first_elsewhere(&self) -> bool {
        self.0.as_ref().is_some_and(|members| members.launch.local_rank == 0 && members.launch.rank > 0)
    }

    /// Whether all of them are on this machine.
    pub fn share_a_machine(&self) -> bool {
        self.0.as_ref().is_none_or(|members| members.launch.local_count == members.launch.count)
    }

    /// How often the launcher has started them again.
    pub fn restarts(&self) -> u64 {
        self.0.as_ref().map_or(0, |members| members.launch.restarts)
    }

    /// The number of this process among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.0.as_ref().map_or(0, |members| members.launch.local_rank)
    }

    /// Whether this rank does the work of number `index` where each does its share.
    pub fn has_share(&self, index: usize) -> bool {
        index % self.count() == self.rank()
    }

    /// The seed of this rank's draws in a micro-step of a run with `seed`.
    pub fn seed(&self, seed: i64, micro_step: u64) -> i64 {
        seed.wrapping_add(micro_step as i64).wrapping_add(SEED_STRIDE.wrapping_mul(self.rank() as i64))
    }

    /// So many steps are done. An error where another rank has ended, or is not heard of.
    pub fn has_done(&self, step: u64) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |members| members.watch.has_done(step))
    }

    /// Waits for the other ranks to come here, however long that takes while they live.
    pub fn meet(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |members| members.watch.meet())
    }

    /// Has all ranks leave what they wait for each other in, each with [`Error::OutOfMemory`] as `error` is, and come here.
    pub fn come_together_anew(&self, error: &Error) -> Result<()> {
        let why = match error {
            Error::OutOfMemory { device, cause, .. } => Some((device.clone(), cause.clone())),
            _ => None,
        };
        self.0.as_ref().map_or(Ok(()), |members| members.watch.come_together_anew(why))
    }

    /// Memory of a rank is full, as all of them know: the error of it on each. `own` is that of a rank whose memory it is.
    pub fn share_full_memory(&self, own: Option<Error>) -> Error {
        let Some(members) = &self.0 else { return own.unwrap_or_else(|| Error::Internal("no memory is full".into())) };
        let said = match &own {
            Some(Error::OutOfMemory { device, cause, .. }) => {
                (format!("{device} of {}", members.watch.own_name()), cause.clone())
            }
            _ => Default::default(),
        };
        let all = serde_json::to_vec(&said).map_err(invalid).and_then(|said| self.gather(said));
        let others = all.map(|all| {
            let all = all.iter().filter_map(|said| serde_json::from_slice::<(String, String)>(said).ok());
            all.into_iter().find(|(device, _)| !device.is_empty()).unwrap_or_default()
        });
        match (own, others) {
            (_, Err(error)) => error,
            (Some(own), _) => own,
            (None, Ok((device, cause))) => full_elsewhere(device, cause),
        }
    }

    /// What each rank gives, in the ranks' order.
    pub fn gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let Some(members) = &self.0 else { return Ok(vec![own]) };
        self.meet()?;
        members.exchange(|group| group.gather_bytes(&own))
    }

    /// All that the ranks have in their shares. Where one of them was interrupted in its share, all of them are.
    pub fn collect<T: Serialize + DeserializeOwned>(&self, own: Result<Vec<T>>) -> Result<Vec<T>> {
        if self.is_alone() {
            return own;
        }
        let own = match own {
            Err(Error::Interrupted(_)) => Vec::new(),
            own => serde_json::to_vec(&own?).map_err(invalid)?,
        };
        let all = self.gather(own)?;
        if all.iter().any(Vec::is_empty) {
            return Err(Error::Interrupted(String::new()));
        }
        let shares: Vec<Vec<T>> =
            all.iter().map(|share| serde_json::from_slice(share).map_err(invalid)).collect::<Result<_>>()?;
        Ok(shares.into_iter().flatten().collect())
    }

    /// What the first rank has, in place of what each would have.
    pub fn of_first<T: Serialize + DeserializeOwned>(&self, own: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_alone() {
            return own();
        }
        let own = if self.is_first() { serde_json::to_vec(&own()?).map_err(invalid)? } else { Vec::new() };
        serde_json::from_slice(&self.gather(own)?[0]).map_err(invalid)
    }

    /// Makes `tensors` those of rank `root`, in place: each rank has as many, of the same shapes.
    pub fn equalise<'a>(&self, tensors: impl IntoIterator<Item = &'a mut Tensor>, root: usize) -> Result<()> {
        let Some(members) = &self.0 else { return Ok(()) };
        self.meet()?;
        let mut tensors = tensors.into_iter();
        members.exchange(|group| tensors.try_for_each(|tensor| group.broadcast(tensor, root)))
    }

    /// Refuses to train where `what` of this rank is not that of the first.
    pub fn agree(&self, what: &str, own: &str) -> Result<()> {
        let all = self.gather(own.as_bytes().to_vec())?;
        match all.iter().position(|other| *other != all[0]) {
            Some(rank) => {
                let texts = [0, rank].map(|rank| String::from_utf8_lossy(&all[rank]).into_owned());
                let message = format!("the ranks have different {what}: rank 0 {}, rank {rank} {}", texts[0], texts[1]);
                Err(Error::RanksDiffer(format!("{message}; each machine must have the same files")))
            }
            None => Ok(()),
        }
    }

    /// Refuses to train where one of the options `own`, by their names, is not that of the first rank.
    pub fn agree_on_options(&self, own: &Map<String, Value>) -> Result<()> {
        let Some(members) = &self.0 else { return Ok(()) };
        let own = serde_json::to_vec(&(members.watch.own_name(), own)).map_err(invalid)?;
        let all: Vec<(String, Map<String, Value>)> =
            self.gather(own)?.iter().map(|of| serde_json::from_slice(of).map_err(invalid)).collect::<Result<_>>()?;
        for (name, options) in &all[1..] {
            let names = all[0].1.keys().chain(options.keys());
            if let Some(option) = names.into_iter().find(|option| all[0].1.get(*option) != options.get(*option)) {
                let value = |of: &Map<String, Value>| match of.get(option) {
                    Some(Value::Null) | None => "not given".to_owned(),
                    Some(value) => value.to_string(),
                };
                let [first, other] = [&all[0].1, options].map(value);
                return Err(Error::RanksDiffer(format!(
                    "the ranks were started with different options: ⟨{option}⟩ is {first} for {} and {other} for {name}; give all of \
                     them the same",
                    all[0].0
                )));
            }
        }
        Ok(())
    }

    /// Adds `tensor` over all ranks, in place.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |members| members.exchange(|group| group.sum(tensor)))
    }

    /// Has what is added on `device` go through NCCL where each rank has it; what it goes through, in words.
    pub fn use_device(&self, device: Device) -> Result<&'static str> {
        match (&self.0, device) {
            (Some(members), Device::Cuda(index)) => {
                self.meet()?;
                let has_nccl = members.exchange(|group| group.use_nccl(index))?;
                Ok(if has_nccl { "NCCL" } else { "Gloo by way of the host" })
            }
            _ => Ok("Gloo"),
        }
    }

    /// Has the ranks of each machine hold frozen weights that are on the host in memory that they share. Those that cannot have their own.
    pub fn share_host_memory(&self) -> Result<()> {
        let Some(Members { launch, .. }) = self.0.as_deref() else { return Ok(()) };
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let made = (launch.local_rank == 0 && launch.local_count > 1).then(SharedMemory::create).transpose();
        let (own, address) = made.map(Option::unzip).unwrap_or_else(|error| {
            shared_memory::give_up(&error);
            (None, None)
        });
        let offer = serde_json::to_vec(&(&machine, address)).map_err(invalid)?;
        let offers: Vec<(String, Option<Address>)> = self
            .gather(offer)?
            .iter()
            .map(|offer| serde_json::from_slice(offer).map_err(invalid))
            .collect::<Result<_>>()?;
        let of_others = || offers.iter().filter(|(of, _)| *of == machine).find_map(|(_, address)| address.as_ref());
        let memory = match own {
            Some(own) => Some(own),
            None => of_others().map(SharedMemory::open).transpose().unwrap_or_else(|error| {
                shared_memory::give_up(&error);
                None
            }),
        };
        memory.into_iter().for_each(SharedMemory::install);
        // What was made stays open until all have it.
        self.meet()
    }

    /// The group, and what makes an error of it name the rank that is its cause.
    pub(super) fn group(&self) -> Option<Arc<ProcessGroup>> {
        self.0.as_ref().map(|members| members.group.clone())
    }

    /// The rank that is the cause of an exchange that failed.
    pub(super) fn cause_of(&self, error: Error) -> Error {
        self.0.as_ref().map_or_else(|| Error::Internal(error.to_string()), |members| members.watch.cause_of(&error))
    }

    /// Whether the first rank has ended by itself, and says why.
    pub fn first_has_ended(&self) -> bool {
        self.0.as_ref().is_some_and(|members| members.watch.first_has_ended())
    }

    /// Tells the other ranks how this one ends.
    pub fn end<T>(&self, outcome: &Result<T>) {
        let Some(members) = &self.0 else { return };
        members.watch.end(match outcome {
            Ok(_) => End::Done,
            Err(Error::Interrupted(_)) => End::Interrupted,
            // One that ends because of another's end hands on what it heard.
            Err(Error::OtherRank(text)) => End::Failed(text.clone(), usize::MAX),
            Err(error) => End::Failed(error.to_string(), members.launch.rank),
        });
        if outcome.is_err() {
            // To take leave of a group in which exchanges are under way is to wait for them.
            std::mem::forget(members.clone());
        }
    }
}

impl Members {
    fn exchange<T>(&self, exchange: impl FnOnce(&ProcessGroup) -> Result<T>) -> Result<T> {
        exchange(&self.group).map_err(|error| self.watch.cause_of(&error))
    }
}

fn invalid(error: serde_json::Error) -> Error {
    Error::Internal(error.to_string())
}

/// The address of this machine that `host` is reached from, by IPv4 or else IPv6: what the others reach it by.
fn own_address(host: &str, port: u16) -> String {
    let address = |any: &str| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect((host, port)).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    ["0.0.0.0:0", "[::]:0"].into_iter().find_map(address).unwrap_or_else(|| "127.0.0.1".to_owned())
}

/// Why the store in which ranks meet cannot be had, from what c10d says.
fn cannot_meet(launch: &Launch, said: &str) -> Error {
    let Launch { host, port, .. } = launch;
    let has_address = || (host.as_str(), *port).to_socket_addrs().is_ok_and(|mut found| found.next().is_some());
    Error::OtherRank(if launch.serves() && said.contains("failed to listen") {
        format!("another program listens at port {port} of this machine, where the ranks are to meet; give all of them another MASTER_PORT")
    } else if !has_address() {
        format!("no machine called {host} is found, where the ranks are to meet; MASTER_ADDR must be a name or an address of rank 0's machine")
    } else {
        let said = said.trim_start_matches("libtorch: ").split(". ").next().unwrap_or_default().trim_end_matches('.');
        format!(
            "cannot reach the other ranks at {host}:{port} ({said}); MASTER_ADDR and MASTER_PORT say where they meet, and rank 0 must \
             have been started"
        )
    })
}
