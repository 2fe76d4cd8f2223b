//! Memory of tensors on the host: freed blocks are kept for the next tensor, within the peak of what is in use.

extern "C" {
    fn lorabooth_use_host_allocator();
    fn lorabooth_release_host_blocks();
}

/// Has libtorch take its host memory from the allocator of this folder. To be called before the first tensor is made.
pub fn install() {
    // SAFETY: replaces an object of libtorch's by one that is never freed.
    unsafe { lorabooth_use_host_allocator() }
}

/// Gives blocks that are kept back to the system.
pub fn release() {
    // SAFETY: takes the allocator's own lock.
    unsafe { lorabooth_release_host_blocks() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::memory::host_now;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn what_is_freed_is_used_again_and_goes_back_on_demand() {
        install();
        // Other tests of this process take memory too, now and then.
        let outcomes: Vec<_> = (0..5).map(|_| keeps_and_gives_back()).take_while(Result::is_err).collect();
        assert!(outcomes.len() < 5, "{outcomes:?}");
    }

    fn keeps_and_gives_back() -> Result<(), &'static str> {
        let made = |mib: i64| Tensor::ones([mib << 18], (Kind::Float, Device::Cpu));
        let holds = |what: bool, claim| if what { Ok(()) } else { Err(claim) };
        release();
        let before = host_now();
        let first = made(96);
        let place = first.data_ptr();
        drop(first);
        holds(host_now() > before + (90 << 20), "a freed block is kept")?;
        let second = made(90);
        holds(second.data_ptr() == place, "a kept block serves")?;
        // 90 in use, 96 the most ever: a block of 50 raises the peak by what is in use alone, for which nothing is kept.
        let third = made(50);
        holds(host_now() < before + (160 << 20), "nothing is kept beyond the peak")?;
        drop((second, third));
        release();
        let whole = made(60);
        let place = whole.data_ptr();
        drop(whole);
        let parts = (made(20), made(20));
        holds(parts.0.data_ptr() == place, "parts of a kept block serve")?;
        drop(parts);
        holds(made(60).data_ptr() == place, "they are one block again when all of them are free")?;
        release();
        holds(host_now() < before + (10 << 20), "released blocks are the system's again")
    }
}
