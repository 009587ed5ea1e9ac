//! Keys and values that stores often get wrong.

use serde_json::{Map, Value, json};

use crate::{ConfigValue, Credential, Key, MAX_DEPTH, MAX_VALUE_BYTES, Record};

/// Words in some of the keys, credentials, config and cache values of the kit. One of them in a log, a span,
/// a metric or an error is a leak. They stand side by side, so that a truncated text still contains one.
pub const CANARY: [&str; 2] = ["kT9vQ2xLr7", "Zp4mWc8Yd1"];

/// Keys that file systems, globs, query languages, schemas and shells would interpret or confuse with each
/// other. To a store they are ordinary, distinct keys. The longest have `max` bytes.
///
/// # Panics
///
/// If `max` is less than 64 or more than [`Key::MAX_BYTES`].
#[must_use]
pub fn hostile_keys(max: usize) -> Vec<Key> {
    assert!((64..=Key::MAX_BYTES).contains(&max), "the kit needs keys of 64 to {} bytes", Key::MAX_BYTES);
    let made = [
        "x".repeat(max),
        format!("{}y", "x".repeat(max - 1)),
        "团".repeat(max / "团".len()),
        CANARY.join(" "),
    ];
    HOSTILE_KEYS
        .iter()
        .copied()
        .chain(made.iter().map(String::as_str))
        .map(|name| Key::new(name).expect("the kit's own keys are valid"))
        .collect()
}

const HOSTILE_KEYS: &[&str] = &[
    // Paths
    "../../escape",
    "../config/config",
    "/etc/passwd",
    "a/b",
    "a",
    ".",
    "..",
    ".hidden",
    "~",
    "C:\\x",
    "CON",
    "nul",
    "x",
    "x.json",
    "x.tmp",
    "x~",
    ".git",
    ".lock",
    "a\\b",
    // Globs, prefixes, namespaces, hash tags
    "*",
    "?",
    "[1]",
    "1",
    "a*",
    "a:b",
    "a:b:c",
    "a::",
    ":",
    "{tag}",
    "{",
    "}",
    // Query languages
    "$where",
    "$set",
    "_id",
    "id",
    "a.b",
    "a..b",
    "$a.$b",
    "'",
    "\"",
    "`",
    "';--",
    "%",
    "%s",
    "%2e",
    "%2F",
    "_",
    "\\",
    "\\u0000",
    "null",
    "true",
    "NaN",
    "0",
    "-1",
    "1.0",
    "1e3",
    "__proto__",
    "constructor",
    "key",
    "value",
    "field",
    // Shells, lines, spaces
    "-rf",
    "--",
    "$(id)",
    " ",
    "  ",
    " lead",
    "lead",
    "trail ",
    "trail",
    "in side",
    "#",
    "&",
    "|",
    ";",
    "<x>",
    // Letters: case, composed and decomposed, invisible, right to left, beyond the first plane
    "Case",
    "case",
    "CASE",
    "\u{e9}",
    "e\u{301}",
    "ß",
    "ss",
    "İ",
    "ı",
    "\u{200b}",
    "\u{feff}",
    "\u{2028}",
    "שלום",
    "\u{1f980}",
    "\u{10ffff}",
    "\u{fffd}",
    "团队",
];

/// JSON values that stores often change: numbers, names, texts, values at the limits. All are valid configs.
///
/// # Panics
///
/// Never.
#[must_use]
pub fn hostile_values() -> Vec<Value> {
    let mut values = vec![
        json!({ "access_token": CANARY }),
        json!(CANARY.join("/")),
        // Integers that a double can't represent, and doubles that could pass for integers
        json!(u64::MAX),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX - 1),
        json!(9_007_199_254_740_993_u64),
        json!(-9_007_199_254_740_993_i64),
        json!(0),
        json!(0.0),
        json!(-0.0),
        json!(1),
        json!(1.0),
        json!(1e16),
        json!(10_000_000_000_000_000_u64),
        json!(1e21),
        json!(1e300),
        json!(-1e300),
        json!(5e-324),
        json!(f64::MAX),
        json!(f64::MIN_POSITIVE),
        json!(f64::EPSILON),
        json!(0.1 + 0.2),
        json!(1e23),
        json!(18446744073709551616.0),
        // Texts that look like something else
        json!("123"),
        json!("-0"),
        json!("1e5"),
        json!("{\"a\":1}"),
        json!("[1]"),
        json!("null"),
        json!("true"),
        json!("\"quoted\""),
        json!(""),
        json!(" "),
        json!("2024-01-01T00:00:00Z"),
        json!("\\u0000"),
        // Texts that are cut or normalized
        json!("\u{0}"),
        json!("a\u{0}b"),
        json!("\u{1}\u{1f}\u{7f}\u{9f}"),
        json!("line\r\nline\n"),
        json!("\u{feff}bom"),
        json!("\u{1f980}\u{200d}\u{10ffff}\u{ffff}"),
        json!("\u{e9}"),
        json!("e\u{301}"),
        json!("</script>"),
        // Empty, or nearly
        json!(null),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!([null]),
        json!([[], {}]),
        json!({ "": null }),
        json!({ "": { "": {} } }),
        json!({ "a": null }),
        json!({ "a": [], "b": {}, "c": "" }),
        // Names that schemas and query languages reserve
        json!({ "$a.b": { "": null } }),
        json!({ "$set": { "$where": 1 }, "a.b": 1, "a": { "b": 2 } }),
        json!({ "_id": 1, "id": 2, "key": 3, "value": 4, "data": 5, "created_at": 6, "updated_at": "7", "version": {} }),
        json!({ "expires_at": 1, "email": null, "disabled": false, "access_token": ["x"], "_": 0, "\u{0}": "\u{0}" }),
        json!({ "$oid": "5" }),
        json!({ "$numberLong": "5" }),
        json!({ "$date": { "$numberLong": "5" } }),
        json!({ "__proto__": { "x": 1 }, "constructor": null, "Case": 1, "case": 2, "\u{e9}": 1, "e\u{301}": 2 }),
        json!([0, 0.0, -0.0, "0", null, false, [], {}]),
        // Large
        json!((0..2_000).collect::<Vec<_>>()),
        (0..2_000).map(|n| (format!("field {n}"), json!(n))).collect(),
        nested(|inner| json!([inner]), json!(null), MAX_DEPTH),
        nested(|inner| json!({ "a": inner }), json!(-0.0), MAX_DEPTH),
    ];
    // Features of serde_json, which an application may enable, give these a meaning; they are then refused.
    let markers = ["Number", "RawValue"].map(|name| json!({ format!("$serde_json::private::{name}"): "1" }));
    values.extend(markers.into_iter().filter(|value| ConfigValue::new(value.clone()).is_ok()));
    values.push(json!("x".repeat(MAX_VALUE_BYTES - 2)));
    values.push(json!("\u{0}".repeat((MAX_VALUE_BYTES - 2) / 6)));
    values.push(json!({ "a": "团".repeat((MAX_VALUE_BYTES - 8) / 3) }));
    values
}

/// [`hostile_values`] as credentials: objects as they are, other values as a field unless that is too large.
///
/// # Panics
///
/// Never.
#[must_use]
pub fn hostile_credentials() -> Vec<Credential> {
    hostile_values()
        .into_iter()
        .map(|value| match value {
            Value::Object(fields) => fields,
            other => Map::from_iter([("value".to_owned(), other)]),
        })
        .filter_map(|fields| Credential::new(fields).ok())
        .collect()
}

fn nested(wrap: impl Fn(Value) -> Value, innermost: Value, depth: usize) -> Value {
    (0..depth).fold(innermost, |inner, _| wrap(inner))
}

/// Whether two values are the same to the last bit. `==` is not enough, because to it 0.0 equals -0.0.
#[must_use]
pub fn identical(left: &Value, right: &Value) -> bool {
    match (left, right) {
        // As text, which is the shortest that restores the same bits; an integer has no decimal point.
        (Value::Number(left), Value::Number(right)) => left.to_string() == right.to_string(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| identical(left, right))
        }
        (Value::Object(left), Value::Object(right)) => identical_fields(left, right),
        _ => left == right,
    }
}

/// [`identical`], for objects.
#[must_use]
pub fn identical_fields(left: &Map<String, Value>, right: &Map<String, Value>) -> bool {
    left.len() == right.len()
        && left.iter().all(|(name, value)| right.get(name).is_some_and(|other| identical(value, other)))
}

/// [`identical`], for records.
#[must_use]
pub fn identical_records(left: &[Record], right: &[Record]) -> bool {
    let same = |(left, right): (&Record, &Record)| match (left, right) {
        (Record::Credential { id, credential }, Record::Credential { id: other, credential: fields }) => {
            id == other && identical_fields(credential.fields(), fields.fields())
        }
        (Record::Config { key, value }, Record::Config { key: other, value: second }) => {
            key == other && identical(value, second)
        }
        _ => left == right,
    };
    left.len() == right.len() && left.iter().zip(right).all(same)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ConfigValue;

    #[test]
    fn keys_are_distinct() {
        let keys = hostile_keys(Key::MAX_BYTES);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    }

    #[test]
    fn values_are_valid_and_distinct() {
        let values = hostile_values();
        for (at, value) in values.iter().enumerate() {
            assert!(ConfigValue::new(value.clone()).is_ok(), "value {at} is over a limit");
            assert!(
                values.iter().skip(at + 1).all(|other| !identical(value, other)),
                "value {at} is not unique"
            );
        }
        let sizes: Vec<usize> = values.iter().map(|value| value.to_string().len()).collect();
        assert!(sizes.contains(&MAX_VALUE_BYTES), "one value has exactly the maximum size");
    }

    #[test]
    fn identical_distinguishes_more_than_equality() {
        assert_eq!(json!(0.0).as_f64(), json!(-0.0).as_f64());
        assert!(!identical(&json!([{ "a": 0.0 }]), &json!([{ "a": -0.0 }])));
        assert!(!identical(&json!(1), &json!(1.0)));
        assert!(identical(&json!({ "a": [1, 1e300] }), &json!({ "a": [1, 1e300] })));
    }
}
