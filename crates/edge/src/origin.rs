//! Connections to origins: resolved, checked and opened here, pooled above.
//!
//! An origin is named by a customer. What its name resolves to is checked at each connect, since it can change at any
//! time: nobody may use the edge to reach the loopback, link-local or private addresses of the operator's network,
//! unless an operator has allowed it for that resource.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

/// How long it may take to resolve an origin, connect to it and, with HTTPS, end the handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The most addresses of one origin that are tried.
const ADDRESSES: usize = 8;

/// Why there is no connection to an origin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the origin resolves only to addresses that are not public")]
    Refused,
    #[error("the origin did not answer in time")]
    TimedOut,
    #[error("the origin has no address")]
    NoAddress,
    #[error("the origin could not be reached")]
    Io(#[from] io::Error),
}

/// Opens TCP connections to origins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connector {
    private: bool,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, origin: Uri) -> Self::Future {
        let private = self.private;
        Box::pin(async move { connect(&origin, private).await.map(TokioIo::new) })
    }
}

async fn connect(origin: &Uri, private: bool) -> Result<TcpStream, Error> {
    let host = origin.host().ok_or(Error::NoAddress)?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let port = origin
        .port_u16()
        .unwrap_or(if origin.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        });
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await?
        .take(ADDRESSES)
        .collect();
    if resolved.is_empty() {
        return Err(Error::NoAddress);
    }
    let mut last = Error::Refused;
    for address in resolved {
        if !private && !is_public(address.ip()) {
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Bounds the time of the whole connect, the TLS handshake included.
#[derive(Clone, Debug)]
pub(crate) struct InTime<C>(C);

impl<C> tower_service::Service<Uri> for InTime<C>
where
    C: tower_service::Service<Uri>,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, origin: Uri) -> Self::Future {
        let connecting = self.0.call(origin);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(Error::TimedOut.into()),
            }
        })
    }
}

/// A connector for origins over HTTP and HTTPS, whose certificates are checked against the public roots and `extra_roots`.
pub(crate) type Origins = InTime<hyper_rustls::HttpsConnector<Connector>>;

/// Makes a connector. `private` allows addresses that are not public.
pub(crate) fn connector(private: bool, tls: ClientConfig) -> Origins {
    InTime(
        hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector { private }),
    )
}

/// The TLS configuration towards origins.
pub(crate) fn client_config(
    extra_roots: &[CertificateDer<'static>],
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    for root in extra_roots {
        roots.add(root.clone())?;
    }
    Ok(ClientConfig::builder_with_provider(keyring::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Whether an address is one that anybody on the Internet could reach: by the IANA special-purpose registries, RFC 6890 and
/// its followers. What embeds an IPv4 address is judged by that one.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = match a {
        // "This network", loopback, multicast and what is reserved, the broadcast address included.
        0 | 127 | 224.. => true,
        10 => true,
        // Shared address space of carrier-grade NAT (RFC 6598).
        100 => (64..128).contains(&b),
        // Link-local, where clouds keep their metadata services.
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || (b == 0 && (c == 0 || c == 2)) || (b == 88 && c == 99),
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    };
    !special
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let segments = v6.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4-mapped, and IPv4 through a well-known NAT64 prefix (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, benchmarking, ORCHID, documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Global unicast; everything else is loopback, unspecified, local, multicast or not given out.
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::7f00:1",
            "100::1",
            "5f00::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2a00::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
