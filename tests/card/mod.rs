//! What runs on a card, on the stand-in for one (tests/fake_cuda).

mod every_allocation;
mod full_memory;
mod out_of_memory;
mod rehearsal;
mod steps;
