//! Hostile input for every parser that meets bytes of strangers.
//!
//! Each target starts from the files of `tests/corpus/<target>/`, which are valid or were once found to break something, and
//! changes them as somebody would who knows their structure ([`mutate`]). No input may panic, take longer or more memory than
//! the target's bounds. Memory is counted by the allocator of this binary, so these tests run one after the other.
//!
//! `FUZZ_SECONDS=600 cargo test -p tests --test fuzz` runs each target that long instead of a second; `FUZZ_SEED` repeats a run, but
//! for inputs with private keys, which are made anew each time. An input that breaks a bound is kept in the corpus of its target: commit it with the mend.

mod count;
mod mutate;
mod targets;

use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mutate::Random;
use targets::Target;

/// What is counted belongs to one target at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How often the memory of a target's bound may be allocated anew.
const CHURN: usize = 8;

/// Seconds for each target.
fn seconds() -> u64 {
    let told = std::env::var("FUZZ_SECONDS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(1)
}

fn seed() -> u64 {
    let told = std::env::var("FUZZ_SEED").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    })
}

fn folder(target: &Target) -> PathBuf {
    harness::checkout().join("tests/corpus").join(target.name)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder(target))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    let mut corpus: Vec<Vec<u8>> = files
        .iter()
        .map(|file| fs::read(file).expect("a file of the corpus"))
        .collect();
    corpus.extend((target.seeds)());
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    corpus
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What one input did.
fn judge(target: &Target, input: &[u8]) -> Result<bool, String> {
    QUIET.set(true);
    count::begin();
    let begun = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (took, peak, total) = (begun.elapsed(), count::peak(), count::total());
    QUIET.set(false);
    let taken = done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("it panicked: {}", text.unwrap_or_default())
    })?;
    let memory = target.memory + target.per_byte * input.len();
    if peak > memory {
        return Err(format!(
            "it took {peak} bytes of memory, more than {memory}"
        ));
    }
    // Memory that is taken and given back for each element is quadratic, and a clock would find it in large inputs only.
    let churned = CHURN * memory;
    if total > churned {
        return Err(format!(
            "it allocated {total} bytes one after the other, more than {churned}"
        ));
    }
    if took > target.time {
        return Err(format!("it took {took:?}, longer than {:?}", target.time));
    }
    Ok(taken)
}

fn keep(target: &Target, input: &[u8]) -> PathBuf {
    let file = folder(target).join(format!("broke-{}", &harness::sha256(input)[..16]));
    let _ = fs::create_dir_all(folder(target));
    let _ = fs::write(&file, input);
    file
}

fn fuzz(target: &Target) {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            before(info);
        }
    }));
    let (seed, seconds) = (seed(), seconds());
    let corpus = corpus(target);
    let mut taken = 0_u64;
    for input in &corpus {
        // Which is slower the first time, since tables are built then.
        let _ = (target.run)(input);
        taken += u64::from(
            judge(target, input)
                .unwrap_or_else(|why| panic!("{}: a file of the corpus: {why}", target.name)),
        );
    }
    assert!(
        taken > 0,
        "{}: nothing of the corpus is taken, so nothing is tried",
        target.name
    );
    let mut random = Random::new(seed);
    let (begun, mut inputs, mut deep) = (Instant::now(), 0_u64, 0_u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let input = mutate::mutate(&mut random, &corpus, target.shape);
        match judge(target, &input) {
            Ok(taken) => deep += u64::from(taken),
            Err(why) => {
                let file = keep(target, &input);
                panic!(
                    "{} broke on input {inputs} of seed {seed}: {why}; kept as {}",
                    target.name,
                    file.display()
                );
            }
        }
        inputs += 1;
    }
    println!(
        "{}: {inputs} inputs in {seconds} s, {deep} of them taken, seed {seed}",
        target.name
    );
    assert!(inputs > 10, "{}: too slow to be of use", target.name);
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => { $(
        #[test]
        fn $name() {
            fuzz(&targets::$name());
        }
    )* };
}

targets!(
    pem,
    certificate,
    pkcs12,
    pkcs7,
    key,
    request,
    header,
    feed,
    host
);

/// The counting is right, or no bound means anything.
#[test]
fn memory_is_counted() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    count::begin();
    let large = std::hint::black_box(vec![1_u8; 3_000_000]);
    drop(large);
    let small = std::hint::black_box(vec![1_u8; 1_000]);
    assert!(
        (3_000_000..4_000_000).contains(&count::peak()),
        "{}",
        count::peak()
    );
    drop(small);
}

/// What an element costs does not depend on how much stands behind it.
#[test]
fn elements_side_by_side_are_read_in_linear_time() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let input = targets::siblings(4 << 20);
    count::begin();
    let der = keyring::der::from_ber(&input).expect("BER");
    assert!(count::total() <= 4 * input.len(), "{}", count::total());
    assert_eq!(
        keyring::der::sequence(&der).map(|mut all| all.next()),
        Some(Some((0x30, &[][..])))
    );
}

/// What breaks a bound is found, and not only in valid input: a reader that believes lengths, one that cannot stand certain
/// bytes deep within, and one that loops.
#[test]
fn a_planted_fault_is_found() {
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let corpus = corpus(&targets::certificate());
    type Planted = (&'static str, fn(&[u8]) -> bool);
    let planted: [Planted; 3] = [
        ("believes a length", |input| {
            // The length of the outermost element, and room for it before it is looked at.
            let length = match input {
                [0x30, 0x84, a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
                [0x30, 0x83, a, b, c, ..] => u32::from_be_bytes([0, *a, *b, *c]),
                _ => 0,
            };
            let room: Vec<u8> = Vec::with_capacity(length.min(1 << 30) as usize);
            std::hint::black_box(&room);
            false
        }),
        ("wants a version", |input| {
            let tbs = keyring::der::sequence(input).and_then(|mut outer| outer.expect(0x30));
            let first = tbs.and_then(|tbs| keyring::der::Reader::new(tbs).next());
            if let Some((0xa0, version)) = first {
                assert!(version.len() >= 3, "planted");
            }
            false
        }),
        ("loops over a tail", |input| {
            if keyring::der::sequence(input).is_none() && input.len() > 2_000 {
                std::thread::sleep(Duration::from_millis(20));
            }
            false
        }),
    ];
    for (name, run) in planted {
        let target = Target {
            run,
            memory: 1 << 20,
            time: Duration::from_millis(15),
            ..targets::certificate()
        };
        let mut random = Random::new(7);
        let found = (0..200_000).any(|_| {
            let input = mutate::mutate(&mut random, &corpus, target.shape);
            judge(&target, &input).is_err()
        });
        assert!(found, "{name} was not found");
    }
    std::panic::set_hook(before);
}
