//! The kernel and the ports that init itself uses.

use init::clock::Cmos;
use init::kernel::Kernel;
use init::pci::{ConfigSpace, mechanism_1};
use init::power::{DEBUG_EXIT_PORT, End};
use proto::abi::{Error, Field, Slot, SystemField, init_slots};
use proto::channel::Region;
use rt::memory::MmioRegion;
use rt::shared::Shared;
use rt::{port, sys};

/// Index and data of the CMOS memory: first port, count.
pub const CMOS_PORTS: (u16, u16) = (0x70, 2);
/// Address and data of PCI configuration mechanism 1.
pub const CONFIG_PORTS: (u16, u16) = (0xcf8, 8);
const CONFIG_DATA: u16 = 0xcfc;

/// The system calls.
#[derive(Debug)]
pub struct SystemCalls;

macro_rules! pass_on {
    ($($name:ident($($argument:ident: $type:ty),*) -> $value:ty;)*) => {
        $(
            fn $name(&mut self, $($argument: $type),*) -> Result<$value, Error> {
                sys::$name($($argument),*)
            }
        )*
    };
}

impl Kernel for SystemCalls {
    pass_on! {
        event_create(frames: Slot, dst: Slot) -> ();
        domain_create(frames: Slot, dst: Slot, slots: u64) -> ();
        space_donate(space: Slot, frames: Slot) -> ();
        thread_create(frames: Slot, domain: Slot, dst: Slot, fault: Slot) -> ();
        thread_start(thread: Slot, entry: u64, stack: u64, argument: u64) -> ();
        thread_suspend(thread: Slot) -> ();
        thread_schedule(thread: Slot, priority: u64, weight: u64, cap: u64) -> ();
        cap_read(slot: Slot, field: Field) -> u64;
        vm_create(frames: Slot, dst: Slot) -> ();
        vcpu_create(frames: Slot, vm: Slot, state: Slot, dst: Slot) -> ();
        frames_split(frames: Slot, at: u64, dst: Slot) -> ();
        frames_merge(low: Slot, high: Slot) -> ();
        cap_derive(src: Slot, domain: Slot, dst: Slot, offset: u64, count: u64, rights: u64) -> ();
        cap_delete(domain: Slot, slot: Slot) -> ();
        cap_revoke(slot: Slot) -> ();
        cap_map(src: Slot, space: Slot, address: u64, flags: u64) -> ();
        cap_unmap(src: Slot) -> ();
        irq_bind(irq: Slot, event: Slot, offset: u64) -> ();
        system_info(field: SystemField) -> u64;
    }

    fn zero(&mut self, address: u64, len: u64) {
        let _whole = Shared::from_region(Region { addr: address, len }).fill(0, len as usize, 0);
    }

    fn copy(&mut self, address: u64, bytes: &[u8]) {
        let _whole = Shared::from_region(Region { addr: address, len: bytes.len() as u64 }).write(0, bytes);
    }

    fn read(&mut self, address: u64, out: &mut [u8]) {
        let _whole = Shared::from_region(Region { addr: address, len: out.len() as u64 }).read(0, out);
    }

    fn write_register(&mut self, address: u64, value: u32) {
        let _aligned = MmioRegion::from_region(Region { addr: address, len: 4 }).write_u32(0, value);
    }

    fn tsc(&self) -> u64 {
        rt::time::tsc()
    }
}

/// PCI configuration space by ports. Init is the only one who has them, so the pair of accesses is never
/// interrupted by another's.
#[derive(Debug)]
pub struct ConfigPorts;

impl ConfigSpace for ConfigPorts {
    fn read(&mut self, address: u16, offset: u8) -> u32 {
        port::outl(CONFIG_PORTS.0, mechanism_1(address, offset));
        port::inl(CONFIG_DATA)
    }

    fn write(&mut self, address: u16, offset: u8, value: u32) {
        port::outl(CONFIG_PORTS.0, mechanism_1(address, offset));
        port::outl(CONFIG_DATA, value);
    }
}

/// The real-time clock.
#[derive(Debug)]
pub struct Clock;

impl Cmos for Clock {
    fn read(&mut self, index: u8) -> u8 {
        port::outb(CMOS_PORTS.0, index);
        port::inb(CMOS_PORTS.0 + 1)
    }
}

/// Ends the machine's run.
pub fn end(how: End) -> ! {
    if let End::DebugExit(value) = how {
        port::outb(DEBUG_EXIT_PORT, value);
    }
    // Reached where the device is not there after all, too.
    let _no_way_back = sys::machine_reset(init_slots::LOG);
    rt::start::stop()
}
