//! What started this process tells it by variables: its number, how many there are, and where they meet.

use crate::error::{Error, Result};

/// torchrun's port where none is given.
const USUAL_PORT: u16 = 29500;
/// Set to "True" where the launcher, torchrun's agent or our own, serves the store.
pub const LAUNCHER_SERVES_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// Has a process that is alone compute as a group of one: what groups go through is tried so on a machine with one GPU.
const GROUP_OF_ONE: &str = "LORABOOTH_GROUP_OF_ONE";
/// How often the launcher has started the ranks again.
const RESTARTS: &str = "TORCHELASTIC_RESTART_COUNT";

/// A process among those of a data parallel run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub count: usize,
    /// Its number among those of its machine.
    pub local_rank: usize,
    /// How many are on its machine.
    pub local_count: usize,
    /// Name or address of the machine where they meet.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Whether the launcher serves the store in which they meet, and not rank 0.
    pub launcher_serves: bool,
    /// How often the launcher has started them again.
    pub restarts: u64,
}

/// Variables of one launcher: rank, number of ranks, rank and number of ranks on the machine.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    count: &'static str,
    local_rank: &'static str,
    local_count: &'static str,
}

/// Torchrun and accelerate first: what starts them may set its own. The order of the others is accelerate's
/// (`accelerate/utils/environment.py`). Of Slurm's, those of the step: a batch script has a rank too, and is alone.
const LAUNCHERS: &[Launcher] = &[
    Launcher {
        name: "torchrun",
        rank: "RANK",
        count: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_count: "LOCAL_WORLD_SIZE",
    },
    Launcher {
        name: "mpirun",
        rank: "PMI_RANK",
        count: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_count: "MPI_LOCALNRANKS",
    },
    Launcher {
        name: "mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        count: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_count: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Launcher {
        name: "mpirun",
        rank: "MV2_COMM_WORLD_RANK",
        count: "MV2_COMM_WORLD_SIZE",
        local_rank: "MV2_COMM_WORLD_LOCAL_RANK",
        local_count: "MV2_COMM_WORLD_LOCAL_SIZE",
    },
    Launcher {
        name: "srun",
        rank: "SLURM_PROCID",
        count: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_count: "SLURM_STEP_TASKS_PER_NODE",
    },
];

impl Launch {
    /// What this process' variables say; none where it is alone.
    pub fn of_environment() -> Result<Option<Self>> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// What the variables that `get` gives say.
    fn of(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let has_both = |launcher: &&Launcher| get(launcher.rank).is_some() && get(launcher.count).is_some();
        let Some(launcher) = LAUNCHERS.iter().find(has_both) else { return Ok(None) };
        let number = |name: &str| -> Result<Option<usize>> {
            // Slurm's tasks of each node: `2(x3),1`.
            let Some(text) = get(name) else { return Ok(None) };
            let digits = text.split(['(', ',']).next().unwrap_or_default();
            let refuse = || Error::invalid(format!("the variable {name} is {text:?}, and must be a number"));
            digits.parse().map(Some).map_err(|_| refuse())
        };
        let rank = number(launcher.rank)?.unwrap_or(0);
        let count = number(launcher.count)?.unwrap_or(1);
        if rank >= count {
            let (names, name) = ((launcher.rank, launcher.count), launcher.name);
            return Err(Error::invalid(format!(
                "{} is {rank} and {} is {count}: ranks are numbered from 0; unset both where no {name} started this",
                names.0, names.1
            )));
        }
        if count == 1 && get(GROUP_OF_ONE).is_none() {
            return Ok(None);
        }
        let local_count = number(launcher.local_count)?.unwrap_or(count);
        let local_rank = number(launcher.local_rank)?.unwrap_or(rank % local_count.max(1));
        let port = match number("MASTER_PORT")? {
            Some(port) => u16::try_from(port)
                .map_err(|_| Error::invalid(format!("the variable MASTER_PORT is {port}, and ports end at 65535")))?,
            None => USUAL_PORT,
        };
        let nodes = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
        let first_node = nodes.filter(|_| launcher.name == "srun").map(|nodes| first_of(&nodes));
        let here = (local_count == count).then(|| "127.0.0.1".to_owned());
        let Some(host) = get("MASTER_ADDR").or(first_node).or(here) else {
            return Err(Error::invalid(format!(
                "{} started {count} processes on several machines, and the variable MASTER_ADDR does not say where they meet; set \
                 it to the address of rank 0's machine",
                launcher.name
            )));
        };
        let launcher_serves = get(LAUNCHER_SERVES_STORE).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let restarts = number(RESTARTS)?.unwrap_or(0) as u64;
        Ok(Some(Self { rank, count, local_rank, local_count, host, port, launcher_serves, restarts }))
    }

    /// Whether this process serves the store.
    pub fn serves(&self) -> bool {
        self.rank == 0 && !self.launcher_serves
    }
}

/// The first of Slurm's `node[03-07,9],login`: `node03`.
fn first_of(nodes: &str) -> String {
    match nodes.split_once('[') {
        Some((name, numbers)) if !name.contains(',') => {
            let first = numbers.split(['-', ',', ']']).next().unwrap_or_default();
            format!("{name}{first}")
        }
        _ => nodes.split(',').next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &str) -> Result<Option<Launch>> {
        let find = |name: &str| {
            let mut pairs = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(own, _)| *own == name).map(|(_, value)| value.to_owned())
        };
        Launch::of(find)
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        let launch = |rank, count, local_rank, local_count, host: &str, port, serves| {
            let (host, launcher_serves) = (host.to_owned(), false);
            (Launch { rank, count, local_rank, local_count, host, port, launcher_serves, restarts: 0 }, serves)
        };
        let by_agent = launch(0, 2, 0, 2, "h", 29500, false);
        for (variables, (expected, serves)) in [
            (
                "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=1234",
                launch(3, 4, 1, 2, "h", 1234, false),
            ),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h",
                launch(0, 2, 0, 2, "h", 29500, true),
            ),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h TORCHELASTIC_USE_AGENT_STORE=True",
                (Launch { launcher_serves: true, ..by_agent.0 }, by_agent.1),
            ),
            ("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", launch(1, 2, 1, 2, "127.0.0.1", 29500, false)),
            (
                "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2",
                launch(0, 2, 0, 2, "127.0.0.1", 29500, true),
            ),
            (
                "SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x3),1 \
                 SLURM_STEP_NODELIST=gpu[03-05,9]",
                launch(5, 7, 1, 2, "gpu03", 29500, false),
            ),
        ] {
            let found = of(variables).unwrap().unwrap();
            assert_eq!(found.serves(), serves, "{variables}");
            assert_eq!(found, expected, "{variables}");
        }
        assert_eq!(of("RANK=0 WORLD_SIZE=1 LORABOOTH_GROUP_OF_ONE=1").unwrap().unwrap().count, 1);
        assert_eq!(of("RANK=1 WORLD_SIZE=2 MASTER_ADDR=h TORCHELASTIC_RESTART_COUNT=2").unwrap().unwrap().restarts, 2);
    }

    #[test]
    fn a_process_alone_has_no_ranks_and_a_wrong_number_is_refused() {
        for variables in ["", "RANK=0", "RANK=0 WORLD_SIZE=1", "SLURM_PROCID=0 SLURM_NTASKS=4"] {
            assert_eq!(of(variables).unwrap(), None, "{variables}");
        }
        for (variables, part) in [
            ("RANK=2 WORLD_SIZE=2", "RANK is 2 and WORLD_SIZE is 2"),
            ("RANK=x WORLD_SIZE=2", "RANK is \"x\""),
            ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=70000", "65535"),
            (
                "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2",
                "MASTER_ADDR",
            ),
        ] {
            let message = of(variables).unwrap_err().to_string();
            assert!(message.contains(part), "{variables}: {message}");
        }
    }

    #[test]
    fn the_first_of_slurms_machines_is_found() {
        for (nodes, first) in [("a", "a"), ("a,b", "a"), ("n[03-07,9],b", "n03"), ("n[1,4]", "n1"), ("b,n[1-2]", "b")] {
            assert_eq!(first_of(nodes), first);
        }
    }
}
