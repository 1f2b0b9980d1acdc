//! Counts the DSM calls of each CSI call, from the journal of the NAS.

use std::collections::HashSet;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::harness::nas::{Entry, Nas};

/// A CSI call and the DSM calls that it caused.
#[derive(Clone, Debug)]
pub struct Row {
    /// The RPC.
    pub rpc: &'static str,
    /// The DSM calls in order, without logins and polls.
    pub calls: Vec<Entry>,
    /// The number of HTTP requests that carried them: round trips to the NAS.
    pub requests: usize,
    /// Repeated reads of a LUN that was still locked or being deleted; their number is bounded, and not part of the cost.
    pub polls: usize,
    /// Latency for the caller.
    pub elapsed: Duration,
}

impl Row {
    fn new(rpc: &'static str, elapsed: Duration, journal: Vec<Entry>) -> Self {
        let mut calls: Vec<Entry> = Vec::new();
        let mut polls = 0;
        for entry in journal.into_iter().filter(|entry| !entry.is_session()) {
            let is_poll = |last: &Entry| {
                entry.method == "get"
                    && last.short() == entry.short()
                    && last.params == entry.params
            };
            if calls.last().is_some_and(is_poll) {
                polls += 1;
                calls.pop();
            }
            calls.push(entry);
        }
        let requests = calls
            .iter()
            .map(|entry| entry.request)
            .collect::<HashSet<_>>()
            .len();
        Self {
            rpc,
            calls,
            requests,
            polls,
            elapsed,
        }
    }

    /// `LUN.create · LUN.get`; calls that share a request are joined by `+`.
    pub fn call_sequence(&self) -> String {
        let mut text = String::new();
        for (n, entry) in self.calls.iter().enumerate() {
            if n > 0 {
                text += if self.calls[n - 1].request == entry.request {
                    " + "
                } else {
                    " · "
                };
            }
            text += &entry.short();
        }
        if text.is_empty() {
            "none".to_owned()
        } else {
            text
        }
    }
}

/// Makes CSI calls one at a time and records their costs.
#[derive(Debug, Default)]
pub struct CallCosts {
    /// In the order of the calls.
    pub rows: Vec<Row>,
}

impl CallCosts {
    /// Awaits a CSI call and adds its row.
    ///
    /// # Errors
    /// The call fails, or the NAS does not answer.
    pub async fn call<T, E>(
        &mut self,
        nas: &Nas,
        rpc: &'static str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (_, before) = nas.journal(u64::MAX).await?;
        let started = Instant::now();
        let answer = call
            .await
            .map_err(|error| anyhow::Error::new(error).context(rpc))?;
        let elapsed = started.elapsed();
        self.rows
            .push(Row::new(rpc, elapsed, nas.journal(before).await?.0));
        Ok(answer)
    }

    /// The row of an RPC that was called once.
    pub fn row(&self, rpc: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.rpc == rpc)
    }
}
