//! All that init knows: its holdings, the domains, their channels, and what is to be said to whom.
//!
//! Events from outside are the `on_...` methods; what they lead to is left in [`System::outputs`], which
//! the binary carries out. So the whole of it runs on the host.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use proto::abi::{Slot, SystemField, init_slots, rights};
use proto::boot::{DomainInfo, Run as BootRun, run_kind};
use proto::channel::ChannelInfo;
use proto::counters::COUNTERS_BASE;
use proto::manifest::{self, Manifest};
use proto::text::Text;
use proto::{builder, supervise};

use crate::bundle::{Bundle, BundleRun};
use crate::devices::DeviceSpace;
use crate::domain::{Domain, Kind};
use crate::error::BuildError;
use crate::frames::Run;
use crate::kernel::Kernel;
use crate::operation::Operation;
use crate::pci::ConfigSpace;
use crate::resources::Resources;
use crate::trace::Trace;
use crate::wiring::{self, Channel, Domains, Wire};

/// Init's own domain ID.
pub const ROOT: u32 = 0;
/// Signal of init's event that the toolstack's builder channel sets.
pub const BUILDER_SIGNAL: u64 = 1;
/// Signal of init's timer.
pub const TIMER_SIGNAL: u64 = 2;
/// Signal that the fault of any thread sets.
pub const FAULT_SIGNAL: u64 = 4;
/// Signals that supervise channels share beyond the fixed ones.
const SUPERVISE_SIGNALS: u32 = 60;

/// Signal of init's event that a domain's supervise channel sets.
pub const fn supervise_signal(domid: u32) -> u64 {
    1 << (4 + domid % SUPERVISE_SIGNALS)
}

/// What is to be done outside of the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Take init's end of a supervise channel.
    ConnectSupervise(ChannelInfo),
    /// Take init's end of its log channel.
    ConnectLog(ChannelInfo),
    /// Take init's end of the builder channel.
    ConnectBuilder(ChannelInfo),
    /// Drop init's end of a domain's supervise channel; its memory goes away after this.
    Disconnect(u32),
    /// Send to a domain.
    Supervise(u32, supervise::Request),
    /// Send to the toolstack.
    Builder(builder::Response),
    /// End the machine's run with this status.
    PowerOff(u8),
}

/// What the kernel handed over, decoded.
#[derive(Debug)]
pub struct Start<'a> {
    /// Frame runs; run `i` is in slot `FIRST_FRAMES + i`.
    pub runs: &'a [BootRun],
    /// The bundle.
    pub bundle: &'static [u8],
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
    /// TSC at the kernel's start.
    pub boot_tsc: u64,
    /// Frames that the kernel keeps.
    pub kernel_frames: u64,
}

/// All that init knows.
#[derive(Debug)]
pub struct System<K, C> {
    /// What init holds.
    pub resources: Resources<K>,
    /// PCI configuration space.
    pub config: C,
    /// The bundle's files.
    pub bundle: Bundle,
    /// The manifest.
    pub manifest: Rc<Manifest>,
    /// All domains, init included.
    pub domains: Domains,
    /// All channels.
    pub channels: BTreeMap<u32, Channel>,
    /// Start information of services, by number.
    pub infos: Vec<Box<DomainInfo>>,
    /// Device memory and MSI vectors.
    pub device_space: DeviceSpace,
    /// What is to be done, in order.
    pub outputs: VecDeque<Output>,
    /// What the toolstack asked for and is not answered yet.
    pub operation: Option<Operation>,
    /// The domain that may ask for guests.
    pub toolstack: Option<u32>,
    /// Sets [`FAULT_SIGNAL`] of init's event.
    pub fault_event: Slot,
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
    /// TSC at the kernel's start.
    pub boot_tsc: u64,
    /// Nanoseconds since 1970 when the TSC was 0; to be set before services are built.
    pub wall_clock_base_ns: u64,
    /// Frames of RAM that kernel and services have; set when the last service is ready.
    pub system_frames: u64,
    /// Frames that the kernel keeps.
    pub kernel_frames: u64,
    /// Frames of RAM that init was given.
    pub given_frames: u64,
    /// The kernel's trace, if there is one.
    pub trace: Option<Trace>,
    /// Memory came back, or nothing was done yet: there may be some to be zeroed ahead.
    pub is_zeroing_due: bool,
    next_channel: u32,
    next_domid: u32,
}

/// Apart from its caller, whose stack would have to hold what decoding takes.
#[inline(never)]
fn decode_manifest(bytes: &[u8]) -> Option<Rc<Manifest>> {
    postcard::from_bytes(bytes).ok().map(Rc::new)
}

impl<K: Kernel, C: ConfigSpace> System<K, C> {
    /// Takes over what the kernel handed out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(kernel: K, config: C, start: &Start<'_>) -> Result<Self, String> {
        let first_free = init_slots::FIRST_FRAMES + start.runs.len() as Slot;
        let mut resources = Resources::new(kernel, first_free);
        let mut device_space = DeviceSpace::default();
        let mut bundle_runs = Vec::new();
        for (slot, run) in (init_slots::FIRST_FRAMES..).zip(start.runs) {
            let (first, count) = (run.first, run.count);
            match run.kind {
                run_kind::RAM => resources.give(Run { slot, first, count }),
                run_kind::BUNDLE => bundle_runs.push(BundleRun { slot, first, count }),
                run_kind::DEVICE => device_space.runs.push((first, count, slot)),
                _ => {}
            }
        }
        let given_frames = resources.free.free();
        let bundle = Bundle::parse(start.bundle, bundle_runs)?;
        let file = bundle.file(manifest::FILE).ok_or("the bundle has no manifest")?;
        let manifest = decode_manifest(file.bytes).ok_or("the manifest is garbled")?;
        let vector = resources.kernel.system_info(SystemField::FirstMsiVector);
        device_space.first_vector = vector.map_err(|error| alloc::format!("no MSI vectors: {error:?}"))?;
        let fault = resources.derive(init_slots::EVENT, FAULT_SIGNAL, 0, rights::SIGNAL);
        let fault_event = fault.map_err(|error| alloc::format!("{error}"))?;
        let mut root = Domain::new(ROOT, Text::truncated(crate::services::ROOT_NAME), Kind::Root, 0);
        root.event = init_slots::EVENT;
        root.thread = init_slots::THREAD;
        let counters = resources.map_own_counters().map_err(|error| alloc::format!("{error}"))?;
        root.keep(counters);
        root.counters = COUNTERS_BASE;
        let next_domid = manifest.services.len() as u32 + 1;
        Ok(Self {
            resources,
            config,
            bundle,
            manifest,
            domains: BTreeMap::from([(ROOT, root)]),
            channels: BTreeMap::new(),
            infos: Vec::new(),
            device_space,
            outputs: VecDeque::new(),
            operation: None,
            toolstack: None,
            fault_event,
            tsc_khz: start.tsc_khz.max(1),
            boot_tsc: start.boot_tsc,
            wall_clock_base_ns: 0,
            system_frames: 0,
            kernel_frames: start.kernel_frames,
            given_frames,
            trace: None,
            next_channel: 1,
            next_domid,
            is_zeroing_due: true,
        })
    }

    /// Zeroes memory for the next guest, if that has not been done since memory came back. When init has nothing
    /// else to do.
    pub fn zero_ahead(&mut self) {
        // A guest that is being built or destroyed comes first; then it is still due.
        if self.operation.is_none()
            && core::mem::take(&mut self.is_zeroing_due)
            && let Err(error) = self.resources.zero_ahead()
        {
            // It is done when a guest is built, then.
            log::debug!("no memory is zeroed ahead: {error}");
        }
    }

    /// A domain ID that was never used.
    pub fn take_domid(&mut self) -> u32 {
        self.next_domid += 1;
        self.next_domid - 1
    }

    /// Makes a channel; its ID.
    ///
    /// # Errors
    /// As [`wiring::connect`].
    pub fn connect(&mut self, wire: &Wire) -> Result<u32, BuildError> {
        let id = self.next_channel;
        let channel = wiring::connect(&mut self.resources, &mut self.domains, id, wire)?;
        self.next_channel += 1;
        self.channels.insert(id, channel);
        Ok(id)
    }

    /// Takes a channel away from both ends.
    pub fn disconnect(&mut self, id: u32) {
        if let Some(channel) = self.channels.remove(&id) {
            wiring::disconnect(&mut self.resources, &mut self.domains, channel);
        }
    }

    /// Tells the binary about init's own end of a channel.
    pub fn announce(&mut self, id: u32, output: fn(ChannelInfo) -> Output) {
        if let Some(channel) = self.channels.get(&id) {
            self.outputs.push_back(output(channel.info_for(ROOT).clone()));
        }
    }

    /// Ticks in milliseconds.
    pub fn ticks(&self, ms: u64) -> u64 {
        ms.saturating_mul(self.tsc_khz)
    }
}

#[cfg(test)]
mod tests;
