//! What has to be known of a Dockerfile before it is built: the images that it begins from, its stages, and whether it is one at all.
//!
//! Read as Docker reads it: directives at the top (`# escape=`), lines that go on, here-documents, `ARG` before the first `FROM` and the build args that
//! override it. Images come from `FROM`, `COPY --from=` and `RUN --mount=from=`, where these name no stage.
//!
//! What can go wrong is in [`BadDockerfile`], each with its line; all else is the builder's to say. It deliberately does not know what an instruction does.

use std::collections::BTreeMap;

use crate::image::reference::{BadReference, Reference};

const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The image that has nothing in it, and that no registry has.
const SCRATCH: &str = "scratch";

/// Why a text is no Dockerfile, as far as it can be told without building it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadDockerfile {
    /// From 1: where the instruction begins.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// Images that it begins from or copies from, in their order, each once.
    pub bases: Vec<Reference>,
    /// The names of its stages, in lower case; empty for one without.
    pub stages: Vec<String>,
}

impl Dockerfile {
    /// `args` are the build args.
    ///
    /// # Errors
    /// [`BadDockerfile`]: the first thing that is wrong.
    pub fn parse(text: &str, args: &BTreeMap<String, String>) -> Result<Self, BadDockerfile> {
        let mut reader = Reader { found: Self::default(), args, known: BTreeMap::new() };
        let lines = instructions(text);
        let end = lines.last().map_or(1, |instruction| instruction.line);
        for instruction in lines {
            let line = instruction.line;
            reader.take(&instruction).map_err(|why| BadDockerfile { line, why })?;
        }
        if reader.found.stages.is_empty() {
            return Err(BadDockerfile { line: end, why: "there is no FROM".into() });
        }
        Ok(reader.found)
    }

    /// Whether there is a stage of this name or number.
    #[must_use]
    pub fn has_stage(&self, target: &str) -> bool {
        let number = target.parse::<usize>().is_ok_and(|number| number < self.stages.len());
        number || (!target.is_empty() && self.stages.contains(&target.to_lowercase()))
    }
}

struct Instruction {
    line: usize,
    text: String,
}

/// Lines put together, without comments.
fn instructions(text: &str) -> Vec<Instruction> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_of(text);
    let mut found: Vec<Instruction> = Vec::new();
    let mut goes_on = false;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        // Within an instruction, too.
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (part, more) = line.strip_suffix(escape).map_or((line, false), |part| (part, true));
        match found.last_mut().filter(|_| goes_on) {
            Some(instruction) => instruction.text.push_str(part),
            None => found.push(Instruction { line: number + 1, text: part.to_owned() }),
        }
        goes_on = more;
        if !more && let Some(instruction) = found.last() {
            for word in here_documents(&instruction.text) {
                // One that never ends is the builder's to say.
                let _end = lines.by_ref().find(|(_, line)| line.trim_start_matches('\t') == word);
            }
        }
    }
    found
}

fn escape_of(text: &str) -> char {
    for line in text.lines() {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|directive| directive.split_once('=')) else { break };
        if name.trim().eq_ignore_ascii_case("escape") {
            return if value.trim() == "`" { '`' } else { '\\' };
        }
    }
    '\\'
}

/// What ends the documents that begin in an instruction: `<<EOF`, `<<-EOF`, `<<"EOF"`.
fn here_documents(text: &str) -> Vec<String> {
    let name = text.split_whitespace().next().unwrap_or_default().to_uppercase();
    if !["RUN", "COPY", "ADD"].contains(&name.as_str()) {
        return Vec::new();
    }
    let words = text.split_whitespace().filter_map(|word| word.strip_prefix("<<"));
    let words = words.map(|word| word.trim_start_matches('-').trim_matches(['"', '\'']));
    words.filter(|word| word.starts_with(|first: char| first.is_alphabetic() || first == '_')).map(str::to_owned).collect()
}

struct Reader<'a> {
    found: Dockerfile,
    args: &'a BTreeMap<String, String>,
    /// `ARG`s before the first `FROM`.
    known: BTreeMap<String, String>,
}

impl Reader<'_> {
    fn take(&mut self, instruction: &Instruction) -> Result<(), String> {
        let mut words = instruction.text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let upper = name.to_uppercase();
        if !INSTRUCTIONS.contains(&upper.as_str()) {
            return Err(format!("unknown instruction: {name}"));
        }
        let rest: Vec<&str> = words.collect();
        if self.found.stages.is_empty() && !["FROM", "ARG"].contains(&upper.as_str()) {
            return Err(format!("{upper} comes before the first FROM"));
        }
        match upper.as_str() {
            "ARG" if self.found.stages.is_empty() => self.arg(&rest),
            "FROM" => return self.from(&rest),
            "COPY" => return self.copy_from(&rest),
            "RUN" => return self.mount_from(&rest),
            _ => {}
        }
        Ok(())
    }

    fn arg(&mut self, words: &[&str]) {
        for word in words {
            let (name, default) = word.split_once('=').map_or((*word, None), |(name, default)| (name, Some(default)));
            let value = self.args.get(name).cloned().or_else(|| default.map(|default| self.expand(default.trim_matches(['"', '\'']))));
            if let Some(value) = value {
                self.known.insert(name.to_owned(), value);
            }
        }
    }

    fn from(&mut self, words: &[&str]) -> Result<(), String> {
        let words: Vec<&str> = words.iter().copied().skip_while(|word| word.starts_with("--")).collect();
        let (image, stage) = match words[..] {
            [image] => (image, ""),
            [image, word, stage] if word.eq_ignore_ascii_case("as") => (image, stage),
            _ => return Err("FROM wants an image, and may have AS and a name".into()),
        };
        let expanded = self.expand(image);
        if expanded.is_empty() {
            return Err(format!("FROM {image} names no image: an ARG has no value"));
        }
        self.base(&expanded)?;
        self.found.stages.push(stage.to_lowercase());
        Ok(())
    }

    fn copy_from(&mut self, words: &[&str]) -> Result<(), String> {
        let options = words.iter().take_while(|word| word.starts_with("--"));
        for image in options.filter_map(|option| option.strip_prefix("--from=")) {
            self.base_or_number(image)?;
        }
        Ok(())
    }

    fn mount_from(&mut self, words: &[&str]) -> Result<(), String> {
        let options = words.iter().take_while(|word| word.starts_with("--"));
        for mount in options.filter_map(|option| option.strip_prefix("--mount=")) {
            for image in mount.split(',').filter_map(|field| field.strip_prefix("from=")) {
                self.base_or_number(image)?;
            }
        }
        Ok(())
    }

    fn base_or_number(&mut self, image: &str) -> Result<(), String> {
        let image = self.expand(image.trim_matches(['"', '\'']));
        if image.parse::<usize>().is_ok() { Ok(()) } else { self.base(&image) }
    }

    /// What is no stage is an image.
    fn base(&mut self, image: &str) -> Result<(), String> {
        if image == SCRATCH || self.found.stages.contains(&image.to_lowercase()) {
            return Ok(());
        }
        let reference = Reference::parse(image).map_err(|bad: BadReference| format!("the image {image:?} {bad}"))?;
        if !self.found.bases.contains(&reference) {
            self.found.bases.push(reference);
        }
        Ok(())
    }

    /// `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+instead}`.
    fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            let (inside, behind) = match after.strip_prefix('{').and_then(|after| after.split_once('}')) {
                Some(parts) => parts,
                None => after.split_at(after.find(|char: char| !(char.is_alphanumeric() || char == '_')).unwrap_or(after.len())),
            };
            expanded.push_str(&self.value(inside));
            rest = behind;
        }
        expanded + rest
    }

    fn value(&self, inside: &str) -> String {
        let of = |name: &str| self.known.get(name).filter(|value| !value.is_empty());
        if let Some((name, default)) = inside.split_once(":-") {
            return of(name).cloned().unwrap_or_else(|| self.expand(default));
        }
        if let Some((name, instead)) = inside.split_once(":+") {
            return of(name).map(|_| self.expand(instead)).unwrap_or_default();
        }
        of(inside).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn bases(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
        Dockerfile::parse(text, &args(pairs)).unwrap().bases.iter().map(ToString::to_string).collect()
    }

    fn refused(text: &str) -> String {
        Dockerfile::parse(text, &BTreeMap::new()).unwrap_err().to_string()
    }

    #[test]
    fn images_are_those_that_are_no_stage() {
        let text = "# syntax=docker/dockerfile:1\n\nFROM golang:1.22 AS Build\nRUN go build\nfrom scratch\nCOPY --from=build /a /a\nCOPY --chown=1 --from=busybox /b /b\n\
                    COPY --from=0 /c /c\nRUN --mount=type=bind,from=alpine:3,target=/x ls\nFROM golang:1.22\nFROM build as last\n";
        assert_eq!(bases(text, &[]), ["golang:1.22", "busybox:latest", "alpine:3"]);
        let file = Dockerfile::parse(text, &BTreeMap::new()).unwrap();
        assert_eq!(file.stages, ["build", "", "", "last"]);
        for (target, has) in [("build", true), ("LAST", true), ("0", true), ("3", true), ("4", false), ("other", false), ("", false)] {
            assert_eq!(file.has_stage(target), has, "{target}");
        }
    }

    #[test]
    fn args_before_the_first_from_are_filled_in() {
        let text = "ARG BASE=busybox\nARG TAG\nARG HOST=\"reg:5000\"\nARG WHOLE=$HOST/${BASE}\nFROM --platform=linux/amd64 ${WHOLE}:${TAG:-1.36} AS a\nFROM $BASE${TAG:+:$TAG}\n\
                    ARG BASE=other\nFROM ${BASE}\n";
        assert_eq!(bases(text, &[]), ["reg:5000/busybox:1.36", "busybox:latest"]);
        assert_eq!(bases(text, &[("TAG", "2"), ("BASE", "fn")]), ["reg:5000/fn:2", "fn:2", "fn:latest"]);
        assert_eq!(refused("ARG BASE\nFROM $BASE"), "line 2: FROM $BASE names no image: an ARG has no value");
    }

    #[test]
    fn lines_go_on_and_documents_are_not_instructions() {
        assert_eq!(
            bases("FROM \\\n  # a comment\n\n  busybox \\  \n AS x\nRUN a \\\nFROM none\nRUN <<EOF\nFROM nothing\nEOF\n", &[]),
            ["busybox:latest"]
        );
        assert_eq!(bases("# escape=`\nFROM `\nbusybox\nRUN a\\\nFROM fn\n", &[]), ["busybox:latest", "fn:latest"]);
        assert_eq!(bases("\u{feff}FROM a\nCOPY <<-\"one\" <<two /x/\nform\n\tone\nform\ntwo\n", &[]), ["a:latest"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert_eq!(refused("FROM a\n\nRUN x \\\n y\nFORM b\n"), "line 5: unknown instruction: FORM");
        assert_eq!(refused("# nothing\nRUN x\n"), "line 2: RUN comes before the first FROM");
        assert_eq!(refused(""), "line 1: there is no FROM");
        assert_eq!(refused("ARG A=1\n"), "line 1: there is no FROM");
        assert_eq!(refused("FROM a b\n"), "line 1: FROM wants an image, and may have AS and a name");
        assert_eq!(refused("FROM a\nFROM\n"), "line 2: FROM wants an image, and may have AS and a name");
        assert!(refused("FROM a\nFROM Busy\n").starts_with("line 2: the image \"Busy\" has a name that is not"));
    }
}
