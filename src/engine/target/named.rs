//! Connections to the target that can be told apart there, and ended: by their id, or by the job's name after a restart.
//!
//! In: the job's settings. Out: connections with names; those of a dead process, or that were lost, ended. Invariant: nothing
//! that an ended connection still holds is executed.

use super::{TargetLink, error_of};
use crate::engine::error::EngineError;
use crate::engine::own;
use crate::engine::patience::Patience;
use crate::engine::refusal;
use crate::engine::settings::{Endpoint, MigrateSettings};
use crate::redis::value::Value;
use std::sync::Arc;
use std::time::Duration;

/// Id of this connection at the target; 0 where it does not say. That there is no room for a client is no such answer, nor what passes.
pub async fn client_id(link: &mut TargetLink) -> Result<i64, EngineError> {
    let text = match link.call_raw("CLIENT", &[b"CLIENT", b"ID"]).await? {
        Value::Integer(id) => return Ok(id),
        Value::Error(text) => text,
        _ => return Ok(0),
    };
    match error_of(&text, link.answered("CLIENT ID", &text)) {
        EngineError::Target(error) if refusal::refuses_for_now(&text) => Err(EngineError::TargetLost(error)),
        EngineError::Target(_) => Ok(0),
        error => Err(error),
    }
}

/// Ends a connection of ours that was lost, so that nothing it still holds is executed. Without that being sure, going on
/// could apply a command twice.
pub async fn end_client(link: &mut TargetLink, client_id: i64) -> Result<(), EngineError> {
    let refused = || {
        EngineError::Refused(
            "a connection to the target was lost, and to go on the target's user needs the permissions +client|id and \
             +client|kill: without them the target might still execute what the lost connection had sent"
                .into(),
        )
    };
    if client_id == 0 {
        return Err(refused());
    }
    let mut patience = Patience::new(link.patience);
    loop {
        let text = match link.call_raw("CLIENT", &[b"CLIENT", b"KILL", b"ID", client_id.to_string().as_bytes()]).await?
        {
            Value::Error(text) if text.starts_with(b"NOPERM") => return Err(refused()),
            Value::Error(text) => text,
            // Their number; none where it was gone by itself.
            _ => return Ok(()),
        };
        // A server that is busy has ended nothing, and executes later what the connection holds.
        let error = link.answered("CLIENT KILL", &text);
        if link.patience.is_zero() || !refusal::refuses_for_now(&text) {
            return Err(EngineError::TargetLost(error));
        }
        patience.wait(&error).await?;
    }
}

/// A connection for the control plane of `replicate`: named, so that one of a dead process can be found and ended.
pub async fn connect_control(settings: &Arc<MigrateSettings>) -> Result<TargetLink, EngineError> {
    connect_control_within(settings, settings.retry_max).await
}

/// The same with another patience.
pub async fn connect_control_within(
    settings: &Arc<MigrateSettings>,
    patience: Duration,
) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::open_within(settings, patience).await?;
    // The connections to a cluster's nodes have names of their own.
    if link.cluster.is_none() {
        name_control(&mut link, settings).await?;
    }
    Ok(link)
}

/// Names a connection of the control plane.
pub async fn name_control(link: &mut TargetLink, settings: &MigrateSettings) -> Result<(), EngineError> {
    name(link, &own::control_name(settings)).await
}

/// Without its name the next process would not find, and end, what this one had sent last.
async fn name(link: &mut TargetLink, name: &str) -> Result<(), EngineError> {
    let Value::Error(text) = link.call_raw("CLIENT", &[b"CLIENT", b"SETNAME", name.as_bytes()]).await? else {
        return Ok(());
    };
    let error = format!("{}; the target's user needs +client|setname", link.answered("CLIENT SETNAME", &text));
    Err(match refusal::refuses_for_now(&text) {
        true => EngineError::TargetLost(error),
        false => error_of(&text, error),
    })
}

/// A connection for data.
pub async fn connect_lane(settings: &MigrateSettings) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::connect(&settings.target, settings.connect_timeout).await?;
    // Nobody goes on from where a `migrate` ended.
    if settings.follow.is_some() {
        name(&mut link, &own::lane_name(settings)).await?;
    }
    Ok(link)
}

/// The same to a cluster's node, where only the name finds it again after a restart.
pub async fn connect_named_lane(endpoint: &Endpoint, settings: &MigrateSettings) -> Result<TargetLink, EngineError> {
    let mut link = TargetLink::connect(endpoint, settings.connect_timeout).await?;
    name(&mut link, &own::lane_name(settings)).await?;
    Ok(link)
}

/// Ends the connections that a dead process of this job may have left, those for data and that for global commands: what
/// they still hold must not be executed after the checkpoint has been read.
pub async fn end_lanes(link: &mut TargetLink, settings: &MigrateSettings) -> Result<u64, EngineError> {
    match &mut link.cluster {
        Some(cluster) => Box::pin(cluster.end_lanes()).await,
        None => end_lanes_of_node(link, settings).await,
    }
}

/// The same for one server.
pub async fn end_lanes_of_node(link: &mut TargetLink, settings: &MigrateSettings) -> Result<u64, EngineError> {
    let names = [own::lane_name(settings), own::control_name(settings)];
    let Value::Bulk(list) = link.call(&[b"CLIENT", b"LIST"]).await? else {
        return Err(EngineError::Target("the target answered CLIENT LIST with no text".into()));
    };
    let own = client_id(link).await?;
    let mut ended = 0;
    for line in String::from_utf8_lossy(&list).lines() {
        let field = |name: &str| line.split(' ').find_map(|part| part.strip_prefix(name));
        if field("name=").is_some_and(|name| names.iter().any(|own| own == name))
            && let Some(id) = field("id=").and_then(|id| id.parse::<i64>().ok())
            && id != own
        {
            end_client(link, id).await?;
            ended += 1;
        }
    }
    Ok(ended)
}
