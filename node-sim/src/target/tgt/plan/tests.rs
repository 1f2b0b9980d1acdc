use super::*;
use crate::target::{Chap, Credential, LogicalUnit};

const IQN: &str = "iqn.t";
const GIB: u64 = 1 << 30;

fn unit(serial: &str) -> LogicalUnit {
    LogicalUnit {
        file: format!("/luns/{serial}.img").into(),
        serial: serial.into(),
        naa: format!("6001405{serial}"),
        vendor: "SYNOLOGY".into(),
        product: "Storage".into(),
        revision: "4.0".into(),
        unmap: true,
        write_cache: true,
    }
}

fn desired(chap: Option<Chap>) -> Target {
    Target {
        iqn: IQN.into(),
        enabled: true,
        max_sessions: 0,
        portals: Vec::new(),
        luns: BTreeMap::from([(1, unit("a"))]),
        chap,
    }
}

fn chap(password: &str) -> Chap {
    Chap {
        user: "joe".into(),
        password: password.into(),
        mutual: Some(Credential {
            user: "nas".into(),
            password: "othersecret1".into(),
        }),
    }
}

/// A fake daemon that applies steps.
#[derive(Default)]
struct Fake {
    shown: Vec<TgtState>,
    memory: Memory,
}

impl Fake {
    /// Creates or updates a target and returns the steps; a second plan must be empty.
    fn make(&mut self, desired: &Target, others: &[Target], size: u64) -> Vec<String> {
        let wanted: BTreeMap<String, Target> = others
            .iter()
            .chain([desired])
            .map(|target| (target.iqn.clone(), target.clone()))
            .collect();
        let sizes: BTreeMap<u16, u64> = desired.luns.keys().map(|lun| (*lun, size)).collect();
        let steps = target(desired, &self.shown, &self.memory, &wanted, &sizes);
        let opened: BTreeMap<u16, u64> = desired.luns.keys().map(|lun| (*lun, size)).collect();
        for step in &steps {
            self.take(desired, step, &opened);
            self.memory.learn(&desired.iqn, step);
        }
        assert_eq!(
            target(desired, &self.shown, &self.memory, &wanted, &sizes),
            [],
            "a second look"
        );
        steps
            .iter()
            .map(|step| format!("{step:?}").replace("tgtadm --lld iscsi --op ", ""))
            .collect()
    }

    fn take(&mut self, desired: &Target, step: &Step, sizes: &BTreeMap<u16, u64>) {
        if let Step::NewTarget { tid, iqn } = step {
            self.shown.push(TgtState {
                tid: *tid,
                iqn: iqn.clone(),
                ..TgtState::default()
            });
        }
        let shown = self
            .shown
            .iter_mut()
            .find(|shown| shown.iqn == desired.iqn)
            .unwrap();
        match step {
            Step::NewUnit { lun, file, .. } => {
                let unit = Unit {
                    file: file.clone(),
                    online: true,
                    megabytes: megabytes(sizes[lun]),
                    serial: "beaf11".into(),
                    scsi_id: "IET".into(),
                    thin: false,
                };
                assert_eq!(shown.units.insert(*lun, unit), None, "a free number");
            }
            Step::Describe { lun, params, .. } => {
                let unit = shown.units.get_mut(lun).unwrap();
                unit.thin = params.ends_with("thin_provisioning=1");
                unit.serial.clone_from(&desired.luns[lun].serial);
                unit.scsi_id = argv::scsi_id(&desired.luns[lun]);
            }
            Step::Offline { lun, .. } => shown.units.get_mut(lun).unwrap().online = false,
            Step::Reopen { lun, size, .. } => {
                let unit = shown.units.get_mut(lun).unwrap();
                unit.online = true;
                unit.megabytes = megabytes(*size);
            }
            Step::DeleteUnit { lun, .. } => drop(shown.units.remove(lun).unwrap()),
            Step::Bind { account, .. } => {
                assert!(!shown.admits, "shut while accounts change");
                assert!(self.memory.passwords.contains_key(&account.user));
                shown.accounts.push(account.clone());
            }
            Step::Unbind { account, .. } => {
                assert!(!shown.admits, "shut while accounts change");
                shown.accounts.retain(|bound| bound != account);
            }
            Step::NewAccount { user, .. } => {
                assert!(!self.memory.passwords.contains_key(user), "a free name");
            }
            Step::Admit { .. } => shown.admits = true,
            Step::Shut { .. } => shown.admits = false,
            Step::NewTarget { .. } | Step::DeleteAccount { .. } => {}
            Step::DeleteTarget { .. } | Step::NewPortal(_) | Step::DeletePortal(_) => {
                unreachable!()
            }
        }
    }
}

#[test]
fn a_new_target_allows_logins_last() {
    let mut fake = Fake::default();
    assert_eq!(
        fake.make(&desired(Some(chap("secretsecret"))), &[], GIB),
        [
            "new --mode target --tid 1 --targetname iqn.t",
            "new --mode logicalunit --tid 1 --lun 1 --bstype rdwr --backing-store /luns/a.img",
            "update --mode logicalunit --tid 1 --lun 1 --params vendor_id=SYNOLOGY,product_id=Storage,product_rev=4.0,scsi_sn=a,scsi_id=36001405a,mode_page=8:0:18:0x14:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0,thin_provisioning=1",
            "new --mode account --user joe --password ********",
            "bind --mode account --tid 1 --user joe",
            "new --mode account --user nas --password ********",
            "bind --mode account --tid 1 --user nas --outgoing",
            "bind --mode target --tid 1 --initiator-address ALL",
        ]
    );
}

#[test]
fn growth_reopens_the_file_and_compares_bytes() {
    let mut fake = Fake::default();
    fake.make(&desired(None), &[], GIB);
    let grown = [
        "update --mode logicalunit --tid 1 --lun 1 --params online=0",
        "update --mode logicalunit --tid 1 --lun 1 --params path=/luns/a.img",
    ];
    assert_eq!(fake.make(&desired(None), &[], 2 * GIB), grown);
    assert_eq!(fake.make(&desired(None), &[], 2 * GIB + 512), grown);
    assert_eq!(fake.make(&desired(None), &[], 2 * GIB + 512), [""; 0]);
    // After a restart of the caller in the middle of a growth, only the daemon's output is known.
    fake.memory = Memory::default();
    assert_eq!(fake.make(&desired(None), &[], 2 * GIB), [""; 0]);
    fake.shown[0].units.get_mut(&1).unwrap().online = false;
    fake.shown[0].units.get_mut(&1).unwrap().file = "None".into();
    let steps = fake.make_offline();
    assert_eq!(steps, grown);
}

impl Fake {
    /// An offline unit shows no file until it is opened again.
    fn make_offline(&mut self) -> Vec<String> {
        let desired = desired(None);
        let wanted = BTreeMap::from([(IQN.to_owned(), desired.clone())]);
        let sizes = BTreeMap::from([(1, 2 * GIB)]);
        target(&desired, &self.shown, &self.memory, &wanted, &sizes)
            .iter()
            .map(|step| format!("{step:?}").replace("tgtadm --lld iscsi --op ", ""))
            .collect()
    }
}

#[test]
fn another_unit_at_the_same_index_replaces_the_old_one() {
    let mut fake = Fake::default();
    fake.make(&desired(None), &[], GIB);
    let mut changed = desired(None);
    changed.luns.insert(1, unit("b"));
    let steps = fake.make(&changed, &[], GIB);
    assert_eq!(steps[0], "delete --mode logicalunit --tid 1 --lun 1");
    assert_eq!(steps.len(), 3);
    changed.luns.clear();
    assert_eq!(
        fake.make(&changed, &[], GIB),
        ["delete --mode logicalunit --tid 1 --lun 1"]
    );
}

#[test]
fn a_disabled_target_refuses_logins() {
    let mut fake = Fake::default();
    fake.make(&desired(None), &[], GIB);
    let mut disabled = desired(None);
    disabled.enabled = false;
    assert_eq!(
        fake.make(&disabled, &[], GIB),
        ["unbind --mode target --tid 1 --initiator-address ALL"]
    );
    assert_eq!(
        fake.make(&desired(None), &[], GIB),
        ["bind --mode target --tid 1 --initiator-address ALL"]
    );
}

#[test]
fn logins_are_refused_while_a_password_changes() {
    let mut fake = Fake::default();
    fake.make(&desired(Some(chap("secretsecret"))), &[], GIB);
    assert_eq!(
        fake.make(&desired(Some(chap("another-secret"))), &[], GIB),
        [
            "unbind --mode target --tid 1 --initiator-address ALL",
            "unbind --mode account --tid 1 --user joe",
            "unbind --mode account --tid 1 --user nas --outgoing",
            "delete --mode account --user joe",
            "new --mode account --user joe --password ********",
            "bind --mode account --tid 1 --user joe",
            "bind --mode account --tid 1 --user nas --outgoing",
            "bind --mode target --tid 1 --initiator-address ALL",
        ]
    );
    let none = fake.make(&desired(None), &[], GIB);
    assert!(none.contains(&"delete --mode account --user nas".to_owned()));
    assert!(fake.memory.passwords.is_empty());
}

#[test]
fn targets_share_an_account_and_cannot_disagree_on_its_password() {
    let mut fake = Fake::default();
    let first = desired(Some(chap("secretsecret")));
    let second = Target {
        iqn: "iqn.second".into(),
        ..first.clone()
    };
    fake.make(&first, &[], GIB);
    let steps = fake.make(&second, std::slice::from_ref(&first), GIB);
    assert!(!steps.iter().any(|step| step.contains("new --mode account")));
    assert!(steps.contains(&"new --mode target --tid 2 --targetname iqn.second".to_owned()));

    let wanted = BTreeMap::from([(IQN.to_owned(), first.clone())]);
    check(&second, &wanted).unwrap();
    let other = Target {
        chap: Some(chap("another-secret")),
        ..second.clone()
    };
    let error = check(&other, &wanted).unwrap_err().to_string();
    assert!(
        error.contains("joe") && !error.contains("secret"),
        "{error}"
    );
    // Removing the last target with an account deletes the account.
    let shown = &fake.shown[1];
    let steps = removal(shown, &fake.memory, &wanted);
    assert_eq!(steps, [Step::DeleteTarget { tid: 2 }]);
    assert_eq!(removal(shown, &fake.memory, &BTreeMap::new()).len(), 3);
}

#[test]
fn leftovers_of_an_earlier_caller_are_removed() {
    let shown = super::super::show::targets(super::super::show::tests::RECORDED).unwrap();
    let wanted = BTreeMap::from([("iqn.2000-01.com.synology:t1".to_owned(), desired(None))]);
    assert_eq!(
        leftovers(&shown, &["joe".to_owned()], &wanted),
        [
            Step::DeleteTarget { tid: 7 },
            Step::DeleteAccount { user: "joe".into() }
        ]
    );
}

#[test]
fn a_comma_in_a_parameter_is_refused() {
    let check = |change: &dyn Fn(&mut LogicalUnit)| {
        let mut target = desired(None);
        change(target.luns.get_mut(&1).unwrap());
        check(&target, &BTreeMap::new())
    };
    check(&|_| ()).unwrap();
    check(&|unit| unit.file = "/a,b".into()).unwrap_err();
    check(&|unit| unit.serial = "a,online=0".into()).unwrap_err();
}

#[test]
fn a_unit_announces_unmap_if_it_supports_it() {
    let mut fake = Fake::default();
    let mut desired = desired(None);
    let unmap = |on: bool, desired: &mut Target| {
        desired.luns.get_mut(&1).unwrap().unmap = on;
    };
    unmap(false, &mut desired);
    let made = fake.make(&desired, &[], GIB);
    assert!(made[2].ends_with("thin_provisioning=0"), "{made:?}");
    for on in [true, false] {
        unmap(on, &mut desired);
        let params = format!("thin_provisioning={}", u8::from(on));
        assert_eq!(
            fake.make(&desired, &[], GIB),
            [format!(
                "update --mode logicalunit --tid 1 --lun 1 --params {params}"
            )]
        );
    }
}

#[test]
fn a_unit_without_a_block_is_not_exported() {
    let mut fake = Fake::default();
    let desired = desired(None);
    let tiny = fake.make(&desired, &[], 511);
    assert!(
        !tiny.iter().any(|step| step.contains("logicalunit")),
        "{tiny:?}"
    );
    assert!(fake.make(&desired, &[], 512)[0].starts_with("new --mode logicalunit"));
    // An exported unit that shrinks to nothing is removed.
    assert_eq!(
        fake.make(&desired, &[], 1),
        ["delete --mode logicalunit --tid 1 --lun 1"]
    );
}
