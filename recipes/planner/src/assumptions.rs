use polder_recipes::BoxSpec;
use serde::{Deserialize, Serialize};

/// What a plan takes for granted. Every one is printed with the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumptions {
    /// Bits per number of a remembered key or value: 8 (FP8) or 16.
    pub kv_bits: f64,
    /// Share of the fast memory that we let ourselves use.
    pub utilisation: f64,
    /// Share of the slow memory that may hold waiting conversations or experts; the system and
    /// its file cache keep the rest.
    pub warm_share: f64,
    /// Tokens of a prompt that are worked on at once; sizes the working space.
    pub prefill_chunk: u32,
    /// Bytes for the driver, compiled kernels and fixed buffers.
    pub fixed_workspace: f64,
    /// Share of the decode ceiling that real engines reach, at worst and at best.
    pub decode_efficiency: (f64, f64),
    /// The worst share where a step on a graphics card would take under a millisecond: then it is
    /// held up by starting its many small pieces of work.
    pub short_step_efficiency: f64,
    /// Share of the peak compute that prefill reaches.
    pub prefill_utilisation: f64,
    /// Months over which one-time costs are spread.
    pub amortisation_months: f64,
    /// Australian dollars per kilowatt-hour.
    pub kwh_price: f64,
    /// Hours of full work in a month.
    pub hours_per_month: f64,
    /// Australian dollars a month for the internet, low and high.
    pub network: (f64, f64),
    /// Australian dollars once for trying models out before buying, low and high.
    pub audition: (f64, f64),
    /// Australian dollars once for tuning a model (de-censoring), low and high.
    pub tuning: (f64, f64),
}

impl Assumptions {
    /// The usual ones for this kind of box.
    pub fn for_box(spec: &BoxSpec) -> Self {
        if spec.is_cpu() { Self::for_processor() } else { Self::for_card() }
    }

    /// For models on a graphics card.
    pub(crate) fn for_card() -> Self {
        Self {
            kv_bits: 8.0,
            utilisation: 0.9,
            warm_share: 0.8,
            prefill_chunk: 8192,
            fixed_workspace: 1e9,
            decode_efficiency: (0.2, 0.65),
            short_step_efficiency: 0.1,
            prefill_utilisation: 0.4,
            amortisation_months: 36.0,
            kwh_price: 0.30,
            hours_per_month: 730.0,
            network: (150.0, 1000.0),
            audition: (800.0, 3200.0),
            tuning: (1500.0, 4000.0),
        }
    }

    /// For models on a processor. The system and everything else live in the same memory, and keys and values stay in 16 bits, for
    /// a processor gains nothing from 8.
    pub(crate) fn for_processor() -> Self {
        let gpu = Self::for_card();
        Self {
            kv_bits: 16.0,
            utilisation: 0.75,
            short_step_efficiency: gpu.decode_efficiency.0,
            prefill_chunk: 512,
            fixed_workspace: 0.2e9,
            network: (0.0, 0.0),
            audition: (0.0, 0.0),
            tuning: (0.0, 0.0),
            ..gpu
        }
    }

    /// Each with a sentence, for the foot of a plan.
    pub fn in_words(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let mut lines = vec![
            format!(
                "Keys and values are kept in {} bits; {} of the fast and {} of the slow memory are used.",
                self.kv_bits,
                percent(self.utilisation),
                percent(self.warm_share)
            ),
            "Experts are chosen evenly. Real traffic favours some, reads fewer, and is a little faster."
                .to_owned(),
            format!(
                "\"Likely\" is {} to {} of the ceiling, and from {} where a step would take under a millisecond. \
                 Measured with another engine on one H200: 11 to 57 % for models with experts, 64 to 71 % \
                 for a plain one.",
                percent(self.decode_efficiency.0),
                percent(self.decode_efficiency.1),
                percent(self.short_step_efficiency)
            ),
            format!(
                "Reading a prompt reaches {} of the peak compute. Measured likewise: 28 to 77 %.",
                percent(self.prefill_utilisation)
            ),
        ];
        if self.network.1 > 0.0 {
            lines.push(format!(
                "One-time costs are spread over {} months and counted once. Electricity A${:.2} per kWh, \
                 {} hours a month at full work.",
                self.amortisation_months, self.kwh_price, self.hours_per_month
            ));
        }
        lines
    }
}
