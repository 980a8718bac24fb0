use std::sync::LazyLock;

/// A file that pages refer to.
pub struct Asset {
    /// Where it is served. All but the icon carry a hash of their content in the name, so that
    /// browsers may keep them for ever.
    pub path: String,
    /// Its `Content-Type`.
    pub kind: &'static str,
    /// Its content.
    pub body: &'static str,
}

/// Everything to be served: the style sheet, the script, the icon.
pub static ASSETS: LazyLock<[Asset; 3]> = LazyLock::new(|| {
    [
        asset("style", "css", "text/css; charset=utf-8", include_str!("style.css")),
        asset("page", "js", "text/javascript; charset=utf-8", include_str!("page.js")),
        Asset { path: "/icon.svg".into(), kind: "image/svg+xml", body: include_str!("icon.svg") },
    ]
});

/// Where the style sheet is: `/style-….css`.
pub fn style_path() -> &'static str {
    &ASSETS[0].path
}

/// Where the script is: `/page-….js`.
pub fn script_path() -> &'static str {
    &ASSETS[1].path
}

/// An asset of one's own, with the hash of its content in its name.
pub fn asset(name: &str, ending: &str, kind: &'static str, body: &'static str) -> Asset {
    Asset { path: format!("/{name}-{:016x}.{ending}", fnv(body.as_bytes())), kind, body }
}

/// FNV-1a: tells versions of our own files apart, nothing more.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_has_another_name() {
        let path = |body| asset("a", "css", "text/css", body).path;
        assert_ne!(path("one"), path("two"));
        assert!(style_path().starts_with("/style-") && style_path().ends_with(".css"));
    }

    #[test]
    fn no_asset_asks_for_anything_from_elsewhere() {
        for asset in ASSETS.iter() {
            let body = asset.body.replace("http://www.w3.org/2000/svg", "");
            for foreign in ["http://", "https://", "url(", "@import"] {
                assert!(!body.contains(foreign), "{} has {foreign}", asset.path);
            }
        }
    }
}
