//! Errors that say no more than that a command sent again had been executed before.
//!
//! After a lost connection, [`Class::Blind`](super::Class) commands are sent again in order. Nearly all of them answer
//! as they did the first time; these do not, and leave the target as it should be.

/// Whether `error` (without its `-`) of a command sent a second time only says that the first time had succeeded.
/// `name`: upper case.
pub fn says_done_before(name: &[u8], error: &[u8]) -> bool {
    match name {
        b"XADD" => error.starts_with(b"ERR The ID specified in XADD is equal or smaller"),
        b"XGROUP" => error.starts_with(b"BUSYGROUP"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_errors_of_a_second_time() {
        let error = b"ERR The ID specified in XADD is equal or smaller than the target stream top item";
        assert!(says_done_before(b"XADD", error));
        assert!(says_done_before(b"XGROUP", b"BUSYGROUP Consumer Group name already exists"));
        assert!(!says_done_before(b"XADD", b"OOM command not allowed"));
        assert!(!says_done_before(b"SET", error));
    }
}
