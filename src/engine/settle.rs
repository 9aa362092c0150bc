//! What a held worker of a cluster left behind is executed, in order, and the worker gets its lanes.
//!
//! In: commands that were rejected, or that may have been lost with a connection. Out: each executed once, where its slot
//! is now, and a lane to every node that has slots. Invariants: a transaction whose outcome is unknown is executed again only
//! if its own marker says that it was not (nothing of its flow and slot was under way beside it, see `layout`); all go one at
//! a time, each answer awaited, in the order in which they were encoded, so that no marker ever goes down.

use super::batch::{NO_SUCH_KEY, Watched};
use super::cluster::{Cluster, Trouble};
use super::error::EngineError;
use super::homes::Found;
use super::messages::{Held, LaneStart, NodeName, Settled};
use super::own::{self, marker_key, position_key};
use super::patience::Patience;
use super::refusal;
use super::router::{Resumed, parse_marker, says_applied};
use super::target::{self, TargetLink};
use super::units::Unit;
use crate::convert::journal::replies::{ErrorMeaning, error_meaning};
use crate::ids::{FlowId, Lsn, Slot};
use crate::redis::resp;
use crate::redis::slot::{SLOTS, slot};
use crate::redis::value::Value;
use std::collections::HashMap;

impl Cluster {
    /// Executes what the worker left, and says how it goes on.
    pub async fn settle(&mut self, held: &Held) -> Result<Settled, EngineError> {
        self.catch_up();
        let mut fresh_losses = false;
        for lost in &held.lost {
            if let (Some(client_id), Some(id)) = (lost.client_id, self.id_of(lost.node)) {
                self.lost(&id, client_id);
                fresh_losses = true;
            }
        }
        if !held.units.is_empty() || fresh_losses {
            self.refresh_patiently().await?;
        }
        let mut missed = Vec::new();
        for unit in &held.units {
            let answers = match unit.unknown && self.was_applied(unit).await? {
                true => None,
                false => self.execute_unit(unit).await?,
            };
            missed.extend(unit.missed(answers.as_deref()));
        }
        for apart in &held.apart {
            if let Some(key) = self.carry_out(apart).await? {
                let of = Watched { command: 0, flow: apart.flow, db: apart.db, lost_if: NO_SUCH_KEY };
                missed.push((of, Some(key)));
            }
        }
        let mut settled = self.assign(held).await?;
        settled.missed = missed;
        self.note_processes(false).await?;
        Ok(settled)
    }

    /// Its marker says that it was executed.
    async fn was_applied(&mut self, unit: &Unit) -> Result<bool, EngineError> {
        let Some((key, wanted)) = &unit.marker else { return Ok(false) };
        match self.ask(&[b"GET", key]).await? {
            Value::Bulk(found) => Ok(says_applied(&found, wanted)),
            Value::Null => Ok(false),
            other => Err(EngineError::Target(format!(
                "the cluster answered the question for a marker with {}",
                other.described()
            ))),
        }
    }

    /// Executes a command or a group until it is known to be applied. Returns its answers, if they are those to the only time
    /// that it was executed.
    pub async fn execute_unit(&mut self, unit: &Unit) -> Result<Option<Vec<Value>>, EngineError> {
        let Some(slot) = unit.slot else {
            return self.on_all(&unit.bytes).await.map(|_| None);
        };
        let mut patience = self.patience();
        let mut again = unit.unknown || unit.again;
        loop {
            let marker = unit.marker.iter().map(|(key, _)| key);
            // What may simply be repeated, with no marker, is sent on for the very key that is not there.
            let others = unit.keys.iter().filter(|_| unit.marker.is_some());
            let keys: Vec<&[u8]> = marker.chain(others).map(Vec::as_slice).collect();
            match self.execute_beside(slot, &unit.bytes, unit.replies as usize, &keys).await {
                Ok(values) => match refused(&values)? {
                    None => {
                        judge(unit, &values, again)?;
                        let only_time = !again || unit.marker.is_some();
                        return Ok(only_time.then_some(values));
                    }
                    Some(text) => patience.wait(&format!("a node answers \"{text}\"")).await?,
                },
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Broken(error)) => {
                    patience.wait(&error.to_string()).await?;
                    self.refresh_patiently().await?;
                    if self.was_applied(unit).await? {
                        return Ok(None);
                    }
                    again = true;
                }
            }
        }
    }

    /// A lane to every node that has slots, the worker's own where it has one.
    async fn assign(&mut self, held: &Held) -> Result<Settled, EngineError> {
        let mut patience = self.patience();
        'again: loop {
            let ids = self.primary_ids();
            let mut places: HashMap<String, usize> = HashMap::new();
            let mut gone = Vec::new();
            for (lane, node) in &held.live {
                match self.id_of(*node).filter(|id| ids.iter().any(|known| known == id)) {
                    Some(id) => drop(places.insert(id, *lane)),
                    None => gone.push(*lane),
                }
            }
            let lanes = held.live.len() + held.lost.len();
            let mut free: Vec<usize> = held.lost.iter().map(|lost| lost.lane).chain(gone.iter().copied()).collect();
            free.sort_unstable_by(|a, b| b.cmp(a));
            let mut next = lanes;
            let mut fresh = Vec::new();
            for id in &ids {
                if places.contains_key(id) {
                    continue;
                }
                match self.connect_lane(id).await {
                    Ok(start) => {
                        let place = free.pop().unwrap_or_else(|| {
                            next += 1;
                            next - 1
                        });
                        places.insert(id.clone(), place);
                        fresh.push((place, start));
                    }
                    Err(Trouble::Final(error)) => return Err(error),
                    Err(Trouble::Broken(error)) => {
                        patience.wait(&error.to_string()).await?;
                        self.refresh_patiently().await?;
                        continue 'again;
                    }
                }
            }
            let lanes_by_slot = self.changed_lanes(held.worker, places);
            return Ok(Settled { lanes_by_slot, fresh, gone, missed: Vec::new() });
        }
    }

    /// The lane of each slot, if that is another than when the worker was asked last. Records over several slots ask each time.
    fn changed_lanes(&mut self, worker: usize, places: HashMap<String, usize>) -> Option<Box<[u16]>> {
        let now = (self.topology_number(), places);
        if self.assigned.get(&worker) == Some(&now) {
            return None;
        }
        let lanes_by_slot = self.lanes_by_slot(&now.1);
        self.assigned.insert(worker, now);
        Some(lanes_by_slot)
    }

    /// Index of the lane of each slot.
    pub fn lanes_by_slot(&self, places: &HashMap<String, usize>) -> Box<[u16]> {
        let lane = |slot| self.topology().owner(Slot(slot)).and_then(|node| places.get(&node.id)).copied().unwrap_or(0);
        (0..SLOTS).map(|slot| lane(slot) as u16).collect()
    }

    /// A connection for a worker that begins. One that is lost while it is made is made again: nothing was sent on it. `None`: the
    /// node has no slots any more.
    pub async fn first_lane(&mut self, id: &str) -> Result<Option<LaneStart>, EngineError> {
        // A source that has opened its flows waits meanwhile.
        let mut patience = Patience::new(self.patience_max().min(self.settings().connect_timeout));
        while self.primary_ids().iter().any(|known| known == id) {
            match self.connect_lane(id).await {
                Ok(lane) => return Ok(Some(lane)),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Broken(error)) => {
                    // A lost connection stays one, as which the session outlives it.
                    if patience.wait(&error.to_string()).await.is_err() {
                        return Err(error);
                    }
                    match self.refresh().await {
                        Ok(()) | Err(Trouble::Broken(_)) => {}
                        Err(Trouble::Final(error)) => return Err(error),
                    }
                }
            }
        }
        Ok(None)
    }

    /// A connection for a worker.
    pub async fn connect_lane(&mut self, id: &str) -> Result<LaneStart, Trouble> {
        // The control connection first: it ends what a worker lost there.
        self.link(id).await?;
        let gone = || Trouble::Broken(EngineError::Target("a node left the cluster".into()));
        let endpoint = self.endpoint_of(id).ok_or_else(gone)?;
        let link = target::connect_named_lane(&endpoint, self.settings()).await;
        let mut link = link.map_err(|error| self.trouble(error))?;
        self.check_process(id, &mut link).await?;
        let client_id = target::client_id(&mut link).await.map_err(Trouble::Broken)?;
        let node = self.number(id);
        let socket = link.hand_over().map_err(Trouble::Broken)?;
        let checkpoint = own::checkpoint_key(self.settings());
        let name = NodeName::new(node, &endpoint.address());
        Ok(LaneStart { node, name, socket, marker: Vec::new(), checkpoint, client_id, in_cluster: true })
    }

    /// What an earlier session of this job left in the slots: the markers, up to where each flow was applied in each slot, and
    /// the positions that the nodes keep.
    pub async fn read_markers(&mut self, flows: u32, tag: &str) -> Result<(Resumed, Found), EngineError> {
        let job_tag = own::tag(self.settings());
        let keys_of = |slot: Slot| -> Vec<Vec<u8>> {
            let markers = (0..flows).map(|flow| marker_key(&job_tag, FlowId(flow), slot));
            markers.chain((0..flows).map(|flow| position_key(&job_tag, FlowId(flow), slot))).collect()
        };
        let mget = |slot: Slot| {
            let keys = keys_of(slot);
            let args: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain(keys.iter().map(Vec::as_slice)).collect();
            (slot, resp::command(&args))
        };
        let requests: Vec<(Slot, Vec<u8>)> = (0..SLOTS).map(Slot).map(mget).collect();
        let (mut replies, apart) = self.pipeline_once(&requests).await?;
        // Of several keys, some of which are not there, a slot on the move says nothing before it is closed; of one it does.
        let of_apart = apart.iter().filter_map(|at| requests.get(*at)).map(|(slot, _)| *slot);
        let gets =
            of_apart.flat_map(|slot| keys_of(slot).into_iter().map(move |key| (slot, resp::command(&[b"GET", &key]))));
        let values = self.pipeline(&gets.collect::<Vec<_>>()).await?;
        for (at, values) in apart.iter().zip(values.chunks((2 * flows as usize).max(1))) {
            let error = values.iter().find(|value| value.error_text().is_some()).cloned();
            replies[*at] = error.unwrap_or_else(|| Value::Array(values.to_vec()));
        }
        let (mut resumed, mut found) = (Resumed::new(), Found::default());
        for ((slot, _), reply) in requests.iter().zip(replies) {
            let values = match reply {
                Value::Array(values) if values.len() == 2 * flows as usize => values,
                Value::Error(text) => {
                    return Err(EngineError::Target(format!("reading the markers: \"{}\"", text.escape_ascii())));
                }
                // Without what they say, what was applied would be applied again.
                other => {
                    return Err(EngineError::Target(format!(
                        "the cluster answered the question for the markers of slot {slot} with {}, not with one value for each",
                        other.described()
                    )));
                }
            };
            for (at, value) in (0..2 * flows).zip(values) {
                let Value::Bulk(value) = value else { continue };
                match parse_marker(&value) {
                    _ if at >= flows => found.add(FlowId(at - flows), *slot, tag, &value),
                    Some((of, lsn)) if of == tag => drop(resumed.insert((FlowId(at), *slot), Lsn(lsn))),
                    _ => {}
                }
            }
        }
        Ok((resumed, found))
    }

    /// Deletes keys of the tool's own.
    pub async fn delete_all(&mut self, keys: impl Iterator<Item = Vec<u8>>) -> Result<(), EngineError> {
        let requests: Vec<(Slot, Vec<u8>)> = keys.map(|key| (slot(&key), resp::command(&[b"DEL", &key]))).collect();
        self.pipeline(&requests).await.map(drop)
    }

    /// Ends the data connections that a dead process left, on every primary. One that cannot be reached, or cannot yet, is waited
    /// for: it may still execute what such a connection had sent.
    pub async fn end_lanes(&mut self) -> Result<u64, EngineError> {
        let mut patience = self.patience();
        let mut ended: HashMap<String, u64> = HashMap::new();
        loop {
            let Some(id) = self.primary_ids().into_iter().find(|id| !ended.contains_key(id)) else {
                return Ok(ended.values().sum());
            };
            match self.end_lanes_of(&id).await {
                Ok(count) => drop(ended.insert(id, count)),
                Err(error) => match error.once_begun(self.settings().control.has_begun()) {
                    error @ EngineError::TargetLost(_) => {
                        patience.wait(&error.to_string()).await?;
                        self.refresh_patiently().await?;
                    }
                    error => return Err(error),
                },
            }
        }
    }

    async fn end_lanes_of(&mut self, id: &str) -> Result<u64, EngineError> {
        let gone = || EngineError::TargetLost("a node left the cluster".into());
        let endpoint = self.endpoint_of(id).ok_or_else(gone)?;
        self.drop_link(id);
        let link = TargetLink::connect(&endpoint, self.settings().connect_timeout).await?;
        target::end_lanes_of_node(&mut link.patient(self.patience_max()), self.settings()).await
    }
}

/// What a node that refuses because of its state said. Then nothing of the unit was executed.
fn refused(values: &[Value]) -> Result<Option<String>, EngineError> {
    let mut texts = values.iter().filter_map(Value::error_text);
    let Some(text) = texts.find(|text| refusal::refuses(text.as_bytes(), false)) else { return Ok(None) };
    // Without its MULTI a group is executed command by command.
    if values.first().and_then(Value::error_text).is_some() && values.iter().any(|value| value.error_text().is_none()) {
        return Err(EngineError::Torn(format!(
            "a node refused a MULTI (\"{text}\") and executed commands that stood in it; run again with --on-existing flush"
        )));
    }
    Ok(Some(text.to_string()))
}

/// Looks at the replies to a unit, none of which is a rejection.
fn judge(unit: &Unit, values: &[Value], again: bool) -> Result<(), EngineError> {
    let elements = match values.last() {
        Some(Value::Array(elements)) if unit.replies > 1 => elements.as_slice(),
        _ => &[],
    };
    let inner = elements.iter().zip(&unit.inner).map(|(value, inner)| (&inner.name, value, inner.again));
    // A group is not executed again where its marker stands.
    let again = again && unit.marker.is_none();
    let unexpected = |name: &[u8], value: &Value, again: bool| {
        let text = value
            .error_text()
            .filter(|text| error_meaning(name, text.as_bytes(), again) == ErrorMeaning::Unexpected)?;
        Some(format!("the cluster answered \"{text}\" to {} {}", name.escape_ascii(), unit.key.escape_ascii()))
    };
    if let Some(what) = values.iter().find_map(|value| unexpected(&unit.name, value, again)) {
        return Err(EngineError::Target(format!(
            "{what}; the run stops here, because going on would leave a wrong value behind"
        )));
    }
    // MULTI and EXEC are no commands of the group.
    let wanted = (unit.replies as usize).saturating_sub(2);
    if unit.replies > 1 && !matches!(values.last(), Some(Value::Array(elements)) if elements.len() == wanted) {
        return Err(EngineError::Torn(format!(
            "the cluster answered the EXEC of {} {} not with one reply for each command of the transaction; what it executed is \
             not known: run again with --on-existing flush",
            unit.name.escape_ascii(),
            unit.key.escape_ascii()
        )));
    }
    for (name, value, again) in inner {
        if let Some(what) = unexpected(name, value, again) {
            return Err(EngineError::Torn(format!(
                "{what}. The rest of its transaction was executed, and the position with it, so nothing goes on from there: run \
                 again with --on-existing flush"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::layout::batch_of;
    use crate::engine::units::{Inner, units_of};
    use crate::uring::{Slab, SlabLayout};

    #[test]
    fn only_what_has_no_marker_may_have_been_executed_before() {
        let unit = |marker: Option<(Vec<u8>, Vec<u8>)>, again| Unit {
            bytes: Vec::new(),
            replies: if marker.is_some() { 4 } else { 1 },
            name: b"HSET".to_vec(),
            inner: vec![Inner { name: b"HSET".to_vec(), again }],
            key: b"k".to_vec(),
            keys: vec![b"k".to_vec()],
            slot: Some(Slot(1)),
            marker,
            unknown: true,
            again: false,
            watched: Vec::new(),
        };
        let wrong = || Value::Error(b"WRONGTYPE Operation".to_vec());
        assert!(judge(&unit(None, false), &[wrong()], true).is_ok());
        assert!(judge(&unit(None, false), &[wrong()], false).is_err());
        let marker = || Some((b"m".to_vec(), b"j:1".to_vec()));
        assert!(judge(&unit(marker(), false), &[wrong()], true).is_err());
        // A blind command of the group was sent by itself, by an earlier session.
        let values = [Value::Array(vec![wrong(), Value::Simple(b"OK".to_vec())])];
        assert!(judge(&unit(marker(), true), &values, true).is_ok());
        assert!(matches!(judge(&unit(marker(), false), &values, true), Err(EngineError::Torn(_))));
    }

    #[test]
    fn a_transaction_is_answered_with_an_array_of_its_length() {
        let mut bytes = Vec::new();
        let commands: [&[&[u8]]; 4] = [&[b"MULTI"], &[b"INCR", b"n"], &[b"SET", b"m", b"j:1"], &[b"EXEC"]];
        commands.iter().for_each(|args| resp::push_command(&mut bytes, args));
        let layout = SlabLayout { rx_chunk_bytes: 4096, rx_chunks: 1, tx_chunk_bytes: 4096, tx_chunks: 1 };
        let slab = Slab::unregistered(layout).unwrap();
        let (_, unit) = units_of(&batch_of(bytes, 4, true), &slab).unwrap().remove(0);
        let ok = || Value::Simple(b"OK".to_vec());
        let array = |len: usize| Value::Array(vec![Value::Integer(1); len]);
        let judged = |last: Value| judge(&unit, &[ok(), ok(), ok(), last], false);
        assert!(judged(array(2)).is_ok());
        for hostile in [ok(), Value::Null, array(0), array(1), array(3), Value::Integer(2)] {
            assert!(matches!(judged(hostile.clone()), Err(EngineError::Torn(_))), "{hostile:?}");
        }
    }
}
