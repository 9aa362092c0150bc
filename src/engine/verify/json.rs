//! JSON documents: equal if they mean the same, whatever their text.
//!
//! At the target a document is one, or, where the job was told so (`--on-unsupported json=string`), its text as a string.

use super::difference::{Item, Kind, brief};
use super::image::{into_bytes, print_of};
use super::look::{Found, JSON_TYPE, Looker, Verdict, changed};
use super::peer::AskError;
use super::wire::Commands;
use crate::redis::value::Value;
use serde_json::Value as Document;

pub async fn compare(looker: &mut Looker, db: u32, key: &[u8]) -> Result<Verdict, AskError> {
    let (mut at_source, mut at_target) = (Commands::new(), Commands::new());
    at_source.push(&[b"JSON.GET", key]);
    at_target.push(&[b"JSON.GET", key]);
    at_target.push(&[b"GET", key]);
    let (source, target) = looker.each(db, &at_source, &at_target).await?;
    // Of the target's two answers one is an error.
    for replies in [&source, &target] {
        if !replies.iter().any(|reply| matches!(reply, Value::Bulk(_) | Value::Null)) {
            replies.iter().try_for_each(|reply| looker.check_read(reply))?;
        }
    }
    let texts = (source.into_iter().find_map(into_bytes), target.into_iter().find_map(into_bytes));
    let (Some(source), Some(target)) = texts else { return Ok(changed(JSON_TYPE)) };
    let (source_document, target_document) = (parse(&source), parse(&target));
    if source == target || (source_document.is_some() && source_document == target_document) {
        return Ok(Verdict::Equal);
    }
    let item = Item::new(Kind::Value).values(Some(brief(&source)), Some(brief(&target)));
    let mut found = Found::new(JSON_TYPE, vec![item]);
    found.source.print = Some(print(source_document, source));
    found.target.print = Some(print(target_document, target));
    Ok(Verdict::Differs(found))
}

fn parse(text: &[u8]) -> Option<Document> {
    serde_json::from_slice(text).ok()
}

/// Of the meaning, where there is one.
fn print(document: Option<Document>, text: Vec<u8>) -> u64 {
    print_of(&document.map_or(text, |document| document.to_string().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meaning_counts() {
        let of = |text: &str| print(parse(text.as_bytes()), text.as_bytes().to_vec());
        assert_eq!(of(r#"{"a":1,"b":[2, 3]}"#), of(r#"{"b":[2,3],"a":1}"#));
        assert_ne!(of("[1,2]"), of("[2,1]"));
        assert_ne!(of("{"), of("{}"));
    }
}
