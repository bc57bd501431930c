//! Which vCPU a hypercall is about: the caller, or another one of its guest, which is parked meanwhile.

use super::Call;
use crate::errno::Errno;
use crate::machine::{Platform, Vcpu, Wait};

impl<P: Platform> Call<'_, P> {
    /// The vCPU with this number.
    ///
    /// # Errors
    /// [`Errno::NoEntry`].
    pub(super) fn target(&mut self, id: u32) -> Result<&mut Vcpu, Errno> {
        self.machine.vcpu_mut(self.vcpu, id).ok_or(Errno::NoEntry)
    }

    /// Whether another vCPU than this one is up.
    pub(super) fn is_another_up(&self, id: u32) -> bool {
        let caller = core::iter::once(&*self.vcpu);
        caller.chain(self.machine.parked.iter()).any(|vcpu| vcpu.id != id && is_up(vcpu))
    }
}

/// Whether the vCPU is neither halted for good nor still to be started.
pub(super) fn is_up(vcpu: &Vcpu) -> bool {
    vcpu.wait != Wait::Start || vcpu.start.is_some()
}
