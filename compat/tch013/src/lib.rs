//! Today's tch under the version that diffusers 0.3.1 asks for.
pub use tch24::*;
