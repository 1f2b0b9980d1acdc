//! What a NAS answers, beside what another does: `diff` asks both the same, `json_shape` judges; `record` writes down what one says.

pub mod diff;
mod fixture;
pub mod json_shape;
mod known;
mod reads;
pub mod record;
mod redact;
pub(crate) mod upstream;
