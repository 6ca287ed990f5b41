//! Certificates of a private authority with which VM hosts know each other.
//!
//! ```text
//!  ca folder:   ca.pem, ca-key.pem (keep offline)        made once
//!  host folder: ca.pem, host.pem, host-key.pem           one a host, copied to it
//! ```
//!
//! A host's certificate names the host and the role [`ROLE`]; hosts trust each other by the
//! authority and the role, not by address.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// DNS name that a host's certificate carries beside the host's own.
pub const ROLE: &str = "hyperv-host";
const YEARS: i32 = 10;

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate or key could not be made or read.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
}

/// What [`init`] made and did not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The authority was new.
    pub authority: bool,
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })
    .map_err(|source| PkiError::File { path: path.to_owned(), source })
}

fn validity(params: &mut CertificateParams) {
    const SECONDS_A_YEAR: u64 = 31_556_952;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let year = 1970 + i32::try_from(now / SECONDS_A_YEAR).unwrap_or(0);
    params.not_before = date_time_ymd(year, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 12, 31);
}

/// Makes a certificate for host `name` in folder `out`, by the authority in folder `ca`, which
/// is made first if it is not there. Key files are readable by their owner only; nothing that
/// exists is overwritten.
///
/// # Errors
/// [`PkiError`].
pub fn init(ca: &Path, name: &str, out: &Path) -> Result<Made, PkiError> {
    for dir in [ca, out] {
        fs::create_dir_all(dir)
            .map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
    }
    let (certificate, key) = (ca.join("ca.pem"), ca.join("ca-key.pem"));
    let fresh = !certificate.exists();
    if fresh {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Bulkhead hosts");
        validity(&mut params);
        let authority = params.self_signed(&pair)?;
        write(&key, &pair.serialize_pem(), 0o600)?;
        write(&certificate, &authority.pem(), 0o644)?;
    }
    let authority = read(&certificate)?;
    let issuer = Issuer::from_ca_cert_pem(&authority, KeyPair::from_pem(&read(&key)?)?)?;
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned(), ROLE.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    validity(&mut params);
    let host = params.signed_by(&pair, &issuer)?;
    write(&out.join("host-key.pem"), &pair.serialize_pem(), 0o600)?;
    write(&out.join("host.pem"), &host.pem(), 0o644)?;
    if out != ca {
        write(&out.join("ca.pem"), &authority, 0o644)?;
    }
    Ok(Made { authority: fresh })
}
