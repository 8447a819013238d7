//! JSON schemas of the types that write themselves as text.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::names::{CertificateId, Digest, Host, ResourceId, Slug};
use crate::rejection::{Code, Reason};
use crate::selection::KeyKind;

/// A time to the second, RFC 3339 in UTC.
pub struct Time;

macro_rules! text {
    ($($type:ty = $name:literal, $schema:tt;)*) => {
        $(impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

text! {
    Time = "Time", {
        "type": "string", "format": "date-time",
        "description": "A time to the second, RFC 3339 in UTC."
    };
    Slug = "Slug", {
        "type": "string", "minLength": 1, "maxLength": 64,
        "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$",
        "description": "A name: a-z, 0-9 and single hyphens, none at an end. A project's id has 3 to 40 characters."
    };
    Host = "Host", {
        "type": "string", "maxLength": 253,
        "description": "A DNS host name of at least two labels, lower-case A-labels without the final dot; or a wildcard for one level, as *.example.com."
    };
    CertificateId = "CertificateId", {
        "type": "string", "pattern": "^crt-[0-9]+$",
        "description": "The id of a certificate: the sequence of the event that created it."
    };
    ResourceId = "ResourceId", {
        "type": "string", "pattern": "^res-[0-9]+$",
        "description": "The id of a resource: the sequence of the event that created it."
    };
    Digest = "Digest", {
        "type": "string", "pattern": "^[0-9a-f]{64}$",
        "description": "32 bytes as lower-case hex: a SHA-256 digest or a public key."
    };
    KeyKind = "KeyKind", {
        "oneOf": [
            {"enum": ["p256", "p384", "ed25519"]},
            {"type": "object", "properties": {"rsa": {"type": "integer", "minimum": 2048, "maximum": 8192}}, "required": ["rsa"], "additionalProperties": false}
        ],
        "description": "The kind of a key; of RSA with its bits."
    };
}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Code")
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        json_schema!({
            "type": "string", "enum": codes,
            "description": "A reason code. Its meaning never changes; docs/errors has a page for each."
        })
    }
}

impl JsonSchema for Reason {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Reason")
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let code = generator.subschema_for::<Code>();
        json_schema!({
            "type": "object",
            "properties": {
                "code": code,
                "message": {"type": "string", "description": "What was found."},
                "hint": {"type": "string", "description": "What to do next."}
            },
            "required": ["code", "message"]
        })
    }
}
