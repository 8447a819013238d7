//! The commit protocol: compare-and-swap, unknown results, two writers, loss of the server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bus::{
    log::{self, Log},
    server::{self, Server},
    streams,
    templates::Role,
};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bed::{Bed, executable, now, until};

fn records(label: &str, count: usize) -> Vec<(String, Bytes)> {
    (0..count)
        .map(|i| {
            (
                "chancery.v1.log.acme.domain.added".to_owned(),
                Bytes::from(format!("{{\"of\":\"{label}\",\"i\":{i}}}")),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_are_gapless_and_come_back_as_the_same_bytes() {
    let bed = Bed::start().await;
    let log = Log::new(bed.role(Role::Registrar).await);
    assert_eq!(log.head().await.unwrap(), 0);
    let mut follower = Log::new(bed.role(Role::Follower).await)
        .tail(1)
        .await
        .unwrap();
    let mut head = 0;
    let mut sent = Vec::new();
    for (label, count) in [
        ("one", 1),
        ("two", 2),
        ("many", 1_000),
        ("again", 1),
        ("some", 37),
    ] {
        let records = records(label, count);
        let appended = log.append(head, &records).await.unwrap();
        assert_eq!(
            (appended.first, appended.last),
            (head + 1, head + count as u64)
        );
        head = appended.last;
        sent.extend(records);
    }
    assert_eq!(log.head().await.unwrap(), head);
    for (index, (subject, bytes)) in sent.iter().enumerate() {
        let entry = tokio::time::timeout(Duration::from_secs(10), follower.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(entry.sequence, index as u64 + 1);
        assert_eq!((&entry.subject, &entry.bytes), (subject, bytes));
    }
    // What comes now is followed live.
    let late = records("late", 3);
    log.append(head, &late).await.unwrap();
    for (_, bytes) in &late {
        let entry = tokio::time::timeout(Duration::from_secs(10), follower.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(entry.bytes, bytes);
    }
    assert_eq!(log.read(2).await.unwrap().unwrap().bytes, sent[1].1);
    assert!(log.read(head + 100).await.unwrap().is_none());
    // Reading all of it in pages gives the same.
    let mut reader = log.tail(1).await.unwrap();
    let mut read = 0;
    loop {
        let page = reader.page().await.unwrap().unwrap();
        if page.is_empty() {
            break;
        }
        read += page.len();
    }
    assert_eq!(read as u64, head + 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_behind_is_fenced_and_leaves_no_trace() {
    let bed = Bed::start().await;
    let first = Log::new(bed.role(Role::Registrar).await);
    let second = Log::new(bed.role(Role::Registrar).await);
    first.append(0, &records("first", 5)).await.unwrap();
    for count in [1, 4] {
        let error = second
            .append(0, &records("second", count))
            .await
            .unwrap_err();
        assert!(matches!(error, log::Error::Fenced { head: 5 }), "{error}");
    }
    assert_eq!(first.head().await.unwrap(), 5);
    // The same bytes at the same place are the same append, however often it is asked for.
    let again = first.append(0, &records("first", 5)).await.unwrap();
    assert_eq!((again.first, again.last), (1, 5));
    assert_eq!(first.head().await.unwrap(), 5);
    for unfit in [
        vec![],
        records("x", 1_001),
        vec![("chancery.v1.cmd.acme.a.b".to_owned(), Bytes::new())],
        vec![(
            "chancery.v1.log.acme.a.b".to_owned(),
            Bytes::from(vec![b'x'; log::RECORD_LIMIT + 1]),
        )],
    ] {
        assert!(matches!(
            first.append(5, &unfit).await,
            Err(log::Error::Unfit(_))
        ));
    }
}

/// Two nodes were asked the same and put the same bytes first, then different ones. The slower of them was fenced, and took
/// the faster one's batch for the half of its own, after which it would never have written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_begins_like_another_writers_is_fenced_and_not_torn() {
    let bed = Bed::start().await;
    let first = Log::new(bed.role(Role::Registrar).await);
    let second = Log::new(bed.role(Role::Registrar).await);
    let batch = |then: &str| [records("same", 2), records(then, 2)].concat();
    first.append(0, &batch("first")).await.unwrap();
    for slower in [batch("second"), batch("second")[..3].to_vec()] {
        let error = second.append(0, &slower).await.unwrap_err();
        assert!(matches!(error, log::Error::Fenced { head: 4 }), "{error}");
    }
    // What tells them apart: the server keeps the batch's id with each record.
    let client = bed.role(Role::Follower).await;
    for sequence in 1..=4 {
        let asked = format!("{{\"seq\":{sequence}}}");
        let answer = client
            .request("$JS.API.STREAM.MSG.GET.LOG", asked.into())
            .await
            .unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        let headers = data_encoding::BASE64
            .decode(answer["message"]["hdrs"].as_str().unwrap().as_bytes())
            .unwrap();
        assert!(
            String::from_utf8_lossy(&headers).contains("Nats-Batch-Id:"),
            "{sequence}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_competing_writers_never_interleave() {
    let bed = Bed::start().await;
    let mut writers = Vec::new();
    for name in ["a", "b"] {
        let log = Log::new(bed.role(Role::Registrar).await);
        writers.push(tokio::spawn(async move {
            let (mut head, mut won, mut lost) = (0, Vec::new(), 0);
            for round in 0..60 {
                let label = format!("{name}-{round}");
                match log.append(head, &records(&label, 1 + round % 5)).await {
                    Ok(appended) => {
                        head = appended.last;
                        won.push((label, appended));
                    }
                    Err(log::Error::Fenced { head: seen }) => {
                        head = seen;
                        lost += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            (won, lost)
        }));
    }
    let (mut won, mut lost) = (Vec::new(), 0);
    for writer in writers {
        let (mine, races) = writer.await.unwrap();
        won.extend(mine);
        lost += races;
    }
    won.sort_by_key(|(_, appended)| appended.first);
    let log = Log::new(bed.role(Role::Follower).await);
    let mut tail = log.tail(1).await.unwrap();
    for (label, appended) in &won {
        for (index, sequence) in (appended.first..=appended.last).enumerate() {
            let entry = tokio::time::timeout(Duration::from_secs(10), tail.next())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(entry.sequence, sequence);
            assert_eq!(entry.bytes, format!("{{\"of\":\"{label}\",\"i\":{index}}}"));
        }
    }
    assert_eq!(
        log.head().await.unwrap(),
        won.last().unwrap().1.last,
        "every record belongs to an append that was won"
    );
    assert_eq!(won.len() + lost, 120);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_minus_nine_between_leaves_every_append_in_the_log_exactly_once() {
    let mut bed = Bed::start().await;
    let client = bed.role(Role::Registrar).await;
    let doubts = Arc::new(AtomicU32::new(0));
    let counted = doubts.clone();
    let log = Log::new(client).observed_by(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let writer = tokio::spawn(async move {
        let mut head = 0;
        for round in 0..1_500_usize {
            let appended = log
                .append(head, &records(&round.to_string(), 1 + round % 4))
                .await
                .unwrap();
            assert_eq!(appended.first, head + 1);
            head = appended.last;
            let _ = sender.try_send(round);
        }
        (log, head)
    });
    for _ in 0..4 {
        // Some progress first, so that the kill meets appends under way.
        for _ in 0..20 {
            receiver.recv().await;
        }
        bed.kill().await;
        bed.restart().await;
    }
    receiver.close();
    let (log, head) = tokio::time::timeout(Duration::from_secs(120), writer)
        .await
        .unwrap()
        .unwrap();
    assert!(doubts.load(Ordering::Relaxed) > 0, "no kill met an append");
    assert_eq!(log.head().await.unwrap(), head);
    let mut tail = log.tail(1).await.unwrap();
    for round in 0..1_500_usize {
        for index in 0..1 + round % 4 {
            let entry = tokio::time::timeout(Duration::from_secs(10), tail.next())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(entry.bytes, format!("{{\"of\":\"{round}\",\"i\":{index}}}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_append_waits_for_the_server_and_can_be_stopped() {
    let mut bed = Bed::start().await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (doubt, mut doubted) = tokio::sync::mpsc::channel(1);
    let log = Log::new(bed.role(Role::Registrar).await)
        .stopped_by(stopped)
        .observed_by(move |seen| {
            let _ = doubt.try_send(seen.attempts);
        });
    log.append(0, &records("before", 1)).await.unwrap();
    bed.kill().await;
    let log = Arc::new(log);
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.append(1, &records("during", 3)).await }
    });
    doubted.recv().await.unwrap();
    bed.restart().await;
    let appended = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!((appended.first, appended.last), (2, 4));
    bed.kill().await;
    while doubted.try_recv().is_ok() {}
    let waiting = tokio::spawn(async move { log.append(4, &records("never", 1)).await });
    doubted.recv().await.unwrap();
    stop.send(true).unwrap();
    let result = tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(result, Err(log::Error::Stopped)), "{result:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_rewound_or_rewritten_is_noticed() {
    let mut bed = Bed::start().await;
    let log = Log::new(bed.role(Role::Registrar).await);
    log.append(0, &records("kept", 3)).await.unwrap();
    let last = log.read(3).await.unwrap().unwrap();
    log.check_not_rewound(0, [0; 32]).await.unwrap();
    log.check_not_rewound(3, log::leaf_hash(&last.bytes))
        .await
        .unwrap();
    let rewritten = log
        .check_not_rewound(3, log::leaf_hash(b"other"))
        .await
        .unwrap_err();
    assert!(
        matches!(rewritten, log::Error::Regression(_)),
        "{rewritten}"
    );
    let ahead = log
        .check_not_rewound(4, log::leaf_hash(&last.bytes))
        .await
        .unwrap_err();
    assert!(matches!(ahead, log::Error::Regression(_)), "{ahead}");
    // An operator who deletes the store: the streams come back empty, and nobody may write on.
    bed.kill().await;
    std::fs::remove_dir_all(bed.folder.path().join("nats/jetstream/jetstream")).unwrap();
    bed.restart().await;
    streams::ensure(
        &bed.role(Role::Installer).await,
        &bed.role(Role::System).await,
        1,
    )
    .await
    .unwrap();
    let log = Log::new(bed.role(Role::Registrar).await);
    let gone = log
        .check_not_rewound(3, log::leaf_hash(&last.bytes))
        .await
        .unwrap_err();
    assert!(matches!(gone, log::Error::Regression(_)), "{gone}");
    let refused = log.append(3, &records("after", 1)).await.unwrap_err();
    assert!(matches!(refused, log::Error::Regression(_)), "{refused}");
    assert_eq!(log.head().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_committed_is_republished() {
    let bed = Bed::start().await;
    let follower = bed.role(Role::Follower).await;
    let mut events = follower.subscribe("chancery.v1.evt.>").await.unwrap();
    follower.flush().await.unwrap();
    let log = Log::new(bed.role(Role::Registrar).await);
    log.append(0, &records("first", 2)).await.unwrap();
    assert!(log.append(0, &records("refused", 2)).await.is_err());
    assert!(log.append(0, &records("refused", 1)).await.is_err());
    log.append(2, &records("second", 1)).await.unwrap();
    for (sequence, label) in [("1", "first"), ("2", "first"), ("3", "second")] {
        let event = tokio::time::timeout(Duration::from_secs(5), events.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event.subject.as_str(), "chancery.v1.evt.acme.domain.added");
        assert_eq!(
            event
                .headers
                .unwrap()
                .get("Nats-Sequence")
                .unwrap()
                .as_str(),
            sequence
        );
        assert!(String::from_utf8_lossy(&event.payload).contains(label));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_sync_each_write_is_refused() {
    let bed = Bed::bare().await;
    // The same identity on a server with the default of two minutes.
    let folder = bed.folder.path().join("lax");
    std::fs::create_dir_all(&folder).unwrap();
    let strict = std::fs::read_to_string(bed.folder.path().join("nats/nats.conf")).unwrap();
    let lax = strict
        .replace("sync_interval: always", "sync_interval: \"2m\"")
        .replace("/nats/", "/lax/")
        .replace(
            &format!("{}", bed.server.as_ref().unwrap().address()),
            "127.0.0.1:-1",
        );
    assert_ne!(lax, strict);
    std::fs::write(
        folder.join("nats.conf"),
        format!("{lax}\nports_file_dir: \"{}\"\n", folder.display()),
    )
    .unwrap();
    std::fs::write(
        folder.join("identity.conf"),
        bed.identity.server_conf(now()),
    )
    .unwrap();
    let mut child = tokio::process::Command::new(executable())
        .args(["-c".as_ref(), folder.join("nats.conf").as_os_str()])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ports = folder.join(format!("nats-server_{}.ports", child.id().unwrap()));
    let read_url = || {
        let text = std::fs::read_to_string(&ports).ok()?;
        Some(
            serde_json::from_str::<serde_json::Value>(&text).ok()?["nats"][0]
                .as_str()?
                .to_owned(),
        )
    };
    until("the lax server accepts", || async { read_url().is_some() }).await;
    let url = read_url().unwrap();
    let connect = async |role| {
        bus::connect::connect(&url, &bus::connect::Login::minted(&bed.identity, role))
            .await
            .unwrap()
    };
    let error = streams::ensure(
        &connect(Role::Installer).await,
        &connect(Role::System).await,
        1,
    )
    .await
    .unwrap_err();
    assert!(matches!(error, streams::Error::NotSynced { .. }), "{error}");
    // And one that does sync, but whose streams differ, too.
    let mut changed = bed.role(Role::Installer).await;
    streams::ensure(&changed, &bed.role(Role::System).await, 1)
        .await
        .unwrap();
    streams::ensure(&changed, &bed.role(Role::System).await, 1)
        .await
        .unwrap();
    changed = bed.role(Role::Installer).await;
    let error = streams::ensure(&changed, &bed.role(Role::System).await, 3)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            streams::Error::TooFewServers {
                found: 1,
                wanted: 3
            }
        ),
        "{error}"
    );
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_of_a_crash_is_ended_and_a_second_server_refused() {
    let mut bed = Bed::start().await;
    let second = Server::start(&executable(), &bed.config())
        .await
        .unwrap_err();
    assert!(matches!(second, server::Error::Locked(_)), "{second}");
    let address = bed.server.as_ref().unwrap().address();
    // What a crash leaves: a running child, its mark, and nobody who holds the lock.
    let folder = bed.folder.path().join("nats");
    bed.server.take().unwrap().stop().await.unwrap();
    for with_mark in [true, false] {
        let mut orphan = tokio::process::Command::new(executable())
            .args([
                "-c".as_ref(),
                folder.canonicalize().unwrap().join("nats.conf").as_os_str(),
            ])
            .current_dir(&folder)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = orphan.id().unwrap();
        until("the orphan wrote its process file", || async {
            std::fs::read_to_string(folder.join("nats.pid"))
                .is_ok_and(|text| text.trim() == pid.to_string())
        })
        .await;
        if with_mark {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let ticks = stat[stat.rfind(')').unwrap() + 1..]
                .split_whitespace()
                .nth(19)
                .unwrap()
                .to_owned();
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            let mark = format!(
                "{{\"pid\":{pid},\"start_ticks\":{ticks},\"boot_id\":\"{}\"}}",
                boot.trim()
            );
            std::fs::write(folder.join("process.json"), mark).unwrap();
        }
        let reaped = tokio::spawn(async move { orphan.wait().await });
        bed.restart().await;
        tokio::time::timeout(Duration::from_secs(10), reaped)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(
            bed.server.as_ref().unwrap().address(),
            address,
            "the port stays the same in this folder"
        );
        bed.server.take().unwrap().stop().await.unwrap();
    }
}
