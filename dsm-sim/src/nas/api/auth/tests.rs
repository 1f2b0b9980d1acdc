use rand::SeedableRng;

use super::*;
use crate::nas::api::encryption::{CIPHER_KEY, tests::seal};
use crate::nas::params::Params;
use crate::nas::tests::caller;

pub(crate) struct AuthFixture {
    pub(crate) auth: Auth,
    pub(crate) devices: Table<Device>,
    pub(crate) settings: Settings,
    pub(crate) dsm: Generation,
    rng: StdRng,
}

impl AuthFixture {
    pub(crate) fn new() -> Self {
        Self {
            auth: Auth::new(vec![Account::new("admin", "12345")]),
            devices: Table::default(),
            settings: Settings::default(),
            dsm: Generation::Seven,
            rng: StdRng::seed_from_u64(7),
        }
    }

    pub(crate) fn login(
        &mut self,
        now: Millis,
        from: [u8; 4],
        version: u32,
        params: &[(&str, &str)],
    ) -> Result<Login, u32> {
        self.try_login(now, from, version, params)
            .map_err(|refusal| refusal.code)
    }

    /// The refusal of a login, if it is refused.
    pub(crate) fn refusal(
        &mut self,
        now: Millis,
        from: [u8; 4],
        version: u32,
        params: &[(&str, &str)],
    ) -> Option<Refusal> {
        self.try_login(now, from, version, params).err()
    }

    fn try_login(
        &mut self,
        now: Millis,
        from: [u8; 4],
        version: u32,
        params: &[(&str, &str)],
    ) -> Result<Login, Refusal> {
        let params: Params = params.iter().copied().collect();
        let call = Call {
            api: "SYNO.API.Auth".to_owned(),
            method: "login".to_owned(),
            version,
            params,
            caller: caller(from),
        };
        let (devices, rng) = (&mut self.devices, &mut self.rng);
        self.auth
            .login(now, &call, self.dsm, &self.settings, devices, rng)
    }

    pub(crate) fn check(
        &mut self,
        now: Millis,
        from: [u8; 4],
        sid: &str,
        token: Option<&str>,
    ) -> u32 {
        let caller = Caller {
            cookie_sid: Some(sid.to_owned()),
            token: token.map(str::to_owned),
            ..caller(from)
        };
        self.auth
            .check(now, &caller, self.dsm, &self.settings)
            .map_or_else(|refusal| refusal.code, |()| 0)
    }

    fn sid(&mut self, now: Millis) -> String {
        self.login(now, CLIENT, 6, &RIGHT).unwrap().data["sid"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

pub(crate) const CLIENT: [u8; 4] = [127, 0, 0, 1];
pub(crate) const OTHER_CLIENT: [u8; 4] = [127, 0, 0, 2];
const RIGHT: [(&str, &str); 3] = [("account", "admin"), ("passwd", "12345"), ("format", "sid")];
const WRONG: [(&str, &str); 2] = [("account", "admin"), ("passwd", "54321")];

#[test]
fn each_version_answers_its_own_fields() {
    let with_token = [
        ("account", "admin"),
        ("passwd", "12345"),
        ("enable_syno_token", "yes"),
        ("enable_device_token", "yes"),
    ];
    for (dsm, version, names) in [
        (Generation::Six, 1, vec!["sid"]),
        (Generation::Six, 2, vec!["sid"]),
        (Generation::Seven, 3, vec!["sid", "synotoken"]),
        (
            Generation::Seven,
            4,
            vec!["is_portal_port", "sid", "synotoken"],
        ),
        (
            Generation::Seven,
            6,
            vec!["did", "is_portal_port", "sid", "synotoken"],
        ),
        (
            Generation::Seven,
            7,
            vec![
                "account",
                "device_id",
                "ik_message",
                "is_portal_port",
                "sid",
                "synotoken",
            ],
        ),
    ] {
        let mut fixture = AuthFixture {
            dsm,
            ..AuthFixture::new()
        };
        let login = fixture.login(0, CLIENT, version, &with_token).unwrap();
        assert_eq!(
            login.data.as_object().unwrap().keys().collect::<Vec<_>>(),
            names,
            "version {version}"
        );
        assert!(
            login
                .cookie
                .unwrap()
                .contains("max-age=604800;path=/;HttpOnly")
        );
    }
    assert_eq!(
        AuthFixture::new().login(0, CLIENT, 2, &RIGHT).unwrap_err(),
        103
    );
    assert!(
        AuthFixture::new()
            .login(0, CLIENT, 6, &RIGHT)
            .unwrap()
            .cookie
            .is_none(),
        "format=sid sets no cookie"
    );
}

#[test]
fn three_failures_in_five_minutes_lock_one_address_out_for_a_day() {
    // Behaviour 19 of dsm-web-api.md section 11.
    let mut fixture = AuthFixture::new();
    for at in [0, 1, 2] {
        assert_eq!(fixture.login(at, CLIENT, 6, &WRONG).unwrap_err(), 400);
    }
    assert_eq!(fixture.login(3, CLIENT, 6, &RIGHT).unwrap_err(), 407);
    assert!(
        fixture.login(3, OTHER_CLIENT, 6, &RIGHT).is_ok(),
        "other addresses are untouched"
    );
    assert_eq!(
        fixture
            .login(BLOCK_DURATION, CLIENT, 6, &RIGHT)
            .unwrap_err(),
        407
    );
    assert!(fixture.login(BLOCK_DURATION + 2, CLIENT, 6, &RIGHT).is_ok());
}

#[test]
fn slow_failures_do_not_lock_out() {
    let mut fixture = AuthFixture::new();
    for turn in 0..6 {
        assert_eq!(
            fixture
                .login(turn * FAILURE_WINDOW / 2, CLIENT, 6, &WRONG)
                .unwrap_err(),
            400
        );
    }
    fixture.settings.auto_block = false;
    for _ in 0..9 {
        assert_eq!(fixture.login(0, CLIENT, 6, &WRONG).unwrap_err(), 400);
    }
}

#[test]
fn sessions_are_independent_and_each_use_renews_them() {
    // Behaviour 18 of dsm-web-api.md section 11.
    let mut fixture = AuthFixture::new();
    let (first, second) = (fixture.sid(0), fixture.sid(0));
    let quarter = 15 * MINUTE;
    assert_eq!(fixture.check(quarter, CLIENT, &first, None), 0);
    assert_eq!(
        fixture.check(2 * quarter, CLIENT, &first, None),
        0,
        "renewed by use"
    );
    assert_eq!(
        fixture.check(2 * quarter, CLIENT, &second, None),
        119,
        "idle for too long"
    );
    assert_eq!(fixture.check(2 * quarter, CLIENT, "nonsense", None), 119);
}

#[test]
fn dsm_6_says_timeout_once() {
    let mut fixture = AuthFixture {
        dsm: Generation::Six,
        ..AuthFixture::new()
    };
    let sid = fixture.sid(0);
    assert_eq!(fixture.check(16 * MINUTE, CLIENT, &sid, None), 106);
    assert_eq!(fixture.check(16 * MINUTE, CLIENT, &sid, None), 119);
}

#[test]
fn a_session_belongs_to_its_address() {
    let mut fixture = AuthFixture::new();
    let sid = fixture.sid(0);
    assert_eq!(fixture.check(1, OTHER_CLIENT, &sid, None), 150);
    fixture.settings.skip_ip_checking = true;
    assert_eq!(fixture.check(1, OTHER_CLIENT, &sid, None), 0);
}

#[test]
fn a_client_may_get_a_token_without_asking() {
    for (csrf, unasked, given) in [
        (true, false, false),
        (true, true, true),
        (false, true, false),
    ] {
        let mut fixture = AuthFixture::new();
        fixture.settings.csrf_protection = csrf;
        fixture.settings.token_unasked = unasked;
        let data = fixture.login(0, CLIENT, 6, &RIGHT).unwrap().data;
        assert_eq!(data.get("synotoken").is_some(), given, "{csrf} {unasked}");
    }
}

#[test]
fn csrf_protection_requires_the_logins_token() {
    let mut fixture = AuthFixture::new();
    fixture.settings.csrf_protection = true;
    let without = fixture.sid(0);
    let with = fixture
        .login(
            0,
            CLIENT,
            6,
            &[
                ("account", "admin"),
                ("passwd", "12345"),
                ("enable_syno_token", "yes"),
            ],
        )
        .unwrap()
        .data;
    let (sid, token) = (
        with["sid"].as_str().unwrap(),
        with["synotoken"].as_str().unwrap(),
    );
    assert_eq!(fixture.check(1, CLIENT, sid, Some(token)), 0);
    assert_eq!(fixture.check(1, CLIENT, sid, Some("other")), 105);
    assert_eq!(fixture.check(1, CLIENT, sid, None), 105);
    assert_eq!(
        fixture.check(1, CLIENT, &without, None),
        105,
        "a login without a token is of no use"
    );
}

#[test]
fn a_login_can_be_encrypted() {
    let mut fixture = AuthFixture::new();
    let info = fixture.auth.encryption(0, &mut fixture.rng).unwrap();
    let sealed = seal(
        &info,
        "account=admin&passwd=12345&session=dsm&format=sid",
        &mut fixture.rng,
    );
    assert!(
        fixture
            .login(0, CLIENT, 6, &[(CIPHER_KEY, &sealed)])
            .is_ok()
    );
    let wrong = seal(&info, "account=admin&passwd=54321", &mut fixture.rng);
    assert_eq!(
        fixture
            .login(0, CLIENT, 6, &[(CIPHER_KEY, &wrong)])
            .unwrap_err(),
        400
    );
    assert_eq!(
        fixture
            .login(0, CLIENT, 6, &[(CIPHER_KEY, "{}")])
            .unwrap_err(),
        120
    );
}

#[test]
fn a_browsers_handshake_is_not_answered() {
    let with = [RIGHT[0], RIGHT[1], ("ik_message", "AAAA")];
    let answer =
        |params: &[(&str, &str)]| AuthFixture::new().login(0, CLIENT, 7, params).unwrap().data;
    assert_eq!(answer(&RIGHT)["ik_message"], "");
    assert!(answer(&with).get("ik_message").is_none());
    let cookie = login_page_cookie(&mut AuthFixture::new().rng);
    let (key, rest) = cookie
        .strip_prefix("_SSID=")
        .unwrap()
        .split_once(';')
        .unwrap();
    assert_eq!(URL_SAFE_NO_PAD.decode(key).unwrap().len(), 32);
    assert_eq!(rest, "path=/;HttpOnly");
}

#[test]
fn the_session_id_comes_from_query_form_or_cookie() {
    let all = Caller {
        query_sid: Some("query".to_owned()),
        form_sid: Some("form".to_owned()),
        cookie_sid: Some("cookie".to_owned()),
        ..caller(CLIENT)
    };
    let some = Caller {
        query_sid: None,
        ..all.clone()
    };
    assert_eq!(
        (all.sid(true), some.sid(true), some.sid(false)),
        (Some("query"), Some("form"), Some("cookie"))
    );
    assert_eq!(caller(CLIENT).sid(true), None);
}

#[test]
fn a_logout_ends_its_own_session_only() {
    let mut fixture = AuthFixture::new();
    let (first, second) = (fixture.sid(0), fixture.sid(0));
    fixture.auth.logout(
        &Caller {
            cookie_sid: Some(first.clone()),
            ..caller(CLIENT)
        },
        &fixture.settings,
    );
    assert_eq!(
        (
            fixture.check(1, CLIENT, &first, None),
            fixture.check(1, CLIENT, &second, None)
        ),
        (119, 0)
    );
}
