//! A call of the Web API, and the reply to it in DSM's envelope.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::nas::code::Refusal;
use crate::nas::effect::Effect;
use crate::nas::params::Params;

/// One call of one API method.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) api: String,
    pub(crate) method: String,
    pub(crate) version: u32,
    pub(crate) params: Params,
    pub(crate) caller: Caller,
}

/// The client of a call, with its session ids and SynoToken.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) client: IpAddr,
    pub(crate) query_sid: Option<String>,
    pub(crate) form_sid: Option<String>,
    pub(crate) cookie_sid: Option<String>,
    pub(crate) token: Option<String>,
}

impl Caller {
    /// The session id to use. `in_form`: whether DSM accepts `_sid` in a form body.
    // ASSUMED: a parameter takes precedence over the cookie.
    pub(crate) fn sid(&self, in_form: bool) -> Option<&str> {
        let form = self.form_sid.as_ref().filter(|_| in_form);
        self.query_sid
            .as_ref()
            .or(form)
            .or(self.cookie_sid.as_ref())
            .map(String::as_str)
    }
}

/// `data` of the answer, if it has any, or the refusal.
pub(crate) type Answer = Result<Option<Value>, Refusal>;

/// The result of a call.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    /// A `Set-Cookie` value.
    pub(crate) cookie: Option<String>,
    /// To be applied, in this order of kinds, before the answer is sent.
    pub(crate) effects: BTreeSet<Effect>,
}

/// A refusal as a reply without effects.
pub(crate) fn refused(refusal: Refusal) -> Reply {
    Reply {
        answer: Err(refusal),
        cookie: None,
        effects: BTreeSet::new(),
    }
}

/// The answer in DSM's envelope: dsm-web-api.md 1.1. A call that returns nothing has no `data`.
pub(crate) fn envelope(answer: &Answer) -> Value {
    match answer {
        Ok(Some(data)) => json!({"data": data, "success": true}),
        Ok(None) => json!({"success": true}),
        Err(refusal) => {
            let mut error = json!({"code": refusal.code});
            if let Some(errors) = &refusal.errors {
                error["errors"] = errors.clone();
            }
            json!({"error": error, "success": false})
        }
    }
}
