use proptest::prelude::*;

use super::*;
use crate::initiator::console::Exit;

fn read(line: &str) -> Result<Options, Failure> {
    parse(
        &line
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    )
}

#[track_caller]
fn good(line: &str) -> Options {
    read(line).unwrap_or_else(|failure| panic!("{line}: {failure}"))
}

#[test]
fn valid_command_lines_are_parsed() {
    let lines = [
        "--version",
        "-V",
        "-h",
        "-m discovery",
        "-m discovery -t st -p 127.0.0.1",
        "-m discovery -t sendtargets -p 127.0.0.1:3260 -l",
        "-m discovery -t st -p 127.0.0.1 -o nonpersistent",
        "-m discovery -t st -p 127.0.0.1 -o new -o update",
        "-m discoverydb -t st -p 127.0.0.1:3260 --discover",
        "-m discoverydb --type sendtargets --portal [::1]:3260 --op new",
        "-m node",
        "-m node -P 1",
        "-m node -P1",
        "-m node -d 8",
        "-m node -T iqn.t -p 127.0.0.1:3260,1 -I default -o new",
        "-m node -T iqn.t -p 127.0.0.1:3260 -o update -n node.session.scan -v manual",
        "-m node -T iqn.t -o update -n a -v b -n c -v d",
        "-m node -T iqn.t -o show -S",
        "-m node -T iqn.t -p nas.example -l",
        "-m node --targetname=iqn.t --portal=127.0.0.1 --login",
        "-m node -u",
        "-m node -R",
        "-m session",
        "-m session -P 3 -S",
        "-m session -r 1 -R",
        "-m session -r1 -u",
        "--sid 1 --mode session --rescan",
        "-m host",
        "-m iface",
        "-m iface -I default",
    ];
    for line in lines {
        good(line);
    }
}

#[test]
fn invalid_command_lines_are_refused() {
    let lines = [
        ("", "no mode specified"),
        ("-T iqn.t", "no mode specified"),
        ("-m", "needs a value"),
        ("-m nodes", "unknown mode 'nodes'"),
        ("-m fw", "not simulated"),
        ("-m node login", "unexpected word 'login'"),
        ("-m node -- -l", "unrecognized option '--'"),
        ("-m node -", "unexpected word '-'"),
        ("-m node --log", "unrecognized option '--log'"),
        ("-m node --login=yes", "takes no value"),
        ("-m node -z", "unrecognized option '-z'"),
        ("-m node -lz", "unrecognized option '-z'"),
        ("-m node -m node", "'-m' is given twice"),
        ("-m node -T iqn.a -T iqn.b", "'-T' is given twice"),
        ("-m node -o remove", "can not recognize operation: 'remove'"),
        ("-m node -o new -o delete -T t -p 1.2.3.4", ""),
        ("-m node -T iqn.t -o update -n a", "come in pairs"),
        ("-m node -T iqn.t -o update -v a", "come in pairs"),
        ("-m node -T iqn.t -o update -n a -n b -v c", "come in pairs"),
        ("-m node -T iqn.t -n a -v b", "go with --op update"),
        ("-m node -l -u", "only one of"),
        ("-m node -l -R", "only one of"),
        ("-m node -T iqn.t -l -o show", "--op does not go with"),
        (
            "-m node -r 1",
            "node mode: option '-r' is not allowed/supported",
        ),
        ("-m node -D", "option '-D' is not allowed/supported"),
        ("-m node -t st", "option '-t' is not allowed/supported"),
        (
            "-m session -T iqn.t",
            "session mode: option '-T' is not allowed/supported",
        ),
        (
            "-m session -p 127.0.0.1",
            "option '-p' is not allowed/supported",
        ),
        ("-m session -l", "option '-l' is not allowed/supported"),
        ("-m session -r one", "invalid sid 'one'"),
        ("-m session -r -1", "invalid sid '-1'"),
        ("-m session -P x", "invalid print level 'x'"),
        ("-m discovery -R", "option '-R' is not allowed/supported"),
        ("-m discovery -t isns -p 127.0.0.1", "not simulated"),
        ("-m node -L all", "'--loginall' is not simulated"),
        ("-m node -s", "'--stats' is not simulated"),
        ("-m node -d loud", "invalid debug level"),
        ("-k 0", "'--killiscsid' is not simulated"),
        ("-m node -p 127.0.0.1:0", "invalid portal"),
        ("-m node -p 127.0.0.1:70000", "invalid port"),
        ("-m node -p 127.0.0.1:", "invalid port"),
        ("-m node -p 127.0.0.1,x", "invalid portal group tag"),
        ("-m node -p :3260", "invalid portal"),
        ("-m node -p ../x", "invalid portal"),
        ("-m node -p [127.0.0.1]:3260", "invalid portal"),
        ("-m node -p [::1", "invalid portal"),
        ("-m node -p [::1]3260", "invalid portal"),
        ("-m node -p ::zz:1", "invalid portal"),
    ];
    for (line, says) in lines {
        match read(line).and_then(|options| options.op()) {
            Ok(_) => panic!("{line} was taken"),
            Err(failure) => {
                assert_eq!(failure.exit, Exit::Invalid, "{line}");
                assert!(failure.text.contains(says), "{line}: {}", failure.text);
            }
        }
    }
    let empty = ["-m", "node", "-T", ""].map(str::to_owned);
    assert!(parse(&empty).is_err());
}

#[test]
fn order_and_form_of_options_do_not_matter() {
    let one = good("--mode node --targetname iqn.t --portal 127.0.0.1:3260 --login");
    for other in [
        "-l -p 127.0.0.1:3260 -T iqn.t -m node",
        "-lmnode -Tiqn.t -p127.0.0.1:3260",
        "--login --portal=127.0.0.1:3260 -T iqn.t --mode=node",
    ] {
        assert_eq!(good(other), one);
    }
}

#[test]
fn portals_are_parsed_in_all_forms() {
    let cases = [
        ("10.0.0.5", "10.0.0.5", None, None),
        ("10.0.0.5:3261", "10.0.0.5", Some(3261), None),
        ("10.0.0.5:3260,1", "10.0.0.5", Some(3260), Some(1)),
        ("10.0.0.5,2", "10.0.0.5", None, Some(2)),
        ("fd00::5", "fd00::5", None, None),
        ("[fd00::5]", "fd00::5", None, None),
        ("[fd00::5]:3260,1", "fd00::5", Some(3260), Some(1)),
        ("nas-1.example:3260", "nas-1.example", Some(3260), None),
    ];
    for (text, host, port, tpgt) in cases {
        let want = Portal {
            host: host.into(),
            port,
            tpgt,
        };
        assert_eq!(portal(text).unwrap(), want, "{text}");
    }
}

proptest! {
    #[test]
    fn no_command_line_causes_a_panic(args in prop::collection::vec("-{0,2}[a-zA-Z:,.=\\[\\]0-9ü]{0,8}", 0..8)) {
        let _ = parse(&args);
    }
}
