//! Redacts private data in recorded exchanges. The same original always gets the same replacement, wherever it occurs: alone,
//! inside other text, percent-encoded, escaped in JSON.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use regex::{Captures, Regex};
use serde_json::{Map, Number, Value, json};

use super::known::{is_api, is_field};
use crate::secret_names::is_secret;

/// Kind of a secret, by the name of its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Account,
    Password,
    Otp,
    Session,
    Token,
    Device,
    Serial,
    Host,
    Secret,
}

/// Shorter secrets are replaced only in their own field: elsewhere they would match unrelated text.
const MIN_SECRET_CHARS: usize = 3;

/// Addresses, names and ids that are recognized by their form.
const PATTERNS: &str = r"(?i)(?P<iqn>\biqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.-]+(?::[^\s\x22'\\,;&/]*)?)|(?P<uuid>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b)|(?P<hex>\b[0-9a-f]{32}\b)|(?P<mac>\b[0-9a-f]{2}(?:(?::[0-9a-f]{2}){5}|(?:-[0-9a-f]{2}){5})\b)|(?P<six>(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:)+(?::[0-9a-f]{1,4})+|(?:[0-9a-f]{1,4}:){2,}:)|(?P<four>\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b)";

/// Fields that are kept of a call whose API is not on the allowlist.
const OUTLINE: [&str; 5] = ["api", "method", "version", "success", "error"];

/// Texts that are harmless in any field.
const HARMLESS: [&str; 3] = ["", "yes", "no"];

/// Naming authorities in IQNs that do not identify an owner.
const AUTHORITIES: [&str; 5] = [
    "com.synology",
    "org.debian",
    "com.redhat",
    "com.vmware",
    "com.microsoft",
];

/// The secrets found so far in one recording, and their replacements.
#[derive(Debug)]
pub(super) struct Redactor {
    known: BTreeMap<String, String>,
    matched: HashMap<String, String>,
    /// Values of fields that are not on the allowlist.
    unknown: HashMap<String, String>,
    counts: HashMap<&'static str, usize>,
    finder: Regex,
}

impl Kind {
    fn of(key: &str) -> Option<Self> {
        Some(match key.to_ascii_lowercase().as_str() {
            "account" | "user" | "username" | "user_name" | "mutual_user" | "mutual_username"
            | "login_user" | "email" | "mail" => Self::Account,
            "passwd" | "password" | "mutual_password" | "pass" | "old_password"
            | "new_password" => Self::Password,
            "otp_code" | "otp" => Self::Otp,
            "sid" | "_sid" | "id_token" | "session_id" => Self::Session,
            "synotoken" | "syno_token" => Self::Token,
            "did" | "device_id" | "device_name" | "device_token" => Self::Device,
            "sn" | "vpd_unit_sn" => Self::Serial,
            "hostname" | "host_name" | "server_name" | "servername" | "node_name" | "workgroup"
            | "fqdn" | "domain" | "dns_name" | "ddns" => Self::Host,
            "__ciphertext" | "ik_message" | "public_key" | "secret" => Self::Secret,
            // Of the NAS, of disks, of anything else.
            lower if lower.contains("serial") => Self::Serial,
            _ if is_secret(key) => Self::Secret,
            _ => return None,
        })
    }

    fn label(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Password => "password",
            Self::Otp => "otp",
            Self::Session => "session",
            Self::Token => "token",
            Self::Device => "device",
            Self::Serial => "serial",
            Self::Host => "host",
            Self::Secret => "secret",
        }
    }
}

impl Redactor {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            known: BTreeMap::new(),
            matched: HashMap::new(),
            unknown: HashMap::new(),
            counts: HashMap::new(),
            finder: finder(&BTreeMap::new())?,
        })
    }

    /// Collects the secrets in these values. Returns whether any was new.
    pub(super) fn learn(&mut self, values: &[&Value]) -> anyhow::Result<bool> {
        let before = self.known.len();
        for value in values {
            self.collect(None, value);
        }
        let new = self.known.len() > before;
        if new {
            self.finder = finder(&self.known)?;
        }
        Ok(new)
    }

    fn collect(&mut self, key: Option<&str>, value: &Value) {
        match value {
            Value::Object(map) => map
                .iter()
                .for_each(|(inner, value)| self.collect(Some(under(key, inner)), value)),
            Value::Array(values) => values.iter().for_each(|value| self.collect(key, value)),
            Value::String(text) => match (inner(text), key.and_then(Kind::of)) {
                (Some(inner @ (Value::Object(_) | Value::Array(_))), _) => {
                    self.collect(key, &inner);
                }
                (Some(Value::String(inner)), Some(kind)) => {
                    self.add_secret(kind, &inner);
                    self.add_secret(kind, text);
                }
                (_, Some(kind)) => self.add_secret(kind, text),
                (_, None) => {}
            },
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn add_secret(&mut self, kind: Kind, text: &str) {
        let plain = match inner(text) {
            Some(Value::String(inner)) => inner,
            _ => text.to_owned(),
        };
        if plain.chars().count() < MIN_SECRET_CHARS || self.known.contains_key(&plain) {
            return;
        }
        let replacement = self.next(kind.label());
        for form in forms(&plain) {
            let replacement = replacement.clone();
            self.known.entry(form).or_insert(replacement);
        }
    }

    fn next(&mut self, label: &'static str) -> String {
        let count = self.counts.entry(label).or_default();
        *count += 1;
        format!("{label}-{count:04}")
    }

    /// The redacted value. Call [`learn`](Self::learn) with all values first.
    pub(super) fn redact(&mut self, value: &Value) -> Value {
        self.value(None, value)
    }

    fn value(&mut self, key: Option<&str>, value: &Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(self.object(key, map)),
            Value::Array(values) => values.iter().map(|value| self.value(key, value)).collect(),
            Value::String(text) => Value::String(self.keyed(key, text)),
            Value::Number(number) if key.is_none_or(hides) => zero(number),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn object(&mut self, at: Option<&str>, map: &Map<String, Value>) -> Map<String, Value> {
        // A call of a compound, or its result.
        let api = map.get("api").and_then(Value::as_str);
        let foreign = api.is_some_and(|api| !is_api(api));
        map.iter()
            .filter(|(key, _)| !foreign || OUTLINE.contains(&key.as_str()))
            .map(|(key, value)| {
                let code = value.get("code").filter(|code| code.is_u64());
                let mut value = self.value(Some(under(at, key)), value);
                // The only place where a code is not secret.
                if let (Some(code), "error") = (code, key.as_str()) {
                    value["code"] = code.clone();
                }
                // Keys are DSM's own names, unless they are an address or a secret as a whole.
                let known = self.known.get(key).cloned();
                (known.unwrap_or_else(|| self.patterns(key)), value)
            })
            .collect()
    }

    fn patterns(&mut self, key: &str) -> String {
        let plain = key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
        if plain {
            key.to_owned()
        } else {
            self.text(key)
        }
    }

    fn keyed(&mut self, key: Option<&str>, text: &str) -> String {
        let kind = key.and_then(Kind::of);
        match (inner(text), kind) {
            // JSON inside a string stays JSON.
            (Some(inner @ (Value::Object(_) | Value::Array(_))), _) => {
                self.value(key, &inner).to_string()
            }
            (Some(Value::String(inner)), _) => json!(self.keyed(key, &inner)).to_string(),
            (_, Some(kind)) if !text.is_empty() && text.chars().count() < MIN_SECRET_CHARS => {
                format!("{}-0000", kind.label())
            }
            (_, None) if key.is_none_or(|key| !is_field(key)) => self.unknown(text),
            _ => self.text(text),
        }
    }

    /// The replacement for the text of a field that is not on the allowlist. The text is not replaced elsewhere: it may be an
    /// ordinary word.
    fn unknown(&mut self, text: &str) -> String {
        if HARMLESS.contains(&text) {
            return text.to_owned();
        }
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if let Some(replacement) = self.unknown.get(text) {
            return replacement.clone();
        }
        let replacement = self.next("text");
        self.unknown.insert(text.to_owned(), replacement.clone());
        replacement
    }

    /// Replaces known secrets and everything that looks like an address.
    pub(super) fn text(&mut self, text: &str) -> String {
        let finder = self.finder.clone();
        finder
            .replace_all(text, |found: &Captures<'_>| self.replacement(found))
            .into_owned()
    }

    fn replacement(&mut self, found: &Captures<'_>) -> String {
        let original = &found[0];
        if let Some(known) = self.known.get(original) {
            return known.clone();
        }
        // Addresses are case-insensitive.
        let original = original.to_ascii_lowercase();
        if let Some(matched) = self.matched.get(&original) {
            return matched.clone();
        }
        let replacement = self.address(found, &original);
        self.matched.insert(original, replacement.clone());
        replacement
    }

    fn address(&mut self, found: &Captures<'_>, original: &str) -> String {
        let is = |name| found.name(name).is_some();
        if is("four")
            && ["127.", "0.0.0.0", "255."]
                .iter()
                .any(|own| original.starts_with(own))
        {
            return original.to_owned();
        }
        let mut count = |label| {
            let count = self.counts.entry(label).or_default();
            *count += 1;
            *count
        };
        if is("iqn") {
            let number = count("iqn");
            let head = original.split(':').next().unwrap_or_default();
            let (date, authority) = head.split_at("iqn.2000-01.".len().min(head.len()));
            let authority = if AUTHORITIES.contains(&authority) {
                authority
            } else {
                "com.example"
            };
            format!("{date}{authority}:name-{number:04}")
        } else if is("uuid") {
            format!("00000000-0000-4000-8000-{:012}", count("uuid"))
        } else if is("hex") {
            format!("{:032}", count("hex"))
        } else if is("mac") {
            let (number, by) = (count("mac"), &original[2..3]);
            format!(
                "02{by}00{by}00{by}00{by}{:02x}{by}{:02x}",
                number >> 8 & 255,
                number & 255
            )
        } else if is("six") {
            format!("2001:db8::{:x}", count("six"))
        } else {
            // RFC 2544 reserves 198.18.0.0/15 for tests.
            let number = count("four");
            format!("198.18.{}.{}", number / 254, number % 254 + 1)
        }
    }
}

/// Whether the numbers of this field are hidden.
fn hides(key: &str) -> bool {
    Kind::of(key).is_some() || !is_field(key)
}

/// Zero, of the same JSON number type.
fn zero(number: &Number) -> Value {
    if number.is_f64() {
        json!(0.0)
    } else {
        json!(0)
    }
}

/// The name that decides how a value is treated: everything inside a secret field is secret.
fn under<'a>(at: Option<&'a str>, key: &'a str) -> &'a str {
    at.filter(|at| Kind::of(at).is_some()).unwrap_or(key)
}

/// Parses a string that contains JSON.
fn inner(text: &str) -> Option<Value> {
    text.trim_start()
        .starts_with(['"', '{', '['])
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// The encodings in which a secret may occur inside other text.
fn forms(plain: &str) -> Vec<String> {
    let json = json!(plain).to_string();
    let escaped = json[1..json.len() - 1].to_owned();
    let twice = json!(escaped).to_string();
    let form: String = url::form_urlencoded::byte_serialize(plain.as_bytes()).collect();
    let percent = form.replace('+', "%20");
    let twice = twice[1..twice.len() - 1].to_owned();
    let mut forms = vec![plain.to_owned(), escaped, twice, form, percent];
    forms.dedup();
    forms
}

/// Matches the longest known secret, or else an address.
fn finder(known: &BTreeMap<String, String>) -> anyhow::Result<Regex> {
    let mut known: Vec<&String> = known.keys().collect();
    known.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let known: Vec<String> = known.into_iter().map(|text| regex::escape(text)).collect();
    let all = if known.is_empty() {
        PATTERNS.to_owned()
    } else {
        format!("(?:{})|{PATTERNS}", known.join("|"))
    };
    regex::RegexBuilder::new(&all)
        .size_limit(1 << 28)
        .build()
        .context("too many secrets in one recording")
}
