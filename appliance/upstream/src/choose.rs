//! Whom a question is put to: the engine here, or a server elsewhere. Pure.
//!
//! This is the one place where that is chosen. What comes later (a model of the member's own computer, a quick model that hands on to
//! a slow one) is another [`Candidate`] and another case of [`Here`], not another function.

use polder_site::{UpstreamName, UpstreamServer};

/// How the model that is asked for is on this box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// No engine serves it.
    Nowhere,
    /// Its engine does not answer: it starts, stopped, or broke down.
    Down,
    /// The box would refuse the question, for want of power or room.
    Refuses,
    /// It answers, and so many questions wait for it.
    Ready {
        /// Questions that were asked and have no answer begun.
        waiting: usize,
    },
}

/// May the question leave the box?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Yes.
    Allowed,
    /// Its member, or the key, says no.
    Refused,
    /// Another box passed it on to this one: it goes no further, or it might go round for ever.
    PassedOn,
}

/// A server elsewhere that has the model.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What the box calls it.
    pub name: &'a UpstreamName,
    /// What the site says of it.
    pub upstream: &'a UpstreamServer,
    /// It understands this kind of question.
    pub speaks: bool,
    /// What in the question could cost there what cannot be told before, if anything.
    pub unpriced: Option<&'a str>,
    /// Most that this question may cost there, in millionths.
    pub cost: u64,
    /// What is left of the month's budget, in millionths, without what is set aside for others.
    pub left: u64,
}

/// Everything that the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// How the model is here.
    pub here: Here,
    /// Whether the question may leave.
    pub leave: Leave,
    /// Who else has the model.
    pub elsewhere: &'a [Candidate<'a>],
}

/// Whom to ask, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Way {
    /// These first, one after the other, until one begins to answer.
    pub first: Vec<UpstreamName>,
    /// Then the engine here.
    pub here: bool,
    /// Where that turns out to be down: these.
    pub if_down: Vec<UpstreamName>,
    /// Where that refuses for want of room: these.
    pub if_full: Vec<UpstreamName>,
    /// Why nobody elsewhere is asked, where somebody would have been.
    pub why_not: Option<WhyNot>,
}

/// Why a server elsewhere is not asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// The member or the key refuses.
    #[error(
        "it could be answered elsewhere, by {0}, but this key or its owner lets nothing leave the box"
    )]
    StaysHere(UpstreamName),
    /// It came from another box.
    #[error(
        "it could be answered by {0}, but another box passed it on to this one already, and a question is passed on once only"
    )]
    PassedOn(UpstreamName),
    /// It has a price that cannot be told before.
    #[error(
        "{0} could answer it, but it costs money there, and what {1} would cost cannot be told before; ask without"
    )]
    Unpriced(UpstreamName, String),
    /// The month's budget would not do.
    #[error(
        "{0} could answer it, but this month's budget for that is used up; a steward can raise it on the page Elsewhere"
    )]
    BudgetUsedUp(UpstreamName),
    /// It knows no such path.
    #[error(
        "{0} has the model, but does not take this kind of question; ask by /v1/chat/completions"
    )]
    NotSpoken(UpstreamName),
}

/// Chooses. What is cheapest comes first, then what comes first in the alphabet.
pub fn whom_to_ask(situation: &Situation<'_>) -> Way {
    let able = |wanted: &dyn Fn(&Candidate<'_>) -> bool| Able::of(situation, wanted);
    let down = |c: &Candidate<'_>| c.upstream.when_down;
    let full = |c: &Candidate<'_>| c.upstream.when_full;
    match situation.here {
        // It lives only there.
        Here::Nowhere => {
            let all = able(&|_| true);
            Way { first: all.names, why_not: all.why_not, ..Way::default() }
        }
        Here::Down => {
            let down = able(&down);
            // It may be back before somebody there is.
            Way { here: true, first: down.names, why_not: down.why_not, ..Way::default() }
        }
        Here::Refuses => {
            let full = able(&full);
            // Here it would be refused; who is left says so.
            Way {
                here: full.names.is_empty(),
                first: full.names,
                why_not: full.why_not,
                ..Way::default()
            }
        }
        Here::Ready { waiting } => {
            let queued = |c: &Candidate<'_>| {
                full(c) && c.upstream.full_at.is_some_and(|most| waiting >= usize::from(most))
            };
            let first = able(&queued).names;
            let (down, full) = (able(&down), able(&full));
            let left = |names: Vec<UpstreamName>| {
                names.into_iter().filter(|name| !first.contains(name)).collect()
            };
            Way {
                here: true,
                if_down: left(down.names),
                if_full: left(full.names),
                why_not: down.why_not.or(full.why_not),
                first,
            }
        }
    }
}

/// Those that may be asked, and why others may not.
struct Able {
    names: Vec<UpstreamName>,
    why_not: Option<WhyNot>,
}

impl Able {
    fn of(situation: &Situation<'_>, wanted: &dyn Fn(&Candidate<'_>) -> bool) -> Self {
        let mut all: Vec<&Candidate<'_>> =
            situation.elsewhere.iter().filter(|c| wanted(c)).collect();
        all.sort_by(|a, b| (a.cost, a.name).cmp(&(b.cost, b.name)));
        let (mut names, mut why_not) = (Vec::new(), None);
        for candidate in all {
            let name = candidate.name.clone();
            let why = match (situation.leave, candidate.unpriced) {
                (Leave::Refused, _) => WhyNot::StaysHere(name),
                (Leave::PassedOn, _) => WhyNot::PassedOn(name),
                _ if !candidate.speaks => WhyNot::NotSpoken(name),
                (_, Some(what)) => WhyNot::Unpriced(name, what.to_owned()),
                _ if candidate.cost > candidate.left => WhyNot::BudgetUsedUp(name),
                _ => {
                    names.push(name);
                    continue;
                }
            };
            why_not.get_or_insert(why);
        }
        // Whoever can be asked by somebody need not hear of the others.
        Self { why_not: why_not.filter(|_| names.is_empty()), names }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::question::tests::upstream;

    struct Case {
        name: UpstreamName,
        upstream: UpstreamServer,
        speaks: bool,
        unpriced: Option<&'static str>,
        cost: u64,
        left: u64,
    }

    fn case(name: &str, when_down: bool, when_full: bool, cost: u64) -> Case {
        let upstream = UpstreamServer { when_down, when_full, ..upstream() };
        Case {
            name: name.parse().unwrap(),
            upstream,
            speaks: true,
            unpriced: None,
            cost,
            left: 1000,
        }
    }

    fn way(here: Here, leave: Leave, cases: &[Case]) -> Way {
        let candidate = |case: &'_ Case| Candidate {
            name: Box::leak(Box::new(case.name.clone())),
            upstream: Box::leak(Box::new(case.upstream.clone())),
            speaks: case.speaks,
            unpriced: case.unpriced,
            cost: case.cost,
            left: case.left,
        };
        let elsewhere: Vec<_> = cases.iter().map(candidate).collect();
        whom_to_ask(&Situation { here, leave, elsewhere: &elsewhere })
    }

    fn names(all: &[UpstreamName]) -> Vec<&str> {
        all.iter().map(UpstreamName::as_str).collect()
    }

    const READY: Here = Here::Ready { waiting: 0 };

    #[test]
    fn the_box_itself_answers_as_long_as_it_can() {
        let way = way(READY, Leave::Allowed, &[case("cloud", true, true, 5)]);
        assert!(way.here && way.first.is_empty());
        assert_eq!((names(&way.if_down), names(&way.if_full)), (vec!["cloud"], vec!["cloud"]));
    }

    #[test]
    fn when_it_is_down_only_those_are_asked_that_are_for_that_the_cheapest_first() {
        let cases = [
            case("b", true, false, 5),
            case("a", true, true, 5),
            case("c", true, false, 0),
            case("d", false, true, 0),
        ];
        let asked = way(Here::Down, Leave::Allowed, &cases);
        assert_eq!(names(&asked.first), ["c", "a", "b"]);
        assert!(asked.here, "if none of them answers");
        // Nobody is for that: whoever asked waits, as without all this.
        let asked = way(Here::Down, Leave::Allowed, &cases[3..]);
        assert!(asked.here && asked.first.is_empty() && asked.why_not.is_none());
    }

    #[test]
    fn a_long_queue_is_full_where_the_site_says_how_long_is_too_long() {
        let mut cases = [case("cloud", false, true, 5)];
        cases[0].upstream.full_at = Some(3);
        let asked = |waiting| way(Here::Ready { waiting }, Leave::Allowed, &cases);
        assert!(asked(2).first.is_empty() && asked(2).if_full.len() == 1);
        let full = asked(3);
        assert_eq!(names(&full.first), ["cloud"]);
        assert!(full.here && full.if_full.is_empty(), "here if nobody there answers");
        let refuses = way(Here::Refuses, Leave::Allowed, &cases);
        assert_eq!(names(&refuses.first), ["cloud"]);
    }

    #[test]
    fn a_model_that_no_engine_here_serves_lives_elsewhere_whatever_it_is_for() {
        let asked = way(Here::Nowhere, Leave::Allowed, &[case("cloud", false, false, 5)]);
        assert_eq!((names(&asked.first), asked.here), (vec!["cloud"], false));
    }

    #[test]
    fn what_may_not_leave_does_not_and_the_reason_is_said() {
        for here in [Here::Nowhere, Here::Down, Here::Refuses, READY] {
            let asked = way(here, Leave::Refused, &[case("cloud", true, true, 0)]);
            assert!(asked.first.is_empty() && asked.if_down.is_empty() && asked.if_full.is_empty());
            assert!(matches!(asked.why_not, Some(WhyNot::StaysHere(_))), "{here:?}");
            let asked = way(here, Leave::PassedOn, &[case("cloud", true, true, 0)]);
            assert!(asked.first.is_empty() && asked.if_down.is_empty() && asked.if_full.is_empty());
            let why = asked.why_not.unwrap();
            assert!(matches!(why, WhyNot::PassedOn(_)), "{here:?}");
            assert!(!why.to_string().contains("owner"), "nobody here said so: {why}");
        }
    }

    #[test]
    fn what_costs_nobody_knows_how_much_is_not_asked_for_money() {
        let picture = Case { unpriced: Some("a picture"), ..case("cloud", true, true, 5) };
        let asked = way(Here::Down, Leave::Allowed, &[picture]);
        assert!(asked.first.is_empty() && asked.here);
        let why = asked.why_not.unwrap().to_string();
        assert!(why.contains("what a picture would cost"), "{why}");
    }

    #[test]
    fn a_budget_that_is_used_up_or_a_path_that_is_not_spoken_is_said_unless_another_can() {
        let mut cases = vec![case("cloud", true, false, 1001)];
        let asked = way(Here::Down, Leave::Allowed, &cases);
        assert_eq!(asked.why_not, Some(WhyNot::BudgetUsedUp("cloud".parse().unwrap())));
        assert!(asked.why_not.unwrap().to_string().contains("this month's budget"));
        cases.push(Case { speaks: false, ..case("elm", true, false, 0) });
        let asked = way(Here::Down, Leave::Allowed, &cases);
        assert_eq!(asked.why_not, Some(WhyNot::NotSpoken("elm".parse().unwrap())));
        cases.push(case("oak", true, false, 0));
        let asked = way(Here::Down, Leave::Allowed, &cases);
        assert_eq!((names(&asked.first), asked.why_not), (vec!["oak"], None));
    }

    proptest! {
        #[test]
        fn nobody_is_asked_twice_or_against_a_wish_or_a_budget(
            raw in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u64..9, 0u64..9, 0u16..4), 0..6),
            waiting in 0usize..5, here in 0..4, allowed in any::<bool>(),
        ) {
            let cases: Vec<Case> = raw.iter().enumerate().map(|(n, (down, full, speaks, cost, left, at))| {
                let mut case = case(&format!("u{n}"), *down, *full, *cost);
                (case.speaks, case.left) = (*speaks, *left);
                case.upstream.full_at = (*at > 0).then_some(*at);
                case
            }).collect();
            let here = [Here::Nowhere, Here::Down, Here::Refuses, Here::Ready { waiting }][here as usize];
            let leave = if allowed { Leave::Allowed } else { Leave::Refused };
            let way = way(here, leave, &cases);
            for after in [&way.if_down, &way.if_full] {
                let mut all: Vec<_> = way.first.iter().chain(after).collect();
                for name in &all {
                    let case = cases.iter().find(|c| c.name == **name).unwrap();
                    prop_assert!(allowed && case.speaks && case.cost <= case.left);
                }
                all.sort();
                let before = all.len();
                all.dedup();
                prop_assert_eq!(all.len(), before);
            }
            // Somebody is asked, or it is said why nobody is, or nobody has it.
            let somebody = way.here || !way.first.is_empty();
            prop_assert!(somebody || way.why_not.is_some() || cases.is_empty());
        }
    }
}
