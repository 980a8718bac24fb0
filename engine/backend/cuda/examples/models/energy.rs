//! Joules, as the driver's management library counts them.

use std::ffi::{CString, c_char, c_int, c_void};

use libloading::{Library, Symbol};

/// A card's counter of energy. It moves every few dozen milliseconds: what is measured should take a second.
#[derive(Debug)]
pub(crate) struct Meter {
    library: Library,
    card: *mut c_void,
}

impl Meter {
    /// For the card that the driver gives this number. None where the library is missing or the card does not count.
    pub(crate) fn open(number: c_int) -> Option<Self> {
        let address = bus_address(number)?;
        // SAFETY: the signatures are nvml.h's; a card is an address inside of the library.
        unsafe {
            let library = Library::new("libnvidia-ml.so.1").ok()?;
            let start: Symbol<'_, unsafe extern "C" fn() -> c_int> =
                library.get(b"nvmlInit_v2").ok()?;
            let find: Symbol<'_, unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int> =
                library.get(b"nvmlDeviceGetHandleByPciBusId_v2").ok()?;
            let mut card = std::ptr::null_mut();
            if start() != 0 || find(address.as_ptr(), &mut card) != 0 {
                return None;
            }
            let meter = Self { library, card };
            meter.joules().map(|_| meter)
        }
    }

    /// Since the driver was loaded.
    pub(crate) fn joules(&self) -> Option<f64> {
        // SAFETY: as above.
        unsafe {
            let count: Symbol<'_, unsafe extern "C" fn(*mut c_void, *mut u64) -> c_int> =
                self.library.get(b"nvmlDeviceGetTotalEnergyConsumption").ok()?;
            let mut thousandths = 0;
            (count(self.card, &mut thousandths) == 0).then_some(thousandths as f64 / 1e3)
        }
    }
}

fn bus_address(number: c_int) -> Option<CString> {
    let mut text: [c_char; 32] = [0; 32];
    // SAFETY: the driver writes at most so many characters, the last one zero.
    unsafe {
        let card = cudarc::driver::result::device::get(number).ok()?;
        cudarc::driver::sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), 32, card).result().ok()?;
        Some(std::ffi::CStr::from_ptr(text.as_ptr()).to_owned())
    }
}
