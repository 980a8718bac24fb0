use std::collections::BTreeMap;

use polder_control::{Check, Fix, Issue, Severity};

use super::{issue, with_fix};
use crate::seen::Seen;

/// Files of models that are not what was imported. For each model, how many.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let mut models: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for damaged in &seen.damaged {
        models.entry(&damaged.recipe).or_default().push(damaged);
    }
    let told = models.into_iter().map(|(recipe, files)| {
        let first = &files[0];
        let how = if first.gone { "is gone" } else { "is not what was imported" };
        let more = match files.len() - 1 {
            0 => String::new(),
            n => format!(", and {n} more"),
        };
        let what = format!("the file {} of {recipe} {how}{more}", first.file);
        let advice = "Bring the model again: only what is wrong is fetched. If it happens again, the disk or the machine's memory fails, and somebody may have changed it who should not have been able to";
        let issue = issue(Check::Weights, recipe.as_str(), Severity::Urgent, what, advice);
        with_fix(issue, Fix::BringModel(recipe.clone()))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::DamagedFile;

    #[test]
    fn damage_is_told_once_for_each_model_and_mended_with_one_press() {
        let file = |recipe: &str, file: &str, gone| DamagedFile {
            recipe: recipe.parse().unwrap(),
            file: file.into(),
            gone,
        };
        let damaged = vec![file("a", "x", false), file("a", "y", true), file("b", "z", true)];
        let issues = check(&Seen { damaged, ..Seen::default() });
        assert_eq!(issues.len(), 2);
        assert!(issues[0].what.contains("x of a is not what was imported, and 1 more"));
        assert_eq!(issues[1].fix, Some(Fix::BringModel("b".parse().unwrap())));
    }
}
