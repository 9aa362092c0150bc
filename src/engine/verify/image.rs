//! A whole value in a form that can be compared: what a client can see of it, in a fixed order.
//!
//! In: the reply to GET, LRANGE, SMEMBERS, HGETALL or ZRANGE WITHSCORES. Out: an [`Image`]; of two, the first few
//! differences. Two images are equal exactly if no difference is found (a property test says so).

use super::difference::{ELEMENTS_MAX, Element, ITEMS_MAX, Item, Kind, brief};
use super::hll;
use crate::redis::value::Value;
use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};

type Bytes = Vec<u8>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Image {
    String(Bytes),
    /// The registers of a HyperLogLog.
    Registers(Bytes),
    List(Vec<Bytes>),
    /// Sorted.
    Set(Vec<Bytes>),
    /// Sorted by field.
    Hash(Vec<(Bytes, Bytes)>),
    /// Sorted by member; the score's bits.
    Zset(Vec<(Bytes, u64)>),
}

impl Image {
    pub fn string(bytes: Bytes) -> Self {
        hll::registers(&bytes).map_or(Self::String(bytes), Self::Registers)
    }

    /// From the reply to the command that reads a whole value of this type. None: not the shape of such a reply.
    pub fn of_reply(type_name: &str, reply: Value) -> Option<Self> {
        match (type_name, reply) {
            ("string", Value::Bulk(bytes)) => Some(Self::string(bytes)),
            ("list", Value::Array(values)) => Some(Self::List(all_bytes(values)?)),
            ("set", Value::Array(values)) => {
                let mut members = all_bytes(values)?;
                members.sort_unstable();
                Some(Self::Set(members))
            }
            ("hash", Value::Array(values)) => {
                let mut fields = pairs(values)?;
                fields.sort_unstable();
                Some(Self::Hash(fields))
            }
            ("zset", Value::Array(values)) => {
                let scored = pairs(values)?.into_iter().map(|(member, score)| Some((member, score_bits(&score)?)));
                let mut members = scored.collect::<Option<Vec<_>>>()?;
                members.sort_unstable();
                Some(Self::Zset(members))
            }
            _ => None,
        }
    }

    /// Equal images have equal prints.
    pub fn print(&self) -> u64 {
        print_of(self)
    }

    /// Fields of a hash.
    pub fn fields(&self) -> Vec<Bytes> {
        match self {
            Self::Hash(fields) => fields.iter().map(|(field, _)| field.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// How `target` differs: elements of sets, hashes and sorted sets (the first [`ELEMENTS_MAX`]), or what else there is to
    /// say (at most [`ITEMS_MAX`] things).
    pub fn differences(&self, target: &Self) -> (Vec<Element>, Vec<Item>) {
        let elements = match (self, target) {
            (Self::Set(a), Self::Set(b)) => {
                let unit = |members: &[Bytes]| members.iter().map(|m| (m.clone(), ())).collect::<Vec<_>>();
                sorted_elements(&unit(a), &unit(b), "member", |()| String::new())
            }
            (Self::Hash(a), Self::Hash(b)) => sorted_elements(a, b, "field", |value| brief(value)),
            (Self::Zset(a), Self::Zset(b)) => sorted_elements(a, b, "member", |bits| score_text(*bits)),
            _ => Vec::new(),
        };
        let mut items = match (self, target) {
            (a, b) if a == b || !elements.is_empty() => Vec::new(),
            (Self::String(a), Self::String(b)) => vec![string_item(a, b)],
            (Self::Registers(a), Self::Registers(b)) => register_items(a, b),
            (Self::List(a), Self::List(b)) => list_items(a, b),
            // A HyperLogLog beside a plain string.
            _ => vec![Item::new(Kind::Value)],
        };
        items.truncate(ITEMS_MAX);
        (elements, items)
    }
}

pub fn print_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A score's bits. The two zeros are one: a server that stores scores as integers knows no negative one.
pub fn score_bits(text: &[u8]) -> Option<u64> {
    let score: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(if score == 0.0 { 0 } else { score.to_bits() })
}

/// The shortest text that means exactly this score.
pub fn score_text(bits: u64) -> String {
    let score = f64::from_bits(bits);
    if score.is_finite() { ryu::Buffer::new().format_finite(score).to_string() } else { score.to_string() }
}

pub fn all_bytes(values: Vec<Value>) -> Option<Vec<Bytes>> {
    values.into_iter().map(into_bytes).collect()
}

pub fn into_bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::Bulk(bytes) | Value::Simple(bytes) => Some(bytes),
        _ => None,
    }
}

pub fn pairs(values: Vec<Value>) -> Option<Vec<(Bytes, Bytes)>> {
    let mut pairs = Vec::with_capacity(values.len() / 2);
    let mut values = values.into_iter();
    while let Some(first) = values.next() {
        pairs.push((into_bytes(first)?, into_bytes(values.next()?)?));
    }
    Some(pairs)
}

pub fn string_item(source: &[u8], target: &[u8]) -> Item {
    let at = source.iter().zip(target).take_while(|(a, b)| a == b).count();
    let from = |bytes: &[u8]| Some(brief(bytes.get(at..).unwrap_or_default()));
    Item::new(Kind::Value).at(format!("byte {at}")).values(from(source), from(target))
}

fn register_items(source: &[u8], target: &[u8]) -> Vec<Item> {
    let differing = source.iter().zip(target).enumerate().filter(|(_, (a, b))| a != b);
    differing
        .take(ITEMS_MAX)
        .map(|(i, (a, b))| {
            Item::new(Kind::Value).at(format!("register {i}")).values(Some(a.to_string()), Some(b.to_string()))
        })
        .collect()
}

/// Of lists only the first difference is told: behind it everything may be shifted.
fn list_items(source: &[Bytes], target: &[Bytes]) -> Vec<Item> {
    if source == target {
        return Vec::new();
    }
    let at = source.iter().zip(target).take_while(|(a, b)| a == b).count();
    let of = |list: &[Bytes]| list.get(at).map(|element| brief(element));
    let mut items = vec![Item::new(Kind::Value).at(format!("index {at}")).values(of(source), of(target))];
    if source.len() != target.len() {
        items.push(length_item(source.len() as u64, target.len() as u64));
    }
    items
}

pub fn length_item(source: u64, target: u64) -> Item {
    Item::new(Kind::Value).at("length").values(Some(source.to_string()), Some(target.to_string()))
}

/// Walks two sorted lists side by side; the first [`ELEMENTS_MAX`] that differ.
pub fn sorted_elements<V: PartialEq + Hash>(
    source: &[(Bytes, V)],
    target: &[(Bytes, V)],
    what: &str,
    show: impl Fn(&V) -> String,
) -> Vec<Element> {
    let mut elements = Vec::new();
    let (mut a, mut b) = (source.iter().peekable(), target.iter().peekable());
    while elements.len() < ELEMENTS_MAX {
        let order = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let left = if order.is_le() { a.next() } else { None };
        let right = if order.is_ge() { b.next() } else { None };
        if let (Some((_, left)), Some((_, right))) = (left, right)
            && left == right
        {
            continue;
        }
        let Some((name, _)) = left.or(right) else { break };
        let item = Item::new(Kind::Value).at(format!("{what} {}", brief(name)));
        let item = item.values(left.map(|(_, v)| show(v)), right.map(|(_, v)| show(v)));
        elements.push(Element { name: name.clone(), print: print_of(&left.map(|(_, v)| v)), item });
    }
    elements
}

/// The same, as things to tell.
pub fn sorted_items<V: PartialEq + Hash>(
    source: &[(Bytes, V)],
    target: &[(Bytes, V)],
    what: &str,
    show: impl Fn(&V) -> String,
) -> Vec<Item> {
    let elements = sorted_elements(source, target, what, show);
    elements.into_iter().take(ITEMS_MAX).map(|element| element.item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.as_bytes().to_vec())
    }

    fn image(type_name: &str, texts: &[&str]) -> Image {
        Image::of_reply(type_name, Value::Array(texts.iter().map(|text| bulk(text)).collect())).unwrap()
    }

    fn items(a: &Image, b: &Image) -> Vec<Item> {
        let (elements, items) = a.differences(b);
        elements.into_iter().map(|element| element.item).chain(items).collect()
    }

    fn places(a: &Image, b: &Image) -> Vec<String> {
        items(a, b).into_iter().map(|item| item.place.unwrap_or_default()).collect()
    }

    #[test]
    fn differences_say_where() {
        assert_eq!(places(&Image::string(b"abc".to_vec()), &Image::string(b"abd".to_vec())), ["byte 2"]);
        assert_eq!(places(&image("list", &["a", "b"]), &image("list", &["b", "a"])), ["index 0"]);
        assert_eq!(places(&image("list", &["a", "b"]), &image("list", &["a"])), ["index 1", "length"]);
        assert_eq!(places(&image("set", &["c", "a"]), &image("set", &["a", "b"])), ["member b", "member c"]);
        assert_eq!(places(&image("hash", &["f", "1", "g", "2"]), &image("hash", &["g", "3", "f", "1"])), ["field g"]);
        assert_eq!(places(&image("set", &["c", "a"]), &image("set", &["a", "c"])), [""; 0]);
    }

    #[test]
    fn scores_are_equal_to_the_last_bit_or_not_at_all() {
        let of = |score: &str| image("zset", &["m", score]);
        assert_eq!(of("0.1"), of("0.10000000000000001"));
        assert_eq!(of("3"), of("3.0"));
        assert_eq!(of("-0"), of("0"));
        assert_eq!(of("inf"), of("Infinity"));
        assert_ne!(of("0.30000000000000004"), of("0.3"));
        let item = &items(&of("0.30000000000000004"), &of("0.3"))[0];
        assert_eq!((item.source.as_deref(), item.target.as_deref()), (Some("0.30000000000000004"), Some("0.3")));
        assert_eq!(Image::of_reply("zset", Value::Array(vec![bulk("m"), bulk("x")])), None);
    }

    fn images() -> impl Strategy<Value = Image> {
        let text = proptest::collection::vec(0u8..3, 0..3);
        let texts = proptest::collection::vec(text.clone(), 0..5);
        let sorted = |mut v: Vec<Bytes>| {
            v.sort();
            v.dedup();
            v
        };
        prop_oneof![
            text.prop_map(Image::string),
            texts.clone().prop_map(Image::List),
            texts.clone().prop_map(move |v| Image::Set(sorted(v))),
            proptest::collection::btree_map(
                proptest::collection::vec(0u8..3, 0..3),
                proptest::collection::vec(0u8..2, 0..2),
                0..5
            )
            .prop_map(|map| Image::Hash(map.into_iter().collect())),
            proptest::collection::btree_map(proptest::collection::vec(0u8..3, 0..3), 0u64..3, 0..5)
                .prop_map(|map| Image::Zset(map.into_iter().collect())),
        ]
    }

    proptest! {
        #[test]
        fn no_difference_means_equal(a in images(), b in images()) {
            prop_assert_eq!(items(&a, &b).is_empty(), a == b);
            prop_assert!(items(&a, &a).is_empty());
            if a == b {
                prop_assert_eq!(a.print(), b.print());
            }
        }

        #[test]
        fn every_score_survives_its_text(bits in any::<u64>()) {
            let score = f64::from_bits(bits);
            prop_assume!(!score.is_nan() && score != 0.0);
            prop_assert_eq!(score_bits(score_text(bits).as_bytes()), Some(bits));
        }
    }
}
