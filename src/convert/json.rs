//! What needs a module at the target: JSON documents and probabilistic filters.
//!
//! A document goes as `JSON.SET key $ text` where the target has it. JSON.SET does not replace a key of another type and
//! takes no expiry, so a DEL precedes it and PEXPIREAT follows. Filters can be carried nowhere (wire 3.7).

use super::collection::Sent;
use super::converter;
use super::emit::{Command, Key, delete, expire_at};
use super::out::{Class, Out};
use super::plan::Plan;
use super::policy::{Action, Kind};
use super::tally::{Tally, What};
use super::{ConvertError, string};
use crate::dragonfly::Text;
use crate::ids::FlowId;

/// A JSON document; `text` may be a number in integer form.
#[expect(clippy::too_many_arguments, reason = "the document and where it goes; a struct would be used once")]
pub(super) fn document(
    flow: FlowId,
    plan: &Plan,
    key: &Key<'_>,
    text: Text<'_>,
    event: &[u8],
    expire_at_ms: Option<i64>,
    out: &mut impl Out,
    tally: &mut Tally,
    unpacked: &mut Vec<u8>,
) -> Result<Sent, ConvertError> {
    if plan.capabilities.json {
        // An LZF text is unpacked before anything is written: it may fail.
        let unpacks = matches!(text, Text::Lzf { .. });
        if unpacks {
            unpacked.clear();
            text.append_to(unpacked)?;
        }
        delete(out, key);
        let mut command = Command::begin(out, key.meta(Class::Blind), 4, b"$8\r\nJSON.SET\r\n");
        command.bulk(key.bytes).bulk(b"$");
        if unpacks {
            command.bulk_head(unpacked.len()).own(unpacked).raw(b"\r\n");
        } else {
            command.text(text, event, unpacked)?;
        }
        command.end();
        expire_at(out, key, expire_at_ms);
        return Ok(Sent::ByCommands { elements: 0 });
    }
    match plan.action(Kind::Json) {
        Action::Refuse => Err(converter::unsupported(flow, key, Kind::Json, plan)),
        Action::AsString => {
            string::set(out, key, text, expire_at_ms, plan, unpacked)?;
            tally.not_carried(key.db, key.bytes, What::Kind(Kind::Json), Action::AsString, 1);
            Ok(Sent::ByCommands { elements: 0 })
        }
        action => Ok(skip(key, Kind::Json, action, out, tally)),
    }
}

/// A Bloom or cuckoo filter, count-min sketch or top-k.
pub(super) fn filter(
    flow: FlowId,
    plan: &Plan,
    key: &Key<'_>,
    out: &mut impl Out,
    tally: &mut Tally,
) -> Result<Sent, ConvertError> {
    match plan.action(Kind::Filters) {
        Action::Refuse => Err(converter::unsupported(flow, key, Kind::Filters, plan)),
        action => Ok(skip(key, Kind::Filters, action, out, tally)),
    }
}

/// Leaves a value out. The key is removed, because whatever the target holds under it is not what the source holds.
pub(super) fn skip(key: &Key<'_>, kind: Kind, action: Action, out: &mut impl Out, tally: &mut Tally) -> Sent {
    delete(out, key);
    tally.not_carried(key.db, key.bytes, What::Kind(kind), action, 1);
    Sent::Skipped
}
