//! The pool's table in the kernel's firewall: put there whole, compared, put there anew, taken away. And what others' firewalls do to us.
//!
//! The table is replaced in one transaction: there is no moment without rules, and connections that are there go on. Each rule carries a
//! comment with its number and a sum over its expressions, by which a rule that was changed, lost or added is noticed.
//!
//! **Docker** sets the policy of iptables' FORWARD chain to drop, which no rule in a table of ours overrides. Where its chain `DOCKER-USER`
//! is, which Docker keeps for others and never empties, two rules for each of our bridges let their traffic through, each with our comment;
//! they are all that we add outside of our table. Where the policy is drop and there is no such chain, that is told, with what to do. A
//! bridge of Docker's own needs none of it. iptables-legacy keeps its rules where we do not see them.

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::names::Names;
use super::rules::{CHAINS, Chain, Expression, Rule, family_of};
use super::subnet::Subnet;
use crate::netns::socket::{Refusal, Socket};
use crate::netns::wire::{ACK, APPEND, Attributed, Attributes, Batch, CREATE, Message};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = NEWTABLE + 2;
const NEWCHAIN: u16 = NEWTABLE + 3;
const GETCHAIN: u16 = NEWTABLE + 4;
const NEWRULE: u16 = NEWTABLE + 6;
const GETRULE: u16 = NEWTABLE + 7;
const DELRULE: u16 = NEWTABLE + 8;
/// The news that [`watch`](super::watch) hears: of tables, chains and rules that come and go.
pub(super) const NEWS: [u16; 6] = [NEWTABLE, DELTABLE, NEWCHAIN, NEWTABLE + 5, NEWRULE, DELRULE];

/// Of both families; `nft` calls it inet.
const BOTH: u8 = 1;
pub(super) const HEADER: usize = 4;
/// First in tables, chains and rules alike.
pub(super) const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const USERDATA_COMMENT: u8 = 0;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;
/// `struct xt_comment_info`.
const COMMENT: usize = 256;
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
/// A link's name in a register.
const NAME_LENGTH: usize = 16;
const NETWORK_HEADER: u32 = 1;
const CT_STATE: u32 = 0;
const CT_NEW: u32 = 8;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

const DOCKER_TABLE: &str = "filter";
const DOCKER_CHAIN: &str = "DOCKER-USER";

/// A chain as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
    /// Its place, priority, policy and type, when packets come to it by itself.
    base: Option<(u32, u32, u32, String)>,
}

impl Shown {
    pub(super) fn is_docker_user(&self) -> bool {
        self.table == DOCKER_TABLE && self.name == DOCKER_CHAIN
    }

    pub(super) fn drops_what_is_forwarded(&self) -> bool {
        matches!(&self.base, Some((HOOK_FORWARD, _, DROP, _)))
    }
}

pub(super) fn open() -> Result<Socket, Errno> {
    Socket::open(Some(NETFILTER), 0)
}

/// Puts the table there, in place of what is there of that name.
pub(super) fn replace(socket: &mut Socket, names: &Names, rules: &[Rule]) -> Result<(), Refusal> {
    let table = names.table();
    commit(socket, |batch| {
        table_message(batch, "creating the table", NEWTABLE, CREATE, &table);
        table_message(batch, "emptying the table", DELTABLE, 0, &table);
        table_message(batch, "creating the table", NEWTABLE, CREATE, &table);
        for chain in CHAINS {
            batch.push("creating a chain", NEWCHAIN, ACK | CREATE, &header(BOTH), |a| {
                a.text(TABLE_NAME, &table);
                a.text(CHAIN_NAME, name_of(chain));
                let (hook, priority, _, kind) = base_of(chain);
                a.nest(CHAIN_HOOK, |a| {
                    a.network_number(HOOK_NUMBER, hook);
                    a.network_number(HOOK_PRIORITY, priority);
                });
                a.network_number(CHAIN_POLICY, ACCEPT);
                a.text(CHAIN_TYPE, kind);
            });
        }
        for (number, rule) in rules.iter().enumerate() {
            let comment = comment(number, rule);
            batch.push("adding a rule", NEWRULE, ACK | CREATE | APPEND, &header(BOTH), |a| {
                a.text(TABLE_NAME, &table);
                a.text(RULE_CHAIN, name_of(rule.chain));
                a.nest(RULE_EXPRESSIONS, |a| expressions(a, rule));
                a.put(RULE_USERDATA, &userdata(&comment));
            });
        }
    })
}

/// Also well when there is none.
pub(super) fn remove(socket: &mut Socket, names: &Names) -> Result<(), Refusal> {
    let removed = commit(socket, |batch| table_message(batch, "removing the table", DELTABLE, 0, &names.table()));
    removed.or_else(|refusal| if refusal.errno == Errno::NOENT { Ok(()) } else { Err(refusal) })
}

/// All chains of all tables.
pub(super) fn chains(socket: &mut Socket) -> Result<Vec<Shown>, Errno> {
    socket.list(
        GETCHAIN,
        &header(0),
        |_| {},
        |message| {
            let attributes = message.attributes(HEADER);
            let hook = attributes.nested(CHAIN_HOOK);
            let base = network_number(hook, HOOK_NUMBER).map(|number| {
                let priority = network_number(hook, HOOK_PRIORITY).unwrap_or(0);
                let policy = network_number(attributes, CHAIN_POLICY).unwrap_or(ACCEPT);
                (number, priority, policy, attributes.text(CHAIN_TYPE).unwrap_or_default())
            });
            let (table, name) = (attributes.text(TABLE_NAME)?, attributes.text(CHAIN_NAME)?);
            Some(Shown { family: *message.body.first()?, table, name, base })
        },
    )
}

/// Whether the table, as far as it is shown, is what [`replace`] makes of these rules.
pub(super) fn is_whole(socket: &mut Socket, names: &Names, rules: &[Rule], chains: &[Shown]) -> Result<bool, Errno> {
    let table = names.table();
    let has = |chain: Chain| {
        let (hook, priority, policy, kind) = base_of(chain);
        let base = Some((hook, priority, policy, kind.to_owned()));
        chains.iter().any(|shown| shown.family == BOTH && shown.table == table && shown.name == name_of(chain) && shown.base == base)
    };
    if !CHAINS.into_iter().all(has) || chains.iter().filter(|shown| shown.family == BOTH && shown.table == table).count() != CHAINS.len() {
        return Ok(false);
    }
    let mut found = socket.list(
        GETRULE,
        &header(BOTH),
        |a| a.text(TABLE_NAME, &table),
        |message| {
            let attributes = message.attributes(HEADER);
            let of_ours = attributes.text(TABLE_NAME)? == table;
            of_ours.then(|| (attributes.text(RULE_CHAIN).unwrap_or_default(), attributes.get(RULE_USERDATA).unwrap_or_default().to_vec()))
        },
    )?;
    let mut expected: Vec<_> =
        rules.iter().enumerate().map(|(number, rule)| (name_of(rule.chain).to_owned(), userdata(&comment(number, rule)))).collect();
    // The order within a chain stays, that of the chains is the kernel's.
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found == expected)
}

/// Our rules in `DOCKER-USER`, by their handles.
pub(super) fn let_through(socket: &mut Socket, names: &Names, family: u8) -> Result<Vec<u64>, Errno> {
    let mark = names.mark();
    let fill = |a: &mut Attributes<'_>| {
        a.text(TABLE_NAME, DOCKER_TABLE);
        a.text(RULE_CHAIN, DOCKER_CHAIN);
    };
    let read = |message: &Message<'_>| {
        let attributes = message.attributes(HEADER);
        let here = attributes.text(TABLE_NAME)? == DOCKER_TABLE && attributes.text(RULE_CHAIN)? == DOCKER_CHAIN;
        let is_ours = |(_, element): (u16, &[u8])| {
            let element = Attributed(element);
            let info = element.nested(EXPRESSION_DATA).text(MATCH_INFO);
            element.text(EXPRESSION_NAME).as_deref() == Some("match") && info.as_deref() == Some(&mark)
        };
        let handle = attributes.get(RULE_HANDLE)?.try_into().ok().map(u64::from_be_bytes)?;
        (here && attributes.nested(RULE_EXPRESSIONS).all().any(is_ours)).then_some(handle)
    };
    socket.list(GETRULE, &header(family), fill, read)
}

/// Puts two rules for each bridge into `DOCKER-USER` of a family, in place of those with those handles.
pub(super) fn replace_let_through(socket: &mut Socket, names: &Names, family: u8, old: &[u64], bridges: &[String]) -> Result<(), Refusal> {
    if old.is_empty() && bridges.is_empty() {
        return Ok(());
    }
    commit(socket, |batch| {
        for handle in old {
            batch.push("removing our rule from DOCKER-USER", DELRULE, ACK, &header(family), |a| {
                a.text(TABLE_NAME, DOCKER_TABLE);
                a.text(RULE_CHAIN, DOCKER_CHAIN);
                a.put(RULE_HANDLE, &handle.to_be_bytes());
            });
        }
        for (bridge, key) in bridges.iter().flat_map(|bridge| [(bridge, META_IIFNAME), (bridge, META_OIFNAME)]) {
            // Not appended: the last rule there may end the chain.
            batch.push("adding our rule to DOCKER-USER", NEWRULE, ACK | CREATE, &header(family), |a| {
                a.text(TABLE_NAME, DOCKER_TABLE);
                a.text(RULE_CHAIN, DOCKER_CHAIN);
                a.nest(RULE_EXPRESSIONS, |a| {
                    // As iptables writes it, so that it can show it.
                    meta(a, key);
                    compare(a, EQUAL, &[bridge.as_bytes(), &[0]].concat());
                    expression(a, "match", |a| {
                        let mut info = names.mark().into_bytes();
                        info.resize(COMMENT, 0);
                        a.text(MATCH_NAME, "comment");
                        a.network_number(MATCH_REVISION, 0);
                        a.put(MATCH_INFO, &info);
                    });
                    expression(a, "counter", |_| {});
                    verdict(a, ACCEPT);
                });
            });
        }
    })
}

/// News of that chain.
pub(super) fn is_about_docker_user(message: &Message<'_>) -> bool {
    let attributes = message.attributes(HEADER);
    let chain = if [NEWRULE, DELRULE].contains(&message.kind) { RULE_CHAIN } else { CHAIN_NAME };
    attributes.text(TABLE_NAME).as_deref() == Some(DOCKER_TABLE) && attributes.text(chain).as_deref() == Some(DOCKER_CHAIN)
}

/// All or nothing.
fn commit(socket: &mut Socket, fill: impl FnOnce(&mut Batch)) -> Result<(), Refusal> {
    let edge = [0, 0, 0, u8::try_from(SUBSYSTEM).unwrap_or(0)];
    let mut batch = Batch::default();
    batch.push("beginning a transaction", BATCH_BEGIN, 0, &edge, |_| {});
    fill(&mut batch);
    batch.push("ending a transaction", BATCH_END, 0, &edge, |_| {});
    let refusals = socket.transact(&mut batch).map_err(|errno| Refusal { at: 0, step: "talking to the firewall", errno })?;
    refusals.first().map_or(Ok(()), |refusal| Err(*refusal))
}

fn header(family: u8) -> [u8; HEADER] {
    [family, 0, 0, 0]
}

fn table_message(batch: &mut Batch, step: &'static str, kind: u16, flags: u16, table: &str) {
    batch.push(step, kind, ACK | flags, &header(BOTH), |a| a.text(TABLE_NAME, table));
}

fn name_of(chain: Chain) -> &'static str {
    match chain {
        Chain::Forward => "forward",
        Chain::Postrouting => "postrouting",
    }
}

/// Place, priority, policy, type.
fn base_of(chain: Chain) -> (u32, u32, u32, &'static str) {
    match chain {
        Chain::Forward => (HOOK_FORWARD, 0, ACCEPT, "filter"),
        Chain::Postrouting => (HOOK_POSTROUTING, 100, ACCEPT, "nat"),
    }
}

fn comment(number: usize, rule: &Rule) -> String {
    let mut batch = Batch::default();
    batch.push("", 0, 0, &[], |a| expressions(a, rule));
    format!("nspool {number} {:08x}", crc32fast::hash(batch.last_body(0)))
}

/// As `nft` has it: kind, length, text.
fn userdata(comment: &str) -> Vec<u8> {
    let text = [comment.as_bytes(), &[0]].concat();
    [&[USERDATA_COMMENT, u8::try_from(text.len()).unwrap_or(u8::MAX)][..], &text].concat()
}

fn expressions(attributes: &mut Attributes<'_>, rule: &Rule) {
    let mut said = None;
    for one in &rule.expressions {
        // An address says nothing in a packet of the other family.
        if let Some(family) = family_of(one).filter(|family| said != Some(*family)) {
            meta(attributes, META_NFPROTO);
            compare(attributes, EQUAL, &[family]);
            said = Some(family);
        }
        encode(attributes, one);
    }
}

fn encode(a: &mut Attributes<'_>, one: &Expression) {
    match one {
        Expression::From(link) => link_name(a, META_IIFNAME, EQUAL, link),
        Expression::To(link) => link_name(a, META_OIFNAME, EQUAL, link),
        Expression::NotTo(link) => link_name(a, META_OIFNAME, NOT_EQUAL, link),
        Expression::SourceIn(subnet) => address(a, *subnet, true, EQUAL),
        Expression::SourceNotIn(subnet) => address(a, *subnet, true, NOT_EQUAL),
        Expression::DestinationIn(subnet) => address(a, *subnet, false, EQUAL),
        Expression::New => {
            expression(a, "ct", |a| {
                a.network_number(1, REGISTER);
                a.network_number(2, CT_STATE);
            });
            masked(a, &CT_NEW.to_ne_bytes());
            compare(a, NOT_EQUAL, &[0; 4]);
        }
        Expression::Drop => verdict(a, DROP),
        Expression::Masquerade => expression(a, "masq", |_| {}),
    }
}

fn expression(attributes: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    attributes.nest(LIST_ELEMENT, |a| {
        a.text(EXPRESSION_NAME, name);
        a.nest(EXPRESSION_DATA, fill);
    });
}

fn meta(attributes: &mut Attributes<'_>, key: u32) {
    expression(attributes, "meta", |a| {
        a.network_number(1, REGISTER);
        a.network_number(2, key);
    });
}

fn compare(attributes: &mut Attributes<'_>, how: u32, with: &[u8]) {
    expression(attributes, "cmp", |a| {
        a.network_number(1, REGISTER);
        a.network_number(2, how);
        a.nest(3, |a| a.put(DATA_VALUE, with));
    });
}

/// The register, as far as the mask has bits.
fn masked(attributes: &mut Attributes<'_>, mask: &[u8]) {
    expression(attributes, "bitwise", |a| {
        a.network_number(1, REGISTER);
        a.network_number(2, REGISTER);
        a.network_number(3, u32::try_from(mask.len()).unwrap_or(0));
        a.nest(4, |a| a.put(DATA_VALUE, mask));
        a.nest(5, |a| a.put(DATA_VALUE, &vec![0; mask.len()]));
    });
}

fn link_name(attributes: &mut Attributes<'_>, key: u32, how: u32, link: &str) {
    let mut name = link.as_bytes().to_vec();
    name.resize(NAME_LENGTH, 0);
    meta(attributes, key);
    compare(attributes, how, &name);
}

fn address(attributes: &mut Attributes<'_>, subnet: Subnet, is_source: bool, how: u32) {
    let (first, offset) = match (subnet.first(), is_source) {
        (std::net::IpAddr::V4(address), true) => (address.octets().to_vec(), 12),
        (std::net::IpAddr::V4(address), false) => (address.octets().to_vec(), 16),
        (std::net::IpAddr::V6(address), true) => (address.octets().to_vec(), 8),
        (std::net::IpAddr::V6(address), false) => (address.octets().to_vec(), 24),
    };
    expression(attributes, "payload", |a| {
        a.network_number(1, REGISTER);
        a.network_number(2, NETWORK_HEADER);
        a.network_number(3, offset);
        a.network_number(4, u32::try_from(first.len()).unwrap_or(0));
    });
    let bits = (0..first.len()).map(|byte| usize::from(subnet.prefix()).saturating_sub(8 * byte).min(8));
    let mask: Vec<u8> = bits.map(|bits| u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(0)).collect();
    masked(attributes, &mask);
    compare(attributes, how, &first);
}

fn verdict(attributes: &mut Attributes<'_>, code: u32) {
    expression(attributes, "immediate", |a| {
        a.network_number(1, 0);
        a.nest(2, |a| a.nest(DATA_VERDICT, |a| a.network_number(1, code)));
    });
}

fn network_number(attributes: Attributed<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attributes.get(kind)?.try_into().ok()?))
}
