//! [`Plan`]: an ordered list of changes to the configuration, and how it is applied and taken back.

use std::{fmt, sync::Arc, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, SeqAccess, Visitor},
};
use serde_json::Value;

use super::{PlanAction, document};
use crate::{ConfigValue, Error, ErrorKind, Key, Result};

/// The most mutations of one [`Plan`].
pub const MAX_PLAN_MUTATIONS: usize = 10_000;

/// The most that a [`Plan`] may hold, and the most that it may replace: keys and values as compact JSON, 8 MiB.
pub const MAX_PLAN_BYTES: usize = 8 << 20;

/// How long the record of a plan is kept unless [`ApplyOptions::ttl`] says otherwise: 14 days.
pub const DEFAULT_PLAN_TTL: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The longest that the record of a plan can be kept: 10,000 days.
pub const MAX_PLAN_TTL: Duration = Duration::from_secs(10_000 * 24 * 60 * 60);

/// One change of a [`Plan`]: sets or deletes one config value, if it is what the caller expects.
///
/// `Debug` shows neither key nor value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mutation {
    /// Which config value.
    pub key: Key,
    /// What it becomes; `None` deletes it. Deleting what is not there is no error.
    pub value: Option<ConfigValue>,
    /// What must be stored under the key before the plan; `None`: anything.
    pub expect: Option<Expect>,
}

/// What a [`Mutation`] expects to be stored before the plan is applied.
///
/// Values are compared to the last bit: 1 is not 1.0, 0.0 is not -0.0. The order of an object's names does not matter.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// Nothing.
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

    /// The same mutation, which refuses the whole plan unless this is what is stored.
    #[must_use]
    pub fn expecting(self, expect: Expect) -> Self {
        Self { expect: Some(expect), ..self }
    }
}

/// An ordered list of mutations that are applied together: what one key of
/// [`apply_plan`](crate::ConfigBatch::apply_plan) names. Cheap to clone; `Debug` shows how many there are.
///
/// # As JSON
///
/// An array of mutations. `expect` and `expect_absent` can be left out; other names are refused.
///
/// ```
/// # use gateway_storage::Plan;
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
pub struct Plan(Arc<[Mutation]>);

impl Plan {
    /// Checks the limits and takes the mutations.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if there is no mutation, [`ErrorKind::TooLarge`] over [`MAX_PLAN_MUTATIONS`] or
    /// [`MAX_PLAN_BYTES`].
    pub fn new(mutations: impl Into<Vec<Mutation>>) -> Result<Self> {
        let mutations = mutations.into();
        if mutations.is_empty() {
            return Err(Error::new(ErrorKind::InvalidValue, "a plan has at least one mutation"));
        }
        if mutations.len() > MAX_PLAN_MUTATIONS {
            return Err(too_many());
        }
        let bytes: usize = mutations.iter().map(size_of_mutation).sum();
        if bytes > MAX_PLAN_BYTES { Err(too_large()) } else { Ok(Self(mutations.into())) }
    }

    /// Reads JSON text, as above.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if it is not such an array; the message names the place and quotes nothing. As
    /// [`new`](Plan::new) and [`ConfigValue::new`] otherwise.
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        // Twice as much: it may be indented.
        if text.len() > 2 * MAX_PLAN_BYTES {
            return Err(too_large());
        }
        let mut steps = Steps::default();
        let read = document::parse_seed(&mut steps, text);
        if let Some(refused) = steps.refused {
            return Err(refused);
        }
        read?;
        Self::new(steps.mutations)
    }

    /// The mutations, in order.
    #[must_use]
    pub fn mutations(&self) -> &[Mutation] {
        &self.0
    }

    /// How many mutations there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a plan is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
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

/// What one config value counts for in [`MAX_PLAN_BYTES`].
pub(crate) fn size_of_record(key: &Key, value: Option<&ConfigValue>) -> usize {
    key.as_str().len() + value.map_or(0, |value| document::size(value.value()))
}

#[cold]
fn too_many() -> Error {
    let message = format!("a plan has at most {MAX_PLAN_MUTATIONS} mutations, this one has more");
    Error::new(ErrorKind::TooLarge, message)
}

#[cold]
fn too_large() -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("a plan has at most {MAX_PLAN_BYTES} bytes of keys and values, this one has more"),
    )
}

/// A mutation as it is written in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    set: Option<Key>,
    delete: Option<Key>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    expect: Option<Value>,
    #[serde(default)]
    expect_absent: bool,
}

/// Mutations that are read one by one, so that a text of too many of them ends at the first that is too much.
#[derive(Default)]
struct Steps {
    mutations: Vec<Mutation>,
    bytes: usize,
    /// Why no more are read.
    refused: Option<Error>,
}

impl Steps {
    fn add(&mut self, step: Step) -> Result<()> {
        let mutation = step.mutation(self.mutations.len() + 1)?;
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

impl<'de> DeserializeSeed<'de> for &mut Steps {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Steps {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of mutations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut steps: A) -> Result<(), A::Error> {
        loop {
            let step = match steps.next_element() {
                Ok(Some(step)) => step,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The name is not repeated: what is stored can stand where a name should.
                    if error.to_string().starts_with("unknown field") {
                        self.refused = Some(misnamed(self.mutations.len() + 1));
                    }
                    return Err(error);
                }
            };
            if let Err(refused) = self.add(step) {
                self.refused = Some(refused);
                return Err(A::Error::custom("refused"));
            }
        }
    }
}

/// A mutation has a name that none has.
#[cold]
fn misnamed(at: usize) -> Error {
    const NAMES: [&str; 5] = ["set", "delete", "value", "expect", "expect_absent"];
    let names = NAMES.map(|name| format!("`{name}`")).join(", ");
    Error::new(ErrorKind::InvalidValue, format!("mutation {at} has a name that is none of {names}"))
}

/// A value that is there, `null` among them.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Step {
    fn mutation(self, at: usize) -> Result<Mutation> {
        let wrong = |why: &str| Error::new(ErrorKind::InvalidValue, format!("mutation {at} {why}"));
        let value = self.value.map(ConfigValue::new).transpose()?;
        let (key, value) = match (self.set, self.delete, value) {
            (Some(key), None, Some(value)) => (key, Some(value)),
            (None, Some(key), None) => (key, None),
            (Some(_), None, None) => return Err(wrong("sets a key and has no `value`")),
            (None, Some(_), Some(_)) => return Err(wrong("deletes a key and has a `value`")),
            _ => return Err(wrong("has not exactly one of `set` and `delete`")),
        };
        let expect = match (self.expect, self.expect_absent) {
            (None, false) => None,
            (None, true) => Some(Expect::Absent),
            (Some(value), false) => Some(Expect::Value(ConfigValue::new(value)?)),
            (Some(_), true) => return Err(wrong("has both `expect` and `expect_absent`")),
        };
        Ok(Mutation { key, value, expect })
    }
}

/// How a plan is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApplyOptions {
    /// How long the plan's record is kept, in milliseconds, a part of one rounded up: as long its key is taken and it
    /// can be rolled back. More than zero, at most [`MAX_PLAN_TTL`].
    pub ttl: Duration,
    /// A label for the audit: "canary", "all". A name like a [`Key`]: 1 to 255 bytes, no control characters.
    pub stage: Option<String>,
    /// Who applies it, for the audit. A name like `stage`.
    pub source: Option<String>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self { ttl: DEFAULT_PLAN_TTL, stage: None, source: None }
    }
}

impl ApplyOptions {
    /// The same options with another time to live.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// The same options with this stage.
    #[must_use]
    pub fn with_stage(self, stage: impl Into<String>) -> Self {
        Self { stage: Some(stage.into()), ..self }
    }

    /// The same options with this source.
    #[must_use]
    pub fn with_source(self, source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Checks them, as every backend does first, and gives the time to live in milliseconds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if the time to live is out of its range, or a label is not a name.
    pub fn check(&self) -> Result<u64> {
        check_label("stage", self.stage.as_deref())?;
        check_label("source", self.source.as_deref())?;
        if self.ttl.is_zero() || self.ttl > MAX_PLAN_TTL {
            return Err(Error::new(
                ErrorKind::InvalidValue,
                "a plan's time to live is more than zero and at most 10,000 days",
            ));
        }
        let millis = self.ttl.as_nanos().div_ceil(1_000_000);
        Ok(u64::try_from(millis).expect("10,000 days are few milliseconds"))
    }
}

fn check_label(what: &str, label: Option<&str>) -> Result<()> {
    match label.map(Key::new) {
        Some(Err(why)) => {
            Err(Error::new(ErrorKind::InvalidValue, format!("the {what} is not a name")).with_source(why))
        }
        _ => Ok(()),
    }
}

/// How a plan is taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RollbackOptions {
    /// Also values that were changed since.
    pub force: bool,
    /// Who does it, for the audit. A name as in [`ApplyOptions::stage`].
    pub source: Option<String>,
}

impl RollbackOptions {
    /// Options that also restore values that were changed since.
    #[must_use]
    pub fn forced(self) -> Self {
        Self { force: true, ..self }
    }

    /// The same options with this source.
    #[must_use]
    pub fn with_source(self, source: impl Into<String>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// As the audit calls it.
    #[must_use]
    pub fn action(&self) -> PlanAction {
        if self.force { PlanAction::ForcedRollback } else { PlanAction::Rollback }
    }

    /// Checks them, as every backend does first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if the source is not a name.
    pub fn check(&self) -> Result<()> {
        check_label("source", self.source.as_deref())
    }
}

/// What applying a plan did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It was applied.
    Applied,
    /// It had been applied before, under this key: nothing was changed.
    Replayed,
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a rollback that is refused is Ok"]
pub enum Rollback {
    /// The values that the plan replaced are back.
    RolledBack,
    /// It had been rolled back before: nothing was changed.
    AlreadyRolledBack,
    /// These keys are not what the plan left, sorted: nothing was changed.
    Refused {
        /// The keys.
        changed: Vec<Key>,
    },
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
    fn reads_its_format_and_no_other() {
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

        assert_eq!(refused(r#"[{"set":"secret"}]"#), "mutation 1 sets a key and has no `value`");
        refused(r#"[{"set":"a","value":1},{"delete":"secret","value":1}]"#);
        refused(r#"[{"set":"a","delete":"secret","value":1}]"#);
        refused(r#"[{}]"#);
        refused(r#"[{"delete":"a","expect":1,"expect_absent":true}]"#);
        assert_eq!(
            refused(r#"[{"delete":"a"},{"delete":"a","secret":1}]"#),
            "mutation 2 has a name that is none of `set`, `delete`, `value`, `expect`, `expect_absent`"
        );
        refused(r#"[{"delete":"a","delete":"secret"}]"#);
        refused(r#"[{"delete":"secret\n"}]"#);
        refused("[]");
        refused("{}");
        refused("");
    }

    #[test]
    fn is_limited() {
        let key = Key::new("k").unwrap();
        let many = |count| Plan::new(vec![Mutation::delete(&key); count]);
        assert_eq!(many(MAX_PLAN_MUTATIONS).unwrap().len(), MAX_PLAN_MUTATIONS);
        assert_eq!(many(MAX_PLAN_MUTATIONS + 1).unwrap_err().kind(), ErrorKind::TooLarge);
        let wide = ConfigValue::new(json!("x".repeat(MAX_VALUE_BYTES - 3))).unwrap();
        let wide = |count| Plan::new(vec![Mutation::set(&key, &wide); count]);
        assert_eq!(wide(8).unwrap().len(), 8);
        assert_eq!(wide(9).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_text_of_too_much_is_not_read_to_its_end() {
        // The end is no JSON: only what looks at it says so.
        let kind = |text: String| Plan::from_json(text).unwrap_err().kind();
        let most = MAX_PLAN_MUTATIONS;
        assert_eq!(kind(format!("[{}oh", r#"{"delete":"a"},"#.repeat(most))), ErrorKind::InvalidValue);
        assert_eq!(kind(format!("[{}oh", r#"{"delete":"a"},"#.repeat(most + 1))), ErrorKind::TooLarge);
        let wide = format!(r#"{{"set":"a","value":"{}"}},"#, "x".repeat(MAX_VALUE_BYTES - 3));
        assert_eq!(kind(format!("[{}oh", wide.repeat(8))), ErrorKind::InvalidValue);
        assert_eq!(kind(format!("[{}oh", wide.repeat(9))), ErrorKind::TooLarge);
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

    #[test]
    fn options_are_checked() {
        let check = |options: ApplyOptions| options.check().map_err(|error| error.kind());
        assert_eq!(check(ApplyOptions::default()), Ok(1_209_600_000));
        assert_eq!(check(ApplyOptions::default().with_ttl(Duration::from_micros(1))), Ok(1));
        for wrong in [
            ApplyOptions::default().with_ttl(Duration::ZERO),
            ApplyOptions::default().with_ttl(MAX_PLAN_TTL + Duration::from_nanos(1)),
            ApplyOptions::default().with_stage(""),
            ApplyOptions::default().with_source("a\nb"),
        ] {
            assert_eq!(check(wrong), Err(ErrorKind::InvalidValue));
        }
    }
}
