//! Mounts the first-boot wizard while the box is unclaimed or reopened.

use std::sync::Arc;

use axum::Router;

use crate::Gateway;

/// The wizard's routes, to be merged into the door's router.
pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
}
