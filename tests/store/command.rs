//! `nspool image import` and `nspool image verify`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::images::{Image, assert_whole, open, saved, spawned};

fn nspool(store: &Path, verb: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nspool"));
    command.args(["image", verb, "--store", store.to_str().unwrap()]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Of a program that has come to its end.
fn output(mut command: Command) -> Output {
    spawned(&mut command).wait_with_output().unwrap()
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn images_are_imported_and_verified_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("lib/images");
    let (one, two, three) = (Image::new(&[1], 1000), Image::new(&[1, 2], 1000), Image::new(&[3], 1000));
    let (tar, layout) = (dir.path().join("one.tar"), dir.path().join("layout"));
    std::fs::write(&tar, one.saved(&["a/one:1"])).unwrap();
    two.layout(&layout, None, true);
    let (code, out, err) = said(&output(nspool(&store, "import", &[tar.to_str().unwrap(), "-o", "json"])));
    assert_eq!(code, 0, "{err}");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told[0]["references"][0], &told[0]["id"], &told[0]["layers"]), (&"a/one:1".into(), &one.id().as_str().into(), &1.into()));
    let (code, out, err) = said(&output(nspool(&store, "import", &[layout.to_str().unwrap(), "--as", "a/two"])));
    assert!(code == 0 && out.contains("a/two:latest") && out.contains(two.id().as_str()), "{out}{err}");
    let mut child = spawned(nspool(&store, "import", &["-"]).stdin(Stdio::piped()));
    child.stdin.take().unwrap().write_all(&three.saved(&["a/three:1"])).unwrap();
    assert_eq!(said(&child.wait_with_output().unwrap()).0, 0);
    assert_whole(&open(&store), "a/one:1", &one);
    assert_whole(&open(&store), "a/three:1", &three);
    let (code, out, err) = said(&output(nspool(&store, "verify", &[])));
    assert!(code == 0 && out.is_empty() && err.contains("3 images, 10 good blobs") && err.contains("all is well"), "{out}{err}");

    let layer = store.join("blobs/sha256").join(nspool::image::store::Digest::of(&one.layers[0]).hex());
    std::fs::write(&layer, "rot").unwrap();
    let (code, out, _) = said(&output(nspool(&store, "verify", &[])));
    assert!(
        code == 1 && out.contains(layer.to_str().unwrap()) && out.contains("which is not its name") && out.contains("a/one:1"),
        "{out}"
    );
    let (code, out, _) = said(&output(nspool(&store, "verify", &["-o", "json"])));
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["images"], &told["faults"][0]["images"][0]), (1, &3.into(), &"a/one:1".into()));
}

#[test]
fn what_is_not_taken_is_said_with_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("images");
    let (good, bad) = (dir.path().join("good.tar"), dir.path().join("bad.tar"));
    let image = Image::new(&[1], 1000);
    std::fs::write(&good, image.saved(&["a/good:1"])).unwrap();
    std::fs::write(&bad, "no tar at all".repeat(100)).unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let (code, out, err) = said(&output(nspool(&store, "import", &[good, bad])));
    assert!(code == 1 && out.contains("a/good:1") && err.contains(bad) && err.contains("it is no tar"), "{out}{err}");
    let (code, _, err) = said(&output(nspool(&store, "import", &["/no/such/file"])));
    assert!(code == 64 && err.contains("/no/such/file") && err.contains("No such file"), "{err}");
    let (code, _, err) = said(&output(nspool(&store, "import", &[good, good, "--as", "a/b:1"])));
    assert!(code == 64 && err.contains("one file at a time"), "{err}");
    let (code, _, err) = said(&output(nspool(&store, "import", &[good, "--as", "A B"])));
    assert!(code == 64 && err.contains("lower-case"), "{err}");
    let two = dir.path().join("two.tar");
    std::fs::write(&two, saved(&[(&image, &["a/x:1"]), (&Image::new(&[2], 10), &["a/y:1"])])).unwrap();
    let (code, _, err) = said(&output(nspool(&store, "import", &[two.to_str().unwrap(), "--as", "a/b:1"])));
    assert!(code == 1 && err.contains("2 images in it"), "{err}");
    let (code, _, err) = said(&output(nspool(dir.path(), "import", &[good])));
    assert!(code == 64 && err.contains("is no image store"), "{err}");
    assert_eq!(open(&store).images().unwrap().len(), 1);
}
