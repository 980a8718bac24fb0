//! OpenAI wire format over a Unix socket.
