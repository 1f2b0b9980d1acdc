//! Fault injection: the rules that decide which calls a fault hits. Pure: `server` carries the faults out.

use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::nas::call::Call;

/// A fault injected into a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The reply is this error code. The call has no effect, or its full effect.
    Refuse {
        /// DSM error code.
        code: u32,
        /// Whether the call takes effect first.
        #[serde(default)]
        after: bool,
    },
    /// The call takes effect, then the connection closes without a reply, as in a crash just after the effect.
    LoseReply,
    /// The call has no effect; the connection closes without a reply, as in a crash just before the effect.
    LoseCall,
    /// The call takes effect at once; the reply is delayed.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// The call hangs until this fault is removed. Then it is carried out, unless the client has disconnected.
    Hang,
    /// The call takes effect; the reply is truncated JSON.
    Garble,
    /// The reply is an HTML page with this HTTP status. The call has no effect, or its full effect.
    Http {
        /// HTTP status code.
        status: u16,
        /// Whether the call takes effect first.
        #[serde(default)]
        after: bool,
    },
}

impl Fault {
    /// Name in the journal.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refuse { .. } => "refuse",
            Self::LoseReply => "lose_reply",
            Self::LoseCall => "lose_call",
            Self::Delay { .. } => "delay",
            Self::Hang => "hang",
            Self::Garble => "garble",
            Self::Http { .. } => "http",
        }
    }
}

/// A fault and the calls that it hits; by default ([`Rule::new`]) the next matching call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// API name, or `*`.
    pub(crate) api: String,
    /// Method name, or `*`.
    pub(crate) method: String,
    /// A uuid, name, number or path: only calls with this parameter value, or with a list that contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<String>,
    /// The first matching call to hit, counted from now; 1 = the next.
    #[serde(default = "one")]
    pub(crate) nth: u64,
    /// Number of consecutive matching calls to hit; 0 = all from then on.
    #[serde(default = "one")]
    pub(crate) times: u64,
    /// Probability that each of those is hit, 0 to 1.
    #[serde(default = "always")]
    pub(crate) probability: f64,
    pub(crate) fault: Fault,
    /// Number of matching calls so far.
    #[serde(default, skip_deserializing)]
    pub(crate) seen: u64,
}

fn one() -> u64 {
    1
}

fn always() -> f64 {
    1.0
}

impl Rule {
    /// Hits the next call of this method; `*` matches any API or method.
    #[must_use]
    pub fn new(api: impl Into<String>, method: impl Into<String>, fault: Fault) -> Self {
        Self {
            api: api.into(),
            method: method.into(),
            object: None,
            nth: one(),
            times: one(),
            probability: always(),
            fault,
            seen: 0,
        }
    }

    /// Hits only calls with a parameter that is this uuid, name, number or path, or a list that contains it.
    #[must_use]
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// Hits the nth matching call instead of the next one.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.nth = nth;
        self
    }

    /// Hits this many consecutive matching calls; 0 = all from then on.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Hits each of them with this probability, clamped to 0 to 1.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability.clamp(0.0, 1.0);
        self
    }

    /// Validates the rule. The error is for the client.
    pub(crate) fn check(&self) -> Result<(), String> {
        if (0.0..=1.0).contains(&self.probability) {
            return Ok(());
        }
        let probability = self.probability;
        Err(format!("probability {probability} is not between 0 and 1"))
    }

    /// Counts a matching call. Returns whether it is hit.
    fn hit(&mut self, call: &Call, rng: &mut StdRng) -> bool {
        let matches = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        let named = |object: &String| call.params.contains_value(object);
        if !matches(&self.api, &call.api)
            || !matches(&self.method, &call.method)
            || !self.object.as_ref().is_none_or(named)
        {
            return false;
        }
        self.seen += 1;
        let nth = self.nth.max(1);
        let due =
            self.seen >= nth && (self.times == 0 || self.seen < nth.saturating_add(self.times));
        due && rng.random_bool(self.probability)
    }
}

/// An active rule.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ActiveRule {
    /// From 1; never reused.
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) rule: Rule,
}

/// The fault that hits a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Id of its rule.
    pub(crate) id: u64,
    pub(crate) fault: Fault,
}

/// All active rules.
#[derive(Debug)]
pub(crate) struct Plan {
    rules: Vec<ActiveRule>,
    last: u64,
    /// For rules with a probability below 1.
    rng: StdRng,
}

impl Plan {
    pub(crate) fn new(rng: StdRng) -> Self {
        Self {
            rules: Vec::new(),
            last: 0,
            rng,
        }
    }

    /// Adds a rule. Returns its id.
    pub(crate) fn add(&mut self, rule: Rule) -> u64 {
        self.last += 1;
        self.rules.push(ActiveRule {
            id: self.last,
            rule,
        });
        self.last
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Removes a rule. Returns whether it existed.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|active| active.id != id);
        self.rules.len() < before
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.rules.iter().any(|active| active.id == id)
    }

    pub(crate) fn rules(&self) -> &[ActiveRule] {
        &self.rules
    }

    /// The fault for a compound as a whole. Only a rule that names the compound's API applies: `*` means the calls in it.
    pub(crate) fn hit_by_name(&mut self, call: &Call) -> Option<Hit> {
        let named = |active: &&mut ActiveRule| active.rule.api == call.api;
        first_hit(self.rules.iter_mut().filter(named), call, &mut self.rng)
    }

    /// The fault for this call, if any. Every rule counts the call; the oldest matching rule wins.
    pub(crate) fn hit(&mut self, call: &Call) -> Option<Hit> {
        first_hit(self.rules.iter_mut(), call, &mut self.rng)
    }
}

fn first_hit<'a>(
    rules: impl Iterator<Item = &'a mut ActiveRule>,
    call: &Call,
    rng: &mut StdRng,
) -> Option<Hit> {
    let mut found = None;
    for ActiveRule { id, rule } in rules {
        let hit = rule.hit(call, rng);
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
    use crate::nas::tests::caller;
    use rand::SeedableRng;
    use serde_json::json;

    fn plan<const N: usize>(rules: [serde_json::Value; N]) -> Plan {
        let mut plan = Plan::new(StdRng::seed_from_u64(3));
        for rule in rules {
            plan.add(serde_json::from_value(rule).unwrap());
        }
        plan
    }

    fn call(api: &str, method: &str, params: &[(&str, &str)]) -> Call {
        Call {
            api: api.to_owned(),
            method: method.to_owned(),
            version: 1,
            params: params.iter().copied().collect(),
            caller: caller([127, 0, 0, 1]),
        }
    }

    impl Plan {
        fn id(&mut self, api: &str, method: &str) -> Option<u64> {
            self.hit(&call(api, method, &[])).map(|hit| hit.id)
        }
    }

    #[test]
    fn the_nth_call_is_hit_and_the_given_number_after_it() {
        let refuse = json!({"kind": "refuse", "code": 5});
        let mut plan =
            plan([json!({"api": "A", "method": "*", "nth": 2, "times": 2, "fault": refuse})]);
        assert_eq!(plan.id("B", "get"), None);
        let hits: Vec<bool> = (0..5).map(|_| plan.id("A", "get").is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
    }

    #[test]
    fn zero_times_means_forever_and_the_default_is_the_next_call_once() {
        let mut plan = plan([
            json!({"api": "A", "method": "set", "fault": {"kind": "delay", "ms": 3}}),
            json!({"api": "*", "method": "set", "times": 0, "fault": {"kind": "hang"}}),
        ]);
        assert_eq!(plan.id("A", "set"), Some(1));
        assert!((0..4).all(|_| plan.id("A", "set") == Some(2)));
    }

    #[test]
    fn a_rule_is_removed_by_its_id() {
        let always =
            |kind: &str| json!({"api": "A", "method": "*", "times": 0, "fault": {"kind": kind}});
        let mut plan = plan([always("garble"), always("hang")]);
        assert_eq!(plan.id("A", "get"), Some(1));
        assert!(plan.remove(1) && !plan.remove(1) && plan.has(2));
        assert_eq!(plan.id("A", "get"), Some(2));
        plan.clear();
        let third = serde_json::from_value(always("hang")).unwrap();
        assert_eq!(plan.add(third), 3, "ids are not reused");
    }

    #[test]
    fn a_rule_can_be_for_one_object() {
        for (object, name, value, hit) in [
            ("u-1", "uuid", "\"u-1\"", true),
            ("u-1", "uuid", "u-1", true),
            ("u-1", "uuid", "u-10", false),
            ("u-1", "uuids", "[\"u-0\",\"u-1\"]", true),
            ("3", "target_id", "\"3\"", true),
            ("3", "target_ids", "[1,3]", true),
            ("3", "target_ids", "[13]", false),
        ] {
            let rule = json!({"api": "A", "method": "*", "object": object, "fault": {"kind": "lose_call"}});
            let found = plan([rule]).hit(&call("A", "get", &[(name, value)]));
            assert_eq!(found.is_some(), hit, "{object} in {name}={value}");
        }
    }

    #[test]
    fn a_rule_can_have_a_probability() {
        let rule = |probability: f64| {
            json!({"api": "*", "method": "*", "times": 0, "probability": probability,
                   "fault": {"kind": "http", "status": 502, "after": true}})
        };
        let hits = |probability| {
            let mut plan = plan([rule(probability)]);
            (0..1_000).filter(|_| plan.id("A", "get").is_some()).count()
        };
        assert_eq!((hits(0.0), hits(1.0)), (0, 1_000));
        let some = hits(0.1);
        assert!((50..200).contains(&some), "{some}");
        assert_eq!(some, hits(0.1), "the same seed gives the same hits");
        let more: Rule = serde_json::from_value(rule(1.5)).unwrap();
        assert!(more.check().unwrap_err().contains("1.5"));
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
