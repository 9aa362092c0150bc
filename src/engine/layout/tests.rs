//! The order of a batch, of random commands in a few slots, some of them long: against the plain rule.

use super::*;
use crate::engine::units::units_of;
use crate::redis::resp;
use crate::redis::slot::slot;
use crate::uring::SlabLayout;
use proptest::prelude::*;
use std::collections::HashMap;

/// Flow, key, whether it must not be applied twice, length of the value.
type Made = (u32, u8, bool, usize);

/// What a flow does in a slot.
#[derive(Default)]
struct Wanted {
    commands: Vec<Vec<u8>>,
    guarded: bool,
    last_lsn: usize,
}

fn key(flow: u32, number: u8) -> Vec<u8> {
    format!("{flow}:{{{}}}:{number}", number % 4).into_bytes()
}

/// Lays the commands out, the `n`-th with the LSN `n + 1`.
fn laid_out(made: &[Made], slab: &mut Slab) -> Encoder {
    let marks = Marks::new("j".into(), "s".into(), String::new());
    let (mut encoder, mut pieces) = (Encoder::new(), Pieces::default());
    pieces.begin_list();
    for (n, (flow, number, guarded, len)) in made.iter().enumerate() {
        let key = key(*flow, *number);
        let value = Bytes::from(vec![b'a' + (n % 26) as u8; *len]);
        let head = resp::command(&[b"APPEND", &key, &value]);
        // The value apart, as those are that are borrowed.
        encoder.copy(slab, &head[..head.len() - len - 2]);
        encoder.put_owned(slab, 3000, value);
        encoder.copy(slab, b"\r\n");
        encoder.batch.commands += 1;
        let place = Some((FlowId(*flow), slot(&key)));
        pieces.push(&encoder, place, Some(Lsn(n as u64 + 1)), *guarded);
        if n % 3 == 0 {
            pieces.watch(FlowId(*flow), DbIndex(0), n as i64);
        }
    }
    pieces.lay_out(&mut encoder, slab, &marks);
    assert!(pieces.pieces.is_empty() && !pieces.is_guarded() && pieces.is_list());
    encoder.tail.flush_heap(&mut encoder.batch);
    encoder
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn order_is_kept_and_transactions_are_whole(
        made in proptest::collection::vec((0u32..3, 0u8..12, proptest::bool::weighted(0.2), 0usize..5000), 1..60),
    ) {
        let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 24 };
        let mut slab = Slab::unregistered(layout).unwrap();
        let mut encoder = laid_out(&made, &mut slab);
        let mut batch = encoder.take_batch(&mut slab, Vec::new());
        prop_assert_eq!(batch.bytes, batch.slices(&slab).map(<[u8]>::len).sum::<usize>());
        let units = units_of(&batch, &slab).unwrap();
        prop_assert_eq!(units.iter().map(|(_, unit)| unit.replies).sum::<u32>(), batch.commands);
        let execs = units.iter().filter(|(_, unit)| unit.replies > 1).map(|(range, _)| (range.end - 1, range.start + 1));
        prop_assert_eq!(&batch.groups, &execs.collect::<Vec<_>>());
        // What each flow does in each slot, and whether some of it is guarded.
        let mut wanted: HashMap<(u32, Slot), Wanted> = HashMap::new();
        for (n, (flow, number, guarded, len)) in made.iter().enumerate() {
            let key = key(*flow, *number);
            let of = wanted.entry((*flow, slot(&key))).or_default();
            of.commands.push(resp::command(&[b"APPEND", &key, &vec![b'a' + (n % 26) as u8; *len]]));
            of.guarded |= *guarded;
            of.last_lsn = n + 1;
        }
        prop_assert_eq!(batch.is_fenced(), wanted.values().any(|of| of.guarded));
        let mut found: HashMap<(u32, Slot), Vec<Vec<u8>>> = HashMap::new();
        for (_, unit) in &units {
            let place = (u32::from(unit.key[0] - b'0'), unit.slot.unwrap());
            let Wanted { commands, guarded, last_lsn } = &wanted[&place];
            prop_assert_eq!(unit.marker.is_some(), *guarded);
            if *guarded {
                let (marker, value) = (marker_key("", FlowId(place.0), place.1), format!("j:{last_lsn}").into_bytes());
                let mut whole = resp::command(&[b"MULTI"]);
                commands.iter().for_each(|command| whole.extend_from_slice(command));
                push_command(&mut whole, &[b"SET", &marker, &value]);
                push_command(&mut whole, &[b"EXEC"]);
                prop_assert_eq!(&unit.bytes, &whole);
                prop_assert!(found.insert(place, commands.clone()).is_none(), "two transactions");
            } else {
                found.entry(place).or_default().push(unit.bytes.clone());
            }
        }
        // Each one that is watched is found by the reply that has its answer.
        let mut at = 0;
        let mut watched = Vec::new();
        for (_, unit) in &units {
            for of in &unit.watched {
                let (flow, number, ..) = made[of.watched.lost_if as usize];
                prop_assert_eq!(of.key.as_ref(), Some(&key(flow, number)));
                watched.push(of.watched.lost_if);
                let element = (unit.replies > 1).then(|| u64::from(of.place) - 1);
                batch.replied = at + unit.replies.saturating_sub(1);
                prop_assert_eq!(batch.watched_at(element).map(|found| found.lost_if), Some(of.watched.lost_if));
            }
            at += unit.replies;
        }
        watched.sort_unstable();
        prop_assert!(watched.into_iter().eq((0..made.len() as i64).step_by(3)));
        let wanted: HashMap<_, _> = wanted.into_iter().map(|(place, of)| (place, of.commands)).collect();
        prop_assert_eq!(found, wanted);
        // Every hold is given back.
        batch.release(&mut slab);
        encoder.tail.finish(&mut encoder.batch, &mut slab);
        prop_assert_eq!(slab.free_count(crate::uring::Class::Tx), 24);
    }
}
