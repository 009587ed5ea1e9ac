//! [`ConfigValue`]: any JSON value, cheap to read again and again.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::document;
use crate::{Error, Result};

/// A configuration value: any JSON value, stored as it is.
///
/// It derefs to [`serde_json::Value`] and is cheap to clone, since gateways read their configuration on every
/// request. The limits are those of a [`Credential`](crate::Credential). `Debug` shows no content: configurations
/// hold API keys, too.
///
/// ```
/// # use gateway_storage::ConfigValue;
/// # use serde_json::json;
/// let value = ConfigValue::try_from(json!({ "retries": 3 }))?;
/// assert_eq!(value["retries"], 3);
/// # Ok::<(), gateway_storage::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct ConfigValue(Arc<Value>);

impl ConfigValue {
    /// Checks the limits and takes the value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) if it is nested too deep or too large.
    pub fn new(value: Value) -> Result<Self> {
        document::check([&value], 0)?;
        document::check_size(&value)?;
        Ok(Self(Arc::new(value)))
    }

    /// Reads JSON text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue) if it is not JSON, and as
    /// [`new`](ConfigValue::new).
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        Self::of_read(document::parse(text)?, text.len())
    }

    /// Takes the value that was read from a text of so many bytes.
    pub(crate) fn of_read(value: Value, text: usize) -> Result<Self> {
        document::check([&value], 0)?;
        document::check_size_of_read(text, &value)?;
        Ok(Self(Arc::new(value)))
    }

    /// Writes a type of yours as a config value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue) if it does not serialize to JSON.
    pub fn from_typed<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Self::new(document::from_typed(value)?)
    }

    /// Reads the value as a type of yours.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue); [`Error::path`] says which part does not fit.
    pub fn to_typed<T: DeserializeOwned>(&self) -> Result<T> {
        document::to_typed((*self.0).clone())
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// Whether the other one is a clone of this one.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Compact JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.0.to_string()
    }
}

impl fmt::Debug for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self.0 {
            Value::Null => "ConfigValue(null)",
            Value::Bool(_) => "ConfigValue(boolean)",
            Value::Number(_) => "ConfigValue(number)",
            Value::String(_) => "ConfigValue(string)",
            Value::Array(_) => "ConfigValue(array)",
            Value::Object(_) => "ConfigValue(object)",
        })
    }
}

impl Deref for ConfigValue {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl From<&ConfigValue> for ConfigValue {
    fn from(shared: &ConfigValue) -> Self {
        shared.clone()
    }
}

impl TryFrom<Value> for ConfigValue {
    type Error = Error;

    fn try_from(value: Value) -> Result<Self> {
        Self::new(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{ErrorKind, MAX_VALUE_BYTES};

    #[test]
    fn scalars_are_not_nested_and_arrays_are() {
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(ConfigValue::new(nested(64)).is_ok());
        assert!(ConfigValue::new(nested(65)).is_err());
    }

    #[test]
    fn short_numbers_that_become_long_are_counted_as_they_are_stored() {
        let long = "1000000000000000.0,".len();
        let text = |count| format!("[{}]", vec!["1e15"; count].join(","));
        let most = (MAX_VALUE_BYTES - 1) / long;
        assert_eq!(ConfigValue::from_json(text(most)).unwrap().to_json().len(), most * long + 1);
        assert_eq!(ConfigValue::from_json(text(most + 1)).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn debug_is_silent() {
        assert_eq!(format!("{:?}", ConfigValue::new(json!("sk-1")).unwrap()), "ConfigValue(string)");
    }
}
