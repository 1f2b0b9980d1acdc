//! `multipathd` and `multipath`: command builders and the meaning of their answers. Pure.
//!
//! Seen with multipath-tools 0.9.4: the client ends with status 1 and says nothing when no daemon runs, and says `timeout
//! receiving packet` when one does not answer (since 0.11 it says that it failed to connect, and where Red Hat's finds no
//! configuration, several lines about that: so its words tell nothing, and whether there is a daemon is looked up); `add map` wants a WWID, all other commands the kernel's name (`dm-0`) or the
//! map's, and no WWID when the map has an alias. The default `find_multipaths strict` makes no map that nobody asked for.

use super::{Cmd, Exit, HostError};

/// The daemon, which is its own client.
pub const DAEMON: &str = "multipathd";
/// The program that removes a map, whether or not the daemon runs.
pub const PROGRAM: &str = "multipath";

/// Asks whether the daemon runs.
pub fn show_daemon() -> Cmd {
    multipathd().args(["show", "daemon"])
}

/// What came of asking the daemon.
#[derive(Debug)]
pub enum Daemon {
    /// It runs.
    Runs,
    /// There is no such program.
    Missing,
    /// It does not answer: it may not run, or hang.
    Silent(HostError),
}

/// What came of [`show_daemon`].
///
/// # Errors
/// Nobody could ask.
pub fn read_daemon(exit: Result<Exit, HostError>) -> Result<Daemon, HostError> {
    match exit {
        Err(HostError::NotStarted { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(Daemon::Missing)
        }
        Err(hung @ HostError::Overran { .. }) => Ok(Daemon::Silent(hung)),
        Err(other) => Err(other),
        Ok(exit) if exit.status == 0 => Ok(Daemon::Runs),
        Ok(exit) => Ok(Daemon::Silent(exit.failed(DAEMON))),
    }
}

/// True when what [`add_path`] said is that the daemon's configuration excludes the disk.
pub fn is_excluded(exit: &Exit) -> bool {
    exit.stdout.trim() == "blacklisted"
}

/// Lists every disk that the daemon does not ignore, with its WWID.
pub fn show_paths() -> Cmd {
    multipathd().args(["show", "paths", "raw", "format", "%d %w"])
}

/// The WWID of the disk `name` in what [`show_paths`] said.
///
/// # Errors
/// It failed.
pub fn read_wwid(exit: Exit, name: &str) -> Result<Option<String>, HostError> {
    let listed = exit.ok(DAEMON)?.stdout;
    Ok(listed.lines().find_map(|line| {
        let (disk, wwid) = line.trim().split_once(' ')?;
        let wwid = wwid.trim();
        (disk == name && !wwid.is_empty()).then(|| wwid.to_owned())
    }))
}

/// Makes a map over all disks of a WWID, also when the daemon would make none by itself.
pub fn add_map(wwid: &str) -> Cmd {
    multipathd().args(["add", "map", wwid])
}

/// Adds a disk to its map.
pub fn add_path(disk: &str) -> Cmd {
    multipathd().args(["add", "path", disk])
}

/// Makes a map as large as its paths.
pub fn resize(map: &str) -> Cmd {
    multipathd().args(["resize", "map", map])
}

/// Lets I/O of a map fail when no path is left, whatever the configuration says.
pub fn disable_queueing(map: &str) -> Cmd {
    multipathd().args(["disablequeueing", "map", map])
}

/// Lets a map do again what the configuration says.
pub fn restore_queueing(map: &str) -> Cmd {
    multipathd().args(["restorequeueing", "map", map])
}

/// Removes a map that nobody uses.
pub fn flush(name: &str) -> Cmd {
    Cmd::new(PROGRAM, 30).args(["-f", name])
}

fn multipathd() -> Cmd {
    Cmd::new(DAEMON, 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: i32, stdout: &str) -> Exit {
        Exit {
            status,
            stdout: stdout.to_owned(),
            ..Exit::default()
        }
    }

    #[test]
    fn commands_are_what_multipath_tools_want() {
        for (cmd, want) in [
            (show_daemon(), "multipathd show daemon"),
            (show_paths(), "multipathd show paths raw format %d %w"),
            (add_map("36001405ab"), "multipathd add map 36001405ab"),
            (add_path("sdb"), "multipathd add path sdb"),
            (resize("dm-0"), "multipathd resize map dm-0"),
            (
                disable_queueing("dm-0"),
                "multipathd disablequeueing map dm-0",
            ),
            (
                restore_queueing("dm-0"),
                "multipathd restorequeueing map dm-0",
            ),
            (flush("mpatha"), "multipath -f mpatha"),
        ] {
            assert_eq!(cmd.to_string(), want);
            assert!((1..=60).contains(&cmd.deadline.as_secs()));
        }
    }

    #[test]
    fn what_the_client_says_tells_nothing() {
        assert!(matches!(
            read_daemon(Ok(exit(0, "pid 375 idle\n"))),
            Ok(Daemon::Runs)
        ));
        for said in [
            "\n",
            "timeout receiving packet\n",
            "ERROR: failed to connect to multipathd\n",
            "/etc/multipath.conf does not exist, blacklisting all devices.\n",
        ] {
            let read = read_daemon(Ok(exit(1, said)));
            assert!(matches!(read, Ok(Daemon::Silent(_))), "{said}");
        }
        let not_started = |kind: std::io::ErrorKind| {
            Err(HostError::NotStarted {
                program: DAEMON,
                source: kind.into(),
            })
        };
        assert!(matches!(
            read_daemon(not_started(std::io::ErrorKind::NotFound)),
            Ok(Daemon::Missing)
        ));
        assert!(read_daemon(not_started(std::io::ErrorKind::PermissionDenied)).is_err());
        assert!(is_excluded(&exit(1, "blacklisted\n")) && !is_excluded(&exit(1, "fail\n")));
    }

    #[test]
    fn a_wwid_is_found_by_the_disk() {
        let listed = || exit(0, "sda 36001405aa\nsdab 36001405bb\nsdb \n");
        assert_eq!(
            read_wwid(listed(), "sda").unwrap().as_deref(),
            Some("36001405aa")
        );
        assert_eq!(
            read_wwid(listed(), "sdab").unwrap().as_deref(),
            Some("36001405bb")
        );
        assert_eq!(read_wwid(listed(), "sdb").unwrap(), None);
        assert_eq!(read_wwid(listed(), "sdc").unwrap(), None);
        assert!(read_wwid(exit(1, "fail\n"), "sda").is_err());
    }
}
