//! Every row of the table, on several targets; hostile records; the invariants of the module header.

mod captures;
mod floats;
mod forms;
mod outputs;
mod repeats;
mod replay;
mod robust;
mod server;
mod support;
