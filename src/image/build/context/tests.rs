use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const LIMIT: u64 = 1 << 20;

/// A folder with these files; a name that ends in `/` is a folder, content that begins with `->` a link.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(if name.ends_with('/') { &path } else { path.parent().unwrap() }).unwrap();
        match content.strip_prefix("->") {
            Some(target) => symlink(target, &path).unwrap(),
            None if !name.ends_with('/') => std::fs::write(&path, content).unwrap(),
            None => {}
        }
    }
    dir
}

fn surveyed(dir: &TempDir) -> Result<Entries, ContextError> {
    let source = Folder::open(dir.path(), None)?;
    let (selection, _, _) = Selection::new(&source, "Dockerfile", None, LIMIT)?;
    survey(&source, &selection, &Memo::default())
}

/// Packs a source; its entries, and the tar.
fn packed(source: &dyn Source, content: Option<&str>) -> Result<(Entries, File), ContextError> {
    let (selection, _, _) = Selection::new(source, "Dockerfile", content.map(str::to_owned), LIMIT)?;
    let out = tempfile::tempfile().unwrap();
    let entries = pack(source, &selection, &out)?;
    Ok((entries, out))
}

fn packed_folder(dir: &TempDir) -> Result<(Entries, File), ContextError> {
    packed(&Folder::open(dir.path(), None)?, None)
}

fn names(entries: &Entries) -> Vec<String> {
    entries.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

fn names_in(tar: &File) -> Vec<String> {
    use std::io::Seek as _;
    (&*tar).rewind().unwrap();
    let mut archive = tar::Archive::new(tar);
    let mut names: Vec<String> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    names.sort();
    names
}

fn refusal<T>(outcome: Result<T, ContextError>) -> String {
    outcome.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn what_is_left_out_is_not_there_and_what_the_builder_needs_is_sent() {
    let dir = folder(&[
        ("Dockerfile", "FROM scratch"),
        (".dockerignore", "*\n!keep\n!deep/er/*.txt\n"),
        ("keep", "1"),
        ("secret", "2"),
        ("deep/er/a.txt", "3"),
        ("deep/er/a.bin", "4"),
        ("deep/other/b", "5"),
        ("link", "->keep"),
    ]);
    let (entries, tar) = packed_folder(&dir).unwrap();
    assert_eq!(names(&entries), ["deep", "deep/er", "deep/er/a.txt", "keep"]);
    assert_eq!(names_in(&tar), [".dockerignore", "Dockerfile", "deep", "deep/er", "deep/er/a.txt", "keep"]);
    assert_eq!(surveyed(&dir).unwrap(), entries);
}

#[test]
fn a_dockerignore_beside_the_dockerfile_goes_first() {
    let dir =
        folder(&[("Dockerfile", "FROM scratch"), (".dockerignore", "one"), ("Dockerfile.dockerignore", "two"), ("one", ""), ("two", "")]);
    assert_eq!(names(&surveyed(&dir).unwrap()), [".dockerignore", "Dockerfile", "Dockerfile.dockerignore", "one"]);
}

#[test]
fn a_dockerfile_from_elsewhere_is_hidden_from_the_image() {
    let dir = folder(&[(".dockerignore", "secret"), ("secret", ""), ("a", "")]);
    let (entries, tar) = packed(&Folder::open(dir.path(), None).unwrap(), Some("FROM scratch")).unwrap();
    assert_eq!(names(&entries), ["a"]);
    let sent = names_in(&tar);
    let [dockerfile, ignore, a] = &sent[..] else { panic!("{sent:?}") };
    assert!(ignore == ".dockerignore" && dockerfile.starts_with(".dockerfile.") && a == "a");
    let source = Folder::open(dir.path(), None).unwrap();
    let (selection, name, _) = Selection::new(&source, "ignored", Some("FROM scratch".into()), LIMIT).unwrap();
    assert_eq!(&name, dockerfile);
    assert_eq!(String::from_utf8_lossy(&selection.added[".dockerignore"]), format!("secret\n{name}\n"));
}

/// The same files in a folder, in a tar of it, and in one of another order, with other times and owners.
#[test]
fn folder_and_tar_of_it_are_the_same_context() {
    let dir = folder(&[
        ("Dockerfile", "FROM scratch"),
        ("a/b", "1"),
        ("a/link", "->b"),
        ("a/root", "->/bin/sh"),
        ("tool", "2"),
        ("empty/", ""),
        (".dockerignore", "left\n"),
        ("left/out", "3"),
    ]);
    std::fs::set_permissions(dir.path().join("tool"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let entries = surveyed(&dir).unwrap();
    assert_eq!(entries[b"tool".as_slice()].mode, 0o4755);
    assert_eq!(entries[b"a/root".as_slice()].kind, Kind::Link(b"/bin/sh".to_vec()));

    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    tar.follow_symlinks(false);
    let mut paths = ["tool", "left", "left/out", "empty", "a", "a/root", "a/link", "a/b", ".dockerignore", "Dockerfile"];
    for path in paths {
        tar.append_path_with_name(dir.path().join(path), format!("./{path}")).unwrap();
    }
    let ordered = Tarball::new(tar.into_inner().unwrap()).unwrap();
    assert_eq!(packed(&ordered, None).unwrap().0, entries);

    paths.reverse();
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Complete);
    for path in paths {
        let whole = dir.path().join(path);
        let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        if whole.is_file() && !whole.is_symlink() {
            File::options().write(true).open(&whole).unwrap().set_modified(when).unwrap();
        }
        tar.append_path_with_name(whole, path).unwrap();
    }
    let (again, sent) = packed(&Tarball::new(tar.into_inner().unwrap()).unwrap(), None).unwrap();
    assert_eq!(again, entries);
    assert!(!names_in(&sent).iter().any(|name| name.starts_with("left")));
}

#[test]
fn links_out_of_a_folder_are_refused_and_none_is_followed() {
    for (target, fine) in [("../x", false), ("a/../../x", false), ("a/../b", true), ("/etc/passwd", true), (".", true), ("..", false)] {
        let dir = folder(&[("Dockerfile", ""), ("link", &format!("->{target}"))]);
        assert_eq!(surveyed(&dir).is_ok(), fine, "{target}");
    }
    let outside = folder(&[("Dockerfile", "FROM scratch")]);
    let dir = folder(&[("Dockerfile", &format!("->{}/Dockerfile", outside.path().display()))]);
    assert_eq!(refusal(surveyed(&dir)), "Dockerfile is a link, or behind one");
    let dir = folder(&[("sub", &format!("->{}", outside.path().display())), (".dockerignore", "")]);
    let source = Folder::open(dir.path(), None).unwrap();
    assert_eq!(refusal(source.text("sub/Dockerfile")), "sub/Dockerfile is a link, or behind one");
}

#[test]
fn pipes_and_devices_are_refused_where_they_are_not_left_out() {
    let dir = folder(&[("Dockerfile", "FROM scratch")]);
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(refusal(surveyed(&dir)), "pipe is a pipe: name it in .dockerignore");
    std::fs::write(dir.path().join(".dockerignore"), "pipe").unwrap();
    assert_eq!(names(&surveyed(&dir).unwrap()), [".dockerignore", "Dockerfile"]);
}

fn tarball(entries: &[(&str, tar::EntryType, &str)]) -> Tarball {
    let mut tar = tar::Builder::new(tempfile::tempfile().unwrap());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        // The builder of tars refuses what is to be refused here.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let is_link = matches!(kind, tar::EntryType::Link | tar::EntryType::Symlink);
        if is_link {
            header.set_link_name_literal(content).unwrap();
        }
        let content = if is_link { "" } else { content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    Tarball::new(tar.into_inner().unwrap()).unwrap()
}

#[test]
fn a_tar_that_leads_out_of_itself_is_refused() {
    use tar::EntryType as E;
    let cases = [
        (("/etc/x", E::Regular, ""), "/etc/x is an absolute path"),
        (("a/../../x", E::Regular, ""), "a/../../x leads out of the context"),
        (("a/../x", E::Regular, ""), "a/../x leads out of the context"),
        (("link", E::Symlink, "../x"), "link is a link that leads out of the context"),
        (("hard", E::Link, "/etc/passwd"), "/etc/passwd is an absolute path"),
        (("hard", E::Link, "../x"), "../x leads out of the context"),
        (("hard", E::Link, "nothing"), "hard is a hard link to a file that is not in the context before it"),
        (("null", E::Char, ""), "null is a device"),
        (("disk", E::Block, ""), "disk is a device"),
        (("pipe", E::Fifo, ""), "pipe is a pipe"),
        (("odd", E::new(b'x' - 1), ""), "odd is of a kind that no builder takes"),
    ];
    for (entry, words) in cases {
        let ignored = tarball(&[("Dockerfile", E::Regular, "FROM scratch"), (".dockerignore", E::Regular, "null\ndisk\n"), entry]);
        assert_eq!(refusal(packed(&ignored, None)), words);
    }
    let fine =
        tarball(&[("Dockerfile", E::Regular, "FROM scratch"), ("a", E::Regular, "1"), ("b", E::Link, "./a"), ("a", E::Regular, "2")]);
    let (entries, _) = packed(&fine, None).unwrap();
    let of = |content: &str| Kind::File(Sha256::digest(content).into());
    assert_eq!((&entries[b"a".as_slice()].kind, &entries[b"b".as_slice()].kind), (&of("2"), &of("1")));
}

#[test]
fn what_is_no_tar_is_said_so() {
    let file = |content: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    };
    assert_eq!(refusal(Tarball::new(file(&[0x1f, 0x8b, 8, 0]))), "the context is no tar: it is compressed: gunzip it first");
    assert!(refusal(packed(&Tarball::new(file(&[b'x'; 600])).unwrap(), None)).starts_with("the context is no tar: "));
    let mut cut = Vec::new();
    let mut tar = tar::Builder::new(&mut cut);
    let mut header = tar::Header::new_gnu();
    header.set_size(5000);
    tar.append_data(&mut header, "Dockerfile", io::repeat(b' ').take(5000)).unwrap();
    tar.finish().unwrap();
    drop(tar);
    assert!(refusal(packed(&Tarball::new(file(&cut[..2000])).unwrap(), None)).starts_with("the context is no tar: "));
    assert_eq!(refusal(packed(&Tarball::new(file(b"")).unwrap(), None)), "cannot read Dockerfile");
}

#[test]
fn bounds_and_bad_files_are_named() {
    let dir = folder(&[("Dockerfile", "FROM scratch"), ("big", &"x".repeat(LIMIT as usize))]);
    assert_eq!(refusal(surveyed(&dir)), "the context is larger than 1048576 bytes ([images] context_limit)");
    assert_eq!(refusal(packed_folder(&dir)), refusal(surveyed(&dir)));
    std::fs::write(dir.path().join(".dockerignore"), "fine\n[x\n").unwrap();
    assert_eq!(refusal(surveyed(&dir)), ".dockerignore: line 2: \"[x\" has a [ without its ]");
    std::fs::write(dir.path().join(".dockerignore"), "big").unwrap();
    assert!(surveyed(&dir).is_ok());
    std::fs::write(dir.path().join("Dockerfile"), [0xff, 0xfe]).unwrap();
    assert_eq!(refusal(surveyed(&dir)), "Dockerfile is not UTF-8");
    std::fs::remove_file(dir.path().join("Dockerfile")).unwrap();
    assert_eq!(refusal(surveyed(&dir)), "cannot read Dockerfile");
    assert!(matches!(Folder::open(Path::new("/nowhere"), None), Err(ContextError::Unreadable { .. })));
    let other = Folder::open(dir.path(), Some((0, 1)));
    assert!(matches!(other, Err(ContextError::Unreadable { source, .. }) if source.to_string().contains("another folder")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is in it: a survey, a pack and a pack of the pack agree, and the order in which files were made does not matter.
    #[test]
    fn survey_and_pack_agree(files in prop::collection::btree_map("[a-c](/[a-c]){0,2}", "[x-z]{0,3}", 0..8), ignored in "[!]?[a-c*]{1,2}(/[a-c*])?") {
        // Not both a file and a folder.
        let files: Vec<(&String, &String)> = files.iter().filter(|(name, _)| !files.keys().any(|other| other.starts_with(&format!("{name}/")))).collect();
        let made = |reverse: bool| {
            let mut all: Vec<(&str, &str)> = files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
            if reverse {
                all.reverse();
            }
            all.extend([("Dockerfile", "FROM scratch"), (".dockerignore", ignored.as_str())]);
            folder(&all)
        };
        let (one, other) = (made(false), made(true));
        let entries = surveyed(&one).unwrap();
        prop_assert_eq!(&surveyed(&other).unwrap(), &entries);
        let (sent, tar) = packed_folder(&other).unwrap();
        prop_assert_eq!(&sent, &entries);
        prop_assert_eq!(&packed(&Tarball::new(tar).unwrap(), None).unwrap().0, &entries);
    }
}
