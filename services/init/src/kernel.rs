//! What init asks of the kernel and of the machine, so that all of its logic runs on the host too.

use proto::abi::{Error, Field, Slot, SystemField};

/// The system calls that init makes, as in `proto::abi::Syscall`; `domain` or `space` 0 is init itself.
#[expect(missing_docs, reason = "each is documented at the system call of its name")]
#[expect(clippy::missing_errors_doc, reason = "as the kernel answers")]
pub trait Kernel {
    fn event_create(&mut self, frames: Slot, dst: Slot) -> Result<(), Error>;
    fn domain_create(&mut self, frames: Slot, dst: Slot, slots: u64) -> Result<(), Error>;
    fn space_donate(&mut self, space: Slot, frames: Slot) -> Result<(), Error>;
    fn thread_create(&mut self, frames: Slot, domain: Slot, dst: Slot, fault: Slot) -> Result<(), Error>;
    fn thread_start(&mut self, thread: Slot, entry: u64, stack: u64, argument: u64) -> Result<(), Error>;
    fn thread_suspend(&mut self, thread: Slot) -> Result<(), Error>;
    fn thread_schedule(&mut self, thread: Slot, priority: u64, weight: u64, cap: u64) -> Result<(), Error>;
    fn cap_read(&mut self, slot: Slot, field: Field) -> Result<u64, Error>;
    fn vm_create(&mut self, frames: Slot, dst: Slot) -> Result<(), Error>;
    fn vcpu_create(&mut self, frames: Slot, vm: Slot, state: Slot, dst: Slot) -> Result<(), Error>;
    fn frames_split(&mut self, frames: Slot, at: u64, dst: Slot) -> Result<(), Error>;
    fn frames_merge(&mut self, low: Slot, high: Slot) -> Result<(), Error>;
    fn cap_derive(
        &mut self,
        src: Slot,
        domain: Slot,
        dst: Slot,
        offset: u64,
        count: u64,
        rights: u64,
    ) -> Result<(), Error>;
    fn cap_delete(&mut self, domain: Slot, slot: Slot) -> Result<(), Error>;
    fn cap_revoke(&mut self, slot: Slot) -> Result<(), Error>;
    fn cap_map(&mut self, src: Slot, space: Slot, address: u64, flags: u64) -> Result<(), Error>;
    fn cap_unmap(&mut self, src: Slot) -> Result<(), Error>;
    fn irq_bind(&mut self, irq: Slot, event: Slot, offset: u64) -> Result<(), Error>;
    fn system_info(&mut self, field: SystemField) -> Result<u64, Error>;

    /// Sets `len` bytes of RAM that is mapped writable in init at `address` to zero.
    fn zero(&mut self, address: u64, len: u64);
    /// Copies bytes to RAM that is mapped writable in init at `address`.
    fn copy(&mut self, address: u64, bytes: &[u8]);
    /// Copies bytes out of RAM that is mapped in init at `address`; others may write it meanwhile.
    fn read(&mut self, address: u64, out: &mut [u8]);
    /// Writes a device register that is mapped in init at `address`.
    fn write_register(&mut self, address: u64, value: u32);
    /// Time stamp counter.
    fn tsc(&self) -> u64;
}
