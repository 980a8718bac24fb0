//! What is said to a router that speaks UPnP: how it is found, which of its pages is asked, and what it answers. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use roxmltree::{Document, ParsingOptions};

/// Where routers are looked for.
pub const SEARCH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Longest answer to a search that is read.
pub const LONGEST_FOUND: usize = 2048;
/// Longest page that is read of a router, in bytes, and of how many pieces.
pub const LONGEST_PAGE: usize = 128 << 10;
const MOST_PIECES: u32 = 4096;
/// Longest path or word that is taken over from a page.
const LONGEST_WORD: usize = 256;

/// What ports are asked for; the first one that a router has.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// The question who is a router; once for each generation of them.
pub fn searches() -> [String; 2] {
    [2, 1].map(|version| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: {SEARCH}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:{version}\r\n\r\n"
        )
    })
}

/// The page that describes a router, as it says itself: only a page of its own counts, by its address and not by a name.
pub fn found(answer: &[u8], router: Ipv4Addr) -> Option<(u16, String)> {
    if answer.len() > LONGEST_FOUND {
        return None;
    }
    let text = std::str::from_utf8(answer).ok()?;
    let mut lines = text.split("\r\n");
    lines.next().filter(|line| line.starts_with("HTTP/1.") && line.contains(" 200"))?;
    let value = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
    })?;
    own_page(value, router, None)
}

/// A page of the router itself: `http://ROUTER:PORT/PATH`, or a path on the page that names it.
fn own_page(url: &str, router: Ipv4Addr, base: Option<u16>) -> Option<(u16, String)> {
    let plain = |path: &str| {
        path.len() <= LONGEST_WORD && path.bytes().all(|c| c.is_ascii_graphic() && c != b'#')
    };
    if let Some(rest) = url.strip_prefix("http://") {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
        let path = if path.is_empty() { "/" } else { path };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let own = host.parse::<Ipv4Addr>().ok()? == router;
        return (own && plain(path)).then(|| (port, path.to_owned()));
    }
    let relative = !url.contains("//") && !url.contains(':') && !url.is_empty() && plain(url);
    let slash = if url.starts_with('/') { "" } else { "/" };
    relative.then_some(base).flatten().map(|port| (port, format!("{slash}{url}")))
}

/// Whom to ask for ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The router's port.
    pub port: u16,
    /// And the page there.
    pub path: String,
    /// The service, as it is called.
    pub service: &'static str,
    /// What tells this router from every other one, as it says itself.
    pub id: Option<String>,
}

/// Whom to ask, by the page that describes the router and that was read at this port of it.
pub fn control(page: &str, router: Ipv4Addr, port: u16) -> Option<Control> {
    let document = read(page)?;
    let text = |node: &roxmltree::Node<'_, '_>, name: &str| {
        let child = node.children().find(|child| child.tag_name().name() == name)?;
        Some(child.text()?.trim().to_owned())
    };
    let services = || document.descendants().filter(|node| node.tag_name().name() == "service");
    let plain = |id: &str| id.len() <= LONGEST_WORD && id.bytes().all(|c| c.is_ascii_graphic());
    let device = document.descendants().find(|node| node.tag_name().name() == "device");
    let id =
        device.and_then(|device| text(&device, "UDN")).filter(|id| plain(id) && !id.is_empty());
    SERVICES.into_iter().find_map(|service| {
        let mut of_kind = services().filter(|s| text(s, "serviceType").as_deref() == Some(service));
        let (port, path) =
            of_kind.find_map(|s| own_page(&text(&s, "controlURL")?, router, Some(port)))?;
        Some(Control { port, path, service, id: id.clone() })
    })
}

/// What a router is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Which address do you have outside?
    Address,
    /// Let callers in.
    Add {
        /// The port outside.
        outside: u16,
        /// Whereto.
        to: SocketAddrV4,
        /// For how long; for ever where it is 0.
        seconds: u32,
        /// What its list of ports is to call it, by which it is known again; letters, digits and spaces.
        called: &'a str,
    },
    /// Whom do callers of this port reach?
    Who {
        /// The port outside.
        outside: u16,
    },
    /// Let them in no more.
    Delete {
        /// The port outside.
        outside: u16,
    },
}

impl Action<'_> {
    /// As the service calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "GetExternalIPAddress",
            Self::Add { .. } => "AddPortMapping",
            Self::Who { .. } => "GetSpecificPortMappingEntry",
            Self::Delete { .. } => "DeletePortMapping",
        }
    }

    /// The page that is sent. Nothing in it comes from elsewhere: there is nothing to escape.
    pub fn page(self, service: &str) -> String {
        let name = self.name();
        let which = |outside: u16| {
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{outside}</NewExternalPort><NewProtocol>TCP</NewProtocol>"
            )
        };
        let words = match self {
            Self::Address => String::new(),
            Self::Who { outside } | Self::Delete { outside } => which(outside),
            Self::Add { outside, to, seconds, called } => format!(
                "{}<NewInternalPort>{}</NewInternalPort><NewInternalClient>{}</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>{called}</NewPortMappingDescription><NewLeaseDuration>{seconds}</NewLeaseDuration>",
                which(outside),
                to.port(),
                to.ip()
            ),
        };
        format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{service}\">{words}</u:{name}></s:Body></s:Envelope>\r\n"
        )
    }
}

/// What a router answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Its address outside.
    Address(Ipv4Addr),
    /// Whom callers reach, and what the port is called, where it says so.
    Who(SocketAddrV4, Option<String>),
    /// It did it.
    Done,
    /// It did not; the service's number for why.
    Refused(u16),
}

/// What an answer to this says; nothing where it says nothing that can be read.
pub fn said(action: Action<'_>, page: &str) -> Option<Said> {
    let document = read(page)?;
    let word = |name: &str| {
        let node = document.descendants().find(|node| node.tag_name().name() == name)?;
        node.text().map(str::trim).filter(|text| text.len() <= LONGEST_WORD)
    };
    if let Some(number) = word("errorCode") {
        return number.parse().ok().map(Said::Refused);
    }
    let answer = format!("{}Response", action.name());
    document.descendants().find(|node| node.tag_name().name() == answer)?;
    match action {
        Action::Address => word("NewExternalIPAddress")?.parse().ok().map(Said::Address),
        Action::Who { .. } => {
            let to = word("NewInternalClient")?.parse().ok()?;
            let to = SocketAddrV4::new(to, word("NewInternalPort")?.parse().ok()?);
            let called = word("NewPortMappingDescription").filter(|words| !words.is_empty());
            Some(Said::Who(to, called.map(str::to_owned)))
        }
        Action::Add { .. } | Action::Delete { .. } => Some(Said::Done),
    }
}

/// The port is another device's.
pub const TAKEN: u16 = 718;
/// It knows no end of what it gives.
pub const ONLY_FOR_EVER: u16 = 725;
/// Whether a router that refuses a port for a while may give it for ever: it says so, or it could not (501), or takes the time for a wrong
/// word (402).
pub fn may_want_no_end(number: u16) -> bool {
    matches!(number, ONLY_FOR_EVER | 402 | 501)
}

/// There is no such port.
pub const NO_SUCH: u16 = 714;

/// Why a router refuses, in words.
pub fn why(number: u16) -> &'static str {
    match number {
        606 => "it gives nobody a port, or not this one; look for “UPnP” in its settings",
        TAKEN | 729 => "every port that was tried is another device's",
        728 => "it has no more ports to give just now",
        501 | 402 => "it could not, and does not say why",
        _ => "it does not say why",
    }
}

/// A page within limits; one that brings definitions of its own, which may grow without end, is none.
fn read(page: &str) -> Option<Document<'_>> {
    let limits =
        ParsingOptions { allow_dtd: false, nodes_limit: MOST_PIECES, ..Default::default() };
    (page.len() <= LONGEST_PAGE).then(|| Document::parse_with_options(page, limits).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn location(url: &str) -> Option<(u16, String)> {
        let answer =
            format!("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nLocation: {url}\r\n\r\n");
        found(answer.as_bytes(), ROUTER)
    }

    #[test]
    fn a_router_is_followed_to_its_own_pages_and_nowhere_else() {
        assert_eq!(location("http://192.168.1.1:5000/desc.xml"), Some((5000, "/desc.xml".into())));
        assert_eq!(location("http://192.168.1.1"), Some((80, "/".into())));
        for elsewhere in [
            "http://192.168.1.2:5000/desc.xml",
            "http://127.0.0.1/",
            "http://router.example/",
            "http://192.168.1.1@evil.example/",
            "http://192.168.1.1:0/",
            "https://192.168.1.1/",
            "file:///etc/passwd",
            "/desc.xml",
            "http://192.168.1.1/a b",
            "",
        ] {
            assert_eq!(location(elsewhere), None, "{elsewhere}");
        }
        let long = format!("http://192.168.1.1/{}", "a".repeat(400));
        assert_eq!(location(&long), None);
        assert_eq!(
            found(b"NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n", ROUTER),
            None
        );
        assert_eq!(found(&[b'a'; 4000], ROUTER), None);
    }

    fn described(service: &str, url: &str) -> String {
        format!(
            r#"<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device><serviceList>
            <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3f</controlURL></service>
            <service><serviceType>{service}</serviceType><controlURL>{url}</controlURL></service>
            </serviceList></device></deviceList></device></root>"#
        )
    }

    #[test]
    fn the_page_that_gives_ports_is_found_in_what_describes_a_router() {
        let of = |url: &str| control(&described(SERVICES[1], url), ROUTER, 5000);
        let found = of("/ctl/IPConn").unwrap();
        assert_eq!(
            (found.port, found.path.as_str(), found.service),
            (5000, "/ctl/IPConn", SERVICES[1])
        );
        assert_eq!(of("ctl").unwrap().path, "/ctl");
        assert_eq!(of("http://192.168.1.1:99/c").unwrap().port, 99);
        for elsewhere in ["http://192.168.1.9/c", "//evil.example/c", "gopher:x", ""] {
            assert_eq!(of(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(control(&described("urn:x:1", "/c"), ROUTER, 1), None);
        let grows = r#"<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><root>&b;</root>"#;
        assert_eq!(control(grows, ROUTER, 1), None);
        assert_eq!(control(&"<a>".repeat(3000), ROUTER, 1), None);
        assert_eq!(control(&format!("<root>{}</root>", "<a/>".repeat(9000)), ROUTER, 1), None);
    }

    #[test]
    fn answers_are_read_and_a_refusal_keeps_its_number() {
        let body = |words: &str| {
            format!(
                r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{words}</s:Body></s:Envelope>"#
            )
        };
        let address = body(
            r#"<u:GetExternalIPAddressResponse xmlns:u="x"><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></u:GetExternalIPAddressResponse>"#,
        );
        assert_eq!(said(Action::Address, &address), Some(Said::Address([203, 0, 113, 5].into())));
        let delete = Action::Delete { outside: 443 };
        assert_eq!(said(delete, &address), None, "an answer to something else");
        let fault = body(
            "<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>",
        );
        assert_eq!(said(delete, &fault), Some(Said::Refused(TAKEN)));
        let who = body(
            r#"<u:GetSpecificPortMappingEntryResponse xmlns:u="x"><NewInternalPort>443</NewInternalPort><NewInternalClient>192.168.1.7</NewInternalClient><NewPortMappingDescription> A door </NewPortMappingDescription></u:GetSpecificPortMappingEntryResponse>"#,
        );
        let to = SocketAddrV4::new([192, 168, 1, 7].into(), 443);
        let which = Action::Who { outside: 1 };
        assert_eq!(said(which, &who), Some(Said::Who(to, Some("A door".into()))));
        let unnamed = who.replace(" A door ", "");
        assert_eq!(said(which, &unnamed), Some(Said::Who(to, None)));
        let add = Action::Add { outside: 8443, to, seconds: 60, called: "Polder 0a" };
        let page = add.page(SERVICES[0]);
        assert!(
            read(&page).is_some() && page.contains("<NewInternalClient>192.168.1.7<"),
            "{page}"
        );
    }

    proptest! {
        #[test]
        fn whatever_a_router_says_is_read_or_left(text in "\\PC{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (found(&bytes, ROUTER), control(&text, ROUTER, 1), said(Action::Address, &text));
            if let Some((_, path)) = location(&text) {
                prop_assert!(path.starts_with('/') && path.len() <= LONGEST_WORD);
            }
        }
    }
}
