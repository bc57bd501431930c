//! Everything that makes a guest exit, and what it gets: an effect, an exception, or nothing. What ends the guest has
//! modes of its own (`triple-fault`, `jump`). Sources: AMD64 APM vol. 2, chapter 15 and appendix C; vol. 3.
#![expect(unsafe_code, reason = "this is a guest's kernel")]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::check::Check;
use crate::machine;
use crate::numbers::Random;
use crate::traps::{self, Fault, Frame, GP, UD, instructions};

const DB: u8 = 1;
const AC: u8 = 17;
const RFLAGS_TF: u64 = 1 << 8;
const CR0_AM: u64 = 1 << 18;

/// The mode.
pub fn run(check: &mut Check, _: &mut Random) {
    hidden_instructions(check);
    control_registers(check);
    debug_registers(check);
    lengths(check);
    step(check);
    alignment(check);
    machine::cpuid(0, 0);
    check.tell(format_args!("INT1 gave {:?}", instructions!(".byte 0xf1";).err().map(|fault| fault.vector)));
}

fn hidden_instructions(check: &mut Check) {
    let tries: [(&str, u8, Result<(), Fault>); 14] = [
        ("VMRUN", UD, instructions!("vmrun"; in("rax") 0x1000u64)),
        ("VMLOAD", UD, instructions!("vmload"; in("rax") 0x1000u64)),
        ("VMSAVE", UD, instructions!("vmsave"; in("rax") 0x1000u64)),
        ("STGI", UD, instructions!("stgi";)),
        ("CLGI", UD, instructions!("clgi";)),
        ("SKINIT", UD, instructions!("skinit"; in("eax") 0)),
        ("INVLPGA", UD, instructions!("invlpga rax, ecx"; in("rax") 0u64, in("ecx") 1)),
        ("MONITOR", UD, instructions!("monitor"; in("rax") 0u64, in("rcx") 0u64, in("rdx") 0u64)),
        ("MWAIT", UD, instructions!("mwait"; in("rax") 0u64, in("rcx") 0u64)),
        ("VMCALL", UD, instructions!("vmcall";)),
        ("RSM", UD, instructions!("rsm";)),
        (
            "RDPRU",
            UD,
            instructions!(".byte 0x0f, 0x01, 0xfd"; in("ecx") 0, inout("rax") 0u64 => _, out("rdx") _),
        ),
        ("RDPMC", GP, instructions!("rdpmc"; in("ecx") 0, inout("rax") 0u64 => _, out("rdx") _)),
        ("HLT at CPL 3", GP, traps::user(machine::idle_once)),
    ];
    for (name, vector, got) in tries {
        check.faults(name, vector, got);
    }
    check.works("WBINVD", instructions!("wbinvd";));
    check.works("INVD", instructions!("invd";));
    check.works("PAUSE", instructions!("pause";));
    check.works("INVLPG", instructions!("invlpg [{}]"; in(reg) crate::SCRATCH));
}

/// Reserved bits: each is a #GP, however many in a row.
fn control_registers(check: &mut Check) {
    let cr4: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) cr4) };
    let mut wrong = 0;
    for bit in (24..64).filter(|bit| *bit != 31) {
        let got = instructions!("mov cr4, {}"; in(reg) cr4 | 1 << bit);
        wrong += u64::from(!got.is_err_and(|fault| fault.vector == GP));
    }
    check.equal("reserved bits of CR4 that were taken", 0, wrong);
    let top: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) top) };
    check.faults("CR3 above the physical addresses", GP, instructions!("mov cr3, {}"; in(reg) top | 1 << 51));
    let priority: u64;
    // SAFETY: CR8 masks nothing while interrupts are off.
    unsafe {
        asm!("mov cr8, {five}", "xor eax, eax", "xchg rbx, {b}", "cpuid", "xchg rbx, {b}", "mov {got}, cr8",
            "mov cr8, {zero}", five = in(reg) 5u64, zero = in(reg) 0u64, b = out(reg) _, got = lateout(reg) priority,
            out("rax") _, out("rcx") _, out("rdx") _);
    }
    check.equal("CR8 after an exit", 5, priority);
}

fn debug_registers(check: &mut Check) {
    let values = [0x1000u64, 0xffff_8000_0000_1000, 0x3000, 0xdead_beef];
    let [a, b, c, d]: [u64; 4];
    check.works(
        "DR0 to DR3 written",
        instructions!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}";
            in(reg) values[0], in(reg) values[1], in(reg) values[2], in(reg) values[3]),
    );
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d);
    }
    check.equal("DR0 to DR3", values, [a, b, c, d]);
    check.faults("DR7 with its upper half", GP, instructions!("mov dr7, {}"; in(reg) 1u64 << 32));
    let mut dr7 = 0u64;
    check.works(
        "DR7 from r15, with prefixes",
        instructions!("mov r15, {v}", ".byte 0x66, 0x41, 0x0f, 0x23, 0xff", "mov {w}, dr7";
            v = in(reg) 0x300u64, w = inout(reg) dr7, out("r15") _),
    );
    check.equal_hex("DR7", 0x700u64, dr7);
    check.faults(
        "DR7 at CPL 3",
        GP,
        traps::user(|| instructions!("mov dr7, {}"; in(reg) 0u64)).and_then(|got| got),
    );
    let _fault = instructions!("mov dr7, {}"; in(reg) 0x400u64);
}

/// Instructions that exit are as long as they are, prefixes included, also across two pages.
fn lengths(check: &mut Check) {
    let mut after = 0u64;
    let got = instructions!("xchg rbx, {b}", ".byte 0x66, 0xf2, 0x3e, 0x48, 0x0f, 0xa2", "mov {a}, 1", "xchg rbx, {b}";
        a = inout(reg) after, b = out(reg) _, inout("rax") 0u64 => _, inout("rcx") 0u64 => _, out("rdx") _);
    check.equal("CPUID with four prefixes", (Ok(()), 1), (got, after));
    // CPUID from the last byte of a page on; then `mov eax, 7; ret`.
    let at = crate::SCRATCH + 0xfff;
    for (n, byte) in [0x0f, 0xa2, 0xb8, 7, 0, 0, 0, 0xc3].into_iter().enumerate() {
        machine::poke8(at + n as u64, byte);
    }
    let mut value = 0u64;
    let got = instructions!("push rbx", "call {at}", "pop rbx"; at = in(reg) at, inout("rax") value,
        inout("rcx") 0u64 => _, out("rdx") _);
    check.equal("CPUID across two pages", (Ok(()), 7), (got, value));
}

static STEPS: AtomicU64 = AtomicU64::new(0);
static STEPPED_AT: AtomicU64 = AtomicU64::new(0);

fn on_step(frame: &mut Frame) {
    if STEPS.fetch_add(1, Ordering::Relaxed) == 0 {
        STEPPED_AT.store(frame.rip, Ordering::Relaxed);
    }
    frame.rflags &= !RFLAGS_TF;
}

/// A debugger's step over an instruction that exits ends right behind it.
fn step(check: &mut Check) {
    traps::on(DB, on_step);
    let (expected, dr6): (u64, u64);
    // SAFETY: the handler clears the flag.
    unsafe {
        asm!("mov {d}, 0xffff0ff0", "mov dr6, {d}", "xchg rbx, {b}", "xor eax, eax", "lea {e}, [rip + 66f]", "pushfq",
            "or qword ptr [rsp], 0x100", "popfq", "cpuid", "66:", "nop", "xchg rbx, {b}", "mov {d}, dr6",
            b = out(reg) _, e = out(reg) expected, d = out(reg) dr6, out("rax") _, out("rcx") _, out("rdx") _);
    }
    traps::off(DB);
    check.equal("steps", 1, STEPS.load(Ordering::Relaxed));
    check.equal_hex("where the step over CPUID ended", expected, STEPPED_AT.load(Ordering::Relaxed));
    check.equal_hex("DR6 after it", 1u64 << 14, dr6 & 1 << 14);
}

/// #AC is intercepted, and is the guest's all the same.
fn alignment(check: &mut Check) {
    let _fault =
        instructions!("mov {v}, cr0", "or {v}, {am}", "mov cr0, {v}"; am = in(reg) CR0_AM, v = out(reg) _);
    let got = traps::user(|| {
        // SAFETY: the access is refused, or harmless.
        unsafe {
            asm!("pushfq", "or qword ptr [rsp], 0x40000", "popfq", "mov {v:e}, [{at}]", "pushfq",
                "and qword ptr [rsp], ~0x40000", "popfq", at = in(reg) crate::SCRATCH + 1, v = out(reg) _);
        }
    });
    match got {
        // QEMU checks no alignment.
        Ok(()) => check.tell("the processor does not check alignment"),
        Err(fault) => {
            check.equal(
                "an access at an odd address with alignment checks",
                (AC, 0),
                (fault.vector, fault.error),
            );
        }
    }
    let _fault =
        instructions!("mov {v}, cr0", "and {v}, {am}", "mov cr0, {v}"; am = in(reg) !CR0_AM, v = out(reg) _);
}
