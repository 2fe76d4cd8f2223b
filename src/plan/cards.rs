//! Graphics cards by name: how much memory a run finds on one, and in which 16-bit dtype it computes, for plans of runs on cards
//! that are not in this machine.

use crate::error::{Error, Result};

/// A card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// As `--for` takes it.
    pub name: &'static str,
    /// As it is sold, in GB (which are GiB).
    pub sold_gb: u64,
    /// CUDA compute capability.
    pub capability: (i64, i64),
    /// Error correction keeps a sixteenth of its memory (GDDR of data-centre cards).
    ecc: bool,
}

const fn card(name: &'static str, sold_gb: u64, capability: (i64, i64)) -> Card {
    Card { name, sold_gb, capability, ecc: false }
}

const fn with_ecc(name: &'static str, sold_gb: u64, capability: (i64, i64)) -> Card {
    Card { name, sold_gb, capability, ecc: true }
}

/// Of cards that are sold in several sizes, the smallest has the plain name.
/// Sizes: the makers' data sheets. Capabilities: NVIDIA's list at developer.nvidia.com/cuda-gpus.
const CARDS: &[Card] = &[
    card("1060", 6, (6, 1)),
    card("1070", 8, (6, 1)),
    card("1080", 8, (6, 1)),
    card("1080ti", 11, (6, 1)),
    card("1660", 6, (7, 5)),
    card("2060", 6, (7, 5)),
    card("2060-12gb", 12, (7, 5)),
    card("2070", 8, (7, 5)),
    card("2080", 8, (7, 5)),
    card("2080ti", 11, (7, 5)),
    card("3050", 8, (8, 6)),
    card("3060", 12, (8, 6)),
    card("3060ti", 8, (8, 6)),
    card("3070", 8, (8, 6)),
    card("3070ti", 8, (8, 6)),
    card("3080", 10, (8, 6)),
    card("3080-12gb", 12, (8, 6)),
    card("3080ti", 12, (8, 6)),
    card("3090", 24, (8, 6)),
    card("3090ti", 24, (8, 6)),
    card("4060", 8, (8, 9)),
    card("4060ti", 8, (8, 9)),
    card("4060ti-16gb", 16, (8, 9)),
    card("4070", 12, (8, 9)),
    card("4070ti", 12, (8, 9)),
    card("4080", 16, (8, 9)),
    card("4090", 24, (8, 9)),
    card("5060", 8, (12, 0)),
    card("5060ti", 8, (12, 0)),
    card("5060ti-16gb", 16, (12, 0)),
    card("5070", 12, (12, 0)),
    card("5070ti", 16, (12, 0)),
    card("5080", 16, (12, 0)),
    card("5090", 32, (12, 0)),
    card("p100", 16, (6, 0)),
    card("v100", 16, (7, 0)),
    card("v100-32gb", 32, (7, 0)),
    with_ecc("t4", 16, (7, 5)),
    with_ecc("a10", 24, (8, 6)),
    with_ecc("a10g", 24, (8, 6)),
    with_ecc("l4", 24, (8, 9)),
    with_ecc("l40s", 48, (8, 9)),
    card("a6000", 48, (8, 6)),
    card("a100", 40, (8, 0)),
    card("a100-80gb", 80, (8, 0)),
    card("h100", 80, (9, 0)),
    card("h200", 141, (9, 0)),
];

/// What the driver and the display keep of any card, and of every 100 bytes of it one.
const DRIVER: u64 = 200 << 20;
/// A process' CUDA context with libtorch's kernels in it.
const CONTEXT: u64 = 500 << 20;

impl Card {
    /// The card called `name`, in any of the usual spellings: `t4`, `RTX 3060`, `NVIDIA GeForce RTX 4060 Ti 16GB`.
    pub fn named(name: &str) -> Result<Self> {
        let wanted = plain(name);
        let found = CARDS.iter().find(|card| {
            let known = plain(card.name);
            // Where the size is said of a card that has one size alone, or is its smallest.
            wanted == known || wanted == format!("{known}{}gb", card.sold_gb)
        });
        found.copied().ok_or_else(|| {
            let known: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
            Error::invalid(format!(
                "⟨for⟩: the card `{name}` is not a known card; give its memory with ⟨fit⟩ and ⟨device⟩ cuda, or one of {}",
                known.join(", ")
            ))
        })
    }

    /// Bytes that a training run finds free on an otherwise unused card: without what error correction, the driver and the process'
    /// CUDA context take.
    pub fn usable_bytes(&self) -> u64 {
        let sold = self.sold_gb << 30;
        let addressed = if self.ecc { sold / 16 * 15 } else { sold };
        addressed - addressed / 100 - DRIVER - CONTEXT
    }

    /// The other sizes in which the card of this name is sold.
    pub fn other_sizes(&self) -> Vec<&'static str> {
        let prefix = format!("{}-", self.name);
        CARDS.iter().map(|card| card.name).filter(|name| name.starts_with(&prefix)).collect()
    }
}

/// `name` without its maker, its line of products, its case, spaces and dashes.
fn plain(name: &str) -> String {
    let letters: String = name.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let mut rest = letters.as_str();
    for word in ["nvidia", "geforce", "tesla", "quadro", "rtx", "gtx"] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.replace("sxm", "").replace("pcie", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_the_names_that_people_write() {
        for (name, card, gb) in [
            ("t4", "t4", 16),
            ("Tesla T4", "t4", 16),
            ("RTX 3060", "3060", 12),
            ("NVIDIA GeForce RTX 4060 Ti 16GB", "4060ti-16gb", 16),
            ("4060ti 8gb", "4060ti", 8),
            ("gtx-1060", "1060", 6),
            ("A100-80GB", "a100-80gb", 80),
        ] {
            let found = Card::named(name).unwrap();
            assert_eq!((found.name, found.sold_gb), (card, gb), "{name}");
        }
        let refused = Card::named("voodoo2").unwrap_err().to_string();
        assert!(refused.contains("⟨for⟩") && refused.contains("t4") && refused.contains("⟨fit⟩"), "{refused}");
        assert_eq!(Card::named("3080").unwrap().other_sizes(), ["3080-12gb"]);
    }

    #[test]
    fn a_run_finds_less_than_what_is_sold() {
        // What PyTorch's messages on full memory call the total capacity of these cards, in GiB.
        for (name, capacity) in [("t4", 14.75), ("3090", 23.69), ("3060", 11.76), ("a100", 39.59)] {
            let usable = Card::named(name).unwrap().usable_bytes() as f64 / f64::from(1 << 30);
            assert!((capacity - 1.1..capacity - 0.3).contains(&usable), "{name}: {usable}");
        }
    }

    #[test]
    fn each_name_is_there_once() {
        let mut names: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CARDS.len());
    }
}
