//! `chancery certificate import`: everything that a tree of files holds, in one go.
//!
//! * [`walk`]: which files are looked at, and what wrote them
//! * [`scan`]: what they hold
//! * [`there`]: what the project has, and how much more it may have
//! * [`plan`]: what shall become of each, and [`names`]: what it is called
//! * [`upload`]: sends it at the pace that the other side allows
//! * [`line`]: what is printed
//!
//! Nothing is remembered between two runs. What was done shows in the project, so an import that was cut off, at any
//! moment and by anything, is continued by the same command.

mod line;
mod names;
mod plan;
mod scan;
#[cfg(test)]
mod tests;
mod there;
mod upload;
mod walk;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use lifecycle::names::Slug;

use self::line::{Count, Line, Verdict};
use self::plan::{Action, Asked, Plan};
use self::scan::{Inventory, Opener};
use self::there::{Room, There};
use self::upload::Upload;
pub use self::walk::Layout;
use self::walk::Tree;
use crate::cli::{Global, Import};
use crate::client::Client;
use crate::commands::verdict;
use crate::failure::{Failure, Result};
use crate::output::Out;
use crate::progress::Progress;

/// How many new certificates a plan lists for people; programs and `--dry-run` get all.
const LISTED: usize = 20;

pub(super) async fn run(global: &Global, args: Import, out: &Out) -> Result<ExitCode> {
    if global.id.is_some() {
        return Err(Failure::Usage(
            "an import sends many commands, each with an id of its own: leave --id out".to_owned(),
        ));
    }
    let ask = !args.yes && !args.dry_run;
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if ask && (out.json() || !terminal) {
        return Err(Failure::Usage(
            "give --yes to import without being asked, or --dry-run to see the plan alone"
                .to_owned(),
        ));
    }
    let opener = Opener::new(&args.password_files);
    // Apart from the runtime, so that Ctrl-C is heard meanwhile.
    let (tree, inventory) = apart({
        let (args, opener) = (args.clone(), opener.clone());
        move || look(&args, &opener)
    })
    .await?;
    let client = Client::connect(global).await?;
    let project = client.project()?.clone();
    let regions = there::regions(&client, &project, &args.regions).await?;
    // In this order: what others bring in between then counts as there, and not as room that is taken by something else.
    let room = Room::ask(&client, &project, &regions).await?;
    let there = There::ask(&client, &project).await?;
    let asked = Asked {
        dir: &args.dir,
        prefix: args.name_prefix.as_deref(),
        regions: &regions,
        now: time::OffsetDateTime::now_utc().unix_timestamp(),
        project: &project,
    };
    let plan = plan::plan(&tree, &inventory, &there, &room, &asked);
    // What is compared is all that the listing was for.
    drop(there);
    let more = plan::more(&room, &asked, plan.wanted);
    let planned = announce(&args, &project, &tree, &plan, &room, &more, out);
    if args.dry_run {
        return Ok(rehearse(&plan, planned, out));
    }
    let to_send = planned.added + planned.replaced;
    let asking = project.clone();
    if ask && to_send > 0 && !apart(move || confirmed(to_send, &asking)).await? {
        out.note("nothing was imported");
        return Ok(ExitCode::from(crate::failure::NO));
    }
    let begun = Instant::now();
    let progress = Progress::new(Some(to_send), "importing");
    let mut count = Count::default();
    let mut tell = |line: Line| {
        let verdict = line.outcome();
        count.count(verdict);
        progress.suspend(|| print(&line, out));
    };
    plan.settled.into_iter().for_each(&mut tell);
    let mut tell_sent = |line: Line| {
        progress.advance(1);
        tell(line);
    };
    let upload = Upload {
        client: &client,
        project: &project,
        dir: Arc::from(args.dir.as_path()),
        files: tree.files.into(),
        opener,
        inventory: &inventory,
        regions: &args.regions,
        standby: args.standby,
        hint_more: more,
        progress: progress.clone(),
    };
    let outcome = upload.run(plan.groups, &mut tell_sent).await;
    progress.end();
    let all = u64::try_from(inventory.leaves.len()).unwrap_or(u64::MAX);
    summary(&count, all, begun, outcome.is_ok(), out);
    outcome?;
    Ok(verdict(count.all_well()))
}

/// Does on a thread of its own what would hold everything else up.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(anyhow::Error::new)?
}

/// Walks the tree and reads its files.
fn look(args: &Import, opener: &Opener) -> Result<(Tree, Inventory)> {
    let tree = walk::walk(&args.dir, args.layout)?;
    let progress = Progress::new(u64::try_from(tree.files.len()).ok(), "reading");
    let mut inventory = Inventory::default();
    for (number, file) in (0..).zip(&tree.files) {
        inventory.read(&args.dir, number, file, opener);
        progress.advance(1);
    }
    progress.end();
    Ok((tree, inventory))
}

/// Tells the plan as a whole, and gives what would come of it.
fn announce(
    args: &Import,
    project: &Slug,
    tree: &Tree,
    plan: &Plan,
    room: &Room,
    more: &str,
    out: &Out,
) -> Count {
    let mut count = Count::default();
    for line in &plan.settled {
        count.count(line.outcome());
    }
    for entry in plan.groups.iter().flatten() {
        count.count(would(entry.action));
    }
    let fits = room
        .tightest()
        .is_none_or(|limit| limit.free() >= plan.wanted);
    if out.json() {
        let limits: Vec<_> = room
            .limits
            .iter()
            .map(|limit| {
                json!({"region": limit.region, "allocated": limit.allocated, "used": limit.used, "free": limit.free()})
            })
            .collect();
        let mut document = json!({
            "event": "plan",
            "project": project,
            "dir": args.dir,
            "regions": args.regions,
            "files": tree.files.len(),
            "layouts": plan.layouts,
            "add": count.added,
            "replace": count.replaced,
            "unchanged": count.unchanged,
            "refuse": count.refused,
            "skip": count.skipped,
            "fail": count.failed,
            "quota": {"fits": fits, "wanted": plan.wanted, "limits": limits},
        });
        if !fits {
            document["quota"]["hint"] = json!(format!("an operator gives more: {more}"));
        }
        out.document(&document);
        return count;
    }
    let layouts: Vec<String> = plan
        .layouts
        .iter()
        .map(|(layout, n)| format!("{n} of {layout}"))
        .collect();
    out.say(format!(
        "{}: {} files, certificates: {}",
        args.dir.display(),
        tree.files.len(),
        if layouts.is_empty() {
            "none".to_owned()
        } else {
            layouts.join(", ")
        }
    ));
    out.say(format!(
        "plan for project {project}: {}",
        count.text([
            "to add",
            "to replace",
            "unchanged",
            "refused",
            "skipped",
            "unreadable"
        ])
    ));
    for limit in &room.limits {
        let place = limit.region.as_ref().map_or_else(
            || "the project".to_owned(),
            |region| format!("region {region}"),
        );
        out.say(format!(
            "quota of {place}: {} of {} used, {} free",
            limit.used,
            limit.allocated,
            limit.free()
        ));
    }
    if !fits {
        out.say(format!(
            "{} new ones do not all fit; an operator gives more: {more}",
            plan.wanted
        ));
    }
    let shown = if args.dry_run { usize::MAX } else { LISTED };
    let entries: Vec<_> = plan.groups.iter().flatten().collect();
    if !args.dry_run && !args.yes {
        for entry in entries.iter().take(shown) {
            out.say(format!(
                "  {}  {}  {}",
                match entry.action {
                    Action::Add => "add    ",
                    Action::Replace { .. } => "replace",
                },
                entry.name,
                entry.source
            ));
        }
        if entries.len() > shown {
            out.say(format!("  and {} more", entries.len() - shown));
        }
    }
    count
}

fn would(action: Action) -> Verdict {
    match action {
        Action::Add => Verdict::Added,
        Action::Replace { .. } => Verdict::Replaced,
    }
}

/// Prints every line of a plan, and does nothing.
fn rehearse(plan: &Plan, planned: Count, out: &Out) -> ExitCode {
    for line in &plan.settled {
        print(&line.clone().planned(), out);
    }
    for entry in plan.groups.iter().flatten() {
        let line = Line::new(
            entry.name.to_string(),
            entry.source.clone(),
            would(entry.action),
        );
        print(&line.planned(), out);
    }
    if out.json() {
        let mut document = json!(planned);
        document["event"] = json!("summary");
        document["dry_run"] = json!(true);
        document["complete"] = json!(true);
        out.document(&document);
    } else {
        out.say("nothing was changed: this was --dry-run");
    }
    verdict(planned.all_well())
}

fn print(line: &Line, out: &Out) {
    if out.json() {
        out.document(line);
    } else {
        out.say(line.text());
    }
}

fn confirmed(count: u64, project: &Slug) -> Result<bool> {
    let mut stderr = std::io::stderr();
    let _ = write!(
        stderr,
        "import {count} certificates into project {project}? [y/N] "
    );
    let _ = stderr.flush();
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(anyhow::Error::new)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

fn summary(count: &Count, all: u64, begun: Instant, complete: bool, out: &Out) {
    let seconds = begun.elapsed().as_secs_f64();
    let sent = count.added + count.replaced;
    #[allow(clippy::cast_precision_loss)]
    let rate = if seconds > 0.0 {
        sent as f64 / seconds
    } else {
        0.0
    };
    if out.json() {
        let mut document = json!(count);
        document["event"] = json!("summary");
        document["complete"] = json!(complete);
        document["certificates"] = json!(all);
        document["seconds"] = json!((seconds * 1_000.0).round() / 1_000.0);
        out.document(&document);
        return;
    }
    out.say(format!(
        "{}; {seconds:.1} s{}",
        count.text([
            "added",
            "replaced",
            "unchanged",
            "refused",
            "skipped",
            "failed"
        ]),
        if sent > 1 {
            format!(", {rate:.0} a second")
        } else {
            String::new()
        }
    ));
    if sent > 0 {
        out.note("what was added is being verified: chancery certificate list");
    }
    if !complete {
        out.note("it is not complete; the same command goes on from here");
    }
}

/// Reads the prefix of names.
///
/// # Errors
/// When no name can begin with it.
pub fn prefix(text: &str) -> std::result::Result<String, String> {
    let trimmed = text.trim_end_matches('-');
    if trimmed.len() > 32 {
        return Err("a prefix has at most 32 characters".to_owned());
    }
    Slug::name(trimmed)
        .map(|slug| slug.to_string())
        .map_err(|error| error.to_string())
}
