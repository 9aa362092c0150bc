//! Bodies of the probabilistic types (wire 3.7): plausible heads, arbitrary bits. No target can hold them.

use super::entry::Entry;
use crate::lab::encode::{double, packed, raw_string, string, types};

/// Appends the whole body of a filter whose bits are about `elements * element_bytes` long.
pub fn write(object_type: u8, entry: &Entry, out: &mut Vec<u8>) {
    let bytes = (entry.group.elements * entry.group.element_bytes).max(8).next_power_of_two();
    let bits = entry.block(bytes);
    match object_type {
        types::BLOOM | types::BLOOM_PIECES => {
            packed(out, 0);
            double(out, 2.0);
            double(out, 0.01);
            [0, entry.group.elements, bytes * 8].iter().for_each(|n| packed(out, *n));
            packed(out, 2);
            for _ in 0..2 {
                packed(out, 7);
                if object_type == types::BLOOM {
                    raw_string(out, &bits);
                } else {
                    packed(out, bits.len() as u64);
                    bits.chunks(1000).for_each(|piece| raw_string(out, piece));
                }
            }
        }
        types::COUNT_MIN_SKETCH => {
            [entry.group.elements, entry.group.element_bytes, 1].iter().for_each(|n| packed(out, *n));
            (0..entry.group.elements * entry.group.element_bytes)
                .for_each(|i| out.extend_from_slice(&(i as i64 - 3).to_le_bytes()));
        }
        types::TOP_K => {
            let (k, width, depth) = (entry.group.elements, 8, 7);
            [0, k, width, depth].iter().for_each(|n| packed(out, *n));
            double(out, 0.9);
            packed(out, k);
            let mut item = Vec::new();
            for j in 0..k {
                item.clear();
                entry.element(j, &mut item);
                string(out, &item, false);
                packed(out, j * 100);
            }
            raw_string(out, &vec![1; (width * depth * 4) as usize]);
        }
        _ => {
            [2, 20, 1, 1024, entry.group.elements, 0, 1].iter().for_each(|n| packed(out, *n));
            packed(out, bits.len() as u64);
            bits.chunks(1000).for_each(|piece| raw_string(out, piece));
        }
    }
}
