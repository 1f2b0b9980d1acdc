//! The bugs: each is a patch of the driver's source and says what a user would suffer from it.
//!
//! The order is that of `--sample`: neighbours differ in the half of the driver they break and in how they can be noticed. A
//! patch that does not fit the source any more is a failed test, so that the list follows the driver.

use anyhow::{Result, bail};

/// A deliberate bug.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bug {
    /// For `--only` and for the table.
    pub(super) name: &'static str,
    /// From the workspace's root.
    pub(super) file: &'static str,
    /// Stands exactly once in that file.
    pub(super) find: &'static str,
    /// Takes its place. A bug that says [`ON`] where it differs from the good source can be built together with others.
    pub(super) replace: &'static str,
    /// What a user would suffer.
    pub(super) what: &'static str,
}

/// In the text of a bug: whether it is switched on. It is then an expression of the type bool that asks the environment, once.
pub(super) const ON: &str = "$ON";

/// Which bug is switched on, in the environment of a program that has several.
pub(super) const SWITCH: &str = "SABOTAGE";

/// Stands behind the driver's own source in a copy with bugs that can be switched on.
pub(super) const SWITCHES: &str = r#"
pub(crate) fn sabotage(name: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("SABOTAGE").ok()).as_deref() == Some(name)
}
"#;

impl Bug {
    /// It can be built together with others, and without its being there.
    pub(super) fn is_switched(&self) -> bool {
        self.replace.contains(ON)
    }

    /// The file with the bug in it.
    ///
    /// # Errors
    /// When the file has moved on from what the patch was written for.
    pub(super) fn patch(&self, source: &str) -> Result<String> {
        let seen = source.matches(self.find).count();
        if seen != 1 {
            bail!(
                "the bug {} is to replace a text that stands {seen} times in {}, not once: ci/src/sabotage/bugs.rs must follow the source",
                self.name,
                self.file
            );
        }
        let on = format!("crate::sabotage({:?})", self.name);
        Ok(source.replacen(self.find, &self.replace.replace(ON, &on), 1))
    }
}

/// All of them.
pub(super) const BUGS: [Bug; 50] = [
    Bug {
        name: "growth-tool-believed",
        file: "driver/src/node/grow.rs",
        find: "if geometry.fills(attached.size) {",
        replace: "if geometry.fills(attached.size) || $ON && !program.is_empty() {",
        what: "resize2fs ends with 0 and does nothing: the claim shows 20 GiB, the pod's disk is full at 10",
    },
    Bug {
        name: "create-without-look-up",
        file: "driver/src/controller/create.rs",
        find: "let lun = look_up(nas, &new, asked, refusal).await?;",
        replace: r#"let lun: Lun = match refusal {
                    NotMade::Full(full) if $ON => return Err(full),
                    NotMade::Refused(source, _) if $ON => {
                        let doing = format!("creating LUN {}", new.name);
                        return Err(Error::Dsm { doing, source });
                    }
                    refusal => look_up(nas, &new, asked, refusal).await?,
                };"#,
        what: "a reply is lost once, and the claim waits for ever for a LUN that the NAS says exists already",
    },
    Bug {
        name: "unstage-keeps-session",
        file: "driver/src/node/held.rs",
        find: "self.log_out(session).await?;",
        replace: "if $ON { let _ = session; } else { self.log_out(session).await?; }",
        what: "the node stays logged in to a volume that it has let go: two nodes can write to one disk",
    },
    Bug {
        name: "absence-not-proven",
        file: "driver/src/dsm/whole.rs",
        find: "(up < LOADING).then(|| {",
        replace: "(up < LOADING && (up.is_zero() || !$ON)).then(|| {",
        what: "a NAS that is still starting denies a LUN: its volume counts as deleted, and the LUN stays for ever",
    },
    Bug {
        name: "mount-believed",
        file: "driver/src/node/stage.rs",
        find: "Standing::Nothing | Standing::Gone(_) | Standing::Foreign(_) => Err(Error::Unproven {",
        replace: "Standing::Nothing => Ok(()),
            Standing::Gone(_) | Standing::Foreign(_) => Err(Error::Unproven {",
        what: "mount ends with 0 and does nothing: the pod writes into the node's own disk, and the data stays there",
    },
    Bug {
        name: "publish-to-two-nodes",
        file: "driver/src/plan.rs",
        find: ".find(|holder| holder.exports && !holder.may_share(node, multi_node));",
        replace: ".find(|holder| holder.exports && (multi_node || !$ON) && !holder.may_share(node, multi_node));",
        what: "two nodes mount one ext4, and destroy it",
    },
    Bug {
        name: "expand-without-rescan",
        file: "driver/src/node/expand.rs",
        find: "let answers = self.rescan_answered(session).await?;",
        replace: "let answers = $ON || self.rescan_answered(session).await?;",
        what: "the kernel never learns that the LUN has grown: the claim stays in Resizing for ever",
    },
    Bug {
        name: "refused-login-forgotten",
        file: "driver/src/dsm/session.rs",
        find: "let next = self.refusals.remember(&nas, credential, code);",
        replace: "let next = if $ON { None } else { self.refusals.remember(&nas, credential, code) };",
        what: "a mistyped password is tried again and again, and the NAS locks the driver's address out for a day",
    },
    Bug {
        name: "unmount-believed",
        file: "driver/src/node/place.rs",
        find: "Standing::Ours(_) => self.unmount(point).await?,",
        replace: "Standing::Ours(_) if $ON => return self.unmount(point).await,
            Standing::Ours(_) => self.unmount(point).await?,",
        what: "umount ends with 0 and does nothing: the session is ended below a mounted file system, which loses what is unwritten",
    },
    Bug {
        name: "delete-takes-failure-for-absence",
        file: "driver/src/controller/delete.rs",
        find: r"let Some(lun) = nas
            .lun(&id.uuid)
            .await
",
        replace: r"let seen = nas.lun(&id.uuid).await;
        if seen.is_err() {
            return Ok(());
        }
        let Some(lun) = seen
",
        what: "the NAS answers 502 once: Kubernetes forgets a volume whose LUN goes on filling the NAS",
    },
    Bug {
        name: "two-operations-at-once",
        file: "driver/src/in_flight.rs",
        find: "if keys.contains_key(volume) {",
        replace: "if keys.contains_key(volume) && (aside.is_some() || !$ON) {",
        what: "a repeated NodeStage starts a second mkfs while the first is still running",
    },
    Bug {
        name: "mkfs-on-data",
        file: "driver/src/node/format.rs",
        find: "self.must_be_blank(attached).await?;",
        replace: "if !$ON { self.must_be_blank(attached).await?; }",
        what: "a disk with data of a kind that blkid does not know is formatted",
    },
    Bug {
        name: "controller-expand-believed",
        file: "driver/src/controller/expand.rs",
        find: "let sent = nas.grow_lun(&id.uuid, size).await;",
        replace: r"let sent = nas.grow_lun(&id.uuid, size).await;
        if sent.as_ref().err().and_then(DsmError::code).is_none() {
            return Ok(size);
        }",
        what: "a lost request counts as growth: the claim shows a size that the LUN never had",
    },
    Bug {
        name: "unstage-keeps-record",
        file: "driver/src/node/held.rs",
        find: "self.delete_records(&iqn).await?;",
        replace: "let _ = iqn;",
        what: "the node keeps a record, with its CHAP password, of every volume that it has ever had",
    },
    Bug {
        name: "delete-foreign-lun",
        file: "driver/src/controller/delete.rs",
        find: "self.owned(id, &lun)?;",
        replace: "",
        what: "a handle with a wrong uuid deletes a LUN that was never Kubernetes'",
    },
    Bug {
        name: "expand-without-growth",
        file: "driver/src/node/expand.rs",
        find: "match self.fill(attached, fs, &point).await? {",
        replace: r"let _ = fs;
        match Grown::Full {",
        what: "the claim shows its new size, and the pod's file system keeps the old one",
    },
    Bug {
        name: "unpublish-keeps-target",
        file: "driver/src/controller/unpublish.rs",
        find: "for target in targets.iter().filter(|target| ours(target)) {",
        replace: "for target in targets.iter().filter(|target| ours(target)).skip(1) {",
        what: "nothing fences a node that comes back from the dead: it logs in again and writes to another node's volume",
    },
    Bug {
        name: "identity-not-checked",
        file: "driver/src/node/attach.rs",
        find: ".is_none_or(|serial| !serial.eq_ignore_ascii_case(uuid.as_str()))",
        replace: ".is_some_and(|serial| serial.is_empty())",
        what: "DSM maps another LUN in the volume's place: the pod gets another application's data",
    },
    Bug {
        name: "failure-is-final",
        file: "driver/src/error.rs",
        find: "Self::Dsm { .. } | Self::Unproven { .. } | Self::Died { .. } => Code::Unavailable,",
        replace: "Self::Dsm { .. } | Self::Unproven { .. } | Self::Died { .. } => Code::Internal,",
        what: "after a lost reply to CreateVolume Kubernetes may forget the volume, and its LUN stays for ever",
    },
    Bug {
        name: "lock-dies-with-its-caller",
        file: "driver/src/in_flight.rs",
        find: "tokio::spawn(operation.in_current_span());",
        replace: "operation.in_current_span().await;",
        what: "kubelet's deadline passes during mkfs: the next try begins while the first mkfs is still writing",
    },
    Bug {
        name: "pod-unpublished-and-still-mounted",
        file: "driver/src/node/publish.rs",
        find: "self.clear(&target, &blocks).await?;",
        replace: r"if !blocks.is_empty() {
            return Ok(());
        }",
        what: "mounts of pods that have gone pile up, and the volume can never be unstaged",
    },
    Bug {
        name: "expand-shrinks",
        file: "driver/src/plan.rs",
        find: "if range.required <= present {",
        replace: "if range.required == present {",
        what: "after a failed growth to 100 GiB the retry with 20 asks the NAS to cut a LUN of 50 GiB",
    },
    Bug {
        name: "expand-answers-what-was-asked",
        file: "driver/src/node/expand.rs",
        find: "Ok(attached.size)",
        replace: "Ok(ask.range.required)",
        what: "the claim shows the size that was asked for, not the one that the pod has",
    },
    Bug {
        name: "target-denied-is-gone",
        file: "driver/src/controller/target.rs",
        find: "if left.iter().any(|row| row.iqn == target.iqn) {",
        replace: "if left.len() > 1000 {",
        what: "DSM says \"cannot be loaded\" of a target that it has: the volume counts as detached, and the node can still write",
    },
    Bug {
        name: "target-not-loaded-is-gone",
        file: "driver/src/controller/unpublish.rs",
        find: "if (withdrawn == 0 || node.is_none())",
        replace: "if (withdrawn > 0 && node.is_none())",
        what: "a NAS that is still starting does not show a target: the volume counts as detached, and the target stays for ever",
    },
    Bug {
        name: "half-a-nas-is-listed",
        file: "driver/src/controller/list.rs",
        find: "if let Some(seen) = doubt {",
        replace: "if let Some(seen) = doubt.filter(String::is_empty) {",
        what: "a NAS that is still starting shows half of its LUNs: Kubernetes takes the other volumes for detached",
    },
    Bug {
        name: "publication-believed",
        file: "driver/src/node/publish.rs",
        find: r"if self.is_published(ask, target, blocks).await? {
            return Ok(());
        }
        Err(unseen(",
        replace: r"if true {
            return Ok(());
        }
        Err(unseen(",
        what: "mount ends with 0 and does nothing: the pod writes into the node's own disk",
    },
    Bug {
        name: "record-removal-believed",
        file: "driver/src/node/record.rs",
        find: "if left.is_some_and(|names| !names.is_empty()) {",
        replace: "if left.is_some_and(|names| names.len() > 1000) {",
        what: "iscsiadm ends with 0 and does nothing: a record with its secret stays on the node, which logs in again at its next start",
    },
    Bug {
        name: "pod-directory-left",
        file: "driver/src/node/publish.rs",
        find: "Some(Stat::Directory) => match self.host.remove_dir(target).await {",
        replace: r"Some(Stat::Directory) if !target.is_empty() => Ok(()),
            Some(Stat::Directory) => match self.host.remove_dir(target).await {",
        what: "kubelet finds a directory where the volume was, and the pod stays in Terminating",
    },
    Bug {
        name: "session-not-renewed",
        file: "driver/src/dsm/client.rs",
        find: "Err(DsmError::Refused { api, method, code }) if code.wants_login() => {",
        replace: "Err(DsmError::Refused { api, method, code }) if code.wants_login() && api.is_empty() => {",
        what: "the NAS restarts, and until the driver is restarted too every call fails",
    },
    Bug {
        name: "mkfs-at-every-stage",
        file: "driver/src/node/format.rs",
        find: "match (next, options) {",
        replace: r"let _ = next;
        match (Next::Format, options) {",
        what: "a pod that moves to another node finds its volume empty",
    },
    Bug {
        name: "delete-what-is-published",
        file: "driver/src/controller/delete.rs",
        find: "refuse_published(nas, id, &lun, targets).await?;",
        replace: "",
        what: "a volume is deleted under the pod that is using it",
    },
    Bug {
        name: "readonly-is-writable",
        file: "driver/src/node/publish.rs",
        find: "if staged.is_readonly() || !ask.readonly {",
        replace: "if staged.is_readonly() || !target.is_empty() {",
        what: "a pod that may only read can write",
    },
    Bug {
        name: "create-adopts-anything",
        file: "driver/src/controller/create.rs",
        find: "plan::adopt(&self.owner, &lun, asked)?;",
        replace: "",
        what: "a claim of 20 GiB is given a LUN of 10 that happens to have its name",
    },
    Bug {
        name: "unstage-under-a-pod",
        file: "driver/src/node/unstage.rs",
        find: "self.must_be_unpublished(ask, &staging, &blocks).await?;",
        replace: "",
        what: "the disk is taken from under a running pod, which loses what it has written",
    },
    Bug {
        name: "ended-publication-not-seen",
        file: "driver/src/node/ended.rs",
        find: "sessions.retain(|session| session.target != present.as_str());",
        replace: "sessions.clear();",
        what: "a volume that was forced away and comes back is used with the old session: what others have written is lost",
    },
    Bug {
        name: "number-used-without-its-name",
        file: "driver/src/dsm/nas.rs",
        find: "let calls = target::guarded(target, true, acts);",
        replace: r"if self.absent(target).await?.is_none() {
            let calls = target::guarded(target, false, acts);
            let results = self.client.call_sequence(&calls).await?;
            return self.acted(target, acts, results).await;
        }
        let calls = target::guarded(target, true, acts);",
        what: "between a look and an act the number becomes another volume's: its target is deleted under a running pod",
    },
    Bug {
        name: "target-open-to-all",
        file: "driver/src/controller/publish.rs",
        find: "let chap = asked.chap.clone().or_else(|| self.keys.proofs(&iqn));",
        replace: "let chap = asked.chap.clone();",
        what: "whoever reaches port 3260 of the NAS reads and writes every published volume",
    },
    Bug {
        name: "stale-pages-written",
        file: "driver/src/node/ended.rs",
        find: r"        self.stop_writes(&ended).await?;
        let dead = !ended.is_alive();
        if dead {
            // Nobody can log in again after this, and I/O that waits fails: an unmount would wait for it.
            self.log_out_all(&ended).await?;
        } else {
            self.must_be_offline(&ended).await?;
        }",
        replace: "        let dead = !ended.is_alive();",
        what: "what a cut-off node has kept in memory is written over what another node has written since",
    },
    Bug {
        name: "ended-publication-taken-from-a-pod",
        file: "driver/src/node/ended.rs",
        find: "self.must_be_out_of_use(uuid, &ended, staging).await?;",
        replace: "",
        what: "a pod that still has the volume finds its disk gone, for no reason that it could see",
    },
    Bug {
        name: "any-process-is-the-daemon",
        file: "driver/src/host/linux/trust.rs",
        find: ".try_for_each(|cgroup| outside_of_pods(cgroup, own))",
        replace: ".try_for_each(|cgroup| outside_of_pods(cgroup, own).or(Ok(())))",
        what: "a pod that takes iscsid's name becomes root on the node, and is told the passwords of volumes",
    },
    Bug {
        name: "unknown-word-stops",
        file: "driver/src/dsm/location.rs",
        find: "!self.readonly && !known_bad(&HIDES) && !known_bad(&TAKES_NONE)",
        replace: "!self.readonly && !known_bad(&HIDES) && self.status == \"normal\"",
        what: "a volume that is merely rather full says attention, and no claim is bound any more",
    },
    Bug {
        name: "unfit-row-passed-over",
        file: "driver/src/dsm/rows.rs",
        find: "match self.unfit.iter().find(|row| could_be(row)) {",
        replace: "match self.unfit.iter().find(|row| could_be(row) && row.row.is_null()) {",
        what: "the row of an own target cannot be read, Unpublish takes it for absent, and the old node keeps the disk",
    },
    Bug {
        name: "new-initiator-is-another-node",
        file: "driver/src/controller/unpublish.rs",
        find: "node.is_same_node(&to)",
        replace: "*node == to",
        what: "a node is installed anew, and none of its volumes can be attached or deleted any more",
    },
    Bug {
        name: "refused-login-final",
        file: "driver/src/dsm/credential.rs",
        find: "(now < self.next && self.knows(credential)).then(|| {",
        replace: "self.knows(credential).then(|| {",
        what: "the account is put into administrators, as the message says, and the driver never tries it again",
    },
    Bug {
        name: "unreadable-list-is-empty",
        file: "driver/src/node/record.rs",
        find: r#"if_present(self.host.list(&nodes).await).doing(format!("listing {nodes}"))?;"#,
        replace: "Some(self.host.list(&nodes).await.unwrap_or_default());",
        what: "a folder cannot be read for a moment, and a record with its password stays on the node for ever",
    },
    Bug {
        name: "sessions-as-iscsid-conf-says",
        file: "driver/src/host/iscsiadm.rs",
        find: "        (\"node.session.nr_sessions\", \"1\"),\n",
        replace: "",
        what: "a node whose iscsid.conf asks for two sessions has two disks of each volume",
    },
    Bug {
        name: "final-answer-keeps-session",
        file: "driver/src/node/stage.rs",
        find: r"if !error.is_final() {
            return error;",
        replace: r"if !error.chain().is_empty() {
            return error;",
        what: "a volume that cannot be staged is forgotten by the kubelet, and its node stays logged in to it for ever",
    },
    Bug {
        name: "staged-only-if-it-grows",
        file: "driver/src/node/stage.rs",
        find: r"        match grown {
            Grown::Full => {}",
        replace: r"        match grown {
            Grown::Never(seen) => {
                return Err(Error::Unproven {
                    what: staging.to_owned(),
                    seen,
                });
            }
            Grown::Full => {}",
        what: "a volume whose file system cannot grow is enlarged once, and no pod can have its data any more",
    },
    Bug {
        name: "dead-file-system-published",
        file: "driver/src/node/dead.rs",
        find: "if let Some(why) = mount.death() {",
        replace: "if let Some(why) = mount.death().filter(|_| mount.point.is_empty()) {",
        what: "an ext4 that the kernel has given up looks healthy: each new pod fails at its first write, and nothing says why",
    },
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn source(bug: &Bug) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        fs::read_to_string(root.join(bug.file)).unwrap()
    }

    #[test]
    fn every_bug_fits_the_present_sources() {
        for bug in BUGS {
            let good = source(&bug);
            let bad = bug.patch(&good).unwrap();
            assert_ne!(good, bad, "{} changes nothing", bug.name);
        }
    }

    /// What a pipeline tries is one build.
    #[test]
    fn the_first_bugs_can_be_built_together() {
        for bug in &BUGS[..4] {
            assert!(bug.is_switched(), "{}", bug.name);
        }
        assert!(SWITCHES.contains(SWITCH));
    }

    #[test]
    fn a_switched_bug_asks_for_its_own_name() {
        let bug = Bug {
            find: "look()",
            replace: "$ON || look()",
            ..BUGS[0]
        };
        let patched = bug.patch("if look() {}").unwrap();
        assert_eq!(
            patched,
            "if crate::sabotage(\"growth-tool-believed\") || look() {}"
        );
    }

    #[test]
    fn bugs_lie_in_code_that_is_shipped() {
        for bug in BUGS {
            let source = source(&bug);
            let at = source.find(bug.find).unwrap();
            let tests = source.find("#[cfg(test)]\nmod ").unwrap_or(source.len());
            assert!(at < tests, "{} is in a test", bug.name);
        }
    }

    #[test]
    fn every_bug_has_a_name_of_its_own_and_says_what_it_does() {
        let names: BTreeSet<&str> = BUGS.iter().map(|bug| bug.name).collect();
        assert_eq!(names.len(), BUGS.len());
        for bug in BUGS {
            assert!(
                !bug.what.is_empty() && !bug.what.ends_with('.'),
                "{}",
                bug.name
            );
        }
    }

    #[test]
    fn a_patch_that_does_not_fit_is_named() {
        let bug = BUGS[0];
        for source in [String::new(), bug.find.repeat(2)] {
            let error = bug.patch(&source).unwrap_err().to_string();
            assert!(
                error.contains(bug.name) && error.contains(bug.file),
                "{error}"
            );
        }
    }
}
