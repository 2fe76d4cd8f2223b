//! Today's torch-sys under the version that diffusers 0.3.1 asks for.
pub use torch_sys24::*;
