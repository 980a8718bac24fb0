//! Stories: one file per thing a person does with a box.
