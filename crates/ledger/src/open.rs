//! The open file: who holds it, where its head is, and who is told when the head rises.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redb::{Database, DatabaseError, Durability, ReadableDatabase, TableHandle};

use crate::{
    Error, Head, Snapshot, Writer,
    format::{
        EVENTS, FORMAT, META, META_FORMAT, META_HEAD, META_TREE, OBJECTS, OLDEST, OUTCOMES, SCOPES,
        STATE, TREE, head_value, read_event, read_head, tree_value,
    },
    leaf_hash,
    tree::TreeHead,
    upgrade,
};

/// How many of the last events are hashed again when a ledger is opened. What a crash could have
/// torn is in the last transaction, which has at most so many.
const TAIL: u64 = 1_000;

/// How a ledger is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most bytes that redb keeps of the file in memory, for reading and writing together.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 128 << 20,
        }
    }
}

type Listener = Box<dyn Fn(Head) + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) database: Database,
    head: Mutex<Head>,
    pub(crate) writing: AtomicBool,
    pub(crate) poisoned: AtomicBool,
    listeners: Mutex<Vec<(u64, Arc<Listener>)>>,
    next_listener: AtomicU64,
}

/// A panic of another thread leaves these values whole: each is replaced in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn head(&self) -> Head {
        *lock(&self.head)
    }

    /// Called with what is durable, and only then.
    pub(crate) fn publish(&self, head: Head) {
        *lock(&self.head) = head;
        let listeners: Vec<_> = lock(&self.listeners)
            .iter()
            .map(|(_, listener)| Arc::clone(listener))
            .collect();
        for listener in listeners {
            listener(head);
        }
    }
}

/// An open ledger. Clones share it; the file is closed with the last clone, snapshot and writer.
#[derive(Clone)]
pub struct Ledger {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ledger")
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// Opens the ledger in the file `path`, and creates it if there is none. The folder must exist.
    ///
    /// The file is locked against every other process. The head must name the last event, the last 1,000
    /// events are hashed again, and the tree's right edge must give its root;
    /// [`audit::verify`](crate::audit::verify) does the rest. A file of an older format is brought up to
    /// the current one first, which takes about a second for a million events.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`], [`Error::NotALedger`], [`Error::NewerFormat`], [`Error::Damaged`],
    /// [`Error::Storage`] and [`Error::Create`].
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self, Error> {
        let path = path.as_ref();
        if !fs::exists(path)? {
            create(path)?;
        }
        let database = Database::builder()
            .set_cache_size(options.cache_bytes)
            .open(path)
            .map_err(open_error)?;
        Self::from_database(database)
    }

    /// Takes over an open database: writes the format into an empty one and checks any other.
    pub(crate) fn from_database(database: Database) -> Result<Self, Error> {
        initialise(&database)?;
        let (format, head) = check(&database)?;
        if format < FORMAT {
            upgrade::add_tables(&database)?;
        }
        tracing::debug!(sequence = head.sequence, hash = %head.hash, "ledger open");
        let ledger = Self {
            shared: Arc::new(Shared {
                database,
                head: Mutex::new(head),
                writing: AtomicBool::new(false),
                poisoned: AtomicBool::new(false),
                listeners: Mutex::new(Vec::new()),
                next_listener: AtomicU64::new(0),
            }),
        };
        if format < FORMAT {
            upgrade::grow_tree(&ledger)?;
        }
        ledger.check_tree()?;
        Ok(ledger)
    }

    /// The tree is that of the head, and its right edge gives its root.
    fn check_tree(&self) -> Result<(), Error> {
        let snapshot = self.read()?;
        let (head, tree) = (snapshot.head()?, snapshot.tree()?);
        if tree.size != head.sequence {
            return Err(Error::Damaged(format!(
                "the tree has {} leaves, the last event is {}",
                tree.size, head.sequence
            )));
        }
        let root = snapshot.frontier(tree.size)?.root();
        if root != tree.root {
            return Err(Error::Damaged(format!(
                "the tree of {} leaves has the root {root} by its hashes, and names {}",
                tree.size, tree.root
            )));
        }
        Ok(())
    }

    /// The last durable event. Cheap: it is kept in memory, and rises only after the commit.
    pub fn head(&self) -> Head {
        self.shared.head()
    }

    /// The one writer, free again once dropped.
    ///
    /// # Errors
    ///
    /// [`Error::WriterTaken`] while another one exists, [`Error::Poisoned`] after a failed write.
    pub fn writer(&self) -> Result<Writer, Error> {
        Writer::new(Arc::clone(&self.shared))
    }

    /// A view of the ledger as it is now. Keep it for milliseconds: what is replaced while it lives
    /// cannot be reused, so the file grows.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub fn read(&self) -> Result<Snapshot, Error> {
        Snapshot::new(&self.shared)
    }

    /// Calls `listener` with the new head after each append that is durable, on the writer's thread:
    /// it must only pass the head on and never wait. Ends when the subscription is dropped.
    ///
    /// To miss nothing, subscribe first and read [`Ledger::head`] then.
    pub fn on_append(&self, listener: impl Fn(Head) + Send + Sync + 'static) -> Subscription {
        let id = self.shared.next_listener.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.listeners).push((id, Arc::new(Box::new(listener))));
        Subscription {
            shared: Arc::downgrade(&self.shared),
            id,
        }
    }
}

/// A listener's place; dropping it ends the calls. It does not keep the ledger open.
#[must_use = "dropping the subscription ends it"]
pub struct Subscription {
    shared: Weak<Shared>,
    id: u64,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Subscription")
            .finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.listeners).retain(|(id, _)| *id != self.id);
        }
    }
}

fn open_error(error: DatabaseError) -> Error {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Error::Locked,
        other => Error::storage("open the ledger")(other),
    }
}

/// Makes a complete, empty ledger under another name and links it into place, so that a crash on the
/// way leaves either no ledger or a whole one. The link never replaces a file that another process
/// made meanwhile.
fn create(path: &Path) -> Result<(), Error> {
    static ATTEMPT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(
        ".{}-{}.new",
        std::process::id(),
        ATTEMPT.fetch_add(1, Ordering::Relaxed)
    ));
    let unfinished = Unfinished(PathBuf::from(name));
    unfinished.remove()?;
    let database = Database::create(&unfinished.0).map_err(open_error)?;
    initialise(&database)?;
    database
        .close()
        .map_err(Error::storage("close the new ledger"))?;
    match fs::hard_link(&unfinished.0, path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    unfinished.remove()?;
    // The name must survive a power loss as well as the bytes do.
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

struct Unfinished(PathBuf);

impl Unfinished {
    fn remove(&self) -> std::io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // On the way out of a failure the first error is the one that matters.
        let _ = self.remove();
    }
}

/// Writes the format and every table into a database that has none.
fn initialise(database: &Database) -> Result<(), Error> {
    let during = "create the tables";
    let read = database.begin_read().map_err(Error::storage(during))?;
    let names: Vec<String> = read
        .list_tables()
        .map_err(Error::storage(during))?
        .map(|table| table.name().to_owned())
        .collect();
    drop(read);
    if names.iter().any(|name| name == META.name()) {
        return Ok(());
    }
    if !names.is_empty() {
        return Err(Error::NotALedger);
    }
    let mut transaction = database.begin_write().map_err(Error::storage(during))?;
    transaction
        .set_durability(Durability::Immediate)
        .map_err(Error::storage(during))?;
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(true);
    {
        let mut meta = transaction
            .open_table(META)
            .map_err(Error::storage(during))?;
        meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())
            .map_err(Error::storage(during))?;
        meta.insert(META_HEAD, head_value(Head::EMPTY).as_slice())
            .map_err(Error::storage(during))?;
        meta.insert(META_TREE, tree_value(TreeHead::empty()).as_slice())
            .map_err(Error::storage(during))?;
        transaction
            .open_table(EVENTS)
            .map_err(Error::storage(during))?;
        transaction
            .open_table(SCOPES)
            .map_err(Error::storage(during))?;
        for table in [OUTCOMES, OBJECTS, STATE, TREE] {
            transaction
                .open_table(table)
                .map_err(Error::storage(during))?;
        }
    }
    transaction.commit().map_err(Error::storage(during))
}

/// Checks the version, that the head names the last event, and the hashes of the tail. Gives version and head.
fn check(database: &Database) -> Result<(u32, Head), Error> {
    let during = "check the ledger";
    let read = database.begin_read().map_err(Error::storage(during))?;
    let meta = read.open_table(META).map_err(Error::storage(during))?;
    let format = meta
        .get(META_FORMAT)
        .map_err(Error::storage(during))?
        .ok_or(Error::NotALedger)?;
    let format = <[u8; 4]>::try_from(format.value())
        .map(u32::from_le_bytes)
        .map_err(|_| Error::NotALedger)?;
    if format > FORMAT {
        return Err(Error::NewerFormat {
            found: format,
            supported: FORMAT,
        });
    }
    if format < OLDEST {
        return Err(Error::NotALedger);
    }
    let head = meta
        .get(META_HEAD)
        .map_err(Error::storage(during))?
        .ok_or_else(|| Error::Damaged("the head is missing".into()))?;
    let head = read_head(head.value())?;

    let events = read.open_table(EVENTS).map_err(Error::storage(during))?;
    let mut last = Head::EMPTY;
    if head.sequence > 0 {
        last.sequence = head.sequence.saturating_sub(TAIL);
    }
    for row in events
        .range(last.sequence + 1..)
        .map_err(Error::storage(during))?
    {
        let (sequence, value) = row.map_err(Error::storage(during))?;
        let sequence = sequence.value();
        if sequence != last.sequence + 1 {
            return Err(Error::Damaged(format!(
                "event {} is missing",
                last.sequence + 1
            )));
        }
        let (hash, bytes) = read_event(sequence, value.value())?;
        if leaf_hash(bytes) != hash {
            return Err(Error::Damaged(format!(
                "the bytes of event {sequence} do not have its hash"
            )));
        }
        last = Head { sequence, hash };
    }
    if last != head {
        return Err(Error::Damaged(format!(
            "the head is event {} with hash {}, the last event is {} with hash {}",
            head.sequence, head.hash, last.sequence, last.hash
        )));
    }
    Ok((format, head))
}
