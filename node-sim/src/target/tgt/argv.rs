//! PURE: the `tgtadm` commands, as [`Step`]s and their arguments.

use std::fmt;
use std::net::SocketAddr;

use crate::target::LogicalUnit;

/// One change of the daemon's state, by one `tgtadm` command.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Step {
    NewTarget {
        tid: u32,
        iqn: String,
    },
    /// Also deletes its units and drops its sessions.
    DeleteTarget {
        tid: u32,
    },
    NewUnit {
        tid: u32,
        lun: u16,
        file: String,
    },
    /// Sets the unit's INQUIRY data.
    Describe {
        tid: u32,
        lun: u16,
        params: String,
    },
    /// From now on commands to the unit wait.
    Offline {
        tid: u32,
        lun: u16,
    },
    /// Reopens the unit's file, at which tgtd reads its size, and resumes waiting commands.
    Reopen {
        tid: u32,
        lun: u16,
        file: String,
        /// The expected size in bytes; not an argument of the command.
        size: u64,
    },
    DeleteUnit {
        tid: u32,
        lun: u16,
    },
    NewAccount {
        user: String,
        password: String,
    },
    DeleteAccount {
        user: String,
    },
    Bind {
        tid: u32,
        account: Account,
    },
    Unbind {
        tid: u32,
        account: Account,
    },
    /// Allows logins of any initiator.
    Admit {
        tid: u32,
    },
    /// Refuses all logins; sessions continue.
    Shut {
        tid: u32,
    },
    NewPortal(SocketAddr),
    DeletePortal(SocketAddr),
}

/// A CHAP account of a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Account {
    pub(super) user: String,
    /// Mutual CHAP: the target authenticates itself with it, not the initiator.
    pub(super) outgoing: bool,
}

impl Step {
    /// The command's arguments, without the control port.
    pub(super) fn argv(&self) -> Vec<String> {
        let words = |fixed: &str| -> Vec<String> {
            ["--lld", "iscsi"]
                .into_iter()
                .chain(fixed.split(' '))
                .map(ToOwned::to_owned)
                .collect()
        };
        // Values that may have spaces are separate arguments.
        let with = |fixed: String, last: &[&str]| {
            let mut argv = words(&fixed);
            argv.extend(last.iter().map(|word| (*word).to_owned()));
            argv
        };
        let bind = |op: &str, tid: &u32, account: &Account| {
            let mut argv = with(
                format!("--op {op} --mode account --tid {tid} --user"),
                &[&account.user],
            );
            if account.outgoing {
                argv.push("--outgoing".to_owned());
            }
            argv
        };
        match self {
            Self::NewTarget { tid, iqn } => with(
                format!("--op new --mode target --tid {tid} --targetname"),
                &[iqn],
            ),
            Self::DeleteTarget { tid } => {
                words(&format!("--op delete --mode target --tid {tid} --force"))
            }
            Self::NewUnit { tid, lun, file } => with(
                format!(
                    "--op new --mode logicalunit --tid {tid} --lun {lun} --bstype rdwr --backing-store"
                ),
                &[file],
            ),
            Self::Describe { tid, lun, params } => with(
                format!("--op update --mode logicalunit --tid {tid} --lun {lun} --params"),
                &[params],
            ),
            Self::Offline { tid, lun } => words(&format!(
                "--op update --mode logicalunit --tid {tid} --lun {lun} --params online=0"
            )),
            Self::Reopen { tid, lun, file, .. } => with(
                format!("--op update --mode logicalunit --tid {tid} --lun {lun} --params"),
                &[&format!("path={file}")],
            ),
            Self::DeleteUnit { tid, lun } => words(&format!(
                "--op delete --mode logicalunit --tid {tid} --lun {lun}"
            )),
            Self::NewAccount { user, password } => with(
                "--op new --mode account --user".to_owned(),
                &[user, "--password", password],
            ),
            Self::DeleteAccount { user } => {
                with("--op delete --mode account --user".to_owned(), &[user])
            }
            Self::Bind { tid, account } => bind("bind", tid, account),
            Self::Unbind { tid, account } => bind("unbind", tid, account),
            Self::Admit { tid } => words(&format!(
                "--op bind --mode target --tid {tid} --initiator-address ALL"
            )),
            Self::Shut { tid } => words(&format!(
                "--op unbind --mode target --tid {tid} --initiator-address ALL"
            )),
            Self::NewPortal(portal) => {
                words(&format!("--op new --mode portal --param portal={portal}"))
            }
            Self::DeletePortal(portal) => words(&format!(
                "--op delete --mode portal --param portal={portal}"
            )),
        }
    }
}

/// The command line, without the password.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut argv = self.argv();
        if matches!(self, Self::NewAccount { .. }) {
            argv.pop();
            argv.push("********".to_owned());
        }
        write!(f, "tgtadm {}", argv.join(" "))
    }
}

/// A unit's parameters: vendor, product, revision, serial number and the NAA. tgt derives the NAA from a `scsi_id` of `3` and 32
/// hex digits.
pub(super) fn description(unit: &LogicalUnit) -> String {
    format!(
        "vendor_id={},product_id={},product_rev={},scsi_sn={},scsi_id={},{},{}",
        unit.vendor,
        unit.product,
        unit.revision,
        unit.serial,
        scsi_id(unit),
        caching(unit),
        thinness(unit)
    )
}

/// The caching mode page (SBC-3, page 8, 18 bytes): byte 2 has WCE, the volatile write cache, in bit 2; the rest is tgt's
/// default.
fn caching(unit: &LogicalUnit) -> String {
    let wce = if unit.write_cache { "0x14" } else { "0x10" };
    format!("mode_page=8:0:18:{wce}:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0")
}

/// For a thin unit tgt announces UNMAP, and punches holes.
pub(super) fn thinness(unit: &LogicalUnit) -> String {
    format!("thin_provisioning={}", u8::from(unit.unmap))
}

/// The unit's SCSI ID in `--op show`, after [`Step::Describe`].
pub(super) fn scsi_id(unit: &LogicalUnit) -> String {
    format!("3{}", unit.naa)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_arguments_of_tgtadm() {
        let check = |step: Step, want: &str| {
            assert_eq!(
                step.argv(),
                format!("--lld iscsi {want}").split(' ').collect::<Vec<_>>()
            );
        };
        let (tid, lun, file) = (3, 1, "/luns/1.img".to_owned());
        let account = |outgoing| Account {
            user: "joe".into(),
            outgoing,
        };
        check(
            Step::NewTarget {
                tid,
                iqn: "iqn.t".into(),
            },
            "--op new --mode target --tid 3 --targetname iqn.t",
        );
        check(
            Step::DeleteTarget { tid },
            "--op delete --mode target --tid 3 --force",
        );
        check(
            Step::NewUnit {
                tid,
                lun,
                file: file.clone(),
            },
            "--op new --mode logicalunit --tid 3 --lun 1 --bstype rdwr --backing-store /luns/1.img",
        );
        check(
            Step::Offline { tid, lun },
            "--op update --mode logicalunit --tid 3 --lun 1 --params online=0",
        );
        check(
            Step::Reopen {
                tid,
                lun,
                file,
                size: 1,
            },
            "--op update --mode logicalunit --tid 3 --lun 1 --params path=/luns/1.img",
        );
        check(
            Step::Bind {
                tid,
                account: account(true),
            },
            "--op bind --mode account --tid 3 --user joe --outgoing",
        );
        check(
            Step::Unbind {
                tid,
                account: account(false),
            },
            "--op unbind --mode account --tid 3 --user joe",
        );
        check(
            Step::Admit { tid },
            "--op bind --mode target --tid 3 --initiator-address ALL",
        );
        check(
            Step::NewPortal("[::1]:3260".parse().unwrap()),
            "--op new --mode portal --param portal=[::1]:3260",
        );
    }

    #[test]
    fn arguments_may_have_spaces_and_passwords_are_masked() {
        let step = Step::NewAccount {
            user: "a b".into(),
            password: "hush hush".into(),
        };
        let argv = step.argv();
        assert_eq!(argv[argv.len() - 3..], ["a b", "--password", "hush hush"]);
        assert_eq!(
            format!("{step:?}"),
            "tgtadm --lld iscsi --op new --mode account --user a b --password ********"
        );
    }
}
