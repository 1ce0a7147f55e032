//! No circle between modules: for each crate, which file names items of which other file, and whether a file can be
//! reached from itself that way.
//!
//! Read as text, not compiled. A re-export (`pub use`) is followed to the file that defines the item, so a parent
//! module may re-export what its children define. Test modules are left out.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Crates by the directory of their manifest, relative to this one's.
const CRATES: [&str; 6] = [".", "host", "singularity", "../glue", "../glue/contract", "../glue/linux"];

/// A module path below the crate's root; the root is empty.
type Module = Vec<String>;

/// One file of a crate.
#[derive(Default)]
struct Source {
    /// Identifiers and punctuation, without comments, texts and test modules.
    tokens: Vec<String>,
    /// What `use` binds: name, path as written, and whether it is a re-export.
    uses: Vec<(String, Vec<String>, bool)>,
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Splits Rust into words, `::` and other characters; leaves out comments, texts and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let (mut rest, mut found) = (text, Vec::new());
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(hashes) = rest.strip_prefix('r').filter(|r| r.trim_start_matches('#').starts_with('"')) {
            let fence = format!("\"{}", "#".repeat(hashes.len() - hashes.trim_start_matches('#').len()));
            let begin = 1 + fence.len();
            begin + rest[begin..].find(&fence).unwrap() + fence.len()
        } else if c == '"' {
            let (mut end, bytes) = (1, rest.as_bytes());
            while bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        } else if c == '\'' {
            // A character, or a lifetime.
            let body = &rest[1..];
            let inner = body.chars().next().map_or(0, char::len_utf8);
            match body.strip_prefix('\\') {
                Some(escape) => 3 + escape[1..].find('\'').unwrap() + 1,
                None if body[inner..].starts_with('\'') => inner + 2,
                None => 1,
            }
        } else if c.is_alphanumeric() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(rest[..end].to_owned());
            end
        } else if rest.starts_with("::") {
            found.push("::".into());
            2
        } else {
            if !c.is_whitespace() {
                found.push(c.into());
            }
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    found
}

/// Where the block or statement ends that begins at `at`.
fn end_of_item(tokens: &[String], at: usize) -> usize {
    let mut depth = 0_usize;
    for (n, token) in tokens.iter().enumerate().skip(at) {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return n + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return n + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Leaves out what is compiled for tests alone.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let (mut kept, mut n) = (Vec::new(), 0);
    let mark: Vec<String> = ["#", "[", "cfg", "(", "test", ")", "]"].map(str::to_owned).to_vec();
    while n < tokens.len() {
        if tokens[n..].starts_with(&mark) {
            n = end_of_item(tokens, n);
        } else {
            kept.push(tokens[n].clone());
            n += 1;
        }
    }
    kept
}

/// The paths of one `use`, from the token after it: each with the name that it binds.
fn use_tree(tokens: &[String], at: &mut usize, prefix: &[String], found: &mut Vec<(String, Vec<String>)>) {
    let mut path = prefix.to_vec();
    loop {
        match tokens[*at].as_str() {
            "{" => {
                *at += 1;
                while tokens[*at] != "}" {
                    use_tree(tokens, at, &path, found);
                    if tokens[*at] == "," {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            "::" => *at += 1,
            "as" => {
                found.push((tokens[*at + 1].clone(), path));
                *at += 2;
                return;
            }
            "self" if !path.is_empty() => *at += 1,
            word if is_word(word) || word == "*" => {
                path.push(word.to_owned());
                *at += 1;
            }
            _ => {
                found.push((path.last().unwrap().clone(), path));
                return;
            }
        }
    }
}

impl Source {
    fn parse(text: &str) -> Self {
        let all = without_tests(&tokens(text));
        let (mut source, mut n) = (Self::default(), 0);
        while n < all.len() {
            // `use<'a>` is a bound.
            if all[n] != "use" || all[n + 1] == "<" {
                source.tokens.push(all[n].clone());
                n += 1;
                continue;
            }
            let public = n > 0 && (all[n - 1] == "pub" || all[n - 1] == ")");
            let mut paths = Vec::new();
            n += 1;
            use_tree(&all, &mut n, &[], &mut paths);
            source.uses.extend(paths.into_iter().map(|(name, path)| (name, path, public)));
        }
        source
    }

    /// Paths that the code names outside of `use`: `a::b::c`, and single words that are bound by a `use`.
    fn named(&self) -> Vec<Vec<String>> {
        let (mut paths, mut n) = (Vec::new(), 0);
        while n < self.tokens.len() {
            let before = n.checked_sub(1).map(|n| self.tokens[n].as_str());
            if !is_word(&self.tokens[n]) || matches!(before, Some("." | "::")) {
                n += 1;
                continue;
            }
            let mut path = vec![self.tokens[n].clone()];
            while self.tokens.get(n + 1).is_some_and(|t| t == "::")
                && self.tokens.get(n + 2).is_some_and(|t| is_word(t))
            {
                path.push(self.tokens[n + 2].clone());
                n += 2;
            }
            paths.push(path);
            n += 1;
        }
        paths
    }
}

struct Crate(BTreeMap<Module, Source>);

impl Crate {
    fn read(src: &Path) -> Self {
        let mut modules = BTreeMap::new();
        let mut dirs = vec![src.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    // Programs are crates of their own.
                    if path != src.join("bin") {
                        dirs.push(path);
                    }
                    continue;
                }
                let name = path.file_stem().unwrap().to_str().unwrap();
                if path.extension().is_none_or(|e| e != "rs") || name.ends_with("tests") {
                    continue;
                }
                let parents = path.parent().unwrap().strip_prefix(src).unwrap();
                let mut module: Module = parents.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if !["mod", "lib", "main"].contains(&name) {
                    module.push(name.to_owned());
                }
                modules.insert(module, Source::parse(&fs::read_to_string(&path).unwrap()));
            }
        }
        Self(modules)
    }

    /// The module that defines what `path` names in `from`, if it is one of this crate.
    fn defines(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        assert!(depth < 32, "{from:?} {path:?}");
        let (first, rest) = path.split_first()?;
        let (mut at, rest) = match first.as_str() {
            "crate" => (Module::new(), rest),
            "self" => (from.clone(), rest),
            "super" => (from[..from.len().checked_sub(1)?].to_vec(), rest),
            name => {
                let child = [from.as_slice(), &[name.to_owned()]].concat();
                if self.0.contains_key(&child) {
                    (child, rest)
                } else {
                    let (_, target, _) = self.0[from].uses.iter().find(|(bound, ..)| bound == name)?;
                    // Another crate's, or an item that has the name of its crate.
                    if target.first() == Some(first) {
                        return None;
                    }
                    return self.defines(from, &[target.as_slice(), rest].concat(), depth + 1);
                }
            }
        };
        for (n, part) in rest.iter().enumerate() {
            if part == "super" {
                at.pop()?;
                continue;
            }
            let child = [at.as_slice(), std::slice::from_ref(part)].concat();
            if self.0.contains_key(&child) {
                at = child;
                continue;
            }
            if self.0.get(&at)?.uses.iter().any(|(bound, ..)| bound == part) {
                return self.defines(&at, &rest[n..], depth + 1);
            }
            return Some(at);
        }
        // A module itself: what is named in it counts, where it is named.
        None
    }

    /// For each module, the modules of which it names items, each with one of the paths.
    fn edges(&self) -> BTreeMap<&Module, BTreeMap<Module, String>> {
        let mut all = BTreeMap::new();
        for (module, source) in &self.0 {
            let mut to = BTreeMap::new();
            let imports = source.uses.iter().filter(|(.., public)| !public).map(|(_, path, _)| path.clone());
            for path in imports.chain(source.named()) {
                if let Some(target) = self.defines(module, &path, 0).filter(|target| target != module) {
                    to.entry(target).or_insert_with(|| path.join("::"));
                }
            }
            all.insert(module, to);
        }
        all
    }

    /// A line for each circle: its modules and what leads from each to others of it.
    fn circles(&self) -> Vec<String> {
        let edges = self.edges();
        let reach = |from: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
            while let Some(module) = next.pop() {
                for to in edges.get(&module).into_iter().flat_map(BTreeMap::keys) {
                    if seen.insert(to.clone()) {
                        next.push(to.clone());
                    }
                }
            }
            seen
        };
        let all: BTreeMap<&Module, BTreeSet<Module>> = edges.keys().map(|module| (*module, reach(module))).collect();
        let name = |module: &Module| if module.is_empty() { "(root)".into() } else { module.join("::") };
        let (mut lines, mut done) = (Vec::new(), BTreeSet::new());
        for (module, reached) in all.iter().filter(|(module, reached)| reached.contains(**module)) {
            if done.contains(*module) {
                continue;
            }
            let circle: BTreeSet<&Module> = reached.iter().filter(|m| all[m].contains(*module)).collect();
            for from in &circle {
                let to = edges[*from].iter().filter(|(to, _)| circle.contains(to));
                let to: Vec<String> = to.map(|(to, path)| format!("{} ({path})", name(to))).collect();
                lines.push(format!("{} -> {}", name(from), to.join(", ")));
            }
            lines.push(String::new());
            done.extend(circle.into_iter().cloned());
        }
        lines
    }
}

#[test]
fn no_module_depends_on_itself_through_others() {
    let mut circles = Vec::new();
    for dir in CRATES {
        let read = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join("src"));
        assert!(!read.0.is_empty(), "{dir}: no modules");
        circles.extend(read.circles().into_iter().map(|line| format!("{dir}: {line}")));
    }
    assert!(circles.is_empty(), "circles between modules:\n{}", circles.join("\n"));
}

#[test]
fn circles_are_found_through_imports_paths_and_reexports() {
    let of = |files: &[(&str, &str)]| {
        let module = |name: &str| name.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Crate(files.iter().map(|(name, text)| (module(name), Source::parse(text))).collect()).circles()
    };
    let a = ("a", "use crate::b::{self, C};\nfn f() -> C { b::g('\"', \"{\") }");
    assert!(of(&[("", "mod a; mod b;"), a, ("b", "pub struct C; pub fn g() {}")]).is_empty());
    assert_eq!(of(&[("", ""), a, ("b", "pub struct C(super::a::D);")]).len(), 3);
    assert!(
        of(&[("", ""), a, ("b", "pub struct C; // crate::a::D\n#[cfg(test)] mod tests { use crate::a::D; }")])
            .is_empty()
    );
    let reexport = ("p", "mod q; mod r; pub use self::q::Q;");
    assert!(of(&[reexport, ("p::q", "pub struct Q;"), ("p::r", "use super::Q; struct R(Q);")]).is_empty());
    assert_eq!(
        of(&[("p", "mod q; pub use self::q::Q; pub struct P(Q);"), ("p::q", "pub struct Q(Box<super::P>);")]).len(),
        3
    );
}
