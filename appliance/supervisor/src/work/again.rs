//! A part beside the door and the engines that was given up, and that somebody wants to have tried once more.

use std::sync::Arc;

use polder_control::{Actor, PartName};

use super::{Refusal, Work, lock};
use crate::parts::{Part, Parts};

impl<P: Parts> Work<P> {
    /// Starts a part again that was given up; one that runs is left alone, and one that the site does not ask for is not begun.
    pub(crate) async fn start_again(
        self: &Arc<Self>,
        name: PartName,
        by: Actor,
    ) -> Result<(), Refusal> {
        let part = Part::of(name);
        let keeper = lock(&self.keepers).get(&part).cloned();
        let keeper = keeper.ok_or_else(|| {
            format!("nothing on this box {}: the site does not ask for it", name.does())
        })?;
        if self.ending.is_cancelled() {
            return Err("the box is going down; ask again when it is back".to_owned());
        }
        self.record(by, "started again", &format!("the {part}")).await?;
        keeper.ensure();
        Ok(())
    }
}
