//! The stand-in finds what it is there to find: each mistake is made by this very test in a process of its own.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::stand_in::bring_along;
use crate::support::test_alone;
use lorabooth::libtorch::memory::{pinned, synchronize};
use lorabooth::libtorch::shared_memory::{SharedMemory, SharedWeights};
use lorabooth::libtorch::side_stream::SideStream;
use lorabooth::libtorch::startup::cuda_devices;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const CARD: Device = Device::Cuda(0);
/// Names the mistake that this process is to make.
const MISTAKE: &str = "LORABOOTH_TEST_MISTAKE";

fn on_card(bytes: i64) -> Tensor {
    Tensor::zeros([bytes], (Kind::Uint8, CARD))
}

/// A copy to the card that goes on beside what it computes.
fn copying(from: &Tensor) -> (SideStream, Tensor) {
    let (mut lane, to) = (SideStream::new(CARD).unwrap(), on_card(from.size()[0]));
    lane.copy(&[to.shallow_clone()], &[from.shallow_clone()]).unwrap();
    (lane, to)
}

fn make(mistake: &str) {
    assert_eq!(cuda_devices(), 1);
    let host = pinned(4096).unwrap().fill_(3);
    match mistake {
        "none" => {
            let (mut lane, to) = copying(&host);
            lane.wait().unwrap();
            assert_eq!((to + 1).sum(Kind::Int64).int64_value(&[]), 4 * 4096);
            assert_eq!(Tensor::ones([3], (Kind::Float, CARD)).sum(Kind::Float).double_value(&[]), 3.0);
        }
        "read while written" => drop(copying(&host).1 + 1),
        "written while read" => {
            let (_lane, to) = copying(&host);
            let _ = to.shallow_clone().fill_(1);
        }
        "freed while written" => {
            let (lane, to) = copying(&host);
            drop(to);
            drop(lane);
        }
        "not pinned" => drop(copying(&Tensor::zeros([4096], (Kind::Uint8, Device::Cpu)))),
        "unpinned early" => {
            let (mut lane, _to) = copying(&host);
            lane.wait().unwrap();
            drop(host);
        }
        "unregistered early" => {
            SharedMemory::create().unwrap().0.install();
            let mut shared = SharedWeights::of(Path::new("model"), CARD).unwrap();
            let held = shared.hold(&Tensor::ones([4096], (Kind::Uint8, Device::Cpu))).unwrap();
            let (mut lane, _to) = copying(&held);
            lane.wait().unwrap();
            drop((held, shared));
        }
        "pinned memory written early" => {
            let (mut lane, _to) = copying(&host);
            lane.wait().unwrap();
            let _ = host.shallow_clone().fill_(4);
            synchronize(CARD).unwrap();
        }
        "two devices" => drop(Tensor::ones([3], (Kind::Float, CARD)) + Tensor::ones([3], (Kind::Float, Device::Cpu))),
        "few rows in int8" => {
            let bytes = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Int8, CARD));
            drop(bytes([16, 8]).internal_int_mm(&bytes([8, 8])));
        }
        "memory full" => drop((0..40).map(|_| on_card(1 << 20)).collect::<Vec<_>>()),
        _ => panic!("no such mistake"),
    }
}

/// Does nothing but where [`MISTAKE`] is set, in the processes that the test below starts.
#[test]
fn a_mistake() {
    if let Ok(mistake) = std::env::var(MISTAKE) {
        make(&mistake);
        println!("nothing was found");
    }
}

#[test]
fn each_mistake_is_found() {
    let said = |mistake: &str, variables: &[(&str, &str)]| {
        let mut command = test_alone("card::steps::mistakes::a_mistake");
        command.env(MISTAKE, mistake);
        bring_along(&mut command);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, text) = said("none", &[]);
    assert!(code == Some(0) && text.contains("nothing was found"), "{text}");
    for (mistake, words) in [
        ("read while written", "still writes: there is no event between them"),
        ("written while read", "no event between them"),
        ("freed while written", "memory is freed that stream 1 still uses"),
        ("not pinned", "memory is not pinned"),
        ("unpinned early", "freed before the copy from it has ended"),
        ("unregistered early", "unregistered before the copy from it has ended"),
        ("pinned memory written early", "written before the copy from it had ended"),
    ] {
        let (code, text) = said(mistake, &[]);
        assert!(code == Some(86) && text.contains(words), "{mistake}: {code:?} {text}");
    }
    for (mistake, words, variables) in [
        ("two devices", "Expected all tensors to be on the same device", [("FAKE_CUDA_MIB", "64")]),
        ("few rows in int8", "needs to be greater than 16", [("FAKE_CUDA_MIB", "64")]),
        ("memory full", "CUDA out of memory. Tried to allocate 1.00 MiB", [("FAKE_CUDA_MIB", "8")]),
        ("none", "CUDA out of memory", [("FAKE_CUDA_FAIL_AT", "2")]),
    ] {
        let (code, text) = said(mistake, &variables);
        assert!(code == Some(101) && text.contains(words), "{mistake}: {code:?} {text}");
    }
}
