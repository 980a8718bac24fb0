//! A service that lies in every way that it can, and one whose clock is wrong, and one that is away.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use polder_oidc::{Answer, Known, OidcError, Services, Way};
use polder_site::SignIn;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

const CLIENT: &str = "box";
const SECRET: &str = "a secret that both know";

/// What the service does otherwise than it should.
#[derive(Clone, Default)]
struct Lies {
    /// Over the description.
    description: Vec<(&'static str, Value)>,
    /// Over the claims; null takes one out.
    claims: Vec<(&'static str, Value)>,
    /// Over the token's head.
    head: Vec<(&'static str, Value)>,
    /// By which the token is signed instead.
    signature: Option<fn(&str) -> Vec<u8>>,
    /// What it answers at the token endpoint instead.
    token: Option<(u16, String)>,
    /// What it answers at the userinfo endpoint.
    userinfo: Option<Value>,
    /// Another key than the one that it shows.
    other_key: bool,
}

struct Service {
    issuer: String,
    key: EcdsaKeyPair,
    other: EcdsaKeyPair,
    lies: Mutex<Lies>,
    nonce: Mutex<String>,
    asked: Mutex<Vec<String>>,
}

fn key() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &random).unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

impl Service {
    fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let service = Arc::new(Self {
            issuer,
            key: key(),
            other: key(),
            lies: Mutex::default(),
            nonce: Mutex::default(),
            asked: Mutex::default(),
        });
        let serving = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serving.serve(stream.unwrap());
            }
        });
        service
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut line, mut length) = (String::new(), 0);
        reader.read_line(&mut line).unwrap();
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap() <= 2 {
                break;
            }
            if let Some(text) = header.to_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        self.asked.lock().unwrap().push(format!("{path} {}", String::from_utf8_lossy(&body)));
        let lies = self.lies.lock().unwrap().clone();
        let (status, text) = match path.as_str() {
            "/.well-known/openid-configuration" => (200, self.description(&lies).to_string()),
            "/keys" => (200, self.keys().to_string()),
            "/token" => lies.token.clone().unwrap_or_else(|| (200, self.token(&lies).to_string())),
            "/userinfo" => match &lies.userinfo {
                Some(told) => (200, told.to_string()),
                None => (404, "{}".to_owned()),
            },
            _ => (404, "{}".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\nlocation: http://evil.example/\r\n\r\n",
            text.len()
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes()));
    }

    fn description(&self, lies: &Lies) -> Value {
        let at = |path: &str| format!("{}{path}", self.issuer);
        let mut described = json!({
            "issuer": self.issuer,
            "authorization_endpoint": at("/authorize"),
            "token_endpoint": at("/token"),
            "userinfo_endpoint": at("/userinfo"),
            "jwks_uri": at("/keys"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256", "HS256", "none"],
        });
        for (name, value) in &lies.description {
            described[*name] = value.clone();
        }
        described
    }

    fn keys(&self) -> Value {
        let point = self.key.public_key().as_ref().to_vec();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "x": x, "y": y }] })
    }

    fn token(&self, lies: &Lies) -> Value {
        let mut head = json!({ "alg": "ES256", "kid": "1", "typ": "JWT" });
        for (name, value) in &lies.head {
            head[*name] = value.clone();
        }
        let mut claims = json!({
            "iss": self.issuer, "aud": CLIENT, "sub": "7", "iat": now(), "exp": now() + 300,
            "nonce": *self.nonce.lock().unwrap(), "preferred_username": "ada",
            "email": "ada@example.org", "email_verified": true, "groups": ["members"],
        });
        for (name, value) in &lies.claims {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(*name)),
                value => claims[*name] = value.clone(),
            }
        }
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&head), encode(&claims));
        let key = if lies.other_key { &self.other } else { &self.key };
        let signature = match lies.signature {
            Some(sign) => sign(&signed),
            None => key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
        };
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 60, "id_token": token })
    }

    fn lie(&self, lies: Lies) {
        *self.lies.lock().unwrap() = lies;
    }

    fn site(&self) -> SignIn {
        SignIn::at("our house", self.issuer.parse().unwrap(), CLIENT)
    }

    /// A browser goes there and back.
    fn come_back(&self, change: impl FnOnce(&mut Answer)) -> Result<Known, OidcError> {
        let (services, site) = (Services::default(), self.site());
        let (way, mut answer) = self.go(&services, &site)?;
        change(&mut answer);
        services.finish(&site, Some(SECRET), way, &answer)
    }

    fn go(&self, services: &Services, site: &SignIn) -> Result<(Way, Answer), OidcError> {
        let back = "https://oak.local/sign-in/back";
        let (to, way) = services.of(site, Some(SECRET))?.begin(back, false)?;
        let query = |name: &str| {
            let query = to.split_once('?').unwrap().1;
            let found = query.split('&').find_map(|p| p.strip_prefix(&format!("{name}=")));
            found.unwrap_or_else(|| panic!("no {name} in {to}")).to_owned()
        };
        assert_eq!(query("code_challenge_method"), "S256");
        assert_eq!(query("response_type"), "code");
        assert!(query("state").len() >= 20 && query("nonce").len() >= 20, "{to}");
        assert!(!to.contains(SECRET) && !to.contains("code_verifier"), "{to}");
        *self.nonce.lock().unwrap() = query("nonce");
        let answer =
            Answer { code: Some("c".into()), state: Some(query("state")), ..Answer::default() };
        Ok((way, answer))
    }

    fn why(&self, lies: Lies) -> String {
        self.lie(lies);
        match self.come_back(|_| {}) {
            Err(OidcError::NotProven { why, .. }) => why.to_owned(),
            Err(other) => panic!("{other}"),
            Ok(known) => panic!("it was believed: {known:?}"),
        }
    }
}

fn claim(name: &'static str, value: Value) -> Lies {
    Lies { claims: vec![(name, value)], ..Lies::default() }
}

#[test]
fn what_the_service_has_signed_is_believed_and_the_secret_and_verifier_go_only_to_it() {
    let service = Service::start();
    let known = service.come_back(|_| {}).unwrap();
    assert_eq!((known.issuer.as_str(), known.subject.as_str()), (service.issuer.as_str(), "7"));
    assert_eq!(known.names, ["ada"]);
    assert_eq!(known.email.as_deref(), Some("ada@example.org"));
    assert_eq!(known.groups.unwrap(), ["members"]);
    let asked = service.asked.lock().unwrap();
    let token = asked.iter().find(|line| line.starts_with("/token ")).unwrap();
    assert!(token.contains("code_verifier=") && token.contains("code=c"), "{token}");
}

#[test]
fn a_proof_for_somebody_else_or_by_somebody_else_is_not_believed() {
    let service = Service::start();
    let why = |lies| service.why(lies);
    assert!(why(claim("iss", json!("https://evil.example"))).contains("another service"));
    // An issuer that differs in nothing but a slash.
    assert!(why(claim("iss", json!(format!("{}/", service.issuer)))).contains("another service"));
    assert!(why(claim("aud", json!("another"))).contains("somebody else than this box"));
    assert!(why(claim("aud", json!([CLIENT, "another"]))).contains("somebody else than this box"));
    assert!(why(claim("aud", json!([]))).contains("somebody else than this box"));
    assert!(why(claim("nonce", json!("replayed"))).contains("another question"));
    assert!(why(claim("nonce", Value::Null)).contains("another question"));
    assert!(why(claim("sub", json!(""))).contains("who you are"));
    assert!(why(claim("sub", json!("x".repeat(300)))).contains("who you are"));
    assert!(why(claim("at_hash", json!("AAAAAAAAAAAAAAAAAAAAAA"))).contains("another answer"));
    assert!(why(Lies { other_key: true, ..Lies::default() }).contains("signature is wrong"));
    let stranger = Lies { head: vec![("kid", json!("2"))], other_key: true, ..Lies::default() };
    assert!(why(stranger).contains("does not show"));
}

#[test]
fn a_proof_that_anybody_could_have_signed_is_not_believed() {
    let service = Service::start();
    let alg = |alg: &str| vec![("alg", json!(alg))];
    // Nobody signed it.
    let none = Lies { head: alg("none"), signature: Some(|_| Vec::new()), ..Lies::default() };
    assert!(service.why(none).contains("not signed"));
    // The shared secret as the key.
    let shared = Lies {
        head: alg("HS256"),
        signature: Some(|text| {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
            ring::hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
        }),
        ..Lies::default()
    };
    assert!(service.why(shared).contains("anybody who knows the client's secret"));
    // Signed well, and said to be signed otherwise.
    for other in ["HS256", "RS256", "ES384", "EdDSA"] {
        let lies = Lies { head: alg(other), ..Lies::default() };
        service.why(lies);
    }
    let critical = Lies { head: vec![("crit", json!(["x"]))], ..Lies::default() };
    assert!(service.why(critical).contains("does not know"));
}

#[test]
fn clocks_may_differ_a_little_and_no_more() {
    let service = Service::start();
    service.lie(Lies {
        claims: vec![("exp", json!(now() - 60)), ("iat", json!(now() - 360))],
        ..Lies::default()
    });
    assert!(service.come_back(|_| {}).is_ok());
    service.lie(claim("iat", json!(now() + 60)));
    assert!(service.come_back(|_| {}).is_ok());
    assert!(service.why(claim("exp", json!(now() - 600))).contains("clock"));
    assert!(service.why(claim("iat", json!(now() + 600))).contains("clock"));
}

#[test]
fn an_answer_from_another_browser_another_service_or_another_time_lets_nobody_in() {
    let service = Service::start();
    let lost = |change: fn(&mut Answer)| {
        let came = service.come_back(change);
        assert!(matches!(came, Err(OidcError::Lost)), "{came:?}");
    };
    lost(|answer| answer.state = Some("another".into()));
    lost(|answer| answer.state = None);
    lost(|answer| answer.code = None);
    lost(|answer| answer.code = Some(String::new()));
    let mixed = service.come_back(|answer| answer.iss = Some("https://evil.example".into()));
    assert!(matches!(mixed, Err(OidcError::MixedUp { .. })), "{mixed:?}");
    // A service that always says who it is, and an answer that does not.
    let says = "authorization_response_iss_parameter_supported";
    service.lie(Lies { description: vec![(says, json!(true))], ..Lies::default() });
    let silent = service.come_back(|_| {});
    assert!(matches!(silent, Err(OidcError::MixedUp { .. })), "{silent:?}");
    let issuer = service.issuer.clone();
    assert!(service.come_back(|answer| answer.iss = Some(issuer)).is_ok());
    // The site names another service by now.
    service.lie(Lies::default());
    let services = Services::default();
    let (way, answer) = service.go(&services, &service.site()).unwrap();
    let other = Service::start();
    let came = services.finish(&other.site(), Some(SECRET), way, &answer);
    assert!(matches!(came, Err(OidcError::Lost)), "{came:?}");
    assert!(!other.asked.lock().unwrap().iter().any(|line| line.starts_with("/token")));
}

#[test]
fn what_the_service_refuses_is_told_and_nothing_that_it_sends_along_is_believed() {
    let service = Service::start();
    let denied = service.come_back(|answer| {
        answer.error = Some("access_denied".into());
        answer.error_description = Some("no\r\nroom <b>here</b>".into());
    });
    let why = denied.unwrap_err().to_string();
    assert!(why.contains("did not let you in: no  room <b>here</b>"), "{why}");
    for (status, text) in [
        (400, "{\"error\":\"invalid_grant\"}"),
        (500, "broken"),
        (200, "not json"),
        (200, "{\"access_token\":\"a\"}"),
        (302, ""),
    ] {
        service.lie(Lies { token: Some((status, text.into())), ..Lies::default() });
        let came = service.come_back(|_| {});
        assert!(matches!(came, Err(OidcError::NotRedeemed { .. })), "{text}: {came:?}");
    }
    let no_proof = "{\"access_token\":\"a\",\"token_type\":\"Bearer\"}";
    let lies = Lies { token: Some((200, no_proof.into())), ..Lies::default() };
    assert!(service.why(lies).contains("no proof"));
}

#[test]
fn an_address_counts_only_if_it_is_proven_and_userinfo_only_for_the_same_person() {
    let service = Service::start();
    let came = |lies| {
        service.lie(lies);
        service.come_back(|_| {})
    };
    assert_eq!(came(claim("email_verified", json!(false))).unwrap().email, None);
    assert_eq!(came(claim("email_verified", Value::Null)).unwrap().email, None);
    let more = |sub: &str| Lies {
        userinfo: Some(json!({ "sub": sub, "email": "a@b.example", "email_verified": true,
            "groups": ["stewards"], "name": "Ada L." })),
        claims: vec![("email_verified", Value::Null), ("groups", Value::Null)],
        ..Lies::default()
    };
    let known = came(more("7")).unwrap();
    assert_eq!(known.email.as_deref(), Some("a@b.example"));
    assert_eq!(known.groups.unwrap(), ["stewards"]);
    assert_eq!(known.names, ["ada", "Ada L."]);
    let other = came(more("8"));
    assert!(matches!(other, Err(OidcError::NotProven { .. })), "{other:?}");
    // Nothing told at all is not the same as no groups.
    assert_eq!(came(claim("groups", Value::Null)).unwrap().groups, None);
    assert_eq!(came(claim("groups", json!([]))).unwrap().groups.unwrap(), [""; 0]);
}

#[test]
fn a_service_that_is_away_or_none_or_another_says_so_in_a_sentence() {
    let service = Service::start();
    let says = |lies| {
        service.lie(lies);
        Services::default().of(&service.site(), None).map(drop).unwrap_err()
    };
    let other =
        Lies { description: vec![("issuer", json!("https://evil.example"))], ..Lies::default() };
    assert!(matches!(says(other), OidcError::Elsewhere { .. }));
    for endpoint in ["authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri"] {
        let clear = json!("http://192.0.2.1/x");
        let lies = Lies { description: vec![(endpoint, clear)], ..Lies::default() };
        let says = says(lies);
        assert!(says.to_string().contains("not over TLS"), "{endpoint}: {says}");
    }
    let script = json!("javascript:alert(1)");
    let lies = Lies { description: vec![("authorization_endpoint", script)], ..Lies::default() };
    assert!(matches!(says(lies), OidcError::NoService { .. }));
    let lies = Lies { description: vec![("jwks_uri", Value::Null)], ..Lies::default() };
    assert!(says(lies).to_string().contains("jwks_uri"));

    // Nothing listens at the first port of all.
    let site = SignIn::at("our house", "http://127.0.0.1:1".parse().unwrap(), CLIENT);
    let away = Services::default().of(&site, None).map(drop).unwrap_err();
    assert!(matches!(away, OidcError::Away { .. }), "{away}");
    assert!(away.to_string().contains("sign in with your password"), "{away}");
    let mut site = service.site();
    site.root = Some("-----BEGIN CERTIFICATE-----\n!none!\n-----END CERTIFICATE-----\n".into());
    let root = Services::default().of(&site, None).map(drop).unwrap_err();
    assert!(matches!(root, OidcError::Root), "{root}");
}
