//! Exit codes by class. Scripts depend on them: a code never changes its meaning.

use crate::report::ExitClass;

/// The exit code of a class.
pub fn code(class: ExitClass) -> u8 {
    match class {
        ExitClass::Done => 0,
        ExitClass::Internal => 1,
        ExitClass::Usage => 2,
        ExitClass::Refused => 3,
        ExitClass::Source => 4,
        ExitClass::Target => 5,
        ExitClass::Corrupt => 6,
        ExitClass::System => 7,
        ExitClass::PositionLost => 8,
        ExitClass::CutoverNotReached => 9,
        ExitClass::Differs => 10,
        ExitClass::Interrupted => 130,
    }
}

/// The table for the help.
pub const HELP: &str = "\
Exit codes:
    0  done
    1  internal error
    2  wrong usage
    3  refused: before anything was written, or at the first key that the target cannot hold
    4  the source failed
    5  the target failed
    6  corrupt stream
    7  io_uring or the system
    8  position lost, a full sync is needed
    9  cutover not reached
   10  source and target differ
  130  interrupted";
