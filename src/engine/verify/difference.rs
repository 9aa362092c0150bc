//! What differs: one [`Difference`] a key, as it is printed.
//!
//! Byte strings are shown as printable ASCII, everything else escaped (`\xff`), keys in full, values shortened.

use serde::Serialize;

/// What kind of thing differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The target lacks the key.
    Missing,
    /// The source lacks the key.
    Extra,
    Type,
    Value,
    Expiry,
    FieldExpiry,
    /// A stream's consumer group: its existence, position, consumers or pending entries.
    Group,
    /// The key changed at every look, and was never seen equal: compare it when it stands still.
    Unsettled,
    /// The key cannot be compared, so nothing is proven about it.
    NotCompared,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Type => "type",
            Self::Value => "value",
            Self::Expiry => "expiry",
            Self::FieldExpiry => "field_expiry",
            Self::Group => "group",
            Self::Unsettled => "unsettled",
            Self::NotCompared => "not_compared",
        }
    }
}

/// One thing that differs within a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    pub kind: Kind,
    /// Where in the value: a field, a member, an index, an id.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What the source has there; none: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Item {
    pub fn new(kind: Kind) -> Self {
        Self { kind, place: None, source: None, target: None }
    }

    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    pub fn values(mut self, source: Option<String>, target: Option<String>) -> Self {
        (self.source, self.target) = (source, target);
        self
    }
}

/// An element of a set, hash or sorted set that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub name: Vec<u8>,
    /// Of what the source has there: equal values have equal prints.
    pub print: u64,
    pub item: Item,
}

/// Differing elements of one key that are kept; there may be more.
pub const ELEMENTS_MAX: usize = 1000;

/// Things listed of one key; there may be more.
pub const ITEMS_MAX: usize = 8;

/// A key that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub db: u32,
    pub key: String,
    /// The source's type, or the target's where the source has no such key.
    #[serde(rename = "type")]
    pub type_name: String,
    #[serde(flatten)]
    pub item: Item,
    /// What else differs in the key, at most [`ITEMS_MAX`] in all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<Item>,
    /// With `--repair`: whether the key was equal afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<bool>,
    /// Why the repair failed, or the key cannot be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Longest text shown of a value.
const SHOWN_BYTES_MAX: usize = 64;

/// A byte string, whole.
pub fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A byte string, shortened.
pub fn brief(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN_BYTES_MAX) {
        Some(front) if bytes.len() > SHOWN_BYTES_MAX => {
            format!("{}... ({} bytes)", front.escape_ascii(), bytes.len())
        }
        _ => text(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_line() {
        let item = Item::new(Kind::Value).at("field a\\xff").values(Some("1".into()), None);
        let mut difference = Difference {
            db: 3,
            key: text(b"h\xff\""),
            type_name: "hash".into(),
            item,
            more: vec![],
            repaired: None,
            reason: None,
        };
        assert_eq!(
            serde_json::to_string(&difference).unwrap(),
            r#"{"db":3,"key":"h\\xff\\\"","type":"hash","kind":"value","where":"field a\\xff","source":"1"}"#
        );
        difference.more.push(Item::new(Kind::Expiry));
        difference.repaired = Some(true);
        assert!(
            serde_json::to_string(&difference).unwrap().ends_with(r#""more":[{"kind":"expiry"}],"repaired":true}"#)
        );
    }

    #[test]
    fn long_values_are_shortened() {
        assert_eq!(brief(&[b'x'; 64]), "x".repeat(64));
        assert_eq!(brief(&[b'x'; 65]), "x".repeat(64) + "... (65 bytes)");
    }
}
