//! What a responder or a CRL says of one certificate.

/// How far clocks may differ, seconds.
pub(super) const SKEW: i64 = 600;

/// What is said, once it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It is not revoked.
    Good,
    /// It is.
    Revoked {
        /// Since when, Unix seconds.
        since: i64,
        /// The CA's reason (RFC 5280, 5.3.1).
        reason: Option<u8>,
    },
}

/// Why an answer says nothing, as a half sentence that follows "the answer of …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unclear(pub(super) String);

impl From<&str> for Unclear {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The name of a CA's reason.
pub(super) fn reason_name(reason: u8) -> Option<&'static str> {
    Some(match reason {
        0 => "unspecified",
        1 => "keyCompromise",
        2 => "cACompromise",
        3 => "affiliationChanged",
        4 => "superseded",
        5 => "cessationOfOperation",
        6 => "certificateHold",
        8 => "removeFromCRL",
        9 => "privilegeWithdrawn",
        10 => "aACompromise",
        _ => return None,
    })
}

/// Whether something that was true from one moment to another is so now, give or take [`SKEW`].
///
/// # Errors
/// Which end it is beyond.
pub(super) fn current(this_update: i64, next_update: i64, now: i64) -> Result<(), Unclear> {
    if this_update > now.saturating_add(SKEW) {
        return Err("is of a later time than this machine's clock".into());
    }
    if next_update < now.saturating_sub(SKEW) {
        return Err("is out of date".into());
    }
    Ok(())
}
