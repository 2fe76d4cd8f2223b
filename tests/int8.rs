//! INT8 weights and products are those of bitsandbytes' LLM.int8().
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

mod support;

use lorabooth::weights::Int8Weight;
use serde_json::json;
use support::{made, read, relative_norm_error};
use tch::Kind;

#[test]
fn codes_equal_bitsandbytes_and_products_are_as_exact() {
    for (outliers, threshold) in [(json!([5, 17]), 6.0), (json!([]), 6.0), (json!([3]), 0.0)] {
        let options = json!({ "rows": 20, "inputs": 64, "outputs": 48, "outliers": outliers, "threshold": threshold });
        let theirs = read(made("int8_linear.py", "int8.safetensors", &options));
        let int8 = Int8Weight::quantise(&theirs["weight"], Kind::Float, threshold);
        assert_eq!(int8.codes(), &theirs["codes"]);
        assert!(relative_norm_error(&(int8.scales() * 127.0), &theirs["largest"]) < 1e-6);

        let ys = int8.run(&theirs["xs"], Some(&theirs["bias"]));
        let error = |ys: &tch::Tensor| relative_norm_error(&ys.to_kind(Kind::Double), &theirs["exact"]);
        let (ours, bitsandbytes) = (error(&ys), error(&theirs["ys"]));
        println!("outliers {outliers}, threshold {threshold}: error {ours:.1e}, bitsandbytes' {bitsandbytes:.1e}");
        assert!(ours <= bitsandbytes * 1.02, "{ours:.2e} is above bitsandbytes' {bitsandbytes:.2e}");
    }
}
