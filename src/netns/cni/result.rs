//! What plugins say, read and looked at before it is believed.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::plugin::Plugin;
use super::record::Record;
use super::{Attached, CniError, Failure, Own};
use crate::netns::managed::Inside;

/// Of one link, and in a `resolv.conf`.
const MOST: usize = 32;
const LONGEST_NAME: usize = 253;

/// The parts of a result that matter here; the rest goes from plugin to plugin unread.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    #[serde(deserialize_with = "or_nothing")]
    interfaces: Vec<SaidInterface>,
    #[serde(deserialize_with = "or_nothing")]
    ips: Vec<SaidAddress>,
    #[serde(deserialize_with = "or_nothing")]
    dns: SaidNames,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SaidInterface {
    name: String,
    sandbox: String,
}

#[derive(Deserialize)]
struct SaidAddress {
    address: String,
    #[serde(default, deserialize_with = "or_nothing")]
    gateway: String,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SaidNames {
    #[serde(deserialize_with = "or_nothing")]
    nameservers: Vec<IpAddr>,
    domain: String,
    #[serde(deserialize_with = "or_nothing")]
    search: Vec<String>,
    #[serde(deserialize_with = "or_nothing")]
    options: Vec<String>,
}

/// In JSON that is written by hand, nothing may be `null`.
fn or_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// What the chain says of one link.
pub(super) struct OfLink {
    addresses: Vec<Own>,
    resolv_conf: String,
}

/// Of an ADD: an object of the version that was asked for.
pub(super) fn read(plugin: Plugin<'_>, kept: &Record, bytes: &[u8]) -> Result<Value, CniError> {
    let nonsense = |why: String| plugin.failed("ADD", kept, Failure::Nonsense(why));
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| nonsense(error.to_string()))?;
    let Some(object) = value.as_object_mut() else { return Err(nonsense("it is no object".to_owned())) };
    let version = object.entry("cniVersion").or_insert_with(|| kept.list.version.clone().into());
    if *version != kept.list.version.as_str() {
        return Err(nonsense(format!("its cniVersion is {version}, and {} was asked for", kept.list.version)));
    }
    Said::deserialize(&value).map_err(|error| nonsense(error.to_string()))?;
    Ok(value)
}

/// The same result, for the namespace at another path: plugins compare it with `CNI_NETNS`.
pub(super) fn moved(result: &Value, from: &str, to: &str) -> Value {
    let mut result = result.clone();
    let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten();
    for sandbox in interfaces.filter_map(|interface| interface.get_mut("sandbox")).filter(|sandbox| *sandbox == from) {
        *sandbox = to.into();
    }
    result
}

/// The link of that name in the namespace, with all of its addresses.
pub(super) fn of_link(network: &str, result: &Value, name: &str) -> Result<OfLink, CniError> {
    let wrong = |what: String| CniError::Result { network: network.to_owned(), what };
    let said = Said::deserialize(result).map_err(|error| wrong(error.to_string()))?;
    let is_it = |interface: &SaidInterface| interface.name == name && !interface.sandbox.is_empty();
    let Some(link) = said.interfaces.iter().position(is_it) else {
        return Err(wrong(format!("the plugins made no {name} in the namespace: one of them has to (bridge, ptp, macvlan and the like)")));
    };
    let of_it = said.ips.iter().filter(|own| own.interface.is_none_or(|at| at == link));
    let read = |own: &SaidAddress| {
        own_of(own).ok_or_else(|| wrong(format!("the plugins say the address {:?} with the gateway {:?}", own.address, own.gateway)))
    };
    let mut addresses = of_it.map(read).collect::<Result<Vec<_>, _>>()?;
    addresses.sort_by_key(|own| own.address.is_ipv6());
    if addresses.is_empty() || addresses.len() > MOST {
        let count = addresses.len();
        return Err(wrong(format!(
            "the plugins gave {name} {count} addresses, not 1 to {MOST}: its configuration needs an `ipam` that gives one"
        )));
    }
    let resolv_conf = resolv_conf(&said.dns).ok_or_else(|| wrong("the names that the plugins say (`dns`) are none".to_owned()))?;
    Ok(OfLink { addresses, resolv_conf })
}

fn own_of(own: &SaidAddress) -> Option<Own> {
    let (address, prefix) = own.address.split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let gateway = if own.gateway.is_empty() { None } else { Some(own.gateway.parse().ok()?) };
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Own { address, prefix, gateway })
}

/// `None`: something is in it that would be another line there, or too much.
fn resolv_conf(dns: &SaidNames) -> Option<String> {
    let is_word = |word: &String| (1..=LONGEST_NAME).contains(&word.len()) && word.bytes().all(|c| c.is_ascii_graphic());
    let words = || dns.search.iter().chain(&dns.options).chain(Some(&dns.domain).filter(|domain| !domain.is_empty()));
    if dns.nameservers.len() > MOST || words().count() > MOST || !words().all(is_word) {
        return None;
    }
    let mut text = String::new();
    let mut line = |key: &str, words: String| {
        if !words.is_empty() {
            _ = writeln!(text, "{key} {words}");
        }
    };
    line("domain", dns.domain.clone());
    line("search", dns.search.join(" "));
    dns.nameservers.iter().for_each(|server| line("nameserver", server.to_string()));
    line("options", dns.options.join(" "));
    Some(text)
}

impl OfLink {
    /// As the namespace has it. One that a plugin says, and that is not there, is an error; prefixes are the kernel's.
    pub(super) fn seen(self, network: &str, inside: &Inside) -> Result<Attached, CniError> {
        let mut addresses = Vec::new();
        for own in &self.addresses {
            let Some((_, prefix)) = inside.addresses.iter().find(|(address, _)| *address == own.address) else {
                return Err(CniError::lie(network, own, inside));
            };
            addresses.push(Own { prefix: *prefix, ..*own });
        }
        if !inside.is_up {
            return Err(CniError::Lie { network: network.to_owned(), said: addresses[0].to_string(), found: "it down".to_owned() });
        }
        Ok(Attached { network: network.to_owned(), addresses, mtu: inside.mtu, resolv_conf: self.resolv_conf })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(more: &Value) -> Value {
        let mut result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/old"}],
            "ips": [
                {"interface": 1, "address": "fd00::2/64", "gateway": "fd00::1"},
                {"interface": 0, "address": "10.0.0.1/24"},
                {"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
            ],
        });
        more.as_object().unwrap().iter().for_each(|(key, value)| result[key] = value.clone());
        result
    }

    fn inside(addresses: &[&str], is_up: bool) -> Inside {
        let own = |text: &&str| text.split_once('/').map(|(address, prefix)| (address.parse().unwrap(), prefix.parse().unwrap())).unwrap();
        Inside { is_there: true, is_up, mtu: 1450, addresses: addresses.iter().map(own).collect() }
    }

    fn attached(more: &Value, addresses: &[&str]) -> Result<Attached, CniError> {
        of_link("n", &result(more), "eth0").and_then(|said| said.seen("n", &inside(addresses, true)))
    }

    #[test]
    fn the_links_own_addresses_count_as_the_namespace_has_them() {
        let seen = attached(&json!({"dns": null}), &["10.0.0.2/32", "fe80::1/64", "fd00::2/64"]).unwrap();
        assert_eq!((seen.mtu, seen.resolv_conf.as_str()), (1450, ""));
        let shown: Vec<String> = seen.addresses.iter().map(|own| format!("{own} {:?}", own.gateway)).collect();
        assert_eq!(shown, ["10.0.0.2/32 Some(10.0.0.1)", "fd00::2/64 Some(fd00::1)"]);
    }

    #[test]
    fn what_is_not_there_is_a_lie() {
        let error = attached(&json!({}), &["10.0.0.3/24", "fd00::2/64"]).unwrap_err().to_string();
        assert_eq!(error, "network n: the plugins say that eth0 has 10.0.0.2/24, the namespace has 10.0.0.3/24, fd00::2/64");
        let nothing = Inside { is_there: false, is_up: false, mtu: 0, addresses: Vec::new() };
        let error = of_link("n", &result(&json!({})), "eth0").unwrap().seen("n", &nothing).unwrap_err().to_string();
        assert!(error.ends_with("the namespace has no eth0"), "{error}");
        let down = of_link("n", &result(&json!({})), "eth0").unwrap().seen("n", &inside(&["10.0.0.2/24", "fd00::2/64"], false));
        assert!(down.unwrap_err().to_string().ends_with("has it down"));
    }

    #[test]
    fn names_make_a_resolv_conf_and_nothing_else() {
        let dns =
            json!({"dns": {"nameservers": ["10.0.0.53", "fd00::53"], "domain": "a.b", "search": ["a.b", "c"], "options": ["ndots:2"]}});
        let there = ["10.0.0.2/24", "fd00::2/64"];
        let lines = "domain a.b\nsearch a.b c\nnameserver 10.0.0.53\nnameserver fd00::53\noptions ndots:2\n";
        assert_eq!(attached(&dns, &there).unwrap().resolv_conf, lines);
        for dns in [json!({"domain": "a\nnameserver 6.6.6.6"}), json!({"search": [""]}), json!({"options": vec!["x"; MOST + 1]})] {
            attached(&json!({ "dns": dns }), &there).unwrap_err();
        }
        attached(&json!({"dns": {"nameservers": ["here"]}}), &there).unwrap_err();
    }

    #[test]
    fn a_result_without_a_link_or_an_address_says_what_is_missing() {
        for (more, word) in [
            (json!({"interfaces": null}), "no eth0"),
            (json!({"interfaces": [{"name": "eth0"}]}), "no eth0"),
            (json!({"ips": []}), "`ipam`"),
            (json!({"ips": [{"address": "10.0.0.2"}]}), "\"10.0.0.2\""),
            (json!({"ips": [{"address": "10.0.0.2/33"}]}), "10.0.0.2/33"),
            (json!({"ips": [{"address": "10.0.0.2/24", "gateway": "x"}]}), "\"x\""),
        ] {
            let error = attached(&more, &["10.0.0.2/24"]).unwrap_err().to_string();
            assert!(error.contains(word), "{more}: {error}");
        }
    }

    #[test]
    fn a_namespace_that_is_elsewhere_is_told_so() {
        let moved = moved(&result(&json!({})), "/old", "/new");
        assert_eq!((&moved["interfaces"][1]["sandbox"], moved["interfaces"][0].get("sandbox")), (&json!("/new"), None));
    }
}
