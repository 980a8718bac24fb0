//! What fits, how many people, how fast, what it costs.
