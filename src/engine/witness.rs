//! What the journal says about a fence: what was read of each flow, and the last record of it that a client wrote.
//!
//! In: each record as it is read, by the flow's worker. Out: two positions a flow, for the cutover. Behind a fence LSNs still
//! move although nobody writes: a `WAIT` brings a PING, `SCRIPT LOAD` is recorded and not held, and a collection whose members
//! have all expired is deleted by whoever reads it, `verify` included. Only what a client wrote speaks against the fence.
//! Invariant: a flow's `wrote` is published before any position that covers it is published as confirmed.
//!
//! The source records the DEL of an expired key as it records a client's DEL of one key (wire 4.4), so that one is not
//! counted as a client's. It is applied before the traffic is switched, like everything.

use crate::dragonfly::journal::JournalEvent;
use crate::ids::{FlowId, Lsn};
use std::sync::atomic::{AtomicU64, Ordering};

/// Of all flows of a session. All are LSNs of the record behind; 0: nothing is known.
#[derive(Debug)]
pub struct Witness {
    flows: Vec<(AtomicU64, AtomicU64)>,
}

/// What was seen of all flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Read, and looked at.
    pub read: Vec<u64>,
    /// The last record that a client wrote.
    pub wrote: Vec<u64>,
}

impl Witness {
    pub fn new(flows: usize) -> Self {
        Self { flows: (0..flows).map(|_| Default::default()).collect() }
    }

    /// `read` covers `wrote`.
    pub fn publish(&self, flow: FlowId, read: Lsn, wrote: Lsn) {
        let Some((shared_read, shared_wrote)) = self.flows.get(flow.0 as usize) else { return };
        shared_wrote.store(wrote.0, Ordering::Release);
        shared_read.store(read.0, Ordering::Release);
    }

    pub fn seen(&self) -> Seen {
        let read = self.flows.iter().map(|(read, _)| read.load(Ordering::Acquire)).collect();
        Seen { read, wrote: self.flows.iter().map(|(_, wrote)| wrote.load(Ordering::Acquire)).collect() }
    }
}

/// Whether the record shows that a client wrote.
#[inline]
pub fn is_clients(event: &JournalEvent<'_>) -> bool {
    let JournalEvent::Command(command) = event else { return false };
    let name = command.name();
    let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
    match name.len() {
        3 => !(is("DEL") && command.txid == 0 && command.args_count == 2),
        // A JSON.MSET that stored nothing (wire 4.4).
        4 => !is("PING"),
        6 => !is("SCRIPT"),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dragonfly::journal::{JournalDecoder, JournalProgress};
    use crate::lab::encode::journal_command;

    #[test]
    fn only_what_a_client_wrote_counts() {
        let speaks = |txid: u64, words: &[&str]| {
            let mut bytes = Vec::new();
            let args: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
            journal_command(&mut bytes, 0, txid, &args);
            match JournalDecoder::new(FlowId(0), 1 << 20).next(&bytes) {
                Ok(JournalProgress::Event { event, .. }) => is_clients(&event),
                other => panic!("{other:?}"),
            }
        };
        for quiet in [&["DEL", "k"][..], &["SCRIPT", "LOAD", "return 1"], &["script", "load", "x"], &["PING"]] {
            assert!(!speaks(0, quiet), "{quiet:?}");
        }
        for write in
            [&["SET", "k", "v"][..], &["DEL", "a", "b"], &["MSET", "a", "1"], &["FLUSHALL"], &["HDEL", "h", "f"]]
        {
            assert!(speaks(0, write), "{write:?}");
        }
        assert!(speaks(70_000, &["DEL", "k"]), "a transaction is a client's");
        assert!(!is_clients(&JournalEvent::Ping) && !is_clients(&JournalEvent::Exec));
    }

    #[test]
    fn what_was_written_is_known_before_it_is_called_read() {
        let witness = Witness::new(2);
        witness.publish(FlowId(1), Lsn(9), Lsn(7));
        assert_eq!(witness.seen(), Seen { read: vec![0, 9], wrote: vec![0, 7] });
        // A flow that nobody knows changes nothing.
        witness.publish(FlowId(2), Lsn(9), Lsn(7));
        assert_eq!(witness.seen().read.len(), 2);
    }
}
