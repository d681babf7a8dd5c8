//! Regular expressions to the automata that `elapid_core::tokenizer::pattern` reads in place.

use std::collections::{BTreeMap, HashMap};

use elapid_core::tokenizer::pattern::{
    BLOCK, HEADER_LEN, HIGH, MATCH, MAX_CLASSES, MAX_STAGES, Pieces, RECORD_LEN,
};

use super::CompileError;
use super::expression::{Expression, Set};
use super::tokens::unsupported;

/// Parts of an expression, copies of repetitions included.
const MOST_NODES: usize = 20_000;
/// States of an automaton before equal ones are joined.
const MOST_STATES: usize = 2_000;

/// A stage of a pre-tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub expression: Expression,
    pub pieces: Pieces,
}

/// Compiles the stages of a pre-tokenizer and, if asked for, an automaton of `\w` for added tokens.
pub fn compile(stages: &[Stage], word: bool) -> Result<Vec<u8>, CompileError> {
    if stages.len() > MAX_STAGES {
        return unsupported(format!("a pre_tokenizer of {} steps, at most {MAX_STAGES}", stages.len()));
    }
    let mut all = stages.to_vec();
    if word {
        let expression = Expression::One(word_set()?);
        all.push(Stage { expression, pieces: Pieces::All });
    }
    let mut sets = Vec::new();
    all.iter().for_each(|stage| collect_sets(&stage.expression, &mut sets));
    let classes = Classes::new(&sets)?;
    let mut automata = Vec::new();
    for stage in &all {
        let mut program = Program::new(&classes);
        let end = program.push(Node::Match)?;
        let start = program.add(&stage.expression, end)?;
        automata.push((stage.pieces, determinize(&program, start)?));
    }
    emit(&classes, &automata, stages.len())
}

/// `\w` as the crate `regex` has it, which decides about `single_word`.
fn word_set() -> Result<Set, CompileError> {
    Set::parse(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
}

fn collect_sets(expression: &Expression, sets: &mut Vec<Set>) {
    match expression {
        Expression::Empty => {}
        Expression::One(set) | Expression::Next { set, .. } => {
            if !sets.contains(set) {
                sets.push(set.clone());
            }
        }
        Expression::Concat(parts) | Expression::Either(parts) => {
            parts.iter().for_each(|part| collect_sets(part, sets));
        }
        Expression::Repeat { what, .. } => collect_sets(what, sets),
    }
}

/// Characters in classes: those of one class are in the same sets.
struct Classes<'s> {
    sets: &'s [Set],
    /// The first character of each run of one class, ascending from 0.
    runs: Vec<(u32, u8)>,
    /// For each class, the sets that it is in.
    members: Vec<Vec<bool>>,
}

impl<'s> Classes<'s> {
    fn new(sets: &'s [Set]) -> Result<Self, CompileError> {
        let mut starts: BTreeMap<u32, Vec<usize>> = BTreeMap::from([(0, Vec::new())]);
        for (i, Set(ranges)) in sets.iter().enumerate() {
            for &(first, last) in ranges {
                starts.entry(first).or_default().push(i);
                starts.entry(last + 1).or_default().push(i);
            }
        }
        let mut inside = vec![false; sets.len()];
        let mut numbers: HashMap<Vec<bool>, u8> = HashMap::new();
        let (mut runs, mut members): (Vec<(u32, u8)>, Vec<Vec<bool>>) = (Vec::new(), Vec::new());
        for (start, changes) in starts.range(..=u32::from(char::MAX)) {
            changes.iter().for_each(|&i| inside[i] = !inside[i]);
            let class = match numbers.get(&inside) {
                Some(&class) => class,
                None if members.len() < MAX_CLASSES => {
                    let class = members.len() as u8;
                    members.push(inside.clone());
                    numbers.insert(inside.clone(), class);
                    class
                }
                None => return unsupported("a regular expression with too many classes of characters"),
            };
            if runs.last().is_none_or(|&(_, last)| last != class) {
                runs.push((*start, class));
            }
        }
        Ok(Self { sets, runs, members })
    }

    fn count(&self) -> usize {
        self.members.len()
    }

    fn set(&self, set: &Set) -> usize {
        self.sets.iter().position(|known| known == set).unwrap_or(0)
    }

    fn of(&self, c: u32) -> u8 {
        let at = self.runs.partition_point(|&(first, _)| first <= c);
        self.runs[at.saturating_sub(1)].1
    }
}

/// A step of a backtracking engine.
enum Node {
    /// Takes a character of the set, then goes on.
    One(usize, usize),
    /// Tries the first, then the second.
    Either(usize, usize),
    /// Goes on if the next character is in the set, or, if negated, if none of the set is there.
    Next {
        set: usize,
        negated: bool,
        then: usize,
    },
    Match,
    /// To be decided when what comes before it is there.
    Open,
}

/// An expression as steps. Each is made knowing what comes after it.
struct Program<'c> {
    classes: &'c Classes<'c>,
    nodes: Vec<Node>,
}

impl<'c> Program<'c> {
    fn new(classes: &'c Classes<'c>) -> Self {
        Self { classes, nodes: Vec::new() }
    }

    fn push(&mut self, node: Node) -> Result<usize, CompileError> {
        if self.nodes.len() >= MOST_NODES {
            return unsupported("a regular expression that is too large");
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn either(&mut self, greedy: bool, more: usize, done: usize) -> Result<usize, CompileError> {
        self.push(if greedy { Node::Either(more, done) } else { Node::Either(done, more) })
    }

    fn add(&mut self, expression: &Expression, then: usize) -> Result<usize, CompileError> {
        match expression {
            Expression::Empty => Ok(then),
            Expression::One(set) => self.push(Node::One(self.classes.set(set), then)),
            Expression::Next { set, negated } => {
                self.push(Node::Next { set: self.classes.set(set), negated: *negated, then })
            }
            Expression::Concat(parts) => parts.iter().rev().try_fold(then, |then, part| self.add(part, then)),
            Expression::Either(parts) => {
                let mut nodes = Vec::new();
                for part in parts {
                    nodes.push(self.add(part, then)?);
                }
                let last = nodes.pop().unwrap_or(then);
                nodes.into_iter().rev().try_fold(last, |rest, node| self.push(Node::Either(node, rest)))
            }
            Expression::Repeat { what, least, most, greedy, possessive } => {
                if *possessive {
                    self.check_possessive(what, then)?;
                }
                let mut next = then;
                match most {
                    Some(most) => {
                        for _ in *least..*most {
                            let more = self.add(what, next)?;
                            next = self.either(*greedy, more, then)?;
                        }
                    }
                    None => {
                        let again = self.push(Node::Open)?;
                        let more = self.add(what, again)?;
                        self.nodes[again] =
                            if *greedy { Node::Either(more, then) } else { Node::Either(then, more) };
                        next = again;
                    }
                }
                (0..*least).try_fold(next, |next, _| self.add(what, next))
            }
        }
    }

    /// Accepts a possessive repetition where it takes the same as a greedy one: where what comes after it can't fail, or
    /// can't begin with what is repeated.
    fn check_possessive(&self, what: &Expression, then: usize) -> Result<(), CompileError> {
        let Expression::One(set) = what else {
            return unsupported("a regular expression with a possessive repetition of more than a class");
        };
        let set = self.classes.set(set);
        let mut ahead = Vec::new();
        self.close(then, &mut vec![false; self.nodes.len()], &mut ahead);
        let certain = ahead.iter().any(|&node| matches!(self.nodes[node], Node::Match));
        let apart = |&node: &usize| match self.nodes[node] {
            Node::One(first, _) => {
                self.classes.members.iter().all(|members| !(members[set] && members[first]))
            }
            _ => false,
        };
        if certain || ahead.iter().all(apart) {
            return Ok(());
        }
        unsupported("a regular expression with a possessive repetition before what it may take")
    }

    /// The nodes that `node` leads to without a look at the next character, in the order in which they are tried.
    fn close(&self, node: usize, seen: &mut [bool], out: &mut Vec<usize>) {
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            match self.nodes[node] {
                Node::Either(first, second) => open.extend([second, first]),
                _ => out.push(node),
            }
        }
    }

    /// What remains of `nodes` behind a character of `class`, or the end if there is none; and whether they match before it.
    fn step(&self, nodes: &[usize], class: Option<usize>) -> (Vec<usize>, bool) {
        let is_in = |set: usize| class.is_some_and(|class| self.classes.members[class][set]);
        let (mut seen, mut after, mut out) =
            (vec![false; self.nodes.len()], vec![false; self.nodes.len()], Vec::new());
        let mut open: Vec<usize> = nodes.iter().rev().copied().collect();
        while let Some(node) = open.pop() {
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            match self.nodes[node] {
                Node::Either(first, second) => open.extend([second, first]),
                Node::Next { set, negated, then } if is_in(set) != negated => open.push(then),
                Node::Next { .. } => {}
                Node::One(set, then) if is_in(set) => self.close(then, &mut after, &mut out),
                Node::One(..) | Node::Open => {}
                // What is tried after a match is never tried.
                Node::Match => return (out, true),
            }
        }
        (out, false)
    }
}

/// For each state, the transition of each class and of the end: the next state and whether a match ends before.
type Transitions = Vec<Vec<(usize, bool)>>;

/// The automaton that follows all ways of a backtracking engine at once, in their order. State 0 has none left.
fn determinize(program: &Program<'_>, start: usize) -> Result<Transitions, CompileError> {
    let mut first = Vec::new();
    program.close(start, &mut vec![false; program.nodes.len()], &mut first);
    let mut states: Vec<Vec<usize>> = vec![Vec::new(), first.clone()];
    let mut numbers: HashMap<Vec<usize>, usize> = HashMap::from([(Vec::new(), 0), (first, 1)]);
    let classes = program.classes.count();
    let mut table = vec![vec![(0, false); classes + 1]];
    while table.len() < states.len() {
        let nodes = states[table.len()].clone();
        let mut row = Vec::with_capacity(classes + 1);
        for class in (0..classes).map(Some).chain([None]) {
            let (next, matched) = program.step(&nodes, class);
            if matched && table.len() == 1 {
                return unsupported("a regular expression that matches where nothing is");
            }
            let next = if class.is_some() { next } else { Vec::new() };
            let number = *numbers.entry(next).or_insert_with_key(|next| {
                states.push(next.clone());
                states.len() - 1
            });
            if number >= MOST_STATES {
                return unsupported("a regular expression that is too large");
            }
            row.push((number, matched));
        }
        table.push(row);
    }
    Ok(minimize(&table))
}

/// Joins states that nothing tells apart. The first two keep their numbers.
fn minimize(table: &Transitions) -> Transitions {
    let mut groups: Vec<usize> = vec![0; table.len()];
    let mut count = 1;
    loop {
        let mut numbers = HashMap::new();
        // The dead state and the start are not joined with others that come before them: they come first.
        let next: Vec<usize> = (0..table.len())
            .map(|state| {
                let row: Vec<(usize, bool)> = table[state].iter().map(|&(to, m)| (groups[to], m)).collect();
                let number = numbers.len();
                *numbers.entry((groups[state], state == 1, row)).or_insert(number)
            })
            .collect();
        let new = numbers.len();
        groups = next;
        if new == count {
            break;
        }
        count = new;
    }
    let mut out = vec![Vec::new(); count];
    for (state, row) in table.iter().enumerate() {
        out[groups[state]] = row.iter().map(|&(to, matched)| (groups[to], matched)).collect();
    }
    out
}

fn emit(
    classes: &Classes<'_>,
    automata: &[(Pieces, Transitions)],
    stages: usize,
) -> Result<Vec<u8>, CompileError> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut index = Vec::new();
    for first in (0..HIGH).step_by(BLOCK) {
        let block: Vec<u8> = (first..first + BLOCK as u32).map(|c| classes.of(c)).collect();
        let known = blocks.iter().position(|known| *known == block);
        index.push(known.unwrap_or_else(|| {
            blocks.push(block);
            blocks.len() - 1
        }));
    }
    let mut ranges = vec![(HIGH, classes.of(HIGH))];
    ranges.extend(classes.runs.iter().filter(|&&(first, _)| first > HIGH));

    let word = automata.len() - stages;
    let mut out = Vec::new();
    let u16s = |out: &mut Vec<u8>, values: &[usize]| {
        values.iter().for_each(|&value| out.extend((value as u16).to_le_bytes()));
    };
    u16s(&mut out, &[classes.count(), stages, blocks.len(), ranges.len(), word, 0, 0, 0]);
    debug_assert_eq!(out.len(), HEADER_LEN);
    let fixed = RECORD_LEN * automata.len() + 128 + 2 * index.len() + BLOCK * blocks.len() + 4 * ranges.len();
    let mut offset = HEADER_LEN + fixed;
    for (pieces, table) in automata {
        u16s(&mut out, &[*pieces as usize, table.len()]);
        out.extend((offset as u32).to_le_bytes());
        offset += 2 * table.len() * (classes.count() + 1);
    }
    out.extend((0..128).map(|c| classes.of(c)));
    u16s(&mut out, &index);
    out.extend(blocks.concat());
    ranges.iter().for_each(|&(first, class)| out.extend((first | u32::from(class) << 24).to_le_bytes()));
    for (_, table) in automata {
        let entry = |&(to, matched): &(usize, bool)| to | if matched { usize::from(MATCH) } else { 0 };
        u16s(&mut out, &table.iter().flatten().map(entry).collect::<Vec<_>>());
    }
    debug_assert_eq!(out.len(), offset);
    Ok(out)
}
