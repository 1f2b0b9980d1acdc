//! The assumptions about DSM: collects every `ASSUMED` comment from the sources. They are what to test first on a real NAS.

use serde::Serialize;

/// An assumption about DSM that the simulator makes without evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Assumption {
    /// The source file.
    pub file: &'static str,
    /// The line where it starts, from 1.
    pub line: usize,
    /// The assumption and its reason.
    pub text: String,
}

macro_rules! sources {
    ($($file:literal),* $(,)?) => { [$(($file, include_str!($file))),*] };
}

/// The source files with `ASSUMED` comments. A test checks that the list is complete.
const SOURCES: &[(&str, &str)] = &sources![
    "nas/api/auth.rs",
    "nas/api/boot.rs",
    "nas/api/clone.rs",
    "nas/api/encryption.rs",
    "nas/api/info.rs",
    "nas/api/lun.rs",
    "nas/api/lun_write.rs",
    "nas/api/monitoring.rs",
    "nas/api/network.rs",
    "nas/api/share.rs",
    "nas/api/snapshot.rs",
    "nas/api/system.rs",
    "nas/api/target.rs",
    "nas/api/target_write.rs",
    "nas/api/utilization.rs",
    "nas/api/volume.rs",
    "nas/call.rs",
    "nas/dispatch.rs",
    "nas/odd_rows.rs",
    "nas/params.rs",
    "nas/settings.rs",
    "nas/state/account.rs",
    "nas/state/lun.rs",
    "nas/state/lun_type.rs",
    "nas/state/volume.rs",
    "nas/timing.rs",
    "server/compound.rs",
    "server/http.rs",
    "storage/transaction.rs",
];

const MARK: &str = "// ASSUMED: ";

/// All assumptions, by file and line.
pub fn all() -> Vec<Assumption> {
    SOURCES
        .iter()
        .flat_map(|(file, text)| in_source(file, text))
        .collect()
}

fn in_source(file: &'static str, text: &str) -> Vec<Assumption> {
    let mut found: Vec<Assumption> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(text) = line.strip_prefix(MARK) {
            found.push(Assumption {
                file,
                line: index + 1,
                text: text.to_owned(),
            });
            open = true;
        } else if let (true, Some(text), Some(last)) =
            (open, line.strip_prefix("// "), found.last_mut())
        {
            last.text.push(' ');
            last.text.push_str(text);
        } else {
            open = false;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assumption_may_span_several_lines() {
        let text =
            "// ASSUMED: one\n// goes on\nfn f() {}\n    // not\n    // ASSUMED: two\n/// doc\n";
        let found = in_source("x.rs", text);
        assert_eq!(
            found
                .iter()
                .map(|a| (a.line, a.text.as_str()))
                .collect::<Vec<_>>(),
            [(1, "one goes on"), (5, "two")]
        );
    }

    #[test]
    fn every_source_with_an_assumption_is_listed() {
        let sources = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut folders = vec![sources.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(sources).unwrap().to_str().unwrap();
                let marked = std::fs::read_to_string(&path)
                    .unwrap()
                    .lines()
                    .any(|line| line.trim_start().starts_with(MARK));
                assert!(
                    !marked || SOURCES.iter().any(|(file, _)| *file == name),
                    "{name} is not in SOURCES"
                );
            }
        }
    }
}
