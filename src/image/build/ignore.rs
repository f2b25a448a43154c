//! `.dockerignore`, as Docker reads it: which paths of a context are not sent to the builder.
//!
//! A line is a pattern, cleaned as a path and without the slash before it; `!` in front takes paths back in, and the last pattern that matches a
//! path, or a folder that it is in, decides. `*`, `?` and `[…]` match within one part of a path, `**` any number of parts, and a `#` in the first
//! column makes the line a comment. The cases that Docker's own matcher is held to are held to here.
//!
//! What can go wrong: a pattern that is none ([`BadPattern`], with its line). Two things are decided here otherwise than in Docker's older builder: files beneath a folder that is left out
//! are looked for whenever there is a `!`, whatever stands behind it (as BuildKit does), and a `*` inside of `[…]` is itself.
//!
//! It deliberately does not know files: it is asked about paths.

use regex::Regex;

/// A line that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {pattern:?} {why}")]
pub struct BadPattern {
    /// From 1.
    pub line: usize,
    /// As it is written, without the `!`.
    pub pattern: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// What a `.dockerignore` says.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    takes_back: bool,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// The path itself.
    Exact(String),
    /// `dir/**`: whatever begins so.
    Prefix(String),
    /// `**/name` and `**name`: whatever ends so, and `name` itself.
    Suffix(String),
    /// All others.
    Regex(Regex),
}

impl Ignore {
    /// Reads the file's content. One that is empty leaves nothing out.
    ///
    /// # Errors
    /// [`BadPattern`]: the first line that is none.
    pub fn parse(content: &str) -> Result<Self, BadPattern> {
        let content = content.strip_prefix('\u{feff}').unwrap_or(content);
        let mut patterns = Vec::new();
        for (number, line) in content.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (takes_back, written) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            if written.is_empty() && !takes_back {
                continue;
            }
            let bad = |why| BadPattern { line: number + 1, pattern: written.to_owned(), why };
            if written.is_empty() {
                return Err(bad("has nothing behind the !"));
            }
            let cleaned = clean(written);
            let pattern = if cleaned.len() > 1 { cleaned.strip_prefix('/').unwrap_or(&cleaned) } else { &cleaned };
            patterns.push(Pattern { takes_back, form: Form::of(pattern).map_err(bad)? });
        }
        Ok(Self { patterns })
    }

    /// Whether a path is left out. It has `/` between its parts, none before it and none behind it.
    #[must_use]
    pub fn excludes(&self, path: &str) -> bool {
        let mut excluded = false;
        for pattern in &self.patterns {
            // Only what would change the answer is asked.
            if pattern.takes_back == excluded && parents_and_self(path).any(|part| pattern.form.matches(part)) {
                excluded = !pattern.takes_back;
            }
        }
        excluded
    }

    /// Whether something beneath a folder that is left out may be taken back in.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.takes_back)
    }
}

fn parents_and_self(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|part| !part.is_empty()).chain(std::iter::once(path))
}

impl Form {
    fn of(pattern: &str) -> Result<Self, &'static str> {
        let parts = parse(pattern)?;
        let literal = |parts: &[Part]| {
            let all: Option<String> = parts.iter().map(|part| if let Part::Char(char) = part { Some(*char) } else { None }).collect();
            all
        };
        // As Docker tells them apart: what has an escape in it is a regular expression, too, which comes to the same.
        if let Some(exact) = literal(&parts) {
            return Ok(Self::Exact(exact));
        }
        if let [Part::Any { slash }, rest @ ..] = &parts[..]
            && let Some(suffix) = literal(rest)
        {
            return Ok(Self::Suffix(if *slash { format!("/{suffix}") } else { suffix }));
        }
        if let [rest @ .., Part::Any { .. }] = &parts[..]
            && let Some(prefix) = literal(rest)
        {
            return Ok(Self::Prefix(prefix));
        }
        Regex::new(&regex(&parts)).map(Self::Regex).map_err(|_| "is too long")
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// What a pattern is made of.
#[derive(Debug)]
enum Part {
    Char(char),
    /// `**`, with the slash behind it.
    Any {
        slash: bool,
    },
    /// `*`
    Within,
    /// `?`
    One,
    /// `[…]`: from and to, both included.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// The grammar is that of Go's `filepath.Match`, and `**`.
fn parse(pattern: &str) -> Result<Vec<Part>, &'static str> {
    let mut chars = pattern.chars().peekable();
    let mut parts = Vec::new();
    while let Some(char) = chars.next() {
        parts.push(match char {
            '*' if chars.next_if_eq(&'*').is_some() => Part::Any { slash: chars.next_if_eq(&'/').is_some() },
            '*' => Part::Within,
            '?' => Part::One,
            '\\' => Part::Char(chars.next().ok_or("ends with a \\ that has nothing to escape")?),
            '[' => class(&mut chars)?,
            char => Part::Char(char),
        });
    }
    Ok(parts)
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Part, &'static str> {
    const OPEN: &str = "has a [ without its ]";
    let end = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next() {
        None => Err(OPEN),
        Some('-' | ']') => Err("has a - or ] in its [ ] that needs a \\ before it"),
        Some('\\') => chars.next().ok_or(OPEN),
        Some(char) => Ok(char),
    };
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
        let from = end(chars)?;
        let to = if chars.next_if_eq(&'-').is_some() { end(chars)? } else { from };
        ranges.push((from, to));
    }
    Ok(Part::Class { negated, ranges })
}

fn regex(parts: &[Part]) -> String {
    let mut regex = String::from("^");
    for (at, part) in parts.iter().enumerate() {
        match part {
            Part::Char(char) => regex.push_str(&regex::escape(char.encode_utf8(&mut [0; 4]))),
            Part::Any { .. } if at + 1 == parts.len() => regex.push_str(".*"),
            Part::Any { .. } => regex.push_str("(?:.*/)?"),
            Part::Within => regex.push_str("[^/]*"),
            Part::One => regex.push_str("[^/]"),
            Part::Class { negated, ranges } => {
                // A range that runs backwards has nothing in it.
                let ranges = ranges.iter().filter(|(from, to)| from <= to);
                let inside: String =
                    ranges.map(|(from, to)| format!("\\x{{{:x}}}-\\x{{{:x}}}", u32::from(*from), u32::from(*to))).collect();
                regex.push_str(&match (inside.is_empty(), negated) {
                    (false, false) => format!("[{inside}]"),
                    (false, true) => format!("[^{inside}]"),
                    (true, false) => "[^\\x{0}-\\x{10ffff}]".to_owned(),
                    (true, true) => "[\\x{0}-\\x{10ffff}]".to_owned(),
                });
            }
        }
    }
    regex.push('$');
    regex
}

/// The shortest path that means the same, by its letters alone; `.` for none. As Go's `filepath.Clean`.
pub(super) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(content: &str) -> Ignore {
        Ignore::parse(content).unwrap()
    }

    /// Docker's own cases (moby/patternmatcher, `TestMatches`): the path, or a folder that it is in.
    #[test]
    fn paths_match_as_in_dockers_own_cases() {
        let cases = [
            ("**", "file", true),
            ("**", "file/", true),
            ("**/", "file", true),
            ("**", "dir/file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/file/", true),
            ("**/dir2/**", "dir/dir2/dir3/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/file", true),
            ("**file", "dir/dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("**/**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abc.def", true),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abcdef", false),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("**/foo/bar", "dir/dir2/foo/bar", true),
            ("abc/**", "abc", false),
            ("abc/**", "abc/def", true),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a(b)c/def", "a(b)c/xyz", false),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
            ("a\\\\", "a\\", true),
            ("a\\*b", "a*b", true),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(ignore(pattern).excludes(path), expected, "{pattern} {path}");
        }
    }

    /// The same, `matchTests`, which are those of Go's `filepath.Match`.
    #[test]
    fn patterns_match_as_gos_own_cases() {
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", true),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a[^a][^a][^a]b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "x", true),
            ("[x\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("[\\-x]", "x", true),
            ("[\\-x]", "-", true),
            ("[\\-x]", "a", false),
            ("*x", "xxx", true),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(ignore(pattern).excludes(path), expected, "{pattern} {path}");
        }
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a["] {
            let refused = Ignore::parse(&format!("fine\n{pattern}\n")).unwrap_err();
            assert_eq!((refused.line, refused.pattern.as_str()), (2, pattern));
        }
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let cases = [
            ("*.go\n!fileutils.go", "fileutils.go", false),
            ("!fileutils.go\n*.go", "fileutils.go", true),
            ("docs\n!docs/README.md", "docs/README.md", false),
            ("docs/\n!docs/README.md", "docs/README.md", false),
            ("docs/*\n!docs/README.md", "docs/README.md", false),
            ("docs\n  !docs/README.md  ", "docs/README.md", false),
            ("docs\n!docs/README.md", "docs/other", true),
            ("**\n!util/docker/web", "util/docker/web/foo", false),
            ("**\n!util/docker/web\nutil/docker/web/foo", "util/docker/web/foo", true),
            ("**\n!dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", false),
            ("", "any/path", false),
        ];
        for (content, path, expected) in cases {
            assert_eq!(ignore(content).excludes(path), expected, "{content:?} {path}");
        }
    }

    /// Docker's `TestReadAll`.
    #[test]
    fn lines_are_read_as_docker_reads_them() {
        let ignore = ignore(
            "\u{feff}test1\n/test2\n/a/file/here\r\n\nlastfile\n# this is a comment\n  # no comment\n! /a/file/here/not\n./x/../y\n/\n",
        );
        for path in ["test1", "test2", "a/file/here", "lastfile", "# no comment", "y"] {
            assert!(ignore.excludes(path), "{path}");
        }
        for path in ["# this is a comment", "this is a comment", "a/file/here/not", "x", "other", ""] {
            assert!(!ignore.excludes(path), "{path}");
        }
        assert!(ignore.takes_back());
        for alone in ["a\n!", "a\n! "] {
            let refused = Ignore::parse(alone).unwrap_err();
            assert_eq!(refused.to_string(), "line 2: \"\" has nothing behind the !");
        }
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, cleaned) in
            [("", "."), ("/", "/"), ("a//b/", "a/b"), ("a/./b/..", "a"), ("../a", "../a"), ("/../a", "/a"), ("a/../..", ".."), ("./", ".")]
        {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }
}
