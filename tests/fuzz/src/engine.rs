//! The loop: takes an input that behaved in a way of its own, mutates it, runs it, keeps it if it behaves in a new way.
//!
//! What stands in for coverage is the behaviour that a target reports: a number made of what came out, such as the kind of
//! an error and the sizes of what was read. It costs nothing to gather, needs no instrumented build, and is the same on
//! every compiler. Each thread has a generator and a corpus of its own, so a seed and a thread are one sequence of inputs,
//! whatever the machine. Nothing here reads a clock: it counts executions, and targets bound their own work.

use crate::minimise::minimise;
use crate::mutate::mutate;
use crate::targets::{self, Target};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use strand_sim::rng::Rng;

/// Inputs that a thread keeps to mutate.
const CORPUS_MAX: usize = 4096;
/// Bytes of all of them.
const CORPUS_BYTES_MAX: usize = 32 << 20;
/// So many inputs of a thousand may be longer than is usual for their target.
const LONG_PER_MILLE: u64 = 20;
/// How often an input that is too long to go on from is drawn again before a piece of it is taken.
const SHORTER_TRIES: usize = 2;
/// Runs that making one failing input small may take.
const MINIMISE_TRIES: usize = 20_000;

thread_local! {
    /// The place and the words of the last panic under [`run_one`].
    static LAST_PANIC: RefCell<(String, String)> = const { RefCell::new((String::new(), String::new())) };
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// An input that fails, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The input, made small.
    pub input: Vec<u8>,
    /// What the panic said, and where.
    pub text: String,
}

/// What some executions came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Inputs run, seeds and kept ones among them.
    pub executions: u64,
    /// Ways of behaving that were seen; of several threads the most that one saw.
    pub behaviours: u64,
    /// Inputs that failed; one for each place that panicked.
    pub findings: Vec<Finding>,
}

/// Runs one input; the place and the words of the panic if there was one, of which nothing is printed.
pub fn run_one(target: &mut dyn Target, input: &[u8]) -> Result<u64, (String, String)> {
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_RUNNING.get() {
                return loud(info);
            }
            let place = info.location().map_or_else(String::new, ToString::to_string);
            LAST_PANIC.set((place, info.to_string().replace('\n', " ")));
        }));
    });
    IS_RUNNING.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| target.run(input)));
    IS_RUNNING.set(false);
    result.map_err(|_| LAST_PANIC.take())
}

/// Fuzzes a target on so many threads, `executions` in all, beginning with its own seeds and `kept`.
pub fn fuzz(
    make: impl Fn() -> Box<dyn Target> + Sync,
    kept: &[Vec<u8>],
    seed: u64,
    executions: u64,
    threads: u64,
    progress: impl Fn(u64) + Sync,
) -> Outcome {
    let (done, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = |thread: u64| {
        let share = executions / threads + u64::from(thread < executions % threads);
        let rng = Rng::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(thread));
        let mut worker = Worker::new(&make, kept, rng);
        worker.go(share, &done, &is_over, &progress);
        worker.outcome
    };
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a worker catches panics")).collect()
    });
    let mut all = Outcome::default();
    for outcome in outcomes {
        all.executions += outcome.executions;
        all.behaviours = all.behaviours.max(outcome.behaviours);
        for finding in outcome.findings {
            if !all.findings.iter().any(|known| known.text == finding.text) {
                all.findings.push(finding);
            }
        }
    }
    all
}

struct Worker<'m> {
    make: &'m (dyn Fn() -> Box<dyn Target> + Sync),
    target: Box<dyn Target>,
    words: Vec<Vec<u8>>,
    rng: Rng,
    corpus: Vec<Vec<u8>>,
    corpus_bytes: usize,
    behaviours: HashSet<u64>,
    places: HashSet<String>,
    outcome: Outcome,
}

impl<'m> Worker<'m> {
    fn new(make: &'m (dyn Fn() -> Box<dyn Target> + Sync), kept: &[Vec<u8>], rng: Rng) -> Self {
        let target = make();
        let words = target.words();
        let mut worker = Self {
            make,
            target,
            words,
            rng,
            corpus: Vec::new(),
            corpus_bytes: 0,
            behaviours: HashSet::new(),
            places: HashSet::new(),
            outcome: Outcome::default(),
        };
        let seeds = worker.target.seeds();
        for input in seeds.into_iter().chain(kept.iter().cloned()) {
            worker.try_out(&input);
            worker.keep(input);
        }
        assert!(!worker.corpus.is_empty(), "a target has seeds");
        worker
    }

    fn go(&mut self, share: u64, done: &AtomicU64, is_over: &AtomicBool, progress: &(dyn Fn(u64) + Sync)) {
        const STEP: u64 = 4096;
        let mut told = 0;
        while self.outcome.executions < share && !is_over.load(Ordering::Relaxed) {
            let input = self.next_input();
            if self.try_out(&input) {
                self.keep(input);
            }
            if self.outcome.executions >= told + STEP {
                let fresh = self.outcome.executions - told;
                told = self.outcome.executions;
                progress(done.fetch_add(fresh, Ordering::Relaxed) + fresh);
            }
            if self.outcome.findings.len() >= targets::FINDINGS_MAX {
                is_over.store(true, Ordering::Relaxed);
            }
        }
        self.outcome.behaviours = self.behaviours.len() as u64;
    }

    fn next_input(&mut self) -> Vec<u8> {
        let bytes_max = self.target.bytes_max().min(if self.rng.chance(LONG_PER_MILLE) {
            usize::MAX
        } else {
            self.target.bytes_usual()
        });
        let mut place = self.draw();
        for _ in 0..SHORTER_TRIES {
            if self.corpus[place].len() > bytes_max {
                place = self.draw();
            }
        }
        let parent = &self.corpus[place];
        let mut input = if parent.len() > bytes_max {
            // Half of the time its beginning, which is more often sound by itself.
            let from = if self.rng.chance(500) { 0 } else { self.rng.place(parent.len() - bytes_max + 1) };
            parent[from..from + bytes_max].to_vec()
        } else {
            parent.clone()
        };
        let other = self.rng.place(self.corpus.len());
        let changes = 1 + u64::from(self.rng.word().trailing_zeros().min(5));
        for _ in 0..changes {
            mutate(&mut self.rng, &mut input, &self.words, &self.corpus[other], bytes_max);
        }
        if self.rng.chance(800) {
            self.target.seal(&mut self.rng, &mut input);
        }
        input
    }

    /// The place of an input to go on from: half of the time one of the newest, since what was just found leads on.
    fn draw(&mut self) -> usize {
        let count = self.corpus.len();
        let newest = count.min(64);
        if self.rng.chance(500) { count - 1 - self.rng.place(newest) } else { self.rng.place(count) }
    }

    /// Whether the input behaves in a new way and did not fail.
    fn try_out(&mut self, input: &[u8]) -> bool {
        self.outcome.executions += 1;
        match run_one(&mut *self.target, input) {
            Ok(behaviour) => self.behaviours.insert(behaviour),
            Err((place, text)) => {
                // What was half done is gone with the old target.
                self.target = (self.make)();
                if self.places.insert(place.clone()) {
                    let input = self.smaller(input, &place);
                    self.outcome.findings.push(Finding { input, text });
                }
                false
            }
        }
    }

    fn smaller(&self, input: &[u8], place: &str) -> Vec<u8> {
        minimise(input, MINIMISE_TRIES, |candidate| {
            let failed = run_one(&mut *(self.make)(), candidate);
            matches!(failed, Err((same, _)) if same == place)
        })
    }

    fn keep(&mut self, input: Vec<u8>) {
        if self.corpus.len() >= CORPUS_MAX || self.corpus_bytes >= CORPUS_BYTES_MAX {
            let place = self.rng.place(self.corpus.len());
            self.corpus_bytes += input.len();
            self.corpus_bytes -= self.corpus[place].len();
            self.corpus[place] = input;
            return;
        }
        self.corpus_bytes += input.len();
        self.corpus.push(input);
    }
}

/// A number that stands for some numbers: how a target tells ways of behaving apart.
pub fn behaviour(parts: &[u64]) -> u64 {
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

/// The size class of a count: equal ones behave alike.
pub fn class_of(count: usize) -> u64 {
    u64::from(usize::BITS - count.leading_zeros())
}
