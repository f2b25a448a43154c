use proptest::prelude::*;

use super::super::context::Entry;
use super::*;

/// All that goes in, owned.
#[derive(Clone, Debug, PartialEq)]
struct Whole {
    texts: [String; 4],
    args: BTreeMap<String, String>,
    bases: Vec<(Reference, ImageId)>,
    context: Entries,
}

impl Whole {
    fn key(&self) -> Key {
        let [builder, platform, dockerfile, target] = &self.texts;
        Inputs { builder, platform, dockerfile, target, args: &self.args, bases: &self.bases, context: &self.context }.key()
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Folder),
        any::<u8>().prop_map(|byte| Kind::File([byte; 32])),
        prop::collection::vec(any::<u8>(), 0..3).prop_map(Kind::Link)
    ]
}

/// Short words of few letters: where one field ends and the next begins is what could go wrong.
fn whole() -> impl Strategy<Value = Whole> {
    let word = "[ab]{0,2}";
    let base = ("[ab]{1,2}", "[ab]{1,2}").prop_map(|(name, id)| (Reference::parse(&name).unwrap(), ImageId::from(id)));
    let entry = (prop::sample::select(vec![0o644, 0o755, 0o4755]), kind()).prop_map(|(mode, kind)| Entry { mode, kind });
    (
        [word, word, word, word],
        prop::collection::btree_map(word, word, 0..3),
        prop::collection::btree_map("[ab]{1,2}", base, 0..3),
        prop::collection::btree_map(prop::collection::vec(97..99_u8, 1..3), entry, 0..3),
    )
        .prop_map(|(texts, args, bases, context)| Whole { texts, args, bases: bases.into_values().collect(), context })
}

fn sorted(mut whole: Whole) -> Whole {
    whole.bases.sort();
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn two_keys_are_the_same_only_if_all_that_goes_in_is(one in whole(), other in whole()) {
        prop_assert_eq!(one.key() == other.key(), sorted(one) == sorted(other));
    }

    /// Each single change of one of them: random pairs alone differ in too much at once.
    #[test]
    fn any_change_of_what_goes_in_changes_the_key(whole in whole(), field in 0..4_usize, byte in any::<u8>()) {
        let key = whole.key();
        let mut changed = Vec::new();
        let mut with = |change: &dyn Fn(&mut Whole)| {
            let mut other = whole.clone();
            change(&mut other);
            changed.push(other);
        };
        with(&|other| other.texts[field].push('c'));
        with(&|other| drop(other.args.insert("c".into(), String::new())));
        with(&|other| other.bases.push((Reference::parse("c").unwrap(), ImageId::from("c"))));
        with(&|other| drop(other.context.insert(b"c".to_vec(), Entry { mode: 0o644, kind: Kind::File([byte; 32]) })));
        for path in whole.context.keys() {
            with(&|other| other.context.get_mut(path).unwrap().mode ^= 0o1);
            with(&|other| drop(other.context.remove(path)));
            with(&|other| other.context.get_mut(path).unwrap().kind = Kind::Link(b"elsewhere".to_vec()));
        }
        for name in whole.args.keys() {
            with(&|other| other.args.get_mut(name).unwrap().push('c'));
        }
        for base in 0..whole.bases.len() {
            with(&|other| other.bases[base].1 = ImageId::from("c"));
        }
        for other in changed {
            prop_assert_ne!(other.key(), key, "{:?}", other);
        }
    }
}

/// A change of what a key is made of has to change [`VERSION`]: images that were built before are not to be taken for others.
#[test]
fn a_key_is_what_it_was() {
    let context = Entries::from([
        (b"bin".to_vec(), Entry { mode: 0o755, kind: Kind::Folder }),
        (b"bin/fn".to_vec(), Entry { mode: 0o755, kind: Kind::File([7; 32]) }),
        (b"fn".to_vec(), Entry { mode: 0o777, kind: Kind::Link(b"bin/fn".to_vec()) }),
    ]);
    let whole = Whole {
        texts: ["docker".into(), String::new(), "FROM busybox\n".into(), String::new()],
        args: BTreeMap::from([("VERSION".to_owned(), "7".to_owned())]),
        bases: vec![(Reference::parse("busybox").unwrap(), ImageId::from("sha256:1"))],
        context,
    };
    assert_eq!(whole.key().to_string(), "5745f4a54bb401f0d311c595c6f9120c5360568024563ef4c60b40d02c1a0afa");
    assert_eq!(Key::parse(&whole.key().to_string()), Some(whole.key()));
    let unprefixed = Whole { bases: vec![(Reference::parse("busybox:latest").unwrap(), ImageId::from("1"))], ..whole.clone() };
    assert_eq!(unprefixed.key(), whole.key());
    for wrong in ["", "ab", &"g".repeat(64), &"A".repeat(64)] {
        assert_eq!(Key::parse(wrong), None);
    }
}
