//! RESTORE records: payloads are read as values, or handed on with a fresh footer.

use super::super::*;
use super::support::*;

/// A payload around a value, as a server would DUMP it.
fn payload(type_byte: u8, body: &[u8], version: u16) -> Vec<u8> {
    let mut payload = [&[type_byte], body, &version.to_le_bytes()].concat();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Redis, &payload);
    payload.extend_from_slice(&crc.to_le_bytes());
    payload
}

fn restore(target: &str, ttl: &str, payload: &[u8], options: &str) -> String {
    let mut args: Vec<&[u8]> = vec![b"RESTORE", b"k", ttl.as_bytes(), payload];
    if !options.is_empty() {
        args.extend(split(options));
    }
    let (result, sent) = run(&mut translator(target, skip_all()), 0, &args);
    match result {
        Ok(_) => sent.lines().join(" | "),
        Err(error) => format!("<error: {}>", error.reason),
    }
}

#[test]
fn payloads_are_handed_on_as_values() {
    let string = payload(0, b"\x01v", 9);
    assert_eq!(restore("7.0", "0", &string, ""), "B WHOLE String k None \\x01v");
    assert_eq!(restore("7.0", "5", &string, "REPLACE STICK"), "B WHOLE String k Some(1800000000005) \\x01v");
    assert_eq!(restore("7.0", "5", &string, "absttl idletime 3"), "B WHOLE String k Some(5) \\x01v");
    assert_eq!(restore("7.0", "0", &payload(30, b"\x021}", 9), "ABSTTL"), "B WHOLE Json k None \\x021}");
    assert_eq!(restore("7.0", "0", &payload(20, b"\x021}", 9), "ABSTTL"), "B WHOLE JsonOld k None \\x021}");
    assert_eq!(restore("7.0", "0", &payload(33, b"\x00", 9), ""), "");
    let module = |version| {
        let id = payload::module_id(b"ReJSON-RL", version).to_be_bytes();
        payload(7, &[b"\x81".as_slice(), &id, b"\x05\x021}\x00"].concat(), 9)
    };
    assert_eq!(restore("7.0", "0", &module(3), ""), "B WHOLE Json k None \\x021}");
    assert!(restore("7.0", "0", &module(4), "").contains("other than ReJSON-RL"));
    let error = restore("7.0", "0", &string[..string.len() - 1], "");
    assert_eq!(error, "<error: its payload is damaged: its CRC-64 is wrong>");
    assert_eq!(restore("7.0", "0", b"", ""), "<error: its payload is damaged: shorter than a type byte and a footer>");
    assert!(restore("7.0", "0", &payload(9, b"\x01v", 9), "").contains("no Dragonfly loads"));
    assert!(restore("7.0", "0", &string, "NOSUCH").contains("not known here"));
}

#[test]
fn payloads_of_newer_redis_get_a_fresh_footer() {
    let set = payload(20, b"\x09\x09\x00\x00\x00\x01\x00\x01\x01\xff", 11);
    for target in ["8.0", "v8.1"] {
        let args: [&[u8]; 4] = [b"RESTORE", b"k", b"0", &set];
        let (_, sent) = run(&mut translator(target, Policy::default()), 0, &args);
        let strings = strings(&sent.commands[0].1);
        assert_eq!(strings[2], b"0");
        assert_eq!(strings[3], payload(20, &set[1..set.len() - 10], 9));
        assert_eq!(strings[4..], [b"REPLACE".to_vec(), b"ABSTTL".to_vec()]);
    }
    assert_eq!(restore("7.0", "0", &set, ""), "");
}
