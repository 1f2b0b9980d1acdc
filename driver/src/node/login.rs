//! iSCSI logins: to the first portal that accepts, or to all of them, and which failures are final (design.md#portals,
//! #unstage-needs-no-nas and #final-codes).

use std::pin::pin;
use std::time::Duration;

use futures::future::{join, join_all};

use super::Machine;
use super::attachment::SESSION_TIMEOUT;
use crate::chap::{Chap, Method, PASSWORD, PASSWORD_IN, USERNAME, USERNAME_IN, field};
use crate::error::{Context as _, Error};
use crate::host::disk::{self};
use crate::host::iscsiadm::{self, Login};
use crate::host::session::{self, Session};
use crate::host::{Exit, Host, HostError, KernelFiles};
use crate::publication::{Iqn, Portal, PublishContext};

/// How long the first portal is tried alone. A reachable one has answered by then, and if it rejects the CHAP credentials, the
/// others would, too: each further attempt is one more failed login in the log of the NAS.
const HEAD_START: Duration = Duration::from_secs(1);

/// A portal and the result of the login there.
type LoginAttempt = (Portal, Result<Exit, HostError>);

impl<H: Host> Machine<H> {
    /// Logs in to the first of `portals` that accepts, or, with `all_portals`, to all that do. If the volume is `reachable`
    /// through other sessions, failures are only logged.
    pub(super) async fn login(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
        portals: &[Portal],
        (all_portals, reachable): (bool, bool),
    ) -> Result<Vec<Session>, Error> {
        let attempts = if all_portals {
            self.try_all(&context.iqn, chap, portals).await?
        } else {
            self.try_in_turn(&context.iqn, chap, portals).await?
        };
        let (mut sessions, mut refusals) = (Vec::new(), Vec::new());
        for (portal, exit) in attempts {
            let doing = format!("logging in to {} at {portal}", context.iqn);
            let exit = match exit {
                Err(hung @ HostError::DeadlineExceeded { .. }) if all_portals => {
                    tracing::warn!(%portal, target = %context.iqn, "the portal does not answer in time");
                    refusals.push((format!("{portal}: no answer in time"), false, hung));
                    continue;
                }
                other => other.context(&doing)?,
            };
            match iscsiadm::read_login(&exit) {
                Login::New | Login::Existing => {
                    sessions.push(self.wait_for_session(&context.iqn, portal).await?);
                }
                Login::Unconfirmed => return Err(self.auth_failed(context, &portal, chap).await),
                Login::Refused {
                    cause,
                    permanent: for_good,
                } => {
                    tracing::warn!(%portal, target = %context.iqn, cause, status = exit.status, "login refused");
                    let refusal = exit.failed(iscsiadm::PROGRAM);
                    refusals.push((format!("{portal}: {cause}"), for_good, refusal));
                }
            }
        }
        if sessions.is_empty() && !reachable {
            return Err(self.no_session(context, chap, refusals).await);
        }
        Ok(sessions)
    }

    /// Stops at the first session: a second one would be a second disk without a map over both.
    async fn try_in_turn(
        &self,
        iqn: &Iqn,
        chap: Option<&Chap>,
        portals: &[Portal],
    ) -> Result<Vec<LoginAttempt>, Error> {
        let mut attempts = Vec::new();
        for portal in portals {
            self.write_record(iqn, portal, chap).await?;
            let attempt = self.try_one(iqn, portal).await;
            // A login that hangs may still create its session.
            let enough =
                attempt.1.is_err() || is_conclusive(&attempt, chap) || is_accepted(&attempt);
            attempts.push(attempt);
            if enough {
                break;
            }
        }
        Ok(attempts)
    }

    /// Tries all at once, because an unreachable portal takes the whole login timeout. All records are written first:
    /// [`super::missing_paths`] uses them for portals that are down now.
    async fn try_all(
        &self,
        iqn: &Iqn,
        chap: Option<&Chap>,
        portals: &[Portal],
    ) -> Result<Vec<LoginAttempt>, Error> {
        for portal in portals {
            self.write_record(iqn, portal, chap).await?;
        }
        let Some((first, others)) = portals.split_first() else {
            return Ok(vec![]);
        };
        let mut first = pin!(self.try_one(iqn, first));
        let early = tokio::select! {
            biased;
            attempt = &mut first => Some(attempt),
            () = self.host.pause(HEAD_START) => None,
        };
        if let Some(attempt) = early.as_ref()
            && is_conclusive(attempt, chap)
        {
            return Ok(early.into_iter().collect());
        }
        let others = join_all(others.iter().map(|portal| self.try_one(iqn, portal)));
        let (first, others) = match early {
            Some(attempt) => (attempt, others.await),
            None => join(first, others).await,
        };
        Ok(std::iter::once(first).chain(others).collect())
    }

    async fn try_one(&self, iqn: &Iqn, portal: &Portal) -> LoginAttempt {
        let login = iscsiadm::login(iqn, portal);
        (*portal, self.run_on_records(login).await)
    }

    /// Waits for the session of a login to appear in sysfs.
    pub(super) async fn wait_for_session(
        &self,
        iqn: &Iqn,
        portal: Portal,
    ) -> Result<Session, Error> {
        let doing = format!("waiting for the session with {iqn}");
        let check = || async {
            let (names, wanted) = (self.target_names.clone(), iqn.to_string());
            let read = move |files: &dyn KernelFiles| {
                session::sessions(files, &names, |target| target == wanted)
            };
            let mut all = self
                .host
                .blocking("listing iSCSI sessions", read)
                .await?
                .into_iter();
            Ok(all.find(|session| session.portal.is_none_or(|at| at == portal)))
        };
        disk::poll_until(&self.host, SESSION_TIMEOUT, check)
            .await
            .context(&doing)?
            .ok_or_else(|| Error::Unverified {
                what: format!("the login to {iqn}"),
                seen: "iscsiadm reports success, but the kernel has no such session".to_owned(),
            })
    }

    /// No portal accepted the login. Final only if every portal's refusal is permanent and nothing is left behind.
    async fn no_session(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
        refusals: Vec<(String, bool, HostError)>,
    ) -> Error {
        let for_good =
            self.clean_up(context).await && refusals.iter().all(|(_, for_good, _)| *for_good);
        let seen: Vec<String> = refusals.iter().map(|(cause, ..)| cause.clone()).collect();
        let (what, seen) = (format!("logging in to {}", context.iqn), seen.join("; "));
        if for_good {
            let published = "check that the volume is still published to this node";
            let remedy = match Method::of(chap) {
                Method::None | Method::Chap => published.to_owned(),
                // iscsiadm also returns 19 (no such target) if the target fails mutual authentication.
                Method::Mutual => format!(
                    "{published}, and that the target proves itself with {} and {}",
                    field(USERNAME_IN),
                    field(PASSWORD_IN)
                ),
            };
            return Error::Refused { what, seen, remedy };
        }
        match refusals.into_iter().next_back() {
            Some((.., source)) => Error::Host {
                doing: format!("{what}: {seen}"),
                source,
            },
            None => Error::Unverified {
                what,
                seen: "publish_context names no portal".to_owned(),
            },
        }
    }

    /// The target rejects the CHAP credentials, or wants some. Final only if nothing is left behind.
    async fn auth_failed(
        &self,
        context: &PublishContext,
        portal: &Portal,
        chap: Option<&Chap>,
    ) -> Error {
        let what = format!("logging in to {} at {portal}", context.iqn);
        let (seen, remedy) = match chap {
            None => (
                "the target wants CHAP, and this call brings no secrets".to_owned(),
                "name its Secret in the StorageClass as csi.storage.k8s.io/controller-publish-secret-name and csi.storage.k8s.io/node-stage-secret-name".to_owned(),
            ),
            Some(_) => (
                "the target does not accept the CHAP name and password".to_owned(),
                format!(
                    "check {} and {}: ControllerPublishVolume and NodeStageVolume must be given the same Secret, and a changed one takes effect when the volume is published again",
                    field(USERNAME),
                    field(PASSWORD)
                ),
            ),
        };
        if self.clean_up(context).await {
            Error::Unauthenticated { what, seen, remedy }
        } else {
            let seen = format!("{seen} ({remedy}), and a session or record may be left");
            Error::Unverified { what, seen }
        }
    }

    /// Deletes the records if there is no session; true if neither is left. A failed login may still have created its session:
    /// then the records stay with it, and the next call continues with both.
    async fn clean_up(&self, context: &PublishContext) -> bool {
        let no_session = async || {
            matches!(
                self.sessions_of(Some(&context.uuid)).await.as_deref(),
                Ok([])
            )
        };
        no_session().await && self.delete_records(&context.iqn).await.is_ok() && no_session().await
    }
}

fn is_accepted((_, exit): &LoginAttempt) -> bool {
    let exit = exit.as_ref().map(iscsiadm::read_login);
    matches!(exit, Ok(Login::New | Login::Existing))
}

/// True if the result makes logins at the other portals pointless: they are the same target and would refuse for the same
/// reason, or iscsiadm cannot be started at all.
fn is_conclusive((_, exit): &LoginAttempt, chap: Option<&Chap>) -> bool {
    let exit = match exit {
        Ok(exit) => exit,
        Err(error) => return !matches!(error, HostError::DeadlineExceeded { .. }),
    };
    match iscsiadm::read_login(exit) {
        Login::Unconfirmed => true,
        Login::Refused {
            permanent: for_good,
            ..
        } => for_good && Method::of(chap) == Method::Mutual,
        Login::New | Login::Existing => false,
    }
}
