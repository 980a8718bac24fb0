//! A card: its memory, its streams, its kernels. Thin over the driver; every call's error is looked at.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use crate::arch::Arch;
use crate::budget::size;
use crate::ledger::Ledger;

/// There is no card to run on.
#[derive(Debug, thiserror::Error)]
pub enum NoDevice {
    /// Nothing of NVIDIA's is installed.
    #[error("NVIDIA's driver (libcuda) is not on this machine")]
    NoDriver,
    /// The driver finds none.
    #[error("NVIDIA's driver is here, and finds no card")]
    NoCard,
    /// The driver is older than what it is asked to do.
    #[error("NVIDIA's driver is one for CUDA {0}.{1}: Polder needs one for 12.4 or newer")]
    OldDriver(i32, i32),
    /// The driver fails.
    #[error("NVIDIA's driver cannot be used: {0}")]
    Driver(#[from] Failure),
}

/// Launches that overlap can be recorded from 12.3 on.
const LEAST_DRIVER: i32 = 12_040;

/// The driver refused a call, or a kernel that ran before it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Failure {
    /// What was asked.
    pub what: String,
    /// What the driver says.
    pub why: String,
    /// There was not enough memory. Nothing else is broken.
    pub out_of_memory: bool,
}

/// Adds what was asked to the driver's error.
pub(crate) trait Asked<T> {
    fn asked(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Asked<T> for Result<T, DriverError> {
    fn asked(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            what: what(),
            why: error.error_string().map_or_else(
                |_| format!("{:?}", error.0),
                |text| text.to_string_lossy().into_owned(),
            ),
            out_of_memory: error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        })
    }
}

/// A card, held for this process. Clones are the same one.
#[derive(Clone)]
pub struct Device {
    held: Arc<Held>,
}

struct Held {
    device: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    arch: Arch,
    processors: u32,
    memory: u64,
    ledger: Ledger,
}

// SAFETY: a context may be made current on any thread, and the driver locks for itself.
unsafe impl Send for Held {}
// SAFETY: the same.
unsafe impl Sync for Held {}

impl Device {
    /// Takes a card by its number, from 0.
    pub fn open(number: u32) -> Result<Self, NoDevice> {
        let device = find(number)?;
        use sys::CUdevice_attribute_enum as About;
        // SAFETY: the device is the driver's own.
        let about = |what| unsafe { result::device::get_attribute(device, what) };
        let number = |what| about(what).map(|n| u32::try_from(n).unwrap_or_default());
        let major = number(About::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = number(About::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        let processors = number(About::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let asked = || "about a card".to_owned();
        let arch = Arch::of_card(major.asked(asked)?, minor.asked(asked)?);
        let name = result::device::get_name(device).asked(asked)?;
        // SAFETY: as above; the context is released when the last holder goes.
        let (memory, context) =
            unsafe { (result::device::total_mem(device), result::primary_ctx::retain(device)) };
        let context = context.asked(|| "to hold a card".into())?;
        let memory = memory.asked(asked)? as u64;
        let processors = processors.asked(asked)?;
        let held = Arc::new(Held {
            device,
            context,
            name,
            arch,
            processors,
            memory,
            ledger: Ledger::new(),
        });
        let device = Self { held };
        device.enter()?;
        Ok(device)
    }

    /// Bytes of a card's memory, without taking the card.
    pub fn memory_of(number: u32) -> Result<u64, NoDevice> {
        let device = find(number)?;
        // SAFETY: the device is the driver's own.
        let bytes = unsafe { result::device::total_mem(device) };
        Ok(bytes.asked(|| "about a card".into())? as u64)
    }

    /// Makes this card the one that the calling thread speaks to. Every thread that uses it does so once.
    pub fn enter(&self) -> Result<(), Failure> {
        // SAFETY: the context is held.
        unsafe { result::ctx::set_current(self.held.context) }.asked(|| "to take a card".into())
    }

    /// What the maker calls it.
    pub fn name(&self) -> &str {
        &self.held.name
    }

    /// Which machine code it runs.
    pub fn arch(&self) -> Arch {
        self.held.arch
    }

    /// Its multiprocessors.
    pub fn processors(&self) -> u32 {
        self.held.processors
    }

    /// Bytes of shared memory that a block may take at most, where its kernel asks for it.
    pub fn most_shared(&self) -> Result<u32, Failure> {
        let most =
            sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device is the driver's own.
        let bytes = unsafe { result::device::get_attribute(self.held.device, most) };
        bytes.map(|n| u32::try_from(n).unwrap_or_default()).asked(|| "about a card".into())
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> u64 {
        self.held.memory
    }

    /// Bytes that nobody has taken.
    pub fn free_memory(&self) -> Result<u64, Failure> {
        result::mem_get_info().map(|(free, _)| free as u64).asked(|| "for free memory".into())
    }

    /// Lets buffers take no more than so many bytes in all, whatever is free.
    pub fn keep_to(&self, bytes: u64) {
        self.held.ledger.keep_to(bytes);
    }

    /// Bytes that buffers take.
    pub fn taken(&self) -> u64 {
        self.held.ledger.taken()
    }

    /// Bytes of the largest buffer that may still be made, where [`Self::keep_to`] bounds them.
    pub fn left(&self) -> Option<u64> {
        self.held.ledger.left()
    }

    /// Memory for `len` values, whatever stood there before.
    pub fn buffer<T: Plain>(&self, len: usize) -> Result<Buffer<T>, Failure> {
        let bytes = buffer_bytes::<T>(len);
        let what = || format!("for {} of memory", size(&(bytes as u64)));
        self.held.ledger.take(bytes).map_err(|lacking| Failure {
            what: what(),
            why: format!(
                "that is {} more than this engine may take of the card's memory",
                size(&lacking)
            ),
            out_of_memory: true,
        })?;
        // SAFETY: nothing reads it before something writes it: a kernel's business.
        let address = match unsafe { result::malloc_sync(bytes) }.asked(what) {
            Ok(address) => address,
            Err(failure) => {
                self.held.ledger.give(bytes);
                return Err(failure);
            }
        };
        Ok(Buffer { address, len, device: self.clone(), values: PhantomData })
    }

    /// Memory that holds `values`.
    pub fn buffer_of<T: Plain>(&self, values: &[T]) -> Result<Buffer<T>, Failure> {
        let buffer = self.buffer(values.len())?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Host memory for `len` values that the card reads and writes by itself. Zeros at first.
    pub fn pinned<T: Plain>(&self, len: usize) -> Result<Pinned<T>, Failure> {
        let bytes = (len * size_of::<T>()).max(16);
        // No flag: what is only combined when written is slow to read.
        // SAFETY: zeros are values of every plain type.
        unsafe {
            let at = result::malloc_host(bytes, 0)
                .asked(|| format!("for {bytes} bytes of pinned memory"))?;
            std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
            Ok(Pinned { at: at.cast(), len, device: self.clone() })
        }
    }

    /// From now on the card reads and writes this memory by itself. Takes no longer where its pages are there already.
    ///
    /// # Safety
    /// It is there until [`Self::unregister`].
    pub unsafe fn register(&self, memory: *mut u8, bytes: usize) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemHostRegister_v2(memory.cast(), bytes, 0) }
            .result()
            .asked(|| format!("to read {bytes} bytes of host memory by itself"))
    }

    /// Ends that.
    ///
    /// # Safety
    /// It was registered, and the card is done with it.
    pub unsafe fn unregister(&self, memory: *mut u8) {
        let _ = self.enter();
        // SAFETY: the caller's promise; what fails here has failed before.
        let _ = unsafe { sys::cuMemHostUnregister(memory.cast()) };
    }

    /// A queue of work.
    pub fn stream(&self) -> Result<Stream, Failure> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .asked(|| "for a stream".into())?;
        Ok(Stream { stream, device: self.clone() })
    }

    /// A mark in a stream.
    pub fn event(&self) -> Result<Event, Failure> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .asked(|| "for an event".into())?;
        Ok(Event { event, device: self.clone() })
    }

    /// Waits for everything that it was given.
    pub fn synchronize(&self) -> Result<(), Failure> {
        result::ctx::synchronize().asked(|| "to finish its work".into())
    }

    /// Loads machine code.
    pub fn load(&self, cubin: &[u8]) -> Result<Loaded, Failure> {
        // SAFETY: an ELF file carries its own length.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
            .asked(|| "to load kernels".into())?;
        Ok(Loaded { module, device: self.clone() })
    }
}

/// A card by its number, from 0, without taking it.
fn find(number: u32) -> Result<sys::CUdevice, NoDevice> {
    // SAFETY: it looks for a library.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoDevice::NoDriver);
    }
    if let Err(error) = result::init() {
        return match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(NoDevice::NoCard),
            _ => Err(Err::<(), _>(error).asked(|| "to start".into()).expect_err("an error").into()),
        };
    }
    let mut version = 0;
    // SAFETY: it writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().asked(|| "for its version".into())?;
    if version < LEAST_DRIVER {
        return Err(NoDevice::OldDriver(version / 1000, version % 1000 / 10));
    }
    let count = result::device::get_count().asked(|| "to count cards".into())?;
    if number >= u32::try_from(count).unwrap_or_default() {
        return Err(NoDevice::NoCard);
    }
    let device = result::device::get(number.try_into().expect("below a count of cards"));
    Ok(device.asked(|| format!("for card {number}"))?)
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.held.name, self.held.arch)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: everything that belongs to it holds it too, and is gone.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Values that are their bytes, on both sides.
///
/// # Safety
/// No padding, no references, and every pattern of bits is a value.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for i32 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}

/// Memory of the card.
pub struct Buffer<T> {
    address: sys::CUdeviceptr,
    len: usize,
    device: Device,
    values: PhantomData<T>,
}

// SAFETY: an address; who uses it is ordered by streams.
unsafe impl<T> Send for Buffer<T> {}
// SAFETY: the same.
unsafe impl<T> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies, as kernels take it.
    pub fn at(&self) -> Ptr {
        self.offset(0)
    }

    /// Where value `at` lies.
    ///
    /// # Panics
    /// If it is behind the end.
    pub fn offset(&self, at: usize) -> Ptr {
        assert!(at <= self.len, "value {at} of {}", self.len);
        Ptr(self.address + (at * size_of::<T>()) as u64)
    }

    /// Writes some of it, and waits.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, at: usize, values: &[T]) -> Result<(), Failure> {
        assert!(at + values.len() <= self.len, "{} values at {at} of {}", values.len(), self.len);
        // SAFETY: inside, as just checked.
        unsafe { result::memcpy_htod_sync(self.offset(at).0, values) }
            .asked(|| "to write its memory".into())?;
        // The driver comes back when it has taken the values, and streams do not wait for it.
        self.device.synchronize()
    }

    /// Reads some of it, after everything that the card was given.
    ///
    /// # Panics
    /// If they are not there.
    pub fn read(&self, at: usize, values: &mut [T]) -> Result<(), Failure> {
        assert!(at + values.len() <= self.len, "{} values at {at} of {}", values.len(), self.len);
        self.device.synchronize()?;
        // SAFETY: inside, as just checked.
        unsafe { result::memcpy_dtoh_sync(values, self.offset(at).0) }
            .asked(|| "to read its memory".into())
    }

    /// All of it.
    pub fn values(&self) -> Result<Vec<T>, Failure> {
        // SAFETY: zeros are values of every plain type.
        let mut values = vec![unsafe { std::mem::zeroed::<T>() }; self.len];
        self.read(0, &mut values)?;
        Ok(values)
    }

    /// Sets every byte, and waits.
    pub fn fill(&self, byte: u8) -> Result<(), Failure> {
        // SAFETY: the buffer's own bytes.
        unsafe { result::memset_d8_sync(self.address, byte, self.len * size_of::<T>()) }
            .asked(|| "to fill its memory".into())?;
        wait_for_default_stream()
    }
}

/// Bytes of a buffer.
fn buffer_bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).max(16)
}

/// The driver's copies and fills return before the card is done with them, and our streams do not wait for the stream they run in.
fn wait_for_default_stream() -> Result<(), Failure> {
    // SAFETY: none is the default stream, which is always there.
    unsafe { result::stream::synchronize(std::ptr::null_mut()) }.asked(|| "to finish a copy".into())
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: nobody else frees it; the driver waits for work that uses it.
        let _ = unsafe { result::free_sync(self.address) };
        self.device.held.ledger.give(buffer_bytes::<T>(self.len));
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values at {:#x}", self.len, self.address)
    }
}

/// An address in the card's memory, as kernels take it. 0 is none.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ptr(pub u64);

/// Host memory that the card reads and writes by itself.
pub struct Pinned<T> {
    at: *mut T,
    len: usize,
    device: Device,
}

// SAFETY: it is memory like any other.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Plain> std::ops::Deref for Pinned<T> {
    type Target = [T];

    /// What stands there. While the card writes, wait first.
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values, set when it was made.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl<T: Plain> std::ops::DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: nobody else frees it.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pinned values", self.len)
    }
}

/// A queue of work: what is put in later starts later, or at least sees everything before it.
pub struct Stream {
    stream: sys::CUstream,
    device: Device,
}

// SAFETY: the driver locks for itself.
unsafe impl Send for Stream {}

/// How a kernel is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory beside what the kernel always takes.
    pub shared: u32,
    /// Its blocks may come in while the kernel before still runs: it calls `wait_for_before` before it reads or writes
    /// what others do.
    pub overlaps: bool,
}

impl Shape {
    /// One row of blocks, nothing special.
    pub fn row(blocks: u32, block: u32) -> Self {
        Self { grid: [blocks, 1, 1], block, shared: 0, overlaps: false }
    }
}

impl Stream {
    /// Starts a kernel with one argument: a structure that both sides write down alike.
    ///
    /// # Safety
    /// `arguments` is what the kernel takes, its addresses reach as far as the kernel goes, and nothing frees them before
    /// the work is done.
    pub unsafe fn launch<A: Copy>(
        &self,
        kernel: &Kernel,
        shape: &Shape,
        arguments: &A,
    ) -> Result<(), Failure> {
        let mut parameters = [std::ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
        // SAFETY: all zeros is an attribute, and the two fields are then set.
        let mut overlap: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        overlap.id =
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        overlap.value.programmaticStreamSerializationAllowed = 1;
        let overlaps = shape.overlaps && self.device.arch().number >= 90;
        let [x, y, z] = shape.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream,
            attrs: &raw mut overlap,
            numAttrs: u32::from(overlaps),
        };
        // SAFETY: the caller's promise; the driver copies the arguments before it returns.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                kernel.function,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .asked(|| format!("to start the kernel {} with {shape:?}", kernel.name))
    }

    /// Copies from pinned memory, in order.
    ///
    /// # Safety
    /// The memory does not change until it is done.
    ///
    /// # Panics
    /// If they do not fit.
    pub unsafe fn upload<T: Plain>(
        &self,
        to: &Buffer<T>,
        at: usize,
        from: &[T],
    ) -> Result<(), Failure> {
        assert!(at + from.len() <= to.len(), "{} values at {at} of {}", from.len(), to.len());
        // SAFETY: inside, and the caller's promise.
        unsafe { result::memcpy_htod_async(to.offset(at).0, from, self.stream) }
            .asked(|| "to take data".into())
    }

    /// Copies to pinned memory, in order.
    ///
    /// # Safety
    /// Nobody looks at the memory until it is done.
    ///
    /// # Panics
    /// If they are not there.
    pub unsafe fn download<T: Plain>(
        &self,
        to: &mut [T],
        from: &Buffer<T>,
        at: usize,
    ) -> Result<(), Failure> {
        assert!(at + to.len() <= from.len(), "{} values at {at} of {}", to.len(), from.len());
        // SAFETY: inside, and the caller's promise.
        unsafe { result::memcpy_dtoh_async(to, from.offset(at).0, self.stream) }
            .asked(|| "to give data".into())
    }

    /// Marks how far it has come.
    pub fn record(&self, event: &Event) -> Result<(), Failure> {
        // SAFETY: both are alive.
        unsafe { result::event::record(event.event, self.stream) }
            .asked(|| "to mark an event".into())
    }

    /// Whatever is put in later starts when the event, as it was marked last, has been passed.
    pub fn wait(&self, event: &Event) -> Result<(), Failure> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.stream, event.event, flags) }
            .asked(|| "to wait for an event".into())
    }

    /// Waits for everything in it.
    pub fn synchronize(&self) -> Result<(), Failure> {
        // SAFETY: it is alive.
        unsafe { result::stream::synchronize(self.stream) }.asked(|| "to finish its work".into())
    }

    /// Records what `work` puts in, instead of doing it.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), Failure>) -> Result<Graph, Failure> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: it is alive.
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .asked(|| "to record a graph".into())?;
        let worked = work();
        // SAFETY: begun just above; what comes is destroyed below.
        let graph = unsafe { result::stream::end_capture(self.stream) }
            .asked(|| "to record a graph".into());
        // SAFETY: the graph is the driver's own, and not needed behind this.
        let destroy = |graph| unsafe { result::graph::destroy(graph) };
        if let Err(failure) = worked {
            let _ = graph.map(destroy);
            return Err(failure);
        }
        let graph = graph?;
        // SAFETY: the same.
        let made = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        let _ = destroy(graph);
        Ok(Graph { graph: made.asked(|| "to make a graph".into())?, device: self.device.clone() })
    }

    /// Does what a graph recorded.
    ///
    /// # Safety
    /// Everything that it was recorded with is still there.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), Failure> {
        // SAFETY: both are alive.
        unsafe { result::graph::launch(graph.graph, self.stream) }.asked(|| "to run a graph".into())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: nobody else has it; the driver lets its work end.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a stream of {:?}", self.device)
    }
}

/// A mark in a stream.
pub struct Event {
    event: sys::CUevent,
    device: Device,
}

// SAFETY: the driver locks for itself.
unsafe impl Send for Event {}

impl Event {
    /// Waits until it has been passed.
    pub fn wait(&self) -> Result<(), Failure> {
        // SAFETY: it is alive.
        unsafe { result::event::synchronize(self.event) }.asked(|| "to finish its work".into())
    }

    /// Whether it has been passed.
    pub fn has_passed(&self) -> Result<bool, Failure> {
        // SAFETY: it is alive.
        match unsafe { result::event::query(self.event) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.map(|()| true).asked(|| "how far it is".into()),
        }
    }

    /// Milliseconds from another one to this; both have been passed.
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32, Failure> {
        // SAFETY: both are alive.
        unsafe { result::event::elapsed(start.event, self.event) }.asked(|| "for a time".into())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: nobody else has it.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event of {:?}", self.device)
    }
}

/// Recorded work.
pub struct Graph {
    graph: sys::CUgraphExec,
    device: Device,
}

// SAFETY: one thread at a time uses it.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: nobody else has it.
        let _ = unsafe { result::graph::exec_destroy(self.graph) };
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a graph of {:?}", self.device)
    }
}

/// Machine code on the card.
pub struct Loaded {
    module: sys::CUmodule,
    device: Device,
}

// SAFETY: the driver locks for itself.
unsafe impl Send for Loaded {}
// SAFETY: the same.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// One of its kernels. It is no longer good for anything when the module is gone.
    pub fn kernel(&self, name: &CStr) -> Result<Kernel, Failure> {
        let text = name.to_string_lossy().into_owned();
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.module, CString::from(name)) }
            .asked(|| format!("for the kernel {text}"))?;
        Ok(Kernel { function, name: text })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // SAFETY: nobody else has it.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernels on {:?}", self.device)
    }
}

/// A kernel that can be started.
#[derive(Clone)]
pub struct Kernel {
    function: sys::CUfunction,
    name: String,
}

// SAFETY: a handle; the driver locks for itself.
unsafe impl Send for Kernel {}
// SAFETY: the same.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Allows a launch to take so many bytes of shared memory, where that is more than 48 KiB.
    pub fn allow_shared(&self, bytes: u32) -> Result<(), Failure> {
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes_i = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function is loaded.
        unsafe { result::function::set_function_attribute(self.function, most, bytes_i) }
            .asked(|| format!("for {bytes} bytes of shared memory for {}", self.name))
    }

    /// Gives shared memory all that a multiprocessor can split off its first cache. Kernels with unlike splits never run side
    /// by side on one, and the driver's own choice may leave room for fewer blocks than fit.
    pub fn prefer_shared(&self) -> Result<(), Failure> {
        let split =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function is loaded.
        unsafe { result::function::set_function_attribute(self.function, split, 100) }
            .asked(|| format!("for all shared memory for {}", self.name))
    }

    /// How many blocks of so many threads and bytes of shared memory fit on a multiprocessor.
    pub fn blocks_per_processor(&self, threads: u32, shared: u32) -> Result<u32, Failure> {
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: the function is loaded.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                self.function,
                threads,
                shared as usize,
            )
        };
        let blocks = blocks.asked(|| format!("how many blocks of {} fit", self.name))?;
        Ok(u32::try_from(blocks).unwrap_or_default())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
