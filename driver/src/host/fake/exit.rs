//! How the fake host's programs end.

use super::Exit;

pub(super) fn end(status: i32) -> Exit {
    Exit {
        status,
        ..Exit::default()
    }
}

pub(super) fn say(stdout: String) -> Exit {
    Exit {
        stdout,
        ..Exit::default()
    }
}
