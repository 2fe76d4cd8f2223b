//! What NVIDIA's driver says of its cards, through its management library (NVML): it tells where CUDA itself fails.

use nvml_wrapper::Nvml;

/// The driver of this machine.
#[derive(Debug, Clone)]
pub struct NvidiaDriver {
    /// Such as `580.65.06`.
    pub version: String,
    /// Its cards.
    pub cards: Vec<NvidiaCard>,
}

/// A card that the driver knows.
#[derive(Debug, Clone)]
pub struct NvidiaCard {
    /// Such as `Tesla T4`.
    pub name: String,
    /// Its compute capability, such as (7, 5).
    pub capability: (i64, i64),
    /// Bytes that nobody has, and all of them; drivers before 510 do not tell.
    pub memory: Option<(u64, u64)>,
    /// Its place on the PCI bus.
    bus_id: String,
}

impl NvidiaDriver {
    /// Asks the driver; `None` where there is none, or it does not answer.
    pub fn ask() -> Option<Self> {
        // The name without a version is for those who compile against it.
        let library = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().ok()?;
        let cards = (0..library.device_count().ok()?).filter_map(|index| {
            let device = library.device_by_index(index).ok()?;
            let capability = device.cuda_compute_capability().ok()?;
            Some(NvidiaCard {
                name: device.name().ok()?,
                capability: (capability.major.into(), capability.minor.into()),
                memory: device.memory_info().ok().map(|memory| (memory.free, memory.total)),
                bus_id: device.pci_info().map(|info| info.bus_id).unwrap_or_default(),
            })
        });
        Some(Self { version: library.sys_driver_version().ok()?, cards: cards.collect() })
    }

    /// The first part of the version, by which drivers are told apart.
    pub fn branch(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }

    /// The card at `bus_id` as CUDA spells it.
    pub fn card_at(&self, bus_id: &str) -> Option<&NvidiaCard> {
        // NVML writes the domain with eight digits, CUDA with four.
        let place = |id: &str| id.trim_start_matches('0').to_ascii_lowercase();
        self.cards.iter().find(|card| place(&card.bus_id) == place(bus_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_cudas_spelling_of_its_place() {
        let card = |bus_id: &str| NvidiaCard {
            name: bus_id.to_owned(),
            capability: (7, 5),
            memory: None,
            bus_id: bus_id.to_owned(),
        };
        let driver = NvidiaDriver {
            version: "580.65.06".into(),
            cards: vec![card("00000000:3B:00.0"), card("00010000:3B:00.0")],
        };
        assert_eq!(driver.card_at("0000:3b:00.0").unwrap().name, "00000000:3B:00.0");
        assert!(driver.card_at("0000:3b:01.0").is_none());
        assert_eq!(driver.branch(), Some(580));
    }
}
