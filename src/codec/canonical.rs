//! The canonical form of a value and of a plan: equal ones have the same text, different ones have different
//! texts.
//!
//! It is JSON without spaces, which other programs can produce by these rules:
//!
//! - The names of an object are sorted by their UTF-8 bytes.
//! - An integer, from -2^63 to 2^64-1, is written as decimal digits.
//! - A float is written with the fewest digits that read back as the same float, in scientific form, with `e`
//!   and without a plus: `1e0`, `-0e0`, `1.5e-3`, `1e300`. So 1 differs from 1.0, and 0.0 from -0.0.
//! - In a string only `"`, `\` and control characters below U+0020 are escaped: as `\b \t \n \f \r`, others
//!   as `\u001f`.
//!
//! A plan is the array of its mutations. Each is an object with `set` and `value`, or with `delete`, and with
//! `expect` or `"expect_absent":true` if the mutation expects something, as [`Plan::from_json`] reads it.

use std::io::Write;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    Key, Result,
    plan::{Expect, Mutation, PayloadHash, Plan},
};

/// Writes the canonical form of a value.
pub fn canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or_default();
            write!(out, "{float:e}").expect(NEVER);
        }
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                canonical(item, out);
            }
            out.push(b']');
        }
        Value::Object(fields) => canonical_fields(fields, out),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            serde_json::to_writer(out, value).expect(NEVER);
        }
    }
}

/// Writes the canonical form of an object.
pub fn canonical_fields(fields: &Map<String, Value>, out: &mut Vec<u8>) {
    // serde_json sorts them itself, unless its feature `preserve_order` is on.
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_unstable_by_key(|(name, _)| name.as_bytes());
    out.push(b'{');
    for (at, (name, value)) in fields.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        text(name, out);
        out.push(b':');
        canonical(value, out);
    }
    out.push(b'}');
}

const NEVER: &str = "writing to a vector never fails, and a value can be serialized";

/// Writes a string as JSON.
pub fn text(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect(NEVER);
}

/// Whether two values are equal bit by bit: 1 differs from 1.0, and 0.0 from -0.0.
pub fn is_same(left: &Value, right: &Value) -> bool {
    let form = |value| {
        let mut out = Vec::new();
        canonical(value, &mut out);
        out
    };
    form(left) == form(right)
}

/// Writes the canonical form of one mutation.
fn mutation(mutation: &Mutation, out: &mut Vec<u8>) {
    let named = |name: &str, key: &Key, out: &mut Vec<u8>| {
        text(name, out);
        out.push(b':');
        text(key.as_str(), out);
    };
    out.push(b'{');
    if mutation.value.is_none() {
        named("delete", &mutation.key, out);
        if mutation.expect.is_some() {
            out.push(b',');
        }
    }
    match &mutation.expect {
        Some(Expect::Absent) => out.extend_from_slice(b"\"expect_absent\":true"),
        Some(Expect::Value(value)) => {
            out.extend_from_slice(b"\"expect\":");
            canonical(value, out);
        }
        None => {}
    }
    if let Some(value) = &mutation.value {
        if mutation.expect.is_some() {
            out.push(b',');
        }
        named("set", &mutation.key, out);
        out.extend_from_slice(b",\"value\":");
        canonical(value, out);
    }
    out.push(b'}');
}

impl Plan {
    /// SHA-256 of the plan's canonical form: its JSON without spaces, names sorted by their bytes, floats in
    /// scientific form (`1.5e-3`). It distinguishes a replay from another plan under the same key.
    #[must_use]
    pub fn payload_hash(&self) -> PayloadHash {
        if let Some(hash) = self.hash {
            return hash;
        }
        let mut hash = Sha256::new();
        let mut out = Vec::new();
        for (at, step) in self.mutations().iter().enumerate() {
            out.push(if at == 0 { b'[' } else { b',' });
            mutation(step, &mut out);
            hash.update(&out);
            out.clear();
        }
        hash.update(b"]");
        PayloadHash(hash.finalize().into())
    }

    /// The plan with other keys, for a store that has them in a namespace. Its [hash](Plan::payload_hash) is
    /// that of this plan [in the namespace](PayloadHash::in_namespace), so it differs from that of another
    /// plan with these keys. The new keys do not count for [`MAX_PLAN_BYTES`](crate::plan::MAX_PLAN_BYTES).
    ///
    /// # Errors
    ///
    /// Those of `rename`.
    pub fn with_keys(&self, namespace: &str, rename: impl Fn(&Key) -> Result<Key>) -> Result<Self> {
        let renamed = |mutation: &Mutation| Ok(Mutation { key: rename(&mutation.key)?, ..mutation.clone() });
        let mutations = self.mutations().iter().map(renamed).collect::<Result<Vec<_>>>()?;
        Ok(Self::renamed(mutations, self.payload_hash().in_namespace(namespace)))
    }
}

impl PayloadHash {
    /// The hash of the same plan with the keys of a namespace. The hash of that in the same namespace is this
    /// hash again: an audit can show the plan's own.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        let mask: [u8; 32] = Sha256::digest(namespace).into();
        Self(std::array::from_fn(|at| self.0[at] ^ mask[at]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ConfigValue;

    fn form(value: &Value) -> String {
        let mut out = Vec::new();
        canonical(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_unambiguous() {
        for (value, wanted) in [
            (json!(1), "1"),
            (json!(1.0), "1e0"),
            (json!(0.0), "0e0"),
            (json!(-0.0), "-0e0"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(18446744073709551616.0), "1.8446744073709552e19"),
            (json!(i64::MIN), "-9223372036854775808"),
            (json!(1e300), "1e300"),
            (json!(1e16), "1e16"),
            (json!(0.0015), "1.5e-3"),
            (json!(5e-324), "5e-324"),
        ] {
            assert_eq!(form(&value), wanted);
        }
    }

    #[test]
    fn names_are_sorted_and_texts_escaped() {
        let value = json!({ "b": [null, true, {}], "a": "\u{0}\u{1f}\n\"\\/\u{7f}é\u{2028}", "": 1, "B": 2 });
        let wanted =
            "{\"\":1,\"B\":2,\"a\":\"\\u0000\\u001f\\n\\\"\\\\/\u{7f}é\u{2028}\",\"b\":[null,true,{}]}";
        assert_eq!(form(&value), wanted);
    }

    #[test]
    fn a_plan_is_the_json_that_it_is_read_from() {
        let text = r#"[{"expect":1e0,"set":"a","value":[1,-0e0]},{"delete":"b","expect_absent":true},{"delete":"c"},{"delete":"c","expect":null},{"expect_absent":true,"set":"d","value":{"x":1,"y":2}},{"set":"e","value":""}]"#;
        let plan = Plan::from_json(text).unwrap();
        assert_eq!(plan.payload_hash(), PayloadHash(Sha256::digest(text).into()));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<u64>().prop_map(|bits| Value::from(f64::from_bits(bits))),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_json_of_the_same_value(value in value()) {
            let read = ConfigValue::from_json(form(&value)).unwrap();
            prop_assert_eq!(read.to_json(), value.to_string());
            prop_assert!(is_same(&read, &value));
        }

        #[test]
        fn different_values_have_different_forms(left in value(), right in value()) {
            let (texts, same) = ((left.to_string(), right.to_string()), is_same(&left, &right));
            prop_assert_eq!(same, texts.0 == texts.1);
        }
    }

    #[test]
    fn the_payload_hash_depends_on_mutations_and_order() {
        let key = |name| Key::new(name).unwrap();
        let one = ConfigValue::new(json!(1)).unwrap();
        let (set, delete) = (Mutation::set(&key("a"), &one), Mutation::delete(&key("a")));
        let plans = [
            vec![set.clone()],
            vec![delete.clone()],
            vec![set.clone(), delete.clone()],
            vec![delete.clone(), set.clone()],
            vec![set.clone().expecting(Expect::Absent)],
            vec![set.clone().expecting(Expect::Value(one.clone()))],
            vec![set.clone(), set],
        ];
        let hashes: std::collections::BTreeSet<_> =
            plans.iter().map(|plan| Plan::new(plan.clone()).unwrap().payload_hash()).collect();
        assert_eq!(hashes.len(), plans.len());
    }
}
