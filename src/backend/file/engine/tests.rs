//! Tests of the engine, and the disk in memory of the tests of this folder.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde_json::json;

use super::*;
use crate::{
    ConfigValue, Credential, Key,
    backend::file::{
        copy::{self, copy_all},
        draft::{Draft, Memory},
    },
};

/// All records with their bytes.
type Contents = Vec<(Vec<u8>, Vec<u8>)>;

/// The position and data of a write.
type UnsyncedWrite = (usize, Vec<u8>);

/// A disk in memory that can be read, changed, and made to fail.
#[derive(Clone, Debug, Default)]
pub(in crate::backend::file) struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    pub(in crate::backend::file) full: Arc<AtomicBool>,
    pub(in crate::backend::file) cannot_sync: Arc<AtomicBool>,
    /// The bytes at the last sync, and the writes since then, any of which may survive power loss.
    synced: Arc<Mutex<(Vec<u8>, Vec<UnsyncedWrite>)>>,
    /// The number of syncs.
    pub(in crate::backend::file) syncs: Arc<AtomicUsize>,
    /// A sync waits while this is set.
    pub(in crate::backend::file) stalled: Arc<AtomicBool>,
    /// Whether a sync waits.
    waits: Arc<AtomicBool>,
}

impl Disk {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes)), ..Self::default() }
    }

    /// A new store on this disk.
    pub(in crate::backend::file) fn store(&self) -> Engine {
        let new = VERIFYING.open(self.clone(), "test").unwrap();
        initialize(&new).unwrap();
        new.close().unwrap();
        Engine::on(self.clone()).unwrap()
    }

    /// A new store as if its file were the open one of this directory.
    pub(in crate::backend::file) fn store_in(&self, directory: Directory) -> Engine {
        Engine { directory: Some(directory), ..self.store() }
    }
}

const VERIFYING: Settings =
    Settings { cache_bytes: 8 << 20, sharing: Sharing::Exclusive, verifies: true, read_only: false };

impl Engine {
    /// Opens the store on this disk and verifies it.
    pub(in crate::backend::file) fn on(disk: Disk) -> Result<Self> {
        let database = Database::Writable(VERIFYING.open(disk, "test")?);
        Ok(Self::checked(database, None, VERIFYING, None, "test")?.unwrap())
    }

    /// Commits a change.
    pub(in crate::backend::file) fn change(&self, change: impl FnOnce(&mut Draft<'_>)) {
        let transaction = self.begin().unwrap();
        let mut memory = Memory::default();
        let mut draft = Draft::new(&transaction, &mut memory, false).unwrap();
        change(&mut draft);
        draft.finish(false).unwrap();
        self.commit(transaction).unwrap();
    }

    fn contents(&self) -> Result<Contents> {
        let records = self.snapshot()?.records(..)?;
        records
            .map(|stored| stored.map(|stored| (stored.raw_name().to_vec(), stored.value().to_vec())))
            .collect()
    }
}

impl Disk {
    /// Returns once a sync waits: the committer has begun with a write and can begin no other.
    pub(in crate::backend::file) async fn stalls(&self) {
        while !self.waits.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The disk after power loss: of the writes since the last sync, those that `survives` picks.
    fn after_power_loss(&self, mut survives: impl FnMut() -> bool) -> Self {
        let (mut bytes, unsynced) = self.synced.lock().unwrap().clone();
        for (from, data) in unsynced.into_iter().filter(|_| survives()) {
            let to = from + data.len();
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(&data);
        }
        Self::holding(bytes)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = from.checked_add(out.len()).and_then(|to| bytes.get(from..to));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let length = usize::try_from(length).unwrap();
        if length > bytes.len() && self.full.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        bytes.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.stalled.load(Ordering::SeqCst) {
            self.waits.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waits.store(false, Ordering::SeqCst);
        self.syncs.fetch_add(1, Ordering::SeqCst);
        *self.synced.lock().unwrap() = (self.bytes.lock().unwrap().clone(), Vec::new());
        if self.cannot_sync.load(Ordering::SeqCst) {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            Ok(())
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let to = from + data.len();
        bytes.get_mut(from..to).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        self.synced.lock().unwrap().1.push((from, data.to_vec()));
        Ok(())
    }
}

/// The bytes and records of a closed store with a few commits.
fn closed_store() -> (Vec<u8>, Contents) {
    let disk = Disk::default();
    let engine = disk.store();
    let key = |name: String| Key::new(&name).unwrap();
    for round in 0..4_i64 {
        engine.change(|draft| {
            for n in 0..6 {
                let credential =
                    Credential::try_from(json!({ "token": format!("{n}-{round}").repeat(20) })).unwrap();
                draft.put_credential(key(format!("id-{n}")), credential.to_json().as_bytes()).unwrap();
            }
            let value = ConfigValue::new(json!({ "round": round })).unwrap();
            draft.put_config(key("config".into()), value.to_json().as_bytes()).unwrap();
            draft.increment(&key("usage".into()), &key("requests".into()), round).unwrap();
        });
    }
    let contents = engine.contents().unwrap();
    engine.close().unwrap();
    let bytes = disk.bytes.lock().unwrap().clone();
    (bytes, contents)
}

/// Opens a store of these bytes: `Ok(true)` if it has exactly the expected records.
fn reopened(bytes: Vec<u8>, expected: &Contents) -> Result<bool> {
    Ok(Engine::on(Disk::holding(bytes))?.contents()? == *expected)
}

#[test]
fn any_flipped_byte_of_a_closed_store_is_harmless_or_reported() {
    let (bytes, expected) = closed_store();
    assert!(reopened(bytes.clone(), &expected).unwrap());
    // Thousands of panics of the engine are expected here; those of other tests are still printed.
    let (here, hook) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            hook(panic);
        }
    }));
    let (mut reported, mut wrong) = (0, Vec::new());
    // One bit of every byte, and all bits of every byte of the header.
    let flips = (0..bytes.len()).map(|at| (at, 1 << (at % 8))).chain((0..4096).map(|at| (at, 0xff)));
    for (at, bits) in flips {
        let mut damaged = bytes.clone();
        damaged[at] ^= bits;
        match reopened(damaged, &expected) {
            Ok(true) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                reported += 1
            }
            Ok(false) => wrong.push(format!("byte {at}: other data, and no error")),
            Err(error) => wrong.push(format!("byte {at}: {error:?}")),
        }
    }
    drop(std::panic::take_hook());
    assert!(wrong.is_empty(), "{} bytes, {wrong:#?}", bytes.len());
    assert!(reported > 1000, "only {reported} flips were noticed");
}

#[test]
fn acknowledged_commits_survive_power_loss() {
    let disk = Disk::default();
    let engine = disk.store();
    let mut random = fastrand::Rng::with_seed(7);
    for n in 0..150_i64 {
        engine.change(|draft| {
            let text = "x".repeat(random.usize(..20_000));
            let credential = Credential::try_from(json!({ "n": n, "text": text })).unwrap();
            let id = Key::new(&format!("id-{}", n % 40)).unwrap();
            draft.put_credential(id, credential.to_json().as_bytes()).unwrap();
            draft.increment(&Key::new("usage").unwrap(), &Key::new("requests").unwrap(), 1).unwrap();
        });
        let expected = engine.contents().unwrap();
        for survivors in [0.0, 0.5, 1.0] {
            let lost = disk.after_power_loss(|| random.f64() < survivors);
            let found = Engine::on(lost).unwrap().contents().unwrap();
            assert!(found == expected, "commit {n} was acknowledged and is lost");
        }
    }
}

/// A store that other processes write, too.
fn shared(path: &Path) -> Engine {
    Engine::open(directory(path), &FileOptions::new(path)).unwrap()
}

fn directory(path: &Path) -> Directory {
    Directory::open(path, Access::Create, Sharing::MultiWriter).unwrap()
}

/// Puts a copy of this file, in the state in which it is now, in the place of the store.
fn replace(path: &Path, file: &Path) {
    fs::copy(file, path.join("store.redb.new")).unwrap();
    fs::rename(path.join("store.redb.new"), path.join("store.redb")).unwrap();
}

#[test]
fn an_opening_changes_no_file_that_a_compaction_has_replaced() {
    let base = tempfile::TempDir::new().unwrap();
    let path = base.path().join("store");
    let engine = shared(&path);
    engine.change(|draft| draft.begin_copying(1, 7).unwrap());
    // Another process has opened the file, and waits for the compaction, which holds the transaction.
    let (mut directory, settings) = (directory(&path), engine.settings);
    let file = directory.open_store(Access::Write).unwrap();
    directory.note(&file).unwrap();
    let header = settings.header(&file, "test").unwrap();
    let database = settings.opened(file, "test").unwrap();
    replace(&path, &path.join("store.redb"));
    let checked = Engine::checked(database, header, settings, Some(directory), "test").unwrap();
    assert!(checked.is_none(), "it must open the new file");
    assert_eq!(engine.snapshot().unwrap().number(draft::COPYING).unwrap(), Some(7));
}

#[test]
fn only_a_successor_is_followed_and_no_other_file_is_changed() {
    let base = tempfile::TempDir::new().unwrap();
    let (path, other) = (base.path().join("store"), base.path().join("other"));
    let engine = shared(&path);
    engine.change(|draft| draft.begin_copying(1, 7).unwrap());
    assert!(engine.successor().unwrap().is_none());
    // The file of an open store needs a repair.
    let copied = shared(&other);
    let is_unclean = |path: &Path| {
        let settings = Settings { read_only: true, ..engine.settings };
        settings.opened(fs::File::open(path.join("store.redb")).unwrap(), "test").is_err()
    };
    copied.change(|draft| draft.begin_copying(2, 7).unwrap());
    replace(&path, &other.join("store.redb"));
    assert!(is_unclean(&path));
    let before = fs::read(path.join("store.redb")).unwrap();
    assert!(engine.successor().unwrap().is_none());
    assert!(fs::read(path.join("store.redb")).unwrap() == before, "it was changed");

    // Also that of a compaction whose process was killed afterwards.
    let copy = base.path().join("copy");
    let disk = fs::File::options().read(true).write(true).create_new(true).open(&copy).unwrap();
    let database = engine.settings.open(FileBackend::new(disk).unwrap(), "test").unwrap();
    copy_all(&engine.snapshot().unwrap(), &database, copy::Lineage::Successor, &|| true).unwrap();
    replace(&path, &copy);
    assert!(is_unclean(&path));
    let next = engine.successor().unwrap().unwrap();
    assert_eq!(next.snapshot().unwrap().number(draft::COPIES).unwrap(), Some(1));
}

#[test]
fn creating_a_store_on_a_full_disk_is_reported() {
    let disk = Disk::default();
    disk.full.store(true, Ordering::SeqCst);
    let error = VERIFYING.open(disk, "test").map(drop).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("os error 28")));
}
