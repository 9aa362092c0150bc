//! Unpacks the compressed blobs of the full sync (wire 2.5): one zstd or LZ4 frame each.
//!
//! In: one whole frame, hostile. Out: its plain bytes, in pieces as large as the caller's buffer, so that a blob never has
//! to be in memory whole. The frame must name its content size; more than that, or more than the cap, is refused before it
//! is unpacked, and the end is only reported when exactly that much has come and the frame ends with the blob.
//! Dictionaries, skippable and legacy frames are refused.

use super::error::Reason;
use super::event::Codec;
use bytes::Bytes;
use std::io::Read as _;
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation as _};

/// Default cap on the plain size of one blob. A master packs at most 1 MiB, or one split object's chunk.
pub const PLAIN_BYTES_MAX: u64 = 256 << 20;
/// Largest back-reference window of a zstd frame that is accepted (and so its memory): 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Bits of the byte after the LZ4 magic number.
const LZ4_HAS_CONTENT_SIZE: u8 = 0x08;
const LZ4_HAS_DICTIONARY: u8 = 0x01;

impl Codec {
    fn name(self) -> &'static str {
        match self {
            Codec::Zstd => "zstd",
            Codec::Lz4 => "LZ4",
        }
    }
}

/// Reads the plain bytes of one compressed blob.
pub struct BlobReader {
    codec: Codec,
    unpacker: Unpacker,
    /// What the frame's header says.
    plain_bytes: u64,
    /// What has come so far; `given <= plain_bytes`.
    given: u64,
    ended: bool,
}

enum Unpacker {
    Lz4(Box<lz4_flex::frame::FrameDecoder<Input>>),
    Zstd { decoder: ZstdDecoder<'static>, input: Input, frame_ended: bool },
}

/// The frame and how much of it was read.
struct Input {
    frame: Bytes,
    at: usize,
    /// Bytes were wanted after the last one. The LZ4 decoder takes a missing end mark for an end; this tells them apart.
    starved: bool,
}

impl Input {
    fn left(&self) -> &[u8] {
        self.frame.get(self.at..).unwrap_or_default()
    }
}

impl std::io::Read for Input {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.left().read(out)?;
        self.at += read;
        self.starved |= read < out.len();
        Ok(read)
    }
}

impl BlobReader {
    /// Looks at the frame's header; at most [`PLAIN_BYTES_MAX`] bytes will be unpacked.
    pub fn new(codec: Codec, frame: Bytes) -> Result<Self, Reason> {
        Self::with_limit(codec, frame, PLAIN_BYTES_MAX)
    }

    /// As `new`, with a cap of the caller's.
    pub fn with_limit(codec: Codec, frame: Bytes, plain_bytes_max: u64) -> Result<Self, Reason> {
        let name = codec.name();
        let plain_bytes = match codec {
            Codec::Lz4 => lz4_plain_bytes(&frame)?,
            Codec::Zstd => zstd_plain_bytes(&frame)?,
        };
        if plain_bytes > plain_bytes_max {
            return Err(Reason::FrameTooLarge { codec: name, announced: plain_bytes, limit: plain_bytes_max });
        }
        let input = Input { frame, at: 0, starved: false };
        let unpacker = match codec {
            Codec::Lz4 => Unpacker::Lz4(Box::new(lz4_flex::frame::FrameDecoder::new(input))),
            Codec::Zstd => {
                let mut decoder = ZstdDecoder::new().map_err(|error| bad_frame(codec, &error))?;
                let window = zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX);
                decoder.set_parameter(window).map_err(|error| bad_frame(codec, &error))?;
                Unpacker::Zstd { decoder, input, frame_ended: false }
            }
        };
        Ok(Self { codec, unpacker, plain_bytes, given: 0, ended: false })
    }

    /// Plain size of the blob, as its header says.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Plain bytes that are still to come.
    pub fn plain_bytes_left(&self) -> u64 {
        self.plain_bytes - self.given
    }

    /// Fills the front of `out` with the next plain bytes and returns how many; 0 means that the blob has ended as it
    /// should (or that `out` is empty).
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Reason> {
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        let left = self.plain_bytes_left();
        if left == 0 {
            self.end()?;
            return Ok(0);
        }
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let read = self.unpack(out.get_mut(..wanted).unwrap_or_default())?;
        self.given += read as u64;
        match read {
            0 => Err(self.size_mismatch(0)),
            read => Ok(read),
        }
    }

    /// All announced bytes have come: nothing more may follow, neither plain nor packed.
    fn end(&mut self) -> Result<(), Reason> {
        let beyond = self.unpack(&mut [0; 1])?;
        if beyond > 0 {
            return Err(self.size_mismatch(1));
        }
        let left_over = match &self.unpacker {
            Unpacker::Lz4(decoder) => decoder.get_ref().left().len(),
            Unpacker::Zstd { input, .. } => input.left().len(),
        };
        if left_over > 0 {
            return Err(Reason::FrameTrailingBytes { codec: self.codec.name(), left_over });
        }
        self.ended = true;
        Ok(())
    }

    /// The next plain bytes; 0 at the end of the frame.
    fn unpack(&mut self, out: &mut [u8]) -> Result<usize, Reason> {
        let codec = self.codec;
        match &mut self.unpacker {
            Unpacker::Lz4(decoder) => {
                let read = decoder.read(out).map_err(|error| bad_frame(codec, &error))?;
                match read == 0 && decoder.get_ref().starved {
                    true => Err(incomplete(codec)),
                    false => Ok(read),
                }
            }
            Unpacker::Zstd { frame_ended: true, .. } => Ok(0),
            Unpacker::Zstd { decoder, input, frame_ended } => loop {
                let step = decoder.run_on_buffers(input.left(), out).map_err(|error| bad_frame(codec, &error))?;
                input.at += step.bytes_read;
                *frame_ended = step.remaining == 0;
                if step.bytes_written > 0 || *frame_ended {
                    return Ok(step.bytes_written);
                }
                if step.bytes_read == 0 {
                    return Err(incomplete(codec));
                }
            },
        }
    }

    fn size_mismatch(&self, beyond: u64) -> Reason {
        Reason::FrameSizeMismatch { codec: self.codec.name(), announced: self.plain_bytes, found: self.given + beyond }
    }
}

#[cold]
fn bad_frame(codec: Codec, error: &std::io::Error) -> Reason {
    Reason::BadFrame { codec: codec.name(), cause: error.to_string() }
}

#[cold]
fn incomplete(codec: Codec) -> Reason {
    Reason::BadFrame { codec: codec.name(), cause: "the frame is incomplete".into() }
}

fn check_magic(codec: Codec, frame: &[u8], magic: [u8; 4]) -> Result<&[u8], Reason> {
    frame.strip_prefix(&magic).ok_or_else(|| Reason::BadFrame {
        codec: codec.name(),
        cause: "it does not begin with the codec's magic number".into(),
    })
}

/// Content size out of an LZ4 frame's header: magic, flags, block descriptor, u64le content size.
fn lz4_plain_bytes(frame: &[u8]) -> Result<u64, Reason> {
    let codec = Codec::Lz4.name();
    let header = check_magic(Codec::Lz4, frame, LZ4_MAGIC)?;
    let short = || Reason::BadFrame { codec, cause: "its header is incomplete".into() };
    let [flags, _block_descriptor] = *header.first_chunk().ok_or_else(short)?;
    if flags & LZ4_HAS_CONTENT_SIZE == 0 {
        return Err(Reason::FrameWithoutSize { codec });
    }
    let after = header.get(2..).unwrap_or_default();
    let size = u64::from_le_bytes(*after.first_chunk().ok_or_else(short)?);
    if flags & LZ4_HAS_DICTIONARY != 0 {
        let id = after.get(8..).and_then(|id| id.first_chunk()).ok_or_else(short)?;
        return Err(Reason::FrameWithDictionary { codec, id: u32::from_le_bytes(*id) });
    }
    Ok(size)
}

/// Content size out of a zstd frame's header.
fn zstd_plain_bytes(frame: &[u8]) -> Result<u64, Reason> {
    let codec = Codec::Zstd.name();
    check_magic(Codec::Zstd, frame, ZSTD_MAGIC)?;
    if let Some(id) = zstd::zstd_safe::get_dict_id_from_frame(frame) {
        return Err(Reason::FrameWithDictionary { codec, id: id.get() });
    }
    match zstd::zstd_safe::get_frame_content_size(frame) {
        Ok(Some(size)) => Ok(size),
        Ok(None) => Err(Reason::FrameWithoutSize { codec }),
        Err(_) => Err(Reason::BadFrame { codec, cause: "its header is incomplete".into() }),
    }
}

#[cfg(test)]
mod tests;
