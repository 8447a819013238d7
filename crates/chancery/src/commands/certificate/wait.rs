//! `chancery certificate wait`: events wake it, the view decides, and a slow tick does the same should an event be lost.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use lifecycle::names::Slug;
use lifecycle::rejection::Code;

use super::View;
use crate::client::{Client, read};
use crate::failure::{Failure, Result};
use crate::output::Out;

/// How long to look again after, when no event came.
const TICK: Duration = Duration::from_millis(500);
/// How long events are let gather before looking, so that a flood of them does not become a flood of questions.
const GATHER: Duration = Duration::from_millis(20);

/// What is waited for: a status, or a word that people are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The latest version is being verified (`in progress`).
    Verifying,
    /// The latest version is ready.
    Ready,
    /// Verification of the latest version failed.
    Error,
    /// The latest version has ended.
    Expired,
    /// The latest version was revoked.
    Revoked,
    /// The certificate is gone.
    Deleted,
    /// Served everywhere in its regions, for at least one host.
    Active,
    /// Usable, and not first anywhere.
    Standby,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Ok(
            match text.to_lowercase().replace(['-', '_'], " ").as_str() {
                "verifying" | "in progress" => Self::Verifying,
                "ready" => Self::Ready,
                "error" => Self::Error,
                "expired" => Self::Expired,
                "revoked" => Self::Revoked,
                "deleted" => Self::Deleted,
                "active" => Self::Active,
                "standby" => Self::Standby,
                _ => {
                    return Err(
                    "a status is verifying, ready, error, expired, revoked, deleted, \"in progress\", active or standby"
                        .to_owned(),
                );
                }
            },
        )
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verifying => "in progress",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Deleted => "deleted",
            Self::Active => "active",
            Self::Standby => "standby",
        })
    }
}

/// How things stand.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Reached,
    NotYet,
    Never,
}

/// `status` is that of the latest version, None when the certificate is not there.
fn standing(
    target: Target,
    status: Option<&str>,
    shown: &str,
    served_everywhere: bool,
) -> Standing {
    use Standing::{Never, NotYet, Reached};
    let Some(status) = status else {
        return if target == Target::Deleted {
            Reached
        } else {
            Never
        };
    };
    let reached = match target {
        Target::Verifying => status == "verifying",
        Target::Ready => status == "ready",
        Target::Error => status == "error",
        Target::Expired => status == "expired",
        Target::Revoked => status == "revoked",
        Target::Deleted => status == "deleted",
        Target::Active => status == "ready" && served_everywhere,
        Target::Standby => status == "ready" && shown == "standby",
    };
    if reached {
        return Reached;
    }
    // The states that a version can still leave; from all others only a new version leads on, and that is new waiting.
    let open: &[&str] = match target {
        Target::Verifying => &[],
        Target::Ready | Target::Error => &["verifying"],
        Target::Active | Target::Standby | Target::Expired | Target::Revoked => {
            &["verifying", "ready"]
        }
        Target::Deleted => return NotYet,
    };
    if open.contains(&status) {
        NotYet
    } else {
        Never
    }
}

/// Waits, and prints the certificate when it is there.
///
/// # Errors
/// Exit 3 when the time is over; 1 when it can no longer come to that.
pub(in crate::commands) async fn run(
    client: &Client,
    project: &Slug,
    name: &Slug,
    target: Target,
    timeout: Duration,
    out: &Out,
) -> Result<ExitCode> {
    let deadline = Instant::now() + timeout;
    // Only who has the right to hear events is woken by them; for the others the tick must do.
    let mut events = client.events(Some(project)).await.ok();
    let in_vain = |word: &str| {
        Failure::InVain(format!(
            "certificate {name} is {word}, not {target}, after {} s",
            timeout.as_secs_f64()
        ))
    };
    let mut word = "unknown".to_owned();
    loop {
        let look = client.one(project, "certificates", "certificates", name.as_str());
        let looked = match tokio::time::timeout_at(deadline, look).await {
            Ok(looked) => looked,
            Err(_) => return Err(in_vain(&word)),
        };
        let item = match looked {
            Ok(item) => Some(item),
            Err(Failure::Refused(refused)) if refused.told.code == Code::NotFound.as_str() => {
                if target != Target::Deleted {
                    return Err(Failure::Refused(refused));
                }
                None
            }
            Err(failure) => return Err(failure),
        };
        let view: View = match &item {
            Some(item) => read(item.get().as_bytes())?,
            None => View::default(),
        };
        let status = item.is_some().then_some(view.status.as_str());
        match standing(target, status, &view.shown, view.served_everywhere) {
            Standing::Reached => {
                out.progress("");
                match &item {
                    Some(item) if out.json() => out.raw(item),
                    None if out.json() => {
                        out.document(&serde_json::json!({"name": name, "status": "deleted"}))
                    }
                    _ => out.say(format!("certificate {name} is {target}")),
                }
                return Ok(ExitCode::SUCCESS);
            }
            Standing::Never => {
                out.progress("");
                return Err(never(name, target, &view));
            }
            Standing::NotYet => {
                word = view.word().to_owned();
                out.progress(&format!(
                    "certificate {name} is {word}; waiting for {target}"
                ));
            }
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(in_vain(&word));
        }
        let tick = tokio::time::sleep_until(deadline.min(now + TICK));
        match &mut events {
            Some(stream) => tokio::select! {
                () = tick => {}
                event = stream.next() => {
                    if event.is_none() {
                        events = None;
                    } else {
                        let mut gathering = std::pin::pin!(tokio::time::sleep(GATHER));
                        loop {
                            tokio::select! {
                                () = &mut gathering => break,
                                more = stream.next() => if more.is_none() { break },
                            }
                        }
                    }
                }
            },
            None => tick.await,
        }
    }
}

/// Why it will not come, with the reasons that verification gave.
fn never(name: &Slug, target: Target, view: &View) -> Failure {
    let mut reasons = view.reasons.iter().filter_map(|r| {
        Some(lifecycle::rejection::Reason::new(
            Code::parse(&r.code)?,
            r.message.clone(),
            r.hint.clone(),
        ))
    });
    let first = reasons.next();
    let code = match (&first, view.status.as_str()) {
        (Some(reason), _) => reason.code,
        (None, "expired") => Code::Expired,
        (None, "revoked") => Code::Revoked,
        _ => Code::Conflict,
    };
    let because = first
        .as_ref()
        .map(|r| format!(": {}", r.message))
        .unwrap_or_default();
    let hint = match first {
        Some(reason) if !reason.hint.is_empty() => reason.hint,
        _ => format!(
            "`chancery certificate show {name}` tells more; `chancery certificate replace {name}` adds a version"
        ),
    };
    let detail = format!(
        "certificate {name} is {} and can no longer become {target}{because}",
        view.word()
    );
    let mut all = vec![lifecycle::rejection::Reason::new(code, detail, hint)];
    all.extend(reasons);
    crate::failure::Refused::from(wire::answer::Problem::of(all)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_shown_words_are_read() {
        for (text, target) in [
            ("verifying", Target::Verifying),
            ("in progress", Target::Verifying),
            ("In-Progress", Target::Verifying),
            ("active", Target::Active),
            ("standby", Target::Standby),
        ] {
            assert_eq!(text.parse(), Ok(target));
        }
        assert!("shiny".parse::<Target>().is_err());
        assert!("".parse::<Target>().is_err());
    }

    #[test]
    fn standings() {
        use Standing::{Never, NotYet, Reached};
        for (target, status, shown, served, expected) in [
            (
                Target::Ready,
                Some("verifying"),
                "in progress",
                false,
                NotYet,
            ),
            (Target::Ready, Some("ready"), "standby", false, Reached),
            (Target::Ready, Some("error"), "error", false, Never),
            (Target::Ready, Some("expired"), "expired", false, Never),
            (Target::Ready, None, "", false, Never),
            (Target::Active, Some("ready"), "active", false, NotYet),
            (Target::Active, Some("ready"), "active", true, Reached),
            (Target::Active, Some("revoked"), "revoked", false, Never),
            (Target::Standby, Some("ready"), "active", true, NotYet),
            (Target::Standby, Some("ready"), "standby", false, Reached),
            (Target::Error, Some("ready"), "active", true, Never),
            (Target::Expired, Some("ready"), "active", true, NotYet),
            (Target::Expired, Some("revoked"), "revoked", false, Never),
            (Target::Deleted, Some("ready"), "active", true, NotYet),
            (Target::Deleted, None, "", false, Reached),
            (Target::Verifying, Some("ready"), "active", true, Never),
        ] {
            assert_eq!(
                standing(target, status, shown, served),
                expected,
                "{target} from {status:?}"
            );
        }
    }

    #[test]
    fn what_can_no_longer_come_says_why() {
        let view: View = serde_json::from_str(
            r#"{"name":"site","status":"error","shown":"error","reasons":[
                {"code":"chain_incomplete","message":"an intermediate is missing","hint":"add it"},
                {"code":"expired","message":"it has ended"}]}"#,
        )
        .expect("a view");
        let name = Slug::name("site").expect("a slug");
        let Failure::Refused(refused) = never(&name, Target::Ready, &view) else {
            panic!("it is a refusal")
        };
        assert_eq!(refused.told.code, "chain_incomplete");
        assert!(refused.told.detail.contains("an intermediate is missing"));
        assert_eq!(refused.told.reasons[0].hint, "add it");
        assert_eq!(refused.told.reasons[1].code, "expired");
    }
}
