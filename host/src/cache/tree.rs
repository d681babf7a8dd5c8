//! A tree of token sequences, compressed by runs of tokens, with values at some of their ends, within a budget of bytes.

/// Bytes that a node takes beside its place in the list of nodes and its tokens: its place among its parent's children, of which there is
/// room for four at first, and what the allocator adds.
const NODE: usize = 4 * size_of::<usize>() + 32;
/// What an entry that a sequence has gone on from is worth, beside one at the end of a sequence.
const PASSED: f64 = 0.25;

/// Which entry goes first when there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// The least valuable: by the tokens that would have to be fed again without it, how often and how recently it was used, and its
    /// size.
    #[default]
    Value,
    /// The least recently used, to compare with.
    Recency,
}

/// What a sequence ends in.
#[derive(Debug)]
struct Entry<T> {
    /// None while it is on its way.
    value: Option<T>,
    bytes: usize,
    hits: f64,
    /// [`Tree::age`] when it was used last.
    age: f64,
    /// [`Tree::clock`] when it was used last.
    used: u64,
}

#[derive(Debug)]
struct Node<T> {
    /// The tokens from the parent to here.
    run: Box<[u32]>,
    parent: usize,
    /// In ascending order of their first tokens.
    children: Vec<usize>,
    entry: Option<Entry<T>>,
}

/// How far a sequence is in the tree.
struct Walk {
    /// The last node on its way.
    node: usize,
    /// Tokens up to that node.
    depth: usize,
    /// The child whose run shares its first tokens with the rest, and how many.
    into: Option<(usize, usize)>,
}

/// What the tree has of a sequence.
#[derive(Debug)]
pub(crate) struct Found<T> {
    /// The deepest value on its way, and the tokens up to it.
    pub best: Option<(usize, T)>,
    /// Tokens that it shares with any sequence of the tree.
    pub shared: usize,
}

/// See the module. Sequences with different keys have nothing in common.
#[derive(Debug)]
pub(crate) struct Tree<K, T> {
    roots: Vec<(K, usize)>,
    nodes: Vec<Node<T>>,
    free: Vec<usize>,
    budget: usize,
    eviction: Eviction,
    /// Bytes of all nodes and entries, without those of the lists.
    held: usize,
    /// Bytes that the tree may take beside its values.
    most_beside: usize,
    /// Bytes of all values.
    valued: usize,
    clock: u64,
    /// The value of what was evicted last: what is used now is worth that much more than what was never used since.
    age: f64,
}

impl<K: PartialEq, T: Clone> Tree<K, T> {
    pub(crate) fn new(budget: usize, eviction: Eviction) -> Self {
        Self::with_limit(budget, usize::MAX, eviction)
    }

    /// As [`Tree::new`], for values that are elsewhere: the tree without them takes at most `most_beside` bytes.
    pub(crate) fn with_limit(budget: usize, most_beside: usize, eviction: Eviction) -> Self {
        let (roots, nodes, free) = Default::default();
        Self { roots, nodes, free, budget, eviction, held: 0, most_beside, valued: 0, clock: 0, age: 0.0 }
    }

    #[cfg(test)]
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes of everything.
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.nodes.capacity() * size_of::<Node<T>>()
            + self.free.capacity() * size_of::<usize>()
            + self.roots.capacity() * size_of::<(K, usize)>();
        self.held + lists
    }

    /// Bytes of everything but the values.
    pub(crate) fn bytes_beside(&self) -> usize {
        self.bytes() - self.valued
    }

    /// Entries that have their value.
    pub(crate) fn len(&self) -> usize {
        let entries = self.nodes.iter().filter_map(|node| node.entry.as_ref());
        entries.filter(|entry| entry.value.is_some()).count()
    }

    fn child(&self, node: usize, token: u32) -> Result<usize, usize> {
        self.nodes[node].children.binary_search_by_key(&token, |child| self.nodes[*child].run[0])
    }

    fn root(&self, key: &K) -> Option<usize> {
        self.roots.iter().find(|(known, _)| known == key).map(|(_, node)| *node)
    }

    /// Follows a sequence, and calls `each` with every node that is wholly on its way and the tokens up to it.
    fn walk(&self, root: usize, tokens: &[u32], mut each: impl FnMut(usize, usize)) -> Walk {
        let (mut node, mut depth) = (root, 0);
        loop {
            let rest = &tokens[depth..];
            let next = rest.first().and_then(|token| self.child(node, *token).ok());
            let Some(child) = next.map(|place| self.nodes[node].children[place]) else {
                return Walk { node, depth, into: None };
            };
            let run = &self.nodes[child].run;
            let same = run.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if same < run.len() {
                return Walk { node, depth, into: Some((child, same)) };
            }
            (node, depth) = (child, depth + same);
            each(node, depth);
        }
    }

    /// Looks for the deepest value on the way of a sequence, and counts it as used.
    pub(crate) fn find(&mut self, key: &K, tokens: &[u32]) -> Found<T> {
        let Some(root) = self.root(key) else { return Found { best: None, shared: 0 } };
        let mut best = None;
        let walk = self.walk(root, tokens, |node, depth| {
            let value = self.nodes[node].entry.as_ref().and_then(|entry| entry.value.as_ref());
            best = value.map(|_| (node, depth)).or(best);
        });
        let shared = walk.depth + walk.into.map_or(0, |(_, same)| same);
        let best = best.and_then(|(node, depth)| Some((depth, self.touch(node)?)));
        Found { best, shared }
    }

    fn touch(&mut self, node: usize) -> Option<T> {
        self.clock += 1;
        let entry = self.nodes[node].entry.as_mut()?;
        (entry.used, entry.age) = (self.clock, self.age);
        entry.hits += 1.0;
        entry.value.clone()
    }

    /// Makes room for a value of `bytes` bytes at the end of a sequence. False where it is not worth what would have to go for it, or is
    /// there already: then there is nothing to [`Tree::fill`]. What goes is added to `gone`.
    pub(crate) fn admit(&mut self, key: K, tokens: &[u32], bytes: usize, gone: &mut Vec<T>) -> bool {
        self.admit_used(key, tokens, bytes, 1.0, gone)
    }

    /// As [`Tree::admit`], for a value that counts as used `hits` times.
    pub(crate) fn admit_used(
        &mut self,
        key: K,
        tokens: &[u32],
        bytes: usize,
        hits: f64,
        gone: &mut Vec<T>,
    ) -> bool {
        let least = bytes.saturating_add(4 * tokens.len()).saturating_add(2 * (NODE + size_of::<Node<T>>()));
        if tokens.is_empty() || least > self.budget {
            return false;
        }
        let node = self.node_at(key, tokens);
        if self.nodes[node].entry.is_some() {
            return false;
        }
        self.clock += 1;
        let (used, age) = (self.clock, self.age);
        self.nodes[node].entry = Some(Entry { value: None, bytes, hits, age, used });
        self.held += bytes;
        self.valued += bytes;
        let mut kept = true;
        while let Some(least) = self.over() {
            kept &= least.1 != node;
            gone.extend(self.evict(least));
        }
        kept
    }

    /// The entry that is to go, with its value, if one must.
    fn over(&self) -> Option<(f64, usize)> {
        let over = self.bytes() > self.budget || self.bytes_beside() > self.most_beside;
        if over { self.least() } else { None }
    }

    fn evict(&mut self, (value, node): (f64, usize)) -> Option<T> {
        if self.eviction == Eviction::Value {
            self.age = self.age.max(value);
        }
        self.remove(node)
    }

    /// Whether there is an entry at the end of a sequence, also one that is not filled yet.
    pub(crate) fn has(&self, key: &K, tokens: &[u32]) -> bool {
        self.exact(key, tokens).is_some()
    }

    /// All values.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().filter_map(|node| node.entry.as_ref()?.value.as_ref())
    }

    /// The places of all values. If the tree is changed meanwhile, a value may be missed or found twice.
    pub(crate) fn places(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.value_at(*at).is_some()).collect()
    }

    fn value_at(&self, place: usize) -> Option<&T> {
        self.nodes.get(place)?.entry.as_ref()?.value.as_ref()
    }

    /// The key, the tokens and the value at a place.
    pub(crate) fn at(&self, place: usize) -> Option<(&K, Vec<u32>, T)> {
        let value = self.value_at(place)?.clone();
        let (mut node, mut runs) = (place, Vec::new());
        while self.nodes[node].parent != usize::MAX {
            runs.push(&*self.nodes[node].run);
            node = self.nodes[node].parent;
        }
        runs.reverse();
        let (key, _) = self.roots.iter().find(|(_, root)| *root == node)?;
        Some((key, runs.concat(), value))
    }

    /// Removes the values that are not to be kept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        let entry = |node: &Node<T>| node.entry.as_ref()?.value.as_ref().map(|value| !keep(value));
        let nodes: Vec<usize> =
            (0..self.nodes.len()).filter(|at| entry(&self.nodes[*at]) == Some(true)).collect();
        for node in nodes {
            self.remove(node);
        }
    }

    /// Puts in the value that was admitted, if there is still room for it.
    pub(crate) fn fill(&mut self, key: &K, tokens: &[u32], value: T) {
        if let Some(entry) = self.exact(key, tokens).and_then(|node| self.nodes[node].entry.as_mut()) {
            entry.value.get_or_insert(value);
        }
    }

    /// Takes out what is at the end of a sequence.
    pub(crate) fn take_out(&mut self, key: &K, tokens: &[u32]) -> Option<T> {
        let node = self.exact(key, tokens)?;
        self.remove(node)
    }

    fn exact(&self, key: &K, tokens: &[u32]) -> Option<usize> {
        let walk = self.walk(self.root(key)?, tokens, |_, _| {});
        (walk.depth == tokens.len() && self.nodes[walk.node].entry.is_some()).then_some(walk.node)
    }

    fn add(&mut self, parent: usize, run: &[u32]) -> usize {
        self.held += NODE + 4 * run.len();
        let node = Node { run: run.into(), parent, children: Vec::new(), entry: None };
        match self.free.pop() {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                if self.nodes.len() == self.nodes.capacity() {
                    self.nodes.reserve_exact(self.nodes.len() / 8 + 8);
                }
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// The node at the end of a sequence, made where it is missing.
    fn node_at(&mut self, key: K, tokens: &[u32]) -> usize {
        let root = self.root(&key).unwrap_or_else(|| {
            let root = self.add(usize::MAX, &[]);
            self.roots.push((key, root));
            root
        });
        let Walk { mut node, mut depth, into } = self.walk(root, tokens, |_, _| {});
        if let Some((child, same)) = into {
            // The run is divided.
            let run = std::mem::take(&mut self.nodes[child].run);
            let middle = self.add(node, &run[..same]);
            // The first token stays, and with it the order.
            let place = self.nodes[node].children.iter().position(|other| *other == child);
            if let Some(place) = place {
                self.nodes[node].children[place] = middle;
            }
            self.nodes[child].run = run[same..].into();
            self.nodes[child].parent = middle;
            self.nodes[middle].children.push(child);
            self.held -= 4 * same;
            (node, depth) = (middle, depth + same);
        }
        if depth < tokens.len() {
            let leaf = self.add(node, &tokens[depth..]);
            if let Err(place) = self.child(node, tokens[depth]) {
                self.nodes[node].children.insert(place, leaf);
            }
            node = leaf;
        }
        node
    }

    /// The entry that is to go first, and its value.
    fn least(&self) -> Option<(f64, usize)> {
        let mut least: Option<(f64, usize)> = None;
        // Nodes with the tokens up to them, and up to the last entry before them.
        let mut stack: Vec<(usize, usize, usize)> =
            self.roots.iter().map(|(_, root)| (*root, 0, 0)).collect();
        while let Some((at, depth, before)) = stack.pop() {
            let node = &self.nodes[at];
            let mut covered = before;
            if let Some(entry) = &node.entry {
                let value = self.value(entry, depth - before, node.children.len());
                if least.is_none_or(|(other, _)| value < other) {
                    least = Some((value, at));
                }
                covered = depth;
            }
            stack.extend(
                node.children.iter().map(|child| (*child, depth + self.nodes[*child].run.len(), covered)),
            );
        }
        least
    }

    /// What an entry is worth: without it, `gap` tokens would have to be fed again. This is GreedyDual-Size-Frequency (Cherkasova,
    /// "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", 1998).
    fn value(&self, entry: &Entry<T>, gap: usize, children: usize) -> f64 {
        if self.eviction == Eviction::Recency {
            return entry.used as f64;
        }
        // Where one sequence went on, it will go on from its end.
        let passed = if children == 1 { PASSED } else { 1.0 };
        entry.age + passed * entry.hits * gap as f64 / entry.bytes.max(1) as f64
    }

    /// Removes an entry, and the nodes that nothing needs any more.
    fn remove(&mut self, node: usize) -> Option<T> {
        let entry = self.nodes[node].entry.take()?;
        self.held -= entry.bytes;
        self.valued -= entry.bytes;
        self.tidy(node);
        entry.value
    }

    /// Removes a node without an entry that has no children, and those above it that are left so; joins one that has one child with it.
    fn tidy(&mut self, mut node: usize) {
        loop {
            let Node { parent, children, entry, .. } = &self.nodes[node];
            let (parent, root) = (*parent, *parent == usize::MAX);
            match children[..] {
                _ if entry.is_some() => return,
                [] => {
                    if root {
                        self.roots.retain(|(_, other)| *other != node);
                    } else {
                        self.nodes[parent].children.retain(|child| *child != node);
                    }
                    self.drop_node(node);
                    if root {
                        return;
                    }
                    node = parent;
                }
                [child] if !root => {
                    let run = [&self.nodes[node].run[..], &self.nodes[child].run].concat();
                    self.held += 4 * self.nodes[node].run.len();
                    self.nodes[child].run = run.into();
                    self.nodes[child].parent = parent;
                    self.nodes[parent]
                        .children
                        .iter_mut()
                        .filter(|other| **other == node)
                        .for_each(|other| *other = child);
                    self.drop_node(node);
                    return;
                }
                _ => return,
            }
        }
    }

    fn drop_node(&mut self, node: usize) {
        self.held -= NODE + 4 * self.nodes[node].run.len();
        self.nodes[node] =
            Node { run: Box::default(), parent: usize::MAX, children: Vec::new(), entry: None };
        self.free.push(node);
        if self.free.len() == self.nodes.len() {
            (self.nodes, self.free, self.roots) = Default::default();
        }
    }
}

#[cfg(test)]
mod tests;
