//! The short form of fuzzing in every `make test`: all kept inputs, some thousand fresh ones a target, and proof that the
//! fuzzer finds what is there and makes it small.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which says how far it came")]

use std::time::Instant;
use strand_fuzz::engine::{self, behaviour};
use strand_fuzz::kept;
use strand_fuzz::targets::{self, NAMES, Target};
use strand_sim::rng::Rng;

/// Fresh inputs a target; more with STRAND_FUZZ_EXECUTIONS.
const EXECUTIONS: u64 = 20_000;

fn executions() -> u64 {
    std::env::var("STRAND_FUZZ_EXECUTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(EXECUTIONS)
}

fn run(name: &'static str) {
    let begun = Instant::now();
    let mut target = targets::make(name).unwrap();
    let kept = kept::inputs(name);
    for (file, input) in &kept {
        if let Err((_, text)) = engine::run_one(&mut *target, input) {
            panic!("tests/fuzz/kept/{name}/{file} fails again: {text}");
        }
    }
    let inputs: Vec<Vec<u8>> = kept.into_iter().map(|(_, input)| input).collect();
    let make = || targets::make(name).unwrap();
    let outcome = engine::fuzz(make, &inputs, 1, executions(), 1, |_| ());
    if let Some(finding) = outcome.findings.first() {
        panic!("{name}: {}: {:?}", finding.text, finding.input);
    }
    assert!(outcome.executions >= executions(), "{name}: {outcome:?}");
    assert!(
        outcome.behaviours >= 8,
        "{name} behaves in {} ways only: nothing is reached",
        outcome.behaviours
    );
    println!(
        "{name}: {} executions, {} behaviours, {:?}",
        outcome.executions,
        outcome.behaviours,
        begun.elapsed()
    );
}

#[test]
fn every_target_survives_kept_and_fresh_inputs() {
    std::thread::scope(|scope| NAMES.iter().for_each(|name| drop(scope.spawn(|| run(name)))));
}

#[test]
fn a_seed_is_one_sequence_of_inputs() {
    let fuzz = || {
        let make = || targets::make("queries").unwrap();
        engine::fuzz(make, &[], 7, 2000, 1, |_| ())
    };
    let (first, second) = (fuzz(), fuzz());
    assert_eq!((first.executions, first.behaviours), (second.executions, second.behaviours));
}

/// Fails on what can be reached step by step only: a length, behind a word, behind a checksum.
struct Planted;

impl Planted {
    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(*byte))
    }
}

impl Target for Planted {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![b"harmless words".to_vec()]
    }

    fn words(&self) -> Vec<Vec<u8>> {
        vec![b"magic".to_vec()]
    }

    fn bytes_max(&self) -> usize {
        100
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let Some((sum, rest)) = input.split_last() else { return 0 };
        if *sum != Self::sum(rest) {
            return 1;
        }
        let Some(at) = rest.windows(5).position(|window| window == b"magic") else { return 2 };
        let Some(length) = rest.get(at + 5) else { return 3 };
        assert!(*length < 0xf0, "planted");
        behaviour(&[4, u64::from(length / 16)])
    }

    fn seal(&self, _: &mut Rng, input: &mut Vec<u8>) {
        if let Some((_, rest)) = input.split_last() {
            let sum = Self::sum(rest);
            *input.last_mut().unwrap() = sum;
        }
    }
}

#[test]
fn what_is_planted_is_found_and_made_small() {
    let outcome = engine::fuzz(|| Box::new(Planted), &[], 1, 200_000, 2, |_| ());
    let finding = outcome.findings.first().expect("the planted defect is found");
    assert!(finding.text.contains("planted"), "{finding:?}");
    assert!(
        finding.input.len() <= 16 && finding.input.windows(5).any(|window| window == b"magic"),
        "{finding:?}"
    );
}
