/// Why a recipe or a box description cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The text is not TOML, or a field is missing, misspelt or of the wrong kind.
    #[error("this {what} cannot be read: {why}; compare it with one that `polder` brings along")]
    Read {
        /// `recipe` or `box`.
        what: &'static str,
        /// The reader's own words, on one line.
        why: String,
    },
    /// Longer than any honest recipe.
    #[error("this {what} is {bytes} bytes long; at most {limit} are read")]
    TooLong {
        /// `recipe` or `box`.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// It can be read, but one field says something that cannot be.
    #[error("{what} {name:?}: {field} {why}")]
    Check {
        /// `recipe` or `box`.
        what: &'static str,
        /// Its name as given.
        name: String,
        /// Which field.
        field: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// Nothing is known under this name.
    #[error("there is no {what} called {given:?}; {hint}")]
    Unknown {
        /// `model` or `box`.
        what: &'static str,
        /// What was asked for.
        given: String,
        /// `did you mean "…"?`, or the list of those there are.
        hint: String,
    },
}
