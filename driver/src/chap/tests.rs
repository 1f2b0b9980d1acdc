use super::*;

const USER: (&str, &str) = (USERNAME, "alice");
const PASS: (&str, &str) = (PASSWORD, "planted-12345");
const USER_IN: (&str, &str) = (USERNAME_IN, "nas");
const PASS_IN: (&str, &str) = (PASSWORD_IN, "planted-67890");

fn read(pairs: &[(&str, &str)]) -> Result<Option<Chap>, Error> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Chap::read(&pairs.iter().map(owned).collect())
}

#[test]
fn a_secret_is_for_one_way_or_mutual_chap() {
    assert_eq!(read(&[]).unwrap(), None);
    let one = read(&[USER, PASS]).unwrap().unwrap();
    assert_eq!(one.initiator.user, "alice");
    assert_eq!(one.initiator.password.expose_secret(), "planted-12345");
    let both = read(&[USER, PASS, USER_IN, PASS_IN]).unwrap().unwrap();
    assert_eq!(both.target.as_ref().unwrap().user, "nas");
    for (chap, method, number) in [
        (None, "none", 0),
        (Some(one), "chap", 1),
        (Some(both), "mutual", 2),
    ] {
        let seen = Method::of(chap.as_ref());
        assert_eq!(
            (seen.to_string().as_str(), seen.auth_type()),
            (method, number)
        );
        assert_eq!(method.parse(), Ok(seen));
    }
    assert!("CHAP".parse::<Method>().is_err());
}

#[test]
fn errors_name_the_key_and_never_the_value() {
    for (pairs, key, says) in [
        (vec![USER], PASSWORD, "missing"),
        (vec![PASS], USERNAME, "missing"),
        (vec![USER, PASS, USER_IN], PASSWORD_IN, "missing"),
        (vec![USER, PASS, PASS_IN], USERNAME_IN, "missing"),
        (vec![USER_IN, PASS_IN], USERNAME, "initiator's pair"),
        (vec![USER, (PASSWORD, "planted-123")], PASSWORD, "12 to 16"),
        (
            vec![USER, (PASSWORD, "planted-123456789")],
            PASSWORD,
            "12 to 16",
        ),
        (vec![USER, (PASSWORD, "")], PASSWORD, "12 to 16"),
        (vec![(USERNAME, ""), PASS], USERNAME, "1 to 128"),
        (vec![(USERNAME, "planted name"), PASS], USERNAME, "blanks"),
        (
            vec![USER, (PASSWORD, "planted-1234\n")],
            PASSWORD,
            "line end",
        ),
        (vec![USER, (PASSWORD, "planted-\0-1234")], PASSWORD, "ASCII"),
        (vec![USER, (PASSWORD, "planted-ünïcode")], PASSWORD, "ASCII"),
        (
            vec![USER, PASS, USER_IN, (PASSWORD_IN, PASS.1)],
            PASSWORD_IN,
            "another password",
        ),
        (
            vec![USER, PASS, ("password", "planted-12345")],
            "password",
            USERNAME,
        ),
        (vec![("user", "alice")], "user", "leave it out"),
    ] {
        let error = read(&pairs).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("secrets[{key}]")) && text.contains(says),
            "{text}"
        );
        assert!(
            !format!("{text} {error:?}").contains("planted"),
            "{error:?}"
        );
    }
}

/// Discovery keys occur in Secrets of type kubernetes.io/iscsi-chap, as in-tree iSCSI volumes use them.
#[test]
fn discovery_credentials_are_ignored() {
    let discovery = [
        ("discovery.sendtargets.auth.username", "bob"),
        ("discovery.sendtargets.auth.password", "planted-56789"),
    ];
    let both = [&[USER, PASS], &discovery[..]].concat();
    assert_eq!(read(&both).unwrap(), read(&[USER, PASS]).unwrap());
    // A Secret with discovery credentials only is an error: the session credentials were forgotten.
    let text = read(&discovery).unwrap_err().to_string();
    assert!(text.starts_with(&format!("secrets[{USERNAME}]")), "{text}");
}

#[test]
fn passwords_are_not_printed() {
    let chap = read(&[USER, PASS, USER_IN, PASS_IN]).unwrap();
    let text = format!("{chap:?}");
    assert!(
        text.contains("alice") && !text.contains("planted"),
        "{text}"
    );
}
