//! PKCS#12 (RFC 7292): a container of certificates and private keys under a password, as Windows, Java, browsers and Macs pass
//! them on (`.pfx`, `.p12`).
//!
//! Read is what these write, old schemes too; written is the modern one alone. What is read is bounded before it is stretched
//! or decrypted: the size, the bags, how deep they stand in one another, and the work (see [`protected`](crate::protected)).

use aws_lc_rs::cipher::{AES_256, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::{digest, hmac, pbkdf2};
use zeroize::Zeroizing;

use crate::der::{self, CONTEXT_0, INTEGER, NULL, OCTET_STRING, OID, Reader, SEQUENCE, SET};
use crate::key::{KeyError, PrivateKey};
use crate::protected::{
    Budget, Password, ProtectedError, decrypt, number, open_pkcs8, pbkdf2_key, pkcs12_kdf,
};
use crate::random;

/// The longest container, in bytes.
pub const MAX_INPUT: usize = 1024 * 1024;
/// The most bags in one container.
pub const MAX_BAGS: usize = 256;
/// How deep bags may stand in bags.
const MAX_DEPTH: usize = 4;
/// Rounds that a password is stretched by in what is written. Windows and .NET refuse files that ask for more than 600,000 in all,
/// and each of the three uses counts.
const ROUNDS: u32 = 100_000;

/// What a container held.
pub struct Opened {
    /// The certificates in DER, in the order of the container.
    pub certificates: Vec<Vec<u8>>,
    /// The private keys that can be used, in the order of the container.
    pub keys: Vec<PrivateKey>,
    /// Why others cannot.
    pub unusable: Vec<KeyError>,
}

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const SIGNED: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const ENVELOPED: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
const ENCRYPTED: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
/// The last number says which kind of bag.
const BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01];
const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];
const PBMAC1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0e];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x15];
const BMP_STRING: u8 = 0x1e;

const DAMAGED: ProtectedError = ProtectedError::Malformed("it is not a PKCS#12 container");

/// Whether bytes begin as a PKCS#12 container does: a SEQUENCE of the number 3 and a content.
pub fn looks_like(bytes: &[u8]) -> bool {
    // Behind the tag and the length, which may not be known beforehand.
    let skip = match bytes {
        [SEQUENCE, length, ..] if *length < 0x80 => 2,
        [SEQUENCE, length, ..] => 2 + usize::from(length & 0x7f),
        _ => return false,
    };
    matches!(bytes.get(skip..skip + 4), Some([INTEGER, 1, 3, SEQUENCE]))
}

/// Opens a container.
///
/// # Errors
/// `WrongPassword`, `TooCostly`, `Unsupported` for containers under a public key or with RC4, `Malformed`. Keys that cannot be
/// used are no error: others may be there.
pub fn open(bytes: &[u8], password: &Password) -> Result<Opened, ProtectedError> {
    if bytes.len() > MAX_INPUT {
        return Err(ProtectedError::Malformed("it is longer than 1 MiB"));
    }
    let pfx = der::from_ber(bytes).ok_or(DAMAGED)?;
    let mut pfx = der::sequence(&pfx).ok_or(DAMAGED)?;
    if pfx.expect(INTEGER) != Some(&[3]) {
        return Err(DAMAGED);
    }
    let mut content = pfx.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
    match content.expect(OID) {
        Some(DATA) => {}
        Some(SIGNED) => {
            return Err(ProtectedError::Unsupported(
                "with a signature instead of a password",
            ));
        }
        _ => return Err(DAMAGED),
    }
    let safe = content
        .expect(CONTEXT_0)
        .and_then(|explicit| Reader::new(explicit).expect(OCTET_STRING))
        .ok_or(DAMAGED)?;
    let mut budget = Budget::new();
    if let Some(mac) = pfx.expect(SEQUENCE) {
        check_mac(mac, safe, password, &mut budget)?;
    }
    let mut opened = Opened {
        certificates: Vec::new(),
        keys: Vec::new(),
        unusable: Vec::new(),
    };
    let mut bags = 0;
    let safe = der::from_ber(safe).ok_or(DAMAGED)?;
    let mut contents = der::sequence(&safe).ok_or(DAMAGED)?;
    while !contents.is_empty() {
        let mut info = contents.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
        let kind = info.expect(OID).ok_or(DAMAGED)?;
        let content = info.expect(CONTEXT_0).ok_or(DAMAGED)?;
        match kind {
            DATA => {
                let content = Reader::new(content).expect(OCTET_STRING).ok_or(DAMAGED)?;
                read_safe(content, password, &mut budget, &mut bags, 0, &mut opened)?;
            }
            ENCRYPTED => {
                let plain = decrypt_content(content, password, &mut budget)?;
                read_safe(&plain, password, &mut budget, &mut bags, 0, &mut opened)?;
            }
            ENVELOPED => {
                return Err(ProtectedError::Unsupported(
                    "with a public key instead of a password",
                ));
            }
            _ => return Err(DAMAGED),
        }
    }
    Ok(opened)
}

/// Opens an EncryptedData (RFC 5652, 8).
fn decrypt_content(
    content: &[u8],
    password: &Password,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let mut data = der::sequence(content).ok_or(DAMAGED)?;
    data.expect(INTEGER).ok_or(DAMAGED)?;
    let mut info = data.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
    info.expect(OID).ok_or(DAMAGED)?;
    let algorithm = info.expect(SEQUENCE).ok_or(DAMAGED)?;
    match info.next().ok_or(DAMAGED)? {
        (0x80, bytes) => decrypt(algorithm, bytes, password, budget),
        (CONTEXT_0, pieces) => {
            let bytes = der::pieces(pieces).ok_or(DAMAGED)?;
            decrypt(algorithm, &bytes, password, budget)
        }
        _ => Err(DAMAGED),
    }
}

/// Compares the MacData (RFC 7292, 4) over the authenticated safe.
fn check_mac(
    mac: &[u8],
    safe: &[u8],
    password: &Password,
    budget: &mut Budget,
) -> Result<(), ProtectedError> {
    let mut mac = Reader::new(mac);
    let mut info = mac.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
    let mut algorithm = info.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
    let expected = info.expect(OCTET_STRING).ok_or(DAMAGED)?;
    let salt = mac.expect(OCTET_STRING).ok_or(DAMAGED)?;
    let rounds = match mac.is_empty() {
        true => 1,
        false => number(mac.expect(INTEGER).ok_or(DAMAGED)?)?,
    };
    let verified = |algorithm, key: &[u8]| {
        hmac::verify(&hmac::Key::new(algorithm, key), safe, expected).is_ok()
    };
    let right = match algorithm.expect(OID).ok_or(DAMAGED)? {
        PBMAC1 => {
            // RFC 9579: a key by PBKDF2, and the HMAC that it is for.
            const ODD: ProtectedError = ProtectedError::Unsupported("its MAC is not known here");
            let mut parameters = algorithm.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
            let mut kdf = parameters
                .expect(SEQUENCE)
                .map(Reader::new)
                .ok_or(DAMAGED)?;
            let mut scheme = parameters
                .expect(SEQUENCE)
                .map(Reader::new)
                .ok_or(DAMAGED)?;
            if kdf.expect(OID) != Some(PBKDF2) {
                return Err(ODD);
            }
            let hash = match scheme.expect(OID).and_then(<[u8]>::split_last) {
                Some((9, _)) => hmac::HMAC_SHA256,
                Some((10, _)) => hmac::HMAC_SHA384,
                Some((11, _)) => hmac::HMAC_SHA512,
                _ => return Err(ODD),
            };
            let parameters = kdf.expect(SEQUENCE).ok_or(DAMAGED)?;
            // The length of the key is stated there, and is that of the hash in what is written.
            let length = hash.digest_algorithm().output_len();
            verified(hash, &pbkdf2_key(parameters, length, password, budget)?)
        }
        oid => {
            let (hash, algorithm) = match oid {
                SHA1 => (
                    &digest::SHA1_FOR_LEGACY_USE_ONLY,
                    hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
                ),
                SHA256 => (&digest::SHA256, hmac::HMAC_SHA256),
                SHA384 => (&digest::SHA384, hmac::HMAC_SHA384),
                SHA512 => (&digest::SHA512, hmac::HMAC_SHA512),
                _ => return Err(ProtectedError::Unsupported("its hash is not known here")),
            };
            let mut right = false;
            for bmp in password.bmp() {
                let length = hash.output_len();
                let key = pkcs12_kdf(hash, 3, &bmp, salt, rounds, length, budget)?;
                right |= verified(algorithm, &key);
            }
            right
        }
    };
    right.then_some(()).ok_or(ProtectedError::WrongPassword)
}

/// Reads a SafeContents (RFC 7292, 4.2).
fn read_safe(
    safe: &[u8],
    password: &Password,
    budget: &mut Budget,
    bags: &mut usize,
    depth: usize,
    opened: &mut Opened,
) -> Result<(), ProtectedError> {
    let safe = der::from_ber(safe).ok_or(DAMAGED)?;
    let mut contents = der::sequence(&safe).ok_or(DAMAGED)?;
    while !contents.is_empty() {
        *bags += 1;
        if *bags > MAX_BAGS || depth >= MAX_DEPTH {
            return Err(ProtectedError::Malformed("it holds too many bags"));
        }
        let mut bag = contents.expect(SEQUENCE).map(Reader::new).ok_or(DAMAGED)?;
        let kind = bag.expect(OID).ok_or(DAMAGED)?;
        let value = bag.expect(CONTEXT_0).ok_or(DAMAGED)?;
        let key = match kind.strip_prefix(BAG) {
            Some([1]) => PrivateKey::from_der(value),
            Some([2]) => PrivateKey::from_der(&open_pkcs8(value, password, budget)?),
            Some([3]) => {
                let mut bag = der::sequence(value).ok_or(DAMAGED)?;
                if bag.expect(OID) == Some(X509) {
                    let certificate = bag
                        .expect(CONTEXT_0)
                        .and_then(|explicit| Reader::new(explicit).expect(OCTET_STRING))
                        .ok_or(DAMAGED)?;
                    opened.certificates.push(certificate.to_vec());
                }
                continue;
            }
            Some([6]) => {
                read_safe(value, password, budget, bags, depth + 1, opened)?;
                continue;
            }
            // Lists of revoked certificates, and secrets.
            _ => continue,
        };
        match key {
            Ok(key) => opened.keys.push(key),
            Err(error) => opened.unusable.push(error),
        }
    }
    Ok(())
}

/// Writes a container with one private key and its chain, leaf first, for `name`: AES-256 in CBC mode (PBES2) under a key that
/// PBKDF2 with HMAC-SHA-256 makes of the password, and a MAC with HMAC-SHA-256. OpenSSL since 1.1, Java since 8u301 and 16, and
/// Windows since 10 version 1709 and Server 2019 read it; earlier Windows knows 3DES only.
pub fn write(chain: &[&[u8]], key: &PrivateKey, password: &Password, name: &str) -> Vec<u8> {
    let id = crate::key::sha256(chain.first().copied().unwrap_or_default());
    let attributes = |all: bool| -> Vec<u8> {
        let attribute = |oid: &[u8], value: &[u8]| {
            der::element(
                SEQUENCE,
                &[&der::element(OID, &[oid]), &der::element(SET, &[value])],
            )
        };
        if !all {
            return Vec::new();
        }
        let bmp: Vec<u8> = name
            .encode_utf16()
            .take(200)
            .flat_map(u16::to_be_bytes)
            .collect();
        der::element(
            SET,
            &[
                &attribute(FRIENDLY_NAME, &der::element(BMP_STRING, &[&bmp])),
                &attribute(LOCAL_KEY_ID, &der::element(OCTET_STRING, &[&id[..20]])),
            ],
        )
    };
    let bag = |kind: u8, value: &[u8], attributes: &[u8]| {
        der::element(
            SEQUENCE,
            &[
                &der::element(OID, &[BAG, &[kind]]),
                &der::element(CONTEXT_0, &[value]),
                attributes,
            ],
        )
    };
    let mut bags = Vec::new();
    for (place, certificate) in chain.iter().enumerate() {
        let value = der::element(
            SEQUENCE,
            &[
                &der::element(OID, &[X509]),
                &der::element(CONTEXT_0, &[&der::element(OCTET_STRING, &[certificate])]),
            ],
        );
        bags.extend(bag(3, &value, &attributes(place == 0)));
    }
    let (algorithm, data) = encrypt(&der::element(SEQUENCE, &[&bags]), password);
    let certificates = content_info(
        ENCRYPTED,
        &der::element(
            SEQUENCE,
            &[
                &der::element(INTEGER, &[&[0]]),
                &der::element(
                    SEQUENCE,
                    &[
                        &der::element(OID, &[DATA]),
                        &algorithm,
                        &der::element(0x80, &[&data]),
                    ],
                ),
            ],
        ),
    );
    let (algorithm, data) = encrypt(key.danger_to_pkcs8_der().expose(), password);
    let shrouded = der::element(
        SEQUENCE,
        &[&algorithm, &der::element(OCTET_STRING, &[&data])],
    );
    let keys = der::element(SEQUENCE, &[&bag(2, &shrouded, &attributes(true))]);
    let keys = content_info(DATA, &der::element(OCTET_STRING, &[&keys]));
    let safe = der::element(SEQUENCE, &[&certificates, &keys]);

    let mut salt = [0; 16];
    random::fill(&mut salt);
    let bmp = password.bmp();
    let mac_key = pkcs12_kdf(
        &digest::SHA256,
        3,
        &bmp[0],
        &salt,
        u64::from(ROUNDS),
        digest::SHA256_OUTPUT_LEN,
        &mut Budget::new(),
    )
    .expect("what is written asks for far less than what is read may");
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &mac_key), &safe);
    let mac = der::element(
        SEQUENCE,
        &[
            &der::element(
                SEQUENCE,
                &[
                    &der::element(
                        SEQUENCE,
                        &[&der::element(OID, &[SHA256]), &der::element(NULL, &[])],
                    ),
                    &der::element(OCTET_STRING, &[mac.as_ref()]),
                ],
            ),
            &der::element(OCTET_STRING, &[&salt]),
            &rounds(),
        ],
    );
    der::element(
        SEQUENCE,
        &[
            &der::element(INTEGER, &[&[3]]),
            &content_info(DATA, &der::element(OCTET_STRING, &[&safe])),
            &mac,
        ],
    )
}

fn content_info(kind: &[u8], content: &[u8]) -> Vec<u8> {
    der::element(
        SEQUENCE,
        &[
            &der::element(OID, &[kind]),
            &der::element(CONTEXT_0, &[content]),
        ],
    )
}

fn rounds() -> Vec<u8> {
    let bytes = ROUNDS.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
    let zero: &[u8] = match significant.first() {
        Some(first) if first & 0x80 != 0 => &[0],
        _ => &[],
    };
    der::element(INTEGER, &[zero, significant])
}

/// The AlgorithmIdentifier of PBES2, and the bytes encrypted by it.
fn encrypt(plain: &[u8], password: &Password) -> (Vec<u8>, Vec<u8>) {
    let mut salt = [0; 16];
    random::fill(&mut salt);
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        std::num::NonZeroU32::new(ROUNDS).expect("it is not zero"),
        &salt,
        password.bytes(),
        &mut *key,
    );
    let key = UnboundCipherKey::new(&AES_256, &*key)
        .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
        .expect("AES-256 has keys of 32 bytes");
    // Room for the padding at once: growing would leave the plain text behind in freed memory.
    let mut data = Zeroizing::new(Vec::with_capacity(plain.len() + 16));
    data.extend_from_slice(plain);
    let context = key
        .encrypt(&mut *data)
        .expect("padding makes any length fit");
    let iv: &[u8] = (&context)
        .try_into()
        .expect("CBC mode has an initialisation vector");
    let algorithm = der::element(
        SEQUENCE,
        &[
            &der::element(OID, &[PBES2]),
            &der::element(
                SEQUENCE,
                &[
                    &der::element(
                        SEQUENCE,
                        &[
                            &der::element(OID, &[PBKDF2]),
                            &der::element(
                                SEQUENCE,
                                &[
                                    &der::element(OCTET_STRING, &[&salt]),
                                    &rounds(),
                                    &der::element(
                                        SEQUENCE,
                                        &[
                                            &der::element(OID, &[HMAC_SHA256]),
                                            &der::element(NULL, &[]),
                                        ],
                                    ),
                                ],
                            ),
                        ],
                    ),
                    &der::element(
                        SEQUENCE,
                        &[
                            &der::element(OID, &[AES_256_CBC]),
                            &der::element(OCTET_STRING, &[iv]),
                        ],
                    ),
                ],
            ),
        ],
    );
    (algorithm, data.to_vec())
}
