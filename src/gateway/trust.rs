//! Which certificates of applications are trusted.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::error::StartError;

/// Trusts what the system trusts, or what the file `SSL_CERT_FILE` holds.
pub fn system() -> Result<ClientConfig, StartError> {
    let certificates = rustls_native_certs::load_native_certs().certs;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        // One that can't be read is one that is not trusted.
        let _ = roots.add(certificate.clone());
    }
    // Without any it is an error, too.
    let usual = WebPkiServerVerifier::builder(Arc::new(roots)).build();
    let usual = usual.map_err(|_| {
        StartError::failed("--route: the system trusts no certificates, so https can't be used")
            .hint("apt-get install ca-certificates, or set SSL_CERT_FILE")
    })?;
    let verifier = Arc::new(Verifier {
        usual,
        certificates,
    });
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// As usual; besides, a certificate that is itself among the trusted ones may
/// say that it is one of an authority, as those that `openssl req -x509` makes do.
#[derive(Debug)]
struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// Its time is judged before this error shows, its name is not.
    fn is_own_authority(&self, error: &Error, certificate: &CertificateDer<'_>) -> bool {
        matches!(
            error,
            Error::InvalidCertificate(CertificateError::Other(other))
                if other.to_string() == "CaUsedAsEndEntity"
        ) && self.certificates.contains(certificate)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual =
            self.usual
                .verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        match usual {
            Err(error) if self.is_own_authority(&error, certificate) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
