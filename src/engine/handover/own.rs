//! What is this tool's own at the target: found before the fence, removed when the job ends.

use super::{OwnKeys, Run};
use crate::engine::error::EngineError;
use crate::engine::fence::{self, Keyspace};
use crate::engine::own;
use crate::engine::target::{OWN_PREFIX, TargetLink};
use crate::ids::DbIndex;
use crate::redis::value::Value;

impl Run {
    /// The keys of this tool at the target, also those that killed runs left behind.
    pub(super) async fn find_own(&self) -> Result<OwnKeys, String> {
        let mut link = self.target().await?;
        let mut own = OwnKeys::new();
        let tag = own::tag(&self.handover.settings);
        for db in target_keyspace(&mut link).await?.into_keys().map(DbIndex) {
            let found = own_of(&mut link, db).await?.into_iter();
            // Those of other jobs at the same target stay.
            own.extend(found.filter(|key| key.ends_with(tag.as_bytes())).map(|key| (db, key)));
            own.extend(self.handover.markers.iter().map(|marker| (db, marker.clone())));
        }
        own.sort();
        own.dedup();
        Ok(own)
    }

    pub(super) async fn target(&self) -> Result<TargetLink, String> {
        let settings = &self.handover.settings;
        let mut link = TargetLink::open(settings).await.map_err(|error| error.to_string())?;
        match link.cluster() {
            Some(_) => Err("internal error: a cluster's keys are compared by name; please report it".into()),
            None => Ok(link),
        }
    }
}

/// The tool's keys in one database.
async fn own_of(link: &mut TargetLink, db: DbIndex) -> Result<Vec<Vec<u8>>, String> {
    let text = |error: EngineError| error.to_string();
    link.call(&[b"SELECT", db.to_string().as_bytes()]).await.map_err(text)?;
    let pattern = format!("{OWN_PREFIX}*");
    let (mut cursor, mut found) = (b"0".to_vec(), Vec::new());
    loop {
        let scan: &[&[u8]] = &[b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", b"10000"];
        let Value::Array(reply) = link.call(scan).await.map_err(text)? else {
            return Err("the target answered SCAN with no array".into());
        };
        let (Some(Value::Bulk(next)), Some(Value::Array(keys))) = (reply.first(), reply.get(1)) else {
            return Err("the target answered SCAN with an unknown shape".into());
        };
        found.extend(keys.iter().filter_map(Value::bytes).map(<[u8]>::to_vec));
        if next.as_slice() == b"0" {
            return Ok(found);
        }
        cursor = next.clone();
    }
}

pub(super) async fn target_keyspace(link: &mut TargetLink) -> Result<Keyspace, String> {
    match link.call(&[b"INFO", b"keyspace"]).await.map_err(|error| error.to_string())? {
        Value::Bulk(text) => Ok(fence::keyspace(&String::from_utf8_lossy(&text))),
        other => Err(format!("the target answered INFO with {other:?}")),
    }
}
