//! Records that take elements off the first of several keys that is there (LMPOP, ZMPOP).
//!
//! In: a record's keys, what is to be taken. Out: the elements are taken off one key, once, by a command of that key alone.
//!
//! Which key it is must be found out, and cannot be found out again: the key may be empty, or gone, once it was done. So the
//! marker beside the pop has a form of its own (`router::taken`), and is written before the markers in the other slots.
//! Hence, when the record is met again: where that form is found the pop was done. Without it, and with no marker at all,
//! nothing was done, and all keys are as the record found them. Markers without it are later ones, so the record had been done
//! to its end; then a slot without a marker is one whose node has lost it, and its keys are as the record found them.

use super::{Half, Slots, lost, slots_besides};
use crate::convert::journal::Take;
use crate::engine::cluster::Cluster;
use crate::engine::error::EngineError;
use crate::engine::messages::Apart;
use crate::engine::router::taken;
use crate::redis::slot::slot;
use crate::redis::value::Value;

impl Cluster {
    pub(super) async fn pop(&mut self, apart: &Apart, keys: &[&[u8]], take: Take) -> Result<(), EngineError> {
        let slots = slots_besides(keys.iter().copied(), None);
        let halves = self.halves(apart, &slots).await?;
        let is_open = |key: &[u8]| slots.iter().zip(&halves).any(|(at, half)| *at == slot(key) && !half.is_done());
        let Some(first) = keys.first() else { return Ok(()) };
        let mut done_before = false;
        for key in keys.iter().filter(|_| !halves.contains(&Half::Taken)) {
            if !is_open(key) {
                // Whether it was empty then is not known any more.
                done_before = true;
                continue;
            }
            if !self.exists(key).await? {
                continue;
            }
            let is_other = self.is_other(key, take).await?;
            // A ZMPOP passes over it (1.27 to 1.31).
            if is_other && take.name != "LTRIM" {
                continue;
            }
            if done_before {
                return Err(lost(apart, key));
            }
            // A list was to be popped from, and it is none: the source failed there (see `replies::NothingChanged`).
            let take = (!is_other).then_some(take);
            self.take(apart, key, take).await?;
            return self.note_others(apart, &slots).await;
        }
        // Nothing was there: that must not be asked again either.
        if halves.iter().all(|half| !half.is_done()) {
            self.take(apart, first, None).await?;
        }
        self.note_others(apart, &slots).await
    }

    /// Whether the key is of another type than what is to be taken off it.
    async fn is_other(&mut self, key: &[u8], take: Take) -> Result<bool, EngineError> {
        let answer = match take.name {
            "LTRIM" => self.call(&[b"LINDEX", key, b"0"]).await?,
            // Nothing is between these. (ZCARD would be one more grant for the operator to give.)
            _ => self.call(&[b"ZREMRANGEBYRANK", key, b"1", b"0"]).await?,
        };
        Ok(matches!(answer, Value::Error(text) if text.starts_with(b"WRONGTYPE")))
    }

    /// Behind what was taken off, in whichever of the slots that was.
    async fn note_others(&mut self, apart: &Apart, slots: &Slots) -> Result<(), EngineError> {
        for slot in slots {
            self.confirm_slot(*slot).await?;
        }
        self.note_all(apart, slots).await
    }

    /// Takes this, or nothing, off a key: it is decided.
    async fn take(&mut self, apart: &Apart, key: &[u8], take: Option<Take>) -> Result<(), EngineError> {
        let marker = taken(&apart.marker);
        let Some(take) = take else { return self.transaction(apart, slot(key), key, &marker, &[]).await };
        let (first, last) = (take.first.to_string(), take.last.to_string());
        let command: [&[u8]; 4] = [take.name.as_bytes(), key, first.as_bytes(), last.as_bytes()];
        self.transaction(apart, slot(key), key, &marker, &[&command]).await
    }
}
