//! Sessions with a scripted NAS and paused time.

use std::sync::Mutex as Plain;

use futures::future::{BoxFuture, join_all};
use http::{Request, Response};
use tokio::time::advance;

use super::*;
use crate::dsm::client::credential::Refusals;
use crate::dsm::client::{Account, Password};
use crate::dsm::transport::{Failure, Transport};

/// The body of the reply to a method; `None`: no reply.
type Script = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

struct ScriptedNas {
    script: Plain<Script>,
    seen: Plain<Vec<String>>,
}

impl fmt::Debug for ScriptedNas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedNas")
    }
}

impl Transport for ScriptedNas {
    fn send(
        &self,
        request: Request<String>,
    ) -> BoxFuture<'_, Result<Response<bytes::Bytes>, Failure>> {
        Box::pin(async move {
            let mut pairs = url::form_urlencoded::parse(request.body().as_bytes());
            let method = pairs.find(|(key, _)| key == "method").unwrap().1;
            self.seen.lock().unwrap().push(method.clone().into_owned());
            let body = (self.script.lock().unwrap())(&method);
            // Let other calls start waiting.
            tokio::task::yield_now().await;
            match body {
                Some(body) => Ok(Response::new(body.into())),
                None => std::future::pending().await,
            }
        })
    }
}

const LOGGED_IN: &str = r#"{"success":true,"data":{"sid":"s","synotoken":"t"}}"#;
const OK: &str = r#"{"success":true}"#;

fn refused(code: u32) -> String {
    format!(r#"{{"success":false,"error":{{"code":{code}}}}}"#)
}

/// Logins succeed, and calls are refused with this code.
fn refusing(code: u32) -> Script {
    Box::new(move |method| {
        Some(match method {
            "login" => LOGGED_IN.to_owned(),
            "logout" => OK.to_owned(),
            _ => refused(code),
        })
    })
}

fn healthy() -> Script {
    Box::new(|method| Some(if method == "login" { LOGGED_IN } else { OK }.to_owned()))
}

fn client(script: Script) -> (Arc<ScriptedNas>, Client) {
    let transport = Arc::new(ScriptedNas {
        script: Plain::new(script),
        seen: Plain::default(),
    });
    let account = Account {
        nas: "nas1".parse().unwrap(),
        url: "http://nas.example:5000".to_owned(),
        username: "csi".to_owned(),
        password: Password::Given("right".into()),
    };
    (
        transport.clone(),
        Client::over(transport, account, Arc::new(Refusals::default())),
    )
}

impl ScriptedNas {
    fn set_script(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    fn count(&self, method: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| *seen == method).count()
    }
}

async fn read(client: &Client) -> Result<(), DsmError> {
    let call = Call::new("SYNO.Core.ISCSI.LUN", 1, "list");
    client.call::<NoData>(&call).await.map(drop)
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_on_suspicion_at_most_once_a_minute() {
    for code in [150, 105, 122, 127] {
        let (nas, client) = client(healthy());
        read(&client).await.unwrap();
        // Refused once: the address has changed, or the CSRF protection was switched on.
        let first = std::sync::atomic::AtomicBool::new(true);
        nas.set_script(Box::new(move |method| {
            Some(match method {
                "login" => LOGGED_IN.to_owned(),
                "list" if first.swap(false, Ordering::Relaxed) => refused(code),
                _ => OK.to_owned(),
            })
        }));
        read(&client).await.unwrap();
        assert_eq!(nas.count("login"), 2, "{code}");
        // Always refused: the address changes with each call, or the account lacks the permission.
        nas.set_script(refusing(code));
        for _ in 0..20 {
            let error = read(&client).await.unwrap_err();
            assert_eq!(error.code(), Some(Code(code)));
            advance(Duration::from_secs(2)).await;
        }
        assert_eq!(nas.count("login"), 2, "{code}");
        advance(Duration::from_secs(20)).await;
        read(&client).await.unwrap_err();
        read(&client).await.unwrap_err();
        assert_eq!(nas.count("login"), 3, "{code}");
        assert_eq!(
            nas.count("logout"),
            2,
            "{code}: old sessions are not leaked"
        );
    }
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn a_nas_that_rejects_every_session_does_not_cause_a_login_per_call() {
    let (nas, client) = client(refusing(119));
    for _ in 0..10 {
        let error = read(&client).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::SESSION_UNKNOWN));
    }
    assert_eq!(nas.count("login"), 2);
    nas.set_script(healthy());
    read(&client).await.unwrap();
    nas.set_script(refusing(119));
    read(&client).await.unwrap_err();
    assert_eq!(
        nas.count("login"),
        3,
        "a session that has worked is renewed at once"
    );
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn waiting_calls_share_the_outcome_of_one_login() {
    let (nas, client) = client(Box::new(|method| {
        (method == "query").then(|| OK.to_owned())
    }));
    let started = Instant::now();
    for answer in join_all((0..5).map(|_| read(&client))).await {
        let error = answer.unwrap_err();
        assert!(matches!(error, DsmError::Lost { .. }), "{error}");
    }
    assert_eq!((started.elapsed(), nas.count("login")), (LOGIN_TIMEOUT, 1));
    nas.set_script(Box::new(|_| Some(refused(498))));
    for answer in join_all((0..5).map(|_| read(&client))).await {
        assert!(matches!(answer, Err(DsmError::Login { .. })), "{answer:?}");
    }
    assert_eq!(nas.count("login"), 2);
    // A later call logs in again.
    nas.set_script(healthy());
    read(&client).await.unwrap();
    assert_eq!(nas.count("login"), 3);
}

/// design.md#one-login
#[tokio::test(start_paused = true)]
async fn an_account_fixed_on_the_nas_works_without_a_restart() {
    for code in [401, 402, 403, 406, 410, 411] {
        let (nas, client) = client(Box::new(move |_| Some(refused(code))));
        for _ in 0..3 {
            let error = read(&client).await.unwrap_err();
            assert!(error.to_string().contains("next try at"), "{error}");
        }
        assert_eq!(nas.count("login"), 1, "{code}");
        nas.set_script(healthy());
        advance(Duration::from_secs(60)).await;
        read(&client).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn line_ends_in_a_password_file_are_ignored_and_an_empty_file_causes_no_login() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    let (nas, client) = client(healthy());
    let account = Account {
        password: Password::File(path.clone()),
        ..(*client.account).clone()
    };
    let client = Client::over(nas.clone(), account, Arc::new(Refusals::default()));
    for nothing in ["", "\n", "\u{feff}", "\u{feff}\r\n"] {
        std::fs::write(&path, nothing).unwrap();
        let error = read(&client).await.unwrap_err();
        assert!(
            matches!(error, DsmError::Password { .. }),
            "{nothing:?}: {error}"
        );
    }
    assert_eq!(nas.count("login"), 0);
    for text in ["right", "right\n", "right\r\n", "\u{feff}right\n"] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(client.password().await.unwrap().expose_secret(), "right");
    }
    std::fs::write(&path, " two words \n").unwrap();
    assert_eq!(
        client.password().await.unwrap().expose_secret(),
        " two words "
    );
}
