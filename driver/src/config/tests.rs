use super::*;

const GOOD: &str = "
nas:
  - name: nas1
    aliases: [old]
    url: https://nas.example:5001
    username: csi
    password_file: /etc/synology-csi/password
    portals: ['10.0.0.5', '[fd00::5]:3260']
state_file: /var/lib/synology-csi/refused.json
";

fn refusal(change: impl Fn(&str) -> String) -> String {
    let error = Config::read(&change(GOOD)).unwrap_err();
    format!(
        "{error}: {:?}",
        std::error::Error::source(&error).map(ToString::to_string)
    )
}

#[test]
fn a_good_configuration_is_read() {
    let config = Config::read(GOOD).unwrap();
    assert_eq!(config.nas[0].portals.len(), 2);
    assert!(matches!(config.nas[0].password(), Password::File(_)));
}

#[test]
fn a_bad_configuration_is_rejected_naming_the_key() {
    for (from, to, named) in [
        ("username: csi", "user: csi", "user"),
        ("name: nas1", "name: NAS_1", "NAS_1"),
        ("aliases: [old]", "aliases: [nas1]", "twice"),
        ("https://nas.example:5001", "ftp://nas.example", "url"),
        (
            "https://nas.example:5001",
            "https://csi:secret@nas.example",
            "password_file",
        ),
        (
            "https://nas.example:5001",
            "https://nas.example/webapi",
            "port",
        ),
        ("password_file: /etc/synology-csi/password", "", "password"),
        ("username: csi", "username: ''", "username"),
        (
            "password_file: /etc/synology-csi/password",
            "password: ''",
            "password is empty",
        ),
        ("10.0.0.5", "nas.local", "nas.local"),
        ("state_file", "statefile", "statefile"),
        (
            "url: https://nas.example:5001",
            "url: http://nas.example:5000",
            "plain_http: true",
        ),
        (
            "url: https://nas.example:5001",
            "url: http://10.0.0.5:5000",
            "in the clear",
        ),
        (
            "username: csi",
            "username: csi\n    tls_pins: [AAAA]",
            "sha256//",
        ),
        (
            "username: csi",
            "username: csi\n    tls_server_name: 'a b'",
            "give a host name",
        ),
        (
            "username: csi",
            "username: csi\n    tls_server_name: synology\n    tls_pins: ['sha256//paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU=']",
            "takes the place",
        ),
        (
            "url: https://nas.example:5001",
            "url: http://127.0.0.1:5000\n    tls_server_name: synology",
            "over https://",
        ),
    ] {
        let text = refusal(|good| good.replace(from, to));
        assert!(text.contains(named), "{to}: {text}");
    }
    assert!(matches!(Config::read("nas: []"), Err(ConfigError::Empty)));
}

#[test]
fn plain_http_beyond_loopback_needs_plain_http_true() {
    let in_clear = |url: &str| {
        let text = GOOD.replace("https://nas.example:5001", url);
        Config::read(&text).map(|config| config.nas[0].sends_password_in_clear())
    };
    for url in [
        "http://127.0.0.1:5000",
        "http://[::1]:5000",
        "http://localhost:5000",
    ] {
        assert!(!in_clear(url).unwrap(), "{url}");
    }
    for url in [
        "http://nas",
        "http://192.168.1.2:5000",
        "http://localhost.example",
        "http://[fd00::5]",
    ] {
        in_clear(url).unwrap_err();
        let allowed = format!("{url}\n    plain_http: true");
        assert!(in_clear(&allowed).unwrap(), "{url}");
    }
    assert!(!in_clear("https://nas.example\n    plain_http: true").unwrap());
}

#[test]
fn secrets_are_not_printed() {
    let text = GOOD.replace(
        "password_file: /etc/synology-csi/password",
        "password: planted-secret",
    );
    assert!(!format!("{:?}", Config::read(&text).unwrap()).contains("planted-secret"));
}

/// design.md#free-space
#[test]
fn min_free_space_defaults_to_one_gibibyte() {
    let floor = |line: &str| {
        let text = GOOD.replace("username:", &format!("{line}\n    username:"));
        Config::read(&text).map(|config| config.nas[0].min_free_space.to_string())
    };
    for (line, read) in [
        ("", "1G"),
        ("min_free_space: 10Gi", "10G"),
        ("min_free_space: 0", "0"),
        ("min_free_space: '0'", "0"),
    ] {
        assert_eq!(floor(line).unwrap(), read, "{line}");
    }
    for bad in ["5%", "-1", "1.5", "1073741824", "lots", "[1Gi]"] {
        floor(&format!("min_free_space: {bad}")).unwrap_err();
    }
}

#[test]
fn the_replacement_timeout_is_in_whole_seconds() {
    for (text, seconds) in [("120s", 120), ("2m", 120), ("1s", 1), ("1day", 86_400)] {
        assert_eq!(replacement_timeout(text), Ok(Duration::from_secs(seconds)));
    }
    for bad in ["0s", "120", "1500ms", "2days", "-1s", ""] {
        assert!(replacement_timeout(bad).is_err(), "{bad}");
    }
}

#[test]
fn metrics_addresses_are_parsed() {
    for (text, read) in [
        ("127.0.0.1:9810", "127.0.0.1:9810"),
        ("[fd00::5]:0", "[fd00::5]:0"),
        ("fd00::5:9810", "[fd00::5]:9810"),
        (":::9810", "[::]:9810"),
    ] {
        assert_eq!(metrics_address(text), Ok(read.parse().unwrap()), "{text}");
    }
    for bad in [
        ":9810",
        "9810",
        "localhost:9810",
        "127.0.0.1:",
        "127.0.0.1:70000",
        "[::1:9810",
    ] {
        assert!(
            metrics_address(bad).unwrap_err().contains("[::]:9810"),
            "{bad}"
        );
    }
}

#[test]
fn the_path_interval_defaults_to_a_minute_and_zero_means_never() {
    let seconds = |flags: &[&str]| {
        let args = ["synology-csi", "--endpoint=/csi.sock"];
        let all = args.iter().chain(flags);
        Args::try_parse_from(all).map(|args| args.path_interval.as_secs())
    };
    assert_eq!(seconds(&[]).unwrap(), 60);
    assert_eq!(seconds(&["--path-interval", "5m"]).unwrap(), 300);
    assert_eq!(seconds(&["--path-interval", "0s"]).unwrap(), 0);
    for bad in ["10ms", "2days", "soon"] {
        assert!(seconds(&["--path-interval", bad]).is_err(), "{bad}");
    }
}

#[test]
fn the_maximum_number_of_volumes_defaults_to_none() {
    let given = |flags: &[&str]| {
        let args = ["synology-csi", "--endpoint=/csi.sock"];
        Args::try_parse_from(args.iter().chain(flags))
            .map(|args| args.max_volumes_per_node)
            .map_err(|error| error.to_string())
    };
    assert_eq!(given(&[]), Ok(0));
    assert_eq!(given(&["--max-volumes-per-node=0"]), Ok(0));
    assert_eq!(given(&["--max-volumes-per-node", "64"]), Ok(64));
    assert_eq!(
        given(&["--max-volumes-per-node=2147483647"]),
        Ok(2_147_483_647)
    );
    for bad in ["-1", "2147483648", "many", "1.5", ""] {
        let text = given(&["--max-volumes-per-node", bad]).unwrap_err();
        for part in [
            "--max-volumes-per-node",
            &format!("'{bad}'"),
            "from 1 to 2147483647",
        ] {
            // clap reports an empty value as missing.
            let named = bad.is_empty() || text.contains(part);
            assert!(named, "{bad}: {text}");
        }
    }
}

#[test]
fn endpoints_are_unix_sockets() {
    assert_eq!(
        socket_path("unix:///csi/csi.sock"),
        Ok(PathBuf::from("/csi/csi.sock"))
    );
    assert_eq!(
        socket_path("/csi/csi.sock"),
        Ok(PathBuf::from("/csi/csi.sock"))
    );
    assert!(socket_path("tcp://0.0.0.0:1").is_err());
    assert!(socket_path("unix://csi.sock").is_err());
}
