//! What can go wrong with CNI plugins, in words for whoever keeps them.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Own;
use crate::netns::managed::Inside;

/// Why a namespace has no link, or has it still.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CniError {
    /// Not in the folder of configurations.
    #[error("there is no CNI network {network:?} in {dir}{there}")]
    Unknown {
        /// The one that is wanted.
        network: String,
        /// Where it was looked for.
        dir: String,
        /// What else is there, and what could not be read, with how it goes on from the rest.
        there: String,
    },
    /// In a file of a configuration.
    #[error("the CNI configuration in {file}: {mistake}")]
    Configuration {
        /// Its path.
        file: String,
        /// What is wrong.
        mistake: String,
    },
    /// Nothing was done then.
    #[error(
        "network {network}: there is no CNI plugin {plugin:?} in {dirs}: install it (Debian: containernetworking-plugins), or name its folder in cni.bin_dirs"
    )]
    NoPlugin {
        /// Of CNI.
        network: String,
        /// Its `type`.
        plugin: String,
        /// Where it was looked for.
        dirs: String,
    },
    /// Nothing was done then.
    #[error("network {network}: the CNI plugin {file} is no program that may be started: is it a file, with chmod +x?")]
    NotExecutable {
        /// Of CNI.
        network: String,
        /// Its path.
        file: String,
    },
    /// It ran, or was to.
    #[error("network {network}: CNI plugin {plugin}, {command}: {failure}")]
    Plugin {
        /// Of CNI.
        network: String,
        /// Its `type`.
        plugin: String,
        /// `ADD`, `CHECK`, `DEL`.
        command: String,
        /// How it ended.
        failure: Box<Failure>,
    },
    /// The chain's last word is not what nspool can hand out.
    #[error("network {network}: {what}")]
    Result {
        /// Of CNI.
        network: String,
        /// What is wrong with it.
        what: String,
    },
    /// What plugins say is looked at.
    #[error("network {network}: the plugins say that eth0 has {said}, the namespace has {found}")]
    Lie {
        /// Of CNI.
        network: String,
        /// By the plugins.
        said: String,
        /// By the kernel.
        found: String,
    },
    /// The kernel does not tell.
    #[error("network {network}: the namespace cannot be looked into: {why}")]
    Unseen {
        /// Of CNI.
        network: String,
        /// The kernel's words.
        why: String,
    },
    /// Not all of it; the record stays.
    #[error("{error}; and what was done could not be undone: {left}")]
    NotUndone {
        /// What it was undone for.
        error: Box<CniError>,
        /// What the undoing came to.
        left: Box<CniError>,
    },
    /// Of one chain, each by itself.
    #[error("{}", Self::in_a_row(.0))]
    Several(Vec<CniError>),
    /// It keeps what a DEL needs: without it nothing is done.
    #[error("the record {file}: {what}")]
    Record {
        /// Its path.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// No thread for it; or whoever was asked has ended, and it may have been done.
    #[error("CNI plugins cannot be asked: {0}")]
    Stopped(String),
}

/// How a plugin ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// By the kernel.
    NotStarted(String),
    /// In the words that the specification gives it.
    Said {
        /// Below 100 the specification's.
        code: u64,
        /// Short.
        msg: String,
        /// Long, or empty.
        details: String,
    },
    /// Not in those words.
    Exited {
        /// `exit status: 1`.
        status: String,
        /// The end of what it wrote there.
        stderr: String,
    },
    /// It was ended, with all that it had started.
    TimedOut(Duration),
    /// As above.
    TooMuch {
        /// What it may write, in bytes.
        most: usize,
    },
    /// It ended well, and what it wrote is no result.
    Nonsense(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(why) => write!(f, "it cannot be started: {why}"),
            Self::Said { code, msg, details } => {
                let details = if details.is_empty() { String::new() } else { format!(" ({details})") };
                write!(f, "{msg}{details}, code {code}{}", hint_of(*code, msg))
            }
            Self::Exited { status, stderr } if stderr.is_empty() => write!(f, "it ended without a word, {status}"),
            Self::Exited { status, stderr } => write!(f, "it ended with {status}: {stderr}{}", hint_of(0, stderr)),
            Self::TimedOut(limit) => write!(f, "it did not end within {limit:?} (cni.timeout) and was killed"),
            Self::TooMuch { most } => write!(f, "it wrote more than {most} bytes and was killed"),
            Self::Nonsense(why) => write!(f, "what it answered is no result: {why}"),
        }
    }
}

/// What an operator can do, where the plugin's words do not say it.
fn hint_of(code: u64, words: &str) -> &'static str {
    let refused = ["operation not permitted", "permission denied", "read-only file system"];
    match code {
        1 => ": write a cniVersion in the configuration that this plugin knows",
        2 | 7 => ": the network's configuration is at fault",
        11 => ": it asks to be tried again later",
        _ if refused.iter().any(|refusal| words.to_lowercase().contains(refusal)) => {
            ": it may need more than the powers and folders that nspool's helper process has (systemd/cni.conf)"
        }
        _ => "",
    }
}

impl CniError {
    pub(super) fn record(file: &Path, what: impl fmt::Display) -> Self {
        Self::Record { file: file.display().to_string(), what: what.to_string() }
    }

    pub(super) fn lie(network: &str, said: &impl fmt::Display, inside: &Inside) -> Self {
        let shown = |(address, prefix): &(std::net::IpAddr, u8)| format!("{address}/{prefix}");
        let found = match (inside.is_there, inside.addresses.as_slice()) {
            (false, _) => "no eth0".to_owned(),
            (true, []) => "no address there".to_owned(),
            (true, addresses) => addresses.iter().map(shown).collect::<Vec<_>>().join(", "),
        };
        Self::Lie { network: network.to_owned(), said: said.to_string(), found }
    }

    /// None of them is none; one is itself.
    pub(super) fn all(mut failures: Vec<Self>) -> Result<(), Self> {
        match (failures.len(), failures.pop()) {
            (_, None) => Ok(()),
            (1, Some(only)) => Err(only),
            (_, Some(last)) => {
                failures.push(last);
                Err(Self::Several(failures))
            }
        }
    }

    fn in_a_row(errors: &[Self]) -> String {
        errors.iter().map(Self::to_string).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_who_and_what_to_do() {
        let said = |code, msg: &str| {
            let failure = Failure::Said { code, msg: msg.to_owned(), details: String::new() };
            CniError::Plugin { network: "n".to_owned(), plugin: "bridge".to_owned(), command: "ADD".to_owned(), failure: Box::new(failure) }
                .to_string()
        };
        assert!(said(1, "incompatible CNI versions").contains("cniVersion"), "{}", said(1, "x"));
        assert!(said(100, "open /x: Operation not permitted").contains("systemd/cni.conf"));
        assert_eq!(said(100, "no addresses"), "network n: CNI plugin bridge, ADD: no addresses, code 100");
    }

    #[test]
    fn many_are_told_with_the_one_they_follow() {
        let one = |what: &str| CniError::Record { file: "f".to_owned(), what: what.to_owned() };
        assert_eq!(CniError::all(Vec::new()), Ok(()));
        assert_eq!(CniError::all(vec![one("a")]), Err(one("a")));
        let left = Box::new(CniError::all(vec![one("a"), one("b")]).unwrap_err());
        let error = CniError::NotUndone { error: Box::new(one("x")), left }.to_string();
        assert!(error.contains("f: x;") && error.ends_with("the record f: a; the record f: b"), "{error}");
    }
}
