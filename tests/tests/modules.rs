//! Modules of a crate import each other in one direction: there are no import circles among modules of one level.
//!
//! Imports are `use` lines and paths that begin with `crate`, `super` or a child's name. A re-export counts for the module that
//! defines the item. Seen from outside, a module and its children count as one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The crates' folders, each with the modules whose children still have circles.
const CRATES: &[(&str, &[&str])] = &[
    ("args", &[]),
    ("boards/common", &[]),
    ("boards/mps2", &[]),
    ("boards/table", &[]),
    ("core", &["format", "tokenizer"]),
    ("files", &[]),
    ("host", &[]),
    ("host/cli", &[]),
    ("host/server", &[]),
    ("tests", &[]),
    ("tests/support", &[]),
    ("tools/pack", &[]),
    ("tools/pack/cli", &[]),
];

/// A path of modules and an item, from the crate's root.
type Names = Vec<String>;

/// A module's source without comments, strings of more than a word and tests.
struct Module {
    path: Names,
    code: String,
}

/// What a `use` line brings: the name in this module, the whole path, and whether it is only passed on.
struct Import {
    name: String,
    path: Names,
    passed_on: bool,
}

fn modules(folder: &Path, path: &Names, into: &mut Vec<Module>) {
    let mut entries: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for entry in entries {
        let stem = entry.file_stem().expect("a name").to_string_lossy().into_owned();
        if stem == "tests" {
            continue;
        }
        let own = if ["lib", "main", "mod"].contains(&&*stem) {
            path.clone()
        } else {
            [&path[..], &[stem]].concat()
        };
        if entry.is_dir() {
            modules(&entry, &own, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&entry).expect("text");
            into.push(Module { path: own, code: code(&text) });
        }
    }
}

/// Without comments, and without all that follows the tests' beginning.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths of a `use` tree, each with the name that it gives.
fn expand(tree: &str, prefix: &[String], into: &mut Vec<(String, Names)>) {
    let tree = tree.trim();
    if let Some((before, group)) = tree.split_once('{') {
        let names = before.split("::").map(str::trim).filter(|name| !name.is_empty()).map(String::from);
        let prefix: Names = prefix.iter().cloned().chain(names).collect();
        let group = group.trim().strip_suffix('}').unwrap_or(group);
        let (mut depth, mut start) = (0, 0);
        for (at, character) in group.char_indices().chain([(group.len(), ',')]) {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&group[start..at], &prefix, into);
                    start = at + 1;
                }
                _ => {}
            }
        }
    } else if !tree.is_empty() {
        let (path, name) =
            tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim())));
        let mut path: Names =
            prefix.iter().cloned().chain(path.split("::").map(|name| name.trim().into())).collect();
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        into.push((name.map_or_else(|| path.last().cloned().unwrap_or_default(), String::from), path));
    }
}

/// A path from the crate's root; none if it is another crate's.
fn absolute(module: &Names, path: &[String], known: &BTreeSet<Names>) -> Option<Names> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([&module[..], &path[1..]].concat()),
        "super" => Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat()),
        child => {
            let child = [&module[..], &[child.to_owned()]].concat();
            known.contains(&child).then(|| [&module[..], path].concat())
        }
    }
}

fn imports(module: &Module, known: &BTreeSet<Names>) -> Vec<Import> {
    let mut found = Vec::new();
    let mut rest = module.code.clone();
    for statement in module.code.split(';') {
        let Some((before, tree)) = statement.rsplit_once("use ").filter(|(before, _)| {
            let line = before.rsplit('\n').next().unwrap_or_default().trim();
            line.is_empty() || line.starts_with("pub")
        }) else {
            continue;
        };
        let passed_on = before.rsplit('\n').next().is_some_and(|line| line.contains("pub"));
        let mut paths = Vec::new();
        expand(tree, &[], &mut paths);
        rest = rest.replace(&format!("use {tree};"), "");
        found.extend(paths.into_iter().map(|(name, path)| Import { name, path, passed_on }));
    }
    // What is passed on and used here, too.
    let words: BTreeSet<&str> =
        rest.split(|character: char| !character.is_alphanumeric() && character != '_').collect();
    for import in &mut found {
        import.passed_on &= !words.contains(&*import.name);
    }
    // Paths within the code.
    let is_path = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    for path in rest.split(|character| !is_path(character)) {
        let first = path.split("::").next().filter(|first| first.len() + 2 < path.len());
        let child = |first: &str| known.contains(&[&module.path[..], &[first.to_owned()]].concat());
        if first.is_some_and(|first| ["crate", "super"].contains(&first) || child(first)) {
            let path: Names = path.split("::").filter(|name| !name.is_empty()).map(String::from).collect();
            found.push(Import { name: String::new(), path, passed_on: false });
        }
    }
    for import in &mut found {
        import.path = absolute(&module.path, &import.path, known).unwrap_or_default();
    }
    found.retain(|import| !import.path.is_empty());
    found
}

/// Which modules import which, re-exports followed.
fn graph(modules: &[Module]) -> BTreeMap<Names, BTreeSet<Names>> {
    let known: BTreeSet<Names> = modules.iter().map(|module| module.path.clone()).collect();
    let all: Vec<(Names, Vec<Import>)> =
        modules.iter().map(|module| (module.path.clone(), imports(module, &known))).collect();
    // An import by the place where it can be found, too.
    let aliases: BTreeMap<Names, Names> = all
        .iter()
        .flat_map(|(module, imports)| {
            let place = |import: &Import| [&module[..], std::slice::from_ref(&import.name)].concat();
            imports.iter().filter(|i| !i.name.is_empty()).map(move |i| (place(i), i.path.clone()))
        })
        .collect();
    let home = |path: &Names| {
        let mut path = path.clone();
        for _ in 0..8 {
            let alias = (1..=path.len()).rev().find_map(|length| {
                let to = aliases.get(&path[..length]).filter(|to| path[..length] != ***to)?;
                Some([&to[..], &path[length..]].concat())
            });
            match alias {
                Some(alias) => path = alias,
                None => break,
            }
        }
        (0..=path.len()).rev().map(|length| path[..length].to_vec()).find(|path| known.contains(path))
    };
    let mut graph: BTreeMap<Names, BTreeSet<Names>> = BTreeMap::new();
    for (module, imports) in &all {
        let to = imports.iter().filter(|import| !import.passed_on).filter_map(|import| home(&import.path));
        graph.entry(module.clone()).or_default().extend(to.filter(|to| to != module));
    }
    graph
}

/// The modules that are part of an import circle, with what they import.
fn circles(graph: &BTreeMap<Names, BTreeSet<Names>>) -> Vec<String> {
    let reach = |from: &Names| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            next.extend(graph.get(module).into_iter().flatten().filter(|to| seen.insert((*to).clone())));
        }
        seen
    };
    let within: Vec<&Names> = graph.keys().filter(|module| reach(module).contains(*module)).collect();
    let edges = within.iter().flat_map(|from| {
        let back = graph[*from].iter().filter(|to| reach(to).contains(*from));
        back.map(|to| format!("{} -> {}", from.join("::"), to.join("::")))
    });
    edges.collect()
}

/// The circles of a crate, by the module below which they are.
fn circles_of(folder: &Path) -> BTreeMap<String, Vec<String>> {
    let mut found = Vec::new();
    modules(&folder.join("src"), &Names::new(), &mut found);
    assert!(!found.is_empty(), "{}: no modules", folder.display());
    let files = graph(&found);
    let mut levels: BTreeMap<Names, BTreeMap<Names, BTreeSet<Names>>> = BTreeMap::new();
    for (from, to) in files.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
        let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        // Neither contains the other.
        if common < from.len().min(to.len()) {
            let level = levels.entry(from[..common].to_vec()).or_default();
            level.entry(from[..=common].to_vec()).or_default().insert(to[..=common].to_vec());
        }
    }
    let found = levels.iter().map(|(level, graph)| (level.join("::"), circles(graph)));
    found.filter(|(_, circles)| !circles.is_empty()).collect()
}

#[test]
fn modules_import_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut faults = Vec::new();
    for (name, known) in CRATES {
        let mut circles = circles_of(&root.join(name));
        for level in *known {
            assert!(
                circles.remove(*level).is_some(),
                "{name}: no circles below {level:?} any more: take it off the list"
            );
        }
        faults.extend(circles.into_values().flatten().map(|circle| format!("{name}: {circle}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The check finds what it is for.
#[test]
fn circles_are_found() {
    let circles = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let file = folder.path().join("src").join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            fs::write(file, text).expect("a file");
        }
        circles_of(folder.path()).into_values().flatten().collect::<Vec<_>>()
    };
    let root = ("lib.rs", "mod a;\nmod b;\npub use a::{A, Other};\npub use b::B;\n");
    assert_eq!(circles(&[root, ("a.rs", "use crate::b::B;\n"), ("b.rs", "pub struct B;\n")]), [""; 0]);
    let both = ["a -> b", "b -> a"];
    let found = |a, b| circles(&[root, ("a.rs", a), ("b.rs", b)]);
    // By a re-export, by a path in the code, and by a neighbour.
    assert_eq!(found("use crate::{B as Bee};\n", "use crate::A;\n"), both);
    assert_eq!(found("fn a() {\n    crate::b::b();\n}\n", "use super::a::{Inner, self};\n"), both);
    // Not in tests and comments.
    assert_eq!(
        found("use crate::B;\n", "// use crate::A;\n#[cfg(test)]\nmod tests {\n    use crate::A;\n}\n"),
        [""; 0]
    );
    // A module and one within it may use each other; two within it may not, and neither may import a neighbour that imports it.
    let nested = |b, c| {
        let root = ("lib.rs", "mod a;\nmod c;\npub use a::B;\n");
        circles(&[
            root,
            ("a/mod.rs", "mod b;\npub use b::B;\nuse b::C;\npub struct D;\n"),
            ("a/b.rs", b),
            ("c.rs", c),
        ])
    };
    assert_eq!(nested("use super::D;\n", "use crate::a::D;\n"), [""; 0]);
    assert_eq!(nested("use crate::c::E;\n", "use crate::B;\n"), ["a -> c", "c -> a"]);
}
