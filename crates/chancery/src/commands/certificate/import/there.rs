//! What the project has already, and how much more it may have.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use lifecycle::names::{Digest, Slug};
use lifecycle::rejection::Code;
use wire::request::ListQuery;

use crate::client::Client;
use crate::failure::{Failure, Result};

/// Certificates on a page.
const PAGE: usize = 500;

/// A certificate of the project.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Whether it is of kind `ca`.
    pub ca: bool,
    /// The names of its latest version.
    pub names: Vec<String>,
    /// When its latest version ends, Unix seconds.
    pub not_after: i64,
    /// Where it works.
    pub regions: Vec<String>,
    /// Its revision.
    pub revision: u64,
    /// The status of its latest version.
    pub status: String,
    /// Its key's kind, as the view shows it.
    pub key: String,
}

/// What the project has.
#[derive(Debug, Default)]
pub struct There {
    /// By name.
    pub names: HashMap<String, Known>,
    /// The name and version of each certificate that it holds, by fingerprint.
    pub fingerprints: HashMap<Digest, (String, u64)>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    certificates: Vec<View>,
    #[serde(default)]
    next: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct View {
    name: String,
    kind: String,
    status: String,
    #[serde(deserialize_with = "crate::commands::nullable")]
    names: Vec<String>,
    #[serde(deserialize_with = "crate::commands::nullable")]
    not_after: String,
    regions: Vec<String>,
    key: serde_json::Value,
    versions: Vec<Version>,
    revision: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Version {
    version: u64,
    #[serde(deserialize_with = "crate::commands::nullable")]
    fingerprint: String,
}

impl There {
    /// Asks for all certificates of a project, page by page; of each only what is compared is kept.
    ///
    /// # Errors
    /// Those of the query.
    pub async fn ask(client: &Client, project: &Slug) -> Result<Self> {
        let mut there = Self::default();
        let mut query = ListQuery {
            limit: Some(PAGE),
            ..ListQuery::default()
        };
        loop {
            let page: Page = client.view(project, "certificates", &query).await?;
            for view in page.certificates {
                there.take(view);
            }
            match page.next {
                Some(next) if query.after.as_ref() != Some(&next) => query.after = Some(next),
                _ => return Ok(there),
            }
        }
    }

    /// Asks for one certificate by its name. None: there is no such one.
    ///
    /// # Errors
    /// Those of the query.
    pub async fn one(client: &Client, project: &Slug, name: &Slug) -> Result<Option<Self>> {
        let query = ListQuery {
            name: Some(name.to_string()),
            ..ListQuery::default()
        };
        match client
            .view::<Page, _>(project, "certificates", &query)
            .await
        {
            Ok(page) => {
                let mut there = Self::default();
                page.certificates.into_iter().for_each(|v| there.take(v));
                Ok(Some(there))
            }
            Err(Failure::Refused(refused)) if refused.told.code == Code::NotFound.as_str() => {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    fn take(&mut self, view: View) {
        for version in &view.versions {
            if let Ok(fingerprint) = version.fingerprint.parse() {
                self.fingerprints
                    .insert(fingerprint, (view.name.clone(), version.version));
            }
        }
        let known = Known {
            ca: view.kind == "ca",
            names: view.names,
            not_after: wire::envelope::micros(&view.not_after).unwrap_or(0) / 1_000_000,
            regions: view.regions,
            revision: view.revision,
            status: view.status,
            key: match view.key {
                serde_json::Value::String(key) => key,
                serde_json::Value::Null => String::new(),
                other => other.to_string(),
            },
        };
        self.names.insert(view.name, known);
    }
}

/// How many more certificates the project may have where they shall go.
#[derive(Debug, Default)]
pub struct Room {
    /// The limits: what each is of, what it allows and what is used.
    pub limits: Vec<Limit>,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The region; None: of the project as a whole.
    pub region: Option<String>,
    /// What is allowed.
    pub allocated: u64,
    /// What is used.
    pub used: u64,
}

impl Limit {
    /// What is left.
    pub fn free(&self) -> u64 {
        self.allocated.saturating_sub(self.used)
    }
}

#[derive(Deserialize)]
struct Quotas {
    #[serde(default)]
    allocated: Option<u64>,
    #[serde(default)]
    used: u64,
    #[serde(default)]
    regions: Vec<OfRegion>,
}

#[derive(Deserialize)]
struct OfRegion {
    region: String,
    #[serde(default)]
    kind: String,
    allocated: u64,
    #[serde(default)]
    used: u64,
}

#[derive(Deserialize)]
struct Regions {
    #[serde(default)]
    countries: Vec<Country>,
}

#[derive(Deserialize)]
struct Country {
    name: String,
    #[serde(default)]
    regions: Vec<String>,
}

impl Room {
    /// Asks how much a project may have in these regions or countries. Where nothing is said, the server decides.
    ///
    /// # Errors
    /// Those of the queries.
    pub async fn ask(client: &Client, project: &Slug, regions: &BTreeSet<String>) -> Result<Self> {
        let nothing = serde_json::json!({});
        let quotas: Quotas = match client.view(project, "quotas", &nothing).await {
            Ok(quotas) => quotas,
            // Credentials without the right to see it, and servers that do not count.
            Err(Failure::Refused(refused))
                if [Code::NotFound.as_str(), Code::Unauthorized.as_str()]
                    .contains(&refused.told.code.as_str()) =>
            {
                return Ok(Self::default());
            }
            Err(failure) => return Err(failure),
        };
        let mut limits = Vec::new();
        if let Some(allocated) = quotas.allocated {
            limits.push(Limit {
                region: None,
                allocated,
                used: quotas.used,
            });
        }
        for row in quotas.regions {
            if (row.kind.is_empty() || row.kind == "server") && regions.contains(&row.region) {
                limits.push(Limit {
                    region: Some(row.region),
                    allocated: row.allocated,
                    used: row.used,
                });
            }
        }
        Ok(Self { limits })
    }

    /// The tightest limit. None: there is none that is known.
    pub fn tightest(&self) -> Option<&Limit> {
        self.limits.iter().min_by_key(|limit| limit.free())
    }
}

/// The regions that these names stand for: a country stands for several.
///
/// # Errors
/// Those of the query.
pub async fn regions(client: &Client, project: &Slug, wanted: &[Slug]) -> Result<BTreeSet<String>> {
    let known: Regions = match client
        .view(project, "regions", &serde_json::json!({}))
        .await
    {
        Ok(known) => known,
        Err(Failure::Refused(_)) => Regions {
            countries: Vec::new(),
        },
        Err(failure) => return Err(failure),
    };
    let mut all = BTreeSet::new();
    for name in wanted {
        match known.countries.iter().find(|c| c.name == name.as_str()) {
            Some(country) => all.extend(country.regions.iter().cloned()),
            None => {
                all.insert(name.to_string());
            }
        }
    }
    Ok(all)
}
