use serde::{Deserialize, Serialize};

/// The other box: one keeps what is precious of the other and can go on in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// Which of the two this one is.
    pub role: SpareRole,
    /// On the spare: where it listens for the main box. Always written: see `unknown.rs`.
    #[serde(default = "usual_port")]
    pub port: u16,
    /// On the spare: most of its disk that backups may take, in percent. Always written.
    #[serde(default = "usual_percent")]
    pub disk_percent: u8,
}

/// Which of two boxes one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpareRole {
    /// It is the spare of another box.
    ForAnother,
    /// It has a spare. Which one, and where, it remembers in `STATE/spare/`.
    OfThis,
}

impl Spare {
    /// With the usual values for everything else.
    pub fn of(role: SpareRole) -> Self {
        Self { role, port: usual_port(), disk_percent: usual_percent() }
    }

    /// Why a box cannot be so.
    pub(crate) fn check(&self, door: u16) -> Result<(), String> {
        if self.role == SpareRole::OfThis {
            return Ok(());
        }
        if self.port == 0 || self.port == door {
            return Err(format!(
                "spare.port is {}; choose a port from 1 to 65535 that is not the box's own {door}",
                self.port
            ));
        }
        match self.disk_percent {
            1..=90 => Ok(()),
            other => Err(format!("spare.disk_percent is {other}; choose 1 to 90")),
        }
    }
}

fn usual_port() -> u16 {
    8444
}

fn usual_percent() -> u8 {
    50
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backup, BackupPlace, Site, SiteChange};

    #[test]
    fn a_box_is_a_spare_or_has_one_and_backups_go_to_a_spare_only_where_there_is_one() {
        let site = Site::unclaimed(8443);
        let to_spare = SiteChange::Backup(Backup::to(BackupPlace::Spare));
        let says = to_spare.applied_to(&site).check().unwrap_err().to_string();
        assert!(says.contains("this box has none; pair it"), "{says}");
        let is_one = SiteChange::Spare(Spare::of(SpareRole::ForAnother)).applied_to(&site);
        is_one.check().unwrap();
        assert!(to_spare.applied_to(&is_one).check().is_err());
        let has_one = SiteChange::Spare(Spare::of(SpareRole::OfThis)).applied_to(&site);
        let sends = to_spare.applied_to(&has_one);
        sends.check().unwrap();
        assert_eq!(Site::from_toml(&sends.to_toml()).unwrap(), sends);
        assert_eq!(SiteChange::RemoveSpare.applied_to(&sends), site);
        for (port, disk_percent, said) in [
            (8443, 50, "not the box's own 8443"),
            (0, 50, "from 1"),
            (8444, 0, "1 to 90"),
            (8444, 99, "1 to 90"),
        ] {
            let spare = Spare { role: SpareRole::ForAnother, port, disk_percent };
            let says = SiteChange::Spare(spare).applied_to(&site).check().unwrap_err().to_string();
            assert!(says.contains(said), "{says}");
        }
    }
}
