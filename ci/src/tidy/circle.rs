//! No import circle: the files of a program or a library form layers. Text in, findings out.
//!
//! A file imports another where its code names a path that begins with `crate`, `super` or `self` and leads there, in a `use` or
//! elsewhere; a name that a module re-exports leads to where it comes from. A module is made of its submodules, so what it takes from
//! those is no import; what they take from it is one. Tests may import what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::source::{File, code_of};

/// Path from the root of a program or library, such as `["dsm", "lun"]`; the root itself is empty.
type Module = Vec<String>;
type Imports = BTreeMap<usize, BTreeSet<usize>>;

/// The files of one program or library.
type Files<'a> = BTreeMap<Module, Source<'a>>;

struct Source<'a> {
    path: &'a Path,
    /// Everything but comments and tests.
    code: String,
}

/// One line for each group of files that import each other.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let mut units: BTreeMap<String, Files<'_>> = BTreeMap::new();
    for file in files {
        if let Some((unit, module)) = module_of(&file.path)
            && file.tests_from() != Some(0)
        {
            let source = Source {
                path: &file.path,
                code: code(file),
            };
            units.entry(unit).or_default().insert(module, source);
        }
    }
    units.values().flat_map(circles).collect()
}

/// The program or library that a file belongs to, by the folder of its root, and its module there.
fn module_of(path: &Path) -> Option<(String, Module)> {
    let text = path.to_str()?.strip_suffix(".rs")?;
    let mut parts = text.split('/').map(str::to_owned);
    let mut unit = format!(
        "{}/{}",
        parts.next()?,
        parts.next().filter(|it| it == "src")?
    );
    let mut module: Module = parts.collect();
    if module.first().is_some_and(|first| first == "bin") && module.len() > 1 {
        unit = format!("{unit}/bin/{}", module[1]);
        module.drain(..2);
    }
    if module
        .last()
        .is_some_and(|last| ["lib", "main", "mod"].contains(&last.as_str()))
    {
        module.pop();
    }
    Some((unit, module))
}

fn circles(modules: &Files<'_>) -> Vec<String> {
    let exports = exports(modules);
    let order: Vec<&Module> = modules.keys().collect();
    let mut imports = Imports::new();
    for (from, (module, source)) in modules.iter().enumerate() {
        let targets = paths(&source.code).into_iter().filter_map(|path| {
            let found = resolve(module, &path, modules, &exports)?;
            // Equal to the file itself, or one of its submodules.
            (!found.starts_with(module)).then_some(found)
        });
        let numbers = targets.filter_map(|found| order.binary_search(&&found).ok());
        imports.insert(from, numbers.collect());
    }
    let reached: BTreeMap<usize, BTreeSet<usize>> = imports
        .keys()
        .map(|from| (*from, reached(&imports, *from)))
        .collect();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (from, there) in &reached {
        let circle: BTreeSet<usize> = there
            .iter()
            .copied()
            .filter(|other| reached[other].contains(from))
            .collect();
        if circle.is_empty() || !seen.insert(circle.clone()) {
            continue;
        }
        let names: Vec<String> = circle
            .iter()
            .map(|number| modules[order[*number]].path.display().to_string())
            .collect();
        found.push(format!("import circle: {}", names.join(", ")));
    }
    found
}

/// Every file that can be come to from this one by at least one import.
fn reached(imports: &Imports, from: usize) -> BTreeSet<usize> {
    let mut there = BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(at) = ahead.pop() {
        for next in imports.get(&at).into_iter().flatten() {
            if there.insert(*next) {
                ahead.push(*next);
            }
        }
    }
    there
}

/// What a module re-exports: where each name comes from.
type Exports = BTreeMap<(Module, String), Module>;

fn exports(modules: &Files<'_>) -> Exports {
    let mut found = Exports::new();
    for (module, Source { code, .. }) in modules {
        let starts = ["pub use ", "pub(crate) use ", "pub(super) use "];
        for start in starts {
            for (at, _) in code.match_indices(start) {
                let mut paths = Vec::new();
                written_out(&code[at + start.len()..], &mut Vec::new(), &mut paths);
                for path in paths {
                    let Some((name, from)) = path.split_last() else {
                        continue;
                    };
                    let mut source = module.clone();
                    source.extend(from.iter().filter(|part| *part != "self").cloned());
                    if modules.contains_key(&source) {
                        found.insert((module.clone(), name.clone()), source);
                    }
                }
            }
        }
    }
    found
}

/// The module that a path leads to: its longest beginning that has a file, or where a re-exported name comes from.
fn resolve(
    from: &Module,
    path: &[String],
    modules: &Files<'_>,
    exports: &Exports,
) -> Option<Module> {
    let mut at = match path.first()?.as_str() {
        "crate" => Module::new(),
        "super" => from.split_last()?.1.to_vec(),
        _ => from.clone(),
    };
    for part in &path[1..] {
        if part == "super" {
            at.pop()?;
            continue;
        }
        at.push(part.clone());
        if !modules.contains_key(&at) {
            at.pop();
            let export = exports.get(&(at.clone(), part.clone()));
            return Some(export.cloned().unwrap_or(at));
        }
    }
    Some(at)
}

/// Everything but comments and tests.
fn code(file: &File) -> String {
    let end = file.tests_from().unwrap_or(usize::MAX);
    let lines: Vec<&str> = file.text.lines().take(end).map(code_of).collect();
    lines.join(" ")
}

/// Paths that begin with `crate`, `super` or `self`, those in braces written out.
fn paths(code: &str) -> Vec<Vec<String>> {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|before| is_word(before) || before == ':') {
                continue;
            }
            let first = start.trim_end_matches(':').to_owned();
            written_out(&code[at + start.len()..], &mut vec![first], &mut found);
        }
    }
    found
}

/// Follows one path, or the tree of a `use`, behind its first `::`. Returns what comes after it.
fn written_out<'a>(
    text: &'a str,
    so_far: &mut Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> &'a str {
    let rest = text.trim_start();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let before = inner.len();
            inner = written_out(inner, so_far, found).trim_start();
            match inner.chars().next() {
                Some(',') => inner = &inner[1..],
                Some('}') => return &inner[1..],
                // Words such as `as`; and what is no `use` at all must come to an end, too.
                Some(letter) if inner.len() == before => inner = &inner[letter.len_utf8()..],
                Some(_) => {}
                None => return inner,
            }
        }
    }
    let length = rest
        .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .unwrap_or(rest.len());
    if length == 0 {
        found.push(so_far.clone());
        return rest;
    }
    so_far.push(rest[..length].to_owned());
    let rest = &rest[length..];
    let rest = if let Some(more) = rest.strip_prefix("::") {
        written_out(more, so_far, found)
    } else {
        found.push(so_far.clone());
        rest
    };
    so_far.pop();
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], want: &[&str]) {
        let files: Vec<File> = files
            .iter()
            .map(|(path, text)| File::new(path, text))
            .collect();
        assert_eq!(breaches(&files), want);
    }

    #[test]
    fn files_that_import_each_other_are_named() {
        check(
            &[
                ("x/src/lib.rs", "mod a; mod b; mod c;"),
                ("x/src/a.rs", "use crate::{b::{self, B}, other as it};"),
                ("x/src/b.rs", "fn f() -> crate::c::C { g() }"),
                ("x/src/c.rs", "use super::a::A;"),
            ],
            &["import circle: x/src/a.rs, x/src/b.rs, x/src/c.rs"],
        );
    }

    #[test]
    fn a_module_is_made_of_its_submodules() {
        check(
            &[
                (
                    "x/src/a.rs",
                    "mod deep; use self::deep::Deep; use crate::a::deep;",
                ),
                ("x/src/a/deep.rs", "use super::Shallow;"),
            ],
            &[],
        );
        check(
            &[
                ("x/src/a.rs", "use crate::b::B;"),
                ("x/src/a/deep.rs", "use super::Shallow;"),
                ("x/src/b.rs", "use crate::a::deep::Deep;"),
            ],
            &["import circle: x/src/a.rs, x/src/a/deep.rs, x/src/b.rs"],
        );
    }

    #[test]
    fn a_name_leads_to_where_it_comes_from() {
        check(
            &[
                ("x/src/a.rs", "mod deep; pub use deep::{Deep, other};"),
                ("x/src/a/deep.rs", "use crate::b::B;"),
                ("x/src/b.rs", "use crate::a::Deep;"),
            ],
            &["import circle: x/src/a/deep.rs, x/src/b.rs"],
        );
    }

    #[test]
    fn comments_tests_and_other_programs_do_not_count() {
        check(
            &[
                ("x/src/a.rs", "use crate::b::B;"),
                (
                    "x/src/b.rs",
                    "// crate::a::A\nfn f() {}\n#[cfg(test)]\nmod tests {\nuse crate::a::A;\n}",
                ),
                ("x/src/bin/y/main.rs", "use crate::a::A;"),
                ("x/src/bin/y/a.rs", "use x::b::B;"),
            ],
            &[],
        );
    }
}
