use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::people::Ready;
use crate::{Member, MemberId, Members, MembersError, Role, Secret, kept, people, words};

/// Letters of what a service says of somebody, as it is kept.
const LONGEST: usize = 100;
/// Names like one that is taken, before somebody has to be asked.
const ALIKE: usize = 99;

/// Who a service says that somebody is, proven by its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The service.
    pub issuer: String,
    /// What it calls them: never given to anybody else. The two together are who they are.
    pub subject: String,
    /// What they may be called, best first. Unproven.
    pub names: Vec<String>,
    /// Their address, only where the service says that it is proven.
    pub email: Option<String>,
}

/// What a service's word is worth here, by the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling {
    /// They are in a group that may come in.
    pub admitted: bool,
    /// Whether they are in a group of stewards; nothing where the service was not to say, or told no groups at all.
    pub steward: Option<bool>,
    /// A new one becomes a member.
    pub new_people: bool,
}

/// Somebody came in by their identity.
#[derive(Debug)]
pub struct Arrived {
    /// Who.
    pub member: Member,
    /// The session's cookie.
    pub session: Secret,
    /// They were not a member before.
    pub joined: bool,
    /// Their role is another now.
    pub changed: bool,
}

/// What follows from what a service says of somebody's groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Nothing,
    Becomes(Role),
}

/// What groups change about somebody: never what people on the box decided.
fn follows(member: &Member, made_by_groups: bool, steward: Option<bool>) -> Follows {
    match (steward, member.role) {
        (Some(true), Role::Member) if !member.kept_member => Follows::Becomes(Role::Steward),
        (Some(false), Role::Steward) if made_by_groups => Follows::Becomes(Role::Member),
        _ => Follows::Nothing,
    }
}

/// Somebody did not come in by their identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityRefused {
    /// In none of the groups.
    #[error(
        "you are in none of the groups that may come in; ask whoever looks after the groups, or sign in with your password"
    )]
    NotAdmitted {
        /// Whom that made a member, who was a steward by the groups.
        unmade: Option<String>,
    },
    /// Nobody here has that identity, and nobody is made a member by it.
    #[error(
        "nobody on this box is linked to you there; sign in with your password and link it on your account page, or ask a steward for an invite"
    )]
    Unknown,
    /// Theirs is linked to a member who may not come in.
    #[error("the member that you are linked to may not use the box at present; ask a steward")]
    Disabled,
    /// It is somebody else's.
    #[error(
        "that identity is linked to another member; sign in there as yourself, or ask that member to unlink it"
    )]
    Taken,
    /// They have another one there.
    #[error("you are linked to somebody else there; unlink that first")]
    Another,
    /// It could not be looked up.
    #[error(transparent)]
    Failed(#[from] MembersError),
}

/// An identity of a member's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// Whose word it is.
    pub issuer: String,
    /// What they are called there.
    pub shown: String,
    /// Their address, if it was proven there.
    pub email: Option<String>,
    /// They are a steward because of it.
    pub made_steward: bool,
    /// When they last came in by it; Unix seconds.
    pub seen_at: i64,
}

impl Members {
    /// Lets in whom `service`, as people call it, has proven to be `identity`, and makes their role what its groups say: but the last
    /// steward stays one, and what people on the box decided stays. Everybody is told of a steward more or less. Who is refused may
    /// have lost their role all the same.
    pub fn arrive(
        &self,
        identity: &Identity,
        ruling: Ruling,
        service: &str,
    ) -> Result<Arrived, IdentityRefused> {
        let (id, joined) = match self.seen(identity)? {
            Some(id) => (id, false),
            None if !ruling.admitted => return Err(IdentityRefused::NotAdmitted { unmade: None }),
            None if !ruling.new_people => return Err(IdentityRefused::Unknown),
            None => (self.welcome(identity)?, true),
        };
        let member = self.member(id)?;
        if member.disabled {
            return Err(IdentityRefused::Disabled);
        }
        let changed = self.follow_groups(&member, &identity.issuer, ruling, service)?;
        if !ruling.admitted {
            // Who has a password may still come in by it; nobody else stays in by an old session.
            if !member.has_password {
                self.sign_out_everywhere(id)?;
            }
            return Err(IdentityRefused::NotAdmitted { unmade: changed.then_some(member.name) });
        }
        let (member, session) = self.begin_session(id)?;
        Ok(Arrived { member, session, joined, changed })
    }

    /// Links a member, who has proven both, to an identity.
    pub fn link_identity(&self, id: MemberId, identity: &Identity) -> Result<(), IdentityRefused> {
        match self.seen(identity)? {
            Some(owner) if owner == id => return Ok(()),
            Some(_) => return Err(IdentityRefused::Taken),
            None => {}
        }
        let mut db = self.db();
        let change = begin(&mut db)?;
        people::member(&change, id)?.ok_or(MembersError::NoMember)?;
        let other: bool = change
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM identities WHERE member = ?1 AND issuer = ?2)",
                params![id.0, identity.issuer],
                |row| row.get(0),
            )
            .map_err(MembersError::from)?;
        if other {
            return Err(IdentityRefused::Another);
        }
        insert(&change, id, identity, self.now())?;
        change.commit().map_err(MembersError::from)?;
        drop(db);
        self.keep_gone();
        Ok(())
    }

    /// Links a member to an identity no more. Who is a steward only because of it is none afterwards, of which everybody is told, and who has
    /// no password keeps it: they could not come in any more. True where their role is another now.
    pub fn unlink_identity(
        &self,
        id: MemberId,
        issuer: &str,
        service: &str,
    ) -> Result<bool, MembersError> {
        let member = self.member(id)?;
        let Some(linked) = self.identities(id)?.into_iter().find(|l| l.issuer == issuer) else {
            return Ok(false);
        };
        if !member.has_password {
            return Err(MembersError::Field(
                "you have no password on this box and could not sign in any more; ask a steward to set one first"
                    .into(),
            ));
        }
        let unmade = linked.made_steward && member.role == Role::Steward;
        if unmade {
            let why = format!(
                "{} is no steward any more: the groups at {service} made them one, and they are not linked to it any more.",
                member.name
            );
            self.follow_service(id, Role::Member, service, &why)?;
        }
        kept::note_link(&self.db(), id, issuer)?;
        self.db().execute(
            "DELETE FROM identities WHERE member = ?1 AND issuer = ?2",
            params![id.0, issuer],
        )?;
        self.keep_gone();
        Ok(unmade)
    }

    /// A member's identities.
    pub fn identities(&self, id: MemberId) -> Result<Vec<Linked>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT issuer, shown, email, made_steward, seen_at FROM identities
             WHERE member = ?1 ORDER BY issuer",
        )?;
        let rows = query.query_map([id.0], |row| {
            Ok(Linked {
                issuer: row.get(0)?,
                shown: row.get(1)?,
                email: row.get(2)?,
                made_steward: row.get(3)?,
                seen_at: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The address that a service has proven to be a member's, unless it said the same of another: apps tell people apart by it.
    pub fn proven_email(&self, id: MemberId, issuer: &str) -> Result<Option<String>, MembersError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT email FROM identities AS own WHERE member = ?1 AND issuer = ?2 AND email IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM identities AS other
                 WHERE other.member <> ?1 AND lower(other.email) = lower(own.email))",
        )?;
        Ok(query.query_row(params![id.0, issuer], |row| row.get(0)).optional()?)
    }

    /// Is this a member's password? As slow for an open browser as changing it.
    pub fn is_password(&self, id: MemberId, password: &Secret) -> Result<bool, MembersError> {
        self.check_password(id, password)
    }

    /// Whose it is, after noting what the service says of them now.
    fn seen(&self, identity: &Identity) -> Result<Option<MemberId>, MembersError> {
        let db = self.db();
        let found: Option<i64> = db
            .query_row(
                "SELECT member FROM identities WHERE issuer = ?1 AND subject = ?2",
                [&identity.issuer, &identity.subject],
                |row| row.get(0),
            )
            .optional()?;
        if found.is_some() {
            db.execute(
                "UPDATE identities SET shown = ?3, email = ?4, seen_at = ?5
                 WHERE issuer = ?1 AND subject = ?2",
                params![
                    identity.issuer,
                    identity.subject,
                    shown(identity),
                    proven(identity),
                    self.now()
                ],
            )?;
        }
        Ok(found.map(MemberId))
    }

    /// Makes a member of somebody who is new.
    fn welcome(&self, identity: &Identity) -> Result<MemberId, MembersError> {
        let now = self.now();
        let mut db = self.db();
        let change = begin(&mut db)?;
        let (name, name_key) = free_name(&change, &identity.names)?;
        let ready = Ready { name, name_key, email: None, password: None };
        let id = ready.insert(&change, Role::Member, now)?;
        insert(&change, id, identity, now)?;
        change.commit()?;
        drop(db);
        self.keep_gone();
        Ok(id)
    }

    /// Makes the role what the groups say. True where it became another.
    fn follow_groups(
        &self,
        member: &Member,
        issuer: &str,
        ruling: Ruling,
        service: &str,
    ) -> Result<bool, MembersError> {
        let linked = self.identities(member.id)?;
        let made_by_groups = linked.iter().any(|l| l.issuer == issuer && l.made_steward);
        let Follows::Becomes(role) = follows(member, made_by_groups, ruling.steward) else {
            return Ok(false);
        };
        let name = &member.name;
        let why = match role {
            Role::Steward => format!("{name} is a steward now: the groups at {service} say so."),
            Role::Member => {
                format!("{name} is no steward any more: the groups at {service} say so.")
            }
        };
        match self.follow_service(member.id, role, service, &why) {
            Ok(()) => Ok(true),
            Err(MembersError::LastSteward) => {
                log::warn!(
                    "{name} is in no group of stewards any more and stays one: there is no other"
                );
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Notes whose word made somebody a steward.
pub(crate) fn note_role(
    db: &Connection,
    id: MemberId,
    role: Role,
    by_identity: bool,
) -> rusqlite::Result<usize> {
    db.execute(
        "UPDATE identities SET made_steward = ?2 WHERE member = ?1",
        params![id.0, by_identity && role == Role::Steward],
    )
}

fn begin(db: &mut Connection) -> Result<rusqlite::Transaction<'_>, MembersError> {
    Ok(db.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn insert(
    db: &Connection,
    id: MemberId,
    identity: &Identity,
    now: i64,
) -> Result<(), MembersError> {
    db.execute(
        "INSERT INTO identities (issuer, subject, member, shown, email, created_at, seen_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        params![identity.issuer, identity.subject, id.0, shown(identity), proven(identity), now],
    )?;
    kept::honour(db, id, &identity.issuer, &identity.subject)?;
    Ok(())
}

/// What an account page says of it.
fn shown(identity: &Identity) -> String {
    let name = identity.names.first().unwrap_or(&identity.subject);
    name.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

/// Only what could be an address goes on to apps.
fn proven(identity: &Identity) -> Option<String> {
    words::email(identity.email.as_deref()).ok().flatten()
}

/// The first of these that may be a name, with a number behind it where somebody has it.
fn free_name(db: &Connection, names: &[String]) -> Result<(String, String), MembersError> {
    let taken = |key: &str| -> rusqlite::Result<bool> {
        let exists = "SELECT EXISTS (SELECT 1 FROM members WHERE name_key = ?1)";
        db.query_row(exists, [key], |row| row.get(0))
    };
    let base = names.iter().find_map(|name| fitting(name)).unwrap_or_else(|| "member".to_owned());
    for number in 1..=ALIKE {
        let name = if number == 1 { base.clone() } else { format!("{base} {number}") };
        let (name, key) = words::member_name(&name)?;
        if !taken(&key)? {
            return Ok((name, key));
        }
    }
    Err(MembersError::NameTaken(base))
}

/// As much of it as a name may have, with room for a number.
fn fitting(name: &str) -> Option<String> {
    let ok = |c: char| c.is_alphanumeric() || "._-'’".contains(c);
    let name: String = name.chars().map(|c| if ok(c) { c } else { ' ' }).take(37).collect();
    words::member_name(&name).ok().map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewMember;

    const ISSUER: &str = "https://sso.example.org";
    const HOUSE: &str = "House";
    const OPEN: Ruling = Ruling { admitted: true, steward: None, new_people: true };

    fn place() -> (tempfile::TempDir, Members) {
        let folder = tempfile::tempdir().unwrap();
        let members = Members::open(&folder.path().join("polder.db")).unwrap();
        (folder, members)
    }

    fn add(members: &Members, name: &str, role: Role) -> MemberId {
        let password = Secret::new("four words in a row".into());
        let new = NewMember { name: name.into(), email: None, password };
        members.add_member(&new, role).unwrap().id
    }

    fn identity(subject: &str) -> Identity {
        let (issuer, names) = (ISSUER.to_owned(), vec![format!("<{subject}>"), "x".into()]);
        Identity { issuer, subject: subject.into(), names, email: None }
    }

    fn groups(steward: bool) -> Ruling {
        Ruling { steward: Some(steward), ..OPEN }
    }

    #[test]
    fn a_new_person_becomes_a_member_once_and_only_where_the_site_says_so() {
        let (_folder, members) = place();
        let ada = identity("ada");
        let shut = Ruling { new_people: false, ..OPEN };
        assert!(matches!(members.arrive(&ada, shut, HOUSE), Err(IdentityRefused::Unknown)));
        let outside = Ruling { admitted: false, ..OPEN };
        assert!(matches!(
            members.arrive(&ada, outside, HOUSE),
            Err(IdentityRefused::NotAdmitted { .. })
        ));
        assert_eq!(members.members().unwrap().len(), 0);
        let bea = identity("bea");
        let came = members.arrive(&bea, OPEN, HOUSE).unwrap();
        let (id, token) = (came.member.id, came.session.expose().to_owned());
        assert_eq!(members.sessions(id, &token).unwrap().len(), 1);
        assert!(matches!(
            members.arrive(&bea, outside, HOUSE),
            Err(IdentityRefused::NotAdmitted { .. })
        ));
        assert_eq!(members.sessions(id, &token).unwrap().len(), 0);
        members.remove_member(id).unwrap();
        let first = members.arrive(&ada, OPEN, HOUSE).unwrap();
        assert_eq!((first.member.name.as_str(), first.joined), ("ada", true));
        assert!(!first.member.has_password && !first.member.is_steward());
        let again = members.arrive(&ada, shut, HOUSE).unwrap();
        assert_eq!((again.member.id, again.joined), (first.member.id, false));
        // Another one under the same name is another one.
        let same_name = Identity { subject: "other".into(), ..ada.clone() };
        let other = members.arrive(&same_name, OPEN, HOUSE).unwrap();
        assert_eq!(other.member.name, "ada 2");
        // And so is the same one of another service.
        let elsewhere = Identity { issuer: "https://evil.example".into(), ..ada.clone() };
        assert_eq!(members.arrive(&elsewhere, OPEN, HOUSE).unwrap().member.name, "ada 3");
        // Who is sent away does not come back by it; who is removed begins anew.
        members.set_disabled(first.member.id, true).unwrap();
        assert!(matches!(members.arrive(&ada, OPEN, HOUSE), Err(IdentityRefused::Disabled)));
        members.remove_member(first.member.id).unwrap();
        assert_ne!(members.arrive(&ada, OPEN, HOUSE).unwrap().member.id, first.member.id);
    }

    #[test]
    fn no_name_that_a_service_tells_is_too_odd_to_become_a_member_s() {
        let (_folder, members) = place();
        for (number, name) in
            ["", "<script>", "\u{202e}", &"x".repeat(500), "a\r\nb", "--"].iter().enumerate()
        {
            let new = Identity { names: vec![(*name).into()], ..identity(&number.to_string()) };
            let name = members.arrive(&new, OPEN, HOUSE).unwrap().member.name;
            assert!(!name.is_empty() && name.chars().count() <= 40, "{name:?}");
        }
        let nameless = Identity { names: Vec::new(), ..identity("none") };
        assert!(members.arrive(&nameless, OPEN, HOUSE).unwrap().member.name.starts_with("member"));
    }

    #[test]
    fn groups_make_and_unmake_stewards_but_never_the_last_and_never_one_made_here() {
        let (_folder, members) = place();
        let ada = add(&members, "ada", Role::Steward);
        members.link_identity(ada, &identity("ada")).unwrap();
        let role = |who: &str, ruling| {
            let arrived = members.arrive(&identity(who), ruling, HOUSE).unwrap();
            (arrived.member.is_steward(), arrived.changed)
        };
        // Made on the box: the service's word takes nothing away.
        assert_eq!(role("ada", groups(false)), (true, false));
        // Made by the service: it gives and takes; without a word all stays as it is.
        assert_eq!(role("bo", groups(true)), (true, true));
        assert_eq!(role("bo", OPEN), (true, false));
        assert_eq!(role("bo", groups(false)), (false, true));
        assert_eq!(role("bo", groups(true)), (true, true));
        // The last one stays.
        members.set_role(ada, Role::Member).unwrap();
        assert_eq!(role("bo", groups(false)), (true, false));
        members.set_role(ada, Role::Steward).unwrap();
        // Out of every group: kept out, and no steward any more.
        let out = Ruling { admitted: false, ..groups(false) };
        assert!(members.arrive(&identity("bo"), out, HOUSE).is_err());
        let bo = members.members().unwrap().into_iter().find(|m| m.name == "bo").unwrap();
        assert!(!bo.is_steward());
        // A steward's own hand counts more than the service's.
        members.set_role(bo.id, Role::Steward).unwrap();
        assert_eq!(role("bo", groups(false)), (true, false));
    }

    fn told(members: &Members) -> String {
        members.announcements().unwrap().first().map(|a| a.text.clone()).unwrap_or_default()
    }

    #[test]
    fn everybody_is_told_whom_groups_make_and_unmake_a_steward() {
        let (_folder, members) = place();
        add(&members, "ada", Role::Steward);
        let count = || members.announcements().unwrap().len();
        members.arrive(&identity("bo"), groups(true), HOUSE).unwrap();
        assert_eq!(told(&members), "bo is a steward now: the groups at House say so.");
        members.arrive(&identity("bo"), groups(true), HOUSE).unwrap();
        assert_eq!(count(), 1, "what stays as it is is no news");
        // Out of every group: the refusal says whom it unmade, for the trail.
        let out = Ruling { admitted: false, ..groups(false) };
        match members.arrive(&identity("bo"), out, HOUSE) {
            Err(IdentityRefused::NotAdmitted { unmade }) => assert_eq!(unmade.unwrap(), "bo"),
            other => panic!("{other:?}"),
        }
        assert_eq!(told(&members), "bo is no steward any more: the groups at House say so.");
        assert_eq!((members.announcements().unwrap()[0].by.as_str(), count()), (HOUSE, 2));
        let bo = members.arrive(&identity("bo"), groups(true), HOUSE).unwrap().member;
        members.set_password(bo.id, &Secret::new("four words in a row".into())).unwrap();
        assert!(members.unlink_identity(bo.id, ISSUER, HOUSE).unwrap());
        assert!(told(&members).contains("are not linked to it any more"), "{}", told(&members));
    }

    #[test]
    fn whom_people_made_a_member_no_group_makes_a_steward_until_one_of_them_lets_it() {
        let (folder, members) = place();
        let (ada, ben) = (add(&members, "ada", Role::Steward), add(&members, "ben", Role::Steward));
        members.db().execute("UPDATE members SET steward_since = 0", []).unwrap();
        let comes = |members: &Members| {
            members.arrive(&identity("bo"), groups(true), HOUSE).unwrap().member
        };
        let bo = comes(&members);
        assert!(bo.is_steward());
        let decide = |what| {
            let proposal = members.propose(ada, comes(&members).id, what, None).unwrap();
            members.agree(ben, proposal.id).unwrap();
        };
        decide(crate::Wanted::Member);
        let back = comes(&members);
        assert!(!back.is_steward() && back.kept_member);
        // The word of groups that say no changes nothing about it, nor does unlinking and linking anew.
        members.arrive(&identity("bo"), groups(false), HOUSE).unwrap();
        members.set_password(bo.id, &Secret::new("four words in a row".into())).unwrap();
        members.unlink_identity(bo.id, ISSUER, HOUSE).unwrap();
        members.link_identity(bo.id, &identity("bo")).unwrap();
        assert!(!comes(&members).is_steward());
        // Only a steward lifts it, and everybody hears of it.
        assert!(members.let_groups_decide(bo.id, bo.id).is_err());
        members.let_groups_decide(ada, bo.id).unwrap();
        assert!(told(&members).contains("ada lets the groups"), "{}", told(&members));
        assert!(comes(&members).is_steward());
        // Whoever is removed by two and comes in anew is a member like others, and stays one.
        decide(crate::Wanted::Removed);
        let anew = comes(&members);
        assert!(anew.id != bo.id && !anew.is_steward() && anew.kept_member);
        assert!(!comes(&members).is_steward());
        // Also when one steward removes them after that.
        members.remove_member(anew.id).unwrap();
        let anew = comes(&members);
        assert!(!anew.is_steward() && anew.kept_member);
        let who = std::fs::read_to_string(folder.path().join(crate::GONE)).unwrap();
        assert!(!who.contains("sso.example") && !who.contains("\"bo"), "{who}");
        // A steward's own hand is the other way of lifting it.
        members.set_role(anew.id, Role::Steward).unwrap();
        assert!(!comes(&members).kept_member);
        assert!(comes(&members).is_steward());
    }

    #[test]
    fn whom_people_made_a_member_is_one_too_who_unlinks_leaves_and_comes_in_anew() {
        let (_folder, members) = place();
        let (ada, ben) = (add(&members, "ada", Role::Steward), add(&members, "ben", Role::Steward));
        members.db().execute("UPDATE members SET steward_since = 0", []).unwrap();
        let comes = || members.arrive(&identity("bo"), groups(true), HOUSE).unwrap().member;
        let bo = comes();
        let proposal = members.propose(ada, bo.id, crate::Wanted::Member, None).unwrap();
        members.agree(ben, proposal.id).unwrap();
        members.set_password(bo.id, &Secret::new("four words in a row".into())).unwrap();
        members.unlink_identity(bo.id, ISSUER, HOUSE).unwrap();
        members.leave(bo.id).unwrap();
        let anew = comes();
        assert!(anew.id != bo.id && !anew.is_steward() && anew.kept_member);
    }

    #[test]
    fn an_identity_is_linked_to_one_member_and_a_member_to_one_of_a_service() {
        let (_folder, members) = place();
        let (ada, bo) = (add(&members, "ada", Role::Steward), add(&members, "bo", Role::Member));
        members.link_identity(ada, &identity("1")).unwrap();
        members.link_identity(ada, &identity("1")).unwrap();
        let refused = |id, subject| members.link_identity(id, &identity(subject)).unwrap_err();
        assert!(matches!(refused(bo, "1"), IdentityRefused::Taken));
        assert!(matches!(refused(ada, "2"), IdentityRefused::Another));
        assert_eq!(members.arrive(&identity("1"), OPEN, HOUSE).unwrap().member.id, ada);
        members.unlink_identity(ada, ISSUER, HOUSE).unwrap();
        assert!(members.identities(ada).unwrap().is_empty());
        members.link_identity(bo, &identity("1")).unwrap();
        // Who has no password keeps the only way in; who is a steward by the service alone ends being one.
        let cy = members.arrive(&identity("cy"), groups(true), HOUSE).unwrap().member;
        assert!(members.unlink_identity(cy.id, ISSUER, HOUSE).is_err());
        members.set_password(cy.id, &Secret::new("four words in a row".into())).unwrap();
        members.unlink_identity(cy.id, ISSUER, HOUSE).unwrap();
        assert!(!members.member(cy.id).unwrap().is_steward());
    }

    #[test]
    fn an_address_is_told_only_where_it_is_proven_and_one_member_s() {
        let (_folder, members) = place();
        let with = |subject: &str, email: Option<&str>| {
            let new = Identity { email: email.map(str::to_owned), ..identity(subject) };
            members.arrive(&new, OPEN, HOUSE).unwrap().member.id
        };
        let ada = with("ada", Some("ada@example.org"));
        let told = |id| members.proven_email(id, ISSUER).unwrap();
        assert_eq!(told(ada).as_deref(), Some("ada@example.org"));
        assert_eq!(members.proven_email(ada, "https://elsewhere.example").unwrap(), None);
        let bo = with("bo", Some("ADA@example.org"));
        assert_eq!((told(ada), told(bo)), (None, None));
        with("bo", None);
        assert_eq!(told(ada).as_deref(), Some("ada@example.org"));
        let odd = with("odd", Some("a@b\r\nX-Auth-Request-Groups: steward"));
        assert_eq!(told(odd), None);
    }
}
