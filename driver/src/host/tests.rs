use std::io;

use tonic::Code;

use super::*;

/// design.md#final-codes
#[test]
fn no_code_of_the_host_is_final() {
    let io = || io::Error::from(io::ErrorKind::PermissionDenied);
    let limit = Duration::from_secs(1);
    for (error, code) in [
        (
            HostError::NotStarted {
                program: "p",
                source: io(),
            },
            Code::Unavailable,
        ),
        (
            HostError::NoNamespaces {
                problem: String::new(),
            },
            Code::Unavailable,
        ),
        (
            HostError::DeadlineExceeded {
                what: "w".to_owned(),
                limit,
            },
            Code::Aborted,
        ),
        (
            HostError::Failed {
                program: "p",
                status: 1,
                said: String::new(),
            },
            Code::Unavailable,
        ),
        (
            HostError::Absent {
                path: "/p".to_owned(),
            },
            Code::Unavailable,
        ),
        (
            HostError::Io {
                doing: "d".to_owned(),
                source: io(),
            },
            Code::Unavailable,
        ),
        (
            HostError::Locked {
                path: "/p".to_owned(),
                seconds: 60,
                seen: "s".to_owned(),
            },
            Code::Unavailable,
        ),
        (
            HostError::Unparsable {
                what: "w".to_owned(),
                seen: String::new(),
            },
            Code::Unavailable,
        ),
    ] {
        assert_eq!(error.code(), code, "{error}");
    }
}

#[test]
fn a_failed_command_is_reported_with_its_output() {
    let exit = Exit {
        status: 3,
        stdout: "out".to_owned(),
        stderr: "banner 1.0\n\nno such\nfile\n".to_owned(),
    };
    assert_eq!(
        exit.failed("tool").to_string(),
        "tool failed with exit status 3: banner 1.0; no such; file"
    );
    let long = Exit {
        stderr: "cause\nusage\n-a\n-b\n-c\n".to_owned(),
        ..exit.clone()
    };
    assert!(
        long.failed("tool")
            .to_string()
            .ends_with(": cause; usage; …; -c")
    );
    assert!(
        Exit {
            stderr: String::new(),
            ..exit
        }
        .failed("tool")
        .to_string()
        .ends_with(": out")
    );
}

#[test]
fn device_numbers_are_parsed_as_sysfs_writes_them() {
    assert_eq!(
        DeviceNumber::parse("8:16\n"),
        Some(DeviceNumber {
            major: 8,
            minor: 16
        })
    );
    assert_eq!(DeviceNumber::parse("8"), None);
}
