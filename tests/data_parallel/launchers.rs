//! What starts ranks elsewhere: accelerate, Open MPI's and MPICH's mpirun, and the variables that srun sets.

use super::dreambooth;
use super::faults::{end_of, unstopped, wait_for_steps, EVERYTHING};
use super::{adapter_bytes, losses};
use crate::support::{interpreter, lorabooth_command};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program beside the tests' Python, or else where programs are.
fn program(name: &str) -> Option<PathBuf> {
    let beside = Path::new(interpreter().get_program()).with_file_name(name);
    let everywhere = std::env::var_os("PATH").unwrap_or_default();
    let elsewhere = std::env::split_paths(&everywhere).map(|folder| folder.join(name));
    std::iter::once(beside).chain(elsewhere).find(|path| path.is_file())
}

fn a_free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

#[test]
fn accelerate_and_mpirun_start_ranks_that_learn_what_those_of_processes_do() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = unstopped(folder.path(), "--processes 2");
    let accelerate =
        "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
        --dynamo_backend no --no_python --main_process_port";
    let mut started = interpreter();
    started.args(accelerate.split_whitespace()).arg(a_free_port());
    let mut launchers = vec![("accelerate", started)];
    match program("mpirun") {
        Some(mpirun) => {
            let mut started = Command::new(&mpirun);
            // Open MPI refuses to start as root, or more processes than cores; MPICH does not know its flags.
            started.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            started.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe").env("MASTER_PORT", a_free_port());
            started.env("OPAL_PREFIX", mpirun.parent().unwrap().parent().unwrap()).args(["-n", "2"]);
            launchers.push(("mpirun", started));
        }
        None => println!("skipped: there is no mpirun"),
    }
    for (name, mut launcher) in launchers {
        let out = folder.path().join(name);
        launcher.arg(env!("CARGO_BIN_EXE_lorabooth")).args(dreambooth(&out, EVERYTHING));
        let child = launcher.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = end_of(child, 120);
        assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
        assert!((adapter_bytes(&out), losses(&out)) == wanted, "{name}");
        let processes = super::read_json(out.join("run.json"))["processes"].clone();
        assert_eq!(processes, 2, "{name}");
    }
}

/// Each task in a process with the variables that srun gives it: two on the first machine of a step, whose name is this one's.
#[test]
fn tasks_with_the_variables_of_srun_meet_on_its_first_machine() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = unstopped(folder.path(), "--processes 2");
    let (out, port) = (folder.path().join("out"), a_free_port());
    let children: Vec<_> = (0..2)
        .map(|task: usize| {
            let mut command = lorabooth_command(&dreambooth(&out, EVERYTHING));
            for (name, value) in [
                ("SLURM_JOB_ID", "7"),
                ("SLURM_NTASKS", "2"),
                ("SLURM_PROCID", &task.to_string()),
                ("SLURM_LOCALID", &task.to_string()),
                ("SLURM_NODEID", "0"),
                ("SLURM_STEP_NUM_TASKS", "2"),
                ("SLURM_STEP_TASKS_PER_NODE", "2"),
                ("SLURM_STEP_NODELIST", "localhost"),
                ("MASTER_PORT", &port),
            ] {
                command.env(name, value);
            }
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    wait_for_steps(&out, 1);
    for child in children {
        let ended = end_of(child, 120);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert!((adapter_bytes(&out), losses(&out)) == wanted);
}
