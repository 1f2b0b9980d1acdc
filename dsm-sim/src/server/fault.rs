//! Faults that a test asks for: which calls they hit, and what then happens. Pure: it only chooses.

use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::nas::call::Call;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The answer is this code; nothing is done, or everything.
    Refuse {
        /// As DSM would give it.
        code: u32,
        /// Whether everything is done before.
        #[serde(default)]
        after: bool,
    },
    /// Everything is done; the connection closes without an answer, as in a crash just after the effect.
    LoseReply,
    /// Nothing is done; the connection closes without an answer, as in a crash just before the effect.
    LoseCall,
    /// Everything is done at once; the answer comes later.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// Nothing happens until this fault is deleted; then it is done and answered, unless the client has left.
    Hang,
    /// Everything is done; the answer is half a JSON text.
    Garble,
    /// The answer is an HTML page with this HTTP status; nothing is done, or everything.
    Http {
        /// Of the page.
        status: u16,
        /// Whether everything is done before.
        #[serde(default)]
        after: bool,
    },
}

impl Fault {
    /// Its name in the journal.
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

/// A fault and the calls that it hits: [`Rule::new`] means the next matching call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// An API's name, or `*`.
    pub(crate) api: String,
    /// A method, or `*`.
    pub(crate) method: String,
    /// A uuid, name, number or path: only calls with such a parameter, or with a list that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<String>,
    /// The first matching call from now that is hit; 1 = the next.
    #[serde(default = "one")]
    pub(crate) nth: u64,
    /// How many matching calls in a row are hit; 0 = all from then on.
    #[serde(default = "one")]
    pub(crate) times: u64,
    /// How likely each of those is hit: 0 to 1.
    #[serde(default = "always")]
    pub(crate) probability: f64,
    pub(crate) fault: Fault,
    /// Matching calls so far.
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
    /// Hits the next call of this method; `*` stands for any API or method.
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

    /// Hits only calls with a parameter that is this uuid, name, number or path, or a list that holds it.
    #[must_use]
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// Hits the nth matching call instead of the next.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        self.nth = nth;
        self
    }

    /// Hits so many matching calls in a row; 0 = all from then on.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Hits each of them only so likely, 0 to 1; more or less is taken for 1 or 0.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability.clamp(0.0, 1.0);
        self
    }

    /// Refuses a rule that cannot be meant.
    pub(crate) fn check(&self) -> Result<(), String> {
        if (0.0..=1.0).contains(&self.probability) {
            return Ok(());
        }
        let probability = self.probability;
        Err(format!("probability {probability} is not between 0 and 1"))
    }

    /// Counts a call, and says whether it is hit.
    fn hit(&mut self, call: &Call, rng: &mut StdRng) -> bool {
        let matches = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        let named = |object: &String| call.params.mention(object);
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
#[derive(Debug)]
pub(crate) struct Plan {
    rules: Vec<Planned>,
    last: u64,
    /// Decides where a rule is only likely.
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
    pub(crate) fn hit_by_name(&mut self, call: &Call) -> Option<Hit> {
        let named = |planned: &&mut Planned| planned.rule.api == call.api;
        first_hit(self.rules.iter_mut().filter(named), call, &mut self.rng)
    }

    /// The fault for this call, if any. Every rule counts the call; the rule that was set first wins.
    pub(crate) fn hit(&mut self, call: &Call) -> Option<Hit> {
        first_hit(self.rules.iter_mut(), call, &mut self.rng)
    }
}

fn first_hit<'a>(
    rules: impl Iterator<Item = &'a mut Planned>,
    call: &Call,
    rng: &mut StdRng,
) -> Option<Hit> {
    let mut found = None;
    for Planned { id, rule } in rules {
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
    fn the_nth_call_is_hit_and_so_many_after_it() {
        let refuse = json!({"kind": "refuse", "code": 5});
        let mut plan =
            plan([json!({"api": "A", "method": "*", "nth": 2, "times": 2, "fault": refuse})]);
        assert_eq!(plan.id("B", "get"), None);
        let hits: Vec<bool> = (0..5).map(|_| plan.id("A", "get").is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
    }

    #[test]
    fn zero_times_is_for_ever_and_the_default_is_the_next_call_once() {
        let mut plan = plan([
            json!({"api": "A", "method": "set", "fault": {"kind": "delay", "ms": 3}}),
            json!({"api": "*", "method": "set", "times": 0, "fault": {"kind": "hang"}}),
        ]);
        assert_eq!(plan.id("A", "set"), Some(1));
        assert!((0..4).all(|_| plan.id("A", "set") == Some(2)));
    }

    #[test]
    fn a_rule_is_removed_by_its_number() {
        let always =
            |kind: &str| json!({"api": "A", "method": "*", "times": 0, "fault": {"kind": kind}});
        let mut plan = plan([always("garble"), always("hang")]);
        assert_eq!(plan.id("A", "get"), Some(1));
        assert!(plan.remove(1) && !plan.remove(1) && plan.has(2));
        assert_eq!(plan.id("A", "get"), Some(2));
        plan.clear();
        let third = serde_json::from_value(always("hang")).unwrap();
        assert_eq!(plan.add(third), 3, "numbers are not used again");
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
    fn a_rule_can_be_a_matter_of_luck() {
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
        assert_eq!(some, hits(0.1), "the same seed, the same luck");
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
