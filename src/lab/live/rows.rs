//! Rows in the format of tools/truth.py, of what the live source holds.

use super::data::Data;
use super::value::{Field, Group, Stream, Value, id_text};
use crate::lab::generate::rows::{Flat, head};
use crate::lab::truth::json_of;
use serde_json::{Value as Json, json};
use std::io::{self, Write};

/// Writes every key, in no particular order.
pub fn write(data: &Data, out: &mut impl Write) -> io::Result<()> {
    for (db, key, object) in data.iter() {
        let type_name = if matches!(object.value, Value::Json(_)) { "json" } else { object.value.type_name() };
        let row = head(db, key, type_name, object.expire_at_ms);
        writeln!(out, "{}", value_row(key, &object.value, row))?;
    }
    Ok(())
}

fn value_row(key: &[u8], value: &Value, mut row: Json) -> Json {
    let mut flat = Flat::default();
    match value {
        Value::Json(text) => {
            row["json"] = serde_json::from_slice(text).unwrap_or_default();
            return row;
        }
        Value::String(text) => flat.part(text),
        Value::List(items) => items.iter().for_each(|item| flat.part(item)),
        Value::Set(members) => members.iter().for_each(|member| flat.part(member)),
        Value::Zset(scores) => scores.iter().for_each(|(member, score)| {
            flat.part(member);
            // Scores are short fractions, which Python prints in the same way.
            flat.part(format!("{score:?}").as_bytes());
        }),
        Value::Hash(fields) => {
            let timed: Vec<Json> =
                fields.iter().filter(|(_, f)| f.expire_at_s.is_some()).map(|(name, _)| json_of(name)).collect();
            fields.iter().for_each(|(name, Field { value, .. })| {
                flat.part(name);
                flat.part(value);
            });
            if !timed.is_empty() && memchr::memmem::find(key, b"ttl").is_some() {
                row["fields_with_ttl"] = if timed.len() < 50 { Json::Array(timed) } else { json!(timed.len()) };
            }
        }
        Value::Stream(stream) => return stream_row(stream, row),
    }
    flat.into_row(row)
}

fn stream_row(stream: &Stream, row: Json) -> Json {
    let mut flat = Flat::default();
    for (id, fields) in &stream.entries {
        flat.part(&id_text(*id));
        for (name, value) in fields {
            flat.part(name);
            flat.part(value);
        }
    }
    let mut row = flat.into_row(row);
    row["last_id"] = json_of(&id_text(stream.last_id));
    row["groups"] = stream.groups.iter().map(|(name, group)| group_row(name, group)).collect();
    row
}

fn group_row(name: &[u8], group: &Group) -> Json {
    // truth.py sorts them as text, closing quote included.
    let mut pending: Vec<_> = group.pending.iter().map(|(id, p)| (id_text(*id), p)).collect();
    pending.sort_by_key(|(id, _)| [id.as_slice(), b"'"].concat());
    let pending: Vec<Json> =
        pending.iter().map(|(id, p)| json!([json_of(id), json_of(&p.consumer), p.deliveries])).collect();
    json!({ "name": json_of(name), "last": json_of(&id_text(group.last_id)), "pending": pending,
            "consumers": group.consumers.keys().map(|c| json_of(c)).collect::<Vec<_>>() })
}
