//! IPsec: associations, policies, and what holds where no policy does. Keys are compared, and never shown.

use rustix::io::Errno;

use super::facts::{Fact, Section};
use super::place::{Family, Part, Place};
use super::verdict::{InspectError, Kind};
use crate::netns::wire::Batch;

const GETSA: u16 = 0x12;
const GETPOLICY: u16 = 0x15;
const GETDEFAULT: u16 = 0x28;
const STATE: usize = 224;
const POLICY: usize = 168;
/// How much went through, and since when.
const STATE_PASSING: std::ops::Range<usize> = 160..204;
const POLICY_PASSING: std::ops::Range<usize> = 120..152;
/// Counters of replay, current lifetimes, last use.
const STATE_PASSING_ATTRIBUTES: [u16; 4] = [9, 10, 15, 23];
const DEFAULT: usize = 3;

static XFRM: Part = Part::new("xfrm_user", Errno::PROTONOSUPPORT);
/// Since Linux 5.15.
static DEFAULTS: Part = Part::new("xfrm_user", Errno::INVAL);

pub(super) fn read(place: &mut Place) -> Result<Vec<Section>, InspectError> {
    let states = XFRM.ask(|| list(place, "IPsec associations", GETSA, STATE, &STATE_PASSING_ATTRIBUTES, STATE_PASSING))?;
    let policies = XFRM.ask(|| list(place, "IPsec policies", GETPOLICY, POLICY, &[], POLICY_PASSING))?;
    let mut policies = policies.unwrap_or_default();
    // Where there is no IPsec, there is no default.
    policies.extend(XFRM.ask(|| DEFAULTS.ask(|| default(place)))?.flatten().flatten());
    Ok(vec![Section { kind: Kind::XfrmState, facts: states.unwrap_or_default() }, Section { kind: Kind::XfrmPolicy, facts: policies }])
}

fn list(
    place: &mut Place,
    what: &str,
    kind: u16,
    header: usize,
    without: &[u16],
    passing: std::ops::Range<usize>,
) -> Result<Vec<Fact>, InspectError> {
    place.list(
        Family::Xfrm,
        what,
        kind,
        &[],
        |_| {},
        |message| {
            let mut fact = Fact::of(message, header, without)?;
            fact.header_mut()[passing.clone()].fill(0);
            Some(fact)
        },
    )
}

fn default(place: &mut Place) -> Result<Option<Fact>, InspectError> {
    let mut batch = Batch::default();
    batch.push("asking for IPsec's default", GETDEFAULT, 0, &[0; 4], |_| {});
    let socket = place.socket(Family::Xfrm)?;
    socket
        .ask(&mut batch, |message| {
            let of = message.body.get(..DEFAULT)?;
            Some(Fact::text("without a policy", format!("in {} forwarded {} out {}", of[0], of[1], of[2])))
        })
        .map_err(InspectError::reading("IPsec's default"))
}
