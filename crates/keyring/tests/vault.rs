//! Custody: what the vault seals opens only where it belongs, survives a lost file and a crash in
//! the middle of a rotation, and is gone when it was destroyed.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use keyring::vault::IngestionError;
use keyring::{
    BlobKind, EdgeKeys, KeyKind, PrivateKey, RegionKey, RegionSealed, RootKey, SealedBlob,
    SealedKey, Vault, VaultError,
};
use proptest::prelude::*;
use tempfile::TempDir;

const ROOT: [u8; 32] = [7; 32];

/// A vault and the stream that is its truth, as a numbered list of records.
struct Node {
    folder: TempDir,
    vault: Option<Vault>,
    stream: BTreeMap<u64, Vec<u8>>,
    last: u64,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(
            &folder.path().join("vault.redb"),
            RootKey::from_bytes(&ROOT),
        );
        Self {
            vault: Some(vault.unwrap()),
            folder,
            stream: BTreeMap::new(),
            last: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("vault.redb")
    }

    fn vault(&self) -> &Vault {
        self.vault.as_ref().unwrap()
    }

    fn publish(&mut self, blob: &SealedBlob) -> u64 {
        self.last += 1;
        self.stream.insert(self.last, blob.as_bytes().to_vec());
        self.last
    }

    fn put(&mut self, blob: &SealedBlob) -> u64 {
        let sequence = self.publish(blob);
        self.vault().install(sequence, blob).unwrap();
        sequence
    }

    fn key(&mut self, project: &str) -> PrivateKey {
        if let Some(blob) = self.vault().ensure_project_key(project).unwrap() {
            self.put(&blob);
        }
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let blob = self.vault().seal_private_key(project, &key).unwrap();
        assert_eq!(blob.kind(), BlobKind::PrivateKey);
        assert_eq!(blob.spki_sha256(), Some(key.spki_sha256()));
        self.put(&blob);
        key
    }

    fn region(&mut self, region: &str) {
        let blob = self.vault().new_region_key(region).unwrap();
        self.put(&blob);
    }

    fn work_off_deletions(&mut self) {
        let owed = self.vault().owed_deletions(1000).unwrap();
        owed.iter().for_each(|sequence| {
            self.stream.remove(sequence);
        });
        self.vault().deletion_done(&owed).unwrap();
        assert!(self.vault().owed_deletions(1000).unwrap().is_empty());
    }

    /// Loses the file and fills a new one from the stream.
    fn rebuild(&mut self) {
        self.vault = None;
        std::fs::remove_file(self.path()).unwrap();
        let vault = Vault::open(&self.path(), RootKey::from_bytes(&ROOT)).unwrap();
        for (sequence, bytes) in &self.stream {
            let blob = SealedBlob::from_bytes(bytes.clone()).unwrap();
            vault.install(*sequence, &blob).unwrap();
        }
        self.vault = Some(vault);
    }

    fn holds(&self, project: &str, key: &PrivateKey) -> bool {
        match self.vault().open_private_key(project, &key.spki_sha256()) {
            Ok(opened) => {
                assert!(
                    opened
                        .danger_to_pkcs8_der()
                        .equals(key.danger_to_pkcs8_der().expose())
                );
                true
            }
            Err(VaultError::NotFound) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_key_is_sealed_listed_opened_and_forgotten() {
    let mut node = Node::new();
    assert!(matches!(
        node.vault()
            .seal_private_key("acme", &PrivateKey::generate(KeyKind::Ed25519).unwrap()),
        Err(VaultError::NoProjectKey)
    ));
    let first = node.key("acme");
    let second = node.key("acme");
    let other = node.key("acme-2");
    assert!(node.holds("acme", &first) && node.holds("acme", &second));
    assert!(!node.holds("acme", &other) && node.holds("acme-2", &other));
    let listed: BTreeSet<_> = node
        .vault()
        .list("acme")
        .unwrap()
        .into_iter()
        .map(|h| h.spki_sha256)
        .collect();
    assert_eq!(
        listed,
        BTreeSet::from([first.spki_sha256(), second.spki_sha256()])
    );
    assert!(node.vault().ensure_project_key("acme").unwrap().is_none());

    let sequence = node
        .vault()
        .sequence_of("acme", &first.spki_sha256())
        .unwrap();
    assert_eq!(
        node.vault().forget("acme", &first.spki_sha256()).unwrap(),
        sequence
    );
    assert_eq!(
        node.vault().forget("acme", &first.spki_sha256()).unwrap(),
        None
    );
    assert!(!node.vault().contains("acme", &first.spki_sha256()).unwrap());
    assert_eq!(
        node.vault().owed_deletions(10).unwrap(),
        Vec::from_iter(sequence)
    );

    // A late copy of the record does not bring it back.
    let blob = SealedBlob::from_bytes(node.stream[&sequence.unwrap()].clone()).unwrap();
    node.vault().install(sequence.unwrap(), &blob).unwrap();
    assert!(!node.holds("acme", &first));
    node.work_off_deletions();
    node.rebuild();
    assert!(!node.holds("acme", &first) && node.holds("acme", &second));
}

#[test]
fn no_plaintext_reaches_the_file_or_the_records() {
    let mut node = Node::new();
    let key = node.key("acme");
    node.vault()
        .keep_secret("nats-operator", b"SOAMKNOWNSECRETSEED0123456789")
        .unwrap();
    node.vault = None;
    let file = std::fs::read(node.path()).unwrap();
    let der = key.danger_to_pkcs8_der().expose();
    // The scalar of a P-256 key stands at a fixed place in its PKCS#8.
    for needle in [der, &der[36..68], b"SOAMKNOWNSECRETSEED", &ROOT] {
        for haystack in node.stream.values().chain([&file]) {
            assert!(
                !haystack
                    .windows(needle.len())
                    .any(|window| window == needle)
            );
        }
    }
    assert!(
        file.windows(4).any(|window| window == b"CHKB"),
        "the search sees records"
    );
}

#[test]
fn another_root_key_is_refused_before_anything_is_written() {
    let mut node = Node::new();
    node.key("acme");
    node.vault = None;
    let before = std::fs::read(node.path()).unwrap();
    let error = Vault::open(&node.path(), RootKey::from_bytes(&[8; 32])).unwrap_err();
    assert!(matches!(error, VaultError::WrongRoot { .. }), "{error}");
    assert_eq!(std::fs::read(node.path()).unwrap(), before);
    assert!(Vault::open(&node.path(), RootKey::from_bytes(&ROOT)).is_ok());

    // Nor does it take the stream of another control plane.
    let stranger = tempfile::tempdir().unwrap();
    let stranger = Vault::open(&stranger.path().join("v"), RootKey::from_bytes(&[8; 32])).unwrap();
    for bytes in node.stream.values() {
        let blob = SealedBlob::from_bytes(bytes.clone()).unwrap();
        let error = stranger.install(1, &blob).unwrap_err();
        match blob.kind() {
            // Its data key is wrapped by the project's key, which the stranger does not have.
            BlobKind::PrivateKey => assert!(matches!(error, VaultError::Unopenable(_))),
            _ => assert!(matches!(error, VaultError::WrongRoot { .. }), "{error}"),
        }
    }
    assert_eq!(stranger.head().unwrap(), 0);
}

#[test]
fn a_file_is_private_and_belongs_to_one_process() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let mode = std::fs::metadata(node.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(
        Vault::open(&node.path(), RootKey::from_bytes(&ROOT)),
        Err(VaultError::Database(_))
    ));
    // A file that was not closed is what a crash leaves: the root key is checked there too.
    let crashed = node.folder.path().join("crashed.redb");
    std::fs::copy(node.path(), &crashed).unwrap();
    assert!(matches!(
        Vault::open(&crashed, RootKey::from_bytes(&[8; 32])),
        Err(VaultError::WrongRoot { .. })
    ));
    assert!(Vault::open(&crashed, RootKey::from_bytes(&ROOT)).is_ok());
    // What is no vault is left alone.
    let foreign = node.folder.path().join("foreign");
    std::fs::write(&foreign, [b'x'; 10_000]).unwrap();
    assert!(Vault::open(&foreign, RootKey::from_bytes(&ROOT)).is_err());
    assert_eq!(std::fs::read(&foreign).unwrap(), [b'x'; 10_000]);
    // A crash between making the file and the first commit leaves an empty one.
    let empty = node.folder.path().join("empty.redb");
    std::fs::write(&empty, b"").unwrap();
    assert!(Vault::open(&empty, RootKey::from_bytes(&ROOT)).is_ok());
}

#[test]
fn a_lost_file_is_rebuilt_from_the_stream_and_the_root_key() {
    let mut node = Node::new();
    let key = node.key("acme");
    node.region("eu-1");
    node.region("eu-1");
    let ingestion = node.vault().new_ingestion_key().unwrap();
    node.put(&ingestion);
    let secret = node.vault().seal_secret("feed-signer", b"seed").unwrap();
    node.put(&secret);
    let public = node.vault().region_key_public("eu-1").unwrap();
    let door = node.vault().ingestion_keys().unwrap().current();
    let head = node.vault().head().unwrap();
    node.rebuild();
    assert!(node.holds("acme", &key));
    assert_eq!(node.vault().region_key_public("eu-1").unwrap(), public);
    assert_eq!(node.vault().ingestion_keys().unwrap().current(), door);
    assert!(
        node.vault()
            .open_secret("feed-signer")
            .unwrap()
            .unwrap()
            .equals(b"seed")
    );
    assert!(node.vault().open_secret("feed").unwrap().is_none());
    assert_eq!(node.vault().head().unwrap(), head);
    assert!(node.vault().owed_deletions(10).unwrap().is_empty());
}

#[test]
fn every_changed_bit_of_every_record_is_noticed() {
    let mut node = Node::new();
    node.key("acme");
    node.region("eu-1");
    let ingestion = node.vault().new_ingestion_key().unwrap();
    node.put(&ingestion);
    let secret = node.vault().seal_secret("feed-signer", b"seed").unwrap();
    node.put(&secret);
    assert_eq!(node.stream.len(), 5);
    // Private keys need their project's key in place; the others stand alone.
    let project_key = SealedBlob::from_bytes(node.stream[&1].clone()).unwrap();
    for bytes in node.stream.values() {
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Ok(blob) = SealedBlob::from_bytes(changed) else {
                continue;
            };
            let installed = node.vault().install(node.last + 1, &blob);
            if installed.is_err() {
                continue;
            }
            // The vault opens the data key when it installs, the private key when it is needed.
            let spki = blob
                .spki_sha256()
                .expect("only a private key gets this far");
            let opened = node.vault().open_private_key("acme", &spki);
            assert!(
                matches!(opened, Err(VaultError::Unopenable(_))),
                "bit {bit}"
            );
            node.vault().forget("acme", &spki).unwrap();
            node.vault().deletion_done(&[node.last + 1]).unwrap();
            node.vault().install(1, &project_key).unwrap();
        }
        for length in 0..bytes.len() {
            assert!(SealedBlob::from_bytes(bytes[..length].to_vec()).is_err());
        }
        assert!(SealedBlob::from_bytes([&bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn a_record_that_was_moved_does_not_open() {
    let mut node = Node::new();
    let key = node.key("acme");
    node.key("evil");
    let stolen = node.stream[&2].clone();
    let at = stolen.windows(4).position(|w| w == b"acme").unwrap();

    // The same record under the name of another project.
    let mut renamed = stolen.clone();
    renamed[at..at + 4].copy_from_slice(b"evil");
    let renamed = SealedBlob::from_bytes(renamed).unwrap();
    assert_eq!(renamed.name(), "evil");
    assert!(node.vault().install(9, &renamed).is_err());

    // Under the name of another key of the same project.
    let mut relabelled = stolen.clone();
    relabelled[at + 4 + 2] ^= 1;
    let relabelled = SealedBlob::from_bytes(relabelled).unwrap();
    assert!(node.vault().install(9, &relabelled).is_err());

    // A project's key under the name of another project.
    let mut project_key = node.stream[&1].clone();
    project_key[at..at + 4].copy_from_slice(b"evil");
    assert!(
        node.vault()
            .install(9, &SealedBlob::from_bytes(project_key).unwrap())
            .is_err()
    );
    assert!(node.holds("acme", &key));
    assert!(node.vault().list("evil").unwrap().len() == 1);
}

#[test]
fn rows_swapped_inside_the_file_do_not_open() {
    let mut node = Node::new();
    let victim = node.key("acme");
    let bait = node.key("evil");
    node.vault = None;
    {
        const ROWS: redb::TableDefinition<'_, &[u8], (u64, &[u8])> =
            redb::TableDefinition::new("sealed_v1");
        let database = redb::Database::open(node.path()).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut rows = transaction.open_table(ROWS).unwrap();
            let row = [&[2], &b"evil\0"[..], &bait.spki_sha256()].concat();
            assert!(redb::ReadableTable::get(&rows, &row[..]).unwrap().is_some());
            rows.insert(&row[..], (4, &node.stream[&2][..])).unwrap();
        }
        transaction.commit().unwrap();
    }
    let vault = Vault::open(&node.path(), RootKey::from_bytes(&ROOT)).unwrap();
    assert!(matches!(
        vault.open_private_key("evil", &bait.spki_sha256()),
        Err(VaultError::Unopenable(_))
    ));
    assert!(
        vault
            .open_private_key("acme", &victim.spki_sha256())
            .is_ok()
    );
}

#[test]
fn installing_is_idempotent_and_the_newest_record_wins() {
    let mut node = Node::new();
    let key = node.key("acme");
    let spki = key.spki_sha256();
    let again = node.vault().seal_private_key("acme", &key).unwrap();
    let newer = node.put(&again);
    assert_eq!(
        node.vault().sequence_of("acme", &spki).unwrap(),
        Some(newer)
    );
    assert_eq!(node.vault().owed_deletions(10).unwrap(), [2]);
    for (sequence, bytes) in node.stream.clone() {
        node.vault()
            .install(sequence, &SealedBlob::from_bytes(bytes).unwrap())
            .unwrap();
    }
    assert_eq!(
        node.vault().sequence_of("acme", &spki).unwrap(),
        Some(newer)
    );
    assert_eq!(node.vault().owed_deletions(10).unwrap(), [2]);
    assert!(node.holds("acme", &key));
}

#[test]
fn a_node_that_was_away_drops_what_others_deleted() {
    let mut node = Node::new();
    let gone = node.key("acme");
    let kept = node.key("acme");
    node.vault().keep_secret("nats-operator", b"seed").unwrap();
    node.stream.remove(&2);
    let live = node.stream.keys().copied().collect();
    node.vault().retain(node.last, &live).unwrap();
    assert!(!node.holds("acme", &gone) && node.holds("acme", &kept));
    assert!(node.vault().open_secret("nats-operator").unwrap().is_some());
}

#[test]
fn rotation_keeps_the_living_and_the_old_record_no_longer_opens() {
    let mut node = Node::new();
    let living = node.key("acme");
    let deleted = node.key("acme");
    let bystander = node.key("other");
    node.vault().forget("acme", &deleted.spki_sha256()).unwrap();
    let old_living = SealedBlob::from_bytes(node.stream[&2].clone()).unwrap();
    let old_deleted = SealedBlob::from_bytes(node.stream[&3].clone()).unwrap();

    let rotation = node.vault().rotate_project_key("acme").unwrap();
    assert_eq!(rotation.put.len(), 2);
    assert_eq!(rotation.delete, [1, 2]);
    node.put(&rotation.put[0]);
    // Interrupted here: the old key cannot be destroyed while it is needed.
    assert!(matches!(
        node.vault().destroy_retired("acme"),
        Err(VaultError::StillWrapping(1))
    ));
    node.put(&rotation.put[1]);
    assert_eq!(node.vault().destroy_retired("acme").unwrap(), [1]);
    assert_eq!(node.vault().owed_deletions(10).unwrap(), [1, 2, 3]);
    node.work_off_deletions();

    for _ in 0..2 {
        assert!(node.holds("acme", &living) && node.holds("other", &bystander));
        assert!(!node.holds("acme", &deleted));
        for old in [&old_living, &old_deleted] {
            assert!(matches!(
                node.vault().install(100, old),
                Err(VaultError::Unopenable(BlobKind::PrivateKey))
            ));
        }
        node.rebuild();
    }
}

#[test]
fn a_deleted_project_takes_all_its_keys_along() {
    let mut node = Node::new();
    let key = node.key("acme");
    let bystander = node.key("acme-2");
    assert_eq!(node.vault().destroy_project("acme").unwrap(), [2, 1]);
    assert_eq!(node.vault().owed_deletions(10).unwrap(), [1, 2]);
    for _ in 0..2 {
        assert!(!node.holds("acme", &key) && node.holds("acme-2", &bystander));
        assert!(node.vault().ensure_project_key("acme").unwrap().is_some());
        node.work_off_deletions();
        node.rebuild();
    }
}

#[test]
fn a_rotation_that_was_interrupted_is_finished_later() {
    let mut node = Node::new();
    let first = node.key("acme");
    let rotation = node.vault().rotate_project_key("acme").unwrap();
    // Sealed while the rotation was under way, so with the old key.
    let late = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let sealed = node.vault().seal_private_key("acme", &late).unwrap();
    node.put(&rotation.put[0]);
    node.put(&sealed);
    // A crash: the rest of the rotation is forgotten, only the stream is left.
    node.rebuild();
    assert!(matches!(
        node.vault().destroy_retired("acme"),
        Err(VaultError::StillWrapping(2))
    ));
    let rest = node.vault().rewrap_project("acme").unwrap();
    assert_eq!(rest.len(), 2);
    rest.iter().for_each(|blob| {
        node.put(blob);
    });
    assert!(node.vault().rewrap_project("acme").unwrap().is_empty());
    assert_eq!(node.vault().destroy_retired("acme").unwrap(), [1]);
    node.work_off_deletions();
    node.rebuild();
    assert!(node.holds("acme", &first) && node.holds("acme", &late));
}

#[test]
fn an_edge_opens_what_is_sealed_for_its_region_and_nothing_else() {
    let mut node = Node::new();
    let key = node.key("acme");
    let spki = key.spki_sha256();
    assert!(matches!(
        node.vault().reseal_for_region("acme", &spki, "eu-1"),
        Err(VaultError::NoRegionKey)
    ));
    node.region("eu-1");
    node.region("eu-10");
    let (version, public) = node.vault().region_key_public("eu-1").unwrap().unwrap();
    assert_eq!(version, 1);

    let edge = EdgeKeys::from_secret(&EdgeKeys::generate().danger_to_secret()).unwrap();
    let sealed = node
        .vault()
        .seal_region_key("eu-1", 1, "edge-1", &edge.public())
        .unwrap();
    let region_key = edge.open_region_key("edge-1", &sealed).unwrap();
    assert_eq!(region_key.public(), public);
    let region_key = RegionKey::from_secret(&region_key.danger_to_secret()).unwrap();
    assert_eq!((region_key.region(), region_key.version()), ("eu-1", 1));
    assert!(edge.open_region_key("edge-2", &sealed).is_err());
    assert!(
        EdgeKeys::generate()
            .open_region_key("edge-1", &sealed)
            .is_err()
    );
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            edge.open_region_key("edge-1", &changed).is_err(),
            "bit {bit}"
        );
    }
    for length in 0..sealed.len() {
        assert!(edge.open_region_key("edge-1", &sealed[..length]).is_err());
    }

    let bundle = node
        .vault()
        .reseal_for_region("acme", &spki, "eu-1")
        .unwrap();
    let bytes = bundle.to_bytes();
    assert_eq!(RegionSealed::from_bytes(&bytes).unwrap(), bundle);
    let opened = region_key.open(&bundle).unwrap();
    assert_eq!(opened.spki_sha256(), spki);
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if let Ok(changed) = RegionSealed::from_bytes(&changed) {
            assert!(region_key.open(&changed).is_err(), "bit {bit}");
        }
    }
    for length in 0..bytes.len() {
        assert!(RegionSealed::from_bytes(&bytes[..length]).is_err());
    }
    // Relabelled, so that the edge's own check of the region does not help.
    let other = node
        .vault()
        .reseal_for_region("acme", &spki, "eu-10")
        .unwrap();
    assert!(region_key.open(&other).is_err());
    let mut relabelled = other;
    relabelled.region = "eu-1".to_owned();
    assert!(region_key.open(&relabelled).is_err());
    let mut moved = bundle.clone();
    moved.project = "evil".to_owned();
    assert!(region_key.open(&moved).is_err());

    // The next version: new seals are closed to whoever has only the old one.
    node.region("eu-1");
    let bundle = node
        .vault()
        .reseal_for_region("acme", &spki, "eu-1")
        .unwrap();
    assert_eq!(bundle.version, 2);
    assert!(region_key.open(&bundle).is_err());
    let mut downgraded = bundle;
    downgraded.version = 1;
    assert!(region_key.open(&downgraded).is_err());
    assert_eq!(
        node.vault().destroy_region_keys("eu-1", 2).unwrap().len(),
        1
    );
    assert!(matches!(
        node.vault()
            .seal_region_key("eu-1", 1, "edge-1", &edge.public()),
        Err(VaultError::NoRegionKey)
    ));
    assert!(
        node.vault()
            .seal_region_key("eu-1", 2, "edge-1", &edge.public())
            .is_ok()
    );
    assert_eq!(
        node.vault().region_key_public("eu-10").unwrap().unwrap().0,
        1
    );
}

#[test]
fn the_door_keeps_the_ingestion_key_before_the_current_one() {
    let mut node = Node::new();
    let key = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    assert!(node.vault().ingestion_keys().unwrap().current().is_none());
    let mut sealed = Vec::new();
    for _ in 0..3 {
        let blob = node.vault().new_ingestion_key().unwrap();
        node.put(&blob);
        let keys = node.vault().ingestion_keys().unwrap();
        let public = keys.current().unwrap();
        sealed.push(SealedKey::seal(&public.public, "acme", &key).unwrap());
        assert_eq!(sealed.last().unwrap().kid, public.kid);
    }
    let keys = node.vault().ingestion_keys().unwrap();
    assert_eq!(
        keys.open("acme", &sealed[2]).unwrap().spki_sha256(),
        key.spki_sha256()
    );
    assert!(keys.open("acme", &sealed[1]).is_ok());
    assert_eq!(
        keys.open("acme", &sealed[0]).unwrap_err(),
        IngestionError::UnknownKey
    );
    assert_eq!(
        keys.open("evil", &sealed[2]).unwrap_err(),
        IngestionError::Unopenable
    );
    assert_eq!(node.vault().owed_deletions(10).unwrap(), [1]);
}

#[test]
fn names_that_could_imitate_a_row_are_refused() {
    let node = Node::new();
    for name in ["", "a b", "a\0b", "ä", &"x".repeat(129)] {
        assert!(node.vault().ensure_project_key(name).is_err());
        assert!(node.vault().new_region_key(name).is_err());
        assert!(node.vault().seal_secret(name, b"x").is_err());
    }
    assert!(node.vault().seal_secret("big", &vec![0; 70_000]).is_err());
}

proptest! {
    #[test]
    fn random_and_mutated_records_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0_u8..8,
    ) {
        let _ = SealedBlob::from_bytes(bytes.clone());
        let _ = RegionSealed::from_bytes(&bytes);
        let _ = SealedBlob::from_bytes([&b"CHKB\x01"[..], &[kind], &bytes].concat());
        let _ = RegionSealed::from_bytes(&[&b"CHRS\x01"[..], &bytes].concat());
        let edge = EdgeKeys::generate();
        prop_assert!(edge.open_region_key("edge-1", &[&b"CHRK\x01"[..], &bytes].concat()).is_err());
    }
}
