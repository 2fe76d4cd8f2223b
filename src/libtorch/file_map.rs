//! Files mapped into memory. Where another program cuts one short meanwhile, touching what is gone raises SIGBUS: the handler here
//! says which file it was and ends the process, as an error would, instead of a crash.

use crate::error::{Error, Result};
use crate::plain_text;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// The bytes of a file, mapped for reading.
pub struct FileMap {
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
    slot: &'static Slot,
}

impl FileMap {
    /// Maps all of `file`, which was opened at `path`.
    pub fn of(file: File, path: &Path) -> Result<Self> {
        static LISTEN: Once = Once::new();
        LISTEN.call_once(listen);
        // SAFETY: the map is read-only. A file that another program cuts short is found by `check`, or by the handler.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| Error::io("map", path, error))?;
        let slot = Slot::take(&map, path);
        Ok(Self { map, file, path: path.to_owned(), slot })
    }

    /// An error where the file became shorter than what was mapped.
    pub fn check(&self) -> Result<()> {
        let about = self.file.metadata().map_err(|error| Error::io("read", &self.path, error))?;
        match about.len() < self.map.len() as u64 {
            true => Err(cut_short(&self.path)),
            false => Ok(()),
        }
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        self.slot.free();
    }
}

/// From now on the handler's sentence is a JSON line on standard output, as of `--json`.
pub fn report_as_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

fn cut_short(path: &Path) -> Error {
    Error::file(path, "was cut short by another program while it was being read; copy or download it again")
}

static AS_JSON: AtomicBool = AtomicBool::new(false);
static FIRST: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());
/// The sentences of every file that was ever mapped; also held while a slot is taken.
static SENTENCES: Mutex<BTreeMap<PathBuf, &'static Sentences>> = Mutex::new(BTreeMap::new());

/// What is said of a file, ready to be written: a signal's handler may not allocate.
struct Sentences {
    prose: Box<[u8]>,
    json: Box<[u8]>,
}

impl Sentences {
    fn of(path: &Path) -> &'static Self {
        let text = cut_short(path).to_string();
        let json = serde_json::json!({ "event": "error", "text": text }).to_string();
        let [prose, json] = [plain_text::line(&format!("error: {text}")), plain_text::json(&json)];
        let line = |text: String| (text + "\n").into_bytes().into_boxed_slice();
        Box::leak(Box::new(Self { prose: line(prose), json: line(json) }))
    }
}

/// The place of a map in a list that only grows, so that the handler can read it at any time.
struct Slot {
    start: AtomicUsize,
    /// 0 where no map is here.
    end: AtomicUsize,
    sentences: AtomicPtr<Sentences>,
    next: *const Slot,
}

// SAFETY: `next` is set once, before the slot is shared, and points to a slot that is never freed.
unsafe impl Sync for Slot {}

impl Slot {
    fn all() -> impl Iterator<Item = &'static Slot> {
        // SAFETY: null, or a slot that was leaked.
        let first = unsafe { FIRST.load(Ordering::Acquire).as_ref() };
        // SAFETY: as above.
        std::iter::successors(first, |slot| unsafe { slot.next.as_ref() })
    }

    fn take(map: &memmap2::Mmap, path: &Path) -> &'static Self {
        let mut known = SENTENCES.lock().unwrap_or_else(PoisonError::into_inner);
        let sentences: &'static Sentences = known.entry(path.to_owned()).or_insert_with(|| Sentences::of(path));
        let slot = Self::all().find(|slot| slot.end.load(Ordering::Relaxed) == 0).unwrap_or_else(|| {
            let next = FIRST.load(Ordering::Relaxed);
            let slot = Self { start: 0.into(), end: 0.into(), sentences: AtomicPtr::default(), next };
            let slot = Box::leak(Box::new(slot));
            FIRST.store(slot, Ordering::Release);
            slot
        });
        let start = map.as_ptr() as usize;
        slot.sentences.store(std::ptr::from_ref(sentences).cast_mut(), Ordering::Relaxed);
        slot.start.store(start, Ordering::Relaxed);
        slot.end.store(start + map.len(), Ordering::Release);
        slot
    }

    fn free(&self) {
        self.end.store(0, Ordering::Release);
    }
}

/// Has SIGBUS handled by [`on_fault`].
fn listen() {
    // SAFETY: a zeroed sigaction is a valid one; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Reads atomics and calls `write`, `isatty`, `signal` and `_exit` alone, which a signal's handler may.
extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo of a fault; the sentences were leaked; the calls are of constant or leaked memory.
    unsafe {
        let address = (*info).si_addr() as usize;
        let holds = |slot: &&Slot| {
            let end = slot.end.load(Ordering::Acquire);
            // A map takes whole pages.
            (slot.start.load(Ordering::Relaxed)..end.next_multiple_of(4096)).contains(&address)
        };
        let found = Slot::all().find(holds).and_then(|slot| slot.sentences.load(Ordering::Relaxed).as_ref());
        let Some(sentences) = found else {
            // Not of a file: the fault comes again, and ends the process.
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            return;
        };
        let (stream, text) = match AS_JSON.load(Ordering::Relaxed) {
            true => (libc::STDOUT_FILENO, &sentences.json),
            false => (libc::STDERR_FILENO, &sentences.prose),
        };
        const CLEAR_LINE: &[u8] = b"\r\x1b[K";
        if libc::isatty(stream) == 1 {
            // A bar may stand there.
            libc::write(stream, CLEAR_LINE.as_ptr().cast(), CLEAR_LINE.len());
        }
        libc::write(stream, text.as_ptr().cast(), text.len());
        libc::_exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_became_shorter_is_an_error_and_a_slot_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let open = || {
            std::fs::write(&path, [7; 10_000]).unwrap();
            FileMap::of(File::open(&path).unwrap(), &path).unwrap()
        };
        let slots = (0..3).map(|_| open().slot as *const Slot as usize).collect::<Vec<_>>();
        let map = open();
        assert!(map[9_999] == 7 && map.check().is_ok());
        File::options().write(true).open(&path).unwrap().set_len(5_000).unwrap();
        let said = map.check().unwrap_err().to_string();
        assert!(said.contains("x.safetensors") && said.contains("cut short"), "{said}");
        let known = Slot::all().map(|slot| slot as *const Slot as usize).collect::<Vec<_>>();
        assert!(slots.iter().all(|slot| known.contains(slot)) && known.len() < 50);
    }
}
