//! What an emulated instruction reaches: RAM, the local APIC's page, and nothing.
//!
//! Where nothing is, reads give ones and writes are ignored, as on a bus that nobody answers on. An access
//! may lie in two pages, each of which may be any of the three; both are translated before anything is
//! written.

use crate::apic::{self, Apic, Mode, Now};
use crate::memory::{GuestMemory, GuestPhys, PAGE};
use crate::walk::{Access, Fault, Paging};

/// Most bytes of one access.
pub const ACCESS_MAX: usize = 16;

/// A vCPU's way to memory, for one instruction.
pub struct Bus<'a> {
    pub memory: &'a GuestMemory,
    pub apic: &'a mut Apic,
    pub paging: Paging,
    pub now: Now,
    /// Interprocessor interrupts that were asked for.
    pub commands: heapless::Vec<apic::Command, 4>,
}

/// Where the bytes of an access are: the first so many at the first place, the others at the second.
type Places = [(GuestPhys, usize); 2];

impl Bus<'_> {
    fn places(&self, linear: u64, len: usize, access: Access) -> Result<Places, Fault> {
        let first = self.paging.translate(self.memory, linear, access)?;
        let here = len.min(PAGE - first.offset());
        let rest = len - here;
        if rest == 0 {
            return Ok([(first, len), (first, 0)]);
        }
        let second = self.paging.translate(self.memory, linear.wrapping_add(here as u64), access)?;
        Ok([(first, here), (second, rest)])
    }

    /// Whether all of an access is where no RAM is.
    pub fn is_outside(&self, linear: u64, len: usize, access: Access) -> Result<bool, Fault> {
        let places = self.places(linear, len, access)?;
        Ok(places.iter().all(|(gpa, len)| *len == 0 || self.memory.page(gpa.gfn()).is_none()))
    }

    /// Reads up to eight bytes.
    pub fn read(&mut self, linear: u64, width: u8) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        let len = usize::from(width).min(8);
        self.read_bytes(linear, bytes.get_mut(..len).unwrap_or(&mut []), Access::Read)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads for changing: the page has to be writable.
    pub fn read_locked(&mut self, linear: u64, width: u8) -> Result<u64, Fault> {
        self.places(linear, usize::from(width), Access::Write)?;
        self.read(linear, width)
    }

    pub fn read_bytes(&mut self, linear: u64, out: &mut [u8], access: Access) -> Result<(), Fault> {
        let mut rest = out;
        for (gpa, len) in self.places(linear, rest.len(), access)? {
            let (chunk, tail) = rest.split_at_mut(len.min(rest.len()));
            self.read_place(gpa, chunk, access);
            rest = tail;
        }
        Ok(())
    }

    fn read_place(&mut self, gpa: GuestPhys, out: &mut [u8], access: Access) {
        if out.is_empty() {
            return;
        }
        if let Some(page) = self.memory.page(gpa.gfn()) {
            return page.read(gpa.offset(), out);
        }
        // Instructions are not fetched from registers.
        if access == Access::Fetch || !self.is_apic(gpa) {
            return out.fill(0xff);
        }
        let value = self.apic.read_page(gpa.offset(), out.len(), &self.now).to_le_bytes();
        out.fill(0);
        out.iter_mut().zip(value).for_each(|(to, from)| *to = from);
    }

    /// Writes up to eight bytes.
    pub fn write(&mut self, linear: u64, width: u8, value: u64) -> Result<(), Fault> {
        let bytes = value.to_le_bytes();
        let mut rest = bytes.get(..usize::from(width)).unwrap_or(&bytes);
        for (gpa, len) in self.places(linear, rest.len(), Access::Write)? {
            let (chunk, tail) = rest.split_at(len.min(rest.len()));
            self.write_place(gpa, chunk);
            rest = tail;
        }
        Ok(())
    }

    fn write_place(&mut self, gpa: GuestPhys, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(page) = self.memory.page(gpa.gfn()) {
            return page.write(gpa.offset(), bytes);
        }
        if self.is_apic(gpa) {
            let mut value = [0; 4];
            value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            let value = u32::from_le_bytes(value);
            if let Some(command) = self.apic.write_page(gpa.offset(), bytes.len(), value, &self.now) {
                // A string instruction stops before there are too many.
                let _ = self.commands.push(command);
            }
        }
    }

    fn is_apic(&self, gpa: GuestPhys) -> bool {
        gpa.gfn().base().0 == apic::PAGE_BASE && self.apic.mode() == Mode::XApic
    }
}
