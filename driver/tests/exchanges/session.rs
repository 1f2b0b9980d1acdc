//! The exchanges of `driver::dsm::Client` itself: login, lost sessions, compound requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use driver::dsm::client::{Account, Password};
use driver::dsm::lun::{self, LunsAnswer};
use driver::dsm::target::{self, TargetAnswer, TargetsAnswer};
use driver::dsm::trust::Trust;
use driver::dsm::{Client, DsmError};

use crate::exchange;
use crate::nas::{Nas, Seen};

/// A client of a stub NAS that returns these recorded replies in order.
fn client(replies: &[&str]) -> (Client, Nas) {
    let nas = Nas::answering(replies.iter().map(|name| exchange(name).reply).collect());
    let account = Account {
        nas: "nas1".parse().unwrap(),
        url: nas.url.clone(),
        username: "admin".to_owned(),
        password: Password::Given("admin".into()),
    };
    (
        Client::new(account, Trust::default(), Arc::default()).unwrap(),
        nas,
    )
}

fn parameters(seen: &Seen) -> BTreeMap<String, String> {
    let control = ["api", "version", "method", "_sid"];
    seen.form
        .clone()
        .into_iter()
        .filter(|(name, _)| !control.contains(&name.as_str()))
        .collect()
}

#[tokio::test]
async fn the_login_is_as_recorded_and_later_requests_carry_its_session() {
    for login in ["auth_login_v6", "auth_login"] {
        let (client, nas) = client(&[login, "lun_list_empty", "auth_logout"]);
        let answer: LunsAnswer = client.call(&lun::list()).await.unwrap();
        client.logout().await;
        assert_eq!(answer.luns.readable, []);
        let [first, second, third] = nas.seen().try_into().unwrap();
        let recorded = exchange("auth_login_v6");
        let mut sent = parameters(&first);
        assert_eq!(
            sent.remove("session").as_deref(),
            Some("dsm"),
            "a parameter that the recorded clients leave out"
        );
        assert_eq!(
            (first.path.as_str(), sent),
            ("/webapi/auth.cgi", recorded.request.params)
        );
        assert_eq!(
            (
                first.form["version"].as_str(),
                first.form["method"].as_str()
            ),
            ("6", "login")
        );
        let data = exchange(login).reply["data"].clone();
        let sid = data["sid"].as_str().unwrap();
        for request in [&second, &third] {
            assert_eq!(request.path, "/webapi/entry.cgi");
            assert_eq!(request.header("cookie"), Some(format!("id={sid}").as_str()));
            assert_eq!(request.header("x-syno-token"), data["synotoken"].as_str());
            assert_eq!(request.form["_sid"], sid);
        }
        let logout = exchange("auth_logout").request;
        let sent = ["api", "version", "method"].map(|name| third.form[name].clone());
        assert_eq!(
            sent,
            [logout.api, logout.version.to_string(), logout.method]
        );
    }
}

#[tokio::test]
async fn a_refused_login_is_reported_with_its_code() {
    for name in [
        "auth_login_wrong_password",
        "auth_login_blocked",
        "auth_login_v2",
    ] {
        let (client, nas) = client(&[name]);
        let error = client.call::<LunsAnswer>(&lun::list()).await.unwrap_err();
        let recorded = exchange(name).reply["error"]["code"].as_u64();
        let DsmError::Login { code, .. } = error else {
            panic!("{name}: {error}")
        };
        assert_eq!(Some(u64::from(code.0)), recorded, "{name}");
        assert_eq!(nas.seen().len(), 1, "{name}: one try");
    }
}

/// design.md#one-login
#[tokio::test]
async fn a_lost_session_is_renewed_once() {
    // If only the token is missing, the session still exists and is logged out.
    for (refusal, ended) in [
        ("session_unknown", &[][..]),
        ("csrf_token_missing", &["auth_logout"]),
    ] {
        let first = ["auth_login_v6", refusal, "auth_login_v6"];
        let (client, nas) = client(&[&first, ended, &["lun_list_empty"]].concat());
        assert!(
            client.call::<LunsAnswer>(&lun::list()).await.is_ok(),
            "{refusal}"
        );
        let mut methods: Vec<String> = nas
            .seen()
            .iter()
            .map(|seen| seen.form["method"].clone())
            .collect();
        assert_eq!(methods.len(), 4 + ended.len(), "{refusal}");
        methods.retain(|method| method != "logout");
        assert_eq!(methods, ["login", "list", "login", "list"], "{refusal}");
    }
}

#[tokio::test]
async fn a_compound_reply_is_split() {
    let (client, _nas) = client(&["auth_login_v6", "entry_request"]);
    let error = client
        .call_both::<LunsAnswer, TargetAnswer>(&lun::list(), &target::get("77"))
        .await
        .unwrap_err();
    let recorded = exchange("entry_request").reply["data"]["result"][1].clone();
    assert_eq!(
        error.code().map(|code| u64::from(code.0)),
        recorded["error"]["code"].as_u64()
    );
    assert!(
        error.to_string().contains(&format!(
            "{}.{}",
            recorded["api"].as_str().unwrap(),
            recorded["method"].as_str().unwrap()
        )),
        "{error}"
    );
}

#[tokio::test]
async fn without_compound_requests_the_calls_are_sent_one_by_one() {
    for refusal in ["no_such_api", "no_such_method", "no_such_version"] {
        let (client, nas) = client(&["auth_login_v6", refusal, "lun_list_empty", "target_list"]);
        let (luns, targets): (LunsAnswer, TargetsAnswer) = client
            .call_both(&lun::list(), &target::list())
            .await
            .unwrap();
        assert_eq!(
            (luns.luns.readable.len(), targets.targets.readable.len()),
            (0, 2),
            "{refusal}"
        );
        assert_eq!(nas.seen().len(), 4, "{refusal}");
    }
}
