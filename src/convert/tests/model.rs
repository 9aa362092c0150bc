//! A small model of the target: random collections, written whole or in runs of any size with small limits, end in
//! exactly their elements, and no command is larger than allowed.

use super::build::*;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, PartialEq, Default)]
enum Value {
    #[default]
    None,
    List(Vec<Vec<u8>>),
    /// Set members (value empty), hash fields, sorted-set members with the text of their score.
    Map(BTreeMap<Vec<u8>, Vec<u8>>),
}

/// Applies commands about one key.
fn apply(out: &VecOut, limits: &Limits) -> Value {
    let mut value = Value::None;
    for (_, bytes) in out.commands() {
        let args = args(bytes);
        let elements = args.get(2..).unwrap_or_default();
        match args[0].as_slice() {
            b"DEL" => value = Value::None,
            b"RPUSH" => {
                if value == Value::None {
                    value = Value::List(vec![]);
                }
                let Value::List(list) = &mut value else { panic!("WRONGTYPE") };
                list.extend(elements.iter().cloned());
            }
            name @ (b"SADD" | b"HSET" | b"ZADD") => {
                if value == Value::None {
                    value = Value::Map(BTreeMap::new());
                }
                let Value::Map(map) = &mut value else { panic!("WRONGTYPE") };
                match name {
                    b"SADD" => map.extend(elements.iter().map(|member| (member.clone(), vec![]))),
                    b"HSET" => map.extend(elements.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()))),
                    _ => map.extend(elements.chunks(2).map(|pair| (pair[1].clone(), pair[0].clone()))),
                }
            }
            other => panic!("{}", escape::printable(other)),
        }
        assert!(elements.len() <= 2 * limits.command_elements_max);
        assert!(bytes.len() <= 2 * limits.command_bytes_max || elements.len() <= 2);
    }
    value
}

fn convert(object_type: ObjectType, elements: &[Vec<u8>], runs: &[usize], limits: Limits) -> Value {
    let mut converter = converter(redis(7, 0), "", limits);
    let mut out = VecOut::new();
    let meta = meta("k", object_type, None);
    if runs.is_empty() {
        let mut body = Vec::new();
        crate::redis::reencode::push_len(&mut body, elements.len() as u64);
        body.extend(elements.concat());
        converter.event(&Event::Whole { meta, body: &body }, NOW_MS, &mut out).unwrap();
        return apply(&out, &limits);
    }
    let object = ObjectId(1);
    converter.event(&Event::Begin { object, meta, count: elements.len() as u64 }, NOW_MS, &mut out).unwrap();
    let mut rest = elements;
    let mut sizes = runs.iter().cycle();
    while !rest.is_empty() {
        let (run, left) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        let event = Event::Run { object, stage: Stage::Elements, count: run.len() as u64, body: &run.concat() };
        converter.event(&event, NOW_MS, &mut out).unwrap();
        rest = left;
    }
    converter.event(&Event::End { object }, NOW_MS, &mut out).unwrap();
    assert_eq!(converter.tally().total().elements_written, elements.len() as u64);
    apply(&out, &limits)
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..60),
        2 => any::<i32>().prop_map(|number| number.to_string().into_bytes()),
        1 => (1usize..40_000).prop_map(|len| vec![b'x'; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn chunked_commands_hold_exactly_the_elements(
        texts in proptest::collection::vec((any_text(), any_text()), 1..60),
        runs in proptest::collection::vec(1usize..20, 0..4),
        command_elements_max in 1usize..20,
    ) {
        let limits = Limits { restore_bytes_max: 0, command_elements_max, command_bytes_max: 2048, ..Limits::default() };
        let set: Vec<Vec<u8>> = texts.iter().map(|(text, _)| string(text)).collect();
        let expected: BTreeMap<_, _> = texts.iter().map(|(text, _)| (text.clone(), vec![])).collect();
        prop_assert_eq!(convert(ObjectType::Set, &set, &runs, limits), Value::Map(expected));

        let hash: Vec<Vec<u8>> = texts.iter().map(|(field, value)| [string(field), string(value)].concat()).collect();
        let expected: BTreeMap<_, _> = texts.iter().cloned().collect();
        prop_assert_eq!(convert(ObjectType::Hash, &hash, &runs, limits), Value::Map(expected));

        // Plain nodes: each is one element.
        let list: Vec<Vec<u8>> = texts.iter().map(|(text, _)| [vec![1], string(text)].concat()).collect();
        let expected: Vec<_> = texts.iter().map(|(text, _)| text.clone()).collect();
        prop_assert_eq!(convert(ObjectType::ListNodes, &list, &runs, limits), Value::List(expected));
    }
}
