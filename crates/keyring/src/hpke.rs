//! Sealing to a public key: HPKE (RFC 9180), base mode, single shot, with
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
//!
//! Base mode does not say who sealed something: whoever opens must know that from elsewhere.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hpke::aead::{AeadTag, AesGcm256};
use hpke::inout::InOutBuf;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open_inout_detached,
    single_shot_seal_inout_detached_with_rng,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::key::{KeyError, MAX_DER, PrivateKey, sha256};
use crate::random::Random;
use crate::secret::Secret;

type Suite = X25519HkdfSha256;

/// The length of an encapsulated key and of a public key, in bytes.
pub const PUBLIC: usize = 32;
/// What sealing adds to the plaintext: the tag of AES-256-GCM, in bytes.
pub const TAG: usize = 16;

/// Something did not open, or the recipient's public key cannot be used. Which of the two halves
/// was wrong is not told, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sealed bytes do not open with this key in this place")]
pub struct HpkeError;

/// What [`seal`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The encapsulated key: the sender's ephemeral public key.
    pub enc: [u8; PUBLIC],
    /// The ciphertext followed by its tag.
    pub ct: Vec<u8>,
}

/// Seals `plaintext` to the holder of the private half of `public`.
///
/// `info` binds the place and purpose, `aad` further data; both must be the same when opening.
///
/// # Errors
/// When `public` is a point of low order, which would make the shared secret predictable.
pub fn seal(
    public: &[u8; PUBLIC],
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Sealed, HpkeError> {
    let public = <Suite as Kem>::PublicKey::from_bytes(public).map_err(|_| HpkeError)?;
    // In place: on success nothing but ciphertext is left in the buffer.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + TAG));
    buffer.extend_from_slice(plaintext);
    let (enc, tag) = single_shot_seal_inout_detached_with_rng::<AesGcm256, HkdfSha256, Suite>(
        &OpModeS::Base,
        &public,
        info,
        InOutBuf::from(buffer.as_mut_slice()),
        aad,
        &mut Random,
    )
    .map_err(|_| HpkeError)?;
    buffer.extend_from_slice(&tag.to_bytes());
    Ok(Sealed {
        enc: enc.to_bytes().into(),
        ct: buffer.to_vec(),
    })
}

/// The private half: opens what was sealed to its public half. Wiped when dropped.
pub struct Recipient {
    secret: Secret,
    public: [u8; PUBLIC],
}

impl Recipient {
    /// Makes a new key pair.
    pub fn generate() -> Self {
        let (secret, public) = Suite::gen_keypair_with_rng(&mut Random);
        Self {
            secret: Secret::from_slice(&Zeroizing::new(<[u8; 32]>::from(secret.to_bytes()))[..]),
            public: public.to_bytes().into(),
        }
    }

    /// Takes the 32 bytes that [`danger_to_secret`](Self::danger_to_secret) gave.
    ///
    /// # Errors
    /// When there are not 32 bytes.
    pub fn from_secret(secret: &[u8]) -> Result<Self, HpkeError> {
        let key = <Suite as Kem>::PrivateKey::from_bytes(secret).map_err(|_| HpkeError)?;
        Ok(Self {
            public: Suite::sk_to_pk(&key).to_bytes().into(),
            secret: Secret::from_slice(secret),
        })
    }

    /// The private half in the clear, to be sealed by somebody else.
    pub fn danger_to_secret(&self) -> &Secret {
        &self.secret
    }

    /// The public half.
    pub fn public(&self) -> [u8; PUBLIC] {
        self.public
    }

    /// Opens what was sealed with the same `info` and `aad`.
    ///
    /// # Errors
    /// When anything differs; nothing of the plaintext is given out then.
    pub fn open(&self, sealed: &Sealed, info: &[u8], aad: &[u8]) -> Result<Secret, HpkeError> {
        let key =
            <Suite as Kem>::PrivateKey::from_bytes(self.secret.expose()).map_err(|_| HpkeError)?;
        let enc = <Suite as Kem>::EncappedKey::from_bytes(&sealed.enc).map_err(|_| HpkeError)?;
        let length = sealed.ct.len().checked_sub(TAG).ok_or(HpkeError)?;
        let (ciphertext, tag) = sealed.ct.split_at(length);
        let tag = AeadTag::<AesGcm256>::from_bytes(tag).map_err(|_| HpkeError)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        single_shot_open_inout_detached::<AesGcm256, HkdfSha256, Suite>(
            &OpModeR::Base,
            &key,
            &enc,
            info,
            InOutBuf::from(buffer.as_mut_slice()),
            aad,
            &tag,
        )
        .map_err(|_| HpkeError)?;
        Ok(Secret::from_slice(&buffer))
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipient({})", key_id(&self.public))
    }
}

/// The name of a public key: the first 8 bytes of its SHA-256 in lower-case hex.
pub fn key_id(public: &[u8; PUBLIC]) -> String {
    HEXLOWER.encode(&sha256(public)[..8])
}

/// A private key on its way to the ingestion door, as commands carry it in JSON:
/// `{"kid","enc","ct"}` with base64url without padding.
///
/// `info` is `chancery.v1.ingestion`, NUL and the project; `aad` is empty; the plaintext is PKCS#8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKey {
    /// Which ingestion key it is sealed to, as [`key_id`] names it.
    #[serde(deserialize_with = "kid")]
    pub kid: String,
    /// The encapsulated key.
    #[serde(serialize_with = "encode", deserialize_with = "decode_enc")]
    pub enc: [u8; PUBLIC],
    /// The ciphertext with its tag, at most [`MAX_DER`] bytes and the tag.
    #[serde(serialize_with = "encode", deserialize_with = "decode_ct")]
    pub ct: Vec<u8>,
}

impl SealedKey {
    /// Seals a private key for one project to the ingestion key with this public half.
    ///
    /// # Errors
    /// When the public half cannot be used.
    pub fn seal(
        ingestion_public: &[u8; PUBLIC],
        project: &str,
        key: &PrivateKey,
    ) -> Result<Self, HpkeError> {
        let Sealed { enc, ct } = seal(
            ingestion_public,
            &ingestion_info(project),
            b"",
            key.danger_to_pkcs8_der().expose(),
        )?;
        Ok(Self {
            kid: key_id(ingestion_public),
            enc,
            ct,
        })
    }

    /// Opens it with the ingestion key itself and reads the key inside.
    ///
    /// # Errors
    /// `Err(None)` when it does not open, `Err(Some(_))` when what is inside is no key that is taken.
    pub(crate) fn open(
        &self,
        ingestion: &Recipient,
        project: &str,
    ) -> Result<PrivateKey, Option<KeyError>> {
        let sealed = Sealed {
            enc: self.enc,
            ct: self.ct.clone(),
        };
        let der = ingestion
            .open(&sealed, &ingestion_info(project), b"")
            .map_err(|_| None)?;
        PrivateKey::from_der(der.expose()).map_err(Some)
    }
}

fn ingestion_info(project: &str) -> Vec<u8> {
    [b"chancery.v1.ingestion\0", project.as_bytes()].concat()
}

fn encode<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64URL_NOPAD.encode(bytes.as_ref()))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D, limit: usize) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() > limit.div_ceil(3) * 4 {
        return Err(de::Error::custom("longer than any sealed key"));
    }
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| de::Error::custom("not base64url without padding"))
}

fn decode_enc<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; PUBLIC], D::Error> {
    decode(deserializer, PUBLIC)?
        .try_into()
        .map_err(|_| de::Error::custom("an encapsulated key has 32 bytes"))
}

fn decode_ct<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let ct = decode(deserializer, MAX_DER + TAG)?;
    if ct.len() < TAG {
        return Err(de::Error::custom("shorter than its tag"));
    }
    Ok(ct)
}

fn kid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let kid = String::deserialize(deserializer)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if kid.len() != 16 || !kid.bytes().all(hex) {
        return Err(de::Error::custom("a key id has 16 lower-case hex digits"));
    }
    Ok(kid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as OTHER;
    use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};

    use super::*;
    use crate::key::KeyKind;

    #[test]
    fn agrees_with_an_independent_implementation_in_both_directions() {
        for length in [0, 1, 16, 1200] {
            let plaintext = vec![0x5a; length];
            let ours = Recipient::generate();
            let (enc, ct) = OTHER
                .seal(
                    b"info",
                    b"aad",
                    &plaintext,
                    &HpkePublicKey(ours.public().to_vec()),
                )
                .unwrap();
            let sealed = Sealed {
                enc: enc.0.try_into().unwrap(),
                ct,
            };
            assert!(
                ours.open(&sealed, b"info", b"aad")
                    .unwrap()
                    .equals(&plaintext)
            );

            let (public, secret) = OTHER.generate_key_pair().unwrap();
            let sealed = seal(
                public.0.as_slice().try_into().unwrap(),
                b"info",
                b"aad",
                &plaintext,
            )
            .unwrap();
            let opened = OTHER.open(
                &EncapsulatedSecret(sealed.enc.to_vec()),
                b"info",
                b"aad",
                &sealed.ct,
                &HpkePrivateKey::from(secret.secret_bytes().to_vec()),
            );
            assert_eq!(opened.unwrap(), plaintext);
        }
    }

    #[test]
    fn opens_only_unchanged_and_in_its_place() {
        let ours = Recipient::generate();
        let sealed = seal(&ours.public(), b"info", b"aad", b"plaintext").unwrap();
        assert!(
            ours.open(&sealed, b"info", b"aad")
                .unwrap()
                .equals(b"plaintext")
        );
        assert!(ours.open(&sealed, b"other", b"aad").is_err());
        assert!(ours.open(&sealed, b"info", b"other").is_err());
        assert!(
            Recipient::generate()
                .open(&sealed, b"info", b"aad")
                .is_err()
        );
        for at in 0..sealed.ct.len() {
            let mut changed = sealed.clone();
            changed.ct[at] ^= 1;
            assert!(ours.open(&changed, b"info", b"aad").is_err());
            changed.ct.truncate(at);
            assert!(ours.open(&changed, b"info", b"aad").is_err());
        }
        for at in 0..PUBLIC {
            let mut changed = sealed.clone();
            changed.enc[at] ^= 1;
            assert!(ours.open(&changed, b"info", b"aad").is_err());
        }
        // A low-order point makes the shared secret zero for everybody.
        assert!(seal(&[0; 32], b"", b"", b"x").is_err());
        let again = Recipient::from_secret(ours.danger_to_secret().expose()).unwrap();
        assert_eq!(again.public(), ours.public());
        assert!(Recipient::from_secret(&[1; 31]).is_err());
    }

    #[test]
    fn the_json_form_is_strict() {
        let door = Recipient::generate();
        let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
        let sealed = SealedKey::seal(&door.public(), "acme", &key).unwrap();
        let json = serde_json::to_string(&sealed).unwrap();
        assert_eq!(serde_json::from_str::<SealedKey>(&json).unwrap(), sealed);
        assert_eq!(
            sealed.open(&door, "acme").unwrap().spki_sha256(),
            key.spki_sha256()
        );
        assert!(sealed.open(&door, "other").is_err());

        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let enc = value["enc"].as_str().unwrap();
        for (field, bad) in [
            ("enc", format!("{enc}=")),
            ("enc", enc[1..].to_owned()),
            ("enc", format!("{}+", &enc[1..])),
            ("ct", "AAAA".to_owned()),
            ("ct", "A".repeat(30_000)),
            ("kid", "../../etc".to_owned()),
            ("kid", sealed.kid.to_uppercase() + "A"),
        ] {
            let mut value = value.clone();
            value[field] = bad.into();
            assert!(
                serde_json::from_value::<SealedKey>(value).is_err(),
                "{field}"
            );
        }
        let mut more = value.clone();
        more["alg"] = "none".into();
        assert!(serde_json::from_value::<SealedKey>(more).is_err());
    }
}
