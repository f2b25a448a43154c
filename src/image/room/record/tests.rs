//! A file says all of it or nothing.

use super::*;

fn record() -> Record {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let one =
        Use { came: true, names: vec!["reg:5000/fn:1".into(), "fn:1".into()], asked: at(1_800_000_000), held_until: at(1_800_000_601) };
    let other = Use { came: false, names: Vec::new(), asked: at(1), held_until: at(1) };
    let known = [("sha256:a", one), ("b", other)].into_iter().map(|(id, used)| (ImageId::from(id), used)).collect();
    Record { since: at(1_700_000_000), complete: true, known }
}

/// Holds are rounded up.
fn as_written() -> Record {
    let mut record = record();
    record.known.values_mut().for_each(|used| used.held_until += Duration::from_secs(1));
    record
}

fn file(dir: &Path, pool: &str) -> File {
    File::beside(&dir.join("images"), pool)
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), "fn");
    assert_eq!(file.read(), None, "nothing is known yet");
    file.write(&record()).unwrap();
    assert_eq!(file.read(), Some(as_written()));
    assert_eq!(file.path(), dir.path().join("images-used/fn.json"));
    file.write(&Record { known: Known::default(), ..record() }).unwrap();
    assert_eq!(file.read().unwrap().known, Known::default());
    assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 1, "nothing else stays");
}

#[test]
fn a_file_that_is_torn_or_garbage_or_from_later_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), "fn");
    file.write(&record()).unwrap();
    let whole = fs::read(file.path()).unwrap();
    for length in 0..whole.len() {
        fs::write(file.path(), &whole[..length]).unwrap();
        assert_eq!(file.read(), None, "{length} bytes of {}", whole.len());
    }
    let later = String::from_utf8(whole.clone()).unwrap().replace("\"version\":1", "\"version\":2");
    for text in [&b"\0\0\0\0"[..], b"{}", b"[]", b"{\"version\":1}", later.as_bytes(), &[0xff; 100]] {
        fs::write(file.path(), text).unwrap();
        assert_eq!(file.read(), None);
    }
    file.write(&record()).unwrap();
    assert_eq!(file.read(), Some(as_written()), "and is written over");
}

#[test]
fn what_a_killed_writer_left_is_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), "fn");
    file.write(&record()).unwrap();
    fs::write(dir.path().join("images-used/fn.json.next"), "half of").unwrap();
    assert_eq!(file.read(), Some(as_written()));
    assert_eq!(super::super::record::File::read_others(&file), Known::default());
    file.write(&record()).unwrap();
    assert_eq!(file.read(), Some(as_written()));
}

#[test]
fn pools_read_what_the_others_know() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (file(dir.path(), "one"), file(dir.path(), "other"));
    one.write(&record()).unwrap();
    let mut later = record();
    later.known.values_mut().for_each(|used| used.asked += Duration::from_secs(60));
    other.write(&later).unwrap();
    fs::write(dir.path().join("images-used/third.json"), "garbage").unwrap();
    let mut known = one.read().unwrap().known;
    super::super::uses::merge(&mut known, one.read_others());
    assert_eq!(known[&ImageId::from("b")].asked, SystemTime::UNIX_EPOCH + Duration::from_secs(61));
    assert!(known[&ImageId::from("sha256:a")].came && known.len() == 2);
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FOLDER), "in the way").unwrap();
    let file = file(dir.path(), "fn");
    assert!(file.write(&record()).is_err());
    assert_eq!(file.read(), None);
    assert_eq!(file.read_others(), Known::default());
}

#[test]
fn no_time_is_too_late() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), "fn");
    file.write(&record()).unwrap();
    let far = fs::read_to_string(file.path()).unwrap().replace("1800000000", &u64::MAX.to_string());
    fs::write(file.path(), far).unwrap();
    assert!(file.read().unwrap().known[&ImageId::from("sha256:a")].asked > SystemTime::now());
}
