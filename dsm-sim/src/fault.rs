//! Faults that a test asks for: which calls they hit, and what then happens. Pure: it only chooses.

use serde::{Deserialize, Serialize};

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Fault {
    /// Nothing is done; the answer is this code.
    Refuse { code: u32 },
    /// Everything is done; the connection closes without an answer, as in a crash just after the effect.
    LoseReply,
    /// Everything is done at once; the answer comes later.
    Delay { ms: u64 },
    /// Nothing happens until this fault is deleted; then it is done and answered, unless the client has left.
    Hang,
    /// Everything is done; the answer is half a JSON text.
    Garble,
    /// Nothing is done; the answer is an HTML page with this HTTP status.
    Http { status: u16 },
}

impl Fault {
    /// Its name in the journal.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refuse { .. } => "refuse",
            Self::LoseReply => "lose_reply",
            Self::Delay { .. } => "delay",
            Self::Hang => "hang",
            Self::Garble => "garble",
            Self::Http { .. } => "http",
        }
    }
}

/// A fault and the calls that it hits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// An API's name, or `*`.
    pub(crate) api: String,
    /// A method, or `*`.
    pub(crate) method: String,
    /// The first matching call from now that is hit; 1 = the next.
    #[serde(default = "one")]
    pub(crate) nth: u64,
    /// How many matching calls in a row are hit; 0 = all from then on.
    #[serde(default = "one")]
    pub(crate) times: u64,
    pub(crate) fault: Fault,
    /// Matching calls so far.
    #[serde(default, skip_deserializing)]
    pub(crate) seen: u64,
}

fn one() -> u64 {
    1
}

impl Rule {
    /// Counts a call, and says whether it is hit.
    fn hit(&mut self, api: &str, method: &str) -> bool {
        let matches = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        if !matches(&self.api, api) || !matches(&self.method, method) {
            return false;
        }
        self.seen += 1;
        let nth = self.nth.max(1);
        self.seen >= nth && (self.times == 0 || self.seen < nth.saturating_add(self.times))
    }
}

/// A rule that is set.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Planned {
    /// From 1; never used again.
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) rule: Rule,
}

/// What hits a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// The rule that says so.
    pub(crate) id: u64,
    pub(crate) fault: Fault,
}

/// All faults that are set.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    rules: Vec<Planned>,
    last: u64,
}

impl Plan {
    /// Sets a rule, and numbers it.
    pub(crate) fn add(&mut self, rule: Rule) -> u64 {
        self.last += 1;
        self.rules.push(Planned {
            id: self.last,
            rule,
        });
        self.last
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Removes a rule; whether it was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|planned| planned.id != id);
        self.rules.len() < before
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.rules.iter().any(|planned| planned.id == id)
    }

    pub(crate) fn rules(&self) -> &[Planned] {
        &self.rules
    }

    /// The fault for a compound as a whole: `*` means the calls inside, so only a rule that names the compound counts.
    pub(crate) fn hit_by_name(&mut self, api: &str, method: &str) -> Option<Hit> {
        let named = self
            .rules
            .iter_mut()
            .filter(|planned| planned.rule.api == api);
        first_hit(named, api, method)
    }

    /// The fault for this call, if any. Every rule counts the call; the rule that was set first wins.
    pub(crate) fn hit(&mut self, api: &str, method: &str) -> Option<Hit> {
        first_hit(self.rules.iter_mut(), api, method)
    }
}

fn first_hit<'a>(
    rules: impl Iterator<Item = &'a mut Planned>,
    api: &str,
    method: &str,
) -> Option<Hit> {
    let mut found = None;
    for Planned { id, rule } in rules {
        let hit = rule.hit(api, method);
        found = found.or(hit.then_some(Hit {
            id: *id,
            fault: rule.fault,
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(text: serde_json::Value) -> Rule {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_nth_call_is_hit_and_so_many_after_it() {
        let mut plan = Plan::default();
        plan.add(rule(json!({"api": "A", "method": "*", "nth": 2, "times": 2, "fault": {"kind": "refuse", "code": 5}})));
        assert_eq!(plan.hit("B", "get"), None);
        let hits: Vec<bool> = (0..5).map(|_| plan.hit("A", "get").is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
    }

    #[test]
    fn zero_times_is_for_ever_and_the_default_is_the_next_call_once() {
        let mut plan = Plan::default();
        plan.add(rule(
            json!({"api": "*", "method": "set", "times": 0, "fault": {"kind": "hang"}}),
        ));
        let hit = |plan: &mut Plan| plan.hit("A", "set").map(|hit| hit.fault);
        assert!((0..4).all(|_| hit(&mut plan) == Some(Fault::Hang)));
        plan.clear();
        plan.add(rule(
            json!({"api": "A", "method": "set", "fault": {"kind": "delay", "ms": 3}}),
        ));
        assert_eq!(
            (hit(&mut plan), hit(&mut plan)),
            (Some(Fault::Delay { ms: 3 }), None)
        );
    }

    #[test]
    fn a_rule_is_removed_by_its_number() {
        let mut plan = Plan::default();
        let always = |kind: &str| {
            rule(json!({"api": "A", "method": "*", "times": 0, "fault": {"kind": kind}}))
        };
        let (first, second) = (plan.add(always("garble")), plan.add(always("hang")));
        assert_eq!(plan.hit("A", "get").map(|hit| hit.id), Some(first));
        assert!(plan.remove(first) && !plan.remove(first) && plan.has(second));
        assert_eq!(plan.hit("A", "get").map(|hit| hit.id), Some(second));
        plan.clear();
        assert_eq!(plan.add(always("hang")), 3, "numbers are not used again");
    }

    #[test]
    fn unknown_kinds_are_refused() {
        let bad = json!({"api": "A", "method": "set", "fault": {"kind": "explode"}});
        assert!(
            serde_json::from_value::<Rule>(bad)
                .unwrap_err()
                .to_string()
                .contains("lose_reply")
        );
    }
}
