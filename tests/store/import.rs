//! What image tools write goes in, and comes out as engines take it.

use std::io::Read as _;

use nspool::image::store::Digest;

use super::images::{Image, add, architecture, assert_sound, assert_whole, gzip, name, open, saved, write_index};

#[test]
fn what_docker_saved_goes_in_and_comes_out_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = Image::new(&[1, 2, 1], 5000);
    let stored = store.import_tar(&*image.saved(&["localhost/a:1", "localhost/b:2"]), None).unwrap();
    assert_eq!((&stored[0].id, stored[0].layers, stored.len()), (&image.id(), 3, 1));
    let (listed, by_id) = (store.images().unwrap(), store.image(image.id().as_str()).unwrap());
    assert_eq!((&listed, by_id.as_ref()), (&stored, stored.first()));
    assert_whole(&store, "localhost/b:2", &image);
    // The id is the digest of these very bytes.
    assert_eq!(std::fs::read(dir.path().join("blobs/sha256").join(stored[0].id.hex())).unwrap(), image.config);
    let mut export = store.export(&stored[0], &["x/y:1".into()]).unwrap();
    let (length, mut bytes) = (export.length(), Vec::new());
    export.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, length);
    assert_sound(&store, 0);
}

#[test]
fn several_images_of_a_tar_are_there_with_layers_they_share_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (one, other) = (Image::new(&[1, 2], 3000), Image::new(&[1, 3], 3000));
    assert_eq!(store.import_tar(&*saved(&[(&one, &["a/one:1"]), (&other, &["a/other:1"])]), None).unwrap().len(), 2);
    assert_whole(&store, "a/one:1", &one);
    assert_whole(&store, "a/other:1", &other);
    // Two manifests, two configs, three layers.
    assert_eq!(store.verify().unwrap().blobs, 7);
}

/// As docker and podman do for a layer that is in the archive already.
#[test]
fn links_within_an_archive_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = Image::new(&[1, 1, 1], 2000);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "aa/layer.tar", &image.layers[0]);
    for (kind, path, target) in
        [(tar::EntryType::Symlink, "bb/layer.tar", "../aa/layer.tar"), (tar::EntryType::Link, "cc/layer.tar", "aa/layer.tar")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        archive.append_link(&mut header, path, target).unwrap();
    }
    add(&mut archive, "config.json", &image.config);
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": null, "Layers": ["aa/layer.tar", "bb/layer.tar", "cc/layer.tar"]}]);
    add(&mut archive, "manifest.json", manifest.to_string().as_bytes());
    let stored = store.import_tar(&*archive.into_inner().unwrap(), Some(&name("localhost/linked"))).unwrap();
    assert_eq!((&stored[0].id, stored[0].layers), (&image.id(), 3));
    assert_whole(&store, "localhost/linked:latest", &image);
}

#[test]
fn a_layout_goes_in_as_a_folder_and_as_a_tar_with_its_layers_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new(&[7, 8], 4000);
    let layout = dir.path().join("layout");
    image.layout(&layout, Some("quay.io/org/fn:7"), true);
    let by_folder = open(&dir.path().join("by-folder"));
    let stored = by_folder.import_folder(&layout, None).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", &layout).unwrap();
    let by_tar = open(&dir.path().join("by-tar"));
    assert_eq!(by_tar.import_tar(&*tar.into_inner().unwrap(), None).unwrap(), stored);
    for store in [by_folder, by_tar] {
        let found = store.image("quay.io/org/fn:7").unwrap().unwrap();
        assert_eq!((&found, &found.id), (&stored[0], &image.id()));
        let blob = store.root().join("blobs/sha256").join(Digest::of(&gzip(&image.layers[0])).hex());
        assert!(blob.exists(), "the layer is stored as it came");
        // By the digest that registries know it by.
        assert!(layout.join("blobs/sha256").join(found.manifest.hex()).exists());
        assert_sound(&store, 0);
    }
}

#[test]
fn of_an_index_with_many_platforms_this_machines_is_taken_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let image = Image::new(&[1], 2000);
    image.layout(&layout, None, false);
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut ours = index["manifests"][0].clone();
    ours["platform"] = serde_json::json!({"os": "linux", "architecture": architecture()});
    let absent = |architecture: &str| {
        serde_json::json!({"mediaType": ours["mediaType"], "digest": Digest::of(architecture.as_bytes()).as_str(), "size": 7,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let write = |manifests: &[serde_json::Value]| {
        let inner = serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        let digest = Digest::of(inner.as_bytes());
        std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &inner).unwrap();
        write_index(
            &layout,
            &[serde_json::json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest.as_str(),
            "size": inner.len(), "annotations": {"io.containerd.image.name": "docker.io/library/many:1", "org.opencontainers.image.ref.name": "1"}})],
        );
    };
    let store = open(&dir.path().join("store"));
    write(&[absent("s390x"), absent("unknown")]);
    let refused = store.import_folder(&layout, None).unwrap_err().to_string();
    assert!(refused.contains("no image for linux/"), "{refused}");
    write(&[absent("s390x"), ours.clone(), absent("unknown")]);
    assert_eq!(store.import_folder(&layout, None).unwrap()[0].id, image.id());
    assert_eq!(store.image("many:1").unwrap().unwrap().id, image.id());
    assert_sound(&store, 0);
}

#[test]
fn a_name_moves_to_the_image_that_came_last() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (old, new) = (Image::new(&[1, 2], 2000), Image::new(&[1, 3], 2000));
    store.import_tar(&*old.saved(&["docker.io/library/fn:1", "localhost/kept:1"]), None).unwrap();
    store.import_tar(&*new.saved(&["fn:1"]), None).unwrap();
    assert_eq!(store.image("docker.io/library/fn:1").unwrap().unwrap().id, new.id());
    assert_eq!(store.image("localhost/kept:1").unwrap().unwrap().names, ["localhost/kept:1"]);
    assert_eq!(store.image("localhost/fn:1").unwrap(), None);
    // A nameless image is known by its id, until it gets a name.
    let nameless = Image::new(&[9], 100);
    for names in [&[][..], &[], &["x/named:1"], &[]] {
        store.import_tar(&*nameless.saved(names), None).unwrap();
    }
    assert_eq!(store.image(nameless.id().as_str()).unwrap().unwrap().names, ["x/named:1"]);
    assert_eq!(store.images().unwrap().len(), 3);
    assert_sound(&store, 0);
}

/// What the disk did to a blob is mended by whoever brings it again.
#[test]
fn a_rotten_blob_is_named_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = Image::new(&[1, 2], 2000);
    let import = || store.import_tar(&*image.saved(&["a/fn:1"]), None).unwrap();
    import();
    let blob = dir.path().join("blobs/sha256").join(Digest::of(&image.layers[1]).hex());
    let good = std::fs::read(&blob).unwrap();
    let rotten = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for damage in [Some(rotten(700)), Some(good[..1000].to_vec()), None] {
        match &damage {
            Some(bytes) => std::fs::write(&blob, bytes).unwrap(),
            None => std::fs::remove_file(&blob).unwrap(),
        }
        let faults = store.verify().unwrap().faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!((&faults[0].path, &*faults[0].images), (&blob, &["a/fn:1".to_owned()][..]));
        let staging = store.stage().unwrap();
        assert!(!staging.adopt(&Digest::of(&image.layers[1])).unwrap(), "no other image gets it");
        assert!(staging.adopt(&Digest::of(&image.layers[0])).unwrap());
        drop(staging);
        import();
        assert_sound(&store, 0);
    }
}
