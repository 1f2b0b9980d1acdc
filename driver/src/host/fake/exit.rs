//! How the fake host's programs end.

use super::Exit;

pub(super) fn exited(status: i32) -> Exit {
    Exit {
        status,
        ..Exit::default()
    }
}

pub(super) fn printed(stdout: String) -> Exit {
    Exit {
        stdout,
        ..Exit::default()
    }
}
