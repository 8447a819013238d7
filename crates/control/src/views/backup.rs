//! The view that a backup is pulled through: page by page, from the ledger and the vault as they are at that moment. Whoever
//! pulls puts the pages together and checks that they make a whole (`crate::backup`).

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};

use ledger::Hash;
use lifecycle::rejection::Code;
use lifecycle::state::State as _;
use wire::answer::Problem;
use wire::envelope::rfc3339_micros;
use wire::request::{BackupQuery, EventsQuery};

use super::{PAGE_BYTES, PAGE_MAX, Views};
use crate::tables::{Tables, fatal};
use crate::vault;

/// Most objects that are asked for at once.
const HASHES_MAX: usize = 256;

/// Whether these rights allow a view for which no pattern is enough: all rights, or that one by its name.
pub(super) fn allowed_exactly(rights: &[String], view: &str) -> bool {
    let has = |right: &str| rights.iter().any(|r| r == right);
    (has("cmd.>") && has("query.>")) || has(&format!("query.{view}"))
}

impl Views {
    pub(super) async fn backup(&self, query: &BackupQuery) -> Result<Vec<u8>, Problem> {
        let value = match query {
            BackupQuery::Manifest => self.backup_manifest().await?,
            BackupQuery::Events { from } => {
                let page = EventsQuery {
                    from: Some(*from),
                    limit: Some(PAGE_MAX),
                };
                return self.events(None, &page);
            }
            BackupQuery::Objects { hashes } => self.backup_objects(hashes)?,
            BackupQuery::Keys { since, after } => {
                self.backup_keys(*since, after.as_deref()).await?
            }
        };
        Ok(serde_json::to_vec(&value).unwrap_or_default())
    }

    async fn backup_manifest(&self) -> Result<Value, Problem> {
        // First the count, then the head: what was decided in between is counted and saved, not missed.
        let queued = self
            .ingestion
            .queue
            .waiting()
            .await
            .map_err(|error| busy(&error))?;
        let root_key = vault::with(&self.ingestion.vault, |core| core.keyring.root_id())
            .await
            .map_err(|error| busy(&error))?;
        let tables = Tables::of(&self.ledger);
        let control = tables
            .control()
            .ok_or_else(|| Problem::later(Code::Busy, "the log has not begun yet", 1_000))?;
        let head = tables
            .0
            .head()
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
        let time = tables
            .0
            .event(head.sequence)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            .and_then(|bytes| wire::envelope::Position::of(&bytes).ok())
            .map_or(0, |position| position.time);
        Ok(json!({
            "release": env!("CARGO_PKG_VERSION"),
            "log": control.log,
            "platform_domain": control.platform_domain,
            "head": {"sequence": head.sequence, "hash": head.hash.to_string(), "time": rfc3339_micros(time)},
            "generation": self.generation,
            "root_key": root_key,
            "queued": queued,
        }))
    }

    fn backup_objects(&self, hashes: &[String]) -> Result<Value, Problem> {
        if hashes.len() > HASHES_MAX {
            return Err(Problem::new(
                Code::TooLarge,
                format!("at most {HASHES_MAX} objects are asked for at once"),
                "ask for the others afterwards",
            ));
        }
        let tables = Tables::of(&self.ledger);
        let mut objects = Vec::new();
        let mut bytes = 0;
        for text in hashes {
            let hash: Hash = text.parse().map_err(|_| {
                Problem::new(Code::Malformed, "a hash is 64 lower-case hex digits", "")
            })?;
            let object = tables
                .0
                .object(&hash.0)
                .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
            let object = object.map(|object| BASE64.encode(&object));
            bytes += object.as_ref().map_or(0, String::len) + 90;
            // The first always fits: an object has at most 256 KiB.
            if bytes > PAGE_BYTES && !objects.is_empty() {
                break;
            }
            objects.push(json!({"sha256": text, "der": object}));
        }
        Ok(json!({"objects": objects}))
    }

    async fn backup_keys(&self, since: u64, after: Option<&str>) -> Result<Value, Problem> {
        let after = after
            .map(|cursor| BASE64URL_NOPAD.decode(cursor.as_bytes()))
            .transpose()
            .map_err(|_| {
                Problem::new(
                    Code::Malformed,
                    "after is not the next of a page before",
                    "begin without it",
                )
            })?;
        let page = vault::with(&self.ingestion.vault, move |core| {
            core.keyring.export(after.as_deref(), since)
        })
        .await
        .map_err(|error| busy(&error))?
        .map_err(|error| busy(&error))?;
        let keys: Vec<Value> = page
            .held
            .iter()
            .map(|(sequence, blob)| match blob {
                Some(blob) => {
                    json!({"sequence": sequence, "sealed": BASE64.encode(blob.as_bytes())})
                }
                None => json!({"sequence": sequence}),
            })
            .collect();
        let next = page.next.map(|row| BASE64URL_NOPAD.encode(&row));
        Ok(json!({"keys": keys, "next": next}))
    }
}

fn busy(error: &dyn std::fmt::Display) -> Problem {
    tracing::warn!(%error, "a page of a backup could not be made");
    Problem::later(Code::Busy, "this page cannot be made now", 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_look_at_everything_may_not_take_a_backup() {
        let may = |rights: &[&str]| {
            let rights: Vec<String> = rights.iter().map(|&right| right.to_owned()).collect();
            allowed_exactly(&rights, "backup")
        };
        assert!(may(&["cmd.>", "queue.>", "query.>", "evt.>"]));
        assert!(may(&["query.backup"]));
        for less in [
            &["query.>", "evt.>"][..],
            &["query.*"],
            &["cmd.>"],
            &["cmd.certificate.*", "query.>"],
            &["query.backups"],
            &[],
        ] {
            assert!(!may(less), "{less:?}");
        }
    }
}
