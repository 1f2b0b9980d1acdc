//! Attaching one logical unit. The session was made with `node.session.scan=manual`, so the login attached nothing.

use super::{Doing, Machine};
use crate::error::Error;
use crate::host::disk::{self, Session};
use crate::host::{Host, if_present};

impl<H: Host> Machine<H> {
    /// Attaches the logical unit `lun` of a session and no other; or asks it anew, when there are disks already.
    pub(super) async fn scan(&self, session: &Session, lun: u16) -> Result<(), Error> {
        let doing = format!("attaching logical unit {lun} of {session}");
        let known = disk::disks(&self.host, session.id).await.doing(&doing)?;
        if !known.is_empty() {
            return self.rescan(session).await;
        }
        let file = match self.scsi_host(session).await? {
            Some(host) => format!("/sys/class/scsi_host/{host}/scan"),
            None => return self.rescan(session).await,
        };
        if if_present(self.host.stat(&file).await)
            .doing(&doing)?
            .is_none()
        {
            return self.rescan(session).await;
        }
        // Channel and target are 0: iscsi_tcp makes a SCSI host for each session.
        self.host
            .write_attribute(&file, &format!("0 0 {lun}"))
            .await
            .doing(&doing)
    }

    /// The session's SCSI host: `host4`.
    async fn scsi_host(&self, session: &Session) -> Result<Option<String>, Error> {
        let name = format!("session{}", session.id);
        // A file in the session's folder, for the sake of the folder: …/host4/session1/power.
        let inside = format!("/sys/class/iscsi_session/{name}/device/power");
        let real = if_present(self.host.resolve(&inside).await)
            .doing(format!("looking for the SCSI host of {name}"))?;
        Ok(real.as_deref().and_then(|path| host_in(path, &name)))
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
    fn the_host_is_the_folder_above_the_session() {
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
