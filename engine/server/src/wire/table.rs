//! What each request's fields mean here, as data: the tables in `fields/`.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::wire::error::ApiError;
use crate::wire::fields::Fields;

/// One kind of request.
#[derive(Debug)]
pub struct Table {
    /// What the code reads itself.
    pub honoured: Vec<String>,
    /// What cannot change the answer.
    pub accepted: Vec<String>,
    /// What would change it and cannot be honoured.
    pub refused: Vec<Refused>,
}

/// A field that is refused.
#[derive(Debug)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// The end of the sentence that refuses it.
    pub what_to_do: String,
    /// Values that ask for nothing and pass.
    pub unless: Vec<Value>,
}

/// `POST /v1/chat/completions`.
pub static CHAT: LazyLock<Table> =
    LazyLock::new(|| Table::read(include_str!("../../fields/chat.json")));
/// `POST /v1/completions`.
pub static COMPLETIONS: LazyLock<Table> =
    LazyLock::new(|| Table::read(include_str!("../../fields/completions.json")));
/// `POST /v1/embeddings`.
pub static EMBEDDINGS: LazyLock<Table> =
    LazyLock::new(|| Table::read(include_str!("../../fields/embeddings.json")));
/// `POST /v1/messages` and its `count_tokens`.
pub static MESSAGES: LazyLock<Table> =
    LazyLock::new(|| Table::read(include_str!("../../fields/messages.json")));
/// `POST /v1/responses`.
pub static RESPONSES: LazyLock<Table> =
    LazyLock::new(|| Table::read(include_str!("../../fields/responses.json")));

impl Table {
    fn read(text: &str) -> Self {
        let table: Map<String, Value> =
            serde_json::from_str(text).expect("the tables are part of the program and tested");
        let object = |key: &str| table[key].as_object().into_iter().flatten();
        let words = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            honoured: table["honoured"].as_array().into_iter().flatten().map(words).collect(),
            accepted: object("accepted").map(|(name, _)| name.clone()).collect(),
            refused: object("refused")
                .map(|(name, entry)| Refused {
                    name: name.clone(),
                    what_to_do: words(&entry["do"]),
                    unless: entry["unless"].as_array().cloned().unwrap_or_default(),
                })
                .collect(),
        }
    }

    /// Takes out what is accepted, and refuses what is refused. Comes after the code has taken what
    /// it reads itself.
    pub(crate) fn settle(&self, fields: &mut Fields) -> Result<(), ApiError> {
        for name in &self.accepted {
            fields.accept(&[name]);
        }
        for Refused { name, what_to_do, unless } in &self.refused {
            fields.refuse(name, |value| unless.contains(value), what_to_do)?;
        }
        Ok(())
    }
}
