//! What operators watch: that dashboard, alerts and documentation speak of numbers that exist, that health says what is so,
//! and that the log lines of a command can be found by its id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use harness::{Chancery, SOON, Serve, Up, checkout, eventually, handshake};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::stage::{Apart, Stage, dark, resource};

/// An answer over plain HTTP.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Asks an address of a process. `url` is the one of the ready line; `path` replaces its path.
fn ask(url: &str, method: &str, path: &str) -> Result<Answer, String> {
    let address = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .expect("an address");
    let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
    stream
        .set_read_timeout(Some(SOON))
        .map_err(|e| e.to_string())?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .map_err(|e| e.to_string())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no head")?;
    Ok(Answer {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or("no status")?,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

fn url(ready: &Value) -> String {
    ready["metrics"]
        .as_str()
        .expect("the ready line has the address")
        .to_owned()
}

type Labels = BTreeMap<String, String>;

/// What a process tells: series by name, and what is said about each metric.
struct Told {
    series: BTreeMap<String, Vec<(Labels, f64)>>,
    kinds: BTreeMap<String, String>,
    helps: BTreeSet<String>,
}

impl Told {
    fn of(url: &str) -> Self {
        let answer = ask(url, "GET", "/metrics").expect("it answers");
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(
            answer
                .head
                .contains("content-type: text/plain; version=0.0.4"),
            "{}",
            answer.head
        );
        let mut told = Told {
            series: BTreeMap::new(),
            kinds: BTreeMap::new(),
            helps: BTreeSet::new(),
        };
        for line in answer.body.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a kind");
                assert!(
                    told.kinds
                        .insert(name.to_owned(), kind.to_owned())
                        .is_none(),
                    "{name} twice"
                );
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, text) = rest.split_once(' ').expect("a text");
                assert!(text.ends_with('.'), "{name} has no sentence: {text}");
                told.helps.insert(name.to_owned());
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = match series.split_once('{') {
                    Some((name, labels)) => (name, matchers(labels.trim_end_matches('}'))),
                    None => (series, Vec::new()),
                };
                let labels = labels.into_iter().map(|m| (m.label, m.value)).collect();
                let value: f64 = value.parse().expect("a number");
                told.series
                    .entry(name.to_owned())
                    .or_default()
                    .push((labels, value));
            }
        }
        told
    }

    fn value(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let all = self.series.get(name).map(Vec::as_slice).unwrap_or_default();
        all.iter()
            .filter(|(labels, _)| {
                wanted
                    .iter()
                    .all(|(label, value)| labels.get(*label).is_some_and(|v| v == value))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// Names and labels of all series, without the values.
    fn shape(&self) -> BTreeSet<String> {
        let all = self.series.iter();
        all.flat_map(|(name, series)| {
            series
                .iter()
                .map(move |(labels, _)| format!("{name}{labels:?}"))
        })
        .collect()
    }
}

/// Demands that two tell the same series.
fn same(one: &Told, other: &Told) {
    let (one, other) = (one.shape(), other.shape());
    let different: Vec<&String> = one.symmetric_difference(&other).collect();
    assert!(different.is_empty(), "{different:?}");
}

/// One condition on a label.
#[derive(Debug)]
struct Matcher {
    label: String,
    operator: String,
    value: String,
}

/// Reads `a="b",c=~"d"`.
fn matchers(text: &str) -> Vec<Matcher> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let quote = rest.find('"').expect("a value in quotes");
        let (left, value) = rest.split_at(quote);
        let label: String = left
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        let operator: String = left.chars().filter(|c| "=!~".contains(*c)).collect();
        let value = &value[1..];
        let end = value.find('"').expect("a closing quote");
        found.push(Matcher {
            label,
            operator,
            value: value[..end].to_owned(),
        });
        rest = value[end + 1..].trim_start_matches([',', ' ']);
    }
    found
}

/// The metrics that an expression asks for, each with its conditions; and the labels that it groups by.
fn asked(expression: &str) -> (Vec<(String, Vec<Matcher>)>, Vec<String>) {
    let (mut metrics, mut groups) = (Vec::new(), Vec::new());
    let bytes = expression.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'"' {
            at += 1 + expression[at + 1..].find('"').expect("a closing quote") + 1;
            continue;
        }
        if !(bytes[at].is_ascii_alphabetic() || bytes[at] == b'_') {
            // Durations such as 5m or $__rate_interval are no names.
            let number = bytes[at].is_ascii_digit() || bytes[at] == b'$';
            at += 1;
            while number
                && at < bytes.len()
                && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_')
            {
                at += 1;
            }
            continue;
        }
        let begin = at;
        while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_') {
            at += 1;
        }
        let word = &expression[begin..at];
        let rest = expression[at..].trim_start();
        if ["by", "ignoring", "on", "without"].contains(&word) {
            let inner = rest.strip_prefix('(').expect("labels in parentheses");
            let end = inner.find(')').expect("a closing parenthesis");
            groups.extend(inner[..end].split(',').map(|label| label.trim().to_owned()));
            at = expression.len() - inner.len() + end;
        } else if word.starts_with("chancery_") || word.starts_with("process_") || word == "up" {
            let conditions = rest.strip_prefix('{').map_or_else(Vec::new, |inner| {
                let end = inner.find('}').expect("a closing brace");
                at = expression.len() - inner.len() + end + 1;
                matchers(&inner[..end])
            });
            metrics.push((word.to_owned(), conditions));
        }
    }
    assert!(!metrics.is_empty(), "nothing is asked for: {expression}");
    (metrics, groups)
}

/// Labels that Prometheus itself puts on everything.
const OF_PROMETHEUS: [&str; 2] = ["instance", "job"];

/// Demands that an expression, and the labels that a text shows, find something in what a system tells.
fn answers(told: &Told, expression: &str, shown: &[String]) {
    let (metrics, groups) = asked(expression);
    let mut known: BTreeSet<String> = OF_PROMETHEUS.iter().map(|&l| l.to_owned()).collect();
    for (name, conditions) in metrics {
        if name == "up" {
            continue;
        }
        let series = told
            .series
            .get(&name)
            .unwrap_or_else(|| panic!("nobody tells {name}: {expression}"));
        known.extend(series.iter().flat_map(|(labels, _)| labels.keys().cloned()));
        for Matcher {
            label,
            operator,
            value,
        } in conditions
        {
            if OF_PROMETHEUS.contains(&label.as_str()) {
                continue;
            }
            let values: BTreeSet<&str> = series
                .iter()
                .filter_map(|(labels, _)| labels.get(&label))
                .map(String::as_str)
                .collect();
            assert!(!values.is_empty(), "{name} has no label {label}");
            // A variable of the dashboard stands for any value.
            if !value.contains('$') {
                let wanted = value.split(if operator == "=~" { '|' } else { '\0' });
                for wanted in wanted {
                    assert!(
                        values.contains(wanted),
                        "{name} has no {label}={wanted:?}, only {values:?}"
                    );
                }
            }
        }
    }
    for label in groups.iter().chain(shown) {
        assert!(
            known.contains(label),
            "no label {label} for {expression}, only {known:?}"
        );
    }
}

/// The labels that a template such as `{{region}} p99` or `{{ $labels.region }}` shows.
fn templated(text: &str) -> Vec<String> {
    let parts = text.split("{{").skip(1);
    parts
        .filter_map(|part| {
            let inner = part.split("}}").next()?.trim();
            match inner.strip_prefix('$') {
                Some(variable) => variable
                    .strip_prefix("labels.")
                    .map(|label| label.split(' ').next().unwrap_or(label).to_owned()),
                None => Some(inner.to_owned()),
            }
        })
        .collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().to_lowercase();
            kept.chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).expect("it is there")
}

/// The alerts: for each its fields by name. The file keeps each field on a line of its own, which this demands.
fn alerts() -> Vec<BTreeMap<String, String>> {
    let mut alerts: Vec<BTreeMap<String, String>> = Vec::new();
    for line in read("deploy/prometheus/alerts.yml").lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("- alert: ") {
            alerts.push(BTreeMap::from([("alert".to_owned(), name.to_owned())]));
        } else if let (Some(alert), Some((field, value))) =
            (alerts.last_mut(), line.split_once(": "))
        {
            alert.insert(field.to_owned(), value.trim_matches('"').to_owned());
        }
    }
    alerts
}

fn check_dashboard(told: &Told) {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/chancery.json")).expect("it is JSON");
    assert!(
        dashboard["schemaVersion"].as_u64() >= Some(39),
        "of Grafana 11"
    );
    let variables = dashboard["templating"]["list"]
        .as_array()
        .expect("variables");
    assert!(
        variables
            .iter()
            .any(|v| v["name"] == "datasource" && v["type"] == "datasource")
    );
    for variable in variables.iter().filter(|v| v["type"] == "query") {
        let query = variable["definition"].as_str().expect("a query");
        let inner = query
            .strip_prefix("label_values(")
            .and_then(|q| q.strip_suffix(')'));
        let (metric, label) = inner.and_then(|q| q.split_once(", ")).expect("two words");
        answers(told, metric, &[label.to_owned()]);
    }
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut cells, mut queries) = (BTreeSet::new(), BTreeSet::new(), 0);
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64()), "the id of {title} twice");
        let place = |what: &str| panel["gridPos"][what].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let legend = target["legendFormat"].as_str().expect("a legend");
            answers(told, expression, &templated(legend));
            queries += 1;
        }
    }
    assert!(queries > 50, "{queries}");
}

fn check_alerts(told: &Told) {
    let operate = anchors(&read("docs/operate.md"));
    let alerts = alerts();
    assert!(alerts.len() > 25, "{}", alerts.len());
    let mut names = BTreeSet::new();
    for alert in &alerts {
        let name = &alert["alert"];
        assert!(names.insert(name), "{name} twice");
        assert!(
            alert["labels"].contains("severity: page")
                || alert["labels"].contains("severity: ticket"),
            "{name} has no severity"
        );
        let shown = [&alert["summary"], &alert["description"]];
        let shown: Vec<String> = shown.iter().flat_map(|text| templated(text)).collect();
        answers(told, &alert["expr"], &shown);
        let anchor = alert["runbook"].strip_prefix("docs/operate.md#");
        let anchor = anchor.unwrap_or_else(|| panic!("{name} has no runbook"));
        assert!(
            operate.contains(anchor),
            "{name} points to {anchor}, which is no heading"
        );
    }
}

fn check_names(told: &Told) {
    let documented = read("docs/operate.md");
    for (name, kind) in &told.kinds {
        assert!(told.helps.contains(name), "{name} has no HELP");
        assert!(
            name.starts_with("chancery_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
        for unit in [
            "_ms",
            "milliseconds",
            "micros",
            "minutes",
            "hours",
            "_days",
            "kilobytes",
            "_kb",
            "megabytes",
            "percent",
        ] {
            assert!(!name.contains(unit), "{name} is not in a base unit");
        }
        if kind == "histogram" {
            assert!(
                name.ends_with("_seconds") || name.ends_with("_events"),
                "{name}"
            );
        }
        assert_ne!(kind, "summary", "{name}: quantiles cannot be summed");
        assert!(
            documented.contains(&format!("`{name}`")),
            "docs/operate.md does not tell of {name}"
        );
    }
    // And nothing is documented that is not there.
    for word in documented.split('`').skip(1).step_by(2) {
        let name = word.split('{').next().unwrap_or(word);
        if name.starts_with("chancery_") {
            assert!(
                told.kinds.contains_key(name),
                "docs/operate.md tells of {name}, which is not there"
            );
        }
    }
}

/// All that a test does to one project: a resource, a host with a certificate, a handshake, a request, and what goes wrong.
fn traffic(stage: &Stage, project: &str, host: &str) {
    let operator = stage.operator.project(project);
    let origin = format!("{}/{project}", stage.origin.url());
    resource(
        &stage.operator,
        project,
        "media",
        "bucket",
        &["local"],
        &origin,
    );
    operator
        .run(&["domain", "add", host, "--resource", "media"])
        .ok();
    let leaf = stage.ca.leaf(host).issue();
    crate::stage::upload(&operator, "main", &leaf, &["--region", "local"]);
    stage.serves(host, &leaf);
    let _ = stage.get(host, "/");
    // Rejected: the name is taken.
    let again = operator.run(&[
        "resource", "create", "media", "--kind", "bucket", "--origin", &origin, "--region", "local",
    ]);
    assert_eq!(again.refused(), "duplicate_name");
    let _ = handshake(stage.chancery.https(), &format!("unknown-{host}"), &[]);
}

#[test]
fn what_is_asked_for_exists_and_does_not_grow_with_tenants() {
    let stage = Stage::new();
    let url = url(&stage.chancery.ready);
    let fresh = Told::of(&url);
    check_names(&fresh);
    traffic(&stage, "acme", "www.example.com");
    dark(stage.chancery.https(), "nobody.example.net");
    // What was read a moment ago is given again for half a second.
    let told = eventually("all of it is counted", SOON, || {
        let told = Told::of(&url);
        match told.value("chancery_commands_rejected_total", &[]) {
            0.0 => Err("nothing was rejected"),
            _ => Ok(told),
        }
    });
    check_names(&told);
    check_dashboard(&told);
    check_alerts(&told);

    let counted = |name: &str, labels: &[(&str, &str)]| told.value(name, labels);
    assert!(counted("chancery_commands_total", &[("outcome", "accepted")]) >= 5.0);
    assert!(
        counted(
            "chancery_commands_rejected_total",
            &[("code", "duplicate_name")]
        ) >= 1.0
    );
    assert!(counted("chancery_command_seconds_count", &[("outcome", "accepted")]) >= 5.0);
    assert!(counted("chancery_edge_handshakes_total", &[("version", "1.3")]) >= 1.0);
    assert!(
        counted(
            "chancery_edge_handshake_failures_total",
            &[("reason", "unrecognized_name")]
        ) >= 1.0
    );
    assert!(counted("chancery_edge_requests_total", &[]) >= 1.0);
    assert!(counted("chancery_edge_body_bytes_total", &[("direction", "out")]) > 0.0);
    assert_eq!(
        counted("chancery_region_edges", &[("state", "healthy")]),
        1.0
    );
    assert_eq!(counted("chancery_role_ready", &[]), 2.0);
    // An edge's reports ask for no answer, so they are none that went without.
    assert!(counted("chancery_door_accepted_total", &[("kind", "edge")]) >= 1.0);
    assert_eq!(counted("chancery_door_unanswered_total", &[]), 0.0);
    assert!(counted("process_resident_memory_bytes", &[]) > 1e6);
    assert!(counted("process_start_time_seconds", &[]) > 1.7e9);
    assert!(counted("process_open_fds", &[]) > 10.0);
    assert!(counted("chancery_state_available_bytes", &[]) > 0.0);

    // The first traffic begins no series, and fifty tenants begin none.
    same(&fresh, &told);
    for number in 0..50 {
        let project = format!("tenant-{number}");
        stage.operator.run(&["project", "create", &project]).ok();
        let host = format!("www.tenant-{number}.example");
        let operator = stage.operator.project(&project);
        operator.run(&["domain", "add", &host]).ok();
        let _ = handshake(stage.chancery.https(), &host, &[]);
    }
    traffic(&stage, "tenant-7", "shop.tenant-7.example");
    let more = eventually("fifty more projects are counted", SOON, || {
        let told = Told::of(&url);
        match told.value("chancery_projects", &[("status", "active")]) {
            // With acme and the platform itself.
            52.0 => Ok(told),
            other => Err(other.to_string()),
        }
    });
    same(&told, &more);
}

#[test]
fn the_end_of_a_certificate_is_counted_once_and_not_when_it_was_replaced() {
    let stage = Stage::new();
    stage.bucket("www.example.com");
    let url = url(&stage.chancery.ready);
    let ends = |days: u64| time::OffsetDateTime::now_utc() + Duration::from_secs(days * 86_400);
    let since = time::OffsetDateTime::now_utc() - Duration::from_secs(86_400);
    let leaf = |days: u64| {
        let leaf = stage.ca.leaf("www.example.com");
        leaf.since(since).until(ends(days)).issue()
    };
    stage.upload("soon", &leaf(2));
    stage.upload("later", &leaf(10));
    let windows = |wanted: [f64; 5]| {
        eventually("the windows", Duration::from_secs(60), || {
            let told = Told::of(&url);
            let found = ["1d", "3d", "7d", "14d", "30d"]
                .map(|within| told.value("chancery_certificates_expiring", &[("within", within)]));
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
    };
    windows([0.0, 1.0, 1.0, 2.0, 2.0]);
    let new = leaf(80);
    let (chain, key) = (
        new.chain().display().to_string(),
        new.key().display().to_string(),
    );
    let words = [
        "certificate",
        "replace",
        "soon",
        "--chain",
        &chain,
        "--key",
        &key,
    ];
    stage.alice.run(&words).ok();
    windows([0.0, 0.0, 0.0, 1.0, 1.0]);
}

/// A nats-server that does not run on, until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn of(state: &Path) -> Self {
        let pid = fs::read_to_string(state.join("nats/nats.pid")).expect("it writes its id");
        let pid: i32 = pid.trim().parse().expect("a number");
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs");
        let wanted = state
            .join("nats/nats.conf")
            .canonicalize()
            .expect("it is there");
        assert!(
            arguments
                .split('\0')
                .any(|given| Path::new(given) == wanted),
            "process {pid} is not ours"
        );
        let pid = Pid::from_raw(pid).expect("not zero");
        kill_process(pid, Signal::STOP).expect("it can be stopped");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn ready(url: &str) -> (u16, Value) {
    let answer = ask(url, "GET", "/health/ready").expect("it answers");
    let document = serde_json::from_str(&answer.body).expect("it is JSON");
    (answer.status, document)
}

#[test]
fn health_says_when_nats_is_away_and_when_it_is_back() {
    let chancery = Chancery::up();
    let url = url(&chancery.ready);
    let (status, document) = ready(&url);
    assert_eq!(
        (status, &document["ready"]),
        (200, &Value::Bool(true)),
        "{document}"
    );
    assert_eq!(
        document["roles"].as_array().map(Vec::len),
        Some(2),
        "{document}"
    );
    {
        let _stopped = Stopped::of(&chancery.state());
        eventually("it says that it is not ready", SOON, || match ready(&url) {
            (503, document) => {
                let control = &document["roles"][0];
                assert_eq!(control["role"], "control", "{document}");
                assert_eq!(control["ready"], false, "{document}");
                assert!(
                    control["why"][0]
                        .as_str()
                        .is_some_and(|why| why.contains("NATS"))
                );
                // The edge serves on.
                assert_eq!(document["roles"][1]["ready"], true, "{document}");
                Ok(())
            }
            (status, document) => Err(format!("{status} {document}")),
        });
        // Rendered just now: nobody asked before.
        let told = Told::of(&url);
        assert_eq!(told.value("chancery_nats_up", &[]), 0.0);
        assert_eq!(
            told.value("chancery_role_ready", &[("role", "control")]),
            0.0
        );
        assert_eq!(
            ask(&url, "GET", "/health/live").expect("it lives").status,
            200
        );
    }
    eventually("it is ready again", SOON, || match ready(&url) {
        (200, _) => Ok(()),
        (status, document) => Err(format!("{status} {document}")),
    });
    // A nats-server that ends is counted.
    let pid = fs::read_to_string(chancery.state().join("nats/nats.pid")).expect("its id");
    harness::kill_process_of(&pid, &chancery.state().join("nats/nats.conf"));
    eventually("the restart is counted", SOON, || {
        match Told::of(&url).value("chancery_nats_restarts_total", &[]) {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    eventually("it is ready once more", SOON, || match ready(&url) {
        (200, _) => Ok(()),
        (status, document) => Err(format!("{status} {document}")),
    });
}

#[test]
fn the_address_takes_rubbish_and_does_nothing_for_it() {
    let chancery = Chancery::up();
    let url = url(&chancery.ready);
    let status = |method, path| ask(&url, method, path).map(|answer| answer.status);
    assert_eq!(status("POST", "/metrics"), Ok(405));
    assert_eq!(status("DELETE", "/health/ready"), Ok(405));
    assert_eq!(status("GET", "/"), Ok(404));
    assert_eq!(status("GET", "/metrics/../../etc/passwd"), Ok(404));
    let head = ask(&url, "HEAD", "/metrics").expect("an answer");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let address = url["http://".len()..]
        .split('/')
        .next()
        .expect("an address");
    let long = [b"GET /".as_slice(), &[b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    for rubbish in [
        b"\x16\x03\x01\0\x05hello".as_slice(),
        &[0; 4096],
        &long,
        b"GET",
    ] {
        let mut stream = TcpStream::connect(address).expect("it accepts");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        let _ = stream.write_all(rubbish);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{rubbish:?}");
    }
    // Those that say nothing hold the places for ten seconds at most; whoever comes meanwhile waits.
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(address).expect("the system's queue has room"))
        .collect();
    assert_eq!(status("GET", "/health/live"), Ok(200));
    drop(silent);
    assert!(!chancery.log().contains("panicked"), "{}", chancery.log());
}

#[test]
fn an_edge_that_is_cut_off_is_ready_and_stale() {
    let apart = Apart::start();
    let token = apart.file("edge-7.token").display().to_string();
    apart
        .operator()
        .run(&["edge", "enrol", "eu-1", "edge-7", "--out", &token])
        .ok();
    let config = apart.file("edge.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(
        &config,
        format!("{text}[metrics]\nlisten = '127.0.0.1:0'\n"),
    )
    .expect("written");
    let edge = Serve::start(&config);
    let url = url(&edge.ready);
    eventually("the edge is ready", SOON, || match ready(&url) {
        (200, document) if document["roles"][0]["stale"] == false => Ok(()),
        (status, document) => Err(format!("{status} {document}")),
    });
    let told = Told::of(&url);
    check_edge_only(&told);
    apart.control.stop();
    eventually(
        "it says that it is stale",
        Duration::from_secs(60),
        || match ready(&url) {
            (200, document) if document["roles"][0]["stale"] == true => Ok(()),
            (200, document) => Err(document.to_string()),
            (status, document) => panic!("it must stay ready: {status} {document}"),
        },
    );
    assert!(Told::of(&url).value("chancery_edge_upstream_silence_seconds", &[]) > 30.0);
    edge.stop();
}

/// A process that is an edge and nothing else tells nothing of a control plane.
fn check_edge_only(told: &Told) {
    let foreign: Vec<&String> = told
        .kinds
        .keys()
        .filter(|name| {
            ![
                "chancery_edge_",
                "process_",
                "chancery_state_",
                "chancery_role_",
                "chancery_build_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        })
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[test]
fn the_lines_of_a_command_have_its_id() {
    let folder = tempfile::Builder::new()
        .prefix("chancery-lines-")
        .tempdir()
        .expect("a folder");
    let up = Up::in_folder(folder.path()).variable("CHANCERY_LOG", "info,control=debug");
    let stage = Stage::of(up.start());
    stage.bucket("www.example.com");
    let leaf = stage.ca.leaf("www.example.com").issue();
    let (chain, key) = (
        leaf.chain().display().to_string(),
        leaf.key().display().to_string(),
    );
    let id = uuid::Uuid::now_v7().to_string();
    let add = |id: &str, name: &str| {
        stage.alice.run(&[
            "certificate",
            "add",
            name,
            "--chain",
            &chain,
            "--key",
            &key,
            "--region",
            "local",
            "--id",
            id,
        ])
    };
    add(&id, "main").ok();
    crate::stage::wait(&stage.alice, "main", "ready");
    let rejected = uuid::Uuid::now_v7().to_string();
    assert_eq!(add(&rejected, "main").refused(), "duplicate_name");

    let lines = || -> Vec<Value> {
        let files = fs::read_dir(folder.path()).expect("the folder");
        let errors = files
            .flatten()
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|e| e == "err"));
        let texts = errors.map(|path| fs::read_to_string(path).unwrap_or_default());
        texts
            .flat_map(|text| {
                text.lines()
                    .map(|line| serde_json::from_str(line).expect("each line is JSON"))
                    .collect::<Vec<Value>>()
            })
            .collect()
    };
    let of = |id: &str, target: &str, message: &str| {
        lines().into_iter().find(|line| {
            line["correlation"] == id && line["target"] == target && line["message"] == message
        })
    };
    eventually("each part has a line with the id", SOON, || {
        for (target, message) in [
            ("control::monitor", "command"),
            ("control::registrar", "decided"),
            ("control::verifier", "verified"),
        ] {
            if of(&id, target, message).is_none() {
                return Err(format!("no line {message} of {target}"));
            }
        }
        Ok(())
    });
    let line = of(&id, "control::monitor", "command").expect("it was found");
    assert_eq!(line["level"], "DEBUG");
    for (field, value) in [
        ("project", "acme"),
        ("command", "certificate.add"),
        ("actor", "alice"),
        ("asker", "acme"),
        ("outcome", "accepted"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(line["ms"].is_u64(), "{line}");
    let verified = of(&id, "control::verifier", "verified").expect("it was found");
    assert_eq!(verified["outcome"], "ready", "{verified}");
    let line = of(&rejected, "control::monitor", "command").expect("it is written");
    assert_eq!(
        (&line["level"], &line["outcome"]),
        (&"INFO".into(), &"rejected".into())
    );
    assert_eq!(line["code"], "duplicate_name", "{line}");
    // Nothing of what was sent.
    let all: String = lines().iter().map(Value::to_string).collect();
    for secret in ["BEGIN", "PRIVATE KEY", "www.example.com"] {
        assert!(!all.contains(secret), "the log has {secret}");
    }
}
