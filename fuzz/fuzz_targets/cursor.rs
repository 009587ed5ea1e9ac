//! Reads cursors, and watches a store from them. The positions of servers have property tests beside their
//! code.
#![no_main]

use std::pin::pin;

use futures_util::StreamExt;
use gateway_storage::{
    ErrorKind, Memory, Storage,
    watch::{Cursor, Event, WatchOptions},
};
use gateway_storage_fuzz::{assert_silent, with_secret};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Cursor>() {
        Ok(cursor) => {
            assert_eq!(cursor.as_str(), text);
            let json = serde_json::to_string(&cursor).unwrap();
            assert_eq!(serde_json::from_str::<Cursor>(&json).unwrap(), cursor);
        }
        Err(error) => {
            let is_short = (1..=Cursor::MAX_BYTES).contains(&text.len());
            assert!(!is_short || text.bytes().any(|byte| !byte.is_ascii_graphic()));
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
        }
    }
    // As a position in the ring of a store that is open.
    let (runtime, storage) = store();
    let own = first(&runtime, &storage, None);
    assert!(matches!(own, Event::Resync { .. }));
    let known = first(&runtime, &storage, Some(own.cursor().clone()));
    assert!(matches!(known, Event::Idle { .. }), "what was made is read back");
    let (ring, _) = own.cursor().as_str().rsplit_once('.').unwrap();
    for position in [format!("{ring}.{text}"), format!("memory:{text}")] {
        let Ok(cursor) = Cursor::new(position) else { continue };
        let is_own = cursor == *own.cursor() || cursor.as_str() == own.cursor().as_str();
        let event = first(&runtime, &storage, Some(cursor));
        assert!(is_own || matches!(event, Event::Resync { .. } | Event::Idle { .. }));
    }
    if let Ok(text) = String::from_utf8(with_secret(bytes)) {
        text.parse::<Cursor>().map_or_else(|error| assert_silent(&error), drop);
    }
});

fn store() -> (Runtime, Storage<Memory>) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let storage = runtime.block_on(Storage::open("memory:")).unwrap();
    (runtime, storage)
}

/// The first event of a watch.
fn first(runtime: &Runtime, storage: &Storage<Memory>, from: Option<Cursor>) -> Event {
    let mut options = WatchOptions::default();
    options.from = from;
    runtime.block_on(async { pin!(storage.watch(options)).next().await.unwrap().unwrap() })
}
