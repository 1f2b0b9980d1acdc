//! PURE: computes the steps from the actual to the desired state of tgtd.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::argv::{self, Account, Step};
use super::show::{TgtState, Unit};
use crate::target::{Target, capacity};

/// The block size of every unit, in bytes.
const BLOCK: u64 = 512;

/// State of the daemon that it does not show.
#[derive(Default)]
pub(super) struct Memory {
    /// The password of every existing account.
    passwords: BTreeMap<String, String>,
    /// The capacity at which we last opened a unit.
    sizes: BTreeMap<(String, u16), u64>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("accounts", &self.passwords.keys())
            .field("sizes", &self.sizes)
            .finish()
    }
}

impl Memory {
    /// Records a step that was applied to a target.
    pub(super) fn learn(&mut self, iqn: &str, step: &Step) {
        match step {
            Step::NewAccount { user, password } => {
                self.passwords.insert(user.clone(), password.clone());
            }
            Step::DeleteAccount { user } => {
                self.passwords.remove(user);
            }
            Step::Reopen { lun, size, .. } => {
                self.sizes.insert((iqn.to_owned(), *lun), *size);
            }
            Step::NewUnit { lun, .. } | Step::DeleteUnit { lun, .. } => {
                self.sizes.remove(&(iqn.to_owned(), *lun));
            }
            Step::DeleteTarget { .. } => self.sizes.retain(|(of, _), _| of != iqn),
            Step::NewTarget { .. }
            | Step::Describe { .. }
            | Step::Offline { .. }
            | Step::Bind { .. }
            | Step::Unbind { .. }
            | Step::Admit { .. }
            | Step::Shut { .. }
            | Step::NewPortal(_)
            | Step::DeletePortal(_) => {}
        }
    }
}

/// Refuses targets that tgt does not support.
pub(super) fn check(target: &Target, wanted: &BTreeMap<String, Target>) -> io::Result<()> {
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    for unit in target.luns.values() {
        let params = [
            &unit.vendor,
            &unit.product,
            &unit.revision,
            &unit.serial,
            &unit.naa,
        ];
        let file = unit.file.to_str();
        if file.is_none_or(|file| file.contains([',', '\n']))
            || params.iter().any(|param| param.contains([',', '=', '\n']))
        {
            return refused(format!("tgtadm cannot describe {unit:?}: it has a comma"));
        }
    }
    let own = accounts(target);
    let all = wanted
        .values()
        .filter(|other| other.iqn != target.iqn)
        .flat_map(accounts)
        .chain(accounts(target));
    for (theirs, password) in all {
        let clash = own
            .iter()
            .any(|(ours, secret)| ours.user == theirs.user && *secret != password);
        if clash {
            return refused(format!(
                "tgt has one password for each CHAP name, and {} is already used with another one: use another name, or export through lio",
                theirs.user
            ));
        }
    }
    Ok(())
}

/// The current capacities of a target's units.
pub(super) fn sizes(target: &Target) -> io::Result<BTreeMap<u16, u64>> {
    target
        .luns
        .iter()
        .map(|(lun, unit)| Ok((*lun, capacity(unit)?)))
        .collect()
}

/// The steps from the actual state to `target`, one of `wanted`. Empty if they are equal.
pub(super) fn target(
    target: &Target,
    shown: &[TgtState],
    memory: &Memory,
    wanted: &BTreeMap<String, Target>,
    sizes: &BTreeMap<u16, u64>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let found = shown.iter().find(|shown| shown.iqn == target.iqn);
    let now = found.cloned().unwrap_or_else(|| {
        let taken = |tid: &u32| shown.iter().any(|shown| shown.tid == *tid);
        let tid = (1..=u32::MAX).find(|tid| !taken(tid)).unwrap_or(u32::MAX);
        let iqn = target.iqn.clone();
        steps.push(Step::NewTarget { tid, iqn });
        TgtState {
            tid,
            ..TgtState::default()
        }
    });
    steps.extend(units(target, &now, memory, sizes));
    let accounts = accounts_of(target, &now, memory, wanted);
    let mut admits = now.admits;
    if admits && (!target.enabled || !accounts.is_empty()) {
        // A target without accounts requires no password, so refuse logins while the accounts change.
        steps.push(Step::Shut { tid: now.tid });
        admits = false;
    }
    steps.extend(accounts);
    if target.enabled && !admits {
        steps.push(Step::Admit { tid: now.tid });
    }
    steps
}

fn units(
    target: &Target,
    now: &TgtState,
    memory: &Memory,
    sizes: &BTreeMap<u16, u64>,
) -> Vec<Step> {
    let tid = now.tid;
    let mut steps = Vec::new();
    let same = |lun: &u16, unit: &Unit| {
        target.luns.get(lun).is_some_and(|wanted| {
            unit.serial == wanted.serial
                && unit.scsi_id == argv::scsi_id(wanted)
                && wanted.file.to_str() == Some(&unit.file)
        })
    };
    // tgtd does not show the file of an offline unit. Units are described before they are ever taken offline.
    let kept = |lun: &u16| {
        now.units.get(lun).filter(|unit| {
            same(lun, unit)
                || (!unit.online
                    && target
                        .luns
                        .get(lun)
                        .is_some_and(|wanted| wanted.serial == unit.serial))
        })
    };
    // tgt reports 2 TiB for a unit without a single block, so it is not exported.
    let fits = |lun: &u16| sizes.get(lun).is_some_and(|size| *size >= BLOCK);
    let gone = |lun: &&u16| kept(lun).is_none() || !fits(lun);
    for lun in now.units.keys().filter(gone) {
        steps.push(Step::DeleteUnit { tid, lun: *lun });
    }
    for (lun, unit) in target.luns.iter().filter(|(lun, _)| fits(lun)) {
        let (lun, file) = (*lun, unit.file.to_string_lossy().into_owned());
        let size = sizes.get(&lun).copied().unwrap_or_default();
        match kept(&lun) {
            None => {
                let params = argv::description(unit);
                steps.push(Step::NewUnit { tid, lun, file });
                steps.push(Step::Describe { tid, lun, params });
            }
            Some(shown) => {
                let opened = memory.sizes.get(&(target.iqn.clone(), lun));
                let fits = opened.map_or(megabytes(size) == shown.megabytes, |old| *old == size);
                if !fits || !shown.online {
                    steps.push(Step::Offline { tid, lun });
                    steps.push(Step::Reopen {
                        tid,
                        lun,
                        file,
                        size,
                    });
                }
                if shown.thin != unit.unmap {
                    let params = argv::thinness(unit);
                    steps.push(Step::Describe { tid, lun, params });
                }
            }
        }
    }
    steps
}

/// A size as the daemon prints it.
fn megabytes(size: u64) -> u64 {
    (size + 500_000) / 1_000_000
}

/// A target's accounts with their passwords.
fn accounts(target: &Target) -> Vec<(Account, String)> {
    let Some(chap) = &target.chap else {
        return Vec::new();
    };
    let account = |user: &str, password: &str, outgoing| {
        let user = user.to_owned();
        (Account { user, outgoing }, password.to_owned())
    };
    std::iter::once(account(&chap.user, &chap.password, false))
        .chain(
            chap.mutual
                .iter()
                .map(|mutual| account(&mutual.user, &mutual.password, true)),
        )
        .collect()
}

/// The steps that unbind, delete, create and bind accounts.
fn accounts_of(
    target: &Target,
    now: &TgtState,
    memory: &Memory,
    wanted: &BTreeMap<String, Target>,
) -> Vec<Step> {
    let tid = now.tid;
    let own = accounts(target);
    let bound: BTreeSet<&Account> = now.accounts.iter().collect();
    let has_password = |user: &str, password: &String| memory.passwords.get(user) == Some(password);
    let same = bound == own.iter().map(|(account, _)| account).collect()
        && own
            .iter()
            .all(|(account, password)| has_password(&account.user, password));
    if same {
        return Vec::new();
    }
    let mut steps: Vec<Step> = now
        .accounts
        .iter()
        .map(|account| Step::Unbind {
            tid,
            account: account.clone(),
        })
        .collect();
    let rest = wanted
        .values()
        .filter(|other| other.iqn != target.iqn)
        .flat_map(accounts)
        .chain(own.iter().cloned());
    let stale = stale(&rest.collect::<Vec<_>>(), memory);
    let gone: BTreeSet<String> = stale.iter().cloned().collect();
    steps.extend(stale.into_iter().map(|user| Step::DeleteAccount { user }));
    let mut made = BTreeSet::new();
    for (account, password) in own {
        let exists = memory.passwords.contains_key(&account.user) && !gone.contains(&account.user);
        if !exists && made.insert(account.user.clone()) {
            let user = account.user.clone();
            steps.push(Step::NewAccount { user, password });
        }
        steps.push(Step::Bind { tid, account });
    }
    steps
}

/// Accounts that no target uses, or not with this password.
fn stale(wanted: &[(Account, String)], memory: &Memory) -> Vec<String> {
    let is_used = |user: &String, password: &String| {
        wanted
            .iter()
            .any(|(account, secret)| account.user == *user && secret == password)
    };
    memory
        .passwords
        .iter()
        .filter(|(user, password)| !is_used(user, password))
        .map(|(user, _)| user.clone())
        .collect()
}

/// Removes a target that is no longer wanted, with the accounts that only it used.
pub(super) fn removal(
    shown: &TgtState,
    memory: &Memory,
    wanted: &BTreeMap<String, Target>,
) -> Vec<Step> {
    let others: Vec<_> = wanted.values().flat_map(accounts).collect();
    let delete = Step::DeleteTarget { tid: shown.tid };
    let accounts = stale(&others, memory).into_iter();
    std::iter::once(delete)
        .chain(accounts.map(|user| Step::DeleteAccount { user }))
        .collect()
}

/// Removes what an earlier caller has left in the daemon: unwanted targets, and all accounts.
pub(super) fn leftovers(
    shown: &[TgtState],
    accounts: &[String],
    wanted: &BTreeMap<String, Target>,
) -> Vec<Step> {
    let targets = shown
        .iter()
        .filter(|shown| !wanted.contains_key(&shown.iqn))
        .map(|shown| Step::DeleteTarget { tid: shown.tid });
    let accounts = accounts
        .iter()
        .map(|user| Step::DeleteAccount { user: user.clone() });
    targets.chain(accounts).collect()
}

#[cfg(test)]
mod tests;
