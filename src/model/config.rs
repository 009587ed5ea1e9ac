//! [`ConfigValue`]: any JSON value, cheap to clone.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

use super::document;
use crate::{Error, Result};

/// A configuration value: any JSON value, stored unchanged.
///
/// It derefs to [`serde_json::Value`] and is cheap to clone, because gateways read their configuration on
/// every request. The limits are those of a [`Credential`](crate::Credential). `Debug` prints only the type
/// of the value: configurations contain API keys, too. `Serialize` writes the value itself.
///
/// # Numbers
///
/// A number is an `i64`, a `u64` or a finite `f64`. Any other number is refused and never rounded to one of
/// these. In JSON text the form decides: 18446744073709551616 is a whole number of more than 64 bits and is
/// refused; 18446744073709551616.0 is a float. The digits of a float stand for the nearest `f64`, as usual.
///
/// This does not change if the application enables serde_json's feature `arbitrary_precision`. With that
/// feature or with `raw_value`, objects with a name that begins with `$serde_json::private::` are refused,
/// because serde_json itself gives them another meaning.
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
    /// Creates a config value, after checking the limits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) if the value is nested too deep or too large,
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue) if it has a [number](ConfigValue#numbers)
    /// that is refused.
    pub fn new(mut value: Value) -> Result<Self> {
        document::check([&mut value], 0)?;
        document::check_size(&value)?;
        Ok(Self(Arc::new(value)))
    }

    /// Reads JSON text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue) if the text is not JSON or has a whole
    /// number beyond 64 bits. Other errors as [`new`](ConfigValue::new).
    pub fn from_json(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        Self::from_parsed(document::parse(text)?, text.len())
    }

    /// Creates a config value from one that was parsed from a text of `text_bytes` bytes.
    pub(crate) fn from_parsed(mut value: Value, text_bytes: usize) -> Result<Self> {
        document::check([&mut value], 0)?;
        document::check_parsed_size(text_bytes, &value)?;
        Ok(Self(Arc::new(value)))
    }

    /// Serializes a value to a config value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue) if it does not serialize to JSON.
    pub fn from_typed<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Self::new(document::from_typed(value)?)
    }

    /// Deserializes the value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`](crate::ErrorKind::InvalidValue) if it does not fit `T`; [`Error::path`]
    /// says which part.
    pub fn to_typed<T: DeserializeOwned>(&self) -> Result<T> {
        document::to_typed(&*self.0)
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// Whether both share one allocation.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The value as compact JSON.
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

impl Serialize for ConfigValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
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

impl TryFrom<&Value> for ConfigValue {
    type Error = Error;

    fn try_from(value: &Value) -> Result<Self> {
        value.clone().try_into()
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
    fn numbers_that_grow_are_counted_with_their_stored_size() {
        let long = "1000000000000000.0,".len();
        let text = |count| format!("[{}]", vec!["1e15"; count].join(","));
        let most = (MAX_VALUE_BYTES - 1) / long;
        assert_eq!(ConfigValue::from_json(text(most)).unwrap().to_json().len(), most * long + 1);
        assert_eq!(ConfigValue::from_json(text(most + 1)).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_number_is_read_alike_by_every_build_or_refused() {
        let refused = |text: &str| {
            let error = ConfigValue::from_json(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{text}");
            error.to_string()
        };
        for huge in ["18446744073709551616", "18446744073709551617", "-9223372036854775809"] {
            for text in [huge.to_owned(), format!("[1.5, {huge}]"), format!("{{\"a\": {{\"b\": {huge}}}}}")] {
                assert!(refused(&text).starts_with("whole numbers beyond 64 bits can't be stored"), "{text}");
            }
        }
        for text in ["1e400", "-1.5e309", "[1, {\"a\": 2E999}]"] {
            assert!(refused(text).contains("beyond the range of a 64-bit float"), "{text}");
        }
        for (text, stored) in [
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("18446744073709551616.0", "1.8446744073709552e+19"),
            ("1.00000000000000000001", "1.0"),
            ("[1E2, 100.00]", "[100.0,100.0]"),
            ("1e-400", "0.0"),
            ("[-0, -0.0]", "[-0.0,-0.0]"),
            ("\"18446744073709551616\"", "\"18446744073709551616\""),
        ] {
            let value = ConfigValue::from_json(text).unwrap();
            assert_eq!(value.to_json(), stored);
            assert_eq!(ConfigValue::from_json(stored).unwrap(), value, "equal values are equal");
        }
    }

    #[test]
    fn a_type_whose_number_does_not_fit_is_refused() {
        assert_eq!(ConfigValue::from_typed(&u128::MAX).unwrap_err().kind(), ErrorKind::InvalidValue);
        assert_eq!(ConfigValue::from_typed(&u64::MAX).unwrap().to_json(), u64::MAX.to_string());
    }

    #[test]
    fn a_private_name_of_serde_json_is_kept_or_refused() {
        for name in ["Number", "RawValue"] {
            let value = json!({ format!("$serde_json::private::{name}"): "1" });
            let text = value.to_string();
            let is_kept = serde_json::from_str(&text).is_ok_and(|read: Value| read.is_object());
            for made in [ConfigValue::new(value.clone()), ConfigValue::from_json(&text)] {
                match made {
                    Ok(kept) => assert_eq!((kept.value(), is_kept), (&value, true)),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidValue),
                }
            }
            let as_text = ConfigValue::new(json!([text, format!("$serde_json::private::{name}")])).unwrap();
            assert_eq!(ConfigValue::from_json(as_text.to_json()).unwrap(), as_text);
        }
    }

    #[test]
    fn debug_prints_no_content() {
        assert_eq!(format!("{:?}", ConfigValue::new(json!("sk-1")).unwrap()), "ConfigValue(string)");
    }
}
