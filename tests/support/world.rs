//! What the pool needs from the world, and namespaces to hand out, for tests and benches.

use std::sync::Arc;
use std::time::Duration;

use nspool::pool::{Address, Moment, Namespace, SlotIndex, Token, World};

/// CLOCK_BOOTTIME.
pub fn boot_time() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

/// The real clock and real randomness.
pub fn real() -> World {
    World {
        now: Box::new(boot_time),
        token: Box::new(|| {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).unwrap();
            Token(bytes)
        }),
    }
}

/// As large as those of a real engine.
pub fn namespace(slot: SlotIndex, generation: u64, use_number: u64) -> Arc<Namespace> {
    let namespace_id = format!("nspool-test-{slot}-{generation}-{use_number}-k3x9");
    Arc::new(Namespace {
        network_mode: format!("container:{namespace_id}"),
        host_config: format!(
            r#"{{"HostConfig":{{"NetworkMode":"container:{namespace_id}","CapDrop":["NET_RAW"],"Mounts":[{{"Type":"bind","Source":"/run/nspool/test/etc/hosts","Target":"/etc/hosts","ReadOnly":true}}]}},"Labels":{{"nspool.namespace_id":"{namespace_id}"}}}}"#
        ),
        namespace_id,
        container_id: format!("{slot:032x}{generation:032x}").into(),
        tell_container_id: true,
        started_at: String::new(),
        folder: String::new(),
        addresses: vec![Address { address: format!("172.17.{}.{}/16", slot / 250, slot % 250 + 2), gateway: "172.17.0.1".into() }],
        resolv_conf: "nameserver 127.0.0.53\noptions edns0\n".into(),
        mtu: 1500,
        pid: 4000 + slot,
    })
}
