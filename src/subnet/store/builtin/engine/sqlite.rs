//! The file: what it looks like, how it is opened, what is refused.
//!
//! `log` holds every change since the last compaction. A row is valid from
//! `mod_revision` up to, but not including, `superseded`, the revision that
//! replaced or deleted the key; so a read at a revision is one range condition,
//! the present is a partial index, and compaction one `DELETE`.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OptionalExtension};

use super::super::error::BuiltinError;

/// `weft` in ASCII, in the file's header where SQLite keeps the application id.
const APPLICATION_ID: i32 = 0x7765_6674;
const SCHEMA_VERSION: i32 = 1;

const SCHEMA: &str = "
CREATE TABLE log (
    id              INTEGER PRIMARY KEY,
    mod_revision    INTEGER NOT NULL,
    sub             INTEGER NOT NULL,
    key             BLOB NOT NULL,
    value           BLOB NOT NULL,
    create_revision INTEGER NOT NULL,
    version         INTEGER NOT NULL,
    lease           INTEGER NOT NULL,
    tombstone       INTEGER NOT NULL,
    superseded      INTEGER
);
CREATE UNIQUE INDEX log_revision ON log (mod_revision, sub);
CREATE INDEX log_key ON log (key, mod_revision);
CREATE INDEX log_live ON log (key) WHERE superseded IS NULL AND tombstone = 0;
CREATE INDEX log_lease ON log (lease) WHERE superseded IS NULL AND tombstone = 0 AND lease <> 0;
-- A restart gives every lease its full time again, as etcd's change of leader
-- does, so that no expiry needs to be written.
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL);
CREATE TABLE meta (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    compacted  INTEGER NOT NULL,
    cluster_id INTEGER NOT NULL,
    member_id  INTEGER NOT NULL,
    term       INTEGER NOT NULL
);
";

/// Opens the store, making it where there is none. The caller holds the lock.
///
/// # Errors
/// [`BuiltinError::Foreign`], `Newer` and `Damaged` leave the file untouched.
pub fn open(path: &Path) -> Result<Connection, BuiltinError> {
    create_private(path)?;
    let connection = Connection::open(path).map_err(|cause| explain(path, cause))?;
    connection.set_prepared_statement_cache_capacity(48);
    if is_empty(&connection).map_err(|cause| explain(path, cause))? {
        make(&connection).map_err(|cause| explain(path, cause))?;
        sync_dir_of(path)?;
    } else {
        check(path, &connection)?;
        tune(&connection).map_err(|cause| explain(path, cause))?;
    }
    Ok(connection)
}

/// The file holds the fabric's addresses and keys: only its owner reads it.
fn create_private(path: &Path) -> Result<(), BuiltinError> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|cause| BuiltinError::DataDir { path: path.into(), cause })
}

fn sync_dir_of(path: &Path) -> Result<(), BuiltinError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|cause| BuiltinError::DataDir { path: dir.into(), cause })
}

/// True for a file without any table: new, or left by a crash before the
/// schema was committed.
fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    Ok(tables == 0 && (id == 0 || id == APPLICATION_ID))
}

fn make(connection: &Connection) -> rusqlite::Result<()> {
    tune(connection)?;
    let id = || rand::random::<i64>() & i64::MAX;
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA}
         INSERT INTO meta VALUES (1, -1, {}, {}, 0); COMMIT;",
        id(),
        id()
    ))
}

fn check(path: &Path, connection: &Connection) -> Result<(), BuiltinError> {
    let pragma = |name: &str| -> Result<i32, BuiltinError> {
        connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|cause| explain(path, cause))
    };
    let id = pragma("application_id")?;
    if id != APPLICATION_ID {
        return Err(BuiltinError::Foreign {
            path: path.into(),
            cause: format!("application id {id:#x}, expected {APPLICATION_ID:#x}"),
        });
    }
    let found = pragma("user_version")?;
    if found != SCHEMA_VERSION {
        return Err(BuiltinError::Newer { path: path.into(), found, known: SCHEMA_VERSION });
    }
    let verdict: Option<String> = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .optional()
        .map_err(|cause| explain(path, cause))?;
    match verdict {
        Some(ok) if ok == "ok" => Ok(()),
        other => Err(BuiltinError::Damaged { path: path.into(), cause: other.unwrap_or_default() }),
    }
}

/// One process and one connection use the file, so the WAL's index lives on the
/// heap (exclusive mode) and the page cache stays small.
fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

fn explain(path: &Path, cause: rusqlite::Error) -> BuiltinError {
    let path = path.to_owned();
    match cause.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => BuiltinError::Foreign { path, cause: cause.to_string() },
        Some(ErrorCode::DatabaseCorrupt) => BuiltinError::Damaged { path, cause: cause.to_string() },
        _ => BuiltinError::Sqlite { path, cause },
    }
}
