//! DSM's replies: the envelope, the error codes and all errors of a call. Pure.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

/// An error code of the DSM Web API. The reference lists all with their sources; named here are those that the driver acts on or
/// explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $text:literal;)*) => {
        impl Code {
            $($(#[doc = $doc])* pub const $name: Self = Self($number);)*

            fn text(self) -> &'static str {
                match self.0 {
                    $($number => $text,)*
                    122..=127 => "no permission, or the session has ended: the account must be an administrator",
                    _ => "unknown error code",
                }
            }
        }
    };
}

codes! {
    /// Also the reply of a NAS with CSRF protection to a call without token.
    NO_PERMISSION = 105, "no permission, or the CSRF token is missing; the account must be an administrator";
    /// DSM 6.
    SESSION_TIMEOUT = 106, "the session timed out";
    /// Ended by another login.
    SESSION_DUPLICATE = 107, "the session was ended by another login";
    /// For a call in a compound: an earlier one failed.
    STOPPED = 112, "not carried out, because a call before it failed";
    /// `Storage.Volume get` returns this for a volume that does not exist.
    NO_SUCH_LOCATION = 117, "no such volume, or the NAS is busy";
    /// DSM 7, also after a restart.
    SESSION_UNKNOWN = 119, "the session is unknown or expired";
    /// The session is bound to another source address.
    WRONG_ADDRESS = 150, "the session belongs to another source address: let the controller's address be the same for all calls, or switch the check of addresses off (Control Panel, Security)";
    /// The account lacks an application's privilege.
    NO_APPLICATION = 160, "the account may not use this application: allow it (Control Panel, Application Privileges), or add the account to the group administrators";
    /// Auth: counts towards Auto Block.
    WRONG_PASSWORD = 400, "wrong account or password: correct it here, or set this password on the NAS (Control Panel, User & Group)";
    /// Auth.
    ACCOUNT_DISABLED = 401, "the account is disabled: enable it on the NAS (Control Panel, User & Group)";
    /// Auth.
    PERMISSION_DENIED = 402, "the account may not log in: add it to the group administrators on the NAS (Control Panel, User & Group)";
    /// Auth.
    OTP_REQUIRED = 403, "the account asks for a second factor, which a driver cannot give: switch it off for this account on the NAS";
    /// Auth: counts towards Auto Block.
    OTP_WRONG = 404, "the second factor is wrong, and a driver cannot give one: switch it off for this account on the NAS";
    /// Auth.
    PORTAL_REFUSED = 405, "the NAS's login portal refuses the account: look at Control Panel, Login Portal";
    /// Auth.
    OTP_ENFORCED = 406, "a second factor is enforced for the account: exempt it on the NAS (Control Panel, Security, Account)";
    /// Auth: Auto Block, per source address, a day by default.
    ADDRESS_BLOCKED = 407, "the NAS blocks this address after failed logins: remove it from the block list (Control Panel, Security)";
    /// Auth.
    PASSWORD_EXPIRED = 408, "the password has expired: set a new one on the NAS, without an expiry (Control Panel, User & Group)";
    /// Auth.
    PASSWORD_EXPIRED_TOO = 409, "the password has expired: set a new one on the NAS, without an expiry (Control Panel, User & Group)";
    /// Auth.
    PASSWORD_MUST_CHANGE = 410, "the password must be changed: log in to DSM once with this account";
    /// Auth.
    ACCOUNT_LOCKED = 411, "the account is locked: unlock it on the NAS (Control Panel, Security, Protection)";
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
    /// Some methods return this where others return [`Code::NO_SUCH_LUN`].
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
    /// LUN `create`: this type or release does not have one of the `dev_attribs`.
    BAD_ATTRIBUTE = 18_990_622, "bad device attribute";
    /// Target `create` and `set`: invalid length, or name or password missing.
    BAD_AUTH_DATA = 18_990_708, "bad CHAP name or password";
    /// Bad id or no such target: never a proof of absence (design.md#dsm-reuses-target-numbers).
    BAD_TARGET_ID = 18_990_710, "bad target id";
    /// Never a proof of absence (design.md#dsm-reuses-target-numbers).
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
    /// Whether this code means that the session is lost (design.md#one-login).
    pub fn session(self) -> SessionLoss {
        match self.0 {
            106 | 107 | 119 => SessionLoss::Gone,
            // Clients list 122 to 127 as privilege or timeout, without telling which is which.
            105 | 122..=127 | 150 => SessionLoss::Perhaps,
            _ => SessionLoss::No,
        }
    }

    /// The session may be the cause, and not the call.
    pub fn wants_login(self) -> bool {
        self.session() != SessionLoss::No
    }

    /// Why a login with this code was refused.
    pub fn login(self) -> LoginRefusal {
        match self.0 {
            400 | 404 => LoginRefusal::Credential,
            407 => LoginRefusal::Address,
            // Including unknown codes: likely of the same kind, and retrying with each call would not help.
            401..=497 => LoginRefusal::Account,
            _ => LoginRefusal::Transient,
        }
    }

    /// DSM reports no such LUN. No proof of absence by itself (design.md#unknown-is-not-absent).
    pub fn no_lun(self) -> bool {
        matches!(self, Self::NO_SUCH_LUN | Self::BAD_LUN_UUID)
    }

    /// DSM reports no such target. Never a proof of absence (design.md#dsm-reuses-target-numbers).
    pub fn no_target(self) -> bool {
        matches!(
            self,
            Self::BAD_TARGET_ID | Self::TARGET_NOT_LOADED | Self::TARGET_CONFIG_NOT_LOADED
        )
    }

    /// The NAS has no such API, method or version: the call did nothing. A compound with this code was refused before any of its
    /// calls.
    pub(crate) fn no_such_call(self) -> bool {
        matches!(self.0, 102..=104)
    }
}

/// Whether a call was refused because of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLoss {
    /// For another reason.
    No,
    /// The session is gone: another login helps.
    Gone,
    /// Another login may help; or the account lacks a permission, and it never will.
    Perhaps,
}

/// Why a login was refused, as far as retries are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginRefusal {
    /// The password, or another factor, is wrong: Auto Block counts it.
    Credential,
    /// The password was right, but the account may not log in, which can be fixed on the NAS.
    Account,
    /// The source address is blocked.
    Address,
    /// Transient: DSM is starting, being upgraded, or busy.
    Transient,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.text())
    }
}

/// The API for logins.
pub(super) const LOGIN: &str = "SYNO.API.Auth";

/// Why a call failed. `Clone`, because calls that wait for the same login share its error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DsmError {
    /// No connection: the call was not sent.
    #[error("the NAS at {url} cannot be reached: check its address, port and certificate")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// No connection, because of the NAS's certificate: the call was not sent.
    #[error("the certificate of the NAS at {url} is not trusted: {seen}")]
    Untrusted {
        /// Where.
        url: String,
        /// Why, and the remedy.
        seen: String,
    },
    /// The server at that address does not serve the Web API: the call was not carried out.
    #[error("the NAS at {url} {seen}")]
    Misplaced {
        /// Where.
        url: String,
        /// What was seen, and the remedy.
        seen: String,
    },
    /// The NAS does not answer any request: the call was not sent.
    #[error(transparent)]
    Silent(Silence),
    /// Sent, but no answer: it may have been carried out.
    #[error("{api}.{method} was sent to the NAS and may have been carried out, and no answer came")]
    Lost {
        /// The API.
        api: &'static str,
        /// The method.
        method: &'static str,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The reply is not one of DSM: a proxy, a booting or an upgrading NAS. The call may have been carried out.
    #[error("{api}.{method} was answered with something that is not a DSM answer: {seen}")]
    Garbled {
        /// The API.
        api: &'static str,
        /// The method.
        method: &'static str,
        /// The HTTP status or parse error; never the body, which may contain a session id.
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
    #[error("DSM refuses the login of {account:?} with code {code}{}", with_next_try(*.code, *.next))]
    Login {
        /// The account.
        account: String,
        /// Its code.
        code: Code,
        /// When it is tried again. `None`: with the next call.
        next: Option<NextTry>,
    },
    /// The password cannot be read.
    #[error("the password of the NAS cannot be read from {path}")]
    Password {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// The NAS does not answer. The text has its name, since when, and the cause; a point in time and no duration, so that the text
/// stays the same during an outage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "NAS {nas} at {url} has answered nothing since {}: {cause}; look whether it is up, and open that address from where the controller runs",
    humantime::format_rfc3339_seconds(*since)
)]
pub struct Silence {
    pub(super) nas: String,
    pub(super) url: String,
    pub(super) since: SystemTime,
    pub(super) cause: String,
}

/// When a refused login is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTry {
    /// Unix seconds.
    pub at: u64,
    /// After a restart the controller would try immediately.
    pub restart: bool,
}

/// A point in time and no duration: the same failure has the same text, so that Kubernetes aggregates its events.
fn with_next_try(code: Code, next: Option<NextTry>) -> String {
    let Some(next) = next else {
        return String::new();
    };
    let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(next.at));
    let mut text = format!("; next try at {at}");
    match code.login() {
        LoginRefusal::Credential => {
            text += ", since failures lock this address out; at once with another password here";
        }
        LoginRefusal::Address => text += ", and not sooner",
        LoginRefusal::Account | LoginRefusal::Transient => {}
    }
    if next.restart {
        text += "; at once after kubectl -n NAMESPACE rollout restart deployment -l app.kubernetes.io/component=controller";
    }
    text
}

impl DsmError {
    /// The metrics label: DSM's code or the kind of error, a bounded set.
    pub fn label(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Refused { code, .. } | Self::Login { code, .. } => {
                return Cow::Owned(code.0.to_string());
            }
            Self::Unreachable { .. } => "unreachable",
            Self::Untrusted { .. } => "untrusted",
            Self::Misplaced { .. } => "misplaced",
            Self::Silent(_) => "silent",
            Self::Lost { .. } => "lost",
            Self::Garbled { .. } => "garbled",
            Self::Password { .. } => "no_password",
        })
    }

    /// The NAS is inaccessible, whatever the call.
    pub fn is_inaccessible(&self) -> bool {
        match self {
            Self::Untrusted { .. }
            | Self::Misplaced { .. }
            | Self::Silent(_)
            | Self::Login { .. }
            | Self::Password { .. } => true,
            Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Garbled { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// The call was not sent: the NAS was unreachable, or there was no session.
    pub fn is_before_sending(&self) -> bool {
        match self {
            Self::Lost { api, .. } | Self::Garbled { api, .. } | Self::Refused { api, .. } => {
                *api == LOGIN
            }
            // The reply may be from a proxy in front of the NAS.
            Self::Misplaced { .. } => false,
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Silent(_)
            | Self::Login { .. }
            | Self::Password { .. } => true,
        }
    }

    /// DSM itself replied.
    pub fn is_from_dsm(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Login { .. } => true,
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Misplaced { .. }
            | Self::Silent(_)
            | Self::Lost { .. }
            | Self::Garbled { .. }
            | Self::Password { .. } => false,
        }
    }

    /// DSM's code, if DSM refused the call itself (not the login).
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Misplaced { .. }
            | Self::Silent(_)
            | Self::Lost { .. }
            | Self::Garbled { .. }
            | Self::Login { .. }
            | Self::Password { .. } => None,
        }
    }
}

/// Parses the reply to `api.method`: DSM's envelope around `T`. A call that returns nothing has no `data`: parse it as
/// [`NoData`].
///
/// # Errors
/// [`DsmError::Refused`] with DSM's code; [`DsmError::Garbled`] for anything that is not a DSM reply of this shape.
pub fn read<T: DeserializeOwned>(
    api: &'static str,
    method: &'static str,
    body: &[u8],
) -> Result<T, DsmError> {
    let garbled = |seen: String| DsmError::Garbled { api, method, seen };
    let envelope: Envelope<'_> =
        serde_json::from_slice(body).map_err(|error| garbled(error.to_string()))?;
    envelope.open(api, method)
}

/// The `data` of a call that returns nothing: absent, `null` or any value.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(from = "IgnoredAny")]
pub struct NoData;

impl From<IgnoredAny> for NoData {
    fn from(_: IgnoredAny) -> Self {
        Self
    }
}

/// `{"success":true,"data":…}` or `{"success":false,"error":{"code":N}}`, also inside a compound reply.
///
/// `data` is parsed once its type is known: a tree of `Value`s takes sixty times the memory of its text.
#[derive(Debug, Deserialize)]
struct Envelope<'a> {
    success: bool,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    code: u32,
}

impl<'a> Envelope<'a> {
    fn open<T: Deserialize<'a>>(
        self,
        api: &'static str,
        method: &'static str,
    ) -> Result<T, DsmError> {
        let garbled = |seen: String| DsmError::Garbled { api, method, seen };
        match (self.success, self.error) {
            (true, _) => serde_json::from_str(self.data.map_or("null", RawValue::get))
                .map_err(|error| garbled(error.to_string())),
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

#[cfg(test)]
mod tests;
