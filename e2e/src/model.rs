//! The model: what a CO may rely upon, whatever sequence of calls and mishaps comes.
//!
//! | module | owns |
//! |---|---|
//! | [`book`] | PURE: volumes as the CO believes them to be, and what each call must come to |
//! | [`mishap`] | PURE: what can go wrong |
//! | [`step`] | PURE: what can happen, how often, and how a sequence is made |
//! | [`player`] | EFFECT: takes steps on a [`Plane`](crate::plane::Plane), and repeats calls as a CO does |
//! | [`detour`] | PURE: other calls in the place of those that a plane cannot have |
//! | [`surroundings`] | PURE: what a NAS has besides, what it says of itself, what people do there |
//! | [`people`] | EFFECT: those as steps |
//! | [`ordeal`] | EFFECT: steps that are stories of their own |
//! | [`figures`] | PURE: how fast it was |
//! | [`judge`] | PURE: compares the book with what is seen |
//!
//! A sequence is the same for every plane, and a value: one that found a bug is kept as JSON in `e2e/regressions`.

pub mod environment;
mod environment_steps;
pub mod executor;
mod fallback;
mod fault;
pub mod invariants;
pub mod reference_model;
mod scenarios;
pub mod stats;
pub mod step;
