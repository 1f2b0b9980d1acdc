//! OCI image layouts: a folder with everything that a registry is sent of an image, under names that are digests of the content.
//!
//! So the digest of what is published is known before anybody may publish, and whoever publishes only copies. Sources: the OCI image
//! specification 1.1 (layout, manifest, index), and Docker's image specification 1.2 for the archives that `docker save` writes.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{context::Context, run::Step};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Helm's own, for charts in registries.
const CHART: &str = "application/vnd.cncf.helm.config.v1+json";
const CHART_LAYER: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

/// A layout that is being filled.
#[derive(Debug)]
pub(super) struct Layout {
    folder: PathBuf,
}

/// The image of one processor, in a layout.
#[derive(Debug)]
pub(super) struct Part {
    /// As an index lists it.
    descriptor: Value,
    /// When it was made, to the second: `2026-11-30T12:00:00Z`.
    pub(super) created: String,
}

impl Layout {
    /// An empty one; whatever was in the folder is gone.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn create(folder: PathBuf) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        Ok(Self { folder })
    }

    /// Takes in what `docker save` wrote of one image, which must be of this processor, and whole.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub(super) fn image(&self, context: &Context, archive: &Path, processor: &str) -> Result<Part> {
        let shown = archive.display();
        let inside = self.folder.join("unpacked");
        tar::Archive::new(File::open(archive).with_context(|| shown.to_string())?)
            .unpack(&inside)
            .with_context(|| shown.to_string())?;
        let saved: Value = serde_json::from_slice(&fs::read(inside.join("manifest.json"))?)?;
        ensure!(
            saved.as_array().is_some_and(|images| images.len() == 1),
            "{shown}: not one image"
        );
        let saved = &saved[0];
        let config = fs::read(inside.join(text(&saved["Config"])?))?;
        let told: Value = serde_json::from_slice(&config)?;
        ensure!(
            told["architecture"] == processor && told["os"] == "linux",
            "{shown}: of {} {}, not of linux {processor}",
            told["os"],
            told["architecture"]
        );
        let files = saved["Layers"].as_array().map_or(&[][..], Vec::as_slice);
        let wanted = told["rootfs"]["diff_ids"].as_array();
        ensure!(
            wanted.is_some_and(|wanted| wanted.len() == files.len() && !files.is_empty()),
            "{shown}: other layers than its configuration names"
        );
        let mut layers = Vec::new();
        for (file, wanted) in files.iter().zip(wanted.into_iter().flatten()) {
            layers.push(self.layer(context, &inside.join(text(file)?), wanted)?);
        }
        fs::remove_dir_all(&inside)?;
        let config = self.blob(CONFIG, &config)?;
        let mut descriptor = self.manifest(&config, &layers, &json!({}))?;
        descriptor["platform"] = json!({"architecture": processor, "os": "linux"});
        let created = told["created"].as_str().unwrap_or_default();
        let second = created.get(..19).context("it tells not when it was made")?;
        Ok(Part {
            descriptor,
            created: format!("{second}Z"),
        })
    }

    /// A layer, compressed; the same bytes give the same digest.
    fn layer(&self, context: &Context, file: &Path, wanted: &Value) -> Result<Value> {
        // An archive may name a layer twice, the second time by a link.
        let plain = self.folder.join("layer.tar");
        let packed = self.folder.join("layer.tar.gz");
        if is_packed(file)? {
            // As engines with containerd's store keep them: whatever packed it, the bytes shall be ours.
            fs::copy(file, &packed)?;
            Step::new(context, "gzip --decompress --force")
                .arg(&packed)
                .quiet("Unpacking a layer")?;
        } else {
            fs::copy(file, &plain)?;
        }
        ensure!(
            format!("sha256:{}", digest(&plain)?) == *wanted,
            "{}: not the layer {wanted} that the image's configuration names",
            file.display()
        );
        Step::new(context, "gzip --no-name --force")
            .arg(&plain)
            .quiet("Compressing a layer")?;
        let (digest, size) = (digest(&packed)?, fs::metadata(&packed)?.len());
        fs::rename(&packed, self.place(&digest))?;
        Ok(described(LAYER, &digest, size))
    }

    /// The image for all processors; its digest.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn finish(self, parts: &[Part], version: &str) -> Result<String> {
        let manifests: Vec<&Value> = parts.iter().map(|part| &part.descriptor).collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests,
            "annotations": {"org.opencontainers.image.version": version},
        });
        let descriptor = self.blob(INDEX, index.to_string().as_bytes())?;
        self.close(descriptor, version)
    }

    /// A packaged Helm chart; its digest. `about` is its Chart.yaml.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub(super) fn chart(self, about: &Value, packaged: &Path, version: &str) -> Result<String> {
        let config = self.blob(CHART, about.to_string().as_bytes())?;
        let layer = self.blob(CHART_LAYER, &fs::read(packaged)?)?;
        let annotations = json!({
            "org.opencontainers.image.title": about["name"],
            "org.opencontainers.image.description": about["description"],
            "org.opencontainers.image.version": version,
        });
        let descriptor = self.manifest(&config, &[layer], &annotations)?;
        self.close(descriptor, version)
    }

    fn manifest(&self, config: &Value, layers: &[Value], annotations: &Value) -> Result<Value> {
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        if annotations.as_object().is_some_and(|them| !them.is_empty()) {
            manifest["annotations"] = annotations.clone();
        }
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn close(self, mut descriptor: Value, version: &str) -> Result<String> {
        let digest = text(&descriptor["digest"])?.to_owned();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": version});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        fs::write(self.folder.join("index.json"), index.to_string())?;
        let version = json!({"imageLayoutVersion": "1.0.0"});
        fs::write(self.folder.join("oci-layout"), version.to_string())?;
        Ok(digest)
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Result<Value> {
        let digest = hexadecimal(&Sha256::digest(bytes));
        fs::write(self.place(&digest), bytes)?;
        Ok(described(kind, &digest, bytes.len() as u64))
    }

    fn place(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest)
    }
}

fn described(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size})
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("{value} is no text"))
}

/// It begins as gzip's files do (RFC 1952, 2.3.1).
fn is_packed(file: &Path) -> Result<bool> {
    let mut start = [0; 2];
    let mut opened = File::open(file).with_context(|| file.display().to_string())?;
    Ok(opened.read(&mut start)? == 2 && start == [0x1f, 0x8b])
}

/// The SHA-256 of a file.
fn digest(file: &Path) -> Result<String> {
    let mut opened = File::open(file).with_context(|| file.display().to_string())?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let read = opened.read(&mut piece)?;
        if read == 0 {
            return Ok(hexadecimal(&hash.finalize()));
        }
        hash.update(&piece[..read]);
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests;
