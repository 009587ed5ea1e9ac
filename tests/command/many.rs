//! Many values at once, budgets, and a cache value that is stored once.

use serde_json::{Value, json};
use testkit::servers;

use super::Place;

#[test]
fn an_increment_is_refused_if_it_would_exceed_the_limit() {
    let place = Place::new();
    let spend = |delta, limit| ["usage", "increment", "alice/2026-11-30", "tokens", delta, "--within", limit];
    assert_eq!(place.ok(&spend("80", "100")), "80\n");
    let refused = place.fails(1, &spend("21", "100"));
    assert_eq!(
        refused,
        "error: the counter would exceed its limit, so nothing was added: the total is 80, the limit 100\n"
    );
    let json = place.run(&[&["--output", "json"], &spend("21", "100")[..]].concat());
    assert_eq!(json.code, Some(1));
    let document: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(document, json!({ "total": 80, "limit": 100, "refused": true }));
    let error: Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!(error["error"]["kind"], "refused");
    assert_eq!(error["error"]["outcome"], "not_applied");

    let counted = place.json(&spend("20", "100"));
    assert_eq!(counted, json!({ "total": 100, "limit": 100, "refused": false }));
    assert_eq!(place.ok(&spend("-30", "100")), "70\n");
    assert_eq!(place.ok(&["usage", "increment", "bob", "tokens", "-5", "--within", "-5"]), "-5\n");
    place.fails(1, &["usage", "increment", "bob", "other", "1", "--within", "0"]);
    assert_eq!(place.ok(&["usage", "get", "bob"]), "tokens\t-5\n", "a refused counter is not made");
    assert_eq!(place.fails_as(2, &spend("1", "much")), "usage");
}

#[test]
fn usage_is_reset_by_prefix() {
    let place = Place::new();
    for key in ["2025-12-31/a", "2025-12-31/b", "2026-01-01/a", "*"] {
        place.ok(&["usage", "increment", key, "n", "1"]);
    }
    assert_eq!(place.ok(&["usage", "reset", "--prefix", "2025-"]), "2\n");
    assert_eq!(place.ok(&["usage", "list"]), "*\tn\t1\n2026-01-01/a\tn\t1\n");
    assert_eq!(place.json(&["usage", "reset", "--prefix", "2025-"]), json!({ "deleted": 0 }));
    assert_eq!(place.json(&["usage", "reset", "--prefix", "*"]), json!({ "deleted": 1 }));
    assert_eq!(place.ok(&["usage", "list"]), "2026-01-01/a\tn\t1\n");
    assert_eq!(place.fails_as(2, &["usage", "reset", "--prefix", ""]), "invalid_key");
    assert_eq!(place.fails_as(2, &["usage", "reset"]), "usage");
    assert_eq!(place.fails_as(2, &["usage", "reset", "2026-01-01/a", "--prefix", "2026"]), "usage");
}

#[test]
fn many_configs_are_read_at_once() {
    let place = Place::new();
    place.ok(&["config", "set", "--many", r#"{"retries":3,"models":["a"],"-x":null}"#]);
    assert_eq!(place.json(&["config", "get", "--many", "retries"]), json!({ "retries": 3 }));
    let line = ["config", "get", "--many", "--", "models", "-x", "models"];
    assert_eq!(place.json(&line), json!({ "models": ["a"], "-x": null }));

    let some = place.run(&["config", "get", "--many", "retries", "no", "none"]);
    assert_eq!(some.code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&some.out).unwrap(), json!({ "retries": 3 }));
    assert_eq!(some.err, "error: no configs have the keys `no`, `none`\n");
    let none = place.run(&["config", "get", "--many", "no"]);
    assert_eq!((none.out.as_str(), none.err.as_str()), ("{}\n", "error: no config has the key `no`\n"));

    assert_eq!(place.fails_as(2, &["config", "get", "retries", "models"]), "usage");
    assert_eq!(place.fails_as(2, &["config", "get", "--many"]), "usage");
    assert_eq!(place.fails_as(2, &["config", "get", "--many", "retries", "--revision"]), "usage");
}

#[test]
fn many_configs_are_stored_at_once() {
    let place = Place::new();
    let ended = place.fed(r#"{"a":1,"b":{"deep":[true]}}"#, &["config", "set", "--many", "-"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(0), "", ""));
    assert_eq!(place.json(&["config", "list", "--reveal"]), json!({ "a": 1, "b": { "deep": [true] } }));
    assert_eq!(place.json(&["config", "set", "--many", "{}"]), json!({ "ok": true }));

    for (input, kind) in [
        ("[1]", "usage"),
        ("{\"a\":2,\"a\":3}", "invalid_value"),
        ("{\"a\":2,\"\":3}", "invalid_key"),
        ("{\"a\":2,\"b\":18446744073709551616}", "invalid_value"),
        ("{", "invalid_value"),
    ] {
        assert_eq!(place.fails_as(2, &["config", "set", "--many", input]), kind, "{input}");
    }
    assert_eq!(place.ok(&["config", "get", "a"]), "1\n");
    for line in [
        &["config", "set"][..],
        &["config", "set", "a"],
        &["config", "set", "a", "1", "--many", "{}"],
        &["config", "set", "--many", "{}", "--if-absent"],
    ] {
        assert_eq!(place.fails_as(2, line), "usage", "{line:?}");
    }
}

#[test]
fn a_cache_value_is_stored_if_there_is_none() {
    let (place, url) = (Place::new(), servers::redis());
    let set = |value| ["--url", &url, "cache", "set", "k", value, "--ttl", "1h", "--if-absent"];
    assert_eq!(place.ok(&set("first")), "");
    assert_eq!(place.fails_as(1, &set("second")), "conflict");
    let refused = "error: the cache holds a value for this key, so nothing was stored\n";
    assert_eq!(place.fails(1, &set("second")), refused);
    assert_eq!(place.ok(&["--url", &url, "cache", "get", "k"]), "first");
    assert_eq!(place.ok(&["--url", &url, "cache", "delete", "k"]), "");
    assert_eq!(place.json(&set("third")), json!({ "ok": true }));
}
