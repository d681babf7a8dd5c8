use super::*;

/// What a tree must hold: a list of sequences with their values.
#[derive(Default)]
struct Naive(Vec<(u8, Vec<u32>, u64)>);

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Counts what the tree holds anew, and checks its shape: runs have tokens, no node without an entry has one child.
fn check(tree: &Tree<u8, u64>) -> Vec<(u8, Vec<u32>, u64)> {
    let mut held = 0;
    let mut all = Vec::new();
    let mut seen = 0;
    for (key, root) in &tree.roots {
        let mut stack = vec![(*root, Vec::new())];
        while let Some((at, mut tokens)) = stack.pop() {
            let node = &tree.nodes[at];
            seen += 1;
            held += NODE + 4 * node.run.len();
            tokens.extend(&*node.run);
            assert_eq!(at == *root, node.run.is_empty());
            if let Some(entry) = &node.entry {
                held += entry.bytes;
                all.extend(entry.value.map(|value| (*key, tokens.clone(), value)));
            } else {
                assert!(node.children.len() > 1 || at == *root && node.children.len() == 1);
            }
            assert!(node.children.is_sorted_by_key(|child| tree.nodes[*child].run[0]));
            for child in &node.children {
                assert_eq!(tree.nodes[*child].parent, at);
                stack.push((*child, tokens.clone()));
            }
        }
    }
    assert_eq!(held, tree.held);
    assert_eq!(seen + tree.free.len(), tree.nodes.len());
    assert!(tree.bytes() <= tree.budget());
    let places = tree.places().into_iter().map(|place| tree.at(place).unwrap());
    let mut listed: Vec<_> = places.map(|(key, tokens, value)| (*key, tokens, value)).collect();
    listed.sort();
    all.sort();
    assert_eq!(listed, all);
    all
}

#[test]
fn a_tree_is_what_a_list_of_sequences_is_and_never_above_its_budget() {
    for (eviction, budget) in [
        (Eviction::Value, 20_000),
        (Eviction::Recency, 20_000),
        (Eviction::Value, 3_000),
        (Eviction::Value, 100_000_000),
    ] {
        let mut tree: Tree<u8, u64> = Tree::new(budget, eviction);
        let mut naive = Naive::default();
        let mut random = Random(budget as u64);
        let (mut hits, mut evicted) = (0, 0);
        for value in 0..5000 {
            let key = random.below(2) as u8;
            // Sequences that share much: of few tokens, or going on from one that is there.
            let mut tokens = match naive.0.get(random.below(8) as usize) {
                Some((_, known, _)) if random.below(2) == 0 => {
                    known[..random.below(known.len() as u64 + 1) as usize].to_vec()
                }
                _ => Vec::new(),
            };
            tokens.extend((0..random.below(12)).map(|_| random.below(3) as u32));
            let of_key = || naive.0.iter().filter(|(known, ..)| *known == key);
            match random.below(5) {
                0..2 => {
                    let found = tree.find(&key, &tokens);
                    let best = of_key()
                        .filter(|(_, known, _)| tokens.starts_with(known))
                        .max_by_key(|(_, known, _)| known.len());
                    assert_eq!(found.best, best.map(|(_, known, value)| (known.len(), *value)));
                    let same = |known: &[u32]| known.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
                    assert_eq!(found.shared, of_key().map(|(_, known, _)| same(known)).max().unwrap_or(0));
                    hits += usize::from(found.best.is_some());
                }
                2 => {
                    let known = of_key().find(|(_, known, _)| *known == tokens).map(|(.., value)| *value);
                    assert_eq!(tree.take_out(&key, &tokens), known);
                    naive.0.retain(|(other, known, _)| *other != key || *known != tokens);
                }
                _ => {
                    let known = of_key().any(|(_, known, _)| *known == tokens);
                    let mut gone = Vec::new();
                    let admitted = tree.admit(key, &tokens, 100 + random.below(800) as usize, &mut gone);
                    assert!(!(known && admitted));
                    if admitted {
                        tree.fill(&key, &tokens, value);
                        naive.0.push((key, tokens, value));
                    }
                    evicted += gone.len();
                    naive.0.retain(|(.., value)| !gone.contains(value));
                }
            }
            let mut all = check(&tree);
            all.sort();
            naive.0.sort();
            assert_eq!(all, naive.0);
            assert_eq!(tree.len(), naive.0.len());
        }
        assert!(hits > 20, "{hits}");
        assert_eq!(evicted > 100, budget < 1_000_000, "{evicted}");
    }
}

#[test]
fn nothing_is_left_of_an_empty_tree() {
    let mut tree: Tree<u8, u64> = Tree::new(10_000, Eviction::Value);
    let mut gone = Vec::new();
    assert!(tree.admit(0, &[1, 2, 3], 100, &mut gone) && tree.admit(0, &[1, 2], 100, &mut gone));
    assert_eq!(tree.find(&0, &[1, 2, 3]).best, None, "none has its value yet");
    tree.take_out(&0, &[1, 2, 3]);
    tree.take_out(&0, &[1, 2]);
    assert_eq!((tree.bytes(), tree.find(&0, &[1]).shared), (0, 0));
    assert!(
        !tree.admit(0, &[], 100, &mut gone) && !tree.admit(0, &[1], 10_000, &mut gone) && gone.is_empty()
    );
}

#[test]
fn short_sequences_do_not_displace_a_long_one_and_age_goes_in_the_end() {
    let mut tree: Tree<u8, u64> = Tree::new(8_000, Eviction::Value);
    let mut gone = Vec::new();
    let chat: Vec<u32> = (0..400).collect();
    assert!(tree.admit(0, &chat, 1000, &mut gone));
    tree.fill(&0, &chat, 1);
    let foreign = |i: u32| -> Vec<u32> { (0..10).map(|at| 1000 + 10 * i + at).collect() };
    let short = |tree: &mut Tree<u8, u64>, i: u32, gone: &mut Vec<u64>| {
        if tree.admit(0, &foreign(i), 1000, gone) {
            tree.fill(&0, &foreign(i), u64::from(i) + 2);
        }
    };
    (0..50).for_each(|i| short(&mut tree, i, &mut gone));
    assert!(gone.len() > 20 && !gone.contains(&1));
    assert_eq!(tree.find(&0, &chat).best, Some((400, 1)));
    // Nothing stays for ever.
    (50..2000).for_each(|i| short(&mut tree, i, &mut gone));
    assert!(gone.contains(&1));
}
