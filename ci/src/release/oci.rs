//! Writes OCI image layouts: folders with all blobs of an image, named by their digests.
//!
//! So all digests are known before the publishing job, which only copies. Sources: the OCI image specification 1.1 (layout,
//! manifest, index), and Docker's image specification 1.2 for the archives of `docker save`.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{context::Context, run::Cmd};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Helm's media types for charts in registries.
const CHART: &str = "application/vnd.cncf.helm.config.v1+json";
const CHART_LAYER: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

/// A layout under construction.
#[derive(Debug)]
pub(super) struct Layout {
    folder: PathBuf,
}

/// The image of one architecture in a layout.
#[derive(Debug)]
pub(super) struct Part {
    /// Its descriptor for the index.
    descriptor: Value,
    /// Creation time in seconds: `2026-11-30T12:00:00Z`.
    pub(super) created: String,
}

impl Layout {
    /// Creates an empty layout. Deletes the folder's previous content.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub(super) fn create(folder: PathBuf) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        Ok(Self { folder })
    }

    /// Adds an image from a `docker save` archive. `processor` is its architecture in OCI terms.
    ///
    /// # Errors
    /// When the archive has another architecture, a wrong layer, or more than one image, or cannot be read.
    pub(super) fn image(&self, context: &Context, archive: &Path, processor: &str) -> Result<Part> {
        let archive_path = archive.display();
        let unpacked = self.folder.join("unpacked");
        tar::Archive::new(File::open(archive).with_context(|| archive_path.to_string())?)
            .unpack(&unpacked)
            .with_context(|| archive_path.to_string())?;
        let manifest_json: Value =
            serde_json::from_slice(&fs::read(unpacked.join("manifest.json"))?)?;
        ensure!(
            manifest_json
                .as_array()
                .is_some_and(|images| images.len() == 1),
            "{archive_path}: must contain exactly one image"
        );
        let manifest_json = &manifest_json[0];
        let config = fs::read(unpacked.join(text(&manifest_json["Config"])?))?;
        let config_json: Value = serde_json::from_slice(&config)?;
        ensure!(
            config_json["architecture"] == processor && config_json["os"] == "linux",
            "{archive_path}: is for {} {}, not for linux {processor}",
            config_json["os"],
            config_json["architecture"]
        );
        let files = manifest_json["Layers"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let diff_ids = config_json["rootfs"]["diff_ids"].as_array();
        ensure!(
            diff_ids.is_some_and(|diff_ids| diff_ids.len() == files.len() && !files.is_empty()),
            "{archive_path}: its layers do not match its configuration"
        );
        let mut layers = Vec::new();
        for (file, diff_ids) in files.iter().zip(diff_ids.into_iter().flatten()) {
            layers.push(self.layer(context, &unpacked.join(text(file)?), diff_ids)?);
        }
        fs::remove_dir_all(&unpacked)?;
        let config = self.blob(CONFIG, &config)?;
        let mut descriptor = self.manifest(&config, &layers, &json!({}))?;
        descriptor["platform"] = json!({"architecture": processor, "os": "linux"});
        let created = config_json["created"].as_str().unwrap_or_default();
        let second = created
            .get(..19)
            .context("the image has no creation time")?;
        Ok(Part {
            descriptor,
            created: format!("{second}Z"),
        })
    }

    /// Adds a layer, compressed reproducibly: the same bytes give the same digest.
    fn layer(&self, context: &Context, file: &Path, diff_ids: &Value) -> Result<Value> {
        // A copy, because an archive may contain a layer twice, the second time as a link.
        let plain = self.folder.join("layer.tar");
        let compressed = self.folder.join("layer.tar.gz");
        if is_gzip(file)? {
            // Engines with containerd's image store save compressed layers. Recompress them, for reproducible bytes.
            fs::copy(file, &compressed)?;
            Cmd::new(context, "gzip --decompress --force")
                .arg(&compressed)
                .run_quietly("Unpacking a layer")?;
        } else {
            fs::copy(file, &plain)?;
        }
        ensure!(
            format!("sha256:{}", digest(&plain)?) == *diff_ids,
            "{}: not the layer {diff_ids} that the image's configuration names",
            file.display()
        );
        Cmd::new(context, "gzip --no-name --force")
            .arg(&plain)
            .run_quietly("Compressing a layer")?;
        let (digest, size) = (digest(&compressed)?, fs::metadata(&compressed)?.len());
        fs::rename(&compressed, self.blob_path(&digest))?;
        Ok(descriptor(LAYER, &digest, size))
    }

    /// Writes the multi-platform index, and returns its digest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn finish(self, parts: &[Part], version: &str) -> Result<String> {
        let manifests: Vec<&Value> = parts.iter().map(|part| &part.descriptor).collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests,
            "annotations": {"org.opencontainers.image.version": version},
        });
        let descriptor = self.blob(INDEX, index.to_string().as_bytes())?;
        self.close(descriptor, version)
    }

    /// Writes a packaged Helm chart, and returns its digest.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(super) fn chart(
        self,
        chart_yaml: &Value,
        packaged: &Path,
        version: &str,
    ) -> Result<String> {
        let config = self.blob(CHART, chart_yaml.to_string().as_bytes())?;
        let layer = self.blob(CHART_LAYER, &fs::read(packaged)?)?;
        let annotations = json!({
            "org.opencontainers.image.title": chart_yaml["name"],
            "org.opencontainers.image.description": chart_yaml["description"],
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
        fs::write(self.blob_path(&digest), bytes)?;
        Ok(descriptor(kind, &digest, bytes.len() as u64))
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest)
    }
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size})
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("{value} is not a string"))
}

/// Checks for gzip's magic number (RFC 1952, 2.3.1).
fn is_gzip(file: &Path) -> Result<bool> {
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
