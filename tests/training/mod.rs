//! Training beside torch, peft and bitsandbytes; runs that are stopped, go on, and mend themselves.

mod dreambooth;
mod interrupted;
mod numbers;
mod offload;
mod optimizers;
mod resume;
