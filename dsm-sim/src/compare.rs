//! Compares the simulator with a real NAS: `diff` sends both the same calls and compares the replies by `json_shape`; `record`
//! is a recording proxy.

pub mod diff;
mod fixture;
pub mod json_shape;
mod known;
mod reads;
pub mod record;
mod redact;
pub(crate) mod upstream;
