//! Commands that may be sent again, to the nodes that have their slots.
//!
//! In: commands of one key, or of all primaries. Out: their replies. Invariant: what is waited for is a node that cannot yet, or a
//! slot that has none; any other answer is the answer.

use super::{Cluster, Trouble};
use crate::engine::error::EngineError;
use crate::engine::errors::is_rejection;
use crate::engine::refusal;
use crate::ids::Slot;
use crate::redis::slot::slot;
use crate::redis::value::Value;
use std::collections::HashMap;

/// Requests of one pipeline to one node.
const PIPELINE_MAX: usize = 512;

impl Cluster {
    /// One command, where its key is; it may be sent again after a lost connection, or where the node refuses for a while.
    /// FLUSHALL and the like go to every primary, a SELECT of database 0 nowhere.
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Value, EngineError> {
        let name = args.first().copied().unwrap_or_default();
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        if is("SELECT") {
            return match args.get(1) {
                Some(&b"0") => Ok(Value::Simple(b"OK".to_vec())),
                _ => Err(EngineError::Refused("a cluster has only database 0".into())),
            };
        }
        let request = crate::redis::resp::command(args);
        if ["FLUSHALL", "FLUSHDB", "DBSIZE", "CLIENT", "SCRIPT"].iter().any(|name| is(name)) {
            return self.on_all(&request).await;
        }
        let key_at = if is("EVAL") { 3 } else { 1 };
        self.call_in_slot(slot(args.get(key_at).copied().unwrap_or_default()), &request, |_| false).await
    }

    /// One command with a key first. What a full node says is the answer.
    pub async fn call_unless_full(&mut self, args: &[&[u8]]) -> Result<Value, EngineError> {
        let slot = slot(args.get(1).copied().unwrap_or_default());
        self.call_in_slot(slot, &crate::redis::resp::command(args), refusal::is_full).await
    }

    /// A question whose answer decides what is done. An error is no answer: access that was taken away is waited for, as everywhere.
    pub async fn ask(&mut self, args: &[&[u8]]) -> Result<Value, EngineError> {
        let mut patience = self.patience();
        loop {
            let text = match self.call(args).await? {
                Value::Error(text) => text,
                answer => return Ok(answer),
            };
            let name = args.first().copied().unwrap_or_default().escape_ascii().to_string();
            let why = format!("the cluster answered {name} with \"{}\"", text.escape_ascii());
            match refusal::refuses_access(&text) {
                true => patience.wait(&why).await?,
                false => return Err(EngineError::Target(why)),
            }
        }
    }

    /// One encoded command of a slot, which may be sent again. `is_answer`: a refusal that is not waited out.
    async fn call_in_slot(
        &mut self,
        slot: Slot,
        request: &[u8],
        is_answer: fn(&[u8]) -> bool,
    ) -> Result<Value, EngineError> {
        let mut patience = self.patience();
        loop {
            let why = match self.execute(slot, request, 1).await {
                Ok(values) => match values.into_iter().next().unwrap_or(Value::Null) {
                    Value::Error(text)
                        if !self.patience.is_zero() && refusal::refuses_for_now(&text) && !is_answer(&text) =>
                    {
                        format!("the node of slot {slot} answers \"{}\"", text.escape_ascii())
                    }
                    value => return Ok(value),
                },
                Err(Trouble::Broken(error)) => error.to_string(),
                Err(Trouble::Final(error)) => return Err(error),
            };
            patience.wait(&why).await?;
            self.refresh_patiently().await?;
        }
    }

    /// One command to every primary, which may be sent again; numbers are added up, else the last reply counts.
    pub async fn on_all(&mut self, request: &[u8]) -> Result<Value, EngineError> {
        let mut patience = self.patience();
        'again: loop {
            let (mut sum, mut last) = (0i64, Value::Null);
            for id in self.primary_ids() {
                let why = match self.send(&id, false, request, 1).await {
                    Ok(values) => match values.into_iter().next().unwrap_or(Value::Null) {
                        // What says that it was not executed: a node that is a replica now, or cannot yet.
                        Value::Error(text) if is_rejection(&text) || refusal::refuses_for_now(&text) => {
                            let node = self.address_of(&id).map(|address| address.to_string()).unwrap_or_default();
                            format!("{node} answers \"{}\"", text.escape_ascii())
                        }
                        value @ Value::Error(_) => return Ok(value),
                        value => {
                            match value {
                                Value::Integer(number) => sum = sum.saturating_add(number),
                                value => last = value,
                            }
                            continue;
                        }
                    },
                    Err(Trouble::Broken(error)) => error.to_string(),
                    Err(Trouble::Final(error)) => return Err(error),
                };
                patience.wait(&why).await?;
                self.refresh_patiently().await?;
                continue 'again;
            }
            return Ok(if last == Value::Null { Value::Integer(sum) } else { last });
        }
    }

    /// Many commands of one key each that may be sent again. Returns a reply for each, in their order.
    pub async fn pipeline(&mut self, requests: &[(Slot, Vec<u8>)]) -> Result<Vec<Value>, EngineError> {
        let (mut replies, apart) = self.pipeline_once(requests).await?;
        for at in apart {
            let Some((slot, bytes)) = requests.get(at) else { continue };
            replies[at] = self.call_in_slot(*slot, bytes, |_| false).await?;
        }
        Ok(replies)
    }

    /// The same, each sent once to the node that has its slot. Returns also which were not executed, or perhaps not.
    pub async fn pipeline_once(
        &mut self,
        requests: &[(Slot, Vec<u8>)],
    ) -> Result<(Vec<Value>, Vec<usize>), EngineError> {
        let mut replies: Vec<Value> = vec![Value::Null; requests.len()];
        let mut by_node: HashMap<String, Vec<usize>> = HashMap::new();
        let mut apart = Vec::new();
        for (at, (slot, _)) in requests.iter().enumerate() {
            match self.topology.owner(*slot) {
                Some(node) => by_node.entry(node.id.clone()).or_default().push(at),
                None => apart.push(at),
            }
        }
        for (id, places) in by_node {
            for chunk in places.chunks(PIPELINE_MAX) {
                let bytes: Vec<u8> =
                    chunk.iter().filter_map(|at| requests.get(*at)).flat_map(|r| r.1.clone()).collect();
                match self.send(&id, false, &bytes, chunk.len()).await {
                    Ok(values) => {
                        for (at, value) in chunk.iter().zip(values) {
                            match &value {
                                Value::Error(text) if is_rejection(text) || refusal::refuses_for_now(text) => {
                                    apart.push(*at);
                                }
                                _ => replies[*at] = value,
                            }
                        }
                    }
                    Err(Trouble::Broken(_)) => apart.extend_from_slice(chunk),
                    Err(Trouble::Final(error)) => return Err(error),
                }
            }
        }
        Ok((replies, apart))
    }
}
