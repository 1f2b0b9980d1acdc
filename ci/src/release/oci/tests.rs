use tar::{Builder, Header};

use super::*;

/// An archive as `docker save` writes it: one image of `processor`, with one layer.
fn archive(at: &Path, processor: &str, layer: &[u8], diff: &[u8]) {
    let config = json!({
        "architecture": processor, "os": "linux", "created": "2026-11-30T12:00:00.123456789Z",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hexadecimal(&Sha256::digest(diff)))]},
    });
    let saved = json!([{"Config": "config.json", "RepoTags": ["localhost/x:1"], "Layers": ["a/layer.tar"]}]);
    let mut archive = Builder::new(File::create(at).unwrap());
    for (name, bytes) in [
        ("manifest.json", saved.to_string().as_bytes()),
        ("config.json", config.to_string().as_bytes()),
        ("a/layer.tar", layer),
    ] {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    archive.into_inner().unwrap();
}

fn read(folder: &Path, digest: &str) -> Value {
    let digest = digest.strip_prefix("sha256:").unwrap();
    let bytes = fs::read(folder.join("blobs/sha256").join(digest)).unwrap();
    assert_eq!(hexadecimal(&Sha256::digest(&bytes)), digest);
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn an_index_has_both_architectures_and_digests_are_reproducible() {
    let context = Context::read().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pack = |name: &str| {
        let layout = folder.path().join(name);
        let filled = Layout::create(layout.clone()).unwrap();
        let parts = ["amd64", "arm64"].map(|processor| {
            let file = folder.path().join(processor);
            archive(&file, processor, b"what is inside", b"what is inside");
            filled.image(&context, &file, processor).unwrap()
        });
        assert_eq!(parts[0].created, "2026-11-30T12:00:00Z");
        (filled.finish(&parts, "1.2.3").unwrap(), layout)
    };
    let (digest, layout) = pack("first");
    let (again, _) = pack("second");
    assert_eq!(digest, again);
    let index = read(&layout, &digest);
    let processors: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["platform"]["architecture"].as_str().unwrap())
        .collect();
    assert_eq!(processors, ["amd64", "arm64"]);
    let manifest = read(&layout, index["manifests"][1]["digest"].as_str().unwrap());
    assert_eq!(
        read(&layout, manifest["config"]["digest"].as_str().unwrap())["architecture"],
        "arm64"
    );
    let layer = &manifest["layers"][0];
    let place = layout.join("blobs/sha256").join(
        layer["digest"]
            .as_str()
            .unwrap()
            .trim_start_matches("sha256:"),
    );
    assert_eq!(fs::metadata(place).unwrap().len(), layer["size"]);
    let entry: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(entry["manifests"][0]["digest"], *digest);
    // No temporary files are left.
    let mut left: Vec<_> = fs::read_dir(&layout)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn layers_may_already_be_compressed() {
    let context = Context::read().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("layer");
    fs::write(&plain, b"inside").unwrap();
    Cmd::new(&context, "gzip --fast")
        .arg(&plain)
        .run_quietly("Packing")
        .unwrap();
    let packed = fs::read(folder.path().join("layer.gz")).unwrap();
    let digest = |layer: &[u8], name: &str| {
        let file = folder.path().join(name);
        archive(&file, "amd64", layer, b"inside");
        let layout = Layout::create(folder.path().join("layout")).unwrap();
        let part = layout.image(&context, &file, "amd64").unwrap();
        part.descriptor["digest"].clone()
    };
    assert_eq!(digest(b"inside", "plain"), digest(&packed, "packed"));
}

#[test]
fn another_architecture_or_layer_is_refused() {
    let context = Context::read().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("saved");
    let refused = |processor: &str, layer: &[u8]| {
        archive(&file, processor, layer, b"inside");
        let layout = Layout::create(folder.path().join("layout")).unwrap();
        layout
            .image(&context, &file, "amd64")
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let message = refused("arm64", b"inside");
    assert!(message.contains("not for linux amd64"), "{message}");
    let message = refused("amd64", b"other bytes");
    assert!(message.contains("not the layer"), "{message}");
}

#[test]
fn a_chart_has_helms_media_types() {
    let folder = tempfile::tempdir().unwrap();
    let packaged = folder.path().join("x.tgz");
    fs::write(&packaged, b"chart").unwrap();
    let layout = Layout::create(folder.path().join("layout")).unwrap();
    let about = json!({"name": "x", "version": "1.2.3", "description": "y"});
    let digest = layout.chart(&about, &packaged, "1.2.3").unwrap();
    let manifest = read(&folder.path().join("layout"), &digest);
    assert_eq!(manifest["config"]["mediaType"], CHART);
    assert_eq!(manifest["layers"][0]["mediaType"], CHART_LAYER);
    assert_eq!(
        manifest["annotations"]["org.opencontainers.image.title"],
        "x"
    );
}
