//! Encoder of the replication stream, written from dragonfly-wire.md sections 0 to 4 and from nothing else.
//!
//! It must never share code with `dragonfly/`, whose decoder it judges. In: values and attributes. Out: bytes appended to a
//! `Vec`. Nothing is checked: a test may ask for nonsense. Containers are in [`packed`], LZF in [`lzf`].

pub mod lzf;
pub mod packed;

/// Object types as they stand in the stream (wire 3.1).
pub mod types {
    pub const STRING: u8 = 0;
    pub const SET: u8 = 2;
    pub const HASH: u8 = 4;
    pub const ZSET: u8 = 5;
    pub const SET_INTSET: u8 = 11;
    pub const ZSET_ZIPLIST: u8 = 12;
    pub const HASH_ZIPLIST: u8 = 13;
    pub const LIST_ZIPLISTS: u8 = 14;
    pub const STREAM_V1: u8 = 15;
    pub const HASH_LISTPACK: u8 = 16;
    pub const ZSET_LISTPACK: u8 = 17;
    pub const LIST_NODES: u8 = 18;
    pub const JSON_OLD: u8 = 20;
    pub const STREAM_V3: u8 = 21;
    pub const JSON: u8 = 30;
    pub const HASH_EXPIRY: u8 = 31;
    pub const SET_EXPIRY: u8 = 32;
    pub const BLOOM: u8 = 33;
    pub const BLOOM_PIECES: u8 = 34;
    pub const COUNT_MIN_SKETCH: u8 = 35;
    pub const TOP_K: u8 = 36;
    pub const CUCKOO: u8 = 37;
}

/// Base of field and member expiries: 2023-02-01 (wire 3.5).
pub const MEMBER_EXPIRY_BASE_S: i64 = 1_675_209_600;

/// Codec of a compressed blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobCodec {
    Zstd,
    Lz4,
}

/// Packed unsigned integer, shortest form (wire 0.1).
#[inline]
pub fn packed(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x3f => out.push(value as u8),
        0x40..=0x3fff => out.extend_from_slice(&[0x40 | (value >> 8) as u8, value as u8]),
        0x4000..=0xffff_ffff => {
            out.push(0x80);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// A string in its raw form only.
pub fn raw_string(out: &mut Vec<u8>, bytes: &[u8]) {
    packed(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A string as the master's writer would put it (wire 0.2): integer form where the text is a canonical number of 32
/// bits, LZF where asked for and worth it, else raw.
pub fn string(out: &mut Vec<u8>, bytes: &[u8], lzf: bool) {
    if bytes.len() <= 11
        && let Some(number) = canonical_number(bytes)
        && let Ok(number) = i32::try_from(number)
    {
        return match (i8::try_from(number), i16::try_from(number)) {
            (Ok(small), _) => out.extend_from_slice(&[0xc0, small as u8]),
            (_, Ok(middle)) => {
                out.push(0xc1);
                out.extend_from_slice(&middle.to_le_bytes());
            }
            _ => {
                out.push(0xc2);
                out.extend_from_slice(&number.to_le_bytes());
            }
        };
    }
    if lzf && bytes.len() > 20 {
        let small = lzf::compress(bytes);
        if small.len() + 8 < bytes.len() && small.len() * 100 < bytes.len() * 85 {
            return lzf_string(out, &small, bytes.len());
        }
    }
    raw_string(out, bytes);
}

/// A string in LZF form.
pub fn lzf_string(out: &mut Vec<u8>, compressed: &[u8], plain_len: usize) {
    out.push(0xc3);
    packed(out, compressed.len() as u64);
    packed(out, plain_len as u64);
    out.extend_from_slice(compressed);
}

/// The number whose canonical decimal text `bytes` is.
pub fn canonical_number(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > 20 || !(bytes[0] == b'-' || bytes[0].is_ascii_digit()) {
        return None;
    }
    let number: i64 = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == bytes).then_some(number)
}

pub fn header(out: &mut Vec<u8>) {
    out.extend_from_slice(b"REDIS0009");
}

pub fn aux(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(0xfa);
    string(out, name.as_bytes(), false);
    string(out, value, false);
}

pub fn select_db(out: &mut Vec<u8>, db: u32) {
    out.push(0xfe);
    packed(out, u64::from(db));
}

/// What stands before the value: expiry, DF_MASK, type, key (wire 3.2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    pub expire_at_ms: Option<i64>,
    pub sticky: bool,
    pub memcached_flags: Option<u32>,
}

pub fn key_head(out: &mut Vec<u8>, attributes: Attributes, object_type: u8, key: &[u8], lzf: bool) {
    if let Some(at) = attributes.expire_at_ms {
        out.push(0xfc);
        out.extend_from_slice(&at.to_le_bytes());
    }
    let mask = u32::from(attributes.sticky) | u32::from(attributes.memcached_flags.is_some()) << 1;
    if mask != 0 {
        out.push(0xdc);
        out.extend_from_slice(&mask.to_le_bytes());
        if let Some(flags) = attributes.memcached_flags {
            out.extend_from_slice(&flags.to_le_bytes());
        }
    }
    out.push(object_type);
    string(out, key, lzf);
}

pub fn double(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// The expiry element of types 31 and 32: a string holding seconds since the fixed epoch, or -1.
pub fn member_expiry(out: &mut Vec<u8>, expire_at_s: Option<i64>) {
    let relative = expire_at_s.map_or(-1, |at| at - MEMBER_EXPIRY_BASE_S);
    string(out, relative.to_string().as_bytes(), false);
}

/// One tagged chunk (wire 2.6).
pub fn tagged_chunk(out: &mut Vec<u8>, id: u32, payload: &[u8]) {
    out.push(0xe0);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

/// One compressed blob around `content` (wire 2.5).
pub fn compressed_blob(out: &mut Vec<u8>, codec: BlobCodec, content: &[u8]) -> std::io::Result<()> {
    let frame = match codec {
        BlobCodec::Zstd => zstd::bulk::compress(content, 2)?,
        BlobCodec::Lz4 => {
            use lz4_flex::frame::{FrameEncoder, FrameInfo};
            use std::io::Write;
            let info = FrameInfo::new().content_size(Some(content.len() as u64));
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::with_capacity(content.len() / 2));
            encoder.write_all(content)?;
            encoder.finish().map_err(std::io::Error::other)?
        }
    };
    out.push(match codec {
        BlobCodec::Zstd => 0xc9,
        BlobCodec::Lz4 => 0xca,
    });
    raw_string(out, &frame);
    Ok(())
}

/// One COMMAND entry with its SELECT prefix (wire 4.1).
pub fn journal_command(out: &mut Vec<u8>, db: u32, txid: u64, args: &[impl AsRef<[u8]>]) {
    out.push(0x06);
    packed(out, u64::from(db));
    out.push(0x0a);
    packed(out, txid);
    packed(out, 1);
    packed(out, args.len() as u64);
    packed(out, args.iter().map(|arg| arg.as_ref().len() as u64).sum());
    args.iter().for_each(|arg| raw_string(out, arg.as_ref()));
}

/// One journal record as it stands inside the full sync (wire 2.7).
pub fn journal_blob(out: &mut Vec<u8>, record: &[u8]) {
    out.extend_from_slice(&[0xd2, 0x01]);
    raw_string(out, record);
}

pub fn full_sync_end(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xc8, 0, 0, 0, 0, 0, 0, 0, 0]);
}

pub fn journal_offset(out: &mut Vec<u8>, next_lsn: u64) {
    out.push(0xd3);
    out.extend_from_slice(&next_lsn.to_le_bytes());
}

/// EOF opcode and its 8 zero bytes, without the token.
pub fn eof(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// A RESTORE payload (wire 3.8): type, body, footer version, CRC-64.
pub fn dump_payload(object_type: u8, body: &[u8], footer: u16) -> Vec<u8> {
    let mut out = vec![object_type];
    out.extend_from_slice(body);
    out.extend_from_slice(&footer.to_le_bytes());
    let crc = crc::Crc::<u64>::new(&crc::CRC_64_REDIS).checksum(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The flow that owns a key (wire 1.1).
pub fn owner(key: &[u8], flows_count: usize) -> usize {
    (twox_hash::XxHash64::oneshot(120_577_240_643, key) % flows_count.max(1) as u64) as usize
}

#[cfg(test)]
mod tests;
