//! What nobody should take is refused by its name, and leaves nothing.

use std::io::Read;
use std::path::Path;

use nspool::image::store::{Commit, Descriptor, Digest, Expected, Options, Store, StoreError};
use tar::EntryType;

use super::images::{Image, add, assert_sound, name, open, saved, spawned};

/// An archive with a good image and one more entry, which says of itself what it likes.
fn with_entry(kind: EntryType, path: &str, target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o644);
    let raw = header.as_gnu_mut().unwrap();
    raw.name[..path.len()].copy_from_slice(path.as_bytes());
    raw.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    let good = Image::new(&[1], 1000).saved(&["a/fn:1"]);
    [header.as_bytes().as_slice(), &good].concat()
}

fn refused(store: &Store, tar: &[u8]) -> String {
    let error = store.import_tar(tar, None).unwrap_err();
    assert_eq!(store.images().unwrap(), [], "{error}");
    assert_sound(store, 0);
    error.to_string()
}

#[test]
fn archives_that_reach_beyond_themselves_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (kind, path, target, why) in [
        (EntryType::Regular, "/etc/passwd", "", "leads out"),
        (EntryType::Regular, "../x", "", "leads out"),
        (EntryType::Regular, "a/../../x", "", "leads out"),
        (EntryType::Directory, "../x", "", "leads out"),
        (EntryType::Symlink, "x", "/etc/passwd", "link that leads out"),
        (EntryType::Symlink, "a/x", "../../y", "link that leads out"),
        (EntryType::Link, "a/x", "../y", "link that leads out"),
        (EntryType::Char, "null", "", "device"),
        (EntryType::Block, "sda", "", "device"),
        (EntryType::Fifo, "pipe", "", "device"),
    ] {
        let words = refused(&store, &with_entry(kind, path, target));
        assert!(words.contains(why) && words.contains(path), "{path} -> {target}: {words}");
    }
    // The same archive without such an entry is good.
    store.import_tar(&*with_entry(EntryType::Regular, "x", ""), None).unwrap();
}

#[test]
fn archives_that_are_not_what_they_say_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = Image::new(&[1, 2], 1000);
    let of = |config: &str, config_bytes: &[u8], layers: &[(&str, &[u8])], named: &[&str], tags: serde_json::Value| {
        let mut archive = tar::Builder::new(Vec::new());
        add(&mut archive, config, config_bytes);
        layers.iter().for_each(|(path, bytes)| add(&mut archive, path, bytes));
        let manifest = serde_json::json!([{"Config": config, "RepoTags": tags, "Layers": named}]);
        add(&mut archive, "manifest.json", manifest.to_string().as_bytes());
        archive.into_inner().unwrap()
    };
    let own = format!("{}.json", image.id().hex());
    let layers: [(&str, &[u8]); 2] = [("a", &image.layers[0]), ("b", &image.layers[1])];
    let no_tags = serde_json::Value::Null;
    let mut other = image.config.clone();
    other.push(b' ');
    for (archive, words) in [
        (of(&own, &other, &layers, &["a", "b"], no_tags.clone()), own.as_str()),
        (of(&own, &image.config, &layers, &["b", "a"], no_tags.clone()), "\"b\" is not what it is said to be"),
        (of(&own, &image.config, &layers, &["a"], no_tags.clone()), "there are 1 layers, and its config is about 2"),
        (of(&own, &image.config, &layers[..1], &["a", "b"], no_tags.clone()), "\"b\": it is not there"),
        (of(&own, &image.config, &layers, &["a", "../b"], no_tags.clone()), "it is not there"),
        (of("c.json", b"{}", &layers, &["a", "b"], no_tags.clone()), "missing field `rootfs`"),
        (of(&own, &image.config, &layers, &["a", "b"], serde_json::json!(["No Name"])), "No Name"),
        (vec![7; 5000], "it is no tar"),
        (super::images::gzip(&image.saved(&["a/b:1"])), "must be unpacked first"),
        (vec![0; 1024], "neither manifest.json nor oci-layout"),
        (image.saved(&["a/b:1"])[..3000].to_vec(), "bytes and not"),
    ] {
        let said = refused(&store, &archive);
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(refused(&store, &saved(&[])).contains("there is no image in it"));
    let two = saved(&[(&image, &["a/one:1"]), (&Image::new(&[3], 10), &["a/two:1"])]);
    let error = store.import_tar(&*two, Some(&name("a/both:1"))).unwrap_err();
    assert!(error.to_string().contains("2 images in it, for one name"), "{error}");
    assert_sound(&store, 0);
}

#[test]
fn links_in_a_circle_and_endless_headers_come_to_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut archive = tar::Builder::new(Vec::new());
    for (path, target) in [("manifest.json", "b"), ("b", "manifest.json")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, path, target).unwrap();
    }
    let words = refused(&store, &archive.into_inner().unwrap());
    assert!(words.contains("neither manifest.json"), "{words}");
    // A name of a terabyte, of which not more is read than a name may have.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut endless = header.as_bytes().chain(std::io::repeat(b'a'));
    let error = store.import_tar(&mut endless, None).unwrap_err().to_string();
    assert!(error.contains("a header is longer than any is"), "{error}");
    assert_sound(&store, 0);
}

#[test]
fn a_blob_with_another_digest_or_size_is_thrown_away_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let staging = store.stage().unwrap();
    let (good, bad) = (Digest::of(b"good"), Digest::of(b"goof"));
    let write = |what: &str, expected: Expected, bytes: &[u8]| {
        let mut blob = staging.blob(what, expected)?;
        bytes.chunks(2).try_for_each(|chunk| blob.write(chunk))?;
        blob.finish()
    };
    let error = write("layer 3 of q.io/fn", Expected { digest: Some(good.clone()), size: None }, b"goof").unwrap_err();
    assert!(matches!(&error, StoreError::Digest { expected, actual, .. } if (expected, actual) == (&good, &bad)), "{error}");
    assert!(error.to_string().starts_with("layer 3 of q.io/fn"), "{error}");
    for (size, bytes) in [(3, &b"good"[..]), (5, b"good")] {
        let error = write("it", Expected { digest: Some(good.clone()), size: Some(size) }, bytes).unwrap_err();
        assert!(matches!(error, StoreError::Size { expected, .. } if expected == size), "{error}");
    }
    let files = || {
        std::fs::read_dir(dir.path().join("staging")).unwrap().flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap()).count()
    };
    assert_eq!(files(), 0);
    assert_eq!(write("it", Expected { digest: Some(good.clone()), size: Some(4) }, b"good").unwrap().digest, good);
    assert_eq!(files(), 1);
    // A layout's blob is named by its path.
    let layout = dir.path().join("layout");
    let image = Image::new(&[1], 1000);
    image.layout(&layout, Some("a/fn:1"), false);
    let layer = layout.join("blobs/sha256").join(Digest::of(&image.layers[0]).hex());
    let mut bytes = image.layers[0].clone();
    bytes[600] ^= 1;
    std::fs::write(&layer, &bytes).unwrap();
    let said = store.import_folder(&layout, None).unwrap_err().to_string();
    assert!(said.contains(layer.to_str().unwrap()), "{said}");
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("", &layout).unwrap();
    let said = store.import_tar(&*tar.into_inner().unwrap(), None).unwrap_err().to_string();
    assert!(said.contains(Digest::of(&image.layers[0]).hex()) && said.contains("is not what it is said to be"), "{said}");
    assert_eq!(store.images().unwrap(), []);
}

#[test]
fn a_layouts_links_and_pipes_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let image = Image::new(&[1], 1000);
    let import = |spoil: &dyn Fn(&Path)| {
        let layout = tempfile::tempdir().unwrap();
        image.layout(layout.path(), Some("a/fn:1"), false);
        let layer = layout.path().join("blobs/sha256").join(Digest::of(&image.layers[0]).hex());
        std::fs::remove_file(&layer).unwrap();
        spoil(&layer);
        store.import_folder(layout.path(), None).unwrap_err().to_string()
    };
    let elsewhere = dir.path().join("layer");
    std::fs::write(&elsewhere, &image.layers[0]).unwrap();
    let said = import(&|layer| std::os::unix::fs::symlink(&elsewhere, layer).unwrap());
    assert!(said.contains("it is a link"), "{said}");
    let said = import(&|layer| assert!(spawned(std::process::Command::new("mkfifo").arg(layer)).wait().unwrap().success()));
    assert!(said.contains("no regular file"), "{said}");
    let said = import(&|_| {});
    assert!(said.contains("is missing") && said.contains(Digest::of(&image.layers[0]).as_str()), "{said}");
    assert_sound(&store, 0);
}

/// Half an image cannot be named.
#[test]
fn a_manifest_that_names_what_is_not_there_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = Image::new(&[1], 100);
    let commit = |manifest: &serde_json::Value, media_type: &str, layer: Option<&[u8]>| {
        let staging = store.stage().unwrap();
        staging.put("the config", "", &image.config).unwrap();
        layer.map(|layer| staging.put("the layer", "", layer).unwrap());
        let manifest = staging.put("the manifest", media_type, manifest.to_string().as_bytes()).unwrap();
        staging.commit(&[Commit { manifest, names: vec![name("a/b:1")], origin: None }])
    };
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let part = |digest: &Digest, size: usize| serde_json::json!({"mediaType": "x", "digest": digest.as_str(), "size": size});
    let of = |layers: &[serde_json::Value]| serde_json::json!({"schemaVersion": 2, "config": part(&image.id(), image.config.len()), "layers": layers});
    let layer = Digest::of(&image.layers[0]);
    let good = of(&[part(&layer, image.layers[0].len())]);
    assert!(matches!(commit(&good, oci, None), Err(StoreError::Missing { role: "layer", digest }) if digest == layer));
    assert!(matches!(commit(&of(&[part(&layer, 7)]), oci, Some(&image.layers[0])), Err(StoreError::Size { .. })));
    assert!(matches!(commit(&of(&[]), oci, None), Err(StoreError::Refused { .. })));
    assert!(matches!(commit(&good, "text/plain", Some(&image.layers[0])), Err(StoreError::Refused { .. })));
    let nowhere = of(&[serde_json::json!({"digest": "sha256:../../../etc/passwd", "size": 7})]);
    assert!(matches!(commit(&nowhere, oci, None), Err(StoreError::Refused { .. })));
    assert_eq!(store.images().unwrap(), []);
    commit(&good, oci, Some(&image.layers[0])).unwrap();
    // What the store has need not come again.
    commit(&good, oci, None).unwrap();
    let unknown = Descriptor::new(oci, Digest::of(b"nothing"), 7);
    let error = store.stage().unwrap().commit(&[Commit { manifest: unknown, names: Vec::new(), origin: None }]).unwrap_err();
    assert!(matches!(error, StoreError::Missing { role: "manifest", .. }));
    assert_sound(&store, 0);
}

#[test]
fn a_folder_of_somebody_elses_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letters.txt"), "x").unwrap();
    let error = Store::open(dir.path(), Options::default()).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }) && error.to_string().contains("letters.txt"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(matches!(Store::open(&other, Options::default()), Err(StoreError::Broken { .. })));
    // An index that something else has broken is named, and nothing is written over it.
    let store = open(&dir.path().join("store"));
    store.import_tar(&*Image::new(&[1], 10).saved(&["a/b:1"]), None).unwrap();
    std::fs::write(store.root().join("index.json"), "{").unwrap();
    assert!(matches!(store.import_tar(&*Image::new(&[2], 10).saved(&["a/c:1"]), None), Err(StoreError::Broken { .. })));
    assert!(matches!(store.sweep(), Err(StoreError::Broken { .. })));
    let faults = store.verify().unwrap().faults;
    assert!(faults.iter().any(|fault| fault.path.ends_with("index.json")), "{faults:?}");
    assert_eq!(std::fs::read(store.root().join("index.json")).unwrap(), b"{");
}
