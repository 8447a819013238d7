//! Rights: patterns cover everything but the export of private keys.

use lifecycle::decide::rights::{EXPORT, allow, include_all, member, operator, well_formed};

fn of(rights: &[&str]) -> Vec<String> {
    rights.iter().map(|&right| right.to_owned()).collect()
}

#[test]
fn no_pattern_covers_the_export_of_keys() {
    for patterns in [
        &["cmd.>"][..],
        &["cmd.*.*"],
        &["cmd.certificate.*"],
        &["cmd.certificate.>"],
        &["cmd.*.export"],
        &["queue.certificate.export"],
        &[],
    ] {
        assert!(!allow(&of(patterns), EXPORT), "{patterns:?}");
    }
    assert!(!allow(&member(), EXPORT));
    assert!(allow(&of(&[EXPORT]), EXPORT));
    assert!(allow(&operator(), EXPORT));
    // It is not queued, and brings nothing else.
    assert!(!allow(&operator(), "queue.certificate.export"));
    assert!(!allow(&of(&[EXPORT]), "cmd.certificate.delete"));
    assert!(allow(&of(&["cmd.certificate.*"]), "cmd.certificate.delete"));
    assert!(well_formed(EXPORT));
}

#[test]
fn all_rights_may_come_with_more() {
    assert!(include_all(&member()) && include_all(&operator()));
    assert!(!include_all(&of(&["cmd.>", "query.>", "evt.>"])));
    assert!(!include_all(&of(&[EXPORT])));
}
