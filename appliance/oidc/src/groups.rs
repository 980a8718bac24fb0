//! What somebody's groups at the service mean here. Pure.

use polder_site::SignIn;
use serde_json::{Map, Value};

/// Groups that are looked at; who is in more has something else wrong.
const MOST: usize = 1000;

/// What their groups say of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// They may come in.
    pub admitted: bool,
    /// They are a steward, or not; nothing where the service is not to say, or told no groups at all.
    pub steward: Option<bool>,
}

impl Standing {
    /// By the site's rules. `groups`: nothing where the service told none, which is not the same as
    /// none at all: that happens when somebody changes its settings, and then nobody's role changes.
    pub fn of(sign_in: &SignIn, groups: Option<&[String]>) -> Self {
        let is_in = |wanted: &[String]| {
            groups.is_some_and(|groups| groups.iter().any(|group| wanted.contains(group)))
        };
        let steward = is_in(&sign_in.stewards);
        Self {
            admitted: sign_in.members.is_empty() || steward || is_in(&sign_in.members),
            steward: (!sign_in.stewards.is_empty() && groups.is_some()).then_some(steward),
        }
    }
}

/// The groups in a claim: a list of texts, or one text. The claim's name may be a way through
/// objects, such as `realm_access.roles`.
pub(crate) fn groups_in(claims: &Map<String, Value>, name: &str) -> Option<Vec<String>> {
    let whole = claims.get(name);
    let value = whole.or_else(|| {
        let (first, rest) = name.split_once('.')?;
        rest.split('.').try_fold(claims.get(first)?, |value, key| value.get(key))
    })?;
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => {
            let texts = many.iter().take(MOST).filter_map(|group| group.as_str());
            Some(texts.map(str::to_owned).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(members: &[&str], stewards: &[&str]) -> SignIn {
        let mut sign_in = SignIn::at("house", "https://sso.example.org".parse().unwrap(), "box");
        let owned = |groups: &[&str]| groups.iter().map(|g| (*g).to_owned()).collect();
        (sign_in.members, sign_in.stewards) = (owned(members), owned(stewards));
        sign_in
    }

    #[test]
    fn groups_say_who_may_come_in_and_who_is_a_steward() {
        let says = |members: &[&str], stewards: &[&str], groups: Option<&[&str]>| {
            let groups: Option<Vec<String>> =
                groups.map(|groups| groups.iter().map(|g| (*g).to_owned()).collect());
            let standing = Standing::of(&site(members, stewards), groups.as_deref());
            (standing.admitted, standing.steward)
        };
        assert_eq!(says(&[], &[], None), (true, None));
        assert_eq!(says(&[], &[], Some(&["x"])), (true, None));
        assert_eq!(says(&["m"], &[], Some(&["x", "m"])), (true, None));
        assert_eq!(says(&["m"], &[], Some(&["M"])), (false, None));
        assert_eq!(says(&["m"], &["s"], Some(&["m"])), (true, Some(false)));
        assert_eq!(says(&["m"], &["s"], Some(&["s"])), (true, Some(true)));
        assert_eq!(says(&["m"], &["s"], Some(&[])), (false, Some(false)));
        assert_eq!(says(&[], &["s"], Some(&[])), (true, Some(false)));
        // Told nothing: nobody's role changes, and where a group is needed nobody comes in.
        assert_eq!(says(&["m"], &["s"], None), (false, None));
        assert_eq!(says(&[], &["s"], None), (true, None));
    }

    #[test]
    fn groups_are_found_in_a_list_a_text_and_deeper_down() {
        let claims = serde_json::json!({
            "groups": ["a", 7, "b"], "role": "a b", "realm_access": { "roles": ["c"] },
            "dotted.name": ["d"], "odd": { "a": 1 }
        });
        let Value::Object(claims) = claims else { panic!("an object") };
        let found = |name: &str| groups_in(&claims, name);
        assert_eq!(found("groups").unwrap(), ["a", "b"]);
        assert_eq!(found("role").unwrap(), ["a b"]);
        assert_eq!(found("realm_access.roles").unwrap(), ["c"]);
        assert_eq!(found("dotted.name").unwrap(), ["d"]);
        for none in ["", ".", "odd", "realm_access.x.y", "nothing"] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
