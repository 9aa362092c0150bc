//! The opaque containers of wire 3.3: listpack, ziplist, intset.

use super::canonical_number;

/// Container numbers of a list node (wire 3.4).
pub const PLAIN_NODE: u64 = 1;
pub const PACKED_NODE: u64 = 2;

/// A listpack being built.
#[derive(Clone, Debug, Default)]
pub struct Listpack {
    body: Vec<u8>,
    count: usize,
}

impl Listpack {
    /// Appends an element: as an integer where its text is a canonical number of 64 bits.
    pub fn push(&mut self, text: &[u8]) {
        match canonical_number(text) {
            Some(number) => self.push_number(number),
            None => self.push_text(text),
        }
    }

    /// Appends a number in its shortest form.
    pub fn push_number(&mut self, number: i64) {
        let begun = self.body.len();
        match number {
            0..=127 => self.body.push(number as u8),
            -4096..=4095 => {
                let bits = (number & 0x1fff) as u16;
                self.body.extend_from_slice(&[0xc0 | (bits >> 8) as u8, bits as u8]);
            }
            -32_768..=32_767 => self.fixed(0xf1, number, 2),
            -8_388_608..=8_388_607 => self.fixed(0xf2, number, 3),
            -2_147_483_648..=2_147_483_647 => self.fixed(0xf3, number, 4),
            _ => self.fixed(0xf4, number, 8),
        }
        self.end_element(begun);
    }

    /// Appends a string, whatever it looks like.
    pub fn push_text(&mut self, text: &[u8]) {
        let begun = self.body.len();
        match text.len() {
            len @ 0..=63 => self.body.push(0x80 | len as u8),
            len @ 64..=4095 => self.body.extend_from_slice(&[0xe0 | (len >> 8) as u8, len as u8]),
            len => {
                self.body.push(0xf0);
                self.body.extend_from_slice(&(len as u32).to_le_bytes());
            }
        }
        self.body.extend_from_slice(text);
        self.end_element(begun);
    }

    /// Bytes so far, without the frame.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// Elements so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The finished listpack.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 7);
        out.extend_from_slice(&(self.body.len() as u32 + 7).to_le_bytes());
        out.extend_from_slice(&(self.count.min(65_535) as u16).to_le_bytes());
        out.extend_from_slice(&self.body);
        out.push(0xff);
        out
    }

    fn fixed(&mut self, mark: u8, number: i64, width: usize) {
        self.body.push(mark);
        self.body.extend_from_slice(&number.to_le_bytes()[..width]);
    }

    /// Back length: the size of encoding and data in groups of 7 bits, big endian, all but the first byte marked.
    fn end_element(&mut self, begun: usize) {
        let size = self.body.len() - begun;
        let groups = match size {
            0..=127 => 1,
            128..16_383 => 2,
            16_383..2_097_151 => 3,
            2_097_151..268_435_455 => 4,
            _ => 5,
        };
        for group in (0..groups).rev() {
            let mark = if group == groups - 1 { 0 } else { 0x80 };
            self.body.push(mark | (size >> (7 * group)) as u8 & 0x7f);
        }
        self.count += 1;
    }
}

/// A ziplist being built: the container of masters up to 1.30.
#[derive(Clone, Debug, Default)]
pub struct Ziplist {
    body: Vec<u8>,
    count: usize,
    last_entry_bytes: usize,
}

impl Ziplist {
    /// Appends an element: as an integer where its text is a canonical number of 64 bits.
    pub fn push(&mut self, text: &[u8]) {
        let begun = self.body.len();
        match self.last_entry_bytes {
            len @ 0..=253 => self.body.push(len as u8),
            len => {
                self.body.push(0xfe);
                self.body.extend_from_slice(&(len as u32).to_le_bytes());
            }
        }
        match canonical_number(text) {
            Some(number) => self.number(number),
            None => self.text(text),
        }
        self.last_entry_bytes = self.body.len() - begun;
        self.count += 1;
    }

    /// The finished ziplist.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 11);
        out.extend_from_slice(&(self.body.len() as u32 + 11).to_le_bytes());
        out.extend_from_slice(&((10 + self.body.len() - self.last_entry_bytes) as u32).to_le_bytes());
        out.extend_from_slice(&(self.count.min(65_535) as u16).to_le_bytes());
        out.extend_from_slice(&self.body);
        out.push(0xff);
        out
    }

    fn number(&mut self, number: i64) {
        let (mark, width) = match number {
            0..=12 => return self.body.push(0xf1 + number as u8),
            -128..=127 => (0xfe, 1),
            -32_768..=32_767 => (0xc0, 2),
            -8_388_608..=8_388_607 => (0xf0, 3),
            -2_147_483_648..=2_147_483_647 => (0xd0, 4),
            _ => (0xe0, 8),
        };
        self.body.push(mark);
        self.body.extend_from_slice(&number.to_le_bytes()[..width]);
    }

    fn text(&mut self, text: &[u8]) {
        match text.len() {
            len @ 0..=63 => self.body.push(len as u8),
            len @ 64..=16_383 => self.body.extend_from_slice(&[0x40 | (len >> 8) as u8, len as u8]),
            len => {
                self.body.push(0x80);
                self.body.extend_from_slice(&(len as u32).to_be_bytes());
            }
        }
        self.body.extend_from_slice(text);
    }
}

/// An intset of ascending, distinct `numbers`.
pub fn intset(numbers: &[i64]) -> Vec<u8> {
    let fits = |max: i64| numbers.iter().all(|n| (-max - 1..=max).contains(n));
    let width = if fits(i64::from(i16::MAX)) {
        2
    } else if fits(i64::from(i32::MAX)) {
        4
    } else {
        8
    };
    let mut out = Vec::with_capacity(8 + numbers.len() * width);
    out.extend_from_slice(&(width as u32).to_le_bytes());
    out.extend_from_slice(&(numbers.len() as u32).to_le_bytes());
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()[..width]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::client::{Client, Reply};
    use crate::lab::encode::{dump_payload, packed, raw_string, types};
    use crate::lab::servers::{Server, ServerOptions, find_any_server};

    fn samples() -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> =
            ["", "a", "007", "-1", "0", "12", "13", "127", "128", "4095", "4096", "-4096", "-4097"]
                .iter()
                .map(|text| text.as_bytes().to_vec())
                .collect();
        all.extend([i64::MIN, i64::MAX, 32_768, -8_388_609, 8_388_607, 1 << 31].map(|n| n.to_string().into_bytes()));
        all.extend([63, 64, 125, 126, 250, 4095, 4096, 16_376, 16_384, 70_000].map(|len| vec![b'z'; len]));
        all
    }

    fn restored(client: &mut Client, object_type: u8, body: &[u8], read: &[&str]) -> Vec<Vec<u8>> {
        let payload = dump_payload(object_type, body, 9);
        let reply = client.ask(&[b"RESTORE".as_slice(), b"k", b"0", &payload, b"REPLACE"]).unwrap();
        assert_eq!(reply, Reply::Status("OK".into()), "type {object_type}");
        let reply = client.ask(read).unwrap();
        reply.array().unwrap().iter().map(|element| element.bytes().unwrap().to_vec()).collect()
    }

    /// A real server, which checks payloads deeply, is the judge of the containers.
    #[test]
    fn a_real_server_reads_the_containers() {
        let Ok(binary) = find_any_server() else { return };
        let server = Server::start(&binary, ServerOptions::default().config("sanitize-dump-payload", "yes")).unwrap();
        let mut client = server.client().unwrap();
        let (mut listpack, mut ziplist) = (Listpack::default(), Ziplist::default());
        for text in samples() {
            listpack.push(&text);
            ziplist.push(&text);
        }
        let mut body = Vec::new();
        packed(&mut body, 1);
        packed(&mut body, PACKED_NODE);
        raw_string(&mut body, &listpack.finish());
        assert_eq!(restored(&mut client, types::LIST_NODES, &body, &["LRANGE", "k", "0", "-1"]), samples());
        body.clear();
        packed(&mut body, 1);
        raw_string(&mut body, &ziplist.finish());
        assert_eq!(restored(&mut client, types::LIST_ZIPLISTS, &body, &["LRANGE", "k", "0", "-1"]), samples());
        for max in [100i64, 40_000, 1 << 40] {
            body.clear();
            raw_string(&mut body, &intset(&[-max, 0, 5, max]));
            let mut members = restored(&mut client, types::SET_INTSET, &body, &["SMEMBERS", "k"]);
            members.sort();
            let mut wanted = [-max, 0, 5, max].map(|n| n.to_string().into_bytes());
            wanted.sort();
            assert_eq!(members, wanted);
        }
    }
}
