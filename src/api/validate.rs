//! From what a caller wrote to what the pool takes: every bad field is found and named, all of them at once.
//!
//! The bounds are those in the comments of the contract, and `[pool] longest` for durations. Lengths count characters where the contract says
//! characters, bytes where it says bytes. Control characters are refused everywhere: these texts end up in logs and on terminals.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::time::Duration;

use super::status::{BadField, Refusal};
use super::{About, Limits};
use crate::engine::Credentials;
use crate::image::build::{Context, Definition};
use crate::image::pull::registry_host;
use crate::image::push::Source;
use crate::image::reference::Reference;
use crate::pool::{ConnectionId, Lifetime, NetworkIndex, Request};
use crate::proto;

const MOST_CHARACTERS: usize = 128;
const MOST_LABELS: usize = 16;
const MOST_KEY_BYTES: usize = 63;
const MOST_VALUE_BYTES: usize = 256;
/// Of Linux' own paths.
const MOST_PATH_BYTES: usize = 4096;
/// Tokens of registries are some kilobytes long at most.
const MOST_SECRET_BYTES: usize = 16 << 10;

/// Collects what is wrong with a request.
#[derive(Debug, Default)]
pub(super) struct Checks {
    bad: Vec<BadField>,
}

impl Checks {
    pub(super) fn bad(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.bad.push(BadField { field: field.into(), why: why.into() });
    }

    /// Absent, or one of its two forms.
    fn auth(&mut self, auth: Option<&proto::RegistryAuth>) {
        let Some(auth) = auth else { return };
        for (field, text) in [("username", &auth.username), ("password", &auth.password), ("identity_token", &auth.identity_token)] {
            if text.len() > MOST_SECRET_BYTES {
                self.bad(format!("auth.{field}"), format!("has {} bytes, at most {MOST_SECRET_BYTES} are allowed", text.len()));
            }
        }
        let (account, token) = (!auth.username.is_empty() && !auth.password.is_empty(), !auth.identity_token.is_empty());
        let half = account != (!auth.username.is_empty() || !auth.password.is_empty());
        if half || account == token {
            self.bad("auth", "takes either username and password, or identity_token");
        }
    }

    /// At most 128 characters, none of them a control character.
    pub(super) fn text(&mut self, field: &str, text: &str) {
        // Bytes are at least as many as characters, so that the count is rarely needed.
        if text.len() > MOST_CHARACTERS && text.chars().count() > MOST_CHARACTERS {
            self.bad(field, format!("has {} characters, at most {MOST_CHARACTERS} are allowed", text.chars().count()));
        }
        if text.chars().any(char::is_control) {
            self.bad(field, "has control characters");
        }
    }

    /// Absent is fine; else between zero (or just above) and `longest`.
    pub(super) fn duration(
        &mut self,
        field: &str,
        given: Option<prost_types::Duration>,
        zero_is_fine: bool,
        longest: Duration,
    ) -> Option<Duration> {
        let Ok(duration) = Duration::try_from(given?) else {
            self.bad(field, "is negative");
            return None;
        };
        if duration.is_zero() && !zero_is_fine {
            self.bad(field, "is zero");
        } else if duration > longest {
            self.bad(field, format!("is {}s, at most {}s are allowed", duration.as_secs_f64(), longest.as_secs_f64()));
        } else {
            return Some(duration);
        }
        None
    }

    fn labels(&mut self, labels: HashMap<String, String>) -> BTreeMap<String, String> {
        if labels.len() > MOST_LABELS {
            self.bad("labels", format!("has {} entries, at most {MOST_LABELS} are allowed", labels.len()));
        }
        for (key, value) in &labels {
            // Not more of a long key than is needed to find it.
            let field = || format!("labels[{:?}]", key.chars().take(24).collect::<String>());
            if key.is_empty() || key.len() > MOST_KEY_BYTES {
                self.bad(field(), format!("the key has {} bytes, 1 to {MOST_KEY_BYTES} are allowed", key.len()));
            }
            if value.len() > MOST_VALUE_BYTES {
                self.bad(field(), format!("the value has {} bytes, at most {MOST_VALUE_BYTES} are allowed", value.len()));
            }
            if key.chars().chain(value.chars()).any(char::is_control) {
                self.bad(field(), "has control characters");
            }
        }
        labels.into_iter().collect()
    }

    pub(super) fn done(self) -> Result<(), Refusal> {
        if self.bad.is_empty() { Ok(()) } else { Err(self.refusal()) }
    }

    fn refusal(mut self) -> Refusal {
        // The labels come in no order.
        self.bad.sort_by(|a, b| a.field.cmp(&b.field));
        Refusal::BadFields(self.bad)
    }
}

/// An Allocate: what the pool is asked for, and how long the caller would wait.
pub(super) fn allocate(
    asked: proto::AllocateRequest,
    uid: u32,
    connection: ConnectionId,
    about: &About,
    limits: &Limits,
) -> Result<(Request, Duration), Refusal> {
    let mut checks = Checks::default();
    checks.text("request_id", &asked.request_id);
    checks.text("owner", &asked.owner);
    checks.text("tenant", &asked.tenant);
    let wait = checks.duration("wait", asked.wait, true, limits.longest).unwrap_or_default();
    let lifetime = lifetime(&mut checks, &asked, connection, limits);
    let labels = checks.labels(asked.labels);
    let network = match network(about, &asked.network) {
        Ok(network) => network,
        Err(refusal) if checks.bad.is_empty() => return Err(refusal),
        Err(_) => {
            checks.bad("network", format!("is none of {}", about.networks.join(", ")));
            None
        }
    };
    checks.done()?;
    let request_id = (!asked.request_id.is_empty()).then_some(asked.request_id);
    Ok((Request { uid, owner: asked.owner, tenant: asked.tenant, request_id, network, lifetime, labels }, wait))
}

/// An EnsureImage: for what, and by whose credentials.
pub(super) fn image(reference: &str, auth: Option<proto::RegistryAuth>) -> Result<(Reference, Option<Credentials>), Refusal> {
    let mut checks = Checks::default();
    checks.auth(auth.as_ref());
    match Reference::parse(reference) {
        Ok(reference) => checks.done().map(|()| (reference, auth.map(Credentials::from))),
        Err(bad) => {
            checks.bad("reference", bad.to_string());
            Err(checks.refusal())
        }
    }
}

/// A PushImage.
pub(super) fn push(
    source: &str,
    target: &str,
    auth: Option<proto::RegistryAuth>,
) -> Result<(Source, Reference, Option<Credentials>), Refusal> {
    let mut checks = Checks::default();
    checks.auth(auth.as_ref());
    let source = Source::parse(source).map_err(|bad| checks.bad("source", bad.to_string())).ok();
    let target = match &source {
        Some(Source::Named(named)) if target.is_empty() => Some(named.clone()),
        Some(_) | None => Reference::parse(target).map_err(|bad| checks.bad("target", bad.to_string())).ok(),
    };
    match &target {
        Some(target) if target.is_pinned() => checks.bad("target", "has a digest: an image is pushed to a tag"),
        Some(target) if registry_host(target.as_str()) == "nspool.local" => {
            checks.bad("target", "is a name on this host: no registry has it")
        }
        Some(_) | None => {}
    }
    match (source, target) {
        (Some(source), Some(target)) => checks.done().map(|()| (source, target, auth.map(Credentials::from))),
        (Some(_) | None, Some(_) | None) => Err(checks.refusal()),
    }
}

/// A BuildImage, without a context that is still on its way.
pub(super) fn build(asked: proto::BuildDefinition) -> Result<Definition, Refusal> {
    let mut checks = Checks::default();
    for (field, text) in [("target", &asked.target), ("platform", &asked.platform)] {
        checks.text(field, text);
    }
    for (field, path) in [("context_folder", &asked.context_folder), ("dockerfile", &asked.dockerfile)] {
        if path.len() > MOST_PATH_BYTES || path.contains('\0') {
            checks.bad(field, "is no path");
        }
    }
    if !asked.context_folder.is_empty() && !asked.context_folder.starts_with('/') {
        checks.bad("context_folder", "is not absolute");
    }
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&asked.dockerfile).components().all(inside) || asked.dockerfile.ends_with('/') {
        checks.bad("dockerfile", "is no path of a file in the context");
    }
    let word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let is_platform = |text: &str| matches!(text.split('/').count(), 2 | 3) && text.split('/').all(word);
    if !asked.platform.is_empty() && !is_platform(&asked.platform) {
        checks.bad("platform", "is not os/arch or os/arch/variant");
    }
    checks.done()?;
    let named = if asked.dockerfile.is_empty() { "Dockerfile" } else { asked.dockerfile.trim_start_matches("./") };
    Ok(Definition {
        context: Context::Folder {
            path: asked.context_folder.into(),
            identity: (asked.context_inode != 0).then_some((asked.context_device, asked.context_inode)),
        },
        dockerfile: named.to_owned(),
        content: (!asked.dockerfile_content.is_empty()).then_some(asked.dockerfile_content),
        target: asked.target,
        args: asked.build_args.into_iter().collect(),
        platform: asked.platform,
        anew: asked.anew,
    })
}

fn lifetime(checks: &mut Checks, asked: &proto::AllocateRequest, connection: ConnectionId, limits: &Limits) -> Lifetime {
    let join_by = checks.duration("join_by", asked.join_by, false, limits.longest);
    let ttl = checks.duration("ttl", asked.ttl, false, limits.longest);
    let Ok(kind) = proto::Lifetime::try_from(asked.lifetime) else {
        checks.bad("lifetime", format!("{} is no lifetime: joiners, ttl and connection are", asked.lifetime));
        return Lifetime::Connection(connection);
    };
    let joiners = matches!(kind, proto::Lifetime::Unspecified | proto::Lifetime::Joiners);
    if asked.join_by.is_some() && !joiners {
        checks.bad("join_by", "goes with the lifetime joiners only");
    }
    if asked.ttl.is_some() && kind != proto::Lifetime::Ttl {
        checks.bad("ttl", "goes with the lifetime ttl only");
    }
    match kind {
        proto::Lifetime::Unspecified | proto::Lifetime::Joiners => Lifetime::Joiners { join_by: join_by.unwrap_or(limits.join_by) },
        proto::Lifetime::Ttl => {
            if asked.ttl.is_none() {
                checks.bad("ttl", "must be set with the lifetime ttl");
            }
            Lifetime::Ttl(ttl.unwrap_or_default())
        }
        proto::Lifetime::Connection => Lifetime::Connection(connection),
    }
}

fn network(about: &About, name: &str) -> Result<Option<NetworkIndex>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    let index = about.networks.iter().position(|known| known == name).and_then(|index| NetworkIndex::try_from(index).ok());
    index
        .map(Some)
        .ok_or_else(|| Refusal::UnknownNetwork { asked: name.chars().take(MOST_CHARACTERS).collect(), known: about.networks.join(", ") })
}
