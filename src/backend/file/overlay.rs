//! A file that is changed in memory only, so that a database which needs a repair can be looked at.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use redb::StorageBackend;

const BLOCK: usize = 4096;

/// Reads the file, and keeps what is written to it.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    /// The changed blocks, by their numbers.
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Overlay {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, written: Mutex::new(Written { length, blocks: BTreeMap::new() }) })
    }

    /// A block as it is in the file. What is behind the end of the file is zero.
    fn stored(&self, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, number * BLOCK as u64 + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(block)
    }
}

/// The parts of a range of bytes: the block of each, where it begins there, and which bytes it has.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let from = (position % BLOCK as u64) as usize;
        let count = (BLOCK - from).min(length - at);
        at += count;
        (count > 0).then(|| (position / BLOCK as u64, from, at - count..at))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written.lock().unwrap_or_else(PoisonError::into_inner).length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if offset.saturating_add(out.len() as u64) > written.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, from, bytes) in parts(offset, out.len()) {
            let length = bytes.len();
            match written.blocks.get(&number) {
                Some(block) => out[bytes].copy_from_slice(&block[from..from + length]),
                None => out[bytes].copy_from_slice(&self.stored(number)?[from..from + length]),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, from, bytes) in parts(offset, data.len()) {
            let block = match written.blocks.entry(number) {
                Entry::Occupied(changed) => changed.into_mut(),
                Entry::Vacant(unchanged) => unchanged.insert(self.stored(number)?),
            };
            block[from..from + bytes.len()].copy_from_slice(&data[bytes]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_not_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        let mut wanted: Vec<u8> = (0..3 * BLOCK + 7).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&wanted, 0).unwrap();
        let overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
        for (at, length) in [(0, 1), (BLOCK - 1, BLOCK + 2), (3 * BLOCK, 7)] {
            overlay.write(at as u64, &vec![0xff; length]).unwrap();
            wanted[at..at + length].fill(0xff);
        }
        overlay.set_len(4 * BLOCK as u64).unwrap();
        wanted.resize(4 * BLOCK, 0);
        for (at, length) in [(0, 4 * BLOCK), (BLOCK - 3, 9), (4 * BLOCK, 0)] {
            let mut read = vec![1; length];
            overlay.read(at as u64, &mut read).unwrap();
            assert!(read == wanted[at..at + length]);
        }
        assert!(overlay.read(1, &mut vec![0; 4 * BLOCK]).is_err());
        let mut first = [1];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!((first, file.metadata().unwrap().len()), ([0], 3 * BLOCK as u64 + 7));
    }
}
