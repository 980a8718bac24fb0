//! The gateway's questions to the part that looks after the box's health.

use std::time::Duration;

use polder_control::{Client, HealthReply, HealthReport, HealthRequest};

use crate::Gateway;

/// What it has at hand.
const AT_HAND: Duration = Duration::from_secs(2);
/// What takes looking, or somebody elsewhere who answers.
const PATIENCE: Duration = Duration::from_secs(100);

/// Asks it. The error is a sentence for people.
pub(crate) async fn ask(gateway: &Gateway, request: HealthRequest) -> Result<HealthReply, String> {
    let within = match request {
        HealthRequest::Ready | HealthRequest::Report | HealthRequest::Kept => AT_HAND,
        _ => PATIENCE,
    };
    let asked = async {
        let path = gateway.sockets().health();
        let mut client: Client<HealthRequest, HealthReply> = Client::connect(&path).await?;
        client.ask_within(within, &request).await
    };
    match asked.await {
        Ok(HealthReply::Refused(why)) => Err(why),
        Ok(reply) => Ok(reply),
        Err(error) => {
            log::warn!("the part that looks after the box's health does not answer: {error}");
            Err("the part that looks after the box's health does not answer just now; try again in a moment".to_owned())
        }
    }
}

/// How the box is, as it was last seen; none where nobody looks.
pub(crate) async fn report(gateway: &Gateway) -> Option<HealthReport> {
    match ask(gateway, HealthRequest::Report).await {
        Ok(HealthReply::Report(report)) => Some(*report),
        _ => None,
    }
}
