//! What decides the form of every value: the target's capabilities, the operator's policy and the sizes. Built and
//! checked once; a [`Plan`] that exists is possible.

use super::policy::{Action, Actions, Kind, Policy, PolicyError};
use super::scope::{Scope, ScopeError};
use crate::dragonfly::session::Release;
use crate::ids::DbIndex;
use crate::redis::Capabilities;
use crate::redis::payload::FOOTER_LEN;

/// Sizes that decide between forms. `Default` is right for most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Collections up to this size go as one RESTORE, larger ones as chunked commands.
    pub restore_bytes_max: usize,
    /// Split streams are assembled up to this size to be restored whole; so much again for all others open on the flow.
    pub stream_restore_bytes_max: usize,
    /// Split strings up to this size go as one SET, longer ones as pieces by SETRANGE.
    pub set_bytes_max: u64,
    /// Elements of one chunked command.
    pub command_elements_max: usize,
    /// Bytes of one chunked command, unless one element alone is longer.
    pub command_bytes_max: usize,
    /// Values shorter than this are copied by us; from here on the `Out` gets them by reference.
    pub inline_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            restore_bytes_max: 1024 * 1024,
            stream_restore_bytes_max: 8 * 1024 * 1024,
            set_bytes_max: 4 * 1024 * 1024,
            command_elements_max: 512,
            command_bytes_max: 64 * 1024,
            inline_bytes_max: 1024,
        }
    }
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Plan {
    pub capabilities: Capabilities,
    pub policy: Policy,
    pub limits: Limits,
    actions: Actions,
    scope: Scope,
    /// Release of the source, where it is known.
    pub source: Option<Release>,
    /// Its clock is at most so far before ours.
    pub source_ahead_ms: i64,
}

impl Plan {
    /// Checks the policy, and brings the limits within what the target takes. Errors: an action that its kind does not
    /// allow.
    pub fn new(capabilities: Capabilities, policy: Policy, limits: Limits) -> Result<Self, PolicyError> {
        policy.check()?;
        let bulk_bytes_max = usize::try_from(capabilities.bulk_bytes_max).unwrap_or(usize::MAX);
        // A payload is a bulk string: type byte, element count and footer stand in it beside the value.
        let payload_bytes_max = bulk_bytes_max.saturating_sub(1 + 9 + FOOTER_LEN);
        let limits = Limits {
            restore_bytes_max: limits.restore_bytes_max.min(payload_bytes_max),
            stream_restore_bytes_max: limits.stream_restore_bytes_max.min(payload_bytes_max),
            set_bytes_max: limits.set_bytes_max.min(capabilities.bulk_bytes_max),
            command_elements_max: limits.command_elements_max.clamp(1, 1024 * 1024 / 4),
            command_bytes_max: limits.command_bytes_max.clamp(1024, 16 * 1024 * 1024),
            // What is short needs no further check against the target's limit.
            inline_bytes_max: limits.inline_bytes_max.clamp(1, 4096).min(bulk_bytes_max),
        };
        let actions = policy.actions();
        Ok(Self { capabilities, policy, limits, actions, scope: Scope::everything(), source: None, source_ahead_ms: 0 })
    }

    /// The same for the keys of a scope.
    #[must_use]
    pub fn scoped(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// The same for what this source sends.
    #[must_use]
    pub fn from_source(self, source: Option<Release>, source_ahead_ms: i64) -> Self {
        Self { source, source_ahead_ms, ..self }
    }

    /// Which keys are carried, and as what.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The target's database for one of the source. Errors: the target has none of that number.
    pub fn target_db(&self, db: DbIndex) -> Result<DbIndex, ScopeError> {
        self.scope.target_db(db)
    }

    /// What to do with a thing of this kind.
    pub fn action(&self, kind: Kind) -> Action {
        self.actions.of(kind)
    }
}
