//! The slab's bookkeeping, by example and against a model.

use super::*;
use proptest::prelude::*;

fn layout() -> SlabLayout {
    SlabLayout { rx_chunk_bytes: 8192, rx_chunks: 4, tx_chunk_bytes: 4096, tx_chunks: 3 }
}

#[test]
fn fills_from_the_start_and_comes_back_last_in_first_out() {
    let mut slab = Slab::unregistered(layout()).unwrap();
    let first = slab.take(Class::Tx).unwrap();
    assert_eq!(slab.append(first, b"hello"), 5);
    slab.spare(first)[..6].copy_from_slice(b" world");
    slab.advance(first, 6);
    assert_eq!(slab.filled(first), b"hello world");
    assert_eq!(slab.room(first), 4096 - 11);
    assert_eq!(slab.append(first, &[1; 5000]), 4085);
    assert_eq!(slab.append(first, &[1]), 0);
    slab.release(first);
    assert_eq!(slab.take(Class::Tx), Some(first));
    assert_eq!(slab.filled(first), b"");
}

#[test]
fn a_record_head_moves_to_the_next_chunk() {
    let mut slab = Slab::unregistered(layout()).unwrap();
    let (from, to) = (slab.take(Class::Rx).unwrap(), slab.take(Class::Rx).unwrap());
    slab.append(from, b"whole|head");
    slab.append(to, b">");
    slab.copy_between(from, 6, 4, to);
    assert_eq!(slab.filled(to), b">head");
    let tail = slab.filled(to)[1..].as_ptr();
    assert_eq!(slab.chunk_of(&slab.filled(to)[1..]), Some((to, 1)));
    assert_eq!(slab.view(to).offset_of(&slab.filled(to)[1..3]), Some(1));
    assert_eq!(slab.view(from).offset_of(&slab.filled(to)[1..3]), None);
    assert!(!tail.is_null());
    assert_eq!(slab.chunk_of(b"elsewhere"), None);
    let tx = slab.take(Class::Tx).unwrap();
    slab.append(tx, b"abc");
    assert_eq!(slab.chunk_of(&slab.filled(tx)[2..]), Some((tx, 2)));
}

#[test]
fn a_view_keeps_a_released_chunk_from_reuse() {
    let mut slab = Slab::unregistered(layout()).unwrap();
    let id = slab.take(Class::Rx).unwrap();
    slab.append(id, b"seen");
    let view = slab.view(id);
    let second = view.clone();
    slab.append(id, b" later");
    slab.release(id);
    assert_eq!(slab.free_count(Class::Rx), 3);
    drop(view);
    while slab.take(Class::Rx).is_some() {}
    assert_eq!(&second[..], b"seen");
    drop(slab);
    assert_eq!(&second[..], b"seen");
}

#[test]
fn residence_is_reported_with_the_last_hold() {
    let mut slab = Slab::unregistered(layout()).unwrap();
    let id = slab.take(Class::Rx).unwrap();
    slab.set_filled_at_ns(id, 17);
    slab.hold(id);
    slab.release(id);
    let mut seen = Vec::new();
    slab.drain_freed(|ns| seen.push(ns));
    assert!(seen.is_empty());
    slab.release(id);
    slab.drain_freed(|ns| seen.push(ns));
    assert_eq!(seen, [17]);
}

#[test]
#[should_panic(expected = "release of chunk")]
fn one_release_too_many_is_noticed() {
    let mut slab = Slab::unregistered(layout()).unwrap();
    let id = slab.take(Class::Rx).unwrap();
    slab.release(id);
    slab.release(id);
}

#[test]
fn impossible_layouts_are_refused() {
    for (bad, word) in [
        (SlabLayout { rx_chunk_bytes: 5000, ..layout() }, "multiple"),
        (SlabLayout { rx_chunks: 0, tx_chunks: 0, ..layout() }, "no chunks"),
        (SlabLayout { rx_chunks: usize::MAX, ..layout() }, "more than"),
        (SlabLayout { rx_chunk_bytes: 1 << 20, rx_chunks: 1024, ..layout() }, "more than"),
    ] {
        let error = Slab::unregistered(bad).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Take(bool),
    Hold(usize),
    Release(usize),
    Append(usize, Vec<u8>),
    View(usize),
    Unview(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        any::<bool>().prop_map(Step::Take),
        any::<usize>().prop_map(Step::Hold),
        any::<usize>().prop_map(Step::Release),
        (any::<usize>(), proptest::collection::vec(any::<u8>(), 0..3000)).prop_map(|(i, b)| Step::Append(i, b)),
        any::<usize>().prop_map(Step::View),
        any::<usize>().prop_map(Step::Unview),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against a model that keeps copies: contents, counts and reuse agree after every step.
    #[test]
    fn accounting_agrees_with_a_model(steps in steps()) {
        let mut slab = Slab::unregistered(layout()).unwrap();
        let mut held: Vec<(ChunkId, u32, Vec<u8>)> = Vec::new();
        let mut views: Vec<(ChunkView, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Take(rx) => {
                    let class = if rx { Class::Rx } else { Class::Tx };
                    let free = slab.free_count(class);
                    let taken = slab.take(class);
                    prop_assert_eq!(taken.is_some(), free > 0);
                    if let Some(id) = taken {
                        prop_assert!(held.iter().all(|(other, ..)| *other != id));
                        prop_assert!(views.iter().all(|(view, _)| view.chunk() != id));
                        held.push((id, 1, Vec::new()));
                    }
                }
                Step::Hold(i) if !held.is_empty() => {
                    let i = i % held.len();
                    slab.hold(held[i].0);
                    held[i].1 += 1;
                }
                Step::Release(i) if !held.is_empty() => {
                    let i = i % held.len();
                    slab.release(held[i].0);
                    held[i].1 -= 1;
                    if held[i].1 == 0 {
                        held.swap_remove(i);
                    }
                }
                Step::Append(i, bytes) if !held.is_empty() => {
                    let i = i % held.len();
                    let room = slab.room(held[i].0);
                    let n = slab.append(held[i].0, &bytes);
                    prop_assert_eq!(n, room.min(bytes.len()));
                    held[i].2.extend_from_slice(&bytes[..n]);
                }
                Step::View(i) if !held.is_empty() => {
                    let (id, _, bytes) = &held[i % held.len()];
                    views.push((slab.view(*id), bytes.clone()));
                }
                Step::Unview(i) if !views.is_empty() => {
                    let i = i % views.len();
                    views.swap_remove(i);
                }
                _ => {}
            }
            for (id, holds, bytes) in &held {
                prop_assert_eq!(slab.filled(*id), &bytes[..]);
                prop_assert_eq!(slab.holds(*id), *holds);
            }
            for (view, bytes) in &views {
                prop_assert_eq!(&view[..], &bytes[..]);
            }
            let mut used: Vec<u32> = held.iter().map(|h| h.0.index()).chain(views.iter().map(|v| v.0.chunk().index())).collect();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(slab.free_count(Class::Rx) + slab.free_count(Class::Tx), 7 - used.len());
        }
    }
}
