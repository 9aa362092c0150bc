//! Tests of the converter as a whole: events made by hand, commands compared as text.

mod build;
mod forms;
mod model;
mod split;
mod streams;

use super::*;
use crate::convert::out::VecOut;
use crate::dragonfly::{Event, KeyMeta, ObjectId, ObjectType, Stage};
use crate::ids::{DbIndex, FlowId};
use crate::redis::payload::{FOOTER_LEN, footer};
use crate::redis::request;
use crate::redis::{Capabilities, Make, Version};
use std::sync::Arc;

pub(super) const NOW_MS: i64 = 1_800_000_000_000;

pub(super) fn redis(major: u32, minor: u32) -> Capabilities {
    Capabilities::plain(Make::Redis, Version::new(major, minor, 0))
}

pub(super) fn valkey(major: u32, minor: u32) -> Capabilities {
    Capabilities::plain(Make::Valkey, Version::new(major, minor, 0))
}

pub(super) fn converter(capabilities: Capabilities, policy: &str, limits: Limits) -> Converter {
    let policy = Policy::parse(Some(policy).filter(|text| !text.is_empty())).unwrap();
    Converter::new(FlowId(1), Arc::new(Plan::new(capabilities, policy, limits).unwrap()))
}

pub(super) fn meta<'a>(key: &'a str, object_type: ObjectType, expire_at_ms: Option<i64>) -> KeyMeta<'a> {
    let key = key.as_bytes();
    KeyMeta { db: DbIndex(0), key, expire_at_ms, sticky: false, memcached_flags: None, object_type }
}

/// The commands written, one a line, in printable form. The footer of a RESTORE is checked and left out.
pub(super) fn lines(out: &VecOut) -> Vec<String> {
    out.commands().map(|(_, bytes)| line(&args(bytes))).collect()
}

pub(super) fn args(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (value, len) = crate::redis::value::parse(bytes).unwrap().expect("a whole command");
    assert_eq!(len, bytes.len());
    let args: Vec<Vec<u8>> = value.array().unwrap().iter().map(|arg| arg.bytes().unwrap().to_vec()).collect();
    assert_eq!(request::nth_command([bytes], 0).unwrap().args_count, args.len());
    args
}

fn line(args: &[Vec<u8>]) -> String {
    let mut args = args.to_vec();
    if args[0] == b"RESTORE" {
        let payload = &mut args[3];
        let sum = payload.split_off(payload.len() - FOOTER_LEN);
        assert_eq!(sum, footer(&[payload]));
    }
    args.iter().map(|arg| escape::printable(arg)).collect::<Vec<_>>().join(" ")
}

/// Converts one whole value.
pub(super) fn whole(
    capabilities: Capabilities,
    policy: &str,
    meta: KeyMeta<'_>,
    body: &[u8],
) -> Result<(Vec<String>, Tally), ConvertError> {
    let mut converter = converter(capabilities, policy, Limits::default());
    let mut out = VecOut::new();
    converter.event(&Event::Whole { meta, body }, NOW_MS, &mut out)?;
    let total = converter.tally().total();
    assert_eq!(total.keys_read, total.keys_written + total.keys_expired + total.keys_skipped);
    assert_eq!(total.bytes_written, out.bytes().len() as u64);
    assert_eq!(total.commands, out.commands().count() as u64);
    Ok((lines(&out), std::mem::take(converter.tally_mut())))
}

/// Converts a value that comes in pieces.
pub(super) fn split(
    converter: &mut Converter,
    meta: KeyMeta<'_>,
    count: u64,
    runs: &[(Stage, u64, &[u8])],
) -> Result<Vec<String>, ConvertError> {
    let mut out = VecOut::new();
    let object = ObjectId(7);
    converter.event(&Event::Begin { object, meta, count }, NOW_MS, &mut out)?;
    for &(stage, count, body) in runs {
        converter.event(&Event::Run { object, stage, count, body }, NOW_MS, &mut out)?;
    }
    converter.event(&Event::End { object }, NOW_MS, &mut out)?;
    assert_eq!(converter.objects_open(), 0);
    assert!(!out.is_open());
    let total = converter.tally().total();
    assert_eq!(total.keys_read, total.keys_written + total.keys_expired + total.keys_skipped);
    assert_eq!(total.bytes_written, out.bytes().len() as u64);
    Ok(lines(&out))
}
