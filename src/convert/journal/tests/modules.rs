//! What records of modules (JSON, filters, search) become, by target and policy.

use super::super::*;
use super::support::*;

#[test]
fn modules_by_target() {
    check(
        &["stack"],
        &[
            ("JSON.SET k $ {}", "B DEL k | B JSON.SET k $ {}"),
            ("JSON.SET k $.a 1", "G JSON.SET k $.a 1"),
            ("JSON.SET k . 1 NX", "G EVAL <script> 1 k 1"),
            ("JSON.SET k $.a 1 NX", "G JSON.SET k $.a 1 NX"),
            ("JSON.SET k . 1 xx", "G EVAL <script> 1 k 1"),
            ("JSON.SET k $.a 1 XX", "G JSON.SET k $.a 1 XX"),
            ("JSON.MSET a $ 1 b $.x 2", "B DEL a | G JSON.MSET a $ 1 b $.x 2"),
            ("JSON.MSET a $.x 1 a $ 2", "G JSON.MSET a $.x 1 a $ 2"),
            ("JSON.MSET a $ 1 b . 2", "B DEL a b | B JSON.MSET a $ 1 b . 2"),
            ("json.del k", "G JSON.DEL k"),
            ("JSON.FORGET k $.a", "G JSON.FORGET k $.a"),
            ("JSON.MERGE k $.a 1", "G JSON.MERGE k $.a 1"),
            ("JSON.CLEAR k", "G JSON.CLEAR k"),
            ("JSON.TOGGLE k $.a", "G JSON.TOGGLE k $.a"),
            ("JSON.NUMINCRBY k $.a 1", "G JSON.NUMINCRBY k $.a 1"),
            ("JSON.NUMMULTBY k $.a 1", "G JSON.NUMMULTBY k $.a 1"),
            ("JSON.STRAPPEND k $.a \"x\"", "G JSON.STRAPPEND k $.a \\\"x\\\""),
            ("JSON.ARRAPPEND k $.a 1", "G JSON.ARRAPPEND k $.a 1"),
            ("JSON.ARRINSERT k $.a 0 1", "G JSON.ARRINSERT k $.a 0 1"),
            ("JSON.ARRPOP k $.a", "G JSON.ARRPOP k $.a"),
            ("JSON.ARRTRIM k $.a 0 1", "G JSON.ARRTRIM k $.a 0 1"),
            ("BF.RESERVE k 0.1 100", "G BF.RESERVE k 0.1 100"),
            ("BF.ADD k a", "G BF.ADD k a"),
            ("BF.MADD k a b", "G BF.MADD k a b"),
            ("BF.LOADCHUNK k 1 x", "<refused Filters>"),
            ("CF.RESERVE k 100", "G CF.RESERVE k 100"),
            ("CF.ADD k a", "G CF.ADD k a"),
            ("CF.ADDNX k a", "G CF.ADDNX k a"),
            ("CF.INSERT k ITEMS a", "G CF.INSERT k ITEMS a"),
            ("CF.INSERTNX k ITEMS a", "G CF.INSERTNX k ITEMS a"),
            ("CF.DEL k a", "G CF.DEL k a"),
            ("CF.COMPACT k", "G CF.COMPACT k"),
            ("CMS.INITBYDIM k 10 5", "G CMS.INITBYDIM k 10 5"),
            ("CMS.INITBYPROB k 0.1 0.1", "G CMS.INITBYPROB k 0.1 0.1"),
            ("CMS.INCRBY k a 1", "G CMS.INCRBY k a 1"),
            ("CMS.MERGE d 2 a b", "G CMS.MERGE d 2 a b"),
            ("CMS.MERGE a b", "<Truncated>"),
            ("TOPK.RESERVE k 5", "G TOPK.RESERVE k 5"),
            ("TOPK.ADD k a", "G TOPK.ADD k a"),
            ("TOPK.INCRBY k a 1", "G TOPK.INCRBY k a 1"),
            ("FT.CREATE i SCHEMA a TEXT", "<Search>"),
            ("FT.ALTER i SCHEMA ADD a TEXT", "<Search>"),
            ("FT.DROPINDEX i", "<Search>"),
            ("FT.SYNUPDATE i g a", "<Search>"),
        ],
    );
    check(
        &["7.0", "v9.0"],
        &[
            ("JSON.SET k $ {}", "<refused Json>"),
            ("JSON.MSET k $ {}", "<refused Json>"),
            ("JSON.ARRPOP k", "<refused Json>"),
            ("BF.ADD k a", "<refused Filters>"),
            ("CMS.MERGE a b", "<refused Filters>"),
            ("FT.CREATE i SCHEMA a TEXT", "<Search>"),
        ],
    );
    check_skip(
        &["7.0"],
        &[
            ("JSON.SET k $ {}", "B DEL k | <left out Json>"),
            ("JSON.SET k . {} XX", "B DEL k | <left out Json>"),
            ("JSON.SET k $ {} NX", "<left out Json>"),
            ("JSON.SET k $.a {}", "<left out Json>"),
            ("JSON.MSET a $ 1 b $.x 2 c . 3", "B DEL a c | <left out Json>"),
            ("JSON.MSET b $.x 2", "<left out Json>"),
            ("TOPK.ADD k a", "<left out Filters>"),
        ],
    );
}

#[test]
fn json_as_strings() {
    let policy =
        Policy { by_kind: vec![(Kind::Json, Action::Refuse), (Kind::Json, Action::AsString)], skip_all: false };
    let rows = [
        ("JSON.SET k $ {}", "B SET k {}"),
        ("JSON.MSET a $ 1 b . 2", "B SET a 1 | B SET b 2"),
        ("JSON.SET k $.a 1", "<left out Json>"),
        ("JSON.DEL k", "B DEL k"),
        ("JSON.DEL k $.a", "<left out Json>"),
        ("JSON.MERGE k $ {}", "<left out Json>"),
    ];
    for (line, expected) in rows {
        assert_eq!(shown("7.0", &policy, line), expected, "{line}");
    }
}

#[test]
fn a_document_of_an_old_source_keeps_its_expiry() {
    for (release, target, line, expected) in [
        ("df-v1.32.0", "stack", "JSON.SET k $ {}", "B JSON.SET k $ {}"),
        ("df-v1.32.0", "stack", "JSON.SET k . 1 XX", "G JSON.SET k . 1 XX"),
        ("df-v1.32.0", "stack", "JSON.MSET a $ 1", "B JSON.MSET a $ 1"),
        ("df-v1.32.0", "stackc", "JSON.MSET foo $ 1", "B@12182 JSON.SET foo $ 1"),
        ("df-v1.32.0", "7.0", "JSON.SET k $ {}", "B SET k {} KEEPTTL"),
        ("df-v1.33.0", "stack", "JSON.SET k $ {}", "B DEL k | B JSON.SET k $ {}"),
        ("df-v1.33.0", "7.0", "JSON.SET k $ {}", "B SET k {}"),
        ("f8eca6d0b", "7.0", "JSON.SET k $ {}", "B SET k {}"),
    ] {
        let policy = Policy { by_kind: vec![(Kind::Json, Action::AsString)], skip_all: false };
        let mut translator = translator(target, policy);
        translator.set_source(crate::dragonfly::session::Release::parse(release));
        let (_, sent) = run(&mut translator, 0, &split(line));
        assert_eq!(sent.lines().join(" | "), expected, "{line} of {release} on {target}");
    }
}

/// Whatever the target has, an index is listed, once of all flows.
#[test]
fn indexes_are_listed_by_flow_0() {
    let dropped = Ok(Outcome::Dropped(DropReason::Search));
    for target in ["stack", "7.0"] {
        for (flow, listed) in [(0, &["i", "j"][..]), (1, &[])] {
            let capabilities = Arc::new(capabilities(target));
            let mut translator =
                JournalTranslator::new(FlowId(flow), capabilities, Arc::new(Policy::default()), 1 << 20);
            for line in
                ["FT.CREATE i SCHEMA a TEXT", "FT.ALTER i SCHEMA ADD b TEXT", "FT.SYNUPDATE j g a", "FT.DROPINDEX k"]
            {
                assert_eq!(run(&mut translator, 7, &split(line)).0, dropped, "{line}");
            }
            let mut keys: Vec<_> = translator.notes().take().into_iter().map(|note| note.key).collect();
            keys.dedup();
            assert_eq!(keys.iter().map(|key| String::from_utf8_lossy(key)).collect::<Vec<_>>(), listed, "{target}");
        }
    }
}
