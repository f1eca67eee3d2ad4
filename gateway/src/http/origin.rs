//! Which names a request may call this gateway by, and which web pages may send it one.
//!
//! A browser sends a page's requests to whatever address the page names, a loopback address included, and says in
//! `Origin` whose page it is. A page can also make its own name resolve to a loopback address (DNS rebinding): then
//! `Origin` and `Host` agree, and only the `Host` gives it away. So:
//!
//! * `Host` must be a loopback name or address, this machine's own name, a name under `.localhost`, `.local` or
//!   `.internal` (nobody can register one), or one that the operator allows. A gateway that other machines may use has
//!   names that it does not know: there the rule is for requests with an `Origin` only, and any IP address will do, since
//!   an address cannot be rebound.
//! * `Origin` must be absent, or name the host and port that the request was sent to.
//!
//! A request without a host, which HTTP/1.0 allows, passes: every browser sends one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::HeaderMap;
use hyper::header::{HOST, ORIGIN};
use hyper::http::request::Parts;

use super::error::RequestError;
use crate::error::shorten;

/// Names below these are never on the public internet.
const PRIVATE_DOMAINS: [&str; 3] = [".localhost", ".local", ".internal"];
const LOOPBACK_NAME: &str = "localhost";

/// A host as a URL writes it, in one spelling: lower case, without the dot that may end a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostName {
    /// An address.
    Address(IpAddr),
    /// Anything else.
    Name(String),
}

impl HostName {
    /// Reads a name of letters, digits, `-` and `_` in labels, an IPv4 address, or an IPv6 address in brackets.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(address) = text.strip_prefix('[') {
            let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_plain);
        name.split('.').all(is_label).then(|| Self::Name(name.to_ascii_lowercase()))
    }

    fn is_private(&self) -> bool {
        match self {
            Self::Address(address) => address.to_canonical().is_loopback(),
            Self::Name(name) => {
                name == LOOPBACK_NAME || PRIVATE_DOMAINS.iter().any(|domain| name.ends_with(domain))
            }
        }
    }
}

/// A host with the port after it, if one was stated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: HostName,
    port: Option<u16>,
}

impl Authority {
    fn parse(text: &str) -> Option<Self> {
        // The colons of an IPv6 address stand inside its brackets.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (text, ""),
        };
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        Some(Self { host: HostName::parse(host)?, port })
    }

    fn is_at(&self, other: &Self, default_port: u16) -> bool {
        self.host == other.host && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }
}

/// The hosts by which this gateway may be called.
#[derive(Debug)]
pub(super) struct Gatekeeper {
    allow_remote: bool,
    allowed: Vec<HostName>,
}

impl Gatekeeper {
    /// `machine` is this machine's name, with or without its domain; it may be called by either.
    pub(super) fn new(allow_remote: bool, allowed: &[String], machine: Option<&str>) -> Self {
        let short = machine.and_then(|name| name.split('.').next());
        let names = allowed.iter().map(String::as_str).chain(machine).chain(short);
        Self { allow_remote, allowed: names.filter_map(HostName::parse).collect() }
    }

    /// Refuses a request that a foreign web page may have sent.
    pub(super) fn check(&self, head: &Parts) -> Result<(), RequestError> {
        let origin = origin(&head.headers)?;
        let hosts = stated_hosts(head);
        if !self.allow_remote || origin.is_some() {
            for host in &hosts {
                let is_allowed = Authority::parse(host).is_some_and(|host| self.allows(&host.host));
                if !is_allowed {
                    return Err(RequestError::HostNotAllowed { host: shorten(host) });
                }
            }
        }
        let Some(origin) = origin else { return Ok(()) };
        let is_own = !hosts.is_empty() && hosts.iter().all(|host| is_origin_of(&origin, host));
        if is_own { Ok(()) } else { Err(RequestError::OriginNotAllowed { origin: shorten(&origin) }) }
    }

    fn allows(&self, host: &HostName) -> bool {
        let is_address = matches!(host, HostName::Address(_));
        host.is_private() || self.allowed.contains(host) || (self.allow_remote && is_address)
    }
}

/// The host of the request's target, where it names one, and those of its `Host` headers.
fn stated_hosts(head: &Parts) -> Vec<String> {
    let target = head.uri.authority().map(ToString::to_string);
    let headers = head.headers.get_all(HOST).iter();
    target
        .into_iter()
        .chain(headers.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// The request's one `Origin`, if it has any.
fn origin(headers: &HeaderMap) -> Result<Option<String>, RequestError> {
    let origins = headers.get_all(ORIGIN).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let origins: Vec<_> = origins.collect();
    match origins.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.to_string())),
        several => Err(RequestError::OriginNotAllowed { origin: shorten(&several.join(", ")) }),
    }
}

/// Whether a page of this origin was served by this host.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let (default_port, page) = match origin.split_once("://") {
        Some((scheme, page)) if scheme.eq_ignore_ascii_case("http") => (80, page),
        Some((scheme, page)) if scheme.eq_ignore_ascii_case("https") => (443, page),
        _ => return false,
    };
    let (Some(page), Some(host)) = (Authority::parse(page), Authority::parse(host)) else { return false };
    page.is_at(&host, default_port)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn verdict(gatekeeper: &Gatekeeper, target: &str, headers: &[(&str, &str)]) -> &'static str {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match gatekeeper.check(&request.body(()).unwrap().into_parts().0) {
            Ok(()) => "ok",
            Err(RequestError::HostNotAllowed { .. }) => "host",
            Err(RequestError::OriginNotAllowed { .. }) => "origin",
            Err(error) => panic!("{error}"),
        }
    }

    fn local() -> Gatekeeper {
        Gatekeeper::new(
            false,
            &["Embed.Example.com.".to_owned(), "10.1.2.3".to_owned()],
            Some("Box.lan.example"),
        )
    }

    fn remote() -> Gatekeeper {
        Gatekeeper::new(true, &["embed.example.com".to_owned()], Some("box"))
    }

    #[test]
    fn a_loopback_gateway_is_called_by_names_that_lead_to_it_only() {
        let good = [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "localhost:8080",
            "localhost:",
            "LocalHost.:65535",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.255.255.254",
            "[::1]",
            "[::1]:8080",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "app.localhost",
            "a.b.localhost:1",
            "mac.local",
            "host.docker.internal",
            "embed.example.com",
            "EMBED.example.com.:443",
            "10.1.2.3:80",
            "box",
            "BOX:8080",
            "box.lan.example",
            "my_host.internal",
        ];
        for host in good {
            assert_eq!(verdict(&local(), "/health", &[("host", host)]), "ok", "{host}");
        }
        let bad = [
            "",
            ":8080",
            "x",
            "evil.com",
            "localhost.evil.com",
            "127.0.0.1.nip.io",
            "evillocalhost",
            "evil-localhost",
            "localhost..",
            ".localhost",
            "..local",
            "local",
            "internal",
            "notlocal",
            "x.local.evil.com",
            "0x7f000001",
            "2130706433",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "0.0.0.0",
            "0",
            "10.1.2.4",
            "192.168.0.1",
            "[::]",
            "[fe80::1]",
            "[::1%lo]",
            "[::1%25lo]",
            "[::ffff:10.0.0.1]",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[localhost]",
            "localhost:x",
            "localhost:+80",
            "localhost:-1",
            "localhost:65536",
            "localhost:80:80",
            "localhost :80",
            "local host",
            "user@localhost",
            "localhost@evil.com",
            "localhost/evil.com",
            "evil.com#.localhost",
            "evil.com\\.localhost",
            "localhost,evil.com",
            "http://localhost",
            "box.evil.com",
            "lan.example",
            "example.com",
            "x.embed.example.com",
            "l\u{f6}calhost",
            "evil.com?.local",
            "evil.com:80.local",
            "%6cocalhost",
            "evil.com .local",
        ];
        for host in bad {
            assert_eq!(verdict(&local(), "/health", &[("host", host)]), "host", "{host}");
        }
        assert_eq!(verdict(&local(), "/health", &[]), "ok", "without a Host");
    }

    #[test]
    fn the_authority_of_a_target_and_every_host_header_are_checked() {
        for (target, headers, expected) in [
            ("http://localhost/", &["localhost"][..], "ok"),
            ("http://evil.com/", &["localhost"], "host"),
            ("http://localhost/", &["evil.com"], "host"),
            ("http://user@localhost/", &["localhost"], "host"),
            ("evil.com:443", &["localhost"], "host"),
            ("/", &["localhost", "evil.com"], "host"),
        ] {
            let headers: Vec<(&str, &str)> = headers.iter().map(|host| ("host", *host)).collect();
            assert_eq!(verdict(&local(), target, &headers), expected, "{target} {headers:?}");
        }
    }

    #[test]
    fn an_origin_is_that_of_the_host_or_refused() {
        for (host, origin, expected) in [
            ("localhost:8080", "http://localhost:8080", "ok"),
            ("LOCALHOST:8080", "http://localhost:8080", "ok"),
            ("localhost", "http://localhost", "ok"),
            ("localhost:80", "http://localhost", "ok"),
            ("localhost", "http://localhost:80", "ok"),
            ("embed.example.com", "https://embed.example.com", "ok"),
            ("embed.example.com:443", "https://embed.example.com", "ok"),
            ("[::1]:8080", "http://[::1]:8080", "ok"),
            ("localhost:8080", "http://localhost", "origin"),
            ("localhost:8080", "http://localhost:3000", "origin"),
            ("localhost:443", "http://localhost", "origin"),
            ("localhost:80", "https://localhost", "origin"),
            ("localhost:8080", "http://127.0.0.1:8080", "origin"),
            ("localhost:8080", "http://app.localhost:8080", "origin"),
            ("localhost:8080", "null", "origin"),
            ("localhost:8080", "", "origin"),
            ("localhost:8080", "localhost:8080", "origin"),
            ("localhost:8080", "//localhost:8080", "origin"),
            ("localhost:8080", "http://localhost:8080/", "origin"),
            ("localhost:8080", "http://evil.com@localhost:8080", "origin"),
            ("localhost:8080", "http://localhost:8080, http://localhost:8080", "origin"),
            ("localhost:8080", "http://localhost:8080 http://evil.com", "origin"),
            ("localhost:8080", "http://localhost:8080.evil.com", "origin"),
            ("localhost:8080", "file://", "origin"),
            ("localhost:8080", "chrome-extension://localhost:8080", "origin"),
            ("localhost:8080", "https://evil.com", "origin"),
            ("evil.com", "http://evil.com", "host"),
            ("10.0.0.7", "http://10.0.0.7", "host"),
        ] {
            let headers = [("host", host), ("origin", origin)];
            assert_eq!(verdict(&local(), "/", &headers), expected, "{host} {origin}");
        }
        let twice = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")];
        assert_eq!(verdict(&local(), "/", &twice), "origin");
        assert_eq!(verdict(&local(), "/", &[("origin", "http://localhost")]), "origin", "without a Host");
    }

    #[test]
    fn a_gateway_for_other_machines_checks_only_what_browsers_send() {
        for (host, origin, expected) in [
            ("akidb:8080", None, "ok"),
            ("10.2.3.4:8080", None, "ok"),
            ("", None, "ok"),
            ("10.2.3.4:8080", Some("http://10.2.3.4:8080"), "ok"),
            ("[2001:db8::1]", Some("http://[2001:db8::1]"), "ok"),
            ("0.0.0.0:8080", Some("http://0.0.0.0:8080"), "ok"),
            ("embed.example.com", Some("https://embed.example.com"), "ok"),
            ("box:8080", Some("http://box:8080"), "ok"),
            ("evil.com", Some("http://evil.com"), "host"),
            ("akidb:8080", Some("http://akidb:8080"), "host"),
            ("10.2.3.4:8080", Some("http://evil.com"), "origin"),
            ("10.2.3.4:8080", Some("null"), "origin"),
        ] {
            let mut headers = vec![("host", host)];
            headers.extend(origin.map(|origin| ("origin", origin)));
            assert_eq!(verdict(&remote(), "/", &headers), expected, "{host} {origin:?}");
        }
    }
}
