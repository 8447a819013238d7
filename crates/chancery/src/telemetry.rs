//! Logs: facts as fields, to stderr, so that stdout stays the answer.

use std::fmt;
use std::io::IsTerminal;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people on a terminal, else as JSON
    #[default]
    Auto,
    /// For people
    Human,
    /// One JSON document a line
    Json,
}

/// What is logged unless `CHANCERY_LOG` says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A command that asks and ends: only what is wrong.
    Client,
    /// A server: what it does.
    Server,
}

/// Begins to log. The format is the argument, else `CHANCERY_LOG_FORMAT` (`auto`, `human` or `json`), else `configured`,
/// else [`Format::Auto`]; for clients lines are for people unless told. Call it once; a second call changes nothing.
///
/// # Errors
/// When `CHANCERY_LOG` or `CHANCERY_LOG_FORMAT` cannot be read.
pub fn start(role: Role, format: Option<Format>, configured: Option<Format>) -> anyhow::Result<()> {
    let format = match (
        format,
        std::env::var("CHANCERY_LOG_FORMAT")
            .ok()
            .filter(|v| !v.is_empty()),
    ) {
        (Some(format), _) => format,
        (None, Some(text)) => Format::from_str(&text, true)
            .map_err(|_| anyhow::anyhow!("CHANCERY_LOG_FORMAT is auto, human or json"))?,
        (None, None) => configured.unwrap_or_default(),
    };
    let filter = match std::env::var("CHANCERY_LOG").ok().filter(|v| !v.is_empty()) {
        Some(text) => EnvFilter::try_new(text).map_err(|error| {
            anyhow::anyhow!("CHANCERY_LOG is not a filter such as info,edge=debug: {error}")
        })?,
        None => EnvFilter::new(match role {
            Role::Client => "warn,async_nats=error",
            Role::Server => "info,async_nats=warn",
        }),
    };
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        Format::Json => true,
        Format::Human => false,
        Format::Auto => role == Role::Server && !terminal,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error here only says that somebody else, such as a test, began to log first.
    let _ = if json {
        builder
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(Line)
            .try_init()
            .map_err(drop)
    } else {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none();
        builder
            .with_ansi(colours)
            .with_target(role == Role::Server)
            .try_init()
            .map_err(drop)
    };
    Ok(())
}

/// One JSON document a line, flat: the fields of the event, and of the spans that it happened in. So what a command causes has
/// its `correlation` in the same place on every line, whoever writes it. The library's own form nests spans.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|s| s.from_root())
        {
            let extensions = span.extensions();
            // A span whose fields cannot be read again loses them, and no line is lost for it.
            if let Some(fields) = extensions.get::<FormattedFields<N>>()
                && let Ok(fields) = serde_json::from_str::<Map<String, Value>>(&fields.fields)
            {
                line.extend(fields);
            }
        }
        // The event's own words go before those of its spans, and what every line has before both.
        event.record(&mut Fields(&mut line));
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        line.insert("timestamp".to_owned(), now.unwrap_or_default().into());
        let metadata = event.metadata();
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("target".to_owned(), metadata.target().into());
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

/// Takes fields in as JSON values.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_the_fields_of_its_spans_beside_its_own() {
        let kept = Kept::default();
        let to = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || to.clone())
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(Line)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::info_span!("command", correlation = tracing::field::Empty, n = 1);
            let _entered = outer.enter();
            tracing::info!("before");
            outer.record("correlation", tracing::field::display("id \"7\""));
            tracing::info_span!("inner", n = 2).in_scope(|| {
                tracing::warn!(
                    level = "mine",
                    quoted = "a\nb",
                    ok = true,
                    ms = 3_u64,
                    "after"
                );
            });
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0]["message"], "before");
        assert!(lines[0].get("correlation").is_none(), "{text}");
        assert_eq!(lines[1]["correlation"], "id \"7\"");
        assert_eq!(lines[1]["n"], 2, "the inner span goes before the outer");
        assert_eq!(lines[1]["level"], "WARN", "nobody writes the level but us");
        assert_eq!(lines[1]["quoted"], "a\nb");
        assert_eq!(lines[1]["ms"], 3);
        assert_eq!(lines[1]["ok"], true);
    }
}
