//! README, run as a reader would run it: each command of its tour, and its Python program as a tenant.

use std::fs;
use std::process::Command;

use harness::{Chancery, SOON, checkout, eventually, handshake, tool};

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

/// The commands of the `console` blocks after a heading, continued lines joined.
fn commands(document: &str, after: &str) -> Vec<String> {
    let (_, rest) = document.split_once(after).expect("README has this heading");
    let mut commands: Vec<String> = Vec::new();
    let mut block = None;
    for line in rest.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(kind) };
        } else if block == Some("console") {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push(command.to_owned()),
                (None, Some(last)) if last.ends_with('\\') => {
                    last.pop();
                    last.push_str(line.trim());
                }
                _ => {}
            }
        }
    }
    commands
}

#[test]
fn each_command_of_the_tour_does_what_it_says() {
    let chancery = Chancery::up();
    let folder = chancery.folder();
    let origin = harness::free_port();
    let readme = fs::read_to_string(checkout().join("README.md")).expect("README is there");
    let all = commands(&readme, "## A ten-minute tour");
    let (up, rest) = all.split_first().expect("the tour has commands");
    assert!(
        up.contains("chancery up"),
        "the first one starts the system, which the test has done: {up}"
    );
    // Ports are the test's own, and what the tour puts into the checkout goes into the test's folder.
    let script: String = rest
        .iter()
        .map(|command| {
            let mut command = command
                .replace(":8443", &format!(":{}", chancery.https().port()))
                .replace("8333", &origin.to_string())
                .replace(
                    "$PWD/target/release",
                    &harness::binary()
                        .parent()
                        .expect("it is in a folder")
                        .display()
                        .to_string(),
                );
            for script in ["scripts/", ".tools/bin/", "tests/tour/"] {
                command = command.replace(script, &checkout().join(script).display().to_string());
            }
            if command.starts_with("curl ") {
                // The store of the tour has just been started.
                command = command.replacen(
                    "curl ",
                    "curl --retry 20 --retry-delay 1 --retry-all-errors --fail --noproxy '*' ",
                    1,
                );
            }
            if command.contains("--at ") {
                // `date` cuts off the fraction of the second, in which all this may have happened.
                command = format!("now=$(date +%s); until [ $(date +%s) -gt $now ]; do sleep 0.05; done\n{command}");
            }
            format!("{command}\n")
        })
        .collect();
    fs::write(
        folder.join("tour.sh"),
        format!("set -euo pipefail\ntrap 'kill ${{!:-}} || true' EXIT\n{script}"),
    )
    .expect("written");
    // The edge reports within a second of being ready, which is sooner than a reader types.
    eventually("nothing is wrong", SOON, || {
        let status = chancery.operator().run(&["status"]);
        if status.status == 0 {
            Ok(())
        } else {
            Err(status.stdout)
        }
    });
    let mut bash = Command::new("bash");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CHANCERY_")) {
        bash.env_remove(name);
    }
    let output = bash
        .args(["-x", "tour.sh"])
        .current_dir(folder)
        .output()
        .expect("bash runs");
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("Hello."), "curl fetched the object: {said}");
    assert!(said.contains("caught up"), "the Python program ran: {said}");
}
