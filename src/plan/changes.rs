//! [`Plan`]: an ordered list of changes to the configuration.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, SeqAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::Value;

use crate::{
    ConfigValue, Error, ErrorKind, Key, Result,
    model::{PayloadHash, document},
};

/// The maximum number of mutations in a [`Plan`].
pub const MAX_PLAN_MUTATIONS: usize = 10_000;

/// The maximum size of a [`Plan`] (keys, values and expected values), and of the keys and values that it
/// replaces: 8 MiB. Values count as compact JSON.
pub const MAX_PLAN_BYTES: usize = 8 << 20;

/// One change of a [`Plan`]: it sets or deletes one config value, optionally only if the stored value is the
/// expected one.
///
/// `Debug` prints neither key nor value. As JSON it is [an item of a plan](Plan#json).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mutation {
    /// The key of the config value.
    pub key: Key,
    /// The new value. `None` deletes the value; deleting a missing value is not an error.
    pub value: Option<ConfigValue>,
    /// What must be stored under the key before the plan is applied. `None`: anything.
    pub expect: Option<Expect>,
}

/// What a [`Mutation`] expects to be stored before the plan is applied.
///
/// Values are compared bit by bit: 1 differs from 1.0, and 0.0 from -0.0. The order of names in an object
/// does not matter. A backend handles every variant, so a new variant needs a major version.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// No value.
    Absent,
    /// This value.
    Value(ConfigValue),
}

impl Mutation {
    /// Sets a value.
    #[must_use]
    pub fn set(key: &Key, value: &ConfigValue) -> Self {
        Self { key: key.clone(), value: Some(value.clone()), expect: None }
    }

    /// Deletes a value, if there is one.
    #[must_use]
    pub fn delete(key: &Key) -> Self {
        Self { key: key.clone(), value: None, expect: None }
    }

    /// Makes the whole plan fail unless this is stored under the key.
    #[must_use]
    pub fn expecting(self, expect: Expect) -> Self {
        Self { expect: Some(expect), ..self }
    }
}

impl Serialize for Mutation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        match &self.value {
            Some(value) => {
                fields.serialize_entry("set", &self.key)?;
                fields.serialize_entry("value", value)?;
            }
            None => fields.serialize_entry("delete", &self.key)?,
        }
        match &self.expect {
            Some(Expect::Value(value)) => fields.serialize_entry("expect", value)?,
            Some(Expect::Absent) => fields.serialize_entry("expect_absent", &true)?,
            None => {}
        }
        fields.end()
    }
}

/// An ordered list of mutations that [`apply_plan`](crate::ConfigBatch::apply_plan) applies together. It is
/// cheap to clone; `Debug` prints only the number of mutations.
///
/// # JSON
///
/// An array of mutations. `expect` and `expect_absent` are optional; other names are refused. `Serialize`
/// writes what [`from_json`](Plan::from_json) reads.
///
/// ```
/// # use gateway_storage::plan::Plan;
/// let plan = Plan::from_json(
///     r#"[
///         { "set": "models", "value": ["gemini-2.5-pro"], "expect": ["gemini-2.0-pro"] },
///         { "set": "retries", "value": 3, "expect_absent": true },
///         { "delete": "debug" }
///     ]"#,
/// )?;
/// assert_eq!(plan.len(), 3);
/// assert!(plan.payload_hash().to_string().starts_with("24fbfc02"));
/// # Ok::<(), gateway_storage::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Plan {
    mutations: Arc<[Mutation]>,
    /// The hash of a plan with other keys than the caller gave. None: that of the mutations.
    pub(crate) hash: Option<PayloadHash>,
}

impl Plan {
    /// Creates a plan, after checking the limits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if there is no mutation, [`ErrorKind::TooLarge`] over
    /// [`MAX_PLAN_MUTATIONS`] or [`MAX_PLAN_BYTES`].
    pub fn new(mutations: impl Into<Vec<Mutation>>) -> Result<Self> {
        let mutations = mutations.into();
        if mutations.is_empty() {
            return Err(Error::new(ErrorKind::InvalidValue, "a plan must have at least one mutation"));
        }
        if mutations.len() > MAX_PLAN_MUTATIONS {
            return Err(too_many());
        }
        let bytes: usize = mutations.iter().map(size_of_mutation).sum();
        if bytes > MAX_PLAN_BYTES {
            return Err(too_large());
        }
        Ok(Self { mutations: mutations.into(), hash: None })
    }

    /// Reads [JSON text](Plan#json).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if it is not such an array; the message names the mutation, or the line
    /// and column, and quotes nothing. Other errors as [`new`](Plan::new) and [`ConfigValue::new`].
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        // An indented text may be larger than its compact JSON.
        if text.len() > 2 * MAX_PLAN_BYTES {
            return Err(too_large());
        }
        let mut reader = PlanReader::default();
        let parsed = document::parse_seed(&mut reader, text);
        if let Some(error) = reader.error {
            return Err(error);
        }
        parsed?;
        Self::new(reader.mutations)
    }

    /// The mutations, in order.
    #[must_use]
    pub fn mutations(&self) -> &[Mutation] {
        &self.mutations
    }

    /// A plan with the mutations of another one, renamed, and this hash.
    pub(crate) fn renamed(mutations: Vec<Mutation>, hash: PayloadHash) -> Self {
        Self { mutations: mutations.into(), hash: Some(hash) }
    }

    /// The number of mutations.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a plan is never empty")]
    pub fn len(&self) -> usize {
        self.mutations.len()
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.mutations().serialize(serializer)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({} {})", self.len(), if self.len() == 1 { "mutation" } else { "mutations" })
    }
}

fn size_of_mutation(mutation: &Mutation) -> usize {
    let expected = match &mutation.expect {
        Some(Expect::Value(value)) => document::size(value.value()),
        Some(Expect::Absent) | None => 0,
    };
    size_of_record(&mutation.key, mutation.value.as_ref()) + expected
}

/// The number of bytes that one config value counts towards [`MAX_PLAN_BYTES`].
pub(crate) fn size_of_record(key: &Key, value: Option<&ConfigValue>) -> usize {
    key.as_str().len() + value.map_or(0, |value| document::size(value.value()))
}

#[cold]
fn too_many() -> Error {
    Error::new(ErrorKind::TooLarge, format!("a plan may have at most {MAX_PLAN_MUTATIONS} mutations"))
}

#[cold]
fn too_large() -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("a plan may have at most {MAX_PLAN_BYTES} bytes of keys and values"),
    )
}

/// The JSON form of a mutation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MutationJson {
    set: Option<Key>,
    delete: Option<Key>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    expect: Option<Value>,
    #[serde(default)]
    expect_absent: bool,
}

/// Reads mutations one by one, and stops at the first one that exceeds a limit.
#[derive(Default)]
struct PlanReader {
    mutations: Vec<Mutation>,
    bytes: usize,
    /// Why reading stopped, in place of serde's error.
    error: Option<Error>,
}

impl PlanReader {
    fn add(&mut self, json: MutationJson) -> Result<()> {
        let mutation = json.mutation(self.mutations.len() + 1)?;
        self.bytes += size_of_mutation(&mutation);
        if self.mutations.len() == MAX_PLAN_MUTATIONS {
            return Err(too_many());
        }
        if self.bytes > MAX_PLAN_BYTES {
            return Err(too_large());
        }
        self.mutations.push(mutation);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut PlanReader {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut PlanReader {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of mutations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        loop {
            let json = match elements.next_element() {
                Ok(Some(json)) => json,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The message does not quote the name: a stored value can be in the place of one.
                    if error.to_string().starts_with("unknown field") {
                        self.error = Some(unknown_field(self.mutations.len() + 1));
                    }
                    return Err(error);
                }
            };
            if let Err(error) = self.add(json) {
                self.error = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
    }
}

#[cold]
fn unknown_field(number: usize) -> Error {
    const FIELDS: [&str; 5] = ["set", "delete", "value", "expect", "expect_absent"];
    let fields = FIELDS.map(|name| format!("`{name}`")).join(", ");
    let message = format!("mutation {number} has an unknown field; the fields of a mutation: {fields}");
    Error::new(ErrorKind::InvalidValue, message)
}

/// Makes `null` a value, different from a field that is absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl MutationJson {
    fn mutation(self, number: usize) -> Result<Mutation> {
        let invalid = |why: &str| Error::new(ErrorKind::InvalidValue, format!("mutation {number} {why}"));
        let value = self.value.map(ConfigValue::new).transpose()?;
        let (key, value) = match (self.set, self.delete, value) {
            (Some(key), None, Some(value)) => (key, Some(value)),
            (None, Some(key), None) => (key, None),
            (Some(_), None, None) => return Err(invalid("has `set` but no `value`")),
            (None, Some(_), Some(_)) => return Err(invalid("has both `delete` and `value`")),
            _ => return Err(invalid("must have either `set` or `delete`")),
        };
        let expect = match (self.expect, self.expect_absent) {
            (None, false) => None,
            (None, true) => Some(Expect::Absent),
            (Some(value), false) => Some(Expect::Value(ConfigValue::new(value)?)),
            (Some(_), true) => return Err(invalid("has both `expect` and `expect_absent`")),
        };
        Ok(Mutation { key, value, expect })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::MAX_VALUE_BYTES;

    fn refused(text: &str) -> String {
        let error = Plan::from_json(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidValue);
        assert!(!format!("{error:?}").contains("secret"));
        error.to_string()
    }

    #[test]
    fn only_the_documented_format_is_read() {
        let plan = Plan::from_json(
            r#"[{"set":"a","value":null},{"set":"b","value":1,"expect":null},{"delete":"c","expect_absent":true}]"#,
        );
        let key = |name| Key::new(name).unwrap();
        let value = |value: Value| ConfigValue::new(value).unwrap();
        let wanted = [
            Mutation::set(&key("a"), &value(Value::Null)),
            Mutation::set(&key("b"), &value(json!(1))).expecting(Expect::Value(value(Value::Null))),
            Mutation::delete(&key("c")).expecting(Expect::Absent),
        ];
        assert_eq!(plan.unwrap().mutations(), wanted);

        assert_eq!(refused(r#"[{"set":"secret"}]"#), "mutation 1 has `set` but no `value`");
        refused(r#"[{"set":"a","value":1},{"delete":"secret","value":1}]"#);
        refused(r#"[{"set":"a","delete":"secret","value":1}]"#);
        refused(r#"[{}]"#);
        refused(r#"[{"delete":"a","expect":1,"expect_absent":true}]"#);
        assert_eq!(
            refused(r#"[{"delete":"a"},{"delete":"a","secret":1}]"#),
            "mutation 2 has an unknown field; the fields of a mutation: `set`, `delete`, `value`, `expect`, `expect_absent`"
        );
        refused(r#"[{"delete":"a","delete":"secret"}]"#);
        refused(r#"[{"delete":"secret\n"}]"#);
        refused("[]");
        refused("{}");
        refused("");
    }

    #[test]
    fn mutations_and_bytes_are_limited() {
        let key = Key::new("k").unwrap();
        let many = |count| Plan::new(vec![Mutation::delete(&key); count]);
        assert_eq!(many(MAX_PLAN_MUTATIONS).unwrap().len(), MAX_PLAN_MUTATIONS);
        assert_eq!(many(MAX_PLAN_MUTATIONS + 1).unwrap_err().kind(), ErrorKind::TooLarge);
        let large = ConfigValue::new(json!("x".repeat(MAX_VALUE_BYTES - 3))).unwrap();
        let large = |count| Plan::new(vec![Mutation::set(&key, &large); count]);
        assert_eq!(large(8).unwrap().len(), 8);
        assert_eq!(large(9).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn reading_stops_at_a_limit() {
        // The text ends with invalid JSON: it is `InvalidValue` only if it is read to its end.
        let kind = |text: String| Plan::from_json(text).unwrap_err().kind();
        let most = MAX_PLAN_MUTATIONS;
        assert_eq!(kind(format!("[{}oh", r#"{"delete":"a"},"#.repeat(most))), ErrorKind::InvalidValue);
        assert_eq!(kind(format!("[{}oh", r#"{"delete":"a"},"#.repeat(most + 1))), ErrorKind::TooLarge);
        let large = format!(r#"{{"set":"a","value":"{}"}},"#, "x".repeat(MAX_VALUE_BYTES - 3));
        assert_eq!(kind(format!("[{}oh", large.repeat(8))), ErrorKind::InvalidValue);
        assert_eq!(kind(format!("[{}oh", large.repeat(9))), ErrorKind::TooLarge);
    }

    #[test]
    fn a_whole_number_beyond_64_bits_is_refused() {
        for text in [
            r#"[{"set":"a","value":18446744073709551617}]"#,
            r#"[{"set":"a","value":1,"expect":[-9223372036854775809]}]"#,
        ] {
            let message = refused(text);
            assert!(message.starts_with("whole numbers beyond 64 bits can't be stored"), "{message}");
        }
    }
}
