//! The process that the sweep crashes: the real registrar over a real ledger and a real nats-server, and nothing else.
//!
//! It takes one JSON document a line on its standard input and writes one for each answer. A line with `arm` sets a fail
//! point, every other one is a command. It ends when its input ends, so that nothing outlives the sweep.
//!
//! `sweep-node FOLDER URL IDENTITY`: the ledger is in FOLDER, NATS at URL, and the identity's bytes in the file IDENTITY.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use actix::prelude::*;
use bus::connect::{Login, connect};
use bus::identity::Identity;
use bus::templates::Role;
use bytes::Bytes;
use control::rate::Rate;
use control::registrar::{Ask, Genesis, Observed, Registrar};
use ledger::Ledger;
use lifecycle::command::{Asker, Command};
use lifecycle::names::Slug;
use serde_json::{Value, json};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// No tenant is to be slowed down here: what is measured is what a crash leaves.
const UNLIMITED: Rate = Rate {
    per_second: 1e9,
    burst: 1e9,
};

fn main() -> ExitCode {
    // Hundreds of aborts would leave hundreds of core files.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let _armed = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let runtime = std::cell::Cell::new(Some(runtime));
    let system =
        System::with_tokio_rt(move || runtime.take().expect("a system asks for its runtime once"));
    match system.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sweep-node cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(document: &Value) {
    let mut line = document.to_string();
    line.push('\n');
    // Whole lines only; if nobody listens any more, the end of the input ends us too.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

async fn run() -> Result<(), Failure> {
    let mut words = std::env::args_os().skip(1);
    let mut word = || words.next().ok_or("usage: sweep-node FOLDER URL IDENTITY");
    let (folder, url, identity) = (PathBuf::from(word()?), word()?, PathBuf::from(word()?));
    let url = url.into_string().map_err(|_| "the URL is not text")?;
    let identity = Arc::new(Identity::from_bytes(&std::fs::read(identity)?)?);
    let login = |role| Login::minted(&identity, role);
    let log = Arc::new(bus::log::Log::new(
        connect(&url, &login(Role::Registrar)).await?,
    ));
    let objects = Arc::new(bus::objects::Objects::start(
        connect(&url, &login(Role::Objects)).await?,
    ));
    let genesis = Genesis {
        signer: [7; 32],
        platform_domain: "sweep.test".to_owned(),
        operator: (Slug::name("operator")?, format!("U{}", "A".repeat(55))),
        node: folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    let (runtime, contents) = (tokio::runtime::Handle::current(), Arc::clone(&objects));
    let registrar = tokio::task::spawn_blocking(move || {
        let ledger = Ledger::open(folder.join("ledger.redb"), &ledger::Options::default())?;
        let observed: Arc<Mutex<Observed>> = Arc::default();
        Registrar::start(
            ledger, log, contents, runtime, &genesis, UNLIMITED, observed,
        )
        .map_err(Failure::from)
    })
    .await??;
    let registrar = Registrar::start_in_arbiter(&Arbiter::new().handle(), move |_| registrar);
    say(&json!({"ready": true}));

    let (lines, mut read) = tokio::sync::mpsc::channel::<String>(1_024);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = read.recv().await {
        let asked: Value = serde_json::from_str(&line)?;
        if let Some(arm) = asked.get("arm") {
            fail::cfg(text(arm, "point")?, text(arm, "actions")?)?;
            continue;
        }
        let (registrar, objects) = (registrar.clone(), Arc::clone(&objects));
        tokio::spawn(async move {
            match answer(&asked, &registrar, &objects).await {
                Ok(answer) => say(&json!({"tag": asked["tag"], "answer": answer})),
                Err(error) => say(&json!({"tag": asked["tag"], "unfit": error.to_string()})),
            }
        });
    }
    Ok(())
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, Failure> {
    value[name]
        .as_str()
        .ok_or_else(|| format!("{name} is missing").into())
}

async fn answer(
    asked: &Value,
    registrar: &Addr<Registrar>,
    objects: &bus::objects::Objects,
) -> Result<Value, Failure> {
    let name = text(asked, "name")?.to_owned();
    let space = text(asked, "space")?.to_owned();
    let mut contents = Vec::new();
    if let Some(object) = asked["object"].as_str() {
        // As ingestion does it: the content is durable before the command that names it is decided.
        let hash = objects
            .put(vec![Bytes::from(object.to_owned())])
            .await?
            .into_iter()
            .next()
            .ok_or("no hash")?;
        contents.push((hash, object.as_bytes().to_vec()));
    }
    let mut digest = [0; 32];
    let body = format!("{name} {}", asked["body"]);
    digest.copy_from_slice(
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body.as_bytes()).as_ref(),
    );
    let operator = space == "platform";
    let ask = Ask {
        id: text(asked, "id")?.parse::<Uuid>()?,
        digest,
        project: Slug::name(&space)?,
        asker: Asker {
            actor: if operator { "operator" } else { "user" }.to_owned(),
            project: Slug::name(&space)?,
            operator,
        },
        command: command(&name, asked["body"].clone())?,
        space,
        name,
        objects: contents,
        paid: false,
    };
    let answer = registrar.send(ask).await?;
    Ok(serde_json::from_slice(&answer.to_json())?)
}

fn command(name: &str, body: Value) -> Result<Command, Failure> {
    use lifecycle::command as ask;
    use serde_json::from_value as of;
    Ok(match name {
        "project.create" => of::<ask::CreateProject>(body)?.into(),
        "project.quota-set" => of::<ask::SetQuota>(body)?.into(),
        "region.create" => of::<ask::CreateRegion>(body)?.into(),
        "resource.create" => of::<ask::CreateResource>(body)?.into(),
        "resource.delete" => of::<ask::DeleteResource>(body)?.into(),
        "domain.add" => of::<ask::AddDomain>(body)?.into(),
        "domain.release" => of::<ask::ReleaseDomain>(body)?.into(),
        "certificate.add" => of::<ask::AddCertificate>(body)?.into(),
        _ => return Err(format!("{name} is not one of the sweep's commands").into()),
    })
}
