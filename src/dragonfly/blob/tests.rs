//! Frames of both codecs, good and hostile.

use super::*;
use std::io::Write as _;

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i / 97) as u8 & 15).collect()
}

fn lz4(plain: &[u8], size: Option<u64>, linked: bool) -> Vec<u8> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    let info = FrameInfo::new()
        .content_size(size)
        .block_size(BlockSize::Max64KB)
        .block_mode(if linked { BlockMode::Linked } else { BlockMode::Independent })
        .content_checksum(true);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap_or_else(|error| panic!("{error}"))
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(plain, 2).unwrap()
}

fn unpack(codec: Codec, frame: &[u8], piece: usize) -> Result<Vec<u8>, Reason> {
    let mut reader = BlobReader::with_limit(codec, Bytes::copy_from_slice(frame), 10 << 20)?;
    let (mut out, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            len => out.extend_from_slice(&buffer[..len]),
        }
    }
    assert_eq!(reader.plain_bytes(), out.len() as u64);
    assert_eq!(reader.read(&mut buffer), Ok(0));
    Ok(out)
}

#[test]
fn both_codecs_in_any_pieces() {
    for len in [0, 1, 300, 70_000, 400_000] {
        let plain = sample(len);
        for piece in [1000, 1 << 20] {
            for linked in [false, true] {
                assert_eq!(unpack(Codec::Lz4, &lz4(&plain, Some(len as u64), linked), piece).unwrap(), plain);
            }
            assert_eq!(unpack(Codec::Zstd, &zstd(&plain), piece).unwrap(), plain);
        }
    }
    assert_eq!(unpack(Codec::Zstd, &zstd(&sample(300)), 1).unwrap(), sample(300));
}

#[test]
fn frames_cut_anywhere_are_errors() {
    let plain = sample(3000);
    for (codec, frame) in [(Codec::Lz4, lz4(&plain, Some(3000), true)), (Codec::Zstd, zstd(&plain))] {
        for len in 0..frame.len() {
            assert!(unpack(codec, &frame[..len], 4096).is_err(), "{codec:?} cut at {len}");
        }
    }
}

#[test]
fn trailing_bytes_and_second_frames_are_errors() {
    let plain = sample(3000);
    for (codec, frame) in [(Codec::Lz4, lz4(&plain, Some(3000), false)), (Codec::Zstd, zstd(&plain))] {
        for tail in [&[0][..], &frame] {
            let error = unpack(codec, &[&frame[..], tail].concat(), 4096).unwrap_err();
            assert!(matches!(error, Reason::FrameTrailingBytes { .. } | Reason::FrameSizeMismatch { .. }), "{error}");
        }
    }
}

#[test]
fn a_content_size_is_needed_and_must_be_true() {
    assert_eq!(unpack(Codec::Lz4, &lz4(b"abc", None, false), 10), Err(Reason::FrameWithoutSize { codec: "LZ4" }));
    let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(b"abc").unwrap();
    let unsized_frame = encoder.finish().unwrap();
    assert_eq!(unpack(Codec::Zstd, &unsized_frame, 10), Err(Reason::FrameWithoutSize { codec: "zstd" }));
    // The encoder refuses to lie, so the header is changed and its checksum made anew by trying.
    let good = lz4(&sample(3000), Some(3000), false);
    for size in [2999u64, 3001, 100] {
        let mut frame = good.clone();
        frame[6..14].copy_from_slice(&size.to_le_bytes());
        let refused = (0..=255u8).all(|checksum| {
            frame[14] = checksum;
            unpack(Codec::Lz4, &frame, 4096).is_err()
        });
        assert!(refused, "{size}");
    }
}

#[test]
fn bombs_are_refused_by_their_header() {
    let bomb = zstd(&vec![0; 11 << 20]);
    assert!(bomb.len() < 2000);
    let refused = Err(Reason::FrameTooLarge { codec: "zstd", announced: 11 << 20, limit: 10 << 20 });
    assert_eq!(unpack(Codec::Zstd, &bomb, 4096), refused);
    let mut frame = lz4(&sample(100), Some(100), false);
    frame[6..14].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(unpack(Codec::Lz4, &frame, 4096), Err(Reason::FrameTooLarge { .. })));
}

#[test]
fn dictionaries_and_foreign_frames_are_refused() {
    let mut frame = lz4(&sample(100), Some(100), false);
    frame[4] |= LZ4_HAS_DICTIONARY;
    assert!(matches!(unpack(Codec::Lz4, &frame, 4096), Err(Reason::FrameWithDictionary { .. })));
    // Single segment, one-byte dictionary id 7, one-byte content size.
    let frame = [&ZSTD_MAGIC[..], &[0x21, 7, 3, 0x19, 0, 0, b'a', b'b', b'c']].concat();
    assert_eq!(unpack(Codec::Zstd, &frame, 10), Err(Reason::FrameWithDictionary { codec: "zstd", id: 7 }));
    for codec in [Codec::Lz4, Codec::Zstd] {
        for foreign in
            [&b""[..], b"abc", b"REDIS0009", &[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0], &[2, 0x21, 0x4c, 0x18, 0, 0]]
        {
            assert!(matches!(unpack(codec, foreign, 10), Err(Reason::BadFrame { .. })));
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    let plain = sample(3000);
    for (codec, frame) in [(Codec::Lz4, lz4(&plain, Some(3000), true)), (Codec::Zstd, zstd(&plain))] {
        for at in 0..frame.len() {
            for flip in [1, 0x80, 0xff] {
                let mut frame = frame.clone();
                frame[at] ^= flip;
                if let Ok(found) = unpack(codec, &frame, 700) {
                    assert!(found.len() <= 10 << 20);
                }
            }
        }
    }
}
