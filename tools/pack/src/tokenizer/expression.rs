//! Regular expressions of pre-tokenizers, as far as an automaton that sees one character ahead can follow them.
//!
//! The syntax is parsed by regex-syntax. It has no look-around, so `(?=…)` and `(?!…)` with one character in them become
//! characters that no expression has before it sees them.

use regex_syntax::ast::{
    self, Ast, ClassPerlKind, ClassSetBinaryOpKind, Flag, GroupKind, RepetitionKind, RepetitionRange,
};
use regex_syntax::hir::translate::TranslatorBuilder;
use regex_syntax::hir::{Class, HirKind};

use super::CompileError;
use super::tokens::unsupported;

/// A set of characters: ranges of code points, ascending and apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set(pub Vec<(u32, u32)>);

/// A regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Nothing.
    Empty,
    /// One character of a set.
    One(Set),
    /// One after the other.
    Concat(Vec<Self>),
    /// The first one that leads to a match.
    Either(Vec<Self>),
    /// As often as it says.
    Repeat {
        what: Box<Self>,
        least: u32,
        most: Option<u32>,
        /// As often as possible first.
        greedy: bool,
        /// Once matched, never shorter.
        possessive: bool,
    },
    /// Looks at the next character: whether it is in the set, or, if negated, whether none of the set is there.
    Next { set: Set, negated: bool },
}

/// The character that stands for the first look-around.
const PLACEHOLDER: u32 = 0x10_f800;
/// More repetitions than this are refused: each is a copy.
const MOST_REPETITIONS: u32 = 1000;

impl Set {
    /// The characters that a predicate accepts.
    pub fn of(accepts: impl Fn(u32) -> bool) -> Self {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for c in (0..=u32::from(char::MAX)).filter(|&c| accepts(c)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == c => *last = c,
                _ => ranges.push((c, c)),
            }
        }
        Self(ranges)
    }

    /// All others.
    pub fn negated(&self) -> Self {
        let mut ranges = Vec::new();
        let mut next = 0;
        for &(first, last) in &self.0 {
            if next < first {
                ranges.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= u32::from(char::MAX) {
            ranges.push((next, char::MAX.into()));
        }
        Self(ranges)
    }

    /// The set that a class of a regular expression stands for.
    pub fn parse(class: &str) -> Result<Self, CompileError> {
        match parse(class, false)? {
            Expression::One(set) => Ok(set),
            _ => unsupported(format!("{class:?} where a class of characters is expected")),
        }
    }
}

impl Expression {
    /// A set once or more often.
    pub fn run(set: &Set) -> Self {
        Self::Repeat {
            what: Box::new(Self::One(set.clone())),
            least: 1,
            most: None,
            greedy: true,
            possessive: false,
        }
    }

    /// A text.
    pub fn literal(text: &str) -> Self {
        let mut parts: Vec<Self> =
            text.chars().map(|c| Self::One(Set(vec![(u32::from(c), u32::from(c))]))).collect();
        if parts.len() == 1 { parts.swap_remove(0) } else { Self::Concat(parts) }
    }
}

/// Reads an expression. `lines` says that a line end is a text of its own: `$` is then the end of the text in all engines.
pub fn parse(pattern: &str, lines: bool) -> Result<Expression, CompileError> {
    Parser::new(pattern, lines)?.whole()
}

struct Parser<'p> {
    original: &'p str,
    /// Without look-arounds.
    pattern: String,
    looks: Vec<Expression>,
    lines: bool,
}

impl<'p> Parser<'p> {
    fn new(original: &'p str, lines: bool) -> Result<Self, CompileError> {
        let mut parser = Self { original, pattern: String::new(), looks: Vec::new(), lines };
        if original.chars().any(|c| (PLACEHOLDER..PLACEHOLDER + 0x400).contains(&u32::from(c))) {
            return parser.refuse("private characters at the end of Unicode");
        }
        if original.contains("[:") {
            return parser.refuse("POSIX classes");
        }
        let (mut rest, mut depth) = (original, 0u32);
        while let Some(c) = rest.chars().next() {
            let ahead = rest.strip_prefix("(?=").map(|inner| (inner, false));
            let ahead = ahead.or_else(|| rest.strip_prefix("(?!").map(|inner| (inner, true)));
            let mut taken = c.len_utf8();
            match c {
                '\\' => taken += rest[1..].chars().next().map_or(0, char::len_utf8),
                '[' => depth += 1,
                ']' => depth = depth.saturating_sub(1),
                '(' if depth == 0 => {
                    if let Some((inner, negated)) = ahead {
                        let Some((inner, after)) = inner.split_once(')') else {
                            return parser.refuse("a look-ahead at more than a class");
                        };
                        let Ok(set) = Set::parse(inner) else {
                            return parser.refuse("a look-ahead at more than a class");
                        };
                        if parser.looks.len() >= 0x400 {
                            return parser.refuse("too many look-aheads");
                        }
                        parser.pattern.extend(char::from_u32(PLACEHOLDER + parser.looks.len() as u32));
                        parser.looks.push(Expression::Next { set, negated });
                        rest = after;
                        continue;
                    }
                }
                _ => {}
            }
            parser.pattern.push_str(&rest[..taken]);
            rest = &rest[taken..];
        }
        Ok(parser)
    }

    fn refuse<T>(&self, what: &str) -> Result<T, CompileError> {
        unsupported(format!("the regular expression {:?} with {what}", self.original))
    }

    fn whole(&self) -> Result<Expression, CompileError> {
        match ast::parse::Parser::new().parse(&self.pattern) {
            Ok(ast) => self.expression(&ast, false),
            Err(error) => self.refuse(&format!("what is not known ({})", error.kind())),
        }
    }

    fn expression(&self, ast: &Ast, ignore_case: bool) -> Result<Expression, CompileError> {
        let each = |asts: &[Ast]| -> Result<Vec<Expression>, CompileError> {
            asts.iter().map(|ast| self.expression(ast, ignore_case)).collect()
        };
        match ast {
            Ast::Empty(_) => Ok(Expression::Empty),
            Ast::Literal(literal) => {
                let look = u32::from(literal.c).checked_sub(PLACEHOLDER);
                match look.and_then(|i| self.looks.get(i as usize)) {
                    Some(look) => Ok(look.clone()),
                    None => self.set(ast, ignore_case),
                }
            }
            Ast::ClassPerl(class) if class.kind == ClassPerlKind::Word => {
                self.refuse(r"`\w`, which differs between the engines of tokenizers")
            }
            Ast::ClassBracketed(class) => {
                self.check_class(&class.kind)?;
                self.set(ast, ignore_case)
            }
            Ast::Dot(_) | Ast::ClassUnicode(_) | Ast::ClassPerl(_) => self.set(ast, ignore_case),
            Ast::Alternation(alternation) => Ok(Expression::Either(each(&alternation.asts)?)),
            Ast::Concat(concat) => Ok(Expression::Concat(each(&concat.asts)?)),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(flags) => {
                    let ignore = flags.flag_state(Flag::CaseInsensitive);
                    if flags.items.len() > usize::from(ignore.is_some()) {
                        return self.refuse("flags other than `i`");
                    }
                    self.expression(&group.ast, ignore.unwrap_or(ignore_case))
                }
                _ => self.expression(&group.ast, ignore_case),
            },
            Ast::Repetition(outer) => self.repetition(outer, ignore_case),
            Ast::Flags(_) => self.refuse("flags outside a group"),
            Ast::Assertion(assertion) if self.lines && assertion.kind == ast::AssertionKind::EndLine => {
                Ok(Expression::Next { set: Set(vec![(0, char::MAX.into())]), negated: true })
            }
            Ast::Assertion(_) => self.refuse(
                r"an assertion other than a look-ahead at one class (`^`, `$`, `\b`; they differ between the engines of tokenizers)",
            ),
        }
    }

    fn repetition(&self, outer: &ast::Repetition, ignore_case: bool) -> Result<Expression, CompileError> {
        let (mut repetition, mut possessive) = (outer, false);
        // In the engines, a `+` behind a repetition makes it possessive; here it is a repetition of its own.
        if let Ast::Repetition(inner) = &*outer.ast {
            let simple = !matches!(inner.op.kind, RepetitionKind::Range(_)) && inner.greedy;
            if outer.op.kind != RepetitionKind::OneOrMore || !outer.greedy || !simple {
                return self.refuse("a repetition of a repetition");
            }
            (repetition, possessive) = (inner, true);
        }
        let (least, most) = match &repetition.op.kind {
            RepetitionKind::ZeroOrOne => (0, Some(1)),
            RepetitionKind::ZeroOrMore => (0, None),
            RepetitionKind::OneOrMore => (1, None),
            RepetitionKind::Range(RepetitionRange::Exactly(n)) => (*n, Some(*n)),
            RepetitionKind::Range(RepetitionRange::AtLeast(n)) => (*n, None),
            RepetitionKind::Range(RepetitionRange::Bounded(least, most)) => (*least, Some(*most)),
        };
        if least.max(most.unwrap_or(0)) > MOST_REPETITIONS {
            return self.refuse("more than 1000 repetitions");
        }
        let what = Box::new(self.expression(&repetition.ast, ignore_case)?);
        if most != Some(1) && what.may_be_empty() {
            return self.refuse("a repetition of what may be empty");
        }
        Ok(Expression::Repeat { what, least, most, greedy: repetition.greedy, possessive })
    }

    /// Refuses classes that the engines of tokenizers read in different ways.
    fn check_class(&self, set: &ast::ClassSet) -> Result<(), CompileError> {
        use ast::{ClassSet, ClassSetItem};
        match set {
            ClassSet::BinaryOp(op) if op.kind == ClassSetBinaryOpKind::Intersection => {
                self.check_class(&op.lhs)?;
                self.check_class(&op.rhs)
            }
            ClassSet::BinaryOp(_) => self.refuse("`--` or `~~` in a class"),
            ClassSet::Item(ClassSetItem::Perl(class)) if class.kind == ClassPerlKind::Word => {
                self.refuse(r"`\w`, which differs between the engines of tokenizers")
            }
            ClassSet::Item(ClassSetItem::Bracketed(class)) => self.check_class(&class.kind),
            ClassSet::Item(ClassSetItem::Union(union)) => {
                union.items.iter().try_for_each(|item| self.check_class(&ClassSet::Item(item.clone())))
            }
            ClassSet::Item(_) => Ok(()),
        }
    }

    /// The set of characters that a part of the expression stands for.
    fn set(&self, ast: &Ast, ignore_case: bool) -> Result<Expression, CompileError> {
        let translated =
            TranslatorBuilder::new().case_insensitive(ignore_case).build().translate(&self.pattern, ast);
        let ranges = match translated.as_ref().map(regex_syntax::hir::Hir::kind) {
            Ok(HirKind::Class(Class::Unicode(class))) => {
                class.iter().map(|range| (range.start().into(), range.end().into())).collect()
            }
            Ok(HirKind::Class(Class::Bytes(class))) => {
                class.iter().map(|range| (range.start().into(), range.end().into())).collect()
            }
            Ok(HirKind::Literal(literal)) => {
                let text = std::str::from_utf8(&literal.0).unwrap_or_default();
                let mut chars = text.chars();
                match (chars.next(), chars.next()) {
                    (Some(c), None) => vec![(c.into(), c.into())],
                    _ => return self.refuse("a class of more than one character"),
                }
            }
            Ok(_) => return self.refuse("an empty class"),
            Err(error) => return self.refuse(&format!("what is not known ({})", error.kind())),
        };
        Ok(Expression::One(Set(ranges)))
    }
}

impl Expression {
    /// Whether it may match without taking a character.
    fn may_be_empty(&self) -> bool {
        match self {
            Self::Empty | Self::Next { .. } => true,
            Self::One(_) => false,
            Self::Concat(parts) => parts.iter().all(Self::may_be_empty),
            Self::Either(parts) => parts.iter().any(Self::may_be_empty),
            Self::Repeat { what, least, .. } => *least == 0 || what.may_be_empty(),
        }
    }
}
