//! The order in which a PyTorch `DataLoader(shuffle, drop_last=False)` visits a data set, each batch computable by itself.

use crate::error::{Error, Result};
use crate::libtorch::random::Generator;

/// Places of a data set in batches, shuffled anew each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochOrder {
    places: usize,
    batch_size: usize,
    seed: i64,
    shuffle: bool,
    /// This process' number, and how many there are.
    rank: usize,
    ranks: usize,
}

impl EpochOrder {
    /// The order of `places` in batches of `batch_size`: `randperm(places)` of the generator seeded with `seed + epoch`, or
    /// as they are.
    pub fn new(places: usize, batch_size: usize, seed: i64, shuffle: bool) -> Result<Self> {
        match batch_size {
            0 => Err(Error::invalid("the batch size must be at least 1")),
            _ => Ok(Self { places, batch_size, seed, shuffle, rank: 0, ranks: 1 }),
        }
    }

    /// The batches of one of several processes: they are dealt round in turn, and the last round is filled up from the epoch's first
    /// places, so that all have as many, all of them full (accelerate's `BatchSamplerShard` with `even_batches`).
    pub fn dealt(self, rank: usize, ranks: usize) -> Self {
        Self { rank, ranks, ..self }
    }

    /// The number of places in an epoch.
    pub fn places(&self) -> usize {
        self.places
    }

    /// The number of batches, and so of micro-steps, in an epoch; of a single process' the last can be short.
    pub fn batches_per_epoch(&self) -> usize {
        self.places.div_ceil(self.batch_size).div_ceil(self.ranks)
    }

    /// The epoch and the batch in it of a micro-step that is counted over the whole run.
    pub fn position(&self, micro_step: usize) -> (usize, usize) {
        let batches = self.batches_per_epoch().max(1);
        (micro_step / batches, micro_step % batches)
    }

    /// The places in batch `index` of `epoch`, both from 0; none beyond the epoch's end.
    pub fn batch(&self, epoch: usize, index: usize) -> Vec<usize> {
        let mut places: Vec<usize> = match self.shuffle {
            true => {
                let mut generator = Generator::new(self.seed.wrapping_add(epoch as i64));
                generator.randperm(self.places as i64).into_iter().map(|place| place as usize).collect()
            }
            false => (0..self.places).collect(),
        };
        if self.ranks > 1 {
            let filled = places.len().next_multiple_of(self.batch_size * self.ranks);
            places = places.iter().copied().cycle().take(filled).collect();
        }
        let batches = places.chunks(self.batch_size).skip(self.rank).step_by(self.ranks);
        batches.into_iter().nth(index).unwrap_or_default().to_vec()
    }

    /// The places in the batch of a micro-step that is counted over the whole run.
    pub fn micro_batch(&self, micro_step: usize) -> Vec<usize> {
        let (epoch, index) = self.position(micro_step);
        self.batch(epoch, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_place_in_an_order_of_its_own() {
        let order = EpochOrder::new(7, 3, 5, true).unwrap();
        let epoch = |number| (0..3).flat_map(|index| order.batch(number, index)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        let expected: Vec<usize> = Generator::new(6).randperm(7).into_iter().map(|place| place as usize).collect();
        assert_eq!(second, expected);
        assert!(order.batch(0, 3).is_empty());
        assert_eq!(order.micro_batch(5), order.batch(1, 2));
        assert_eq!(order.batch(1, 2).len(), 1);
    }

    /// accelerate 1.15's `BatchSamplerShard` over the same places.
    #[test]
    fn batches_are_dealt_as_accelerate_deals_them() {
        let dealt = |places, batch_size, ranks| -> Vec<Vec<Vec<usize>>> {
            let order = EpochOrder::new(places, batch_size, 0, false).unwrap();
            let of = |rank| {
                let order = order.dealt(rank, ranks);
                (0..order.batches_per_epoch()).map(|index| order.batch(0, index)).collect()
            };
            (0..ranks).map(of).collect()
        };
        assert_eq!(
            dealt(11, 2, 2),
            [[[0, 1], [4, 5], [8, 9]].map(Vec::from).to_vec(), [[2, 3], [6, 7], [10, 0]].map(Vec::from).to_vec()]
        );
        assert_eq!(
            dealt(5, 2, 2),
            [[[0, 1], [4, 0]].map(Vec::from).to_vec(), [[2, 3], [1, 2]].map(Vec::from).to_vec()]
        );
        assert_eq!(dealt(1, 2, 3), [vec![vec![0, 0]], vec![vec![0, 0]], vec![vec![0, 0]]]);
        assert_eq!(dealt(8, 2, 2)[1], [[2, 3], [6, 7]]);
    }
}
