//! Turns the machine off and on, and sets its clock.

use std::sync::Arc;

use polder_control::{Actor, Power};

use super::{Refusal, Work};
use crate::image::Chore;
use crate::parts::Parts;

impl<P: Parts> Work<P> {
    /// Turns the machine off or on again; the machine's going down then ends this box in order.
    pub(crate) async fn power(self: &Arc<Self>, how: Power, by: Actor) -> Result<(), Refusal> {
        let Some(machine) = self.parts.machine() else {
            if self.power.borrow().is_final() && how == Power::Off {
                self.try_to_record(by, "ended for want of power:", "the box").await;
                log::error!(
                    "the battery of the UPS is nearly empty and all is written down; the box has stopped. It is only a program on this machine, which somebody else has to turn off"
                );
                self.spent.cancel();
                return Ok(());
            }
            return Err("this box is only a program on this machine and cannot turn it off; do that as you usually do"
                .to_owned());
        };
        let what = match how {
            Power::Off => "turned off",
            Power::Restart => "started again",
        };
        let at_its_end = self.power.borrow().is_final();
        match at_its_end {
            // A disk that is full must not keep the machine on until its battery is flat.
            true => self.try_to_record(by, what, "the machine").await,
            false => drop(self.record(by, what, "the machine").await?),
        }
        let gone = match how {
            Power::Off => machine.power_off().await,
            Power::Restart => machine.restart().await,
        };
        gone.map_err(|error| error.to_string())
    }

    /// Sets the machine's clock; whoever tells it the time later over the network is believed more.
    pub(crate) async fn set_clock(self: &Arc<Self>, to: u64, by: Actor) -> Result<(), Refusal> {
        let none = "this box is only a program on this machine; set the clock as you usually do";
        let image = self.image.clone().ok_or(none)?;
        let time = i64::try_from(to).ok().and_then(|to| jiff::Timestamp::from_second(to).ok());
        let time = time.ok_or("that is no time that a clock can show")?;
        self.record(by, "set the clock to", &time.to_string()).await?;
        image.helper().does(Chore::SetClock(to)).await
    }
}
