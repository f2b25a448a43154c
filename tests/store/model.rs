//! Any work in any order, beside a model of a few lines: names and what they mean.

use std::collections::{BTreeMap, BTreeSet};

use nspool::image::store::{Digest, Expected};
use proptest::prelude::*;

use super::images::{Image, assert_sound, assert_whole, in_memory, name, open};
use super::writers::files;

#[derive(Clone, Debug)]
enum Work {
    /// From a tar: which layers, which names.
    Tar(Vec<u64>, Vec<u8>),
    /// From a layout, with one name.
    Folder(Vec<u64>, u8, bool),
    Remove(u8),
    Sweep,
    Reopen,
    /// A writer that gives up in the middle.
    GivesUp(Vec<u64>),
    /// One that dies: what it leaves is nobody's.
    Dies,
}

fn work() -> impl Strategy<Value = Work> {
    let layers = || proptest::collection::vec(0..5_u64, 0..4);
    prop_oneof![
        4 => (layers(), proptest::collection::vec(0..6_u8, 0..3)).prop_map(|(layers, names)| Work::Tar(layers, names)),
        2 => (layers(), 0..6_u8, any::<bool>()).prop_map(|(layers, name, zipped)| Work::Folder(layers, name, zipped)),
        3 => (0..6_u8).prop_map(Work::Remove),
        2 => Just(Work::Sweep),
        1 => Just(Work::Reopen),
        1 => layers().prop_map(Work::GivesUp),
        1 => Just(Work::Dies),
    ]
}

fn tag(number: u8) -> String {
    format!("registry:5000/fn:{number}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_mean_what_they_were_last_said_to_mean(works in proptest::collection::vec(work(), 1..25)) {
        let dir = in_memory();
        let mut store = open(dir.path());
        // With whether it came by a tar: by a layout it has another manifest.
        let mut model: BTreeMap<String, (Image, bool)> = BTreeMap::new();
        let mut nameless: BTreeSet<Digest> = BTreeSet::new();
        for work in works {
            match work {
                Work::Tar(layers, names) => {
                    let image = Image::new(&layers, 300);
                    let names: Vec<String> = names.into_iter().map(tag).collect();
                    let stored = store.import_tar(&*image.saved(&names.iter().map(String::as_str).collect::<Vec<_>>()), None).unwrap();
                    prop_assert_eq!(&stored[0].id, &image.id());
                    let has_name = model.values().any(|(known, by_tar)| *by_tar && known.id() == image.id());
                    if !names.is_empty() {
                        nameless.remove(&image.id());
                    } else if !has_name {
                        nameless.insert(image.id());
                    }
                    model.extend(names.into_iter().map(|name| (name, (image.clone(), true))));
                }
                Work::Folder(layers, number, zipped) => {
                    let (image, layout) = (Image::new(&layers, 300), in_memory());
                    image.layout(layout.path(), Some(&tag(number)), zipped);
                    store.import_folder(layout.path(), None).unwrap();
                    model.insert(tag(number), (image, false));
                }
                Work::Remove(number) => {
                    let was = store.remove(&name(&tag(number))).unwrap();
                    prop_assert_eq!(was, model.remove(&tag(number)).is_some());
                }
                Work::Sweep => drop(store.sweep().unwrap()),
                Work::Reopen => store = open(dir.path()),
                Work::GivesUp(layers) => {
                    let staging = store.stage().unwrap();
                    let image = Image::new(&layers, 300);
                    image.layers.iter().for_each(|layer| drop(staging.put("it", "", layer).unwrap()));
                    let mut half = staging.blob("half", Expected::default()).unwrap();
                    half.write(b"half").unwrap();
                }
                Work::Dies => {
                    let folder = dir.path().join("staging").join(nspool::random::uuid().to_string());
                    std::fs::create_dir(&folder).unwrap();
                    std::fs::write(folder.join(Digest::of(b"x").hex()), "x").unwrap();
                    store = open(dir.path());
                }
            }
            let seen: BTreeMap<String, Digest> =
                store.images().unwrap().into_iter().flat_map(|image| image.names.clone().into_iter().map(move |name| (name, image.id.clone()))).collect();
            let meant: BTreeMap<String, Digest> = model.iter().map(|(name, (image, _))| (name.clone(), image.id())).collect();
            prop_assert_eq!(seen, meant);
        }
        for (name, (image, _)) in &model {
            assert_whole(&store, name, image);
        }
        for id in &nameless {
            prop_assert!(store.image(id.as_str()).unwrap().is_some());
        }
        store.sweep().unwrap();
        assert_sound(&store, 0);
        // Not one blob too many.
        let needed: BTreeSet<Digest> = store.images().unwrap().iter().flat_map(|image| {
            let manifest = store.manifest(&image.manifest).unwrap();
            let layers = manifest.layers.iter().map(|layer| layer.digest.clone());
            layers.chain([manifest.config.digest.clone(), image.manifest.clone()]).collect::<Vec<_>>()
        }).collect();
        prop_assert_eq!(files(&dir.path().join("blobs/sha256")), needed.len());
    }
}
