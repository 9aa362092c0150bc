//! Records that read several keys and write one: those of other slots are brought home.
//!
//! In: a record, the places of its keys. Out: one MULTI in the slot of the key that is written: each key of another slot
//! restored under a name of the tool's own, the command itself with those names, the names deleted, the marker. So the
//! command is executed by a server, on what it would have read, and its result is exact to the last digit, whatever its options are.
//!
//! Invariants: a key that is not there is not there under its new name either; a SORT or GEORADIUS of it is not executed, for at the
//! source it stores nothing, not even an empty result (see `journal::old`). The copies have no expiry and live inside of
//! the MULTI only, but for those that are too long for it, which stand there before it ([`COPIES_BYTES_MAX`], `paged`).
//! Behind it the record is noted in the slots that were read, whose keys may change from then on.

use super::{Brought, Slots, lost, slots_besides};
use crate::convert::journal::stores_only_what_is_there;
use crate::engine::cluster::Cluster;
use crate::engine::error::EngineError;
use crate::engine::messages::Apart;
use crate::engine::own;
use crate::redis::slot::slot;

/// Payloads of one record, which stand in memory together; what is beyond is copied in pages.
const COPIES_BYTES_MAX: usize = 32 << 20;

/// A key of another slot.
struct Copy<'a> {
    key: &'a [u8],
    name: Vec<u8>,
    value: Brought,
}

impl Cluster {
    /// `reads`, `writes`: positions of keys in `args`.
    pub(super) async fn store(
        &mut self,
        apart: &Apart,
        args: &[&[u8]],
        reads: &[usize],
        writes: usize,
    ) -> Result<(), EngineError> {
        let key = |at: usize| args.get(at).copied().unwrap_or_default();
        let (to, home) = (key(writes), slot(key(writes)));
        let foreign = slots_besides(reads.iter().map(|at| key(*at)), Some(home));
        if !self.half(apart, home).await?.is_done() {
            if self.halves(apart, &foreign).await?.iter().any(|half| half.is_done()) {
                return Err(lost(apart, to));
            }
            let copies =
                self.copies(apart, reads.iter().map(|at| key(*at)).filter(|key| slot(key) != home), home).await?;
            let named = |at: usize| {
                let copy = copies.iter().find(|copy| reads.contains(&at) && copy.key == key(at));
                copy.map_or(key(at), |copy| copy.name.as_slice())
            };
            let command: Vec<&[u8]> = (0..args.len()).map(named).collect();
            // What a kill has left of such a name, a value in pages, is replaced.
            let restores: Vec<[&[u8]; 5]> = copies
                .iter()
                .filter_map(|copy| match &copy.value {
                    Brought::Payload(payload) => Some([b"RESTORE", copy.name.as_slice(), b"0", payload, b"REPLACE"]),
                    Brought::Nothing | Brought::Copy => None,
                })
                .collect();
            // And where there is nothing to be read, nothing may be found.
            let absent = copies.iter().filter(|copy| matches!(copy.value, Brought::Nothing));
            let clear: Vec<&[u8]> = std::iter::once(&b"UNLINK"[..]).chain(absent.map(|copy| &copy.name[..])).collect();
            let there = copies.iter().filter(|copy| !matches!(copy.value, Brought::Nothing));
            // A long one is freed in the background.
            let unlink: Vec<&[u8]> = std::iter::once(&b"UNLINK"[..]).chain(there.map(|copy| &copy.name[..])).collect();
            let mut commands: Vec<&[&[u8]]> = restores.iter().map(|restore| &restore[..]).collect();
            if clear.len() > 1 {
                commands.push(&clear);
            }
            if clear.len() == 1 || !stores_only_what_is_there(args) {
                commands.push(&command);
            }
            if unlink.len() > 1 {
                commands.push(&unlink);
            }
            self.group(apart, to, &commands).await?;
        }
        if !foreign.is_empty() {
            self.confirm_slot(home).await?;
        }
        self.note_all(apart, &foreign).await
    }

    /// The values of keys, each once, and their names in the slot `home`.
    async fn copies<'a>(
        &mut self,
        apart: &Apart,
        keys: impl Iterator<Item = &'a [u8]>,
        home: crate::ids::Slot,
    ) -> Result<Vec<Copy<'a>>, EngineError> {
        let tag = own::tag(self.settings());
        let (mut copies, mut room) = (Vec::<Copy<'a>>::new(), COPIES_BYTES_MAX);
        for key in keys {
            if copies.iter().any(|copy| copy.key == key) {
                continue;
            }
            let name = own::temporary_key(&tag, apart.flow, home, copies.len());
            let value = self.bring(key, &name, room).await?;
            if let Brought::Payload(payload) = &value {
                room = room.saturating_sub(payload.len());
            }
            copies.push(Copy { key, name, value });
        }
        Ok(copies)
    }

    /// The record is done: in these slots, where it only read, keys may change from now on.
    pub(super) async fn note_all(&mut self, apart: &Apart, slots: &Slots) -> Result<(), EngineError> {
        let halves = self.halves(apart, slots).await?;
        for (slot, half) in slots.iter().zip(halves) {
            if !half.is_done() {
                self.note(apart, *slot).await?;
            }
        }
        Ok(())
    }
}
