//! The selective scan: sixteen channels of a state side by side, so that no operation waits for the one before it.
//!
//! The operations are those of `elementwise::scan`, in the same order.

use core::arch::asm;

use super::float::Quads;
use crate::kernels::float::isa::Isa;
use crate::kernels::float::operands::{ScanInput, SsmState};
use crate::numbers::LANES;
use crate::numbers::float;
use crate::numbers::float::Float as _;

/// Largest finite f16.
const F16_MAX: f32 = 65504.0;

type Lanes = [f32; LANES];

/// The constants of [`float::exp`]: those that are changed in place and so are read again for every state, those that stand in
/// lanes, and the rest.
#[repr(C)]
struct Exp {
    magic: Lanes,
    p0: Lanes,
    p2: Lanes,
    factors: [f32; 8],
    one: [f32; 4],
    floor: f32,
}

static EXP: Exp = Exp {
    magic: [float::ROUND_MAGIC; LANES],
    p0: [float::EXP_P[0]; LANES],
    p2: [float::EXP_P[2]; LANES],
    factors: [
        float::LOG2_E,
        -float::LN2_HI,
        -float::LN2_LO,
        float::EXP_P[1],
        float::EXP_P[3],
        float::EXP_P[4],
        // As an integer, a shift by 23 bits: what is added to the exponent.
        f32::from_bits(1 << 23),
        // B, then C of a state.
        0.0,
    ],
    one: [1.0; 4],
    floor: float::EXP_FLOOR,
};

/// How the state is stored.
trait Stored<S: Quads> {
    type Element;
    /// Calls `pass` with some states as f32, and keeps what it leaves as far as the stored type holds it.
    fn with(s: S, states: &mut [[Self::Element; LANES]], pass: impl FnOnce(&mut [Lanes]));
}

struct StoredF32;
impl<S: Quads> Stored<S> for StoredF32 {
    type Element = f32;
    #[inline(always)]
    fn with(_: S, states: &mut [Lanes], pass: impl FnOnce(&mut [Lanes])) {
        pass(states);
    }
}

struct StoredF16;
impl<S: Quads> Stored<S> for StoredF16 {
    type Element = u16;
    #[inline(always)]
    fn with(s: S, states: &mut [[u16; LANES]], pass: impl FnOnce(&mut [Lanes])) {
        let mut wide = [[0.0; LANES]; LANES];
        let wide = &mut wide[..states.len().min(LANES)];
        for (wide, h) in wide.iter_mut().zip(&*states) {
            s.store(s.load_f16(h), wide);
        }
        pass(wide);
        let (low, high) = (s.splat(-F16_MAX), s.splat(F16_MAX));
        for (wide, to) in wide.iter().zip(states) {
            let h = s.load(wide);
            let h = s.select_lt(h, low, low, h);
            s.store_f16(s.select_lt(high, h, high, h), to);
        }
    }
}

/// See [`Kernels::scan`](crate::kernels::float::set::Kernels::scan).
#[inline(always)]
pub(in crate::kernels::float) fn scan<S: Quads>(
    s: S,
    panels: &[u8],
    state: SsmState<'_>,
    input: &ScanInput<'_>,
    dt: &[f32],
    z: &[f32],
    u: &mut [f32],
) {
    match state {
        SsmState::F32(state) => scan_panels::<S, StoredF32>(s, panels, state, input, dt, z, u),
        SsmState::F16(state) => scan_panels::<S, StoredF16>(s, panels, state, input, dt, z, u),
    }
}

#[inline(always)]
fn scan_panels<S: Quads, H: Stored<S>>(
    s: S,
    panels: &[u8],
    state: &mut [H::Element],
    input: &ScanInput<'_>,
    dt: &[f32],
    z: &[f32],
    u: &mut [f32],
) {
    let (n, tokens) = (input.d_state, input.tokens);
    let range = input.given();
    if n == 0 || range.is_empty() {
        return;
    }
    let weights = panels.as_chunks::<{ 4 * LANES }>().0.chunks_exact(n + 1);
    let state = state.as_chunks_mut::<LANES>().0.chunks_exact_mut(n);
    let of_panels = |x| <[f32]>::as_chunks::<LANES>(x).0.chunks_exact(tokens);
    let u = u.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens);
    for ((((w, h), dt), z), u) in weights.zip(state).zip(of_panels(dt)).zip(of_panels(z)).zip(u) {
        for t in range.clone() {
            scan_token::<S, H>(s, w, h, input, t, &dt[t], &z[t], &mut u[t]);
        }
    }
}

/// Token `t`, for sixteen channels.
#[inline(always)]
fn scan_token<S: Quads, H: Stored<S>>(
    s: S,
    weights: &[[u8; 4 * LANES]],
    state: &mut [[H::Element; LANES]],
    input: &ScanInput<'_>,
    t: usize,
    dt: &Lanes,
    z: &Lanes,
    u: &mut Lanes,
) {
    let step = s.softplus(s.load(dt));
    let mut token = Token { step: [0.0; LANES], step_u: [0.0; LANES], y: [0.0; LANES] };
    s.store(step, &mut token.step);
    s.store(s.mul(step, s.load(u)), &mut token.step_u);
    for (panel, state) in state.chunks_mut(LANES).enumerate() {
        let of_panel = |x| <[f32]>::as_chunks::<LANES>(x).0.get(panel * input.tokens + t);
        let (Some(b), Some(c)) = (of_panel(input.b), of_panel(input.c)) else { return };
        let a = weights.get(panel * LANES..).unwrap_or_default();
        H::with(s, state, |state| token.pass(s, a, state, b, c));
    }
    let Some(d) = weights.get(state.len()) else { return };
    let y = s.fma(s.load_f32_bytes(d), s.load(u), s.load(&token.y));
    s.store(s.mul(y, s.silu(s.load(z))), u);
}

/// Four of the sixteen lanes of a variable.
#[rustfmt::skip]
macro_rules! register {
    (x 0) => { "v0" }; (x 1) => { "v1" }; (x 2) => { "v2" }; (x 3) => { "v3" };
    (shifted 0) => { "v4" }; (shifted 1) => { "v5" }; (shifted 2) => { "v6" }; (shifted 3) => { "v7" };
    (n 0) => { "v8" }; (n 1) => { "v9" }; (n 2) => { "v10" }; (n 3) => { "v11" };
    (p 0) => { "v12" }; (p 1) => { "v13" }; (p 2) => { "v14" }; (p 3) => { "v15" };
    (q 0) => { "v16" }; (q 1) => { "v17" }; (q 2) => { "v18" }; (q 3) => { "v19" };
    (h 0) => { "v20" }; (h 1) => { "v21" }; (h 2) => { "v22" }; (h 3) => { "v23" };
    (y 0) => { "v24" }; (y 1) => { "v25" }; (y 2) => { "v26" }; (y 3) => { "v27" };
}

/// An instruction of a result and two operands for sixteen channels. An operand is a variable or the same for all.
macro_rules! each {
    ($op:literal $to:ident $a:ident $b:tt) => {
        concat!(each!(@ 0 $op $to $a $b), each!(@ 1 $op $to $a $b), each!(@ 2 $op $to $a $b), each!(@ 3 $op $to $a $b))
    };
    (@ $i:tt $op:literal $to:ident $a:ident $b:literal) => {
        concat!($op, " ", register!($to $i), ".4s, ", register!($a $i), ".4s, ", $b, "\n")
    };
    (@ $i:tt $op:literal $to:ident $a:ident $b:ident) => {
        concat!($op, " ", register!($to $i), ".4s, ", register!($a $i), ".4s, ", register!($b $i), ".4s\n")
    };
}

/// Sixteen lanes from or to memory; of bytes, which have no alignment.
macro_rules! memory {
    ($op:literal $x:ident $at:ident) => {
        concat!($op, " {{", register!($x 0), ".16b-", register!($x 3), ".16b}}, [{", stringify!($at), "}]\n")
    };
}

/// What a token brings for sixteen channels: the step, the step times the input, and the output so far.
struct Token {
    step: Lanes,
    step_u: Lanes,
    y: Lanes,
}

impl Token {
    /// Some states of each channel: `h = exp(dt A) h + dt u B`, `y += C h`. `a` has a row more than there are states, which
    /// is read and not used.
    #[inline(always)]
    fn pass<S: Quads>(&mut self, _: S, a: &[[u8; 4 * LANES]], state: &mut [Lanes], b: &Lanes, c: &Lanes) {
        let states = state.len().min(LANES).min(a.len().saturating_sub(1));
        if states == 0 {
            return;
        }
        // SAFETY: the token proves NEON. There are `states` rows of the state, which is alone written, and one more of A; B and C have
        // sixteen elements, all else is as large as what is read of it.
        unsafe {
            asm!(
                "ldp q28, q29, [{factors}]",
                "ld1r {{v30.4s}}, [{magic}]",
                "ld1r {{v31.4s}}, [{floor}]",
                memory!("ld1" y y),
                memory!("ld1" n a),
                memory!("ld1" p step),
                each!("fmul" n n p),
                "add {a}, {a}, #64",
                memory!("ld1" shifted magic),
                memory!("ld1" p p0),
                memory!("ld1" q p2),
                "2:",
                // x = max(dt A, floor), shifted = x log2(e) + magic, n = round(x log2(e)), h = dt u B
                each!("fmaxnm" x n "v31.4s"),
                memory!("ld1" h step_u),
                each!("fmla" shifted x "v28.s[0]"),
                each!("fsub" n shifted "v30.4s"),
                "ld1 {{v29.s}}[3], [{b}]",
                // r = x - n ln 2
                each!("fmla" x n "v28.s[1]"),
                each!("fmul" h h "v29.s[3]"),
                each!("fmla" x n "v28.s[2]"),
                "ld1 {{v29.s}}[3], [{c}]",
                "add {c}, {c}, #4",
                // r^2, and the polynomial of r
                each!("fmul" n x x),
                each!("fmla" q x "v29.s[0]"),
                each!("fmla" p x "v28.s[3]"),
                each!("fmla" q n "v29.s[1]"),
                "subs {states}, {states}, #1",
                each!("fmla" p q n),
                memory!("ld1" q h),
                each!("fmla" x p n),
                "ld1 {{v12.4s}}, [{one}]",
                memory!("ld1" n a),
                each!("fadd" x x "v12.4s"),
                memory!("ld1" p step),
                // exp(dt A), then the state and the output. Meanwhile the next dt A.
                each!("mla" x shifted "v29.s[2]"),
                memory!("ld1" shifted magic),
                each!("fmla" h x q),
                memory!("ld1" q p2),
                each!("fmul" n n p),
                memory!("ld1" p p0),
                each!("fmla" y h "v29.s[3]"),
                memory!("st1" h h),
                "add {a}, {a}, #64",
                "add {b}, {b}, #4",
                "add {h}, {h}, #64",
                "b.ne 2b",
                memory!("st1" y y),
                states = inout(reg) states => _, a = inout(reg) a.as_ptr() => _, h = inout(reg) state.as_mut_ptr() => _,
                b = inout(reg) b.as_ptr() => _, c = inout(reg) c.as_ptr() => _,
                step = in(reg) self.step.as_ptr(), step_u = in(reg) self.step_u.as_ptr(), y = in(reg) self.y.as_mut_ptr(),
                magic = in(reg) EXP.magic.as_ptr(), p0 = in(reg) EXP.p0.as_ptr(), p2 = in(reg) EXP.p2.as_ptr(),
                factors = in(reg) EXP.factors.as_ptr(), one = in(reg) EXP.one.as_ptr(), floor = in(reg) &raw const EXP.floor,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
                out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
                out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
                out("v29") _, out("v30") _, out("v31") _,
                options(nostack)
            );
        }
    }
}
