//! Sums of floats at real servers: as Dragonfly makes and writes them, down to the last digit.

use super::super::*;
use super::server::{Server, binaries};
use super::support::*;
use crate::lab::live::exec::float_text;
use crate::lab::rng::Rng;

/// Applies a record, which must succeed.
fn apply(server: &mut Server, translator: &mut JournalTranslator, line: &str) {
    let (result, sent) = run(translator, 0, &split(line));
    assert!(matches!(result, Ok(Outcome::Written { .. })), "{line}: {result:?}");
    for (_, bytes) in &sent.commands {
        let reply = server.send(bytes);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
}

fn text(value: f64) -> String {
    String::from_utf8(float_text(value)).unwrap()
}

/// Numbers of every kind: powers of two (whose neighbours are not equally far), of ten, below the normal ones, any bits.
fn numbers() -> Vec<f64> {
    let mut rng = Rng::new(17);
    let powers = (-1074..1024).step_by(7).map(|n| 2f64.powi(n)).chain([2f64.powi(-44), f64::MIN_POSITIVE, f64::MAX]);
    let tens = (-320..308).step_by(5).map(|n| format!("1e{n}").parse().unwrap());
    let edges = [1e-6, 9.999999e-7, 1e-7, 1e20, 999999999999999900000.0, 1e21, 5e-324, 0.1, -0.1, 4503599627370497.5];
    let random = std::iter::repeat_with(|| f64::from_bits(rng.next_u64())).filter(|n| n.is_finite()).take(1000);
    powers.chain(tens).chain(edges).chain(random).collect()
}

#[test]
fn sums_of_floats_are_dragonflys() {
    for binary in binaries() {
        let mut server = Server::start(&binary);
        let capabilities = server.capabilities();
        let field_expiry = capabilities.field_expiry;
        let mut translator = JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(skip_all()), 1 << 20);
        let (server, translator) = (&mut server, &mut translator);

        for _ in 0..3 {
            apply(server, translator, "INCRBYFLOAT k 0.1");
            apply(server, translator, "HINCRBYFLOAT h f 0.1");
        }
        assert_eq!(server.ask("GET k"), "0.30000000000000004");
        assert_eq!(server.ask("HGET h f"), "0.30000000000000004");
        for number in numbers() {
            server.ask("DEL n");
            apply(server, translator, &format!("INCRBYFLOAT n {number:e}"));
            assert_eq!(server.ask("GET n"), text(number), "{number:e}");
        }
        let mut total = 0.0;
        for step in [0.1, 0.2, 1e-7, 3.3, -0.7, 1e21, -1e21, 1e3, -1003.3] {
            total += step;
            apply(server, translator, &format!("HINCRBYFLOAT h total {step:e}"));
            assert_eq!(server.ask("HGET h total"), text(total), "{step:e}");
        }

        // Expiries stay.
        server.ask("PEXPIREAT k 4000000000000");
        apply(server, translator, "INCRBYFLOAT k 0.1");
        assert_eq!(server.ask("GET k"), "0.4");
        let left: i64 = server.ask("PTTL k").parse().unwrap();
        assert!(left > 1_000_000_000, "{left}");
        if field_expiry {
            server.ask("HPEXPIREAT h 4000000000000 FIELDS 1 f");
            apply(server, translator, "HINCRBYFLOAT h f 0.1");
            assert_eq!(server.ask("HPEXPIRETIME h FIELDS 2 f total"), "4000000000000 -1");
        }
        assert_eq!(server.ask("HGET h f"), if field_expiry { "0.4" } else { "0.30000000000000004" });
    }
}

/// Where scripts may not run, or not read, the command goes as it is.
#[test]
fn without_scripts_floats_are_added_by_the_target() {
    let lines = ["INCRBYFLOAT k 0.1", "HINCRBYFLOAT k f 0.1"];
    for lacks_eval in [true, false] {
        let mut capabilities = capabilities("8.0");
        if lacks_eval {
            capabilities.commands.remove("EVAL");
        } else {
            capabilities.scripts_add = false;
        }
        let mut translator =
            JournalTranslator::new(FlowId(0), Arc::new(capabilities), Arc::new(Policy::default()), 1 << 20);
        for line in lines {
            let (_, sent) = run(&mut translator, 0, &split(line));
            assert_eq!(sent.lines(), [format!("G {line}")]);
        }
    }
}
