//! Finds the newest releases of the chart's sidecars, for the weekly run against unpinned versions.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::{context::Context, run::Cmd};

/// Writes chart values with each sidecar's newest release, according to its registry (with skopeo).
///
/// # Errors
/// When the chart's values are not as expected, or a registry does not respond.
pub(super) fn sidecars(context: &Context, to: &Path) -> Result<()> {
    let values = context.root.join("driver/deploy/chart/values.yaml");
    let values: Value = serde_yaml_ng::from_str(&fs::read_to_string(&values)?)?;
    let mut newest = Map::new();
    for (name, image, pinned) in images(&values) {
        let output = Cmd::new(context, "skopeo list-tags")
            .arg(format!("docker://{image}"))
            .output()?;
        let reply: Value = serde_json::from_str(&output.stdout)
            .with_context(|| format!("{image}: {}", output.stderr.trim()))?;
        let tags = reply["Tags"].as_array().into_iter().flatten();
        let tag = highest(tags.filter_map(Value::as_str))
            .with_context(|| format!("{image} has no release"))?;
        println!("{name}: {tag}, pinned is {pinned}");
        newest.insert(name, json!({"image": {"tag": tag, "digest": ""}}));
    }
    fs::write(to, json!({"sidecars": newest}).to_string())?;
    Ok(())
}

/// The chart's sidecars: name in the values, image without tag, and pinned tag.
fn images(values: &Value) -> Vec<(String, String, String)> {
    let sidecars = values["sidecars"].as_object().into_iter().flatten();
    let of = |(name, sidecar): (&String, &Value)| {
        let field = |field: &str| sidecar["image"][field].as_str().map(str::to_owned);
        let place = format!("{}/{}", field("registry")?, field("repository")?);
        Some((name.clone(), place, field("tag")?))
    };
    sidecars.filter_map(of).collect()
}

/// The highest tag that is a release: `v6.4.0`, but neither `v6.5.0-rc1` nor `canary`.
fn highest<'a>(tags: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    tags.filter_map(|tag| Some((release(tag)?, tag)))
        .max()
        .map(|(_, tag)| tag)
}

fn release(tag: &str) -> Option<[u32; 3]> {
    let numbers = tag.strip_prefix('v')?.split('.');
    let numbers: Vec<u32> = numbers.map(|it| it.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers_and_only_releases_count() {
        let tags = [
            "canary",
            "v6.9.0",
            "v6.10.1",
            "v7.0.0-rc1",
            "v6.10",
            "6.11.0",
        ];
        assert_eq!(highest(tags.into_iter()), Some("v6.10.1"));
        assert_eq!(highest(["canary"].into_iter()), None);
    }

    #[test]
    fn every_sidecar_of_the_chart_is_found() {
        let values = include_str!("../../../driver/deploy/chart/values.yaml");
        let values: Value = serde_yaml_ng::from_str(values).unwrap();
        let found = images(&values);
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        for name in [
            "provisioner",
            "attacher",
            "resizer",
            "registrar",
            "livenessProbe",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        for (name, image, pinned) in &found {
            assert!(image.contains("/sig-storage/"), "{name}: {image}");
            assert!(release(pinned).is_some(), "{name}: {pinned}");
        }
    }
}
