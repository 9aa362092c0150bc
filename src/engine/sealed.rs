//! A flow while the traffic is being switched: what comes is looked at and not applied; and what it does if that is rolled
//! back: expiries that were given back are held again.
//!
//! Clients write at the target by then, and a record of the source (a DEL of a collection whose members have expired, for one)
//! would hit what they wrote. In: what the flow has read and not decoded. Out: how far that was looked at, and whether a
//! client wrote any of it. Invariants: nothing is consumed, so that a cutover that is rolled back goes on where it was; no more
//! memory is taken than one chunk, and what lies behind that is not known.

use super::error::EngineError;
use super::flow::{Flow, Stop};
use super::input::Window;
use super::outlet::Outlet;
use super::router::{ClusterWriter, WriteSettings};
use super::settings::MigrateSettings;
use super::witness::is_clients;
use super::writer::Source;
use crate::convert::hold::GONE_AGAIN;
use crate::dragonfly::journal::JournalProgress;
use crate::ids::Lsn;
use crate::uring::Slab;

/// How far records were looked at, and the last of them that a client wrote: LSNs of the record behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    pub read: Lsn,
    pub wrote: Lsn,
}

impl Flow {
    /// Begins, or ends, to apply nothing.
    pub(super) fn seal(&mut self, on: bool) {
        let applied = self.stable.as_ref().map(|stable| Ahead { read: stable.next_lsn, wrote: stable.wrote_lsn });
        self.sealed = applied.filter(|_| on);
    }

    /// What is known of the journal now.
    pub(super) fn witnessed(&self) -> Option<Ahead> {
        let stable = self.stable.as_ref()?;
        Some(self.sealed.unwrap_or(Ahead { read: stable.next_lsn, wrote: stable.wrote_lsn }))
    }

    /// Holds again what was given back, as far as the lane has room, in front of what follows. What has expired meanwhile is
    /// asked for at the source.
    pub(super) fn hold_again(&mut self, slab: &mut Slab, lane: &mut Outlet<'_>, settings: &MigrateSettings) {
        lane.reopen_window(settings.window_bytes);
        let Some(next_lsn) = self.given_lsn() else { return };
        while lane.has_room(slab, settings.window_bytes)
            && let Some((name, own)) = self.handler.next_again()
        {
            match lane {
                Outlet::One(lane) => {
                    let mut writer = lane.plain_writer(slab, settings.batch_bytes, self.read_ns);
                    // Only answers in a transaction are told one by one.
                    writer.in_record = true;
                    self.handler.hold_again(&name, &mut writer);
                    if let Some((db, key)) = &own {
                        writer.watch(self.id, *db, key, GONE_AGAIN);
                    }
                    writer.record_done(self.id, next_lsn);
                }
                Outlet::Cluster { lanes, router } => {
                    let write = WriteSettings::copying(settings.batch_bytes, self.read_ns);
                    let mut writer = ClusterWriter::new(router, lanes, slab, &Source::None, (self.id, None), write);
                    if let Some((db, _)) = own {
                        writer.watch(db, GONE_AGAIN);
                    }
                    self.handler.hold_again(&name, &mut writer);
                }
            }
            lane.queue_closed();
        }
    }

    /// Looks at all that is here. `Need`: where more would be looked at, too.
    pub(super) fn look_ahead(&mut self, slab: &Slab, chunk_bytes: usize) -> Result<Stop, EngineError> {
        let (Some(stable), Some(ahead)) = (&self.stable, &mut self.sealed) else { return Ok(Stop::Full) };
        let Some((window, position)) = self.input.window(slab) else { return Ok(Stop::Need(1)) };
        let bytes = window.bytes().get(position..).unwrap_or_default();
        let (mut decoder, mut looked) = (stable.decoder.clone(), 0);
        *ahead = Ahead { read: stable.next_lsn, wrote: stable.wrote_lsn };
        loop {
            match decoder.next(bytes.get(looked..).unwrap_or_default())? {
                JournalProgress::Event { event, consumed } => {
                    looked += consumed;
                    ahead.read.0 += u64::from(event.counts());
                    if is_clients(&event) {
                        ahead.wrote = ahead.read;
                    }
                }
                JournalProgress::NeedMore { at_least } => {
                    let need = looked + at_least.max(1);
                    // More than a chunk would be collected elsewhere, and then waited for to its end.
                    let fits = need <= chunk_bytes && matches!(window, Window::Chunk(..));
                    return Ok(if fits { Stop::Need(need) } else { Stop::Full });
                }
            }
        }
    }
}
