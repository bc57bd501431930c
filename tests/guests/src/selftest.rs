//! This program's own parts, as modes use them.

use crate::check::Check;
use crate::machine::{self, hypercall, peek, poke};
use crate::numbers::Random;
use crate::paging::{self, AREA, NO_EXECUTE, PRESENT, USER, WRITE};
use crate::traps::{self, GP, PF, UD};
use crate::xen::{XEN_VERSION, errno};

const VECTOR: u8 = 0x55;
const SELF_IPI: u32 = 0x83f;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    faults(check);
    pages(check);
    interrupts(check);
}

fn faults(check: &mut Check) {
    check.faults("an MSR that nobody has", GP, machine::read_msr(0x1234_5678));
    check.works("EFER", machine::read_msr(0xc000_0080));
    check.equal("nested attempts", Ok(Ok(7)), traps::attempt(|| traps::attempt(|| 7)));
    let outer = traps::attempt(|| {
        let inner = traps::attempt(machine::undefined);
        inner.is_err_and(|fault| fault.vector == UD)
    });
    check.equal("a fault in the inner of two", Ok(true), outer);
    check.faults("a jump into nothing mapped", PF, traps::attempt(|| machine::call(AREA)));
    check.equal("hypercall at CPL 0", true, hypercall(XEN_VERSION, [0; 5]) >= 4 << 16);
    let user = traps::user(|| hypercall(XEN_VERSION, [0; 5]));
    check.equal("hypercall at CPL 3", Ok(errno::EPERM), user);
    check.faults("HLT at CPL 3", GP, traps::user(machine::idle_once));
}

fn pages(check: &mut Check) {
    let frame = paging::frame();
    poke(frame, 0x1234);
    paging::map(AREA, frame | PRESENT | NO_EXECUTE);
    check.equal_hex("a page mapped twice", 0x1234u64, peek(AREA));
    let written = machine::try_poke(AREA, 1);
    // CR0.WP is clear after the entry code.
    check.equal("write to a read-only page at CPL 0", Ok(()), written);
    let user = traps::user(|| machine::try_peek(AREA + 8));
    let error = user.map(|inner| inner.map_err(|fault| (fault.vector, fault.error, fault.address)));
    check.equal("a supervisor page at CPL 3", Ok(Err((PF, 5, AREA + 8))), error);
    paging::map(AREA, frame | PRESENT | WRITE | USER);
    check.equal_hex("a user page at CPL 3", 1u64, traps::user(|| peek(AREA)).unwrap_or(0));
    paging::unmap(AREA);
    check.faults("an unmapped page", PF, machine::try_peek(AREA));
}

fn interrupts(check: &mut Check) {
    fn handler(_: &mut traps::Frame) {
        let _fault = machine::write_msr(EOI, 0);
    }
    traps::on(VECTOR, handler);
    machine::interrupts_on();
    machine::software_interrupt();
    machine::interrupts_off();
    check.equal("software interrupts", 1, traps::count(0x80));
    check.works("x2APIC", machine::read_msr(0x1b).and_then(|base| machine::write_msr(0x1b, base | 0xc00)));
    check.works("software enable", machine::write_msr(SPURIOUS, 0x1ff));
    check.works("interrupt to itself", machine::write_msr(SELF_IPI, VECTOR.into()));
    check.equal("taken with interrupts off", 0, traps::count(VECTOR));
    machine::idle_once();
    check.equal("taken at HLT", 1, traps::count(VECTOR));
    traps::off(VECTOR);
}
