//! DSM's error codes, and refusals made from them. Source: dsm-web-api.md section 10, which cites where each was seen.

use serde_json::Value;

/// A DSM error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    /// `api`, `method` or `version` is missing.
    MissingControl = 101,
    NoSuchApi = 102,
    /// Also DSM 7's answer to a login with version 1 or 2.
    NoSuchMethod = 103,
    BadVersion = 104,
    /// No permission, or the CSRF token is missing: DSM does not distinguish them.
    NoPermission = 105,
    /// DSM 6 only: the session has expired but is still known.
    SessionTimeout = 106,
    /// A call of a compound that was skipped because an earlier one failed.
    CompoundStopped = 112,
    BadCompound = 113,
    MissingParameter = 114,
    /// Internal or busy; from `Storage.Volume get`: no such volume.
    Busy = 117,
    /// The session id is missing, unknown or expired.
    NoSession = 119,
    BadParameter = 120,
    WrongAddress = 150,
    BadCredentials = 400,
    /// From a login. From the APIs of shared folders it is [`Code::NO_SUCH_SHARE`].
    NotAllowed = 402,
    OtpRequired = 403,
    OtpWrong = 404,
    Blocked = 407,
    /// The share does not exist, or its lock was held too long.
    NfsShareGone = 2_370,
    NoSpace = 18_990_002,
    SanBadParameter = 18_990_004,
    /// A name of exactly 255 characters; the LUN is created anyway.
    NameAtLimit = 18_990_068,
    /// A btrfs type on a volume that is not btrfs.
    NoSubvolume = 18_990_318,
    SpaceUnreadable = 18_990_327,
    BadLunType = 18_990_500,
    BadLocation = 18_990_501,
    BadSize = 18_990_502,
    BadName = 18_990_503,
    BadLunUuid = 18_990_505,
    /// A required parameter is missing; seen only from `restore_snapshot`.
    SanMissingParameter = 18_990_508,
    SnapshotNameExists = 18_990_513,
    /// A parameter of the wrong shape.
    BadShape = 18_990_517,
    NoSuchLun = 18_990_531,
    NoSuchSnapshot = 18_990_532,
    LunNameExists = 18_990_538,
    /// In the list of a successful answer: this snapshot still exists.
    SnapshotNotDeleted = 18_990_540,
    TooManyLuns = 18_990_541,
    TooManyTargets = 18_990_542,
    TooManySnapshots = 18_990_543,
    /// The LUN is in "load fail", and cannot be mapped.
    LoadFailed = 18_990_570,
    BadTypesFilter = 18_990_619,
    BadDevAttribs = 18_990_622,
    BadIoPolicy = 18_990_635,
    BadTargetName = 18_990_700,
    BadAuthType = 18_990_702,
    BadAuthData = 18_990_708,
    /// Not a string, or no such target.
    BadTargetId = 18_990_710,
    TargetNameExists = 18_990_744,
    IqnExists = 18_990_745,
    TypeNotHere = 18_991_205,
}

/// A call that is refused: the code goes to the client, the reason to the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u32,
    pub(crate) why: String,
    /// `errors` next to the code.
    pub(crate) errors: Option<Value>,
}

impl Code {
    /// 402 from the APIs of shared folders.
    pub(crate) const NO_SUCH_SHARE: Self = Self::NotAllowed;

    /// A refusal with this code and reason.
    pub(crate) fn because(self, why: impl Into<String>) -> Refusal {
        Refusal {
            code: self as u32,
            why: why.into(),
            errors: None,
        }
    }

    /// A refusal because the simulator, unlike a NAS, does not implement `what`.
    pub(crate) fn unsupported(self, what: &str) -> Refusal {
        self.because(format!("simulator gap: {what} is not simulated"))
    }
}
