//! Upcalls: what tells a vCPU that a port is pending, and where its vcpu_info is.
//!
//! Invariant: a vCPU whose upcall was announced has its bit in `news` until [`Events::has_upcall`] saw that
//! it took it, or [`Events::noticed`] said that somebody looks after it.
//! Source: Xen public/vcpu.h (VCPUOP_register_vcpu_info).

use super::Events;
use super::layout::{Layout, TIME, UPCALL_PENDING, VCPU_INFO_LEN};
use crate::errno::Errno;
use crate::memory::{PAGE, Page};

/// Where a vCPU's vcpu_info is.
#[derive(Debug, Clone, Copy)]
pub(super) struct VcpuInfo {
    pub page: Page,
    pub offset: usize,
    pub is_registered: bool,
}

impl Events {
    /// Announces a pending port of the 2-level ABI to its vCPU.
    pub(super) fn select(&self, port: u32, vcpu: u8) {
        if let Some(info) = self.vcpus.get(usize::from(vcpu))
            && !self.layout.select(&info.page, info.offset, port)
        {
            info.page.set_u8(info.offset + UPCALL_PENDING, 1);
            self.tell(1 << (vcpu % 32));
        }
    }

    /// Has a vCPU take the upcall.
    pub(super) fn announce(&self, vcpu: u8) {
        if let Some(info) = self.vcpus.get(usize::from(vcpu)) {
            info.page.set_u8(info.offset + UPCALL_PENDING, 1);
            self.tell(1 << (vcpu % 32));
        }
    }

    #[inline]
    pub(super) fn tell(&self, vcpus: u32) {
        self.news.set(self.news.get() | vcpus);
    }

    /// Whether an upcall may be due on any vCPU, or a port is pending that some vCPU polls.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.news.get() != 0
    }

    /// The vCPUs for which there are news, a bit for each: they have to be looked at before they may go on
    /// waiting. A bit stays until [`Self::has_upcall`] finds none due, or [`Self::noticed`].
    #[inline]
    pub fn news(&self) -> u32 {
        self.news.get()
    }

    /// These vCPUs are known to be runnable: what is due on them is found when they are entered.
    #[inline]
    pub fn noticed(&self, vcpus: u32) {
        self.news.set(self.news.get() & !vcpus);
    }

    /// A vCPU polls ports, or does so no longer: meanwhile any port that becomes pending is news for it, masked
    /// or not.
    pub fn set_polling(&self, vcpu: usize, polls: bool) {
        let bit = 1 << (vcpu % 32);
        self.pollers.set(if polls { self.pollers.get() | bit } else { self.pollers.get() & !bit });
    }

    /// Whether the vCPU is to take the upcall.
    #[inline]
    pub fn has_upcall(&self, vcpu: usize) -> bool {
        let is_due = self.vcpus.get(vcpu).is_some_and(|info| info.page.u8(info.offset + UPCALL_PENDING) != 0);
        let bit = 1 << (vcpu % 32);
        self.news.set(if is_due { self.news.get() | bit } else { self.news.get() & !bit });
        is_due
    }

    /// VCPUOP_register_vcpu_info: the vcpu_info lives at `offset` of `page` from now on. Nothing that was
    /// pending is lost: everything counts as pending once.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] (no such vCPU), [`Errno::NoDevice`] (not within the page, or misaligned),
    /// [`Errno::Invalid`] (registered before).
    pub fn register_vcpu_info(&mut self, vcpu: usize, page: Page, offset: usize) -> Result<(), Errno> {
        let alignment = if self.layout == Layout::BITS_64 { 8 } else { 4 };
        let info = self.vcpus.get_mut(vcpu).ok_or(Errno::NoEntry)?;
        if offset > PAGE - VCPU_INFO_LEN || !offset.is_multiple_of(alignment) {
            return Err(Errno::NoDevice);
        }
        if info.is_registered {
            return Err(Errno::Invalid);
        }
        let mut old = [0; VCPU_INFO_LEN];
        info.page.read(info.offset, &mut old);
        page.write(offset, &old);
        *info = VcpuInfo { page, offset, is_registered: true };
        self.announce_all(vcpu);
        Ok(())
    }

    /// Everything counts as pending on a vCPU once.
    fn announce_all(&self, vcpu: usize) {
        if let Some(info) = self.vcpus.get(vcpu) {
            self.layout.select_all(&info.page, info.offset);
            self.announce(vcpu as u8);
        }
    }

    /// The guest's words have this layout from now on. Nothing that was pending is lost.
    pub fn latch(&mut self, layout: Layout) {
        if layout == self.layout {
            return;
        }
        let ports = &mut self.ports;
        self.layout.convert(&layout, &self.shared_info, |port| match ports.get_mut(port as usize) {
            Some(entry) if entry.is_bound() => {
                entry.is_kept = true;
                true
            }
            _ => false,
        });
        self.layout = layout;
        if self.fifo.is_none() {
            self.two_level = layout.ports;
        }
        (0..self.vcpus.len()).for_each(|vcpu| self.announce_all(vcpu));
        self.raise_kept();
    }

    /// Where the vCPU's time information is.
    pub fn time_info(&self, vcpu: usize) -> Option<(Page, usize)> {
        self.vcpus.get(vcpu).map(|info| (info.page, info.offset + TIME))
    }
}
