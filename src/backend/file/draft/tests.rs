use redb::ReadableTableMetadata as _;

use super::{super::engine::tests::Disk, *};

#[test]
fn on_a_full_disk_only_deletes_succeed() {
    let engine = Disk::default().store();
    let key = |name: &str| Key::new(name).unwrap();
    engine.change(|draft| {
        draft.put_config(key("a"), b"1").unwrap();
        draft.put_credential(key("b"), b"{}").unwrap();
        draft.increment(&key("u"), &key("n"), 1).unwrap();
    });
    let transaction = engine.begin().unwrap();
    let mut memory = Memory::default();
    let mut draft = Draft::new(&transaction, &mut memory, true).unwrap();
    for refused in [
        draft.put_config(key("a"), b"2").unwrap_err(),
        draft.put_credential(key("c"), b"{}").unwrap_err(),
        draft.increment(&key("u"), &key("n"), 1).unwrap_err(),
    ] {
        assert_eq!((refused.kind(), refused.code()), (ErrorKind::Unavailable, Some("os error 28")));
        assert_eq!(refused.outcome(), crate::Outcome::NotApplied);
    }
    draft.delete_config(&key("a")).unwrap();
    draft.delete_credential(&key("b")).unwrap();
    draft.reset_usage(&key("u")).unwrap();
    assert_eq!(draft.finish(false).unwrap().unwrap().len(), 2);
    assert_eq!(transaction.open_table(RECORDS).unwrap().len().unwrap(), 0);
}

#[test]
fn records_are_counted() {
    let engine = Disk::default().store();
    let key = |name: &str| Key::new(name).unwrap();
    let numbers = || {
        let snapshot = engine.snapshot().unwrap();
        [CREDENTIALS, CONFIGS, USAGE_RECORDS, STORED_BYTES].map(|name| snapshot.counted(name).unwrap())
    };
    engine.change(|draft| {
        for (field, count) in [("m", 1), ("n", 2), ("m", 3)] {
            draft.increment(&key("u"), &key(field), count).unwrap();
            draft.set_counter(&key("v"), &key(field), count).unwrap();
            draft.put_credential(key("a"), b"{}").unwrap();
            draft.put_config(key(field), b"true").unwrap();
        }
    });
    assert_eq!(numbers(), [1, 2, 2, 4 * (4 + 8) + (2 + 2) + 2 * (2 + 4)]);
    engine.change(|draft| {
        draft.reset_usage(&key("u")).unwrap();
        draft.delete_config(&key("m")).unwrap();
        assert!(draft.delete_config(&key("m")).is_err(), "it is deleted already");
    });
    assert_eq!(numbers(), [1, 1, 1, 2 * (4 + 8) + (2 + 2) + (2 + 4)]);
}

#[test]
fn an_increment_within_a_limit_is_decided_as_everywhere() {
    const EDGES: [i64; 9] = [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, 2, i64::MAX - 1, i64::MAX];
    let engine = Disk::default().store();
    let (key, field) = (Key::new("u").unwrap(), Key::new("n").unwrap());
    engine.change(|draft| {
        for total in [None].into_iter().chain(EDGES.map(Some)) {
            for (delta, limit) in EDGES.iter().flat_map(|delta| EDGES.map(|limit| (*delta, limit))) {
                drop(draft.reset_usage(&key));
                if let Some(total) = total {
                    draft.set_counter(&key, &field, total).unwrap();
                }
                let decided = draft.increment_within(&key, &field, delta, limit);
                let wanted = Within::decide(&key, total.unwrap_or(0), delta, limit);
                let now = draft
                    .get(&RecordKey::Usage(key.clone(), field.clone()), |bytes| decode_count(&key, bytes))
                    .unwrap();
                match (decided, wanted) {
                    (Ok(decided), Ok(wanted)) => {
                        assert_eq!(decided, wanted);
                        assert_eq!(now, if decided.is_counted() { Some(decided.total()) } else { total });
                    }
                    (Err(error), Err(_)) => assert_eq!((error.kind(), now), (ErrorKind::Overflow, total)),
                    (decided, wanted) => panic!("{decided:?} for {wanted:?}"),
                }
            }
        }
    });
}

#[test]
fn a_compaction_goes_on_with_and_ends_only_its_own_rounds() {
    let engine = Disk::default().store();
    let round = || engine.snapshot().unwrap().number(COPYING).unwrap();
    engine.change(|draft| draft.begin_copying(1, 7).unwrap());
    engine.change(|draft| {
        let error = draft.next_round(6).unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, crate::Outcome::NotApplied));
        assert_eq!(draft.next_round(7).unwrap(), 8);
    });
    engine.change(|draft| draft.end_rounds(9..=20).unwrap());
    assert_eq!(round(), Some(8));
    engine.change(|draft| draft.end_rounds(7..=20).unwrap());
    assert_eq!(round(), None);
    engine.change(|draft| {
        draft.next_round(8).unwrap_err();
        draft.end_rounds(7..=20).unwrap();
    });
    assert_eq!(round(), None);
}
