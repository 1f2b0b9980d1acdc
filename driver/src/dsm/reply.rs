//! DSM's answers: the envelope, the error codes and every way in which an answer can fail to be one. Pure.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An error code of the DSM Web API. The numbers and their grades stand in the reference; named here are those that the
/// driver acts upon or explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal;)*) => {
        impl Code {
            $($(#[doc = $doc])* pub const $name: Self = Self($number);)*

            fn text(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    _ => "no text known for this code",
                }
            }
        }
    };
}

codes! {
    /// Also what a NAS with CSRF protection answers to a call without token.
    NO_PERMISSION = 105, "no permission, or the CSRF token is missing; the account must be an administrator";
    /// DSM 6.
    SESSION_TIMEOUT = 106, "the session timed out";
    /// Ended by another login.
    SESSION_DUPLICATE = 107, "the session was ended by another login";
    /// Of a call in a compound: one before it failed.
    STOPPED = 112, "not carried out, because a call before it failed";
    /// `Storage.Volume get` says this of a volume that does not exist.
    NO_SUCH_LOCATION = 117, "no such volume, or the NAS is busy";
    /// DSM 7, also after a restart.
    SESSION_UNKNOWN = 119, "the session is unknown or expired";
    /// Auth: counts towards Auto Block.
    WRONG_PASSWORD = 400, "wrong account or password";
    /// Auth.
    ACCOUNT_DISABLED = 401, "the account is disabled";
    /// Auth.
    PERMISSION_DENIED = 402, "the account may not log in: it must be an administrator";
    /// Auth.
    OTP_REQUIRED = 403, "the account asks for a second factor, which a driver cannot give: use an account without it";
    /// Auth.
    OTP_WRONG = 404, "the second factor is wrong";
    /// Auth.
    OTP_ENFORCED = 406, "a second factor is enforced for the account: exempt it";
    /// Auth: Auto Block, per source address, a day by default.
    ADDRESS_BLOCKED = 407, "the NAS blocks this address after failed logins: remove it from the block list (Control Panel, Security)";
    /// Auth.
    PASSWORD_EXPIRED = 408, "the password has expired";
    /// Auth.
    PASSWORD_EXPIRED_TOO = 409, "the password has expired";
    /// Auth.
    PASSWORD_MUST_CHANGE = 410, "the password must be changed";
    /// Auth.
    ACCOUNT_LOCKED = 411, "the account is locked";
    /// Auth: not a credential error.
    UPGRADING = 498, "DSM is being upgraded";
    /// Thick LUNs only.
    NO_SPACE = 18_990_002, "no free space on the volume";
    /// The LUN exists all the same (measured).
    CREATED_BUT_FAILED = 18_990_068, "the LUN was created and failure was reported";
    /// BLUN on ext4.
    NOT_ON_THIS_FILE_SYSTEM = 18_990_318, "this LUN type needs btrfs";
    /// LUN `create`.
    SPACE_UNKNOWN = 18_990_327, "the NAS cannot read its space information";
    /// LUN `create`.
    BAD_TYPE = 18_990_500, "bad LUN type";
    /// LUN `create`.
    BAD_LOCATION = 18_990_501, "bad location";
    /// LUN `create` and `set`.
    BAD_SIZE = 18_990_502, "bad size";
    /// LUN `create` and `set`.
    BAD_NAME = 18_990_503, "illegal LUN name";
    /// Some methods say this where others say [`Code::NO_SUCH_LUN`].
    BAD_LUN_UUID = 18_990_505, "bad LUN uuid";
    /// SynologyOpenSource/synology-csi: pkg/dsm/webapi/iscsi.go.
    NO_SUCH_LUN = 18_990_531, "no such LUN";
    /// NAS-wide.
    LUN_NAME_EXISTS = 18_990_538, "a LUN of this name exists";
    /// Per model.
    TOO_MANY_LUNS = 18_990_541, "the NAS holds as many LUNs as its model allows";
    /// Per model.
    TOO_MANY_TARGETS = 18_990_542, "the NAS holds as many iSCSI targets as its model allows";
    /// `map_target`.
    LOAD_FAILED = 18_990_570, "the NAS could not load the LUN";
    /// LUN `create`: one of `dev_attribs` that this type or release does not have.
    BAD_ATTRIBUTE = 18_990_622, "bad device attribute";
    /// Target `create` and `set`: a length, or a name or password missing.
    BAD_AUTH_DATA = 18_990_708, "bad CHAP name or password";
    /// Bad id or no such target: never a proof of absence (design choice 6).
    BAD_TARGET_ID = 18_990_710, "bad target id";
    /// Never a proof of absence (design choice 6).
    TARGET_NOT_LOADED = 18_990_722, "the target cannot be loaded";
    /// Never a proof of absence.
    TARGET_CONFIG_NOT_LOADED = 18_990_724, "the target's settings cannot be loaded";
    /// NAS-wide.
    TARGET_NAME_EXISTS = 18_990_744, "a target of this name exists";
    /// NAS-wide.
    IQN_EXISTS = 18_990_745, "a target of this IQN exists";
    /// BLOCK on btrfs.
    TYPE_NOT_ON_VOLUME = 18_991_205, "this LUN type is not allowed on this volume";
}

impl Code {
    /// The session is gone or lacks its token: log in once more, send once more (design choice 23).
    pub fn wants_login(self) -> bool {
        matches!(
            self,
            Self::NO_PERMISSION
                | Self::SESSION_TIMEOUT
                | Self::SESSION_DUPLICATE
                | Self::SESSION_UNKNOWN
        )
    }

    /// A login with this answer is not tried again with the same credential (design choice 23).
    pub fn refuses_credential(self) -> bool {
        (400..=411).contains(&self.0) && self != Self::ADDRESS_BLOCKED
    }

    /// DSM says that it does not know the LUN. Not yet a proof (design choice 16).
    pub fn no_lun(self) -> bool {
        matches!(self, Self::NO_SUCH_LUN | Self::BAD_LUN_UUID)
    }

    /// DSM says that it does not know the target. Never a proof (design choice 6).
    pub fn no_target(self) -> bool {
        matches!(
            self,
            Self::BAD_TARGET_ID | Self::TARGET_NOT_LOADED | Self::TARGET_CONFIG_NOT_LOADED
        )
    }

    /// The compound envelope itself was refused, before any call in it was looked at.
    pub(crate) fn no_compound(self) -> bool {
        matches!(self.0, 102..=104)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.text())
    }
}

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum DsmError {
    /// No connection: the call was not sent.
    #[error("the NAS at {url} cannot be reached: check its address, port and certificate")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: super::wire::Cause,
    },
    /// Sent, but no answer: it may have been carried out.
    #[error("{api}.{method} was sent to the NAS, and no answer came")]
    Lost {
        /// The API.
        api: &'static str,
        /// The method.
        method: &'static str,
        /// Why.
        #[source]
        source: super::wire::Cause,
    },
    /// An answer, but not one of DSM: a proxy, a booting or an upgrading NAS. It may have been carried out.
    #[error("{api}.{method} was answered with something that is not a DSM answer: {seen}")]
    Garbled {
        /// The API.
        api: &'static str,
        /// The method.
        method: &'static str,
        /// HTTP status and what does not fit; never the body, which may hold a session id.
        seen: String,
    },
    /// DSM refused the call.
    #[error("DSM refuses {api}.{method} with code {code}")]
    Refused {
        /// The API.
        api: &'static str,
        /// The method.
        method: &'static str,
        /// Its code.
        code: Code,
    },
    /// DSM refused the login, now or earlier.
    #[error("DSM refuses the login of {account:?} with code {code}{}", if *.remembered { "; the same credential is not tried again, because three failures lock this address out: change the password in the configuration" } else { "" })]
    Login {
        /// The account.
        account: String,
        /// Its code.
        code: Code,
        /// Nothing was sent this time.
        remembered: bool,
    },
    /// The password cannot be read.
    #[error("the password of the NAS cannot be read from {path}")]
    Password {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl DsmError {
    /// A word or code for metrics: bounded, and nothing of the message.
    pub fn label(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Refused { code, .. } | Self::Login { code, .. } => {
                return Cow::Owned(code.0.to_string());
            }
            Self::Unreachable { .. } => "unreachable",
            Self::Lost { .. } => "lost",
            Self::Garbled { .. } => "garbled",
            Self::Password { .. } => "no_password",
        })
    }

    /// DSM's code, when DSM refused the call itself.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Garbled { .. }
            | Self::Login { .. }
            | Self::Password { .. } => None,
        }
    }
}

/// Reads the answer to `api.method`: DSM's envelope around `T`. A call that returns nothing has no `data`: read it as
/// [`Nothing`].
///
/// # Errors
/// [`DsmError::Refused`] with DSM's code; [`DsmError::Garbled`] for anything that is not a DSM answer of this shape.
pub fn read<T: DeserializeOwned>(
    api: &'static str,
    method: &'static str,
    body: &[u8],
) -> Result<T, DsmError> {
    let garbled = |seen: String| DsmError::Garbled { api, method, seen };
    let envelope: Envelope =
        serde_json::from_slice(body).map_err(|error| garbled(error.to_string()))?;
    envelope.open(api, method)
}

/// The `data` of a call that returns nothing: absent, `null`, an object or an array, all the same.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(from = "Value")]
pub struct Nothing;

impl From<Value> for Nothing {
    fn from(_: Value) -> Self {
        Self
    }
}

/// `{"success":true,"data":…}` or `{"success":false,"error":{"code":N}}`, also inside a compound answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope {
    success: bool,
    #[serde(default)]
    data: Value,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    code: u32,
}

impl Envelope {
    pub(crate) fn open<T: DeserializeOwned>(
        self,
        api: &'static str,
        method: &'static str,
    ) -> Result<T, DsmError> {
        let garbled = |seen: String| DsmError::Garbled { api, method, seen };
        match (self.success, self.error) {
            (true, _) => {
                serde_json::from_value(self.data).map_err(|error| garbled(error.to_string()))
            }
            (false, Some(refusal)) => Err(DsmError::Refused {
                api,
                method,
                code: Code(refusal.code),
            }),
            (false, None) => Err(garbled(
                "success is false and there is no error code".to_owned(),
            )),
        }
    }
}

/// The answer of `SYNO.Entry.Request`.
#[derive(Debug, Deserialize)]
pub(crate) struct CompoundAnswer {
    pub(crate) result: Vec<Envelope>,
}

/// The results of calls that were sent in one request. There are fewer than calls when DSM stopped at one that failed.
#[derive(Debug)]
pub struct Results(Vec<(&'static str, &'static str, Result<Value, DsmError>)>);

impl Results {
    pub(crate) fn of(calls: &[super::call::Call], answer: CompoundAnswer) -> Self {
        let read = calls.iter().zip(answer.result).map(|(call, envelope)| {
            let result = envelope.open(call.api, call.method);
            (call.api, call.method, result)
        });
        // DSM may name the calls that it did not make, with a code of their own.
        let made = |(.., result): &(_, _, Result<Value, DsmError>)| {
            result.as_ref().err().and_then(DsmError::code) != Some(Code::STOPPED)
        };
        Self(read.take_while(made).collect())
    }

    /// The next result. `None`: the call was not made.
    ///
    /// # Errors
    /// [`DsmError`] of this call.
    pub fn take<T: DeserializeOwned>(&mut self) -> Option<Result<T, DsmError>> {
        if self.0.is_empty() {
            return None;
        }
        let (api, method, result) = self.0.remove(0);
        let garbled = |error: serde_json::Error| DsmError::Garbled {
            api,
            method,
            seen: error.to_string(),
        };
        Some(result.and_then(|data| serde_json::from_value(data).map_err(garbled)))
    }

    /// No call was made beyond those whose results were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first_refusal(&self) -> Option<&DsmError> {
        self.0.iter().find_map(|(.., result)| result.as_ref().err())
    }

    /// Nothing but questions was answered.
    pub(crate) fn has_only_asked(&self) -> bool {
        let asks = |method: &str| matches!(method, "get" | "list");
        self.0
            .iter()
            .all(|(_, method, result)| asks(method) || result.is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_data_or_a_code_or_garbled() {
        let read = |body: &str| read::<Value>("A", "m", body.as_bytes());
        assert_eq!(read(r#"{"data":{"x":1},"success":true}"#).unwrap()["x"], 1);
        let refused =
            read(r#"{"error":{"code":18990531,"errors":[]},"success":false}"#).unwrap_err();
        assert_eq!(refused.code(), Some(Code::NO_SUCH_LUN));
        for garbage in [
            "",
            "<html>502</html>",
            "{}",
            r#"{"success":false}"#,
            r#"{"success":"yes"}"#,
            "[]",
            "null",
        ] {
            assert!(
                matches!(read(garbage), Err(DsmError::Garbled { .. })),
                "{garbage}"
            );
        }
    }

    #[test]
    fn nothing_is_read_from_any_data() {
        for body in [
            r#"{"success":true}"#,
            r#"{"success":true,"data":null}"#,
            r#"{"success":true,"data":[]}"#,
            r#"{"success":true,"data":{}}"#,
        ] {
            assert!(read::<Nothing>("A", "m", body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn choice_23_only_wrong_credentials_are_remembered() {
        for code in [400, 401, 402, 403, 404, 406, 408, 410, 411] {
            assert!(Code(code).refuses_credential(), "{code}");
        }
        for code in [407, 498, 119, 100] {
            assert!(!Code(code).refuses_credential(), "{code}");
        }
    }
}
