//! Detects that a NAS hangs (design.md#limits-per-nas). A NAS that hangs accepts connections and never replies: all waiting calls
//! fail together, long before their own timeouts. A slow NAS still answers other requests, or a cheap probe, and is waited for.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument as _, info, warn};

use super::Client;
use crate::dsm::reply::{DsmError, Silence};
use crate::dsm::transport::Failure;
use crate::metrics::{self, DsmCall};

/// How long a NAS may leave all pending requests unanswered before it is probed.
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// Timeout of the probe: a very busy NAS is slow with everything. With [`PROBE_AFTER`] 14 s: a login has 15 s, and a CSI call,
/// which sends at most one more request and gets that error immediately, ends within 20 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(9);
/// Pause after a failed probe.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How long to wait for a late reply to a failed probe: it shows that the NAS is back.
const LATE_REPLY_LIMIT: Duration = Duration::from_secs(60);

const API: &str = "SYNO.API.Info";
const METHOD: &str = "query";

/// When a NAS last answered, and the state of probes.
#[derive(Debug, Default)]
struct State {
    /// The last reply of any kind.
    last_reply: Option<Instant>,
    /// How many probes have been sent.
    probes: u64,
    /// A probe is in progress.
    probing: bool,
    /// The NAS is silent, and when this was last established.
    silent: Option<(Instant, Silence)>,
}

impl State {
    fn silence(&self) -> Option<&Silence> {
        self.silent.as_ref().map(|(_, silence)| silence)
    }
}

/// The liveness of one NAS, shared by all its requests.
#[derive(Debug, Default)]
pub(super) struct Liveness(watch::Sender<State>);

impl Liveness {
    /// There was a reply.
    fn note_reply(&self) {
        self.0.send_if_modified(|state| {
            state.last_reply = Some(Instant::now());
            state.silent.take().is_some()
        });
    }

    /// Resolves when the NAS is known to be silent.
    pub(super) async fn silence(&self) -> Silence {
        let mut watch = self.0.subscribe();
        let silent = watch.wait_for(|state| state.silent.is_some()).await;
        let silence = silent.as_ref().ok().and_then(|state| state.silence());
        silence.expect("the sender lives in `self`").clone()
    }

    /// Starts a probe, and returns its number; `None` if one is in progress.
    fn start_probe(&self) -> Option<u64> {
        let mut number = None;
        self.0.send_if_modified(|state| {
            if !state.probing {
                state.probing = true;
                state.probes += 1;
                number = Some(state.probes);
            }
            number.is_some()
        });
        number
    }

    /// A request that was sent at `sent` had no reply. Ignored if there was any other reply since. Returns whether the NAS has
    /// become silent by this.
    fn note_silence(&self, sent: Instant, mut silence: Silence) -> bool {
        let mut changed = false;
        self.0.send_modify(|state| {
            if state.last_reply.is_none_or(|at| at < sent) {
                changed = state.silent.is_none();
                if let Some(before) = state.silence() {
                    silence.since = silence.since.min(before.since);
                }
                state.silent = Some((Instant::now(), silence));
            }
        });
        changed
    }

    /// The probe has ended.
    fn end_probe(&self) {
        self.0.send_modify(|state| state.probing = false);
    }
}

/// A reply of any kind: the NAS is alive.
fn is_reply<T>(outcome: &Result<T, Failure>) -> bool {
    match outcome {
        Ok(_) | Err(Failure::Refused(_) | Failure::TooLarge(_)) => true,
        Err(Failure::Unreachable(_) | Failure::Lost(_)) => false,
    }
}

impl Client {
    /// Fails if the NAS is silent. Then nothing is sent to it but one probe at a time, whose outcome all waiting calls share.
    ///
    /// # Errors
    /// [`DsmError::Silent`]: the NAS has not answered the probe, or the last one just before.
    pub(super) async fn check_alive(&self) -> Result<(), DsmError> {
        let since = {
            let state = self.liveness.0.borrow();
            let Some((at, silence)) = &state.silent else {
                return Ok(());
            };
            if !state.probing && at.elapsed() < PROBE_INTERVAL {
                return Err(DsmError::Silent(silence.clone()));
            }
            silence.since
        };
        self.probe(since);
        let mut watch = self.liveness.0.subscribe();
        let updated = watch
            .wait_for(|state| !state.probing || state.silent.is_none())
            .await;
        let silence = updated.as_ref().ok().and_then(|state| state.silence());
        silence.map_or(Ok(()), |silence| Err(DsmError::Silent(silence.clone())))
    }

    /// Waits for the end of an exchange, as long as the NAS is alive.
    ///
    /// # Errors
    /// [`Silence`]: it is not.
    pub(super) async fn while_alive<T>(
        &self,
        exchange: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Result<T, Failure>, Silence> {
        let sent = Instant::now();
        let mut exchange = pin!(exchange);
        let mut watch = self.liveness.0.subscribe();
        loop {
            let (last, probing, silence) = {
                let state = watch.borrow_and_update();
                let last = state.last_reply.map_or(sent, |reply| reply.max(sent));
                (last, state.probing, state.silence().cloned())
            };
            if !probing && silence.is_none() && last.elapsed() >= PROBE_AFTER {
                self.probe(SystemTime::now() - last.elapsed());
                continue;
            }
            tokio::select! {
                biased;
                outcome = &mut exchange => {
                    self.note_outcome(&outcome, sent);
                    return Ok(outcome);
                }
                silence = async { silence.expect("checked by the branch condition") }, if silence.is_some() => return Err(silence),
                _ = watch.changed() => {}
                () = sleep_until(last + PROBE_AFTER), if !probing => {}
            }
        }
    }

    /// Updates the liveness from the outcome of an exchange.
    fn note_outcome<T>(&self, outcome: &Result<T, Failure>, sent: Instant) {
        if is_reply(outcome) {
            self.liveness.note_reply();
        } else if let Err(Failure::Unreachable(why)) = outcome
            && sent.elapsed() >= SILENCE_LIMIT
        {
            // No host at that address is as conclusive as no reply to a probe: the NAS is off, or unplugged.
            let since = SystemTime::now() - sent.elapsed();
            self.give_up(sent, since, format!("no connection ({why})"));
        }
    }

    /// Sends the cheapest request as a probe, unless one is in progress: any reply will do.
    fn probe(&self, since: SystemTime) {
        if let Some(number) = self.liveness.start_probe() {
            tokio::spawn(self.clone().run_probe(number, since).in_current_span());
        }
    }

    async fn run_probe(self, number: u64, since: SystemTime) {
        let form = format!("api={API}&version=1&method={METHOD}&query=SYNO.API.Auth");
        let request = self.request("query.cgi").body(form);
        let sent = Instant::now();
        let mut reply = pin!(async {
            let request = request.map_err(|error| Failure::Unreachable(error.into()))?;
            self.transport.send(request).await
        });
        let first = timeout(SILENCE_LIMIT, &mut reply).await;
        let answered = first.as_ref().is_ok_and(is_reply);
        self.count(answered, sent);
        match first {
            Ok(Err(Failure::Unreachable(why) | Failure::Lost(why))) => {
                self.give_up(sent, since, format!("{API} {METHOD}, too, failed ({why})"));
                self.liveness.end_probe();
            }
            Ok(Ok(_) | Err(Failure::Refused(_) | Failure::TooLarge(_))) => self.note_recovery(),
            Err(_) => {
                let limit = SILENCE_LIMIT.as_secs();
                let cause = format!("{API} {METHOD}, too, had no answer within {limit} s");
                self.give_up(sent, since, cause);
                self.liveness.end_probe();
                self.await_late_reply(number, reply).await;
            }
        }
    }

    /// A NAS that recovers answers pending requests.
    async fn await_late_reply<T>(
        &self,
        number: u64,
        reply: impl Future<Output = Result<T, Failure>>,
    ) {
        let mut watch = self.liveness.0.subscribe();
        let another = watch.wait_for(|state| state.probes != number);
        tokio::select! {
            Ok(outcome) = timeout(LATE_REPLY_LIMIT, reply) => {
                if is_reply(&outcome) {
                    self.note_recovery();
                }
            }
            _ = another => {}
        }
    }

    fn note_recovery(&self) {
        if self.liveness.0.borrow().silent.is_some() {
            info!(nas = %self.account.nas, "the NAS answers again");
        }
        self.liveness.note_reply();
        self.liveness.end_probe();
    }

    fn give_up(&self, sent: Instant, since: SystemTime, cause: String) {
        let silence = Silence {
            nas: self.account.nas.to_string(),
            url: self.account.url.clone(),
            since,
            cause,
        };
        if self.liveness.note_silence(sent, silence.clone()) {
            warn!(%silence, "failing all calls that wait for this NAS; it is probed again with the next call");
        }
    }

    fn count(&self, answered: bool, sent: Instant) {
        let nas = self.account.nas.to_string();
        let call = DsmCall {
            nas: &nas,
            api: API,
            method: METHOD,
        };
        let label = if answered { "ok" } else { "lost" };
        metrics::of_process().dsm(call, label.into(), answered, sent.elapsed());
    }
}

#[cfg(test)]
mod tests;
