//! One object of a model's JSON file, whose keys are taken out one by one: what is left at the end is unknown.
//!
//! Nothing is converted: a value of another type than the reference writes is refused. So is a key that the file has twice.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Most characters of a value that a refusal shows.
const SHOWN: usize = 80;

/// One object of a file.
#[derive(Debug)]
pub(super) struct Object {
    /// Where it is, for a person.
    place: String,
    entries: BTreeMap<String, Value>,
}

impl Object {
    /// Reads a file that holds one object; `None` when there is no such file.
    pub(super) fn read(model: &Path, name: &str) -> Result<Option<Self>, String> {
        read(model, name)?.map(|value| Self::new(format!("`{name}`"), value)).transpose()
    }

    /// Takes a value that must be an object.
    pub(super) fn new(place: String, value: Value) -> Result<Self, String> {
        match value {
            Value::Object(entries) => Ok(Self { place, entries: entries.into_iter().collect() }),
            other => Err(format!("{place} is {}, not an object", shown(&other))),
        }
    }

    /// Whether it has no key left.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a key out, whatever its value is.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.entries.remove(key)
    }

    /// Takes a key out that must be true or false.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "must be true or false", Value::as_bool)
    }

    /// Takes a key out that must be a text.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        self.typed(key, "must be a string", |value| value.as_str().map(str::to_owned))
    }

    /// Takes a key out that must be an object.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, String> {
        let place = format!("`{key}` in {}", self.place);
        self.take(key).map(|value| Self::new(place, value)).transpose()
    }

    /// Takes a key out that must have one of the values that change nothing.
    pub(super) fn accept(
        &mut self,
        key: &str,
        changes_nothing: impl Fn(&Value) -> bool,
        reason: &str,
    ) -> Result<(), String> {
        match self.take(key) {
            Some(value) if !changes_nothing(&value) => Err(self.refusal(key, &value, reason)),
            _ => Ok(()),
        }
    }

    /// One line that says what is wrong with the value of a key.
    pub(super) fn refusal(&self, key: &str, value: &Value, reason: &str) -> String {
        format!("{} has `{}`: {}, which {reason}", self.place, key.escape_debug(), shown(value))
    }

    /// One line that says which key is missing.
    pub(super) fn missing(&self, key: &str) -> String {
        format!("{} has no `{key}`", self.place)
    }

    /// Refuses what is left.
    pub(super) fn refuse_unknown(self) -> Result<(), String> {
        match self.entries.first_key_value() {
            None => Ok(()),
            Some((key, value)) => Err(self.refusal(
                key,
                value,
                "is unknown and may change vectors: remove the key if it does not, or use another model",
            )),
        }
    }

    /// The keys that are left.
    pub(super) fn into_unknown(self) -> Vec<String> {
        self.entries.into_keys().collect()
    }

    fn typed<T>(
        &mut self,
        key: &str,
        reason: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => read(&value).map(Some).ok_or_else(|| self.refusal(key, &value, reason)),
        }
    }
}

/// Reads a JSON file of the model; `None` when there is none.
pub(super) fn read(model: &Path, name: &str) -> Result<Option<Value>, String> {
    match std::fs::read(model.join(name)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(|Unique(value)| Some(value))
            .map_err(|error| format!("`{name}` is not valid: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("`{name}` cannot be read: {error}")),
    }
}

/// A value in one line of bounded length.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// JSON of which no object has a key twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Parts).map(Self)
    }
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = serde_json::Map::new();
        while let Some((key, Unique(value))) = map.next_entry::<String, Unique>()? {
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{}` is there twice", key.escape_debug())));
            }
            entries.insert(key, value);
        }
        Ok(entries.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        Object::new("`x.json`".to_owned(), value).unwrap()
    }

    #[test]
    fn nothing_is_converted() {
        for value in [json!("true"), json!(1), json!(null), json!([true])] {
            assert!(object(json!({"k": value})).flag("k").unwrap_err().contains("`x.json` has `k`: "));
        }
        for value in [json!(1), json!(null), json!(["a"])] {
            assert!(object(json!({"k": value})).text("k").unwrap_err().contains("must be a string"));
        }
        assert_eq!(object(json!({"k": "v"})).flag("other"), Ok(None));
        assert!(Object::new("`x.json`".to_owned(), json!([1])).unwrap_err().contains("not an object"));
    }

    #[test]
    fn what_is_left_is_named_in_one_line() {
        let mut left = object(json!({"a": 1, "b\nc": "d\ne"}));
        left.take("a");
        let refusal = left.refuse_unknown().unwrap_err();
        assert!(
            refusal.contains("b\\nc") && refusal.contains("d\\ne") && !refusal.contains('\n'),
            "{refusal}"
        );
        let long = object(json!({"k": "é".repeat(1000)})).refuse_unknown().unwrap_err();
        assert!(long.len() < 400, "{long}");
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused_wherever_it_is() {
        for text in
            [r#"{"a": 1, "b": 2, "a": 1}"#, r#"[{"a": {"b": 1, "b": 2}}]"#, r#"{"a": 1, "\u0061": 2}"#]
        {
            let error = serde_json::from_str::<Unique>(text).err().unwrap().to_string();
            assert!(error.contains("is there twice"), "{error}");
        }
        let text = r#"[null, true, -1, 18446744073709551615, 0.5, "é", {"a": {"a": []}}]"#;
        let Unique(value) = serde_json::from_str(text).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
    }
}
