//! Tests of the shipped driver's controller against a simulated NAS, one module per topic of
//! design.md. None needs root.

mod controller {
    mod absent_vs_unknown;
    mod aliases;
    mod budget;
    mod chap;
    mod common;
    mod concurrency;
    mod create;
    mod delete;
    mod disabled;
    mod edited_replies;
    mod expand;
    mod first_install;
    mod former_node;
    mod free_space;
    mod hanging_nas;
    mod identity;
    mod list;
    mod locked_snapshots;
    mod locking;
    mod login;
    mod lost_replies;
    mod owner_tag;
    mod publish;
    mod request_limits;
    mod transport;
    mod two_controllers;
}
