//! TLS to the members of etcd.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::TlsFiles;

/// What goes on over a connection, told before anything else: HTTP/2.
const PROTOCOL: &[u8] = b"h2";

/// Reads the files; a text that says which is not usable, and why.
pub(super) fn load(files: &TlsFiles) -> Result<Arc<ClientConfig>, String> {
    let named = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let all = CertificateDer::pem_file_iter(path).map_err(|error| named(path, &error))?;
        let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|error| named(path, &error))?;
        match all.is_empty() {
            true => Err(named(path, &"there is no certificate in it")),
            false => Ok(all),
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots.add(certificate).map_err(|error| named(&files.ca, &error))?;
    }
    let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &files.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, &error))?;
            let both = builder.with_client_auth_cert(chain, secret);
            both.map_err(|error| named(certificate, &error))?
        }
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}
