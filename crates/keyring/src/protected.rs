//! Private keys under a password, as files bring them: PKCS#8 (RFC 5958) with PBES2 (PBKDF2 or scrypt), PBES1 or the schemes of
//! PKCS#12 (RFC 8018, RFC 7914, RFC 7292), and the PEM encryption of OpenSSL's traditional forms (RFC 1421 headers).
//!
//! The file says how much work its password is stretched by, and a hostile one says a lot: each reading has a budget. The old
//! schemes are weak and only read, so that people get their keys out of them.

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::{digest, iv::FixedLength, pbkdf2};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, InnerIvInit, KeyInit};
use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

use crate::der::{self, INTEGER, OCTET_STRING, OID, Reader, SEQUENCE};
use crate::key::{KeyError, MAX_DER, PrivateKey};

/// Rounds of a hash function that one file may ask for in all; a second or two of work. OpenSSL's files ask for 2,048, those of
/// `keytool` for 10,000 each.
pub const MAX_ROUNDS: u64 = 6_000_000;
/// The most memory that scrypt may ask for, in bytes; OpenSSL asks for 16 MiB.
pub const MAX_SCRYPT_MEMORY: u64 = 128 * 1024 * 1024;
/// The longest password, in bytes.
pub const MAX_PASSWORD: usize = 1024;

/// A password: wiped when dropped, never printed.
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes it over.
    ///
    /// # Errors
    /// `Malformed` when it is longer than [`MAX_PASSWORD`].
    pub fn new(text: Zeroizing<String>) -> Result<Self, ProtectedError> {
        if text.len() > MAX_PASSWORD {
            return Err(ProtectedError::Malformed(
                "the password is longer than 1024 bytes",
            ));
        }
        Ok(Self(text))
    }

    /// The empty password, which tools write files with that are not meant to be secret.
    pub fn empty() -> Self {
        Self(Zeroizing::new(String::new()))
    }

    /// As UTF-8.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// As PKCS#12 has it: UTF-16 with a final zero (RFC 7292, B.1). The empty one is written in two ways.
    pub(crate) fn bmp(&self) -> Vec<Zeroizing<Vec<u8>>> {
        let mut bmp = Zeroizing::new(Vec::with_capacity(self.0.len() * 2 + 2));
        for unit in self.0.encode_utf16().chain([0]) {
            bmp.extend_from_slice(&unit.to_be_bytes());
        }
        let mut all = vec![bmp];
        if self.0.is_empty() {
            all.push(Zeroizing::new(Vec::new()));
        }
        all
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// Why what is under a password was not read. No variant carries bytes of the input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtectedError {
    /// The password does not open it; a damaged file looks the same.
    #[error("the password does not open it")]
    WrongPassword,
    /// It asks for more work than is done for a file.
    #[error("its password is stretched by more work than is done for a file")]
    TooCostly,
    /// A scheme that is not read.
    #[error("it is protected in a way that is not read: {0}")]
    Unsupported(&'static str),
    /// Not of the form that it should have.
    #[error("it is damaged: {0}")]
    Malformed(&'static str),
    /// It was opened, and the key in it cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl ProtectedError {
    /// The published reason code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongPassword | Self::Unsupported(_) => "key_encrypted",
            Self::TooCostly => "too_large",
            Self::Malformed(_) => "pem_malformed",
            Self::Key(error) => error.code(),
        }
    }
}

/// The work that is left for one file.
pub(crate) struct Budget(u64);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(MAX_ROUNDS)
    }

    pub(crate) fn spend(&mut self, rounds: u64, times: u64) -> Result<(), ProtectedError> {
        let cost = rounds.checked_mul(times).ok_or(ProtectedError::TooCostly)?;
        self.0 = self.0.checked_sub(cost).ok_or(ProtectedError::TooCostly)?;
        Ok(())
    }
}

/// Reads an EncryptedPrivateKeyInfo (RFC 5958, 3) in DER.
///
/// # Errors
/// Why not; the key's own error when it was opened and cannot be used.
pub fn decrypt_pkcs8(der: &[u8], password: &Password) -> Result<PrivateKey, ProtectedError> {
    if der.len() > MAX_DER {
        return Err(ProtectedError::Malformed(
            "it is longer than any key that is taken",
        ));
    }
    let plain = open_pkcs8(der, password, &mut Budget::new())?;
    Ok(PrivateKey::from_der(&plain)?)
}

/// The PrivateKeyInfo within an EncryptedPrivateKeyInfo.
pub(crate) fn open_pkcs8(
    der: &[u8],
    password: &Password,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let (algorithm, data) = der::sequence(der)
        .and_then(|mut info| Some((info.expect(SEQUENCE)?, info.expect(OCTET_STRING)?)))
        .ok_or(NOT_ENCRYPTED)?;
    decrypt(algorithm, data, password, budget)
}

const NOT_ENCRYPTED: ProtectedError =
    ProtectedError::Malformed("it does not say how it is encrypted");

/// Reads a private key from the body of a PEM block with the headers `Proc-Type: 4,ENCRYPTED` and `DEK-Info: <dek_info>`.
///
/// # Errors
/// Why not; the key's own error when it was opened and cannot be used.
pub fn decrypt_pem(
    dek_info: &str,
    body: &[u8],
    password: &Password,
) -> Result<PrivateKey, ProtectedError> {
    if body.len() > MAX_DER {
        return Err(ProtectedError::Malformed(
            "it is longer than any key that is taken",
        ));
    }
    let (name, iv) = dek_info.split_once(',').ok_or(NOT_ENCRYPTED)?;
    let cipher = match name.trim().to_ascii_uppercase().as_str() {
        "AES-128-CBC" => Cipher::Aes(16),
        "AES-192-CBC" => Cipher::Aes(24),
        "AES-256-CBC" => Cipher::Aes(32),
        "DES-EDE3-CBC" => Cipher::TripleDes,
        "DES-CBC" => Cipher::Des,
        _ => return Err(ProtectedError::Unsupported("its cipher is not known here")),
    };
    let iv = data_encoding::HEXLOWER_PERMISSIVE
        .decode(iv.trim().as_bytes())
        .ok()
        .filter(|iv| iv.len() == cipher.block())
        .ok_or(NOT_ENCRYPTED)?;
    // EVP_BytesToKey with one round of MD5, salted with the first eight bytes of the initialisation vector.
    let mut key = Zeroizing::new(Vec::with_capacity(64));
    while key.len() < cipher.key() {
        let mut hash = Md5::new();
        if let Some(last) = key.len().checked_sub(16) {
            hash.update(&key[last..]);
        }
        hash.update(password.bytes());
        hash.update(&iv[..8]);
        key.extend_from_slice(&hash.finalize());
    }
    let plain = cipher
        .decrypt(&key[..cipher.key()], &iv, body)
        .filter(|plain| is_sequence(plain))
        .ok_or(ProtectedError::WrongPassword)?;
    Ok(PrivateKey::from_der(&plain)?)
}

/// A block cipher in CBC mode with the padding of PKCS#7.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cipher {
    /// AES with a key of so many bytes.
    Aes(usize),
    TripleDes,
    /// Two keys of which the first is used twice.
    TwoKeyTripleDes,
    Des,
    /// RC2 with a key of so many bits, all of them effective.
    Rc2(usize),
}

impl Cipher {
    fn key(self) -> usize {
        match self {
            Self::Aes(bytes) => bytes,
            Self::TripleDes => 24,
            Self::TwoKeyTripleDes => 16,
            Self::Des => 8,
            Self::Rc2(bits) => bits / 8,
        }
    }

    fn block(self) -> usize {
        match self {
            Self::Aes(_) => 16,
            _ => 8,
        }
    }

    /// The plain text; none for lengths that do not fit and for broken padding.
    fn decrypt(self, key: &[u8], iv: &[u8], data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if data.is_empty() || !data.len().is_multiple_of(self.block()) || iv.len() != self.block() {
            return None;
        }
        let mut buffer = Zeroizing::new(data.to_vec());
        let length = match self {
            Self::Aes(bytes) => {
                let algorithm = match bytes {
                    16 => &AES_128,
                    24 => &AES_192,
                    _ => &AES_256,
                };
                let key = UnboundCipherKey::new(algorithm, key).ok()?;
                let iv = FixedLength::from(<&[u8; 16]>::try_from(iv).ok()?);
                PaddedBlockDecryptingKey::cbc_pkcs7(key)
                    .ok()?
                    .decrypt(&mut buffer, DecryptionContext::Iv128(iv))
                    .ok()?
                    .len()
            }
            Self::TripleDes => unpadded(des::TdesEde3::new_from_slice(key).ok()?, iv, &mut buffer)?,
            Self::TwoKeyTripleDes => {
                unpadded(des::TdesEde2::new_from_slice(key).ok()?, iv, &mut buffer)?
            }
            Self::Des => unpadded(des::Des::new_from_slice(key).ok()?, iv, &mut buffer)?,
            Self::Rc2(bits) => {
                unpadded(rc2::Rc2::new_with_eff_key_len(key, bits), iv, &mut buffer)?
            }
        };
        buffer.truncate(length);
        Some(buffer)
    }
}

/// Decrypts in place, and says how long the text is without its padding.
fn unpadded<C: cbc::cipher::BlockCipherDecrypt>(
    cipher: C,
    iv: &[u8],
    buffer: &mut [u8],
) -> Option<usize> {
    let mode = cbc::Decryptor::inner_iv_slice_init(cipher, iv).ok()?;
    Some(mode.decrypt_padded::<Pkcs7>(buffer).ok()?.len())
}

/// Everything that is encrypted here is one SEQUENCE.
fn is_sequence(plain: &[u8]) -> bool {
    plain.first() == Some(&SEQUENCE)
}

const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const SCRYPT: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];
/// Of PKCS#5; the last number says which.
const PBES1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05];
/// Of PKCS#12; the last number says which.
const PKCS12_PBE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01];
/// HMAC with SHA-1, SHA-224 and so on; the last number says which.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02];
const AES_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01];
const DES_EDE3_CBC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x03, 0x07];
const DES_CBC: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x07];

/// Decrypts `data` as the content of an AlgorithmIdentifier says.
pub(crate) fn decrypt(
    algorithm: &[u8],
    data: &[u8],
    password: &Password,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let mut reader = Reader::new(algorithm);
    let oid = reader.expect(OID).ok_or(NOT_ENCRYPTED)?;
    let parameters = reader.expect(SEQUENCE).ok_or(NOT_ENCRYPTED)?;
    if oid == PBES2 {
        return pbes2(parameters, data, password, budget);
    }
    let (family, which) = oid.split_at(oid.len().saturating_sub(1));
    let mut parameters = Reader::new(parameters);
    let salt = parameters.expect(OCTET_STRING).ok_or(NOT_ENCRYPTED)?;
    let rounds = parameters.expect(INTEGER).ok_or(NOT_ENCRYPTED)?;
    let rounds = number(rounds)?;
    const RC4: ProtectedError = ProtectedError::Unsupported("with RC4");
    match (family, which) {
        (PBES1, [which]) => {
            // PBKDF1 (RFC 8018, 5.1): the key and then the initialisation vector.
            let (cipher, sha1) = match which {
                3 => (Cipher::Des, false),
                6 => (Cipher::Rc2(64), false),
                10 => (Cipher::Des, true),
                11 => (Cipher::Rc2(64), true),
                _ => return Err(UNKNOWN),
            };
            budget.spend(rounds, 1)?;
            let mut derived = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD * 2));
            derived.extend_from_slice(password.bytes());
            derived.extend_from_slice(salt);
            for _ in 0..rounds.max(1) {
                let hash: Zeroizing<Vec<u8>> = Zeroizing::new(match sha1 {
                    true => digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &derived)
                        .as_ref()
                        .to_vec(),
                    false => Md5::digest(&*derived).to_vec(),
                });
                derived.clear();
                derived.extend_from_slice(&hash);
            }
            cipher
                .decrypt(&derived[..8], &derived[8..16], data)
                .filter(|plain| is_sequence(plain))
                .ok_or(ProtectedError::WrongPassword)
        }
        (PKCS12_PBE, [which]) => {
            let cipher = match which {
                1 | 2 => return Err(RC4),
                3 => Cipher::TripleDes,
                4 => Cipher::TwoKeyTripleDes,
                5 => Cipher::Rc2(128),
                6 => Cipher::Rc2(40),
                _ => return Err(UNKNOWN),
            };
            let hash = &digest::SHA1_FOR_LEGACY_USE_ONLY;
            for bmp in password.bmp() {
                let key = pkcs12_kdf(hash, 1, &bmp, salt, rounds, cipher.key(), budget)?;
                let iv = pkcs12_kdf(hash, 2, &bmp, salt, rounds, cipher.block(), budget)?;
                if let Some(plain) = cipher
                    .decrypt(&key, &iv, data)
                    .filter(|plain| is_sequence(plain))
                {
                    return Ok(plain);
                }
            }
            Err(ProtectedError::WrongPassword)
        }
        _ => Err(UNKNOWN),
    }
}

const UNKNOWN: ProtectedError = ProtectedError::Unsupported("its scheme is not known here");

fn pbes2(
    parameters: &[u8],
    data: &[u8],
    password: &Password,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let mut parameters = Reader::new(parameters);
    let mut kdf = parameters
        .expect(SEQUENCE)
        .map(Reader::new)
        .ok_or(NOT_ENCRYPTED)?;
    let mut scheme = parameters
        .expect(SEQUENCE)
        .map(Reader::new)
        .ok_or(NOT_ENCRYPTED)?;
    let oid = scheme.expect(OID).ok_or(NOT_ENCRYPTED)?;
    let cipher = match oid.strip_prefix(AES_CBC) {
        Some([2]) => Cipher::Aes(16),
        Some([22]) => Cipher::Aes(24),
        Some([42]) => Cipher::Aes(32),
        _ if oid == DES_EDE3_CBC => Cipher::TripleDes,
        _ if oid == DES_CBC => Cipher::Des,
        _ => return Err(ProtectedError::Unsupported("its cipher is not known here")),
    };
    let iv = scheme.expect(OCTET_STRING).ok_or(NOT_ENCRYPTED)?;
    let oid = kdf.expect(OID).ok_or(NOT_ENCRYPTED)?;
    let of_kdf = kdf.expect(SEQUENCE).ok_or(NOT_ENCRYPTED)?;
    let key = if oid == PBKDF2 {
        pbkdf2_key(of_kdf, cipher.key(), password, budget)?
    } else if oid == SCRYPT {
        scrypt_key(of_kdf, cipher.key(), password, budget)?
    } else {
        return Err(UNKNOWN);
    };
    cipher
        .decrypt(&key, iv, data)
        .filter(|plain| is_sequence(plain))
        .ok_or(ProtectedError::WrongPassword)
}

/// PBKDF2 with the content of PBKDF2-params (RFC 8018, A.2).
pub(crate) fn pbkdf2_key(
    parameters: &[u8],
    length: usize,
    password: &Password,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let mut parameters = Reader::new(parameters);
    let salt = parameters.expect(OCTET_STRING).ok_or(NOT_ENCRYPTED)?;
    let rounds = number(parameters.expect(INTEGER).ok_or(NOT_ENCRYPTED)?)?;
    if parameters.peek() == Some(INTEGER) {
        let stated = number(parameters.expect(INTEGER).ok_or(NOT_ENCRYPTED)?)?;
        if stated != length as u64 {
            return Err(ProtectedError::Malformed("its key length does not fit"));
        }
    }
    let algorithm = match parameters.expect(SEQUENCE) {
        None => pbkdf2::PBKDF2_HMAC_SHA1,
        Some(prf) => {
            let prf = Reader::new(prf).expect(OID).ok_or(NOT_ENCRYPTED)?;
            match prf.strip_prefix(HMAC) {
                Some([7]) => pbkdf2::PBKDF2_HMAC_SHA1,
                Some([9]) => pbkdf2::PBKDF2_HMAC_SHA256,
                Some([10]) => pbkdf2::PBKDF2_HMAC_SHA384,
                Some([11]) => pbkdf2::PBKDF2_HMAC_SHA512,
                _ => return Err(ProtectedError::Unsupported("its hash is not known here")),
            }
        }
    };
    // The shortest of these hashes has 20 bytes; each piece of the key takes all rounds, of two hashes each.
    budget.spend(rounds, 2 * length.div_ceil(20) as u64)?;
    let rounds = u32::try_from(rounds)
        .ok()
        .and_then(std::num::NonZeroU32::new)
        .ok_or(NOT_ENCRYPTED)?;
    let mut key = Zeroizing::new(vec![0; length]);
    pbkdf2::derive(algorithm, rounds, salt, password.bytes(), &mut key);
    Ok(key)
}

/// scrypt with the content of scrypt-params (RFC 7914, 7).
fn scrypt_key(
    parameters: &[u8],
    length: usize,
    password: &Password,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let mut parameters = Reader::new(parameters);
    let salt = parameters.expect(OCTET_STRING).ok_or(NOT_ENCRYPTED)?;
    let mut next = || number(parameters.expect(INTEGER).ok_or(NOT_ENCRYPTED)?);
    let (n, r, p) = (next()?, next()?, next()?);
    let memory = n
        .checked_mul(r)
        .and_then(|blocks| blocks.checked_mul(128))
        .filter(|bytes| *bytes <= MAX_SCRYPT_MEMORY)
        .ok_or(ProtectedError::TooCostly)?;
    // What a round of a hash takes, scrypt does in about 64 bytes of its memory.
    budget.spend(memory / 64, p)?;
    let parameters = Some(n)
        .filter(|n| n.is_power_of_two())
        .and_then(|n| {
            scrypt::Params::new(
                n.trailing_zeros() as u8,
                u32::try_from(r).ok()?,
                u32::try_from(p).ok()?,
            )
            .ok()
        })
        .ok_or(NOT_ENCRYPTED)?;
    let mut key = Zeroizing::new(vec![0; length]);
    scrypt::scrypt(password.bytes(), salt, &parameters, &mut key).map_err(|_| NOT_ENCRYPTED)?;
    Ok(key)
}

/// The number that the content of an INTEGER is; what has more than 62 bits is too costly, whatever it counts.
pub(crate) fn number(integer: &[u8]) -> Result<u64, ProtectedError> {
    match integer {
        [] => Err(NOT_ENCRYPTED),
        [first, ..] if first & 0x80 != 0 => Err(NOT_ENCRYPTED),
        long if der::bits(long) > 62 => Err(ProtectedError::TooCostly),
        bytes => Ok(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))),
    }
}

/// The key derivation of PKCS#12 (RFC 7292, B.2), for the purpose `id`.
pub(crate) fn pkcs12_kdf(
    hash: &'static digest::Algorithm,
    id: u8,
    password: &[u8],
    salt: &[u8],
    rounds: u64,
    length: usize,
    budget: &mut Budget,
) -> Result<Zeroizing<Vec<u8>>, ProtectedError> {
    let (v, u) = (hash.block_len(), hash.output_len());
    if salt.len() > 4096 {
        return Err(ProtectedError::Malformed("its salt is too long"));
    }
    budget.spend(rounds.max(1), length.div_ceil(u) as u64)?;
    let filled = |bytes: &[u8]| -> Zeroizing<Vec<u8>> {
        let room = bytes.len().div_ceil(v) * v;
        Zeroizing::new(bytes.iter().copied().cycle().take(room).collect())
    };
    let (salt, password) = (filled(salt), filled(password));
    let mut input = Zeroizing::new(Vec::with_capacity(v + salt.len() + password.len()));
    input.resize(v, id);
    input.extend_from_slice(&salt);
    input.extend_from_slice(&password);
    let mut derived = Zeroizing::new(Vec::with_capacity(length + u));
    while derived.len() < length {
        let mut block = digest::digest(hash, &input);
        for _ in 1..rounds {
            block = digest::digest(hash, block.as_ref());
        }
        derived.extend_from_slice(block.as_ref());
        // Each v bytes of the input become themselves and the block, repeated, and one, added up.
        for piece in input[v..].chunks_mut(v) {
            let mut carry = 1_u16;
            for (at, byte) in piece.iter_mut().enumerate().rev() {
                let sum = u16::from(*byte) + u16::from(block.as_ref()[at % u]) + carry;
                *byte = sum as u8;
                carry = sum >> 8;
            }
        }
    }
    derived.truncate(length);
    Ok(derived)
}
