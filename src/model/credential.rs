//! [`Credential`]: a JSON object whose content is never printed.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::document;
use crate::{Error, ErrorKind, Result};

/// An OAuth credential, or any other JSON object. All fields are stored unchanged.
///
/// It is cheap to clone (one reference count) and immutable: [`with`](Credential::with) returns a changed
/// copy. It is nested at most [`MAX_DEPTH`](crate::MAX_DEPTH) levels deep and has at most
/// [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) as compact JSON. These limits are checked when it is created,
/// so every backend can store every `Credential`.
///
/// ```
/// # use gateway_storage::Credential;
/// # use serde_json::json;
/// let credential = Credential::try_from(json!({ "access_token": "ya29.xxx", "project_id": "p-1" }))?;
/// assert_eq!(credential.get("project_id"), Some(&json!("p-1")));
/// assert_eq!(format!("{credential:?}"), "Credential(2 fields)");
/// # Ok::<(), gateway_storage::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Credential(Arc<Map<String, Value>>);

impl Credential {
    /// Creates a credential from its fields, after checking the limits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] if the fields are nested too deep or too large, [`ErrorKind::InvalidValue`] if
    /// a number is not an `i64`, a `u64` or a finite `f64` (see [`ConfigValue`](crate::ConfigValue#numbers)).
    pub fn new(mut fields: Map<String, Value>) -> Result<Self> {
        document::check_fields(&mut fields, 1)?;
        document::check_size(&fields)?;
        Ok(Self(Arc::new(fields)))
    }

    /// Reads JSON text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if the text is not a JSON object or has a whole number beyond 64 bits. The
    /// message names the line and the column, and quotes nothing. Other errors as [`new`](Credential::new).
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        match document::parse(text)? {
            Value::Object(fields) => Self::from_parsed(fields, text.len()),
            other => other.try_into(),
        }
    }

    /// Creates a credential from fields that were parsed from a text of `text_bytes` bytes.
    pub(crate) fn from_parsed(mut fields: Map<String, Value>, text_bytes: usize) -> Result<Self> {
        document::check_fields(&mut fields, 1)?;
        document::check_parsed_size(text_bytes, &fields)?;
        Ok(Self(Arc::new(fields)))
    }

    /// Serializes a value to a credential.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if it does not serialize to a JSON object.
    pub fn from_typed<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        document::from_typed(value)?.try_into()
    }

    /// Deserializes the credential.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if it does not fit `T`; [`Error::path`] says which field.
    pub fn to_typed<T: DeserializeOwned>(&self) -> Result<T> {
        document::to_typed(&*self.0)
    }

    /// The fields.
    #[must_use]
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// One field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Returns a copy with one field set.
    ///
    /// # Errors
    ///
    /// As [`new`](Credential::new).
    pub fn with(&self, name: impl Into<String>, value: impl Into<Value>) -> Result<Self> {
        let mut fields = (*self.0).clone();
        fields.insert(name.into(), value.into());
        Self::new(fields)
    }

    /// The names of the fields without their values, for output and as JSON.
    ///
    /// ```
    /// # use gateway_storage::Credential;
    /// let credential = Credential::from_json(r#"{ "access_token": "ya29.xxx" }"#)?;
    /// assert_eq!(credential.redacted().to_string(), r#""access_token": <hidden>"#);
    /// # Ok::<(), gateway_storage::Error>(())
    /// ```
    #[must_use]
    pub fn redacted(&self) -> Redacted<'_> {
        Redacted(&self.0)
    }

    /// Whether both share one allocation.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The credential as compact JSON, including its secrets.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&*self.0).expect("a map of values with string keys is always JSON")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "Credential({count} {})", if count == 1 { "field" } else { "fields" })
    }
}

/// A [`Credential`] without its values. The names of its fields are shown, so they must not be secrets.
///
/// `Display` has a line per field. It is not JSON, so that it can't be stored by mistake. As JSON it is an
/// object in which each value is the text `<hidden>`.
#[derive(Clone, Copy)]
pub struct Redacted<'c>(&'c Map<String, Value>);

const HIDDEN: &str = "<hidden>";

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.keys().enumerate().try_for_each(|(at, name)| {
            let line_feed = if at > 0 { "\n" } else { "" };
            write!(f, "{line_feed}{}: {HIDDEN}", Value::from(name.as_str()))
        })
    }
}

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for name in self.0.keys() {
            map.entry(name, &format_args!("{HIDDEN}"));
        }
        map.finish()
    }
}

impl Serialize for Redacted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.keys().map(|name| (name, HIDDEN)))
    }
}

/// Serializes a credential without its values.
pub(crate) fn redacted<S: Serializer>(credential: &Credential, serializer: S) -> Result<S::Ok, S::Error> {
    credential.redacted().serialize(serializer)
}

impl TryFrom<Map<String, Value>> for Credential {
    type Error = Error;

    fn try_from(fields: Map<String, Value>) -> Result<Self> {
        Self::new(fields)
    }
}

impl From<&Credential> for Credential {
    fn from(shared: &Credential) -> Self {
        shared.clone()
    }
}

impl TryFrom<&Value> for Credential {
    type Error = Error;

    fn try_from(value: &Value) -> Result<Self> {
        value.clone().try_into()
    }
}

impl TryFrom<Value> for Credential {
    type Error = Error;

    fn try_from(value: Value) -> Result<Self> {
        let found = match value {
            Value::Object(fields) => return Self::new(fields),
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
        };
        Err(Error::new(ErrorKind::InvalidValue, format!("a credential must be a JSON object, not {found}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{MAX_DEPTH, MAX_VALUE_BYTES};

    fn nested(depth: usize) -> Value {
        (1..depth).fold(json!({}), |inner, _| json!({ "a": inner }))
    }

    #[test]
    fn depth_is_limited() {
        assert!(Credential::try_from(nested(MAX_DEPTH)).is_ok());
        let error = Credential::try_from(nested(MAX_DEPTH + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn size_is_that_of_the_compact_json() {
        let around = r#"{"a":""}"#.len();
        let fits = json!({ "a": "x".repeat(MAX_VALUE_BYTES - around) });
        assert_eq!(Credential::try_from(fits).unwrap().to_json().len(), MAX_VALUE_BYTES);
        let over = json!({ "a": "x".repeat(MAX_VALUE_BYTES - around + 1) });
        assert_eq!(Credential::try_from(over).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn reading_a_type_copies_only_what_the_type_has() {
        #[derive(serde::Deserialize)]
        struct Token {
            expires_in: u32,
        }
        let credential = json!({ "expires_in": 7, "refresh_token": "x", "scopes": ["a", "b"] });
        let credential = Credential::try_from(credential).unwrap();
        let read = || assert_eq!(credential.to_typed::<Token>().unwrap().expires_in, 7);
        assert_eq!(allocation_counter::measure(read).count_total, 0);
    }

    #[test]
    fn redacted_has_the_names_and_no_value() {
        // In the order of an output, which `preserve_order` of serde_json would keep.
        let fields = json!({ "a\n\"b": null, "access_token": "ya29.secret", "nested": { "secret": 1 } });
        let redacted = Credential::try_from(fields).unwrap();
        let redacted = redacted.redacted();
        assert_eq!(
            redacted.to_string(),
            "\"a\\n\\\"b\": <hidden>\n\"access_token\": <hidden>\n\"nested\": <hidden>"
        );
        assert_eq!(
            format!("{redacted:?}"),
            r#"{"a\n\"b": <hidden>, "access_token": <hidden>, "nested": <hidden>}"#
        );
        let hidden = json!({ "a\n\"b": "<hidden>", "access_token": "<hidden>", "nested": "<hidden>" });
        assert_eq!(json!(redacted), hidden);
        assert_eq!(Credential::try_from(json!({})).unwrap().redacted().to_string(), "");
    }

    #[test]
    fn errors_name_the_path_and_quote_nothing() {
        #[derive(serde::Deserialize, Debug)]
        struct Token {
            #[allow(dead_code)]
            expires_in: u32,
        }
        let credential = Credential::try_from(json!({ "expires_in": "ya29.secret" })).unwrap();
        let error = credential.to_typed::<Token>().unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("ya29") && error.path() == Some("expires_in"), "{text}");

        let error = Credential::try_from(json!({ "secret": 1 })).unwrap().to_typed::<Token>().unwrap_err();
        assert_eq!(error.path(), Some("expires_in"), "a field that is missing");

        type Clients = std::collections::HashMap<String, u32>;
        let clients = Credential::try_from(json!({ "sk-secret": "x" })).unwrap();
        let error = clients.to_typed::<Clients>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sk-secret"), "names are stored data, too");

        for text in [r#"{"a": ya29.secret}"#, r#"["ya29.secret"]"#, r#"{"a":"ya29.secret"#] {
            let error = Credential::from_json(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue);
            assert!(!format!("{error} {error:?}").contains("ya29"));
        }
    }
}
