//! Against a model that works everything out anew from sets, on images that share whatever they like.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const PIECES: usize = 7;

/// By their names: a few are empty, as layers may be.
fn image(pieces: &[usize], used: u64, stays: Option<Stays>) -> Candidate {
    let bytes = |piece: usize| if piece == 3 { 0 } else { 1 << (2 * piece) };
    let pieces = pieces.iter().map(|piece| Piece { name: format!("p{piece}"), bytes: bytes(*piece) }).collect();
    Candidate { pieces, used: SystemTime::UNIX_EPOCH + Duration::from_secs(used), stays }
}

fn images() -> impl Strategy<Value = Vec<Candidate>> {
    let stays = prop_oneof![3 => Just(None), 1 => Just(Some(Stays::Held)), 1 => Just(Some(Stays::InUse))];
    let one = (prop::collection::vec(0..PIECES, 0..5), 0..6_u64, stays);
    prop::collection::vec(one.prop_map(|(pieces, used, stays)| image(&pieces, used, stays)), 0..8)
}

fn union(images: &[Candidate], of: &BTreeSet<usize>) -> u64 {
    let pieces: BTreeMap<&str, u64> =
        of.iter().flat_map(|index| &images[*index].pieces).map(|piece| (piece.name.as_str(), piece.bytes)).collect();
    pieces.values().sum()
}

fn without(set: &BTreeSet<usize>, index: usize) -> BTreeSet<usize> {
    set.iter().copied().filter(|other| *other != index).collect()
}

/// In how many of these images is the part of it that is in the fewest of them, and in none that stays?
fn rarest(images: &[Candidate], here: &BTreeSet<usize>, index: usize) -> Option<usize> {
    let has = |other: usize, piece: &Piece| images[other].pieces.iter().any(|own| own.name == piece.name);
    let free = images[index].pieces.iter().filter(|piece| piece.bytes > 0);
    let free = free.filter(|piece| !(0..images.len()).any(|other| images[other].stays.is_some() && has(other, piece)));
    free.map(|piece| here.iter().filter(|other| has(**other, piece)).count()).min()
}

fn model(images: &[Candidate], low: u64) -> Vec<usize> {
    let mut here: BTreeSet<usize> = (0..images.len()).collect();
    let mut goes: Vec<usize> = Vec::new();
    while union(images, &here) > low {
        let mut may: Vec<usize> = here.iter().copied().filter(|index| images[*index].stays.is_none()).collect();
        may.sort_by_key(|index| images[*index].used);
        let total = union(images, &here);
        let alone = may.iter().copied().find(|index| union(images, &without(&here, *index)) < total);
        let shared = || may.iter().copied().filter(|i| rarest(images, &here, *i).is_some()).min_by_key(|i| rarest(images, &here, *i));
        let Some(next) = alone.or_else(shared) else { break };
        here.remove(&next);
        goes.push(next);
    }
    for index in goes.clone().into_iter().rev() {
        let with: BTreeSet<usize> = here.iter().copied().chain([index]).collect();
        if union(images, &with) == union(images, &here) {
            here = with;
            goes.retain(|other| *other != index);
        }
    }
    goes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn what_goes_is_what_the_model_says_and_keeps_the_promises(images in images(), low in 0..6000_u64) {
        let plan = plan(&images, low);
        let goes: Vec<usize> = plan.goes.iter().map(|goes| goes.index).collect();
        prop_assert_eq!(&goes, &model(&images, low));

        let all: BTreeSet<usize> = (0..images.len()).collect();
        let left: BTreeSet<usize> = all.iter().copied().filter(|index| !goes.contains(index)).collect();
        prop_assert_eq!(left.len() + goes.len(), images.len(), "each goes once");
        prop_assert_eq!((plan.before, plan.after), (union(&images, &all), union(&images, &left)));
        prop_assert_eq!(plan.goes.iter().map(|goes| goes.frees).sum::<u64>(), plan.before - plan.after);
        prop_assert!(goes.iter().all(|index| images[*index].stays.is_none()));
        let protected: BTreeSet<usize> = all.iter().copied().filter(|index| images[*index].stays.is_some()).collect();
        prop_assert!(plan.after <= low || plan.after == union(&images, &protected), "it goes as far as it may");
        prop_assert!(plan.before > low || goes.is_empty());
        for index in &goes {
            let with: BTreeSet<usize> = left.iter().copied().chain([*index]).collect();
            prop_assert!(union(&images, &with) > plan.after, "{index} makes room for nobody");
        }
        if let Some(last) = goes.last().filter(|_| plan.after <= low) {
            let with: BTreeSet<usize> = left.iter().copied().chain([*last]).collect();
            prop_assert!(union(&images, &with) > low, "the last one was needed");
        }
    }
}

fn goes(images: &[Candidate], low: u64) -> Vec<(usize, u64)> {
    plan(images, low).goes.iter().map(|goes| (goes.index, goes.frees)).collect()
}

#[test]
fn the_one_that_was_used_the_longest_ago_goes_first() {
    let images = [image(&[0], 3, None), image(&[1], 1, None), image(&[2], 2, None)];
    assert_eq!(goes(&images, 20), [(1, 4)]);
    assert_eq!(goes(&images, 16), [(1, 4), (2, 16)], "17 are left without the first");
    assert_eq!(goes(&images, 21), []);
    assert_eq!(goes(&images, 0), [(1, 4), (2, 16), (0, 1)]);
}

#[test]
fn the_base_of_others_waits_for_them() {
    // A base that nobody asked for in years, two that begin from it, and one that does not.
    let images = [image(&[4], 0, None), image(&[4, 0], 5, None), image(&[4, 1], 6, None), image(&[2], 7, None)];
    assert_eq!(goes(&images, 276), [(1, 1)]);
    assert_eq!(goes(&images, 272), [(1, 1), (2, 4)]);
    assert_eq!(goes(&images, 16), [(1, 1), (2, 4), (0, 256)]);
    let held = [image(&[4], 0, None), image(&[4, 0], 5, Some(Stays::Held)), image(&[2], 7, None)];
    assert_eq!(goes(&held, 0), [(2, 16)], "its base would free nothing");
}

#[test]
fn those_that_nobody_else_shares_with_go_together() {
    let twins = [image(&[5], 1, None), image(&[5], 9, None), image(&[0], 5, None)];
    assert_eq!(goes(&twins, 1024), [(2, 1)], "what was asked for last of two with the same layers counts for both");
    assert_eq!(goes(&twins, 0), [(2, 1), (0, 0), (1, 1024)]);
    let held = [image(&[5], 1, None), image(&[5], 9, Some(Stays::Held))];
    assert_eq!(goes(&held, 0), []);
}

#[test]
fn many_are_planned_at_once() {
    let images: Vec<Candidate> = (0..2000_u64)
        .map(|number| {
            let own = Piece { name: format!("own {number}"), bytes: 10 };
            let shared = (0..20).map(|layer| Piece { name: format!("shared {} {layer}", number % 50), bytes: 7 });
            Candidate { pieces: shared.chain([own]).collect(), used: SystemTime::UNIX_EPOCH + Duration::from_secs(number), stays: None }
        })
        .collect();
    let plan = plan(&images, 10_000);
    assert!(plan.after <= 10_000 && plan.goes.len() > 1000, "{} of {}", plan.goes.len(), images.len());
}
