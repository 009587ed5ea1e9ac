//! The rules of a comparison.

use gateway_storage::{
    ErrorKind, Record, RecordKind,
    migrate::{
        Compared, DifferenceKind, Filter, MAX_NAMED, VerifyOptions, VerifyReport, verify, verify_sample,
    },
};
use serde_json::json;

use super::records::{config, configs, digest, key, memory, of, usage};

async fn compared(left: Vec<Record>, right: Vec<Record>) -> VerifyReport {
    verify(of(left), of(right), &VerifyOptions::default(), |_| ()).await.unwrap()
}

#[tokio::test]
async fn finds_all_differences() {
    let left =
        vec![config("a", json!(1)), config("b", json!(1)), config("c", json!(0.0)), usage("u", "x", 1)];
    let right =
        vec![config("b", json!(1)), config("c", json!(-0.0)), config("d", json!(1)), usage("u", "x", 2)];
    let report = compared(left.clone(), right.clone()).await;
    let Compared { same, different, missing, extra, .. } = report.configs;
    assert_eq!([same, different, missing, extra], [1, 1, 1, 1]);
    let Compared { same, different, missing, extra, .. } = report.usage;
    assert_eq!([same, different, missing, extra], [0, 1, 0, 0]);
    let found: Vec<_> =
        report.differences.iter().map(|found| (found.kind, found.key.as_str(), found.difference)).collect();
    assert_eq!(
        found,
        [
            (RecordKind::Config, "a", DifferenceKind::Missing),
            (RecordKind::Config, "c", DifferenceKind::Different),
            (RecordKind::Config, "d", DifferenceKind::Extra),
            (RecordKind::Usage, "u", DifferenceKind::Different),
        ]
    );
    assert!(!report.is_same() && !report.has_source());
    assert_eq!(report.source_digest, digest(&memory(left).await).await);
    assert_eq!(report.target_digest, digest(&memory(right).await).await);
}

#[tokio::test]
async fn equal_sides_and_sides_with_extra_records() {
    let mut more = configs(3000);
    let report = compared(more.clone(), more.clone()).await;
    assert!(report.is_same() && report.total().same == 3000);
    assert_eq!(report.source_digest, report.target_digest);
    more.push(config("z", json!(1)));
    let report = compared(configs(3000), more).await;
    assert!(report.has_source() && !report.is_same());
    assert_ne!(report.source_digest, report.target_digest);
    assert!(compared(Vec::new(), Vec::new()).await.is_same());
    let report = compared(configs(3000), Vec::new()).await;
    assert_eq!((report.total().missing, report.differences.len()), (3000, MAX_NAMED));
}

#[tokio::test]
async fn filters_apply_to_both_sides() {
    let mut filter = Filter::default();
    filter.include = vec!["a*".parse().unwrap()];
    let options = VerifyOptions::default().with_filter(filter);
    let left = vec![config("a", json!(1)), config("b", json!(1))];
    let right = vec![config("a", json!(1)), config("c", json!(1))];
    let report = verify(of(left), of(right), &options, |_| ()).await.unwrap();
    assert!(report.is_same() && report.total().same == 1);
}

#[tokio::test]
async fn unsorted_streams_are_refused() {
    let wrong = vec![config("b", json!(1)), config("a", json!(1))];
    for (left, right, side) in [(wrong.clone(), configs(2), "source"), (configs(2), wrong, "target")] {
        let error = verify(of(left), of(right), &VerifyOptions::default(), |_| ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(error.to_string().contains(side), "{error}");
    }
}

#[tokio::test]
async fn a_sample_is_chosen_at_random_and_looked_up() {
    let mut records =
        vec![Record::Credential { id: key("a"), credential: json!({ "x": 1 }).try_into().unwrap() }];
    records.extend(configs(500));
    records.extend((0..500).map(|n| usage(&format!("u{n}"), "x", n)));
    let all = VerifyOptions::default();
    // The source may be unsorted.
    let whole = memory(records.clone()).await;
    let report = verify_sample(of(records.clone()), &whole, 5000, &all).await.unwrap();
    assert!(report.is_same() && report.total().same == 1001);
    assert_eq!(report.sampled_of, Some(1001));
    assert_eq!((report.source_digest, report.target_digest), (digest(&whole).await, digest(&whole).await));

    let count = gateway_storage::layer::Count::default();
    let counted = whole.clone().layer(count.clone());
    let report = verify_sample(of(records.clone()), &counted, 100, &all).await.unwrap();
    assert!(report.is_same() && report.total().same == 100);
    assert_eq!((count.of("export"), count.of("list_configs"), report.sampled_of), (0, 0, Some(1001)));
    let (configs, usage) = (report.configs.same, report.usage.same);
    assert!((20..80).contains(&configs) && (20..80).contains(&usage), "{configs} and {usage} of 500 each");

    // Half of the counters differ, and the last one is missing.
    let other = records.iter().take(1000).enumerate().map(|(at, record)| match record {
        Record::Usage { key, field, .. } if at % 2 == 0 => {
            Record::Usage { key: key.clone(), field: field.clone(), count: -1 }
        }
        other => other.clone(),
    });
    let report =
        verify_sample(of(records.clone()), &memory(other.collect()).await, 5000, &all).await.unwrap();
    assert_eq!((report.usage.different, report.usage.missing, report.configs.same), (249, 1, 500));
    assert!(!report.has_source());
    let error = verify_sample(of(records), &whole, 0, &all).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
}

#[tokio::test]
async fn counters_of_one_record_are_read_once() {
    let records: Vec<Record> =
        (0..500).map(|n| usage(&format!("u{}", n / 100), &format!("f{n}"), n)).collect();
    let count = gateway_storage::layer::Count::default();
    let whole = memory(records.clone()).await.layer(count.clone());
    let report = verify_sample(of(records), &whole, 500, &VerifyOptions::default()).await.unwrap();
    assert_eq!((report.usage.same, count.of("get_usage")), (500, 5));
}
