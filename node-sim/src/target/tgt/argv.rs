//! PURE: what `tgtadm` is told, one command each.

use std::fmt;
use std::net::SocketAddr;

use crate::target::LogicalUnit;

/// One change of the daemon.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Step {
    NewTarget {
        tid: u32,
        iqn: String,
    },
    /// With its units and sessions.
    DeleteTarget {
        tid: u32,
    },
    NewUnit {
        tid: u32,
        lun: u16,
        file: String,
    },
    /// What the unit says of itself.
    Describe {
        tid: u32,
        lun: u16,
        params: String,
    },
    /// The unit's commands wait from now on.
    Offline {
        tid: u32,
        lun: u16,
    },
    /// Opens the unit's file anew, which is when the daemon looks how large it is, and lets its commands go on.
    Reopen {
        tid: u32,
        lun: u16,
        file: String,
        /// What is to be found there; the daemon is not told.
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
    /// Lets any initiator in.
    Admit {
        tid: u32,
    },
    /// Lets no initiator in; sessions go on.
    Shut {
        tid: u32,
    },
    NewPortal(SocketAddr),
    DeletePortal(SocketAddr),
}

/// An account as a target knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Account {
    pub(super) user: String,
    /// The target proves itself with it, instead of the initiator.
    pub(super) outgoing: bool,
}

impl Step {
    /// The command's arguments, but for the control port.
    pub(super) fn argv(&self) -> Vec<String> {
        let words = |fixed: &str| -> Vec<String> {
            ["--lld", "iscsi"]
                .into_iter()
                .chain(fixed.split(' '))
                .map(ToOwned::to_owned)
                .collect()
        };
        // Whatever may hold a blank is pushed as a word of its own.
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

/// As the command line, without its password.
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

/// A unit's parameters: vendor, product, revision, serial and the NAA. Tgt makes the NAA of a `scsi_id` that is `3` and
/// 32 hex digits.
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

/// The caching mode page (SBC-3, page 8, 18 bytes): byte 2 has WCE, the volatile write cache, in bit 2; the rest is what tgt has
/// there by itself.
fn caching(unit: &LogicalUnit) -> String {
    let wce = if unit.write_cache { "0x14" } else { "0x10" };
    format!("mode_page=8:0:18:{wce}:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0")
}

/// Tgt announces UNMAP for a unit that it is told is thin, and punches holes then.
pub(super) fn thinness(unit: &LogicalUnit) -> String {
    format!("thin_provisioning={}", u8::from(unit.unmap))
}

/// What `--op show` tells as the unit's SCSI ID once it is described.
pub(super) fn scsi_id(unit: &LogicalUnit) -> String {
    format!("3{}", unit.naa)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_that_were_tried_by_hand() {
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
    fn a_blank_in_a_name_splits_no_word_and_no_password_is_shown() {
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
