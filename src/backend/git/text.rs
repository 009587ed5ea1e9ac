//! The text of files: pretty JSON, names sorted, a final newline.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

use crate::{ConfigValue, Credential, MAX_VALUE_BYTES};

/// Deeply nested JSON is mostly indentation: longer text is written on one line.
const MAX_PRETTY: usize = 4 * MAX_VALUE_BYTES;

pub(super) fn of_credential(credential: &Credential) -> Vec<u8> {
    text(&SortedMap(credential.fields()))
}

pub(super) fn of_config(value: &ConfigValue) -> Vec<u8> {
    text(&Sorted(value.value()))
}

fn text(document: &impl Serialize) -> Vec<u8> {
    const NEVER: &str = "a value is always JSON";
    let mut text = serde_json::to_vec_pretty(document).expect(NEVER);
    if text.len() > MAX_PRETTY {
        text = serde_json::to_vec(document).expect(NEVER);
    }
    text.push(b'\n');
    text
}

/// Sorts names, because serde_json does not if its feature `preserve_order` is enabled anywhere in the
/// program.
struct Sorted<'v>(&'v Value);
struct SortedMap<'v>(&'v Map<String, Value>);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => SortedMap(fields).serialize(serializer),
            Value::Array(items) => serializer.collect_seq(items.iter().map(Sorted)),
            plain => plain.serialize(serializer),
        }
    }
}

impl Serialize for SortedMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields: Vec<_> = self.0.iter().collect();
        fields.sort_unstable_by_key(|(name, _)| *name);
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (name, value) in fields {
            map.serialize_entry(name, &Sorted(value))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::codec::{decode_config, decode_credential};

    #[test]
    fn names_are_sorted_and_a_newline_follows() {
        let credential =
            Credential::try_from(json!({ "b": [1, -0.0], "a": { "y": {}, "x": null } })).unwrap();
        let text = of_credential(&credential);
        let wanted =
            "{\n  \"a\": {\n    \"x\": null,\n    \"y\": {}\n  },\n  \"b\": [\n    1,\n    -0.0\n  ]\n}\n";
        assert_eq!(std::str::from_utf8(&text).unwrap(), wanted);
        assert_eq!(decode_credential(&text).unwrap(), credential);
    }

    #[test]
    fn deeply_nested_values_can_be_read_back() {
        let deep = (0..60).fold(json!(vec![1; 500_000]), |inner, _| json!([inner]));
        let value = ConfigValue::new(deep).unwrap();
        let text = of_config(&value);
        assert!(text.len() <= MAX_PRETTY);
        assert_eq!(decode_config(&text).unwrap(), value);
    }
}
