//! Records with a string that the target's protocol does not take: left out, by policy, as far as it reaches.
//!
//! In: such a record. Out: what of it the target takes. Invariants: where a value was replaced by one that is left out, the old one
//! goes; of a record over several keys those that fit are carried out; each key that is not as at the source is listed.

use super::error::TranslateError;
use super::modules::is_root;
use super::record::Record;
use super::table::How;
use super::{Args, JournalTranslator, NoteKind, Outcome};
use crate::convert::out::Out;
use crate::convert::policy::{Action, Kind};

const KIND: Kind = Kind::LargeString;

impl JournalTranslator {
    pub(super) fn fits(&self, text: &[u8]) -> bool {
        text.len() as u64 <= self.capabilities.bulk_bytes_max
    }

    #[cold]
    pub(super) fn too_large<O: Out>(&mut self, record: &Record<'_>, out: &mut O) -> Result<Outcome, TranslateError> {
        let group = match record.row.how {
            How::Del => 1,
            How::MSet => 2,
            How::JsonMSet if self.capabilities.commands.contains("JSON.SET") => 3,
            _ => 0,
        };
        if group > 0 && self.policy.action(KIND) != Action::Refuse && record.grouped(1, group).is_ok() {
            return self.in_groups(record, group, out);
        }
        self.leave_out(record, KIND, "a string longer than its proto-max-bulk-len")?;
        let replaces = match record.row.how {
            How::Set | How::SetEx(_) | How::GetSet => true,
            // With NX there was nothing.
            How::JsonSet => record.args.get(2).is_some_and(|path| is_root(path)) && !record.is(4, "NX"),
            _ => false,
        };
        let key = record.args.get(1).filter(|key| replaces && self.fits(key));
        let commands = key.map_or(0, |key| self.del_keys(record, &[*key], out));
        Ok(Outcome::LeftOut { kind: KIND, commands })
    }

    /// A record of groups of strings, each beginning with a key.
    fn in_groups<O: Out>(&mut self, record: &Record<'_>, group: usize, out: &mut O) -> Result<Outcome, TranslateError> {
        let is_json = record.row.how == How::JsonMSet;
        let (mut kept, mut lost, mut replaced) = (Args::new(), Args::new(), Args::new());
        kept.extend(record.args.first().copied());
        for strings in record.from(1).chunks_exact(group) {
            let Some(key) = strings.first().copied() else { continue };
            if strings.iter().all(|text| self.fits(text)) {
                kept.extend(strings.iter().copied());
                // The last value of a key is the one that stays.
                if !is_json {
                    lost.retain(|other| *other != key);
                }
                continue;
            }
            lost.push(key);
            if self.fits(key) && is_json && strings.get(1).is_some_and(|path| is_root(path)) {
                replaced.push(key);
            }
        }
        lost.iter().for_each(|key| self.notes.add(record.db, key, record.row.name, NoteKind::Skipped(KIND)));
        let mut commands = 0;
        if is_json {
            // What changes a document that is left out has nothing to change.
            let groups = kept.get(1..).unwrap_or_default().chunks_exact(group);
            let of_others = groups.filter(|strings| strings.first().is_some_and(|key| !lost.contains(key)));
            kept = kept.iter().take(1).copied().chain(of_others.flatten().copied()).collect();
            commands += self.del_keys(record, &replaced, out);
        } else {
            replaced = lost.iter().copied().filter(|key| self.fits(key)).collect();
        }
        if kept.len() > 1 {
            let rest = Record { args: &kept, ..*record };
            let outcome = match record.row.how {
                How::Del => self.del(&rest, rest.from(1), out),
                How::MSet => self.mset(&rest, out)?,
                _ => self.json_mset(&rest, out)?,
            };
            if let Outcome::Written { commands: written } | Outcome::LeftOut { commands: written, .. } = outcome {
                commands += written;
            }
        }
        if !is_json {
            commands += self.del_keys(record, &replaced, out);
        }
        Ok(Outcome::LeftOut { kind: KIND, commands })
    }
}
