//! The controller of the shipped driver against a simulated NAS: a test for each section of
//! design.md that binds it. None needs root.

mod controller {
    mod aliases;
    mod attaching;
    mod budget;
    mod common;
    mod contending;
    mod creating;
    mod crowd;
    mod deleting;
    mod disabled;
    mod edited;
    mod former;
    mod growing;
    mod hanging;
    mod identity;
    mod installing;
    mod kept;
    mod listing;
    mod login;
    mod losing;
    mod mark;
    mod proving;
    mod rivals;
    mod room;
    mod together;
    mod unknown;
    mod wire;
}
