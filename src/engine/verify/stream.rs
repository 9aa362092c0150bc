//! Streams: entries, last id, and consumer groups with their positions, consumers and pending entries.
//!
//! Read in pages at both sides at the same ids, and compared as they come. Of a pending entry id, consumer and number of
//! deliveries are compared; times since something happened are not, nor are the counters that only serve statistics
//! (entries-added, entries-read, max-deleted-entry-id).

use super::difference::{self, Item, Kind, brief};
use super::image::{into_bytes, print_of, sorted_items};
use super::look::{Found, Looker, Verdict, changed};
use super::peer::{AskError, number};
use super::wire::Commands;
use crate::redis::value::Value;
use std::collections::BTreeMap;

const PAGE_COUNT: u64 = 128;

pub async fn compare(looker: &mut Looker, db: u32, key: &[u8]) -> Result<Verdict, AskError> {
    let mut commands = Commands::new();
    commands.push_keyed(&[b"XINFO", b"STREAM", key], 2);
    commands.push_keyed(&[b"XINFO", b"GROUPS", key], 2);
    let (source, target) = looker.both(db, &commands).await?;
    let (Some(source), Some(target)) = (Head::of(looker, source)?, Head::of(looker, target)?) else {
        return Ok(changed("stream"));
    };
    let mut items = Vec::new();
    let entries_print = entries(looker, db, key, &mut items).await?;
    if source.last_id != target.last_id {
        let show = |head: &Head| Some(brief(&head.last_id));
        items.push(Item::new(Kind::Value).at("last-generated-id").values(show(&source), show(&target)));
    }
    items.extend(as_groups(sorted_items(
        &source.positions(),
        &target.positions(),
        "last-delivered-id of group",
        |id| brief(id),
    )));
    let mut groups_print = 0;
    for group in source.groups.keys().filter(|name| target.groups.contains_key(*name)) {
        groups_print = print_of(&(groups_print, consumers(looker, db, key, group, &mut items).await?));
        groups_print = print_of(&(groups_print, pending(looker, db, key, group, &mut items).await?));
    }
    if items.is_empty() {
        return Ok(Verdict::Equal);
    }
    items.truncate(difference::ITEMS_MAX);
    let mut found = Found::new("stream", items);
    found.source.print = Some(print_of(&(&source.last_id, &source.groups, entries_print, groups_print)));
    Ok(Verdict::Differs(found))
}

/// What XINFO says.
struct Head {
    last_id: Vec<u8>,
    /// Last delivered id by group.
    groups: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Head {
    /// None: it is no stream any more.
    fn of(looker: &Looker, replies: Vec<Value>) -> Result<Option<Self>, AskError> {
        if let Some(error) = replies.iter().find(|reply| matches!(reply, Value::Error(_))) {
            let gone = matches!(error, Value::Error(text) if text.starts_with(b"ERR no such key"));
            return if gone { Ok(None) } else { Ok(looker.check_read(error).map(|()| None)?) };
        }
        let [Value::Array(stream), Value::Array(groups)] = &replies[..] else { return Ok(None) };
        let Some(last_id) = field(stream, "last-generated-id").and_then(Value::bytes) else { return Ok(None) };
        let mut by_name = BTreeMap::new();
        for group in groups.iter().filter_map(Value::array) {
            let text = |name| field(group, name).and_then(Value::bytes);
            if let (Some(name), Some(id)) = (text("name"), text("last-delivered-id")) {
                by_name.insert(name.to_vec(), id.to_vec());
            }
        }
        Ok(Some(Self { last_id: last_id.to_vec(), groups: by_name }))
    }

    fn positions(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.groups.iter().map(|(name, id)| (name.clone(), id.clone())).collect()
    }
}

/// The value behind a name in a flat list of names and values.
fn field<'v>(pairs: &'v [Value], name: &str) -> Option<&'v Value> {
    pairs.chunks_exact(2).find(|pair| pair[0].text() == Some(name)).map(|pair| &pair[1])
}

fn as_groups(items: Vec<Item>) -> impl Iterator<Item = Item> {
    items.into_iter().map(|item| Item { kind: Kind::Group, ..item })
}

/// An entry: id, then fields and values.
type Entry = (Vec<u8>, Vec<Vec<u8>>);

/// Compares the entries up to the first page that differs; a print of what was read at the source.
async fn entries(looker: &mut Looker, db: u32, key: &[u8], items: &mut Vec<Item>) -> Result<u64, AskError> {
    let mut start = b"-".to_vec();
    let mut count = PAGE_COUNT;
    let mut print = 0;
    loop {
        let mut commands = Commands::new();
        commands.push(&[b"XRANGE", key, &start, b"+", b"COUNT", count.to_string().as_bytes()]);
        let (source, target) = match looker.both(db, &commands).await {
            Err(AskError::TooLarge) if count > 1 => {
                count = (count / 8).max(1);
                continue;
            }
            other => other?,
        };
        let (source, target) = (entries_of(source), entries_of(target));
        looker.pace_elements(source.len() as u64).await;
        print = print_of(&(print, &source));
        if source != target {
            // Where a page ends, the other side's further entries are only not read yet.
            let full = |entries: &[Entry]| entries.len() as u64 >= count;
            let end = [&source, &target].iter().filter(|e| full(e)).filter_map(|e| e.last()).map(|e| id_of(&e.0)).min();
            let before = |entries: Vec<Entry>| -> Vec<((u64, u64), Entry)> {
                let ids = entries.into_iter().map(|entry| (id_of(&entry.0), entry));
                ids.filter(|(id, _)| end.is_none_or(|end| *id <= end)).collect()
            };
            items.extend(entry_items(&before(source), &before(target)));
            return Ok(print);
        }
        match source.last() {
            Some((id, _)) if source.len() as u64 >= count => match next_id(id) {
                Some(next) => start = next,
                None => return Ok(print),
            },
            _ => return Ok(print),
        }
    }
}

fn entries_of(replies: Vec<Value>) -> Vec<Entry> {
    let Some(Value::Array(rows)) = replies.into_iter().next() else { return Vec::new() };
    let entry = |row| {
        let Value::Array(parts) = row else { return None };
        let [id, Value::Array(values)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
        Some((into_bytes(id)?, super::image::all_bytes(values)?))
    };
    rows.into_iter().filter_map(entry).collect()
}

fn entry_items(source: &[((u64, u64), Entry)], target: &[((u64, u64), Entry)]) -> Vec<Item> {
    let by_id = |entries: &[((u64, u64), Entry)]| {
        // Ids as texts of equal length, so that they sort as numbers.
        entries
            .iter()
            .map(|((ms, seq), entry)| (format!("{ms:020}-{seq:020}").into_bytes(), entry.clone()))
            .collect::<Vec<_>>()
    };
    let show = |(id, values): &Entry| {
        let values: Vec<String> = values.iter().map(|value| brief(value)).collect();
        format!("{} {}", brief(id), values.join(" "))
    };
    let items = sorted_items(&by_id(source), &by_id(target), "", show);
    items
        .into_iter()
        .map(|item| {
            let id = item.source.as_ref().or(item.target.as_ref()).and_then(|text| text.split(' ').next());
            Item { place: id.map(|id| format!("entry {id}")), ..item }
        })
        .collect()
}

/// Compares the names of a group's consumers.
async fn consumers(
    looker: &mut Looker,
    db: u32,
    key: &[u8],
    group: &[u8],
    items: &mut Vec<Item>,
) -> Result<u64, AskError> {
    let mut commands = Commands::new();
    commands.push_keyed(&[b"XINFO", b"CONSUMERS", key, group], 2);
    let (source, target) = looker.both(db, &commands).await?;
    let (source, target) = (consumers_of(source), consumers_of(target));
    let what = format!("consumer of group {}:", brief(group));
    items.extend(as_groups(sorted_items(&source, &target, &what, |()| String::new())));
    Ok(print_of(&source))
}

fn consumers_of(replies: Vec<Value>) -> Vec<(Vec<u8>, ())> {
    let Some(Value::Array(rows)) = replies.into_iter().next() else { return Vec::new() };
    let name = |row: &Value| Some((field(row.array()?, "name")?.bytes()?.to_vec(), ()));
    let mut names: Vec<_> = rows.iter().filter_map(name).collect();
    names.sort_unstable();
    names
}

/// A pending entry: id, consumer, deliveries.
type Pending = (Vec<u8>, (Vec<u8>, i64));

/// Compares a group's pending entries up to the first page that differs.
async fn pending(
    looker: &mut Looker,
    db: u32,
    key: &[u8],
    group: &[u8],
    items: &mut Vec<Item>,
) -> Result<u64, AskError> {
    let mut start = b"-".to_vec();
    let count = PAGE_COUNT * 4;
    let mut print = 0;
    loop {
        let mut commands = Commands::new();
        commands.push(&[b"XPENDING", key, group, &start, b"+", count.to_string().as_bytes()]);
        let (source, target) = looker.both(db, &commands).await?;
        let (source, target) = (pending_of(source), pending_of(target));
        looker.pace_elements(source.len() as u64).await;
        print = print_of(&(print, &source));
        if source != target {
            let full = |entries: &[Pending]| entries.len() as u64 >= count;
            let end = [&source, &target].iter().filter(|e| full(e)).filter_map(|e| e.last()).map(|e| id_of(&e.0)).min();
            let before = |entries: Vec<Pending>| {
                let mut kept: Vec<Pending> =
                    entries.into_iter().filter(|(id, _)| end.is_none_or(|end| id_of(id) <= end)).collect();
                kept.sort_unstable();
                kept
            };
            let what = format!("pending in group {}:", brief(group));
            let show = |(consumer, deliveries): &(Vec<u8>, i64)| format!("{} {deliveries}", brief(consumer));
            items.extend(as_groups(sorted_items(&before(source), &before(target), &what, show)));
            return Ok(print);
        }
        match source.last().and_then(|(id, _)| next_id(id)) {
            Some(next) if source.len() as u64 >= count => start = next,
            _ => return Ok(print),
        }
    }
}

fn pending_of(replies: Vec<Value>) -> Vec<Pending> {
    let Some(Value::Array(rows)) = replies.into_iter().next() else { return Vec::new() };
    let entry = |row: &Value| match row.array()? {
        [id, consumer, _, deliveries, ..] => {
            Some((id.bytes()?.to_vec(), (consumer.bytes()?.to_vec(), number(deliveries)?)))
        }
        _ => None,
    };
    rows.iter().filter_map(entry).collect()
}

/// An id as numbers; what is no id sorts first.
fn id_of(text: &[u8]) -> (u64, u64) {
    let parse = || {
        let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some((ms.parse().ok()?, seq.parse().ok()?))
    };
    parse().unwrap_or_default()
}

/// The smallest id after this one.
fn next_id(text: &[u8]) -> Option<Vec<u8>> {
    let (ms, seq) = id_of(text);
    let (ms, seq) = match seq.checked_add(1) {
        Some(seq) => (ms, seq),
        None => (ms.checked_add(1)?, 0),
    };
    Some(format!("{ms}-{seq}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, value: &str) -> ((u64, u64), Entry) {
        (id_of(id.as_bytes()), (id.as_bytes().to_vec(), vec![b"f".to_vec(), value.as_bytes().to_vec()]))
    }

    #[test]
    fn entries_are_told_by_their_ids() {
        let source = [entry("9-1", "a"), entry("10-1", "b"), entry("10-2", "c")];
        let target = [entry("9-1", "a"), entry("10-1", "x"), entry("11-0", "d")];
        let items = entry_items(&source, &target);
        let places: Vec<_> = items.iter().filter_map(|item| item.place.as_deref()).collect();
        assert_eq!(places, ["entry 10-1", "entry 10-2", "entry 11-0"]);
        assert_eq!((items[0].source.as_deref(), items[0].target.as_deref()), (Some("10-1 f b"), Some("10-1 f x")));
    }

    #[test]
    fn ids_go_on() {
        assert_eq!(next_id(b"5-7").unwrap(), b"5-8");
        assert_eq!(next_id(format!("5-{}", u64::MAX).as_bytes()).unwrap(), b"6-0");
        assert_eq!(next_id(format!("{0}-{0}", u64::MAX).as_bytes()), None);
    }
}
