//! Pages for people: sign-in, the dashboard, a member's own pages, the chat.

use std::sync::Arc;

use axum::Router;

use crate::Gateway;

/// Every page, to be merged into the door's router.
pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
}
