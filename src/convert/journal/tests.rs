//! Every row of the table, on several targets; hostile records; the invariants of the module header.

mod outputs;
mod robust;
mod server;
mod support;
