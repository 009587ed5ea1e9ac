//! The dashboard and the alerts in `examples/monitoring` query only metrics and labels that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gateway_storage::{Redis, Storage, layer::Instrument};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde_json::{Value, json};

use super::{retries, runtime};
use testkit::{servers, workload::work};

/// Metrics by name, each with its labels and their values.
type Page = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The exporter's page after a workload of every operation.
fn page() -> Page {
    let recorder = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets(&Instrument::DURATION_BUCKETS)
        .unwrap()
        .set_buckets_for_metric(Matcher::Full(Instrument::BATCH_SIZE.into()), &[1.0, 10.0])
        .unwrap()
        .build_recorder();
    let text = metrics::with_local_recorder(&recorder, || {
        runtime().block_on(async {
            work().await;
            retries().await;
            let redis = Storage::<Redis>::open(&*servers::redis()).await.unwrap();
            let pool =
                Instrument::new(redis.backend()).sample_pool(redis.backend(), Duration::from_millis(5));
            let redis = redis.layer(pool);
            // The key has another type, so the server returns an error with a code.
            let raw = &mut servers::redis::Raw::to(&servers::redis());
            let url = servers::redis();
            let prefix = url.split_once("prefix=").unwrap().1;
            let other = Storage::<Redis>::open(&*url).await.unwrap().instrumented();
            raw.words(&format!("SET {prefix}usage:a text"));
            other.get_usage("a").await.unwrap_err();
            redis.set_config("a", json!(1)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            watches(|| recorder.handle().render()).await;
            recorder.handle().render()
        })
    });
    parse(&text)
}

/// A watch that is cut off, and a live value that becomes wrong.
async fn watches(render: impl Fn() -> String) {
    let mut server = servers::redis::Server::start(&[]);
    let redis = Storage::<Redis>::open(&*server.url()).await.unwrap();
    redis.set_config("a", json!(1)).await.unwrap();
    let mut live = redis.live_config::<u32>("a").await.unwrap();
    redis.set_config("a", json!("wrong")).await.unwrap();
    live.changed().await.unwrap();
    assert!(live.problem().is_some());
    server.kill();
    while !render().contains("watch_reconnects") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn parse(text: &str) -> Page {
    let mut page = Page::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let end = line.find(['{', ' ']).unwrap();
        let labels = page.entry(line[..end].to_owned()).or_default();
        let inside = line[end..]
            .strip_prefix('{')
            .and_then(|rest| rest.rsplit_once('}'))
            .map_or("", |(labels, _)| labels);
        for label in inside.split("\",").filter(|label| !label.is_empty()) {
            let (name, value) = label.split_once("=\"").unwrap();
            labels.entry(name.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
        }
    }
    page
}

/// Words of the query language outside of braces.
const LANGUAGE: [&str; 18] = [
    "and",
    "by",
    "clamp_min",
    "group_left",
    "histogram_quantile",
    "increase",
    "label_values",
    "offset",
    "on",
    "or",
    "rate",
    "sum",
    "timestamp",
    "unless",
    "max",
    "min",
    "without",
    "e",
];
/// Labels that Prometheus itself adds.
const ADDED: [&str; 2] = ["instance", "job"];

/// The faults of a query.
fn faults(query: &str, page: &Page) -> Vec<String> {
    let mut faults = Vec::new();
    let all_labels: BTreeSet<&str> =
        page.values().flat_map(|labels| labels.keys().map(String::as_str)).collect();
    // A metric and its matchers: `name{..}`. Label names occur in matchers, and in the lists after `by` and
    // `on`.
    let (mut word, mut metric, mut before) = (String::new(), None::<String>, String::new());
    let (mut in_braces, mut in_list) = (false, false);
    let mut letters = query.chars().chain([' ']).peekable();
    while let Some(letter) = letters.next() {
        if letter.is_ascii_alphanumeric() || "_$.:".contains(letter) {
            word.push(letter);
            continue;
        }
        let ended = std::mem::take(&mut word);
        let is_name = ended.starts_with(|first: char| first.is_ascii_alphabetic());
        if is_name && in_braces {
            let metric = metric.as_deref().unwrap_or_default();
            if !page.get(metric).is_some_and(|labels| labels.contains_key(&ended)) {
                faults.push(format!("{metric} has no label {ended}"));
            }
        } else if is_name && in_list {
            let is_known =
                all_labels.contains(&*ended) || page.contains_key(&ended) || ADDED.contains(&&*ended);
            if !is_known {
                faults.push(format!("no metric has a label {ended}"));
            }
        } else if is_name && !LANGUAGE.contains(&&*ended) {
            if !page.contains_key(&ended) {
                faults.push(format!("there is no metric {ended}"));
            }
            metric = Some(ended.clone());
        }
        match letter {
            '{' => in_braces = true,
            '}' => in_braces = false,
            '(' => {
                in_list = matches!(
                    if ended.is_empty() { &before } else { &ended }.as_str(),
                    "by" | "on" | "group_left" | "label_values"
                )
            }
            ')' => in_list = false,
            '"' => {
                let value: String = letters.by_ref().take_while(|letter| *letter != '"').collect();
                let known: BTreeSet<&str> =
                    page.values().flat_map(|labels| labels.values()).flatten().map(String::as_str).collect();
                for part in value.split('|').filter(|part| !part.is_empty() && !part.starts_with('$')) {
                    if !known.contains(part) && !KINDS.contains(&part) {
                        faults.push(format!("no label has the value {part}"));
                    }
                }
            }
            _ => {}
        }
        if !ended.is_empty() {
            before = ended;
        }
    }
    faults
}

/// Values of `error.type` that do not occur in the workload.
const KINDS: [&str; 7] = ["busy", "closed", "corrupt", "denied", "internal", "timeout", "unavailable"];

fn queries(of: &Value, found: &mut Vec<String>) {
    match of {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value
                    .as_str()
                    .filter(|text| matches!(name.as_str(), "expr" | "query") && *text != "prometheus")
                {
                    Some(query) => found.push(query.to_owned()),
                    None => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn queries_use_only_existing_metrics_and_labels() {
    let page = page();
    let dashboard: Value =
        serde_json::from_str(include_str!("../../../examples/monitoring/dashboard.json")).unwrap();
    let alerts = include_str!("../../../examples/monitoring/alerts.yaml");
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    assert_eq!(asked.len(), 17, "the dashboard's queries");
    let expressions = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned);
    asked.extend(expressions);
    assert_eq!(asked.len(), 17 + alerts.matches("alert: ").count());
    let faults: Vec<_> = asked
        .iter()
        .map(|query| (query, faults(query, &page)))
        .filter(|(_, faults)| !faults.is_empty())
        .collect();
    assert!(faults.is_empty(), "{faults:#?}\nthe metrics are: {:#?}", page.keys());
    for kind in KINDS {
        let kinds = [
            gateway_storage::ErrorKind::Busy,
            gateway_storage::ErrorKind::Closed,
            gateway_storage::ErrorKind::Corrupt,
            gateway_storage::ErrorKind::Denied,
            gateway_storage::ErrorKind::Internal,
            gateway_storage::ErrorKind::Timeout,
            gateway_storage::ErrorKind::Unavailable,
        ];
        assert!(kinds.iter().any(|known| known.as_str() == kind), "{kind}");
    }
}

#[test]
fn faults_are_found() {
    let page = parse("good_total{ok=\"yes\",error_type=\"busy\"} 1\nother 2\n");
    for good in [
        "sum by (ok) (rate(good_total{ok=~\"yes|$x\", error_type!=\"\"}[5m])) > 0.5",
        "other / 1e-9",
        "label_values(good_total, ok)",
    ] {
        assert_eq!(faults(good, &page), [""; 0], "{good}");
    }
    for bad in [
        "sum(bad_total)",
        "rate(good_total{bad=\"yes\"}[5m])",
        "sum by (bad) (other)",
        "good_total{ok=\"no\"}",
        "other{ok=\"yes\"}",
        "label_values(good_total, bad)",
    ] {
        assert_eq!(faults(bad, &page).len(), 1, "{bad}");
    }
}
