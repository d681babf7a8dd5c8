extern crate std;
use super::pcg::Pcg32;
use super::{MAX_VOCAB, SampleError, Sampler, Settings, exp, most_likely};
use std::string::ToString;
use std::vec::Vec;
use std::{println, vec};

/// Logits of some shape: flat, peaked, with equals, with some that are never drawn.
fn logits(rng: &mut Pcg32, len: usize, shape: u32) -> Vec<f32> {
    let mut one = || {
        let unit = rng.next_u32() as f32 / 4_294_967_296.0;
        match shape % 4 {
            0 => 10.0 * unit,
            1 => 12.0 * unit * unit,
            2 => (6.0 * unit).floor(),
            _ if unit < 0.3 => f32::NEG_INFINITY,
            _ => 16.0 * unit - 12.0,
        }
    };
    (0..len).map(|_| one()).collect()
}

fn uniform(rng: &mut Pcg32, low: f32, high: f32) -> f32 {
    low + (high - low) * (rng.next_u32() >> 8) as f32 / 16_777_216.0
}

/// Probabilities by the definitions, in f64 and by sorting, and how near a decision came to going the other way.
fn naive(logits: &[f32], s: &Settings) -> (Vec<f64>, f64) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if s.top_k > 0 {
        order.truncate(s.top_k as usize);
    }
    let largest = f64::from(logits[order[0]]);
    let weight = |i: usize| ((f64::from(logits[i]) - largest) / f64::from(s.temperature)).exp();
    let mut margin = f64::INFINITY;
    if s.top_p < 1.0 {
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut before = 0.0;
        let mut kept = 0;
        while kept < order.len() && before < f64::from(s.top_p) {
            before += weight(order[kept]) / total;
            margin = margin.min((before - f64::from(s.top_p)).abs());
            kept += 1;
        }
        order.truncate(kept);
    }
    for &i in &order {
        margin = margin.min((weight(i) - f64::from(s.min_p)).abs());
    }
    order.retain(|&i| weight(i) >= f64::from(s.min_p));
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut p = vec![0.0; logits.len()];
    order.iter().for_each(|&i| p[i] = weight(i) / total);
    (p, margin)
}

#[test]
fn filters_agree_with_their_definitions() {
    let mut rng = Pcg32::new(3);
    let (mut compared, mut near) = (0, 0);
    for round in 0..3000 {
        let len = 1 + rng.next_u32() as usize % 400;
        let logits = logits(&mut rng, len, round);
        let on = rng.next_u32();
        let settings = Settings {
            temperature: uniform(&mut rng, 0.05, 3.0),
            top_k: if on & 1 == 0 { 0 } else { 1 + rng.next_u32() % 500 },
            top_p: if on & 2 == 0 { 1.0 } else { uniform(&mut rng, 0.001, 1.0) },
            min_p: if on & 4 == 0 { 0.0 } else { uniform(&mut rng, 0.0, 1.0) },
            repeat_penalty: 1.0,
        };
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if largest == f32::NEG_INFINITY {
            continue;
        }
        let (expected, margin) = naive(&logits, &settings);
        if margin < 1e-5 {
            near += 1;
            continue;
        }
        compared += 1;
        let mut weights = logits.clone();
        Sampler::new(settings, 0).unwrap().weigh(&mut weights, largest);
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for (i, (&w, &p)) in weights.iter().zip(&expected).enumerate() {
            let got = f64::from(w) / total;
            assert!((got - p).abs() <= 1e-5 * p + 1e-12, "{i}: {got} {p} of {logits:?} with {settings:?}");
        }
    }
    println!("compared {compared}, left out {near} that rounding may decide");
    assert!(compared > 2000);
}

#[test]
fn temperature_zero_and_top_k_one_take_the_first_of_the_largest() {
    let mut greedy = Sampler::new(Settings::GREEDY, 1).unwrap();
    let mut one = Sampler::new(Settings { temperature: 1e4, top_k: 1, ..Settings::MODEL }, 1).unwrap();
    let cases: [(&[f32], u32); 5] = [
        (&[1.0, 3.0, 3.0, 2.0], 1),
        (&[-5.0], 0),
        (&[f32::NEG_INFINITY, -1e30, f32::NEG_INFINITY], 1),
        (&[-0.0, 0.0], 0),
        // So near that their weights are equal.
        (&[1.0, 1.000_000_1], 1),
    ];
    for (logits, expected) in cases {
        assert_eq!(greedy.sample(&mut logits.to_vec(), &[]), Ok(expected), "{logits:?}");
        assert_eq!(one.sample(&mut logits.to_vec(), &[]), Ok(expected), "{logits:?}");
    }
}

/// Pearson's statistic of draws against probabilities, with its degrees of freedom; bins are merged until each
/// expects at least ten.
fn chi_square(counts: &[u32], p: &[f64], draws: f64) -> (f64, usize) {
    let (mut chi, mut bins, mut seen, mut expected) = (0.0, 0usize, 0.0, 0.0);
    for (&count, &p) in counts.iter().zip(p) {
        assert!(p > 0.0 || count == 0, "drew what can't be drawn");
        seen += f64::from(count);
        expected += p * draws;
        if expected >= 10.0 {
            chi += (seen - expected).powi(2) / expected;
            bins += 1;
            (seen, expected) = (0.0, 0.0);
        }
    }
    (chi, bins.saturating_sub(1))
}

/// Bound that chi-square with `k` degrees of freedom passes with a chance of about 1e-6 (Wilson and Hilferty).
fn chi_bound(k: usize) -> f64 {
    let k = k.max(1) as f64;
    k * (1.0 - 2.0 / (9.0 * k) + 4.75 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

#[test]
fn draws_follow_the_probabilities() {
    const DRAWS: u32 = 200_000;
    let mut rng = Pcg32::new(11);
    let all = Settings { temperature: 0.8, top_k: 60, top_p: 0.9, min_p: 0.02, ..Settings::MODEL };
    for (shape, settings) in [(0, Settings::MODEL), (1, Settings::MODEL), (1, all), (3, all)] {
        let logits = logits(&mut rng, 100, shape);
        let (p, _) = naive(&logits, &settings);
        // One generator drawn from again and again, and the first draw of many seeds.
        for fresh in [false, true] {
            let mut sampler = Sampler::new(settings, 5).unwrap();
            let mut counts = vec![0; logits.len()];
            for draw in 0..DRAWS {
                if fresh {
                    sampler = Sampler::new(settings, u64::from(draw)).unwrap();
                }
                counts[sampler.sample(&mut logits.clone(), &[]).unwrap() as usize] += 1;
            }
            let (chi, k) = chi_square(&counts, &p, f64::from(DRAWS));
            assert!(chi < chi_bound(k), "chi-square {chi} at {k} degrees of freedom, {settings:?}");
        }
        // The test can fail: a temperature that is a twentieth off is noticed.
        let off = Settings { temperature: 1.05 * settings.temperature, ..settings };
        let (p, _) = naive(&logits, &off);
        let mut sampler = Sampler::new(settings, 5).unwrap();
        let mut counts = vec![0; logits.len()];
        (0..DRAWS).for_each(|_| counts[sampler.sample(&mut logits.clone(), &[]).unwrap() as usize] += 1);
        let (chi, k) = chi_square(&counts, &p, f64::from(DRAWS));
        assert!(chi > chi_bound(k), "a wrong distribution passed");
    }
}

#[test]
fn the_penalty_counts_each_token_once() {
    let settings = Settings { repeat_penalty: 2.0, ..Settings::GREEDY };
    let mut logits = [4.0, -1.0, 3.0, 0.5, f32::NEG_INFINITY, 0.0];
    let token = Sampler::new(settings, 0).unwrap().sample(&mut logits, &[0, 1, 0, 0, 4, 5, 1, 99, u32::MAX]);
    assert_eq!(token, Ok(2));
    assert_eq!(logits, [2.0, -2.0, 3.0, 0.5, f32::NEG_INFINITY, 0.0]);

    // A penalty that takes a logit out of range makes no infinity of it.
    let mut logits = [f32::MAX, f32::MIN];
    let extreme = Settings { repeat_penalty: f32::MIN_POSITIVE, ..Settings::GREEDY };
    assert_eq!(Sampler::new(extreme, 0).unwrap().sample(&mut logits, &[0, 1]), Ok(0));
    let extreme = Settings { repeat_penalty: f32::MAX, ..Settings::MODEL };
    assert_eq!(Sampler::new(extreme, 0).unwrap().sample(&mut [f32::MIN], &[0]), Ok(0));
}

#[test]
fn logits_that_are_not_numbers_are_errors() {
    for settings in [Settings::GREEDY, Settings::MODEL, Settings { repeat_penalty: 1.5, ..Settings::MODEL }] {
        let mut sampler = Sampler::new(settings, 0).unwrap();
        let mut sample = |logits: &[f32]| sampler.sample(&mut logits.to_vec(), &[1, 2]);
        assert!(
            matches!(sample(&[0.0, 1.0, f32::NAN]), Err(SampleError::NotFinite { token: 2, logit }) if logit.is_nan())
        );
        assert_eq!(
            sample(&[0.0, f32::INFINITY]),
            Err(SampleError::NotFinite { token: 1, logit: f32::INFINITY })
        );
        // A NaN with its sign bit set is one too, and the first of several is named.
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0xff80_0001)] {
            let found = sample(&[-1.0, f32::NEG_INFINITY, nan, f32::INFINITY, -f32::NAN]);
            assert!(matches!(found, Err(SampleError::NotFinite { token: 2, .. })), "{found:?}");
        }
        assert_eq!(sample(&[f32::NEG_INFINITY; 3]), Err(SampleError::Nothing));
        assert_eq!(sample(&[]), Err(SampleError::Vocabulary { have: 0 }));
        assert_eq!(sample(&vec![0.0; MAX_VOCAB + 1]), Err(SampleError::Vocabulary { have: MAX_VOCAB + 1 }));
    }
    let message = SampleError::NotFinite { token: 7, logit: f32::NAN }.to_string();
    assert!(message.contains("token 7") && message.contains("NaN"), "{message}");
}

#[test]
fn settings_out_of_range_are_named() {
    let s = Settings::MODEL;
    let bad = [f32::NAN, f32::INFINITY, -1.0];
    let cases = bad.into_iter().flat_map(|v| {
        [
            ("temperature", Settings { temperature: v, ..s }),
            ("top-p", Settings { top_p: v, ..s }),
            ("min-p", Settings { min_p: v, ..s }),
            ("repeat-penalty", Settings { repeat_penalty: v, ..s }),
        ]
    });
    let more = [
        ("top-p", Settings { top_p: 0.0, ..s }),
        ("top-p", Settings { top_p: 1.1, ..s }),
        ("min-p", Settings { min_p: 1.1, ..s }),
        ("repeat-penalty", Settings { repeat_penalty: 0.0, ..s }),
    ];
    for (expected, settings) in cases.chain(more) {
        match Sampler::new(settings, 0) {
            Err(e @ SampleError::Setting { name, .. }) => {
                assert_eq!(name, expected);
                assert!(e.to_string().contains("must be"), "{e}");
            }
            other => panic!("{other:?} for {settings:?}"),
        }
    }
    let edges =
        Settings { temperature: 0.0, top_k: u32::MAX, top_p: 1.0, min_p: 1.0, repeat_penalty: f32::MAX };
    assert!(Sampler::new(edges, 0).is_ok());
}

#[test]
fn extreme_settings_still_give_a_likely_token() {
    let logits = [-3.0, 8.0, 7.99, f32::MIN, f32::NEG_INFINITY];
    for temperature in [f32::from_bits(1), 1e-30, 1.0, f32::MAX] {
        for (top_p, min_p) in [(f32::from_bits(1), 0.0), (1.0, 1.0), (1e-20, 1.0)] {
            let settings = Settings { temperature, top_p, min_p, ..Settings::MODEL };
            let mut sampler = Sampler::new(settings, 2).unwrap();
            for _ in 0..100 {
                let token = sampler.sample(&mut logits.clone(), &[]).unwrap();
                let equals = temperature == f32::MAX;
                assert!(token == 1 || equals && token < 4, "{token} with {settings:?}");
            }
        }
    }
}

/// What a seed means may not change, on any target: these are tokens that someone was given before.
#[test]
fn a_seed_gives_the_same_tokens_everywhere() {
    let mut rng = Pcg32::new(2024);
    let logits = logits(&mut rng, 1000, 1);
    let all = Settings { temperature: 0.9, top_k: 200, top_p: 0.95, min_p: 0.01, repeat_penalty: 1.2 };
    let draw = |settings, seed| {
        let mut sampler = Sampler::new(settings, seed).unwrap();
        let mut history = Vec::new();
        for _ in 0..12 {
            history.push(sampler.sample(&mut logits.clone(), &history).unwrap());
        }
        history
    };
    assert_eq!(draw(Settings::MODEL, 1), [724, 830, 657, 770, 142, 439, 611, 808, 890, 389, 465, 328]);
    assert_eq!(draw(all, 1), [731, 846, 657, 774, 136, 447, 611, 828, 917, 389, 466, 367]);
    assert_eq!(draw(all, u64::MAX), [73, 774, 748, 305, 846, 535, 883, 864, 397, 406, 789, 890]);
}

#[test]
fn weights_are_near_the_exponential() {
    let mut worst = 0.0f64;
    for bits in (0x3000_0000..(28.4f32).to_bits()).step_by(101) {
        let x = -f32::from_bits(bits);
        let exact = f64::from(x).exp();
        worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
    }
    println!("largest relative error {worst:e}");
    assert!(worst < 3e-6);
    assert_eq!([0.0, -0.0, -28.5, f32::MIN, f32::NEG_INFINITY].map(exp), [1.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn the_most_likely_is_the_first_of_the_largest() {
    let naive = |logits: &[f32]| {
        let mut best = (0, f32::NEG_INFINITY);
        for (&logit, token) in logits.iter().zip(0..) {
            best = if logit > best.1 { (token, logit) } else { best };
        }
        best
    };
    let values = [0.0, -0.0, 1.0, -1.0, 1e-42, -1e-42, f32::MAX, f32::MIN, 3.5, -3.5, f32::NEG_INFINITY];
    let mut rng = Pcg32::new(9);
    for length in (1..200).chain([4096]) {
        // Few kinds of values, so that many are equal; of the first two or three only zeros and what is next to them.
        for kinds in [2, 3, 6, 10, values.len()] {
            let any = |_| values[rng.below(kinds as u64) as usize];
            let mut logits: Vec<f32> = (0..length).map(any).collect();
            if kinds == values.len() && length % 2 == 0 {
                // None above zero.
                logits.iter_mut().for_each(|logit| *logit = -logit.abs());
            }
            let expected = naive(&logits);
            match most_likely(&logits) {
                Ok((token, logit)) => {
                    assert_eq!((token, logit.to_bits()), (expected.0, expected.1.to_bits()), "{logits:?}");
                }
                Err(_) => assert!(expected.1 == f32::NEG_INFINITY, "{logits:?}"),
            }
        }
    }
}

#[test]
fn a_saved_sampler_goes_on() {
    let settings = Settings { temperature: 0.8, top_k: 40, top_p: 0.9, min_p: 0.01, repeat_penalty: 1.1 };
    let mut sampler = Sampler::new(settings, 7).unwrap();
    let draw = |sampler: &mut Sampler| sampler.sample(&mut vec![0.0; 1000], &[]).unwrap();
    assert_eq!((0..5).map(|_| draw(&mut sampler)).count(), 5);
    let mut again = Sampler::from_bytes(&sampler.to_bytes()).unwrap();
    assert_eq!(*again.settings(), settings);
    let drawn: Vec<u32> = (0..50).map(|_| draw(&mut sampler)).collect();
    assert_eq!(drawn, (0..50).map(|_| draw(&mut again)).collect::<Vec<_>>());
    let mut bytes = sampler.to_bytes();
    bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(Sampler::from_bytes(&bytes), Err(SampleError::Setting { name: "temperature", .. })));
}
