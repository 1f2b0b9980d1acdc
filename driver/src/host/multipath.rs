//! `multipathd` and `multipath`: command builders and the interpretation of their output. Pure.
//!
//! Seen with multipath-tools 0.9.4: the client exits with 1 and prints nothing if no daemon runs, and prints `timeout receiving
//! packet` if the daemon does not answer. Since 0.11 it prints that it failed to connect, and Red Hat's prints several lines if
//! it finds no configuration: so its output is not evidence, and the driver looks for the daemon's process instead. `add map`
//! requires a WWID; all other commands take the kernel's name (`dm-0`) or the map's, but no WWID if the map has an alias. The
//! default `find_multipaths strict` creates no map unless it is told to.

use super::{Cmd, Exit, HostError};

/// The daemon, whose program is also its client.
pub const DAEMON: &str = "multipathd";
/// The program that removes a map; it works without the daemon.
pub const PROGRAM: &str = "multipath";

/// Checks whether the daemon answers.
pub fn show_daemon() -> Cmd {
    multipathd().args(["show", "daemon"])
}

/// The state of the daemon.
#[derive(Debug)]
pub enum Daemon {
    /// It answers.
    Runs,
    /// The program is not installed.
    Missing,
    /// It does not answer: it is not running, or hangs.
    Silent(HostError),
}

/// Interprets the result of [`show_daemon`].
///
/// # Errors
/// The client could not be run.
pub fn read_daemon(exit: Result<Exit, HostError>) -> Result<Daemon, HostError> {
    match exit {
        Err(HostError::NotStarted { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(Daemon::Missing)
        }
        Err(hung @ HostError::DeadlineExceeded { .. }) => Ok(Daemon::Silent(hung)),
        Err(other) => Err(other),
        Ok(exit) if exit.status == 0 => Ok(Daemon::Runs),
        Ok(exit) => Ok(Daemon::Silent(exit.failed(DAEMON))),
    }
}

/// True if [`add_path`] failed because the daemon's configuration excludes the disk.
pub fn is_excluded(exit: &Exit) -> bool {
    exit.stdout.trim() == "blacklisted"
}

/// Lists every disk that the daemon manages, with its WWID.
pub fn show_paths() -> Cmd {
    multipathd().args(["show", "paths", "raw", "format", "%d %w"])
}

/// The WWID of the disk `name` in the output of [`show_paths`].
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

/// Creates a map over all disks with a WWID, even if the daemon would not create one by itself.
pub fn add_map(wwid: &str) -> Cmd {
    multipathd().args(["add", "map", wwid])
}

/// Adds a disk to its map.
pub fn add_path(disk: &str) -> Cmd {
    multipathd().args(["add", "path", disk])
}

/// Resizes a map to the size of its paths.
pub fn resize(map: &str) -> Cmd {
    multipathd().args(["resize", "map", map])
}

/// Makes I/O of a map fail if it has no path left, whatever the configuration says.
pub fn disable_queueing(map: &str) -> Cmd {
    multipathd().args(["disablequeueing", "map", map])
}

/// Restores the queueing mode of the configuration.
pub fn restore_queueing(map: &str) -> Cmd {
    multipathd().args(["restorequeueing", "map", map])
}

/// Removes an unused map.
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
    fn commands_have_the_arguments_of_multipath_tools() {
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
    fn any_output_of_a_failed_client_means_silent() {
        assert!(matches!(
            read_daemon(Ok(exit(0, "pid 375 idle\n"))),
            Ok(Daemon::Runs)
        ));
        for output in [
            "\n",
            "timeout receiving packet\n",
            "ERROR: failed to connect to multipathd\n",
            "/etc/multipath.conf does not exist, blacklisting all devices.\n",
        ] {
            let read = read_daemon(Ok(exit(1, output)));
            assert!(matches!(read, Ok(Daemon::Silent(_))), "{output}");
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
