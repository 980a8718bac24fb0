//! What is in an image, for people and programs that look for known faults: an SPDX 2.3 document.
//!
//! Pure: the same lock, crates and disk give the same text.

use std::collections::{BTreeMap, BTreeSet};

use polder_recipes::Digest;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{Driver, Layer, Lock, Package, Version};

/// What an SPDX document is made from.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) lock: &'a Lock,
    pub(crate) version: &'a Version,
    /// The disk's name and digest.
    pub(crate) disk: (&'a str, Digest),
    /// What `polder` is linked from.
    pub(crate) crates: &'a [Crate],
    /// Whether `polder` was compiled from them, or came from elsewhere.
    pub(crate) compiled: bool,
    /// Which driver is in it.
    pub(crate) driver: &'a Driver,
}

/// Somebody's Rust package in the program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crate {
    name: String,
    version: String,
    /// An SPDX expression, or nothing where it says none.
    licence: Option<String>,
    digest: Option<Digest>,
}

/// Cargo's answer to [`TREE`], with the digests of `Cargo.lock`. Polder's own crates are not listed: they are
/// `polder`, and their names may be somebody else's in a registry.
pub(crate) fn crates(tree: &str, cargo_lock: &str) -> Result<Vec<Crate>, toml::de::Error> {
    #[derive(Deserialize)]
    struct Locked {
        package: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        version: String,
        checksum: Option<Digest>,
        source: Option<String>,
    }
    let locked: Locked = toml::from_str(cargo_lock)?;
    let others: BTreeMap<(String, String), Option<Digest>> = locked
        .package
        .into_iter()
        .filter(|entry| entry.source.is_some())
        .map(|entry| ((entry.name, entry.version), entry.checksum))
        .collect();
    let line = |line: &str| {
        let (package, licence) = line.split_once('|')?;
        let mut words = package.split(' ');
        let name = words.next()?.to_owned();
        let version = words.next()?.strip_prefix('v')?.to_owned();
        let digest = *others.get(&(name.clone(), version.clone()))?;
        Some(Crate { name, version, licence: expression(licence), digest })
    };
    let found: BTreeSet<Crate> = tree.lines().filter_map(line).collect();
    Ok(found.into_iter().collect())
}

/// What is asked of cargo: all that is linked into the program, with licences. Nothing is fetched for it.
pub(crate) const TREE: [&str; 12] = [
    "tree",
    "--locked",
    "--offline",
    "--package",
    "polder",
    "--edges",
    "normal,no-proc-macro",
    "--prefix",
    "none",
    "--no-dedupe",
    "--format",
    "{p}|{l}",
];

/// The document's text.
pub(crate) fn spdx(contents: &Contents<'_>) -> String {
    let Contents { lock, version, disk, crates, compiled, driver } = contents;
    let mut packages = vec![
        json!({
            "SPDXID": IMAGE,
            "name": "polder-image",
            "versionInfo": version.as_str(),
            "packageFileName": disk.0,
            "primaryPackagePurpose": "OPERATING-SYSTEM",
            "downloadLocation": NOTHING,
            "filesAnalyzed": false,
            "checksums": checksums(&disk.1),
        }),
        json!({
            "SPDXID": PROGRAM,
            "name": "polder",
            "versionInfo": version.as_str(),
            "primaryPackagePurpose": "APPLICATION",
            "downloadLocation": NOTHING,
            "filesAnalyzed": false,
            "licenseDeclared": env!("CARGO_PKG_LICENSE"),
        }),
        json!({
            "SPDXID": STANDARD,
            "name": "rust-std",
            "versionInfo": lock.rustc,
            "downloadLocation": NOTHING,
            "filesAnalyzed": false,
            "licenseDeclared": "MIT OR Apache-2.0",
        }),
    ];
    let mut relations = vec![
        relation(DOCUMENT, "DESCRIBES", IMAGE),
        relation(IMAGE, "CONTAINS", PROGRAM),
        relation(PROGRAM, "STATIC_LINK", STANDARD),
    ];
    for (name, package) in debs(lock, driver) {
        let id = id("deb", name, &package.digest.to_string()[..12]);
        relations.push(relation(IMAGE, "CONTAINS", &id));
        packages.push(deb(&id, name, package));
    }
    if let Driver::Bundle(bundle) = driver {
        relations.push(relation(IMAGE, "CONTAINS", BUNDLE));
        packages.push(json!({
            "SPDXID": BUNDLE,
            "name": "nvidia-driver",
            "versionInfo": bundle.version,
            "supplier": "Organization: NVIDIA",
            "downloadLocation": NOTHING,
            "filesAnalyzed": false,
            "checksums": checksums(&bundle.digest),
        }));
    }
    // The licence of the machine code that it makes is in part its own.
    let compilers = lock.layer(Layer::Kernels).iter().filter(|_| **driver != Driver::None);
    for (name, package) in compilers {
        let id = id("pypi", name, &package.version);
        relations.push(relation(IMAGE, "CONTAINS", &id));
        packages.push(wheel(&id, name, package));
    }
    for one in *crates {
        let id = id("crate", &one.name, &one.version);
        relations.push(relation(PROGRAM, "STATIC_LINK", &id));
        packages.push(cargo(&id, one));
    }
    let comment = if *compiled {
        "Licences of Debian packages are in /usr/share/doc/*/copyright on the image."
    } else {
        "The program was given and not compiled from this checkout, whose crates are listed. \
         Licences of Debian packages are in /usr/share/doc/*/copyright on the image."
    };
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": format!("polder_{version}_{}", lock.arch),
        "documentNamespace": "",
        "creationInfo": {
            "created": time(lock.epoch),
            "creators": [concat!("Tool: polder-", env!("CARGO_PKG_VERSION"))],
            "comment": comment,
        },
        "packages": packages,
        "relationships": relations,
    });
    // Every document has a name of its own, and the same one always has the same.
    let digest = Sha256::digest(document.to_string());
    document["documentNamespace"] =
        json!(format!("urn:uuid:{}", crate::uuid::form(&digest.into())));
    let mut text = serde_json::to_string_pretty(&document).expect("a value has only keys of text");
    text.push('\n');
    text
}

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-image";
const PROGRAM: &str = "SPDXRef-polder";
const BUNDLE: &str = "SPDXRef-nvidia-driver";
const STANDARD: &str = "SPDXRef-rust-std";
const NOTHING: &str = "NOASSERTION";

/// The Debian packages of which something is on the disk.
fn debs<'l>(lock: &'l Lock, driver: &Driver) -> impl Iterator<Item = (&'l str, &'l Package)> {
    let plain = |name: &'_ str| name.split(':').next().unwrap_or_default() == "systemd-boot-efi";
    // Of what makes images only the boot loader and the boot entry's stub go in.
    let loader = lock.layer(Layer::Builder).iter().filter(move |(name, _)| plain(name));
    let all = lock.layer(Layer::Root).iter().chain(lock.layer(Layer::Initrd)).chain(loader);
    let driver = (*driver == Driver::Debian).then(|| lock.layer(Layer::Driver));
    let all = all.chain(driver.into_iter().flatten());
    all.map(|(name, package)| (name.split(':').next().unwrap_or(name), package))
}

fn deb(id: &str, name: &str, package: &Package) -> Value {
    let (version, arch) = (&package.version, &package.arch);
    json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "downloadLocation": NOTHING,
        "filesAnalyzed": false,
        "licenseDeclared": NOTHING,
        "checksums": checksums(&package.digest),
        "externalRefs": purl(format!("pkg:deb/debian/{}@{}?arch={arch}", encoded(name), encoded(version))),
    })
}

/// A compiler that is not in the image itself.
fn wheel(id: &str, name: &str, package: &Package) -> Value {
    json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": package.version,
        "supplier": "Organization: NVIDIA",
        "downloadLocation": NOTHING,
        "filesAnalyzed": false,
        "licenseDeclared": NOTHING,
        "comment": "Of this only what it puts into the machine code of the engine's kernels, from its own library. Its licence \
                    is in /usr/share/doc/nvidia-cuda-nvrtc/copyright on the image.",
        "checksums": checksums(&package.digest),
        "externalRefs": purl(format!("pkg:pypi/{}@{}", encoded(name), encoded(&package.version))),
    })
}

fn cargo(id: &str, one: &Crate) -> Value {
    let mut value = json!({
        "SPDXID": id,
        "name": one.name,
        "versionInfo": one.version,
        "downloadLocation": NOTHING,
        "filesAnalyzed": false,
        "licenseDeclared": one.licence.as_deref().unwrap_or(NOTHING),
        "externalRefs": purl(format!("pkg:cargo/{}@{}", encoded(&one.name), encoded(&one.version))),
    });
    if let Some(digest) = &one.digest {
        value["checksums"] = checksums(digest);
    }
    value
}

fn checksums(digest: &Digest) -> Value {
    json!([{ "algorithm": "SHA256", "checksumValue": digest.to_string() }])
}

fn purl(address: String) -> Value {
    json!([{
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": address,
    }])
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

/// SPDX takes letters, digits, dots and dashes only.
fn id(kind: &str, name: &str, more: &str) -> String {
    let text = format!("{kind}-{name}-{more}");
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("SPDXRef-{}", text.chars().map(plain).collect::<String>())
}

/// As a package URL writes names and versions. Source: the purl specification, character encoding.
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// An SPDX expression from what a crate says; older ones write a slash for "or".
fn expression(licence: &str) -> Option<String> {
    let words: Vec<&str> = licence.split('/').map(str::trim).collect();
    let text = words.join(" OR ");
    (!licence.trim().is_empty()).then_some(text)
}

fn time(epoch: u64) -> String {
    let time =
        i64::try_from(epoch).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    time.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Packages};

    const TREE_TEXT: &str = "\
        polder v0.1.0 (/somewhere/appliance/polder)|Apache-2.0\n\
        polder-site v0.1.0 (/somewhere/appliance/site)|Apache-2.0\n\
        toml v1.2.1+spec-1.1.0|MIT OR Apache-2.0\n\
        serde v1.0.0|MIT/Apache-2.0\n\
        serde v1.0.0|MIT/Apache-2.0\n\
        odd_one v0.2.0|\n";
    const CARGO_LOCK: &str = r#"
        version = 4
        [[package]]
        name = "polder"
        version = "0.1.0"
        [[package]]
        name = "polder-site"
        version = "0.1.0"
        [[package]]
        name = "serde"
        version = "1.0.0"
        source = "registry+somewhere"
        checksum = "0101010101010101010101010101010101010101010101010101010101010101"
        [[package]]
        name = "toml"
        version = "1.2.1+spec-1.1.0"
        source = "registry+somewhere"
        checksum = "0202020202020202020202020202020202020202020202020202020202020202"
        [[package]]
        name = "odd_one"
        version = "0.2.0"
        source = "git+somewhere"
        [[package]]
        name = "only-in-tests"
        version = "1.0.0"
        source = "registry+somewhere"
        checksum = "0303030303030303030303030303030303030303030303030303030303030303"
    "#;

    fn lock() -> Lock {
        let layer = |layer, names: &[(&str, &str, &str)]| {
            let package = |(name, version, arch): &(&str, &str, &str)| {
                let digest = Digest::from_bytes(Sha256::digest(format!("{name}{arch}")).into());
                let (version, arch) = ((*version).into(), (*arch).into());
                ((*name).to_owned(), Package { version, arch, size: 1, digest })
            };
            (layer, names.iter().map(package).collect::<Packages>())
        };
        Lock {
            arch: Arch::X86_64,
            rustc: "1.95.0".into(),
            epoch: 1_760_000_000,
            layers: [
                layer(
                    Layer::Root,
                    &[("dmsetup", "2:1.02.205-2", "amd64"), ("libstdc++6", "14.2.0-19", "amd64")],
                ),
                layer(Layer::Initrd, &[("dracut", "106-6~b1+c", "all")]),
                layer(
                    Layer::Builder,
                    &[("mmdebstrap", "1", "all"), ("systemd-boot-efi:arm64", "257", "arm64")],
                ),
                layer(Layer::Kernels, &[("nvidia-cuda-nvrtc-cu12", "12.9.86", "amd64")]),
                layer(Layer::Tester, &[("swtpm", "1", "amd64")]),
            ]
            .into(),
        }
    }

    fn document(lock: &Lock, compiled: bool) -> Value {
        document_with(lock, compiled, &Driver::None)
    }

    fn document_with(lock: &Lock, compiled: bool, driver: &Driver) -> Value {
        let crates = crates(TREE_TEXT, CARGO_LOCK).unwrap();
        let version = "0.1.0".parse().unwrap();
        let disk = ("polder_0.1.0_x86_64.raw", Digest::from_bytes([9; 32]));
        let contents =
            Contents { lock, version: &version, disk, crates: &crates, compiled, driver };
        let text = spdx(&contents);
        assert_eq!(text, spdx(&contents));
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn every_package_on_the_disk_is_named_with_its_address_and_digest() {
        let document = document(&lock(), true);
        let packages = document["packages"].as_array().unwrap();
        let purls: Vec<&str> = packages
            .iter()
            .filter_map(|p| p["externalRefs"][0]["referenceLocator"].as_str())
            .collect();
        assert_eq!(
            purls,
            [
                "pkg:deb/debian/dmsetup@2:1.02.205-2?arch=amd64",
                "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64",
                "pkg:deb/debian/dracut@106-6~b1%2Bc?arch=all",
                "pkg:deb/debian/systemd-boot-efi@257?arch=arm64",
                "pkg:cargo/odd_one@0.2.0",
                "pkg:cargo/serde@1.0.0",
                "pkg:cargo/toml@1.2.1%2Bspec-1.1.0",
            ]
        );
        let of = |name: &str| packages.iter().find(|p| p["name"] == name).unwrap();
        assert_eq!(of("serde")["checksums"][0]["checksumValue"], "01".repeat(32));
        assert_eq!(of("serde")["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(of("odd_one").get("checksums"), None);
        assert_eq!(of("odd_one")["licenseDeclared"], "NOASSERTION");
        assert_eq!(of("dracut")["licenseDeclared"], "NOASSERTION");
        assert_eq!(of("polder-image")["checksums"][0]["checksumValue"], "09".repeat(32));
        assert_eq!(of("rust-std")["versionInfo"], "1.95.0");
    }

    #[test]
    fn every_relation_leads_from_and_to_something_named_once() {
        let document = document(&lock(), true);
        let mut ids: Vec<&str> = vec!["SPDXRef-DOCUMENT"];
        ids.extend(
            document["packages"].as_array().unwrap().iter().map(|p| p["SPDXID"].as_str().unwrap()),
        );
        let once: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(once.len(), ids.len());
        let plain = |id: &str| id.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
        assert!(ids.iter().all(|id| plain(id)), "{ids:?}");
        let mut led_to = BTreeSet::new();
        for relation in document["relationships"].as_array().unwrap() {
            assert!(once.contains(relation["spdxElementId"].as_str().unwrap()), "{relation}");
            led_to.insert(relation["relatedSpdxElement"].as_str().unwrap());
        }
        led_to.insert("SPDXRef-DOCUMENT");
        assert_eq!(led_to, once);
    }

    #[test]
    fn what_compiled_the_kernels_is_named_where_there_are_any() {
        let compilers = |driver| {
            let document = document_with(&lock(), true, driver);
            let packages = document["packages"].as_array().unwrap().clone();
            packages.iter().filter(|p| p["name"] == "nvidia-cuda-nvrtc-cu12").cloned().collect()
        };
        let with: Vec<Value> = compilers(&Driver::Debian);
        let address = &with[0]["externalRefs"][0]["referenceLocator"];
        assert_eq!(address, "pkg:pypi/nvidia-cuda-nvrtc-cu12@12.9.86");
        assert!(with[0]["comment"].as_str().unwrap().contains("/usr/share/doc/nvidia-cuda-nvrtc"));
        assert_eq!(compilers(&Driver::None), [Value::Null; 0]);
    }

    #[test]
    fn a_document_bears_the_locks_time_and_a_name_that_follows_from_what_it_says() {
        let first = document(&lock(), true);
        assert_eq!(first["creationInfo"]["created"], "2025-10-09T08:53:20Z");
        let name = first["documentNamespace"].as_str().unwrap();
        assert!(name.starts_with("urn:uuid:") && name.len() == 9 + 36, "{name}");
        let mut newer = lock();
        let root = newer.layers.get_mut(&Layer::Root).unwrap();
        root.get_mut("dmsetup").unwrap().digest = Digest::from_bytes([1; 32]);
        assert_ne!(document(&newer, true)["documentNamespace"], first["documentNamespace"]);
    }

    #[test]
    fn a_program_from_elsewhere_is_not_passed_off_as_compiled_here() {
        let comment = |compiled| document(&lock(), compiled)["creationInfo"]["comment"].to_string();
        assert!(comment(false).contains("not compiled from this checkout"));
        assert!(!comment(true).contains("not compiled"));
    }

    #[test]
    fn the_crates_of_this_checkout_have_digests() {
        let tree = "sha2 v0.11.1|MIT OR Apache-2.0";
        let found = crates(tree, include_str!("../../Cargo.lock")).unwrap();
        assert!(found.len() == 1 && found[0].digest.is_some(), "{found:?}");
    }
}
