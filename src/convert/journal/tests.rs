//! Every row of the table, on several targets; hostile records; the invariants of the module header.

mod captures;
mod expiries;
mod floats;
mod forms;
mod modules;
mod notes;
mod outputs;
mod payloads;
mod repeats;
mod replay;
mod robust;
mod server;
mod support;
