//! Keys that the source shows although nothing is in them.
//!
//! Dragonfly lets a hash or set whose members have all expired stand until somebody reads the value: TYPE, PEXPIRETIME, SCAN
//! and DBSIZE do not look inside (wire 3.1). The target rightly has no such key, so it is not missing there. In: keys that
//! the target lacks. Out: which of them are hollow, by a scan at the source that ends with the first element.

use super::difference::Kind;
use super::look::{Looker, Verdict};
use super::paged::scan_reply;
use super::peer::AskError;
use super::wire::Commands;
use crate::engine::error::EngineError;

/// Elements of a first page: one is enough. Of later ones, where the first had none.
const COUNT_FIRST: &[u8] = b"10";
const COUNT_LATER: &[u8] = b"500";

/// Makes keys that are missing at the target, and hollow at the source, gone.
pub async fn settle(
    looker: &mut Looker,
    db: u32,
    keys: &[Vec<u8>],
    verdicts: &mut [Option<Verdict>],
) -> Result<(), EngineError> {
    let missing = keys.iter().zip(verdicts).filter_map(|(key, verdict)| match verdict {
        Some(Verdict::Differs(found)) if found.items.iter().any(|item| item.kind == Kind::Missing) => {
            let command = scan_command(&found.type_name)?;
            Some(Asked { key, command, cursor: b"0".to_vec(), verdict })
        }
        _ => None,
    });
    let mut asked: Vec<Asked> = missing.collect();
    if asked.is_empty() {
        return Ok(());
    }
    // None: too large together; each by itself, then.
    let pages = pages(looker, db, &asked, COUNT_FIRST).await?;
    let mut pages = pages.map(Vec::into_iter);
    for one in &mut asked {
        let mut page = pages.as_mut().and_then(Iterator::next).unwrap_or_else(|| Page::Nothing(b"0".to_vec()));
        while let Page::Nothing(cursor) = page {
            one.cursor = cursor;
            let next = self::pages(looker, db, std::slice::from_ref(one), COUNT_LATER).await?;
            // What does not fit is an element.
            page = next.and_then(|mut pages| pages.pop()).unwrap_or(Page::Element);
        }
        if matches!(page, Page::End) {
            *one.verdict = Some(Verdict::Gone);
        }
    }
    Ok(())
}

/// A key, where its scan stands, and what was thought of it.
struct Asked<'a> {
    key: &'a [u8],
    command: &'static [u8],
    cursor: Vec<u8>,
    verdict: &'a mut Option<Verdict>,
}

/// How a collection is scanned whose members may expire one by one; none: others are removed with their last element.
fn scan_command(type_name: &str) -> Option<&'static [u8]> {
    match type_name {
        "hash" => Some(b"HSCAN"),
        "set" => Some(b"SSCAN"),
        _ => None,
    }
}

enum Page {
    /// It has one, or is something else by now.
    Element,
    /// Nothing here; the next cursor.
    Nothing(Vec<u8>),
    End,
}

/// One page of each key. None: they take more memory than allowed.
async fn pages(
    looker: &mut Looker,
    db: u32,
    asked: &[Asked<'_>],
    count: &[u8],
) -> Result<Option<Vec<Page>>, EngineError> {
    let mut commands = Commands::new();
    asked.iter().for_each(|one| commands.push(&[one.command, one.key, &one.cursor, b"COUNT", count]));
    let replies = match looker.source.ask(db, &commands).await {
        Ok(replies) => replies,
        Err(AskError::TooLarge) => return Ok(None),
        Err(AskError::Engine(error)) => return Err(error),
    };
    looker.pace(0).await;
    let mut pages = Vec::with_capacity(replies.len());
    for reply in replies {
        looker.check_read(&reply)?;
        pages.push(match scan_reply(reply) {
            Some((next, elements)) if elements.is_empty() && next == b"0" => Page::End,
            Some((next, elements)) if elements.is_empty() => Page::Nothing(next),
            _ => Page::Element,
        });
    }
    Ok(Some(pages))
}
