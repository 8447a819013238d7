//! What a request looks like to the origin, and a response to the client: RFC 9110 section 7, RFC 7239.
//!
//! Pure functions on heads; bodies and connections are elsewhere.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version, request};

/// How this proxy calls itself in `Via`.
const PSEUDONYM: &str = "chancery";
/// How often a request may have passed proxies of this kind. A CDN before a bucket is two; an origin that points back here
/// is without end.
const PASSES: usize = 5;
/// The longest request target that is forwarded, in bytes.
const TARGET_MAX: usize = 16 << 10;

/// What is known about the client and how it came here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From {
    pub(crate) client: SocketAddr,
    pub(crate) secure: bool,
}

/// The host that a request is for, as it was sent and as it is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHost {
    /// With the port, as the client sent it.
    pub(crate) sent: HeaderValue,
    /// In lower case, without the port and the final dot.
    pub(crate) name: String,
}

/// Finds the host of a request. The request target goes before the Host field (RFC 9112 section 3.2.2), and where both are
/// there they must agree (RFC 9113 section 8.3.1).
///
/// # Errors
/// 400 when there is none, more than one, or one that is none.
pub(crate) fn request_host(uri: &Uri, headers: &HeaderMap) -> Result<RequestHost, StatusCode> {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    let mut fields = headers.get_all(header::HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(BAD);
    }
    let sent = match (uri.authority(), field) {
        (Some(authority), Some(field)) => {
            if !field
                .as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes())
            {
                return Err(BAD);
            }
            field.clone()
        }
        (Some(authority), None) => HeaderValue::from_str(authority.as_str()).map_err(|_| BAD)?,
        (None, Some(field)) => field.clone(),
        (None, None) => return Err(BAD),
    };
    let authority: Authority = sent
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(BAD)?;
    if authority.as_str().contains('@') {
        return Err(BAD);
    }
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > lifecycle::names::HOST_MAX {
        return Err(BAD);
    }
    Ok(RequestHost {
        name: host.to_ascii_lowercase(),
        sent,
    })
}

/// Whether the fields of a head say something that only this connection is meant to hear, or something about the client
/// that only this proxy may say.
fn is_stripped(name: &HeaderName) -> bool {
    // Some origins take an underscore for a hyphen, so both spellings have to go.
    let text = name.as_str();
    let plain;
    let text = if text.contains('_') {
        plain = text.replace('_', "-");
        plain.as_str()
    } else {
        text
    };
    text.starts_with("x-forwarded-")
        || matches!(text, "forwarded" | "x-real-ip" | "expect")
        || is_hop_by_hop(text)
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "proxy-authentication-info"
    )
}

/// Removes what is meant for one connection only (RFC 9110 section 7.6.1), what `Connection` names included.
fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let mut doomed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    doomed.extend(headers.keys().filter(|name| unwanted(name)).cloned());
    for name in doomed {
        headers.remove(name);
    }
}

/// Makes the head of the request to the origin.
///
/// # Errors
/// The status to answer with: 400 for a target that cannot be appended to the origin's path, 405 for methods that are for
/// proxies themselves, 414 for a target that is too long, 508 for a request that goes round in circles.
pub(crate) fn to_origin(
    parts: request::Parts,
    host: &RequestHost,
    from: From,
    target: Origin<'_>,
) -> Result<Request<()>, StatusCode> {
    // TRACE would show an origin's view of secrets to scripts; CONNECT asks for a tunnel to anywhere.
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let path = parts.uri.path();
    if !path.starts_with('/') || escapes(path) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let asked = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if target.base.len() + asked.len() > TARGET_MAX {
        return Err(StatusCode::URI_TOO_LONG);
    }
    let path_and_query = if target.base.is_empty() {
        parts
            .uri
            .path_and_query()
            .cloned()
            .ok_or(StatusCode::BAD_REQUEST)?
    } else {
        let mut whole = String::with_capacity(target.base.len() + asked.len());
        whole.push_str(target.base);
        whole.push_str(asked);
        PathAndQuery::try_from(whole).map_err(|_| StatusCode::BAD_REQUEST)?
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(target.scheme.clone());
    uri.authority = Some(target.authority.clone());
    uri.path_and_query = Some(path_and_query);

    let mut headers = parts.headers;
    let passes = headers
        .get_all(header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|hop| hop.split_ascii_whitespace().nth(1) == Some(PSEUDONYM))
        .count();
    if passes >= PASSES {
        return Err(StatusCode::LOOP_DETECTED);
    }
    strip(&mut headers, is_stripped);
    join_cookies(&mut headers);

    let client = from.client.ip().to_canonical();
    let scheme = if from.secure { "https" } else { "http" };
    headers.insert(
        header::HOST,
        if target.keep_host {
            host.sent.clone()
        } else {
            target.host.clone()
        },
    );
    if let Ok(value) = HeaderValue::from_str(&client.to_string()) {
        headers.insert(HeaderName::from_static("x-forwarded-for"), value);
    }
    headers.insert(
        HeaderName::from_static("x-forwarded-proto"),
        HeaderValue::from_static(scheme),
    );
    headers.insert(
        HeaderName::from_static("x-forwarded-host"),
        host.sent.clone(),
    );
    if let Ok(value) = HeaderValue::from_str(&forwarded(client, scheme, &host.sent)) {
        headers.insert(header::FORWARDED, value);
    }
    let via = match parts.version {
        Version::HTTP_2 => "2 chancery",
        Version::HTTP_10 => "1.0 chancery",
        _ => "1.1 chancery",
    };
    headers.append(header::VIA, HeaderValue::from_static(via));

    let mut request = Request::new(());
    *request.method_mut() = parts.method;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| StatusCode::BAD_REQUEST)?;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Where a request is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) scheme: &'a Scheme,
    pub(crate) authority: &'a Authority,
    pub(crate) host: &'a HeaderValue,
    pub(crate) base: &'a str,
    pub(crate) keep_host: bool,
}

/// Makes the head of the answer fit for the client's connection.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    strip(headers, |name| is_hop_by_hop(name.as_str()));
}

/// The field of RFC 7239. IPv6 addresses stand in brackets and quotes.
fn forwarded(client: IpAddr, scheme: &str, host: &HeaderValue) -> String {
    let mut field = String::with_capacity(96);
    let _ = match client {
        IpAddr::V4(v4) => write!(field, "for={v4}"),
        IpAddr::V6(v6) => write!(field, "for=\"[{v6}]\""),
    };
    let _ = write!(field, ";proto={scheme}");
    // An authority that was parsed holds neither quotes nor backslashes.
    if let Ok(host) = host.to_str() {
        let _ = write!(field, ";host=\"{host}\"");
    }
    field
}

/// HTTP/2 clients may send cookies in several fields; HTTP/1.1 allows one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// Whether a path has a `..` segment, encoded or not. The origin's path is what confines a resource to its place (its
/// bucket, say), and an origin that resolves such segments would leave it.
fn escapes(path: &str) -> bool {
    // Nearly every path is settled here.
    if !path.contains("..") && !path.contains("%2") {
        return false;
    }
    let mut decoded = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let (byte, length) = match &bytes[at..] {
            [b'%', b'2', b'e' | b'E', ..] => (b'.', 3),
            [b'%', b'2', b'f' | b'F', ..] => (b'/', 3),
            [b'%', b'5', b'c' | b'C', ..] | [b'\\', ..] => {
                (b'/', if bytes[at] == b'%' { 3 } else { 1 })
            }
            [byte, ..] => (*byte, 1),
            [] => break,
        };
        decoded.push(byte);
        at += length;
    }
    decoded
        .split(|byte| *byte == b'/')
        .any(|segment| segment == b"..")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn head(request: request::Builder) -> request::Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn forward(
        request: request::Builder,
        base: &str,
        keep_host: bool,
    ) -> Result<Request<()>, StatusCode> {
        let parts = head(request);
        let host = request_host(&parts.uri, &parts.headers)?;
        let authority = Authority::from_static("origin.example:8333");
        to_origin(
            parts,
            &host,
            From {
                client: "192.0.2.7:4711".parse().unwrap(),
                secure: true,
            },
            Origin {
                scheme: &Scheme::HTTP,
                authority: &authority,
                host: &HeaderValue::from_static("origin.example:8333"),
                base,
                keep_host,
            },
        )
    }

    #[test]
    fn what_clients_say_about_the_way_is_replaced() {
        let request = Request::get("/a?b=c")
            .header("Host", "Www.Example.com:443")
            .header("X-Forwarded-For", "6.6.6.6")
            .header("X-Forwarded-Port", "1")
            .header("X_Forwarded_Proto", "gopher")
            .header("X-Real-IP", "6.6.6.6")
            .header("Forwarded", "for=6.6.6.6")
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("Keep-Alive", "1")
            .header("TE", "trailers")
            .header("Upgrade", "websocket")
            .header("Proxy-Authorization", "secret")
            .header("Expect", "100-continue")
            .header("Via", "1.1 other")
            .header("Cookie", "a=1")
            .header("Cookie", "b=2")
            .header("X-Kept", "yes");
        let forwarded = forward(request, "/bucket", false).unwrap();
        assert_eq!(forwarded.uri(), "http://origin.example:8333/bucket/a?b=c");
        let mut seen: Vec<_> = forwarded
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                "cookie: a=1; b=2",
                "forwarded: for=192.0.2.7;proto=https;host=\"Www.Example.com:443\"",
                "host: origin.example:8333",
                "via: 1.1 chancery",
                "via: 1.1 other",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: Www.Example.com:443",
                "x-forwarded-proto: https",
                "x-kept: yes",
            ]
        );
        let kept = forward(
            Request::get("/").header("Host", "www.example.com"),
            "",
            true,
        )
        .unwrap();
        assert_eq!(kept.headers()["host"], "www.example.com");
        assert_eq!(kept.uri(), "http://origin.example:8333/");
    }

    #[test]
    fn one_host_and_no_other() {
        let find = |request: request::Builder| {
            let parts = head(request);
            request_host(&parts.uri, &parts.headers)
                .map(|host| host.name)
                .map_err(|status| status.as_u16())
        };
        assert_eq!(
            find(Request::get("/").header("Host", "A.Example.:80")),
            Ok("a.example".to_owned())
        );
        assert_eq!(
            find(Request::get("http://a.example/")),
            Ok("a.example".to_owned())
        );
        assert_eq!(
            find(Request::get("http://a.example/").header("Host", "A.example")),
            Ok("a.example".to_owned())
        );
        assert_eq!(
            find(Request::get("http://a.example/").header("Host", "b.example")),
            Err(400)
        );
        assert_eq!(find(Request::get("/")), Err(400));
        assert_eq!(find(Request::get("/").header("Host", "")), Err(400));
        assert_eq!(
            find(
                Request::get("/")
                    .header("Host", "a.example")
                    .header("Host", "a.example")
            ),
            Err(400)
        );
        assert_eq!(
            find(Request::get("/").header("Host", "a.example/x")),
            Err(400)
        );
        assert_eq!(
            find(Request::get("/").header("Host", "user@a.example")),
            Err(400)
        );
        assert_eq!(
            find(Request::get("/").header("Host", "a".repeat(300))),
            Err(400)
        );
    }

    #[test]
    fn nobody_leaves_the_origins_path() {
        let status = |path: &str| {
            forward(
                Request::get(path).header("Host", "a.example"),
                "/bucket",
                false,
            )
            .map(|_| ())
            .map_err(|s| s.as_u16())
        };
        for path in [
            "/../other",
            "/a/%2e%2E/b",
            "/a/..",
            "/..%2fother",
            "/a%2F..%2Fb",
            "/.%2e/x",
            "/..%5cx",
        ] {
            assert_eq!(status(path), Err(400), "{path}");
        }
        for path in [
            "/",
            "/a..b",
            "/...",
            "/a/.hidden",
            "/%20%2e",
            "/a?x=/../y",
            "/a%2fb",
        ] {
            assert_eq!(status(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn methods_loops_and_long_targets() {
        let status = |request: request::Builder| {
            forward(request.header("Host", "a.example"), "", false)
                .map(|_| ())
                .map_err(|s| s.as_u16())
        };
        assert_eq!(
            status(Request::builder().method("TRACE").uri("/")),
            Err(405)
        );
        assert_eq!(status(Request::options("*")), Err(400));
        assert_eq!(
            status(Request::get(format!("/{}", "a".repeat(20_000)))),
            Err(414)
        );
        let passed = |n: usize| {
            (0..n).fold(Request::get("/"), |request, _| {
                request.header("Via", "1.1 chancery")
            })
        };
        assert_eq!(status(passed(4)), Ok(()));
        assert_eq!(status(passed(5)), Err(508));
    }

    #[test]
    fn an_ipv6_client_is_quoted() {
        assert_eq!(
            forwarded(
                "2001:db8::1".parse().unwrap(),
                "http",
                &HeaderValue::from_static("a.example")
            ),
            "for=\"[2001:db8::1]\";proto=http;host=\"a.example\""
        );
    }
}
