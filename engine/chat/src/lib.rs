//! Tokenizer, chat template and incremental text from a model's own files.
