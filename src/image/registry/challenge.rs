//! What a registry wants to know before it answers: the header `WWW-Authenticate`.

/// One of the two that registries use.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and a password.
    Basic,
    /// A token from somebody else.
    Bearer(Bearer),
}

/// Where tokens come from, and for what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    /// A URL.
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Challenge {
    /// `None`: one that we cannot meet.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut bearer = Bearer::default();
        for (key, value) in Parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => bearer.realm = value,
                "service" => bearer.service = Some(value),
                "scope" => bearer.scope = Some(value),
                _ => {}
            }
        }
        (!bearer.realm.is_empty()).then_some(Self::Bearer(bearer))
    }
}

/// `key="value", key=value, …`
struct Parameters<'a>(&'a str);

impl Iterator for Parameters<'_> {
    type Item = (String, String);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, rest) = self.0.trim_start_matches([' ', ',']).split_once('=')?;
        let rest = rest.trim_start();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        self.0 = rest;
        Some((key.trim().to_owned(), value))
    }
}

/// Up to the closing quote, and what is behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// For a query or a form.
pub(super) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let bearer = Bearer { realm: realm.into(), service: service.map(str::to_owned), scope: scope.map(str::to_owned) };
            Some(Challenge::Bearer(bearer))
        };
        for (header, challenge) in [
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/busybox:pull")),
            ),
            (
                r#"bearer  Realm = "https://a/b?c=d,e" , scope="a:b:pull,push", error=x"#,
                bearer("https://a/b?c=d,e", None, Some("a:b:pull,push")),
            ),
            (r"Bearer realm=https://a/t,service=s", bearer("https://a/t", Some("s"), None)),
            (r#"Bearer realm="a\"b""#, bearer("a\"b", None, None)),
            (r#"Bearer service="s""#, None),
            (r#"Bearer realm="https://never-closed"#, None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), challenge, "{header}");
        }
    }

    #[test]
    fn what_goes_into_a_query_is_encoded() {
        assert_eq!(encoded("repository:team/fn:pull,push é"), "repository%3Ateam%2Ffn%3Apull%2Cpush%20%C3%A9");
    }
}
