//! Hardening changes the whole process, so this test has a process of its own.
#![allow(clippy::unwrap_used)]

#[test]
fn a_hardened_process_cannot_be_dumped() {
    assert!(!keyring::process::is_hardened());
    keyring::process::harden().unwrap();
    assert!(keyring::process::is_hardened());
    let limits = std::fs::read_to_string("/proc/thread-self/limits");
    // Once it cannot be dumped, /proc belongs to root; only then may reading fail.
    if let Ok(limits) = limits {
        let core = limits
            .lines()
            .find(|l| l.starts_with("Max core file size"))
            .unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    }
}
