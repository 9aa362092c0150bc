//! What to do with what the target cannot hold, and with keys that it holds already.
//!
//! Text form (`--on-unsupported`): `refuse` or `skip` for all kinds, and `KIND=ACTION` for one; several of them, comma
//! separated or repeated, the later one counting.

use std::fmt;

/// A kind of thing that some target cannot hold. Names (kebab case) are those of `--on-unsupported KIND=ACTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// JSON documents where the target has no JSON module: refuse, skip, string.
    Json,
    /// Bloom, CMS, TopK, cuckoo: refuse, skip.
    Filters,
    /// Expiry of a hash field where the target has none: refuse, drop.
    FieldExpiry,
    /// Expiry of a set member (no target has it): refuse, drop.
    MemberExpiry,
    /// A string longer than the target's proto-max-bulk-len: refuse, skip.
    LargeString,
    /// A recorded command without an equivalent (CL.THROTTLE ...): refuse, skip.
    Command,
    /// A pending entry of a consumer group whose message was deleted, in a stream too large for RESTORE: refuse, drop.
    DanglingPending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Refuse,
    /// Leave the value out, list the key.
    Skip,
    /// Drop the expiry (or attribute), keep the value, list the key.
    Drop,
    /// JSON: store its text as a string.
    #[serde(rename = "string")]
    AsString,
}

/// `--on-unsupported`: one action for each kind.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Policy {
    /// Overrides by kind, in the order given.
    pub by_kind: Vec<(Kind, Action)>,
    /// `skip` for all: values that cannot be held are skipped, expiries that cannot be held are dropped.
    pub skip_all: bool,
}

/// A policy that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("unknown kind {name:?}; kinds are {}", join(Kind::ALL.iter().map(|kind| kind.name())))]
    UnknownKind { name: String },
    #[error("unknown action {name:?} for {kind}; allowed are {}", join(kind.allowed().iter().map(|action| action.name())))]
    UnknownAction { kind: Kind, name: String },
    #[error("{kind}={action} is not possible; allowed for {kind} are {}", join(kind.allowed().iter().map(|action| action.name())))]
    NotAllowed { kind: Kind, action: Action },
    #[error("{text:?} is neither refuse, skip nor KIND=ACTION")]
    Malformed { text: String },
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::Json,
        Kind::Filters,
        Kind::FieldExpiry,
        Kind::MemberExpiry,
        Kind::LargeString,
        Kind::Command,
        Kind::DanglingPending,
    ];

    /// The name in `--on-unsupported` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Filters => "filters",
            Self::FieldExpiry => "field-expiry",
            Self::MemberExpiry => "member-expiry",
            Self::LargeString => "large-string",
            Self::Command => "command",
            Self::DanglingPending => "dangling-pending",
        }
    }

    /// The actions that make sense for it.
    pub fn allowed(self) -> &'static [Action] {
        match self {
            Self::Json => &[Action::Refuse, Action::Skip, Action::AsString],
            Self::Filters | Self::LargeString | Self::Command => &[Action::Refuse, Action::Skip],
            Self::FieldExpiry | Self::MemberExpiry | Self::DanglingPending => &[Action::Refuse, Action::Drop],
        }
    }

    /// What a message calls a thing of this kind.
    pub fn description(self) -> &'static str {
        match self {
            Self::Json => "a JSON document",
            Self::Filters => "a probabilistic filter in Dragonfly's own encoding",
            Self::FieldExpiry => "a hash with field expiries",
            Self::MemberExpiry => "a set with member expiries",
            Self::LargeString => "a string beyond the target's proto-max-bulk-len",
            Self::Command => "a command without an equivalent",
            Self::DanglingPending => "a stream with pending entries whose messages were deleted",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Action {
    pub const ALL: [Action; 4] = [Action::Refuse, Action::Skip, Action::Drop, Action::AsString];

    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Skip => "skip",
            Self::Drop => "drop",
            Self::AsString => "string",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Policy {
    /// From the values of `--on-unsupported` in the order given.
    pub fn parse<S: AsRef<str>>(specs: impl IntoIterator<Item = S>) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        for spec in specs {
            for part in spec.as_ref().split(',').map(str::trim) {
                match part.split_once('=') {
                    Some((kind, action)) => policy.by_kind.push(parse_pair(kind.trim(), action.trim())?),
                    None if part == "skip" => policy.skip_all = true,
                    None if part == "refuse" => policy.skip_all = false,
                    None => return Err(PolicyError::Malformed { text: part.to_string() }),
                }
            }
        }
        policy.check()?;
        Ok(policy)
    }

    /// Whether every action is allowed for its kind.
    pub fn check(&self) -> Result<(), PolicyError> {
        match self.by_kind.iter().find(|(kind, action)| !kind.allowed().contains(action)) {
            Some(&(kind, action)) => Err(PolicyError::NotAllowed { kind, action }),
            None => Ok(()),
        }
    }

    /// What to do with a thing of this kind.
    pub fn action(&self, kind: Kind) -> Action {
        if let Some((_, action)) = self.by_kind.iter().rev().find(|(named, _)| *named == kind) {
            return *action;
        }
        match self.skip_all {
            false => Action::Refuse,
            true => match kind.allowed().contains(&Action::Skip) {
                true => Action::Skip,
                false => Action::Drop,
            },
        }
    }

    /// All actions, looked up once.
    pub(super) fn actions(&self) -> Actions {
        Actions(Kind::ALL.map(|kind| self.action(kind)))
    }
}

/// The action for each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Actions([Action; Kind::ALL.len()]);

impl Actions {
    pub fn of(&self, kind: Kind) -> Action {
        self.0.get(kind.index()).copied().unwrap_or(Action::Refuse)
    }
}

fn parse_pair(kind: &str, action: &str) -> Result<(Kind, Action), PolicyError> {
    let kind = Kind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
        .ok_or_else(|| PolicyError::UnknownKind { name: kind.to_string() })?;
    let action = Action::ALL
        .into_iter()
        .find(|known| known.name() == action)
        .ok_or_else(|| PolicyError::UnknownAction { kind, name: action.to_string() })?;
    Ok((kind, action))
}

fn join(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuse_is_the_default() {
        let policy = Policy::parse::<&str>([]).unwrap();
        assert!(Kind::ALL.into_iter().all(|kind| policy.action(kind) == Action::Refuse));
    }

    #[test]
    fn skip_drops_what_has_a_value_to_keep() {
        let policy = Policy::parse(["json=string,field-expiry=refuse", "skip"]).unwrap();
        let actions: Vec<String> =
            Kind::ALL.into_iter().map(|kind| format!("{kind}={}", policy.action(kind))).collect();
        assert_eq!(
            actions.join(" "),
            "json=string filters=skip field-expiry=refuse member-expiry=drop large-string=skip command=skip dangling-pending=drop"
        );
        assert_eq!(Policy::parse(["json=string", "json=skip"]).unwrap().action(Kind::Json), Action::Skip);
    }

    #[test]
    fn impossible_policies_say_what_is_possible() {
        let errors: Vec<String> = ["jsn=skip", "json=strng", "filters=string", "member-expiry=skip", "all"]
            .into_iter()
            .map(|spec| Policy::parse([spec]).unwrap_err().to_string())
            .collect();
        insta::assert_snapshot!(errors.join("\n"), @r#"
        unknown kind "jsn"; kinds are json, filters, field-expiry, member-expiry, large-string, command, dangling-pending
        unknown action "strng" for json; allowed are refuse, skip, string
        filters=string is not possible; allowed for filters are refuse, skip
        member-expiry=skip is not possible; allowed for member-expiry are refuse, drop
        "all" is neither refuse, skip nor KIND=ACTION
        "#);
    }
}
