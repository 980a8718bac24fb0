//! Whether the gateway keeps the door that the site says, asked of the gateway itself: somebody else
//! may be listening where it could not.

use std::time::Duration;

use polder_control::{Client, ControlError, DoorReply, DoorRequest, Doorway, Sockets};
use polder_site::Site;
use tokio::time::{Instant, sleep, timeout};

/// How long a door may take to open; the gateway tries an address again within this time.
const PATIENCE: Duration = Duration::from_secs(6);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until the door is as `site` says, or says why it is not. `before` is the site that it was
/// changed from.
pub(crate) async fn opens(site: &Site, before: &Site, sockets: &Sockets) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = match timeout(PATIENCE, ask(sockets)).await {
            Ok(Ok(doorway)) => match amiss(site, before, &doorway) {
                None => return Ok(()),
                Some(why) => why,
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the gateway does not say whether the door is open".to_owned(),
        };
        if Instant::now() > deadline {
            return Err(why);
        }
        sleep(PAUSE).await;
    }
}

async fn ask(sockets: &Sockets) -> Result<Doorway, ControlError> {
    let mut gateway: Client<DoorRequest, DoorReply> = Client::connect(&sockets.gateway()).await?;
    match gateway.ask(&DoorRequest::Doorway).await? {
        DoorReply::Doorway(doorway) => Ok(doorway),
        // One that is another version: it has made nothing true that we know of.
        _ => Ok(Doorway::default()),
    }
}

/// What is not yet as the site says. An address that was wanted before counts for nothing: a cable
/// may be out, which is no reason to undo another name.
fn amiss(site: &Site, before: &Site, doorway: &Doorway) -> Option<String> {
    if doorway.door.as_ref() != Some(&site.door) {
        return Some("the gateway has not taken up the new addresses; the log says why".to_owned());
    }
    let new = doorway.shut.iter().find(|(address, _)| !before.door.listen.contains(address));
    if let Some((address, why)) = new {
        let port = site.door.port;
        return Some(format!("the door could not be opened at {address}, port {port}: {why}"));
    }
    (doorway.names != site.host_names())
        .then(|| "the gateway has no certificate for the new name; the log says why".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(site: &Site) -> Doorway {
        Doorway {
            door: Some(site.door.clone()),
            shut: Vec::new(),
            names: site.host_names(),
            answering: 0,
            closed: false,
        }
    }

    #[test]
    fn a_door_is_open_when_the_gateway_has_its_addresses_and_a_certificate_for_its_names() {
        let before = Site::unclaimed(8443);
        let mut site = before.clone();
        site.name = "birch".parse().unwrap();
        site.door.listen.push([127, 0, 0, 2].into());
        let mut doorway = kept(&site);
        assert_eq!(amiss(&site, &before, &doorway), None);
        doorway.names = before.host_names();
        assert!(amiss(&site, &before, &doorway).unwrap().contains("certificate"));
        doorway.shut = vec![([127, 0, 0, 2].into(), "in use".to_owned())];
        assert!(amiss(&site, &before, &doorway).unwrap().contains("127.0.0.2, port 8443: in use"));
        assert!(amiss(&site, &before, &kept(&before)).is_some(), "the old door is not the new one");
        assert!(amiss(&site, &before, &Doorway::default()).is_some());
    }

    #[test]
    fn an_address_that_was_shut_before_does_not_undo_another_name() {
        let before = Site::unclaimed(8443);
        let mut site = before.clone();
        site.name = "birch".parse().unwrap();
        let shut = vec![([127, 0, 0, 1].into(), "no cable".to_owned())];
        assert_eq!(amiss(&site, &before, &Doorway { shut, ..kept(&site) }), None);
    }
}
