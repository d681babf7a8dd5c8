use elapid::core::kernels::Team;
use std::hint::black_box;
fn work(n: u32) { let mut x = 1u64; for i in 0..n { x = black_box(x.wrapping_mul(3) ^ u64::from(i)); } black_box(x); }
fn main() {
    let pool = elapid::Pool::new(2).unwrap();
    for n in [0u32, 100, 300, 1000, 3000, 10000] {
        let t = std::time::Instant::now(); for _ in 0..20000 { work(n); } let solo = t.elapsed().as_nanos() / 20000;
        let mut best = u128::MAX;
        for _ in 0..5 { let t = std::time::Instant::now(); for _ in 0..4000 { pool.run(&|_| work(n)); } best = best.min(t.elapsed().as_nanos() / 4000); }
        println!("work {solo} ns each: run {best} ns");
    }
}
