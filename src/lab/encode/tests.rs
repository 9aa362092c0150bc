//! Appendix A of dragonfly-wire.md, byte for byte.

use super::packed::{Listpack, PACKED_NODE};
use super::*;

fn hex(text: &str) -> Vec<u8> {
    text.split_ascii_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn made(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn plain(object_type: u8, key: &[u8]) -> Vec<u8> {
    made(|out| key_head(out, Attributes::default(), object_type, key, false))
}

#[test]
fn packed_numbers() {
    for (value, wanted) in [
        (0, "00"),
        (63, "3f"),
        (64, "40 40"),
        (300, "41 2c"),
        (16383, "7f ff"),
        (16384, "80 00 00 40 00"),
        (70000, "80 00 01 11 70"),
        (u64::from(u32::MAX), "80 ff ff ff ff"),
        (1 << 32, "81 00 00 00 01 00 00 00 00"),
    ] {
        assert_eq!(made(|out| packed(out, value)), hex(wanted), "{value}");
    }
}

#[test]
fn dump_payloads() {
    let dump = |text: &[u8], footer| dump_payload(types::STRING, &made(|out| string(out, text, false)), footer);
    assert_eq!(dump(b"bar", 9), hex("00 03 62 61 72 09 00 36 4c 18 ac ba e0 9e a6"));
    assert_eq!(dump(b"5", 9), hex("00 c0 05 09 00 b3 dd 0e aa d7 a9 d0 e0"));
    assert_eq!(dump(b"10", 10), hex("00 c0 0a 0a 00 6e 9f 57 45 0e ae 63 bb"));
}

#[test]
fn records() {
    assert_eq!(made(|out| aux(out, "redis-bits", b"64")), hex("fa 0a 72 65 64 69 73 2d 62 69 74 73 c0 40"));
    let expiring = made(|out| {
        select_db(out, 0);
        let attributes = Attributes { expire_at_ms: Some(2_000_000_000_000), ..Default::default() };
        key_head(out, attributes, types::STRING, b"k", false);
        string(out, b"v", false);
    });
    assert_eq!(expiring, hex("fe 00 fc 00 20 4a a9 d1 01 00 00 00 01 6b 01 76"));
    let sticky = made(|out| {
        let attributes = Attributes { sticky: true, memcached_flags: Some(7), ..Default::default() };
        key_head(out, attributes, types::STRING, b"k", false);
        string(out, b"12", false);
    });
    assert_eq!(sticky, hex("dc 03 00 00 00 07 00 00 00 00 01 6b c0 0c"));
    assert_eq!(made(full_sync_end), hex("c8 00 00 00 00 00 00 00 00"));
    assert_eq!(made(|out| journal_offset(out, 42)), hex("d3 2a 00 00 00 00 00 00 00"));
    assert_eq!(made(eof), hex("ff 00 00 00 00 00 00 00 00"));
}

#[test]
fn collections() {
    let mut set = plain(types::SET, b"s");
    packed(&mut set, 2);
    string(&mut set, b"a", false);
    let first_len = set.len();
    string(&mut set, b"5", false);
    assert_eq!(set, hex("02 01 73 02 01 61 c0 05"));
    let mut chunks = Vec::new();
    tagged_chunk(&mut chunks, 7, &set[..first_len]);
    tagged_chunk(&mut chunks, 7, &set[first_len..]);
    let wanted = "e0 07 00 00 00 06 00 00 00 02 01 73 02 01 61 e0 07 00 00 00 02 00 00 00 c0 05";
    assert_eq!(chunks, hex(wanted));

    let mut hash = plain(types::HASH_EXPIRY, b"h");
    packed(&mut hash, 2);
    for (field, value, at) in [(b"f", b"v", Some(1_700_000_000)), (b"g", b"w", None)] {
        string(&mut hash, field, false);
        string(&mut hash, value, false);
        member_expiry(&mut hash, at);
    }
    assert_eq!(hash, hex("1f 01 68 02 01 66 01 76 c2 80 45 7a 01 01 67 01 77 c0 ff"));

    let mut list = plain(types::LIST_NODES, b"l");
    packed(&mut list, 1);
    packed(&mut list, PACKED_NODE);
    let mut node = Listpack::default();
    node.push(b"x");
    node.push(b"y");
    raw_string(&mut list, &node.finish());
    assert_eq!(list, hex("12 01 6c 01 02 0d 0d 00 00 00 02 00 81 78 02 81 79 02 ff"));
}

#[test]
fn journal_records() {
    let set = made(|out| journal_command(out, 0, 0, &["SET", "k", "v"]));
    assert_eq!(set, hex("06 00 0a 00 01 03 05 03 53 45 54 01 6b 01 76"));
    let blob = made(|out| journal_blob(out, &set));
    assert_eq!(blob, hex("d2 01 0f 06 00 0a 00 01 03 05 03 53 45 54 01 6b 01 76"));
    let mset = made(|out| journal_command(out, 3, 70000, &["MSET", "a", "1", "b", ""]));
    assert_eq!(mset, hex("06 03 0a 80 00 01 11 70 01 05 07 04 4d 53 45 54 01 61 01 31 01 62 00"));
}

#[test]
fn canonical_numbers_only() {
    for text in ["", "-", "-0", "+1", "01", "1 ", " 1", "99999999999999999999", "1.0"] {
        assert_eq!(canonical_number(text.as_bytes()), None, "{text:?}");
    }
    assert_eq!(canonical_number(b"-2147483649"), Some(-2_147_483_649));
    assert_eq!(made(|out| string(out, b"-2147483649", false)).len(), 12);
    assert_eq!(made(|out| string(out, b"-2147483648", false)), hex("c2 00 00 00 80"));
    assert_eq!(made(|out| string(out, b"-129", false)), hex("c1 7f ff"));
}

/// Both frames must tell their content size, as the master's do.
#[test]
fn blobs_hold_their_content() {
    let content = b"some content, some content, some content".repeat(20);
    let unpacked = |codec| {
        let blob = made(|out| compressed_blob(out, codec, &content).unwrap());
        let length_bytes = if blob[1] >> 6 == 0 { 1 } else { 2 };
        blob[1 + length_bytes..].to_vec()
    };
    let frame = unpacked(BlobCodec::Zstd);
    assert_eq!(zstd::decode_all(&frame[..]).unwrap(), content);
    assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), Some(content.len() as u64));
    let frame = unpacked(BlobCodec::Lz4);
    assert_eq!(frame[6..14], (content.len() as u64).to_le_bytes());
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut lz4_flex::frame::FrameDecoder::new(&frame[..]), &mut plain).unwrap();
    assert_eq!(plain, content);
}

/// In every recording, every key that is no stray stands on its owner's flow; here the rule is tried on the truth.
#[test]
fn owners_agree_with_a_recording() {
    let recording = crate::lab::recordings::recording("snapshot-plain-untagged").unwrap();
    let flows = recording.flows.len();
    let keys: Vec<_> = recording.truth_map().unwrap().into_keys().filter(|(_, key)| key.len() > 11).collect();
    assert!(keys.len() > 50);
    for (_, key) in keys {
        let found =
            |flow: usize| memchr::memmem::find(&recording.flows[flow], &made(|o| raw_string(o, &key))).is_some();
        assert!(found(owner(&key, flows)), "{:?}", String::from_utf8_lossy(&key));
    }
}
