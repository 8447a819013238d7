//! README's Python program, run as a tenant would run it.

use std::process::Command;

use harness::{checkout, handshake, tool};

use crate::stage::Stage;

#[test]
fn a_tenant_needs_nothing_but_a_nats_client() {
    let stage = Stage::new();
    let host = "py.example.com";
    stage.resource("photos", "bucket", &["local"]);
    let leaf = stage.ca.issue(host);
    let creds = stage.chancery.folder().join("acme-alice.creds");
    let run = |step: &str| {
        let output = Command::new(tool("python"))
            .arg(checkout().join("tests/tour/tenant.py"))
            .args([
                "--server",
                &stage.chancery.nats(),
                "--project",
                "acme",
                "--creds",
            ])
            .arg(&creds)
            .args([
                "--host",
                host,
                "--resource",
                "photos",
                "--region",
                "local",
                "--certificate",
                "site",
                "--chain",
            ])
            .arg(leaf.chain())
            .arg("--key")
            .arg(leaf.key())
            .args(["--chancery"])
            .arg(harness::binary())
            .arg(step)
            .output()
            .expect("python runs");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert!(
            output.status.success(),
            "{step}: {}\n{out}\n{err}\n{}",
            output.status,
            stage.chancery.log()
        );
        out
    };
    let claimed = run("claim");
    assert!(claimed.contains("pending"), "{claimed}");
    stage
        .operator
        .project("acme")
        .run(&["domain", "prove", host])
        .ok();
    let served = run("serve");
    assert!(served.contains("active"), "{served}");
    assert!(
        served.contains("caught up"),
        "it shows how to catch up after a gap: {served}"
    );
    let seen = handshake(stage.chancery.https(), host, &[])
        .served()
        .expect("it is served");
    assert_eq!(seen, leaf.der);
    // Run again, the same ids give the same outcomes.
    run("serve");
}
