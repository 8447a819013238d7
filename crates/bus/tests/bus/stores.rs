//! The streams beside the log: objects, sealed keys and the work queue.

use std::time::{Duration, Instant};

use bus::{
    keys::Keys,
    objects::{Objects, object_hash},
    queue::{self, Queue},
    templates::Role,
};
use bytes::Bytes;

use crate::bed::Bed;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_puts_share_their_syncs() {
    let bed = Bed::start().await;
    let objects = Objects::start(bed.role(Role::Objects).await);
    let began = Instant::now();
    let puts: Vec<_> = (0..3_000)
        .map(|index| {
            let objects = objects.clone();
            tokio::spawn(async move {
                objects
                    .put(vec![Bytes::from(format!("object {index}"))])
                    .await
                    .unwrap()
            })
        })
        .collect();
    for (index, put) in puts.into_iter().enumerate() {
        assert_eq!(
            put.await.unwrap(),
            vec![object_hash(format!("object {index}").as_bytes())]
        );
    }
    // A sync for each would take seconds on the same disk; the figure to reach is 1,000 a second.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let mut tail = objects.tail(1).await.unwrap();
    let mut found = std::collections::HashSet::new();
    while found.len() < 3_000 {
        let entry = tokio::time::timeout(Duration::from_secs(10), tail.next())
            .await
            .unwrap()
            .unwrap();
        found.insert(object_hash(&entry.bytes));
    }
    let late = objects
        .put(vec!["late".into(), "later".into()])
        .await
        .unwrap();
    for hash in late {
        let entry = tokio::time::timeout(Duration::from_secs(10), tail.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(object_hash(&entry.bytes), hash);
    }
    assert!(objects.put(vec![]).await.is_err());
    assert!(
        objects
            .put(vec![vec![0; bus::objects::OBJECT_LIMIT + 1].into()])
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_share_a_store_and_a_lost_server_loses_nothing() {
    let mut bed = Bed::start().await;
    let (a, b) = (
        Keys::start(bed.role(Role::Keys).await),
        Keys::start(bed.role(Role::Keys).await),
    );
    let write = |keys: Keys, name: &'static str| {
        tokio::spawn(async move {
            let mut stored = Vec::new();
            for index in 0..200 {
                let sealed = vec![
                    Bytes::from(format!("{name} {index} x")),
                    Bytes::from(format!("{name} {index} y")),
                ];
                let sequences = keys.put(sealed.clone()).await.unwrap();
                stored.extend(sequences.into_iter().zip(sealed));
            }
            stored
        })
    };
    let (writing_a, writing_b) = (write(a.clone(), "a"), write(b, "b"));
    let mut tail = a.tail(1).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), tail.next())
        .await
        .unwrap()
        .unwrap();
    bed.kill().await;
    bed.restart().await;
    let mut stored = writing_a.await.unwrap();
    stored.extend(writing_b.await.unwrap());
    stored.sort();
    let mut tail = a.tail(1).await.unwrap();
    let mut loaded = Vec::new();
    loop {
        let page = tail.page().await.unwrap().unwrap();
        if page.is_empty() {
            break;
        }
        loaded.extend(page.into_iter().map(|entry| (entry.sequence, entry.bytes)));
    }
    assert_eq!(
        loaded, stored,
        "each put is there exactly once, where it was said to be"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_is_gone_from_the_stream_and_from_the_disk() {
    let bed = Bed::start().await;
    let keys = Keys::start(bed.role(Role::Keys).await);
    let marks = ["mark-one-7f3a9c", "mark-two-7f3a9c", "mark-three-7f3a9c"];
    let sequences = keys
        .put(marks.iter().map(|mark| Bytes::from(*mark)).collect())
        .await
        .unwrap();
    let store = bed.folder.path().join("nats/jetstream");
    assert_eq!(occurrences(&store, marks[1]), 1);
    keys.delete(sequences[1]).await.unwrap();
    keys.delete(sequences[1]).await.unwrap();
    assert!(keys.read(sequences[1]).await.unwrap().is_none());
    assert_eq!(
        (occurrences(&store, marks[0]), occurrences(&store, marks[1])),
        (1, 0)
    );
    let mut tail = keys.tail(1).await.unwrap();
    let left: Vec<_> = tail
        .page()
        .await
        .unwrap()
        .unwrap()
        .into_iter()
        .map(|entry| entry.bytes)
        .collect();
    assert_eq!(left, [marks[0], marks[2]]);
    // What comes after the gap is followed too.
    let more = keys.put(vec!["mark-four".into()]).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(10), tail.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((next.sequence, next.bytes), (more[0], "mark-four".into()));
}

/// How many files below a folder hold a text.
fn occurrences(folder: &std::path::Path, text: &str) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found += occurrences(&path, text);
        } else if let Ok(bytes) = std::fs::read(&path) {
            found += usize::from(
                bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes()),
            );
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_work_is_done_once_and_comes_back_when_it_is_not() {
    let bed = Bed::start().await;
    let queue = Queue::new(bed.role(Role::Queue).await);
    assert!(!queue.put("acme/1", "one".into()).await.unwrap());
    assert!(
        queue.put("acme/1", "one".into()).await.unwrap(),
        "the same id again is the same work"
    );
    assert!(!queue.put("other/1", "two".into()).await.unwrap());
    let work = queue.take(10, Duration::from_secs(5)).await.unwrap();
    assert_eq!(
        work.iter()
            .map(|work| work.bytes.clone())
            .collect::<Vec<_>>(),
        ["one", "two"]
    );
    let mut work = work.into_iter();
    work.next().unwrap().done().await.unwrap();
    work.next()
        .unwrap()
        .later(Duration::from_millis(10))
        .await
        .unwrap();
    let again = queue.take(10, Duration::from_secs(5)).await.unwrap();
    assert_eq!(
        again
            .iter()
            .map(|work| work.bytes.clone())
            .collect::<Vec<_>>(),
        ["two"]
    );
    for work in again {
        work.more_time().await.unwrap();
        work.done().await.unwrap();
    }
    assert!(
        queue
            .take(10, Duration::from_millis(100))
            .await
            .unwrap()
            .is_empty()
    );
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.take(10, Duration::from_secs(10)).await.unwrap().len() }
    });
    queue.put("acme/2", "three".into()).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 1);
    let large = queue
        .put("acme/3", vec![0; queue::WORK_LIMIT + 1].into())
        .await;
    assert!(matches!(large, Err(queue::Error::TooLarge)));
}
