//! Makes the site true: plans steps, applies them, keeps the parts running.
