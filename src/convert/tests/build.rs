//! Value bodies as Dragonfly writes them, for tests.

use crate::redis::reencode::{push_integer_string, push_len, push_raw_string};

/// A string: an integer form if it is a small decimal number, as Dragonfly does it.
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    push_string(&mut out, text);
    out
}

pub fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i32>().ok());
    match number {
        Some(number) if number.to_string().as_bytes() == text => push_integer_string(out, i64::from(number)),
        _ => push_raw_string(out, text),
    }
}

/// `packed n` and strings, in groups of `group` to one element.
pub fn strings(group: usize, texts: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    push_len(&mut out, (texts.len() / group) as u64);
    out.extend(run(texts));
    out
}

/// Strings without a count.
pub fn run(texts: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    texts.iter().for_each(|text| push_string(&mut out, text.as_bytes()));
    out
}

pub fn zset_run(members: &[(&str, f64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (member, score) in members {
        push_string(&mut out, member.as_bytes());
        out.extend(score.to_le_bytes());
    }
    out
}

/// A listpack; elements that are decimal numbers below 128 become integers.
pub fn listpack(elements: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for element in elements {
        let start = body.len();
        let small = std::str::from_utf8(element).ok().and_then(|text| text.parse::<u8>().ok());
        match small {
            Some(number) if number < 128 && number.to_string().as_bytes() == *element => body.push(number),
            _ if element.len() < 64 => {
                body.push(0x80 | element.len() as u8);
                body.extend(*element);
            }
            _ => {
                body.push(0xf0);
                body.extend((element.len() as u32).to_le_bytes());
                body.extend(*element);
            }
        }
        push_back_length(&mut body, start);
    }
    finish_listpack(body, elements.len())
}

/// A listpack of 64-bit integers and strings, for streams.
pub enum Entry<'a> {
    Number(i64),
    Text(&'a [u8]),
}

pub fn listpack_of(elements: &[Entry<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for element in elements {
        let start = body.len();
        match element {
            Entry::Number(number @ 0..=127) => body.push(*number as u8),
            Entry::Number(number) => {
                body.push(0xf4);
                body.extend(number.to_le_bytes());
            }
            Entry::Text(text) if text.len() < 64 => {
                body.push(0x80 | text.len() as u8);
                body.extend(*text);
            }
            Entry::Text(text) => {
                body.push(0xf0);
                body.extend((text.len() as u32).to_le_bytes());
                body.extend(*text);
            }
        }
        push_back_length(&mut body, start);
    }
    finish_listpack(body, elements.len())
}

fn push_back_length(body: &mut Vec<u8>, start: usize) {
    let len = body.len() - start;
    let mut groups = vec![(len & 0x7f) as u8];
    let mut rest = len >> 7;
    while rest > 0 {
        groups.push((rest & 0x7f) as u8);
        rest >>= 7;
    }
    groups.reverse();
    for (at, group) in groups.iter().enumerate() {
        body.push(if at == 0 { *group } else { group | 0x80 });
    }
}

fn finish_listpack(body: Vec<u8>, count: usize) -> Vec<u8> {
    let mut out = ((body.len() + 7) as u32).to_le_bytes().to_vec();
    out.extend((count as u16).to_le_bytes());
    out.extend(body);
    out.push(0xff);
    out
}

/// A listpack as the string that is the value of types 16 and 17.
pub fn listpack_value(elements: &[&str]) -> Vec<u8> {
    let elements: Vec<&[u8]> = elements.iter().map(|element| element.as_bytes()).collect();
    let mut out = Vec::new();
    push_raw_string(&mut out, &listpack(&elements));
    out
}

/// A list of type 18: one packed node for each group.
pub fn list(nodes: &[&[&str]]) -> Vec<u8> {
    let mut out = Vec::new();
    push_len(&mut out, nodes.len() as u64);
    for node in nodes {
        out.push(2);
        out.extend(listpack_value(node));
    }
    out
}

/// The expiry element of types 31 and 32.
pub fn expiry(expire_at_s: Option<i64>) -> String {
    expire_at_s.map_or(-1, |seconds| seconds - 1_675_209_600).to_string()
}

/// One stream listpack with its id: entries (ms, seq, deleted) with the one field `f` whose value is `v<ms>`.
pub fn stream_node(entries: &[(u64, u64, bool)]) -> Vec<u8> {
    let (base_ms, base_seq, _) = entries[0];
    let values: Vec<String> = entries.iter().map(|(ms, ..)| format!("v{ms}")).collect();
    let deleted = entries.iter().filter(|entry| entry.2).count() as i64;
    let mut elements = vec![
        Entry::Number(entries.len() as i64 - deleted),
        Entry::Number(deleted),
        Entry::Number(1),
        Entry::Text(b"f"),
        Entry::Number(0),
    ];
    for ((ms, seq, is_deleted), value) in entries.iter().zip(&values) {
        elements.push(Entry::Number(2 + i64::from(*is_deleted)));
        elements.push(Entry::Number((ms - base_ms) as i64));
        elements.push(Entry::Number(*seq as i64 - base_seq as i64));
        elements.push(Entry::Text(value.as_bytes()));
        elements.push(Entry::Number(4));
    }
    let mut out = Vec::new();
    push_raw_string(&mut out, &id(base_ms, base_seq));
    push_raw_string(&mut out, &listpack_of(&elements));
    out
}

pub fn id(ms: u64, seq: u64) -> Vec<u8> {
    [ms.to_be_bytes(), seq.to_be_bytes()].concat()
}

/// Pending entry: id, delivery time, count, consumer number.
pub type Pending = ((u64, u64), u64, u64, usize);

/// A group: name, last id, entries read (None: unknown), consumers, pending.
pub struct Group<'a> {
    pub name: &'a str,
    pub last: (u64, u64),
    pub read: Option<u64>,
    pub consumers: &'a [&'a str],
    pub pending: &'a [Pending],
}

/// The tail of a stream of type 21.
pub fn stream_tail(length: u64, last: (u64, u64), deleted: (u64, u64), added: u64, groups: &[Group<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [length, last.0, last.1, 0, 0, deleted.0, deleted.1, added, groups.len() as u64] {
        push_len(&mut out, number);
    }
    for group in groups {
        push_string(&mut out, group.name.as_bytes());
        push_len(&mut out, group.last.0);
        push_len(&mut out, group.last.1);
        match group.read {
            Some(read) => push_len(&mut out, read),
            None => out.extend([0x81, 255, 255, 255, 255, 255, 255, 255, 255]),
        }
        push_len(&mut out, group.pending.len() as u64);
        for (pending, time, count, _) in group.pending {
            out.extend(id(pending.0, pending.1));
            out.extend(time.to_le_bytes());
            push_len(&mut out, *count);
        }
        push_len(&mut out, group.consumers.len() as u64);
        for (number, consumer) in group.consumers.iter().enumerate() {
            push_string(&mut out, consumer.as_bytes());
            out.extend(1000u64.to_le_bytes());
            out.extend(2000u64.to_le_bytes());
            let own: Vec<_> = group.pending.iter().filter(|pending| pending.3 == number).collect();
            push_len(&mut out, own.len() as u64);
            for (pending, ..) in own {
                out.extend(id(pending.0, pending.1));
            }
        }
    }
    out
}
