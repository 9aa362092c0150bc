//! Large values, compared page by page in bounded memory.
//!
//! Strings and lists are read at both sides at the same places. Sets, hashes and sorted sets are scanned at one side and
//! their elements looked up at the other; where the numbers of elements differ, or an element is missing, the other way
//! round too. Elements that differ are kept (a bounded number) and are what the next look asks for, so that a large value
//! that is written all the time can be settled.

use super::difference::{ELEMENTS_MAX, Element, Item, Kind, brief};
use super::fields;
use super::image::{all_bytes, into_bytes, length_item, print_of, score_bits, score_text, string_item};
use super::look::{Found, Looker, Verdict, changed};
use super::peer::{AskError, Side};
use super::wire::Commands;
use crate::redis::value::Value;

/// Bytes that a page should have.
const PAGE_BYTES: u64 = 256 * 1024;
const PAGE_COUNT_FIRST: u64 = 64;
/// A longer SCAN holds the source up.
const PAGE_COUNT_MAX: u64 = 512;

/// How many elements to ask for, by what the last page took.
struct Page {
    count: u64,
    bytes_before: u64,
}

impl Page {
    fn new(looker: &Looker) -> Self {
        Self { count: PAGE_COUNT_FIRST, bytes_before: looker.source.bytes_received }
    }

    fn adapt(&mut self, looker: &Looker) {
        let bytes = looker.source.bytes_received - self.bytes_before;
        self.bytes_before = looker.source.bytes_received;
        if bytes < PAGE_BYTES / 2 {
            self.count = (self.count * 2).min(PAGE_COUNT_MAX);
        } else if bytes > PAGE_BYTES * 2 {
            self.count = (self.count / 2).max(1);
        }
    }

    /// Whether a smaller page can be tried.
    fn shrink(&mut self) -> bool {
        let smaller = self.count > 1;
        self.count = (self.count / 8).max(1);
        smaller
    }
}

pub async fn compare(looker: &mut Looker, db: u32, key: &[u8], type_name: &str) -> Result<Verdict, AskError> {
    match type_name {
        "string" => string(looker, db, key).await,
        "list" => list(looker, db, key).await,
        _ => collection(looker, db, key, type_name).await,
    }
}

async fn string(looker: &mut Looker, db: u32, key: &[u8]) -> Result<Verdict, AskError> {
    let Some((source_len, target_len)) = sizes(looker, db, key, b"STRLEN").await? else { return Ok(changed("string")) };
    let mut prints = print_of(&source_len);
    let mut at = 0;
    while at < source_len.max(target_len) {
        let end = at + PAGE_BYTES - 1;
        let mut commands = Commands::new();
        commands.push(&[b"GETRANGE", key, at.to_string().as_bytes(), end.to_string().as_bytes()]);
        let (source, target) = looker.both(db, &commands).await?;
        let (Some(source), Some(target)) = (bytes_of(looker, source)?, bytes_of(looker, target)?) else {
            return Ok(changed("string"));
        };
        looker.pace(0).await;
        prints = print_of(&(prints, &source));
        if source != target {
            let mut item = string_item(&source, &target);
            let offset = source.iter().zip(&target).take_while(|(a, b)| a == b).count() as u64;
            item.place = Some(format!("byte {}", at + offset));
            let mut found = Found::new("string", vec![item]);
            if source_len != target_len {
                found.items.push(length_item(source_len, target_len));
            }
            found.source.print = Some(prints);
            return Ok(Verdict::Differs(found));
        }
        at += PAGE_BYTES;
    }
    Ok(Verdict::Equal)
}

async fn list(looker: &mut Looker, db: u32, key: &[u8]) -> Result<Verdict, AskError> {
    let Some((source_len, target_len)) = sizes(looker, db, key, b"LLEN").await? else { return Ok(changed("list")) };
    let mut prints = print_of(&source_len);
    let mut page = Page::new(looker);
    let mut at = 0;
    while at < source_len.max(target_len) {
        let end = at + page.count - 1;
        let mut commands = Commands::new();
        commands.push(&[b"LRANGE", key, at.to_string().as_bytes(), end.to_string().as_bytes()]);
        let (source, target) = match looker.both(db, &commands).await {
            Err(AskError::TooLarge) if page.shrink() => continue,
            other => other?,
        };
        let (Some(source), Some(target)) = (elements_of(looker, source)?, elements_of(looker, target)?) else {
            return Ok(changed("list"));
        };
        looker.pace_elements(source.len() as u64).await;
        prints = print_of(&(prints, &source));
        if source != target {
            let offset = source.iter().zip(&target).take_while(|(a, b)| a == b).count();
            let of = |list: &[Vec<u8>]| list.get(offset).map(|element| brief(element));
            let item = Item::new(Kind::Value).at(format!("index {}", at + offset as u64));
            let mut found = Found::new("list", vec![item.values(of(&source), of(&target))]);
            if source_len != target_len {
                found.items.push(length_item(source_len, target_len));
            }
            found.source.print = Some(prints);
            return Ok(Verdict::Differs(found));
        }
        at += page.count;
        page.adapt(looker);
    }
    Ok(Verdict::Equal)
}

/// A set, hash or sorted set.
async fn collection(looker: &mut Looker, db: u32, key: &[u8], type_name: &str) -> Result<Verdict, AskError> {
    let mut elements = Vec::new();
    let mut complete = scan(looker, db, key, type_name, Side::Source, &mut elements).await?;
    let size_command: &[u8] = match type_name {
        "set" => b"SCARD",
        "hash" => b"HLEN",
        _ => b"ZCARD",
    };
    let Some((source_len, target_len)) = sizes(looker, db, key, size_command).await? else {
        return Ok(changed(type_name));
    };
    // As many elements, and each of the source's at the target: the same elements.
    if source_len != target_len || !elements.is_empty() {
        complete &= scan(looker, db, key, type_name, Side::Target, &mut elements).await?;
    }
    if elements.is_empty() {
        return Ok(Verdict::Equal);
    }
    let mut found = Found::new(type_name, Vec::new());
    (found.elements, found.complete) = (elements, complete);
    Ok(Verdict::Differs(found))
}

/// Looks again at elements that differed.
pub async fn look_elements(
    looker: &mut Looker,
    db: u32,
    key: &[u8],
    type_name: &str,
    names: &[Vec<u8>],
) -> Result<Verdict, AskError> {
    let mut elements = Vec::new();
    for page in names.chunks(PAGE_COUNT_FIRST as usize) {
        let mut commands = Commands::new();
        push_lookup(&mut commands, key, type_name, page);
        let (source, target) = looker.both(db, &commands).await?;
        let (Some(source), Some(target)) = (looked_up(looker, source)?, looked_up(looker, target)?) else {
            return Ok(changed(type_name));
        };
        let canonical = |value: &Option<Vec<u8>>| canonical(type_name, value);
        for (name, (source, target)) in page.iter().zip(source.iter().zip(&target)) {
            let (source, target) = (canonical(source), canonical(target));
            if source != target {
                elements.push(element(type_name, name, &source, &target));
            }
        }
        if type_name == "hash" && fields::comparable(looker) {
            for more in fields::compare(looker, db, &[(key, page)]).await? {
                elements.extend(more);
            }
        }
        looker.pace_elements(page.len() as u64).await;
    }
    if elements.is_empty() {
        return Ok(Verdict::Equal);
    }
    let mut found = Found::new(type_name, Vec::new());
    found.elements = elements;
    Ok(Verdict::Differs(found))
}

/// Scans the value at one side and looks its elements up at the other. Adds what differs; false: there may be more.
async fn scan(
    looker: &mut Looker,
    db: u32,
    key: &[u8],
    type_name: &str,
    from: Side,
    elements: &mut Vec<Element>,
) -> Result<bool, AskError> {
    let command: &[u8] = match type_name {
        "set" => b"SSCAN",
        "hash" => b"HSCAN",
        _ => b"ZSCAN",
    };
    let mut page = Page::new(looker);
    let mut cursor = b"0".to_vec();
    loop {
        let mut commands = Commands::new();
        commands.push(&[command, key, &cursor, b"COUNT", page.count.to_string().as_bytes()]);
        let replies = match from {
            Side::Source => looker.source.ask(db, &commands).await,
            Side::Target => looker.target.ask(db, &commands).await,
        };
        let reply = match replies {
            Err(AskError::TooLarge) if page.shrink() => continue,
            other => other?.into_iter().next(),
        };
        let Some((next, scanned)) = reply.and_then(scan_reply) else { return Ok(true) };
        let scanned: Vec<Scanned> = match type_name {
            "set" => scanned.into_iter().map(|member| (member, Vec::new())).collect(),
            _ => scanned.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
        };
        check_page(looker, db, key, type_name, from, &scanned, elements).await?;
        looker.pace_elements(scanned.len() as u64).await;
        if elements.len() >= ELEMENTS_MAX {
            return Ok(false);
        }
        if next == b"0" {
            return Ok(true);
        }
        cursor = next;
        page.adapt(looker);
    }
}

/// An element, and its value or score.
type Scanned = (Vec<u8>, Vec<u8>);

/// Looks one page's elements up at the other side.
async fn check_page(
    looker: &mut Looker,
    db: u32,
    key: &[u8],
    type_name: &str,
    from: Side,
    scanned: &[Scanned],
    elements: &mut Vec<Element>,
) -> Result<(), AskError> {
    if scanned.is_empty() {
        return Ok(());
    }
    let names: Vec<Vec<u8>> = scanned.iter().map(|(name, _)| name.clone()).collect();
    let mut commands = Commands::new();
    push_lookup(&mut commands, key, type_name, &names);
    let elsewhere = match from {
        Side::Source => looker.target.ask(db, &commands).await?,
        Side::Target => looker.source.ask(db, &commands).await?,
    };
    let all_of = |values: Option<Vec<Option<Vec<u8>>>>| {
        let values = values.unwrap_or_else(|| vec![None; names.len()]);
        values.iter().map(|value| canonical(type_name, value)).collect::<Vec<_>>()
    };
    let there = all_of(looked_up(looker, elsewhere)?);
    let mut here: Vec<Option<Vec<u8>>> = match type_name {
        "set" => vec![Some(PRESENT.to_vec()); names.len()],
        _ => scanned.iter().map(|(_, value)| canonical(type_name, &Some(value.clone()))).collect(),
    };
    // The text of a score may be shorter in a SCAN.
    if type_name == "zset" && here != there {
        let again = match from {
            Side::Source => looker.source.ask(db, &commands).await?,
            Side::Target => looker.target.ask(db, &commands).await?,
        };
        here = all_of(looked_up(looker, again)?);
    }
    for (name, (here, there)) in names.iter().zip(here.iter().zip(&there)) {
        // A scan may give an element twice, and both scans may meet it.
        if here == there || elements.iter().any(|element| element.name == *name) {
            continue;
        }
        let (source, target) = if from == Side::Source { (here, there) } else { (there, here) };
        elements.push(element(type_name, name, source, target));
    }
    if type_name == "hash" && from == Side::Source && fields::comparable(looker) {
        for more in fields::compare(looker, db, &[(key, &names)]).await? {
            elements.extend(more);
        }
    }
    Ok(())
}

/// What stands for a member that a set has.
const PRESENT: &[u8] = b"1";

fn push_lookup(commands: &mut Commands, key: &[u8], type_name: &str, names: &[Vec<u8>]) {
    let command: &[u8] = match type_name {
        "set" => b"SMISMEMBER",
        "hash" => b"HMGET",
        _ => b"ZMSCORE",
    };
    let mut args: Vec<&[u8]> = vec![command, key];
    args.extend(names.iter().map(Vec::as_slice));
    commands.push(&args);
}

/// Values by element; none of all: the key is of another type now.
fn looked_up(looker: &Looker, replies: Vec<Value>) -> Result<Option<Vec<Option<Vec<u8>>>>, AskError> {
    match replies.into_iter().next() {
        Some(Value::Array(values)) => Ok(Some(
            values
                .into_iter()
                .map(|value| match value {
                    Value::Integer(0) => None,
                    Value::Integer(_) => Some(PRESENT.to_vec()),
                    value => into_bytes(value),
                })
                .collect(),
        )),
        Some(reply) => looker.check_read(&reply).map(|()| None).map_err(AskError::Engine),
        None => Ok(None),
    }
}

/// Equal scores have one text.
fn canonical(type_name: &str, value: &Option<Vec<u8>>) -> Option<Vec<u8>> {
    match (type_name, value) {
        ("zset", Some(score)) => Some(score_bits(score).map_or(score.clone(), |bits| score_text(bits).into_bytes())),
        (_, value) => value.clone(),
    }
}

fn element(type_name: &str, name: &[u8], source: &Option<Vec<u8>>, target: &Option<Vec<u8>>) -> Element {
    let (what, show): (_, fn(&Vec<u8>) -> String) = match type_name {
        "hash" => ("field", |value| brief(value)),
        "set" => ("member", |_| String::new()),
        _ => ("member", |value| brief(value)),
    };
    let item = Item::new(Kind::Value).at(format!("{what} {}", brief(name)));
    let item = item.values(source.as_ref().map(show), target.as_ref().map(show));
    Element { name: name.to_vec(), print: print_of(source), item }
}

/// Sizes at both sides; none: the key is of another type now.
async fn sizes(looker: &mut Looker, db: u32, key: &[u8], command: &[u8]) -> Result<Option<(u64, u64)>, AskError> {
    let mut commands = Commands::new();
    commands.push(&[command, key]);
    let (source, target) = looker.both(db, &commands).await?;
    let size = |replies: Vec<Value>| match replies.first() {
        Some(Value::Integer(n)) => Ok(u64::try_from(*n).ok()),
        Some(reply) => looker.check_read(reply).map(|()| None),
        None => Ok(None),
    };
    Ok(size(source)?.zip(size(target)?))
}

fn bytes_of(looker: &Looker, replies: Vec<Value>) -> Result<Option<Vec<u8>>, AskError> {
    let Some(reply) = replies.into_iter().next() else { return Ok(None) };
    looker.check_read(&reply)?;
    Ok(into_bytes(reply))
}

fn elements_of(looker: &Looker, replies: Vec<Value>) -> Result<Option<Vec<Vec<u8>>>, AskError> {
    let Some(reply) = replies.into_iter().next() else { return Ok(None) };
    looker.check_read(&reply)?;
    Ok(match reply {
        Value::Array(values) => all_bytes(values),
        _ => None,
    })
}

/// The next cursor and the elements of any SCAN. None: another shape.
pub fn scan_reply(reply: Value) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let Value::Array(parts) = reply else { return None };
    let [cursor, Value::Array(elements)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
    let cursor = match cursor {
        Value::Integer(n) => n.to_string().into_bytes(),
        cursor => into_bytes(cursor)?,
    };
    Some((cursor, all_bytes(elements)?))
}
