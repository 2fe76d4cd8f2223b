//! TensorBoard event files: scalars and images.
//!
//! A file is a row of TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of that), each a protobuf `Event`
//! (tensorflow/core/util/event.proto, summary.proto). It is written by hand because the crates for it rest: the last
//! release of tensorboard-rs is of 2022 and brings its own image 0.23 and protobuf 2.

use super::growing_file::GrowingFile;
use crate::error::{Error, Result};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An open event file. Each event is seen by TensorBoard as soon as it is written.
#[derive(Debug)]
pub struct EventWriter {
    file: GrowingFile,
}

impl EventWriter {
    /// A new event file in `folder` (made if absent). With `resumed_at`, TensorBoard drops what earlier files of the folder
    /// say of that step and later ones.
    pub fn create(folder: &Path, resumed_at: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let seconds = now().max(0.0) as u64;
        let id = std::process::id();
        let free = (0..).map(|n| folder.join(format!("events.out.tfevents.{seconds:010}.lorabooth.{id}.{n}")));
        // TensorBoard reads the files of a folder in the order of their names, which begin with the time.
        let path = free.into_iter().find(|path| !path.exists()).unwrap_or_default();
        let mut writer = Self { file: GrowingFile::create(&path)? };
        // Event.file_version = 3
        writer.event(0, &Message::default().bytes(3, b"brain.Event:2"))?;
        if let Some(step) = resumed_at {
            // Event.session_log = 7 { status = 1: START = 1 }
            writer.event(step, &Message::default().bytes(7, &Message::default().varint(1, 1).0))?;
        }
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether the file was removed and is there again ([`GrowingFile::came_back`]).
    pub fn came_back(&mut self) -> bool {
        self.file.came_back()
    }

    /// Brings all events to the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync()
    }

    /// One value of the curve `tag`.
    pub fn scalar(&mut self, tag: &str, value: f64, step: u64) -> Result<()> {
        // Summary.Value { tag = 1, simple_value = 2 }
        self.summary(step, Message::default().bytes(1, tag.as_bytes()).float(2, value as f32))
    }

    /// One picture of `tag`, already encoded as PNG, of `width` by `height` RGB pixels.
    pub fn png(&mut self, tag: &str, png: &[u8], (width, height): (u32, u32), step: u64) -> Result<()> {
        // Summary.Image { height = 1, width = 2, colorspace = 3 (RGB: 3), encoded_image_string = 4 }
        let image = Message::default().varint(1, height.into()).varint(2, width.into()).varint(3, 3).bytes(4, png);
        // Summary.Value { tag = 1, image = 4 }
        self.summary(step, Message::default().bytes(1, tag.as_bytes()).bytes(4, &image.0))
    }

    fn summary(&mut self, step: u64, value: Message) -> Result<()> {
        // Event.summary = 5 { value = 1 }
        self.event(step, &Message::default().bytes(5, &Message::default().bytes(1, &value.0).0))
    }

    fn event(&mut self, step: u64, what: &Message) -> Result<()> {
        // Event { wall_time = 1, step = 2, .. }
        let mut event = Message::default().double(1, now()).varint(2, step).0;
        event.extend(&what.0);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.append(&record)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs_f64()).unwrap_or_default()
}

/// A protobuf message in the making: fields in the order in which they are added.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(mut self, field: u64, value: u64) -> Self {
        self.number(field << 3);
        self.number(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.number(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.number(field << 3 | 2);
        self.number(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.number(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// CRC-32C (Castagnoli) by table, masked as TFRecord does it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        // Section B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn two_files_of_one_second_have_two_names() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::create(folder.path(), None).unwrap();
        let second = EventWriter::create(folder.path(), Some(3)).unwrap();
        assert_ne!(first.path(), second.path());
    }
}
