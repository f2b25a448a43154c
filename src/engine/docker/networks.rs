//! Networks: made, listed, removed. bollard makes and removes; what is only read is read by types of ours, as everywhere here.
//!
//! podman makes none for nspool: its networks have a bridge and rules only while a container is on them, and it gives addresses out of all of
//! the subnet whatever range is asked for over this API (4.3; so nothing would keep a slot's address from being a container's, too).

use std::collections::BTreeMap;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use serde::Deserialize;

use super::{Docker, errors};
use crate::engine::{EngineError, EngineKind, ErrorClass, Labels, Network, NetworkRange, NetworkSpec};

const BRIDGE: &str = "com.docker.network.bridge.name";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const MTU: &str = "com.docker.network.driver.mtu";

const NOT_PODMANS: &str = "podman gives a network its bridge and its rules only while a container of its own is on it: leave engine_network out, \
                           and nspool makes a bridge of its own";

/// Of `/networks`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    name: String,
    id: String,
    driver: Option<String>,
    internal: Option<bool>,
    #[serde(rename = "IPAM")]
    ipam: Option<Addresses>,
    options: Option<BTreeMap<String, String>>,
    labels: Option<Labels>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Addresses {
    config: Option<Vec<Range>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Range {
    subnet: Option<String>,
    #[serde(rename = "IPRange")]
    ip_range: Option<String>,
    gateway: Option<String>,
}

/// Of `/containers/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct User {
    names: Option<Vec<String>>,
    id: String,
    network_settings: Option<Settings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    networks: Option<BTreeMap<String, Option<Endpoint>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(rename = "NetworkID")]
    network_id: Option<String>,
}

pub(super) async fn list(docker: &Docker) -> Result<Vec<Network>, EngineError> {
    let rows: Vec<Row> = docker.reader.get("/networks").await.map_err(|error| errors::convert("networks", "", &error))?;
    Ok(rows.into_iter().map(network).collect())
}

fn network(row: Row) -> Network {
    let options = row.options.unwrap_or_default();
    let option = |key: &str| options.get(key).cloned().unwrap_or_default();
    let text = Option::unwrap_or_default;
    let ranges = row.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let range = |range: Range| NetworkRange { subnet: text(range.subnet), range: text(range.ip_range), gateway: text(range.gateway) };
    Network {
        id: row.id,
        driver: text(row.driver),
        internal: row.internal.unwrap_or(false),
        made_with: NetworkSpec {
            name: row.name,
            bridge: option(BRIDGE),
            ranges: ranges.into_iter().map(range).collect(),
            mtu: option(MTU).parse().unwrap_or(0),
            masquerade: option(MASQUERADE) != "false",
            labels: row.labels.unwrap_or_default(),
        },
    }
}

/// A second network of the name, made in the same moment by somebody else, is not left beside that.
pub(super) async fn create(docker: &Docker, spec: &NetworkSpec) -> Result<(), EngineError> {
    if docker.kind("create network", &spec.name).await? == EngineKind::Podman {
        return Err(errors::refused("create network", ErrorClass::Refused, &spec.name, NOT_PODMANS));
    }
    let made = docker.client.create_network(request(spec)).await;
    let made = made.map_err(|error| errors::convert("create network", &spec.name, &error))?;
    if !made.warning.is_empty() {
        tracing::warn!(network = spec.name, warning = made.warning, "the engine warns of this network");
    }
    if !made.warning.contains("already exists") {
        return Ok(());
    }
    remove(docker, &made.id).await?;
    Err(errors::refused("create network", ErrorClass::NameTaken, &spec.name, &made.warning))
}

fn request(spec: &NetworkSpec) -> NetworkCreateRequest {
    let options = [(BRIDGE, spec.bridge.clone()), (MASQUERADE, spec.masquerade.to_string()), (MTU, spec.mtu.to_string())];
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let ranges = spec.ranges.iter().map(|range| IpamConfig {
        subnet: text(&range.subnet),
        ip_range: text(&range.range),
        gateway: text(&range.gateway),
        auxiliary_addresses: None,
    });
    NetworkCreateRequest {
        name: spec.name.clone(),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam { config: Some(ranges.collect()), ..Default::default() }),
        enable_ipv6: Some(spec.ranges.iter().any(|range| range.subnet.contains(':'))),
        options: Some(options.map(|(key, value)| (key.to_owned(), value)).into()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        ..Default::default()
    }
}

pub(super) async fn users(docker: &Docker, network: &Network) -> Result<Vec<String>, EngineError> {
    let name = &network.made_with.name;
    let all: Vec<User> =
        docker.reader.get("/containers/json?all=1").await.map_err(|error| errors::convert("network users", name, &error))?;
    let uses = |user: &User| {
        let networks = user.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        // One that was never started has the name alone.
        let id = |endpoint: &Option<Endpoint>| endpoint.as_ref().and_then(|endpoint| endpoint.network_id.clone());
        networks.into_iter().flatten().any(|(key, endpoint)| key == name || id(endpoint).as_ref() == Some(&network.id))
    };
    let called = |user: User| {
        let first = user.names.unwrap_or_default().into_iter().next();
        first.map_or(user.id, |name| name.trim_start_matches('/').to_owned())
    };
    Ok(all.into_iter().filter(uses).map(called).collect())
}

pub(super) async fn remove(docker: &Docker, id: &str) -> Result<(), EngineError> {
    super::path_safe("remove network", id)?;
    match docker.client.remove_network(id).await.map_err(|error| errors::convert("remove network", id, &error)) {
        Err(error) if error.class == ErrorClass::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_found() {
        let range =
            |subnet: &str, range: &str, gateway: &str| NetworkRange { subnet: subnet.into(), range: range.into(), gateway: gateway.into() };
        for masquerade in [true, false] {
            let spec = NetworkSpec {
                name: "fn".into(),
                bridge: "ns-fast".into(),
                ranges: vec![range("10.1.0.0/16", "10.1.0.0/17", "10.1.0.1"), range("fd00::/64", "fd00::/65", "fd00::1")],
                mtu: 1400,
                masquerade,
                labels: [("nspool.pool".to_owned(), "a".to_owned())].into(),
            };
            let mut told = serde_json::to_value(request(&spec)).unwrap();
            assert_eq!(told["EnableIPv6"], true);
            told["Id"] = "1".into();
            let found = network(serde_json::from_value(told).unwrap());
            assert_eq!((found.id.as_str(), found.driver.as_str(), found.internal), ("1", "bridge", false));
            assert_eq!(found.made_with, spec);
        }
    }

    /// As Docker 20.10 tells of its network `host`, and what the API says may be missing.
    #[test]
    fn networks_of_others_are_read_whatever_they_leave_out() {
        let rows = r#"[{"Name":"host","Id":"6d55","Scope":"local","Driver":"host","IPAM":{"Driver":"default","Options":null,"Config":[]},
            "Internal":false,"Options":{},"Labels":{}},{"Name":"x","Id":"1","IPAM":{"Config":null},"Options":null,"Labels":null}]"#;
        let rows: Vec<Row> = serde_json::from_str(rows).unwrap();
        let found: Vec<Network> = rows.into_iter().map(network).collect();
        assert_eq!((found[0].driver.as_str(), found[0].made_with.ranges.len(), found[1].made_with.mtu), ("host", 0, 0));
    }
}
