//! What an image is asked for by: `[host[:port]/]path[:tag][@digest]`, read as Docker reads it, so that a mistake is named here and not by the engine
//! in words of its own.
//!
//! An image's id is no reference: nobody could ask a registry whose it is. It deliberately does not write Docker Hub's host in front of names that
//! have none: podman has images of its own behind such names.

use std::fmt;
use std::sync::Arc;

use crate::engine::Image;

/// Longer ones are no references, says Docker: 255 for the name, 128 for the tag, and the longest digest.
const LONGEST: usize = 255 + 1 + 128 + 1 + 7 + 128;

/// A reference with its tag or digest written out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference(Arc<str>);

/// Why a text is no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    /// Nothing is written.
    #[error("is empty")]
    Empty,
    /// Longer than any can be.
    #[error("is longer than {LONGEST} characters")]
    TooLong,
    /// What is behind `@`.
    #[error("has a digest that is not sha256: and 64 hexadecimal digits (or sha512: and 128)")]
    Digest,
    /// What is behind the last colon.
    #[error("has a tag that is not 1 to 128 letters, digits, '_', '.' or '-', of which the last two do not come first")]
    Tag,
    /// What is before the first slash.
    #[error("has a host that is not a name or an address with or without a port")]
    Host,
    /// The rest.
    #[error("has a name that is not lower-case letters and digits, with '.', '_' or '-' between them, in parts between slashes")]
    Name,
    /// 64 hexadecimal digits.
    #[error("is an image's id: write the reference that it is pulled by")]
    Id,
}

impl Reference {
    /// Writes `:latest` behind a name that has neither tag nor digest.
    ///
    /// # Errors
    /// [`BadReference`]: the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        if text.is_empty() {
            return Err(BadReference::Empty);
        }
        if text.len() > LONGEST {
            return Err(BadReference::TooLong);
        }
        let (named, digest) = text.split_once('@').map_or((text, None), |(named, digest)| (named, Some(digest)));
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(BadReference::Digest);
        }
        let (name, tag) = split_tag(named);
        if is_hex(name, 64) || name == "sha256" {
            return Err(BadReference::Id);
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(BadReference::Tag);
        }
        check_name(name)?;
        let complete = tag.is_some() || digest.is_some();
        Ok(Self(if complete { text.into() } else { format!("{text}:latest").into() }))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without tag and digest.
    #[must_use]
    pub fn name(&self) -> &str {
        split_tag(self.0.split_once('@').map_or(&self.0, |(named, _)| named)).0
    }

    /// `None`: only its digest is written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        split_tag(self.0.split_once('@').map_or(&self.0, |(named, _)| named)).1
    }

    /// As [`repository_of`].
    #[must_use]
    pub fn repository(&self) -> &str {
        repository_of(&self.0)
    }

    /// What stands behind the repository: the digest, if there is one, else the tag.
    #[must_use]
    pub fn version(&self) -> &str {
        match self.0.split_once('@') {
            Some((_, digest)) => digest,
            None => split_tag(&self.0).1.unwrap_or_default(),
        }
    }

    /// It names one image for ever.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.0.contains('@')
    }

    /// Repository and tag, as they are written; `None` where there is no tag, or a digest beside it.
    #[must_use]
    pub fn tagged(&self) -> Option<(&str, &str)> {
        if self.is_pinned() {
            return None;
        }
        let (name, tag) = split_tag(&self.0);
        tag.map(|tag| (name, tag))
    }

    /// The same repository's image of that digest.
    #[must_use]
    pub fn at(&self, digest: &str) -> Self {
        let named = self.0.split('@').next().unwrap_or_default();
        Self(format!("{}@{digest}", split_tag(named).0).into())
    }

    /// The image came from this reference's repository, by a manifest of this digest among others.
    #[must_use]
    pub fn has(&self, image: &Image, digest: &str) -> bool {
        self.digests(image).any(|known| known == digest)
    }

    /// The image came from this reference's repository.
    #[must_use]
    pub fn is_origin_of(&self, image: &Image) -> bool {
        self.digests(image).next().is_some()
    }

    fn digests<'a>(&self, image: &'a Image) -> impl Iterator<Item = &'a str> {
        let here = image.digests.iter().filter(|digest| repository_of(digest) == self.repository());
        here.filter_map(|digest| digest.split_once('@').map(|(_, digest)| digest))
    }

    /// The digest by which that image is known under this reference; empty if it is not known by any.
    #[must_use]
    pub fn digest_of(&self, image: &Image) -> String {
        let own = self.0.split_once('@').map(|(_, digest)| digest);
        own.or_else(|| self.digests(image).next()).unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Of a name as an engine writes it: without tag and digest, and without what Docker leaves out of Docker Hub's.
#[must_use]
pub fn repository_of(name: &str) -> &str {
    familiar(split_tag(name.split('@').next().unwrap_or_default()).0)
}

/// Whether two names, as engines and archives write them, are one: without a tag or digest `latest` is meant, and Docker Hub's host may be left out.
#[must_use]
pub fn is_same(one: &str, other: &str) -> bool {
    let rest = |name: &str| match name.split_once('@') {
        Some((_, digest)) => format!("@{digest}"),
        None => format!(":{}", split_tag(name).1.unwrap_or("latest")),
    };
    repository_of(one) == repository_of(other) && rest(one) == rest(other)
}

/// A colon before the last slash belongs to the registry's port.
fn split_tag(named: &str) -> (&str, Option<&str>) {
    match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (named, None),
    }
}

fn familiar(repository: &str) -> &str {
    let hub = repository.strip_prefix("docker.io/").or_else(|| repository.strip_prefix("index.docker.io/")).unwrap_or(repository);
    hub.strip_prefix("library/").unwrap_or(hub)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| is_hex(hex, 64)) || text.strip_prefix("sha512:").is_some_and(|hex| is_hex(hex, 128))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&tag.len()) && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn check_name(name: &str) -> Result<(), BadReference> {
    let path = match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase()) => {
            let (host, port) = first.split_once(':').map_or((first, None), |(host, port)| (host, Some(port)));
            let port_is_good = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
            let is_good = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
            if host.is_empty() || !host.chars().all(is_good) || !port_is_good {
                return Err(BadReference::Host);
            }
            rest
        }
        Some(_) | None => name,
    };
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part_is_good =
        |part: &str| part.starts_with(inner) && part.ends_with(inner) && part.chars().all(|c| inner(c) || c == '.' || c == '_' || c == '-');
    if path.len() <= 255 && path.split('/').all(part_is_good) { Ok(()) } else { Err(BadReference::Name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:b5d6fe0712636ceb7430189de28819e195e8966372edfc2d9409d79402a0dc16";

    #[test]
    fn references_are_taken_with_tag_or_digest_written_out() {
        let hex = DIGEST.trim_start_matches("sha256:");
        for (text, complete, repository) in [
            ("busybox", "busybox:latest", "busybox"),
            ("docker.io/library/busybox:1.36", "docker.io/library/busybox:1.36", "busybox"),
            ("127.0.0.1:5000/team/holder", "127.0.0.1:5000/team/holder:latest", "127.0.0.1:5000/team/holder"),
            ("localhost/a", "localhost/a:latest", "localhost/a"),
            ("REGISTRY/a__b--c.d:T_1", "REGISTRY/a__b--c.d:T_1", "REGISTRY/a__b--c.d"),
            (&format!("q.io/a@{DIGEST}"), &format!("q.io/a@{DIGEST}"), "q.io/a"),
            (&format!("q.io/a:1@{DIGEST}"), &format!("q.io/a:1@{DIGEST}"), "q.io/a"),
            (&format!("x/{hex}"), &format!("x/{hex}:latest"), &format!("x/{hex}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.as_str(), reference.repository()), (complete, repository), "{text}");
            let named = reference.tag().map_or_else(|| reference.name().to_owned(), |tag| format!("{}:{tag}", reference.name()));
            assert_eq!(complete.split('@').next(), Some(&*named));
        }
    }

    #[test]
    fn what_may_move_and_what_may_not_is_told_apart() {
        let pinned = format!("q.io:5000/a:1@{DIGEST}");
        for (text, version, tagged) in [
            ("busybox", "latest", Some(("busybox", "latest"))),
            ("q.io:5000/a/b:1", "1", Some(("q.io:5000/a/b", "1"))),
            (&*pinned, DIGEST, None),
            (&*format!("a@{DIGEST}"), DIGEST, None),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.version(), reference.tagged()), (version, tagged), "{text}");
            assert_eq!(reference.is_pinned(), tagged.is_none(), "{text}");
        }
        for text in ["q.io:5000/a:1", "q.io:5000/a", &pinned] {
            assert_eq!(Reference::parse(text).unwrap().at(DIGEST).as_str(), format!("q.io:5000/a@{DIGEST}"));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        use BadReference as Bad;
        let hex = DIGEST.trim_start_matches("sha256:");
        for (text, bad) in [
            ("", Bad::Empty),
            (&*"a".repeat(LONGEST + 1), Bad::TooLong),
            ("a@sha256:00", Bad::Digest),
            (&format!("a@{hex}"), Bad::Digest),
            ("a@", Bad::Digest),
            ("a:", Bad::Tag),
            ("a:-1", Bad::Tag),
            ("a:1 ", Bad::Tag),
            ("a:x?y=z", Bad::Tag),
            ("q.io:port/a", Bad::Host),
            ("Q_/a", Bad::Host),
            ("a b", Bad::Name),
            ("Busybox", Bad::Name),
            ("a//b", Bad::Name),
            ("a/../b", Bad::Name),
            ("/a", Bad::Name),
            ("a/", Bad::Name),
            ("é", Bad::Name),
            (hex, Bad::Id),
            (DIGEST, Bad::Id),
        ] {
            assert_eq!(Reference::parse(text), Err(bad), "{text:?}");
        }
    }

    #[test]
    fn names_of_docker_hub_are_the_same_with_its_host_and_without() {
        for same in ["busybox", "busybox:latest", "library/busybox", "docker.io/library/busybox:latest", "index.docker.io/busybox"] {
            assert!(is_same("busybox:latest", same), "{same}");
        }
        let by_digest = format!("docker.io/busybox@{DIGEST}");
        for other in ["busybox:1", "quay.io/busybox", "localhost/busybox:latest", &by_digest] {
            assert!(!is_same("busybox", other), "{other}");
        }
        assert!(is_same(&by_digest, &format!("busybox@{DIGEST}")) && is_same("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"));
    }

    #[test]
    fn an_images_digest_is_that_of_its_repository() {
        let other = DIGEST.replace('b', "c");
        let digests = vec![format!("127.0.0.1:5000/a@{other}"), format!("busybox@{DIGEST}")];
        let image = Image { id: "sha256:1".into(), tags: Vec::new(), digests, labels: crate::engine::Labels::new() };
        for (reference, digest) in [
            ("busybox:1.36", DIGEST),
            ("docker.io/library/busybox", DIGEST),
            ("127.0.0.1:5000/a:7", &other),
            ("quay.io/busybox", ""),
            (&format!("q.io/a@{DIGEST}"), DIGEST),
        ] {
            assert_eq!(Reference::parse(reference).unwrap().digest_of(&image), digest, "{reference}");
        }
    }
}
