//! BSON as canonical Extended JSON.

use mongodb::bson::{Bson, DateTime, oid::ObjectId};
use serde_json::Value;

pub(crate) fn read(value: &Value) -> Bson {
    let whole = |text: &Value| text.as_str().unwrap().parse::<i64>().unwrap();
    match value {
        Value::Null => Bson::Null,
        Value::Bool(is) => Bson::Boolean(*is),
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(items) => Bson::Array(items.iter().map(read).collect()),
        Value::Number(_) => panic!("canonical numbers are objects"),
        Value::Object(fields) => match fields.iter().next().map(|(name, value)| (name.as_str(), value)) {
            Some(("$oid", id)) => Bson::ObjectId(ObjectId::parse_str(id.as_str().unwrap()).unwrap()),
            Some(("$date", time)) => Bson::DateTime(DateTime::from_millis(whole(&time["$numberLong"]))),
            Some(("$numberLong", number)) => Bson::Int64(whole(number)),
            Some(("$numberInt", number)) => Bson::Int32(whole(number).try_into().unwrap()),
            Some(("$numberDouble", number)) => Bson::Double(number.as_str().unwrap().parse().unwrap()),
            _ => Bson::Document(fields.iter().map(|(name, value)| (name.clone(), read(value))).collect()),
        },
    }
}
