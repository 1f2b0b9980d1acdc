//! Whether a NAS answers at all (design.md#limits-per-nas). One that hangs takes connections and never says a word: whoever waits for it learns that
//! together, long before his own deadline. One that is slow answers others meanwhile, or a question that costs it nothing, and is waited for.

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

/// How long a NAS may say nothing to anybody who waits until it is asked whether it is there.
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// How long that question may take: a NAS that is very busy is slow with everything. Both together are 14 s: a login has 15 s, and a call of
/// the CO, which asks once more at the most and learns that at once, ends within 20 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(9);
/// How long after a question without an answer nobody asks again.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// The answer to such a question is still heard for so long: it says that the NAS is there again.
const STILL_HEARD: Duration = Duration::from_secs(60);

const API: &str = "SYNO.API.Info";
const METHOD: &str = "query";

/// What is known of a NAS's answers.
#[derive(Debug, Default)]
struct Seen {
    /// When anything was answered last.
    heard: Option<Instant>,
    /// How many questions have been asked.
    questions: u64,
    /// The last of them is neither answered nor given up.
    asking: bool,
    /// It was given up, and when.
    silent: Option<(Instant, Silence)>,
}

impl Seen {
    fn silence(&self) -> Option<&Silence> {
        self.silent.as_ref().map(|(_, silence)| silence)
    }
}

/// The answers of one NAS, to whomever.
#[derive(Debug, Default)]
pub(super) struct Liveness(watch::Sender<Seen>);

impl Liveness {
    /// Something was answered.
    fn heard(&self) {
        self.0.send_if_modified(|seen| {
            seen.heard = Some(Instant::now());
            seen.silent.take().is_some()
        });
    }

    /// Ends when the NAS is known to be silent.
    pub(super) async fn silence(&self) -> Silence {
        let mut watch = self.0.subscribe();
        let silent = watch.wait_for(|seen| seen.silent.is_some()).await;
        let silence = silent.as_ref().ok().and_then(|seen| seen.silence());
        silence.expect("the sender lives in `self`").clone()
    }

    /// The number of a question, if none is under way.
    fn begin(&self) -> Option<u64> {
        let mut begun = None;
        self.0.send_if_modified(|seen| {
            if !seen.asking {
                seen.asking = true;
                seen.questions += 1;
                begun = Some(seen.questions);
            }
            begun.is_some()
        });
        begun
    }

    /// What was sent at `sent` had no answer. Whoever was answered meanwhile knows better. Whether that is news.
    fn given_up(&self, sent: Instant, mut silence: Silence) -> bool {
        let mut news = false;
        self.0.send_modify(|seen| {
            if seen.heard.is_none_or(|at| at < sent) {
                news = seen.silent.is_none();
                if let Some(before) = seen.silence() {
                    silence.since = silence.since.min(before.since);
                }
                seen.silent = Some((Instant::now(), silence));
            }
        });
        news
    }

    /// The question has been answered or given up.
    fn asked(&self) {
        self.0.send_modify(|seen| seen.asking = false);
    }
}

/// An answer of whatever kind: somebody is there.
fn is_answer<T>(outcome: &Result<T, Failure>) -> bool {
    match outcome {
        Ok(_) | Err(Failure::Refused(_) | Failure::TooLarge(_)) => true,
        Err(Failure::Unreachable(_) | Failure::Lost(_)) => false,
    }
}

impl Client {
    /// A NAS that is known to be silent is sent nothing but one question at a time, whose outcome all share who come meanwhile.
    ///
    /// # Errors
    /// [`DsmError::Silent`]: it has not answered that either, or not the last one just before.
    pub(super) async fn listen(&self) -> Result<(), DsmError> {
        let since = {
            let seen = self.pulse.0.borrow();
            let Some((at, silence)) = &seen.silent else {
                return Ok(());
            };
            if !seen.asking && at.elapsed() < PROBE_INTERVAL {
                return Err(DsmError::Silent(silence.clone()));
            }
            silence.since
        };
        self.ask(since);
        let mut watch = self.pulse.0.subscribe();
        let known = watch
            .wait_for(|seen| !seen.asking || seen.silent.is_none())
            .await;
        let silence = known.as_ref().ok().and_then(|seen| seen.silence());
        silence.map_or(Ok(()), |silence| Err(DsmError::Silent(silence.clone())))
    }

    /// Waits for the end of an exchange for as long as the NAS answers at all.
    ///
    /// # Errors
    /// [`Silence`]: it does not.
    pub(super) async fn while_heard<T>(
        &self,
        exchange: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Result<T, Failure>, Silence> {
        let sent = Instant::now();
        let mut exchange = pin!(exchange);
        let mut watch = self.pulse.0.subscribe();
        loop {
            let (last, asking, silence) = {
                let seen = watch.borrow_and_update();
                let last = seen.heard.map_or(sent, |heard| heard.max(sent));
                (last, seen.asking, seen.silence().cloned())
            };
            if !asking && silence.is_none() && last.elapsed() >= PROBE_AFTER {
                self.ask(SystemTime::now() - last.elapsed());
                continue;
            }
            tokio::select! {
                biased;
                outcome = &mut exchange => {
                    self.learn(&outcome, sent);
                    return Ok(outcome);
                }
                silence = async { silence.expect("there is one") }, if silence.is_some() => return Err(silence),
                _ = watch.changed() => {}
                () = sleep_until(last + PROBE_AFTER), if !asking => {}
            }
        }
    }

    /// Learns from what has come of an exchange.
    fn learn<T>(&self, outcome: &Result<T, Failure>, sent: Instant) {
        if is_answer(outcome) {
            self.pulse.heard();
        } else if let Err(Failure::Unreachable(why)) = outcome
            && sent.elapsed() >= SILENCE_LIMIT
        {
            // Nobody at that address says as much as that nobody listens there: it is off, or unplugged.
            let since = SystemTime::now() - sent.elapsed();
            self.give_up(sent, since, format!("no connection ({why})"));
        }
    }

    /// Asks the NAS the cheapest question there is, unless it is being asked: what it says to that is of no matter.
    fn ask(&self, since: SystemTime) {
        if let Some(number) = self.pulse.begin() {
            tokio::spawn(self.clone().question(number, since).in_current_span());
        }
    }

    async fn question(self, number: u64, since: SystemTime) {
        let form = format!("api={API}&version=1&method={METHOD}&query=SYNO.API.Auth");
        let request = self.request("query.cgi").body(form);
        let asked = Instant::now();
        let mut answer = pin!(async {
            let request = request.map_err(|error| Failure::Unreachable(error.into()))?;
            self.wire.send(request).await
        });
        let first = timeout(SILENCE_LIMIT, &mut answer).await;
        let answered = first.as_ref().is_ok_and(is_answer);
        self.count(answered, asked);
        match first {
            Ok(Err(Failure::Unreachable(why) | Failure::Lost(why))) => {
                self.give_up(asked, since, format!("{API} {METHOD}, too, failed ({why})"));
                self.pulse.asked();
            }
            Ok(Ok(_) | Err(Failure::Refused(_) | Failure::TooLarge(_))) => self.answers(),
            Err(_) => {
                let patience = SILENCE_LIMIT.as_secs();
                let seen = format!("{API} {METHOD}, too, had no answer within {patience} s");
                self.give_up(asked, since, seen);
                self.pulse.asked();
                self.hear_still(number, answer).await;
            }
        }
    }

    /// A NAS that comes to itself answers what it was asked before.
    async fn hear_still<T>(&self, number: u64, answer: impl Future<Output = Result<T, Failure>>) {
        let mut watch = self.pulse.0.subscribe();
        let another = watch.wait_for(|seen| seen.questions != number);
        tokio::select! {
            Ok(outcome) = timeout(STILL_HEARD, answer) => {
                if is_answer(&outcome) {
                    self.answers();
                }
            }
            _ = another => {}
        }
    }

    fn answers(&self) {
        if self.pulse.0.borrow().silent.is_some() {
            info!(nas = %self.account.nas, "the NAS answers again");
        }
        self.pulse.heard();
        self.pulse.asked();
    }

    fn give_up(&self, sent: Instant, since: SystemTime, seen: String) {
        let silence = Silence {
            nas: self.account.nas.to_string(),
            url: self.account.url.clone(),
            since,
            seen,
        };
        if self.pulse.given_up(sent, silence.clone()) {
            warn!(%silence, "whoever waits for this NAS is told so; it is asked again with the next call");
        }
    }

    fn count(&self, answered: bool, asked: Instant) {
        let nas = self.account.nas.to_string();
        let call = DsmCall {
            nas: &nas,
            api: API,
            method: METHOD,
        };
        let label = if answered { "ok" } else { "lost" };
        metrics::of_process().dsm(call, label.into(), answered, asked.elapsed());
    }
}

#[cfg(test)]
mod tests;
