//! SELinux labels of whole mounts (`context="…"`): parsing them in mount options, and comparing two labels. Pure.
//!
//! The kubelet adds such an option to the mount flags of a stage and of a publication if CSIDriver.seLinuxMount is true and
//! SELinux is enabled on the node. The label belongs to the file system: a bind mount shows it and cannot have another.
//! Source: Kubernetes, pkg/volume/util/selinux.go (`AddSELinuxMountOption`); Linux, security/selinux/hooks.c.

use std::collections::BTreeSet;

/// The option that labels all files of a mount.
const CONTEXT: &str = "context";
/// Options with a label as their value. The kernel accepts each only once.
pub(super) const LABELS: [&str; 4] = [CONTEXT, "fscontext", "defcontext", "rootcontext"];
/// Number of categories that the kernel supports.
const CATEGORIES: u16 = 1024;

/// Splits a list of options at the commas outside of double quotes. `None` if a quote is not closed.
pub(super) fn split(list: &str) -> Option<Vec<&str>> {
    let mut quoted = false;
    let parts = list
        .split(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .collect();
    (!quoted).then_some(parts)
}

/// What is wrong with an option that has quotes or whose value is a label; `None` if it is valid.
pub(super) fn problem_with(option: &str) -> Option<&'static str> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    if !LABELS.contains(&name) {
        return Some("only the value of a label option (context, fscontext, …) may be in quotes");
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"_-.:".contains(&b);
    let well_formed = match value.strip_prefix('"') {
        Some(rest) => rest
            .strip_suffix('"')
            .filter(|label| label.bytes().all(|b| legal(b) || b == b',')),
        None => Some(value).filter(|label| label.bytes().all(legal)),
    };
    match well_formed {
        Some(label) if label.split(':').filter(|part| !part.is_empty()).count() >= 3 => None,
        Some(_) | None => Some(
            "a label is user:role:type or user:role:type:level; with commas it must be in double quotes: context=\"system_u:object_r:container_file_t:s0:c1,c2\"",
        ),
    }
}

/// The label of the `context` option, which applies to all files of the mount.
pub fn context<'a>(mut options: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    options.find_map(|option| {
        let (name, value) = option.split_once('=')?;
        (name == CONTEXT).then(|| value.trim_matches('"'))
    })
}

/// True if both labels are equal to the kernel, which writes categories in its own form. No label differs from every label.
pub fn labels_equal(left: Option<&str>, right: Option<&str>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => match (Label::parse(left), Label::parse(right)) {
            (Some(left), Some(right)) => left == right,
            (_, _) => left == right,
        },
        (left, right) => left == right,
    }
}

/// `system_u:object_r:container_file_t:s0:c0.c3,c7`.
#[derive(Debug, PartialEq, Eq)]
struct Label<'a> {
    user_role_type: [&'a str; 3],
    /// Lowest and highest level; the same level twice if the label has only one.
    levels: Option<[Level<'a>; 2]>,
}

/// `s0:c0.c3,c7`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level<'a> {
    sensitivity: &'a str,
    categories: BTreeSet<u16>,
}

impl<'a> Label<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(4, ':');
        let user_role_type = [parts.next()?, parts.next()?, parts.next()?];
        let levels = match parts.next() {
            None => None,
            Some(range) => {
                let (low, high) = range.split_once('-').unwrap_or((range, range));
                Some([Level::parse(low)?, Level::parse(high)?])
            }
        };
        Some(Self {
            user_role_type,
            levels,
        })
    }
}

impl<'a> Level<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (sensitivity, list) = text.split_once(':').unwrap_or((text, ""));
        let number = |name: &str| {
            let number: u16 = name.strip_prefix('c')?.parse().ok()?;
            (number < CATEGORIES).then_some(number)
        };
        let mut categories = BTreeSet::new();
        for item in list.split(',').filter(|item| !item.is_empty()) {
            let (from, to) = item.split_once('.').unwrap_or((item, item));
            categories.extend(number(from)?..=number(to)?);
        }
        Some(Self {
            sensitivity,
            categories,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_quotes_do_not_split() {
        assert_eq!(
            split(r#"dirsync,context="a:b:c:s0:c15,c25",noatime"#).unwrap(),
            ["dirsync", r#"context="a:b:c:s0:c15,c25""#, "noatime"]
        );
        assert_eq!(split("rw").unwrap(), ["rw"]);
        assert_eq!(split(r#"ro,context="a:b:c:s0:c1,c2"#), None);
    }

    #[test]
    fn malformed_labels_are_refused() {
        for good in [
            r#"context="system_u:object_r:container_file_t:s0:c0,c1""#,
            "context=system_u:object_r:container_file_t:s0",
            "fscontext=u:r:t",
            r#"rootcontext="u:r:t:s0-s15:c0.c1023""#,
        ] {
            assert_eq!(problem_with(good), None, "{good}");
        }
        for bad in [
            "context",
            "context=",
            r#"context="""#,
            "context=u:r",
            "context=u::t",
            "context=u:r:t:s0:c0,c1",
            r#"context="u:r:t"x"#,
            r#"context=x"u:r:t""#,
            r#"context="u:r:t"""#,
            "context=\"u:r:t\n\"",
            r#"context="u:r:t /etc""#,
            r#"context="u:r:t\""#,
            r#"data="ordered,x""#,
            r#""context=u:r:t""#,
        ] {
            assert!(problem_with(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn labels_are_compared_as_the_kernel_does() {
        let list = |options: &[&str]| {
            options
                .iter()
                .map(|it| (*it).to_owned())
                .collect::<Vec<_>>()
        };
        let seen = list(&["rw", r#"context="u:r:t:s0:c0.c2,c7""#]);
        let seen = context(seen.iter());
        assert_eq!(seen, Some("u:r:t:s0:c0.c2,c7"));
        for alike in [
            "u:r:t:s0:c0.c2,c7",
            "u:r:t:s0:c7,c1,c2,c0",
            "u:r:t:s0:c0.c2,c7-s0:c0.c2,c7",
        ] {
            assert!(labels_equal(seen, Some(alike)), "{alike}");
        }
        for other in [
            "u:r:t:s0:c0.c2",
            "u:r:t:s1:c0.c2,c7",
            "u:r:x:s0:c0.c2,c7",
            "u:r:t",
            "u:r:t:s0-s0:c0.c2,c7",
        ] {
            assert!(!labels_equal(seen, Some(other)), "{other}");
        }
        // Labels that cannot be parsed are compared as text.
        assert!(labels_equal(Some("u:r:t:s0:c9999"), Some("u:r:t:s0:c9999")));
        assert!(!labels_equal(Some("u:r:t:s0:c9999"), Some("u:r:t:s0")));
        assert!(!labels_equal(seen, None) && !labels_equal(None, seen) && labels_equal(None, None));
        assert_eq!(
            context(list(&["rw", "seclabel", "fscontext=u:r:t"]).iter()),
            None
        );
    }
}
