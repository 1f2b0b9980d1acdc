//! Programs of the host, run from a driver that lives elsewhere: the shipped binary enters another process's namespaces.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use driver::host::linux::Linux;
use driver::host::{Cmd, Exit, Host as _};

const DRIVER: &str = env!("CARGO_BIN_EXE_synology-csi");

fn linux() -> Linux {
    Linux::new(PathBuf::from("/"))
}

async fn enter(process: &str, words: &[&str]) -> Exit {
    let cmd = Cmd::new(DRIVER, 20)
        .args(["enter-namespaces", process])
        .args(words.iter().copied());
    linux().run(cmd).await.unwrap()
}

#[tokio::test]
async fn a_program_runs_in_the_namespaces_and_below_the_root_of_a_process() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIP a_program_runs_in_the_namespaces_and_below_the_root_of_a_process: needs root for namespaces"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ready, script) = (folder.path().join("ready"), folder.path().join("host"));
    // A node: a tool that nobody else has, and a file that nobody else sees. It ends when the folder is gone.
    std::fs::write(
        &script,
        format!(
            "mount -t tmpfs none /usr/local/sbin; printf '#!/bin/sh\\necho \"tool $*\"; cat /usr/local/sbin/seen\\n' >/usr/local/sbin/host-tool; chmod 755 /usr/local/sbin/host-tool; echo inside >/usr/local/sbin/seen; echo $$ >{0}; while [ -e {0} ]; do sleep 0.1; done",
            ready.display()
        ),
    )
    .unwrap();
    let cmd = Cmd::new("unshare", 40)
        .args(["--mount", "--net", "sh"])
        .arg(script.to_str().unwrap());
    let host = tokio::spawn(async move { linux().run(cmd).await });
    let process = first_line(&ready).await;

    let exit = enter(&process, &["host-tool", "one", "two words"]).await;
    assert_eq!(
        (exit.status, exit.stdout.as_str()),
        (0, "tool one two words\ninside\n"),
        "{exit:?}"
    );
    assert!(
        !Path::new("/usr/local/sbin/host-tool").exists(),
        "it is in no other namespace"
    );
    let links = enter(&process, &["ip", "-brief", "link"]).await;
    assert_eq!(links.stdout.lines().count(), 1, "loopback alone: {links:?}");

    let exit = enter(&process, &["no-such-tool"]).await;
    assert_eq!(exit.status, 125);
    assert!(
        exit.stderr.contains("no-such-tool is in none of"),
        "{exit:?}"
    );

    std::fs::remove_file(&ready).unwrap();
    host.await.unwrap().unwrap();
    let exit = enter(&process, &["true"]).await;
    assert_eq!(exit.status, 125);
    assert!(exit.stderr.contains("the process has ended"), "{exit:?}");
}

/// The file's line, once it is written.
async fn first_line(file: &Path) -> String {
    for _ in 0..100 {
        match std::fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim_end().to_owned(),
            // sleep: between two looks at the file.
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("{} does not appear", file.display());
}
