//! Networks that are furnished by CNI plugins, as the specification has it (<https://www.cni.dev/docs/spec/>, versions 0.3.0 to 1.1.0): ADD gives a
//! namespace its link, CHECK looks whether all is there, DEL takes it back.
//!
//! ```text
//!   conf_dir/*.conflist ─► list ─► chain: plugin ─ result ─► plugin ─ result ─► … ─► looked at inside ─► Attached
//!                                    │ each a process, with a deadline, a process group, and bounded output
//!                                    └► record: written before the first plugin is asked, removed after the last one's DEL
//! ```
//!
//! [`list`] reads configurations, [`plugin`] runs one plugin, [`result`] reads what it says, [`record`] keeps what a later DEL needs. All of it blocks;
//! [`aside`] does it for those who must not, and [`folders`] sees to the DEL when a folder with a record goes.
//!
//! What it promises: an ADD that fails is undone by a DEL of the whole chain, in reverse, and what could not be undone is told with the rest and stays on
//! record · a DEL asks all plugins, whatever one of them says, and can be repeated · what a plugin says is looked at: what is on the link in the namespace
//! is what counts, and an address that is not there is an error · nothing waits for longer than [`Cni::bound`].
//!
//! What can go wrong: see [`CniError`]; what to do about it is in its words. Whoever ends this process in the middle of a chain leaves the plugin that runs
//! just then to itself; the next DEL by the record takes back what it did, if it has ended by then.
//!
//! It deliberately does not know pools, leases, engines, nor when a namespace may be furnished or stripped. It has no capability values to give (port
//! mappings, bandwidth): namespaces are made before anybody knows what they are for.

pub mod aside;
mod error;
mod folders;
mod list;
mod plugin;
mod record;
mod result;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::managed::{INSIDE, Inside, look_inside};
pub use aside::{Aside, Attacher};
pub use error::{CniError, Failure};
pub use folders::GivesBack;
use plugin::Plugins;
pub use record::network_of;
use record::{Locked, Record};

/// In a buddy's folder: what its plugins were asked and said.
pub const RECORD: &str = "cni.json";
/// Plugins of one network.
pub const MOST_PLUGINS: u32 = 16;
/// Where configurations are, as everybody has them.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where plugins are: as everybody has them, and as Debian does.
pub const BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// Where configurations and plugins are, and how long a plugin may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cni {
    /// Files in it that end in `.conflist`, `.conf` or `.json`.
    pub conf_dir: PathBuf,
    /// The first one that has a plugin counts.
    pub bin_dirs: Vec<PathBuf>,
    /// For each plugin.
    pub timeout: Duration,
}

impl Default for Cni {
    fn default() -> Self {
        Self { conf_dir: CONF_DIR.into(), bin_dirs: BIN_DIRS.map(PathBuf::from).to_vec(), timeout: Duration::from_secs(10) }
    }
}

/// A namespace has its link: what that is, by the namespace itself, and by what the plugins said where only they know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// In the configuration of CNI.
    pub network: String,
    /// At least one; IPv4 first.
    pub addresses: Vec<Own>,
    /// Of the link.
    pub mtu: u32,
    /// A `resolv.conf`; empty: the plugins said nothing about names.
    pub resolv_conf: String,
}

/// An address inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Of the namespace.
    pub address: IpAddr,
    /// Of its subnet.
    pub prefix: u8,
    /// Where the rest is reached.
    pub gateway: Option<IpAddr>,
}

/// What an ADD is for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// By the name in its configuration.
    pub network: &'a str,
    /// `CNI_CONTAINERID`: nobody else's, ever.
    pub id: &'a str,
    /// `CNI_ARGS`; each name and value without `;` and `=`.
    pub args: &'a [(&'a str, &'a str)],
}

/// What a network has before its plugins are asked for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Means {
    /// Of the specification.
    pub version: String,
    /// Each once.
    pub programs: Vec<PathBuf>,
}

impl Cni {
    /// Looks whether a network has what it needs. Nothing is started.
    ///
    /// # Errors
    /// All that is missing, or wrong; see [`CniError`].
    pub fn means(&self, network: &str) -> Result<Means, Vec<CniError>> {
        let list = list::find(&self.conf_dir, network).map_err(|error| vec![error])?;
        let wanted: BTreeSet<&str> = list.types().chain(list.address_types()).collect();
        let (mut programs, mut missing) = (Vec::new(), Vec::new());
        for plugin in wanted {
            match plugin::find(network, plugin, &self.bin_dirs) {
                Ok(program) => programs.push(program),
                Err(error) => missing.push(error),
            }
        }
        if missing.is_empty() { Ok(Means { version: list.version, programs }) } else { Err(missing) }
    }

    /// ADD, all of it or nothing. `record` is a file that is not there, in a folder that is.
    ///
    /// # Errors
    /// See [`CniError`]. With [`CniError::NotUndone`] the record is still there, for [`Cni::detach`].
    pub fn attach(&self, wanted: &Wanted<'_>, namespace: BorrowedFd<'_>, record: &Path) -> Result<Attached, CniError> {
        let list = list::find(&self.conf_dir, wanted.network)?;
        let plugins = Plugins::of(&list, &self.bin_dirs, self.timeout)?;
        let locked = Locked::beside(record)?.ok_or_else(|| CniError::record(record, "there is no folder for it"))?;
        let args = [("IgnoreUnknown", "1")].iter().chain(wanted.args).map(|(name, value)| format!("{name}={value}"));
        let mut kept = Record {
            list,
            id: wanted.id.to_owned(),
            args: args.collect::<Vec<_>>().join(";"),
            namespace: path_of(namespace),
            result: None,
            attached: None,
        };
        // First, so that whatever becomes of this process, somebody can take back what was begun.
        locked.write(&kept)?;
        let attached = add(&plugins, &mut kept, namespace).and_then(|attached| {
            kept.attached = Some(attached.clone());
            locked.write(&kept).map(|()| attached)
        });
        attached.map_err(|error| match delete(&plugins, &kept, &kept.namespace).and_then(|()| locked.remove()) {
            Ok(()) => error,
            Err(left) => CniError::NotUndone { error: Box::new(error), left: Box::new(left) },
        })
    }

    /// What is on record; `None`: there is no record of a whole ADD. With `ask`, the plugins are asked to CHECK, if their network has them do so, and the
    /// namespace is looked at: for those that nobody is in, who might have changed it.
    ///
    /// # Errors
    /// See [`CniError`].
    pub fn look(&self, namespace: BorrowedFd<'_>, record: &Path, ask: bool) -> Result<Option<Attached>, CniError> {
        let Some(locked) = Locked::beside(record)? else { return Ok(None) };
        let Some(kept) = locked.read()? else { return Ok(None) };
        let (Some(said), Some(result)) = (&kept.attached, &kept.result) else { return Ok(None) };
        if !ask {
            return Ok(Some(said.clone()));
        }
        if kept.list.can_check() {
            let (path, plugins) = (path_of(namespace), Plugins::of(&kept.list, &self.bin_dirs, self.timeout)?);
            let previous = result::moved(result, &kept.namespace, &path);
            for plugin in plugins.iter() {
                plugin.call("CHECK", &kept, &path, Some(&previous))?;
            }
        }
        let inside = inside(&kept, namespace)?;
        let is_there = |own: &Own| inside.addresses.iter().any(|(address, _)| *address == own.address);
        match said.addresses.iter().find(|own| !is_there(own)) {
            None => Ok(Some(said.clone())),
            Some(missing) => Err(CniError::lie(&said.network, &missing.address, &inside)),
        }
    }

    /// DEL, by the record, which goes when all plugins have done it; none is there: nothing is to be done. Without `namespace` plugins are told that it is
    /// gone.
    ///
    /// # Errors
    /// All that plugins said against it. The record stays, and it can be tried again.
    pub fn detach(&self, namespace: Option<BorrowedFd<'_>>, record: &Path) -> Result<(), CniError> {
        let Some(locked) = Locked::beside(record)? else { return Ok(()) };
        let Some(kept) = locked.read()? else { return Ok(()) };
        let plugins = Plugins::of(&kept.list, &self.bin_dirs, self.timeout)?;
        delete(&plugins, &kept, &namespace.map(path_of).unwrap_or_default())?;
        locked.remove()
    }

    /// What was asked for is answered by then: an ADD and its undoing, after another one's.
    #[must_use]
    pub fn bound(&self) -> Duration {
        (self.timeout + plugin::ENDED_WITHIN) * (4 * MOST_PLUGINS)
    }
}

/// A path that leads there from wherever a plugin is, as long as this process has it open.
fn path_of(namespace: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

fn add(plugins: &Plugins, kept: &mut Record, namespace: BorrowedFd<'_>) -> Result<Attached, CniError> {
    for plugin in plugins.iter() {
        let said = plugin.call("ADD", kept, &kept.namespace, kept.result.as_ref())?;
        kept.result = Some(result::read(plugin, kept, &said)?);
    }
    let result = kept.result.as_ref().unwrap_or(&Value::Null);
    let said = result::of_link(&kept.list.name, result, INSIDE)?;
    let inside = inside(kept, namespace)?;
    said.seen(&kept.list.name, &inside)
}

/// The whole chain, whatever the parts of it say.
fn delete(plugins: &Plugins, kept: &Record, path: &str) -> Result<(), CniError> {
    let previous = kept.result.as_ref().map(|result| result::moved(result, &kept.namespace, path));
    let failures = plugins.iter().rev().filter_map(|plugin| plugin.call("DEL", kept, path, previous.as_ref()).err());
    CniError::all(failures.collect())
}

fn inside(kept: &Record, namespace: BorrowedFd<'_>) -> Result<Inside, CniError> {
    let looked = look_inside(namespace);
    looked.map_err(|error| CniError::Unseen { network: kept.list.name.clone(), why: crate::causes::with_causes(&error) })
}
