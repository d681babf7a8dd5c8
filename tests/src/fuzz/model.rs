//! Target `model`: a small model of any shape and type, with damaged header and weights and the right checksums, opened and
//! stepped by every kernel set.

mod file;

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use elapid::Pool;
use elapid_core::fixed;
use elapid_core::format::{Header, Quant};
use elapid_core::kernels::{self, Kernels, Solo, Team};
use elapid_core::model::{StateKind, StepError};

use self::file::File;
use super::planted;
use crate::fixed::FixedRunner;
use crate::runner::Runner;

/// A model and what is done with it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    file: File,
    way: Way,
    tokens: Tokens,
}

/// How the steps are computed; beside this, one token at a time by scalar code.
#[derive(Arbitrary, Debug)]
struct Way {
    /// The state in its wider kind.
    wide: bool,
    #[arbitrary(with = |u: &mut Unstructured<'_>| u.int_in_range(1..=40))]
    chunk: usize,
    /// Whether the members of the team are threads, and how many they are.
    #[arbitrary(with = |u: &mut Unstructured<'_>| Ok((u.ratio(1, 8)?, u.int_in_range(2..=4)?)))]
    team: (bool, usize),
    /// After so many tokens a new session goes on from the state.
    split: u8,
}

#[derive(Arbitrary, Debug)]
struct Tokens {
    #[arbitrary(with = |u: &mut Unstructured<'_>| u.int_in_range(1..=40))]
    count: usize,
    first: u8,
    step: u8,
}

/// The logits of all tokens as bits, or why there are none.
type Outcome = Result<Vec<u32>, StepError>;

/// One of the two paths: a file with the memory of a sequence.
trait Path {
    /// A new sequence.
    fn open(file: &[u8], header: &Header, way: &Way, chunk: usize) -> Self;
    /// The kernel sets of this machine, scalar code first.
    fn sets() -> Vec<&'static str>;
    /// Makes a session that goes on from the state and feeds tokens.
    fn feed(&mut self, set: usize, team: &dyn Team, tokens: &[u32]) -> Outcome;
    /// Begins a new sequence with the memory of this one.
    fn clear(&mut self);
    /// The state's bits.
    fn state(&self) -> Vec<u32>;
}

fn float_sets() -> Vec<&'static dyn Kernels> {
    let mut sets = Vec::new();
    kernels::for_each_available(&mut |kernels| sets.push(kernels));
    sets
}

impl Path for Runner {
    fn open(file: &[u8], header: &Header, way: &Way, chunk: usize) -> Self {
        let kind = if way.wide { StateKind::F32 } else { StateKind::F16 };
        Self::new(file.to_vec(), *header, kind, chunk, 1)
    }
    fn sets() -> Vec<&'static str> {
        float_sets().iter().map(|kernels| kernels.name()).collect()
    }
    fn feed(&mut self, set: usize, team: &dyn Team, tokens: &[u32]) -> Outcome {
        let mut logits = self.all_logits(float_sets()[set], team, tokens)?;
        if planted("model") && set > 0 && self.config().quants.in_proj == Quant::Q3 && tokens.len() > 8 {
            logits[0] += 1.0;
        }
        Ok(logits.iter().map(|x| x.to_bits()).collect())
    }
    fn clear(&mut self) {
        self.with(float_sets()[0], &Solo, |_, session, _| session.clear());
    }
    fn state(&self) -> Vec<u32> {
        self.state_bits()
    }
}

fn fixed_sets() -> Vec<&'static dyn kernels::fixed::Kernels> {
    let mut sets = Vec::new();
    kernels::fixed::for_each_available(&mut |kernels| sets.push(kernels));
    sets
}

impl Path for FixedRunner {
    fn open(file: &[u8], header: &Header, way: &Way, chunk: usize) -> Self {
        let kind = if way.wide { fixed::StateKind::I32 } else { fixed::StateKind::I16 };
        Self::new(file.to_vec(), *header, kind, chunk)
    }
    fn sets() -> Vec<&'static str> {
        fixed_sets().iter().map(|kernels| kernels.name()).collect()
    }
    fn feed(&mut self, set: usize, team: &dyn Team, tokens: &[u32]) -> Outcome {
        let logits = self.all_logits(fixed_sets()[set], team, tokens)?;
        Ok(logits.into_iter().map(i32::cast_unsigned).collect())
    }
    fn clear(&mut self) {
        let cleared = self.with(fixed_sets()[0], &Solo, |_, session, _| session.clear());
        cleared.expect("a new sequence begins with any memory that a step left");
    }
    fn state(&self) -> Vec<u32> {
        self.state.bits()
    }
}

/// A team whose members share even the least work.
enum Eager {
    /// Threads: most true to life, and slow where another program has the cores.
    Threads(Pool),
    /// One member after the other, from the last on.
    Turns(usize),
}

impl Team for Eager {
    fn size(&self) -> usize {
        match self {
            Self::Threads(pool) => pool.size(),
            Self::Turns(members) => *members,
        }
    }
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        match self {
            Self::Threads(pool) => pool.run(job),
            Self::Turns(members) => (0..*members).rev().for_each(job),
        }
    }
    fn grain(&self) -> usize {
        1
    }
    fn fixed_ranges(&self) -> bool {
        matches!(self, Self::Turns(_))
    }
}

fn team((threads, size): (bool, usize)) -> &'static Eager {
    static POOLS: [OnceLock<Eager>; 3] = [const { OnceLock::new() }; 3];
    static TURNS: [Eager; 3] = [Eager::Turns(2), Eager::Turns(3), Eager::Turns(4)];
    let at = size - 2;
    if threads {
        POOLS[at].get_or_init(|| Eager::Threads(Pool::new(size).expect("threads")))
    } else {
        &TURNS[at]
    }
}

/// Whether both give the same bits or both fail. The layer that is named first may differ with the chunk.
fn assert_same(a: &Outcome, b: &Outcome, what: &str) {
    match (a, b) {
        (Err(StepError::NonFinite { .. }), Err(StepError::NonFinite { .. })) => {}
        (Ok(a), Ok(b)) if a == b => {}
        (Ok(a), Ok(b)) => {
            let place = a.iter().zip(b).position(|(a, b)| a != b);
            panic!("{what}: bits differ from logit {place:?} on");
        }
        _ => panic!("{what}: {:?} and {:?}", a.as_ref().map(Vec::len), b.as_ref().map(Vec::len)),
    }
}

/// Lets a path compute the tokens in every way. Returns whether there were logits.
fn compare<P: Path>(file: &[u8], header: &Header, way: &Way, tokens: &[u32]) -> bool {
    let sets = P::sets();
    let open = |chunk| P::open(file, header, way, chunk);

    let mut single = open(1);
    let wanted = single.feed(0, &Solo, tokens);
    if let Err(error) = wanted {
        assert!(matches!(error, StepError::NonFinite { .. }), "{error}");
    }
    let wanted_state = single.state();
    let mut scalar = open(way.chunk);
    let chunked = scalar.feed(0, &Solo, tokens);
    assert_same(&chunked, &wanted, "scalar in chunks");
    let same_state = |path: &P, what: &str| {
        assert!(wanted.is_err() || path.state() == wanted_state, "{what}: the state differs");
    };
    same_state(&scalar, "scalar in chunks");

    for (set, name) in sets.iter().enumerate().skip(1) {
        let mut path = open(way.chunk);
        let found = path.feed(set, &Solo, tokens);
        assert_same(&found, &chunked, name);
        // In the same chunks the layer is the same too.
        assert_eq!(found.as_ref().err(), chunked.as_ref().err(), "{name}");
        same_state(&path, name);
        if set + 1 == sets.len() {
            path.clear();
            assert_same(&path.feed(set, &Solo, tokens), &chunked, "a new sequence in the same memory");
            same_state(&path, "a new sequence in the same memory");
        }
    }

    // A team; and halfway a new session, which goes on from the state.
    let best = sets.len() - 1;
    // Threads that another program keeps from running are waited for at every job: fewer jobs of more tokens.
    let mut shared = open(if way.team.0 { way.chunk.max(8) } else { way.chunk });
    let (first, rest) = tokens.split_at(usize::from(way.split) % tokens.len());
    let fed = [first, rest].into_iter().filter(|tokens| !tokens.is_empty());
    let found: Outcome = fed.map(|tokens| shared.feed(best, team(way.team), tokens)).try_fold(
        Vec::new(),
        |mut all, logits| {
            all.extend(logits?);
            Ok(all)
        },
    );
    assert_same(&found, &wanted, "a team and two sessions");
    same_state(&shared, "a team and two sessions");
    wanted.is_ok()
}

/// Runs the target, and says how far the input came.
pub fn run(input: &Input) -> &'static str {
    let Some((file, header)) = input.file.make() else { return "refused" };
    let Tokens { count, first, step } = input.tokens;
    let vocab = header.layout().config().vocab;
    let token = |i: usize| (u32::from(first) + i as u32 * u32::from(step)) % vocab;
    let tokens: Vec<u32> = (0..count).map(token).collect();
    let float = compare::<Runner>(&file, &header, &input.way, &tokens);
    if fixed::Model::fixed(header.layout(), fixed_sets()[0], &Solo).is_err() {
        return if float { "logits" } else { "not finite" };
    }
    compare::<FixedRunner>(&file, &header, &input.way, &tokens);
    if float { "logits of both paths" } else { "not finite in floating point" }
}
