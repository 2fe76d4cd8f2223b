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
        let made = |mib: i64| Tensor::ones([mib << 18], (Kind::Float, Device::Cpu));
        release();
        let before = host_now();
        let first = made(96);
        let place = first.data_ptr();
        drop(first);
        assert!(host_now() > before + (90 << 20), "a freed block is kept");
        let second = made(90);
        assert_eq!(second.data_ptr(), place);
        // 90 in use, 96 the most ever: a block of 50 raises the peak by what is in use alone, for which nothing is kept.
        let third = made(50);
        assert!(host_now() < before + (160 << 20));
        drop((second, third));
        release();
        // Parts of a kept block serve, and are one block again when all of them are free.
        let whole = made(60);
        let place = whole.data_ptr();
        drop(whole);
        let parts = (made(20), made(20));
        assert_eq!(parts.0.data_ptr(), place);
        drop(parts);
        assert_eq!(made(60).data_ptr(), place);
        release();
        assert!(host_now() < before + (10 << 20), "released blocks are the system's again");
    }
}
