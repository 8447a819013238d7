//! `chancery verify`: what clients would say of a chain, without asking anybody.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use control::chain::offline::{self, Decision, Question, Verdict};
use control::chain::repair::{self, Kind, Repair};
use keyring::PrivateKey;
use lifecycle::event::Trust;
use lifecycle::rejection::{Code, Reason};
use rustls::pki_types::CertificateDer;

use crate::cli::Verify;
use crate::failure::{Failure, Result};
use crate::files;
use crate::material::{self, Form, Passwords};
use crate::output::{Card, Out, list};

use super::verdict;

/// The most domains of one question.
const MAX_DOMAINS: usize = 1_000;

/// The document for programs.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    at: String,
}

pub(super) fn run(args: &Verify, out: &Out) -> Result<ExitCode> {
    let at = args.at.as_ref().map_or_else(
        || time::OffsetDateTime::now_utc().unix_timestamp(),
        |at| at.micros.div_euclid(1_000_000),
    );
    let mut passwords = Passwords::new(args.password_file.as_deref());
    let mut beside = Vec::new();

    if args.domains.len() > MAX_DOMAINS {
        return Err(Failure::Usage(format!(
            "at most {MAX_DOMAINS} domains are judged at once"
        )));
    }
    let (chain, mut key, text_beside) = match said(file(&args.chain, &mut passwords))? {
        Ok(read) => (read.certificates, read.key, read.text_beside),
        Err(reasons) => (Err(reasons), None, false),
    };
    let roots = match &args.roots {
        None => None,
        Some(path) => Some(match said(file(path, &mut passwords))? {
            Ok(Contents {
                certificates: Ok(roots),
                ..
            }) => roots,
            // Roots that cannot be read are no roots: nothing leads to them.
            Ok(Contents {
                certificates: Err(reasons),
                ..
            })
            | Err(reasons) => {
                beside.extend(reasons.into_iter().map(|reason| Reason {
                    message: format!("The roots cannot be used: {}", reason.message),
                    ..reason
                }));
                Vec::new()
            }
        }),
    };
    if let Some(path) = &args.key {
        key = match said(material::key(path, &mut passwords))? {
            Ok(key) => Some(key),
            Err(reasons) => {
                beside.extend(reasons);
                None
            }
        };
    }

    let mut judged = match chain {
        Err(reasons) => Verdict::unreadable(reasons),
        Ok(chain) => offline::verify(Question {
            chain: &chain,
            roots: roots.as_deref(),
            domains: &args.domains,
            spki_of_key: key.map(|key| key.spki_sha256()),
            at,
        }),
    };
    if text_beside {
        let message = "Text or other blocks beside the certificates were passed over.".to_owned();
        let repair = Kind::TextIgnored;
        judged.repairs.insert(0, Repair { repair, message });
    }
    if !beside.is_empty() {
        judged.verdict = Decision::Reject;
        judged.reasons.splice(0..0, beside);
    }
    if out.json() {
        out.document(&Document {
            verdict: &judged,
            at: wire::envelope::rfc3339(at),
        });
    } else {
        tell(&judged, at, out);
    }
    Ok(verdict(judged.verdict == Decision::Accept))
}

type Told<T> = std::result::Result<T, Vec<Reason>>;

/// Takes the refusals out of a result: what a file holds is a matter of the verdict, that it is not there is none.
fn said<T>(result: Result<T>) -> Result<Told<T>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Failure::Refused(refused)) => {
            let reasons: Vec<Reason> = refused
                .told
                .reasons
                .iter()
                .filter_map(|because| {
                    let code = Code::parse(&because.code)?;
                    Some(Reason::new(code, &because.message, &because.hint))
                })
                .collect();
            if reasons.is_empty() {
                return Err(Failure::Refused(refused));
            }
            Ok(Err(reasons))
        }
        Err(failure) => Err(failure),
    }
}

/// What a file brings to a verdict.
struct Contents {
    certificates: Told<Vec<CertificateDer<'static>>>,
    key: Option<PrivateKey>,
    text_beside: bool,
}

/// The certificates of a file in any form, and the key that belongs to one of them when it holds that too.
fn file(path: &Path, passwords: &mut Passwords) -> Result<Contents> {
    if path.is_dir() {
        return Err(anyhow::anyhow!("{} is a folder; name the file in it", path.display()).into());
    }
    let bytes = files::read(path, offline::MAX_FILE as u64)?;
    let name = path.display().to_string();
    match said(material::parse(&bytes, &name, passwords))? {
        Ok(mut contents) => {
            // A judge of chains does not choose among keys.
            let key = contents.keys.pop().filter(|_| contents.keys.is_empty());
            let found = if contents.certificates.is_empty() {
                Err(vec![Reason::new(
                    Code::NoCertificate,
                    format!("{name} holds no certificate."),
                    "A certificate begins with -----BEGIN CERTIFICATE-----.",
                )])
            } else {
                Ok(match contents.form {
                    Form::Pem | Form::Der => contents.certificates,
                    // Containers are sets: which of them is the server's does not follow from the order.
                    Form::Pkcs12 | Form::Pkcs7 => leaf_first(contents.certificates, key.as_ref()),
                })
            };
            Ok(Contents {
                certificates: found,
                key,
                text_beside: contents.text_beside,
            })
        }
        // More certificates than an upload may bring can be judged, and so can those beside a key that stays closed.
        Err(reasons)
            if reasons.iter().all(|reason| {
                matches!(
                    reason.code,
                    Code::TooLarge | Code::KeyEncrypted | Code::KeyUnsupported | Code::KeyTooSmall
                )
            }) =>
        {
            let found = offline::read_certificates(&bytes).map_err(|_| reasons);
            Ok(Contents {
                certificates: found,
                key: None,
                text_beside: false,
            })
        }
        Err(reasons) => Ok(Contents {
            certificates: Err(reasons),
            key: None,
            text_beside: false,
        }),
    }
}

/// Puts the certificate first that an upload would take for the server's.
fn leaf_first(
    mut certificates: Vec<CertificateDer<'static>>,
    key: Option<&PrivateKey>,
) -> Vec<CertificateDer<'static>> {
    let spki = key.map(PrivateKey::spki_sha256);
    if let Ok(repaired) = repair::repair(&certificates, spki, &[], 0)
        && let Some(leaf) = repaired.chain.first()
        && let Some(place) = certificates.iter().position(|der| der == leaf)
    {
        certificates[..=place].rotate_right(1);
    }
    certificates
}

/// The verdict for people: what it is, then what is wrong and what to do.
fn tell(judged: &Verdict, at: i64, out: &Out) {
    let mut card = Card::default();
    card.add(
        "verdict",
        match judged.verdict {
            Decision::Accept => "accept",
            Decision::Reject => "reject",
        },
    );
    card.add("judged at", wire::envelope::rfc3339(at));
    card.add(
        "trust",
        match judged.trust {
            Some(Trust::Public) => "public",
            Some(Trust::Private) => "private",
            Some(Trust::SelfSigned) => "self-signed",
            None => "",
        },
    );
    card.add("names", list(&judged.names, 8));
    card.add("not before", judged.not_before.clone().unwrap_or_default());
    card.add("not after", judged.not_after.clone().unwrap_or_default());
    card.add("sha-256", judged.fingerprint.clone().unwrap_or_default());
    for (place, step) in judged.chain.iter().enumerate() {
        let name = if place == 0 { "path" } else { "" };
        card.add(name, format!("{}{}", "  ".repeat(place), step.subject));
    }
    for (place, repair) in judged.repairs.iter().enumerate() {
        card.add(
            if place == 0 { "repaired" } else { "" },
            repair.message.clone(),
        );
    }
    card.print(out);
    for reason in &judged.reasons {
        out.say("");
        out.say(format!("reject[{}]: {}", reason.code, reason.message));
        if !reason.hint.is_empty() {
            out.say(format!("  to do: {}", reason.hint));
        }
    }
    if !judged.warnings.is_empty() {
        out.say("");
    }
    for warning in &judged.warnings {
        out.say(format!("warning: {warning}"));
    }
}
