//! The mutants: each is a patch of the driver's source, and describes its effect on a user.
//!
//! The order matters for `--sample`: neighbors break different parts of the driver, and are found in different ways. A test fails
//! if a patch no longer applies, so that the list follows the driver.

use anyhow::{Result, bail};

/// A deliberate bug: replaces `find` by `replace` in `file`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mutant {
    /// For `--only` and the result table.
    pub(super) name: &'static str,
    /// Relative to the workspace's root.
    pub(super) file: &'static str,
    /// Must occur exactly once in the file.
    pub(super) find: &'static str,
    /// A mutant that uses [`ON`] is switchable: it can be built together with others.
    pub(super) replace: &'static str,
    /// The effect on a user.
    pub(super) effect: &'static str,
}

/// Placeholder in `replace` for a `bool` expression: whether the environment variable [`ACTIVE_VARIABLE`] names this mutant.
pub(super) const ON: &str = "$ON";

/// The environment variable with the name of the active mutant.
pub(super) const ACTIVE_VARIABLE: &str = "ACTIVE_MUTANT";

/// Appended to the copy's `driver/src/lib.rs` if it has switchable mutants.
pub(super) const SWITCH_SOURCE: &str = r#"
pub(crate) fn is_active_mutant(name: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("ACTIVE_MUTANT").ok()).as_deref() == Some(name)
}
"#;

impl Mutant {
    /// Whether it can be built together with others, and be inactive.
    pub(super) fn is_switchable(&self) -> bool {
        self.replace.contains(ON)
    }

    /// Applies the patch to the text of the file.
    ///
    /// # Errors
    /// When `find` does not occur exactly once.
    pub(super) fn patch(&self, source: &str) -> Result<String> {
        let seen = source.matches(self.find).count();
        if seen != 1 {
            bail!(
                "the text that mutant {} replaces occurs {seen} times in {}, not once: update ci/src/mutation/mutants.rs",
                self.name,
                self.file
            );
        }
        let on = format!("crate::is_active_mutant({:?})", self.name);
        Ok(source.replacen(self.find, &self.replace.replace(ON, &on), 1))
    }
}

pub(super) const MUTANTS: [Mutant; 50] = [
    Mutant {
        name: "growth-tool-believed",
        file: "driver/src/node/grow.rs",
        find: "if geometry.fills(attached.size) {",
        replace: "if geometry.fills(attached.size) || $ON && !program.is_empty() {",
        effect: "resize2fs ends with 0 and does nothing: the claim shows 20 GiB, the pod's disk is full at 10",
    },
    Mutant {
        name: "create-without-look-up",
        file: "driver/src/controller/create.rs",
        find: "let lun = look_up(nas, &new, request, refusal).await?;",
        replace: r#"let lun: Lun = match refusal {
                    CreateFailure::Full(full) if $ON => return Err(full),
                    CreateFailure::Refused(source, _) if $ON => {
                        let doing = format!("creating LUN {}", new.name);
                        return Err(Error::Dsm { doing, source });
                    }
                    refusal => look_up(nas, &new, request, refusal).await?,
                };"#,
        effect: "a reply is lost once, and the claim waits forever for a LUN that the NAS says exists already",
    },
    Mutant {
        name: "unstage-keeps-session",
        file: "driver/src/node/attachment.rs",
        find: "self.log_out(session).await?;",
        replace: "if $ON { let _ = session; } else { self.log_out(session).await?; }",
        effect: "the node stays logged in to an unstaged volume: two nodes can write to one disk",
    },
    Mutant {
        name: "absence-not-proven",
        file: "driver/src/dsm/nas/completeness.rs",
        find: "(up < LOAD_TIME).then(|| {",
        replace: "(up < LOAD_TIME && (up.is_zero() || !$ON)).then(|| {",
        effect: "a NAS that is still booting says that a LUN does not exist: its volume counts as deleted, and the LUN stays forever",
    },
    Mutant {
        name: "mount-believed",
        file: "driver/src/node/stage.rs",
        find: r"MountState::Nothing | MountState::Gone(_) | MountState::Foreign(_) => {
                Err(Error::Unverified {",
        replace: r"MountState::Nothing => Ok(()),
            MountState::Gone(_) | MountState::Foreign(_) => {
                Err(Error::Unverified {",
        effect: "mount ends with 0 and does nothing: the pod writes into the node's own disk, and the data stays there",
    },
    Mutant {
        name: "publish-to-two-nodes",
        file: "driver/src/plan.rs",
        find: ".find(|holder| holder.exports && !holder.may_share(node, multi_node));",
        replace: ".find(|holder| holder.exports && (multi_node || !$ON) && !holder.may_share(node, multi_node));",
        effect: "two nodes mount one ext4, and destroy it",
    },
    Mutant {
        name: "expand-without-rescan",
        file: "driver/src/node/expand.rs",
        find: "let answers = self.rescan_answered(session).await?;",
        replace: "let answers = $ON || self.rescan_answered(session).await?;",
        effect: "the kernel never learns that the LUN has grown: the claim stays in Resizing forever",
    },
    Mutant {
        name: "refused-login-forgotten",
        file: "driver/src/dsm/client/session.rs",
        find: "let next = self.refusals.remember(&nas, credential, code);",
        replace: "let next = if $ON { None } else { self.refusals.remember(&nas, credential, code) };",
        effect: "a mistyped password is tried again and again, and the NAS locks the driver's address out for a day",
    },
    Mutant {
        name: "unmount-believed",
        file: "driver/src/node/mounts.rs",
        find: "MountState::Ours(_) => self.unmount(point).await?,",
        replace: "MountState::Ours(_) if $ON => return self.unmount(point).await,
            MountState::Ours(_) => self.unmount(point).await?,",
        effect: "umount ends with 0 and does nothing: the session ends below a mounted file system, which loses unwritten data",
    },
    Mutant {
        name: "delete-takes-failure-for-absence",
        file: "driver/src/controller/delete.rs",
        find: "let Some(lun) = find_lun(nas, id).await? else {",
        replace: r"let seen = find_lun(nas, id).await;
        if seen.is_err() {
            return Ok(());
        }
        let Some(lun) = seen? else {",
        effect: "the NAS answers 502 once: Kubernetes forgets a volume whose LUN goes on filling the NAS",
    },
    Mutant {
        name: "two-operations-at-once",
        file: "driver/src/in_flight.rs",
        find: "if keys.contains_key(volume) {",
        replace: "if keys.contains_key(volume) && (background.is_some() || !$ON) {",
        effect: "a repeated NodeStage starts a second mkfs while the first is still running",
    },
    Mutant {
        name: "mkfs-on-data",
        file: "driver/src/node/format.rs",
        find: "self.must_be_blank(attached).await?;",
        replace: "if !$ON { self.must_be_blank(attached).await?; }",
        effect: "a disk with data of a kind that blkid does not know is formatted",
    },
    Mutant {
        name: "controller-expand-believed",
        file: "driver/src/controller/expand.rs",
        find: "let sent = nas.grow_lun(&id.uuid, size).await;",
        replace: r"let sent = nas.grow_lun(&id.uuid, size).await;
        if sent.as_ref().err().and_then(DsmError::code).is_none() {
            return Ok(size);
        }",
        effect: "a lost request counts as success: the claim shows a size that the LUN never had",
    },
    Mutant {
        name: "unstage-keeps-record",
        file: "driver/src/node/attachment.rs",
        find: "self.delete_records(&iqn).await?;",
        replace: "let _ = iqn;",
        effect: "the node keeps a record, with its CHAP password, of every volume that it has ever had",
    },
    Mutant {
        name: "delete-foreign-lun",
        file: "driver/src/controller/delete.rs",
        find: "self.owned(id, &lun)?;",
        replace: "",
        effect: "a handle with a wrong uuid deletes a LUN that was never Kubernetes'",
    },
    Mutant {
        name: "expand-without-growth",
        file: "driver/src/node/expand.rs",
        find: "match self.grow_to_device(attached, fs, &point).await? {",
        replace: r"let _ = fs;
        match Grown::Full {",
        effect: "the claim shows its new size, and the pod's file system keeps the old one",
    },
    Mutant {
        name: "unpublish-keeps-target",
        file: "driver/src/controller/unpublish.rs",
        find: "for target in targets.iter().filter(|target| ours(target)) {",
        replace: "for target in targets.iter().filter(|target| ours(target)).skip(1) {",
        effect: "a node that comes back is not fenced: it logs in again and writes to another node's volume",
    },
    Mutant {
        name: "identity-not-checked",
        file: "driver/src/node/attach.rs",
        find: ".is_none_or(|serial| !serial.eq_ignore_ascii_case(uuid.as_str()))",
        replace: ".is_some_and(|serial| serial.is_empty())",
        effect: "DSM maps another LUN in the volume's place: the pod gets another application's data",
    },
    Mutant {
        name: "failure-is-final",
        file: "driver/src/error.rs",
        find: "Self::Dsm { .. } | Self::Unverified { .. } | Self::Panicked { .. } => Code::Unavailable,",
        replace: "Self::Dsm { .. } | Self::Unverified { .. } | Self::Panicked { .. } => Code::Internal,",
        effect: "after a lost reply to CreateVolume Kubernetes may forget the volume, and its LUN stays forever",
    },
    Mutant {
        name: "lock-dies-with-its-caller",
        file: "driver/src/in_flight.rs",
        find: "tokio::spawn(operation.in_current_span());",
        replace: "operation.in_current_span().await;",
        effect: "kubelet's deadline passes during mkfs: the retry starts while the first mkfs is still writing",
    },
    Mutant {
        name: "pod-unpublished-and-still-mounted",
        file: "driver/src/node/publish.rs",
        find: "self.clear(&target, &blocks).await?;",
        replace: r"if !blocks.is_empty() {
            return Ok(());
        }",
        effect: "mounts of deleted pods remain, and the volume can never be unstaged",
    },
    Mutant {
        name: "expand-shrinks",
        file: "driver/src/plan.rs",
        find: "if range.required <= current {",
        replace: "if range.required == current {",
        effect: "after a failed expansion to 100 GiB, the retry with 20 GiB asks the NAS to shrink a LUN of 50 GiB",
    },
    Mutant {
        name: "expand-answers-what-was-asked",
        file: "driver/src/node/expand.rs",
        find: "Ok(attached.size)",
        replace: "Ok(request.range.required)",
        effect: "the claim shows the requested size, not the one that the pod has",
    },
    Mutant {
        name: "target-denied-is-gone",
        file: "driver/src/controller/target.rs",
        find: "if left.iter().any(|row| row.iqn == target.iqn) {",
        replace: "if left.len() > 1000 {",
        effect: "DSM says \"cannot be loaded\" of a target that it has: the volume counts as detached, and the node can still write",
    },
    Mutant {
        name: "target-not-loaded-is-gone",
        file: "driver/src/controller/unpublish.rs",
        find: "if (withdrawn == 0 || node.is_none())",
        replace: "if (withdrawn > 0 && node.is_none())",
        effect: "a NAS that is still booting does not list a target: the volume counts as detached, and the target stays forever",
    },
    Mutant {
        name: "half-a-nas-is-listed",
        file: "driver/src/controller/list.rs",
        find: "if let Some(seen) = listing.incomplete {",
        replace: "if let Some(seen) = listing.incomplete.filter(String::is_empty) {",
        effect: "a NAS that is still booting lists half of its LUNs: Kubernetes takes the other volumes for detached",
    },
    Mutant {
        name: "publication-believed",
        file: "driver/src/node/publish.rs",
        find: r"if self.is_published(request, target, blocks).await? {
            return Ok(());
        }
        Err(not_in_mount_table(",
        replace: r"if true {
            return Ok(());
        }
        Err(not_in_mount_table(",
        effect: "mount ends with 0 and does nothing: the pod writes into the node's own disk",
    },
    Mutant {
        name: "record-removal-believed",
        file: "driver/src/node/record.rs",
        find: "if left.is_some_and(|names| !names.is_empty()) {",
        replace: "if left.is_some_and(|names| names.len() > 1000) {",
        effect: "iscsiadm ends with 0 and does nothing: a record with its password stays on the node, which logs in again after a reboot",
    },
    Mutant {
        name: "pod-directory-left",
        file: "driver/src/node/publish.rs",
        find: "Some(Stat::Directory) => match self.host.remove_dir(target).await {",
        replace: r"Some(Stat::Directory) if !target.is_empty() => Ok(()),
            Some(Stat::Directory) => match self.host.remove_dir(target).await {",
        effect: "kubelet finds a directory where the volume was, and the pod stays in Terminating",
    },
    Mutant {
        name: "session-not-renewed",
        file: "driver/src/dsm/client.rs",
        find: "Err(DsmError::Refused { api, method, code }) if code.wants_login() => {",
        replace: "Err(DsmError::Refused { api, method, code }) if code.wants_login() && api.is_empty() => {",
        effect: "the NAS restarts, and until the driver is restarted too every call fails",
    },
    Mutant {
        name: "mkfs-at-every-stage",
        file: "driver/src/node/format.rs",
        find: "match (next, options) {",
        replace: r"let _ = next;
        match (Next::Format, options) {",
        effect: "a pod that moves to another node finds its volume empty",
    },
    Mutant {
        name: "delete-what-is-published",
        file: "driver/src/controller/delete.rs",
        find: "refuse_published(nas, id, &lun, targets).await?;",
        replace: "",
        effect: "a volume is deleted under the pod that is using it",
    },
    Mutant {
        name: "readonly-is-writable",
        file: "driver/src/node/publish.rs",
        find: "if staged.is_readonly() || !request.readonly {",
        replace: "if staged.is_readonly() || !target.is_empty() {",
        effect: "a pod that may only read can write",
    },
    Mutant {
        name: "create-adopts-anything",
        file: "driver/src/controller/create.rs",
        find: "plan::check_compatible(&self.owner, &lun, request)?;",
        replace: "",
        effect: "a claim of 20 GiB is given a LUN of 10 that happens to have its name",
    },
    Mutant {
        name: "unstage-under-a-pod",
        file: "driver/src/node/unstage.rs",
        find: "self.must_be_unpublished(request, &staging, &blocks).await?;",
        replace: "",
        effect: "the disk disappears under a running pod, which loses unwritten data",
    },
    Mutant {
        name: "ended-publication-not-seen",
        file: "driver/src/node/ended_publication.rs",
        find: "sessions.retain(|session| session.target != present.as_str());",
        replace: "sessions.clear();",
        effect: "a force-detached volume that comes back is used with the old session: data written by others is lost",
    },
    Mutant {
        name: "number-used-without-its-name",
        file: "driver/src/dsm/nas.rs",
        find: "let calls = target::guarded(target, true, writes);",
        replace: r"if self.list_if_absent(lun, target).await?.is_none() {
            let calls = target::guarded(target, false, writes);
            let results = self.client.call_sequence(&calls).await?;
            return self.write_outcome(lun, target, writes, results).await;
        }
        let calls = target::guarded(target, true, writes);",
        effect: "between lookup and delete, the target id is reused for another volume, whose target is deleted under a running pod",
    },
    Mutant {
        name: "target-open-to-all",
        file: "driver/src/controller/publish.rs",
        find: "let chap = request.chap.clone().or_else(|| self.keys.credentials(&iqn));",
        replace: "let chap = request.chap.clone();",
        effect: "anyone who reaches port 3260 of the NAS can read and write every published volume",
    },
    Mutant {
        name: "stale-pages-written",
        file: "driver/src/node/ended_publication.rs",
        find: r"        self.stop_writes(&ended).await?;
        let dead = !ended.is_alive();
        if dead {
            // After a logout iscsid cannot reconnect, and pending I/O fails: an unmount would wait for it.
            self.log_out_all(&ended).await?;
        } else {
            self.must_be_offline(&ended).await?;
        }",
        replace: "        let dead = !ended.is_alive();",
        effect: "dirty pages of a disconnected node overwrite what another node has written since",
    },
    Mutant {
        name: "ended-publication-taken-from-a-pod",
        file: "driver/src/node/ended_publication.rs",
        find: "self.must_be_out_of_use(uuid, &ended, staging).await?;",
        replace: "",
        effect: "a pod that still uses the volume loses its disk without a visible reason",
    },
    Mutant {
        name: "any-process-is-the-daemon",
        file: "driver/src/host/linux/trust.rs",
        find: ".try_for_each(|cgroup| outside_of_pods(cgroup, own))",
        replace: ".try_for_each(|cgroup| outside_of_pods(cgroup, own).or(Ok(())))",
        effect: "a pod that impersonates iscsid becomes root on the node, and gets the CHAP passwords of volumes",
    },
    Mutant {
        name: "unknown-word-stops",
        file: "driver/src/dsm/location.rs",
        find: "!self.readonly && !is_in(&HIDES_LUNS) && !is_in(&TAKES_NO_LUNS)",
        replace: "!self.readonly && !is_in(&HIDES_LUNS) && self.status == \"normal\"",
        effect: "a NAS volume that is nearly full has the status attention, and no claim is bound any more",
    },
    Mutant {
        name: "unfit-row-passed-over",
        file: "driver/src/dsm/rows.rs",
        find: "match self.unreadable.iter().find(|row| could_be(row)) {",
        replace: "match self.unreadable.iter().find(|row| could_be(row) && row.row.is_null()) {",
        effect: "the row of one of our targets cannot be parsed, Unpublish takes it for absent, and the old node keeps the disk",
    },
    Mutant {
        name: "new-initiator-is-another-node",
        file: "driver/src/controller/unpublish.rs",
        find: "node.is_same_node(&to)",
        replace: "*node == to",
        effect: "a node is reinstalled, and none of its volumes can be attached or deleted any more",
    },
    Mutant {
        name: "refused-login-final",
        file: "driver/src/dsm/client/credential.rs",
        find: "(now < self.next && self.knows(credential)).then(|| {",
        replace: "self.knows(credential).then(|| {",
        effect: "the account is added to administrators, as the message advises, but the driver never logs in again",
    },
    Mutant {
        name: "unreadable-list-is-empty",
        file: "driver/src/node/record.rs",
        find: r#"if_present(self.host.list(&nodes).await).context(format!("listing {nodes}"))?;"#,
        replace: "Some(self.host.list(&nodes).await.unwrap_or_default());",
        effect: "a folder cannot be read for a moment, and a record with its password stays on the node forever",
    },
    Mutant {
        name: "sessions-as-iscsid-conf-says",
        file: "driver/src/host/iscsiadm.rs",
        find: r#"("node.session.nr_sessions", "1"),"#,
        replace: r#"("node.startup", "manual"),"#,
        effect: "a node whose iscsid.conf asks for two sessions has two disks of each volume",
    },
    Mutant {
        name: "final-answer-keeps-session",
        file: "driver/src/node/stage.rs",
        find: r"if !error.is_final() {
            return error;",
        replace: r"if !error.chain().is_empty() {
            return error;",
        effect: "the kubelet forgets a volume that cannot be staged, and the node stays logged in to it forever",
    },
    Mutant {
        name: "staged-only-if-it-grows",
        file: "driver/src/node/stage.rs",
        find: r"        match grown {
            Grown::Full => {}",
        replace: r"        match grown {
            Grown::Never(seen) => {
                return Err(Error::Unverified {
                    what: staging.to_owned(),
                    seen,
                });
            }
            Grown::Full => {}",
        effect: "a volume whose file system cannot grow is expanded once, and no pod can use its data any more",
    },
    Mutant {
        name: "dead-file-system-published",
        file: "driver/src/node/dead_fs.rs",
        find: "if let Some(why) = mount.why_dead() {",
        replace: "if let Some(why) = mount.why_dead().filter(|_| mount.point.is_empty()) {",
        effect: "an ext4 that the kernel has shut down looks healthy: each new pod fails at its first write, without a visible reason",
    },
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn source(mutant: &Mutant) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        fs::read_to_string(root.join(mutant.file)).unwrap()
    }

    #[test]
    fn every_mutant_applies_to_the_current_source() {
        for mutant in MUTANTS {
            let good = source(&mutant);
            let bad = mutant.patch(&good).unwrap();
            assert_ne!(good, bad, "{} changes nothing", mutant.name);
        }
    }

    /// The sample of `cargo ci all` needs only one build.
    #[test]
    fn the_first_mutants_can_be_built_together() {
        for mutant in &MUTANTS[..4] {
            assert!(mutant.is_switchable(), "{}", mutant.name);
        }
        assert!(SWITCH_SOURCE.contains(ACTIVE_VARIABLE));
    }

    #[test]
    fn a_switchable_mutant_checks_for_its_own_name() {
        let mutant = Mutant {
            find: "check()",
            replace: "$ON || check()",
            ..MUTANTS[0]
        };
        let patched = mutant.patch("if check() {}").unwrap();
        assert_eq!(
            patched,
            "if crate::is_active_mutant(\"growth-tool-believed\") || check() {}"
        );
    }

    #[test]
    fn mutants_are_not_in_test_code() {
        for mutant in MUTANTS {
            let source = source(&mutant);
            let at = source.find(mutant.find).unwrap();
            let tests = source.find("#[cfg(test)]\nmod ").unwrap_or(source.len());
            assert!(at < tests, "{} is in a test", mutant.name);
        }
    }

    #[test]
    fn every_mutant_has_a_unique_name_and_an_effect() {
        let names: BTreeSet<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        assert_eq!(names.len(), MUTANTS.len());
        for mutant in MUTANTS {
            assert!(
                !mutant.effect.is_empty() && !mutant.effect.ends_with('.'),
                "{}",
                mutant.name
            );
        }
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let mutant = MUTANTS[0];
        for source in [String::new(), mutant.find.repeat(2)] {
            let error = mutant.patch(&source).unwrap_err().to_string();
            assert!(
                error.contains(mutant.name) && error.contains(mutant.file),
                "{error}"
            );
        }
    }
}
