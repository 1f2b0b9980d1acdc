use super::*;
use serde_json::Value;

#[test]
fn a_reply_is_data_or_a_code_or_garbled() {
    let read = |body: &str| read::<Value>("A", "m", body.as_bytes());
    assert_eq!(read(r#"{"data":{"x":1},"success":true}"#).unwrap()["x"], 1);
    let refused = read(r#"{"error":{"code":18990531,"errors":[]},"success":false}"#).unwrap_err();
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
fn no_data_is_parsed_from_any_data() {
    for body in [
        r#"{"success":true}"#,
        r#"{"success":true,"data":null}"#,
        r#"{"success":true,"data":[]}"#,
        r#"{"success":true,"data":{}}"#,
    ] {
        assert!(read::<NoData>("A", "m", body.as_bytes()).is_ok(), "{body}");
    }
}

/// design.md#one-login
#[test]
fn each_login_code_has_a_kind_of_refusal() {
    for (kind, codes) in [
        (LoginRefusal::Credential, &[400, 404][..]),
        (
            LoginRefusal::Account,
            &[401, 402, 403, 405, 406, 408, 409, 410, 411, 412],
        ),
        (LoginRefusal::Address, &[407]),
        (LoginRefusal::Transient, &[498, 119, 100]),
    ] {
        for code in codes {
            assert_eq!(Code(*code).login(), kind, "{code}");
        }
    }
}

/// design.md#one-login
#[test]
fn a_refused_login_names_the_remedy_and_the_next_attempt() {
    for (code, words) in [
        (400, ["on the NAS", "at once with another password"]),
        (402, ["administrators", "at once after kubectl"]),
        (407, ["block list", "not sooner"]),
    ] {
        let error = DsmError::Login {
            account: "csi".to_owned(),
            code: Code(code),
            next: Some(NextTry {
                at: 1_767_225_600,
                restart: code != 407,
            }),
        };
        let text = error.to_string();
        for word in words.iter().chain(&["2026-01-01T00:00:00Z"]) {
            assert!(text.contains(word), "{word}: {text}");
        }
        let remedy = text.find(words[0]).unwrap();
        assert!(remedy < 150, "early enough to be shown in an event: {text}");
    }
}
