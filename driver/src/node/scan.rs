//! Scans and rescans. Size and serial in sysfs are cached by the kernel, so each disk is rescanned before they are used; and a
//! session made with `node.session.scan=manual` has no disk until its logical unit is scanned.
//!
//! Done by writing to sysfs, which affects only the volume's own logical unit and starts no program. If this process may not
//! write there, the fallback is `iscsiadm --rescan`, which attaches every logical unit of the target.

use super::Machine;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, SysfsWrite};
use crate::host::session::Session;
use crate::host::{Host, if_present, iscsiadm};

impl<H: Host> Machine<H> {
    /// Attaches the logical unit `lun` of a session and no other, or rescans it if it is already attached. False if the session
    /// has lost its target, or its disk is not running.
    pub(super) async fn scan(&self, session: &Session, lun: u16) -> Result<bool, Error> {
        let doing = format!("attaching logical unit {lun} of {session}");
        if !self.rescan_answered(session).await? {
            return Ok(false);
        }
        let known = self.disks_of(std::slice::from_ref(session)).await?;
        if known.iter().any(|disk| disk.lun == lun) {
            return Ok(true);
        }
        let written = match self.scsi_host(session).await? {
            // Channel and target are 0: iscsi_tcp makes a SCSI host for each session.
            Some(host) => {
                let file = format!("/sys/class/scsi_host/{host}/scan");
                let unit = format!("0 0 {lun}");
                disk::write_sysfs(&self.host, &file, &unit)
                    .await
                    .context(&doing)?
            }
            None => SysfsWrite::NotAllowed,
        };
        if written == SysfsWrite::NotAllowed {
            self.run(&doing, iscsiadm::rescan(session.id)).await?;
        }
        self.is_alive(session).await
    }

    /// Rescans the disks of a session: the kernel re-reads their size and serial.
    pub(super) async fn rescan(&self, session: &Session) -> Result<(), Error> {
        if self.rescan_answered(session).await? {
            Ok(())
        } else {
            Err(no_answer(session))
        }
    }

    /// The same; false if the target or the disk did not answer. The kernel accepts the write even if the target is unreachable,
    /// so the session's state is checked afterwards.
    pub(super) async fn rescan_answered(&self, session: &Session) -> Result<bool, Error> {
        // The rescan of a lost session would only block until its replacement timeout.
        if !session.alive {
            return Ok(false);
        }
        let doing = format!("rescanning session {}", session.id);
        for disk in self.disks_of(std::slice::from_ref(session)).await? {
            match disk.rescan(&self.host).await.context(&doing)? {
                SysfsWrite::Accepted => {}
                SysfsWrite::NotRunning => return Ok(false),
                SysfsWrite::NotAllowed => {
                    self.run(&doing, iscsiadm::rescan(session.id)).await?;
                    break;
                }
            }
        }
        self.is_alive(session).await
    }

    async fn is_alive(&self, session: &Session) -> Result<bool, Error> {
        let doing = format!("reading {session}");
        let now = self.session_now(session.id).await.context(doing)?;
        Ok(now.is_some_and(|now| now.alive && now.target == session.target))
    }

    /// The session's SCSI host: `host4`.
    async fn scsi_host(&self, session: &Session) -> Result<Option<String>, Error> {
        let name = format!("session{}", session.id);
        // `resolve` leaves the last component unresolved, so this names a file inside: …/host4/session1/power.
        let inside = format!("/sys/class/iscsi_session/{name}/device/power");
        let real = if_present(self.host.resolve(&inside).await)
            .context(format!("looking for the SCSI host of {name}"))?;
        Ok(real.as_deref().and_then(|path| host_in(path, &name)))
    }
}

/// The error for a session whose rescan got no answer.
pub(super) fn no_answer(session: &Session) -> Error {
    Error::NotReady {
        what: session.to_string(),
        seen: "it has lost its target, or its disk is not running: its size and serial may be out of date"
            .to_owned(),
    }
}

fn host_in(path: &str, session: &str) -> Option<String> {
    let (above, _) = path.split_once(&format!("/{session}/"))?;
    let host = above.rsplit('/').next()?;
    let number = host.strip_prefix("host")?;
    number.parse::<u32>().ok().map(|_| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::host_in;

    #[test]
    fn the_host_is_the_directory_above_the_session() {
        let real = "/sys/devices/platform/host12/session3/power";
        assert_eq!(host_in(real, "session3").as_deref(), Some("host12"));
        for (path, session) in [
            (real, "session1"),
            ("/sys/platform/session3/power", "session3"),
            ("/hostx/session3/power", "session3"),
        ] {
            assert_eq!(host_in(path, session), None, "{path}");
        }
    }
}
